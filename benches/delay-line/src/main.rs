//! A line on loopback between clients and a server, on which every byte takes its time: what a store is like that is not next door.
//!
//! Every byte arrives a fixed time after it was sent, in order, and as many of them as a window has may be under way in each direction of a
//! connection. With a large one latency is added to every round trip, and bandwidth is not taken away; a small one is what TCP has on a long
//! way, where one connection carries a window in each round trip and no more. Opening a connection costs a round trip as well, as TCP's handshake does. Nothing is opened or
//! changed, so TLS passes. The kernel could do this (`tc qdisc add … netem delay`), but many kernels in clouds and containers are built
//! without it. A program in Rust and not in Python, because it shares its cores with what is measured.
//!
//! It prints the port that it listens on, and ends when its standard input does. With a log it writes down every request that it sees in
//! plain HTTP/1.1, or that it takes for one in TLS: one line of tab-separated fields, in the order of [`Request::print`].

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const USAGE: &str = "Usage: delay-line TARGET-ADDRESS:PORT ONE-WAY-MICROSECONDS WINDOW-BYTES [LOG]";

/// Bytes that are taken off a socket at once.
const READ_BYTES: usize = 256 << 10;

const METHODS: [&[u8]; 5] = [b"GET /", b"PUT /", b"HEAD /", b"POST /", b"DELETE /"];

/// The first byte of a connection that speaks TLS: a handshake record.
const TLS_HANDSHAKE: u8 = 22;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(target), Some(one_way), Some(window)) = (
        arguments.first().and_then(|text| text.parse::<SocketAddr>().ok()),
        arguments.get(1).and_then(|text| text.parse().ok()).map(Duration::from_micros),
        arguments.get(2).and_then(|text| text.parse::<usize>().ok()),
    ) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let log = arguments.get(3).map(File::create).transpose()?;
    let log = log.map(|file| Arc::new(Log { began: Instant::now(), file: Mutex::new(file) }));
    let way = Way { target, one_way, window };
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    println!("{}", listener.local_addr()?.port());
    thread::spawn(move || {
        for (number, client) in listener.incoming().flatten().enumerate() {
            let log = log.clone();
            thread::spawn(move || carry(client, way, number, log));
        }
    });
    // Who started this is gone when its pipe is.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// What every connection is like.
#[derive(Clone, Copy)]
struct Way {
    target: SocketAddr,
    one_way: Duration,
    /// Bytes under way in one direction of one connection.
    window: usize,
}

/// One connection, both ways.
fn carry(client: TcpStream, way: Way, number: usize, log: Option<Arc<Log>>) {
    // Before that the client's side of a real connection would not have been open.
    let open = Instant::now() + 2 * way.one_way;
    let Ok(server) = TcpStream::connect(way.target) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let requests = log.map(|log| Arc::new(Requests { number, log, state: Mutex::default() }));
    let requests_seen = requests.as_deref();
    let upwards = Direction { from: &client, to: &server, not_before: open + way.one_way, way, requests: requests_seen, up: true };
    let downwards = Direction { from: &server, to: &client, not_before: open, way, requests: requests_seen, up: false };
    thread::scope(|scope| {
        scope.spawn(|| upwards.carry());
        downwards.carry();
    });
    if let Some(requests) = requests {
        requests.end();
    }
}

/// One direction of a connection.
struct Direction<'c> {
    from: &'c TcpStream,
    to: &'c TcpStream,
    not_before: Instant,
    way: Way,
    requests: Option<&'c Requests>,
    up: bool,
}

impl Direction<'_> {
    /// Until one end closes its side; that takes its time as well.
    fn carry(&self) {
        let line = Line { window: self.way.window.max(1), ..Line::default() };
        thread::scope(|scope| {
            scope.spawn(|| self.take_in(&line));
            self.give_out(&line);
        });
    }

    fn take_in(&self, line: &Line) {
        let (mut from, mut buffer) = (self.from, vec![0; READ_BYTES]);
        loop {
            // A broken connection is passed on as its end: what came before it arrives.
            let length = from.read(&mut buffer).unwrap_or(0);
            let now = Instant::now();
            if self.up
                && length > 0
                && let Some(requests) = self.requests
            {
                requests.sent(&buffer[..length], now);
            }
            let due = (now + self.way.one_way).max(self.not_before);
            if !line.push(due, buffer[..length].to_vec()) || length == 0 {
                return;
            }
        }
    }

    fn give_out(&self, line: &Line) {
        let mut to = self.to;
        loop {
            let (due, bytes) = line.wait_for_next();
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if bytes.is_empty() {
                let _ = self.to.shutdown(Shutdown::Write);
                return;
            }
            if !self.up
                && let Some(requests) = self.requests
            {
                requests.answered(bytes.len(), Instant::now());
            }
            let sent = to.write_all(&bytes);
            line.arrived(bytes.len());
            if sent.is_err() {
                // Nobody is there who would take the rest.
                line.close();
                let _ = (self.from.shutdown(Shutdown::Both), self.to.shutdown(Shutdown::Both));
                return;
            }
        }
    }
}

/// Bytes under way.
#[derive(Default)]
struct Line {
    window: usize,
    state: Mutex<LineState>,
    changed: Condvar,
}

#[derive(Default)]
struct LineState {
    /// When they are due; none at all: the end.
    queue: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    closed: bool,
}

impl Line {
    /// Whether anybody will take it.
    fn push(&self, due: Instant, bytes: Vec<u8>) -> bool {
        let state = self.state.lock().expect("no panic while held");
        let full = |state: &mut LineState| state.bytes >= self.window && !state.closed;
        let mut state = self.changed.wait_while(state, full).expect("no panic while held");
        state.bytes += bytes.len();
        state.queue.push_back((due, bytes));
        self.changed.notify_all();
        !state.closed
    }

    fn wait_for_next(&self) -> (Instant, Vec<u8>) {
        let state = self.state.lock().expect("no panic while held");
        let mut state = self.changed.wait_while(state, |state| state.queue.is_empty()).expect("no panic while held");
        state.queue.pop_front().expect("waited for it")
    }

    fn arrived(&self, bytes: usize) {
        self.state.lock().expect("no panic while held").bytes -= bytes;
        self.changed.notify_all();
    }

    fn close(&self) {
        self.state.lock().expect("no panic while held").closed = true;
        self.changed.notify_all();
    }
}

/// Where requests are written down.
struct Log {
    began: Instant,
    file: Mutex<File>,
}

/// The requests of one connection, which come one after the other.
struct Requests {
    number: usize,
    log: Arc<Log>,
    state: Mutex<RequestsState>,
}

#[derive(Default)]
struct RequestsState {
    tls: Option<bool>,
    last: Option<Request>,
}

/// One request, as its client sees it.
struct Request {
    /// Its first line, or `TLS`.
    line: String,
    began: Instant,
    sent: Instant,
    answered: Option<(Instant, Instant)>,
    up: usize,
    down: usize,
}

impl Requests {
    fn sent(&self, bytes: &[u8], now: Instant) {
        let mut state = self.state.lock().expect("no panic while held");
        let tls = *state.tls.get_or_insert(bytes.first() == Some(&TLS_HANDSHAKE));
        let begins = if tls {
            // What the client says after it was answered is something new. Handshakes are counted with it.
            state.last.as_ref().is_none_or(|last| last.answered.is_some())
        } else {
            METHODS.iter().any(|method| bytes.starts_with(method))
        };
        if begins {
            let line = if tls {
                "TLS".to_owned()
            } else {
                String::from_utf8_lossy(bytes.split(|byte| *byte == b'\r').next().unwrap_or_default()).replace('\t', " ")
            };
            let request = Request { line, began: now, sent: now, answered: None, up: 0, down: 0 };
            self.print(state.last.replace(request));
        }
        if let Some(last) = &mut state.last {
            (last.sent, last.up) = (now, last.up + bytes.len());
        }
    }

    fn answered(&self, bytes: usize, now: Instant) {
        if let Some(last) = &mut self.state.lock().expect("no panic while held").last {
            let first = last.answered.map_or(now, |(first, _)| first);
            (last.answered, last.down) = (Some((first, now)), last.down + bytes);
        }
    }

    fn end(&self) {
        let last = self.state.lock().expect("no panic while held").last.take();
        self.print(last);
    }

    fn print(&self, request: Option<Request>) {
        let Some(request) = request else { return };
        let mut file = self.log.file.lock().expect("no panic while held");
        let line = request.print(self.number, self.log.began);
        if let Err(error) = file.write_all(line.as_bytes()) {
            eprintln!("delay-line: write the log: {error}");
            std::process::exit(1);
        }
    }
}

impl Request {
    /// Number of the connection; seconds at which the request's first and last bytes were sent, and the answer's first and last ones came;
    /// bytes of both; the request's first line.
    fn print(&self, connection: usize, zero: Instant) -> String {
        let at = |moment: Instant| moment.saturating_duration_since(zero).as_secs_f64();
        let (first, last) = self.answered.map_or((f64::NAN, f64::NAN), |(first, last)| (at(first), at(last)));
        let (began, sent) = (at(self.began), at(self.sent));
        format!("{connection}\t{began:.6}\t{sent:.6}\t{first:.6}\t{last:.6}\t{}\t{}\t{}\n", self.up, self.down, self.line)
    }
}
