//! What a drill leaves: numbers and findings, for people, programs and auditors. `docs/drill-report.schema.json` describes its JSON.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Check, Control, Expected, Outcome, Scenario, plain};
use crate::policy::Actor;
use crate::repository::{Id, Sha256};
use crate::wal::{Lsn, SystemId, Timeline};

/// Version of the report.
pub const REPORT_SCHEMA: u32 = 1;

/// Everything that is known of one drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_SCHEMA`].
    pub schema: u32,
    /// The drill: `<name>-drill-<UTC yyyymmddThhmmssZ>`.
    pub id: String,
    /// How many drills of this system the repository had, this one included: a report that is left out shows as a gap.
    pub number: u64,
    /// SHA-256 of the report before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Sha256>,
    /// Name of the protected system.
    pub name: String,
    /// The repository.
    pub repository: Id,
    /// Where it is, without credentials.
    pub repository_url: String,
    /// Host that ran the drill.
    pub host: String,
    /// Who ran it.
    pub actor: Actor,
    /// Program that ran it.
    pub lifeboat: String,
    /// Digest of the plan that was run; zeros where nothing could be planned.
    pub plan: Sha256,
    /// When it began: the moment at which the disaster is supposed to have happened.
    pub started: Timestamp,
    /// When everything was checked and taken down.
    pub finished: Timestamp,
    /// What it means.
    pub verdict: Verdict,
    /// Why, in sentences, the worst first; empty where everything passed.
    pub reasons: Vec<String>,
    /// What was restored.
    pub backup: BackupSummary,
    /// What recovery did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// Where it was restored.
    pub environment: Environment,
    /// What had to be reached.
    pub objectives: Objectives,
    /// How long it took.
    pub rto: Rto,
    /// How much would have been lost.
    pub rpo: Rpo,
    /// Every check, in order.
    pub checks: Vec<CheckResult>,
    /// What was broken on purpose to see whether the checks can fail.
    pub controls: Vec<ControlResult>,
    /// The scenarios that were played through.
    pub scenarios: Vec<ScenarioResult>,
    /// What an operator should know and no check says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// By when the next one is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_due: Option<Timestamp>,
}

/// What a drill means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every check passed or had nothing to check, every control turned red, every scenario ended as it must, every objective was met.
    Passed,
    /// The same, but something could not be checked.
    PassedWithGaps,
    /// All came back, and too late or with too much lost.
    ObjectiveMissed,
    /// Something is wrong with the backup, or with the drill itself: a control that stays green is.
    Failed,
}

impl Verdict {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::PassedWithGaps => "passed, but not everything was checked",
            Self::ObjectiveMissed => "an objective was missed",
            Self::Failed => "failed",
        }
    }
}

/// The backup that was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSummary {
    /// Its id.
    pub id: String,
    /// Digest of its manifest.
    pub manifest: Sha256,
    /// When it began.
    pub started: Timestamp,
    /// How the database was copied: `local`, `stream`, `logical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
    /// The server, as it prints itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The cluster's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<SystemId>,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// Artifacts.
    pub artifacts: u64,
    /// Their bytes.
    pub artifact_bytes: u64,
}

/// What recovery was to reach, and reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// What was asked for, in words.
    pub target: String,
    /// What backup and archive promise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<Lsn>,
    /// Where recovery ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Lsn>,
    /// Along which timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// Time of the last commit that was replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_commit: Option<Timestamp>,
    /// The WAL that was replayed.
    pub wal: WalSummary,
}

/// WAL that a drill replayed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalSummary {
    /// Bytes between the start of the backup and the end of recovery.
    pub bytes: u64,
    /// Segments that came from the archive.
    pub segments: u64,
}

/// Where a drill restored, and what kept it away from everything else.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// The directory that it made.
    pub directory: String,
    /// The user that the server ran as.
    pub user: String,
    /// What isolated it.
    pub isolation: Vec<Isolation>,
    /// Settings that the server was started with.
    pub settings: Vec<(String, String)>,
    /// Programs that were used, with their versions.
    pub programs: Vec<String>,
    /// Processors of the machine.
    pub processors: u32,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    /// The operating system, as it calls itself.
    pub system: String,
}

/// One way in which a drill is kept apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// What: `directory`, `user`, `network`, `files`, `socket`, `archive`, `replication`, `jobs`, `repository`.
    pub what: String,
    /// Whether it holds.
    pub holds: bool,
    /// How, or why not.
    pub how: String,
}

/// What has to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Objectives {
    /// Seconds that may pass until everything is back.
    pub rto_seconds: f64,
    /// Seconds of commits that may be lost.
    pub rpo_seconds: f64,
}

/// A part of the way from the disaster to the last check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// `prepare`, `fetch`, `replay`, `start`, `artifacts`, `verify`, …
    pub name: String,
    /// Seconds after the disaster at which it began.
    pub from_seconds: f64,
    /// How long it took.
    pub seconds: f64,
    /// Whether the system was usable only after it: phases behind the first query are checks.
    pub before_first_query: bool,
}

/// How long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rto {
    /// Seconds from the disaster to the first answer of a server that takes writes. None: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_query_seconds: Option<f64>,
    /// Seconds from the disaster until everything was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_seconds: Option<f64>,
    /// What that time was spent on, in order.
    pub phases: Vec<Phase>,
    /// What was left out of the first number, because only a drill does it.
    pub excluded_seconds: f64,
    /// What it would be at the size of production, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection: Option<Projection>,
    /// Whether the objective was met, by the measured number and by the projected one.
    pub met: bool,
}

/// An estimate for another size than the measured one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Projection {
    /// Bytes of the database there.
    pub bytes: u64,
    /// Seconds to the first query.
    pub seconds: f64,
    /// How it was computed.
    pub how: String,
}

/// How much would have been lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rpo {
    /// The moment of the disaster.
    pub failure: Timestamp,
    /// The last moment that came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<Timestamp>,
    /// Where that moment is from: `heartbeat`, `commit`, `backup`.
    pub source: String,
    /// Seconds between them: no more than this was lost. None: nothing came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Whether the objective was met.
    pub met: bool,
}

/// What a check looked at, where that was not all, or where the amount says something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// So many.
    pub checked: u64,
    /// Of so many.
    pub of: u64,
    /// Of what: `bytes`, `artifacts`, `tables`, `relations`, `pages`, `assertions`, `databases`.
    pub unit: String,
    /// What chose them, if they are a sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Which.
    pub check: Check,
    /// What it came to.
    pub outcome: Outcome,
    /// What was found, or why it was not looked for, in a sentence.
    pub reason: String,
    /// How long it took.
    pub seconds: f64,
    /// What it looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// The program that did it, with its version; lifeboat itself where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The first things that it found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
}

impl CheckResult {
    /// The most findings that a report keeps of one check.
    pub const MAX_FINDINGS: usize = 20;

    /// A check without scope, tool and findings. Names in the reason are the database's: it is made [`plain`].
    pub fn new(check: Check, outcome: Outcome, reason: impl AsRef<str>) -> Self {
        Self { check, outcome, reason: plain(reason.as_ref()), seconds: 0.0, scope: None, tool: None, findings: Vec::new() }
    }

    /// With what it looked at.
    #[must_use]
    pub fn of(mut self, checked: u64, of: u64, unit: &str, seed: Option<u64>) -> Self {
        self.scope = Some(Scope { checked, of, unit: unit.to_owned(), seed });
        self
    }

    /// With the program that did it.
    #[must_use]
    pub fn by(mut self, tool: impl Into<String>) -> Self {
        self.tool = Some(plain(&tool.into()));
        self
    }

    /// With the first of what it found, each of them made [`plain`].
    #[must_use]
    pub fn with(mut self, findings: impl IntoIterator<Item = String>) -> Self {
        self.findings = findings.into_iter().take(Self::MAX_FINDINGS).map(|finding| plain(&finding)).collect();
        self
    }

    /// With the time it took.
    #[must_use]
    pub fn took(mut self, seconds: f64) -> Self {
        self.seconds = seconds;
        self
    }
}

/// One thing that was broken on purpose, and whether it was noticed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlResult {
    /// What was broken.
    pub control: Control,
    /// Where: an object, a table.
    pub place: String,
    /// The check that had to notice.
    pub check: Check,
    /// What it came to: `failed` is what is wanted.
    pub outcome: Outcome,
    /// What the check said.
    pub said: String,
    /// How long it took.
    pub seconds: f64,
}

/// One scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScenarioResult {
    /// Which.
    pub scenario: Scenario,
    /// What must happen.
    pub expected: Expected,
    /// `passed`: it happened. `failed`: it did not. `not-applicable`: it cannot be played here, and the text says why.
    pub outcome: Outcome,
    /// What happened.
    pub observed: String,
    /// How long it took.
    pub seconds: f64,
}
