//! Prints how many bundles one core signs and verifies per second.
//!
//! Ten million artifacts are signed one by one, so the parts around the cryptography must stay
//! small: at least 40 000 signatures and 12 000 verifications per second on the machines we use.

use std::hint::black_box;
use std::time::{Duration, Instant};

use lifeboat_core::attestation::{Expected, artifact_statement};
use lifeboat_engine::signing::{KeyFileSigner, Signer, SigningKey, Trust};

/// Long enough to be steady, short enough to be run.
const DURATION: Duration = Duration::from_secs(2);

fn rate(what: &str, mut work: impl FnMut()) {
    let start = Instant::now();
    let mut count = 0u32;
    while start.elapsed() < DURATION {
        for _ in 0..100 {
            work();
        }
        count += 100;
    }
    println!("{what}: {:.0}/s", f64::from(count) / start.elapsed().as_secs_f64());
}

fn main() {
    let signer = KeyFileSigner::new(SigningKey::generate().expect("random bytes"));
    let trust = Trust::new([signer.public_key().clone()]);
    let details = [("origin".to_owned(), "sync".into())].into_iter().collect();
    let statement = artifact_statement("builds/17/log.txt", "20240315T120000.123Z-1f2e3d4c5b6a", [7; 32], 17, details);
    let bytes = statement.to_bytes();
    let bundle = signer.sign_statement(&bytes).expect("a statement is signed");
    let expected = Expected::artifact("builds/17/log.txt", "20240315T120000.123Z-1f2e3d4c5b6a", [7; 32]);

    rate("statements to bytes", || drop(black_box(black_box(&statement).to_bytes())));
    rate("bundles signed", || drop(black_box(signer.sign_statement(black_box(&bytes)))));
    rate("bundles verified", || drop(black_box(trust.verify(black_box(bundle.as_bytes()), &expected))));
}
