//! Sending the spans of an operation to a collector: OpenTelemetry's OTLP over HTTP, as protobuf (docs/logs.md).
//!
//! The spans are few and known when the operation ends, so they go in one request, made here; the encoding, and which answers are worth
//! asking again for, are those of OpenTelemetry's own exporter. It must not be a reason for anything else to fail: it has a bound, and its
//! error is for a warning.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use lifeboat_core::repository::Id;
use lifeboat_core::trace_context::SpanId;
use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, RetryPolicy, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use reqwest::{Client, Url};

use crate::causes;
use crate::secret::Secret;

/// Bytes of an answer that are read: a collector that took everything answers with none.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// How often it is tried once more: a collector that restarts is gone for longer than anybody waits for it here.
const RETRIES: usize = 1;

/// Where spans go.
#[derive(Debug)]
pub struct Collector {
    /// The whole address, with `/v1/traces` where the collector has it there.
    pub url: Address,
    /// Sent along: name and value.
    pub headers: Vec<(String, Secret)>,
    /// PEM certificates to believe instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// An address of a collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(Url);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Address {
    /// The address as it is.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without repeating it: it may hold a password.
    pub fn exact(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("it is no address: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err("it has to be http://host:port or https://host:port".into());
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err("it has neither user nor query; what is secret goes into a header".into());
        }
        Ok(Self(url))
    }

    /// The address of a collector, whose traces go to `v1/traces` below it (OTLP specification, "OTLP/HTTP Request").
    ///
    /// # Errors
    ///
    /// As [`Address::exact`].
    pub fn base(text: &str) -> Result<Self, String> {
        let Self(mut url) = Self::exact(text)?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["v1", "traces"]);
        }
        Ok(Self(url))
    }

    /// Whether what is sent there can be read on the way: it goes to another host, and without TLS.
    pub fn is_open(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        self.0.scheme() == "http" && host != "localhost" && !address.is_ok_and(|address| address.is_loopback())
    }
}

/// What is known of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
}

/// A piece of work that has ended.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its id.
    pub id: SpanId,
    /// The span that it is a part of.
    pub parent: Option<SpanId>,
    /// Whether that one is another program's.
    pub parent_is_remote: bool,
    /// What was done.
    pub name: String,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// Why spans were not sent, in one line without a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// The collector cannot even be asked.
    #[error("send traces: {0}")]
    Setup(String),
    /// It did not take them.
    #[error("send traces to {url}: {reason}")]
    Refused {
        /// Where to.
        url: String,
        /// Why not.
        reason: String,
    },
}

/// Sends spans, and waits for the collector to take them, for at most `patience`. `resource` says who sends.
///
/// # Errors
///
/// The collector did not take them, or not in time.
pub fn send(
    collector: &Collector,
    resource: &[(&'static str, String)],
    trace: Id,
    spans: Vec<Span>,
    patience: Duration,
) -> Result<(), TraceError> {
    let setup = |error: &dyn std::error::Error| TraceError::Setup(causes::joined(error));
    let refused = |reason: String| TraceError::Refused { url: collector.url.to_string(), reason };
    let trouble = Arc::new(Mutex::new(None));
    let courier = Courier { client: client(collector, patience)?, headers: headers(collector)?, trouble: Arc::clone(&trouble) };
    // All that the exporter would otherwise look for in the environment is said here, but for headers: those are the courier's.
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(courier)
        .with_endpoint(collector.url.to_string())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(patience)
        .with_retry_policy(RetryPolicy::recommended().with_max_retries(RETRIES));
    let mut exporter = exporter.build().map_err(|error| setup(&error))?;
    let resource = resource.iter().map(|(name, value)| KeyValue::new(*name, value.clone()));
    exporter.set_resource(&Resource::builder_empty().with_attributes(resource).build());
    let scope = InstrumentationScope::builder("lifeboat").with_version(env!("CARGO_PKG_VERSION")).build();
    let spans = spans.into_iter().map(|span| data(span, trace, &scope)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| setup(&error))?;
    let sent = runtime.block_on(async { tokio::time::timeout(patience, exporter.export(spans)).await });
    // A name that is still being looked up is not waited for.
    runtime.shutdown_background();
    let said = trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(refused(said.unwrap_or_else(|| causes::joined(&error)))),
        Err(_) => Err(refused(late(patience))),
    }
}

fn late(patience: Duration) -> String {
    format!("there was no answer within {patience:?}")
}

fn client(collector: &Collector, patience: Duration) -> Result<Client, TraceError> {
    let builder = crate::client::builder(collector.ca_file.as_deref()).map_err(TraceError::Setup)?;
    builder.timeout(patience).build().map_err(|error| TraceError::Setup(causes::joined(&error)))
}

fn headers(collector: &Collector) -> Result<HeaderMap, TraceError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &collector.headers {
        // Neither error repeats what it could not read.
        let bad = |problem: &str| TraceError::Setup(format!("header {name}: {problem}"));
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("it is no name of a header"))?;
        let mut value = HeaderValue::from_bytes(value.expose()).map_err(|_| bad("its value has characters that no header has"))?;
        value.set_sensitive(true);
        headers.append(key, value);
    }
    Ok(headers)
}

/// Name and value of each header in a list as OpenTelemetry has it in the environment: `name=value,name=value`, the values percent-encoded
/// (OpenTelemetry Protocol Exporter, "Specifying headers via environment variables").
///
/// # Errors
///
/// What is wrong, without repeating it.
pub fn header_list(text: &str) -> Result<Vec<(String, Secret)>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').ok_or("a part of it is not name=value")?;
            let value = percent_encoding::percent_decode_str(value.trim()).collect();
            Ok((name.trim().to_owned(), Secret::new(value)))
        })
        .collect()
}

fn data(span: Span, trace: Id, scope: &InstrumentationScope) -> SpanData {
    let id = |id: SpanId| opentelemetry::trace::SpanId::from_bytes(id.0);
    let trace = opentelemetry::trace::TraceId::from_bytes(trace.0);
    let attributes = span.attributes.into_iter().map(|(name, value)| match value {
        Value::Text(text) => KeyValue::new(name, text),
        Value::Number(number) => KeyValue::new(name, i64::try_from(number).unwrap_or(i64::MAX)),
    });
    SpanData {
        span_context: SpanContext::new(trace, id(span.id), TraceFlags::SAMPLED, false, TraceState::default()),
        parent_span_id: span.parent.map_or(opentelemetry::trace::SpanId::INVALID, id),
        parent_span_is_remote: span.parent_is_remote,
        span_kind: SpanKind::Internal,
        name: span.name.into(),
        start_time: span.start,
        end_time: span.end,
        attributes: attributes.collect(),
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: span.error.map_or(Status::Unset, Status::error),
        instrumentation_scope: scope.clone(),
    }
}

/// Carries the exporter's request over our own client.
#[derive(Debug)]
struct Courier {
    client: Client,
    headers: HeaderMap,
    /// Why the last request failed: the exporter keeps the reason to itself.
    trouble: Arc<Mutex<Option<String>>>,
}

#[async_trait]
impl HttpClient for Courier {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let carried = self.carry(request).await;
        let problem = match &carried {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answered {}", response.status())),
            Err(problem) => Some(problem.clone()),
        };
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        carried.map_err(HttpError::from)
    }
}

impl Courier {
    async fn carry(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let (parts, body) = request.into_parts();
        // Only what says what the body is: the exporter adds what `OTEL_EXPORTER_OTLP_HEADERS` says, wherever the spans go.
        let mut headers = self.headers.clone();
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
            if let Some(value) = parts.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        // reqwest's own text repeats the address.
        let failed = |error: reqwest::Error| match std::error::Error::source(&error) {
            _ if error.is_timeout() => "there was no answer in time".to_owned(),
            Some(source) => causes::joined(source),
            None => "the request failed".to_owned(),
        };
        let request = self.client.request(parts.method, parts.uri.to_string()).headers(headers).body(body);
        let mut response = request.send().await.map_err(failed)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(format!("its answer is more than {MAX_ANSWER_BYTES} bytes"));
            }
            bytes.extend_from_slice(&chunk);
        }
        let mut carried = Response::new(Bytes::from(bytes));
        *carried.status_mut() = response.status();
        *carried.headers_mut() = response.headers().clone();
        Ok(carried)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    fn collector(url: &str) -> Collector {
        Collector { url: Address::base(url).unwrap(), headers: vec![("x-key".into(), Secret::from("hunter2".to_owned()))], ca_file: None }
    }

    fn span() -> Span {
        let now = SystemTime::now();
        Span {
            id: SpanId([1; 8]),
            parent: None,
            parent_is_remote: false,
            name: "backup".into(),
            start: now,
            end: now,
            attributes: vec![("lifeboat.files", Value::Number(7))],
            error: None,
        }
    }

    fn sent(collector: &Collector, patience: Duration) -> Result<(), TraceError> {
        send(collector, &[("service.name", "lifeboat".into())], Id([2; 16]), vec![span()], patience)
    }

    #[test]
    fn traces_have_their_place_below_a_collector() {
        for (base, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("https://h/otlp/", "https://h/otlp/v1/traces"),
        ] {
            assert_eq!(Address::base(base).unwrap().to_string(), url);
        }
        assert_eq!(Address::exact("https://h/anywhere").unwrap().to_string(), "https://h/anywhere");
        for bad in ["", "host:4318", "ftp://h", "http://me:hunter2@h", "https://h/?key=hunter2", "https://h/#x"] {
            let problem = Address::base(bad).unwrap_err();
            assert!(!problem.contains("hunter2") && !problem.is_empty(), "{bad}: {problem}");
        }
    }

    #[test]
    fn what_others_could_read_is_known() {
        let open = |url: &str| Address::exact(url).unwrap().is_open();
        assert!(open("http://collector:4318") && open("http://10.0.0.1") && open("http://[2001:db8::1]:4318"));
        for url in ["https://collector", "http://localhost:4318", "http://127.0.0.1:4318", "http://[::1]:4318"] {
            assert!(!open(url), "{url}");
        }
    }

    #[test]
    fn header_lists_are_read_as_opentelemetry_writes_them() {
        let read = |text: &str| {
            let list = header_list(text).unwrap();
            list.iter().map(|(name, value)| format!("{name}: {}", value.expose_text().unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(read("api-key=a%20b%3D, x = y ,"), ["api-key: a b=", "x: y"]);
        assert!(read("").is_empty());
        let problem = header_list("hunter2").unwrap_err();
        assert!(!problem.contains("hunter2"), "{problem}");
    }

    #[test]
    fn nobody_there_and_nobody_answering_are_told_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // It takes connections, and never says a word.
        let begun = Instant::now();
        let error = sent(&collector(&url), Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("no answer") && !error.contains("hunter2"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
        let nobody = "http://127.0.0.1:1";
        let error = sent(&collector(nobody), Duration::from_secs(30)).unwrap_err().to_string();
        assert!(error.contains("refused") && error.contains(nobody), "{error}");
    }

    #[test]
    fn a_refusal_is_told_and_only_what_may_pass_is_tried_again() {
        for (status, tries) in [("500 Internal Server Error", 1), ("503 Service Unavailable", 1 + RETRIES)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let served = std::thread::spawn(move || {
                for _ in 0..tries {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut seen = Vec::new();
                    let mut buffer = [0; 4096];
                    while !String::from_utf8_lossy(&seen).contains("backup") {
                        let read = stream.read(&mut buffer).unwrap();
                        assert!(read > 0, "the request ended early");
                        seen.extend_from_slice(&buffer[..read]);
                    }
                    assert!(String::from_utf8_lossy(&seen).to_ascii_lowercase().contains("x-key: hunter2"));
                    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
                }
            });
            let error = sent(&collector(&url), Duration::from_secs(30)).unwrap_err().to_string();
            assert!(error.contains(status), "{error}");
            served.join().unwrap();
        }
    }

    #[test]
    fn headers_that_are_none_are_told_without_their_values() {
        for (name, value) in [("bad name", "hunter2"), ("x", "hunter2\nx: y")] {
            let headers = vec![(name.to_owned(), Secret::from(value.to_owned()))];
            let collector = Collector { headers, ..collector("http://127.0.0.1:1") };
            let error = sent(&collector, Duration::from_secs(1)).unwrap_err().to_string();
            assert!(error.contains("header") && !error.contains("hunter2"), "{error}");
        }
    }
}
