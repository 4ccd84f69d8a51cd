//! `lifeboat drill show`

use std::path::PathBuf;

use clap::Args;
use lifeboat_core::drill::judge::turned_red;
use lifeboat_core::drill::{Outcome, Report, span};
use lifeboat_core::policy::Operation;
use lifeboat_engine::drill::evidence::{self, VerifiedReport};
use serde_json::{Value, json};

use crate::config::Settings;
use crate::failure::{EXIT_FINDINGS, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Output, plain};
use crate::session;

#[derive(Debug, Args)]
pub(crate) struct DrillShow {
    /// Drill id, or latest
    #[arg(default_value = "latest")]
    drill: String,
    /// Write the page of the report, as it was signed, to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(super) fn run(show: &DrillShow, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let repository = session::read_repository(settings)?;
    gate::allow(settings, Some(&repository), Question::new(Operation::DrillShow))?;
    // Nothing of a report is shown that nobody stands for.
    let trust = session::trust(settings)?;
    let id = super::find(&repository, settings, &show.drill)?;
    let verified = evidence::verify(&repository, &trust, &id)?;
    if let Some(path) = &show.html {
        session::write_new(path, &[&evidence::page(&repository, &verified)?], 0o644).map_err(|failure| {
            failure.hint("name a file that is not there yet; nothing is ever overwritten: lifeboat drill show --help")
        })?;
    }
    let document = json!({
        "report": verified.report,
        "sha256": verified.sha256,
        "signature": {"signer": verified.signer, "when": verified.when, "bundle": bundle(&verified)},
        "exit_code": super::code(verified.report.verdict),
        "doubts": verified.doubts,
    });
    out.result(&document, || text(&verified));
    verified.doubts.iter().for_each(|doubt| output::warn(&plain(doubt)));
    Ok(if verified.doubts.is_empty() { 0 } else { EXIT_FINDINGS })
}

/// The bundle as JSON: it was parsed when it was verified.
fn bundle(verified: &VerifiedReport) -> Value {
    serde_json::from_slice(&verified.bundle).unwrap_or_default()
}

fn text(verified: &VerifiedReport) -> String {
    let signature = format!("valid, {}, signed {}", verified.signer, verified.when);
    summary(&verified.report, &signature, &verified.sha256.to_string())
}

/// A report for a terminal, with what is known of its signature.
pub(super) fn summary(report: &Report, signature: &str, sha256: &str) -> String {
    let mut lines = vec![("drill", format!("{}, number {}", report.id, report.number)), ("verdict", report.verdict.words().to_uppercase())];
    lines.extend(report.reasons.iter().map(|reason| ("", reason.clone())));
    lines.extend([
        ("signature", signature.to_owned()),
        ("report", format!("sha256 {sha256}")),
        (
            "backup",
            format!(
                "{}, {} in {} files, {} artifacts",
                report.backup.id,
                output::bytes(report.backup.bytes),
                report.backup.files,
                report.backup.artifacts
            ),
        ),
        (
            "run",
            format!("{:.0} to {:.0} by {} on {} with {}", report.started, report.finished, report.actor.user, report.host, report.lifeboat),
        ),
    ]);
    if let Some(recovery) = &report.recovery {
        let lsn = |lsn: Option<lifeboat_core::wal::Lsn>| lsn.map_or("nobody knows".to_owned(), |lsn| lsn.to_string());
        lines.push(("recovery", format!("to {}: reached {}, promised {}", recovery.target, lsn(recovery.reached), lsn(recovery.promised))));
    }
    lines.extend(timeline(report));
    let mut text = String::new();
    for (name, value) in lines {
        text.push_str(format!("{name:<10} {}", plain(&value)).trim_end());
        text.push('\n');
    }
    text.push('\n');
    text.push_str(&checks(report));
    text
}

/// What happened before and after the disaster, in the order in which it did.
fn timeline(report: &Report) -> Vec<(&'static str, String)> {
    let objective = |met: bool, seconds: f64| format!("objective {}: {}", span(seconds), if met { "met" } else { "MISSED" });
    let time = |seconds: Option<f64>| seconds.map_or("never".to_owned(), span);
    let (rto, rpo) = (&report.rto, &report.rpo);
    let lost = rpo.seconds.map_or("nobody knows how much".to_owned(), |seconds| format!("at most {}", span(seconds)));
    let mut lines = vec![
        ("lost", format!("{lost}, by the {} ({})", rpo.source, objective(rpo.met, report.objectives.rpo_seconds))),
        ("disaster", format!("{:.0}", rpo.failure)),
    ];
    for phase in &rto.phases {
        let back = rto.first_query_seconds.is_some_and(|first| phase.from_seconds >= first + rto.excluded_seconds);
        let what = match (phase.before_first_query, back) {
            (true, _) => "",
            (false, true) => ", when it was back already",
            (false, false) => ", which only a drill does: it does not count",
        };
        lines.push(("", format!("{:>14}  {} for {}{what}", span(phase.from_seconds), phase.name, span(phase.seconds))));
    }
    lines.push(("back", format!("after {} ({})", time(report.rto_seconds()), objective(rto.met, report.objectives.rto_seconds))));
    lines.push(("checked", format!("after {}", time(rto.verified_seconds))));
    if let Some(projection) = &rto.projection {
        lines.push((
            "projected",
            format!("{} for {}, an estimate: {}", span(projection.seconds), output::bytes(projection.bytes), projection.how),
        ));
    }
    lines
}

fn checks(report: &Report) -> String {
    let mut rows = Vec::new();
    let mut row = |outcome: &str, name: String, seconds: f64, said: &str| {
        rows.push(vec![outcome.to_owned(), name, span(seconds), plain(said)]);
    };
    let loud = |outcome: Outcome| if outcome == Outcome::Failed { outcome.words().to_uppercase() } else { outcome.words().to_owned() };
    for check in &report.checks {
        row(&loud(check.outcome), check.check.name(), check.seconds, &check.reason);
        check.findings.iter().for_each(|finding| row("", String::new(), 0.0, &format!("- {finding}")));
    }
    for control in &report.controls {
        let outcome = match control.outcome {
            Outcome::Failed if turned_red(control) => "noticed".to_owned(),
            Outcome::Failed | Outcome::Passed => "NOT NOTICED".to_owned(),
            other => other.words().to_owned(),
        };
        row(&outcome, format!("control {}", control.control.name()), control.seconds, &control.said);
    }
    for scenario in &report.scenarios {
        row(&loud(scenario.outcome), format!("scenario {}", scenario.scenario.name()), scenario.seconds, &scenario.observed);
    }
    for row in rows.iter_mut().filter(|row| row[0].is_empty()) {
        row[2].clear();
    }
    output::table(&["OUTCOME", "CHECK", "TIME", "ANSWER"], &rows)
}
