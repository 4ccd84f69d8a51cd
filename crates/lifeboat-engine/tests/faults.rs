//! Every single operation of everything that lifeboat does fails once, in every way that fits it.
//!
//! A sweep runs something once to see what it asks of the store, and then again for each of these steps and each [`Fault`] that fits, on a
//! fresh copy of the repository. Whatever happens, it must have been right about it: done is done, an error says what went wrong, and a
//! fault of the store is never called damage. Afterwards, without faults, everything in the repository verifies, and the same thing done
//! again succeeds. To sweep something new, say how it begins and what must hold when it is done: see [`Sweep`].

#[expect(dead_code, reason = "shared with the tests of the PostgreSQL client, which use more of it")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use lifeboat_core::repository::layout::{self, ArtifactName};
use lifeboat_core::repository::lease::Lease;
use lifeboat_core::repository::to_json;
use lifeboat_core::verify::{FindingKind, Verdict, verdict};
use lifeboat_engine::artifacts::{self, ArtifactError, ArtifactSet, Reader, Sample, SyncOptions, Writer};
use lifeboat_engine::backup::{self, ArtifactsSource, BackupError, BackupRequest, Protection};
use lifeboat_engine::causes;
use lifeboat_engine::keys::{Identities, Recipient, generate_identity};
use lifeboat_engine::lease::LeaseError;
use lifeboat_engine::opened_backup;
use lifeboat_engine::progress::Unwatched;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::{KeyFileSigner, SigningKey, Trust};
use lifeboat_engine::store::{Fault, Faults, FaultyStore, INJECTED, MemoryStore, Operation, Rule, Store as _};
use lifeboat_engine::verify::{self, VerifySettings};

/// What the store itself calls a failure.
const FAILURES: [Fault; 5] = [Fault::Transient, Fault::Refused, Fault::Denied, Fault::Full, Fault::AnswerLost];

/// What arrives otherwise than it is stored.
const SPOILS: [Fault; 3] = [Fault::Short, Fault::Truncated, Fault::Corrupt];

/// Listings that lag behind.
const STALE: [Fault; 2] = [Fault::Stale(1), Fault::Stale(3)];

/// What came of an operation.
#[derive(Debug)]
enum Said {
    /// It says that it is done, or that all is well.
    Done,
    /// It did what it could and says what is wrong: kind, and the whole text.
    Findings(Vec<(FindingKind, String)>),
    /// It failed and says why.
    Failed(String),
}

fn failed(error: &dyn std::error::Error) -> Said {
    Said::Failed(causes::joined(error))
}

/// A repository as it stands before an operation.
struct Start {
    objects: MemoryStore,
    created: Vec<layout::Key>,
}

/// A copy of it, with faults in front.
struct Copy {
    objects: MemoryStore,
    repository: Repository,
    faults: Faults,
}

impl Start {
    /// What is there after `prepare` ran on an empty repository.
    fn after(prepare: impl FnOnce(&Repository)) -> Self {
        let objects = MemoryStore::default();
        let (store, faults) = FaultyStore::new(Box::new(objects.clone()));
        prepare(&Repository::init(Box::new(store), Timestamp::UNIX_EPOCH, "test").unwrap());
        Self { objects, created: faults.created() }
    }

    fn copy(&self) -> Copy {
        let objects = self.objects.snapshot();
        let (store, faults) = FaultyStore::new(Box::new(objects.clone()));
        faults.remember(self.created.clone());
        Copy { objects, repository: Repository::open(Box::new(store)).unwrap(), faults }
    }
}

/// One operation, and what is known of it.
struct Sweep<'a> {
    name: &'a str,
    /// Does it.
    run: &'a dyn Fn(&Repository) -> Said,
    /// Holds whenever it said that it is done.
    done: &'a dyn Fn(&Repository),
    /// Holds afterwards, whatever it said.
    after: &'a dyn Fn(&Repository),
    /// It only looks: no fault may be passed over in silence, but a listing's.
    looks: bool,
    faults: &'a [Fault],
}

/// Names the step where a test fails in the middle of it.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("it was: {}", self.0);
        }
    }
}

impl Sweep<'_> {
    /// Every step, every fault; returns how many runs that were.
    fn all(&self, start: &Start) -> usize {
        let cases = self.cases(start);
        for (operation, number, fault) in &cases {
            self.case(start, *operation, *number, *fault);
        }
        eprintln!("{}: {} runs", self.name, cases.len());
        cases.len()
    }

    /// What there is to sweep.
    fn cases(&self, start: &Start) -> Vec<(Operation, usize, Fault)> {
        let _named = Named(format!("{}, without faults", self.name));
        let copy = start.copy();
        copy.faults.plan(&[]);
        let said = (self.run)(&copy.repository);
        assert!(matches!(said, Said::Done), "{said:?}");
        let mut counts: BTreeMap<Operation, usize> = BTreeMap::new();
        for step in copy.faults.trace() {
            *counts.entry(step.operation).or_default() += 1;
        }
        (self.done)(&copy.repository);
        (self.after)(&copy.repository);
        eprintln!("{}: {counts:?}", self.name);
        let cases = counts.into_iter().flat_map(|(operation, count)| {
            // Whatever the reason, a writer that fails before its end has written nothing: two reasons are enough.
            let is_half = matches!(operation, Operation::Begin | Operation::Write);
            let enough = move |fault: &Fault| !is_half || matches!(fault, Fault::Transient | Fault::Full);
            let faults = self.faults.iter().filter(move |fault| fault.fits(operation) && enough(fault));
            faults.flat_map(move |fault| (0..count).map(move |number| (operation, number, *fault)))
        });
        cases.collect()
    }

    fn case(&self, start: &Start, operation: Operation, number: usize, fault: Fault) {
        let mut named = Named(format!("{}, {operation:?} {number}, {fault:?}", self.name));
        let copy = start.copy();
        copy.faults.plan(&[Rule::once(operation, number, fault)]);
        let said = (self.run)(&copy.repository);
        let injected = copy.faults.injected();
        named.0.push_str(&format!(", {injected:?}: {said:?}"));
        assert_eq!(injected.len(), 1, "it did not come to this step");
        copy.faults.plan(&[]);
        self.judge(fault, &said);
        // The process is gone: what it could not give back is free.
        bury_leases(&copy);
        if matches!(said, Said::Done) {
            (self.done)(&copy.repository);
        }
        (self.after)(&copy.repository);
        let again = (self.run)(&copy.repository);
        named.0.push_str(&format!("; again: {again:?}"));
        assert!(matches!(again, Said::Done), "it does not succeed afterwards");
        (self.done)(&copy.repository);
        (self.after)(&copy.repository);
    }

    /// Whether what was said is what happened.
    fn judge(&self, fault: Fault, said: &Said) {
        let names_it = |text: &str| text.contains(INJECTED) || fault == Fault::Full && text.contains("no space left");
        match said {
            Said::Done if self.looks => assert!(matches!(fault, Fault::Stale(_)), "a fault was passed over"),
            Said::Done => {}
            Said::Failed(text) => {
                assert!(!text.is_empty());
                // What it was is in the error; what it was not is not.
                if fault.is_error() && fault != Fault::Short {
                    assert!(names_it(text), "the error does not say what happened");
                    for word in ["corrupt", "missing", "damaged"] {
                        assert!(!text.contains(word), "a fault of the store is called damage");
                    }
                }
            }
            Said::Findings(findings) => {
                for (kind, text) in findings {
                    if fault.is_error() && fault != Fault::Short {
                        assert!(*kind == FindingKind::NotChecked && names_it(text), "a fault of the store is called damage");
                    }
                }
            }
        }
    }
}

/// Leases that nobody gave back end as those of a process that died: at once on its host.
fn bury_leases(copy: &Copy) {
    for purpose in copy.objects.list_segments("leases/").unwrap() {
        let listed = copy.objects.list(&format!("leases/{purpose}")).unwrap();
        let newest = &listed.last().expect("it is there because of an object").key;
        let lease: Lease = serde_json::from_slice(&copy.objects.get(newest, 1 << 20).unwrap()).unwrap();
        assert_eq!((lease.host.as_str(), lease.pid), (HOST, std::process::id()));
        if !lease.released {
            copy.objects.damage(newest, Some(to_json(&Lease { pid: u32::MAX, ..lease })));
        }
    }
}

const HOST: &str = "host";

/// Keys, and a directory of artifacts.
struct World {
    signer: KeyFileSigner,
    trust: Trust,
    identities: Identities,
    recipient: Recipient,
    place: tempfile::TempDir,
    serial: AtomicUsize,
}

impl World {
    fn new() -> Self {
        let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
        let trust = Trust::new([signer.public_key().clone()]);
        let (text, recipient) = generate_identity(Timestamp::UNIX_EPOCH);
        let world = Self {
            signer,
            trust,
            identities: Identities::parse(&text).unwrap(),
            recipient,
            place: tempfile::tempdir().unwrap(),
            serial: AtomicUsize::new(0),
        };
        fs::create_dir(world.directory()).unwrap();
        world.file("builds/1/log.txt", b"all is well\n");
        world.file("builds/2/result.bin", &noise(300_000));
        world.file("empty", b"");
        world
    }

    fn directory(&self) -> PathBuf {
        self.place.path().join("artifacts")
    }

    /// A place that nobody has used.
    fn fresh(&self) -> PathBuf {
        self.place.path().join(format!("fresh-{}", self.serial.fetch_add(1, Ordering::Relaxed)))
    }

    /// A file of the artifact directory that was last changed long ago.
    fn file(&self, name: &str, content: &[u8]) {
        let path = self.directory().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
    }

    /// What changes after the first backup: something new, something long, something else, something gone.
    fn change(&self) {
        self.file("builds/3/long.bin", &noise(2_500_000));
        self.file("builds/1/log.txt", b"it broke\n");
        fs::remove_file(self.directory().join("empty")).unwrap();
    }

    fn protection(&self) -> Protection {
        Protection::Recipients { recipients: vec![self.recipient.clone()], host: None }
    }

    fn request(&self, postgres: Option<backup::PostgresSource>) -> BackupRequest<'_> {
        let directory = Some(self.directory());
        BackupRequest {
            name: "conductor".parse().unwrap(),
            host: HOST.into(),
            program: "test".into(),
            postgres,
            artifacts: Some(ArtifactsSource { directory, allow_empty: false, reference_query: None }),
            protection: self.protection(),
            signer: &self.signer,
            workers: 1,
            memory_bytes: 64 << 20,
            level: 1,
            bandwidth: None,
            audit: None,
        }
    }

    fn take(&self, repository: &Repository, postgres: Option<backup::PostgresSource>) -> Said {
        match backup::run(repository, &self.request(postgres), &Unwatched) {
            Ok(_) => Said::Done,
            Err(error) => failed(&error),
        }
    }

    fn back_up(&self, repository: &Repository) -> Said {
        self.take(repository, None)
    }

    fn writer<'a>(&'a self, repository: &'a Repository) -> Writer<'a> {
        Writer::new(repository, &self.signer, Some(std::slice::from_ref(&self.recipient))).unwrap()
    }

    fn reader<'a>(&'a self, repository: &'a Repository) -> Reader<'a> {
        Reader::new(repository, &self.trust, self.identities.clone())
    }

    fn verify_settings(&self) -> VerifySettings<'_> {
        VerifySettings { trust: &self.trust, identities: self.identities.clone(), sample_percent: 100.0, sample_seed: 0, workers: 1 }
    }

    /// Everything that a repository lists is whole.
    fn sound(&self, repository: &Repository) {
        for id in repository.backups().unwrap() {
            let report = verify::run(repository, &id, &self.verify_settings(), &Unwatched).unwrap();
            assert_eq!(verdict(&report.findings), Verdict::Verified, "{:?}", report.findings);
        }
        let (head, set) = ArtifactSet::newest(repository).unwrap();
        let expected = head.map_or((0, 0), |head| (head.count, head.bytes));
        let sample = Sample { percent: 100, seed: 0, open: true };
        let report = artifacts::verify_set(&self.reader(repository), set, expected, sample, 1, &Unwatched).unwrap();
        assert!(report.findings.is_empty() && (report.artifacts, report.bytes) == expected, "{report:?}");
    }

    /// The newest backup has every artifact as it is in the directory.
    fn newest_is_complete(&self, repository: &Repository) {
        let id = repository.backups().unwrap().pop().expect("there is a backup");
        let manifest = opened_backup::open(repository, &id, &self.trust).unwrap().manifest;
        let entry = manifest.artifacts.unwrap();
        let set = ArtifactSet::new(repository.store(), entry.runs);
        let to = self.fresh();
        let report = artifacts::restore_set(&self.reader(repository), set, (entry.count, entry.bytes), &to, 1, &Unwatched).unwrap();
        assert!(report.findings.is_empty(), "{report:?}");
        assert!(tree(&to) == tree(&self.directory()));
        fs::remove_dir_all(to).unwrap();
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&bytes.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Every file below a directory, with its content.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, at: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                walk(root, &path, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

fn artifact_findings(findings: &artifacts::Finding) -> (FindingKind, String) {
    let found = verify::artifact_finding(None, findings);
    (found.kind, found.problem)
}

fn of_artifacts(error: &ArtifactError) -> Said {
    match error {
        ArtifactError::Finding(finding) => Said::Findings(vec![artifact_findings(finding)]),
        error => failed(error),
    }
}

fn name(text: &str) -> ArtifactName {
    text.parse().unwrap()
}

fn all_faults() -> Vec<Fault> {
    [&FAILURES[..], &SPOILS, &STALE].concat()
}

#[test]
fn c101_c102_the_first_backup_survives_every_fault() {
    let world = World::new();
    let sweep = Sweep {
        name: "first backup",
        run: &|repository| world.back_up(repository),
        done: &|repository| world.newest_is_complete(repository),
        after: &|repository| world.sound(repository),
        looks: false,
        faults: &all_faults(),
    };
    assert!(sweep.all(&Start::after(|_| {})) > 50);
}

#[test]
fn c101_c102_a_later_backup_survives_every_fault() {
    let world = World::new();
    let start = Start::after(|repository| assert!(matches!(world.back_up(repository), Said::Done)));
    world.change();
    let before = start.copy().repository.backups().unwrap();
    let sweep = Sweep {
        name: "later backup",
        run: &|repository| world.back_up(repository),
        done: &|repository| {
            assert!(repository.backups().unwrap().len() > before.len());
            world.newest_is_complete(repository);
        },
        after: &|repository| {
            assert!(repository.backups().unwrap().starts_with(&before));
            world.sound(repository);
        },
        looks: false,
        faults: &all_faults(),
    };
    assert!(sweep.all(&start) > 50);
}

#[test]
fn c101_artifacts_survive_every_fault() {
    let world = World::new();
    let options = SyncOptions { threads: 1, read_all: false, allow_empty: false };
    let start = Start::after(|repository| drop(world.writer(repository).sync(&world.directory(), options, &Unwatched).unwrap()));
    world.change();
    let names = |repository: &Repository| {
        ArtifactSet::newest(repository).unwrap().1.entries("").map(|entry| entry.unwrap().name.to_string()).collect::<Vec<_>>()
    };
    let sync = Sweep {
        name: "artifact sync",
        run: &|repository| match world.writer(repository).sync(&world.directory(), options, &Unwatched) {
            Ok(_) => Said::Done,
            Err(error) => of_artifacts(&error),
        },
        done: &|repository| assert_eq!(names(repository), ["builds/1/log.txt", "builds/2/result.bin", "builds/3/long.bin"]),
        after: &|repository| world.sound(repository),
        looks: false,
        faults: &all_faults(),
    };
    sync.all(&start);

    for content in [b"short".to_vec(), noise(1_500_000)] {
        let put = Sweep {
            name: "artifact put",
            run: &|repository| {
                let (mut input, spool) = (&content[..], world.place.path());
                let source = artifacts::Source::Stream { input: &mut input, spool };
                match world.writer(repository).put(&name("a/b"), source) {
                    Ok(_) => Said::Done,
                    Err(error) => of_artifacts(&error),
                }
            },
            done: &|repository| {
                let (mut out, set) = (Vec::new(), ArtifactSet::newest(repository).unwrap().1);
                world.reader(repository).get_to_writer(&set, &name("a/b"), None, &mut out).unwrap();
                assert!(out == content);
                assert_eq!(set.entries("").count(), 4);
            },
            after: &|repository| world.sound(repository),
            looks: false,
            faults: &all_faults(),
        };
        put.all(&start);
    }

    // What is read is right or not given.
    let full = Start::after(|repository| drop(world.writer(repository).sync(&world.directory(), options, &Unwatched).unwrap()));
    for wanted in ["builds/1/log.txt", "builds/3/long.bin"] {
        let get = Sweep {
            name: "artifact get",
            run: &|repository| {
                let mut out = Vec::new();
                let got = ArtifactSet::newest(repository)
                    .and_then(|(_, set)| world.reader(repository).get_to_writer(&set, &name(wanted), None, &mut out));
                match got {
                    Ok(_) => {
                        assert!(out == fs::read(world.directory().join(wanted)).unwrap());
                        Said::Done
                    }
                    Err(error) => {
                        assert!(out.is_empty() || wanted.ends_with("long.bin"), "what is short is given out whole or not at all");
                        of_artifacts(&error)
                    }
                }
            },
            done: &|_| {},
            after: &|_| {},
            looks: true,
            faults: &[&FAILURES[..], &SPOILS].concat(),
        };
        get.all(&full);
    }

    let verified = Sweep {
        name: "artifact verify",
        run: &|repository| {
            let sample = Sample { percent: 100, seed: 0, open: true };
            let found = ArtifactSet::newest(repository)
                .and_then(|(_, set)| artifacts::verify_set(&world.reader(repository), set, (3, 0), sample, 1, &Unwatched));
            match found {
                Ok(report) if report.findings.is_empty() => {
                    assert_eq!((report.artifacts, report.signatures_verified, report.blobs_opened), (3, 3, 3));
                    Said::Done
                }
                Ok(report) => {
                    assert!(report.artifacts == 3 || report.findings.first.iter().any(|finding| finding.name.is_none()));
                    Said::Findings(report.findings.first.iter().map(artifact_findings).collect())
                }
                Err(error) => of_artifacts(&error),
            }
        },
        done: &|_| {},
        after: &|_| {},
        looks: true,
        faults: &[&FAILURES[..], &SPOILS].concat(),
    };
    verified.all(&full);

    let restored = Sweep {
        name: "artifact restore",
        run: &|repository| {
            let to = world.fresh();
            let found = ArtifactSet::newest(repository)
                .and_then(|(_, set)| artifacts::restore_set(&world.reader(repository), set, (3, 0), &to, 1, &Unwatched));
            // Whatever has a name is what it should be.
            let (there, expected) = (if to.exists() { tree(&to) } else { BTreeMap::new() }, tree(&world.directory()));
            assert!(there.iter().all(|(path, bytes)| expected.get(path) == Some(bytes)));
            let said = match found {
                Ok(report) if report.findings.is_empty() => {
                    assert_eq!(there.len(), expected.len());
                    Said::Done
                }
                Ok(report) => {
                    assert!(report.restored < 3 && there.len() as u64 == report.restored);
                    Said::Findings(report.findings.first.iter().map(artifact_findings).collect())
                }
                Err(error) => of_artifacts(&error),
            };
            let _ = fs::remove_dir_all(to);
            said
        },
        done: &|_| {},
        after: &|_| {},
        looks: true,
        faults: &[&FAILURES[..], &SPOILS].concat(),
    };
    restored.all(&full);
}

#[test]
fn c114_a_verification_never_passes_over_a_fault_and_never_calls_it_damage() {
    let world = World::new();
    world.change();
    let start = Start::after(|repository| assert!(matches!(world.back_up(repository), Said::Done)));
    let run = |repository: &Repository| {
        let id = match repository.backups() {
            Ok(mut ids) => ids.pop().expect("there is a backup"),
            Err(error) => return failed(&error),
        };
        match verify::run(repository, &id, &world.verify_settings(), &Unwatched) {
            Ok(report) if verdict(&report.findings) == Verdict::Verified => {
                assert_eq!((report.objects, report.artifacts), (report.objects_total, 3));
                Said::Done
            }
            Ok(report) => Said::Findings(report.findings.into_iter().map(|finding| (finding.kind, finding.problem)).collect()),
            Err(error) => failed(&error),
        }
    };
    let sweep = Sweep { name: "verify", run: &run, done: &|_| {}, after: &|_| {}, looks: true, faults: &[&FAILURES[..], &SPOILS].concat() };
    assert!(sweep.all(&start) > 30);
}

#[test]
fn c101_making_a_repository_survives_every_fault() {
    for operation in [Operation::Length, Operation::Empty, Operation::Create] {
        for fault in all_faults().into_iter().filter(|fault| fault.fits(operation)) {
            let _named = Named(format!("init, {operation:?}, {fault:?}"));
            let objects = MemoryStore::default();
            let (store, faults) = FaultyStore::new(Box::new(objects.clone()));
            faults.plan(&[Rule::once(operation, 0, fault)]);
            let made = Repository::init(Box::new(store), Timestamp::UNIX_EPOCH, "test");
            assert_eq!(faults.injected().len(), 1);
            let there = Repository::open(Box::new(objects.clone())).map(|repository| repository.descriptor().repository);
            match made {
                Ok(made) => assert_eq!(made.descriptor().repository, there.unwrap()),
                Err(error) => {
                    assert!(causes::joined(&error).contains(INJECTED) || fault == Fault::Full, "{error}");
                    // Either nothing is there, and it can be made; or it is whole.
                    if there.is_err() {
                        Repository::init(Box::new(objects), Timestamp::UNIX_EPOCH, "test").unwrap();
                    }
                }
            }
        }
    }
}

/// What decides what is kept, and takes the rest away.
mod retention {
    use lifeboat_core::expire::{Fate, Policy};
    use lifeboat_core::repository::backup_id::BackupId;
    use lifeboat_engine::expire::{self, Author};
    use lifeboat_engine::pin;
    use lifeboat_engine::prune::{self, PruneSettings};
    use lifeboat_engine::retention::RetentionError;

    use super::*;

    const POLICY: Policy = Policy {
        keep_last: 1,
        keep_daily: 0,
        keep_weekly: 0,
        keep_monthly: 0,
        keep_yearly: 0,
        recovery_window: None,
        grace: jiff::SignedDuration::ZERO,
    };

    fn author(world: &World) -> Author<'_> {
        Author { host: HOST, by: "a test".into(), trust: &world.trust, signer: &world.signer, say: &|_| {} }
    }

    /// A repository with two backups.
    fn two(world: &World) -> (Start, [BackupId; 2]) {
        let start = Start::after(|repository| {
            assert!(matches!(world.back_up(repository), Said::Done));
            world.change();
            assert!(matches!(world.back_up(repository), Said::Done));
        });
        let ids = start.copy().repository.backups().unwrap();
        (start, ids.try_into().expect("two"))
    }

    fn below(repository: &Repository, id: &BackupId, name: &str) -> usize {
        repository.store().list(&format!("{id}/{name}")).unwrap().len()
    }

    fn expire(world: &World, repository: &Repository) -> Said {
        match expire::run(repository, POLICY, None, &author(world), Timestamp::now()) {
            // A backup that could not be read is kept, with a reason.
            Ok(plan) if plan.decisions.iter().all(|decision| decision.fate == Fate::Keep) => {
                let reasons: Vec<&str> = plan.decisions.iter().flat_map(|decision| &decision.reasons).map(String::as_str).collect();
                Said::Findings(vec![(FindingKind::NotChecked, reasons.join("; "))])
            }
            Ok(_) => Said::Done,
            Err(error) => failed(&error),
        }
    }

    #[test]
    fn c101_expiry_and_pins_survive_every_fault() {
        let world = World::new();
        let (start, [first, last]) = two(&world);
        let sweep = Sweep {
            name: "expire",
            run: &|repository| expire(&world, repository),
            done: &|repository| assert_eq!(below(repository, &first, "expired/"), 1),
            after: &|repository| {
                assert_eq!(below(repository, &last, "expired/"), 0);
                assert_eq!(repository.backups().unwrap(), [first.clone(), last.clone()]);
                world.sound(repository);
            },
            looks: false,
            faults: &[&FAILURES[..], &SPOILS].concat(),
        };
        sweep.all(&start);

        let pin = Sweep {
            name: "pin",
            run: &|repository| {
                let name = "audit".parse().unwrap();
                match pin::pin(repository, &first, &name, "a test", None, &author(&world), Timestamp::now()) {
                    // Done again it is there already.
                    Ok(()) | Err(RetentionError::PinExists { .. }) => Said::Done,
                    Err(error) => failed(&error),
                }
            },
            done: &|repository| {
                assert_eq!(below(repository, &first, "pins/"), 1);
                assert!(!matches!(expire(&world, repository), Said::Failed(_)));
                assert_eq!(below(repository, &first, "expired/"), 0, "it is held");
            },
            after: &|repository| world.sound(repository),
            looks: false,
            faults: &[&FAILURES[..], &SPOILS].concat(),
        };
        pin.all(&start);
    }

    #[test]
    fn c101_a_prune_survives_every_fault() {
        let world = World::new();
        let (start, [first, last]) = two(&world);
        let copy = start.copy();
        assert!(matches!(expire(&world, &copy.repository), Said::Done));
        let start = Start { objects: copy.objects, created: copy.faults.created() };
        let settings = PruneSettings { trust: &world.trust, host: HOST, keep_for: jiff::SignedDuration::ZERO, forget: BTreeSet::new() };
        let later = Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let runs = AtomicUsize::new(0);
        let sweep = Sweep {
            name: "prune",
            run: &|repository| match prune::run(repository, &settings, later, &Unwatched) {
                // Where a backup cannot be read, nobody knows what it needs, and nothing goes; where a mark cannot, its backup stays.
                Ok(pruned) if !pruned.plan.backups.blocked.is_empty() || !pruned.plan.warnings.is_empty() => {
                    let text = format!("{:?} {:?}", pruned.plan.backups.blocked, pruned.plan.warnings);
                    Said::Findings(vec![(FindingKind::NotChecked, text)])
                }
                Ok(pruned) if pruned.held == 0 => Said::Done,
                Ok(pruned) => Said::Findings(pruned.held_first.into_iter().map(|text| (FindingKind::NotChecked, text)).collect()),
                Err(error) => failed(&error),
            },
            done: &|repository| {
                assert_eq!(below(repository, &first, ""), 0);
                // What is left is enough for whoever comes next. Looked at in one case of four: it takes longer than all the rest.
                if !runs.fetch_add(1, Ordering::Relaxed).is_multiple_of(4) {
                    return;
                }
                assert!(matches!(world.back_up(repository), Said::Done));
                world.newest_is_complete(repository);
            },
            after: &|repository| {
                assert!(repository.backups().unwrap().contains(&last), "what nobody let go is gone");
                world.sound(repository);
            },
            looks: false,
            // Of a store whose listings lag behind nothing can be pruned: what is needed is known from a listing.
            faults: &[&FAILURES[..], &SPOILS].concat(),
        };
        assert!(sweep.all(&start) > 50);
    }
}

/// WAL of a server that is not there: segments of 1 MiB that are nothing but their header and noise.
mod wal {
    use lifeboat_core::wal::fetch::Bounds;
    use lifeboat_core::wal::file::WalFile;
    use lifeboat_core::wal::file::WalPredicate;
    use lifeboat_core::wal::{LONG_HEADER_BYTES, Lsn, Segment, SegmentSize, SystemId, Timeline};
    use lifeboat_engine::wal::fetch::{FetchError, Fetched, Fetcher};
    use lifeboat_engine::wal::push::{self, Asked, PushOptions};
    use lifeboat_engine::wal::verify::{Verified, verify};
    use lifeboat_engine::wal::{Cluster, WalReader, WalWriter};

    use super::*;

    const SIZE: u32 = 1 << 20;

    fn cluster() -> Cluster {
        Cluster { system_id: SystemId(7), segment_size: SegmentSize::new(SIZE).unwrap() }
    }

    fn whole(number: u64) -> WalFile {
        WalFile::Segment(Segment { timeline: Timeline(1), number })
    }

    fn file_name(number: u64) -> String {
        whole(number).file_name(cluster().segment_size)
    }

    fn bytes(number: u64) -> Vec<u8> {
        let mut bytes = noise(SIZE as usize);
        let start = number * u64::from(SIZE);
        bytes[..LONG_HEADER_BYTES].fill(0);
        bytes[..2].copy_from_slice(&0xD110u16.to_le_bytes());
        bytes[2] = 2;
        bytes[8..16].copy_from_slice(&start.to_le_bytes());
        bytes[24..32].copy_from_slice(&cluster().system_id.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&SIZE.to_le_bytes());
        bytes
    }

    fn put(world: &World, repository: &Repository, file: WalFile, bytes: &[u8]) {
        let protection = world.protection();
        let writer = WalWriter::new(repository, cluster(), &world.signer, &world.trust, &protection, 1);
        writer.claim_cluster(0xD110, None, Timestamp::UNIX_EPOCH, "test").unwrap();
        writer.put_bytes(file, &WalPredicate::new(bytes.len() as u64, cluster().segment_size), bytes).unwrap();
    }

    fn archive(world: &World, numbers: &[u64]) -> Start {
        Start::after(|repository| numbers.iter().for_each(|number| put(world, repository, whole(*number), &bytes(*number))))
    }

    fn reader<'a>(world: &'a World, repository: &'a Repository) -> WalReader<'a> {
        WalReader::new(repository, cluster(), &world.trust, world.identities.clone())
    }

    fn read(world: &World, repository: &Repository, number: u64) -> Vec<u8> {
        reader(world, repository).read_bytes(whole(number), u64::from(SIZE)).unwrap()
    }

    /// A `pg_wal` with segments that PostgreSQL wants to have archived.
    fn pg_wal(world: &World, numbers: &[u64]) -> PathBuf {
        let directory = world.fresh();
        fs::create_dir_all(directory.join("archive_status")).unwrap();
        for number in numbers {
            fs::write(directory.join(file_name(*number)), bytes(*number)).unwrap();
            fs::write(directory.join("archive_status").join(format!("{}.ready", file_name(*number))), b"").unwrap();
        }
        directory
    }

    fn push(world: &World, repository: &Repository, path: &Path) -> Said {
        let (protection, spool) = (world.protection(), world.fresh());
        let options = PushOptions {
            places: None,
            spool: &spool,
            files: 3,
            workers: 1,
            signer: &world.signer,
            trust: &world.trust,
            protection: &protection,
            level: 1,
            program: "test",
            host: HOST,
        };
        match Asked::find(repository, path).and_then(|asked| push::run(repository, &asked, &options)) {
            Ok(_) => Said::Done,
            Err(error) => failed(&error),
        }
    }

    fn gaps(repository: &Repository) -> BTreeSet<String> {
        let listed = repository.store().list(&layout::wal_gaps(cluster().system_id)).unwrap();
        listed.into_iter().map(|listed| listed.key.to_string()).collect()
    }

    fn sound(world: &World, repository: &Repository) {
        let report = verify(&reader(world, repository), &Verified::default(), true, 1, Timestamp::UNIX_EPOCH, &Unwatched).unwrap();
        assert!(report.findings.is_empty(), "{report:?}");
    }

    #[test]
    fn c048_c054_archiving_survives_every_fault() {
        let world = World::new();
        let faults = [&all_faults()[..], &[Fault::Stale(2)]].concat();
        let gap = layout::wal_gap(cluster().system_id, Timeline(1), Lsn(2 << 20), Lsn(3 << 20)).to_string();
        // Into an empty archive; where it is already; behind others; behind a hole.
        let situations = [
            (&[][..], &[3][..], false),
            (&[], &[3, 4, 5], false),
            (&[3], &[3, 4], false),
            (&[1, 2], &[3, 4, 5], false),
            (&[0, 1], &[3], true),
        ];
        for (there, waiting, has_gap) in situations {
            let (start, directory) = (archive(&world, there), pg_wal(&world, waiting));
            let sweep = Sweep {
                name: &format!("wal push of {waiting:?} to {there:?}"),
                run: &|repository| push(&world, repository, &directory.join(file_name(3))),
                done: &|repository| assert!(read(&world, repository, 3) == bytes(3)),
                after: &|repository| {
                    sound(&world, repository);
                    // A gap is never taken back, so none may be made up.
                    assert!(gaps(repository).iter().all(|found| has_gap && *found == gap), "{:?}", gaps(repository));
                },
                looks: false,
                faults: &faults,
            };
            sweep.all(&start);
        }
    }

    #[test]
    fn c080_whatever_fails_the_archive_does_not_end() {
        let world = World::new();
        let piece = |from, to| WalFile::Piece { segment: Segment { timeline: Timeline(1), number: 7 }, from, to };
        let start = Start::after(|repository| {
            for number in [3, 4, 6] {
                put(&world, repository, whole(number), &bytes(number));
            }
            put(&world, repository, piece(0, 300_000), &bytes(7)[..300_000]);
            put(&world, repository, piece(300_000, 500_000), &bytes(7)[300_000..500_000]);
            put(&world, repository, WalFile::History(Timeline(2)), b"1\t0/7000F8\tno recovery target specified\n");
        });
        // The newest objects are those that a stale listing leaves out.
        let broken = archive(&world, &[3, 4, 6]);
        let mut open = bytes(7)[..500_000].to_vec();
        open.resize(SIZE as usize, 0);
        let opened = Fetched::Open { bytes: 500_000, left_out: false };
        let questions = [
            (&start, whole(3), Some((Fetched::Whole, bytes(3)))),
            (&start, whole(6), Some((Fetched::Whole, bytes(6)))),
            (&start, whole(7), Some((opened, open))),
            (&start, WalFile::History(Timeline(2)), Some((Fetched::Whole, b"1\t0/7000F8\tno recovery target specified\n".to_vec()))),
            (&start, whole(5), None),
            (&broken, whole(5), None),
            (&start, whole(8), Some((Fetched::AfterEnd, Vec::new()))),
            (&start, WalFile::History(Timeline(3)), Some((Fetched::AfterEnd, Vec::new()))),
        ];
        for (start, file, expected) in &questions {
            let ask = |repository: &Repository| -> Result<(Fetched, Vec<u8>), FetchError> {
                let place = world.fresh();
                fs::create_dir(&place).unwrap();
                let target = place.join("RECOVERYXLOG");
                let fetched = Fetcher::new(&reader(&world, repository), &Bounds::default(), false).fetch(*file, &target);
                let bytes = fs::read(&target).unwrap_or_default();
                let left = fs::read_dir(&place).unwrap().count();
                let has_target = !matches!(fetched, Ok(Fetched::AfterEnd) | Err(_));
                assert_eq!((left, target.exists()), (usize::from(has_target), has_target), "a file is there whole, or nothing is");
                fs::remove_dir_all(place).unwrap();
                Ok((fetched?, bytes))
            };
            let check = |got: &Result<(Fetched, Vec<u8>), FetchError>, fault: Option<Fault>| match (got, expected) {
                (Ok(got), Some(expected)) if got == expected => {}
                // Of an open segment, the last piece may be hidden: then less of it comes, as it would have a moment before. Where recovery
                // must get to a place, `--promised` says so.
                (Ok((Fetched::Open { .. }, _)), Some((Fetched::Open { .. }, _))) if matches!(fault, Some(Fault::Stale(_))) => {}
                (Ok((said, _)), _) => panic!("{said:?} is not true"),
                (Err(FetchError::Gap { .. }), None) => {}
                (Err(error), _) => {
                    assert!(fault.is_some(), "{error}");
                    let text = causes::joined(error);
                    let fault = fault.unwrap();
                    assert!(!fault.is_error() || fault == Fault::Short || text.contains(INJECTED), "{text}");
                }
            };
            let copy = start.copy();
            copy.faults.plan(&[]);
            check(&ask(&copy.repository), None);
            let mut counts: BTreeMap<Operation, usize> = BTreeMap::new();
            copy.faults.trace().iter().for_each(|step| *counts.entry(step.operation).or_default() += 1);
            let mut runs = 0;
            for (operation, count) in counts {
                for fault in all_faults().into_iter().filter(|fault| fault.fits(operation)) {
                    for number in 0..count {
                        let _named = Named(format!("wal fetch of {file:?}, {operation:?} {number}, {fault:?}"));
                        copy.faults.plan(&[Rule::once(operation, number, fault)]);
                        check(&ask(&copy.repository), Some(fault));
                        assert_eq!(copy.faults.injected().len(), 1);
                        copy.faults.plan(&[]);
                        check(&ask(&copy.repository), None);
                        runs += 1;
                    }
                }
            }
            eprintln!("wal fetch of {file:?}: {runs} runs");
        }
    }

    #[test]
    fn c114_a_verification_of_wal_never_passes_over_a_fault() {
        let world = World::new();
        let start = archive(&world, &[3, 4]);
        for opens in [true, false] {
            // Without an identity the start of an object is read once for its signature, and then again with all the rest: what arrives
            // damaged behind the signature the first time is not looked at.
            let spoils = if opens { &SPOILS[..] } else { &[Fault::Short, Fault::Truncated] };
            let sweep = Sweep {
                name: "wal verify",
                run: &|repository| match verify(
                    &reader(&world, repository),
                    &Verified::default(),
                    opens,
                    1,
                    Timestamp::UNIX_EPOCH,
                    &Unwatched,
                ) {
                    Ok(report) if report.findings.is_empty() => Said::Done,
                    Ok(report) => Said::Findings(report.findings.into_iter().map(|finding| (finding.kind, finding.problem)).collect()),
                    Err(error) => failed(&error),
                },
                done: &|_| {},
                after: &|_| {},
                looks: true,
                faults: &[&FAILURES[..], spoils].concat(),
            };
            sweep.all(&start);
        }
    }
}

/// A database: the copy of a real server, and what a restore makes of it.
mod database {
    use lifeboat_core::backup::CopyChoice;
    use lifeboat_core::restore::{RestoreRequest, plan};
    use lifeboat_core::truth::Budget;
    use lifeboat_engine::backup::PostgresSource;
    use lifeboat_engine::restore::{self, RestoreError, RestoreSettings};

    use super::*;
    use crate::support::Cluster;

    /// Runs of a sweep with a real server. `LIFEBOAT_TEST_FAULTS=all` makes them all, which takes half an hour.
    const SAMPLE: usize = 24;

    fn source(cluster: &Cluster, scratch: &Path) -> PostgresSource {
        PostgresSource {
            dsn: cluster.dsn(),
            data_directory: Some(cluster.data()),
            copy: CopyChoice::Local,
            bin_directory: None,
            scratch: scratch.to_owned(),
            fast_checkpoint: true,
            record_only: false,
            check_pages: true,
            truth: Budget::default(),
        }
    }

    fn restore_into(world: &World, repository: &Repository, to: &Path) -> Said {
        let newest = match repository.backups() {
            Ok(ids) => ids.into_iter().next_back().expect("there is a backup"),
            Err(error) => return failed(&error),
        };
        let backup = match opened_backup::open(repository, &newest, &world.trust) {
            Ok(backup) => backup,
            Err(opened_backup::OpenBackupError::Damaged(finding)) => return Said::Findings(vec![(finding.kind, finding.problem)]),
            Err(error) => return failed(&error),
        };
        let request = RestoreRequest { pgdata: Some(to.display().to_string()), ..RestoreRequest::default() };
        let plan = plan(&backup.manifest, backup.digest, &request).unwrap();
        let settings = RestoreSettings {
            identities: world.identities.clone(),
            workers: 1,
            bin_directory: None,
            start_timeout: Duration::from_secs(60),
            probe: None,
            spool: None,
            temporary: world.place.path().to_owned(),
            owner: None,
        };
        match restore::run(repository, &backup, &plan, &settings, &Unwatched) {
            Ok(_) => Said::Done,
            Err(RestoreError::Damaged(finding)) => Said::Findings(vec![(finding.kind, finding.problem)]),
            Err(RestoreError::Open(opened_backup::OpenBackupError::Damaged(finding))) => {
                Said::Findings(vec![(finding.kind, finding.problem)])
            }
            Err(error) => failed(&error),
        }
    }

    /// Some of all cases, or all of them; which ones follows from a seed that is printed.
    fn sample(mut cases: Vec<(Operation, usize, Fault)>) -> Vec<(Operation, usize, Fault)> {
        let setting = |name: &str| std::env::var(name).ok();
        if setting("LIFEBOAT_TEST_FAULTS").as_deref() == Some("all") {
            return cases;
        }
        let seed = setting("LIFEBOAT_TEST_SEED").map_or_else(|| u64::from(std::process::id()), |seed| seed.parse().unwrap());
        eprintln!("{SAMPLE} of {} runs, LIFEBOAT_TEST_SEED={seed}", cases.len());
        let rank = |case: &(Operation, usize, Fault)| *blake3::hash(format!("{seed} {case:?}").as_bytes()).as_bytes();
        cases.sort_by_key(rank);
        cases.truncate(SAMPLE);
        cases
    }

    #[test]
    fn c101_a_database_survives_faults_of_the_store() {
        let world = World::new();
        let cluster = Cluster::running();
        cluster
            .connect()
            .execute("CREATE TABLE public.numbers AS SELECT n, md5(n::text) FROM generate_series(1, 20000) AS n", &[])
            .unwrap();
        let start = Start::after(|_| {});
        let source = source(&cluster, world.place.path());
        let begun = Instant::now();
        let backups = Sweep {
            name: "backup of a database",
            run: &|repository| world.take(repository, Some(source.clone())),
            done: &|repository| {
                let to = world.fresh();
                assert!(matches!(restore_into(&world, repository, &to), Said::Done));
                assert!(to.join("global/pg_control").exists());
                fs::remove_dir_all(to).unwrap();
            },
            after: &|repository| world.sound(repository),
            looks: false,
            faults: &all_faults(),
        };
        for (operation, number, fault) in sample(backups.cases(&start)) {
            backups.case(&start, operation, number, fault);
        }
        eprintln!("{:.0} s", begun.elapsed().as_secs_f64());

        // What was restored before, byte for byte, or something that no server starts from.
        let full = start.copy();
        assert!(matches!(world.take(&full.repository, Some(source.clone())), Said::Done));
        let full = Start { objects: full.objects, created: full.faults.created() };
        let to = world.fresh();
        assert!(matches!(restore_into(&world, &full.copy().repository, &to), Said::Done));
        let expected = tree(&to);
        fs::remove_dir_all(&to).unwrap();
        let whole = |repository: &Repository| {
            let _ = repository;
            assert!(tree(&to) == expected);
            fs::remove_dir_all(&to).unwrap();
        };
        let restores = Sweep {
            name: "restore of a database",
            run: &|repository| {
                let said = restore_into(&world, repository, &to);
                if !matches!(said, Said::Done) && to.exists() {
                    assert!(
                        !to.join("global/pg_control").exists() && to.join("lifeboat.restoring").exists(),
                        "a server would start from it"
                    );
                }
                said
            },
            done: &whole,
            after: &|_| {},
            looks: true,
            faults: &[&FAILURES[..], &SPOILS].concat(),
        };
        for (operation, number, fault) in sample(restores.cases(&full)) {
            restores.case(&full, operation, number, fault);
        }
        eprintln!("{:.0} s", begun.elapsed().as_secs_f64());
    }
}

/// Between a hang and its end others see what is true.
#[test]
fn c044_while_a_store_hangs_the_lease_holds() {
    let world = World::new();
    let copy = Start::after(|_| {}).copy();
    copy.faults.plan(&[Rule::once(Operation::Commit, 0, Fault::Hang(Duration::from_secs(2)))]);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| world.back_up(&copy.repository));
        while copy.faults.injected().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let second = Repository::open(Box::new(copy.objects.clone())).unwrap();
        let held = backup::run(&second, &world.request(None), &Unwatched).map(|_| ());
        assert!(matches!(held, Err(BackupError::Lease(LeaseError::Held { .. }))), "{held:?}");
        let said = first.join().unwrap();
        assert!(matches!(&said, Said::Failed(text) if text.contains(INJECTED)), "{said:?}");
    });
    assert!(copy.repository.backups().unwrap().is_empty());
    assert!(matches!(world.back_up(&copy.repository), Said::Done), "it was given back");
    world.sound(&copy.repository);
}

/// Whatever comes late, comes right: every operation takes another while.
#[test]
fn c101_delays_change_nothing() {
    let world = World::new();
    let copy = Start::after(|_| {}).copy();
    let delays = [
        Rule { operation: Some(Operation::Commit), from: 0, count: 3, fault: Fault::Delay(Duration::from_millis(200)) },
        Rule { operation: Some(Operation::Create), from: 1, count: 4, fault: Fault::Delay(Duration::from_millis(50)) },
        Rule::from(0, Fault::Delay(Duration::from_millis(2))),
    ];
    copy.faults.plan(&delays);
    assert!(matches!(world.back_up(&copy.repository), Said::Done));
    assert!(copy.faults.injected().len() > 20);
    world.sound(&copy.repository);
    world.newest_is_complete(&copy.repository);
}
