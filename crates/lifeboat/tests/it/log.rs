//! Every line on stderr as a program reads it: one JSON object, with the id of the operation, whatever happens.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::backup::Site;
use crate::cluster::{Owner, Postgres, expect_success, temp_dir};
use crate::program::{Output, Program};
use crate::wal_recovery::Place;

/// Ends tests that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(120);

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// The lines of a log, each of them an object as docs/logs.md has it, all with one id, which is returned as well.
#[track_caller]
fn objects(log: &str) -> (String, Vec<Value>) {
    let mut ids: Vec<String> = Vec::new();
    let mut lines = Vec::new();
    for line in log.lines() {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?} in\n{log}"));
        let text = |key: &str| object[key].as_str().unwrap_or_else(|| panic!("no {key} in {line}")).to_owned();
        assert!(text("time").parse::<Timestamp>().is_ok() && text("time").ends_with('Z'), "{line}");
        assert!(["info", "warning", "error"].contains(&text("level").as_str()) && !text("message").is_empty(), "{line}");
        let id = text("operation");
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)), "{line}");
        ids.push(id);
        lines.push(object);
    }
    ids.dedup();
    assert!(ids.len() == 1, "{} ids in\n{log}", ids.len());
    (ids.remove(0), lines)
}

/// The same of what a run said.
#[track_caller]
fn said(output: &Output) -> (String, Vec<Value>) {
    objects(&output.stderr)
}

fn json(program: Program) -> Program {
    program.args(["--log-format", "json"])
}

#[test]
fn a_backup_says_one_object_a_line() {
    let home = temp_dir();
    let artifacts = home.path().join("artifacts");
    fs::create_dir(&artifacts).unwrap();
    fs::write(artifacts.join("one"), vec![7; 100_000]).unwrap();
    let repository = home.path().join("repository");
    let lifeboat = || Program::new(&home).env("LIFEBOAT_ARTIFACTS", &artifacts);
    // The first of all, which also makes keys and has to say so.
    let output = json(lifeboat()).args(["backup", "--json", "--output"]).arg(&repository).run().success();
    let (id, lines) = said(&output);
    assert!(lines.iter().all(|line| line["command"] == "backup"), "{output}");
    let warned = lines.iter().filter(|line| line["level"] == "warning").count();
    assert!(warned >= 1 && lines.iter().any(|line| line["message"].as_str().unwrap().contains("made a signing key")), "{output}");
    let phases: Vec<&Value> = lines.iter().filter(|line| line.get("phase").is_some()).collect();
    assert!(!phases.is_empty(), "{output}");
    for phase in &phases {
        assert!(phase["seconds"].is_f64() && phase["files"].is_u64() && phase["bytes"].is_u64(), "{output}");
        assert!(phase["message"].as_str().unwrap().starts_with(phase["phase"].as_str().unwrap()), "{output}");
    }
    assert!(phases.iter().any(|phase| phase["bytes"].as_u64() >= Some(100_000)), "{output}");
    // Data is another thing: one document, without ids.
    assert!(output.json()["backup"].is_string() && output.json().get("operation").is_none(), "{output}");

    // What is on record of it is found by the same id.
    let audit = lifeboat().arg("--repository").arg(&repository).args(["audit", "list", "--json"]).run().success();
    let text = audit.stdout.clone();
    assert_eq!(text.matches(&format!("\"trace\": \"{id}\"")).count(), 2, "start and end\n{audit}");

    // Another run is another operation; people see what they always saw.
    let second = json(lifeboat()).args(["backup", "--output"]).arg(&repository).run().success();
    assert_ne!(said(&second).0, id);
    let third = lifeboat().args(["backup", "--output"]).arg(&repository).run().success();
    assert!(!third.stderr.contains('{') && third.stderr.contains("done in"), "{third}");
}

#[test]
fn whatever_fails_says_so_in_objects() {
    let site = Site::new();
    let file = site.configuration("[limits]\nworkers = 0\n");
    let file = file.to_str().unwrap();
    let cases: [(&[&str], i32, &str, Option<&str>); 8] = [
        (&["backup", "--no-such-flag"], 2, "--no-such-flag", None),
        (&["--no-such-flag"], 2, "--no-such-flag", None),
        (&[], 2, "subcommand", None),
        (&["key"], 2, "subcommand", None),
        (&["--config", file, "list"], 2, "limits.workers", Some("list")),
        (&["list"], 10, "no such directory", Some("list")),
        (&["restore", "latest", "--artifacts", "x"], 10, "no such directory", Some("restore")),
        (&["wal", "fetch", "000000010000000000000001", "x"], 200, "data directory", Some("wal fetch")),
    ];
    for (arguments, code, word, command) in cases {
        for by_environment in [false, true] {
            let program = site.program();
            let program = if by_environment { program.env("LIFEBOAT_LOG_FORMAT", "json") } else { json(program) };
            let output = program.args(arguments).arg("--json").run().expect_code(code);
            let (id, lines) = said(&output);
            let last = lines.last().unwrap();
            assert!(last["level"] == "error" && last["exit_code"] == code && last["hint"].is_string(), "{output}");
            assert!(last["message"].as_str().unwrap().contains(word), "{word}\n{output}");
            assert_eq!(last.get("command").and_then(Value::as_str), command, "{output}");
            let error = &output.json()["error"];
            assert_eq!((&error["message"], &error["hint"]), (&last["message"], &last["hint"]), "{output}");
            assert_eq!(error["operation"], *id, "{output}");
        }
    }
    // People get help; there is no line in it for programs.
    let nothing = || Program::new(&site.home);
    assert!(nothing().run().expect_code(2).stderr.contains("Usage: lifeboat"));
    let output = nothing().env("LIFEBOAT_LOG_FORMAT", "json").run().expect_code(2);
    assert!(said(&output).1[0]["hint"].as_str().unwrap().contains("--help"), "{output}");
}

#[test]
fn findings_have_a_level_a_word_and_what_to_do() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).config("full_page_writes", "off").start();
    let artifacts = site.place("artifacts");
    fs::create_dir(&artifacts).unwrap();
    fs::write(artifacts.join("one"), vec![7; 100_000]).unwrap();
    site.program().arg("init").run().success();
    let doctor = || site.program().env("LIFEBOAT_DSN", cluster.dsn()).arg("doctor");
    let output = json(doctor()).run().expect_code(3);
    let (_, lines) = said(&output);
    let danger: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "danger").collect();
    let found = |word: &str| danger.iter().any(|line| line["message"].as_str().unwrap().contains(word));
    assert!(found("full_page_writes") && danger.iter().all(|line| line["level"] == "error" && line["hint"].is_string()), "{output}");
    assert!(lines.iter().any(|line| line["level"] == "warning" && line.get("kind").is_none()), "{output}");
    // The same for people, in the same order.
    let text = doctor().run().expect_code(3);
    let told: Vec<&str> = text.stderr.lines().filter(|line| !line.starts_with("fix: ")).collect();
    assert_eq!(told.len(), lines.len(), "{text}\n{output}");
    for (told, line) in told.iter().zip(&lines) {
        assert!(told.ends_with(line["message"].as_str().unwrap()), "{told}\n{line}");
    }

    site.program().env("LIFEBOAT_ARTIFACTS", &artifacts).arg("backup").run().success();
    let mut blobs = Vec::new();
    crate::failure::walk(&site.repository().join("artifacts/blobs"), &mut |path, meta| {
        if meta.is_file() {
            blobs.push(path.to_owned());
        }
    });
    fs::remove_file(&blobs[0]).unwrap();
    let output = json(site.program()).args(["verify", "latest"]).run().expect_code(21);
    let (_, lines) = said(&output);
    let findings: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "finding").collect();
    assert!(!findings.is_empty() && findings.iter().all(|line| line["level"] == "error"), "{output}");
    assert!(findings.iter().any(|line| line["message"].as_str().unwrap().starts_with("missing")), "{output}");
}

#[test]
fn the_form_is_chosen_by_flag_then_environment_then_file() {
    let site = Site::new();
    let file = site.configuration("[log]\nformat = 'json'\n");
    let show = || Program::new(&site.home).arg("--config").arg(&file).args(["config", "show", "--json"]);
    let setting = |output: &Output| {
        let document = output.json();
        let rows = document["settings"].as_array().unwrap_or_else(|| panic!("no settings\n{output}"));
        rows.iter().find(|row| row["setting"] == "log.format").unwrap_or_else(|| panic!("not there\n{output}")).to_string()
    };
    let of_file = setting(&show().run().success());
    assert!(of_file.contains("json") && of_file.contains("lifeboat-test.toml"), "{of_file}");
    let of_environment = setting(&show().env("LIFEBOAT_LOG_FORMAT", "text").run().success());
    assert!(of_environment.contains("text") && of_environment.contains("environment LIFEBOAT_LOG_FORMAT"), "{of_environment}");
    let of_flag = setting(&show().env("LIFEBOAT_LOG_FORMAT", "text").args(["--log-format", "json"]).run().success());
    assert!(of_flag.contains("json") && of_flag.contains("flag --log-format"), "{of_flag}");
    // It is not only shown.
    let list = || site.program().arg("--config").arg(&file).arg("list");
    said(&list().run().expect_code(10));
    let text = list().env("LIFEBOAT_LOG_FORMAT", "text").run().expect_code(10);
    crate::failure::one_error(&text, 10);
    for program in [site.program().env("LIFEBOAT_LOG_FORMAT", "yaml").arg("list"), site.program().args(["--log-format", "yaml", "list"])] {
        let error = crate::failure::one_error(&program.run(), 2);
        assert!(error.contains("LIFEBOAT_LOG_FORMAT") || error.contains("yaml"), "{error}");
    }
    // Not even this is the end of the archive.
    let fetch = site.program().env("LIFEBOAT_LOG_FORMAT", "yaml").args(["wal", "fetch", "000000010000000000000001", "x"]);
    crate::failure::one_error(&fetch.run(), 200);
}

#[test]
fn an_operation_is_a_part_of_what_started_it() {
    let site = Site::new();
    let failed = |context: &str| said(&json(site.program()).env("TRACEPARENT", context).arg("list").run().expect_code(10)).0;
    assert_eq!(failed(TRACEPARENT), TRACE);
    for nothing in ["", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "nonsense", &TRACEPARENT.to_uppercase()] {
        assert_ne!(failed(nothing), TRACE, "{nothing}");
    }
}

#[test]
fn what_fetches_ahead_is_a_part_of_the_fetch() {
    let place = Place::new();
    let cluster = place.server(Postgres::V15);
    let first = cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    for n in 0..4 {
        Place::beat(&cluster, n);
        cluster.psql("SELECT pg_switch_wal()");
    }
    let begun = Instant::now();
    while cluster.psql("SELECT count(*) FROM pg_stat_archiver WHERE archived_count >= 4") != "1" {
        assert!(begun.elapsed() < DEADLINE, "nothing is archived");
        std::thread::sleep(Duration::from_millis(50));
    }
    let system_id = cluster.psql("SELECT system_identifier FROM pg_control_system()");
    let target = place.path("fetched");
    let fetch = json(place.lifeboat(&["wal", "fetch", &first])).arg(&target).args(["--system-id", &system_id, "--segment-size", "1MiB"]);
    let output = fetch.env("TRACEPARENT", TRACEPARENT).run().success();
    assert!(output.stderr.is_empty() && target.is_file(), "{output}");
    let mut logs = Vec::new();
    let text = loop {
        logs.clear();
        crate::failure::walk(&place.path("spool"), &mut |path, _| {
            if path.file_name().is_some_and(|name| name == "prefetch.log") {
                logs.push(path.to_owned());
            }
        });
        let text = logs.first().map(|log| fs::read_to_string(log).unwrap()).unwrap_or_default();
        if text.ends_with('\n') {
            break text;
        }
        assert!(begun.elapsed() < DEADLINE, "nothing is fetched ahead");
        std::thread::sleep(Duration::from_millis(50));
    };
    let (id, lines) = objects(&text);
    assert_eq!(id, TRACE);
    assert!(lines.iter().all(|line| line["command"] == "wal prefetch"), "{text}");
    assert!(lines.iter().any(|line| line["message"].as_str().unwrap().starts_with("fetched ")), "{text}");
}

#[test]
fn secrets_stay_where_they_are_and_programs_speak_in_objects_too() {
    let site = Site::new();
    let keys = site.place(".config/lifeboat");
    let password = fs::read_to_string(keys.join("signing.password")).unwrap();
    let artifacts = site.place("artifacts");
    fs::create_dir(&artifacts).unwrap();
    fs::write(artifacts.join("one"), "1").unwrap();
    site.program().arg("init").run().success();
    let with = |script: &str| {
        let command = serde_json::to_string(&["sh", "-c", script]).unwrap();
        let file = site.configuration(&format!(
            "[signing]\nkey_file = \"{}\"\npassword = {{ command = {command} }}\n[artifacts]\ndirectory = \"{}\"\n",
            keys.join("signing.key").display(),
            artifacts.display()
        ));
        json(site.program()).arg("--config").arg(file).arg("backup").run()
    };
    let output = with("printf 'touch the token\\nnow\\n' >&2; cat .config/lifeboat/signing.password").success();
    let (_, lines) = said(&output);
    assert!(!output.stderr.contains(password.trim()) && !output.stdout.contains(password.trim()), "{output}");
    let words: Vec<&str> = lines.iter().filter_map(|line| line["message"].as_str()?.strip_prefix("sh: ")).collect();
    assert_eq!(words, ["touch the token", "now"], "{output}");
    // One that is wrong, and one that is not there.
    for script in ["echo hunter2hunter2", "echo hunter2hunter2; exit 3"] {
        let output = with(script).expect_code(12);
        said(&output);
        assert!(!output.stderr.contains("hunter2"), "{output}");
    }
}

/// A password that is asked for and does not come, until somebody writes into the pipe: lifeboat is at work then, and stays so.
pub(crate) struct Waiting {
    pipe: PathBuf,
}

impl Waiting {
    /// For this site; the second is what stands in the configuration.
    pub(crate) fn at(site: &Site) -> (Self, String) {
        let pipe = site.place("pipe");
        expect_success(std::process::Command::new("mkfifo").arg(&pipe));
        let key = site.place(".config/lifeboat/signing.key");
        let table = format!("[signing]\nkey_file = \"{}\"\npassword = {{ command = [\"cat\", \"{}\"] }}\n", key.display(), pipe.display());
        (Self { pipe }, table)
    }

    /// Ends the program by a signal as soon as it waits, and returns its exit code.
    #[track_caller]
    pub(crate) fn interrupt(&self, program: Program) -> Option<i32> {
        let mut child = program.spawn();
        // Opened once somebody reads.
        let writer = fs::File::options().write(true).open(&self.pipe).unwrap();
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let code = child.wait().unwrap().code();
        drop(writer);
        code
    }
}

#[test]
fn an_end_by_a_signal_is_an_object() {
    let site = Site::new();
    site.program().arg("init").run().success();
    fs::create_dir(site.place("artifacts")).unwrap();
    let (waiting, table) = Waiting::at(&site);
    let file = site.configuration(&format!("{table}[log]\nformat = \"json\"\n"));
    let program = site.program().env("LIFEBOAT_ARTIFACTS", site.place("artifacts")).arg("--config").arg(file).arg("backup");
    assert_eq!(waiting.interrupt(program), Some(130));
    let text = fs::read_to_string(site.place("stderr")).unwrap();
    let (_, lines) = objects(&text);
    let last = lines.last().unwrap();
    assert!(last["message"].as_str().unwrap().starts_with("interrupted") && last["level"] == "warning", "{text}");
}

#[test]
fn a_demo_is_one_operation() {
    let home = temp_dir();
    Owner::current().own(home.path());
    let demo = json(Program::new(&home)).args(["demo", "--scale", "1", "--artifacts", "20", "--bin-directory"]);
    let output = demo.arg(Postgres::V15.bin_directory()).run().success();
    let (_, lines) = said(&output);
    let of = |command: &str| lines.iter().any(|line| line["command"] == command);
    assert!(of("demo") && of("backup") && of("restore"), "{output}");
}
