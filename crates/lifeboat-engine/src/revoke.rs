//! Looking through a repository before a key is revoked: what stops to count, and what an operator may vouch for.
//!
//! Reads only. What follows for one signature is decided in `lifeboat_core::trust`, [`Fate`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use jiff::Timestamp;
use lifeboat_core::attestation::Expected;
use lifeboat_core::repository::artifact::Record;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::retention::{EXPIRY_PREDICATE_TYPE, PIN_END_PREDICATE_TYPE, PIN_PREDICATE_TYPE};
use lifeboat_core::repository::{Sha256, sealed};
use lifeboat_core::trust::{self, Fate, Kind, When};
use lifeboat_core::wal::file::WAL_PREDICATE_TYPE;
use serde::Serialize;

use crate::artifacts::MAX_RECORD_BYTES;
use crate::artifacts::workers::each;
use crate::opened_backup::{self, OpenBackupError};
use crate::repository::{Repository, RepositoryError};
use crate::signing::{SignedBy, Trust, Verified};
use crate::store::{Listed, StoreError, read_range};

/// What is read of a WAL object to see its header; ours have about 3 KiB.
const HEAD_BYTES: u64 = 8 << 10;

/// What is to be revoked.
pub struct Revoking<'a> {
    /// Where signatures are looked for.
    pub repository: &'a Repository,
    /// Whose signatures count now: as it was before the revocation.
    pub trust: &'a Trust,
    /// The hint of the key.
    pub hint: &'a str,
    /// Since when it does not count.
    pub since: Timestamp,
    /// Backups that nobody vouches for, whatever they say: all that belongs to them is lost.
    pub except: &'a BTreeSet<BackupId>,
    /// Threads that read.
    pub threads: usize,
}

/// How many signatures of a kind go which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// That they were made before is proven.
    pub proven: u64,
    /// They say so, and can be vouched for.
    pub dated: u64,
    /// They stop to count.
    pub lost: u64,
}

/// A backup that the key signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signed {
    /// Which.
    pub backup: BackupId,
    /// When it was signed, and how sure that is.
    pub signed: When,
    /// What becomes of it.
    pub fate: Fate,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Survey {
    /// SHA-256 of every statement that can be vouched for.
    pub dated: Vec<Sha256>,
    /// How many there are of each kind.
    pub tally: BTreeMap<Kind, Tally>,
    /// The backups, oldest first.
    pub backups: Vec<Signed>,
}

/// Looks through everything that is signed in the repository.
///
/// # Errors
///
/// The store failed: then nobody knows what stops to count, and nothing may be written down.
pub fn survey(revoking: &Revoking<'_>) -> Result<Survey, RepositoryError> {
    let survey = Mutex::new(Survey::default());
    let store = revoking.repository.store();
    for id in revoking.repository.backups()? {
        match opened_backup::open(revoking.repository, &id, revoking.trust) {
            Ok(backup) => {
                let signed = Given { signer: &backup.signed_by, when: backup.signed, sha256: backup.statement };
                let fate = revoking.count(&survey, Kind::Backup, signed, Some(backup.manifest.finished), Some(&id));
                if let Some(fate) = fate {
                    survey.lock().expect("no panic while held").backups.push(Signed { backup: id, signed: backup.signed, fate });
                }
            }
            Err(OpenBackupError::Store(error)) => return Err(error.into()),
            // It does not count now either.
            Err(_) => {}
        }
    }
    for id in revoking.repository.backup_prefixes()? {
        let marks = store.list(&layout::expiry_marks(&id))?.into_iter().map(|listed| (listed.key, EXPIRY_PREDICATE_TYPE));
        let pins = store.list(&layout::pins(&id))?.into_iter().filter_map(|listed| {
            let (_, end) = layout::pin_of(&listed.key)?;
            Some((listed.key, if end { PIN_END_PREDICATE_TYPE } else { PIN_PREDICATE_TYPE }))
        });
        for (key, predicate_type) in marks.chain(pins) {
            let bundle = revoking.repository.document(&key)?.and_then(|bytes| bundle_of(&bytes));
            let Some(bundle) = bundle else { continue };
            if let Ok((verified, _)) = revoking.trust.claim(&bundle, predicate_type, &id.to_string()) {
                revoking.count_verified(&survey, Kind::Mark, &verified, Some(&id));
            }
        }
    }
    let listed = |prefix: &str| Ok::<_, StoreError>(store.list(prefix)?.into_iter().map(Ok));
    each(listed("artifacts/records/")?, revoking.threads, |listed: Listed| revoking.artifact(&survey, &listed.key))?;
    each(listed("wal/")?, revoking.threads, |listed: Listed| revoking.wal(&survey, &listed))?;
    let mut survey = survey.into_inner().expect("no panic while held");
    survey.backups.sort_by(|a, b| a.backup.cmp(&b.backup));
    Ok(survey)
}

/// The member `bundle` of a document.
fn bundle_of(bytes: &[u8]) -> Option<Vec<u8>> {
    let document: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    document.get("bundle").filter(|bundle| bundle.is_object()).map(|bundle| bundle.to_string().into_bytes())
}

/// What is known of one signature.
struct Given<'a> {
    signer: &'a SignedBy,
    when: When,
    sha256: Sha256,
}

impl Revoking<'_> {
    fn count_verified(&self, survey: &Mutex<Survey>, kind: Kind, verified: &Verified, backup: Option<&BackupId>) {
        let given = Given { signer: &verified.signer, when: verified.when, sha256: verified.sha256 };
        self.count(survey, kind, given, trust::claimed(&verified.statement), backup);
    }

    /// Counts one signature, if it is of the key; says what becomes of it.
    fn count(
        &self,
        survey: &Mutex<Survey>,
        kind: Kind,
        given: Given<'_>,
        claimed: Option<Timestamp>,
        backup: Option<&BackupId>,
    ) -> Option<Fate> {
        if !matches!(given.signer, SignedBy::Key { hint, .. } if hint == self.hint) {
            return None;
        }
        let fate = match Fate::of(given.when, claimed, self.since) {
            Fate::Dated if backup.is_some_and(|id| self.except.contains(id)) => Fate::Lost,
            fate => fate,
        };
        let mut survey = survey.lock().expect("no panic while held");
        let tally = survey.tally.entry(kind).or_default();
        match fate {
            Fate::Proven => tally.proven += 1,
            Fate::Lost => tally.lost += 1,
            Fate::Dated => {
                tally.dated += 1;
                survey.dated.push(given.sha256);
            }
        }
        Some(fate)
    }

    fn artifact(&self, survey: &Mutex<Survey>, key: &Key) -> Result<(), StoreError> {
        let bytes = match self.repository.store().get(key, MAX_RECORD_BYTES) {
            Ok(bytes) => bytes,
            // Pruned meanwhile, or too long to be a record.
            Err(StoreError::NotFound { .. }) => return Ok(()),
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::FileTooLarge => return Ok(()),
            Err(error) => return Err(error),
        };
        let Ok(record) = Record::decode(&bytes) else { return Ok(()) };
        let bundle = record.bundle.to_string();
        let expected = Expected::artifact(record.name.as_str(), &record.version, record.sha256.0);
        if let Ok(verified) = self.trust.verify(bundle.as_bytes(), &expected) {
            self.count_verified(survey, Kind::Artifact, &verified, None);
        }
        Ok(())
    }

    fn wal(&self, survey: &Mutex<Survey>, listed: &Listed) -> Result<(), StoreError> {
        let Some(subject) = listed.key.as_str().strip_prefix("wal/").filter(|subject| !subject.ends_with(".json")) else { return Ok(()) };
        let store = self.repository.store();
        let mut bytes = Vec::new();
        let read = |end: u64, bytes: &mut Vec<u8>| match read_range(store, &listed.key, 0..end, bytes) {
            Ok(()) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        if !read(listed.bytes.min(HEAD_BYTES), &mut bytes)? {
            return Ok(());
        }
        let Some(needed) = bytes.first_chunk().and_then(|start| sealed::decode_header_length(start).ok()) else { return Ok(()) };
        let needed = 12 + needed as u64;
        if needed > HEAD_BYTES && needed <= listed.bytes && !read(needed, &mut bytes)? {
            return Ok(());
        }
        let bundle = sealed::decode_start(&bytes, listed.key.as_str()).ok().and_then(|parts| parts.header.bundle);
        if let Some(bundle) = bundle
            && let Ok((verified, _)) = self.trust.claim(bundle.to_string().as_bytes(), WAL_PREDICATE_TYPE, subject)
        {
            self.count_verified(survey, Kind::Wal, &verified, None);
        }
        Ok(())
    }
}
