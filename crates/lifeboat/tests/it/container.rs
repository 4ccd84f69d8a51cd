//! `deploy/container/Containerfile`, held against a linter: no engine that would build it is on the machines that run the tests
//! (docs/install.md says so).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::temp_dir;

fn lint(file: &Path) -> (bool, String) {
    let program = std::env::var_os("LIFEBOAT_TEST_HADOLINT").expect("run scripts/setup test, and source .tools/env");
    let output =
        Command::new(program).args(["--no-color", "--failure-threshold", "style"]).arg(file).output().expect("run scripts/setup test");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn containerfile() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/container/Containerfile")
}

#[test]
fn the_container_file_has_nothing_to_be_said_against() {
    let (passed, said) = lint(&containerfile());
    assert!(passed && said.is_empty(), "{said}");
    // The linter is one: what it says of the same file with mistakes in it.
    let directory = temp_dir();
    let file = fs::read_to_string(containerfile()).unwrap();
    for (right, mistake, code) in [
        ("COPY . .", "ADD . .", "DL3020"),
        (":1.90-bookworm AS build", ":latest AS build", "DL3007"),
        ("USER 10001:10001", "USER 0", "DL3002"),
    ] {
        assert!(file.contains(right), "{right}");
        let wrong = directory.path().join("Containerfile");
        fs::write(&wrong, file.replace(right, mistake)).unwrap();
        let (passed, said) = lint(&wrong);
        assert!(!passed && said.contains(code), "{mistake}: {said}");
    }
}

#[test]
fn the_image_runs_as_a_user_whom_the_manifests_know_and_is_asked_how_it_is() {
    let file = fs::read_to_string(containerfile()).unwrap();
    let last = file.rsplit("\nFROM ").next().unwrap();
    for line in ["\nUSER 10001:10001\n", "\nHEALTHCHECK ", "/healthz", "\nENTRYPOINT [\"lifeboat\"]\n", "--no-install-recommends"] {
        assert!(last.contains(line), "{line}\n{last}");
    }
    // Images of the registry that goes without saying: no host before the first slash.
    let images: Vec<&str> = file.lines().filter_map(|line| line.strip_prefix("FROM ").or(line.strip_prefix("ARG BASE="))).collect();
    assert!(images.len() == 3 && images.iter().all(|image| !image.contains('/')), "{images:?}");
    for manifest in crate::kubernetes::manifests() {
        let user = ["/spec/template/spec", "/spec/jobTemplate/spec/template/spec"]
            .iter()
            .find_map(|pod| manifest.pointer(&format!("{pod}/securityContext/runAsUser")));
        // A restore runs as the user of the server that will read its files.
        assert!(user.is_none_or(|user| *user == 10001 || manifest["metadata"]["name"] == "lifeboat-restore"), "{user:?}");
    }
}
