//! `lifeboat key export`

use jiff::Timestamp;
use lifeboat_core::export::{ExportPlan, KeyExport};
use lifeboat_core::policy::{Operation, PlanFacts};
use lifeboat_core::repository::to_json;
use lifeboat_engine::export as engine;
use lifeboat_engine::keys::Recipient;
use lifeboat_engine::opened_backup::{self, VerifiedBackup};
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::Trust;

use super::Export;
use crate::config::Settings;
use crate::failure::Failure;
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session;

pub(super) fn run(export: &Export, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let recipient: Recipient = export.to.parse()?;
    let repository = session::read_repository(settings)?;
    let id = session::find_backup(&repository, settings, &export.backup, |_| true)?;
    let trust = session::trust(settings)?;
    let backup = opened_backup::open(&repository, &id, &trust)?;
    let plan = ExportPlan::of(&backup.manifest, backup.digest, recipient.to_string(), !export.without_artifacts);
    let question = Question::new(Operation::KeyExport).dry_run(export.dry_run).about(&backup).by_plan(PlanFacts {
        digest: plan.digest(),
        requester: None,
        approvals: Vec::new(),
    });
    gate::guard(settings, Some(&repository), question, || exported(export, settings, &repository, &trust, &backup, &plan, out))
}

fn exported(
    export: &Export,
    settings: &Settings,
    repository: &Repository,
    trust: &Trust,
    backup: &VerifiedBackup,
    plan: &ExportPlan,
    out: &Output,
) -> Result<u8, Failure> {
    let recipient: Recipient = export.to.parse()?;
    let (id, mut keys) = (&backup.id, 0);
    if !export.dry_run {
        let identities = session::identities(settings, export.identity.as_ref())?;
        let doing = engine::Export { repository, backup, trust, identities: &identities, threads: settings.workers.value };
        let exported = engine::run(&doing, plan, &recipient)?;
        keys = exported.len();
        let by = format!("{} {}", session::host(), session::PROGRAM);
        let document = KeyExport::new(plan, backup.manifest.repository, Timestamp::now(), by, exported);
        session::write_new_text(&export.output, &String::from_utf8(to_json(&document)).expect("JSON is UTF-8"))?;
    }
    let document = serde_json::json!({
        "plan": plan, "plan_digest": plan.digest(), "output": export.output, "keys": keys, "dry_run": export.dry_run,
    });
    out.result(&document, || {
        let artifacts = if plan.artifacts { " and its artifacts" } else { "" };
        match export.dry_run {
            true => format!("the data keys of {id}{artifacts} would be handed to {recipient}; nothing was written\n"),
            false => format!("{keys} data keys of {id}{artifacts} for {recipient}, in {}\n", export.output.display()),
        }
    });
    if plan.artifacts && !export.dry_run {
        output::warn("a run that stored artifacts used one key for all of them: these keys also open what it stored for other backups");
    }
    Ok(0)
}
