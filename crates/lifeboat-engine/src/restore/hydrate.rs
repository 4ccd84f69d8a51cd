//! Hydration: file tables in, files out. One path for restores and for checks that open everything.
//!
//! A sparse tree is made first; then ranges of packs are read, each long enough for a megabyte of
//! file, opened, compared with their digests and written to their place, each page once. Nothing here
//! holds more than one file table and a few ranges in memory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel as channel;
use lifeboat_core::repository::extent::{EXTENT_BYTES, Fragment, PAGE_BYTES, Piece, extent_bytes};
use lifeboat_core::repository::file_table::{Kind, Row};
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::{Id, pack};
use lifeboat_core::verify::FindingKind;
use rustix::fs::OFlags;

use super::RestoreError;
use crate::opened_backup::{OpenBackupError, VerifiedBackup};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::seal::{Decompressor, FrameKey, Sealing, open_frame};
use crate::store::{Note, NoteKind, Store, read_range};

/// The most sealed bytes in one read from a store on this host.
const READ_BYTES: u64 = 4 << 20;

/// The same from a store that is waited for: each request costs both sides something.
const FAR_READ_BYTES: u64 = 16 << 20;

/// All that reads under way may have in memory, where they are longer than [`READ_BYTES`].
const READS_BYTES: u64 = 128 << 20;

/// A gap in a pack that is read over rather than read around.
const GAP_BYTES: u64 = 128 << 10;

/// The most bytes of a file in one write.
const RUN_BYTES: usize = 1 << 20;

/// Reads under way for each worker, from a store that is waited for: while it opens what one brought, the store sends the next. Four were
/// measured slower than two.
const READS_PER_WORKER: usize = 2;

/// Reads under way at most, unless there are more workers: each has up to [`read_bytes`] in memory, and [`RUN_BYTES`] besides.
const MOST_READS: usize = 32;

/// What direct writes ask of offset, length and memory: the largest block of usual devices (open(2), O_DIRECT).
const ALIGNMENT: usize = 4096;

/// Files this large are written past the page cache: the kernel's copying and finding of pages costs more than all of
/// our own work, and a restored cluster should not push what the machine needs out of memory. Smaller files stay in the
/// cache, where the server looks for its catalogs first.
const DIRECT_BYTES: u64 = 4 << 20;

/// Where files go.
pub(crate) enum Sink<'a> {
    /// To a path for each row, with the directory of the restore that it is below; rows without one are left out.
    Tree(&'a (dyn Fn(&Row) -> Option<(&'a Path, PathBuf)> + Sync)),
    /// Nowhere: everything is read and checked.
    Check(&'a (dyn Fn(RestoreError) -> Result<(), RestoreError> + Sync)),
}

/// One fragment on its way to its file.
struct Part {
    row: usize,
    extent: u64,
    fragment: Fragment,
    pieces: Vec<Piece>,
}

/// One read.
struct Job {
    /// Who opens and writes what it brings.
    hand: usize,
    pack: u32,
    start: u64,
    end: u64,
    parts: Vec<Part>,
}

/// The rows of one table and where they go.
struct Table {
    rows: Vec<Row>,
    paths: Vec<Option<PathBuf>>,
}

/// Which packs are looked at, when not all are.
pub(crate) type PackFilter<'a> = &'a (dyn Fn(u32) -> bool + Sync);

/// Everything hydration works with.
pub(crate) struct Hydration<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) backup: &'a VerifiedBackup,
    pub(crate) data: &'a Sealing,
    pub(crate) workers: usize,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) packs: PackFilter<'a>,
}

impl Hydration<'_> {
    /// Brings the files of one table into being, with all their bytes.
    pub(crate) fn table(&self, rows: Vec<Row>, sink: &Sink<'_>) -> Result<(), RestoreError> {
        let mut paths = vec![None; rows.len()];
        if let Sink::Tree(place) = sink {
            for (row, path) in rows.iter().zip(&mut paths).filter(|(row, _)| row.meta.kind == Kind::File) {
                if let Some((root, placed)) = place(row) {
                    make_file(root, &placed, row)?;
                    self.progress.add(1, holes(row));
                    *path = Some(placed);
                }
            }
        }
        let table = Table { rows, paths };
        let jobs = self.jobs(&table, sink)?;
        let stop = AtomicBool::new(false);
        let failed: Mutex<Option<RestoreError>> = Mutex::default();
        let workers = self.workers.max(1);
        let (sender, receiver) = channel::bounded::<Job>(workers * 2);
        let hands: Vec<Mutex<()>> = (0..workers).map(|_| Mutex::default()).collect();
        std::thread::scope(|scope| {
            for _ in 0..reads(self.repository.store().is_remote(), workers) {
                let receiver = receiver.clone();
                let (table, stop, failed, hands) = (&table, &stop, &failed, &hands);
                scope.spawn(move || {
                    let mut worker = Worker {
                        hydration: self,
                        table,
                        sink,
                        hands,
                        file: None,
                        run: Run::default(),
                        key: None,
                        sealed: Vec::new(),
                        plain: Vec::new(),
                        decompressor: None,
                    };
                    for job in receiver {
                        if stop.load(Ordering::SeqCst) {
                            continue;
                        }
                        if let Err(error) = worker.job(job) {
                            stop.store(true, Ordering::SeqCst);
                            failed.lock().expect("no panic while held").get_or_insert(error);
                        }
                    }
                });
            }
            drop(receiver);
            for job in jobs {
                if stop.load(Ordering::SeqCst) || sender.send(job).is_err() {
                    break;
                }
            }
            drop(sender);
        });
        failed.into_inner().expect("no panic while held").map_or(Ok(()), Err)
    }

    /// The reads of one table: in the order in which packs hold them, dealt out to the workers.
    fn jobs(&self, table: &Table, sink: &Sink<'_>) -> Result<Vec<Job>, RestoreError> {
        let mut parts: Vec<Part> = Vec::new();
        for (number, row) in table.rows.iter().enumerate() {
            if matches!(sink, Sink::Tree(_)) && table.paths[number].is_none() {
                continue;
            }
            for (index, extent) in row.extents.iter().enumerate() {
                let index = index as u64;
                let bytes = extent_bytes(row.meta.size, index);
                let pieces = extent.pieces(bytes).map_err(|error| self.corrupt_row(row, &error.to_string()))?;
                for (fragment, pieces) in extent.fragments.iter().zip(pieces) {
                    // A fragment that newer ones cover whole gives nothing.
                    if !pieces.is_empty() && (self.packs)(fragment.pack) {
                        parts.push(Part { row: number, extent: index, fragment: *fragment, pieces });
                    }
                }
            }
        }
        parts.sort_by_key(|part| (part.fragment.pack, part.fragment.offset));
        let all = parts.iter().map(|part| u64::from(part.fragment.length)).sum();
        let most = read_bytes(self.repository.store().is_remote(), self.workers.max(1), all);
        let mut jobs: Vec<Job> = Vec::new();
        for part in parts {
            let (start, end) = (u64::from(part.fragment.offset), u64::from(part.fragment.offset) + u64::from(part.fragment.length));
            match jobs.last_mut() {
                Some(job) if job.pack == part.fragment.pack && start <= job.end + GAP_BYTES && end.max(job.end) - job.start <= most => {
                    job.end = job.end.max(end);
                    job.parts.push(part);
                }
                _ => jobs.push(Job { hand: 0, pack: part.fragment.pack, start, end, parts: vec![part] }),
            }
        }
        Ok(deal(jobs, self.workers.max(1)))
    }

    fn corrupt_row(&self, row: &Row, problem: &str) -> RestoreError {
        RestoreError::Damaged(self.backup.finding(FindingKind::Corrupt, "file table", Some(&row.meta.path), problem))
    }
}

/// Threads that read.
fn reads(remote: bool, workers: usize) -> usize {
    if remote { (workers * READS_PER_WORKER).min(MOST_READS).max(workers) } else { workers }
}

/// How much one of them brings at most, of `all` that there is: of little, every read should bring some.
fn read_bytes(remote: bool, workers: usize, all: u64) -> u64 {
    if !remote {
        return READ_BYTES;
    }
    let reads = reads(remote, workers) as u64;
    FAR_READ_BYTES.min(READS_BYTES / reads).min(all / (4 * reads)).max(READ_BYTES)
}

/// Deals jobs out to `hands`, each of which works on one at a time, so that they are in that many parts of the list at once: neighbours
/// are of one file, and the kernel lets only one writer into a file at a time.
fn deal(jobs: Vec<Job>, hands: usize) -> Vec<Job> {
    let part = jobs.len().div_ceil(hands).max(1);
    let mut jobs = jobs.into_iter().map(Some).collect::<Vec<_>>();
    let mut dealt = Vec::with_capacity(jobs.len());
    for offset in 0..part {
        let next = jobs.iter_mut().skip(offset).step_by(part).filter_map(Option::take).enumerate();
        dealt.extend(next.map(|(hand, job)| Job { hand, ..job }));
    }
    dealt
}

/// Bytes of a file that no fragment gives: they are there as soon as the file is.
fn holes(row: &Row) -> u64 {
    let of = |(index, extent): (usize, &lifeboat_core::repository::extent::Extent)| {
        let bytes = extent_bytes(row.meta.size, index as u64);
        let pages = extent.fragments.iter().fold(0u32, |all, fragment| all | fragment.bitmap).count_ones();
        bytes.saturating_sub(u64::from(pages) * PAGE_BYTES)
    };
    row.extents.iter().enumerate().map(of).sum()
}

fn make_file(root: &Path, path: &Path, row: &Row) -> Result<(), RestoreError> {
    let fail = |source| RestoreError::Write { path: path.display().to_string(), source };
    let open = || File::options().write(true).create_new(true).mode(0o600).custom_flags(nofollow()).open(path);
    let file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                super::tree::make_directory(root, parent).map_err(fail)?;
            }
            open()
        }
        other => other,
    }
    .map_err(fail)?;
    file.set_len(row.meta.size).map_err(fail)?;
    super::tree::set_mode(&file, row.meta.mode).map_err(fail)
}

fn nofollow() -> i32 {
    OFlags::NOFOLLOW.bits().cast_signed()
}

struct Worker<'w, 's> {
    hydration: &'w Hydration<'w>,
    table: &'w Table,
    sink: &'w Sink<'s>,
    hands: &'w [Mutex<()>],
    /// The file written last, kept open: most reads bring many parts of one file.
    file: Option<(usize, Output)>,
    run: Run,
    /// The key of the pack read last.
    key: Option<(u32, FrameKey)>,
    sealed: Vec<u8>,
    plain: Vec<u8>,
    decompressor: Option<Decompressor>,
}

impl Worker<'_, '_> {
    fn job(&mut self, job: Job) -> Result<(), RestoreError> {
        let hydration = self.hydration;
        let entry = &hydration.backup.manifest.packs[job.pack as usize];
        let key = layout::pack(entry.sha256);
        let row = |part: &Part| &self.table.rows[part.row];
        let damaged = |kind, part: &Part, problem: String| {
            RestoreError::Damaged(hydration.backup.finding(kind, key.as_str(), Some(&row(part).meta.path), problem))
        };
        let read = read_range(hydration.repository.store(), &key, job.start..job.end, &mut self.sealed);
        let absent = match read {
            Ok(()) => None,
            Err(error) if error.is_absence() => Some(error),
            Err(error) => return self.report(error.into()),
        };
        let _hand = self.hands[job.hand].lock().expect("no panic while held");
        if self.key.as_ref().is_none_or(|(pack, _)| *pack != job.pack) {
            self.key = Some((job.pack, hydration.data.pack(entry.id)));
        }
        if self.decompressor.is_none() {
            self.decompressor = Some(Decompressor::new().map_err(RestoreError::Decompressor)?);
        }
        // Every file in a pack that is gone is hit; a check names each of them.
        let mut named = std::collections::BTreeSet::new();
        for part in &job.parts {
            let bytes = extent_bytes(row(part).meta.size, part.extent);
            let expected = part.fragment.plain_bytes(bytes).map_err(|error| damaged(FindingKind::Corrupt, part, error.to_string()))?;
            let (Some((_, frame_key)), Some(decompressor)) = (&self.key, &mut self.decompressor) else { continue };
            let mut frame = Frame { id: entry.id, key: frame_key, fragment: &part.fragment, expected, decompressor };
            let problem = match &absent {
                Some(error) => Some(error.to_string()),
                None => {
                    let at = (u64::from(part.fragment.offset) - job.start) as usize;
                    frame.open(&mut self.sealed[at..at + part.fragment.length as usize], &mut self.plain).err()
                }
            };
            if let Some(problem) = problem
                && !frame.in_any_copy(hydration.repository.store(), &key, &problem, &mut self.plain)
            {
                if absent.is_none() {
                    self.report(damaged(FindingKind::Corrupt, part, format!("extent {}: {problem}", part.extent)))?;
                } else if named.insert(part.row) {
                    let missing = matches!(absent, Some(crate::store::StoreError::NotFound { .. }));
                    self.report(damaged(if missing { FindingKind::Missing } else { FindingKind::Corrupt }, part, problem))?;
                }
                continue;
            }
            self.write(part)?;
        }
        self.flush()
    }

    fn report(&self, error: RestoreError) -> Result<(), RestoreError> {
        match self.sink {
            Sink::Tree(_) => Err(error),
            Sink::Check(collect) => collect(error),
        }
    }

    /// Puts what a part gives to the file into the run, and the run into the file when it is full or the part stands elsewhere.
    fn write(&mut self, part: &Part) -> Result<(), RestoreError> {
        if self.table.paths[part.row].is_some() {
            let start = part.extent * EXTENT_BYTES;
            for piece in &part.pieces {
                let to = start + piece.to as u64;
                if !self.run.continues(part.row, to, piece.bytes) {
                    self.flush()?;
                    self.run.begin(part.row, to);
                }
                self.run.push(&self.plain[piece.from..piece.from + piece.bytes]);
            }
        }
        let sum: usize = part.pieces.iter().map(|piece| piece.bytes).sum();
        self.hydration.progress.add(0, sum as u64);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), RestoreError> {
        let (row, bytes) = (self.run.row, self.run.bytes());
        let Some(path) = self.table.paths.get(row).and_then(Option::as_ref).filter(|_| !bytes.is_empty()) else { return Ok(()) };
        let fail = |source| RestoreError::Write { path: path.display().to_string(), source };
        if self.file.as_ref().is_none_or(|(open, _)| *open != row) {
            let file = File::options().write(true).custom_flags(nofollow()).open(path).map_err(fail)?;
            self.file = Some((row, Output { file, direct: false, may_be_direct: self.table.rows[row].meta.size >= DIRECT_BYTES }));
        }
        let Some((_, output)) = &mut self.file else { return Ok(()) };
        output.write(bytes, self.run.start).map_err(fail)?;
        self.run.clear();
        Ok(())
    }
}

/// A file that is being filled.
struct Output {
    file: File,
    /// Writes go past the page cache now.
    direct: bool,
    /// They should where they can: the file is large, and its file system has not refused yet.
    may_be_direct: bool,
}

impl Output {
    fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let aligned = offset.is_multiple_of(ALIGNMENT as u64) && bytes.len().is_multiple_of(ALIGNMENT);
        self.turn(aligned && self.may_be_direct);
        match self.file.write_all_at(bytes, offset) {
            // Device blocks larger than our alignment, or a file system that takes the flag and not the write.
            Err(error) if self.direct && error.kind() == io::ErrorKind::InvalidInput => {
                self.may_be_direct = false;
                self.turn(false);
                self.file.write_all_at(bytes, offset)
            }
            other => other,
        }
    }

    /// Turns direct writes on or off; a file system that has none (open(2), O_DIRECT: EINVAL) leaves them off.
    fn turn(&mut self, direct: bool) {
        if self.direct == direct {
            return;
        }
        let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
        match rustix::fs::fcntl_setfl(&self.file, flags) {
            Ok(()) => self.direct = direct,
            Err(_) => self.may_be_direct = false,
        }
    }
}

/// Neighbouring bytes of one file, gathered to leave in one write.
#[derive(Default)]
struct Run {
    row: usize,
    start: u64,
    filled: usize,
    /// More than needed, so that an aligned part of it is long enough.
    buffer: Vec<u8>,
}

impl Run {
    fn begin(&mut self, row: usize, start: u64) {
        if self.buffer.is_empty() {
            self.buffer = vec![0; RUN_BYTES + ALIGNMENT];
        }
        (self.row, self.start, self.filled) = (row, start, 0);
    }

    fn continues(&self, row: usize, to: u64, bytes: usize) -> bool {
        self.filled > 0 && self.row == row && self.start + self.filled as u64 == to && self.filled + bytes <= RUN_BYTES
    }

    fn push(&mut self, bytes: &[u8]) {
        let at = self.skip() + self.filled;
        self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    fn bytes(&self) -> &[u8] {
        if self.filled == 0 { &[] } else { &self.buffer[self.skip()..self.skip() + self.filled] }
    }

    fn clear(&mut self) {
        self.filled = 0;
    }

    /// Bytes before the first aligned one; the buffer has an alignment's length to spare.
    fn skip(&self) -> usize {
        self.buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT)
    }
}

/// One fragment's frame and what opens it.
struct Frame<'f> {
    id: Id,
    key: &'f FrameKey,
    fragment: &'f Fragment,
    expected: usize,
    decompressor: &'f mut Decompressor,
}

impl Frame<'_> {
    /// Opens the sealed bytes and compares what comes out.
    fn open(&mut self, sealed: &mut [u8], plain: &mut Vec<u8>) -> Result<(), String> {
        let offset = u64::from(self.fragment.offset);
        open_frame(self.id, self.key, self.decompressor, offset, sealed, self.expected, plain).map_err(|error| error.to_string())?;
        match blake3::hash(plain).as_bytes()[..self.fragment.check.len()] == self.fragment.check {
            true => Ok(()),
            false => Err("the bytes are not those that the file table names".to_owned()),
        }
    }

    /// Looks for good bytes in the other copies of the pack: only this frame of them has to be good.
    fn in_any_copy(&mut self, store: &dyn Store, pack: &Key, problem: &str, plain: &mut Vec<u8>) -> bool {
        let start = u64::from(self.fragment.offset);
        let mut sealed = Vec::new();
        for copy in store.alternatives(pack).unwrap_or_default() {
            if copy.get_range(pack, start..start + u64::from(self.fragment.length), &mut sealed).is_ok()
                && self.open(&mut sealed, plain).is_ok()
            {
                let (repository, object) = (copy.url().to_owned(), Some(pack.to_string()));
                store.note(Note { kind: NoteKind::ReadAround, repository, object, problem: problem.to_owned() });
                return true;
            }
        }
        false
    }
}

/// Reads the whole of one small file into memory: `pg_control` waits there until all else is safe.
pub(crate) fn read_row(hydration: &Hydration<'_>, row: &Row) -> Result<Vec<u8>, RestoreError> {
    let mut bytes = vec![0; usize::try_from(row.meta.size).unwrap_or(0)];
    let mut decompressor = Decompressor::new().map_err(RestoreError::Decompressor)?;
    let (mut sealed, mut plain) = (Vec::new(), Vec::new());
    for (index, extent) in row.extents.iter().enumerate() {
        let start = index * EXTENT_BYTES as usize;
        let length = extent_bytes(row.meta.size, index as u64);
        let pieces = extent.pieces(length).map_err(|error| hydration.corrupt_row(row, &error.to_string()))?;
        for (fragment, pieces) in extent.fragments.iter().zip(pieces) {
            let entry = &hydration.backup.manifest.packs[fragment.pack as usize];
            let key = layout::pack(entry.sha256);
            let damaged =
                |kind, problem: String| RestoreError::Damaged(hydration.backup.finding(kind, key.as_str(), Some(&row.meta.path), problem));
            let range = u64::from(fragment.offset)..u64::from(fragment.offset) + u64::from(fragment.length);
            let absent = match read_range(hydration.repository.store(), &key, range, &mut sealed) {
                Ok(()) => None,
                Err(error) if error.is_absence() => Some(error),
                Err(error) => return Err(error.into()),
            };
            let expected = fragment.plain_bytes(length).map_err(|error| hydration.corrupt_row(row, &error.to_string()))?;
            let frame_key = hydration.data.pack(entry.id);
            let mut frame = Frame { id: entry.id, key: &frame_key, fragment, expected, decompressor: &mut decompressor };
            let problem = match &absent {
                Some(error) => Some(error.to_string()),
                None => frame.open(&mut sealed, &mut plain).err(),
            };
            if let Some(problem) = problem
                && !frame.in_any_copy(hydration.repository.store(), &key, &problem, &mut plain)
            {
                let missing = matches!(absent, Some(crate::store::StoreError::NotFound { .. }));
                return Err(damaged(if missing { FindingKind::Missing } else { FindingKind::Corrupt }, problem));
            }
            for piece in pieces {
                bytes[start + piece.to..start + piece.to + piece.bytes].copy_from_slice(&plain[piece.from..piece.from + piece.bytes]);
            }
        }
    }
    Ok(bytes)
}

/// Checks the header of every pack that is looked at, and its length: frames do not cover them.
pub(crate) fn check_pack(hydration: &Hydration<'_>, index: u32) -> Result<(), RestoreError> {
    let entry = &hydration.backup.manifest.packs[index as usize];
    let key = layout::pack(entry.sha256);
    let damaged = |kind, problem: String| RestoreError::Damaged(hydration.backup.finding(kind, key.as_str(), None, problem));
    let store = hydration.repository.store();
    let length = match store.length(&key) {
        Ok(length) => length,
        Err(error) if error.is_absence() => return Err(damaged(FindingKind::Missing, "it is not there".into())),
        Err(error) => return Err(error.into()),
    };
    if length != entry.bytes {
        return Err(damaged(FindingKind::Corrupt, format!("{length} bytes, the manifest says {}", entry.bytes)));
    }
    let mut header = Vec::new();
    match read_range(store, &key, 0..pack::HEADER_BYTES as u64, &mut header) {
        Ok(()) => {}
        Err(error) if error.is_absence() => return Err(damaged(FindingKind::Corrupt, error.to_string())),
        Err(error) => return Err(error.into()),
    }
    match pack::decode_header(&header) {
        Ok((id, suite)) if id == entry.id && suite == hydration.backup.manifest.encryption.suite => Ok(()),
        Ok(_) => Err(damaged(FindingKind::Corrupt, "its header names another pack".into())),
        Err(error) => Err(damaged(FindingKind::Corrupt, error.to_string())),
    }
}

impl From<OpenBackupError> for RestoreError {
    fn from(error: OpenBackupError) -> Self {
        match error {
            OpenBackupError::Damaged(finding) => Self::Damaged(finding),
            OpenBackupError::Store(error) => Self::Store(error),
            OpenBackupError::Key(error) => Self::Key(error),
            other => Self::Open(other),
        }
    }
}

/// Whether a path is there at all, as whatever.
pub(crate) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that can be direct is, the rest goes through the cache, and the file has all of it.
    #[test]
    fn direct_and_buffered_writes_make_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let expected: Vec<u8> = (0..5 * RUN_BYTES + 12_345).map(|at| (at * 7 / 3) as u8).collect();
        let file = File::create(&path).unwrap();
        file.set_len(expected.len() as u64).unwrap();
        let mut output = Output { file, direct: false, may_be_direct: true };
        let mut run = Run::default();
        let mut at = 0;
        // Whole extents, then single pages, then what is shorter than a page.
        for length in [EXTENT_BYTES as usize, PAGE_BYTES as usize, 12_345].into_iter().cycle() {
            let length = length.min(expected.len() - at);
            if !run.continues(3, at as u64, length) {
                output.write(run.bytes(), run.start).unwrap();
                run.begin(3, at as u64);
            }
            run.push(&expected[at..at + length]);
            at += length;
            if at == expected.len() {
                break;
            }
        }
        output.write(run.bytes(), run.start).unwrap();
        assert_eq!(fs::read(&path).unwrap(), expected);
    }

    #[test]
    fn every_hand_gets_a_part_of_its_own_in_order() {
        let jobs = (0..8).map(|pack| Job { hand: 0, pack, start: 0, end: 1, parts: Vec::new() }).collect();
        let dealt: Vec<(usize, u32)> = deal(jobs, 3).iter().map(|job| (job.hand, job.pack)).collect();
        assert_eq!(dealt, [(0, 0), (1, 3), (2, 6), (0, 1), (1, 4), (2, 7), (0, 2), (1, 5)]);
    }

    #[test]
    fn reads_are_ahead_where_they_wait_and_never_fewer_than_workers() {
        assert_eq!([1, 2, 20, 100].map(|workers| reads(true, workers)), [2, 4, 32, 100]);
        assert_eq!([1, 2, 20, 100].map(|workers| reads(false, workers)), [1, 2, 20, 100]);
        // Long where that costs no memory that there is not, and no read that could go on beside it.
        let far = |workers, all_mib: u64| read_bytes(true, workers, all_mib << 20) >> 20;
        assert_eq!([far(2, 10_000), far(8, 10_000), far(16, 10_000), far(100, 10_000)], [16, 8, 4, 4]);
        assert_eq!([far(2, 10), far(2, 100), far(2, 200)], [4, 6, 12]);
        assert_eq!(read_bytes(false, 2, 10 << 30), READ_BYTES);
    }

    #[test]
    fn a_run_takes_neighbours_of_one_file_only() {
        let mut run = Run::default();
        run.begin(1, 4096);
        run.push(&[1; 100]);
        assert!(run.continues(1, 4196, 100));
        assert!(!run.continues(2, 4196, 100), "another file");
        assert!(!run.continues(1, 4197, 100), "a hole between");
        assert!(!run.continues(1, 4196, RUN_BYTES), "more than it holds");
        assert_eq!(run.bytes().as_ptr().align_offset(ALIGNMENT), 0);
        assert_eq!(run.bytes(), [1; 100]);
    }
}
