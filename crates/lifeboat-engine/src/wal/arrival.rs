//! Waiting for WAL to arrive in the repository: who needs it there is told when it is, or that it is not.

use std::time::{Duration, Instant};

use lifeboat_core::repository::layout;
use lifeboat_core::wal::catalog::{Archive, Held};
use lifeboat_core::wal::file::WalFile;
use lifeboat_core::wal::{Lsn, Segment, Timeline};

use super::Cluster;
use crate::repository::Repository;
use crate::store::StoreError;

/// How often the repository is asked.
const POLL: Duration = Duration::from_millis(250);

/// Waits until the repository has the segment that ends at `lsn`, whole or in pieces up to there. `false`: not in that time.
pub fn wait(repository: &Repository, cluster: Cluster, timeline: Timeline, lsn: Lsn, timeout: Duration) -> Result<bool, StoreError> {
    let segment = Segment::ending_at(timeline, lsn, cluster.segment_size);
    let deadline = Instant::now() + timeout;
    loop {
        if has(repository, cluster, segment, lsn)? {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(left.min(POLL));
    }
}

fn has(repository: &Repository, cluster: Cluster, segment: Segment, lsn: Lsn) -> Result<bool, StoreError> {
    let key = WalFile::Segment(segment).key(cluster.system_id, cluster.segment_size);
    match repository.store().length(&key) {
        Ok(_) => return Ok(true),
        Err(error) if error.is_absence() => {}
        Err(error) => return Err(error),
    }
    // Its pieces stand behind its own name.
    let prefix = layout::wal_timeline(cluster.system_id, segment.timeline);
    let mut archive = Archive::new(cluster.system_id, cluster.segment_size);
    for listed in repository.store().list_after(&prefix, &key)? {
        match WalFile::from_key(&listed.key, cluster.system_id, cluster.segment_size) {
            Some(file) if file.segment() == Some(segment) => archive.add(file, listed.bytes),
            _ => {}
        }
    }
    Ok(matches!(archive.held(segment), Held::Open(to) if to >= lsn))
}
