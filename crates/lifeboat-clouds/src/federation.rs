//! Workload identity federation of Google: a token that somebody else vouches for, exchanged for one of Google's.
//!
//! "Workload Identity Federation, credential configuration" of Google's documentation and RFC 8693 are the source. Tokens stand in a file or
//! behind an address, as in Kubernetes and in build services; those of AWS and of an executable are told to be unknown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::Method;
use ::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::client::{HttpRequestBody, HttpService as _};
use object_store::gcp::GcpCredential;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::error::clean;
use crate::http::{Noted, Transport, note};

/// What a token may be used for: what the role allows, here as with `object_store`'s own.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// How long before its end a token is replaced.
const BEFORE_ITS_END: Duration = Duration::from_secs(240);

/// The longest file of credentials, or token.
const MAX_BYTES: u64 = 1 << 20;

/// What the file says.
#[derive(Clone, Deserialize)]
pub(crate) struct ExternalAccount {
    audience: String,
    subject_token_type: String,
    token_url: String,
    service_account_impersonation_url: Option<String>,
    credential_source: Source,
}

#[derive(Clone, Deserialize)]
struct Source {
    file: Option<PathBuf>,
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    format: Option<Format>,
}

#[derive(Clone, Deserialize)]
struct Format {
    #[serde(rename = "type")]
    kind: String,
    subject_token_field_name: Option<String>,
}

/// Reads a file of credentials, if it is one of federation.
pub(crate) fn read(path: &Path) -> Result<Option<ExternalAccount>, String> {
    let name = path.display();
    // What cannot be read, or is no JSON, is told by who reads the other kinds.
    let Ok(text) = bounded(path) else { return Ok(None) };
    let Ok(value) = serde_json::from_str::<Value>(&text) else { return Ok(None) };
    if value["type"] != "external_account" {
        return Ok(None);
    }
    let account: ExternalAccount = serde_json::from_value(value).map_err(|error| format!("read {name}: {}", clean(&error.to_string())))?;
    if account.credential_source.file.is_none() && account.credential_source.url.is_none() {
        return Err(format!("read {name}: only tokens in a file or behind an address are known"));
    }
    let urls = [Some(&account.token_url), account.service_account_impersonation_url.as_ref()];
    if urls.into_iter().flatten().any(|url| !(url.starts_with("https://") || url.starts_with("http://127.0.0.1:"))) {
        return Err(format!("read {name}: tokens are exchanged with TLS only"));
    }
    Ok(Some(account))
}

fn bounded(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > MAX_BYTES {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    std::fs::read_to_string(path)
}

/// Exchanges tokens, and keeps the last one while it is good.
pub(crate) struct Federation {
    account: ExternalAccount,
    transport: Transport,
    held: Mutex<Option<(Arc<GcpCredential>, Instant)>>,
}

impl fmt::Debug for Federation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Federation")
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

fn failed(reason: String) -> object_store::Error {
    note(Noted::NoCredentials { reason: reason.clone() });
    object_store::Error::Generic { store: "GCS", source: Box::new(Failed(reason)) }
}

impl Federation {
    pub(crate) fn new(account: ExternalAccount, transport: Transport) -> Self {
        Self { account, transport, held: Mutex::new(None) }
    }

    async fn ask(&self, request: ::http::request::Builder, body: String) -> object_store::Result<Vec<u8>> {
        let request = request.header(CONTENT_LENGTH, body.len()).body(HttpRequestBody::from(body));
        let request = request.map_err(|_| failed("an address in the file of credentials is none".into()))?;
        // What went wrong below was noted there, in more words.
        let noted = |reason: &str| object_store::Error::Generic { store: "GCS", source: Box::new(Failed(reason.to_owned())) };
        let no = |_| noted("no answer to a question for a token");
        let answer = self.transport.call(request).await.map_err(no)?;
        match answer.status().as_u16() {
            200..=299 => Ok(answer.into_body().bytes().await.map_err(no)?.to_vec()),
            400.. => Err(noted("a question for a token was refused")),
            status => Err(failed(format!("status {status} to a question for a token"))),
        }
    }

    /// What somebody else vouches with.
    async fn subject(&self) -> object_store::Result<String> {
        let source = &self.account.credential_source;
        let text = match (&source.file, &source.url) {
            (Some(path), _) => bounded(path).map_err(|error| failed(format!("read {}: {error}", path.display())))?,
            (None, Some(url)) => {
                let mut request = ::http::Request::builder().method(Method::GET).uri(url);
                for (name, value) in &source.headers {
                    request = request.header(name, value);
                }
                String::from_utf8_lossy(&self.ask(request, String::new()).await?).into_owned()
            }
            (None, None) => return Err(failed("the file of credentials names no token".into())),
        };
        let Some(format) = source.format.as_ref().filter(|format| format.kind == "json") else { return Ok(text.trim().to_owned()) };
        let field = format.subject_token_field_name.as_deref().unwrap_or("access_token");
        let value: Value = serde_json::from_str(&text).map_err(|_| failed("the token is not in JSON, as the file says".into()))?;
        value[field].as_str().map(str::to_owned).ok_or_else(|| failed(format!("there is no {} where the token is", clean(field))))
    }

    async fn exchange(&self) -> object_store::Result<(String, Duration)> {
        #[derive(Deserialize)]
        struct Exchanged {
            access_token: String,
            expires_in: Option<u64>,
        }
        let subject = self.subject().await?;
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("audience", &self.account.audience),
            ("scope", SCOPE),
            ("subject_token_type", &self.account.subject_token_type),
            ("subject_token", &subject),
        ];
        let body: Vec<String> =
            form.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))).collect();
        let request = ::http::Request::builder().method(Method::POST).uri(&self.account.token_url);
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let answer = self.ask(request, body.join("&")).await?;
        let exchanged: Exchanged = serde_json::from_slice(&answer).map_err(|_| failed("the answer holds no token".into()))?;
        Ok((exchanged.access_token, Duration::from_secs(exchanged.expires_in.unwrap_or(600))))
    }

    /// The service account's token, where the file says that one is to be taken.
    async fn impersonate(&self, url: &str, token: &str) -> object_store::Result<(String, Duration)> {
        #[derive(Deserialize)]
        struct Generated {
            #[serde(rename = "accessToken")]
            access_token: String,
            #[serde(rename = "expireTime")]
            expire_time: jiff::Timestamp,
        }
        let request = ::http::Request::builder().method(Method::POST).uri(url).header(AUTHORIZATION, format!("Bearer {token}"));
        let request = request.header(CONTENT_TYPE, "application/json");
        let answer = self.ask(request, serde_json::json!({ "scope": [SCOPE] }).to_string()).await?;
        let generated: Generated = serde_json::from_slice(&answer).map_err(|_| failed("the answer holds no token".into()))?;
        let seconds = generated.expire_time.as_second() - jiff::Timestamp::now().as_second();
        Ok((generated.access_token, Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
    }
}

#[async_trait]
impl CredentialProvider for Federation {
    type Credential = GcpCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<GcpCredential>> {
        let mut held = self.held.lock().await;
        if let Some((credential, until)) = &*held
            && Instant::now() < *until
        {
            return Ok(credential.clone());
        }
        let (mut bearer, mut time) = self.exchange().await?;
        if let Some(url) = &self.account.service_account_impersonation_url {
            (bearer, time) = self.impersonate(url, &bearer).await?;
        }
        let credential = Arc::new(GcpCredential { bearer });
        *held = Some((credential.clone(), Instant::now() + time.saturating_sub(BEFORE_ITS_END)));
        Ok(credential)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_federation_are_told_apart() {
        let place = tempfile::tempdir().expect("can make a temporary directory");
        let file = |text: &str| {
            let path = place.path().join("credentials.json");
            std::fs::write(&path, text).expect("own directory");
            read(&path).map(|account| account.is_some())
        };
        let with = |source: &str, url: &str| {
            format!(
                r#"{{"type":"external_account","audience":"a","subject_token_type":"t","token_url":"{url}","credential_source":{source}}}"#
            )
        };
        assert_eq!(file(r#"{"type":"service_account"}"#), Ok(false));
        assert_eq!(file("no JSON"), Ok(false));
        assert_eq!(file(&with(r#"{"file":"/token"}"#, "https://sts.googleapis.com/v1/token")), Ok(true));
        assert!(file(&with(r#"{"environment_id":"aws1"}"#, "https://sts.googleapis.com/v1/token")).is_err());
        assert!(file(&with(r#"{"file":"/token"}"#, "http://example.org/token")).is_err());
        assert!(file(r#"{"type":"external_account"}"#).is_err());
    }
}
