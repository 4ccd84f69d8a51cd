//! The audit log as a user reads and checks it, and as an independent reader does.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::audit::{Decided, Event, Outcome};
use lifeboat_core::policy::{Actor, BreakGlass, FACTS_SCHEMA, Facts, Operation};
use lifeboat_engine::audit::{AuditKey, Log, Recorded, TrustedKey};
use lifeboat_engine::random;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::store::{self, StoreOptions};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{setting, temp_dir};
use crate::program::{Output, Program};
use crate::seaweed::{BUCKET, Seaweed, make_bucket, with_server};

/// A user with keys and a repository.
struct Place {
    home: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { home: temp_dir() };
        // What the program itself does is recorded as well: here elsewhere, so that the log has what a test puts there.
        place.lifeboat().env("LIFEBOAT_AUDIT_DIRECTORY", place.home.path().join("elsewhere")).args(["key", "generate"]).run().success();
        let store = store::open(place.repository().to_str().unwrap(), &StoreOptions::default(), true).unwrap();
        Repository::init(store, Timestamp::now(), "test").unwrap();
        place
    }

    fn repository(&self) -> PathBuf {
        self.home.path().join("repository")
    }

    fn keys(&self, name: &str) -> PathBuf {
        self.home.path().join(".config/lifeboat").join(name)
    }

    fn lifeboat(&self) -> Program {
        Program::new(&self.home).arg("--repository").arg(self.repository())
    }

    fn audit(&self, arguments: &[&str]) -> Output {
        self.lifeboat().arg("audit").args(arguments).run()
    }

    fn vkey(&self) -> String {
        fs::read_to_string(self.keys("audit.pub")).unwrap().trim().to_owned()
    }

    /// The log as the program opens it.
    fn log(&self) -> Log {
        let key = AuditKey::parse(&fs::read_to_string(self.keys("audit.key")).unwrap()).unwrap();
        Log::new(&self.home.path().join(".local/state/lifeboat/audit"), self.repository().to_str().unwrap(), Some(key), vec![])
    }

    fn opened(&self) -> Repository {
        Repository::open(store::open(self.repository().to_str().unwrap(), &StoreOptions::default(), false).unwrap()).unwrap()
    }

    fn record(&self, event: &Event) -> Recorded {
        let recorded = self.log().record(Some(&self.opened()), event).unwrap();
        assert_eq!(recorded.trouble, None);
        recorded
    }

    /// A restore that ended well, one that was denied, a prune that failed, and one that began two days ago and never ended.
    fn fill(&self) -> String {
        let restore = event(Operation::Restore, "ada", true, 0);
        self.record(&restore);
        self.record(&ended(&restore, 0, None));
        self.record(&event(Operation::Restore, "eve", false, 0));
        let broken =
            Event { break_glass: Some(BreakGlass { reason: "the site is down".into() }), ..event(Operation::Prune, "bob", true, 0) };
        self.record(&broken);
        self.record(&ended(&broken, 1, Some("the store said no\nto it")));
        self.record(&event(Operation::Backup, "postgres", true, 48)).checkpoint.unwrap()
    }
}

fn event(operation: Operation, user: &str, allow: bool, hours_ago: i64) -> Event {
    let time = Timestamp::now() - SignedDuration::from_hours(hours_ago);
    let facts = Facts {
        schema: FACTS_SCHEMA,
        time,
        time_seconds: time.as_second(),
        operation,
        action: operation.class(),
        dry_run: false,
        actor: Actor { user: user.into(), uid: 1000, sudo_user: None },
        host: "db1".into(),
        environment: "production".into(),
        repository: None,
        backup: None,
        target: None,
        deletion: None,
        plan: None,
        break_glass: None,
    };
    let reasons = vec![if allow { "allowed" } else { "not on a Friday" }.to_owned()];
    Event::start(random::id(), "lifeboat test", &facts, Decided { allow, reasons, policy: None, engine: "embedded".into(), code: None })
}

fn ended(start: &Event, exit_code: u8, message: Option<&str>) -> Event {
    start.end(random::id(), Timestamp::now(), None, Outcome { exit_code, message: message.map(str::to_owned), findings: 0 })
}

fn outcomes(output: &Output) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entries = output.json()["entries"].as_array().unwrap().clone();
    entries.iter().map(|entry| (text(&entry["start"]["operation"]), text(&entry["state"]))).collect()
}

#[test]
fn an_audit_key_is_made_with_the_others_and_only_its_public_half_is_shown() {
    let place = Place::new();
    let secret = fs::read_to_string(place.keys("audit.key")).unwrap();
    assert_eq!(fs::metadata(place.keys("audit.key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(secret.starts_with("PRIVATE+KEY+"));
    let shown = place.audit(&["key"]).success();
    assert_eq!(shown.stdout.trim(), place.vkey());
    let out = place.home.path().join("another.key");
    let made = place.lifeboat().args(["audit", "key", "--json", "--out"]).arg(&out).run().success();
    assert!(made.json()["key"].as_str().unwrap() != place.vkey());
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    let again = place.lifeboat().args(["audit", "key", "--out"]).arg(&out).run().expect_code(1);
    assert!(again.stderr.contains("another.key") && again.stderr.contains("hint: "), "{again}");
    let configured = place.lifeboat().args(["config", "show"]).run().success();
    assert!(configured.stdout.contains("audit.key_file"), "{configured}");
    // PRIVATE+KEY+<name>+<hash>+<base64>, in which there may be more of them.
    let part = secret.trim().splitn(5, '+').last().unwrap();
    assert!(part.len() > 40, "the key itself");
    for output in [shown, made, configured] {
        assert!(!output.stdout.contains(part) && !output.stderr.contains(part), "{output}");
    }
    // Beside what is wrong with it.
    fs::write(place.home.path().join("no.key"), &secret[..40]).unwrap();
    let broken = place.lifeboat().env("LIFEBOAT_AUDIT_KEY", "no.key").args(["audit", "key"]).run().expect_code(12);
    assert!(broken.stderr.contains("hint: ") && !broken.stderr.contains(&secret[..30]), "{broken}");
}

#[test]
fn what_was_done_and_what_was_not_allowed_is_listed() {
    let place = Place::new();
    assert_eq!(outcomes(&place.audit(&["list", "--json"]).success()), []);
    place.fill();
    let all = [("restore", "done"), ("restore", "denied"), ("prune", "failed"), ("backup", "unfinished")];
    let expected = |picked: &[usize]| picked.iter().map(|at| (all[*at].0.to_owned(), all[*at].1.to_owned())).collect::<Vec<_>>();
    let yesterday = (Timestamp::now() - SignedDuration::from_hours(24)).to_string();
    for (arguments, picked) in [
        (&[][..], &[0, 1, 2, 3][..]),
        (&["--local"], &[0, 1, 2, 3]),
        (&["--denied"], &[1]),
        (&["--operation", "restore"], &[0, 1]),
        (&["--operation", "restore", "--operation", "prune", "--outcome", "done", "--outcome", "failed"], &[0, 2]),
        (&["--outcome", "unfinished"], &[3]),
        (&["--actor", "eve"], &[1]),
        (&["--since", &yesterday], &[0, 1, 2]),
        (&["--until", &yesterday], &[3]),
        (&["--host", "db2"], &[]),
        (&["--backup", "c-backup-20240315T120000Z"], &[]),
    ] {
        let output = place.audit(&[&["list", "--json"], arguments].concat()).success();
        assert_eq!(outcomes(&output), expected(picked), "{arguments:?}");
    }
    let text = place.audit(&["list"]).success().stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[2].contains("denied") && lines[2].contains("eve@db1") && lines[2].ends_with("not on a Friday"), "{text}");
    assert!(lines[3].contains("failed (1)") && lines[3].ends_with("GLASS BROKEN: the site is down; the store said no to it"), "{text}");
    // What waits on this host is shown as well.
    place.log().record(None, &event(Operation::Pin, "ada", true, 0)).unwrap();
    let waiting = place.audit(&["list", "--json"]).success();
    assert_eq!((&waiting.json()["waiting"], outcomes(&waiting).len()), (&Value::from(1), 5));
    assert!(place.audit(&["list"]).success().stdout.contains("waiting"));
    // Bad input.
    for arguments in [&["--operation", "sing"][..], &["--since", "yesterday"], &["--outcome", "x"], &["--backup", "x"]] {
        let refused = place.audit(&[&["list"], arguments].concat()).expect_code(2);
        assert!(refused.stderr.contains("hint: "), "{refused}");
    }
    // A record that does not count is not shown, and said.
    fs::write(place.repository().join("audit/leaf/0000000006"), "forged").unwrap();
    let told = place.audit(&["list", "--json"]).expect_code(3);
    assert_eq!((outcomes(&told).len(), told.json()["findings"].as_array().unwrap().len()), (5, 1));
}

/// The independent reader.
fn audit_verify(place: &Place) -> Program {
    let python = setting("LIFEBOAT_TEST_PYTHON").expect("LIFEBOAT_TEST_PYTHON is not set: run scripts/setup test");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/audit-verify/audit_verify.py");
    let program = Program::at(Path::new(&python), place.home.path()).env("PYTHONDONTWRITEBYTECODE", "1").arg(script);
    program.arg(place.repository()).arg("--key").arg(place.vkey())
}

#[test]
fn a_sound_log_verifies_and_one_that_was_cut_off_does_not() {
    let place = Place::new();
    place.audit(&["verify"]).success();
    let pin = place.fill();
    let verified = place.audit(&["verify"]).success();
    assert!(verified.stdout.contains("audit log verified: 6 records") && verified.stdout.contains(&pin), "{verified}");
    assert!(verified.stdout.contains("unfinished: backup by postgres@db1"), "{verified}");
    let file = place.home.path().join("checkpoint");
    fs::write(&file, &pin).unwrap();
    place.audit(&["verify", "--checkpoint", "checkpoint", "--checkpoint", &pin]).success();
    audit_verify(&place).arg("--checkpoint").arg(&file).run().success();

    let refused = place.audit(&["verify", "--checkpoint", "/no/such/file"]).expect_code(2);
    assert!(refused.stderr.contains("/no/such/file") && refused.stderr.contains("hint: "), "{refused}");
    let report = place.audit(&["verify", "--checkpoint", &pin.replace("\n6\n", "\n5\n"), "--json"]).expect_code(21).json();
    assert_eq!(report["repositories"][0]["findings"][0]["kind"], "unsigned", "{report:#}");

    for gone in ["audit/leaf/0000000005", "audit/checkpoint/0000000006", "audit/tile/0/000.p/6"] {
        fs::remove_file(place.repository().join(gone)).unwrap();
    }
    let failed = place.audit(&["verify"]).expect_code(21);
    assert!(failed.stderr.contains("this host stored it, and the log ends before it"), "{failed}");
    // An auditor, who has the public key and the checkpoint.
    let auditor = temp_dir();
    let configuration = auditor.path().join("lifeboat.toml");
    fs::write(&configuration, format!("[[repository]]\nurl = {:?}\n[audit]\ntrust = [{:?}]\n", place.repository(), place.vkey())).unwrap();
    let run = |arguments: &[&str]| Program::new(&auditor).arg("audit").args(arguments).run();
    run(&["verify"]).success();
    let failed = run(&["verify", "--checkpoint", file.to_str().unwrap()]).expect_code(21);
    assert!(failed.stderr.contains("its end was cut off"), "{failed}");
    let told = audit_verify(&place).arg("--checkpoint").arg(&file).run().expect_code(1);
    assert!(told.stdout.contains("its end was cut off"), "{told}");
    run(&["list"]).success();
    // Nobody to believe, and keys that are none.
    fs::write(&configuration, format!("[[repository]]\nurl = {:?}\n", place.repository())).unwrap();
    for command in ["list", "verify"] {
        let refused = run(&[command]).expect_code(12);
        assert!(refused.stderr.contains("hint: ") && refused.stderr.contains("audit.trust"), "{refused}");
    }
    for table in ["trust = ['x']", "retired = [{ key = 'x', size = 3 }]", "retired = [{ key = 'x' }]", "keys = []"] {
        fs::write(&configuration, format!("[[repository]]\nurl = {:?}\n[audit]\n{table}\n", place.repository())).unwrap();
        let refused = run(&["verify"]).expect_code(2);
        assert!(refused.stderr.contains("hint: "), "{refused}");
    }
    // A key that was retired before all of this.
    let retired =
        format!("[[repository]]\nurl = {:?}\n[audit]\nretired = [{{ key = {:?}, size = 2 }}]\n", place.repository(), place.vkey());
    fs::write(&configuration, retired).unwrap();
    let failed = run(&["verify"]).expect_code(21);
    assert!(failed.stderr.contains("retired"), "{failed}");

    // The host goes on with what there is, once somebody has said why.
    place.audit(&["resume"]).expect_code(2);
    let resumed = place.audit(&["resume", "--reason", "the primary burnt down", "--json"]).success().json();
    assert_eq!((&resumed["size"], &resumed["again"]), (&Value::from(5), &Value::from(1)), "{resumed:#}");
    assert!(place.record(&event(Operation::Pin, "ada", true, 0)).index >= Some(6));
    place.audit(&["verify"]).success();
    audit_verify(&place).run().success();
}

/// Over the border of a bundle, by two hosts: what lifeboat writes is what C2SP's documents say, as somebody else reads them.
#[test]
fn an_independent_reader_agrees() {
    let place = Place::new();
    let other = AuditKey::generate("db2");
    let (repository, elsewhere) = (place.opened(), temp_dir());
    let here = AuditKey::parse(&fs::read_to_string(place.keys("audit.key")).unwrap()).unwrap();
    let trusted = |key: &AuditKey| vec![TrustedKey { key: key.verifier().clone(), until: None }];
    let vkey = other.verifier().to_string();
    let logs = [
        Log::new(&elsewhere.path().join("a"), "x", Some(AuditKey::parse(&here.to_text()).unwrap()), trusted(&other)),
        Log::new(&elsewhere.path().join("b"), "x", Some(other), trusted(&here)),
    ];
    for number in 0..260 {
        let recorded = logs[number % 2].record(Some(&repository), &event(Operation::ArtifactPut, "ci", true, 0)).unwrap();
        assert_eq!((recorded.index, recorded.trouble), (Some(number as u64), None));
    }
    let agreed = audit_verify(&place).arg("--key").arg(&vkey).run().success();
    assert!(agreed.stdout.starts_with("260 records, sound\n"), "{agreed}");
    // Without the other host's key, half of it counts for nothing.
    audit_verify(&place).run().expect_code(1);
    for (name, by) in [("audit/tile/entries/000", 100), ("audit/tile/1/000.p/1", 3), ("audit/leaf/0000000200", 40)] {
        let path = place.repository().join(name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[by] ^= 1;
        fs::write(&path, flipped).unwrap();
        let told = audit_verify(&place).arg("--key").arg(&vkey).run().expect_code(1);
        assert!(told.stdout.contains(name), "{told}");
        fs::write(&path, whole).unwrap();
    }
}

/// From a directory into a bucket, and read from there alone.
#[test]
fn the_log_in_a_bucket_is_the_same_log() {
    let (place, server) = (Place::new(), Seaweed::start());
    make_bucket(&server, place.home.path());
    for _ in 0..30 {
        place.record(&event(Operation::ArtifactPut, "ci", true, 0));
    }
    let keys = place.keys("");
    let configuration = place.home.path().join("two.toml");
    let text = format!(
        "[[repository]]\nurl = {:?}\nname = \"here\"\n[[repository]]\nurl = \"s3://{BUCKET}/a/b\"\nname = \"there\"\n[trust]\nkeys = [{:?}]\n[audit]\nkey_file = {:?}\n",
        place.repository(),
        keys.join("signing.pub"),
        keys.join("audit.key"),
    );
    fs::write(&configuration, text).unwrap();
    let run = |arguments: &[&str]| {
        let program = with_server(Program::new(&place.home), &server.endpoint());
        program.arg("--config").arg(&configuration).args(arguments).run()
    };
    run(&["replicate"]).success();
    let verified = run(&["audit", "verify", "--json"]).success().json();
    let of = |at: usize| &verified["repositories"][at];
    for (at, name) in ["here", "there"].into_iter().enumerate() {
        assert_eq!((&of(at)["name"], &of(at)["verdict"]), (&name.into(), &"verified".into()), "{verified:#}");
    }
    assert!(of(0)["report"]["records"].as_u64() >= Some(30) && of(0)["report"]["records"] == of(1)["report"]["records"], "{verified:#}");
    let listed = run(&["--without-repository", "here", "audit", "list", "--operation", "artifact-put", "--json"]).success();
    let indexes: Vec<u64> = listed.json()["entries"].as_array().unwrap().iter().map(|entry| entry["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, (0..30).collect::<Vec<_>>());
    // The bucket has not the last of it: the one place is sound, the other is not, and how to set that right is said.
    place.record(&event(Operation::ArtifactPut, "ci", true, 0));
    let behind = run(&["audit", "verify"]).expect_code(21);
    assert!(behind.stderr.contains("repository there:") && !behind.stderr.contains("repository here:"), "{behind}");
    assert!(behind.stderr.contains("lifeboat replicate brings"), "{behind}");
    run(&["replicate"]).success();
    run(&["audit", "verify"]).success();
}
