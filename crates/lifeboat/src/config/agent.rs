//! `[agent]` and `[schedule]`: what runs day and night, where it keeps what it knows, and who may look (docs/agent.md).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lifeboat_core::task::Task;
use lifeboat_engine::agent::schedule::Schedule;
use serde::Deserialize;
use serde_json::json;

use super::{LongSpan, Origin, Setting, Source, shown_span, state_directory};
use crate::failure::Failure;

/// `[agent]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AgentTable {
    state: Option<PathBuf>,
    listen: Option<String>,
    allow_hosts: Option<Vec<String>>,
    interval: Option<LongSpan>,
    receive: Option<bool>,
    group: Option<String>,
}

/// `[schedule]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScheduleTable {
    time_zone: Option<String>,
    jitter: Option<LongSpan>,
    attempts: Option<u32>,
    retry_after: Option<LongSpan>,
    backup: Option<String>,
    verify: Option<String>,
    expire: Option<String>,
    prune: Option<String>,
    replicate: Option<String>,
    drill: Option<String>,
    #[serde(default)]
    deadline: BTreeMap<Task, LongSpan>,
    #[serde(default)]
    arguments: BTreeMap<Task, Vec<String>>,
}

/// One task, resolved.
#[derive(Debug)]
pub(crate) struct TaskSettings {
    /// When; `None`: never.
    pub(crate) schedule: Setting<Option<Schedule>>,
    /// It is ended when it takes longer.
    pub(crate) deadline: Setting<Duration>,
    /// What stands behind its command.
    pub(crate) arguments: Setting<Vec<String>>,
}

/// Both tables, resolved.
#[derive(Debug)]
pub(crate) struct AgentSettings {
    /// Where this host keeps what was done on it, and what the agent knows.
    pub(crate) state: Setting<PathBuf>,
    /// Where the status page is; `None`: nowhere.
    pub(crate) listen: Setting<Option<SocketAddr>>,
    /// Names that browsers may know the page by, beside addresses and localhost.
    pub(crate) allow_hosts: Setting<Vec<String>>,
    /// Time between two looks at the system.
    pub(crate) interval: Setting<Duration>,
    /// The agent runs the WAL receiver.
    pub(crate) receive: Setting<bool>,
    /// Agents of a system that have the same take turns.
    pub(crate) group: Option<Setting<String>>,
    pub(crate) time_zone: Setting<String>,
    /// A task begins so much later at most, each on each host at a moment of its own.
    pub(crate) jitter: Setting<Duration>,
    /// How often a task is tried until the next time that it is due.
    pub(crate) attempts: Setting<u32>,
    /// Time until the second try; doubled for each one after it.
    pub(crate) retry_after: Setting<Duration>,
    pub(crate) tasks: BTreeMap<Task, TaskSettings>,
}

/// What decides whether a task has anything to do on this host.
pub(super) struct Duties {
    /// A repository has replicas.
    pub(super) replicas: bool,
    /// Some rule says what is kept.
    pub(super) retention: bool,
    /// WAL is received.
    pub(super) receives: bool,
    /// What is here can open backups.
    pub(super) restores: bool,
}

const HOUR: u64 = 3600;

const CRON_HINT: &str =
    "write minute, hour, day of month, month, day of week: \"0 2 * * *\" is two o'clock every night; or \"off\"; docs/agent.md";

/// When a task runs where nobody says, and how long it may take.
const fn default_of(task: Task) -> (&'static str, u64) {
    match task {
        Task::Backup => ("0 2 * * *", 20 * HOUR),
        Task::Verify => ("0 5 * * *", 20 * HOUR),
        Task::Expire => ("0 6 * * *", HOUR),
        Task::Prune => ("30 6 * * *", 12 * HOUR),
        Task::Replicate => ("15 * * * *", 20 * HOUR),
        Task::Drill => ("0 4 1 1,4,7,10 *", 24 * HOUR),
    }
}

impl AgentSettings {
    pub(super) fn resolve(source: &Source<'_>, agent: AgentTable, schedule: ScheduleTable, duties: &Duties) -> Result<Self, Failure> {
        fn or<T>(setting: Option<Setting<T>>, default: T) -> Setting<T> {
            setting.unwrap_or(Setting { value: default, origin: Origin::Default })
        }
        let span = |span: Option<LongSpan>, default: Duration| source.span(span, default);
        let state = state_directory().map_or_else(|| PathBuf::from("/var/lib/lifeboat"), |state| state.join("lifeboat"));
        let listen = match agent.listen.as_deref() {
            None => None,
            Some("off") => Some(None),
            Some(text) => Some(Some(text.parse::<SocketAddr>().map_err(|_| {
                Failure::usage(format!("read configuration: agent.listen {text:?} is not an address with a port"))
                    .hint("write listen = \"127.0.0.1:9847\", or \"off\"; lifeboat config show prints the settings")
            })?)),
        };
        let plain = |text: &String| {
            (1..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        if agent.group.as_ref().is_some_and(|group| !plain(group)) {
            return Err(Failure::usage("read configuration: agent.group must be 1 to 40 of a-z, 0-9 and -")
                .hint("write group = \"restorer\", or leave it out; lifeboat config show prints the settings"));
        }
        let time_zone = or(source.pick(None, None, schedule.time_zone), "UTC".to_owned());
        let written = |task: Task| match task {
            Task::Backup => &schedule.backup,
            Task::Verify => &schedule.verify,
            Task::Expire => &schedule.expire,
            Task::Prune => &schedule.prune,
            Task::Replicate => &schedule.replicate,
            Task::Drill => &schedule.drill,
        };
        let mut tasks = BTreeMap::new();
        for task in Task::ALL {
            let (cron, deadline) = default_of(task);
            let has_work = match task {
                Task::Expire | Task::Prune => duties.retention,
                Task::Replicate => duties.replicas,
                // Without an identity each of them would fail.
                Task::Drill => duties.restores,
                Task::Backup | Task::Verify => true,
            };
            let parse = |text: &str| match text {
                "off" => Ok(None),
                cron => Schedule::parse(cron, &time_zone.value)
                    .map(Some)
                    .map_err(|error| Failure::usage(format!("read configuration: schedule.{}: {error}", task.name())).hint(CRON_HINT)),
            };
            let set = written(task).as_deref().map(&parse).transpose()?;
            let default = if has_work { parse(cron)? } else { None };
            let limit = schedule.deadline.get(&task).copied();
            let default_arguments = match task {
                // Every byte of what a repository has is read in a month, a part of it each night.
                Task::Verify => vec!["--sample".to_owned(), "5".to_owned()],
                _ => Vec::new(),
            };
            let arguments = source.pick(None, None, schedule.arguments.get(&task).cloned());
            tasks.insert(
                task,
                TaskSettings {
                    schedule: or(source.pick(None, None, set), default),
                    deadline: span(limit, Duration::from_secs(deadline)),
                    arguments: or(arguments, default_arguments),
                },
            );
        }
        let attempts = or(source.pick(None, None, schedule.attempts), 4);
        if attempts.value == 0 {
            return Err(Failure::usage("read configuration: schedule.attempts is 0: nothing would ever run")
                .hint("write attempts = 1 for a single try; lifeboat config show prints the settings"));
        }
        Ok(Self {
            state: or(source.path("LIFEBOAT_STATE", agent.state), state),
            listen: or(source.pick(None, None, listen), Some(SocketAddr::from(([127, 0, 0, 1], 9847)))),
            allow_hosts: or(source.pick(None, None, agent.allow_hosts), Vec::new()),
            interval: span(agent.interval, Duration::from_secs(60)),
            receive: or(source.pick(None, None, agent.receive), duties.receives),
            group: source.pick(None, None, agent.group),
            time_zone,
            jitter: span(schedule.jitter, Duration::from_secs(300)),
            attempts,
            retry_after: span(schedule.retry_after, Duration::from_secs(300)),
            tasks,
        })
    }

    pub(super) fn rows(&self) -> Vec<(String, serde_json::Value, String)> {
        fn of<T>(key: &str, setting: &Setting<T>, value: serde_json::Value) -> (String, serde_json::Value, String) {
            (key.to_owned(), value, setting.origin.to_string())
        }
        let mut rows = vec![
            of("agent.state", &self.state, json!(self.state.value)),
            of("agent.listen", &self.listen, self.listen.value.map_or(json!("off"), |address| json!(address))),
            of("agent.allow_hosts", &self.allow_hosts, json!(self.allow_hosts.value)),
            of("agent.interval", &self.interval, json!(shown_span(self.interval.value))),
            of("agent.receive", &self.receive, json!(self.receive.value)),
            match &self.group {
                Some(group) => of("agent.group", group, json!(group.value)),
                None => ("agent.group".to_owned(), serde_json::Value::Null, "not set".to_owned()),
            },
            of("schedule.time_zone", &self.time_zone, json!(self.time_zone.value)),
            of("schedule.jitter", &self.jitter, json!(shown_span(self.jitter.value))),
            of("schedule.attempts", &self.attempts, json!(self.attempts.value)),
            of("schedule.retry_after", &self.retry_after, json!(shown_span(self.retry_after.value))),
        ];
        for (task, settings) in &self.tasks {
            let name = task.name();
            let cron = settings.schedule.value.as_ref().map_or("off", Schedule::text);
            rows.push(of(&format!("schedule.{name}"), &settings.schedule, json!(cron)));
            rows.push(of(&format!("schedule.deadline.{name}"), &settings.deadline, json!(shown_span(settings.deadline.value))));
            rows.push(of(&format!("schedule.arguments.{name}"), &settings.arguments, json!(settings.arguments.value)));
        }
        rows
    }
}
