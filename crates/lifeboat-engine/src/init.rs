//! What a host says about the PostgreSQL on it, for its first configuration: where a server listens, where its files and programs are.
//!
//! Only looks, and writes nothing. Must not choose between servers: who asks knows what was typed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use lifeboat_core::postgres::control_file::ControlFile;
use lifeboat_core::wal::SystemId;

use crate::postgres::{ClusterFacts, Connection, Dsn, Endpoint, PgError, Purpose};
use crate::restore::server::program;

/// A Unix socket on which a server listens, or listened until it was killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Its directory.
    pub directory: PathBuf,
    /// The port that is part of its name.
    pub port: u16,
    /// The data directory, as the lock file beside the socket has it: readable for the server's user and root.
    pub data_directory: Option<PathBuf>,
    /// Where the program is that listens: likewise.
    pub bin_directory: Option<PathBuf>,
}

/// What a server said, and what is here of it.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where it was reached, and as whom.
    pub endpoint: Endpoint,
    /// 150018 for 15.18.
    pub version: u32,
    /// Which cluster it is.
    pub system_id: SystemId,
    /// Its files.
    pub files: Files,
    /// Where its programs are on this host, if they are.
    pub bin_directory: Option<PathBuf>,
    /// Whether that is where they would be looked for anyway.
    pub bin_directory_is_usual: bool,
    /// `archive_mode`: `off`, `on` or `always`.
    pub archive_mode: String,
    /// The server is a standby.
    pub in_recovery: bool,
}

/// Where the files of a server are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// In this directory of this host, readable.
    Here(PathBuf),
    /// In this directory, into which this user may not look.
    Closed(PathBuf),
    /// In a directory of this name that is not on this host, or is another cluster's here.
    Elsewhere(PathBuf),
    /// The role may not see it.
    Unknown,
}

/// The sockets in a directory, by port.
pub fn sockets(directory: &Path) -> Vec<Socket> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<Socket> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(".s.PGSQL.")?.parse().ok())
        .map(|port| socket(directory, port))
        .collect();
    found.sort_by_key(|socket| socket.port);
    found
}

/// PostgreSQL's `pg_ctl.h`: process, data directory, start, port, directory of the socket, one a line.
fn socket(directory: &Path, port: u16) -> Socket {
    let lock = fs::read_to_string(directory.join(format!(".s.PGSQL.{port}.lock"))).unwrap_or_default();
    let mut lines = lock.lines();
    let process: Option<u32> = lines.next().and_then(|line| line.trim().parse().ok());
    let data_directory = lines.next().map(PathBuf::from).filter(|path| path.is_absolute());
    let program = process.and_then(|process| fs::read_link(format!("/proc/{process}/exe")).ok());
    let bin_directory = program.as_deref().and_then(Path::parent).map(Path::to_owned);
    Socket { directory: directory.to_owned(), port, data_directory, bin_directory }
}

/// Asks a server what it is.
///
/// # Errors
/// It could not be reached, did not let us in, or is none.
pub fn ask(dsn: &Dsn) -> Result<Server, PgError> {
    let connection = Connection::open(dsn, Purpose::Sql)?;
    let facts = ClusterFacts::read(&connection)?;
    let endpoint = connection.endpoint();
    let files = facts.data_directory.as_ref().map_or(Files::Unknown, |path| files(Path::new(path), facts.system_id, &endpoint));
    let usual = program(None, facts.server_version / 10_000, "postgres").ok().and_then(|path| path.parent().map(Path::to_owned));
    let bin_directory = bin_directory(&connection)?.or_else(|| usual.clone());
    Ok(Server {
        endpoint,
        version: facts.server_version,
        system_id: facts.system_id,
        files,
        bin_directory_is_usual: bin_directory == usual,
        bin_directory,
        archive_mode: facts.archive_mode,
        in_recovery: facts.in_recovery,
    })
}

/// A path that a server has may be one of another host, or of a container; its control file says which cluster is there.
fn files(path: &Path, system_id: SystemId, endpoint: &Endpoint) -> Files {
    match fs::read(path.join("global/pg_control")) {
        Ok(bytes) if ControlFile::decode(&bytes).is_ok_and(|control| control.system_id == system_id) => Files::Here(path.to_owned()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied && endpoint.host.starts_with('/') => Files::Closed(path.to_owned()),
        _ => Files::Elsewhere(path.to_owned()),
    }
}

/// What the server's own build says, if the role may see it and it is on this host.
fn bin_directory(connection: &Connection) -> Result<Option<PathBuf>, PgError> {
    match connection.query("SELECT setting FROM pg_config WHERE name = 'BINDIR'", &[]) {
        Ok(rows) => {
            Ok(rows.iter().next().and_then(|row| row.get("setting").ok().map(PathBuf::from)).filter(|path| path.join("postgres").is_file()))
        }
        Err(PgError::Sql { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn sockets_are_found_by_name_and_kind() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path();
        let _listeners = [".s.PGSQL.5433", ".s.PGSQL.5432", ".s.other.1"].map(|name| UnixListener::bind(path.join(name)).unwrap());
        fs::write(path.join(".s.PGSQL.5434"), "no socket").unwrap();
        let lock = format!("{}\n/var/lib/postgresql/15/main\n1700000000\n5432\n/run\n", std::process::id());
        fs::write(path.join(".s.PGSQL.5432.lock"), lock).unwrap();
        let program = std::env::current_exe().unwrap();
        let expected = |port, data_directory, bin_directory| Socket { directory: path.to_owned(), port, data_directory, bin_directory };
        assert_eq!(
            sockets(path),
            [expected(5432, Some("/var/lib/postgresql/15/main".into()), program.parent().map(Path::to_owned)), expected(5433, None, None)]
        );
        assert_eq!(sockets(&path.join("missing")), []);
    }
}
