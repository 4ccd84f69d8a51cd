//! The place of a drill: a directory, a user and a network of its own, and the server in it.
//!
//! To follow one: [`Place::make`]; the restore writes into [`Place::pgdata`]; `server.rs` starts PostgreSQL there, `feeder.rs` brings it WAL;
//! [`Place::remove`] proves that nothing is left. `leftovers.rs` finds what a drill left that was killed.
//!
//! Must not know what is restored or checked.

mod leftovers;
mod process;
mod server;
mod user;
mod wall;

pub use leftovers::{Leftover, LeftoverState, leftovers};
pub use server::{Goal, Recovered, Server, ServerError, Start, StartTimes, StopMode};
pub use user::PlaceUser;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lifeboat_core::drill::place::{Overlap, mounts, overlap_through_mounts};
use lifeboat_core::drill::{Check, CheckResult, Environment, Isolation, Outcome};

use leftovers::Marker;
use wall::Wall;

/// The port of a drill's server: with a socket alone it is part of a file's name.
const PORT: u16 = 5432;

/// The longest path of a socket: `sun_path` has 108 bytes with the one that ends it (unix(7)).
const MAX_SOCKET: usize = 107;

/// Why there is no place for a drill. Nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The parent is, or is in, or has in it, what a drill must never touch.
    #[error("drill in {parent}: it {} {forbidden}, which a drill must not touch", .overlap.words())]
    Forbidden {
        /// The directory that was asked for.
        parent: String,
        /// How they lie to each other.
        overlap: Overlap,
        /// What must not be touched.
        forbidden: String,
    },
    /// The parent is in a data directory or in a repository that nobody told us of.
    #[error("drill in {parent}: it is inside {found}, which {what}")]
    Inside {
        /// The directory that was asked for.
        parent: String,
        /// Where it stands.
        found: String,
        /// What that is.
        what: &'static str,
    },
    /// The parent is none.
    #[error("drill in {parent}: it is not a directory")]
    NotDirectory {
        /// The directory that was asked for.
        parent: String,
    },
    /// The name of the drill is not one of a directory.
    #[error("drill {0:?}: that is no name for a directory")]
    Name(String),
    /// Not enough room.
    #[error("drill in {parent}: {needed} bytes are needed, {free} are free")]
    NoRoom {
        /// The directory that was asked for.
        parent: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// No user to run the server as.
    #[error("run the drill's server as {user}: {problem}")]
    User {
        /// Who was asked for.
        user: String,
        /// Why not.
        problem: String,
    },
    /// The server's user cannot get there.
    #[error("drill in {parent}: the user of the server ({user}) cannot enter it: {problem}")]
    OutOfReach {
        /// The directory that was asked for.
        parent: String,
        /// The user.
        user: String,
        /// What happened.
        problem: String,
    },
    /// A network of its own was required and is not to be had.
    #[error("give the drill a network of its own: {0}")]
    Network(String),
    /// The process is being ended: whoever takes down its places takes no new one.
    #[error("make a place for the drill: it was told to end")]
    Ended,
    /// Something could not be made.
    #[error("make {path}")]
    Make {
        /// What.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a place is made by.
#[derive(Debug, Clone)]
pub struct PlaceSettings {
    /// Id of the drill: name of the directory.
    pub drill: String,
    /// Where the directory is made. It must be there.
    pub parent: PathBuf,
    /// A directory with a short path, for the socket where the other is too long.
    pub temporary: PathBuf,
    /// What must not be touched: data directories, tablespaces, artifacts, repositories of production.
    pub forbidden: Vec<PathBuf>,
    /// Bytes that are needed.
    pub room: u64,
    /// As root: the user that the server runs as; none: an id that nobody has.
    pub user: Option<String>,
    /// Whether it is an error that there is no network of its own.
    pub require_network: bool,
    /// Name of this host.
    pub host: String,
}

/// Where a place is and whose: enough to take it down from another thread, from the moment on at which there is something to take down.
#[derive(Debug)]
pub(crate) struct Site {
    /// Where it is, without links.
    pub(crate) directory: PathBuf,
    /// Where the server's socket is.
    pub(crate) socket: PathBuf,
    /// Who the server runs as.
    pub(crate) user: PlaceUser,
    /// Whether it was left for somebody to look at.
    kept: AtomicBool,
    /// Whether it is being taken down because the process was told to end: nothing is begun in it any more.
    ended: AtomicBool,
}

/// What is known of a place without holding it.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Where it is.
    pub(crate) site: Arc<Site>,
    /// What is between it and the network.
    pub(crate) wall: Wall,
    /// What was said of `forbidden` directories.
    checked: Vec<String>,
    /// Those of them that the server's user owns.
    owned: Vec<String>,
}

/// A directory that a drill made for itself. When it is dropped, what is in it goes.
#[derive(Debug)]
pub struct Place {
    ground: Arc<Ground>,
    /// Locked as long as we are alive.
    lock: Option<File>,
    removed: bool,
}

/// Takes a place down from another thread, when the process is told to end.
#[derive(Debug, Clone)]
pub struct Remover(Arc<Site>);

fn make_error(path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.display().to_string();
    move |source| PlaceError::Make { path, source }
}

impl Place {
    /// Makes one that nobody takes down from another thread while it is made.
    ///
    /// # Errors
    /// Everything that speaks against it is found before anything is made; what was made is removed where something fails later.
    pub fn make(settings: &PlaceSettings) -> Result<Self, PlaceError> {
        Self::make_known(settings, &|_| true)
    }

    /// Makes one. `known` is given what takes it down as soon as the place can be told for one, long before it is whole; where it says
    /// that it is too late for that, there is no place.
    ///
    /// # Errors
    /// As [`Place::make`].
    pub fn make_known(settings: &PlaceSettings, known: &dyn Fn(Remover) -> bool) -> Result<Self, PlaceError> {
        let parent = check_parent(settings)?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if settings.drill.is_empty() || settings.drill.starts_with(['.', '-']) || !settings.drill.chars().all(is_name) {
            return Err(PlaceError::Name(settings.drill.clone()));
        }
        let user = PlaceUser::choose(settings.user.as_deref(), &settings.drill)?;
        let directory = parent.join(&settings.drill);
        DirBuilder::new().mode(0o700).create(&directory).map_err(make_error(&directory))?;
        // From here on something is there that has to go if we fail.
        let unfinished = Unfinished(Some(directory.clone()));
        let short = directory.join("socket");
        let long = short.join(format!(".s.PGSQL.{PORT}")).as_os_str().len() > MAX_SOCKET;
        let socket = if long { settings.temporary.join(format!("lifeboat-{}", &crate::random::id().to_string()[..12])) } else { short };
        let lock = Marker::new(settings, &user, long.then(|| socket.clone())).write(&directory)?;
        let (kept, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let site = Arc::new(Site { directory, socket, user, kept, ended });
        if !known(Remover(Arc::clone(&site))) {
            return Err(PlaceError::Ended);
        }
        let Site { directory, socket, user, .. } = &*site;
        // The top belongs to us: the server's user walks through it, and puts nothing in the place of what we write to.
        let ours = |name: &str, mode: u32| {
            let path = directory.join(name);
            DirBuilder::new().mode(mode).create(&path).map_err(make_error(&path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(make_error(&path))?;
            if let Some((_, group)) = user.owner() {
                chown(&path, None, Some(group)).map_err(make_error(&path))?;
            }
            Ok::<_, PlaceError>(())
        };
        let theirs = |path: &Path| {
            DirBuilder::new().mode(0o700).create(path).map_err(make_error(path))?;
            if let Some((uid, gid)) = user.owner() {
                chown(path, Some(uid), Some(gid)).map_err(make_error(path))?;
            }
            Ok::<_, PlaceError>(())
        };
        let through = if user.owner().is_some() { 0o710 } else { 0o700 };
        if let Some((_, group)) = user.owner() {
            chown(directory, None, Some(group)).map_err(make_error(directory))?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o710)).map_err(make_error(directory))?;
        }
        for (name, mode) in [("wal", through), ("wal/landing", 0o700), ("log", 0o700), ("artifacts", 0o700), ("tablespaces", through)] {
            ours(name, mode)?;
        }
        ours("configuration", if user.owner().is_some() { 0o750 } else { 0o700 })?;
        for name in ["wal/want", "wal/ready", "wal/answer"] {
            theirs(&directory.join(name))?;
        }
        theirs(socket)?;
        let unfinished_socket = Unfinished(long.then(|| socket.clone()));
        configure(directory, user)?;
        let wall = Wall::find(user, directory, socket, &settings.forbidden);
        for entered in [socket, &directory.join("wal/want")] {
            if let Err(problem) = wall.enter(user, entered) {
                return Err(PlaceError::OutOfReach { parent: parent.display().to_string(), user: user.to_string(), problem });
            }
        }
        if let (Wall::None(why), true) = (&wall, settings.require_network) {
            return Err(PlaceError::Network(why.clone()));
        }
        let owns = |path: &&PathBuf| user.switched && fs::metadata(path).is_ok_and(|found| found.uid() == user.uid);
        let owned = settings.forbidden.iter().filter(owns).map(|path| path.display().to_string()).collect();
        let checked = settings.forbidden.iter().map(|path| path.display().to_string()).collect();
        if site.is_ended() {
            return Err(PlaceError::Ended);
        }
        unfinished.keep();
        unfinished_socket.keep();
        let ground = Arc::new(Ground { site: Arc::clone(&site), wall, checked, owned });
        Ok(Self { ground, lock: Some(lock), removed: false })
    }

    /// Its directory, without links.
    pub fn directory(&self) -> &Path {
        &self.ground.site.directory
    }

    /// Where the data directory goes. It is not made: a restore makes it.
    pub fn pgdata(&self) -> PathBuf {
        self.ground.pgdata()
    }

    /// Where a tablespace goes.
    pub fn tablespace(&self, oid: &str) -> PathBuf {
        self.ground.site.directory.join("tablespaces").join(oid)
    }

    /// Where artifacts go; empty.
    pub fn artifacts(&self) -> PathBuf {
        self.ground.site.directory.join("artifacts")
    }

    /// Lets the server's user, and with it the operator's own command, into the artifacts, once they are there: to read, not to write.
    ///
    /// # Errors
    /// Where that cannot be set.
    pub fn open_artifacts(&self) -> io::Result<()> {
        let Some((_, group)) = self.owner() else { return Ok(()) };
        let path = self.artifacts();
        chown(&path, None, Some(group))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750))
    }

    /// Where logs of the server and of programs go.
    pub fn logs(&self) -> PathBuf {
        self.ground.site.directory.join("log")
    }

    /// Directory of the server's socket.
    pub fn socket(&self) -> &Path {
        &self.ground.site.socket
    }

    /// Where WAL is handed over.
    pub(crate) fn wal(&self) -> PathBuf {
        self.ground.site.directory.join("wal")
    }

    /// Who the server runs as.
    pub fn user(&self) -> &PlaceUser {
        &self.ground.site.user
    }

    /// Who owns what is restored, as root: `RestoreSettings::owner`.
    pub fn owner(&self) -> Option<(u32, u32)> {
        self.ground.site.user.owner()
    }

    /// A program as the server's user, behind the same wall: without our environment, standing in the socket's directory.
    pub fn command(&self, program: &Path) -> Command {
        self.ground.command(program)
    }

    pub(crate) fn ground(&self) -> Arc<Ground> {
        Arc::clone(&self.ground)
    }

    /// Whether it is being taken down because the process was told to end: what failed in it says nothing any more.
    pub(crate) fn is_ended(&self) -> bool {
        self.ground.site.is_ended()
    }

    /// What takes it down when the process is told to end.
    pub fn remover(&self) -> Remover {
        Remover(Arc::clone(&self.ground.site))
    }

    /// What keeps the place apart, before a server runs in it; [`Server::isolation`] says it of a server that does.
    pub fn isolation(&self) -> Vec<Isolation> {
        self.ground.isolation()
    }

    /// Where a drill worked. `isolation` and `settings`: of the server, where there was one. `programs`: those that were run; they are asked
    /// for their versions, as are those that made the wall.
    pub fn environment(&self, isolation: Vec<Isolation>, settings: Vec<(String, String)>, programs: &[PathBuf]) -> Environment {
        let memory = || {
            let text = fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
        };
        Environment {
            directory: self.ground.site.directory.display().to_string(),
            user: self.ground.site.user.to_string(),
            isolation,
            settings,
            programs: programs.iter().cloned().chain(self.ground.wall.tools()).filter_map(|program| version(&program)).collect(),
            processors: std::thread::available_parallelism().map_or(0, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            memory_bytes: memory().unwrap_or(0),
            system: operating_system(),
        }
    }

    /// Stops what still runs, removes everything, and looks whether it is gone.
    pub fn remove(mut self) -> CheckResult {
        let begun = Instant::now();
        self.removed = true;
        let mut findings = self.ground.site.end_processes();
        self.lock = None;
        findings.extend(self.ground.site.remove_files());
        let mut result = match findings.len() {
            0 => CheckResult::new(Check::Teardown, Outcome::Passed, "no process, no file and no socket of the drill is left"),
            1 => CheckResult::new(Check::Teardown, Outcome::Failed, findings[0].clone()),
            count => CheckResult::new(Check::Teardown, Outcome::Failed, format!("{count} things were left")),
        };
        result.seconds = begun.elapsed().as_secs_f64();
        result.with(findings)
    }

    /// Leaves the directory for somebody to look at; nothing runs in it any more.
    pub fn keep(mut self) -> PathBuf {
        self.removed = true;
        self.ground.site.end_processes();
        // From here on it is nobody's to clear away.
        self.ground.site.kept.store(true, Ordering::SeqCst);
        let _ = fs::remove_file(self.ground.site.directory.join(leftovers::MARKER));
        self.ground.site.directory.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.removed {
            self.ground.site.end_processes();
            self.ground.site.remove_files();
        }
    }
}

impl Remover {
    /// Stops what runs there and removes it all, as far as that goes; what was left to be looked at stays.
    pub fn run(&self) {
        // First of all: who sees the server die, or a file gone, shall not begin anew.
        self.0.ended.store(true, Ordering::SeqCst);
        if self.0.kept.load(Ordering::SeqCst) {
            return;
        }
        // Whoever restores into it, or feeds its server, makes files behind our back while it is emptied. Once its top is gone they cannot:
        // a restore makes nothing above its own directory. Programs of others may: so it has to have stayed gone for a while.
        let mut quiet = 0;
        for _ in 0..50 {
            if quiet == 0 {
                self.0.end_processes();
            }
            let was_there = self.0.is_there();
            quiet = if self.0.remove_files().is_empty() && !was_there { quiet + 1 } else { 0 };
            if quiet == 4 {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What has to go where the rest cannot be made.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// The parent without links, if nothing speaks against it.
fn check_parent(settings: &PlaceSettings) -> Result<PathBuf, PlaceError> {
    let parent = || settings.parent.display().to_string();
    let not_directory = || PlaceError::NotDirectory { parent: parent() };
    let real = fs::canonicalize(&settings.parent).map_err(|_| not_directory())?;
    let found = fs::metadata(&real).ok().filter(fs::Metadata::is_dir).ok_or_else(not_directory)?;
    let mounts = mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    for forbidden in &settings.forbidden {
        let other = resolved(forbidden);
        let same = fs::metadata(&other).is_ok_and(|other| (other.dev(), other.ino()) == (found.dev(), found.ino()));
        let overlap = if same { Some(Overlap::Same) } else { overlap_through_mounts(&real, &other, &mounts) };
        if let Some(overlap) = overlap {
            return Err(PlaceError::Forbidden { parent: parent(), overlap, forbidden: forbidden.display().to_string() });
        }
    }
    for above in real.ancestors() {
        let inside = |what| PlaceError::Inside { parent: parent(), found: above.display().to_string(), what };
        if above.join("PG_VERSION").exists() || above.join("global/pg_control").exists() {
            return Err(inside("is a data directory of PostgreSQL"));
        }
        if above.join("lifeboat.json").exists() {
            return Err(inside("is a repository"));
        }
    }
    if let Ok(space) = rustix::fs::statvfs(&real) {
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if space.f_blocks > 0 && free < settings.room {
            return Err(PlaceError::NoRoom { parent: parent(), needed: settings.room, free });
        }
    }
    Ok(real)
}

/// A path without links, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = absolute.ancestors().find_map(|part| Some((fs::canonicalize(part).ok()?, absolute.strip_prefix(part).ok()?)));
    there.map_or(absolute.clone(), |(real, rest)| if rest.as_os_str().is_empty() { real } else { real.join(rest) })
}

/// The server's configuration: who may log in, and nothing else.
fn configure(directory: &Path, user: &PlaceUser) -> Result<(), PlaceError> {
    let files = [
        ("postgresql.conf", "# A drill's server: its settings stand on its command line.\n"),
        ("pg_hba.conf", "# Whoever can enter the socket's directory may name any role. No replication.\nlocal all all trust\n"),
        ("pg_ident.conf", ""),
    ];
    for (name, text) in files {
        let path = directory.join("configuration").join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path).map_err(make_error(&path))?;
        file.write_all(text.as_bytes()).map_err(make_error(&path))?;
        if let Some((_, group)) = user.owner() {
            chown(&path, None, Some(group)).map_err(make_error(&path))?;
            file.set_permissions(fs::Permissions::from_mode(0o640)).map_err(make_error(&path))?;
        }
    }
    Ok(())
}

/// The first line that a program says of its version, after its path.
fn version(program: &Path) -> Option<String> {
    let output =
        Command::new(program).arg("--version").env_clear().stdin(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(format!("{}: {}", program.display(), text.lines().next()?.trim()))
}

fn operating_system() -> String {
    let text = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).map(|name| name.trim_matches('"').to_owned());
    let kernel = rustix::system::uname();
    format!("{}, {} {}", name.as_deref().unwrap_or("unknown"), kernel.sysname().to_string_lossy(), kernel.release().to_string_lossy())
}

impl Site {
    fn pgdata(&self) -> PathBuf {
        self.directory.join("pgdata")
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether anything of it is there.
    fn is_there(&self) -> bool {
        [&self.directory, &self.socket].into_iter().any(|path| fs::symlink_metadata(path).is_ok())
    }

    /// Ends what runs in the place: the server, then whatever else. Gives what should not have run any more.
    fn end_processes(&self) -> Vec<String> {
        let mut findings: Vec<String> = process::stop_server(&self.pgdata()).into_iter().collect();
        findings.extend(process::sweep(&self.directory, self.user.only_ours()));
        findings
    }

    /// Removes every file. Gives what is left.
    fn remove_files(&self) -> Vec<String> {
        leftovers::remove_files(&self.directory, &self.socket, self.user.only_ours())
    }
}

impl Ground {
    pub(crate) fn pgdata(&self) -> PathBuf {
        self.site.pgdata()
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.site.is_ended()
    }

    pub(crate) fn configuration(&self, name: &str) -> String {
        self.site.directory.join("configuration").join(name).display().to_string()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = self.wall.command(&self.site.user, program);
        command.current_dir(&self.site.socket);
        command
    }

    fn isolation(&self) -> Vec<Isolation> {
        let is = |what: &str, holds, how: String| Isolation { what: what.into(), holds, how };
        let kept = match self.checked.len() {
            0 => "no directory of production was named that it could be compared with".to_owned(),
            _ => format!("apart from {}", self.checked.join(", ")),
        };
        let directory = format!("{}, made for this drill and closed to others; {kept}", self.site.directory.display());
        let directory = match self.wall.hidden() {
            [] => directory,
            hidden => {
                let names: Vec<String> = hidden.iter().map(|path| path.display().to_string()).collect();
                format!("{directory}; the server finds nothing in {}", names.join(", "))
            }
        };
        let user = match (&self.site.user, self.owned.as_slice()) {
            (user, _) if !user.switched => (false, format!("{user}, who also runs lifeboat: to change the user it would have to be root")),
            (user, [owned, ..]) => (false, format!("{user}, who owns {owned}")),
            (user, []) if user.dedicated => (true, format!("{user}, a number that no user, group or process of this host had")),
            (user, []) => (true, format!("{user}, as configured; it owns nothing of what was named as production's")),
        };
        let network = match &self.wall {
            Wall::None(why) => (false, why.clone()),
            Wall::Root(_) | Wall::User => (true, format!("{}, without any address", self.wall.words())),
        };
        vec![is("directory", !self.checked.is_empty(), directory), is("user", user.0, user.1), is("network", network.0, network.1)]
    }
}

#[cfg(test)]
mod tests;
