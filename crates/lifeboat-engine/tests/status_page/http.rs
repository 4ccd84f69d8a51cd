//! What the server answers, to whom, and to how many at once.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lifeboat_engine::web::Part;
use serde_json::Value;

use crate::samples::{DRILL, Shown, judged, with_backups};

/// An answer, as it came.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find(|(one, _)| one.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// What comes until the other side hangs up.
fn rest_of(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Whoever is hung up on hard has read what there was.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

fn raw(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = connect(address);
    stream.write_all(request).unwrap();
    let bytes = rest_of(stream);
    let end =
        bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&bytes)));
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: bytes[end + 4..].to_vec() }
}

fn ask_with(address: SocketAddr, method: &str, path: &str, headers: &str) -> Answer {
    raw(address, format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n").as_bytes())
}

fn get(address: SocketAddr, path: &str) -> Answer {
    ask_with(address, "GET", path, "")
}

const EVERYTHING: [&str; 17] = [
    "/",
    "/backups",
    "/drills",
    "/alerts",
    "/healthz",
    "/readyz",
    "/metrics",
    "/icon/good.svg",
    "/icon/gap.svg",
    "/icon/bad.svg",
    "/icon/none.svg",
    "/api/v1/status",
    "/api/v1/backups",
    "/api/v1/drills",
    "/api/v1/alerts",
    "/api/v1/wal",
    "/api/v1/tasks",
];

fn promises(answer: &Answer, path: &str) {
    let policy = answer.header("content-security-policy").unwrap_or_default();
    assert!(
        policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'") && !policy.contains("script-src"),
        "{path}: {policy}"
    );
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{path}: {name}");
    }
    assert!(!answer.head.to_ascii_lowercase().contains("access-control-"), "{path}: nobody else may read this");
    assert!(answer.header("server").is_none());
}

#[test]
fn everything_is_there_and_only_to_be_read() {
    let server = Shown::sample("well").serve();
    let at = server.address();
    for path in EVERYTHING.into_iter().chain([concat!("/drills/", "conductor-drill-20240303T040000Z")]) {
        let answer = get(at, path);
        assert_eq!(answer.status, 200, "{path}");
        promises(&answer, path);
        assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()), "{path}");
        let head = ask_with(at, "HEAD", path, "");
        // What was seen gets older, so numbers may have one digit more.
        let (asked, got) = (head.header("content-length").unwrap().parse::<i64>().unwrap(), answer.body.len() as i64);
        assert!(head.body.is_empty() && head.status == 200 && (asked - got).abs() < 64, "{path}: {head:?}");
        promises(&head, path);
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NONSENSE"] {
            let refused =
                ask_with(at, method, path, "Content-Length: 0\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: GET\r\n");
            assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
            promises(&refused, path);
        }
    }
    server.stop();
}

#[test]
fn what_is_not_there_is_said_to_programs_and_to_people() {
    let server = Shown::sample("well").serve();
    let at = server.address();
    for path in [
        "/nowhere",
        "/favicon.ico",
        "/backups/",
        "//",
        "/%00",
        "/%ff%fe",
        "/drills/%2e%2e%2fetc%2fpasswd",
        "/drills/..%2f..%2f",
        "/drills/x%00y",
        "/drills/",
        "/icon/../x",
        "/icon/%3Cscript%3E",
    ] {
        let answer = get(at, path);
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        assert!(
            answer.text().contains("there is nothing here") && answer.header("content-type") == Some("text/html; charset=utf-8"),
            "{path}"
        );
        promises(&answer, path);
    }
    for path in ["/api/", "/api/v1", "/api/v2/status", "/api/v1/status/", "/api/v1/%3Cscript%3E"] {
        let answer = get(at, path);
        assert_eq!((answer.status, answer.json()["error"]["message"].as_str()), (404, Some("there is nothing here")), "{path}");
        promises(&answer, path);
    }
    for (path, part) in [
        ("/api/v1/backups?limit=x", "limit"),
        ("/api/v1/backups?limit=-1", "limit"),
        ("/api/v1/backups?state=lost", "state"),
        ("/api/v1/backups?stat=degraded", "stat"),
        ("/api/v1/drills?offset=99999999999999999999", "offset"),
        ("/api/v1/alerts?state=healthy", "state"),
    ] {
        let answer = get(at, path);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(answer.status == 400 && message.contains(part) && answer.json()["error"]["hint"].is_string(), "{path}: {message}");
    }
    for path in ["/backups?page=x", "/backups?state=%3Cscript%3E", "/backups?state=%ff", "/?refresh=-1", "/alerts?page=%00"] {
        let answer = get(at, path);
        assert!(answer.status == 400 && !answer.text().contains("<script"), "{path}: {answer:?}");
    }
    // No request that is broken brings the server down.
    for nonsense in
        ["\0\0\0\0", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET / HTTP/1.1\r\nHost : x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut stream = connect(at);
        stream.write_all(nonsense.as_bytes()).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        rest_of(stream);
    }
    assert_eq!(get(at, "/healthz").status, 200);
}

/// A page from elsewhere that has its own name point here gets nothing (DNS rebinding).
#[test]
fn names_that_are_not_ours_get_no_answer() {
    let server = Shown::sample("well").serve();
    let at = server.address();
    let host = |lines: &str| raw(at, format!("GET /api/v1/status HTTP/1.1\r\nConnection: close\r\n{lines}\r\n").as_bytes());
    for ours in ["localhost", "127.0.0.1", "[::1]:9", "status.conductor.example:443"] {
        assert_eq!(host(&format!("Host: {ours}\r\n")).status, 200, "{ours}");
    }
    for lines in [
        "Host: evil.example\r\n",
        "",
        "Host: localhost\r\nHost: evil.example\r\n",
        "Host: \r\n",
        "Host: localhost.evil.example\r\n",
        "Host: \u{fe}\r\n",
    ] {
        let answer = host(lines);
        // hyper refuses some of them before we see them.
        assert!(matches!(answer.status, 400 | 421), "{lines:?}: {answer:?}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("conductor"), "{lines:?}");
    }
    let absolute = raw(at, b"GET http://evil.example/api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(absolute.status, 421);
    let old = raw(at, b"GET /api/v1/status HTTP/1.0\r\n\r\n");
    assert_eq!(old.status, 421);
    promises(&old, "without a name");
}

#[test]
fn health_and_readiness_say_what_the_agent_says() {
    let shown = Shown::new(None);
    let server = shown.serve();
    let at = server.address();
    assert_eq!((get(at, "/healthz").status, get(at, "/readyz").status), (200, 200));
    *shown.ready.lock().unwrap() = Err("nothing was seen yet\u{1b}[2J".into());
    *shown.alive.lock().unwrap() = false;
    let (health, ready) = (get(at, "/healthz"), get(at, "/readyz"));
    assert_eq!((health.status, health.text()), (503, "not alive\n"));
    assert_eq!((ready.status, ready.text()), (503, "not ready: nothing was seen yet\\u{1b}[2J\n"));
    for path in ["status", "backups", "drills", "alerts", "wal", "tasks"] {
        let answer = get(at, &format!("/api/v1/{path}"));
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().starts_with("nothing was seen yet"));
    }
    assert!(get(at, "/").text().contains("Nothing was seen yet"));
}

#[test]
fn metrics_come_in_the_form_that_is_asked_for() {
    let server = Shown::sample("well").serve();
    let at = server.address();
    let plain = get(at, "/metrics");
    assert_eq!((plain.header("content-type"), plain.text()), (Some("text/plain; version=0.0.4; charset=utf-8"), "lifeboat_up 1\n"));
    let open = ask_with(
        at,
        "GET",
        "/metrics",
        "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2\r\n",
    );
    assert_eq!(open.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(open.text().ends_with("# EOF\n") && open.header("vary") == Some("accept"));
}

#[test]
fn long_lists_come_in_pieces() {
    let now = jiff::Timestamp::now();
    let shown = Shown::new(Some(judged(with_backups(10_000, now))));
    shown.agent.lock().unwrap().part = Part::Standby { holder: Some("db2".into()) };
    let server = shown.serve();
    let at = server.address();
    let status = get(at, "/api/v1/status");
    assert!(status.body.len() < 200_000, "{}", status.body.len());
    let status = status.json();
    assert_eq!((status["backups"].as_array().unwrap().len(), status["backups_total"].as_u64()), (100, Some(10_000)));
    assert_eq!(
        (status["alerts"].as_array().unwrap().len() as u64, status["alerts_total"].as_u64().unwrap()),
        (9, 9),
        "one for each that cannot be read"
    );
    assert_eq!(
        (status["agent"]["part"].as_str(), status["agent"]["holder"].as_str(), status["agent"]["stale"].as_bool()),
        (Some("standby"), Some("db2"), Some(false))
    );

    let piece = |query: &str| get(at, &format!("/api/v1/backups?{query}")).json();
    let numbers = |document: &Value| ["total", "matching", "offset", "limit"].map(|name| document[name].as_u64().unwrap());
    let first = piece("");
    assert_eq!((numbers(&first), first["next_offset"].as_u64()), ([10_000, 10_000, 0, 100], Some(100)));
    assert_eq!(first["items"], status["backups"]);
    let last = piece("offset=9950&limit=200");
    assert_eq!((last["items"].as_array().unwrap().len(), &last["next_offset"]), (50, &Value::Null));
    let beyond = piece("offset=18446744073709551615&limit=18446744073709551615");
    assert_eq!(
        (beyond["items"].as_array().unwrap().len(), beyond["limit"].as_u64(), &beyond["next_offset"]),
        (0, Some(1000), &Value::Null)
    );
    assert_eq!(piece("limit=0")["items"].as_array().unwrap().len(), 1);
    let degraded = piece("state=degraded&limit=50&offset=50");
    assert_eq!((numbers(&degraded), degraded["items"].as_array().unwrap().len()), ([10_000, 90, 50, 50], 40));
    assert!(degraded["items"].as_array().unwrap().iter().all(|backup| backup["state"] == "degraded"));
    // Whoever asks on gets each once, in the order of the whole.
    let (mut offset, mut ids) = (Some(0), Vec::new());
    while let Some(at) = offset {
        let piece = piece(&format!("offset={at}&limit=1000"));
        ids.extend(piece["items"].as_array().unwrap().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()));
        offset = piece["next_offset"].as_u64();
    }
    let all: Vec<String> =
        shown.status.lock().unwrap().as_ref().unwrap().observed.backups.iter().flatten().map(|backup| backup.id.clone()).collect();
    assert_eq!(ids, all);
    let drills = get(at, "/api/v1/drills?limit=2&offset=1").json();
    assert_eq!(
        (drills["items"].as_array().unwrap().len(), drills["total"].as_u64(), drills["older"].as_u64(), drills["next_offset"].as_u64()),
        (2, Some(7), Some(2), Some(3))
    );
}

#[test]
fn the_report_of_a_drill_is_only_shown_if_somebody_stands_for_it() {
    let shown = Shown::sample("well");
    let server = shown.serve();
    let at = server.address();
    let page = get(at, &format!("/drills/{DRILL}"));
    assert!(page.status == 200 && page.text().contains("The drill passed"));
    assert!(page.header("content-security-policy").unwrap().ends_with("; sandbox"));
    for (id, status, words) in [
        ("conductor-drill-20230101T040000Z", 404, "there is no such drill"),
        ("conductor-drill-20240101T040000Z", 502, "nobody who is trusted stands for the page of this drill"),
        ("conductor-drill-20240102T040000Z", 502, "the store did not answer &lt;b&gt;"),
    ] {
        let answer = get(at, &format!("/drills/{id}"));
        assert_eq!(answer.status, status);
        assert!(answer.text().contains(words) && answer.text().contains(&format!("lifeboat drill show {id}")), "{answer:?}");
    }
    // While a store hangs, four wait for it, others are told, and everything else goes on.
    let hangs = shown.drills.lock().unwrap();
    let waiting: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = connect(at);
            stream.write_all(format!("GET /drills/{DRILL} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
            stream
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(10);
    while get(at, &format!("/drills/{DRILL}")).status != 503 {
        assert!(Instant::now() < end, "the fifth reader waits with the others");
    }
    assert_eq!(get(at, "/").status, 200);
    drop(hangs);
    for stream in waiting {
        assert!(rest_of(stream).starts_with(b"HTTP/1.1 200"));
    }
}

/// Whoever sends half a request, or none, keeps nobody out.
#[test]
fn slow_clients_hold_nobody_up() {
    let server = Shown::sample("well").serve();
    let at = server.address();
    let mut slow = Vec::new();
    for number in 0..300 {
        let mut stream = connect(at);
        if number % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").unwrap();
        }
        slow.push(stream);
        if number % 50 == 49 {
            let begin = Instant::now();
            assert_eq!(get(at, "/").status, 200);
            // Their patience is ten seconds; nobody waited for it to end.
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        }
    }
    // Those who came first had to go.
    slow[0].set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(matches!(slow[0].read(&mut [0; 9]), Ok(0)) || slow[0].read(&mut [0; 9]).is_err());
}

/// A client that does not read what it asked for is hung up on, and what it holds has an end.
#[test]
fn heads_have_a_limit_and_a_deadline() {
    let server = Shown::sample("well").serve();
    let at = server.address();
    // Whoever is still writing when the answer comes may be hung up on before it is read.
    let mut long = connect(at);
    let _ = long.write_all(format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(60_000)).as_bytes());
    let told = String::from_utf8(rest_of(long)).unwrap();
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 431") || told.starts_with("HTTP/1.1 414"), "{told}");
    let many = ask_with(at, "GET", "/", &"X: y\r\n".repeat(200));
    assert_eq!(many.status, 431);
    let begin = Instant::now();
    let mut slow = connect(at);
    slow.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let told = rest_of(slow);
    assert!(told.is_empty() || told.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&told));
    assert!(begin.elapsed() > Duration::from_secs(5), "it was given its time: {:?}", begin.elapsed());
}

#[test]
fn it_stops_when_it_is_told_to() {
    let shown = Shown::sample("well");
    let server = shown.serve();
    let at = server.address();
    assert!(server.runs());
    let mut idle = connect(at);
    idle.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).unwrap();
    let mut some = [0; 12];
    idle.read_exact(&mut some).unwrap();
    assert_eq!(&some, b"HTTP/1.1 200");
    let begin = Instant::now();
    server.stop();
    assert!(begin.elapsed() < Duration::from_secs(5), "an idle connection is not waited for: {:?}", begin.elapsed());
    rest_of(idle);
    assert!(TcpStream::connect(at).is_err(), "nobody listens any more");
    // A second one can listen there, and one too many is told.
    let again = lifeboat_engine::web::Server::start(at, &[], shown.clone()).unwrap();
    assert_eq!(lifeboat_engine::web::Server::start(at, &[], shown).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    drop(again);
}
