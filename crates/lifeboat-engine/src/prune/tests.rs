//! Expiry, pins and pruning on a store in memory: what goes, what stays, and what is left when a prune ends in the middle.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use lifeboat_core::attestation::backup_statement;
use lifeboat_core::expire::{Fate, Policy};
use lifeboat_core::repository::manifest::{ArtifactsEntry, BackupKind, Encryption, Manifest, PackEntry, State, TableEntry};
use lifeboat_core::repository::{FORMAT_VERSION, Id, Sha256, Suite, pack, to_json};

use super::*;
use crate::artifacts::{ArtifactSet, Reader, Sample, Source, Writer, verify_set};
use crate::expire::Author;
use crate::progress::Unwatched;
use crate::seal::{Sealing, seal_object};
use crate::signing::{KeyFileSigner, Signer as _, SigningKey};
use crate::store::{MemoryStore, ObjectWriter};
use crate::verify::{self, VerifySettings};

type Hook = Box<dyn FnOnce() + Send>;

/// What a store does besides storing.
#[derive(Default)]
struct Behaviour {
    memory: MemoryStore,
    /// Deletes that still succeed.
    deletes: AtomicI64,
    /// What may not be deleted.
    denied: Mutex<Option<&'static str>>,
    /// What happens just before an object whose key begins so is created.
    before: Mutex<Option<(&'static str, Hook)>>,
}

#[derive(Clone)]
struct Shared(Arc<Behaviour>);

struct SharedWriter<'a>(&'a Shared, Vec<u8>);

impl ObjectWriter for SharedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.1.extend_from_slice(bytes);
        Ok(())
    }
    fn commit(self: Box<Self>, key: &Key) -> Result<(), StoreError> {
        let hook = {
            let mut before = self.0.0.before.lock().unwrap();
            before.take_if(|(prefix, _)| key.as_str().starts_with(*prefix))
        };
        if let Some((_, hook)) = hook {
            hook();
        }
        self.0.0.memory.create(key, &self.1)
    }
}

impl Store for Shared {
    fn url(&self) -> &str {
        self.0.memory.url()
    }
    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        Ok(Box::new(SharedWriter(self, Vec::new())))
    }
    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.0.memory.get(key, limit)
    }
    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        self.0.memory.get_range(key, range, buffer)
    }
    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        self.0.memory.length(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.0.memory.list(prefix)
    }
    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.0.memory.list_segments(prefix)
    }
    fn is_empty(&self) -> Result<bool, StoreError> {
        self.0.memory.is_empty()
    }
    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let fail = |kind: std::io::ErrorKind| std::io::Error::from(kind);
        let (action, store) = ("delete", "memory:".to_owned());
        if self.0.denied.lock().unwrap().is_some_and(|word| key.as_str().contains(word)) {
            let source = fail(std::io::ErrorKind::PermissionDenied);
            return Err(StoreError::Denied { action, key: key.to_string(), store, source });
        }
        if self.0.deletes.fetch_sub(1, Ordering::SeqCst) <= 0 {
            let source = fail(std::io::ErrorKind::BrokenPipe);
            return Err(StoreError::Io { action, key: key.to_string(), store, source });
        }
        self.0.memory.delete(key)
    }
}

struct World {
    store: Shared,
    repository: Repository,
    signer: KeyFileSigner,
    trust: Trust,
    now: Timestamp,
}

/// More than any test deletes.
const ALL: i64 = 1 << 40;

impl World {
    fn new() -> Self {
        let store = Shared(Arc::default());
        store.0.deletes.store(ALL, Ordering::SeqCst);
        let repository = Repository::init(Box::new(store.clone()), Timestamp::UNIX_EPOCH, "test").unwrap();
        let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
        let trust = Trust::new([signer.public_key().clone()]);
        Self { store, repository, signer, trust, now: Timestamp::now() }
    }

    fn author(&self) -> Author<'_> {
        Author { host: "here", by: "a test".into(), trust: &self.trust, signer: &self.signer, say: &|_| {} }
    }

    fn put(&self, name: &str, content: &str) {
        let writer = Writer::new(&self.repository, &self.signer, None).unwrap();
        let input = &mut content.as_bytes();
        writer.put(&name.parse().unwrap(), Source::Stream { input, spool: &std::env::temp_dir() }).unwrap();
    }

    /// A pack with these bytes; its entry in a manifest.
    fn pack(&self, content: &str) -> PackEntry {
        let id = Id([content.len() as u8; 16]);
        let mut bytes = pack::encode_header(id, Suite::None).to_vec();
        bytes.extend_from_slice(content.as_bytes());
        let sha256 = Sha256::of(&bytes);
        match self.store.create(&layout::pack(sha256), &bytes) {
            Ok(()) | Err(StoreError::Exists { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        PackEntry { sha256, id, bytes: bytes.len() as u64 }
    }

    /// A backup so many days ago with these packs, a table, and the artifact set as it is.
    fn backup(&self, days: i64, packs: &[&str]) -> BackupId {
        let at = self.now - SignedDuration::from_hours(24 * days);
        let id = BackupId::next(&"a".parse().unwrap(), at, []);
        let packs: Vec<PackEntry> = packs.iter().map(|content| self.pack(content)).collect();
        let key = layout::file_table(&id, 0);
        let sealed = seal_object(key.as_str(), &Sealing::Plain, b"");
        self.store.create(&key, &sealed).unwrap();
        let table = TableEntry {
            object: key.to_string(),
            sha256: Sha256::of(&sealed),
            bytes: sealed.len() as u64,
            rows: 0,
            first: String::new(),
            last: String::new(),
        };
        let (head, set) = ArtifactSet::newest(&self.repository).unwrap();
        let artifacts = head.map(|head| ArtifactsEntry {
            head: head.head,
            runs: set.runs().to_vec(),
            count: head.count,
            bytes: head.bytes,
            references: None,
        });
        let manifest = Manifest {
            format: FORMAT_VERSION,
            id: id.clone(),
            repository: self.repository.descriptor().repository,
            name: "a".into(),
            host: "here".into(),
            lifeboat: "test".into(),
            started: at,
            finished: at,
            kind: BackupKind::Full,
            state: State::Healthy,
            findings: vec![],
            warnings: vec![],
            encryption: Encryption { suite: Suite::None, keys: vec![], recipients: vec![] },
            packs,
            boot_packs: vec![],
            tables: vec![table],
            files: 0,
            plain_bytes: 0,
            stored_bytes: 0,
            postgres: None,
            artifacts,
            audit: None,
        };
        let bytes = to_json(&manifest);
        let statement = backup_statement(&id.to_string(), Sha256::of(&bytes).0, serde_json::json!({}));
        let bundle = self.signer.sign_statement(&statement.to_bytes()).unwrap();
        self.store.create(&layout::manifest_bundle(&id), bundle.as_bytes()).unwrap();
        self.store.create(&layout::manifest(&id), &bytes).unwrap();
        id
    }

    fn expire(&self, keep_last: u32) -> Vec<BackupId> {
        let policy = Policy { keep_last, grace: SignedDuration::from_hours(7 * 24), ..Policy::default() };
        let plan = crate::expire::run(&self.repository, policy, None, &self.author(), self.now).unwrap();
        assert_eq!(plan.warnings, Vec::<String>::new());
        plan.expiring().map(|decision| decision.backup.clone()).collect()
    }

    fn prune_in(&self, days: i64, forget: &[&BackupId]) -> Result<Pruned, PruneError> {
        let settings = PruneSettings {
            trust: &self.trust,
            host: "here",
            keep_for: SignedDuration::from_hours(7 * 24),
            forget: forget.iter().map(|id| (*id).clone()).collect(),
        };
        let now = self.now + SignedDuration::from_hours(24 * days);
        let planned = plan(&self.repository, &settings, now).unwrap();
        let done = run(&self.repository, &settings, now, &Unwatched)?;
        if self.store.0.denied.lock().unwrap().is_none() {
            assert_eq!(done.plan.backups, planned.backups, "a dry run says what is done");
            assert_eq!(done.plan.digest(), planned.digest());
        }
        Ok(done)
    }

    fn prune(&self, days: i64) -> Pruned {
        self.prune_in(days, &[]).unwrap()
    }

    /// Everything but what counts up.
    fn objects(&self) -> Vec<String> {
        let counted = ["leases/", "artifacts/heads/", "lifeboat.json"];
        let all = self.store.list("").unwrap().into_iter().map(|listed| listed.key.to_string());
        all.filter(|key| counted.iter().all(|prefix| !key.starts_with(prefix))).collect()
    }

    /// Every backup that is there is whole, and so is the artifact set.
    fn verify(&self) {
        for id in self.repository.backups().unwrap() {
            let settings =
                VerifySettings { trust: &self.trust, identities: Identities::default(), sample_percent: 100.0, sample_seed: 0, workers: 2 };
            let report = verify::run(&self.repository, &id, &settings, &Unwatched).unwrap();
            assert_eq!(report.findings, [], "{id}");
        }
        let (head, set) = ArtifactSet::newest(&self.repository).unwrap();
        let expected = head.map_or((0, 0), |head| (head.count, head.bytes));
        let reader = Reader::new(&self.repository, &self.trust, Identities::default());
        let sample = Sample { percent: 100, seed: 0, open: true };
        let report = verify_set(&reader, set, expected, sample, 2, &Unwatched).unwrap();
        assert!(report.findings.is_empty(), "{report:?}");
        assert_eq!(report.artifacts, expected.0);
    }

    fn has_blob(&self, content: &str) -> bool {
        self.store.length(&layout::artifact_blob(Sha256::of(content.as_bytes()))).is_ok()
    }
}

/// Three backups, each with packs and artifacts of its own, some of them shared.
fn three() -> (World, [BackupId; 3]) {
    let world = World::new();
    world.put("log", "first");
    world.put("same", "always there");
    let first = world.backup(30, &["one", "one and two", "all three"]);
    world.put("log", "second");
    let second = world.backup(20, &["two", "one and two", "all three"]);
    world.put("log", "third");
    let third = world.backup(10, &["three", "all three"]);
    (world, [first, second, third])
}

#[test]
fn c106_prune_takes_what_only_expired_backups_needed_and_nothing_before_its_time() {
    let (world, [first, second, third]) = three();
    assert_eq!(world.expire(1), [first.clone(), second.clone()]);
    let before = world.objects();
    assert!(!world.prune(6).plan.steps.iter().any(|step| step.what == "manifests" || step.what == "packs"));
    assert_eq!(world.objects(), before);
    world.verify();
    let done = world.prune(8);
    assert_eq!((done.held, done.plan.more, done.plan.unknown), (0, false, 0), "{done:?}");
    world.verify();
    assert_eq!(world.repository.backups().unwrap(), [third]);
    let left = world.objects();
    let packs: Vec<&String> = left.iter().filter(|key| key.starts_with("packs/")).collect();
    assert_eq!(packs.len(), 2, "{left:?}");
    assert!(left.iter().all(|key| !key.starts_with(&first.to_string()) && !key.starts_with(&second.to_string())), "{left:?}");
    assert!(world.has_blob("third") && world.has_blob("always there"));
    assert!(!world.has_blob("first") && !world.has_blob("second"));
    assert_eq!(left.iter().filter(|key| key.starts_with("artifacts/records/")).count(), 2, "{left:?}");
    // A second one finds nothing.
    let again = world.prune(8);
    assert!(again.plan.steps.iter().all(|step| step.what == "lease epochs"), "{again:?}");
    assert_eq!(world.objects(), left);
}

#[test]
fn of_marks_that_say_what_is_held_the_newest_stay() {
    let (world, _) = three();
    for number in 1..=40 {
        world.repository.store().create(&layout::visit(number), b"{}").unwrap();
    }
    world.prune(8);
    let left = world.repository.store().list(layout::VISITS).unwrap();
    let numbers: Vec<_> = left.iter().filter_map(|listed| layout::number_of(&listed.key)).collect();
    assert_eq!(numbers, (25..=40).collect::<Vec<u64>>());
}

#[test]
fn a_prune_that_ends_anywhere_leaves_a_repository_that_verifies_and_the_next_one_finishes() {
    let reference = {
        let (world, _) = three();
        world.expire(1);
        world.prune(8);
        world.objects().into_iter().filter(|key| !key.contains("records/")).collect::<Vec<_>>().len()
    };
    let mut crashes = 0;
    for deletes in 0.. {
        let (world, [first, second, third]) = three();
        world.expire(1);
        world.store.0.deletes.store(deletes, Ordering::SeqCst);
        let ended = world.prune_in(8, &[]);
        world.verify();
        assert!(world.repository.backups().unwrap().contains(&third));
        for id in [&first, &second] {
            // Half gone is gone: no list shows it, nobody restores it.
            let there = world.store.length(&layout::manifest(id)).is_ok();
            assert_eq!(there, world.repository.backups().unwrap().contains(id));
        }
        if ended.is_ok() {
            break;
        }
        crashes += 1;
        world.store.0.deletes.store(ALL, Ordering::SeqCst);
        let done = world.prune(8);
        assert!(done.plan.backups.blocked.is_empty(), "after {deletes}: {done:?}");
        world.verify();
        let left: Vec<String> = world.objects().into_iter().filter(|key| !key.contains("records/")).collect();
        assert_eq!(left.len(), reference, "after {deletes} deletes: {left:?}");
        assert_eq!(world.repository.backup_prefixes().unwrap(), [third]);
    }
    assert!(crashes > 15, "{crashes}");
}

#[test]
fn c106_an_undo_and_a_pin_keep_a_backup_whole() {
    let (world, [first, second, third]) = three();
    assert_eq!(world.expire(1).len(), 2);
    let standing = |id: &BackupId| retention::standing(world.repository.store(), id, None, Some(&world.trust), world.now).unwrap();
    assert!(standing(&first).expired.is_some() && standing(&third).expired.is_none());
    // Nobody else can say so.
    let stranger = Trust::new([KeyFileSigner::new(SigningKey::generate().unwrap()).public_key().clone()]);
    let doubted = retention::standing(world.repository.store(), &first, None, Some(&stranger), world.now).unwrap();
    assert!(doubted.expired.is_none() && doubted.doubts.len() == 1, "{doubted:?}");

    crate::expire::undo(&world.repository, &first, &world.author(), world.now).unwrap();
    assert!(matches!(
        crate::expire::undo(&world.repository, &first, &world.author(), world.now),
        Err(RetentionError::NotExpired(id)) if id == first
    ));
    let audit = "audit".parse().unwrap();
    crate::pin::pin(&world.repository, &second, &audit, "auditors ask", None, &world.author(), world.now).unwrap();
    let done = world.prune(30);
    assert!(done.plan.backups.leaving.is_empty(), "{done:?}");
    assert_eq!(world.repository.backups().unwrap().len(), 3);
    world.verify();
    assert!(matches!(
        crate::pin::pin(&world.repository, &second, &audit, "again", None, &world.author(), world.now),
        Err(RetentionError::PinExists { .. })
    ));
    // The undone one expires anew, the pinned one goes when its pin has ended.
    assert_eq!(world.expire(1), [first]);
    crate::pin::unpin(&world.repository, &second, &audit, "they have seen it", &world.author(), world.now).unwrap();
    assert!(matches!(
        crate::pin::unpin(&world.repository, &second, &audit, "again", &world.author(), world.now),
        Err(RetentionError::NoPin { .. })
    ));
    world.prune(30);
    assert_eq!(world.repository.backup_prefixes().unwrap(), [third]);
    world.verify();
}

#[test]
fn c106_a_pinned_backup_does_not_expire() {
    let (world, [first, second, _]) = three();
    crate::pin::pin(&world.repository, &first, &"audit".parse().unwrap(), "r", None, &world.author(), world.now).unwrap();
    assert_eq!(world.expire(1), [second]);
    let policy = Policy { keep_last: 1, ..Policy::default() };
    let plan = crate::expire::plan(&world.repository, policy, Some("a"), &world.trust, world.now).unwrap();
    assert_eq!(plan.decisions.iter().map(|decision| decision.fate).collect::<Vec<_>>(), [Fate::Keep, Fate::Expired, Fate::Keep]);
    assert!(crate::expire::plan(&world.repository, policy, Some("b"), &world.trust, world.now).unwrap().decisions.is_empty());
}

#[test]
fn c106_nothing_goes_while_a_manifest_cannot_be_believed() {
    for damage in ["{\"format\": 1", "", "gone"] {
        let (world, [_, second, _]) = three();
        assert_eq!(world.expire(2).len(), 1);
        let bytes = (damage != "gone").then(|| damage.as_bytes().to_vec());
        world.store.0.memory.damage(&layout::manifest(&second), bytes);
        let before = world.objects();
        let done = world.prune(30);
        assert!(done.objects == 0 && done.plan.backups.blocked.len() == 1, "{done:?}");
        assert_eq!(world.objects(), before);
        // Given up, it holds nobody up.
        world.prune_in(30, &[&second]).unwrap();
        assert_eq!(world.repository.backup_prefixes().unwrap().len(), 1);
        world.verify();
    }
}

#[test]
fn c106_an_expiry_that_nobody_trusted_signed_releases_nothing() {
    let (world, _) = three();
    let stranger = KeyFileSigner::new(SigningKey::generate().unwrap());
    let trust = Trust::new([stranger.public_key().clone(), world.signer.public_key().clone()]);
    let author = Author { host: "there", by: "a stranger".into(), trust: &trust, signer: &stranger, say: &|_| {} };
    let policy = Policy { keep_last: 1, ..Policy::default() };
    assert_eq!(crate::expire::run(&world.repository, policy, None, &author, world.now).unwrap().expiring().count(), 2);
    let done = world.prune(30);
    assert!(done.plan.backups.leaving.is_empty() && done.plan.warnings.len() == 2, "{done:?}");
    // A genuine mark that somebody copied to another backup releases that neither.
    let (world, [first, second, _]) = three();
    assert_eq!(world.expire(2).len(), 1);
    let mark = world.store.get(&layout::expiry_mark(&first, 1), 1 << 20).unwrap();
    world.store.create(&layout::expiry_mark(&second, 1), &mark).unwrap();
    let done = world.prune(30);
    assert_eq!(done.plan.backups.leaving.len(), 1);
    assert_eq!(world.repository.backups().unwrap().len(), 2);
    assert!(done.plan.warnings[0].contains("something else"), "{done:?}");
}

#[test]
fn what_the_store_does_not_let_go_stays_whole_until_it_does() {
    let (world, [first, second, third]) = three();
    world.expire(1);
    // Object Lock still holds one manifest, so everything that it names has to stay.
    *world.store.0.denied.lock().unwrap() = Some("manifest.json");
    let done = world.prune(8);
    assert_eq!(world.repository.backups().unwrap(), [first, second, third.clone()]);
    assert!(done.plan.backups.held.iter().any(|because| because.reason.contains("does not let")), "{done:?}");
    world.verify();
    // And one pack.
    *world.store.0.denied.lock().unwrap() = Some("packs/");
    let done = world.prune(8);
    assert!(done.held == 3 && done.held_first.len() == 3, "{done:?}");
    assert_eq!(world.repository.backups().unwrap(), [third]);
    *world.store.0.denied.lock().unwrap() = None;
    world.prune(8);
    assert_eq!(world.objects().iter().filter(|key| key.starts_with("packs/")).count(), 2);
    world.verify();
}

#[test]
fn c044_no_prune_while_a_backup_runs_and_none_while_somebody_expires() {
    let (world, _) = three();
    world.expire(1);
    for purpose in ["backup", retention::LEASE] {
        with_lease::<(), LeaseError>(&world.store, purpose, "elsewhere", &|_| {}, |_| {
            assert!(matches!(world.prune_in(8, &[]), Err(PruneError::Lease(LeaseError::Held { .. }))));
            Ok(())
        })
        .unwrap();
    }
    world.prune(8);
}

#[test]
fn what_is_not_known_is_left_and_counted() {
    let (world, [first, ..]) = three();
    world.expire(1);
    let strange = [
        "drills/x/report.json".to_owned(),
        "audit/leaf/0000000000".into(),
        "audit/checkpoint/0000000001".into(),
        format!("{first}/notes.txt"),
        "packs/aa/x".into(),
        "artifacts/blobs/aa/x".into(),
        "artifacts/catalog/x".into(),
        "leases/backup/x".into(),
    ];
    for key in &strange {
        world.store.create(&Key::parse(key).unwrap(), b"?").unwrap();
    }
    let done = world.prune(8);
    assert_eq!(done.plan.unknown, 5, "{done:?}");
    for key in &strange {
        assert!(world.store.length(&Key::parse(key).unwrap()).is_ok(), "{key}");
    }
    assert!(world.store.length(&layout::descriptor()).is_ok());
}

/// A world in which a prune after the grace period takes away the blobs of `"first"` and `"second"`.
fn with_garbage() -> World {
    let (world, _) = three();
    world.expire(1);
    world
}

#[test]
fn c108_what_is_taken_up_again_while_it_is_condemned_stays() {
    let world = Arc::new(with_garbage());
    // Just before the prune makes its head, somebody stores the same bytes again, and finds them there.
    let other = world.clone();
    *world.store.0.before.lock().unwrap() = Some(("artifacts/heads/", Box::new(move || other.put("new", "second"))));
    let done = world.prune(8);
    assert!(done.objects > 0);
    assert!(world.has_blob("second") && !world.has_blob("first"));
    world.verify();
}

#[test]
fn c108_a_writer_that_relies_on_what_was_pruned_meanwhile_begins_anew() {
    let world = Arc::new(with_garbage());
    // The writer found the bytes there; just before it makes its head, a whole prune takes them away.
    let other = world.clone();
    let prune = move || {
        other.prune(8);
        assert!(!other.has_blob("second"));
    };
    *world.store.0.before.lock().unwrap() = Some(("artifacts/heads/", Box::new(prune)));
    world.put("new", "second");
    assert!(world.has_blob("second") && !world.has_blob("first"));
    world.verify();
}

#[test]
fn c108_the_same_of_a_whole_directory() {
    let world = Arc::new(with_garbage());
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in [("new", "second"), ("newer", "first"), ("other", "never seen")] {
        std::fs::write(directory.path().join(name), content).unwrap();
    }
    let other = world.clone();
    let prune = move || {
        other.prune(8);
    };
    *world.store.0.before.lock().unwrap() = Some(("artifacts/heads/", Box::new(prune)));
    let writer = Writer::new(&world.repository, &world.signer, None).unwrap();
    let options = crate::artifacts::SyncOptions { threads: 4, read_all: false, allow_empty: false };
    let report = writer.sync(directory.path(), options, &Unwatched).unwrap();
    assert_eq!((report.new, report.count), (3, 5), "{report:?}");
    world.verify();
}

#[test]
fn c108_a_head_made_where_the_heads_were_pruned_is_nothing() {
    let world = World::new();
    for n in 0..40 {
        world.put("log", &format!("content {n}"));
    }
    // A writer that slept since head 3, and whose next number is free again.
    let slept = Writer::new(&world.repository, &world.signer, None).unwrap();
    slept.pretend(3).unwrap();
    for number in 1..=24 {
        world.store.0.memory.delete(&layout::artifact_head(number)).unwrap();
    }
    let input = &mut "late".as_bytes();
    let put = slept.put(&"late".parse().unwrap(), Source::Stream { input, spool: &std::env::temp_dir() }).unwrap();
    assert_eq!(put.head, 41);
    let (_, set) = ArtifactSet::newest(&world.repository).unwrap();
    assert!(set.find(&"late".parse().unwrap()).unwrap().is_some());
    world.verify();
}

#[test]
fn c108_what_left_the_set_within_the_grace_period_stays_and_heads_are_thinned_out() {
    let world = World::new();
    for n in 0..40 {
        world.put("log", &format!("content {n}"));
    }
    world.prune(6);
    assert!((0..40).all(|n| world.has_blob(&format!("content {n}"))));
    world.prune(8);
    assert!((0..39).all(|n| !world.has_blob(&format!("content {n}"))) && world.has_blob("content 39"));
    assert!(world.store.list("artifacts/heads/").unwrap().len() <= 17);
    world.put("log", "content 3");
    world.verify();
}
