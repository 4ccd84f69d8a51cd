//! What a store's refusals mean. One line each; never an address with a signature, a header, or the body of a refusal to sign in.

use std::error::Error;

use crate::http::{Noted, taken};

/// What a caller does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No such object.
    NotFound,
    /// A conditional create found something there.
    Exists,
    /// No credentials, wrong ones, or not allowed.
    Denied,
    /// The bucket does not exist.
    NoBucket,
    /// Too many requests: later.
    Throttled,
    /// Lost on the way, or the server's trouble: again.
    Transient,
    /// No room.
    Full,
    /// The object ends before what was asked of it.
    Short {
        /// Its length in bytes.
        length: u64,
    },
    /// The object is longer than the caller's limit.
    Long {
        /// Its length in bytes.
        length: u64,
    },
    /// The server does not know this operation.
    Unsupported,
    /// Anything else.
    Other,
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {key}: {reason}")]
pub struct CloudError {
    /// What to do about it.
    pub kind: Kind,
    /// What was tried.
    pub action: &'static str,
    /// Of which object, or which bucket.
    pub key: String,
    /// Why, in one line.
    pub reason: String,
    /// The status of the answer.
    pub status: Option<u16>,
    /// The error code of the answer.
    pub code: Option<String>,
}

/// The longest message of a server that is repeated.
const MAX_MESSAGE: usize = 200;

impl CloudError {
    pub(crate) fn new(kind: Kind, action: &'static str, key: &str, reason: impl Into<String>) -> Self {
        Self { kind, action, key: key.to_owned(), reason: reason.into(), status: None, code: None }
    }

    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Throttled | Kind::Transient)
    }

    /// What went wrong, by what was seen of the last request: the texts of `object_store` hold addresses, and those hold signatures.
    pub(crate) fn of(action: &'static str, key: &str, error: &object_store::Error) -> Self {
        if let Some(noted) = taken() {
            return Self::noted(action, key, noted);
        }
        let kind = match error {
            object_store::Error::NotFound { .. } => Kind::NotFound,
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => Kind::Exists,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => Kind::Denied,
            object_store::Error::NotSupported { .. } | object_store::Error::NotImplemented { .. } => Kind::Unsupported,
            _ => Kind::Other,
        };
        Self::new(kind, action, key, clean(&root(error).to_string()))
    }

    pub(crate) fn noted(action: &'static str, key: &str, noted: Noted) -> Self {
        match noted {
            Noted::Refused { at_store: true, status, code, message, .. } => {
                Self::answered(action, key, status, code.as_deref(), message.as_deref())
            }
            // Who hands out tokens. What they say to a refused secret may repeat it.
            Noted::Refused { host, status, code, .. } => {
                let kind = if matches!(status, 408 | 429 | 500..) { Kind::Transient } else { Kind::Denied };
                let code = code.map(|code| format!(" {}", clean(&code))).unwrap_or_default();
                Self { status: Some(status), ..Self::new(kind, action, key, format!("credentials: {host} answers {status}{code}")) }
            }
            Noted::Lost { at_store: true, reason, .. } => {
                // Trying again does not make a certificate better.
                let certificate = reason.contains("certificate") || reason.contains("UnknownIssuer");
                Self::new(if certificate { Kind::Other } else { Kind::Transient }, action, key, reason)
            }
            Noted::NoCredentials { reason } => Self::new(Kind::Denied, action, key, format!("credentials: {reason}")),
            Noted::Lost { nobody: true, reason, .. } => {
                Self::new(Kind::Denied, action, key, format!("no credentials found in environment, files or instance ({reason})"))
            }
            // A token that cannot be renewed now may be renewed soon: a backup must not end because of it.
            Noted::Lost { host, reason, .. } => Self::new(Kind::Transient, action, key, format!("credentials: {host}: {reason}")),
        }
    }

    /// What an answer with an error code means. The codes are those of "Common REST API error codes" and "Blob Storage error codes" of
    /// Azure, and of "HTTP status and error codes" of Google's two APIs.
    pub(crate) fn answered(action: &'static str, key: &str, status: u16, code: Option<&str>, message: Option<&str>) -> Self {
        let kind = match (status, code.unwrap_or_default()) {
            (404, "NoSuchBucket" | "ContainerNotFound") => Kind::NoBucket,
            // Google's JSON says it in words alone.
            (404, "notFound") if message.is_some_and(|message| message.contains("bucket does not exist")) => Kind::NoBucket,
            (429, _) | (_, "ServerBusy" | "SlowDown" | "rateLimitExceeded" | "userRateLimitExceeded" | "quotaExceeded") => Kind::Throttled,
            // Under a policy that keeps it, or a lease of somebody else's.
            (409 | 412, "BlobImmutableDueToPolicy" | "LeaseIdMissing" | "SnapshotsPresent") if action == "delete" => Kind::Denied,
            (412, _) | (409, "BlobAlreadyExists" | "BlobImmutableDueToPolicy" | "conditionNotMet") => Kind::Exists,
            (409, "ContainerBeingDeleted" | "ContainerDisabled" | "InvalidBlobType") => Kind::Other,
            (409, _) => Kind::Transient,
            (400, "InvalidAuthenticationInfo" | "InvalidArgument.Authentication") => Kind::Denied,
            (404, _) => Kind::NotFound,
            (401 | 403, _) => Kind::Denied,
            (507, _) => Kind::Full,
            (501, _) | (405, _) => Kind::Unsupported,
            (408 | 500..=599, _) => Kind::Transient,
            _ => Kind::Other,
        };
        let mut reason = match code {
            Some(code) => format!("{status} {}", clean(code)),
            None => status.to_string(),
        };
        // What a refusal to sign in says may repeat what was sent.
        if kind != Kind::Denied
            && let Some(message) = message.filter(|message| !message.is_empty())
        {
            reason.push_str(&format!(": {}", clean(message)));
        }
        Self { status: Some(status), code: code.map(clean), ..Self::new(kind, action, key, reason) }
    }
}

pub(crate) fn root<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last
}

/// One line of a bearable length.
pub(crate) fn clean(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect();
    line.trim().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(action: &'static str, status: u16, code: &str, message: &str) -> Kind {
        CloudError::answered(action, "k", status, Some(code).filter(|code| !code.is_empty()), Some(message)).kind
    }

    #[test]
    fn answers_are_told_apart() {
        for (action, status, code, message, expected) in [
            ("read", 404, "NoSuchKey", "", Kind::NotFound),
            ("read", 404, "BlobNotFound", "", Kind::NotFound),
            ("read", 404, "", "", Kind::NotFound),
            ("list", 404, "NoSuchBucket", "", Kind::NoBucket),
            ("list", 404, "ContainerNotFound", "", Kind::NoBucket),
            ("create", 404, "notFound", "The specified bucket does not exist.", Kind::NoBucket),
            ("create", 412, "conditionNotMet", "", Kind::Exists),
            ("create", 412, "ConditionNotMet", "", Kind::Exists),
            ("create", 409, "BlobAlreadyExists", "", Kind::Exists),
            ("create", 409, "BlobImmutableDueToPolicy", "", Kind::Exists),
            ("delete", 409, "BlobImmutableDueToPolicy", "", Kind::Denied),
            ("delete", 403, "retentionPolicyNotMet", "", Kind::Denied),
            ("create", 403, "AuthenticationFailed", "", Kind::Denied),
            ("create", 401, "authError", "", Kind::Denied),
            ("create", 429, "", "", Kind::Throttled),
            ("create", 503, "ServerBusy", "", Kind::Throttled),
            ("create", 403, "rateLimitExceeded", "", Kind::Throttled),
            ("create", 503, "", "", Kind::Transient),
            ("create", 500, "OperationTimedOut", "", Kind::Transient),
            ("create", 400, "Md5Mismatch", "", Kind::Other),
            ("create", 501, "", "", Kind::Unsupported),
            ("create", 507, "", "", Kind::Full),
        ] {
            assert_eq!(kind(action, status, code, message), expected, "{action} {status} {code}");
        }
    }

    #[test]
    fn a_refusal_to_sign_in_is_not_repeated() {
        let error = CloudError::answered("read", "k", 403, Some("AuthenticationFailed"), Some("the MAC signature 'hunter2'"));
        assert_eq!(error.to_string(), "read k: 403 AuthenticationFailed");
        let noted = Noted::Refused {
            at_store: false,
            host: "login.example.org".into(),
            status: 401,
            code: Some("invalid_client".into()),
            message: Some("hunter2".into()),
            length: None,
        };
        let error = CloudError::noted("open", "b", noted);
        assert_eq!(
            (error.to_string().as_str(), error.kind),
            ("open b: credentials: login.example.org answers 401 invalid_client", Kind::Denied)
        );
        let lost = |nobody| Noted::Lost { at_store: false, nobody, host: "login.example.org".into(), reason: "timed out".into() };
        assert_eq!(CloudError::noted("open", "b", lost(true)).kind, Kind::Denied);
        assert_eq!(CloudError::noted("open", "b", lost(false)).to_string(), "open b: credentials: login.example.org: timed out");
        let error = CloudError::answered("read", "k", 400, Some("InvalidRange"), Some("a\nb."));
        assert_eq!(error.to_string(), "read k: 400 InvalidRange: a b");
    }
}
