//! What a drill means: a verdict, and why.
//!
//! A verdict is computed from the parts of a report and from nothing else, so that whoever reads an old report can do it again
//! ([`judge`]). It never gets better by leaving something out: what is missing is a gap, and what has to be there and is not, a failure.

use std::collections::BTreeSet;

use super::{Check, CheckResult, Control, ControlResult, Outcome, Report, ScenarioResult, Verdict, span};

/// Kinds of isolation without which a drill could reach what it must not. The others (`network`, `user`) depend on what the system allows.
const MUST_HOLD: [&str; 6] = ["directory", "socket", "archive", "replication", "jobs", "repository"];

/// The verdict on a report, and the reasons for it in sentences, the worst first. The verdict and the reasons that stand in the report are
/// not looked at.
pub fn judge(report: &Report) -> (Verdict, Vec<String>) {
    let mut reasons = Reasons::default();
    checks(report, &mut reasons);
    controls(&report.controls, &mut reasons);
    report.scenarios.iter().for_each(|scenario| self::scenario(scenario, &mut reasons));
    isolation(report, &mut reasons);
    objectives(report, &mut reasons);
    let verdict = match (reasons.failed.is_empty(), reasons.missed.is_empty(), reasons.gaps.is_empty()) {
        (false, ..) => Verdict::Failed,
        (_, false, _) => Verdict::ObjectiveMissed,
        (_, _, false) => Verdict::PassedWithGaps,
        (true, true, true) => Verdict::Passed,
    };
    (verdict, [reasons.failed, reasons.missed, reasons.gaps].concat())
}

impl Report {
    /// With the verdict and the reasons that its parts come to.
    #[must_use]
    pub fn judged(mut self) -> Self {
        (self.verdict, self.reasons) = judge(&self);
        self
    }

    /// Whether there was a server to start. A backup of artifacts alone has none.
    pub fn has_database(&self) -> bool {
        self.backup.copy.is_some()
    }

    /// The time that counts against the objective: to the first answer of a server that takes writes, or, where there is no database, until
    /// everything was checked. In seconds.
    pub fn rto_seconds(&self) -> Option<f64> {
        if self.has_database() { self.rto.first_query_seconds } else { self.rto.verified_seconds }
    }
}

#[derive(Default)]
struct Reasons {
    failed: Vec<String>,
    missed: Vec<String>,
    gaps: Vec<String>,
}

/// Whether a drill without this check proves nothing, and therefore failed.
fn is_mandatory(check: Check, report: &Report) -> bool {
    match check {
        Check::Signature => true,
        Check::Start => report.has_database(),
        // Nothing is replayed over a dump.
        Check::Recovery => report.has_database() && report.backup.copy.as_deref() != Some("logical"),
        _ => false,
    }
}

fn checks(report: &Report, reasons: &mut Reasons) {
    let mut made = BTreeSet::new();
    for result in &report.checks {
        made.insert(result.check);
        check(result, is_mandatory(result.check, report), reasons);
    }
    for missing in Check::ALL.into_iter().filter(|check| !made.contains(check)) {
        let text = format!("The check {} is not in the report", missing.name());
        if is_mandatory(missing, report) { &mut reasons.failed } else { &mut reasons.gaps }.push(text);
    }
}

fn check(result: &CheckResult, mandatory: bool, reasons: &mut Reasons) {
    let (name, reason) = (result.check.name(), &result.reason);
    match result.outcome {
        Outcome::Failed => reasons.failed.push(format!("The check {name} failed: {reason}")),
        Outcome::NotChecked | Outcome::NotApplicable if mandatory => {
            reasons.failed.push(format!("The check {name} was not made, and without it nothing is proven: {reason}"));
        }
        Outcome::NotChecked => reasons.gaps.push(format!("The check {name} was not made: {reason}")),
        // A check that looked at nothing cannot have failed.
        Outcome::Passed if result.scope.as_ref().is_some_and(|scope| scope.checked == 0 && scope.of > 0) => {
            reasons.gaps.push(format!("The check {name} passed without looking at anything"));
        }
        Outcome::Passed | Outcome::NotApplicable => {}
    }
}

/// Whether what was broken was noticed, by the check that is there to notice it.
pub fn turned_red(result: &ControlResult) -> bool {
    result.outcome == Outcome::Failed && result.check == result.control.check()
}

fn controls(controls: &[ControlResult], reasons: &mut Reasons) {
    if !controls.iter().any(turned_red) {
        reasons.failed.push("Nothing that was broken on purpose was noticed, so nothing shows that the checks can fail".to_owned());
    }
    let mut tried = BTreeSet::new();
    for result in controls {
        let (story, check, said) = (result.control.story(), result.control.check().name(), &result.said);
        tried.insert(result.control);
        match result.outcome {
            Outcome::Failed if turned_red(result) => {}
            Outcome::Failed => {
                reasons.failed.push(format!("{}, and the check {} noticed instead of {check}", first_upper(story), result.check.name()));
            }
            Outcome::Passed => reasons.failed.push(format!("{}, and the check {check} did not notice: {said}", first_upper(story))),
            Outcome::NotChecked => reasons.gaps.push(format!("Whether {check} notices that {story} was not tried: {said}")),
            Outcome::NotApplicable => {}
        }
    }
    for missing in Control::ALL.into_iter().filter(|control| !tried.contains(control)) {
        reasons.gaps.push(format!("Whether {} notices that {} was not tried", missing.check().name(), missing.story()));
    }
}

fn scenario(result: &ScenarioResult, reasons: &mut Reasons) {
    let (name, observed) = (result.scenario.name(), &result.observed);
    let must = result.scenario.expected();
    match result.outcome {
        Outcome::Failed => {
            reasons.failed.push(format!("The scenario {name} did not end as it must ({}): {observed}", must.words()));
        }
        // What is held against something easier is not what the scenario is for.
        _ if result.expected != must => {
            reasons.failed.push(format!("The scenario {name} was held against another end than it must have ({})", must.words()));
        }
        Outcome::NotChecked => reasons.gaps.push(format!("The scenario {name} was not played to its end: {observed}")),
        Outcome::Passed | Outcome::NotApplicable => {}
    }
}

fn isolation(report: &Report, reasons: &mut Reasons) {
    for one in report.environment.isolation.iter().filter(|one| !one.holds) {
        let text = format!("The drill was not kept apart ({}): {}", one.what, one.how);
        if MUST_HOLD.contains(&one.what.as_str()) { &mut reasons.failed } else { &mut reasons.gaps }.push(text);
    }
    if report.environment.isolation.is_empty() {
        reasons.gaps.push("The report does not say what kept the drill apart from production".to_owned());
    }
}

/// The numbers count, and so does what the report says of them: the worse of both.
fn objectives(report: &Report, reasons: &mut Reasons) {
    let (rto, rpo) = (report.objectives.rto_seconds, report.objectives.rpo_seconds);
    // Comparisons with what is no number are false, and a comparison that is false is a miss.
    let within = |seconds: Option<f64>, most: f64| seconds.is_some_and(|seconds| seconds >= 0.0 && seconds <= most);
    let took = report.rto_seconds();
    let projected = report.rto.projection.as_ref().map(|projection| projection.seconds);
    if !within(took, rto) {
        reasons.missed.push(match took {
            Some(took) => format!("It took {} until everything was back; the objective is {}", span(took), span(rto)),
            None => format!("Nothing came back; the objective is {}", span(rto)),
        });
    } else if let Some(seconds) = projected.filter(|seconds| !within(Some(*seconds), rto)) {
        reasons.missed.push(format!("At the size of production it would take {}; the objective is {}", span(seconds), span(rto)));
    } else if !report.rto.met {
        reasons.missed.push("The report says that the objective of time was missed".to_owned());
    }
    if !within(report.rpo.seconds, rpo) {
        reasons.missed.push(match report.rpo.seconds {
            Some(lost) => format!("Commits of {} would have been lost; the objective is {}", span(lost), span(rpo)),
            None => format!("No moment is known up to which everything came back; the objective is {}", span(rpo)),
        });
    } else if !report.rpo.met {
        reasons.missed.push("The report says that the objective of lost commits was missed".to_owned());
    }
}

fn first_upper(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::drill::samples;
    use crate::drill::{Isolation, Scenario, Scope};

    fn verdict(report: &Report) -> Verdict {
        judge(report).0
    }

    fn set(report: &mut Report, check: Check, outcome: Outcome) {
        report.checks.iter_mut().filter(|result| result.check == check).for_each(|result| result.outcome = outcome);
    }

    #[test]
    fn the_samples_are_judged_as_they_say() {
        for (name, report) in samples::all() {
            assert_eq!(judge(&report), (report.verdict, report.reasons.clone()), "{name}");
        }
        let verdicts = samples::all().map(|(_, report)| report.verdict);
        assert_eq!(verdicts, [Verdict::Passed, Verdict::Failed, Verdict::PassedWithGaps, Verdict::Failed]);
    }

    #[test]
    fn every_check_can_fail_a_drill_and_every_gap_shows() {
        for check in Check::ALL {
            let mut report = samples::passed();
            set(&mut report, check, Outcome::Failed);
            let (verdict, reasons) = judge(&report);
            assert!(verdict == Verdict::Failed && reasons[0].contains(&check.name()), "{check:?}: {reasons:?}");

            let mandatory = matches!(check, Check::Signature | Check::Start | Check::Recovery);
            let worst = if mandatory { Verdict::Failed } else { Verdict::PassedWithGaps };
            set(&mut report, check, Outcome::NotChecked);
            assert_eq!(self::verdict(&report), worst, "{check:?}");
            report.checks.retain(|result| result.check != check);
            assert_eq!(self::verdict(&report), worst, "{check:?} left out");
        }
    }

    #[test]
    fn a_backup_of_artifacts_needs_no_server() {
        let mut report = samples::passed();
        report.backup.copy = Some("logical".into());
        set(&mut report, Check::Recovery, Outcome::NotApplicable);
        assert_eq!(verdict(&report), Verdict::Passed);
        set(&mut report, Check::Start, Outcome::NotApplicable);
        assert_eq!(verdict(&report), Verdict::Failed);
        report.backup.copy = None;
        report.rto.first_query_seconds = None;
        assert_eq!(verdict(&report), Verdict::Passed);
        set(&mut report, Check::Signature, Outcome::NotApplicable);
        assert_eq!(verdict(&report), Verdict::Failed);
    }

    #[test]
    fn a_control_that_stays_green_fails_the_drill() {
        for at in 0..Control::ALL.len() {
            let mut report = samples::passed();
            report.controls[at].outcome = Outcome::Passed;
            assert_eq!(verdict(&report), Verdict::Failed);
            report.controls[at].outcome = Outcome::NotChecked;
            assert_eq!(verdict(&report), Verdict::PassedWithGaps);
            report.controls[at].outcome = Outcome::NotApplicable;
            assert_eq!(verdict(&report), Verdict::Passed);
            report.controls.remove(at);
            assert_eq!(verdict(&report), Verdict::PassedWithGaps);
        }
        let mut report = samples::passed();
        report.controls[0].check = Check::Smoke;
        assert_eq!(verdict(&report), Verdict::Failed, "another check noticed");
        for outcome in [Outcome::NotApplicable, Outcome::NotChecked, Outcome::Passed] {
            let mut report = samples::passed();
            report.controls.iter_mut().for_each(|control| control.outcome = outcome);
            assert_eq!(verdict(&report), Verdict::Failed, "none turned red: {outcome:?}");
        }
        let mut report = samples::passed();
        report.controls.clear();
        assert_eq!(verdict(&report), Verdict::Failed);
    }

    #[test]
    fn a_scenario_is_held_against_its_own_end() {
        let mut report = samples::passed();
        report.scenarios[0].expected = crate::drill::Expected::Reports;
        assert_eq!(verdict(&report), Verdict::Failed);
        let mut report = samples::passed();
        report.scenarios[0].outcome = Outcome::NotChecked;
        assert_eq!(verdict(&report), Verdict::PassedWithGaps);
    }

    #[test]
    fn objectives_are_compared_and_not_believed() {
        let changed = |change: &dyn Fn(&mut Report)| {
            let mut report = samples::passed();
            change(&mut report);
            verdict(&report)
        };
        assert_eq!(changed(&|report| report.objectives.rto_seconds = 1.0), Verdict::ObjectiveMissed);
        assert_eq!(changed(&|report| report.objectives.rpo_seconds = 0.1), Verdict::ObjectiveMissed);
        assert_eq!(changed(&|report| report.rto.met = false), Verdict::ObjectiveMissed);
        assert_eq!(changed(&|report| report.rpo.met = false), Verdict::ObjectiveMissed);
        for number in [f64::NAN, f64::INFINITY, -1.0] {
            assert_eq!(changed(&|report| report.rto.first_query_seconds = Some(number)), Verdict::ObjectiveMissed, "{number}");
            assert_eq!(changed(&|report| report.rpo.seconds = Some(number)), Verdict::ObjectiveMissed, "{number}");
        }
        assert_eq!(changed(&|report| report.objectives.rto_seconds = f64::NAN), Verdict::ObjectiveMissed);
        assert_eq!(changed(&|report| report.rpo.seconds = None), Verdict::ObjectiveMissed);
        assert_eq!(changed(&|report| report.rto.projection.as_mut().unwrap().seconds = 1e6), Verdict::ObjectiveMissed);
    }

    #[test]
    fn the_worst_reason_comes_first() {
        let mut report = samples::passed();
        set(&mut report, Check::Catalog, Outcome::NotChecked);
        report.objectives.rpo_seconds = 0.0;
        set(&mut report, Check::Truth, Outcome::Failed);
        let (verdict, reasons) = judge(&report);
        assert_eq!(verdict, Verdict::Failed);
        let found: Vec<bool> = ["truth failed", "would have been lost", "catalog was not made"]
            .iter()
            .zip(&reasons)
            .map(|(part, reason)| reason.contains(part))
            .collect();
        assert_eq!((found, reasons.len()), (vec![true; 3], 3), "{reasons:?}");
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        // Mostly good, so that passes are among what is tried.
        prop_oneof![
            200 => Just(Outcome::Passed),
            10 => Just(Outcome::NotApplicable),
            1 => Just(Outcome::NotChecked),
            1 => Just(Outcome::Failed),
        ]
    }

    prop_compose! {
        fn report()(
            checks in proptest::collection::vec(outcome(), Check::ALL.len()),
            left_out in proptest::option::weighted(0.1, select(Check::ALL.to_vec())),
            empty in proptest::option::weighted(0.05, select(Check::ALL.to_vec())),
            controls in proptest::collection::vec(outcome(), Control::ALL.len()),
            scenarios in proptest::collection::vec(outcome(), Scenario::ALL.len()),
            holds in proptest::collection::vec(proptest::bool::weighted(0.99), 8),
            seconds in proptest::option::weighted(0.97, 0.0f64..16_000.0),
            lost in proptest::option::weighted(0.97, 0.0f64..100_000.0),
            met in (proptest::bool::weighted(0.97), proptest::bool::weighted(0.97)),
        ) -> Report {
            let mut report = samples::passed();
            report.checks.iter_mut().zip(checks).for_each(|(result, outcome)| result.outcome = outcome);
            report.checks.retain(|result| Some(result.check) != left_out);
            for result in report.checks.iter_mut().filter(|result| Some(result.check) == empty) {
                result.scope = Some(Scope { checked: 0, of: 3, unit: "pages".into(), seed: None });
            }
            for (result, outcome) in report.controls.iter_mut().zip(controls) {
                // What is good of a check is bad of a control.
                result.outcome = match outcome {
                    Outcome::Passed => Outcome::Failed,
                    Outcome::Failed => Outcome::Passed,
                    other => other,
                };
            }
            report.scenarios.iter_mut().zip(scenarios).for_each(|(result, outcome)| result.outcome = outcome);
            report.environment.isolation = ["directory", "user", "network", "socket", "archive", "replication", "jobs", "repository"]
                .iter()
                .zip(holds)
                .map(|(what, holds)| Isolation { what: (*what).to_owned(), holds, how: String::new() })
                .collect();
            report.rto.first_query_seconds = seconds;
            report.rpo.seconds = lost;
            (report.rto.met, report.rpo.met) = met;
            report
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// Written against the issue and not against the code: each sentence is one way in which a drill has not passed.
        #[test]
        fn no_part_that_is_not_good_passes(report in report()) {
            let (verdict, reasons) = judge(&report);
            let outcome_of = |check| report.checks.iter().find(|result| result.check == check).map(|result| result.outcome);
            let any = |wanted| report.checks.iter().any(|result| result.outcome == wanted);
            let failed = any(Outcome::Failed)
                || report.scenarios.iter().any(|result| result.outcome == Outcome::Failed)
                || report.controls.iter().any(|result| result.outcome == Outcome::Passed)
                || !report.controls.iter().any(|result| result.outcome == Outcome::Failed)
                || [Check::Signature, Check::Start, Check::Recovery].iter().any(|check| outcome_of(*check) != Some(Outcome::Passed))
                || report.environment.isolation.iter().any(|one| !one.holds && one.what != "network" && one.what != "user");
            prop_assert_eq!(verdict == Verdict::Failed, failed);
            let missed = !report.rto.met || !report.rpo.met
                || report.rto.first_query_seconds.is_none_or(|seconds| seconds > report.objectives.rto_seconds)
                || report.rpo.seconds.is_none_or(|seconds| seconds > report.objectives.rpo_seconds);
            prop_assert_eq!(verdict == Verdict::ObjectiveMissed, missed && !failed);
            let gaps = any(Outcome::NotChecked)
                || report.checks.len() < Check::ALL.len()
                || report.checks.iter().any(|one| one.outcome == Outcome::Passed && one.scope.as_ref().is_some_and(|scope| scope.checked == 0))
                || report.scenarios.iter().any(|result| result.outcome == Outcome::NotChecked)
                || report.controls.iter().any(|result| result.outcome == Outcome::NotChecked)
                || report.environment.isolation.iter().any(|one| !one.holds);
            prop_assert_eq!(verdict == Verdict::Passed, !failed && !missed && !gaps);
            prop_assert_eq!(reasons.is_empty(), verdict == Verdict::Passed);
            // And it is the same verdict whatever stands in the report.
            let lied = Report { verdict: Verdict::Passed, reasons: Vec::new(), ..report };
            prop_assert_eq!(judge(&lied), (verdict, reasons));
        }
    }
}
