//! What is written, and that others read it so.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_core::alert;
use lifeboat_core::status::{DiskSeen, KeySeen, Observed, RepositorySeen, Unseen};
use lifeboat_engine::metrics::{CATALOGUE, Format, Kind, exposition, reference};
use proptest::prelude::*;
use serde_json::Value;

use crate::programs::{promtool, python};
use crate::system::{self, HOSTILE, agent, blind, full, hostile, status};
use crate::text::{Labels, read};
use crate::{root, then};

fn told(observed: Observed) -> BTreeMap<Labels, f64> {
    read(&exposition(&status(observed), Some(&agent(then())), Format::Prometheus)).series
}

/// The values of a metric: by all labels but its name and the system.
fn of(series: &BTreeMap<Labels, f64>, name: &str) -> BTreeMap<Vec<String>, f64> {
    let of_it = series.iter().filter(|(labels, _)| labels["__name__"] == name);
    let labels = |labels: &Labels| {
        labels.iter().filter(|(key, _)| !matches!(key.as_str(), "__name__" | "system")).map(|(_, value)| value.clone()).collect()
    };
    of_it.map(|(all, value)| (labels(all), *value)).collect()
}

/// The value of a metric without labels; `None`: it has no series.
fn one(series: &BTreeMap<Labels, f64>, name: &str) -> Option<f64> {
    assert!(CATALOGUE.iter().any(|metric| metric.name == name), "{name}");
    let all = of(series, name);
    assert!(all.len() < 2, "{name}: {all:?}");
    all.into_values().next()
}

fn labelled(series: &BTreeMap<Labels, f64>, name: &str, labels: &[&str]) -> Option<f64> {
    assert!(CATALOGUE.iter().any(|metric| metric.name == name), "{name}");
    let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
    of(series, name).remove(&labels)
}

#[test]
fn every_series_is_in_the_catalogue_and_everything_in_the_catalogue_is_told() {
    for format in [Format::Prometheus, Format::OpenMetrics] {
        let text = exposition(&status(full(then())), Some(&agent(then())), format);
        assert_eq!(text.ends_with("\n# EOF\n"), format == Format::OpenMetrics);
        let read = read(&text);
        let mut told = BTreeSet::new();
        for labels in read.series.keys() {
            let name = &labels["__name__"];
            let metric = CATALOGUE.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("{name} is not in the catalogue"));
            let expected: BTreeSet<&str> = metric.labels.iter().copied().chain(["__name__", "system"]).collect();
            assert_eq!(labels.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{name}");
            // OpenMetrics knows a family by its name without the suffix, and has types of its own.
            let (family, kind) = match (format, metric.kind) {
                (Format::Prometheus, Kind::Info) => (name.as_str(), "gauge"),
                (Format::Prometheus, kind) => (name.as_str(), kind.word()),
                (Format::OpenMetrics, kind) => (name.trim_end_matches("_total").trim_end_matches("_info"), kind.word()),
            };
            assert_eq!((read.types[family].as_str(), read.help[family].as_str()), (kind, metric.help), "{name}");
            let unit = metric.unit().map(|unit| unit.as_str().to_owned()).filter(|_| format == Format::OpenMetrics);
            assert_eq!(read.units.get(family), unit.as_ref(), "{name}");
            told.insert(metric.name);
        }
        let never: Vec<_> = CATALOGUE.iter().map(|metric| metric.name).filter(|name| !told.contains(name)).collect();
        assert!(never.is_empty(), "nothing writes {never:?}, or the sample has no such thing");
        assert_eq!(read.types.len(), CATALOGUE.len(), "a type without series");
    }
}

#[test]
fn values_are_those_of_the_status() {
    let at = then();
    let status = status(full(at));
    let series = read(&exposition(&status, Some(&agent(at)), Format::Prometheus)).series;
    let now = at.as_millisecond() as f64 / 1000.0;
    let value = |name| one(&series, name).unwrap();
    assert_eq!(labelled(&series, "lifeboat_build_info", &["0.1.0"]), Some(1.0));
    assert_eq!(value("lifeboat_status_timestamp_seconds"), now);
    assert_eq!((value("lifeboat_status_duration_seconds"), value("lifeboat_status_unseen")), (0.25, 1.0));
    assert_eq!(labelled(&series, "lifeboat_status_unseen_thing", &["repository far"]), Some(1.0));
    assert_eq!(value("lifeboat_recoverable"), 1.0);
    assert_eq!(of(&series, "lifeboat_answer").values().sum::<f64>(), 1.0);
    assert_eq!(labelled(&series, "lifeboat_answer", &["at-risk"]), Some(1.0));
    assert_eq!(value("lifeboat_answer_reasons"), status.answer.reasons.len() as f64);
    assert_eq!((value("lifeboat_rpo_seconds"), value("lifeboat_rpo_objective_seconds")), (4.0, 86_400.0));
    assert_eq!(labelled(&series, "lifeboat_objective_met", &["rpo"]), Some(1.0));
    assert_eq!(value("lifeboat_recovery_window_start_timestamp_seconds"), now - 20.0 * 86_400.0);
    assert_eq!(value("lifeboat_recovery_window_end_timestamp_seconds"), now - 4.0);

    assert_eq!(labelled(&series, "lifeboat_repository_up", &["primary", "here"]), Some(1.0));
    assert_eq!(labelled(&series, "lifeboat_repository_up", &["best-effort", "far"]), Some(0.0));
    let missed = of(&series, "lifeboat_repository_missed_objects");
    assert_eq!(missed, BTreeMap::from([(vec!["mirror".to_owned()], 0.0), (vec!["there".to_owned()], 7.0)]), "far lost count");
    let lacks = of(&series, "lifeboat_repository_lacking_backups");
    assert_eq!(lacks, BTreeMap::from([(vec!["mirror".to_owned()], 0.0), (vec!["there".to_owned()], 1.0)]), "far was not read");

    // Labels in the order of their names: signature, state.
    assert_eq!(labelled(&series, "lifeboat_backups", &["valid", "healthy"]), Some(1.0), "the one that has expired is none of them");
    assert_eq!(labelled(&series, "lifeboat_backups", &["not-valid", "healthy"]), Some(1.0));
    assert_eq!(labelled(&series, "lifeboat_backups", &["valid", "degraded"]), Some(1.0));
    assert_eq!(of(&series, "lifeboat_backups").values().sum::<f64>(), 3.0);
    assert_eq!(of(&series, "lifeboat_backups_newest_timestamp_seconds").len(), 3);
    let newest = labelled(&series, "lifeboat_backups_newest_timestamp_seconds", &["valid", "healthy"]);
    assert_eq!((newest, value("lifeboat_backup_timestamp_seconds")), (Some(now - 7_120.0), now - 7_120.0));
    assert_eq!((value("lifeboat_backups_expired"), value("lifeboat_backups_pinned")), (1.0, 1.0));
    assert_eq!((value("lifeboat_backup_duration_seconds"), value("lifeboat_backup_plain_bytes")), (90.0, 5e9));

    assert_eq!((value("lifeboat_wal_lag_bytes"), value("lifeboat_wal_ready_files")), (12_345.0, 3.0));
    assert_eq!(of(&series, "lifeboat_wal_gaps"), BTreeMap::from([(vec!["1".to_owned()], 1.0), (vec!["2".to_owned()], 0.0)]));
    assert_eq!(value("lifeboat_receiver_status_timestamp_seconds"), now - 1.0);
    assert_eq!(labelled(&series, "lifeboat_slot_lost", &["forgotten"]), Some(1.0));
    assert_eq!(of(&series, "lifeboat_slot_safe_bytes").len(), 1, "a slot without a limit has none");

    assert_eq!((value("lifeboat_drills"), value("lifeboat_drill_failures")), (13.0, 1.0));
    assert_eq!(labelled(&series, "lifeboat_drill_verdict", &["objective-missed"]), Some(1.0));
    assert_eq!(value("lifeboat_drill_success_timestamp_seconds"), now - 30.0 * 86_400.0);
    assert_eq!(value("lifeboat_drill_rto_seconds"), 812.5);
    // key, signs_here, state, what
    let certificate = labelled(&series, "lifeboat_key_end_timestamp_seconds", &["ci@example.org", "false", "trusted", "certificate"]);
    assert_eq!(certificate, Some(now + 3.0 * 86_400.0), "of two with one name, the one that ends first");
    assert_eq!(of(&series, "lifeboat_key_end_timestamp_seconds").len(), 3);
    assert_eq!(labelled(&series, "lifeboat_run_outcome", &["replicate", "failed"]), Some(1.0));
    assert_eq!(labelled(&series, "lifeboat_run_exit_code", &["verify"]), Some(3.0));
    assert_eq!(labelled(&series, "lifeboat_run_end_timestamp_seconds", &["drill"]), None, "it runs");
    assert_eq!(labelled(&series, "lifeboat_task_next_timestamp_seconds", &["backup"]), Some(now + 3_600.0));
    assert_eq!(labelled(&series, "lifeboat_agent_deliveries_total", &["alertmanager"]), Some(812.0));
    assert_eq!(labelled(&series, "lifeboat_agent_task_runs_total", &["replicate", "failed"]), Some(5.0));

    let firing: f64 = of(&series, "lifeboat_alert_firing").values().sum();
    assert_eq!(firing, status.alerts.len() as f64);
    let kinds: BTreeSet<_> = of(&series, "lifeboat_alert_firing").into_keys().map(|labels| labels[0].clone()).collect();
    let known = |name: &str| alert::is_kind_known(&status.observed, name) || status.alerts.iter().any(|alert| alert.name == name);
    assert_eq!(kinds, alert::CATALOGUE.iter().map(|kind| kind.name).filter(|name| known(name)).map(str::to_owned).collect());
    // What hangs on the repository that was not read is not 0.
    assert!(kinds.contains("wal-gap") && kinds.len() >= alert::CATALOGUE.len() - 1, "{kinds:?}");
}

/// 0 says that somebody looked and found none.
#[test]
fn an_alert_that_nobody_could_look_for_has_no_series() {
    let mut seen = full(then());
    seen.wal = None;
    seen.unseen.push(Unseen { what: "wal".into(), why: "permission denied".into() });
    let series = read(&exposition(&status(seen), None, Format::Prometheus)).series;
    assert_eq!(labelled(&series, "lifeboat_alert_firing", &["wal-gap", "critical"]), None);
    assert_eq!(labelled(&series, "lifeboat_alert_firing", &["no-backup", "critical"]), Some(0.0));
}

/// A rule that subtracts it from the present would find nothing wrong for years.
#[test]
fn what_is_dated_in_the_future_is_not_told_as_the_newest() {
    let at = then();
    let year = jiff::SignedDuration::from_hours(365 * 24);
    let mut seen = full(at);
    let honest = read(&exposition(&status(seen.clone()), None, Format::Prometheus)).series;
    let mut backup = seen.backups.as_ref().unwrap()[0].clone();
    (backup.id, backup.consistent_at, backup.started) = (format!("{}x", backup.id), Some(at + year), Some(at + year));
    seen.backups.as_mut().unwrap().insert(0, backup);
    let drills = seen.drills.as_mut().unwrap();
    let mut drill = drills.entries.iter().find(|drill| drill.succeeded()).unwrap().clone();
    drill.at = at + year;
    drills.entries.insert(0, drill);
    let series = read(&exposition(&status(seen), None, Format::Prometheus)).series;
    for name in ["lifeboat_backups_newest_timestamp_seconds", "lifeboat_drill_success_timestamp_seconds"] {
        assert_eq!(of(&series, name), of(&honest, name), "{name}");
    }
    assert_eq!(labelled(&series, "lifeboat_alert_firing", &["backup-overdue", "critical"]), Some(1.0));
}

#[test]
fn what_nobody_saw_has_no_series() {
    let series = read(&exposition(&status(blind(then())), None, Format::Prometheus)).series;
    let names: BTreeSet<&str> = series.keys().map(|labels| labels["__name__"].as_str()).collect();
    let known = [
        "lifeboat_alert_firing",
        "lifeboat_answer",
        "lifeboat_answer_reasons",
        "lifeboat_build_info",
        "lifeboat_drill_age_objective_seconds",
        "lifeboat_rpo_objective_seconds",
        "lifeboat_rto_objective_seconds",
        "lifeboat_status_duration_seconds",
        "lifeboat_status_timestamp_seconds",
        "lifeboat_status_unseen",
    ];
    assert_eq!(names, BTreeSet::from(known));
    assert_eq!(labelled(&series, "lifeboat_answer", &["unknown"]), Some(1.0));
}

/// What is a fact when it is not there: there was no trouble, it does not run, it has not expired.
const FACTS: [&str; 3] = ["trouble", "running_since", "whole_until"];

/// Takes every part of a document away in turn, as far as it is a document without it.
fn without_each(document: &Value, path: &str, found: &mut Vec<(String, Value)>, whole: &Value) {
    let children: Vec<(String, &Value)> = match document {
        Value::Object(members) => members.iter().map(|(name, value)| (format!("{path}/{name}"), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(index, value)| (format!("{path}/{index}"), value)).collect(),
        _ => return,
    };
    for (child, value) in children {
        if !value.is_null() && !FACTS.iter().any(|fact| child.ends_with(fact)) {
            let mut less = whole.clone();
            *less.pointer_mut(&child).unwrap() = Value::Null;
            if serde_json::from_value::<Observed>(less.clone()).is_ok() {
                found.push((child.clone(), less));
            }
        }
        without_each(value, &child, found, whole);
    }
}

/// Whatever is not known: nothing that was told before is 0 because of it, and nothing new is told.
#[test]
fn what_is_not_known_is_never_told_as_zero() {
    let whole = serde_json::to_value(full(then())).unwrap();
    let before = told(full(then()));
    let mut less = Vec::new();
    without_each(&whole, "", &mut less, &whole);
    assert!(less.len() > 60, "{}", less.len());
    for (path, document) in less {
        let after = told(serde_json::from_value(document).unwrap());
        for (labels, value) in &after {
            let name = labels["__name__"].as_str();
            // What is counted is counted over what is there; and whether an alert or a verdict holds is known, whatever it follows from.
            let judged = matches!(name, "lifeboat_alert_firing" | "lifeboat_answer" | "lifeboat_recoverable" | "lifeboat_objective_met");
            let was = before.get(labels);
            assert!(was.is_some() || judged, "{path}: {labels:?}");
            assert!(*value != 0.0 || was == Some(&0.0) || judged, "{path}: {labels:?}");
        }
    }
}

#[test]
fn promtool_has_no_remark() {
    let at = then();
    let directory = tempfile::tempdir().unwrap();
    for observed in [full(at), blind(at), hostile(at)] {
        let text = exposition(&status(observed), Some(&agent(at)), Format::Prometheus);
        let output = promtool(directory.path(), &["check", "metrics"], &text);
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    }
    // It would have one.
    for wrong in
        ["lifeboat_x_total 1\n", "# HELP lifeboat_x_count x\n# TYPE lifeboat_x_count gauge\nlifeboat_x_count 1\n", "lifeboat_x{a=\"} 1\n"]
    {
        assert!(!promtool(directory.path(), &["check", "metrics"], wrong).status.success(), "{wrong}");
    }
}

#[test]
fn a_strict_reader_of_openmetrics_reads_the_same() {
    let at = then();
    for observed in [full(at), blind(at), hostile(at)] {
        let status = status(observed);
        let text = exposition(&status, Some(&agent(at)), Format::OpenMetrics);
        let output = python("openmetrics.py", &[], &text);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        let series: BTreeMap<Labels, f64> = lines.lines().map(|line| serde_json::from_str::<(Labels, f64)>(line).unwrap()).collect();
        assert_eq!(series, read(&text).series);
        assert_eq!(series, read(&exposition(&status, Some(&agent(at)), Format::Prometheus)).series, "both formats say the same");
    }
    let text = exposition(&status(blind(at)), None, Format::OpenMetrics);
    for wrong in [
        text.replace("# EOF\n", ""),
        text.replace("# UNIT lifeboat_status_timestamp_seconds seconds", "# UNIT lifeboat_status_timestamp_seconds bytes"),
    ] {
        assert!(!python("openmetrics.py", &[], &wrong).status.success(), "a strict reader refuses {wrong}");
    }
}

fn any_name() -> impl Strategy<Value = String> {
    let awkward =
        proptest::sample::select(vec!["\"", "\\", "\n", "\\n", "\\\"", "{", "}", ",", "=", "#", " ", "\r", "\u{2028}", "é", "漢", "🛟"]);
    let hostile = proptest::sample::select(HOSTILE.to_vec()).prop_map(str::to_owned);
    prop_oneof![proptest::collection::vec(awkward, 0..12).prop_map(|parts| parts.concat()), any::<String>(), hostile]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn labels_survive(system in any_name(), names in proptest::collection::btree_set(any_name(), 1..6)) {
        let mut observed = full(then());
        observed.name.clone_from(&system);
        let (repository, disk, key) = (observed.repositories[1].clone(), observed.disks[0].clone(), observed.keys[0].clone());
        observed.repositories = names.iter().map(|name| RepositorySeen { name: name.clone(), ..repository.clone() }).collect();
        observed.disks = names.iter().map(|path| DiskSeen { path: path.clone(), ..disk.clone() }).collect();
        observed.keys = names.iter().map(|name| KeySeen { name: name.clone(), ..key.clone() }).collect();
        observed.unseen = names.iter().map(|what| Unseen { what: what.clone(), why: String::new() }).collect();
        let status = status(observed);
        for format in [Format::Prometheus, Format::OpenMetrics] {
            let series = read(&exposition(&status, None, format)).series;
            prop_assert!(series.keys().all(|labels| labels["system"] == system));
            for (metric, label) in [
                ("lifeboat_repository_up", "repository"),
                ("lifeboat_repository_missed_objects", "repository"),
                ("lifeboat_disk_free_bytes", "path"),
                ("lifeboat_key_end_timestamp_seconds", "key"),
                ("lifeboat_status_unseen_thing", "thing"),
            ] {
                let of_it = series.keys().filter(|labels| labels["__name__"] == metric);
                prop_assert_eq!(&of_it.map(|labels| labels[label].clone()).collect::<BTreeSet<_>>(), &names, "{}", metric);
            }
        }
    }
}

#[test]
fn a_name_that_is_there_twice_is_told_once() {
    let mut observed = system::full(then());
    observed.disks.push(DiskSeen { free_bytes: 1, ..observed.disks[0].clone() });
    observed.repositories.push(observed.repositories[1].clone());
    observed.runs.push(observed.runs[0].clone());
    // read() panics over a series that is there twice.
    assert_eq!(labelled(&told(observed), "lifeboat_disk_free_bytes", &["spool", "/var/lib/lifeboat/spool"]), Some(1.0));
}

/// The second half of the page is the catalogue. With LIFEBOAT_TEST_WRITE it is written there.
#[test]
fn the_page_lists_the_catalogue() {
    let path = root().join("docs/metrics.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let mark = "\n## Every metric\n";
    let (prose, list) = page.split_once(mark).expect("the page has this heading");
    let (before, _) = list.split_once("\n### ").unwrap_or((list, ""));
    let expected = format!("{prose}{mark}{before}\n{}", reference());
    if std::env::var_os("LIFEBOAT_TEST_WRITE").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    assert!(
        page == expected,
        "docs/metrics.md is not what the catalogue says: LIFEBOAT_TEST_WRITE=1 scripts/test the_page_lists_the_catalogue"
    );
    // What the prose names is in the catalogue.
    for name in crate::names(prose) {
        assert!(CATALOGUE.iter().any(|metric| metric.name == name), "{name}");
    }
}
