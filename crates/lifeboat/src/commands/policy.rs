//! `lifeboat policy eval`, `test` and `show`

mod eval;
pub(crate) mod facts;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use lifeboat_engine::policy::{self as engine, Engines, LoadError, Sources, suite};

use crate::config::Settings;
use crate::failure::{EXIT_FAILED, Failure};
use crate::output::{self, Output};
use crate::session;

/// What can be done with the policy.
#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Ask the policy about something that is not done: print the facts and the decision
    Eval(Eval),
    /// Run the tests of a policy: rules whose names begin with test_
    Test(Test),
    /// Print the policy in force, to begin one's own with
    Show,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// The operation: restore, prune, key-export, ...
    #[arg(required_unless_present = "facts")]
    pub(super) operation: Option<String>,
    /// Take the facts from this file instead of from here; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["operation", "backup", "pgdata", "artifacts", "start", "accept_degraded", "forget", "dry_run"])]
    pub(super) facts: Option<PathBuf>,
    /// About this backup: its id, or latest
    #[arg(long, value_name = "BACKUP")]
    pub(super) backup: Option<String>,
    /// A restore into this data directory
    #[arg(long, value_name = "DIR")]
    pub(super) pgdata: Option<PathBuf>,
    /// A restore of the artifacts into this directory
    #[arg(long, value_name = "DIR")]
    pub(super) artifacts: Option<PathBuf>,
    /// A restore that starts the server
    #[arg(long)]
    pub(super) start: bool,
    /// A restore that accepts damaged pages
    #[arg(long)]
    pub(super) accept_degraded: bool,
    /// A prune that gives up this backup, which nobody can verify
    #[arg(long, value_name = "BACKUP")]
    pub(super) forget: Vec<String>,
    /// With a reason to go around the rules
    #[arg(long, value_name = "REASON")]
    pub(super) break_glass: Option<String>,
    /// As if only the plan were asked for
    #[arg(long)]
    pub(super) dry_run: bool,
    /// As if the configuration named this environment
    #[arg(long, value_name = "NAME")]
    pub(super) environment: Option<String>,
    /// Ask this policy, a file or a directory, instead of the one in force
    #[arg(long, value_name = "PATH")]
    pub(super) policy: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Files and directories, tested as one policy [default: the policy in force]
    #[arg(value_name = "PATH")]
    pub(super) paths: Vec<PathBuf>,
    /// Print which lines of the policy the tests ran through
    #[arg(long)]
    pub(super) coverage: bool,
}

pub(super) fn run(policy: &Policy, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    match policy {
        Policy::Eval(eval) => eval::run(eval, settings, out),
        Policy::Test(test) => run_tests(test, settings, out),
        Policy::Show => show(settings, out),
    }
}

fn unusable(error: &LoadError) -> Failure {
    let hint = match error {
        LoadError::Missing { .. } => {
            "policy.path names a file or a directory: lifeboat config show; lifeboat policy show > policy.rego writes one to begin with"
        }
        LoadError::Broken(_) => "correct it, and run lifeboat policy test again; docs/policy.md says what a policy may use",
    };
    Failure::new(EXIT_FAILED, error.to_string()).hint(hint)
}

/// The files of the policy in force, tests included.
fn sources(settings: &Settings) -> Result<Sources, Failure> {
    if settings.policy.engine.value == Engines::Opa {
        return Err(Failure::usage("read the policy in force: it is in OPA, and not here")
            .hint("give its files: lifeboat policy test PATH; lifeboat policy eval asks OPA"));
    }
    match &settings.policy.path {
        Some(path) => Sources::read(&path.value).map_err(|error| unusable(&error)),
        None => Ok(Sources::shipped()),
    }
}

fn run_tests(test: &Test, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let sources = if test.paths.is_empty() {
        sources(settings)?
    } else {
        Sources::read_all(test.paths.iter().map(PathBuf::as_path)).map_err(|error| unusable(&error))?
    };
    for warning in sources.warnings() {
        output::warn(warning);
    }
    let report = suite::run(&sources, settings.policy.timeout.value).map_err(|error| unusable(&error))?;
    if report.tests.is_empty() {
        let files: Vec<&str> = sources.files().iter().map(|file| file.path.as_str()).collect();
        return Err(Failure::new(EXIT_FAILED, format!("run policy tests: there are none in {}", files.join(", ")))
            .hint("write rules whose names begin with test_ into a file that ends in _test.rego, then run lifeboat policy test again"));
    }
    let (all, failed) = (report.tests.len(), report.failed());
    let document = serde_json::json!({
        "tests": report.tests, "passed": all - failed, "failed": failed, "coverage": report.coverage, "coverage_percent": report.percent(),
        "policy": sources.digest(),
    });
    out.result(&document, || {
        let mut text = String::new();
        for test in &report.tests {
            let outcome = match test.outcome {
                suite::Outcome::Pass => "pass ",
                suite::Outcome::Fail => "FAIL ",
                suite::Outcome::Error => "ERROR",
            };
            let problem = test.problem.as_ref().map_or(String::new(), |problem| format!("  {}: {problem}", test.place));
            text.push_str(&format!("{outcome}  {}{problem}\n", test.name));
            for line in &test.prints {
                text.push_str(&format!("       {line}\n"));
            }
        }
        if test.coverage {
            for file in &report.coverage {
                text.push_str(&format!(
                    "{}: {} lines covered, {} not{}\n",
                    file.file,
                    file.covered,
                    file.not_covered.len(),
                    lines(&file.not_covered)
                ));
            }
        }
        text.push_str(&format!("{} passed, {failed} failed; {:.0} % of the policy's lines\n", all - failed, report.percent()));
        text
    });
    Ok(if failed == 0 { 0 } else { EXIT_FAILED })
}

/// `: 3, 7-9`
fn lines(lines: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for line in lines {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == *line => *end = *line,
            _ => ranges.push((*line, *line)),
        }
    }
    let texts: Vec<String> =
        ranges.into_iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") }).collect();
    if texts.is_empty() { String::new() } else { format!(": {}", texts.join(", ")) }
}

fn show(settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let policy = session::policy(settings)?;
    for warning in policy.warnings() {
        output::warn(&warning);
    }
    if let Some(trouble) = policy.trouble() {
        return Err(unusable(trouble));
    }
    let sources = policy.sources();
    let files: Vec<_> = sources.files().iter().filter(|file| !file.is_test()).collect();
    if let Some(address) = policy.opa_address() {
        output::say(&format!("OPA is asked at {address}; what it decides by is not here"));
    }
    let document = serde_json::json!({
        "engine": settings.policy.engine.value,
        "evaluator": engine::ENGINE,
        "rule": engine::RULE,
        "policy": sources.digest(),
        "opa": policy.opa_address(),
        "files": files.iter().map(|file| serde_json::json!({"path": file.path, "text": file.text})).collect::<Vec<_>>(),
        "data": sources.data(),
    });
    out.result(&document, || {
        // One file is printed as it is, to begin one's own with; of several it has to be said which is which.
        let several = files.len() > 1 || !sources.data().is_empty();
        let mut text = String::new();
        for file in &files {
            if several {
                text.push_str(&format!("# ---- {}\n", file.path));
            }
            text.push_str(&file.text);
        }
        if !sources.data().is_empty() {
            text.push_str("# ---- data.json\n");
            for line in serde_json::to_string_pretty(sources.data()).unwrap_or_default().lines() {
                text.push_str(&format!("# {line}\n"));
            }
        }
        text
    });
    Ok(0)
}
