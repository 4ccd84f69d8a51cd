//! A running OPA, asked by its REST API: `POST /v1/data/<path>` (<https://www.openpolicyagent.org/docs/rest-api>).
//!
//! Must not take silence for consent: only status 200 with a `result` that is a decision is an answer. OPA itself answers 200 without a
//! `result` where the rule is undefined, or the path is misspelt.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lifeboat_core::policy::{Answer, Code, Decision, Facts};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, Identity, StatusCode, Url};
use serde::Deserialize;
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use super::{LoadError, Said};

/// Bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// How a running OPA is reached.
#[derive(Clone)]
pub struct OpaSettings {
    /// `https://host:port`, perhaps with a prefix.
    pub url: String,
    /// The rule below `/v1/data/`: `lifeboat/decision`.
    pub path: String,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<Zeroizing<String>>,
    /// PEM certificates to believe instead of the system's.
    pub ca: Option<Vec<u8>>,
    /// PEM certificate and private key to show.
    pub identity: Option<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for OpaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpaSettings")
            .field("url", &self.url)
            .field("path", &self.path)
            .field("token", &self.token.as_ref().map(|_| "hidden"))
            .field("identity", &self.identity.as_ref().map(|_| "hidden"))
            .finish_non_exhaustive()
    }
}

/// A client of one rule in one OPA.
pub(super) struct Opa {
    client: Client,
    /// Without query.
    address: String,
    url: Url,
    timeout: Duration,
    /// Not secured by TLS, and not on this host.
    open: bool,
    /// Made by the first question: most commands that fail, fail before.
    runtime: Mutex<Option<Runtime>>,
}

/// OPA's answer, as far as it is used. Unknown members are its own business.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    result: Option<Decision>,
    #[serde(default)]
    decision_id: Option<String>,
    #[serde(default)]
    provenance: Option<Provenance>,
}

#[derive(Deserialize, Default)]
struct Provenance {
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    revision: Option<String>,
    #[serde(default)]
    bundles: BTreeMap<String, Bundle>,
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    revision: Option<String>,
}

/// What OPA says when it fails.
#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    errors: Vec<Problem>,
}

fn broken(what: &str, error: &dyn fmt::Display) -> LoadError {
    LoadError::Broken(format!("reach OPA: {what}: {error}"))
}

impl Opa {
    pub(super) fn new(settings: &OpaSettings, timeout: Duration) -> Result<Self, LoadError> {
        let bad = |problem: &dyn fmt::Display| broken("policy.opa_url", problem);
        let mut url = Url::parse(&settings.url).map_err(|error| bad(&error))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(bad(&"it has to be http://host:port or https://host:port"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(bad(&"it has neither user nor query; a token is named in policy.opa_token"));
        }
        {
            let mut segments = url.path_segments_mut().map_err(|()| bad(&"it has to be http://host:port or https://host:port"))?;
            segments.pop_if_empty().extend(["v1", "data"]).extend(settings.path.split('/').filter(|part| !part.is_empty()));
        }
        let open = url.scheme() == "http" && !is_this_host(&url);
        if open && settings.token.is_some() {
            return Err(bad(&"a token would be sent in the clear to another host: use https"));
        }
        let address = url.to_string();
        // An error is an error there too, and the revision of the policy belongs into the record of the decision.
        url.set_query(Some("strict-builtin-errors=true&provenance=true"));
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(token) = &settings.token {
            let text = Zeroizing::new(format!("Bearer {}", token.as_str()));
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| broken("policy.opa_token", &"it is no token: it has characters that no header has"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut builder = Client::builder()
            .default_headers(headers)
            .user_agent(concat!("lifeboat/", env!("CARGO_PKG_VERSION")))
            // A redirect would let whoever answers choose who decides.
            .redirect(reqwest::redirect::Policy::none())
            // Nobody else's environment decides on the way either.
            .no_proxy()
            .referer(false)
            .timeout(timeout)
            .connect_timeout(timeout);
        if let Some(pem) = &settings.ca {
            let certificates = Certificate::from_pem_bundle(pem).map_err(|error| broken("policy.opa_ca_file", &error))?;
            if certificates.is_empty() {
                return Err(broken("policy.opa_ca_file", &"there is no certificate in it"));
            }
            builder = builder.tls_certs_only(certificates);
        }
        if let Some(pem) = &settings.identity {
            // The error may quote what it read.
            let identity = Identity::from_pem(pem)
                .map_err(|_| broken("policy.opa_identity_file", &"it has to be a PEM certificate and its private key"))?;
            builder = builder.identity(identity);
        }
        let client = builder.build().map_err(|error| broken("make the client", &crate::causes::joined(&error)))?;
        Ok(Self { client, address, url, timeout, open, runtime: Mutex::new(None) })
    }

    /// Where it is asked.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn warning(&self) -> Option<String> {
        let address = &self.address;
        self.open.then(|| format!("policy.opa_url {address}: without https, whoever is between here and there decides; use https"))
    }

    /// Asks. Blocks for at most the time it was given, and a little.
    pub(super) fn ask(&self, facts: &Facts, text: &str) -> Said {
        let body = format!("{{\"input\":{text}}}");
        // On a thread of its own: whoever calls may be inside a runtime, and a runtime inside another panics.
        let asked = std::thread::scope(|scope| scope.spawn(|| self.fetch(body)).join());
        let fetched = asked.unwrap_or_else(|_| Err((Code::Error, "the client failed".to_owned())));
        let (answer, document) = match fetched {
            Ok(document) => (self.weigh(document.result.as_ref(), facts), Some(document)),
            Err((code, reason)) => (Answer::refused(code, format!("ask {}: {reason}", self.address)), None),
        };
        let decision_id = document.as_ref().and_then(|document| document.decision_id.clone()).map(printable);
        let provenance = document.and_then(|document| document.provenance).unwrap_or_default();
        let mut revisions: Vec<String> =
            provenance.bundles.iter().filter_map(|(name, bundle)| Some(format!("{name}={}", bundle.revision.as_deref()?))).collect();
        revisions.extend(provenance.revision.clone());
        Said {
            answer,
            policy: printable(format!("opa:{}", revisions.join(","))),
            engine: printable(format!("opa {}", provenance.version.as_deref().unwrap_or("of unknown version"))),
            decision_id,
        }
    }

    fn weigh(&self, said: Option<&Decision>, facts: &Facts) -> Answer {
        match said {
            Some(said) => Answer::weigh(said.clone(), facts),
            None => {
                Answer::refused(Code::Undefined, format!("{} is undefined there for these facts, or there is no such rule", self.address))
            }
        }
    }

    fn fetch(&self, body: String) -> Result<Document, (Code, String)> {
        let mut kept = self.runtime.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let runtime = match kept.take() {
            Some(runtime) => runtime,
            None => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| (Code::Error, format!("make the client: {error}")))?,
        };
        let started = Instant::now();
        let fetched = runtime.block_on(self.request(body));
        *kept = Some(runtime);
        drop(kept);
        let (status, bytes) = fetched.map_err(|(error, problem)| self.failed(error.as_ref(), problem, started))?;
        if status != StatusCode::OK {
            return Err((Code::Error, refusal(status, &bytes)));
        }
        serde_json::from_slice(&bytes).map_err(|error| (Code::Malformed, format!("it answered something that is no decision: {error}")))
    }

    async fn request(&self, body: String) -> Result<(StatusCode, Vec<u8>), (Option<reqwest::Error>, String)> {
        let failed = |error: reqwest::Error| (Some(error), String::new());
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err((None, format!("its answer is more than {MAX_ANSWER_BYTES} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((status, bytes))
    }

    fn failed(&self, error: Option<&reqwest::Error>, problem: String, started: Instant) -> (Code, String) {
        let Some(error) = error else { return (Code::Malformed, problem) };
        // Its own text repeats the address, with the query.
        let cause = std::error::Error::source(error).map_or_else(|| "it failed".to_owned(), crate::causes::joined);
        if error.is_timeout() || started.elapsed() >= self.timeout {
            (Code::Timeout, format!("there was no answer within {:?}", self.timeout))
        } else if error.is_connect() || error.is_request() {
            (Code::Unreachable, cause)
        } else {
            (Code::Malformed, format!("its answer broke off: {cause}"))
        }
    }
}

/// What it said beside a status that is not 200: OPA's own words, if they are.
fn refusal(status: StatusCode, bytes: &[u8]) -> String {
    let said = match serde_json::from_slice::<Problem>(bytes) {
        Ok(problem) => {
            let first = problem.errors.first().map_or(String::new(), |error| format!(": {}", error.message));
            format!(": {}{}{first}", if problem.code.is_empty() { String::new() } else { format!("{}: ", problem.code) }, problem.message)
        }
        Err(_) => String::new(),
    };
    format!("it answered {status}{said}")
}

/// Texts of a service that end up in records and on terminals.
fn printable(text: String) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

pub(crate) fn is_this_host(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
