//! The audit log against everything that may happen to it: crashes, stores that fail, hosts that write at once, and people with the keys to the
//! store but not to the log.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::audit::{Decided, Event, Outcome, Phase};
use lifeboat_core::policy::{Actor, FACTS_SCHEMA, Facts, Operation};
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::{Id, to_json};
use lifeboat_core::verify::FindingKind;
use lifeboat_engine::audit::{self, AuditKey, Log, Pin, Recorded, Report, Trouble, TrustedKey};
use lifeboat_engine::progress::Unwatched;
use lifeboat_engine::random;
use lifeboat_engine::replicate::{self, Mode, ReplicateSettings};
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::{SigningKey, Trust};
use lifeboat_engine::store::{
    self, Access, Fault, FaultyStore, Member, MemoryStore, Operation as Step, Part, Rule, Store as _, StoreOptions,
};

fn facts(host: &str) -> Facts {
    let now = Timestamp::now();
    Facts {
        schema: FACTS_SCHEMA,
        time: now,
        time_seconds: now.as_second(),
        operation: Operation::Backup,
        action: Operation::Backup.class(),
        dry_run: false,
        actor: Actor { user: "postgres".into(), uid: 26, sudo_user: None },
        host: host.into(),
        environment: "test".into(),
        repository: None,
        backup: None,
        target: None,
        deletion: None,
        plan: None,
        break_glass: None,
    }
}

fn event(host: &str, allow: bool) -> Event {
    let decided = Decided { allow, reasons: vec!["a reason".into()], policy: None, engine: "embedded".into(), code: None };
    Event::start(random::id(), "lifeboat test", &facts(host), decided)
}

/// A place for a journal: in memory where there is one, because a journal is synced at every step.
fn place() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A host: its key, and its journal.
struct Host {
    name: String,
    key: String,
    journal: tempfile::TempDir,
}

impl Host {
    fn new(name: &str) -> Self {
        Self { name: name.into(), key: AuditKey::generate(name).to_text().to_string(), journal: place() }
    }

    fn key(&self) -> AuditKey {
        AuditKey::parse(&self.key).unwrap()
    }

    fn trusted(&self, until: Option<u64>) -> TrustedKey {
        TrustedKey { key: self.key().verifier().clone(), until }
    }

    /// Its log, with others whose records count.
    fn log(&self, others: &[TrustedKey]) -> Log {
        Log::new(self.journal.path(), "memory:", Some(self.key()), others.to_vec())
    }

    fn record(&self, repository: &Repository, others: &[TrustedKey]) -> (Event, Recorded) {
        let event = event(&self.name, true);
        let recorded = self.log(others).record(Some(repository), &event).unwrap();
        (event, recorded)
    }
}

fn open(objects: &MemoryStore) -> Repository {
    Repository::open(Box::new(objects.clone())).unwrap()
}

fn new_repository() -> (MemoryStore, Repository) {
    let objects = MemoryStore::default();
    let repository = Repository::init(Box::new(objects.clone()), Timestamp::UNIX_EPOCH, "test").unwrap();
    (objects, repository)
}

fn verify(log: &Log, objects: &MemoryStore, pins: &[&str]) -> Report {
    let pins: Vec<Pin> = pins.iter().map(|note| Pin { name: "pin".into(), note: note.as_bytes().to_vec() }).collect();
    audit::verify(log, &open(objects), &pins, Timestamp::now()).unwrap()
}

/// Ids of the events in a log, in order; every one of them counts.
fn ids(log: &Log, objects: &MemoryStore) -> Vec<Id> {
    let listing = log.list(&open(objects)).unwrap();
    assert!(listing.findings.is_empty(), "{:?}", listing.findings);
    assert!(listing.records.iter().enumerate().all(|(n, record)| record.index == n as u64));
    listing.records.into_iter().map(|record| record.event.id).collect()
}

#[track_caller]
fn assert_sound(report: &Report, records: u64) {
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!((report.records, report.unsealed), (records, 0));
}

/// Writes over an object, as whoever owns the store can.
fn overwrite(objects: &MemoryStore, key: &Key, bytes: &[u8]) {
    objects.delete(key).unwrap();
    objects.create(key, bytes).unwrap();
}

fn bytes(objects: &MemoryStore, key: &Key) -> Vec<u8> {
    objects.get(key, 1 << 30).unwrap()
}

fn keys(objects: &MemoryStore, prefix: &str) -> Vec<Key> {
    objects.list(prefix).unwrap().into_iter().map(|listed| listed.key).collect()
}

#[test]
fn records_get_their_numbers_in_order_and_starts_find_their_ends() {
    let (objects, repository) = new_repository();
    let host = Host::new("db1");
    let log = host.log(&[]);
    let start = event("db1", true);
    let first = log.record(Some(&repository), &start).unwrap();
    assert_eq!((first.index, first.waiting, first.trouble), (Some(0), 0, None));
    let backup: BackupId = "c-backup-20240315T120000Z".parse().unwrap();
    let end = start.end(random::id(), Timestamp::now(), Some(backup), Outcome { exit_code: 0, message: None, findings: 0 });
    let second = log.record(Some(&repository), &end).unwrap();
    let denied = event("db1", false);
    let third = log.record(Some(&repository), &denied).unwrap();
    assert_eq!((second.index, third.index), (Some(1), Some(2)));
    let note = third.checkpoint.unwrap();
    assert!(note.starts_with(&format!("{}\n3\n", audit::origin(repository.descriptor().repository))), "{note}");
    assert_eq!(log.latest_checkpoint(&repository).unwrap().unwrap().note, note);
    let listing = log.list(&repository).unwrap();
    let events: Vec<Event> = listing.records.iter().map(|record| record.event.clone()).collect();
    assert_eq!(events, [start.clone(), end, denied]);
    assert!(listing.records.iter().all(|record| record.signed_by == "db1"));
    assert_eq!(
        log.local().unwrap().into_iter().map(|(index, event)| (index.unwrap(), event)).collect::<Vec<_>>(),
        (0..).zip(events).collect::<Vec<_>>()
    );
    let report = verify(&log, &objects, &[&note]);
    assert_sound(&report, 3);
    assert!(report.unfinished.is_empty());
    // A day later the backup has ended, and what was denied never began.
    let later = Timestamp::now() + jiff::SignedDuration::from_hours(25);
    assert!(audit::verify(&log, &repository, &[], later).unwrap().unfinished.is_empty());
    log.record(Some(&repository), &event("db1", true)).unwrap();
    let report = audit::verify(&log, &repository, &[], later).unwrap();
    assert_eq!(report.unfinished.iter().map(|entry| entry.index).collect::<Vec<_>>(), [Some(3)]);
    assert_eq!(report.unfinished[0].start.as_ref().unwrap().phase, Phase::Start);
}

/// Over the border of a tile and of a bundle, by two hosts that take turns.
fn two_hosts(records: u64) -> (MemoryStore, Host, Host, Vec<Id>) {
    let (objects, repository) = new_repository();
    let (a, b) = (Host::new("a"), Host::new("b"));
    let mut ids = Vec::new();
    for number in 0..records {
        let (host, other) = if number % 3 == 0 { (&b, &a) } else { (&a, &b) };
        let (event, recorded) = host.record(&repository, &[other.trusted(None)]);
        assert_eq!((recorded.index, recorded.trouble), (Some(number), None));
        ids.push(event.id);
    }
    (objects, a, b, ids)
}

#[test]
fn two_hosts_continue_one_log_over_every_border() {
    let (objects, a, b, all) = two_hosts(300);
    for (host, other) in [(&a, &b), (&b, &a)] {
        let log = host.log(&[other.trusted(None)]);
        let report = verify(&log, &objects, &[]);
        assert_sound(&report, 300);
        assert_eq!((report.anchors, report.waiting, report.unknown_here), (301, 0, 0));
        assert_eq!(ids(&log, &objects), all);
    }
    assert_eq!(keys(&objects, "audit/tile/entries/").len(), 1);
    assert!(objects.length(&layout::audit_tile(0, 0, 256)).is_ok() && objects.length(&layout::audit_tile(1, 0, 1)).is_ok());
    // A host that has seen nothing of it finds the end without listing all of it.
    let (counting, faults) = FaultyStore::new(Box::new(objects.clone()));
    let repository = Repository::open(Box::new(counting)).unwrap();
    let c = Host::new("c");
    let (_, recorded) = c.record(&repository, &[a.trusted(None), b.trusted(None)]);
    assert_eq!((recorded.index, recorded.trouble), (Some(300), None));
    let asked = faults.trace().len();
    assert!(asked < 60, "{asked} requests");
    // And a host that knows the end asks for next to nothing.
    let (counting, faults) = FaultyStore::new(Box::new(objects.clone()));
    let repository = Repository::open(Box::new(counting)).unwrap();
    c.record(&repository, &[a.trusted(None), b.trusted(None)]);
    let asked = faults.trace().len();
    assert!(asked < 25, "{asked} requests");
}

/// What a manifest looks like that carries a checkpoint; its signature is not what is checked here.
fn put_manifest(objects: &MemoryStore, id: &str, note: &str) {
    let repository = open(objects).descriptor().repository;
    let manifest = serde_json::json!({
        "format": 1, "id": id, "repository": repository, "name": "c", "host": "h", "lifeboat": "0", "started": "2024-03-15T12:00:00Z",
        "finished": "2024-03-15T12:10:00Z", "kind": "full", "state": "healthy", "encryption": {"suite": "none"}, "packs": [], "tables": [],
        "files": 0, "plain_bytes": 0, "stored_bytes": 0, "audit": note,
    });
    objects.create(&layout::manifest(&id.parse().unwrap()), &to_json(&manifest)).unwrap();
}

/// Every kind of object, deleted, cut and flipped: always a finding that names it, and never a panic.
#[test]
fn whatever_is_done_to_an_object_is_found() {
    let (objects, a, b, _) = two_hosts(260);
    let log = a.log(&[b.trusted(None)]);
    let newest = log.latest_checkpoint(&open(&objects)).unwrap().unwrap();
    assert_eq!(newest.size, 260);
    let chosen = [
        layout::audit_leaf(0),
        layout::audit_leaf(100),
        layout::audit_leaf(255),
        layout::audit_leaf(256),
        layout::audit_leaf(259),
        layout::audit_tile(0, 0, 1),
        layout::audit_tile(0, 0, 77),
        layout::audit_tile(0, 0, 256),
        layout::audit_tile(0, 1, 4),
        layout::audit_tile(1, 0, 1),
        layout::audit_entries(0),
        layout::audit_checkpoint(1),
        layout::audit_checkpoint(100),
        layout::audit_checkpoint(260),
    ];
    for key in chosen {
        let whole = bytes(&objects, &key);
        let mut changed: Vec<(String, Option<Vec<u8>>)> = vec![
            ("empty".into(), Some(vec![])),
            ("cut".into(), Some(whole[..whole.len() - 1].to_vec())),
            ("longer".into(), Some([&whole[..], b"x"].concat())),
            ("long".into(), Some(vec![b'x'; 100_000])),
        ];
        for at in [0, whole.len() / 2, whole.len() - 2] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            changed.push((format!("flipped at {at}"), Some(flipped)));
        }
        // An older checkpoint that nobody remembers takes nothing away with it, and nobody can know of it.
        let remembered = !key.as_str().starts_with(layout::AUDIT_CHECKPOINTS) || key == layout::audit_checkpoint(260);
        if remembered {
            changed.push(("deleted".into(), None));
        }
        for (how, bytes) in changed {
            let copy = objects.snapshot();
            copy.delete(&key).unwrap();
            if let Some(bytes) = &bytes {
                copy.create(&key, bytes).unwrap();
            }
            let report = verify(&log, &copy, &[]);
            let hit = report.findings.iter().any(|finding| finding.object == key.as_str());
            assert!(hit, "{key} {how}: {:?}", report.findings);
            let kind = |finding: &lifeboat_core::verify::Finding| finding.kind == FindingKind::Missing;
            assert_eq!(report.findings.iter().any(kind), bytes.is_none(), "{key} {how}: {:?}", report.findings);
        }
    }
    // Something that does not belong there at all.
    let copy = objects.snapshot();
    copy.create(&Key::parse("audit/leaf/x").unwrap(), b"x").unwrap();
    assert_eq!(verify(&log, &copy, &[]).findings[0].object, "audit/leaf/x");
}

#[test]
fn records_that_were_exchanged_copied_or_replaced_are_found() {
    let (objects, a, b, _) = two_hosts(12);
    let log = a.log(&[b.trusted(None)]);
    let (four, seven) = (layout::audit_leaf(4), layout::audit_leaf(7));
    let found = |change: &dyn Fn(&MemoryStore)| {
        let copy = objects.snapshot();
        change(&copy);
        verify(&log, &copy, &[]).findings.into_iter().map(|finding| (finding.object, finding.kind)).collect::<BTreeSet<_>>()
    };
    let exchanged = found(&|copy| {
        let (x, y) = (bytes(copy, &four), bytes(copy, &seven));
        overwrite(copy, &four, &y);
        overwrite(copy, &seven, &x);
    });
    assert!(
        exchanged.contains(&(four.to_string(), FindingKind::Corrupt)) && exchanged.contains(&(seven.to_string(), FindingKind::Corrupt))
    );
    let copied = found(&|copy| copy.create(&layout::audit_leaf(12), &bytes(copy, &four)).unwrap());
    assert!(copied.contains(&(layout::audit_leaf(12).to_string(), FindingKind::Corrupt)), "{copied:?}");
    // A record that its host signed for this very place, and that lost: whoever answers for the store has seen it.
    let (other, repository) = {
        let other = objects.snapshot();
        (0..5).for_each(|n| other.delete(&layout::audit_leaf(11 - n)).unwrap());
        for key in keys(&other, "audit/checkpoint/").into_iter().chain(keys(&other, "audit/tile/")) {
            other.delete(&key).unwrap();
        }
        let repository = open(&other);
        (other, repository)
    };
    let forgetful = Host { name: a.name.clone(), key: a.key.clone(), journal: place() };
    let (_, lost) = forgetful.record(&repository, &[b.trusted(None)]);
    assert_eq!(lost.index, Some(7));
    let replaced = found(&|copy| overwrite(copy, &seven, &bytes(&other, &seven)));
    let hit = |text: &str| replaced.iter().any(|(object, kind)| object.contains(text) && *kind == FindingKind::Corrupt);
    assert!(hit("audit/checkpoint/0000000012") && hit("audit/tile/0/000.p/12") && hit("this host remembers"), "{replaced:?}");
}

/// Takes the end of a log away as if it had never been.
fn truncate(objects: &MemoryStore, size: u64) {
    for key in keys(objects, "audit/") {
        let gone = match layout::audit_object(&key).unwrap() {
            layout::AuditObject::Leaf(index) => index >= size,
            layout::AuditObject::Checkpoint(of) => of > size,
            layout::AuditObject::Tile { level, number, width } => ((number << 8) + width) << (8 * u32::from(level)) > size,
            layout::AuditObject::Entries(number) => (number + 1) << 8 > size,
        };
        if gone {
            objects.delete(&key).unwrap();
        }
    }
}

#[test]
fn a_log_whose_end_was_cut_off_is_found_by_whoever_remembers_it() {
    let (objects, a, b, _) = two_hosts(20);
    let others = [a.trusted(None), b.trusted(None)];
    let pin = a.log(&others).latest_checkpoint(&open(&objects)).unwrap().unwrap().note;
    let cut = objects.snapshot();
    truncate(&cut, 15);
    // Its own host: by its journal and by what it remembers.
    let report = verify(&a.log(&others), &cut, &[]);
    assert!(report.findings.iter().all(|finding| finding.kind == FindingKind::Missing), "{:?}", report.findings);
    assert!(report.findings.iter().any(|finding| finding.object.contains("remembers")));
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.object == layout::audit_leaf(19).to_string() && finding.problem.contains("this host stored it"))
    );
    // And it does not go on with it.
    let before = keys(&cut, "");
    let (_, recorded) = a.record(&open(&cut), &others);
    assert!(matches!(recorded.trouble, Some(Trouble::Distrusted(_))), "{recorded:?}");
    assert_eq!((recorded.index, recorded.waiting), (None, 1));
    assert_eq!(keys(&cut, ""), before);
    // Somebody who was never there: not by itself …
    let auditor = Host::new("auditor");
    assert_sound(&verify(&auditor.log(&others), &cut, &[]), 15);
    // … but by a checkpoint from elsewhere, or by one in a manifest.
    let report = verify(&auditor.log(&others), &cut, &[&pin]);
    assert_eq!(
        report.findings.iter().map(|finding| (finding.kind, finding.object.as_str())).collect::<Vec<_>>(),
        [(FindingKind::Missing, "pin")]
    );
    let anchored = cut.snapshot();
    put_manifest(&anchored, "c-backup-20240315T120000Z", &pin);
    let report = verify(&auditor.log(&others), &anchored, &[]);
    assert_eq!(report.findings[0].backup.as_deref(), Some("c-backup-20240315T120000Z"));
    assert_eq!(report.findings[0].kind, FindingKind::Missing);
    // Where nothing was cut off, both fit.
    let whole = objects.snapshot();
    put_manifest(&whole, "c-backup-20240315T120000Z", &pin);
    assert_sound(&verify(&auditor.log(&others), &whole, &[&pin]), 20);
    // A manifest with a checkpoint that nobody signed is no anchor, and is said.
    let forged = whole.snapshot();
    put_manifest(&forged, "c-backup-20240316T120000Z", &pin.replace("\n20\n", "\n19\n"));
    assert_eq!(verify(&auditor.log(&others), &forged, &[]).findings[0].kind, FindingKind::Unsigned);
}

#[test]
fn a_log_that_lost_its_end_is_resumed_by_whoever_says_why() {
    let (objects, a, b, all) = two_hosts(20);
    let others = [a.trusted(None), b.trusted(None)];
    truncate(&objects, 15);
    let (waits, recorded) = a.record(&open(&objects), &others);
    assert!(matches!(recorded.trouble, Some(Trouble::Distrusted(_))), "{recorded:?}");
    let log = a.log(&others);
    let resumed = log.resume(&open(&objects), "the primary burnt down", Timestamp::now()).unwrap();
    // Of 15 to 19 two are of the other host.
    assert_eq!((resumed.size, resumed.again, resumed.waiting), (15, 3, 1));
    assert!(resumed.forgotten.unwrap().contains("\n20\n"));
    assert_eq!(log.waiting().unwrap(), 4);
    let (last, recorded) = a.record(&open(&objects), &others);
    assert_eq!((recorded.index, recorded.waiting, recorded.trouble), (Some(19), 0, None));
    let mut expected = all[..15].to_vec();
    expected.extend([waits.id, all[16], all[17], all[19], last.id]);
    assert_eq!(ids(&log, &objects), expected);
    assert_sound(&verify(&log, &objects, &[]), 20);
    // The other host decides for itself, and so does a second time of the first.
    let (_, recorded) = b.record(&open(&objects), &others);
    assert!(matches!(recorded.trouble, Some(Trouble::Distrusted(_))), "{recorded:?}");
    assert_eq!(b.log(&others).resume(&open(&objects), "it burnt down", Timestamp::now()).unwrap().again, 2);
    let (_, recorded) = b.record(&open(&objects), &others);
    assert_eq!((recorded.index, recorded.waiting, recorded.trouble), (Some(23), 0, None));
    assert_eq!(log.resume(&open(&objects), "again", Timestamp::now()).unwrap().again, 0);
    let (_, recorded) = a.record(&open(&objects), &others);
    assert_eq!((recorded.index, recorded.waiting, recorded.trouble), (Some(24), 0, None));
    for host in [&a, &b] {
        assert_sound(&verify(&host.log(&others), &objects, &[]), 25);
    }
}

/// Rewrites the log from `from` on with what `thief` would have happened.
fn rewrite(objects: &MemoryStore, thief: &Host, trusted: &[TrustedKey], from: u64, to: u64) {
    truncate(objects, from);
    let repository = open(objects);
    let place = tempfile::tempdir().unwrap();
    let log = Log::new(place.path(), "memory:", Some(thief.key()), trusted.to_vec());
    for _ in from..to {
        let recorded = log.record(Some(&repository), &event("elsewhere", true)).unwrap();
        assert_eq!(recorded.trouble, None);
    }
}

#[test]
fn history_is_not_rewritten_by_who_has_the_store_and_no_key_or_an_old_one() {
    let (objects, a, b, _) = two_hosts(20);
    let both = [a.trusted(None), b.trusted(None)];
    let auditor = Host::new("auditor").log(&both);
    let pin = auditor.latest_checkpoint(&open(&objects)).unwrap().unwrap().note;
    // A key of his own: every record and checkpoint of it is unsigned.
    let stranger = Host::new("stranger");
    let copy = objects.snapshot();
    rewrite(&copy, &stranger, &[both[0].clone(), both[1].clone()], 10, 20);
    let report = verify(&auditor, &copy, &[]);
    let unsigned = report.findings.iter().filter(|finding| finding.kind == FindingKind::Unsigned).count();
    assert_eq!(unsigned, 20, "{:?}", report.findings);
    // The key of a host that was retired when the log had 12 records.
    let retired = [a.trusted(None), b.trusted(Some(12))];
    let auditor = Host::new("auditor").log(&retired);
    assert!(
        verify(&auditor, &objects, &[]).findings.iter().all(|finding| finding.kind == FindingKind::Unsigned),
        "b went on after it was retired"
    );
    let copy = objects.snapshot();
    rewrite(&copy, &b, &both, 10, 20);
    let report = verify(&auditor, &copy, &[&pin]);
    let kinds: BTreeMap<&str, FindingKind> = report.findings.iter().map(|finding| (finding.object.as_str(), finding.kind)).collect();
    assert_eq!(kinds.get(layout::audit_leaf(12).as_str()), Some(&FindingKind::Unsigned));
    assert_eq!(kinds.get(layout::audit_leaf(11).as_str()), None, "what was his to sign");
    assert_eq!(kinds.get("pin"), Some(&FindingKind::Corrupt));
    // He stays below that number, and all there is was his to sign: only who remembers more finds it.
    truncate(&copy, 12);
    assert_sound(&verify(&auditor, &copy, &[]), 12);
    let report = verify(&auditor, &copy, &[&pin]);
    assert_eq!(report.findings.iter().map(|finding| finding.kind).collect::<Vec<_>>(), [FindingKind::Missing]);
}

#[test]
fn nobody_goes_on_behind_a_record_that_does_not_count_and_nothing_is_lost() {
    let (objects, a, b, mut all) = two_hosts(5);
    let others = [b.trusted(None)];
    let repository = open(&objects);
    let next = layout::audit_leaf(5);
    let stranger = Host::new("stranger");
    let forged = {
        let copy = objects.snapshot();
        let (_, recorded) = stranger.record(&open(&copy), &[a.trusted(None), b.trusted(None)]);
        assert_eq!(recorded.index, Some(5));
        bytes(&copy, &next)
    };
    for planted in [forged, bytes(&objects, &layout::audit_leaf(2)), b"{}".to_vec(), vec![b'x'; 100_000]] {
        objects.create(&next, &planted).unwrap();
        let before = keys(&objects, "");
        let (event, recorded) = a.record(&repository, &others);
        assert!(matches!(&recorded.trouble, Some(Trouble::Distrusted(problem)) if problem.contains(next.as_str())), "{recorded:?}");
        assert!(recorded.checkpoint.is_some(), "what is known is known all the same");
        assert_eq!(keys(&objects, ""), before, "nothing was added, and nothing signed");
        objects.delete(&next).unwrap();
        all.push(event.id);
    }
    // Taken away, or trusted: everything follows, in order.
    let (event, recorded) = a.record(&repository, &others);
    assert_eq!((recorded.index, recorded.waiting, recorded.trouble), (Some(9), 0, None));
    all.push(event.id);
    let log = a.log(&others);
    assert_eq!(ids(&log, &objects), all);
    assert_sound(&verify(&log, &objects, &[]), 10);
}

#[test]
fn a_host_whose_key_the_others_do_not_trust_yet_stops_nothing_for_good() {
    let (objects, repository) = new_repository();
    let (a, b) = (Host::new("a"), Host::new("b"));
    let (first, _) = b.record(&repository, &[]);
    let (second, recorded) = a.record(&repository, &[]);
    assert!(matches!(recorded.trouble, Some(Trouble::Distrusted(_))), "{recorded:?}");
    let (third, recorded) = a.record(&repository, &[b.trusted(None)]);
    assert_eq!((recorded.index, recorded.trouble), (Some(2), None));
    assert_eq!(ids(&a.log(&[b.trusted(None)]), &objects), [first.id, second.id, third.id]);
}

#[test]
fn tiles_that_are_lost_are_made_again_from_the_records() {
    for lost in [layout::audit_tile(0, 1, 4), layout::audit_tile(1, 0, 1)] {
        let (objects, a, b, _) = two_hosts(260);
        objects.delete(&lost).unwrap();
        let others = [b.trusted(None)];
        let (_, recorded) = a.record(&open(&objects), &others);
        assert_eq!((recorded.index, recorded.trouble), (Some(260), None), "{lost}");
        assert_sound(&verify(&a.log(&others), &objects, &[]), 261);
        // A damaged one cannot be written over; the log goes on, and it is found.
        let damaged = layout::audit_tile(0, 1, 5);
        overwrite(&objects, &damaged, &[7; 5 * 32]);
        let (_, recorded) = a.record(&open(&objects), &others);
        assert_eq!((recorded.index, recorded.trouble), (Some(261), None), "{lost}");
        let report = verify(&a.log(&others), &objects, &[]);
        assert_eq!(report.findings.iter().map(|finding| finding.object.as_str()).collect::<Vec<_>>(), [damaged.as_str()]);
    }
}

#[test]
fn what_happens_while_the_repository_is_away_follows_in_order_and_once() {
    let (objects, repository) = new_repository();
    let host = Host::new("db1");
    let log = host.log(&[]);
    let mut all = Vec::new();
    let mut note = |recorded: Recorded| all.push(recorded.id);
    note(log.record(Some(&repository), &event("db1", true)).unwrap());
    for number in 1..4 {
        // Not opened at all, or not reached.
        let recorded = log.record(None, &event("db1", true)).unwrap();
        assert_eq!((recorded.index, recorded.waiting), (None, number));
        assert!(matches!(recorded.trouble, Some(Trouble::Waiting(_))));
        note(recorded);
    }
    let (failing, faults) = FaultyStore::new(Box::new(objects.clone()));
    let failing = Repository::open(Box::new(failing)).unwrap();
    faults.plan(&[Rule::from(0, Fault::Transient)]);
    let recorded = log.record(Some(&failing), &event("db1", false)).unwrap();
    assert_eq!((recorded.index, recorded.waiting), (None, 4));
    assert!(recorded.checkpoint.is_some(), "what it remembers is enough for a manifest");
    note(recorded);
    // Without a key nothing is signed.
    let keyless = Log::new(host.journal.path(), "memory:", None, vec![host.trusted(None)]);
    let recorded = keyless.record(Some(&repository), &event("db1", true)).unwrap();
    assert!(matches!(&recorded.trouble, Some(Trouble::Waiting(problem)) if problem.contains("audit key")));
    note(recorded);
    let recorded = log.record(Some(&repository), &event("db1", true)).unwrap();
    assert_eq!((recorded.index, recorded.waiting, recorded.trouble.clone()), (Some(6), 0, None));
    note(recorded);
    assert_eq!(ids(&log, &objects), all);
    assert_sound(&verify(&log, &objects, &[]), 7);
    // Without a journal nothing is done.
    let file = tempfile::NamedTempFile::new().unwrap();
    let nowhere = Log::new(file.path(), "memory:", Some(host.key()), vec![]);
    assert!(nowhere.record(Some(&repository), &event("db1", true)).is_err());
}

/// Every request of a record fails once, in every way; afterwards everything is there, once, in order, and sound.
#[test]
fn every_request_of_a_record_may_fail() {
    const FAULTS: [Fault; 10] = [
        Fault::Transient,
        Fault::Refused,
        Fault::Denied,
        Fault::Full,
        Fault::AnswerLost,
        Fault::Short,
        Fault::Truncated,
        Fault::Corrupt,
        Fault::Stale(1),
        Fault::Stale(3),
    ];
    // Into an empty log; over the border of a bundle, behind another host; and with records that wait.
    for (before, waiting) in [(0, 0), (255, 0), (6, 2)] {
        let (start, a, b, known) = two_hosts(before);
        let others = [b.trusted(None)];
        let journal = a.journal.path();
        // One run on a copy of the repository and of the journal.
        let run = |plan: &[Rule]| {
            let objects = start.snapshot();
            let place = place();
            copy_directory(journal, place.path());
            let log = || Log::new(place.path(), "memory:", Some(a.key()), others.to_vec());
            let mut expected = known.clone();
            for _ in 0..waiting {
                expected.push(log().record(None, &event("a", true)).unwrap().id);
            }
            let (store, faults) = FaultyStore::new(Box::new(objects.clone()));
            faults.remember(keys(&objects, ""));
            let repository = Repository::open(Box::new(store)).unwrap();
            faults.plan(plan);
            let recorded = log().record(Some(&repository), &event("a", true)).unwrap();
            expected.push(recorded.id);
            let (trace, injected) = (faults.trace(), faults.injected());
            faults.plan(&[]);
            assert_eq!(injected.len(), plan.len(), "it did not come to this step");
            // A record that is said to be there is there.
            if let Some(index) = recorded.index {
                assert_eq!(index, expected.len() as u64 - 1);
                assert!(objects.length(&layout::audit_leaf(index)).is_ok());
            }
            let again = log().record(Some(&repository), &event("a", true)).unwrap();
            expected.push(again.id);
            assert_eq!(
                (again.index, again.waiting, again.trouble),
                (Some(expected.len() as u64 - 1), 0, None),
                "{injected:?}, {recorded:?}"
            );
            assert_eq!(ids(&log(), &objects), expected, "{injected:?}");
            assert_sound(&verify(&log(), &objects, &[]), expected.len() as u64);
            (trace, recorded)
        };
        let (trace, recorded) = run(&[]);
        assert_eq!(recorded.trouble, None);
        let mut counts: BTreeMap<Step, usize> = BTreeMap::new();
        trace.iter().for_each(|step| *counts.entry(step.operation).or_default() += 1);
        let mut runs = 0;
        for (operation, count) in counts {
            for fault in FAULTS.into_iter().filter(|fault| fault.fits(operation)) {
                // A bundle reads 255 records alike.
                let step = if count > 60 { count / 6 } else { 1 };
                for number in (0..count).step_by(step) {
                    let (_, recorded) = run(&[Rule::once(operation, number, fault)]);
                    runs += 1;
                    if let Some(Trouble::Distrusted(problem)) = recorded.trouble {
                        panic!("{operation:?} {number} {fault:?}: a fault of the store is called damage: {problem}");
                    }
                }
            }
        }
        eprintln!("{before} records, {waiting} waiting: {runs} runs");
        assert!(runs > 20);
    }
}

fn copy_directory(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

const CHILD: &str = "LIFEBOAT_TEST_AUDIT_CHILD";

/// What other processes run: appends to the log in a directory. `repository|journal|key file|others, separated by blanks|count`.
#[test]
#[ignore = "run by other tests, as a process of its own"]
fn child() {
    let text = std::env::var(CHILD).unwrap();
    let parts: Vec<&str> = text.split('|').collect();
    let [url, journal, key, others, count] = parts[..] else { panic!("{text}") };
    let key = AuditKey::parse(&std::fs::read_to_string(key).unwrap()).unwrap();
    let others = others.split_whitespace().map(|key| TrustedKey { key: key.parse().unwrap(), until: None }).collect();
    let log = Log::new(Path::new(journal), url, Some(key), others);
    let repository = Repository::open(store::open(url, &StoreOptions::default(), false).unwrap()).unwrap();
    for _ in 0..count.parse::<u32>().unwrap() {
        let recorded = log.record(Some(&repository), &event("child", true)).unwrap();
        assert_eq!(recorded.trouble, None);
    }
}

fn spawn(url: &str, journal: &Path, key: &Path, others: &[TrustedKey], count: u32) -> Child {
    let others: Vec<String> = others.iter().map(|one| one.key.to_string()).collect();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--test-threads=1"]).stdin(Stdio::null()).stdout(Stdio::null());
    command.env(CHILD, format!("{url}|{}|{}|{}|{count}", journal.display(), key.display(), others.join(" ")));
    command.spawn().unwrap()
}

/// A repository in a directory, two hosts with keys in files.
struct OnDisk {
    place: tempfile::TempDir,
    url: String,
    hosts: Vec<Host>,
}

impl OnDisk {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let url = place.path().join("repository").display().to_string();
        Repository::init(store::open(&url, &StoreOptions::default(), true).unwrap(), Timestamp::now(), "test").unwrap();
        let hosts = vec![Host::new("a"), Host::new("b")];
        for host in &hosts {
            std::fs::write(place.path().join(&host.name), &host.key).unwrap();
        }
        Self { place, url, hosts }
    }

    fn repository(&self) -> Repository {
        Repository::open(store::open(&self.url, &StoreOptions::default(), false).unwrap()).unwrap()
    }

    fn trusted(&self) -> Vec<TrustedKey> {
        self.hosts.iter().map(|host| host.trusted(None)).collect()
    }

    fn spawn(&self, host: &Host, count: u32) -> Child {
        spawn(&self.url, host.journal.path(), &self.place.path().join(&host.name), &self.trusted(), count)
    }

    fn log(&self, host: &Host) -> Log {
        Log::new(host.journal.path(), &self.url, Some(host.key()), self.trusted())
    }
}

#[test]
fn processes_of_two_hosts_append_at_once() {
    let disk = OnDisk::new();
    let (a, b) = (&disk.hosts[0], &disk.hosts[1]);
    // Two hosts, the first of them with two processes.
    let children = [disk.spawn(a, 50), disk.spawn(b, 50), disk.spawn(a, 20)];
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let repository = disk.repository();
    for (host, own) in [(a, 70), (b, 50)] {
        let log = disk.log(host);
        let report = audit::verify(&log, &repository, &[], Timestamp::now()).unwrap();
        assert_sound(&report, 120);
        assert_eq!((report.waiting, report.unknown_here), (0, 0));
        let listing = log.list(&repository).unwrap();
        let unique: BTreeSet<Id> = listing.records.iter().map(|record| record.event.id).collect();
        assert_eq!(unique.len(), 120);
        // Each host's own journal has its records, in the order of the log.
        let local = log.local().unwrap();
        assert_eq!(local.len(), own);
        let mut here: Vec<u64> = local.iter().map(|(index, _)| index.unwrap()).collect();
        here.sort_unstable();
        let there: Vec<u64> = listing.records.iter().filter(|record| record.signed_by == host.name).map(|record| record.index).collect();
        assert_eq!(here, there);
    }
}

#[test]
fn a_process_that_is_killed_leaves_nothing_wrong() {
    let disk = OnDisk::new();
    let host = &disk.hosts[0];
    let mut last = 0;
    for round in 0..12u64 {
        let mut child = disk.spawn(host, 100_000);
        // As soon as it has written something, and then a little later each time.
        let give_up = Instant::now() + Duration::from_secs(60);
        let leaves = Path::new(&disk.url).join("audit/leaf");
        let count = || std::fs::read_dir(&leaves).map_or(0, Iterator::count);
        while count() <= last {
            assert!(Instant::now() < give_up, "it writes nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(round * 700));
        child.kill().unwrap();
        child.wait().unwrap();
        last = count();
    }
    let repository = disk.repository();
    let log = disk.log(host);
    let recorded = log.record(Some(&repository), &event("a", true)).unwrap();
    assert_eq!((recorded.waiting, recorded.trouble), (0, None));
    let report = audit::verify(&log, &repository, &[], Timestamp::now()).unwrap();
    assert_eq!(report.findings, []);
    let listing = log.list(&repository).unwrap();
    let there: Vec<Id> = listing.records.iter().map(|record| record.event.id).collect();
    let here: Vec<Id> = log.local().unwrap().into_iter().map(|(_, event)| event.id).collect();
    // Everything that was written down, in this order, once.
    assert_eq!(there, here);
}

#[test]
fn replicas_have_the_log_and_each_place_is_sound_by_itself() {
    let place = tempfile::tempdir().unwrap();
    let urls = ["one", "two", "three"].map(|name| place.path().join(name).display().to_string());
    let options = StoreOptions::default();
    let primary = Repository::init(store::open(&urls[0], &options, true).unwrap(), Timestamp::now(), "test").unwrap();
    let members = |urls: &[String]| -> Vec<Member> {
        let parts = [Part::Required, Part::Required, Part::BestEffort];
        let member = |(url, part): (&String, Part)| {
            let (name, path) = (url.clone(), url.clone());
            Member { name, url: url.clone(), part, open: Box::new(move || store::open(&path, &StoreOptions::default(), true)) }
        };
        urls.iter().zip(parts).map(member).collect()
    };
    for url in &urls[1..] {
        let replica = store::open(url, &options, true).unwrap();
        replica.create(&layout::descriptor(), &primary.store().get(&layout::descriptor(), 1 << 20).unwrap()).unwrap();
    }
    let host = Host::new("db1");
    let spool = place.path().join("spool");
    let log = Log::new(host.journal.path(), &urls[0], Some(host.key()), vec![]);
    let everywhere = || store::open_members(members(&urls), Access::Write, &spool, Box::new(|_| {})).unwrap();
    for number in 0..3 {
        let recorded = log.record(Some(&everywhere()), &event("db1", true)).unwrap();
        assert_eq!((recorded.index, recorded.trouble), (Some(number), None));
    }
    // The primary has a record that a required replica did not take: it is brought there by the next one.
    let cut = urls[1].clone() + "/audit/leaf/0000000003";
    let recorded = {
        let repository = everywhere();
        std::fs::create_dir(&cut).unwrap();
        log.record(Some(&repository), &event("db1", true)).unwrap()
    };
    assert!(matches!(recorded.trouble, Some(Trouble::Waiting(_))), "{recorded:?}");
    std::fs::remove_dir(&cut).unwrap();
    let recorded = log.record(Some(&everywhere()), &event("db1", true)).unwrap();
    assert_eq!((recorded.index, recorded.waiting, recorded.trouble), (Some(4), 0, None));
    for url in &urls {
        let alone = Repository::open(store::open(url, &options, false).unwrap()).unwrap();
        let report = audit::verify(&log, &alone, &[], Timestamp::now()).unwrap();
        assert_sound(&report, 5);
    }
}

#[test]
fn replicate_brings_the_log_and_heals_it_and_copies_no_damage() {
    let (objects, a, b, _) = two_hosts(20);
    let log = a.log(&[b.trusted(None)]);
    let signing = SigningKey::generate().unwrap();
    let trust = Trust::from_pems([signing.public_key().to_pem().as_str()]).unwrap();
    let target = MemoryStore::default();
    replicate::adopt(&objects, &target).unwrap();
    let run = |mode| {
        let settings = ReplicateSettings { trust: &trust, mode, workers: 2, memory_bytes: 64 << 20 };
        replicate::run(&objects, &target, None, &settings, &Unwatched).unwrap()
    };
    let report = run(Mode::Listings);
    assert_eq!((report.copied, report.findings.len()), (60, 0));
    assert_sound(&verify(&log, &target, &[]), 20);
    for key in [layout::audit_leaf(3), layout::audit_tile(0, 0, 7), layout::audit_checkpoint(9)] {
        let whole = bytes(&target, &key);
        overwrite(&target, &key, &whole[..whole.len() - 3]);
        assert_eq!(run(Mode::Content).healed.count, 1, "{key}");
        assert_sound(&verify(&log, &target, &[]), 20);
        // The other way round nothing is brought, and it is said.
        overwrite(&objects, &key, &whole[..whole.len() - 3]);
        target.delete(&key).unwrap();
        let report = run(Mode::Listings);
        assert_eq!(report.findings.len(), 1, "{key}");
        assert!(target.length(&key).is_err(), "{key}");
        overwrite(&objects, &key, &whole);
        run(Mode::Listings);
    }
    assert_sound(&verify(&log, &target, &[]), 20);
}
