//! Prometheus, promtool, node_exporter, and an agent that only hands out metrics: each on loopback, on a port that was free, ended by its process.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lifeboat_engine::metrics::Format;
use serde_json::Value;

use crate::text::Labels;

/// How long something may take that takes a moment: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(90);

fn program(variable: &str, name: &str) -> String {
    std::env::var(variable).ok().filter(|path| !path.is_empty()).unwrap_or_else(|| name.to_owned())
}

/// Runs promtool in `directory`.
pub(crate) fn promtool(directory: &Path, arguments: &[&str], input: &str) -> Output {
    let program = program("LIFEBOAT_TEST_PROMTOOL", "promtool");
    let mut command = Command::new(&program);
    command.args(arguments).current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("run {program}: {error}; scripts/setup brings it"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    // It may have ended without reading all.
    let _ = writer.join().unwrap();
    output
}

/// Runs a script of this directory with Python.
pub(crate) fn python(script: &str, arguments: &[&Path], input: &str) -> Output {
    let python =
        std::env::var("LIFEBOAT_TEST_PYTHON").expect("LIFEBOAT_TEST_PYTHON is not set: run scripts/setup test, and load .tools/env");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metrics").join(script);
    let mut command = Command::new(python);
    command.arg("-B").arg(script).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    output
}

/// Asks until there is an answer that is liked.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(why) if Instant::now() > end => panic!("{what}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The body that is at a path, if it is there.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // HTTP 1.0: the answer ends with the connection, and is not chunked.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| answer.clone())?;
    if head.split(' ').nth(1) == Some("200") { Ok(body.to_owned()) } else { Err(answer) }
}

/// A program with a web address.
struct Server {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts it with its address appended to `listen`, and waits until `ready` is there.
    fn start(command: &dyn Fn() -> Command, listen: &str, directory: &Path, ready: &str) -> Self {
        // Somebody may take the port between our looking and its listening.
        for _ in 0..5 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let log = directory.join(format!("log-{}", address.port()));
            let mut command = command();
            let file = std::fs::File::create(&log).unwrap();
            command.arg(format!("{listen}{address}")).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
            let program = command.get_program().to_owned();
            let child = command.spawn().unwrap_or_else(|error| panic!("run {program:?}: {error}; scripts/setup brings it"));
            let mut server = Self { child, address, log };
            let up = wait_for("a start", || match server.child.try_wait().unwrap() {
                Some(_) => Ok(false),
                None => get(address, ready).map(|_| true),
            });
            if up {
                return server;
            }
            if !server.said().contains("address already in use") {
                panic!("{program:?} ended: {}", server.said());
            }
        }
        panic!("no port stayed free");
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Prometheus that scrapes every second.
pub(crate) struct Prometheus {
    server: Server,
    // Behind the server: it is ended first.
    _directory: tempfile::TempDir,
}

impl Prometheus {
    /// With a job for each (name, address, path), and with these files of rules.
    pub(crate) fn start(jobs: &[(&str, SocketAddr, &str)], rules: &[&Path]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nscrape_configs:\n".to_owned();
        for (name, address, path) in jobs {
            config += &format!("- {{job_name: {name}, metrics_path: {path}, static_configs: [{{targets: ['{address}']}}]}}\n");
        }
        config += "rule_files:\n";
        for path in rules {
            config += &format!("- {}\n", serde_json::to_string(path).unwrap());
        }
        let file = directory.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let command = || {
            let mut command = Command::new(program("LIFEBOAT_TEST_PROMETHEUS", "prometheus"));
            command.arg(format!("--config.file={}", file.display()));
            command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
            command
        };
        let server = Server::start(&command, "--web.listen-address=", directory.path(), "/-/ready");
        Self { server, _directory: directory }
    }

    /// The `data` of an answer of its API.
    pub(crate) fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let escaped = |text: &str| text.bytes().map(|b| format!("%{b:02X}")).collect::<String>();
        let query: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let body = get(self.server.address, &format!("/api/v1/{path}?{}", query.join("&")))?;
        let mut answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        if answer["status"] == "success" { Ok(answer["data"].take()) } else { Err(body) }
    }

    /// The series that a query gives now. Prometheus writes numbers as texts.
    pub(crate) fn query(&self, query: &str) -> Result<Vec<(Labels, f64)>, String> {
        let data = self.ask("query", &[("query", query)])?;
        if data["resultType"] == "scalar" {
            return Ok(vec![(Labels::new(), data["result"][1].as_str().unwrap().parse().unwrap())]);
        }
        let series = data["result"].as_array().ok_or_else(|| data.to_string())?;
        let one = |series: &Value| {
            let labels = serde_json::from_value(series["metric"].clone()).unwrap();
            (labels, series["value"][1].as_str().unwrap().parse().unwrap())
        };
        Ok(series.iter().map(one).collect())
    }
}

/// A node_exporter that reads textfiles and nothing else.
pub(crate) struct NodeExporter(Server);

impl NodeExporter {
    /// Of this directory.
    pub(crate) fn start(textfiles: &Path, logs: &Path) -> Self {
        let command = || {
            let mut command = Command::new(program("LIFEBOAT_TEST_NODE_EXPORTER", "prometheus-node-exporter"));
            command.args(["--collector.disable-defaults", "--collector.textfile", "--web.disable-exporter-metrics"]);
            command.arg(format!("--collector.textfile.directory={}", textfiles.display()));
            command
        };
        Self(Server::start(&command, "--web.listen-address=", logs, "/"))
    }

    /// What it tells.
    pub(crate) fn metrics(&self) -> String {
        get(self.0.address, "/metrics").unwrap()
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }
}

/// Hands out metrics: `/metrics` in the format that is asked for, `/text` as if nobody asked for OpenMetrics.
pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    ends: Arc<AtomicBool>,
    served: Arc<Mutex<Vec<(String, Format)>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn start(text: impl Fn(Format) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (ends, served) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stop, seen) = (ends.clone(), served.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let Some((path, accept)) = head(&stream) else { continue };
                let format = match path.as_str() {
                    "/text" => Format::accepted(&accept.replace("application/openmetrics-text", "application/other")),
                    _ => Format::accepted(&accept),
                };
                let body = text(format);
                seen.lock().unwrap().push((path, format));
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    format.content_type(),
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
            }
        });
        Self { address, ends, served, thread: Some(thread) }
    }

    /// Which formats were handed out at a path.
    pub(crate) fn served(&self, path: &str) -> Vec<Format> {
        self.served.lock().unwrap().iter().filter(|(asked, _)| asked == path).map(|(_, format)| *format).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Path and `Accept` of a request.
fn head(stream: &TcpStream) -> Option<(String, String)> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut accept = String::new();
    loop {
        let line = lines.next()?.ok()?;
        match line.split_once(':') {
            None => return Some((path, accept)),
            Some((name, value)) if name.eq_ignore_ascii_case("accept") => accept = value.trim().to_owned(),
            Some(_) => {}
        }
    }
}
