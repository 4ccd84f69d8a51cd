//! `global/pg_control`, the file that tells a server where recovery begins.
//!
//! The layout is `struct ControlFileData` of `src/include/catalog/pg_control.h`: the same offsets up to
//! the nonce from version 1300 (PostgreSQL 13) to 1800 (18); the CRC's place differs and is found by
//! trying, so that a later layout that only adds at the end is read as well.

use serde::Serialize;

use crate::wal::{Lsn, SegmentSize, SystemId, Timeline};

/// Bytes of the file (`PG_CONTROL_FILE_SIZE`).
pub const FILE_BYTES: usize = 8192;

/// The checkpoint that no server accepts: it points into the first page of the log, and is odd.
/// The same value as pgBackRest's, so that a person who meets it finds an explanation.
const INVALID_CHECKPOINT: Lsn = Lsn(0xDEAD);

const CHECKPOINT_AT: usize = 32;

/// Why a control file could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlFileError {
    /// Too short.
    #[error("decode pg_control: {0} bytes are too few")]
    Short(usize),
    /// The CRC is not that of the bytes: torn while it was read, or damaged (c008).
    #[error("decode pg_control: its CRC does not match")]
    Crc,
    /// Written by a machine of other byte order or floating point.
    #[error("decode pg_control: written on another kind of machine")]
    Foreign,
    /// A version that is not known.
    #[error("decode pg_control: version {0} is not known")]
    Version(u32),
    /// A segment size that PostgreSQL does not allow.
    #[error("decode pg_control: its WAL segment size is impossible")]
    SegmentSize,
}

/// What state the cluster was in (`DBState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterState {
    /// Shut down cleanly.
    ShutDown,
    /// Shut down cleanly as a standby.
    ShutDownInRecovery,
    /// In recovery.
    InRecovery,
    /// Running as a primary.
    InProduction,
    /// Anything else.
    Other(u32),
}

/// Settings that a server in recovery must have at least as high as the server whose WAL it replays, or it takes no queries (manual,
/// "Hot Standby", "Administrator's Overview").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// `max_connections`.
    pub connections: u32,
    /// `max_worker_processes`.
    pub worker_processes: u32,
    /// `max_wal_senders`.
    pub wal_senders: u32,
    /// `max_prepared_transactions`.
    pub prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub locks_per_transaction: u32,
}

impl Limits {
    /// The higher of both, setting by setting.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            connections: self.connections.max(other.connections),
            worker_processes: self.worker_processes.max(other.worker_processes),
            wal_senders: self.wal_senders.max(other.wal_senders),
            prepared_transactions: self.prepared_transactions.max(other.prepared_transactions),
            locks_per_transaction: self.locks_per_transaction.max(other.locks_per_transaction),
        }
    }
}

/// The parts of the control file that a backup tool needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's number.
    pub system_id: SystemId,
    /// Layout version of this file.
    pub control_version: u32,
    /// Catalog version.
    pub catalog_version: u32,
    /// State.
    pub state: ClusterState,
    /// The latest checkpoint.
    pub checkpoint: Lsn,
    /// Where its redo begins.
    pub redo: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
    /// A standby is consistent only from here on.
    pub min_recovery_point: Lsn,
    /// The timeline of that.
    pub min_recovery_timeline: Timeline,
    /// What a standby needs.
    pub limits: Limits,
    /// `track_commit_timestamp` of the server that wrote the WAL.
    pub track_commit_timestamp: bool,
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks in one file of a relation.
    pub relation_segment_blocks: u32,
    /// Bytes of a WAL segment.
    pub segment_size: SegmentSize,
    /// Whether pages carry checksums: 1 is on, 0 off; other values are states of switching
    /// (PostgreSQL 19) and count as "do not check" (c019).
    pub checksum_version: u32,
    crc_at: usize,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().expect("4 bytes")))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("8 bytes")))
}

impl ControlFile {
    /// Reads a control file and checks its CRC.
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlFileError> {
        if bytes.len() < 512 {
            return Err(ControlFileError::Short(bytes.len()));
        }
        let control_version = u32_at(bytes, 8);
        if control_version.swap_bytes() / 100 >= 9 && control_version.swap_bytes() < 10_000 && control_version > 100_000 {
            return Err(ControlFileError::Foreign);
        }
        if !(1300..10_000).contains(&control_version) {
            return Err(ControlFileError::Version(control_version));
        }
        // offsetof(ControlFileData, crc): 288 up to version 1700, 292 from 1800.
        let crc_at = (288..=384).step_by(4).find(|at| crc32c::crc32c(&bytes[..*at]) == u32_at(bytes, *at)).ok_or(ControlFileError::Crc)?;
        if f64::from_bits(u64_at(bytes, 208)) != 1_234_567.0 {
            return Err(ControlFileError::Foreign);
        }
        Ok(Self {
            system_id: SystemId(u64_at(bytes, 0)),
            control_version,
            catalog_version: u32_at(bytes, 12),
            state: match u32_at(bytes, 16) {
                1 => ClusterState::ShutDown,
                2 => ClusterState::ShutDownInRecovery,
                5 => ClusterState::InRecovery,
                6 => ClusterState::InProduction,
                other => ClusterState::Other(other),
            },
            checkpoint: Lsn(u64_at(bytes, CHECKPOINT_AT)),
            redo: Lsn(u64_at(bytes, 40)),
            timeline: Timeline(u32_at(bytes, 48)),
            min_recovery_point: Lsn(u64_at(bytes, 136)),
            min_recovery_timeline: Timeline(u32_at(bytes, 144)),
            limits: Limits {
                connections: u32_at(bytes, 180),
                worker_processes: u32_at(bytes, 184),
                wal_senders: u32_at(bytes, 188),
                prepared_transactions: u32_at(bytes, 192),
                locks_per_transaction: u32_at(bytes, 196),
            },
            track_commit_timestamp: bytes[200] != 0,
            block_size: u32_at(bytes, 216),
            relation_segment_blocks: u32_at(bytes, 220),
            segment_size: SegmentSize::new(u32_at(bytes, 228)).map_err(|_| ControlFileError::SegmentSize)?,
            checksum_version: u32_at(bytes, 252),
            crc_at,
        })
    }

    /// Whether page checksums can be checked.
    pub fn checksums_on(&self) -> bool {
        self.checksum_version == 1
    }
}

/// The same control file with a checkpoint that cannot be found: a server that is started without
/// the `backup_label` then refuses instead of beginning recovery in the wrong place, which would
/// corrupt silently (c002). With the label PostgreSQL takes the checkpoint from there.
pub fn invalidate_checkpoint(bytes: &[u8]) -> Result<Vec<u8>, ControlFileError> {
    let control = ControlFile::decode(bytes)?;
    let mut changed = bytes.to_vec();
    changed[CHECKPOINT_AT..CHECKPOINT_AT + 8].copy_from_slice(&INVALID_CHECKPOINT.0.to_le_bytes());
    let crc = crc32c::crc32c(&changed[..control.crc_at]);
    changed[control.crc_at..control.crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A control file of that version, built from the layout.
    fn sample(version: u32) -> Vec<u8> {
        let mut bytes = vec![0; FILE_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &7_301_234_567_890_123_456u64.to_le_bytes());
        put(8, &version.to_le_bytes());
        put(12, &202_209_061u32.to_le_bytes());
        put(16, &6u32.to_le_bytes());
        put(32, &0x16_B374_D848u64.to_le_bytes());
        put(40, &0x16_B374_D800u64.to_le_bytes());
        put(48, &3u32.to_le_bytes());
        for (at, value) in [(180, 100u32), (184, 8), (188, 10), (192, 3), (196, 64), (200, 1)] {
            put(at, &value.to_le_bytes());
        }
        put(208, &1_234_567.0f64.to_le_bytes());
        put(216, &8192u32.to_le_bytes());
        put(220, &131_072u32.to_le_bytes());
        put(228, &(16u32 << 20).to_le_bytes());
        put(252, &1u32.to_le_bytes());
        let at = if version >= 1800 { 292 } else { 288 };
        let crc = crc32c::crc32c(&bytes[..at]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn reads_the_layouts_of_13_to_18() {
        for version in [1300, 1700, 1800] {
            let control = ControlFile::decode(&sample(version)).unwrap();
            assert_eq!(
                (control.timeline, control.checkpoint, control.state),
                (Timeline(3), Lsn(0x16_B374_D848), ClusterState::InProduction)
            );
            assert!(control.checksums_on() && control.track_commit_timestamp);
            let limits =
                Limits { connections: 100, worker_processes: 8, wal_senders: 10, prepared_transactions: 3, locks_per_transaction: 64 };
            assert_eq!(control.limits, limits);
        }
        assert_eq!(ControlFile::decode(&sample(1201)), Err(ControlFileError::Version(1201)));
    }

    #[test]
    fn c008_a_torn_read_fails_the_crc() {
        let mut torn = sample(1300);
        torn[36] ^= 0x10;
        assert_eq!(ControlFile::decode(&torn), Err(ControlFileError::Crc));
        assert_eq!(ControlFile::decode(&torn[..100]), Err(ControlFileError::Short(100)));
    }

    #[test]
    fn c002_the_checkpoint_is_invalidated_and_the_crc_fits() {
        for version in [1300, 1800] {
            let changed = invalidate_checkpoint(&sample(version)).unwrap();
            let control = ControlFile::decode(&changed).unwrap();
            assert_eq!(control.checkpoint, INVALID_CHECKPOINT);
            assert_eq!(control.redo, Lsn(0x16_B374_D800), "nothing else changes");
        }
    }
}
