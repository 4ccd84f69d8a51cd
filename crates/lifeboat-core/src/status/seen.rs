//! What was seen of a system, in one document. Field names and units are API (`docs/status.md`): seconds, bytes, RFC 3339 in UTC.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::drill::Verdict;
use crate::task::Undone;

/// Everything that was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The system, as the configuration names it.
    pub name: String,
    /// What it belongs to (`policy.environment`).
    pub environment: String,
    /// The host that looked.
    pub host: String,
    /// The program that looked, with its version.
    pub program: String,
    /// When.
    pub at: Timestamp,
    /// How long looking took, in seconds.
    pub took_seconds: f64,
    /// What must hold.
    pub objectives: Objectives,
    /// The server; `None`: none is configured.
    #[serde(default)]
    pub server: Option<ServerSeen>,
    /// The repositories, the primary first.
    pub repositories: Vec<RepositorySeen>,
    /// Backups of this system, the newest first; `None`: nobody could look.
    #[serde(default)]
    pub backups: Option<Vec<BackupSeen>>,
    /// WAL of the system's cluster; `None`: there is none, or nobody could look.
    #[serde(default)]
    pub wal: Option<WalSeen>,
    /// The present artifact set; `None`: there is none, or nobody could look.
    #[serde(default)]
    pub artifacts: Option<ArtifactsSeen>,
    /// Drills of the system; `None`: nobody could look.
    #[serde(default)]
    pub drills: Option<DrillsSeen>,
    /// Keys and certificates, and when they end.
    #[serde(default)]
    pub keys: Vec<KeySeen>,
    /// File systems that must not fill.
    #[serde(default)]
    pub disks: Vec<DiskSeen>,
    /// What was last done on this host, by whom it may have been: one for each operation.
    #[serde(default)]
    pub runs: Vec<RunSeen>,
    /// What the agent of this host has planned; empty: no agent ever ran here.
    #[serde(default)]
    pub tasks: Vec<TaskSeen>,
    /// What could not be looked at.
    #[serde(default)]
    pub unseen: Vec<Unseen>,
}

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objectives {
    /// So much may be lost at most.
    pub rpo_seconds: u64,
    /// Everything is back after this.
    pub rto_seconds: u64,
    /// The last drill that succeeded is no older.
    pub drill_seconds: u64,
}

/// Something that could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unseen {
    /// What: `backups`, `wal`, `server`, `drills`, `artifacts`, `keys`, `runs`, `repository NAME`.
    pub what: String,
    /// Why.
    pub why: String,
}

/// The server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSeen {
    /// Where it is, without a password.
    pub endpoint: String,
    /// Why it did not answer.
    #[serde(default)]
    pub trouble: Option<String>,
    /// `server_version_num`, where it was asked for.
    #[serde(default)]
    pub version_num: Option<u32>,
    /// The cluster.
    #[serde(default)]
    pub system_id: Option<String>,
    /// Its timeline.
    #[serde(default)]
    pub timeline: Option<u32>,
    /// How far its WAL is written.
    #[serde(default)]
    pub position: Option<String>,
    /// It is a standby, or recovers.
    #[serde(default)]
    pub in_recovery: bool,
}

/// A place of the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositorySeen {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// `primary`, `required`, `best-effort` or `kept-by-store`.
    pub part: String,
    /// Why it could not be read; `None`: it was.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Things that this host knows it missed, and that `lifeboat replicate` brings.
    #[serde(default)]
    pub missed: u64,
    /// This host lost count of what it missed.
    #[serde(default)]
    pub missed_everything: bool,
    /// Backups that the primary has and this one does not.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// Backups that it has and the primary does not, though nobody gave them up: lost there.
    #[serde(default)]
    pub primary_lacks: Vec<String>,
    /// Its newest backup.
    #[serde(default)]
    pub newest_backup: Option<String>,
}

/// How a backup's pages were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackupState {
    /// As they should be.
    Healthy,
    /// Some were damaged already where they came from.
    Degraded,
    /// Its manifest cannot be read, or is missing.
    Unreadable,
}

/// Whether somebody who is trusted stands for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureState {
    /// Yes.
    Valid,
    /// No.
    NotValid,
    /// Nobody looked: nobody is trusted here.
    NotChecked,
}

/// A backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupSeen {
    /// Its id.
    pub id: String,
    /// When it began.
    #[serde(default)]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// From when on the database can be brought back; `None`: it has no cluster in it.
    #[serde(default)]
    pub consistent_at: Option<Timestamp>,
    /// How its pages were.
    pub state: BackupState,
    /// Whether its signature holds.
    pub signature: SignatureState,
    /// How the database was copied: `local`, `stream`, `logical`; `None`: it has none.
    #[serde(default)]
    pub copy: Option<String>,
    /// Major version of the server.
    #[serde(default)]
    pub postgres: Option<u32>,
    /// Files in it.
    pub files: u64,
    /// Bytes that a restore writes.
    pub plain_bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// Artifacts in its set.
    #[serde(default)]
    pub artifacts: Option<u64>,
    /// Artifacts that its database refers to and that are not in it.
    #[serde(default)]
    pub missing_artifacts: u64,
    /// Names of the pins that hold it.
    #[serde(default)]
    pub pins: Vec<String>,
    /// It has expired, and is whole until then.
    #[serde(default)]
    pub whole_until: Option<Timestamp>,
    /// What is wrong with it.
    #[serde(default)]
    pub problem: Option<String>,
}

impl BackupSeen {
    /// A restore can begin with it.
    pub fn counts(&self) -> bool {
        self.state != BackupState::Unreadable && self.signature == SignatureState::Valid
    }
}

/// A moment that recovery can go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MomentSeen {
    /// In WAL.
    pub lsn: String,
    /// Its time, where a commit tells it.
    #[serde(default)]
    pub time: Option<Timestamp>,
}

/// What a window does not reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExceptSeen {
    /// The first moment.
    pub from: MomentSeen,
    /// The last.
    pub to: MomentSeen,
    /// Why; `None`: no backup leads there.
    #[serde(default)]
    pub why: Option<String>,
}

/// Moments that recovery can go to, any of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSeen {
    /// Along this timeline.
    pub timeline: u32,
    /// The first.
    pub from: MomentSeen,
    /// The last.
    pub to: MomentSeen,
    /// What is not in it.
    #[serde(default)]
    pub except: Vec<ExceptSeen>,
    /// The hole that ends it.
    #[serde(default)]
    pub stopped_by: Option<String>,
    /// Backups that it rests on.
    pub backups: u64,
}

/// A timeline in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSeen {
    /// Its number.
    pub timeline: u32,
    /// The first LSN that there is.
    #[serde(default)]
    pub from: Option<String>,
    /// The last.
    #[serde(default)]
    pub to: Option<String>,
    /// Segments.
    pub segments: u64,
    /// Bytes of them in the repository.
    pub stored_bytes: u64,
    /// Holes.
    #[serde(default)]
    pub gaps: Vec<String>,
}

/// What the receiver of this host says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiverSeen {
    /// `streaming`, `paused`, `connecting` …
    pub state: String,
    /// `stream` or `sync`.
    pub mode: String,
    /// When it last said something, seconds ago.
    pub age_seconds: u64,
    /// Received up to here.
    pub received: String,
    /// Durable in the spool up to here.
    pub spooled: String,
    /// In the repository up to here.
    pub stored: String,
    /// Bytes that wait to be stored.
    pub waiting_bytes: u64,
    /// Commits go on without it, against what was promised.
    pub degraded: bool,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotSeen {
    /// Its name.
    pub name: String,
    /// It is the receiver's.
    pub ours: bool,
    /// Somebody is connected.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    #[serde(default)]
    pub wal_status: Option<String>,
    /// WAL that is kept for it.
    pub held_bytes: u64,
    /// WAL that may still be written before it loses some.
    #[serde(default)]
    pub safe_bytes: Option<u64>,
}

/// How serious something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Somebody has to be woken.
    Critical,
    /// Somebody has to look at it by day.
    Warning,
}

impl Severity {
    /// In a word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
        }
    }
}

/// Something that is wrong with the way of WAL (`core/src/wal/status.rs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingSeen {
    /// A word for programs.
    pub code: String,
    /// How serious.
    pub severity: Severity,
    /// What.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// WAL of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalSeen {
    /// How it comes: `archive`, `stream`, `sync`.
    pub mode: String,
    /// The cluster.
    pub system_id: String,
    /// What there is.
    #[serde(default)]
    pub timelines: Vec<TimelineSeen>,
    /// Moments that can be gone back to.
    #[serde(default)]
    pub windows: Vec<WindowSeen>,
    /// Time of the last commit in the repository.
    #[serde(default)]
    pub last_commit: Option<Timestamp>,
    /// Nothing that was committed before is missing in the repository, as far as anybody knows; later than the last commit, where nothing was
    /// committed in between. `None`: nobody knows.
    #[serde(default)]
    pub kept_until: Option<Timestamp>,
    /// WAL that the server has and the repository does not; `None`: the server was not asked, or the repository has nothing of its timeline.
    #[serde(default)]
    pub lag_bytes: Option<u64>,
    /// Files that wait for the archiver.
    #[serde(default)]
    pub ready: Option<u64>,
    /// Slots of the server.
    #[serde(default)]
    pub slots: Vec<SlotSeen>,
    /// The receiver.
    #[serde(default)]
    pub receiver: Option<ReceiverSeen>,
    /// What is wrong.
    #[serde(default)]
    pub findings: Vec<FindingSeen>,
}

/// The present artifact set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactsSeen {
    /// When it last changed; `None`: it never did.
    #[serde(default)]
    pub changed: Option<Timestamp>,
    /// Artifacts in it.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Drills.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillsSeen {
    /// The newest, newest first.
    pub entries: Vec<DrillSeen>,
    /// Older ones that are not in the list.
    pub older: u64,
    /// What is wrong with the row of them: reports missing, exchanged, not signed.
    #[serde(default)]
    pub findings: Vec<String>,
}

/// A drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillSeen {
    /// Its id.
    pub id: String,
    /// When it was.
    pub at: Timestamp,
    /// Its verdict, if somebody who is trusted stands for it.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// Seconds until everything was back.
    #[serde(default)]
    pub rto_seconds: Option<f64>,
    /// Seconds until everything was checked.
    #[serde(default)]
    pub verified_seconds: Option<f64>,
    /// Seconds of commits that would have been lost.
    #[serde(default)]
    pub rpo_seconds: Option<f64>,
    /// The backup.
    #[serde(default)]
    pub backup: Option<String>,
    /// Whether its signature holds.
    pub signature: SignatureState,
}

impl DrillSeen {
    /// It proves that backups restore, within the objectives.
    pub fn succeeded(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Passed | Verdict::PassedWithGaps))
    }
}

/// A key or a certificate, and when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySeen {
    /// What it is: `signing key`, `trusted key`, `certificate`.
    pub what: String,
    /// Which.
    pub name: String,
    /// It is the one that signs here.
    pub signs_here: bool,
    /// How it stands: `trusted`, `not-yet`, `retired`, `revoked`.
    pub state: String,
    /// When it ends.
    #[serde(default)]
    pub not_after: Option<Timestamp>,
}

/// A file system that must not fill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSeen {
    /// What is on it: `data directory`, `WAL`, `spool`, `repository`, `drills`, `state`.
    pub what: String,
    /// Where.
    pub path: String,
    /// Free, for those who are not root.
    pub free_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
}

/// How something that was done ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is not ended.
    Running,
    /// As it should.
    Succeeded,
    /// Done, and something was found (exit code 3).
    Findings,
    /// It was not done, or not as it must (any other exit code).
    Failed,
    /// Nobody knows: its process is gone, and said nothing.
    Interrupted,
}

impl Outcome {
    /// In a word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Findings => "found something",
            Self::Failed => "failed",
            Self::Interrupted => "was interrupted",
        }
    }
}

/// The last run of an operation on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSeen {
    /// What: `backup`, `verify`, `expire`, `prune`, `replicate`, `drill`.
    pub operation: String,
    /// Its id, as in logs and traces.
    pub id: String,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// How.
    pub outcome: Outcome,
    /// The exit code.
    #[serde(default)]
    pub exit_code: Option<u8>,
    /// Why it failed.
    #[serde(default)]
    pub message: Option<String>,
    /// What to do about it.
    #[serde(default)]
    pub hint: Option<String>,
    /// So many in a row did not succeed, this one included.
    pub failures: u64,
    /// When one last ended with success (or with findings that leave the work done).
    #[serde(default)]
    pub last_success: Option<Timestamp>,
    /// How long that one took, in seconds.
    #[serde(default)]
    pub last_success_seconds: Option<f64>,
}

impl RunSeen {
    /// The exit code of a signature that does not hold, or of a verification that found damage (`docs/reference/exit-codes.md`).
    pub const NOT_VERIFIED: u8 = 21;
    /// The exit code of work that is done, with something to be read.
    pub const FINDINGS: u8 = 3;

    /// It is a verification, and found damage.
    pub fn found_damage(&self) -> bool {
        self.operation == "verify" && self.exit_code == Some(Self::NOT_VERIFIED)
    }

    /// It is done, but something is to be read; while another one runs, this is said of the one before.
    pub fn has_findings(&self) -> bool {
        match self.outcome {
            Outcome::Findings => true,
            Outcome::Running => self.exit_code == Some(Self::FINDINGS),
            Outcome::Succeeded | Outcome::Failed | Outcome::Interrupted => false,
        }
    }
}

/// What the agent does by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSeen {
    /// Its name: that of the operation.
    pub name: String,
    /// The cron expression.
    pub schedule: String,
    /// Where that is read.
    pub time_zone: String,
    /// When it begins next, spread included; `None`: never, or not before somebody looks at it.
    #[serde(default)]
    pub next: Option<Timestamp>,
    /// Since when it runs.
    #[serde(default)]
    pub running_since: Option<Timestamp>,
    /// It is ended when it takes longer.
    pub deadline_seconds: u64,
    /// The present try, from 1; 0: none is due.
    pub attempt: u32,
    /// Its last tries were used up, or were of no use: when that was, and how the last one ended. `None`: it was done since, or never failed for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone: Option<Undone>,
    /// When this was so.
    pub at: Timestamp,
}
