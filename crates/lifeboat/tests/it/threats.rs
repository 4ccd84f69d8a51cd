//! Attacks of `docs/threat-model.md` that no other module's tests show, and a check of that page: the tests that it names are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::backup::Site;
use crate::cluster::expect_success;
use crate::program::{Output, Program};

/// Artifacts of a system, and repositories that back them up; nothing of it needs a server.
struct World {
    site: Site,
}

impl World {
    fn new() -> World {
        let world = World { site: Site::new() };
        fs::create_dir(world.path("artifacts")).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.place(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path("artifacts").join(name), text).unwrap();
    }

    /// Backs up into a repository, and returns the backup's id.
    fn backup(&self, repository: &str) -> String {
        let program = Program::new(&self.site.home).env("LIFEBOAT_ARTIFACTS", self.path("artifacts"));
        let output = program.args(["backup", "--json", "--output"]).arg(self.path(repository)).run().success();
        output.json()["backup"].as_str().unwrap().to_owned()
    }

    fn lifeboat(&self, repository: &str, arguments: &[&str]) -> Output {
        Program::new(&self.site.home).arg("--repository").arg(self.path(repository)).args(arguments).run()
    }

    /// A restore that must be refused, and write nothing.
    #[track_caller]
    fn is_refused(&self, repository: &str, backup: &str) -> Output {
        let to = self.path("refused");
        let output = self.lifeboat(repository, &["restore", backup, "--artifacts", &to.display().to_string()]).expect_code(21);
        assert!(fs::read_dir(&to).map_or(0, Iterator::count) == 0, "something was written: {output}");
        output
    }
}

/// As whoever has the store can: everything of one place over another, whatever is there.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    expect_success(Command::new("cp").arg("-rT").arg(from).arg(to));
}

#[test]
fn an_old_backup_is_not_taken_for_a_newer_one() {
    let world = World::new();
    world.write("code", "with a hole");
    let old = world.backup("repository");
    world.write("code", "mended");
    let new = world.backup("repository");
    let root = world.path("repository");

    // Beside the others, as the newest; then over the newest, which its objects outlive.
    let newest = new.replace("backup-2", "backup-9");
    copy(&root.join(&old), &root.join(&newest));
    assert!(world.is_refused("repository", "latest").stderr.contains(&newest));
    world.is_refused("repository", &newest);
    world.lifeboat("repository", &["verify", "--all"]).expect_code(21);
    fs::remove_dir_all(root.join(&newest)).unwrap();
    copy(&root.join(&old), &root.join(&new));
    world.is_refused("repository", &new);
    // Also with the name put right in the manifest, which nobody signed so.
    let manifest = root.join(&new).join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap().replace(&old, &new);
    fs::write(&manifest, text).unwrap();
    world.is_refused("repository", &new);
    // The old one itself is still what it was.
    world.lifeboat("repository", &["verify", &old]).success();
}

#[test]
fn a_backup_of_another_repository_is_named_as_such() {
    let world = World::new();
    world.write("code", "of production");
    world.backup("production");
    world.write("code", "of somebody's experiment");
    // By the same keys: one signing key for all of a company is no mistake.
    let theirs = world.backup("experiments");
    for part in [theirs.as_str(), "artifacts/blobs", "artifacts/records", "artifacts/catalog"] {
        copy(&world.path("experiments").join(part), &world.path("production").join(part));
    }
    let verified = world.lifeboat("production", &["verify", &theirs, "--json"]).expect_code(21);
    let findings = verified.json()["reports"][0]["findings"].clone();
    assert!(findings.as_array().unwrap().iter().any(|finding| finding["object"] == "lifeboat.json"), "{findings:#}");
    // A restore says so and ends with 3. It does not refuse: nobody signs lifeboat.json, and whoever changes that must not keep us from
    // all that we have.
    let to = world.path("restored").display().to_string();
    let restored = world.lifeboat("production", &["restore", &theirs, "--artifacts", &to]).expect_code(3);
    assert!(restored.stderr.contains("the backup was signed for"), "{restored}");
}

#[test]
fn an_artifact_is_not_taken_for_another_version_nor_another_name() {
    let world = World::new();
    let put = |name: &str, text: &str| {
        fs::write(world.path("file"), text).unwrap();
        let file = world.path("file").display().to_string();
        world.lifeboat("repository", &["artifact", "put", name, &file, "--json"]).success().json()
    };
    world.lifeboat("repository", &["init"]).success();
    let (old, new) = (put("tool", "with a hole"), put("tool", "mended"));
    let other = put("other", "another tool");
    let record = |name: &str, version: &Value| {
        world.path("repository/artifacts/records").join(name).join(format!("{}.json", version["version"].as_str().unwrap()))
    };
    let blob = |version: &Value| {
        let digest = version["sha256"].as_str().unwrap();
        world.path("repository/artifacts/blobs").join(&digest[..2]).join(digest)
    };
    let to = world.path("got").display().to_string();
    let is_refused = |why: &str| {
        let output = world.lifeboat("repository", &["artifact", "get", "tool", "--output", &to]);
        assert!(output.code == Some(21) && !Path::new(&to).exists(), "{why}: {output}");
        world.lifeboat("repository", &["artifact", "verify"]).expect_code(21);
    };
    for (why, from, over) in [
        ("the record of the older version", record("tool", &old), record("tool", &new)),
        ("the record of another artifact", record("other", &other), record("tool", &new)),
        ("the bytes of the older version", blob(&old), blob(&new)),
        ("the bytes of another artifact", blob(&other), blob(&new)),
    ] {
        let kept = fs::read(&over).unwrap();
        fs::copy(&from, &over).unwrap();
        is_refused(why);
        fs::write(&over, kept).unwrap();
    }
    world.lifeboat("repository", &["artifact", "get", "tool", "--output", &to]).success();
    assert_eq!(fs::read_to_string(&to).unwrap(), "mended");
}

#[test]
fn a_repository_that_was_set_back_is_found_by_its_replica() {
    let world = World::new();
    let keys = world.path(".config/lifeboat");
    let configuration = world.site.configuration(&format!(
        "[artifacts]\ndirectory = \"{}\"\n[[repository]]\nurl = \"{}\"\nname = \"near\"\n[[repository]]\nurl = \"{}\"\nname = \"far\"\nrequired = true\n\
         [encryption]\nrecipients = [\"{}\"]\nidentity_file = \"{keys}/identity.txt\"\n[signing]\nkey_file = \"{keys}/signing.key\"\n\
         password = {{ file = \"{keys}/signing.password\" }}\n[trust]\nkeys = [\"{keys}/signing.pub\"]\n",
        world.path("artifacts").display(),
        world.path("near").display(),
        world.path("far").display(),
        fs::read_to_string(keys.join("recipients.txt")).unwrap().trim(),
        keys = keys.display(),
    ));
    let lifeboat = |arguments: &[&str]| Program::new(&world.site.home).arg("--config").arg(&configuration).args(arguments).run();
    lifeboat(&["init"]).success();
    world.write("code", "before");
    lifeboat(&["backup"]).success();
    copy(&world.path("near"), &world.path("kept-by-the-operator"));
    world.write("code", "after");
    let newest = lifeboat(&["backup", "--json"]).success().json()["backup"].as_str().unwrap().to_owned();
    lifeboat(&["replicate", "--check"]).success();

    // The store's operator puts the state of yesterday back. By itself it is a repository without a fault.
    fs::remove_dir_all(world.path("near")).unwrap();
    fs::rename(world.path("kept-by-the-operator"), world.path("near")).unwrap();
    let alone = world.lifeboat("near", &["verify", "--all"]).success();
    assert!(!alone.stdout.contains(&newest), "{alone}");
    // With a place that somebody else keeps it is not one.
    let listed = lifeboat(&["list"]);
    assert!(listed.stdout.contains(&newest), "{listed}");
    let checked = lifeboat(&["replicate", "--check"]);
    assert!(checked.stdout.contains("are only there, and stay"), "{checked}");
    let to = world.path("restored").display().to_string();
    lifeboat(&["restore", "latest", "--artifacts", &to]);
    assert_eq!(fs::read_to_string(Path::new(&to).join("code")).unwrap(), "after");
}

/// Names of functions below a directory: of tests in Rust, and of the reader's in Python.
fn functions(directory: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            functions(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "py") {
            for line in fs::read_to_string(&path).unwrap_or_default().lines() {
                let line = line.trim_start();
                let name = line.strip_prefix("fn ").or_else(|| line.strip_prefix("def ")).and_then(|rest| rest.split(['(', '<']).next());
                into.extend(name.map(str::to_owned));
            }
        }
    }
}

#[test]
fn the_threat_model_names_tests_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut known = BTreeSet::new();
    for directory in ["crates", "tools/rescue"] {
        functions(&root.join(directory), &mut known);
    }
    assert!(known.len() > 1000 && known.contains("the_threat_model_names_tests_that_are_there"));
    let page = fs::read_to_string(root.join("docs/threat-model.md")).unwrap();
    let mut missing = Vec::new();
    let mut named = 0;
    for section in page.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap();
        let words = section.split('`').skip(1).step_by(2);
        let tests: Vec<&str> = words.filter(|word| word.matches('_').count() >= 3 && !word.contains(['.', ' ', '/'])).collect();
        assert!(!tests.is_empty() || !title.starts_with("Adversary"), "{title:?} names no test");
        named += tests.len();
        missing.extend(tests.into_iter().filter(|test| !known.contains(*test)).map(str::to_owned));
    }
    assert!(missing.is_empty(), "the page names tests that do not exist: {missing:?}");
    assert!(named > 20, "the page names {named} tests only");
}
