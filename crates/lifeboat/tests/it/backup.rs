//! `lifeboat backup` against real servers: what a backup must get right, named after the lines of the project's list.
//!
//! The fixtures here (a place with keys and a repository, servers that lifeboat started, heartbeats) serve the other modules too.
//! It must not look inside the repository for what the program should tell.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Builder, Cluster, Owner, Postgres, StartFailure, Stop, expect_success, restored_cluster, temp_dir};
use crate::orchestrator;
use crate::program::{Output, Program};

/// Ends tests that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(120);

/// Every version and both physical ways once: where a line of the list is tested, not every pair of them. All pairs run whole cycles.
pub(crate) const EACH: [(Postgres, &str); 3] = [(Postgres::V15, "local"), (Postgres::V16, "stream"), (Postgres::V18, "local")];

/// Keys, a repository's place, and room for what comes back.
pub(crate) struct Site {
    pub(crate) home: TempDir,
    /// Sockets of servers that lifeboat starts: a directory of its own, so that tests run side by side.
    sockets: TempDir,
}

impl Site {
    pub(crate) fn new() -> Site {
        let site = Site { home: temp_dir(), sockets: temp_dir() };
        site.program().args(["key", "generate"]).run().success();
        site
    }

    /// lifeboat with this site's repository.
    pub(crate) fn program(&self) -> Program {
        Program::new(&self.home).arg("--repository").arg(self.repository())
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.home.path().join("repository")
    }

    /// A place for something that comes back.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A cluster whose restored copies listen only in this site's socket directory.
    pub(crate) fn cluster(&self, version: Postgres) -> Builder {
        let directory = self.sockets.path().to_str().expect("made from ASCII");
        Cluster::builder(version).config("unix_socket_directories", directory).config("listen_addresses", "")
    }

    /// A configuration file with these lines.
    pub(crate) fn configuration(&self, text: &str) -> PathBuf {
        let path = self.place("lifeboat-test.toml");
        fs::write(&path, text).expect("own directory");
        path
    }

    /// `lifeboat backup` of a cluster, not yet run.
    pub(crate) fn backup_of(&self, cluster: &Cluster, copy: &str) -> Program {
        let program = Program::new(&self.home).env("LIFEBOAT_DSN", cluster.dsn()).env("PGDATA", cluster.data_directory());
        let program = program.env("LIFEBOAT_PG_BIN", cluster.version().bin_directory());
        program.args(["backup", "--json", "--include-postgres", "--copy", copy, "--output"]).arg(self.repository())
    }

    /// Takes a backup that must be healthy.
    #[track_caller]
    pub(crate) fn backup(&self, cluster: &Cluster, copy: &str) -> Value {
        self.backup_of(cluster, copy).run().success().json()
    }

    /// `lifeboat restore`, not yet run.
    pub(crate) fn restore_of(&self, backup: &str, to: &Path, version: Postgres) -> Program {
        let program = self.program().args(["restore", backup, "--json", "--pgdata"]).arg(to);
        program.arg("--bin-directory").arg(version.bin_directory())
    }

    /// Restores the latest backup's database into a new place and returns it.
    #[track_caller]
    pub(crate) fn restore(&self, name: &str, version: Postgres) -> PathBuf {
        let to = self.place(name);
        self.restore_of("latest", &to, version).run().success();
        to
    }

    /// Restores the latest backup and has lifeboat start it.
    #[track_caller]
    pub(crate) fn restore_and_start(&self, name: &str, version: Postgres) -> Running {
        let to = self.place(name);
        let output = self.restore_of("latest", &to, version).arg("--start").run();
        Running::new(&to, version, &output.success())
    }

    /// The backups that `lifeboat list` shows.
    #[track_caller]
    pub(crate) fn list(&self) -> Vec<Value> {
        let document = self.program().args(["list", "--json"]).run().success().json();
        document["backups"].as_array().expect("an array").clone()
    }
}

/// A server that lifeboat started and left running; it ends with this value.
pub(crate) struct Running {
    data: PathBuf,
    version: Postgres,
    pub(crate) dsn: String,
    pub(crate) report: Value,
}

impl Running {
    #[track_caller]
    pub(crate) fn new(data: &Path, version: Postgres, output: &Output) -> Running {
        let report = output.json();
        let dsn = report["measured"]["dsn"].as_str().unwrap_or_else(|| panic!("no dsn\n{output}")).to_owned();
        Running { data: data.to_owned(), version, dsn, report }
    }

    #[track_caller]
    pub(crate) fn psql(&self, sql: &str) -> String {
        let mut psql = Command::new(self.version.bin("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-c", sql]).arg(&self.dsn).current_dir("/");
        // As the owner: a cluster made from a dump lets nobody else in.
        let output = expect_success(Owner::current().run(&mut psql));
        String::from_utf8(output.stdout).expect("the clusters are in UTF-8").trim_end_matches('\n').to_owned()
    }

    fn end(&self, signal: Signal) {
        let file = self.data.join("postmaster.pid");
        let pid = || fs::read_to_string(&file).ok()?.lines().next()?.trim().parse().ok().and_then(Pid::from_raw);
        let Some(pid) = pid() else { return };
        let _ = rustix::process::kill_process(pid, signal);
        let begun = Instant::now();
        while file.exists() && begun.elapsed() < DEADLINE {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it with a checkpoint and returns its directory.
    pub(crate) fn stop(self) -> PathBuf {
        self.end(Signal::INT);
        self.data.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Signal::QUIT);
    }
}

/// An LSN as the server prints it.
pub(crate) fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap_or_else(|| panic!("not an LSN: {text}"));
    let number = |hex| u64::from_str_radix(hex, 16).expect("hex");
    (number(high) << 32) | number(low)
}

/// Runs `work` while heartbeats are written, and returns the number of each with a WAL position at which it was committed.
pub(crate) fn with_heartbeats<T>(cluster: &Cluster, work: impl FnOnce() -> T) -> (T, Vec<(u64, u64)>) {
    let beat = || {
        let text = cluster.psql("INSERT INTO heartbeat DEFAULT VALUES RETURNING n; SELECT pg_current_wal_insert_lsn()");
        let (n, at) = text.split_once('\n').expect("two rows");
        (n.parse().expect("a number"), lsn(at))
    };
    let first = beat();
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let beats = scope.spawn(|| {
            let mut beats = vec![first];
            while !end.load(Ordering::SeqCst) {
                beats.push(beat());
            }
            beats.push(beat());
            beats
        });
        let result = work();
        end.store(true, Ordering::SeqCst);
        (result, beats.join().expect("the server takes heartbeats"))
    })
}

/// `pg_verifybackup`, with the WAL in the restored directory.
#[track_caller]
pub(crate) fn pg_verifybackup(version: Postgres, data: &Path) {
    let mut command = Command::new(version.bin("pg_verifybackup"));
    let output = Owner::current().run(command.arg(data).current_dir("/")).output().expect("it can be run");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn pg_checksums(version: Postgres, data: &Path) {
    let mut command = Command::new(version.bin("pg_checksums"));
    expect_success(Owner::current().run(command.args(["--check", "-D"]).arg(data).current_dir("/")));
}

/// `pg_amcheck` over every database, where the extension is installed.
#[track_caller]
fn pg_amcheck(cluster: &Cluster) {
    if cluster.version() == Postgres::V16 {
        return;
    }
    let tables = "SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'";
    expect_success(cluster.program("pg_amcheck").args(["--all", "--install-missing", "--heapallindexed", "--rootdescend"]));
    assert_eq!(cluster.psql(tables), "1");
}

/// Waits until `true` comes back from the server.
fn wait_for(cluster: &Cluster, what: &str) {
    let begun = Instant::now();
    while cluster.psql(&format!("SELECT coalesce(bool_or(ok), false) FROM ({what}) AS x(ok)")) != "t" {
        assert!(begun.elapsed() < DEADLINE, "never true: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a backup has begun to copy, and returns the process of the server that belongs to it.
fn wait_for_copy(cluster: &Cluster, copy: &str) -> String {
    let sessions = match copy {
        // Between its last question before the copy and its first one after it.
        "local" => {
            "SELECT pid FROM pg_stat_activity WHERE state = 'idle' AND query LIKE '%pg_control_recovery%' AND pid <> pg_backend_pid()
                 AND state_change < clock_timestamp() - interval '200 milliseconds'"
        }
        _ => "SELECT pid FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'",
    };
    wait_for(cluster, &format!("SELECT true FROM ({sessions}) AS s"));
    cluster.psql(&format!("{sessions} LIMIT 1"))
}

/// A backup that takes some seconds, so that things can happen meanwhile.
fn slow_backup(site: &Site, cluster: &Cluster, copy: &str) -> Program {
    let configuration = site.configuration("[limits]\nbandwidth = \"8MiB\"\nworkers = 1\n");
    site.backup_of(cluster, copy).arg("--config").arg(configuration)
}

fn end(child: &mut Child) {
    child.kill().expect("own child");
    child.wait().expect("own child");
}

/// Files below a directory by path, without their bytes.
pub(crate) fn tree(root: &Path) -> BTreeMap<String, fs::Metadata> {
    fn walk(root: &Path, directory: &Path, found: &mut BTreeMap<String, fs::Metadata>) {
        for entry in fs::read_dir(directory).expect("own directory") {
            let path = entry.expect("own directory").path();
            let meta = fs::symlink_metadata(&path).expect("nobody removes it");
            if meta.is_dir() {
                walk(root, &path, found);
            }
            found.insert(path.strip_prefix(root).expect("below it").display().to_string(), meta);
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

/// The path of a relation's file, relative to the data directory.
fn relation_file(cluster: &Cluster, relation: &str) -> String {
    cluster.psql(&format!("SELECT pg_relation_filepath('{relation}')"))
}

/// Everything that a cluster should bring back: tables with data, a second database, roles, a sequence.
fn fill(cluster: &Cluster) {
    orchestrator::install(cluster, 200);
    cluster.psql(
        "CREATE ROLE builder LOGIN PASSWORD 'secret' CONNECTION LIMIT 7;
         CREATE TABLE toasted (id int PRIMARY KEY, body text);
         ALTER TABLE toasted ALTER COLUMN body SET STORAGE EXTERNAL;
         INSERT INTO toasted SELECT i, repeat(md5(i::text), 2000) FROM generate_series(1, 30) i;
         CREATE DATABASE other OWNER builder",
    );
    cluster.psql_in("other", "CREATE TABLE note (text text); INSERT INTO note VALUES ('kept')");
}

const BALANCE: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";

/// Backs a loaded cluster up, restores it, and holds the copy against what had been committed; then the same for the quiet cluster,
/// whose copy must be identical.
fn cycle(site: &Site, cluster: &mut Cluster, copy: &str, dsn: &str) {
    let version = cluster.version();
    fill(cluster);
    cluster.pgbench_init(1);
    let before: u64 = orchestrator::beat(cluster);
    let mut load = cluster.pgbench_background();
    let run = || site.backup_of(cluster, copy).env("LIFEBOAT_DSN", dsn).run().success().json();
    let (taken, beats) = with_heartbeats(cluster, run);
    assert!(load.is_running());
    load.stop();
    let postgres = &taken["manifest"]["postgres"];
    assert_eq!(postgres["copy"], copy);
    assert_eq!(postgres["version_num"].as_u64().expect("known") / 10_000, u64::from(version.major()));
    assert!(!taken.to_string().contains("secret"), "no password in a manifest: {taken}");

    let verified = site.program().args(["verify", "--all", "--json"]).run().success().json();
    assert_eq!(verified["verdict"], "verified");
    let shown = site.program().args(["show", "latest", "--json"]).run().success();
    assert!(shown.stdout.contains(taken["backup"].as_str().expect("an id")), "{shown}");
    let listed = site.list();
    assert_eq!((listed.len(), &listed[0]["backup"], &listed[0]["state"]), (1, &taken["backup"], &Value::from("healthy")));
    assert_eq!(listed[0]["signature"], "valid");

    let must_have = match postgres["stop_lsn"].as_str() {
        // Every commit that was done before the copy's end.
        Some(stop) => beats.iter().filter(|(_, at)| *at <= lsn(stop)).map(|(n, _)| *n).max().expect("some before the end"),
        None => before,
    };
    let restored = if copy == "logical" {
        let running = site.restore_and_start("loaded", version);
        assert_eq!(running.psql(BALANCE), "t");
        Cluster::start_existing(&opened(running.stop()), version)
    } else {
        let data = site.restore("loaded", version);
        pg_verifybackup(version, &data);
        restored_cluster(&data, version)
    };
    let restored = restored.unwrap_or_else(|failure| panic!("{failure}"));
    let last = orchestrator::last_beat(&restored);
    assert!(last >= must_have, "heartbeat {must_have} was committed, the last that came back is {last}");
    assert_eq!(restored.psql("SELECT count(*) FROM heartbeat"), last.to_string(), "one is missing in the middle");
    assert_eq!(restored.psql(BALANCE), "t");
    pg_amcheck(&restored);
    drop(restored);

    cluster.psql("CHECKPOINT");
    let expected = cluster.pg_dump_all();
    let quiet = site.backup_of(cluster, copy).env("LIFEBOAT_DSN", dsn).run().success().json();
    assert_ne!(quiet["backup"], taken["backup"]);
    let running = site.restore_and_start("quiet", version);
    assert_eq!(running.report["backup"], quiet["backup"], "the latest one");
    assert_eq!(running.report["verdict"], "verified");
    assert!(running.report["measured"]["first_query_seconds"].as_f64().expect("it was started") > 0.0);
    assert_eq!(running.psql("SELECT pg_is_in_recovery()"), "f");
    let data = opened(running.stop());
    pg_checksums(version, &data);
    let again = Cluster::start_existing(&data, version).unwrap_or_else(|failure| panic!("{failure}"));
    let found = again.pg_dump_all();
    assert!(found == expected, "the restored cluster differs:\n{}", first_difference(&expected, &found));
}

/// A cluster made from a dump lets only its owner in; the fixtures come as whoever runs the tests.
fn opened(data: PathBuf) -> PathBuf {
    fs::write(data.join("pg_hba.conf"), "local all all trust\n").expect("own directory");
    data
}

fn first_difference(expected: &str, found: &str) -> String {
    let (mut a, mut b) = (expected.lines(), found.lines());
    loop {
        match (a.next(), b.next()) {
            (a, b) if a != b => return format!("expected {a:?}\nfound    {b:?}"),
            (None, None) => return String::from("only in line ends"),
            _ => {}
        }
    }
}

fn cycle_over_socket(version: Postgres, copy: &str) {
    let site = Site::new();
    let mut cluster = site.cluster(version).start();
    let dsn = cluster.dsn();
    cycle(&site, &mut cluster, copy, &dsn);
}

#[test]
fn local_backups_of_15_come_back() {
    cycle_over_socket(Postgres::V15, "local");
}

#[test]
fn local_backups_of_16_come_back() {
    cycle_over_socket(Postgres::V16, "local");
}

#[test]
fn local_backups_of_18_come_back() {
    cycle_over_socket(Postgres::V18, "local");
}

#[test]
fn streamed_backups_of_15_come_back() {
    cycle_over_socket(Postgres::V15, "stream");
}

#[test]
fn streamed_backups_of_16_come_back() {
    cycle_over_socket(Postgres::V16, "stream");
}

#[test]
fn streamed_backups_of_18_come_back() {
    cycle_over_socket(Postgres::V18, "stream");
}

#[test]
fn logical_backups_of_15_come_back() {
    cycle_over_socket(Postgres::V15, "logical");
}

#[test]
fn logical_backups_of_16_come_back() {
    cycle_over_socket(Postgres::V16, "logical");
}

#[test]
fn logical_backups_of_18_come_back() {
    cycle_over_socket(Postgres::V18, "logical");
}

#[test]
fn streamed_backups_over_tcp_with_scram_come_back() {
    let site = Site::new();
    let mut cluster = site.cluster(Postgres::V16).tcp_scram("it's \\ secret").start();
    let dsn = cluster.tcp_dsn();
    cycle(&site, &mut cluster, "stream", &dsn);
}

#[test]
fn streamed_backups_over_tls_come_back() {
    let site = Site::new();
    let mut cluster = site.cluster(Postgres::V15).tcp_scram("it's \\ secret").tls().start();
    let dsn = cluster.tcp_dsn();
    cycle(&site, &mut cluster, "stream", &dsn);
    let wrong = cluster.tcp_dsn().replace("secret", "guess");
    let output = site.backup_of(&cluster, "stream").env("LIFEBOAT_DSN", wrong).run().expect_code(12);
    assert!(!output.stderr.contains("guess"), "{output}");
}

#[test]
fn c001_backup_label_is_the_servers_and_c002_without_it_nothing_starts() {
    for (version, copy) in EACH {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        let taken = site.backup(&cluster, copy);
        // Behind the backup, so that a recovery that begins at the wrong checkpoint has something to get wrong.
        let data = site.restore("restored", version);
        let label = fs::read_to_string(data.join("backup_label")).unwrap();
        let physical = &taken["manifest"]["postgres"];
        let line = format!(
            "START WAL LOCATION: {} (file {})\n",
            physical["start_lsn"].as_str().unwrap(),
            physical["wal"]["first"].as_str().unwrap()
        );
        assert!(label.starts_with(&line), "{label}");
        assert!(label.contains(&format!("LABEL: lifeboat {}\n", taken["backup"].as_str().unwrap())), "{label}");
        assert!(label.ends_with(&format!("START TIMELINE: {}\n", physical["timeline"])), "{label}");
        // A streamed backup's manifest is the server's own: it has the label's digest.
        pg_verifybackup(version, &data);

        fs::rename(data.join("backup_label"), data.join("gone")).unwrap();
        let failure = restored_cluster(&data, version).unwrap_err();
        assert!(
            failure.log.contains("could not locate a valid checkpoint record") || failure.log.contains("invalid checkpoint"),
            "{failure}"
        );
        fs::rename(data.join("gone"), data.join("backup_label")).unwrap();
        restored_cluster(&data, version).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn c003_tablespaces_come_back_elsewhere() {
    for (version, copies) in [(Postgres::V15, &["local", "stream"][..]), (Postgres::V16, &["stream"]), (Postgres::V18, &["local"])] {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        let original = cluster.create_tablespace("fast disk");
        let second = cluster.create_tablespace("slow");
        cluster.psql("CREATE TABLE far (n int) TABLESPACE \"fast disk\"; INSERT INTO far SELECT generate_series(1, 1000)");
        cluster.psql("CREATE TABLE near (n int); CREATE INDEX near_far ON near (n) TABLESPACE slow; INSERT INTO near VALUES (17)");
        // Somebody else's, in the same place (c027).
        fs::create_dir(original.join("PG_9.6_201608131")).unwrap();
        fs::write(original.join("PG_9.6_201608131/file"), "of another cluster").unwrap();
        for &copy in copies {
            site.backup(&cluster, copy);
            let to = site.place(copy);
            // The original is in the way: refused, and nothing is written.
            let output = site.restore_of("latest", &to, version).run().expect_code(1);
            assert!(output.stderr.contains("not empty") && !to.exists(), "{output}");
            let unknown = site.restore_of("latest", &to, version).args(["--tablespace", "none=/x"]).run().expect_code(2);
            assert!(unknown.stderr.contains("none") && !to.exists(), "{unknown}");

            let (fast, slow) = (site.place(&format!("{copy} fast")), site.place(&format!("{copy}-slow")));
            let restore = site.restore_of("latest", &to, version);
            let output = restore.arg("--tablespace").arg(format!("fast disk={}", fast.display()));
            output.arg("--tablespace").arg(format!("slow={}", slow.display())).run().success();
            pg_verifybackup(version, &to);
            assert!(!fast.join("PG_9.6_201608131").exists());
            let restored = restored_cluster(&to, version).unwrap_or_else(|failure| panic!("{failure}"));
            assert_eq!(restored.psql("SELECT sum(n) FROM far"), "500500");
            assert_eq!(restored.psql("SET enable_seqscan = off; SELECT n FROM near WHERE n = 17"), "17");
            let locations = "SELECT string_agg(pg_tablespace_location(oid), '|' ORDER BY spcname) FROM pg_tablespace WHERE oid > 16000";
            assert_eq!(restored.psql(locations), format!("{}|{}", fast.display(), slow.display()));
            assert!(fs::read_dir(&second).unwrap().next().is_some());
        }
        assert_eq!(cluster.psql("SELECT count(*) FROM far"), "1000", "the original is as it was");
    }
}

#[test]
fn c004_a_backup_whose_session_ended_is_none() {
    for (version, copy) in EACH {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        let mut child = slow_backup(&site, &cluster, copy).spawn();
        let session = wait_for_copy(&cluster, copy);
        assert_eq!(cluster.psql(&format!("SELECT pg_terminate_backend({session})")), "t");
        let status = child.wait().unwrap();
        let complaint = fs::read_to_string(site.place("stderr")).unwrap();
        assert_eq!(status.code(), Some(1), "{complaint}");
        assert!(!complaint.contains("panicked"), "{complaint}");
        assert!(site.list().is_empty());
        wait_for(&cluster, "SELECT count(*) = 0 FROM pg_replication_slots");
        // Nothing stands in the way of the next one.
        site.backup(&cluster, copy);
        assert_eq!(site.list().len(), 1);
    }
}

#[test]
fn c009_c011_tables_come_and_go_and_shrink_while_they_are_copied() {
    for (version, copy) in EACH {
        let site = Site::new();
        let cluster = site.cluster(version).config("autovacuum", "off").start();
        orchestrator::install(&cluster, 10);
        cluster.psql("CREATE TABLE shrinking (n int, pad text); CREATE TABLE stable (n int); INSERT INTO stable VALUES (1)");
        let fill = "INSERT INTO shrinking SELECT i, repeat('x', 500) FROM generate_series(1, 3000) i";
        cluster.psql(fill);
        for i in 0..40 {
            cluster.psql(&format!("CREATE TABLE old_{i} AS SELECT generate_series(1, 100) n"));
        }
        cluster.psql("CREATE DATABASE doomed; CHECKPOINT");
        let end = AtomicBool::new(false);
        let (taken, beats, rounds) = thread::scope(|scope| {
            let churn = scope.spawn(|| {
                let mut round = 0;
                while !end.load(Ordering::SeqCst) || round == 0 {
                    // DROP and TRUNCATE unlink at once, VACUUM cuts, CHECKPOINT writes: all of it on disk while the copy reads.
                    cluster.psql(&format!(
                        "DROP TABLE IF EXISTS old_{round}; CREATE TABLE new_{round} AS SELECT generate_series(1, 500) n;
                         DELETE FROM shrinking WHERE n > 5; VACUUM (TRUNCATE) shrinking; CHECKPOINT; {fill};
                         CREATE TABLE brief AS SELECT generate_series(1, 5000) n; CHECKPOINT; DROP TABLE brief;
                         CREATE TABLE cut AS SELECT 1; TRUNCATE cut; DROP TABLE cut"
                    ));
                    if round == 1 {
                        cluster.psql("DROP DATABASE doomed");
                    }
                    round += 1;
                    // Every round makes megabytes of WAL, which the backup has to bring along.
                    thread::sleep(Duration::from_millis(300));
                }
                round
            });
            let (taken, beats) = with_heartbeats(&cluster, || slow_backup(&site, &cluster, copy).run());
            end.store(true, Ordering::SeqCst);
            (taken.success().json(), beats, churn.join().expect("the server takes it"))
        });
        assert!(rounds > 1, "nothing happened meanwhile");
        let data = site.restore("restored", version);
        pg_verifybackup(version, &data);
        let restored = restored_cluster(&data, version).unwrap_or_else(|failure| panic!("{failure}"));
        let stop = lsn(taken["manifest"]["postgres"]["stop_lsn"].as_str().unwrap());
        let must_have = beats.iter().filter(|(_, at)| *at <= stop).map(|(n, _)| *n).max().unwrap();
        assert!(orchestrator::last_beat(&restored) >= must_have);
        assert_eq!(restored.psql("SELECT n FROM stable"), "1");
        assert_eq!(restored.psql("SELECT count(*) > 0 FROM shrinking WHERE length(pad) = 500"), "t");
        pg_amcheck(&restored);
    }
}

/// Makes a table with damage in block 3 that PostgreSQL has not seen yet, and returns its file.
fn damage_a_page(cluster: &mut Cluster) -> String {
    cluster.psql(
        "CREATE TABLE sound AS SELECT generate_series(1, 1000) n;
         CREATE TABLE damaged AS SELECT i n, repeat('x', 100) pad FROM generate_series(1, 2000) i; VACUUM FREEZE damaged; CHECKPOINT",
    );
    let file = relation_file(cluster, "damaged");
    cluster.stop(Stop::Fast);
    let path = cluster.data_directory().join(&file);
    let bytes = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    bytes.read_exact_at(&mut byte, 3 * 8192 + 5000).unwrap();
    bytes.write_all_at(&[byte[0] ^ 0x10], 3 * 8192 + 5000).unwrap();
    cluster.start_again().unwrap_or_else(|failure| panic!("{failure}"));
    file
}

#[test]
fn c014_c020_a_damaged_page_makes_a_degraded_backup() {
    for (version, copy) in EACH {
        let site = Site::new();
        let mut cluster = site.cluster(version).start();
        let file = damage_a_page(&mut cluster);
        let output = site.backup_of(&cluster, copy).run().expect_code(3);
        let taken = output.json();
        assert_eq!(taken["manifest"]["state"], "degraded");
        let findings = taken["manifest"]["findings"].as_array().unwrap();
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!((findings[0]["file"].as_str(), findings[0]["block"].as_u64()), (Some(file.as_str()), Some(3)));
        assert_eq!(taken["manifest"]["postgres"]["checksums"]["bad"], 1);
        assert!(output.stderr.contains(&file) && output.stderr.contains("DEGRADED"), "{output}");
        assert_eq!(site.list()[0]["state"], "degraded");

        let to = site.place("restored");
        let refused = site.restore_of("latest", &to, version).run().expect_code(3);
        assert!(refused.stderr.contains("--accept-degraded") && !to.exists(), "{refused}");
        site.restore_of("latest", &to, version).arg("--accept-degraded").run().success();
        let restored = restored_cluster(&to, version).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(restored.psql("SELECT count(*) FROM sound"), "1000");
        // The damage came along, and PostgreSQL still sees it.
        assert!(restored.try_psql("SELECT count(*) FROM damaged").unwrap_err().contains("invalid page in block 3"));
    }
}

#[test]
fn c046_pages_are_not_judged_where_the_configuration_says_so() {
    for (version, copy) in [(Postgres::V15, "local"), (Postgres::V16, "stream")] {
        let site = Site::new();
        let mut cluster = site.cluster(version).start();
        damage_a_page(&mut cluster);
        let configuration = site.configuration("[postgres]\ncheck_pages = false\n");
        let output = site.backup_of(&cluster, copy).arg("--config").arg(configuration).run().success();
        let manifest = &output.json()["manifest"];
        let checksums = &manifest["postgres"]["checksums"];
        assert_eq!((&manifest["state"], checksums["enabled"].as_bool()), (&Value::from("healthy"), Some(true)), "{copy}: {manifest}");
        assert_eq!((checksums["pages"].as_u64(), checksums["bad"].as_u64()), (Some(0), Some(0)), "{copy}: {manifest}");
        assert!(!manifest["warnings"].to_string().contains("checksums"), "asked for: {manifest}");
    }
}

#[test]
fn c015_c016_zero_pages_and_partial_pages_are_told_from_damage() {
    for copy in ["local", "stream"] {
        let site = Site::new();
        let mut cluster = site.cluster(Postgres::V15).start();
        cluster.psql(
            "CREATE TABLE extended AS SELECT generate_series(1, 1000) n; CREATE TABLE odd AS SELECT generate_series(1, 1000) n; CHECKPOINT",
        );
        let (extended, odd) = (relation_file(&cluster, "extended"), relation_file(&cluster, "odd"));
        cluster.stop(Stop::Fast);
        let root = cluster.data_directory().to_owned();
        let append = |file: &str, bytes: u64| {
            let file = fs::File::options().write(true).open(root.join(file)).unwrap();
            file.set_len(file.metadata().unwrap().len() + bytes).unwrap();
        };
        // As a crash right after an extension leaves it: new pages without anything in them, and part of one.
        append(&extended, 40 * 8192 + 512);
        cluster.start_again().unwrap_or_else(|failure| panic!("{failure}"));
        let taken = site.backup(&cluster, copy);
        assert_eq!(taken["manifest"]["state"], "healthy");
        let data = site.restore("restored", Postgres::V15);
        let size = |root: &Path, file: &str| fs::metadata(root.join(file)).unwrap().len();
        assert_eq!(size(&data, &extended), size(cluster.data_directory(), &extended));

        // No write of a file system or of PostgreSQL ends there.
        cluster.stop(Stop::Fast);
        append(&odd, 100);
        cluster.start_again().unwrap_or_else(|failure| panic!("{failure}"));
        let output = site.backup_of(&cluster, copy).run().expect_code(3);
        assert_eq!(output.json()["manifest"]["findings"][0]["file"].as_str(), Some(odd.as_str()), "{output}");
    }
}

#[test]
fn zero_extents_come_back_as_holes_and_odd_sizes_to_the_byte() {
    let site = Site::new();
    let mut cluster = site.cluster(Postgres::V16).start();
    cluster.psql("CREATE TABLE sparse AS SELECT generate_series(1, 100) n; CHECKPOINT");
    let sparse = relation_file(&cluster, "sparse");
    cluster.stop(Stop::Fast);
    let file = fs::File::options().write(true).open(cluster.data_directory().join(&sparse)).unwrap();
    file.set_len(24 << 20).unwrap();
    cluster.start_again().unwrap_or_else(|failure| panic!("{failure}"));
    // Around an extent, a small file's limit, and a job's.
    let mut random = orchestrator::Random(29);
    let extra = cluster.data_directory().join("extra");
    fs::create_dir(&extra).unwrap();
    let sizes = [
        0,
        1,
        4095,
        (256 << 10) - 1,
        256 << 10,
        (256 << 10) + 1,
        (1 << 20) - 1,
        1 << 20,
        (1 << 20) + 1,
        (8 << 20) - 1,
        8 << 20,
        (8 << 20) + 1,
    ];
    for size in sizes {
        fs::write(extra.join(size.to_string()), random.bytes(size)).unwrap();
    }
    // Bytes, an extent without any, and bytes again.
    let islands = fs::File::create(extra.join("islands")).unwrap();
    islands.write_all_at(b"before", (256 << 10) - 6).unwrap();
    islands.write_all_at(b"after", 512 << 10).unwrap();
    Owner::current().own_tree(&extra);
    for copy in ["local", "stream"] {
        site.backup(&cluster, copy);
        let data = site.restore(copy, Postgres::V16);
        pg_verifybackup(Postgres::V16, &data);
        for entry in fs::read_dir(&extra).unwrap().flatten() {
            let (original, restored) = (fs::read(entry.path()).unwrap(), fs::read(data.join("extra").join(entry.file_name())).unwrap());
            assert!(original == restored, "{copy}: {}", entry.path().display());
        }
        let meta = fs::metadata(data.join(&sparse)).unwrap();
        assert_eq!(meta.len(), 24 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks are allocated", meta.blocks());
    }
}

#[test]
fn c021_unlogged_tables_come_back_empty() {
    for (version, copy) in EACH {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        let tablespace = cluster.create_tablespace("aside");
        cluster.psql(
                "CREATE UNLOGGED TABLE cache (k int PRIMARY KEY, v text); INSERT INTO cache SELECT i, repeat('x', 200) FROM generate_series(1, 5000) i;
                 CREATE UNLOGGED TABLE far (n int) TABLESPACE aside; INSERT INTO far SELECT generate_series(1, 1000);
                 CREATE TABLE kept AS SELECT 17 n; CHECKPOINT",
            );
        let (file, far) = (relation_file(&cluster, "cache"), relation_file(&cluster, "far"));
        assert!(fs::metadata(cluster.data_directory().join(&file)).unwrap().len() > 100_000);
        site.backup(&cluster, copy);
        let (to, aside) = (site.place("restored"), site.place("aside"));
        let restore = site.restore_of("latest", &to, version).arg("--tablespace").arg(format!("aside={}", aside.display()));
        restore.run().success();
        for file in [&file, &far] {
            assert!(!to.join(file).exists(), "its bytes were copied for nothing");
            assert!(to.join(format!("{file}_init")).exists());
        }
        let restored = restored_cluster(&to, version).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(restored.psql("SELECT (SELECT count(*) FROM cache), (SELECT count(*) FROM far), (SELECT n FROM kept)"), "0|0|17");
        restored.psql("INSERT INTO cache VALUES (1, 'again'); INSERT INTO far VALUES (1)");
        assert_eq!(restored.psql("SET enable_seqscan = off; SELECT v FROM cache WHERE k = 1"), "again");
        assert!(tablespace.exists());
    }
}

/// A psql that holds a session open until it is dropped.
struct Session {
    psql: Child,
}

impl Session {
    /// Runs statements, the last of which makes the table `ready`, and returns when that is there.
    fn open(cluster: &Cluster, sql: &str) -> Session {
        let mut psql = cluster.program("psql");
        let mut psql = psql.args(["-X", "-q"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("psql is executable");
        let input = psql.stdin.as_mut().expect("piped");
        input.write_all(format!("{sql};\nCREATE TABLE ready ();\n").as_bytes()).expect("it reads");
        wait_for(cluster, "SELECT to_regclass('ready') IS NOT NULL");
        Session { psql }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        end(&mut self.psql);
    }
}

#[test]
fn c022_c023_temporary_things_and_slots_stay_behind() {
    for (version, copy) in EACH {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        let _session = Session::open(&cluster, "CREATE TEMP TABLE scratch AS SELECT generate_series(1, 10000) n; CHECKPOINT");
        cluster.psql("SELECT pg_create_physical_replication_slot('forgotten', true)");
        let data = cluster.data_directory();
        let is_temporary = |path: &str| path.starts_with("base/") && path.rsplit('/').next().is_some_and(|name| name.starts_with('t'));
        assert!(tree(data).keys().any(|path| is_temporary(path)), "the source has a temporary relation");
        for leftover in ["base/pgsql_tmp/pgsql_tmp123.0", "pg_stat_tmp/leftover.stat", "pg_notify/0001", "pg_subtrans/0009"] {
            fs::create_dir_all(data.join(leftover).parent().unwrap()).unwrap();
            fs::write(data.join(leftover), "stale").unwrap();
            Owner::current().own_tree(data.join(leftover).parent().unwrap());
        }
        site.backup(&cluster, copy);
        let restored = site.restore("restored", version);
        pg_verifybackup(version, &restored);
        let found = tree(&restored);
        for path in found.keys() {
            assert!(!is_temporary(path) && !path.contains("pgsql_tmp1"), "{path}");
        }
        for name in ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"] {
            assert_eq!(found[name].mode() & 0o777, 0o700, "{name}");
            assert!(!found.keys().any(|path| path.starts_with(&format!("{name}/"))), "{name} is not empty");
        }
        let restored = restored_cluster(&restored, version).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(restored.psql("SELECT count(*) FROM pg_replication_slots"), "0");
    }
}

#[test]
fn c024_pg_wal_behind_a_link_is_copied_without_old_wal() {
    for copy in ["local", "stream"] {
        let site = Site::new();
        let mut cluster = site.cluster(Postgres::V18).config("summarize_wal", "on").start();
        cluster.stop(Stop::Fast);
        let elsewhere = cluster.scratch("wal");
        let pg_wal = cluster.data_directory().join("pg_wal");
        fs::rename(&pg_wal, elsewhere.join("pg_wal")).unwrap();
        symlink(elsewhere.join("pg_wal"), &pg_wal).unwrap();
        cluster.start_again().unwrap_or_else(|failure| panic!("{failure}"));
        for _ in 0..3 {
            cluster.psql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (1); SELECT pg_switch_wal(); CHECKPOINT");
        }
        let taken = site.backup(&cluster, copy);
        let data = site.restore("restored", Postgres::V18);
        let found = tree(&data);
        for directory in ["pg_wal", "pg_wal/archive_status", "pg_wal/summaries"] {
            assert!(found[directory].is_dir(), "{directory}");
        }
        let wal = &taken["manifest"]["postgres"]["wal"];
        let (first, last) = (wal["first"].as_str().unwrap(), wal["last"].as_str().unwrap());
        for path in found.keys().filter_map(|path| path.strip_prefix("pg_wal/")).filter(|path| path.len() == 24) {
            assert!((first..=last).contains(&path), "old WAL: {path}");
        }
        let restored = restored_cluster(&data, Postgres::V18).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(restored.psql("SELECT count(*) FROM t"), "3");
    }
}

#[test]
fn c025_files_of_the_source_server_stay_behind() {
    for (version, copy) in EACH {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        let leftovers = [
            "standby.signal",
            "recovery.signal",
            "recovery.done",
            "recovery.conf",
            "backup_label.old",
            "tablespace_map.old",
            "backup_manifest",
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
            "postmaster.opts",
        ];
        let data = cluster.data_directory();
        for name in leftovers {
            fs::write(data.join(name), "of the source\n").unwrap();
            Owner::current().own(&data.join(name));
        }
        // The same names elsewhere are somebody's data.
        fs::create_dir(data.join("mine")).unwrap();
        fs::write(data.join("mine/recovery.signal"), "mine").unwrap();
        Owner::current().own_tree(&data.join("mine"));
        site.backup(&cluster, copy);
        let restored = site.restore("restored", version);
        let text = |name: &str| fs::read_to_string(restored.join(name)).unwrap_or_default();
        for name in leftovers.iter().chain(&["postmaster.pid"]) {
            assert!(!text(name).contains("of the source"), "{name}");
        }
        assert_eq!(text("recovery.signal"), "");
        assert!(
            restored.join("recovery.signal").exists()
                && !restored.join("standby.signal").exists()
                && !restored.join("postmaster.pid").exists()
        );
        assert_eq!(text("mine/recovery.signal"), "mine");
        for name in leftovers {
            fs::remove_file(data.join(name)).unwrap();
        }
        pg_verifybackup(version, &restored);
        restored_cluster(&restored, version).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn c028_tablespaces_inside_the_data_directory() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).start();
    let inside = cluster.data_directory().join("inside");
    fs::create_dir(&inside).unwrap();
    Owner::current().own(&inside);
    cluster.psql(&format!("CREATE TABLESPACE inside LOCATION '{}'", inside.display()));
    cluster.psql("CREATE TABLE t TABLESPACE inside AS SELECT 17 n");
    let output = site.backup_of(&cluster, "local").run().expect_code(1);
    assert!(output.stderr.contains("inside the data directory"), "{output}");
    assert!(site.list().is_empty());
}

#[test]
fn c028_a_streamed_tablespace_inside_the_data_directory_comes_back_or_is_refused() {
    for version in [Postgres::V15, Postgres::V18] {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        let inside = cluster.data_directory().join("inside");
        fs::create_dir(&inside).unwrap();
        Owner::current().own(&inside);
        cluster.psql(&format!("CREATE TABLESPACE inside LOCATION '{}'", inside.display()));
        cluster.psql("CREATE TABLE t TABLESPACE inside AS SELECT 17 n");
        let output = site.backup_of(&cluster, "stream").run();
        if output.code == Some(1) {
            assert!(site.list().is_empty());
            continue;
        }
        output.success();
        let (to, elsewhere) = (site.place("restored"), site.place("elsewhere"));
        let restore = site.restore_of("latest", &to, version).arg("--tablespace").arg(format!("inside={}", elsewhere.display()));
        restore.run().success();
        let restored = restored_cluster(&to, version).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(restored.psql("SELECT n FROM t"), "17");
        assert_eq!(restored.psql("INSERT INTO t VALUES (1) RETURNING n"), "1");
    }
}

#[test]
fn a_server_that_crashes_meanwhile_gives_no_backup() {
    for (version, copy) in [(Postgres::V15, "local"), (Postgres::V16, "stream")] {
        let site = Site::new();
        let mut cluster = site.cluster(version).start();
        let mut child = slow_backup(&site, &cluster, copy).spawn();
        wait_for_copy(&cluster, copy);
        cluster.kill9();
        let status = child.wait().unwrap();
        let complaint = fs::read_to_string(site.place("stderr")).unwrap();
        assert_eq!(status.code(), Some(1), "{complaint}");
        assert!(!complaint.contains("panicked") && site.list().is_empty(), "{complaint}");
        cluster.start_again().unwrap_or_else(|failure| panic!("{failure}"));
        site.backup(&cluster, copy);
    }
}

#[test]
fn a_dump_brings_back_what_stands_beside_the_tables() {
    for version in [Postgres::V15, Postgres::V18] {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        let tablespace = cluster.create_tablespace("aside");
        cluster.psql(
            "CREATE ROLE reader LOGIN; CREATE TABLE far (n int) TABLESPACE aside; INSERT INTO far VALUES (17);
             ALTER DATABASE postgres SET work_mem = '7MB'; COMMENT ON DATABASE postgres IS 'ours'; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;
             CREATE DATABASE other TABLESPACE aside; ALTER DATABASE other SET work_mem = '8MB'; ALTER ROLE reader SET work_mem = '9MB';
             SELECT lo_from_bytea(4711, 'large')",
        );
        cluster.psql_in("template1", "CREATE TABLE in_template (n int); INSERT INTO in_template VALUES (1)");
        site.backup(&cluster, "logical");
        let to = site.place("restored");
        let output = site.restore_of("latest", &to, version).run().success();
        assert!(output.stderr.contains("tablespace"), "where tables went must be said: {output}");
        let restored = Cluster::start_existing(&opened(to), version).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(restored.psql("SELECT n FROM far"), "17");
        assert_eq!(restored.psql("SHOW work_mem"), "7MB");
        assert_eq!(restored.psql_in("other", "SHOW work_mem"), "8MB");
        assert_eq!(restored.psql("SELECT rolconfig FROM pg_roles WHERE rolname = 'reader'"), "{work_mem=9MB}");
        let database = "FROM pg_database WHERE datname = 'postgres'";
        assert_eq!(restored.psql(&format!("SELECT shobj_description(oid, 'pg_database') {database}")), "ours");
        assert_eq!(restored.psql(&format!("SELECT datacl::text NOT LIKE '%,=Tc/%' AND datacl::text NOT LIKE '{{=Tc/%' {database}")), "t");
        assert_eq!(restored.psql("SELECT convert_from(lo_get(4711), 'UTF8')"), "large");
        assert_eq!(restored.psql_in("template1", "SELECT n FROM in_template"), "1");
        assert_eq!(restored.psql("SELECT datistemplate FROM pg_database WHERE datname = 'template1'"), "t");
        assert!(fs::read_dir(&tablespace).unwrap().next().is_some(), "the original's tablespace is as it was");
    }
}

#[test]
fn a_dump_says_which_databases_are_not_in_it() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).start();
    // Templates are none the worse for it, and template0 is as every server has it.
    cluster.psql("CREATE DATABASE billing; CREATE DATABASE pattern IS_TEMPLATE true");
    site.backup(&cluster, "logical");
    cluster.psql("ALTER DATABASE billing ALLOW_CONNECTIONS false");
    let output = site.backup_of(&cluster, "logical").run().expect_code(3);
    let warnings = output.json()["manifest"]["warnings"].to_string();
    assert!(warnings.contains("not in this backup: billing\"") && output.stderr.contains("billing"), "{output}");
    let to = site.place("restored");
    let output = site.restore_of("latest", &to, Postgres::V15).run().success();
    assert!(output.stderr.contains("did not come back: billing\n"), "{output}");
    let restored = Cluster::start_existing(&opened(to), Postgres::V15).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(
        restored.psql("SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE datname IN ('billing', 'pattern')"),
        "pattern"
    );
    // A copy of the files has it.
    site.backup(&cluster, "local");
}

#[test]
fn c029_tablespaces_in_place_come_back_in_place() {
    for (version, copy) in [(Postgres::V15, "local"), (Postgres::V15, "stream"), (Postgres::V16, "stream"), (Postgres::V18, "stream")] {
        let site = Site::new();
        let cluster = site.cluster(version).config("allow_in_place_tablespaces", "on").start();
        cluster.psql("CREATE TABLESPACE here LOCATION ''");
        cluster.psql("CREATE TABLE t TABLESPACE here AS SELECT 17 n; CREATE UNLOGGED TABLE u (n int) TABLESPACE here; CHECKPOINT");
        site.backup(&cluster, copy);
        let data = site.restore("restored", version);
        pg_verifybackup(version, &data);
        let restored = restored_cluster(&data, version).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(restored.psql("SELECT n FROM t"), "17");
        assert_eq!(restored.psql("SELECT count(*) FROM u"), "0");
    }
}

#[test]
fn c030_special_files_are_left_out_and_named() {
    for copy in ["local", "stream"] {
        let site = Site::new();
        let cluster = site.cluster(Postgres::V16).start();
        let data = cluster.data_directory();
        expect_success(Command::new("mkfifo").arg(data.join("pipe")));
        let _socket = std::os::unix::net::UnixListener::bind(data.join(".s.other")).unwrap();
        for name in ["pipe", ".s.other"] {
            Owner::current().own(&data.join(name));
        }
        let taken = site.backup(&cluster, copy);
        if copy == "local" {
            let warnings = taken["manifest"]["warnings"].to_string();
            assert!(warnings.contains("pipe") && warnings.contains(".s.other"), "{warnings}");
        }
        let restored = site.restore("restored", Postgres::V16);
        pg_verifybackup(Postgres::V16, &restored);
        assert!(!restored.join("pipe").exists() && !restored.join(".s.other").exists());
        restored_cluster(&restored, Postgres::V16).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

/// A server whose configuration stands outside its data directory, as Debian has it.
struct Outside {
    postmaster: Child,
    sockets: TempDir,
}

impl Outside {
    fn start(version: Postgres, data: &Path, etc: &Path) -> Outside {
        let sockets = temp_dir();
        let mut command = Command::new(version.bin("postgres"));
        command.arg("-D").arg(data).arg("-c").arg(format!("config_file={}", etc.join("postgresql.conf").display()));
        command.arg("-c").arg(format!("unix_socket_directories={}", sockets.path().display()));
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let postmaster = Owner::current().run(&mut command).spawn().expect("it can be run");
        let begun = Instant::now();
        let ready = || fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|text| text.contains("ready"));
        while !ready() {
            assert!(begun.elapsed() < DEADLINE, "the server does not start");
            thread::sleep(Duration::from_millis(10));
        }
        Outside { postmaster, sockets }
    }

    fn dsn(&self) -> String {
        format!("host={} user=postgres dbname=postgres", self.sockets.path().display())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.postmaster.id()).expect("fits")).expect("not 0");
        let _ = rustix::process::kill_process(pid, Signal::QUIT);
        let _ = self.postmaster.wait();
    }
}

#[test]
fn c031_configuration_outside_the_data_directory_comes_along() {
    for is_main_file_outside in [true, false] {
        let site = Site::new();
        let mut cluster = site.cluster(Postgres::V15).start();
        cluster.psql("CREATE TABLE t AS SELECT 17 n");
        cluster.stop(Stop::Fast);
        let (data, etc) = (cluster.data_directory().to_owned(), cluster.scratch("etc"));
        fs::create_dir(etc.join("conf.d")).unwrap();
        fs::write(etc.join("conf.d/own.conf"), "work_mem = '7MB'\n").unwrap();
        for name in ["pg_hba.conf", "pg_ident.conf"] {
            fs::rename(data.join(name), etc.join(name)).unwrap();
        }
        let mut main = fs::read_to_string(data.join("postgresql.conf")).unwrap();
        main.push_str(&format!(
            "data_directory = '{}'\nhba_file = '{2}/pg_hba.conf'\nident_file = '{2}/pg_ident.conf'\n{1}",
            data.display(),
            if is_main_file_outside { "include_dir = 'conf.d'\n" } else { "" },
            etc.display()
        ));
        let main_file = if is_main_file_outside { etc.join("postgresql.conf") } else { data.join("postgresql.conf") };
        fs::remove_file(data.join("postgresql.conf")).unwrap();
        fs::write(&main_file, main).unwrap();
        Owner::current().own_tree(&etc);
        Owner::current().own(&main_file);
        let outside = Outside::start(Postgres::V15, &data, main_file.parent().unwrap());
        let backup = site.backup_of(&cluster, "local").env("LIFEBOAT_DSN", outside.dsn());
        backup.run().success();
        drop(outside);
        // As on another host: what stood outside is not there.
        fs::rename(&etc, etc.with_extension("gone")).unwrap();
        let running = site.restore_and_start("restored", Postgres::V15);
        assert_eq!(running.psql("SELECT n FROM t"), "17");
        assert_eq!(running.psql("SHOW work_mem"), if is_main_file_outside { "7MB" } else { "4MB" });
        assert_eq!(running.psql("SHOW data_directory"), site.place("restored").display().to_string());
    }
}

#[test]
fn c031_configuration_that_is_linked_into_the_data_directory_comes_along() {
    for (version, copy) in [(Postgres::V16, "local"), (Postgres::V16, "stream")] {
        let site = Site::new();
        let mut cluster = site.cluster(version).config("work_mem", "7MB").start();
        cluster.stop(Stop::Fast);
        let etc = cluster.scratch("etc");
        let file = cluster.data_directory().join("postgresql.conf");
        fs::rename(&file, etc.join("postgresql.conf")).unwrap();
        symlink(etc.join("postgresql.conf"), &file).unwrap();
        cluster.start_again().unwrap_or_else(|failure| panic!("{failure}"));
        let taken = site.backup_of(&cluster, copy).run();
        if copy == "stream" {
            // The server leaves links to files out (BASE_BACKUP sends none): that must be said.
            assert!(taken.stderr.contains("postgresql.conf"), "{taken}");
            continue;
        }
        taken.success();
        let data = site.restore("restored", version);
        assert!(fs::symlink_metadata(data.join("postgresql.conf")).unwrap().is_file());
        pg_verifybackup(version, &data);
        let restored = restored_cluster(&data, version).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(restored.psql("SHOW work_mem"), "7MB");
    }
}

/// A hot standby of a cluster.
fn standby_of(site: &Site, primary: &Cluster) -> Result<Cluster, StartFailure> {
    let data = site.place("standby");
    let output = primary.run_as_owner(primary.program("pg_basebackup").args(["-c", "fast", "-N", "-R", "-X", "stream", "-D"]).arg(&data));
    assert!(output.status.success(), "{output:?}");
    let standby = Cluster::start_existing(&data, primary.version())?;
    wait_for(&standby, "SELECT count(*) = 1 FROM pg_stat_wal_receiver WHERE status = 'streaming'");
    Ok(standby)
}

#[test]
fn c036_c037_c039_backups_of_a_standby_come_back() {
    for version in [Postgres::V15, Postgres::V18] {
        let site = Site::new();
        let primary = site.cluster(version).start();
        orchestrator::install(&primary, 20);
        primary.pgbench_init(1);
        let standby = standby_of(&site, &primary).unwrap_or_else(|failure| panic!("{failure}"));
        for copy in ["local", "stream"] {
            let caught_up = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", primary.psql("SELECT pg_current_wal_lsn()"));
            wait_for(&standby, &caught_up);
            // Idle first: the backup must end although nobody writes WAL (c037).
            let before = orchestrator::beat(&primary);
            wait_for(&standby, &format!("SELECT max(n) >= {before} FROM heartbeat"));
            let taken = site.backup(&standby, copy);
            let idle = site.restore(&format!("{copy}-idle"), version);
            pg_verifybackup(version, &idle);
            let restored = restored_cluster(&idle, version).unwrap_or_else(|failure| panic!("{failure}"));
            if copy == "local" {
                assert!(orchestrator::last_beat(&restored) >= before, "a commit that the standby showed is gone");
            } else {
                // The server sends what the standby has on disk and no more: then that must be said.
                assert!(taken["manifest"]["warnings"].to_string().contains("a standby was streamed"), "{taken}");
            }
            drop(restored);

            let mut load = primary.pgbench_background();
            let taken = site.backup(&standby, copy);
            assert!(load.is_running());
            load.stop();
            let data = site.restore(&format!("{copy}-loaded"), version);
            assert!(!data.join("standby.signal").exists() && data.join("recovery.signal").exists());
            pg_verifybackup(version, &data);
            let restored = restored_cluster(&data, version).unwrap_or_else(|failure| panic!("{failure}"));
            assert_eq!(restored.psql(BALANCE), "t");
            assert!(taken["manifest"]["postgres"]["stop_lsn"].is_string());
            pg_amcheck(&restored);
        }
    }
}

#[test]
fn c038_a_standby_that_is_promoted_meanwhile_gives_no_backup() {
    for (version, copy) in [(Postgres::V15, "local"), (Postgres::V18, "stream")] {
        let site = Site::new();
        let primary = site.cluster(version).start();
        primary.pgbench_init(1);
        let standby = standby_of(&site, &primary).unwrap_or_else(|failure| panic!("{failure}"));
        let mut child = slow_backup(&site, &standby, copy).spawn();
        wait_for_copy(&standby, copy);
        assert_eq!(standby.psql("SELECT pg_promote()"), "t");
        let status = child.wait().unwrap();
        let complaint = fs::read_to_string(site.place("stderr")).unwrap();
        assert_eq!(status.code(), Some(1), "{complaint}");
        assert!(site.list().is_empty());
    }
}

#[test]
fn c040_clusters_are_not_mixed() {
    let site = Site::new();
    let one = site.cluster(Postgres::V15).own_system_id().start();
    let other = site.cluster(Postgres::V15).own_system_id().start();
    let twin = site.cluster(Postgres::V16).start();
    let copy_of_twin = site.cluster(Postgres::V16).start();
    // The directory of one, the connection of the other; also where the system ids are the same.
    for (server, directory) in [(&one, &other), (&twin, &copy_of_twin)] {
        let output = site.backup_of(server, "local").env("PGDATA", directory.data_directory()).run().expect_code(1);
        assert!(output.stderr.contains("lifeboat config show"), "{output}");
        assert!(site.list().is_empty());
    }
    site.backup(&one, "local");
    for copy in ["local", "stream", "logical"] {
        let output = site.backup_of(&other, copy).run().expect_code(1);
        assert!(output.stderr.contains("its last backup is of cluster"), "{output}");
    }
    assert_eq!(site.list().len(), 1);
    // Under a name of its own it may.
    site.backup_of(&other, "stream").args(["--name", "other"]).run().success();
    let unclear = site.restore_of("latest", &site.place("x"), Postgres::V15).run().expect_code(2);
    assert!(unclear.stderr.contains("other"), "{unclear}");
}

#[test]
fn c041_c052_the_wal_of_a_backup_is_in_it_whatever_a_segments_size() {
    for (version, mib, copy) in
        [(Postgres::V15, 1, "local"), (Postgres::V16, 64, "local"), (Postgres::V15, 64, "stream"), (Postgres::V18, 64, "stream")]
    {
        let site = Site::new();
        let cluster = site.cluster(version).wal_segment_size(mib).config("max_wal_size", "256MB").config("min_wal_size", "128MB").start();
        orchestrator::install(&cluster, 10);
        cluster.pgbench_init(1);
        let load = cluster.pgbench_background();
        let (taken, beats) = with_heartbeats(&cluster, || site.backup(&cluster, copy));
        load.stop();
        let physical = &taken["manifest"]["postgres"];
        assert_eq!(physical["wal"]["segment_size"], u64::from(mib) << 20);
        let data = site.restore("restored", version);
        let segments: Vec<String> =
            tree(&data).keys().filter_map(|path| path.strip_prefix("pg_wal/")).filter(|name| name.len() == 24).map(str::to_owned).collect();
        assert!(
            segments.iter().any(|name| physical["wal"]["first"] == **name) && segments.iter().any(|name| physical["wal"]["last"] == **name)
        );
        let per_number = (1_u64 << 32) / (u64::from(mib) << 20);
        let number = |name: &String| {
            let part = |range: std::ops::Range<usize>| u64::from_str_radix(&name[range], 16).expect("hex");
            part(8..16) * per_number + part(16..24)
        };
        assert!(segments.windows(2).all(|pair| number(&pair[0]) + 1 == number(&pair[1])), "a gap: {segments:?}");
        pg_verifybackup(version, &data);
        let restored = restored_cluster(&data, version).unwrap_or_else(|failure| panic!("{failure}"));
        let stop = lsn(physical["stop_lsn"].as_str().unwrap());
        let must_have = beats.iter().filter(|(_, at)| *at <= stop).map(|(n, _)| *n).max().unwrap();
        assert!(orchestrator::last_beat(&restored) >= must_have);
        assert_eq!(restored.psql(BALANCE), "t");
    }
}

#[test]
fn c042_c117_a_killed_backup_leaves_nothing_that_looks_like_one() {
    for (version, copy) in [(Postgres::V15, "local"), (Postgres::V18, "stream")] {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        let mut child = slow_backup(&site, &cluster, copy).spawn();
        wait_for_copy(&cluster, copy);
        end(&mut child);
        assert!(site.list().is_empty());
        let left = tree(&site.repository());
        let partial = left.keys().find_map(|path| path.split('/').find(|part| part.contains("-backup-"))).map(str::to_owned);
        if let Some(partial) = partial {
            let output = site.restore_of(&partial, &site.place("partial"), version).run().expect_code(1);
            assert!(!site.place("partial").exists(), "{output}");
        }
        // The dead process's lease is no obstacle, its server session holds nothing.
        wait_for(&cluster, "SELECT count(*) = 0 FROM pg_replication_slots");
        site.backup(&cluster, copy);
        assert_eq!(site.list().len(), 1);
        site.program().args(["verify", "--all"]).run().success();
        let data = site.restore("restored", version);
        restored_cluster(&data, version).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn c043_backups_within_one_second_have_names_of_their_own() {
    let site = Site::new();
    let artifacts = site.place("artifacts");
    fs::create_dir(&artifacts).unwrap();
    fs::write(artifacts.join("one"), "1").unwrap();
    let names: Vec<String> = (0..4)
        .map(|_| {
            let program = Program::new(&site.home).env("LIFEBOAT_ARTIFACTS", &artifacts).args(["backup", "--json", "--output"]);
            program.arg(site.repository()).run().success().json()["backup"].as_str().unwrap().to_owned()
        })
        .collect();
    let listed: Vec<String> = site.list().iter().map(|row| row["backup"].as_str().unwrap().to_owned()).collect();
    assert_eq!(listed, names, "listed as they were taken");
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
}

#[test]
fn c044_a_second_writer_is_turned_away() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V16).start();
    let mut child = slow_backup(&site, &cluster, "local").spawn();
    wait_for_copy(&cluster, "local");
    let output = site.backup_of(&cluster, "stream").run().expect_code(11);
    assert!(output.stderr.contains("holds it until"), "{output}");
    assert!(child.wait().unwrap().success(), "{}", fs::read_to_string(site.place("stderr")).unwrap());
    assert_eq!(site.list().len(), 1);
}

#[test]
fn c047_the_manifest_names_what_the_data_was_made_with() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).start();
    cluster.psql("CREATE EXTENSION pg_buffercache; CREATE DATABASE other");
    for copy in ["local", "stream", "logical"] {
        let postgres = &site.backup(&cluster, copy)["manifest"]["postgres"];
        let names = |key: &str| postgres[key].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect::<Vec<_>>();
        assert!(names("extensions").contains(&"pg_buffercache"), "{postgres}");
        assert!(names("databases").contains(&"other"), "{postgres}");
        assert!(postgres["version"].as_str().unwrap().contains("15."), "{postgres}");
        assert_eq!(postgres["settings"]["max_connections"], "20");
        assert_eq!(postgres["system_id"].as_str().unwrap(), cluster.psql("SELECT system_identifier FROM pg_control_system()"));
    }
}

#[test]
fn clusters_without_checksums_and_with_empty_databases_come_back() {
    for (version, copy) in EACH {
        let site = Site::new();
        let mut cluster = site.cluster(version).checksums(false).start();
        damage_a_page(&mut cluster);
        let oid = cluster.psql("CREATE DATABASE hollow; SELECT oid FROM pg_database WHERE datname = 'hollow'");
        // An empty directory, as an interrupted DROP DATABASE leaves one.
        let empty = cluster.data_directory().join("base/99999");
        fs::create_dir(&empty).unwrap();
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o700)).unwrap();
        Owner::current().own(&empty);
        let taken = site.backup(&cluster, copy);
        // Nobody can see damage without checksums, and nobody may claim to have looked.
        let checksums = &taken["manifest"]["postgres"]["checksums"];
        assert_eq!((checksums["enabled"].as_bool(), checksums["pages"].as_u64()), (Some(false), Some(0)), "{checksums}");
        let data = site.restore("restored", version);
        assert!(data.join("base/99999").is_dir() && data.join("base").join(&oid).is_dir());
        let restored = restored_cluster(&data, version).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(restored.psql("SHOW data_checksums"), "off");
        assert_eq!(restored.psql("SELECT count(*) FROM sound"), "1000");
    }
}

#[test]
fn a_limit_on_memory_is_kept() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).config("max_wal_size", "4GB").start();
    cluster.pgbench_init(14);
    cluster.psql("CREATE TABLE noise AS SELECT md5(i::text) || md5((-i)::text) AS text FROM generate_series(1, 600000) i; CHECKPOINT");
    let configuration = site.configuration("[limits]\nmemory = \"64MiB\"\nworkers = 4\n");
    for copy in ["local", "stream"] {
        let mut child = site.backup_of(&cluster, copy).arg("--config").arg(&configuration).spawn();
        // The kernel keeps the highest value, so only the very last moments can be missed.
        let status = format!("/proc/{}/status", child.id());
        let mut peak_kib = 0;
        let ended = loop {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let now = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|number| number.trim().parse::<u64>().ok());
            peak_kib = peak_kib.max(now.unwrap_or(0));
            if let Some(ended) = child.try_wait().unwrap() {
                break ended;
            }
            thread::sleep(Duration::from_millis(5));
        };
        assert!(ended.success(), "{}", fs::read_to_string(site.place("stderr")).unwrap());
        let taken: Value = serde_json::from_str(&fs::read_to_string(site.place("stdout")).unwrap()).unwrap();
        let plain = taken["manifest"]["plain_bytes"].as_u64().unwrap();
        assert!(plain > 300 << 20, "too small to show anything: {plain}");
        assert!(peak_kib > 1024 && peak_kib < 200 << 10, "{copy}: {peak_kib} KiB");
    }
}

#[test]
fn a_dry_run_changes_nothing_and_needs_nothing() {
    let home = temp_dir();
    let repository = home.path().join("repository");
    let program = Program::new(&home).env("PGHOST", "/nowhere").args(["backup", "--json", "--include-postgres", "--dry-run", "--output"]);
    let plan = program.arg(&repository).run().success().json();
    assert_eq!((plan["repository_exists"].as_bool(), plan["database"]["copy"].as_str()), (Some(false), Some("stream")));
    assert!(!plan["steps"].as_array().unwrap().is_empty());
    assert_eq!(tree(home.path()).len(), 0);
}

#[test]
fn a_database_that_is_only_named_is_not_copied() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).start();
    let taken = site.backup_of(&cluster, "auto").arg("--record-only").run().success().json();
    assert_eq!(taken["manifest"]["postgres"]["copy"], "recorded");
    assert_eq!(taken["manifest"]["files"], 0);
    let output = site.restore_of(taken["backup"].as_str().unwrap(), &site.place("x"), Postgres::V15).run().expect_code(1);
    assert!(!site.place("x").exists(), "{output}");
}
