//! `--as-of`: an attacker with the host's credentials deletes and overwrites everything in the bucket, and everything comes back.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::backup::{Running, Site};
use crate::cluster::{Cluster, Owner, Postgres, Stop, temp_dir};
use crate::moto::{python, script};
use crate::orchestrator;
use crate::program::{Program, reachable_binary};
use crate::seaweed::{ACCESS_KEY, BUCKET, SECRET_KEY, Seaweed, make_bucket, with_server};

/// Ends tests that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(120);

/// The servers' user's home, with keys and a configuration of a repository in a bucket.
struct Place {
    home: TempDir,
    server: Seaweed,
    sockets: TempDir,
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn program(&self) -> Program {
        with_server(Program::as_owner(&self.home), &self.server.endpoint())
    }

    fn lifeboat(&self, words: &[&str]) -> Program {
        self.program().arg("--config").arg(self.path("lifeboat.toml")).args(words)
    }

    /// A server that archives into the bucket; the credentials stand in its command as they would in a unit's environment.
    fn cluster(&self, artifacts: &std::path::Path) -> Cluster {
        let command = format!(
            "AWS_ACCESS_KEY_ID={ACCESS_KEY} AWS_SECRET_ACCESS_KEY={SECRET_KEY} {} --config {} wal push %p",
            reachable_binary().display(),
            self.path("lifeboat.toml").display()
        );
        let builder = Cluster::builder(Postgres::V15).wal_segment_size(1).own_system_id().config("archive_mode", "on");
        let builder = builder.config("unix_socket_directories", self.sockets.path().to_str().expect("made from ASCII"));
        let cluster = builder.config("archive_command", &command).config("wal_level", "replica").config("listen_addresses", "").start();
        let recipient = fs::read_to_string(self.path(".config/lifeboat/recipients.txt")).unwrap();
        let text = format!(
            "name = \"plant\"\n[postgres]\ndsn = \"{}\"\nbin_directory = \"{}\"\n[artifacts]\ndirectory = \"{}\"\n\
             [[repository]]\nurl = \"s3://{BUCKET}/plant\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
             [signing]\nkey_file = \".config/lifeboat/signing.key\"\npassword = {{ file = \".config/lifeboat/signing.password\" }}\n\
             [trust]\nkeys = [\".config/lifeboat/signing.pub\"]\n[encryption]\nrecipients = [\"{}\"]\n\
             identity_file = \".config/lifeboat/identity.txt\"\n[wal]\nspool = \"spool\"\n",
            cluster.dsn(),
            Postgres::V15.bin_directory().display(),
            artifacts.display(),
            self.server.endpoint(),
            recipient.trim(),
        );
        fs::write(self.path("lifeboat.toml"), text).unwrap();
        Owner::current().own(&self.path("lifeboat.toml"));
        cluster
    }
}

/// A moment after everything so far and before everything from now on: the store's times may have whole seconds.
fn between() -> String {
    let begun = jiff::Timestamp::now().as_second();
    let wait = |second: i64| {
        while jiff::Timestamp::now().as_second() < second {
            std::thread::sleep(Duration::from_millis(20))
        }
    };
    wait(begun + 2);
    let moment = jiff::Timestamp::from_second(begun + 1).expect("now");
    wait(begun + 3);
    moment.to_string()
}

fn archive(cluster: &Cluster) {
    let name = cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    cluster.psql("SELECT pg_switch_wal()");
    let begun = Instant::now();
    while cluster.psql(&format!("SELECT coalesce(last_archived_wal, '') >= '{name}' FROM pg_stat_archiver")) != "t" {
        assert!(begun.elapsed() < DEADLINE, "{name} is not archived\n{}", cluster.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn c105_what_an_attacker_deleted_and_overwrote_comes_back_as_it_was() {
    let place = Place { home: temp_dir(), server: Seaweed::start(), sockets: temp_dir() };
    make_bucket(&place.server, place.home.path());
    place.program().args(["key", "generate"]).run().success();
    let artifacts = place.path("artifacts");
    orchestrator::write_artifacts(&artifacts, 12, 5);
    Owner::current().own_tree(&artifacts);
    let mut cluster = place.cluster(&artifacts);
    place.lifeboat(&["init"]).run().success();
    cluster.psql("CREATE TABLE moment (n int PRIMARY KEY)");
    let taken = place.lifeboat(&["backup", "--copy", "stream", "--json"]).run().success().json();
    let backup = taken["backup"].as_str().unwrap().to_owned();
    // WAL behind the backup comes back as well.
    cluster.psql("INSERT INTO moment SELECT generate_series(1, 1000)");
    archive(&cluster);
    let then = between();
    cluster.stop(Stop::Immediate);

    let mut attack = python();
    attack.arg(script("attacker.py")).args([&place.server.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY]);
    let output = attack.output().expect("Python can be run");
    assert!(output.status.success(), "run scripts/setup test\n{}", String::from_utf8_lossy(&output.stderr));
    let attack: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    // Object Lock: not one version is destroyed.
    assert_eq!(attack["destroyed"], 0, "{attack}");
    assert!(attack["refused"].as_u64() >= attack["keys"].as_u64() && attack["keys"].as_u64() > Some(20), "{attack}");

    // What is there now is of no use.
    let now = place.lifeboat(&["list", "--json"]).run();
    assert!(now.code != Some(0) && !now.stdout.contains("\"healthy\""), "{now}");

    // As it was.
    let listed = place.lifeboat(&["--as-of", &then, "list", "--json"]).run().success().json();
    assert_eq!((&listed["backups"][0]["backup"], &listed["backups"][0]["signature"]), (&backup.as_str().into(), &"valid".into()));
    assert!(listed["repository"].as_str().unwrap().contains(&then), "{listed}");
    let verified = place.lifeboat(&["--as-of", &then, "verify", "--all", "--json"]).run().success().json();
    assert_eq!(verified["verdict"], "verified");
    assert!(verified["wal"][0]["report"]["objects"].as_u64() > Some(0), "{verified:#}");
    place.lifeboat(&["show", "latest", "--as-of", &then]).run().success();
    let names = place.lifeboat(&["artifact", "list", "--as-of", &then, "--json"]).run().success().json();
    let name = names["artifacts"][0]["name"].as_str().unwrap_or_else(|| panic!("{names:#}")).to_owned();
    let got = place.lifeboat(&["artifact", "get", "--as-of", &then, "--output", "got", "--", &name]).run().success();
    assert!(fs::read(place.path("got")).unwrap() == fs::read(artifacts.join(&name)).unwrap(), "{got}");
    place.lifeboat(&["artifact", "verify", "--as-of", &then]).run().success();
    let status = place.lifeboat(&["wal", "status", "--as-of", &then, "--json"]).run();
    assert!(!status.json()["clusters"][0]["windows"].as_array().unwrap().is_empty(), "{status}");
    let data = place.path("restored");
    let restore = place.lifeboat(&["--as-of", &then, "restore", "latest", "--start", "--json", "--pgdata"]).arg(&data);
    let output = restore.arg("--artifacts").arg(place.path("restored-artifacts")).run().success();
    let running = Running::new(&data, Postgres::V15, &output);
    assert_eq!(running.psql("SELECT count(*) FROM moment"), "1000", "{output}");
    assert_eq!(running.report["verdict"], "verified");
    assert!(fs::read(place.path("restored-artifacts").join(&name)).unwrap() == fs::read(artifacts.join(&name)).unwrap());

    // Nothing is written into the past, and a moment without one is told.
    for command in [["backup"].as_slice(), &["init"], &["artifact", "sync", "artifacts"], &["wal", "receive"], &["doctor"]] {
        let output = place.lifeboat(&["--as-of", &then]).args(command).run().expect_code(2);
        assert!(output.stderr.contains("--as-of is of list"), "{output}");
    }
    place.lifeboat(&["--as-of", "2001-01-01T00:00:00Z", "list"]).run().expect_code(10);
    place.lifeboat(&["--as-of", "yesterday", "list"]).run().expect_code(2);
}

#[test]
fn c105_a_store_without_versions_has_no_past() {
    let site = Site::new();
    site.program().arg("init").run().success();
    let output = site.program().args(["--as-of", "2024-03-15T12:00:00Z", "list"]).run().expect_code(2);
    assert!(output.stderr.contains("keeps no versions") && output.stderr.contains("lifeboat doctor"), "{output}");
    assert!(output.stderr.lines().count() == 2, "{output}");
    // Trouble is never the end of the archive.
    let fetch = ["--as-of", "2024-03-15T12:00:00Z", "wal", "fetch", "--system-id", "7", "--segment-size", "16MiB"];
    site.program().args(fetch).args(["000000010000000000000001", "out"]).run().expect_code(200);
}
