//! Named restore points: a name for this moment, and the proof that recovery to it is possible.

use std::time::{Duration, Instant};

use lifeboat_core::wal::catalog::{Archive, Held};
use lifeboat_core::wal::file::WalFile;
use lifeboat_core::wal::{Lsn, Segment, SegmentSize, SystemId, Timeline};
use serde::Serialize;

use super::Cluster;
use crate::postgres::{Connection, PgError};
use crate::repository::Repository;
use crate::store::StoreError;

/// A name that PostgreSQL takes has at most so many bytes (`MAXFNAMELEN`, 64 with its end).
pub const MAX_NAME_BYTES: usize = 63;

/// How often the repository is asked.
const POLL: Duration = Duration::from_millis(250);

/// A restore point that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestorePoint {
    /// Its name.
    pub name: String,
    /// Where its record ends.
    pub lsn: Lsn,
    /// On which timeline.
    pub timeline: Timeline,
    /// The cluster.
    pub system_id: SystemId,
    /// Bytes in one of its segments.
    pub segment_size: SegmentSize,
}

/// Makes a restore point (`pg_create_restore_point`), and closes its segment so that the archiver takes it at once.
pub fn create(connection: &Connection, name: &str) -> Result<RestorePoint, PgError> {
    let rows = connection.query(
        "SELECT pg_create_restore_point($1) AS lsn, (SELECT system_identifier FROM pg_control_system()) AS system_id, \
         (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size') AS segment_size",
        &[Some(name)],
    )?;
    let row = rows.one()?;
    let lsn: Lsn = row.parse("lsn")?;
    let segment_size = SegmentSize::new(row.parse("segment_size")?).map_err(|error| PgError::protocol(error.to_string()))?;
    let file: String = {
        let rows = connection.query("SELECT pg_walfile_name($1::pg_lsn) AS name", &[Some(&lsn.to_string())])?;
        rows.one()?.get("name")?.to_owned()
    };
    let segment = Segment::from_file_name(&file, segment_size).map_err(|error| PgError::protocol(error.to_string()))?;
    connection.switch_wal()?;
    Ok(RestorePoint { name: name.to_owned(), lsn, timeline: segment.timeline, system_id: row.parse("system_id")?, segment_size })
}

/// Waits until the repository has all WAL of the segment up to a position. `false`: not in that time.
pub fn wait_until_archived(repository: &Repository, point: &RestorePoint, timeout: Duration) -> Result<bool, StoreError> {
    let cluster = Cluster { system_id: point.system_id, segment_size: point.segment_size };
    let segment = Segment::ending_at(point.timeline, point.lsn, point.segment_size);
    let deadline = Instant::now() + timeout;
    loop {
        if has(repository, cluster, segment, point.lsn)? {
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
    let prefix = lifeboat_core::repository::layout::wal_timeline(cluster.system_id, segment.timeline);
    let mut archive = Archive::new(cluster.system_id, cluster.segment_size);
    for listed in repository.store().list_after(&prefix, &key)? {
        match WalFile::from_key(&listed.key, cluster.system_id, cluster.segment_size) {
            Some(file) if file.segment() == Some(segment) => archive.add(file, listed.bytes),
            _ => {}
        }
    }
    Ok(matches!(archive.held(segment), Held::Open(to) if to >= lsn))
}
