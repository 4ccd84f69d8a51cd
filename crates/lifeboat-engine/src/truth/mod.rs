//! The truth about the tables: recorded right after the backup, compared on a server that was restored to the same moment.
//!
//! `moment` finds an LSN of which it is known what was visible; `rows` lists and hashes tables, alike on both sides; `record` reads what the
//! backup's budget allows; `compare` reads the same of the restored server. `docs/drill-truth.md` has the reasons. A backup never fails
//! because of it, and nothing here waits for a lock for long.

mod compare;
mod moment;
mod record;
mod rows;

use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::manifest::KeyPurpose;
use lifeboat_core::truth::{MAX_TRUTH_BYTES, Truth};
use lifeboat_core::verify::FindingKind;

pub use compare::{compare, compare_table, compare_tables, is_at};
pub(crate) use moment::{Moment, take};
pub(crate) use record::{Recorded, read_moment};

use crate::keys::Identities;
use crate::opened_backup::{OpenBackupError, VerifiedBackup};
use crate::repository::Repository;
use crate::seal::open_object;

/// Reads the truth of a backup; `None`: it was not recorded, and the manifest says why.
///
/// # Errors
/// The object is missing or damaged, the identities do not open it, or the store failed.
pub fn read(repository: &Repository, backup: &VerifiedBackup, identities: &Identities) -> Result<Option<Truth>, OpenBackupError> {
    let Some(stored) = backup.manifest.truth() else { return Ok(None) };
    let entry = &stored.entry;
    let sealed = backup.object(repository, &entry.object, entry.sha256, entry.bytes)?;
    let data = backup.unlock(KeyPurpose::Data, identities)?;
    let corrupt = |problem: String| OpenBackupError::Damaged(backup.finding(FindingKind::Corrupt, &entry.object, Some("truth"), problem));
    let plain = open_object(&sealed, &entry.object, &data, MAX_TRUTH_BYTES).map_err(|error| corrupt(error.to_string()))?;
    decode(&plain, &backup.id).map(Some).map_err(corrupt)
}

/// The truth of this very backup.
pub(crate) fn decode(plain: &[u8], backup: &BackupId) -> Result<Truth, String> {
    let truth = Truth::decode(plain).map_err(|error| error.to_string())?;
    if truth.backup == *backup { Ok(truth) } else { Err(format!("it is the truth of {}", truth.backup)) }
}
