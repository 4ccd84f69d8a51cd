//! Every input that `fuzz/corpus/` keeps, through the target of its directory: what was found once stays found, on every machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[path = "../../../fuzz/targets.rs"]
mod targets;

#[test]
fn no_input_of_the_corpus_ends_a_decoder() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let mut directories: BTreeSet<String> =
        fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for (name, _) in targets::TARGETS {
        assert!(directories.remove(name), "target {name} has no corpus");
        let mut inputs: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(inputs.len() >= 2, "the corpus of {name} holds {} inputs", inputs.len());
        for input in inputs {
            let bytes = fs::read(&input).unwrap();
            let outcome = std::panic::catch_unwind(|| targets::run(name, &bytes));
            assert!(outcome.is_ok(), "{} ends {name}", input.display());
        }
    }
    assert!(directories.is_empty(), "corpora without a target: {directories:?}");
}

/// Every input with a byte flipped, or cut: damage near what is whole gets deeper into a decoder than noise does.
#[test]
fn no_damage_to_the_corpus_ends_a_decoder() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, target) in targets::TARGETS {
        // Takes a tenth of a second each, by design of its key derivation.
        if name == "signing_key" {
            continue;
        }
        for entry in fs::read_dir(corpus.join(name)).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let steps = (bytes.len() / 200).max(1);
            for at in (0..bytes.len()).step_by(steps) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (at % 8);
                let outcome = std::panic::catch_unwind(|| {
                    target(&damaged);
                    target(&bytes[..at]);
                });
                assert!(outcome.is_ok(), "{} damaged at {at} ends {name}", path.display());
            }
        }
    }
}

#[test]
fn every_target_is_given_to_the_fuzzer() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (name, _) in targets::TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in fuzz/Cargo.toml");
        let program = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(program.contains(&format!("targets::run(\"{name}\", bytes)")), "{name}");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), targets::TARGETS.len());
}

/// Bundles with a timestamp and with a certificate are good ones, about something else: damage to them is damage behind the signature.
#[test]
fn the_corpus_of_bundles_reaches_behind_certificates_and_timestamps() {
    use lifeboat_core::attestation::Expected;
    use lifeboat_engine::signing::VerifyError;
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    for name in ["certificate", "timestamp", "golden-1"] {
        let bytes = fs::read(fuzz.join("corpus/bundle").join(name)).unwrap();
        let verified = targets::trust_of_bundles().verify(&bytes, &Expected::backup("another", [0; 32]));
        assert!(matches!(verified, Err(VerifyError::WrongSubject(_))), "{name}: {verified:?}");
    }
}
