//! `lifeboat agent`: what runs day and night.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;
use lifeboat_core::drill::DrillId;
use lifeboat_core::policy::Operation;
use lifeboat_core::task::{Task, Terms};
use lifeboat_engine::agent::{self, AgentError, Level, Stop, Surroundings, TaskPlan};
use lifeboat_engine::drill::evidence;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::web::DrillPageError;
use sd_notify::NotifyState;

use crate::cli::Cli;
use crate::commands::policy::facts;
use crate::config::{Durability, Origin, Settings, WalMode};
use crate::failure::{EXIT_FAILED, EXIT_LEASED, Failure, chain};
use crate::gate::{self, Question};
use crate::log;
use crate::output;
use crate::session;
use crate::signals;

#[derive(Debug, Args)]
pub(crate) struct Agent {
    /// Print what it would do when, and end
    #[arg(long)]
    dry_run: bool,
}

/// A process that is told to end has so long: a drill takes down its server, and the receiver stores what it has.
const GRACE: Duration = Duration::from_secs(60);

/// A look at the system may take so long.
const LOOK_DEADLINE: Duration = Duration::from_secs(600);

pub(super) fn run(cli: &Cli, agent: &Agent, settings: Settings, out: &output::Output) -> Result<u8, Failure> {
    gate::allow(&settings, None, Question::new(Operation::Agent).dry_run(agent.dry_run))?;
    session::primary(&settings)?;
    let plans = plans(&settings);
    if agent.dry_run {
        plan(&settings, &plans, out);
        return Ok(0);
    }
    if settings.name.origin == Origin::Default {
        output::warn(&format!(
            "no name is configured, so this is {}: an agent of another system without a name would wait for this one for ever; write name = \"…\"",
            settings.name.value
        ));
    }
    let tellers = super::alert::tellers(&settings)?;
    let stop = Stop::default();
    let stopped = stop.clone();
    signals::on_stop(move || {
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        stopped.stop();
    });
    let told = agent::AgentSettings {
        system: settings.name.value.clone(),
        host: session::host(),
        program: session::PROGRAM.to_owned(),
        command: command(cli)?,
        state: settings.agent.state.value.clone(),
        interval: settings.agent.interval.value,
        look_deadline: LOOK_DEADLINE,
        tasks: plans,
        time_zone: settings.agent.time_zone.value.clone(),
        jitter: settings.agent.jitter.value,
        repository: settings.repositories.primary().map(|one| facts::without_user(&one.url.value)).unwrap_or_default(),
        receive: settings.agent.receive.value.then(|| agent::ReceiverPlan {
            spool: settings.wal_spool.value.clone(),
            slot: settings.wal_slot.value.clone(),
            is_promise: settings.wal_mode.value == WalMode::Sync && settings.wal_durability.value == Durability::Spool,
        }),
        group: settings.agent.group.as_ref().map(|group| group.value.clone()),
        grace: GRACE,
        listen: settings.agent.listen.value,
        allow_hosts: settings.agent.allow_hosts.value.clone(),
        runbook_url: Some(settings.alerts.runbook_url.value.clone()).filter(|url| url.contains("://")),
    };
    let surroundings = Box::new(Process { settings });
    agent::run(told, surroundings, tellers, stop)?;
    Ok(0)
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        let (code, hint) = match &error {
            AgentError::Other(_) => (EXIT_LEASED, "systemctl status lifeboat-agent; two agents of one host need an agent.state each"),
            AgentError::State { .. } => (EXIT_FAILED, "make it writable for this user, or name another: agent.state; lifeboat config show"),
            AgentError::Listen { .. } => (EXIT_FAILED, "name another address in agent.listen, or \"off\"; lifeboat config show"),
        };
        Self::new(code, chain(&error)).hint(hint)
    }
}

fn plans(settings: &Settings) -> Vec<TaskPlan> {
    let plan = |task: Task| {
        let of = settings.agent.tasks.get(&task)?;
        Some(TaskPlan {
            task,
            schedule: of.schedule.value.clone(),
            arguments: of.arguments.value.clone(),
            terms: Terms {
                deadline: of.deadline.value,
                attempts: settings.agent.attempts.value,
                retry_after: settings.agent.retry_after.value,
            },
        })
    };
    Task::ALL.into_iter().filter_map(plan).collect()
}

/// This program, with what makes its commands read the same settings as this one.
fn command(cli: &Cli) -> Result<Vec<OsString>, Failure> {
    let program = std::env::current_exe().map_err(|error| {
        Failure::new(EXIT_FAILED, format!("find this program: {error}")).hint("start it by its whole path: /usr/bin/lifeboat agent")
    })?;
    // After an upgrade, what is in its place is meant, and not what was deleted.
    let program = program.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map_or(program.clone(), Into::into);
    let mut command: Vec<OsString> = vec![program.into()];
    let mut add = |flag: &str, value: OsString| command.extend([flag.into(), value]);
    if let Some(config) = &cli.config {
        add("--config", std::path::absolute(config).unwrap_or_else(|_| config.clone()).into());
    }
    if let Some(repository) = &cli.repository {
        add("--repository", repository.into());
    }
    for name in &cli.without_repository {
        add("--without-repository", name.into());
    }
    Ok(command)
}

fn plan(settings: &Settings, plans: &[TaskPlan], out: &output::Output) {
    let now = jiff::Timestamp::now();
    let rows: Vec<serde_json::Value> = plans
        .iter()
        .map(|plan| {
            let next = plan.schedule.as_ref().and_then(|schedule| schedule.next(now));
            serde_json::json!({
                "task": plan.task, "schedule": plan.schedule.as_ref().map(agent::schedule::Schedule::text), "next": next,
                "command": plan.task.command().iter().map(|word| (*word).to_owned()).chain(plan.arguments.iter().cloned()).collect::<Vec<_>>(),
                "deadline_seconds": plan.terms.deadline.as_secs(), "attempts": plan.terms.attempts,
            })
        })
        .collect();
    let document = serde_json::json!({
        "time_zone": settings.agent.time_zone.value, "jitter_seconds": settings.agent.jitter.value.as_secs(), "tasks": rows,
        "receives": settings.agent.receive.value, "listen": settings.agent.listen.value,
    });
    out.result(&document, || {
        let cells: Vec<Vec<String>> = plans
            .iter()
            .map(|plan| {
                let next = plan.schedule.as_ref().and_then(|schedule| schedule.next(now));
                let command: Vec<&str> = plan.task.command().iter().copied().chain(plan.arguments.iter().map(String::as_str)).collect();
                vec![
                    plan.task.name().to_owned(),
                    plan.schedule.as_ref().map_or("off", agent::schedule::Schedule::text).to_owned(),
                    next.map_or_else(|| "never".to_owned(), |next| format!("{next:.0}")),
                    lifeboat_core::drill::span(plan.terms.deadline.as_secs_f64()),
                    format!("lifeboat {}", command.join(" ")),
                ]
            })
            .collect();
        let mut text = output::table(&["TASK", "SCHEDULE", "NEXT", "DEADLINE", "COMMAND"], &cells);
        let jitter = lifeboat_core::drill::span(settings.agent.jitter.value.as_secs_f64());
        text.push_str(&format!("in time zone {}, each up to {jitter} later\n", settings.agent.time_zone.value));
        if settings.agent.receive.value {
            text.push_str("receives WAL: lifeboat wal receive\n");
        }
        text.push_str(
            &settings.agent.listen.value.map_or("no status page\n".to_owned(), |address| format!("status page on http://{address}/\n")),
        );
        text
    });
}

/// What this process does for the agent.
struct Process {
    settings: Settings,
}

impl Surroundings for Process {
    fn say(&self, level: Level, message: &str) {
        match level {
            Level::Info => output::say(&output::plain(message)),
            Level::Warning => output::warn(&output::plain(message)),
        }
    }

    fn line(&self, of: &str, line: &str) {
        match log::format() {
            // It is an object already, with its own operation.
            log::Format::Json if line.starts_with('{') => log::pass_on(line),
            _ => output::say(&format!("{of}: {}", output::plain(line))),
        }
    }

    fn repository(&self) -> Result<Repository, String> {
        // The primary decides whose turn it is: a replica may be late.
        session::primary(&self.settings).and_then(session::alone).map_err(|failure| failure.message)
    }

    fn drill_page(&self, id: &DrillId) -> Result<Vec<u8>, DrillPageError> {
        let trouble = |failure: Failure| DrillPageError::Trouble(failure.message);
        let repository = session::read_repository(&self.settings).map_err(trouble)?;
        let trust = session::trust(&self.settings).map_err(|failure| DrillPageError::NotProven(failure.message))?;
        let verified = evidence::verify(&repository, &trust, id).and_then(|verified| evidence::page(&repository, &verified));
        verified.map_err(|error| match &error {
            error if error.is_refusal() => DrillPageError::NotProven(chain(error)),
            evidence::EvidenceError::Absent(_) => DrillPageError::Missing,
            error => DrillPageError::Trouble(chain(error)),
        })
    }

    fn environment(&self) -> Vec<(String, OsString)> {
        vec![(log::VARIABLE.to_owned(), log::format().name().into())]
    }

    fn ready(&self, text: &str) {
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(text)]);
    }

    fn alive(&self) {
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }
}
