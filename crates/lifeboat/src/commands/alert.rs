//! `lifeboat alert`: try out whether alerts arrive, list which there are. The agent is who sends them.

use std::time::Duration;

use clap::Subcommand;
use lifeboat_core::alert::{CATALOGUE, alertname};
use lifeboat_core::policy::Operation;
use lifeboat_engine::agent::{self, Tellers};
use lifeboat_engine::notify::{
    Arrived, Heartbeat, HttpTarget, NamedSink, Notifier, NotifyError, PATIENCE, SmtpTarget, System, Target, Tls, Tried, try_out,
};
use lifeboat_engine::secret::SecretSource;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::config::{self, Address, HEARTBEAT, Http, Settings, SinkSettings, Way, parse_days};
use crate::failure::{EXIT_FAILED, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Output, plain, table};
use crate::session;

#[derive(Debug, Subcommand)]
pub(crate) enum Alert {
    /// Send a test alert and its end to each sink, and say whether they arrived
    Test {
        /// Only this one; heartbeat is the dead man's switch, which is asked only where it is named
        #[arg(long, value_name = "NAME")]
        sink: Option<String>,
        /// Wait so long between the alert and its end: an Alertmanager tells nobody of what was over before its group_wait
        #[arg(long, value_name = "SPAN", default_value = "0s")]
        hold: String,
    },
    /// List the kinds of alerts, how serious they are, and where the runbook has them
    List,
}

pub(super) fn run(alert: &Alert, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    match alert {
        Alert::Test { sink, hold } => test(sink.as_deref(), hold, settings, out),
        Alert::List => {
            list(settings, out);
            Ok(0)
        }
    }
}

/// The system, as those who are told know it.
pub(crate) fn system(settings: &Settings) -> System {
    System {
        name: settings.name.value.clone(),
        environment: session::environment(settings),
        host: session::host(),
        runbook: settings.alerts.runbook_url.value.clone(),
        page: None,
    }
}

/// Opens a configured sink. `round` is how often it will be told what holds.
pub(crate) fn open(one: &SinkSettings, round: Duration) -> Result<NamedSink, NotifyError> {
    let name = &one.name;
    let secret = |place: &config::Secret, what: &str| session::secret_source(place, format!("{what} of alert sink {name}"));
    let http = |http: &Http| HttpTarget {
        url: address(&http.url, &format!("url of alert sink {name}")),
        token: http.token.as_ref().map(|token| secret(token, "token")),
        headers: http.headers.iter().map(|(header, value)| (header.clone(), secret(value, &format!("header {header}")))).collect(),
        ca_file: http.ca_file.clone(),
    };
    let target = match (&one.way, one.kind) {
        (Way::Http(of), config::SinkKind::Alertmanager) => Target::Alertmanager(http(of)),
        (Way::Http(of), config::SinkKind::Slack) => Target::Slack(http(of)),
        (Way::Http(of), _) => Target::Webhook(http(of)),
        (Way::PagerDuty { http: of, routing_key }, _) => {
            Target::PagerDuty { http: http(of), routing_key: secret(routing_key, "routing key") }
        }
        (Way::Smtp { host, port, tls, login, from, to, ca_file }, _) => Target::Smtp(SmtpTarget {
            host: host.clone(),
            port: *port,
            tls: match tls {
                config::MailSecurity::StartTls => Tls::StartTls,
                config::MailSecurity::Tls => Tls::Always,
                config::MailSecurity::None => Tls::None,
            },
            login: login.as_ref().map(|(user, password)| (user.clone(), secret(password, "password"))),
            from: from.clone(),
            to: to.clone(),
            ca_file: ca_file.clone(),
        }),
    };
    NamedSink::open(name.clone(), one.min_severity, target, round)
}

/// Everybody that the agent tells.
pub(crate) fn tellers(settings: &Settings) -> Result<Tellers, Failure> {
    let refused = |error: NotifyError| {
        Failure::new(EXIT_FAILED, format!("open the sinks of alerts: {error}"))
            .hint("lifeboat alert test tries them; lifeboat config show prints [alerts]")
    };
    let sinks: Vec<NamedSink> =
        settings.alerts.sinks.value.iter().map(|one| open(one, agent::ROUND)).collect::<Result<_, _>>().map_err(refused)?;
    let names = sinks.iter().map(|sink| sink.name.clone()).collect();
    let notifier = Notifier::open(system(settings), settings.alerting().1, sinks, &settings.agent.state.value.join("alerts"));
    Ok(Tellers { notifier, heartbeat: heartbeat(settings).map_err(refused)?, sinks: names })
}

/// Opens the dead man's switch, if one is configured.
pub(crate) fn heartbeat(settings: &Settings) -> Result<Option<Heartbeat>, NotifyError> {
    let url = settings.alerts.heartbeat_url.as_ref();
    url.map(|url| Heartbeat::open(address(&url.value, "alerts.heartbeat_url"))).transpose()
}

fn address(url: &Address, what: &str) -> SecretSource {
    match url {
        Address::Reference(place) => session::secret_source(place, what),
        Address::Text(text) => {
            let (text, what) = (text.clone(), what.to_owned());
            Box::new(move || {
                text.expose_text().map(|text| Zeroizing::new(text.to_owned())).map_err(|error| format!("read {what}: {error}"))
            })
        }
    }
}

/// How long an alert of the test holds where it has to be said ahead: nobody tells of its end by silence here.
const ROUND: Duration = Duration::from_secs(60);

/// The longest that the test waits between an alert and its end.
const LONGEST_HOLD: Duration = Duration::from_secs(60 * 60);

fn test(sink: Option<&str>, hold: &str, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    gate::allow(settings, None, Question::new(Operation::AlertTest))?;
    let hold = parse_days(hold)?;
    if hold > LONGEST_HOLD {
        return Err(Failure::usage("try out alerts: --hold is more than an hour").hint("lifeboat alert test --help"));
    }
    let chosen: Vec<&SinkSettings> = settings.alerts.sinks.value.iter().filter(|one| sink.is_none_or(|name| one.name == name)).collect();
    let beats = sink == Some(HEARTBEAT);
    if chosen.is_empty() && !(beats && settings.alerts.heartbeat_url.is_some()) {
        let hint = "docs/alerts.md says how [[alerts.sink]] and alerts.heartbeat_url are written; lifeboat config show prints those that are configured";
        let what = match sink {
            Some(name) => format!("none is called {name:?}"),
            None => "none is configured".to_owned(),
        };
        return Err(Failure::usage(format!("try out sinks of alerts: {what}")).hint(hint));
    }
    let (mut sinks, mut tried) = (Vec::new(), Vec::new());
    for one in &chosen {
        match open(one, ROUND.max(hold)) {
            Ok(sink) => sinks.push(sink),
            Err(error) => tried.push(Tried { sink: one.name.clone(), alert: Err(error), resolution: None }),
        }
    }
    tried.extend(try_out(sinks, &system(settings), hold, PATIENCE));
    if beats {
        let beat = heartbeat(settings).and_then(|heartbeat| heartbeat.map_or(Ok(()), |heartbeat| heartbeat.beat()));
        tried.push(Tried { sink: HEARTBEAT.to_owned(), alert: beat.map(|()| Arrived::default()), resolution: None });
    }
    let place = |tried: &Tried| chosen.iter().position(|one| one.name == tried.sink);
    tried.sort_by_key(place);
    let kind = |tried: &Tried| chosen.iter().find(|one| one.name == tried.sink).map_or(HEARTBEAT, |one| one.kind.word());
    let arrived = tried.iter().all(|one| outcome(one).is_ok());
    let document: Vec<Value> = tried.iter().map(|one| shown(one, kind(one))).collect();
    out.result(&json!({"sinks": document, "arrived": arrived}), || {
        let row = |one: &Tried| {
            let said = match outcome(one) {
                Ok(None) => "arrived".to_owned(),
                Ok(Some(except)) => format!("arrived, but {}", plain(&except)),
                Err(error) => format!("failed: {}", plain(&error)),
            };
            vec![one.sink.clone(), kind(one).to_owned(), said]
        };
        table(&["SINK", "TYPE", "TEST"], &tried.iter().map(row).collect::<Vec<_>>())
    });
    if !arrived {
        output::say("hint: lifeboat config show prints [alerts]; docs/alerts.md says what each sink needs");
    }
    Ok(if arrived { 0 } else { EXIT_FAILED })
}

/// Whether the alert and its end arrived; with whom they did not, and why not.
fn outcome(one: &Tried) -> Result<Option<String>, String> {
    let alert = one.alert.as_ref().map_err(ToString::to_string)?;
    let end = one
        .resolution
        .as_ref()
        .map(|end| end.as_ref().map_err(|error| format!("the alert arrived, its end did not: {error}")))
        .transpose()?;
    Ok(alert.except.clone().or_else(|| end.and_then(|end| end.except.clone())))
}

fn shown(one: &Tried, kind: &str) -> Value {
    let of = |answer: &Result<Arrived, NotifyError>| match answer {
        Ok(arrived) => json!({"arrived": true, "except": arrived.except}),
        Err(error) => json!({"arrived": false, "error": error.to_string(), "transient": error.is_transient()}),
    };
    json!({
        "sink": one.sink,
        "type": kind,
        "arrived": outcome(one).is_ok(),
        "alert": of(&one.alert),
        "resolution": one.resolution.as_ref().map(of),
    })
}

fn list(settings: &Settings, out: &Output) {
    let runbook = |name: &str| format!("{}#{name}", settings.alerts.runbook_url.value);
    let (terms, rhythm) = settings.alerting();
    let kinds: Vec<Value> = CATALOGUE
        .iter()
        .map(|kind| {
            json!({
                "name": kind.name,
                "alertname": alertname(kind.name),
                "severity": kind.severity,
                "when": kind.when,
                "runbook": runbook(kind.name),
            })
        })
        .collect();
    let document = json!({
        "terms": {
            "backup_age_seconds": terms.backup_age.as_secs(),
            "key_ahead_seconds": terms.key_ahead.as_secs(),
            "disk_free_percent": terms.disk_free_percent,
        },
        "rhythm": {
            "group_wait_seconds": rhythm.group_wait.as_secs(),
            "repeat_seconds": rhythm.repeat.as_secs(),
            "resolve_after_seconds": rhythm.resolve_after.as_secs(),
        },
        "kinds": kinds,
    });
    out.result(&document, || {
        let row = |kind: &lifeboat_core::alert::Kind| {
            vec![kind.name.to_owned(), kind.severity.word().to_owned(), runbook(kind.name), kind.when.to_owned()]
        };
        table(&["ALERT", "AT MOST", "RUNBOOK", "WHEN"], &CATALOGUE.iter().map(row).collect::<Vec<_>>())
    });
}

#[cfg(test)]
mod tests;
