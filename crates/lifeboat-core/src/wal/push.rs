//! What `archive_command` has to decide: which file it was given, what else to bring along, and when the work was done before.
//!
//! Values only. It must not say that a file is stored: a [`Mark`] says so, and only for the very file that it was made for.
//!
//! Facts from PostgreSQL: `src/backend/postmaster/pgarch.c` (what is ready, in which order) and
//! `src/backend/access/transam/xlogarchive.c` (status files).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::file::WalFile;
use super::{Segment, SegmentSize};
use crate::repository::Sha256;

/// The longest text file of a WAL archive that is taken: a history file has a line for each timeline before it, a backup history file
/// about ten.
pub const MAX_TEXT_BYTES: u64 = 4 << 20;

/// Whether a name is that of a file that PostgreSQL archives, with any segment size. Pieces are ours, so they are none.
pub fn is_archived_name(name: &str) -> bool {
    (20..=30).any(|shift| SegmentSize::new(1 << shift).is_ok_and(|size| archived(name, size).is_some()))
}

/// The file that a name stands for, if PostgreSQL archives such files.
pub fn archived(name: &str, size: SegmentSize) -> Option<WalFile> {
    WalFile::from_file_name(name, size).ok().filter(|file| !matches!(file, WalFile::Piece { .. }))
}

/// What PostgreSQL says of a file in `pg_wal/archive_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It waits for archiving.
    Ready,
    /// It was archived, or never has to be. The file itself may go at the next checkpoint.
    Done,
}

impl Status {
    /// The file that a status file is about, and what it says.
    pub fn of(name: &str) -> Option<(&str, Status)> {
        name.strip_suffix(".ready")
            .map(|file| (file, Status::Ready))
            .or_else(|| name.strip_suffix(".done").map(|file| (file, Status::Done)))
    }
}

/// Status files by the file that they are about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statuses(BTreeMap<WalFile, Status>);

impl Statuses {
    /// From the names in `archive_status`; others than PostgreSQL's do not count.
    pub fn read<'n>(names: impl IntoIterator<Item = &'n str>, size: SegmentSize) -> Self {
        let mut all = BTreeMap::new();
        for (file, status) in names.into_iter().filter_map(Status::of) {
            if let Some(file) = archived(file, size) {
                // Ready counts where both are there: a crash between making one and removing the other.
                let entry = all.entry(file).or_insert(status);
                if status == Status::Ready {
                    *entry = status;
                }
            }
        }
        Self(all)
    }

    /// What it says of one file.
    pub fn get(&self, file: WalFile) -> Option<Status> {
        self.0.get(&file).copied()
    }

    /// What waits, in the order in which PostgreSQL will ask for it (`ready_file_comparator`): history files, then all others by name.
    /// `asked` itself is not there.
    pub fn ready(&self, asked: WalFile, size: SegmentSize) -> Vec<WalFile> {
        let waiting = self.0.iter().filter(|(file, status)| **status == Status::Ready && **file != asked);
        let mut files: Vec<WalFile> = waiting.map(|(file, _)| *file).collect();
        files.sort_by_cached_key(|file| (Reverse(matches!(file, WalFile::History(_))), file.file_name(size)));
        files
    }
}

/// What tells one state of one file from every other: where it is and when it was last changed (`stat(2)`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Length.
    pub bytes: u64,
    /// When its bytes changed.
    pub modified: Timestamp,
    /// When its inode changed; nobody can set this one.
    pub changed: Timestamp,
}

/// How coarse the clocks of file systems are: a tick of the kernel has at most 10 ms.
const TICK_MILLIS: i64 = 100;

/// Where times have no fractions they may be whole seconds, or two of them (FAT).
const COARSE_TICK_MILLIS: i64 = 4_000;

impl Identity {
    /// Whether any later change would show. A file that was changed a moment ago can be changed again within the same tick of the clock.
    pub fn is_settled(&self, now: Timestamp) -> bool {
        let whole = |time: Timestamp| time.subsec_nanosecond() == 0;
        let tick = if whole(self.modified) && whole(self.changed) { COARSE_TICK_MILLIS } else { TICK_MILLIS };
        let age = |time: Timestamp| now.as_millisecond().saturating_sub(time.as_millisecond());
        age(self.changed) >= tick && age(self.modified) >= tick
    }
}

/// Says that a file, as it was, is in the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Digest of its bytes.
    pub sha256: Sha256,
    /// The file.
    pub identity: Identity,
    /// Digest of the places that it was stored in, where those were named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub places: Option<Sha256>,
}

/// Why a text file is not what PostgreSQL wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
    /// Zeros, as a crash leaves them.
    #[error("it has zero bytes")]
    Zeros,
    /// Its last line does not end.
    #[error("its last line is cut off")]
    CutOff,
    /// A backup history file that does not say where the backup began.
    #[error("it does not say where a backup began")]
    NoStart,
}

/// Checks a history file or a backup history file. Both are lines that end (`writeTimeLineHistory` in `timeline.c`,
/// `build_backup_content` in `xlogbackup.c`); labels in them may be in any encoding.
pub fn check_text(file: WalFile, bytes: &[u8]) -> Result<(), TextError> {
    if bytes.is_empty() {
        return Err(TextError::Empty);
    }
    if bytes.contains(&0) {
        return Err(TextError::Zeros);
    }
    if bytes.last() != Some(&b'\n') {
        return Err(TextError::CutOff);
    }
    if matches!(file, WalFile::BackupHistory { .. }) && !bytes.starts_with(b"START WAL LOCATION: ") {
        return Err(TextError::NoStart);
    }
    Ok(())
}

/// The segments that are lost before `segment`: those behind the last earlier one of which anything is stored or waits. None, if the one
/// before it is there, or nothing is: then the archive of this timeline begins here.
///
/// `there` is what the repository has of the timeline, and what waits in `pg_wal`, in any order.
pub fn lost_before(segment: Segment, there: impl IntoIterator<Item = WalFile>) -> Option<(Segment, Segment)> {
    let earlier = there.into_iter().filter_map(WalFile::segment);
    let last = earlier.filter(|other| other.timeline == segment.timeline && other.number < segment.number).max()?;
    (last.next() != segment).then(|| (last.next(), segment))
}

/// The segment before it on the same timeline; timeline 1 begins with segment 1, segment 0 is never written (`BootStrapXLOG`).
pub fn predecessor(segment: Segment) -> Option<Segment> {
    let number = segment.number.checked_sub(1).filter(|number| *number > 0)?;
    Some(Segment { number, ..segment })
}

#[cfg(test)]
mod tests {
    use super::super::Timeline;
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn segment(timeline: u32, number: u64) -> Segment {
        Segment { timeline: Timeline(timeline), number }
    }

    #[test]
    fn c051_only_what_postgresql_archives_is_taken() {
        for name in [
            "000000010000000000000001",
            "000000010000000000000FFF",
            "000000010000000000000001.partial",
            "000000010000000000000080.00800000.backup",
            "00000002.history",
        ] {
            assert!(is_archived_name(name), "{name}");
        }
        for name in ["postgresql.conf", "", "000000010000000000001000", "000000010000000000000001.00000000-00001000", "00000001.history"] {
            assert!(!is_archived_name(name), "{name}");
        }
    }

    #[test]
    fn what_is_ready_comes_in_the_order_of_the_archiver() {
        let names = [
            "000000020000000000000004.ready",
            "000000010000000000000005.ready",
            "000000010000000000000003.done",
            "000000010000000000000004.00000028.backup.ready",
            "000000010000000000000004.ready",
            "00000003.history.ready",
            "00000002.history.ready",
            "000000010000000000000006.ready.tmp",
            "xlogtemp.17",
            "000000010000000000000007.done",
            "000000010000000000000007.ready",
        ];
        let statuses = Statuses::read(names, SIZE);
        let ready = |asked| statuses.ready(asked, SIZE).iter().map(|file| file.file_name(SIZE)).collect::<Vec<_>>();
        assert_eq!(
            ready(WalFile::Segment(segment(1, 4))),
            [
                "00000002.history",
                "00000003.history",
                "000000010000000000000004.00000028.backup",
                "000000010000000000000005",
                "000000010000000000000007",
                "000000020000000000000004",
            ]
        );
        assert_eq!(statuses.get(WalFile::Segment(segment(1, 3))), Some(Status::Done));
        assert_eq!(statuses.get(WalFile::Segment(segment(1, 7))), Some(Status::Ready));
        assert_eq!(statuses.get(WalFile::Segment(segment(1, 6))), None);
    }

    #[test]
    fn a_file_changed_a_moment_ago_is_not_settled() {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let identity = |modified, changed| Identity { device: 1, inode: 2, bytes: 3, modified: at(modified), changed: at(changed) };
        assert!(identity(1_000_500, 1_000_500).is_settled(at(1_000_600)));
        assert!(!identity(1_000_500, 1_000_500).is_settled(at(1_000_599)));
        assert!(!identity(1_000_500, 1_000_550).is_settled(at(1_000_600)));
        // A clock that went back, and one that counts seconds only.
        assert!(!identity(1_000_500, 1_000_500).is_settled(at(500)));
        assert!(!identity(1_000_000, 1_000_000).is_settled(at(1_003_000)));
        assert!(identity(1_000_000, 1_000_000).is_settled(at(1_004_000)));
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let time = Timestamp::new(1_700_000_000, 123_456_789).unwrap();
        let identity = Identity { device: 1, inode: u64::MAX, bytes: 3, modified: time, changed: time };
        let mark = Mark { sha256: Sha256::of(b"x"), identity, places: None };
        let bytes = serde_json::to_vec(&mark).unwrap();
        assert_eq!(serde_json::from_slice::<Mark>(&bytes).unwrap(), mark);
        for length in 0..bytes.len() {
            assert!(serde_json::from_slice::<Mark>(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn c051_text_files_that_are_not_whole_are_noticed() {
        let history = WalFile::History(Timeline(2));
        let backup = WalFile::BackupHistory { segment: segment(1, 4), offset: 40 };
        assert_eq!(check_text(history, b"1\t0/3000000\tno recovery target specified\n"), Ok(()));
        assert_eq!(check_text(backup, b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nLABEL: \xFF\n"), Ok(()));
        assert_eq!(check_text(history, b""), Err(TextError::Empty));
        assert_eq!(check_text(history, b"1\t0/3000000\t\0\0\n"), Err(TextError::Zeros));
        assert_eq!(check_text(history, b"1\t0/30"), Err(TextError::CutOff));
        assert_eq!(check_text(backup, b"LABEL: x\n"), Err(TextError::NoStart));
    }

    #[test]
    fn c054_what_is_lost_lies_between_what_is_there() {
        let whole = |number| WalFile::Segment(segment(1, number));
        let lost = |there: &[WalFile]| lost_before(segment(1, 10), there.iter().copied()).map(|(from, to)| (from.number, to.number));
        assert_eq!(lost(&[whole(8), whole(9), whole(10)]), None);
        assert_eq!(lost(&[whole(9)]), None);
        assert_eq!(lost(&[whole(3), whole(4), whole(12)]), Some((5, 10)));
        assert_eq!(lost(&[whole(8), WalFile::Piece { segment: segment(1, 9), from: 0, to: 8 }]), None);
        // The archive begins here, or has only other timelines and what follows.
        assert_eq!(lost(&[]), None);
        assert_eq!(lost(&[WalFile::Segment(segment(2, 5)), whole(10), whole(11), WalFile::History(Timeline(2))]), None);
        assert_eq!(predecessor(segment(1, 1)), None);
        assert_eq!(predecessor(segment(3, 8)), Some(segment(3, 7)));
    }
}
