//! lifeboat demo.

use std::path::Path;

use crate::cluster::{Owner, Postgres, temp_dir};
use crate::program::Program;

/// Nothing is left: no file, and no process that has the directory in its command line.
#[track_caller]
fn assert_gone(directory: &Path) {
    assert!(!directory.exists(), "{} is still there", directory.display());
    let name = directory.to_str().expect("a test's own name");
    for process in std::fs::read_dir("/proc").expect("Linux").flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(!line.contains(name), "still running: {line}");
    }
}

#[test]
fn the_main_job_holds_and_is_measured() {
    // Also as an ordinary user: nothing of it needs root.
    for as_owner in [false, true] {
        let home = temp_dir();
        let directory = home.path().join("d");
        let program = if as_owner { Program::as_owner(&home) } else { Program::new(&home) };
        let program = program.args(["demo", "--scale", "1", "--artifacts", "200", "--json", "--directory"]).arg(&directory);
        let output = program.arg("--bin-directory").arg(Postgres::V15.bin_directory()).run().success();
        let report = output.json();
        assert_eq!(report["holds"], true, "{output}");
        let checks = report["checks"].as_array().expect("a list");
        assert!(checks.iter().all(|check| check["holds"] == true), "{output}");
        for name in [
            "server-answers",
            "references-in-backup",
            "rows-before-backup",
            "pgbench-balances",
            "commits-until-recovery-point",
            "artifacts-in-database",
            "pg_amcheck",
            "pg_checksums",
            "verify",
            "artifact-signatures",
            "damaged-pack-is-found",
            "damaged-artifact-is-found",
            "damaged-manifest-is-found",
        ] {
            assert!(checks.iter().any(|check| check["name"] == name), "{name} was not checked\n{output}");
        }
        let positive = |pointer: &str| {
            let number = report.pointer(pointer).and_then(serde_json::Value::as_f64);
            assert!(number.is_some_and(|number| number > 0.0), "{pointer}: {number:?}\n{output}");
        };
        for pointer in [
            "/source/database_bytes",
            "/source/artifact_bytes",
            "/backup/seconds",
            "/backup/repository_bytes",
            "/backup/transactions_meanwhile",
            "/restore/first_query_seconds",
            "/restore/verified_seconds",
            "/recovery/lost_seconds",
            "/recovery/builds_committed",
            "/verify_seconds",
        ] {
            positive(pointer);
        }
        assert_eq!(report["source"]["artifacts"], 200);
        assert!(report["backup"]["artifacts"].as_u64().expect("a number") >= 200);
        // What it ran is what a reader learns from.
        for line in ["$ lifeboat init", "$ lifeboat backup", "$ lifeboat restore latest --pgdata", "$ lifeboat verify latest"] {
            assert!(output.stderr.contains(line), "{output}");
        }
        assert_gone(&directory);
    }
}

#[test]
fn a_repository_that_was_damaged_fails_it() {
    let home = temp_dir();
    let directory = home.path().join("d");
    let program = Program::new(&home).args(["demo", "--scale", "1", "--artifacts", "30", "--damage", "--json", "--directory"]);
    let output = program.arg(&directory).arg("--bin-directory").arg(Postgres::V15.bin_directory()).run().expect_code(21);
    assert!(output.json()["error"]["message"].as_str().is_some_and(|message| message.contains("lifeboat restore latest")), "{output}");
    assert!(output.stderr.contains("corrupt: packs/"), "{output}");
    assert_gone(&directory);
}

#[test]
fn it_takes_only_a_place_of_its_own() {
    let home = temp_dir();
    std::fs::write(home.path().join("mine"), "kept").unwrap();
    let output = Program::new(&home).args(["demo", "--directory"]).arg(home.path()).run().expect_code(2);
    assert!(output.stderr.contains("it is not empty"), "{output}");
    let long = home.path().join("d".repeat(100));
    let output = Program::new(&home).args(["demo", "--directory"]).arg(&long).run().expect_code(2);
    assert!(output.stderr.contains("at most"), "{output}");
    assert!(!long.exists());
    let output = Program::new(&home).args(["demo", "--bin-directory", "/nowhere"]).run().expect_code(2);
    assert!(output.stderr.contains("no initdb, postgres and pgbench in /nowhere"), "{output}");
    assert_eq!(std::fs::read_to_string(home.path().join("mine")).unwrap(), "kept");
}

#[test]
fn what_is_kept_can_be_used_and_started_again() {
    let home = temp_dir();
    // A directory that was there, empty, is as good as none.
    let directory = home.path().join("d");
    std::fs::create_dir(&directory).unwrap();
    Owner::current().own(&directory);
    let program = Program::as_owner(&home).args(["demo", "--scale", "1", "--artifacts", "30", "--keep", "--directory"]);
    let output = program.arg(&directory).arg("--bin-directory").arg(Postgres::V15.bin_directory()).run().success();
    assert!(output.stderr.contains(&format!("kept: {}", directory.display())), "{output}");
    let program = Program::as_owner(&home).args(["verify", "latest", "--config"]).arg(directory.join("lifeboat.toml"));
    program.run().success();
    assert!(directory.join("restored/artifacts/logs").is_dir());
    assert!(!directory.join("restored/pgdata/postmaster.pid").exists(), "a server was left behind");
    let restored = crate::cluster::restored_cluster(&directory.join("restored/pgdata"), Postgres::V15).unwrap();
    assert_eq!(restored.psql_in("conductor", "SELECT count(*) > 0 FROM artifacts"), "t");
}
