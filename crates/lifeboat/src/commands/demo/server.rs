//! The demo's PostgreSQL: made, loaded, and lost.
//!
//! Listens on a Unix socket in the demo's directory only. Must not know about backups.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat_engine::postgres::{Connection, Dsn, Purpose};
use rustix::process::{Pid, Signal};

use super::place::Place;
use crate::failure::{EXIT_FAILED, Failure};
use crate::output;

/// The database that the orchestrator uses.
pub(super) const DATABASE: &str = "conductor";

/// How long a server may take to start or stop: generous, it only ends demos that would hang for ever.
const DEADLINE: Duration = Duration::from_secs(120);

/// Number of the socket, not of a TCP port: every demo has a socket directory of its own.
const SOCKET: &str = "5432";

/// PostgreSQL's programs.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    directory: PathBuf,
    /// As the server prints it.
    pub(super) version: String,
}

impl Programs {
    /// Those named, or else the newest that are installed where packages put them, or in `PATH`.
    pub(super) fn find(named: Option<&Path>) -> Result<Self, Failure> {
        let missing = |place: String| {
            Failure::usage(format!("find PostgreSQL: no initdb, postgres and pgbench in {place}"))
                .hint("install a PostgreSQL server (scripts/setup server), or name its programs: lifeboat demo --bin-directory DIR")
        };
        let complete = |directory: &PathBuf| ["initdb", "postgres", "pgbench"].iter().all(|name| directory.join(name).is_file());
        let directory = match named {
            Some(directory) => {
                let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
                Some(directory.clone()).filter(complete).ok_or_else(|| missing(directory.display().to_string()))?
            }
            None => {
                let packages = (13..=18)
                    .rev()
                    .flat_map(|major| [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")].map(PathBuf::from));
                let path = std::env::var_os("PATH").unwrap_or_default();
                let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
                packages.chain(path).find(complete).ok_or_else(|| missing("/usr/lib/postgresql/*/bin or PATH".into()))?
            }
        };
        let output = Command::new(directory.join("postgres")).arg("--version").output();
        let version = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        // "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
        Ok(Self { version: version.split_whitespace().nth(2).unwrap_or_default().to_owned(), directory })
    }

    /// Where they are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// One of them, if it is installed.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.join(name)).filter(|path| path.is_file())
    }

    /// One of them to run as the server's user, with nothing of our environment's that PostgreSQL listens to.
    pub(super) fn command(&self, place: &Place, name: &str) -> Command {
        let mut command = Command::new(self.directory.join(name));
        forget_environment(&mut command);
        place.as_server_user(&mut command);
        command.current_dir(&place.directory).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }
}

/// Takes away every variable that would make a run depend on who runs it.
pub(super) fn forget_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["PG", "LIFEBOAT_", "COSIGN_", "OTEL_", "XDG_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
}

/// Runs a program to its end, quietly unless it fails.
pub(super) fn run(command: &mut Command) -> Result<String, Failure> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed =
        |why: String| Failure::new(EXIT_FAILED, format!("run {name}: {why}")).hint("lifeboat demo --keep leaves the server's log behind");
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stderr, output.stdout].concat();
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().rfind(|line| line.contains("rror") || line.contains("FATAL")).or(text.lines().last()).unwrap_or_default();
    Err(failed(format!("{} ({})", last.trim(), output.status)))
}

/// How to reach the server.
pub(super) fn dsn(place: &Place, database: &str) -> String {
    format!("host={} port={SOCKET} user=postgres dbname={database}", place.join("s").display())
}

/// Connects to the server.
pub(super) fn connect(dsn: &str) -> Result<Connection, Failure> {
    Ok(Connection::open(&Dsn::parse(dsn)?, Purpose::Sql)?)
}

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    process: Child,
    data: PathBuf,
}

impl Server {
    /// Makes a cluster with data checksums, and starts it.
    pub(super) fn start(place: &Place, programs: &Programs) -> Result<Self, Failure> {
        place.make_directory("s", 0o700)?;
        let home = place.make_directory("prod", 0o755)?;
        let data = home.join("pgdata");
        let mut initdb = programs.command(place, "initdb");
        initdb.args(["--data-checksums", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "-D"]).arg(&data);
        run(&mut initdb)?;
        let settings = format!(
            "\nlisten_addresses = ''\nunix_socket_directories = '{}'\nport = {SOCKET}\nwal_level = replica\n",
            place.join("s").display()
        );
        let path = data.join("postgresql.conf");
        let append = fs::read_to_string(&path).and_then(|text| fs::write(&path, text + &settings));
        append.map_err(|error| Failure::new(EXIT_FAILED, format!("write {}: {error}", path.display())))?;
        let log_path = home.join("server.log");
        let spawn = |log: fs::File| -> std::io::Result<Child> {
            let mut postgres = programs.command(place, "postgres");
            // Not in the demo's group: on Ctrl-C the guard ends it.
            std::os::unix::process::CommandExt::process_group(&mut postgres, 0);
            postgres.arg("-D").arg(&data).stdout(log.try_clone()?).stderr(log).spawn()
        };
        let process = fs::File::create(&log_path).and_then(spawn);
        let process = process.map_err(|error| Failure::new(EXIT_FAILED, format!("run postgres: {error}")))?;
        let mut server = Self { process, data };
        let begun = Instant::now();
        let dsn = dsn(place, "postgres");
        while let Err(failure) = connect(&dsn) {
            let ended = matches!(server.process.try_wait(), Ok(Some(_)) | Err(_));
            if ended || begun.elapsed() > DEADLINE {
                let log = fs::read_to_string(&log_path).unwrap_or_default();
                let last = log.lines().last().unwrap_or(&failure.message).to_owned();
                return Err(
                    Failure::new(EXIT_FAILED, format!("start PostgreSQL: {last}")).hint("lifeboat demo --keep leaves its log behind")
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Where it keeps its data.
    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    /// Ends it and all of its processes as a loss of power would.
    pub(super) fn kill9(mut self, processes: &[Pid]) {
        let state = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let _ = self.process.kill();
        let _ = self.process.wait();
        for &process in processes {
            let _ = rustix::process::kill_process(process, Signal::KILL);
        }
        // A killed server leaves a small System V segment, of which a machine has a limited number: the seventh line is key and id.
        if let Some(id) = state.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let mut ipcrm = Command::new("ipcrm");
            let _ = ipcrm.args(["-m", id]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

/// Stops the server that runs in a directory, with a checkpoint.
pub(super) fn stop(data: &Path) -> Result<(), Failure> {
    let file = data.join("postmaster.pid");
    let text = fs::read_to_string(&file).unwrap_or_default();
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw) else { return Ok(()) };
    let _ = rustix::process::kill_process(pid, Signal::INT);
    let begun = Instant::now();
    while file.exists() {
        if begun.elapsed() > DEADLINE {
            return Err(Failure::new(EXIT_FAILED, format!("stop the server in {}: it does not stop", data.display())));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// pgbench's transactions, until dropped.
#[derive(Debug)]
pub(super) struct Load {
    pgbench: Child,
}

impl Load {
    /// Starts two clients.
    pub(super) fn start(place: &Place, programs: &Programs) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new(EXIT_FAILED, format!("run pgbench: {error}"));
        let log = fs::File::create(place.join("pgbench.log")).map_err(failed)?;
        let mut pgbench = programs.command(place, "pgbench");
        pgbench.args(["--no-vacuum", "--client=2", "--time=86400"]).arg(dsn(place, DATABASE));
        pgbench.stdout(log.try_clone().map_err(failed)?).stderr(log);
        Ok(Self { pgbench: pgbench.spawn().map_err(failed)? })
    }

    /// Whether it has not ended by itself.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.pgbench.try_wait(), Ok(None))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.pgbench.kill();
        let _ = self.pgbench.wait();
    }
}

/// Removes a directory that dying processes may still write to.
pub(super) fn remove_tree(directory: &Path) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        match fs::remove_dir_all(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if begun.elapsed() > DEADLINE => {
                return Err(Failure::new(EXIT_FAILED, format!("remove {}: {error}", directory.display())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Says what is run, as one would type it.
pub(super) fn say_command(line: &str) {
    output::say(&format!("\n  $ {line}"));
}
