//! A drill that ends before anything could be restored: its backup is not signed, does not open, or the WAL that it needs is not there. That is
//! what drills are there to find, so it leaves a report like any other.

use jiff::Timestamp;
use lifeboat_core::drill::report::REPORT_SCHEMA;
use lifeboat_core::drill::{
    Check, CheckResult, Control, ControlResult, DrillId, Environment, Objectives, Outcome, Report, Verdict, measure,
};
use lifeboat_core::policy::Operation;
use lifeboat_core::repository::{Sha256, layout};
use lifeboat_engine::drill::evidence;
use lifeboat_engine::opened_backup;
use lifeboat_engine::repository::{MAX_MANIFEST_BYTES, Repository};
use lifeboat_engine::signing::Trust;

use super::{Run, backup_summary, keep_evidence, parent};
use crate::commands::policy::facts;
use crate::config::Settings;
use crate::failure::{EXIT_KEY, EXIT_UNREACHABLE, EXIT_UNVERIFIED, Failure};
use crate::gate::{self, Question};
use crate::{output, session};

/// Whether a failure says something about the backup, and nothing about what was typed.
pub(super) fn is_finding(run: &Run, failure: &Failure) -> bool {
    let typed = run.target_time.is_some() || run.target_lsn.is_some() || run.target_name.is_some();
    let of_backup = match failure.code {
        EXIT_UNVERIFIED | EXIT_KEY => true,
        EXIT_UNREACHABLE => !typed,
        _ => false,
    };
    of_backup && !run.dry_run
}

/// Signs and stores what is known, and gives the failure back.
pub(super) fn record(
    run: &Run,
    settings: &Settings,
    repository: &Repository,
    trust: &Trust,
    failed: Timestamp,
    failure: Failure,
) -> Result<u8, Failure> {
    let id = session::find_backup(repository, settings, &run.backup, |_| true)?;
    // Nothing was brought back: this only looked at what is stored.
    let permit = gate::ask(settings, Some(repository), Question::new(Operation::Verify))?;
    let recorded = evidence_of(run, settings, repository, trust, &id, failed, &failure);
    match recorded {
        Ok(drill) => output::say(&format!("the failed drill is on record: lifeboat drill show {drill}")),
        Err(why) => output::warn(&format!("the failed drill left no report: {}", why.message)),
    }
    permit.end(settings, Err(failure))
}

fn evidence_of(
    run: &Run,
    settings: &Settings,
    repository: &Repository,
    trust: &Trust,
    id: &lifeboat_core::repository::backup_id::BackupId,
    failed: Timestamp,
    failure: &Failure,
) -> Result<DrillId, Failure> {
    let signer = session::signer(settings)?;
    // As it says of itself: whether that is signed is one of the checks.
    let manifest = opened_backup::peek(repository, id)?;
    let digest = Sha256::of(&repository.store().get(&layout::manifest(id), MAX_MANIFEST_BYTES)?);
    let latest = evidence::latest(repository, trust, id.name())?;
    let name = id.name().parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat list"))?;
    let drill = DrillId::next(&name, failed, &evidence::ids(repository, id.name())?);
    let signed = opened_backup::open(repository, id, trust);
    let culprit = match (&signed, failure.code) {
        (Err(_), _) => Check::Signature,
        (Ok(_), EXIT_KEY) => Check::Extents,
        (Ok(_), _) => Check::Recovery,
    };
    let mut checks = Vec::new();
    for check in Check::ALL {
        checks.push(match (check, &signed) {
            (check, _) if check == culprit => CheckResult::new(check, Outcome::Failed, failure.message.clone()),
            (Check::Signature, Ok(backup)) => CheckResult::new(check, Outcome::Passed, format!("signed by {}", backup.signed_by)),
            (Check::Teardown, _) => CheckResult::new(check, Outcome::NotApplicable, "nothing was made"),
            (check, _) => CheckResult::new(check, Outcome::NotChecked, "the drill did not come so far"),
        });
    }
    let control = |control: Control| ControlResult {
        control,
        place: String::new(),
        check: control.check(),
        outcome: Outcome::NotChecked,
        said: "the drill did not come so far".to_owned(),
        seconds: 0.0,
    };
    let objectives = Objectives { rto_seconds: settings.rto.value.as_secs_f64(), rpo_seconds: settings.rpo.value.as_secs_f64() };
    let directory = parent(run, settings).unwrap_or_else(|_| settings.drill.directory.value.clone());
    let report = Report {
        schema: REPORT_SCHEMA,
        id: drill.to_string(),
        number: latest.as_ref().map_or(1, |latest| latest.number + 1),
        previous: latest.as_ref().map(|latest| latest.sha256),
        name: id.name().to_owned(),
        repository: repository.descriptor().repository,
        repository_url: settings.repositories.primary().map_or_else(String::new, |one| facts::without_user(&one.url.value)),
        host: session::host(),
        actor: session::actor(),
        lifeboat: session::PROGRAM.to_owned(),
        // There was no plan.
        plan: Sha256([0; 32]),
        started: failed,
        finished: Timestamp::now(),
        verdict: Verdict::Failed,
        reasons: Vec::new(),
        backup: backup_summary(id, &manifest, digest),
        recovery: None,
        environment: Environment { directory: directory.display().to_string(), ..Environment::default() },
        objectives,
        rto: measure::rto(Vec::new(), None, None, 0.0, manifest.plain_bytes, None, manifest.postgres.is_some(), objectives),
        rpo: measure::rpo(failed, None, objectives),
        checks,
        controls: Control::ALL.into_iter().map(control).collect(),
        scenarios: Vec::new(),
        notes: Vec::new(),
        next_due: None,
    }
    .judged();
    keep_evidence(settings, repository, trust, &report, &*signer, run.output.as_deref(), &directory)?;
    Ok(drill)
}
