//! Trusted times: RFC 3161 timestamps over the signature of a bundle.
//!
//! A timestamp authority signs that it saw these bytes at that moment. With one in the bundle, a signature that was made before a key was
//! stolen, revoked or replaced can be told from one that only says so. What is timestamped is the signature, not the statement (Sigstore's
//! client specification, "Timestamping"), so that a token cannot be carried over to another signature of the same statement.
//!
//! Verified with `sigstore-tsa`: certificates and signatures of the authority with ECDSA, chain to the trusted root's, extended key
//! usage, and the authority's own window of validity. Tokens that an authority signs with RSA are refused: that crate does not verify them.

use jiff::Timestamp;
use sigstore_types::{SignatureBytes, TimestampToken};

use super::certificate::{Roots, line};
use super::trust::{VerifyError, malformed};

/// Timestamps that a bundle may have: what sigstore-go, and with it cosign and `gh`, accepts.
pub const MAX_TIMESTAMPS: usize = 32;

impl Roots {
    /// When `signature` (its bytes, DER) is known to have existed, as timestamp authorities of this root say with `tokens` (DER of an RFC
    /// 3161 response or token, one each): the earliest of their times. `None` without tokens.
    ///
    /// Every token has to be good: one that is not is a bundle that somebody changed, or an authority that the root does not know.
    /// The earliest, because one authority's word is enough to have existed then, and no later word takes that back.
    pub fn timestamp<T: AsRef<[u8]>>(
        &self,
        tokens: impl IntoIterator<Item = T>,
        signature: &[u8],
    ) -> Result<Option<Timestamp>, VerifyError> {
        let signature = SignatureBytes::from_bytes(signature);
        let mut earliest: Option<Timestamp> = None;
        for (index, token) in tokens.into_iter().enumerate() {
            if index == MAX_TIMESTAMPS {
                return Err(malformed(format_args!("more than {MAX_TIMESTAMPS} timestamps")));
            }
            let time = self.one(&TimestampToken::new(token.as_ref().to_vec()), &signature)?;
            earliest = Some(earliest.map_or(time, |before| before.min(time)));
        }
        Ok(earliest)
    }

    /// Whether this root can verify timestamps at all.
    pub fn has_timestamp_authorities(&self) -> bool {
        !self.authorities().is_empty()
    }

    fn one(&self, token: &TimestampToken, signature: &SignatureBytes) -> Result<Timestamp, VerifyError> {
        let mut refusal: Option<sigstore_tsa::Error> = None;
        for authority in self.authorities() {
            match sigstore_tsa::verify_timestamp_for_authority(token, signature, authority) {
                Ok(time) => return Ok(time),
                // Of several refusals that one tells most: it is that authority's token.
                Err(error @ sigstore_tsa::Error::TimestampOutsideValidity { .. }) => refusal = Some(error),
                Err(error) => refusal = Some(refusal.unwrap_or(error)),
            }
        }
        let reason = refusal.map_or_else(|| "the trusted root names no timestamp authority".to_owned(), |error| line(&error));
        Err(VerifyError::Timestamp { reason })
    }
}
