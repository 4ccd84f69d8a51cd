//! Expiring, pinning and pruning as a user does it, with a server that archives, and with processes that die in the middle.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Owner, Postgres};
use crate::wal_recovery::{Place, now};

/// Ends tests that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(120);

/// Files below a directory.
fn files(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}

/// Backups that are listed, and whether each has expired.
fn listed(place: &Place) -> Vec<(String, bool)> {
    let document = place.lifeboat(&["list", "--json"]).run().success().json();
    let rows = document["backups"].as_array().unwrap().clone();
    rows.iter().map(|row| (row["backup"].as_str().unwrap().to_owned(), row["expired"] != Value::Null)).collect()
}

fn kill9(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn c106_what_stays_goes_back_to_any_moment_after_a_prune() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    let first = place.backup();
    Place::beat(&cluster, 1);
    place.archive(&cluster);
    let second = place.backup();
    Place::beat(&cluster, 2);
    let time = now(&cluster);
    Place::beat(&cluster, 3);
    place.archive(&cluster);
    let third = place.backup();
    Place::beat(&cluster, 4);
    place.archive(&cluster);
    let wal = || files(&place.path("repository/wal"));
    let before = (wal(), files(&place.path("repository/packs")));

    let refused = place.lifeboat(&["expire"]).run().expect_code(2);
    assert!(refused.stderr.contains("no rule says what to keep") && refused.stderr.contains("hint: "), "{refused}");
    let expire = ["expire", "--keep-last", "2", "--grace", "0s", "--json"];
    let dry = place.lifeboat(&expire).arg("--dry-run").run().success().json();
    assert_eq!((&dry["expired"], &dry["plan"]["decisions"][0]["fate"]), (&Value::from(1), &Value::from("expire")), "{dry:#}");
    assert!(listed(&place).iter().all(|(_, expired)| !expired));

    // A pin holds it, and is ended.
    let pin = place.lifeboat(&["pin", &first, "--name", "audit", "--reason", "auditors ask"]);
    pin.run().success();
    place.lifeboat(&["pin", &first, "--name", "audit", "--reason", "again"]).run().expect_code(1);
    let held = place.lifeboat(&expire).run().success().json();
    assert_eq!(held["plan"]["decisions"][0]["reasons"], serde_json::json!(["pin audit holds it"]), "{held:#}");
    let shown = place.lifeboat(&["show", &first]).run().success();
    assert!(shown.stdout.contains("pinned         audit until it is ended: auditors ask"), "{shown}");
    place.lifeboat(&["unpin", &first, "--name", "audit", "--reason", "seen"]).run().success();

    // It expires, and is whole as long as it is there.
    place.lifeboat(&expire).run().success();
    assert_eq!(listed(&place), [(first.clone(), true), (second.clone(), false), (third.clone(), false)]);
    assert_eq!((wal(), files(&place.path("repository/packs"))), before);
    place.lifeboat(&["expire", "--undo", &first]).run().success();
    assert!(!listed(&place)[0].1);
    place.lifeboat(&["expire", "--undo", &first]).run().expect_code(1);
    place.lifeboat(&expire).run().success();
    let (moments, _) = place.recovered("expired", &[&first, "--target-immediate"]);
    assert_eq!(moments, "");

    let dry = place.lifeboat(&["prune", "--dry-run", "--json"]).run().success().json();
    assert_eq!(dry["plan"]["backups"]["leaving"][0]["backup"], Value::from(first.clone()), "{dry:#}");
    assert_eq!((wal(), files(&place.path("repository/packs"))), before);
    let done = place.lifeboat(&["prune", "--json"]).run().success().json();
    assert_eq!((&done["digest"], &done["held"]), (&dry["digest"], &Value::from(0)), "{done:#}");
    assert_eq!(listed(&place), [(second.clone(), false), (third.clone(), false)]);
    assert!(!place.path("repository").join(&first).exists());
    assert!(wal() < before.0 && files(&place.path("repository/packs")) < before.1, "{done:#}");
    place.lifeboat(&["verify", "--all"]).run().success();

    let (moments, document) = place.recovered("moment", &["latest", "--target-time", &time]);
    assert_eq!((moments.as_str(), &document["backup"]), ("1,2", &Value::from(second)), "{document:#}");
    let (moments, document) = place.recovered("latest", &["latest"]);
    assert_eq!((moments.as_str(), &document["backup"]), ("1,2,3,4", &Value::from(third)), "{document:#}");
    // And there is nothing left to do.
    let again = place.lifeboat(&["prune", "--json"]).run().success().json();
    assert!(again["plan"]["steps"].as_array().unwrap().iter().all(|step| step["what"] == "lease epochs"), "{again:#}");
}

#[test]
fn latest_passes_over_what_has_expired() {
    let place = Place::new();
    let _cluster = place.server(Postgres::V15);
    let first = place.backup();
    let second = place.backup();
    let text = fs::read_to_string(place.path("lifeboat.toml")).unwrap();
    place.write("lifeboat.toml", &format!("{text}[retention]\nkeep_last = 1\nrecovery_window = \"30d\"\ngrace = \"4w\"\n"));
    let shown = place.lifeboat(&["config", "show"]).run().success();
    assert!(shown.stdout.contains("retention.grace") && shown.stdout.contains("retention.recovery_window"), "{shown}");
    // The window keeps what one newest does not.
    let plan = place.lifeboat(&["expire", "--json"]).run().success().json();
    assert_eq!(plan["expired"], 0, "{plan:#}");
    let plan = place.lifeboat(&["expire", "--recovery-window", "0s", "--json"]).run().success().json();
    assert_eq!(plan["expired"], 1, "{plan:#}");
    assert_eq!(listed(&place), [(first.clone(), true), (second.clone(), false)]);
    // Its grace period has only begun.
    let kept = place.lifeboat(&["prune", "--json"]).run().success().json();
    assert_eq!(kept["plan"]["backups"]["held"][0]["backup"], Value::from(first.clone()), "{kept:#}");
    let shown = place.lifeboat(&["show", "latest", "--json"]).run().success().json();
    assert_eq!(shown["manifest"]["id"], Value::from(second.clone()));
    let shown = place.lifeboat(&["show", &first, "--json"]).run().success().json();
    assert!(shown["retention"]["expired"]["prune_after"].is_string(), "{shown:#}");
    // Without the newest one the expired one is not offered as the latest either.
    fs::remove_dir_all(place.path("repository").join(&second)).unwrap();
    let none = place.lifeboat(&["show", "latest"]).run().expect_code(1);
    assert!(none.stderr.contains("there is none"), "{none}");
    // It is the last healthy one by now, and no prune takes it.
    let warned = place.lifeboat(&["expire", "--json"]).run().expect_code(3);
    assert!(warned.stderr.contains("the last healthy backup"), "{warned}");
    let stays = place.lifeboat(&["restore", &first, "--dry-run", "--pgdata"]).arg(place.path("x")).run().success();
    assert!(stays.stderr.contains("has expired"), "{stays}");
}

#[test]
fn c044_a_prune_waits_for_no_backup_and_a_killed_holder_for_nobody() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    let first = place.backup();
    let second = place.backup();
    place.lifeboat(&["expire", "--keep-last", "1", "--grace", "0s"]).run().success();

    // A backup that takes its time.
    let text = fs::read_to_string(place.path("lifeboat.toml")).unwrap();
    place.write("slow.toml", &format!("{text}[limits]\nbandwidth = \"1MiB\"\n"));
    cluster.psql("CREATE TABLE fill AS SELECT repeat(md5(n::text), 60) FROM generate_series(1, 30000) n");
    let slow = crate::program::Program::as_owner(&place.home).arg("--config").arg(place.path("slow.toml"));
    let epochs = || files(&place.path("repository/leases/backup"));
    let before = epochs();
    let mut backup = slow.args(["backup", "--copy", "stream"]).spawn();
    let begun = Instant::now();
    while epochs() == before {
        assert!(
            begun.elapsed() < DEADLINE && backup.try_wait().unwrap().is_none(),
            "{}",
            fs::read_to_string(place.path("stderr")).unwrap()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let refused = place.lifeboat(&["prune"]).run().expect_code(11);
    assert!(refused.stderr.contains("holds it until"), "{refused}");
    assert!(backup.try_wait().unwrap().is_none(), "it still runs");
    assert_eq!(listed(&place), [(first.clone(), true), (second.clone(), false)]);
    kill9(&mut backup);
    place.lifeboat(&["prune"]).run().success();
    assert_eq!(listed(&place), [(second.clone(), false)]);
    assert!(!place.path("repository").join(&first).exists());
    place.lifeboat(&["verify", "--all"]).run().success();

    // One that ended between a manifest and its signature: no backup, and nothing wrong.
    let extra = place.backup();
    place.lifeboat(&["pin", &second, "--name", "stays", "--reason", "r"]).run().success();
    let last = place.backup();
    place.lifeboat(&["expire", "--keep-last", "1", "--grace", "0s"]).run().success();
    fs::remove_file(place.path("repository").join(&extra).join("manifest.json")).unwrap();
    place.lifeboat(&["unpin", &second, "--name", "stays", "--reason", "r"]).run().success();
    assert_eq!(listed(&place), [(second.clone(), false), (last.clone(), false)]);
    place.lifeboat(&["verify", "--all"]).run().success();
    place.lifeboat(&["prune"]).run().success();
    assert!(!place.path("repository").join(&extra).exists());

    // A prune that has much to do, and is killed in the middle of it.
    let third = place.backup();
    place.lifeboat(&["expire", "--keep-last", "1", "--grace", "0s"]).run().success();
    assert_eq!(listed(&place), [(second.clone(), true), (last.clone(), true), (third.clone(), false)]);
    let packs = place.path("repository/packs");
    for n in 0..3000u32 {
        let name = format!("{n:08x}").repeat(8);
        let directory = packs.join(&name[..2]);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(&name), b"garbage").unwrap();
    }
    Owner::current().own_tree(&packs);
    let full = files(&packs);
    let mut prune = place.lifeboat(&["prune"]).spawn();
    let begun = Instant::now();
    while files(&packs) + 100 > full {
        assert!(begun.elapsed() < DEADLINE && prune.try_wait().unwrap().is_none(), "{}", fs::read_to_string(place.path("stderr")).unwrap());
    }
    kill9(&mut prune);
    let left = files(&packs);
    assert!(left > 100, "it was killed in the middle: {left}");
    // Everybody goes on at once: the holder is known to be gone.
    place.lifeboat(&["verify", "--all"]).run().success();
    let fourth = place.backup();
    place.lifeboat(&["prune"]).run().success();
    assert!(files(&packs) < 100, "{}", files(&packs));
    assert_eq!(listed(&place), [(third, false), (fourth, false)]);
    place.lifeboat(&["verify", "--all"]).run().success();
    place.recovered("restored", &["latest"]);
}

/// c108, with real processes: whoever stores while others prune finds what it stored.
#[test]
fn c108_artifacts_that_are_stored_while_others_prune_are_all_there() {
    let place = Place::new();
    let _cluster = place.server(Postgres::V15);
    let text = fs::read_to_string(place.path("lifeboat.toml")).unwrap();
    place.write("lifeboat.toml", &format!("{text}[retention]\ngrace = \"0s\"\n"));
    for round in 0..4 {
        // The bytes of the last round are in no set any more, and stand there; now they are wanted again, under another name.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..6 {
                    let name = format!("build/{n}");
                    place
                        .lifeboat(&["artifact", "put", &name, "-"])
                        .input(format!("content {}", (n + round) % 7).as_bytes())
                        .run()
                        .success();
                }
            });
            scope.spawn(|| {
                for _ in 0..6 {
                    place.lifeboat(&["prune"]).run().success();
                }
            });
        });
        let verified = place.lifeboat(&["artifact", "verify", "--json"]).run().success();
        for n in 0..6 {
            let got = place.lifeboat(&["artifact", "get", &format!("build/{n}")]).run().success();
            assert_eq!(got.stdout, format!("content {}", (n + round) % 7), "{verified}");
        }
    }
}
