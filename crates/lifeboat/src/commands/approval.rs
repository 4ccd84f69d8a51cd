//! `lifeboat approval`: ask for an approval, give one, see who did. `restore --approved` and `prune --approved` use them up.

mod words;

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use lifeboat_core::approval::allowed_signers::AllowedSigners;
use lifeboat_core::approval::{self as rules, Asked, Circumstances, Judged, MAX_TEXT_BYTES, Refusal, Request};
use lifeboat_core::attestation::Statement;
use lifeboat_core::export::ExportPlan;
use lifeboat_core::policy::{ApprovalFacts, Operation, PlanFacts};
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::{FORMAT_VERSION, Sha256};
use lifeboat_core::restore::{self as planning, RestorePlan};
use lifeboat_engine::approval::ssh::{self, SshKey};
use lifeboat_engine::approval::{self as engine, Approvers, Gathered, Object};
use lifeboat_engine::opened_backup;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::restore::RestoreError;
use lifeboat_engine::signing::Trust;
use serde_json::{Value, json};

use super::key::ExportWhat;
use crate::cli;
use crate::config::{Settings, parse_span};
use crate::failure::{EXIT_DENIED, EXIT_FAILED, EXIT_KEY, EXIT_UNVERIFIED, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Output, plain, table};
use crate::{operation, session};

/// How long the alert command may take.
const ALERT_PATIENCE: Duration = Duration::from_secs(30);

/// The most that is read of a file of allowed signers, or of one with a signature.
const MAX_FILE_BYTES: u64 = 4 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum Approval {
    /// Store the plan of a restore or a prune, and ask others to approve it
    Request(Ask),
    /// Approve a plan that somebody else asked for
    Grant(Grant),
    /// List the plans that somebody asked for, and who approved them
    List {
        /// Only this plan: everything that stands there, and why it does not count
        #[arg(value_name = "DIGEST")]
        plan: Option<Sha256>,
    },
    /// Show a plan in words, and who approved it
    Show {
        /// Digest of the plan
        #[arg(value_name = "DIGEST")]
        plan: Sha256,
    },
    /// Print what an SSH signature is made over, for: ssh-keygen -Y sign -n lifeboat-approval@lifeboat.dev -f KEY FILE
    Text {
        /// Digest of the plan
        #[arg(value_name = "DIGEST")]
        plan: Sha256,
        #[command(flatten)]
        says: Says,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Ask {
    /// Why; they will want to know
    #[arg(long, global = true, value_name = "TEXT", value_parser = said)]
    reason: Option<String>,
    /// How long the request is open, at most approvals.lifetime
    #[arg(long, global = true, value_name = "SPAN")]
    open_for: Option<String>,
    /// Sign with this SSH key instead of the signing key: a file, or agent
    #[arg(long, global = true, value_name = "FILE|agent")]
    ssh_key: Option<String>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A restore, with the options that lifeboat restore takes
    Restore(Box<cli::Restore>),
    /// A prune, with the options that lifeboat prune takes
    Prune(cli::Prune),
    /// Handing out the data keys of a backup, with the options that lifeboat key export takes
    KeyExport(ExportWhat),
}

#[derive(Debug, Args)]
pub(crate) struct Says {
    /// The request, where there are several [default: the newest that is open]
    #[arg(long, value_name = "ID")]
    request: Option<Sha256>,
    /// What to say to those who read it
    #[arg(long, value_name = "TEXT", value_parser = said)]
    comment: Option<String>,
    /// How long to stand by it; it ends with the request in any case
    #[arg(long, value_name = "SPAN")]
    valid_for: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Grant {
    /// Digest of the plan
    #[arg(value_name = "DIGEST")]
    plan: Sha256,
    #[command(flatten)]
    says: Says,
    /// Sign with this SSH key instead of the signing key: a private key, a public key that the agent has, or agent
    #[arg(long, value_name = "FILE|agent", conflicts_with = "ssh_signature")]
    ssh_key: Option<String>,
    /// Take the signature FILE.sig that ssh-keygen made over FILE, which lifeboat approval text printed
    #[arg(long, value_name = "FILE.sig", conflicts_with_all = ["request", "comment", "valid_for"])]
    ssh_signature: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(approval: &Approval, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let question = match approval {
        Approval::Request(_) => Question::new(Operation::ApprovalRequest),
        Approval::Grant(grant) => {
            let plan = PlanFacts::unapproved(grant.plan);
            Question::new(Operation::ApprovalGrant).by_plan(plan)
        }
        Approval::List { .. } | Approval::Show { .. } | Approval::Text { .. } => Question::new(Operation::ApprovalList),
    };
    gate::guard(settings, None, question, || match approval {
        Approval::Request(ask) => request(ask, settings, out),
        Approval::Grant(grant) => self::grant(grant, settings, out),
        Approval::List { plan } => list(*plan, settings, out),
        Approval::Show { plan } => show(*plan, settings, out),
        Approval::Text { plan, says } => text(*plan, says, settings),
    })
}

/// Who may ask and approve, as configured.
pub(crate) struct Known<'a> {
    trust: Trust,
    allowed: AllowedSigners,
    settings: &'a Settings,
}

impl<'a> Known<'a> {
    pub(crate) fn of(settings: &'a Settings) -> Result<Self, Failure> {
        let trust = session::trust(settings)?;
        let allowed = match &settings.approvals.allowed_signers {
            None => AllowedSigners::default(),
            Some(setting) => {
                let signers = AllowedSigners::parse(&read(&setting.value, "allowed signers")?);
                for problem in &signers.problems {
                    output::warn(&format!("{}: {}; its key does not count", setting.value.display(), plain(problem)));
                }
                signers
            }
        };
        Ok(Self { trust, allowed, settings })
    }

    pub(crate) fn approvers(&self) -> Approvers<'_> {
        Approvers { trust: &self.trust, allowed: &self.allowed, persons: &self.settings.approvals.known }
    }
}

fn read(path: &Path, what: &str) -> Result<String, Failure> {
    use std::io::Read as _;
    let failed = |problem: String| {
        Failure::new(EXIT_KEY, format!("read {what} {}: {problem}", path.display())).hint("lifeboat config show prints where they are")
    };
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    let length = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if length as u64 > MAX_FILE_BYTES { Err(failed(format!("it has more than {MAX_FILE_BYTES} bytes"))) } else { Ok(text) }
}

/// What is asked of requests by those who only look or approve: they are on other hosts than the one where the plan will run.
fn elsewhere<'a>(settings: &Settings, repository: &Repository, plan: Sha256, now: Timestamp) -> Circumstances<'a> {
    let (repository, lifetime) = (repository.descriptor().repository, settings.approvals.lifetime.value);
    Circumstances { now, plan, operation: None, repository, host: None, environment: None, lifetime }
}

/// What there is about a plan that is to run here and now.
pub(crate) fn gathered(
    known: &Known<'_>,
    repository: &Repository,
    operation: Operation,
    plan: Sha256,
    now: Timestamp,
) -> Result<Gathered, Failure> {
    let (host, environment) = (session::host(), session::environment(known.settings));
    let here = Circumstances {
        operation: Some(operation),
        host: Some(&host),
        environment: Some(&environment),
        ..elsewhere(known.settings, repository, plan, now)
    };
    Ok(engine::gather(repository, plan, known.approvers(), &here)?)
}

/// The request that a plan runs on, if at least one other person approved it. How many it takes, and whose, is the policy's business.
pub(crate) fn approved(gathered: &Gathered, plan: Sha256) -> Result<&Asked, Failure> {
    let why = |otherwise: &str| {
        let named: Vec<String> = gathered.not_counting.iter().map(|one| plain(&format!("{}: {}", one.who, one.why))).collect();
        if named.is_empty() { otherwise.to_owned() } else { named.join("; ") }
    };
    let Some(asked) = &gathered.request else {
        return Err(Failure::new(EXIT_DENIED, format!("run plan {plan}: no request of it stands: {}", why("there is none")))
            .hint("ask for it: lifeboat approval request restore BACKUP …, request prune, request key-export"));
    };
    if gathered.counting.is_empty() {
        return Err(Failure::new(EXIT_DENIED, format!("run plan {plan}: nobody approved it: {}", why("no approval is there")))
            .hint(format!("somebody else approves it with lifeboat approval grant {plan}; lifeboat approval list {plan} shows who did")));
    }
    Ok(asked)
}

/// Uses the approvals of a plan up, right before it runs.
pub(crate) fn spend(repository: &Repository, gathered: &Gathered, asked: &Asked) -> Result<(), Failure> {
    let by = super::expire::by(&session::host());
    Ok(engine::spend(repository, asked, &gathered.counting, &by, Timestamp::now())?)
}

/// Tells people, by `approvals.alert_command`. Why they could not be told, for the audit log, if they could not.
pub(crate) fn alert(settings: &Settings, document: &Value) -> Option<String> {
    let command = &settings.approvals.alert_command.as_ref()?.value;
    let mut bytes = document.to_string().into_bytes();
    bytes.push(b'\n');
    let failed =
        engine::alert(command, &bytes, &operation::this().context, ALERT_PATIENCE).err().map(|error| crate::failure::chain(&error))?;
    output::warn(&format!("nobody may have been told: {}", plain(&failed)));
    Some(failed)
}

/// A plan that somebody wants to run.
pub(crate) struct Wanted {
    pub(crate) operation: Operation,
    /// Its JSON, byte for byte as its digest is of.
    pub(crate) document: Vec<u8>,
    /// When it was made.
    pub(crate) made: Timestamp,
    /// What it will be run with.
    pub(crate) command: String,
}

fn request(ask: &Ask, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let reason = ask
        .reason
        .as_deref()
        .ok_or_else(|| Failure::usage("ask for an approval: say why").hint("lifeboat approval request restore BACKUP … --reason TEXT"))?;
    let repository = session::open_repository(settings)?;
    let made = Timestamp::now();
    let wanted = match &ask.what {
        What::Restore(restore) => {
            if restore.approved.is_some() || restore.dry_run {
                return Err(Failure::usage("ask for an approval: --approved and --dry-run are of lifeboat restore")
                    .hint("lifeboat approval request restore BACKUP --pgdata DIR --reason TEXT"));
            }
            let (_, plan, _) = super::restore::planned(restore, settings, &session::read_repository(settings)?)?;
            let document = plan.document();
            let command = format!("lifeboat restore --approved {}", Sha256::of(&document));
            Wanted { operation: Operation::Restore, document, made, command }
        }
        What::Prune(prune) => {
            if prune.approved.is_some() || prune.dry_run {
                return Err(Failure::usage("ask for an approval: --approved and --dry-run are of lifeboat prune")
                    .hint("lifeboat approval request prune --reason TEXT"));
            }
            let document = super::prune::planned(prune, settings, &repository, made)?.document();
            let forget: String = prune.forget.iter().map(|id| format!(" --forget {id}")).collect();
            let command = format!("lifeboat prune{forget} --approved {}", Sha256::of(&document));
            Wanted { operation: Operation::Prune, document, made, command }
        }
        What::KeyExport(what) => {
            let (_, plan) = super::key::export::planned(what, settings, &repository, &session::trust(settings)?)?;
            let without = if plan.artifacts { "" } else { " --without-artifacts" };
            let digest = plan.digest();
            let command = format!("lifeboat key export {} --to {}{without} --output FILE --approved {digest}", plan.backup, plan.recipient);
            Wanted { operation: Operation::KeyExport, document: plan.document(), made, command }
        }
    };
    let open_for = match &ask.open_for {
        None => settings.approvals.lifetime.value,
        Some(text) => SignedDuration::try_from(parse_span(text)?).unwrap_or(SignedDuration::MAX),
    };
    let known = Known::of(settings)?;
    let asked = self::ask(&known, &repository, &wanted, reason, open_for, ask.ssh_key.as_deref())?;
    out.result(&asked, || {
        let text = |member: &str| plain(asked[member].as_str().unwrap_or_default());
        format!(
            "asked for approvals of plan {plan}\n  until {expires}; others type\n    lifeboat approval show {plan}\n    lifeboat approval grant {plan}\n  then, on this host,\n    {run}\n",
            plan = text("plan"),
            expires = text("expires"),
            run = text("run")
        )
    });
    Ok(0)
}

/// Stores a plan with a request of it, and tells people. What was asked, for whoever prints it.
pub(crate) fn ask(
    known: &Known<'_>,
    repository: &Repository,
    wanted: &Wanted,
    reason: &str,
    open_for: SignedDuration,
    ssh_key: Option<&str>,
) -> Result<Value, Failure> {
    let settings = known.settings;
    let (plan, actor) = (Sha256::of(&wanted.document), session::actor());
    let expires = wanted.made.checked_add(open_for).unwrap_or(Timestamp::MAX);
    let request = Request {
        format: FORMAT_VERSION,
        operation: wanted.operation,
        plan,
        repository: repository.descriptor().repository,
        nonce: lifeboat_engine::random::id(),
        requester: actor.sudo_user.clone().unwrap_or_else(|| actor.user.clone()),
        actor,
        host: session::host(),
        environment: session::environment(settings),
        reason: reason.to_owned(),
        requested: wanted.made,
        expires,
    };
    let object = sign(&request.statement(), ssh_key, known)?;
    let here = elsewhere(settings, repository, plan, Timestamp::now());
    let id = engine::ask(repository, &wanted.document, &request, &object, known.approvers(), &here)?;
    let asked = json!({
        "event": "approval-requested", "operation": request.operation, "plan": plan, "request": id, "requester": request.requester,
        "reason": request.reason, "host": request.host, "environment": request.environment, "expires": request.expires,
        "show": format!("lifeboat approval show {plan}"), "approve": format!("lifeboat approval grant {plan}"), "run": wanted.command,
    });
    alert(settings, &asked);
    Ok(asked)
}

/// Signs a statement with an SSH key, or with the configured signer.
fn sign(statement: &Statement, ssh_key: Option<&str>, known: &Known<'_>) -> Result<Object, Failure> {
    let key = match ssh_key {
        None => return Ok(Object::signed(statement, &*session::signer(known.settings)?)?),
        Some("agent") => SshKey::Agent(std::env::temp_dir()),
        Some(file) => SshKey::File(PathBuf::from(file)),
    };
    let text = engine::text(statement);
    let signature = ssh::sign(text.as_bytes(), &key, &known.allowed)?;
    Ok(Object::with_ssh(&text, &signature))
}

/// A line that somebody typed for others to read.
pub(crate) fn said(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_TEXT_BYTES || text.chars().any(char::is_control) {
        return Err(format!("write one line of at most {MAX_TEXT_BYTES} bytes"));
    }
    Ok(text.to_owned())
}

/// The request that somebody approves.
fn open_request(gathered: &Gathered, plan: Sha256, named: Option<Sha256>) -> Result<&Asked, Failure> {
    let known = |(asked, _): &&(Asked, Judged)| named.is_none_or(|id| asked.id == id);
    let mut requests = gathered.requests.iter().filter(known);
    if let Some((asked, _)) = requests.clone().find(|(_, judged)| judged.standing.is_ok()) {
        return Ok(asked);
    }
    let why = requests.next().and_then(|(_, judged)| judged.standing.as_ref().err()).map(Refusal::to_string);
    let unread = || gathered.not_counting.first().map(|one| plain(&format!("{}: {}", one.who, one.why)));
    let why = why.or_else(unread).unwrap_or_else(|| "there is none".to_owned());
    Err(Failure::new(EXIT_DENIED, format!("approve plan {plan}: no request of it is open: {why}"))
        .hint(format!("lifeboat approval list {plan} shows all of them; whoever wants it asks again: lifeboat approval request …")))
}

/// The approval of a request that somebody may sign.
fn approval_of(asked: &Asked, says: &Says, now: Timestamp) -> Result<rules::Approval, Failure> {
    let actor = session::actor();
    let until = match &says.valid_for {
        None => asked.request.expires,
        Some(text) => {
            SignedDuration::try_from(parse_span(text)?).ok().and_then(|span| now.checked_add(span).ok()).unwrap_or(Timestamp::MAX)
        }
    };
    Ok(rules::Approval {
        format: FORMAT_VERSION,
        operation: asked.request.operation,
        plan: asked.request.plan,
        request: asked.id,
        approver: actor.sudo_user.unwrap_or(actor.user),
        comment: says.comment.clone(),
        granted: now,
        expires: until.min(asked.request.expires),
    })
}

fn text(plan: Sha256, says: &Says, settings: &Settings) -> Result<u8, Failure> {
    let (known, now) = (Known::of(settings)?, Timestamp::now());
    let repository = session::read_repository(settings)?;
    let document = checked_plan(&known, &repository, plan)?;
    let gathered = engine::gather(&repository, plan, known.approvers(), &elsewhere(settings, &repository, plan, now))?;
    let asked = open_request(&gathered, plan, says.request)?;
    check_kind(&document, asked.request.operation, plan)?;
    let approval = approval_of(asked, says, now)?;
    // Byte for byte: this is what gets signed.
    let text = engine::text(&approval.statement());
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| {
        Failure::new(EXIT_FAILED, format!("print the text: {error}")).hint("lifeboat approval text DIGEST > approval.txt")
    })?;
    Ok(0)
}

/// The plan of a digest, and that it is one that lifeboat would make. A plan is shown before it is approved, and what is shown must be what runs.
fn checked_plan(known: &Known<'_>, repository: &Repository, plan: Sha256) -> Result<Vec<u8>, Failure> {
    let document = engine::plan(repository, plan)?;
    let open = |id: &BackupId, manifest: Sha256| {
        let backup = opened_backup::open(repository, id, &known.trust)?;
        if backup.digest == manifest { Ok(backup) } else { Err(Failure::from(RestoreError::OtherManifest(id.to_string()))) }
    };
    if let Ok(restore) = RestorePlan::parse(&document) {
        let id = restore.backup.parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat approval list"))?;
        let backup = open(&id, restore.manifest)?;
        planning::check(&restore, &backup.manifest, backup.digest)?;
    } else if let Some(export) = ExportPlan::parse(&document) {
        open(&export.backup, export.manifest)?;
    }
    Ok(document)
}

/// A plan is of the kind that its request says, or nobody knows what they would approve.
fn check_kind(document: &[u8], operation: Operation, plan: Sha256) -> Result<(), Failure> {
    let is_prune = || {
        let value: Option<Value> = serde_json::from_slice(document).ok();
        value.is_some_and(|plan| plan.pointer("/backups/leaving").is_some() && plan.get("steps").is_some())
    };
    let fits = match operation {
        Operation::Restore => RestorePlan::parse(document).is_ok(),
        Operation::KeyExport => ExportPlan::parse(document).is_some(),
        Operation::Prune => is_prune(),
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(Failure::new(EXIT_UNVERIFIED, format!("read plan {plan}: this lifeboat knows no plan like it for {}", operation.name()))
        .hint("approve it with the version of lifeboat that made it, or not at all: lifeboat --version"))
}

fn grant(grant: &Grant, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let (known, now, plan) = (Known::of(settings)?, Timestamp::now(), grant.plan);
    let repository = session::open_repository(settings)?;
    let document = checked_plan(&known, &repository, plan)?;
    let here = elsewhere(settings, &repository, plan, now);
    let gathered = engine::gather(&repository, plan, known.approvers(), &here)?;
    let (asked, made) = match &grant.ssh_signature {
        None => (open_request(&gathered, plan, grant.says.request)?, None),
        Some(path) => {
            let signed = path.with_extension("");
            let (text, signature) = (read(&signed, "signed text")?, read(path, "signature")?);
            let approval = Statement::parse(text.as_bytes()).map_err(|error| error.to_string());
            let approval = approval.and_then(|statement| rules::Approval::of(&statement).map_err(|error| error.to_string()));
            let approval = approval.map_err(|why| {
                Failure::usage(format!("read signed text {}: {why}", signed.display())).hint(format!(
                    "lifeboat approval text {plan} > approval.txt; ssh-keygen -Y sign -n {} -f KEY approval.txt",
                    rules::SSH_NAMESPACE
                ))
            })?;
            (open_request(&gathered, plan, Some(approval.request))?, Some(Object::with_ssh(&text, &signature)))
        }
    };
    check_kind(&document, asked.request.operation, plan)?;
    output::say(&words::plan(&document, asked));
    if !grant.yes {
        confirm(plan)?;
    }
    let object = match made {
        Some(object) => object,
        None => sign(&approval_of(asked, &grant.says, now)?.statement(), grant.ssh_key.as_deref(), &known)?,
    };
    // What has passed while somebody read and thought counts as well.
    let here = Circumstances { now: Timestamp::now(), ..here };
    let facts = engine::grant(&repository, asked, &object, known.approvers(), &here)?;
    out.result(&json!({"plan": plan, "request": asked.id, "approval": facts}), || {
        format!("{} approved plan {plan} until {:.0}\n", plain(&facts.approver), facts.expires)
    });
    Ok(0)
}

fn confirm(plan: Sha256) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("approve: nobody is there to be asked")
            .hint(format!("read the plan (lifeboat approval show {plan}), then lifeboat approval grant {plan} --yes")));
    }
    output::ask("approve this? (yes or no)");
    let mut answer = String::new();
    let _ = std::io::stdin().lock().read_line(&mut answer);
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(Failure::new(EXIT_DENIED, "approve: the answer was not yes; nothing was stored")
        .hint(format!("lifeboat approval grant {plan} asks again")))
}

/// One request, for programs.
fn row(asked: &Asked, judged: &Judged) -> Value {
    let facts: &[ApprovalFacts] = &judged.counting;
    json!({
        "plan": asked.request.plan, "request": asked.id, "operation": asked.request.operation, "requester": engine::requester(asked),
        "requested": asked.request.requested, "expires": asked.request.expires, "host": asked.request.host,
        "environment": asked.request.environment, "reason": asked.request.reason, "state": state(&judged.standing),
        "approvals": facts,
    })
}

fn state(standing: &Result<(), Refusal>) -> String {
    match standing {
        Ok(()) => "open".into(),
        Err(Refusal::Spent) => "used".into(),
        Err(Refusal::Expired(_)) => "expired".into(),
        Err(other) => other.to_string(),
    }
}

fn list(plan: Option<Sha256>, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let (known, now) = (Known::of(settings)?, Timestamp::now());
    let repository = session::read_repository(settings)?;
    let plans = plan.map_or_else(|| engine::plans(&repository), |plan| Ok(vec![plan]))?;
    let (mut requests, mut not_counting) = (Vec::new(), Vec::new());
    for one in plans {
        let gathered = engine::gather(&repository, one, known.approvers(), &elsewhere(settings, &repository, one, now))?;
        requests.extend(gathered.requests);
        not_counting.extend(gathered.not_counting.into_iter().map(|other| (one, other)));
    }
    requests.sort_by_key(|(asked, _)| (std::cmp::Reverse(asked.request.requested), asked.id));
    let refused: Vec<Value> = not_counting.iter().map(|(plan, one)| json!({"plan": plan, "who": one.who, "why": one.why})).collect();
    let rows: Vec<Value> = requests.iter().map(|(asked, judged)| row(asked, judged)).collect();
    out.result(&json!({"requests": rows, "not_counting": refused}), || {
        let cells = |(asked, judged): &(Asked, Judged)| {
            let who: Vec<String> = judged.counting.iter().map(|facts| plain(&facts.approver)).collect();
            vec![
                format!("{:.0}", asked.request.requested),
                state(&judged.standing),
                asked.request.operation.name(),
                plain(&engine::requester(asked)),
                if who.is_empty() { "-".to_owned() } else { who.join(", ") },
                asked.request.plan.to_string(),
            ]
        };
        let cells: Vec<Vec<String>> = requests.iter().map(cells).collect();
        let mut text = table(&["REQUESTED", "STATE", "OPERATION", "BY", "APPROVED BY", "PLAN"], &cells);
        // Of all plans together only what is wrong with objects would be listed, and that for ever.
        for (_, one) in not_counting.iter().filter(|_| plan.is_some()) {
            text.push_str(&format!("does not count: {}: {}\n", plain(&one.who), plain(&one.why)));
        }
        text
    });
    Ok(0)
}

fn show(plan: Sha256, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let (known, now) = (Known::of(settings)?, Timestamp::now());
    let repository = session::read_repository(settings)?;
    let document = checked_plan(&known, &repository, plan)?;
    let gathered = engine::gather(&repository, plan, known.approvers(), &elsewhere(settings, &repository, plan, now))?;
    let requests: Vec<Value> = gathered.requests.iter().map(|(asked, judged)| row(asked, judged)).collect();
    let value: Value = serde_json::from_slice(&document).unwrap_or(Value::Null);
    let refused: Vec<Value> = gathered.not_counting.iter().map(|one| json!({"who": one.who, "why": one.why})).collect();
    out.result(&json!({"digest": plan, "plan": value, "requests": requests, "not_counting": refused}), || {
        let mut text = String::new();
        match gathered.requests.first() {
            Some((asked, _)) => text.push_str(&words::plan(&document, asked)),
            None => text.push_str("no request of this plan can be verified\n"),
        }
        for (asked, judged) in &gathered.requests {
            text.push_str(&format!("request {}: {}\n", asked.id, state(&judged.standing)));
            for facts in &judged.counting {
                text.push_str(&format!("  approved by {} at {:.0}, until {:.0}\n", plain(&facts.approver), facts.granted, facts.expires));
            }
        }
        for one in &gathered.not_counting {
            text.push_str(&format!("does not count: {}: {}\n", plain(&one.who), plain(&one.why)));
        }
        text
    });
    Ok(0)
}
