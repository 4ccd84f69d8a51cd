//! `docs/drill-report.schema.json` describes the reports that the types make, all of them and nothing else.

#[path = "support/schema.rs"]
mod schema;

use std::collections::BTreeSet;
use std::path::PathBuf;

use lifeboat_core::drill::{Check, Control, Report, Scenario};
use serde_json::Value;

fn root() -> PathBuf {
    schema::path("../..")
}

fn schema() -> Value {
    serde_json::from_slice(&std::fs::read(root().join("docs/drill-report.schema.json")).unwrap()).unwrap()
}

/// A report as this program writes it: through the type.
fn written(name: &str) -> Value {
    let bytes = std::fs::read(root().join("testdata/drills").join(name)).unwrap();
    serde_json::to_value(serde_json::from_slice::<Report>(&bytes).unwrap()).unwrap()
}

fn check(documents: &[Value]) -> Result<(), String> {
    schema::check(&root().join("docs/drill-report.schema.json"), documents)
}

#[test]
fn the_schema_describes_every_report() {
    let mut all: Vec<Value> = ["passed.json", "failed.json", "gaps.json", "hostile.json"].into_iter().map(written).collect();
    all[0]["actor"]["sudo_user"] = "alice".into();
    check(&all).unwrap();
    // And it would say so if one did not fit: a member too many, anywhere; one too few; another word.
    for (pointer, value) in [("", "new"), ("/rto", "new"), ("/checks/0", "new"), ("/environment/isolation/0", "new")] {
        let mut strange = all[0].clone();
        strange.pointer_mut(pointer).unwrap()[value] = 1.into();
        assert!(check(&[strange]).is_err(), "{pointer}");
    }
    let mut strange = all[0].clone();
    strange["verdict"] = "fine".into();
    assert!(check(&[strange]).is_err());
    for example in schema()["examples"].as_array().unwrap() {
        serde_json::from_value::<Report>(example.clone()).unwrap();
    }
}

/// Whatever the schema says must be there, the type demands; whatever it names, some report has.
#[test]
fn the_schema_promises_what_the_type_keeps() {
    let (schema, full) = (schema(), written("passed.json"));
    for name in schema["required"].as_array().unwrap() {
        let mut without = full.clone();
        without.as_object_mut().unwrap().remove(name.as_str().unwrap()).unwrap();
        assert!(serde_json::from_value::<Report>(without).is_err(), "{name} is required by the schema only");
    }
    let named: BTreeSet<&String> = schema["properties"].as_object().unwrap().keys().collect();
    assert_eq!(named, full.as_object().unwrap().keys().collect::<BTreeSet<_>>());
    let words = |pointer: &str| -> BTreeSet<String> { serde_json::from_value(schema.pointer(pointer).unwrap().clone()).unwrap() };
    assert_eq!(words("/$defs/check/enum"), Check::ALL.into_iter().map(Check::name).collect());
    assert_eq!(words("/properties/controls/items/properties/control/enum"), Control::ALL.into_iter().map(Control::name).collect());
    assert_eq!(words("/properties/scenarios/items/properties/scenario/enum"), Scenario::ALL.into_iter().map(Scenario::name).collect());
}
