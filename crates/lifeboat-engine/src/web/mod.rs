//! The status page and its API: what was seen of a system, over HTTP, read only.
//!
//! It shows what a [`Source`] has and looks at nothing by itself, so that asking for a page costs no request to a store and no query. Pages
//! ([`page`]) and documents ([`api`]) are functions of values; [`router`] says which path has which; [`server`] is what a stranger on the
//! network can touch, and has a limit for everything.

pub mod api;
pub mod page;
mod router;
mod server;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::drill::DrillId;
use lifeboat_core::status::Status;
use serde::Serialize;

pub use router::{Guests, router};
pub use server::{Running, Server};

/// Where what is shown comes from: the agent.
///
/// All but [`Source::drill_page`] is called while other requests wait, and answers from memory.
pub trait Source: Send + Sync + 'static {
    /// What was last seen; `None`: nobody has seen anything yet.
    fn status(&self) -> Option<Arc<Status>>;

    /// Who looks.
    fn agent(&self) -> AgentView;

    /// Metrics, as OpenMetrics or in Prometheus' own text; `None`: there are none yet.
    fn metrics(&self, open_metrics: bool) -> Option<String>;

    /// The page that a drill left, if it is the one that was signed. It may take its time: it is called on a thread of its own, a few at once.
    fn drill_page(&self, id: &DrillId) -> Result<Vec<u8>, DrillPageError>;

    /// The agent goes on: its parts answer.
    fn live(&self) -> bool;

    /// It does what it is for; or why not.
    fn ready(&self) -> Result<(), String>;
}

/// Why there is no page of a drill.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DrillPageError {
    /// There is no such drill.
    #[error("there is no such drill")]
    Missing,
    /// There is one, and nobody who is trusted stands for its page.
    #[error("nobody who is trusted stands for the page of this drill: {0}")]
    NotProven(String),
    /// The repository did not answer.
    #[error("cannot read the page of this drill: {0}")]
    Trouble(String),
}

/// The agent, as the page shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgentView {
    /// The system that it is for.
    pub name: String,
    /// The host that it runs on.
    pub host: String,
    /// The program, with its version.
    pub program: String,
    /// Since when it runs.
    pub since: Timestamp,
    /// What it does there.
    #[serde(flatten)]
    pub part: Part,
    /// It looks again after so many seconds.
    pub interval_seconds: u64,
    /// Why it could not look, the last time that it tried; `None`: it could.
    pub trouble: Option<String>,
    /// Where the runbook of alerts is (`https://…`); `None`: it is named, and not linked to.
    pub runbook_url: Option<String>,
}

/// Agents of one system take turns: one does the work, the others are there for when it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "part", rename_all = "kebab-case")]
pub enum Part {
    /// This one does the work.
    Leader,
    /// Another one does.
    Standby {
        /// Who holds the lease, if that is known.
        holder: Option<String>,
    },
}

impl AgentView {
    /// What was seen is old when so many looks have passed since, in seconds.
    fn stale_after_seconds(&self) -> u64 {
        /// One look may take long and one may fail; nobody is woken for that.
        const LOOKS: u64 = 3;
        self.interval_seconds.saturating_mul(LOOKS)
    }

    /// How old what was seen then is now, in seconds, and whether that is too old.
    pub fn age(&self, seen: Timestamp, now: Timestamp) -> (u64, bool) {
        let age = now.duration_since(seen).as_secs().max(0).unsigned_abs();
        (age, age > self.stale_after_seconds())
    }
}

/// A handler may take so long: it answers from memory, but for the pages of drills.
const HANDLER_SECONDS: Duration = Duration::from_secs(15);
