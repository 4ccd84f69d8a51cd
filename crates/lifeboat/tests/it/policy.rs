//! `lifeboat policy`: what it prints, how it ends, and what becomes of a policy that cannot be used.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::{setting, temp_dir};
use crate::program::{Output, Program};

fn lifeboat(home: &TempDir, arguments: &[&str]) -> Output {
    Program::new(home).args(arguments).run()
}

fn write(home: &TempDir, name: &str, text: &str) {
    let path = home.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A configuration with this `[policy]`.
fn configure(home: &TempDir, policy: &str) {
    write(home, "lifeboat.toml", &format!("[policy]\n{policy}\n"));
}

fn shipped() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies")
}

#[test]
fn the_shipped_policy_is_in_force_and_tests_itself() {
    let home = temp_dir();
    let allowed = lifeboat(&home, &["policy", "eval", "list"]).success();
    assert!(allowed.stdout.contains("decision       ALLOWED (allowed)"), "{allowed}");
    let report = lifeboat(&home, &["policy", "test", "--json"]).success().json();
    assert!(report["passed"].as_u64().unwrap() >= 20 && report["failed"] == 0, "{report:#}");
    assert!(report["coverage_percent"].as_f64().unwrap() > 99.0, "{report:#}");

    // In production somebody else has to agree, and is told how.
    let request = ["policy", "eval", "key-export", "--environment", "production"];
    let denied = lifeboat(&home, &request).expect_code(20);
    assert!(denied.stdout.contains("lifeboat approval request key-export"), "{denied}");
    assert!(denied.stderr.contains("hint: lifeboat policy"), "{denied}");
    let document = lifeboat(&home, &[&request[..], &["--json"]].concat()).expect_code(20).json();
    assert_eq!((&document["decision"]["allow"], &document["decision"]["code"]), (&json!(false), &json!("denied")), "{document:#}");
    assert_eq!(document["facts"]["action"], "KEY");
    lifeboat(&home, &["policy", "eval", "restore", "--environment", "production", "--dry-run"]).success();

    let unknown = lifeboat(&home, &["policy", "eval", "teleport"]).expect_code(2);
    assert!(unknown.stderr.contains("there is no such operation") && unknown.stderr.contains("key-export"), "{unknown}");
}

#[test]
fn what_is_shown_can_be_begun_with() {
    let home = temp_dir();
    let shown = lifeboat(&home, &["policy", "show"]).success().stdout;
    assert_eq!(shown, fs::read_to_string(shipped().join("lifeboat.rego")).unwrap());
    let glass = shown.replace("\"allowed\": false", "\"allowed\": true");
    write(&home, "policy/policy.rego", &glass);
    configure(&home, "environment = 'production'\npath = 'policy'");
    assert_eq!(lifeboat(&home, &["policy", "show"]).success().stdout, glass);
    let request = ["policy", "eval", "key-export", "--break-glass", "the data centre burns", "--json"];
    let document = lifeboat(&home, &request).success().json();
    assert_eq!(document["decision"]["break_glass"], true, "{document:#}");
    // The shipped one does not break.
    let path = shipped().join("lifeboat.rego");
    lifeboat(&home, &[&request[..], &["--policy", path.to_str().unwrap()]].concat()).expect_code(20);
    let settings = lifeboat(&home, &["config", "show"]).success().stdout;
    assert!(settings.contains("policy.environment") && settings.contains("production"), "{settings}");
}

#[test]
fn a_policy_that_cannot_be_used_denies_everything() {
    let home = temp_dir();
    for (text, code, expected) in [
        (None, "no-policy", "find policy"),
        (Some("package lifeboat\ndecision := {"), "broken", "policy.rego:2:"),
        (Some("package lifeboat\ndecision := {\"allow\": time.now_ns() > 0}\n"), "broken", "input.time"),
    ] {
        configure(&home, "path = 'policy.rego'");
        if let Some(text) = text {
            write(&home, "policy.rego", text);
        }
        let denied = lifeboat(&home, &["policy", "eval", "list", "--json"]).expect_code(20);
        let decision = &denied.json()["decision"];
        assert_eq!(decision["code"], code, "{denied}");
        assert!(decision["reasons"][0].as_str().unwrap().contains(expected), "{denied}");
        assert!(denied.stderr.contains("lifeboat policy test"), "{denied}");
        let test = lifeboat(&home, &["policy", "test"]).expect_code(1);
        assert!(test.stderr.contains(expected) && test.stderr.contains("hint: "), "{test}");
        lifeboat(&home, &["policy", "show"]).expect_code(1);
    }
    for bad in ["environment = 'Production'", "engine = 'opa'", "opa_token = 'hunter2'", "timeout = '1h'", "file = 'x'"] {
        configure(&home, bad);
        let refused = lifeboat(&home, &["policy", "eval", "list"]).expect_code(2);
        assert!(refused.stderr.contains("hint: ") && !refused.stderr.contains("hunter2"), "{refused}");
    }
}

#[test]
fn tests_of_a_policy_are_run() {
    let home = temp_dir();
    let policy = "package lifeboat\ndefault decision := {\"allow\": false}\ndecision := {\"allow\": true} if input.operation == \"list\"\n";
    write(&home, "p/policy.rego", policy);
    let none = lifeboat(&home, &["policy", "test", "p"]).expect_code(1);
    assert!(none.stderr.contains("there are none in p/policy.rego") && none.stderr.contains("test_"), "{none}");
    let tests = "package p_test\nimport data.lifeboat\ntest_list if lifeboat.decision.allow with input as {\"operation\": \"list\"}\n";
    write(&home, "p/policy_test.rego", tests);
    let passed = lifeboat(&home, &["policy", "test", "p"]).success();
    assert!(passed.stdout.contains("pass   data.p_test.test_list") && passed.stdout.contains("1 passed, 0 failed"), "{passed}");
    // A file has its tests beside it.
    lifeboat(&home, &["policy", "test", "p/policy.rego"]).success();
    let more = format!(
        "{tests}test_wrong if {{\n\tprint(\"a note\", 1)\n\tlifeboat.decision.allow with input as {{\"operation\": \"prune\"}}\n}}\ntest_mistake if to_number(\"x\") == 1\n"
    );
    write(&home, "p/policy_test.rego", &more);
    let failed = lifeboat(&home, &["policy", "test", "p", "--coverage"]).expect_code(1);
    for expected in [
        "FAIL   data.p_test.test_wrong  p/policy_test.rego:4:",
        "a note 1",
        "ERROR  data.p_test.test_mistake",
        "1 passed, 2 failed",
        "p/policy.rego: ",
    ] {
        assert!(failed.stdout.contains(expected), "{expected}: {failed}");
    }
    let report = lifeboat(&home, &["policy", "test", "p", "--json"]).expect_code(1).json();
    assert_eq!(report["tests"].as_array().unwrap().iter().filter(|test| test["outcome"] == "pass").count(), 1, "{report:#}");
    // Examples stand beside the shipped policy.
    for example in ["four-eyes", "business-hours", "people"] {
        let paths = [shipped().join("lifeboat.rego"), shipped().join("examples").join(example)];
        Program::new(&home).args(["policy", "test"]).args(&paths).run().success();
    }
}

#[test]
fn facts_are_of_the_host_or_of_a_file() {
    let home = temp_dir();
    write(&home, "artifacts/log.txt", "all is well");
    fs::create_dir(home.path().join("elsewhere")).unwrap();
    let backup =
        Program::new(&home).env("LIFEBOAT_ARTIFACTS", home.path().join("artifacts")).args(["backup", "--json", "--output", "repository"]);
    let id = backup.run().success().json()["backup"].as_str().unwrap().to_owned();
    write(
        &home,
        "lifeboat.toml",
        "[[repository]]\nurl = 'repository'\n[artifacts]\ndirectory = 'artifacts'\n[policy]\nenvironment = 'production'\n",
    );
    let eval = |arguments: &[&str], code: i32| {
        let words = [&["policy", "eval", "restore", "--backup", "latest", "--json"], arguments].concat();
        lifeboat(&home, &words).expect_code(code).json()
    };
    let document = eval(&["--artifacts", "elsewhere"], 20);
    let facts = &document["facts"];
    assert_eq!((&facts["backup"]["id"], &facts["backup"]["state"]), (&json!(id), &json!("healthy")), "{document:#}");
    assert!(
        facts["backup"]["signed_by"].as_str().is_some_and(|by| !by.is_empty()) && facts["repository"]["id"].is_string(),
        "{document:#}"
    );
    assert_eq!((&facts["target"]["production"], &facts["environment"]), (&json!(false), &json!("production")));
    assert!(
        document["decision"]["reasons"][0].as_str().unwrap().starts_with("restore in environment production has 0 of 1"),
        "{document:#}"
    );
    let own = eval(&["--artifacts", "elsewhere/../artifacts/new"], 20);
    assert_eq!(own["facts"]["target"]["production"], true, "{own:#}");
    assert!(own["decision"]["reasons"][0].as_str().unwrap().starts_with("restore-production"), "{own:#}");
    eval(&["--artifacts", "elsewhere", "--environment", "staging"], 0);

    // What was printed can be asked again, with approvals.
    let mut facts = document["facts"].clone();
    facts["plan"] = json!({"digest": "6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090", "requester": "ada",
        "approvals": [{"approver": "grace", "kind": "key", "granted": "2024-06-10T06:10:00Z", "expires": "9999-06-10T10:10:00Z"}]});
    // Further than a policy's numbers reach: an error, and no yes.
    let asked =
        |facts: &Value| Program::new(&home).args(["policy", "eval", "--facts", "-", "--json"]).input(facts.to_string().as_bytes()).run();
    assert_eq!(asked(&facts).expect_code(20).json()["decision"]["code"], "error");
    facts["plan"]["approvals"][0]["expires"] = json!("2099-06-10T10:10:00Z");
    assert_eq!(asked(&facts).success().json()["decision"]["reasons"], json!(["approved by grace"]));
    write(&home, "facts.json", &document.to_string());
    lifeboat(&home, &["policy", "eval", "--facts", "facts.json"]).expect_code(20);
    for bad in ["", "{}", "[", "{\"operation\": \"teleport\"}"] {
        write(&home, "facts.json", bad);
        let refused = lifeboat(&home, &["policy", "eval", "--facts", "facts.json"]).expect_code(2);
        assert!(refused.stderr.contains("policy-facts.schema.json"), "{refused}");
    }
    lifeboat(&home, &["policy", "eval"]).expect_code(2);
    lifeboat(&home, &["policy", "eval", "restore", "--backup", "nobody-backup-20240101T000000Z"]).expect_code(1);
}

/// A real OPA. Ends with the test.
struct Opa(Child, String);

impl Opa {
    fn start(token: &str, path: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lifeboat-engine/tests/policy/opa.py");
        let mut command = Command::new(setting("LIFEBOAT_TEST_PYTHON").expect("scripts/setup test"));
        command.arg("-B").arg(script).arg(setting("LIFEBOAT_TEST_OPA").expect("scripts/setup test"));
        let mut child = command.args(["--token", token]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self(child, format!("http://127.0.0.1:{}", port.trim()))
    }
}

impl Drop for Opa {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_running_opa_decides() {
    let home = temp_dir();
    let policy = fs::read_to_string(shipped().join("lifeboat.rego")).unwrap();
    write(&home, "opa/lifeboat.rego", &policy.replace("\"key-export\": 2", "\"key-export\": 0"));
    let opa = Opa::start("hunter2", &home.path().join("opa"));
    write(&home, "token", "hunter2\n");
    let with = |rest: &str| configure(&home, &format!("environment = 'production'\nopa_url = '{}'\ntimeout = '30s'\n{rest}", opa.1));
    with("opa_token = { file = 'token' }");
    let document = lifeboat(&home, &["policy", "eval", "key-export", "--json"]).success().json();
    assert_eq!((&document["decision"]["engine"], &document["decision"]["policy"]), (&json!("opa 1.20.2"), &json!("opa:test=r7")));
    assert!(document["decision"]["decision_id"].is_string(), "{document:#}");
    let shown = lifeboat(&home, &["policy", "show"]).success();
    assert!(shown.stderr.contains(&opa.1) && !shown.stderr.contains("hunter2"), "{shown}");
    lifeboat(&home, &["policy", "test"]).expect_code(2);

    // With a policy here as well both have to allow it.
    write(&home, "here.rego", &policy);
    with("opa_token = { file = 'token' }\npath = 'here.rego'");
    let document = lifeboat(&home, &["policy", "eval", "key-export", "--json"]).expect_code(20).json();
    assert!(document["decision"]["engine"].as_str().unwrap().contains(" + opa "), "{document:#}");
    lifeboat(&home, &["policy", "eval", "list"]).success();

    with("");
    let denied = lifeboat(&home, &["policy", "eval", "list"]).expect_code(20);
    assert!(denied.stdout.contains("401") && denied.stdout.contains("DENIED (error)"), "{denied}");
    with("opa_token = { file = 'nothing' }");
    let refused = lifeboat(&home, &["policy", "eval", "list"]).expect_code(12);
    assert!(refused.stderr.contains("read policy.opa_token"), "{refused}");
    with("opa_token = { file = 'token' }");
    drop(opa);
    let away = lifeboat(&home, &["policy", "eval", "list"]).expect_code(20);
    assert!(away.stdout.contains("DENIED (unreachable)") && away.stderr.contains("policy.opa_url"), "{away}");
}
