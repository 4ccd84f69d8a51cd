//! `lifeboat wal receive`: WAL from a server to the repository as it is written, over streaming replication with a physical slot.
//!
//! Four kinds of threads share one book (`lifeboat_core::wal::receive::ledger`) under one lock. The receiver (`stream`) reads the stream
//! and writes the spool; it never waits for a disk's sync or for the repository, so keepalives are answered whatever those do (c062). The
//! syncer (`sync`) makes the spool durable. Uploaders (`upload`) bring pieces and finished segments to the repository. The monitor
//! (`monitor`) writes the status and takes us out of `synchronous_standby_names` where that is asked for. What is acknowledged as flushed is
//! what is durable by the chosen rule and nothing else (c058); nothing is ever acknowledged as applied.
//!
//! # The spool
//!
//! `<spool>/<repository id>/<system id>/receive/` holds `<timeline>/<segment>` (see `spool`), `<timeline>.history`, `gaps/` (gap objects
//! that are not in the repository yet), `events.jsonl` (see [`events`]), `state.json`, `lock`, and `status.json`.
//!
//! # `status.json`
//!
//! Replaced about once a second while the receiver runs, and once when it ends. Members: `format` (1), `pid` (of the receiver; the file's
//! `updated` tells whether it still runs), `updated` (time), `state` (`connecting`, `streaming`, `paused`, `stopped`), `slot`, `name` (its
//! `application_name`), `mode` (`stream`, `sync-spool`, `sync-repository`), `host` (connected to; absent while it is not), `system_id`,
//! `timeline`, `received`, `spooled`, `stored`, `acknowledged` and `server` (LSNs: written to the spool, durable in the spool, in the
//! repository as far as all joins, reported as flushed, and the end of the server's WAL as it told last), each with a sibling `…_at` (time
//! of its last change), `waiting_bytes` (received, and not in the repository), `degraded` (bool: commits do not wait for us by our doing),
//! `store_trouble` and `spool_trouble` (text; absent without), `last_event` (text).

mod checks;
mod degrade;
pub mod events;
mod monitor;
mod spool;
mod stream;
mod sync;
mod upload;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::repository::Id;
use lifeboat_core::repository::layout::Key;
use lifeboat_core::wal::receive::ledger::{Ledger, Pieces, Work};
use lifeboat_core::wal::receive::{Flushed, Position};
use lifeboat_core::wal::{Lsn, Segment, SegmentSize, SystemId, Timeline};

pub use events::{Event, EventKind};
pub use spool::{Disk, RealDisk, directory};

use self::checks::Checks;
use self::events::EventLog;
use self::spool::{Spool, SpoolState};
use super::{Cluster, WalError, WalWriter};
use crate::backup::Protection;
use crate::postgres::{Connection, Dsn, PgError, Purpose, Slot, SlotState};
use crate::repository::Repository;
use crate::signing::{Signer, Trust};

/// Pieces in flight where every commit waits for the repository: enough that a store of 100 ms takes 80 pieces a second.
const PIECES_IN_FLIGHT: usize = 8;

/// How long an orderly end may take to bring the last bytes to the repository. They stay in the spool otherwise.
const LAST_UPLOAD: Duration = Duration::from_secs(10);

/// After how long without a word from the server a connection counts as dead: as `wal_receiver_timeout`, PostgreSQL's own default
/// (`src/backend/utils/misc/guc_tables.c`).
pub const SERVER_TIMEOUT: Duration = Duration::from_secs(60);

/// Where bytes are durable before they are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the repository, in their own time: for the slot, not for commits.
    Stream,
    /// In the spool, at once: commits wait.
    SyncSpool,
    /// In the repository, at once: commits wait.
    SyncRepository,
}

impl Mode {
    /// Its name in `status.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::SyncSpool => "sync-spool",
            Self::SyncRepository => "sync-repository",
        }
    }

    /// Whether commits are meant to wait for us.
    pub fn is_sync(self) -> bool {
        self != Self::Stream
    }
}

/// What to receive, and how.
pub struct ReceiveRequest<'a> {
    /// The server, or several of which one is taken.
    pub dsn: Dsn,
    /// The physical slot.
    pub slot: String,
    /// Where all spools are.
    pub spool: PathBuf,
    /// Bytes that may wait for the repository before the stream is not read any more.
    pub spool_limit: u64,
    /// Bytes for buffers.
    pub memory_bytes: u64,
    /// Time between pieces of the open segment.
    pub flush_interval: Duration,
    /// What is acknowledged.
    pub mode: Mode,
    /// After how long without keeping the promise of a sync mode commits go on without us; `None`: never.
    pub degrade_after: Option<Duration>,
    /// After how long without a word from the server another connection is tried: [`SERVER_TIMEOUT`].
    pub server_timeout: Duration,
    /// Follow a server also where its history is not a continuation of what we have.
    pub accept_fork: bool,
    /// What it does, and when it ends.
    pub course: Course,
    /// So long a slot that somebody has may be that of a receiver that is gone, which the server has not noticed yet: [`BUSY_SLOT`].
    pub busy_slot: Duration,
    /// Who signs.
    pub signer: &'a dyn Signer,
    /// Whose files of the same name count as the same.
    pub trust: &'a Trust,
    /// Who can read.
    pub protection: &'a Protection,
    /// Of zstd.
    pub level: i32,
    /// This host, for gaps.
    pub host: String,
    /// This program, for `cluster.json`.
    pub program: String,
    /// How the spool is written.
    pub disk: &'a dyn Disk,
}

/// Watches a receiver. Called from several threads, never under a lock.
pub trait Watcher: Sync {
    /// Something happened.
    fn event(&self, _event: &Event) {}
    /// How far it is, now and then.
    fn progress(&self, _status: &Status) {}
}

/// How far a receiver is; `status.json` says it in the same words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The server; `None` while there is no connection.
    pub host: Option<String>,
    /// The timeline that is streamed.
    pub timeline: Option<Timeline>,
    /// Written to the spool.
    pub received: Lsn,
    /// In the repository.
    pub stored: Lsn,
    /// Reported as flushed.
    pub acknowledged: Lsn,
    /// The end of the server's WAL, as it told last.
    pub server: Lsn,
    /// Not in the repository yet.
    pub waiting_bytes: u64,
    /// Commits do not wait for us, by our doing.
    pub degraded: bool,
}

/// Why a receiver ended, or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Another receiver has the spool.
    #[error("lock the spool {path}: another receiver runs")]
    Locked {
        /// The spool.
        path: String,
    },
    /// The spool cannot be used at all.
    #[error("use the spool {path}")]
    Spool {
        /// The spool.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server cannot be used, now or later.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// The repository has or gets other bytes of the same name, or takes nothing for a reason that time does not mend.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The server is another cluster than before, or than that whose WAL waits in the spool.
    #[error("receive WAL of cluster {expected}: the server is cluster {found}")]
    OtherCluster {
        /// In the spool.
        expected: SystemId,
        /// On the server.
        found: SystemId,
    },
    /// Something is left in the spool that could not be brought away ([`Course::Drain`]).
    #[error("bring away what waits in {path}: something is left there")]
    Left {
        /// The spool.
        path: String,
    },
    /// Another receiver has the slot ([`Course::UnlessReceived`]).
    #[error("receive WAL through slot {slot}: another receiver has it")]
    SlotInUse {
        /// The slot.
        slot: String,
    },
    /// The server sends other bytes than it, or another, sent before.
    #[error("receive WAL at {at}: the server has other bytes there than were received before")]
    Diverged {
        /// Where they differ.
        at: Position,
    },
}

/// PostgreSQL's default of `wal_sender_timeout`, and some.
pub const BUSY_SLOT: Duration = Duration::from_secs(75);

/// What a receiver does, and when it ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// Receives; never.
    Always,
    /// Receives; where another receiver has the slot.
    UnlessReceived,
    /// Receives; when it is caught up.
    Once,
    /// Brings what waits in the spool to the repository, without a server; when nothing waits.
    Drain,
}

/// Ends a receiver from another thread.
#[derive(Default)]
pub struct Stop {
    asked: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Stop {
    /// Asks it to end in order.
    pub fn request(&self) {
        self.asked.store(true, Ordering::SeqCst);
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake();
        }
    }

    /// Whether it is to end.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Wakes the receiver, which waits for its socket.
#[derive(Clone)]
struct Waker(Arc<UnixStream>);

impl Waker {
    fn wake(&self) {
        // Full: then it wakes anyway.
        let _ = (&*self.0).write(&[1]);
    }
}

/// The receiver's end of it.
struct Wakeup(UnixStream);

impl Wakeup {
    fn pair() -> io::Result<(Waker, Self)> {
        let (write, read) = UnixStream::pair()?;
        write.set_nonblocking(true)?;
        Ok((Waker(Arc::new(write)), Self(read)))
    }

    /// Forgets what woke it.
    fn drain(&self) {
        let mut bytes = [0; 256];
        let _ = self.0.set_nonblocking(true);
        while matches!((&self.0).read(&mut bytes), Ok(count) if count == bytes.len()) {}
    }

    /// Waits until it is woken, at most so long.
    fn wait(&self, timeout: Duration) {
        let _ = self.0.set_nonblocking(false);
        // Zero would mean "no limit".
        let _ = self.0.set_read_timeout(Some(timeout.max(Duration::from_millis(1))));
        let mut bytes = [0; 256];
        let _ = (&self.0).read(&mut bytes);
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A value with the time of its last change.
#[derive(Debug, Clone, Copy)]
struct Stamped {
    lsn: Lsn,
    at: Timestamp,
}

impl Stamped {
    fn new() -> Self {
        Self { lsn: Lsn::INVALID, at: Timestamp::now() }
    }

    fn set(&mut self, lsn: Lsn) {
        if self.lsn != lsn {
            *self = Self { lsn, at: Timestamp::now() };
        }
    }
}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Connecting,
    Streaming,
    Paused,
    Stopped,
}

/// Bytes that the syncer is to make durable.
struct SyncJob {
    segment: Segment,
    file: Arc<File>,
    to: u64,
    finish: bool,
}

/// What is the matter with a segment in the spool. The greater is the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    /// It could not be written further; what was written of it is there as before.
    Unwritten,
    /// It could not be synced or read, or does not hold what was written: no more of it counts than can be shown.
    Unbelieved,
}

/// Something small for the repository that goes before any WAL that is received after it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Document {
    History(Timeline),
    Gap { name: String, key: Key },
}

/// All that the threads share.
struct Book {
    ledger: Ledger,
    documents: VecDeque<Document>,
    document_busy: bool,
    syncs: VecDeque<SyncJob>,
    files: HashMap<Segment, Arc<File>>,
    checks: HashMap<Segment, Checks>,
    /// How often a file of the spool was put aside, because it could not be believed any more.
    heals: u64,
    /// Pieces do not wait for their time.
    flush: bool,
    /// No new session, no new uploads.
    ended: bool,
    fatal: Option<ReceiveError>,
    /// `cluster.json` says this of the pages.
    claimed: Option<u16>,
    /// Segments that the session ends for, and why.
    broken: BTreeMap<Segment, Damage>,
    store_trouble: Option<String>,
    spool_trouble: Option<String>,
    /// How much was received when that began, and when it began.
    spool_failed_at: Lsn,
    spool_failing: Option<Instant>,
    activity: Activity,
    host: Option<String>,
    /// Where SQL is spoken with it.
    sql_dsn: Option<Dsn>,
    /// Our `application_name`.
    name: Option<String>,
    /// Where the stream is, and how far everything else.
    timeline: Option<Timeline>,
    received: Stamped,
    spooled: Stamped,
    stored: Stamped,
    acknowledged: Stamped,
    server: Stamped,
    flushed: Flushed,
    /// Since when something is written that cannot be acknowledged, and nothing was since.
    stalled: Option<Instant>,
    /// Since when the stream is not read, because the spool is full.
    paused: Option<Instant>,
    /// When the server last asked for an answer, and not all was flushed.
    pressed: Option<Instant>,
    /// When it was last looked whether it shuts down, and that it does and waits for what cannot be stored.
    probed: Option<Instant>,
    shuts_down: bool,
    /// The processes of servers that streamed to us. One whose connection broke may be there until it notices that (`wal_sender_timeout`).
    walsenders: BTreeSet<i32>,
    degraded: bool,
    /// What `synchronous_standby_names` was while all was well, and when that was last asked for.
    names: Option<degrade::Current>,
    looked: Option<Instant>,
    /// When it was last to be changed, and what was warned of.
    tried: Option<Instant>,
    warned: Option<String>,
    last_event: String,
}

/// Whether something is to be done that was last done then; if so, it counts as done now.
fn is_due(last: &mut Option<Instant>, pause: Duration) -> bool {
    let due = last.is_none_or(|last| last.elapsed() >= pause);
    if due {
        *last = Some(Instant::now());
    }
    due
}

impl Book {
    fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            documents: VecDeque::new(),
            document_busy: false,
            syncs: VecDeque::new(),
            files: HashMap::new(),
            checks: HashMap::new(),
            heals: 0,
            flush: false,
            ended: false,
            fatal: None,
            claimed: None,
            broken: BTreeMap::new(),
            store_trouble: None,
            spool_trouble: None,
            spool_failed_at: Lsn::INVALID,
            spool_failing: None,
            activity: Activity::Connecting,
            host: None,
            sql_dsn: None,
            name: None,
            timeline: None,
            received: Stamped::new(),
            spooled: Stamped::new(),
            stored: Stamped::new(),
            acknowledged: Stamped::new(),
            server: Stamped::new(),
            flushed: Flushed::default(),
            stalled: None,
            paused: None,
            pressed: None,
            probed: None,
            shuts_down: false,
            walsenders: BTreeSet::new(),
            degraded: false,
            names: None,
            looked: None,
            tried: None,
            warned: None,
            last_event: String::new(),
        }
    }

    /// Takes down that the spool fails, and tells whether that is news.
    fn spool_fails(&mut self, reason: &str) -> bool {
        let news = self.spool_trouble.replace(reason.to_owned()).is_none();
        if news {
            self.spool_failed_at = self.received.lsn;
            self.spool_failing = Some(Instant::now());
        }
        news
    }

    /// Brings the figures of spool and repository up to the ledger, also while no server is followed.
    fn look(&mut self) {
        let lsn = |position: Option<Position>| position.map_or(Lsn::INVALID, |position| position.lsn);
        let (stored, spooled) = (lsn(self.ledger.stored_until()), lsn(self.ledger.synced_until()));
        self.stored.set(stored);
        self.spooled.set(spooled);
    }

    /// Brings the figures up to the ledger, and says what may be acknowledged.
    fn account(&mut self, mode: Mode) -> Lsn {
        self.look();
        self.flushed.raise(self.durable_until(mode));
        let (flushed, written) = (self.flushed.lsn(), self.received.lsn);
        if flushed >= written {
            self.stalled = None;
        } else if self.acknowledged.lsn < flushed || self.stalled.is_none() {
            self.stalled = Some(Instant::now());
        }
        self.acknowledged.set(flushed);
        flushed
    }

    /// Up to where all is durable by the chosen rule.
    fn durable_until(&self, mode: Mode) -> Option<Position> {
        match mode {
            Mode::Stream | Mode::SyncRepository => self.ledger.stored_until(),
            Mode::SyncSpool => self.ledger.synced_until(),
        }
    }

    fn status(&self) -> Status {
        Status {
            host: self.host.clone(),
            timeline: self.timeline,
            received: self.received.lsn,
            stored: self.stored.lsn,
            acknowledged: self.acknowledged.lsn,
            server: self.server.lsn,
            waiting_bytes: self.ledger.waiting_bytes(),
            degraded: self.degraded,
        }
    }
}

/// What every thread of one receiver has at hand.
struct Receiver<'a> {
    repository: &'a Repository,
    request: &'a ReceiveRequest<'a>,
    watcher: &'a dyn Watcher,
    stop: &'a Stop,
    cluster: Cluster,
    spool: Spool,
    book: Mutex<Book>,
    changed: Condvar,
    waker: Waker,
    log: Mutex<EventLog>,
    state: Mutex<SpoolState>,
    /// The spool has an older state.
    unnoted: AtomicBool,
    /// Times of the ledger count from here.
    began: Instant,
}

impl Receiver<'_> {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no panic while held")
    }

    fn size(&self) -> SegmentSize {
        self.cluster.segment_size
    }

    /// Keeps an event and tells it.
    fn tell(&self, mut event: Event) {
        // A spool that takes nothing is told of by other means; the event is told in any case.
        let _ = self.log.lock().expect("no panic while held").keep(&mut event);
        self.book().last_event.clone_from(&event.text);
        self.watcher.event(&event);
    }

    fn warn(&self, text: impl Into<String>) {
        self.tell(Event::new(EventKind::Warning, text));
    }

    fn fail(&self, error: ReceiveError) {
        let mut book = self.book();
        book.fatal.get_or_insert(error);
        book.ended = true;
        drop(book);
        self.changed.notify_all();
        self.waker.wake();
    }
}

/// What [`create_slot`] found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotMade {
    /// It is there, and keeps WAL.
    Kept,
    /// It was not there.
    Made,
    /// It had lost WAL that it should keep, and would keep none any more: it was dropped and made anew.
    Renewed,
}

/// Makes the slot, if it is not there or of no use any more.
pub fn create_slot(dsn: &Dsn, slot: &str) -> Result<SlotMade, PgError> {
    let connection = Connection::open(dsn, Purpose::Replication)?;
    match connection.create_physical_slot(slot) {
        Ok(()) => return Ok(SlotMade::Made),
        // duplicate_object
        Err(error) if error.sqlstate() == Some("42710") => {}
        Err(error) => return Err(error),
    }
    // Whoever has no SQL access cannot be told that it is lost; then the receiver sees it when it starts (c056).
    let is_lost = |slot: &Slot| slot.state == SlotState::Lost;
    if !stream::open_sql(&stream::sql_dsn(dsn, &connection))
        .and_then(|sql| sql.slot(slot))
        .is_ok_and(|slot| slot.as_ref().is_some_and(is_lost))
    {
        return Ok(SlotMade::Kept);
    }
    connection.drop_slot(slot)?;
    connection.create_physical_slot(slot)?;
    Ok(SlotMade::Renewed)
}

/// Drops the slot, and tells whether it was there.
pub fn drop_slot(dsn: &Dsn, slot: &str) -> Result<bool, PgError> {
    let connection = Connection::open(dsn, Purpose::Replication)?;
    match connection.drop_slot(slot) {
        Ok(()) => Ok(true),
        // undefined_object
        Err(error) if error.sqlstate() == Some("42704") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Repositories of which `spool` has what a receiver of this slot left: whoever cannot ask the repository which one it is may go on in the
/// only one.
pub fn repositories(spool: &Path, slot: &str) -> Vec<Id> {
    let Ok(entries) = std::fs::read_dir(spool) else { return Vec::new() };
    let mut ids: Vec<Id> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    ids.retain(|id| !spool::states(spool, &id.to_string(), slot).is_empty());
    ids
}

/// Whether something waits in `spool` for a repository that a receiver of this slot left.
pub fn waits(spool: &Path, slot: &str) -> bool {
    repositories(spool, slot).iter().any(|id| {
        let id = id.to_string();
        let states = spool::states(spool, &id, slot);
        states.iter().any(|(system_id, _)| spool::waits(&directory(spool, &id, *system_id)))
    })
}

/// Receives until it is asked to stop, or until it is caught up where that was asked for.
///
/// # Errors
///
/// What time does not mend. A server that goes away, a repository or a spool that fails are waited for.
pub fn run(
    repository: &Repository,
    request: &ReceiveRequest<'_>,
    watcher: &dyn Watcher,
    stop: &Stop,
) -> Result<Option<Position>, ReceiveError> {
    let spool_failed = |source| ReceiveError::Spool { path: request.spool.display().to_string(), source };
    let (waker, wakeup) = Wakeup::pair().map_err(spool_failed)?;
    *stop.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());

    let Some((cluster, others)) = identify(repository, request, &wakeup, stop)? else { return Ok(None) };
    let root = directory(&request.spool, &repository.descriptor().repository.to_string(), cluster.system_id);
    let failed = |source| ReceiveError::Spool { path: root.display().to_string(), source };
    let spool = Spool::open(&root).map_err(failed)?.ok_or_else(|| ReceiveError::Locked { path: root.display().to_string() })?;
    let boot = spool::boot();
    let noted = spool.state().map_err(failed)?;
    let same_boot = !boot.is_empty() && noted.as_ref().is_some_and(|state| state.boot == boot);
    let state = SpoolState {
        format: 1,
        system_id: cluster.system_id,
        segment_size: cluster.segment_size,
        slot: request.slot.clone(),
        boot,
        degraded: noted.as_ref().and_then(|state| state.degraded.clone()),
    };
    let found = spool.find(cluster.segment_size, same_boot).map_err(failed)?;
    let unnoted = match &noted {
        // Nothing to write: a full disk is no reason not to begin.
        Some(noted) if *noted == state => None,
        // Nor is it here: only what is brought to the repository makes room. What was noted counts until then.
        Some(_) => spool.write_state(&state).err(),
        None => spool.write_state(&state).map(|()| None).map_err(failed)?,
    };

    let pieces = match request.mode {
        Mode::Stream | Mode::SyncSpool => Pieces::Every(request.flush_interval),
        Mode::SyncRepository => Pieces::AtOnce { most: PIECES_IN_FLIGHT },
    };
    // All pieces in flight together take a quarter of the memory, twice: plain and sealed.
    let piece_bytes = (request.memory_bytes / 64).clamp(256 << 10, 4 << 20);
    let mut book = Book::new(Ledger::new(cluster.segment_size, pieces, piece_bytes));
    book.degraded = state.degraded.is_some();
    for found in &found.segments {
        book.ledger.wrote(found.segment, found.bytes);
    }
    for pair in found.segments.windows(2) {
        // Of an older timeline, or with a hole behind it: nothing more will come, unless a stream begins there.
        if pair[0].bytes < cluster.segment_size.bytes() || pair[0].segment.next() != pair[1].segment {
            book.ledger.go_on_at(pair[1].segment);
        }
    }
    let documents = found.histories.iter().map(|timeline| Document::History(*timeline));
    let gaps = found.gaps.iter().filter_map(|name| {
        let key = Key::parse(&format!("{}{name}", lifeboat_core::repository::layout::wal_gaps(cluster.system_id))).ok()?;
        name.ends_with(".json").then(|| Document::Gap { name: name.clone(), key })
    });
    book.documents.extend(documents.chain(gaps));

    let log = EventLog::open(&root).map_err(failed)?;
    let receiver = Receiver {
        repository,
        request,
        watcher,
        stop,
        cluster,
        spool,
        book: Mutex::new(book),
        changed: Condvar::new(),
        waker,
        log: Mutex::new(log),
        state: Mutex::new(state),
        unnoted: AtomicBool::new(unnoted.is_some()),
        began: Instant::now(),
    };
    receiver.tell(Event::new(
        EventKind::Started,
        format!("receiving WAL of cluster {} through slot {}, mode {}", cluster.system_id, request.slot, request.mode.name()),
    ));
    if let Some(error) = unnoted {
        receiver.warn(format!("the spool cannot note its state, and goes on with what was noted: {error}"));
    }
    for suspect in &found.suspects {
        receiver.warn(format!("{suspect} could not be synced once; it goes when the segment is finished"));
    }
    for other in others {
        let place = directory(&request.spool, &repository.descriptor().repository.to_string(), other);
        receiver.warn(format!("WAL of cluster {other} waits in {} too: this receiver does not store it", place.display()));
    }
    receiver.run(found.segments, &wakeup)
}

/// Finds out of which cluster WAL is received: from the server, or, where none answers, from the one spool that this slot has. So what is
/// in the spool of a server that is lost for good still comes to the repository. A server of another cluster than that whose WAL waits in the
/// spool of this slot is not turned to: what was acknowledged would lie there, and nobody would look. Returns also the other clusters of
/// which something waits.
fn identify(
    repository: &Repository,
    request: &ReceiveRequest<'_>,
    wakeup: &Wakeup,
    stop: &Stop,
) -> Result<Option<(Cluster, Vec<SystemId>)>, ReceiveError> {
    let mut pause = Duration::from_millis(200);
    let id = repository.descriptor().repository.to_string();
    if request.course == Course::Drain {
        let mut waiting = spool::states(&request.spool, &id, &request.slot);
        waiting.retain(|(system_id, _)| spool::waits(&directory(&request.spool, &id, *system_id)));
        let mut waiting = waiting.into_iter().map(|(system_id, state)| Cluster { system_id, segment_size: state.segment_size });
        return Ok(waiting.next().map(|cluster| (cluster, waiting.map(|cluster| cluster.system_id).collect())));
    }
    loop {
        let noted = |(system_id, state): (SystemId, SpoolState)| {
            let waits = spool::waits(&directory(&request.spool, &id, system_id));
            (Cluster { system_id, segment_size: state.segment_size }, waits)
        };
        let known: Vec<_> = spool::states(&request.spool, &id, &request.slot).into_iter().map(noted).collect();
        let waiting = || known.iter().filter(|(_, waits)| *waits).map(|(cluster, _)| cluster.system_id);
        let (mut found, mut failure) = (Vec::new(), None);
        for answer in stream::ask_all(&request.dsn) {
            match answer {
                Ok(facts) => found.push(Cluster { system_id: facts.system_id, segment_size: facts.segment_size }),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let ours = found.iter().find(|cluster| waiting().any(|id| id == cluster.system_id));
        let chosen = match (ours, found.first(), &known[..]) {
            (Some(ours), _, _) => Some(*ours),
            (None, Some(first), _) if waiting().next().is_none() => Some(*first),
            // The host of that cluster may be the one that does not answer.
            (None, _, [(cluster, _)]) if failure.is_some() => Some(*cluster),
            (None, Some(first), _) => {
                let expected = waiting().next().unwrap_or(first.system_id);
                return Err(ReceiveError::OtherCluster { expected, found: first.system_id });
            }
            (None, None, _) => None,
        };
        if let Some(cluster) = chosen {
            return Ok(Some((cluster, waiting().filter(|id| *id != cluster.system_id).collect())));
        }
        let failure = failure.expect("there is at least one candidate");
        if !failure.is_transient() || request.course == Course::Once {
            return Err(failure.into());
        }
        if stop.is_asked() {
            return Ok(None);
        }
        wakeup.wait(pause);
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

impl Receiver<'_> {
    fn run(&self, found: Vec<spool::FoundSegment>, wakeup: &Wakeup) -> Result<Option<Position>, ReceiveError> {
        let writer = WalWriter::new(
            self.repository,
            self.cluster,
            self.request.signer,
            self.request.trust,
            self.request.protection,
            self.request.level,
        );
        let writer = &writer;
        let uploaders = if self.request.mode == Mode::SyncRepository { PIECES_IN_FLIGHT } else { 1 };
        let outcome = std::thread::scope(|scope| {
            for number in 0..uploaders {
                scope.spawn(move || self.upload(writer, number));
            }
            if self.request.mode == Mode::SyncRepository {
                scope.spawn(|| self.upload_whole(writer));
            }
            scope.spawn(|| self.sync_spool());
            scope.spawn(|| self.monitor());
            let outcome = match self.request.course {
                Course::Drain => self.drain(found, wakeup),
                _ => self.sessions(found, wakeup),
            };
            if outcome.is_ok() {
                self.last_upload();
            }
            self.leave();
            let mut book = self.book();
            book.ended = true;
            book.activity = Activity::Stopped;
            book.host = None;
            drop(book);
            self.changed.notify_all();
            outcome
        });
        let mut book = self.book();
        let position = book.ledger.stored_until();
        let fatal = book.fatal.take();
        drop(book);
        self.write_status();
        let result = outcome.and_then(|()| fatal.map_or(Ok(()), Err));
        match &result {
            Ok(()) => self.tell(Event::new(EventKind::Stopped, "stopped in order")),
            Err(error) => self.tell(Event::new(EventKind::Stopped, format!("stopped: {error}"))),
        }
        self.write_status();
        result.map(|()| position)
    }

    /// Brings what is received to the repository, if that goes quickly.
    fn last_upload(&self) {
        let deadline = Instant::now() + LAST_UPLOAD;
        let mut book = self.book();
        book.flush = true;
        self.changed.notify_all();
        while !(book.ledger.is_settled() && book.documents.is_empty()) && book.fatal.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || book.store_trouble.is_some() {
                break;
            }
            book = self.changed.wait_timeout(book, left.min(Duration::from_millis(200))).expect("no panic while held").0;
        }
        let _ = book.account(self.request.mode);
    }

    /// Takes the files of segments that are in the repository out of the spool.
    fn clean(&self, book: &mut Book) {
        for segment in book.ledger.take_done() {
            book.files.remove(&segment);
            book.checks.remove(&segment);
            book.syncs.retain(|job| job.segment != segment);
            self.spool.remove(segment, self.size());
        }
    }

    /// The file of a segment, to read it.
    fn file_of(&self, segment: Segment) -> io::Result<Arc<File>> {
        if let Some(file) = self.book().files.get(&segment) {
            return Ok(Arc::clone(file));
        }
        self.spool.read_segment(segment, self.size()).map(Arc::new)
    }

    /// What was to be stored, is.
    fn is_stored(&self, work: Work) {
        let mut book = self.book();
        book.ledger.stored(work);
        let recovered = book.store_trouble.take().is_some();
        self.clean(&mut book);
        drop(book);
        self.changed.notify_all();
        self.waker.wake();
        if recovered {
            self.tell(Event::new(EventKind::StoreBack, "the repository takes WAL again"));
        }
    }
}
