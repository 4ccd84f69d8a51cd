//! What runs day and night: tasks on their schedules, the WAL receiver, a look at the system every minute, and whoever has to be told.
//!
//! Everything that is done is done by a process of its own, the same program as it is run by hand: so nothing that hangs, crashes or eats its memory takes
//! anything else with it, each has a deadline, and what the agent does is what an operator can repeat. The agent itself keeps little: when tasks are due
//! ([`tasks`]), what was last seen ([`look`]), who was told ([`crate::notify`]), and whether it is its turn ([`turn`]).

mod child;
mod look;
mod receiver;
pub mod schedule;
pub mod tasks;
mod tell;
mod turn;

pub use tell::ROUND;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use jiff::Timestamp;
use lifeboat_core::alert::Alert;
use lifeboat_core::drill::DrillId;
use lifeboat_core::status::{Outcome, Status};
use lifeboat_core::task::{Task, Terms};

use crate::metrics::{self, AgentFacts, Deliveries, TaskRuns};
use crate::notify::{Heartbeat, Notifier};
use crate::repository::Repository;
use crate::web::{AgentView, DrillPageError, Part, Server, Source};
use schedule::Schedule;
use turn::Turn;

/// The parts that the agent consists of say something at least so often, or it is not alive any more.
const BEAT: Duration = Duration::from_secs(30);

/// Why an agent does not begin.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another one of this host has its state.
    #[error("begin: another agent of this host works with {}", .0.display())]
    Other(PathBuf),
    /// Its state cannot be kept.
    #[error("keep what the agent knows in {}", path.display())]
    State {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its page cannot be served.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// How serious something is that the agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// For the record.
    Info,
    /// Somebody should look at it.
    Warning,
}

/// What the agent's process does for it: the engine neither prints nor asks the environment.
pub trait Surroundings: Send + Sync {
    /// Says something.
    fn say(&self, level: Level, message: &str);
    /// Passes on a line that a process of the agent has said.
    fn line(&self, of: &str, line: &str);
    /// Opens the repository, to take the agent's turn in it and to show its drills.
    fn repository(&self) -> Result<Repository, String>;
    /// Reads the page that a drill left, verified.
    fn drill_page(&self, id: &DrillId) -> Result<Vec<u8>, DrillPageError>;
    /// The environment of a process that is about to begin, beside the agent's own: its operation's id, for one.
    fn environment(&self) -> Vec<(String, OsString)>;
    /// The agent does its work from now on (`READY=1`).
    fn ready(&self, text: &str);
    /// It still does (`WATCHDOG=1`).
    fn alive(&self);
}

/// A task and when it is done.
#[derive(Debug, Clone)]
pub struct TaskPlan {
    /// Which.
    pub task: Task,
    /// When; `None`: never.
    pub schedule: Option<Schedule>,
    /// What stands behind its command.
    pub arguments: Vec<String>,
    /// Deadline and tries.
    pub terms: Terms,
}

/// An agent, before it begins.
pub struct AgentSettings {
    /// The system that it is for.
    pub system: String,
    /// This host.
    pub host: String,
    /// The program with its version, for people.
    pub program: String,
    /// The program and what every command of it gets: the configuration, above all.
    pub command: Vec<OsString>,
    /// Where this host keeps what was done on it.
    pub state: PathBuf,
    /// Time between two looks.
    pub interval: Duration,
    /// A look may take so long.
    pub look_deadline: Duration,
    /// What is done when.
    pub tasks: Vec<TaskPlan>,
    /// The time zone of the schedules.
    pub time_zone: String,
    /// A task begins so much later at most.
    pub jitter: Duration,
    /// The repository, for this host to know it again.
    pub repository: String,
    /// Run the WAL receiver.
    pub receive: Option<ReceiverPlan>,
    /// Agents of the system with the same group take turns.
    pub group: Option<String>,
    /// A process that is told to end gets so long.
    pub grace: Duration,
    /// Where the page is; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// Names that it may be asked for by.
    pub allow_hosts: Vec<String>,
    /// Where the runbook is, if not in the documentation.
    pub runbook_url: Option<String>,
}

/// What has to be known of the WAL receiver to run it.
#[derive(Debug, Clone)]
pub struct ReceiverPlan {
    /// Where WAL waits for the repository.
    pub spool: PathBuf,
    /// The slot.
    pub slot: String,
    /// Commits wait for its spool, and for nothing else: so it is of use also while the repository is away.
    pub is_promise: bool,
}

/// Whom to tell.
pub struct Tellers {
    /// Everybody who is told of alerts.
    pub notifier: Notifier,
    /// Who is told that all is well, and misses it.
    pub heartbeat: Option<Heartbeat>,
    /// Names of the sinks, for the metrics.
    pub sinks: Vec<String>,
}

/// Ends an agent: everybody who waits notices at once.
#[derive(Clone)]
pub struct Stop {
    sender: Arc<Mutex<Option<Sender<()>>>>,
    receiver: Receiver<()>,
}

impl Default for Stop {
    fn default() -> Self {
        let (sender, receiver) = crossbeam_channel::bounded(0);
        Self { sender: Arc::new(Mutex::new(Some(sender))), receiver }
    }
}

impl Stop {
    /// It is time to end.
    pub fn stop(&self) {
        lock(&self.sender).take();
    }

    /// Whether it is.
    pub fn is_stopped(&self) -> bool {
        matches!(self.receiver.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
    }

    /// Waits, but not when it is time to end. Returns whether it is.
    fn wait(&self, span: Duration) -> bool {
        matches!(self.receiver.recv_timeout(span), Err(crossbeam_channel::RecvTimeoutError::Disconnected))
    }

    /// Becomes ready (disconnected) when it is time to end.
    fn channel(&self) -> &Receiver<()> {
        &self.receiver
    }
}

/// A panic elsewhere is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the parts of an agent know of each other.
struct Shared {
    settings: AgentSettings,
    surroundings: Box<dyn Surroundings>,
    stop: Stop,
    since: Timestamp,
    /// What was last seen.
    status: RwLock<Option<Arc<Status>>>,
    /// Why the last look failed.
    trouble: Mutex<Option<String>>,
    turn: Mutex<Turn>,
    /// Whether it was ours when that was last known.
    was_ours: AtomicBool,
    /// What the agent keeps.
    directory: PathBuf,
    /// Wakes whoever does the tasks.
    wake: Sender<()>,
    /// Seconds from `begun` to the last sign of life of whoever does the tasks.
    beat: AtomicU64,
    begun: Instant,
    runs: Mutex<Vec<TaskRuns>>,
    deliveries: Mutex<Vec<Deliveries>>,
    /// Alerts that the agent itself raises.
    own: Mutex<Vec<Alert>>,
}

impl Shared {
    fn status(&self) -> Option<Arc<Status>> {
        self.status.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    fn turn(&self) -> Turn {
        lock(&self.turn).clone()
    }

    fn info(&self, message: &str) {
        self.surroundings.say(Level::Info, message);
    }

    fn warn(&self, message: &str) {
        self.surroundings.say(Level::Warning, message);
    }

    fn beats(&self) {
        self.beat.store(self.begun.elapsed().as_secs(), Ordering::Relaxed);
    }

    fn is_alive(&self) -> bool {
        let silent = self.begun.elapsed().as_secs().saturating_sub(self.beat.load(Ordering::Relaxed));
        silent <= 3 * BEAT.as_secs()
    }

    fn count(&self, task: Task, outcome: Outcome) {
        let mut runs = lock(&self.runs);
        match runs.iter_mut().find(|one| one.operation == task.name() && one.outcome == outcome) {
            Some(one) => one.total += 1,
            None => runs.push(TaskRuns { operation: task.name().to_owned(), outcome, total: 1 }),
        }
    }

    fn facts(&self) -> AgentFacts {
        AgentFacts {
            started: self.since,
            leads: matches!(self.turn(), Turn::Ours),
            deliveries: lock(&self.deliveries).clone(),
            runs: lock(&self.runs).clone(),
        }
    }
}

impl Source for Shared {
    /// As it was seen, with what the agent itself has to say.
    fn status(&self) -> Option<Arc<Status>> {
        let (status, own) = (Self::status(self)?, lock(&self.own));
        if own.is_empty() {
            return Some(status);
        }
        let mut status = Status::clone(&status);
        status.alerts.splice(0..0, own.iter().cloned());
        Some(Arc::new(status))
    }

    fn agent(&self) -> AgentView {
        AgentView {
            name: self.settings.system.clone(),
            host: self.settings.host.clone(),
            program: self.settings.program.clone(),
            since: self.since,
            part: match self.turn() {
                Turn::Ours => Part::Leader,
                Turn::Others { holder } => Part::Standby { holder: Some(holder) },
                Turn::NotAsked | Turn::Unknown { .. } => Part::Standby { holder: None },
            },
            interval_seconds: self.settings.interval.as_secs(),
            trouble: self.trouble(),
            runbook_url: self.settings.runbook_url.clone(),
        }
    }

    fn metrics(&self, open_metrics: bool) -> Option<String> {
        let format = if open_metrics { metrics::Format::OpenMetrics } else { metrics::Format::Prometheus };
        Some(metrics::exposition(&*Source::status(self)?, Some(&self.facts()), format))
    }

    fn drill_page(&self, id: &DrillId) -> Result<Vec<u8>, DrillPageError> {
        self.surroundings.drill_page(id)
    }

    fn live(&self) -> bool {
        self.is_alive()
    }

    fn ready(&self) -> Result<(), String> {
        match (Self::status(self), self.trouble()) {
            (Some(_), _) => Ok(()),
            (None, Some(trouble)) => Err(trouble),
            (None, None) => Err("nobody has looked yet".to_owned()),
        }
    }
}

/// The directory of the agent's own files, and what keeps a second agent of this host out of it.
fn hold(state: &Path) -> Result<(PathBuf, File), AgentError> {
    let directory = state.join("agent");
    let failed = |source| AgentError::State { path: directory.clone(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&directory).map_err(failed)?;
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(directory.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok((directory, file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(AgentError::Other(directory)),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Runs an agent until it is told to end, and then until all that it has begun has ended.
///
/// # Errors
///
/// It cannot begin. Once it has, nothing ends it but [`Stop`].
pub fn run(settings: AgentSettings, surroundings: Box<dyn Surroundings>, tellers: Tellers, stop: Stop) -> Result<(), AgentError> {
    let (directory, _lock) = hold(&settings.state)?;
    let (wake, woken) = crossbeam_channel::bounded(1);
    let shared = Arc::new(Shared {
        surroundings,
        stop,
        since: Timestamp::now(),
        status: RwLock::new(None),
        trouble: Mutex::new(None),
        turn: Mutex::new(Turn::NotAsked),
        was_ours: AtomicBool::new(turn::was_ours(&directory, &settings)),
        directory: directory.clone(),
        wake,
        beat: AtomicU64::new(0),
        begun: Instant::now(),
        runs: Mutex::new(Vec::new()),
        own: Mutex::new(Vec::new()),
        deliveries: Mutex::new(tellers.sinks.iter().map(|sink| Deliveries { sink: sink.clone(), total: 0, failed: 0 }).collect()),
        settings,
    });
    let mut tasks = tasks::Tasks::load(&directory, &shared)?;
    let server = match shared.settings.listen {
        None => None,
        Some(address) => {
            let started = Server::start(address, &shared.settings.allow_hosts, Arc::clone(&shared) as Arc<dyn Source>);
            Some(started.map_err(|source| AgentError::Listen { address, source })?)
        }
    };
    let page = server.as_ref().map_or_else(|| "no status page".to_owned(), |server| format!("status page on http://{}/", server.address()));
    shared.info(&format!("the agent of {} on {} begins; {page}", shared.settings.system, shared.settings.host));
    shared.surroundings.ready(&page);
    std::thread::scope(|scope| {
        scope.spawn(|| turn::take_turns(&shared));
        scope.spawn(|| look::look_again_and_again(&shared));
        scope.spawn(|| tell::tell(&shared, tellers));
        if let Some(plan) = &shared.settings.receive {
            scope.spawn(|| receiver::keep_receiving(&shared, plan));
        }
        scope.spawn(|| watch_over(&shared));
        tasks.work(&shared, &woken);
    });
    if let Some(server) = server {
        server.stop();
    }
    shared.info("the agent ends");
    Ok(())
}

/// Says that the agent is alive as long as it is.
fn watch_over(shared: &Shared) {
    while !shared.stop.wait(Duration::from_secs(5)) {
        if shared.is_alive() {
            shared.surroundings.alive();
        }
    }
}
