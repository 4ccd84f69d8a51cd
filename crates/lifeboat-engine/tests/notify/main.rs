//! Telling of alerts, against what is told: a real Alertmanager, a real mail server, and receivers that hold what they are sent against the documentation of the
//! service whose place they take.

mod alertmanager;
mod http;
mod mail;
mod receiver;
#[path = "../support/schema.rs"]
mod schema;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::alert::book::Rhythm;
use lifeboat_core::alert::{Alert, Severity, trial};
use lifeboat_engine::notify::{HttpTarget, NamedSink, Sink, System, Target};
use lifeboat_engine::secret::SecretSource;
use zeroize::Zeroizing;

/// Told at once, repeated after an hour, over at once.
pub(crate) const RHYTHM: Rhythm =
    Rhythm { group_wait: SignedDuration::ZERO, repeat: SignedDuration::from_hours(1), resolve_after: SignedDuration::ZERO };

pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/setup test, and load .tools/env"))
}

pub(crate) fn system() -> System {
    System {
        name: "shop".into(),
        environment: "production".into(),
        host: "db1.example.org".into(),
        runbook: "https://wiki.example.org/alerts".into(),
        page: None,
    }
}

pub(crate) fn alert(name: &'static str, subject: &str, severity: Severity) -> Alert {
    let (summary, fix) = (format!("{name} is the matter"), "lifeboat backup".to_owned());
    Alert { name: name.into(), subject: subject.into(), summary, fix, ..trial(severity) }
}

pub(crate) fn fixed(secret: &str) -> SecretSource {
    let secret = secret.to_owned();
    Box::new(move || Ok(Zeroizing::new(secret.clone())))
}

pub(crate) fn http_target(url: &str) -> HttpTarget {
    HttpTarget { url: fixed(url), token: None, headers: Vec::new(), ca_file: None }
}

pub(crate) fn open(name: &str, target: Target) -> NamedSink {
    NamedSink::open(name.to_owned(), Severity::Warning, target, Duration::from_secs(60)).unwrap()
}

pub(crate) fn sink(target: Target) -> Arc<dyn Sink> {
    open("ops", target).sink
}

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_718_000_000 + seconds).unwrap()
}
