//! Asking before doing: nothing begins without a policy's yes, and what weighs something leaves a record of its start and of its end.
//!
//! A command collects what it knows, calls [`allow`], [`ask`] or [`guard`], and only then reads data or changes anything. [`allow`] is for
//! what is not audited (`Operation::is_audited`) and for dry runs; [`ask`] gives a [`Permit`], whose end the command says. Opening the
//! repository, which reads its descriptor, comes before that: a policy may look at which one it is.

use std::cell::{Cell, RefCell};

use jiff::Timestamp;
use lifeboat_core::audit::{self, Event, Outcome};
use lifeboat_core::policy::{BackupFacts, BreakGlass, Code, DeletionFacts, Facts, Operation, PlanFacts, RepositoryFacts, TargetFacts};
use lifeboat_core::repository::Id;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_engine::audit::{Recorded, Trouble};
use lifeboat_engine::opened_backup::VerifiedBackup;
use lifeboat_engine::policy::Decided;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::store;

use crate::commands;
use crate::commands::policy::facts;
use crate::config::Settings;
use crate::failure::{EXIT_DENIED, EXIT_FAILED, Failure, chain};
use crate::{operation, output, session, traces};

/// What a command wants to do.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    operation: Operation,
    dry_run: bool,
    url: Option<String>,
    backup: Option<BackupFacts>,
    target: Option<TargetFacts>,
    deletion: Option<DeletionFacts>,
    plan: Option<PlanFacts>,
}

impl Question {
    pub(crate) fn new(operation: Operation) -> Self {
        Self { operation, dry_run: false, url: None, backup: None, target: None, deletion: None, plan: None }
    }

    /// Only the plan is wanted.
    pub(crate) fn dry_run(self, dry_run: bool) -> Self {
        Self { dry_run, ..self }
    }

    /// Not in the configured repository, or in one that may still have to be made.
    pub(crate) fn in_repository(self, url: &str) -> Self {
        Self { url: Some(url.to_owned()), ..self }
    }

    /// It is about this backup.
    pub(crate) fn about(self, backup: &VerifiedBackup) -> Self {
        traces::about(&backup.id);
        let backup = facts::backup(&backup.manifest, &backup.signed_by.to_string(), Timestamp::now());
        Self { backup: Some(backup), ..self }
    }

    /// It goes there.
    pub(crate) fn to(self, target: TargetFacts) -> Self {
        Self { target: Some(target), ..self }
    }

    /// It takes this away.
    pub(crate) fn without(self, deletion: DeletionFacts) -> Self {
        Self { deletion: Some(deletion), ..self }
    }

    /// It follows this plan, which these people approved.
    pub(crate) fn by_plan(self, plan: PlanFacts) -> Self {
        Self { plan: Some(plan), ..self }
    }

    /// What a policy is asked.
    pub(crate) fn facts(&self, settings: &Settings, repository: Option<&Repository>) -> Facts {
        let mut facts = facts::of(settings, self.operation, self.dry_run, Timestamp::now());
        if let Some(url) = &self.url {
            facts.repository = Some(RepositoryFacts { url: facts::without_user(url), id: None });
        }
        if let (Some(place), Some(repository)) = (&mut facts.repository, repository) {
            place.id = Some(repository.descriptor().repository.to_string());
        }
        facts.backup.clone_from(&self.backup);
        facts.target.clone_from(&self.target);
        facts.deletion.clone_from(&self.deletion);
        facts.plan.clone_from(&self.plan);
        facts.break_glass = settings.break_glass.clone().map(|reason| BreakGlass { reason });
        facts
    }

    /// The repository that records go to; a problem with it is not one of the operation.
    fn audited_repository(&self, settings: &Settings) -> Result<Repository, String> {
        let configured = settings.repositories.primary().map(|one| one.url.value.as_str());
        let opened = match &self.url {
            // With all its places.
            Some(url) if configured == Some(url) => session::open_for_records(settings),
            Some(url) => {
                let opened = store::open(url, &settings.store_options(url), false).map_err(Failure::from);
                opened.and_then(|store| Ok(Repository::open(store)?))
            }
            None => session::open_for_records(settings),
        };
        opened.map_err(|failure| failure.message)
    }
}

/// An operation that was allowed and has begun.
pub(crate) struct Permit {
    question: Question,
    start: Event,
    /// Where its start was recorded, open.
    repository: Option<Repository>,
    /// The newest checkpoint of the audit log, for whoever wants to carry it.
    checkpoint: Option<String>,
    /// Why nobody may have heard of what everybody has to hear.
    untold: Option<String>,
    made: RefCell<Option<BackupId>>,
    findings: Cell<u64>,
}

/// Asks about what is not audited, or only planned.
pub(crate) fn allow(settings: &Settings, repository: Option<&Repository>, question: Question) -> Result<(), Failure> {
    let facts = question.facts(settings, repository);
    let decided = decide(settings, &facts)?;
    if !decided.decision.allow {
        // WAL comes by the thousand; all else that was refused is worth a record.
        if !matches!(facts.operation, Operation::WalPush | Operation::WalFetch | Operation::WalReceive) {
            let start = start(&facts, audited(&decided));
            record(settings, &question, question.audited_repository(settings).as_ref(), &start)?;
        }
        return Err(denied(&facts, &decided));
    }
    tell(settings, &facts, &decided);
    Ok(())
}

/// Asks about what is audited, and makes the record of its start.
pub(crate) fn ask(settings: &Settings, repository: Option<&Repository>, question: Question) -> Result<Permit, Failure> {
    let facts = question.facts(settings, repository);
    let decided = decide(settings, &facts)?;
    let start = start(&facts, audited(&decided));
    let repository = question.audited_repository(settings);
    let recorded = record(settings, &question, repository.as_ref(), &start)?;
    if !decided.decision.allow {
        return Err(denied(&facts, &decided));
    }
    let untold = tell(settings, &facts, &decided);
    // What is made, or brought to a replica, changes where records go.
    let stays = !matches!(start.operation, Operation::Init | Operation::Replicate);
    let repository = repository.ok().filter(|_| stays);
    let checkpoint = recorded.checkpoint;
    Ok(Permit { question, start, repository, checkpoint, untold, made: RefCell::default(), findings: Cell::new(0) })
}

/// Asks, does it if it is allowed, and records how it ended.
pub(crate) fn guard(
    settings: &Settings,
    repository: Option<&Repository>,
    question: Question,
    work: impl FnOnce() -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    if question.dry_run || !question.operation.is_audited() {
        allow(settings, repository, question)?;
        return work();
    }
    let permit = ask(settings, repository, question)?;
    permit.end(settings, work())
}

/// Records what an operation that is not audited did by itself, because the configuration says so: start and end, in this host's journal.
/// [`carry`] brings both to the repository, or the next record does.
pub(crate) fn note(settings: &Settings, operation: Operation, reason: &str, outcome: Outcome) -> Result<(), Failure> {
    let facts = Question::new(operation).facts(settings, None);
    let decided = audit::Decided { allow: true, reasons: vec![reason.to_owned()], policy: None, engine: "none".into(), code: None };
    let start = start(&facts, decided);
    let end = start.end(Id(lifeboat_engine::random::bytes()), Timestamp::now(), None, outcome);
    commands::audit::journal(settings)?.note(&[start, end]).map_err(|error| Failure::new(EXIT_FAILED, chain(&error)))
}

/// Whether something waits in this host's journal.
pub(crate) fn waits(settings: &Settings) -> bool {
    commands::audit::journal(settings).is_ok_and(|log| log.waiting().is_ok_and(|waiting| waiting > 0))
}

/// Brings what waits in this host's journal to the repository.
pub(crate) fn carry(settings: &Settings) -> Result<(), String> {
    let repository = session::open_for_records(settings).map_err(|failure| failure.message)?;
    let log = commands::audit::log(settings).map_err(|failure| failure.message)?;
    log.carry(&repository, Timestamp::now()).map_err(|trouble| match trouble {
        Trouble::Distrusted(problem) => {
            format!("the audit log in the repository is not what it was: {problem}; somebody has to look: lifeboat audit verify")
        }
        Trouble::Waiting(problem) => problem,
    })
}

impl Permit {
    /// The newest checkpoint of the audit log that this host knows.
    pub(crate) fn checkpoint(&self) -> Option<String> {
        self.checkpoint.clone()
    }

    /// The backup that was made.
    pub(crate) fn made(&self, backup: &BackupId) {
        traces::about(backup);
        *self.made.borrow_mut() = Some(backup.clone());
    }

    /// So many findings it ended with.
    pub(crate) fn found(&self, findings: usize) {
        self.findings.set(findings as u64);
    }

    /// Makes the record of the end. What the operation came to stays what it is, whatever becomes of the record: it is said.
    pub(crate) fn end(self, settings: &Settings, result: Result<u8, Failure>) -> Result<u8, Failure> {
        let (exit_code, message) = match &result {
            Ok(code) => (*code, None),
            Err(failure) => (failure.code, Some(failure.message.clone())),
        };
        let untold = self.untold.as_ref().map(|why| format!("nobody may have been told: {why}"));
        let said: Vec<String> = message.into_iter().chain(untold).collect();
        let message = (!said.is_empty()).then(|| said.join("; "));
        let outcome = Outcome { exit_code, message, findings: self.findings.get() };
        let end = self.start.end(Id(lifeboat_engine::random::bytes()), Timestamp::now(), self.made.into_inner(), outcome);
        // A connection less where it is still open.
        let repository = self.repository.map_or_else(|| self.question.audited_repository(settings), Ok);
        if let Err(failure) = record(settings, &self.question, repository.as_ref(), &end) {
            output::warn(&format!("the end of this {} was not recorded: {}", self.start.operation.name(), failure.message));
        }
        result
    }
}

fn decide(settings: &Settings, facts: &Facts) -> Result<Decided, Failure> {
    let policy = session::policy(settings)?;
    let decided = policy.decide(facts);
    policy.warnings().iter().for_each(|warning| output::warn(warning));
    Ok(decided)
}

/// The record of the start, with the id that everything else of this operation has.
fn start(facts: &Facts, decided: audit::Decided) -> Event {
    let start = Event::start(Id(lifeboat_engine::random::bytes()), session::PROGRAM, facts, decided);
    Event { trace: Some(operation::id()), ..start }
}

/// As the audit log has it.
fn audited(decided: &Decided) -> audit::Decided {
    let code = (decided.code != Code::Allowed && decided.code != Code::Denied).then(|| decided.code.name().to_owned());
    // Of two engines the embedded one's files come first.
    let policy = decided.policy.strip_prefix("sha256:").and_then(|digest| digest.split(' ').next()?.parse().ok());
    audit::Decided {
        allow: decided.decision.allow,
        reasons: decided.decision.reasons.clone(),
        policy,
        engine: decided.engine.clone(),
        code,
    }
}

/// Makes a record; that the repository does not have it yet is said once.
fn record(settings: &Settings, question: &Question, repository: Result<&Repository, &String>, event: &Event) -> Result<Recorded, Failure> {
    let log = match &question.url {
        Some(url) => commands::audit::log_of(settings, url)?,
        None => commands::audit::log_of(settings, settings.repositories.primary().map_or("", |one| one.url.value.as_str()))?,
    };
    let recorded = log.record(repository.ok(), event).map_err(|error| {
        Failure::new(EXIT_FAILED, chain(&error))
            .hint("nothing is done without a record: set audit.directory to a place that this user can write (lifeboat config show)")
    })?;
    match (&recorded.trouble, repository) {
        (Some(Trouble::Distrusted(problem)), _) => output::warn(&format!(
            "the audit log in the repository is not what it was: {problem}; records stay on this host until somebody has looked: lifeboat audit verify"
        )),
        // Where a repository is made, or is out of reach, the record waits; the operation itself says what is wrong with the place.
        (Some(Trouble::Waiting(problem)), Ok(_)) => {
            output::warn(&format!("the record of this is on this host only, and follows with the next one: {problem}"));
        }
        _ => {}
    }
    Ok(recorded)
}

/// What everybody has to hear; and why they may not have, if they could not be told.
fn tell(settings: &Settings, facts: &Facts, decided: &Decided) -> Option<String> {
    if decided.decision.break_glass {
        output::warn(&format!("THE GLASS IS BROKEN: {}", decided.decision.reasons.join("; ")));
        let document = serde_json::json!({"event": "break-glass", "facts": facts, "reasons": decided.decision.reasons});
        return commands::approval::alert(settings, &document);
    }
    None
}

fn denied(facts: &Facts, decided: &Decided) -> Failure {
    let operation = facts.operation.name();
    let hint = match decided.code {
        // Also where a policy of somebody's own says nothing about it.
        Code::Denied | Code::Allowed if facts.break_glass.is_some() => format!(
            "the policy was given the reason of --break-glass, and denies it all the same: lifeboat policy eval {operation} shows what it was asked, lifeboat policy show the policy"
        ),
        Code::Denied | Code::Allowed => {
            format!("lifeboat policy eval {operation} shows what the policy was asked, lifeboat policy show the policy")
        }
        Code::Unreachable | Code::Timeout => "is OPA up? policy.opa_url: lifeboat config show".to_owned(),
        _ => "lifeboat policy test tries the policy out; policy.path: lifeboat config show".to_owned(),
    };
    let reasons = decided.decision.reasons.join("; ");
    Failure::new(EXIT_DENIED, format!("{operation}: denied by the policy ({}): {reasons}", decided.code.name())).hint(hint)
}
