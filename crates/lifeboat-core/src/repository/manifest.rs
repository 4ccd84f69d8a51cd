//! The manifest: our signed list of one backup, and its commit point (format 6).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FORMAT_VERSION, FormatError, Id, Sha256, Suite, artifact::Run, backup_id::BackupId};
use crate::wal::{Lsn, SegmentSize, SystemId, Timeline};

const WHAT: &str = "manifest";

/// Everything about one backup that is not in its file tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format version.
    pub format: u32,
    /// Which backup.
    pub id: BackupId,
    /// Which repository it was written to first.
    pub repository: Id,
    /// Name of the protected system.
    pub name: String,
    /// Host that took it.
    pub host: String,
    /// Program that took it.
    pub lifeboat: String,
    /// When it began.
    pub started: Timestamp,
    /// When all its data was stored.
    pub finished: Timestamp,
    /// Whole or incremental.
    pub kind: BackupKind,
    /// Whether something was wrong with what was read.
    pub state: State,
    /// What was wrong with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<PageFinding>,
    /// What an operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// How it is sealed.
    pub encryption: Encryption,
    /// Packs, as file tables index them.
    pub packs: Vec<PackEntry>,
    /// Indexes of the packs with the small files.
    #[serde(default)]
    pub boot_packs: Vec<u32>,
    /// File tables.
    pub tables: Vec<TableEntry>,
    /// Files, of every kind.
    pub files: u64,
    /// Bytes of the files.
    pub plain_bytes: u64,
    /// Bytes of packs and tables written for this backup.
    pub stored_bytes: u64,
    /// The database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresEntry>,
    /// The artifacts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<ArtifactsEntry>,
    /// The newest checkpoint of the audit log that this host knew (format 13): a signed note, as it stands in the repository. Whoever shortens
    /// or rewrites the log afterwards would have to rewrite the backups as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<String>,
}

/// Whole or incremental.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Every extent is one fragment.
    Full,
}

/// Whether a backup is as good as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing wrong was seen.
    Healthy,
    /// Some pages of the source are damaged: see the findings.
    Degraded,
}

/// A page that was read twice alike, and wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageFinding {
    /// Path in the data directory.
    pub file: String,
    /// Number of the page in the file, from 0.
    pub block: u64,
    /// What is wrong with it.
    pub problem: String,
}

/// How a backup is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// The suite.
    pub suite: Suite,
    /// Data keys, wrapped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<WrappedKey>,
    /// Who can unwrap the key `data`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
}

/// What a data key seals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyPurpose {
    /// Packs and `backup_manifest`.
    Data,
    /// File tables.
    Tables,
}

/// A data key, wrapped to restore identities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// Its id.
    pub id: Id,
    /// What it seals.
    pub purpose: KeyPurpose,
    /// An age file, base64.
    pub wrapped: String,
}

/// One pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackEntry {
    /// Digest of the object, its name.
    pub sha256: Sha256,
    /// Its id, which its frames are bound to.
    pub id: Id,
    /// Bytes of the object.
    pub bytes: u64,
}

/// One file table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEntry {
    /// Key of the object.
    pub object: String,
    /// Digest of the object.
    pub sha256: Sha256,
    /// Bytes of the object.
    pub bytes: u64,
    /// Rows in it.
    pub rows: u64,
    /// First path in it.
    pub first: String,
    /// Last path in it.
    pub last: String,
}

/// How the database was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyMethod {
    /// From its directory, in parallel, between start and stop of a backup.
    Local,
    /// Through the replication protocol.
    Stream,
    /// pg_dump.
    Logical,
    /// Named only; nothing was copied.
    Recorded,
}

impl CopyMethod {
    /// Whether a data directory can be restored from it.
    pub fn is_physical(self) -> bool {
        matches!(self, Self::Local | Self::Stream)
    }
}

/// What is known of the database. A physical copy has every member of [`Physical`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PostgresEntry {
    /// How it was copied.
    pub copy: CopyMethod,
    /// Where it was: host or socket, port, database; never a password.
    pub server: String,
    /// Like 150018.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_num: Option<u32>,
    /// As the server prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The cluster's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<SystemId>,
    /// Of a physical copy.
    #[serde(flatten)]
    pub physical: Option<Physical>,
    /// Databases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<DatabaseEntry>,
    /// Collation versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collations: Vec<CollationEntry>,
    /// Extensions of the databases that could be asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<ExtensionEntry>,
    /// Settings that a standby or a restored server must not undercut.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub settings: std::collections::BTreeMap<String, String>,
    /// The C library of the host that copied it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libc: Option<String>,
    /// What the tables held at one moment of the backup, or why that is not known; older backups have neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<TruthEntry>,
}

/// Whether the truth about the tables was recorded ([`crate::truth`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TruthEntry {
    /// It is this object.
    Stored(StoredTruth),
    /// It was not, for this reason.
    Missing(String),
}

/// The truth about the tables, and the restore point that it is the truth of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTruth {
    /// The sealed object.
    #[serde(flatten)]
    pub entry: ObjectEntry,
    /// Name of the restore point.
    pub point: String,
    /// Where its record ends.
    pub lsn: Lsn,
    /// Whether the backup's own WAL reaches it; else the archive's does.
    pub own_wal: bool,
    /// Tables that there were.
    pub tables: u64,
    /// Tables that were read, wholly or in part.
    pub read: u64,
}

/// What a physical copy needs to come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Physical {
    /// Catalog version: a server binary of the same one is needed.
    pub catalog_version: u32,
    /// The timeline it was taken on.
    pub timeline: Timeline,
    /// Where recovery begins.
    pub start_lsn: Lsn,
    /// Where the copy is consistent.
    pub stop_lsn: Lsn,
    /// When it was.
    pub consistent_at: Timestamp,
    /// WAL that it needs.
    pub wal: WalEntry,
    /// Page checksums.
    pub checksums: ChecksumsEntry,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of one file of a relation.
    pub relation_segment_bytes: u64,
    /// Tablespaces.
    #[serde(default)]
    pub tablespaces: Vec<TablespaceEntry>,
    /// PostgreSQL's own manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_manifest: Option<ObjectEntry>,
}

/// WAL that a backup needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalEntry {
    /// Bytes of a segment.
    pub segment_size: SegmentSize,
    /// First segment.
    pub first: String,
    /// Last segment.
    pub last: String,
    /// Whether the segments are in the backup.
    pub included: bool,
}

/// What page checksums said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChecksumsEntry {
    /// Whether the cluster has them.
    pub enabled: bool,
    /// Pages checked.
    pub pages: u64,
    /// Pages wrong; the findings name the first of them.
    pub bad: u64,
}

/// An object with its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectEntry {
    /// Key.
    pub object: String,
    /// Digest of the object.
    pub sha256: Sha256,
    /// Bytes of the object.
    pub bytes: u64,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceEntry {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it was.
    pub location: String,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseEntry {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// A collation's versions: indexes built under another one are wrong (c047, c094).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollationEntry {
    /// Database or collation.
    pub name: String,
    /// The version recorded in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<String>,
    /// The version that the host's library has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<String>,
}

/// An extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtensionEntry {
    /// Database.
    pub database: String,
    /// Extension.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The artifacts of a backup's moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactsEntry {
    /// The head that was read; 0: there was none yet.
    pub head: u64,
    /// Its runs, newest first.
    pub runs: Vec<Run>,
    /// Artifacts in the set.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What the database refers to, compared with the set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub references: Option<ReferencesEntry>,
}

/// The database's references compared with the artifact set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferencesEntry {
    /// The query that lists them (kept with the backup so that a restore can ask the same).
    pub query: String,
    /// Rows it gave.
    pub rows: u64,
    /// Rows whose artifact is not in the set, or has another digest.
    pub missing_count: u64,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

impl Manifest {
    /// Reads a manifest and checks that its parts fit each other. What it says is to be believed
    /// only after its signature was verified.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        #[derive(Deserialize)]
        struct Probe {
            format: u32,
        }
        let json = |e: serde_json::Error| FormatError::malformed(WHAT, e.to_string());
        let probe: Probe = serde_json::from_slice(bytes).map_err(json)?;
        if probe.format != FORMAT_VERSION {
            return Err(FormatError::TooNew { what: WHAT, found: probe.format });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(json)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), FormatError> {
        let bad = |problem: String| Err(FormatError::malformed(WHAT, problem));
        if self.id.name() != self.name {
            return bad(format!("id {} and name {:?} differ", self.id, self.name));
        }
        if let Some(index) = self.boot_packs.iter().find(|index| **index as usize >= self.packs.len()) {
            return bad(format!("boot pack {index} of {}", self.packs.len()));
        }
        for object in self.sealed_objects() {
            super::layout::Key::parse(object)?;
        }
        if let Some(postgres) = &self.postgres
            && postgres.copy.is_physical() != postgres.physical.is_some()
        {
            return bad("a physical copy without its positions".into());
        }
        if (self.encryption.suite == Suite::None) != self.encryption.keys.is_empty() {
            return bad("suite and keys do not go together".into());
        }
        Ok(())
    }

    /// The truth about its tables, where it was recorded.
    pub fn truth(&self) -> Option<&StoredTruth> {
        match &self.postgres.as_ref()?.truth {
            Some(TruthEntry::Stored(stored)) => Some(stored),
            Some(TruthEntry::Missing(_)) | None => None,
        }
    }

    /// PostgreSQL's own manifest, where there is one.
    pub fn backup_manifest(&self) -> Option<&ObjectEntry> {
        self.postgres.as_ref()?.physical.as_ref()?.backup_manifest.as_ref()
    }

    /// Keys of the sealed objects that it names: file tables, `backup_manifest`, the truth. Packs and artifacts are others'.
    pub fn sealed_objects(&self) -> impl Iterator<Item = &str> {
        let entries = self.backup_manifest().into_iter().chain(self.truth().map(|stored| &stored.entry));
        self.tables.iter().map(|table| table.object.as_str()).chain(entries.map(|entry| entry.object.as_str()))
    }

    /// The wrapped key for `purpose`, if the backup is encrypted.
    pub fn key(&self, purpose: KeyPurpose) -> Option<&WrappedKey> {
        self.encryption.keys.iter().find(|key| key.purpose == purpose)
    }
}
