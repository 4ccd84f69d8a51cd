//! `docs/status.schema.json` describes what the types make, all of it and nothing else.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::status::Status;
use lifeboat_engine::web::{Part, api};
use serde_json::Value;

use crate::json_schema;
use crate::samples::{agent, judged, observed, with_backups};

fn root() -> PathBuf {
    json_schema::path("../..")
}

fn schema() -> Value {
    serde_json::from_slice(&std::fs::read(root().join("docs/status.schema.json")).unwrap()).unwrap()
}

fn check(documents: &[Value]) -> Result<(), String> {
    json_schema::check(&root().join("docs/status.schema.json"), documents)
}

/// As `/api/v1/status` answers.
fn served(status: &Status, part: Part) -> Value {
    let agent = lifeboat_engine::web::AgentView { part, trouble: Some("it hung".into()), ..agent(status.observed.at) };
    let now = status.observed.at.saturating_add(SignedDuration::from_secs(9)).unwrap();
    serde_json::to_value(api::status(status, &agent, now)).unwrap()
}

/// As `lifeboat status --json` prints.
fn printed(status: &Status) -> Value {
    serde_json::to_value(status).unwrap()
}

/// Documents that have everything in them, somewhere.
fn all() -> Vec<Value> {
    let mut documents = Vec::new();
    for name in ["well", "at-risk", "hostile"] {
        let status = judged(observed(name));
        documents.extend([printed(&status), served(&status, Part::Leader), served(&status, Part::Standby { holder: None })]);
    }
    let at: Timestamp = "2024-03-15T02:14:36Z".parse().unwrap();
    documents.push(served(&judged(with_backups(2000, at)), Part::Standby { holder: Some("db2".into()) }));
    let mut bare = observed("well");
    (bare.server, bare.backups, bare.wal, bare.artifacts, bare.drills) = (None, None, None, None, None);
    documents.push(printed(&judged(bare)));
    documents
}

#[test]
fn the_schema_describes_every_status() {
    let documents = all();
    check(&documents).unwrap();
    // And it would say so if one did not fit: a member too many, anywhere; another word; one too few.
    let full = &documents[3];
    for pointer in [
        "",
        "/answer",
        "/answer/proof",
        "/alerts/0",
        "/backups/0",
        "/wal",
        "/wal/windows/0/from",
        "/wal/receiver",
        "/drills/entries/0",
        "/objectives",
        "/runs/0",
    ] {
        let mut strange = full.clone();
        strange.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}"))["new"] = 1.into();
        assert!(check(&[strange]).is_err(), "{pointer}");
    }
    for (pointer, word) in [
        ("/answer/verdict", "fine"),
        ("/backups/0/state", "fine"),
        ("/alerts/0/severity", "fine"),
        ("/drills/entries/0/verdict", "fine"),
        ("/runs/0/outcome", "fine"),
        ("/at", "yesterday"),
    ] {
        let mut strange = full.clone();
        *strange.pointer_mut(pointer).unwrap() = word.into();
        assert!(check(&[strange]).is_err(), "{pointer}");
    }
    for example in schema()["examples"].as_array().unwrap() {
        let status: Status = serde_json::from_value(example.clone()).unwrap();
        // It is what the types make of what is in it.
        assert_eq!(printed(&judged(status.observed)), *example);
    }
}

/// Whatever the schema says must be there, the type demands; whatever it names, some document has.
#[test]
fn the_schema_promises_what_the_types_keep() {
    let (schema, documents) = (schema(), all());
    let mut unmet = BTreeSet::new();
    // Every object of the schema with one of the documents that it describes.
    let mut kinds = vec![("".to_owned(), schema.clone())];
    kinds.extend(schema["$defs"].as_object().unwrap().iter().map(|(name, kind)| (name.clone(), kind.clone())));
    for (name, kind) in kinds {
        let Some(properties) = kind["properties"].as_object() else { continue };
        let described: BTreeSet<&String> = properties.keys().collect();
        let mut had: BTreeSet<String> = BTreeSet::new();
        for document in &documents {
            let mut found = Vec::new();
            places(&schema, &schema, document, "", &name, &mut found);
            for place in &found {
                had.extend(document.pointer(place).unwrap().as_object().unwrap().keys().cloned());
            }
            let Some(place) = found.first() else { continue };
            for required in kind["required"].as_array().unwrap() {
                let mut without = document.clone();
                without.pointer_mut(place).unwrap().as_object_mut().unwrap().remove(required.as_str().unwrap()).unwrap();
                if serde_json::from_value::<Status>(without).is_ok() {
                    unmet.insert(format!("{name}.{required} is required by the schema only"));
                }
            }
        }
        let missing: Vec<_> = described.iter().filter(|member| !had.contains(**member)).collect();
        assert!(missing.is_empty(), "{name}: no document has {missing:?}");
    }
    assert!(unmet.is_empty(), "{unmet:#?}");
}

/// Where in a document the objects of one kind stand.
fn places(schema: &Value, part: &Value, document: &Value, at: &str, wanted: &str, found: &mut Vec<String>) {
    let named = part["$ref"].as_str().map(|name| name.trim_start_matches("#/$defs/"));
    if document.is_object() && named.unwrap_or("") == wanted && (named.is_some() || at.is_empty()) {
        found.push(at.to_owned());
    }
    let part = named.map_or(part, |name| &schema["$defs"][name]);
    for other in part["anyOf"].as_array().into_iter().flatten() {
        places(schema, other, document, at, wanted, found);
    }
    for (member, kind) in part["properties"].as_object().into_iter().flatten() {
        if let Some(value) = document.get(member) {
            places(schema, kind, value, &format!("{at}/{member}"), wanted, found);
        }
    }
    for (number, value) in document.as_array().into_iter().flatten().enumerate() {
        if part["items"].is_object() {
            places(schema, &part["items"], value, &format!("{at}/{number}"), wanted, found);
        }
    }
}
