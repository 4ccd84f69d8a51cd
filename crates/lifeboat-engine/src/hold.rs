//! After a backup: what it needs of earlier runs is made to stay as long as what it wrote.
//!
//! Which artifacts are visited is decided by `lifeboat_core::hold`; here they are. A look and, where the hold is too short, one
//! more request each, by several threads. What could not be held is counted and said; the visit then does not count as finished, and
//! the next backup makes up for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use lifeboat_core::hold::{Retention, Visit, Visited, artifact_until, later};
use lifeboat_core::repository::artifact::created;
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::manifest::{BackupKind, Manifest};
use lifeboat_core::repository::{FORMAT_VERSION, to_json};
use serde::Serialize;

use crate::artifacts::workers::each;
use crate::artifacts::{ArtifactError, ArtifactSet};
use crate::causes::joined;
use crate::progress::Progress;
use crate::repository::{MAX_DOCUMENT_BYTES, Repository};
use crate::store::{Store, StoreError};

/// Threads that ask: they wait for the store.
pub const THREADS: usize = 16;

/// Reasons that are kept of those that failed.
const REASONS: usize = 10;

/// Why nothing was held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The artifact set could not be read.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
}

/// What was made to stay.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Extended {
    /// Objects that are held at least as long as promised.
    pub objects: u64,
    /// Artifacts among them: two objects each.
    pub artifacts: u64,
    /// The share of the artifact set that was visited by its turn.
    pub share: f64,
    /// Objects of which that could not be made sure.
    pub failed: u64,
    /// Why, of the first of them.
    pub reasons: Vec<String>,
}

/// Makes what a backup needs stay.
pub fn extend(
    repository: &Repository,
    manifest: &Manifest,
    retention: Retention,
    now: Timestamp,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Extended, HoldError> {
    let store = repository.store();
    progress.phase("retention");
    let (number, last) = last_visit(store, retention)?;
    let visit = Visit::due(last, now, retention.span);
    let work = Work { store, objects: AtomicU64::new(0), failed: AtomicU64::new(0), reasons: Mutex::default() };
    let until = later(now, retention.span);
    let few = shared_objects(store, manifest)?;
    each(few.into_iter().map(Ok), threads, |key| work.hold(&key, until))?;
    let artifacts = AtomicU64::new(0);
    if let Some(entry) = &manifest.artifacts {
        let set = ArtifactSet::new(store, entry.runs.clone());
        let due = set.entries("").filter_map(|entry| match entry {
            Ok(entry) => visit.has(entry.sha256, created(&entry.version)).then_some(Ok(entry)),
            Err(error) => Some(Err(HoldError::from(error))),
        });
        let until = artifact_until(now, retention.span);
        each(due, threads, |entry| {
            work.hold(&layout::artifact_record(&entry.name, &entry.version), until)?;
            work.hold(&layout::artifact_blob(entry.sha256), until)?;
            artifacts.fetch_add(1, Ordering::Relaxed);
            progress.add(1, 0);
            Ok::<(), HoldError>(())
        })?;
    }
    let extended = Extended {
        objects: work.objects.into_inner(),
        artifacts: artifacts.into_inner(),
        share: visit.share(),
        failed: work.failed.into_inner(),
        reasons: work.reasons.into_inner().expect("no panic while held"),
    };
    if extended.failed == 0 {
        let visited =
            Visited { format: FORMAT_VERSION, at: now, span_seconds: retention.span.as_secs().max(0).unsigned_abs(), mode: retention.mode };
        match store.create(&layout::visit(number + 1), &to_json(&visited)) {
            // Another backup's, which held what it needs.
            Ok(()) | Err(StoreError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(extended)
}

struct Work<'a> {
    store: &'a dyn Store,
    objects: AtomicU64,
    failed: AtomicU64,
    reasons: Mutex<Vec<String>>,
}

impl Work<'_> {
    /// Holds one object. Only what hits all of them ends the work.
    fn hold(&self, key: &Key, until: Timestamp) -> Result<(), HoldError> {
        match self.store.retain(key, until) {
            Ok(()) => {
                self.objects.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(StoreError::Io { source, action, key, store }) if source.kind() == std::io::ErrorKind::Unsupported => {
                Err(StoreError::Io { source, action, key, store }.into())
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let mut reasons = self.reasons.lock().expect("no panic while held");
                if reasons.len() < REASONS {
                    reasons.push(joined(&error));
                }
                Ok(())
            }
        }
    }
}

/// The newest mark's number, and when the visit was that counts for what is promised now. A mark that cannot be read counts for nothing.
fn last_visit(store: &dyn Store, retention: Retention) -> Result<(u64, Option<Timestamp>), StoreError> {
    let newest = store.list(layout::VISITS)?.iter().filter_map(|listed| layout::number_of(&listed.key)).max();
    let Some(number) = newest else { return Ok((0, None)) };
    let visited = match store.get(&layout::visit(number), MAX_DOCUMENT_BYTES) {
        Ok(bytes) => serde_json::from_slice::<Visited>(&bytes).ok(),
        Err(error) if error.is_absence() => None,
        Err(error) => return Err(error),
    };
    Ok((number, visited.and_then(|visited| visited.counts_for(retention))))
}

/// What a backup shares with others, artifacts apart: few objects, held every time.
fn shared_objects(store: &dyn Store, manifest: &Manifest) -> Result<Vec<Key>, StoreError> {
    let mut keys = vec![layout::descriptor()];
    if let Some(artifacts) = &manifest.artifacts {
        keys.extend(artifacts.runs.iter().map(|run| layout::artifact_run(run.sha256)));
    }
    // A full backup wrote its packs and tables itself, held from then on; any other relies on older ones, a look for every 32 MiB.
    if manifest.kind != BackupKind::Full {
        keys.extend(manifest.packs.iter().map(|pack| layout::pack(pack.sha256)));
        keys.extend(manifest.tables.iter().filter_map(|table| Key::parse(&table.object).ok()));
    }
    if let Some(system_id) = manifest.postgres.as_ref().and_then(|postgres| postgres.system_id) {
        // Histories of timelines are needed as long as any backup is.
        let wal = layout::wal_of(system_id);
        let names = store.list_segments(&wal)?;
        let histories = names.iter().filter(|name| name.ends_with(".history") || *name == "cluster.json");
        keys.extend(histories.filter_map(|name| Key::parse(&format!("{wal}{name}")).ok()));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Cursor;
    use std::ops::Range;
    use std::path::Path;
    use std::sync::Arc;

    use jiff::SignedDuration;
    use lifeboat_core::hold::HoldMode;

    use super::*;
    use crate::artifacts::{Source, Writer};
    use crate::progress::Unwatched;
    use crate::signing::{KeyFileSigner, SigningKey};
    use crate::store::{Listed, MemoryStore, ObjectWriter};

    /// A store that holds, and refuses to hold keys with a word in them.
    #[derive(Clone, Default)]
    struct Holding {
        objects: Arc<MemoryStore>,
        holds: Arc<Mutex<BTreeMap<String, Timestamp>>>,
        refused: Arc<Mutex<Option<&'static str>>>,
    }

    impl Store for Holding {
        fn url(&self) -> &str {
            self.objects.url()
        }
        fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
            self.objects.writer()
        }
        fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
            self.objects.get(key, limit)
        }
        fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
            self.objects.get_range(key, range, buffer)
        }
        fn length(&self, key: &Key) -> Result<u64, StoreError> {
            self.objects.length(key)
        }
        fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
            self.objects.list(prefix)
        }
        fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
            self.objects.list_segments(prefix)
        }
        fn is_empty(&self) -> Result<bool, StoreError> {
            self.objects.is_empty()
        }
        fn delete(&self, key: &Key) -> Result<(), StoreError> {
            self.objects.delete(key)
        }
        fn retain(&self, key: &Key, until: Timestamp) -> Result<(), StoreError> {
            self.objects.length(key)?;
            if self.refused.lock().unwrap().is_some_and(|word| key.as_str().contains(word)) {
                let source = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                return Err(StoreError::Io { action: "keep", key: key.to_string(), store: self.url().into(), source });
            }
            let mut holds = self.holds.lock().unwrap();
            let hold = holds.entry(key.to_string()).or_insert(until);
            *hold = until.max(*hold);
            Ok(())
        }
    }

    fn manifest(repository: &Repository, now: Timestamp) -> Manifest {
        let (head, set) = ArtifactSet::newest(repository).unwrap();
        let document = serde_json::json!({
            "format": 1, "id": "conductor-backup-20240315T120000Z", "repository": repository.descriptor().repository, "name": "conductor",
            "host": "h", "lifeboat": "test", "started": now, "finished": now, "kind": "full", "state": "healthy",
            "encryption": {"suite": "none"}, "packs": [], "tables": [], "files": 0, "plain_bytes": 0, "stored_bytes": 0,
            "artifacts": {"head": head.as_ref().map_or(0, |head| head.head), "runs": set.runs(), "count": 0, "bytes": 0},
        });
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn c104_what_could_not_be_held_is_held_by_the_next_backup() {
        let store = Holding::default();
        let now = Timestamp::now();
        let repository = Repository::init(Box::new(store.clone()), now, "test").unwrap();
        let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
        let put = |name: &str| {
            let writer = Writer::new(&repository, &signer, None).unwrap();
            let mut input = Cursor::new(name.as_bytes().to_vec());
            writer.put(&name.parse().unwrap(), Source::Stream { input: &mut input, spool: Path::new("/nonexistent") }).unwrap();
        };
        ["a", "b", "c"].into_iter().for_each(put);
        let retention = Retention { mode: HoldMode::Governance, span: SignedDuration::from_hours(240) };
        let extend = |now| super::extend(&repository, &manifest(&repository, now), retention, now, 2, &Unwatched).unwrap();
        let held = |prefix: &str| {
            let holds = store.holds.lock().unwrap();
            let mine: Vec<Timestamp> = holds.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, until)| *until).collect();
            (mine.len(), mine.into_iter().min())
        };

        // Records cannot be held: said, everything else is held, and the visit does not count.
        *store.refused.lock().unwrap() = Some("artifacts/records/");
        let failed = extend(now);
        assert_eq!((failed.failed, failed.artifacts, failed.share), (3, 3, 1.0), "{failed:?}");
        assert!(failed.reasons[0].contains("artifacts/records/"), "{failed:?}");
        assert_eq!(held("artifacts/blobs/"), (3, Some(now + retention.span * 2)));
        assert_eq!(held("artifacts/records/"), (0, None));
        assert!(store.list(layout::VISITS).unwrap().is_empty());

        // So the next one does all of it.
        *store.refused.lock().unwrap() = None;
        let later = now + SignedDuration::from_secs(10);
        let done = extend(later);
        assert_eq!((done.failed, done.artifacts, done.share), (0, 3, 1.0), "{done:?}");
        assert_eq!(held("artifacts/records/"), (3, Some(later + retention.span * 2)));
        assert_eq!((held("lifeboat.json").0, held("artifacts/catalog/").0 > 0), (1, true));
        assert_eq!(store.list(layout::VISITS).unwrap().len(), 1);

        // And then only what falls due; a whole span later, everything has.
        let quiet = extend(later + SignedDuration::from_secs(1));
        assert!(quiet.share < 0.01 && quiet.failed == 0, "{quiet:?}");
        let far = later + retention.span + SignedDuration::from_hours(1);
        assert_eq!(extend(far).artifacts, 3);
        assert_eq!(held("artifacts/").1, Some(far + retention.span), "the runs: artifacts are held for twice as long");
        assert_eq!(held("artifacts/blobs/"), (3, Some(far + retention.span * 2)));
    }

    #[test]
    fn a_store_that_cannot_hold_says_so() {
        let now = Timestamp::now();
        let repository = Repository::init(Box::new(MemoryStore::default()), now, "test").unwrap();
        let retention = Retention { mode: HoldMode::Governance, span: SignedDuration::from_hours(24) };
        let error = extend(&repository, &manifest(&repository, now), retention, now, 2, &Unwatched).expect_err("it has no Object Lock");
        assert!(matches!(error, HoldError::Store(StoreError::Io { .. })), "{error:?}");
    }
}
