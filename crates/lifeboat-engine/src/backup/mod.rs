//! Taking a backup: lease, database, artifacts, manifest.
//!
//! To follow one: [`run`] here, then `local.rs`, `stream.rs` or `logical.rs` for the database, `copy` for the
//! bytes, `artifacts` for the artifact set, and back here for the commit.

mod artifact_set;
mod listing;
mod local;
mod logical;
mod stream;

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_core::attestation::backup_statement;
use lifeboat_core::backup::{CopyChoice, CopyDecision, CopyFacts, PlanError, choose_copy};
use lifeboat_core::postgres::control_file::ControlFileError;
use lifeboat_core::repository::backup_id::{BackupId, SystemName};
use lifeboat_core::repository::manifest::{
    BackupKind, CollationEntry, CopyMethod, DatabaseEntry, Encryption, ExtensionEntry, Manifest, ObjectEntry, PageFinding, Physical,
    PostgresEntry, State, StoredTruth, TruthEntry, WrappedKey,
};
use lifeboat_core::repository::{FORMAT_VERSION, Sha256, layout, to_json};
use lifeboat_core::truth::{Budget, MAX_TRUTH_BYTES, Truth};
use lifeboat_core::wal::SystemId;

use crate::artifacts::Lacking;
use crate::copy::{Copied, CopyError, CopySettings};
use crate::keys::{KeyError, Recipient};
use crate::lease::{HeldLease, LeaseError};
use crate::postgres::{ClusterFacts, Connection, Dsn, PgError, Purpose, wal_facts};
use crate::progress::Progress;
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Sealing, seal_object};
use crate::signing::{SignError, Signer};
use crate::store::{Store, StoreError, create_or_mine};
use crate::truth::{self, Moment, Recorded};

pub use artifact_set::{compare as compare_references, complaints as sync_complaints};
pub(crate) use local::OUTSIDE;
pub(crate) use logical::run_program;

/// Why a backup failed. Nothing of a failed backup looks like one: it has no manifest.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// No plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Another writer.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The server.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// A file.
    #[error("read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A scratch file.
    #[error("write {path}")]
    Scratch {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The stream broke.
    #[error("receive the base backup")]
    Receive(#[source] io::Error),
    /// `pg_control`.
    #[error("read {path}")]
    ControlFile {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: ControlFileError,
    },
    /// The directory belongs to another cluster than the server (c040).
    #[error("copy {directory}: it is cluster {there}, but the server is {server}")]
    OtherCluster {
        /// The directory.
        directory: String,
        /// Its cluster.
        there: SystemId,
        /// The server's.
        server: SystemId,
    },
    /// The server runs in another directory.
    #[error("copy {directory}: the server's data directory is {server}")]
    OtherDirectory {
        /// Ours.
        directory: String,
        /// The server's.
        server: String,
    },
    /// Two connections of one DSN reach two servers.
    #[error("copy the database: one connection reaches cluster {sql}, another one {replication}")]
    OtherServer {
        /// First.
        sql: SystemId,
        /// Second.
        replication: SystemId,
    },
    /// Earlier backups of this name are of another cluster (c040).
    #[error("back up {name}: its last backup is of cluster {before}, the server is {now}")]
    SystemChanged {
        /// The name.
        name: String,
        /// Of the last backup.
        before: SystemId,
        /// Of the server.
        now: SystemId,
    },
    /// WAL that the backup needs.
    #[error("take WAL segment {segment}: {problem}")]
    Wal {
        /// Its name.
        segment: String,
        /// What is wrong.
        problem: String,
    },
    /// The server did not send something that a backup must have.
    #[error("receive the base backup: the server did not send {0}")]
    Incomplete(&'static str),
    /// A program failed.
    #[error("run {program}: {problem}")]
    Program {
        /// The program.
        program: String,
        /// What it said.
        problem: String,
    },
    /// The pipeline.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Signature.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Artifacts.
    #[error(transparent)]
    Artifacts(#[from] crate::artifacts::ArtifactError),
}

/// The database to back up.
#[derive(Debug, Clone)]
pub struct PostgresSource {
    /// Where it is.
    pub dsn: Dsn,
    /// Its directory on this host.
    pub data_directory: Option<PathBuf>,
    /// How to copy it.
    pub copy: CopyChoice,
    /// Where its programs are (`pg_dump`).
    pub bin_directory: Option<PathBuf>,
    /// Where a dump may be put down while it is taken.
    pub scratch: PathBuf,
    /// Checkpoint at once, not spread out (c006).
    pub fast_checkpoint: bool,
    /// Name it in the manifest, copy nothing.
    pub record_only: bool,
    /// Check page checksums; off where pages are encrypted by the server (c046).
    pub check_pages: bool,
    /// How much is read of the tables, to compare with when it was restored.
    pub truth: Budget,
}

/// The artifacts to back up.
#[derive(Debug, Clone)]
pub struct ArtifactsSource {
    /// The directory that is brought in first; none: the set as it is.
    pub directory: Option<PathBuf>,
    /// An empty directory is meant.
    pub allow_empty: bool,
    /// SQL that gives name and SHA-256 of each artifact that the database refers to.
    pub reference_query: Option<String>,
}

/// Who can read what is written.
#[derive(Clone)]
pub enum Protection {
    /// The restore identities, and this host for the file tables.
    Recipients {
        /// Restore identities.
        recipients: Vec<Recipient>,
        /// This host.
        host: Option<Recipient>,
    },
    /// Everybody: the user said so in words.
    Plain,
}

/// What to back up, all settings resolved.
pub struct BackupRequest<'a> {
    /// Name of the protected system.
    pub name: SystemName,
    /// This host.
    pub host: String,
    /// This program.
    pub program: String,
    /// The database.
    pub postgres: Option<PostgresSource>,
    /// The artifacts.
    pub artifacts: Option<ArtifactsSource>,
    /// Who can read it.
    pub protection: Protection,
    /// Who signs it.
    pub signer: &'a dyn Signer,
    /// Worker threads.
    pub workers: usize,
    /// Bytes of memory for buffers.
    pub memory_bytes: u64,
    /// zstd level.
    pub level: i32,
    /// Bytes a second to read.
    pub bandwidth: Option<u64>,
    /// The newest checkpoint of the audit log, for the manifest: `audit::Recorded::checkpoint`.
    pub audit: Option<String>,
}

/// What a database copy leaves for the manifest.
pub(super) struct CopiedDatabase {
    physical: Option<Physical>,
    backup_manifest: Option<Vec<u8>>,
    /// System identifier and version, for roles that may ask for nothing else.
    identity: Option<(SystemId, u32)>,
    facts: Option<ClusterFacts>,
    warnings: Vec<String>,
    /// Databases of the server that are not in it.
    left_out: Vec<String>,
    /// Whether page findings count.
    judge_pages: bool,
    /// What the tables held.
    truth: Recorded,
}

/// A backup that was taken.
pub struct TakenBackup {
    /// Its manifest.
    pub manifest: Manifest,
    /// Digest of the manifest's bytes.
    pub digest: Sha256,
    /// Artifacts of it that not all recipients can open; a warning of the manifest says the same.
    pub lacking: Lacking,
    /// Something that should be in the artifact set is not; what, the warnings say.
    pub artifact_findings: bool,
    /// Databases of the server that are not in it; a warning of the manifest names them as well.
    pub left_out: Vec<String>,
}

/// What is known before the server was asked.
pub fn copy_facts(source: &PostgresSource) -> CopyFacts {
    CopyFacts {
        data_directory: source.data_directory.as_ref().map(|path| path.display().to_string()),
        data_directory_readable: source.data_directory.as_deref().is_some_and(is_readable_cluster),
        can_replicate: None,
    }
}

fn is_readable_cluster(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok() && std::fs::File::open(directory.join("global/pg_control")).is_ok()
}

/// Chooses how to copy, asking the server where that matters.
pub fn decide_copy(source: &PostgresSource) -> Result<CopyDecision, BackupError> {
    let mut facts = copy_facts(source);
    if source.copy == CopyChoice::Auto && !facts.data_directory_readable {
        let connection = Connection::open(&source.dsn, Purpose::Sql)?;
        let sql = "SELECT (rolreplication OR rolsuper) AND current_setting('max_wal_senders')::int > 0 AS ok FROM pg_roles WHERE rolname = current_user";
        facts.can_replicate = Some(connection.query(sql, &[])?.one()?.bool("ok")?);
    }
    Ok(choose_copy(source.copy, &facts)?)
}

/// Takes a backup.
pub fn run(repository: &Repository, request: &BackupRequest<'_>, progress: &dyn Progress) -> Result<TakenBackup, BackupError> {
    crate::lease::with_lease(repository.store(), "backup", &request.host, &|said| progress.warn(said), |lease| {
        take(repository, request, lease, progress)
    })
}

fn take(
    repository: &Repository,
    request: &BackupRequest<'_>,
    lease: &HeldLease<'_>,
    progress: &dyn Progress,
) -> Result<TakenBackup, BackupError> {
    let store = repository.store();
    let started = Timestamp::now();
    let existing = repository.backup_prefixes()?;
    let id = BackupId::next(&request.name, started, &existing);
    let (data, tables, keys, recipients) = keys(&request.protection)?;
    let settings = CopySettings {
        workers: request.workers,
        memory_bytes: request.memory_bytes,
        level: request.level,
        data: data.clone(),
        tables,
        backup: id.clone(),
        bandwidth: request.bandwidth,
    };
    let mut warnings = Vec::new();
    let mut copied = Copied::default();
    let mut findings = Vec::new();
    let (mut postgres, mut left_out) = (None, Vec::new());
    if let Some(source) = &request.postgres {
        let (entry, what, database_warnings, pages, databases) =
            copy_database(repository, request, source, &settings, &id, &existing, progress)?;
        warnings.extend(database_warnings);
        findings = pages;
        left_out = databases;
        postgres = Some(entry);
        copied = what;
    }
    let (artifacts, lacking, artifact_findings) = match &request.artifacts {
        Some(source) => artifact_set::take(repository, request, source, &mut warnings, progress)
            .map(|(entry, lacking, findings)| (Some(entry), lacking, findings))?,
        None => (None, Lacking::default(), false),
    };
    let manifest = Manifest {
        format: FORMAT_VERSION,
        id: id.clone(),
        repository: repository.descriptor().repository,
        name: request.name.to_string(),
        host: request.host.clone(),
        lifeboat: request.program.clone(),
        started,
        finished: Timestamp::now(),
        kind: BackupKind::Full,
        state: if findings.is_empty() { State::Healthy } else { State::Degraded },
        findings,
        warnings,
        encryption: Encryption { suite: data.suite(), keys, recipients },
        packs: copied.packs,
        boot_packs: copied.boot_packs,
        tables: copied.tables,
        files: copied.rows,
        plain_bytes: copied.plain_bytes,
        stored_bytes: copied.stored_bytes,
        postgres,
        artifacts,
        audit: request.audit.clone(),
    };
    progress.phase("commit");
    let bytes = to_json(&manifest);
    // What cannot be read back must not be committed.
    Manifest::decode(&bytes).map_err(RepositoryError::from)?;
    let digest = Sha256::of(&bytes);
    let statement = backup_statement(&id.to_string(), digest.0, statement_details(&manifest));
    let bundle = request.signer.sign_statement(&statement.to_bytes())?;
    store.create(&layout::manifest_bundle(&id), bundle.as_bytes())?;
    // Whoever took the lease from us may have pruned what we wrote: only its holder commits (c044).
    lease.fence()?;
    let key = layout::manifest(&id);
    if !create_or_mine(store, &key, &bytes)? {
        return Err(StoreError::Exists { key: key.to_string() }.into());
    }
    Ok(TakenBackup { manifest, digest, lacking, artifact_findings, left_out })
}

fn statement_details(manifest: &Manifest) -> serde_json::Value {
    serde_json::json!({
        "repository": manifest.repository,
        "started": manifest.started,
        "finished": manifest.finished,
        "state": manifest.state,
        "lifeboat": manifest.lifeboat,
    })
}

type BackupKeys = (Sealing, Sealing, Vec<WrappedKey>, Vec<String>);

fn keys(protection: &Protection) -> Result<BackupKeys, BackupError> {
    match protection {
        Protection::Plain => Ok((Sealing::Plain, Sealing::Plain, Vec::new(), Vec::new())),
        Protection::Recipients { recipients, host } => {
            let ([data, tables], wrapped) = crate::keys::backup_keys(recipients, host.as_ref())?;
            let names = recipients.iter().map(ToString::to_string).collect();
            Ok((Sealing::Encrypted(data), Sealing::Encrypted(tables), wrapped, names))
        }
    }
}

/// The last are databases that were left out.
type DatabaseCopy = (PostgresEntry, Copied, Vec<String>, Vec<PageFinding>, Vec<String>);

fn copy_database(
    repository: &Repository,
    request: &BackupRequest<'_>,
    source: &PostgresSource,
    settings: &CopySettings,
    id: &BackupId,
    existing: &[BackupId],
    progress: &dyn Progress,
) -> Result<DatabaseCopy, BackupError> {
    let store = repository.store();
    if source.record_only {
        return Ok((recorded(source), Copied::default(), Vec::new(), Vec::new(), Vec::new()));
    }
    let decision = decide_copy(source)?;
    check_lineage(repository, request, source, existing)?;
    let label = format!("lifeboat {id}");
    let (database, mut copied) = match decision.method {
        CopyMethod::Local => {
            let root = source.data_directory.as_deref().ok_or(PlanError::NoDataDirectory)?;
            let outcome = local::copy(store, source, root, settings, &label, id, progress)?;
            (outcome.database, outcome.copied)
        }
        CopyMethod::Stream => {
            let outcome = stream::copy(store, source, settings, &label, id, progress)?;
            (outcome.database, outcome.copied)
        }
        CopyMethod::Logical | CopyMethod::Recorded => logical::copy(store, source, settings, progress)?,
    };
    let mut warnings = database.warnings;
    if copied.vanished.len() > 100 {
        warnings.push(format!("{} files vanished while they were copied", copied.vanished.len()));
    }
    let mut findings = Vec::new();
    let mut physical = database.physical;
    if let Some(physical) = &mut physical {
        if let Some(bytes) = &database.backup_manifest {
            let key = layout::backup_manifest(id);
            let sealed = seal_object(key.as_str(), &settings.data, bytes);
            store.create(&key, &sealed)?;
            physical.backup_manifest =
                Some(ObjectEntry { object: key.to_string(), sha256: Sha256::of(&sealed), bytes: sealed.len() as u64 });
            copied.stored_bytes += sealed.len() as u64;
        }
        if database.judge_pages {
            findings = std::mem::take(&mut copied.findings);
            let stop = physical.stop_lsn;
            // Changed while the backup ran: WAL holds the whole page, and replays it. An LSN beyond
            // the end is none that PostgreSQL wrote.
            findings.extend(copied.suspects.drain(..).filter(|(_, lsn)| *lsn > stop).map(|(finding, _)| finding));
            physical.checksums.bad = copied.bad_pages.max(findings.len() as u64);
        }
    }
    let mut entry = postgres_entry(source, decision.method, physical, database.facts.as_ref());
    if let Some((system_id, version_num)) = database.identity {
        entry.system_id = Some(system_id);
        entry.version_num = Some(version_num);
    }
    entry.truth = Some(match database.truth {
        Recorded::Truth(truth) => {
            let plain = truth.encode();
            if plain.len() > MAX_TRUTH_BYTES {
                TruthEntry::Missing("there are too many tables".into())
            } else {
                let stored = store_truth(store, settings, &truth, &plain)?;
                copied.stored_bytes += stored.entry.bytes;
                TruthEntry::Stored(stored)
            }
        }
        Recorded::Missing(why) => TruthEntry::Missing(why),
    });
    Ok((entry, copied, warnings, findings, database.left_out))
}

fn store_truth(store: &dyn Store, settings: &CopySettings, truth: &Truth, plain: &[u8]) -> Result<StoredTruth, BackupError> {
    let key = layout::truth(&truth.backup);
    let sealed = seal_object(key.as_str(), &settings.data, plain);
    store.create(&key, &sealed)?;
    let (tables, read) = truth.counts();
    Ok(StoredTruth {
        entry: ObjectEntry { object: key.to_string(), sha256: Sha256::of(&sealed), bytes: sealed.len() as u64 },
        point: truth.point.name.clone(),
        lsn: truth.point.lsn,
        own_wal: truth.point.own_wal,
        tables,
        read,
    })
}

/// When a copy of a standby is from, that ended `now`. One that does not follow its primary has nothing that is newer than the last commit it replayed,
/// whatever the time is.
fn of_standby(connection: &Connection, now: Timestamp) -> Result<Timestamp, PgError> {
    let standby = wal_facts::standby(connection)?;
    Ok(standby.replayed.filter(|_| !standby.streams).map_or(now, |replayed| replayed.min(now)))
}

/// The moment whose truth is recorded, as soon as the backup has ended; why there is none otherwise.
fn moment_of(source: &PostgresSource, id: &BackupId, warnings: &mut Vec<String>) -> Result<Moment, String> {
    if source.truth.bytes == 0 {
        return Err("it is turned off (drill.truth_bytes is 0)".into());
    }
    truth::take(&source.dsn, id).map_err(|refused| {
        if refused.warn {
            warnings.push(format!("what the tables hold was not recorded, so that no drill can compare it: {}", refused.reason));
        }
        refused.reason
    })
}

/// What the tables hold at that moment.
fn truth_at(source: &PostgresSource, moment: Result<Moment, String>, warnings: &mut Vec<String>, progress: &dyn Progress) -> Recorded {
    match moment {
        Ok(moment) => {
            progress.phase("truth");
            let (truth, found) = truth::read_moment(moment, source.truth);
            warnings.extend(found);
            Recorded::Truth(Box::new(truth))
        }
        Err(why) => Recorded::Missing(why),
    }
}

/// Refuses to mix clusters under one name (c040): retention and "latest" would mean nothing.
fn check_lineage(
    repository: &Repository,
    request: &BackupRequest<'_>,
    source: &PostgresSource,
    existing: &[BackupId],
) -> Result<(), BackupError> {
    let store = repository.store();
    for id in existing.iter().rev().filter(|id| id.name() == request.name.to_string()) {
        let bytes = match store.get(&layout::manifest(id), crate::repository::MAX_MANIFEST_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.is_absence() => continue,
            Err(error) => return Err(error.into()),
        };
        // What cannot be read is the business of verify; here it only means "ask the one before".
        let Ok(manifest) = Manifest::decode(&bytes) else { continue };
        let Some(before) = manifest.postgres.as_ref().and_then(|postgres| postgres.system_id) else { continue };
        let connection = Connection::open(&source.dsn, Purpose::Replication).and_then(|connection| connection.identify_system());
        let now = match connection {
            Ok(system) => system.system_id,
            Err(_) => ClusterFacts::read(&Connection::open(&source.dsn, Purpose::Sql)?)?.system_id,
        };
        if before != now {
            return Err(BackupError::SystemChanged { name: request.name.to_string(), before, now });
        }
        return Ok(());
    }
    Ok(())
}

fn server_name(source: &PostgresSource) -> String {
    source.dsn.endpoint().to_string()
}

fn recorded(source: &PostgresSource) -> PostgresEntry {
    // The server need not be there to be named.
    let facts = Connection::open(&source.dsn, Purpose::Sql).and_then(|connection| ClusterFacts::read(&connection)).ok();
    postgres_entry(source, CopyMethod::Recorded, None, facts.as_ref())
}

fn postgres_entry(source: &PostgresSource, copy: CopyMethod, physical: Option<Physical>, facts: Option<&ClusterFacts>) -> PostgresEntry {
    let mut entry = PostgresEntry {
        copy,
        server: server_name(source),
        version_num: facts.map(|facts| facts.server_version),
        version: facts.map(|facts| facts.version_text.clone()),
        system_id: facts.map(|facts| facts.system_id),
        physical,
        databases: Vec::new(),
        collations: Vec::new(),
        extensions: Vec::new(),
        settings: std::collections::BTreeMap::new(),
        libc: None,
        truth: None,
    };
    let Some(facts) = facts else { return entry };
    entry.libc = facts.collation_versions_now.get("c").and_then(|versions| versions.first().cloned());
    for database in &facts.databases {
        entry.databases.push(DatabaseEntry { oid: database.oid, name: database.name.clone() });
        if database.collation_version.is_some() || database.collation_version_now.is_some() {
            entry.collations.push(CollationEntry {
                name: format!("database {}", database.name),
                recorded: database.collation_version.clone(),
                actual: database.collation_version_now.clone(),
            });
        }
    }
    for collation in &facts.changed_collations {
        entry.collations.push(CollationEntry {
            name: collation.name.clone(),
            recorded: Some(collation.version.clone()),
            actual: collation.version_now.clone(),
        });
    }
    let database = source.dsn.endpoint().database;
    for extension in &facts.extensions {
        entry.extensions.push(ExtensionEntry {
            database: database.clone(),
            name: extension.name.clone(),
            version: extension.version.clone(),
        });
    }
    let standby = &facts.hot_standby;
    for (name, value) in [
        ("max_connections", standby.max_connections),
        ("max_worker_processes", standby.max_worker_processes),
        ("max_wal_senders", standby.max_wal_senders),
        ("max_prepared_transactions", standby.max_prepared_transactions),
        ("max_locks_per_transaction", standby.max_locks_per_transaction),
    ] {
        entry.settings.insert(name.to_owned(), value.to_string());
    }
    entry.settings.extend(facts.replay.clone());
    if let Some(libraries) = facts.shared_preload_libraries.as_ref().filter(|libraries| !libraries.is_empty()) {
        entry.settings.insert("shared_preload_libraries".into(), libraries.clone());
    }
    entry
}
