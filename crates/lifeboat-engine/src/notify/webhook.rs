//! A program of somebody's own: one JSON document for each message, as `docs/alerts.md` and `docs/alert-webhook.schema.json` describe it.

use jiff::Timestamp;
use lifeboat_core::alert::alertname;
use lifeboat_core::alert::book::{Message, Notice};
use serde_json::{Value, json};

use super::http::Http;
use super::{Arrived, HttpTarget, NotifyError, Sink, System};

/// Version of the document: it is raised where a member changes its meaning or goes, not where one comes.
pub const VERSION: u32 = 1;

/// A webhook.
pub(super) struct Webhook {
    http: Http,
}

impl Webhook {
    pub(super) fn open(target: HttpTarget) -> Result<Self, NotifyError> {
        Ok(Self { http: Http::open(target)? })
    }
}

impl Sink for Webhook {
    fn send(&self, system: &System, message: &Message, at: Timestamp) -> Result<Arrived, NotifyError> {
        self.http.post("", &document(system, message, at), &[])?;
        Ok(Arrived::default())
    }
}

fn document(system: &System, message: &Message, at: Timestamp) -> Value {
    let of = |notice: &Notice| {
        let alert = &notice.alert;
        json!({
            "name": alert.name,
            "alertname": alertname(&alert.name),
            "subject": alert.subject,
            "key": alert.key(),
            "severity": alert.severity,
            "summary": alert.summary,
            "fix": alert.fix,
            "runbook": alert.runbook_at(&system.runbook),
            "since": notice.since,
            "again": notice.again,
        })
    };
    let over = |notice: &Notice| {
        let mut document = of(notice);
        document["ended"] = json!(notice.seen);
        document
    };
    json!({
        "version": VERSION,
        "program": concat!("lifeboat ", env!("CARGO_PKG_VERSION")),
        "at": at,
        "system": {"name": system.name, "environment": system.environment, "host": system.host, "page": system.page},
        "firing": message.firing.iter().map(of).collect::<Vec<_>>(),
        "resolved": message.resolved.iter().map(over).collect::<Vec<_>>(),
    })
}
