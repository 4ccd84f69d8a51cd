//! PagerDuty's Events API, version 2: <https://developer.pagerduty.com/docs/events-api-v2/trigger-events/>.
//!
//! One event for each alert, told apart by its `dedup_key`: what is sent twice is one alert there. So a message that arrived in part is simply sent again.

use jiff::Timestamp;
use lifeboat_core::alert::book::{Message, Notice};
use lifeboat_core::alert::{self, Severity};
use serde_json::{Value, json};

use super::http::{Http, ask};
use super::words::line;
use super::{Arrived, HttpTarget, NotifyError, Sink, System};
use crate::secret::SecretSource;
use crate::sha256;

/// Where events go, unless the configuration says otherwise (`https://events.eu.pagerduty.com/v2/enqueue` for accounts in the EU).
pub const EVENTS_URL: &str = "https://events.pagerduty.com/v2/enqueue";

/// Characters of a summary: PagerDuty cuts the rest.
const MAX_SUMMARY: usize = 1024;

/// Characters of a `dedup_key`: PagerDuty refuses more.
const MAX_KEY: usize = 255;

/// A service of PagerDuty.
pub(super) struct PagerDuty {
    http: Http,
    routing_key: SecretSource,
}

impl PagerDuty {
    pub(super) fn open(target: HttpTarget, routing_key: SecretSource) -> Result<Self, NotifyError> {
        Ok(Self { http: Http::open(target)?, routing_key })
    }
}

impl Sink for PagerDuty {
    fn send(&self, system: &System, message: &Message, _: Timestamp) -> Result<Arrived, NotifyError> {
        let key = ask(&self.routing_key, "the routing key")?;
        let events = message
            .firing
            .iter()
            .map(|notice| trigger(system, notice))
            .chain(message.resolved.iter().map(|notice| resolve(system, notice)));
        for mut event in events {
            event["routing_key"] = key.trim().into();
            self.http.post("", &event, &[&key])?;
        }
        Ok(Arrived::default())
    }
}

fn trigger(system: &System, notice: &Notice) -> Value {
    let alert = &notice.alert;
    let mut event = json!({
        "event_action": "trigger",
        "dedup_key": dedup_key(system, notice),
        "client": "lifeboat",
        "payload": {
            "summary": line(&format!("[lifeboat {}] {}", system.name, alert.summary), MAX_SUMMARY),
            "severity": match alert.severity {
                Severity::Critical => "critical",
                Severity::Warning => "warning",
            },
            "source": system.host,
            "timestamp": notice.since,
            "component": if alert.subject.is_empty() { "lifeboat" } else { &alert.subject },
            "group": system.name,
            "class": alert.name,
            "custom_details": {
                "summary": alert.summary,
                "fix": alert.fix,
                "environment": system.environment,
                "subject": alert.subject,
                "since": notice.since,
                "runbook": alert.runbook_at(&system.runbook),
            },
        },
    });
    if let Some(url) = system.link(alert) {
        event["links"] = json!([{"href": url, "text": "runbook"}]);
    }
    if let Some(page) = &system.page {
        event["client_url"] = page.as_str().into();
    }
    event
}

fn resolve(system: &System, notice: &Notice) -> Value {
    json!({"event_action": "resolve", "dedup_key": dedup_key(system, notice)})
}

fn dedup_key(system: &System, notice: &Notice) -> String {
    let mut key = format!("lifeboat/{}/{}/{}", system.environment, system.name, notice.alert.key());
    // What each host says of itself is not over when it is over on another one.
    if alert::is_of_each_host(&notice.alert) {
        key += &format!("@{}", system.host);
    }
    if key.chars().count() <= MAX_KEY {
        return key;
    }
    // Still one of its own, and readable at its beginning.
    let digest = sha256::of(key.as_bytes()).to_string();
    key.chars().take(MAX_KEY - 1 - digest.len()).collect::<String>() + "/" + &digest
}

#[cfg(test)]
mod tests {
    use lifeboat_core::alert::{Alert, trial};

    use super::*;

    fn system(host: &str) -> System {
        System { name: "shop".into(), environment: "production".into(), host: host.into(), runbook: "docs/alerts.md".into(), page: None }
    }

    /// Two hosts that look at one repository see the same gap. Each has disks of its own.
    #[test]
    fn what_a_host_says_of_itself_is_no_other_ones() {
        let key = |host: &str, name: &'static str| {
            let alert = Alert { name: name.into(), subject: "x".into(), ..trial(Severity::Warning) };
            dedup_key(&system(host), &Notice { alert, since: Timestamp::UNIX_EPOCH, seen: Timestamp::UNIX_EPOCH, again: false })
        };
        for name in ["no-backup", "wal-gap", "replica-behind", "drill-failed"] {
            assert_eq!(key("db1", name), key("db2", name), "{name}");
        }
        for name in ["disk-space", "backup-failed", "repository-unreachable", "server-unreachable", "status-stale", "task-late"] {
            assert_ne!(key("db1", name), key("db2", name), "{name}");
        }
        assert_eq!(key("db1", "disk-space"), "lifeboat/production/shop/disk-space/x@db1");
    }

    #[test]
    fn an_alert_has_one_key_however_long_its_subject() {
        let system = system("db1");
        let key = |subject: &str| {
            let alert = Alert { subject: subject.to_owned(), ..trial(Severity::Warning) };
            dedup_key(&system, &Notice { alert, since: Timestamp::UNIX_EPOCH, seen: Timestamp::UNIX_EPOCH, again: false })
        };
        assert_eq!((key(""), key("/srv")), ("lifeboat/production/shop/test".into(), "lifeboat/production/shop/test//srv".into()));
        let long = "ü".repeat(300);
        let (one, other) = (key(&long), key(&format!("{long}x")));
        assert!(one != other && one.chars().count() == 255 && other.chars().count() == 255, "{one} {other}");
    }
}
