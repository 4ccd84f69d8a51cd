//! Bundles that were signed with a certificate of a Sigstore instance, verified offline against its trusted root.
//!
//! A certificate authority (Fulcio) vouched for ten minutes that a key belongs to an identity; a transparency log, a timestamp authority
//! or both prove that the signature was made within them. All of that is in the bundle, and everything that it is compared with is in the
//! trusted root, so nothing here may touch the network. What the root knows is demanded: where it names transparency logs, a bundle
//! without an entry of one of them counts for nothing, and where it names certificate transparency logs, so does a certificate without
//! the promise of one.
//!
//! The checks are those of Sigstore's client specification ("Verification"), in the order of `sigstore-verify`, whose code does them.
//! Who may sign what, and until when, is not decided here: [`super::Trust`] does that with what it gets. Nor are digests of subjects
//! compared with anything.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_core::attestation::{PAYLOAD_TYPE, Statement, Subject};
use sigstore_crypto::KeyAlgorithm;
use sigstore_trust_root::{TrustedRoot, TsaAuthority};
use sigstore_types::bundle::VerificationMaterialContent;
use sigstore_types::{Bundle, MediaType, Sha256Hash, SignatureContent};
use sigstore_verify::{VerificationPolicy, Verifier};

use super::trust::{MAX_BUNDLE_BYTES, VerifyError, malformed};

/// Bytes that the JSON of a trusted root may have. That of the public instance has about 7000.
pub const MAX_ROOTS_BYTES: usize = 1 << 20;

/// What a trusted root's media type begins with: `…trustedroot+json;version=0.1` and, as newer tools write it, `…trustedroot.v0.2+json`
/// (`sigstore_trustroot.proto`).
const ROOTS_MEDIA_TYPE: &str = "application/vnd.dev.sigstore.trustedroot";

/// Whom a Sigstore instance consists of: certificate authorities, transparency logs, timestamp authorities, each with its keys and times.
///
/// Cheap to clone; used by many threads at once.
#[derive(Clone)]
pub struct Roots {
    inner: Arc<Inner>,
}

struct Inner {
    verifier: Verifier,
    policy: VerificationPolicy,
    authorities: Vec<TsaAuthority>,
    has_logs: bool,
    has_certificate_logs: bool,
}

/// A trusted root that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read trusted root: {reason}")]
pub struct RootsError {
    reason: String,
}

/// What a bundle proves that was signed with a certificate: exists only where every check passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSigned {
    /// Who told the certificate authority who the signer is: the URL of an OpenID Connect issuer.
    pub issuer: String,
    /// Who the signer is, in the issuer's words: an e-mail address or a URI.
    pub subject: String,
    /// When the signature was made, as a transparency log or a timestamp authority of the root says: the earliest of these times, all of
    /// which lie within the validity of the certificate. Never the signer's own claim.
    pub signed_at: Timestamp,
    /// The in-toto statement, byte for byte as it was signed.
    pub statement: Vec<u8>,
}

impl Roots {
    /// The trusted root in the JSON of a `trusted_root.json` ("TrustedRoot" in `sigstore_trustroot.proto`). One with timestamp authorities
    /// only is one as well: then no certificate counts, but timestamps do.
    pub fn from_json(json: &str) -> Result<Self, RootsError> {
        let refused = |reason: String| RootsError { reason };
        if json.len() > MAX_ROOTS_BYTES {
            return Err(refused(format!("{} bytes, the limit is {MAX_ROOTS_BYTES}", json.len())));
        }
        let root = TrustedRoot::from_json(json).map_err(|error| refused(line(&error)))?;
        if !root.media_type.starts_with(ROOTS_MEDIA_TYPE) {
            return Err(refused("its media type is not that of a Sigstore trusted root".to_owned()));
        }
        let verifier = Verifier::new(&root).map_err(|error| refused(line(&error)))?;
        let authorities = root.tsa_authorities();
        if root.certificate_authorities.is_empty() && authorities.is_empty() {
            return Err(refused("it names neither a certificate authority nor a timestamp authority that is valid yet".to_owned()));
        }
        let (has_logs, has_certificate_logs) = (!root.tlogs.is_empty(), !root.ctlogs.is_empty());
        let mut policy = VerificationPolicy::any_identity();
        if !has_logs {
            policy = policy.skip_tlog_unsafe();
        }
        if !has_certificate_logs {
            policy = policy.skip_sct();
        }
        Ok(Self { inner: Arc::new(Inner { verifier, policy, authorities, has_logs, has_certificate_logs }) })
    }

    /// What a bundle with a certificate proves. Chain, promise of the certificate transparency log, log entry, timestamps, and the signature
    /// over the statement; one of them wrong, or one of them missing that the root demands, and nothing is proven.
    ///
    /// # Errors
    ///
    /// Every [`VerifyError`] but those about trust, subjects and predicates, which the caller decides.
    pub fn verify_certificate(&self, bundle_json: &[u8]) -> Result<CertificateSigned, VerifyError> {
        let Inner { verifier, policy, has_logs, has_certificate_logs, .. } = &*self.inner;
        if bundle_json.len() > MAX_BUNDLE_BYTES {
            return Err(malformed(format_args!("{} bytes, the limit is {MAX_BUNDLE_BYTES}", bundle_json.len())));
        }
        let text = std::str::from_utf8(bundle_json).map_err(malformed)?;
        let bundle = Bundle::from_json(text).map_err(|error| malformed(line(&error)))?;
        if bundle.media_type() != MediaType::Bundle0_3 {
            return Err(malformed("its media type is not that of a Sigstore bundle v0.3"));
        }
        if !matches!(bundle.verification_material.content, VerificationMaterialContent::Certificate(_)) {
            return Err(malformed("it was not made with a certificate"));
        }
        let SignatureContent::DsseEnvelope(envelope) = &bundle.content else {
            return Err(malformed("it has no DSSE envelope"));
        };
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(malformed("its payload type is not that of an in-toto statement"));
        }
        let logged = !bundle.verification_material.tlog_entries.is_empty();
        if logged && !has_logs {
            return Err(VerifyError::Log { reason: "the trusted root names no transparency log".to_owned() });
        }
        // The verifier wants the digest of something that the statement speaks of. Which it is decides nothing: what is signed is the whole
        // statement, and the caller compares.
        let payload = envelope.payload.as_bytes();
        let statement = Statement::parse(payload).map_err(malformed)?;
        let Some(digest) = statement.subject.iter().find_map(Subject::sha256) else {
            return Err(malformed("no subject of its statement has a SHA-256"));
        };
        let verified = verifier.verify(Sha256Hash::new(digest), &bundle, policy).map_err(refusal)?;
        // What is relied on, in case a step were ever left out above.
        let complete = verified.certificate_verified()
            && verified.sct_verified() == *has_certificate_logs
            && verified.tlog_verified() == *has_logs
            && (logged || !has_logs);
        let certificate = verified.certificate().filter(|_| complete);
        let Some(certificate) = certificate else {
            return Err(VerifyError::Certificate { reason: "not everything in it was checked".to_owned() });
        };
        if certificate.key_algorithm != KeyAlgorithm::EcdsaP256 {
            return Err(malformed("the key of its certificate is not ECDSA P-256"));
        }
        let nobody = |what: &str| VerifyError::Certificate { reason: format!("it names no {what}") };
        let issuer = verified.issuer().filter(|text| !text.is_empty()).ok_or_else(|| nobody("issuer of identities"))?;
        let subject = verified.identity().map(|name| name.as_str()).filter(|text| !text.is_empty());
        let subject = subject.ok_or_else(|| nobody("identity"))?;
        let signed_at = verified.verified_timestamps().iter().min().copied();
        let signed_at = signed_at.ok_or_else(|| VerifyError::Timestamp { reason: "nobody says when it was signed".to_owned() })?;
        Ok(CertificateSigned { issuer: issuer.to_owned(), subject: subject.to_owned(), signed_at, statement: payload.to_vec() })
    }

    pub(super) fn authorities(&self) -> &[TsaAuthority] {
        &self.inner.authorities
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roots")
            .field("logs", &self.inner.has_logs)
            .field("certificate_logs", &self.inner.has_certificate_logs)
            .field("timestamp_authorities", &self.inner.authorities.len())
            .finish_non_exhaustive()
    }
}

/// What a refusal of the verifier means to an operator.
fn refusal(error: sigstore_verify::Error) -> VerifyError {
    use sigstore_verify::Error as E;
    let reason = line(&error);
    match error {
        E::SignatureInvalid(_) => VerifyError::BadSignature,
        E::Certificate(_) | E::IdentityMismatch { .. } | E::IssuerMismatch { .. } => VerifyError::Certificate { reason },
        E::TransparencyLog(_) => VerifyError::Log { reason },
        E::Bundle(sigstore_bundle::Error::MissingInclusionProof(_)) => VerifyError::Log { reason: "there is no entry of one".to_owned() },
        E::Bundle(sigstore_bundle::Error::MissingSigningTimeEvidence) => {
            VerifyError::Timestamp { reason: "nobody says when it was signed".to_owned() }
        }
        E::Timestamp(_) => VerifyError::Timestamp { reason },
        _ => malformed(reason),
    }
}

/// An error of the libraries in one line of bearable length: some repeat what they read.
pub(super) fn line(error: &dyn std::error::Error) -> String {
    const MAX_CHARS: usize = 300;
    crate::causes::joined(error).chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CHARS).collect()
}
