//! Policies, asked in the embedded evaluator and in a real OPA: the same answers, and no answer that is not one.

mod facts;
mod failures;
mod loading;
#[path = "../support/schema.rs"]
mod schema;
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_core::policy::{Code, Decision, Facts};
use lifeboat_engine::policy::{BUILTINS, ENGINE, Engines, OpaSettings, Policy, PolicySettings, SHIPPED, Sources, suite};

use facts::{Dice, facts};
use server::Opa;

/// Long enough for a machine that does other things too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What `scripts/setup test` wrote down.
pub(crate) fn setting(variable: &str) -> String {
    let from_file = || {
        let text = std::fs::read_to_string(root().join(".tools/env")).ok()?;
        let prefix = format!("export {variable}=");
        Some(text.lines().find_map(|line| line.strip_prefix(&prefix))?.replace('\\', ""))
    };
    std::env::var(variable).ok().or_else(from_file).unwrap_or_else(|| panic!("{variable} is not set: run scripts/setup test"))
}

fn dice() -> Dice {
    let seed = std::env::var("LIFEBOAT_TEST_SEED").map_or_else(|_| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    eprintln!("LIFEBOAT_TEST_SEED={seed}");
    Dice(seed)
}

/// A directory with the shipped policy, and what is added to it.
fn directory(extra: &[&Path]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("lifeboat.rego"), SHIPPED).unwrap();
    for path in extra {
        for entry in std::fs::read_dir(path).unwrap() {
            let entry = entry.unwrap().path();
            std::fs::copy(&entry, directory.path().join(entry.file_name().unwrap())).unwrap();
        }
    }
    directory
}

pub(crate) fn embedded(path: &Path) -> PolicySettings {
    PolicySettings { path: Some(path.to_owned()), timeout: PATIENCE, ..PolicySettings::default() }
}

pub(crate) fn remote(url: &str) -> PolicySettings {
    let opa = OpaSettings { url: url.to_owned(), path: "lifeboat/decision".to_owned(), token: None, ca: None, identity: None };
    PolicySettings { engines: Engines::Opa, path: None, opa: Some(opa), timeout: PATIENCE }
}

/// Every policy that is shipped, with its tests, and one whose glass breaks.
fn shipped() -> BTreeMap<String, tempfile::TempDir> {
    let mut all = BTreeMap::new();
    let plain = directory(&[]);
    std::fs::copy(root().join("policies/lifeboat_test.rego"), plain.path().join("lifeboat_test.rego")).unwrap();
    all.insert("shipped".to_owned(), plain);
    for entry in std::fs::read_dir(root().join("policies/examples")).unwrap() {
        let entry = entry.unwrap();
        all.insert(entry.file_name().into_string().unwrap(), directory(&[&entry.path()]));
    }
    assert!(all.len() >= 4, "{:?}", all.keys());
    all
}

#[test]
fn tests_of_shipped_policies_pass_in_both_engines() {
    for (name, directory) in shipped() {
        let sources = Sources::read(directory.path()).unwrap();
        let report = suite::run(&sources, PATIENCE).unwrap();
        let failed: Vec<_> = report.tests.iter().filter(|test| test.outcome != suite::Outcome::Pass).collect();
        assert!(report.tests.len() >= 3 && failed.is_empty(), "{name}: {failed:#?}");
        let opa = Opa::start(&[directory.path()]);
        for test in &report.tests {
            let path = test.name.trim_start_matches("data.").replace('.', "/");
            assert_eq!(opa.value(&path), Some(serde_json::Value::Bool(true)), "{name}: {}", test.name);
        }
    }
    let report = suite::run(&Sources::shipped(), PATIENCE).unwrap();
    assert!(report.tests.len() >= 20 && report.failed() == 0);
    assert!(report.percent() > 99.0, "{:?}", report.coverage);
}

#[test]
fn both_engines_decide_alike() {
    let mut dice = dice();
    let glass = directory(&[]);
    let text = SHIPPED.replace("\"allowed\": false", "\"allowed\": true");
    assert_ne!(text, SHIPPED);
    std::fs::write(glass.path().join("lifeboat.rego"), text).unwrap();
    let mut policies = shipped();
    policies.insert("glass".to_owned(), glass);
    for (name, directory) in policies {
        let opa = Opa::start(&[directory.path()]);
        let here = Policy::open(&embedded(directory.path()));
        let there = Policy::open(&remote(&opa.url));
        assert_eq!((here.trouble(), there.trouble()), (None, None));
        let mut counts = BTreeMap::<(Code, bool), usize>::new();
        let seen = |counts: &BTreeMap<(Code, bool), usize>, what| counts.get(&what).copied().unwrap_or(0);
        // Until every kind of decision was compared often enough, however the dice fall: one in a hundred breaks glass.
        for round in 0.. {
            let facts = facts(&mut dice);
            let (one, other) = (here.decide(&facts), there.decide(&facts));
            assert_eq!((one.code, &one.decision), (other.code, &other.decision), "{name}: {facts:#?}");
            assert!(matches!(one.code, Code::Allowed | Code::Denied), "{name}: {one:?}");
            assert!(!one.decision.break_glass || name == "glass", "{name}: {one:?}");
            *counts.entry((one.code, one.decision.break_glass)).or_default() += 1;
            let enough = seen(&counts, (Code::Allowed, false)) > 10
                && seen(&counts, (Code::Denied, false)) > 10
                && (name != "glass" || seen(&counts, (Code::Allowed, true)) > 0);
            if round >= 150 && enough {
                break;
            }
            assert!(round < 20_000, "{name} never decides otherwise: {counts:?}");
        }
        eprintln!("{name}: {counts:?}");
    }
}

/// What the shipped policy promises, said once more in another language.
#[test]
fn the_shipped_policy_keeps_its_promises() {
    let mut dice = dice();
    let policy = Policy::open(&PolicySettings { timeout: PATIENCE, ..PolicySettings::default() });
    let mut allowed = 0;
    for _ in 0..5000 {
        let facts = facts(&mut dice);
        let decided = policy.decide(&facts);
        assert!(!decided.decision.break_glass, "off unless somebody turns it on: {facts:?}");
        assert!(!decided.decision.reasons.is_empty());
        let approvers = facts.plan.as_ref().map_or(0, |plan| {
            let counting = plan.approvals.iter().filter(|approval| {
                approval.expires.as_nanosecond() > i128::from(facts.time_seconds) * 1_000_000_000
                    && Some(&approval.approver) != plan.requester.as_ref()
            });
            counting.map(|approval| &approval.approver).collect::<std::collections::BTreeSet<_>>().len()
        });
        assert_eq!(decided.decision.allow, promised(&facts, approvers), "{facts:#?} {decided:#?}");
        allowed += usize::from(decided.decision.allow);
    }
    assert!((1000..4900).contains(&allowed), "{allowed}");
}

fn promised(facts: &Facts, approvers: usize) -> bool {
    use lifeboat_core::policy::{ActionClass, Operation};
    if facts.dry_run || matches!(facts.action, ActionClass::Read | ActionClass::Write | ActionClass::Approve) {
        return true;
    }
    let comes_back = matches!(facts.operation, Operation::Restore | Operation::DrillRun);
    if comes_back {
        let accepts = facts.target.as_ref().is_some_and(|target| target.accept_degraded);
        match &facts.backup {
            None => return false,
            Some(backup) if backup.state != "healthy" && !accepts => return false,
            Some(_) => {}
        }
    }
    if facts.environment != "production" {
        return true;
    }
    let needed = match facts.operation {
        Operation::Restore => facts.target.as_ref().map(|target| if target.production || target.start { 2 } else { 1 }),
        Operation::DrillRun => facts.target.as_ref().map(|target| if target.production { 2 } else { 0 }),
        Operation::Prune => facts.deletion.as_ref().map(|deletion| usize::from(!deletion.forget.is_empty())),
        Operation::KeyExport => Some(2),
        Operation::Expire | Operation::Unpin => Some(0),
        Operation::KeyGenerate | Operation::KeyRotate | Operation::KeyRevoke | Operation::AuditResume => Some(0),
        other => panic!("{other:?} has a class of its own"),
    };
    needed.is_some_and(|needed| approvers >= needed)
}

#[test]
fn every_builtin_is_the_same_in_both_engines() {
    let path = root().join("crates/lifeboat-engine/tests/policy/builtins_test.rego");
    let text = std::fs::read_to_string(&path).unwrap();
    let untested: Vec<_> = BUILTINS.iter().filter(|name| !text.contains(&format!("{name}("))).collect();
    assert!(untested.is_empty(), "{untested:?}");
    let directory = directory(&[]);
    std::fs::copy(&path, directory.path().join("builtins_test.rego")).unwrap();
    let report = suite::run(&Sources::read(directory.path()).unwrap(), PATIENCE).unwrap();
    let opa = Opa::start(&[directory.path()]);
    let mut wrong = Vec::new();
    for test in &report.tests {
        let value = opa.value(&test.name.trim_start_matches("data.").replace('.', "/"));
        if test.outcome != suite::Outcome::Pass || value != Some(serde_json::Value::Bool(true)) {
            wrong.push(format!("{} {:?} {:?}, OPA {value:?}", test.name, test.outcome, test.problem));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(report.tests.len() > 30);
}

/// Ends with an error where a document does not fit the schema, or a fact has no description in it.
fn check_schema(documents: &[String]) {
    schema::check(&root().join("docs/policy-facts.schema.json"), documents).unwrap_or_else(|text| panic!("{text}"));
}

#[test]
fn the_schema_describes_all_facts() {
    let mut dice = dice();
    let documents: Vec<String> = (0..500).map(|_| serde_json::to_string(&facts(&mut dice)).unwrap()).collect();
    check_schema(&documents);
    // And it would say so if one did not fit.
    let schema: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(root().join("docs/policy-facts.schema.json")).unwrap()).unwrap();
    let mut operations: Vec<String> = serde_json::from_value(schema["properties"]["operation"]["enum"].clone()).unwrap();
    operations.sort();
    let mut all: Vec<String> = lifeboat_core::policy::Operation::ALL.into_iter().map(lifeboat_core::policy::Operation::name).collect();
    all.sort();
    assert_eq!(operations, all);
    let strange = documents[0].replacen('{', "{\"new\": 1,", 1);
    assert!(std::panic::catch_unwind(|| check_schema(&[strange])).is_err());
    // Its examples are facts, and all of them together show every member.
    for example in schema["examples"].as_array().unwrap() {
        serde_json::from_value::<Facts>(example.clone()).unwrap();
    }
}

#[test]
fn the_examples_of_the_documentation_work() {
    let text = std::fs::read_to_string(root().join("docs/policy.md")).unwrap();
    let blocks = |language: &str| -> Vec<String> {
        let fence = format!("```{language}\n");
        text.split(&fence).skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
    };
    let facts = blocks("json");
    assert!(!facts.is_empty());
    let policy = Policy::open(&PolicySettings::default());
    let mut lines = Vec::new();
    for example in facts {
        let value: serde_json::Value = serde_json::from_str(&example).unwrap_or_else(|error| panic!("{error}: {example}"));
        if value.get("operation").is_some() {
            policy.decide(&serde_json::from_value(value.clone()).unwrap());
            lines.push(value.to_string());
        } else {
            serde_json::from_value::<Decision>(value).unwrap();
        }
    }
    assert!(!lines.is_empty());
    check_schema(&lines);
    let rego = blocks("rego");
    assert!(rego.len() >= 2);
    for example in rego {
        // A rule that is added stands beside the shipped policy, a whole policy alone.
        let whole = example.contains("\ndecision :=") || example.contains("default decision");
        let directory = if whole { tempfile::tempdir().unwrap() } else { directory(&[]) };
        std::fs::write(directory.path().join("example.rego"), &example).unwrap();
        assert_eq!(Policy::open(&embedded(directory.path())).trouble(), None, "{example}");
        assert!(Opa::start(&[directory.path()]).value("lifeboat").is_some(), "{example}");
    }
    for code in Code::ALL {
        assert!(text.contains(&format!("`{}`", code.name())), "{code:?} is not in docs/policy.md");
    }
    for name in BUILTINS {
        assert!(text.contains(&format!("`{name}`")), "{name} is not in docs/policy.md");
    }
}

#[test]
fn the_evaluator_has_the_version_that_it_says() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let version = lock.split("name = \"regorus\"\nversion = \"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(ENGINE, format!("regorus {version}"));
}

#[test]
fn threads_share_a_policy() {
    let policy = Policy::open(&PolicySettings { timeout: PATIENCE, ..PolicySettings::default() });
    let expected: Vec<(Facts, Decision)> = {
        let mut dice = dice();
        (0..200).map(|_| facts(&mut dice)).map(|facts| (facts.clone(), policy.decide(&facts).decision)).collect()
    };
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (policy, expected) = (&policy, &expected);
            scope.spawn(move || {
                for (facts, decision) in expected.iter().skip(part) {
                    assert_eq!(&policy.decide(facts).decision, decision);
                }
            });
        }
    });
}
