//! Metrics, their textfile, the rules and the dashboard, with the programs that read them.

mod dashboard;
mod exposition;
mod programs;
mod rules;
mod scraped;
mod system;
mod text;

use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// The workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A moment that is not a whole second.
fn then() -> Timestamp {
    "2024-03-15T12:00:00.250Z".parse().unwrap()
}

/// Names of metrics in an expression of PromQL.
fn names(expression: &str) -> Vec<&str> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("lifeboat_")).collect()
}
