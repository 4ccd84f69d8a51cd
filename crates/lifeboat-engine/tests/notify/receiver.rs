//! A small HTTP server that takes what it is sent, or does not, as it is told to.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// What it does with a request, once it has read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Answers with this status and text.
    Answer(u16, String),
    /// The same, with a header.
    With(u16, String),
    /// Says nothing until its manner is another one; then it closes.
    Hang,
    /// Closes without an answer.
    Drop,
}

impl Manner {
    pub(crate) fn takes() -> Self {
        Self::Answer(200, "ok".into())
    }
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) head: String,
    pub(crate) body: String,
    /// It was answered with a status of the 200s.
    pub(crate) taken: bool,
}

impl Request {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
    }
}

struct Shared {
    manner: Mutex<Manner>,
    requests: Mutex<Vec<Request>>,
    ends: AtomicBool,
}

/// The server. Ends with the value.
pub(crate) struct Receiver {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

impl Receiver {
    pub(crate) fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::serve(listener, manner)
    }

    /// On a port of its own, which was free a moment ago.
    pub(crate) fn start_at(port: u16, manner: Manner) -> Self {
        Self::serve(TcpListener::bind(("127.0.0.1", port)).unwrap(), manner)
    }

    fn serve(listener: TcpListener, manner: Manner) -> Self {
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { manner: Mutex::new(manner), requests: Mutex::default(), ends: AtomicBool::new(false) });
        let all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if all.ends.load(Ordering::Relaxed) {
                    return;
                }
                let all = Arc::clone(&all);
                std::thread::spawn(move || stream.map(|stream| all.answer(stream)));
            }
        });
        Self { port, shared }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn set(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Bodies of the requests that it took.
    pub(crate) fn taken(&self) -> Vec<Value> {
        self.requests().iter().filter(|request| request.taken).map(Request::json).collect()
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) {
        let Some((head, body)) = read(&mut stream) else { return };
        let manner = self.manner.lock().unwrap().clone();
        let taken = matches!(&manner, Manner::Answer(status, _) if (200..300).contains(status));
        let line = head.lines().next().unwrap_or_default().to_owned();
        self.requests.lock().unwrap().push(Request { line, head, body, taken });
        match manner {
            Manner::Answer(status, text) => {
                let _ = write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
            }
            Manner::With(status, header) => {
                let _ = write!(stream, "HTTP/1.1 {status} X\r\n{header}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
            Manner::Hang => {
                while *self.manner.lock().unwrap() == Manner::Hang && !self.ends.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            Manner::Drop => {}
        }
    }
}

fn read(stream: &mut TcpStream) -> Option<(String, String)> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 65_536]);
    loop {
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some((head.to_owned(), body.to_owned()));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}
