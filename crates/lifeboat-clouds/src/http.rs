//! Sockets and TLS below `object_store`, and a look at every answer: what it refuses is remembered here in words of ours, so that
//! nobody has to take it from a text that holds an address.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_smithy_runtime_api::client::http::HttpConnector as _;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use lifeboat_http::{Connections, Roots};
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService};
use serde::Deserialize;

use crate::error::{clean, root};
use crate::{CloudError, Config};

/// The most of a refusal that is read.
const MAX_REFUSAL: usize = 64 << 10;

/// The instance's metadata is asked briefly: elsewhere than on an instance nobody answers.
const METADATA_TIME: Duration = Duration::from_secs(2);

/// The slowest line that bodies are sent over, beside the time that an answer may take.
const SLOWEST_BYTES_A_SECOND: u64 = 100_000;

/// What was seen of a request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Noted {
    /// An answer that says no.
    Refused {
        /// Whether it is the store's, and not of somebody who hands out credentials.
        at_store: bool,
        host: String,
        status: u16,
        code: Option<String>,
        message: Option<String>,
        /// The object's length, where a range was refused.
        length: Option<u64>,
    },
    /// No answer, or half of one. `nobody`: of who hands out credentials on instances, and elsewhere is not there.
    Lost { at_store: bool, nobody: bool, host: String, reason: String },
    /// There is nothing to ask with.
    NoCredentials { reason: String },
}

tokio::task_local! {
    static NOTED: RefCell<Option<Noted>>;
}

/// Runs a future that remembers what its requests were refused with.
pub(crate) fn noting<F: Future>(future: F) -> impl Future<Output = F::Output> {
    NOTED.scope(RefCell::new(None), future)
}

/// Remembers.
pub(crate) fn note(noted: Noted) {
    let _ = NOTED.try_with(|cell| cell.replace(Some(noted)));
}

/// What the last failed request was refused with, once.
pub(crate) fn taken() -> Option<Noted> {
    NOTED.try_with(|cell| cell.take()).ok().flatten()
}

/// The transport: one pool of connections for everything.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connections: Connections,
    /// Host and port of the store.
    store: String,
    read_timeout: Duration,
    /// Seconds that the server's clock is ahead; `i64::MIN`: not known.
    ahead: AtomicI64,
    /// Whether the instance has handed out credentials before.
    instance: AtomicBool,
}

impl Transport {
    pub(crate) fn new(config: &Config, endpoint: &str) -> Result<Self, String> {
        // The time that an answer may take depends on what is sent, and is kept here.
        let connections = Connections::new(&Roots::of(config.ca_file.as_deref())?, Some(config.connect_timeout), None);
        let store = endpoint.parse::<::http::Uri>().ok().and_then(|uri| uri.authority().map(|authority| authority.as_str().to_owned()));
        let store = store.unwrap_or_default();
        let (ahead, instance) = (AtomicI64::new(i64::MIN), AtomicBool::new(false));
        Ok(Self { inner: Arc::new(Inner { connections, store, read_timeout: config.read_timeout, ahead, instance }) })
    }

    /// Seconds that the server's clock was ahead of ours at the last answer.
    pub(crate) fn clock_ahead(&self) -> Option<i64> {
        Some(self.inner.ahead.load(Ordering::Relaxed)).filter(|ahead| *ahead != i64::MIN)
    }

    /// One request of ours, refused ones as errors.
    pub(crate) async fn send(&self, action: &'static str, key: &str, mut request: HttpRequest) -> Result<HttpResponse, CloudError> {
        request.extensions_mut().insert(Ours);
        let answer = self.call(request).await;
        match (answer, taken()) {
            (Ok(answer), None) => Ok(answer),
            (_, Some(noted)) => Err(CloudError::noted(action, key, noted)),
            (Err(error), None) => Err(CloudError::new(crate::Kind::Transient, action, key, clean(&root(&error).to_string()))),
        }
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        // A server may name another host to go on with an upload at.
        let ours = request.extensions().get::<Ours>().is_some();
        let at_store = ours || request.uri().authority().is_some_and(|authority| authority.as_str() == self.inner.store);
        let metadata = matches!(host.as_str(), "169.254.169.254" | "metadata.google.internal");
        let (parts, body) = request.into_parts();
        let length = body.content_length() as u64;
        let body = match body.as_bytes() {
            Some(bytes) => SdkBody::from(bytes.clone()),
            None => SdkBody::from_body_1_x(body),
        };
        let nobody = metadata && !self.inner.instance.load(Ordering::Relaxed);
        let noted = {
            let host = host.clone();
            move |kind: HttpErrorKind, reason: String| {
                note(Noted::Lost { at_store, nobody, host: host.clone(), reason: reason.clone() });
                HttpError::new(kind, Lost(reason))
            }
        };
        let lost = noted.clone();
        let request = ::http::Request::from_parts(parts, body);
        let request = request.try_into().map_err(|_| lost(HttpErrorKind::Decode, "a request that HTTP does not allow".into()))?;
        let time = if metadata { METADATA_TIME } else { self.inner.read_timeout + Duration::from_secs(length / SLOWEST_BYTES_A_SECOND) };
        let answer = match tokio::time::timeout(time, self.inner.connections.call(request)).await {
            Err(_) => return Err(lost(HttpErrorKind::Timeout, "no answer in time".into())),
            Ok(Err(error)) if error.is_timeout() => return Err(lost(HttpErrorKind::Timeout, "no answer in time".into())),
            Ok(Err(error)) => {
                let source = error.into_source();
                return Err(lost(HttpErrorKind::Connect, clean(&root(&*source).to_string())));
            }
            Ok(Ok(answer)) => answer,
        };
        let answer = answer.try_into_http1x().map_err(|_| lost(HttpErrorKind::Decode, "an answer that HTTP does not allow".into()))?;
        let (parts, body) = answer.into_parts();
        if at_store {
            self.look_at_clock(&parts.headers);
        }
        if parts.status.as_u16() < 400 {
            self.inner.instance.fetch_or(metadata, Ordering::Relaxed);
            let body = body.map_err(move |error| noted(HttpErrorKind::Interrupted, clean(&root(&*error).to_string())));
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)));
        }
        let refusal = match tokio::time::timeout(self.inner.read_timeout, Limited::new(body, MAX_REFUSAL).collect()).await {
            Ok(Ok(whole)) => whole.to_bytes(),
            // The status says enough.
            _ => Bytes::new(),
        };
        let (code, message) = said(&parts.headers, &refusal);
        let length = parts.headers.get("content-range").and_then(|value| value.to_str().ok());
        let length = length.and_then(|value| value.strip_prefix("bytes */")?.trim().parse().ok());
        note(Noted::Refused { at_store, host, status: parts.status.as_u16(), code, message, length });
        // Nothing of it goes where it may be printed.
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(Vec::new())))
    }
}

impl Transport {
    fn look_at_clock(&self, headers: &::http::HeaderMap) {
        let date = headers.get("date").and_then(|date| date.to_str().ok());
        if let Some(date) = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()) {
            self.inner.ahead.store(date.timestamp().as_second() - jiff::Timestamp::now().as_second(), Ordering::Relaxed);
        }
    }
}

/// Marks a request that is not of `object_store`'s.
#[derive(Debug, Clone, Copy)]
struct Ours;

/// Why there is no answer, for those below who only pass it on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Lost(String);

/// Code and message of a refusal: Azure has the code in a header and XML, Google has XML or JSON, and who hands out tokens has JSON.
fn said(headers: &::http::HeaderMap, body: &[u8]) -> (Option<String>, Option<String>) {
    let text = String::from_utf8_lossy(body);
    let between = |name: &str| {
        let rest = text.split_once(&format!("<{name}>"))?.1;
        Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
    };
    let header = headers.get("x-ms-error-code").and_then(|code| code.to_str().ok()).map(str::to_owned);
    if let Ok(json) = serde_json::from_slice::<JsonRefusal>(body) {
        return match json.error {
            JsonError::Word(code) => (header.or(Some(code)), None),
            JsonError::Object { errors, message } => (header.or(errors.into_iter().next().map(|error| error.reason)), message),
        };
    }
    (header.or_else(|| between("Code")), between("Message"))
}

#[derive(Deserialize)]
struct JsonRefusal {
    error: JsonError,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum JsonError {
    /// As of OAuth.
    Word(String),
    /// As of Google's APIs.
    Object {
        #[serde(default)]
        errors: Vec<JsonReason>,
        message: Option<String>,
    },
}

#[derive(Deserialize)]
struct JsonReason {
    #[serde(default)]
    reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_in_all_three_forms() {
        let none = ::http::HeaderMap::new();
        let (some, text) = (|text: &str| Some(text.to_owned()), |text: &str| text.as_bytes().to_vec());
        let xml = text("<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>It is not there.</Message></Error>");
        assert_eq!(said(&none, &xml), (some("NoSuchKey"), some("It is not there.")));
        let json = text(r#"{"error":{"code":412,"message":"no","errors":[{"domain":"global","reason":"conditionNotMet"}]}}"#);
        assert_eq!(said(&none, &json), (some("conditionNotMet"), some("no")));
        assert_eq!(said(&none, &text(r#"{"error":"invalid_grant","error_description":"x"}"#)), (some("invalid_grant"), None));
        let mut azure = ::http::HeaderMap::new();
        azure.insert("x-ms-error-code", "BlobNotFound".parse().unwrap());
        assert_eq!(said(&azure, b""), (some("BlobNotFound"), None));
        for garbage in [&b"<Code>"[..], b"{", b"\xff\xfe", b"{\"error\":7}", b"</Code><Code>"] {
            let _ = said(&none, garbage);
        }
    }
}
