//! `scripts/backup.sh` and `scripts/restore.sh`, as runbooks call them.
//!
//! The scripts are run where they stand and from copies in made-up checkouts; nothing of the machine's own build is used but the binary
//! under test.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::cluster::{Cluster, Postgres, restored_cluster, temp_dir};
use crate::failure::{Tree, one_error};
use crate::program::{Output, Program};

/// Where the scripts stand.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts").canonicalize().expect("the scripts are there")
}

/// A place with artifacts, a repository to be, and a home, every one with a space in its name.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = temp_dir();
        for name in ["the home", "the artifacts", "the artifacts/build 1", "elsewhere"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("the artifacts/build 1/log file.txt"), "compiled\n").unwrap();
        fs::write(directory.path().join("the artifacts/empty"), "").unwrap();
        Place { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A script, run in another directory than anything it is told of.
    fn script(&self, name: &str) -> Program {
        Program::at(&scripts().join(name), &self.path("the home")).env("LIFEBOAT_BIN", env!("CARGO_BIN_EXE_lifeboat"))
    }

    fn backup(&self) -> Program {
        self.script("backup.sh").env("LIFEBOAT_ARTIFACTS", self.path("the artifacts")).arg("--output").arg(self.path("the repository"))
    }

    fn restore(&self) -> Program {
        self.script("restore.sh").env("BACKUP_BASE", self.path("the repository"))
    }

    /// The backups of the repository, oldest first.
    fn backups(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("the repository")) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.contains("-backup-"));
        names.sort();
        names
    }

    fn manifest(&self, id: &str) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path("the repository").join(id).join("manifest.json")).unwrap()).unwrap()
    }
}

fn artifacts(tree: &Path) -> Vec<(String, Vec<u8>)> {
    let of = |name: &str| (name.to_owned(), fs::read(tree.join(name)).unwrap());
    vec![of("build 1/log file.txt"), of("empty")]
}

#[test]
fn artifacts_go_and_come_back_and_every_run_records_a_manifest_with_its_time() {
    let place = Place::new();
    place.backup().run().success();
    place.backup().run().success();
    let ids = place.backups();
    assert_eq!(ids.len(), 2, "{ids:?}");
    for id in &ids {
        let manifest = place.manifest(id);
        assert_eq!(manifest["id"], id.as_str());
        assert_eq!(manifest["postgres"], serde_json::Value::Null);
        let (started, stamp) = (manifest["started"].as_str().unwrap(), id.rsplit('-').next().unwrap());
        assert!(started.ends_with('Z') && stamp.len() == 16, "{started} {stamp}");
        assert!(manifest["finished"].as_str().unwrap() >= started);
    }

    let output = place.restore().env("LIFEBOAT_ARTIFACTS", place.path("what came back")).arg(&ids[0]).run().success();
    assert!(output.stdout.contains(&format!("restored {}", ids[0])), "{output}");
    assert_eq!(artifacts(&place.path("what came back")), artifacts(&place.path("the artifacts")));
    // Relative paths are of where one stands, not of where the script stands.
    let relative = |program: Program| program.env("BACKUP_BASE", "../the repository").env("LIFEBOAT_ARTIFACTS", "-odd name");
    relative(place.restore()).arg("latest").run().success();
    assert_eq!(artifacts(&place.path("the home/-odd name")), artifacts(&place.path("the artifacts")));
    place.script("backup.sh").env("LIFEBOAT_ARTIFACTS", "../the artifacts").arg("--output=../another").run().success();
    assert!(place.path("another/lifeboat.json").is_file());
    // What is there is never overwritten.
    let before = Tree::of(&place.path("what came back"));
    let output = place.restore().env("LIFEBOAT_ARTIFACTS", place.path("what came back")).arg(&ids[0]).run();
    one_error(&output, 1);
    before.assert_unchanged(&place.path("what came back"));
}

#[test]
fn a_dry_run_needs_no_server_and_no_key_and_changes_nothing() {
    let place = Place::new();
    let nowhere = |program: Program| program.env("PGHOST", "/nowhere").env("PGPASSWORD", "s3cret-never-said").arg("--dry-run");
    let check = |place: &Place, run: &dyn Fn(Program) -> Program| {
        let before = Tree::of(place.directory.path());
        let output = run(place.backup()).run().success();
        assert!(output.stdout.contains("would back up") && output.stdout.contains("nothing was changed"), "{output}");
        assert!(!output.to_string().contains("s3cret"), "{output}");
        before.assert_unchanged(place.directory.path());
        output
    };
    let both = |place: &Place| {
        check(place, &nowhere);
        let named = check(place, &|program| nowhere(program).arg("--include-postgres"));
        assert!(named.stdout.contains("copy nothing of it") && named.stderr.contains("ENABLE_POSTGRES_DUMP"), "{named}");
        let dumped = check(place, &|program| nowhere(program).env("INCLUDE_POSTGRES", "1").env("ENABLE_POSTGRES_DUMP", "yes"));
        assert!(dumped.stdout.contains("copy the database at"), "{dumped}");
    };
    both(&place);
    assert!(!place.path("the repository").exists() && fs::read_dir(place.path("the home")).unwrap().next().is_none());
    place.backup().run().success();
    both(&place);

    // A restore needs no key of any kind for its plan: not even those that the backup made.
    let id = place.backups().remove(0);
    let before = Tree::of(place.directory.path());
    for home in ["the home", "elsewhere"] {
        let home = place.path(home);
        let at_home = |program: Program| program.env("HOME", &home).env("XDG_CONFIG_HOME", home.join(".config"));
        let target = place.path("target");
        let output = at_home(place.restore()).env("LIFEBOAT_ARTIFACTS", &target).args(["--dry-run", &id]).run().success();
        assert!(output.stdout.contains(&format!("would restore {id}")), "{output}");
        // Without a target one still learns what is there, and what to set.
        let output = at_home(place.restore()).args(["--dry-run", &id]).run().success();
        assert!(output.stdout.contains(&id) && output.stderr.contains("nothing would be restored: set LIFEBOAT_ARTIFACTS"), "{output}");
        before.assert_unchanged(place.directory.path());
    }
}

#[test]
fn the_database_is_left_out_named_or_copied_as_the_two_variables_say() {
    let cluster = Cluster::builder(Postgres::V15).start();
    cluster.psql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (17)");
    let place = Place::new();
    let with_server = |program: Program| {
        let dsn = cluster.dsn();
        let socket = dsn.split_whitespace().find_map(|word| word.strip_prefix("host=")).expect("a socket directory");
        program.env("PGHOST", socket).env("PGUSER", "postgres").env("PGDATABASE", "postgres").env("PGDATA", cluster.data_directory())
    };
    // A configuration that names the server changes nothing: the script's own default is false.
    let config = place.path("lifeboat.toml");
    fs::write(&config, format!("[postgres]\ndsn = \"{}\"\n", cluster.dsn())).unwrap();
    let newest = |program: Program| {
        program.run().success();
        place.manifest(place.backups().last().unwrap())
    };
    // The first run makes the keys, which it does not beside a configuration.
    assert_eq!(newest(with_server(place.backup()))["postgres"], serde_json::Value::Null);
    assert_eq!(newest(with_server(place.backup()).env("ENABLE_POSTGRES_DUMP", "true"))["postgres"], serde_json::Value::Null);
    assert_eq!(newest(with_server(place.backup()).env("LIFEBOAT_CONFIG", &config))["postgres"], serde_json::Value::Null);
    let named = newest(with_server(place.backup()).arg("--include-postgres"));
    assert_eq!((&named["postgres"]["copy"], &named["files"]), (&"recorded".into(), &0.into()));
    // Recording needs no server at all.
    let named = newest(place.backup().env("PGHOST", "/nowhere").env("INCLUDE_POSTGRES", "true"));
    assert_eq!(named["postgres"]["copy"], "recorded");
    let id = place.backups().pop().unwrap();
    let restore = |id: &str| {
        let restore = place.restore().env("LIFEBOAT_ARTIFACTS", place.path("artifacts again")).env("PGDATA", place.path("data again"));
        restore.env("RESTORE_POSTGRES", "true").arg(id)
    };
    let output = one_error(&restore(&id).run(), 1);
    assert!(output.contains("no copy of a database"), "{output}");
    assert!(!place.path("data again").exists() && !place.path("artifacts again").exists());

    let copied = newest(with_server(place.backup()).arg("--include-postgres").env("ENABLE_POSTGRES_DUMP", "TRUE"));
    assert_eq!(copied["postgres"]["copy"], "local");
    let id = place.backups().pop().unwrap();
    // Left out of a restore as well, unless it is asked for.
    place.restore().env("LIFEBOAT_ARTIFACTS", place.path("only")).env("PGDATA", place.path("data again")).arg(&id).run().success();
    assert!(!place.path("data again").exists());
    restore(&id).run().success();
    assert_eq!(artifacts(&place.path("artifacts again")), artifacts(&place.path("the artifacts")));
    let again = restored_cluster(&place.path("data again"), Postgres::V15).unwrap();
    assert_eq!(again.psql("SELECT n FROM kept"), "17");
}

#[test]
fn what_is_wrong_is_one_line_and_a_hint() {
    let place = Place::new();
    let say = |output: &Output, code: i32, word: &str| {
        let text = one_error(output, code);
        assert!(text.contains(word), "{word} is not in:\n{output}");
    };
    let backup = |arguments: &[&str]| place.script("backup.sh").args(arguments).run();
    say(&backup(&[]), 2, "--output is missing");
    say(&backup(&["--output"]), 2, "--output needs a directory");
    say(&backup(&["--output="]), 2, "--output needs a directory");
    say(&backup(&["--output", ""]), 2, "--output needs a directory");
    say(&backup(&["--output", "--dry-run"]), 2, "--output needs a directory");
    say(&backup(&["--output", "repository", "--force"]), 2, "'--force'");
    say(&backup(&["--output", "repository", "surplus"]), 2, "'surplus'");
    // Nothing to back up is an error that says what to set, not an empty backup.
    say(&backup(&["--output", "repository"]), 2, "LIFEBOAT_ARTIFACTS");
    say(&backup(&["--output", "repository", "--dry-run"]), 2, "LIFEBOAT_ARTIFACTS");
    let missing = place.script("backup.sh").env("LIFEBOAT_ARTIFACTS", "not there").args(["--output", "repository"]).run();
    say(&missing, 2, "not there");
    say(&place.backup().args(["--output", "no/such/place"]).run(), 10, "no/such");
    for odd in ["maybe", "2", "on", " true", "true;"] {
        say(&place.backup().env("INCLUDE_POSTGRES", odd).run(), 2, "INCLUDE_POSTGRES");
        say(&place.backup().env("ENABLE_POSTGRES_DUMP", odd).run(), 2, "ENABLE_POSTGRES_DUMP");
    }
    assert!(!place.path("the repository").exists() && fs::read_dir(place.path("the home")).unwrap().next().is_none());

    place.backup().env("INCLUDE_POSTGRES", "No").env("ENABLE_POSTGRES_DUMP", "0").run().success();
    let id = place.backups().remove(0);
    let before = Tree::of(place.directory.path());
    let restore = |arguments: &[&str]| place.restore().env("LIFEBOAT_ARTIFACTS", place.path("target")).args(arguments).run();
    say(&restore(&[]), 2, "backup id is missing");
    say(&restore(&[""]), 2, "backup id is empty");
    say(&restore(&["--force", &id]), 2, "'--force'");
    say(&restore(&[&id, &id]), 2, "one backup at a time");
    say(&restore(&["not-an-id"]), 2, "not-an-id");
    say(&restore(&["../../etc"]), 2, "../../etc");
    say(&restore(&["conductor-backup-20200101T000000Z"]), 1, "conductor-backup-20200101T000000Z");
    say(&place.restore().env("BACKUP_BASE", "nowhere").env("LIFEBOAT_ARTIFACTS", "target").arg(&id).run(), 10, "nowhere");
    say(&place.restore().arg(&id).run(), 2, "nothing says where to");
    say(&place.script("restore.sh").env("LIFEBOAT_ARTIFACTS", "target").arg(&id).run(), 2, "BACKUP_BASE");
    say(&place.restore().env("RESTORE_POSTGRES", "true").arg(&id).run(), 2, "PGDATA");
    say(&place.restore().env("RESTORE_POSTGRES", "ja").arg(&id).run(), 2, "RESTORE_POSTGRES");
    before.assert_unchanged(place.directory.path());
}

#[test]
fn help_is_an_answer() {
    let place = Place::new();
    for (script, words) in [("backup.sh", ["ENABLE_POSTGRES_DUMP", "--output DIR"]), ("restore.sh", ["RESTORE_POSTGRES", "BACKUP_BASE"])] {
        for flag in ["--help", "-h"] {
            let output = place.script(script).env("LIFEBOAT_BIN", "/nowhere").arg(flag).run().success();
            assert!(words.iter().all(|word| output.stdout.contains(word)) && output.stderr.is_empty(), "{output}");
        }
    }
}

/// The binary: the one that is named, else the checkout's, else the one in PATH, else it is built.
#[test]
fn the_binary_is_found_or_built() {
    let place = Place::new();
    let program = |path: &Path, says: &str| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("#!/bin/sh\nprintf '{says}'\nprintf ' <%s>' \"$@\"\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let checkout = place.path("a checkout");
    fs::create_dir_all(checkout.join("scripts")).unwrap();
    for script in ["backup.sh", "restore.sh", "entry-point.sh"] {
        fs::copy(scripts().join(script), checkout.join("scripts").join(script)).unwrap();
    }
    // A runbook may reach the script through a link.
    let link = place.path("elsewhere/backup");
    symlink("../a checkout/scripts/backup.sh", &link).unwrap();
    let system = place.path("bin");
    fs::create_dir(&system).unwrap();
    for tool in ["bash", "dirname", "readlink", "sh", "env"] {
        let found =
            std::env::split_paths(&std::env::var_os("PATH").unwrap()).map(|directory| directory.join(tool)).find(|path| path.is_file());
        symlink(found.expect("coreutils"), system.join(tool)).unwrap();
    }
    let run = |binary: Option<&Path>| {
        let program = Program::at(&link, &place.path("the home")).env("PATH", &system).args(["--output", "r r", "--dry-run"]);
        match binary {
            Some(binary) => program.env("LIFEBOAT_BIN", binary).run(),
            None => program.run(),
        }
    };
    let arguments = "<backup> <--output=r r> <--dry-run> <--exclude-postgres>";

    assert!(one_error(&run(None), 1).contains("not built"), "no binary, no cargo");
    fs::write(checkout.join("Cargo.toml"), "").unwrap();
    assert!(one_error(&run(None), 1).contains("not built"), "no cargo");
    fs::write(system.join("cargo"), "#!/bin/sh\nexit 101\n").unwrap();
    fs::set_permissions(system.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    let output = run(None);
    assert!(output.code == Some(1) && output.stderr.contains("error: build lifeboat: cargo failed"), "{output}");
    let built = checkout.join("target/release/lifeboat");
    fs::create_dir_all(built.parent().unwrap()).unwrap();
    fs::write(
        system.join("cargo"),
        "#!/bin/sh\nwhile [ \"$1\" != --target-dir ]; do shift; done\nexec >\"$2/release/lifeboat\"\necho '#!/bin/sh'\necho 'printf \"built\"; printf \" <%s>\" \"$@\"'\n\
         exec /bin/chmod 755 \"$2/release/lifeboat\"\n",
    )
    .unwrap();
    assert_eq!(run(None).success().stdout, format!("built {arguments}"));
    fs::remove_file(&built).unwrap();
    program(&system.join("lifeboat"), "installed");
    assert_eq!(run(None).success().stdout, format!("installed {arguments}"));
    program(&checkout.join("target/debug/lifeboat"), "debug");
    assert_eq!(run(None).success().stdout, format!("debug {arguments}"));
    program(&built, "release");
    assert_eq!(run(None).success().stdout, format!("release {arguments}"));
    let named = place.path("named");
    program(&named, "named");
    assert_eq!(run(Some(&named)).success().stdout, format!("named {arguments}"));
    assert!(one_error(&run(Some(Path::new("/no/such/lifeboat"))), 2).contains("/no/such/lifeboat"));
}
