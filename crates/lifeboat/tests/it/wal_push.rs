//! `lifeboat wal push` as PostgreSQL's archiver runs it, and as it should never be run: with files of others, with no room, killed.
//!
//! What arrived is read back through the engine and compared with copies that `cp` made beside it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lifeboat_core::postgres::control_file::ControlFile;
use lifeboat_core::wal::Lsn;
use lifeboat_core::wal::file::GapRecord;
use lifeboat_engine::keys::Identities;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::Trust;
use lifeboat_engine::store;
use lifeboat_engine::wal::{self, WalReader};
use tempfile::TempDir;

use crate::cluster::{Builder, Cluster, Owner, Postgres, Stop, expect_success, temp_dir};
use crate::failure::one_error;
use crate::program::{Output, Program, reachable_binary};
use crate::proxy::{Fate, Proxy};
use crate::seaweed::{BUCKET, Seaweed, make_bucket, with_server};

/// How long an archiver may take. It only ends tests that would hang for ever.
const DEADLINE: Duration = Duration::from_secs(120);

/// A repository, its keys and a configuration, all of the servers' user.
struct Archive {
    home: TempDir,
}

impl Archive {
    fn new() -> Archive {
        let archive = Archive { home: temp_dir() };
        for name in ["repository", "copies"] {
            fs::create_dir(archive.path(name)).unwrap();
            Owner::current().own(&archive.path(name));
        }
        let init = Program::as_owner(&archive.home).arg("--repository").arg(archive.path("repository"));
        init.args(["init", "--write-config", "lifeboat.toml"]).run().success();
        archive
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn lifeboat(&self) -> Program {
        Program::as_owner(&self.home).arg("--config").arg(self.path("lifeboat.toml"))
    }

    /// `wal push`, to be given a path.
    fn push(&self) -> Program {
        self.lifeboat().env("LIFEBOAT_SPOOL", self.path("spool")).args(["wal", "push"])
    }

    /// The `archive_command` that pushes, after it made a copy to compare with.
    fn command(&self) -> String {
        let home = self.home.path().display();
        format!(
            "cp %p {home}/copies/%f && HOME={home} LIFEBOAT_SPOOL={home}/spool {} --config {home}/lifeboat.toml wal push %p",
            reachable_binary().display()
        )
    }

    /// Every file that is stored, verified and opened.
    fn stored(&self) -> BTreeMap<String, Vec<u8>> {
        self.stored_in(&self.path("repository"))
    }

    fn stored_in(&self, repository: &Path) -> BTreeMap<String, Vec<u8>> {
        let repository =
            Repository::open(store::open(repository.to_str().unwrap(), &store::StoreOptions::default(), false).unwrap()).unwrap();
        let key = fs::read_to_string(self.path(".config/lifeboat/signing.pub")).unwrap();
        let trust = Trust::from_pems([key.as_str()]).unwrap();
        let identity = fs::read_to_string(self.path(".config/lifeboat/identity.txt")).unwrap();
        let mut all = BTreeMap::new();
        for system_id in wal::clusters(&repository).unwrap() {
            let Some(known) = wal::cluster(&repository, system_id).unwrap() else { continue };
            let cluster = wal::Cluster { system_id, segment_size: known.segment_size };
            let reader = WalReader::new(&repository, cluster, &trust, Identities::parse(&identity).unwrap());
            for (file, _) in wal::list(&repository, cluster).unwrap() {
                let mut bytes = Vec::new();
                let head = reader.read(file, &mut bytes).unwrap();
                assert_eq!(head.predicate.summary.is_some(), file.segment().is_some(), "{file:?}");
                all.insert(file.file_name(cluster.segment_size), bytes);
            }
        }
        all
    }

    fn copies(&self) -> BTreeMap<String, Vec<u8>> {
        files(&self.path("copies"))
    }

    /// Panics unless what is stored is what PostgreSQL gave away.
    #[track_caller]
    fn assert_whole(&self) {
        let (stored, copies) = (self.stored(), self.copies());
        assert_eq!(stored.keys().collect::<Vec<_>>(), copies.keys().collect::<Vec<_>>());
        assert!(stored == copies, "other bytes");
    }

    fn gaps(&self) -> Vec<GapRecord> {
        let Ok(clusters) = fs::read_dir(self.path("repository/wal")) else { return Vec::new() };
        let gaps = clusters.flat_map(|cluster| files(&cluster.unwrap().path().join("gaps")).into_values());
        gaps.map(|bytes| serde_json::from_slice(&bytes).unwrap()).collect()
    }

    /// Names of the marks.
    fn marks(&self) -> Vec<String> {
        let mut names = Vec::new();
        if self.path("spool").is_dir() {
            crate::failure::walk(&self.path("spool"), &mut |path, meta| {
                if meta.is_file() {
                    names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
                }
            });
        }
        names.sort();
        names
    }
}

/// Files right in a directory, which need not be there.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeMap::new() };
    let entries = entries.map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn archiving(version: Postgres, mib: u32, command: &str) -> Builder {
    Cluster::builder(version).wal_segment_size(mib).config("archive_mode", "on").config("archive_command", command)
}

fn pg_wal(cluster: &Cluster) -> PathBuf {
    cluster.data_directory().join("pg_wal")
}

/// Files that wait for archiving, in order.
fn ready(cluster: &Cluster) -> Vec<String> {
    let entries = fs::read_dir(pg_wal(cluster).join("archive_status")).unwrap();
    let names = entries.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let mut names: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".ready")?.to_owned())).collect();
    names.sort();
    names
}

/// Ends the segment, and waits until the server has archived everything up to it.
#[track_caller]
fn archive_all(cluster: &Cluster) -> String {
    let last = cluster.psql("CREATE TABLE IF NOT EXISTS tick (); DROP TABLE tick; SELECT pg_walfile_name(pg_switch_wal())");
    wait_for(cluster, || ready(cluster).is_empty() && cluster.psql("SELECT last_archived_wal FROM pg_stat_archiver") >= last);
    last
}

#[track_caller]
fn wait_for(cluster: &Cluster, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "it did not happen; the server's log:\n{}", cluster.log());
        thread::sleep(Duration::from_millis(20));
    }
}

/// A cluster that has ended and whose segments wait: `count` at least, none of them archived.
fn backlog(version: Postgres, mib: u32, count: usize) -> Cluster {
    let mut cluster = archiving(version, mib, "").own_system_id().config("wal_keep_size", "1GB").start();
    cluster.psql("CREATE TABLE t (text text)");
    while ready(&cluster).len() < count {
        cluster.psql("INSERT INTO t SELECT sha256(n::text::bytea)::text FROM generate_series(1, 500) n; SELECT pg_switch_wal()");
    }
    // A shutdown checkpoint would come after the last segment that waits; this way nothing changes any more.
    cluster.stop(Stop::Immediate);
    // A file that was changed a moment ago gets no mark.
    let settled = |name: &String| {
        let changed = fs::metadata(pg_wal(&cluster).join(name)).unwrap().modified().unwrap();
        changed.elapsed().is_ok_and(|age| age > Duration::from_millis(200))
    };
    while !ready(&cluster).iter().all(settled) {
        thread::sleep(Duration::from_millis(20));
    }
    cluster
}

fn set_status(cluster: &Cluster, name: &str, status: &str) {
    let directory = pg_wal(cluster).join("archive_status");
    for old in ["ready", "done"] {
        let _ = fs::remove_file(directory.join(format!("{name}.{old}")));
    }
    if !status.is_empty() {
        fs::write(directory.join(format!("{name}.{status}")), "").unwrap();
    }
}

fn json_list(output: &Output, member: &str) -> Vec<String> {
    output.json()[member].as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect()
}

/// Under load, and over a crash in the middle of it, which the push at that moment survives.
fn every_segment_arrives(version: Postgres) {
    let archive = Archive::new();
    let mut cluster = archiving(version, 1, &archive.command()).start();
    cluster.pgbench_init(1);
    let load = cluster.pgbench_background();
    wait_for(&cluster, || archive.copies().len() > 15);
    cluster.kill9();
    drop(load);
    cluster.start_again().unwrap();
    let (load, before) = (cluster.pgbench_background(), archive.copies().len());
    wait_for(&cluster, || archive.copies().len() > before + 10);
    load.stop();
    let last = archive_all(&cluster);
    archive.assert_whole();
    let stored: Vec<String> = archive.stored().into_keys().collect();
    assert!(stored.contains(&last), "{last} is not among {stored:?}");
    assert_eq!(cluster.psql("SELECT failed_count FROM pg_stat_archiver"), "0");
    assert!(archive.gaps().is_empty() && !cluster.log().contains("warning: "), "{}", cluster.log());
}

#[test]
fn c048_every_segment_of_15_arrives_under_load() {
    every_segment_arrives(Postgres::V15);
}

#[test]
fn c048_every_segment_of_16_arrives_under_load() {
    every_segment_arrives(Postgres::V16);
}

#[test]
fn c048_every_segment_of_18_arrives_under_load() {
    every_segment_arrives(Postgres::V18);
}

#[test]
fn c052_segments_of_1_and_64_mib() {
    for mib in [1, 64] {
        let archive = Archive::new();
        let cluster = archiving(Postgres::V16, mib, &archive.command()).start();
        cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 100000) n");
        archive_all(&cluster);
        cluster.psql("CREATE TABLE u AS SELECT generate_series(1, 100000) n");
        archive_all(&cluster);
        archive.assert_whole();
        assert!(archive.stored().values().all(|bytes| bytes.len() == (mib as usize) << 20));
        assert!(!cluster.log().contains("warning: "), "{}", cluster.log());
    }
}

#[test]
fn c051_history_partial_and_backup_files_are_archived() {
    for version in Postgres::ALL {
        let archive = Archive::new();
        let mut cluster = archiving(version, 1, &archive.command()).start();
        cluster.pgbench_init(1);
        let copy = temp_dir();
        let data = copy.path().join("data");
        let output = cluster.run_as_owner(cluster.program("pg_basebackup").args(["-c", "fast", "-N", "-D"]).arg(&data));
        assert!(output.status.success(), "{output:?}");
        cluster.psql("CREATE TABLE more AS SELECT generate_series(1, 1000) n");
        archive_all(&cluster);
        // So that the segment which is open at the end is one that the other server has as well.
        let fetch = format!("restore_command = 'cp {}/copies/%f %p'\n", archive.home.path().display());
        cluster.stop(Stop::Immediate);
        fs::write(data.join("postgresql.auto.conf"), fetch).unwrap();
        fs::write(data.join("standby.signal"), "").unwrap();
        Owner::current().own_tree(&data);
        let promoted = Cluster::start_existing(&data, version).unwrap();
        wait_for(&promoted, || promoted.try_psql("SELECT count(*) FROM more").is_ok_and(|count| count == "1000"));
        promoted.psql("SELECT pg_promote()");
        promoted.psql("CREATE TABLE after_promotion (n int)");
        archive_all(&promoted);
        archive.assert_whole();
        let stored = archive.stored();
        let count = |suffix: &str| stored.keys().filter(|name| name.ends_with(suffix)).count();
        assert_eq!((count(".history"), count(".backup")), (1, 1), "{:?}", stored.keys());
        // Whether a promotion leaves a partial segment depends on where recovery ended; the next test pushes one.
        assert!(stored.keys().any(|name| name.starts_with("00000002") && name.len() == 24), "{:?}", stored.keys());
        assert!(archive.gaps().is_empty() && !promoted.log().contains("warning: "), "{}", promoted.log());
    }
}

#[test]
fn c051_c063_the_partial_segment_of_a_promoted_server_is_archived() {
    let archive = Archive::new();
    let cluster = archiving(Postgres::V18, 1, &archive.command()).start();
    cluster.psql("CREATE TABLE t (n int)");
    archive_all(&cluster);
    let copy = temp_dir();
    let data = copy.path().join("data");
    let output = cluster.run_as_owner(cluster.program("pg_basebackup").args(["-c", "fast", "-R", "-D"]).arg(&data));
    assert!(output.status.success(), "{output:?}");
    let standby = Cluster::start_existing(&data, Postgres::V18).unwrap();
    cluster.psql("INSERT INTO t VALUES (1)");
    wait_for(&standby, || standby.try_psql("SELECT count(*) FROM t").is_ok_and(|count| count == "1"));
    standby.psql("SELECT pg_promote()");
    standby.psql("INSERT INTO t VALUES (2)");
    archive_all(&standby);
    let stored = archive.stored();
    let partial: Vec<&String> = stored.keys().filter(|name| name.ends_with(".partial")).collect();
    assert_eq!(partial.len(), 1, "{:?}", stored.keys());
    // The old primary lives on and archives that segment itself, under its own name.
    archive_all(&cluster);
    archive.assert_whole();
    let whole = partial[0].strip_suffix(".partial").unwrap();
    assert!(archive.stored().contains_key(whole));

    // A new repository: PostgreSQL gave the history away to the old one, and never asks for it again.
    assert!(pg_wal(&standby).join("archive_status/00000002.history.done").exists());
    fs::rename(archive.path("repository"), archive.path("old")).unwrap();
    let init = archive.lifeboat().args(["init", "--repository"]).arg(archive.path("repository"));
    init.run().success();
    archive_all(&standby);
    let stored = archive.stored();
    assert_eq!(stored.get("00000002.history"), archive.copies().get("00000002.history"), "{:?}", stored.keys());
}

/// Each promoted server archives a `.partial` of its own, which differ behind the last record at least.
#[test]
fn c051_c063_the_second_server_that_is_promoted_in_a_segment_archives_as_well() {
    let archive = Archive::new();
    let cluster = archiving(Postgres::V16, 1, &archive.command()).start();
    cluster.psql("CREATE TABLE t (n int)");
    archive_all(&cluster);
    let copies = temp_dir();
    let standby = |name: &str| {
        let data = copies.path().join(name);
        let output = cluster.run_as_owner(cluster.program("pg_basebackup").args(["-c", "fast", "-R", "-D"]).arg(&data));
        assert!(output.status.success(), "{output:?}");
        let mut settings = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
        // It sees that a number is taken, and goes on on the old timeline.
        settings.push_str(&format!(
            "restore_command = 'cp {}/copies/%f %p'\nrecovery_target_timeline = 'current'\n",
            archive.home.path().display()
        ));
        fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        Cluster::start_existing(&data, Postgres::V16).unwrap()
    };
    let (first, second) = (standby("first"), standby("second"));
    let follows = |server: &Cluster, n: &str| wait_for(server, || server.try_psql("SELECT count(*) FROM t").is_ok_and(|count| count == n));
    cluster.psql("INSERT INTO t VALUES (1)");
    follows(&first, "1");
    first.psql("SELECT pg_promote()");
    wait_for(&first, || ready(&first).is_empty() && archive.copies().keys().any(|name| name.ends_with(".partial")));
    cluster.psql("INSERT INTO t VALUES (2)");
    follows(&second, "2");
    let before = cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    second.psql("SELECT pg_promote()");
    second.psql("INSERT INTO t VALUES (3)");
    archive_all(&second);
    assert!(pg_wal(&second).join(format!("archive_status/{before}.partial.done")).exists(), "{before}: both were promoted in it");
    assert_eq!(second.psql("SELECT failed_count FROM pg_stat_archiver"), "0", "{}", second.log());
    assert!(second.log().contains("archived by another server that was promoted in the same segment"), "{}", second.log());
    let repository =
        Repository::open(store::open(archive.path("repository").to_str().unwrap(), &store::StoreOptions::default(), false).unwrap());
    let listed = repository.unwrap().store().list("wal/").unwrap();
    let there: Vec<&str> = listed.iter().map(|listed| listed.key.as_str()).collect();
    let has = |part: &str| there.iter().any(|key| key.contains(part));
    assert!(has("/00000003.history") && has(&format!("/{before}.partial")) && has("/000000030000"), "{there:?}");
    assert!(has(&format!("/{before}.00000000-")), "what the second one has of it: {there:?}");
}

/// A restored server begins its timeline with archiving off, and archives when somebody has looked at it. PostgreSQL never asks for the history
/// file of such a timeline, and without it nothing of what arrives can be replayed.
#[test]
fn c051_the_history_of_a_timeline_that_began_without_archiving_arrives_with_its_first_segment() {
    let archive = Archive::new();
    let mut cluster = archiving(Postgres::V15, 1, &archive.command()).own_system_id().start();
    archive_all(&cluster);
    cluster.psql("ALTER SYSTEM SET archive_mode = off; ALTER SYSTEM SET restore_command = 'false'");
    cluster.stop(Stop::Fast);
    let signal = cluster.data_directory().join("recovery.signal");
    fs::write(&signal, "").unwrap();
    Owner::current().own(&signal);
    cluster.start_again().unwrap();
    wait_for(&cluster, || cluster.try_psql("SELECT pg_is_in_recovery()").is_ok_and(|recovers| recovers == "f"));
    cluster.psql("ALTER SYSTEM RESET archive_mode");
    cluster.stop(Stop::Fast);
    cluster.start_again().unwrap();
    let history = fs::read(pg_wal(&cluster).join("00000002.history")).unwrap();
    assert!(!pg_wal(&cluster).join("archive_status/00000002.history.ready").exists());

    archive_all(&cluster);
    let stored = archive.stored();
    assert!(stored.keys().any(|name| name.starts_with("00000002000")), "{:?}", stored.keys());
    assert_eq!(stored.get("00000002.history"), Some(&history), "{:?}", stored.keys());

    // Somebody who looks is told when it is not there; the next segment brings it.
    let status = || archive.lifeboat().env("LIFEBOAT_DSN", cluster.dsn()).args(["wal", "status", "--json"]).run();
    let codes =
        |output: &Output| output.json()["findings"].as_array().unwrap().iter().map(|one| one["code"].to_string()).collect::<Vec<_>>();
    let before = status();
    assert!(!before.stdout.contains("history-missing"), "{before}");
    let system_id = fs::read_dir(archive.path("repository/wal")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(system_id.join("00000002.history")).unwrap();
    let without = status().expect_code(3);
    assert!(codes(&without).contains(&"\"history-missing\"".to_owned()), "{without}");
    assert!(without.stdout.contains("lifeboat wal push pg_wal/00000002.history"), "{without}");
    archive_all(&cluster);
    assert_eq!(archive.stored().get("00000002.history"), Some(&history));
}

#[test]
fn c064_a_standby_that_archives_always_finds_its_segments_there() {
    let archive = Archive::new();
    let cluster = archiving(Postgres::V16, 1, &archive.command()).start();
    let copy = temp_dir();
    let data = copy.path().join("data");
    let output = cluster.run_as_owner(cluster.program("pg_basebackup").args(["-c", "fast", "-R", "-D"]).arg(&data));
    assert!(output.status.success(), "{output:?}");
    let other = archive.command().replace("/copies/", "/copies-of-standby/");
    fs::create_dir(archive.path("copies-of-standby")).unwrap();
    Owner::current().own(&archive.path("copies-of-standby"));
    let mut settings = fs::read_to_string(data.join("postgresql.conf")).unwrap();
    settings.push_str(&format!("archive_mode = always\narchive_command = '{other}'\n"));
    fs::write(data.join("postgresql.conf"), settings).unwrap();
    let standby = Cluster::start_existing(&data, Postgres::V16).unwrap();
    cluster.pgbench_init(1);
    let last = archive_all(&cluster);
    wait_for(&standby, || standby.psql("SELECT last_archived_wal FROM pg_stat_archiver") >= last);
    assert_eq!(standby.psql("SELECT failed_count FROM pg_stat_archiver"), "0", "{}", standby.log());
    assert_eq!(cluster.psql("SELECT failed_count FROM pg_stat_archiver"), "0", "{}", cluster.log());
    let stored = archive.stored();
    for (name, bytes) in archive.copies().iter().chain(&files(&archive.path("copies-of-standby"))) {
        assert!(stored.get(name) == Some(bytes), "{name}");
    }
}

#[test]
fn c048_without_the_repository_the_server_keeps_its_segments() {
    let archive = Archive::new();
    let cluster = archiving(Postgres::V15, 1, &archive.command()).start();
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) n");
    archive_all(&cluster);
    fs::rename(archive.path("repository"), archive.path("away")).unwrap();
    for _ in 0..3 {
        cluster.psql("INSERT INTO t SELECT generate_series(1, 20000); SELECT pg_switch_wal()");
    }
    wait_for(&cluster, || cluster.psql("SELECT failed_count > 0 FROM pg_stat_archiver") == "t");
    assert!(ready(&cluster).len() >= 3);
    let log = cluster.log();
    assert!(log.contains("repository: no such directory") && log.contains("archive command failed with exit code 10"), "{log}");
    assert!(!log.contains("archiver process"), "the archiver was ended\n{log}");
    assert!(!archive.path("repository").exists());
    fs::rename(archive.path("away"), archive.path("repository")).unwrap();
    archive_all(&cluster);
    archive.assert_whole();
}

#[test]
fn c048_without_room_nothing_counts_as_archived() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V16, 1, 12);
    let names = ready(&cluster);
    fs::create_dir(archive.path("after")).unwrap();
    // A disk that holds a few of them; what is on it is copied away in the end.
    let script = r#"
        set -e; repository=$1 after=$2 pg_wal=$3; shift 3
        cp -a "$repository/." "$after/"
        mount -t tmpfs -o size=160k lifeboat-test "$repository"; cp -a "$after/." "$repository/"
        for name in "$@"; do
            code=0; "$LIFEBOAT" --config lifeboat.toml wal push "$pg_wal/$name" || code=$?
            echo "$name $code"
        done
        rm -rf "$after"; cp -a "$repository" "$after""#;
    let mut program = Program::at(Path::new("unshare"), archive.home.path()).args(["--mount"]);
    if !rustix::process::geteuid().is_root() {
        program = program.args(["--user", "--map-root-user"]);
    }
    let program = program.env("LIFEBOAT", env!("CARGO_BIN_EXE_lifeboat")).env("LIFEBOAT_SPOOL", archive.path("spool"));
    let program = program.args(["sh", "-c", script, "sh"]).arg(archive.path("repository")).arg(archive.path("after"));
    let output = program.arg(pg_wal(&cluster)).args(&names).run().success();
    let codes: BTreeMap<&str, &str> = output.stdout.lines().filter_map(|line| line.split_once(' ')).collect();
    let archived: Vec<&str> = codes.iter().filter(|(_, code)| **code == "0").map(|(name, _)| *name).collect();
    assert!(!archived.is_empty() && archived.len() < names.len(), "{output}");
    assert!(codes.values().all(|code| ["0", "1"].contains(code)), "{output}");
    assert!(output.stderr.contains("no space left"), "{output}");
    let there = archive.stored_in(&archive.path("after"));
    let segments = files_of(&cluster, &names);
    assert!(archived.iter().all(|name| there.contains_key(*name)), "{output}");
    assert!(there.iter().all(|(name, bytes)| segments[name] == *bytes));
    // With room, all of them; what was marked on the other disk is not believed of this one.
    for name in &names {
        archive.push().arg(pg_wal(&cluster).join(name)).run().success();
    }
    assert!(archive.stored() == segments);
}

fn files_of(cluster: &Cluster, names: &[String]) -> BTreeMap<String, Vec<u8>> {
    names.iter().map(|name| (name.clone(), fs::read(pg_wal(cluster).join(name)).unwrap())).collect()
}

#[test]
fn c050_a_push_that_is_killed_is_done_by_the_next_one() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V16, 16, 4);
    let names = ready(&cluster);
    let first = pg_wal(&cluster).join(&names[0]);
    // Some are ended before they have begun, some when they are done; whatever they left, the next one succeeds.
    for millis in (0..400).step_by(40) {
        let mut child = archive.push().arg(&first).spawn();
        thread::sleep(Duration::from_millis(millis));
        let _ = child.kill();
        child.wait().unwrap();
    }
    for name in &names {
        archive.push().arg(pg_wal(&cluster).join(name)).run().success();
        archive.push().arg(pg_wal(&cluster).join(name)).run().success();
    }
    assert!(archive.stored() == files_of(&cluster, &names));
    assert!(archive.gaps().is_empty());
}

#[test]
fn c049_a_clone_is_refused_at_the_first_segment_that_differs() {
    let archive = Archive::new();
    let builder = archiving(Postgres::V16, 1, "").own_system_id().config("wal_keep_size", "1GB");
    let mut original = builder.start();
    original.psql("CREATE TABLE t (text text)");
    for _ in 0..3 {
        original.psql("INSERT INTO t SELECT repeat('shared', 10) FROM generate_series(1, 1000); SELECT pg_switch_wal()");
    }
    original.stop(Stop::Fast);
    let shared = ready(&original);
    let copy = temp_dir();
    let data = copy.path().join("data");
    expect_success(Owner::current().run(Command::new("cp").arg("-a").arg(original.data_directory()).arg(&data)).current_dir("/"));
    let mut clone = Cluster::start_existing(&data, Postgres::V16).unwrap();
    original.start_again().unwrap();
    for (server, text, count) in [(&original, "original", 2), (&clone, "clone", 6)] {
        for _ in 0..count {
            server.psql(&format!("INSERT INTO t SELECT repeat('{text}', 10) FROM generate_series(1, 1000); SELECT pg_switch_wal()"));
        }
    }
    original.stop(Stop::Immediate);
    clone.stop(Stop::Immediate);
    let ours = ready(&original);
    assert!(ours.len() > shared.len() && ready(&clone).len() > ours.len());
    archive.push().arg(pg_wal(&original).join(&ours[0])).run().success();
    let stored = archive.stored();
    assert!(stored == files_of(&original, &ours));

    // Asked for the last segment that both have: that one is fine, and no later one of the clone's takes a name.
    let last_shared = &shared[shared.len() - 1];
    let output = archive.push().arg(pg_wal(&clone).join(last_shared)).arg("--json").run().success();
    assert_eq!(output.json()["outcome"], "same");
    assert!(output.stderr.contains("warning: pushing ahead: store 0") && output.stderr.contains("another file of that name"), "{output}");
    // Asked for the first that differs.
    let diverging = ours.iter().find(|name| !shared.contains(name)).unwrap();
    let text = one_error(&archive.push().arg(pg_wal(&clone).join(diverging)).run(), 1);
    assert!(text.contains(diverging) && text.contains("another file of that name") && text.contains("clone"), "{text}");
    assert!(archive.stored() == stored && archive.gaps().is_empty());
}

#[test]
fn c053_files_that_are_not_what_their_name_says_are_refused() {
    let archive = Archive::new();
    let (cluster, stranger) = (backlog(Postgres::V16, 1, 4), backlog(Postgres::V16, 1, 4));
    let names = ready(&cluster);
    let path = |name: &str| pg_wal(&cluster).join(name);
    let good = files_of(&cluster, &names);
    let (name, next) = (&names[1], &names[2]);
    let refused = |name: &str, bytes: &[u8], words: &[&str]| {
        let before = fs::read(path(name)).ok();
        fs::write(path(name), bytes).unwrap();
        let text = one_error(&archive.push().arg(path(name)).run(), 1);
        for word in words.iter().chain([&name]) {
            assert!(text.contains(word), "{word:?} is not in {text}");
        }
        match before {
            Some(bytes) => fs::write(path(name), bytes).unwrap(),
            None => fs::remove_file(path(name)).unwrap(),
        }
    };
    refused(name, &good[name][..(1 << 20) - 1], &["1048575 bytes", "1048576"]);
    refused(name, &[], &["0 bytes"]);
    refused(name, &[&good[name][..], b"x"].concat(), &["1048577 bytes"]);
    refused(name, &[0; 1 << 20], &["no WAL header"]);
    refused(name, &good[next], &["it begins at"]);
    refused(name, &fs::read(pg_wal(&stranger).join(name)).unwrap(), &["it belongs to cluster"]);
    refused("00000002.history", b"", &["it is empty"]);
    refused("00000002.history", b"1\t0/30", &["cut off"]);
    refused(&format!("{name}.00000028.backup"), b"START WAL LOCATION: 0/1\n\0\0", &["zero bytes"]);
    for odd in ["PG_VERSION", "pg_wal/RECOVERYXLOG", "pg_wal/000000010000000000000001.part", "pg_wal"] {
        let output = archive.push().arg(cluster.data_directory().join(odd)).run();
        assert!(one_error(&output, 1).contains("PostgreSQL has no WAL file of that name"), "{output}");
    }
    one_error(&archive.push().arg(path("0000000100000000000000FE")).run(), 1);
    assert!(archive.stored().is_empty());

    // Whole again.
    archive.push().arg(path(&names[0])).run().success();
    assert!(archive.stored() == good);
    // One of a cluster with other segments, under the same system identifier, would need a forger; under another it is another archive.
    archive.push().arg(pg_wal(&stranger).join(name)).run().success();
}

#[test]
fn c049_another_kind_of_wal_under_the_same_system_identifier_is_refused() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V16, 1, 2);
    let name = &ready(&cluster)[0];
    archive.push().arg(pg_wal(&cluster).join(name)).run().success();
    let directory = fs::read_dir(archive.path("repository/wal")).unwrap().next().unwrap().unwrap().path();
    let mut known: serde_json::Value = serde_json::from_slice(&fs::read(directory.join("cluster.json")).unwrap()).unwrap();
    known["page_magic"] = 0xD10D.into();
    fs::write(directory.join("cluster.json"), known.to_string()).unwrap();
    let text = one_error(&archive.push().arg(pg_wal(&cluster).join(name)).run(), 1);
    assert!(text.contains("another major version"), "{text}");
    known["segment_size"] = (16 << 20).into();
    fs::write(directory.join("cluster.json"), known.to_string()).unwrap();
    let history = pg_wal(&cluster).join("00000002.history");
    fs::write(&history, "1\t0/2000000\tno recovery target specified\n").unwrap();
    for path in [pg_wal(&cluster).join(name), history] {
        let text = one_error(&archive.push().arg(path).run(), 1);
        assert!(text.contains("segments have 1048576 bytes"), "{text}");
    }
}

#[test]
fn a_path_is_relative_to_where_the_command_runs() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V15, 1, 3);
    let names = ready(&cluster);
    let run = |directory: &Path, path: &str| {
        let script = r#"cd "$1" && exec "$2" --config "$3/lifeboat.toml" wal push "$4" --json"#;
        let program = Program::at(Path::new("/bin/sh"), archive.home.path()).env("LIFEBOAT_SPOOL", archive.path("spool"));
        let program = program.args(["-c", script, "sh"]).arg(directory).arg(env!("CARGO_BIN_EXE_lifeboat")).arg(archive.home.path());
        program.arg(path).run().success().json()["outcome"].as_str().unwrap().to_owned()
    };
    let data = cluster.data_directory();
    assert_eq!(run(data, &format!("pg_wal/{}", names[0])), "stored");
    assert_eq!(run(&pg_wal(&cluster), &names[0]), "same");
    assert_eq!(run(&pg_wal(&cluster), &format!("./{}", names[0])), "same");
    // pg_wal on another file system.
    let aside = archive.path("aside");
    fs::rename(pg_wal(&cluster), &aside).unwrap();
    std::os::unix::fs::symlink(&aside, pg_wal(&cluster)).unwrap();
    assert_eq!(run(data, &format!("pg_wal/{}", names[0])), "same");
    // Salvaged files, with no cluster around them: the segment says what it is of, and the repository whose a history file is.
    let alone = archive.path("alone");
    fs::create_dir(&alone).unwrap();
    fs::copy(aside.join(&names[1]), alone.join(&names[1])).unwrap();
    fs::write(alone.join("00000002.history"), "1\t0/2000000\tno recovery target specified\n").unwrap();
    assert_eq!(run(&alone, &names[1]), "same");
    assert_eq!(run(&alone, "00000002.history"), "stored");
    assert!(archive.stored().contains_key("00000002.history"));
    let empty = Archive::new();
    let text = one_error(&empty.push().arg(alone.join("00000002.history")).run(), 1);
    assert!(text.contains("which cluster it is of is not known"), "{text}");
}

#[test]
fn what_was_pushed_ahead_is_not_read_again() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V18, 1, 8);
    let names = ready(&cluster);
    let path = |name: &str| pg_wal(&cluster).join(name);
    let output = archive.push().arg(path(&names[0])).arg("--json").run().success();
    assert_eq!(json_list(&output, "ahead"), names[1..]);
    assert_eq!(archive.marks(), names[1..], "{output}");
    assert!(archive.stored() == files_of(&cluster, &names));
    set_status(&cluster, &names[0], "done");
    // Without a key nothing can be signed, and without being read nothing compared: only the mark can tell.
    fs::rename(archive.path(".config/lifeboat/signing.key"), archive.path("signing.key")).unwrap();
    fs::set_permissions(path(&names[1]), fs::Permissions::from_mode(0o600)).unwrap();
    for (index, name) in names.iter().enumerate().skip(1) {
        let output = archive.push().arg(path(name)).arg("--json").run().success();
        // A change of mode is a change: that one was compared.
        assert_eq!(output.json()["outcome"], if index == 1 { "same" } else { "marked" });
        assert_eq!(archive.marks(), names[index + 1..]);
        set_status(&cluster, name, "done");
    }
    // Used marks are gone; then it is compared.
    assert_eq!(archive.push().arg(path(&names[2])).arg("--json").run().success().json()["outcome"], "same");
}

#[test]
fn wal_that_lies_ready_is_not_asked_for_in_the_bucket() {
    let (archive, server) = (Archive::new(), Seaweed::start());
    make_bucket(&server, archive.home.path());
    let proxy = Proxy::start(server.port(), |_, _| Fate::Pass);
    let endpoint = proxy.endpoint();
    let lifeboat = || {
        let program = with_server(archive.lifeboat(), &endpoint).env("LIFEBOAT_SPOOL", archive.path("spool"));
        program.args(["--repository", &format!("s3://{BUCKET}/wal"), "--json"])
    };
    lifeboat().args(["init"]).run().success();
    let cluster = backlog(Postgres::V16, 1, 6);
    let names = ready(&cluster);
    let push = |name: &String| lifeboat().args(["wal", "push"]).arg(pg_wal(&cluster).join(name)).run().success();
    assert_eq!(json_list(&push(&names[0]), "ahead"), names[1..]);

    // Seconds ago they were stored, by this host, in the repository of this place: nothing is asked.
    let asked = proxy.requests().len();
    assert_eq!(push(&names[1]).json()["outcome"], "marked");
    assert_eq!(proxy.requests().len(), asked);
    // What is older is asked about: a repository may have been put back to an earlier state.
    let mut marks = Vec::new();
    crate::failure::walk(&archive.path("spool"), &mut |path, _| marks.extend(path.ends_with(&names[2]).then(|| path.to_owned())));
    let long_ago = SystemTime::now() - Duration::from_secs(90);
    File::options().write(true).open(&marks[0]).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(push(&names[2]).json()["outcome"], "marked");
    assert!(proxy.requests().split_off(asked).iter().any(|line| line.starts_with("HEAD ") && line.contains(&names[2])));

    let control = fs::read(cluster.data_directory().join("global/pg_control")).unwrap();
    let system_id = ControlFile::decode(&control).unwrap().system_id.to_string();
    let fetch = |name: &String| {
        let whose = ["--system-id", &system_id, "--segment-size", "1MiB"];
        let fetch = lifeboat().args(["wal", "fetch"]).args(whose).arg(name).arg(archive.path(name));
        let output = fetch.run().success();
        assert!(fs::read(archive.path(name)).unwrap() == fs::read(pg_wal(&cluster).join(name)).unwrap());
        output
    };
    let asked = proxy.requests().len();
    assert_eq!(fetch(&names[0]).json()["from"], "repository");
    let of_first: Vec<String> = proxy.requests().split_off(asked).into_iter().filter(|line| line.contains(&names[0])).collect();
    assert_eq!(of_first.len(), 1, "one request brings a segment: {of_first:#?}");
    // Fetched ahead by the process that it left behind.
    wait_for(&cluster, || {
        let mut there = false;
        crate::failure::walk(&archive.path("spool"), &mut |path, _| {
            let name = path.file_name().unwrap().to_str().unwrap();
            there |= path.parent().unwrap().ends_with("fetched") && name.starts_with(&names[1]) && !name.contains("part");
        });
        there
    });
    drop((proxy, server));
    assert_eq!(fetch(&names[1]).json()["from"], "spool");
}

#[test]
fn c049_a_mark_is_of_one_file_as_it_was_and_of_one_repository() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V16, 1, 5);
    let names = ready(&cluster);
    let path = |name: &str| pg_wal(&cluster).join(name);
    archive.push().arg(path(&names[0])).run().success();
    let good = files_of(&cluster, &names);

    // Another content, in place, with the same times as far as anyone can set them.
    let mut other = good[&names[1]].clone();
    other[5000] ^= 1;
    let modified = fs::metadata(path(&names[1])).unwrap().modified().unwrap();
    fs::write(path(&names[1]), &other).unwrap();
    fs::File::options().append(true).open(path(&names[1])).unwrap().set_modified(modified).unwrap();
    let text = one_error(&archive.push().arg(path(&names[1])).run(), 1);
    assert!(text.contains("another file of that name"), "{text}");
    fs::write(path(&names[1]), &good[&names[1]]).unwrap();
    assert!(!archive.marks().contains(&names[1]));

    // Another file under the name.
    fs::copy(path(&names[2]), path("aside")).unwrap();
    Owner::current().own(&path("aside"));
    fs::rename(path("aside"), path(&names[2])).unwrap();
    assert_eq!(archive.push().arg(path(&names[2])).arg("--json").run().success().json()["outcome"], "same");

    // Another repository.
    let elsewhere = archive.path("elsewhere");
    archive.lifeboat().arg("--repository").arg(&elsewhere).arg("init").run().success();
    let output = archive.push().arg(path(&names[3])).args(["--json", "--repository"]).arg(&elsewhere).run().success();
    assert_eq!(output.json()["outcome"], "stored");

    // A repository that was put back to an earlier state.
    assert!(archive.marks().contains(&names[4]));
    crate::failure::walk(&archive.path("repository/wal"), &mut |object, _| {
        if object.ends_with(&names[4]) {
            fs::remove_file(object).unwrap();
        }
    });
    assert_eq!(archive.push().arg(path(&names[4])).arg("--json").run().success().json()["outcome"], "stored");
    assert!(archive.stored() == good);

    // Marks that are none.
    archive.push().arg(path(&names[0])).run().success();
    for name in &names {
        crate::failure::walk(&archive.path("spool"), &mut |mark, meta| {
            if meta.is_file() {
                fs::write(mark, &fs::read(mark).unwrap()[..30]).unwrap();
            }
        });
        assert_eq!(archive.push().arg(path(name)).arg("--json").run().success().json()["outcome"], "same");
    }
}

#[test]
fn without_a_spool_it_takes_longer_and_nothing_else() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V16, 1, 4);
    let names = ready(&cluster);
    fs::write(archive.path("spool"), "a file where the directory should be").unwrap();
    for (index, name) in names.iter().enumerate() {
        let output = archive.push().arg(pg_wal(&cluster).join(name)).arg("--json").run().success();
        assert_eq!(output.json()["outcome"], if index == 0 { "stored" } else { "same" });
        assert_eq!(json_list(&output, "warnings").len(), 1, "one for all of them: {output}");
        assert!(output.stderr.contains("the spool") && output.stderr.contains("cannot be used"), "{output}");
        set_status(&cluster, name, "done");
        if index + 2 == names.len() {
            break;
        }
    }
    assert!(archive.stored() == files_of(&cluster, &names));
}

#[test]
fn pushers_at_the_same_time_do_no_harm() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V16, 1, 16);
    let names = ready(&cluster);
    thread::scope(|scope| {
        for name in names.iter().take(6) {
            let path = pg_wal(&cluster).join(name);
            scope.spawn(|| archive.push().arg(path).run().success());
        }
    });
    for name in &names {
        archive.push().arg(pg_wal(&cluster).join(name)).run().success();
    }
    assert!(archive.stored() == files_of(&cluster, &names));
    assert!(archive.gaps().is_empty());
}

#[test]
fn how_many_are_pushed_is_configured_and_history_files_go_first() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V16, 1, 6);
    let names = ready(&cluster);
    fs::write(pg_wal(&cluster).join("00000002.history"), "1\t0/2000000\tno recovery target specified\n").unwrap();
    set_status(&cluster, "00000002.history", "ready");
    // A status file that outlived its file.
    set_status(&cluster, "00000003.history", "ready");
    let text = fs::read_to_string(archive.path("lifeboat.toml")).unwrap().replace("[wal]\n", "[wal]\npush_ahead = 4\n");
    fs::write(archive.path("lifeboat.toml"), text).unwrap();
    let output = archive.push().arg(pg_wal(&cluster).join(&names[2])).arg("--json").run().success();
    assert_eq!(json_list(&output, "ahead"), ["00000002.history", &names[0]]);
    assert!(json_list(&output, "warnings").is_empty(), "{output}");
    let stored: Vec<String> = archive.stored().into_keys().collect();
    assert_eq!(stored, [&names[0], &names[2], "00000002.history"]);
}

#[test]
fn c054_a_gap_is_written_down_once() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V16, 1, 8);
    let names = ready(&cluster);
    let push = |name: &String| archive.push().arg(pg_wal(&cluster).join(name)).arg("--json").run().success();
    // The archive begins at the third: what was before it is no gap.
    for name in &names[..2] {
        set_status(&cluster, name, "done");
    }
    for name in &names[4..] {
        set_status(&cluster, name, "");
    }
    assert!(json_list(&push(&names[2]), "gaps").is_empty());
    // Two are lost: somebody had another archive_command for a while, and a checkpoint removed one of them.
    set_status(&cluster, &names[4], "done");
    set_status(&cluster, &names[5], "done");
    fs::remove_file(pg_wal(&cluster).join(&names[4])).unwrap();
    for name in &names[6..] {
        set_status(&cluster, name, "ready");
    }
    let output = push(&names[6]);
    assert!(output.stderr.contains("warning: WAL of timeline 1 from 0/") && output.stderr.contains("is lost"), "{output}");
    let gaps = archive.gaps();
    let begin = |name: &str| Lsn(u64::from_str_radix(&name[16..], 16).unwrap() << 20);
    assert_eq!(gaps.len(), 1);
    assert_eq!((gaps[0].from, gaps[0].to, gaps[0].timeline.0), (begin(&names[4]), begin(&names[6]), 1));
    for name in &names[6..] {
        let output = push(name);
        assert!(!output.stderr.contains("is lost"), "{output}");
    }
    assert_eq!(archive.gaps(), gaps);
}

#[test]
fn c054_what_waits_is_no_gap() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V16, 1, 8);
    let names = ready(&cluster);
    let alone = |name: &String| {
        let home = archive.home.path();
        let file = home.join("alone.toml");
        let text = fs::read_to_string(archive.path("lifeboat.toml")).unwrap().replace("[wal]\n", "[wal]\npush_ahead = 1\n");
        fs::write(&file, text).unwrap();
        let program = Program::as_owner(&archive.home).arg("--config").arg(file).env("LIFEBOAT_SPOOL", archive.path("spool"));
        program.args(["wal", "push", "--json"]).arg(pg_wal(&cluster).join(name)).run().success()
    };
    alone(&names[0]);
    // Out of order: those between are ready, or have lost their status in a crash.
    alone(&names[3]);
    set_status(&cluster, &names[5], "");
    let output = alone(&names[6]);
    assert!(output.stderr.is_empty() && archive.gaps().is_empty(), "{output}");
    assert_eq!(archive.stored().into_keys().collect::<Vec<_>>(), [&names[0], &names[3], &names[6]].map(String::clone));
    assert!(archive.marks().is_empty());
}

#[test]
fn a_key_that_does_not_open_is_said_where_one_is_needed() {
    let archive = Archive::new();
    let cluster = backlog(Postgres::V16, 1, 1);
    let path = pg_wal(&cluster).join(&ready(&cluster)[0]);
    fs::write(archive.path(".config/lifeboat/signing.password"), "wrong\n").unwrap();
    let text = one_error(&archive.push().arg(&path).run(), 12);
    assert!(text.contains("password"), "{text}");
    assert!(archive.stored().is_empty());
}
