//! Prints how many bundles one core signs and verifies per second, beside the cryptography alone, in rounds.
//!
//! Ten million artifacts are signed one by one, so the parts around the cryptography must stay
//! small: at least 40 000 signatures and 12 000 verifications per second on the machines we use. Seconds are those that this thread
//! had a core, so that neighbours do not count. `scripts/bench trust` runs this and tells the ratios.

use std::fs;
use std::hint::black_box;
use std::time::Instant;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, ParsedPublicKey};
use lifeboat_core::attestation::{Expected, artifact_statement};
use lifeboat_core::trust::{Identity, SubjectRule, Terms};
use lifeboat_engine::signing::{KeyFileSigner, Signer, SigningKey, Trust, TrustedKey};

#[path = "../tests/support/instance.rs"]
mod instance;

use instance::{ISSUER, Instance, SUBJECT};

/// What one row does.
type Work<'a> = (&'static str, Box<dyn FnMut() + 'a>);

/// Long enough to be steady, short enough to be run in rounds.
const SECONDS: f64 = 0.5;

/// Seconds that this thread ran (`/proc/thread-self/schedstat`, first number, nanoseconds); of the clock, where the kernel does not tell.
fn seconds(start: Instant) -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let ran = stat.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    ran.filter(|ran| *ran > 0.0).map_or_else(|| start.elapsed().as_secs_f64(), |ran| ran / 1e9)
}

fn rate(what: &str, work: &mut dyn FnMut()) {
    let start = Instant::now();
    let (began, mut count) = (seconds(start), 0u32);
    let ran = loop {
        for _ in 0..100 {
            work();
        }
        count += 100;
        let ran = seconds(start) - began;
        if ran >= SECONDS {
            break ran;
        }
    };
    println!("{what}: {:.0}/s", f64::from(count) / ran);
}

fn main() {
    let rounds = std::env::var("LIFEBOAT_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let signer = KeyFileSigner::new(SigningKey::generate().expect("random bytes"));
    let key = TrustedKey { key: signer.public_key().clone(), terms: Terms::default(), known_good: None };
    let trust = Trust::default().with_key(key);
    let details = [("origin".to_owned(), "sync".into())].into_iter().collect();
    let version = "20240315T120000.123Z-1f2e3d4c5b6a";
    let statement = artifact_statement("builds/17/log.txt", version, [7; 32], 17, details);
    let bytes = statement.to_bytes();
    let bundle = signer.sign_statement(&bytes).expect("a statement is signed");
    let expected = Expected::artifact("builds/17/log.txt", version, [7; 32]);

    // The same curve, digest and library, over as many bytes as are signed, and nothing around it.
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("random bytes");
    let random = SystemRandom::new();
    let message = vec![7; bytes.len() + 60];
    let signature = pair.sign(&random, &message).expect("ECDSA signs");
    let public = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key().as_ref()).expect("its own key");

    let instance = Instance::new();
    let stamped = instance.stamped(&bundle).to_string();
    let by_identity = instance.by_identity(&statement).to_string();
    let identity = Identity { issuer: ISSUER.to_owned(), subject: SubjectRule::Exactly(SUBJECT.to_owned()), terms: Terms::default() };
    let rooted = trust.clone().with_roots(instance.roots()).with_identity(identity);
    for (trust, bundle) in [(&trust, &bundle), (&rooted, &stamped), (&rooted, &by_identity)] {
        trust.verify(bundle.as_bytes(), &expected).expect("what is measured is a success");
    }

    let verify = |trust: &Trust, bundle: &str| drop(black_box(trust.verify(black_box(bundle.as_bytes()), &expected).expect("as above")));
    let mut rows: Vec<Work<'_>> = vec![
        ("aws-lc-rs signs", Box::new(|| assert!(black_box(pair.sign(&random, black_box(&message))).is_ok()))),
        ("bundles signed", Box::new(|| drop(black_box(signer.sign_statement(black_box(&bytes)).expect("as above"))))),
        ("aws-lc-rs verifies", Box::new(|| black_box(public.verify_sig(black_box(&message), signature.as_ref())).expect("its own"))),
        ("bundles verified", Box::new(|| verify(&trust, &bundle))),
        ("bundles verified with a timestamp", Box::new(|| verify(&rooted, &stamped))),
        ("bundles verified with a certificate", Box::new(|| verify(&rooted, &by_identity))),
        ("statements to bytes", Box::new(|| drop(black_box(black_box(&statement).to_bytes())))),
    ];
    for _ in 0..rounds {
        for (what, work) in &mut rows {
            rate(what, work);
        }
    }
}
