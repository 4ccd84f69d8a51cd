//! `lifeboat doctor`: everything that backups and restores rely on, tried out; what is wrong, the most dangerous first, and how to set it right.

use lifeboat_core::doctor::host::{self, KeyFacts};
use lifeboat_core::doctor::privilege::{self, Duties};
use lifeboat_core::doctor::store::{self as diagnose, StoreFacts};
use lifeboat_core::doctor::watch::{self, AgentState, Allowed, Traces, WatchFacts};
use lifeboat_core::doctor::{Diagnosis, Finding, Severity};
use lifeboat_core::policy::Operation;
use lifeboat_core::task::Task;
use lifeboat_engine::agent::tasks;
use lifeboat_engine::doctor;
use lifeboat_engine::keys::Identities;
use lifeboat_engine::postgres::Dsn;
use lifeboat_engine::repository::{Repository, RepositoryError};
use lifeboat_engine::store::Store;
use lifeboat_engine::store::probe::{self, Depth};

use crate::config::{Secret, Settings};
use crate::failure::{EXIT_FAILED, EXIT_FINDINGS, Failure, chain};
use crate::gate::{self, Question};
use crate::output::{self, Level, Output};
use crate::session;

/// A repository, as it was tried out.
#[derive(serde::Serialize)]
struct Examined {
    name: String,
    #[serde(flatten)]
    facts: StoreFacts,
}

pub(super) fn run(settings: &Settings, out: &Output) -> Result<u8, Failure> {
    gate::allow(settings, None, Question::new(Operation::Doctor))?;
    let mut diagnosis = Diagnosis::default();
    let mut examined = Vec::new();
    let mut repositories = Vec::new();
    for (name, store) in stores(settings, &mut diagnosis) {
        let facts = probe::examine(&*store, &session::examination(settings, Depth::Full, &session::sources(settings)));
        diagnosis.join(diagnose::assess(&facts));
        if let Some(reach) = &facts.reach {
            diagnosis.join(privilege::excess(&facts.url, reach, duties(settings)));
        }
        match Repository::open(store) {
            Ok(repository) => repositories.push(repository),
            Err(RepositoryError::Absent { url }) => diagnosis.findings.push(Finding {
                code: "no-repository",
                severity: Severity::Essential,
                subject: url,
                problem: "there is no repository".into(),
                meaning: "no backup can be stored".into(),
                fix: "lifeboat init".into(),
            }),
            Err(error) => diagnosis.findings.push(failed("repository", facts.url.clone(), chain(&error))),
        }
        examined.push(Examined { name, facts });
    }
    let keys = key_facts(settings);
    diagnosis.join(host::keys(&keys));
    let data = settings.data_directory.as_ref().map(|setting| setting.value.as_path());
    let spool = doctor::spool(&settings.wal_spool.value, settings.wal_spool_limit.value, data);
    diagnosis.join(host::spool(&spool));
    let server = settings.dsn.as_ref().map(|dsn| {
        let parsed = Dsn::parse(dsn.value.as_str());
        let name = parsed.as_ref().map_or_else(|_| "server".to_owned(), |dsn| dsn.endpoint().to_string());
        (name, parsed.and_then(|dsn| doctor::server(&dsn)).map_err(|error| chain(&error)))
    });
    if let Some((name, facts)) = &server {
        diagnosis.join(host::server(name, facts));
        for repository in repositories.iter().filter(|_| facts.is_ok()) {
            match session::trust(settings).and_then(|trust| super::wal::status::findings(settings, repository, &trust)) {
                Ok(findings) => diagnosis.join(host::wal(name, &findings)),
                Err(failure) => diagnosis.findings.push(failed("wal", name.clone(), failure.message)),
            }
        }
    }
    let watched = watch_facts(settings);
    diagnosis.join(watch::watch(&watched));
    let diagnosis = diagnosis.sorted();
    let code = match diagnosis.worst() {
        Some(Severity::Essential) => EXIT_FAILED,
        Some(_) => EXIT_FINDINGS,
        None => 0,
    };
    let document = serde_json::json!({
        "repositories": examined,
        "keys": keys,
        "spool": spool,
        "watch": watched,
        "server": server.as_ref().map(|(name, facts)| serde_json::json!({"name": name, "facts": facts})),
        "findings": diagnosis.findings,
        "notes": diagnosis.notes,
    });
    out.result(&document, || {
        let mut text: String = diagnosis.notes.iter().map(|note| format!("seen  {note}\n")).collect();
        text.push_str(&match diagnosis.findings.len() {
            0 => "nothing is wrong\n".to_owned(),
            1 => "1 finding\n".to_owned(),
            count => format!("{count} findings\n"),
        });
        text
    });
    say(&diagnosis);
    Ok(code)
}

/// What runs by itself here, or would.
fn watch_facts(settings: &Settings) -> WatchFacts {
    let duties = duties(settings);
    let planned = settings.agent.tasks.iter().filter(|(_, task)| task.schedule.value.is_some()).map(|(task, _)| match task {
        Task::Backup => Operation::Backup,
        Task::Verify => Operation::Verify,
        Task::Expire => Operation::Expire,
        Task::Prune => Operation::Prune,
        Task::Replicate => Operation::Replicate,
        Task::Drill => Operation::DrillRun,
    });
    let planned: Vec<Operation> = planned.filter(|_| duties.protects).collect();
    let (policy_trouble, allowed) = match session::policy(settings) {
        Err(failure) => (Some(failure.message), Vec::new()),
        Ok(policy) => {
            let ask = |operation: Operation| {
                let decided = policy.decide(&Question::new(operation).facts(settings, None));
                let denied = (!decided.decision.allow).then(|| decided.decision.reasons.join("; "));
                Allowed { operation: operation.name(), denied }
            };
            // What depends on a plan is decided over that plan, and not here.
            let allowed =
                planned.into_iter().filter(|operation| !matches!(operation, Operation::DrillRun | Operation::Prune)).map(ask).collect();
            (policy.trouble().map(|trouble| chain(trouble)), allowed)
        }
    };
    let state = &settings.agent.state.value;
    let agent = match tasks::agent(state) {
        Ok(None) | Err(_) => AgentState::Never,
        Ok(Some(true)) => AgentState::Runs,
        Ok(Some(false)) => AgentState::Gone,
    };
    let terms = settings.alerting().0;
    WatchFacts {
        policy_trouble,
        allowed,
        agent,
        sinks: settings.alerts.sinks.value.len(),
        heartbeat: settings.alerts.heartbeat_url.is_some(),
        alerts: super::status::running_out(settings, &terms),
        traces: crate::traces::try_out(&settings.traces).map(|(url, trouble)| Traces { url, trouble }),
    }
}

/// What this host is for, as far as its configuration tells.
fn duties(settings: &Settings) -> Duties {
    let rules = [&settings.keep_last, &settings.keep_daily, &settings.keep_weekly, &settings.keep_monthly, &settings.keep_yearly];
    Duties {
        protects: settings.dsn.is_some() || settings.data_directory.is_some() || settings.artifacts.is_some(),
        restores: settings.identity_file.is_some() || settings.plain.value,
        tidies: rules.into_iter().any(Option::is_some) || settings.recovery_window.is_some(),
    }
}

/// The configured repositories that can be reached; the others are findings.
fn stores(settings: &Settings, diagnosis: &mut Diagnosis) -> Vec<(String, Box<dyn Store>)> {
    if let Err(failure) = session::primary(settings) {
        let fix = failure.hint.unwrap_or_default();
        diagnosis.findings.push(Finding { fix, ..failed("no-repository", "configuration".into(), failure.message) });
    }
    let mut stores = Vec::new();
    for one in &settings.repositories.used {
        match one.open() {
            Ok(store) => stores.push((one.name.value.clone(), store)),
            Err(error) => {
                let failure = Failure::from(error);
                let fix = failure.hint.unwrap_or_default();
                diagnosis.findings.push(Finding { fix, ..failed("unreachable", one.url.value.clone(), failure.message) });
            }
        }
    }
    stores
}

/// Something that backups need and that does not work.
fn failed(code: &'static str, subject: String, problem: String) -> Finding {
    Finding {
        code,
        severity: Severity::Essential,
        subject,
        problem,
        meaning: "backups fail, and so do restores from here".into(),
        fix: "correct what it says, then run lifeboat doctor again; lifeboat config show prints the settings".into(),
    }
}

fn identities_of(path: &std::path::Path) -> Result<Identities, String> {
    let secret = lifeboat_engine::secret::Secret::read(path).map_err(|error| error.to_string())?;
    let text = secret.expose_text().map_err(|error| error.to_string())?;
    Identities::parse(text).map_err(|error| chain(&error))
}

fn key_facts(settings: &Settings) -> KeyFacts {
    let tried = session::signer(settings).and_then(|signer| {
        let probe = doctor::Probe::sign(&*signer)?;
        // A certificate says who it is of once it has signed.
        Ok((signer.describe(), probe))
    });
    let verified = tried.as_ref().ok().map(|(_, probe)| {
        let trust = session::trust(settings).map_err(|failure| failure.message)?;
        probe.counts_for(&trust)
    });
    let recipients = session::recipients(settings).map_err(|failure| failure.message);
    let identity = settings.identity_file.as_ref().map(|setting| {
        let identities = identities_of(&setting.value).map_err(|why| format!("read {}: {why}", setting.value.display()))?;
        // Without recipients there is nothing to open.
        recipients.as_ref().map_or(Ok(true), |recipients| doctor::opens(&identities, recipients))
    });
    let host_identity = settings
        .host_identity
        .as_ref()
        .and_then(|setting| identities_of(&setting.value).err().map(|why| format!("read {}: {why}", setting.value.display())));
    let mut files = Vec::new();
    let password = match &settings.password {
        Some(setting) => match &setting.value {
            Secret::File(path) => Some(path),
            _ => None,
        },
        None => None,
    };
    for (what, path) in [
        ("signing key", settings.key_file.as_ref().map(|setting| &setting.value)),
        ("password of the signing key", password),
        ("restore identity", settings.identity_file.as_ref().map(|setting| &setting.value)),
        ("host identity", settings.host_identity.as_ref().map(|setting| &setting.value)),
    ] {
        files.extend(path.map(|path| doctor::secret_file(what, path)));
    }
    let others = settings.signing.secret_files().into_iter().chain(settings.alerts.secret_files());
    files.extend(others.map(|(what, path)| doctor::secret_file(what, path)));
    KeyFacts {
        signer: tried.map(|(what, _)| what).map_err(|failure| failure.message),
        verified,
        plain: settings.plain.value,
        recipients: recipients.map(|recipients| recipients.len()),
        identity: identity.filter(|_| !settings.plain.value),
        host_identity,
        has_host_identity: settings.host_identity.is_some(),
        files,
    }
}

/// Says findings on stderr, the most dangerous first.
pub(super) fn say(diagnosis: &Diagnosis) {
    for finding in &diagnosis.findings {
        let level = match finding.severity {
            Severity::Essential | Severity::Danger => Level::Error,
            Severity::Warning => Level::Warning,
        };
        let message = format!("{}: {}: {}", finding.subject, finding.problem, finding.meaning);
        output::tell(level, finding.severity.word(), &message, Some(("fix", &finding.fix)));
    }
}
