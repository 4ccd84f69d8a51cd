//! The documents below `/api/v1/`: `docs/status.md` is their reference, `docs/status.schema.json` describes [`StatusDocument`].
//!
//! Lists come in pieces, so that no answer grows with the age of a system: whoever wants all of them asks on from `next_offset`.

use jiff::Timestamp;
use lifeboat_core::alert::Alert;
use lifeboat_core::status::{Answer, BackupSeen, BackupState, DrillSeen, SignatureState, Status, TaskSeen, WalSeen};
use serde::{Deserialize, Serialize};

use super::AgentView;

/// A list has so many entries in one answer where nobody asks for another number, and in the status.
pub const PAGE: usize = 100;
/// And never more.
pub const MAX_PAGE: usize = 1000;

/// Which backups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// All of them.
    #[default]
    All,
    /// A restore can begin with it: readable, and signed by somebody who is trusted.
    Usable,
    /// It was whole when it was taken.
    Healthy,
    /// Pages were damaged already where it was taken from.
    Degraded,
    /// Its manifest is missing or cannot be read.
    Unreadable,
    /// Nobody who is trusted stands for it, or nobody looked.
    NotProven,
    /// A pin holds it.
    Pinned,
    /// It has expired, and is deleted some day.
    Expired,
}

impl Filter {
    /// Every one.
    pub const ALL: [Self; 8] =
        [Self::All, Self::Usable, Self::Healthy, Self::Degraded, Self::Unreadable, Self::NotProven, Self::Pinned, Self::Expired];

    /// As it stands in an address.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Usable => "usable",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unreadable => "unreadable",
            Self::NotProven => "not-proven",
            Self::Pinned => "pinned",
            Self::Expired => "expired",
        }
    }

    /// It lets this one through.
    pub fn takes(self, backup: &BackupSeen) -> bool {
        match self {
            Self::All => true,
            Self::Usable => backup.counts(),
            Self::Healthy => backup.state == BackupState::Healthy,
            Self::Degraded => backup.state == BackupState::Degraded,
            Self::Unreadable => backup.state == BackupState::Unreadable,
            Self::NotProven => backup.signature != SignatureState::Valid,
            Self::Pinned => !backup.pins.is_empty(),
            Self::Expired => backup.whole_until.is_some(),
        }
    }
}

/// What can be said behind `/api/v1/backups?`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackupsQuery {
    offset: usize,
    limit: Option<usize>,
    state: Filter,
}

/// What can be said behind `/api/v1/drills?` and `/api/v1/alerts?`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PageQuery {
    offset: usize,
    limit: Option<usize>,
}

/// An error.
#[derive(Debug, Serialize)]
pub struct Failed<'a> {
    error: Reason<'a>,
}

#[derive(Debug, Serialize)]
struct Reason<'a> {
    message: &'a str,
    hint: &'a str,
}

impl<'a> Failed<'a> {
    /// What, and what to do about it.
    pub const fn new(message: &'a str, hint: &'a str) -> Self {
        Self { error: Reason { message, hint } }
    }
}

/// `/api/v1/status`: a [`Status`], with the beginnings of its longest lists, and who saw it.
#[derive(Debug, Serialize)]
pub struct StatusDocument {
    /// The agent, and how old what it saw is.
    pub agent: AgentDocument,
    /// How many backups there are; the document has the newest [`PAGE`]. `None`: nobody could look.
    pub backups_total: Option<usize>,
    /// How many alerts hold; the document has the worst [`PAGE`].
    pub alerts_total: usize,
    /// How the system stands.
    #[serde(flatten)]
    pub status: Status,
}

/// The agent.
#[derive(Debug, Serialize)]
pub struct AgentDocument {
    /// As it says itself.
    #[serde(flatten)]
    pub view: AgentView,
    /// How old what was seen is, in seconds.
    pub age_seconds: u64,
    /// That is older than it may be: nothing in the document need hold any more.
    pub stale: bool,
}

/// The whole.
pub fn status(status: &Status, agent: &AgentView, now: Timestamp) -> StatusDocument {
    let (age_seconds, stale) = agent.age(status.observed.at, now);
    StatusDocument {
        agent: AgentDocument { view: agent.clone(), age_seconds, stale },
        backups_total: status.observed.backups.as_ref().map(Vec::len),
        alerts_total: status.alerts.len(),
        status: beginning(status),
    }
}

/// The status with the beginnings of its longest lists. They are not copied to be thrown away.
fn beginning(status: &Status) -> Status {
    let seen = &status.observed;
    Status {
        schema: status.schema,
        answer: status.answer.clone(),
        alerts: status.alerts.iter().take(PAGE).cloned().collect(),
        observed: lifeboat_core::status::Observed {
            name: seen.name.clone(),
            environment: seen.environment.clone(),
            host: seen.host.clone(),
            program: seen.program.clone(),
            at: seen.at,
            took_seconds: seen.took_seconds,
            objectives: seen.objectives,
            server: seen.server.clone(),
            repositories: seen.repositories.clone(),
            backups: seen.backups.as_ref().map(|backups| backups.iter().take(PAGE).cloned().collect()),
            wal: seen.wal.clone(),
            artifacts: seen.artifacts.clone(),
            drills: seen.drills.clone(),
            keys: seen.keys.clone(),
            disks: seen.disks.clone(),
            runs: seen.runs.clone(),
            tasks: seen.tasks.clone(),
            unseen: seen.unseen.clone(),
        },
    }
}

/// A piece of a list.
#[derive(Debug, Serialize)]
pub struct Piece<'a, T> {
    /// When this was so.
    pub at: Timestamp,
    /// How many there are; `None`: nobody could look.
    pub total: Option<usize>,
    /// How many of them were asked for.
    pub matching: usize,
    /// How many of those come before the first one here.
    pub offset: usize,
    /// How many there may be here.
    pub limit: usize,
    /// Where the next piece begins; `None`: this is the last.
    pub next_offset: Option<usize>,
    /// The piece.
    pub items: Vec<&'a T>,
}

fn piece<'a, T>(at: Timestamp, all: Option<&'a [T]>, takes: impl Fn(&T) -> bool, offset: usize, limit: Option<usize>) -> Piece<'a, T> {
    let limit = limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    let (mut matching, mut items) = (0, Vec::new());
    for item in all.into_iter().flatten().filter(|item| takes(item)) {
        if matching >= offset && items.len() < limit {
            items.push(item);
        }
        matching += 1;
    }
    let next = offset.saturating_add(items.len());
    Piece { at, total: all.map(<[T]>::len), matching, offset, limit, next_offset: (next < matching).then_some(next), items }
}

/// A piece of the backups, the newest first.
pub fn backups<'a>(status: &'a Status, query: &BackupsQuery) -> Piece<'a, BackupSeen> {
    piece(status.observed.at, status.observed.backups.as_deref(), |backup| query.state.takes(backup), query.offset, query.limit)
}

/// A piece of the alerts, the worst first.
pub fn alerts<'a>(status: &'a Status, query: &PageQuery) -> Piece<'a, Alert> {
    piece(status.observed.at, Some(&status.alerts), |_| true, query.offset, query.limit)
}

/// Drills.
#[derive(Debug, Serialize)]
pub struct DrillsDocument<'a> {
    /// The newest first.
    #[serde(flatten)]
    piece: Piece<'a, DrillSeen>,
    /// Older ones that nobody looked at.
    older: u64,
    /// What is wrong with the row of them.
    findings: &'a [String],
}

/// A piece of the drills.
pub fn drills<'a>(status: &'a Status, query: &PageQuery) -> DrillsDocument<'a> {
    let seen = status.observed.drills.as_ref();
    DrillsDocument {
        piece: piece(status.observed.at, seen.map(|seen| seen.entries.as_slice()), |_| true, query.offset, query.limit),
        older: seen.map_or(0, |seen| seen.older),
        findings: seen.map_or(&[], |seen| &seen.findings),
    }
}

/// WAL, and what it comes to.
#[derive(Debug, Serialize)]
pub struct WalDocument<'a> {
    at: Timestamp,
    answer: &'a Answer,
    wal: Option<&'a WalSeen>,
}

/// WAL.
pub fn wal(status: &Status) -> WalDocument<'_> {
    WalDocument { at: status.observed.at, answer: &status.answer, wal: status.observed.wal.as_ref() }
}

/// Tasks, and what was last done.
#[derive(Debug, Serialize)]
pub struct TasksDocument<'a> {
    at: Timestamp,
    tasks: &'a [TaskSeen],
    runs: &'a [lifeboat_core::status::RunSeen],
}

/// Tasks.
pub fn tasks(status: &Status) -> TasksDocument<'_> {
    TasksDocument { at: status.observed.at, tasks: &status.observed.tasks, runs: &status.observed.runs }
}
