//! Everything but a good answer is a no, with a code that says which.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use lifeboat_core::policy::{Code, Facts};
use lifeboat_engine::policy::{Decided, Engines, Policy, PolicySettings};
use zeroize::Zeroizing;

use crate::facts::{Dice, facts};
use crate::server::{Fake, Manner, Opa};
use crate::{PATIENCE, directory, embedded, remote};

fn sample() -> Facts {
    Facts { break_glass: None, ..facts(&mut Dice(1)) }
}

#[track_caller]
fn refused(decided: &Decided, code: Code) {
    assert_eq!(decided.code, code, "{decided:?}");
    assert!(!decided.decision.allow && !decided.decision.break_glass && !decided.decision.reasons.is_empty(), "{decided:?}");
}

/// Asks a policy in the embedded evaluator and in OPA.
fn both(policy: &str, timeout: Duration) -> [Decided; 2] {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("policy.rego"), policy).unwrap();
    let opa = Opa::start(&[directory.path()]);
    let ask = |settings: PolicySettings| {
        let policy = Policy::open(&PolicySettings { timeout, ..settings });
        assert_eq!(policy.trouble(), None);
        policy.decide(&sample())
    };
    [ask(embedded(directory.path())), ask(remote(&opa.url))]
}

#[test]
fn what_is_no_decision_is_no_in_both_engines() {
    for (code, rule) in [
        (Code::Denied, r#"decision := {"allow": false, "reasons": ["not today"]}"#),
        (Code::Denied, r#"decision := {"allow": false}"#),
        (Code::Allowed, r#"decision := {"allow": true}"#),
        (Code::Allowed, r#"decision := {"allow": true, "reasons": {"b", "a"}, "obligations": {"tell": "them"}}"#),
        (Code::Undefined, r#"decision := {"allow": true} if input.operation == "nothing""#),
        (Code::Malformed, r#"decision := {"reasons": ["x"]}"#),
        (Code::Malformed, "decision := true"),
        (Code::Malformed, "decision := \"allow\""),
        (Code::Malformed, r#"decision := {"allow": "true"}"#),
        (Code::Malformed, r#"decision := {"allow": 1}"#),
        (Code::Malformed, r#"decision := {"allow": true, "reasons": "because"}"#),
        (Code::Malformed, r#"decision := {"allow": true, "reasons": [1]}"#),
        (Code::Malformed, r#"decision := {"allow": true, "break_glass": "no"}"#),
        (Code::Malformed, r#"decision := {"allow": true, "break_glass": true}"#),
        (Code::Malformed, "decision := []"),
        (Code::Malformed, "decision contains \"allow\""),
        // Two values at once.
        (Code::Error, "decision := {\"allow\": x} if some x in [true, false]"),
    ] {
        for decided in both(&format!("package lifeboat\n{rule}\n"), PATIENCE) {
            if code == Code::Allowed {
                assert!(decided.code == code && decided.decision.allow, "{rule}: {decided:?}");
            } else {
                refused(&decided, code);
            }
        }
    }
    // No value at all: OPA takes it for one, and its answer cannot be told from that of a rule that is not there.
    let [here, there] = both("package lifeboat\ndecision := null\n", PATIENCE);
    refused(&here, Code::Malformed);
    refused(&there, Code::Undefined);
}

#[test]
fn reasons_are_set_in_order_and_cleaned() {
    let rule = "decision := {\"allow\": false, \"reasons\": {\"b\\u001b[31m red\", \"a\\n\\tb\"}}";
    for decided in both(&format!("package lifeboat\n{rule}\n"), PATIENCE) {
        assert_eq!(decided.decision.reasons, ["a b", "b [31m red"]);
    }
}

#[test]
fn a_policy_without_end_is_ended() {
    let limit = Duration::from_millis(300);
    let rule = "package lifeboat\nlist := split(\"1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30\", \",\")\ndecision := {\"allow\": true} if count([1 | some a in list; some b in list; some c in list; some d in list; some e in list; a == \"x\"]) == 0\n";
    let start = Instant::now();
    let [here, there] = both(rule, limit);
    refused(&here, Code::Timeout);
    refused(&there, Code::Timeout);
    assert!(here.took < PATIENCE && there.took < PATIENCE && start.elapsed() < PATIENCE);
}

#[test]
fn rules_that_need_themselves_end() {
    for rule in [
        "decision := {\"allow\": not other}\nother if decision.allow",
        "decision := {\"allow\": count(data.lifeboat) > 0}",
        "decision := {\"allow\": count(data) > 0}",
        "decision := {\"allow\": true, \"reasons\": [text | [_, text] := walk(data)]}",
        "f(x) := f(x)\ndecision := {\"allow\": f(1)}",
        "f(x) := count(other) + x\nother := {f(1)}\ndecision := {\"allow\": f(1)}",
        "f(x) := g(x)\ng(x) := f([x])\ndecision := {\"allow\": f(1)}",
    ] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("policy.rego"), format!("package lifeboat\n{rule}\n")).unwrap();
        let policy = Policy::open(&PolicySettings { timeout: Duration::from_secs(5), ..embedded(directory.path()) });
        let decided = policy.decide(&sample());
        assert!(!decided.decision.allow, "{rule}: {decided:?}");
        assert!(!rule.starts_with("f(") || policy.trouble().is_some() || decided.code == Code::Error, "{rule}: {decided:?}");
    }
}

#[test]
fn mistakes_of_the_moment_are_errors_and_not_undefined() {
    // `not` would make an undefined value true.
    for rule in ["decision := {\"allow\": true} if not to_number(input.host) == 1", "decision := {\"allow\": true} if not 1 / 0 == 1"] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("policy.rego"), format!("package lifeboat\n{rule}\n")).unwrap();
        let facts = Facts { host: "no number".into(), ..sample() };
        let decided = Policy::open(&embedded(directory.path())).decide(&facts);
        refused(&decided, Code::Error);
        assert!(decided.decision.reasons[0].contains("policy.rego:2:"), "{decided:?}");
    }
}

#[test]
fn facts_without_end_are_not_asked_about() {
    let policy = Policy::open(&PolicySettings::default());
    let facts = Facts { host: "x".repeat(1 << 20), ..sample() };
    refused(&policy.decide(&facts), Code::TooLarge);
}

fn http(status: &str, body: &str) -> Manner {
    Manner::Bytes(
        format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes(),
    )
}

const YES: &str = r#"{"result": {"allow": true}}"#;

#[test]
fn a_service_that_answers_anything_else_means_no() {
    let good = Fake::start(http("200 OK", YES));
    assert!(Policy::open(&remote(&good.url)).decide(&sample()).decision.allow);
    let elsewhere = Fake::start(http("200 OK", YES));
    let redirect =
        format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {}/v1/data/lifeboat/decision\r\nContent-Length: 0\r\n\r\n", elsewhere.url);
    let raw = |text: &str| Manner::Bytes(text.as_bytes().to_vec());
    for (code, manner) in [
        (Code::Error, http("500 Internal Server Error", r#"{"code": "internal_error", "message": "eval_conflict_error"}"#)),
        (Code::Error, http("400 Bad Request", r#"{"code": "invalid_parameter", "message": "no"}"#)),
        (Code::Error, http("401 Unauthorized", YES)),
        (Code::Error, http("404 Not Found", YES)),
        (Code::Error, http("500 Internal Server Error", YES)),
        (Code::Error, http("201 Created", YES)),
        (Code::Error, raw("HTTP/1.1 204 No Content\r\n\r\n")),
        (Code::Error, Manner::Bytes(redirect.into_bytes())),
        (Code::Undefined, http("200 OK", "{}")),
        (Code::Undefined, http("200 OK", r#"{"warning": {"code": "api_usage_warning"}}"#)),
        (Code::Malformed, http("200 OK", "")),
        (Code::Malformed, http("200 OK", "true")),
        (Code::Malformed, http("200 OK", "<html>Welcome to the proxy</html>")),
        (Code::Malformed, http("200 OK", r#"{"result": true}"#)),
        (Code::Malformed, http("200 OK", r#"{"result": {"allow": "true"}}"#)),
        (Code::Malformed, http("200 OK", r#"{"result": {"allow": false}, "result": {"allow": true}}"#)),
        (Code::Malformed, http("200 OK", r#"{"result": {"allow": false, "allow": true}}"#)),
        (Code::Malformed, http("200 OK", r#"{"result": {"allow": true}} {"result": {"allow": false}}"#)),
        (Code::Malformed, http("200 OK", r#"{"result": {"allow": true, "break_glass": true}}"#)),
        (Code::Malformed, http("200 OK", &format!("{{\"result\": {{\"allow\": true}}, \"x\": \"{}\"}}", "x".repeat(2 << 20)))),
        // It broke off: what had come until then would have been a yes.
        (Code::Malformed, raw(&format!("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{YES}"))),
        (Code::Malformed, raw(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1b\r\n{YES}\r\n"))),
        (Code::Unreachable, raw("garbage, and not HTTP at all\r\n\r\n")),
        (Code::Unreachable, raw("")),
        (Code::Unreachable, Manner::Slam),
    ] {
        let fake = Fake::start(manner.clone());
        let decided = Policy::open(&remote(&fake.url)).decide(&sample());
        assert!(decided.code == code || matches!(manner, Manner::Slam), "{code:?} {manner:?}: {decided:?}");
        refused(&decided, decided.code);
        assert!(decided.decision.reasons[0].contains(&fake.url) || decided.decision.reasons[0].contains("nobody broke it"), "{decided:?}");
    }
    assert_eq!(elsewhere.asked.load(std::sync::atomic::Ordering::Relaxed), 0, "a redirect is not followed");
}

#[test]
fn a_service_that_is_slow_or_away_means_no() {
    let limit = Duration::from_millis(500);
    let ask = |url: &str| Policy::open(&PolicySettings { timeout: limit, ..remote(url) }).decide(&sample());
    let Manner::Bytes(yes) = http("200 OK", YES) else { unreachable!() };
    for manner in [Manner::Silent, Manner::Trickle(yes), Manner::Trickle(b"HTTP/1.1 200 OK\r\n\r\n".to_vec())] {
        let decided = ask(&Fake::start(manner).url);
        refused(&decided, Code::Timeout);
        assert!(decided.took >= limit && decided.took < PATIENCE);
    }
    // Nobody listens there: the port was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    refused(&ask(&format!("http://127.0.0.1:{port}")), Code::Unreachable);
    // And it works again as soon as the service does, with the same policy.
    let policy = Policy::open(&PolicySettings { timeout: PATIENCE, ..remote(&Fake::start(http("200 OK", YES)).url) });
    refused(&policy.decide(&sample()), Code::Unreachable);
}

#[test]
fn opa_is_asked_as_it_wants_to_be() {
    let directory = directory(&[]);
    let opa = Opa::start_with(&["--token", "hunter2"], &[directory.path()]);
    let mut settings = remote(&format!("{}/", opa.url));
    let without = Policy::open(&settings).decide(&sample());
    refused(&without, Code::Error);
    assert!(without.decision.reasons[0].contains("401"), "{without:?}");
    let facts = Facts { dry_run: true, ..sample() };
    let token = |settings: &mut PolicySettings, token: &str| settings.opa.as_mut().unwrap().token = Some(Zeroizing::new(token.to_owned()));
    token(&mut settings, "hunter2");
    let policy = Policy::open(&settings);
    for _ in 0..3 {
        let decided = policy.decide(&facts);
        assert!(decided.decision.allow && decided.decision_id.is_some(), "{decided:?}");
        assert_eq!((decided.engine.as_str(), decided.policy.as_str()), ("opa 1.20.2", "opa:test=r7"));
    }
    assert!(!format!("{settings:?} {policy:?}").contains("hunter2"));
    token(&mut settings, "wrong");
    refused(&Policy::open(&settings).decide(&facts), Code::Error);
    token(&mut settings, "two\nlines");
    refused(&Policy::open(&settings).decide(&facts), Code::Broken);
    let mut elsewhere = remote(&opa.url);
    elsewhere.opa.as_mut().unwrap().path = "lifeboat/nothing".to_owned();
    let decided = Policy::open(&elsewhere).decide(&facts);
    refused(&decided, Code::Error);
    token(&mut elsewhere, "hunter2");
    refused(&Policy::open(&elsewhere).decide(&facts), Code::Undefined);
}

#[test]
fn opa_is_believed_only_with_its_certificate() {
    let (policy, tls) = (directory(&[]), tempfile::tempdir().unwrap());
    let opa = Opa::start_with(&["--tls", tls.path().to_str().unwrap()], &[policy.path()]);
    let facts = Facts { dry_run: true, ..sample() };
    let read = |name: &str| std::fs::read(tls.path().join(name)).unwrap();
    let ask = |ca: bool, identity: bool| {
        let mut settings = remote(&opa.url);
        let opa = settings.opa.as_mut().unwrap();
        opa.ca = ca.then(|| read("ca.pem"));
        opa.identity = identity.then(|| Zeroizing::new(read("client.pem")));
        Policy::open(&settings).decide(&facts)
    };
    let good = ask(true, true);
    assert!(good.decision.allow, "{good:?}");
    for (ca, identity) in [(true, false), (false, true), (false, false)] {
        let decided = ask(ca, identity);
        assert!(matches!(decided.code, Code::Unreachable | Code::Malformed), "{ca} {identity}: {decided:?}");
        refused(&decided, decided.code);
    }
}

#[test]
fn both_means_both() {
    let directory = tempfile::tempdir().unwrap();
    let ask = |here: bool, there: &Manner| {
        let text = format!("package lifeboat\ndecision := {{\"allow\": {here}, \"reasons\": [\"said here\"]}}\n");
        std::fs::write(directory.path().join("policy.rego"), text).unwrap();
        let fake = Fake::start(there.clone());
        let opa = remote(&fake.url).opa;
        Policy::open(&PolicySettings { engines: Engines::Both, opa, ..embedded(directory.path()) }).decide(&sample())
    };
    let said = |allow: bool| http("200 OK", &format!("{{\"result\": {{\"allow\": {allow}, \"reasons\": [\"said there\"]}}}}"));
    let yes = ask(true, &said(true));
    assert!(yes.decision.allow && yes.engine.starts_with("regorus ") && yes.engine.contains(" + opa"), "{yes:?}");
    for (decided, code, reasons) in [
        (ask(true, &said(false)), Code::Denied, vec!["said there"]),
        (ask(false, &said(true)), Code::Denied, vec!["said here"]),
        (ask(false, &said(false)), Code::Denied, vec!["said here", "said there"]),
    ] {
        refused(&decided, code);
        assert_eq!(decided.decision.reasons, reasons);
    }
    refused(&ask(true, &Manner::Slam), Code::Unreachable);
    refused(&ask(true, &http("200 OK", "{}")), Code::Undefined);
}
