//! Starting a restored server and waiting for its first answer.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat_core::restore::DatabasePlan;
use lifeboat_core::trace_context;
use lifeboat_core::wal::history::History;
use lifeboat_core::wal::{Lsn, Timeline};

use super::RestoreSettings;
use crate::backup::OUTSIDE;
use crate::postgres::{Connection, Dsn, PgError, Purpose};

/// Why a server did not come up.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No server programs of this version.
    #[error("start the server: no PostgreSQL {major} programs found (looked for {looked_for})")]
    NoBinary {
        /// The major version.
        major: u32,
        /// Where we looked.
        looked_for: String,
    },
    /// It could not be run.
    #[error("start the server with {program}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended.
    #[error("start the server in {directory}: {log}")]
    Failed {
        /// Its directory.
        directory: String,
        /// What its log says.
        log: String,
    },
    /// It took too long.
    #[error("wait for the server in {directory}: no answer within {seconds} s ({last})")]
    Timeout {
        /// Its directory.
        directory: String,
        /// How long.
        seconds: u64,
        /// What it said last.
        last: String,
    },
    /// Recovery ended before what backup and archive hold.
    #[error("check recovery: it ended at {reached}, WAL up to {promised} was promised")]
    Short {
        /// Where it ended.
        reached: Lsn,
        /// Where it had to end, at least.
        promised: Lsn,
    },
    /// The server's user cannot run what fetches WAL.
    #[error("run restore_command as the server's user: {problem}")]
    RestoreCommand {
        /// What it said.
        problem: String,
    },
    /// It answered, with an error.
    #[error(transparent)]
    Postgres(#[from] PgError),
}

/// A server that answers.
#[derive(Debug)]
pub struct Started {
    /// How to connect.
    pub dsn: String,
    /// Where recovery ended: the first byte that was not replayed.
    pub reached: Lsn,
    /// Time of the last commit that was replayed, if any was.
    pub last_commit: Option<jiff::Timestamp>,
    /// What an operator should know of it.
    pub warnings: Vec<String>,
    /// WAL that its restore command read from another place than the first, in its own words.
    pub read_around: Vec<String>,
}

/// Where a program of exactly this major version is.
pub fn program(bin_directory: Option<&Path>, major: u32, name: &str) -> Result<PathBuf, ServerError> {
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let rpm = PathBuf::from(format!("/usr/pgsql-{major}/bin"));
    let candidates: Vec<PathBuf> = match bin_directory {
        Some(directory) => vec![directory.to_owned()],
        None => vec![debian, rpm],
    };
    let found = candidates.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let looked_for = candidates.iter().map(|directory| directory.join(name).display().to_string()).collect::<Vec<_>>().join(", ");
        ServerError::NoBinary { major, looked_for }
    })
}

/// A command that runs as the owner of `directory`: PostgreSQL refuses to run as root.
pub(super) fn as_owner(program: &Path, directory: &Path) -> Command {
    let owner = fs::metadata(directory).ok().filter(|found| rustix::process::geteuid().is_root() && found.uid() != 0);
    let setpriv = ["/usr/bin/setpriv", "/bin/setpriv"].into_iter().find(|path| Path::new(path).is_file());
    let mut command = match (owner, setpriv) {
        (None, _) => Command::new(program),
        // With the groups that the owner is a member of: on Debian, `ssl-cert` is what opens the server's private key. Those are not to be
        // had from the standard library; setpriv becomes the program, so the process id is the server's.
        (Some(found), Some(setpriv)) if crate::owners::user(found.uid()).is_some() => {
            let mut command = Command::new(setpriv);
            command
                .arg(format!("--reuid={}", found.uid()))
                .arg(format!("--regid={}", found.gid()))
                .args(["--init-groups", "--"])
                .arg(program);
            command
        }
        (Some(found), _) => {
            let mut command = Command::new(program);
            command.uid(found.uid()).gid(found.gid());
            command
        }
    };
    // Where we stand may be closed to the owner.
    command.current_dir(directory).stdin(Stdio::null());
    command
}

/// Runs the restore command as the server will, for a file that is there: what its user may not read is better known now.
pub(super) fn check_restore_command(plan: &DatabasePlan, probe: &str) -> Result<(), ServerError> {
    let Some((_, command)) = plan.settings.iter().find(|(name, _)| name == "restore_command") else { return Ok(()) };
    let directory = Path::new(&plan.pgdata);
    let target = "lifeboat-probe";
    let command = command.replace("%f", probe).replace("%p", target).replace("%%", "%");
    let mut shell = as_owner(Path::new("/bin/sh"), directory);
    let output = shell.args(["-c", &command]).output().map_err(|source| ServerError::Spawn { program: "/bin/sh".into(), source })?;
    let came = fs::remove_file(directory.join(target)).is_ok();
    if output.status.success() && came {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let error = text.lines().filter_map(said).find(|(word, _)| word == "error").map(|(_, message)| message);
    let line = error.or(text.lines().last().map(str::to_owned)).unwrap_or_else(|| "no message".into());
    Err(ServerError::RestoreCommand { problem: format!("{line} ({})", output.status) })
}

/// What a line of lifeboat's log says, in whichever form it is written (docs/logs.md): the word before its message, and the message.
fn said(line: &str) -> Option<(String, String)> {
    #[derive(serde::Deserialize)]
    struct Line {
        level: String,
        message: String,
    }
    match serde_json::from_str(line) {
        Ok(Line { level, message }) => Some((level, message)),
        Err(_) => line.split_once(": ").map(|(word, message)| (word.to_owned(), message.to_owned())),
    }
}

/// Starts the server in a restored directory and waits until it has recovered and answers.
pub(super) fn start(plan: &DatabasePlan, settings: &RestoreSettings) -> Result<Started, ServerError> {
    let directory = Path::new(&plan.pgdata);
    let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let major = plan.version_num.unwrap_or(0) / 10_000;
    let postgres = program(settings.bin_directory.as_deref(), major, "postgres")?;
    let options = outside_configuration(&directory);
    // Not in the way of a server that runs on this host already.
    let port = (!hydrated_port_is_free(&directory)).then(free_port);
    run_beside_others(&postgres, &directory, &options, port, settings.start_timeout)
}

/// The same as [`run`], on a port that was free when it was looked for: one that somebody else took in between is exchanged for another.
pub(super) fn run_beside_others(
    postgres: &Path,
    directory: &Path,
    options: &[String],
    port: Option<u16>,
    timeout: Duration,
) -> Result<Started, ServerError> {
    let mut port = port;
    for left in (0..3).rev() {
        let all: Vec<String> = options.iter().cloned().chain(port.map(|port| format!("port={port}"))).collect();
        match run(postgres, directory, &all, timeout) {
            // "could not create any TCP/IP sockets" (`src/backend/postmaster/postmaster.c`): before anything of the cluster is touched.
            Err(ServerError::Failed { log, .. }) if left > 0 && log.contains("TCP/IP") => port = Some(free_port()),
            other => return other,
        }
    }
    unreachable!("the last try is given back")
}

/// Starts `postgres` in `directory` with settings, and waits for its first answer out of recovery.
pub(super) fn run(postgres: &Path, directory: &Path, options: &[String], timeout: Duration) -> Result<Started, ServerError> {
    let log_path = directory.join("lifeboat-start.log");
    let spawn_error = |source| ServerError::Spawn { program: postgres.display().to_string(), source };
    let log = fs::File::create(&log_path).map_err(spawn_error)?;
    if let Ok(found) = fs::metadata(directory) {
        let _ = std::os::unix::fs::fchown(&log, Some(found.uid()), Some(found.gid()));
    }
    let mut command = as_owner(postgres, directory);
    command.arg("-D").arg(directory);
    for option in options {
        command.args(["-c", option]);
    }
    command.stdout(log.try_clone().map_err(spawn_error)?).stderr(log);
    // It outlives the operation that starts it, and what its commands do years later is no part of that one's trace.
    command.env_remove(trace_context::VARIABLE).env_remove(trace_context::STATE_VARIABLE);
    // Of its own session, so that a Ctrl-C here does not stop it.
    command.process_group(0);
    let mut child = command.spawn().map_err(spawn_error)?;
    let begun = Instant::now();
    let mut last;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(ServerError::Failed {
                directory: directory.display().to_string(),
                log: last_words(&log_path, &status.to_string()),
            });
        }
        match first_answer(directory) {
            Ok(Some(started)) => {
                // Empty unless something went wrong; PostgreSQL's own logging is elsewhere or here.
                return Ok(Started { read_around: read_around(&log_path), ..started });
            }
            Ok(None) => last = "still in recovery".into(),
            Err(error) if error.is_transient() || matches!(error, PgError::Unreachable { .. }) => last = error.to_string(),
            // It answers, but not to us: that is an answer for the operator.
            Err(error) => return Err(error.into()),
        }
        if begun.elapsed() > timeout {
            return Err(ServerError::Timeout { directory: directory.display().to_string(), seconds: timeout.as_secs(), last });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Stops a server by its process id and waits until it is gone.
pub(super) fn stop(directory: &Path) -> Result<(), ServerError> {
    let Some(pid) =
        server_lines(directory).and_then(|lines| lines.first()?.trim().parse::<i32>().ok()).and_then(rustix::process::Pid::from_raw)
    else {
        return Ok(());
    };
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    for _ in 0..2400 {
        if !directory.join("postmaster.pid").exists() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(ServerError::Timeout { directory: directory.display().to_string(), seconds: 120, last: "it does not stop".into() })
}

/// What `wal fetch` said that recovery read around. (A server with a log collector says it there.)
fn read_around(log: &Path) -> Vec<String> {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let read = text.lines().filter_map(said).filter(|(word, message)| word == "warning" && message.starts_with("read wal/"));
    read.take(crate::artifacts::MAX_KEPT).map(|(_, message)| message).collect()
}

fn last_words(log: &Path, status: &str) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let line = text.lines().rfind(|line| line.contains("FATAL") || line.contains("PANIC")).or(text.lines().last());
    format!("{} ({status}; log: {})", line.unwrap_or("no message").trim(), log.display())
}

/// `postmaster.pid`: process, directory, start time, port, socket directory, address, … (manual, "Database
/// File Layout"; `src/include/utils/pidfile.h`).
pub(crate) fn server_lines(directory: &Path) -> Option<Vec<String>> {
    let text = fs::read_to_string(directory.join("postmaster.pid")).ok()?;
    Some(text.lines().map(str::to_owned).collect())
}

/// How to reach the server that runs in a directory, once it takes connections.
pub(super) fn server_dsn(directory: &Path, database: &str) -> Option<String> {
    let lines = server_lines(directory)?;
    // The file is written line by line while the server starts. Before its state says that it takes connections, the
    // socket's line may be missing, and whoever listens on that port of this host is somebody else.
    if !matches!(lines.get(7)?.trim(), "ready" | "standby") {
        return None;
    }
    let port = lines.get(3)?.trim().to_owned();
    let socket = lines.get(4)?.trim();
    let address = lines.get(5)?.trim();
    let host = match (socket, address) {
        ("", "") => return None,
        ("", "*" | "0.0.0.0") => "127.0.0.1",
        ("", address) => address,
        (socket, _) => socket,
    };
    Some(format!("host={host} port={port} dbname={database}"))
}

/// Runs `work` with the effective user of the directory's owner where we are root: peer authentication, the default of
/// Debian and of initdb's careful users, lets nobody else in. Only this thread changes, and threads that it makes.
pub fn as_directory_owner<T: Send>(directory: &Path, work: impl FnOnce() -> T + Send) -> T {
    let owner = fs::metadata(directory).map(|found| found.uid()).ok().filter(|uid| *uid != 0 && rustix::process::geteuid().is_root());
    let Some(owner) = owner else { return work() };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let _ = rustix::thread::set_thread_res_uid(None, rustix::process::Uid::from_raw(owner), None);
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The first query's answer; `None` while it is still in recovery.
fn first_answer(directory: &Path) -> Result<Option<Started>, PgError> {
    as_directory_owner(directory, || ask_first(directory))
}

fn ask_first(directory: &Path) -> Result<Option<Started>, PgError> {
    // Until the server is ready its addresses are not all there, and what is there may lead to another server on this host.
    let state = server_lines(directory).and_then(|lines| lines.get(7).map(|state| state.trim().to_owned()));
    if state.as_deref() != Some("ready") {
        return Err(PgError::Unreachable { reason: format!("the server is {}", state.as_deref().unwrap_or("starting")) });
    }
    let Some(dsn) = server_dsn(directory, "postgres") else {
        return Err(PgError::Unreachable { reason: "it does not take connections yet".into() });
    };
    let with_user = Dsn::parse(&dsn)?.with("connect_timeout", "5");
    let owner = fs::metadata(directory).ok().and_then(|found| crate::owners::user(found.uid()));
    let mut tried = Connection::open(&with_user, Purpose::Sql);
    // Peer authentication knows the owner's name, and the superuser is usually called postgres.
    for user in [owner.as_deref(), Some("postgres")].into_iter().flatten() {
        if matches!(tried, Err(PgError::Authentication { .. })) {
            tried = Connection::open(&with_user.clone().with("user", user), Purpose::Sql);
        }
    }
    let connection = tried?;
    let row = connection.query(
        "SELECT pg_is_in_recovery() AS recovering, CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn()::text END AS reached, \
         CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END AS file, \
         to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS last_commit",
        &[],
    )?;
    let row = row.one()?;
    if row.bool("recovering")? {
        return Ok(None);
    }
    // The server has written since: where the new timeline began is where recovery ended.
    let timeline = row.get("file")?.get(..8).unwrap_or_default().to_owned();
    let began = fs::read(directory.join("pg_wal").join(format!("{timeline}.history"))).ok().and_then(|history| {
        let timeline = Timeline(u32::from_str_radix(&timeline, 16).ok()?);
        History::parse(timeline, &history).ok()?.parent().map(|parent| parent.switch)
    });
    let endpoint = connection.endpoint();
    let dsn = format!("host={} port={} user={} dbname={}", endpoint.host, endpoint.port, endpoint.user, endpoint.database);
    let reached = began.map_or_else(|| row.parse("reached"), Ok)?;
    Ok(Some(Started {
        dsn,
        reached,
        last_commit: row.parse_opt("last_commit")?,
        warnings: collation_warnings(&connection),
        read_around: Vec::new(),
    }))
}

/// Databases whose collation has another version here than when their indexes were built: those
/// indexes may be wrong (c047, c094). PostgreSQL tells from 15 on.
fn collation_warnings(connection: &Connection) -> Vec<String> {
    if connection.server_version() < 150_000 {
        return Vec::new();
    }
    let sql = "SELECT datname, datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual FROM pg_database
               WHERE datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid) AND datcollversion IS NOT NULL";
    let Ok(rows) = connection.query(sql, &[]) else { return Vec::new() };
    let sentence = |row: crate::postgres::Row<'_>| -> Result<String, PgError> {
        Ok(format!(
            "the collation of database {} has version {} here and had {}: run pg_amcheck --heapallindexed, then REINDEX DATABASE and ALTER DATABASE … REFRESH COLLATION VERSION",
            row.get("datname")?,
            row.get_opt("actual")?.unwrap_or("none"),
            row.get("recorded")?
        ))
    };
    rows.iter().filter_map(|row| sentence(row).ok()).collect()
}

/// Configuration that came from outside the data directory (c031): where it stood may be another host.
fn outside_configuration(directory: &Path) -> Vec<String> {
    let mut options = Vec::new();
    let mut found = Vec::new();
    collect(&directory.join(OUTSIDE), &mut found);
    let named = |name: &str| found.iter().find(|path| path.file_name().is_some_and(|n| n == name)).map(|path| path.display().to_string());
    if let Some(file) = named("postgresql.conf").filter(|_| !directory.join("postgresql.conf").exists()) {
        options.push(format!("config_file={file}"));
    }
    if !found.is_empty() {
        options.push(format!("data_directory={}", directory.display()));
        // Debian's names a file that may be the original server's, which runs on.
        options.push(format!("external_pid_file={}", directory.join("lifeboat-external.pid").display()));
    }
    for (setting, name) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
        options.extend(named(name).map(|file| format!("{setting}={file}")));
    }
    options
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, found) } else { found.push(path) }
    }
}

/// Whether nobody listens on the port that the restored configuration names, nor on its sockets.
fn hydrated_port_is_free(directory: &Path) -> bool {
    let mut files = Vec::new();
    collect(&directory.join(OUTSIDE), &mut files);
    files.extend([directory.join("postgresql.conf"), directory.join("postgresql.auto.conf")]);
    let (mut port, mut sockets) = (5432, "/var/run/postgresql,/tmp".to_owned());
    for text in files.iter().filter(|path| path.extension().is_some_and(|e| e == "conf")).flat_map(fs::read_to_string) {
        for line in text.lines() {
            let Some((name, value)) = line.split('#').next().unwrap_or_default().split_once('=') else { continue };
            let value = value.trim().trim_matches('\'');
            match name.trim().to_ascii_lowercase().as_str() {
                "port" => port = value.parse().unwrap_or(port),
                "unix_socket_directories" => value.clone_into(&mut sockets),
                _ => {}
            }
        }
    }
    // A server that listens on no address holds its sockets all the same.
    let taken = |directory: &str| Path::new(directory.trim().trim_matches('"')).join(format!(".s.PGSQL.{port}.lock")).exists();
    !sockets.split(',').any(taken) && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// A port that nobody listens on now.
pub(super) fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).map_or(54_329, |address| address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_somebody_took_is_exchanged_for_another() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        // Says of its first port what PostgreSQL says of one that is taken, and of the second something else.
        let program = directory.path().join("postgres");
        let script = "#!/bin/sh\necho \"$@\" >>asked\nif [ \"$(wc -l <asked)\" = 1 ]\nthen echo 'FATAL:  could not create any TCP/IP sockets'\nelse echo 'FATAL:  something else'\nfi\nexit 1\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let error = run_beside_others(&program, directory.path(), &["fsync=off".to_owned()], Some(1), Duration::from_secs(60)).unwrap_err();
        assert!(matches!(&error, ServerError::Failed { log, .. } if log.contains("something else")), "{error}");
        let asked = fs::read_to_string(directory.path().join("asked")).unwrap();
        let lines: Vec<&str> = asked.lines().collect();
        assert!(lines.len() == 2 && lines[0].ends_with("-c fsync=off -c port=1"), "{asked}");
        assert!(lines[1].contains("-c fsync=off -c port=") && !lines[1].ends_with("port=1"), "{asked}");
    }

    #[test]
    fn what_a_restore_command_said_is_understood_in_both_forms() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let lines = [
            "warning: read wal/1/00000001: it is damaged; read around",
            "{\"time\":\"2024-03-15T12:00:00Z\",\"level\":\"warning\",\"message\":\"read wal/1/00000002: \\\"x\\\"\",\"more\":1}",
            "{\"level\":\"info\",\"message\":\"read wal/1/00000003\"}",
            "LOG:  read wal/1/00000004",
            "warning: something else",
            "",
        ];
        fs::write(&log, lines.join("\n")).unwrap();
        assert_eq!(read_around(&log), ["read wal/1/00000001: it is damaged; read around", "read wal/1/00000002: \"x\""]);
        assert_eq!(said("error: read it: no"), Some(("error".into(), "read it: no".into())));
    }

    #[test]
    fn a_server_that_has_not_written_its_socket_yet_is_not_looked_for_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let with = |text: &str| {
            fs::write(directory.path().join("postmaster.pid"), text).unwrap();
            server_dsn(directory.path(), "postgres")
        };
        assert_eq!(with("17\n/data\n1700000000\n5432\n\n"), None);
        assert_eq!(with("17\n/data\n1700000000\n5432\n/run/pg\n\n  1 2\nstarting\n"), None);
        assert_eq!(with("17\n/data\n1700000000\n5432\n\n\n  1 2\nready   \n"), None);
        let socket = "host=/run/pg port=5432 dbname=postgres";
        assert_eq!(with("17\n/data\n1700000000\n5432\n/run/pg\n\n  1 2\nstandby \n").as_deref(), Some(socket));
        assert_eq!(with("17\n/data\n1700000000\n5432\n/run/pg\n\n  1 2\nready   \n").as_deref(), Some(socket));
        let address = "host=127.0.0.1 port=5433 dbname=postgres";
        assert_eq!(with("17\n/data\n1700000000\n5433\n\n*\n  1 2\nready   \n").as_deref(), Some(address));
    }
}
