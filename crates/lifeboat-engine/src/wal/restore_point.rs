//! Named restore points: a name for this moment.

use lifeboat_core::wal::{Lsn, Segment, SegmentSize, SystemId, Timeline};
use serde::Serialize;

use crate::postgres::{Connection, PgError};

/// A name that PostgreSQL takes has at most so many bytes (`MAXFNAMELEN`, 64 with its end).
pub const MAX_NAME_BYTES: usize = 63;

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
