//! How a system stands: everything that was seen of it at one moment, and what it comes to: can it be recovered, to when, how fast, and when
//! was that proven.
//!
//! [`Observed`] is seen by `engine/src/status/`; [`assess`] judges it. `lifeboat status`, the agent's page, its metrics and its alerts all tell of one
//! [`Status`], so that they cannot differ. What could not be looked at is in [`Observed::unseen`], and never counts as good.

pub mod answer;
#[cfg(test)]
pub(crate) mod samples;
pub mod seen;

pub use answer::{Answer, Proof, Verdict, answer};
pub use seen::{
    ArtifactsSeen, BackupSeen, BackupState, DiskSeen, DrillSeen, DrillsSeen, ExceptSeen, FindingSeen, KeySeen, MomentSeen, Objectives,
    Observed, Outcome, ReceiverSeen, RepositorySeen, RunSeen, ServerSeen, Severity, SignatureState, SlotSeen, TaskSeen, TimelineSeen,
    Unseen, WalSeen, WindowSeen,
};

use serde::{Deserialize, Serialize};

use crate::alert::{self, Alert};

/// The version of [`Status`] as JSON: a field that changes its meaning or goes raises it, a new one does not.
pub const SCHEMA: u32 = 1;

/// How a system stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What it comes to.
    pub answer: Answer,
    /// What somebody has to be told, the worst first.
    pub alerts: Vec<Alert>,
    /// What was seen.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Judges what was seen.
pub fn assess(observed: Observed, terms: &alert::Terms) -> Status {
    let answer = answer(&observed);
    let alerts = alert::raise(&observed, &answer, terms);
    Status { schema: SCHEMA, answer, alerts, observed }
}
