//! `docs/install.md`: every command of it, as it is printed, on the machine that the section is about. `package.rs` has what is in the
//! packages.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::document::{Machine, Scene, Seat, has_command, is_command, mentions, scenes};
use crate::kubernetes::NEWEST;
use crate::package::packages;
use crate::program::reachable_binary;

const PAGE: &str = "docs/install.md";

fn source(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path).canonicalize().expect("it is there")
}

fn page_text() -> String {
    fs::read_to_string(source(PAGE)).expect("the page is there")
}

/// The part of the page that begins on this machine.
fn scene(name: &str) -> Scene {
    let all = scenes(&page_text()).unwrap_or_else(|error| panic!("{PAGE}: {error}"));
    all.into_iter().find(|scene| scene.name == name).unwrap_or_else(|| panic!("no scene {name}"))
}

fn script(name: &str) -> String {
    fs::read_to_string(source(&format!("crates/lifeboat/tests/it/scenes/{name}.sh"))).expect("the scene is there")
}

fn follow(mut machine: Machine, name: &str) {
    machine.follow(PAGE, &scene(name).steps).unwrap_or_else(|difference| panic!("{difference}"));
}

/// What the scripts of scenes look for.
fn environment(more: &[(&str, String)]) -> Vec<(String, String)> {
    let scenes = [("SCENES", source("crates/lifeboat/tests/it/scenes").display().to_string())];
    scenes.iter().chain(more).map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// Whether packages can be installed into a machine: that takes root, who alone may put a layer over the system.
fn may_install() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not checked: installing takes root");
    }
    root
}

#[test]
fn on_a_database_host_from_nothing_to_a_backup_and_away_again() {
    if !may_install() {
        return;
    }
    let mut machine = Machine::start_at(Seat::Root, &environment(&[]));
    let directory = machine.place("srv/packages");
    fs::create_dir(&directory).unwrap();
    for package in packages() {
        fs::copy(&package, directory.join(package.file_name().unwrap())).unwrap();
    }
    machine.prepare(&script("install"));
    follow(machine, "database-host");
}

#[test]
fn packages_are_made_from_the_sources() {
    if !may_install() {
        return;
    }
    let variable = |name: &str, default: &str| {
        let value = std::env::var(name).unwrap_or_else(|_| format!("{}/{default}", std::env::var("HOME").unwrap_or_default()));
        (name.to_owned(), value)
    };
    let mut environment = environment(&[
        ("SOURCES", source(".").display().to_string()),
        ("REAL_CARGO", env!("CARGO").to_owned()),
        ("BUILT", env!("CARGO_BIN_EXE_lifeboat").to_owned()),
    ]);
    environment.extend([variable("CARGO_HOME", ".cargo"), variable("RUSTUP_HOME", ".rustup")]);
    let mut machine = Machine::start_at(Seat::Root, &environment);
    machine.prepare(&script("sources"));
    assert_eq!(machine.run("cd /srv/checkout").0, 0);
    follow(machine, "sources");
}

#[test]
fn a_cluster_is_given_what_fits_its_schemas() {
    let python = crate::moto::python().get_program().to_string_lossy().into_owned();
    // As whoever runs the tests, who can run their Python.
    let root = rustix::process::geteuid().is_root();
    let seat = if root { Seat::Root } else { Seat::Owner };
    let mut machine = Machine::start_at(seat, &environment(&[("PYTHON", python), ("KUBERNETES", NEWEST.to_owned())]));
    fs::copy(source("crates/lifeboat/tests/it/scenes/kubectl.sh"), machine.place("bin/kubectl")).unwrap();
    if root {
        symlink(reachable_binary(), machine.place("bin/lifeboat")).unwrap();
    }
    machine.prepare(&script("workstation"));
    assert_eq!(machine.run("cd /srv/checkout").0, 0);
    follow(machine, "workstation");
}

/// A command that no test runs is a command that may not work.
#[test]
fn every_command_of_the_page_is_run() {
    let all = scenes(&page_text()).unwrap_or_else(|error| panic!("{PAGE}: {error}"));
    let named: BTreeSet<&str> = all.iter().map(|scene| scene.name.as_str()).collect();
    assert_eq!(named, ["database-host", "sources", "workstation"].into());
    let run: usize = all.iter().map(|scene| scene.steps.len()).sum();
    assert_eq!(run, page_text().lines().filter(|line| line.starts_with("$ ")).count());
    assert!(run > 30, "only {run} commands: was something not read?");
}

/// What stands between the commands is not run, but it must be there to be typed. Agent and status are made elsewhere.
#[test]
fn every_command_that_the_page_mentions_exists() {
    let mentioned = mentions(&page_text());
    let late = |mention: &str| ["agent", "status"].iter().any(|name| mention.contains(&format!("lifeboat {name}")) && !has_command(name));
    let wrong: Vec<String> = mentioned
        .iter()
        .filter(|(_, mention)| !late(mention))
        .filter_map(|(line, mention)| is_command(mention).err().map(|why| format!("line {line}: {why}")))
        .collect();
    assert!(wrong.is_empty() && mentioned.len() > 2, "{wrong:#?}");
}

/// The unit lets a drill have what it needs: a network of its own for the user of the database, and as root a user and files of its own too.
#[test]
fn a_drill_gets_its_walls_within_what_the_agents_unit_allows() {
    if !may_install() {
        return;
    }
    let mut machine = Machine::start_at(Seat::Root, &environment(&[]));
    fs::copy(&packages()[0], machine.place("srv/lifeboat.deb")).unwrap();
    machine.prepare(&format!(
        "{}\ndpkg --install /srv/lifeboat.deb\ninstall -d -o postgres -m 700 /srv/backups\n\
         su - postgres -c 'lifeboat init --repository /srv/backups --state-directory /var/lib/lifeboat --write-config lifeboat.toml'\n\
         install -m 644 /var/lib/postgresql/lifeboat.toml /etc/lifeboat/\nsu - postgres -c 'lifeboat backup'\n",
        script("install")
    ));
    let drill = "systemctl inside lifeboat-agent.service lifeboat --config /etc/lifeboat/lifeboat.toml drill run --json";
    let as_root = "install -D -m 644 /usr/share/doc/lifeboat/examples/systemd/drills-as-root.conf /etc/systemd/system/lifeboat-agent.service.d/drills.conf";
    for (prepare, missing) in [("true", ["files", "user"].as_slice()), (as_root, &[])] {
        assert_eq!(machine.run(prepare).0, 0);
        let (code, printed) = machine.run(&format!("systemd-analyze verify lifeboat-agent.service && {drill} 2>/srv/said"));
        let said = machine.run("cat /srv/said").1;
        assert!(code == 0 || code == 3, "{code}\n{said}\n{printed}");
        let report: serde_json::Value = serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}\n{said}"));
        let isolation =
            report.pointer("/report/environment/isolation").and_then(serde_json::Value::as_array).unwrap_or_else(|| panic!("{report:#}"));
        let mut gaps: Vec<&str> = isolation.iter().filter(|one| one["holds"] == false).filter_map(|one| one["what"].as_str()).collect();
        gaps.sort_unstable();
        assert!(isolation.len() > 5, "{isolation:#?}");
        assert_eq!(gaps, missing, "{isolation:#?}");
    }
}
