//! One repository in several places, as a user has it: a real server, a directory and a bucket, places that are away, lost or damaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, Owner, Postgres, Stop, expect_success, temp_dir};
use crate::orchestrator;
use crate::program::{Output, Program, reachable_binary};
use crate::seaweed::{BUCKET, Seaweed, make_bucket, with_server};

/// Ends tests that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(120);

const V: Postgres = Postgres::V16;

/// A configuration with two directories as places of one repository, owned by the servers' user.
struct Site {
    home: TempDir,
}

impl Site {
    fn new() -> Site {
        let site = Site { home: temp_dir() };
        site.program().args(["key", "generate"]).run().success();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn program(&self) -> Program {
        Program::as_owner(&self.home)
    }

    fn lifeboat(&self, words: &[&str]) -> Program {
        self.program().arg("--config").arg(self.path("lifeboat.toml")).args(words)
    }

    /// Writes the configuration; `places` are its `[[repository]]` tables.
    fn configure(&self, cluster: Option<&Cluster>, places: &str) {
        let recipient = fs::read_to_string(self.path(".config/lifeboat/recipients.txt")).unwrap();
        let server = cluster.map_or_else(String::new, |cluster| {
            let (dsn, bin) = (cluster.dsn(), V.bin_directory().display().to_string());
            format!("[postgres]\ndsn = \"{dsn}\"\ncopy = \"stream\"\nbin_directory = \"{bin}\"\n")
        });
        let text = format!(
            "name = \"plant\"\n{server}{places}[artifacts]\ndirectory = \"artifacts\"\n[signing]\nkey_file = \".config/lifeboat/signing.key\"\n\
             password = {{ file = \".config/lifeboat/signing.password\" }}\n[trust]\nkeys = [\".config/lifeboat/signing.pub\"]\n\
             [encryption]\nrecipients = [\"{}\"]\nidentity_file = \".config/lifeboat/identity.txt\"\n[wal]\nspool = \"spool\"\n",
            recipient.trim()
        );
        fs::write(self.path("lifeboat.toml"), text).unwrap();
        Owner::current().own(&self.path("lifeboat.toml"));
    }

    /// A server that archives here.
    fn server(&self) -> Cluster {
        let archive = format!("{} --config {} wal push %p", reachable_binary().display(), self.path("lifeboat.toml").display());
        let builder = Cluster::builder(V).wal_segment_size(1).own_system_id().config("archive_mode", "on");
        let cluster = builder.config("archive_command", &archive).start();
        cluster.psql("CREATE TABLE moment (n int)");
        cluster
    }

    fn write_artifacts(&self, count: usize) {
        orchestrator::write_artifacts(&self.path("artifacts"), count, 5);
        expect_success(std::process::Command::new("chmod").args(["-R", "a+rX"]).arg(self.path("artifacts")));
    }

    fn backup(&self) -> Value {
        self.lifeboat(&["backup", "--json"]).run().success().json()
    }

    fn restore(&self, data: &str) -> Program {
        let (data, artifacts) = (self.path(data), self.path(&format!("{data}-artifacts")));
        self.lifeboat(&["restore", "latest", "--start", "--json"]).arg("--pgdata").arg(data).arg("--artifacts").arg(artifacts)
    }
}

/// What a restored server says, which is stopped then.
fn moments(output: &Output, data: &Path) -> String {
    let document = output.json();
    let dsn = document["measured"]["dsn"].as_str().unwrap_or_else(|| panic!("no server\n{output}")).to_owned();
    let mut psql = std::process::Command::new(V.bin_directory().join("psql"));
    let answer = expect_success(psql.args(["-X", "-A", "-t", "-c", "SELECT string_agg(n::text, ',' ORDER BY n) FROM moment"]).arg(dsn));
    let mut stop = std::process::Command::new(V.bin_directory().join("pg_ctl"));
    expect_success(Owner::current().run(stop.args(["-w", "-m", "immediate", "stop", "-D"]).arg(data)).current_dir("/"));
    String::from_utf8_lossy(&answer.stdout).trim().to_owned()
}

/// Closes the segment, and waits until it is archived; its name.
fn archive(cluster: &Cluster) -> String {
    let name = cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    cluster.psql("SELECT pg_switch_wal()");
    let begun = Instant::now();
    while cluster.psql(&format!("SELECT coalesce(last_archived_wal, '') >= '{name}' FROM pg_stat_archiver")) != "t" {
        assert!(begun.elapsed() < DEADLINE, "{name} is not archived\n{}", cluster.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    name
}

const TWO: &str = "[[repository]]\nname = \"near\"\nurl = \"near\"\n[[repository]]\nname = \"far\"\nurl = \"far\"\n";

/// The largest file below a directory.
fn largest(root: &Path) -> PathBuf {
    let mut files = files(root);
    files.sort_by_key(|path| fs::metadata(path).unwrap().len());
    files.pop().unwrap_or_else(|| panic!("nothing in {}", root.display()))
}

fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.path().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
    }
    found
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    // Several places: a pack of few small frames is hit in one that is read.
    let step = (bytes.len() / 7).max(1);
    for at in (bytes.len() / 2..bytes.len()).step_by(step) {
        bytes[at] ^= 0x55;
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn c109_the_primary_is_lost_and_one_command_restores_from_the_replica() {
    let site = Site::new();
    site.configure(None, TWO);
    let made = site.lifeboat(&["init", "--json"]).run().success().json();
    assert_eq!(made["replicas"].as_array().unwrap().len(), 1, "{made}");
    let mut cluster = site.server();
    site.configure(Some(&cluster), TWO);
    site.write_artifacts(20);
    let taken = site.backup();
    assert_eq!(taken["replicas"], serde_json::json!([]));
    cluster.psql("INSERT INTO moment VALUES (1)");
    archive(&cluster);
    cluster.psql("INSERT INTO moment VALUES (2)");
    archive(&cluster);
    let verified = site.lifeboat(&["verify", "--all", "--json"]).run().success().json();
    let names: Vec<&str> = verified["repositories"].as_array().unwrap().iter().map(|place| place["name"].as_str().unwrap()).collect();
    assert_eq!((names, &verified["verdict"]), (vec!["near", "far"], &"verified".into()));
    assert_eq!(verified["repositories"][1]["reports"][0]["backup"], taken["backup"]);
    cluster.stop(Stop::Fast);

    // All of it. (Its directory is gone, as when a disk or a bucket is.)
    fs::rename(site.path("near"), site.path("lost")).unwrap();
    // Writing elsewhere is an act of people.
    site.lifeboat(&["backup"]).run().expect_code(10);
    let output = site.restore("restored").run().expect_code(3);
    assert!(output.stderr.contains("repository near is left out"), "{output}");
    assert_eq!(moments(&output, &site.path("restored")), "1,2");
    assert_eq!(output.json()["verdict"], "incomplete");
    let auto = fs::read_to_string(site.path("restored/postgresql.auto.conf")).unwrap();
    assert!(auto.contains("--without-repository near wal fetch"), "{auto}");
    assert_eq!(files(&site.path("restored-artifacts")).len(), 20);

    // A new primary is filled from the replica, and all is as it was.
    site.lifeboat(&["replicate", "--from", "far", "--to", "near", "--json"]).run().success();
    site.lifeboat(&["verify", "--all"]).run().success();
    site.lifeboat(&["replicate", "--check"]).run().success();
    let output = site.restore("again").run().success();
    assert_eq!(moments(&output, &site.path("again")), "1,2");
}

#[test]
fn what_is_damaged_in_the_primary_comes_from_the_replica_and_is_named() {
    let site = Site::new();
    site.configure(None, TWO);
    site.lifeboat(&["init"]).run().success();
    let cluster = site.server();
    site.configure(Some(&cluster), TWO);
    site.write_artifacts(20);
    let id = site.backup()["backup"].as_str().unwrap().to_owned();
    cluster.psql("INSERT INTO moment VALUES (1)");
    let segment = archive(&cluster);
    let near = site.path("near");
    let wal = files(&near.join("wal")).into_iter().find(|path| path.ends_with(&segment)).unwrap();
    let targets = [
        ("pack", largest(&near.join("packs"))),
        ("manifest", near.join(&id).join("manifest.json")),
        ("signature", near.join(&id).join("manifest.sigstore.json")),
        ("file table", near.join(&id).join("files/0")),
        ("artifact", largest(&near.join("artifacts/blobs"))),
        // Damaged: that the last segment of an archive is missing is nothing that can be seen.
        ("WAL segment", wal),
        ("record", files(&near.join("artifacts/records")).pop().unwrap()),
        ("run", files(&near.join("artifacts/catalog")).pop().unwrap()),
    ];
    for (number, (what, path)) in targets.iter().enumerate() {
        let good = fs::read(path).unwrap();
        // Missing, and damaged.
        if number % 3 == 1 {
            fs::remove_file(path).unwrap()
        } else {
            damage(path)
        }
        let key = path.strip_prefix(&near).unwrap().display().to_string();

        // Whoever verifies is told of it, in the place where it is, and only there.
        let verified = site.lifeboat(&["verify", "--all", "--json"]).run().expect_code(21).json();
        assert_eq!(
            (&verified["repositories"][0]["verdict"], &verified["repositories"][1]["verdict"]),
            (&"failed".into(), &"verified".into()),
            "{what}"
        );
        let data = format!("restored-{number}");
        let output = site.restore(&data).run().expect_code(3);
        assert!(output.stderr.contains(&format!("read {key} from far")), "{what}\n{output}");
        let findings = output.json()["findings"].clone();
        assert!(findings.as_array().unwrap().iter().any(|finding| finding["object"] == key.as_str()), "{what}: {findings:#}");
        assert_eq!(moments(&output, &site.path(&data)), "1", "{what}");
        assert_eq!(files(&site.path(&format!("{data}-artifacts"))).len(), 20, "{what}");

        // Healed from there: taken away, and created from the good copy.
        let healed = site.lifeboat(&["replicate", "--from", "far", "--to", "near", "--full", "--json"]).run().success().json();
        assert_eq!(healed["verdict"], "verified", "{what}: {healed}");
        assert_eq!(fs::read(path).unwrap(), good, "{what}");
    }

    // Both copies: nothing is made up.
    let pack = largest(&near.join("packs"));
    for root in [&near, &site.path("far")] {
        damage(&root.join(pack.strip_prefix(&near).unwrap()));
    }
    site.restore("hopeless").run().expect_code(21);
    let report = site.lifeboat(&["replicate", "--full", "--json"]).run().expect_code(21);
    assert!(report.stdout.contains(&pack.strip_prefix(&near).unwrap().display().to_string()), "{report}");
}

#[test]
fn a_replica_that_was_away_is_caught_up_and_a_required_one_must_not_be() {
    let site = Site::new();
    site.configure(None, TWO);
    site.lifeboat(&["init"]).run().success();
    site.write_artifacts(10);
    site.backup();
    let (far, away) = (site.path("far"), site.path("away"));
    fs::rename(&far, &away).unwrap();
    fs::write(site.path("artifacts/late.txt"), "late").unwrap();
    let output = site.lifeboat(&["backup", "--json"]).run().expect_code(3);
    assert!(output.stderr.contains("warning: repository far missed"), "{output}");
    assert_eq!(output.stderr.matches("repository far missed").count(), 1, "said once\n{output}");
    assert_eq!(output.json()["replicas"][0]["kind"], "missed");
    let late = output.json()["backup"].as_str().unwrap().to_owned();
    // Verifying sees it.
    let verified = site.lifeboat(&["verify", "--all", "--json"]).run().expect_code(21).json();
    assert_eq!(verified["repositories"][1]["verdict"], "failed");

    fs::rename(&away, &far).unwrap();
    site.lifeboat(&["verify", &late]).run().expect_code(21);
    let plan = site.lifeboat(&["replicate", "--dry-run", "--json"]).run().success().json();
    let planned = plan["replicas"][0]["plan"]["missing"]["count"].as_u64().unwrap();
    assert!(planned > 3 && !far.join(&late).exists(), "{plan}");
    let done = site.lifeboat(&["replicate", "--missed", "--json"]).run().success().json();
    assert!(done["replicas"][0]["report"]["copied"].as_u64().unwrap() >= 3, "{done}");
    let again = site.lifeboat(&["replicate", "--json"]).run().success().json();
    assert_eq!(again["replicas"][0]["report"]["copied"], 0, "the journal knew all of it: {again}");
    site.lifeboat(&["verify", "--all"]).run().success();
    site.lifeboat(&["verify", "--all", "--repository-name", "far"]).run().success();
    site.lifeboat(&["verify", "--all", "--repository-name", "nobody"]).run().expect_code(2);

    // Required: the backup fails, in one line with a hint, and succeeds when it is back.
    site.configure(None, &format!("{TWO}required = true\n"));
    fs::rename(&far, &away).unwrap();
    let output = site.lifeboat(&["backup"]).run().expect_code(1);
    assert!(
        output.stderr.contains("which is required") && output.stderr.contains("hint: ") && output.stderr.lines().count() == 2,
        "{output}"
    );
    fs::rename(&away, &far).unwrap();
    site.backup();
    site.lifeboat(&["verify", "--all"]).run().success();

    // Another repository in its place is no replica.
    fs::rename(&far, &away).unwrap();
    site.program().args(["init", "--repository"]).arg(&far).run().success();
    let output = site.lifeboat(&["list"]).run().expect_code(2);
    assert!(output.stderr.contains("it is repository") && output.stderr.lines().count() == 2, "{output}");
}

/// A prune that takes what the primary lost for what never was would take it from the replicas as well.
#[test]
fn c103_a_backup_that_only_a_replica_has_blocks_a_prune() {
    let site = Site::new();
    site.configure(None, TWO);
    site.lifeboat(&["init"]).run().success();
    site.write_artifacts(10);
    let first = site.backup()["backup"].as_str().unwrap().to_owned();
    fs::write(site.path("artifacts/late.txt"), "late").unwrap();
    site.backup();
    site.lifeboat(&["prune"]).run().success();
    // No drill was run here, so there are alerts in any case.
    let told = || {
        let status = site.lifeboat(&["status", "--json"]).run().expect_code(3).json();
        let alerts = status["alerts"].as_array().unwrap().clone();
        let alert = alerts.into_iter().find(|alert| alert["name"] == "backup-unreadable");
        (alert, status["repositories"][1]["primary_lacks"].clone())
    };
    assert_eq!(told(), (None, serde_json::json!([])));
    fs::rename(site.path("near").join(&first), site.path("gone")).unwrap();
    let (alert, lost) = told();
    let alert = alert.expect("status tells that the primary lost a backup");
    assert_eq!((&alert["subject"], &alert["severity"], &lost), (&"near".into(), &"critical".into(), &serde_json::json!([first])));
    assert!(alert["fix"].as_str().unwrap().contains("replicate --from far --to near"), "{alert}");
    let output = site.lifeboat(&["status"]).run().expect_code(3);
    assert!(output.stdout.contains("has 1 backups that the primary LOST"), "{output}");
    let before = files(&site.path("far"));
    for words in [&["prune", "--dry-run"][..], &["prune"]] {
        let output = site.lifeboat(words).run().expect_code(3);
        assert!(output.to_string().contains(&format!("backup {first} is in far and not here")), "{output}");
    }
    assert!(before.iter().all(|path| path.exists()), "something went from the replica");
    // Some of it is there: that is no backup that did not finish.
    fs::create_dir_all(site.path("near").join(&first).join("files")).unwrap();
    expect_success(
        std::process::Command::new("chown")
            .args(["-R", &format!("{}:{}", Owner::current().ids().0, Owner::current().ids().1)])
            .arg(site.path("near").join(&first)),
    );
    site.lifeboat(&["prune"]).run().expect_code(3);
    site.lifeboat(&["replicate", "--from", "far", "--to", "near"]).run().success();
    assert_eq!(told(), (None, serde_json::json!([])));
    site.lifeboat(&["prune"]).run().success();
    site.lifeboat(&["verify", "--all"]).run().success();
    // What was missed was missed of the primary: a replica has no such list.
    let output = site.lifeboat(&["replicate", "--from", "far", "--to", "near", "--missed"]).run().expect_code(2);
    assert!(output.stderr.contains("missed of the primary"), "{output}");
    // While the replica is away nobody knows, and that is said.
    fs::rename(site.path("far"), site.path("away")).unwrap();
    let output = site.lifeboat(&["prune"]).run().expect_code(3);
    assert!(output.stderr.contains("was not looked at"), "{output}");
}

/// A prune takes backups away place by place, and a replica that missed it has them for longer: nobody lost those.
#[test]
fn what_a_prune_took_and_a_replica_missed_is_not_lost() {
    let site = Site::new();
    site.configure(None, &format!("{TWO}[retention]\nkeep_last = 1\ngrace = \"0s\"\n"));
    site.lifeboat(&["init"]).run().success();
    site.write_artifacts(10);
    site.backup();
    site.backup();
    site.lifeboat(&["expire"]).run().success();
    let (far, away) = (site.path("far"), site.path("away"));
    fs::rename(&far, &away).unwrap();
    site.lifeboat(&["prune"]).run();
    fs::rename(&away, &far).unwrap();
    let status = site.lifeboat(&["status", "--json"]).run().expect_code(3).json();
    let names = status["alerts"].as_array().unwrap().iter().map(|alert| alert["name"].clone()).collect::<Vec<_>>();
    assert!(!names.contains(&"backup-unreadable".into()), "{names:?}");
    assert!(names.contains(&"replica-behind".into()), "it is behind, and that is told: {names:?}");
    assert_eq!(status["repositories"][1]["primary_lacks"], serde_json::json!([]));
    // Another host has no list of what that prune did not take; what is marked in the replica says it.
    fs::remove_dir_all(site.path("spool")).unwrap();
    let status = site.lifeboat(&["status", "--json"]).run().expect_code(3).json();
    assert_eq!(status["repositories"][1]["primary_lacks"], serde_json::json!([]));
    let output = site.lifeboat(&["prune"]).run().success();
    assert!(!output.to_string().contains("brings it back"), "{output}");
    site.lifeboat(&["verify", "--all"]).run();
}

/// PostgreSQL asks again and again: a yes to the second question, about the same bytes, would let go of a segment that a required place does not have.
#[test]
fn a_segment_of_which_a_required_replica_has_half_is_never_pushed() {
    let site = Site::new();
    let places = format!("{TWO}required = true\n");
    site.configure(None, &places);
    site.lifeboat(&["init"]).run().success();
    let mut cluster = site.server();
    site.configure(Some(&cluster), &places);
    cluster.psql("INSERT INTO moment VALUES (1)");
    let name = archive(&cluster);
    // Before a checkpoint gives it another name.
    let segment = site.path(&name);
    fs::copy(cluster.data_directory().join("pg_wal").join(&name), &segment).unwrap();
    Owner::current().own(&segment);
    cluster.stop(Stop::Fast);
    let push = || site.lifeboat(&["wal", "push"]).arg(&segment).run();
    push().success();
    let of_segment =
        |root: &str| files(&site.path(root).join("wal")).into_iter().find(|path| path.to_string_lossy().contains(&name)).unwrap();
    let there = of_segment("far");
    let bytes = fs::read(&there).unwrap();
    assert_eq!(bytes, fs::read(of_segment("near")).unwrap());
    fs::write(&there, &bytes[..bytes.len() / 2]).unwrap();
    // Nothing remembers a moment ago that all was well.
    let _ = fs::remove_dir_all(site.path("spool"));
    for _ in 0..2 {
        assert_ne!(push().code, Some(0), "the replica has half of it");
    }
    fs::write(&there, &bytes).unwrap();
    push().success();
}

#[test]
fn c080_absence_is_not_believed_while_the_primary_is_away() {
    let site = Site::new();
    site.configure(None, TWO);
    site.lifeboat(&["init"]).run().success();
    let cluster = site.server();
    site.configure(Some(&cluster), TWO);
    let first = archive(&cluster);
    cluster.psql("INSERT INTO moment VALUES (1)");
    let last = archive(&cluster);
    let system_id = cluster.psql("SELECT system_identifier FROM pg_control_system()");
    let fetch = |extra: &[&str], file: &str| {
        let words = [extra, &["wal", "fetch", "--strict", "--system-id", &system_id, "--segment-size", "1MiB", file, "fetched"]].concat();
        site.lifeboat(&words).run()
    };
    let number = u64::from_str_radix(&last[16..], 16).unwrap();
    let next = format!("{}{:08X}", &last[..16], number + 1);
    fetch(&[], &next).expect_code(1);
    fs::rename(site.path("near"), site.path("away")).unwrap();
    let output = fetch(&[], &first).success();
    assert!(output.stderr.contains("repository near is left out"), "{output}");
    let output = fetch(&[], &next).expect_code(200);
    assert!(output.stderr.contains("near"), "{output}");
    fetch(&[], "00000002.history").expect_code(200);
    // Whoever takes the replica for the whole says so.
    fetch(&["--without-repository", "near"], &next).expect_code(1);
    // A replica that is away proves nothing against the primary.
    fs::rename(site.path("away"), site.path("near")).unwrap();
    fs::rename(site.path("far"), site.path("away")).unwrap();
    fetch(&[], &next).expect_code(1);
    // A segment that only one of them has is there.
    fs::rename(site.path("away"), site.path("far")).unwrap();
    // (The later one lies in the spool by now.)
    let here = files(&site.path("near")).into_iter().find(|path| path.ends_with(&first)).unwrap();
    fs::remove_file(&here).unwrap();
    let output = fetch(&[], &first).success();
    assert!(output.stderr.contains("from far"), "{output}");
    fetch(&[], &next).expect_code(1);
}

#[test]
fn c099_a_directory_and_a_bucket_are_places_of_one_repository() {
    let site = Site::new();
    let server = Seaweed::start();
    let bucket = make_bucket(&server, site.home.path());
    let places = format!(
        "[[repository]]\nname = \"near\"\nurl = \"near\"\n[[repository]]\nname = \"bucket\"\nurl = \"s3://{BUCKET}/plant\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n",
        server.endpoint()
    );
    let lifeboat = |words: &[&str]| with_server(site.lifeboat(words), "http://127.0.0.1:1");
    site.configure(None, &places);
    lifeboat(&["init"]).run().success();
    let shown = lifeboat(&["config", "show"]).run().success().stdout;
    assert!(shown.contains("repository.2.url") && shown.contains("best effort") && shown.contains(&server.endpoint()), "{shown}");
    let mut cluster = Cluster::builder(V).start();
    site.configure(Some(&cluster), &places);
    cluster.psql("CREATE TABLE moment AS SELECT 7 n");
    site.write_artifacts(10);
    let taken = lifeboat(&["backup", "--json"]).run().success().json();
    assert_eq!(taken["replicas"], serde_json::json!([]));
    let verified = lifeboat(&["verify", "--all", "--json"]).run().success().json();
    assert_eq!(verified["repositories"][1]["verdict"], "verified");
    // Written once there, too, and no lease.
    let versions = bucket.versions("plant/").unwrap();
    let mut keys: Vec<&str> = versions.iter().map(|version| version.key.as_str()).collect();
    keys.dedup();
    assert!(keys.len() == versions.len() && !keys.iter().any(|key| key.contains("/leases/")), "{keys:#?}");

    // Damaged in the bucket: it becomes the latest version of its key, and the good bytes stay behind it. Presence does not tell.
    let pack = versions.iter().map(|version| version.key.clone()).filter(|key| key.contains("/packs/")).max().unwrap();
    let good = bucket.get(&pack, None, 1 << 30).unwrap();
    bucket.delete(&pack, None).unwrap();
    bucket.put_if_absent(&pack, vec![0x5A; good.len()], None).unwrap();
    let listed = lifeboat(&["replicate", "--json"]).run().success().json();
    assert_eq!(listed["verdict"], "verified", "listings see nothing");
    let checked = lifeboat(&["replicate", "--check", "--json"]).run().expect_code(21).json();
    let findings = checked["replicas"][0]["report"]["findings"].as_array().unwrap().clone();
    assert!(findings.len() == 1 && pack.ends_with(findings[0]["object"].as_str().unwrap()), "{checked}");
    // One that the store keeps is checked by content in any case, and never written.
    site.configure(Some(&cluster), &format!("{places}kept_by = \"store\"\n"));
    let checked = lifeboat(&["replicate", "--json"]).run().expect_code(21).json();
    // The record of the check itself is one that the store has not brought there.
    let findings = checked["replicas"][0]["report"]["findings"].as_array().unwrap().clone();
    let of_backups = findings.iter().filter(|finding| !finding["object"].as_str().unwrap().starts_with("audit/"));
    assert_eq!(of_backups.count(), 1, "{checked:#}");
    assert_eq!(bucket.get(&pack, None, 1 << 30).unwrap(), vec![0x5A; good.len()], "it was not touched");
    lifeboat(&["replicate", "--to", "bucket"]).run().expect_code(2);
    // Ours to write: healed.
    site.configure(Some(&cluster), &places);
    let healed = lifeboat(&["replicate", "--full", "--json"]).run().success().json();
    assert_eq!(healed["replicas"][0]["report"]["healed"]["count"], 1, "{healed}");
    assert_eq!(bucket.get(&pack, None, 1 << 30).unwrap(), good);

    cluster.stop(Stop::Fast);
    fs::remove_dir_all(site.path("near")).unwrap();
    let data = site.path("restored");
    let restore = with_server(site.restore("restored"), "http://127.0.0.1:1");
    let output = restore.run().expect_code(3);
    assert_eq!(moments(&output, &data), "7");
}
