//! PostgreSQL in a place: started with settings of ours, watched, measured, asked whether anything of it acts, and stopped.
//!
//! `core/src/drill/server.rs` says with which settings, and what the log means.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::drill::Isolation;
use lifeboat_core::drill::server::{self as planning, LogMoments, ServerSettings, SettingError, moments};
use lifeboat_core::postgres::control_file::{ControlFile, ControlFileError, Limits};
use lifeboat_core::postgres::superusers;
use lifeboat_core::restore::DatabasePlan;
use lifeboat_core::wal::history::History;
use lifeboat_core::wal::{Lsn, SystemId, Timeline};
use rustix::process::{Pid, Signal, kill_process};

use super::wall::Wall;
use super::{Ground, PORT, Place, wall};
use crate::postgres::{Connection, Dsn, PgError, Purpose};
use crate::restore::server as restored;

/// How often a server that starts is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// How long an orderly stop may take: it writes out what it has.
const STOP: Duration = Duration::from_secs(120);

/// How long an immediate stop may take.
const QUIT: Duration = Duration::from_secs(10);

/// How often a start is tried again because WAL raised a limit.
const TRIES: usize = 5;

/// Why a drill's server is not where it has to be. The server is stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No programs of its version.
    #[error(transparent)]
    Program(restored::ServerError),
    /// It could not be run.
    #[error("start the drill's server")]
    Spawn(#[source] std::io::Error),
    /// The process is being ended, and the place with it.
    #[error("start the drill's server: the drill was told to end")]
    Ended,
    /// A setting that may not be set.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Its control file.
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
    /// A file could not be read or written.
    #[error("use {path}")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A library that production loads is not installed here.
    #[error("start the drill's server: the library {library:?} of shared_preload_libraries is not installed here")]
    MissingLibrary {
        /// As it is named.
        library: String,
    },
    /// It ended.
    #[error("start the drill's server: {said} ({status})")]
    Died {
        /// The last thing of weight in its log.
        said: String,
        /// How it ended.
        status: String,
    },
    /// It took too long.
    #[error("wait for the drill's server: not {goal} within {seconds} s ({last})")]
    Timeout {
        /// What was waited for.
        goal: &'static str,
        /// How long.
        seconds: u64,
        /// What it was at.
        last: String,
    },
    /// It runs in our network.
    #[error("keep the drill's server off the network: {0}")]
    NotIsolated(String),
    /// Nobody whom its roles are known to be can log in.
    #[error("log in to the drill's server: no superuser was found that may log in (tried {tried})")]
    NoSuperuser {
        /// Whom was tried.
        tried: String,
    },
    /// Another server answered.
    #[error("log in to the drill's server: cluster {found} answered, {expected} was started")]
    OtherServer {
        /// Who answered.
        found: SystemId,
        /// Who was started.
        expected: SystemId,
    },
    /// It does not stop.
    #[error("stop the drill's server: process {pid} had to be killed")]
    DoesNotStop {
        /// Its process.
        pid: u32,
    },
    /// It answered, with an error.
    #[error(transparent)]
    Postgres(#[from] PgError),
}

/// What a server is to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Recovery stands at its target, and the server answers questions.
    Paused,
    /// It answers questions, while recovery goes on.
    Consistent,
    /// Recovery is over, and it takes writes.
    Writable,
}

impl Goal {
    const fn words(self) -> &'static str {
        match self {
            Self::Paused => "paused at the recovery target",
            Self::Consistent => "consistent",
            Self::Writable => "taking writes",
        }
    }
}

/// How a server is started.
#[derive(Debug, Clone)]
pub struct Start {
    /// What is waited for.
    pub goal: Goal,
    /// Settings of recovery, as `DatabasePlan::settings` has them; of these only `recovery_target*` counts.
    pub target: Vec<(String, String)>,
    /// What brings WAL: `Feeder::command`. None: there is no more than the data directory has.
    pub restore_command: Option<String>,
    /// Whether questions are answered during recovery, also where the goal does not need it.
    pub hot_standby: bool,
    /// `shared_preload_libraries` as they were recorded; those that act by themselves are left out.
    pub preload: String,
    /// What the operator wants to be set. Nothing that a drill decides over.
    pub settings: BTreeMap<String, String>,
    /// How long it may take.
    pub timeout: Duration,
}

impl Start {
    /// As a restore planned it.
    pub fn of(plan: &DatabasePlan, goal: Goal, timeout: Duration) -> Self {
        let target = plan.settings.clone();
        Self { goal, target, restore_command: None, hot_standby: false, preload: String::new(), settings: BTreeMap::new(), timeout }
    }
}

/// When a server came to what, in seconds after its process was started. By its log where that says it, otherwise as seen from outside.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StartTimes {
    /// Replay began.
    pub redo: Option<f64>,
    /// What is there was consistent.
    pub consistent: Option<f64>,
    /// The first question was answered during recovery.
    pub first_read: Option<f64>,
    /// Recovery stood at its target.
    pub paused: Option<f64>,
    /// Recovery was over.
    pub recovered: Option<f64>,
    /// The first answer of a server that takes writes.
    pub first_write: Option<f64>,
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended, and everything is written out.
    Fast,
    /// As a power failure would.
    Immediate,
}

/// How far recovery came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The first byte that was not replayed.
    pub lsn: Lsn,
    /// The timeline that was replayed.
    pub timeline: Timeline,
    /// Time of the last commit that was replayed, if any was.
    pub last_commit: Option<Timestamp>,
    /// Whether it is still in recovery.
    pub in_recovery: bool,
}

/// A server that runs in a place. When it is dropped, it is stopped.
#[derive(Debug)]
pub struct Server {
    ground: Arc<Ground>,
    child: Child,
    log: PathBuf,
    major: u32,
    superuser: String,
    database: String,
    settings: Vec<(String, String)>,
    left_out: Vec<(String, String)>,
    times: StartTimes,
    proof: Result<String, String>,
}

/// What a look at the running server showed: how something holds, or why it does not; or that it could not be looked at.
type Looked = Result<Result<String, String>, PgError>;

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> ServerError {
    let path = path.display().to_string();
    move |source| ServerError::File { path, source }
}

fn control(ground: &Ground) -> Result<ControlFile, ServerError> {
    let path = ground.pgdata().join("global/pg_control");
    // A server that writes it while it is read gives a torn one once (c008).
    let mut last = None;
    for _ in 0..20 {
        match ControlFile::decode(&fs::read(&path).map_err(file_error(&path))?) {
            Ok(control) => return Ok(control),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(last.unwrap_or(ControlFileError::Crc).into())
}

/// A server that was started, and is not yet where it has to be.
struct Starting<'a> {
    ground: Arc<Ground>,
    child: Option<Child>,
    start: &'a Start,
    log: PathBuf,
    major: u32,
    begun: Instant,
    begun_at: Timestamp,
    limits: Limits,
    system_id: SystemId,
    superuser: Option<(String, String)>,
    times: StartTimes,
    proof: Option<Result<String, String>>,
    /// What its log said when it had so many bytes.
    read: (u64, LogMoments),
}

/// What a look at a starting server showed.
enum Seen {
    Reached,
    NotYet(String),
    /// WAL raised a limit that a standby needs: with the new one it starts.
    Raised,
}

impl Server {
    /// Starts the server of the place's data directory and waits for its goal. The same directory can be started several times, with one
    /// target after the other: recovery goes on where it was.
    ///
    /// # Errors
    /// Whatever it is, the server is not left running.
    pub fn start(place: &Place, bin_directory: Option<&Path>, major: u32, start: &Start) -> Result<Self, ServerError> {
        let postgres = restored::program(bin_directory, major, "postgres").map_err(ServerError::Program)?;
        Self::launch(&place.ground(), &postgres, major, start)
    }

    /// Stops it in order and starts it again.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn restart(mut self, bin_directory: Option<&Path>, start: &Start) -> Result<Self, ServerError> {
        let postgres = restored::program(bin_directory, self.major, "postgres").map_err(ServerError::Program)?;
        self.end(StopMode::Fast)?;
        Self::launch(&Arc::clone(&self.ground), &postgres, self.major, start)
    }

    fn launch(ground: &Arc<Ground>, postgres: &Path, major: u32, start: &Start) -> Result<Self, ServerError> {
        let preload = planning::preload(&start.preload);
        let begun = (Instant::now(), Timestamp::now());
        let mut limits = Limits::default();
        let mut last = None;
        for _ in 0..TRIES {
            if ground.is_ended() {
                return Err(ServerError::Ended);
            }
            let control = control(ground)?;
            limits = limits.or(control.limits);
            let (socket, hba, ident) =
                (ground.site.socket.display().to_string(), ground.configuration("pg_hba.conf"), ground.configuration("pg_ident.conf"));
            let settings = planning::settings(&ServerSettings {
                major,
                socket: &socket,
                port: PORT,
                hba: &hba,
                ident: &ident,
                limits,
                track_commit_timestamp: control.track_commit_timestamp,
                preload: &preload.kept,
                // Says "there is no more", which is true of a backup that has all of its WAL with it.
                restore_command: start.restore_command.as_deref().unwrap_or("false"),
                target: &start.target,
                pause: start.goal == Goal::Paused,
                hot_standby: start.hot_standby || start.goal != Goal::Writable,
                wanted: start.settings.clone(),
            })?;
            let (log, file) = new_log(ground)?;
            let mut command = ground.command(postgres);
            let pgdata = ground.pgdata();
            command.current_dir(&pgdata).arg("-D").arg(&pgdata);
            command.arg("-c").arg(format!("config_file={}", ground.configuration("postgresql.conf")));
            for (name, value) in &settings {
                command.arg("-c").arg(format!("{name}={value}"));
            }
            command.stdout(file.try_clone().map_err(ServerError::Spawn)?).stderr(file);
            // A Ctrl-C is for us, and we stop it.
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            let child = command.spawn().map_err(ServerError::Spawn)?;
            let mut starting = Starting {
                ground: Arc::clone(ground),
                child: Some(child),
                start,
                log: log.clone(),
                major,
                begun: begun.0,
                begun_at: begun.1,
                limits,
                system_id: control.system_id,
                superuser: None,
                times: StartTimes::default(),
                proof: None,
                read: (0, LogMoments::default()),
            };
            if starting.wait()? {
                let child = starting.child.take().expect("it was started");
                let (superuser, database) = starting.superuser.take().expect("it was asked");
                let proof = starting.proof.take().unwrap_or_else(|| Err("it was not looked at".into()));
                let ground = Arc::clone(ground);
                return Ok(Self {
                    ground,
                    child,
                    log,
                    major,
                    superuser,
                    database,
                    settings,
                    left_out: preload.left_out,
                    times: starting.times,
                    proof,
                });
            }
            last = starting.moments()?.insufficient;
        }
        Err(ServerError::Died { said: last.unwrap_or_else(|| "its limits are too low".into()), status: format!("after {TRIES} starts") })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The role that the drill logs in as.
    pub fn superuser(&self) -> &str {
        &self.superuser
    }

    /// What it was started with, in order; of two with the same name the later one counts.
    pub fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    /// Libraries of production that it does not load, and why.
    pub fn left_out(&self) -> &[(String, String)] {
        &self.left_out
    }

    /// When it came to what.
    pub fn times(&self) -> StartTimes {
        self.times
    }

    /// How to log in, as superuser. It has no secret: `to_string` is a connection string for other programs.
    pub fn dsn(&self, database: &str) -> Dsn {
        dsn(&self.ground, self.major, &self.superuser, database)
    }

    /// Logs in.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn connect(&self, database: &str) -> Result<Connection, PgError> {
        Connection::open(&self.dsn(database), Purpose::Sql)
    }

    /// A database that is there: `postgres`, unless somebody dropped it.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The log since this start.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// How far recovery came.
    ///
    /// # Errors
    /// Where the server does not answer.
    pub fn recovered(&self) -> Result<Recovered, PgError> {
        let connection = self.connect(&self.database)?;
        let rows = connection.query(
            "SELECT pg_is_in_recovery() AS recovering, \
             CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text AS lsn, \
             CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END AS file, \
             greatest(c.timeline_id, r.min_recovery_end_timeline) AS timeline, \
             to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS last_commit \
             FROM pg_control_checkpoint() c, pg_control_recovery() r",
            &[],
        )?;
        let row = rows.one()?;
        let in_recovery = row.bool("recovering")?;
        let (mut lsn, mut timeline) = (row.parse("lsn")?, Timeline(row.parse("timeline")?));
        // It has written since: where its own timeline began is where recovery ended.
        if let Some(number) = row.get_opt("file")?.and_then(|file| file.get(..8)) {
            let history = fs::read(self.ground.pgdata().join("pg_wal").join(format!("{number}.history"))).ok();
            let own =
                u32::from_str_radix(number, 16).map(Timeline).map_err(|_| PgError::Protocol { reason: format!("timeline {number:?}") })?;
            timeline = own;
            if let Some(parent) = history.and_then(|history| History::parse(own, &history).ok()?.parent().cloned()) {
                (lsn, timeline) = (parent.switch, parent.timeline);
            }
        }
        Ok(Recovered { lsn, timeline, last_commit: row.parse_opt("last_commit")?, in_recovery })
    }

    /// What keeps the server apart, each looked at while it runs.
    pub fn isolation(&self) -> Vec<Isolation> {
        let mut all: Vec<Isolation> = self.ground.isolation().into_iter().filter(|found| found.what != "network").collect();
        let mut is = |what: &str, found: Result<String, String>| {
            let holds = found.is_ok();
            all.push(Isolation { what: what.into(), holds, how: found.unwrap_or_else(|why| why) });
        };
        is("network", self.proof.clone().map(|proof| format!("{}: {proof}", self.ground.wall.words())));
        let asked = self.connect(&self.database).map_err(|error| format!("it could not be asked: {error}"));
        match asked {
            Ok(connection) => {
                let with = |check: &dyn Fn(&Connection) -> Looked| {
                    check(&connection).unwrap_or_else(|error| Err(format!("it could not be asked: {error}")))
                };
                is("socket", with(&|connection| self.socket_alone(connection)));
                is("archive", with(&archives_nothing));
                is("replication", with(&replicates_nothing));
                is("jobs", with(&|connection| self.runs_nothing(connection)));
            }
            Err(why) => ["socket", "archive", "replication", "jobs"].into_iter().for_each(|what| is(what, Err(why.clone()))),
        }
        all
    }

    fn socket_alone(&self, connection: &Connection) -> Looked {
        let found = shown(connection, &["listen_addresses", "unix_socket_directories"])?;
        if !found[0].1.is_empty() {
            return Ok(Err(format!("it listens on {}", found[0].1)));
        }
        if let Some(port) = listening(self.child.id()) {
            return Ok(Err(format!("it listens on TCP port {port}")));
        }
        let socket = self.ground.site.socket.join(format!(".s.PGSQL.{PORT}"));
        Ok(Ok(format!("no address; only {}, in a directory that is closed to others", socket.display())))
    }

    fn runs_nothing(&self, connection: &Connection) -> Looked {
        // Kinds of processes that belong to any server (`BackendType` in `src/include/miscadmin.h`).
        let rows = connection.query(
            "SELECT DISTINCT backend_type FROM pg_stat_activity WHERE backend_type NOT IN ('client backend', 'background writer', \
             'checkpointer', 'walwriter', 'startup', 'walreceiver', 'walsender', 'archiver', 'stats collector', 'logger', 'io worker', \
             'standalone backend', 'parallel worker', 'WAL summarizer', 'slotsync worker') ORDER BY 1",
            &[],
        )?;
        let mut acting = Vec::new();
        for row in rows.iter() {
            acting.push(row.get("backend_type")?.to_owned());
        }
        let idle = |kind: &str| kind.starts_with("TimescaleDB");
        if let Some(kind) = acting.iter().find(|kind| !idle(kind)) {
            return Ok(Err(format!("it runs a {kind}")));
        }
        let mut how = "no background worker, no autovacuum, no subscription".to_owned();
        for (library, why) in &self.left_out {
            let _ = write!(how, "; {library} is not loaded ({why})");
        }
        Ok(Ok(how))
    }

    /// Stops it.
    ///
    /// # Errors
    /// Where it had to be killed.
    pub fn stop(mut self, mode: StopMode) -> Result<(), ServerError> {
        self.end(mode)
    }

    fn end(&mut self, mode: StopMode) -> Result<(), ServerError> {
        end(&mut self.child, mode)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = end(&mut self.child, StopMode::Immediate);
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = end(child, StopMode::Immediate);
        }
    }
}

fn end(child: &mut Child, mode: StopMode) -> Result<(), ServerError> {
    let pid = Pid::from_child(child);
    let steps: &[(Signal, Duration)] = match mode {
        StopMode::Fast => &[(Signal::INT, STOP), (Signal::QUIT, QUIT)],
        StopMode::Immediate => &[(Signal::QUIT, QUIT)],
    };
    for (signal, patience) in steps {
        if !matches!(child.try_wait(), Ok(None)) {
            return Ok(());
        }
        // Not waited for yet, so the number is still its own.
        let _ = kill_process(pid, *signal);
        let begun = Instant::now();
        while begun.elapsed() < *patience {
            if !matches!(child.try_wait(), Ok(None)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(ServerError::DoesNotStop { pid: child.id() })
}

fn new_log(ground: &Ground) -> Result<(PathBuf, File), ServerError> {
    for number in 1.. {
        let path = ground.site.directory.join("log").join(format!("postgres-{number}.log"));
        match File::options().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(file_error(&path)(error)),
        }
    }
    unreachable!("there are more numbers than files")
}

/// A connection to nothing but the place's socket, whatever `PG*` variables say: an address among them would lead to production.
fn dsn(ground: &Ground, major: u32, user: &str, database: &str) -> Dsn {
    let host = ground.site.socket.display().to_string();
    [
        ("host", host.as_str()),
        ("hostaddr", ""),
        ("port", &PORT.to_string()),
        ("user", user),
        ("dbname", database),
        ("sslmode", "disable"),
        ("gssencmode", "disable"),
        ("target_session_attrs", "any"),
        // Not there: nobody asks for a password, and libpq warns of everything else that is no plain file.
        ("passfile", &ground.configuration("no-passwords")),
        ("connect_timeout", "30"),
        ("options", &planning::session_options(major)),
    ]
    .into_iter()
    .fold(Dsn::default(), |dsn, (keyword, value)| dsn.with(keyword, value))
}

fn shown(connection: &Connection, names: &[&str]) -> Result<Vec<(String, String)>, PgError> {
    let ask = |name: &&str| {
        let rows = connection.query("SELECT coalesce(current_setting($1, true), '') AS value", &[Some(name)])?;
        Ok(((*name).to_owned(), rows.one()?.get("value")?.to_owned()))
    };
    names.iter().map(ask).collect()
}

fn archives_nothing(connection: &Connection) -> Looked {
    let found =
        shown(connection, &["archive_mode", "archive_command", "archive_library", "archive_cleanup_command", "recovery_end_command"])?;
    let set = found
        .iter()
        .find(|(name, value)| if name == "archive_mode" { value != "off" } else { !matches!(value.as_str(), "" | "(disabled)") });
    Ok(match set {
        Some((name, value)) => Err(format!("{name} is {value}")),
        None => Ok("archive_mode is off, and no command runs at the end of recovery".into()),
    })
}

fn replicates_nothing(connection: &Connection) -> Looked {
    let found =
        shown(connection, &["primary_conninfo", "primary_slot_name", "synchronous_standby_names", "max_logical_replication_workers"])?;
    if let Some((name, _)) = found.iter().find(|(_, value)| !matches!(value.as_str(), "" | "0")) {
        return Ok(Err(format!("{name} is set")));
    }
    let rows = connection.query(
        "SELECT (SELECT count(*) FROM pg_stat_wal_receiver) + (SELECT count(*) FROM pg_stat_replication) AS streams, \
         (SELECT count(*) FROM pg_subscription) AS subscriptions",
        &[],
    )?;
    let row = rows.one()?;
    if row.parse::<u64>("streams")? != 0 {
        return Ok(Err("WAL is streamed".into()));
    }
    let subscriptions: u64 = row.parse("subscriptions")?;
    Ok(Ok(format!("no primary_conninfo, no worker for any of {subscriptions} subscriptions, nobody streams")))
}

/// A TCP port that a process listens on: its descriptors (`socket:[inode]`) among the listening sockets of its network (proc_pid_net(5);
/// state `0A` is TCP_LISTEN).
fn listening(pid: u32) -> Option<u16> {
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()?
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|link| Some(link.to_string_lossy().strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    for name in ["tcp", "tcp6"] {
        for line in fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else { continue };
            if *state == "0A" && sockets.iter().any(|socket| socket == inode) {
                return local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
            }
        }
    }
    None
}

impl Starting<'_> {
    fn moments(&mut self) -> Result<LogMoments, ServerError> {
        let length = fs::metadata(&self.log).map_err(file_error(&self.log))?.len();
        if length != self.read.0 {
            // A line for each segment: read again only where there is more.
            let bytes = fs::read(&self.log).map_err(file_error(&self.log))?;
            self.read = (bytes.len() as u64, moments(&String::from_utf8_lossy(&bytes)));
        }
        Ok(self.read.1.clone())
    }

    /// Waits for the goal; false: it has to be started anew, with higher limits.
    fn wait(&mut self) -> Result<bool, ServerError> {
        let mut last;
        loop {
            if self.ground.is_ended() {
                return Err(ServerError::Ended);
            }
            let child = self.child.as_mut().expect("it was started");
            if let Ok(Some(status)) = child.try_wait() {
                let moments = self.moments()?;
                if self.is_raised(&moments)? {
                    return Ok(false);
                }
                return Err(self.died(&moments, &status.to_string()));
            }
            match self.look()? {
                Seen::Reached => {
                    self.note_times()?;
                    return Ok(true);
                }
                Seen::Raised => {
                    if let Some(mut child) = self.child.take() {
                        end(&mut child, StopMode::Fast)?;
                    }
                    return Ok(false);
                }
                Seen::NotYet(what) => last = what,
            }
            if self.begun.elapsed() > self.start.timeout {
                let seconds = self.start.timeout.as_secs();
                return Err(ServerError::Timeout { goal: self.start.goal.words(), seconds, last });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether WAL has raised a limit over what the server was started with: its control file has the new ones by then.
    fn is_raised(&self, moments: &LogMoments) -> Result<bool, ServerError> {
        Ok(moments.insufficient.is_some() && self.limits.or(control(&self.ground)?.limits) != self.limits)
    }

    fn died(&self, moments: &LogMoments, status: &str) -> ServerError {
        let fatal = moments.fatal.clone().unwrap_or_default();
        if let Some(library) = planning::missing_library(&fatal) {
            return ServerError::MissingLibrary { library: library.to_owned() };
        }
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut said = if fatal.is_empty() { text.lines().last().unwrap_or("it said nothing").to_owned() } else { fatal };
        // "configuration file contains errors" says nothing; what a restore command said is not the server's own.
        let others =
            text.lines().filter(|line| planning::log_line(line).at.is_none() && line.starts_with("lifeboat drill: ")).map(str::to_owned);
        for complaint in moments.complaints.iter().cloned().chain(others).take(3) {
            let _ = write!(said, "; {complaint}");
        }
        ServerError::Died { said, status: status.to_owned() }
    }

    fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    fn look(&mut self) -> Result<Seen, ServerError> {
        // `postmaster.pid` says what it takes (`src/include/utils/pidfile.h`); it is written after the program has become PostgreSQL.
        let lines = restored::server_lines(&self.ground.pgdata()).unwrap_or_default();
        let own = self.child.as_ref().map(Child::id).map(|pid| pid.to_string());
        if lines.first().map(|pid| pid.trim()) != own.as_deref() {
            return Ok(Seen::NotYet("it does not have its postmaster.pid yet".into()));
        }
        self.prove()?;
        let moments = self.moments()?;
        if moments.insufficient.is_some() && moments.ready.is_none() && self.is_raised(&moments)? {
            return Ok(Seen::Raised);
        }
        let state = lines.get(7).map_or("starting", |state| state.trim()).to_owned();
        if !matches!(state.as_str(), "ready" | "standby") {
            return Ok(Seen::NotYet(format!("the server is {state}")));
        }
        // It is known to answer, and is left alone until there is something to ask.
        let waits = state == "standby" && self.times.first_read.is_some();
        if waits && (self.start.goal == Goal::Writable || moments.paused.is_none()) {
            return Ok(Seen::NotYet("it is in recovery".into()));
        }
        let connection = match self.log_in() {
            Ok(Some(connection)) => connection,
            Ok(None) => return Ok(Seen::NotYet("it does not take connections yet".into())),
            Err(error) => return Err(error),
        };
        let rows = match connection.query("SELECT pg_is_in_recovery() AS recovering", &[]) {
            Ok(rows) => rows,
            Err(error) if error.is_transient() => return Ok(Seen::NotYet(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        if rows.one()?.bool("recovering")? {
            self.times.first_read = self.times.first_read.or(Some(self.seconds()));
            return Ok(match self.start.goal {
                Goal::Consistent => Seen::Reached,
                // It may pause for other reasons as well: the log says that it is the target.
                Goal::Paused if moments.paused.is_some() => Seen::Reached,
                _ => Seen::NotYet("it is in recovery".into()),
            });
        }
        if self.start.goal == Goal::Paused {
            return Err(ServerError::Died {
                said: "recovery ended, and did not stop at its target".into(),
                status: "it would have taken writes".into(),
            });
        }
        // It takes writes when it can give a transaction a number.
        match connection.query("SELECT pg_current_xact_id()", &[]) {
            Ok(_) => {
                self.times.first_write = Some(self.seconds());
                Ok(Seen::Reached)
            }
            Err(error) if error.is_transient() => Ok(Seen::NotYet(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    fn prove(&mut self) -> Result<(), ServerError> {
        if self.proof.is_some() {
            return Ok(());
        }
        let pid = self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok()).unwrap_or(0);
        let proof = match &self.ground.wall {
            Wall::None(why) => Err(why.clone()),
            Wall::Root(_) | Wall::User => Ok(wall::prove(pid).map_err(ServerError::NotIsolated)?),
        };
        self.proof = Some(proof);
        Ok(())
    }

    /// Logs in as somebody who may do everything: whoever is a superuser by the bytes of `pg_authid`, or is usually called so.
    fn log_in(&mut self) -> Result<Option<Connection>, ServerError> {
        let known: Vec<(String, String)> = match &self.superuser {
            Some(known) => vec![known.clone()],
            None => {
                let databases = ["postgres", "template1"];
                let users = candidates(&self.ground);
                users.iter().flat_map(|user| databases.map(|database| (user.clone(), database.to_owned()))).collect()
            }
        };
        for (user, database) in &known {
            let connection = match Connection::open(&dsn(&self.ground, self.major, user, database), Purpose::Sql) {
                Ok(connection) => connection,
                // No such role, or one that may not log in; no such database, or one that takes no connections.
                Err(PgError::Authentication { .. }) => continue,
                Err(error) if matches!(error.sqlstate(), Some("3D000" | "55000" | "28000" | "42501")) => continue,
                Err(error) if error.is_transient() => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let rows = connection.query(
                "SELECT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) AS superuser, \
                 system_identifier FROM pg_control_system()",
                &[],
            )?;
            let row = rows.one()?;
            // It is signed in SQL.
            let found = SystemId(row.parse::<i64>("system_identifier")?.cast_unsigned());
            if found != self.system_id {
                return Err(ServerError::OtherServer { found, expected: self.system_id });
            }
            if row.bool("superuser")? {
                self.superuser = Some((user.clone(), database.clone()));
                return Ok(Some(connection));
            }
        }
        let mut tried: Vec<&str> = known.iter().map(|(user, _)| user.as_str()).collect();
        tried.dedup();
        Err(ServerError::NoSuperuser { tried: tried.join(", ") })
    }

    /// What the log says, in seconds after the start. The log's clock and ours are one, but it counts in milliseconds.
    fn note_times(&mut self) -> Result<(), ServerError> {
        let moments = self.moments()?;
        let after = |at: Option<Timestamp>| at.map(|at| at.duration_since(self.begun_at).as_secs_f64().max(0.0));
        self.times.redo = after(moments.redo);
        self.times.consistent = after(moments.consistent);
        self.times.paused = after(moments.paused);
        self.times.recovered = after(moments.recovered);
        Ok(())
    }
}

fn candidates(ground: &Ground) -> Vec<String> {
    let global = ground.pgdata().join("global");
    let map = fs::read(global.join("pg_filenode.map")).unwrap_or_default();
    let heap = fs::read(global.join(superusers::authid_file(&map).to_string())).unwrap_or_default();
    let block_size = control(ground).map_or(8192, |control| control.block_size);
    let mut users = superusers::superusers(&heap, block_size);
    if !users.iter().any(|user| user == "postgres") {
        users.push("postgres".into());
    }
    users
}
