//! `lifeboat alert`: whether a test arrives, what is said where it does not, and the list.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use lifeboat_core::alert::CATALOGUE;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::temp_dir;
use crate::program::{Output, Program};
use crate::receiver::{Manner, Receiver};

/// Stands in a file, and nowhere else.
const TOKEN: &str = "hunter2-token";

fn lifeboat(home: &TempDir, arguments: &[&str]) -> Output {
    Program::new(home).args(arguments).run()
}

/// A configuration with these `[alerts]`.
fn configure(home: &TempDir, alerts: &str) {
    fs::write(home.path().join("token"), format!("{TOKEN}\n")).unwrap();
    fs::write(home.path().join("lifeboat.toml"), format!("name = \"shop\"\n[alerts]\n{alerts}\n")).unwrap();
}

fn webhook(name: &str, url: &str) -> String {
    format!("[[alerts.sink]]\nname = \"{name}\"\ntype = \"webhook\"\nurl = \"{url}\"\ntoken = {{ file = \"token\" }}\n")
}

#[test]
fn a_test_arrives_with_its_end() {
    let (home, receiver) = (temp_dir(), Receiver::start(Manner::takes()));
    configure(&home, &format!("runbook_url = \"https://wiki/alerts\"\n{}", webhook("ops", &receiver.url("/hook"))));
    let output = lifeboat(&home, &["alert", "test"]).success();
    assert!(output.stdout.lines().any(|line| line.split_whitespace().eq(["ops", "webhook", "arrived"])), "{output}");
    let (taken, requests) = (receiver.taken(), receiver.requests());
    let keys = |document: &Value, part: &str| document[part].as_array().unwrap().iter().map(|one| one["key"].clone()).collect::<Vec<_>>();
    assert_eq!((keys(&taken[0], "firing"), keys(&taken[0], "resolved")), (vec![json!("test")], vec![]));
    assert_eq!((keys(&taken[1], "firing"), keys(&taken[1], "resolved")), (vec![], vec![json!("test")]));
    assert_eq!((&taken[0]["system"]["name"], &taken[0]["firing"][0]["severity"]), (&json!("shop"), &json!("warning")));
    assert_eq!(taken[0]["firing"][0]["runbook"], "https://wiki/alerts#test");
    assert_eq!(requests[0].header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    let json = lifeboat(&home, &["alert", "test", "--json"]).success().json();
    assert_eq!((&json["arrived"], &json["sinks"][0]["resolution"]["arrived"]), (&json!(true), &json!(true)), "{json:#}");
}

#[test]
fn what_does_not_arrive_is_said_without_a_secret() {
    let (home, well) = (temp_dir(), Receiver::start(Manner::takes()));
    let refuses = Receiver::start(Manner::Answer(403, format!("{TOKEN} may not")));
    let alerts = webhook("ops", &well.url("/"))
        + &webhook("pager", &refuses.url("/services/secret-secret"))
        + "[[alerts.sink]]\nname = \"chat\"\ntype = \"slack\"\nurl = { env = \"NO_SUCH_VARIABLE\" }\n";
    configure(&home, &alerts);
    let output = lifeboat(&home, &["alert", "test"]).expect_code(1);
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert!(lines[1].ends_with("arrived") && lines[2].contains("failed: it answered 403: … may not"), "{output}");
    assert!(lines[3].contains("failed: read url of alert sink chat: the environment has no NO_SUCH_VARIABLE"), "{output}");
    assert!(output.stderr.contains("hint: lifeboat config show"), "{output}");
    assert_eq!(well.taken().len(), 2, "the others get theirs");
    lifeboat(&home, &["alert", "test", "--sink", "ops"]).success();
    let json = lifeboat(&home, &["alert", "test", "--sink", "pager", "--json"]).expect_code(1).json();
    assert_eq!(
        (&json["arrived"], &json["sinks"][0]["alert"]["transient"], &json["sinks"][0]["resolution"]),
        (&json!(false), &json!(false), &Value::Null)
    );
    let shown = lifeboat(&home, &["config", "show"]).success();
    for output in [&output, &shown] {
        assert!(!output.to_string().contains(TOKEN) && !output.to_string().contains("secret-secret"), "{output}");
    }
    // A file that everybody can read is found by doctor.
    fs::set_permissions(home.path().join("token"), fs::Permissions::from_mode(0o644)).unwrap();
    let found = lifeboat(&home, &["doctor"]);
    let said: Vec<&str> =
        found.stderr.lines().filter(|line| line.contains("token: the secret of an alert sink can be read by others")).collect();
    assert_eq!(said.len(), 1, "{found}");
}

#[test]
fn the_dead_mans_switch_is_asked_only_where_it_is_named() {
    let (home, receiver) = (temp_dir(), Receiver::start(Manner::takes()));
    configure(&home, &format!("heartbeat_url = \"{}\"", receiver.url("/ping/1")));
    let output = lifeboat(&home, &["alert", "test"]).expect_code(2);
    assert!(output.stderr.contains("none is configured"), "{output}");
    assert_eq!(receiver.requests().len(), 0);
    lifeboat(&home, &["alert", "test", "--sink", "heartbeat"]).success();
    assert_eq!(receiver.requests()[0].line, "GET /ping/1 HTTP/1.1");
    receiver.set(Manner::Drop);
    lifeboat(&home, &["alert", "test", "--sink", "heartbeat"]).expect_code(1);
    let output = lifeboat(&home, &["alert", "test", "--sink", "nobody"]).expect_code(2);
    assert!(output.stderr.contains("none is called \"nobody\"") && output.stderr.contains("hint: "), "{output}");
}

#[test]
fn the_list_has_every_kind_and_needs_nothing() {
    let home = temp_dir();
    let output = lifeboat(&home, &["alert", "list"]).success();
    for kind in CATALOGUE {
        let line = format!("docs/alerts.md#{}", kind.name);
        assert!(
            output.stdout.lines().any(|row| row.starts_with(kind.name) && row.contains(&line) && row.ends_with(kind.when)),
            "{}",
            kind.name
        );
    }
    let json = lifeboat(&home, &["alert", "list", "--json"]).success().json();
    assert_eq!(json["kinds"].as_array().unwrap().len(), CATALOGUE.len());
    assert_eq!(
        json["kinds"][2],
        json!({
            "name": "backup-overdue", "alertname": "LifeboatBackupOverdue", "severity": "critical",
            "when": "the newest backup that counts is older than alerts.backup_age, or dated in the future", "runbook": "docs/alerts.md#backup-overdue",
        })
    );
    assert_eq!((&json["terms"]["backup_age_seconds"], &json["rhythm"]["repeat_seconds"]), (&json!(108_000), &json!(14_400)));
    configure(&home, "backup_age = \"2h\"\nrunbook_url = \"https://wiki/alerts\"");
    let json = lifeboat(&home, &["alert", "list", "--json"]).success().json();
    assert_eq!(
        (&json["terms"]["backup_age_seconds"], &json["kinds"][0]["runbook"]),
        (&json!(7200), &json!("https://wiki/alerts#no-backup"))
    );
}
