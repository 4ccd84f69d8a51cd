//! What is signed of a drill, as in-toto statements: one with the numbers, and one that tools read which know nothing of lifeboat.
//!
//! Facts: in-toto attestation predicates, "Test Result" v0.1
//! (<https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md>): `result` and `configuration` are required, members
//! that it does not name may be added; "ResourceDescriptor" v1: one of `uri`, `digest` and `content` is required.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::judge::turned_red;
use super::{Outcome, Report, Verdict};
use crate::attestation::{DRILL_PREDICATE_TYPE, Expected, Statement, Subject, TEST_RESULT_PREDICATE_TYPE};
use crate::repository::Sha256;

/// The subject that is the report.
pub const REPORT_SUBJECT: &str = "report.json";

/// The subject that is the page.
pub const PAGE_SUBJECT: &str = "report.html";

/// The most reasons that stand in a statement; the report has all.
const MAX_REASONS: usize = 32;

/// The most characters of a text in a statement.
const MAX_CHARACTERS: usize = 1000;

/// Digests of what a drill left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// Of `report.json`.
    pub report: Sha256,
    /// Of `report.html`.
    pub page: Sha256,
}

/// The statement with the numbers: what was restored where, reached what, measured what, with which version.
pub fn drill_statement(report: &Report, digests: Digests) -> Statement {
    let words = |what: &[String]| -> Vec<String> { what.iter().take(MAX_REASONS).map(|text| clip(text)).collect() };
    let backup = &report.backup;
    let isolation: BTreeMap<String, bool> =
        report.environment.isolation.iter().take(MAX_REASONS).map(|one| (clip(&one.what), one.holds)).collect();
    let mut predicate = object(json!({
        "id": report.id,
        "number": report.number,
        "system": report.name,
        "repository": report.repository.to_string(),
        "started": report.started.to_string(),
        "finished": report.finished.to_string(),
        "verdict": report.verdict,
        "reasons": words(&report.reasons),
        "lifeboat": clip(&report.lifeboat),
        "host": clip(&report.host),
        "plan": {"sha256": report.plan.to_string()},
        "backup": object_of([
            ("id", Some(backup.id.clone().into())),
            ("manifest", Some(json!({"sha256": backup.manifest.to_string()}))),
            ("started", Some(backup.started.to_string().into())),
            ("copy", backup.copy.as_deref().map(|copy| clip(copy).into())),
            ("server", backup.server.as_deref().map(|server| clip(server).into())),
            ("systemId", backup.system_id.map(|id| id.to_string().into())),
            ("bytes", Some(backup.bytes.into())),
            ("artifacts", Some(backup.artifacts.into())),
        ]),
        "environment": {"system": clip(&report.environment.system), "user": clip(&report.environment.user), "isolation": isolation},
        "objectives": {"rtoSeconds": report.objectives.rto_seconds, "rpoSeconds": report.objectives.rpo_seconds},
        "rto": object_of([
            ("firstQuerySeconds", report.rto.first_query_seconds.map(Value::from)),
            ("verifiedSeconds", report.rto.verified_seconds.map(Value::from)),
            ("projectedSeconds", report.rto.projection.as_ref().map(|projection| projection.seconds.into())),
            ("met", Some(report.rto.met.into())),
        ]),
        "rpo": object_of([
            ("failure", Some(report.rpo.failure.to_string().into())),
            ("recovered", report.rpo.recovered.map(|at| at.to_string().into())),
            ("source", Some(clip(&report.rpo.source).into())),
            ("seconds", report.rpo.seconds.map(Value::from)),
            ("met", Some(report.rpo.met.into())),
        ]),
    }));
    if let Some(previous) = report.previous {
        predicate.insert("previous".to_owned(), json!({"sha256": previous.to_string()}));
    }
    if let Some(recovery) = &report.recovery {
        predicate.insert(
            "recovery".to_owned(),
            object_of([
                ("target", Some(clip(&recovery.target).into())),
                ("promised", recovery.promised.map(|lsn| lsn.to_string().into())),
                ("reached", recovery.reached.map(|lsn| lsn.to_string().into())),
                ("timeline", recovery.timeline.map(|timeline| timeline.0.into())),
                ("lastCommit", recovery.last_commit.map(|at| at.to_string().into())),
            ]),
        );
    }
    about(report, digests, DRILL_PREDICATE_TYPE, Value::Object(predicate))
}

/// The statement for generic tools. `FAILED` also where an objective was missed: a tool that knows nothing of objectives must not take that
/// for a pass. What could not be checked is a warning. What had nothing to check is not named.
pub fn test_result_statement(report: &Report, digests: Digests) -> Statement {
    let (mut passed, mut warned, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    let mut put = |name: String, outcome: Outcome| match outcome {
        Outcome::Passed => passed.push(name),
        Outcome::NotChecked => warned.push(name),
        Outcome::Failed => failed.push(name),
        Outcome::NotApplicable => {}
    };
    for check in &report.checks {
        put(check.check.name(), check.outcome);
    }
    for control in &report.controls {
        let outcome = match control.outcome {
            Outcome::Failed if turned_red(control) => Outcome::Passed,
            Outcome::Failed | Outcome::Passed => Outcome::Failed,
            other => other,
        };
        put(format!("control/{}", control.control.name()), outcome);
    }
    for scenario in &report.scenarios {
        put(format!("scenario/{}", scenario.scenario.name()), scenario.outcome);
    }
    for (name, met) in [("objective/rto", report.rto.met), ("objective/rpo", report.rpo.met)] {
        put(name.to_owned(), if met { Outcome::Passed } else { Outcome::Failed });
    }
    let result = match report.verdict {
        Verdict::Passed => "PASSED",
        Verdict::PassedWithGaps => "WARNED",
        Verdict::ObjectiveMissed | Verdict::Failed => "FAILED",
    };
    // What failed a drill need not be one of the above: a check that is missing, for example. Whoever only looks at the lists has to see it.
    put(
        "verdict".to_owned(),
        match report.verdict {
            Verdict::Passed => Outcome::Passed,
            Verdict::PassedWithGaps => Outcome::NotChecked,
            Verdict::ObjectiveMissed | Verdict::Failed => Outcome::Failed,
        },
    );
    let objectives = json!({"rtoSeconds": report.objectives.rto_seconds, "rpoSeconds": report.objectives.rpo_seconds});
    let predicate = json!({
        "result": result,
        "configuration": [{"name": "plan", "digest": {"sha256": report.plan.to_string()}, "annotations": objectives}],
        "passedTests": passed,
        "warnedTests": warned,
        "failedTests": failed,
        // Not of the predicate type: when this was said, so that a key that is retired later still counts.
        "lifeboatFinished": report.finished.to_string(),
    });
    about(report, digests, TEST_RESULT_PREDICATE_TYPE, predicate)
}

/// What the statement of this report has to say.
pub fn expected(predicate_type: &str, report: Sha256) -> Expected<'_> {
    Expected { predicate_type, subject_sha256: report.0, subject_name: Some(REPORT_SUBJECT), version: None }
}

/// Why a statement that was signed over a report says something else than the report does, if it does. Both are of one signer: this is a
/// mistake, or somebody who signs two truths.
pub fn contradiction(statement: &Statement, report: &Report) -> Option<String> {
    let member = |pointer: &str| statement.predicate.pointer(pointer).cloned().unwrap_or_default();
    if statement.predicate_type == DRILL_PREDICATE_TYPE {
        let previous = report.previous.map_or(Value::Null, |digest| digest.to_string().into());
        for (pointer, said) in [
            ("/id", Value::from(report.id.clone())),
            ("/number", report.number.into()),
            ("/previous/sha256", previous),
            ("/verdict", json!(report.verdict)),
            ("/backup/id", report.backup.id.clone().into()),
        ] {
            if member(pointer) != said {
                return Some(format!("the signed statement has another {} than the report", &pointer[1..]));
            }
        }
    }
    let manifest = Some(report.backup.manifest.0);
    if !statement.subject.iter().any(|subject| subject.name == report.backup.id && subject.sha256() == manifest) {
        return Some("the signed statement is not about the backup that the report names".to_owned());
    }
    None
}

fn about(report: &Report, digests: Digests, predicate_type: &str, predicate: Value) -> Statement {
    let mut statement = Statement::new(REPORT_SUBJECT, digests.report.0, predicate_type, predicate);
    statement.subject.push(Subject::new(PAGE_SUBJECT, digests.page.0));
    statement.subject.push(Subject::new(&report.backup.id, report.backup.manifest.0));
    statement
}

fn clip(text: &str) -> String {
    text.chars().take(MAX_CHARACTERS).collect()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// An object of what there is.
fn object_of<const N: usize>(members: [(&str, Option<Value>); N]) -> Value {
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::{Check, samples};
    use crate::trust::{Kind, claimed};

    const DIGESTS: Digests = Digests { report: Sha256([1; 32]), page: Sha256([2; 32]) };

    #[test]
    fn a_statement_names_report_page_and_backup() {
        let report = samples::passed();
        for (statement, kind) in [
            (drill_statement(&report, DIGESTS), DRILL_PREDICATE_TYPE),
            (test_result_statement(&report, DIGESTS), TEST_RESULT_PREDICATE_TYPE),
        ] {
            assert_eq!(statement.check(&expected(kind, DIGESTS.report)), Ok(()));
            let page = Expected { subject_sha256: DIGESTS.page.0, subject_name: Some(PAGE_SUBJECT), ..expected(kind, DIGESTS.report) };
            assert_eq!(statement.check(&page), Ok(()));
            let backup = Expected { subject_sha256: report.backup.manifest.0, subject_name: Some(&report.backup.id), ..page };
            assert_eq!(statement.check(&backup), Ok(()));
            // One's name with another's bytes is nothing.
            assert!(statement.check(&Expected { subject_name: Some(REPORT_SUBJECT), ..page }).is_err());
            assert_eq!(contradiction(&statement, &report), None);
            assert_eq!(Kind::of(&statement.predicate_type), Some(Kind::Drill));
            assert_eq!(claimed(&statement), Some(report.finished));
        }
    }

    #[test]
    fn a_generic_tool_sees_what_is_not_good() {
        let of = |report: &Report| test_result_statement(report, DIGESTS).predicate;
        let names = |value: &Value, list: &str| -> Vec<String> { serde_json::from_value(value[list].clone()).unwrap() };
        let good = of(&samples::passed());
        assert_eq!((good["result"].as_str(), names(&good, "failedTests").len()), (Some("PASSED"), 0));
        assert!(names(&good, "passedTests").contains(&"control/bit-flipped".to_owned()));
        let gaps = of(&samples::gaps());
        assert_eq!(gaps["result"], "WARNED");
        assert!(!names(&gaps, "warnedTests").is_empty() && names(&gaps, "failedTests").is_empty());
        let failed = of(&samples::failed());
        assert_eq!(failed["result"], "FAILED");
        let found = names(&failed, "failedTests");
        assert!(found.contains(&"truth".to_owned()) && found.contains(&"verdict".to_owned()), "{found:?}");

        let mut missing = samples::passed();
        missing.checks.retain(|result| result.check != Check::Signature);
        let missing = of(&missing.judged());
        assert_eq!((missing["result"].as_str(), names(&missing, "failedTests")), (Some("FAILED"), vec!["verdict".to_owned()]));
        let mut late = samples::passed();
        late.rpo.met = false;
        assert_eq!(of(&late.judged())["result"], "FAILED");
    }

    #[test]
    fn a_statement_that_says_something_else_is_found() {
        let report = samples::passed();
        let statement = drill_statement(&report, DIGESTS);
        for other in [
            Report { id: "conductor-drill-20200101T000000Z".into(), ..report.clone() },
            Report { number: 99, ..report.clone() },
            Report { previous: None, ..report.clone() },
            Report { verdict: Verdict::Failed, ..report.clone() },
        ] {
            assert!(contradiction(&statement, &other).is_some_and(|why| why.contains("another")));
        }
        let mut other = report.clone();
        other.backup.manifest = Sha256([7; 32]);
        assert!(contradiction(&statement, &other).is_some_and(|why| why.contains("backup")));
        assert!(contradiction(&test_result_statement(&report, DIGESTS), &other).is_some());
    }

    #[test]
    fn whatever_stands_in_a_report_fits_into_a_statement() {
        let mut report = samples::hostile();
        report.reasons = vec!["x".repeat(100_000); 500];
        report.environment.system = "é".repeat(100_000);
        let bytes = drill_statement(&report, DIGESTS).to_bytes();
        assert!(Statement::parse(&bytes).is_ok(), "{}", bytes.len());
        // What is no number does not become one.
        report.rto.first_query_seconds = Some(f64::NAN);
        assert_eq!(drill_statement(&report, DIGESTS).predicate["rto"]["firstQuerySeconds"], Value::Null);
    }
}
