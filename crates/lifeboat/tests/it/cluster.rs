//! Real PostgreSQL clusters for tests: made, loaded, stopped, crashed, and started again from restored directories.
//!
//! Every cluster listens on a Unix socket in a directory of its own, so no test depends on a port or on another test.
//! It must not skip: a version that is not installed fails the test and names the command that installs it.
//! It must not use lifeboat: these are the fixtures that lifeboat is held against.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// How long a server may take to start, recover or stop. Generous: it only ends tests that would hang for ever.
const DEADLINE: Duration = Duration::from_secs(180);

/// How often a server's state is looked at.
const POLL: Duration = Duration::from_millis(10);

/// The socket's number; it can be the same for all, because every cluster has its own socket directory.
const SOCKET_PORT: u16 = 5432;

/// A PostgreSQL major version that the tests run against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Postgres {
    /// Debian 12's own, the only one here with TLS.
    V15,
    /// Without TLS and without contrib modules.
    V16,
    /// Without TLS, with contrib modules; data checksums are on by default from this version.
    V18,
}

impl Postgres {
    /// Every version, oldest first.
    pub(crate) const ALL: [Postgres; 3] = [Postgres::V15, Postgres::V16, Postgres::V18];

    /// The major version number.
    pub(crate) fn major(self) -> u32 {
        match self {
            Postgres::V15 => 15,
            Postgres::V16 => 16,
            Postgres::V18 => 18,
        }
    }

    /// The directory of this version's programs. Panics, naming the remedy, where it is not installed.
    pub(crate) fn bin_directory(self) -> PathBuf {
        let variable = format!("LIFEBOAT_TEST_PG{}_BIN", self.major());
        let directory = setting(&variable).unwrap_or_else(|| panic!("{variable} is not set: run scripts/setup test"));
        let directory = PathBuf::from(directory);
        assert!(
            directory.join("postgres").is_file(),
            "PostgreSQL {} is not in {}: run scripts/setup test",
            self.major(),
            directory.display()
        );
        directory
    }

    /// One of this version's programs, `pg_amcheck` for example.
    pub(crate) fn bin(self, program: &str) -> PathBuf {
        let path = self.bin_directory().join(program);
        assert!(path.is_file(), "PostgreSQL {} as installed for tests has no {program}", self.major());
        path
    }
}

impl fmt::Display for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL {}", self.major())
    }
}

/// A setting of the machine's test tools: from the environment, else from the file that `scripts/setup` wrote, so that a plain
/// `cargo test` works too.
pub(crate) fn setting(variable: &str) -> Option<String> {
    if let Ok(value) = std::env::var(variable) {
        return Some(value);
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/env");
    let text = fs::read_to_string(file).ok()?;
    let prefix = format!("export {variable}=");
    let quoted = text.lines().find_map(|line| line.strip_prefix(&prefix))?;
    // As bash's printf %q writes it: a backslash before what is special, two quotes for nothing.
    (quoted != "''").then(|| quoted.replace('\\', ""))
}

/// The user that servers run as: PostgreSQL refuses to run as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
    is_other: bool,
}

impl Owner {
    /// `postgres` when the tests run as root, else whoever runs them.
    pub(crate) fn current() -> Owner {
        let uid = rustix::process::geteuid();
        if !uid.is_root() {
            return Owner { uid: uid.as_raw(), gid: rustix::process::getegid().as_raw(), is_other: false };
        }
        let users = fs::read_to_string("/etc/passwd").expect("a machine has a list of users");
        let fields: Vec<&str> = users
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&"postgres"))
            .expect("no user postgres to run servers as: run scripts/setup test");
        let number = |field: &str| field.parse().expect("user and group ids are numbers");
        Owner { uid: number(fields[2]), gid: number(fields[3]), is_other: true }
    }

    /// The numbers of this user and its group.
    pub(crate) fn ids(self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// Makes `command` run as this user. Its directory and program must be within that user's reach.
    pub(crate) fn run(self, command: &mut Command) -> &mut Command {
        if self.is_other {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Gives one file or directory to this user.
    pub(crate) fn own(self, path: &Path) {
        if self.is_other {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid)).expect("root can give files away");
        }
    }

    /// Gives a directory and all that is in it to this user.
    pub(crate) fn own_tree(self, path: &Path) {
        self.own(path);
        if fs::symlink_metadata(path).expect("the tree is there").is_dir() {
            for entry in fs::read_dir(path).expect("the tree can be listed") {
                self.own_tree(&entry.expect("the tree can be listed").path());
            }
        }
    }
}

/// A directory for a test, with a short name (a socket's path may have 107 bytes), owned by and within reach of the servers' user.
pub(crate) fn temp_dir() -> TempDir {
    let directory = tempfile::Builder::new().prefix("lb-").tempdir_in(reachable_temp()).expect("can make a temporary directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("own directory");
    Owner::current().own(directory.path());
    directory
}

/// The system's directory for temporary files, or `/tmp` where that is closed to other users or too long for a socket.
fn reachable_temp() -> PathBuf {
    let configured = std::env::temp_dir();
    let open = configured.ancestors().all(|directory| fs::metadata(directory).is_ok_and(|m| m.mode() & 0o001 != 0));
    if configured.is_absolute() && configured.as_os_str().len() <= 40 && (open || !Owner::current().is_other) {
        configured
    } else {
        PathBuf::from("/tmp")
    }
}

/// How a server is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Waits for clients.
    Smart,
    /// Disconnects clients, writes a checkpoint.
    Fast,
    /// No checkpoint: the next start is a crash recovery.
    Immediate,
}

/// What a cluster is made of, before it exists. See [`Cluster::builder`].
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    version: Postgres,
    checksums: bool,
    wal_segment_mib: u32,
    own_system_id: bool,
    password: Option<String>,
    tls: bool,
    config: Vec<(String, String)>,
}

impl Builder {
    /// Data checksums; on unless said otherwise.
    pub(crate) fn checksums(mut self, on: bool) -> Builder {
        self.checksums = on;
        self
    }

    /// The size of a WAL segment in MiB, a power of two from 1 to 1024; 16 unless said otherwise.
    pub(crate) fn wal_segment_size(mut self, mib: u32) -> Builder {
        self.wal_segment_mib = mib;
        self
    }

    /// A system identifier that no other cluster has. Without this, clusters made alike are copies of one template and share it.
    pub(crate) fn own_system_id(mut self) -> Builder {
        self.own_system_id = true;
        self
    }

    /// A line for `postgresql.conf`; the value is quoted here.
    pub(crate) fn config(mut self, name: &str, value: &str) -> Builder {
        self.config.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Listens on a free loopback port as well, where a password is asked for with SCRAM.
    pub(crate) fn tcp_scram(mut self, password: &str) -> Builder {
        self.password = Some(password.to_owned());
        self
    }

    /// Only TLS connections over TCP, with a self-signed certificate for `localhost`. PostgreSQL 15 only, the others here are built
    /// without it.
    pub(crate) fn tls(mut self) -> Builder {
        assert_eq!(self.version, Postgres::V15, "{} as installed for tests has no TLS", self.version);
        self.tls = true;
        self
    }

    /// Makes the cluster and starts it.
    pub(crate) fn start(self) -> Cluster {
        let owner = Owner::current();
        let home = temp_dir();
        let data = home.path().join("data");
        if self.own_system_id {
            self.initdb(owner, &data);
        } else {
            let template = self.template(owner);
            let mut copy = Command::new("cp");
            copy.args(["-a", "--reflink=auto", "-T"]).arg(&template).arg(&data).current_dir(home.path());
            expect_success(owner.run(&mut copy));
        }
        self.configure(owner, &data);
        let mut cluster =
            Cluster { version: self.version, owner, data, port: None, password: self.password.clone(), tls: self.tls, server: None, home };
        for attempt in 1.. {
            cluster.port = self.password.as_ref().map(|_| free_port());
            match cluster.launch(&[]) {
                Ok(()) => break,
                // Someone else was quicker to take the port.
                Err(failure) if attempt < 10 && cluster.port.is_some() && failure.log.contains("Address already in use") => {}
                Err(failure) => panic!("{} does not start:\n{failure}", self.version),
            }
        }
        if let Some(password) = &self.password {
            cluster.psql(&format!("ALTER ROLE postgres PASSWORD '{}'", password.replace('\'', "''")));
        }
        cluster
    }

    fn initdb(&self, owner: Owner, data: &Path) {
        let mut initdb = Command::new(self.version.bin("initdb"));
        initdb.arg("-D").arg(data).args(["--no-sync", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"]);
        initdb.arg(format!("--wal-segsize={}", self.wal_segment_mib));
        match (self.checksums, self.version) {
            (true, _) => initdb.arg("--data-checksums"),
            (false, Postgres::V18) => initdb.arg("--no-data-checksums"),
            (false, _) => &mut initdb,
        };
        initdb.current_dir(data.parent().expect("a data directory stands in another"));
        expect_success(owner.run(&mut initdb));
    }

    /// initdb takes most of a second, a copy of what it made a tenth of that. Made once per machine and kept: the name tells the build.
    fn template(&self, owner: Owner) -> PathBuf {
        let real_uid = rustix::process::getuid().as_raw();
        let store = reachable_temp().join(format!("lifeboat-test-templates-{real_uid}"));
        if fs::create_dir(&store).is_ok() {
            fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).expect("own directory");
            owner.own(&store);
        }
        let meta = fs::symlink_metadata(&store).expect("just made or there");
        // Anyone may have made that name in a shared directory; a cluster of theirs would run our tests.
        let (uid, mode) = (meta.uid(), meta.mode());
        // Another test may be between making it and giving it away.
        assert!(meta.is_dir() && (uid == owner.uid || uid == real_uid) && mode & 0o022 == 0, "{} is not ours", store.display());

        let program = fs::metadata(self.version.bin("postgres")).expect("just checked");
        let checksums = if self.checksums { "checksums" } else { "plain" };
        let name = format!("{}-{}-{}-{checksums}-{}", self.version.major(), program.size(), program.mtime(), self.wal_segment_mib);
        let template = store.join(&name);
        if !template.is_dir() {
            let aside = tempfile::Builder::new().prefix(&name).tempdir_in(&store).expect("own directory");
            owner.own(aside.path());
            let made = aside.path().join("data");
            self.initdb(owner, &made);
            // Fails where another test was quicker: then its template serves.
            if let Err(error) = fs::rename(&made, &template) {
                assert!(template.is_dir(), "cannot keep the template: {error}");
            }
        }
        template
    }

    fn configure(&self, owner: Owner, data: &Path) {
        let mut text = String::from("\n# --- the tests' settings ---\n");
        let defaults = [
            // A test source has nothing to lose, and 2 cores' worth of tests would wait for the disk.
            ("fsync", "off"),
            ("shared_buffers", "32MB"),
            ("max_connections", "20"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("log_line_prefix", "%m [%p] "),
            ("jit", "off"),
        ];
        let own = self.config.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in defaults.into_iter().chain(own) {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        if self.tls {
            text.push_str("ssl = on\n");
            let key = data.join("server.key");
            let mut openssl = Command::new("openssl");
            openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
            openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
            openssl.arg("-keyout").arg(&key).arg("-out").arg(data.join("server.crt")).current_dir(data);
            expect_success(owner.run(&mut openssl));
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("own file");
        }
        append(&data.join("postgresql.conf"), &text);
        let over_tcp = if self.tls { "hostssl" } else { "host" };
        let access = format!(
            "local all all trust\nlocal replication all trust\n{over_tcp} all all 127.0.0.1/32 scram-sha-256\n{over_tcp} replication all 127.0.0.1/32 scram-sha-256\n"
        );
        // Truncates in place: the owner and mode that initdb gave it stay.
        fs::write(data.join("pg_hba.conf"), access).expect("own file");
    }
}

/// Why a server did not start or did not finish its recovery: the reason and all it logged.
#[derive(Debug)]
pub(crate) struct StartFailure {
    reason: String,
    /// The server's log.
    pub(crate) log: String,
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; the server's log:\n{}", self.reason, self.log)
    }
}

/// A PostgreSQL cluster. Dropping it stops the server and removes what this fixture made.
#[derive(Debug)]
pub(crate) struct Cluster {
    version: Postgres,
    owner: Owner,
    data: PathBuf,
    port: Option<u16>,
    password: Option<String>,
    tls: bool,
    server: Option<Server>,
    // Last, so that it is removed after the server has ended.
    home: TempDir,
}

#[derive(Debug)]
struct Server {
    postmaster: Child,
    guard: Child,
}

impl Cluster {
    /// A cluster to be made with data checksums, 16 MiB segments, the superuser `postgres` and only a Unix socket.
    pub(crate) fn builder(version: Postgres) -> Builder {
        Builder { version, checksums: true, wal_segment_mib: 16, own_system_id: false, password: None, tls: false, config: Vec::new() }
    }

    /// Starts a data directory that exists, as it is, on a socket of its own. The directory must belong to the servers' user and stays
    /// when the cluster is dropped.
    pub(crate) fn start_existing(data: &Path, version: Postgres) -> Result<Cluster, StartFailure> {
        Cluster::start_directory(data, version, &[])
    }

    fn start_directory(data: &Path, version: Postgres, settings: &[&str]) -> Result<Cluster, StartFailure> {
        let owner = Owner::current();
        let data = data.to_owned();
        let mut cluster = Cluster { version, owner, data, port: None, password: None, tls: false, server: None, home: temp_dir() };
        cluster.launch(settings)?;
        Ok(cluster)
    }

    /// Starts this cluster's server again after [`Cluster::stop`] or [`Cluster::kill9`].
    pub(crate) fn start_again(&mut self) -> Result<(), StartFailure> {
        assert!(self.server.is_none(), "the server is running");
        self.launch(&[])
    }

    fn launch(&mut self, settings: &[&str]) -> Result<(), StartFailure> {
        let home = self.home.path();
        let socket = self.socket_directory();
        if !socket.is_dir() {
            fs::create_dir(&socket).expect("own directory");
            self.owner.own(&socket);
        }
        let log = OpenOptions::new().create(true).append(true).mode(0o644).open(self.log_file()).expect("own directory");
        let mut command = Command::new(self.version.bin("postgres"));
        command.arg("-D").arg(&self.data).args(["-p", &self.port.unwrap_or(SOCKET_PORT).to_string()]);
        // On the command line, so that a copy of this directory never reaches for this cluster's socket or port.
        command.arg("-c").arg(format!("unix_socket_directories={}", socket.display()));
        command.args(["-c", if self.port.is_some() { "listen_addresses=127.0.0.1" } else { "listen_addresses=" }]);
        command.args(["-c", "logging_collector=off", "-c", "log_destination=stderr"]);
        for setting in settings {
            command.args(["-c", setting]);
        }
        clean_environment(&mut command).current_dir(home).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        let postmaster = self.owner.run(&mut command).spawn().expect("postgres is executable by the servers' user");
        let guard = guard(&self.data, home);
        self.server = Some(Server { postmaster, guard });
        let outcome = self.wait_until_ready();
        if outcome.is_err() {
            self.end(Stop::Immediate);
        }
        outcome
    }

    fn wait_until_ready(&mut self) -> Result<(), StartFailure> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Err(self.failure(format!("the server ended with {status}")));
            }
            let server = self.server.as_ref().expect("just started");
            // The eighth line is the state, padded with spaces (PostgreSQL, src/include/utils/pidfile.h).
            let state = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
            if state.lines().next() == Some(server.postmaster.id().to_string().as_str())
                && state.lines().nth(7).is_some_and(|state| state.trim_end() == "ready")
            {
                return Ok(());
            }
            if start.elapsed() > DEADLINE {
                return Err(self.failure("the server did not become ready".to_owned()));
            }
            thread::sleep(POLL);
        }
    }

    /// How the server ended, if it has ended by itself.
    fn ended(&mut self) -> Option<ExitStatus> {
        self.server.as_mut().and_then(|server| server.postmaster.try_wait().expect("own child"))
    }

    fn failure(&self, reason: String) -> StartFailure {
        StartFailure { reason, log: self.log() }
    }

    /// Which PostgreSQL this is.
    pub(crate) fn version(&self) -> Postgres {
        self.version
    }

    /// The data directory.
    pub(crate) fn data_directory(&self) -> &Path {
        &self.data
    }

    /// A directory of this cluster's for a test's own files, writable by the servers' user, gone with the cluster.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        let path = self.home.path().join(name);
        fs::create_dir(&path).expect("a name not used before");
        self.owner.own(&path);
        path
    }

    fn socket_directory(&self) -> PathBuf {
        self.home.path().join("socket")
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// All that the server has logged since the cluster was made.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// A connection string over the Unix socket, for the superuser.
    pub(crate) fn dsn(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.socket_directory().display(), self.port.unwrap_or(SOCKET_PORT))
    }

    /// A connection string over TCP, with the password; with the server's certificate checked where there is TLS.
    pub(crate) fn tcp_dsn(&self) -> String {
        let (port, password) = self.port.zip(self.password.as_ref()).expect("made with tcp_scram");
        let password = password.replace('\\', "\\\\").replace('\'', "\\'");
        let tls = if self.tls {
            format!("sslmode=verify-full sslrootcert={}", self.data.join("server.crt").display())
        } else {
            "sslmode=disable".to_owned()
        };
        format!("host=127.0.0.1 port={port} user=postgres password='{password}' dbname=postgres {tls}")
    }

    /// One of this version's programs with the connection in its environment, to be run as whoever runs the tests.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.version.bin(name));
        clean_environment(&mut command).current_dir(self.home.path());
        command.env("PGHOST", self.socket_directory()).env("PGPORT", self.port.unwrap_or(SOCKET_PORT).to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    /// One of this version's programs.
    pub(crate) fn bin(&self, program: &str) -> PathBuf {
        self.version.bin(program)
    }

    /// Runs a command as the servers' user, in this cluster's directory, and returns what it did.
    pub(crate) fn run_as_owner(&self, command: &mut Command) -> Output {
        self.owner.run(command.current_dir(self.home.path())).stdin(Stdio::null()).output().expect("the command can be run")
    }

    /// Runs SQL statements one by one, each in a transaction of its own, and returns their rows: columns joined with `|`, rows with
    /// newlines.
    pub(crate) fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).unwrap_or_else(|error| panic!("{sql}\n{error}\n{}", self.log()))
    }

    /// As [`Cluster::psql`], with the error as psql printed it.
    pub(crate) fn try_psql(&self, sql: &str) -> Result<String, String> {
        self.try_psql_in("postgres", sql)
    }

    /// As [`Cluster::psql`], in another database.
    pub(crate) fn psql_in(&self, database: &str, sql: &str) -> String {
        self.try_psql_in(database, sql).unwrap_or_else(|error| panic!("{sql}\n{error}\n{}", self.log()))
    }

    fn try_psql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = self.program("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"]);
        let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("psql is executable");
        let mut input = child.stdin.take().expect("piped");
        let sql = sql.to_owned();
        // On a thread: psql may print more than a pipe holds before it has read everything. It may also end early, so a broken pipe is fine.
        let writer = thread::spawn(move || input.write_all(sql.as_bytes()));
        let output = child.wait_with_output().expect("own child");
        let _ = writer.join().expect("writing does not panic");
        if output.status.success() {
            let text = String::from_utf8(output.stdout).expect("the clusters are in UTF-8");
            Ok(text.trim_end_matches('\n').to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Fills pgbench's tables: `scale` × 100 000 accounts, about 16 MB each.
    pub(crate) fn pgbench_init(&self, scale: u32) {
        expect_success(self.program("pgbench").args(["-i", "-q", "-s", &scale.to_string()]));
    }

    /// Runs pgbench's transactions for some seconds.
    pub(crate) fn pgbench_load(&self, seconds: u32) {
        expect_success(self.program("pgbench").args(["-n", "-c", "2", "-T", &seconds.to_string()]));
    }

    /// Runs exactly this many of pgbench's transactions, the same ones for the same seed.
    pub(crate) fn pgbench_transactions(&self, count: u32, seed: u64) {
        expect_success(self.program("pgbench").args(["-n", "-c", "1", "-t", &count.to_string(), "--random-seed", &seed.to_string()]));
    }

    /// Runs pgbench's transactions until the returned load is stopped or dropped.
    pub(crate) fn pgbench_background(&self) -> Load {
        let before = self.psql("SELECT count(*) FROM pgbench_history");
        let log = File::create(self.home.path().join("pgbench.log")).expect("own directory");
        let mut pgbench = self.program("pgbench");
        pgbench.args(["-n", "-c", "2", "-T", "86400"]).process_group(0);
        pgbench.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        let mut load = Load { pgbench: pgbench.spawn().expect("pgbench is executable") };
        // A load that has not begun proves nothing about what runs beside it.
        let start = Instant::now();
        while self.psql("SELECT count(*) FROM pgbench_history") == before {
            assert!(load.is_running() && start.elapsed() < DEADLINE, "pgbench does not run");
            thread::sleep(POLL);
        }
        load
    }

    /// Everything that is in the cluster, as SQL, without what differs between two dumps of the same data.
    pub(crate) fn pg_dump_all(&self) -> String {
        let output = expect_success(self.program("pg_dumpall").args(["--no-sync"]));
        normalise_dump(&String::from_utf8(output.stdout).expect("the clusters are in UTF-8"))
    }

    /// Makes a tablespace in a directory beside the data directory, and returns that directory.
    pub(crate) fn create_tablespace(&self, name: &str) -> PathBuf {
        let directory = self.scratch(&format!("tablespace-{name}"));
        self.psql(&format!("CREATE TABLESPACE \"{name}\" LOCATION '{}'", directory.display()));
        directory
    }

    /// Stops the server and waits until it has ended.
    pub(crate) fn stop(&mut self, mode: Stop) {
        assert!(self.server.is_some(), "the server is not running");
        self.end(mode);
    }

    /// Ends the server and all its processes as a loss of power would, at once.
    pub(crate) fn kill9(&mut self) {
        let mut server = self.server.take().expect("the server is running");
        let children = children_of(server.postmaster.id());
        server.postmaster.kill().expect("own child");
        server.postmaster.wait().expect("own child");
        for &child in &children {
            // Backends end by themselves once their parent is gone, so some may be gone already.
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        let start = Instant::now();
        while children.iter().any(|&child| is_process_running(child)) {
            assert!(start.elapsed() < DEADLINE, "backends survive");
            thread::sleep(POLL);
        }
        dismiss(&mut server.guard);
        remove_shared_memory(&self.data);
    }

    fn end(&mut self, mode: Stop) {
        let Some(mut server) = self.server.take() else { return };
        let signal = match mode {
            Stop::Smart => Signal::TERM,
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        let pid = pid_of(&server.postmaster);
        let start = Instant::now();
        if server.postmaster.try_wait().expect("own child").is_none() {
            rustix::process::kill_process(pid, signal).expect("own child, not waited for");
            while server.postmaster.try_wait().expect("own child").is_none() {
                if start.elapsed() > DEADLINE {
                    let _ = server.postmaster.kill();
                    let _ = server.postmaster.wait();
                    dismiss(&mut server.guard);
                    panic!("the server does not stop in mode {mode:?}:\n{}", self.log());
                }
                thread::sleep(POLL);
            }
        }
        dismiss(&mut server.guard);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(server) = &mut self.server else { return };
        // No panic here: it would hide the failure that unwinds.
        let pid = pid_of(&server.postmaster);
        if matches!(server.postmaster.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process(pid, Signal::QUIT);
            let start = Instant::now();
            while matches!(server.postmaster.try_wait(), Ok(None)) {
                if start.elapsed() > Duration::from_secs(20) {
                    let _ = server.postmaster.kill();
                    let _ = server.postmaster.wait();
                }
                thread::sleep(POLL);
            }
        }
        dismiss(&mut server.guard);
    }
}

/// Starts a restored data directory on a socket of its own, with archiving off, and waits until its recovery has ended and it takes
/// writes. On failure the server's log is returned.
pub(crate) fn restored_cluster(data: &Path, version: Postgres) -> Result<Cluster, StartFailure> {
    // Archiving off: a clone that archives would write its own history into its source's archive.
    let mut cluster = Cluster::start_directory(data, version, &["archive_mode=off"])?;
    let start = Instant::now();
    loop {
        match cluster.try_psql("SELECT pg_is_in_recovery(), pg_is_in_recovery() AND pg_get_wal_replay_pause_state() = 'paused'") {
            Ok(state) if state == "f|f" => return Ok(cluster),
            Ok(state) if state == "t|t" => return Err(cluster.failure("recovery is paused at its target".to_owned())),
            // Recovery goes on, or ended between the two calls, or the server is about to end.
            Ok(_) | Err(_) => {}
        }
        if let Some(status) = cluster.ended() {
            return Err(cluster.failure(format!("the server ended with {status}")));
        }
        if start.elapsed() > DEADLINE {
            return Err(cluster.failure("recovery does not end".to_owned()));
        }
        thread::sleep(POLL);
    }
}

/// A pgbench that runs until it is stopped.
#[derive(Debug)]
pub(crate) struct Load {
    pgbench: Child,
}

impl Load {
    /// Whether it has not ended by itself, which it does when the server goes away.
    pub(crate) fn is_running(&mut self) -> bool {
        self.pgbench.try_wait().expect("own child").is_none()
    }

    /// Ends the load. Panics if it had ended before.
    pub(crate) fn stop(mut self) {
        assert!(self.is_running(), "the load ended before the test ended it");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.pgbench.kill();
        let _ = self.pgbench.wait();
    }
}

/// Runs a command to its end and returns what it printed; panics with all of it if it fails.
pub(crate) fn expect_success(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Nothing of the caller's: a stray `PGOPTIONS` or `LC_ALL` would change what a test tests.
fn clean_environment(command: &mut Command) -> &mut Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("LC_ALL", "C.UTF-8").env("TZ", "UTC")
}

/// A process that ends the server and removes its directory when the test's process dies without unwinding: it reads from a pipe that
/// only the test's process holds open.
fn guard(data: &Path, home: &Path) -> Child {
    let script = r#"
        read -r _
        pid=$(head -n 1 "$1/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null
        n=0; while [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
        rm -rf "$2""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "guard"]).args([data, home]).process_group(0).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("there is a shell")
}

fn dismiss(guard: &mut Child) {
    let _ = guard.kill();
    let _ = guard.wait();
}

/// A port that was free a moment ago. Another process may take it before the server does; then the caller tries again.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    listener.local_addr().expect("bound").port()
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).open(path).expect("own file");
    file.write_all(text.as_bytes()).expect("own file");
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process ids are positive i32")).expect("never 0")
}

/// The fields of `/proc/<pid>/stat` after the program's name: state, parent, …
fn process_state(pid: &OsStr) -> Option<(char, u32)> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn children_of(parent: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("Linux").flatten().map(|entry| entry.file_name());
    processes
        .filter(|name| process_state(name).is_some_and(|(_, its_parent)| its_parent == parent))
        .filter_map(|name| Pid::from_raw(name.to_str()?.parse().ok()?))
        .collect()
}

fn is_process_running(pid: Pid) -> bool {
    process_state(OsStr::new(&pid.as_raw_nonzero().to_string())).is_some_and(|(state, _)| state != 'Z')
}

/// A killed server leaves a small System V segment behind, of which a machine has a limited number. The seventh line of
/// `postmaster.pid` is its key and id.
fn remove_shared_memory(data: &Path) {
    let state = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    if let Some(id) = state.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
        let _ = Command::new("ipcrm").args(["-m", id]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// Drops comments and the random tokens that newer pg_dump writes (`\restrict`), but nothing between `COPY` and `\.`: that is data.
fn normalise_dump(dump: &str) -> String {
    let mut kept = String::with_capacity(dump.len());
    let mut in_data = false;
    for line in dump.lines() {
        let noise = line.is_empty() || line.starts_with("--") || line.starts_with("\\restrict") || line.starts_with("\\unrestrict");
        if in_data || !noise {
            kept.push_str(line);
            kept.push('\n');
        }
        in_data = if in_data { line != "\\." } else { line.starts_with("COPY ") && line.ends_with(" FROM stdin;") };
    }
    kept
}
