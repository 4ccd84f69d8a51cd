//! `docs/runbook.md` as who is woken at night follows it: every command of it, as it is printed, on the machine that the section is about.
//!
//! The machines are made by `scenes/host.sh`, a working day, and then by the script of what went wrong.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::document::{Machine, Scene, is_command, mentions, scenes};
use crate::moto::{python, script};
use crate::seaweed::{ACCESS_KEY, BUCKET, SECRET_KEY, Seaweed, make_bucket};

/// Read when a test runs: a page may be written without building anything.
fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn page_text() -> String {
    read("docs/runbook.md")
}

/// What makes a machine what it was before something happened, and then that.
fn scene(name: &str) -> String {
    let accident = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/scenes").join(format!("{name}.sh"));
    format!("{}\n{}", read("crates/lifeboat/tests/it/scenes/host.sh"), fs::read_to_string(accident).unwrap_or_default())
}

/// The machines that sections of the page begin with. Nothing happened where there is no script of that name.
const SCENES: [&str; 8] =
    ["host-lost", "production", "table-dropped", "store-lost", "attacked", "key-stolen", "identity-lost", "working-day"];

fn page() -> Vec<Scene> {
    scenes(&page_text()).unwrap_or_else(|error| panic!("docs/runbook.md: {error}"))
}

/// Runs all sections of the page that begin with this machine, each on one of its own.
fn run(name: &str) {
    // Only there does the policy ask for approvals.
    let environment = if name == "production" { "production" } else { "staging" };
    for part in page().iter().filter(|part| part.name == name) {
        let mut machine = Machine::start(&[("ENVIRONMENT".into(), environment.into())]);
        machine.prepare(&scene(name));
        machine.follow("docs/runbook.md", &part.steps).unwrap_or_else(|difference| panic!("{difference}"));
    }
}

#[test]
fn the_database_host_is_lost() {
    run("host-lost");
}

#[test]
fn a_restore_takes_the_approval_of_others() {
    run("production");
}

#[test]
fn somebody_dropped_a_table() {
    run("table-dropped");
}

#[test]
fn the_primary_store_is_gone() {
    run("store-lost");
}

#[test]
fn the_signing_key_was_stolen() {
    run("key-stolen");
}

#[test]
fn the_identity_is_lost() {
    run("identity-lost");
}

#[test]
fn on_a_working_day() {
    run("working-day");
}

/// The host is the same, but its repository is a bucket with versions, in which somebody with its credentials deleted and overwrote everything.
#[test]
fn an_attacker_deleted_everything() {
    for part in page().iter().filter(|part| part.name == "attacked") {
        let server = Seaweed::start();
        let aside = crate::cluster::temp_dir();
        make_bucket(&server, aside.path());
        let environment = [
            ("ENVIRONMENT", "staging"),
            ("BUCKET_URL", &format!("s3://{BUCKET}/shop")),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_ENDPOINT_URL_S3", &server.endpoint()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        let mut machine = Machine::start(&environment.map(|(name, value)| (name.to_owned(), value.to_owned())));
        machine.prepare(&scene("attacked"));
        let mut attack = python();
        attack.arg(script("attacker.py")).args([&server.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY]);
        let output = attack.stdin(Stdio::null()).output().expect("Python can be run");
        assert!(output.status.success(), "run scripts/setup test\n{}", String::from_utf8_lossy(&output.stderr));
        machine.follow("docs/runbook.md", &part.steps).unwrap_or_else(|difference| panic!("{difference}"));
    }
}

/// A command that no test runs is a command that may not work.
#[test]
fn every_command_of_the_page_is_run() {
    let page = page();
    let named: BTreeSet<&str> = page.iter().map(|part| part.name.as_str()).collect();
    let known: BTreeSet<&str> = SCENES.into_iter().collect();
    assert_eq!(named, known, "the scenes of the page and those of the tests");
    let run: usize = page.iter().map(|part| part.steps.len()).sum();
    let typed = page_text().lines().filter(|line| line.starts_with("$ ")).count();
    assert_eq!(run, typed);
    assert!(run > 80, "only {run} commands: was something not read?");
    // The machines share that directory with the one that the tests run on.
    let outside = page.iter().flat_map(|part| &part.steps).find(|step| step.command.contains("/tmp"));
    assert_eq!(outside, None);
}

/// What stands between the commands is not run, but it must be there to be typed.
#[test]
fn every_command_that_the_page_mentions_exists() {
    let wrong: Vec<String> = mentions(&page_text())
        .iter()
        .filter_map(|(line, mention)| is_command(mention).err().map(|why| format!("line {line}: {why}")))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The table of exit codes has every code that lifeboat ends with, and no other.
#[test]
fn every_exit_code_has_its_row() {
    let codes = include_str!("../../src/failure.rs").lines().filter_map(|line| {
        let (_, number) = line.strip_prefix("pub(crate) const EXIT_")?.split_once("u8 = ")?;
        number.strip_suffix(';')?.parse::<u8>().ok()
    });
    let known: BTreeSet<u8> = codes.collect();
    let page = page_text();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| <a id=\"exit-")?.split_once('"')?.0.parse::<u8>().ok());
    let mut explained: BTreeSet<u8> = rows.collect();
    assert!(explained.remove(&0) && known.len() > 10, "{explained:?} {known:?}");
    assert_eq!(explained, known);
}

/// The messages that the page explains are ones that lifeboat can say.
#[test]
fn every_message_of_the_page_is_one_of_lifeboat() {
    let mut sources = String::new();
    for room in ["lifeboat", "lifeboat-core", "lifeboat-engine"] {
        read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(room).join("src"), &mut sources);
    }
    sources.push_str(include_str!("../../../../policies/lifeboat.rego"));
    let page = page_text();
    let section = page.split("\n## ").find(|section| section.starts_with("13.")).expect("the section of messages");
    let rows: Vec<&str> =
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(message, _)| message).collect();
    assert!(rows.len() > 20, "{rows:#?}");
    for message in rows {
        for part in message.split('…').map(str::trim).filter(|part| !part.is_empty()) {
            assert!(sources.contains(part), "nothing in lifeboat says {part:?} of {message:?}");
        }
    }
}

fn read_sources(directory: &Path, into: &mut String) {
    for entry in fs::read_dir(directory).expect("the sources are there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).expect("a source is text"));
        }
    }
}
