//! A proxy on loopback in front of a server that speaks HTTP/1.1: it counts requests, and breaks some as a network or a server would.
//!
//! It knows where a request begins and nothing else; what happens to one is decided by a function of the test.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// What happens to one request.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// It passes, and so does its answer.
    Pass,
    /// The connection breaks after so many bytes of the answer.
    CutAnswer(usize),
    /// The connection is reset after so many bytes of the answer: what was sent and not read yet may be lost as well.
    ResetAnswer(usize),
    /// The server does it, and the answer is lost.
    LoseAnswer,
    /// The server does it, and this is the answer.
    Replace(String),
    /// The answer comes in small pieces, with a pause between the first so many.
    Trickle(usize),
    /// The connection breaks after so many bytes of the request.
    CutRequest(usize),
    /// The server never sees it; this is the answer.
    Answer(String),
    /// It waits until so many are there at the same time.
    Gather(usize),
}

/// An error as S3 says it, of a server that did nothing.
pub(crate) fn refusal(status: &str, code: &str) -> Fate {
    Fate::Answer(error_answer(status, code))
}

/// The same of a server that did it all the same.
pub(crate) fn denial(status: &str, code: &str) -> Fate {
    Fate::Replace(error_answer(status, code))
}

fn error_answer(status: &str, code: &str) -> String {
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>Please go away.</Message></Error>");
    format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// How long a pause of [`Fate::Trickle`] is.
const PAUSE: Duration = Duration::from_millis(20);

/// What comes at once of such an answer.
const TRICKLE_BYTES: usize = 512;

type Decide = Box<dyn Fn(&str, usize) -> Fate + Send + Sync>;

struct Shared {
    target: SocketAddr,
    decide: Decide,
    requests: Mutex<Vec<String>>,
    broken: AtomicUsize,
    stop: AtomicBool,
    gathered: Mutex<usize>,
    together: Condvar,
}

/// A running proxy.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts it in front of `127.0.0.1:target`. `decide` gets the first line of each request and its number, from 0.
    pub(crate) fn start(target: u16, decide: impl Fn(&str, usize) -> Fate + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared {
            target: SocketAddr::from(([127, 0, 0, 1], target)),
            decide: Box::new(decide),
            requests: Mutex::default(),
            broken: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            gathered: Mutex::new(0),
            together: Condvar::new(),
        });
        let for_thread = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if for_thread.stop.load(Ordering::SeqCst) {
                    break;
                }
                let shared = for_thread.clone();
                thread::spawn(move || serve(&shared, client));
            }
        });
        Self { port, shared }
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The first line of every request so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().expect("no panic while held").clone()
    }

    /// How many requests did not pass.
    pub(crate) fn broken(&self) -> usize {
        self.shared.broken.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

const METHODS: [&str; 5] = ["GET /", "PUT /", "HEAD /", "POST /", "DELETE /"];

/// One connection: this thread carries requests, another one answers.
fn serve(shared: &Arc<Shared>, mut client: TcpStream) {
    let Ok(mut server) = TcpStream::connect(shared.target) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let fate = Arc::new(Mutex::new((Fate::Pass, 0usize)));
    let (Ok(answers), Ok(mut back)) = (server.try_clone(), client.try_clone()) else { return };
    let carrier = {
        let fate = fate.clone();
        thread::spawn(move || carry_answers(answers, &mut back, &fate))
    };
    let mut buffer = vec![0; 64 << 10];
    let mut sent = 0;
    while let Ok(length @ 1..) = client.read(&mut buffer) {
        let part = &buffer[..length];
        // Requests are not pipelined, so one begins where a read does.
        let begins = METHODS.iter().any(|method| part.starts_with(method.as_bytes()));
        if begins {
            let line = String::from_utf8_lossy(part.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
            let number = {
                let mut requests = shared.requests.lock().expect("no panic while held");
                requests.push(line.clone());
                requests.len() - 1
            };
            let decided = (shared.decide)(&line, number);
            if !matches!(decided, Fate::Pass | Fate::Gather(_)) {
                shared.broken.fetch_add(1, Ordering::SeqCst);
            }
            sent = 0;
            match &decided {
                Fate::Answer(answer) => {
                    let _ = client.write_all(answer.as_bytes());
                    // What still comes of the request is read, or the answer would be lost with a reset.
                    let _ = client.shutdown(Shutdown::Write);
                    let _ = client.set_read_timeout(Some(Duration::from_secs(5)));
                    while let Ok(1..) = client.read(&mut buffer) {}
                    break;
                }
                Fate::Gather(count) => gather(shared, *count),
                _ => {}
            }
            *fate.lock().expect("no panic while held") = (decided, 0);
        }
        let part = &buffer[..length];
        sent += length;
        if let Fate::CutRequest(most) = fate.lock().expect("no panic while held").0
            && sent > most
        {
            break;
        }
        if server.write_all(part).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
    if !matches!(fate.lock().expect("no panic while held").0, Fate::ResetAnswer(_)) {
        let _ = client.shutdown(Shutdown::Both);
    }
    let _ = carrier.join();
}

fn carry_answers(mut server: TcpStream, client: &mut TcpStream, fate: &Mutex<(Fate, usize)>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = server.read(&mut buffer) {
        let allowed = {
            let mut fate = fate.lock().expect("no panic while held");
            let before = fate.1;
            fate.1 += length;
            match &mut fate.0 {
                Fate::CutAnswer(most) | Fate::ResetAnswer(most) => most.saturating_sub(before).min(length),
                Fate::LoseAnswer => 0,
                Fate::Replace(answer) => {
                    let _ = client.write_all(answer.as_bytes());
                    0
                }
                Fate::Trickle(pauses) => {
                    let (slow, _) = buffer[..length].split_at((*pauses * TRICKLE_BYTES).min(length));
                    for piece in slow.chunks(TRICKLE_BYTES) {
                        *pauses -= 1;
                        if client.write_all(piece).is_err() {
                            break;
                        }
                        thread::sleep(PAUSE);
                    }
                    if client.write_all(&buffer[slow.len()..length]).is_err() {
                        break;
                    }
                    continue;
                }
                _ => length,
            }
        };
        if client.write_all(&buffer[..allowed]).is_err() {
            break;
        }
        if allowed < length {
            if matches!(fate.lock().expect("no panic while held").0, Fate::ResetAnswer(_)) {
                reset(client);
                let _ = server.shutdown(Shutdown::Both);
                return;
            }
            break;
        }
    }
    let _ = (server.shutdown(Shutdown::Both), client.shutdown(Shutdown::Both));
}

/// Has the connection end with RST and not with FIN, when both threads have let go of it.
fn reset(client: &TcpStream) {
    let _ = socket2::SockRef::from(client).set_linger(Some(Duration::ZERO));
    // Ends the other thread's read.
    let _ = client.shutdown(Shutdown::Read);
}

/// Waits until `count` threads are here. They come only if nobody waits for another one's answer.
fn gather(shared: &Shared, count: usize) {
    let mut here = shared.gathered.lock().expect("no panic while held");
    *here += 1;
    shared.together.notify_all();
    let (here, _) = shared.together.wait_timeout_while(here, Duration::from_secs(60), |here| *here < count).expect("no panic while held");
    assert!(*here >= count, "only {} of {count} requests came at the same time", *here);
}
