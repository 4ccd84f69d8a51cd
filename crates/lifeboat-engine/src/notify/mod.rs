//! Telling people and their programs of alerts: Alertmanager, a webhook, Slack, PagerDuty, mail; and a dead man's switch that notices when nothing is told
//! any more.
//!
//! What is told to whom when is decided by `lifeboat_core::alert::book`; a [`Sink`] brings one message to one place, and a [`Notifier`] has all of them and
//! what each was told. Addresses may be secrets (Slack's is), so no error has one in it.

mod alertmanager;
mod books;
mod heartbeat;
mod http;
mod notifier;
mod pagerduty;
mod slack;
mod smtp;
mod trial;
mod webhook;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::alert::Severity;
use lifeboat_core::alert::book::Message;

use crate::secret::SecretSource;

pub use heartbeat::Heartbeat;
pub use notifier::{Delivery, Notifier, PATIENCE};
pub use pagerduty::EVENTS_URL as PAGERDUTY_URL;
pub use smtp::is_mailbox;
pub use trial::{Tried, try_out};
pub use webhook::VERSION as WEBHOOK_VERSION;

/// What alerts are of, and where more is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The system, as the configuration names it.
    pub name: String,
    /// What it belongs to (`policy.environment`).
    pub environment: String,
    /// The host that looked.
    pub host: String,
    /// The runbook, without an anchor (`alerts.runbook_url`, or where it is in the program's own documentation).
    pub runbook: String,
    /// The page that shows how the system stands, where those who are told can reach one.
    pub page: Option<String>,
}

impl System {
    /// The runbook's section of an alert as a link; `None`: the runbook is no page of the web.
    fn link(&self, alert: &lifeboat_core::alert::Alert) -> Option<String> {
        ["http://", "https://"].iter().any(|scheme| self.runbook.starts_with(scheme)).then(|| alert.runbook_at(&self.runbook))
    }
}

/// Which messages a sink is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// What is new, what got worse, what still holds after a while, what is over: to people.
    News,
    /// All that holds, in every round, and what is over: to a program that takes silence for the end of an alert.
    Everything,
}

/// A message arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Not with everybody: with whom not, and why.
    pub except: Option<String>,
}

/// Where messages go.
pub trait Sink: Send + Sync {
    /// Which messages it is sent.
    fn telling(&self) -> Telling {
        Telling::News
    }

    /// Brings a message there. Blocks for as long as its requests may take; that it returns means that somebody else has the message now.
    ///
    /// # Errors
    ///
    /// [`NotifyError`]; the message may have arrived all the same, where the answer was lost.
    fn send(&self, system: &System, message: &Message, at: Timestamp) -> Result<Arrived, NotifyError>;
}

/// Why a message may not have arrived: a line, with no secret in it and no address that may be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotifyError {
    /// It is not to be reached, does not answer in time, or says that it cannot now.
    #[error("{0}")]
    Unreachable(String),
    /// It does not take this, and would not take it the next time.
    #[error("{0}")]
    Refused(String),
    /// What the configuration says of it cannot be used: an address, a secret, a file of certificates.
    #[error("{0}")]
    Settings(String),
    /// It has not answered yet to what it was sent in an earlier round.
    #[error("it has not answered yet to what it was sent {seconds} s ago")]
    Busy {
        /// How long that is ago.
        seconds: u64,
    },
}

impl NotifyError {
    /// Whether it may be gone by the next round, without anybody doing something.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Busy { .. })
    }
}

/// How long a request may take, from the connection to the answer.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// A program that is told by HTTP.
pub struct HttpTarget {
    /// Its address, which may be a secret as a whole.
    pub url: SecretSource,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<SecretSource>,
    /// Headers, with their values.
    pub headers: Vec<(String, SecretSource)>,
    /// PEM certificates to believe instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// How a connection to a mail server is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// From the first byte on (port 465).
    Always,
    /// Once the server has said that it can, and not at all if it cannot (port 587).
    StartTls,
    /// Not at all: a relay on this host.
    None,
}

/// A mail server, and who gets the mail.
pub struct SmtpTarget {
    /// Its name, as its certificate has it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is secured.
    pub tls: Tls,
    /// Who we are there; `None`: nobody asks.
    pub login: Option<(String, SecretSource)>,
    /// Who writes.
    pub from: String,
    /// Who reads.
    pub to: Vec<String>,
    /// PEM certificates to believe instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// A kind of sink, and how it is reached.
pub enum Target {
    /// Alertmanager's API, version 2.
    Alertmanager(HttpTarget),
    /// Any program that takes the JSON of `docs/alerts.md`.
    Webhook(HttpTarget),
    /// An incoming webhook of Slack.
    Slack(HttpTarget),
    /// PagerDuty's Events API, version 2.
    PagerDuty {
        /// The API.
        http: HttpTarget,
        /// The key of the integration.
        routing_key: SecretSource,
    },
    /// Mail.
    Smtp(SmtpTarget),
}

/// A sink that can be sent to, and what of.
#[derive(Clone)]
pub struct NamedSink {
    /// What people call it.
    pub name: String,
    /// What is less serious is not for it.
    pub min_severity: Severity,
    /// The sink.
    pub sink: Arc<dyn Sink>,
}

impl NamedSink {
    /// Makes a sink; nothing is sent yet. `round` is how often a [`Notifier`] will be asked to tell what holds.
    ///
    /// # Errors
    ///
    /// [`NotifyError::Settings`].
    pub fn open(name: String, min_severity: Severity, target: Target, round: Duration) -> Result<Self, NotifyError> {
        let sink: Arc<dyn Sink> = match target {
            Target::Alertmanager(http) => Arc::new(alertmanager::Alertmanager::open(http, round)?),
            Target::Webhook(http) => Arc::new(webhook::Webhook::open(http)?),
            Target::Slack(http) => Arc::new(slack::Slack::open(http)?),
            Target::PagerDuty { http, routing_key } => Arc::new(pagerduty::PagerDuty::open(http, routing_key)?),
            Target::Smtp(smtp) => Arc::new(smtp::Smtp::open(smtp)?),
        };
        Ok(Self { name, min_severity, sink })
    }
}
