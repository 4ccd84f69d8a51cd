//! Verifying bundles against the keys that the configuration trusts.
//!
//! [`Trust::verify`] and [`Trust::claim`] are the only ways in, and have no switches: exactly one DSSE signature, by a
//! trusted key, over an in-toto statement that says what was expected. Everything in a bundle but
//! the signed payload is a claim of whoever wrote the file; the hint only chooses among trusted
//! keys. We compare the subject ourselves: that a signature is good says nothing about the file at
//! hand (@sigstore/verify, for one, does not compare).
//!
//! The bundle is read by a parser of our own, stricter than the JSON mapping of protobuf asks for
//! (no members that v0.3 does not have, none twice, standard base64), so that no other reader can
//! understand an accepted bundle differently.

use std::borrow::Cow;
use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lifeboat_core::attestation::{Expected, Mismatch, PAYLOAD_TYPE, Statement, Subject};
use serde::Deserialize;
use serde::de::IgnoredAny;
use sigstore_types::{MediaType, dsse};

use super::{KeyError, PublicKey};

/// Bytes that the JSON of a bundle may have. Ours have about a thousand; the largest statement that
/// is read (512 KiB) has 683 KiB in base64.
pub const MAX_BUNDLE_BYTES: usize = 1 << 20;

/// The public keys whose signatures count.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    keys: HashMap<String, PublicKey>,
}

/// What a verified bundle says. Exists only for bundles that passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// The hint of the trusted key that signed it.
    pub hint: String,
    /// The statement, as signed.
    pub statement: Statement,
}

/// A bundle that proves nothing. Every variant is a failed verification; they differ in what an
/// operator does next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Not a bundle that lifeboat reads: damaged, too large, another version or kind, or not with
    /// exactly one signature.
    #[error("read signature bundle: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// Signed, so it claims, by a key that is not trusted.
    #[error("trust signature: key {} is not configured as trusted", shown(.hint))]
    UntrustedKey {
        /// The hint of that key, as the bundle has it.
        hint: String,
    },
    /// It names a trusted key, but the signature is not that key's over this statement.
    #[error("verify signature: it does not match the statement")]
    BadSignature,
    /// The certificate is not one that the trusted root vouches for, or says nothing of who signs.
    #[error("verify certificate: {reason}")]
    Certificate {
        /// What is wrong with it.
        reason: String,
    },
    /// There is no entry of a transparency log of the trusted root, or it is about something else.
    #[error("verify entry of transparency log: {reason}")]
    Log {
        /// What is wrong with it.
        reason: String,
    },
    /// A timestamp is not one of the trusted root's authorities over this signature, or nobody says when it was signed.
    #[error("verify timestamp: {reason}")]
    Timestamp {
        /// What is wrong with it.
        reason: String,
    },
    /// Signed by a trusted key, about something else.
    #[error("verify signed statement: it is about something else")]
    WrongSubject(#[source] Mismatch),
    /// Signed by a trusted key, but another kind of claim.
    #[error("verify signed statement: it is another kind of claim")]
    WrongPredicate(#[source] Mismatch),
}

impl Trust {
    /// Trust these keys, and nothing else. With none, nothing verifies.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self { keys: keys.into_iter().map(|key| (key.hint().to_owned(), key)).collect() }
    }

    /// Trust the keys in these files (contents of `cosign.pub`), one each.
    pub fn from_pems<'a>(pems: impl IntoIterator<Item = &'a str>) -> Result<Self, KeyError> {
        pems.into_iter().map(PublicKey::from_pem).collect::<Result<Vec<_>, _>>().map(Self::new)
    }

    /// The hints of the trusted keys, sorted.
    pub fn hints(&self) -> Vec<&str> {
        let mut hints: Vec<_> = self.keys.keys().map(String::as_str).collect();
        hints.sort_unstable();
        hints
    }

    /// What `bundle_json` proves, if it proves what is `expected`.
    pub fn verify(&self, bundle_json: &[u8], expected: &Expected<'_>) -> Result<Verified, VerifyError> {
        let verified = self.authentic(bundle_json)?;
        check(&verified.statement, expected)?;
        Ok(verified)
    }

    /// What `bundle_json` says of the subject `name`, for bytes that are not at hand yet: the statement and the SHA-256 that
    /// it names. Whoever gets the bytes compares the digest; before that nothing is proven of them.
    pub fn claim(&self, bundle_json: &[u8], predicate_type: &str, name: &str) -> Result<(Verified, [u8; 32]), VerifyError> {
        let verified = self.authentic(bundle_json)?;
        let mut named = verified.statement.subject.iter().filter(|subject| subject.name == name).filter_map(Subject::sha256);
        // Without a subject of that name any digest does, to be told what it has instead.
        let digest = named.next().unwrap_or_default();
        if named.any(|other| other != digest) {
            return Err(malformed("it names two digests for one subject"));
        }
        check(&verified.statement, &Expected { predicate_type, subject_sha256: digest, subject_name: Some(name), version: None })?;
        Ok((verified, digest))
    }

    /// The statement in a bundle, if a trusted key signed it.
    fn authentic(&self, bundle_json: &[u8]) -> Result<Verified, VerifyError> {
        let envelope = Envelope::read(bundle_json)?;
        let Some(key) = self.keys.get(envelope.hint.as_ref()) else {
            return Err(VerifyError::UntrustedKey { hint: envelope.hint.into_owned() });
        };
        if !key.verifies(&dsse::pae(PAYLOAD_TYPE, &envelope.payload), &envelope.signature) {
            return Err(VerifyError::BadSignature);
        }
        // Only now, with the signature good, are the bytes worth parsing.
        let statement = Statement::parse(&envelope.payload).map_err(malformed)?;
        Ok(Verified { hint: key.hint().to_owned(), statement })
    }
}

fn check(statement: &Statement, expected: &Expected<'_>) -> Result<(), VerifyError> {
    statement.check(expected).map_err(|mismatch| match mismatch {
        Mismatch::PredicateType { .. } => VerifyError::WrongPredicate(mismatch),
        Mismatch::Digest { .. } | Mismatch::Name { .. } | Mismatch::Version { .. } => VerifyError::WrongSubject(mismatch),
    })
}

/// The parts of a bundle that count, unverified. Private: nobody gets a payload this way.
struct Envelope<'a> {
    hint: Cow<'a, str>,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Envelope<'a> {
    fn read(json: &'a [u8]) -> Result<Self, VerifyError> {
        if json.len() > MAX_BUNDLE_BYTES {
            return Err(malformed(format_args!("{} bytes, the limit is {MAX_BUNDLE_BYTES}", json.len())));
        }
        let bundle: WireBundle<'a> = serde_json::from_slice(json).map_err(malformed)?;
        if bundle.media_type != MediaType::Bundle0_3.as_str() {
            return Err(malformed("its media type is not that of a Sigstore bundle v0.3"));
        }
        let WireMaterial { public_key: Some(public_key), certificate: None, x509_certificate_chain: None, .. } =
            bundle.verification_material
        else {
            return Err(malformed("it was not made with a key, but with a certificate or with nothing"));
        };
        let (Some(envelope), None) = (bundle.dsse_envelope, bundle.message_signature) else {
            return Err(malformed("it has no DSSE envelope, or a bare signature"));
        };
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(malformed("its payload type is not that of an in-toto statement"));
        }
        let [signature] = envelope.signatures.as_slice() else {
            return Err(malformed(format_args!("{} signatures, expected one", envelope.signatures.len())));
        };
        // Nothing signs the key id, and verifiers differ in which of the two they look at.
        if !signature.keyid.is_empty() && signature.keyid != public_key.hint {
            return Err(malformed("its key id is not its key hint"));
        }
        Ok(Self { payload: base64("payload", &envelope.payload)?, signature: base64("signature", &signature.sig)?, hint: public_key.hint })
    }
}

/// A Sigstore bundle v0.3 in JSON (`sigstore_bundle.proto`), with the members that we refuse.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireBundle<'a> {
    #[serde(borrow)]
    media_type: Cow<'a, str>,
    #[serde(borrow)]
    verification_material: WireMaterial<'a>,
    #[serde(borrow)]
    dsse_envelope: Option<WireEnvelope<'a>>,
    message_signature: Option<IgnoredAny>,
}

/// Log entries and timestamps may be there: they add to a signature, and are not needed for it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "members are named to be allowed, and are not looked at")]
struct WireMaterial<'a> {
    #[serde(borrow)]
    public_key: Option<WirePublicKey<'a>>,
    certificate: Option<IgnoredAny>,
    x509_certificate_chain: Option<IgnoredAny>,
    tlog_entries: Option<IgnoredAny>,
    timestamp_verification_data: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePublicKey<'a> {
    #[serde(borrow)]
    hint: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireEnvelope<'a> {
    #[serde(borrow)]
    payload_type: Cow<'a, str>,
    #[serde(borrow)]
    payload: Cow<'a, str>,
    #[serde(borrow)]
    signatures: Vec<WireSignature<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature<'a> {
    #[serde(borrow)]
    sig: Cow<'a, str>,
    #[serde(borrow, default)]
    keyid: Cow<'a, str>,
}

fn base64(what: &str, text: &str) -> Result<Vec<u8>, VerifyError> {
    BASE64.decode(text).map_err(|_| malformed(format_args!("its {what} is not base64")))
}

pub(super) fn malformed(reason: impl std::fmt::Display) -> VerifyError {
    VerifyError::Malformed { reason: reason.to_string() }
}

/// A hint from a file, for an error message: escaped, and no longer than a line.
fn shown(hint: &str) -> String {
    format!("{:?}", hint.chars().take(80).collect::<String>())
}
