//! Mail, against a real mail server on loopback: aiosmtpd, with and without TLS and a login.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use lifeboat_core::alert::Severity;
use lifeboat_core::alert::book::{Message, Notice};
use lifeboat_engine::notify::{Arrived, NotifyError, SmtpTarget, Target, Tls};
use serde_json::Value;

use crate::{alert, at, fixed, schema, setting, sink, system};

const PASSWORD: &str = "hunter2-password";

/// How long a mail may take to be seen: it only ends tests that would hang for ever.
const DEADLINE: Duration = Duration::from_secs(120);

/// A running mail server. Ends with the value.
struct Server {
    port: u16,
    child: Child,
    mails: Receiver<Value>,
    _input: ChildStdin,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let mut command = Command::new(setting("LIFEBOAT_TEST_PYTHON"));
        command.arg("-B").arg(schema::path("tests/notify/smtpd.py")).args(options);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next().expect("the server starts: run scripts/setup test").unwrap().parse().unwrap();
        let (sender, mails) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { port, mails, _input: child.stdin.take().unwrap(), child }
    }

    fn target(&self) -> SmtpTarget {
        SmtpTarget {
            host: "localhost".into(),
            port: self.port,
            tls: Tls::None,
            login: None,
            from: "Lifeboat <lifeboat@example.org>".into(),
            to: vec!["Ops <ops@example.org>".into()],
            ca_file: None,
        }
    }

    fn mail(&self) -> Value {
        self.mails.recv_timeout(DEADLINE).expect("a mail")
    }

    fn has_no_mail(&self) -> bool {
        self.mails.try_recv().is_err()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate for localhost, and the authority that made it: (certificate with its key, authority).
fn certificate(directory: &Path) -> (PathBuf, PathBuf) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").current_dir(directory).args(arguments).output().expect("openssl can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    openssl(&[&["req", "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"][..], &key].concat());
    openssl(&[&["req", "-new", "-subj", "/CN=localhost", "-keyout", "own.key", "-out", "own.csr"][..], &key].concat());
    std::fs::write(directory.join("own.cnf"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        "own.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "own.cnf",
        "-out",
        "own.crt",
    ]);
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    std::fs::write(directory.join("own.pem"), read("own.crt") + &read("own.key")).unwrap();
    (directory.join("own.pem"), directory.join("ca.pem"))
}

fn headers<'a>(mail: &'a Value, name: &str) -> Vec<&'a str> {
    let all = mail["headers"].as_array().unwrap().iter();
    all.filter(|pair| pair[0].as_str().unwrap().eq_ignore_ascii_case(name)).map(|pair| pair[1].as_str().unwrap()).collect()
}

fn notice(name: &'static str, severity: Severity, again: bool) -> Notice {
    Notice { alert: alert(name, "", severity), since: at(0), seen: at(60), again }
}

fn firing() -> Message {
    Message {
        firing: vec![notice("wal-gap", Severity::Critical, false), notice("wal-lag", Severity::Warning, false)],
        resolved: Vec::new(),
    }
}

#[test]
fn a_mail_says_it_all_and_its_end_belongs_to_it() {
    let server = Server::start(&[]);
    let sink = sink(Target::Smtp(SmtpTarget { to: vec!["Ops <ops@example.org>".into(), "boss@example.org".into()], ..server.target() }));
    assert_eq!(sink.send(&system(), &firing(), at(90)).unwrap(), Arrived::default());
    let first = server.mail();
    assert_eq!((&first["from"], &first["to"]), (&"lifeboat@example.org".into(), &vec!["ops@example.org", "boss@example.org"].into()));
    assert_eq!(first["hello"], "db1.example.org");
    assert_eq!(headers(&first, "subject"), ["[lifeboat shop] critical: wal-gap is the matter (and 1 more)"]);
    assert_eq!(headers(&first, "to"), ["Ops <ops@example.org>, boss@example.org"]);
    assert_eq!(headers(&first, "date"), ["Mon, 10 Jun 2024 06:14:50 +0000"]);
    assert_eq!(headers(&first, "auto-submitted"), ["auto-generated"]);
    let body = first["body"].as_str().unwrap();
    for text in [
        "System shop, environment production, seen from host db1.example.org.",
        "\nCRITICAL: wal-gap\n  wal-gap is the matter\n  since    2024-06-10T06:13:20Z\n  do       lifeboat backup\n",
        "  runbook  https://wiki.example.org/alerts#wal-gap\n",
        "\nWARNING: wal-lag\n",
    ] {
        assert!(body.contains(text), "{text:?} is not in {body}");
    }
    let id = headers(&first, "message-id")[0].to_owned();
    assert!(id.starts_with('<') && id.ends_with("@lifeboat.db1.example.org>"), "{id}");

    let over = Message { firing: Vec::new(), resolved: vec![notice("wal-gap", Severity::Critical, true)] };
    sink.send(&system(), &over, at(200)).unwrap();
    let second = server.mail();
    assert_eq!(headers(&second, "subject"), ["[lifeboat shop] resolved: wal-gap is the matter"]);
    assert_eq!((headers(&second, "in-reply-to"), headers(&second, "references")), (vec![id.as_str()], vec![id.as_str()]));
    assert!(second["body"].as_str().unwrap().contains("\nRESOLVED: wal-gap\n") && headers(&second, "message-id")[0] != id, "{second:#}");
}

#[test]
fn nothing_in_an_alert_breaks_a_mail() {
    let server = Server::start(&[]);
    let sink = sink(Target::Smtp(server.target()));
    let mut evil = notice("wal-gap", Severity::Critical, false);
    evil.alert.subject = "grün\r\nBcc: everybody@example.org".into();
    evil.alert.summary = format!("line\r\n.\r\nQUIT\r\n\u{1b}[2J{}", "ü".repeat(5000));
    evil.alert.fix = "\r\n\r\n.\r\n".into();
    sink.send(&system(), &Message { firing: vec![evil], resolved: Vec::new() }, at(90)).unwrap();
    let mail = server.mail();
    let mut names: Vec<&str> = mail["headers"].as_array().unwrap().iter().map(|pair| pair[0].as_str().unwrap()).collect();
    names.sort_unstable();
    let expected =
        ["Auto-Submitted", "Content-Transfer-Encoding", "Content-Type", "Date", "From", "MIME-Version", "Message-ID", "Subject", "To"];
    assert_eq!(names, expected);
    assert_eq!((&mail["to"], &mail["defects"]), (&vec!["ops@example.org"].into(), &Value::Array(Vec::new())));
    let subject = headers(&mail, "subject")[0];
    assert!(subject.starts_with("[lifeboat shop] critical: line\\u{d}\\u{a}.") && subject.ends_with('…'), "{subject}");
    let body = mail["body"].as_str().unwrap();
    assert!(body.contains("grün\\u{d}\\u{a}Bcc:") && body.contains(&"ü".repeat(5000)) && !body.contains('\u{1b}'), "{body}");
}

#[test]
fn a_login_goes_over_tls_and_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let (own, ca) = certificate(directory.path());
    let certificate = own.to_str().unwrap();
    let login = |password: &str| Some(("lifeboat".to_owned(), fixed(password)));
    for (tls, options) in
        [(Tls::StartTls, &["--certificate", certificate][..]), (Tls::Always, &["--certificate", certificate, "--implicit-tls"])]
    {
        let server = Server::start(&[options, &["--user", "lifeboat", "--password", PASSWORD]].concat());
        let target = || SmtpTarget { tls, ca_file: Some(ca.clone()), login: login(PASSWORD), ..server.target() };
        sink(Target::Smtp(target())).send(&system(), &firing(), at(90)).unwrap();
        let mail = server.mail();
        assert_eq!((&mail["tls"], &mail["login"]), (&true.into(), &true.into()), "{tls:?}");

        let wrong =
            sink(Target::Smtp(SmtpTarget { login: login("wrong-password"), ..target() })).send(&system(), &firing(), at(90)).unwrap_err();
        assert!(matches!(&wrong, NotifyError::Refused(text) if text.contains("535") && !text.contains("wrong-password")), "{wrong}");
        // Nobody vouches for the certificate: not a byte of the login goes there.
        let stranger = sink(Target::Smtp(SmtpTarget { ca_file: None, ..target() })).send(&system(), &firing(), at(90)).unwrap_err();
        assert!(!stranger.to_string().contains(PASSWORD), "{stranger}");
        let other_name = SmtpTarget { host: "127.0.0.1".into(), ..target() };
        sink(Target::Smtp(other_name)).send(&system(), &firing(), at(90)).unwrap_err();
        assert!(server.has_no_mail());
    }
    // A server that does not offer TLS, or somebody in between who hides that it does.
    let plain = Server::start(&[]);
    let target = SmtpTarget { tls: Tls::StartTls, ca_file: Some(ca), login: login(PASSWORD), ..plain.target() };
    let error = sink(Target::Smtp(target)).send(&system(), &firing(), at(90)).unwrap_err();
    assert!(matches!(&error, NotifyError::Refused(text) if text.contains("STARTTLS")), "{error}");
    assert!(plain.has_no_mail());
}

#[test]
fn somebody_who_left_keeps_nobody_else_from_being_told() {
    let server = Server::start(&["--reject", "gone@example.org"]);
    let to = |readers: &[&str]| {
        let to = readers.iter().map(|one| (*one).to_owned()).collect();
        sink(Target::Smtp(SmtpTarget { to, ..server.target() })).send(&system(), &firing(), at(90))
    };
    let arrived = to(&["ops@example.org", "gone@example.org", "boss@example.org"]).unwrap();
    let except = arrived.except.expect("one did not get it");
    assert!(except.starts_with("gone@example.org did not get it: ") && except.contains("550") && !except.contains("ops@"), "{except}");
    let readers = [server.mail(), server.mail()].map(|mail| mail["to"][0].as_str().unwrap().to_owned());
    assert_eq!(readers, ["ops@example.org", "boss@example.org"]);
    assert!(server.has_no_mail());
    let error = to(&["gone@example.org"]).unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("550"), "{error}");
}

#[test]
fn a_server_that_cannot_now_is_asked_again() {
    let server = Server::start(&["--later"]);
    let error = sink(Target::Smtp(server.target())).send(&system(), &firing(), at(90)).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("451"), "{error}");
    let port = server.port;
    drop(server);
    let nobody = SmtpTarget {
        host: "127.0.0.1".into(),
        port,
        tls: Tls::None,
        login: None,
        from: "a@example.org".into(),
        to: vec!["b@example.org".into()],
        ca_file: None,
    };
    let error = sink(Target::Smtp(nobody)).send(&system(), &firing(), at(90)).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("refused"), "{error}");
}
