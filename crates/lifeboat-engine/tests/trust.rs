//! Whose signatures count: keys and identities on terms, with times that an authority proves, against certificates and timestamps that openssl makes.
//!
//! Times are relative to the present: a timestamp says when the test ran, and windows are laid around that.

use std::fs;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::{SignedDuration, Timestamp};
use lifeboat_core::attestation::{Statement, artifact_statement, backup_statement};
use lifeboat_core::repository::Sha256;
use lifeboat_core::trust::{Identity, Kind, Refusal, Revocation, SubjectRule, Terms, When};
use lifeboat_engine::signing::{
    Expected, KeyFileSigner, KnownGood, SignedBy, Signer as _, SigningKey, Trust, TrustedKey, Verified, VerifyError,
};
use serde_json::{Value, json};

const ID: &str = "conductor-backup-20240315T120000Z";
const DIGEST: [u8; 32] = [7; 32];
#[path = "support/instance.rs"]
mod instance;

use instance::{ISSUER, Instance, SUBJECT};

fn signer() -> KeyFileSigner {
    KeyFileSigner::new(SigningKey::generate().unwrap())
}

fn finished(at: Timestamp) -> Statement {
    backup_statement(ID, DIGEST, json!({"finished": at.to_string()}))
}

fn expected() -> Expected<'static> {
    Expected::backup(ID, DIGEST)
}

fn hours(count: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(count)
}

fn trusted(signer: &KeyFileSigner, terms: Terms) -> TrustedKey {
    TrustedKey { key: signer.public_key().clone(), terms, known_good: None }
}

fn revoked(since: Timestamp) -> Terms {
    Terms { revoked: Some(Revocation { since, reason: Some("stolen".into()) }), ..Terms::default() }
}

fn verify(trust: &Trust, bundle: &Value) -> Result<Verified, VerifyError> {
    trust.verify(bundle.to_string().as_bytes(), &expected())
}

fn refusal(result: Result<Verified, VerifyError>) -> Refusal {
    match result.unwrap_err() {
        VerifyError::DoesNotCount { refusal, .. } => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_is_replaced_by_another() {
    let (old, new) = (signer(), signer());
    let rotation = hours(-1);
    let trust = Trust::default()
        .with_key(trusted(&old, Terms { not_after: Some(rotation), person: Some("ada".into()), ..Terms::default() }))
        .with_key(trusted(&new, Terms::default()));
    let signed = |signer: &KeyFileSigner, at| signer.sign_statement(&finished(at).to_bytes()).unwrap();
    let before = signed(&old, hours(-2));
    let verified = trust.verify(before.as_bytes(), &expected()).unwrap();
    assert!(matches!(&verified.signer, SignedBy::Key { person: Some(person), .. } if person == "ada"));
    assert!(matches!(verified.when, When::Claimed(_)));
    assert!(trust.verify(signed(&new, hours(0)).as_bytes(), &expected()).is_ok());
    let late = trust.verify(signed(&old, hours(0)).as_bytes(), &expected());
    assert!(matches!(refusal(late), Refusal::TooLate { proven: false, .. }));
    // The very last moment still counts.
    assert!(trust.verify(signed(&old, rotation).as_bytes(), &expected()).is_ok());
    assert!(trust.would_count(old.public_key().hint(), Kind::Backup, hours(0)).is_err());
    assert!(trust.would_count(new.public_key().hint(), Kind::Backup, hours(0)).is_ok());
    assert!(trust.would_count("nobody", Kind::Backup, hours(0)).is_err());
}

#[test]
fn kinds_are_not_confused() {
    let signer = signer();
    let only = |kind: Kind| Trust::default().with_key(trusted(&signer, Terms { kinds: Some([kind].into()), ..Terms::default() }));
    let backup = signer.sign_statement(&finished(hours(0)).to_bytes()).unwrap();
    let artifact = signer.sign_statement(&artifact_statement("log", "v1", DIGEST, 3, serde_json::Map::new()).to_bytes()).unwrap();
    let of_artifact = Expected::artifact("log", "v1", DIGEST);
    assert!(only(Kind::Backup).verify(backup.as_bytes(), &expected()).is_ok());
    assert!(only(Kind::Artifact).verify(artifact.as_bytes(), &of_artifact).is_ok());
    let wrong = only(Kind::Artifact).verify(backup.as_bytes(), &expected());
    assert!(matches!(refusal(wrong), Refusal::WrongKind { kind: Some(Kind::Backup) }));
    // A statement of the kind that it may sign is no statement of another.
    let error = only(Kind::Artifact).verify(artifact.as_bytes(), &expected()).unwrap_err();
    assert!(matches!(error, VerifyError::WrongPredicate(_)), "{error:?}");
    // What nobody has a word for is only for those who may sign everything.
    let other = signer.sign_statement(&Statement::new(ID, DIGEST, "https://example.org/v1", Value::Null).to_bytes()).unwrap();
    let expected = Expected { predicate_type: "https://example.org/v1", ..expected() };
    assert!(Trust::new([signer.public_key().clone()]).verify(other.as_bytes(), &expected).is_ok());
    assert!(matches!(refusal(only(Kind::Backup).verify(other.as_bytes(), &expected)), Refusal::WrongKind { kind: None }));
}

#[test]
fn a_timestamp_tells_before_from_after() {
    let (instance, signer) = (Instance::new(), signer());
    let bundle = signer.sign_statement(&finished(hours(-48)).to_bytes()).unwrap();
    let stamped = instance.stamped(&bundle);
    let plain: Value = serde_json::from_str(&bundle).unwrap();
    let with = |terms: Terms| Trust::default().with_key(trusted(&signer, terms)).with_roots(instance.roots());

    let verified = verify(&with(Terms::default()), &stamped).unwrap();
    let When::Proven(at) = verified.when else { panic!("{:?}", verified.when) };
    assert!((Timestamp::now() - at).get_hours().abs() < 1);
    assert!(verify(&with(revoked(hours(1))), &stamped).is_ok());
    assert!(matches!(refusal(verify(&with(revoked(hours(-1))), &stamped)), Refusal::Revoked { at: Some(_), .. }));
    assert!(matches!(refusal(verify(&with(revoked(hours(1))), &plain)), Refusal::Revoked { at: None, .. }));
    // An authority's word comes before the signer's, which names the day before yesterday.
    let retired = Terms { not_after: Some(hours(-24)), ..Terms::default() };
    assert!(matches!(refusal(verify(&with(retired.clone()), &stamped)), Refusal::TooLate { proven: true, .. }));
    assert!(matches!(verify(&with(retired), &plain).unwrap().when, When::Claimed(_)));

    let asking = with(Terms::default()).requiring_timestamps(true);
    assert!(matches!(verify(&asking, &stamped).unwrap().when, When::Proven(_)));
    assert_eq!(refusal(verify(&asking, &plain)), Refusal::NoTrustedTime);
    // Nobody here knows the authority: then it proves nothing.
    let rootless = Trust::default().with_key(trusted(&signer, Terms::default()));
    assert!(matches!(verify(&rootless, &stamped).unwrap().when, When::Claimed(_)));
}

#[test]
fn timestamps_that_are_not_over_this_signature_are_refused() {
    let (instance, signer) = (Instance::new(), signer());
    let sign = |at| signer.sign_statement(&finished(at).to_bytes()).unwrap();
    let trust = Trust::default().with_key(trusted(&signer, Terms::default())).with_roots(instance.roots());
    let stamped = instance.stamped(&sign(hours(-1)));
    assert!(verify(&trust, &stamped).is_ok());
    // Of another signature, and be it of the same key.
    let mut moved: Value = serde_json::from_str(&sign(hours(0))).unwrap();
    moved["verificationMaterial"]["timestampVerificationData"] = stamped["verificationMaterial"]["timestampVerificationData"].clone();
    assert!(matches!(verify(&trust, &moved), Err(VerifyError::Timestamp { .. })));
    // Of another authority.
    let strange = Instance::new().stamped(&sign(hours(0)));
    assert!(matches!(verify(&trust, &strange), Err(VerifyError::Timestamp { .. })));
    // What readers could understand differently.
    let tokens = |value: Value| {
        let mut bundle = stamped.clone();
        bundle["verificationMaterial"]["timestampVerificationData"] = value;
        verify(&trust, &bundle)
    };
    let one = stamped["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"][0].clone();
    for odd in [
        json!({"rfc3161Timestamps": [{"signedTimestamp": "?"}]}),
        json!({"rfc3161Timestamps": [{"signedTimestamp": "AAAA", "comment": 1}]}),
        json!({"rfc3161Timestamps": [one.clone()], "comment": 1}),
        json!({"rfc3161Timestamps": vec![one.clone(); 33]}),
        json!({"rfc3161Timestamps": [{"signedTimestamp": "AAAA"}]}),
        json!({"rfc3161Timestamps": {}}),
    ] {
        let error = tokens(odd.clone()).unwrap_err();
        assert!(matches!(error, VerifyError::Malformed { .. } | VerifyError::Timestamp { .. }), "{odd}: {error:?}");
    }
    assert!(matches!(tokens(json!({"rfc3161Timestamps": []})).unwrap().when, When::Claimed(_)));
    let flipped = {
        let mut token = BASE64.decode(one["signedTimestamp"].as_str().unwrap()).unwrap();
        let last = token.len() - 5;
        token[last] ^= 1;
        json!({"rfc3161Timestamps": [{"signedTimestamp": BASE64.encode(token)}]})
    };
    assert!(matches!(tokens(flipped), Err(VerifyError::Timestamp { .. })));
}

#[test]
fn what_was_vouched_for_survives_the_theft_of_its_key() {
    let signer = signer();
    let sign = |statement: &Statement| signer.sign_statement(&statement.to_bytes()).unwrap();
    let old = sign(&finished(hours(-48)));
    let unrevoked = Trust::new([signer.public_key().clone()]);
    let vouched = unrevoked.verify(old.as_bytes(), &expected()).unwrap().sha256;
    assert_eq!(vouched, Sha256::of(&finished_bytes(&old)));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("good");
    KnownGood::write(&path, vec![vouched, Sha256([1; 32])]).unwrap();
    let list = || Some(Arc::new(KnownGood::open(&path).unwrap()));
    let key = TrustedKey { known_good: list(), ..trusted(&signer, revoked(hours(-24))) };
    let trust = Trust::default().with_key(key.clone());
    assert_eq!(trust.verify(old.as_bytes(), &expected()).unwrap().when, When::Vouched);
    // The same statement, signed once more by the thief, is the same statement.
    assert!(trust.verify(sign(&finished_statement(&old)).as_bytes(), &expected()).is_ok());
    // Anything else is not, however old it says it is.
    let forged = sign(&finished(hours(-47)));
    assert!(matches!(refusal(trust.verify(forged.as_bytes(), &expected())), Refusal::Revoked { at: None, .. }));
    // The list is of one key.
    let other = KeyFileSigner::new(SigningKey::generate().unwrap());
    let elsewhere = Trust::default().with_key(trusted(&other, revoked(hours(-24)))).with_key(key.clone());
    let by_other = other.sign_statement(&finished_bytes(&old)).unwrap();
    assert!(matches!(refusal(elsewhere.verify(by_other.as_bytes(), &expected())), Refusal::Revoked { .. }));
    // A proven time is still asked for where it is asked for.
    assert_eq!(refusal(trust.clone().requiring_timestamps(true).verify(old.as_bytes(), &expected())), Refusal::NoTrustedTime);
    // A list that cannot be read is not "no".
    let damaged = TrustedKey { known_good: list(), ..key };
    fs::write(&path, "x".repeat(130)).unwrap();
    let error = Trust::default().with_key(damaged).verify(old.as_bytes(), &expected()).unwrap_err();
    assert!(matches!(error, VerifyError::KnownGood { .. }), "{error:?}");
}

fn finished_bytes(bundle: &str) -> Vec<u8> {
    let bundle: Value = serde_json::from_str(bundle).unwrap();
    BASE64.decode(bundle["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap()
}

fn finished_statement(bundle: &str) -> Statement {
    Statement::parse(&finished_bytes(bundle)).unwrap()
}

#[test]
fn identities_count_on_their_terms() {
    let instance = Instance::new();
    let bundle = instance.by_identity(&finished(hours(0)));
    let identity = |subject: SubjectRule, terms: Terms| Identity { issuer: ISSUER.into(), subject, terms };
    let exactly = || SubjectRule::Exactly(SUBJECT.into());
    let with = |identities: Vec<Identity>| identities.into_iter().fold(Trust::default().with_roots(instance.roots()), Trust::with_identity);

    let person = Terms { person: Some("ada".into()), ..Terms::default() };
    let verified = verify(&with(vec![identity(exactly(), person)]), &bundle).unwrap();
    assert_eq!(verified.signer, SignedBy::Identity { issuer: ISSUER.into(), subject: SUBJECT.into(), person: Some("ada".into()) });
    assert!(matches!(verified.when, When::Proven(_)));
    assert_eq!(verified.signer.to_string(), format!("{SUBJECT} ({ISSUER})"));
    let pattern = SubjectRule::Pattern("https://ci.example.org/*/backup".into());
    assert!(verify(&with(vec![identity(pattern, Terms::default())]), &bundle).is_ok());

    for (issuer, subject) in
        [(ISSUER, "https://ci.example.org/acme/other"), ("https://other.example.org", SUBJECT), (ISSUER, "acme/backup")]
    {
        let stranger = Identity { issuer: issuer.into(), subject: SubjectRule::Exactly(subject.into()), terms: Terms::default() };
        let error = verify(&with(vec![stranger]), &bundle).unwrap_err();
        assert!(matches!(error, VerifyError::UntrustedIdentity { .. }), "{error:?}");
    }
    assert!(matches!(
        verify(&Trust::default().with_identity(identity(exactly(), Terms::default())), &bundle),
        Err(VerifyError::Certificate { .. })
    ));
    let other = Trust::default().with_roots(Instance::new().roots()).with_identity(identity(exactly(), Terms::default()));
    assert!(matches!(verify(&other, &bundle), Err(VerifyError::Certificate { .. } | VerifyError::Timestamp { .. })));

    // Terms, and of several entries one that fits.
    let artifacts = || identity(exactly(), Terms { kinds: Some([Kind::Artifact].into()), ..Terms::default() });
    let stolen = || identity(exactly(), revoked(hours(-1)));
    let later = || identity(exactly(), revoked(hours(1)));
    assert!(matches!(refusal(verify(&with(vec![artifacts()]), &bundle)), Refusal::WrongKind { .. }));
    assert!(matches!(refusal(verify(&with(vec![artifacts(), stolen()]), &bundle)), Refusal::Revoked { at: Some(_), .. }));
    assert!(matches!(refusal(verify(&with(vec![stolen(), artifacts()]), &bundle)), Refusal::Revoked { .. }));
    assert!(verify(&with(vec![artifacts(), later()]), &bundle).is_ok());
    let ended = identity(exactly(), Terms { not_after: Some(hours(-1)), ..Terms::default() });
    assert!(matches!(refusal(verify(&with(vec![ended]), &bundle)), Refusal::TooLate { proven: true, .. }));
}

/// The strict reader comes first, whoever signed: nothing in a bundle is passed over.
#[test]
fn bundles_with_a_certificate_are_read_strictly_too() {
    let instance = Instance::new();
    let good = instance.by_identity(&finished(hours(0)));
    let identity = Identity { issuer: ISSUER.into(), subject: SubjectRule::Exactly(SUBJECT.into()), terms: Terms::default() };
    let trust = Trust::default().with_roots(instance.roots()).with_identity(identity);
    assert!(verify(&trust, &good).is_ok());
    let spoiled = |change: &dyn Fn(&mut Value)| {
        let mut bundle = good.clone();
        change(&mut bundle);
        assert_ne!(bundle, good);
        verify(&trust, &bundle).unwrap_err()
    };
    let material = "verificationMaterial";
    for (what, error) in [
        ("unknown member", spoiled(&|b| b["comment"] = 1.into())),
        ("unknown member of the material", spoiled(&|b| b[material]["comment"] = 1.into())),
        ("unknown member of the certificate", spoiled(&|b| b[material]["certificate"]["comment"] = 1.into())),
        ("a key as well", spoiled(&|b| b[material]["publicKey"] = json!({"hint": "x"}))),
        ("a chain as well", spoiled(&|b| b[material]["x509CertificateChain"] = json!({"certificates": []}))),
        (
            "a chain instead",
            spoiled(&|b| {
                let certificate = b[material].as_object_mut().unwrap().remove("certificate").unwrap();
                b[material]["x509CertificateChain"] = json!({"certificates": [certificate]});
            }),
        ),
        ("certificate that is not base64", spoiled(&|b| b[material]["certificate"]["rawBytes"] = "?".into())),
        ("unknown member of an entry", spoiled(&|b| b[material]["tlogEntries"] = json!([{"comment": 1}]))),
        ("unknown member of a proof", spoiled(&|b| b[material]["tlogEntries"] = json!([{"inclusionProof": {"comment": 1}}]))),
        (
            "two signatures",
            spoiled(&|b| {
                let signatures = b["dsseEnvelope"]["signatures"].as_array_mut().unwrap();
                signatures.push(signatures[0].clone());
            }),
        ),
        ("another media type", spoiled(&|b| b["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.2".into())),
        ("another payload type", spoiled(&|b| b["dsseEnvelope"]["payloadType"] = "text/plain".into())),
    ] {
        assert!(matches!(error, VerifyError::Malformed { .. }), "{what}: {error:?}");
    }
    let error = spoiled(&|b| b["dsseEnvelope"]["payload"] = BASE64.encode(finished(hours(1)).to_bytes()).into());
    assert!(matches!(error, VerifyError::BadSignature), "{error:?}");
    let error = spoiled(&|b| drop(b[material].as_object_mut().unwrap().remove("timestampVerificationData")));
    assert!(matches!(error, VerifyError::Timestamp { .. } | VerifyError::Malformed { .. }), "{error:?}");
}

/// Whatever is done to one byte of a bundle with a certificate and a timestamp: it is refused, or proves the same of the same signer.
#[test]
fn no_changed_byte_proves_something_else() {
    let instance = Instance::new();
    let statement = finished(hours(0));
    let good = instance.by_identity(&statement).to_string().into_bytes();
    let identity = Identity { issuer: ISSUER.into(), subject: SubjectRule::Pattern("**".into()), terms: Terms::default() };
    let trust = Trust::default().with_roots(instance.roots()).with_identity(identity);
    let truth = trust.verify(&good, &expected()).unwrap();
    let (mut tried, mut refused) = (0, 0);
    for at in (0..good.len()).step_by(3) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 7);
        for bytes in [bytes.as_slice(), &good[..at]] {
            tried += 1;
            match trust.verify(bytes, &expected()) {
                Ok(verified) => assert_eq!(verified, truth, "at {at}"),
                Err(_) => refused += 1,
            }
        }
    }
    // A timestamp brings the certificates of its authority, and nobody reads them: those of the trusted root count.
    assert!(refused * 10 > tried * 9, "{refused} of {tried} refused");
}
