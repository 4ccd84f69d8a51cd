//! `lifeboat key export`

use jiff::Timestamp;
use lifeboat_core::export::{ExportPlan, KeyExport};
use lifeboat_core::policy::{Operation, PlanFacts};
use lifeboat_core::repository::{Sha256, to_json};
use lifeboat_engine::approval::Gathered;
use lifeboat_engine::export as engine;
use lifeboat_engine::keys::Recipient;
use lifeboat_engine::opened_backup::{self, VerifiedBackup};
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::Trust;

use super::{Export, ExportWhat};
use crate::commands::approval;
use crate::config::Settings;
use crate::failure::{EXIT_DENIED, EXIT_FAILED, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session;

/// The plan of what was typed.
pub(in crate::commands) fn planned(
    what: &ExportWhat,
    settings: &Settings,
    repository: &Repository,
    trust: &Trust,
) -> Result<(VerifiedBackup, ExportPlan), Failure> {
    let recipient: Recipient = what.to.parse()?;
    let id = session::find_backup(repository, settings, &what.backup, |_| true)?;
    let backup = opened_backup::open(repository, &id, trust)?;
    let plan = ExportPlan::of(&backup.manifest, backup.digest, recipient.to_string(), !what.without_artifacts);
    Ok((backup, plan))
}

/// Approvals of a plan, and the repository that says whether they were used.
struct Approvals {
    digest: Sha256,
    deciding: Repository,
    gathered: Gathered,
}

impl Approvals {
    /// Those of the plan with this digest, if that is the plan.
    fn of(plan: &ExportPlan, digest: Sha256, settings: &Settings) -> Result<Self, Failure> {
        let deciding = session::open_repository(settings)?;
        if lifeboat_engine::approval::plan(&deciding, digest)? != plan.document() {
            let problem = format!("hand out keys as approved: the plan of this command is {}, another one", plan.digest());
            return Err(Failure::new(EXIT_DENIED, problem)
                .hint(format!("lifeboat approval show {digest} shows what was approved; nothing was handed out")));
        }
        let known = approval::Known::of(settings)?;
        let gathered = approval::gathered(&known, &deciding, Operation::KeyExport, digest, Timestamp::now())?;
        approval::approved(&gathered, digest)?;
        Ok(Self { digest, deciding, gathered })
    }

    fn spend(&self) -> Result<(), Failure> {
        approval::spend(&self.deciding, &self.gathered, approval::approved(&self.gathered, self.digest)?)
    }
}

pub(super) fn run(export: &Export, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let repository = session::read_repository(settings)?;
    let trust = session::trust(settings)?;
    let (backup, plan) = planned(&export.what, settings, &repository, &trust)?;
    let approvals = export.approved.map(|digest| Approvals::of(&plan, digest, settings)).transpose()?;
    let nobody = || PlanFacts::unapproved(plan.digest());
    let facts = approvals.as_ref().map_or_else(nobody, |approvals| approvals.gathered.facts(plan.digest()));
    let question = Question::new(Operation::KeyExport).dry_run(export.dry_run).about(&backup).by_plan(facts);
    let doing = Doing { repository: &repository, trust: &trust, backup: &backup, plan: &plan, approvals: approvals.as_ref() };
    gate::guard(settings, Some(&repository), question, || exported(export, settings, &doing, out))
}

/// What is handed out, from where, and who agreed.
struct Doing<'a> {
    repository: &'a Repository,
    trust: &'a Trust,
    backup: &'a VerifiedBackup,
    plan: &'a ExportPlan,
    approvals: Option<&'a Approvals>,
}

fn exported(export: &Export, settings: &Settings, doing: &Doing<'_>, out: &Output) -> Result<u8, Failure> {
    let Doing { repository, trust, backup, plan, approvals } = *doing;
    let recipient: Recipient = plan.recipient.parse()?;
    let (id, mut keys) = (&backup.id, 0);
    if !export.dry_run {
        let identities = session::identities(settings, export.identity.as_ref())?;
        let doing = engine::Export { repository, backup, trust, identities: &identities, threads: settings.workers.value };
        // Whoever cannot open the backup has handed out nothing; the keys are in this process only until they are written.
        let exported = engine::run(&doing, plan, &recipient)?;
        if let Some(approvals) = approvals {
            if std::fs::symlink_metadata(&export.output).is_ok() {
                return Err(Failure::new(EXIT_FAILED, format!("write {}: it is there", export.output.display()))
                    .hint("lifeboat key export --output FILE takes a new file; the approvals were not used"));
            }
            approvals.spend()?;
        }
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
