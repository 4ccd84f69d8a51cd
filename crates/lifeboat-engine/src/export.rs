//! Re-wrapping the data keys of one backup to somebody else (format 4, "key export").
//!
//! Nothing is handed out that an attacker who can write to the repository could choose: the keys in the manifest are signed, and a key in the header of a
//! blob, which nobody signs, counts only after it opened that blob and the signed digest came out. Otherwise a header with a key taken from another backup's
//! manifest would make an export hand out that backup.

use std::sync::Mutex;

use lifeboat_core::export::{ExportPlan, ExportedKey};
use lifeboat_core::repository::Suite;

use crate::artifacts::{self, ArtifactError, ArtifactSet, Reader};
use crate::keys::{self, Identities, KeyError, Recipient};
use crate::opened_backup::VerifiedBackup;
use crate::repository::Repository;
use crate::seal::DataKey;
use crate::signing::Trust;

/// Why no keys were handed out.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A key could not be unwrapped or wrapped.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The artifacts could not be read, or one of them is not what was signed.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// There is nothing to hand out.
    #[error("export keys of {0}: it is not encrypted")]
    Plain(String),
}

/// Who exports what.
pub struct Export<'a> {
    /// Where the backup is.
    pub repository: &'a Repository,
    /// The backup.
    pub backup: &'a VerifiedBackup,
    /// Whose artifacts count.
    pub trust: &'a Trust,
    /// What opens it.
    pub identities: &'a Identities,
    /// Threads that look at artifacts.
    pub threads: usize,
}

/// The keys that a plan names, wrapped to `recipient`, those of the manifest first.
pub fn run(export: &Export<'_>, plan: &ExportPlan, recipient: &Recipient) -> Result<Vec<ExportedKey>, ExportError> {
    let manifest = &export.backup.manifest;
    let wrap = |key: &DataKey| -> Result<ExportedKey, KeyError> {
        Ok(ExportedKey { id: key.id, wrapped: keys::wrap(key, std::slice::from_ref(recipient))? })
    };
    let mut exported = Vec::new();
    if manifest.encryption.suite != Suite::None {
        for key in &manifest.encryption.keys {
            exported.push(wrap(&export.identities.unwrap(key.id, &key.wrapped)?)?);
        }
    }
    if let Some(artifacts) = manifest.artifacts.as_ref().filter(|_| plan.artifacts) {
        let reader = Reader::new(export.repository, export.trust, export.identities.clone());
        let set = ArtifactSet::new(export.repository.store(), artifacts.runs.clone());
        let found = Mutex::new(Vec::new());
        artifacts::keys_of_set(&reader, &set, export.threads, &|key| found.lock().expect("no panic while held").push(key))?;
        let mut found = found.into_inner().expect("no panic while held");
        found.sort_by_key(|key: &DataKey| key.id);
        for key in &found {
            exported.push(wrap(key)?);
        }
    }
    match exported.is_empty() {
        true => Err(ExportError::Plain(export.backup.id.to_string())),
        false => Ok(exported),
    }
}
