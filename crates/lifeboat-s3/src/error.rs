//! What a store's refusals mean. One line each; never a header, a signature, or the body of a refusal to sign in.

use std::error::Error;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::http::Response;
use lifeboat_aws::{Unsent, clean};

/// What a caller does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No such object, or no such version of it.
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
    /// This host's clock and the server's are too far apart to sign.
    ClockSkew,
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
pub struct S3Error {
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

impl S3Error {
    pub(crate) fn new(kind: Kind, action: &'static str, key: &str, reason: impl Into<String>) -> Self {
        Self { kind, action, key: key.to_owned(), reason: reason.into(), status: None, code: None }
    }

    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Throttled | Kind::Transient)
    }

    pub(crate) fn of<E>(action: &'static str, key: &str, error: SdkError<E, Response>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match &error {
            SdkError::ServiceError(context) => {
                let status = context.raw().status().as_u16();
                let region = context.raw().headers().get("x-amz-bucket-region").map(str::to_owned);
                let metadata = context.err();
                Self::answered(action, key, status, metadata.code(), metadata.message(), region.as_deref())
            }
            // An answer that is not S3's: a proxy's page, or half of one.
            SdkError::ResponseError(context) => {
                let status = context.raw().status().as_u16();
                Self { status: Some(status), ..Self::new(Kind::Transient, action, key, format!("an unreadable answer, status {status}")) }
            }
            SdkError::TimeoutError(_) => Self::new(Kind::Transient, action, key, "no answer in time"),
            _ => Self::unsent(action, key, &error),
        }
    }

    /// What an answer with an error code means. The codes are those of "Error responses" in the S3 API reference.
    fn answered(action: &'static str, key: &str, status: u16, code: Option<&str>, message: Option<&str>, region: Option<&str>) -> Self {
        let kind = match (status, code.unwrap_or_default()) {
            (_, "NoSuchBucket") => Kind::NoBucket,
            (_, "RequestTimeTooSkewed" | "RequestInTheFuture" | "RequestExpired") => Kind::ClockSkew,
            (_, "SlowDown" | "Throttling" | "ThrottlingException" | "RequestLimitExceeded" | "TooManyRequests" | "Busy" | "ServerBusy")
            | (429, _) => Kind::Throttled,
            (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "InvalidAccessKeyId" | "SignatureDoesNotMatch")
            | (_, "AccessDenied" | "InvalidSecurity" | "AccountProblem") => Kind::Denied,
            (_, "InvalidObjectState") => Kind::Other,
            (_, "NotImplemented") | (501, _) => Kind::Unsupported,
            (_, "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" | "EntityTooLargeForQuota") | (507, _) => Kind::Full,
            // Somebody creates the same key at this moment: the one who comes later learns by trying again.
            (_, "ConditionalRequestConflict" | "OperationAborted") | (_, "RequestTimeout" | "InternalError" | "ServiceUnavailable") => {
                Kind::Transient
            }
            (412, _) => Kind::Exists,
            // 405: the version that was asked for is a delete marker.
            (404, _) | (405, "MethodNotAllowed") => Kind::NotFound,
            (401 | 403, _) => Kind::Denied,
            (408 | 500 | 502 | 503 | 504, _) => Kind::Transient,
            _ => Kind::Other,
        };
        let mut reason = match code {
            Some(code) => format!("{status} {}", clean(code)),
            None => status.to_string(),
        };
        if matches!(status, 301 | 307 | 400)
            && let Some(region) = region
        {
            reason.push_str(&format!(": the bucket is in region {}", clean(region)));
        } else if !matches!(kind, Kind::Denied | Kind::ClockSkew)
            // What a refusal to sign in says may repeat what was sent.
            && let Some(message) = message.filter(|message| !message.is_empty())
        {
            reason.push_str(&format!(": {}", clean(message)));
        }
        Self { status: Some(status), code: code.map(clean), ..Self::new(kind, action, key, reason) }
    }

    /// It never reached the server, or the answer never reached us.
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

    fn kind(status: u16, code: &str) -> Kind {
        S3Error::answered("read", "k", status, Some(code).filter(|code| !code.is_empty()), None, None).kind
    }

    #[test]
    fn answers_are_told_apart() {
        for (status, code, expected) in [
            (404, "NoSuchKey", Kind::NotFound),
            (404, "", Kind::NotFound),
            (404, "NoSuchBucket", Kind::NoBucket),
            (405, "MethodNotAllowed", Kind::NotFound),
            (412, "PreconditionFailed", Kind::Exists),
            (409, "ConditionalRequestConflict", Kind::Transient),
            (403, "AccessDenied", Kind::Denied),
            (403, "", Kind::Denied),
            (400, "ExpiredToken", Kind::Denied),
            (403, "RequestTimeTooSkewed", Kind::ClockSkew),
            (503, "SlowDown", Kind::Throttled),
            (503, "", Kind::Transient),
            (429, "", Kind::Throttled),
            (500, "InternalError", Kind::Transient),
            // Status 200 with an error inside.
            (200, "InternalError", Kind::Transient),
            (200, "SlowDown", Kind::Throttled),
            (501, "NotImplemented", Kind::Unsupported),
            (507, "", Kind::Full),
            (403, "InvalidObjectState", Kind::Other),
            (400, "InvalidArgument", Kind::Other),
        ] {
            assert_eq!(kind(status, code), expected, "{status} {code}");
        }
    }

    #[test]
    fn a_refusal_to_sign_in_is_not_repeated() {
        let error = S3Error::answered("read", "k", 403, Some("SignatureDoesNotMatch"), Some("you sent AKIDEXAMPLE/abcd"), None);
        assert_eq!(error.to_string(), "read k: 403 SignatureDoesNotMatch");
        let error = S3Error::answered("read", "k", 400, Some("InvalidArgument"), Some("a\nb."), None);
        assert_eq!(error.to_string(), "read k: 400 InvalidArgument: a b");
        let error = S3Error::answered("open", "b", 301, None, None, Some("eu-central-1"));
        assert_eq!(error.to_string(), "open b: 301: the bucket is in region eu-central-1");
    }
}
