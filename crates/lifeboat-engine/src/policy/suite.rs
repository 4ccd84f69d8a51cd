//! Runs the tests that a policy brings along: rules whose names begin with `test_`, as `opa test` does it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use regorus::Value;
use serde::Serialize;

use super::embedded::load;
use super::scan::Words;
use super::{LoadError, Sources};

/// How one test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is true.
    Pass,
    /// It is not: false, or undefined, or anything else.
    Fail,
    /// It could not be evaluated.
    Error,
}

/// One test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Test {
    /// `data.<package>.test_<name>`.
    pub name: String,
    /// File and line.
    pub place: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, where it did not pass: one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What it printed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prints: Vec<String>,
}

/// Which lines of a file the tests ran through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// The file.
    pub file: String,
    /// Lines that were evaluated.
    pub covered: usize,
    /// Lines that were not.
    pub not_covered: Vec<u32>,
}

/// All tests of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order of files and lines.
    pub tests: Vec<Test>,
    /// Of files that are no tests.
    pub coverage: Vec<Coverage>,
}

impl Report {
    /// How many tests ended otherwise than they should.
    pub fn failed(&self) -> usize {
        self.tests.iter().filter(|test| test.outcome != Outcome::Pass).count()
    }

    /// Percent of lines that were evaluated.
    pub fn percent(&self) -> f64 {
        let covered: usize = self.coverage.iter().map(|file| file.covered).sum();
        let all = covered + self.coverage.iter().map(|file| file.not_covered.len()).sum::<usize>();
        if all == 0 { 100.0 } else { covered as f64 * 100.0 / all as f64 }
    }
}

/// Runs all tests, each with `limit` as its time.
///
/// # Errors
///
/// If the policy cannot be loaded with its tests.
pub fn run(sources: &Sources, limit: Duration) -> Result<Report, LoadError> {
    let (mut engine, places) = load(sources, true, limit)?;
    engine.set_enable_coverage(true);
    let mut tests = Vec::new();
    for file in sources.files() {
        let words = Words::of(file);
        let mut found: Vec<(&str, usize)> = words.tests.iter().map(|(name, line)| (*name, *line)).collect();
        found.sort_by_key(|(_, line)| *line);
        for (name, line) in found {
            let name = format!("{}.{name}", words.package);
            let start = Instant::now();
            let result = engine.eval_rule(name.clone());
            let prints = engine.take_prints().unwrap_or_default();
            let (outcome, problem) = match result {
                Ok(Value::Bool(true)) => (Outcome::Pass, None),
                Ok(Value::Undefined) => (Outcome::Fail, Some("undefined: something in it does not hold".to_owned())),
                Ok(value) => (Outcome::Fail, Some(format!("it is {value}, and not true"))),
                Err(error) => (Outcome::Error, Some(places.one_line(&error))),
            };
            // The evaluator looks at the clock now and then; a test that it did not stop in time has failed all the same.
            let (outcome, problem) = if outcome == Outcome::Pass && start.elapsed() > limit {
                (Outcome::Fail, Some("it did not come to an end in time".to_owned()))
            } else {
                (outcome, problem)
            };
            tests.push(Test { name, place: format!("{}:{line}", file.path), outcome, problem, prints });
        }
    }
    let report = engine.get_coverage_report().map_err(|error| LoadError::Broken(places.one_line(&error)))?;
    let mut files = BTreeMap::<String, (BTreeSet<u32>, BTreeSet<u32>)>::new();
    for module in report.files {
        // What is in both was evaluated by one of several rules on that line.
        let missed = module.not_covered.difference(&module.covered).map(|line| (line, false));
        for (line, covered) in module.covered.iter().map(|line| (line, true)).chain(missed) {
            let (file, line) = places.of(&module.path, *line);
            let lines = files.entry(file).or_default();
            if covered {
                lines.0.insert(line)
            } else {
                lines.1.insert(line)
            };
        }
    }
    let coverage = files
        .into_iter()
        .filter(|(file, _)| !file.ends_with("_test.rego"))
        .map(|(file, (covered, missed))| Coverage { file, covered: covered.len(), not_covered: missed.into_iter().collect() })
        .collect();
    Ok(Report { tests, coverage })
}
