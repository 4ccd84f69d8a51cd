//! `lifeboat wal receive` against real servers: nothing that was acknowledged is lost, whoever is killed.
//!
//! What came to the repository is read back with the engine's reader and compared with the server's own files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lifeboat_core::wal::file::{GapRecord, WalFile};
use lifeboat_core::wal::receive::Prefix;
use lifeboat_core::wal::{Lsn, Segment, SegmentSize, SystemId, Timeline};
use lifeboat_engine::keys::Identities;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::Trust;
use lifeboat_engine::store;
use lifeboat_engine::wal::{self, WalReader};
use serde_json::Value;

use crate::backup::Site;
use crate::cluster::{Builder, Cluster, Postgres, Stop, temp_dir};

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

/// Keys, a repository, a spool, and the receiver's configuration.
struct Desk {
    site: Site,
    spool: PathBuf,
}

/// A running receiver; it ends with the test.
struct Receiving<'d> {
    desk: &'d Desk,
    child: Child,
}

impl Desk {
    fn new() -> Desk {
        let site = Site::new();
        site.program().arg("init").run().success();
        let spool = site.place("spool");
        Desk { site, spool }
    }

    fn configure(&self, dsn: &str, wal: &str) {
        let keys = self.site.home.path().join(".config/lifeboat");
        let text = |name: &str| fs::read_to_string(keys.join(name)).expect("made with the site").trim().to_owned();
        let key = |name: &str| keys.join(name).display().to_string();
        self.site.configuration(&format!(
            "[postgres]\ndsn = \"{dsn}\"\n[[repository]]\nurl = \"{}\"\n[encryption]\nrecipients = [\"{}\"]\n[signing]\nkey_file = \"{}\"\n\
             password = {{ file = \"{}\" }}\n[trust]\nkeys = [\"{}\"]\n[wal]\nspool = \"{}\"\nflush_interval = \"200ms\"\n{wal}\n",
            self.site.repository().display(),
            text("recipients.txt"),
            key("signing.key"),
            key("signing.password"),
            key("signing.pub"),
            self.spool.display(),
        ));
    }

    fn program(&self) -> crate::program::Program {
        crate::program::Program::new(&self.site.home).arg("--config").arg(self.site.place("lifeboat-test.toml")).args(["wal", "receive"])
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
        Archive::open(&self.site)
    }

    fn said(&self) -> String {
        fs::read_to_string(self.site.place("stderr")).unwrap_or_default()
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

    /// Ends it as a service manager does, and returns its exit code.
    fn end(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("own child");
        self.child.wait().expect("own child").code()
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
    fn open(site: &Site) -> Archive {
        let repository = Repository::open(store::open(&site.repository().display().to_string(), false).unwrap()).unwrap();
        let keys = site.home.path().join(".config/lifeboat");
        let text = |name: &str| fs::read_to_string(keys.join(name)).expect("made with the site");
        let system_id: SystemId = *wal::clusters(&repository).unwrap().first().expect("there is WAL");
        let cluster = wal::Cluster { system_id, segment_size: size() };
        let trust = Trust::from_pems([text("signing.pub").as_str()]).unwrap();
        Archive { repository, trust, identities: text("identity.txt"), cluster }
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
        for segment in lifeboat_core::wal::segments_between(Timeline(timeline), from, to, size()) {
            let ours = self.bytes(segment);
            let wanted = (to.0 - segment.start(size()).0).min(size().bytes()) as usize;
            let name = segment.file_name(size());
            assert!(ours.len() >= wanted, "{name}: the repository has {} bytes of {wanted}", ours.len());
            let theirs = fs::read(cluster.data_directory().join("pg_wal").join(&name)).unwrap();
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
