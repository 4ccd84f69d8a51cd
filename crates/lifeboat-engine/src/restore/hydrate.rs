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
use lifeboat_core::repository::extent::{Fragment, PAGE_BYTES, Piece, extent_bytes};
use lifeboat_core::repository::file_table::{Kind, Row};
use lifeboat_core::repository::{layout, pack};
use lifeboat_core::verify::FindingKind;

use super::RestoreError;
use crate::opened_backup::{OpenBackupError, VerifiedBackup};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::seal::{Decompressor, FrameKey, Sealing, open_frame};

/// The most sealed bytes in one read.
const READ_BYTES: u64 = 4 << 20;

/// A gap in a pack that is read over rather than read around.
const GAP_BYTES: u64 = 128 << 10;

/// Where files go.
pub(crate) enum Sink<'a> {
    /// To a path for each row; rows without one are left out.
    Tree(&'a (dyn Fn(&Row) -> Option<PathBuf> + Sync)),
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
        let paths = match sink {
            Sink::Tree(place) => rows.iter().map(|row| if row.meta.kind == Kind::File { place(row) } else { None }).collect(),
            Sink::Check(_) => vec![None; rows.len()],
        };
        let table = Table { rows, paths };
        if let Sink::Tree(_) = sink {
            for (row, path) in table.rows.iter().zip(&table.paths) {
                if let Some(path) = path {
                    make_file(path, row)?;
                    self.progress.add(1, holes(row));
                }
            }
        }
        let jobs = self.jobs(&table, sink)?;
        let stop = AtomicBool::new(false);
        let failed: Mutex<Option<RestoreError>> = Mutex::default();
        let (sender, receiver) = channel::bounded::<Job>(self.workers * 2);
        std::thread::scope(|scope| {
            for _ in 0..self.workers.max(1) {
                let receiver = receiver.clone();
                let (table, stop, failed) = (&table, &stop, &failed);
                scope.spawn(move || {
                    let mut worker = Worker {
                        hydration: self,
                        table,
                        sink,
                        file: None,
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
        let mut jobs: Vec<Job> = Vec::new();
        for part in parts {
            let (start, end) = (u64::from(part.fragment.offset), u64::from(part.fragment.offset) + u64::from(part.fragment.length));
            match jobs.last_mut() {
                Some(job)
                    if job.pack == part.fragment.pack && start <= job.end + GAP_BYTES && end.max(job.end) - job.start <= READ_BYTES =>
                {
                    job.end = job.end.max(end);
                    job.parts.push(part);
                }
                _ => jobs.push(Job { pack: part.fragment.pack, start, end, parts: vec![part] }),
            }
        }
        Ok(deal(jobs, self.workers.max(1)))
    }

    fn corrupt_row(&self, row: &Row, problem: &str) -> RestoreError {
        RestoreError::Damaged(self.backup.finding(FindingKind::Corrupt, "file table", Some(&row.meta.path), problem))
    }
}

/// Deals jobs out so that `hands` workers, who take them one after another, are in that many parts of the list at once:
/// neighbours are of one file, and the kernel lets only one writer into a file at a time.
fn deal(jobs: Vec<Job>, hands: usize) -> Vec<Job> {
    let part = jobs.len().div_ceil(hands).max(1);
    let mut jobs = jobs.into_iter().map(Some).collect::<Vec<_>>();
    let mut dealt = Vec::with_capacity(jobs.len());
    for offset in 0..part {
        dealt.extend(jobs.iter_mut().skip(offset).step_by(part).filter_map(Option::take));
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

fn make_file(path: &Path, row: &Row) -> Result<(), RestoreError> {
    let fail = |source| RestoreError::Write { path: path.display().to_string(), source };
    let open = || File::options().write(true).create_new(true).mode(0o600).custom_flags(nofollow()).open(path);
    let file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                super::tree::make_directory(parent).map_err(fail)?;
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
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

struct Worker<'w> {
    hydration: &'w Hydration<'w>,
    table: &'w Table,
    sink: &'w Sink<'w>,
    /// The file written last, kept open: most reads bring many parts of one file.
    file: Option<(usize, File)>,
    /// The key of the pack read last.
    key: Option<(u32, FrameKey)>,
    sealed: Vec<u8>,
    plain: Vec<u8>,
    decompressor: Option<Decompressor>,
}

impl Worker<'_> {
    fn job(&mut self, job: Job) -> Result<(), RestoreError> {
        let hydration = self.hydration;
        let entry = &hydration.backup.manifest.packs[job.pack as usize];
        let key = layout::pack(entry.sha256);
        let row = |part: &Part| &self.table.rows[part.row];
        let damaged = |kind, part: &Part, problem: String| {
            RestoreError::Damaged(hydration.backup.finding(kind, key.as_str(), Some(&row(part).meta.path), problem))
        };
        let read = hydration.repository.store().get_range(&key, job.start..job.end, &mut self.sealed);
        if let Err(error) = read {
            if !error.is_absence() {
                return Err(error.into());
            }
            let kind = if matches!(error, crate::store::StoreError::NotFound { .. }) { FindingKind::Missing } else { FindingKind::Corrupt };
            // Every file in it is hit; a check names each of them.
            let mut named = std::collections::BTreeSet::new();
            for part in &job.parts {
                if named.insert(part.row) {
                    self.report(damaged(kind, part, error.to_string()))?;
                }
            }
            return Ok(());
        }
        if self.key.as_ref().is_none_or(|(pack, _)| *pack != job.pack) {
            self.key = Some((job.pack, hydration.data.pack(entry.id)));
        }
        if self.decompressor.is_none() {
            self.decompressor = Some(Decompressor::new().map_err(RestoreError::Decompressor)?);
        }
        for part in &job.parts {
            let bytes = extent_bytes(row(part).meta.size, part.extent);
            let expected = part.fragment.plain_bytes(bytes).map_err(|error| damaged(FindingKind::Corrupt, part, error.to_string()))?;
            let at = (u64::from(part.fragment.offset) - job.start) as usize;
            let sealed = &mut self.sealed[at..at + part.fragment.length as usize];
            let (Some((_, frame_key)), Some(decompressor)) = (&self.key, &mut self.decompressor) else { continue };
            let opened = open_frame(entry.id, frame_key, decompressor, u64::from(part.fragment.offset), sealed, expected, &mut self.plain);
            let problem = match opened {
                Err(error) => Some(error.to_string()),
                Ok(()) if blake3::hash(&self.plain).as_bytes()[..part.fragment.check.len()] != part.fragment.check => {
                    Some("the bytes are not those that the file table names".to_owned())
                }
                Ok(()) => None,
            };
            if let Some(problem) = problem {
                self.report(damaged(FindingKind::Corrupt, part, format!("extent {}: {problem}", part.extent)))?;
                continue;
            }
            self.write(part)?;
        }
        Ok(())
    }

    fn report(&self, error: RestoreError) -> Result<(), RestoreError> {
        match self.sink {
            Sink::Tree(_) => Err(error),
            Sink::Check(collect) => collect(error),
        }
    }

    fn write(&mut self, part: &Part) -> Result<(), RestoreError> {
        let plain = &self.plain;
        let sum: usize = part.pieces.iter().map(|piece| piece.bytes).sum();
        if let Some(path) = &self.table.paths[part.row] {
            let fail = |source| RestoreError::Write { path: path.display().to_string(), source };
            if self.file.as_ref().is_none_or(|(row, _)| *row != part.row) {
                let file = File::options().write(true).custom_flags(nofollow()).open(path).map_err(fail)?;
                self.file = Some((part.row, file));
            }
            let Some((_, file)) = &self.file else { return Ok(()) };
            let start = part.extent * lifeboat_core::repository::extent::EXTENT_BYTES;
            for piece in &part.pieces {
                file.write_all_at(&plain[piece.from..piece.from + piece.bytes], start + piece.to as u64).map_err(fail)?;
            }
        }
        self.hydration.progress.add(0, sum as u64);
        Ok(())
    }
}

/// Reads the whole of one small file into memory: `pg_control` waits there until all else is safe.
pub(crate) fn read_row(hydration: &Hydration<'_>, row: &Row) -> Result<Vec<u8>, RestoreError> {
    let mut bytes = vec![0; usize::try_from(row.meta.size).unwrap_or(0)];
    let mut decompressor = Decompressor::new().map_err(RestoreError::Decompressor)?;
    let (mut sealed, mut plain) = (Vec::new(), Vec::new());
    for (index, extent) in row.extents.iter().enumerate() {
        let start = index * lifeboat_core::repository::extent::EXTENT_BYTES as usize;
        let length = extent_bytes(row.meta.size, index as u64);
        let pieces = extent.pieces(length).map_err(|error| hydration.corrupt_row(row, &error.to_string()))?;
        for (fragment, pieces) in extent.fragments.iter().zip(pieces) {
            let entry = &hydration.backup.manifest.packs[fragment.pack as usize];
            let key = layout::pack(entry.sha256);
            let damaged =
                |kind, problem: String| RestoreError::Damaged(hydration.backup.finding(kind, key.as_str(), Some(&row.meta.path), problem));
            let range = u64::from(fragment.offset)..u64::from(fragment.offset) + u64::from(fragment.length);
            match hydration.repository.store().get_range(&key, range, &mut sealed) {
                Ok(()) => {}
                Err(error @ crate::store::StoreError::NotFound { .. }) => return Err(damaged(FindingKind::Missing, error.to_string())),
                Err(error) if error.is_absence() => return Err(damaged(FindingKind::Corrupt, error.to_string())),
                Err(error) => return Err(error.into()),
            }
            let expected = fragment.plain_bytes(length).map_err(|error| hydration.corrupt_row(row, &error.to_string()))?;
            let frame_key = hydration.data.pack(entry.id);
            open_frame(entry.id, &frame_key, &mut decompressor, u64::from(fragment.offset), &mut sealed, expected, &mut plain)
                .map_err(|error| damaged(FindingKind::Corrupt, error.to_string()))?;
            if blake3::hash(&plain).as_bytes()[..fragment.check.len()] != fragment.check {
                return Err(damaged(FindingKind::Corrupt, "the bytes are not those that the file table names".into()));
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
    store.get_range(&key, 0..pack::HEADER_BYTES as u64, &mut header).map_err(|error| damaged(FindingKind::Corrupt, error.to_string()))?;
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
