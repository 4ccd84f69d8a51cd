//! What the service's refusals mean. One line each; never a header or a signature.

use std::error::Error;

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use lifeboat_aws::{Unsent, clean};

/// What a caller does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No credentials, wrong ones, or not allowed.
    Denied,
    /// Too many requests, lost on the way, or the server's trouble: later.
    Transient,
    /// Anything else: no such key, a disabled one, one of another kind.
    Other,
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} AWS KMS key {key}: {reason}")]
pub struct KmsError {
    /// What to do about it.
    pub kind: Kind,
    /// What was tried.
    pub action: &'static str,
    /// With which key, as it was named.
    pub key: String,
    /// Why, in one line.
    pub reason: String,
}

impl KmsError {
    pub(crate) fn new(kind: Kind, action: &'static str, key: &str, reason: impl Into<String>) -> Self {
        Self { kind, action, key: clean(key), reason: reason.into() }
    }

    /// Whether trying again may help. The SDK has tried several times before it says so.
    pub fn is_transient(&self) -> bool {
        self.kind == Kind::Transient
    }

    pub(crate) fn of<E>(action: &'static str, key: &str, error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match &error {
            SdkError::ServiceError(context) => {
                let metadata = context.err();
                Self::answered(action, key, context.raw().status().as_u16(), metadata.code(), metadata.message())
            }
            SdkError::ResponseError(context) => {
                let status = context.raw().status().as_u16();
                Self::new(Kind::Transient, action, key, format!("an unreadable answer, status {status}"))
            }
            SdkError::TimeoutError(_) => Self::new(Kind::Transient, action, key, "no answer in time"),
            _ => Self::unsent(action, key, &error),
        }
    }

    /// What an answer with an error code means. The codes are those of "Common errors" and of "Sign" in the API reference.
    fn answered(action: &'static str, key: &str, status: u16, code: Option<&str>, message: Option<&str>) -> Self {
        let kind = match (status, code.unwrap_or_default()) {
            (
                _,
                "AccessDeniedException"
                | "UnrecognizedClientException"
                | "InvalidClientTokenId"
                | "InvalidSignatureException"
                | "SignatureDoesNotMatch"
                | "MissingAuthenticationTokenException"
                | "MissingAuthenticationToken"
                | "IncompleteSignature"
                | "ExpiredTokenException"
                | "NotAuthorized"
                | "OptInRequired",
            ) => Kind::Denied,
            (_, "ThrottlingException" | "LimitExceededException" | "KMSInternalException" | "DependencyTimeoutException")
            | (_, "KeyUnavailableException" | "ServiceUnavailable" | "InternalFailure") => Kind::Transient,
            (401 | 403, _) => Kind::Denied,
            (429 | 500..=599, _) => Kind::Transient,
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
        Self::new(kind, action, key, reason)
    }

    /// It never reached the service, or the answer never reached us.
    fn unsent(action: &'static str, key: &str, error: &(dyn Error + 'static)) -> Self {
        let (kind, reason) = match Unsent::of(error) {
            Unsent::Credentials(reason) => (Kind::Denied, reason),
            Unsent::Certificate(reason) => (Kind::Other, reason),
            Unsent::Lost(reason) => (Kind::Transient, reason),
        };
        Self::new(kind, action, key, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        for (status, code, expected) in [
            (400, "AccessDeniedException", Kind::Denied),
            (400, "UnrecognizedClientException", Kind::Denied),
            (400, "ThrottlingException", Kind::Transient),
            (500, "KMSInternalException", Kind::Transient),
            (503, "", Kind::Transient),
            (403, "", Kind::Denied),
            (400, "NotFoundException", Kind::Other),
            (400, "DisabledException", Kind::Other),
        ] {
            let code = Some(code).filter(|code| !code.is_empty());
            assert_eq!(KmsError::answered("sign with", "k", status, code, None).kind, expected, "{status} {code:?}");
        }
    }

    #[test]
    fn a_refusal_to_sign_in_is_not_repeated() {
        let error = KmsError::answered("sign with", "alias/k", 400, Some("InvalidSignatureException"), Some("you sent AKIDEXAMPLE/abcd"));
        assert_eq!(error.to_string(), "sign with AWS KMS key alias/k: 400 InvalidSignatureException");
        let error = KmsError::answered("sign with", "k", 400, Some("NotFoundException"), Some("Key\n'k' does not exist."));
        assert_eq!(error.to_string(), "sign with AWS KMS key k: 400 NotFoundException: Key 'k' does not exist");
    }
}
