//! Restoring: a plan in, a data directory and an artifact tree out.
//!
//! To follow one: [`run`] here, then `hydrate.rs` for the bytes, `tree.rs` for what is around them, `server.rs` for
//! starting it; `logical.rs` for dumps; `artifacts` for the artifact set.

pub(crate) mod hydrate;
mod logical;
pub mod server;
pub(crate) mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_core::postgres::backup_manifest;
use lifeboat_core::postgres::control_file::{ControlFile, ControlFileError, invalidate_checkpoint};
use lifeboat_core::repository::extent::extent_bytes;
use lifeboat_core::repository::file_table::{Kind, Meta, Row};
use lifeboat_core::repository::manifest::KeyPurpose;
use lifeboat_core::restore::{DatabasePlan, RestorePlan, auto_conf, tablespace_map};
use lifeboat_core::verify::{Finding, FindingKind};
use lifeboat_core::wal::Lsn;

use crate::keys::{Identities, KeyError};
use crate::opened_backup::{OpenBackupError, VerifiedBackup};
use crate::progress::Progress;
use crate::repository::{Repository, RepositoryError};
use crate::seal::{self, Sealing};
use crate::store::StoreError;
use hydrate::{Hydration, Sink};
use tree::{Ownership, Syncer, give, write_error};

/// Why a restore failed. What it wrote cannot be started: `global/pg_control` comes last.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Missing, corrupt or unsigned.
    #[error("restore: {0}")]
    Damaged(Finding),
    /// The backup could not be opened.
    #[error(transparent)]
    Open(OpenBackupError),
    /// The manifest changed since the plan was made.
    #[error("restore {0}: its manifest is no longer the one that the plan was made for")]
    OtherManifest(String),
    /// The target has something in it (c067).
    #[error("restore into {directory}: it is not empty")]
    NotEmpty {
        /// The target.
        directory: String,
    },
    /// A server uses the target (c066).
    #[error("restore into {directory}: a server is running there, or left its postmaster.pid")]
    ServerRunning {
        /// The target.
        directory: String,
    },
    /// The directory above the target is missing.
    #[error("restore into {directory}: the directory above it does not exist")]
    NoParent {
        /// The target.
        directory: String,
    },
    /// Not enough room.
    #[error("restore into {directory}: {needed} bytes are needed, {free} are free")]
    NoRoom {
        /// The target.
        directory: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// The target could not be written.
    #[error("write {path}")]
    Write {
        /// What.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The backup's `pg_control`.
    #[error("restore global/pg_control")]
    ControlFile(#[from] ControlFileError),
    /// The backup's `backup_manifest`.
    #[error(transparent)]
    BackupManifest(#[from] backup_manifest::AdjustError),
    /// The decompressor could not be made.
    #[error("start decompressor")]
    Decompressor(#[source] io::Error),
    /// The server did not start, or not as planned.
    #[error(transparent)]
    Server(#[from] server::ServerError),
    /// Keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A program failed.
    #[error("run {program}: {problem}")]
    Program {
        /// The program.
        program: String,
        /// What it said.
        problem: String,
    },
    /// Artifacts.
    #[error(transparent)]
    Artifacts(#[from] crate::artifacts::ArtifactError),
}

/// What execution needs beside the plan.
pub struct RestoreSettings {
    /// What opens the backup.
    pub identities: Identities,
    /// Worker threads.
    pub workers: usize,
    /// Where PostgreSQL's programs are.
    pub bin_directory: Option<PathBuf>,
    /// How long a start may take, recovery included.
    pub start_timeout: Duration,
    /// A WAL file that the archive has: the restore command is tried with it.
    pub probe: Option<String>,
    /// Where the restore command puts WAL down; made for the server's user.
    pub spool: Option<PathBuf>,
    /// A directory for a socket, which has to have a short path and be within reach of the server's owner.
    pub temporary: PathBuf,
    /// As root: user and group that own everything, whoever owned it when it was backed up.
    pub owner: Option<(u32, u32)>,
}

/// What a restored database came to.
#[derive(Debug, Clone, Default)]
pub struct RestoredDatabase {
    /// Time until every file was durable.
    pub files: Duration,
    /// Time from the start of the restore to the first answer of the server.
    pub first_query: Option<Duration>,
    /// Where recovery ended.
    pub reached: Option<Lsn>,
    /// Time of the last commit that was replayed.
    pub last_commit: Option<jiff::Timestamp>,
    /// How to connect to the started server.
    pub dsn: Option<String>,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// WAL that the server's restore command read from another place than the first, in its own words.
    pub read_around: Vec<String>,
    /// Why what fetches WAL for the server cannot be run as it will be: nothing was started that would have noticed.
    pub unfetched: Option<String>,
}

/// Checks that everything the plan writes to can be written to, before anything is read.
pub fn check_targets(plan: &RestorePlan) -> Result<(), RestoreError> {
    let mut targets: Vec<&str> = Vec::new();
    if let Some(database) = &plan.database {
        targets.push(&database.pgdata);
        targets.extend(database.tablespaces.iter().map(|tablespace| tablespace.to.as_str()).filter(|to| Path::new(to).is_absolute()));
    }
    targets.extend(plan.artifacts.as_ref().map(|artifacts| artifacts.directory.as_str()));
    for target in targets {
        check_target(Path::new(target))?;
    }
    Ok(())
}

fn check_target(directory: &Path) -> Result<(), RestoreError> {
    let name = directory.display().to_string();
    if hydrate::exists(&directory.join("postmaster.pid")) {
        return Err(RestoreError::ServerRunning { directory: name });
    }
    match fs::read_dir(directory) {
        Ok(entries) => {
            let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
            let ours = names.iter().any(|name| name == tree::MARKER);
            if ours || names.iter().all(|name| name == "lost+found") { Ok(()) } else { Err(RestoreError::NotEmpty { directory: name }) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if parent.is_dir() { Ok(()) } else { Err(RestoreError::NoParent { directory: name }) }
        }
        Err(error) => Err(write_error(directory)(error)),
    }
}

/// Restores the database as planned.
pub fn run(
    repository: &Repository,
    backup: &VerifiedBackup,
    plan: &RestorePlan,
    settings: &RestoreSettings,
    progress: &dyn Progress,
) -> Result<Option<RestoredDatabase>, RestoreError> {
    if plan.manifest != backup.digest {
        return Err(RestoreError::OtherManifest(plan.backup.clone()));
    }
    check_targets(plan)?;
    let Some(database) = &plan.database else { return Ok(None) };
    if !database.copy.is_physical() {
        return logical::restore(repository, backup, database, settings, progress).map(Some);
    }
    let begun = Instant::now();
    let mut restored = restore_files(repository, backup, database, settings, progress)?;
    restored.files = begun.elapsed();
    if let Some(spool) = &settings.spool {
        make_spool(spool, Path::new(&database.pgdata))?;
    }
    let probed = settings.probe.as_ref().map_or(Ok(()), |probe| server::check_restore_command(database, probe));
    if database.start {
        probed?;
        progress.phase("start");
        let started = server::start(database, settings)?;
        restored.first_query = Some(begun.elapsed());
        restored.reached = Some(started.reached);
        restored.last_commit = started.last_commit;
        restored.dsn = Some(started.dsn);
        restored.warnings.extend(started.warnings);
        restored.read_around = started.read_around;
        // Nothing is fetched any more.
        if let Some(spool) = &settings.spool {
            let _ = fs::remove_dir_all(spool);
        }
        check_reached(database, started.reached)?;
    } else if let Err(error) = probed {
        restored.unfetched = Some(crate::causes::joined(&error));
    }
    Ok(Some(restored))
}

/// Recovery has to go as far as was promised.
fn check_reached(database: &DatabasePlan, reached: Lsn) -> Result<(), RestoreError> {
    let promised = database.promised();
    if reached < promised { Err(server::ServerError::Short { reached, promised }.into()) } else { Ok(()) }
}

/// A directory of the server's user beside the data directory: where the restore command puts WAL down that comes early.
fn make_spool(spool: &Path, data: &Path) -> Result<(), RestoreError> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    match fs::DirBuilder::new().mode(0o700).create(spool) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(write_error(spool)(error)),
    }
    let owner = fs::metadata(data).map_err(write_error(data))?;
    std::os::unix::fs::chown(spool, Some(owner.uid()), Some(owner.gid())).map_err(write_error(spool))
}

/// A backup that its identities open, and what brings its files into being.
struct Unlocked<'a> {
    repository: &'a Repository,
    backup: &'a VerifiedBackup,
    data: Sealing,
    tables: Sealing,
    workers: usize,
    progress: &'a dyn Progress,
}

impl<'a> Unlocked<'a> {
    /// Unlocks both keys: a wrong identity fails here, before anything is written, and not at hour three.
    fn new(
        repository: &'a Repository,
        backup: &'a VerifiedBackup,
        settings: &RestoreSettings,
        progress: &'a dyn Progress,
    ) -> Result<Self, RestoreError> {
        let data = backup.unlock(KeyPurpose::Data, &settings.identities)?;
        let tables = backup.unlock(KeyPurpose::Tables, &settings.identities)?;
        Ok(Self { repository, backup, data, tables, workers: settings.workers, progress })
    }

    /// What writes the files of one table after the other.
    fn hydration(&self) -> Hydration<'_> {
        let (repository, backup, progress) = (self.repository, self.backup, self.progress);
        Hydration { repository, backup, data: &self.data, workers: self.workers, progress, packs: &|_| true }
    }

    /// The rows of every file table in turn; only one table is held at a time.
    fn tables(&self) -> impl Iterator<Item = Result<Vec<Row>, OpenBackupError>> {
        self.progress.phase("restore");
        self.progress.total(self.backup.manifest.files, self.backup.manifest.plain_bytes);
        self.backup.manifest.tables.iter().map(|entry| self.backup.table(self.repository, entry, &self.tables))
    }
}

/// Where the rows of a backup go.
struct Places {
    root: PathBuf,
    tablespaces: BTreeMap<String, PathBuf>,
}

impl Places {
    fn new(plan: &DatabasePlan) -> Self {
        // One in place (`allow_in_place_tablespaces`) has a relative location: it is a directory like others.
        let elsewhere = plan.tablespaces.iter().filter(|tablespace| tablespace.to.starts_with('/'));
        let tablespaces = elsewhere.map(|tablespace| (tablespace.oid.to_string(), PathBuf::from(&tablespace.to))).collect();
        Self { root: PathBuf::from(&plan.pgdata), tablespaces }
    }

    /// The real place of a path, not through links that we made.
    fn of(&self, path: &str) -> PathBuf {
        self.below(path).1
    }

    /// The same, with the directory that it is below: the cluster's or a tablespace's.
    fn below(&self, path: &str) -> (&Path, PathBuf) {
        if let Some(rest) = path.strip_prefix("pg_tblspc/") {
            let (oid, inner) = rest.split_once('/').unwrap_or((rest, ""));
            if let Some(to) = self.tablespaces.get(oid).filter(|_| !inner.is_empty()) {
                return (to, to.join(inner));
            }
        }
        (&self.root, self.root.join(path))
    }
}

/// Rows that are not simply written where they belong.
fn is_held_back(path: &str) -> bool {
    matches!(path, "global/pg_control" | "tablespace_map" | "backup_manifest" | "postgresql.auto.conf")
}

#[derive(Default)]
struct HeldBack {
    control: Option<Row>,
    auto_conf: Option<Row>,
    has_tablespace_map: bool,
    has_label: bool,
    directories: Vec<Meta>,
    links: Vec<Meta>,
    owned: Vec<(PathBuf, (u32, u32))>,
    /// (path in the data directory, where it stood).
    outside: Vec<(String, String)>,
}

/// A data directory in the making: where rows go, whose they become, and those that are not simply written.
struct Target {
    places: Places,
    ownership: Ownership,
    held: HeldBack,
}

fn restore_files(
    repository: &Repository,
    backup: &VerifiedBackup,
    plan: &DatabasePlan,
    settings: &RestoreSettings,
    progress: &dyn Progress,
) -> Result<RestoredDatabase, RestoreError> {
    let unlocked = Unlocked::new(repository, backup, settings, progress)?;
    let places = Places::new(plan);
    check_room(&places.root, backup.manifest.plain_bytes)?;
    tree::prepare(&places.root)?;
    for to in places.tablespaces.values() {
        tree::prepare(to)?;
    }
    let syncer = Syncer::new(std::iter::once(places.root.as_path()).chain(places.tablespaces.values().map(PathBuf::as_path)))?;
    let ownership = Ownership::new(&places.root, settings.owner)?;
    let mut target = Target { places, ownership, held: HeldBack::default() };
    let hydration = unlocked.hydration();
    syncer.during(|| {
        for rows in unlocked.tables() {
            let rows = rows?;
            hold_back(&rows, &mut target)?;
            let place = |row: &Row| (!is_held_back(&row.meta.path)).then(|| target.places.below(&row.meta.path));
            hydration.table(rows, &Sink::Tree(&place))?;
        }
        Ok(())
    })?;
    let control = target.held.control.take().ok_or_else(|| missing(backup, "global/pg_control"))?;
    if !target.held.has_label {
        // Without it recovery would begin in the wrong place and corrupt in silence (c001).
        return Err(missing(backup, "backup_label"));
    }
    progress.phase("finish");
    make_tree(&mut target)?;
    let control_bytes = invalidate_checkpoint(&hydrate::read_row(&hydration, &control)?)?;
    check_control(backup, &control_bytes)?;
    write_recovery(&hydration, plan, &mut target, &control_bytes)?;
    for (path, owner) in &target.held.owned {
        give(path, Some(*owner))?;
    }
    syncer.sync()?;
    finish(&mut target, &control, &control_bytes)?;
    let mut restored = RestoredDatabase::default();
    if let Some(owner) = target.ownership.unknown {
        restored.warnings.push(format!("the owner {owner} is not known here: files belong to the owner of the target's directory"));
    }
    if !target.held.outside.is_empty() {
        restored.warnings.push(format!(
            "configuration that stood outside the data directory is in {}: {}",
            target.places.root.join(crate::backup::OUTSIDE).display(),
            target.held.outside.iter().map(|(_, stood)| stood.as_str()).collect::<Vec<_>>().join(", ")
        ));
    }
    Ok(restored)
}

fn missing(backup: &VerifiedBackup, file: &str) -> RestoreError {
    RestoreError::Damaged(backup.finding(FindingKind::Missing, "file table", Some(file), "the backup does not have it"))
}

/// Whether the file system has room; unknown file systems are believed to have.
fn check_room(directory: &Path, needed: u64) -> Result<(), RestoreError> {
    let existing = directory.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."));
    if let Ok(found) = rustix::fs::statvfs(existing) {
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if found.f_blocks > 0 && free < needed {
            return Err(RestoreError::NoRoom { directory: directory.display().to_string(), needed, free });
        }
    }
    Ok(())
}

/// Sorts out the rows that hydration does not simply write.
fn hold_back(rows: &[Row], target: &mut Target) -> Result<(), RestoreError> {
    let Target { places, ownership, held } = target;
    for row in rows {
        let meta = &row.meta;
        match meta.kind {
            Kind::Directory => {
                let (root, path) = places.below(&meta.path);
                tree::make_directory(root, &path).map_err(write_error(&path))?;
                held.directories.push(meta.clone());
            }
            Kind::Symlink => held.links.push(meta.clone()),
            Kind::Tablespace => {}
            Kind::File => {
                match meta.path.as_str() {
                    "global/pg_control" => held.control = Some(row.clone()),
                    "postgresql.auto.conf" => held.auto_conf = Some(row.clone()),
                    "tablespace_map" => held.has_tablespace_map = true,
                    "backup_label" => held.has_label = extent_bytes(meta.size, 0) > 0,
                    _ => {}
                }
                if meta.outside {
                    held.outside.push((meta.path.clone(), meta.target.clone().unwrap_or_default()));
                }
                if !is_held_back(&meta.path)
                    && let Some(owner) = ownership.of(meta)
                {
                    held.owned.push((places.of(&meta.path), owner));
                }
            }
        }
    }
    Ok(())
}

fn make_tree(target: &mut Target) -> Result<(), RestoreError> {
    let Target { places, ownership, held } = target;
    // What a server needs to start even if the copy had it behind a link (c024).
    for path in ["pg_wal", "pg_wal/archive_status", "pg_tblspc", "global"] {
        let path = places.root.join(path);
        tree::make_directory(&places.root, &path).map_err(write_error(&path))?;
    }
    let sample = held.directories.iter().find(|meta| meta.path == "global").cloned();
    let mut owner_of_root = None;
    for meta in &held.directories {
        let path = places.of(&meta.path);
        let directory = fs::File::open(&path).map_err(write_error(&path))?;
        tree::set_mode(&directory, meta.mode).map_err(write_error(&path))?;
        let owner = ownership.of(meta);
        if meta.path == "global" {
            owner_of_root = owner;
        }
        give(&path, owner)?;
    }
    for meta in &held.links {
        let path = places.of(&meta.path);
        if let Some(target) = &meta.target {
            std::os::unix::fs::symlink(target, &path).map_err(write_error(&path))?;
            give(&path, ownership.of(meta))?;
        }
    }
    // The data directory itself has no row: its group may read if the one of `global` may.
    let group_reads = sample.is_some_and(|meta| meta.mode & 0o050 == 0o050);
    let mode = if group_reads { 0o750 } else { 0o700 };
    for path in std::iter::once(&places.root).chain(places.tablespaces.values()) {
        let directory = fs::File::open(path).map_err(write_error(path))?;
        tree::set_mode(&directory, mode).map_err(write_error(path))?;
        give(path, owner_of_root)?;
    }
    for path in ["pg_wal", "pg_wal/archive_status", "pg_tblspc"] {
        give(&places.root.join(path), owner_of_root)?;
    }
    for (oid, to) in &places.tablespaces {
        if to.is_absolute() {
            let link = places.root.join("pg_tblspc").join(oid);
            std::os::unix::fs::symlink(to, &link).map_err(write_error(&link))?;
            give(&link, owner_of_root)?;
        }
    }
    Ok(())
}

fn check_control(backup: &VerifiedBackup, bytes: &[u8]) -> Result<(), RestoreError> {
    let control = ControlFile::decode(bytes)?;
    let promised = backup.manifest.postgres.as_ref().and_then(|postgres| postgres.system_id);
    if promised.is_some_and(|promised| promised != control.system_id) {
        let problem = format!("it is of cluster {}", control.system_id);
        return Err(RestoreError::Damaged(backup.finding(FindingKind::Corrupt, "file table", Some("global/pg_control"), problem)));
    }
    Ok(())
}

fn write_recovery(hydration: &Hydration<'_>, plan: &DatabasePlan, target: &mut Target, control: &[u8]) -> Result<(), RestoreError> {
    let Target { places, ownership, held } = target;
    let backup = hydration.backup;
    let owner = held.directories.iter().find(|meta| meta.path == "global").and_then(|meta| ownership.of(meta));
    let write = |name: &str, bytes: &[u8]| -> Result<(), RestoreError> {
        let path = places.root.join(name);
        fs::write(&path, bytes).map_err(write_error(&path))?;
        let file = fs::File::open(&path).map_err(write_error(&path))?;
        tree::set_mode(&file, 0o600).map_err(write_error(&path))?;
        give(&path, owner)
    };
    let existing = held.auto_conf.as_ref().map(|row| hydrate::read_row(hydration, row)).transpose()?.unwrap_or_default();
    let comment = format!("restored by lifeboat from {}", plan_name(backup));
    write("postgresql.auto.conf", auto_conf(&String::from_utf8_lossy(&existing), &plan.settings, &comment).as_bytes())?;
    // Exactly one of the two signals: with both, a standby it would be (c073).
    write("recovery.signal", b"")?;
    let map = tablespace_map(&plan.tablespaces);
    if held.has_tablespace_map {
        write("tablespace_map", &map)?;
    }
    let physical = backup.manifest.postgres.as_ref().and_then(|postgres| postgres.physical.as_ref());
    if let Some(entry) = physical.and_then(|physical| physical.backup_manifest.as_ref()) {
        let sealed = backup.object(hydration.repository, &entry.object, entry.sha256, entry.bytes)?;
        let plain = seal::open_object(&sealed, &entry.object, hydration.data, 1 << 30)
            .map_err(|error| RestoreError::Damaged(backup.finding(FindingKind::Corrupt, &entry.object, None, error.to_string())))?;
        // PostgreSQL's manifest, for the files as they are restored.
        let mut adjusted = backup_manifest::with_file(&plain, "global/pg_control", control)?;
        if held.has_tablespace_map {
            adjusted = backup_manifest::with_file(&adjusted, "tablespace_map", &map)?;
        }
        for (path, _) in &held.outside {
            let full = places.of(path);
            let bytes = fs::read(&full).map_err(write_error(&full))?;
            let file = backup_manifest::ManifestFile {
                path: path.clone(),
                size: bytes.len() as u64,
                modified: backup.manifest.started,
                crc32c: crc32c::crc32c(&bytes),
            };
            adjusted = backup_manifest::with_added(&adjusted, &file)?;
        }
        write("backup_manifest", &adjusted)?;
    }
    Ok(())
}

fn plan_name(backup: &VerifiedBackup) -> String {
    format!("{} (manifest {})", backup.id, backup.digest)
}

/// Gives `pg_control` its name, last of all: until then no server starts from what was written (c068).
fn finish(target: &mut Target, control: &Row, bytes: &[u8]) -> Result<(), RestoreError> {
    let Target { places, ownership, .. } = target;
    let global = places.root.join("global");
    let (temporary, path) = (global.join("pg_control.lifeboat"), global.join("pg_control"));
    fs::write(&temporary, bytes).map_err(write_error(&temporary))?;
    let file = fs::File::open(&temporary).map_err(write_error(&temporary))?;
    tree::set_mode(&file, control.meta.mode).map_err(write_error(&temporary))?;
    give(&temporary, ownership.of(&control.meta))?;
    file.sync_all().map_err(write_error(&temporary))?;
    let sync = |path: &Path| fs::File::open(path).and_then(|directory| directory.sync_all()).map_err(write_error(path));
    for to in places.tablespaces.values() {
        remove_marker(to)?;
        sync(to)?;
    }
    fs::rename(&temporary, &path).map_err(write_error(&path))?;
    sync(&global)?;
    remove_marker(&places.root)?;
    sync(&places.root)?;
    if let Some(parent) = places.root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync(parent)?;
    }
    Ok(())
}

fn remove_marker(directory: &Path) -> Result<(), RestoreError> {
    let path = directory.join(tree::MARKER);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(write_error(&path)(error)),
        _ => Ok(()),
    }
}
