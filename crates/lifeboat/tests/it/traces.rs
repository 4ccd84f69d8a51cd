//! Traces, as a collector gets them that reads them with OpenTelemetry's own types; and collectors that nobody can count on.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::backup::Site;
use crate::cluster::{Postgres, expect_success, temp_dir};
use crate::log::Waiting;
use crate::moto::{python, script};
use crate::program::{Output, Program};

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A running collector.
struct Collector {
    child: Child,
    port: u16,
    place: TempDir,
    scheme: &'static str,
}

impl Collector {
    fn start() -> Self {
        Self::made(&[])
    }

    /// One that speaks TLS; its certificate is in `cert.pem`.
    fn with_tls() -> Self {
        let place = temp_dir();
        let (key, certificate) = (place.path().join("key.pem"), place.path().join("cert.pem"));
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
        openssl.args(["-subj", "/CN=collector", "-addext", "subjectAltName=IP:127.0.0.1"]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"]).arg(&key).arg("-out").arg(&certificate);
        expect_success(&mut openssl);
        let mut collector = Self::made(&[&certificate, &key]);
        collector.scheme = "https";
        fs::copy(certificate, collector.certificate()).unwrap();
        collector
    }

    fn made(arguments: &[&PathBuf]) -> Self {
        let place = temp_dir();
        let mut command = python();
        command.arg(script("otlp_collector.py")).arg(place.path().join("came")).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("Python can be run");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it prints its port");
        let port = line.trim().parse().unwrap_or_else(|_| panic!("the collector did not start: run scripts/setup test ({line:?})"));
        Self { child, port, place, scheme: "http" }
    }

    fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    fn certificate(&self) -> PathBuf {
        self.place.path().join("cert.pem")
    }

    /// Every request that came so far.
    fn requests(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.place.path().join("came")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The one that came, and its spans: that of the command, and those below it.
    #[track_caller]
    fn trace(&self) -> (Value, Value, Vec<Value>) {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:#?}");
        let resources = requests[0]["resources"].as_array().unwrap();
        assert_eq!(resources.len(), 1, "{requests:#?}");
        let mut spans = resources[0]["spans"].as_array().unwrap().clone();
        let whole = spans.remove(0);
        for span in &spans {
            assert_eq!((&span["parent"], &span["trace"]), (&whole["id"], &whole["trace"]), "{spans:#?}");
            assert!(span["start"].as_u64() >= whole["start"].as_u64() && span["end"].as_u64() >= span["start"].as_u64(), "{spans:#?}");
        }
        (requests.remove(0), whole, spans)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A site with something to back up, and what its configuration says of traces.
struct World {
    site: Site,
}

impl World {
    fn new() -> Self {
        let site = Site::new();
        fs::create_dir(site.place("artifacts")).unwrap();
        fs::write(site.place("artifacts/one"), vec![7; 100_000]).unwrap();
        site.program().arg("init").run().success();
        Self { site }
    }

    fn lifeboat(&self, traces: &str) -> Program {
        let file = self.site.configuration(&format!("name = \"plant\"\n[artifacts]\ndirectory = \"artifacts\"\n{traces}"));
        self.site.program().arg("--config").arg(file)
    }

    fn traced(&self, url: &str) -> Program {
        self.lifeboat(&format!("[traces]\nendpoint = \"{url}\"\n"))
    }
}

#[test]
fn a_backup_leaves_a_span_for_itself_and_one_for_each_phase() {
    let collector = Collector::start();
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).start();
    let program = site.backup_of(&cluster, "stream").env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url());
    let output = program.env("LIFEBOAT_NAME", "plant").args(["--log-format", "json"]).run().success();
    let (request, whole, phases) = collector.trace();
    assert_eq!(request["path"], "/v1/traces");
    assert_eq!(request["headers"]["content-type"], "application/x-protobuf");
    let resource = &request["resources"][0];
    assert_eq!(resource["scopes"], serde_json::json!(["lifeboat"]));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for (key, value) in [("service.name", "lifeboat"), ("service.version", env!("CARGO_PKG_VERSION")), ("host.name", &host)] {
        assert_eq!(resource["attributes"][key], value, "{request:#}");
    }
    assert_eq!((&whole["name"], &whole["status"], &whole["parent"]), (&"backup".into(), &"STATUS_CODE_UNSET".into(), &"".into()));
    let known = serde_json::json!({
        "lifeboat.command": "backup", "lifeboat.system": "plant", "lifeboat.backup": output.json()["backup"], "process.exit.code": 0,
    });
    assert_eq!(whole["attributes"], known, "{whole:#}");
    // The log has the same id, and the same phases.
    let lines: Vec<Value> = output.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| line["operation"] == whole["trace"]), "{output}");
    let logged: Vec<&Value> = lines.iter().filter(|line| line.get("phase").is_some()).collect();
    assert!(!logged.is_empty() && logged.len() == phases.len(), "{output}\n{phases:#?}");
    for (line, phase) in logged.iter().zip(&phases) {
        assert_eq!(line["phase"], phase["name"]);
        assert_eq!((&line["files"], &line["bytes"]), (&phase["attributes"]["lifeboat.files"], &phase["attributes"]["lifeboat.bytes"]));
    }
    assert!(phases.iter().any(|phase| phase["attributes"]["lifeboat.bytes"].as_u64() > Some(1 << 20)), "{phases:#?}");
}

#[test]
fn a_failure_is_the_status_of_its_trace_and_the_callers_trace_goes_on() {
    let collector = Collector::start();
    let world = World::new();
    let output = world.traced(&collector.url()).env("TRACEPARENT", TRACEPARENT).args(["show", "latest"]).run().expect_code(1);
    let (_, whole, _) = collector.trace();
    assert_eq!((&whole["name"], &whole["status"]), (&"show".into(), &"STATUS_CODE_ERROR".into()));
    let message = whole["message"].as_str().unwrap();
    assert!(output.stderr.contains(&format!("error: {message}\n")), "{output}");
    assert_eq!(whole["attributes"]["process.exit.code"], 1);
    assert_eq!(whole["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!((&whole["parent"], &whole["parent_is_remote"]), (&"00f067aa0ba902b7".into(), &true.into()));
    // A person is told where to look.
    assert!(output.stderr.lines().last() == Some("trace: 4bf92f3577b34da6a3ce929d0e0e4736"), "{output}");
}

#[test]
fn findings_are_no_failure_and_other_exit_codes_are() {
    let collector = Collector::start();
    let world = World::new();
    world.lifeboat("").arg("backup").run().success();
    let mut blobs = Vec::new();
    crate::failure::walk(&world.site.repository().join("artifacts/blobs"), &mut |path, meta| {
        if meta.is_file() {
            blobs.push(path.to_owned());
        }
    });
    fs::remove_file(&blobs[0]).unwrap();
    world.traced(&collector.url()).args(["verify", "latest"]).run().expect_code(21);
    let (_, whole, phases) = collector.trace();
    assert_eq!((&whole["status"], &whole["message"]), (&"STATUS_CODE_ERROR".into(), &"it ended with exit code 21".into()));
    assert!(!phases.is_empty(), "{whole:#}");
}

#[test]
fn what_a_server_waits_for_and_what_nobody_wants_leaves_no_trace() {
    let collector = Collector::start();
    let world = World::new();
    let traced = || world.traced(&collector.url());
    traced().args(["config", "show"]).run().success();
    let push = traced().args(["wal", "push", "nothing"]).run();
    let fetch = traced().args(["wal", "fetch", "000000010000000000000001", "x"]).run().expect_code(200);
    assert!(push.code != Some(0) && !push.stderr.contains("trace") && !fetch.stderr.contains("trace"), "{push}\n{fetch}");
    // Whoever began the trace decided that it is not recorded.
    traced().env("TRACEPARENT", TRACEPARENT.replace("-01", "-00")).arg("list").run().success();
    // The file's word is the last one, also where it says no.
    let off = world.lifeboat("[traces]\nendpoint = \"\"\n").env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url());
    off.arg("list").run().success();
    let disabled = world.lifeboat("").env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()).env("OTEL_SDK_DISABLED", "true");
    disabled.arg("list").run().success();
    assert!(collector.requests().is_empty(), "{:#?}", collector.requests());
    // And this is how they would have come.
    traced().arg("list").run().success();
    assert_eq!(collector.trace().1["name"], "list");
}

#[test]
fn headers_are_secrets_of_one_collector() {
    let collector = Collector::with_tls();
    let world = World::new();
    fs::write(world.site.place("token"), "Bearer hunter2hunter2\n").unwrap();
    let table = format!(
        "[traces]\nendpoint = \"{}\"\nca_file = \"{}\"\nheaders = {{ authorization = {{ file = \"token\" }} }}\n",
        collector.url(),
        collector.certificate().display()
    );
    let lifeboat = || world.lifeboat(&table).env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20of-another,x-other=1");
    let output = lifeboat().arg("list").run().success();
    let (request, ..) = collector.trace();
    assert_eq!(request["headers"]["authorization"], "Bearer hunter2hunter2");
    assert_eq!(request["headers"].get("x-other"), None);
    let shown = lifeboat().args(["config", "show", "--json"]).run().success();
    for output in [&output, &shown] {
        assert!(!output.stderr.contains("hunter2") && !output.stdout.contains("hunter2"), "{output}");
    }
    assert!(shown.stdout.contains("traces.headers") && shown.stdout.contains("token"), "{shown}");
    // Where nobody says what to believe, nobody is believed, and nothing is sent.
    let output = world.traced(&collector.url()).arg("list").run().success();
    assert!(output.stderr.contains("trace of this is lost") && collector.requests().len() == 1, "{output}");
    // A list of the environment belongs to the place that stands there too.
    let plain = Collector::start();
    let of_environment = world.lifeboat("").env("OTEL_EXPORTER_OTLP_ENDPOINT", plain.url());
    of_environment.env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=plant%201").arg("list").run().success();
    assert_eq!(plain.trace().0["headers"]["x-tenant"], "plant 1");
}

/// A collector on which nobody can count.
fn answering(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let Ok(mut stream) = stream else { return };
                if answer.is_empty() {
                    // Takes everything, and is silent.
                    let _ = stream.read_to_end(&mut Vec::new());
                    return;
                }
                let mut buffer = vec![0; 1 << 16];
                let _ = stream.read(&mut buffer);
                let _ = stream.write_all(answer);
            });
        }
    });
    url
}

/// Before anybody needs a trace that is not there.
#[test]
fn a_collector_is_tried_out_by_doctor() {
    let world = World::new();
    let about = |url: &str| {
        let document = world.traced(url).args(["doctor", "--json"]).run().json();
        let notes = document["notes"].as_array().unwrap().iter().filter(|note| note.as_str().unwrap().contains("takes traces")).count();
        let found = document["findings"].as_array().unwrap().iter().find(|finding| finding["code"] == "no-traces");
        (notes, found.map(|finding| finding["problem"].as_str().unwrap().to_owned()))
    };
    let collector = Collector::start();
    assert_eq!(about(&collector.url()), (1, None));
    let requests = collector.requests();
    assert_eq!(requests.len(), 2, "what it was tried out with, and the trace of doctor itself: {requests:#?}");
    let spans =
        |request: &Value| request["resources"].as_array().unwrap().iter().map(|one| one["spans"].as_array().unwrap().len()).sum::<usize>();
    assert_eq!((spans(&requests[0]), spans(&requests[1]) > 0), (0, true));
    let denied = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (notes, problem) = about(&answering(denied));
    assert!(notes == 0 && problem.as_ref().unwrap().contains("401"), "{problem:?}");
    assert!(about("http://127.0.0.1:1").1.unwrap().contains("refused"));
}

#[test]
fn a_collector_that_fails_changes_nothing_but_is_told() {
    let world = World::new();
    let run = |program: Program, words: &[&str]| program.args(words).args(["--json", "--log-format", "text"]).run();
    // Without the times, which differ from run to run.
    let same = |output: &Output| {
        let mut document = output.json();
        document.as_object_mut().unwrap().remove("error").map(|mut error| {
            error.as_object_mut().unwrap().remove("operation");
            error
        })
    };
    let (good, bad) = (["list"], ["show", "latest"]);
    let (expected, failed) = (run(world.lifeboat(""), &good), run(world.lifeboat(""), &bad));
    assert_eq!((expected.code, failed.code), (Some(0), Some(1)));
    let endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let moved = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let broken = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    for (url, word) in [
        (answering(b""), "answer"),
        (answering(broken), "500"),
        (answering(moved), "307"),
        (answering(endless), ""),
        (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), ""),
        ("http://127.0.0.1:1".to_owned(), "refused"),
        ("http://no-such-host.invalid:4318".to_owned(), ""),
    ] {
        let begun = Instant::now();
        let output = run(world.traced(&url), &good).expect_code(0);
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        assert_eq!(output.stdout, expected.stdout, "{output}");
        let warnings: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("warning: the trace of this is lost: ")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(word), "{word}\n{output}");
        let output = run(world.traced(&url), &bad).expect_code(1);
        assert_eq!(same(&output), same(&failed), "{output}");
    }
    // Nor does what others set in the environment.
    let grpc = world.lifeboat("").env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317").env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let output = run(grpc, &good).expect_code(0);
    assert!(output.stdout == expected.stdout && output.stderr.contains("OTEL_EXPORTER_OTLP_PROTOCOL"), "{output}");
    // A program that never gives the header away, as long as anybody looks.
    let pipe = world.site.place("pipe");
    expect_success(std::process::Command::new("mkfifo").arg(&pipe));
    let header = format!("headers = {{ a = {{ command = [\"cat\", \"{}\"] }} }}", pipe.display());
    let table = format!("[traces]\nendpoint = \"http://127.0.0.1:1\"\n{header}\n");
    let mut child = world.lifeboat(&table).arg("list").spawn();
    let writer = fs::File::options().write(true).open(&pipe).unwrap();
    assert!(child.wait().unwrap().success());
    let stderr = fs::read_to_string(world.site.place("stderr")).unwrap();
    assert!(stderr.contains("trace of this is lost"), "{stderr}");
    drop(writer);
}

#[test]
fn an_interrupted_command_leaves_its_trace() {
    let collector = Collector::start();
    let world = World::new();
    let (waiting, table) = Waiting::at(&world.site);
    let program = world.lifeboat(&format!("{table}[traces]\nendpoint = \"{}\"\n", collector.url())).arg("backup");
    assert_eq!(waiting.interrupt(program), Some(130));
    let (_, whole, _) = collector.trace();
    assert_eq!((&whole["name"], &whole["message"]), (&"backup".into(), &"interrupted".into()));
    assert_eq!(whole["attributes"]["process.exit.code"], 130);
}
