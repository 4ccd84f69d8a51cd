//! The files of a WAL archive: PostgreSQL's names, ours for pieces, and the keys they stand under (format 10).
//!
//! Names only; what is in the files is the business of `record` and `history`.

use serde::{Deserialize, Serialize};

use super::history::{Entry, History, HistoryError};
use super::receive::Position;
use super::record::Summary;
use super::{Lsn, ParseError, Segment, SegmentSize, SystemId, Timeline};
use crate::repository::Blake3;
use crate::repository::layout::{self, Key};

/// Predicate type of the statement over a WAL file (format 7).
pub const WAL_PREDICATE_TYPE: &str = "https://lifeboat.dev/wal/v1";

/// One file of a WAL archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFile {
    /// A finished segment.
    Segment(Segment),
    /// The last segment of a timeline, as the server archives it at promotion
    /// (`CleanupAfterArchiveRecovery` in `src/backend/access/transam/xlog.c`).
    Partial(Segment),
    /// Backup history file: which base backup began in this segment, at this offset.
    BackupHistory {
        /// Where the backup began.
        segment: Segment,
        /// Offset in it.
        offset: u32,
    },
    /// Bytes [from, to) of a segment that was still open; never empty.
    Piece {
        /// The segment.
        segment: Segment,
        /// Offset of its first byte.
        from: u32,
        /// Offset behind its last byte.
        to: u32,
    },
    /// Where a timeline branched off.
    History(Timeline),
}

/// Eight upper-case hexadecimal digits, as PostgreSQL writes them, and nothing else.
fn hex8(text: &str) -> Option<u32> {
    let plain = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl WalFile {
    /// The file that a name stands for; `Err` for anything else.
    pub fn from_file_name(name: &str, size: SegmentSize) -> Result<Self, ParseError> {
        let bad = || ParseError::new("WAL file name", name);
        if let Some(timeline) = name.strip_suffix(".history") {
            return hex8(timeline).filter(|number| *number > 1).map(|number| Self::History(Timeline(number))).ok_or_else(bad);
        }
        let (segment, rest) = name.split_at_checked(24).ok_or_else(bad)?;
        let segment = Segment::from_file_name(segment, size)?;
        match rest {
            "" => return Ok(Self::Segment(segment)),
            ".partial" => return Ok(Self::Partial(segment)),
            _ => {}
        }
        let rest = rest.strip_prefix('.').ok_or_else(bad)?;
        if let Some(offset) = rest.strip_suffix(".backup") {
            let offset = hex8(offset).filter(|offset| u64::from(*offset) < size.bytes()).ok_or_else(bad)?;
            return Ok(Self::BackupHistory { segment, offset });
        }
        let (from, to) = rest.split_once('-').ok_or_else(bad)?;
        match (hex8(from), hex8(to)) {
            (Some(from), Some(to)) if from < to && u64::from(to) <= size.bytes() => Ok(Self::Piece { segment, from, to }),
            _ => Err(bad()),
        }
    }

    /// Its name.
    pub fn file_name(self, size: SegmentSize) -> String {
        match self {
            Self::Segment(segment) => segment.file_name(size),
            Self::Partial(segment) => format!("{}.partial", segment.file_name(size)),
            Self::BackupHistory { segment, offset } => format!("{}.{offset:08X}.backup", segment.file_name(size)),
            Self::Piece { segment, from, to } => format!("{}.{from:08X}-{to:08X}", segment.file_name(size)),
            Self::History(timeline) => format!("{:08X}.history", timeline.0),
        }
    }

    /// The timeline that its name begins with.
    pub fn timeline(self) -> Timeline {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::BackupHistory { segment, .. } | Self::Piece { segment, .. } => {
                segment.timeline
            }
            Self::History(timeline) => timeline,
        }
    }

    /// The segment that its bytes are of.
    pub fn segment(self) -> Option<Segment> {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::Piece { segment, .. } => Some(segment),
            Self::BackupHistory { .. } | Self::History(_) => None,
        }
    }

    /// The subject of its statement: its key without `wal/`.
    pub fn subject(self, system_id: SystemId, size: SegmentSize) -> String {
        match self {
            Self::History(_) => format!("{system_id}/{}", self.file_name(size)),
            _ => format!("{system_id}/{:08X}/{}", self.timeline().0, self.file_name(size)),
        }
    }

    /// Where it stands.
    pub fn key(self, system_id: SystemId, size: SegmentSize) -> Key {
        layout::wal(&self.subject(system_id, size))
    }

    /// The file that stands at a key; `None` for keys of anything else.
    pub fn from_key(key: &Key, system_id: SystemId, size: SegmentSize) -> Option<Self> {
        let name = key.as_str().rsplit('/').next()?;
        let file = Self::from_file_name(name, size).ok()?;
        (file.key(system_id, size) == *key).then_some(file)
    }
}

/// What the statement over a WAL file says beside its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalPredicate {
    /// Length of the plain bytes.
    pub bytes: u64,
    /// Bytes in a segment of the cluster.
    pub segment_size: SegmentSize,
    /// Magic of the first page, where the file has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_magic: Option<u16>,
    /// Another digest of the plain bytes, for who reads much of it in a hurry; early writers left it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<Blake3>,
    /// What recovery targets are in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Of a history file: the timelines that it names, so that who cannot decrypt knows where they branched off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branches: Option<Vec<Branch>>,
    /// When it was signed, by the signer's word: compared with the window of a retired key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<jiff::Timestamp>,
}

/// A timeline that was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The timeline.
    pub timeline: Timeline,
    /// Where the next one begins.
    pub switch: Lsn,
}

impl WalPredicate {
    /// Of a file of `bytes` bytes, with nothing more known of it.
    pub fn new(bytes: u64, segment_size: SegmentSize) -> Self {
        Self { bytes, segment_size, page_magic: None, blake3: None, summary: None, branches: None, signed: None }
    }

    /// Of a timeline history file.
    pub fn of_history(timeline: Timeline, content: &[u8], segment_size: SegmentSize) -> Result<Self, HistoryError> {
        let history = History::parse(timeline, content)?;
        let branches = history.entries.iter().map(|entry| Branch { timeline: entry.timeline, switch: entry.switch }).collect();
        Ok(Self { branches: Some(branches), ..Self::new(content.len() as u64, segment_size) })
    }

    /// The history that it tells of, without the reasons.
    pub fn history(&self, timeline: Timeline) -> Option<History> {
        let entry = |branch: &Branch| Entry { timeline: branch.timeline, switch: branch.switch, reason: String::new() };
        self.branches.as_ref().map(|branches| History { timeline, entries: branches.iter().map(entry).collect() })
    }
}

/// `wal/<system-id>/cluster.json`: what the WAL there is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalCluster {
    /// 1.
    pub format: u32,
    /// The cluster.
    pub system_id: SystemId,
    /// Bytes in a segment.
    pub segment_size: SegmentSize,
    /// Magic of its WAL pages: one for each major version.
    pub page_magic: u16,
    /// When the archive began.
    pub created: jiff::Timestamp,
    /// Who began it.
    pub created_by: String,
    /// Where it began: the first segment that somebody was about to store then. Nothing before it was ever there. `None`: whoever began it did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins: Option<Position>,
}

/// `wal/<system-id>/gaps/…`: WAL that is known to be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapRecord {
    /// 1.
    pub format: u32,
    /// The timeline.
    pub timeline: Timeline,
    /// The first byte that is lost.
    pub from: Lsn,
    /// Behind the last.
    pub to: Lsn,
    /// When it was noticed.
    pub found: jiff::Timestamp,
    /// Who noticed.
    pub by: String,
    /// Why it is lost, as far as is known.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn c051_every_kind_of_name_is_told_apart() {
        let size = SegmentSize::DEFAULT;
        let segment = Segment { timeline: Timeline(0x1A), number: 0x102 };
        for (name, file) in [
            ("0000001A0000000100000002", WalFile::Segment(segment)),
            ("0000001A0000000100000002.partial", WalFile::Partial(segment)),
            ("0000001A0000000100000002.00000028.backup", WalFile::BackupHistory { segment, offset: 0x28 }),
            ("0000001A0000000100000002.00000000-0001A000", WalFile::Piece { segment, from: 0, to: 0x1A000 }),
            ("0000001A.history", WalFile::History(Timeline(0x1A))),
        ] {
            assert_eq!(WalFile::from_file_name(name, size), Ok(file), "{name}");
            assert_eq!(file.file_name(size), name);
            let key = file.key(SystemId(7), size);
            assert_eq!(WalFile::from_key(&key, SystemId(7), size), Some(file));
            assert_eq!(WalFile::from_key(&key, SystemId(8), size), None);
        }
        assert_eq!(WalFile::Segment(segment).key(SystemId(7), size).as_str(), "wal/7/0000001A/0000001A0000000100000002");
        assert_eq!(WalFile::History(Timeline(2)).key(SystemId(7), size).as_str(), "wal/7/00000002.history");
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            "RECOVERYXLOG",
            "0000001a0000000100000002",
            "0000001A0000000100000100",
            "0000001A0000000100000002.part",
            "0000001A0000000100000002.00000028",
            "0000001A0000000100000002.01000000.backup",
            "0000001A0000000100000002.00000010-00000010",
            "0000001A0000000100000002.00000000-01000001",
            "0000001A0000000100000002.0-10",
            "00000001.history",
            "1A.history",
            "0000001A.history ",
            "ü000001A0000000100000002",
        ] {
            assert!(WalFile::from_file_name(name, SegmentSize::DEFAULT).is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_that_is_read_is_written_the_same(name in "[0-9A-F]{22,25}(\\.(partial|history|[0-9A-F]{8}\\.backup|[0-9A-F]{8}-[0-9A-F]{8}))?") {
            if let Ok(file) = WalFile::from_file_name(&name, SegmentSize::DEFAULT) {
                prop_assert_eq!(file.file_name(SegmentSize::DEFAULT), name);
            }
        }
    }
}
