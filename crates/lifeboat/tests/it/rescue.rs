//! `tools/rescue/rescue.py` against real backups: what it restores is what `lifeboat restore` writes, byte for byte.
//!
//! It was written from `docs/format.md` alone, so a difference means that one of the three is wrong.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use lifeboat_engine::keys::Identities;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::Trust;
use lifeboat_engine::store;
use lifeboat_engine::wal::{self, WalReader};
use tempfile::TempDir;

use crate::cluster::{Cluster, Owner, Postgres, Stop, expect_success, restored_cluster, setting, temp_dir};
use crate::orchestrator;
use crate::program::{Output, Program, reachable_binary};

/// A home with a repository in it, and the keys that the first backup made.
struct Taken {
    home: TempDir,
}

impl Taken {
    /// Backs up a cluster, and artifacts where there are any, with further arguments and settings.
    fn backup(cluster: &Cluster, artifacts: Option<&Path>, arguments: &[&str], environment: &[(&str, &Path)]) -> Taken {
        let home = temp_dir();
        // The first run makes keys only where nothing is configured.
        Program::new(&home).args(["key", "generate"]).run().success();
        let mut program = Program::new(&home).env("LIFEBOAT_DSN", cluster.dsn()).env("LIFEBOAT_PG_BIN", cluster.version().bin_directory());
        for (name, value) in environment {
            program = program.env(name, value);
        }
        if let Some(directory) = artifacts {
            program = program.env("LIFEBOAT_ARTIFACTS", directory);
        }
        let output = home.path().join("repo");
        program.args(["backup", "--include-postgres", "--output"]).arg(output).args(arguments).run().success();
        Taken { home }
    }

    fn repository(&self) -> PathBuf {
        self.home.path().join("repo")
    }

    fn key(&self, name: &str) -> PathBuf {
        self.home.path().join(".config/lifeboat").join(name)
    }

    fn id(&self) -> String {
        let names = fs::read_dir(self.repository()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.into_iter().find(|name| name.contains("-backup-")).expect("a backup was taken")
    }

    fn manifest(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.repository().join(self.id()).join("manifest.json")).unwrap()).unwrap()
    }

    /// A rescue by someone who trusts the signing key.
    fn rescue(&self, command: &str) -> Program {
        let rescue = rescue(&self.home, &self.repository()).arg(command);
        if command == "list" { rescue } else { rescue.arg("latest").arg("--key").arg(self.key("signing.pub")) }
    }

    /// As [`Taken::rescue`], with the restore identity and a target.
    fn rescue_to(&self, command: &str, target: &Path) -> Program {
        self.rescue(command).arg("--identity").arg(self.key("identity.txt")).arg("--to").arg(target)
    }

    fn lifeboat(&self) -> Program {
        Program::new(&self.home).arg("--repository").arg(self.repository())
    }
}

/// rescue.py on a repository.
pub(crate) fn rescue(home: &TempDir, repository: &Path) -> Program {
    let python = setting("LIFEBOAT_TEST_PYTHON").expect("LIFEBOAT_TEST_PYTHON is not set: run scripts/setup test");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/rescue/rescue.py");
    Program::at(Path::new(&python), home.path()).env("PYTHONDONTWRITEBYTECODE", "1").arg(script).arg(repository)
}

#[derive(Debug, PartialEq, Eq)]
enum Node {
    Directory(u32),
    File(u32, Vec<u8>),
    Link(PathBuf),
}

/// All that is below a directory, and itself under the empty path; links are not followed.
fn tree(root: &Path) -> BTreeMap<PathBuf, Node> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
        let meta = fs::symlink_metadata(&full).unwrap();
        let mode = meta.permissions().mode() & 0o7777;
        let node = if meta.is_symlink() {
            Node::Link(fs::read_link(&full).unwrap())
        } else if meta.is_dir() {
            waiting.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
            Node::Directory(mode)
        } else {
            Node::File(mode, fs::read(&full).unwrap())
        };
        found.insert(path, node);
    }
    found
}

/// Fails with the paths that differ; the bytes would be megabytes.
#[track_caller]
fn assert_same(rescued: &BTreeMap<PathBuf, Node>, restored: &BTreeMap<PathBuf, Node>) {
    let paths: std::collections::BTreeSet<&PathBuf> = rescued.keys().chain(restored.keys()).collect();
    let differ: Vec<String> = paths
        .into_iter()
        .filter(|path| rescued.get(*path) != restored.get(*path))
        .map(|path| {
            let brief = |node: Option<&Node>| match node {
                Some(Node::File(mode, bytes)) => format!("file {mode:o} of {} bytes", bytes.len()),
                Some(other) => format!("{other:?}"),
                None => "nothing".to_owned(),
            };
            format!("{}: rescued {}, restored {}", path.display(), brief(rescued.get(path)), brief(restored.get(path)))
        })
        .collect();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// What `lifeboat restore` writes, without what a rescue does not add: a rescue has the cluster's own `postgresql.auto.conf`.
fn as_rescued(mut tree: BTreeMap<PathBuf, Node>) -> BTreeMap<PathBuf, Node> {
    assert!(tree.remove(Path::new("recovery.signal")).is_some());
    let Some(Node::File(_, settings)) = tree.get_mut(Path::new("postgresql.auto.conf")) else { panic!("no postgresql.auto.conf") };
    let added = settings.windows(3).rposition(|window| window == b"\n# ").expect("lifeboat says what it appends");
    settings.truncate(added + 1);
    tree
}

/// Moves a restored directory out of the way, so that a rescue can write to the very same place.
fn set_aside(path: &Path) -> PathBuf {
    let aside = path.with_extension("lifeboat");
    fs::rename(path, &aside).unwrap();
    aside
}

/// Changes a repository's file and says how to undo it.
fn damaged(path: &Path, damage: impl FnOnce(&mut Vec<u8>)) -> Box<dyn FnOnce()> {
    let good = fs::read(path).unwrap();
    let mut bad = good.clone();
    damage(&mut bad);
    assert_ne!(good, bad);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bad).unwrap();
    let path = path.to_owned();
    Box::new(move || fs::write(path, good).unwrap())
}

/// Starts PostgreSQL on a rescued tree, as the README of rescue.py says.
fn start(data: &Path, more: &[&Path], version: Postgres) -> Cluster {
    for path in std::iter::once(&data).chain(more) {
        Owner::current().own_tree(path);
    }
    let mut verify = std::process::Command::new(version.bin("pg_verifybackup"));
    expect_success(Owner::current().run(verify.args(["--no-parse-wal", "--quiet"]).arg(data).current_dir("/")));
    restored_cluster(data, version).unwrap_or_else(|failure| panic!("{failure}"))
}

#[track_caller]
fn assert_no_traceback(output: &Output) {
    assert!(!output.stderr.contains("Traceback"), "{output}");
}

#[test]
fn a_local_backup_with_tablespace_and_artifacts_comes_back_the_same() {
    let cluster = Cluster::builder(Postgres::V16).start();
    cluster.create_tablespace("aside");
    orchestrator::install(&cluster, 30);
    let source = temp_dir();
    let artifacts = orchestrator::write_artifacts(source.path(), 40, 3);
    orchestrator::record(&cluster, &artifacts);
    cluster.psql("CREATE TABLE far (n int) TABLESPACE aside; INSERT INTO far SELECT generate_series(1, 5000)");
    // A file of more than one extent, one with holes, and empty ones (the fixture's) are in every cluster after this.
    cluster.psql("CREATE TABLE big AS SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 2000) i");
    let oid = cluster.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'aside'");
    let taken = Taken::backup(&cluster, Some(source.path()), &["--copy", "local"], &[("PGDATA", cluster.data_directory())]);
    let id = taken.id();

    let listed = taken.rescue("list").run().success();
    assert!(listed.stdout.contains(&id) && listed.stdout.contains("40 artifacts"), "{listed}");
    let shown = taken.rescue("show").run().success();
    assert!(shown.stdout.contains("signature: valid") && shown.stdout.contains("copy"), "{shown}");
    taken.rescue("check").run().success();

    let target = temp_dir();
    let (data, aside, files) = (target.path().join("data"), target.path().join("aside"), target.path().join("files"));
    let restore = taken.lifeboat().args(["restore", &id, "--pgdata"]).arg(&data).arg("--artifacts").arg(&files);
    restore.arg("--tablespace").arg(format!("aside={}", aside.display())).run().success();
    let [restored_data, restored_aside, restored_files] = [&data, &aside, &files].map(|path| tree(&set_aside(path)));
    taken.rescue_to("restore", &data).arg("--tablespace").arg(format!("{oid}={}", aside.display())).run().success();
    taken.rescue_to("artifacts", &files).run().success();
    assert_same(&tree(&data), &as_rescued(restored_data));
    assert_same(&tree(&aside), &restored_aside);
    assert_same(&tree(&files), &restored_files);
    for artifact in &artifacts {
        let times = [&files, &files.with_extension("lifeboat")].map(|root| fs::metadata(root.join(&artifact.name)).unwrap());
        let [rescued, restored] = times.map(|meta| (meta.mtime(), meta.mtime_nsec()));
        assert_eq!(rescued, restored, "{}", artifact.name);
    }

    refusals(&taken, &target);

    let rescued = start(&data, &[&aside], Postgres::V16);
    assert_eq!(rescued.psql("SELECT sum(n) FROM far"), "12502500");
    assert_eq!(orchestrator::referenced(&rescued).len(), 40);
    drop(rescued);

    // Without a place of its own the tablespace stands in place, which PostgreSQL has to be told is meant.
    let in_place = target.path().join("in-place");
    taken.rescue_to("restore", &in_place).run().success();
    fs::write(in_place.join("postgresql.auto.conf"), "allow_in_place_tablespaces = on\n").unwrap();
    Owner::current().own_tree(&in_place);
    let rescued = restored_cluster(&in_place, Postgres::V16).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(rescued.psql("SELECT sum(n) FROM far"), "12502500");
}

/// Damage, a wrong identity and a newer format each end with the code that lifeboat has for them.
fn refusals(taken: &Taken, target: &TempDir) {
    let repository = taken.repository();
    let manifest = taken.manifest();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let pack = text(&manifest["packs"][0]["sha256"]);
    let run = text(&manifest["artifacts"]["runs"][0]["sha256"]);
    let mut count = 0;
    let mut next = || {
        count += 1;
        target.path().join(format!("refused-{count}"))
    };
    let id = taken.id();
    let verified = |code| {
        taken.lifeboat().args(["verify", &id]).run().expect_code(code);
    };
    for object in [
        format!("packs/{}/{pack}", &pack[..2]),
        format!("{id}/files/0"),
        format!("{id}/backup_manifest"),
        format!("{id}/manifest.json"),
        format!("artifacts/catalog/{run}"),
    ] {
        let undo = damaged(&repository.join(&object), |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
        let command = if object.starts_with("artifacts") { "artifacts" } else { "restore" };
        let to = next();
        for output in [taken.rescue("check").run(), taken.rescue_to(command, &to).run()] {
            assert_no_traceback(&output);
            output.expect_code(21);
        }
        assert!(!to.join("global/pg_control").exists(), "{object}");
        verified(21);
        undo();
    }

    let other = target.path().join("other-keys");
    Program::new(&taken.home).args(["key", "generate", "--out"]).arg(&other).run().success();
    for command in ["restore", "artifacts"] {
        let to = next();
        taken.rescue(command).arg("--identity").arg(other.join("identity.txt")).arg("--to").arg(&to).run().expect_code(12);
        let to = next();
        let other_key = rescue(&taken.home, &repository).args([command, "latest", "--key"]).arg(other.join("signing.pub"));
        other_key.arg("--identity").arg(taken.key("identity.txt")).arg("--to").arg(&to).run().expect_code(21);
        assert!(!to.exists());
    }
    let newer = |object: &str, from: &str, to: &str, code: i32| {
        let undo = damaged(&repository.join(object), |bytes| {
            *bytes = String::from_utf8(bytes.clone()).unwrap().replacen(from, to, 1).into_bytes();
        });
        taken.rescue("check").run().expect_code(13);
        verified(code);
        undo();
    };
    newer("lifeboat.json", "\"version\": 1", "\"version\": 2", 13);
    // A reader may believe the number before it looks at the signature. lifeboat looks first whether the signature can be read: one that
    // can, and is over other bytes, says that the number is a lie.
    newer(&format!("{id}/manifest.json"), "\"format\": 1", "\"format\": 2", 21);
    taken.rescue("check").run().success();
    verified(0);
}

#[test]
fn a_stream_backup_comes_back_the_same() {
    let cluster = Cluster::builder(Postgres::V18).start();
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 100000) n");
    let taken = Taken::backup(&cluster, None, &["--copy", "stream"], &[]);
    assert_eq!(taken.manifest()["postgres"]["copy"], "stream");
    taken.rescue("check").run().success();
    let target = temp_dir();
    let data = target.path().join("data");
    taken.lifeboat().args(["restore", "latest", "--pgdata"]).arg(&data).run().success();
    let restored = tree(&set_aside(&data));
    taken.rescue_to("restore", &data).run().success();
    assert_same(&tree(&data), &as_rescued(restored));
    assert_eq!(start(&data, &[], Postgres::V18).psql("SELECT count(*) FROM t"), "100000");
}

#[test]
fn a_dump_comes_back_as_pg_dump_wrote_it() {
    let cluster = Cluster::builder(Postgres::V15).start();
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) n; CREATE ROLE someone");
    let oid = cluster.psql("SELECT oid FROM pg_database WHERE datname = 'postgres'");
    let taken = Taken::backup(&cluster, None, &["--copy", "logical"], &[]);
    assert_eq!(taken.manifest()["postgres"]["copy"], "logical");
    taken.rescue("check").run().success();
    let target = temp_dir();
    let dump = target.path().join("dump");
    taken.rescue_to("restore", &dump).run().success();
    assert!(fs::read_to_string(dump.join("globals.sql")).unwrap().contains("CREATE ROLE someone"));
    let databases: serde_json::Value = serde_json::from_slice(&fs::read(dump.join("databases.json")).unwrap()).unwrap();
    assert!(databases["databases"].as_array().unwrap().iter().any(|database| database["name"] == "postgres"));
    assert!(!dump.join("pg_wal").exists(), "a dump is no data directory");
    let fresh = Cluster::builder(Postgres::V15).start();
    expect_success(fresh.program("pg_restore").args(["--exit-on-error", "--dbname", "postgres"]).arg(dump.join(oid)));
    assert_eq!(fresh.psql("SELECT sum(n) FROM t"), "500500");
}

/// With configuration outside the data directory, and the rest of an earlier restore of the same inside it: both would stand at
/// `lifeboat-outside/…`, and a file table with a path twice is one that nobody can read.
#[test]
fn a_plain_backup_with_configuration_outside_comes_back_the_same() {
    let outside = temp_dir();
    let (hba, access) = (outside.path().join("pg_hba.conf"), "local all all trust\nlocal replication all trust\n");
    fs::write(&hba, access).unwrap();
    Owner::current().own_tree(outside.path());
    let cluster = Cluster::builder(Postgres::V15).config("hba_file", hba.to_str().unwrap()).start();
    let leftover = cluster.data_directory().join("lifeboat-outside").join(hba.strip_prefix("/").unwrap());
    fs::create_dir_all(leftover.parent().unwrap()).unwrap();
    fs::write(&leftover, "local all all reject\n").unwrap();
    fs::write(cluster.data_directory().join("lifeboat-outside/kept"), "kept").unwrap();
    Owner::current().own_tree(&cluster.data_directory().join("lifeboat-outside"));
    let settings = outside.path().join("lifeboat.toml");
    fs::write(&settings, "[encryption]\nnone = \"I accept plain backups\"\n").unwrap();
    let taken =
        Taken::backup(&cluster, None, &["--copy", "local"], &[("PGDATA", cluster.data_directory()), ("LIFEBOAT_CONFIG", &settings)]);
    assert_eq!(taken.manifest()["encryption"]["suite"], "none");
    taken.rescue("check").run().success();
    let target = temp_dir();
    let data = target.path().join("data");
    taken.lifeboat().env("LIFEBOAT_CONFIG", &settings).args(["restore", "latest", "--pgdata"]).arg(&data).run().success();
    let restored = tree(&set_aside(&data));
    let rescued = taken.rescue("restore").arg("--to").arg(&data).run().success();
    assert!(rescued.stderr.contains(&format!("stood at {}", hba.display())), "{rescued}");
    assert_same(&tree(&data), &as_rescued(restored));
    let found = fs::read_to_string(data.join("lifeboat-outside").join(hba.strip_prefix("/").unwrap())).unwrap();
    assert_eq!(found, access, "what the server used, not what was left over");
    assert_eq!(fs::read_to_string(data.join("lifeboat-outside/kept")).unwrap(), "kept");
    let packs = taken.manifest()["packs"][0]["sha256"].as_str().unwrap().to_owned();
    let undo = damaged(&taken.repository().join(format!("packs/{}/{packs}", &packs[..2])), |bytes| bytes[60] ^= 1);
    taken.rescue("check").run().expect_code(21);
    undo();
}

/// The repository of format 1 that was written once; see `testdata/README.md`.
fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/repository-v1").join(path)
}

const GOLDEN_BACKUPS: [&str; 2] = ["golden-backup-20261121T220049Z", "golden-backup-20261121T220052Z"];

/// lifeboat on the golden repository, trusting its key.
fn on_golden(home: &TempDir) -> Program {
    let settings = home.path().join("golden.toml");
    fs::write(&settings, format!("[trust]\nkeys = [{:?}]\n", golden("keys/signing.pub"))).unwrap();
    Program::new(home).env("LIFEBOAT_CONFIG", settings).arg("--repository").arg(golden("repository"))
}

/// Name and digest of every artifact of the second backup.
fn golden_artifacts() -> Vec<(String, String)> {
    let text = fs::read_to_string(golden("artifacts.sha256")).unwrap();
    text.lines().map(|line| line.split_once("  ").expect("as sha256sum prints it")).map(|(d, n)| (n.to_owned(), d.to_owned())).collect()
}

#[track_caller]
fn assert_golden_artifacts(directory: &Path) {
    let expected = golden_artifacts();
    let digests = orchestrator::sha256sum(directory, expected.iter().map(|(name, _)| name.as_str()));
    for ((name, expected), found) in expected.iter().zip(&digests) {
        assert_eq!(expected, found, "{name}");
    }
    assert_eq!(tree(directory).values().filter(|node| matches!(node, Node::File(..))).count(), expected.len());
}

#[test]
fn a_repository_of_format_1_is_read_by_lifeboat() {
    let home = temp_dir();
    let listed = on_golden(&home).args(["list", "--json"]).run().success();
    for id in GOLDEN_BACKUPS {
        assert!(listed.json().to_string().contains(id), "{listed}");
    }
    let verified = on_golden(&home).args(["verify", "--all", "--json", "--identity"]).arg(golden("keys/identity.txt")).run().success();
    let reports = verified.json()["reports"].clone();
    assert_eq!(reports[0]["depth"], "opened", "{verified}");
    assert_eq!([&reports[0]["artifacts"], &reports[1]["artifacts"]], [10, 10], "{verified}");
    // Of the first backup: that of the same name was changed since.
    let old = on_golden(&home).args(["artifact", "list", "--json", "--backup", GOLDEN_BACKUPS[0]]).run().success();
    assert!(old.json().to_string().contains("builds/17/old"), "{old}");

    let target = temp_dir();
    let (data, artifacts) = (target.path().join("data"), target.path().join("artifacts"));
    let restore = |backup| on_golden(&home).arg("restore").arg(backup).arg("--identity").arg(golden("keys/identity.txt"));
    restore(GOLDEN_BACKUPS[1]).arg("--artifacts").arg(&artifacts).run().success();
    assert_golden_artifacts(&artifacts);
    let bin = Postgres::V15.bin_directory();
    restore(GOLDEN_BACKUPS[0]).arg("--pgdata").arg(&data).arg("--bin-directory").arg(bin).run().success();
    let restored = Cluster::start_existing(&data, Postgres::V15).unwrap_or_else(|failure| panic!("{failure}"));
    let count = "SELECT count(*), sum(id), (SELECT count(*) FROM nothing) FROM builds";
    // By the server's owner: initdb made the access rules, and they say peer.
    let answer = restored.run_as_owner(restored.program("psql").args(["-X", "-A", "-t", "-c", count]));
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "2000|2001000|0", "{answer:?}");
}

#[test]
fn a_repository_of_format_1_is_read_by_rescue() {
    let home = temp_dir();
    let run = |command: &str| rescue(&home, &golden("repository")).arg(command);
    let listed = run("list").run().success();
    assert_eq!(GOLDEN_BACKUPS.map(|id| listed.stdout.contains(id)), [true, true], "{listed}");
    let trusting = |command: &str, backup: &str| run(command).arg(backup).arg("--key").arg(golden("keys/signing.pub"));
    for id in GOLDEN_BACKUPS {
        trusting("check", id).run().success();
    }
    let target = temp_dir();
    let (dump, artifacts) = (target.path().join("dump"), target.path().join("artifacts"));
    let opening = |command: &str, backup, to: &Path| {
        trusting(command, backup).arg("--identity").arg(golden("keys/identity.txt")).arg("--to").arg(to).run().success()
    };
    opening("artifacts", GOLDEN_BACKUPS[1], &artifacts);
    assert_golden_artifacts(&artifacts);
    opening("restore", GOLDEN_BACKUPS[0], &dump);
    let fresh = Cluster::builder(Postgres::V15).start();
    fresh.psql("CREATE ROLE orchestrator");
    expect_success(fresh.program("pg_restore").args(["--exit-on-error", "--dbname", "postgres"]).arg(dump.join("5")));
    assert_eq!(fresh.psql("SELECT sum(id) FROM builds"), "2001000");
    // The host's own identity opens file tables, and no data.
    let host = trusting("restore", GOLDEN_BACKUPS[0]).arg("--identity").arg(golden("keys/host-identity.txt"));
    host.arg("--to").arg(target.path().join("host")).run().expect_code(12);
}

/// Whether the servers' user can reach a path.
fn is_open(path: &Path) -> bool {
    path.ancestors().all(|path| fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

/// A shell command that runs rescue.py for the servers' user: it, its packages, and the interpreter where that stands in a closed
/// directory, are copied.
fn rescue_for_servers(home: &TempDir) -> String {
    let python = setting("LIFEBOAT_TEST_PYTHON").expect("LIFEBOAT_TEST_PYTHON is not set: run scripts/setup test");
    let ask =
        "import sys, sysconfig as s; print(sys._base_executable, s.get_path('platlib'), sys.base_prefix, s.get_path('stdlib'), sep='\\n')";
    let told = expect_success(std::process::Command::new(python).args(["-c", ask]));
    let told = String::from_utf8(told.stdout).unwrap();
    let [interpreter, packages, prefix, library] = told.lines().collect::<Vec<_>>().try_into().expect("four lines");
    let place = home.path().join("rescue");
    fs::create_dir(&place).unwrap();
    let copy = |what: &dyn AsRef<std::ffi::OsStr>| {
        expect_success(std::process::Command::new("cp").args(["-R", "-L", "-p"]).arg(what).arg(&place));
    };
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/rescue/rescue.py"));
    copy(&packages);
    let real = fs::canonicalize(interpreter).unwrap();
    let mut command = format!("PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={0}/site-packages {interpreter} {0}/rescue.py", place.display());
    if rustix::process::geteuid().is_root() && !is_open(&real) {
        fs::create_dir_all(place.join("bin")).unwrap();
        expect_success(std::process::Command::new("cp").arg(&real).arg(place.join("bin/python")));
        let library = Path::new(library).strip_prefix(prefix).expect("the library is below its prefix");
        let tar = "mkdir \"$2\"; cd \"$1\"; tar -cf - --exclude=site-packages --exclude=test --exclude='config-*' \
                   \"$3\" $(ls -d lib/libpython*.so* 2>/dev/null) | tar -xf - -C \"$2\"";
        expect_success(std::process::Command::new("sh").args(["-ec", tar, "sh", prefix]).arg(place.join("python")).arg(library));
        command = format!(
            "PYTHONHOME={0}/python LD_LIBRARY_PATH={0}/python/lib {1}",
            place.display(),
            command.replace(interpreter, &format!("{}/bin/python", place.display()))
        );
    }
    Owner::current().own_tree(&place);
    command
}

#[test]
fn c080_a_server_recovers_along_the_archive_with_rescue_alone() {
    let home = temp_dir();
    let at = |name: &str| home.path().join(name);
    let lifeboat = || Program::as_owner(&home);
    fs::create_dir(at("repository")).unwrap();
    Owner::current().own(&at("repository"));
    lifeboat().arg("--repository").arg(at("repository")).args(["init", "--write-config", "lifeboat.toml"]).run().success();
    let push = format!(
        "HOME={0} LIFEBOAT_SPOOL={0}/spool {1} --config {0}/lifeboat.toml wal push %p",
        home.path().display(),
        reachable_binary().display()
    );
    let builder = Cluster::builder(Postgres::V16).wal_segment_size(1).config("archive_mode", "on").config("archive_command", &push);
    let mut source = builder.start();
    source.psql("CREATE TABLE beat (n serial, what text)");
    let system_id = source.psql("SELECT system_identifier FROM pg_control_system()");
    let base = |name: &str| {
        let output = source.run_as_owner(source.program("pg_basebackup").args(["-c", "fast", "-X", "none", "-D"]).arg(at(name)));
        assert!(output.status.success(), "{output:?}");
        at(name)
    };
    let copies = [base("whole"), base("holed")];
    let mut names = Vec::new();
    for beat in 0..6 {
        source.psql(&format!("INSERT INTO beat (what) SELECT repeat(md5(i::text), 10) FROM generate_series({beat}, 500) i"));
        names.push(source.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())"));
        source.psql("SELECT pg_switch_wal()");
    }
    let archived = at("repository").join("wal").join(&system_id).join("00000001").join(names.last().unwrap());
    let begun = std::time::Instant::now();
    while !archived.is_file() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(120), "{}", source.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let question = "SELECT count(*), sum(n), md5(string_agg(what, ',' ORDER BY n)) FROM beat";
    let expected = source.psql(question);
    source.stop(Stop::Immediate);

    let listed = rescue(&home, &at("repository")).args(["wal", "list", "--key"]).arg(at(".config/lifeboat/signing.pub")).run().success();
    assert!(listed.stdout.contains(&system_id) && !listed.stdout.contains("GAP"), "{listed}");
    // As the README says: whatever keeps Python from running must not be the end of the archive either.
    let keys = at(".config/lifeboat");
    let fetch = format!(
        "{} {} wal fetch --ended 77 --key {2}/signing.pub --identity {2}/identity.txt %f %p; \
         case $? in 0) ;; 77) exit 1 ;; *) exit 200 ;; esac",
        rescue_for_servers(&home),
        at("repository").display(),
        keys.display()
    );
    for data in &copies {
        fs::write(data.join("recovery.signal"), "").unwrap();
        fs::write(data.join("postgresql.auto.conf"), format!("restore_command = '{fetch}'\narchive_mode = off\n")).unwrap();
        Owner::current().own_tree(data);
    }
    let recovered = restored_cluster(&copies[0], Postgres::V16).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(recovered.psql(question), expected);
    assert_eq!(recovered.psql("SELECT timeline_id FROM pg_control_checkpoint()"), "2");
    drop(recovered);

    // A hole stops the server, which goes on where it was when the hole is mended.
    let object = archived.with_file_name(&names[2]);
    fs::rename(&object, at("aside")).unwrap();
    let failure = restored_cluster(&copies[1], Postgres::V16).expect_err("the server took a hole for the end of the archive");
    assert!(failure.log.contains("WAL is missing in between") && failure.log.contains("FATAL"), "{failure}");
    assert!(!failure.log.contains("archive recovery complete"), "{failure}");
    let listed = rescue(&home, &at("repository")).args(["wal", "list"]).run().success();
    assert!(listed.stdout.contains("GAP"), "{listed}");
    fs::rename(at("aside"), &object).unwrap();
    let recovered = restored_cluster(&copies[1], Postgres::V16).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(recovered.psql(question), expected);
}

#[test]
fn wal_of_format_1_is_read_by_lifeboat_and_by_rescue() {
    let home = temp_dir();
    let text = fs::read_to_string(golden("wal.sha256")).unwrap();
    let expected: Vec<(&str, &str)> = text.lines().map(|line| line.split_once("  ").expect("as sha256sum prints it")).collect();
    assert_eq!(expected.len(), 7);
    let archive = rescue(&home, &golden("repository")).args(["wal", "list", "--key"]).arg(golden("keys/signing.pub")).run().success();
    for part in ["3 segments, 000000010000000000000006 to", "open 000000010000000000000009", "history: left timeline 1 at 0/9000A0"] {
        assert!(archive.stdout.contains(part), "{archive}");
    }
    let (key, identity) = (golden("keys/signing.pub"), golden("keys/identity.txt"));
    let [by_rescue, by_lifeboat] = ["rescue", "lifeboat"].map(|name| home.path().join(name));
    for directory in [&by_rescue, &by_lifeboat] {
        fs::create_dir(directory).unwrap();
    }
    for (_, name) in &expected {
        let rescue = rescue(&home, &golden("repository")).args(["wal", "get", name, "--key"]).arg(&key).arg("--identity").arg(&identity);
        rescue.arg("--out").arg(by_rescue.join(name)).run().success();
    }
    let repository =
        Repository::open(store::open(golden("repository").to_str().unwrap(), &store::StoreOptions::default(), false).unwrap()).unwrap();
    let trust = Trust::from_pems([fs::read_to_string(&key).unwrap().as_str()]).unwrap();
    let [system_id] = wal::clusters(&repository).unwrap().try_into().expect("one cluster");
    let segment_size = wal::cluster(&repository, system_id).unwrap().expect("it is described").segment_size;
    let cluster = wal::Cluster { system_id, segment_size };
    let reader = WalReader::new(&repository, cluster, &trust, Identities::parse(&fs::read_to_string(&identity).unwrap()).unwrap());
    for (file, _) in wal::list(&repository, cluster).unwrap() {
        reader.read(file, &mut fs::File::create(by_lifeboat.join(file.file_name(segment_size))).unwrap()).unwrap();
    }
    for directory in [&by_rescue, &by_lifeboat] {
        let found = orchestrator::sha256sum(directory, expected.iter().map(|(_, name)| *name));
        assert_eq!(found, expected.iter().map(|(digest, _)| (*digest).to_owned()).collect::<Vec<_>>(), "{}", directory.display());
    }
    // The segment in which the first timeline was left, and the end of both.
    let settings = home.path().join("golden.toml");
    fs::write(&settings, format!("[trust]\nkeys = [{key:?}]\n[encryption]\nidentity_file = {identity:?}\n")).unwrap();
    for (name, code) in [("000000010000000000000009", 0), ("00000003.history", 1), ("000000010000000000000005", 200)] {
        let ask = rescue(&home, &golden("repository")).args(["wal", "fetch", name]).arg(by_rescue.join("RECOVERYXLOG"));
        ask.arg("--key").arg(&key).arg("--identity").arg(&identity).run().expect_code(code);
        let lifeboat = Program::new(&home).env("LIFEBOAT_CONFIG", &settings).arg("--repository").arg(golden("repository"));
        let system_id = system_id.to_string();
        lifeboat.args(["wal", "fetch", "--system-id", &system_id, name]).arg(by_lifeboat.join("RECOVERYXLOG")).run().expect_code(code);
    }
    assert!(fs::read(by_rescue.join("RECOVERYXLOG")).unwrap() == fs::read(by_lifeboat.join("RECOVERYXLOG")).unwrap());
}
