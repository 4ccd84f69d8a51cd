//! Storing finished WAL files for `archive_command`: the one that was asked for, and those that are ready behind it.
//!
//! PostgreSQL asks for one file at a time and waits. So one run stores several, in parallel, and leaves a mark for each; when PostgreSQL asks
//! for those, the mark answers at once. Nothing may be taken for stored that is not durable in the repository, and no file may go there
//! before all that PostgreSQL asks for before it were compared with what is there: a clone of the server, refused at the first segment that
//! differs, must not take the names of later ones.
//!
//! What is decided without looking is in `lifeboat_core::wal::push`.

mod spool;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::postgres::control_file::{ControlFile, ControlFileError};
use lifeboat_core::repository::{Id, Sha256, layout, to_json};
use lifeboat_core::wal::file::{GapRecord, WalFile, WalPredicate};
use lifeboat_core::wal::push::{self as rules, Identity, MAX_TEXT_BYTES, Mark, Status, Statuses, TextError};
use lifeboat_core::wal::receive::Position;
use lifeboat_core::wal::record::{RecordError, Summarizer, Summary};
use lifeboat_core::wal::{LONG_HEADER_BYTES, Lsn, Segment, SegmentError, SegmentHeader, SegmentSize, check_segment_header};
use serde::Serialize;

use super::digests::{Digesting, Digests};
use super::{Cluster, Put, WalError, WalWriter, known};
use crate::backup::Protection;
use crate::causes;
use crate::repository::Repository;
use crate::signing::{Signer, Trust};
use crate::store::StoreError;
use spool::Spool;

/// What is read at once.
const READ_BYTES: usize = 256 << 10;

/// How many bytes of segments are kept between reading them to sign them and storing them, at most: what goes beyond is read twice.
const KEPT_BYTES: u64 = 128 << 20;

/// Files at once for each processor, and at least: each of them waits for the store as long as it computes.
const FILES_PER_WORKER: usize = 2;
const MIN_FILES: usize = 4;

/// How long after the asked file is stored others are still begun: PostgreSQL waits, and asks for them anyway.
const BEGIN_FOR: Duration = Duration::from_secs(5);

/// How long after that others may take to end what they began, before it is given up.
const END_WITHIN: Duration = Duration::from_secs(30);

/// Why a file was not archived.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Its name is not that of a WAL file.
    #[error("archive {0:?}: PostgreSQL has no WAL file of that name")]
    Name(String),
    /// Nothing says which cluster it is of.
    #[error(
        "archive {file}: which cluster it is of is not known: {looked} is not there, and the repository has WAL of {clusters} clusters"
    )]
    UnknownCluster {
        /// The file.
        file: String,
        /// Where `pg_control` was looked for.
        looked: String,
        /// How many there are.
        clusters: usize,
    },
    /// The cluster's control file cannot be read.
    #[error("read {path}")]
    ControlFile {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: ControlFileError,
    },
    /// It is not as long as a segment of this cluster.
    #[error("archive {file}: it has {found} bytes, a segment of this cluster has {expected}")]
    Length {
        /// The file.
        file: String,
        /// Its length.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// It is not the segment that its name says.
    #[error("archive {file}")]
    Segment {
        /// The file.
        file: String,
        /// Why not.
        #[source]
        source: SegmentError,
    },
    /// A history file that is not whole.
    #[error("archive {file}: {problem}")]
    Text {
        /// The file.
        file: String,
        /// What is wrong.
        problem: TextError,
    },
    /// The repository did not take it.
    #[error(transparent)]
    Wal(#[from] WalError),
}

impl From<StoreError> for PushError {
    fn from(error: StoreError) -> Self {
        Self::Wal(error.into())
    }
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> PushError {
    PushError::Wal(WalError::File { action, path: path.display().to_string(), source })
}

/// The file that PostgreSQL asked for, and where it stands.
#[derive(Debug)]
pub struct Asked {
    /// Whose it is.
    pub cluster: Cluster,
    /// What it is.
    pub file: WalFile,
    name: String,
    /// `pg_wal`.
    directory: PathBuf,
}

impl Asked {
    /// What `archive_command` was given: a path relative to the data directory, which is PostgreSQL's current directory, or an absolute one.
    pub fn find(repository: &Repository, path: &Path) -> Result<Self, PushError> {
        Self::located(path, |name, control| only_cluster(repository, name, control))
    }

    /// The same as long as no repository is needed to tell whose it is.
    pub fn alone(path: &Path) -> Option<Self> {
        let unknown = |name: &str, control: &Path| {
            Err(PushError::UnknownCluster { file: name.to_owned(), looked: control.display().to_string(), clusters: 0 })
        };
        Self::located(path, unknown).ok()
    }

    fn located(path: &Path, only: impl FnOnce(&str, &Path) -> Result<Cluster, PushError>) -> Result<Self, PushError> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if !rules::is_archived_name(&name) {
            return Err(PushError::Name(path.display().to_string()));
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let control = above(&directory).join("global/pg_control");
        let cluster = match read_control_file(&control)? {
            Some(cluster) => cluster,
            None => match name.ends_with(".history") || name.ends_with(".backup") {
                true => only(&name, &control)?,
                false => cluster_of_header(&directory.join(&name))?,
            },
        };
        let file = rules::archived(&name, cluster.segment_size).ok_or_else(|| PushError::Name(name.clone()))?;
        Ok(Self { cluster, file, name, directory })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was pushed ahead, as it is now. The mark goes.
    pub fn take_mark(&self, repository: &Repository, spool: &Path) -> bool {
        let spool = Spool::of(spool, repository.descriptor().repository, self.cluster.system_id);
        if spool.read(&self.name).is_none() {
            return false;
        }
        // That the object is there is asked all the same, it is cheap: a repository may have been put back to an earlier state.
        let valid = is_marked(&spool, &self.directory, &self.name)
            && repository.store().length(&self.file.key(self.cluster.system_id, self.cluster.segment_size)).is_ok();
        spool.remove(&self.name);
        valid
    }

    /// Whether it was pushed ahead, as it is now, less than [`known::LIFE`] ago. The mark goes. An older one is left: it is worth asking the
    /// repository about, which a connection to a bucket is not when the answer is a second old.
    /// `places` are those of the repository now: a mark says nothing of one that came since.
    pub fn take_fresh_mark(&self, repository: Id, spool: &Path, places: &str) -> bool {
        let spool = Spool::of(spool, repository, self.cluster.system_id);
        let is_fresh = spool.age(&self.name).is_some_and(|age| age < known::LIFE)
            && spool.read(&self.name).is_some_and(|mark| mark.places == Some(Sha256::of(places.as_bytes())))
            && is_marked(&spool, &self.directory, &self.name);
        if is_fresh {
            spool.remove(&self.name);
        }
        is_fresh
    }
}

/// The directory above `pg_wal`, by name: `pg_wal` itself may be a link to another file system.
fn above(directory: &Path) -> PathBuf {
    match (directory.file_name(), directory.parent()) {
        (Some(_), Some(parent)) if parent.as_os_str().is_empty() => PathBuf::from("."),
        (Some(_), Some(parent)) => parent.to_owned(),
        // It ends in a dot.
        _ => directory.join(".."),
    }
}

/// What the control file says; `None` where there is none. Read until its CRC holds: the server may be writing it (c008).
fn read_control_file(path: &Path) -> Result<Option<Cluster>, PushError> {
    let mut last = None;
    for attempt in 0..20 {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(file_error("read", path, error)),
        };
        match ControlFile::decode(&bytes) {
            Ok(control) => return Ok(Some(Cluster { system_id: control.system_id, segment_size: control.segment_size })),
            // The same wrong bytes twice are not a torn read.
            Err(ControlFileError::Crc) if attempt < 1 || last.as_ref() != Some(&bytes) => last = Some(bytes),
            Err(source) => return Err(PushError::ControlFile { path: path.display().to_string(), source }),
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err(PushError::ControlFile { path: path.display().to_string(), source: ControlFileError::Crc })
}

/// The cluster of a repository that has only one.
fn only_cluster(repository: &Repository, name: &str, looked: &Path) -> Result<Cluster, PushError> {
    let clusters = super::clusters(repository)?;
    let known = match clusters[..] {
        [system_id] => super::cluster(repository, system_id)?,
        _ => None,
    };
    let known = known.ok_or_else(|| PushError::UnknownCluster {
        file: name.to_owned(),
        looked: looked.display().to_string(),
        clusters: clusters.len(),
    })?;
    Ok(Cluster { system_id: known.system_id, segment_size: known.segment_size })
}

/// What a segment says of itself, where there is no control file.
fn cluster_of_header(path: &Path) -> Result<Cluster, PushError> {
    let wrong = |source| PushError::Segment { file: path.display().to_string(), source };
    let mut header = [0; LONG_HEADER_BYTES];
    let mut file = File::open(path).map_err(|e| file_error("read", path, e))?;
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(wrong(SegmentError::NoHeader)),
        Err(error) => return Err(file_error("read", path, error)),
    }
    let header = SegmentHeader::decode(&header).map_err(wrong)?;
    let segment_size = SegmentSize::new(header.segment_size).map_err(|_| wrong(SegmentError::OtherSize(header.segment_size)))?;
    Ok(Cluster { system_id: header.system_id, segment_size })
}

fn identity(meta: &fs::Metadata) -> Option<Identity> {
    let time = |seconds: i64, nanoseconds: i64| Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok();
    Some(Identity {
        device: meta.dev(),
        inode: meta.ino(),
        bytes: meta.len(),
        modified: time(meta.mtime(), meta.mtime_nsec())?,
        changed: time(meta.ctime(), meta.ctime_nsec())?,
    })
}

/// Whether there is a mark of this file as it is now.
fn is_marked(spool: &Spool, directory: &Path, name: &str) -> bool {
    let found = fs::metadata(directory.join(name)).ok().and_then(|meta| identity(&meta));
    spool.read(name).is_some_and(|mark| found == Some(mark.identity))
}

/// With what, and how much at once.
pub struct PushOptions<'a> {
    /// Where marks are left; need not be there.
    pub spool: &'a Path,
    /// The places that files are stored in, where they may be taken for known ([`known`]).
    pub places: Option<&'a str>,
    /// Files that are stored at most, the asked one among them.
    pub files: usize,
    /// Threads.
    pub workers: usize,
    /// Who signs. Asked only when something has to be stored.
    pub signer: &'a dyn Signer,
    /// Whose files of the same name count as the same.
    pub trust: &'a Trust,
    /// Who can read them.
    pub protection: &'a Protection,
    /// zstd's.
    pub level: i32,
    /// This program, as repositories name it.
    pub program: &'a str,
    /// This host.
    pub host: &'a str,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was stored.
    Stored,
    /// It was there, with the same bytes.
    Same,
}

/// What a push did.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What became of the asked file.
    pub outcome: Outcome,
    /// Others that were stored, in PostgreSQL's order.
    pub ahead: Vec<String>,
    /// WAL that was found to be lost.
    pub gaps: Vec<GapRecord>,
    /// What somebody should look at, one line each.
    pub warnings: Vec<String>,
}

/// Stores the asked file, and others that are ready.
///
/// # Errors
///
/// Those of the asked file. What goes wrong with others is a warning: PostgreSQL will ask for them.
pub fn run(repository: &Repository, asked: &Asked, options: &PushOptions<'_>) -> Result<Report, PushError> {
    let spool = Spool::of(options.spool, repository.descriptor().repository, asked.cluster.system_id);
    let mut warnings = Vec::new();
    let statuses = match read_statuses(&asked.directory, asked.cluster.segment_size) {
        Ok(statuses) => statuses,
        Err(error) => {
            warnings.push(format!("nothing is pushed ahead: read {}/archive_status: {error}", asked.directory.display()));
            None
        }
    };
    let mut batch = vec![asked.file];
    let mut there = HashSet::new();
    if let Some(statuses) = &statuses {
        let marked = spool.names();
        for file in statuses.ready(asked.file, asked.cluster.segment_size) {
            if batch.len() >= options.files.max(1) {
                break;
            }
            let name = file.file_name(asked.cluster.segment_size);
            if marked.contains_key(&name) && is_marked(&spool, &asked.directory, &name) {
                there.insert(file);
            } else {
                batch.push(file);
            }
        }
    }
    let begins =
        batch.iter().filter_map(|file| file.segment()).map(|segment| Position::start_of(segment, asked.cluster.segment_size)).min();
    let push = |spool, files: usize| {
        let writer = WalWriter::new(repository, asked.cluster, options.signer, options.trust, options.protection, options.level);
        Push { repository, asked, options, writer, spool, claimed: Mutex::new(None), begins, turns: Turns::new(files) }
    };
    let mut ahead = Vec::new();
    let history = statuses.as_ref().and_then(|statuses| history_beside(asked, statuses));
    if let Some((history, name)) = history.map(|history| (history, history.file_name(asked.cluster.segment_size)))
        && !spool.is_there(&name)
    {
        let there = repository.store().length(&history.key(asked.cluster.system_id, asked.cluster.segment_size));
        if matches!(there, Err(StoreError::NotFound { .. })) {
            // Not a warning when it fails: without it the segment is of no use.
            let spool = Spool::of(options.spool, repository.descriptor().repository, asked.cluster.system_id);
            push(spool, 1).all(&[history]).remove(&0).expect("the only file is always begun")?;
            ahead.push(name.clone());
        } else {
            there.map_err(PushError::from)?;
        }
        // A server that archived it once has its own archive, as a rule. Without a spool everything is only slower.
        if statuses.as_ref().is_some_and(|statuses| statuses.get(history) == Some(Status::Done)) {
            let _ = spool.note_there(&name);
        }
    }
    let push = push(spool, batch.len());
    let mut results = push.all(&batch);

    let first = results.remove(&0).expect("the asked file is always begun")?;
    warnings.extend(first.warnings);
    let outcome = first.outcome.expect("the first file waits for nobody");
    there.insert(asked.file);
    for (index, file) in batch.iter().enumerate().skip(1) {
        let name = || file.file_name(asked.cluster.segment_size);
        match results.remove(&index) {
            Some(Ok(Done { outcome: Some(_), warnings: more })) => {
                there.insert(*file);
                ahead.push(name());
                warnings.extend(more);
            }
            Some(Err(error)) if !given_up(&error) => warnings.push(format!("pushing ahead: {}", causes::joined(&error))),
            // Not begun, held back, or given up: its turn comes.
            _ => {}
        }
    }
    let mut gaps = Vec::new();
    if let Some(statuses) = &statuses {
        for segment in batch.iter().filter(|file| there.contains(file)) {
            let WalFile::Segment(segment) = *segment else { continue };
            match push.gap_before(segment, &there, statuses) {
                Ok(Some(gap)) => gaps.push(gap),
                Ok(None) => {}
                Err(error) => warnings.push(format!("look for lost WAL: {}", causes::joined(&error))),
            }
        }
        push.spool
            .clean(|name| rules::archived(name, asked.cluster.segment_size).is_some_and(|file| statuses.get(file) == Some(Status::Ready)));
    }
    for gap in &gaps {
        warnings.push(format!(
            "WAL of timeline {} from {} to {} is lost: it is neither in the repository nor in pg_wal; recovery cannot go past it, take a new backup",
            gap.timeline, gap.from, gap.to
        ));
    }
    Ok(Report { outcome, ahead, gaps, warnings })
}

/// What PostgreSQL says of the files in `pg_wal`; `None`: it says nothing there, this is no `pg_wal`.
fn read_statuses(directory: &Path, size: SegmentSize) -> io::Result<Option<Statuses>> {
    let entries = match fs::read_dir(directory.join("archive_status")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(Some(Statuses::read(names.iter().map(String::as_str), size)))
}

/// The history file of the asked segment's timeline, if it lies in `pg_wal` and PostgreSQL will not ask for it: it says that a history file is
/// ready only if `archive_mode` is on at the moment when the timeline begins (`writeTimeLineHistory`, timeline.c), and asks once. A restored
/// server begins its timeline with archiving off, and archives when somebody has looked at it; and one that begins a new archive had the
/// file taken by the old one. Without its history file nothing of that timeline can be replayed.
fn history_beside(asked: &Asked, statuses: &Statuses) -> Option<WalFile> {
    let timeline = asked.file.segment()?.timeline;
    let history = WalFile::History(timeline);
    let is_there = || asked.directory.join(history.file_name(asked.cluster.segment_size)).is_file();
    (timeline.0 > 1 && statuses.get(history) != Some(Status::Ready) && is_there()).then_some(history)
}

/// What became of one file of a batch; without an outcome it was held back.
struct Done {
    outcome: Option<Outcome>,
    warnings: Vec<String>,
}

/// What is known of a file once it was read.
struct Examined {
    digests: Digests,
    predicate: WalPredicate,
    /// If a later change of the file would show.
    mark: Option<Mark>,
    /// All its bytes were kept.
    is_kept: bool,
    warning: Option<String>,
}

/// The bytes of the file that a thread is at.
struct Kept {
    /// There is room for all of a segment.
    keeps: bool,
    bytes: Vec<u8>,
}

struct Push<'a> {
    repository: &'a Repository,
    asked: &'a Asked,
    options: &'a PushOptions<'a>,
    writer: WalWriter<'a>,
    spool: Spool,
    /// The page magic that the repository agreed to.
    claimed: Mutex<Option<u16>>,
    /// Where the oldest segment that waits begins.
    begins: Option<Position>,
    turns: Turns,
}

impl Push<'_> {
    /// Pushes a batch; what was not begun has no result.
    fn all(&self, batch: &[WalFile]) -> HashMap<usize, Result<Done, PushError>> {
        let results = Mutex::new(HashMap::new());
        let segment_bytes = self.asked.cluster.segment_size.bytes();
        let work = |keeps: bool| {
            // One for all files of a thread: the kernel clears every page of a new one.
            let mut kept = Kept { keeps, bytes: Vec::new() };
            while let Some(turn) = self.turns.next() {
                let index = turn.index;
                let result = self.one(batch[index], turn, &mut kept);
                if index == 0 {
                    self.turns.asked_ended(result.is_ok());
                }
                results.lock().expect("no panic while held").insert(index, result);
            }
        };
        thread::scope(|scope| {
            let threads = (self.options.workers * FILES_PER_WORKER).max(MIN_FILES);
            for number in 1..threads.min(batch.len()) as u64 {
                scope.spawn(move || work((number + 1).saturating_mul(segment_bytes) <= KEPT_BYTES));
            }
            work(segment_bytes <= KEPT_BYTES);
        });
        results.into_inner().expect("no panic while held")
    }

    fn one(&self, file: WalFile, mut turn: Turn<'_>, kept: &mut Kept) -> Result<Done, PushError> {
        let name = file.file_name(self.asked.cluster.segment_size);
        let path = self.asked.directory.join(&name);
        let is_ahead = turn.index > 0;
        let input = match File::open(&path) {
            Ok(input) => input,
            // A status file that outlived its file: PostgreSQL will drop it.
            Err(error) if is_ahead && error.kind() == io::ErrorKind::NotFound => {
                turn.passed();
                return Ok(Done { outcome: None, warnings: Vec::new() });
            }
            Err(error) => return Err(file_error("read", &path, error)),
        };
        let examined = self.examine(file, &name, &path, &input, kept)?;
        if let Some(magic) = examined.predicate.page_magic {
            self.claim(magic)?;
        } else if let Some(known) = super::cluster(self.repository, self.asked.cluster.system_id)?
            && known.segment_size != self.asked.cluster.segment_size
        {
            self.claim(known.page_magic)?;
        }
        let there = match self.writer.compare(file, examined.digests) {
            Err(WalError::Conflict { .. }) if matches!(file, WalFile::Partial(_)) => {
                let done = self.another_partial(file, &name, &path, &examined, kept)?;
                turn.passed();
                return Ok(done);
            }
            other => other?,
        };
        turn.passed();
        if !self.turns.wait_for_earlier(turn.index) {
            return Ok(Done { outcome: None, warnings: Vec::new() });
        }
        let outcome = match there {
            Some(_) => Outcome::Same,
            None => {
                let (digests, predicate) = (examined.digests, &examined.predicate);
                let put = if examined.is_kept {
                    self.writer.put_compared(file, digests, predicate, &kept.bytes, &|| !(is_ahead && self.turns.is_over()))
                } else {
                    let mut content = File::open(&path).map_err(|e| file_error("read", &path, e))?;
                    let mut content = GivenUp { turns: is_ahead.then_some(&self.turns), content: &mut content };
                    self.writer.put(file, digests, predicate, &mut content)
                };
                match put {
                    Ok(Put::Created(_)) => Outcome::Stored,
                    Ok(Put::Same) => Outcome::Same,
                    Err(error) => {
                        turn.failed();
                        return Err(error.into());
                    }
                }
            }
        };
        let mut warnings: Vec<String> = examined.warning.into_iter().collect();
        if is_ahead
            && let Some(mark) = examined.mark
            && let Err(error) = self.spool.write(&name, &mark)
            && turn.complains()
        {
            warnings.push(format!("the spool {} cannot be used, so {name} will be read again: {error}", self.options.spool.display()));
        }
        Ok(Done { outcome: Some(outcome), warnings })
    }

    /// The last segment of a timeline, of which another server that was promoted in it has archived its own copy: every server has its own
    /// bytes behind the last record. That one stays, for a name has one content; what this one has of the timeline is stored as a piece.
    /// PostgreSQL would ask for this file for ever, and for nothing behind it, though no recovery of its own timeline needs it.
    fn another_partial(&self, file: WalFile, name: &str, path: &Path, examined: &Examined, kept: &Kept) -> Result<Done, PushError> {
        let size = self.asked.cluster.segment_size;
        let segment = file.segment().expect("a partial is of a segment");
        let end = examined.predicate.summary.as_ref().and_then(|summary| summary.end).unwrap_or_default();
        let bytes = end.0.saturating_sub(segment.start(size).0).min(size.bytes());
        let mut warning = format!("{name} is there, archived by another server that was promoted in the same segment; that one stays");
        if bytes > 0 {
            let to = u32::try_from(bytes).expect("a segment has at most 1 GiB");
            let piece = WalFile::Piece { segment, from: 0, to };
            let content = if examined.is_kept {
                kept.bytes[..to as usize].to_vec()
            } else {
                let mut content = vec![0; to as usize];
                File::open(path).and_then(|mut file| file.read_exact(&mut content)).map_err(|error| file_error("read", path, error))?;
                content
            };
            let predicate = WalPredicate { page_magic: examined.predicate.page_magic, ..WalPredicate::new(bytes, size) };
            self.writer.put_bytes(piece, &predicate, &content)?;
            warning.push_str(&format!(", and what this one has, up to {end}, is stored beside it"));
        }
        Ok(Done { outcome: Some(Outcome::Stored), warnings: vec![warning] })
    }

    fn claim(&self, magic: u16) -> Result<(), PushError> {
        let mut claimed = self.claimed.lock().expect("no panic while held");
        if *claimed != Some(magic) {
            self.writer.claim_cluster(magic, self.begins, Timestamp::now(), self.options.program)?;
            *claimed = Some(magic);
        }
        Ok(())
    }

    fn mark(&self, sha256: Sha256, identity: Identity) -> Mark {
        Mark { sha256, identity, places: self.options.places.map(|places| Sha256::of(places.as_bytes())) }
    }

    /// Reads a file once: is it what its name says (c052, c053), and what is in it. Its bytes stay in `kept`, if there is room.
    fn examine(&self, file: WalFile, name: &str, path: &Path, mut input: &File, kept: &mut Kept) -> Result<Examined, PushError> {
        let failed = |error| file_error("read", path, error);
        let segment_size = self.asked.cluster.segment_size;
        let meta = input.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(failed(io::Error::other("it is no file")));
        }
        let identity = identity(&meta).filter(|identity| identity.is_settled(Timestamp::now()));
        let Some(segment) = file.segment() else {
            let mut bytes = Vec::new();
            input.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
            if bytes.len() as u64 > MAX_TEXT_BYTES {
                return Err(PushError::Length { file: name.to_owned(), found: meta.len(), expected: MAX_TEXT_BYTES });
            }
            rules::check_text(file, &bytes).map_err(|problem| PushError::Text { file: name.to_owned(), problem })?;
            let digests = Digests::of(&bytes);
            let predicate = match file {
                WalFile::History(timeline) => WalPredicate::of_history(timeline, &bytes, segment_size).map_err(WalError::from)?,
                _ => WalPredicate::new(bytes.len() as u64, segment_size),
            };
            let mark = identity.map(|identity| self.mark(digests.sha256, identity));
            kept.bytes = bytes;
            return Ok(Examined { digests, predicate, mark, is_kept: true, warning: None });
        };

        let length = |found| PushError::Length { file: name.to_owned(), found, expected: segment_size.bytes() };
        if meta.len() != segment_size.bytes() {
            return Err(length(meta.len()));
        }
        let wrong = |source| PushError::Segment { file: name.to_owned(), source };
        let mut digesting = Digesting::new();
        let mut summarizer = Summarizer::new(segment, segment_size);
        let is_kept = kept.keeps;
        let room = if is_kept { segment_size.bytes() as usize } else { READ_BYTES };
        kept.bytes.resize(room, 0);
        let (mut at, mut page_magic) = (0u64, None);
        while at < segment_size.bytes() {
            let from = if is_kept { at as usize } else { 0 };
            let buffer = &mut kept.bytes[from..room.min(from + READ_BYTES)];
            let part = match input.read(buffer) {
                Ok(0) => return Err(length(at)),
                Ok(part) => &buffer[..part],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            if page_magic.is_none() {
                let header = part.first_chunk().ok_or_else(|| wrong(SegmentError::NoHeader))?;
                check_segment_header(header, segment, segment_size, self.asked.cluster.system_id).map_err(wrong)?;
                page_magic = Some(SegmentHeader::decode(header).map_err(wrong)?.page_magic);
            }
            digesting.update(part);
            summarizer.push(part);
            at += part.len() as u64;
        }
        let (summary, warning) = summarise(file, name, segment_size, summarizer.finish());
        let digests = digesting.finish();
        let predicate = WalPredicate { page_magic, summary, ..WalPredicate::new(at, segment_size) };
        let mark = identity.map(|identity| self.mark(digests.sha256, identity));
        Ok(Examined { digests, predicate, mark, is_kept, warning })
    }

    /// Whether the segment before this one is lost; then that is noted, once.
    fn gap_before(&self, segment: Segment, there: &HashSet<WalFile>, statuses: &Statuses) -> Result<Option<GapRecord>, PushError> {
        let Some(before) = rules::predecessor(segment) else { return Ok(None) };
        let Cluster { system_id, segment_size } = self.asked.cluster;
        let file = WalFile::Segment(before);
        // First what waits, then what is stored: a file that another pusher stores in between is in one of both.
        if there.contains(&file) || self.waits(file, statuses) {
            return Ok(None);
        }
        let store = self.repository.store();
        match store.length(&file.key(system_id, segment_size)) {
            Err(StoreError::NotFound { .. }) => {}
            other => return other.map(|_| None).map_err(PushError::from),
        }
        // Rare from here on: the archive begins, or something is lost.
        let mut all: Vec<WalFile> = Vec::new();
        for entry in fs::read_dir(&self.asked.directory).map_err(|e| file_error("read", &self.asked.directory, e))?.flatten() {
            let file = entry.file_name().to_str().and_then(|name| rules::archived(name, segment_size));
            all.extend(file.filter(|file| self.waits(*file, statuses)));
        }
        let listed = store.list(&layout::wal_timeline(system_id, segment.timeline))?;
        // What waits counts only where the archive has begun before it.
        let stored: Vec<WalFile> = listed.iter().filter_map(|listed| WalFile::from_key(&listed.key, system_id, segment_size)).collect();
        if rules::lost_before(segment, stored.iter().copied()).is_none() {
            return Ok(None);
        }
        all.extend(stored);
        let Some((mut from, to)) = rules::lost_before(segment, all) else { return Ok(None) };
        // A gap is never taken back, and a listing may not show the newest segments yet (c102): each is asked for by its name.
        while from != to {
            match store.length(&WalFile::Segment(from).key(system_id, segment_size)) {
                Ok(_) => from = from.next(),
                Err(StoreError::NotFound { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if from == to {
            return Ok(None);
        }
        let (from, to): (Lsn, Lsn) = (from.start(segment_size), to.start(segment_size));
        let gap = GapRecord {
            format: 1,
            timeline: segment.timeline,
            from,
            to,
            found: Timestamp::now(),
            by: format!("push on host {}", self.options.host),
            reason: format!("it was neither in the repository nor in pg_wal when {} was archived", segment.file_name(segment_size)),
        };
        match store.create(&layout::wal_gap(system_id, gap.timeline, from, to), &to_json(&gap)) {
            Ok(()) => Ok(Some(gap)),
            Err(StoreError::Exists { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether PostgreSQL still has a file and will ask for it: it is ready, or has no status yet, as after a crash.
    fn waits(&self, file: WalFile, statuses: &Statuses) -> bool {
        match statuses.get(file) {
            Some(status) => status == Status::Ready,
            None => self.asked.directory.join(file.file_name(self.asked.cluster.segment_size)).exists(),
        }
    }
}

/// What the records of a segment say, or why they say less than they should. A finished segment is full of them, or ends with a switch.
fn summarise(file: WalFile, name: &str, size: SegmentSize, found: Result<Summary, RecordError>) -> (Option<Summary>, Option<String>) {
    let summary = match found {
        Ok(summary) => summary,
        // Of a version to come: stored all the same, its targets are not known.
        Err(error) => return (None, Some(format!("{name} is stored without a summary: {error}"))),
    };
    let WalFile::Segment(segment) = file else { return (Some(summary), None) };
    let warning = (!summary.is_full(segment, size)).then(|| {
        let end = summary.end.unwrap_or(segment.start(size));
        format!("{name} is stored, but its records end at {end}, before the segment does: recovery may not get past it, take a new backup")
    });
    (Some(summary), warning)
}

/// How far each file of a batch has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// It was read and compared: nothing speaks against those behind it.
    Passed,
    Failed,
}

/// Who is next, and who may go on.
struct Turns {
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    next: usize,
    states: Vec<State>,
    asked_ended: Option<(Instant, bool)>,
    complained: bool,
}

impl Turns {
    fn new(files: usize) -> Self {
        let inner = Inner { next: 0, states: vec![State::Waiting; files], asked_ended: None, complained: false };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while held")
    }

    /// The next file to begin with; `None` when it is time to end.
    fn next(&self) -> Option<Turn<'_>> {
        let mut inner = self.lock();
        let in_time = inner.asked_ended.is_none_or(|(at, ok)| ok && at.elapsed() < BEGIN_FOR);
        if !in_time || inner.next >= inner.states.len() || inner.states.contains(&State::Failed) {
            return None;
        }
        inner.next += 1;
        Some(Turn { turns: self, index: inner.next - 1 })
    }

    fn asked_ended(&self, ok: bool) {
        self.lock().asked_ended = Some((Instant::now(), ok));
    }

    /// Whether it took too long since the asked file was stored, or that failed.
    fn is_over(&self) -> bool {
        self.lock().asked_ended.is_some_and(|(at, ok)| !ok || at.elapsed() > BEGIN_FOR + END_WITHIN)
    }

    /// Waits until all files before this one were compared; false if one of them failed. They were begun before it, so each of them comes
    /// to an end.
    fn wait_for_earlier(&self, index: usize) -> bool {
        let earlier = |inner: &mut Inner| {
            let states = &inner.states[..index];
            !states.contains(&State::Failed) && states.contains(&State::Waiting)
        };
        let inner = self.changed.wait_while(self.lock(), earlier).expect("no panic while held");
        !inner.states[..index].contains(&State::Failed)
    }

    fn set(&self, index: usize, state: State) {
        self.lock().states[index] = state;
        self.changed.notify_all();
    }
}

/// One file's turn. Dropped without [`Turn::passed`], it has failed.
struct Turn<'a> {
    turns: &'a Turns,
    index: usize,
}

impl Turn<'_> {
    fn passed(&mut self) {
        self.turns.set(self.index, State::Passed);
    }

    fn failed(&mut self) {
        self.turns.set(self.index, State::Failed);
    }

    /// True once for a batch.
    fn complains(&self) -> bool {
        !std::mem::replace(&mut self.turns.lock().complained, true)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let waiting = self.turns.lock().states[self.index] == State::Waiting;
        if waiting {
            self.failed();
        }
    }
}

/// A file's bytes, until it is over.
struct GivenUp<'a> {
    turns: Option<&'a Turns>,
    content: &'a mut dyn Read,
}

impl Read for GivenUp<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.turns.is_some_and(Turns::is_over) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.content.read(buffer)
    }
}

fn given_up(error: &PushError) -> bool {
    matches!(error, PushError::Wal(WalError::File { source, .. }) if source.kind() == io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c049_nobody_passes_a_file_that_failed() {
        let turns = Turns::new(4);
        let (first, mut second, third) = (turns.next().unwrap(), turns.next().unwrap(), turns.next().unwrap());
        second.passed();
        thread::scope(|scope| {
            let (two, three) = (scope.spawn(|| turns.wait_for_earlier(1)), scope.spawn(|| turns.wait_for_earlier(2)));
            drop(first);
            assert!(!two.join().unwrap() && !three.join().unwrap());
        });
        assert!(turns.next().is_none(), "nothing is begun behind a file that failed");
        drop(third);
        assert!(turns.wait_for_earlier(0), "the asked file waits for nobody");
    }

    #[test]
    fn files_go_on_when_all_before_them_were_compared() {
        let turns = Turns::new(3);
        let mut open: Vec<Turn<'_>> = std::iter::from_fn(|| turns.next()).collect();
        assert_eq!(open.len(), 3);
        thread::scope(|scope| {
            let last = scope.spawn(|| turns.wait_for_earlier(2));
            open[1].passed();
            open[0].passed();
            assert!(last.join().unwrap());
        });
        // That a store failed later does not undo what was compared, but ends what is behind it.
        open[1].failed();
        drop(open);
        assert!(!turns.wait_for_earlier(2) && turns.wait_for_earlier(1));
    }

    #[test]
    fn others_are_not_begun_for_ever() {
        let turns = Turns::new(9);
        turns.next().unwrap().passed();
        assert!(!turns.is_over());
        turns.asked_ended(true);
        assert!(turns.next().is_some_and(|mut turn| {
            turn.passed();
            turn.index == 1
        }));
        let Some(long_ago) = Instant::now().checked_sub(BEGIN_FOR) else { return };
        turns.lock().asked_ended = Some((long_ago, true));
        assert!(turns.next().is_none() && !turns.is_over());
        let Some(longer_ago) = long_ago.checked_sub(END_WITHIN + Duration::from_secs(1)) else { return };
        turns.lock().asked_ended = Some((longer_ago, true));
        assert!(turns.is_over());
        let mut content: &[u8] = b"x";
        let error = GivenUp { turns: Some(&turns), content: &mut content }.read(&mut [0]).unwrap_err();
        assert!(given_up(&file_error("read", Path::new("x"), error)));
        let mut content: &[u8] = b"x";
        assert_eq!(GivenUp { turns: None, content: &mut content }.read(&mut [0]).unwrap(), 1);
        let turns = Turns::new(2);
        turns.asked_ended(false);
        assert!(turns.next().is_none() && turns.is_over());
    }

    #[test]
    fn the_data_directory_is_found_by_name() {
        for (directory, expected) in [("pg_wal", "."), ("/d/pg_wal", "/d"), ("d/pg_wal", "d"), (".", "./.."), ("..", "../.."), ("/", "/..")]
        {
            assert_eq!(above(Path::new(directory)), Path::new(expected), "{directory}");
        }
    }
}
