//! Holding backups, and letting go of them.

use jiff::Timestamp;
use lifeboat_core::repository::backup_id::{BackupId, SystemName};
use lifeboat_core::repository::retention::{Pin, PinEnd};
use lifeboat_core::repository::{FORMAT_VERSION, layout};

use crate::expire::Author;
use crate::lease::with_lease;
use crate::opened_backup;
use crate::repository::Repository;
use crate::retention::{self, LEASE, RetentionError};
use crate::signing::Trust;
use crate::store::StoreError;

/// Whether a backup can be held under this name.
pub fn check(repository: &Repository, id: &BackupId, name: &SystemName, trust: &Trust) -> Result<(), RetentionError> {
    opened_backup::open(repository, id, trust)?;
    for key in [layout::pin(id, name), layout::pin_end(id, name)] {
        match repository.store().length(&key) {
            Ok(_) => return Err(RetentionError::PinExists { backup: id.clone(), name: name.to_string() }),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Holds a backup: while the pin holds it neither expires nor is pruned.
pub fn pin(
    repository: &Repository,
    id: &BackupId,
    name: &SystemName,
    reason: &str,
    until: Option<Timestamp>,
    author: &Author<'_>,
    now: Timestamp,
) -> Result<(), RetentionError> {
    with_lease(repository.store(), LEASE, author.host, author.say, |_| {
        check(repository, id, name, author.trust)?;
        let backup = opened_backup::open(repository, id, author.trust)?;
        let pin = Pin {
            format: FORMAT_VERSION,
            backup: id.clone(),
            name: name.clone(),
            manifest: backup.digest,
            at: now,
            by: author.by.clone(),
            reason: reason.to_owned(),
            until,
            bundle: serde_json::Value::Null,
        };
        retention::write(repository, &layout::pin(id, name), pin, author.signer)
    })
}

/// Whether a backup has a pin of this name that holds.
pub fn check_unpin(repository: &Repository, id: &BackupId, name: &SystemName, trust: &Trust, now: Timestamp) -> Result<(), RetentionError> {
    let backup = opened_backup::open(repository, id, trust)?;
    let standing = retention::standing_of(repository, &backup, trust, now)?;
    if standing.pins.iter().any(|pin| pin.name == name.to_string()) {
        return Ok(());
    }
    Err(RetentionError::NoPin { backup: id.clone(), name: name.to_string() })
}

/// Ends a pin.
pub fn unpin(
    repository: &Repository,
    id: &BackupId,
    name: &SystemName,
    reason: &str,
    author: &Author<'_>,
    now: Timestamp,
) -> Result<(), RetentionError> {
    with_lease(repository.store(), LEASE, author.host, author.say, |_| {
        check_unpin(repository, id, name, author.trust, now)?;
        let backup = opened_backup::open(repository, id, author.trust)?;
        let end = PinEnd {
            format: FORMAT_VERSION,
            backup: id.clone(),
            name: name.clone(),
            manifest: backup.digest,
            at: now,
            by: author.by.clone(),
            reason: reason.to_owned(),
            bundle: serde_json::Value::Null,
        };
        retention::write(repository, &layout::pin_end(id, name), end, author.signer)
    })
}
