//! Tries a store out: what it does counts, not what it answers or says of itself. Some servers answer 200 to conditions and holds, and
//! ignore them.
//!
//! Objects of a probe stand below `probe/<run>/`, and are taken away at the end as far as the store allows. Where a bucket holds
//! everything that is written to it for days, they are written to be held for seconds.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::doctor::privilege::Reach;
use lifeboat_core::doctor::store::{
    Behaviour, BucketFacts, Copying, DefaultHold, Deleting, DirectoryFacts, Held, OldVersion, Race, SecondCreate, Seen, StoreFacts, Unseen,
    Versions,
};
use lifeboat_core::hold::{HoldMode, later};
use lifeboat_core::repository::Id;
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_s3::{Fact, Kind, Mode, S3Error, Versioning};

use super::s3::s3_mode;
use super::{S3Store, Store, StoreError};
use crate::causes::joined;

/// How much is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What decides whether a repository may stand there.
    Short,
    /// Everything.
    Full,
}

/// What is tried, and what the store is held against.
#[derive(Debug, Clone, Copy)]
pub struct Examination<'a> {
    /// How much.
    pub depth: Depth,
    /// What is backed up: a directory should stand on another file system.
    pub sources: &'a [&'a Path],
    /// Other repositories that have copies.
    pub other_copies: u32,
}

/// Threads that create one name at the same time.
const WRITERS: u32 = 8;

/// The longest object of a probe.
const LIMIT: u64 = 4096;

/// Seconds that a probe's object is held where it cannot be written without: enough for an answer, and short to wait for.
const HOLD_SECONDS: i64 = 4;

/// What a server's clock may be behind its own word (`Date` has whole seconds).
const CLOCK_STEP: Duration = Duration::from_millis(1500);

/// Tries a store out.
pub fn examine(store: &dyn Store, how: &Examination<'_>) -> StoreFacts {
    store.examine(how).unwrap_or_else(|| {
        let behaviour = behaviour(store, crate::random::id());
        StoreFacts {
            url: store.url().to_owned(),
            behaviour,
            bucket: None,
            directory: None,
            retention: None,
            other_copies: how.other_copies,
            reach: (how.depth == Depth::Full && store.is_remote()).then(|| reach(store, &|key| store.delete(key))),
        }
    })
}

/// What the credentials allow beside writing, seen on a pack that never was: its name is the digest of nothing that anybody has. A store
/// says that it is not there to those who may read, and that they may not to the others; deleting it changes nothing.
fn reach(store: &dyn Store, delete: &dyn Fn(&Key) -> Result<(), StoreError>) -> Reach {
    let nothing = layout::pack(crate::sha256::of(&crate::random::bytes::<32>()));
    let reads_data = match store.get(&nothing, LIMIT) {
        Ok(_) | Err(StoreError::NotFound { .. }) => Ok(true),
        Err(StoreError::Denied { .. }) => Ok(false),
        Err(error) => Err(unseen(&error)),
    };
    let deletes = match delete(&nothing) {
        Ok(()) | Err(StoreError::NotFound { .. }) => Ok(true),
        Err(StoreError::Denied { .. }) => Ok(false),
        Err(error) => Err(unseen(&error)),
    };
    Reach { reads_data, deletes }
}

/// Deletes what is not there. Where the bucket keeps versions, that leaves a mark, which is taken away again.
fn delete_nothing(store: &S3Store, key: &Key) -> Result<(), StoreError> {
    let full = store.full(key.as_str());
    let marker = store.bucket().delete(&full, None).map_err(|error| store.error("delete", key.as_str(), 0, error))?;
    if let Some(marker) = marker {
        // Who may hide and not destroy leaves the mark of an object that never was, until the bucket's own rules take it.
        let _ = store.bucket().delete(&full, Some(&marker));
    }
    Ok(())
}

fn unseen(error: &StoreError) -> Unseen {
    let text = joined(error);
    match error {
        StoreError::Denied { .. } => Unseen::Denied(text),
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::Unsupported => Unseen::Unknown(text),
        _ => Unseen::Failed(text),
    }
}

/// What every store is tried for. The objects are taken away again, by [`Store::delete`].
fn behaviour(store: &dyn Store, run: Id) -> Behaviour {
    let twice = layout::probe(run, "twice");
    let second_create = second_create(store, &twice, &|bytes| store.create(&twice, bytes));
    if let Err(why) = &second_create {
        return nothing_seen(why);
    }
    let race = race(store, &layout::probe(run, "race"));
    let read = reads(store, &layout::probe(run, "read"));
    let lists = lists(store, run);
    let keys = ["twice", "race", "read"].map(|name| layout::probe(run, name));
    let deletes = deletes(store, &keys[2]);
    let left_behind = keys.iter().filter(|key| store.delete(key).is_err()).count() as u32;
    Behaviour {
        second_create,
        second_create_in_parts: None,
        race,
        reads_what_was_written: read,
        lists_what_was_written: lists,
        deletes,
        refuses_wrong_checksum: None,
        old_version: None,
        held: None,
        left_behind,
    }
}

fn nothing_seen(why: &Unseen) -> Behaviour {
    Behaviour {
        second_create: Err(why.clone()),
        second_create_in_parts: None,
        race: Err(why.clone()),
        reads_what_was_written: Err(why.clone()),
        lists_what_was_written: Err(why.clone()),
        deletes: Err(why.clone()),
        refuses_wrong_checksum: None,
        old_version: None,
        held: None,
        left_behind: 0,
    }
}

fn second_create(store: &dyn Store, key: &Key, create: &dyn Fn(&[u8]) -> Result<(), StoreError>) -> Seen<SecondCreate> {
    let (first, second) = (b"the first writer".as_slice(), b"the second writer, with other bytes".as_slice());
    create(first).map_err(|error| unseen(&error))?;
    let again = create(second);
    let stays = store.get(key, LIMIT).map_err(|error| unseen(&error))? == first;
    match again {
        Err(StoreError::Exists { .. }) if stays => Ok(SecondCreate::Refused),
        Err(StoreError::Exists { .. }) => Ok(SecondCreate::RefusedAndLost),
        Ok(()) if stays => Ok(SecondCreate::BothWon),
        Ok(()) => Ok(SecondCreate::Overwrote),
        Err(error) => Err(unseen(&error)),
    }
}

fn race(store: &dyn Store, key: &Key) -> Seen<Race> {
    let begin = Barrier::new(WRITERS as usize);
    let bytes = |writer: u32| format!("writer {writer}").into_bytes();
    let results: Vec<Result<(), StoreError>> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let begin = &begin;
                scope.spawn(move || {
                    begin.wait();
                    store.create(key, &bytes(writer))
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().expect("a store does not panic")).collect()
    });
    let mut winners = Vec::new();
    for (writer, result) in (0..).zip(results) {
        match result {
            Ok(()) => winners.push(bytes(writer)),
            Err(StoreError::Exists { .. }) => {}
            Err(error) => return Err(unseen(&error)),
        }
    }
    let there = store.get(key, LIMIT).map_err(|error| unseen(&error))?;
    Ok(Race { writers: WRITERS, winners: winners.len() as u32, winners_bytes: winners.contains(&there) })
}

fn reads(store: &dyn Store, key: &Key) -> Seen<bool> {
    let bytes = b"whole, in ranges, and by its length";
    let read = || -> Result<bool, StoreError> {
        store.create(key, bytes)?;
        let mut range = Vec::new();
        store.get_range(key, 7..16, &mut range)?;
        Ok(store.get(key, LIMIT)? == bytes && range == bytes[7..16] && store.length(key)? == bytes.len() as u64)
    };
    match read() {
        // What was just written.
        Err(error) if error.is_absence() => Ok(false),
        other => other.map_err(|error| unseen(&error)),
    }
}

fn lists(store: &dyn Store, run: Id) -> Seen<bool> {
    let prefix = format!("{}{run}/", layout::PROBES);
    let listed = store.list(&prefix).map_err(|error| unseen(&error))?;
    Ok(["twice", "race", "read"].iter().all(|name| listed.iter().any(|listed| listed.key == layout::probe(run, name))))
}

fn deletes(store: &dyn Store, key: &Key) -> Seen<bool> {
    store.delete(key).map_err(|error| unseen(&error))?;
    match store.get(key, LIMIT) {
        Err(StoreError::NotFound { .. }) => Ok(true),
        Ok(_) => Ok(false),
        Err(error) => Err(unseen(&error)),
    }
}

/// A directory: what every store is tried for, and where it stands.
pub(super) fn directory(store: &dyn Store, root: &Path, how: &Examination<'_>) -> StoreFacts {
    let run = crate::random::id();
    let behaviour = behaviour(store, run);
    // Empty directories would make the place look used.
    let probes = root.join(layout::PROBES);
    let _ = fs::remove_dir(probes.join(run.to_string())).and_then(|()| fs::remove_dir(&probes));
    StoreFacts {
        url: store.url().to_owned(),
        behaviour,
        bucket: None,
        directory: directory_facts(root, how.sources).ok(),
        retention: None,
        other_copies: how.other_copies,
        reach: None,
    }
}

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` (statfs(2)).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Names of file systems that people put repositories on (statfs(2)).
const FILE_SYSTEMS: [(i64, &str); 10] = [
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0xEF53, "ext4"),
    (0x5846_5342, "XFS"),
    (0x9123_683E, "Btrfs"),
    (0x2FC1_2FC1, "ZFS"),
    (0x6969, "NFS"),
    (0xFF53_4D42, "CIFS"),
    (0x6573_5546, "FUSE"),
    (0x794C_7630, "overlayfs"),
];

fn directory_facts(root: &Path, sources: &[&Path]) -> std::io::Result<DirectoryFacts> {
    let meta = fs::metadata(root)?;
    let kind = rustix::fs::statfs(root)?.f_type as i64;
    let space = rustix::fs::statvfs(root)?;
    Ok(DirectoryFacts {
        path: root.display().to_string(),
        file_system: FILE_SYSTEMS.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| (*name).to_owned()),
        in_memory: IN_MEMORY.contains(&kind),
        free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        size_bytes: space.f_blocks.saturating_mul(space.f_frsize),
        mode: meta.mode() & 0o7777,
        with_source: sources.iter().any(|source| fs::metadata(source).is_ok_and(|source| source.dev() == meta.dev())),
    })
}

/// A bucket: what every store is tried for, parts, versions, holds, and what the server says.
pub(super) fn bucket(store: &S3Store, how: &Examination<'_>) -> StoreFacts {
    let facts = store.bucket().facts();
    let lock = facts.object_lock.as_ref().ok().copied().flatten();
    let run = crate::random::id();
    let mut behaviour = match lock {
        // The bucket's default may be years.
        Some(Some(_)) => try_bucket(&store.holding(HOLD_SECONDS), run, how.depth, &facts),
        _ => try_bucket(&store.clone().with_retention(None), run, how.depth, &facts),
    };
    let locks = facts.object_lock.as_ref().is_ok_and(Option::is_some) || store.promised().is_some();
    if how.depth == Depth::Full && behaviour.second_create.is_ok() && locks {
        let default = lock.flatten().map(|default| default.mode);
        let mode = store.promised().map(|retention| s3_mode(retention.mode)).or(default).unwrap_or(Mode::Governance);
        behaviour.held = Some(held(store, &layout::probe(run, "held"), mode));
    }
    if behaviour.second_create.is_ok() {
        let left = clean(store, run, matches!(lock, Some(Some(_))) || behaviour.held.is_some());
        behaviour.left_behind = left.len() as u32;
        // Who may not delete versions at all is refused as well.
        let key = store.full(layout::probe(run, "held").as_str());
        if behaviour.held == Some(Ok(Held::Kept)) && left.contains(&key) {
            let why = "its version could not be deleted when its time was over either, so that it could not before says nothing";
            behaviour.held = Some(Err(Unseen::Denied(why.to_owned())));
        }
    }
    let inherits = lock.flatten().and_then(|default| inherits(store, default.period.at_least()));
    StoreFacts {
        url: store.url().to_owned(),
        behaviour,
        bucket: Some(bucket_facts(store, facts, inherits)),
        directory: None,
        retention: store.promised(),
        other_copies: how.other_copies,
        reach: (how.depth == Depth::Full).then(|| reach(store, &|key| delete_nothing(store, key))),
    }
}

fn try_bucket(store: &S3Store, run: Id, depth: Depth, facts: &lifeboat_s3::Facts) -> Behaviour {
    let mut behaviour = behaviour(store, run);
    if behaviour.second_create.is_err() {
        return behaviour;
    }
    let parts = layout::probe(run, "parts");
    behaviour.second_create_in_parts = Some(second_create(store, &parts, &|bytes| store.create_in_parts(&parts, bytes)));
    if depth == Depth::Full {
        let checksum = store.full(layout::probe(run, "checksum").as_str());
        let refuses = store.bucket().refuses_wrong_checksum(&checksum, b"bytes that arrived otherwise");
        behaviour.refuses_wrong_checksum = Some(refuses.map_err(|error| s3_unseen(&error)));
        // Also where the answer could not be read: then it is seen.
        let may_keep = match &facts.versioning {
            Ok(versioning) => *versioning == Versioning::On,
            Err(error) => error.kind != Kind::Unsupported,
        };
        if may_keep {
            behaviour.old_version = Some(old_version(store, &layout::probe(run, "versions")));
        }
    }
    behaviour
}

fn s3_unseen(error: &S3Error) -> Unseen {
    let text = error.to_string();
    match error.kind {
        Kind::Denied => Unseen::Denied(text),
        Kind::Unsupported => Unseen::Unknown(text),
        // What a server answers to a path that it does not know.
        Kind::NotFound | Kind::Other if matches!(error.status, Some(400 | 404 | 405)) => Unseen::Unknown(text),
        _ => Unseen::Failed(text),
    }
}

/// Writes, deletes, writes again, and asks for the first by its id.
fn old_version(store: &S3Store, key: &Key) -> Seen<OldVersion> {
    let full = store.full(key.as_str());
    let bucket = store.bucket();
    let first = b"the older version";
    store.create(key, first).map_err(|error| unseen(&error))?;
    let Some(version) = bucket.head(&full, None).map_err(|error| s3_unseen(&error))?.version else { return Ok(OldVersion::Gone) };
    bucket.delete(&full, None).map_err(|error| s3_unseen(&error))?;
    store.create(key, b"the newer version, with other bytes").map_err(|error| unseen(&error))?;
    match bucket.get(&full, Some(&version), LIMIT) {
        Ok(bytes) if bytes == first => Ok(OldVersion::Kept),
        Ok(_) => Ok(OldVersion::OtherBytes),
        Err(error) if error.kind == Kind::NotFound => Ok(OldVersion::Gone),
        Err(error) => Err(s3_unseen(&error)),
    }
}

/// Writes a version that is held for seconds, and tries to get rid of it.
fn held(store: &S3Store, key: &Key, mode: Mode) -> Seen<Held> {
    let (bucket, full) = (store.bucket(), store.full(key.as_str()));
    let begun = Instant::now();
    let ahead = SignedDuration::from_secs(bucket.clock_ahead().unwrap_or(0));
    let until = later(Timestamp::now(), SignedDuration::from_secs(HOLD_SECONDS).saturating_add(ahead));
    let hold = |until: Timestamp| lifeboat_s3::Retention { mode, until: until.into() };
    let written = bucket.put_if_absent(&full, b"held for a few seconds".to_vec(), Some(hold(until))).map_err(|error| s3_unseen(&error))?;
    let head = bucket.head(&full, written.version.as_deref()).map_err(|error| s3_unseen(&error))?;
    // Of whole seconds, and not the bucket's own of days.
    let near = |found: SystemTime| {
        let found = Timestamp::try_from(found).unwrap_or(Timestamp::MAX);
        found.duration_since(until).abs() <= SignedDuration::from_secs(2)
    };
    let heeded = head.retention.is_some_and(|retention| retention.mode == mode && near(retention.until));
    let deleted = bucket.delete(&full, head.version.as_deref().or(written.version.as_deref()));
    // A hold that has ended by now says nothing about one that has not.
    let in_time = begun.elapsed() + CLOCK_STEP < Duration::from_secs(HOLD_SECONDS.unsigned_abs());
    if !heeded {
        return Ok(Held::Ignored);
    }
    match deleted {
        Ok(_) if in_time => return Ok(Held::Deleted),
        Ok(_) => return Err(Unseen::Failed(format!("the store took longer than {HOLD_SECONDS} s"))),
        Err(error) if error.kind != Kind::Denied => return Err(s3_unseen(&error)),
        Err(_) => {}
    }
    let sooner = until - SignedDuration::from_secs(2);
    match bucket.retain(&full, head.version.as_deref(), hold(sooner)) {
        Ok(()) => {
            // Some say yes and keep the longer one.
            let now = bucket.head(&full, head.version.as_deref()).map_err(|error| s3_unseen(&error))?;
            let shorter = now.retention.is_none_or(|retention| retention.until < SystemTime::from(until - SignedDuration::from_secs(1)));
            Ok(if shorter { Held::Shortened } else { Held::Kept })
        }
        Err(error) if matches!(error.kind, Kind::Denied) || matches!(error.status, Some(400)) => Ok(Held::Kept),
        Err(error) => Err(s3_unseen(&error)),
    }
}

/// Deletes every version of the run's objects, once they are not held any more. Returns the full keys of those that stay.
fn clean(store: &S3Store, run: Id, held: bool) -> Vec<String> {
    let bucket = store.bucket();
    let prefix = store.full(&format!("{}{run}/", layout::PROBES));
    if held {
        thread::sleep(Duration::from_secs(HOLD_SECONDS.unsigned_abs()) + CLOCK_STEP);
    }
    // Without versions, the objects themselves.
    let versions: Vec<(String, Option<String>)> = match bucket.versions(&prefix) {
        Ok(versions) => versions.into_iter().map(|version| (version.key, Some(version.version))).collect(),
        Err(_) => bucket.list(&prefix, None, None).unwrap_or_default().into_iter().map(|object| (object.key, None)).collect(),
    };
    let mut left = Vec::new();
    for (key, version) in versions {
        if bucket.delete(&key, version.as_deref()).is_err() {
            // Out of sight at least.
            let _ = bucket.delete(&key, None);
            left.push(key);
        }
    }
    left
}

/// Whether the newest object that relies on the bucket's default is held so long: a lease, or the descriptor.
fn inherits(store: &S3Store, at_least: Duration) -> Option<Seen<bool>> {
    let newest = store.list(&layout::leases("backup")).ok().and_then(|leases| leases.into_iter().next_back().map(|listed| listed.key));
    // Leases rely on it always; the descriptor where nothing is promised.
    let key = newest.or_else(|| store.promised().is_none().then(layout::descriptor))?;
    match store.bucket().head(&store.full(key.as_str()), None) {
        Ok(head) => {
            let expected = head.modified? + at_least.mul_f64(0.9);
            Some(Ok(head.retention.is_some_and(|retention| retention.until >= expected)))
        }
        Err(error) if error.kind == Kind::NotFound => None,
        Err(error) => Some(Err(s3_unseen(&error))),
    }
}

fn bucket_facts(store: &S3Store, facts: lifeboat_s3::Facts, inherits: Option<Seen<bool>>) -> BucketFacts {
    fn seen<T, U>(fact: Fact<T>, convert: impl FnOnce(T) -> U) -> Seen<U> {
        fact.map(convert).map_err(|error| s3_unseen(&error))
    }
    let prefix = store.prefix();
    let ours = |rule: &str| prefix.starts_with(rule) || rule.starts_with(prefix);
    BucketFacts {
        bucket: store.bucket().name().to_owned(),
        endpoint: store.endpoint().map(str::to_owned),
        versions: seen(facts.versioning, |versioning| match versioning {
            Versioning::Off => Versions::Off,
            Versioning::On => Versions::On,
            Versioning::Suspended => Versions::Suspended,
        }),
        lock: seen(facts.object_lock, |lock| {
            lock.map(|default| {
                default.map(|default| DefaultHold {
                    mode: if default.mode == Mode::Compliance { HoldMode::Compliance } else { HoldMode::Governance },
                    days: default.period.at_least().as_secs() / (24 * 60 * 60),
                })
            })
        }),
        inherits,
        copies: seen(facts.replication, |rules| {
            rules
                .into_iter()
                .map(|rule| Copying {
                    enabled: rule.enabled,
                    ours: ours(rule.prefix.as_deref().unwrap_or_default()),
                    destination: rule.destination,
                    deletions: rule.deletions,
                })
                .collect()
        }),
        encryption: seen(facts.encryption, |encryption| encryption.map(|encryption| encryption.algorithm)),
        public_access_blocked: seen(facts.public_access, |access| access.blocked),
        deleting: seen(facts.lifecycle, |rules| {
            rules
                .into_iter()
                .filter(|rule| rule.enabled)
                .map(|rule| Deleting {
                    ours: !rule.tagged && ours(&rule.prefix),
                    id: rule.id,
                    objects_after_days: rule.expires_after_days,
                    old_versions_after_days: rule.old_versions_after_days,
                    aborts_uploads: rule.aborts_uploads,
                })
                .collect()
        }),
        clock_ahead_seconds: facts.clock_ahead,
    }
}
