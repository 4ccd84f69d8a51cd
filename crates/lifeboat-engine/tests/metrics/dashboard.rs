//! `deploy/grafana/lifeboat.json`: every panel asks for what there is, and a Prometheus has an answer for it.

use std::collections::BTreeSet;

use lifeboat_engine::metrics::{CATALOGUE, exposition};
use serde_json::Value;

use crate::programs::{Agent, Prometheus, promtool, wait_for};
use crate::system::{agent, full, status};
use crate::{names, root};

fn dashboard() -> Value {
    serde_json::from_slice(&std::fs::read(root().join("deploy/grafana/lifeboat.json")).unwrap()).unwrap()
}

/// Every panel's title and expressions.
fn panels(dashboard: &Value) -> Vec<(String, Vec<String>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let expressions = |panel: &Value| panel["targets"].as_array().unwrap().iter().map(|target| text(&target["expr"])).collect();
    dashboard["panels"].as_array().unwrap().iter().map(|panel| (text(&panel["title"]), expressions(panel))).collect()
}

#[test]
fn it_is_a_dashboard() {
    let dashboard = dashboard();
    // What Grafana 9 to 11 have in common; newer ones bring it up to date when they load it.
    assert_eq!((dashboard["schemaVersion"].as_u64(), dashboard["id"].is_null()), (Some(38), true));
    assert_eq!((dashboard["uid"].as_str(), dashboard["title"].as_str()), (Some("lifeboat"), Some("lifeboat")));
    let variables: Vec<_> = dashboard["templating"]["list"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(variables, ["datasource", "system"]);
    let known = ["stat", "timeseries", "state-timeline", "table", "bargauge"];
    let (mut ids, mut titles, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(titles.insert(title) && ids.insert(panel["id"].as_u64().unwrap()), "{title} is there twice");
        assert!(known.contains(&panel["type"].as_str().unwrap()), "{title}");
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}: no data source of one installation");
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{title}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{title} lies over another panel");
            }
        }
        let mut references = BTreeSet::new();
        for target in panel["targets"].as_array().unwrap() {
            assert!(references.insert(target["refId"].as_str().unwrap()), "{title}");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let expression = target["expr"].as_str().unwrap();
            let asked = names(expression);
            assert!(!asked.is_empty(), "{title}: {expression}");
            for name in &asked {
                let metric = CATALOGUE.iter().find(|metric| metric.name == *name).unwrap_or_else(|| panic!("{title}: {name}"));
                // Each is asked for of one system: another one's backup must not stand here.
                assert!(expression.contains(&format!("{name}{{system=\"$system\"")), "{title}: {expression}");
                assert_eq!(metric.name.ends_with("_total"), expression.contains(&format!("increase({name}")), "{title}: {expression}");
            }
        }
        assert!(!references.is_empty(), "{title}");
    }
    let bottom = taken.iter().map(|(_, y)| y + 1).max().unwrap();
    assert_eq!(taken.len() as u64, 24 * bottom, "there is a hole between the panels");
}

#[test]
fn promtool_parses_every_expression() {
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    let dashboard = dashboard();
    let panels = panels(&dashboard);
    assert!(panels.len() > 15);
    for (number, expression) in panels.iter().flat_map(|(_, expressions)| expressions).enumerate() {
        let expression = serde_json::to_string(&expression.replace("$system", "conductor")).unwrap();
        rules += &format!("  - {{record: 'dashboard:panel:{number}', expr: {expression}}}\n");
    }
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("rules.yml"), &rules).unwrap();
    let output = promtool(here.path(), &["check", "rules", "rules.yml"], "");
    assert!(output.status.success(), "{output:?}");
    std::fs::write(here.path().join("rules.yml"), rules.replacen("max(", "max((", 1)).unwrap();
    assert!(!promtool(here.path(), &["check", "rules", "rules.yml"], "").status.success(), "it would say so");
}

#[test]
fn every_panel_has_something_to_show() {
    let now = jiff::Timestamp::now();
    let handed_out = Agent::start(move |format| exposition(&status(full(now)), Some(&agent(now)), format));
    let prometheus = Prometheus::start(&[("lifeboat", handed_out.address, "/metrics")], &[]);
    let dashboard = dashboard();
    for (title, expressions) in panels(&dashboard) {
        for expression in expressions {
            // An increase needs two scrapes.
            wait_for(&format!("{title}: {expression}"), || match prometheus.query(&expression.replace("$system", "conductor")) {
                Ok(series) if series.is_empty() => Err("nothing".to_owned()),
                other => other,
            });
            assert_eq!(prometheus.query(&expression.replace("$system", "other")).unwrap(), [], "{title}: shows another system");
        }
    }
    // What the list of systems is filled from.
    let systems = prometheus.ask("label/system/values", &[("match[]", "lifeboat_status_timestamp_seconds")]).unwrap();
    assert_eq!(systems, serde_json::json!(["conductor"]));
}
