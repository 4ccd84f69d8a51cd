//! Finding and condemning artifacts that nothing needs any more: blobs, records, catalog runs, old heads.
//!
//! Artifacts are written without a lease, so a prune and a writer meet only in the heads. A prune writes down what it condemns, and makes a
//! head of its own that says so. Whoever made a head before is seen by the prune; whoever makes one later has to come by that head, and then
//! looks again at everything that it relies on. While the list is there, nobody creates or relies on what is in it (format 8).

use std::collections::BTreeSet;

use jiff::Timestamp;
use lifeboat_core::prune::{KeptSet, named_by_digest, numbered_garbage};
use lifeboat_core::repository::artifact::{Head, Line, Run};
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::retention::{Condemned, MAX_CONDEMNED};
use lifeboat_core::repository::{FORMAT_VERSION, Sha256, to_json};

use super::ArtifactError;
use super::catalog::{self, RunLines, head, newest_head};
use crate::repository::MAX_DOCUMENT_BYTES;
use crate::store::{Listed, Store, StoreError, create_or_mine};

/// Heads of the grace period that are looked at. Where there are more, they are looked at evenly: what was in the set only between two of those
/// may be pruned before its time.
const HEADS_READ: usize = 4096;

/// How often the next head is tried for.
const HEADS: u32 = 1000;

/// The list of the prune that began with head `number`, if that is still at it: it says so as long as it holds its lease.
pub(super) fn condemned(store: &dyn Store, number: u64) -> Result<Option<Condemned>, ArtifactError> {
    let key = layout::artifact_condemned(number);
    let bytes = match store.get(&key, MAX_DOCUMENT_BYTES) {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Whoever died with the list takes nothing away any more.
    if !crate::lease::is_held(store, crate::retention::LEASE)? {
        return Ok(None);
    }
    Ok(Some(Condemned::decode(&bytes)?))
}

/// What nothing needs any more.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    /// Blobs.
    pub(crate) blobs: Vec<(Key, u64)>,
    /// Records; how long each is nobody asked.
    pub(crate) records: Vec<(Key, u64)>,
    /// Catalog runs.
    pub(crate) runs: Vec<(Key, u64)>,
    /// Old heads, lowest first.
    pub(crate) heads: Vec<(Key, u64)>,
    /// Lists that a prune left behind.
    pub(crate) lists: Vec<(Key, u64)>,
    /// Keys that are not known, and stay.
    pub(crate) unknown: Vec<Key>,
    /// Objects that cannot be read, and stay.
    pub(crate) warnings: Vec<String>,
    /// There is more than one prune condemns.
    pub(crate) more: bool,
    newest: Option<Head>,
    kept: Kept,
}

/// What stays.
#[derive(Debug, Default)]
struct Kept {
    runs: BTreeSet<Sha256>,
    blobs: KeptSet,
    records: KeptSet,
}

impl Kept {
    /// Keeps everything that a run names. Lines that a newer run replaces count as well: the run is still read.
    fn run(&mut self, store: &dyn Store, run: &Run) -> Result<(), ArtifactError> {
        if !self.runs.insert(run.sha256) {
            return Ok(());
        }
        for line in RunLines::open(store, run)? {
            if let Line::Present(entry) = line? {
                self.blobs.insert(entry.sha256);
                self.records.insert_key(&layout::artifact_record(&entry.name, &entry.version));
            }
        }
        Ok(())
    }

    fn seal(&mut self) {
        self.blobs.seal();
        self.records.seal();
    }
}

/// Looks for what neither the runs of `manifests` need nor any head made since `oldest`.
///
/// # Errors
///
/// A run or head of those that cannot be read: nobody knows then what it names.
pub(crate) fn garbage(store: &dyn Store, manifests: &[Run], oldest: Timestamp) -> Result<Garbage, ArtifactError> {
    let mut found = Garbage::default();
    let mut numbers = Vec::new();
    for listed in store.list(layout::ARTIFACT_HEADS)? {
        match layout::number_of(&listed.key).filter(|number| layout::artifact_head(*number) == listed.key) {
            Some(number) => numbers.push((number, listed)),
            None => found.unknown.push(listed.key),
        }
    }
    numbers.sort_by_key(|(number, _)| *number);
    for run in manifests {
        found.kept.run(store, run)?;
    }
    // Heads are made one after the other, so their times ascend.
    let (mut low, mut high) = (0, numbers.len().saturating_sub(1));
    while low < high {
        let middle = (low + high) / 2;
        if head(store, numbers[middle].0)?.created < oldest { low = middle + 1 } else { high = middle }
    }
    // The one before was the set until the first of those was made. Where all are older, the newest is the set.
    if let Some((number, _)) = numbers.get(low)
        && head(store, *number)?.created >= oldest
    {
        low = low.saturating_sub(1);
    }
    let since = numbers.get(low..).unwrap_or_default();
    let step = since.len().div_ceil(HEADS_READ).max(1);
    let picked = since.iter().step_by(step).chain(since.last().filter(|_| step > 1));
    for (number, _) in picked {
        let head = head(store, *number)?;
        for run in &head.runs {
            found.kept.run(store, run)?;
        }
        found.newest = Some(head);
    }
    found.kept.seal();
    let going = numbered_garbage(numbers.iter().map(|(number, _)| *number).collect(), since.first().map(|(number, _)| *number));
    found.heads = numbers.into_iter().take(going.len()).map(|(_, listed)| (listed.key, listed.bytes)).collect();
    found.lists = store.list("artifacts/condemned/")?.into_iter().map(|listed| (listed.key, listed.bytes)).collect();
    if found.newest.is_none() {
        // There never was an artifact; what stands there is of somebody who is about to make the first head.
        return Ok(found);
    }
    found.look_at_runs(store)?;
    found.look_at_blobs(store)?;
    Ok(found)
}

impl Garbage {
    fn condemned(&self) -> usize {
        self.blobs.len() + self.runs.len()
    }

    /// Runs that nothing needs, and with them the records that only they name. So records need not be listed, of which there may be ten
    /// million in one place; the price is that records which a writer left behind that died before its head stay.
    fn look_at_runs(&mut self, store: &dyn Store) -> Result<(), ArtifactError> {
        let mut records = Vec::new();
        for Listed { key, bytes } in store.list(layout::ARTIFACT_RUNS)? {
            let Ok(digest) = named_by_digest(&key, layout::artifact_run) else {
                self.unknown.push(key);
                continue;
            };
            if self.kept.runs.contains(&digest) {
                continue;
            }
            // Half of what may be condemned is left for blobs.
            if self.runs.len() >= MAX_CONDEMNED / 2 || records.len() >= lifeboat_core::prune::MAX_OBJECTS / 2 {
                self.more = true;
                break;
            }
            let lines = match catalog::orphan(store, digest, bytes) {
                Ok(lines) => lines,
                Err(ArtifactError::Finding(finding)) => {
                    self.warnings.push(format!("it is not needed, and stays because nobody knows what it names: {finding}"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            for line in lines {
                if let Line::Present(entry) = line {
                    let key = layout::artifact_record(&entry.name, &entry.version);
                    if !self.kept.records.contains_key(&key) {
                        records.push(key);
                    }
                }
            }
            self.runs.push((key, bytes));
        }
        records.sort_unstable();
        records.dedup();
        self.records = records.into_iter().map(|key| (key, 0)).collect();
        Ok(())
    }

    fn look_at_blobs(&mut self, store: &dyn Store) -> Result<(), ArtifactError> {
        // Part by part: a list of ten million keys would not fit into memory.
        for part in store.list_segments(layout::ARTIFACT_BLOBS)? {
            if !part.ends_with('/') {
                continue;
            }
            for Listed { key, bytes } in store.list(&format!("{}{part}", layout::ARTIFACT_BLOBS))? {
                match named_by_digest(&key, layout::artifact_blob) {
                    Err(_) => self.unknown.push(key),
                    Ok(digest) if self.kept.blobs.contains(digest) => {}
                    Ok(_) if self.condemned() >= MAX_CONDEMNED => self.more = true,
                    Ok(_) => self.blobs.push((key, bytes)),
                }
            }
        }
        Ok(())
    }

    /// Takes out what heads need that were made since.
    fn spare(&mut self, store: &dyn Store, newest: Head) -> Result<(), ArtifactError> {
        let looked_at = self.newest.as_ref().map_or(0, |head| head.head);
        for number in looked_at + 1..=newest.head {
            for run in &head(store, number)?.runs {
                self.kept.run(store, run)?;
            }
        }
        self.kept.seal();
        self.newest = Some(newest);
        let kept = &self.kept;
        self.blobs.retain(|(key, _)| layout::digest_of(key).is_some_and(|digest| !kept.blobs.contains(digest)));
        self.runs.retain(|(key, _)| layout::digest_of(key).is_some_and(|digest| !kept.runs.contains(&digest)));
        self.records.retain(|(key, _)| !kept.records.contains_key(key));
        Ok(())
    }

    /// Condemns the blobs and runs, as far as no head has come to need them since; what may be taken away is what is left in `self` then. The
    /// number is that of the head that says so; `None`: there is nothing to condemn.
    pub(crate) fn condemn(&mut self, store: &dyn Store, now: Timestamp) -> Result<Option<u64>, ArtifactError> {
        for _ in 0..HEADS {
            let newest = newest_head(store)?;
            if let Some(newest) = newest.filter(|newest| Some(newest) != self.newest.as_ref()) {
                self.spare(store, newest)?;
            }
            let Some(newest) = self.newest.as_ref().filter(|_| self.condemned() > 0) else { return Ok(None) };
            let number = newest.head + 1;
            let digests = |listed: &[(Key, u64)]| {
                let mut digests: Vec<Sha256> = listed.iter().filter_map(|(key, _)| layout::digest_of(key)).collect();
                digests.sort_unstable();
                digests
            };
            let (blobs, runs) = (digests(&self.blobs), digests(&self.runs));
            let list = to_json(&Condemned { format: FORMAT_VERSION, head: number, created: now, blobs, runs });
            let key = layout::artifact_condemned(number);
            if !create_or_mine(store, &key, &list)? {
                // Of a prune that died before its head was made: nobody ever heard of it.
                store.delete(&key)?;
                continue;
            }
            // The list first: who sees the head must find it.
            let next = Head { head: number, created: now, pruned: Some(number), ..newest.clone() };
            if create_or_mine(store, &layout::artifact_head(number), &next.encode())? {
                self.newest = Some(next);
                return Ok(Some(number));
            }
            store.delete(&key)?;
        }
        Err(ArtifactError::Contended(HEADS))
    }
}

/// Ends the prune that began with head `number`: from now on its names are free.
pub(crate) fn absolve(store: &dyn Store, number: u64) -> Result<(), StoreError> {
    store.delete(&layout::artifact_condemned(number))
}
