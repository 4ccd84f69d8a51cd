//! One repository in several places, of which any may fail at any moment: what was written counts, what was missed is healed, and no place
//! ever has a manifest without what it names.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::attestation::backup_statement;
use lifeboat_core::expire::Policy;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::manifest::{Manifest, PackEntry};
use lifeboat_core::repository::{Id, Sha256, to_json};
use lifeboat_core::verify::{FindingKind, Verdict, verdict};
use lifeboat_engine::backup::{self, ArtifactsSource, BackupRequest, Protection};
use lifeboat_engine::expire::{self, Author};
use lifeboat_engine::keys::Identities;
use lifeboat_engine::progress::Unwatched;
use lifeboat_engine::prune::{self, PruneSettings, Pruned};
use lifeboat_engine::replicate::{self, Mode, ReplicateReport, ReplicateSettings};
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::{KeyFileSigner, Signer as _, SigningKey, Trust};
use lifeboat_engine::store::{
    Access, Alone, Journal, Listed, Member, MemoryStore, NoteKind, ObjectWriter, Part, ReplicaError, Store, StoreError, journal_of,
    open_members,
};
use lifeboat_engine::verify::{self, VerifySettings};
use tempfile::TempDir;

/// When a place fails.
#[derive(Default)]
struct Faults {
    /// It answers nothing.
    down: AtomicBool,
    /// Requests until one fails, and whether all behind it fail too.
    countdown: Mutex<Option<(usize, bool)>>,
    requests: AtomicUsize,
}

impl Faults {
    fn fail_at(&self, request: usize, and_after: bool) {
        *self.countdown.lock().unwrap() = Some((request, and_after));
    }

    fn ask(&self, action: &'static str, key: &str, store: &str) -> Result<(), StoreError> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let mut countdown = self.countdown.lock().unwrap();
        let hit = match &mut *countdown {
            Some((0, true)) => true,
            Some((0, false)) => {
                *countdown = None;
                true
            }
            Some((left, _)) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if hit || self.down.load(Ordering::SeqCst) {
            let source = io::Error::new(io::ErrorKind::TimedOut, "nobody answers");
            return Err(StoreError::Io { action, key: key.to_owned(), store: store.to_owned(), source });
        }
        Ok(())
    }
}

/// A store in memory that outlives who opened it, and fails when it should.
#[derive(Clone)]
struct Place {
    name: &'static str,
    url: String,
    inner: Arc<MemoryStore>,
    faults: Arc<Faults>,
    /// What stands for other versions of its objects.
    versions: Option<Arc<MemoryStore>>,
}

impl Place {
    fn new(name: &'static str) -> Place {
        Place { name, url: format!("memory:{name}"), inner: Arc::default(), faults: Arc::default(), versions: None }
    }

    fn member(&self, part: Part) -> Member {
        let place = self.clone();
        let open = Box::new(move || Ok(Box::new(place.clone()) as Box<dyn Store>));
        Member { name: self.name.to_owned(), url: self.url.clone(), part, open }
    }

    fn keys(&self) -> BTreeSet<String> {
        let listed = self.inner.list("").unwrap();
        listed.into_iter().map(|listed| listed.key.to_string()).filter(|key| !key.starts_with("leases/")).collect()
    }

    fn damage(&self, key: &Key) {
        let mut bytes = self.inner.get(key, 1 << 30).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x20;
        self.inner.damage(key, Some(bytes));
    }
}

struct Writer<'a> {
    place: &'a Place,
    inner: Box<dyn ObjectWriter + 'a>,
}

impl ObjectWriter for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.place.faults.ask("write", "an object", &self.place.url)?;
        self.inner.write(bytes)
    }

    fn commit(self: Box<Self>, key: &Key) -> Result<(), StoreError> {
        self.place.faults.ask("write", key.as_str(), &self.place.url)?;
        self.inner.commit(key)
    }
}

impl Store for Place {
    fn url(&self) -> &str {
        &self.url
    }
    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        Ok(Box::new(Writer { place: self, inner: self.inner.writer()? }))
    }
    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.faults.ask("read", key.as_str(), &self.url)?;
        self.inner.get(key, limit)
    }
    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        self.faults.ask("read", key.as_str(), &self.url)?;
        self.inner.get_range(key, range, buffer)
    }
    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        self.faults.ask("read", key.as_str(), &self.url)?;
        self.inner.length(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.faults.ask("list", prefix, &self.url)?;
        self.inner.list(prefix)
    }
    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.faults.ask("list", prefix, &self.url)?;
        self.inner.list_segments(prefix)
    }
    fn is_empty(&self) -> Result<bool, StoreError> {
        self.inner.is_empty()
    }
    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.faults.ask("delete", key.as_str(), &self.url)?;
        self.inner.delete(key)
    }
    fn alternatives<'a>(&'a self, _: &Key) -> Result<Vec<Box<dyn Store + 'a>>, StoreError> {
        let version = |inner: &Arc<MemoryStore>| {
            let url = format!("{} (an older version)", self.url);
            Box::new(Place { name: self.name, url, inner: inner.clone(), faults: Arc::default(), versions: None }) as Box<dyn Store>
        };
        Ok(self.versions.iter().map(version).collect())
    }
}

/// A primary, two replicas, and a host that writes to them.
struct World {
    spool: TempDir,
    artifacts: TempDir,
    places: [Place; 3],
    parts: [Part; 3],
    signer: KeyFileSigner,
    trust: Trust,
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

impl World {
    /// The replicas are empty replicas already.
    fn new(second: Part, third: Part) -> World {
        let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
        let trust = Trust::new([signer.public_key().clone()]);
        let places = [Place::new("near"), Place::new("far"), Place::new("farther")];
        let world = World {
            spool: tempfile::tempdir().unwrap(),
            artifacts: tempfile::tempdir().unwrap(),
            places,
            parts: [Part::Required, second, third],
            signer,
            trust,
        };
        let primary = Repository::init(Box::new(world.places[0].clone()), Timestamp::now(), "test").unwrap();
        for replica in &world.places[1..] {
            replicate::adopt(primary.store(), replica).unwrap();
        }
        for number in 0..6 {
            world.artifact(&format!("builds/{number}"), &format!("content {number}").repeat(number * 4000));
        }
        world
    }

    fn artifact(&self, name: &str, content: &str) {
        let path = self.artifacts.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn open(&self, access: Access) -> Result<Repository, ReplicaError> {
        let members = self.places.iter().zip(self.parts).map(|(place, part)| place.member(part)).collect();
        open_members(members, access, self.spool.path(), Box::new(|_| {}))
    }

    /// What a process of later finds: whoever did not answer is asked again.
    fn forget_who_was_down(&self) {
        for place in &self.places {
            place.faults.down.store(false, Ordering::SeqCst);
            *place.faults.countdown.lock().unwrap() = None;
        }
        let mut directories = vec![self.spool.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap().flatten() {
                match entry.path() {
                    path if path.is_dir() => directories.push(path),
                    path if path.extension().is_some_and(|extension| extension == "down") => fs::remove_file(path).unwrap(),
                    _ => {}
                }
            }
        }
    }

    fn back_up(&self, repository: &Repository) -> Result<String, backup::BackupError> {
        let request = BackupRequest {
            name: "conductor".parse().unwrap(),
            host: "host".into(),
            program: "test".into(),
            postgres: None,
            artifacts: Some(ArtifactsSource {
                directory: Some(self.artifacts.path().to_owned()),
                allow_empty: false,
                reference_query: None,
            }),
            protection: Protection::Plain,
            signer: &self.signer,
            workers: 1,
            memory_bytes: 64 << 20,
            level: 1,
            bandwidth: None,
            audit: None,
        };
        backup::run(repository, &request, &Unwatched).map(|taken| taken.manifest.id.to_string())
    }

    fn author(&self) -> Author<'_> {
        Author { host: "host", by: "a test".into(), trust: &self.trust, signer: &self.signer, say: &|_| {} }
    }

    fn prune(&self, forget: &[&BackupId]) -> Pruned {
        let repository = self.open(Access::Write).unwrap();
        let forget = forget.iter().map(|id| (*id).clone()).collect();
        let settings = PruneSettings { trust: &self.trust, host: "host", keep_for: SignedDuration::ZERO, forget };
        prune::run(&repository, &settings, Timestamp::now() + SignedDuration::from_secs(1), &Unwatched).unwrap()
    }

    fn verdict(&self, place: &Place) -> Verdict {
        let repository = Repository::open(Box::new(Alone::new(Box::new(place.clone())))).unwrap();
        let settings =
            VerifySettings { trust: &self.trust, identities: Identities::default(), sample_percent: 100.0, sample_seed: 0, workers: 2 };
        // What there is of a backup without a manifest is garbage.
        let backups = repository.backups().unwrap().into_iter();
        let findings = backups.map(|id| verify::run(&repository, &id, &settings, &Unwatched).unwrap().findings);
        verdict(&findings.flatten().collect::<Vec<_>>())
    }

    /// c109: whatever a replica has of backups is whole.
    #[track_caller]
    fn assert_whole(&self, place: &Place, what: &str) {
        assert_eq!(self.verdict(place), Verdict::Verified, "{what}: {} has {:#?}", place.name, place.keys());
    }

    fn journal(&self, place: &Place) -> Journal {
        let id = Repository::open(Box::new(self.places[0].clone())).unwrap().descriptor().repository;
        journal_of(self.spool.path(), id, place.name)
    }

    fn replicate(&self, to: &Place, mode: Mode) -> Result<ReplicateReport, replicate::ReplicateError> {
        let settings = ReplicateSettings { trust: &self.trust, mode, workers: 3, memory_bytes: 256 << 20 };
        replicate::run(&self.places[0], to, Some(&self.journal(to)), &settings, &Unwatched)
    }

    #[track_caller]
    fn assert_in_step(&self, what: &str) {
        for replica in &self.places[1..] {
            assert_eq!(replica.keys(), self.places[0].keys(), "{what}: {}", replica.name);
            self.assert_whole(replica, what);
            assert!(self.journal(replica).read().unwrap().is_empty(), "{what}: {}", replica.name);
        }
    }
}

/// More requests than a small backup makes of one place.
const REQUESTS: usize = 400;

#[test]
fn a_backup_goes_to_every_place_and_the_lease_to_the_primary_alone() {
    let world = World::new(Part::Required, Part::BestEffort);
    let repository = world.open(Access::Write).unwrap();
    world.back_up(&repository).unwrap();
    assert!(repository.store().notes().is_empty());
    world.assert_in_step("nothing failed");
    assert_eq!(world.verdict(&world.places[0]), Verdict::Verified);
    let leases = |place: &Place| place.inner.list("leases/").unwrap().len();
    assert!(leases(&world.places[0]) > 0 && leases(&world.places[1]) + leases(&world.places[2]) == 0);
}

#[test]
fn c109_a_best_effort_replica_may_fail_at_any_request_and_is_healed() {
    for request in 0..REQUESTS {
        let world = World::new(Part::BestEffort, Part::BestEffort);
        world.places[1].faults.fail_at(request, request % 2 == 0);
        let what = format!("request {request} failed");
        // It may fail while it is opened, too.
        let repository = world.open(Access::Write).unwrap();
        world.back_up(&repository).unwrap();
        let struck = world.places[1].faults.countdown.lock().unwrap().is_none_or(|(left, _)| left == 0);
        if !struck {
            assert!(request > 20, "only {request} requests could fail");
            return;
        }
        world.forget_who_was_down();
        assert_eq!(world.verdict(&world.places[0]), Verdict::Verified, "{what}");
        world.assert_whole(&world.places[1], &what);
        if world.places[1].keys() != world.places[0].keys() {
            let notes = repository.store().notes();
            assert!(
                notes.iter().any(|note| matches!(note.kind, NoteKind::Missed | NoteKind::Withheld) && note.repository == "far"),
                "{what}"
            );
        }

        // A later backup, which changes little, does not reach it before it has what came before.
        world.artifact("builds/new", &format!("{request}"));
        world.back_up(&world.open(Access::Write).unwrap()).unwrap();
        world.assert_whole(&world.places[1], &what);

        let mode = if request % 3 == 0 { Mode::Missed } else { Mode::Listings };
        let report = world.replicate(&world.places[1], mode).unwrap();
        assert_eq!((report.findings.as_slice(), report.extra.count), ([].as_slice(), 0), "{what}");
        world.assert_in_step(&format!("{what}, {mode:?}"));
    }
    panic!("a backup makes more requests than were tried");
}

#[test]
fn a_required_replica_may_fail_at_any_request_and_the_next_run_succeeds() {
    for request in 0..REQUESTS {
        let world = World::new(Part::Required, Part::BestEffort);
        world.places[1].faults.fail_at(request, false);
        let what = format!("request {request} failed");
        let first = world.open(Access::Write).map(|repository| world.back_up(&repository).is_ok()).unwrap_or(false);
        let struck = world.places[1].faults.countdown.lock().unwrap().is_none();
        if !struck {
            assert!(first);
            return;
        }
        // It counts only when it is there as well.
        world.assert_whole(&world.places[1], &what);
        if first {
            assert_eq!(world.places[1].keys(), world.places[0].keys(), "{what}");
        }
        world.forget_who_was_down();
        world.replicate(&world.places[1], Mode::Listings).unwrap();
        let repository = world.open(Access::Write).unwrap();
        world.back_up(&repository).unwrap();
        let whole = |place: &Place| world.assert_whole(place, &what);
        whole(&world.places[1]);
        let missing: Vec<String> = world.places[0].keys().difference(&world.places[1].keys()).cloned().collect();
        assert!(missing.is_empty(), "{what}: {missing:#?}");
    }
    panic!("a backup makes more requests than were tried");
}

#[test]
fn when_the_primary_fails_nothing_is_committed_anywhere() {
    for request in 0..REQUESTS {
        let world = World::new(Part::Required, Part::BestEffort);
        let repository = world.open(Access::Write).unwrap();
        world.places[0].faults.fail_at(request, true);
        let taken = world.back_up(&repository);
        let struck = world.places[0].faults.countdown.lock().unwrap().is_some_and(|(left, _)| left == 0);
        world.forget_who_was_down();
        let manifests = |place: &Place| place.keys().into_iter().filter(|key| key.ends_with("/manifest.json")).collect::<BTreeSet<_>>();
        for replica in &world.places[1..] {
            assert!(manifests(replica).is_subset(&manifests(&world.places[0])), "request {request} failed");
            world.assert_whole(replica, &format!("request {request} failed"));
        }
        if !struck {
            taken.unwrap();
            return;
        }
    }
    panic!("a backup makes more requests than were tried");
}

#[test]
fn a_silent_replica_is_left_alone_for_a_while_and_not_for_ever() {
    let world = World::new(Part::BestEffort, Part::Required);
    world.places[1].faults.down.store(true, Ordering::SeqCst);
    let write =
        |number: u32| world.open(Access::Write).map(|repository| repository.store().create(&key(&format!("wal/1/{number}.json")), b"x"));
    write(0).unwrap().unwrap();
    let asked = |place: &Place| place.faults.requests.load(Ordering::SeqCst);
    let before = asked(&world.places[1]);
    let marks = || {
        let names = fs::read_dir(world.journal(&world.places[1]).directory()).unwrap().flatten();
        names
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "down"))
            .map(|entry| entry.metadata().unwrap().modified().unwrap())
            .collect::<Vec<_>>()
    };
    let mark = marks();
    assert_eq!(mark.len(), 1);
    // Later processes do not ask it, and do not make it wait for longer either.
    for number in 1..4 {
        write(number).unwrap().unwrap();
    }
    assert_eq!((asked(&world.places[1]), marks()), (before, mark));
    assert_eq!(world.journal(&world.places[1]).read().unwrap().entries.len(), 4);
    // One that is required is asked every time, and written to as soon as it answers.
    let repository = world.open(Access::Write).unwrap();
    world.places[2].faults.down.store(true, Ordering::SeqCst);
    let wal = key("wal/1/5.json");
    for _ in 0..2 {
        let before = asked(&world.places[2]);
        assert!(repository.store().create(&wal, b"x").is_err());
        assert!(asked(&world.places[2]) > before);
    }
    world.places[2].faults.down.store(false, Ordering::SeqCst);
    assert!(matches!(repository.store().create(&wal, b"x"), Err(StoreError::Exists { .. })));
    assert!(world.places[2].inner.length(&wal).is_ok());
}

#[test]
fn what_is_not_a_replica_is_not_written_to() {
    let mut world = World::new(Part::BestEffort, Part::BestEffort);
    // Empty: it is left alone, and said so; required: the run does not begin.
    world.places[2] = Place::new("blank");
    let repository = world.open(Access::Write).unwrap();
    world.back_up(&repository).unwrap();
    assert!(world.places[2].keys().is_empty());
    assert!(repository.store().notes().iter().any(|note| note.kind == NoteKind::Missed && note.repository == "blank"));
    world.parts[2] = Part::Required;
    assert!(matches!(world.open(Access::Write), Err(ReplicaError::Unusable { .. })));
    // Another repository: nobody may take it for this one, not even to read.
    Repository::init(Box::new(world.places[2].clone()), Timestamp::now(), "test").unwrap();
    for access in [Access::Write, Access::Read, Access::Prove] {
        assert!(matches!(world.open(access), Err(ReplicaError::OtherRepository { .. })), "{access:?}");
    }
    let refused = world.replicate(&world.places[2], Mode::Listings);
    assert!(matches!(refused, Err(replicate::ReplicateError::OtherRepository { .. })));
    let occupied = Place::new("occupied");
    occupied.inner.create(&key("somebody/else"), b"x").unwrap();
    assert!(matches!(world.replicate(&occupied, Mode::Listings), Err(replicate::ReplicateError::Occupied(_))));
}

#[test]
fn a_required_replica_that_missed_wal_gets_it_when_it_is_asked_for_again() {
    let world = World::new(Part::Required, Part::BestEffort);
    let sealed = {
        let bytes = b"wal".as_slice();
        lifeboat_engine::seal::seal_object("wal/1/00000001/00000001000000000000000A", &lifeboat_engine::seal::Sealing::Plain, bytes)
    };
    let wal = key("wal/1/00000001/00000001000000000000000A");
    let repository = world.open(Access::Write).unwrap();
    world.places[1].faults.down.store(true, Ordering::SeqCst);
    assert!(repository.store().create(&wal, &sealed).is_err(), "it is required");
    assert!(world.places[0].inner.length(&wal).is_ok(), "the primary has it");
    // The same process, and another one, while it is away: not there is not there.
    assert!(repository.store().length(&wal).is_err());
    assert!(matches!(world.open(Access::Write), Err(ReplicaError::Unusable { .. })));
    world.forget_who_was_down();
    let repository = world.open(Access::Write).unwrap();
    assert_eq!(repository.store().length(&wal).unwrap(), sealed.len() as u64);
    for place in &world.places {
        assert_eq!(place.inner.get(&wal, 1 << 20).unwrap(), sealed, "{}", place.name);
    }
    // Who creates it once more hears that it exists, and other bytes stay what they are.
    assert!(matches!(repository.store().create(&wal, b"other"), Err(StoreError::Exists { .. })));
    assert_eq!(world.places[1].inner.get(&wal, 1 << 20).unwrap(), sealed);
}

#[test]
fn reads_go_on_with_the_next_place_and_say_so() {
    let world = World::new(Part::BestEffort, Part::BestEffort);
    world.back_up(&world.open(Access::Write).unwrap()).unwrap();
    let run = world.places[0].keys().into_iter().find(|key| key.starts_with("artifacts/catalog/")).unwrap();
    let bytes = world.places[0].inner.get(&key(&run), 1 << 20).unwrap();

    // Missing in the primary.
    world.places[0].inner.damage(&key(&run), None);
    let repository = world.open(Access::Read).unwrap();
    assert_eq!(repository.store().get(&key(&run), 1 << 20).unwrap(), bytes);
    let notes = repository.store().notes();
    assert!(notes.len() == 1 && notes[0].kind == NoteKind::ReadAround && notes[0].repository == "far", "{notes:#?}");
    assert_eq!(notes[0].object.as_deref(), Some(run.as_str()));
    // Listings are of all places together.
    assert!(repository.store().list("artifacts/").unwrap().iter().any(|listed| listed.key.as_str() == run));
    // Cut.
    world.places[0].inner.damage(&key(&run), Some(bytes[..4].to_vec()));
    let mut buffer = Vec::new();
    repository.store().get_range(&key(&run), 0..bytes.len() as u64, &mut buffer).unwrap();
    assert_eq!(buffer, bytes);
    // Nothing is written through it.
    assert!(repository.store().create(&key("x"), b"x").is_err() && repository.store().delete(&key(&run)).is_err());
}

#[test]
fn nothing_is_absent_while_a_place_does_not_answer() {
    let world = World::new(Part::BestEffort, Part::KeptByStore);
    let absent = key("wal/1/00000001/00000001000000000000000B");
    let is_absent = |repository: &Repository| matches!(repository.store().length(&absent), Err(StoreError::NotFound { .. }));
    let proving = world.open(Access::Prove).unwrap();
    assert!(is_absent(&proving) && proving.store().list("wal/").unwrap().is_empty());
    // Mid-run, whichever of them.
    for place in &world.places {
        let proving = world.open(Access::Prove).unwrap();
        place.faults.down.store(true, Ordering::SeqCst);
        assert!(!is_absent(&proving), "{}", place.name);
        assert!(proving.store().list("wal/").is_err() && proving.store().list_segments("").is_err(), "{}", place.name);
        world.forget_who_was_down();
    }
    // From the beginning: a replica is left out and said so; the primary is not.
    world.places[1].faults.down.store(true, Ordering::SeqCst);
    assert!(is_absent(&world.open(Access::Prove).unwrap()));
    world.forget_who_was_down();
    world.places[0].faults.down.store(true, Ordering::SeqCst);
    let proving = world.open(Access::Prove).unwrap();
    assert!(!is_absent(&proving) && proving.store().list("").is_err());
    assert!(proving.store().get(&layout::descriptor(), 1 << 20).is_ok(), "what a replica has is there");
    // Who only reads what is there is told, and goes on.
    let reading = world.open(Access::Read).unwrap();
    assert!(is_absent(&reading) && reading.store().list("").is_ok());
    assert!(reading.store().notes().iter().any(|note| note.kind == NoteKind::LeftOut && note.repository == "near"));
    assert!(world.open(Access::Write).is_err(), "writing elsewhere is an act of people");
}

#[test]
fn c109_a_replica_is_whole_whenever_replication_is_killed() {
    let world = World::new(Part::BestEffort, Part::BestEffort);
    for other in &world.places[1..] {
        other.faults.down.store(true, Ordering::SeqCst);
    }
    for round in 0..3 {
        world.artifact("builds/round", &format!("{round}"));
        world.back_up(&world.open(Access::Write).unwrap()).unwrap();
    }
    world.forget_who_was_down();
    for request in 0..REQUESTS {
        let fresh = Place::new("fresh");
        fresh.faults.fail_at(request, true);
        let settings = ReplicateSettings { trust: &world.trust, mode: Mode::Listings, workers: 3, memory_bytes: 256 << 20 };
        let first = replicate::run(&world.places[0], &fresh, None, &settings, &Unwatched);
        fresh.faults.fail_at(usize::MAX, false);
        if fresh.inner.length(&layout::descriptor()).is_ok() {
            world.assert_whole(&fresh, &format!("killed at request {request}"));
        }
        let whole = first.is_ok();
        let again = replicate::run(&world.places[0], &fresh, None, &settings, &Unwatched).unwrap();
        assert!(again.findings.is_empty() && (again.copied == 0) == whole, "{request}: {again:#?}");
        assert_eq!(fresh.keys(), world.places[0].keys());
        if whole {
            assert!(request > 30);
            return;
        }
    }
    panic!("it makes more requests than were tried");
}

#[test]
fn damage_in_a_replica_is_healed_and_damage_in_the_source_is_not_spread() {
    let world = World::new(Part::BestEffort, Part::BestEffort);
    world.back_up(&world.open(Access::Write).unwrap()).unwrap();
    let keys = world.places[0].keys();
    for text in keys.iter().filter(|text| *text != "lifeboat.json") {
        let far = &world.places[1];
        // Of the same length, cut, and gone.
        far.damage(&key(text));
        // A changed bit in the middle of a bundle or head may leave it readable; then it differs, and is reported.
        let checked = world.replicate(far, Mode::Check).unwrap();
        assert_eq!(verdict(&checked.findings), Verdict::Failed, "{text}");
        assert!(checked.copied == 0 && checked.healed.count == 0);
        let healed = world.replicate(far, Mode::Content).unwrap();
        if healed.healed.count > 0 {
            // A manifest and its signature are healed together.
            assert!(healed.findings.is_empty(), "{text}: {healed:#?}");
        } else {
            assert!(healed.findings.iter().any(|finding| finding.object == *text), "{text}: {healed:#?}");
            far.inner.damage(&key(text), Some(world.places[0].inner.get(&key(text), 1 << 30).unwrap()));
        }
        assert_eq!(world.verdict(far), Verdict::Verified, "{text}");
        let good = far.inner.get(&key(text), 1 << 30).unwrap();
        far.inner.damage(&key(text), Some(good[..good.len() - 1].to_vec()));
        let healed = world.replicate(far, Mode::Listings).unwrap();
        // A document without its last newline is another document, and a sound one.
        let told = good.last() == Some(&b'\n') && healed.findings.iter().any(|finding| finding.object == *text);
        assert!(healed.healed.count > 0 || told, "{text}: {healed:#?}");
        far.inner.damage(&key(text), Some(good));
    }

    let blob = keys.iter().find(|text| text.starts_with("artifacts/blobs/")).unwrap();
    world.places[0].damage(&key(blob));
    let fresh = Place::new("fresh");
    let report = world.replicate(&fresh, Mode::Listings).unwrap();
    assert!(report.findings.iter().any(|finding| finding.object == *blob && finding.kind == FindingKind::Corrupt), "{report:#?}");
    assert!(!fresh.keys().contains(blob), "it was copied");
    // What names it waits, and is named.
    assert!(!fresh.keys().iter().any(|text| text.ends_with("/manifest.json") || text.starts_with("artifacts/heads/")));
    assert!(report.findings.iter().any(|finding| finding.object.ends_with("/manifest.json") && finding.kind == FindingKind::NotChecked));
    // From a replica that has it whole, it goes on; and the primary is healed from there as well.
    let settings = ReplicateSettings { trust: &world.trust, mode: Mode::Content, workers: 2, memory_bytes: 64 << 20 };
    let healed = replicate::run(&world.places[1], &world.places[0], None, &settings, &Unwatched).unwrap();
    assert!(healed.healed.count == 1 && healed.findings.is_empty(), "{healed:#?}");
    assert!(world.replicate(&fresh, Mode::Listings).unwrap().findings.is_empty());
    assert_eq!(fresh.keys(), keys);
}

#[test]
fn c109_what_the_source_has_lost_keeps_back_what_names_it() {
    let world = World::new(Part::BestEffort, Part::BestEffort);
    world.back_up(&world.open(Access::Write).unwrap()).unwrap();
    // Something that only a later run and a later head name.
    world.artifact("builds/later", "later");
    let second = world.back_up(&world.open(Access::Write).unwrap()).unwrap();
    let manifest = format!("{second}/manifest.json");
    let newest = String::from_utf8(world.places[0].inner.get(&key(&manifest), 1 << 20).unwrap()).unwrap();
    let keys = world.places[0].keys();
    for prefix in ["artifacts/blobs/", "artifacts/records/", "artifacts/catalog/"] {
        for lost in keys.iter().filter(|text| text.starts_with(prefix)) {
            let bytes = world.places[0].inner.get(&key(lost), 1 << 30).unwrap();
            world.places[0].inner.damage(&key(lost), None);
            for mode in [Mode::Listings, Mode::Content] {
                let fresh = Place::new("fresh");
                for round in 0..2 {
                    let report = world.replicate(&fresh, mode).unwrap();
                    let what = format!("{lost}, {mode:?}, {round}");
                    assert!(report.findings.iter().any(|finding| finding.problem.contains(lost)), "{what}: {report:#?}");
                    // A run that was merged into another is named by the first backup alone.
                    if !lost.starts_with("artifacts/catalog/") || newest.contains(lost.rsplit('/').next().unwrap()) {
                        let has = |text: &str| text == manifest || text.starts_with("artifacts/heads/");
                        assert!(!fresh.keys().iter().any(|text| has(text)), "{what}");
                    }
                    world.assert_whole(&fresh, &what);
                }
            }
            world.places[0].inner.damage(&key(lost), Some(bytes));
        }
    }
    let fresh = Place::new("fresh");
    assert!(world.replicate(&fresh, Mode::Listings).unwrap().findings.is_empty());
    assert_eq!(fresh.keys(), keys);
    // What both have lost is told by whoever looks at everything.
    let lost = keys.iter().find(|text| text.starts_with("artifacts/catalog/")).unwrap();
    for place in [&world.places[0], &fresh] {
        place.inner.damage(&key(lost), None);
    }
    let checked = world.replicate(&fresh, Mode::Check).unwrap();
    assert!(checked.findings.iter().any(|finding| finding.object == *lost && finding.kind == FindingKind::Missing), "{checked:#?}");
}

#[test]
fn c109_a_manifest_does_not_come_without_a_pack_that_the_source_has_lost() {
    let world = World::new(Part::BestEffort, Part::BestEffort);
    let id = world.back_up(&world.open(Access::Write).unwrap()).unwrap().parse().unwrap();
    // The same backup with a pack, signed again.
    let source = &world.places[0].inner;
    let mut manifest = Manifest::decode(&source.get(&layout::manifest(&id), 1 << 20).unwrap()).unwrap();
    let bytes = b"a pack".as_slice();
    let (sha256, pack_id) = (Sha256::of(bytes), Id([7; 16]));
    manifest.packs.push(PackEntry { sha256, id: pack_id, bytes: bytes.len() as u64 });
    let json = to_json(&manifest);
    let statement = backup_statement(&id.to_string(), Sha256::of(&json).0, serde_json::Value::Null);
    let bundle = world.signer.sign_statement(&statement.to_bytes()).unwrap();
    source.damage(&layout::manifest(&id), Some(json));
    source.damage(&layout::manifest_bundle(&id), Some(bundle.into_bytes()));
    for mode in [Mode::Listings, Mode::Content] {
        let fresh = Place::new("fresh");
        for _ in 0..2 {
            let report = world.replicate(&fresh, mode).unwrap();
            let lost = layout::pack(sha256);
            assert!(report.findings.iter().any(|finding| finding.problem.contains(lost.as_str())), "{mode:?}: {report:#?}");
            assert!(!fresh.keys().contains(layout::manifest(&id).as_str()), "{mode:?}");
        }
        source.create(&layout::pack(sha256), bytes).unwrap();
        assert!(world.replicate(&fresh, mode).unwrap().findings.is_empty(), "{mode:?}");
        assert_eq!(fresh.keys(), world.places[0].keys());
        // Lost in both, later.
        for place in [source, &fresh.inner] {
            place.damage(&layout::pack(sha256), None);
        }
        let report = world.replicate(&fresh, Mode::Check).unwrap();
        assert!(report.findings.len() == 1 && report.findings[0].kind == FindingKind::Missing, "{mode:?}: {report:#?}");
    }
}

#[test]
fn a_replica_whose_latest_version_is_stale_is_found_by_content() {
    let mut world = World::new(Part::BestEffort, Part::KeptByStore);
    world.back_up(&world.open(Access::Write).unwrap()).unwrap();
    // What the store replicates, it replicates whole; but the latest version of one object is an old one.
    for text in world.places[0].keys() {
        let bytes = world.places[0].inner.get(&key(&text), 1 << 30).unwrap();
        let _ = world.places[2].inner.create(&key(&text), &bytes);
    }
    assert!(world.replicate(&world.places[2], Mode::Check).unwrap().findings.is_empty());
    let pack = world.places[0].keys().into_iter().find(|key| key.starts_with("artifacts/catalog/")).unwrap();
    let good = world.places[0].inner.get(&key(&pack), 1 << 20).unwrap();
    let versions = MemoryStore::default();
    versions.create(&key(&pack), &good).unwrap();
    world.places[2].versions = Some(Arc::new(versions));
    world.places[2].inner.damage(&key(&pack), Some(vec![0x11; good.len()]));
    let report = world.replicate(&world.places[2], Mode::Check).unwrap();
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    assert!(report.findings[0].object == pack && report.findings[0].problem.contains("latest version is not the right one"), "{report:#?}");
    // Presence alone sees nothing.
    let settings = ReplicateSettings { trust: &world.trust, mode: Mode::Listings, workers: 2, memory_bytes: 64 << 20 };
    assert!(replicate::run(&world.places[0], &world.places[2], None, &settings, &Unwatched).unwrap().findings.is_empty());
}

#[test]
fn deletions_that_were_missed_are_caught_up_on_and_nothing_else_is_deleted() {
    let world = World::new(Part::BestEffort, Part::BestEffort);
    world.back_up(&world.open(Access::Write).unwrap()).unwrap();
    let pack = key("packs/aa/garbage");
    let repository = world.open(Access::Write).unwrap();
    repository.store().create(&pack, b"x").unwrap();
    world.places[1].faults.down.store(true, Ordering::SeqCst);
    repository.store().delete(&pack).unwrap();
    assert!(world.places[1].inner.length(&pack).is_ok() && world.places[2].inner.length(&pack).is_err());
    world.forget_who_was_down();
    let only_there = key("drills/x/report.json");
    world.places[1].inner.create(&only_there, b"{}").unwrap();
    let report = world.replicate(&world.places[1], Mode::Listings).unwrap();
    assert_eq!((report.deleted, report.extra.first.as_slice()), (1, [only_there.to_string()].as_slice()));
    assert!(world.places[1].inner.length(&pack).is_err() && world.places[1].inner.length(&only_there).is_ok());
}

/// Two backups in all places, the older of which has expired.
fn with_an_expired_backup() -> (World, BackupId) {
    let world = World::new(Part::BestEffort, Part::BestEffort);
    let repository = world.open(Access::Write).unwrap();
    let first = world.back_up(&repository).unwrap().parse().unwrap();
    world.artifact("builds/more", "more");
    world.back_up(&repository).unwrap();
    let policy = Policy { keep_last: 1, grace: SignedDuration::ZERO, ..Policy::default() };
    expire::run(&repository, policy, None, &world.author(), Timestamp::now()).unwrap();
    (world, first)
}

#[test]
fn c106_a_prune_that_was_killed_between_two_places_is_finished_by_the_next_one() {
    let (world, first) = with_an_expired_backup();
    // The primary's manifest was gone, and no other.
    world.places[0].inner.damage(&layout::manifest(&first), None);
    let prefix = layout::backup(&first);
    for round in 0..2 {
        let done = world.prune(&[]);
        assert!(done.plan.backups.blocked.is_empty(), "{round}: {:?}", done.plan.backups);
        for place in &world.places {
            assert!(!place.keys().iter().any(|text| text.starts_with(&prefix)), "{round}: {} has {:#?}", place.name, place.keys());
        }
    }
    // The same while a place does not answer.
    let (world, first) = with_an_expired_backup();
    world.places[0].inner.damage(&layout::manifest(&first), None);
    world.places[1].faults.down.store(true, Ordering::SeqCst);
    assert!(world.open(Access::Write).unwrap().store().create(&key("drills/x/report.html"), b"x").is_ok());
    world.prune(&[]);
    world.forget_who_was_down();
    assert!(world.prune(&[]).plan.backups.blocked.is_empty());
    world.replicate(&world.places[1], Mode::Listings).unwrap();
    assert!(world.places[1].inner.length(&layout::manifest(&first)).is_err());
    assert!(world.prune(&[]).plan.backups.blocked.is_empty());
}

#[test]
fn c106_a_backup_that_only_a_replica_has_is_given_up_there_as_well() {
    let (world, first) = with_an_expired_backup();
    let prefix = layout::backup(&first);
    let of_first = |place: &Place| place.keys().into_iter().filter(|text| text.starts_with(&prefix)).collect::<Vec<_>>();
    // Everything of it is gone here, and so is the mark in the other places.
    for place in &world.places {
        for text in of_first(place) {
            if place.name == "near" || text.contains("/expired/") {
                place.inner.damage(&key(&text), None);
            }
        }
    }
    assert_eq!(world.prune(&[]).plan.backups.blocked.len(), 2);
    let pinned = layout::pin(&first, &"audit".parse().unwrap());
    world.places[1].inner.create(&pinned, b"{}").unwrap();
    let held = world.prune(&[&first]).plan.backups.blocked;
    assert!(held.len() == 1 && held[0].contains("pin audit holds it"), "{held:?}");
    world.places[1].inner.damage(&pinned, None);
    let done = world.prune(&[&first]);
    assert!(done.plan.backups.blocked.is_empty() && done.plan.backups.leaves(&first), "{:?}", done.plan.backups);
    for place in &world.places {
        assert!(of_first(place).is_empty(), "{}", place.name);
    }
    assert!(world.prune(&[]).plan.backups.blocked.is_empty());
    world.assert_in_step("given up");
}

#[test]
fn two_sound_objects_of_one_key_are_told_and_left_alone() {
    let world = World::new(Part::BestEffort, Part::BestEffort);
    let gap = key("wal/1/cluster.json");
    world.places[0].inner.create(&gap, b"{\"a\":1}").unwrap();
    world.places[1].inner.create(&gap, b"{\"a\":2}").unwrap();
    let report = world.replicate(&world.places[1], Mode::Content).unwrap();
    assert!(report.findings.len() == 1 && report.findings[0].problem.contains("both are sound"), "{report:#?}");
    assert_eq!(world.places[1].inner.get(&gap, 100).unwrap(), b"{\"a\":2}");
    // A writer that meets it says so.
    let repository = world.open(Access::Write).unwrap();
    let other = key("wal/1/gaps/x.json");
    world.places[1].inner.create(&other, b"theirs").unwrap();
    repository.store().create(&other, b"ours").unwrap();
    assert!(repository.store().notes().iter().any(|note| note.kind == NoteKind::Differs && note.repository == "far"));
    assert!(Path::new(world.spool.path()).exists());
}
