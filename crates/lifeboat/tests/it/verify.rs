//! Damage: whatever happens to the bytes of a repository, verify and restore notice, name it, and nothing that was written can be started.
//!
//! The forger below signs with lifeboat's own code: what is tested is who is believed, not how bytes are signed.

use std::fs;
use std::path::Path;

use lifeboat_core::attestation::backup_statement;
use lifeboat_core::repository::Sha256;
use lifeboat_engine::signing::{KeyFileSigner, Signer as _, SigningKey};

/// Somebody with a signing key, not necessarily one that is trusted.
pub(crate) struct Forger {
    signer: KeyFileSigner,
}

impl Forger {
    /// With a key that nobody knows yet.
    pub(crate) fn new() -> Forger {
        Forger { signer: KeyFileSigner::new(SigningKey::generate().unwrap()) }
    }

    /// The public key, to be trusted.
    pub(crate) fn public_pem(&self) -> String {
        self.signer.public_key().to_pem()
    }

    /// Changes the manifest of a backup, and signs what comes out.
    pub(crate) fn change_manifest(&self, repository: &Path, id: &str, change: impl FnOnce(String) -> String) {
        let path = repository.join(id).join("manifest.json");
        let text = change(fs::read_to_string(&path).unwrap());
        fs::write(&path, &text).unwrap();
        self.sign(repository, id);
    }

    /// Signs the manifest of a backup as it stands.
    pub(crate) fn sign(&self, repository: &Path, id: &str) {
        let manifest = fs::read(repository.join(id).join("manifest.json")).unwrap();
        let statement = backup_statement(id, Sha256::of(&manifest).0, serde_json::json!({"state": "healthy"}));
        let bundle = self.signer.sign_statement(&statement.to_bytes()).unwrap();
        fs::write(repository.join(id).join("manifest.sigstore.json"), bundle).unwrap();
    }
}
