//! What goes wrong, as whoever runs the program sees it: one line, a hint that names a command, the exit code, and nothing half-done
//! that a later run would take for whole.
//!
//! Damage to a repository is in `verify.rs`; the scripts are in `scripts.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::cluster::{Cluster, Owner, Postgres, restored_cluster, temp_dir};
use crate::orchestrator::Random;
use crate::program::{Output, Program};

/// Whether something belongs to the audit log: what was refused, or failed, leaves a record.
fn is_of_audit(path: &Path) -> bool {
    path.components().any(|part| [Some("audit"), Some(".lifeboat-tmp")].contains(&part.as_os_str().to_str()))
}

/// Everything below a directory but the audit log: names, modes, times of change and bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)>);

impl Tree {
    /// What is there now.
    pub(crate) fn of(directory: &Path) -> Tree {
        let mut tree = BTreeMap::new();
        walk(directory, &mut |path, meta| {
            // That it was tried is noted, in the audit and among the runs of the host.
            let is_of_runs = path.to_string_lossy().contains("/.local/state/lifeboat/runs");
            if is_of_audit(path)
                || is_of_runs
                || path.ends_with(".local")
                || path.ends_with(".local/state")
                || path.ends_with(".local/state/lifeboat")
            {
                return;
            }
            let bytes = if meta.is_symlink() {
                fs::read_link(path).unwrap().into_os_string().into_encoded_bytes()
            } else if meta.is_file() {
                fs::read(path).unwrap()
            } else {
                Vec::new()
            };
            // The first record makes directories in these; what else appeared in them shows by its name.
            let gets_audit = path == directory || path.ends_with("repository");
            let (seconds, nanoseconds) = if gets_audit { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
            tree.insert(path.to_owned(), (meta.mode(), seconds, nanoseconds, bytes));
        });
        Tree(tree)
    }

    /// Panics, naming them, if anything was made, removed or changed since.
    #[track_caller]
    pub(crate) fn assert_unchanged(&self, directory: &Path) {
        let now = Tree::of(directory);
        let paths: std::collections::BTreeSet<_> = self.0.keys().chain(now.0.keys()).collect();
        let changed: Vec<_> = paths.into_iter().filter(|path| self.0.get(*path) != now.0.get(*path)).collect();
        assert!(changed.is_empty(), "changed: {changed:?}");
    }
}

/// Calls `visit` with a directory and everything below it.
pub(crate) fn walk(path: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata)) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    visit(path, &meta);
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            walk(&entry.unwrap().path(), visit);
        }
    }
}

/// Panics unless this is the exit code and stderr has exactly one error, of one line, and one hint that names a command. Returns both.
#[track_caller]
pub(crate) fn one_error(output: &Output, code: i32) -> String {
    assert!(output.code == Some(code), "expected exit code {code}\n{output}");
    let with = |prefix: &str| output.stderr.lines().filter(|line| line.starts_with(prefix)).collect::<Vec<_>>();
    let (errors, hints) = (with("error: "), with("hint: "));
    assert!(errors.len() == 1 && hints.len() == 1, "expected one error and one hint\n{output}");
    let last: Vec<_> = output.stderr.lines().rev().take(2).collect();
    assert_eq!(last, [hints[0], errors[0]], "they stand last\n{output}");
    let commands = ["lifeboat", "backup.sh", "restore.sh", "psql", "mkdir", "cargo"];
    assert!(commands.iter().any(|command| hints[0].contains(command)) || hints[0].contains("set "), "the hint names no command\n{output}");
    assert_plain(errors[0], output);
    format!("{}\n{}", errors[0], hints[0])
}

/// What is for people has no Rust in it, and no cause twice.
#[track_caller]
fn assert_plain(line: &str, output: &Output) {
    for rust in ["Os {", "Err(", "Ok(", "Some(", "None)", "kind: ", "Error {", "::", "panicked"] {
        assert!(!line.contains(rust), "{rust:?} is for programmers\n{output}");
    }
    let causes: Vec<&str> = line.split(": ").filter(|cause| cause.len() > 12).collect();
    let mut once = causes.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(causes.len(), once.len(), "a cause is named twice\n{output}");
    assert!(!line.ends_with('.'), "{output}");
}

/// Runs it twice, for people and with `--json`, and panics unless both fail with this exit code as they should. Returns error and hint.
#[track_caller]
fn fails(code: i32, run: impl Fn() -> Program) -> String {
    let output = run().run();
    let text = one_error(&output, code);
    assert!(output.stdout.is_empty(), "{output}");
    let output = run().arg("--json").run();
    one_error(&output, code);
    let document = output.json();
    assert_eq!(document["error"]["exit_code"], code, "{output}");
    let message = document["error"]["message"].as_str().unwrap_or_else(|| panic!("no message\n{output}"));
    assert!(output.stderr.contains(message) && document["error"]["hint"].is_string(), "{output}");
    text
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
}

/// A repository with one backup of a few artifacts, and the keys for it.
struct World {
    home: TempDir,
    as_owner: bool,
}

impl World {
    fn new() -> World {
        World::made(false)
    }

    /// Run by an unprivileged user.
    fn owned() -> World {
        World::made(true)
    }

    fn made(as_owner: bool) -> World {
        let world = World { home: temp_dir(), as_owner };
        fs::create_dir_all(world.path("artifacts/logs")).unwrap();
        fs::write(world.path("artifacts/logs/one.log"), "one\n".repeat(100)).unwrap();
        fs::write(world.path("artifacts/two.bin"), Random(2).bytes(3000)).unwrap();
        if as_owner {
            Owner::current().own_tree(&world.path("artifacts"));
        }
        world.lifeboat().args(["init"]).run().success();
        world.lifeboat().args(["backup"]).run().success();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn bare(&self) -> Program {
        if self.as_owner { Program::as_owner(&self.home) } else { Program::new(&self.home) }
    }

    fn lifeboat(&self) -> Program {
        self.bare().env("LIFEBOAT_REPOSITORY", self.path("repository")).env("LIFEBOAT_ARTIFACTS", self.path("artifacts"))
    }

    /// lifeboat with a configuration file beside the keys.
    fn configured(&self, text: &str) -> Program {
        let file = self.path("odd.toml");
        fs::write(&file, text).unwrap();
        self.lifeboat().arg("--config").arg(file)
    }

    /// Ids of what counts as a backup.
    fn backups(&self) -> Vec<String> {
        backups(&self.path("repository"))
    }

    fn keys(&self, name: &str) -> PathBuf {
        self.path(".config/lifeboat").join(name)
    }
}

/// Ids of directories with a manifest.
fn backups(repository: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(repository)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().join("manifest.json").is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_command_line_is_checked_before_anything_else() {
    let world = World::new();
    let before = Tree::of(world.home.path());
    for (arguments, word) in [
        (&["backup", "--no-such-flag"][..], "--no-such-flag"),
        (&["--no-such-flag", "list"], "--no-such-flag"),
        (&["bakcup"], "backup"),
        (&["backup", "--output"], "--output"),
        (&["backup", "--type", "half"], "half"),
        (&["backup", "--copy", "magic"], "magic"),
        (&["backup", "--record-only"], "--include-postgres"),
        (&["backup", "--include-postgres", "--exclude-postgres"], "--exclude-postgres"),
        (&["backup", "surplus"], "surplus"),
        (&["restore"], "<BACKUP>"),
        (&["restore", "latest"], "--pgdata"),
        (&["restore", "latest", "--pgdata", "x", "--target-immediate", "--target-lsn", "0/1"], "--target"),
        (&["restore", "latest", "--pgdata", "x", "--target-time", "yesterday"], "RFC 3339"),
        (&["restore", "latest", "--pgdata", "x", "--target-time", "2024-03-15T12:00:00"], "RFC 3339"),
        (&["restore", "latest", "--pgdata", "x", "--target-lsn", "zz"], "zz"),
        (&["restore", "latest", "--pgdata", "x", "--tablespace", "x"], "NAME=DIR"),
        (&["verify"], "BACKUP"),
        (&["verify", "latest", "--all"], "--all"),
        (&["verify", "latest", "--sample", "0"], "0"),
        (&["verify", "latest", "--sample", "101"], "101"),
        (&["verify", "latest", "--sample", "NaN"], "NaN"),
        (&["verify", "latest", "--seed", "-1"], "-1"),
        (&["verify", "not an id"], "not an id"),
        (&["show", "../conductor-backup-20240315T120000Z"], "../"),
        (&["backup", "--name", "Ugly Name"], "Ugly Name"),
        (&["artifact", "get", "../../etc/passwd"], "etc/passwd"),
        (&["artifact", "list", "--versions"], "versions"),
        (&["--repository", "ftp://host/prefix", "list"], "s3"),
        (&["backup", "--output", "ftp://host/prefix"], "ftp"),
    ] {
        let text = fails(2, || world.lifeboat().args(arguments));
        says(&text, &[word]);
    }
    before.assert_unchanged(world.home.path());
    let output = world.lifeboat().run();
    assert!(output.code == Some(2) && output.stderr.contains("requires a subcommand"), "{output}");
}

#[test]
fn the_configuration_is_checked_and_its_lines_are_named() {
    let world = World::new();
    fs::write(world.path("odd.toml"), "").unwrap();
    let before = Tree::of(&world.path("repository"));
    for (text, words) in [
        ("name = 'x'\n\nnmae = 'y'\n", &["line 3", "nmae"][..]),
        ("[postgres]\npassword = 'hunter2'\n", &["line 2", "password"]),
        ("[postgres]\ncopy = 'magic'\n", &["line 2", "magic"]),
        ("[postgress]\n", &["line 1", "postgress"]),
        ("name = \n", &["line 1"]),
        ("name = 'unfinished\n", &["line 1"]),
        ("name = 7\n", &["line 1"]),
        ("name = 'Ugly Name'\n", &["Ugly Name"]),
        ("[limits]\nmemory = 'much'\n", &["much"]),
        ("[limits]\nmemory = '1MiB'\n", &["limits.memory"]),
        ("[limits]\nworkers = 0\n", &["limits.workers"]),
        ("[limits]\nworkers = -1\n", &["line 2"]),
        ("[limits]\nbandwidth = 'fast'\n", &["fast"]),
        ("[limits]\ncompression_level = 99\n", &["limits.compression_level"]),
        ("[encryption]\nnone = 'yes'\n", &["I accept plain backups"]),
        ("[encryption]\nrecipients = ['age1wrong']\n", &["age1wrong"]),
        ("[encryption]\nrecipients = []\n", &["recipient"]),
        ("[signing]\npassword = 'hunter2'\n", &["line 2", "command"]),
        ("[signing]\npassword = { text = 'hunter2' }\n", &["line 2", "command"]),
        ("[signing]\npassword = { file = 'hunter2', env = 'hunter2' }\n", &["line 2", "command"]),
        ("[signing]\npassword = 4242\n", &["line 2", "command"]),
        ("[signing]\npassword = { command = [] }\n", &["command"]),
        ("[[repository]]\nurl = '/a'\n[[repository]]\nurl = '/a'\n", &["two [[repository]]"]),
        ("[[repository]]\nurl = '/a'\nrequired = false\n", &["primary"]),
        ("[[repository]]\nurl = '/a'\nkept_by = 'nobody'\n", &["line 3"]),
    ] {
        let said = fails(2, || world.configured(text).arg("backup"));
        says(&said, words);
        assert!(!said.contains("hunter2") && !said.contains("4242"), "{said}");
    }
    let dsn = "[postgres]\ndsn = 'host=x password=hunter2 sslmod=off'\n";
    let said = fails(2, || world.configured(dsn).args(["backup", "--include-postgres"]));
    assert!(said.contains("sslmod") && !said.contains("hunter2"), "{said}");
    for file in ["missing.toml", "artifacts"] {
        let said = fails(2, || world.lifeboat().args(["--config", file, "list"]));
        says(&said, &[file]);
    }
    fs::write(world.path("bytes.toml"), b"name = '\xff'").unwrap();
    fails(2, || world.lifeboat().env("LIFEBOAT_CONFIG", "bytes.toml").arg("list"));
    before.assert_unchanged(&world.path("repository"));
    assert_eq!(world.backups().len(), 1);
}

#[test]
fn a_repository_that_is_not_there_is_told_from_one_that_is_damaged() {
    let world = World::new();
    fs::create_dir(world.path("empty")).unwrap();
    let commands: [&[&str]; 9] = [
        &["list"],
        &["show", "latest"],
        &["verify", "--all"],
        &["verify", "conductor-backup-20240315T120000Z"],
        &["restore", "latest", "--artifacts", "target"],
        &["restore", "latest", "--artifacts", "target", "--dry-run"],
        &["backup"],
        &["artifact", "list"],
        &["artifact", "sync", "artifacts"],
    ];
    let before = Tree::of(world.home.path());
    for place in ["nowhere", "empty", "no/such/place"] {
        for command in commands {
            let said = fails(10, || world.lifeboat().env("LIFEBOAT_REPOSITORY", place).args(command));
            says(&said, &[place, "lifeboat init"]);
        }
    }
    before.assert_unchanged(world.home.path());

    // A file where a repository should be is no repository either.
    for command in commands {
        let output = world.lifeboat().env("LIFEBOAT_REPOSITORY", "artifacts/two.bin").args(command).run();
        one_error(&output, 10);
    }
    before.assert_unchanged(world.home.path());
    // None named at all.
    says(&fails(2, || world.bare().arg("list")), &["--repository"]);

    let descriptor = world.path("repository/lifeboat.json");
    let whole = fs::read_to_string(&descriptor).unwrap();
    let too_new = whole.replace("\"version\": 1", "\"version\": 2");
    assert_ne!(whole, too_new);
    for (text, code) in [(too_new.as_str(), 13), ("", 21), ("{}", 21), (&whole[..whole.len() - 3], 21)] {
        fs::write(&descriptor, text).unwrap();
        let before = Tree::of(world.home.path());
        for command in commands {
            fails(code, || world.lifeboat().args(command));
        }
        before.assert_unchanged(world.home.path());
    }
}

#[test]
fn backups_that_are_not_there() {
    let world = World::new();
    let absent = "conductor-backup-20200101T000000Z";
    for command in [&["show", absent][..], &["verify", absent], &["restore", absent, "--artifacts", "target"]] {
        says(&fails(1, || world.lifeboat().args(command)), &[absent, "lifeboat list"]);
    }
    says(&fails(1, || world.lifeboat().args(["restore", "latest", "--pgdata", "target"])), &["lifeboat list"]);
    let id = world.backups().remove(0);
    says(&fails(1, || world.lifeboat().args(["restore", &id, "--pgdata", "target"])), &["no copy of a database"]);
    assert!(!world.path("target").exists());
    world.bare().args(["init", "--repository", "another"]).run().success();
    for command in [&["show", "latest"][..], &["verify", "latest"], &["restore", "latest", "--artifacts", "target"]] {
        fails(1, || world.bare().args(["--repository", "another"]).args(command));
    }
    // Nothing was verified: that is no pass.
    fails(3, || world.bare().args(["--repository", "another", "verify", "--all"]));
    assert!(world.bare().args(["--repository", "another", "list"]).run().success().stdout.starts_with("BACKUP"));
}

#[test]
fn a_format_that_is_too_new_is_told_as_such() {
    let world = World::new();
    let id = world.backups().remove(0);
    let signer = crate::verify::Forger::new();
    fs::write(world.path("trusted.pub"), signer.public_pem()).unwrap();
    let trusting = || world.configured("[trust]\nkeys = ['trusted.pub']\n");
    // Signed by somebody we trust, but in a format of tomorrow.
    signer.change_manifest(&world.path("repository"), &id, |text| text.replacen("\"format\": 1", "\"format\": 2", 1));
    for command in [&["verify", &id][..], &["verify", "--all"], &["show", &id], &["restore", &id, "--artifacts", "target"]] {
        says(&fails(13, || trusting().args(command)), &["lifeboat --version"]);
    }
    fails(13, || trusting().args(["restore", &id, "--artifacts", "target", "--dry-run"]));
    // Changed without a signature is damage, whatever number it says.
    let trust = || world.lifeboat();
    for command in [&["show", &id][..], &["restore", &id, "--artifacts", "target"]] {
        fails(21, || trust().args(command));
    }
    assert!(!world.path("target").exists());
}

#[test]
fn the_target_of_a_restore_is_never_touched_when_it_is_in_use() {
    let world = World::new();
    for (name, file) in [("full", "kept"), ("running", "postmaster.pid"), ("hidden", ".kept")] {
        fs::create_dir(world.path(name)).unwrap();
        fs::write(world.path(name).join(file), "mine").unwrap();
    }
    fs::write(world.path("a file"), "mine").unwrap();
    let before = Tree::of(world.home.path());
    for (target, word) in
        [("full", "not empty"), ("running", "postmaster.pid"), ("hidden", "not empty"), ("a file", "a file"), ("no/parent", "no")]
    {
        let said = fails(1, || world.lifeboat().args(["restore", "latest", "--artifacts", target]));
        says(&said, &[word, target]);
        fails(1, || world.lifeboat().args(["restore", "latest", "--dry-run", "--artifacts", target]));
    }
    before.assert_unchanged(world.home.path());
}

#[test]
fn keys_that_do_not_fit() {
    let world = World::new();
    let other = World::new();
    let id = world.backups().remove(0);
    let before = Tree::of(world.home.path());

    // Somebody else's identity opens nothing, and nothing is written before that is known.
    let as_other = |program: Program| program.env("LIFEBOAT_IDENTITY_FILE", other.keys("identity.txt"));
    says(&fails(12, || as_other(world.lifeboat()).args(["restore", &id, "--artifacts", "target"])), &["identity"]);
    let missing = |program: Program| program.env("LIFEBOAT_IDENTITY_FILE", "/no/such/identity");
    says(&fails(12, || missing(world.lifeboat()).args(["restore", &id, "--artifacts", "target"])), &["/no/such/identity"]);
    says(&fails(12, || missing(world.lifeboat()).args(["verify", &id])), &["/no/such/identity"]);
    before.assert_unchanged(world.home.path());
    says(&fails(12, || as_other(world.lifeboat()).args(["artifact", "get", "two.bin", "--output", "target"])), &["identity"]);
    assert!(!world.path("target").exists());
    fs::write(world.path("no identity"), "nothing\n").unwrap();
    let said = fails(2, || world.lifeboat().args(["restore", &id, "--artifacts", "target", "--identity", "no identity"]));
    says(&said, &["lifeboat key generate"]);

    // With no identity at all as well.
    let without = temp_dir();
    for name in ["signing.key", "signing.pub", "signing.password", "recipients.txt", "host-identity.txt"] {
        fs::create_dir_all(without.path().join(".config/lifeboat")).unwrap();
        fs::copy(world.keys(name), without.path().join(".config/lifeboat").join(name)).unwrap();
    }
    let blind = || Program::new(&without).env("LIFEBOAT_REPOSITORY", world.path("repository"));
    says(&fails(12, || blind().args(["restore", &id, "--artifacts", "target"])), &["--identity"]);
    assert!(!without.path().join("target").exists());

    // Nobody to trust.
    let nobody = temp_dir();
    let stranger = || Program::new(&nobody).env("LIFEBOAT_REPOSITORY", world.path("repository"));
    for command in [&["verify", &id][..], &["verify", "--all"], &["restore", &id, "--artifacts", "target"], &["artifact", "verify"]] {
        says(&fails(12, || stranger().args(command)), &["trust"]);
    }
    fails(12, || world.configured("[trust]\nkeys = ['/no/such/key.pub']\n").args(["verify", &id]));
    fails(12, || world.configured("[trust]\nkeys = ['artifacts/two.bin']\n").args(["verify", &id]));
    fails(12, || world.configured("[trust]\nkeys = []\n").args(["verify", &id]));
    // Somebody else.
    fails(21, || world.lifeboat().env("LIFEBOAT_CONFIG", trusting(&other)).args(["restore", &id, "--artifacts", "target"]));

    // What signs.
    let count = world.backups().len();
    fs::write(world.path("wrong password"), "hunter2-wrong\n").unwrap();
    for (password, word) in [
        ("{ file = 'wrong password' }", "password"),
        ("{ file = '/no/such/password' }", "/no/such/password"),
        ("{ env = 'NO_SUCH_VARIABLE' }", "NO_SUCH_VARIABLE"),
        ("{ env = 'WRONG' }", "password"),
        ("{ command = ['printf', 'hunter2-wrong'] }", "password"),
        ("{ command = ['false'] }", "false"),
        ("{ command = ['/no/such/program'] }", "/no/such/program"),
    ] {
        let text = format!("[signing]\npassword = {password}\n");
        let said = fails(12, || world.configured(&text).env("WRONG", "hunter2-wrong").arg("backup"));
        says(&said, &[word]);
        assert!(!said.contains("hunter2"), "{said}");
    }
    fs::write(world.path("not a key"), "nothing").unwrap();
    fails(12, || world.configured("[signing]\nkey_file = 'not a key'\n").arg("backup"));
    fails(12, || world.configured("[signing]\nkey_file = '/no/such/key'\n").arg("backup"));
    assert_eq!(world.backups().len(), count);
    world.lifeboat().args(["verify", "--all"]).run().success();
    assert!(!world.path("target").exists());
}

/// A configuration that trusts only the key of another world.
fn trusting(other: &World) -> PathBuf {
    let path = other.path("trusting.toml");
    fs::write(&path, format!("[trust]\nkeys = ['{}']\n", other.keys("signing.pub").display())).unwrap();
    path
}

/// Puts a lease for backups of another host into the repository, as one that was renewed just now; until when it is held.
fn hold_lease(world: &World, time: jiff::SignedDuration) -> String {
    let leases = world.path("repository/leases/backup");
    let newest = fs::read_dir(&leases).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    let mut lease: serde_json::Value = serde_json::from_slice(&fs::read(&newest).unwrap()).unwrap();
    let epoch = lease["epoch"].as_u64().unwrap() + 1;
    let until = (jiff::Timestamp::now() + time).to_string();
    for (member, value) in [
        ("epoch", epoch.into()),
        ("holder", "elsewhere:7:x".into()),
        ("host", "elsewhere".into()),
        ("released", false.into()),
        ("expires", until.as_str().into()),
    ] {
        lease[member] = value;
    }
    fs::write(leases.join(format!("{epoch:010}.json")), lease.to_string()).unwrap();
    until
}

/// Two minutes in which nothing is said look like a program that hangs.
#[test]
fn c117_a_lease_of_a_clock_that_is_ahead_is_not_watched_in_silence() {
    let world = World::new();
    hold_lease(&world, jiff::SignedDuration::from_hours(365 * 24));
    let mut backup = world.lifeboat().arg("backup").spawn();
    let said = || fs::read_to_string(world.path("stderr")).unwrap_or_default();
    wait_until(|| said().contains("watching for"));
    backup.kill().unwrap();
    backup.wait().unwrap();
    assert!(said().contains("warning: elsewhere:7:x holds the lease for backup until"), "{}", said());
    assert!(said().contains("its clock is ahead, or this one's is behind"), "{}", said());
}

#[test]
fn another_writer_has_the_lease() {
    let world = World::new();
    // What says more is not believed.
    let until = hold_lease(&world, jiff::SignedDuration::from_secs(119));
    let before = Tree::of(&world.path("repository"));
    says(&fails(11, || world.lifeboat().arg("backup")), &["elsewhere:7:x", &until[..19]]);
    before.assert_unchanged(&world.path("repository"));
    // Readers need none.
    world.lifeboat().args(["verify", "--all"]).run().success();
    world.lifeboat().args(["restore", "latest", "--artifacts", "target"]).run().success();
}

#[test]
fn files_that_cannot_be_read() {
    let world = World::owned();
    let secret = world.path("artifacts/unreadable");
    fs::write(&secret, "x").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    Owner::current().own(&secret);
    let before = world.lifeboat().args(["artifact", "list"]).run().success().stdout;
    says(&fails(1, || world.lifeboat().arg("backup")), &["unreadable"]);
    says(&fails(1, || world.lifeboat().args(["artifact", "sync", "artifacts"])), &["unreadable"]);
    assert_eq!(world.backups().len(), 1);
    assert_eq!(world.lifeboat().args(["artifact", "list"]).run().success().stdout, before);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();

    // A repository that may not be read or written.
    let descriptor = world.path("repository/lifeboat.json");
    fs::set_permissions(&descriptor, fs::Permissions::from_mode(0o000)).unwrap();
    says(&fails(12, || world.lifeboat().arg("list")), &["lifeboat.json"]);
    fs::set_permissions(&descriptor, fs::Permissions::from_mode(0o644)).unwrap();
    let repository = world.path("repository");
    let close = |mode| {
        walk(&repository, &mut |path, meta| {
            if meta.is_dir() {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
        })
    };
    close(0o555);
    fails(12, || world.lifeboat().arg("backup"));
    world.lifeboat().args(["verify", "--all"]).run().success();
    close(0o755);
    // One key file that others closed.
    let identity = world.keys("identity.txt");
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o000)).unwrap();
    says(&fails(12, || world.lifeboat().args(["restore", "latest", "--artifacts", "target"])), &["identity.txt"]);
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o600)).unwrap();
    // A target that may not be written.
    fs::create_dir(world.path("closed")).unwrap();
    fails(1, || world.lifeboat().args(["restore", "latest", "--artifacts", "closed/target"]));
    world.lifeboat().arg("backup").run().success();
    assert_eq!(world.backups().len(), 2);
}

/// Runs lifeboat with a file system of this size at `mount`, filled with `mount`'s own content, which is copied to `after` in the end.
fn on_a_small_disk(world: &World, kib: u32, mount: &Path, after: &Path, arguments: &[&str]) -> Output {
    let script = r#"
        set -e; size=$1 place=$2 after=$3 lifeboat=$4; shift 4
        mkdir "$after"; cp -a "$place/." "$after/"
        mount -t tmpfs -o "size=$size" lifeboat-test "$place"; cp -a "$after/." "$place/"
        code=0; "$lifeboat" "$@" || code=$?
        rm -rf "$after"; mkdir "$after"; cp -a "$place/." "$after/"; exit $code"#;
    let mut program = Program::at(Path::new("unshare"), world.home.path()).args(["--mount"]);
    if !rustix::process::geteuid().is_root() {
        program = program.args(["--user", "--map-root-user"]);
    }
    let program = program.args(["sh", "-c", script, "sh", &format!("{kib}k")]).arg(mount).arg(after).arg(env!("CARGO_BIN_EXE_lifeboat"));
    program.env("LIFEBOAT_REPOSITORY", world.path("repository")).env("LIFEBOAT_ARTIFACTS", world.path("artifacts")).args(arguments).run()
}

#[test]
fn disks_that_are_full() {
    let world = World::new();
    // What does not compress, and is more than the disks below have.
    fs::write(world.path("artifacts/large"), Random(3).bytes(3 << 20)).unwrap();
    for number in 0..40 {
        fs::write(world.path(&format!("artifacts/small-{number}")), Random(number).bytes(20_000)).unwrap();
    }
    let after = world.path("after");
    // So that several places in the course of a backup are hit: nothing, a little, almost all.
    for kib in [100, 300, 2000, 3000] {
        let output = on_a_small_disk(&world, kib, &world.path("repository"), &after, &["backup"]);
        says(&one_error(&output, 1), &["make room"]);
        assert_eq!(backups(&after).len(), 1, "{kib}");
        let there = || world.bare().arg("--repository").arg(&after);
        there().args(["verify", "--all"]).run().success();
        there().args(["artifact", "verify"]).run().success();
        assert_eq!(there().args(["list"]).run().success().stdout.lines().count(), 2);
        // With room again the next run succeeds.
        there().arg("backup").env("LIFEBOAT_ARTIFACTS", world.path("artifacts")).run().success();
        there().args(["verify", "--all"]).run().success();
        fs::remove_dir_all(&after).unwrap();
    }
    world.lifeboat().arg("backup").run().success();
    fs::create_dir(world.path("disk")).unwrap();
    let output = on_a_small_disk(&world, 1000, &world.path("disk"), &after, &["restore", "latest", "--artifacts", "disk/target"]);
    one_error(&output, 1);
    // What was written is whole or not there under its name.
    walk(&after, &mut |path, meta| {
        let Ok(name) = path.strip_prefix(after.join("target")) else { return };
        if meta.is_file() {
            assert!(fs::read(path).unwrap() == fs::read(world.path("artifacts").join(name)).unwrap(), "{}", path.display());
        }
    });
}

/// A cluster of its own, small, with a password.
fn cluster() -> Cluster {
    Cluster::builder(Postgres::V15).own_system_id().tcp_scram("s3cret-hunter2").start()
}

#[test]
fn servers_that_are_down_closed_or_another() {
    let world = World::new();
    let (mut one, other) = (cluster(), cluster());
    let backup = |dsn: &str| world.lifeboat().env("LIFEBOAT_DSN", dsn).args(["backup", "--include-postgres"]);
    let local = |dsn: &str, data: &Path| backup(dsn).env("PGDATA", data).args(["--copy", "local"]);
    let count = world.backups().len();

    says(&fails(1, || backup("host=/no/such/directory user=postgres")), &["/no/such/directory", "psql"]);
    let wrong = one.tcp_dsn().replace("hunter2", "wrong-guess");
    for copy in ["auto", "local", "stream", "logical"] {
        let said = fails(12, || backup(&wrong).env("PGDATA", one.data_directory()).args(["--copy", copy]));
        assert!(said.contains("password") && !said.contains("wrong-guess"), "{said}");
        let output = backup("user=postgres dbname=postgres sslmode=disable").env("PGHOST", "127.0.0.1").env("PGPASSWORD", "wrong-guess");
        let port = one.tcp_dsn().split_whitespace().find_map(|word| word.strip_prefix("port=").map(str::to_owned)).unwrap();
        let output = output.env("PGPORT", port).env("PGDATA", one.data_directory()).args(["--copy", copy]).run();
        let said = one_error(&output, 12);
        assert!(!output.to_string().contains("wrong-guess"), "{said}");
    }
    // The directory of one, the connection of another.
    says(&fails(1, || local(&one.dsn(), other.data_directory())), &["lifeboat config show"]);
    fails(2, || local(&one.dsn(), Path::new("/no/such/directory")));
    assert_eq!(world.backups().len(), count);

    let output = backup(&one.tcp_dsn()).env("PGDATA", one.data_directory()).run().success();
    assert!(!output.to_string().contains("hunter2"), "{output}");
    let count = world.backups().len();
    for copy in ["local", "stream"] {
        let said = fails(1, || local(&other.dsn(), other.data_directory()).args(["--copy", copy].iter().skip(2)));
        says(&said, &["--name"]);
    }
    // Nobody who reads the repository reads the password.
    walk(&world.path("repository"), &mut |path, meta| {
        if meta.is_file() {
            assert!(!String::from_utf8_lossy(&fs::read(path).unwrap()).contains("hunter2"), "{}", path.display());
        }
    });
    let dsn = one.dsn();
    one.stop(crate::cluster::Stop::Fast);
    says(&fails(1, || backup(&dsn)), &["psql"]);
    assert_eq!(world.backups().len(), count);
    assert!(!fs::exists(one.data_directory().join("backup_label")).unwrap());
}

#[test]
fn a_data_directory_that_cannot_be_read_or_written_whole() {
    let world = World::owned();
    let cluster = Cluster::builder(Postgres::V15).start();
    let backup = || {
        let program = world.lifeboat().env("LIFEBOAT_DSN", cluster.dsn()).env("PGDATA", cluster.data_directory());
        program.args(["backup", "--include-postgres", "--copy", "local"])
    };
    let file = cluster.data_directory().join(cluster.psql("SELECT pg_relation_filepath('pg_class')"));
    let mode = fs::metadata(&file).unwrap().permissions();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    says(&fails(1, backup), &[file.file_name().unwrap().to_str().unwrap()]);
    fs::set_permissions(&file, mode).unwrap();
    assert_eq!(world.backups().len(), 1);
    // The server was told that it is over.
    let running = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'lifeboat%' OR query LIKE '%pg_backup%' AND pid <> pg_backend_pid()";
    wait_until(|| cluster.psql(running) == "0");
    backup().run().success();
}

#[test]
fn a_target_that_is_full_in_the_middle_of_a_restore() {
    let world = World::new();
    let cluster = Cluster::builder(Postgres::V15).start();
    let backup = world.lifeboat().env("LIFEBOAT_DSN", cluster.dsn()).env("PGDATA", cluster.data_directory());
    backup.args(["backup", "--include-postgres"]).run().success();
    // Full in the middle: larger files than this cannot be written. That only kills where nobody catches the signal.
    let id = world.backups().pop().unwrap();
    let script = "trap '' XFSZ; ulimit -f 200; exec \"$@\"";
    let limited = Program::at(Path::new("sh"), world.home.path()).args(["-c", script, "sh"]).arg(env!("CARGO_BIN_EXE_lifeboat"));
    let output = limited.env("LIFEBOAT_REPOSITORY", world.path("repository")).args(["restore", &id, "--pgdata", "target"]).run();
    says(&one_error(&output, 1), &["target", "lifeboat restore"]);
    assert!(!world.path("target/global/pg_control").exists());
    assert!(restored_cluster(&world.path("target"), Postgres::V15).is_err());
    // The same directory serves again.
    world.lifeboat().args(["restore", &id, "--pgdata", "target"]).run().success();
    restored_cluster(&world.path("target"), Postgres::V15).unwrap();
    // Not enough room is known before anything is written.
    fs::create_dir(world.path("disk")).unwrap();
    let output = on_a_small_disk(&world, 4000, &world.path("disk"), &world.path("after"), &["restore", &id, "--pgdata", "disk/target"]);
    says(&one_error(&output, 1), &["bytes are needed"]);
    assert!(!world.path("after/target").exists());
}

/// Waits for what must come to pass; a test that hangs fails.
#[track_caller]
pub(crate) fn wait_until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(120), "it does not come to pass");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_backup_that_is_interrupted_leaves_nothing_that_looks_like_one() {
    let world = World::new();
    let cluster = Cluster::builder(Postgres::V15).start();
    for (signal, copy, running) in [
        // The slot that holds its WAL is there from before the start until the session ends.
        (Signal::INT, "local", "SELECT count(*) FROM pg_replication_slots WHERE temporary"),
        (Signal::TERM, "stream", "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'"),
    ] {
        // So slow that it cannot end by itself before it is looked at.
        let slow =
            world.configured("[limits]\nbandwidth = '64KiB'\n").env("LIFEBOAT_DSN", cluster.dsn()).env("PGDATA", cluster.data_directory());
        let mut child = slow.args(["backup", "--include-postgres", "--copy", copy]).spawn();
        wait_until(|| {
            assert!(child.try_wait().unwrap().is_none(), "{}", fs::read_to_string(world.path("stderr")).unwrap());
            cluster.psql(running) != "0"
        });
        let while_it_ran = fails(11, || world.lifeboat().arg("backup"));
        says(&while_it_ran, &["lease"]);
        rustix::process::kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let said = fs::read_to_string(world.path("stderr")).unwrap();
        assert!(said.contains("interrupted") && !said.contains("panicked"), "{said}");
        wait_until(|| cluster.psql(running) == "0");
    }
    assert_eq!(world.backups().len(), 1);
    assert_eq!(world.lifeboat().arg("list").run().success().stdout.lines().count(), 2);
    world.lifeboat().args(["verify", "--all"]).run().success();
    // Its lease does not stand in the way.
    world
        .lifeboat()
        .env("LIFEBOAT_DSN", cluster.dsn())
        .env("PGDATA", cluster.data_directory())
        .args(["backup", "--include-postgres"])
        .run()
        .success();
    world.lifeboat().args(["verify", "--all"]).run().success();
}

#[test]
fn output_that_nobody_reads_and_input_that_is_not_there() {
    let world = World::new();
    let id = world.backups().remove(0);
    let shell = |script: &str| {
        let program = Program::at(Path::new("sh"), world.home.path()).env("LIFEBOAT_REPOSITORY", world.path("repository"));
        program
            .env("LIFEBOAT_ARTIFACTS", world.path("artifacts"))
            .args(["-c", script, "sh"])
            .args([env!("CARGO_BIN_EXE_lifeboat"), &id])
            .run()
    };
    for command in [
        "list",
        "list --json",
        "show $2",
        "verify --all",
        "artifact list",
        "--help",
        "backup --dry-run",
        "completions bash",
        "artifact get logs/one.log",
    ] {
        // The reader is gone before the first byte; closed; full; and with nothing to read.
        for redirection in ["| true", ">&-", "<&-", "2>&-", ">&- 2>&- <&-"] {
            let output = shell(&format!("\"$1\" {command} {redirection}"));
            assert!(!output.stderr.contains("panicked"), "{command} {redirection}: {output}");
            if redirection != "| true" && command != "artifact get logs/one.log" {
                assert_eq!(output.code, Some(0), "{command} {redirection}: {output}");
            }
        }
        // A full disk is no reader that had enough: it is told.
        if command != "--help" && !command.starts_with("completions") {
            let output = shell(&format!("\"$1\" {command} >/dev/full"));
            assert!(!output.stderr.contains("panicked") && output.stderr.contains("No space left"), "{output}");
        }
    }
    // A real reader that wants one line.
    let output = shell("\"$1\" artifact list | head -n 1");
    assert!(output.code == Some(0) && output.stdout.starts_with("SIZE") && output.stderr.is_empty(), "{output}");
    let mut child = Command::new(env!("CARGO_BIN_EXE_lifeboat"))
        .args(["artifact", "put", "from-nowhere", "-"])
        .env("HOME", world.home.path())
        .env("LIFEBOAT_REPOSITORY", world.path("repository"))
        .current_dir(world.home.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"streamed").unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert_eq!(world.lifeboat().args(["artifact", "get", "from-nowhere"]).run().success().stdout, "streamed");
}
