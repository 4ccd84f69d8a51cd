//! `deploy/prometheus`: every kind of alert has its rule, and every rule is tried out by promtool.

use std::collections::BTreeSet;
use std::path::PathBuf;

use lifeboat_core::alert;
use lifeboat_engine::metrics::CATALOGUE;
use serde_json::Value;

use crate::programs::{Prometheus, promtool};
use crate::{names, root};

fn directory() -> PathBuf {
    root().join("deploy/prometheus")
}

/// What Prometheus itself loaded: the rules of each group.
fn loaded() -> Vec<(String, Vec<Value>)> {
    let prometheus = Prometheus::start(&[], &[&directory().join("lifeboat.rules.yml")]);
    let groups = prometheus.ask("rules", &[]).unwrap()["groups"].as_array().unwrap().clone();
    let rules = |group: &Value| group["rules"].as_array().unwrap().clone();
    groups.iter().map(|group| (group["name"].as_str().unwrap().to_owned(), rules(group))).collect()
}

/// `wal-gap` is `LifeboatWalGap`.
fn alert_name(kind: &str) -> String {
    let upper = |word: &str| word[..1].to_ascii_uppercase() + &word[1..];
    format!("Lifeboat{}", kind.split('-').map(upper).collect::<String>())
}

/// The one that cannot be told by whoever cannot look.
const UNTOLD: &str = "status-stale";

const DESCRIPTION: &str = "says of what, with the numbers and what to do.";

/// Compares a part of a file, between two lines, with what the catalogue says. With LIFEBOAT_TEST_WRITE it is written there.
fn made(file: &str, after: &str, before: &str, expected: &str) {
    let path = directory().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(after).unwrap_or_else(|| panic!("{file} has no line {after:?}"));
    let (found, tail) = rest.split_once(before).unwrap_or_else(|| panic!("{file} has no line {before:?}"));
    if std::env::var_os("LIFEBOAT_TEST_WRITE").is_some() {
        std::fs::write(&path, [head, after, expected, before, tail].concat()).unwrap();
        return;
    }
    assert!(found == expected, "{file} is not what the catalogue says: LIFEBOAT_TEST_WRITE=1 scripts/test the_files_follow_the_catalogue");
}

#[test]
fn the_files_follow_the_catalogue() {
    let kinds = || alert::CATALOGUE.iter().filter(|kind| kind.name != UNTOLD);
    let rule = |kind: &alert::Kind| {
        format!(
            r#"      - alert: {}
        expr: lifeboat_alert_firing{{alertname="{}"}} > 0
        for: 1m
        labels:
          severity: "{{{{ $labels.severity }}}}"
          seen_by: lifeboat
        annotations:
          summary: "{{{{ $labels.system }}}}: {}"
          description: lifeboat status, on the host that {{{{ $labels.instance }}}} is of, {DESCRIPTION}
          runbook: docs/alerts.md#{}
"#,
            alert_name(kind.name),
            kind.name,
            kind.when,
            kind.name
        )
    };
    let rules: String = kinds().map(rule).collect();
    made("lifeboat.rules.yml", "  - name: lifeboat\n    rules:\n", "\n  # What matters most", &rules);
    let series = |kind: &alert::Kind| {
        format!(
            r#"      - series: lifeboat_alert_firing{{alertname="{}", severity="{}", system="conductor", instance="db1"}}
        values: 0x10 1x10
"#,
            kind.name,
            kind.severity.word()
        )
    };
    let test = |kind: &alert::Kind| {
        format!(
            r#"      - {{eval_time: 10m, alertname: {name}, exp_alerts: []}}
      - eval_time: 12m
        alertname: {name}
        exp_alerts:
          - exp_labels: {{severity: {severity}, seen_by: lifeboat, system: conductor, instance: db1}}
            exp_annotations:
              summary: "conductor: {when}"
              description: lifeboat status, on the host that db1 is of, {DESCRIPTION}
              runbook: docs/alerts.md#{kind}
"#,
            name = alert_name(kind.name),
            severity = kind.severity.word(),
            when = kind.when,
            kind = kind.name
        )
    };
    let tests = format!("{}    alert_rule_test:\n{}", kinds().map(series).collect::<String>(), kinds().map(test).collect::<String>());
    let before = "\n  # The severity is the alert's own.";
    made("lifeboat.rules.test.yml", "then everything does.\n  - interval: 1m\n    input_series:\n", before, &tests);
}

/// What no kind stands for: nobody is there who could raise it.
const BEYOND: [&str; 2] = ["LifeboatTargetDown", "LifeboatAbsent"];

#[test]
fn every_kind_has_its_rule_and_every_rule_its_kind() {
    let groups = loaded();
    let names_of_groups: Vec<&str> = groups.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names_of_groups, ["lifeboat", "lifeboat-series"]);
    let text = |rule: &Value, pointer: &str| {
        rule.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer}: {rule}")).to_owned()
    };
    for (group, rules) in &groups {
        for rule in rules {
            let name = text(rule, "/name");
            for metric in names(&text(rule, "/query")) {
                assert!(CATALOGUE.iter().any(|known| known.name == metric), "{name}: {metric}");
            }
            let runbook = text(rule, "/annotations/runbook");
            let kind = runbook.strip_prefix("docs/alerts.md#").and_then(alert::find).unwrap_or_else(|| panic!("{name}: {runbook}"));
            assert!(alert_name(kind.name) == name || BEYOND.contains(&name.as_str()) && kind.name == UNTOLD, "{name}: {runbook}");
            assert!(!text(rule, "/annotations/description").is_empty());
            if group == "lifeboat" {
                assert_eq!(text(rule, "/query"), format!("lifeboat_alert_firing{{alertname=\"{}\"}} > 0", kind.name));
                assert_eq!(text(rule, "/labels/severity"), "{{ $labels.severity }}");
                assert_eq!(text(rule, "/annotations/summary"), format!("{{{{ $labels.system }}}}: {}", kind.when));
            } else {
                assert!(!text(rule, "/query").contains("lifeboat_alert_firing"), "{name} hangs on what lifeboat comes to");
                let severity = text(rule, "/labels/severity");
                assert!(severity == kind.severity.word() || severity == "warning", "{name}: {severity}, and lifeboat's own is less");
            }
        }
    }
    let of_group = |index: usize| -> Vec<String> { groups[index].1.iter().map(|rule| text(rule, "/name")).collect() };
    let kinds = alert::CATALOGUE.iter().map(|kind| kind.name);
    let expected: Vec<String> = kinds.clone().filter(|kind| *kind != UNTOLD).map(alert_name).collect();
    assert_eq!(of_group(0), expected);
    let series: BTreeSet<String> = of_group(1).into_iter().collect();
    assert!(series.contains(&alert_name(UNTOLD)) && BEYOND.iter().all(|name| series.contains(*name)));
    // Who left one out said why.
    let file = std::fs::read_to_string(directory().join("lifeboat.rules.yml")).unwrap();
    for kind in kinds.filter(|kind| !series.contains(&alert_name(kind))) {
        let said = |line: &str| line.trim_start().starts_with("#   ") && line.contains(kind);
        assert!(file.lines().any(said), "{kind} has no rule from the series, and the file does not say why");
    }
}

/// The rules of one group and their tests, to be changed: all of both take promtool seconds.
struct Group {
    rules: Vec<String>,
    tests: String,
}

/// A rule: its name, and the lines of its expression.
struct Place {
    alert: String,
    expression: std::ops::Range<usize>,
}

impl Group {
    /// The first group, or the second.
    fn read(second: bool) -> Self {
        let cut = |file: &str, begin: &str, mark: &str| {
            let text = std::fs::read_to_string(directory().join(file)).unwrap();
            let (head, rest) = text.split_once(begin).unwrap();
            let (one, two) = rest.split_once(mark).unwrap();
            if second { [head, begin, mark, two].concat() } else { [head, begin, one].concat() }
        };
        let rules = cut("lifeboat.rules.yml", "groups:\n", "  - name: lifeboat-series\n");
        let tests = cut("lifeboat.rules.test.yml", "tests:\n", "  # The agent of db1 goes");
        Self { rules: rules.lines().map(str::to_owned).collect(), tests }
    }

    fn places(&self) -> Vec<Place> {
        let place = |(at, line): (usize, &String)| {
            let alert = line.trim().strip_prefix("- alert: ")?.to_owned();
            let next = |begin: &str| at + self.rules[at..].iter().position(|line| line.trim().starts_with(begin)).unwrap();
            Some(Place { alert, expression: next("expr: ")..next("for: ") })
        };
        self.rules.iter().enumerate().filter_map(place).collect()
    }

    /// Whether the tests pass when every rule has another expression, and of which alerts promtool says that they are not as a test says.
    fn tested_with(&self, change: impl Fn(&str) -> String) -> (bool, Vec<String>) {
        let (mut rules, places) = (self.rules.clone(), self.places());
        for place in places.iter().rev() {
            let text: Vec<&str> = self.rules[place.expression.clone()].iter().map(|line| line.trim()).collect();
            let expression = change(&text.join(" ").replace("expr: ", "").replace(">- ", ""));
            rules.splice(place.expression.clone(), [format!("        expr: {}", serde_json::to_string(&expression).unwrap())]);
        }
        let here = tempfile::tempdir().unwrap();
        std::fs::write(here.path().join("lifeboat.rules.yml"), rules.join("\n") + "\n").unwrap();
        std::fs::write(here.path().join("lifeboat.rules.test.yml"), &self.tests).unwrap();
        let checked = promtool(here.path(), &["check", "rules", "lifeboat.rules.yml"], "");
        assert!(checked.status.success(), "{checked:?}");
        let output = promtool(here.path(), &["test", "rules", "lifeboat.rules.test.yml"], "");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let noticed = |alert: &String| said.contains(&format!("alertname: {alert}, time:"));
        (output.status.success(), places.into_iter().map(|place| place.alert).filter(noticed).collect())
    }
}

#[test]
fn promtool_tries_every_rule_out() {
    let output = promtool(&directory(), &["test", "rules", "lifeboat.rules.test.yml"], "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    for (second, count) in [(false, alert::CATALOGUE.len() - 1), (true, 11)] {
        let group = Group::read(second);
        let alerts: Vec<String> = group.places().into_iter().map(|place| place.alert).collect();
        assert_eq!(alerts.len(), count);
        assert_eq!(group.tested_with(str::to_owned), (true, Vec::new()));
        let (_, noticed) = group.tested_with(|_| "vector(0) > 1".to_owned());
        assert_eq!(noticed, alerts, "no test sees the others fire");
        // Fires as it should, and where nothing should.
        let (_, noticed) = group.tested_with(|expression| format!("({expression}) or on () vector(1)"));
        assert_eq!(noticed, alerts, "no test sees the others not fire");
    }
}
