//! `lifeboat init`: what it finds of a server, and that the file it writes works as it is.

use std::fs;

use crate::backup::Site;
use crate::cluster::{Postgres, temp_dir};
use crate::program::Program;

/// A setting and where it came from, as `config show` has them.
fn setting(program: Program, name: &str) -> (serde_json::Value, String) {
    let shown = program.args(["config", "show", "--json"]).run().success().json();
    let row = shown["settings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["setting"] == name)
        .unwrap_or_else(|| panic!("no {name}: {shown}"))
        .clone();
    (row["value"].clone(), row["origin"].as_str().unwrap().to_owned())
}

#[test]
fn a_server_is_found_by_the_usual_variables_and_the_file_works_without_them() {
    for version in [Postgres::V15, Postgres::V18] {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        cluster.psql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (17)");
        let dsn = cluster.dsn();
        let word = |name: &str| dsn.split_whitespace().find_map(|word| word.strip_prefix(name)).unwrap().to_owned();
        let (host, port) = (word("host="), word("port="));
        let init = site.program().args(["init", "--write-config", "made.toml", "--state-directory", "state"]);
        let init = init.env("PGHOST", &host).env("PGPORT", &port).env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        let output = init.run().success();
        let data = cluster.data_directory().display().to_string();
        let programs = version.bin_directory().canonicalize().unwrap();
        let found = format!("found PostgreSQL {}.", version.major());
        for text in [found.as_str(), &data, &host, "archive_command = '", "made.toml doctor"] {
            assert!(output.stderr.contains(text), "{text}: {output}");
        }
        // Nothing of the environment is needed any more.
        let with = || Program::new(&site.home).args(["--config", "made.toml"]);
        assert_eq!(setting(with(), "postgres.data_directory").0, data.as_str());
        assert_eq!(setting(with(), "wal.spool").0, site.place("state/spool").display().to_string());
        let (found, origin) = setting(with(), "postgres.bin_directory");
        match version {
            // Debian's own place is looked at anyway; written down it would be wrong after an upgrade.
            Postgres::V15 => assert_eq!((found, origin.as_str()), (serde_json::Value::Null, "not set")),
            _ => assert_eq!(std::path::Path::new(found.as_str().unwrap()).canonicalize().unwrap(), programs),
        }
        let made = with().args(["backup", "--json"]).run().success().json();
        assert_eq!(made["manifest"]["postgres"]["copy"], "local", "{made}");
        with().args(["verify", "latest"]).run().success();
    }
}

#[test]
fn what_is_typed_counts_and_what_cannot_be_asked_is_said() {
    let home = temp_dir();
    let init = |name: &str| Program::new(&home).args(["init", "--repository", &format!("repository-{name}"), "--write-config", name]);
    let typed =
        ["--dsn", "host=/nowhere user=backup dbname=app", "--data-directory", "/data", "--artifacts", "artifacts", "--name", "shop"];
    let output = init("typed.toml").args(typed).run().success();
    assert!(output.stderr.contains("/nowhere") && output.stderr.contains("typed.toml"), "{output}");
    let with = |name: &str| Program::new(&home).args(["--config", name]);
    for (name, value) in [
        ("name", "shop".to_owned()),
        ("postgres.dsn", "user=backup dbname=app host=/nowhere".to_owned()),
        ("postgres.data_directory", "/data".to_owned()),
        ("artifacts.directory", home.path().join("artifacts").display().to_string()),
    ] {
        assert_eq!(setting(with("typed.toml"), name).0, value, "{name}");
    }

    // A password of the environment does not get into a file.
    let output = init("secret.toml").env("LIFEBOAT_DSN", "host=/nowhere password=hunter2").run().success();
    let text = fs::read_to_string(home.path().join("secret.toml")).unwrap();
    assert!(output.stderr.contains("pgpass") && !output.to_string().contains("hunter2") && !text.contains("hunter2"), "{output}\n{text}");
    assert!(text.contains("\n#dsn = "), "{text}");

    let output = init("service.toml").env("PGSERVICE", "no-such-service").run().success();
    assert_eq!(setting(with("service.toml"), "postgres.dsn").0, "service=no-such-service", "{output}");
}

#[test]
fn every_setting_is_in_the_file_with_a_line_of_meaning() {
    let home = temp_dir();
    Program::new(&home)
        .args(["init", "--repository", "repository", "--write-config", "made.toml", "--dsn", "host=/nowhere"])
        .run()
        .success();
    let made = fs::read_to_string(home.path().join("made.toml")).unwrap();
    let example = Program::new(&home).args(["config", "example"]).run().success().stdout;
    let keys = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with("# ")).filter_map(|line| line.trim_start_matches('#').split_once(" = "));
        lines.map(|(key, _)| key.to_owned()).collect()
    };
    assert_eq!(keys(&made), keys(&example));
    assert!(keys(&made).len() > 100, "{made}");
    let lines: Vec<&str> = made.lines().collect();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" = ") && !line.starts_with("# ")) {
        assert!(index > 0 && lines[index - 1].starts_with("# "), "nothing says what this is for: {line}");
    }
}
