//! Where received WAL rests until it is in the repository: files of the segment's size and place, written in order.
//!
//! `<segment>.open` is being written, `<segment>` is finished and durable, `<segment>.suspect` could not be synced: it is written anew
//! beside it, and only then goes. `<segment>.kept` is a copy of what can be shown of it, on its way to be `.open`. A segment of which one of
//! those two is there is one that the spool had and may have acknowledged: what is missing of it comes again, wherever else the stream would
//! begin. Which bytes of an open file count after a restart follows from the file itself: all of them as long as the
//! machine runs since they were written; after a restart of the machine, where a file may be longer than what reached the disk, those up to
//! the last record whose checksum is right.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_core::wal::receive::{self, WholeRecords, continuation_end};
use lifeboat_core::wal::record::{RecordError, Summarizer, Summary};
use lifeboat_core::wal::{LONG_HEADER_BYTES, Segment, SegmentSize, SystemId, Timeline};
use serde::{Deserialize, Serialize};

use super::checks::{Checks, PAGE_BYTES};
use crate::store::sync_directory;

/// How files are written and made durable. There is one way; tests bring disks that fail.
pub trait Disk: Send + Sync {
    /// Writes all of `bytes` at an offset.
    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    /// Makes what was written durable. After an error nothing may be believed that was written since the last success: the kernel drops
    /// pages that it could not write, and says so only once.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// The disk as it is.
pub struct RealDisk;

impl Disk for RealDisk {}

/// What a receiver has to know after a restart and cannot see from its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SpoolState {
    pub(super) format: u32,
    pub(super) system_id: SystemId,
    pub(super) segment_size: SegmentSize,
    /// The slot, as it was named when this spool began.
    pub(super) slot: String,
    /// The run of the machine in which files were written last.
    pub(super) boot: String,
    /// What was taken out of `synchronous_standby_names`, and is to be put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) degraded: Option<Degraded>,
}

/// A change of `synchronous_standby_names` that waits to be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Degraded {
    /// Since when.
    pub(super) since: Timestamp,
    /// Why.
    pub(super) reason: String,
    /// The value before.
    pub(super) before: String,
    /// The value that was set.
    pub(super) set: String,
    /// The value before was set by `ALTER SYSTEM` too; otherwise undoing is `RESET`.
    pub(super) by_alter_system: bool,
    /// Somebody was told. Early receivers did not say.
    #[serde(default = "yes")]
    pub(super) told: bool,
}

fn yes() -> bool {
    true
}

/// A segment's file, found in a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FoundSegment {
    pub(super) segment: Segment,
    /// Bytes from the first on that count.
    pub(super) bytes: u64,
    /// There were more, which could not be believed.
    pub(super) put_aside: bool,
}

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct FoundFiles {
    pub(super) segments: Vec<FoundSegment>,
    pub(super) histories: Vec<Timeline>,
    pub(super) suspects: Vec<String>,
    pub(super) gaps: Vec<String>,
}

/// The spool of one receiver, locked.
#[derive(Debug)]
pub(super) struct Spool {
    root: PathBuf,
    _lock: File,
}

/// The run of this machine; empty where it cannot be told, which equals no other.
pub(super) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Where the spool of a receiver is.
pub fn directory(spool: &Path, repository: &str, system_id: SystemId) -> PathBuf {
    spool.join(repository).join(system_id.to_string()).join("receive")
}

/// What receivers of a slot noted in the spool of a repository, by the clusters that its directories are of.
pub(super) fn states(spool: &Path, repository: &str, slot: &str) -> Vec<(SystemId, SpoolState)> {
    let Ok(entries) = fs::read_dir(spool.join(repository)) else { return Vec::new() };
    let clusters = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let noted = clusters.filter_map(|system_id| {
        let bytes = fs::read(directory(spool, repository, system_id).join("state.json")).ok()?;
        let state: SpoolState = serde_json::from_slice(&bytes).ok()?;
        (state.slot == slot).then_some((system_id, state))
    });
    noted.collect()
}

/// Whether something is in a receiver's spool that may not be in the repository: there are files, and the receiver did not end in order with
/// all that it had stored, the open segment in pieces.
pub(super) fn waits(root: &Path) -> bool {
    let names =
        |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let timelines: Vec<String> = names(root).filter(|name| name.len() == 8 && u32::from_str_radix(name, 16).is_ok()).collect();
    let files: Vec<String> = timelines.iter().flat_map(|timeline| names(&root.join(timeline)).collect::<Vec<_>>()).collect();
    let status = fs::read(root.join("status.json")).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    let is_stored = status.is_some_and(|status| status["state"] == "stopped" && status["waiting_bytes"] == 0);
    let is_aside = |name: &String| name.ends_with(".suspect") || name.ends_with(".kept");
    names(&root.join("gaps")).next().is_some() || files.iter().any(is_aside) || (!files.is_empty() && !is_stored)
}

impl Spool {
    /// Opens a spool, and makes it if need be. `None`: another receiver has it.
    pub(super) fn open(root: &Path) -> io::Result<Option<Self>> {
        fs::DirBuilder::new().recursive(true).create(root.join("gaps"))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(root.join("lock"))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { root: root.to_owned(), _lock: lock })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What was noted, if anything was.
    pub(super) fn state(&self) -> io::Result<Option<SpoolState>> {
        match fs::read(self.root.join("state.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Notes it, durably.
    pub(super) fn write_state(&self, state: &SpoolState) -> io::Result<()> {
        self.write_small("state.json", &serde_json::to_vec_pretty(state).map_err(io::Error::other)?)
    }

    /// A small file, durable and whole or not there.
    fn write_small(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, aside) = (self.root.join(name), self.root.join(format!("{name}.new")));
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        sync_directory(path.parent().unwrap_or(&self.root))
    }

    /// A file that others read at any moment, and that may be lost with the machine.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let aside = self.root.join(format!("{name}.new"));
        fs::write(&aside, bytes)?;
        fs::rename(&aside, self.root.join(name))
    }

    fn path(&self, segment: Segment, size: SegmentSize, suffix: &str) -> PathBuf {
        self.root.join(format!("{:08X}", segment.timeline.0)).join(format!("{}{suffix}", segment.file_name(size)))
    }

    /// What is there. `same_boot`: the machine runs since it was written.
    pub(super) fn find(&self, size: SegmentSize, same_boot: bool) -> io::Result<FoundFiles> {
        let mut found = FoundFiles::default();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(timeline) = name.strip_suffix(".history") {
                found.histories.extend(u32::from_str_radix(timeline, 16).ok().map(Timeline));
            }
            if name.len() != 8 || !entry.file_type()?.is_dir() {
                continue;
            }
            let mut names: BTreeMap<Segment, Vec<String>> = BTreeMap::new();
            for file in fs::read_dir(entry.path())? {
                let file = file?;
                let name = file.file_name().to_string_lossy().into_owned();
                let (stem, suffix) = name.split_once('.').map_or((&*name, ""), |(stem, _)| (stem, &name[stem.len()..]));
                if suffix == ".suspect" {
                    found.suspects.push(file.path().display().to_string());
                }
                if let Ok(segment) = Segment::from_file_name(stem, size) {
                    names.entry(segment).or_default().push(suffix.to_owned());
                }
            }
            for (segment, suffixes) in names {
                found.segments.extend(self.find_segment(segment, size, same_boot, &suffixes)?);
            }
        }
        for entry in fs::read_dir(self.root.join("gaps"))? {
            found.gaps.push(entry?.file_name().to_string_lossy().into_owned());
        }
        found.segments.sort_by_key(|found| found.segment);
        found.histories.sort_unstable();
        Ok(found)
    }

    /// What counts of a segment of which there are files with these suffixes.
    fn find_segment(&self, segment: Segment, size: SegmentSize, same_boot: bool, suffixes: &[String]) -> io::Result<Option<FoundSegment>> {
        let has = |suffix: &str| suffixes.iter().any(|found| found == suffix);
        let put_aside = has(".suspect") || has(".kept");
        let (suffix, believed) = match (has(""), has(".open"), has(".kept")) {
            (true, _, _) => ("", true),
            (_, true, _) => (".open", same_boot),
            // Whoever made the copy was ended before it could take its place.
            (_, _, true) => {
                self.take_kept(segment, size)?;
                (".open", false)
            }
            _ => return Ok(put_aside.then_some(FoundSegment { segment, bytes: 0, put_aside })),
        };
        let path = self.path(segment, size, suffix);
        let length = fs::metadata(&path)?.len().min(size.bytes());
        if believed {
            return Ok(Some(FoundSegment { segment, bytes: length, put_aside }));
        }
        let bytes = whole_bytes(&File::open(&path)?, segment, size, length)?;
        if bytes < length {
            // The next start in this life of the machine believes what it finds. A disk that does not take even that is told of when it is written.
            let _ = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(bytes).and_then(|()| file.sync_all()));
        }
        Ok(Some(FoundSegment { segment, bytes, put_aside }))
    }

    /// Opens a segment to write it. The number is that of the bytes from its first on that are there and durable.
    pub(super) fn open_segment(&self, segment: Segment, size: SegmentSize, believed: u64, disk: &dyn Disk) -> io::Result<(File, u64)> {
        let path = self.path(segment, size, ".open");
        let parent = path.parent().unwrap_or(&self.root);
        if !parent.is_dir() {
            fs::create_dir(parent)?;
            sync_directory(&self.root)?;
        }
        let open = |create: bool| OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(&path);
        match open(false) {
            Ok(file) => {
                let length = file.metadata()?.len();
                disk.sync(&file)?;
                Ok((file, believed.min(length)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let finished = self.path(segment, size, "");
                if finished.is_file() {
                    // Streamed again although it is finished: it is compared, byte by byte.
                    let file = OpenOptions::new().read(true).write(true).open(&finished)?;
                    let length = file.metadata()?.len();
                    return Ok((file, length));
                }
                let file = open(true)?;
                // Before any of its bytes is called durable.
                sync_directory(parent)?;
                Ok((file, 0))
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a segment to read it.
    pub(super) fn read_segment(&self, segment: Segment, size: SegmentSize) -> io::Result<File> {
        match File::open(self.path(segment, size, "")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::open(self.path(segment, size, ".open")),
            other => other,
        }
    }

    /// Gives a segment that was synced its name.
    pub(super) fn finish(&self, segment: Segment, size: SegmentSize) -> io::Result<()> {
        let (open, finished) = (self.path(segment, size, ".open"), self.path(segment, size, ""));
        match fs::rename(&open, &finished) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && finished.is_file() => {}
            other => other?,
        }
        let _ = fs::remove_file(self.path(segment, size, ".suspect"));
        sync_directory(finished.parent().unwrap_or(&self.root))
    }

    /// Puts a segment aside that could not be synced, or does not hold what it should, finished or not, and of which nothing is kept.
    pub(super) fn suspect(&self, segment: Segment, size: SegmentSize) -> io::Result<()> {
        let suspect = self.path(segment, size, ".suspect");
        let length = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        for suffix in ["", ".open"] {
            let path = self.path(segment, size, suffix);
            let outcome = if length(&path) < length(&suspect) { fs::remove_file(&path) } else { fs::rename(&path, &suspect) };
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Copies the first bytes of a segment that cannot be believed, as far as they are what was received, durably; returns what is known
    /// of the copy.
    pub(super) fn keep(&self, segment: Segment, size: SegmentSize, from: &File, mut checks: Checks, disk: &dyn Disk) -> io::Result<Checks> {
        let path = self.path(segment, size, ".kept");
        let copy = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let mut page = vec![0; PAGE_BYTES];
        let mut pages = 0;
        while let Some((crc, known)) = checks.page(pages) {
            let at = pages as u64 * PAGE_BYTES as u64;
            if from.read_exact_at(&mut page[..known], at).is_err() || crc32c::crc32c(&page[..known]) != crc {
                break;
            }
            disk.write_at(&copy, &page[..known], at)?;
            pages += 1;
        }
        checks.cut(pages);
        disk.sync(&copy)?;
        Ok(checks)
    }

    /// Makes that copy the file that is written, and puts the segment aside that it is of. Whoever is ended in between leaves one file of the
    /// segment that counts: what was acknowledged of it must not be a name that nobody looks at.
    pub(super) fn take_kept(&self, segment: Segment, size: SegmentSize) -> io::Result<()> {
        let [finished, open, suspect] = ["", ".open", ".suspect"].map(|suffix| self.path(segment, size, suffix));
        let length = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        let if_there =
            |outcome: io::Result<()>| outcome.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) });
        if_there(fs::rename(&finished, &open))?;
        if open.is_file() && length(&open) >= length(&suspect) {
            if_there(fs::remove_file(&suspect))?;
            fs::hard_link(&open, &suspect)?;
        }
        fs::rename(self.path(segment, size, ".kept"), &open)?;
        sync_directory(open.parent().unwrap_or(&self.root))
    }

    /// Removes a segment that is in the repository.
    pub(super) fn remove(&self, segment: Segment, size: SegmentSize) {
        // What cannot be removed is found again at the next start, and compared with the repository.
        let removed = ["", ".open"].map(|suffix| {
            let path = self.path(segment, size, suffix);
            fs::metadata(&path).is_ok_and(|meta| meta.len() == size.bytes()) & fs::remove_file(&path).is_ok()
        });
        let _ = fs::remove_file(self.path(segment, size, ".kept"));
        // Where not all else was there of it, that is all that there is of the rest, and says that there was one.
        if removed.contains(&true) {
            self.forget(segment, size);
        }
    }

    /// Removes what was put aside of a segment: all of it is safe.
    pub(super) fn forget(&self, segment: Segment, size: SegmentSize) {
        let _ = fs::remove_file(self.path(segment, size, ".suspect"));
    }

    /// A timeline's history, durable.
    pub(super) fn write_history(&self, timeline: Timeline, bytes: &[u8]) -> io::Result<()> {
        self.write_small(&format!("{:08X}.history", timeline.0), bytes)
    }

    /// A timeline's history; `None`: there is none.
    pub(super) fn history(&self, timeline: Timeline) -> io::Result<Option<Vec<u8>>> {
        self.small(&format!("{:08X}.history", timeline.0))
    }

    /// A gap that is not in the repository yet, durable.
    pub(super) fn write_gap(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.write_small(&format!("gaps/{name}"), bytes)
    }

    pub(super) fn gap(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.small(&format!("gaps/{name}"))
    }

    pub(super) fn remove_gap(&self, name: &str) {
        let _ = fs::remove_file(self.root.join("gaps").join(name));
    }

    fn small(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        const MOST: u64 = 1 << 20;
        let file = match File::open(self.root.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// How far the first `length` bytes of a segment are whole records.
    pub(super) fn whole_records(&self, segment: Segment, size: SegmentSize, length: u64) -> io::Result<WholeRecords> {
        let read = read_records(&self.read_segment(segment, size)?, segment, size, length)?;
        let all = read.length == length;
        Ok(if all { receive::whole_records(segment, size, length, &read.header, &read.summary) } else { WholeRecords::Unknown })
    }
}

/// What was read of a file.
struct ReadRecords {
    length: u64,
    header: [u8; LONG_HEADER_BYTES],
    summary: Result<Summary, RecordError>,
}

/// Reads the first `length` bytes of a file, or those that there are.
fn read_records(file: &File, segment: Segment, size: SegmentSize, length: u64) -> io::Result<ReadRecords> {
    let mut summarizer = Summarizer::new(segment, size);
    let mut buffer = vec![0; 256 << 10];
    let mut header = [0; LONG_HEADER_BYTES];
    let mut at = 0;
    while at < length {
        let part = buffer.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
        match file.read_at(&mut buffer[..part], at) {
            Ok(0) => break,
            Ok(read) => {
                if let (0, Some(first)) = (at, buffer[..read].first_chunk()) {
                    header = *first;
                }
                summarizer.push(&buffer[..read]);
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ReadRecords { length: at, header, summary: summarizer.finish() })
}

/// How many of the first `length` bytes of a file end with a whole record, or belong all to one that began before and goes on behind the file.
fn whole_bytes(file: &File, segment: Segment, size: SegmentSize, length: u64) -> io::Result<u64> {
    let ReadRecords { header, summary, .. } = read_records(file, segment, size, length)?;
    Ok(match receive::whole_records(segment, size, length, &header, &summary) {
        WholeRecords::Until(end) => end.0.saturating_sub(segment.start(size).0),
        WholeRecords::Before if length == size.bytes() && continuation_end(&header, size) == length => length,
        WholeRecords::Before | WholeRecords::Unknown => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn segment(number: u64) -> Segment {
        Segment { timeline: Timeline(1), number }
    }

    #[test]
    fn one_receiver_has_a_spool_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let first = Spool::open(place.path()).unwrap().expect("it is free");
        assert!(Spool::open(place.path()).unwrap().is_none());
        drop(first);
        assert!(Spool::open(place.path()).unwrap().is_some());
    }

    #[test]
    fn c058_of_a_file_that_is_put_aside_the_part_stays_that_is_what_was_received() {
        let place = tempfile::tempdir().unwrap();
        let spool = Spool::open(place.path()).unwrap().unwrap();
        let bytes: Vec<u8> = (0..3 * PAGE_BYTES as u32 + 1000).map(|n| (n / 7) as u8).collect();
        let (file, _) = spool.open_segment(segment(3), SIZE, 0, &RealDisk).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let keep = |file: &File| {
            let mut checks = Checks::default();
            checks.add(&bytes);
            let kept = spool.keep(segment(3), SIZE, file, checks, &RealDisk).unwrap().length();
            spool.suspect(segment(3), SIZE).unwrap();
            spool.take_kept(segment(3), SIZE).unwrap();
            let (file, there) = spool.open_segment(segment(3), SIZE, kept, &RealDisk).unwrap();
            let mut read = vec![0; there as usize];
            file.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(read, bytes[..there as usize]);
            (file, there)
        };
        let (file, there) = keep(&file);
        assert_eq!(there, bytes.len() as u64, "all of it");
        // One byte of the last page but one.
        file.write_all_at(&[bytes[2 * PAGE_BYTES + 5] ^ 1], 2 * PAGE_BYTES as u64 + 5).unwrap();
        let (_, there) = keep(&file);
        assert_eq!(there, 2 * PAGE_BYTES as u64);
    }

    #[test]
    fn files_tell_what_they_hold() {
        let place = tempfile::tempdir().unwrap();
        let spool = Spool::open(place.path()).unwrap().unwrap();
        let (file, there) = spool.open_segment(segment(3), SIZE, 0, &RealDisk).unwrap();
        assert_eq!(there, 0);
        file.write_all_at(&[7; 1000], 0).unwrap();
        let found = |same_boot| spool.find(SIZE, same_boot).unwrap().segments;
        assert_eq!(found(true), [FoundSegment { segment: segment(3), bytes: 1000, put_aside: false }]);
        // After a restart of the machine only records count, and these bytes are none.
        assert_eq!(found(false), [FoundSegment { segment: segment(3), bytes: 0, put_aside: false }]);
        assert_eq!(found(true), [FoundSegment { segment: segment(3), bytes: 0, put_aside: false }], "nor do they at the next start");
        file.write_all_at(&[7; 1000], 0).unwrap();
        assert_eq!(spool.open_segment(segment(3), SIZE, 1000, &RealDisk).unwrap().1, 1000);
        assert_eq!(spool.open_segment(segment(3), SIZE, 600, &RealDisk).unwrap().1, 600);
        spool.suspect(segment(3), SIZE).unwrap();
        assert_eq!(found(true), [FoundSegment { segment: segment(3), bytes: 0, put_aside: true }], "there was more of it");
        assert_eq!(spool.find(SIZE, true).unwrap().suspects.len(), 1);
        let (file, there) = spool.open_segment(segment(3), SIZE, 1000, &RealDisk).unwrap();
        assert_eq!(there, 0, "what is suspect does not count");
        file.write_all_at(&[7; 2000], 0).unwrap();
        spool.finish(segment(3), SIZE).unwrap();
        spool.finish(segment(3), SIZE).unwrap();
        assert!(spool.find(SIZE, true).unwrap().suspects.is_empty());
        assert_eq!(found(false), [FoundSegment { segment: segment(3), bytes: 2000, put_aside: false }]);
        // A finished one that turns out to be damaged is not opened again either.
        spool.suspect(segment(3), SIZE).unwrap();
        assert_eq!(found(true), [FoundSegment { segment: segment(3), bytes: 0, put_aside: true }]);
        let (file, there) = spool.open_segment(segment(3), SIZE, 2000, &RealDisk).unwrap();
        assert_eq!(there, 0);
        file.write_all_at(&[7; 2000], 0).unwrap();
        // As far as it is there it is in the repository; that there was more is not forgotten.
        spool.remove(segment(3), SIZE);
        assert_eq!(found(true), [FoundSegment { segment: segment(3), bytes: 0, put_aside: true }]);
        let (file, _) = spool.open_segment(segment(3), SIZE, 0, &RealDisk).unwrap();
        file.set_len(SIZE.bytes()).unwrap();
        spool.remove(segment(3), SIZE);
        assert!(found(true).is_empty());
        assert!(spool.find(SIZE, true).unwrap().suspects.is_empty());
    }

    #[test]
    fn c058_whoever_is_ended_while_a_segment_is_put_aside_leaves_a_file_that_counts() {
        let place = tempfile::tempdir().unwrap();
        let spool = Spool::open(place.path()).unwrap().unwrap();
        let found = || {
            let found = spool.find(SIZE, true).unwrap().segments;
            let [found] = found[..] else { panic!("one segment: {found:?}") };
            assert_eq!(found.segment, segment(3));
            (found.bytes, found.put_aside)
        };
        let path = |suffix: &str| spool.path(segment(3), SIZE, suffix);
        let (file, _) = spool.open_segment(segment(3), SIZE, 0, &RealDisk).unwrap();
        file.write_all_at(&[7; 1000], 0).unwrap();
        spool.finish(segment(3), SIZE).unwrap();
        // The copy is made.
        fs::write(path(".kept"), [7; 600]).unwrap();
        assert_eq!(found(), (1000, true));
        // It took its place, and what it was made of is beside it.
        spool.take_kept(segment(3), SIZE).unwrap();
        assert_eq!(found(), (600, true));
        assert_eq!(fs::read(path(".suspect")).unwrap().len(), 1000);
        // Once more: the longer one of what was put aside stays.
        fs::write(path(".kept"), [7; 500]).unwrap();
        spool.take_kept(segment(3), SIZE).unwrap();
        assert_eq!((found(), fs::read(path(".suspect")).unwrap().len()), ((500, true), 1000));
        // As it was left by one that put the file aside before the copy took its place: the copy is there, of bytes that are no records.
        fs::rename(path(".open"), path(".kept")).unwrap();
        assert_eq!(found(), (0, true));
        assert!(path(".open").is_file() && !path(".kept").exists());
    }
}
