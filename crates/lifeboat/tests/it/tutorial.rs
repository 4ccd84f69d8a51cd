//! `docs/tutorial.md`: every command of it, as it is printed, by somebody who has a server and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::cluster::Owner;
use crate::document::{Machine, Scene, is_command, mentions, scenes};
use crate::receiver::{Manner, Receiver};

const PAGE: &str = "docs/tutorial.md";

/// Read when a test runs: a page may be written without building anything.
fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn page() -> Vec<Scene> {
    scenes(&read(PAGE)).unwrap_or_else(|error| panic!("{PAGE}: {error}"))
}

#[test]
fn from_nothing_to_the_first_proven_restore() {
    let [scene] = page().try_into().expect("one machine from the first line to the last");
    let mut machine = Machine::start(&[]);
    machine.prepare(&read("crates/lifeboat/tests/it/scenes/tutorial.sh"));
    // The channel that is told.
    let channel = Receiver::start(Manner::takes());
    let url = machine.place("etc/lifeboat/slack.url");
    fs::write(&url, channel.url("/services/T0/B0/secret")).unwrap();
    fs::set_permissions(&url, fs::Permissions::from_mode(0o600)).unwrap();
    Owner::current().own(&url);
    machine.follow(PAGE, &scene.steps).unwrap_or_else(|difference| panic!("{difference}"));
    assert_eq!(channel.taken().len(), 2, "the test and its end");
}

/// A command that no test runs is a command that may not work, and a tutorial that is too long is not finished by anybody.
#[test]
fn every_command_of_the_page_is_run() {
    let (text, page) = (read(PAGE), page());
    let run: usize = page.iter().map(|part| part.steps.len()).sum();
    assert_eq!(run, text.lines().filter(|line| line.starts_with("$ ")).count());
    assert!(run > 20, "only {run} commands: was something not read?");
    assert!(text.lines().count() < 250, "{} lines", text.lines().count());
    // The machine shares that directory with the one that the tests run on.
    let outside = page.iter().flat_map(|part| &part.steps).find(|step| step.command.contains("/tmp"));
    assert_eq!(outside, None);
}

/// What stands between the commands is not run, but it must be there to be typed.
#[test]
fn every_command_that_the_page_mentions_exists() {
    let wrong: Vec<String> = mentions(&read(PAGE))
        .iter()
        .filter_map(|(line, mention)| is_command(mention).err().map(|why| format!("line {line}: {why}")))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
