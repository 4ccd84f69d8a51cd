//! Artifacts through the command: stored, listed, fetched, synced, brought back with the database that refers to them, and tampered with.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::backup::{Running, Site, tree};
use crate::cluster::{Postgres, temp_dir};
use crate::orchestrator::{self, REFERENCE_QUERY};
use crate::program::Program;

/// A site with an empty repository.
fn site() -> Site {
    let site = Site::new();
    site.program().arg("init").run().success();
    site
}

fn artifact(site: &Site, arguments: &[&str]) -> Program {
    site.program().arg("artifact").args(arguments)
}

/// Every artifact's bytes, mode and time of change, by name.
fn contents(directory: &Path) -> BTreeMap<String, (Vec<u8>, u32, i64, i64)> {
    let files = tree(directory).into_iter().filter(|(_, meta)| meta.is_file());
    files
        .map(|(name, meta)| {
            let bytes = fs::read(directory.join(&name)).expect("own file");
            (name, (bytes, meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()))
        })
        .collect()
}

/// The only object of the repository whose path has `part` in it.
fn object(site: &Site, part: &str) -> PathBuf {
    let found: Vec<String> =
        tree(&site.repository()).into_iter().filter(|(path, meta)| meta.is_file() && path.contains(part)).map(|(path, _)| path).collect();
    assert_eq!(found.len(), 1, "{part}: {found:?}");
    site.repository().join(&found[0])
}

fn flip(path: &Path, at: u64) {
    // Objects are read-only, and root may write all the same; others must be let.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("own file");
    let file = fs::File::options().read(true).write(true).open(path).expect("own file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("long enough");
    file.write_all_at(&[byte[0] ^ 1], at).expect("own file");
}

/// What is stored is never written again: after a change of recipients, what did not change is still for those of before.
#[test]
fn artifacts_that_a_new_recipient_cannot_open_are_told_by_every_backup() {
    let site = Site::new();
    let keys = |name: &str| {
        let directory = site.place(name);
        site.program().args(["key", "generate", "--out"]).arg(&directory).run().success();
        let recipient = fs::read_to_string(directory.join("recipients.txt")).unwrap().trim().to_owned();
        (recipient, directory.join("identity.txt"))
    };
    let [(old, _), (new, identity)] = ["old", "new"].map(keys);
    fs::create_dir(site.place("files")).unwrap();
    for name in ["a", "b"] {
        fs::write(site.place("files").join(name), name).unwrap();
    }
    let with = |recipient: &str, arguments: &[&str]| {
        let config = site.place("lifeboat.toml");
        let files = site.place("files");
        fs::write(&config, format!("[encryption]\nrecipients = [\"{recipient}\"]\n[artifacts]\ndirectory = \"{}\"\n", files.display()))
            .unwrap();
        site.program().arg("--config").arg(&config).args(arguments).run()
    };
    with(&old, &["init"]).success();
    with(&old, &["backup"]).success();
    let mut backups = Vec::new();
    for number in 0..2 {
        fs::write(site.place("files").join("c"), format!("{number}")).unwrap();
        let taken = with(&new, &["backup", "--json"]).expect_code(3);
        assert!(taken.stderr.contains("2 artifacts, first a, were stored before"), "{taken}");
        let document = taken.json();
        let warning = document["manifest"]["warnings"][0].as_str().unwrap_or_default().to_owned();
        assert!(warning.contains("docs/trust.md"), "{taken}");
        backups.push(document["backup"].as_str().unwrap().to_owned());
    }
    // And it is so.
    let to = site.place("back").display().to_string();
    let back = with(&new, &["restore", &backups[1], "--artifacts", &to, "--identity", identity.to_str().unwrap()]);
    assert_ne!(back.code, Some(0), "{back}");
    let came: Vec<String> = contents(Path::new(&to)).into_keys().collect();
    assert_eq!(came, ["c"], "{back}");
    let files = site.place("files").display().to_string();
    let synced = with(&new, &["artifact", "sync", &files]).expect_code(3);
    assert!(synced.stderr.contains("2 artifacts, first a"), "{synced}");
    let put = with(&new, &["artifact", "put", "d", site.place("files").join("a").to_str().unwrap()]).expect_code(3);
    assert!(put.stderr.contains("1 artifacts, first d"), "{put}");
    with(&old, &["artifact", "put", "d", site.place("files").join("a").to_str().unwrap()]).success();
}

#[test]
fn what_is_put_is_what_is_got() {
    let site = site();
    let file = site.place("source.tar");
    fs::write(&file, b"first").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let put = |name: &str, from: &str| artifact(&site, &["put", name, from, "--json"]);
    let first = put("code/1/source.tar", file.to_str().unwrap()).run().success().json();
    assert_eq!((first["name"].as_str(), first["bytes"].as_u64()), (Some("code/1/source.tar"), Some(5)));
    // sha256 of "first", from sha256sum.
    assert_eq!(first["sha256"], orchestrator::sha256sum(site.home.path(), ["source.tar"].into_iter())[0]);
    fs::write(&file, b"second").unwrap();
    let second = put("code/1/source.tar", file.to_str().unwrap()).run().success().json();
    assert_ne!(first["version"], second["version"]);
    put("logs/1", "-").input(b"from a pipe").run().success();

    let got = site.place("got");
    let get = |arguments: &[&str]| artifact(&site, &["get"]).args(arguments);
    get(&["code/1/source.tar", "--output", got.to_str().unwrap()]).run().success();
    assert_eq!(fs::read(&got).unwrap(), b"second");
    assert_eq!(fs::metadata(&got).unwrap().mode() & 0o777, 0o640);
    // Nothing is replaced unless asked for.
    fs::write(&got, b"mine").unwrap();
    get(&["code/1/source.tar", "--output", got.to_str().unwrap()]).run().expect_code(1);
    assert_eq!(fs::read(&got).unwrap(), b"mine");
    let old = first["version"].as_str().unwrap();
    get(&["code/1/source.tar", "--version", old, "--force", "--output", got.to_str().unwrap()]).run().success();
    assert_eq!(fs::read(&got).unwrap(), b"first");
    assert_eq!(get(&["logs/1"]).run().success().stdout, "from a pipe");
    get(&["code/none"]).run().expect_code(1);
    let bad_version = get(&["code/1/source.tar", "--version", "../../../lifeboat", "--output", got.to_str().unwrap()]).run();
    assert_ne!(bad_version.code, Some(0));
    get(&["../escape"]).run().expect_code(2);
    put("/absolute", file.to_str().unwrap()).run().expect_code(2);

    let listed = artifact(&site, &["list", "--json"]).run().success().json();
    let names: Vec<&str> = listed["artifacts"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["code/1/source.tar", "logs/1"]);
    let only = artifact(&site, &["list", "logs/", "--json"]).run().success().json();
    assert_eq!(only["artifacts"].as_array().unwrap().len(), 1);
    let versions = artifact(&site, &["list", "code/1/source.tar", "--versions", "--json"]).run().success().json();
    let versions: Vec<&Value> = versions["versions"].as_array().unwrap().iter().map(|row| &row["version"]).collect();
    assert_eq!(versions, [&first["version"], &second["version"]]);
    let verified = artifact(&site, &["verify", "--json"]).run().success().json();
    assert_eq!((verified["verdict"].as_str(), verified["report"]["artifacts"].as_u64()), (Some("verified"), Some(2)));
}

#[test]
fn a_synced_directory_comes_back_as_it_was() {
    let site = site();
    let directory = site.place("artifacts");
    fs::create_dir(&directory).unwrap();
    orchestrator::write_artifacts(&directory, 60, 7);
    for (name, mode) in [("code/20/source.tar.zst", 0o400), ("results/20/junit.xml", 0o755)] {
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let sync = |arguments: &[&str]| artifact(&site, &["sync", directory.to_str().unwrap(), "--json"]).args(arguments);
    let first = sync(&[]).run().success().json();
    assert_eq!((first["new"].as_u64(), first["count"].as_u64()), (Some(60), Some(60)));
    let again = sync(&["--read-all"]).run().success().json();
    assert_eq!((again["unchanged"].as_u64(), again["stored_bytes"].as_u64()), (Some(60), Some(0)));
    let backup = || {
        let program = Program::new(&site.home).env("LIFEBOAT_ARTIFACTS", &directory).args(["backup", "--json", "--output"]);
        program.arg(site.repository()).run().success().json()
    };
    let before = contents(&directory);
    let old = backup();
    assert_eq!(old["manifest"]["artifacts"]["count"], 60);

    fs::remove_file(directory.join("logs/20/build.log")).unwrap();
    fs::write(directory.join("code/19/source.tar.zst"), b"changed").unwrap();
    fs::write(directory.join("new"), b"new").unwrap();
    let changed = sync(&[]).run().success().json();
    let numbers = ["new", "changed", "gone", "unchanged"].map(|key| changed[key].as_u64().unwrap());
    assert_eq!(numbers, [1, 1, 1, 58]);
    let after = contents(&directory);
    let new = backup();

    // Each backup has the set of its own moment.
    for (taken, expected) in [(&old, &before), (&new, &after)] {
        let id = taken["backup"].as_str().unwrap();
        let to = site.place(&format!("restored-{}", expected.contains_key("new")));
        let output = site.program().args(["restore", id, "--json", "--artifacts"]).arg(&to).run().success();
        assert_eq!(output.json()["measured"]["artifacts"], expected.len());
        assert!(contents(&to) == *expected, "{id} differs");
        // What is there stays.
        site.program().args(["restore", id, "--artifacts"]).arg(&to).run().expect_code(1);
        let listed = artifact(&site, &["list", "--backup", id, "--json"]).run().success().json();
        assert_eq!(listed["artifacts"].as_array().unwrap().len(), expected.len());
        artifact(&site, &["verify", "--backup", id]).run().success();
    }
}

#[test]
fn an_empty_or_missing_directory_does_not_empty_the_set() {
    let site = site();
    let directory = site.place("artifacts");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("one"), "1").unwrap();
    let path = directory.to_str().unwrap();
    artifact(&site, &["sync", path]).run().success();
    fs::remove_file(directory.join("one")).unwrap();
    let output = artifact(&site, &["sync", path]).run().expect_code(1);
    assert!(output.stderr.contains("--allow-empty"), "{output}");
    assert_ne!(artifact(&site, &["sync", "/nonexistent/artifacts"]).run().code, Some(0));
    assert_eq!(artifact(&site, &["get", "one"]).run().success().stdout, "1");
    let backup = || Program::new(&site.home).env("LIFEBOAT_ARTIFACTS", &directory).args(["backup", "--output"]).arg(site.repository());
    assert_ne!(backup().run().code, Some(0));
    assert!(site.list().is_empty());
    backup().arg("--allow-empty").run().success();
    artifact(&site, &["get", "one"]).run().expect_code(1);
}

#[test]
fn links_and_special_files_are_no_artifacts() {
    let site = site();
    let directory = site.place("artifacts");
    fs::create_dir(&directory).unwrap();
    let secret = site.place("secret");
    fs::write(&secret, "outside").unwrap();
    fs::write(directory.join("real"), "inside").unwrap();
    symlink(&secret, directory.join("link")).unwrap();
    symlink(site.home.path(), directory.join("directory-link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(directory.join("socket")).unwrap();
    artifact(&site, &["sync", directory.to_str().unwrap()]).run();
    let listed = artifact(&site, &["list", "--json"]).run().success().json();
    let names: Vec<&str> = listed["artifacts"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["real"]);
}

#[test]
fn an_unreadable_file_fails_the_sync_and_leaves_the_set() {
    let home = temp_dir();
    let repository = home.path().join("repository");
    let lifeboat = || Program::as_owner(&home).arg("--repository").arg(&repository);
    lifeboat().args(["key", "generate"]).run().success();
    lifeboat().arg("init").run().success();
    let directory = home.path().join("artifacts");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("one"), "1").unwrap();
    crate::cluster::Owner::current().own_tree(&directory);
    lifeboat().args(["artifact", "sync"]).arg(&directory).run().success();
    fs::write(directory.join("two"), "2").unwrap();
    crate::cluster::Owner::current().own(&directory.join("two"));
    fs::set_permissions(directory.join("two"), fs::Permissions::from_mode(0o000)).unwrap();
    let output = lifeboat().args(["artifact", "sync"]).arg(&directory).run().expect_code(1);
    assert!(output.stderr.contains("two"), "{output}");
    let listed = lifeboat().args(["artifact", "list", "--json"]).run().success().json();
    assert_eq!(listed["artifacts"].as_array().unwrap().len(), 1);
}

#[test]
fn the_database_and_its_artifacts_come_back_together() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).start();
    orchestrator::install(&cluster, 30);
    let directory = cluster.scratch("artifacts");
    let artifacts = orchestrator::write_artifacts(&directory, 40, 3);
    orchestrator::record(&cluster, &artifacts);
    let configuration =
        site.configuration(&format!("[artifacts]\ndirectory = \"{}\"\nreference_query = \"{REFERENCE_QUERY}\"\n", directory.display()));
    let backup = || site.backup_of(&cluster, "local").arg("--config").arg(&configuration).run().success();
    let restore = |name: &str| {
        let program = site.restore_of("latest", &site.place(name), Postgres::V15).arg("--config").arg(&configuration);
        program.arg("--artifacts").arg(site.place(&format!("{name}-artifacts")))
    };
    let whole = backup().json();
    let references = &whole["manifest"]["artifacts"]["references"];
    assert_eq!((references["rows"].as_u64(), references["missing_count"].as_u64()), (Some(40), Some(0)));
    let output = restore("whole").arg("--start").run().success();
    let running = Running::new(&site.place("whole"), Postgres::V15, &output);
    assert_eq!(running.report["measured"]["artifacts"], 40);
    // Every artifact that the restored database names is there, with the digest that it names.
    let rows = running.psql(REFERENCE_QUERY);
    let referenced: Vec<(&str, &str)> = rows.lines().map(|row| row.rsplit_once('|').unwrap()).collect();
    let digests = orchestrator::sha256sum(&site.place("whole-artifacts"), referenced.iter().map(|(name, _)| *name));
    assert_eq!(referenced.len(), 40);
    assert!(referenced.iter().zip(&digests).all(|((_, expected), found)| expected == found));
    drop(running);

    // A file that the database names has another content, one is not there at all.
    let [changed, gone] = [&artifacts[20].name, &artifacts[21].name];
    fs::write(directory.join(changed), "changed behind the database's back").unwrap();
    fs::remove_file(directory.join(gone)).unwrap();
    let output = site.backup_of(&cluster, "local").arg("--config").arg(&configuration).run().expect_code(3);
    assert!(output.stderr.contains("refers to 2 artifacts that are not in the backup"), "{output}");
    let references = &output.json()["manifest"]["artifacts"]["references"];
    assert_eq!((references["rows"].as_u64(), references["missing_count"].as_u64()), (Some(40), Some(2)), "{references}");
    // What came back is all there, and nobody may call it whole: with a server that is asked, and without.
    let without = restore("without").run().expect_code(21);
    assert!(without.stderr.contains("2 of 40 artifacts that the database refers to"), "{without}");
    let output = restore("with").arg("--start").run().expect_code(21);
    let running = Running::new(&site.place("with"), Postgres::V15, &output);
    assert_eq!((running.report["verdict"].as_str(), running.report["measured"]["artifacts"].as_u64()), (Some("failed"), Some(39)));
    assert!(output.stderr.contains("2 of 40 artifacts that the database refers to"), "{output}");
    assert_eq!(running.psql("SELECT count(*) FROM artifacts"), "40");
}

#[test]
fn a_reference_query_that_fails_fails_the_backup() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V16).start();
    let directory = cluster.scratch("artifacts");
    fs::write(directory.join("one"), "1").unwrap();
    for query in ["SELECT nonsense", "DELETE FROM pg_class RETURNING 'a', 'b'", "SELECT 1"] {
        let configuration =
            site.configuration(&format!("[artifacts]\ndirectory = \"{}\"\nreference_query = \"{query}\"\n", directory.display()));
        let output = site.backup_of(&cluster, "local").arg("--config").arg(&configuration).run();
        assert_ne!(output.code, Some(0), "{output}");
        assert!(!output.stderr.contains("panicked"), "{output}");
        assert!(site.list().is_empty());
    }
}

#[test]
fn tampered_artifacts_are_found_and_not_given_out() {
    type Tamper<'t> = (&'t str, &'t dyn Fn(&Site));
    let tamper: [Tamper<'_>; 6] = [
        ("a blob's byte", &|site| flip(&object(site, "artifacts/blobs/"), 200)),
        ("a blob cut", &|site| {
            let path = object(site, "artifacts/blobs/");
            let bytes = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("a blob gone", &|site| fs::remove_file(object(site, "artifacts/blobs/")).unwrap()),
        ("a record's byte", &|site| {
            let path = object(site, "artifacts/records/victim/");
            let at = fs::read_to_string(&path).unwrap().find("sha256").expect("a record names the digest") + 12;
            flip(&path, at as u64);
        }),
        ("a record gone", &|site| fs::remove_file(object(site, "artifacts/records/victim/")).unwrap()),
        ("another's record", &|site| {
            let path = object(site, "artifacts/records/victim/");
            let other = fs::read(object(site, "artifacts/records/other/")).unwrap();
            fs::remove_file(&path).unwrap();
            fs::write(&path, other).unwrap();
        }),
    ];
    for (what, tamper) in tamper {
        let site = site();
        let directory = site.place("artifacts");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("victim"), "x".repeat(3000)).unwrap();
        let program = Program::new(&site.home).env("LIFEBOAT_ARTIFACTS", &directory).args(["backup", "--output"]).arg(site.repository());
        program.run().success();
        if what == "another's record" {
            fs::write(directory.join("other"), "other").unwrap();
            artifact(&site, &["sync", directory.to_str().unwrap()]).run().success();
        }
        tamper(&site);
        let verified = artifact(&site, &["verify", "--json"]).run().expect_code(21).json();
        assert_eq!(verified["verdict"], "failed", "{what}");
        let got = site.place("got");
        let output = artifact(&site, &["get", "victim", "--output", got.to_str().unwrap()]).run().expect_code(21);
        assert!(!got.exists(), "{what}: {output}");
        assert_eq!(artifact(&site, &["get", "victim"]).run().expect_code(21).stdout, "", "{what}");
        site.program().args(["verify", "--all"]).run().expect_code(21);
        let to = site.place("restored");
        let output = site.program().args(["restore", "latest", "--artifacts"]).arg(&to).run().expect_code(21);
        assert!(!to.join("victim").exists() && output.stderr.contains("victim"), "{what}: {output}");
    }
}

#[test]
fn artifacts_of_a_strange_signer_are_unsigned() {
    let site = site();
    let file = site.place("file");
    fs::write(&file, "genuine").unwrap();
    artifact(&site, &["put", "build", file.to_str().unwrap()]).run().success();
    // Somebody with write access to the repository and a key of their own.
    let stranger = Site::new();
    fs::write(&file, "planted").unwrap();
    let program = Program::new(&stranger.home).arg("--repository").arg(site.repository());
    program.args(["artifact", "put", "build", file.to_str().unwrap()]).run().success();
    let output = artifact(&site, &["get", "build"]).run().expect_code(21);
    assert_eq!(output.stdout, "", "{output}");
    let verified = artifact(&site, &["verify", "--json"]).run().expect_code(21).json();
    assert_eq!(verified["findings"][0]["kind"], "unsigned", "{verified}");
}
