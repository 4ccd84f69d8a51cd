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
