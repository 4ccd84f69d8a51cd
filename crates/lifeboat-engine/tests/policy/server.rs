//! Servers to ask: a real OPA in a process of its own, and ones that answer whatever they are told.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::setting;

/// A real OPA. Ends with the test that started it.
pub(crate) struct Opa {
    pub(crate) url: String,
    child: Child,
}

impl Opa {
    pub(crate) fn start(paths: &[&Path]) -> Self {
        Self::start_with(&[], paths)
    }

    pub(crate) fn start_with(options: &[&str], paths: &[&Path]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy/opa.py");
        let mut command = Command::new(setting("LIFEBOAT_TEST_PYTHON"));
        command.arg("-B").arg(script).arg(setting("LIFEBOAT_TEST_OPA")).args(options).args(paths);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let port: u16 = port.trim().parse().expect("OPA starts");
        let scheme = if options.contains(&"--tls") { "https" } else { "http" };
        Self { url: format!("{scheme}://127.0.0.1:{port}"), child }
    }

    /// The value of a document, without input.
    pub(crate) fn value(&self, path: &str) -> Option<Value> {
        let address = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).unwrap();
        let body = "{\"input\": {}}";
        write!(
            stream,
            "POST /v1/data/{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        serde_json::from_str::<Value>(body).unwrap().get("result").cloned()
    }
}

impl Drop for Opa {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server does with a connection, once it has read the question.
#[derive(Debug, Clone)]
pub(crate) enum Manner {
    /// Sends these bytes and closes.
    Bytes(Vec<u8>),
    /// Sends these bytes one by one, each after a while, for ever.
    Trickle(Vec<u8>),
    /// Says nothing, for ever.
    Silent,
    /// Closes without having read.
    Slam,
}

/// A server that answers everything in one manner.
pub(crate) struct Fake {
    pub(crate) url: String,
    pub(crate) asked: Arc<AtomicUsize>,
    port: u16,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub(crate) fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (asked, ends) = (asked.clone(), ends.clone());
            move || {
                for stream in listener.incoming() {
                    if ends.load(Ordering::Relaxed) {
                        return;
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                    serve(stream.unwrap(), &manner, &ends);
                }
            }
        });
        Self { url: format!("http://127.0.0.1:{port}"), asked, port, ends, thread: Some(thread) }
    }
}

fn serve(mut stream: TcpStream, manner: &Manner, ends: &AtomicBool) {
    if matches!(manner, Manner::Slam) {
        return;
    }
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    // The whole question: closing a socket with unread bytes would reset the connection under the answer.
    let (mut question, mut buffer) = (Vec::new(), [0; 65536]);
    while !whole(&question) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => question.extend_from_slice(&buffer[..count]),
        }
    }
    let wait = || {
        std::thread::sleep(Duration::from_millis(20));
        !ends.load(Ordering::Relaxed)
    };
    match manner {
        Manner::Bytes(bytes) => drop(stream.write_all(bytes)),
        Manner::Trickle(bytes) => {
            for byte in bytes.iter().chain(std::iter::repeat(&b' ')) {
                if stream.write_all(&[*byte]).is_err() || !wait() {
                    return;
                }
            }
        }
        Manner::Silent => while wait() {},
        Manner::Slam => {}
    }
}

fn whole(question: &[u8]) -> bool {
    let text = String::from_utf8_lossy(question);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    body.len() >= length.unwrap_or(0)
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
