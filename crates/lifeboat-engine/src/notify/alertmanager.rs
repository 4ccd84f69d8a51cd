//! Alertmanager's API, version 2: <https://prometheus.io/docs/alerting/latest/alerts_api/>.
//!
//! It wants to hear all the time what holds, groups by itself, and takes an alert for over when its end has come: an alert is sent in every round with an end
//! a few rounds ahead, so that it ends there too when nobody sends it any more.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::alert::alertname;
use lifeboat_core::alert::book::{Message, Notice};
use serde_json::{Map, Value, json};

use super::http::Http;
use super::{Arrived, HttpTarget, NotifyError, Sink, System, Telling};

/// An alert holds there for so many rounds after it was last sent: one that is lost, or two, must not end it.
const ROUNDS: i32 = 4;

/// Below the address of an Alertmanager.
const PATH: &str = "api/v2/alerts";

/// An Alertmanager.
pub(super) struct Alertmanager {
    http: Http,
    holds: SignedDuration,
}

impl Alertmanager {
    pub(super) fn open(target: HttpTarget, round: Duration) -> Result<Self, NotifyError> {
        let round = SignedDuration::try_from(round).unwrap_or(SignedDuration::from_hours(24)).min(SignedDuration::from_hours(24));
        Ok(Self { http: Http::open(target)?, holds: round * ROUNDS })
    }
}

impl Sink for Alertmanager {
    fn telling(&self) -> Telling {
        Telling::Everything
    }

    fn send(&self, system: &System, message: &Message, at: Timestamp) -> Result<Arrived, NotifyError> {
        let firing = message.firing.iter().map(|notice| alert(system, notice, at.saturating_add(self.holds).unwrap_or(Timestamp::MAX)));
        // Its end lies behind: that is what says that it is over.
        let resolved = message.resolved.iter().map(|notice| alert(system, notice, notice.seen.min(at)));
        self.http.post(PATH, &firing.chain(resolved).collect(), &[])?;
        Ok(Arrived::default())
    }
}

fn alert(system: &System, notice: &Notice, ends: Timestamp) -> Value {
    let alert = &notice.alert;
    let mut labels = Map::new();
    let pairs = [
        ("alertname", alertname(&alert.name)),
        ("severity", alert.severity.word().to_owned()),
        ("system", system.name.clone()),
        ("environment", system.environment.clone()),
        ("host", system.host.clone()),
        ("subject", alert.subject.clone()),
    ];
    // A label without a value is none there.
    labels.extend(pairs.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name.to_owned(), value.into())));
    let mut document = json!({
        "labels": labels,
        "annotations": {"summary": alert.summary, "description": alert.fix, "runbook_url": alert.runbook_at(&system.runbook)},
        "startsAt": notice.since,
        "endsAt": ends,
    });
    // It takes nothing but a URL.
    if let Some(url) = system.page.clone().or_else(|| system.link(alert)) {
        document["generatorURL"] = url.into();
    }
    document
}

#[cfg(test)]
mod tests {
    use lifeboat_core::alert::{Alert, Severity};

    use super::*;

    #[test]
    fn an_alert_is_as_the_api_wants_it() {
        let system = System {
            name: "shop".into(),
            environment: "production".into(),
            host: "db1".into(),
            runbook: "https://wiki/alerts".into(),
            page: None,
        };
        let subject = String::new();
        let of = Alert {
            name: "wal-gap".into(),
            subject,
            severity: Severity::Critical,
            summary: "a hole".into(),
            fix: "lifeboat backup".into(),
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut notice = Notice { alert: of, since: at(10), seen: at(20), again: false };
        let sent = alert(&system, &notice, at(260));
        assert_eq!(
            sent,
            json!({
                "labels": {"alertname": "LifeboatWalGap", "severity": "critical", "system": "shop", "environment": "production", "host": "db1"},
                "annotations": {"summary": "a hole", "description": "lifeboat backup", "runbook_url": "https://wiki/alerts#wal-gap"},
                "startsAt": "1970-01-01T00:00:10Z",
                "endsAt": "1970-01-01T00:04:20Z",
                "generatorURL": "https://wiki/alerts#wal-gap",
            })
        );
        notice.alert.subject = "offsite".into();
        let sent = alert(&System { runbook: "docs/alerts.md".into(), ..system }, &notice, at(260));
        assert_eq!((&sent["labels"]["subject"], &sent["generatorURL"]), (&json!("offsite"), &Value::Null));
    }
}
