//! The part of Google Cloud Storage that the store uses, in this process, on loopback: written from Google's documentation, because no
//! emulator that can be installed heeds `ifGenerationMatch` in resumable uploads.
//!
//! Reading and listing are the XML API's, writing the JSON API's. What is conditional is decided under one lock, at the moment at which
//! an object would appear; checksums are compared before that; of an upload whose connection breaks, whole pieces of 256 KiB are kept.
//! Used by the tests of several crates.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

/// May do everything.
pub(crate) const TOKEN: &str = "a-token-of-the-tests";
/// May read and list.
pub(crate) const READER_TOKEN: &str = "another-token-of-the-tests";

/// What somebody else vouches with, for who may do everything.
pub(crate) const SUBJECT_TOKEN: &str = "a-token-of-somebody-else";

/// What an upload is kept in.
const PIECE_BYTES: usize = 256 << 10;

/// The longest page of a listing.
const PAGE: usize = 1000;

struct Object {
    bytes: Vec<u8>,
    generation: u64,
    modified: String,
    metadata: BTreeMap<String, String>,
}

struct Session {
    bucket: String,
    key: String,
    about: Value,
    only_if_absent: bool,
    bytes: Vec<u8>,
    /// The answer, once it is over; it is given again to whoever asks again.
    done: Option<(u16, Value)>,
}

#[derive(Default)]
struct State {
    buckets: BTreeMap<String, BTreeMap<String, Object>>,
    sessions: HashMap<u64, Session>,
    last: u64,
}

/// A running server.
pub(crate) struct Gcs {
    port: u16,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

impl Gcs {
    /// Starts it, with these buckets.
    pub(crate) fn start(buckets: &[&str]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports");
        let port = listener.local_addr().expect("bound").port();
        let (state, stop) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        for bucket in buckets {
            state.lock().expect("no panic while held").buckets.insert((*bucket).to_owned(), BTreeMap::new());
        }
        let (for_thread, stopped) = (state.clone(), stop.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let state = for_thread.clone();
                thread::spawn(move || {
                    // A connection that breaks is the test's wish.
                    let _ = serve(&state, &stream);
                });
            }
        });
        Self { port, state, stop }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Names and generations of the objects of a bucket.
    pub(crate) fn objects(&self, bucket: &str) -> Vec<(String, u64)> {
        let state = self.state.lock().expect("no panic while held");
        state.buckets[bucket].iter().map(|(key, object)| (key.clone(), object.generation)).collect()
    }

    /// How many objects were ever created, and uploads that are neither finished nor given up.
    pub(crate) fn counts(&self) -> (u64, usize) {
        let state = self.state.lock().expect("no panic while held");
        (state.last, state.sessions.values().filter(|session| session.done.is_none()).count())
    }
}

impl Drop for Gcs {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

struct Request {
    method: String,
    /// Decoded segments of the path; an object's name, which may hold `/`, is the rest of it.
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    /// Whether the connection broke before the body was there.
    broken: bool,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn json(status: u16, value: &Value) -> Self {
        Self { body: value.to_string().into_bytes(), ..Self::new(status) }.with("content-type", "application/json")
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

fn refusal(status: u16, reason: &str, message: &str) -> Value {
    json!({"error": {"code": status, "message": message, "errors": [{"domain": "global", "reason": reason, "message": message}]}})
}

fn json_refusal(status: u16, reason: &str, message: &str) -> Answer {
    Answer::json(status, &refusal(status, reason, message))
}

fn xml_refusal(status: u16, code: &str, message: &str) -> Answer {
    let body = format!("<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    Answer { body: body.into_bytes(), ..Answer::new(status) }.with("content-type", "application/xml")
}

fn serve(state: &Mutex<State>, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader)? {
        let head = request.method == "HEAD";
        let broken = request.broken;
        let mut answer = answer(state, request);
        if broken {
            break;
        }
        let mut text = format!("HTTP/1.1 {} x\r\ndate: {}\r\n", answer.status, now());
        for (name, value) in &answer.headers {
            let _ = write!(text, "{name}: {value}\r\n");
        }
        if !answer.headers.iter().any(|(name, _)| name == "content-length") {
            let _ = write!(text, "content-length: {}\r\n", answer.body.len());
        }
        text.push_str("\r\n");
        if head {
            answer.body.clear();
        }
        let mut out = stream;
        out.write_all(&[text.as_bytes(), &answer.body].concat())?;
    }
    Ok(())
}

fn now() -> String {
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&jiff::Timestamp::now()).expect("a year of four digits")
}

fn read(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    // A reset is as good as an end.
    let _ = reader.take(length).read_to_end(&mut body);
    let broken = (body.len() as u64) < length;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = pairs.map(|(name, value)| (decoded(name, true), decoded(value, true))).collect();
    Ok(Some(Request { method, path: decoded(path, false), query, headers, body, broken }))
}

fn decoded(text: &str, plus: bool) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, more)) = rest.split_first() {
        let hex = (*first == b'%').then(|| std::str::from_utf8(more.get(..2)?).ok()).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(if plus && *first == b'+' { b' ' } else { *first });
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn answer(state: &Mutex<State>, request: Request) -> Answer {
    let upload = request.query.get("upload_id").and_then(|id| id.parse::<u64>().ok());
    if request.broken && upload.is_none() {
        return Answer::new(400);
    }
    if let Some(id) = upload {
        return resume(state, id, &request);
    }
    // Those who exchange tokens are elsewhere than the store; here they are one.
    if request.path == "/exchange" {
        let form: BTreeMap<String, String> = String::from_utf8_lossy(&request.body)
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (decoded(name, true), decoded(value, true)))
            .collect();
        let known = form.get("subject_token").is_some_and(|token| token == SUBJECT_TOKEN)
            && form.get("grant_type").is_some_and(|kind| kind == "urn:ietf:params:oauth:grant-type:token-exchange");
        return match known {
            true => Answer::json(200, &json!({"access_token": "exchanged", "expires_in": 3600, "token_type": "Bearer"})),
            false => Answer::json(400, &json!({"error": "invalid_grant", "error_description": form.get("subject_token")})),
        };
    }
    if request.path == "/impersonate" {
        let known = request.headers.get("authorization").is_some_and(|value| value == "Bearer exchanged");
        return match known {
            true => Answer::json(200, &json!({"accessToken": TOKEN, "expireTime": "2099-01-01T00:00:00Z"})),
            false => json_refusal(401, "authError", "not so"),
        };
    }
    let json = request.path.starts_with("/storage/v1/") || request.path.starts_with("/upload/storage/v1/");
    let token = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let allowed = token == Some(TOKEN) || (token == Some(READER_TOKEN) && matches!(request.method.as_str(), "GET" | "HEAD"));
    if !allowed {
        let (status, code, reason) = match token {
            Some(READER_TOKEN) => (403, "AccessDenied", "forbidden"),
            _ => (401, "AuthenticationRequired", "authError"),
        };
        let message = format!("not with {}", token.unwrap_or("nothing"));
        return if json { json_refusal(status, reason, &message) } else { xml_refusal(status, code, &message) };
    }
    if let Some(rest) = request.path.strip_prefix("/upload/storage/v1/b/") {
        let bucket = rest.strip_suffix("/o").unwrap_or(rest).to_owned();
        return begin(state, &bucket, &request);
    }
    if let Some(rest) = request.path.strip_prefix("/storage/v1/b/") {
        let (bucket, key) = rest.split_once("/o/").unwrap_or((rest, ""));
        let mut state = state.lock().expect("no panic while held");
        let removed = state.buckets.get_mut(bucket).and_then(|objects| objects.remove(key));
        return if removed.is_some() { Answer::new(204) } else { json_refusal(404, "notFound", "No such object") };
    }
    if request.path == "/storage/v1/b" {
        let name = serde_json::from_slice::<Value>(&request.body).ok().and_then(|about| about["name"].as_str().map(str::to_owned));
        let mut state = state.lock().expect("no panic while held");
        let name = name.unwrap_or_default();
        if state.buckets.contains_key(&name) {
            return json_refusal(409, "conflict", "You already own this bucket.");
        }
        state.buckets.insert(name.clone(), BTreeMap::new());
        return Answer::json(200, &json!({"name": name}));
    }
    let (bucket, key) = request.path[1..].split_once('/').unwrap_or((&request.path[1..], ""));
    let state = state.lock().expect("no panic while held");
    let Some(objects) = state.buckets.get(bucket) else {
        return xml_refusal(404, "NoSuchBucket", "The specified bucket does not exist.");
    };
    if key.is_empty() { list(objects, &request.query) } else { get(objects, key, &request) }
}

fn get(objects: &BTreeMap<String, Object>, key: &str, request: &Request) -> Answer {
    let Some(object) = objects.get(key) else { return xml_refusal(404, "NoSuchKey", "The specified key does not exist.") };
    let tag = format!("\"{}\"", object.generation);
    if request.headers.get("if-match").is_some_and(|wanted| *wanted != tag) {
        return xml_refusal(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.");
    }
    let length = object.bytes.len();
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")).and_then(|range| range.split_once('-'));
    let (status, from, to) = match range {
        None => (200, 0, length),
        Some((from, to)) => {
            let from: usize = from.parse().unwrap_or(0);
            let to = to.parse::<usize>().map_or(length, |last| (last + 1).min(length));
            if from >= length {
                let refused = xml_refusal(416, "InvalidRange", "The requested range cannot be satisfied.");
                return refused.with("content-range", format!("bytes */{length}"));
            }
            (206, from, to)
        }
    };
    let mut answer = Answer { body: object.bytes[from..to].to_vec(), ..Answer::new(status) }
        .with("content-type", "application/octet-stream")
        .with("content-length", (to - from).to_string())
        .with("etag", tag)
        .with("last-modified", &object.modified)
        .with("x-goog-generation", object.generation.to_string())
        .with("x-goog-hash", format!("crc32c={}", checksum(&object.bytes)));
    if status == 206 {
        answer = answer.with("content-range", format!("bytes {from}-{}/{length}", to - 1));
    }
    for (name, value) in &object.metadata {
        answer = answer.with(&format!("x-goog-meta-{name}"), value);
    }
    answer
}

fn list(objects: &BTreeMap<String, Object>, query: &BTreeMap<String, String>) -> Answer {
    let text = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let (prefix, delimiter) = (text("prefix"), text("delimiter"));
    let after = text("continuation-token").max(text("start-after"));
    let most = query.get("max-keys").and_then(|most| most.parse().ok()).unwrap_or(PAGE).min(PAGE);
    let (mut found, mut last, mut more) = (String::new(), String::new(), false);
    let mut count = 0;
    for (key, object) in objects {
        let Some(rest) = key.strip_prefix(prefix) else { continue };
        let below = if delimiter.is_empty() { None } else { rest.split_once(delimiter) };
        let name = below.map_or_else(|| key.clone(), |(segment, _)| format!("{prefix}{segment}{delimiter}"));
        if name.as_str() <= after || name == last {
            continue;
        }
        if count == most {
            more = true;
            break;
        }
        count += 1;
        let shown = name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        if below.is_some() {
            let _ = write!(found, "<CommonPrefixes><Prefix>{shown}</Prefix></CommonPrefixes>");
        } else {
            let _ = write!(
                found,
                "<Contents><Key>{shown}</Key><Generation>{0}</Generation><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"{0}\"</ETag><Size>{1}</Size></Contents>",
                object.generation,
                object.bytes.len()
            );
        }
        last = name;
    }
    let next = if more {
        let token = last.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        format!("<NextContinuationToken>{token}</NextContinuationToken>")
    } else {
        String::new()
    };
    let body = format!(
        "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult><IsTruncated>{more}</IsTruncated>{next}{found}</ListBucketResult>"
    );
    Answer { body: body.into_bytes(), ..Answer::new(200) }.with("content-type", "application/xml")
}

fn begin(state: &Mutex<State>, bucket: &str, request: &Request) -> Answer {
    let key = request.query.get("name").cloned().unwrap_or_default();
    let only_if_absent = request.query.get("ifGenerationMatch").is_some_and(|generation| generation == "0");
    let mut state = state.lock().expect("no panic while held");
    if !state.buckets.contains_key(bucket) {
        return json_refusal(404, "notFound", "The specified bucket does not exist.");
    }
    match request.query.get("uploadType").map(String::as_str) {
        Some("multipart") => {
            let Some((about, bytes)) = halves(request) else { return json_refusal(400, "parseError", "two parts are wanted") };
            let (status, value) = create(&mut state, bucket, &key, &about, bytes, only_if_absent, None);
            Answer::json(status, &value)
        }
        Some("resumable") => {
            let about = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
            state.last += 1;
            let id = state.last;
            let session = Session { bucket: bucket.to_owned(), key, about, only_if_absent, bytes: Vec::new(), done: None };
            state.sessions.insert(id, session);
            let host = request.headers.get("host").map(String::as_str).unwrap_or_default();
            Answer::new(200).with("location", format!("http://{host}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={id}"))
        }
        _ => json_refusal(400, "invalid", "Invalid upload type."),
    }
}

/// The two parts of a body of multipart/related.
fn halves(request: &Request) -> Option<(Value, Vec<u8>)> {
    let boundary = request.headers.get("content-type")?.split_once("boundary=")?.1;
    let body = &request.body;
    let find = |what: &[u8], from: usize| body[from..].windows(what.len()).position(|part| part == what).map(|at| from + at);
    let about_from = find(b"\r\n\r\n", 0)? + 4;
    let about_to = find(format!("\r\n--{boundary}\r\n").as_bytes(), about_from)?;
    let bytes_from = find(b"\r\n\r\n", about_to + 4)? + 4;
    let bytes_to = body.len().checked_sub(format!("\r\n--{boundary}--\r\n").len())?;
    Some((serde_json::from_slice(&body[about_from..about_to]).ok()?, body.get(bytes_from..bytes_to)?.to_vec()))
}

fn resume(state: &Mutex<State>, id: u64, request: &Request) -> Answer {
    let mut state = state.lock().expect("no panic while held");
    if request.method == "DELETE" {
        return Answer::new(if state.sessions.remove(&id).is_some() { 499 } else { 404 });
    }
    let Some(mut session) = state.sessions.remove(&id) else { return json_refusal(404, "notFound", "No such upload") };
    let answer = take(&mut state, &mut session, request);
    state.sessions.insert(id, session);
    answer
}

fn take(state: &mut State, session: &mut Session, request: &Request) -> Answer {
    if let Some((status, value)) = &session.done {
        return Answer::json(*status, value);
    }
    let range = request.headers.get("content-range").and_then(|range| range.strip_prefix("bytes ")).and_then(|range| range.split_once('/'));
    let Some((range, total)) = range else { return json_refusal(400, "badRequest", "Content-Range is wanted") };
    let total: Option<usize> = total.parse().ok();
    let from = range.split_once('-').and_then(|(from, _)| from.parse::<usize>().ok());
    if let Some(from) = from {
        if from > session.bytes.len() {
            return json_refusal(503, "backendError", "bytes before these are missing");
        }
        let new = session.bytes.len() - from;
        let mut bytes = request.body.get(new..).unwrap_or_default();
        if request.broken || total.is_none() {
            bytes = &bytes[..bytes.len() / PIECE_BYTES * PIECE_BYTES];
        }
        session.bytes.extend_from_slice(bytes);
    }
    if total == Some(session.bytes.len()) && !request.broken {
        let hash = request.headers.get("x-goog-hash").and_then(|hash| hash.strip_prefix("crc32c="));
        let bytes = std::mem::take(&mut session.bytes);
        let (status, value) = create(state, &session.bucket, &session.key, &session.about, bytes, session.only_if_absent, hash);
        session.done = Some((status, value.clone()));
        return Answer::json(status, &value);
    }
    let answer = Answer::new(308);
    if session.bytes.is_empty() { answer } else { answer.with("range", format!("bytes=0-{}", session.bytes.len() - 1)) }
}

/// The moment at which an object appears, or does not.
fn create(
    state: &mut State,
    bucket: &str,
    key: &str,
    about: &Value,
    bytes: Vec<u8>,
    only_if_absent: bool,
    hash: Option<&str>,
) -> (u16, Value) {
    let sum = checksum(&bytes);
    if [about["crc32c"].as_str(), hash].into_iter().flatten().any(|wanted| wanted != sum) {
        return (400, refusal(400, "invalid", "Provided CRC32C does not match calculated CRC32C."));
    }
    let Some(objects) = state.buckets.get_mut(bucket) else {
        return (404, refusal(404, "notFound", "The specified bucket does not exist."));
    };
    if only_if_absent && objects.contains_key(key) {
        return (412, refusal(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold."));
    }
    state.last += 1;
    let metadata = about["metadata"].as_object().into_iter().flatten();
    let metadata = metadata.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
    let value =
        json!({"name": key, "bucket": bucket, "size": bytes.len().to_string(), "crc32c": sum, "generation": state.last.to_string()});
    objects.insert(key.to_owned(), Object { bytes, generation: state.last, modified: now(), metadata });
    (200, value)
}

fn checksum(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(crc32c::crc32c(bytes).to_be_bytes())
}
