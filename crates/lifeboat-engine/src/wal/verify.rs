//! Reading back what the archive holds: signature, every stored byte, and, with an identity, every plain byte.
//!
//! Finds damage, and tells of the holes between what is there. What was verified once can be passed over the next time: [`Verified`] is where one stands.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use jiff::Timestamp;
use lifeboat_core::repository::sealed::TRAILER_BYTES;
use lifeboat_core::verify::{Depth, Finding, FindingKind};
use lifeboat_core::wal::catalog::{self, Archive, BackupPoint, Gap, GapStory};
use lifeboat_core::wal::file::WalFile;
use lifeboat_core::wal::{Lsn, Segment, Timeline};
use serde::{Deserialize, Serialize};

use super::object::{WalError, WalReader};
use crate::causes;
use crate::progress::Progress;
use crate::store::StoreError;
use crate::store::stream::StoreReader;

/// How far the archive of each timeline was read back and found good, without a hole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verified {
    /// By timeline.
    pub until: BTreeMap<Timeline, Mark>,
}

/// Where one stands on a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Everything of the archive before this was good.
    pub lsn: Lsn,
    /// When the last of it was read.
    pub at: Timestamp,
    /// Plain bytes were compared with what was signed; otherwise stored bytes with their checksum.
    pub opened: bool,
}

impl Verified {
    /// Where one stands as a spool remembers it; nothing, if it does not or cannot be read.
    pub fn remembered(spool: &Path) -> Self {
        std::fs::read(spool.join(FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Has the spool remember it.
    pub fn remember(&self, spool: &Path) -> io::Result<()> {
        std::fs::create_dir_all(spool)?;
        let bytes = serde_json::to_vec_pretty(self).expect("timelines and marks are written as text");
        let temporary = spool.join(format!("{FILE}.new"));
        std::fs::write(&temporary, bytes)?;
        std::fs::rename(temporary, spool.join(FILE))
    }
}

/// Its name in the spool.
const FILE: &str = "verified.json";

/// What a look came to.
#[derive(Debug, Clone, Serialize)]
pub struct WalReport {
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How deeply.
    pub depth: Depth,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Where one stands now.
    pub verified: Verified,
}

/// Whether the identities at hand open what is there; `None`: there is nothing to open.
pub fn opens(reader: &WalReader<'_>) -> Result<Option<bool>, StoreError> {
    let all = super::list(reader.repository(), reader.cluster())?;
    let Some((file, _)) = all.iter().rev().find(|(file, _)| matches!(file, WalFile::Segment(_))).or(all.first()) else { return Ok(None) };
    Ok(Some(!matches!(reader.check_opens(*file), Err(WalError::Key(_)))))
}

/// Holes that cut into what could be gone back to. `before` is the archive as it was before it was read: what arrives out of order
/// meanwhile leaves no hole. `everywhere` is what all places have together.
pub fn holes(before: &Archive, now: &Archive, everywhere: &Archive, backups: &[BackupPoint]) -> Vec<Finding> {
    let of = |archive: &Archive| -> Vec<Gap> {
        catalog::cuts(&archive.windows(backups, &mut |_, _| None)).into_iter().map(|cut| cut.gap).collect()
    };
    let (earlier, without_copies) = (of(before), of(everywhere));
    let among = |gaps: &[Gap], gap: &Gap| {
        gaps.iter().any(|other| other.timeline == gap.timeline && other.from <= gap.from && other.to.is_none_or(|to| gap.from < to))
    };
    let finding = |gap: Gap| {
        let first = WalFile::Segment(Segment::containing(gap.timeline, gap.from, now.segment_size()));
        let (kind, why) = if !among(&without_copies, &gap) {
            (FindingKind::Missing, "another place has it, and lifeboat replicate brings it here")
        } else {
            match now.story(&gap) {
                GapStory::Recorded => (
                    FindingKind::Lost,
                    "it was missed when later WAL arrived, and that was written down; lifeboat wal status shows what can be reached",
                ),
                GapStory::NotBegun => (FindingKind::Lost, "the archive was begun behind it; lifeboat wal status shows what can be reached"),
                GapStory::BeforeAll => (FindingKind::NotChecked, "the archive begins behind it, and whether it ever had it is not known"),
                GapStory::Gone => {
                    (FindingKind::Missing, "nothing behind it is reached from a backup before it; lifeboat wal status shows what is")
                }
            }
        };
        let object = first.key(now.system_id(), now.segment_size()).to_string();
        Finding { kind, backup: None, object, file: None, problem: format!("{gap}: {why}") }
    };
    of(now).into_iter().filter(|gap| among(&earlier, gap)).map(finding).collect()
}

/// Reads everything back that `since` does not cover. `opens`: there are identities, so plain bytes are looked at.
///
/// # Errors
///
/// Only what concerns no single object.
pub fn verify(
    reader: &WalReader<'_>,
    since: &Verified,
    opens: bool,
    workers: usize,
    now: Timestamp,
    progress: &dyn Progress,
) -> Result<WalReport, StoreError> {
    let size = reader.cluster().segment_size;
    let all = super::list(reader.repository(), reader.cluster())?;
    let behind = |file: &WalFile| match file.segment() {
        Some(segment) => since.until.get(&segment.timeline).is_none_or(|mark| segment.start(size) >= mark.lsn || opens && !mark.opened),
        None => true,
    };
    let wanted: Vec<(WalFile, u64)> = all.iter().copied().filter(|(file, _)| behind(file)).collect();
    progress.phase("wal");
    progress.total(wanted.len() as u64, wanted.iter().map(|(_, bytes)| bytes).sum());
    let (next, bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let findings: Mutex<Vec<(WalFile, Finding)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..workers.clamp(1, wanted.len().max(1)) {
            scope.spawn(|| {
                while let Some((file, stored)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = check(reader, *file, opens) {
                        findings.lock().expect("no panic while held").push((*file, finding(reader, *file, &error)));
                    }
                    bytes.fetch_add(*stored, Ordering::Relaxed);
                    progress.add(1, *stored);
                }
            });
        }
    });
    let mut findings = findings.into_inner().expect("no panic while held");
    findings.sort_by_key(|(file, _)| *file);
    let verified = standing(&all, since, &findings, opens, now, size);
    Ok(WalReport {
        objects: wanted.len() as u64,
        bytes: bytes.into_inner(),
        depth: if opens { Depth::Opened } else { Depth::Stored },
        findings: findings.into_iter().map(|(_, finding)| finding).collect(),
        verified,
    })
}

/// On each timeline: up to the end of the whole segments that follow one another from the first one on, none of which is in a finding.
fn standing(
    all: &[(WalFile, u64)],
    since: &Verified,
    findings: &[(WalFile, Finding)],
    opened: bool,
    now: Timestamp,
    size: lifeboat_core::wal::SegmentSize,
) -> Verified {
    let mut verified = Verified::default();
    for (file, _) in all {
        let WalFile::Segment(segment) = file else { continue };
        let before = since.until.get(&segment.timeline);
        let mark = verified.until.entry(segment.timeline).or_insert(Mark { lsn: segment.start(size), at: now, opened });
        let good = !findings.iter().any(|(bad, _)| bad == file);
        if mark.lsn == segment.start(size) && good {
            mark.lsn = segment.next().start(size);
            // What was passed over is as it was found then.
            if let Some(before) = before.filter(|before| mark.lsn <= before.lsn && (before.opened || !opened)) {
                (mark.at, mark.opened) = (before.at, before.opened);
            } else {
                (mark.at, mark.opened) = (now, opened);
            }
        }
    }
    verified
}

fn check(reader: &WalReader<'_>, file: WalFile, opens: bool) -> Result<(), WalError> {
    if opens {
        return reader.check(file);
    }
    reader.head(file)?;
    let key = file.key(reader.cluster().system_id, reader.cluster().segment_size);
    let damaged = |problem: String| WalError::Damaged { key: key.to_string(), problem };
    let mut input = StoreReader::open(reader.repository().store(), &key)?;
    let body = input.length.checked_sub(TRAILER_BYTES as u64).ok_or_else(|| damaged("shorter than its trailer".into()))?;
    let mut hasher = blake3::Hasher::new();
    let read = io::copy(&mut (&mut input).take(body), &mut hasher);
    let mut trailer = [0; TRAILER_BYTES];
    let read = read.and_then(|_| input.read_exact(&mut trailer));
    if let Some(error) = input.failed {
        return Err(error.into());
    }
    read.map_err(|error| damaged(error.to_string()))?;
    if *hasher.finalize().as_bytes() == trailer { Ok(()) } else { Err(damaged("its bytes are not those that were stored".into())) }
}

fn finding(reader: &WalReader<'_>, file: WalFile, error: &WalError) -> Finding {
    let kind = match error {
        _ if error.is_absence() => FindingKind::Missing,
        WalError::Unverified { .. } => FindingKind::Unsigned,
        WalError::Damaged { .. } => FindingKind::Corrupt,
        _ => FindingKind::NotChecked,
    };
    let object = file.key(reader.cluster().system_id, reader.cluster().segment_size).to_string();
    Finding { kind, backup: None, object, file: None, problem: causes::joined(error) }
}

#[cfg(test)]
mod tests {
    use lifeboat_core::wal::{Segment, SegmentSize};

    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn segment(number: u64) -> WalFile {
        WalFile::Segment(Segment { timeline: Timeline(1), number })
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn bad(number: u64) -> (WalFile, Finding) {
        let finding = Finding { kind: FindingKind::Corrupt, backup: None, object: String::new(), file: None, problem: String::new() };
        (segment(number), finding)
    }

    #[test]
    fn one_stands_before_the_first_hole_or_damage() {
        let files = |numbers: &[u64]| numbers.iter().map(|number| (segment(*number), 1)).collect::<Vec<_>>();
        let lsn = |files: &[(WalFile, u64)], findings: &[(WalFile, Finding)]| {
            standing(files, &Verified::default(), findings, true, at(9), SIZE).until[&Timeline(1)].lsn.0 >> 24
        };
        assert_eq!(lsn(&files(&[3, 4, 5]), &[]), 6);
        assert_eq!(lsn(&files(&[3, 4, 6]), &[]), 5, "a hole");
        assert_eq!(lsn(&files(&[3, 4, 5, 6]), &[bad(5)]), 5, "damage");
        assert_eq!(lsn(&files(&[3]), &[bad(3)]), 3, "nothing");
    }

    #[test]
    fn what_was_passed_over_keeps_its_time() {
        let files: Vec<_> = [3, 4].map(|number| (segment(number), 1)).to_vec();
        let first = standing(&files, &Verified::default(), &[], true, at(1), SIZE);
        let again = standing(&files, &first, &[], true, at(2), SIZE);
        assert_eq!(again.until[&Timeline(1)].at, at(1));
        let more = standing(&[files, vec![(segment(5), 1)]].concat(), &first, &[], true, at(2), SIZE);
        assert_eq!((more.until[&Timeline(1)].at, more.until[&Timeline(1)].lsn), (at(2), Lsn(6 << 24)));
    }
}
