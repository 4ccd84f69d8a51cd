//! The archive of a cluster as a value: the listing, the branches that history files tell of, and the gaps that were recorded.
//!
//! Nothing is decrypted for it, so a host that can only write can know how far recovery could go.

use lifeboat_core::repository::layout;
use lifeboat_core::wal::catalog::Archive;
use lifeboat_core::wal::file::{GapRecord, WalFile};
use lifeboat_core::wal::history::History;
use lifeboat_core::wal::{SystemId, Timeline};

use super::object::{WalError, WalReader};
use super::{Cluster, cluster, list};
use crate::keys::Identities;
use crate::repository::Repository;
use crate::signing::Trust;
use crate::store::StoreError;

/// The longest gap object that is read.
const MAX_GAP_BYTES: u64 = 64 << 10;

/// What a repository has of a cluster's WAL. `None`: nothing.
///
/// # Errors
///
/// A history file whose signature does not verify is an error: it says which WAL belongs together.
pub fn load(repository: &Repository, system_id: SystemId, trust: &Trust) -> Result<Option<Archive>, WalError> {
    let Some(described) = cluster(repository, system_id)? else { return without_description(repository, system_id, trust) };
    let cluster = Cluster { system_id, segment_size: described.segment_size };
    let mut archive = of_cluster(repository, cluster, trust)?;
    archive.set_beginning(described.begins);
    Ok(Some(archive))
}

/// So many files of each size are looked at before nobody knows.
const TRIED: usize = 16;

/// Whoever lost `cluster.json` has the same in every file; the first one that verifies says it. Most who come here have no file at all, so
/// the store is asked once, not once for every size that there may be. Where there are files and none of them can be read, that is no archive
/// that is not there.
fn without_description(repository: &Repository, system_id: SystemId, trust: &Trust) -> Result<Option<Archive>, WalError> {
    let listed = repository.store().list(&layout::wal_of(system_id))?;
    let mut trouble = None;
    for shift in 20..=30 {
        let Ok(segment_size) = lifeboat_core::wal::SegmentSize::new(1 << shift) else { continue };
        let cluster = Cluster { system_id, segment_size };
        let files = listed.iter().filter_map(|listed| WalFile::from_key(&listed.key, system_id, segment_size));
        let reader = WalReader::new(repository, cluster, trust, Identities::default());
        for file in files.filter(|file| file.segment().is_some()).take(TRIED) {
            match reader.head(file) {
                Ok(_) => return of_cluster(repository, cluster, trust).map(Some),
                Err(WalError::Store(error)) if error.is_transient() => return Err(error.into()),
                // Of another size, as a rule: that is what its header says.
                Err(error) => trouble = Some(error),
            }
        }
    }
    trouble.map_or(Ok(None), Err)
}

fn of_cluster(repository: &Repository, cluster: Cluster, trust: &Trust) -> Result<Archive, WalError> {
    let reader = WalReader::new(repository, cluster, trust, Identities::default());
    let mut archive = Archive::new(cluster.system_id, cluster.segment_size);
    for (file, stored_bytes) in list(repository, cluster)? {
        archive.add(file, stored_bytes);
        match file {
            WalFile::History(timeline) => archive.add_history(history(&reader, timeline)?),
            WalFile::Partial(segment) => {
                let end = reader.head(file)?.predicate.summary.and_then(|summary| summary.end);
                archive.set_partial_end(segment, end);
            }
            _ => {}
        }
    }
    for gap in gaps(repository, cluster.system_id)? {
        archive.add_gap(gap);
    }
    Ok(archive)
}

/// What is signed about a timeline's history.
pub(super) fn history(reader: &WalReader<'_>, timeline: Timeline) -> Result<History, WalError> {
    let head = reader.head(WalFile::History(timeline))?;
    head.predicate.history(timeline).ok_or_else(|| {
        let key = WalFile::History(timeline).key(reader.cluster().system_id, reader.cluster().segment_size);
        WalError::Damaged { key: key.to_string(), problem: "its statement does not say where timelines branched off".into() }
    })
}

/// Gaps that were recorded. What cannot be read is passed over: a gap object makes recovery more careful, and the listing shows
/// the hole as well.
fn gaps(repository: &Repository, system_id: SystemId) -> Result<Vec<GapRecord>, StoreError> {
    let mut gaps = Vec::new();
    for listed in repository.store().list(&layout::wal_gaps(system_id))? {
        match repository.store().get(&listed.key, MAX_GAP_BYTES) {
            Ok(bytes) => gaps.extend(serde_json::from_slice::<GapRecord>(&bytes).ok().filter(|gap| gap.format == 1)),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(gaps)
}
