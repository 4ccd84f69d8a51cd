//! `lifeboat replicate`

use std::cell::Cell;

use lifeboat_core::policy::Operation;
use lifeboat_core::verify::{Finding, FindingKind, Verdict, verdict};
use lifeboat_engine::lease::with_lease;
use lifeboat_engine::replicate::{self, Mode, ReplicatePlan, ReplicateReport, ReplicateSettings};
use lifeboat_engine::repository::Repository;
use lifeboat_engine::retention;
use lifeboat_engine::store::{self, Part};
use serde::Serialize;

use super::verify::{code, say_findings};
use crate::cli::Replicate;
use crate::config::{RepositorySettings, Settings};
use crate::failure::{EXIT_FAILED, EXIT_KEY, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Level, Output};
use crate::progress::Shown;
use crate::session;

/// What one replica came to.
#[derive(Serialize)]
struct Outcome {
    name: String,
    url: String,
    verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<ReplicatePlan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<ReplicateReport>,
    /// Why it could not be compared or brought to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    failure: Option<Failure>,
}

pub(super) fn run(replicate: &Replicate, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let source = match &replicate.from {
        Some(name) => session::named(settings, name)?,
        None => session::primary(settings)?,
    };
    let targets: Vec<&RepositorySettings> = match &replicate.to {
        Some(name) => vec![session::named(settings, name)?],
        None => settings.repositories.used.iter().collect(),
    };
    let targets: Vec<&RepositorySettings> = targets.into_iter().filter(|one| one.name.value != source.name.value).collect();
    if targets.is_empty() {
        return Err(Failure::usage("replicate: there is no other repository")
            .hint("write a second [[repository]] into the configuration (docs/replicas.md); lifeboat config show prints what there is"));
    }
    if let (Some(name), [one]) = (&replicate.to, targets.as_slice())
        && one.part.value == Part::KeptByStore
        && !(replicate.check || replicate.dry_run)
    {
        return Err(Failure::usage(format!("replicate to {name}: its store keeps it, lifeboat does not write there"))
            .hint(format!("lifeboat replicate --check --to {name}")));
    }
    let of_primary = settings.repositories.primary().is_some_and(|primary| primary.name.value == source.name.value);
    if replicate.missed && !of_primary {
        return Err(Failure::usage(format!("replicate --missed from {}: what was missed was missed of the primary", source.name.value))
            .hint(format!("lifeboat replicate --from {}", source.name.value)));
    }
    let repository = session::alone(source)?;
    let question = Question::new(Operation::Replicate).dry_run(replicate.dry_run || replicate.check);
    gate::guard(settings, Some(&repository), question, || run_to(replicate, settings, &repository, source, &targets, out))
}

fn run_to(
    replicate: &Replicate,
    settings: &Settings,
    repository: &Repository,
    source: &RepositorySettings,
    targets: &[&RepositorySettings],
    out: &Output,
) -> Result<u8, Failure> {
    let trust = session::trust(settings)?;
    let outcomes: Vec<Outcome> = targets.iter().map(|target| one(replicate, settings, repository, source, target, &trust)).collect();
    let all = outcomes.iter().map(|outcome| outcome.verdict).max().unwrap_or(Verdict::Verified);
    out.result(&serde_json::json!({"source": source.name.value, "verdict": all, "replicas": outcomes}), || {
        outcomes.iter().map(|outcome| text_of(outcome, &source.name.value)).collect()
    });
    for outcome in &outcomes {
        say_findings(outcome.report.as_ref().map_or(&[], |report| &report.findings));
    }
    // What failed is what people must hear of last; the others were brought as far as they could be.
    for failure in outcomes.iter().filter_map(|outcome| outcome.failure.as_ref().map(|failure| (&outcome.name, failure))) {
        let hint = failure.1.hint.as_deref().map(|hint| ("hint", hint));
        output::tell(Level::Error, "error", &format!("replica {}: {}", failure.0, failure.1.message), hint);
    }
    match outcomes.iter().find_map(|outcome| outcome.failure.as_ref()) {
        Some(failure) => Ok(failure.code.max(EXIT_FAILED)),
        None => Ok(code(all)),
    }
}

fn one(
    replicate: &Replicate,
    settings: &Settings,
    source: &Repository,
    from: &RepositorySettings,
    target: &RepositorySettings,
    trust: &lifeboat_engine::signing::Trust,
) -> Outcome {
    let mut outcome = Outcome {
        name: target.name.value.clone(),
        url: target.url.value.clone(),
        verdict: Verdict::Verified,
        plan: None,
        report: None,
        error: None,
        failure: None,
    };
    let kept = target.part.value == Part::KeptByStore;
    let mode = match replicate {
        // Never by presence alone: a replica that its store keeps may have the object and an old version of it (docs/replicas.md).
        _ if kept || replicate.check => Mode::Check,
        Replicate { full: true, .. } => Mode::Content,
        Replicate { missed: true, .. } => Mode::Missed,
        _ => Mode::Listings,
    };
    // What was missed was missed of the primary.
    let is_primary = settings.repositories.primary().is_some_and(|primary| primary.name.value == from.name.value);
    let journal = store::journal_of(&settings.wal_spool.value, source.descriptor().repository, &target.name.value);
    let journal = (is_primary && !kept).then_some(&journal);
    let progress = Shown::new();
    let mut work = || -> Result<(), Failure> {
        let make = mode != Mode::Check && !replicate.dry_run;
        let store = store::open(&target.url.value, &target.options(), make)?;
        if replicate.dry_run {
            let missed = journal.map(store::Journal::read).transpose().map_err(replicate::ReplicateError::Journal)?.unwrap_or_default();
            outcome.plan = Some(replicate::plan(source.store(), &*store, &missed)?);
            return Ok(());
        }
        let memory_bytes = settings.memory_bytes.value;
        let run_settings = ReplicateSettings { trust, mode, workers: settings.workers.value, memory_bytes };
        let begun = Cell::new(false);
        let run = || {
            begun.set(true);
            replicate::run(source.store(), &*store, journal, &run_settings, &progress).map_err(Failure::from)
        };
        // What a prune takes away meanwhile must not come to stand in the replica: the lease keeps it from beginning. A host that only
        // reads the primary cannot take it.
        let report = match is_primary && make {
            true => match with_lease(source.store(), retention::LEASE, &session::host(), &output::warn, |_| run()) {
                Err(failure) if !begun.get() && failure.code == EXIT_KEY => {
                    output::warn(&format!("{}; let nobody prune meanwhile", failure.message));
                    run()
                }
                other => other,
            },
            false => run(),
        }?;
        outcome.verdict = verdict(&report.findings);
        outcome.report = Some(report);
        Ok(())
    };
    let worked = work();
    progress.finish();
    if let Err(failure) = worked {
        let object = format!("repository {}", outcome.name);
        let unseen = Finding { kind: FindingKind::NotChecked, backup: None, object, file: None, problem: failure.message.clone() };
        outcome.verdict = verdict([&unseen]);
        outcome.error = Some(failure.message.clone());
        outcome.failure = Some(failure);
    }
    outcome
}

fn text_of(outcome: &Outcome, source: &str) -> String {
    let mut text = format!("{}\n", outcome.name);
    if let Some(plan) = &outcome.plan {
        let (count, bytes) = (plan.missing.count, output::bytes(plan.missing_bytes));
        text.push_str(&format!("  would copy {count} objects, {bytes}, from {source}; {} are on both sides\n", plan.alike));
        for key in plan.missing.first.iter().take(20) {
            text.push_str(&format!("    {key}\n"));
        }
        match count.saturating_sub(20) {
            0 => {}
            more => text.push_str(&format!("    and {more} more\n")),
        }
        if plan.resized.count > 0 {
            text.push_str(&format!("  would look at {} objects of other lengths on both sides, and heal them\n", plan.resized.count));
        }
        if plan.deletions.count > 0 {
            text.push_str(&format!("  would catch up on {} deletions\n", plan.deletions.count));
        }
        extra(&mut text, plan.extra.count);
        text.push_str("  nothing was changed (dry run)\n");
    }
    if let Some(report) = &outcome.report {
        let word = match outcome.verdict {
            Verdict::Verified => "in step",
            Verdict::Incomplete => "INCOMPLETE",
            Verdict::Failed => "FAILED",
        };
        text.push_str(&format!("  {word}: {} objects copied, {}", report.copied, output::bytes(report.copied_bytes)));
        text.push_str(&format!(", {} were there, {} compared byte for byte\n", report.alike, report.compared));
        if report.healed.count > 0 {
            text.push_str(&format!("  {} damaged objects healed\n", report.healed.count));
        }
        if report.deleted > 0 {
            text.push_str(&format!("  {} deletions caught up on\n", report.deleted));
        }
        extra(&mut text, report.extra.count);
    }
    text
}

fn extra(text: &mut String, count: u64) {
    if count > 0 {
        text.push_str(&format!("  {count} objects are only there, and stay\n"));
    }
}
