//! Signatures end to end: what we sign verifies, here and with Sigstore's own verifier; what was
//! changed in any byte, or belongs to something else, does not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lifeboat_core::attestation::{
    ARTIFACT_PREDICATE_TYPE, BACKUP_PREDICATE_TYPE, PAYLOAD_TYPE, Statement, artifact_statement, backup_statement,
};
use lifeboat_core::drill::Report;
use lifeboat_core::repository::Sha256;
use lifeboat_engine::drill::evidence::{self, History};
use lifeboat_engine::signing::{Expected, KeyFileSigner, MAX_BUNDLE_BYTES, Mismatch, PublicKey, Signer, SigningKey, Trust, VerifyError};
use serde_json::{Value, json};

const ID: &str = "conductor-backup-20240315T120000Z";
const MANIFEST: &[u8] = br#"{"format": 1, "id": "conductor-backup-20240315T120000Z"}"#;

/// Made once, with a password that is no secret. They have to open and verify for ever.
const GOLDEN_KEY: &str = include_str!("../src/signing/testdata/golden.key");
const GOLDEN_PUB: &str = include_str!("../src/signing/testdata/golden.pub");
const GOLDEN_BUNDLE: &str = include_str!("../src/signing/testdata/golden.sigstore.json");

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().unwrap()
}

fn statement() -> Statement {
    backup_statement(ID, sha256(MANIFEST), json!({"state": "healthy"}))
}

fn expected() -> Expected<'static> {
    Expected::backup(ID, sha256(MANIFEST))
}

fn signer() -> KeyFileSigner {
    KeyFileSigner::new(SigningKey::generate().unwrap())
}

fn trust(signer: &KeyFileSigner) -> Trust {
    Trust::from_pems([signer.public_key().to_pem().as_str()]).unwrap()
}

fn hint(signer: &KeyFileSigner) -> String {
    signer.hint().expect("a key has a hint")
}

/// A statement, signed, as JSON to change.
fn signed(signer: &KeyFileSigner, statement: &Statement) -> Value {
    serde_json::from_str(&signer.sign_statement(&statement.to_bytes()).unwrap()).unwrap()
}

fn verify(trust: &Trust, bundle: &Value) -> Result<Statement, VerifyError> {
    trust.verify(bundle.to_string().as_bytes(), &expected()).map(|verified| verified.statement)
}

#[test]
fn what_is_signed_verifies() {
    let signer = signer();
    let bundle = signer.sign_statement(&statement().to_bytes()).unwrap();
    let verified = trust(&signer).verify(bundle.as_bytes(), &expected()).unwrap();
    assert_eq!(verified.statement, statement());
    assert_eq!(verified.signer.to_string(), hint(&signer));
    assert!(!bundle.contains('\n'));
    assert!(signer.describe().contains(&hint(&signer)));

    let artifact = artifact_statement("builds/17/log.txt", "v1", [3; 32], 17, serde_json::Map::new());
    let bundle = signer.sign_statement(&artifact.to_bytes()).unwrap();
    let expected = Expected::artifact("builds/17/log.txt", "v1", [3; 32]);
    assert_eq!(trust(&signer).verify(bundle.as_bytes(), &expected).unwrap().statement, artifact);
    let newer = Expected { version: Some("v2"), ..expected };
    let error = trust(&signer).verify(bundle.as_bytes(), &newer).unwrap_err();
    assert!(matches!(error, VerifyError::WrongSubject(Mismatch::Version { .. })), "{error:?}");
}

#[test]
fn the_bundle_is_one_to_the_crates_of_sigstore() {
    let signer = signer();
    let text = signer.sign_statement(&statement().to_bytes()).unwrap();
    let bundle = sigstore_types::Bundle::from_json(&text).unwrap();
    assert_eq!(bundle.media_type(), sigstore_types::MediaType::Bundle0_3);
    let sigstore_types::bundle::SignatureContent::DsseEnvelope(envelope) = &bundle.content else { panic!("not an envelope") };
    let key = sigstore_types::DerPublicKey::from_pem(&signer.public_key().to_pem()).unwrap();
    let key = sigstore_crypto::VerificationKey::from_spki(&key).unwrap();
    key.verify(envelope.pae(), &envelope.signature.sig).unwrap();
}

#[test]
fn the_golden_bundle_verifies_for_ever() {
    let trust = Trust::from_pems([GOLDEN_PUB]).unwrap();
    assert_eq!(trust.verify(GOLDEN_BUNDLE.as_bytes(), &expected()).unwrap().statement, statement());
    let signer = KeyFileSigner::open(GOLDEN_KEY, b"correct horse battery staple").unwrap();
    assert_eq!(trust.hints(), [hint(&signer)]);
    let again = signer.sign_statement(&statement().to_bytes()).unwrap();
    assert_eq!(trust.verify(again.as_bytes(), &expected()).unwrap().signer.to_string(), hint(&signer));
}

#[test]
fn a_sealed_key_signs_after_it_was_opened() {
    let key = SigningKey::generate().unwrap();
    let sealed = key.seal(b"secret").unwrap();
    assert!(sealed.starts_with("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n"), "{sealed}");
    assert_ne!(sealed, key.seal(b"secret").unwrap(), "salt and nonce are fresh each time");
    let signer = KeyFileSigner::open(&sealed, b"secret").unwrap();
    let bundle = signer.sign_statement(&statement().to_bytes()).unwrap();
    let trust = Trust::new([key.public_key().clone()]);
    assert!(trust.verify(bundle.as_bytes(), &expected()).is_ok());
    assert_eq!(format!("{signer:?}"), format!("KeyFileSigner {{ hint: {:?}, .. }}", hint(&signer)));
}

#[test]
fn keys_that_are_not_trusted_verify_nothing() {
    let (ours, theirs) = (signer(), signer());
    let bundle = signed(&theirs, &statement());
    let untrusted = |trust: &Trust| match verify(trust, &bundle).unwrap_err() {
        VerifyError::UntrustedKey { hint } => hint,
        other => panic!("{other:?}"),
    };
    assert_eq!(untrusted(&trust(&ours)), hint(&theirs));
    assert_eq!(untrusted(&Trust::default()), hint(&theirs));
    assert!(verify(&Trust::new([ours.public_key().clone(), theirs.public_key().clone()]), &bundle).is_ok());

    // Naming a trusted key does not help.
    let disguised = disguised(&theirs, &ours);
    assert_eq!(verify(&trust(&ours), &disguised), Err(VerifyError::BadSignature));
    // Nor does bringing one's own.
    let mut own = bundle;
    own["verificationMaterial"]["publicKey"]["rawBytes"] = "AAAA".into();
    assert!(matches!(verify(&trust(&ours), &own), Err(VerifyError::Malformed { .. })));
}

/// A bundle signed by `by` that claims to be signed by `victim`.
fn disguised(by: &KeyFileSigner, victim: &KeyFileSigner) -> Value {
    let mut bundle = signed(by, &statement());
    bundle["verificationMaterial"]["publicKey"]["hint"] = hint(victim).into();
    bundle["dsseEnvelope"]["signatures"][0]["keyid"] = hint(victim).into();
    bundle
}

#[test]
fn a_genuine_signature_over_something_else_is_refused() {
    let signer = signer();
    let trust = trust(&signer);
    let bundle = signer.sign_statement(&statement().to_bytes()).unwrap();
    let refused = |expected: Expected<'_>| trust.verify(bundle.as_bytes(), &expected).unwrap_err();
    let error = refused(Expected { subject_sha256: sha256(b"another manifest"), ..expected() });
    assert!(matches!(error, VerifyError::WrongSubject(Mismatch::Digest { .. })), "{error:?}");
    let error = refused(Expected::backup("conductor-backup-20240316T120000Z", sha256(MANIFEST)));
    assert!(matches!(error, VerifyError::WrongSubject(Mismatch::Name { .. })), "{error:?}");
    let error = refused(Expected { predicate_type: ARTIFACT_PREDICATE_TYPE, ..expected() });
    assert!(matches!(error, VerifyError::WrongPredicate(Mismatch::PredicateType { .. })), "{error:?}");
    assert!(trust.verify(bundle.as_bytes(), &Expected { subject_name: None, ..expected() }).is_ok());
}

#[test]
fn a_statement_that_would_not_be_readable_is_not_signed() {
    let signer = signer();
    assert!(signer.sign_statement(b"hello").is_err());
    let mut huge = statement();
    huge.predicate = Value::String("x".repeat(512 << 10));
    assert!(signer.sign_statement(&huge.to_bytes()).is_err());
    // The largest that is signed is read back.
    huge.predicate = Value::String("x".repeat((512 << 10) - 400));
    let bundle = signed(&signer, &huge);
    assert_eq!(verify(&trust(&signer), &bundle).unwrap(), huge);
}

/// Ways to spoil a bundle that no verifier may let pass.
fn spoiled(signer: &KeyFileSigner) -> Vec<(&'static str, Value)> {
    let good = signed(signer, &statement());
    let forged = BASE64.encode(backup_statement(ID, sha256(MANIFEST), json!({"state": "degraded"})).to_bytes());
    let other = signed(signer, &Statement::new(ID, sha256(MANIFEST), "https://example.org/v1", Value::Null));
    let mut list = Vec::new();
    let mut spoil = |what, change: &dyn Fn(&mut Value)| {
        let mut bundle = good.clone();
        change(&mut bundle);
        assert_ne!(bundle, good, "{what}");
        list.push((what, bundle));
    };
    spoil("payload", &|b| b["dsseEnvelope"]["payload"] = forged.clone().into());
    spoil("payload empty", &|b| b["dsseEnvelope"]["payload"] = "".into());
    spoil("signature", &|b| {
        let sig = &mut b["dsseEnvelope"]["signatures"][0]["sig"];
        let mut bytes = BASE64.decode(sig.as_str().unwrap()).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        *sig = BASE64.encode(bytes).into();
    });
    spoil("signature of another statement", &|b| b["dsseEnvelope"]["signatures"] = other["dsseEnvelope"]["signatures"].clone());
    spoil("signature empty", &|b| b["dsseEnvelope"]["signatures"][0]["sig"] = "".into());
    spoil("no signature", &|b| b["dsseEnvelope"]["signatures"] = json!([]));
    spoil("two signatures", &|b| {
        let signatures = b["dsseEnvelope"]["signatures"].as_array_mut().unwrap();
        signatures.push(signatures[0].clone());
    });
    spoil("key id", &|b| b["dsseEnvelope"]["signatures"][0]["keyid"] = BASE64.encode([1; 32]).into());
    spoil("hint", &|b| b["verificationMaterial"]["publicKey"]["hint"] = BASE64.encode([1; 32]).into());
    spoil("payload type", &|b| b["dsseEnvelope"]["payloadType"] = "text/plain".into());
    spoil("media type", &|b| b["mediaType"] = "application/json".into());
    spoil("no media type", &|b| drop(b.as_object_mut().unwrap().remove("mediaType")));
    spoil("no key", &|b| drop(b["verificationMaterial"].as_object_mut().unwrap().remove("publicKey")));
    spoil("no envelope", &|b| drop(b.as_object_mut().unwrap().remove("dsseEnvelope")));
    list
}

#[test]
fn spoiled_bundles_are_refused() {
    let signer = signer();
    let trust = trust(&signer);
    for (what, bundle) in spoiled(&signer) {
        let error = verify(&trust, &bundle).unwrap_err();
        if what.starts_with("payload") && what != "payload type" || what.starts_with("signature") {
            assert_eq!(error, VerifyError::BadSignature, "{what}");
        } else {
            assert!(matches!(error, VerifyError::Malformed { .. }), "{what}: {error:?}");
        }
    }
}

#[test]
fn a_bundle_that_readers_could_understand_differently_is_refused() {
    let signer = signer();
    let trust = trust(&signer);
    let good = signer.sign_statement(&statement().to_bytes()).unwrap();
    assert!(trust.verify(good.as_bytes(), &expected()).is_ok());
    let payload_type = format!(r#""payloadType":"{PAYLOAD_TYPE}","#);
    for (from, to) in [
        (payload_type.as_str(), payload_type.repeat(2)),
        (r#""dsseEnvelope":"#, r#""messageSignature":{"signature":"AAAA"},"dsseEnvelope":"#.to_owned()),
        (r#""publicKey":"#, r#""certificate":{"rawBytes":"AAAA"},"publicKey":"#.to_owned()),
        (r#""publicKey":"#, r#""x509CertificateChain":{"certificates":[]},"publicKey":"#.to_owned()),
        (r#""mediaType":"#, r#""comment":1,"mediaType":"#.to_owned()),
        ("bundle.v0.3+json", "bundle+json;version=0.2".to_owned()),
        (r#""payload":""#, r#""payload":" "#.to_owned()),
        (good.as_str(), format!("{good}{}", " ".repeat(MAX_BUNDLE_BYTES))),
        (good.as_str(), good.repeat(2)),
        (good.as_str(), "[]".to_owned()),
        (good.as_str(), String::new()),
    ] {
        let bad = good.replacen(from, &to, 1);
        assert_ne!(bad, good, "{from}");
        let error = trust.verify(bad.as_bytes(), &expected()).unwrap_err();
        assert!(matches!(error, VerifyError::Malformed { .. }), "{from}: {error:?}");
    }
    // Without a key id is how cosign writes it.
    let mut cosign = signed(&signer, &statement());
    cosign["dsseEnvelope"]["signatures"][0].as_object_mut().unwrap().remove("keyid");
    assert_eq!(verify(&trust, &cosign).unwrap(), statement());
}

/// Whatever is done to one byte of a bundle: it is refused, or it still proves the same statement,
/// signed by the same key.
#[test]
fn no_changed_byte_verifies_as_something_else() {
    let signer = signer();
    let trust = trust(&signer);
    let good = signer.sign_statement(&statement().to_bytes()).unwrap().into_bytes();
    let (mut tried, mut refused) = (0, 0);
    let mut judge = |bytes: &[u8], what: &str, at: usize| {
        tried += 1;
        match trust.verify(bytes, &expected()) {
            Ok(verified) => assert_eq!((verified.statement, verified.signer.to_string()), (statement(), hint(&signer)), "{what} at {at}"),
            Err(_) => refused += 1,
        }
    };
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            judge(&bytes, "bit flipped", at);
        }
        let mut bytes = good.clone();
        bytes.remove(at);
        judge(&bytes, "byte deleted", at);
        let mut bytes = good.clone();
        bytes.insert(at, good[at]);
        judge(&bytes, "byte doubled", at);
        judge(&good[..at], "cut off", at);
    }
    // What goes unnoticed has no meaning to anybody, such as a letter of the empty member for log
    // entries: next to nothing.
    assert!(refused * 100 > tried * 99, "{refused} of {tried} refused");
}

#[test]
fn public_keys_print_as_openssl_prints_them() {
    let key = PublicKey::from_pem(GOLDEN_PUB).unwrap();
    assert_eq!(key.to_pem(), GOLDEN_PUB);
    assert!(GOLDEN_PUB.starts_with("-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"));
}

/// Sigstore's JavaScript verifier, installed from `tools/stock-verifier`.
struct StockVerifier {
    directory: PathBuf,
}

impl StockVerifier {
    fn install() -> Self {
        let source = project().join("tools/stock-verifier");
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stock-verifier");
        fs::create_dir_all(&directory).unwrap();
        // Test processes may run side by side: one installs, the others wait.
        let lock = fs::File::create(directory.join("lock")).unwrap();
        lock.lock().unwrap();
        for file in ["package.json", "package-lock.json", ".npmrc", "verify.cjs"] {
            fs::copy(source.join(file), directory.join(file)).unwrap();
        }
        let wanted = fs::read(source.join("package-lock.json")).unwrap();
        let installed = directory.join("node_modules/.installed-from.json");
        if fs::read(&installed).ok() != Some(wanted.clone()) {
            let output = run(Command::new("npm").arg("ci").current_dir(&directory));
            assert!(output.status.success(), "npm ci failed: {}", String::from_utf8_lossy(&output.stderr));
            fs::write(&installed, &wanted).unwrap();
        }
        Self { directory }
    }

    /// What it prints, if it verifies, or else why not.
    fn verify(&self, artifact: &Path, bundle: &Path, public_key: &Path) -> Result<String, String> {
        let output = run(Command::new("node").arg(self.directory.join("verify.cjs")).args([artifact, bundle, public_key]));
        let text = String::from_utf8(output.stdout).unwrap();
        match output.status.code() {
            Some(0) if text.starts_with("VERIFIED ") => Ok(text),
            Some(1) if text.starts_with("FAILED ") => Err(text),
            other => panic!("verify.cjs ended with {other:?}: {text}{}", String::from_utf8_lossy(&output.stderr)),
        }
    }
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn run(command: &mut Command) -> Output {
    let program = command.get_program().to_string_lossy().into_owned();
    command.output().unwrap_or_else(|error| {
        panic!("run {program}: {error}; this test needs Node.js 20.17 or newer with npm: apt-get install nodejs npm, or nodejs.org")
    })
}

#[test]
fn the_stock_verifier_agrees() {
    let stock = StockVerifier::install();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let (signer, stranger) = (signer(), signer());
    let manifest = write("manifest.json", MANIFEST);
    let bundle = write("manifest.sigstore.json", signed(&signer, &statement()).to_string().as_bytes());
    let key = write("cosign.pub", signer.public_key().to_pem().as_bytes());

    assert_eq!(stock.verify(&manifest, &bundle, &key), Ok(format!("VERIFIED {BACKUP_PREDICATE_TYPE} {ID}\n")));
    let golden_bundle = write("golden.sigstore.json", GOLDEN_BUNDLE.as_bytes());
    let golden_key = write("golden.pub", GOLDEN_PUB.as_bytes());
    stock.verify(&manifest, &golden_bundle, &golden_key).unwrap();

    let other_file = write("other.json", b"{}");
    let refusal = stock.verify(&other_file, &bundle, &key).unwrap_err();
    assert!(refusal.contains("no subject has the digest"), "{refusal}");
    let other_key = write("other.pub", stranger.public_key().to_pem().as_bytes());
    let refusal = stock.verify(&manifest, &bundle, &other_key).unwrap_err();
    assert!(refusal.contains("is not the trusted key"), "{refusal}");
    let disguised = write("disguised.sigstore.json", disguised(&stranger, &signer).to_string().as_bytes());
    let refusal = stock.verify(&manifest, &disguised, &key).unwrap_err();
    assert!(refusal.contains("SIGNATURE_ERROR"), "{refusal}");
    for (what, spoiled) in spoiled(&signer) {
        let bundle = write("spoiled.sigstore.json", spoiled.to_string().as_bytes());
        assert!(stock.verify(&manifest, &bundle, &key).is_err(), "{what}");
    }
}

/// The recipe for openssl and Python in `docs/signing.md`, run as it stands there.
#[test]
fn the_recipe_with_openssl_works() {
    let page = fs::read_to_string(project().join("docs/signing.md")).unwrap();
    let script = page.split("```sh\n# openssl\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the page has the recipe");
    let directory = tempfile::tempdir().unwrap();
    let signer = signer();
    let recipe = |manifest: &[u8], bundle: &Value| {
        fs::write(directory.path().join("manifest.json"), manifest).unwrap();
        fs::write(directory.path().join("manifest.sigstore.json"), bundle.to_string()).unwrap();
        fs::write(directory.path().join("cosign.pub"), signer.public_key().to_pem()).unwrap();
        let output = Command::new("sh").args(["-c", script]).current_dir(directory.path()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let good = signed(&signer, &statement());
    let (ok, text) = recipe(MANIFEST, &good);
    assert!(ok && text.contains("Verified OK") && text.contains(ID), "{text}");
    assert!(!recipe(b"{}", &good).0, "another manifest passed");
    for (what, bundle) in spoiled(&signer) {
        // openssl takes the key from the command line: what names the key does not matter to it.
        if !matches!(what, "key id" | "hint" | "no key" | "media type" | "no media type") {
            let (ok, text) = recipe(MANIFEST, &bundle);
            assert!(!ok, "{what}: {text}");
        }
    }
}

/// A drill's evidence in a directory: `report.json`, `report.html`, both bundles, `cosign.pub`, `manifest` for a file that is no subject.
fn drill_evidence(directory: &Path, signer: &KeyFileSigner) -> Report {
    let text = fs::read(project().join("testdata/drills/failed.json")).unwrap();
    let store = lifeboat_engine::store::open(&format!("file://{}", directory.join("repository").display()), &Default::default(), true);
    let repository = lifeboat_engine::repository::Repository::init(store.unwrap(), jiff::Timestamp::UNIX_EPOCH, "test").unwrap();
    let report = Report { repository: repository.descriptor().repository, ..serde_json::from_slice(&text).unwrap() };
    let digest = Sha256(sha256(&evidence::report_bytes(&report)));
    let nothing = History { entries: Vec::new(), older: 0, findings: Vec::new() };
    let page = lifeboat_engine::drill::page::render(&report, digest, &nothing);
    for object in evidence::store(&repository, &report, &page, signer).unwrap().objects {
        let name = object.rsplit('/').next().unwrap();
        fs::copy(directory.join("repository").join(&object), directory.join(name)).unwrap();
    }
    fs::write(directory.join("cosign.pub"), signer.public_key().to_pem()).unwrap();
    report
}

#[test]
fn the_stock_verifier_reads_what_drills_say() {
    let (stock, signer) = (StockVerifier::install(), signer());
    let directory = tempfile::tempdir().unwrap();
    drill_evidence(directory.path(), &signer);
    let path = |name: &str| directory.path().join(name);
    let verify = |file: &str, bundle: &str| stock.verify(&path(file), &path(bundle), &path("cosign.pub"));
    for (bundle, kind) in [
        ("report.sigstore.json", "https://lifeboat.dev/drill/v1"),
        ("test-result.sigstore.json", "https://in-toto.io/attestation/test-result/v0.1"),
    ] {
        for file in ["report.json", "report.html"] {
            assert_eq!(verify(file, bundle), Ok(format!("VERIFIED {kind} {file}\n")));
        }
        assert!(verify("cosign.pub", bundle).unwrap_err().contains("no subject has the digest"));
        // A verdict that was improved in the statement, and one in the report.
        let good = fs::read_to_string(path(bundle)).unwrap();
        let mut bad: Value = serde_json::from_str(&good).unwrap();
        let payload = String::from_utf8(BASE64.decode(bad["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap()).unwrap();
        let better = payload.replace("\"FAILED\"", "\"PASSED\"").replace("\"verdict\":\"failed\"", "\"verdict\":\"passed\"");
        assert_ne!(better, payload);
        bad["dsseEnvelope"]["payload"] = BASE64.encode(better).into();
        fs::write(path("bad.sigstore.json"), bad.to_string()).unwrap();
        assert!(verify("report.json", "bad.sigstore.json").unwrap_err().contains("SIGNATURE_ERROR"));
    }
    let better = fs::read_to_string(path("report.json")).unwrap().replacen("\"verdict\": \"failed\"", "\"verdict\": \"passed\"", 1);
    assert_ne!(better, fs::read_to_string(path("report.json")).unwrap());
    fs::write(path("report.json"), better).unwrap();
    assert!(verify("report.json", "report.sigstore.json").is_err());
}

/// The recipe that stands on the page itself and in `docs/drill-report.md`, run as it stands there.
#[test]
fn the_recipe_of_the_page_works() {
    let signer = signer();
    let directory = tempfile::tempdir().unwrap();
    drill_evidence(directory.path(), &signer);
    let page = fs::read_to_string(directory.path().join("report.html")).unwrap();
    let script = page.split("id=\"openssl\"><code>").nth(1).unwrap().split("</code>").next().unwrap();
    let script = script.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
    let documented = fs::read_to_string(project().join("docs/drill-report.md")).unwrap();
    assert!(documented.contains(&script), "docs/drill-report.md has another recipe than the page:\n{script}");
    let recipe = || {
        let output = Command::new("sh").args(["-ec", &script]).current_dir(directory.path()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (ok, text) = recipe();
    assert!(ok && text.contains("Verified OK"), "{text}");
    for name in ["report.json", "report.html"] {
        let path = directory.path().join(name);
        let good = fs::read(&path).unwrap();
        fs::write(&path, [good.as_slice(), b" "].concat()).unwrap();
        let (ok, text) = recipe();
        assert!(!ok && text.contains("is not what was signed"), "{name}: {text}");
        fs::write(&path, &good).unwrap();
    }
    fs::write(directory.path().join("cosign.pub"), self::signer().public_key().to_pem()).unwrap();
    assert!(!recipe().0, "another key passed");
}
