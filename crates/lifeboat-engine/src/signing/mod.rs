//! Signing statements and verifying signatures, the Sigstore way.
//!
//! Every signature is a Sigstore bundle v0.3 around one DSSE envelope with one signature over one
//! in-toto statement, ECDSA P-256 with SHA-256 (`docs/format.md`, section 7). A [`Signer`] makes
//! bundles, [`Trust`] reads them. What must never be here: a way to read a statement out of a
//! bundle without verifying it, a switch that makes a check optional, or a public key taken from
//! the bundle that it is to verify.
//!
//! Why these crates and not others: `docs/decisions/0003-sigstore-crates.md`.

mod ambient;
mod certificate;
mod cosign_key;
mod keyless;
mod kms;
mod known_good;
mod service;
mod stamped;
mod timestamp;
mod transit;
mod trust;

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use lifeboat_core::attestation::{PAYLOAD_TYPE, Statement, StatementError};
use sigstore_bundle::{BundleV03, VerificationMaterialV03};
use sigstore_types::bundle::SignatureContent;
use sigstore_types::{DsseEnvelope, DsseSignature, KeyId, PayloadBytes, SignatureBytes, dsse};

pub use crate::secret::SecretSource;
pub use ambient::{PROJECTED_TOKEN, ambient_token};
pub use certificate::{CertificateSigned, MAX_ROOTS_BYTES, Roots, RootsError};
pub use cosign_key::{KeyError, MAX_KEY_FILE_BYTES, PublicKey, SigningKey};
pub use keyless::{KeylessConfig, KeylessSigner, MAX_SIGNING_CONFIG_BYTES};
pub use kms::{KmsConfig, KmsSigner};
pub use known_good::KnownGood;
pub use lifeboat_core::attestation::{Expected, Mismatch};
pub use service::Reach;
pub use stamped::{StampConfig, StampedSigner};
pub use timestamp::MAX_TIMESTAMPS;
pub use transit::{DEFAULT_MOUNT, TransitConfig, TransitSigner};
pub use trust::{MAX_BUNDLE_BYTES, SignedBy, Trust, TrustedKey, Verified, VerifyError};

/// Something that signs statements: a key file, a key service ([`TransitSigner`], [`KmsSigner`]), or a
/// key for ten minutes with a certificate ([`KeylessSigner`]); [`StampedSigner`] adds a timestamp.
pub trait Signer: Send + Sync {
    /// Sign the in-toto statement in `statement`, byte for byte; returns the Sigstore bundle, JSON
    /// in one line. What a reader would refuse to parse is refused here too, before it is signed.
    fn sign_statement(&self, statement: &[u8]) -> Result<String, SignError>;

    /// The key that signs now, for those who are to trust it. `None` where none is named: a
    /// certificate says itself who signed.
    fn public_key(&self) -> Option<PublicKey>;

    /// The hint by which a verifier finds that key: base64 of the SHA-256 of its
    /// SubjectPublicKeyInfo in DER, as cosign writes it.
    fn hint(&self) -> Option<String> {
        self.public_key().map(|public| public.hint().to_owned())
    }

    /// What signs, in a few words for people. Never a secret.
    fn describe(&self) -> String;
}

/// No signature was made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The bytes are not a statement that a verifier would accept.
    #[error("sign statement: it would not be readable")]
    Statement(#[from] StatementError),
    /// The cryptographic library, or a service that takes part, did not sign.
    #[error("sign statement: {0}")]
    Signer(String),
    /// A service that takes part does not take the credentials, or there are none.
    #[error("sign statement: {0}")]
    Denied(String),
}

/// Signs with a private key held in memory, out of a key file in cosign's format.
pub struct KeyFileSigner {
    key: SigningKey,
}

impl KeyFileSigner {
    /// A signer that uses `key`.
    pub fn new(key: SigningKey) -> Self {
        Self { key }
    }

    /// Open the encrypted key file whose contents are `pem`. Costs about a quarter of a second
    /// and 64 MiB while it runs (scrypt, on purpose): open once, sign often.
    pub fn open(pem: &str, password: &[u8]) -> Result<Self, KeyError> {
        Ok(Self::new(SigningKey::open(pem, password)?))
    }

    /// The key that verifies what this signs.
    pub fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }
}

impl Signer for KeyFileSigner {
    fn sign_statement(&self, statement: &[u8]) -> Result<String, SignError> {
        Statement::parse(statement)?;
        let failed = || SignError::Signer("ECDSA failed".to_owned());
        let pae = dsse::pae(PAYLOAD_TYPE, statement);
        let signature = self.key.pair().sign(&SystemRandom::new(), &pae).map_err(|_| failed())?;
        bundle(statement, signature.as_ref(), self.key.public_key().hint())
    }

    fn public_key(&self) -> Option<PublicKey> {
        Some(self.key.public_key().clone())
    }

    fn describe(&self) -> String {
        format!("key file, ECDSA P-256, hint {}", self.key.public_key().hint())
    }
}

impl fmt::Debug for KeyFileSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFileSigner").field("hint", &self.key.public_key().hint()).finish_non_exhaustive()
    }
}

/// The bundle around a signature (DER) that the key behind `hint` made over the PAE of `statement`.
fn bundle(statement: &[u8], signature: &[u8], hint: &str) -> Result<String, SignError> {
    let signature = DsseSignature::new(SignatureBytes::from_bytes(signature), KeyId::new(hint.to_owned()));
    let envelope = DsseEnvelope::new(PAYLOAD_TYPE, PayloadBytes::from_bytes(statement), signature);
    BundleV03::new(VerificationMaterialV03::PublicKey { hint: hint.to_owned() }, SignatureContent::DsseEnvelope(envelope))
        .into_bundle()
        .to_json()
        .map_err(|error| SignError::Signer(error.to_string()))
}
