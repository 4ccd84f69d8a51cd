//! Verifying bundles against the signers that the configuration trusts.
//!
//! [`Trust::verify`] and [`Trust::claim`] are the only ways in, and have no switches: exactly one DSSE signature, by a
//! trusted key or identity, over an in-toto statement that says what was expected, made when that signer was trusted for it. The
//! last is decided in `lifeboat_core::trust`; here is found out who signed, and when. Everything in a bundle but
//! the signed payload is a claim of whoever wrote the file; the hint only chooses among trusted
//! keys. We compare the subject ourselves: that a signature is good says nothing about the file at
//! hand (@sigstore/verify, for one, does not compare).
//!
//! The bundle is read by a parser of our own, stricter than the JSON mapping of protobuf asks for
//! (no members that v0.3 does not have, none twice, standard base64), so that no other reader can
//! understand an accepted bundle differently. Bundles with a certificate pass it too, before the code of Sigstore sees them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use lifeboat_core::attestation::{Expected, Mismatch, PAYLOAD_TYPE, Statement, Subject};
use lifeboat_core::repository::Sha256;
use lifeboat_core::trust::{self, Evidence, Identity, Kind, Refusal, Terms, When};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sigstore_types::{MediaType, dsse};

use super::known_good::KnownGood;
use super::{KeyError, PublicKey, Roots};
use crate::sha256;

/// Bytes that the JSON of a bundle may have. Ours have about a thousand; the largest statement that
/// is read (512 KiB) has 683 KiB in base64.
pub const MAX_BUNDLE_BYTES: usize = 1 << 20;

/// The signers whose signatures count, and on which terms.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    keys: HashMap<String, TrustedKey>,
    identities: Vec<Identity>,
    roots: Option<Roots>,
    require_timestamp: bool,
}

/// A key whose signatures count.
#[derive(Debug, Clone)]
pub struct TrustedKey {
    /// The key.
    pub key: PublicKey,
    /// On which terms.
    pub terms: Terms,
    /// What the operator vouched for when the key was revoked.
    pub known_good: Option<Arc<KnownGood>>,
}

/// Who made a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum SignedBy {
    /// The holder of a trusted key.
    Key {
        /// The key's hint.
        hint: String,
        /// Whose it is, where the configuration says.
        #[serde(skip_serializing_if = "Option::is_none")]
        person: Option<String>,
    },
    /// Somebody whom an identity provider knows.
    Identity {
        /// The provider.
        issuer: String,
        /// Who it is, in the provider's words.
        subject: String,
        /// Whose identity that is, where the configuration says.
        #[serde(skip_serializing_if = "Option::is_none")]
        person: Option<String>,
    },
}

impl SignedBy {
    /// The person, where the configuration names one.
    pub fn person(&self) -> Option<&str> {
        let (Self::Key { person, .. } | Self::Identity { person, .. }) = self;
        person.as_deref()
    }
}

impl fmt::Display for SignedBy {
    /// The hint of the key, or subject and issuer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { hint, .. } => f.write_str(hint),
            Self::Identity { issuer, subject, .. } => write!(f, "{subject} ({issuer})"),
        }
    }
}

/// What a verified bundle says. Exists only for bundles that passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// Who signed it.
    pub signer: SignedBy,
    /// When, and how sure that is.
    pub when: When,
    /// SHA-256 of the statement's bytes, as signed.
    pub sha256: Sha256,
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
    /// Signed, and that is proven, by an identity that is not trusted.
    #[error("trust signature: {} of {} is not configured as trusted", shown(.subject), shown(.issuer))]
    UntrustedIdentity {
        /// The identity provider.
        issuer: String,
        /// Who signed, in its words.
        subject: String,
    },
    /// Signed by a trusted signer, but not on the terms on which it is trusted: for something else, too early, too late, after it was
    /// revoked, or without the trusted time that is asked for.
    #[error("trust signature of {signer}")]
    DoesNotCount {
        /// Who signed.
        signer: String,
        /// Why it does not count.
        #[source]
        refusal: Refusal,
    },
    /// Whether the operator vouched for it could not be looked up.
    #[error("look up whether a statement is known to be good: {reason}")]
    KnownGood {
        /// Why not.
        reason: String,
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

impl VerifyError {
    /// Whether the signature as such may be good, and only is not one of those that count here.
    pub fn is_of_trust(&self) -> bool {
        matches!(self, Self::UntrustedKey { .. } | Self::UntrustedIdentity { .. } | Self::DoesNotCount { .. })
    }
}

impl Trust {
    /// Trust these keys for everything and for ever, and nothing else. With none, nothing verifies.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        keys.into_iter().fold(Self::default(), |trust, key| trust.with_key(TrustedKey { key, terms: Terms::default(), known_good: None }))
    }

    /// Trust the keys in these files (contents of `cosign.pub`), one each.
    pub fn from_pems<'a>(pems: impl IntoIterator<Item = &'a str>) -> Result<Self, KeyError> {
        pems.into_iter().map(PublicKey::from_pem).collect::<Result<Vec<_>, _>>().map(Self::new)
    }

    /// Also trust this key. A key is trusted on one set of terms: those it was given last.
    #[must_use]
    pub fn with_key(mut self, key: TrustedKey) -> Self {
        self.keys.insert(key.key.hint().to_owned(), key);
        self
    }

    /// Also trust these identities, of the instance of Sigstore that `roots` describes. An identity may be meant by several entries: one of them
    /// is enough.
    #[must_use]
    pub fn with_identity(mut self, identity: Identity) -> Self {
        self.identities.push(identity);
        self
    }

    /// Believe the certificates and timestamps of this instance of Sigstore. Without it certificates prove nothing, and timestamps
    /// are not looked at.
    #[must_use]
    pub fn with_roots(mut self, roots: Roots) -> Self {
        self.roots = Some(roots);
        self
    }

    /// Count only signatures whose time somebody else than the signer proves.
    #[must_use]
    pub fn requiring_timestamps(mut self, require: bool) -> Self {
        self.require_timestamp = require;
        self
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.identities.is_empty()
    }

    /// The hints of the trusted keys, sorted.
    pub fn hints(&self) -> Vec<&str> {
        let mut hints: Vec<_> = self.keys.keys().map(String::as_str).collect();
        hints.sort_unstable();
        hints
    }

    /// The trusted key of this hint.
    pub fn key(&self, hint: &str) -> Option<&TrustedKey> {
        self.keys.get(hint)
    }

    /// The trusted identities.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// Whether what the key behind `hint` signs at `now`, without the word of a third party, would count as a statement of this
    /// kind: what a host asks before it signs with a key that it has held for long.
    ///
    /// # Errors
    ///
    /// Why it would not.
    pub fn would_count(&self, hint: &str, kind: Kind, now: Timestamp) -> Result<When, VerifyError> {
        let key = self.keys.get(hint).ok_or_else(|| VerifyError::UntrustedKey { hint: hint.to_owned() })?;
        let evidence = Evidence { kind: Some(kind), proven: self.require_timestamp.then_some(now), claimed: Some(now) };
        let judged = key.terms.judge(evidence, self.require_timestamp, || false);
        judged.map_err(|refusal| VerifyError::DoesNotCount { signer: format!("key {hint}"), refusal })
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

    /// The statement in a bundle, if somebody signed it who is trusted to, when they were.
    fn authentic(&self, bundle_json: &[u8]) -> Result<Verified, VerifyError> {
        let envelope = Envelope::read(bundle_json)?;
        match &envelope.material {
            Material::Key { hint, timestamps } => self.by_key(&envelope, hint, timestamps),
            Material::Certificate => self.by_identity(bundle_json, &envelope),
        }
    }

    fn by_key(&self, envelope: &Envelope<'_>, hint: &str, timestamps: &[Vec<u8>]) -> Result<Verified, VerifyError> {
        let Some(trusted) = self.keys.get(hint) else {
            return Err(VerifyError::UntrustedKey { hint: hint.to_owned() });
        };
        if !trusted.key.verifies(&dsse::pae(PAYLOAD_TYPE, &envelope.payload), &envelope.signature) {
            return Err(VerifyError::BadSignature);
        }
        // Only now, with the signature good, are the bytes worth parsing.
        let statement = Statement::parse(&envelope.payload).map_err(malformed)?;
        let proven = match &self.roots {
            Some(roots) if roots.has_timestamp_authorities() && !timestamps.is_empty() => {
                roots.timestamp(timestamps, &envelope.signature)?
            }
            // Nobody here knows the authority, so it proves nothing: the signature has no trusted time.
            _ => None,
        };
        let sha256 = sha256::of(&envelope.payload);
        let evidence = Evidence { kind: Kind::of(&statement.predicate_type), proven, claimed: trust::claimed(&statement) };
        let mut unreadable = None;
        let vouched = || match trusted.known_good.as_ref().map_or(Ok(false), |list| list.contains(sha256)) {
            Ok(listed) => listed,
            Err(error) => {
                unreadable = Some(error.to_string());
                false
            }
        };
        let judged = trusted.terms.judge(evidence, self.require_timestamp, vouched);
        if let Some(reason) = unreadable {
            return Err(VerifyError::KnownGood { reason });
        }
        let when = judged.map_err(|refusal| VerifyError::DoesNotCount { signer: format!("key {hint}"), refusal })?;
        let signer = SignedBy::Key { hint: hint.to_owned(), person: trusted.terms.person.clone() };
        Ok(Verified { signer, when, sha256, statement })
    }

    fn by_identity(&self, bundle_json: &[u8], envelope: &Envelope<'_>) -> Result<Verified, VerifyError> {
        let Some(roots) = &self.roots else {
            let reason = "it is that of a certificate authority, and trust.trusted_root names none".to_owned();
            return Err(VerifyError::Certificate { reason });
        };
        let signed = roots.verify_certificate(bundle_json)?;
        // Two readers, one bundle: what they read must be the same.
        if signed.statement != envelope.payload {
            return Err(malformed("it can be read in two ways"));
        }
        let statement = Statement::parse(&signed.statement).map_err(malformed)?;
        let evidence = Evidence { kind: Kind::of(&statement.predicate_type), proven: Some(signed.signed_at), claimed: None };
        let mut refused = None;
        for identity in self.identities.iter().filter(|identity| identity.matches(&signed.issuer, &signed.subject)) {
            match identity.terms.judge(evidence, self.require_timestamp, || false) {
                Ok(when) => {
                    let person = identity.terms.person.clone();
                    let signer = SignedBy::Identity { issuer: signed.issuer, subject: signed.subject, person };
                    return Ok(Verified { signer, when, sha256: sha256::of(&signed.statement), statement });
                }
                // That one is trusted for this, and not now, tells more than that another is for something else.
                Err(refusal) if !matches!(refused, Some(ref before) if !matches!(before, Refusal::WrongKind { .. })) => {
                    refused = Some(refusal)
                }
                Err(_) => {}
            }
        }
        Err(match refused {
            Some(refusal) => VerifyError::DoesNotCount { signer: shown(&signed.subject), refusal },
            None => VerifyError::UntrustedIdentity { issuer: signed.issuer, subject: signed.subject },
        })
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
    material: Material<'a>,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// What a bundle brings for its verification.
enum Material<'a> {
    /// The hint of a key, and timestamps over the signature, DER.
    Key { hint: Cow<'a, str>, timestamps: Vec<Vec<u8>> },
    /// A certificate, and what belongs to it.
    Certificate,
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
        let (Some(envelope), None) = (bundle.dsse_envelope, bundle.message_signature) else {
            return Err(malformed("it has no DSSE envelope, or a bare signature"));
        };
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(malformed("its payload type is not that of an in-toto statement"));
        }
        let [signature] = envelope.signatures.as_slice() else {
            return Err(malformed(format_args!("{} signatures, expected one", envelope.signatures.len())));
        };
        let material = Material::read(bundle.verification_material, &signature.keyid)?;
        Ok(Self { material, payload: base64("payload", &envelope.payload)?, signature: base64("signature", &signature.sig)? })
    }
}

impl<'a> Material<'a> {
    fn read(wire: WireMaterial<'a>, keyid: &str) -> Result<Self, VerifyError> {
        // A message of protobuf that is absent may be written as null, in which case it is none.
        match wire {
            WireMaterial { public_key: Some(public_key), certificate: None, x509_certificate_chain: None, .. } => {
                // Nothing signs the key id, and verifiers differ in which of the two they look at.
                if !keyid.is_empty() && keyid != public_key.hint {
                    return Err(malformed("its key id is not its key hint"));
                }
                let tokens = wire.timestamp_verification_data.unwrap_or_default().rfc3161_timestamps;
                let timestamps = tokens.iter().map(|token| base64("timestamp", &token.signed_timestamp)).collect::<Result<_, _>>()?;
                Ok(Self::Key { hint: public_key.hint, timestamps })
            }
            WireMaterial { public_key: None, certificate: Some(certificate), x509_certificate_chain: None, .. } => {
                base64("certificate", &certificate.raw_bytes)?;
                Ok(Self::Certificate)
            }
            _ => Err(malformed("it was made with neither a key nor a certificate, or with several of them")),
        }
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

/// Log entries add to a signature by a key, and are not needed for it, nor looked at. Those of a certificate are read by `sigstore-verify`;
/// here it is seen that they have no members that it would pass over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireMaterial<'a> {
    #[serde(borrow)]
    public_key: Option<WirePublicKey<'a>>,
    #[serde(borrow)]
    certificate: Option<WireCertificate<'a>>,
    x509_certificate_chain: Option<IgnoredAny>,
    #[expect(dead_code, reason = "read for its shape")]
    tlog_entries: Option<Vec<WireEntry>>,
    #[serde(borrow)]
    timestamp_verification_data: Option<WireTimestamps<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireCertificate<'a> {
    #[serde(borrow)]
    raw_bytes: Cow<'a, str>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireTimestamps<'a> {
    #[serde(borrow, default)]
    rfc3161_timestamps: Vec<WireTimestamp<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireTimestamp<'a> {
    #[serde(borrow)]
    signed_timestamp: Cow<'a, str>,
}

/// `TransparencyLogEntry` of `sigstore_rekor.proto`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "members are named to be allowed, and are not looked at")]
struct WireEntry {
    log_index: Option<IgnoredAny>,
    log_id: Option<WireLogId>,
    kind_version: Option<WireKindVersion>,
    integrated_time: Option<IgnoredAny>,
    inclusion_promise: Option<WirePromise>,
    inclusion_proof: Option<WireProof>,
    canonicalized_body: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct WireLogId {
    key_id: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct WireKindVersion {
    kind: Option<IgnoredAny>,
    version: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct WirePromise {
    signed_entry_timestamp: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct WireProof {
    log_index: Option<IgnoredAny>,
    root_hash: Option<IgnoredAny>,
    tree_size: Option<IgnoredAny>,
    hashes: Option<IgnoredAny>,
    checkpoint: Option<WireCheckpoint>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct WireCheckpoint {
    envelope: Option<IgnoredAny>,
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
