//! What is Azure's alone: block blobs, which appear, whole or not at all, with the list of their blocks.
//!
//! "Put Blob", "Put Block" and "Put Block List" of Azure's documentation are the source for headers here.

use ::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, IF_NONE_MATCH};
use ::http::{Method, Uri};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use md5::{Digest as _, Md5};
use object_store::RetryConfig;
use object_store::azure::{AzureAuthorizer, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::{HttpRequestBody, HttpResponse};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::Resolved;
use crate::google::built;
use crate::http::Transport;
use crate::object::WRITE_ID;
use crate::{CloudError, Config, Kind};

/// All but what an address may hold as it is; `/` stays between segments.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The checksum that the service compares before it takes a body.
static CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");

/// A container of Azure's.
pub(crate) struct Azure {
    pub(crate) store: MicrosoftAzure,
    endpoint: String,
    container: String,
    account: String,
}

impl Azure {
    pub(crate) fn new(
        config: &Config,
        resolved: Resolved<MicrosoftAzureBuilder>,
        once: RetryConfig,
        transport: Transport,
    ) -> Result<Self, CloudError> {
        let store = resolved.builder.with_retry(once).with_http_connector(transport).build();
        // What can go wrong here is in variables with credentials.
        let store = store.map_err(|error| CloudError { kind: Kind::Denied, ..CloudError::of("open", &config.bucket, &error) })?;
        Ok(Self { store, endpoint: resolved.endpoint, container: config.bucket.clone(), account: resolved.account })
    }

    /// Signs and sends.
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
        let denied = |error: object_store::Error| {
            let error = CloudError::of(action, key, &error);
            if error.kind == Kind::Other { CloudError { kind: Kind::Denied, ..error } } else { error }
        };
        let credential = self.store.credentials().get_credential().await.map_err(denied)?;
        AzureAuthorizer::new(&credential, &self.account).try_authorize(&mut request).map_err(denied)?;
        transport.send(action, key, request).await
    }

    fn request(&self, method: Method, key: &str, query: &str) -> ::http::request::Builder {
        let blob = if key.is_empty() { String::new() } else { format!("/{}", utf8_percent_encode(key, NAME)) };
        let address = format!("{}/{}{blob}{query}", self.endpoint, self.container);
        // A name that is no address is told when the request is built.
        ::http::Request::builder().method(method).uri(address.parse::<Uri>().unwrap_or_default())
    }

    pub(crate) async fn make_container(&self, transport: &Transport) -> Result<(), CloudError> {
        let request = self.request(Method::PUT, "", "?restype=container");
        self.send(transport, "make", &self.container, request, HttpRequestBody::empty()).await.map(drop)
    }

    /// Creates the object in one request.
    pub(crate) async fn put(&self, transport: &Transport, key: &str, bytes: Bytes, id: &str) -> Result<(), CloudError> {
        let request = self.request(Method::PUT, key, "").header("x-ms-blob-type", "BlockBlob").header(IF_NONE_MATCH, "*");
        let request = request.header(format!("x-ms-meta-{WRITE_ID}"), id).header(CONTENT_TYPE, "application/octet-stream");
        let request = request.header(&CONTENT_MD5, BASE64_STANDARD.encode(Md5::digest(&bytes)));
        self.send(transport, "create", key, request, bytes.into()).await.map(drop)
    }

    /// Sends one block. Nobody sees it before it is in a list; who never lists it need not take it back.
    pub(crate) async fn block(&self, transport: &Transport, key: &str, block: &str, bytes: Bytes) -> Result<(), CloudError> {
        let query = format!("?comp=block&blockid={}", utf8_percent_encode(block, NON_ALPHANUMERIC));
        let request = self.request(Method::PUT, key, &query).header(&CONTENT_MD5, BASE64_STANDARD.encode(Md5::digest(&bytes)));
        self.send(transport, "create", key, request, bytes.into()).await.map(drop)
    }

    /// Makes the object of its blocks, if nothing is there.
    pub(crate) async fn commit(&self, transport: &Transport, key: &str, blocks: &[String], id: &str) -> Result<(), CloudError> {
        let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<BlockList>");
        for block in blocks {
            // Base64 needs no escaping.
            list.push_str(&format!("<Uncommitted>{block}</Uncommitted>"));
        }
        list.push_str("</BlockList>");
        let request = self.request(Method::PUT, key, "?comp=blocklist").header(IF_NONE_MATCH, "*");
        let request = request.header(format!("x-ms-meta-{WRITE_ID}"), id).header(CONTENT_TYPE, "application/xml");
        let request = request.header("x-ms-blob-content-type", "application/octet-stream");
        let request = request.header(&CONTENT_MD5, BASE64_STANDARD.encode(Md5::digest(list.as_bytes())));
        self.send(transport, "create", key, request, list.into()).await.map(drop)
    }

    pub(crate) async fn delete(&self, transport: &Transport, key: &str) -> Result<(), CloudError> {
        let request = self.request(Method::DELETE, key, "");
        self.send(transport, "delete", key, request, HttpRequestBody::empty()).await.map(drop)
    }
}

/// The name of a block: of this write alone, because blocks of several writers of one name stand in one room.
pub(crate) fn block_name(id: &str, number: usize) -> String {
    BASE64_STANDARD.encode(format!("{id}-{number:05}"))
}
