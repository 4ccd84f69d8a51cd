//! `lifeboat restore` against real servers: what a restore must get right, named after the lines of the project's list.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::backup::{EACH, Running, Site, pg_verifybackup, tree, with_heartbeats};
use crate::cluster::{Cluster, Owner, Postgres, Stop, expect_success, restored_cluster, temp_dir};
use crate::orchestrator;
use crate::program::Program;

/// What a directory looks like, to see whether anything was touched.
fn snapshot(root: &Path) -> Vec<(String, u64, u32, i64)> {
    tree(root).into_iter().map(|(path, meta)| (path, meta.len(), meta.mode(), meta.ctime_nsec())).collect()
}

#[test]
fn c066_c067_targets_that_are_in_use_or_not_empty_are_not_touched() {
    let site = Site::new();
    let mut cluster = site.cluster(Postgres::V16).start();
    let tablespace = cluster.create_tablespace("aside");
    cluster.psql("CREATE TABLE far TABLESPACE aside AS SELECT 1 n");
    site.backup(&cluster, "local");
    cluster.stop(Stop::Fast);
    let artifacts = site.place("somewhere");
    fs::create_dir(&artifacts).unwrap();

    let expect_refusal = |to: &Path, tablespace_to: &Path, says: &str| {
        let look = |path: &Path| path.is_dir().then(|| snapshot(path));
        let before = (look(to), look(tablespace_to));
        for dry in [true, false] {
            let restore =
                site.restore_of("latest", to, Postgres::V16).arg("--tablespace").arg(format!("aside={}", tablespace_to.display()));
            let output = if dry { restore.arg("--dry-run") } else { restore }.run().expect_code(1);
            assert!(output.stderr.contains(says), "{output}");
            assert!(before == (look(to), look(tablespace_to)), "something was touched");
        }
    };
    let free = site.place("free");
    // A stopped cluster, one that seems to run, somebody's files, a file, and no directory above.
    expect_refusal(cluster.data_directory(), &free, "not empty");
    let pid = cluster.data_directory().join("postmaster.pid");
    fs::write(&pid, "1\n").unwrap();
    expect_refusal(cluster.data_directory(), &free, "postmaster.pid");
    fs::remove_file(pid).unwrap();
    let full = site.place("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join(".hidden"), "precious").unwrap();
    expect_refusal(&full, &free, "not empty");
    expect_refusal(&full.join(".hidden"), &free, "write");
    expect_refusal(&site.place("no/such"), &free, "does not exist");
    expect_refusal(&site.place("fine"), &tablespace, "not empty");
    expect_refusal(&site.place("fine"), &full, "not empty");
    assert!(!site.place("fine").exists() && !free.exists());
    // A file system of its own begins with lost+found; an empty directory is as good as none.
    let mounted = site.place("mounted");
    fs::create_dir_all(mounted.join("lost+found")).unwrap();
    fs::create_dir(&free).unwrap();
    let restore = site.restore_of("latest", &mounted, Postgres::V16).arg("--tablespace").arg(format!("aside={}", free.display()));
    restore.run().success();
    assert!(mounted.join("lost+found").is_dir() && free.join("lost+found").metadata().is_err());
}

/// Kills restores until one dies in the middle of its work, and returns its directory.
fn interrupted_restore(site: &Site, version: Postgres, when: impl Fn(&Path) -> bool) -> std::path::PathBuf {
    for attempt in 0..20 {
        let to = site.place(&format!("interrupted-{attempt}"));
        let mut child = site.restore_of("latest", &to, version).spawn();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() && !when(&to) && begun.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_micros(500));
        }
        let _ = child.kill();
        if !child.wait().unwrap().success() && to.join("lifeboat.restoring").exists() {
            return to;
        }
    }
    panic!("every restore was quicker than its end");
}

#[test]
fn c068_c092_an_interrupted_restore_does_not_start_and_begins_anew() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).start();
    cluster.pgbench_init(3);
    site.backup(&cluster, "local");
    type Moment<'m> = (&'m str, &'m dyn Fn(&Path) -> bool);
    let moments: [Moment<'_>; 3] = [
        ("at once", &|to| to.join("lifeboat.restoring").exists()),
        ("with files", &|to| to.join("PG_VERSION").exists() && to.join("base").is_dir()),
        ("near the end", &|to| to.join("recovery.signal").exists()),
    ];
    for (moment, when) in moments {
        let to = interrupted_restore(&site, Postgres::V15, when);
        assert!(!to.join("global/pg_control").exists(), "{moment}");
        Owner::current().own_tree(&to);
        fs::set_permissions(&to, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(Cluster::start_existing(&to, Postgres::V15).is_err(), "{moment}: it starts");
        let _ = fs::remove_file(to.join("postmaster.pid"));
        // What another run left is not trusted, and not in the way.
        fs::write(to.join("stray"), "left over").unwrap();
        site.restore_of("latest", &to, Postgres::V15).run().success();
        assert!(!to.join("stray").exists() && !to.join("lifeboat.restoring").exists());
        pg_verifybackup(Postgres::V15, &to);
        let restored = restored_cluster(&to, Postgres::V15).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(restored.psql("SELECT count(*) FROM pgbench_accounts"), "300000");
        drop(restored);
        fs::remove_dir_all(&to).unwrap();
        // Once complete it is a cluster, and no longer ours to remove.
    }
    let to = site.restore("complete", Postgres::V15);
    let output = site.restore_of("latest", &to, Postgres::V15).run().expect_code(1);
    assert!(output.stderr.contains("not empty"), "{output}");
}

#[test]
fn c070_modes_and_owners_come_back() {
    for (version, group_access) in [(Postgres::V15, false), (Postgres::V18, true)] {
        let site = Site::new();
        let mut cluster = site.cluster(version).start();
        if group_access {
            cluster.stop(Stop::Fast);
            expect_success(Command::new("chmod").args(["-R", "g+rX"]).arg(cluster.data_directory()));
            cluster.start_again().unwrap_or_else(|failure| panic!("{failure}"));
        }
        for copy in ["local", "stream"] {
            site.backup(&cluster, copy);
            let data = site.restore(copy, version);
            let source = fs::metadata(cluster.data_directory()).unwrap();
            let root = fs::metadata(&data).unwrap();
            assert_eq!((root.uid(), root.gid(), root.mode() & 0o777), (source.uid(), source.gid(), source.mode() & 0o777));
            let originals = tree(cluster.data_directory());
            for (path, meta) in tree(&data) {
                assert_eq!((meta.uid(), meta.gid()), (source.uid(), source.gid()), "{path}");
                assert_eq!(meta.mode() & 0o7027, 0, "{path} is open to others");
                let made_here = ["backup_label", "backup_manifest", "recovery.signal", "postgresql.auto.conf", "tablespace_map"];
                let original = originals.get(&path).filter(|_| !made_here.contains(&path.as_str()) && !path.starts_with("pg_wal/"));
                if let Some(original) = original.filter(|original| !original.is_symlink()) {
                    assert_eq!(meta.mode() & 0o777, original.mode() & 0o777, "{path}");
                }
            }
        }
    }
}

#[test]
fn c070_everything_works_without_root() {
    for copy in ["local", "stream", "logical"] {
        let site = Site::new();
        // The site's keys were made by whoever runs the tests: this user makes its own.
        let home = temp_dir();
        let cluster = site.cluster(Postgres::V16).start();
        orchestrator::install(&cluster, 10);
        let repository = home.path().join("repository");
        let backup = Program::as_owner(&home).env("LIFEBOAT_DSN", cluster.dsn()).env("PGDATA", cluster.data_directory());
        let backup = backup.env("LIFEBOAT_PG_BIN", Postgres::V16.bin_directory());
        let output = backup.args(["backup", "--include-postgres", "--copy", copy, "--output"]).arg(&repository).run().success();
        assert!(output.stderr.contains("made a signing key"), "{output}");
        let lifeboat = || Program::as_owner(&home).arg("--repository").arg(&repository);
        lifeboat().args(["verify", "--all"]).run().success();
        let to = home.path().join("restored");
        let restore = lifeboat().args(["restore", "latest", "--json", "--start", "--pgdata"]).arg(&to);
        let output = restore.arg("--bin-directory").arg(Postgres::V16.bin_directory()).run().success();
        let running = Running::new(&to, Postgres::V16, &output);
        assert_eq!(running.psql("SELECT count(*) FROM builds"), "10");
    }
}

#[test]
fn c070_peer_authentication_lets_root_restore() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).start();
    orchestrator::install(&cluster, 5);
    let directory = cluster.scratch("artifacts");
    let artifacts = orchestrator::write_artifacts(&directory, 5, 1);
    orchestrator::record(&cluster, &artifacts);
    // As Debian has it. The source read its file when it started.
    fs::write(cluster.data_directory().join("pg_hba.conf"), "local all postgres peer\n").unwrap();
    let configuration = site.configuration(&format!(
        "[artifacts]\ndirectory = \"{}\"\nreference_query = \"{}\"\n",
        directory.display(),
        orchestrator::REFERENCE_QUERY
    ));
    site.backup_of(&cluster, "local").arg("--config").arg(&configuration).run().success();
    let to = site.place("restored");
    let restore = site.restore_of("latest", &to, Postgres::V15).arg("--config").arg(&configuration).arg("--start");
    let output = restore.arg("--artifacts").arg(site.place("restored-artifacts")).run().success();
    let running = Running::new(&to, Postgres::V15, &output);
    assert_eq!(running.report["verdict"], "verified");
    assert_eq!(running.psql("SELECT count(*) FROM artifacts"), "5");
}

#[test]
fn c072_nothing_of_old_wal_is_left() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).config("archive_mode", "on").config("archive_command", "false").start();
    for _ in 0..3 {
        cluster.psql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (1); SELECT pg_switch_wal()");
    }
    for copy in ["local", "stream"] {
        let taken = site.backup(&cluster, copy);
        let data = site.restore(copy, Postgres::V15);
        let wal = &taken["manifest"]["postgres"]["wal"];
        for path in tree(&data).keys().filter_map(|path| path.strip_prefix("pg_wal/")) {
            let needed = wal["first"].as_str().unwrap() <= path && path <= wal["last"].as_str().unwrap();
            assert!(needed || path == "archive_status", "{path}");
        }
    }
}

#[test]
fn c073_c074_c075_recovery_is_what_the_restore_says() {
    for (version, copy) in EACH {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        cluster.psql("CREATE TABLE t AS SELECT 17 n");
        // What an earlier recovery left: a server that is not recovering ignores it, the next recovery would not.
        for setting in [
            "recovery_target_time = '2020-01-01 00:00:00+00'",
            "recovery_target_action = 'shutdown'",
            "restore_command = 'exit 200'",
            "recovery_target_timeline = '7'",
            "primary_conninfo = 'host=nowhere'",
            "work_mem = '7MB'",
        ] {
            cluster.psql(&format!("ALTER SYSTEM SET {setting}"));
        }
        fs::write(cluster.data_directory().join("standby.signal"), "").unwrap();
        Owner::current().own(&cluster.data_directory().join("standby.signal"));
        site.backup(&cluster, copy);
        fs::remove_file(cluster.data_directory().join("standby.signal")).unwrap();
        let data = site.restore("restored", version);
        assert!(data.join("recovery.signal").exists() && !data.join("standby.signal").exists());
        pg_verifybackup(version, &data);
        let restored = restored_cluster(&data, version).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(restored.psql("SELECT n FROM t"), "17");
        assert_eq!(restored.psql("SHOW work_mem"), "7MB");
        assert_eq!(restored.psql("SHOW recovery_target_time"), "");
        // Writes under names that the original never uses.
        assert_eq!(&restored.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")[..8], "00000002");
    }
}

#[test]
fn c051_c076_c093_a_restored_cluster_is_backed_up_and_restored_again() {
    for (version, copy) in EACH {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        orchestrator::install(&cluster, 5);
        site.backup(&cluster, copy);
        let first = site.restore_and_start("first", version);
        // The original goes on, on the old timeline.
        let lost = orchestrator::beat(&cluster);
        first.psql("INSERT INTO heartbeat (n) VALUES (1000)");
        let data = first.stop();
        let first = Cluster::start_existing(&data, version).unwrap_or_else(|failure| panic!("{failure}"));
        let taken = site.backup(&first, copy);
        assert_eq!(taken["manifest"]["postgres"]["timeline"], 2);
        drop(first);
        let second = site.restore("second", version);
        pg_verifybackup(version, &second);
        let second = restored_cluster(&second, version).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(second.psql("SELECT string_agg(n::text, ',') FROM heartbeat"), "1000", "not {lost} of the other branch");
        assert_eq!(&second.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")[..8], "00000003");
    }
}

#[test]
fn c077_c078_c079_targets_within_and_out_of_reach() {
    for (version, copy) in EACH {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        orchestrator::install(&cluster, 5);
        let before = orchestrator::beat(&cluster);
        let (taken, _) = with_heartbeats(&cluster, || site.backup(&cluster, copy));
        cluster.psql("SELECT pg_create_restore_point('later')");
        let to = site.place("unreachable");
        for target in [
            ["--target-time", "2020-01-01T00:00:00Z"],
            ["--target-time", "2120-01-01T00:00:00Z"],
            ["--target-lsn", "0/1"],
            ["--target-lsn", "FFFF/1"],
            ["--target-xid", "4000000000"],
            ["--target-name", "later"],
        ] {
            for extra in [None, Some("--dry-run")] {
                let output = site.restore_of("latest", &to, version).args(target).args(extra).run().expect_code(22);
                assert!(output.stderr.contains(taken["manifest"]["postgres"]["stop_lsn"].as_str().unwrap()), "{output}");
                assert!(!to.exists(), "{output}");
            }
        }
        site.restore_of("latest", &to, version).args(["--target-time", "2024-03-15 12:00"]).run().expect_code(2);
        site.restore_of("latest", &to, version).args(["--target-lsn", "here"]).run().expect_code(2);
        site.restore_of("latest", &to, version).args(["--target-immediate", "--target-lsn", "0/1"]).run().expect_code(2);
        assert!(!to.exists());
        let stop = taken["manifest"]["postgres"]["stop_lsn"].as_str().unwrap();
        for (name, target) in [("immediate", vec!["--target-immediate"]), ("lsn", vec!["--target-lsn", stop])] {
            let to = site.place(name);
            let output = site.restore_of("latest", &to, version).args(target).arg("--start").run().success();
            let running = Running::new(&to, version, &output);
            assert_eq!(running.psql(&format!("SELECT count(*) >= {before} FROM heartbeat")), "t");
            assert_eq!(&running.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")[..8], "00000002");
            assert_eq!(running.psql("SELECT pg_is_in_recovery()"), "f");
        }
    }
}

#[test]
fn c087_the_restored_server_does_not_archive_unless_told_to() {
    let site = Site::new();
    let archive = temp_dir();
    let command = format!("cp %p {}/%f", archive.path().display());
    let cluster = site.cluster(Postgres::V15).config("archive_mode", "on").config("archive_command", &command).start();
    cluster.psql("CREATE TABLE t AS SELECT 17 n");
    site.backup(&cluster, "local");
    let count = || fs::read_dir(archive.path()).unwrap().count();
    let running = site.restore_and_start("quiet", Postgres::V15);
    assert_eq!(running.psql("SHOW archive_mode"), "off");
    // Two: after the restart as well, for as long as nobody decides otherwise.
    let data = running.stop();
    let again = Cluster::start_existing(&data, Postgres::V15).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(again.psql("SHOW archive_mode"), "off");
    again.psql("INSERT INTO t VALUES (1); SELECT pg_switch_wal(); CHECKPOINT");
    drop(again);
    let names = fs::read_dir(archive.path()).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| name.starts_with("00000001")), "the copy wrote into the archive");
    let before = count();

    let to = site.place("archiving");
    let output = site.restore_of("latest", &to, Postgres::V15).args(["--archive-mode", "preserve", "--start"]).run().success();
    let running = Running::new(&to, Postgres::V15, &output);
    assert_eq!(running.psql("SHOW archive_mode"), "on");
    assert!(count() >= before);
}

#[test]
fn two_restored_servers_run_side_by_side() {
    for version in [Postgres::V15, Postgres::V18] {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        cluster.psql("CREATE TABLE t AS SELECT 17 n");
        site.backup(&cluster, "local");
        let one = site.restore_and_start("one", version);
        let two = site.restore_and_start("two", version);
        assert_ne!(one.dsn, two.dsn);
        one.psql("UPDATE t SET n = 1");
        two.psql("UPDATE t SET n = 2");
        assert_eq!((one.psql("SELECT n FROM t").as_str(), two.psql("SELECT n FROM t").as_str()), ("1", "2"));
    }
}

#[test]
fn a_server_that_does_not_start_is_told_with_its_log() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).start();
    // Read only at the next start, which the source never sees.
    cluster.psql("ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'");
    site.backup(&cluster, "local");
    let to = site.place("restored");
    let output = site.restore_of("latest", &to, Postgres::V15).arg("--start").run().expect_code(1);
    assert!(output.stderr.contains("no_such_library") && output.stderr.contains("lifeboat-start.log"), "{output}");
    // The wrong programs are refused by name, before anything runs.
    let to = site.place("other");
    let missing = site.program().args(["restore", "latest", "--start", "--bin-directory", "/nonexistent", "--pgdata"]).arg(&to).run();
    assert!(missing.stderr.contains("/nonexistent/postgres"), "{missing}");
    missing.expect_code(1);
}

#[test]
fn a_plan_shows_what_would_happen_and_does_nothing() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V16).start();
    cluster.create_tablespace("aside");
    let taken = site.backup(&cluster, "local");
    let to = site.place("restored");
    let aside = site.place("aside");
    let plan = |to: &Path| {
        let restore = site.restore_of("latest", to, Postgres::V16).arg("--dry-run").arg("--tablespace");
        restore.arg(format!("aside={}", aside.display())).run().success().json()
    };
    let first = plan(&to);
    assert_eq!(first["plan"]["backup"], taken["backup"]);
    assert_eq!(first["plan"]["database"]["pgdata"].as_str(), to.to_str());
    assert_eq!(first["plan"]["database"]["tablespaces"][0]["to"].as_str(), aside.to_str());
    assert_eq!(first["plan"]["database"]["stop_lsn"], taken["manifest"]["postgres"]["stop_lsn"]);
    assert!(!first["plan"]["steps"].as_array().unwrap().is_empty());
    assert_eq!(first["digest"], plan(&to)["digest"]);
    assert_ne!(first["digest"], plan(&site.place("elsewhere"))["digest"]);
    assert!(!to.exists() && !aside.exists());
    // It needs no secret: neither the restore identity nor a signing key.
    let secrets: Vec<_> = fs::read_dir(site.home.path().join(".config/lifeboat")).unwrap().flatten().map(|entry| entry.path()).collect();
    for secret in secrets {
        fs::rename(&secret, site.place("hidden")).unwrap();
        fs::remove_file(site.place("hidden")).unwrap();
    }
    let without = plan(&to);
    assert_eq!(without["digest"], first["digest"]);
    assert!(!to.exists());
}

#[test]
fn every_document_of_a_restore_has_what_programs_read() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V18).start();
    let taken = site.backup(&cluster, "local");
    let shown = site.program().args(["show", "latest", "--json"]).run().success().json();
    let running = site.restore_and_start("restored", Postgres::V18);
    for (document, fields) in [
        (&taken, &["/backup", "/manifest_sha256", "/repository", "/seconds", "/manifest/started", "/manifest/postgres/system_id"][..]),
        (&shown, &[][..]),
        (
            &running.report,
            &[
                "/backup",
                "/digest",
                "/verdict",
                "/findings",
                "/plan/files",
                "/measured/files_seconds",
                "/measured/first_query_seconds",
                "/measured/verified_seconds",
                "/measured/reached_lsn",
                "/measured/recovery_point",
                "/measured/dsn",
            ][..],
        ),
    ] {
        for field in fields {
            assert!(document.pointer(field).is_some_and(|value| *value != Value::Null), "{field}: {document}");
        }
    }
    // Or a little later: the backup's own WAL goes on to the moment at which rows were counted, and a commit of ours behind it.
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()).expect("a time");
    let point = time(&running.report["measured"]["recovery_point"]);
    assert!(point >= time(&taken["manifest"]["postgres"]["consistent_at"]) && point <= time(&taken["manifest"]["finished"]), "{point}");
}

#[test]
fn a_backup_under_a_wrong_identity_is_not_opened() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).start();
    site.backup(&cluster, "local");
    let other = Site::new();
    let to = site.place("restored");
    let identity = other.home.path().join(".config/lifeboat");
    let file = fs::read_dir(&identity).unwrap().flatten().map(|entry| entry.path()).find(|path| {
        fs::read_to_string(path).is_ok_and(|text| text.contains("AGE-SECRET-KEY")) && !path.to_string_lossy().contains("host")
    });
    let output = site.restore_of("latest", &to, Postgres::V15).arg("--identity").arg(file.expect("key generate makes one")).run();
    let output = output.expect_code(12);
    assert!(!to.exists() || fs::read_dir(&to).unwrap().next().is_none(), "{output}");
}
