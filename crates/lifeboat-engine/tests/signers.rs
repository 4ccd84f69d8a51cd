//! Signers that others take part in, against the real services: OpenBao's transit engine, and a Sigstore instance on loopback. What they
//! sign is judged by three verifiers of others: `@sigstore/verify`, sigstore-python, and sigstore-go inside `gh`.

mod bao;
mod sigstore;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::attestation::{
    ARTIFACT_PREDICATE_TYPE, BACKUP_PREDICATE_TYPE, Expected, Statement, artifact_statement, backup_statement,
};
use lifeboat_core::attestation::{DRILL_PREDICATE_TYPE, TEST_RESULT_PREDICATE_TYPE};
use lifeboat_core::drill::Report;
use lifeboat_core::drill::statement::{Digests, drill_statement, test_result_statement};
use lifeboat_core::repository::Sha256;
use lifeboat_engine::drill::evidence::report_bytes;
use lifeboat_engine::signing::{
    KeyFileSigner, KeylessConfig, KeylessSigner, PublicKey, Reach, Roots, SecretSource, SignError, Signer, SigningKey, StampConfig,
    StampedSigner, TransitConfig, TransitSigner, Trust, VerifyError,
};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use bao::Bao;
use sigstore::{Claim, ISSUER, SUBJECT, Sigstore, Verdict};

const MANIFEST: &[u8] = b"{\"format\": 1, \"backup\": \"conductor-backup-20240315T120000Z\"}\n";
const ID: &str = "conductor-backup-20240315T120000Z";
const ARTIFACT: &[u8] = b"build log: all 1242 tests passed\n";

fn sha256(bytes: &[u8]) -> [u8; 32] {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().try_into().unwrap()
}

fn backup() -> Statement {
    backup_statement(ID, sha256(MANIFEST), json!({"state": "healthy"}))
}

fn artifact() -> Statement {
    artifact_statement("builds/42/log", "v1", sha256(ARTIFACT), ARTIFACT.len() as u64, Map::new())
}

/// Patient enough for a busy machine, and without long waits where something is broken on purpose.
fn drill() -> Report {
    let path = format!("{}/../../testdata/drills/passed.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn reach() -> Reach {
    Reach { connect_timeout: Duration::from_secs(20), timeout: Duration::from_secs(60), max_attempts: 3, ..Reach::default() }
}

fn fixed(secret: &str) -> SecretSource {
    let secret = secret.to_owned();
    Box::new(move || Ok(Zeroizing::new(secret.clone())))
}

fn roots(text: &str) -> Roots {
    Roots::from_json(text).unwrap()
}

impl Sigstore {
    fn roots(&self) -> Roots {
        roots(&self.read("trusted_root.json"))
    }

    /// Its trusted root, changed.
    fn root_without(&self, member: &str) -> String {
        let mut root: Value = serde_json::from_str(&self.read("trusted_root.json")).unwrap();
        root.as_object_mut().unwrap().remove(member);
        root.to_string()
    }

    fn signer(&self, config: &str, token: &str) -> KeylessSigner {
        self.signer_for(self.roots(), config, token)
    }

    fn signer_for(&self, roots: Roots, config: &str, token: &str) -> KeylessSigner {
        let config = KeylessConfig { signing_config: self.read(config), roots, token: fixed(&self.read(token)), reach: reach() };
        KeylessSigner::new(config).unwrap()
    }

    fn stamps(&self, required: bool) -> (StampConfig, Arc<Mutex<Vec<String>>>) {
        let missed = Arc::new(Mutex::new(Vec::new()));
        let told = missed.clone();
        let config = StampConfig {
            urls: vec![format!("{}/api/v1/timestamp", self.url)],
            roots: self.roots(),
            required,
            reach: reach(),
            missed: Box::new(move |why| told.lock().unwrap().push(why.to_owned())),
        };
        (config, missed)
    }

    /// A timestamp of its authority over `signature`, now.
    fn timestamp(&self, signature: &[u8]) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = sigstore_tsa::TimestampClient::new(format!("{}/api/v1/timestamp", self.url)).unwrap();
        let signature = sigstore_types::SignatureBytes::from_bytes(signature);
        runtime.block_on(client.timestamp_signature(&signature)).unwrap().as_bytes().to_vec()
    }
}

fn sign(signer: &dyn Signer, statement: &Statement) -> String {
    signer.sign_statement(&statement.to_bytes()).unwrap()
}

fn parsed(bundle: &str) -> Value {
    serde_json::from_str(bundle).unwrap()
}

fn verify(roots: &Roots, bundle: &Value) -> Result<Statement, VerifyError> {
    roots.verify_certificate(bundle.to_string().as_bytes()).map(|signed| Statement::parse(&signed.statement).unwrap())
}

fn base64(text: &Value) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap()).unwrap()
}

fn to_base64(bytes: &[u8]) -> Value {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes).into()
}

#[test]
fn certificates_sign_what_the_roots_verify() {
    let mut instance = Sigstore::start();
    for (config, root) in [
        ("signing_config.json", instance.read("trusted_root.json")),
        ("signing_config.rekor1.json", instance.read("trusted_root.json")),
        // An instance that has no log.
        ("signing_config.tsa.json", instance.root_without("tlogs")),
    ] {
        let roots = roots(&root);
        let signer = instance.signer_for(roots.clone(), config, "token");
        let before = Timestamp::now();
        let signed = roots.verify_certificate(sign(&signer, &backup()).as_bytes()).unwrap();
        assert_eq!((signed.issuer.as_str(), signed.subject.as_str()), (ISSUER, SUBJECT), "{config}");
        assert_eq!(signed.statement, backup().to_bytes());
        let late = signed.signed_at.duration_since(before).as_secs();
        assert!((-2..120).contains(&late), "{config}: {late} s");
        assert_eq!(signer.hint(), None);
        assert!(signer.describe().contains(SUBJECT), "{}", signer.describe());
    }

    // One certificate for many statements, also of several threads at once.
    let asked = instance.requests("/api/v2/signingCert");
    let signer = instance.signer("signing_config.json", "token");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| drop(sign(&signer, &artifact()))));
        }
    });
    assert_eq!(instance.requests("/api/v2/signingCert"), asked + 1);
}

/// The files that stock verifiers are given.
struct Desk {
    directory: tempfile::TempDir,
    root: PathBuf,
    root_jsonl: PathBuf,
    trust_config: PathBuf,
}

impl Desk {
    fn new(instance: &Sigstore) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            root: instance.path("trusted_root.json"),
            root_jsonl: instance.path("trusted_root.jsonl"),
            trust_config: instance.path("trust_config.json"),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// What all three say, side by side: two of them take seconds to start.
    fn judge(&self, claim: &Claim<'_>) -> [(&'static str, Verdict); 3] {
        std::thread::scope(|scope| {
            let python = scope.spawn(|| sigstore::python(&self.trust_config, claim));
            let go = scope.spawn(|| sigstore::go(&self.root_jsonl, claim));
            let javascript = sigstore::javascript(&self.root, claim);
            [("javascript", javascript), ("python", python.join().unwrap()), ("go", go.join().unwrap())]
        })
    }
}

#[test]
fn three_stock_verifiers_agree_on_certificates() {
    let instance = Sigstore::start();
    let signer = instance.signer("signing_config.json", "token");
    let desk = Desk::new(&instance);
    // Statements of drills have three subjects: each verifier has to find the one that it was given.
    let drilled = drill();
    let (report, page) = (report_bytes(&drilled), b"<!doctype html>".as_slice());
    let digests = Digests { report: Sha256(sha256(&report)), page: Sha256(sha256(page)) };
    let (numbers, generic) = (drill_statement(&drilled, digests), test_result_statement(&drilled, digests));
    for (statement, bytes, predicate_type) in [
        (backup(), MANIFEST, BACKUP_PREDICATE_TYPE),
        (artifact(), ARTIFACT, ARTIFACT_PREDICATE_TYPE),
        (numbers.clone(), report.as_slice(), DRILL_PREDICATE_TYPE),
        (numbers, page, DRILL_PREDICATE_TYPE),
        (generic, report.as_slice(), TEST_RESULT_PREDICATE_TYPE),
    ] {
        let (file, other) = (desk.write("file", bytes), desk.write("other", b"something else"));
        let good = parsed(&sign(&signer, &statement));
        let bundle = desk.write("good.sigstore.json", good.to_string().as_bytes());
        let claim = Claim { file: &file, bundle: &bundle, predicate_type, identity: SUBJECT };
        for (who, verdict) in desk.judge(&claim) {
            verdict.unwrap_or_else(|why| panic!("{who} refuses: {why}"));
        }
        for (who, verdict) in desk.judge(&Claim { file: &other, ..claim }) {
            assert!(verdict.is_err(), "{who} accepts another file for {predicate_type}: {verdict:?}");
        }
        // All bundles are built alike: what is wrong with one is wrong with all.
        if predicate_type != BACKUP_PREDICATE_TYPE {
            continue;
        }
        let mut refused = vec![
            ("another file", Claim { file: &other, ..claim }),
            ("another identity", Claim { identity: "https://github.com/lifeboat/db/.github/workflows/other.yml@refs/heads/main", ..claim }),
        ];
        let spoiled: Vec<(&str, PathBuf)> = spoiled(&instance, &good)
            .into_iter()
            .enumerate()
            .map(|(index, (what, bundle))| (what, desk.write(&format!("bad-{index}.sigstore.json"), bundle.to_string().as_bytes())))
            .collect();
        refused.extend(spoiled.iter().map(|(what, bundle)| (*what, Claim { bundle, ..claim })));
        for (what, claim) in refused {
            for (who, verdict) in desk.judge(&claim) {
                assert!(verdict.is_err(), "{who} accepts {what}: {verdict:?}");
            }
        }
    }
    // With the first version of the log. gh does not take it: it asks of the entry what the log here does not imitate.
    let (file, bundle) = (
        desk.write("file", MANIFEST),
        desk.write("first.sigstore.json", sign(&instance.signer("signing_config.rekor1.json", "token"), &backup()).as_bytes()),
    );
    let claim = Claim { file: &file, bundle: &bundle, predicate_type: BACKUP_PREDICATE_TYPE, identity: SUBJECT };
    sigstore::javascript(&desk.root, &claim).unwrap();
    sigstore::python(&desk.trust_config, &claim).unwrap();
}

/// A good bundle, spoiled in every way that matters.
fn spoiled(instance: &Sigstore, good: &Value) -> Vec<(&'static str, Value)> {
    let signer = instance.signer("signing_config.json", "token");
    let another = parsed(&sign(&signer, &backup()));
    let mut all = Vec::new();
    let mut add = |what: &'static str, change: &dyn Fn(&mut Value)| {
        let mut bundle = good.clone();
        change(&mut bundle);
        assert_ne!(&bundle, good, "{what} changes something");
        all.push((what, bundle));
    };
    let flip = |at: &mut Value, index: usize| {
        let mut bytes = base64(at);
        let index = index.min(bytes.len() - 1);
        bytes[index] ^= 1;
        *at = to_base64(&bytes);
    };
    add("a changed statement", &|bundle| {
        let mut statement: Value = serde_json::from_slice(&base64(&bundle["dsseEnvelope"]["payload"])).unwrap();
        statement["predicate"] = json!({"state": "forged"});
        bundle["dsseEnvelope"]["payload"] = to_base64(statement.to_string().as_bytes());
    });
    add("a changed signature", &|bundle| flip(&mut bundle["dsseEnvelope"]["signatures"][0]["sig"], 40));
    add("another certificate of the same identity", &|bundle| {
        bundle["verificationMaterial"]["certificate"] = another["verificationMaterial"]["certificate"].clone();
    });
    add("a changed promise of the certificate log", &|bundle| {
        // The promise is an extension of the certificate: any change of it breaks the authority's signature too.
        let certificate = &mut bundle["verificationMaterial"]["certificate"]["rawBytes"];
        let bytes = base64(certificate);
        let id = [0x2b, 0x06, 0x01, 0x04, 0x01, 0xd6, 0x79, 0x02, 0x04, 0x02];
        let at = bytes.windows(id.len()).position(|window| window == id).expect("there is a promise");
        flip(certificate, at + id.len() + 60);
    });
    add("no entry of the log", &|bundle| bundle["verificationMaterial"]["tlogEntries"] = json!([]));
    add("the entry of another signature", &|bundle| {
        bundle["verificationMaterial"]["tlogEntries"] = another["verificationMaterial"]["tlogEntries"].clone();
    });
    add("a changed entry", &|bundle| flip(&mut bundle["verificationMaterial"]["tlogEntries"][0]["canonicalizedBody"], 100));
    add("a changed root in the checkpoint", &|bundle| {
        let envelope = &mut bundle["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]["checkpoint"]["envelope"];
        let text = envelope.as_str().unwrap().to_owned();
        let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        lines[2] = to_base64(&[7; 32]).as_str().unwrap().to_owned();
        *envelope = lines.join("\n").into();
    });
    add("a changed signature of the checkpoint", &|bundle| {
        let envelope = &mut bundle["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]["checkpoint"]["envelope"];
        let text = envelope.as_str().unwrap().to_owned();
        let (head, signature) = text.trim_end().rsplit_once(' ').unwrap();
        let mut signature = Value::from(signature);
        flip(&mut signature, 30);
        *envelope = format!("{head} {}\n", signature.as_str().unwrap()).into();
    });
    add("no inclusion proof", &|bundle| {
        bundle["verificationMaterial"]["tlogEntries"][0].as_object_mut().unwrap().remove("inclusionProof");
    });
    add("no timestamp", &|bundle| {
        bundle["verificationMaterial"]["timestampVerificationData"] = json!({"rfc3161Timestamps": []});
    });
    add("the timestamp of another signature", &|bundle| {
        bundle["verificationMaterial"]["timestampVerificationData"] = another["verificationMaterial"]["timestampVerificationData"].clone();
    });
    add("a changed timestamp", &|bundle| {
        let token = &mut bundle["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"][0]["signedTimestamp"];
        let bytes = base64(token);
        // The time in it, "20…Z".
        let at = bytes.windows(2).position(|window| window == b"20").expect("there is a time");
        flip(token, at + 12);
    });
    all
}

#[test]
fn what_others_refuse_is_refused_here() {
    let mut instance = Sigstore::start();
    let roots = instance.roots();
    let good = parsed(&sign(&instance.signer("signing_config.json", "token"), &backup()));
    assert_eq!(verify(&roots, &good), Ok(backup()));
    for (what, bundle) in spoiled(&instance, &good) {
        assert!(verify(&roots, &bundle).is_err(), "{what}");
    }

    // Of another instance, in each of its parts.
    let other = self::roots(&instance.read("other_root.json"));
    assert!(matches!(verify(&other, &good), Err(VerifyError::Timestamp { .. })));
    let (ours, theirs): (Value, Value) = (parsed(&instance.read("trusted_root.json")), parsed(&instance.read("other_root.json")));
    for (part, expected) in [
        ("certificateAuthorities", "verify certificate"),
        ("ctlogs", "verify certificate"),
        ("tlogs", "verify entry of transparency log"),
        ("timestampAuthorities", "verify timestamp"),
    ] {
        let mut mixed = ours.clone();
        mixed[part] = theirs[part].clone();
        let refusal = verify(&self::roots(&mixed.to_string()), &good).unwrap_err().to_string();
        assert!(refusal.starts_with(expected), "{part}: {refusal}");
    }
    // A root that names no log does not know what to make of an entry; one that names no certificate log does without the promise.
    let refusal = verify(&self::roots(&instance.root_without("tlogs")), &good).unwrap_err();
    assert!(matches!(refusal, VerifyError::Log { .. }), "{refusal}");
    assert_eq!(verify(&self::roots(&instance.root_without("ctlogs")), &good), Ok(backup()));
    assert!(verify(&self::roots(&instance.root_without("certificateAuthorities")), &good).is_err());

    // The first version's log says when by itself, and only with its promise.
    let first = parsed(&sign(&instance.signer("signing_config.rekor1.json", "token"), &backup()));
    assert_eq!(verify(&roots, &first), Ok(backup()));
    let entry = |change: &dyn Fn(&mut Value)| {
        let mut bundle = first.clone();
        change(&mut bundle["verificationMaterial"]["tlogEntries"][0]);
        verify(&roots, &bundle).unwrap_err()
    };
    let refusal = entry(&|entry| drop(entry.as_object_mut().unwrap().remove("inclusionPromise")));
    assert!(matches!(refusal, VerifyError::Timestamp { .. }), "{refusal}");
    let refusal = entry(&|entry| entry["integratedTime"] = "1700000000".into());
    assert!(matches!(refusal, VerifyError::Log { .. }), "{refusal}");

    // A certificate that was over for an hour when the signature was timestamped.
    instance.set_ahead("tsa", 3600);
    let mut expired = good.clone();
    let token = instance.timestamp(&base64(&good["dsseEnvelope"]["signatures"][0]["sig"]));
    expired["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"][0]["signedTimestamp"] = to_base64(&token);
    let refusal = verify(&roots, &expired).unwrap_err();
    assert!(matches!(refusal, VerifyError::Certificate { .. }), "{refusal}");
}

#[test]
fn no_changed_byte_of_a_bundle_verifies_as_something_else() {
    let instance = Sigstore::start();
    let roots = instance.roots();
    let good = sign(&instance.signer("signing_config.json", "token"), &backup());
    let expected = roots.verify_certificate(good.as_bytes()).unwrap();
    let mut refused = 0;
    let places: Vec<usize> = (0..good.len()).step_by(23).collect();
    for &at in &places {
        let mut bytes = good.clone().into_bytes();
        bytes[at] ^= 1 << (at % 7);
        match roots.verify_certificate(&bytes) {
            Ok(signed) => assert_eq!(signed, expected, "bit flipped at {at}"),
            Err(_) => refused += 1,
        }
        assert!(roots.verify_certificate(&good.as_bytes()[..at]).is_err(), "cut off at {at}");
    }
    // What may change says nothing that is relied on: the copies of index and size beside a checkpoint, the log's id of Rekor 2.
    assert!(refused * 100 > places.len() * 90, "{refused} of {} refused", places.len());
}

#[test]
fn roots_that_cannot_be_used_are_refused() {
    let instance = Sigstore::start();
    let good = instance.read("trusted_root.json");
    for bad in [
        "",
        "{}",
        "[]",
        "{\"mediaType\": \"application/vnd.dev.sigstore.trustedroot+json;version=0.1\"}",
        &good.replace("trustedroot", "other"),
    ] {
        assert!(Roots::from_json(bad).is_err(), "{bad:.60}");
    }
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = bytes[at].wrapping_add(1) & 0x7f;
        // Some changes still make a root, another one; none of them panics.
        let _ = Roots::from_json(&String::from_utf8(bytes).unwrap());
    }
}

#[test]
fn services_out_of_order_are_asked_again_or_said() {
    let mut instance = Sigstore::start();
    let signer = instance.signer("signing_config.json", "token");
    for path in ["/api/v2/signingCert", "/api/v2/log/entries", "/api/v1/timestamp"] {
        instance.fail(path, 503, 2);
    }
    sign(&signer, &backup());
    instance.fail("/api/v1/timestamp", 503, 100);
    let error = signer.sign_statement(&backup().to_bytes()).unwrap_err();
    assert!(matches!(&error, SignError::Signer(text) if text.contains("/api/v1/timestamp")), "{error}");
    instance.fail("/api/v1/timestamp", 503, 0);
    instance.fail("/api/v2/log/entries", 400, 100);
    let error = signer.sign_statement(&backup().to_bytes()).unwrap_err();
    assert!(matches!(&error, SignError::Signer(text) if text.contains("transparency log")), "{error}");
}

#[test]
fn tokens_that_are_not_taken_are_said_and_never_shown() {
    let instance = Sigstore::start();
    for (token, expected) in
        [("token.expired", "has expired"), ("token.strange", "status 401"), ("signing_config.json", "not a JSON Web Token")]
    {
        let signer = instance.signer("signing_config.json", token);
        let error = signer.sign_statement(&backup().to_bytes()).unwrap_err();
        assert!(matches!(&error, SignError::Denied(text) if text.contains(expected)), "{token}: {error}");
        let secret = instance.read(token);
        let payload: String = secret.split('.').nth(1).unwrap_or_default().chars().take(20).collect();
        let said = format!("{error} {error:?} {signer:?} {}", signer.describe());
        assert!(payload.len() < 20 || !said.contains(&payload), "{said}");
    }
    let failing: SecretSource = Box::new(|| Err("the command is gone".to_owned()));
    let config = instance.read("signing_config.json");
    let signer =
        KeylessSigner::new(KeylessConfig { signing_config: config, roots: instance.roots(), token: failing, reach: reach() }).unwrap();
    let error = signer.sign_statement(&backup().to_bytes()).unwrap_err().to_string();
    assert!(error.contains("the command is gone"), "{error}");
}

#[test]
fn what_readers_would_refuse_is_not_signed() {
    let mut instance = Sigstore::start();
    // Readers have another instance's root.
    let signer = instance.signer_for(roots(&instance.read("other_root.json")), "signing_config.rekor1.json", "token");
    let error = signer.sign_statement(&backup().to_bytes()).unwrap_err().to_string();
    assert!(error.contains("against the trusted root"), "{error}");
    // The authority's clock is an hour behind: its certificate is over before it is used.
    instance.set_ahead("ca", -3600);
    let error = instance.signer("signing_config.json", "token").sign_statement(&backup().to_bytes()).unwrap_err().to_string();
    assert!(error.contains("CertExpired"), "{error}");
}

#[test]
fn a_certificate_that_is_over_is_replaced() {
    let mut instance = Sigstore::start();
    let signer = instance.signer("signing_config.json", "token");
    sign(&signer, &backup());
    // The host slept for an hour, and its clock that measures spans did too.
    for whose in ["ca", "tsa", "log"] {
        instance.set_ahead(whose, 3600);
    }
    sign(&signer, &backup());
    assert_eq!(instance.requests("/api/v2/signingCert"), 2);
}

#[test]
fn signatures_of_a_key_get_a_timestamp() {
    let mut instance = Sigstore::start();
    let key = SigningKey::generate().unwrap();
    let public = key.public_key().clone();
    let (config, missed) = instance.stamps(true);
    let signer = StampedSigner::new(Box::new(KeyFileSigner::new(key)), config).unwrap();
    let bundle = sign(&signer, &backup());
    let trust = Trust::from_pems([public.to_pem().as_str()]).unwrap();
    trust.verify(bundle.as_bytes(), &Expected::backup(ID, sha256(MANIFEST))).unwrap();

    // Our own reading of the time.
    let value = parsed(&bundle);
    let signature = base64(&value["dsseEnvelope"]["signatures"][0]["sig"]);
    let token = base64(&value["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"][0]["signedTimestamp"]);
    let roots = instance.roots();
    let time = roots.timestamp([&token], &signature).unwrap().expect("there is one");
    assert!(Timestamp::now().duration_since(time).as_secs().abs() < 120, "{time}");
    assert_eq!(roots.timestamp::<Vec<u8>>([], &signature), Ok(None));
    // Several: all have to be good, the earliest counts.
    instance.set_ahead("tsa", 600);
    let later = instance.timestamp(&signature);
    assert!(roots.timestamp([&later], &signature).unwrap().unwrap().duration_since(time).as_secs() > 500);
    assert_eq!(roots.timestamp([&later, &token], &signature), Ok(Some(time)));
    instance.set_ahead("tsa", 0);
    let other = instance.timestamp(b"another signature");
    for (what, tokens, signature) in [
        ("of another signature", vec![&token, &other], &signature[..]),
        ("over another signature", vec![&token], b"another"),
        ("one of two of another signature", vec![&later, &other], &signature),
    ] {
        let refusal = roots.timestamp(tokens, signature).unwrap_err();
        assert!(matches!(refusal, VerifyError::Timestamp { .. }), "{what}: {refusal}");
    }
    let strangers = self::roots(&instance.read("other_root.json"));
    assert!(matches!(strangers.timestamp([&token], &signature), Err(VerifyError::Timestamp { .. })));
    assert!(matches!(roots.timestamp(vec![&token; 33], &signature), Err(VerifyError::Malformed { .. })));
    for at in (0..token.len()).step_by(11) {
        let mut bytes = token.clone();
        bytes[at] ^= 0x10;
        if let Ok(found) = roots.timestamp([&bytes], &signature) {
            assert_eq!(found, Some(time), "bit flipped at {at}");
        }
        assert!(roots.timestamp([&token[..at]], &signature).is_err(), "cut off at {at}");
    }

    // Two verifiers of others, which want a timestamp in bundles of a key.
    let sigstore_root = sigstore_trust_root::TrustedRoot::from_json(&instance.read("trusted_root.json")).unwrap();
    let verifier = sigstore_verify::Verifier::new(&sigstore_root).unwrap();
    let spki = sigstore_types::DerPublicKey::from_pem(&public.to_pem()).unwrap();
    let policy = sigstore_verify::PublicKeyVerificationPolicy::new(spki).skip_tlog_unsafe();
    let read = |json: &str| sigstore_types::Bundle::from_json(json).unwrap();
    verifier.verify(MANIFEST, &read(&bundle), &policy).unwrap();
    assert!(verifier.verify(&b"another file"[..], &read(&bundle), &policy).is_err());
    let desk = Desk::new(&instance);
    let (file, key) = (desk.write("file", MANIFEST), desk.write("key.pub", public.to_pem().as_bytes()));
    let path = desk.write("bundle.json", bundle.as_bytes());
    sigstore::javascript_with_key(&desk.root, &file, &path, &key).unwrap();
    assert!(sigstore::javascript_with_key(&instance.path("other_root.json"), &file, &path, &key).is_err());
    let mut swapped = value.clone();
    swapped["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"][0]["signedTimestamp"] = to_base64(&other);
    let path = desk.write("swapped.json", swapped.to_string().as_bytes());
    assert!(sigstore::javascript_with_key(&desk.root, &file, &path, &key).is_err());
    assert!(verifier.verify(MANIFEST, &read(&swapped.to_string()), &policy).is_err());

    // Required means required.
    instance.fail("/api/v1/timestamp", 503, 100);
    assert!(matches!(signer.sign_statement(&backup().to_bytes()), Err(SignError::Signer(_))));
    assert!(missed.lock().unwrap().is_empty());
}

#[test]
fn signatures_may_do_without_a_timestamp_where_the_user_says_so() {
    let mut instance = Sigstore::start();
    let (config, missed) = instance.stamps(false);
    let signer = StampedSigner::new(Box::new(KeyFileSigner::new(SigningKey::generate().unwrap())), config).unwrap();
    let stamped = |bundle: &str| bundle.contains("signedTimestamp");
    assert!(stamped(&sign(&signer, &backup())));
    instance.fail("/api/v1/timestamp", 500, 1000);
    let asked = instance.requests("/api/v1/timestamp");
    for _ in 0..50 {
        assert!(!stamped(&sign(&signer, &backup())));
    }
    // Said once, and after that not waited for one by one.
    assert_eq!(missed.lock().unwrap().len(), 1);
    assert_eq!(instance.requests("/api/v1/timestamp"), asked + 3);
}

#[test]
fn timestamps_that_nobody_could_read_are_refused_early() {
    let instance = Sigstore::start();
    let key = || Box::new(KeyFileSigner::new(SigningKey::generate().unwrap()));
    let (mut config, _) = instance.stamps(true);
    config.roots = roots(&instance.root_without("timestampAuthorities"));
    assert!(StampedSigner::new(key(), config).is_err());
    let (mut config, _) = instance.stamps(true);
    config.roots = roots(&instance.read("other_root.json"));
    let error = StampedSigner::new(key(), config).unwrap().sign_statement(&backup().to_bytes()).unwrap_err();
    assert!(matches!(&error, SignError::Signer(text) if text.contains("timestamp")), "{error}");
    // The second authority answers for the first.
    let (mut config, _) = instance.stamps(true);
    config.urls.insert(0, format!("{}/nothing", instance.url));
    sign(&StampedSigner::new(key(), config).unwrap(), &backup());
}

fn transit(bao: &Bao, key: &str, token: SecretSource) -> Result<TransitSigner, SignError> {
    TransitSigner::open(TransitConfig {
        address: bao.address.clone(),
        key: key.to_owned(),
        mount: "transit".to_owned(),
        namespace: None,
        token,
        reach: reach(),
    })
}

#[test]
fn the_transit_engine_signs() {
    let bao = Bao::start();
    bao.make_key("backups", "ecdsa-p256");
    let token = bao.token_for("backups");
    let signer = transit(&bao, "backups", fixed(&token)).unwrap();
    let expected = Expected::backup(ID, sha256(MANIFEST));
    let trust = |key: &PublicKey| Trust::new([key.clone()]);
    let first = signer.public_key().unwrap();
    let old = sign(&signer, &backup());
    trust(&first).verify(old.as_bytes(), &expected).unwrap();
    assert_eq!(signer.hint().as_deref(), Some(first.hint()));
    assert!(signer.describe().contains("version 1"), "{}", signer.describe());

    // The key is rotated behind our back: the bundle names the version that signed it.
    bao.bao(&["write", "-force", "transit/keys/backups/rotate"]);
    let new = sign(&signer, &backup());
    let second = signer.public_key().unwrap();
    assert_ne!(first, second);
    trust(&second).verify(new.as_bytes(), &expected).unwrap();
    assert!(trust(&first).verify(new.as_bytes(), &expected).is_err());
    trust(&first).verify(old.as_bytes(), &expected).unwrap();
    assert_eq!(signer.hint().as_deref(), Some(second.hint()));

    // Somebody else's verifier.
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let (file, bundle) = (write("file", MANIFEST), write("bundle.json", new.as_bytes()));
    let key = write("key.pub", second.to_pem().as_bytes());
    assert!(node_verifies(&file, &bundle, &key));
    assert!(!node_verifies(&bundle, &bundle, &key));
}

fn node_verifies(file: &Path, bundle: &Path, key: &Path) -> bool {
    let mut command = std::process::Command::new(sigstore::setting("LIFEBOAT_TEST_NODE"));
    command.env("NODE_PATH", sigstore::setting("LIFEBOAT_TEST_NODE_MODULES"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/stock-verifier/verify.cjs")).args([file, bundle, key]);
    command.output().unwrap().status.success()
}

#[test]
fn tokens_of_the_transit_engine_are_renewed_and_never_shown() {
    let bao = Bao::start();
    bao.make_key("backups", "ecdsa-p256");
    let (first, second) = (bao.token_for("backups"), bao.token_for("backups"));
    let current = Arc::new(Mutex::new(first.clone()));
    let source = current.clone();
    let signer = transit(&bao, "backups", Box::new(move || Ok(Zeroizing::new(source.lock().unwrap().clone())))).unwrap();
    sign(&signer, &backup());
    // The agent writes a new token, the old one is over.
    bao.bao(&["token", "revoke", &first]);
    *current.lock().unwrap() = second.clone();
    sign(&signer, &backup());
    bao.bao(&["token", "revoke", &second]);
    let error = signer.sign_statement(&backup().to_bytes()).unwrap_err();
    assert!(matches!(error, SignError::Denied(_)), "{error}");
    let said = format!("{error} {error:?} {signer:?} {}", signer.describe());
    assert!(!said.contains(&first) && !said.contains(&second), "{said}");
}

#[test]
fn keys_of_the_transit_engine_that_cannot_sign_are_refused() {
    let bao = Bao::start();
    bao.make_key("other-kind", "ed25519");
    bao.make_key("backups", "ecdsa-p256");
    let root = || fixed(bao::ROOT_TOKEN);
    let refused = |key: &str, token: SecretSource| transit(&bao, key, token).expect_err("it is refused");
    let error = refused("other-kind", root()).to_string();
    assert!(error.contains("ed25519") && error.contains("ecdsa-p256"), "{error}");
    let error = refused("nowhere", root()).to_string();
    assert!(error.contains("no such key"), "{error}");
    for strange in ["../sys/seal", "a/b", "", "..", "a b", "a?b"] {
        let error = refused(strange, root()).to_string();
        assert!(error.contains("letters, digits"), "{strange}: {error}");
    }
    let error = refused("backups", fixed("wrong-token"));
    assert!(matches!(&error, SignError::Denied(text) if !text.contains("wrong-token")), "{error}");
    let error = refused("backups", fixed("two\nlines"));
    assert!(matches!(error, SignError::Denied(_)), "{error}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = TransitConfig {
        address: format!("http://{nobody}"),
        key: "backups".into(),
        mount: "transit".into(),
        namespace: None,
        token: root(),
        reach: Reach { max_attempts: 2, ..reach() },
    };
    let error = TransitSigner::open(config).expect_err("nobody is there").to_string();
    assert!(error.contains("(2 tries)"), "{error}");
}
