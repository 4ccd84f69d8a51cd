//! Signing with a key that AWS KMS holds. The service is `lifeboat-kms`'s; here its signatures become bundles, each verified first.

use lifeboat_core::attestation::{PAYLOAD_TYPE, Statement};
use lifeboat_kms::{Config, Key, Kind, KmsError};
use sigstore_types::dsse;

use super::{PublicKey, SignError, Signer, bundle};

/// How to reach a key of AWS KMS.
pub use lifeboat_kms::Config as KmsConfig;

/// Signs with a key of AWS KMS.
#[derive(Debug)]
pub struct KmsSigner {
    key: Key,
    public: PublicKey,
}

impl KmsSigner {
    /// Looks the key up and fetches its public half; signs nothing yet.
    ///
    /// # Errors
    ///
    /// [`SignError::Denied`] where the credentials are missing, wrong, or do not allow it; [`SignError::Signer`] for a service that is not
    /// reached, and for a key that is not there or does not sign with ECDSA P-256.
    pub fn open(config: &Config) -> Result<Self, SignError> {
        let key = Key::open(config)?;
        let public = PublicKey::from_spki(key.spki());
        let public = public.map_err(|error| SignError::Signer(format!("open AWS KMS key {}: {error}", key.arn())))?;
        Ok(Self { key, public })
    }
}

impl From<KmsError> for SignError {
    fn from(error: KmsError) -> Self {
        match error.kind {
            Kind::Denied => Self::Denied(error.to_string()),
            Kind::Transient | Kind::Other => Self::Signer(error.to_string()),
        }
    }
}

impl Signer for KmsSigner {
    fn sign_statement(&self, statement: &[u8]) -> Result<String, SignError> {
        Statement::parse(statement)?;
        let pae = dsse::pae(PAYLOAD_TYPE, statement);
        let signature = self.key.sign_digest(&crate::sha256::of(&pae).0)?;
        if !self.public.verifies(&pae, &signature) {
            return Err(SignError::Signer(format!("sign with AWS KMS key {}: what came back is not its signature", self.key.arn())));
        }
        bundle(statement, &signature, self.public.hint())
    }

    fn public_key(&self) -> Option<PublicKey> {
        Some(self.public.clone())
    }

    fn describe(&self) -> String {
        format!("AWS KMS key {}, hint {}", self.key.arn(), self.public.hint())
    }
}
