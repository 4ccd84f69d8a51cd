//! `lifeboat wal receive` against real servers: nothing that was acknowledged is lost, whoever is killed.
//!
//! What came to the repository is read back with the engine's reader and compared with the server's own files.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lifeboat_core::repository::layout::Key;
use lifeboat_core::wal::file::{GapRecord, WalFile};
use lifeboat_core::wal::history::History;
use lifeboat_core::wal::receive::Prefix;
use lifeboat_core::wal::{Lsn, Segment, SegmentSize, SystemId, Timeline};
use lifeboat_engine::backup::Protection;
use lifeboat_engine::keys::Identities;
use lifeboat_engine::postgres::Dsn;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::{KeyFileSigner, PublicKey, SignError, Signer, Trust};
use lifeboat_engine::store::{self, Listed, LocalStore, ObjectWriter, Store, StoreError};
use lifeboat_engine::wal::receive::{self, Course, Disk, Mode, RealDisk, ReceiveRequest, Watcher};
use lifeboat_engine::wal::{self, WalReader};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Builder, Cluster, Owner, Postgres, Stop, restored_cluster, temp_dir};
use crate::orchestrator::Random;
use crate::program::{Program, reachable_binary};

/// Ends tests that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(90);

/// Segments are small, so that tests see many of them.
const SIZE_MIB: u32 = 1;

fn size() -> SegmentSize {
    SegmentSize::new(SIZE_MIB << 20).expect("a power of two")
}

/// Waits until something is so.
#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Keys, a repository, a spool, and the receiver's configuration, all of the servers' user.
struct Desk {
    home: TempDir,
    spool: PathBuf,
}

/// A running receiver; it ends with the test.
struct Receiving<'d> {
    desk: &'d Desk,
    child: Child,
}

impl Desk {
    fn new() -> Desk {
        let home = temp_dir();
        let desk = Desk { spool: home.path().join("spool"), home };
        Program::as_owner(&desk.home).args(["key", "generate"]).run().success();
        Program::as_owner(&desk.home).args(["init", "--repository"]).arg(desk.repository()).run().success();
        desk
    }

    fn place(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn repository(&self) -> PathBuf {
        self.place("repository")
    }

    fn key_text(&self, name: &str) -> String {
        fs::read_to_string(self.place(".config/lifeboat").join(name)).expect("made with the desk").trim().to_owned()
    }

    fn configure(&self, dsn: &str, wal: &str) {
        let text = format!(
            "[postgres]\ndsn = \"{dsn}\"\n[[repository]]\nurl = \"{}\"\n[encryption]\nrecipients = [\"{}\"]\n\
             identity_file = \"{keys}/identity.txt\"\n[signing]\nkey_file = \"{keys}/signing.key\"\n\
             password = {{ file = \"{keys}/signing.password\" }}\n[trust]\nkeys = [\"{keys}/signing.pub\"]\n\
             [wal]\nspool = \"{}\"\nflush_interval = \"200ms\"\n{wal}\n",
            self.repository().display(),
            self.key_text("recipients.txt"),
            self.spool.display(),
            keys = self.place(".config/lifeboat").display(),
        );
        fs::write(self.place("lifeboat.toml"), text).expect("own directory");
        Owner::current().own(&self.place("lifeboat.toml"));
    }

    fn program(&self) -> Program {
        Program::as_owner(&self.home).arg("--config").arg(self.place("lifeboat.toml")).args(["wal", "receive"])
    }

    /// A base backup that recovers from the repository to the end.
    fn base(&self, cluster: &Cluster) -> PathBuf {
        let data = self.place("base");
        let output = cluster.run_as_owner(cluster.program("pg_basebackup").args(["-c", "fast", "-X", "none", "-N", "-D"]).arg(&data));
        assert!(output.status.success(), "{output:?}");
        let fetch = format!("{} --config {} wal fetch %f %p", reachable_binary().display(), self.place("lifeboat.toml").display());
        for (name, text) in [
            ("recovery.signal", String::new()),
            ("postgresql.auto.conf", format!("restore_command = '{fetch}'\nsynchronous_standby_names = ''\n")),
        ] {
            fs::write(data.join(name), text).expect("own directory");
            Owner::current().own(&data.join(name));
        }
        data
    }

    /// What the audit log in the repository has of receivers: how each ended, in order, and how many records wait on this host.
    fn audited(&self) -> (Vec<&'static str>, u64) {
        let program = Program::as_owner(&self.home).arg("--config").arg(self.place("lifeboat.toml"));
        let listed = program.args(["audit", "list", "--operation", "wal-receive", "--json"]).run().success().json();
        let state = |entry: &Value| {
            assert!(entry["end"]["outcome"]["message"].as_str().is_some_and(|text| text.to_lowercase().contains("commits")), "{entry}");
            ["findings", "done"].into_iter().find(|state| entry["state"] == *state).expect("an end")
        };
        (listed["entries"].as_array().unwrap().iter().map(state).collect(), listed["waiting"].as_u64().unwrap())
    }

    fn receive(&self) -> Receiving<'_> {
        Receiving { desk: self, child: self.program().spawn() }
    }

    /// The receiver's directory in the spool.
    fn receive_directory(&self) -> PathBuf {
        let only = |path: &Path| fs::read_dir(path).ok()?.flatten().find(|entry| entry.path().is_dir()).map(|entry| entry.path());
        only(&self.spool).and_then(|path| only(&path)).map(|path| path.join("receive")).unwrap_or_default()
    }

    fn status(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.receive_directory().join("status.json")).ok()?).ok()
    }

    fn lsn(&self, member: &str) -> Lsn {
        let status = self.status();
        status.and_then(|status| status[member].as_str()?.parse().ok()).unwrap_or_default()
    }

    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.receive_directory().join("events.jsonl")).unwrap_or_default();
        let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        for (at, event) in events.iter().enumerate() {
            assert_eq!(event["number"], at as u64 + 1, "the history of events has a hole: {text}");
        }
        events
    }

    fn has_event(&self, kind: &str) -> bool {
        self.events().iter().any(|event| event["event"] == kind)
    }

    fn archive(&self) -> Archive {
        Archive::open(self)
    }

    fn said(&self) -> String {
        fs::read_to_string(self.place("stderr")).unwrap_or_default()
    }
}

impl Receiving<'_> {
    #[track_caller]
    fn wait_for(&mut self, what: &str, mut is_so: impl FnMut(&Desk) -> bool) {
        let begun = Instant::now();
        while !is_so(self.desk) {
            if let Some(status) = self.child.try_wait().expect("own child") {
                panic!("{what}: the receiver ended with {status}\n{}", self.desk.said());
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "{what}: not within {DEADLINE:?}\n{}\n{:#?}\n{:#?}",
                self.desk.said(),
                self.desk.status(),
                self.desk.events()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn wait_stored(&mut self, lsn: Lsn) {
        self.wait_for(&format!("stored up to {lsn}"), |desk| desk.lsn("stored") >= lsn);
    }

    #[track_caller]
    fn wait_connected(&mut self) {
        let pid = self.child.id();
        self.wait_for("streaming", |desk| desk.status().is_some_and(|status| status["state"] == "streaming" && status["pid"] == pid));
    }

    fn kill9(mut self) {
        self.child.kill().expect("own child");
        self.child.wait().expect("own child");
    }

    /// Ends it as a service manager does, and returns its exit code; where it had not even begun to listen to signals, that of a shell.
    fn end(mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("own child");
        let status = self.child.wait().expect("own child");
        status.code().or(status.signal().map(|signal| 128 + signal))
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the receiver said ---\n{}", self.desk.said());
        }
    }
}

/// What is in the repository.
struct Archive {
    repository: Repository,
    trust: Trust,
    identities: String,
    cluster: wal::Cluster,
}

impl Archive {
    fn open(desk: &Desk) -> Archive {
        let repository =
            Repository::open(store::open(&desk.repository().display().to_string(), &store::StoreOptions::default(), false).unwrap())
                .unwrap();
        let system_id: SystemId = *wal::clusters(&repository).unwrap().first().expect("there is WAL");
        let cluster = wal::Cluster { system_id, segment_size: size() };
        let trust = Trust::from_pems([desk.key_text("signing.pub").as_str()]).unwrap();
        Archive { repository, trust, identities: desk.key_text("identity.txt"), cluster }
    }

    fn files(&self) -> Vec<WalFile> {
        wal::list(&self.repository, self.cluster).unwrap().into_iter().map(|(file, _)| file).collect()
    }

    fn reader(&self) -> WalReader<'_> {
        WalReader::new(&self.repository, self.cluster, &self.trust, Identities::parse(&self.identities).unwrap())
    }

    /// The bytes of a segment from its first on, whole or out of pieces that join; pieces must agree where they overlap.
    fn bytes(&self, segment: Segment) -> Vec<u8> {
        let reader = self.reader();
        let mut bytes: Vec<u8> = Vec::new();
        let mut known = Prefix::default();
        for file in self.files() {
            let (from, to) = match file {
                WalFile::Segment(whole) if whole == segment => (0, size().bytes()),
                WalFile::Piece { segment: of, from, to } if of == segment => (u64::from(from), u64::from(to)),
                _ => continue,
            };
            let plain = reader.read_bytes(file, size().bytes()).unwrap();
            assert_eq!(plain.len() as u64, to - from);
            if (bytes.len() as u64) < to {
                bytes.resize(to as usize, 0);
            }
            if known.end() > from {
                let overlap = (known.end().min(to) - from) as usize;
                assert!(bytes[from as usize..from as usize + overlap] == plain[..overlap], "{file:?} differs from what overlaps it");
            }
            bytes[from as usize..to as usize].copy_from_slice(&plain);
            known.add(from, to);
        }
        bytes.truncate(known.end() as usize);
        bytes
    }

    fn whole(&self, timeline: u32) -> Vec<Segment> {
        let segments = self.files().into_iter().filter_map(|file| match file {
            WalFile::Segment(segment) if segment.timeline.0 == timeline => Some(segment),
            _ => None,
        });
        segments.collect()
    }

    fn gaps(&self) -> Vec<GapRecord> {
        let prefix = lifeboat_core::repository::layout::wal_gaps(self.cluster.system_id);
        let listed = self.repository.store().list(&prefix).unwrap();
        listed.iter().map(|gap| serde_json::from_slice(&self.repository.store().get(&gap.key, 1 << 20).unwrap()).unwrap()).collect()
    }

    /// Compares all that the repository has from `from` to `to` with the server's own files, and that there is no hole.
    #[track_caller]
    fn equals_server(&self, cluster: &Cluster, timeline: u32, from: Lsn, to: Lsn) {
        self.equals(cluster.data_directory(), timeline, from, to);
    }

    /// The same with the files in a data directory.
    #[track_caller]
    fn equals(&self, data: &Path, timeline: u32, from: Lsn, to: Lsn) {
        for segment in lifeboat_core::wal::segments_between(Timeline(timeline), from, to, size()) {
            let ours = self.bytes(segment);
            let wanted = (to.0 - segment.start(size()).0).min(size().bytes()) as usize;
            let name = segment.file_name(size());
            assert!(ours.len() >= wanted, "{name}: the repository has {} bytes of {wanted}", ours.len());
            let theirs = fs::read(data.join("pg_wal").join(&name)).unwrap();
            assert!(ours[..wanted] == theirs[..wanted], "{name} differs from the server's");
        }
    }
}

/// A server that keeps its WAL, so that it can be compared.
fn server(version: Postgres) -> Builder {
    Cluster::builder(version).wal_segment_size(SIZE_MIB).config("wal_keep_size", "4GB").config("max_wal_size", "8GB")
}

fn flushed(cluster: &Cluster) -> Lsn {
    cluster.psql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
}

fn slot_start(cluster: &Cluster) -> Lsn {
    cluster.psql("SELECT restart_lsn FROM pg_replication_slots").parse().unwrap()
}

#[test]
fn what_is_received_under_load_equals_the_servers_files() {
    for version in Postgres::ALL {
        let cluster = server(version).start();
        let desk = Desk::new();
        desk.configure(&cluster.dsn(), "mode = \"stream\"");
        desk.program().arg("--create-slot-only").run().success();
        let start = slot_start(&cluster);
        let mut receiving = desk.receive();
        receiving.wait_connected();
        cluster.pgbench_init(1);
        cluster.pgbench_load(2);
        let end = flushed(&cluster);
        receiving.wait_stored(end);
        assert_eq!(receiving.end(), Some(0), "{}", desk.said());
        let archive = desk.archive();
        archive.equals_server(&cluster, 1, start, end);
        let whole = archive.whole(1);
        assert!(whole.len() as u64 + 1 >= (end.0 - start.0) / size().bytes(), "whole segments: {whole:?}");
        let head = archive.reader().head(WalFile::Segment(whole[1])).unwrap();
        assert!(head.predicate.summary.is_some_and(|summary| summary.xids.is_some()), "a segment full of transactions says so");
        // What is in the repository is not in the spool, but for the open segment.
        let left = fs::read_dir(desk.receive_directory().join("00000001")).unwrap().count();
        assert!(left <= 1, "{left} files are left in the spool");
        assert_eq!(desk.status().unwrap()["state"], "stopped");
        drop(archive);
    }
}

#[test]
fn a_receiver_that_runs_once_ends_when_it_is_caught_up() {
    let cluster = server(Postgres::V18).start();
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    desk.program().arg("--create-slot-only").run().success();
    assert!(desk.program().arg("--create-slot-only").run().success().stdout.contains("already"));
    let start = slot_start(&cluster);
    for _ in 0..2 {
        cluster.pgbench_init(1);
        let end = flushed(&cluster);
        let output = desk.program().args(["--once", "--json"]).run().success();
        let events: Vec<Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(events.iter().any(|event| event["event"] == "connected"));
        desk.archive().equals_server(&cluster, 1, start, end);
    }
    desk.program().arg("--drop-slot").run().success();
    assert_eq!(cluster.psql("SELECT count(*) FROM pg_replication_slots"), "0");
}

/// Clients that commit one row after the other and note each that was acknowledged.
struct Clients {
    children: Vec<Child>,
    readers: Vec<thread::JoinHandle<Vec<(usize, u64)>>>,
}

impl Clients {
    fn start(cluster: &Cluster, count: usize) -> Clients {
        let (mut children, mut readers) = (Vec::new(), Vec::new());
        for client in 0..count {
            let mut psql = cluster.program("psql");
            psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"]);
            let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("psql is executable");
            let (mut input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
            // psql prints the row when the server said that the statement, and with it its commit, is done.
            readers.push(thread::spawn(move || {
                let mut acknowledged = Vec::new();
                let mut lines = BufReader::new(output).lines();
                for n in 0u64.. {
                    if writeln!(input, "INSERT INTO note VALUES ({client}, {n}) RETURNING n;").is_err() {
                        break;
                    }
                    match lines.next() {
                        Some(Ok(line)) => assert_eq!(line, n.to_string()),
                        _ => break,
                    }
                    acknowledged.push((client, n));
                }
                acknowledged
            }));
            children.push(child);
        }
        Clients { children, readers }
    }

    /// What was acknowledged until the server went away.
    fn acknowledged(self) -> Vec<(usize, u64)> {
        let noted = self.readers.into_iter().flat_map(|reader| reader.join().expect("the client does what it should")).collect();
        for mut child in self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        noted
    }
}

/// c058, c059: the server is lost with all its disks under load; what it acknowledged is there.
fn nothing_acknowledged_is_lost(version: Postgres, durability: &str) {
    let mut cluster = Cluster::builder(version).wal_segment_size(SIZE_MIB).start();
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), &format!("mode = \"sync\"\ndurability = \"{durability}\""));
    desk.program().arg("--create-slot-only").run().success();
    let mut receiving = desk.receive();
    receiving.wait_connected();
    cluster.psql("CREATE TABLE note (client int, n int, filler text DEFAULT repeat(md5(random()::text), 20))");
    let base = desk.base(&cluster);
    name_synchronous(&cluster, "lifeboat");
    wait_for("the receiver is a synchronous standby", || {
        cluster.psql("SELECT sync_state, replay_lsn IS NULL FROM pg_stat_replication WHERE application_name = 'lifeboat'") == "sync|t"
    });
    let clients = Clients::start(&cluster, 6);
    thread::sleep(Duration::from_secs(4));
    cluster.kill9();
    receiving.kill9();
    let acknowledged = clients.acknowledged();
    fs::remove_dir_all(cluster.data_directory()).unwrap();
    if durability == "repository" {
        fs::remove_dir_all(&desk.spool).unwrap();
    } else {
        // The receiver finds in its spool what no server has any more.
        let mut receiving = desk.receive();
        let pid = receiving.child.id();
        receiving.wait_for("the spool is in the repository", |desk| {
            desk.status().is_some_and(|status| status["pid"] == pid && status["waiting_bytes"] == 0)
        });
        assert_eq!(receiving.end(), Some(0));
    }
    println!("{version}, {durability}: {} commits were acknowledged", acknowledged.len());
    assert!(acknowledged.len() > 100, "only {} commits", acknowledged.len());
    let restored = restored_cluster(&base, version).unwrap_or_else(|failure| panic!("{failure}"));
    let there: HashSet<(usize, u64)> = restored
        .psql("SELECT client, n FROM note")
        .lines()
        .map(|line| line.split_once('|').map(|(client, n)| (client.parse().unwrap(), n.parse().unwrap())).unwrap())
        .collect();
    let lost: Vec<_> = acknowledged.iter().filter(|row| !there.contains(row)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}

#[test]
fn c058_c059_no_acknowledged_commit_is_lost_with_the_server_spool() {
    for version in Postgres::ALL {
        nothing_acknowledged_is_lost(version, "spool");
    }
}

#[test]
fn c058_c059_no_acknowledged_commit_is_lost_with_the_server_repository() {
    for version in Postgres::ALL {
        nothing_acknowledged_is_lost(version, "repository");
    }
}

#[test]
fn receivers_and_servers_are_killed_and_no_byte_is_missing() {
    // A run that failed is run again with the seed that it printed.
    let given = std::env::var("LIFEBOAT_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let seed: u32 = given.unwrap_or_else(now);
    println!("LIFEBOAT_TEST_SEED={seed}");
    let mut random = Random(u64::from(seed) | 1);
    for (version, mode) in [
        (Postgres::V15, "mode = \"stream\""),
        (Postgres::V18, "mode = \"sync\""),
        (Postgres::V16, "mode = \"sync\"\ndurability = \"repository\""),
    ] {
        let mut cluster = server(version).start();
        let desk = Desk::new();
        desk.configure(&cluster.dsn(), mode);
        desk.program().arg("--create-slot-only").run().success();
        let start = slot_start(&cluster);
        cluster.pgbench_init(1);
        let mut load = Some(cluster.pgbench_background());
        for round in 0..9 {
            let receiving = desk.receive();
            thread::sleep(Duration::from_millis(150 + random.below(700) as u64));
            match round % 3 {
                // The server goes in the middle, and comes back while the receiver runs.
                2 => {
                    drop(load.take());
                    if round == 5 {
                        cluster.stop(Stop::Fast)
                    } else {
                        cluster.kill9()
                    }
                    cluster.start_again().unwrap();
                    load = Some(cluster.pgbench_background());
                    thread::sleep(Duration::from_millis(random.below(500) as u64));
                }
                // At once, it may come before anything was begun.
                1 => assert!(matches!(receiving.end(), Some(0 | 130 | 143)), "{}", desk.said()),
                _ => receiving.kill9(),
            }
        }
        drop(load);
        let end = flushed(&cluster);
        let mut receiving = desk.receive();
        receiving.wait_stored(end);
        assert_eq!(receiving.end(), Some(0));
        let archive = desk.archive();
        archive.equals_server(&cluster, 1, start, end);
        assert_eq!(archive.gaps(), []);
        desk.events();
    }
}

#[test]
fn c056_wal_that_is_lost_with_the_slot_is_recorded_as_a_gap() {
    let cluster = Cluster::builder(Postgres::V16)
        .wal_segment_size(SIZE_MIB)
        .config("max_slot_wal_keep_size", "1MB")
        .config("min_wal_size", "2MB")
        .config("max_wal_size", "2MB")
        .start();
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    let mut receiving = desk.receive();
    receiving.wait_connected();
    cluster.psql("CREATE TABLE t AS SELECT 1 AS n");
    let before = flushed(&cluster);
    receiving.wait_stored(before);
    assert_eq!(receiving.end(), Some(0));
    let had = desk.lsn("stored");
    wait_for("the slot is lost", || {
        cluster.psql("CREATE TABLE IF NOT EXISTS filler (t text); INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 3000); CHECKPOINT");
        cluster.psql("SELECT wal_status FROM pg_replication_slots") == "lost"
    });
    let mut receiving = desk.receive();
    receiving.wait_connected();
    cluster.psql("INSERT INTO t VALUES (2)");
    let end = flushed(&cluster);
    receiving.wait_stored(end);
    receiving.wait_for("the gap is in the repository", |desk| !desk.archive().gaps().is_empty());
    let [gap] = &desk.archive().gaps()[..] else { panic!("more than one gap") };
    assert_eq!((gap.timeline, gap.from), (Timeline(1), had));
    assert!(gap.to > gap.from && gap.to.0 % size().bytes() == 0 && gap.to <= end);
    assert!(desk.has_event("slot-lost") && desk.has_event("gap"));
    receiving.wait_for("that is said", |desk| desk.said().contains("WAL IS LOST"));
    desk.archive().equals_server(&cluster, 1, gap.to, end);
    // The slot that is there now keeps what it should.
    assert_eq!(cluster.psql("SELECT wal_status FROM pg_replication_slots"), "reserved");
}

#[test]
fn c056_wal_that_the_archiver_stored_is_not_called_lost() {
    let desk = Desk::new();
    let push = format!("{} --config {} wal push %p", reachable_binary().display(), desk.place("lifeboat.toml").display());
    let cluster = Cluster::builder(Postgres::V16)
        .wal_segment_size(SIZE_MIB)
        .config("archive_mode", "on")
        .config("archive_command", &push)
        .config("max_slot_wal_keep_size", "1MB")
        .config("min_wal_size", "2MB")
        .config("max_wal_size", "2MB")
        .start();
    desk.configure(&cluster.dsn(), "");
    let mut receiving = desk.receive();
    receiving.wait_connected();
    cluster.psql("CREATE TABLE t AS SELECT 1 AS n");
    receiving.wait_stored(flushed(&cluster));
    assert_eq!(receiving.end(), Some(0));
    let had = desk.lsn("stored");
    wait_for("the slot is lost, and what it kept is archived and gone", || {
        cluster
            .psql("CREATE TABLE IF NOT EXISTS filler (t text); INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 3000)");
        let full = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
        wait_for("it is archived", || cluster.psql("SELECT COALESCE(last_archived_wal, '') FROM pg_stat_archiver") >= full);
        cluster.psql("CHECKPOINT");
        let first = Segment::containing(Timeline(1), had, size()).file_name(size());
        cluster.psql("SELECT wal_status FROM pg_replication_slots") == "lost"
            && cluster.psql(&format!("SELECT count(*) FROM pg_ls_waldir() WHERE name = '{first}'")) == "0"
    });
    let mut receiving = desk.receive();
    receiving.wait_connected();
    cluster.psql("INSERT INTO t VALUES (2)");
    let end = flushed(&cluster);
    receiving.wait_stored(end);
    assert_eq!(desk.archive().gaps(), []);
    assert!(desk.has_event("slot-lost") && !desk.has_event("gap"));
    assert!(!desk.said().contains("WAL IS LOST"));
}

#[test]
fn wal_status_tells_apart_what_is_received_durable_here_and_in_the_repository() {
    let cluster = server(Postgres::V18).start();
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "mode = \"sync\"");
    let mut receiving = desk.receive();
    receiving.wait_connected();
    cluster.psql("CREATE TABLE t (n int)");
    let first = flushed(&cluster);
    receiving.wait_stored(first);
    let away = desk.place("away");
    fs::rename(desk.repository(), &away).unwrap();
    cluster.psql("INSERT INTO t VALUES (1)");
    let second = flushed(&cluster);
    receiving.wait_for("it is in the spool", |desk| desk.lsn("spooled") >= second && desk.has_event("store-failing"));
    receiving.kill9();
    fs::rename(&away, desk.repository()).unwrap();
    cluster.psql("INSERT INTO t VALUES (2)");
    let status = || Program::as_owner(&desk.home).arg("--config").arg(desk.place("lifeboat.toml")).args(["wal", "status"]);
    let document = status().arg("--json").run().expect_code(3).json();
    let receiver = &document["clusters"][0]["receiver"];
    let lsn = |member: &str| receiver[member].as_str().and_then(|text| text.parse::<Lsn>().ok()).unwrap_or_else(|| panic!("{document:#}"));
    assert!(first <= lsn("stored") && lsn("stored") < second, "{document:#}");
    assert!(lsn("spooled") >= second && lsn("received") >= lsn("spooled") && lsn("acknowledged") >= second, "{document:#}");
    assert!(receiver["waiting_bytes"].as_u64() > Some(0) && receiver["mode"] == "sync-spool", "{document:#}");
    let codes: Vec<&str> = document["findings"].as_array().unwrap().iter().filter_map(|finding| finding["code"].as_str()).collect();
    assert!(codes.contains(&"not-synchronous"), "{codes:?}");
    let text = status().run().expect_code(3).stdout;
    for part in [format!("in the repository {}", lsn("stored")), format!("durable in the spool {}", lsn("spooled"))] {
        assert!(text.contains(&part), "{part}: {text}");
    }
    // A receiver that comes back brings what waits, and the figures meet.
    let mut receiving = desk.receive();
    let end = flushed(&cluster);
    receiving.wait_stored(end);
    assert_eq!(receiving.end(), Some(0));
    let document = status().arg("--json").run().json();
    let receiver = &document["clusters"][0]["receiver"];
    assert_eq!((&receiver["stored"], receiver["waiting_bytes"].as_u64()), (&receiver["received"], Some(0)), "{document:#}");
}

#[test]
fn the_second_receiver_of_a_spool_says_so() {
    let cluster = server(Postgres::V18).start();
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    let mut receiving = desk.receive();
    receiving.wait_connected();
    let output = desk.program().run().expect_code(11);
    assert!(output.stderr.contains("another receiver runs"), "{output}");
    assert_eq!(receiving.end(), Some(0));
}

/// A standby of a cluster, streaming.
fn standby(desk: &Desk, primary: &Cluster, name: &str) -> Cluster {
    let data = desk.place(name);
    let mut backup = primary.program("pg_basebackup");
    let output = primary.run_as_owner(backup.args(["-c", "fast", "-X", "stream", "-N", "-R", "-D"]).arg(&data));
    assert!(output.status.success(), "{output:?}");
    let standby = Cluster::start_existing(&data, primary.version()).unwrap();
    wait_for("the standby streams", || standby.psql("SELECT status FROM pg_stat_wal_receiver") == "streaming");
    standby
}

fn two_hosts(a: &Cluster, b: &Cluster) -> String {
    let host = |cluster: &Cluster| cluster.dsn().split(' ').next().unwrap().trim_start_matches("host=").to_owned();
    format!("host={},{} port=5432 user=postgres dbname=postgres target_session_attrs=read-write", host(a), host(b))
}

fn promote(cluster: &Cluster) {
    cluster.psql("SELECT pg_promote()");
    wait_for("promoted", || cluster.psql("SELECT pg_is_in_recovery()") == "f");
}

fn switch_of(desk: &Desk) -> Lsn {
    let archive = desk.archive();
    let bytes = archive.reader().read_bytes(WalFile::History(Timeline(2)), 1 << 20).unwrap();
    History::parse(Timeline(2), &bytes).unwrap().switch_from(Timeline(1)).unwrap()
}

#[test]
fn c060_c061_a_promotion_is_followed_and_the_old_primary_is_not() {
    for (version, mode) in [(Postgres::V15, "mode = \"stream\""), (Postgres::V18, "mode = \"sync\"")] {
        let mut old = server(version).start();
        let desk = Desk::new();
        let mut new = standby(&desk, &old, "standby");
        desk.configure(&two_hosts(&old, &new), mode);
        desk.program().arg("--create-slot-only").run().success();
        let start = slot_start(&old);
        let mut receiving = desk.receive();
        receiving.wait_connected();
        old.pgbench_init(1);
        old.pgbench_load(1);
        let end = flushed(&old);
        receiving.wait_stored(end);
        wait_for("the standby has all", || new.psql("SELECT pg_last_wal_replay_lsn()").parse::<Lsn>().unwrap() >= flushed(&old));
        old.kill9();
        promote(&new);
        new.pgbench_load(1);
        let end = flushed(&new);
        receiving.wait_for("the new timeline is stored", |desk| {
            desk.status().is_some_and(|status| status["timeline"] == 2) && desk.lsn("stored") >= end
        });
        let switch = switch_of(&desk);
        let archive = desk.archive();
        archive.equals_server(&old, 1, start, switch);
        archive.equals_server(&new, 2, switch, end);
        assert!(desk.has_event("timeline-switched") && !desk.has_event("gap"));

        // The old primary comes back and takes writes; the new one is away.
        old.start_again().unwrap();
        old.psql("CREATE TABLE of_the_old_primary (n int)");
        new.stop(Stop::Fast);
        receiving.wait_for("the old primary is refused", |desk| desk.has_event("refused"));
        receiving.wait_for("that is said", |desk| desk.said().contains("NOT FOLLOWING"));
        new.start_again().unwrap();
        new.psql("CREATE TABLE of_the_new_primary (n int)");
        let end = flushed(&new);
        receiving.wait_stored(end);
        desk.archive().equals_server(&new, 2, switch, end);
        assert_eq!(receiving.end(), Some(0));
    }
}

/// What the server that was lost wrote last only the promoted one has; that does not archive it, and archives what it writes itself at once.
#[test]
fn c060_a_receiver_that_starts_behind_a_promotion_fetches_the_end_of_the_timeline_before() {
    // A slot from before the promotion, none, and none where the server has nothing of it any more.
    for (version, slot_before, still_there) in [(Postgres::V16, true, true), (Postgres::V18, false, true), (Postgres::V15, false, false)] {
        let old = server(version).start();
        let desk = Desk::new();
        let mut new = standby(&desk, &old, "standby");
        desk.configure(&new.dsn(), "mode = \"stream\"");
        // Something of timeline 1 is in the repository, and nothing of its end.
        desk.program().arg("--create-slot-only").run().success();
        old.psql("CREATE TABLE early (n int)");
        let reached =
            |end: Lsn| wait_for("the standby has it", || new.psql("SELECT pg_last_wal_replay_lsn()").parse::<Lsn>().unwrap() >= end);
        reached(flushed(&old));
        let mut receiving = desk.receive();
        receiving.wait_stored(flushed(&old));
        assert_eq!(receiving.end(), Some(0));
        let had = desk.lsn("stored");
        old.pgbench_init(1);
        let late = flushed(&old);
        reached(late);
        drop(old);
        promote(&new);
        if !slot_before {
            new.psql("SELECT pg_drop_replication_slot('lifeboat')");
        }
        new.pgbench_init(1);
        new.psql("SELECT pg_switch_wal()");
        let pg_wal = new.data_directory().join("pg_wal");
        let history = fs::read(pg_wal.join("00000002.history")).unwrap();
        let switch = History::parse(Timeline(2), &history).unwrap().switch_from(Timeline(1)).unwrap();
        assert!(had < late && late <= switch);
        // As its archiver does.
        let first = Segment::containing(Timeline(2), switch, size()).file_name(size());
        for name in ["00000002.history", &first] {
            let push = Program::as_owner(&desk.home);
            push.arg("--config").arg(desk.place("lifeboat.toml")).args(["wal", "push"]).arg(pg_wal.join(name)).run().success();
        }
        if !still_there {
            new.stop(Stop::Fast);
            for segment in lifeboat_core::wal::segments_between(Timeline(1), had, switch, size()) {
                let _ = fs::remove_file(pg_wal.join(segment.file_name(size())));
            }
            new.start_again().unwrap();
        }
        fs::remove_dir_all(&desk.spool).unwrap();

        let mut receiving = desk.receive();
        let end = flushed(&new);
        receiving.wait_for("timeline 2 is stored", |desk| {
            desk.status().is_some_and(|status| status["timeline"] == 2) && desk.lsn("stored") >= end
        });
        let archive = desk.archive();
        if still_there {
            // The switch is in a segment that the new timeline has as well, with the same beginning.
            let last = Segment::containing(Timeline(1), switch, size());
            archive.equals_server(&new, 1, had, last.start(size()));
            let copy = fs::read(pg_wal.join(&first)).unwrap();
            let wanted = (switch.0 - last.start(size()).0) as usize;
            assert!(archive.bytes(last).get(..wanted) == Some(&copy[..wanted]), "the end of timeline 1");
            archive.equals_server(&new, 2, switch, end);
            assert_eq!(archive.gaps(), []);
        } else {
            receiving.wait_for("the gap is told", |desk| desk.has_event("gap"));
            let gaps: Vec<_> = archive.gaps().iter().map(|gap| (gap.timeline, gap.from, gap.to)).collect();
            assert_eq!(gaps, [(Timeline(1), had, switch)]);
        }
        assert_eq!(receiving.end(), Some(0));
        // Nobody looks for what is known to be lost, or is there, once more.
        fs::remove_dir_all(&desk.spool).unwrap();
        desk.program().arg("--once").run().success();
        assert!(!desk.has_event("gap") && !desk.has_event("timeline-switched"), "{:?}", desk.events());
    }
}

/// Processes that are stopped, and go on with the end of the test.
struct Frozen(Vec<rustix::process::Pid>);

impl Frozen {
    fn new(pids: impl IntoIterator<Item = i32>) -> Frozen {
        let frozen = Frozen(pids.into_iter().filter_map(rustix::process::Pid::from_raw).collect());
        for pid in &frozen.0 {
            rustix::process::kill_process(*pid, rustix::process::Signal::STOP).expect("a process of a server of ours");
        }
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = rustix::process::kill_process(*pid, rustix::process::Signal::CONT);
        }
    }
}

#[test]
fn c061_a_server_that_hangs_is_left_for_the_next() {
    let old = server(Postgres::V16).start();
    let desk = Desk::new();
    let new = standby(&desk, &old, "standby");
    desk.configure(&old.dsn(), "");
    let inside = Inside::new(&desk, slow(&desk, Duration::ZERO));
    let mut request = inside.request(&format!("{} connect_timeout=3", two_hosts(&old, &new)), Mode::Stream, &RealDisk);
    request.server_timeout = Duration::from_secs(2);
    inside.run(&request, || {
        old.psql("CREATE TABLE t (n int)");
        let end = flushed(&old);
        wait_for("it is stored", || desk.lsn("stored") >= end);
        wait_for("the standby has it", || new.psql("SELECT pg_last_wal_replay_lsn()").parse::<Lsn>().unwrap() >= end);
        // A server that has nothing to say answers when it is asked.
        thread::sleep(2 * request.server_timeout);
        assert!(!desk.has_event("disconnected"), "{:#?}", desk.events());
        let sender = old.psql("SELECT pid FROM pg_stat_replication WHERE application_name = 'lifeboat'").parse().unwrap();
        let postmaster = fs::read_to_string(old.data_directory().join("postmaster.pid")).unwrap();
        let _frozen = Frozen::new([postmaster.lines().next().unwrap().parse().unwrap(), sender]);
        promote(&new);
        new.psql("CREATE TABLE of_the_new_primary (n int)");
        let end = flushed(&new);
        wait_for("the new timeline is stored", || desk.status().is_some_and(|status| status["timeline"] == 2) && desk.lsn("stored") >= end);
        let events = desk.events();
        assert!(events.iter().any(|event| event["text"].as_str().is_some_and(|text| text.contains("it has said nothing"))), "{events:#?}");
        desk.archive().equals_server(&new, 2, switch_of(&desk), end);
    });
}

#[test]
fn c061_a_server_that_left_our_history_is_refused_in_mode_sync() {
    let mut old = server(Postgres::V16).start();
    let desk = Desk::new();
    let mut new = standby(&desk, &old, "standby");
    desk.configure(&two_hosts(&old, &new), "mode = \"sync\"");
    let mut receiving = desk.receive();
    receiving.wait_connected();
    new.stop(Stop::Fast);
    // The standby never gets this.
    old.psql("CREATE TABLE lost (n int)");
    let end = flushed(&old);
    receiving.wait_stored(end);
    old.kill9();
    new.start_again().unwrap();
    promote(&new);
    receiving.wait_for("it is refused", |desk| desk.has_event("refused"));
    receiving.wait_for("what to do is said", |desk| desk.said().contains("--accept-fork"));
    assert_eq!(receiving.end(), Some(0));
    // Somebody decided.
    new.psql("CREATE TABLE kept (n int)");
    let end = flushed(&new);
    desk.program().args(["--once", "--accept-fork"]).run().success();
    assert!(desk.has_event("forked"));
    desk.archive().equals_server(&new, 2, switch_of(&desk), end);
}

#[test]
fn c061_another_timeline_of_the_same_number_is_not_followed() {
    let old = server(Postgres::V16).start();
    let desk = Desk::new();
    let (mut first, mut second) = (standby(&desk, &old, "first"), standby(&desk, &old, "second"));
    desk.configure(&two_hosts(&first, &second), "mode = \"stream\"");
    let received = |standby: &Cluster, end| {
        wait_for("the standby has it", || standby.psql("SELECT pg_last_wal_replay_lsn()").parse::<Lsn>().unwrap() >= end);
    };
    old.psql("CREATE TABLE early (n int)");
    received(&second, flushed(&old));
    second.stop(Stop::Fast);
    // The second one never gets this, and does not hear of the promotion.
    old.psql("CREATE TABLE late (n int)");
    received(&first, flushed(&old));
    drop(old);
    promote(&first);
    let mut receiving = desk.receive();
    first.pgbench_init(1);
    let end = flushed(&first);
    receiving.wait_stored(end);
    first.kill9();
    second.start_again().unwrap();
    promote(&second);
    receiving.wait_for("it is refused", |desk| desk.has_event("refused"));
    second.pgbench_init(2);
    assert!(flushed(&second) > end);
    assert_eq!(receiving.end(), Some(0));
    // Neither what is in the spool nor what is in the repository lets it in.
    for _ in 0..2 {
        let files = desk.archive().files();
        let mut receiving = desk.receive();
        let pid = receiving.child.id();
        receiving.wait_for("it is refused", |desk| desk.said().contains("NOT FOLLOWING") && desk.said().contains("another timeline 2"));
        receiving.wait_for("it runs", |desk| desk.status().is_some_and(|status| status["pid"] == pid));
        assert_eq!(receiving.end(), Some(0));
        assert_eq!(desk.archive().files().len(), files.len());
        fs::remove_dir_all(&desk.spool).unwrap();
    }
}

/// Whether a commit comes back within some time.
fn commits_within(cluster: &Cluster, limit: Duration) -> bool {
    let mut psql = cluster.program("psql");
    let mut child =
        psql.args(["-X", "-q", "-c", "INSERT INTO note VALUES (1)"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.success();
        }
        if begun.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn name_synchronous(cluster: &Cluster, value: &str) {
    cluster.psql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{value}'"));
    cluster.psql("SELECT pg_reload_conf()");
}

/// Lets commits wait for the receiver, and waits until it is what the server calls that.
#[track_caller]
fn wait_for_synchronous(cluster: &Cluster, value: &str, state: &str) {
    name_synchronous(cluster, value);
    wait_for("a synchronous standby", || cluster.psql("SELECT sync_state FROM pg_stat_replication") == state);
}

fn names(cluster: &Cluster) -> String {
    cluster.psql("SHOW synchronous_standby_names")
}

#[test]
fn c059_commits_wait_or_go_on_as_chosen_when_the_repository_is_away() {
    for degrade in [false, true] {
        let cluster = server(if degrade { Postgres::V15 } else { Postgres::V18 }).start();
        cluster.psql("CREATE TABLE note (n int)");
        let desk = Desk::new();
        let fallout = if degrade { "on_fallout = \"degrade\"\ndegrade_after = \"1s\"" } else { "" };
        desk.configure(&cluster.dsn(), &format!("mode = \"sync\"\ndurability = \"repository\"\n{fallout}"));
        let mut receiving = desk.receive();
        receiving.wait_connected();
        name_synchronous(&cluster, "ANY 1 (lifeboat)");
        receiving.wait_for("a synchronous standby", |_| cluster.psql("SELECT sync_state FROM pg_stat_replication") == "quorum");
        assert!(commits_within(&cluster, DEADLINE));

        let away = desk.place("away");
        fs::rename(desk.repository(), &away).unwrap();
        if degrade {
            assert!(commits_within(&cluster, DEADLINE), "commits go on");
            assert_eq!(names(&cluster), "");
            receiving
                .wait_for("that is told and said", |desk| desk.has_event("degraded") && desk.said().contains("COMMITS NO LONGER WAIT"));
        } else {
            assert!(!commits_within(&cluster, Duration::from_secs(3)), "a commit was acknowledged that the repository does not have");
            assert_eq!(names(&cluster), "ANY 1 (lifeboat)");
        }
        fs::rename(&away, desk.repository()).unwrap();
        receiving.wait_for("the repository is back", |desk| desk.has_event("store-back"));
        receiving.wait_for("the name is back", |_| names(&cluster) == "ANY 1 (lifeboat)");
        if degrade {
            receiving.wait_for("that is told", |desk| desk.has_event("restored"));
            receiving.wait_for("both are in the repository's audit log", |desk| desk.audited() == (vec!["findings", "done"], 0));
        } else {
            assert!(!desk.has_event("degraded"));
            assert_eq!(desk.audited(), (vec![], 0));
        }
        assert!(commits_within(&cluster, DEADLINE));

        // An orderly end.
        assert_eq!(receiving.end(), Some(0), "{}", desk.said());
        if degrade {
            assert_eq!(names(&cluster), "");
            assert!(commits_within(&cluster, DEADLINE));
            // On this host at least: whoever ends must not wait for a repository.
            assert_eq!(desk.audited(), (vec!["findings", "done", "findings"], 2));
            // As of one that was killed before it told anybody: the next one does.
            let state = desk.receive_directory().join("state.json");
            let noted = fs::read_to_string(&state).unwrap();
            assert!(noted.contains("\"told\":true") || noted.contains("\"told\": true"), "{noted}");
            fs::write(&state, noted.replace("\"told\":true", "\"told\":false").replace("\"told\": true", "\"told\": false")).unwrap();
            let mut receiving = desk.receive();
            receiving.wait_for("the name is back", |_| names(&cluster) == "ANY 1 (lifeboat)");
            receiving.wait_for("the records are carried", |desk| {
                desk.audited() == (vec!["findings", "done", "findings", "findings", "done"], 0)
            });
            assert!(commits_within(&cluster, DEADLINE));
        } else {
            assert!(!commits_within(&cluster, Duration::from_secs(2)));
        }
    }
}

/// Two hosts, one slot: the one that waits for it says nothing about the other's commits, and takes nothing away when it ends.
#[test]
fn c059_a_receiver_without_the_slot_leaves_the_names_alone() {
    let cluster = server(Postgres::V16).start();
    cluster.psql("CREATE TABLE note (n int)");
    let (desk, other) = (Desk::new(), Desk::new());
    for desk in [&desk, &other] {
        desk.configure(&cluster.dsn(), "mode = \"sync\"\non_fallout = \"degrade\"\ndegrade_after = \"1s\"");
    }
    let mut receiving = desk.receive();
    receiving.wait_connected();
    name_synchronous(&cluster, "ANY 1 (lifeboat)");
    receiving.wait_for("a synchronous standby", |_| cluster.psql("SELECT sync_state FROM pg_stat_replication") == "quorum");
    let mut waiting = other.receive();
    waiting.wait_for("it hears who has the slot", |desk| desk.has_event("disconnected"));
    assert_eq!(waiting.end(), Some(0), "{}", other.said());
    assert!(!other.has_event("degraded") && !other.has_event("connected"), "{}", other.said());
    assert_eq!(names(&cluster), "ANY 1 (lifeboat)");
    assert!(commits_within(&cluster, DEADLINE));
    let inside = Inside::new(&other, slow(&other, Duration::ZERO));
    let dsn = cluster.dsn();
    let always = inside.request(&dsn, Mode::SyncSpool, &RealDisk);
    let request = ReceiveRequest { course: Course::UnlessReceived, busy_slot: Duration::from_millis(100), ..always };
    let refused = receive::run(&inside.repository, &request, &Silent, &receive::Stop::default());
    assert!(matches!(refused, Err(receive::ReceiveError::SlotInUse { .. })), "{refused:?}");
    assert_eq!(names(&cluster), "ANY 1 (lifeboat)");
    assert_eq!(receiving.end(), Some(0), "{}", desk.said());
    assert_eq!(names(&cluster), "", "its own name is its own to take");
}

/// What an agent that lost the turn has in its spool was acknowledged, and nobody else has it.
#[test]
fn c058_what_waits_is_brought_away_without_a_server() {
    let mut cluster = server(Postgres::V18).start();
    cluster.psql("CREATE TABLE note (n int)");
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "mode = \"sync\"");
    desk.program().arg("--create-slot-only").run().success();
    let start = slot_start(&cluster);
    let mut receiving = desk.receive();
    receiving.wait_connected();
    name_synchronous(&cluster, "lifeboat");
    receiving.wait_for("a synchronous standby", |_| cluster.psql("SELECT sync_state FROM pg_stat_replication") == "sync");
    let away = desk.place("away");
    fs::rename(desk.repository(), &away).unwrap();
    // Over more than one segment, and acknowledged.
    cluster.psql("INSERT INTO note SELECT generate_series(1, 50000)");
    let end = flushed(&cluster);
    assert_eq!(receiving.end(), Some(0), "{}", desk.said());
    let refused = desk.program().arg("--drain").run();
    assert!(refused.code != Some(0), "there is no repository: {refused}");
    fs::rename(&away, desk.repository()).unwrap();
    let whole = Segment::containing(Timeline(1), end, size());
    assert!(!desk.archive().files().contains(&WalFile::Segment(Segment { number: whole.number - 1, ..whole })), "something waits");
    cluster.psql("ALTER SYSTEM SET synchronous_standby_names = ''");
    let (data, drained) = (cluster.data_directory().to_owned(), desk.program().arg("--drain"));
    cluster.kill9();
    drained.run().success();
    desk.archive().equals(&data, 1, start, end);
    assert_eq!(desk.archive().gaps(), []);
    // Nothing waits any more.
    desk.program().arg("--drain").run().success();
}

/// A file of it is damaged, and no server sends it again: what is behind it is brought away, and that something is left is told.
#[test]
fn c058_what_waits_behind_a_damaged_file_is_brought_away_too() {
    let mut cluster = server(Postgres::V16).start();
    cluster.psql("CREATE TABLE note (n int)");
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "mode = \"sync\"");
    desk.program().arg("--create-slot-only").run().success();
    let mut receiving = desk.receive();
    receiving.wait_connected();
    let stored = flushed(&cluster);
    receiving.wait_for("the beginning is stored", |desk| desk.lsn("stored") >= stored);
    let away = desk.place("away");
    fs::rename(desk.repository(), &away).unwrap();
    // Over several segments.
    cluster.psql("INSERT INTO note SELECT generate_series(1, 100000)");
    let end = flushed(&cluster);
    receiving.wait_for("all is in the spool", |desk| desk.lsn("received") >= end);
    assert_eq!(receiving.end(), Some(0), "{}", desk.said());
    fs::rename(&away, desk.repository()).unwrap();
    let (first, last) = (Segment::containing(Timeline(1), stored, size()), Segment::containing(Timeline(1), end, size()));
    assert!(last.number >= first.number + 3, "{first:?} {last:?}");
    let bad = Segment { number: first.number + 1, ..first };
    let path = desk.receive_directory().join("00000001").join(bad.file_name(size()));
    let file = fs::OpenOptions::new().write(true).open(&path).expect("it is finished");
    file.write_all_at(&[0xEE; 100], 500_000).unwrap();
    cluster.kill9();
    for _ in 0..2 {
        let told = desk.program().arg("--drain").run().expect_code(3);
        assert!(told.stderr.contains("something is left there") && told.stderr.contains("hint: "), "{told}");
    }
    let archive = desk.archive();
    archive.equals(cluster.data_directory(), 1, Segment { number: bad.number + 1, ..bad }.start(size()), end);
    assert!(!archive.files().contains(&WalFile::Segment(bad)), "damaged bytes were signed");
    assert!(path.with_extension("suspect").exists(), "what is left of it stays");
}

#[test]
fn c059_a_receiver_that_starts_while_the_repository_is_away_keeps_its_promise() {
    let cluster = server(Postgres::V18).start();
    cluster.psql("CREATE TABLE note (n int)");
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "mode = \"sync\"");
    desk.program().arg("--create-slot-only").run().success();
    let start = slot_start(&cluster);
    let away = desk.place("away");
    fs::rename(desk.repository(), &away).unwrap();
    // Without a spool of it nobody knows whose WAL it would be.
    desk.program().run().expect_code(10);
    fs::rename(&away, desk.repository()).unwrap();
    let mut receiving = desk.receive();
    receiving.wait_connected();
    name_synchronous(&cluster, "lifeboat");
    receiving.wait_for("a synchronous standby", |_| cluster.psql("SELECT sync_state FROM pg_stat_replication") == "sync");
    assert!(commits_within(&cluster, DEADLINE));
    receiving.kill9();

    fs::rename(desk.repository(), &away).unwrap();
    desk.program().arg("--once").run().expect_code(10);
    let mut receiving = desk.receive();
    receiving.wait_connected();
    assert!(commits_within(&cluster, DEADLINE), "commits go on");
    cluster.psql("CREATE TABLE filler AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 3000) n");
    let end = flushed(&cluster);
    receiving.wait_for("that is told", |desk| desk.has_event("store-failing"));
    // Where it stood is something else.
    Program::as_owner(&desk.home).args(["init", "--repository"]).arg(desk.repository()).run().success();
    receiving.wait_for("that is seen", |desk| {
        desk.status().is_some_and(|status| status["store_trouble"].as_str().is_some_and(|text| text.contains("it is repository")))
    });
    fs::remove_dir_all(desk.repository()).unwrap();
    fs::rename(&away, desk.repository()).unwrap();
    receiving.wait_stored(end);
    receiving.wait_for("that is told", |desk| desk.has_event("store-back"));
    assert_eq!(receiving.end(), Some(0), "{}", desk.said());
    let archive = desk.archive();
    archive.equals_server(&cluster, 1, start, end);
    assert_eq!(archive.gaps(), []);
}

/// A receiver inside the test, for stores and disks that misbehave.
struct Inside<'d> {
    desk: &'d Desk,
    repository: Repository,
    signer: KeyFileSigner,
    protection: Protection,
    trust: Trust,
}

impl<'d> Inside<'d> {
    fn new(desk: &'d Desk, store: Box<dyn Store>) -> Inside<'d> {
        let keys = desk.place(".config/lifeboat");
        let pem = fs::read_to_string(keys.join("signing.key")).unwrap();
        Inside {
            desk,
            repository: Repository::open(store).unwrap(),
            signer: KeyFileSigner::open(&pem, desk.key_text("signing.password").as_bytes()).unwrap(),
            protection: Protection::Recipients { recipients: vec![desk.key_text("recipients.txt").parse().unwrap()], host: None },
            trust: Trust::from_pems([desk.key_text("signing.pub").as_str()]).unwrap(),
        }
    }

    fn request<'r>(&'r self, dsn: &str, mode: Mode, disk: &'r dyn Disk) -> ReceiveRequest<'r> {
        ReceiveRequest {
            dsn: Dsn::parse(dsn).unwrap(),
            slot: "lifeboat".to_owned(),
            spool: self.desk.spool.clone(),
            spool_limit: 4 << 30,
            memory_bytes: 64 << 20,
            flush_interval: Duration::from_millis(100),
            mode,
            degrade_after: None,
            server_timeout: receive::SERVER_TIMEOUT,
            accept_fork: false,
            course: Course::Always,
            busy_slot: receive::BUSY_SLOT,
            signer: &self.signer,
            trust: &self.trust,
            protection: &self.protection,
            level: 1,
            host: "test".to_owned(),
            program: "test".to_owned(),
            disk,
        }
    }

    /// Runs a receiver beside `body`, and ends it in order.
    fn run(&self, request: &ReceiveRequest<'_>, body: impl FnOnce()) {
        let stop = receive::Stop::default();
        thread::scope(|scope| {
            let receiver = scope.spawn(|| receive::run(&self.repository, request, &Silent, &stop));
            // A body that panics must not leave the receiver to run for ever.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            stop.request();
            let received = receiver.join().expect("the receiver does not panic");
            if let Err(panic) = outcome {
                eprintln!("{:#?}\n{:#?}", self.desk.status(), self.desk.events());
                std::panic::resume_unwind(panic);
            }
            received.unwrap();
        });
    }
}

struct Silent;

impl Watcher for Silent {}

/// A store that takes its time for every object, or takes none.
struct SlowStore {
    inner: LocalStore,
    pause: Duration,
    closed: Arc<AtomicBool>,
    flying: Flying,
}

/// Objects on their way, and the most that there were at once.
#[derive(Clone, Default)]
struct Flying(Arc<Mutex<(usize, usize)>>);

struct SlowWriter<'s> {
    inner: Box<dyn ObjectWriter + 's>,
    pause: Duration,
    closed: &'s AtomicBool,
    flying: Flying,
}

impl ObjectWriter for SlowWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.inner.write(bytes)
    }

    fn commit(self: Box<Self>, key: &Key) -> Result<(), StoreError> {
        {
            let (now, most) = &mut *self.flying.0.lock().unwrap();
            *now += 1;
            *most = (*most).max(*now);
        }
        thread::sleep(self.pause);
        self.flying.0.lock().unwrap().0 -= 1;
        if self.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Full { key: key.to_string(), store: "a full disk".to_owned() });
        }
        self.inner.commit(key)
    }
}

impl Store for SlowStore {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        Ok(Box::new(SlowWriter { inner: self.inner.writer()?, pause: self.pause, closed: &self.closed, flying: self.flying.clone() }))
    }

    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.inner.get(key, limit)
    }

    fn get_range(&self, key: &Key, range: std::ops::Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        self.inner.get_range(key, range, buffer)
    }

    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        self.inner.length(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(prefix)
    }

    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.inner.list_segments(prefix)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        self.inner.is_empty()
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.inner.delete(key)
    }
}

fn slow_store(desk: &Desk, pause: Duration, closed: bool) -> SlowStore {
    SlowStore {
        inner: LocalStore::open(&desk.repository(), false).unwrap(),
        pause,
        closed: Arc::new(closed.into()),
        flying: Flying::default(),
    }
}

fn slow(desk: &Desk, pause: Duration) -> Box<dyn Store> {
    Box::new(slow_store(desk, pause, false))
}

/// One that can be read, and takes nothing.
fn closed(desk: &Desk) -> Box<dyn Store> {
    Box::new(slow_store(desk, Duration::ZERO, true))
}

/// A service that signs, and is away now and then.
struct AwaySigner<'s> {
    inner: &'s KeyFileSigner,
    away: AtomicBool,
}

impl Signer for AwaySigner<'_> {
    fn sign_statement(&self, statement: &[u8]) -> Result<String, SignError> {
        match self.away.load(Ordering::SeqCst) {
            true => Err(SignError::Denied("the token has expired".to_owned())),
            false => self.inner.sign_statement(statement),
        }
    }

    fn public_key(&self) -> Option<PublicKey> {
        Signer::public_key(self.inner)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[test]
fn c059_commits_go_on_while_nobody_signs() {
    let cluster = server(Postgres::V16).start();
    cluster.psql("CREATE TABLE note (n int)");
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "mode = \"sync\"");
    desk.program().arg("--create-slot-only").run().success();
    let start = slot_start(&cluster);
    name_synchronous(&cluster, "lifeboat");
    let inside = Inside::new(&desk, slow(&desk, Duration::ZERO));
    let signer = AwaySigner { inner: &inside.signer, away: AtomicBool::new(true) };
    let mut request = inside.request(&cluster.dsn(), Mode::SyncSpool, &RealDisk);
    request.signer = &signer;
    inside.run(&request, || {
        assert!(commits_within(&cluster, DEADLINE));
        wait_for("that is told", || desk.has_event("store-failing"));
        assert!(commits_within(&cluster, DEADLINE) && !desk.has_event("stopped"));
        signer.away.store(false, Ordering::SeqCst);
        let end = flushed(&cluster);
        wait_for("all is stored", || desk.lsn("stored") >= end);
        desk.archive().equals_server(&cluster, 1, start, end);
        assert!(desk.has_event("store-back"));
    });
}

#[test]
fn c059_a_receiver_starts_while_nobody_signs() {
    let cluster = server(Postgres::V18).start();
    cluster.psql("CREATE TABLE note (n int)");
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "mode = \"sync\"");
    desk.program().arg("--create-slot-only").run().success();
    let start = slot_start(&cluster);
    name_synchronous(&cluster, "lifeboat");
    let file = desk.place("lifeboat.toml");
    let text = fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once("[signing]").unwrap();
    let (_, after) = rest.split_once("[trust]").unwrap();
    let away = "transit = { address = 'http://127.0.0.1:9', key = 'backups', token = { file = 'token' } }";
    fs::write(&file, format!("{before}[signing]\n{away}\n[trust]{after}")).unwrap();
    fs::write(desk.place("token"), "hunter2").unwrap();
    Owner::current().own(&desk.place("token"));
    desk.program().arg("--once").run().expect_code(1);
    let mut receiving = desk.receive();
    receiving.wait_connected();
    assert!(commits_within(&cluster, DEADLINE));
    let end = flushed(&cluster);
    receiving.wait_for("it is in the spool", |desk| desk.lsn("spooled") >= end);
    receiving.wait_for("that is told", |desk| desk.has_event("store-failing") && !desk.has_event("stopped"));
    fs::write(&file, text).unwrap();
    assert_eq!(receiving.end(), Some(0));
    let mut receiving = desk.receive();
    receiving.wait_stored(end);
    desk.archive().equals_server(&cluster, 1, start, end);
}

#[test]
fn c058_what_waits_in_the_spool_is_not_acknowledged_by_a_restart_and_is_looked_at_before_it_is_stored() {
    let cluster = server(Postgres::V16).start();
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    desk.program().arg("--create-slot-only").run().success();
    let start = slot_start(&cluster);
    let fill =
        "CREATE TABLE IF NOT EXISTS filler (t text); INSERT INTO filler SELECT repeat(md5(n::text), 30) FROM generate_series(1, 4000) n";
    let open = Inside::new(&desk, slow(&desk, Duration::ZERO));
    let mut stored = Lsn::INVALID;
    open.run(&open.request(&cluster.dsn(), Mode::Stream, &RealDisk), || {
        cluster.psql("CREATE TABLE t (n int)");
        stored = flushed(&cluster);
        wait_for("all is stored", || desk.lsn("acknowledged") >= stored);
    });
    let inside = Inside::new(&desk, closed(&desk));
    let request = inside.request(&cluster.dsn(), Mode::Stream, &RealDisk);
    inside.run(&request, || {
        cluster.psql(fill);
        let end = flushed(&cluster);
        wait_for("it is in the spool", || desk.lsn("received") >= end);
        thread::sleep(Duration::from_millis(500));
    });
    let before = desk.lsn("stored");
    inside.run(&request, || {
        cluster.psql("INSERT INTO t VALUES (1)");
        let end = flushed(&cluster);
        wait_for("the stream goes on", || desk.lsn("received") >= end);
        thread::sleep(Duration::from_secs(2));
        let acknowledged = desk.lsn("acknowledged");
        assert!(acknowledged <= before, "{acknowledged} was acknowledged, {before} is stored");
        assert!(slot_start(&cluster) <= before);
    });
    // One of the finished segments is damaged while nobody looks.
    let segment = Segment::containing(Timeline(1), Lsn(before.0 + 2 * size().bytes()), size());
    let file = desk.receive_directory().join("00000001").join(segment.file_name(size()));
    let file = fs::OpenOptions::new().write(true).open(file).expect("it is finished");
    file.write_all_at(&[0xEE; 100], 500_000).unwrap();
    open.run(&open.request(&cluster.dsn(), Mode::Stream, &RealDisk), || {
        let end = flushed(&cluster);
        wait_for("all is stored", || desk.lsn("stored") >= end);
        desk.archive().equals_server(&cluster, 1, start, end);
        assert!(desk.has_event("spool-failing"));
    });
}

#[test]
fn c055_a_server_shuts_down_while_the_repository_is_away() {
    for (mode, spool_limit) in [(Mode::Stream, 4 << 30), (Mode::SyncRepository, 4 << 30), (Mode::SyncSpool, 1 << 20)] {
        let mut cluster = server(Postgres::V16).start();
        let desk = Desk::new();
        desk.configure(&cluster.dsn(), "");
        desk.program().arg("--create-slot-only").run().success();
        let start = slot_start(&cluster);
        let closed = Arc::new(AtomicBool::new(true));
        let inside = Inside::new(&desk, closable(&desk, &closed));
        let mut request = inside.request(&cluster.dsn(), mode, &RealDisk);
        request.spool_limit = spool_limit;
        inside.run(&request, || {
            wait_for("streaming", || desk.status().is_some_and(|status| status["state"] == "streaming"));
            cluster.psql("CREATE TABLE filler AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 9000) n");
            wait_for("the store fails", || desk.has_event("store-failing"));
            wait_for("the spool is full", || mode != Mode::SyncSpool || desk.has_event("paused"));
            // It would hang until the repository is back: this ends the test then.
            cluster.stop(Stop::Fast);
            let left = |event: &Value| event["text"].as_str().is_some_and(|text| text.contains("the server shuts down"));
            wait_for("that is told", || desk.events().iter().any(left));
            cluster.start_again().unwrap();
            closed.store(false, Ordering::SeqCst);
            let end = flushed(&cluster);
            wait_for("all is stored", || desk.lsn("stored") >= end);
            desk.archive().equals_server(&cluster, 1, start, end);
        });
    }
}

#[test]
fn c058_a_damaged_file_of_the_spool_is_asked_for_again_before_anything_behind_it_is_acknowledged() {
    for (mode, still_there) in [(Mode::Stream, true), (Mode::SyncSpool, true), (Mode::SyncSpool, false)] {
        let mut cluster = server(Postgres::V16).start();
        let desk = Desk::new();
        desk.configure(&cluster.dsn(), "");
        desk.program().arg("--create-slot-only").run().success();
        let start = slot_start(&cluster);
        let open = Inside::new(&desk, slow(&desk, Duration::ZERO));
        open.run(&open.request(&cluster.dsn(), mode, &RealDisk), || {
            cluster.psql("CREATE TABLE t (n int)");
            let stored = flushed(&cluster);
            wait_for("all is stored", || desk.lsn("stored") >= stored && desk.lsn("acknowledged") >= stored);
        });
        let before = desk.lsn("stored");
        let inside = Inside::new(&desk, closed(&desk));
        inside.run(&inside.request(&cluster.dsn(), mode, &RealDisk), || {
            cluster.psql("CREATE TABLE filler AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 4000) n");
            let end = flushed(&cluster);
            let member = if mode == Mode::Stream { "received" } else { "acknowledged" };
            wait_for("it is in the spool", || desk.lsn(member) >= end);
            thread::sleep(Duration::from_millis(500));
        });
        let segment = Segment::containing(Timeline(1), before, size());
        let next = segment.next().start(size());
        // The first file that waits is damaged while no server is there, and that is seen before one is.
        cluster.stop(Stop::Fast);
        let path = desk.receive_directory().join("00000001").join(segment.file_name(size()));
        let file = fs::OpenOptions::new().write(true).open(&path).expect("it is finished");
        file.write_all_at(&[0xEE; 100], 500_000).unwrap();
        let dsn = cluster.dsn();
        inside.run(&inside.request(&dsn, mode, &RealDisk), || {
            wait_for("it is put aside", || path.with_extension("suspect").exists());
            if mode == Mode::Stream {
                cluster.start_again().unwrap();
                cluster.psql("INSERT INTO t VALUES (1)");
                let end = flushed(&cluster);
                wait_for("the stream goes on", || desk.lsn("received") >= end && desk.lsn("server") >= end);
                thread::sleep(Duration::from_secs(2));
                let acknowledged = desk.lsn("acknowledged");
                assert!(acknowledged <= before, "{acknowledged} was acknowledged, {before} is stored");
                assert!(slot_start(&cluster) <= before);
            }
        });
        if mode == Mode::SyncSpool {
            if !still_there {
                fs::remove_file(cluster.data_directory().join("pg_wal").join(segment.file_name(size()))).unwrap();
            }
            cluster.start_again().unwrap();
            assert!(slot_start(&cluster) > next, "what was acknowledged is not kept by the slot");
        }
        open.run(&open.request(&dsn, mode, &RealDisk), || {
            cluster.psql("INSERT INTO t VALUES (2)");
            let end = flushed(&cluster);
            wait_for("all is stored", || desk.lsn("stored") >= end);
            let archive = desk.archive();
            if still_there {
                archive.equals_server(&cluster, 1, start, end);
                assert_eq!(archive.gaps(), []);
                assert!(!path.with_extension("suspect").exists(), "all of it is there");
            } else {
                archive.equals_server(&cluster, 1, next, end);
                let gaps: Vec<_> = archive.gaps().iter().map(|gap| (gap.timeline, gap.from, gap.to)).collect();
                assert_eq!(gaps, [(Timeline(1), before, next)]);
            }
        });
    }
}

#[test]
fn c062_a_slow_repository_holds_the_stream_back_and_the_server_stays_connected() {
    let cluster = server(Postgres::V15).config("wal_sender_timeout", "1s").start();
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    desk.program().arg("--create-slot-only").run().success();
    let start = slot_start(&cluster);
    let inside = Inside::new(&desk, slow(&desk, Duration::from_millis(400)));
    let mut request = inside.request(&cluster.dsn(), Mode::Stream, &RealDisk);
    request.spool_limit = 2 << 20;
    inside.run(&request, || {
        cluster.pgbench_init(1);
        wait_for("the stream is not read any more", || desk.has_event("paused"));
        let end = flushed(&cluster);
        // Held back: what waits is bounded, however much there is.
        let mut most = 0;
        wait_for("all is stored", || {
            most = most.max(desk.status().and_then(|status| status["waiting_bytes"].as_u64()).unwrap_or(0));
            desk.lsn("stored") >= end
        });
        assert!(most <= (2 << 20) + (2 << 20), "{most} bytes waited");
        assert!(desk.has_event("resumed"));
        assert!(!desk.has_event("disconnected"), "{:#?}", desk.events());
        assert!(!cluster.log().contains("replication timeout"), "{}", cluster.log());
        desk.archive().equals_server(&cluster, 1, start, end);
    });
}

#[test]
fn c059_commits_share_the_time_of_a_slow_repository() {
    const PAUSE: Duration = Duration::from_millis(100);
    let cluster = server(Postgres::V18).start();
    cluster.psql("CREATE TABLE note (client int, n int)");
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    let store = slow_store(&desk, PAUSE, false);
    let flying = store.flying.clone();
    let inside = Inside::new(&desk, Box::new(store));
    let request = inside.request(&cluster.dsn(), Mode::SyncRepository, &RealDisk);
    inside.run(&request, || {
        wait_for("streaming", || desk.status().is_some_and(|status| status["state"] == "streaming"));
        let end = flushed(&cluster);
        wait_for("caught up", || desk.lsn("acknowledged") >= end);
        wait_for_synchronous(&cluster, "lifeboat", "sync");
        flying.0.lock().unwrap().1 = 0;
        let begun = Instant::now();
        let clients = Clients::start(&cluster, 6);
        thread::sleep(Duration::from_secs(5));
        cluster.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'psql' AND pid <> pg_backend_pid()");
        let acknowledged = clients.acknowledged().len() as u32;
        let took = begun.elapsed();
        println!("{acknowledged} commits of 6 clients in {took:?}: {:?} each", took * 6 / acknowledged.max(1));
        // A store that took one object after the other would have acknowledged no more than it had time for. Where several clients share an
        // object that says nothing, so: while one is on its way the next leaves, and a commit waits for its own object, not for that before it.
        let most = flying.0.lock().unwrap().1;
        assert!(acknowledged > 6 && most >= 2, "{acknowledged} commits, at most {most} objects on their way");
    });
}

/// A disk that does not come back from a sync until somebody lets it.
#[derive(Default)]
struct StuckDisk {
    stuck: Mutex<bool>,
    freed: Condvar,
    waits: AtomicBool,
}

impl StuckDisk {
    fn set(&self, stuck: bool) {
        *self.stuck.lock().unwrap() = stuck;
        self.freed.notify_all();
    }
}

impl Disk for StuckDisk {
    fn write_at(&self, file: &fs::File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    fn sync(&self, file: &fs::File) -> io::Result<()> {
        let mut stuck = self.stuck.lock().unwrap();
        while *stuck {
            self.waits.store(true, Ordering::SeqCst);
            stuck = self.freed.wait(stuck).unwrap();
        }
        drop(stuck);
        file.sync_data()
    }
}

#[test]
fn c058_c059_no_commit_is_acknowledged_before_the_spool_is_on_its_disk() {
    let cluster = server(Postgres::V18).start();
    cluster.psql("CREATE TABLE note (n int)");
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    let disk = StuckDisk::default();
    // The repository takes nothing: there is only the spool.
    let inside = Inside::new(&desk, closed(&desk));
    inside.run(&inside.request(&cluster.dsn(), Mode::SyncSpool, &disk), || {
        wait_for("streaming", || desk.status().is_some_and(|status| status["state"] == "streaming"));
        wait_for_synchronous(&cluster, "lifeboat", "sync");
        assert!(commits_within(&cluster, DEADLINE));
        disk.set(true);
        // The last sync that was under way may still cover one more.
        let freed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cluster.psql("SET synchronous_commit = local; INSERT INTO note VALUES (2)");
            wait_for("a sync waits", || disk.waits.load(Ordering::SeqCst));
            cluster.psql("SET synchronous_commit = local; INSERT INTO note VALUES (3)");
            let end = flushed(&cluster);
            wait_for("it is received", || desk.lsn("received") >= end);
            assert!(!commits_within(&cluster, Duration::from_secs(2)), "a commit was acknowledged that no disk has");
            let told: Lsn = cluster.psql("SELECT flush_lsn FROM pg_stat_replication").parse().unwrap();
            assert!(told < end && desk.lsn("acknowledged") < end && desk.lsn("spooled") < end, "{told} of {end}");
            let written: Lsn = cluster.psql("SELECT write_lsn FROM pg_stat_replication").parse().unwrap();
            assert!(written >= told);
        }));
        // A receiver waits for its disk when it ends.
        disk.set(false);
        if let Err(panic) = freed {
            std::panic::resume_unwind(panic);
        }
        assert!(commits_within(&cluster, DEADLINE));
    });
}

/// A disk that does not come back from syncs of files of one timeline until somebody lets it.
struct StuckTimeline {
    timeline: &'static str,
    inner: StuckDisk,
}

impl Disk for StuckTimeline {
    fn sync(&self, file: &fs::File) -> io::Result<()> {
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if path.components().any(|part| part.as_os_str() == self.timeline) { self.inner.sync(file) } else { file.sync_data() }
    }
}

/// What a receiver has that a primary wrote last before it was lost: the beginning of a long record that its standby never got.
struct HalfRecord {
    desk: Desk,
    new: Cluster,
    /// The end of what the standby got: where it is promoted.
    got: Lsn,
}

impl HalfRecord {
    /// The record is as long as `message` says, begins in the first part of a segment, and the spool has it up to `has`, from the start of that
    /// segment on. It has only that segment and those behind it.
    fn make(version: Postgres, message: u64, has: u64) -> HalfRecord {
        let mut old = server(version).config("autovacuum", "off").start();
        let desk = Desk::new();
        let mut new = standby(&desk, &old, "standby");
        desk.configure(&two_hosts(&old, &new), "");
        old.psql("CREATE TABLE note (n int)");
        // It would write a whole record every 15 seconds, which the standby may not get.
        let writer = old.psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'");
        let writer = rustix::process::Pid::from_raw(writer.parse().unwrap()).expect("it runs");
        rustix::process::kill_process(writer, rustix::process::Signal::STOP).unwrap();
        let inside = Inside::new(&desk, slow(&desk, Duration::ZERO));
        inside.run(&inside.request(&old.dsn(), Mode::SyncSpool, &RealDisk), || {
            old.psql("SELECT pg_switch_wal()");
            old.psql("INSERT INTO note VALUES (0)");
            let end = flushed(&old);
            wait_for("the standby has it", || new.psql("SELECT pg_last_wal_receive_lsn()").parse::<Lsn>().unwrap() >= end);
            wait_for("all before is stored", || desk.lsn("stored") >= end);
        });
        new.stop(Stop::Fast);
        // The repository takes nothing more.
        let inside = Inside::new(&desk, closed(&desk));
        let mut end = Lsn::INVALID;
        inside.run(&inside.request(&old.dsn(), Mode::SyncSpool, &RealDisk), || {
            old.psql(&format!("SELECT pg_logical_emit_message(false, 'long', repeat('x', {message}))"));
            old.psql("INSERT INTO note VALUES (1)");
            end = flushed(&old);
            wait_for("it is in the spool", || desk.lsn("acknowledged") >= end);
        });
        old.kill9();
        new.start_again().unwrap();
        promote(&new);
        let history = fs::read(new.data_directory().join("pg_wal/00000002.history")).unwrap();
        let got = History::parse(Timeline(2), &history).unwrap().switch_from(Timeline(1)).unwrap();
        let first = Segment::containing(Timeline(1), got, size());
        let directory = desk.receive_directory().join("00000001");
        let has = Lsn(first.start(size()).0 + has);
        assert!(got < has && has < end, "{got} {has} {end}");
        for segment in lifeboat_core::wal::segments_between(Timeline(1), first.start(size()), end, size()) {
            let path = directory.join(segment.file_name(size()));
            let open = path.with_extension("open");
            let bytes = has.0.saturating_sub(segment.start(size()).0);
            if bytes < size().bytes() {
                if path.exists() {
                    fs::rename(&path, &open).unwrap();
                }
                if bytes == 0 {
                    fs::remove_file(&open).unwrap();
                } else {
                    fs::OpenOptions::new().write(true).open(&open).unwrap().set_len(bytes).unwrap();
                }
            }
        }
        HalfRecord { desk, new, got }
    }

    /// The server that was promoted is followed, and no commit of it comes back before the spool has it.
    fn is_followed(&self, store: Box<dyn Store>) {
        let Self { desk, new, got } = self;
        let disk = StuckTimeline { timeline: "00000002", inner: StuckDisk::default() };
        disk.inner.set(true);
        let inside = Inside::new(desk, store);
        inside.run(&inside.request(&new.dsn(), Mode::SyncSpool, &disk), || {
            let freed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                wait_for("it is followed", || desk.status().is_some_and(|status| status["timeline"] == 2) || desk.has_event("refused"));
                assert!(!desk.has_event("refused") && !desk.has_event("forked"), "{:?}", desk.events());
                wait_for_synchronous(new, "lifeboat", "sync");
                assert!(!commits_within(new, Duration::from_secs(2)), "a commit was acknowledged that no disk has");
                let told: Lsn = new.psql("SELECT flush_lsn FROM pg_stat_replication").parse().unwrap();
                assert!(told <= *got, "{told} was told, the new timeline begins at {got}");
            }));
            disk.inner.set(false);
            if let Err(panic) = freed {
                std::panic::resume_unwind(panic);
            }
            assert!(commits_within(new, DEADLINE));
        });
    }
}

#[test]
fn c058_what_a_promotion_cut_off_is_not_told_as_flushed_to_the_new_primary() {
    let half = HalfRecord::make(Postgres::V18, 800_000, 600_000);
    half.is_followed(closed(&half.desk));
}

#[test]
fn c060_a_promotion_is_followed_that_cuts_off_a_record_which_goes_over_segments() {
    // In the middle of the segment behind that in which it begins, or of the next but one, and at the boundary, with the file of the first
    // segment in the spool or only in the repository.
    for (version, has, stored) in [
        (Postgres::V16, size().bytes() + 500_000, false),
        (Postgres::V15, 2 * size().bytes() + 300_000, false),
        (Postgres::V18, size().bytes(), false),
        (Postgres::V18, size().bytes(), true),
    ] {
        let half = HalfRecord::make(version, 3_000_000, has);
        if stored {
            // No server is there.
            let desk = &half.desk;
            let inside = Inside::new(desk, slow(desk, Duration::ZERO));
            let nobody = format!("host={} user=postgres dbname=postgres", desk.place("nobody").display());
            let first = Segment::containing(Timeline(1), half.got, size());
            inside.run(&inside.request(&nobody, Mode::SyncSpool, &RealDisk), || {
                wait_for("all is stored", || desk.archive().files().contains(&WalFile::Segment(first)));
            });
            assert_eq!(fs::read_dir(desk.receive_directory().join("00000001")).unwrap().count(), 0);
        }
        half.is_followed(closed(&half.desk));
    }
}

/// One that takes nothing while it is told to be closed.
fn closable(desk: &Desk, closed: &Arc<AtomicBool>) -> Box<dyn Store> {
    Box::new(SlowStore { closed: Arc::clone(closed), ..slow_store(desk, Duration::ZERO, false) })
}

#[test]
fn c059_two_receivers_leave_and_come_back_and_the_names_are_as_they_were() {
    let cluster = server(Postgres::V16).start();
    cluster.psql("CREATE TABLE note (n int)");
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    let closed = Arc::new(AtomicBool::new(false));
    let insides = ["a", "b"].map(|_| Inside::new(&desk, closable(&desk, &closed)));
    let request = |at: usize, name: &str| {
        let mut request = insides[at].request(&format!("{} application_name={name}", cluster.dsn()), Mode::SyncRepository, &RealDisk);
        (request.slot, request.spool) = (format!("slot_{name}"), desk.spool.join(name));
        request.degrade_after = Some(Duration::from_secs(1));
        request
    };
    let set = |value: &str| name_synchronous(&cluster, value);
    // Whether one saw the value before the other had changed it is a matter of time: then they may stand in another order.
    let is_whole = || ["ANY 1 (a, b)", "ANY 1 (\"a\", \"b\")", "ANY 1 (\"b\", \"a\")"].contains(&&*names(&cluster));
    let both = |body: &dyn Fn()| insides[0].run(&request(0, "a"), || insides[1].run(&request(1, "b"), body));
    both(&|| {
        wait_for("both stream", || cluster.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "2");
        set("ANY 1 (a, b)");
        wait_for("the names are set", is_whole);
        for round in 0..4 {
            assert!(commits_within(&cluster, DEADLINE));
            closed.store(true, Ordering::SeqCst);
            assert!(commits_within(&cluster, DEADLINE), "{round}: commits go on");
            wait_for("both are out", || names(&cluster).is_empty());
            assert!(commits_within(&cluster, DEADLINE));
            closed.store(false, Ordering::SeqCst);
            wait_for("both are back", is_whole);
            assert!(commits_within(&cluster, DEADLINE));
        }
        // What a person chooses meanwhile stays, and it is said that it does.
        closed.store(true, Ordering::SeqCst);
        assert!(commits_within(&cluster, DEADLINE));
        wait_for("both are out", || names(&cluster).is_empty());
        set("nobody");
        closed.store(false, Ordering::SeqCst);
        let said = |name: &str| {
            let places = fs::read_dir(desk.spool.join(name)).unwrap().flatten().flat_map(|id| fs::read_dir(id.path()).unwrap().flatten());
            let texts = places.map(|cluster| fs::read_to_string(cluster.path().join("receive/events.jsonl")).unwrap_or_default());
            texts.collect::<String>()
        };
        wait_for("that is said", || ["a", "b"].iter().all(|name| said(name).contains("COMMITS DO NOT WAIT")));
        assert_eq!(names(&cluster), "nobody");
        set("ANY 1 (a, b)");
        assert!(commits_within(&cluster, DEADLINE));
        // It names them again while they cannot keep their promise: they do not rely on what they believe.
        closed.store(true, Ordering::SeqCst);
        assert!(commits_within(&cluster, DEADLINE));
        wait_for("both are out", || names(&cluster).is_empty());
        set("ANY 1 (a, b)");
        assert!(commits_within(&cluster, DEADLINE), "commits go on");
        closed.store(false, Ordering::SeqCst);
        wait_for("both are back", is_whole);
    });
}

#[test]
fn c059_commits_wait_or_go_on_as_chosen_when_the_spool_is_full() {
    for degrade in [false, true] {
        let cluster = server(if degrade { Postgres::V16 } else { Postgres::V15 }).start();
        cluster.psql("CREATE TABLE note (n int)");
        let desk = Desk::new();
        desk.configure(&cluster.dsn(), "");
        let run = |store, body: &dyn Fn()| {
            let inside = Inside::new(&desk, store);
            let mut request = inside.request(&cluster.dsn(), Mode::SyncSpool, &RealDisk);
            request.spool_limit = 2 << 20;
            request.degrade_after = degrade.then_some(Duration::from_secs(1));
            inside.run(&request, body);
        };
        run(closed(&desk), &|| {
            wait_for("streaming", || desk.status().is_some_and(|status| status["state"] == "streaming"));
            wait_for_synchronous(&cluster, "ANY 1 (lifeboat)", "quorum");
            // With the repository away the spool is enough, as long as it takes more.
            assert!(commits_within(&cluster, DEADLINE));
            thread::sleep(Duration::from_millis(1500));
            assert!(commits_within(&cluster, DEADLINE) && names(&cluster) == "ANY 1 (lifeboat)" && !desk.has_event("degraded"));
            cluster.psql(
                "SET synchronous_commit = local; CREATE TABLE filler AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 9000) n",
            );
            wait_for("the spool is full", || desk.has_event("paused"));
            if degrade {
                assert!(commits_within(&cluster, DEADLINE), "commits go on");
                assert_eq!(names(&cluster), "");
                wait_for("that is told", || desk.has_event("degraded"));
                let events = desk.events();
                let event = events.iter().find(|event| event["event"] == "degraded").unwrap();
                assert!(event["text"].as_str().is_some_and(|text| text.contains("COMMITS NO LONGER WAIT")), "{event}");
            } else {
                assert!(!commits_within(&cluster, Duration::from_secs(3)), "a commit was acknowledged that nobody else has");
                assert_eq!(names(&cluster), "ANY 1 (lifeboat)");
            }
        });
        run(slow(&desk, Duration::ZERO), &|| {
            let end = flushed(&cluster);
            wait_for("all is stored", || desk.lsn("stored") >= end);
            wait_for("the name is back", || names(&cluster) == "ANY 1 (lifeboat)");
            assert!(commits_within(&cluster, DEADLINE));
            assert_eq!(desk.has_event("degraded"), degrade);
        });
    }
}

#[test]
fn c058_c059_a_spool_is_believed_after_a_restart_of_the_machine_as_far_as_its_records_are_whole() {
    let mut cluster = server(Postgres::V16).start();
    cluster.psql("CREATE TABLE note (n int)");
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    let end = {
        let inside = Inside::new(&desk, closed(&desk));
        let mut end = Lsn::INVALID;
        inside.run(&inside.request(&cluster.dsn(), Mode::SyncSpool, &RealDisk), || {
            wait_for("streaming", || desk.status().is_some_and(|status| status["state"] == "streaming"));
            cluster.psql("CREATE TABLE filler AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 3000) n");
            for n in 0..20 {
                cluster.psql(&format!("INSERT INTO note VALUES ({n})"));
            }
            end = flushed(&cluster);
            wait_for("it is acknowledged", || desk.lsn("acknowledged") >= end);
        });
        end
    };
    assert!(desk.lsn("stored") < end, "{} of {end} is stored", desk.lsn("stored"));
    // As if the machine had been started anew meanwhile, and the server were lost for good.
    let state = desk.receive_directory().join("state.json");
    let mut noted: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    assert!(noted["boot"].as_str().is_some_and(|boot| !boot.is_empty()), "{noted}");
    noted["boot"] = "another".into();
    fs::write(&state, noted.to_string()).unwrap();
    // And its disk had something else behind the records.
    let last = Segment::ending_at(Timeline(1), end, size());
    let open = desk.receive_directory().join("00000001").join(format!("{}.open", last.file_name(size())));
    fs::OpenOptions::new().append(true).open(open).unwrap().write_all(&[0xEE; 100]).unwrap();
    let dsn = cluster.dsn();
    cluster.kill9();
    let inside = Inside::new(&desk, slow(&desk, Duration::ZERO));
    let request = inside.request(&dsn, Mode::SyncSpool, &RealDisk);
    inside.run(&request, || {
        wait_for("all that was acknowledged is stored", || desk.lsn("stored") >= end);
    });
    // The next start is in the same life of the machine.
    let drain = ReceiveRequest { course: Course::Drain, ..request };
    receive::run(&inside.repository, &drain, &Silent, &receive::Stop::default()).unwrap();
    // What was kept is what the server wrote, whole records to their end.
    let archive = desk.archive();
    let (ours, theirs) = (archive.bytes(last), fs::read(cluster.data_directory().join("pg_wal").join(last.file_name(size()))).unwrap());
    assert!((end.0 - last.start(size()).0) as usize <= ours.len() && ours[..] == theirs[..ours.len()]);
}

/// A disk whose syncs fail now and then, and then it has none of what was written since the last success; and which is full at times.
struct BadDisk {
    writes: AtomicU64,
    syncs: AtomicU64,
    /// Of so many syncs one fails: where only finished segments are synced, there are few.
    every_sync: u64,
    bad: AtomicBool,
    /// It takes nothing more.
    full: AtomicBool,
    /// By inode: what was written since the last sync.
    dirty: Mutex<HashMap<u64, Vec<(u64, u64)>>>,
    failed_syncs: AtomicU64,
    failed_writes: AtomicU64,
}

impl Disk for BadDisk {
    fn write_at(&self, file: &fs::File, bytes: &[u8], at: u64) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) || (self.bad.load(Ordering::SeqCst) && self.writes.fetch_add(1, Ordering::SeqCst) % 150 == 149)
        {
            self.failed_writes.fetch_add(1, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()));
        }
        let inode = file.metadata()?.ino();
        self.dirty.lock().unwrap().entry(inode).or_default().push((at, bytes.len() as u64));
        file.write_all_at(bytes, at)
    }

    fn sync(&self, file: &fs::File) -> io::Result<()> {
        let inode = file.metadata()?.ino();
        let dirty = self.dirty.lock().unwrap().remove(&inode).unwrap_or_default();
        if self.bad.load(Ordering::SeqCst) && self.syncs.fetch_add(1, Ordering::SeqCst) % self.every_sync == self.every_sync - 1 {
            for (at, length) in dirty {
                file.write_all_at(&vec![0xEE; length as usize], at)?;
            }
            self.failed_syncs.fetch_add(1, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        Ok(())
    }
}

#[test]
fn c058_a_spool_that_cannot_be_synced_is_not_believed() {
    for mode in [Mode::SyncSpool, Mode::Stream, Mode::SyncRepository] {
        let mut cluster = server(Postgres::V16).start();
        cluster.psql("CREATE TABLE note (client int, n int, filler text DEFAULT repeat(md5(random()::text), 20))");
        let desk = Desk::new();
        desk.configure(&cluster.dsn(), "");
        desk.program().arg("--create-slot-only").run().success();
        let start = slot_start(&cluster);
        let disk = BadDisk {
            writes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            every_sync: if mode == Mode::SyncSpool { 60 } else { 3 },
            bad: AtomicBool::new(true),
            full: AtomicBool::new(false),
            dirty: Mutex::default(),
            failed_syncs: AtomicU64::new(0),
            failed_writes: AtomicU64::new(0),
        };
        let inside = Inside::new(&desk, Box::new(LocalStore::open(&desk.repository(), false).unwrap()));
        let request = inside.request(&cluster.dsn(), mode, &disk);
        inside.run(&request, || {
            wait_for("streaming", || desk.status().is_some());
            name_synchronous(&cluster, "lifeboat");
            let clients = Clients::start(&cluster, 3);
            // Some segments go by.
            cluster.psql(
                "SET synchronous_commit = local; CREATE TABLE filler AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 8000) n",
            );
            wait_for("the disk failed", || disk.failed_syncs.load(Ordering::SeqCst) >= 2 && disk.failed_writes.load(Ordering::SeqCst) >= 1);
            disk.bad.store(false, Ordering::SeqCst);
            // What waits for a receiver is seen by nobody else before it is acknowledged.
            wait_for("a commit is acknowledged", || cluster.psql("SELECT count(*) > 0 FROM note") == "t");
            thread::sleep(Duration::from_millis(300));
            cluster.kill9();
            let acknowledged = clients.acknowledged();
            assert!(!acknowledged.is_empty());
            cluster.start_again().unwrap();
            let end = flushed(&cluster);
            wait_for("all is stored", || desk.lsn("stored") >= end);
            desk.archive().equals_server(&cluster, 1, start, end);
            assert!(desk.has_event("spool-failing"));
            wait_for("it is well again", || desk.status().is_some_and(|status| status.get("spool_trouble").is_none()));
        });
    }
}

/// A directory in the place where a small file of the spool is written before it gets its name: as on a full disk, it cannot be.
fn in_the_way(desk: &Desk, name: &str) -> PathBuf {
    let path = desk.receive_directory().join(format!("{name}.new"));
    fs::create_dir(&path).unwrap();
    path
}

#[test]
fn c058_a_spool_that_takes_nothing_more_still_comes_to_the_repository() {
    let cluster = server(Postgres::V16).start();
    cluster.psql("CREATE TABLE note (n int)");
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    desk.program().arg("--create-slot-only").run().success();
    let start = slot_start(&cluster);
    let mut end = Lsn::INVALID;
    let inside = Inside::new(&desk, closed(&desk));
    inside.run(&inside.request(&cluster.dsn(), Mode::SyncSpool, &RealDisk), || {
        cluster.psql("CREATE TABLE filler AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 3000) n");
        end = flushed(&cluster);
        wait_for("it is acknowledged", || desk.lsn("acknowledged") >= end);
    });
    // The machine was started anew, and nothing can be written there.
    let state = desk.receive_directory().join("state.json");
    let read = || serde_json::from_slice::<Value>(&fs::read(&state).unwrap()).unwrap();
    let mut noted = read();
    let boot = noted["boot"].take();
    noted["boot"] = "another".into();
    fs::write(&state, noted.to_string()).unwrap();
    let in_the_way = in_the_way(&desk, "state.json");
    let inside = Inside::new(&desk, slow(&desk, Duration::ZERO));
    inside.run(&inside.request(&cluster.dsn(), Mode::SyncSpool, &RealDisk), || {
        wait_for("all that was acknowledged is stored", || desk.lsn("stored") >= end);
        assert_eq!(read()["boot"], "another");
        fs::remove_dir(&in_the_way).unwrap();
        wait_for("it is noted", || read()["boot"] == boot);
        desk.archive().equals_server(&cluster, 1, start, end);
    });
}

#[test]
fn c060_a_history_that_the_spool_does_not_take_is_waited_for() {
    let mut old = server(Postgres::V16).start();
    let desk = Desk::new();
    let new = standby(&desk, &old, "standby");
    desk.configure(&two_hosts(&old, &new), "");
    let mut receiving = desk.receive();
    receiving.wait_connected();
    old.psql("CREATE TABLE t (n int)");
    let end = flushed(&old);
    receiving.wait_stored(end);
    wait_for("the standby has it", || new.psql("SELECT pg_last_wal_replay_lsn()").parse::<Lsn>().unwrap() >= end);
    let in_the_way = in_the_way(&desk, "00000002.history");
    old.kill9();
    promote(&new);
    receiving.wait_for("the spool fails", |desk| desk.has_event("spool-failing"));
    fs::remove_dir(&in_the_way).unwrap();
    new.psql("CREATE TABLE of_the_new_primary (n int)");
    let end = flushed(&new);
    receiving
        .wait_for("timeline 2 is stored", |desk| desk.status().is_some_and(|status| status["timeline"] == 2) && desk.lsn("stored") >= end);
    receiving.wait_for("the spool is well", |desk| desk.has_event("spool-back"));
    desk.archive().equals_server(&new, 2, switch_of(&desk), end);
}

#[test]
fn c058_what_waits_of_one_cluster_is_not_left_behind_for_another() {
    let cluster = server(Postgres::V16).start();
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    let mut end = Lsn::INVALID;
    let inside = Inside::new(&desk, closed(&desk));
    inside.run(&inside.request(&cluster.dsn(), Mode::SyncSpool, &RealDisk), || {
        cluster.psql("CREATE TABLE note (n int)");
        end = flushed(&cluster);
        wait_for("it is acknowledged", || desk.lsn("acknowledged") >= end);
    });
    let system_id = |cluster: &Cluster| cluster.psql("SELECT system_identifier FROM pg_control_system()").parse::<u64>().unwrap();
    // The same address, and another cluster.
    let other = server(Postgres::V15).start();
    let receive = |dsn: &str| {
        let request = inside.request(dsn, Mode::SyncSpool, &RealDisk);
        receive::run(&inside.repository, &request, &Silent, &receive::Stop::default()).unwrap_err().to_string()
    };
    let text = receive(&other.dsn());
    assert!(text.contains(&system_id(&cluster).to_string()) && text.contains(&system_id(&other).to_string()), "{text}");
    assert_eq!(other.psql("SELECT count(*) FROM pg_replication_slots"), "0");
    let output = Program::as_owner(&desk.home);
    desk.configure(&other.dsn(), "");
    let output = output.arg("--config").arg(desk.place("lifeboat.toml")).args(["wal", "receive", "--once"]).run().expect_code(1);
    assert!(output.stderr.contains("lifeboat wal receive stores what waits"), "{output}");
    // Of several hosts the one is taken that it is of, and while that is away nobody.
    let both = two_hosts(&other, &cluster).replace(" target_session_attrs=read-write", "");
    let connected = || desk.status().is_some_and(|status| status["state"] == "streaming");
    inside.run(&inside.request(&both, Mode::SyncSpool, &RealDisk), || wait_for("it is found", connected));
    drop(cluster);
    let open = Inside::new(&desk, slow(&desk, Duration::ZERO));
    open.run(&open.request(&both, Mode::SyncSpool, &RealDisk), || {
        wait_for("it is stored", || desk.status().is_some_and(|status| status["state"] == "connecting" && status["waiting_bytes"] == 0));
    });
    assert!(desk.lsn("stored") >= end, "{} of {end}", desk.lsn("stored"));
    // Then nothing holds it back.
    let once = ReceiveRequest { course: Course::Once, ..open.request(&other.dsn(), Mode::SyncSpool, &RealDisk) };
    receive::run(&open.repository, &once, &Silent, &receive::Stop::default()).unwrap();
    assert_eq!(other.psql("SELECT count(*) FROM pg_replication_slots"), "1");
}

#[test]
fn c058_what_was_acknowledged_before_the_spool_was_full_comes_to_the_repository_without_the_server() {
    let mut cluster = server(Postgres::V16).start();
    cluster.psql("CREATE TABLE note (n int)");
    let desk = Desk::new();
    desk.configure(&cluster.dsn(), "");
    let disk = BadDisk {
        writes: AtomicU64::new(0),
        syncs: AtomicU64::new(0),
        every_sync: 1,
        bad: AtomicBool::new(false),
        full: AtomicBool::new(false),
        dirty: Mutex::default(),
        failed_syncs: AtomicU64::new(0),
        failed_writes: AtomicU64::new(0),
    };
    let inside = Inside::new(&desk, Box::new(LocalStore::open(&desk.repository(), false).unwrap()));
    let mut request = inside.request(&cluster.dsn(), Mode::SyncSpool, &disk);
    // Nothing goes to the repository in time.
    request.flush_interval = Duration::from_secs(3600);
    let mut acknowledged = Lsn::INVALID;
    inside.run(&request, || {
        for n in 0..20 {
            cluster.psql(&format!("INSERT INTO note VALUES ({n})"));
        }
        let end = flushed(&cluster);
        wait_for("it is acknowledged", || desk.lsn("acknowledged") >= end);
        acknowledged = end;
        disk.full.store(true, Ordering::SeqCst);
        cluster.psql("INSERT INTO note VALUES (20)");
        wait_for("the spool fails", || desk.has_event("spool-failing"));
        cluster.kill9();
        // It begins anew, and finds no server.
        wait_for("it is alone", || desk.status().is_some_and(|status| status["state"] == "connecting"));
        thread::sleep(Duration::from_secs(1));
    });
    assert!(desk.lsn("stored") >= acknowledged, "{} of {acknowledged} is stored", desk.lsn("stored"));
}
