//! Nothing is done without asking, and what was done stands in the audit log.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use lifeboat_core::policy::Operation;
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::temp_dir;
use crate::program::{Output, Program};

/// A repository with a backup of some artifacts, its keys and a configuration.
struct Place {
    home: TempDir,
    backup: String,
}

/// What a policy says that allows nothing.
const DENY: &str = "package lifeboat\n\ndecision := {\"allow\": false, \"reasons\": [\"nobody may do anything\"]}\n";

/// What one says that allows everything, and says so.
const ALLOW: &str = "package lifeboat\n\ndecision := {\"allow\": true, \"reasons\": [\"everybody may do everything\"]}\n";

impl Place {
    fn new() -> Place {
        let mut place = Place { home: temp_dir(), backup: String::new() };
        fs::create_dir(place.path("artifacts")).unwrap();
        for name in ["code.tar", "results.xml", "build.log"] {
            fs::write(place.path("artifacts").join(name), name.repeat(100)).unwrap();
        }
        let init = Program::new(&place.home).arg("--repository").arg(place.path("repository"));
        init.args(["init", "--write-config", "lifeboat.toml", "--name", "conductor"])
            .arg("--artifacts")
            .arg(place.path("artifacts"))
            .run()
            .success();
        place.backup =
            place.lifeboat(&["backup", "--exclude-postgres", "--json"]).run().success().json()["backup"].as_str().unwrap().to_owned();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn lifeboat(&self, arguments: &[&str]) -> Program {
        Program::new(&self.home).args(["--config", "lifeboat.toml"]).args(arguments)
    }

    /// Puts members into a table of the configuration, which may be there.
    fn configure(&self, table: &str, members: &str) {
        let path = self.path("lifeboat.toml");
        let text = fs::read_to_string(&path).unwrap();
        let header = format!("[{table}]\n");
        let text = match text.contains(&header) {
            true => text.replacen(&header, &format!("{header}{members}\n"), 1),
            false => format!("{text}\n{header}{members}\n"),
        };
        fs::write(path, text).unwrap();
    }

    fn policy(&self, text: &str) {
        fs::write(self.path("policy.rego"), text).unwrap();
        if !fs::read_to_string(self.path("lifeboat.toml")).unwrap().contains("\npath = \"policy.rego\"") {
            self.configure("policy", "path = \"policy.rego\"");
        }
    }

    /// Every object of the repository but the audit log, which a denial goes into, and leases: a prune is asked about the plan that would run, which
    /// is made while nobody else writes.
    fn objects(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        collect(&self.path("repository"), &mut all);
        all.retain(|path, _| !path.starts_with(self.path("repository/audit")) && !path.starts_with(self.path("repository/leases")));
        all
    }

    fn audit(&self) -> Vec<Value> {
        let listed = self.lifeboat(&["audit", "list", "--json"]).run().success().json();
        listed["entries"].as_array().unwrap_or_else(|| panic!("{listed:#}")).clone()
    }
}

fn collect(directory: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, all);
        } else {
            let bytes = fs::read(&path).unwrap();
            all.insert(path, bytes);
        }
    }
}

/// The operation that a denial names.
#[track_caller]
fn denied(output: &Output) -> String {
    assert!(output.stderr.contains("denied by the policy") && output.stderr.contains("hint: "), "{output}");
    let line = output.stderr.lines().find(|line| line.contains("denied by the policy")).unwrap();
    line.trim_start_matches("error: ").split(':').next().unwrap().to_owned()
}

/// A command line for every operation, but for those of a drill.
fn every_operation(backup: &str) -> Vec<Vec<String>> {
    let digest = "00".repeat(32);
    let lines: [&[&str]; 41] = [
        &["--repository", "other", "init"],
        &["doctor"],
        &["list"],
        &["show", "latest"],
        &["verify", "latest"],
        &["verify", "--all"],
        &["backup"],
        &["backup", "--dry-run"],
        &["restore", "latest", "--artifacts", "restored"],
        &["restore", "latest", "--artifacts", "restored", "--dry-run"],
        &["replicate"],
        &["replicate", "--check"],
        &["expire", "--keep-last", "1"],
        &["expire", "--undo", backup],
        &["prune"],
        &["prune", "--dry-run"],
        &["pin", backup, "--name", "audit", "--reason", "auditors ask"],
        &["unpin", backup, "--name", "audit", "--reason", "seen"],
        &["artifact", "put", "new.log", "artifacts/build.log"],
        &["artifact", "get", "build.log", "--output", "got.log"],
        &["artifact", "list"],
        &["artifact", "verify"],
        &["artifact", "sync", "artifacts"],
        &["wal", "push", "pg_wal/000000010000000000000001"],
        &["wal", "receive"],
        &["wal", "status"],
        &["restore-point", "before-deploy"],
        &["key", "generate", "--out", "more-keys"],
        &["key", "list"],
        &["key", "rotate"],
        &["key", "revoke", "HINT", "--since", "2024-01-01T00:00:00Z", "--reason", "stolen"],
        &["key", "export", backup, "--to", "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p", "--output", "exported.json"],
        &["approval", "request", "prune", "--reason", "for the test"],
        &["approval", "grant", &digest, "--yes"],
        &["approval", "list"],
        &["audit", "list"],
        &["drill", "list"],
        &["drill", "show", "latest"],
        &["alert", "test"],
        &["status"],
        &["agent"],
    ];
    let mut all: Vec<Vec<String>> = lines.iter().map(|line| line.iter().map(|&word| word.to_owned()).collect()).collect();
    all.push(vec!["audit".into(), "verify".into()]);
    all.push(["audit", "resume", "--reason", "it was put back"].map(str::to_owned).to_vec());
    all
}

#[test]
fn a_policy_that_allows_nothing_stops_every_operation_before_it_begins() {
    let place = Place::new();
    place.configure("postgres", "dsn = \"host=/nowhere\"");
    let replica = format!("\n[[repository]]\nurl = \"{}\"\n", place.path("replica").display());
    let configured = fs::read_to_string(place.path("lifeboat.toml")).unwrap();
    fs::write(place.path("lifeboat.toml"), configured + &replica).unwrap();
    let hint = place.lifeboat(&["key", "list", "--json"]).run().success().json();
    let hint = hint["signers"][0]["signer"].as_str().unwrap_or_else(|| panic!("{hint:#}")).to_owned();
    place.policy(DENY);
    let (objects, there) = (place.objects(), names(&place));
    let mut stopped = BTreeSet::new();
    for line in every_operation(&place.backup) {
        let words: Vec<&str> = line.iter().map(|word| if word == "HINT" { hint.as_str() } else { word.as_str() }).collect();
        let output = place.lifeboat(&words).run().expect_code(20);
        assert!(output.stderr.contains("nobody may do anything"), "{output}");
        stopped.insert(denied(&output));
    }
    // A server stops, and does not take it for the end of the archive.
    let fetch = ["wal", "fetch", "--system-id", "7", "--segment-size", "16MiB", "000000010000000000000001", "fetched"];
    stopped.insert(denied(&place.lifeboat(&fetch).run().expect_code(200)));
    let expected: BTreeSet<String> =
        Operation::ALL.into_iter().filter(|operation| *operation != Operation::DrillRun).map(Operation::name).collect();
    assert_eq!(stopped, expected);
    assert!(place.objects() == objects, "something was written, or deleted: {:#?}", place.objects().keys());
    assert_eq!(names(&place), there);

    // That they were tried is on record.
    place.policy(ALLOW);
    let records = place.audit();
    let tried: BTreeSet<String> =
        records.iter().filter(|record| record["state"] == "denied").map(|record| text(&record["start"]["operation"])).collect();
    let silent = [Operation::WalPush, Operation::WalFetch, Operation::WalReceive].map(Operation::name);
    // The record of the repository that was not made is with that one's others, on this host.
    let expected: BTreeSet<String> = expected.into_iter().filter(|name| !silent.contains(name) && name != "init").collect();
    assert_eq!(tried, expected);
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Files and directories at the top of the user's home.
fn names(place: &Place) -> BTreeSet<String> {
    let entries = fs::read_dir(place.home.path()).unwrap().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| !name.starts_with('.')).collect()
}

#[test]
fn a_policy_that_is_missing_or_broken_is_a_no() {
    let place = Place::new();
    place.policy(ALLOW);
    place.lifeboat(&["list"]).run().success();
    for (broken, code) in [
        ("package lifeboat\n\ndecision := {\n", "broken"),
        ("package other\n\nallow := true\n", "broken"),
        ("package lifeboat\n\ndecision := {\"allow\": true} if input.operation == \"backup\"\n", "undefined"),
        ("package lifeboat\n\ndecision := true\n", "malformed"),
        ("package lifeboat\n\ndecision := {\"allow\": \"yes\"}\n", "malformed"),
        ("package lifeboat\n\ndecision := http.send({\"url\": \"http://localhost\"})\n", "broken"),
    ] {
        place.policy(broken);
        let output = place.lifeboat(&["list"]).run().expect_code(20);
        assert!(output.stderr.contains(&format!("({code})")), "{code}: {output}");
    }
    fs::remove_file(place.path("policy.rego")).unwrap();
    let output = place.lifeboat(&["restore", "latest", "--artifacts", "restored"]).run().expect_code(20);
    assert!(output.stderr.contains("(no-policy)") && output.stderr.contains("lifeboat policy test"), "{output}");
    assert!(!place.path("restored").exists());
    let nobody = "opa_url = \"http://127.0.0.1:9\"";
    let text = fs::read_to_string(place.path("lifeboat.toml")).unwrap().replace("path = \"policy.rego\"", nobody);
    fs::write(place.path("lifeboat.toml"), text).unwrap();
    let output = place.lifeboat(&["backup"]).run().expect_code(20);
    assert!(output.stderr.contains("(unreachable)") && output.stderr.contains("policy.opa_url"), "{output}");
}

#[test]
fn what_weighs_something_leaves_a_record_of_start_and_end() {
    let place = Place::new();
    place.lifeboat(&["verify", "latest"]).run().success();
    place.lifeboat(&["restore", "latest", "--artifacts", "restored"]).run().success();
    let failed = place.lifeboat(&["artifact", "get", "nothing.log", "--output", "nothing.log"]).run();
    let code = failed.code.filter(|code| *code != 0).unwrap_or_else(|| panic!("{failed}"));
    place.lifeboat(&["pin", &place.backup, "--name", "audit", "--reason", "auditors ask"]).run().success();
    place.lifeboat(&["unpin", &place.backup, "--name", "audit", "--reason", "seen"]).run().success();
    place.lifeboat(&["expire", "--keep-last", "5"]).run().success();
    place.lifeboat(&["prune"]).run().success();
    place.lifeboat(&["artifact", "get", "build.log", "--output", "got.log"]).run().success();
    let second = place.lifeboat(&["backup", "--exclude-postgres", "--json"]).run().success().json();

    let records = place.audit();
    let operations: Vec<String> = records.iter().map(|record| text(&record["start"]["operation"])).collect();
    let expected = ["init", "backup", "verify", "restore", "artifact-get", "pin", "unpin", "expire", "prune", "artifact-get", "backup"];
    assert_eq!(operations, expected, "{records:#?}");
    let codes: Vec<i64> = records.iter().map(|record| record["end"]["outcome"]["exit_code"].as_i64().unwrap_or(-1)).collect();
    assert_eq!(codes, [0, 0, 0, 0, i64::from(code), 0, 0, 0, 0, 0, 0], "{records:#?}");
    for record in &records {
        let start = &record["start"];
        assert_eq!(start["decision"]["allow"], true, "{record:#}");
        assert!(start["decision"]["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()), "{record:#}");
        assert!(start["decision"]["policy"].is_string() && start["actor"]["user"].is_string() && start["host"].is_string(), "{record:#}");
        assert!(record["end"]["time"].as_str() >= start["time"].as_str(), "{record:#}");
    }
    let restore = &records[3];
    assert_eq!(
        (text(&restore["start"]["backup"]), &restore["start"]["target"]["artifacts"]),
        (place.backup.clone(), &Value::from(place.path("restored").display().to_string()))
    );
    assert_eq!(restore["start"]["plan"].as_str().map(str::len), Some(64), "{restore:#}");
    assert!(text(&records[4]["end"]["outcome"]["message"]).contains("nothing.log"), "{:#}", records[4]);
    assert_eq!(records[10]["end"]["backup"], second["backup"]);

    // The manifest carries what the log was when the backup began, and the log holds.
    let note = second["manifest"]["audit"].to_string();
    assert!(note.contains("lifeboat.dev/audit/"), "{:#}", second["manifest"]);
    place.lifeboat(&["audit", "verify"]).run().success();
    fs::remove_file(place.path("repository/audit/leaf/5")).or_else(|_| remove_some_leaf(&place)).unwrap();
    place.lifeboat(&["audit", "verify"]).run().expect_code(21);
}

fn remove_some_leaf(place: &Place) -> std::io::Result<()> {
    let mut all = BTreeMap::new();
    collect(&place.path("repository/audit/leaf"), &mut all);
    let leaf = all.keys().nth(5).cloned().expect("there are records");
    fs::remove_file(leaf)
}
