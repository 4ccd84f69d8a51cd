//! `lifeboat prune`

use std::collections::BTreeSet;

use jiff::Timestamp;
use lifeboat_core::policy::{DeletionFacts, Operation, PlanFacts};
use lifeboat_core::prune::Plan;
use lifeboat_core::repository::Sha256;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_engine::prune::{self, PruneError, PruneSettings, Pruned};
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::Trust;

use super::approval;
use super::expire::span;
use crate::cli::Prune;
use crate::config::Settings;
use crate::failure::{EXIT_DENIED, EXIT_FAILED, EXIT_FINDINGS, Failure};
use crate::gate::{self, Permit, Question};
use crate::output::{self, Output, table};
use crate::progress::Shown;
use crate::session;

pub(super) fn run(prune: &Prune, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let repository = session::open_repository(settings)?;
    let (trust, host) = (session::trust(settings)?, session::host());
    let prune_settings = prune_settings(prune, settings, &trust, &host)?;
    let now = Timestamp::now();
    if prune.dry_run {
        warn_if_busy(&repository)?;
        let plan = prune::plan(&repository, &prune_settings, now)?;
        gate::allow(settings, Some(&repository), question(&plan, prune).dry_run(true))?;
        return say(&Pruned { plan, ..Pruned::default() }, prune, &prune_settings, out);
    }
    let mut permit = None;
    let done = match prune.approved {
        Some(digest) => approved(digest, prune, settings, &repository, &prune_settings, now, &mut permit),
        None => unasked(prune, settings, &repository, &prune_settings, now, &mut permit),
    };
    let said = done.and_then(|done| say(&done, prune, &prune_settings, out));
    match permit {
        Some(permit) => permit.end(settings, said),
        None => said,
    }
}

/// What the policy is asked about a plan.
fn question(plan: &Plan, prune: &Prune) -> Question {
    let deletion = DeletionFacts { backups: plan.backups.leaving.len() as u64, objects: plan.objects(), forget: prune.forget.clone() };
    let nobody = PlanFacts::unapproved(plan.digest());
    Question::new(Operation::Prune).without(deletion).by_plan(nobody)
}

/// Prunes what there is to prune now, if the policy allows the plan.
fn unasked(
    prune: &Prune,
    settings: &Settings,
    repository: &Repository,
    prune_settings: &PruneSettings<'_>,
    now: Timestamp,
    permit: &mut Option<Permit>,
) -> Result<Pruned, Failure> {
    let mut refused = None;
    let mut consent = |plan: &Plan| match gate::ask(settings, Some(repository), question(plan, prune)) {
        Ok(given) => {
            *permit = Some(given);
            true
        }
        Err(failure) => {
            refused = Some(failure);
            false
        }
    };
    let progress = Shown::new();
    let done = prune::run_if(repository, prune_settings, (now, now), &progress, &mut consent);
    progress.finish();
    match (done, refused) {
        (Err(PruneError::Refused), Some(failure)) => Err(failure),
        (done, _) => Ok(done?),
    }
}

fn say(done: &Pruned, prune: &Prune, prune_settings: &PruneSettings<'_>, out: &Output) -> Result<u8, Failure> {
    let plan = &done.plan;
    let document = serde_json::json!({
        "plan": plan, "digest": plan.digest(), "dry_run": prune.dry_run,
        "deleted": done.objects, "held": done.held, "held_first": done.held_first,
    });
    out.result(&document, || text(done, prune.dry_run));
    for warning in &plan.warnings {
        output::warn(warning);
    }
    for blocked in &plan.backups.blocked {
        output::warn(&format!("nothing was deleted: {blocked}"));
    }
    if !plan.backups.blocked.is_empty() {
        output::say(
            "hint: lifeboat verify BACKUP tells what is wrong; a backup that is lost for good is given up with lifeboat prune --forget BACKUP",
        );
    }
    if done.held > 0 {
        let first = done.held_first.first().map_or("", String::as_str);
        output::warn(&format!(
            "{} objects could not be deleted, and the next prune tries again: retention still holds them, or the credentials may not delete; first {first}",
            done.held
        ));
    }
    let kept: Vec<&BackupId> = prune_settings.forget.iter().filter(|id| !plan.backups.leaves(id)).collect();
    for id in &kept {
        output::warn(&format!("backup {id} is not given up: it is whole, or pinned, or not there; lifeboat list shows the backups"));
    }
    let clean = plan.warnings.is_empty() && plan.backups.blocked.is_empty() && kept.is_empty();
    Ok(if clean { 0 } else { EXIT_FINDINGS })
}

fn prune_settings<'a>(prune: &Prune, settings: &Settings, trust: &'a Trust, host: &'a str) -> Result<PruneSettings<'a>, Failure> {
    let parse = |text: &String| {
        text.parse::<BackupId>().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat list shows the backups"))
    };
    let forget: BTreeSet<BackupId> = prune.forget.iter().map(parse).collect::<Result<_, _>>()?;
    let window = settings.recovery_window.as_ref().map_or(settings.grace.value, |setting| setting.value.max(settings.grace.value));
    Ok(PruneSettings { trust, host, keep_for: span(window)?, forget })
}

fn warn_if_busy(repository: &Repository) -> Result<(), Failure> {
    if lifeboat_engine::lease::is_held(repository.store(), "backup")? {
        output::warn(
            "a backup runs, or another prune: what a backup writes looks like garbage until it has ended, and prune does nothing before that",
        );
    }
    Ok(())
}

/// The plan of a prune that is to be approved.
pub(super) fn planned(prune: &Prune, settings: &Settings, repository: &Repository, now: Timestamp) -> Result<Plan, Failure> {
    let (trust, host) = (session::trust(settings)?, session::host());
    warn_if_busy(repository)?;
    let plan = prune::plan(repository, &prune_settings(prune, settings, &trust, &host)?, now)?;
    if let Some(blocked) = plan.backups.blocked.first() {
        return Err(Failure::new(EXIT_FAILED, format!("ask for an approval: nothing would be deleted: {blocked}"))
            .hint("lifeboat prune --dry-run tells more"));
    }
    Ok(plan)
}

/// Prunes as it was approved: the plan is made anew, for the time at which it was asked for, and has to come out the same.
fn approved(
    digest: Sha256,
    prune: &Prune,
    settings: &Settings,
    repository: &Repository,
    prune_settings: &PruneSettings<'_>,
    now: Timestamp,
    permit: &mut Option<Permit>,
) -> Result<Pruned, Failure> {
    let document = lifeboat_engine::approval::plan(repository, digest)?;
    let known = approval::Known::of(settings)?;
    let gathered = approval::gathered(&known, repository, Operation::Prune, digest, now)?;
    let asked = approval::approved(&gathered, digest)?;
    let mut refused = None;
    let mut consent = |plan: &Plan| {
        let agreed = match plan.document() == document {
            true => {
                let question = question(plan, prune).by_plan(gathered.facts(digest));
                let given = gate::ask(settings, Some(repository), question);
                given.and_then(|given| {
                    *permit = Some(given);
                    approval::spend(repository, &gathered, asked)
                })
            }
            false => Err(Failure::new(
                EXIT_DENIED,
                format!("prune as approved: the plan is another one now: {}", output::plain(&plan.differences(&document).join("; "))),
            )
            .hint("nothing was deleted; ask again: lifeboat approval request prune --reason TEXT")),
        };
        agreed.map_err(|failure| refused = Some(failure)).is_ok()
    };
    let progress = Shown::new();
    let done = prune::run_if(repository, prune_settings, (asked.request.requested, now), &progress, &mut consent);
    progress.finish();
    match (done, refused) {
        (Err(PruneError::Refused), Some(failure)) => Err(failure),
        (done, _) => Ok(done?),
    }
}

fn text(done: &Pruned, dry_run: bool) -> String {
    let plan: &Plan = &done.plan;
    let mut text = String::new();
    for because in &plan.backups.leaving {
        text.push_str(&format!("{}  goes: {}\n", because.backup, because.reason));
    }
    for because in &plan.backups.held {
        text.push_str(&format!("{}  stays: {}\n", because.backup, because.reason));
    }
    let rows: Vec<Vec<String>> = plan
        .steps
        .iter()
        .map(|step| vec![step.what.to_owned(), step.objects.to_string(), output::bytes(step.bytes), step.why.clone()])
        .collect();
    if !rows.is_empty() {
        text.push_str(&table(&["WHAT", "OBJECTS", "BYTES", "WHY"], &rows));
    }
    for (cluster, rules) in &plan.wal {
        for rule in rules.iter().filter(|rule| rule.keep_from.is_some()) {
            text.push_str(&format!("WAL of cluster {cluster}, timeline {}  stays: {}\n", rule.timeline, rule.reason));
        }
    }
    if plan.unknown > 0 {
        let first = plan.unknown_first.first().map_or("", String::as_str);
        text.push_str(&format!("{} objects are not lifeboat's, and stay; first {first}\n", plan.unknown));
    }
    text.push_str(&match dry_run {
        true => format!("{} objects, {}, would be deleted; nothing was changed\n", plan.objects(), output::bytes(plan.bytes())),
        false => format!("{} objects deleted\n", done.objects),
    });
    if plan.more {
        text.push_str("there is more than one run deletes: lifeboat prune again\n");
    }
    text
}
