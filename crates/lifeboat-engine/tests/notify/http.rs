//! Sinks that are told by HTTP: what they send, and what becomes of a message that does not arrive.

use std::net::TcpListener;
use std::time::Duration;

use lifeboat_core::alert::book::{Message, Notice};
use lifeboat_core::alert::{Alert, Severity};
use lifeboat_engine::notify::{Delivery, Heartbeat, HttpTarget, Notifier, NotifyError, Target, try_out};
use serde_json::{Value, json};

use crate::receiver::{Manner, Receiver};
use crate::{RHYTHM, alert, at, fixed, http_target, open, schema, sink, system};

fn notice(alert: Alert, again: bool) -> Notice {
    Notice { alert, since: at(0), seen: at(60), again }
}

/// One that began, one that still holds, one that is over; with texts that do what they can.
fn message() -> Message {
    let mut hostile = alert("wal-gap", "x\r\n/<!here>", Severity::Critical);
    hostile.summary = "<!channel> & \"quotes\" \u{1b}[2J ".repeat(200);
    Message {
        firing: vec![notice(hostile, false), notice(alert("replica-behind", "offsite", Severity::Warning), true)],
        resolved: vec![notice(alert("no-backup", "", Severity::Critical), true)],
    }
}

#[test]
fn a_webhook_is_sent_what_the_documentation_says() {
    let receiver = Receiver::start(Manner::takes());
    let target = HttpTarget {
        token: Some(fixed("hunter2-token")),
        headers: vec![("X-Scope".into(), fixed("tenant-1"))],
        ..http_target(&receiver.url("/hooks/lifeboat?a=b"))
    };
    let sink = sink(Target::Webhook(target));
    sink.send(&system(), &message(), at(90)).unwrap();
    sink.send(&system(), &Message { firing: Vec::new(), resolved: message().resolved }, at(120)).unwrap();
    let requests = receiver.requests();
    assert_eq!(requests[0].line, "POST /hooks/lifeboat?a=b HTTP/1.1");
    let header = |name: &str| requests[0].header(name).map(str::to_owned);
    assert_eq!(header("authorization").as_deref(), Some("Bearer hunter2-token"));
    assert_eq!(header("x-scope").as_deref(), Some("tenant-1"));
    assert_eq!(header("content-type").as_deref(), Some("application/json"));
    let mut documents: Vec<Value> = receiver.taken();
    // The page shows one.
    let page = std::fs::read_to_string(schema::path("../../docs/alerts.md")).unwrap();
    let shown = page.split("```json\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("a document");
    documents.push(serde_json::from_str(shown).unwrap());
    schema::check(&schema::path("../../docs/alert-webhook.schema.json"), &documents).unwrap();
    let first = &documents[0];
    assert_eq!(
        (&first["firing"][1]["alertname"], &first["firing"][1]["key"]),
        (&json!("LifeboatReplicaBehind"), &json!("replica-behind/offsite"))
    );
    assert_eq!(first["firing"][1]["runbook"], "https://wiki.example.org/alerts#replica-behind");
    assert_eq!((&first["resolved"][0]["name"], &first["resolved"][0]["ended"]), (&json!("no-backup"), &json!(at(60))));
    // The check would say so.
    let mut strange = first.clone();
    strange["firing"][0]["severity"] = "bad".into();
    assert!(schema::check(&schema::path("../../docs/alert-webhook.schema.json"), &[strange]).is_err());
}

#[test]
fn slack_is_sent_what_its_documentation_allows() {
    let receiver = Receiver::start(Manner::takes());
    let sink = sink(Target::Slack(http_target(&receiver.url("/services/T0/B0/X"))));
    sink.send(&system(), &message(), at(90)).unwrap();
    let many = (0..200).map(|_| message().firing[0].clone()).collect();
    sink.send(&system(), &Message { firing: many, resolved: Vec::new() }, at(90)).unwrap();
    sink.send(&system(), &Message { firing: Vec::new(), resolved: message().resolved }, at(120)).unwrap();
    let documents = receiver.taken();
    schema::check(&schema::path("tests/notify/slack.schema.json"), &documents).unwrap();
    for document in &documents {
        // Nothing of a message is a command to Slack but the link that we make.
        let text = document.to_string();
        assert!(!text.contains("<!") && text.matches('<').count() == text.matches("<https://wiki.example.org/alerts#").count(), "{text}");
    }
    let mut long = documents[0].clone();
    long["attachments"][0]["blocks"][0]["text"]["text"] = "x".repeat(3001).into();
    assert!(schema::check(&schema::path("tests/notify/slack.schema.json"), &[long]).is_err());
}

#[test]
fn pagerduty_is_sent_what_its_documentation_allows() {
    let receiver = Receiver::start(Manner::Answer(202, "{\"status\":\"success\"}".into()));
    let key = "0123456789abcdef0123456789abcdef";
    let sink = sink(Target::PagerDuty { http: http_target(&receiver.url("/v2/enqueue")), routing_key: fixed(key) });
    sink.send(&system(), &message(), at(90)).unwrap();
    let documents = receiver.taken();
    let actions: Vec<&Value> = documents.iter().map(|document| &document["event_action"]).collect();
    assert_eq!(actions, ["trigger", "trigger", "resolve"]);
    schema::check(&schema::path("tests/notify/pagerduty.schema.json"), &documents).unwrap();
    assert_eq!(documents[2]["dedup_key"], "lifeboat/production/shop/no-backup");
    assert_eq!((&documents[1]["payload"]["severity"], &documents[1]["routing_key"]), (&json!("warning"), &json!(key)));
    assert_eq!(documents[1]["links"][0]["href"], "https://wiki.example.org/alerts#replica-behind");
    let mut strange = documents[0].clone();
    strange["payload"]["summary"] = "x".repeat(1025).into();
    assert!(schema::check(&schema::path("tests/notify/pagerduty.schema.json"), &[strange]).is_err());

    // What it says of an event that it does not take is repeated, and the key that stands in it is not.
    receiver.set(Manner::Answer(400, format!("{{\"status\":\"invalid event\",\"message\":\"bad key {key}\"}}")));
    let error = sink.send(&system(), &message(), at(90)).unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("invalid event") && !error.to_string().contains(key), "{error}");
    receiver.set(Manner::Answer(429, String::new()));
    assert!(sink.send(&system(), &message(), at(90)).unwrap_err().is_transient());
}

#[test]
fn no_error_has_a_secret_in_it_and_no_secret_follows_a_redirect() {
    let elsewhere = Receiver::start(Manner::takes());
    let receiver = Receiver::start(Manner::With(307, format!("Location: {}", elsewhere.url("/stolen"))));
    let path = "/services/T00000000/B11111111/secret-secret";
    let target = || HttpTarget { token: Some(fixed("hunter2-token")), ..http_target(&receiver.url(path)) };
    let sink = sink(Target::Webhook(target()));
    let error = sink.send(&system(), &message(), at(90)).unwrap_err();
    assert_eq!(error, NotifyError::Refused("it answered 307: redirects are not followed".into()));
    assert_eq!(elsewhere.requests().len(), 0);
    receiver.set(Manner::Answer(403, format!("token hunter2-token may not post to {path}\r\n\u{1b}[2J")));
    let error = sink.send(&system(), &message(), at(90)).unwrap_err().to_string();
    assert!(
        error.starts_with("it answered 403: token … may not post to") && !error.contains("secret-secret") && !error.contains('\u{1b}'),
        "{error}"
    );
    receiver.set(Manner::Answer(500, "x".repeat(10_000_000)));
    let error = sink.send(&system(), &message(), at(90)).unwrap_err();
    assert!(error.is_transient() && error.to_string().len() < 300, "{error}");
    receiver.set(Manner::Drop);
    let error = sink.send(&system(), &message(), at(90)).unwrap_err();
    assert!(error.is_transient() && !error.to_string().contains("secret-secret"), "{error}");
    // The token goes to an Alertmanager too; an address that was asked for once can be asked again.
    receiver.set(Manner::takes());
    for _ in 0..3 {
        sink.send(&system(), &message(), at(90)).unwrap();
    }
    assert_eq!(receiver.taken().len(), 3);
}

#[test]
fn a_dead_mans_switch_is_asked_for() {
    let receiver = Receiver::start(Manner::takes());
    let heartbeat = Heartbeat::open(fixed(&receiver.url("/ping/hunter2hunter2"))).unwrap();
    heartbeat.beat().unwrap();
    let requests = receiver.requests();
    assert_eq!((requests[0].line.as_str(), requests[0].body.as_str()), ("GET /ping/hunter2hunter2 HTTP/1.1", ""));
    receiver.set(Manner::Answer(404, "no check /ping/hunter2hunter2".into()));
    let error = heartbeat.beat().unwrap_err();
    assert!(!error.is_transient() && !error.to_string().contains("hunter2"), "{error}");
}

/// What each of the keys was told as, in the order of the messages that were taken.
fn told(receiver: &Receiver) -> Vec<(String, &'static str)> {
    let of = |document: &Value, which: &'static str| -> Vec<(String, &'static str)> {
        let all = document[which].as_array().unwrap();
        all.iter().map(|alert| (alert["key"].as_str().unwrap().to_owned(), which)).collect()
    };
    receiver.taken().iter().flat_map(|document| of(document, "firing").into_iter().chain(of(document, "resolved"))).collect()
}

fn delivery<'a>(deliveries: &'a [Delivery], sink: &str) -> &'a Delivery {
    deliveries.iter().find(|one| one.sink == sink).unwrap()
}

#[test]
fn one_that_is_down_keeps_nobody_waiting_and_hears_everything_once_when_it_is_back() {
    let (hangs, fails, drops) =
        (Receiver::start(Manner::Hang), Receiver::start(Manner::Answer(500, String::new())), Receiver::start(Manner::Drop));
    let well = Receiver::start(Manner::takes());
    // Free now; nobody else is likely to be given it before this test asks.
    let closed_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let urls = [
        ("hangs", hangs.url("/")),
        ("fails", fails.url("/")),
        ("drops", drops.url("/")),
        ("refuses", format!("http://127.0.0.1:{closed_port}/")),
        ("well", well.url("/")),
    ];
    let directory = tempfile::tempdir().unwrap();
    let sinks = urls.iter().map(|(name, url)| open(name, Target::Webhook(http_target(url)))).collect();
    let mut notifier = Notifier::open(system(), RHYTHM, sinks, directory.path()).with_patience(Duration::from_secs(2));
    let (gap, lag) = (alert("wal-gap", "", Severity::Critical), alert("wal-lag", "", Severity::Warning));

    let first = notifier.round(std::slice::from_ref(&gap), at(0));
    assert_eq!((delivery(&first, "well").sent, &delivery(&first, "well").error), (1, &None));
    for name in ["hangs", "fails", "drops", "refuses"] {
        let one = delivery(&first, name);
        assert!(one.sent == 0 && one.error.as_ref().is_some_and(NotifyError::is_transient), "{one:?}");
    }
    assert!(matches!(delivery(&first, "hangs").error, Some(NotifyError::Busy { .. })), "{first:?}");
    // One more begins, one comes and goes, while they are down.
    let passing = alert("clock-skew", "", Severity::Warning);
    notifier.round(&[gap.clone(), lag.clone(), passing], at(60));
    notifier.round(&[gap.clone(), lag.clone()], at(120));

    for receiver in [&hangs, &fails, &drops] {
        receiver.set(Manner::takes());
    }
    let refuses = Receiver::start_at(closed_port, Manner::takes());
    let mut now = 180;
    let mut waiting = vec!["hangs", "fails", "drops", "refuses"];
    while !waiting.is_empty() && now < 100_000 {
        let deliveries = notifier.round(&[gap.clone(), lag.clone()], at(now));
        waiting.retain(|name| delivery(&deliveries, name).sent == 0);
        now += 1;
    }
    notifier.round(&[gap, lag], at(now));
    let expected = |names: &[(&str, &'static str)]| names.iter().map(|(name, what)| ((*name).to_owned(), *what)).collect::<Vec<_>>();
    for receiver in [&hangs, &fails, &drops, &refuses] {
        assert_eq!(told(receiver), expected(&[("wal-gap", "firing"), ("wal-lag", "firing"), ("clock-skew", "resolved")]));
    }
    assert_eq!(
        told(&well),
        expected(&[("wal-gap", "firing"), ("clock-skew", "firing"), ("wal-lag", "firing"), ("clock-skew", "resolved")])
    );
}

#[test]
fn a_trial_says_of_each_sink_whether_it_hears() {
    let (well, fails) = (Receiver::start(Manner::takes()), Receiver::start(Manner::Answer(503, "later".into())));
    let sinks =
        vec![open("well", Target::Webhook(http_target(&well.url("/")))), open("fails", Target::Webhook(http_target(&fails.url("/"))))];
    let tried = try_out(sinks, &system(), Duration::ZERO, Duration::from_secs(60));
    assert_eq!(tried[0].sink, "well");
    assert!(tried[0].alert.is_ok() && tried[0].resolution.as_ref().is_some_and(Result::is_ok), "{tried:?}");
    assert_eq!(tried[1].alert, Err(NotifyError::Unreachable("it answered 503: later".into())));
    assert_eq!(tried[1].resolution, None);
    assert_eq!(told(&well), [("test".to_owned(), "firing"), ("test".to_owned(), "resolved")]);
}
