//! Evidence that is stored, read, changed and deleted.

use jiff::ToSpan as _;
use lifeboat_core::drill::Verdict;
use lifeboat_core::drill::history::Signature;
use lifeboat_core::trust::{Kind, Terms};

use super::*;
use crate::signing::{KeyFileSigner, SigningKey, TrustedKey};
use crate::store::MemoryStore;

struct World {
    repository: Repository,
    signer: KeyFileSigner,
    trust: Trust,
}

fn sample(name: &str) -> Report {
    let path = format!("{}/../../testdata/drills/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

impl World {
    fn new() -> Self {
        let repository = Repository::init(Box::new(MemoryStore::default()), jiff::Timestamp::UNIX_EPOCH, "test").unwrap();
        let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
        let trust = Trust::new([signer.public_key().clone()]);
        Self { repository, signer, trust }
    }

    /// A report that comes after those that are there.
    fn report(&self, sample: &str) -> Report {
        self.report_of("conductor", sample)
    }

    fn report_of(&self, name: &str, sample: &str) -> Report {
        let report = self::sample(sample);
        let latest = latest(&self.repository, &self.trust, name).unwrap();
        let ids = ids(&self.repository, name).unwrap();
        let id = DrillId::next(&name.parse().unwrap(), report.started, &ids);
        Report {
            id: id.to_string(),
            name: name.to_owned(),
            repository: self.repository.descriptor().repository,
            number: latest.as_ref().map_or(1, |latest| latest.number + 1),
            previous: latest.map(|latest| latest.sha256),
            ..report
        }
    }

    fn drill(&self, sample: &str) -> (Report, Stored) {
        let report = self.report(sample);
        let stored = store(&self.repository, &report, "<!doctype html>", &self.signer).unwrap();
        (report, stored)
    }

    fn verify(&self, id: &str) -> Result<VerifiedReport, EvidenceError> {
        verify(&self.repository, &self.trust, &id.parse().unwrap())
    }

    fn history(&self) -> History {
        history(&self.repository, Some(&self.trust), "conductor", 100).unwrap()
    }

    fn key(id: &str, name: &str) -> Key {
        layout::drill_object(id, name).unwrap()
    }

    /// As somebody does who may write and delete.
    fn replace(&self, id: &str, name: &str, bytes: &[u8]) {
        let key = Self::key(id, name);
        self.repository.store().delete(&key).unwrap();
        self.repository.store().create(&key, bytes).unwrap();
    }
}

#[test]
fn what_is_stored_is_read_again_and_failed_drills_are_signed_too() {
    let world = World::new();
    for sample in ["gaps", "failed", "passed"] {
        let (report, stored) = world.drill(sample);
        let verified = world.verify(&report.id).unwrap();
        assert_eq!((&verified.report, verified.sha256, verified.page), (&report, stored.report, Some(stored.page)));
        assert!(verified.doubts.is_empty(), "{:?}", verified.doubts);
        assert_eq!(page(&world.repository, &verified).unwrap(), b"<!doctype html>");
        assert_eq!(stored.objects.last().unwrap(), &format!("drills/{}/report.json", report.id));
    }
    let history = world.history();
    assert_eq!((history.findings.as_slice(), history.older), ([].as_slice(), 0));
    let verdicts: Vec<_> = history.entries.iter().map(Entry::verdict).collect();
    assert_eq!(verdicts, [Verdict::PassedWithGaps, Verdict::Failed, Verdict::Passed].map(Some));
    let numbers: Vec<u64> = history.entries.iter().map(|entry| entry.summary.as_ref().unwrap().number).collect();
    assert_eq!(numbers, [1, 2, 3]);
}

#[test]
fn whatever_is_changed_is_refused() {
    let world = World::new();
    let (report, _) = world.drill("failed");
    let (other, _) = world.drill("passed");
    let read = |id: &str, name: &str| world.repository.document(&World::key(id, name)).unwrap().unwrap();
    let forged = String::from_utf8(read(&report.id, "report.json")).unwrap().replace("\"failed\"", "\"passed\"").into_bytes();
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("report.json", forged),
        // Genuine, and of another drill.
        ("report.json", read(&other.id, "report.json")),
        ("report.sigstore.json", read(&other.id, "report.sigstore.json")),
        // One kind of statement in place of the other.
        ("report.sigstore.json", read(&report.id, "test-result.sigstore.json")),
        ("test-result.sigstore.json", read(&report.id, "report.sigstore.json")),
        ("test-result.sigstore.json", read(&other.id, "test-result.sigstore.json")),
        ("report.sigstore.json", b"{}".to_vec()),
        ("report.json", Vec::new()),
    ];
    for (name, bytes) in attacks {
        let before = read(&report.id, name);
        world.replace(&report.id, name, &bytes);
        let error = world.verify(&report.id).unwrap_err();
        assert!(error.is_refusal(), "{name}: {error:?}");
        world.replace(&report.id, name, &before);
        assert!(world.verify(&report.id).is_ok());
    }
    // All of another drill's evidence, under this drill's name.
    for name in ["report.json", "report.html", "report.sigstore.json", "test-result.sigstore.json"] {
        world.replace(&report.id, name, &read(&other.id, name));
    }
    let error = world.verify(&report.id).unwrap_err();
    assert!(error.is_refusal() && error.to_string().contains("is that of drill"), "{error}");
    // A page that was exchanged.
    let verified = world.verify(&other.id).unwrap();
    world.replace(&other.id, "report.html", b"all is well");
    assert!(page(&world.repository, &verified).unwrap_err().is_refusal());
    // And a report of another repository.
    let elsewhere = World::new();
    for name in ["report.json", "report.sigstore.json"] {
        elsewhere.repository.store().create(&World::key(&other.id, name), &read(&other.id, name)).unwrap();
    }
    let error = verify(&elsewhere.repository, &world.trust, &other.id.parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("another repository"), "{error}");
}

#[test]
fn only_who_is_trusted_for_drills_signs_one() {
    let world = World::new();
    let (report, _) = world.drill("passed");
    let id: DrillId = report.id.parse().unwrap();
    let with = |kinds: &[Kind]| {
        let terms = Terms { kinds: Some(kinds.iter().copied().collect()), ..Terms::default() };
        Trust::default().with_key(TrustedKey { key: world.signer.public_key().clone(), terms, known_good: None })
    };
    assert!(verify(&world.repository, &with(&[Kind::Drill]), &id).is_ok());
    assert!(verify(&world.repository, &with(&[Kind::Backup, Kind::Artifact]), &id).unwrap_err().is_refusal());
    assert!(verify(&world.repository, &Trust::default(), &id).unwrap_err().is_refusal());
}

#[test]
fn a_verdict_that_is_better_than_its_parts_is_told() {
    let world = World::new();
    let report = Report { verdict: Verdict::Passed, reasons: Vec::new(), ..world.report("failed") };
    store(&world.repository, &report, "", &world.signer).unwrap();
    let verified = world.verify(&report.id).unwrap();
    assert!(verified.doubts[0].contains("its parts come to \"failed\""), "{:?}", verified.doubts);
    assert_eq!(world.history().entries[0].verdict(), Some(Verdict::Failed));
}

#[test]
fn a_deleted_report_shows_and_the_chain_goes_on() {
    let world = World::new();
    let drills: Vec<Report> = ["passed", "failed", "passed"].iter().map(|sample| world.drill(sample).0).collect();
    world.repository.store().delete(&World::key(&drills[1].id, "report.json")).unwrap();
    let findings = world.history().findings;
    assert!(findings.iter().any(|text| text.contains("its report is not there")), "{findings:?}");
    // Also without a trace.
    for name in ["report.html", "report.sigstore.json", "test-result.sigstore.json"] {
        world.repository.store().delete(&World::key(&drills[1].id, name)).unwrap();
    }
    let findings = world.history().findings;
    assert!(findings.len() == 1 && findings[0].starts_with("1 of the drills between"), "{findings:?}");
    let (next, _) = world.drill("gaps");
    assert_eq!(next.number, 4);
}

#[test]
fn what_somebody_puts_there_without_a_key_breaks_no_chain() {
    let world = World::new();
    let (first, stored) = world.drill("passed");
    // Newest of all, for ever, and with the largest number.
    let planted = Report { id: "conductor-drill-20991231T000000Z".into(), number: u64::MAX, ..first.clone() };
    world.repository.store().create(&World::key(&planted.id, "report.json"), &report_bytes(&planted)).unwrap();
    world.repository.store().create(&World::key("conductor-drill-20981231T000000Z", "report.json"), b"\xff").unwrap();
    world.repository.store().create(&Key::parse("drills/notes.txt").unwrap(), b"?").unwrap();
    world.repository.store().create(&Key::parse("drills/x/report.json").unwrap(), b"?").unwrap();
    let latest = latest(&world.repository, &world.trust, "conductor").unwrap().unwrap();
    assert_eq!((latest.number, latest.sha256, latest.passed_over.len()), (1, stored.report, 2));
    let history = world.history();
    assert_eq!(history.entries.len(), 3);
    assert_eq!(history.findings.len(), 2, "{:?}", history.findings);
    assert!(history.entries[1..].iter().all(|entry| matches!(entry.signature, Signature::NotValid { .. }) && entry.verdict().is_none()));
    // A drill of today comes behind the planted one, by its id.
    let (next, _) = world.drill("passed");
    assert_eq!((next.number, next.previous), (2, Some(stored.report)));
    assert!(next.id.as_str() > planted.id.as_str());
}

#[test]
fn systems_in_one_repository_have_chains_of_their_own() {
    let world = World::new();
    world.drill("passed");
    let other = world.report_of("billing", "failed");
    assert_eq!((other.number, other.previous), (1, None));
    store(&world.repository, &other, "", &world.signer).unwrap();
    let (second, _) = world.drill("passed");
    assert_eq!(second.number, 2);
    assert_eq!(world.history().entries.len(), 2);
    assert_eq!(all_ids(&world.repository).unwrap().len(), 3);
}

#[test]
fn what_could_not_be_read_again_is_not_signed() {
    let world = World::new();
    let mut report = world.report("passed");
    report.rto.excluded_seconds = f64::NAN;
    assert!(matches!(store(&world.repository, &report, "", &world.signer), Err(EvidenceError::Unfit { .. })));
    let report = Report { name: "billing".into(), ..world.report("passed") };
    assert!(matches!(store(&world.repository, &report, "", &world.signer), Err(EvidenceError::Unfit { .. })));
    let report = Report { id: "../../x".into(), ..world.report("passed") };
    assert!(matches!(store(&world.repository, &report, "", &world.signer), Err(EvidenceError::Format(_))));
    assert!(world.repository.store().list(DRILLS).unwrap().is_empty(), "nothing was written");

    let (report, _) = world.drill("passed");
    let again = Report { host: "another".into(), ..report };
    assert!(matches!(store(&world.repository, &again, "", &world.signer), Err(EvidenceError::Taken { .. })));
}

#[test]
fn the_newest_is_found_among_thousands_that_nobody_signed() {
    let world = World::new();
    let start: jiff::Timestamp = "2020-01-01T00:00:00Z".parse().unwrap();
    for number in 0..3000 {
        let id = DrillId::next(&"conductor".parse().unwrap(), start + (number * 24).hours(), []);
        world.repository.store().create(&World::key(&id.to_string(), "report.json"), b"{}").unwrap();
    }
    assert_eq!(latest(&world.repository, &world.trust, "conductor").unwrap(), None);
    let (report, stored) = world.drill("passed");
    let latest = latest(&world.repository, &world.trust, "conductor").unwrap().unwrap();
    assert_eq!((latest.id.to_string(), latest.sha256, latest.passed_over.len()), (report.id, stored.report, 0));
    let history = history(&world.repository, Some(&world.trust), "conductor", 3).unwrap();
    assert_eq!((history.entries.len(), history.older), (3, 2998));
}
