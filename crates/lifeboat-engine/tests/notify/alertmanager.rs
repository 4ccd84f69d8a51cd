//! A real Alertmanager: what it makes of what it is sent, and what it tells others.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::alert::Severity;
use lifeboat_engine::notify::{NamedSink, Notifier, Target};
use serde_json::{Value, json};

use crate::receiver::{Manner, Receiver};
use crate::{RHYTHM, alert, http_target, setting, system};

/// How long something may take that has to happen: it only ends tests that would hang for ever.
const DEADLINE: Duration = Duration::from_secs(120);

/// A running Alertmanager on loopback, without a cluster. Ends with the value.
struct Alertmanager {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Alertmanager {
    /// One that tells `receiver` of each alert by itself, at once.
    fn start(receiver: &Receiver) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("alertmanager.yml");
        let text = format!(
            "route:\n  receiver: hook\n  group_by: ['...']\n  group_wait: 0s\n  group_interval: 1s\n  repeat_interval: 4h\n\
             receivers:\n  - name: hook\n    webhook_configs:\n      - url: {}\n        send_resolved: true\n",
            receiver.url("/told")
        );
        fs::write(&config, text).unwrap();
        // It takes no port 0: one that was free a moment ago, and another if somebody was faster.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut command = program();
            command.arg(format!("--config.file={}", config.display()));
            command.arg(format!("--storage.path={}", directory.path().join("data").display()));
            command.arg(format!("--web.listen-address=127.0.0.1:{port}")).arg("--cluster.listen-address=");
            let log = fs::File::create(directory.path().join("log")).unwrap();
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("Alertmanager can be run");
            let end = Instant::now() + DEADLINE;
            while child.try_wait().unwrap().is_none() && Instant::now() < end {
                if get(port, "/-/ready").is_some() {
                    return Self { child, port, _directory: directory };
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("Alertmanager does not start: {}", fs::read_to_string(directory.path().join("log")).unwrap_or_default());
    }

    fn sink(&self, round: Duration) -> NamedSink {
        let target = Target::Alertmanager(http_target(&format!("http://127.0.0.1:{}/", self.port)));
        NamedSink::open("am".into(), Severity::Warning, target, round).unwrap()
    }

    /// What holds there now.
    fn alerts(&self) -> Vec<Value> {
        serde_json::from_str(&get(self.port, "/api/v2/alerts").expect("it answers")).unwrap()
    }

    /// The alerts that hold, by name and severity, once they are these.
    #[track_caller]
    fn has(&self, expected: &[(&str, &str)]) -> Vec<Value> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let end = Instant::now() + DEADLINE;
        loop {
            let alerts = self.alerts();
            let mut there: Vec<_> =
                alerts.iter().map(|one| (text(&one["labels"]["alertname"]), text(&one["labels"]["severity"]))).collect();
            there.sort();
            if there.iter().map(|(name, severity)| (name.as_str(), severity.as_str())).eq(expected.iter().copied()) {
                return alerts;
            }
            assert!(Instant::now() < end, "{there:?} instead of {expected:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Alertmanager, wherever its package was unpacked: Debian's looks for its templates below `/usr/share` and nowhere else, so it gets a mount namespace in which
/// they stand there.
fn program() -> Command {
    let binary = setting("LIFEBOAT_TEST_ALERTMANAGER");
    let share = Path::new(&binary).parent().and_then(Path::parent).expect("it is in a bin directory").join("share");
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["sh", "-c", "mount --bind \"$1\" /usr/share && shift && exec \"$@\"", "sh"]).arg(share).arg(binary);
    command
}

/// The body of an answer with status 200.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    // Of version 1.0, so that the answer comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| body.to_owned())
}

/// Waits until the receiver was told this of an alert, by the Alertmanager.
#[track_caller]
fn was_told(receiver: &Receiver, status: &str, alertname: &str) {
    let end = Instant::now() + DEADLINE;
    loop {
        let told = receiver.taken();
        let mut alerts = told.iter().flat_map(|document| document["alerts"].as_array().unwrap());
        if alerts.any(|one| one["status"] == status && one["labels"]["alertname"] == alertname) {
            return;
        }
        assert!(Instant::now() < end, "{status} {alertname} was not told: {told:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_alertmanager_knows_what_holds_and_what_is_over() {
    let receiver = Receiver::start(Manner::takes());
    let server = Alertmanager::start(&receiver);
    let directory = tempfile::tempdir().unwrap();
    let round = Duration::from_secs(60);
    let mut notifier = Notifier::open(system(), RHYTHM, vec![server.sink(round)], directory.path());
    let (behind, disk) = (alert("replica-behind", "offsite", Severity::Warning), alert("disk-space", "/srv", Severity::Warning));
    let began = Timestamp::now();
    let first = notifier.round(&[behind.clone(), disk.clone()], began);
    assert_eq!((first[0].sent, &first[0].error), (2, &None));
    let alerts = server.has(&[("LifeboatDiskSpace", "warning"), ("LifeboatReplicaBehind", "warning")]);
    let one = alerts.iter().find(|one| one["labels"]["alertname"] == "LifeboatReplicaBehind").unwrap();
    assert_eq!(
        one["labels"],
        json!({
            "alertname": "LifeboatReplicaBehind", "severity": "warning", "system": "shop", "environment": "production",
            "host": "db1.example.org", "subject": "offsite",
        })
    );
    assert_eq!(
        one["annotations"],
        json!({
            "summary": "replica-behind is the matter", "description": "lifeboat backup",
            "runbook_url": "https://wiki.example.org/alerts#replica-behind",
        })
    );
    assert_eq!(one["generatorURL"], "https://wiki.example.org/alerts#replica-behind");
    let time = |name: &str| one[name].as_str().unwrap().parse::<Timestamp>().unwrap();
    // It has milliseconds.
    let near = |a: Timestamp, b: Timestamp| a.duration_since(b).abs() <= jiff::SignedDuration::from_millis(1);
    assert!(near(time("startsAt"), began) && near(time("endsAt"), began + 4 * round), "{one:#}");
    was_told(&receiver, "firing", "LifeboatReplicaBehind");
    was_told(&receiver, "firing", "LifeboatDiskSpace");

    // One gets worse: to an Alertmanager that is another alert, and the milder one is over.
    let worse = alert("disk-space", "/srv", Severity::Critical);
    assert_eq!(notifier.round(&[behind.clone(), worse.clone()], Timestamp::now())[0].error, None);
    server.has(&[("LifeboatDiskSpace", "critical"), ("LifeboatReplicaBehind", "warning")]);
    was_told(&receiver, "resolved", "LifeboatDiskSpace");

    // One is over: it is said, and the other one stays.
    assert_eq!(notifier.round(&[worse], Timestamp::now())[0].error, None);
    server.has(&[("LifeboatDiskSpace", "critical")]);
    was_told(&receiver, "resolved", "LifeboatReplicaBehind");
    assert_eq!(notifier.round(&[], Timestamp::now())[0].error, None);
    server.has(&[]);
    assert_eq!(notifier.round(&[], Timestamp::now())[0].sent, 0);
}

#[test]
fn an_alertmanager_that_forgot_everything_knows_it_again_after_a_round() {
    let receiver = Receiver::start(Manner::takes());
    let directory = tempfile::tempdir().unwrap();
    let gap = [alert("wal-gap", "", Severity::Critical)];
    let first = Alertmanager::start(&receiver);
    let mut notifier = Notifier::open(system(), RHYTHM, vec![first.sink(Duration::from_secs(60))], directory.path());
    notifier.round(&gap, Timestamp::now());
    first.has(&[("LifeboatWalGap", "critical")]);
    drop(first);
    assert!(notifier.round(&gap, Timestamp::now())[0].error.as_ref().is_some_and(lifeboat_engine::notify::NotifyError::is_transient));
    // Another one in its place, without its memory.
    let second = Alertmanager::start(&receiver);
    let mut notifier = Notifier::open(system(), RHYTHM, vec![second.sink(Duration::from_secs(60))], directory.path());
    assert_eq!(notifier.round(&gap, Timestamp::now())[0].error, None);
    second.has(&[("LifeboatWalGap", "critical")]);
}

#[test]
fn an_alert_that_nobody_sends_any_more_ends_by_itself() {
    let receiver = Receiver::start(Manner::takes());
    let server = Alertmanager::start(&receiver);
    let directory = tempfile::tempdir().unwrap();
    // Four rounds are the time that it holds: long enough to be seen once.
    let mut notifier = Notifier::open(system(), RHYTHM, vec![server.sink(Duration::from_secs(1))], directory.path());
    notifier.round(&[alert("wal-gap", "", Severity::Critical)], Timestamp::now());
    was_told(&receiver, "firing", "LifeboatWalGap");
    server.has(&[]);
    was_told(&receiver, "resolved", "LifeboatWalGap");
}
