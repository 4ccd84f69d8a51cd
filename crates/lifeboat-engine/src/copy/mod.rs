//! The copy pipeline: bytes of files in, packs and file tables out.
//!
//! One feeder submits jobs; worker threads read, check, hash, compress and seal 256 KiB at a time;
//! store threads write finished packs. All queues are bounded and all buffers come out of one
//! budget of bytes. The first error stops everything.

mod pack_writer;
mod table_writer;
mod worker;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use crossbeam_channel as channel;
use lifeboat_core::postgres::backup_manifest::ManifestFile;
use lifeboat_core::repository::extent::{EXTENT_BYTES, Extent, extent_count};
use lifeboat_core::repository::file_table::{Kind, Meta, Row};
use lifeboat_core::repository::manifest::{PackEntry, PageFinding, TableEntry};
use lifeboat_core::wal::Lsn;

use crate::progress::Progress;
use crate::seal::Sealing;
use crate::store::{Store, StoreError};

use pack_writer::PackWriter;
use table_writer::TableWriter;

/// Bytes of plain data in one job: long enough that a file's extents stand together in a pack and a
/// thread has something to do, short enough that threads end together.
pub const JOB_BYTES: u64 = 8 << 20;

/// Files up to this size go to the boot packs.
pub const BOOT_BYTES: u64 = 1 << 20;

/// How many page findings are kept by name; all are counted.
const MAX_FINDINGS: usize = 1000;

/// How many pages may be waiting for judgement; a stream tears a handful.
const MAX_SUSPECTS: usize = 100_000;

/// Why a copy stopped.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file that must be there and be readable is not.
    #[error("read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another thread failed first; its error tells why.
    #[error("copy files: stopped")]
    Stopped,
    /// A limit of the format.
    #[error("copy {path}: {problem}")]
    Limit {
        /// The file.
        path: String,
        /// Which limit.
        problem: &'static str,
    },
    /// The compressor could not be made.
    #[error("start compressor")]
    Compressor(#[source] io::Error),
}

/// How to copy.
#[derive(Debug, Clone)]
pub struct CopySettings {
    /// Worker threads.
    pub workers: usize,
    /// Bytes that buffers may take together.
    pub memory_bytes: u64,
    /// zstd level.
    pub level: i32,
    /// Seals packs.
    pub data: Sealing,
    /// Seals file tables.
    pub tables: Sealing,
    /// `<backup-id>/files/`.
    pub backup: lifeboat_core::repository::backup_id::BackupId,
    /// Bytes a second that may be read, if limited.
    pub bandwidth: Option<u64>,
}

/// Bytes that one pack may take, so that all of them at once stay inside three quarters of the
/// budget: every worker fills a boot pack and another one, and some wait for the store.
fn pack_bytes(memory_bytes: u64, workers: usize, store_threads: usize) -> usize {
    let packs = 2 * workers as u64 + store_threads as u64 + 1;
    (memory_bytes / 4 * 3 / packs).clamp(1 << 20, 32 << 20) as usize
}

/// How the pages of a file are checked.
#[derive(Debug, Clone, Copy)]
pub struct PageCheck {
    /// Number of the file's first block in its relation.
    pub first_block: u32,
    /// For bytes that cannot be read twice: a page changed since this LSN may be torn, and WAL
    /// repairs it then. Whether it was is known only once the backup's end is (c014).
    pub suspect_from: Option<Lsn>,
}

/// A file to copy.
#[derive(Debug, Clone)]
pub struct CopyFile {
    /// What it is; `size` is what was seen at listing, and the most that is copied (c010).
    pub meta: Meta,
    /// Where to read it, if its bytes are not brought along.
    pub source: Option<PathBuf>,
    /// Check its pages.
    pub pages: Option<PageCheck>,
    /// It may vanish while the copy runs (c009).
    pub may_vanish: bool,
    /// It goes into PostgreSQL's `backup_manifest`.
    pub in_backup_manifest: bool,
}

/// Bytes of one file from an extent's beginning on.
struct Piece {
    file: Arc<FileState>,
    first_extent: u64,
    content: Content,
}

enum Content {
    /// To be read from the file's source.
    Read(u64),
    /// Brought along.
    Bytes(Vec<u8>),
}

struct Job {
    boot: bool,
    pieces: Vec<Piece>,
}

/// One file on its way.
struct FileState {
    file: CopyFile,
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    /// Pieces not done yet, and whether more will be submitted.
    open: u64,
    complete: bool,
    vanished: bool,
    /// (first extent, plain bytes, CRC-32C of them, extents).
    done: Vec<(u64, u64, u32, Vec<Extent>)>,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Copied {
    /// Packs, in the order of their index.
    pub packs: Vec<PackEntry>,
    /// Indexes of boot packs.
    pub boot_packs: Vec<u32>,
    /// File tables.
    pub tables: Vec<TableEntry>,
    /// Rows.
    pub rows: u64,
    /// Bytes of files.
    pub plain_bytes: u64,
    /// Bytes of packs and tables.
    pub stored_bytes: u64,
    /// For PostgreSQL's `backup_manifest`, sorted by path.
    pub manifest_files: Vec<ManifestFile>,
    /// Pages checked.
    pub pages: u64,
    /// Pages found bad.
    pub bad_pages: u64,
    /// The first bad pages.
    pub findings: Vec<PageFinding>,
    /// Bad pages that count only if they were not changed between start and stop, with their LSN.
    pub suspects: Vec<(PageFinding, Lsn)>,
    /// Files that vanished while they were copied.
    pub vanished: Vec<String>,
    /// Files that were shorter than at listing.
    pub shrunk: u64,
}

struct Shared<'a> {
    settings: &'a CopySettings,
    progress: &'a dyn Progress,
    stop: AtomicBool,
    error: Mutex<Option<CopyError>>,
    outstanding: Mutex<u64>,
    drained: Condvar,
    tables: Mutex<TableWriter<'a>>,
    packs: PackWriter<'a>,
    pages: AtomicU64,
    bad_pages: AtomicU64,
    outcome: Mutex<Outcome>,
    throttle: Throttle,
}

#[derive(Default)]
struct Outcome {
    manifest_files: Vec<ManifestFile>,
    findings: Vec<PageFinding>,
    suspects: Vec<(PageFinding, Lsn)>,
    vanished: Vec<String>,
    shrunk: u64,
    plain_bytes: u64,
}

impl Shared<'_> {
    fn fail(&self, error: CopyError) {
        let mut first = self.error.lock().expect("no panic while held");
        if first.is_none() && !matches!(error, CopyError::Stopped) {
            *first = Some(error);
        }
        self.stop.store(true, Ordering::SeqCst);
        self.drained.notify_all();
    }

    fn check(&self) -> Result<(), CopyError> {
        if self.stop.load(Ordering::SeqCst) { Err(CopyError::Stopped) } else { Ok(()) }
    }

    fn finding(&self, finding: PageFinding) {
        self.bad_pages.fetch_add(1, Ordering::Relaxed);
        let mut outcome = self.outcome.lock().expect("no panic while held");
        if outcome.findings.len() < MAX_FINDINGS {
            outcome.findings.push(finding);
        }
    }

    fn suspect(&self, finding: PageFinding, lsn: Lsn) {
        let mut outcome = self.outcome.lock().expect("no panic while held");
        if outcome.suspects.len() < MAX_SUSPECTS {
            outcome.suspects.push((finding, lsn));
        } else {
            drop(outcome);
            // More torn pages than any stream has: something is wrong with all of them.
            self.finding(finding);
        }
    }

    /// Called when a piece is done, or when the last piece was submitted: writes the row once all is.
    fn settle(&self, state: &FileState, parts: &mut Parts) -> Result<(), CopyError> {
        if !parts.complete || parts.open > 0 {
            return Ok(());
        }
        let mut meta = state.file.meta.clone();
        if parts.vanished {
            self.outcome.lock().expect("no panic while held").vanished.push(meta.path);
            return Ok(());
        }
        parts.done.sort_by_key(|part| part.0);
        // The file ends where the first piece fell short: what stands behind a cut was cut off and
        // written anew since, and WAL brings it (c011).
        let (mut size, mut crc, mut extents) = (0, 0, Vec::with_capacity(extent_count(meta.size) as usize));
        for (first, bytes, part_crc, mut part) in parts.done.drain(..) {
            if first * EXTENT_BYTES != size {
                break;
            }
            crc = match (size, bytes) {
                (0, _) => part_crc,
                (_, 0) => crc,
                _ => crc32c::crc32c_combine(crc, part_crc, bytes as usize),
            };
            size += bytes;
            extents.append(&mut part);
        }
        let shrunk = size < meta.size;
        meta.size = size;
        let mut outcome = self.outcome.lock().expect("no panic while held");
        outcome.plain_bytes += size;
        outcome.shrunk += u64::from(shrunk);
        if state.file.in_backup_manifest {
            outcome.manifest_files.push(ManifestFile {
                path: meta.path.clone(),
                size,
                modified: meta.modified.unwrap_or(jiff::Timestamp::UNIX_EPOCH),
                crc32c: crc,
            });
        }
        drop(outcome);
        self.progress.add(1, 0);
        self.tables.lock().expect("no panic while held").add(Row { meta, extents })
    }
}

/// Stops the others when a thread panics: they would wait for it for ever.
struct Alarm<'s, 'a>(&'s Shared<'a>);

impl Drop for Alarm<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop.store(true, Ordering::SeqCst);
            self.0.drained.notify_all();
        }
    }
}

/// Holds readers back to a number of bytes a second.
struct Throttle {
    bytes_per_second: Option<u64>,
    began: std::time::Instant,
    taken: AtomicU64,
}

impl Throttle {
    fn take(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let taken = self.taken.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = std::time::Duration::from_secs_f64(taken as f64 / rate.max(1) as f64);
        if let Some(ahead) = due.checked_sub(self.began.elapsed()) {
            std::thread::sleep(ahead);
        }
    }
}

/// Submits files to a running copy.
pub struct Feeder<'s, 'a> {
    shared: &'s Shared<'a>,
    jobs: channel::Sender<Job>,
    batch: Mutex<(u64, Vec<Piece>)>,
}

impl<'s, 'a> Feeder<'s, 'a> {
    /// A row without bytes: a directory, a link.
    pub fn entry(&self, meta: Meta) -> Result<(), CopyError> {
        debug_assert!(meta.kind != Kind::File);
        self.shared.tables.lock().expect("no panic while held").add(Row { meta, extents: Vec::new() })
    }

    /// A file that workers read by themselves.
    pub fn file(&self, file: CopyFile) -> Result<(), CopyError> {
        let size = file.meta.size;
        let boot = size <= BOOT_BYTES;
        let state = Arc::new(FileState { file, parts: Mutex::default() });
        if boot {
            return self.small(&state, Content::Read(size), size);
        }
        let mut at = 0;
        while at < size {
            let bytes = (size - at).min(JOB_BYTES);
            let last = at + bytes == size;
            let piece = open_piece(&state, at / EXTENT_BYTES, Content::Read(bytes), last);
            self.submit(Job { boot: false, pieces: vec![piece] })?;
            at += bytes;
        }
        Ok(())
    }

    /// A file whose bytes are brought along, all at once.
    pub fn bytes(&self, file: CopyFile, bytes: Vec<u8>) -> Result<(), CopyError> {
        let mut sequence = self.sequence(file);
        let mut bytes = bytes;
        while bytes.len() as u64 > JOB_BYTES {
            let rest = bytes.split_off(JOB_BYTES as usize);
            sequence.push(bytes)?;
            bytes = rest;
        }
        sequence.finish(bytes)
    }

    /// A file whose bytes are brought along piece by piece. Every piece but the last is a multiple
    /// of [`EXTENT_BYTES`].
    pub fn sequence<'f>(&'f self, file: CopyFile) -> Sequence<'f, 's, 'a> {
        let state = Arc::new(FileState { file, parts: Mutex::default() });
        Sequence { feeder: self, state, at: 0 }
    }

    fn small(&self, state: &Arc<FileState>, content: Content, bytes: u64) -> Result<(), CopyError> {
        let piece = open_piece(state, 0, content, true);
        let full = {
            let mut batch = self.batch.lock().expect("no panic while held");
            batch.0 += bytes;
            batch.1.push(piece);
            // A limit on files too: thousands of empty ones make a long job as well.
            (batch.0 >= JOB_BYTES / 2 || batch.1.len() >= 256).then(|| std::mem::take(&mut *batch))
        };
        full.map_or(Ok(()), |(_, pieces)| self.submit(Job { boot: true, pieces }))
    }

    fn flush_batch(&self) -> Result<(), CopyError> {
        let (_, pieces) = std::mem::take(&mut *self.batch.lock().expect("no panic while held"));
        if pieces.is_empty() { Ok(()) } else { self.submit(Job { boot: true, pieces }) }
    }

    fn submit(&self, job: Job) -> Result<(), CopyError> {
        self.shared.check()?;
        *self.shared.outstanding.lock().expect("no panic while held") += 1;
        self.jobs.send(job).map_err(|_| CopyError::Stopped)
    }

    /// Waits until everything submitted so far has been read and sealed.
    pub fn drain(&self) -> Result<(), CopyError> {
        self.flush_batch()?;
        let mut outstanding = self.shared.outstanding.lock().expect("no panic while held");
        while *outstanding > 0 {
            self.shared.check()?;
            let (guard, _) =
                self.shared.drained.wait_timeout(outstanding, std::time::Duration::from_millis(200)).expect("no panic while held");
            outstanding = guard;
        }
        self.shared.check()
    }
}

fn open_piece(state: &Arc<FileState>, first_extent: u64, content: Content, last: bool) -> Piece {
    let mut parts = state.parts.lock().expect("no panic while held");
    parts.open += 1;
    parts.complete |= last;
    Piece { file: state.clone(), first_extent, content }
}

/// A file that arrives piece by piece.
pub struct Sequence<'f, 's, 'a> {
    feeder: &'f Feeder<'s, 'a>,
    state: Arc<FileState>,
    at: u64,
}

impl Sequence<'_, '_, '_> {
    /// The next bytes, not the last.
    pub fn push(&mut self, bytes: Vec<u8>) -> Result<(), CopyError> {
        debug_assert!((bytes.len() as u64).is_multiple_of(EXTENT_BYTES));
        let first = self.at / EXTENT_BYTES;
        self.at += bytes.len() as u64;
        let piece = open_piece(&self.state, first, Content::Bytes(bytes), false);
        self.feeder.submit(Job { boot: false, pieces: vec![piece] })
    }

    /// The last bytes, maybe none.
    pub fn finish(self, bytes: Vec<u8>) -> Result<(), CopyError> {
        let length = bytes.len() as u64;
        if self.at == 0 && length <= BOOT_BYTES {
            return self.feeder.small(&self.state, Content::Bytes(bytes), length);
        }
        let piece = open_piece(&self.state, self.at / EXTENT_BYTES, Content::Bytes(bytes), true);
        self.feeder.submit(Job { boot: false, pieces: vec![piece] })
    }
}

/// Runs a copy: `feed` submits files, and what it returns comes back with what was stored.
pub fn run<T, E: From<CopyError>>(
    store: &dyn Store,
    settings: &CopySettings,
    progress: &dyn Progress,
    feed: impl FnOnce(&Feeder<'_, '_>) -> Result<T, E>,
) -> Result<(T, Copied), E> {
    let workers = settings.workers.max(1);
    let store_threads = pack_writer::store_threads(store.is_remote(), workers);
    let pack_limit = pack_bytes(settings.memory_bytes, workers, store_threads);
    let shared = Shared {
        settings,
        progress,
        stop: AtomicBool::new(false),
        error: Mutex::default(),
        outstanding: Mutex::new(0),
        drained: Condvar::new(),
        tables: Mutex::new(TableWriter::new(store, settings.backup.clone(), settings.tables.clone())),
        packs: PackWriter::new(store, settings.data.clone(), pack_limit),
        pages: AtomicU64::new(0),
        bad_pages: AtomicU64::new(0),
        outcome: Mutex::default(),
        throttle: Throttle { bytes_per_second: settings.bandwidth, began: std::time::Instant::now(), taken: AtomicU64::new(0) },
    };
    // Jobs that bring bytes along are up to 8 MiB: no more of them wait than there are workers.
    let (jobs, work) = channel::bounded::<Job>(workers);
    let (full, packs) = channel::bounded(1);
    let fed = std::thread::scope(|scope| {
        for _ in 0..store_threads {
            let packs = packs.clone();
            scope.spawn(|| pack_writer::store_packs(&shared, packs));
        }
        for _ in 0..workers {
            let (work, full) = (work.clone(), full.clone());
            scope.spawn(|| worker::work(&shared, work, full));
        }
        drop((work, full, packs));
        let feeder = Feeder { shared: &shared, jobs, batch: Mutex::default() };
        let fed = feed(&feeder);
        match &fed {
            Ok(_) => {
                if let Err(error) = feeder.drain() {
                    shared.fail(error);
                }
            }
            Err(_) => shared.stop.store(true, Ordering::SeqCst),
        }
        fed
    });
    // The first cause, not the "stopped" that it made of the others.
    if let Some(error) = shared.error.lock().expect("no panic while held").take() {
        return Err(error.into());
    }
    let value = fed?;
    shared.check()?;
    let Shared { tables, packs, outcome, pages, bad_pages, .. } = shared;
    let (tables, rows, table_bytes) = tables.into_inner().expect("no panic while held").finish()?;
    let (packs, boot_packs) = packs.finish();
    let mut outcome = outcome.into_inner().expect("no panic while held");
    outcome.manifest_files.sort_by(|a, b| a.path.cmp(&b.path));
    outcome.findings.sort_by(|a, b| (&a.file, a.block).cmp(&(&b.file, b.block)));
    outcome.vanished.sort();
    let stored_bytes = table_bytes + packs.iter().map(|pack| pack.bytes).sum::<u64>();
    let copied = Copied {
        packs,
        boot_packs,
        tables,
        rows,
        plain_bytes: outcome.plain_bytes,
        stored_bytes,
        manifest_files: outcome.manifest_files,
        pages: pages.into_inner(),
        bad_pages: bad_pages.into_inner(),
        findings: outcome.findings,
        suspects: outcome.suspects,
        vanished: outcome.vanished,
        shrunk: outcome.shrunk,
    };
    Ok((value, copied))
}

fn open_source(path: &std::path::Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // A path that became a fifo must not hang us (c030), one that became a link must not lead away.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no longer a regular file"));
    }
    Ok(file)
}
