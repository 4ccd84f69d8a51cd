//! Handing out the data keys of one backup, so that somebody can read that backup and no other (docs/trust.md).
//!
//! What is handed out is a file outside of any repository; its bytes are in docs/format.md, section 4.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::repository::backup_id::BackupId;
use crate::repository::manifest::Manifest;
use crate::repository::{FORMAT_VERSION, Id, Sha256};

/// What would be handed out, and to whom. Approvals sign its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportPlan {
    /// Which backup.
    pub backup: BackupId,
    /// SHA-256 of its manifest.
    pub manifest: Sha256,
    /// Who gets the keys: an age recipient.
    pub recipient: String,
    /// Whether the keys of its artifacts are among them. Runs that stored artifacts have a key each, so these open all that such a run
    /// stored, also what is in other backups.
    pub artifacts: bool,
}

impl ExportPlan {
    /// Plans an export of a backup whose signature was verified.
    pub fn of(manifest: &Manifest, digest: Sha256, recipient: String, artifacts: bool) -> Self {
        Self { backup: manifest.id.clone(), manifest: digest, recipient, artifacts: artifacts && manifest.artifacts.is_some() }
    }

    /// Its digest: SHA-256 of its JSON.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(&self.document())
    }

    /// Its JSON, in one line: what is approved.
    pub fn document(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a plan has text keys only")
    }

    /// The plan in a document, if it is just what this plan is written as.
    pub fn parse(document: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(document).ok().filter(|plan| plan.document() == document)
    }
}

/// A data key for its new reader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedKey {
    /// Its id, as manifests and headers of sealed objects have it.
    pub id: Id,
    /// Wrapped to the recipient: an age file, base64.
    pub wrapped: String,
}

/// The file that is handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyExport {
    /// The format version.
    pub format: u32,
    /// What kind of file this is.
    pub kind: String,
    /// The repository that the backup was written to.
    pub repository: Id,
    /// The backup.
    pub backup: BackupId,
    /// SHA-256 of its manifest.
    pub manifest: Sha256,
    /// Whose identity opens the keys.
    pub recipient: String,
    /// When they were handed out.
    pub exported: Timestamp,
    /// Host and program that did it.
    pub by: String,
    /// The keys.
    pub keys: Vec<ExportedKey>,
}

/// What [`KeyExport::kind`] says.
pub const EXPORT_KIND: &str = "lifeboat key export";

impl KeyExport {
    /// What a plan came to.
    pub fn new(plan: &ExportPlan, repository: Id, exported: Timestamp, by: String, keys: Vec<ExportedKey>) -> Self {
        let ExportPlan { backup, manifest, recipient, .. } = plan.clone();
        Self { format: FORMAT_VERSION, kind: EXPORT_KIND.to_owned(), repository, backup, manifest, recipient, exported, by, keys }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_plan_is_in_its_digest() {
        let plan = ExportPlan {
            backup: "conductor-backup-20240315T120000Z".parse().unwrap(),
            manifest: Sha256([1; 32]),
            recipient: "age1x".into(),
            artifacts: true,
        };
        let others = [
            ExportPlan { backup: "conductor-backup-20240316T120000Z".parse().unwrap(), ..plan.clone() },
            ExportPlan { manifest: Sha256([2; 32]), ..plan.clone() },
            ExportPlan { recipient: "age1y".into(), ..plan.clone() },
            ExportPlan { artifacts: false, ..plan.clone() },
        ];
        assert!(others.iter().all(|other| other.digest() != plan.digest()));
        let again: ExportPlan = serde_json::from_slice(&serde_json::to_vec(&plan).unwrap()).unwrap();
        assert_eq!(again.digest(), plan.digest());
    }
}
