//! Point-in-time recovery as a user does it: `backup`, a server that archives with `wal push`, and `restore` with a target.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_core::repository::layout;
use lifeboat_core::wal::file::GapRecord;
use lifeboat_core::wal::{Lsn, SystemId, Timeline};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, Owner, Postgres, temp_dir};
use crate::program::{Output, Program, reachable_binary};

/// Ends tests that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(120);

/// A repository with keys and a configuration, owned by the servers' user.
pub(crate) struct Place {
    pub(crate) home: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { home: temp_dir() };
        place.program().args(["key", "generate"]).run().success();
        place.program().args(["init", "--repository"]).arg(place.path("repository")).run().success();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn program(&self) -> Program {
        Program::as_owner(&self.home)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        Owner::current().own(&self.path(name));
    }

    /// lifeboat with the configuration.
    pub(crate) fn lifeboat(&self, words: &[&str]) -> Program {
        self.program().arg("--config").arg(self.path("lifeboat.toml")).args(words)
    }

    fn archive_command(&self) -> String {
        format!("{} --config {} wal push %p", reachable_binary().display(), self.path("lifeboat.toml").display())
    }

    /// A server of small segments that archives here; the configuration is for it.
    pub(crate) fn server(&self, version: Postgres) -> Cluster {
        let builder = Cluster::builder(version).wal_segment_size(1).own_system_id().config("archive_mode", "on");
        let cluster = builder.config("archive_command", &self.archive_command()).config("wal_level", "replica").start();
        let recipient = fs::read_to_string(self.path(".config/lifeboat/recipients.txt")).unwrap();
        let text = format!(
            "name = \"plant\"\n[postgres]\ndsn = \"{}\"\nbin_directory = \"{}\"\n[[repository]]\nurl = \"repository\"\n\
             [signing]\nkey_file = \".config/lifeboat/signing.key\"\npassword = {{ file = \".config/lifeboat/signing.password\" }}\n\
             [trust]\nkeys = [\".config/lifeboat/signing.pub\"]\n[encryption]\nrecipients = [\"{}\"]\n\
             identity_file = \".config/lifeboat/identity.txt\"\n[wal]\nspool = \"spool\"\n",
            cluster.dsn(),
            version.bin_directory().display(),
            recipient.trim(),
        );
        self.write("lifeboat.toml", &text);
        cluster.psql("CREATE TABLE moment (n int PRIMARY KEY, xid text DEFAULT pg_current_xact_id()::text)");
        cluster
    }

    pub(crate) fn backup(&self) -> String {
        let output = self.lifeboat(&["backup", "--copy", "stream", "--json"]).run().success();
        output.json()["backup"].as_str().expect("a backup id").to_owned()
    }

    /// Writes `n`, and returns the LSN behind it.
    pub(crate) fn beat(cluster: &Cluster, n: u32) -> String {
        cluster.psql(&format!("INSERT INTO moment VALUES ({n})"));
        cluster.psql("SELECT pg_current_wal_insert_lsn()")
    }

    /// Closes the segment, and waits until it is archived; its name.
    pub(crate) fn archive(&self, cluster: &Cluster) -> String {
        archive(&|sql| cluster.psql(sql), &|| cluster.log())
    }

    /// Writes segments until the server says that it could not archive one.
    fn beat_until_failing(&self, cluster: &Cluster) {
        let begun = Instant::now();
        while cluster.psql("SELECT failed_count > 0 FROM pg_stat_archiver") != "t" {
            assert!(begun.elapsed() < DEADLINE, "{}", cluster.log());
            cluster.psql("SELECT pg_switch_wal()");
            cluster.psql("CREATE TABLE IF NOT EXISTS filler (); DROP TABLE filler");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn restore(&self, data: &str, words: &[&str]) -> Output {
        let mut all = vec!["restore", "--start", "--json", "--pgdata"];
        let data = self.path(data).display().to_string();
        all.push(&data);
        all.extend(words);
        self.lifeboat(&all).run()
    }

    /// Restores, and returns the moments that came back and the document.
    pub(crate) fn recovered(&self, data: &str, words: &[&str]) -> (String, Value) {
        self.started(&self.path(data), self.restore(data, words).success())
    }

    /// The same of a server that some restore left running in this directory; it is ended.
    pub(crate) fn started(&self, data: &Path, output: Output) -> (String, Value) {
        let document = output.json();
        let server = Restored { data: data.to_owned() };
        let dsn = document["measured"]["dsn"].as_str().expect("a server").to_owned();
        let moments = psql(&dsn, "SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM moment");
        drop(server);
        (moments, document)
    }
}

/// Closes the segment of a server that answers `psql`, and waits until it is archived; its name. `log` is what the server said, where that is known.
fn archive(psql: &dyn Fn(&str) -> String, log: &dyn Fn() -> String) -> String {
    let name = psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    psql("SELECT pg_switch_wal()");
    let begun = Instant::now();
    while psql(&format!("SELECT coalesce(last_archived_wal, '') >= '{name}' FROM pg_stat_archiver")) != "t" {
        assert!(begun.elapsed() < DEADLINE, "{name} is not archived\n{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    name
}

/// A server that `restore --start` left running.
struct Restored {
    data: PathBuf,
}

impl Drop for Restored {
    fn drop(&mut self) {
        let Ok(text) = fs::read_to_string(self.data.join("postmaster.pid")) else { return };
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok()).and_then(rustix::process::Pid::from_raw);
        let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::QUIT));
        while self.data.join("postmaster.pid").exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn psql(dsn: &str, sql: &str) -> String {
    let mut command = std::process::Command::new("psql");
    Owner::current().run(command.args(["-X", "-A", "-t", "-c", sql]).arg(dsn).current_dir("/"));
    let output = crate::cluster::expect_success(&mut command);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Now, by the server's clock, strictly between what was committed before and after.
pub(crate) fn now(cluster: &Cluster) -> String {
    std::thread::sleep(Duration::from_millis(5));
    let now = cluster.psql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    std::thread::sleep(Duration::from_millis(5));
    now
}

/// What is special in a configuration file is not in a restore point's name.
const NAMED: &str = r"before it's\built";

#[test]
fn c078_every_kind_of_target_is_reached_from_the_right_backup() {
    for version in Postgres::ALL {
        let place = Place::new();
        let cluster = place.server(version);
        let first = place.backup();
        Place::beat(&cluster, 1);
        let time = now(&cluster);
        Place::beat(&cluster, 2);
        place.lifeboat(&["restore-point", NAMED, "--wait", "60s"]).run().success();
        Place::beat(&cluster, 3);
        let xid = cluster.psql("SELECT xid FROM moment WHERE n = 3");
        let lsn = Place::beat(&cluster, 4);
        cluster.psql("CHECKPOINT");
        let second = place.backup();
        Place::beat(&cluster, 5);
        place.archive(&cluster);

        let all: Vec<(&str, Vec<&str>, &str, &str)> = vec![
            ("latest", vec!["latest"], "1,2,3,4,5", &second),
            ("time", vec!["latest", "--target-time", &time], "1", &first),
            ("name", vec!["latest", "--target-name", NAMED], "1,2", &first),
            ("xid", vec!["latest", "--target-xid", &xid], "1,2,3", &first),
            ("before", vec!["latest", "--target-xid", &xid, "--exclusive"], "1,2", &first),
            ("lsn", vec!["latest", "--target-lsn", &lsn, "--exclusive"], "1,2,3,4", &first),
            ("immediate", vec![&first, "--target-immediate"], "", &first),
            ("alone", vec![&second, "--standalone"], "1,2,3,4", &second),
            ("old", vec![&first], "1,2,3,4,5", &first),
        ];
        for (name, words, moments, backup) in all {
            if version != Postgres::V15 && !matches!(name, "latest" | "time" | "name") {
                continue;
            }
            let (found, document) = place.recovered(name, &words);
            assert_eq!(found, moments, "{version:?} {name}: {document:#}");
            assert_eq!(document["backup"], *backup, "{version:?} {name}");
            let (reached, promised) = (&document["measured"]["reached_lsn"], &document["measured"]["promised_lsn"]);
            if name == "latest" || name == "old" {
                assert_eq!(reached, promised, "{version:?} {name}");
            }
            assert!(!place.path(&format!("{name}.lifeboat-spool")).exists());
        }
        // The original is as it was, and nobody wrote into its archive.
        assert_eq!(cluster.psql("SELECT count(*) FROM moment"), "5");
        let status = place.lifeboat(&["wal", "status", "--json"]).run();
        let status = status.json();
        assert_eq!(status["clusters"][0]["timelines"].as_array().map(Vec::len), Some(1), "{status:#}");
        assert_eq!(status["clusters"][0]["windows"][0]["backups"], serde_json::json!([first, second]), "{status:#}");
    }
}

/// A dump has one moment, and WAL goes on behind it.
#[test]
fn c078_a_newer_dump_is_in_nobodys_way() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    let physical = place.backup();
    let dump = || {
        let output = place.lifeboat(&["backup", "--copy", "logical", "--json"]).run().success();
        output.json()["backup"].as_str().expect("a backup id").to_owned()
    };
    Place::beat(&cluster, 1);
    let time = now(&cluster);
    Place::beat(&cluster, 2);
    let first = dump();
    Place::beat(&cluster, 3);
    place.archive(&cluster);
    let (moments, document) = place.recovered("time", &["latest", "--target-time", &time]);
    assert_eq!((moments.as_str(), document["backup"].as_str()), ("1", Some(physical.as_str())));
    let (moments, document) = place.recovered("latest", &["latest"]);
    assert_eq!((moments.as_str(), document["backup"].as_str()), ("1,2,3", Some(physical.as_str())));
    // By its name, on its own, or where the WAL ends before it, it is taken all the same.
    let last = dump();
    let chosen = |words: &[&str]| {
        let data = place.path("chosen").display().to_string();
        let output = place.lifeboat(&[&["restore", "--dry-run", "--json", "--pgdata", &data], words].concat()).run().success();
        output.json()["plan"]["backup"].as_str().expect("a backup id").to_owned()
    };
    assert_eq!([chosen(&[&first]), chosen(&["latest", "--standalone"]), chosen(&["latest"])], [first, last.clone(), last]);
}

/// What was refused, and that nothing was written.
fn refused(place: &Place, words: &[&str]) -> String {
    let output = place.restore("nothing", words).expect_code(22);
    assert!(!place.path("nothing").exists() && !place.path("nothing.lifeboat-spool").exists());
    output.json()["error"].to_string()
}

#[test]
fn c079_what_cannot_be_reached_is_refused_before_anything_is_written() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    let before = now(&cluster);
    let backup = place.backup();
    let lsn = Place::beat(&cluster, 1);
    place.archive(&cluster);
    let end = cluster.psql("SELECT pg_current_wal_insert_lsn()");

    let error = refused(&place, &["latest", "--target-time", &before]);
    assert!(error.contains("consistent only from") && error.contains(&format!("lifeboat restore {backup} --target-immediate")), "{error}");
    let error = refused(&place, &["latest", "--target-lsn", "0/1000"]);
    assert!(error.contains("consistent only from"), "{error}");
    for target in [["--target-time", "2099-01-01T00:00:00Z"], ["--target-lsn", "F/0"]] {
        let error = refused(&place, &["latest", target[0], target[1]]);
        assert!(error.contains("the WAL in the archive ends at") && error.contains("--target-lsn"), "{error}");
    }
    let error = refused(&place, &["latest", "--target-xid", "4000000000"]);
    assert!(error.contains("it is not in the WAL"), "{error}");
    let error = refused(&place, &["latest", "--target-name", "no such point"]);
    assert!(error.contains("it is not in the WAL"), "{error}");
    cluster.psql("SELECT pg_create_restore_point('again'), pg_create_restore_point('again')");
    place.archive(&cluster);
    let error = refused(&place, &["latest", "--target-name", "again"]);
    assert!(error.contains("2 restore points of that name"), "{error}");
    let error = refused(&place, &["latest", "--target-timeline", "7"]);
    assert!(error.contains('7'), "{error}");
    // What is offered instead is accepted.
    let nearest = refused(&place, &["latest", "--target-lsn", "F/0"]);
    let offered = nearest.split("--target-lsn ").nth(1).and_then(|rest| rest.split(' ').next()).expect("an LSN");
    let (moments, _) = place.recovered("offered", &["latest", "--target-lsn", offered]);
    assert_eq!(moments, "1", "{lsn} {end} {nearest}");
}

/// The object of an archived segment.
fn object(place: &Place, cluster: &Cluster, segment: &str) -> PathBuf {
    let system_id = cluster.psql("SELECT system_identifier FROM pg_control_system()");
    place.path("repository/wal").join(system_id).join(&segment[..8]).join(segment)
}

#[test]
fn c063_a_gap_is_refused_shown_and_ended_by_a_new_backup() {
    let place = Place::new();
    let cluster = place.server(Postgres::V16);
    let first = place.backup();
    Place::beat(&cluster, 1);
    place.archive(&cluster);
    let safe = now(&cluster);
    Place::beat(&cluster, 2);
    let lost = place.archive(&cluster);
    Place::beat(&cluster, 3);
    place.archive(&cluster);
    fs::remove_file(object(&place, &cluster, &lost)).unwrap();

    let error = refused(&place, &["latest"]);
    assert!(error.contains("is missing") && error.contains("--target-lsn"), "{error}");
    let status = place.lifeboat(&["wal", "status", "--json"]).run().expect_code(3).json();
    assert!(status["findings"].as_array().unwrap().iter().any(|finding| finding["code"] == "gap"), "{status:#}");
    assert_eq!(status["clusters"][0]["timelines"][0]["gaps"].as_array().map(Vec::len), Some(1), "{status:#}");
    // Nobody wrote down that it never arrived, so it is gone.
    let verify = |code: i32| {
        let document = place.lifeboat(&["verify", "--all", "--json"]).run().expect_code(code).json();
        let findings = document["wal"][0]["report"]["findings"].clone();
        assert_eq!(findings.as_array().map(Vec::len), Some(1), "{document:#}");
        assert!(findings[0]["object"].as_str().unwrap().ends_with(&lost), "{document:#}");
        (document["verdict"].clone(), findings[0]["kind"].clone())
    };
    assert_eq!(verify(21), ("failed".into(), "missing".into()));
    // A time before the hole with no commit behind it in reach: refused as well, with one that can be reached.
    let error = refused(&place, &["latest", "--target-time", &safe]);
    assert!(error.contains("is missing"), "{error}");

    // What is offered instead is reached, though the segment ends in a switch and the hole is right behind it (c078).
    let offers = |flag: &str| error.split(flag).nth(1).map(|rest| rest.split_whitespace().next().unwrap().to_owned());
    let lsn = offers("--target-lsn ").expect("offered");
    let (moments, _) = place.recovered("offered-lsn", &["latest", "--target-lsn", &lsn]);
    assert_eq!(moments, "1");
    if let Some(time) = offers("--target-time ") {
        place.recovered("offered-time", &["latest", "--target-time", &time]);
    }
    let (moments, _) = place.recovered("offered-first", &[&first, "--target-immediate"]);
    assert_eq!(moments, "");

    // c093
    let second = place.backup();
    Place::beat(&cluster, 4);
    place.archive(&cluster);
    let (moments, document) = place.recovered("new", &["latest"]);
    assert_eq!((moments.as_str(), &document["backup"]), ("1,2,3,4", &Value::from(second.clone())));
    let error = refused(&place, &[&first]);
    assert!(error.contains("is missing"), "{error}");
    let status = place.lifeboat(&["wal", "status"]).run();
    assert!(status.stdout.contains("except from"), "{status}");

    // As wal push writes it down when the next segment arrives and this one did not.
    assert_eq!(verify(21), ("failed".into(), "missing".into()));
    let system_id: u64 = cluster.psql("SELECT system_identifier FROM pg_control_system()").parse().unwrap();
    let from = u64::from_str_radix(&lost[16..], 16).unwrap() << 20;
    let record = GapRecord {
        format: 1,
        timeline: Timeline(1),
        from: Lsn(from),
        to: Lsn(from + (1 << 20)),
        found: jiff::Timestamp::now(),
        by: "push on host a".into(),
        reason: "it was not there".into(),
    };
    let key = layout::wal_gap(SystemId(system_id), record.timeline, record.from, record.to);
    let path = place.path("repository").join(key.as_str());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
    Owner::current().own_tree(&place.path("repository"));
    assert_eq!(verify(0), ("verified".into(), "lost".into()));
    let output = place.lifeboat(&["verify", "--all"]).run().success();
    assert!(output.stderr.contains("finding: not in the archive: wal/"), "a warning: {output}");
}

/// Whoever's bucket deletes what is old has a hole where the archive begins, and so may others.
#[test]
fn c063_where_the_archive_begins_behind_a_backup_nobody_knows_what_there_was() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    place.backup();
    let mut names = Vec::new();
    for n in 1..=3 {
        Place::beat(&cluster, n);
        names.push(place.archive(&cluster));
    }
    place.lifeboat(&["verify", "--all"]).run().success();
    let wal = object(&place, &cluster, &names[1]);
    for entry in fs::read_dir(wal.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()) {
        if entry < wal.with_file_name(&names[2]) {
            fs::remove_file(entry).unwrap();
        }
    }
    let document = place.lifeboat(&["verify", "--all", "--json"]).run().expect_code(3).json();
    let finding = &document["wal"][0]["report"]["findings"][0];
    assert_eq!((&document["verdict"], &finding["kind"]), (&"incomplete".into(), &"not-checked".into()), "{document:#}");
    assert!(finding["problem"].as_str().unwrap().contains("begins behind it"), "{document:#}");
}

/// Whoever takes the first backup before the archiver is on has a hole that nobody made: it says so, and the next backup is an answer to it.
#[test]
fn c063_an_archive_that_was_begun_after_a_backup_says_so() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    let set = |command: &str| {
        cluster.psql(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
        cluster.psql("SELECT pg_reload_conf()");
        // The archiver reads it before it looks for the next file, but not while it runs a command.
        std::thread::sleep(Duration::from_millis(500));
    };
    set("true");
    Place::beat(&cluster, 1);
    place.archive(&cluster);
    place.backup();
    Place::beat(&cluster, 2);
    place.archive(&cluster);
    set(&place.archive_command());
    for n in 3..5 {
        Place::beat(&cluster, n);
        place.archive(&cluster);
    }
    let seen = || {
        let document = place.lifeboat(&["verify", "--all", "--json"]).run().success().json();
        let findings = document["wal"][0]["report"]["findings"].as_array().unwrap().clone();
        assert_eq!((findings.len(), &findings[0]["kind"]), (1, &"lost".into()), "{document:#}");
        assert!(findings[0]["problem"].as_str().unwrap().contains("the archive was begun behind it"), "{document:#}");
        let status = place.lifeboat(&["wal", "status", "--json"]).run().json();
        let gap = status["findings"].as_array().unwrap().iter().find(|finding| finding["code"] == "gap").cloned();
        gap.unwrap_or_else(|| panic!("{status:#}"))["severity"].clone()
    };
    assert_eq!(seen(), "critical", "nothing behind the hole can be gone back to");
    place.backup();
    Place::beat(&cluster, 5);
    place.archive(&cluster);
    assert_eq!(seen(), "warning");
    assert_eq!(place.recovered("new", &["latest"]).0, "1,2,3,4,5");
    let status = place.lifeboat(&["status", "--json"]).run().expect_code(3).json();
    let alert = status["alerts"].as_array().unwrap().iter().find(|alert| alert["name"] == "wal-gap").cloned();
    assert_eq!(alert.unwrap_or_else(|| panic!("{status:#}"))["severity"], "warning");
}

/// What the primary lost is read from the replica by everything else, so nothing else would tell.
#[test]
fn c103_wal_that_only_a_replica_has_is_told_by_verify() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    let text = fs::read_to_string(place.path("lifeboat.toml")).unwrap();
    let two = "[[repository]]\nname = \"near\"\nurl = \"repository\"\n[[repository]]\nname = \"far\"\nurl = \"far\"\n";
    place.write("lifeboat.toml", &text.replace("[[repository]]\nurl = \"repository\"\n", two));
    place.lifeboat(&["replicate"]).run().success();
    place.backup();
    let mut names = Vec::new();
    for n in 1..=3 {
        Place::beat(&cluster, n);
        names.push(place.archive(&cluster));
    }
    place.lifeboat(&["replicate"]).run().success();
    place.lifeboat(&["verify", "--all"]).run().success();
    fs::remove_file(object(&place, &cluster, &names[1])).unwrap();
    let document = place.lifeboat(&["verify", "--all", "--json"]).run().expect_code(21).json();
    let findings = |at: usize| document["repositories"][at]["wal"][0]["report"]["findings"].clone();
    assert_eq!(findings(0)[0]["kind"], "missing", "{document:#}");
    assert!(findings(0)[0]["problem"].as_str().unwrap().contains("another place has it"), "{document:#}");
    assert_eq!(findings(1), serde_json::json!([]));
    place.lifeboat(&["replicate", "--from", "far", "--to", "near"]).run().success();
    place.lifeboat(&["verify", "--all"]).run().success();
}

/// What is missing before every backup cuts nothing off.
#[test]
fn c063_a_hole_before_the_first_backup_is_no_finding() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    let mut names = Vec::new();
    for n in 1..=3 {
        Place::beat(&cluster, n);
        names.push(place.archive(&cluster));
    }
    fs::remove_file(object(&place, &cluster, &names[1])).unwrap();
    place.backup();
    Place::beat(&cluster, 4);
    place.archive(&cluster);
    let document = place.lifeboat(&["verify", "--all", "--json"]).run().success().json();
    assert!(document["wal"][0]["report"]["objects"].as_u64().unwrap() >= 3, "{document:#}");
    assert_eq!(document["wal"][0]["report"]["findings"], serde_json::json!([]));
}

/// c060, c076: a restored server that goes on archiving is another branch; each of both can be recovered along.
#[test]
fn c076_branches_of_history_are_told_apart() {
    let place = Place::new();
    let cluster = place.server(Postgres::V18);
    let early = place.backup();
    Place::beat(&cluster, 1);
    place.archive(&cluster);
    let fork = Place::beat(&cluster, 2);
    place.archive(&cluster);
    Place::beat(&cluster, 3);
    place.archive(&cluster);

    let output = place.restore("branch", &["latest", "--target-lsn", &fork, "--exclusive", "--archive-mode", "preserve"]).success();
    let document = output.json();
    {
        let _server = Restored { data: place.path("branch") };
        let dsn = document["measured"]["dsn"].as_str().unwrap();
        assert_eq!(psql(dsn, "SELECT string_agg(n::text, ',' ORDER BY n) FROM moment"), "1,2");
        psql(dsn, "INSERT INTO moment VALUES (12)");
        archive(&|sql| psql(dsn, sql), &String::new);
    }
    // The original goes on as well: the archive has both branches.
    Place::beat(&cluster, 4);
    place.archive(&cluster);
    let (moments, _) = place.recovered("latest", &["latest"]);
    assert_eq!(moments, "1,2,12");
    let (moments, _) = place.recovered("one", &["latest", "--target-timeline", "1"]);
    assert_eq!(moments, "1,2,3,4");
    let (moments, _) = place.recovered("two", &["latest", "--target-timeline", "2"]);
    assert_eq!(moments, "1,2,12");
    // A backup of the new branch's parent, behind the fork, cannot lead to the new branch.
    let late = place.backup();
    let error = refused(&place, &[&late, "--target-timeline", "2"]);
    assert!(error.contains("history of timeline 2"), "{error}");
    // Alone, it leads to the old branch only: what was committed on the new one is not left out without a word.
    fs::remove_dir_all(place.path("repository").join(&early)).unwrap();
    let error = refused(&place, &["latest"]);
    assert!(error.contains("no backup leads along timeline 2") && error.contains("restore latest --target-timeline 1"), "{error}");
    let (moments, _) = place.recovered("left", &["latest", "--target-timeline", "1"]);
    assert_eq!(moments, "1,2,3,4");
    let data = place.path("named").display().to_string();
    let dry = place.lifeboat(&["restore", &late, "--dry-run", "--pgdata", &data]).run().success();
    assert!(dry.stderr.contains("what was committed on it does not come back"), "{dry}");
    // The server itself is on the old branch, and a backup leads there.
    let status = place.lifeboat(&["wal", "status", "--json"]).run();
    assert!(!status.stdout.contains("no-backup-on-timeline"), "{status}");
}

#[test]
fn c076_a_moment_before_a_branch_is_reached_along_the_old_timeline() {
    let place = Place::new();
    let cluster = place.server(Postgres::V18);
    place.backup();
    let early = Place::beat(&cluster, 1);
    place.archive(&cluster);
    let fork = Place::beat(&cluster, 2);
    place.archive(&cluster);
    fs::create_dir(place.path("standby")).unwrap();
    place.write("standby/00000002.history", &format!("1\t{fork}\tno recovery target specified\n"));
    place.lifeboat(&["wal", "push"]).arg(place.path("standby/00000002.history")).run().success();
    // A moment before the fork: along the old timeline, so that the history of the new one does not go back behind what it left.
    let output = place.restore("early", &["latest", "--target-lsn", &early, "--exclusive", "--archive-mode", "preserve"]).success();
    {
        let _server = Restored { data: place.path("early") };
        let dsn = output.json()["measured"]["dsn"].as_str().unwrap().to_owned();
        assert_eq!(psql(&dsn, "SELECT string_agg(n::text, ',' ORDER BY n) FROM moment"), "1");
        let history = fs::read_to_string(place.path("early/pg_wal/00000003.history")).unwrap();
        assert_eq!(history.lines().filter(|line| !line.is_empty()).count(), 1, "{history}");
        psql(&dsn, "INSERT INTO moment VALUES (13)");
        archive(&|sql| psql(&dsn, sql), &String::new);
    }
    let (moments, _) = place.recovered("third", &["latest"]);
    assert_eq!(moments, "1,13");
    // PostgreSQL itself, told to follow timeline 2 and to stop before that began, writes one that goes back: it is taken, and followed.
    fs::create_dir(place.path("elsewhere")).unwrap();
    place.write("elsewhere/00000004.history", &format!("1\t{fork}\tno recovery target specified\n2\t{early}\tbefore a time\n"));
    place.lifeboat(&["wal", "push"]).arg(place.path("elsewhere/00000004.history")).run().success();
    let (moments, _) = place.recovered("fourth", &["latest", "--target-timeline", "4"]);
    assert_eq!(moments, "1");
}

#[test]
fn c076_recovery_ends_where_its_history_left_a_timeline_that_went_on() {
    let place = Place::new();
    let cluster = place.server(Postgres::V16);
    place.backup();
    Place::beat(&cluster, 1);
    place.archive(&cluster);
    let fork = Place::beat(&cluster, 2);
    Place::beat(&cluster, 3);
    place.archive(&cluster);
    Place::beat(&cluster, 4);
    place.archive(&cluster);
    // A standby was promoted, and lost before it archived more than this.
    fs::create_dir(place.path("standby")).unwrap();
    place.write("standby/00000002.history", &format!("1\t{fork}\tno recovery target specified\n"));
    place.lifeboat(&["wal", "push"]).arg(place.path("standby/00000002.history")).run().success();
    let (moments, document) = place.recovered("branch", &["latest", "--target-timeline", "2"]);
    assert_eq!(moments, "1,2", "{document:#}");
    assert_eq!(document["measured"]["reached_lsn"], Value::from(fork.clone()), "{document:#}");
    let history = fs::read_to_string(place.path("branch/pg_wal/00000003.history")).unwrap();
    assert!(history.contains(&format!("2\t{fork}\t")), "{history}");
    let (moments, _) = place.recovered("original", &["latest", "--target-timeline", "1"]);
    assert_eq!(moments, "1,2,3,4");
}

#[test]
fn c078_the_wal_that_a_backup_brought_is_used_where_the_archive_lacks_it() {
    let place = Place::new();
    let cluster = place.server(Postgres::V18);
    Place::beat(&cluster, 1);
    // Over more than one segment.
    cluster.pgbench_init(1);
    let load = cluster.pgbench_background();
    let (first, last) = loop {
        let taken = place.lifeboat(&["backup", "--copy", "stream", "--json"]).run().success().json();
        let wal = &taken["manifest"]["postgres"]["wal"];
        let name = |end: &str| wal[end].as_str().expect("it has its own WAL").to_owned();
        if wal["first"] != wal["last"] {
            break (name("first"), name("last"));
        }
    };
    drop(load);
    Place::beat(&cluster, 2);
    place.archive(&cluster);
    assert!(object(&place, &cluster, &last).exists());
    fs::remove_file(object(&place, &cluster, &first)).unwrap();
    let (moments, document) = place.recovered("back", &["latest"]);
    assert_eq!(moments, "1,2", "{document:#}");
}

/// c058, c078: what was received of the segment that was open when the server was lost comes back, with nothing else in the archive; any moment in it
/// can be chosen.
#[test]
fn an_open_segment_comes_back_from_its_pieces() {
    for version in [Postgres::V15, Postgres::V18] {
        let place = Place::new();
        let mut cluster = place.server(version);
        let path = place.path("lifeboat.toml");
        let text = fs::read_to_string(&path).unwrap();
        place.write("lifeboat.toml", &text.replace("[wal]", "[wal]\nmode = \"sync\"\ndurability = \"repository\""));
        cluster.psql("ALTER SYSTEM SET archive_command = ''");
        cluster.psql("SELECT pg_reload_conf()");
        // The slot is made by the backup: nothing is lost between both.
        let output = place.lifeboat(&["backup", "--copy", "stream", "--json"]).run().success();
        assert!(output.stderr.contains("slot lifeboat was not there and has been made"), "{output}");
        let mut receiver = place.lifeboat(&["wal", "receive"]).spawn();
        cluster.psql("ALTER SYSTEM SET synchronous_standby_names = 'lifeboat'");
        cluster.psql("SELECT pg_reload_conf()");
        // Acknowledged, so in the repository.
        let all = |last: u32| (1..=last).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        (1..=5).for_each(|n| _ = Place::beat(&cluster, n));
        let time = now(&cluster);
        (6..=9).for_each(|n| _ = Place::beat(&cluster, n));
        let lsn = Place::beat(&cluster, 10);
        (11..=15).for_each(|n| _ = Place::beat(&cluster, n));
        let xid = cluster.psql("SELECT xid FROM moment WHERE n = 15");
        cluster.psql("SELECT pg_create_restore_point('inside')");
        (16..=20).for_each(|n| _ = Place::beat(&cluster, n));
        cluster.kill9();
        receiver.kill().unwrap();
        receiver.wait().unwrap();
        fs::remove_dir_all(cluster.data_directory()).unwrap();
        fs::remove_dir_all(place.path("spool")).unwrap();
        let (moments, document) = place.recovered("data", &["latest"]);
        assert_eq!(moments, all(20), "{version:?} {document:#}");
        assert_eq!(document["measured"]["reached_lsn"], document["measured"]["promised_lsn"]);
        for (name, words, last) in [
            ("time", &["--target-time", &time][..], 5),
            ("lsn", &["--target-lsn", &lsn, "--exclusive"], 10),
            ("xid", &["--target-xid", &xid], 15),
            ("name", &["--target-name", "inside"], 15),
        ] {
            let (moments, document) = place.recovered(name, &[&["latest"], words].concat());
            assert_eq!(moments, all(last), "{version:?} {name} {document:#}");
        }
    }
}

/// c060: the last segment of a timeline, of which the archive has only what a promoted standby archived of it.
#[test]
fn c060_a_server_replays_through_a_partial_segment() {
    for version in [Postgres::V15, Postgres::V18] {
        let place = Place::new();
        let mut cluster = place.server(version);
        place.backup();
        Place::beat(&cluster, 1);
        place.archive(&cluster);
        let middle = Place::beat(&cluster, 2);
        let end = Place::beat(&cluster, 3);
        let segment = cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        fs::create_dir(place.path("standby")).unwrap();
        let partial = place.path(&format!("standby/{segment}.partial"));
        fs::copy(cluster.data_directory().join("pg_wal").join(&segment), &partial).unwrap();
        Owner::current().own(&partial);
        place.write("standby/00000002.history", &format!("1\t{end}\tno recovery target specified\n"));
        for file in [&partial, &place.path("standby/00000002.history")] {
            place.lifeboat(&["wal", "push"]).arg(file).run().success();
        }
        cluster.kill9();
        let (moments, document) = place.recovered("all", &["latest", "--target-timeline", "1"]);
        assert_eq!(moments, "1,2,3", "{version:?} {document:#}");
        assert_eq!(document["measured"]["reached_lsn"], document["measured"]["promised_lsn"], "{version:?}");
        let (moments, _) = place.recovered("some", &["latest", "--target-timeline", "1", "--target-lsn", &middle, "--exclusive"]);
        assert_eq!(moments, "1,2", "{version:?}");
    }
}

/// A server that nobody started has replayed nothing: the backup's moment is not where it will be.
#[test]
fn a_restore_without_a_start_names_no_recovery_point() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    place.backup();
    Place::beat(&cluster, 1);
    place.archive(&cluster);
    let restore = |data: &str, words: &[&str]| {
        let data = place.path(data).display().to_string();
        place.lifeboat(&[&["restore", "latest", "--pgdata", &data], words].concat()).run().success()
    };
    let said = restore("data", &[]);
    assert!(!said.stdout.contains("recovery point"), "{said}");
    let line = said.stdout.lines().find(|line| line.contains("not started: recovery will go on to")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("the end of its WAL, LSN 0/") && line.ends_with(" or later"), "{said}");
    let document = restore("again", &["--json"]).json();
    assert!(document["measured"]["recovery_point"].is_null(), "{document}");
    // With its own WAL only, the backup's moment is all there is.
    let alone = restore("alone", &["--standalone"]);
    assert!(alone.stdout.contains("recovery point") && !alone.stdout.contains("will go on"), "{alone}");
}

/// Without a server nobody asks what the database will refer to: what the backup says is of another moment.
#[test]
fn a_restore_without_a_start_promises_no_artifacts_of_a_later_moment() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    cluster.psql("CREATE TABLE referenced (name text, sha256 text)");
    fs::create_dir(place.path("artifacts")).unwrap();
    fs::write(place.path("artifacts/kept"), "kept").unwrap();
    Owner::current().own_tree(&place.path("artifacts"));
    let digest = crate::orchestrator::sha256sum(&place.path("artifacts"), ["kept"].into_iter()).remove(0);
    cluster.psql(&format!("INSERT INTO referenced VALUES ('kept', '{digest}')"));
    let text = fs::read_to_string(place.path("lifeboat.toml")).unwrap();
    let more = "[artifacts]\ndirectory = \"artifacts\"\nreference_query = \"SELECT name, sha256 FROM referenced\"\n";
    place.write("lifeboat.toml", &format!("{text}{more}"));
    place.backup();
    // Behind the backup, and not in its set.
    cluster.psql("INSERT INTO referenced VALUES ('later', repeat('0', 64))");
    place.archive(&cluster);
    let restore = |data: &str, words: &[&str]| {
        let (data, to) = (place.path(data).display().to_string(), place.path(&format!("{data}-artifacts")).display().to_string());
        place.lifeboat(&[&["restore", "latest", "--json", "--pgdata", &data, "--artifacts", &to], words].concat()).run()
    };
    let said = restore("cold", &[]).expect_code(3);
    let document = said.json();
    let finding = &document["findings"][0];
    assert_eq!((&finding["kind"], &finding["object"]), (&"not-checked".into(), &"artifacts".into()), "{said}");
    assert!(finding["problem"].as_str().unwrap().contains("compared as of the backup"), "{said}");
    // With its own WAL only, the backup's moment is all there is.
    restore("alone", &["--standalone"]).success();
    restore("immediate", &["--target-immediate"]).success();
    // Who starts it is told what is true there.
    let started = restore("warm", &["--start"]).expect_code(21);
    assert!(started.stderr.contains("1 of 2 artifacts that the database refers to"), "{started}");
    place.started(&place.path("warm"), started);
}

/// What only the server's user may not read is noticed before the server starts.
#[test]
fn a_restore_command_that_the_servers_user_cannot_run_is_noticed() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    place.backup();
    Place::beat(&cluster, 1);
    place.archive(&cluster);
    // An identity that the restore can read, and the server's commands cannot: they run in another directory.
    let identity = Path::new(".config/lifeboat/identity.txt");
    let data = place.path("data");
    let dry = place.lifeboat(&["restore", "latest", "--dry-run", "--json", "--pgdata"]).arg(&data).arg("--identity").arg(identity);
    let plan = dry.run().success().json();
    let settings = plan["plan"]["database"]["settings"].as_array().unwrap();
    let command = settings.iter().find(|setting| setting[0] == "restore_command").expect("a restore command")[1].as_str().unwrap();
    // Whole: nothing in it depends on where it runs.
    assert!(command.contains(&place.path(".config/lifeboat/identity.txt").display().to_string()), "{command}");
    assert!(command.contains(&place.path("lifeboat.toml").display().to_string()), "{command}");
    assert!(command.contains("--promised 1:") && command.ends_with("%f %p"), "{command}");
    // Found from here, and not from the server's directory.
    let identity = "/proc/self/cwd/.config/lifeboat/identity.txt";
    let restore = |data: &str, words: &[&str]| {
        let data = place.path(data).display().to_string();
        place.lifeboat(&[&["restore", "latest", "--json", "--pgdata", &data, "--identity", identity], words].concat()).run()
    };
    let said = restore("cold", &[]).expect_code(3);
    let document = said.json();
    assert_eq!((&document["verdict"], &document["findings"][0]["object"]), (&"incomplete".into(), &"restore_command".into()), "{said}");
    assert!(said.stderr.contains("finding: not checked: restore_command: ") && said.stderr.contains("identity.txt"), "{said}");
    assert!(place.path("cold/global/pg_control").is_file(), "all is restored");
    let said = restore("warm", &["--start"]).expect_code(12);
    assert!(said.stderr.contains("run restore_command as the server's user"), "{said}");
    // With one that it can read, nothing is said.
    place.lifeboat(&["restore", "latest", "--pgdata"]).arg(place.path("fine")).run().success();
}

/// Received, in the repository, verified there: told apart, and damage told from both.
#[test]
fn wal_status_tells_what_was_read_back_and_what_is_damaged() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    assert!(place.lifeboat(&["wal", "status"]).run().expect_code(3).stdout.contains("no WAL of this cluster"));
    place.backup();
    let mut names = Vec::new();
    for n in 1..=3 {
        Place::beat(&cluster, n);
        names.push(place.archive(&cluster));
    }
    cluster.psql("ALTER SYSTEM SET archive_timeout = '60s'");
    cluster.psql("SELECT pg_reload_conf()");
    let status = || place.lifeboat(&["wal", "status", "--json"]).run().success().json();
    assert_eq!(status()["clusters"][0]["verified"]["until"], serde_json::json!({}));
    let looked = place.lifeboat(&["wal", "status", "--verify", "--json"]).run().success().json();
    let mark = &looked["clusters"][0]["verified"]["until"]["1"];
    assert_eq!((&mark["lsn"], &mark["opened"]), (&looked["clusters"][0]["timelines"][0]["last"], &Value::Bool(true)), "{looked:#}");
    // It is remembered, and what was read once is not read again.
    assert_eq!(status()["clusters"][0]["verified"]["until"]["1"], *mark);
    let path = object(&place, &cluster, &names[1]);
    let mut bytes = fs::read(&path).unwrap();
    // Behind the header with its signature: in what was sealed.
    let at = bytes.len() - 40;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    place.lifeboat(&["wal", "status", "--verify"]).run().success();
    let found = place.lifeboat(&["verify", "--all", "--json"]).run().expect_code(21).json();
    let finding = &found["wal"][0]["report"]["findings"][0];
    assert_eq!((&finding["kind"], found["wal"][0]["report"]["findings"].as_array().map(Vec::len)), (&Value::from("corrupt"), Some(1)));
    assert!(finding["object"].as_str().unwrap().ends_with(&names[1]), "{finding}");
    // And recovery stops there instead of ending.
    let output = place.restore("data", &["latest"]);
    assert!(output.code != Some(0), "{output}");
}

/// c093 and the list after a backup: whether recovery can go on from it is said at once.
#[test]
fn a_backup_says_whether_the_archive_reaches_its_end() {
    let place = Place::new();
    let cluster = place.server(Postgres::V16);
    let backup = || place.lifeboat(&["backup", "--copy", "stream", "--json"]).run().success();
    assert_eq!(backup().json()["wal_archived"], Value::Bool(true));
    cluster.psql("ALTER SYSTEM SET archive_command = 'false'");
    cluster.psql("SELECT pg_reload_conf()");
    // The archiver may be in the middle of a file: only what comes after is certain not to arrive.
    place.beat_until_failing(&cluster);
    let output = backup();
    assert_eq!(output.json()["wal_archived"], Value::Bool(false));
    assert!(output.stderr.contains("recovery cannot go on from it"), "{output}");
}
