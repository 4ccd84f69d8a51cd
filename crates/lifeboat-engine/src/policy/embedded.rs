//! The evaluator in this process: regorus, with limits, and without the builtins that look at the world.

use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lifeboat_core::policy::{Answer, Code, Decision, Facts};
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, LimitError, Value};

use super::modules::{Modules, Places};
use super::scan::{self, WITHHELD};
use super::{LoadError, Said, Sources};

/// What is asked for.
pub const RULE: &str = "data.lifeboat.decision";

/// The evaluator, as records name it. Its version is that of the lock file, which a test compares.
pub const ENGINE: &str = "regorus 0.14.1";

/// Steps between looks at the clock: a look costs about as much as a step.
const STEPS: NonZeroU32 = NonZeroU32::new(32).expect("not zero");

/// A policy, parsed and analysed once.
pub(super) struct Embedded {
    /// Evaluating changes it: one question at a time. Both are shorter than waiting for a thread to be made.
    engine: Mutex<Engine>,
    places: Places,
    digest: String,
}

impl Embedded {
    /// Parses a policy without its tests.
    pub(super) fn load(sources: &Sources, limit: Duration) -> Result<Self, LoadError> {
        let (engine, places) = load(sources, false, limit)?;
        Ok(Self { engine: Mutex::new(engine), places, digest: sources.digest().to_owned() })
    }

    /// Asks, with the facts and their text in JSON.
    pub(super) fn ask(&self, facts: &Facts, text: &str) -> Said {
        // The evaluator is somebody else's code and reads what users wrote: where it panics, the answer is no, as with any other failure.
        let answer = catch_unwind(AssertUnwindSafe(|| self.answer(facts, text)))
            .unwrap_or_else(|_| Answer::refused(Code::Error, "evaluate the policy: the evaluator failed"));
        Said { answer, policy: self.digest.clone(), engine: ENGINE.to_owned(), decision_id: None }
    }

    fn answer(&self, facts: &Facts, text: &str) -> Answer {
        let error =
            |error: &dyn std::fmt::Display| Answer::refused(Code::Error, format!("evaluate the policy: {}", self.places.one_line(error)));
        let input = match Value::from_json_str(text) {
            Ok(input) => input,
            Err(problem) => return error(&problem),
        };
        // Every evaluation begins by clearing what the last one left, so that one that panicked in the middle leaves nothing either.
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        engine.set_input(input);
        let said = engine.eval_rule(RULE.to_owned());
        // Kept, so that they are not printed; nobody asks for them here.
        let _ = engine.take_prints();
        drop(engine);
        match said {
            Ok(Value::Undefined) => Answer::refused(Code::Undefined, format!("{RULE} is undefined for these facts")),
            Ok(value) => match value.to_json_str().map_err(|problem| problem.to_string()).and_then(|text| decision(&text)) {
                Ok(said) => Answer::weigh(said, facts),
                Err(problem) => Answer::refused(Code::Malformed, format!("{RULE} is no decision: {problem}")),
            },
            Err(problem) if is_timeout(&problem) => Answer::refused(Code::Timeout, "the policy did not come to an end in time"),
            Err(problem) => error(&problem),
        }
    }
}

/// Reads a decision: whatever is not one is an error, and never a no with an unknown meaning.
fn decision(text: &str) -> Result<Decision, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn is_timeout<E: AsRef<dyn std::error::Error + Send + Sync> + std::fmt::Display>(error: &E) -> bool {
    let limit = error.as_ref().downcast_ref::<LimitError>();
    matches!(limit, Some(LimitError::TimeLimitExceeded { .. })) || error.to_string().contains("execution exceeded time limit")
}

/// An evaluator without a policy: strict, silent, and without what is withheld.
fn evaluator() -> Result<Engine, Box<dyn std::error::Error + Send + Sync>> {
    let mut engine = Engine::new();
    // An error is an error, as OPA is asked to have it too: not an undefined value that `not` makes true.
    engine.set_strict_builtin_errors(true);
    // Without this the evaluator writes to standard error.
    engine.set_gather_prints(true);
    for (name, arguments) in WITHHELD {
        let refuse = move |_: Vec<Value>| -> Result<Value, _> {
            let problem = format!("{name} is not given to policies: {}", scan::instead(name));
            Err(std::io::Error::other(problem).into())
        };
        engine.add_extension(name.to_owned(), arguments, Box::new(refuse))?;
    }
    Ok(engine)
}

/// Makes an evaluator of a policy, with or without its tests.
pub(super) fn load(sources: &Sources, with_tests: bool, limit: Duration) -> Result<(Engine, Places), LoadError> {
    let broken = |error: &dyn std::fmt::Display| LoadError::Broken(Places::default().one_line(error));
    let mut engine = evaluator().map_err(|error| broken(&error))?;
    let mut added = Vec::new();
    // Each file as it is, so that what is no Rego is found where it is.
    for file in sources.files().iter().filter(|file| with_tests || !file.is_test()) {
        if let Some(line) = scan::endless_expression(file) {
            return Err(LoadError::Broken(format!("{}:{line}: an expression is too long: give its parts names", file.path)));
        }
        let package = engine.add_policy(file.path.clone(), file.text.clone()).map_err(|error| broken(&error))?;
        added.push((file.path.clone(), package));
    }
    let modules = Modules::of(sources, with_tests)?;
    let places = modules.places().clone();
    let broken = |error: &dyn std::fmt::Display| LoadError::Broken(places.one_line(error));
    if modules.joined() {
        engine = evaluator().map_err(|error| broken(&error))?;
        added.clear();
        for (name, text) in modules.texts {
            let package = engine.add_policy(name.clone(), text).map_err(|error| broken(&error))?;
            added.push((name, package));
        }
    }
    let asked = added.iter().any(|(name, package)| {
        RULE.strip_prefix(package.as_str()).and_then(|rest| rest.strip_prefix('.')).is_some_and(|rule| {
            // An error here is one of heads that cannot be told apart; another file may have the rule.
            engine.has_declared_rule_rooted_at(name, rule).unwrap_or(false)
        })
    });
    if let Some(refused) = scan::refused(sources, with_tests) {
        return Err(LoadError::Broken(refused));
    }
    if !asked {
        return Err(LoadError::Broken(format!("it has no rule {RULE}: package lifeboat, rule decision")));
    }
    let packages = engine.get_packages().map_err(|error| broken(&error))?;
    if let Some(package) = packages.iter().find(|package| has_data(sources, package)) {
        return Err(LoadError::Broken(format!("data.json has something at {package}, where a package is: put it elsewhere")));
    }
    if !sources.data().is_empty() {
        let text = serde_json::Value::Object(sources.data().clone()).to_string();
        engine.add_data_json(&text).map_err(|error| broken(&error))?;
    }
    engine.set_execution_timer_config(ExecutionTimerConfig { limit, check_interval: STEPS });
    // Analyses it: what is found only now, unsafe variables for example, would be an error of every decision.
    engine.compile_with_entrypoint(&RULE.into()).map_err(|error| broken(&error))?;
    Ok((engine, places))
}

/// Whether data stands where rules would: the two engines join them differently.
fn has_data(sources: &Sources, package: &str) -> bool {
    let mut parts = package.split('.').skip(1);
    let first = parts.next().and_then(|name| sources.data().get(name));
    parts.try_fold(first, |value, name| value.map(|value| value.get(name))).flatten().is_some()
}
