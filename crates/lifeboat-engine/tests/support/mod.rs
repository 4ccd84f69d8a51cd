//! A real PostgreSQL server of its own for a test: made in a temporary directory, ended by process id.
//!
//! Must not share anything between tests. Programs come from `LIFEBOAT_TEST_PG_BIN`, else from Debian's PostgreSQL 15.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat_engine::postgres::{Connection, Dsn, Purpose};

pub(crate) fn bin_directory() -> PathBuf {
    std::env::var_os("LIFEBOAT_TEST_PG_BIN").map_or_else(|| "/usr/lib/postgresql/15/bin".into(), PathBuf::from)
}

/// PostgreSQL refuses to run as root: the user to run it as, where we are root.
fn server_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let ids = |name: &str| {
        let fields: Vec<_> = passwd.lines().find(|line| line.starts_with(&format!("{name}:")))?.split(':').collect();
        Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
    };
    Some(ids("postgres").or_else(|| ids("nobody")).expect("a user to run PostgreSQL as"))
}

pub(crate) fn give_to_server(path: &Path) {
    if let Some((uid, gid)) = server_user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// A program of PostgreSQL, to be run as the server's user, blind to the environment of whoever runs the tests.
pub(crate) fn program(name: &str) -> Command {
    program_of(&bin_directory(), name)
}

/// The same of another installation.
pub(crate) fn program_of(bin: &Path, name: &str) -> Command {
    let mut command = Command::new(bin.join(name));
    command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").current_dir("/").stdin(Stdio::null());
    if let Some((uid, gid)) = server_user() {
        command.uid(uid).gid(gid);
    }
    command
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

pub(crate) struct Cluster {
    // Dropped after `drop` ended the server.
    directory: tempfile::TempDir,
    pub(crate) port: u16,
    bin: PathBuf,
    server: Option<Child>,
}

impl Cluster {
    /// A cluster that is not started.
    pub(crate) fn init() -> Self {
        Self::init_by(&bin_directory())
    }

    /// A cluster of another version.
    pub(crate) fn init_by(bin: &Path) -> Self {
        let mut cluster = Self::empty();
        bin.clone_into(&mut cluster.bin);
        run(program_of(bin, "initdb").arg("-D").arg(cluster.data()).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            "--data-checksums",
        ]));
        cluster.configure("wal_level = replica\nmax_wal_senders = 6\nfsync = off\nautovacuum = off\nshared_buffers = 16MB\n");
        cluster
    }

    /// A place for a cluster, with an empty data directory.
    pub(crate) fn empty() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        give_to_server(directory.path());
        // Free now; nobody else on the machine is likely to be given it before the server asks.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let cluster = Self { directory, port, bin: bin_directory(), server: None };
        cluster.make_directory("data");
        fs::set_permissions(cluster.data(), fs::Permissions::from_mode(0o700)).unwrap();
        cluster
    }

    pub(crate) fn running() -> Self {
        let mut cluster = Self::init();
        cluster.start();
        cluster
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(crate) fn make_directory(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir(&path).unwrap();
        give_to_server(&path);
        path
    }

    /// Appends to `postgresql.conf`.
    pub(crate) fn configure(&self, lines: &str) {
        let path = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&path).unwrap() + lines;
        fs::write(&path, text).unwrap();
    }

    pub(crate) fn start(&mut self) {
        assert!(self.try_start(), "{}", self.log());
    }

    /// False where the server ends by itself.
    pub(crate) fn try_start(&mut self) -> bool {
        let log = fs::File::create(self.directory.path().join("log")).unwrap();
        let mut command = program_of(&self.bin, "postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-k"]).arg(self.directory.path());
        command.args(["-c", "listen_addresses=127.0.0.1"]).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(command.spawn().unwrap());
        let give_up = Instant::now() + Duration::from_secs(120);
        while let Err(error) = Connection::open(&self.dsn(), Purpose::Sql) {
            let server = self.server.as_mut().expect("spawned above");
            if server.try_wait().unwrap().is_some() {
                self.server = None;
                return false;
            }
            assert!(error.is_transient(), "{error}\n{}", self.log());
            assert!(Instant::now() < give_up, "{error}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // SIGQUIT is immediate shutdown: the postmaster takes its children along.
            let pid = rustix::process::Pid::from_child(&server);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            let _ = server.wait();
        }
    }

    /// The superuser over the socket.
    pub(crate) fn dsn(&self) -> Dsn {
        Dsn::parse(&format!("host={} port={} user=postgres dbname=postgres", self.directory.path().display(), self.port)).unwrap()
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(&self.dsn(), Purpose::Sql).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}
