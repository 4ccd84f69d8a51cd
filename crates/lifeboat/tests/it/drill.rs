//! Drills as a user runs them: against real servers, archives and replicas, and against backups that are damaged on purpose.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, Owner, Postgres};
use crate::orchestrator;
use crate::program::{Output, Program};
use crate::wal_recovery::Place;

/// Ends tests that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(120);

const REPLICA: &str = "[[repository]]\nurl = \"replica\"\nname = \"second\"\n";

/// A system with everything: a server that archives, artifacts that its database refers to, a place for drills.
struct System {
    place: Place,
    cluster: Cluster,
}

impl System {
    /// `more` goes into the configuration: tables that are not there yet.
    fn new(version: Postgres, more: &str) -> Self {
        let place = Place::new();
        let cluster = place.server(version);
        for name in ["artifacts", "drills"] {
            fs::create_dir(place.path(name)).unwrap();
            Owner::current().own(&place.path(name));
        }
        orchestrator::install(&cluster, 500);
        let artifacts = orchestrator::write_artifacts(&place.path("artifacts"), 12, 1);
        orchestrator::record(&cluster, &artifacts);
        let system = Self { place, cluster };
        let text = fs::read_to_string(system.place.path("lifeboat.toml")).unwrap();
        let text =
            text.replace("[[repository]]", &format!("data_directory = \"{}\"\n[[repository]]", system.cluster.data_directory().display()));
        let query = "SELECT name, sha256 FROM artifacts ORDER BY name";
        let own = format!("[artifacts]\ndirectory = \"artifacts\"\nreference_query = \"{query}\"\n{more}");
        system.place.write("lifeboat.toml", &format!("{text}{own}"));
        system
    }

    /// With a replica, made and filled.
    fn with_replica(version: Postgres, more: &str) -> Self {
        let system = Self::new(version, more);
        let path = system.place.path("lifeboat.toml");
        let text = fs::read_to_string(&path).unwrap().replacen("[signing]", &format!("{REPLICA}[signing]"), 1);
        system.place.write("lifeboat.toml", &text);
        system.place.lifeboat(&["replicate"]).run().success();
        system
    }

    fn backup(&self) -> String {
        self.place.lifeboat(&["backup", "--json"]).run().success().json()["backup"].as_str().expect("a backup id").to_owned()
    }

    /// Some commits behind the backup, archived.
    fn go_on(&self) {
        for _ in 0..3 {
            Place::beat(&self.cluster, self.next());
            self.place.archive(&self.cluster);
        }
    }

    fn next(&self) -> u32 {
        self.cluster.psql("SELECT coalesce(max(n), 0) + 1 FROM moment").parse().unwrap()
    }

    fn drill(&self, words: &[&str]) -> Program {
        let mut all = vec!["drill", "run", "--json"];
        all.extend(words);
        self.place.lifeboat(&all)
    }

    /// Nothing of a drill is left in its directory.
    fn assert_clean(&self) {
        let left = below(&self.place.path("drills"));
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Everything below a directory, directories too.
fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| [vec![path.clone()], if path.is_dir() { below(&path) } else { Vec::new() }].concat()).collect()
}

/// Result of each check, by name.
fn outcomes<'r>(report: &'r Value, list: &str, name: &str) -> BTreeMap<&'r str, &'r str> {
    let all = report[list].as_array().expect("a list").iter();
    all.map(|one| (one[name].as_str().expect("a name"), one["outcome"].as_str().expect("an outcome"))).collect()
}

fn checks(report: &Value) -> BTreeMap<&str, &str> {
    outcomes(report, "checks", "check")
}

fn reason<'r>(report: &'r Value, check: &str) -> &'r str {
    let found = report["checks"].as_array().unwrap().iter().find(|one| one["check"] == check);
    found.unwrap_or_else(|| panic!("no check {check}"))["reason"].as_str().unwrap()
}

/// Every file below a directory, with its bytes.
fn tree(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![directory.to_owned()];
    while let Some(next) = ahead.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                ahead.push(path);
            } else {
                found.insert(path.strip_prefix(directory).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The report of a drill in which everything was checked and is good. Whoever is not root cannot have a user of their own, and that is said.
#[track_caller]
fn good(output: Output) -> Value {
    let document = output.json();
    let report = &document["report"];
    let reasons = report["reasons"].as_array().expect("a list");
    let others: Vec<_> = reasons
        .iter()
        .filter(|reason| {
            let reason = reason.as_str().unwrap();
            !["(user)", "(files)"].iter().any(|what| reason.starts_with(&format!("The drill was not kept apart {what}")))
        })
        .collect();
    let failed: Vec<_> = ["checks", "controls", "scenarios"].iter().flat_map(|list| report[list].as_array().unwrap()).collect();
    assert!(others.is_empty() && matches!(output.code, Some(0 | 3)), "{others:#?}\n{failed:#?}\n{}", output.stderr);
    document
}

const ASSERTIONS: &str = "[drill]\ndirectory = \"drills\"\nscenarios = [\"host-lost\"]\n\
    smoke = [\"sh\", \"-ec\", \"test $(psql -XAtc 'SELECT count(*) FROM builds') -ge 500; tar -cf - \\\"$LIFEBOAT_DRILL_ARTIFACTS\\\" >/dev/null\"]\n\
    [[drill.assert]]\nname = \"builds are there\"\nquery = \"SELECT count(*) FROM builds\"\nat_least = 500\n\
    [[drill.assert]]\nname = \"no run without a build\"\nquery = \"SELECT 1 FROM runs LEFT JOIN builds ON builds.id = build_id WHERE builds.id IS NULL\"\nrows = 0\n";

#[test]
fn a_drill_checks_everything_breaks_everything_and_plays_every_scenario() {
    let system = System::with_replica(Postgres::V15, ASSERTIONS);
    let backup = system.backup();
    system.go_on();
    let before = (tree(&system.place.path("repository")), tree(&system.place.path("artifacts")));
    let last = system.next() - 1;

    let document = good(system.drill(&["--scenario", "all"]).run());
    let report = &document["report"];
    assert_eq!(report["backup"]["id"].as_str(), Some(backup.as_str()));
    for (check, outcome) in checks(report) {
        assert_eq!(outcome, "passed", "{check}: {}", reason(report, check));
    }
    assert_eq!(checks(report).len(), 18);
    for (control, outcome) in outcomes(report, "controls", "control") {
        assert_eq!(outcome, "failed", "{control} must turn its check red: {report:#}");
    }
    assert_eq!(outcomes(report, "controls", "control").len(), 5);
    let scenarios = outcomes(report, "scenarios", "scenario");
    assert_eq!(scenarios.len(), 9);
    for (scenario, outcome) in scenarios {
        assert_eq!(outcome, "passed", "{scenario}: {report:#}");
    }
    // The numbers fit each other.
    let rto = &report["rto"];
    let (first, verified) = (rto["first_query_seconds"].as_f64().unwrap(), rto["verified_seconds"].as_f64().unwrap());
    assert!(0.0 < first && first < verified && rto["met"] == true, "{rto:#}");
    let before_it: f64 =
        rto["phases"].as_array().unwrap().iter().filter(|p| p["before_first_query"] == true).map(|p| p["seconds"].as_f64().unwrap()).sum();
    assert!((before_it - first).abs() < 0.5 + 0.2 * first, "the phases add up to {before_it}, the whole is {first}");
    assert_eq!(report["rpo"]["source"], "commit");
    assert!(report["recovery"]["reached"].as_str() >= report["recovery"]["promised"].as_str());
    // Every commit that was archived was there: the user's own table says so to another restore.
    assert!(last >= 3);
    // What was asked of the isolation, and that nothing was written but evidence.
    for isolation in report["environment"]["isolation"].as_array().unwrap() {
        let allowed = ["network", "user", "files"].contains(&isolation["what"].as_str().unwrap());
        assert!(isolation["holds"] == true || allowed, "{isolation:#}");
    }
    let after = tree(&system.place.path("repository"));
    let evidence = |path: &&PathBuf| path.starts_with("drills") || path.starts_with("audit");
    assert_eq!(
        after.keys().filter(|path| !evidence(path)).collect::<Vec<_>>(),
        before.0.keys().filter(|path| !evidence(path)).collect::<Vec<_>>()
    );
    assert!(before.0.iter().filter(|(path, _)| !evidence(path)).all(|(path, bytes)| after[path] == *bytes));
    assert_eq!(tree(&system.place.path("artifacts")), before.1);
    assert_eq!(system.next() - 1, last, "the original goes on as it was");
    system.assert_clean();

    // The next one is chained to it.
    let stored = document["stored"]["report"].as_str().unwrap().to_owned();
    let second = good(system.drill(&[]).run());
    assert_eq!((second["report"]["number"].as_u64(), second["report"]["previous"].as_str()), (Some(2), Some(stored.as_str())));
    assert_eq!(outcomes(&second["report"], "scenarios", "scenario").into_iter().collect::<Vec<_>>(), [("host-lost", "passed")]);
}

#[test]
fn damage_fails_the_drill_with_its_name_and_the_report_is_kept() {
    let system = System::new(Postgres::V15, ASSERTIONS);
    system.backup();
    let packs = system.place.path("repository/packs");
    let (victim, bytes) = tree(&packs).into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    replace(&packs.join(&victim), &damaged);
    let output = system.drill(&[]).run().expect_code(21);
    let report = output.json()["report"].clone();
    assert_eq!(report["verdict"], "failed");
    assert_eq!(checks(&report)["extents"], "failed");
    assert!(reason(&report, "extents").contains(&*victim.file_name().unwrap().to_string_lossy()), "{report:#}");
    assert_eq!(report["rto"]["met"], false);
    assert!(report["rto"].get("first_query_seconds").is_none());
    assert_eq!(checks(&report)["teardown"], "passed");
    assert!(report.get("next_due").is_none(), "a drill that failed puts nothing off");
    assert!(system.place.path("repository").join("drills").join(report["id"].as_str().unwrap()).join("report.sigstore.json").exists());
    system.assert_clean();

    // An artifact: the database comes back, and the drill fails all the same.
    replace(&packs.join(&victim), &bytes);
    let blobs = system.place.path("repository/artifacts/blobs");
    let (blob, mut bytes) = tree(&blobs).into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    replace(&blobs.join(&blob), &bytes);
    let report = system.drill(&[]).run().expect_code(21).json()["report"].clone();
    assert_eq!((checks(&report)["extents"], checks(&report)["start"], checks(&report)["artifacts"]), ("passed", "passed", "failed"));
    system.assert_clean();
}

/// Objects are closed to writing.
fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    Owner::current().own(path);
}

#[test]
fn a_backup_that_is_not_signed_or_does_not_open_fails_its_drill_on_record() {
    let system = System::new(Postgres::V15, ASSERTIONS);
    let id = system.backup();
    let latest = |check: &str| {
        let shown = system.place.lifeboat(&["drill", "show", "latest", "--json"]).run().success().json();
        assert_eq!(shown["report"]["verdict"], "failed");
        assert_eq!(checks(&shown["report"])[check], "failed", "{:#}", shown["report"]);
        shown["report"]["number"].as_u64().unwrap()
    };
    let stranger = system.place.path("stranger");
    system.place.lifeboat(&["key", "generate", "--out"]).arg(&stranger).run().success();
    system.drill(&["--identity"]).arg(stranger.join("identity.txt")).run().expect_code(12);
    assert_eq!(latest("extents"), 1);
    let bundle = system.place.path("repository").join(&id).join("manifest.sigstore.json");
    let text = fs::read_to_string(&bundle).unwrap();
    let at = text.find("\"sig\"").expect("a signature") + 20;
    let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
    replace(&bundle, format!("{}{other}{}", &text[..at], &text[at + 1..]).as_bytes());
    system.drill(&[]).run().expect_code(21);
    assert_eq!(latest("signature"), 2);
    system.assert_clean();
}

#[test]
fn a_hole_in_the_archive_is_no_shorter_history() {
    let system = System::new(Postgres::V15, ASSERTIONS);
    system.backup();
    system.go_on();
    let name = system.cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    system.go_on();
    let wal = system.place.path("repository/wal");
    let (hole, _) = tree(&wal).into_iter().find(|(path, _)| path.file_name().unwrap().to_string_lossy() == name).expect("the segment");
    fs::remove_file(wal.join(hole)).unwrap();
    // It is refused before anything is written, with what can be reached; and that it failed is on record, signed.
    let output = system.drill(&[]).run().expect_code(22);
    assert!(output.stderr.contains("can be reached"), "{}", output.stderr);
    system.assert_clean();
    let shown = system.place.lifeboat(&["drill", "show", "latest", "--json"]).run().success().json();
    let report = &shown["report"];
    assert_eq!((report["verdict"].as_str(), checks(report)["signature"], checks(report)["recovery"]), (Some("failed"), "passed", "failed"));
    assert!(report.get("next_due").is_none());
}

#[test]
fn a_drill_that_is_too_slow_or_loses_too_much_says_so() {
    let more = "[objectives]\nrto = \"1ms\"\nrpo = \"1ms\"\n[drill]\ndirectory = \"drills\"\n";
    let system = System::new(Postgres::V15, more);
    system.backup();
    let output = system.drill(&[]).run().expect_code(23);
    let report = output.json()["report"].clone();
    assert_eq!(
        (report["verdict"].as_str(), &report["rto"]["met"], &report["rpo"]["met"]),
        (Some("objective-missed"), &false.into(), &false.into())
    );
    assert!(report["reasons"].as_array().unwrap().len() >= 2, "{report:#}");
}

#[test]
fn a_drill_goes_nowhere_near_production() {
    let system = System::new(Postgres::V15, "[drill]\ndirectory = \"drills\"\n");
    system.backup();
    let link = system.place.path("innocent");
    std::os::unix::fs::symlink(system.cluster.data_directory(), &link).unwrap();
    let data = system.cluster.data_directory().display().to_string();
    for directory in [data.as_str(), "artifacts", "repository", "repository/packs", "innocent", ".", "/"] {
        let before = tree(&system.place.path("repository"));
        let output = system.drill(&["--directory", directory]).run().expect_code(2);
        assert!(output.stderr.contains("drill in"), "{}", output.stderr);
        let after = tree(&system.place.path("repository"));
        let new: Vec<_> =
            after.keys().filter(|path| !before.contains_key(*path) && !path.starts_with("audit") && !path.starts_with("wal")).collect();
        assert!(new.is_empty(), "{directory}: {new:?}");
    }
    // A dry run changes nothing and says what would happen.
    let plan = system.drill(&["--dry-run", "--scenario", "all"]).run().success().json();
    assert!(plan["plan"]["steps"].as_array().unwrap().len() > 10 && plan["digest"].is_string());
    system.assert_clean();
    assert!(!system.place.path("repository/drills").exists());
}

#[test]
fn every_way_of_copying_and_every_version_can_be_drilled() {
    for (version, copy) in [(Postgres::V16, "stream"), (Postgres::V18, "local"), (Postgres::V15, "logical")] {
        let system = System::new(version, ASSERTIONS);
        system.place.lifeboat(&["backup", "--copy", copy]).run().success();
        if copy != "logical" {
            system.go_on();
        }
        let output = system.drill(&[]).run();
        let report = output.json()["report"].clone();
        assert!(
            matches!(report["verdict"].as_str(), Some("passed" | "passed-with-gaps")),
            "{version} {copy}: {report:#}\n{}",
            output.stderr
        );
        assert!(matches!(output.code, Some(0 | 3)));
        for check in ["signature", "extents", "artifacts", "start", "assertions", "references", "smoke", "write-probe", "teardown", "log"] {
            assert_eq!(checks(&report)[check], "passed", "{version} {copy}: {check}: {}", reason(&report, check));
        }
        let truth = if copy == "logical" { "not-checked" } else { "passed" };
        assert_eq!(checks(&report)["truth"], truth, "{version} {copy}: {}", reason(&report, "truth"));
        system.assert_clean();
    }
}

#[test]
fn a_drill_to_a_moment_of_the_past_comes_to_it_and_no_further() {
    let system = System::new(Postgres::V15, ASSERTIONS);
    system.backup();
    let n = system.next();
    let lsn = Place::beat(&system.cluster, n);
    system.go_on();
    let assertion = format!("[[drill.assert]]\nname = \"no later row\"\nquery = \"SELECT max(n) FROM moment\"\nexpect = {n}\n");
    let path = system.place.path("lifeboat.toml");
    let text = fs::read_to_string(&path).unwrap();
    system.place.write("lifeboat.toml", &format!("{text}{assertion}"));
    let report = good(system.drill(&["--target-lsn", &lsn]).run())["report"].clone();
    assert_eq!((checks(&report)["recovery"], checks(&report)["assertions"]), ("passed", "passed"), "{report:#}");
    let refused = system.drill(&["--target-lsn", "FFFF/0"]).run().expect_code(22);
    assert!(refused.stderr.contains("can be reached"), "{}", refused.stderr);
    system.assert_clean();
}

/// Nothing stands behind the last record of a segment that was closed early: no moment to go back to, and nothing that is wrong.
#[test]
fn right_after_a_backup_there_is_a_moment_before_the_accident_or_none() {
    let system = System::new(Postgres::V15, ASSERTIONS);
    system.backup();
    let outcome = |report: &Value| outcomes(report, "scenarios", "scenario")["yesterdays-accident"].to_owned();
    let words = ["--scenario", "yesterdays-accident", "--scenario", "last-wal-damaged"];
    let output = system.drill(&words).run();
    let first = output.json();
    assert_eq!(checks(&first["report"])["truth"], "passed", "the backup has the WAL up to its moment itself: {first:#}");
    // Who asked for it by name is told that there is none, as a gap; and of nothing else.
    if outcome(&first["report"]) == "passed" {
        good(output);
    } else {
        let reasons = first["report"]["reasons"].as_array().unwrap().iter().map(|reason| reason.as_str().unwrap());
        let others: Vec<&str> = reasons.filter(|reason| !reason.starts_with("The drill was not kept apart (")).collect();
        let none = "The scenario yesterdays-accident was not played to its end: the archive has no record behind the backup yet";
        assert!(others == [none] && output.code == Some(3) && outcome(&first["report"]) == "not-checked", "{first:#}");
    }
    Place::beat(&system.cluster, system.next());
    system.place.archive(&system.cluster);
    let second = good(system.drill(&words).run());
    assert_eq!(outcome(&second["report"]), "passed", "{second:#}");
    system.assert_clean();
}

#[test]
fn artifacts_alone_can_be_drilled() {
    let system = System::new(Postgres::V15, "[drill]\ndirectory = \"drills\"\nscenarios = [\"host-lost\", \"artifact-tampered\"]\n");
    let text = fs::read_to_string(system.place.path("lifeboat.toml")).unwrap();
    let (start, rest) = text.split_once("[postgres]").unwrap();
    let (_, end) = rest.split_once("[[repository]]").unwrap();
    let end = end.lines().filter(|line| !line.starts_with("reference_query")).collect::<Vec<_>>().join("\n");
    system.place.write("lifeboat.toml", &format!("{start}[[repository]]{end}\n"));
    system.place.lifeboat(&["backup"]).run().success();
    let report = good(system.drill(&[]).run())["report"].clone();
    assert_eq!((checks(&report)["artifacts"], checks(&report)["start"]), ("passed", "not-applicable"));
    assert!(report["rto"]["verified_seconds"].as_f64().unwrap() > 0.0);
    system.assert_clean();
}

#[test]
fn a_drill_that_is_interrupted_leaves_nothing_and_one_that_is_killed_is_cleared_away() {
    use rustix::process::{Pid, Signal, kill_process};
    let system = System::new(Postgres::V15, "[drill]\ndirectory = \"drills\"\nsmoke = [\"sleep\", \"600\"]\n");
    system.backup();
    let in_smoke = |system: &System| {
        let begun = Instant::now();
        let place = loop {
            let found = fs::read_dir(system.place.path("drills")).unwrap().flatten().next().map(|entry| entry.path());
            if let Some(place) = found.filter(|place| place.join("pgdata/postmaster.pid").exists()) {
                break place;
            }
            assert!(begun.elapsed() < DEADLINE, "no server is started");
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = fs::read_to_string(place.join("pgdata/postmaster.pid")).unwrap_or_default();
        text.lines().next().and_then(|line| line.trim().parse::<i32>().ok())
    };
    let mut child = system.drill(&[]).spawn();
    in_smoke(&system);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    system.assert_clean();

    let mut child = system.drill(&[]).spawn();
    in_smoke(&system);
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    assert!(fs::read_dir(system.place.path("drills")).unwrap().next().is_some());
    let path = system.place.path("lifeboat.toml");
    let text = fs::read_to_string(&path).unwrap().replace("smoke = [\"sleep\", \"600\"]", "");
    system.place.write("lifeboat.toml", &text);
    let output = system.drill(&[]).run();
    assert!(matches!(output.code, Some(0 | 3)), "{}", output.stderr);
    assert!(output.stderr.contains("when it was killed"), "{}", output.stderr);
    system.assert_clean();
}

#[test]
fn as_root_a_drill_has_a_user_and_a_network_of_its_own() {
    if !rustix::process::geteuid().is_root() {
        // Nobody else can be given either; the tests as they are run are root's.
        return;
    }
    let system = System::new(Postgres::V15, ASSERTIONS);
    system.backup();
    system.go_on();
    let root = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = system.place.path("lifeboat.toml");
    let drills = root.path().join("drills");
    fs::create_dir(&drills).unwrap();
    let run = |words: &[&str]| -> Output {
        let program = Program::new(&system.place.home).env("XDG_STATE_HOME", root.path()).arg("--config").arg(&config);
        program.args(["drill", "run", "--json", "--directory"]).arg(&drills).args(words).run()
    };
    let output = run(&[]).success();
    let report = output.json()["report"].clone();
    for isolation in report["environment"]["isolation"].as_array().unwrap() {
        assert_eq!(isolation["holds"], true, "{isolation:#}");
    }
    for (check, outcome) in checks(&report) {
        assert_eq!(outcome, "passed", "{check}: {}", reason(&report, check));
    }
    assert!(fs::read_dir(&drills).unwrap().next().is_none());
}
