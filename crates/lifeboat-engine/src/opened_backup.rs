//! A backup whose manifest was read and verified, and what can be opened of it.
//!
//! There is no way to get at a manifest's content for use without its signature: [`open`] verifies, and only
//! [`peek`], for listings, does not, and says so.

use lifeboat_core::attestation::Expected;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::file_table::{self, Row};
use lifeboat_core::repository::layout::Key;
use lifeboat_core::repository::manifest::{KeyPurpose, Manifest, TableEntry};
use lifeboat_core::repository::{FormatError, Sha256, Suite, layout};
use lifeboat_core::trust::When;
use lifeboat_core::verify::{Finding, FindingKind};

use crate::keys::{Identities, KeyError};
use crate::repository::{MAX_DOCUMENT_BYTES, MAX_MANIFEST_BYTES, Repository};
use crate::seal::{self, Sealing};
use crate::signing::{SignedBy, Trust, Verified, VerifyError};
use crate::store::{Store, StoreError, first_good, other_copy};

/// The most plain bytes one file table may have.
const MAX_TABLE_BYTES: usize = 256 << 20;

/// Why a backup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenBackupError {
    /// There is no such backup.
    #[error("open backup {0}: there is none")]
    Absent(String),
    /// Missing, corrupt or unsigned.
    #[error("open backup: {0}")]
    Damaged(Finding),
    /// A newer format.
    #[error(transparent)]
    Format(FormatError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A manifest with a valid signature of a trusted key.
pub struct VerifiedBackup {
    /// Which.
    pub id: BackupId,
    /// Its manifest.
    pub manifest: Manifest,
    /// Digest of the manifest's bytes.
    pub digest: Sha256,
    /// Who signed it.
    pub signed_by: SignedBy,
    /// When, and how sure that is.
    pub signed: When,
    /// SHA-256 of the signed statement.
    pub statement: Sha256,
}

fn finding(id: &BackupId, kind: FindingKind, object: &Key, problem: impl Into<String>) -> OpenBackupError {
    OpenBackupError::Damaged(Finding {
        kind,
        backup: Some(id.to_string()),
        object: object.to_string(),
        file: None,
        problem: problem.into(),
    })
}

/// Reads a manifest without verifying it: for lists that say so.
pub fn peek(repository: &Repository, id: &BackupId) -> Result<Manifest, OpenBackupError> {
    let read = |store: &dyn Store| decode(id, &read_manifest(store, id)?);
    first_good(repository.store(), &layout::manifest(id), read, damage)
}

/// What is wrong with a copy, if that is why it cannot be used: then another may be good.
fn damage(error: &OpenBackupError) -> Option<String> {
    match error {
        OpenBackupError::Damaged(finding) => Some(format!("{}: {}", finding.kind.word(), finding.problem)),
        OpenBackupError::Store(error) if error.is_absence() => Some(error.to_string()),
        _ => None,
    }
}

fn read_manifest(store: &dyn Store, id: &BackupId) -> Result<Vec<u8>, OpenBackupError> {
    let key = layout::manifest(id);
    match store.get(&key, MAX_MANIFEST_BYTES) {
        Ok(bytes) => Ok(bytes),
        Err(StoreError::NotFound { .. }) => {
            // A bundle without a manifest is a backup that did not finish, or lost its manifest.
            match store.length(&layout::manifest_bundle(id)) {
                Ok(_) => Err(finding(id, FindingKind::Missing, &key, "the backup did not finish, or its manifest was removed")),
                Err(StoreError::NotFound { .. }) => Err(OpenBackupError::Absent(id.to_string())),
                Err(error) => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

fn decode(id: &BackupId, bytes: &[u8]) -> Result<Manifest, OpenBackupError> {
    let key = layout::manifest(id);
    match Manifest::decode(bytes) {
        Ok(manifest) if manifest.id == *id => Ok(manifest),
        Ok(manifest) => Err(finding(id, FindingKind::Corrupt, &key, format!("it is the manifest of {}", manifest.id))),
        Err(error @ FormatError::TooNew { .. }) => Err(OpenBackupError::Format(error)),
        Err(error) => Err(finding(id, FindingKind::Corrupt, &key, error.to_string())),
    }
}

/// Reads and verifies a manifest. Where manifest or signature are damaged, their other copies are tried.
pub fn open(repository: &Repository, id: &BackupId, trust: &Trust) -> Result<VerifiedBackup, OpenBackupError> {
    let store = repository.store();
    let opened = open_from(store, store, id, trust);
    let (error, problem) = match opened.map_err(|error| (damage(&error), error)) {
        Ok(backup) => return Ok(backup),
        Err((None, error)) => return Err(error),
        Err((Some(problem), error)) => (error, problem),
    };
    // In a store that keeps versions another copy of the one stands beside the present one of the other.
    let manifest = || other_copy(store, &layout::manifest(id), problem.clone(), |store| open_from(store, store, id, trust));
    let bundle = || other_copy(store, &layout::manifest_bundle(id), problem.clone(), |bundles| open_from(store, bundles, id, trust));
    let of_bundle = matches!(&error, OpenBackupError::Damaged(finding) if finding.object == layout::manifest_bundle(id).as_str());
    let opened = if of_bundle { bundle().or_else(manifest) } else { manifest().or_else(bundle) };
    opened.ok_or(error)
}

fn open_from(manifests: &dyn Store, bundles: &dyn Store, id: &BackupId, trust: &Trust) -> Result<VerifiedBackup, OpenBackupError> {
    let bytes = read_manifest(manifests, id)?;
    let digest = Sha256::of(&bytes);
    let bundle_key = layout::manifest_bundle(id);
    let bundle = match bundles.get(&bundle_key, MAX_DOCUMENT_BYTES) {
        Ok(bundle) => bundle,
        Err(StoreError::NotFound { .. }) => {
            return Err(finding(id, FindingKind::Missing, &bundle_key, "the backup's signature is not there"));
        }
        Err(error) => return Err(error.into()),
    };
    let name = id.to_string();
    let mut unreadable = false;
    let verified = trust.verify(&bundle, &Expected::backup(&name, digest.0)).map_err(|error| {
        unreadable = matches!(error, VerifyError::Malformed { .. });
        // Signed, but over other bytes: then it is the manifest that is wrong.
        match error {
            VerifyError::WrongSubject(_) => {
                finding(id, FindingKind::Corrupt, &layout::manifest(id), format!("its signature is over other bytes: {error}"))
            }
            error => finding(id, FindingKind::Unsigned, &bundle_key, crate::causes::joined(&error)),
        }
    });
    // A newer format may sign in ways unknown here: then its number is believed without a signature, and all that
    // comes of it is a refusal. A signature that can be read, and does not hold, says that the number is a lie.
    let manifest = match (decode(id, &bytes), verified) {
        (Err(newer @ OpenBackupError::Format(_)), Ok(_)) => return Err(newer),
        (Err(newer @ OpenBackupError::Format(_)), Err(_)) if unreadable => return Err(newer),
        (_, Err(error)) => return Err(error),
        (Err(error), Ok(_)) => return Err(error),
        (Ok(manifest), Ok(verified)) => (manifest, verified),
    };
    let (manifest, Verified { signer, when, sha256, .. }) = manifest;
    Ok(VerifiedBackup { id: id.clone(), manifest, digest, signed_by: signer, signed: when, statement: sha256 })
}

impl VerifiedBackup {
    /// The data key for a purpose.
    pub fn unlock(&self, purpose: KeyPurpose, identities: &Identities) -> Result<Sealing, KeyError> {
        if self.manifest.encryption.suite == Suite::None {
            return Ok(Sealing::Plain);
        }
        let key = self.manifest.key(purpose).ok_or_else(|| KeyError::Damaged {
            id: lifeboat_core::repository::Id([0; 16]),
            problem: format!("the manifest has no wrapped key for {purpose:?}"),
        })?;
        Ok(Sealing::Encrypted(identities.unwrap(key.id, &key.wrapped)?))
    }

    /// What is wrong if this backup was signed for another repository than the one it stands in: somebody
    /// copied it, or `lifeboat.json`, which nobody signs, is not the one that was made.
    pub fn stray(&self, repository: &Repository) -> Option<Finding> {
        let (signed, here) = (self.manifest.repository, repository.descriptor().repository);
        let problem = || format!("it says that this is repository {here}, the backup was signed for {signed}");
        (signed != here).then(|| self.finding(FindingKind::Corrupt, layout::descriptor().as_str(), None, problem()))
    }

    /// A finding about this backup.
    pub fn finding(&self, kind: FindingKind, object: &str, file: Option<&str>, problem: impl Into<String>) -> Finding {
        Finding {
            kind,
            backup: Some(self.id.to_string()),
            object: object.to_owned(),
            file: file.map(str::to_owned),
            problem: problem.into(),
        }
    }

    /// The bytes of an object that the manifest names with its digest, checked.
    pub fn object(&self, repository: &Repository, object: &str, sha256: Sha256, bytes: u64) -> Result<Vec<u8>, OpenBackupError> {
        let corrupt = |problem: String| OpenBackupError::Damaged(self.finding(FindingKind::Corrupt, object, None, problem));
        let key = Key::parse(object).map_err(|error| corrupt(error.to_string()))?;
        first_good(repository.store(), &key, |store| self.object_from(store, &key, sha256, bytes), damage)
    }

    fn object_from(&self, store: &dyn Store, key: &Key, sha256: Sha256, bytes: u64) -> Result<Vec<u8>, OpenBackupError> {
        let object = key.as_str();
        let corrupt = |problem: String| OpenBackupError::Damaged(self.finding(FindingKind::Corrupt, object, None, problem));
        let found = match store.get(key, bytes.saturating_add(1)) {
            Ok(found) => found,
            Err(StoreError::NotFound { .. }) => {
                return Err(OpenBackupError::Damaged(self.finding(FindingKind::Missing, object, None, "it is not there")));
            }
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::FileTooLarge => {
                return Err(corrupt(format!("it is longer than {bytes} bytes")));
            }
            Err(error) => return Err(error.into()),
        };
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &found);
        if found.len() as u64 != bytes || digest.as_ref() != sha256.0 {
            return Err(corrupt(format!("{} bytes with another digest than the manifest names", found.len())));
        }
        Ok(found)
    }

    /// Reads one file table.
    pub fn table(&self, repository: &Repository, entry: &TableEntry, tables: &Sealing) -> Result<Vec<Row>, OpenBackupError> {
        let corrupt = |problem: String| OpenBackupError::Damaged(self.finding(FindingKind::Corrupt, &entry.object, None, problem));
        let bytes = self.object(repository, &entry.object, entry.sha256, entry.bytes)?;
        let plain = seal::open_object(&bytes, &entry.object, tables, MAX_TABLE_BYTES).map_err(|e| corrupt(e.to_string()))?;
        let rows = file_table::decode(&plain, self.manifest.packs.len()).map_err(|e| corrupt(e.to_string()))?;
        if rows.len() as u64 != entry.rows {
            return Err(corrupt(format!("{} rows, the manifest says {}", rows.len(), entry.rows)));
        }
        Ok(rows)
    }
}
