//! What is Google's alone: requests of the JSON API, whose uploads may be resumed and are conditional to their end.
//!
//! "Resumable uploads" of Google's documentation is the source for statuses and headers here.

use std::sync::Arc;

use ::http::Method;
use ::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION, RANGE};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use object_store::client::{HttpRequest, HttpRequestBody, HttpResponse};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::{PutPayload, RetryConfig};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::config::Resolved;
use crate::error::clean;
use crate::federation::Federation;
use crate::http::Transport;
use crate::object::WRITE_ID;
use crate::{CloudError, Config, Kind};

/// All but what an address may hold as it is ("Request endpoints, encoding URL path parts").
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Between the two halves of an upload in one request. It cannot be in the first half, and the second is told apart by its length.
const BOUNDARY: &str = "lifeboat-boundary-7d1b9e0c52";

/// A bucket of Google's.
pub(crate) struct Google {
    pub(crate) store: GoogleCloudStorage,
    endpoint: String,
    bucket: String,
    anonymous: bool,
}

/// What the service says of an object that is there.
#[derive(Debug, Deserialize)]
struct Resource {
    #[serde(default)]
    size: String,
    crc32c: Option<String>,
}

#[derive(Serialize)]
struct NewObject<'a> {
    name: &'a str,
    #[serde(rename = "contentType")]
    content_type: &'static str,
    metadata: std::collections::BTreeMap<&'static str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc32c: Option<String>,
}

/// How far an upload has come.
pub(crate) enum Progress {
    /// So many bytes of it are kept.
    Kept(u64),
    /// The object is there.
    Done,
}

impl Google {
    pub(crate) fn new(
        config: &Config,
        resolved: Resolved<GoogleCloudStorageBuilder>,
        once: RetryConfig,
        transport: Transport,
    ) -> Result<Self, CloudError> {
        let mut builder = resolved.builder.with_retry(once).with_http_connector(transport.clone());
        if let Some(account) = resolved.federation {
            builder = builder.with_credentials(Arc::new(Federation::new(account, transport)));
        }
        let store = builder.build();
        // What can go wrong here is in files and variables with credentials.
        let store = store.map_err(|error| CloudError { kind: Kind::Denied, ..CloudError::of("open", &config.bucket, &error) })?;
        Ok(Self { store, endpoint: resolved.endpoint, bucket: config.bucket.clone(), anonymous: resolved.anonymous })
    }

    fn request(&self, method: Method, path: &str) -> ::http::request::Builder {
        ::http::Request::builder().method(method).uri(format!("{}{path}", self.endpoint))
    }

    async fn send(
        &self,
        transport: &Transport,
        action: &'static str,
        key: &str,
        request: ::http::request::Builder,
        body: HttpRequestBody,
    ) -> Result<HttpResponse, CloudError> {
        let length = body.content_length();
        let mut request = built(action, key, request.header(CONTENT_LENGTH, length), body)?;
        if !self.anonymous {
            let credential = self.store.credentials().get_credential().await;
            let credential = credential.map_err(|error| {
                let error = CloudError::of(action, key, &error);
                // What is wrong with a key is found out when it is used.
                if error.kind == Kind::Other { CloudError { kind: Kind::Denied, ..error } } else { error }
            })?;
            let mut value = HeaderValue::from_str(&format!("Bearer {}", credential.bearer))
                .map_err(|_| CloudError::new(Kind::Denied, action, key, "the token cannot stand in a header"))?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        transport.send(action, key, request).await
    }

    pub(crate) async fn make_bucket(&self, transport: &Transport) -> Result<(), CloudError> {
        let body = serde_json::json!({ "name": self.bucket }).to_string();
        let request = self.request(Method::POST, "/storage/v1/b?project=lifeboat").header(CONTENT_TYPE, "application/json");
        self.send(transport, "make", &self.bucket, request, body.into()).await.map(drop)
    }

    fn upload_path(&self, kind: &str, key: &str) -> String {
        let (bucket, key) = (utf8_percent_encode(&self.bucket, NAME), utf8_percent_encode(key, NAME));
        // Generation 0: nothing is there. It holds for the moment at which the object would appear.
        format!("/upload/storage/v1/b/{bucket}/o?uploadType={kind}&ifGenerationMatch=0&name={key}")
    }

    /// Creates the object in one request; the service compares the checksum before anybody sees it.
    pub(crate) async fn put(&self, transport: &Transport, key: &str, bytes: Bytes, id: &str) -> Result<(), CloudError> {
        let about = about(key, id, Some(crc32c::crc32c(&bytes)));
        let head = format!(
            "--{BOUNDARY}\r\nContent-Type: application/json\r\n\r\n{about}\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n"
        );
        let payload: PutPayload = [Bytes::from(head), bytes, Bytes::from(format!("\r\n--{BOUNDARY}--\r\n"))].into_iter().collect();
        let request = self.request(Method::POST, &self.upload_path("multipart", key));
        let request = request.header(CONTENT_TYPE, format!("multipart/related; boundary={BOUNDARY}"));
        self.send(transport, "create", key, request, payload.into()).await.map(drop)
    }

    /// Begins an upload in chunks. What it returns is an address that lets anybody go on with it, so it is shown nowhere.
    pub(crate) async fn begin(&self, transport: &Transport, key: &str, id: &str) -> Result<String, CloudError> {
        let request = self.request(Method::POST, &self.upload_path("resumable", key)).header(CONTENT_TYPE, "application/json");
        let answer = self.send(transport, "create", key, request, about(key, id, None).into()).await?;
        let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let location = location.ok_or_else(|| CloudError::new(Kind::Other, "create", key, "the server does not say where to upload"))?;
        if self.endpoint.starts_with("https://") && !location.starts_with("https://") {
            return Err(CloudError::new(Kind::Other, "create", key, "the server wants the upload without TLS"));
        }
        Ok(location.to_owned())
    }

    /// Sends bytes of an upload, or asks how far it is, if there are none. `total` with the last ones: then the object appears.
    pub(crate) async fn chunk(&self, transport: &Transport, key: &str, chunk: &Chunk<'_>) -> Result<Progress, CloudError> {
        let Chunk { session, from, bytes, total, crc } = chunk;
        let of = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
        let range = match bytes.len() as u64 {
            0 => format!("bytes */{of}"),
            length => format!("bytes {from}-{}/{of}", from + length - 1),
        };
        let mut request = ::http::Request::builder().method(Method::PUT).uri(*session).header(CONTENT_RANGE, range);
        if total.is_some() {
            request = request.header("x-goog-hash", format!("crc32c={}", checksum(*crc)));
        }
        let request = built("create", key, request.header(CONTENT_LENGTH, bytes.len()), bytes.clone().into())?;
        let answer = transport.send("create", key, request).await?;
        match answer.status().as_u16() {
            308 => {
                // Without the header, nothing is kept.
                let kept = answer.headers().get(RANGE).and_then(|range| range.to_str().ok());
                let kept = kept.map(|range| range.strip_prefix("bytes=0-").and_then(|last| last.parse::<u64>().ok()));
                match kept {
                    None => Ok(Progress::Kept(0)),
                    Some(Some(last)) => Ok(Progress::Kept(last.saturating_add(1))),
                    Some(None) => Err(CloudError::new(Kind::Other, "create", key, "the server does not say how far the upload is")),
                }
            }
            200 | 201 => {
                self.compare(key, answer, *total, *crc).await?;
                Ok(Progress::Done)
            }
            status => Err(CloudError::new(Kind::Other, "create", key, format!("status {status} to a part of an upload"))),
        }
    }

    /// Whether what the service has is what was sent.
    async fn compare(&self, key: &str, answer: HttpResponse, total: Option<u64>, crc: u32) -> Result<(), CloudError> {
        let lost = |reason: String| CloudError::new(Kind::Transient, "create", key, reason);
        let body = answer.into_body().bytes().await.map_err(|_| lost("the connection broke in an answer".into()))?;
        let resource: Resource = serde_json::from_slice(&body).map_err(|error| lost(clean(&error.to_string())))?;
        let differs =
            total.is_some_and(|total| resource.size != total.to_string()) || resource.crc32c.is_some_and(|theirs| theirs != checksum(crc));
        if differs {
            return Err(CloudError::new(Kind::Other, "create", key, "what the server has is not what was sent"));
        }
        Ok(())
    }

    /// Gives an upload up.
    pub(crate) async fn cancel(&self, transport: &Transport, key: &str, session: &str) {
        let request = ::http::Request::builder().method(Method::DELETE).uri(session).header(CONTENT_LENGTH, 0);
        if let Ok(request) = built("create", key, request, HttpRequestBody::empty()) {
            // Its answer is 499 where it went well, and nobody waits for it where it did not: the service forgets it after a week.
            let _ = transport.send("create", key, request).await;
        }
    }

    pub(crate) async fn delete(&self, transport: &Transport, key: &str) -> Result<(), CloudError> {
        let path = format!("/storage/v1/b/{}/o/{}", utf8_percent_encode(&self.bucket, NAME), utf8_percent_encode(key, NAME));
        let request = self.request(Method::DELETE, &path);
        self.send(transport, "delete", key, request, HttpRequestBody::empty()).await.map(drop)
    }
}

/// A part of an upload.
pub(crate) struct Chunk<'a> {
    pub(crate) session: &'a str,
    pub(crate) from: u64,
    pub(crate) bytes: Bytes,
    /// The length of the object, with its last part.
    pub(crate) total: Option<u64>,
    /// The checksum of all up to here.
    pub(crate) crc: u32,
}

fn about(key: &str, id: &str, crc: Option<u32>) -> String {
    let about =
        NewObject { name: key, content_type: "application/octet-stream", metadata: [(WRITE_ID, id)].into(), crc32c: crc.map(checksum) };
    serde_json::to_string(&about).expect("strings become JSON")
}

/// As Google writes them: the four bytes, most significant first, in base64.
fn checksum(crc: u32) -> String {
    BASE64_STANDARD.encode(crc.to_be_bytes())
}

pub(crate) fn built(
    action: &'static str,
    key: &str,
    request: ::http::request::Builder,
    body: HttpRequestBody,
) -> Result<HttpRequest, CloudError> {
    request.body(body).map_err(|error| CloudError::new(Kind::Other, action, key, clean(&error.to_string())))
}
