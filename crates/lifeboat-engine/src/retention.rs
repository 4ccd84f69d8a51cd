//! What stands beside backups and says whether they are kept: read, verified, signed and written (format 11).
//!
//! What follows from it is decided in `lifeboat_core::repository::retention`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_core::attestation::{Expected, Statement};
use lifeboat_core::expire::{Candidate, Facts};
use lifeboat_core::prune::Stored;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::retention::{
    EXPIRY_PREDICATE_TYPE, Mark, PIN_END_PREDICATE_TYPE, PIN_PREDICATE_TYPE, Pin, PinEnd, PinWords, Standing, Word, standing as decide,
};
use lifeboat_core::repository::{FormatError, Sha256, to_json};
use serde::Serialize;
use serde_json::Value;

use crate::lease::LeaseError;
use crate::opened_backup::{self, OpenBackupError, VerifiedBackup};
use crate::repository::{MAX_DOCUMENT_BYTES, Repository, RepositoryError};
use crate::signing::{SignError, Signer, Trust};
use crate::store::{Listed, Store, StoreError, create_or_mine, is_there};

/// The lease of those who decide what is kept: expire, pin and prune.
pub const LEASE: &str = "retention";

/// Why nothing was decided, or written down.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// Another one is at it.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The backup cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenBackupError),
    /// It cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// No plan.
    #[error(transparent)]
    Plan(#[from] lifeboat_core::expire::ExpirePlanError),
    /// There is nothing to undo.
    #[error("undo the expiry of {0}: it has not expired")]
    NotExpired(BackupId),
    /// The name was used.
    #[error("pin {backup}: it has, or had, a pin {name}")]
    PinExists {
        /// The backup.
        backup: BackupId,
        /// The pin.
        name: String,
    },
    /// There is no such pin.
    #[error("end pin {name} of {backup}: there is none")]
    NoPin {
        /// The backup.
        backup: BackupId,
        /// The pin.
        name: String,
    },
}

/// A signed document beside a backup.
pub(crate) trait Document: Sized + Serialize {
    const PREDICATE_TYPE: &'static str;
    fn decode(bytes: &[u8]) -> Result<Self, FormatError>;
    fn predicate(&self) -> Value;
    fn subject(&self) -> (&BackupId, Sha256);
    fn bundle(&mut self) -> &mut Value;
}

macro_rules! documents {
    ($($type:ty: $predicate:expr),*) => {$(
        impl Document for $type {
            const PREDICATE_TYPE: &'static str = $predicate;
            fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
                <$type>::decode(bytes)
            }
            fn predicate(&self) -> Value {
                <$type>::predicate(self)
            }
            fn subject(&self) -> (&BackupId, Sha256) {
                (&self.backup, self.manifest)
            }
            fn bundle(&mut self) -> &mut Value {
                &mut self.bundle
            }
        }
    )*};
}

documents!(Mark: EXPIRY_PREDICATE_TYPE, Pin: PIN_PREDICATE_TYPE, PinEnd: PIN_END_PREDICATE_TYPE);

/// Signs a document, and writes it.
pub(crate) fn write<T: Document>(repository: &Repository, key: &Key, mut document: T, signer: &dyn Signer) -> Result<(), RetentionError> {
    let (backup, manifest) = document.subject();
    let statement = Statement::new(&backup.to_string(), manifest.0, T::PREDICATE_TYPE, document.predicate());
    let bundle = signer.sign_statement(&statement.to_bytes())?;
    *document.bundle() = serde_json::from_str(&bundle).map_err(|e| SignError::Signer(format!("its bundle is not JSON: {e}")))?;
    let bytes = to_json(&document);
    match create_or_mine(repository.store(), key, &bytes)? {
        true => Ok(()),
        false => Err(StoreError::Exists { key: key.to_string() }.into()),
    }
}

fn read<T: Document>(store: &dyn Store, key: &Key, trust: Option<&Trust>) -> Result<Word<T>, StoreError> {
    let bytes = match store.get(key, MAX_DOCUMENT_BYTES) {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(Word::Unreadable("it is not there any more".into())),
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::FileTooLarge => {
            return Ok(Word::Unreadable("it is too long".into()));
        }
        Err(error) => return Err(error),
    };
    let mut document = match T::decode(&bytes) {
        Ok(document) => document,
        Err(error) => return Ok(Word::Unreadable(error.to_string())),
    };
    let Some(trust) = trust else { return Ok(Word::Unsigned(document, "no trusted key is configured".into())) };
    let bundle = document.bundle().to_string();
    let (backup, manifest) = document.subject();
    let name = backup.to_string();
    let expected = Expected { predicate_type: T::PREDICATE_TYPE, subject_sha256: manifest.0, subject_name: Some(&name), version: None };
    Ok(match trust.verify(bundle.as_bytes(), &expected) {
        Ok(verified) if verified.statement.predicate == document.predicate() => Word::Signed(document),
        Ok(_) => Word::Unsigned(document, "what was signed is something else".into()),
        Err(error) => Word::Unsigned(document, crate::causes::joined(&error)),
    })
}

/// Where a backup stands. `manifest` is the digest of its manifest, where it has one; without `trust` nothing that releases it is believed.
pub fn standing(
    store: &dyn Store,
    id: &BackupId,
    manifest: Option<Sha256>,
    trust: Option<&Trust>,
    now: Timestamp,
) -> Result<Standing, StoreError> {
    let below = store.list_segments(&layout::backup(id))?;
    let mut mark = None;
    if below.iter().any(|name| name == "expired/") {
        let listed = store.list(&layout::expiry_marks(id))?;
        let number = |listed: &Listed| layout::number_of(&listed.key).filter(|number| layout::expiry_mark(id, *number) == listed.key);
        if let Some(number) = listed.iter().filter_map(number).max() {
            mark = Some((number, read(store, &layout::expiry_mark(id, number), trust)?));
        }
    }
    let mut pins: BTreeMap<String, PinWords> = BTreeMap::new();
    if below.iter().any(|name| name == "pins/") {
        for listed in store.list(&layout::pins(id))? {
            let Some((name, end)) = layout::pin_of(&listed.key) else { continue };
            let name = name.to_string();
            let words = pins.entry(name.clone()).or_insert(PinWords { name, pin: None, end: None });
            match end {
                false => words.pin = Some(read(store, &listed.key, trust)?),
                true => words.end = Some(read(store, &listed.key, trust)?),
            }
        }
    }
    Ok(decide(id, manifest, mark, pins.into_values().collect(), now))
}

/// Whether a backup without a manifest is one whose prune has begun and not ended in this place: no backup any more, and nothing wrong.
pub fn is_being_pruned(store: &dyn Store, id: &BackupId, trust: &Trust, now: Timestamp) -> Result<bool, StoreError> {
    let standing = standing(store, id, None, Some(trust), now)?;
    Ok(standing.pins.is_empty() && standing.expired.is_some_and(|expiry| expiry.prune_after <= now))
}

/// Where a backup stands that was verified.
pub fn standing_of(repository: &Repository, backup: &VerifiedBackup, trust: &Trust, now: Timestamp) -> Result<Standing, StoreError> {
    standing(repository.store(), &backup.id, Some(backup.digest), Some(trust), now)
}

/// Everything that stands under the id of a backup, verified; with a reason for each that cannot be.
///
/// # Errors
///
/// The store failed: then nobody knows.
pub fn survey(repository: &Repository, trust: &Trust, now: Timestamp) -> Result<(Vec<Stored>, Vec<String>), RetentionError> {
    let (mut stored, mut doubts) = (Vec::new(), Vec::new());
    for id in repository.backup_prefixes()? {
        let there = |key: Key| is_there(repository.store(), &key);
        let (manifest, bundle) = (there(layout::manifest(&id))?, there(layout::manifest_bundle(&id))?);
        if !manifest && !bundle && repository.store().list(&layout::backup(&id))?.is_empty() {
            // An empty directory is nothing.
            continue;
        }
        let facts = match manifest {
            false => Err("it has no manifest".to_owned()),
            true => match opened_backup::open(repository, &id, trust) {
                Ok(backup) => Ok(Facts::of(&backup.manifest, backup.digest)),
                // Somebody else's trouble is not this backup's.
                Err(OpenBackupError::Store(error)) => return Err(error.into()),
                Err(error) => Err(crate::causes::joined(&error)),
            },
        };
        let digest = facts.as_ref().ok().map(|facts| facts.manifest);
        let standing = standing(repository.store(), &id, digest, Some(trust), now)?;
        doubts.extend(standing.doubts.iter().map(|doubt| format!("backup {id}: {doubt}")));
        let pins = standing.pins.into_iter().map(|pin| pin.name).collect();
        let prune_after = standing.expired.map(|expiry| expiry.prune_after);
        stored.push(Stored { candidate: Candidate { id, facts, pins, prune_after }, manifest, bundle });
    }
    Ok((stored, doubts))
}
