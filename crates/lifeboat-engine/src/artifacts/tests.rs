//! Artifacts from end to end, on both stores, and with every kind of damage.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use lifeboat_core::artifacts::{Moment, Reason, Step};
use lifeboat_core::repository::artifact::{Entry, Head, Line, Origin, RUN_LINES, Run};
use lifeboat_core::repository::layout::{self, ArtifactName, Key};
use lifeboat_core::repository::{Sha256, to_json};

use super::catalog::{RunsWriter, newest_head};
use super::write::Known;
use super::*;
use crate::keys::{Identities, Recipient, generate_identity};
use crate::progress::Unwatched;
use crate::repository::Repository;
use crate::sha256;
use crate::signing::{KeyFileSigner, SigningKey, Trust};
use crate::store::{Listed, LocalStore, MemoryStore, ObjectWriter, Store, StoreError};

/// A store that the test can reach into.
#[derive(Clone)]
enum Reach {
    /// With how many objects more it takes before it is full.
    Memory(Arc<MemoryStore>, Arc<AtomicI64>),
    Local(Arc<LocalStore>, PathBuf),
}

impl Reach {
    fn inner(&self) -> &dyn Store {
        match self {
            Self::Memory(store, _) => &**store,
            Self::Local(store, _) => &**store,
        }
    }

    /// Replaces or removes an object.
    fn damage(&self, key: &Key, bytes: Option<Vec<u8>>) {
        match (self, bytes) {
            (Self::Memory(store, _), bytes) => store.damage(key, bytes),
            // In place: the store may hold the file open.
            (Self::Local(_, root), Some(bytes)) => fs::write(root.join(key.as_str()), bytes).unwrap(),
            (Self::Local(_, root), None) => fs::remove_file(root.join(key.as_str())).unwrap(),
        }
    }

    fn all(&self) -> BTreeMap<String, u64> {
        self.inner().list("").unwrap().into_iter().map(|listed| (listed.key.to_string(), listed.bytes)).collect()
    }
}

impl Store for Reach {
    fn url(&self) -> &str {
        self.inner().url()
    }
    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        if let Self::Memory(_, room) = self
            && room.fetch_sub(1, Ordering::Relaxed) <= 0
        {
            return Err(StoreError::Full { key: "an object".into(), store: "memory:".into() });
        }
        self.inner().writer()
    }
    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.inner().get(key, limit)
    }
    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        self.inner().get_range(key, range, buffer)
    }
    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        self.inner().length(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.inner().list(prefix)
    }
    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.inner().list_segments(prefix)
    }
    fn is_empty(&self) -> Result<bool, StoreError> {
        self.inner().is_empty()
    }
    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.inner().delete(key)
    }
}

struct World {
    reach: Reach,
    repository: Repository,
    signer: KeyFileSigner,
    trust: Trust,
    identities: Identities,
    recipients: Option<Vec<Recipient>>,
    place: tempfile::TempDir,
}

impl World {
    fn on(reach: Reach, encrypted: bool, place: tempfile::TempDir) -> Self {
        let repository = Repository::init(Box::new(reach.clone()), Timestamp::UNIX_EPOCH, "test").unwrap();
        let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
        let trust = Trust::new([signer.public_key().clone()]);
        let (text, recipient) = generate_identity(Timestamp::UNIX_EPOCH);
        let identities = Identities::parse(&text).unwrap();
        fs::create_dir(place.path().join("dir")).unwrap();
        Self { reach, repository, signer, trust, identities, recipients: encrypted.then(|| vec![recipient]), place }
    }

    fn memory(encrypted: bool) -> Self {
        Self::on(Reach::Memory(Arc::default(), Arc::new(AtomicI64::new(i64::MAX))), encrypted, tempfile::tempdir().unwrap())
    }

    fn local(encrypted: bool) -> Self {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("repository");
        let store = LocalStore::open(&root, true).unwrap();
        Self::on(Reach::Local(Arc::new(store), root), encrypted, place)
    }

    fn each() -> [Self; 3] {
        [Self::memory(true), Self::memory(false), Self::local(true)]
    }

    fn dir(&self) -> PathBuf {
        self.place.path().join("dir")
    }

    /// A file that was last changed long ago.
    fn file(&self, name: &str, content: &[u8]) {
        let path = self.dir().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        aged(&path, 1000);
    }

    fn writer(&self) -> Writer<'_> {
        Writer::new(&self.repository, &self.signer, self.recipients.as_deref()).unwrap()
    }

    fn reader(&self) -> Reader<'_> {
        Reader::new(&self.repository, &self.trust, self.identities.clone())
    }

    fn set(&self) -> ArtifactSet<'_> {
        ArtifactSet::newest(&self.repository).unwrap().1
    }

    fn head(&self) -> Head {
        newest_head(self.repository.store()).unwrap().expect("there is a head")
    }

    fn sync(&self) -> Result<SyncReport, ArtifactError> {
        self.writer().sync(&self.dir(), OPTIONS, &Unwatched)
    }

    fn put(&self, text: &str, content: &[u8]) -> Put {
        let mut content = content;
        self.writer().put(&name(text), Source::Stream { input: &mut content, spool: self.place.path() }).unwrap()
    }

    fn get(&self, text: &str, version: Option<&str>) -> Result<Vec<u8>, ArtifactError> {
        let mut out = Vec::new();
        self.reader().get_to_writer(&self.set(), &name(text), version, &mut out)?;
        Ok(out)
    }

    fn names(&self) -> Vec<String> {
        self.set().entries("").map(|entry| entry.unwrap().name.to_string()).collect()
    }

    /// Restores a set into a new directory.
    fn restore(&self, set: ArtifactSet<'_>, to: &str) -> (RestoreReport, PathBuf) {
        let to = self.place.path().join(to);
        let report = restore_set(&self.reader(), set, (0, 0), &to, 4, &Unwatched).unwrap();
        (report, to)
    }

    fn verify(&self, open: bool) -> VerifyReport {
        let sample = Sample { percent: 100, seed: 0, open };
        verify_set(&self.reader(), self.set(), (0, 0), sample, 4, &Unwatched).unwrap()
    }
}

const OPTIONS: SyncOptions = SyncOptions { threads: 4, read_all: false, allow_empty: false };

fn name(text: &str) -> ArtifactName {
    text.parse().unwrap()
}

fn aged(path: &Path, seconds: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

/// Every file below a directory, with its content.
fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, at: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

#[test]
fn what_is_put_comes_back_with_every_version() {
    for world in World::each() {
        let long = format!("long/{}", "ü".repeat(500));
        let large = noise(3 << 20);
        let cases: Vec<(&str, &[u8])> =
            vec![("a b/c", b"x"), ("-rf", b""), (&long, b"long"), ("größe/日本", &large), ("x/y/z/1/2/3", b"x")];
        for (name, content) in &cases {
            let put = world.put(name, content);
            assert_eq!((put.record.name.as_str(), put.record.bytes), (*name, content.len() as u64));
            // "x" was there from the first.
            assert_eq!(put.new_bytes, *name != "x/y/z/1/2/3", "{name}");
        }
        for (name, content) in &cases {
            assert_eq!(world.get(name, None).unwrap(), *content, "{name}");
        }
        let first = world.reader().versions(&name("-rf")).unwrap();
        world.put("-rf", b"second");
        let versions = world.reader().versions(&name("-rf")).unwrap();
        assert_eq!((first.len(), versions.len()), (1, 2));
        assert!(versions.contains(&first[0]));
        assert_eq!(world.get("-rf", None).unwrap(), b"second");
        assert_eq!(world.get("-rf", Some(&first[0])).unwrap(), b"");
        let head = world.head();
        assert_eq!((head.head, head.count, head.bytes), (6, 5, 12 - 6 + 6 + large.len() as u64));
        assert!(matches!(world.get("other", None), Err(ArtifactError::NotFound(_))));
        let absent = world.get("-rf", Some("20000101T000000.000Z-000000000000"));
        assert!(matches!(absent, Err(ArtifactError::Finding(Finding { problem: Problem::Missing, .. }))));
        assert!(matches!(world.get("-rf", Some("../../x")), Err(ArtifactError::Finding(Finding { problem: Problem::Missing, .. }))));
        let verified = world.verify(true);
        assert_eq!((verified.artifacts, verified.signatures_verified, verified.blobs_opened), (5, 5, 5));
        assert!(verified.findings.is_empty());
        let checked = world.verify(false);
        assert_eq!((checked.signatures_verified, checked.blobs_checked, checked.findings.count), (5, 5, 0));
    }
}

#[test]
fn a_file_is_put_and_got_with_permissions_and_time() {
    let world = World::local(true);
    world.file("in", b"content");
    fs::set_permissions(world.dir().join("in"), fs::Permissions::from_mode(0o4750)).unwrap();
    let put = world.writer().put(&name("n"), Source::File(&world.dir().join("in"))).unwrap();
    assert_eq!((put.record.mode, put.record.origin), (0o4750, Origin::Put));
    let out = world.dir().join("out");
    let get = |replace| world.reader().get_to_file(&world.set(), &name("n"), None, &out, replace);
    get(Replace::Never).unwrap();
    assert_eq!(fs::read(&out).unwrap(), b"content");
    let (from, to) = (fs::metadata(world.dir().join("in")).unwrap(), fs::metadata(&out).unwrap());
    assert_eq!((from.mtime(), from.mtime_nsec()), (to.mtime(), to.mtime_nsec()));
    assert_eq!(to.permissions().mode() & 0o7777, 0o750, "set-user-ID does not come back");
    assert!(matches!(get(Replace::Never), Err(ArtifactError::Occupied { .. })));
    fs::write(&out, "other").unwrap();
    get(Replace::Allowed).unwrap();
    assert_eq!(fs::read(&out).unwrap(), b"content");
    // Damage leaves what is there, and no leftovers.
    fs::write(&out, "mine").unwrap();
    world.reach.damage(&layout::artifact_blob(sha256::of(b"content")), None);
    assert!(matches!(get(Replace::Allowed), Err(ArtifactError::Finding(Finding { problem: Problem::Missing, .. }))));
    assert_eq!(fs::read(&out).unwrap(), b"mine");
    assert_eq!(tree(&world.dir()).len(), 2);
    for bad in ["", "dir-that-is-not/x"] {
        let missing = world.writer().put(&name("m"), Source::File(&world.dir().join(bad)));
        assert!(matches!(missing, Err(ArtifactError::File { .. })), "{bad:?}");
    }
}

#[test]
fn a_sync_of_an_unchanged_directory_writes_nothing() {
    for world in World::each() {
        for (name, content) in [("a-b", "1"), ("a/b", "2"), ("a/c/d e", ""), ("-x", "4"), ("ü/ö", "5"), ("a.b", "1")] {
            world.file(name, content.as_bytes());
        }
        let report = world.sync().unwrap();
        assert_eq!((report.new, report.changed, report.unchanged, report.gone, report.head), (6, 0, 0, 0, Some(1)));
        assert_eq!((report.count, report.bytes), (6, 5));
        assert!(!report.has_findings());
        let before = world.reach.all();
        let report = world.sync().unwrap();
        assert_eq!((report.new, report.changed, report.unchanged, report.gone, report.head), (0, 0, 6, 0, None));
        assert_eq!((report.count, report.bytes), (6, 5));
        let all = world.writer().sync(&world.dir(), SyncOptions { read_all: true, ..OPTIONS }, &Unwatched).unwrap();
        assert_eq!((all.unchanged, all.head), (6, None));
        assert_eq!(world.reach.all(), before);
        let (report, restored) = world.restore(world.set(), "restored");
        assert_eq!((report.restored, report.bytes, report.findings.count), (6, 5, 0));
        assert_eq!(tree(&restored), tree(&world.dir()));
        // What was restored is what was synced: times and all.
        let again = world.writer().sync(&restored, OPTIONS, &Unwatched).unwrap();
        assert_eq!((again.unchanged, again.head), (6, None));
    }
}

#[test]
fn changes_are_synced_and_older_sets_stay_as_they_were() {
    let world = World::local(true);
    let mut states = Vec::new();
    let mut expect = |new, changed, gone| {
        let report = world.sync().unwrap();
        assert_eq!((report.new, report.changed, report.gone), (new, changed, gone));
        let (head, files) = (world.head(), tree(&world.dir()));
        assert_eq!((head.count, head.bytes), (files.len() as u64, files.values().map(|f| f.len() as u64).sum()));
        assert_eq!(world.names(), files.keys().cloned().collect::<Vec<_>>());
        states.push((head.runs, files));
    };
    for number in 0..10 {
        world.file(&format!("d/{number}"), format!("{number}").as_bytes());
    }
    expect(10, 0, 0);
    world.file("d/3", b"new");
    expect(0, 1, 0);
    // Same length, same time: only reading tells, as it was stored within two seconds.
    fs::write(world.dir().join("d/4"), "44").unwrap();
    expect(0, 1, 0);
    let meta = fs::metadata(world.dir().join("d/4")).unwrap();
    fs::write(world.dir().join("d/4"), "45").unwrap();
    fs::File::options().write(true).open(world.dir().join("d/4")).unwrap().set_modified(meta.modified().unwrap()).unwrap();
    expect(0, 1, 0);
    fs::remove_file(world.dir().join("d/5")).unwrap();
    fs::set_permissions(world.dir().join("d/6"), fs::Permissions::from_mode(0o600)).unwrap();
    expect(0, 1, 1);
    world.file("d/5", b"again");
    expect(1, 0, 0);
    fs::remove_dir_all(world.dir().join("d")).unwrap();
    world.file("d", b"a file where a directory was");
    expect(1, 0, 10);
    for (number, (runs, files)) in states.into_iter().enumerate() {
        let (report, restored) = world.restore(ArtifactSet::new(world.repository.store(), runs), &format!("restored-{number}"));
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!(tree(&restored), files, "state {number}");
    }
}

#[test]
fn a_sync_takes_out_only_what_a_sync_brought() {
    let world = World::memory(true);
    world.put("kept", b"1");
    world.file("a", b"2");
    world.file("b", b"3");
    assert_eq!(world.sync().unwrap().kept, 1);
    fs::remove_file(world.dir().join("a")).unwrap();
    let report = world.sync().unwrap();
    assert_eq!((report.gone, report.kept), (1, 1));
    assert_eq!(world.names(), ["b", "kept"]);
    // Empty or gone, it is more likely not mounted.
    fs::remove_file(world.dir().join("b")).unwrap();
    assert!(matches!(world.sync(), Err(ArtifactError::WouldEmpty { gone: 1, .. })));
    fs::remove_dir(world.dir()).unwrap();
    assert!(matches!(world.sync(), Err(ArtifactError::File { .. })));
    assert_eq!(world.names(), ["b", "kept"]);
    let allowed = SyncOptions { allow_empty: true, ..OPTIONS };
    assert_eq!(world.writer().sync(&world.dir(), allowed, &Unwatched).unwrap().gone, 1);
    assert_eq!(world.names(), ["kept"]);
    // The file that was put is now in the directory: the set has it from there, then.
    fs::create_dir(world.dir()).unwrap();
    world.file("kept", b"other");
    assert_eq!(world.sync().unwrap().changed, 1);
    assert_eq!(world.set().find(&name("kept")).unwrap().unwrap().origin, Origin::Sync);
}

#[test]
fn c032_what_is_written_over_with_an_old_time_is_read() {
    let world = World::memory(true);
    let path = world.dir().join("app.tar");
    world.file("app.tar", b"aa");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    world.sync().unwrap();
    // As `cp -p`, `rsync -t`, `tar x` and a build that is the same every time do it.
    let other = world.place.path().join("other");
    fs::write(&other, b"bb").unwrap();
    fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
    fs::rename(&other, &path).unwrap();
    let report = world.sync().unwrap();
    assert_eq!((report.changed, report.unchanged), (1, 0));
    assert_eq!(world.set().find(&name("app.tar")).unwrap().unwrap().sha256, sha256::of(b"bb"));

    // Only touched: it is read, once it has settled that is noted, and then it is not read any more.
    std::thread::sleep(Duration::from_millis(2100));
    let steps = || {
        let (set, mut steps) = (world.set(), Vec::new());
        let moment = Moment { now: Timestamp::now(), read_all: false };
        let mut visit = |step: Step, _: &WalkNotes| {
            steps.push(step);
            Ok(())
        };
        plan_sync(&set, &world.dir(), moment, &mut visit).unwrap();
        steps
    };
    assert!(matches!(steps()[..], [Step::Read { reason: Reason::Status, .. }]), "{:?}", steps());
    let report = world.sync().unwrap();
    assert_eq!((report.changed, report.unchanged, report.count, report.bytes), (0, 1, 1, 2));
    assert!(report.head.is_some() && matches!(steps()[..], [Step::Unchanged(_)]), "{report:?} {:?}", steps());
    assert_eq!(world.sync().unwrap().head, None);
    assert!(world.verify(true).findings.is_empty());
}

#[test]
fn what_is_behind_a_link_stays_in_the_set() {
    let world = World::memory(true);
    for file in ["builds/1", "builds/2", "latest", "other/3"] {
        world.file(file, file.as_bytes());
    }
    world.sync().unwrap();
    // The disk was full.
    fs::rename(world.dir().join("builds"), world.place.path().join("big")).unwrap();
    std::os::unix::fs::symlink(world.place.path().join("big"), world.dir().join("builds")).unwrap();
    fs::remove_file(world.dir().join("latest")).unwrap();
    std::os::unix::fs::symlink("other/3", world.dir().join("latest")).unwrap();
    std::os::unix::fs::symlink("nowhere", world.dir().join("dangling")).unwrap();
    fs::remove_file(world.dir().join("other/3")).unwrap();
    world.file("other/4", b"4");
    let report = world.sync().unwrap();
    assert_eq!((report.new, report.gone, report.kept), (1, 1, 3));
    assert!(report.has_findings() && report.walk.hidden.count == 3, "{report:?}");
    assert_eq!(report.walk.hidden.first[0].to_string(), "builds/1: the symbolic link \"builds\" is not followed");
    let outside: Vec<_> = report.walk.outside.first.iter().map(|note| note.path.as_str()).collect();
    assert_eq!(outside, ["builds"], "the others lead to nothing that is not looked at");
    assert_eq!(world.names(), ["builds/1", "builds/2", "latest", "other/4"]);
    let complaints = crate::backup::sync_complaints(&report);
    assert!(complaints.iter().any(|complaint| complaint.contains("nobody looks behind a link")), "{complaints:?}");
    // Whoever means it removes the link.
    fs::remove_file(world.dir().join("builds")).unwrap();
    fs::remove_file(world.dir().join("latest")).unwrap();
    let report = world.sync().unwrap();
    assert_eq!((report.gone, report.has_findings()), (3, false));
}

#[test]
fn c103_a_blob_that_was_lost_is_stored_anew_while_its_file_is_there() {
    for touched in [true, false] {
        let world = World::memory(true);
        world.file("a", b"content");
        world.sync().unwrap();
        world.reach.damage(&layout::artifact_blob(sha256::of(b"content")), None);
        if touched {
            aged(&world.dir().join("a"), 500);
        }
        let report = world.writer().sync(&world.dir(), SyncOptions { read_all: true, ..OPTIONS }, &Unwatched).unwrap();
        assert_eq!(report.changed, 1, "{report:?}");
        assert!(report.stored_bytes > 0);
        assert!(world.verify(true).findings.is_empty());
    }
}

#[test]
fn what_is_no_regular_file_is_reported_and_never_followed() {
    let world = World::memory(true);
    world.file("good", b"1");
    world.file("bad\tname", b"2");
    fs::write(world.place.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(world.place.path().join("secret"), world.dir().join("link")).unwrap();
    std::os::unix::fs::symlink(world.place.path(), world.dir().join("up")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.dir().join("socket")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, world.dir().join("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let report = world.sync().unwrap();
    assert_eq!(world.names(), ["good"]);
    let mut skipped: Vec<_> = report.walk.skipped.first.iter().map(ToString::to_string).collect();
    skipped.sort();
    assert_eq!(skipped, ["fifo: a FIFO", "link: a symbolic link", "socket: a socket", "up: a symbolic link"]);
    assert_eq!(report.walk.unnamable.first[0].to_string(), "bad\\tname: the name has a control character");
    assert!(report.has_findings());
    // Nor when the link appears after the walk.
    let root = beneath::open_root(&world.dir()).unwrap();
    use std::os::fd::AsFd as _;
    for bad in ["link", "up/secret"] {
        assert!(beneath::open_file(root.as_fd(), &name(bad)).is_err(), "{bad}");
    }
    assert!(beneath::open_parent(root.as_fd(), &name("up/new/x"), true).is_err());
}

#[test]
fn a_repository_is_not_stored_in_itself() {
    let world = World::local(true);
    let outside = world.writer().sync(world.place.path(), OPTIONS, &Unwatched);
    assert!(matches!(outside, Err(ArtifactError::HoldsRepository { .. })));
    assert_eq!(world.sync().unwrap().head, None);
}

#[test]
fn a_restore_writes_nowhere_else_and_over_nothing() {
    let world = World::memory(true);
    world.put("a", b"1");
    world.put("a/b", b"2");
    world.put(&"n".repeat(300), b"3");
    world.put("ok", b"4");
    let (report, restored) = world.restore(world.set(), "restored");
    // A name that is also a directory, and one that no file system takes; the rest is there.
    assert_eq!((report.restored, report.findings.count), (2, 2), "{:?}", report.findings);
    assert!(report.findings.first.iter().all(|finding| matches!(finding.problem, Problem::NotRestored(_)) && finding.name.is_some()));
    let files = tree(&restored);
    assert_eq!(files["ok"], b"4");
    assert_eq!(files.len(), 2, "no leftovers: {files:?}");
    let again = restore_set(&world.reader(), world.set(), (0, 0), &restored, 1, &Unwatched);
    assert!(matches!(again, Err(ArtifactError::Occupied { .. })));
}

#[test]
fn concurrent_puts_are_all_in_the_last_head() {
    for shared in [true, false] {
        let world = World::memory(true);
        let writer = world.writer();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (world, writer) = (&world, &writer);
                scope.spawn(move || {
                    let own = world.writer();
                    let writer = if shared { writer } else { &own };
                    for number in 0..10 {
                        let content = format!("{}", number % 3);
                        let source = Source::Stream { input: &mut content.as_bytes(), spool: world.place.path() };
                        writer.put(&name(&format!("t{thread}/{number}")), source).unwrap();
                        let source = Source::Stream { input: &mut &b"same"[..], spool: world.place.path() };
                        writer.put(&name("same"), source).unwrap();
                    }
                });
            }
        });
        let head = world.head();
        assert_eq!((head.head, head.count, head.bytes), (160, 81, 84));
        assert_eq!(world.names().len(), 81);
        assert!(head.runs.len() < 9, "{} runs", head.runs.len());
        assert_eq!(world.reader().versions(&name("same")).unwrap().len(), 80);
        assert!(world.verify(true).findings.is_empty());
    }
}

/// Everything that can be done to an object.
fn damages(original: &[u8], other: &[u8]) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let mut flipped = original.to_vec();
    flipped[original.len() / 2] ^= 1;
    let mut longer = original.to_vec();
    longer.push(b'\n');
    vec![
        ("emptied", Some(Vec::new())),
        ("cut", Some(original[..original.len() - 1].to_vec())),
        ("flipped", Some(flipped)),
        ("lengthened", Some(longer)),
        ("swapped", Some(other.to_vec())),
        // Last: a store that holds the file open would go on reading it.
        ("deleted", None),
    ]
}

#[test]
fn every_damage_is_found_named_and_left_out() {
    for world in World::each() {
        let large = noise((2 << 20) + 5);
        world.file("dir/one", b"the first");
        world.file("dir/two", b"the second");
        world.file("large", &large);
        world.sync().unwrap();
        let entries: Vec<Entry> = world.set().entries("").map(Result::unwrap).collect();
        let record = |at: usize| layout::artifact_record(&entries[at].name, &entries[at].version);
        let blob = |at: usize| layout::artifact_blob(entries[at].sha256);
        let mut restores = 0;
        for (victim, key, other) in [(0, record(0), record(1)), (0, blob(0), blob(1)), (2, record(2), record(0)), (2, blob(2), blob(0))] {
            let original = world.reach.get(&key, 10 << 20).unwrap();
            let swapped = world.reach.get(&other, 10 << 20).unwrap();
            for (what, bytes) in damages(&original, &swapped) {
                let case = format!("{key} {what}");
                let absent = bytes.is_none();
                world.reach.damage(&key, bytes);
                for open in [true, false] {
                    let report = world.verify(open);
                    assert_eq!((report.artifacts, report.findings.count), (3, 1), "{case}: {:?}", report.findings);
                    let finding = &report.findings.first[0];
                    assert_eq!((finding.name.as_ref(), &finding.object), (Some(&entries[victim].name), &key.to_string()), "{case}");
                    match &finding.problem {
                        Problem::Missing => assert!(absent, "{case}"),
                        Problem::Corrupt(_) => assert!(!absent, "{case}"),
                        other => panic!("{case}: {other:?}"),
                    }
                }
                restores += 1;
                let (report, restored) = world.restore(world.set(), &format!("restored-{restores}"));
                assert_eq!((report.restored, report.findings.count), (2, 1), "{case}");
                assert_eq!(report.findings.first[0].name.as_ref(), Some(&entries[victim].name), "{case}");
                let mut expected = tree(&world.dir());
                expected.remove(entries[victim].name.as_str());
                assert_eq!(tree(&restored), expected, "{case}");
                assert!(world.get(entries[victim].name.as_str(), None).is_err(), "{case}");
                world.reach.damage(&key, Some(original.clone()));
            }
        }
        assert!(world.verify(true).findings.is_empty());
    }
}

#[test]
fn a_damaged_catalog_is_found_and_older_runs_do_not_answer_for_it() {
    for world in [World::memory(true), World::local(false)] {
        for number in 0..9 {
            world.file(&format!("{number}"), b"old");
        }
        world.sync().unwrap();
        world.file("3", b"new");
        fs::remove_file(world.dir().join("5")).unwrap();
        world.sync().unwrap();
        let head = world.head();
        assert_eq!(head.runs.len(), 2, "the change is in a run of its own");
        let sound = world.names();
        for index in 0..2 {
            let key = layout::artifact_run(head.runs[index].sha256);
            let original = world.reach.get(&key, 10 << 20).unwrap();
            let other = world.reach.get(&layout::artifact_run(head.runs[1 - index].sha256), 10 << 20).unwrap();
            for (number, (what, bytes)) in damages(&original, &other).into_iter().enumerate() {
                world.reach.damage(&key, bytes);
                assert!(world.set().entries("").any(|entry| entry.is_err()), "{what}");
                assert!(world.sync().is_err(), "{what}");
                let report = world.verify(true);
                assert_eq!(report.findings.count, 1, "{what}");
                assert_eq!(report.findings.first[0].object, key.to_string());
                let (report, restored) = world.restore(world.set(), &format!("restored-{index}-{number}"));
                assert_eq!(report.findings.count, 1, "{what}");
                // 3 to 5 were decided by the newer run: their old state must not pass for the new.
                let expected: &[&str] = if index == 0 { &["0", "1", "2", "6", "7", "8"] } else { &["3"] };
                assert_eq!(tree(&restored).into_keys().collect::<Vec<_>>(), expected, "{what}");
                world.reach.damage(&key, Some(original.clone()));
            }
        }
        assert_eq!(world.names(), sound);
        // A head that does not read is an error, never the one before it.
        let key = layout::artifact_head(2);
        world.reach.damage(&key, Some(b"{}".to_vec()));
        assert!(matches!(ArtifactSet::newest(&world.repository), Err(ArtifactError::Finding(_))));
        assert!(world.sync().is_err());
        let first = world.reach.get(&layout::artifact_head(1), 1 << 20).unwrap();
        world.reach.damage(&key, Some(first));
        assert!(matches!(ArtifactSet::newest(&world.repository), Err(ArtifactError::Finding(_))));
    }
}

#[test]
fn an_untrusted_key_and_a_wrong_identity_are_told_from_damage() {
    let world = World::memory(true);
    world.put("a", b"1");
    let other = KeyFileSigner::new(SigningKey::generate().unwrap());
    let trust = Trust::new([other.public_key().clone()]);
    let reader = Reader::new(&world.repository, &trust, world.identities.clone());
    let sample = Sample { percent: 100, seed: 0, open: true };
    let report = verify_set(&reader, world.set(), (0, 0), sample, 1, &Unwatched).unwrap();
    assert!(matches!(&report.findings.first[..], [Finding { problem: Problem::Unsigned(_), .. }]), "{:?}", report.findings);
    let into = world.place.path().join("untrusted");
    let report = restore_set(&reader, world.set(), (0, 0), &into, 1, &Unwatched).unwrap();
    assert_eq!((report.restored, report.findings.count), (0, 1));
    assert!(tree(&into).is_empty());
    let (text, _) = generate_identity(Timestamp::UNIX_EPOCH);
    for identities in [Identities::parse(&text).unwrap(), Identities::default()] {
        let reader = Reader::new(&world.repository, &world.trust, identities);
        let report = verify_set(&reader, world.set(), (0, 0), sample, 1, &Unwatched).unwrap();
        assert!(matches!(&report.findings.first[..], [Finding { problem: Problem::Locked(_), .. }]), "{:?}", report.findings);
        assert_eq!((report.signatures_verified, report.blobs_opened), (1, 0));
        let closed = verify_set(&reader, world.set(), (0, 0), Sample { open: false, ..sample }, 1, &Unwatched).unwrap();
        assert_eq!((closed.blobs_checked, closed.findings.count), (1, 0));
    }
    let none = verify_set(&reader, world.set(), (0, 0), Sample { percent: 0, ..sample }, 1, &Unwatched).unwrap();
    assert_eq!((none.blobs_present, none.blobs_opened), (1, 0));
}

#[test]
fn a_forged_record_does_not_pass_even_with_a_forged_catalog() {
    let world = World::memory(false);
    world.put("a", b"good");
    world.put("b", b"evil");
    let set = world.set();
    let (a, b) = (set.find(&name("a")).unwrap().unwrap(), set.find(&name("b")).unwrap().unwrap());
    let genuine = world.reader().record_of(&a).unwrap();
    let evil = world.reader().record_of(&b).unwrap();
    // Whoever can write the store writes record, run and head alike, but signs nothing.
    type Forgery = fn(&mut lifeboat_core::repository::artifact::Record, &lifeboat_core::repository::artifact::Record);
    let forgeries: [(&str, Forgery); 7] = [
        ("other bytes", |record, evil| record.sha256 = evil.sha256),
        ("other bytes and their bundle", |record, evil| (record.sha256, record.bundle) = (evil.sha256, evil.bundle.clone())),
        ("another length", |record, _| record.bytes += 1),
        ("another mode", |record, _| record.mode = 0o777),
        ("another time", |record, _| record.modified = Timestamp::UNIX_EPOCH),
        ("no bundle", |record, _| record.bundle = serde_json::Value::Null),
        ("another version", |record, evil| record.version = evil.version.clone()),
    ];
    for (what, forge) in forgeries {
        let mut record = genuine.clone();
        forge(&mut record, &evil);
        let json = to_json(&record);
        world.reach.damage(&layout::artifact_record(&record.name, &record.version), Some(json.clone()));
        let entry = Entry {
            version: record.version.clone(),
            sha256: record.sha256,
            bytes: record.bytes,
            mode: record.mode,
            modified: record.modified,
            record: sha256::of(&json),
            ..a.clone()
        };
        match world.reader().record_of(&entry).map_err(|finding| finding.problem) {
            Err(Problem::Unsigned(_)) => assert_eq!(what, "no bundle"),
            Err(Problem::BadSignature(_)) => {}
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_sync_whose_basis_is_gone_takes_out_only_what_is_still_as_it_was() {
    let world = World::memory(true);
    for file in ["a", "b", "c", "z"] {
        world.file(file, b"1");
    }
    world.sync().unwrap();
    let writer = world.writer();
    let base = world.set();
    // The sync sees a, b and c gone, and d new; before it is done, b becomes another and c is taken out.
    let mut lines = RunsWriter::new(world.repository.store());
    for file in ["a", "b", "c"] {
        lines.push(&Line::Gone { name: name(file), gone: true }).unwrap();
    }
    let d = Entry { name: name("d"), bytes: 5, ..base.find(&name("z")).unwrap().unwrap() };
    lines.push(&Line::Present(d)).unwrap();
    let change = lines.finish().unwrap();
    world.file("b", b"new");
    fs::remove_file(world.dir().join("c")).unwrap();
    assert_eq!(world.sync().unwrap().gone, 1);
    let known = Known { head: 1, count: 2, bytes: 6 };
    let head = writer.commit(change.clone(), Some((&base, known))).unwrap().unwrap();
    assert_eq!(world.names(), ["b", "d", "z"]);
    assert_eq!((head.count, head.bytes), (3, 3 + 5 + 1));
    // Nothing left of it: no head.
    let mut lines = RunsWriter::new(world.repository.store());
    lines.push(&Line::Gone { name: name("a"), gone: true }).unwrap();
    let known = Known { head: 1, count: 3, bytes: 3 };
    assert!(writer.commit(lines.finish().unwrap(), Some((&base, known))).unwrap().is_none());
    assert_eq!(world.head().head, head.head);
}

#[test]
fn what_is_there_is_looked_at_before_it_is_relied_on() {
    let mut world = World::memory(false);
    world.put("plain", b"secret once");
    let recipient = world.identities.recipients();
    world.recipients = Some(recipient);
    let put = world.put("again", b"secret once");
    assert!(put.plain && !put.new_bytes);
    world.put("sealed", b"secret now");
    world.recipients = None;
    let mut content = &b"secret now"[..];
    let refused = world.writer().put(&name("x"), Source::Stream { input: &mut content, spool: world.place.path() });
    assert!(matches!(refused, Err(ArtifactError::Finding(Finding { problem: Problem::Locked(_), .. }))));
    // A damaged blob would make a new artifact that cannot be restored.
    let key = layout::artifact_blob(sha256::of(b"secret once"));
    world.reach.damage(&key, Some(b"LBSEAL1\n".to_vec()));
    world.file("copy", b"secret once");
    world.file("other", b"other");
    let before = world.head();
    match world.sync() {
        Err(ArtifactError::Unreadable { unreadable, .. }) => {
            assert_eq!((unreadable.count, unreadable.first[0].path.as_str()), (1, "copy"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.head(), before, "nothing is half committed");
}

#[test]
fn a_sync_that_ends_anywhere_leaves_the_set_as_it_was() {
    let world = World::memory(true);
    let Reach::Memory(_, room) = &world.reach else { unreachable!("made in memory") };
    for number in 0..5 {
        world.file(&format!("{number}"), format!("old {number}").as_bytes());
    }
    world.sync().unwrap();
    let before = world.head();
    for number in 3..8 {
        world.file(&format!("{number}"), format!("new {number}").as_bytes());
    }
    fs::remove_file(world.dir().join("0")).unwrap();
    // Five blobs and five records, a run and a head; what was written before is not written again.
    let mut failures = 0;
    for more in 0..20 {
        room.store(more, Ordering::Relaxed);
        match world.sync() {
            Ok(report) => {
                assert_eq!((report.new, report.changed, report.gone), (3, 2, 1));
                break;
            }
            Err(ArtifactError::Store(StoreError::Full { .. })) => failures += 1,
            Err(other) => panic!("{other}"),
        }
        assert_eq!(world.head(), before);
        assert!(world.verify(true).findings.is_empty());
    }
    assert!((7..20).contains(&failures), "{failures}");
    room.store(i64::MAX, Ordering::Relaxed);
    assert_eq!(world.names(), ["1", "2", "3", "4", "5", "6", "7"]);
    let (report, restored) = world.restore(world.set(), "restored");
    assert!(report.findings.is_empty());
    assert_eq!(tree(&restored), tree(&world.dir()));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_not_stored() {
    let world = World::memory(true);
    let writer = world.writer();
    let path = world.dir().join("log");
    fs::write(&path, "").unwrap();
    // Every opening finds it grown since it was looked at.
    let grow = || {
        let file = fs::File::open(&path)?;
        let path = path.clone();
        std::thread::spawn(move || fs::write(path, "x".repeat(9))).join().expect("writes")?;
        Ok(file)
    };
    // Grown between looking and reading: the digest is of what was read, so that is stored.
    assert!(writer.store_file(&name("log"), Origin::Sync, None, &grow).is_ok());
    // The content that is sealed is another than was hashed: nothing is stored.
    let digest = Sha256::of(b"hashed");
    for other in ["", "sealed", "hashed and more"] {
        let blob = writer.blob(&name("log"), digest, 6, &mut other.as_bytes());
        assert!(matches!(blob, Ok(None)), "{other}");
        assert!(world.reach.length(&layout::artifact_blob(digest)).is_err());
    }
}

#[test]
fn references_are_compared_by_name_and_digest() {
    let world = World::memory(true);
    world.put("a", b"1");
    world.put("b c", b"2");
    let rows = |rows: Vec<(&str, String)>| {
        let rows = rows.into_iter().map(|(name, digest)| Ok::<_, ArtifactError>((name.to_owned(), digest)));
        cross_check(&world.set(), rows).unwrap()
    };
    let (one, two) = (sha256::of(b"1"), sha256::of(b"2"));
    let good = rows(vec![("b c", format!("\\x{two}")), ("a", one.to_string().to_uppercase()), ("a", one.to_string())]);
    assert_eq!((good.rows, good.missing_count), (3, 0));
    let bad =
        rows(vec![("a", two.to_string()), ("b", two.to_string()), ("a", "12".into()), ("../x", one.to_string()), ("a", one.to_string())]);
    assert_eq!((bad.rows, bad.missing_count), (5, 4));
    assert_eq!(bad.missing[0], format!("a: the database wants sha256 {two}, the set has another"));
    assert_eq!(bad.missing[1], "b: not in the set");
    assert!(bad.missing[2].contains("no SHA-256") && bad.missing[3].starts_with("../x: not in the set, and no name"));
    let many = rows((0..500).map(|_| ("gone", one.to_string())).collect());
    assert_eq!((many.missing_count, many.missing.len()), (500, MAX_LISTED));
    let failed = cross_check(&world.set(), [Err(ArtifactError::Contended(1))]);
    assert!(matches!(failed, Err(ArtifactError::Contended(1))));
}

fn numbered(number: u64) -> Entry {
    Entry {
        name: name(&format!("builds/{number:08}/log")),
        version: "v".into(),
        sha256: sha256::of(&number.to_le_bytes()),
        bytes: 1,
        mode: 0o644,
        modified: Timestamp::UNIX_EPOCH,
        record: sha256::of(format!("{number}").as_bytes()),
        origin: Origin::Sync,
        wrapped_to: None,
        compared: None,
    }
}

#[test]
fn a_large_set_is_many_small_runs() {
    let world = World::memory(true);
    let writer = world.writer();
    let commit = |entries: &mut dyn Iterator<Item = Line>| {
        let mut lines = RunsWriter::new(world.repository.store());
        entries.for_each(|line| lines.push(&line).unwrap());
        writer.commit(lines.finish().unwrap(), None).unwrap().unwrap()
    };
    let many = 2 * RUN_LINES + 1000;
    let head = commit(&mut (0..many).map(|number| Line::Present(numbered(number))));
    assert_eq!((head.count, head.runs.len()), (many, 3));
    assert!(head.runs.iter().all(|run| run.bytes < 6 << 20));
    // A few changes stand in front, and the three runs behind stay.
    let head =
        commit(&mut [Line::Gone { name: numbered(7).name, gone: true }, Line::Present(Entry { bytes: 9, ..numbered(40_000) })].into_iter());
    assert_eq!((head.count, head.bytes, head.runs.len()), (many - 1, many - 1 + 8, 4));
    let set = world.set();
    assert_eq!(set.find(&numbered(7).name).unwrap(), None);
    assert_eq!(set.find(&numbered(40_000).name).unwrap().unwrap().bytes, 9);
    assert_eq!(set.find(&numbered(66_000).name).unwrap(), Some(numbered(66_000)));
    assert_eq!(set.find(&numbered(many).name).unwrap(), None);
    assert_eq!(set.entries("").map(Result::unwrap).count() as u64, many - 1);
    assert_eq!(set.entries("builds/0000000").map(Result::unwrap).count(), 9);
    assert_eq!(set.entries("builds/00065").map(Result::unwrap).count(), 1000);
    assert_eq!(set.entries("c").count() + set.entries("a").count(), 0);
    // All gone: no run, and no line that says so.
    let head = commit(&mut (0..many).map(|number| Line::Gone { name: numbered(number).name, gone: true }));
    assert_eq!((head.count, head.bytes, head.runs.len()), (0, 0, 0));
}

#[test]
fn a_run_of_another_writer_may_be_of_any_length() {
    let world = World::memory(false);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let entries = 200_000;
    for number in 0..entries {
        serde_json::to_writer(&mut encoder, &Line::Present(numbered(number))).unwrap();
        std::io::Write::write_all(&mut encoder, b"\n").unwrap();
    }
    let bytes = encoder.finish().unwrap();
    let run =
        Run { sha256: sha256::of(&bytes), bytes: bytes.len() as u64, entries, first: numbered(0).name, last: numbered(entries - 1).name };
    assert!(run.bytes > 12 << 20, "{} bytes", run.bytes);
    let key = layout::artifact_run(run.sha256);
    world.reach.create(&key, &bytes).unwrap();
    let set = ArtifactSet::new(world.repository.store(), vec![run.clone()]);
    assert_eq!(set.entries("").map(Result::unwrap).count() as u64, entries);
    for wrong in [Run { entries: 1, ..run.clone() }, Run { first: name("a"), ..run.clone() }, Run { last: name("z"), ..run.clone() }] {
        assert!(ArtifactSet::new(world.repository.store(), vec![wrong]).entries("").any(|entry| entry.is_err()));
    }
    let mut flipped = bytes;
    *flipped.last_mut().unwrap() ^= 1;
    world.reach.damage(&key, Some(flipped));
    // Not one line comes out of it.
    assert!(set.entries("").next().unwrap().is_err());
    assert_eq!(set.check().unwrap().1.len(), 1);
}

#[test]
fn an_empty_directory_and_an_empty_set_agree() {
    let world = World::memory(true);
    assert!(newest_head(world.repository.store()).unwrap().is_none());
    assert!(world.set().runs().is_empty() && world.names().is_empty());
    assert_eq!(world.sync().unwrap().head, None);
    let only: Vec<String> = world.reach.all().into_keys().collect();
    assert_eq!(only, ["lifeboat.json"]);
}

/// `cargo test -p lifeboat-engine --release artifacts::tests::scale -- --ignored --nocapture`
#[test]
#[ignore = "measures time and memory; says so in numbers, asserts the memory"]
fn scale() {
    let world = World::local(true);
    let writer = world.writer();
    let many = 200_000;
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    let mut start = std::time::Instant::now();
    let mut tell = |what: &str| {
        eprintln!("{what}: {:.1} s, peak {} MiB", start.elapsed().as_secs_f64(), resident());
        start = std::time::Instant::now();
    };
    let mut lines = RunsWriter::new(world.repository.store());
    (0..many).for_each(|number| lines.push(&Line::Present(numbered(number))).unwrap());
    writer.commit(lines.finish().unwrap(), None).unwrap();
    tell("first set");
    let mut lines = RunsWriter::new(world.repository.store());
    (0..many).step_by(2).for_each(|number| lines.push(&Line::Present(Entry { bytes: 2, ..numbered(number) })).unwrap());
    let head = writer.commit(lines.finish().unwrap(), None).unwrap().unwrap();
    assert_eq!((head.count, head.bytes), (many, many + many / 2));
    tell("half of it changed");
    world.put("one", b"1");
    tell("one put");
    assert_eq!(world.set().find(&numbered(many / 2).name).unwrap().unwrap().bytes, 2);
    tell("one found");
    assert_eq!(world.set().entries("").count() as u64, many + 1);
    tell("all listed");
    let rows = (0..many).map(|number| Ok::<_, ArtifactError>((numbered(number).name.to_string(), numbered(number).sha256.to_string())));
    assert_eq!(cross_check(&world.set(), rows).unwrap().missing_count, 0);
    tell("all references compared");
    let world = World::local(true);
    for number in 0..20_000 {
        world.file(&format!("{}/{number}.log", number % 100), format!("{number}").as_bytes());
    }
    tell("20000 files written");
    assert_eq!(world.sync().unwrap().new, 20_000);
    tell("synced");
    assert_eq!(world.sync().unwrap().unchanged, 20_000);
    tell("synced again");
    assert_eq!(world.restore(world.set(), "restored").0.restored, 20_000);
    tell("restored");
    assert_eq!(world.verify(true).blobs_opened, 20_000);
    tell("verified");
    assert!(resident() < 256, "{} MiB", resident());
}

#[test]
fn what_not_all_recipients_can_open_is_said_until_they_can() {
    let mut world = World::memory(false);
    let [old, new] = [1, 2].map(|_| generate_identity(Timestamp::UNIX_EPOCH));
    let identities = [&old, &new].map(|(text, _)| Identities::parse(text).unwrap());
    let lacking = |report: &SyncReport| (report.lacking.count, report.lacking.first.as_ref().map(ToString::to_string));
    world.recipients = Some(vec![old.1.clone()]);
    for file in ["a", "b", "c", "d"] {
        world.file(file, file.as_bytes());
    }
    assert_eq!(lacking(&world.sync().unwrap()), (0, None));

    // Another identity instead: of what is unchanged, and of what comes to bytes that are there, it opens nothing.
    world.recipients = Some(vec![new.1.clone()]);
    world.file("b", b"new b");
    world.file("e", b"c");
    // The same bytes again, and a newer time.
    let file = std::fs::File::options().append(true).open(world.dir().join("d")).unwrap();
    file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
    for turn in 0..2 {
        let report = world.sync().unwrap();
        assert_eq!(lacking(&report), (4, Some("a".into())), "turn {turn}");
        assert!(
            report.has_findings() && crate::backup::sync_complaints(&report)[0].starts_with("4 artifacts, first a, were stored before")
        );
    }
    let put = world.put("f", b"a");
    assert!(put.lacks && !put.new_bytes);
    assert!(!world.put("g", b"new g").lacks);
    // It is as it says.
    let open = |identities: &Identities, file: &str| {
        let reader = Reader::new(&world.repository, &world.trust, identities.clone());
        reader.get_to_writer(&world.set(), &name(file), None, &mut Vec::new()).is_ok()
    };
    let opened = |identities: &Identities| ["a", "b", "c", "d", "e", "f", "g"].map(|file| u8::from(open(identities, file)));
    assert_eq!(opened(&identities[0]), [1, 0, 1, 1, 1, 1, 0]);
    assert_eq!(opened(&identities[1]), [0, 1, 0, 0, 0, 0, 1]);

    // Fewer recipients than a blob has are no finding; that these are not all of them is.
    world.recipients = Some(vec![old.1.clone(), new.1.clone()]);
    assert_eq!(lacking(&world.sync().unwrap()).0, 7);
    world.recipients = Some(vec![old.1.clone()]);
    assert_eq!(lacking(&world.sync().unwrap()), (2, Some("b".into())));
    // Plain ones everybody can open.
    world.recipients = None;
    assert_eq!(lacking(&world.sync().unwrap()).0, 0);
}
