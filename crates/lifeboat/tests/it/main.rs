//! Tests of the program as a user runs it. A feature's tests stand in the module that has its name; the fixtures below are for all.

mod agent;
mod alert;
mod approval;
mod architecture;
mod artifact;
mod as_of;
mod audit;
mod backup;
#[path = "../../../lifeboat-engine/tests/bao/mod.rs"]
mod bao;
mod clouds;
mod cluster;
mod container;
mod demo;
mod doctor;
mod document;
mod drill;
mod drill_report;
mod expire;
mod failure;
mod gate;
mod init;
mod install;
mod key;
mod kubernetes;
mod log;
mod moto;
mod orchestrator;
mod package;
mod pages;
mod policy;
mod program;
#[path = "../../../lifeboat-s3/tests/support/proxy.rs"]
#[expect(dead_code, reason = "shared with the tests of the client, which use more of it")]
mod proxy;
#[path = "../../../lifeboat-engine/tests/notify/receiver.rs"]
#[expect(dead_code, reason = "shared with the tests of the sinks, which use more of it")]
mod receiver;
mod replicas;
mod rescue;
mod restore;
mod roles;
mod runbook;
mod s3;
mod scripts;
mod seaweed;
mod secrets;
mod signing;
#[path = "../../../lifeboat-engine/tests/sigstore/mod.rs"]
#[expect(dead_code, reason = "shared with the tests of the signers, which use more of it")]
mod sigstore;
mod threats;
mod traces;
mod truth;
mod tutorial;
mod verify;
mod wal_fetch;
mod wal_push;
mod wal_receive;
mod wal_record;
mod wal_recovery;

/// The fixtures do what their users rely on.
mod fixtures {
    use std::fs;
    use std::path::Path;

    use crate::cluster::{Cluster, Owner, Postgres, Stop, expect_success, restored_cluster, setting, temp_dir};
    use crate::orchestrator;
    use crate::program::{Program, reachable_binary};

    #[test]
    fn every_version_starts_and_answers() {
        for version in Postgres::ALL {
            let cluster = Cluster::builder(version).start();
            let answer = cluster.psql("SHOW server_version_num");
            assert_eq!(answer.parse::<u32>().expect("a number") / 10000, version.major());
            assert_eq!(cluster.psql("SHOW data_checksums"), "on");
            assert_eq!(cluster.psql("SELECT pg_catalog.current_setting('data_directory')"), cluster.data_directory().to_str().unwrap());
            assert!(cluster.try_psql("SELECT 1/0").unwrap_err().contains("division by zero"));
            assert_eq!(cluster.version(), version);
        }
    }

    #[test]
    fn a_cluster_is_made_as_asked() {
        for version in Postgres::ALL {
            let cluster = Cluster::builder(version).checksums(false).wal_segment_size(1).config("work_mem", "7MB").start();
            assert_eq!(cluster.psql("SHOW data_checksums"), "off");
            assert_eq!(cluster.psql("SHOW wal_segment_size"), "1MB");
            assert_eq!(cluster.psql("SHOW work_mem"), "7MB");
        }
    }

    #[test]
    fn system_identifiers_differ_where_asked() {
        let identifier = |cluster: &Cluster| cluster.psql("SELECT system_identifier FROM pg_control_system()");
        let (a, b) = (Cluster::builder(Postgres::V15).own_system_id().start(), Cluster::builder(Postgres::V15).own_system_id().start());
        assert_ne!(identifier(&a), identifier(&b));
    }

    #[test]
    fn a_password_is_asked_for_over_tcp() {
        for (version, tls) in [(Postgres::V15, false), (Postgres::V15, true), (Postgres::V18, false)] {
            let builder = Cluster::builder(version).tcp_scram("it's \\ secret");
            let cluster = if tls { builder.tls() } else { builder }.start();
            let mut psql = cluster.program("psql");
            let output = expect_success(
                psql.args(["-X", "-A", "-t", "-c", "SELECT (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())"])
                    .arg(cluster.tcp_dsn()),
            );
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), if tls { "t" } else { "f" });
            let wrong = cluster.tcp_dsn().replace("secret", "guess");
            let output = cluster.program("psql").args(["-X", "-w", "-c", "SELECT 1"]).arg(wrong).output().expect("psql is executable");
            assert!(String::from_utf8_lossy(&output.stderr).contains("password authentication failed"), "{output:?}");
        }
    }

    #[test]
    fn stops_and_crashes_lose_no_commit() {
        let mut cluster = Cluster::builder(Postgres::V16).start();
        cluster.psql("CREATE TABLE t (n int)");
        for mode in [Stop::Smart, Stop::Fast, Stop::Immediate] {
            cluster.psql("INSERT INTO t VALUES (1)");
            cluster.stop(mode);
            assert!(cluster.try_psql("SELECT 1").is_err());
            cluster.start_again().unwrap();
        }
        cluster.psql("INSERT INTO t VALUES (1)");
        cluster.kill9();
        cluster.start_again().unwrap();
        assert_eq!(cluster.psql("SELECT count(*) FROM t"), "4");
        assert!(cluster.log().contains("automatic recovery in progress"));
    }

    #[test]
    fn a_copy_made_under_load_is_a_restored_cluster() {
        for version in Postgres::ALL {
            let cluster = Cluster::builder(version).start();
            let tablespace = cluster.create_tablespace("aside");
            cluster.psql("CREATE TABLE far (n int) TABLESPACE aside; INSERT INTO far VALUES (17)");
            assert!(fs::read_dir(&tablespace).unwrap().next().is_some());
            cluster.pgbench_init(1);
            let mut load = cluster.pgbench_background();
            let copy = temp_dir();
            let data = copy.path().join("data");
            let mut backup = cluster.program("pg_basebackup");
            backup.args(["-c", "fast", "-N", "-D"]).arg(&data);
            backup.arg("-T").arg(format!("{}={}", tablespace.display(), copy.path().join("aside").display()));
            let output = cluster.run_as_owner(&mut backup);
            assert!(output.status.success(), "{output:?}");
            assert!(load.is_running());
            load.stop();
            let mut verify = std::process::Command::new(cluster.bin("pg_verifybackup"));
            let verified = cluster.run_as_owner(verify.arg(&data));
            assert!(verified.status.success(), "{verified:?}");

            let restored = restored_cluster(&data, version).unwrap();
            assert_eq!(restored.psql("SHOW archive_mode"), "off");
            assert_eq!(restored.psql("SELECT n FROM far"), "17");
            let balance = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)";
            assert_eq!(restored.psql(balance), "t");
        }
    }

    #[test]
    fn a_start_that_fails_returns_the_log() {
        let mut cluster = Cluster::builder(Postgres::V18).start();
        cluster.pgbench_init(1);
        cluster.pgbench_load(1);
        cluster.stop(Stop::Fast);
        let pg_control = cluster.data_directory().join("global/pg_control");
        let mut bytes = fs::read(&pg_control).unwrap();
        bytes[0] ^= 1;
        fs::write(&pg_control, bytes).unwrap();
        let failure = restored_cluster(cluster.data_directory(), Postgres::V18).unwrap_err();
        assert!(failure.log.contains("incorrect checksum in control file"), "{failure}");
        assert!(failure.to_string().contains("the server ended with"));
    }

    #[test]
    fn a_recovery_that_pauses_is_a_failure() {
        let cluster = Cluster::builder(Postgres::V15).start();
        let copy = temp_dir();
        let data = copy.path().join("data");
        let output = cluster.run_as_owner(cluster.program("pg_basebackup").args(["-c", "fast", "-N", "-D"]).arg(&data));
        assert!(output.status.success(), "{output:?}");
        let settings = "restore_command = 'false'\nrecovery_target = 'immediate'\n";
        for (name, text) in [("recovery.signal", ""), ("postgresql.auto.conf", settings)] {
            fs::write(data.join(name), text).unwrap();
            Owner::current().own(&data.join(name));
        }
        let failure = restored_cluster(&data, Postgres::V15).unwrap_err();
        assert!(failure.to_string().contains("recovery is paused at its target"), "{failure}");
    }

    #[test]
    fn a_directory_that_exists_is_started_as_it_is() {
        let mut source = Cluster::builder(Postgres::V16).config("archive_mode", "on").config("archive_command", "true").start();
        assert!(Cluster::start_existing(source.data_directory(), Postgres::V16).is_err(), "started twice");
        source.stop(Stop::Fast);
        let again = Cluster::start_existing(source.data_directory(), Postgres::V16).unwrap();
        assert_eq!(again.psql("SHOW archive_mode"), "on");
        expect_success(again.program("psql").args(["-X", "-c", "SELECT 1"]).arg(again.dsn()));
        drop(again);
        assert!(source.data_directory().join("PG_VERSION").is_file());
    }

    #[test]
    fn dumps_of_equal_clusters_are_equal() {
        let clusters = [(); 2].map(|()| {
            let cluster = Cluster::builder(Postgres::V15).start();
            orchestrator::install(&cluster, 100);
            cluster.psql("CREATE DATABASE other");
            cluster.psql_in("other", "CREATE TABLE note (text text); INSERT INTO note VALUES ('-- not a comment')");
            cluster.pgbench_init(1);
            cluster.psql("TRUNCATE pgbench_history");
            cluster
        });
        let [a, b] = clusters.each_ref().map(Cluster::pg_dump_all);
        assert!(a.contains("\n-- not a comment\n") && a.contains("project-6"));
        assert!(a == b);
        clusters[0].pgbench_transactions(10, 42);
        assert!(clusters[0].pg_dump_all() != b);
    }

    #[test]
    fn an_orchestrator_refers_to_artifacts_that_are_there() {
        let cluster = Cluster::builder(Postgres::V18).start();
        orchestrator::install(&cluster, 50);
        let (one, two) = (temp_dir(), temp_dir());
        let artifacts = orchestrator::write_artifacts(one.path(), 60, 7);
        assert_eq!(artifacts, orchestrator::write_artifacts(two.path(), 60, 7));
        assert!(artifacts.iter().any(|artifact| artifact.size == 0) && artifacts.iter().any(|artifact| artifact.size > 4 << 20));
        assert!(artifacts.iter().any(|artifact| artifact.name.len() == 1024));
        orchestrator::record(&cluster, &artifacts);

        let referenced = orchestrator::referenced(&cluster);
        let digests = orchestrator::sha256sum(one.path(), referenced.iter().map(|(name, _)| name.as_str()));
        assert_eq!(referenced.len(), 60);
        assert!(referenced.iter().zip(&digests).all(|((_, expected), found)| expected == found));
        let mut expected: Vec<_> = artifacts.iter().map(|artifact| (artifact.name.clone(), artifact.sha256.clone())).collect();
        expected.sort();
        assert_eq!(referenced, expected);

        assert_eq!((orchestrator::last_beat(&cluster), orchestrator::beat(&cluster), orchestrator::last_beat(&cluster)), (0, 1, 1));
    }

    #[test]
    fn the_program_runs_in_a_clean_environment() {
        let home = temp_dir();
        Program::new(&home).env("LIFEBOAT_CONFIG", "/dev/null").args(["--version", "--no-such-flag"]).input(b"ignored").run();
        Program::as_owner(&home).arg("--version").run().success();
        let mut child = Program::new(&home).arg("--version").spawn();
        assert!(child.wait().unwrap().code().is_some());
        assert!(home.path().join("stderr").is_file());

        // The servers' user can run the binary, wherever the repository stands.
        let mut command = std::process::Command::new("test");
        assert!(Owner::current().run(command.arg("-x").arg(reachable_binary())).current_dir("/").status().unwrap().success());
    }

    #[test]
    fn output_is_told_apart() {
        let home = temp_dir();
        let script = "cat; echo warning >&2; env | sort | cut -d= -f1 | tr '\\n' ' ' >&2; exit 21";
        let output = Program::at(Path::new("/bin/sh"), home.path()).args(["-c", script]).input(b"{\"answer\": 42}").run();
        assert!(output.stderr.starts_with("warning\nHOME PATH PWD RUST_BACKTRACE"), "{output}");
        assert_eq!(output.expect_code(21).json()["answer"], 42);
    }

    #[test]
    fn the_test_tools_are_installed() {
        for variable in
            ["LIFEBOAT_TEST_WEED", "LIFEBOAT_TEST_PYTHON", "LIFEBOAT_TEST_NODE", "LIFEBOAT_TEST_NODE_MODULES", "LIFEBOAT_TEST_ALERTMANAGER"]
        {
            let path = setting(variable).unwrap_or_else(|| panic!("{variable} is not set: run scripts/setup test"));
            assert!(fs::exists(&path).unwrap(), "{variable} names {path}, which is not there: run scripts/setup test");
        }
    }
}
