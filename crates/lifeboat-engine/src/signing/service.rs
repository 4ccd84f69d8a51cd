//! Asking a service that takes part in signing: the client, its runtime, and the loop that tries again.
//!
//! Signers block, the clients of these services wait asynchronously: the waiting happens in here, as in the stores
//! (`docs/decisions/0004-blocking-store.md`). Several threads may ask at the same time. What a service sees of our secrets must not
//! come back out of it: errors are made here, in one line, with every known secret taken out.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use tokio::runtime::Runtime;

use super::SignError;

/// The first wait between two tries; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Bytes that an answer may have. A certificate chain or a log entry has a few thousand.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// The longest message of a service that is repeated.
const MAX_MESSAGE_CHARS: usize = 300;

/// How services are reached.
#[derive(Debug, Clone)]
pub struct Reach {
    /// PEM certificates to believe instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Time for a connection to stand.
    pub connect_timeout: Duration,
    /// Time for a whole answer.
    pub timeout: Duration,
    /// How often a request is made before it fails.
    pub max_attempts: u32,
}

impl Default for Reach {
    fn default() -> Self {
        Self {
            ca_file: None,
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(15),
            // With the waits between them, some three seconds of a service that refuses, a minute of one that is silent.
            max_attempts: 5,
        }
    }
}

/// What a failed request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// No credentials, wrong ones, or not allowed.
    Denied,
    /// Later, maybe.
    Transient,
    /// Asking again does not help.
    Other,
}

/// Why a request failed, in one line without a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceError {
    pub(super) kind: Kind,
    pub(super) reason: String,
}

impl ServiceError {
    pub(super) fn new(kind: Kind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// What an answer with this status means, with what the service says about it.
    pub(super) fn status(status: u16, message: &str) -> Self {
        let kind = match status {
            401 | 403 => Kind::Denied,
            // 412, 472 and 473 are Vault's of a server that has not caught up, or stands by.
            408 | 412 | 425 | 429 | 472 | 473 | 500 | 502..=504 => Kind::Transient,
            _ => Kind::Other,
        };
        let message = clean(message);
        let separator = if message.is_empty() { "" } else { ": " };
        Self::new(kind, format!("status {status}{separator}{message}"))
    }

    /// A request that got no answer.
    pub(super) fn unsent(error: &reqwest::Error) -> Self {
        // The URL may be long and is said by the caller.
        let text = clean(&crate::causes::joined(error));
        if error.is_timeout() {
            return Self::new(Kind::Transient, "no answer in time");
        }
        // Trying again does not make a certificate better.
        let certificate = text.contains("certificate") || text.contains("UnknownIssuer");
        Self::new(if certificate { Kind::Other } else { Kind::Transient }, text)
    }

    /// The same as an error of a signer, which says what was asked of whom.
    pub(super) fn at(self, what: &str) -> SignError {
        match self.kind {
            Kind::Denied => SignError::Denied(format!("{what}: {}", self.reason)),
            Kind::Transient | Kind::Other => SignError::Signer(format!("{what}: {}", self.reason)),
        }
    }

    /// Without this secret, wherever it stands in it.
    pub(super) fn without(mut self, secret: &str) -> Self {
        if !secret.is_empty() && self.reason.contains(secret) {
            self.reason = self.reason.replace(secret, "…");
        }
        self
    }
}

/// A client with a thread of its own.
pub(super) struct Service {
    client: Client,
    runtime: Runtime,
    max_attempts: u32,
}

impl Service {
    /// A client; no request yet.
    pub(super) fn open(reach: &Reach) -> Result<Self, SignError> {
        let bad = |reason: String| SignError::Signer(format!("reach signing service: {reason}"));
        let builder = crate::client::builder(reach.ca_file.as_deref()).map_err(bad)?;
        let builder = builder.connect_timeout(reach.connect_timeout).timeout(reach.timeout);
        let client = builder.build().map_err(|error| bad(clean(&crate::causes::joined(&error))))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("signing")
            .enable_all()
            .build()
            .map_err(|error| bad(format!("start a thread: {error}")))?;
        Ok(Self { client, runtime, max_attempts: reach.max_attempts.max(1) })
    }

    /// The client; its clones share connections.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Runs a future on the calling thread; sockets and timers are the runtime's.
    pub(super) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.handle().block_on(future)
    }

    /// Tries until it succeeds, until an error says that trying is of no use, or until it was tried often enough.
    pub(super) fn again<T, F>(&self, operation: impl Fn() -> F) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<T, ServiceError>>,
    {
        self.wait(async {
            let mut attempt = 1;
            loop {
                match operation().await {
                    Err(error) if error.kind == Kind::Transient && attempt < self.max_attempts => {
                        tokio::time::sleep(wait_before(attempt)).await;
                        attempt += 1;
                    }
                    Err(mut error) => {
                        if attempt > 1 && error.kind == Kind::Transient {
                            error.reason.push_str(&format!(" ({attempt} tries)"));
                        }
                        return Err(error);
                    }
                    done => return done,
                }
            }
        })
    }
}

/// The body of an answer, as far as one may be long.
pub(super) async fn body(mut response: reqwest::Response) -> Result<(StatusCode, Vec<u8>), ServiceError> {
    let status = response.status();
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| ServiceError::unsent(&error))? {
        if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(ServiceError::new(Kind::Other, format!("an answer of more than {MAX_ANSWER_BYTES} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((status, bytes))
}

/// An address as users write it: `http(s)://host…`, without user and password; without slashes at its end.
pub(super) fn address(what: &str, url: &str) -> Result<String, SignError> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let fits = rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '?', '#', ' ']) && !rest.contains(char::is_control));
    match fits {
        true => Ok(url.trim_end_matches('/').to_owned()),
        // Not repeated: it may hold a password.
        false => Err(SignError::Signer(format!("{what}: the address is not http:// or https:// with a host, without credentials"))),
    }
}

/// Twice as long each time, and by chance between half and all of it, so that those who were sent away together do not come back together.
fn wait_before(attempt: u32) -> Duration {
    let longest = FIRST_WAIT.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(LONGEST_WAIT);
    let chance = f64::from(u16::from_le_bytes(crate::random::bytes())) / 65536.0;
    longest / 2 + longest.mul_f64(chance / 2.0)
}

/// One line of a bearable length.
pub(super) fn clean(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE_CHARS).collect();
    line.trim().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn service(max_attempts: u32) -> Service {
        Service::open(&Reach { max_attempts, ..Reach::default() }).unwrap()
    }

    #[test]
    fn waits_grow_to_a_limit() {
        for attempt in 1..40 {
            let wait = wait_before(attempt);
            assert!(wait >= FIRST_WAIT / 2 && wait <= LONGEST_WAIT, "{attempt}: {wait:?}");
        }
        assert!(wait_before(1) <= FIRST_WAIT);
        assert!(wait_before(12) >= LONGEST_WAIT / 2);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let tried = |kind: Kind| {
            let count = Cell::new(0);
            let failed: Result<(), _> = service(2).again(|| {
                count.set(count.get() + 1);
                async move { Err(ServiceError::new(kind, "no")) }
            });
            (count.get(), failed.unwrap_err().reason)
        };
        assert_eq!(tried(Kind::Transient), (2, "no (2 tries)".to_owned()));
        assert_eq!(tried(Kind::Denied), (1, "no".to_owned()));
        assert_eq!(tried(Kind::Other), (1, "no".to_owned()));
    }

    #[test]
    fn a_refusal_does_not_repeat_the_secret() {
        let error = ServiceError::status(403, "token hunter2\nis bad.").without("hunter2");
        assert_eq!(error, ServiceError::new(Kind::Denied, "status 403: token … is bad"));
        assert_eq!(ServiceError::status(503, "").without(""), ServiceError::new(Kind::Transient, "status 503"));
    }

    #[test]
    fn an_address_with_credentials_is_refused_and_not_repeated() {
        for bad in ["https://me:hunter2@host", "ftp://host", "http://", "host:8200", "https://h?token=hunter2"] {
            let error = address("reach it", bad).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert_eq!(address("reach it", "https://vault:8200/").unwrap(), "https://vault:8200");
    }

    #[test]
    fn a_file_of_roots_without_a_certificate_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reach = Reach { ca_file: Some(file.path().to_owned()), ..Reach::default() };
        let error = Service::open(&reach).err().expect("no certificate").to_string();
        assert!(error.contains("no certificate"), "{error}");
    }
}
