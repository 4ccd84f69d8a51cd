//! The WAL of a cluster in a repository: files in, files out, and what the listing says.
//!
//! `object` is the only place that reads and writes them; who pushes, fetches and receives stands on it.

pub mod archive;
pub mod arrival;
mod digests;
pub mod fetch;
pub mod known;
pub mod locate;
mod object;
pub mod push;
pub mod receive;
pub mod restore_point;
pub mod spool;
pub mod survey;
pub mod verify;

pub use digests::Digests;
pub use object::{Put, WalError, WalHead, WalReader, WalWriter};

use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::wal::file::{WalCluster, WalFile};
use lifeboat_core::wal::{SegmentSize, SystemId};

use crate::repository::{MAX_DOCUMENT_BYTES, Repository};
use crate::store::{Store, StoreError, first_good};

/// Whose WAL: names and keys follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// The cluster.
    pub system_id: SystemId,
    /// Bytes in one of its segments.
    pub segment_size: SegmentSize,
}

/// Where a host keeps what belongs to the WAL of one cluster in one repository.
pub fn spool_of(spool: &std::path::Path, repository: &Repository, system_id: SystemId) -> std::path::PathBuf {
    spool.join(repository.descriptor().repository.to_string()).join(system_id.to_string())
}

/// Clusters whose WAL a repository has, by their directories.
pub fn clusters(repository: &Repository) -> Result<Vec<SystemId>, StoreError> {
    let names = repository.store().list_segments("wal/")?;
    Ok(names.iter().filter_map(|name| name.strip_suffix('/')?.parse().ok()).collect())
}

/// What the repository says the WAL of a cluster is of; `None`: it has none, or does not say.
pub fn cluster(repository: &Repository, system_id: SystemId) -> Result<Option<WalCluster>, WalError> {
    let key = layout::wal_cluster(system_id);
    let read = |store: &dyn Store| match store.get(&key, MAX_DOCUMENT_BYTES) {
        Ok(bytes) => parse_cluster(&key, system_id, &bytes).map(Some),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    };
    first_good(repository.store(), &key, read, WalError::damage)
}

fn parse_cluster(key: &Key, system_id: SystemId, bytes: &[u8]) -> Result<WalCluster, WalError> {
    let damaged = |problem: String| WalError::Damaged { key: key.to_string(), problem };
    let cluster: WalCluster = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    if cluster.format != 1 || cluster.system_id != system_id {
        return Err(damaged(format!("format {} of cluster {}", cluster.format, cluster.system_id)));
    }
    Ok(cluster)
}

/// Every WAL file of a cluster that a repository has, with its stored bytes, in the order of keys.
pub fn list(repository: &Repository, cluster: Cluster) -> Result<Vec<(WalFile, u64)>, StoreError> {
    let listed = repository.store().list(&layout::wal_of(cluster.system_id))?;
    Ok(listed
        .into_iter()
        .filter_map(|listed| Some((WalFile::from_key(&listed.key, cluster.system_id, cluster.segment_size)?, listed.bytes)))
        .collect())
}
