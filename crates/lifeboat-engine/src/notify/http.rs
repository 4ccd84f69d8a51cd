//! One request to a program that is told of alerts.
//!
//! Redirects are not followed: whoever answers would choose who gets what was meant for somebody else. Answers are read as far as errors need them.
//! Nothing of an address, a token or a header comes back in an error.

use std::path::Path;
use std::time::Duration;

use lifeboat_core::plain::plain;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use serde_json::Value;
use zeroize::Zeroizing;

use super::words::line;
use super::{HttpTarget, NotifyError, TIMEOUT};
use crate::secret::SecretSource;

/// Time for a connection to stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes that are read of the answer of a program that does not take a message: it says why in the first of them.
const MAX_ANSWER_BYTES: usize = 4096;

/// Characters of such an answer that are repeated.
const MAX_REASON_CHARACTERS: usize = 200;

/// Shorter parts of an address are words that stand in every second message: nothing is hidden by taking them out.
const SHORTEST_SECRET: usize = 8;

/// A program that is told by HTTP.
pub(super) struct Http {
    client: Client,
    target: HttpTarget,
}

impl Http {
    /// Makes the client; no request yet.
    pub(super) fn open(target: HttpTarget) -> Result<Self, NotifyError> {
        for (name, _) in &target.headers {
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| NotifyError::Settings(format!("{name:?} is no name of a header")))?;
        }
        Ok(Self { client: client(target.ca_file.as_deref())?, target })
    }

    /// Posts a document to the address, or to a path below it. `secrets` are those in the document.
    pub(super) fn post(&self, path: &str, document: &Value, secrets: &[&str]) -> Result<(), NotifyError> {
        self.exchange(path, Some(document.to_string()), secrets)
    }

    /// Asks for the address, and for nothing that stands there.
    pub(super) fn get(&self) -> Result<(), NotifyError> {
        self.exchange("", None, &[])
    }

    fn exchange(&self, path: &str, body: Option<String>, secrets: &[&str]) -> Result<(), NotifyError> {
        let text = ask(&self.target.url, "the address")?;
        let url = address(&text, path)?;
        let (headers, values) = self.headers(&url, !secrets.is_empty())?;
        let mut hidden: Vec<&str> = parts(&text);
        hidden.extend(values.iter().map(|value| value.as_str()).chain(secrets.iter().copied()));
        // On a thread of its own: whoever calls may be inside a runtime, and a runtime inside another panics.
        let said = std::thread::scope(|scope| scope.spawn(|| self.fetch(url, headers, body)).join());
        let (status, answer) =
            said.unwrap_or_else(|_| Err(NotifyError::Unreachable("the client failed".to_owned()))).map_err(|error| match error {
                // Cut behind that: half of a secret would not be found.
                NotifyError::Unreachable(reason) => NotifyError::Unreachable(line(&scrub(&reason, &hidden), MAX_REASON_CHARACTERS)),
                other => other,
            })?;
        judge(status, &scrub(&answer, &hidden))
    }

    /// Headers of a request, and what of them is secret.
    fn headers(&self, url: &Url, secret_body: bool) -> Result<(HeaderMap, Vec<Zeroizing<String>>), NotifyError> {
        let (mut headers, mut values) = (HeaderMap::new(), Vec::new());
        let sensitive = |text: &str, what: &str| {
            let mut value = HeaderValue::from_str(text)
                .map_err(|_| NotifyError::Settings(format!("{what} has characters that no header has: is a newline in it?")))?;
            value.set_sensitive(true);
            Ok::<_, NotifyError>(value)
        };
        if let Some(token) = &self.target.token {
            let token = ask(token, "the token")?;
            headers.insert(AUTHORIZATION, sensitive(&Zeroizing::new(format!("Bearer {}", token.as_str())), "the token")?);
            values.push(token);
        }
        for (name, source) in &self.target.headers {
            let value = ask(source, &format!("header {name}"))?;
            let name = HeaderName::from_bytes(name.as_bytes()).expect("looked at when it was opened");
            let set = sensitive(&value, &format!("header {name}"))?;
            headers.insert(name, set);
            values.push(value);
        }
        let secret = !values.is_empty() || secret_body || url.password().is_some();
        if secret && url.scheme() == "http" && !crate::policy::is_this_host(url) {
            return Err(NotifyError::Settings("a secret would be sent in the clear to another host: use https".to_owned()));
        }
        Ok((headers, values))
    }

    fn fetch(&self, url: Url, headers: HeaderMap, body: Option<String>) -> Result<(StatusCode, String), NotifyError> {
        let failed = |error: std::io::Error| NotifyError::Unreachable(format!("make the client: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let request = match body {
            Some(body) => self.client.post(url).header(CONTENT_TYPE, "application/json").body(body),
            None => self.client.get(url),
        };
        let said = runtime.block_on(async {
            let mut answer = request.headers(headers).send().await.map_err(|error| unsent(&error))?;
            let (status, mut bytes) = (answer.status(), Vec::new());
            // Of an answer that is a yes nothing else matters; of one that is none, the reason, as far as it comes.
            while !status.is_success() && bytes.len() < MAX_ANSWER_BYTES {
                match answer.chunk().await {
                    Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                    _ => break,
                }
            }
            bytes.truncate(MAX_ANSWER_BYTES);
            Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
        });
        // Looking up a name may go on for long after its time; nobody waits for it.
        runtime.shutdown_background();
        said
    }
}

fn client(ca_file: Option<&Path>) -> Result<Client, NotifyError> {
    let bad = |what: String| NotifyError::Settings(format!("make the client: {what}"));
    let builder = crate::client::builder(ca_file).map_err(bad)?;
    let builder = builder.referer(false).connect_timeout(CONNECT_TIMEOUT).timeout(TIMEOUT);
    builder.build().map_err(|error| bad(crate::causes::joined(&error)))
}

/// A secret, or why there is none.
pub(super) fn ask(source: &SecretSource, what: &str) -> Result<Zeroizing<String>, NotifyError> {
    let secret = source().map_err(|reason| NotifyError::Settings(line(&reason, MAX_REASON_CHARACTERS)))?;
    if secret.is_empty() {
        return Err(NotifyError::Settings(format!("{what} is empty")));
    }
    Ok(secret)
}

/// The address with a path below it. What is wrong with one is said without repeating it.
fn address(text: &str, path: &str) -> Result<Url, NotifyError> {
    let bad = || NotifyError::Settings("the address has to be http://host… or https://host…".to_owned());
    let mut url = Url::parse(text.trim()).map_err(|_| bad())?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(bad());
    }
    if !path.is_empty() {
        let mut segments = url.path_segments_mut().map_err(|()| bad())?;
        segments.pop_if_empty().extend(path.split('/'));
    }
    Ok(url)
}

/// What of an address may be secret: all of it, and each part that is long enough to be one.
fn parts(text: &str) -> Vec<&str> {
    let text = text.trim();
    let behind_scheme = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (authority, rest) = behind_scheme.find(['/', '?']).map_or((behind_scheme, ""), |at| behind_scheme.split_at(at));
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let mut parts = vec![text, rest.trim_matches('/')];
    parts.extend(user.split(':').chain(rest.split(['/', '?', '&', '='])));
    parts.retain(|part| part.len() >= SHORTEST_SECRET);
    // The longest first, so that no rest of one stays behind.
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    parts
}

fn scrub(text: &str, hidden: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in hidden.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "…");
    }
    text
}

/// A request without an answer.
fn unsent(error: &reqwest::Error) -> NotifyError {
    if error.is_timeout() {
        return NotifyError::Unreachable("no answer in time".to_owned());
    }
    // Its own text repeats the address; what is below it does not.
    let cause = std::error::Error::source(error).map_or_else(|| "the request failed".to_owned(), crate::causes::joined);
    NotifyError::Unreachable(cause)
}

/// What an answer means.
fn judge(status: StatusCode, answer: &str) -> Result<(), NotifyError> {
    let said = plain(answer.split_whitespace().collect::<Vec<_>>().join(" ").as_str());
    let said = if said.is_empty() { String::new() } else { format!(": {}", line(&said, MAX_REASON_CHARACTERS)) };
    match status.as_u16() {
        200..=299 => Ok(()),
        300..=399 => Err(NotifyError::Refused(format!("it answered {}: redirects are not followed", status.as_u16()))),
        408 | 425 | 429 | 500..=599 => Err(NotifyError::Unreachable(format!("it answered {}{said}", status.as_u16()))),
        other => Err(NotifyError::Refused(format!("it answered {other}{said}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(text: &str) -> SecretSource {
        let text = text.to_owned();
        Box::new(move || Ok(Zeroizing::new(text.clone())))
    }

    fn http(url: &str, token: Option<&str>) -> Result<Http, NotifyError> {
        Http::open(HttpTarget { url: fixed(url), token: token.map(fixed), headers: Vec::new(), ca_file: None })
    }

    #[test]
    fn an_address_may_have_a_path_of_its_own() {
        let of = |text: &str| address(text, "api/v2/alerts").map(|url| url.to_string());
        assert_eq!(of("http://am:9093").unwrap(), "http://am:9093/api/v2/alerts");
        assert_eq!(of("https://am/prefix/\n").unwrap(), "https://am/prefix/api/v2/alerts");
        assert_eq!(address("https://h/a?b=c", "").unwrap().as_str(), "https://h/a?b=c");
        for bad in ["", "am:9093", "ftp://am", "https://", "/path", "hunter2hunter2"] {
            let error = of(bad).unwrap_err();
            assert!(matches!(error, NotifyError::Settings(_)) && !error.to_string().contains("hunter2"), "{bad}: {error}");
        }
    }

    #[test]
    fn no_part_of_an_address_that_may_be_secret_is_repeated() {
        let url = "https://me:password1@hooks.example.org/services/T00000000/B11111111/XXXXXXXXXXXX?key=hunter2hunter2";
        let hidden = parts(url);
        let said = scrub(
            &format!("cannot POST {url}: /services/T00000000/B11111111/XXXXXXXXXXXX, XXXXXXXXXXXX, hunter2hunter2, password1"),
            &hidden,
        );
        for secret in ["XXXX", "hunter2", "T00000000", "password1"] {
            assert!(!said.contains(secret), "{said}");
        }
        assert!(parts("https://hooks.example.org").contains(&"https://hooks.example.org"));
    }

    #[test]
    fn secrets_go_to_others_only_where_nobody_reads_along() {
        let error = http("http://alerts.example.org/x", Some("hunter2")).unwrap().post("", &Value::Null, &[]).unwrap_err();
        assert_eq!(error, NotifyError::Settings("a secret would be sent in the clear to another host: use https".into()));
        let error = http("http://alerts.example.org/x", None).unwrap().post("", &Value::Null, &["routing-key"]).unwrap_err();
        assert!(error.to_string().contains("in the clear"), "{error}");
        let error = http("http://127.0.0.1:1/x", Some("hunter\n2")).unwrap().get().unwrap_err();
        assert!(matches!(&error, NotifyError::Settings(reason) if !reason.contains("hunter")), "{error}");
    }

    #[test]
    fn what_cannot_be_reached_is_said_without_its_address() {
        let error = http("http://127.0.0.1:1/hooks/XXXXXXXXXXXX", None).unwrap().post("", &Value::Null, &[]).unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("refused") && !error.to_string().contains("XXXX"), "{error}");
        let failing: SecretSource = Box::new(|| Err("read url of sink x: the environment has no X".to_owned()));
        let target = HttpTarget { url: failing, token: None, headers: Vec::new(), ca_file: None };
        let error = Http::open(target).unwrap().get().unwrap_err();
        assert_eq!(error, NotifyError::Settings("read url of sink x: the environment has no X".into()));
        assert_eq!(http("", None).unwrap().get().unwrap_err(), NotifyError::Settings("the address is empty".into()));
    }

    #[test]
    fn answers_are_read_for_what_they_mean() {
        let of = |status: u16| judge(StatusCode::from_u16(status).unwrap(), "no\nservice");
        assert_eq!((of(200), of(202)), (Ok(()), Ok(())));
        assert_eq!(of(404), Err(NotifyError::Refused("it answered 404: no service".into())));
        assert_eq!(of(302), Err(NotifyError::Refused("it answered 302: redirects are not followed".into())));
        for status in [408, 425, 429, 500, 503] {
            assert!(of(status).unwrap_err().is_transient(), "{status}");
        }
        assert!(!of(400).unwrap_err().is_transient());
    }

    #[test]
    fn a_file_of_roots_without_a_certificate_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = |ca: &Path| {
            let target = HttpTarget { url: fixed("https://h"), token: None, headers: Vec::new(), ca_file: Some(ca.to_owned()) };
            Http::open(target).err().expect("no certificate").to_string()
        };
        assert!(open(file.path()).contains("no certificate"));
        assert!(open(Path::new("/nowhere/ca.pem")).contains("/nowhere/ca.pem"));
    }
}
