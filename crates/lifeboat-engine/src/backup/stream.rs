//! A physical copy through the replication protocol: nothing is installed on the database's host.

use std::io::Read as _;

use jiff::Timestamp;
use lifeboat_core::postgres::backup_manifest;
use lifeboat_core::postgres::control_file::ControlFile;
use lifeboat_core::postgres::data_directory::{self, Disposition, RelationFile};
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::extent::EXTENT_BYTES;
use lifeboat_core::repository::file_table::{Kind, Meta};
use lifeboat_core::repository::manifest::{ChecksumsEntry, Physical, TablespaceEntry, WalEntry};
use lifeboat_core::wal;

use super::{BackupError, CopiedDatabase, PostgresSource};
use crate::copy::{self, CopyFile, CopySettings, Feeder, JOB_BYTES, PageCheck};
use crate::postgres::{
    BaseBackup, BaseBackupOptions, ChecksumState, ClusterFacts, Connection, Entry, EntryKind, FinishedBaseBackup, Item, PgError, Purpose,
    WalHold,
};
use crate::progress::Progress;
use crate::store::Store;
use crate::truth::Recorded;

use super::local::LocalOutcome;

/// The longest `backup_manifest` or `pg_control` that is taken into memory.
const MAX_MEMORY_BYTES: u64 = 256 << 20;

#[derive(Default)]
struct Received {
    /// With the moment when it arrived.
    control: Option<(Meta, Vec<u8>, ControlFile, Timestamp)>,
    backup_manifest: Option<Vec<u8>>,
    has_label: bool,
    wal: Vec<String>,
    /// Links to tablespaces.
    tablespaces: std::collections::BTreeSet<String>,
    /// Files that the server sent and its manifest names, and that are no part of a backup.
    left_out: Vec<String>,
    warnings: Vec<String>,
}

pub(super) fn copy(
    store: &dyn Store,
    source: &PostgresSource,
    settings: &CopySettings,
    label: &str,
    id: &BackupId,
    progress: &dyn Progress,
) -> Result<LocalOutcome, BackupError> {
    // A role that may only replicate cannot log in to a database: then the stream has to say all.
    let facts = match Connection::open(&source.dsn, Purpose::Sql).and_then(|connection| ClusterFacts::read(&connection)) {
        Ok(facts) => Some(facts),
        Err(error @ (PgError::Sql { .. } | PgError::Authentication { .. })) => {
            progress.warn(&format!("facts about databases and extensions are not recorded: {error}"));
            None
        }
        Err(error) => return Err(error.into()),
    };
    progress.phase("checkpoint");
    let options = BaseBackupOptions {
        label: label.to_owned(),
        fast: source.fast_checkpoint,
        include_wal: true,
        wait_for_archive: false,
        manifest: true,
        max_rate_kb: settings.bandwidth.map(|bytes| (bytes / 1024).clamp(32, 1 << 20) as u32),
        // We check every page ourselves, also those that the server would skip for their LSN.
        verify_checksums: false,
        hold_wal: true,
    };
    let connection = Connection::open(&source.dsn, Purpose::Replication)?;
    let version_num = connection.server_version();
    let mut backup = BaseBackup::start_on(connection, &options)?;
    let system_id = backup.facts().system_id;
    if let Some(facts) = &facts
        && facts.system_id != system_id
    {
        return Err(BackupError::OtherServer { sql: facts.system_id, replication: system_id });
    }
    let mut received = Received::default();
    if let WalHold::NotHeld { reason } = backup.wal_hold() {
        received.warnings.push(format!("the server did not hold the WAL of this backup in a slot: {reason}"));
    }
    let check_pages = match &facts {
        Some(facts) => source.check_pages && facts.data_checksums == ChecksumState::On && facts.block_size_bytes == 8192,
        // Unknown before pg_control comes, last: check, and forget what was found if they are off.
        None => source.check_pages,
    };
    let segment_blocks = facts.as_ref().map_or(131_072, |facts| facts.segment_size_blocks);
    let start_lsn = backup.start_lsn();
    progress.phase("copy");
    let (finished, copied) = copy::run(store, settings, progress, |feeder| -> Result<FinishedBaseBackup, BackupError> {
        while let Some(item) = backup.next_item()? {
            match item {
                Item::Archive(_) => {}
                Item::Manifest => received.backup_manifest = Some(read_all(&mut backup, MAX_MEMORY_BYTES)?),
                Item::Entry(entry) => {
                    let pages = |path: &str| {
                        let file = RelationFile::parse(path).filter(|_| check_pages)?;
                        Some(PageCheck { first_block: file.first_block(segment_blocks), suspect_from: Some(start_lsn) })
                    };
                    receive(feeder, &mut backup, entry, &pages, &mut received)?;
                }
            }
        }
        let finished = backup.finish()?;
        if let Some(facts) = &facts {
            feed_outside(feeder, source, facts, &mut received.warnings)?;
        }
        let Some((meta, bytes, ..)) = &received.control else { return Err(BackupError::Incomplete("global/pg_control")) };
        let file = CopyFile { meta: meta.clone(), source: None, pages: None, may_vanish: false, in_backup_manifest: false };
        feeder.bytes(file, bytes.clone())?;
        Ok(finished)
    })?;
    let Received { control, backup_manifest, has_label, wal: wal_files, left_out, mut warnings, .. } = received;
    let (_, _, control, consistent_at) = control.ok_or(BackupError::Incomplete("global/pg_control"))?;
    if !has_label {
        // Without it a restore would begin recovery in the wrong place (c001).
        return Err(BackupError::Incomplete("backup_label"));
    }
    let mut backup_manifest = backup_manifest.ok_or(BackupError::Incomplete("backup_manifest"))?;
    if !left_out.is_empty() {
        backup_manifest = backup_manifest::without(&backup_manifest, &left_out)
            .map_err(|_| BackupError::Incomplete("a backup_manifest that can be read"))?;
    }
    if control.system_id != system_id {
        return Err(BackupError::OtherServer { sql: control.system_id, replication: system_id });
    }
    let needed: Vec<String> = wal::segments_between(finished.timeline, finished.start_lsn, finished.stop_lsn, control.segment_size)
        .map(|segment| segment.file_name(control.segment_size))
        .collect();
    if let Some(missing) = needed.iter().find(|name| !wal_files.contains(name)) {
        return Err(BackupError::Wal { segment: missing.clone(), problem: "the server did not send it".into() });
    }
    warnings.extend(finished.notices.iter().map(|notice| notice.message.clone()).filter(|m| !m.contains("WAL archiving is not enabled")));
    let mut consistent_at = consistent_at;
    if facts.as_ref().is_some_and(|facts| facts.in_recovery) {
        consistent_at = super::of_standby(&Connection::open(&source.dsn, Purpose::Sql)?, consistent_at)?;
        // The server sends WAL up to there and no further (c037).
        warnings.push(format!(
            "a standby was streamed: it comes back as of LSN {}, which it had on disk; later commits, though it showed them, are not in it",
            finished.stop_lsn
        ));
    }
    if copied.shrunk > 0 {
        warnings.push(format!("{} files were shorter than announced", copied.shrunk));
    }
    // The stream ends where the backup does: the moment is in the archive's reach only.
    let truth = if facts.is_none() {
        Recorded::Missing("the role may only replicate".into())
    } else {
        let moment = super::moment_of(source, id, &mut warnings);
        super::truth_at(source, moment, &mut warnings, progress)
    };
    let checked = check_pages && control.checksums_on();
    let tablespaces = finished
        .tablespaces
        .iter()
        .map(|tablespace| TablespaceEntry {
            oid: tablespace.oid,
            name: facts.as_ref().and_then(|f| f.tablespaces.iter().find(|t| t.oid == tablespace.oid)).map(|t| t.name.clone()),
            location: tablespace.location.display().to_string(),
        })
        .collect();
    let physical = Physical {
        catalog_version: control.catalog_version,
        timeline: finished.timeline,
        start_lsn: finished.start_lsn,
        stop_lsn: finished.stop_lsn,
        consistent_at,
        wal: WalEntry {
            segment_size: control.segment_size,
            first: needed.first().cloned().unwrap_or_default(),
            last: needed.last().cloned().unwrap_or_default(),
            included: true,
        },
        checksums: ChecksumsEntry { enabled: control.checksums_on(), pages: if checked { copied.pages } else { 0 }, bad: 0 },
        block_size: control.block_size,
        relation_segment_bytes: u64::from(control.relation_segment_blocks) * u64::from(control.block_size),
        tablespaces,
        backup_manifest: None,
    };
    let mut database = CopiedDatabase {
        physical: Some(physical),
        backup_manifest: Some(backup_manifest),
        identity: Some((system_id, version_num)),
        facts,
        warnings,
        left_out: Vec::new(),
        judge_pages: checked,
        truth,
    };
    if database.facts.is_none() {
        database.warnings.push(format!(
            "the role may only replicate: databases, extensions and collations of this server (version {version_num}) are not recorded"
        ));
    }
    Ok(LocalOutcome { database, copied })
}

/// Configuration that stands outside the data directory is not in the stream: asked for by SQL, where
/// the role may read files of the server (c031).
fn feed_outside(
    feeder: &Feeder<'_, '_>,
    source: &PostgresSource,
    facts: &ClusterFacts,
    warnings: &mut Vec<String>,
) -> Result<(), BackupError> {
    let Some(directory) = &facts.data_directory else { return Ok(()) };
    let inside = format!("{}/", directory.trim_end_matches('/'));
    let files = [&facts.config_file, &facts.hba_file, &facts.ident_file];
    let mut outside: Vec<String> =
        files.into_iter().flatten().filter(|file| file.starts_with('/') && !file.starts_with(&inside)).cloned().collect();
    if outside.is_empty() {
        return Ok(());
    }
    let connection = Connection::open(&source.dsn, Purpose::Sql)?;
    let mut directories = std::collections::BTreeSet::new();
    // Debian's configuration includes conf.d, and a server does not start without that directory, empty or not.
    let beside =
        facts.config_file.as_deref().filter(|file| outside.iter().any(|other| other == file)).and_then(|file| file.rsplit_once('/'));
    if let Some((directory, _)) = beside {
        let include = format!("{directory}/conf.d");
        if let Ok(rows) = connection.query("SELECT pg_ls_dir($1::text) AS name", &[Some(&include)]) {
            directories.insert(format!("{}{include}", super::OUTSIDE));
            let names = rows.iter().map(|row| row.get("name").map(str::to_owned)).collect::<Result<Vec<_>, _>>()?;
            outside.extend(names.iter().filter(|name| name.ends_with(".conf")).map(|name| format!("{include}/{name}")));
        }
    }
    let mut found = Vec::new();
    for file in outside {
        match connection
            .query("SELECT pg_read_file($1::text) AS content", &[Some(&file)])
            .and_then(|rows| Ok(rows.one()?.get("content")?.as_bytes().to_vec()))
        {
            Ok(bytes) => {
                let path = format!("{}{file}", super::OUTSIDE);
                let mut above = path.as_str();
                while let Some((parent, _)) = above.rsplit_once('/') {
                    directories.insert(parent.to_owned());
                    above = parent;
                }
                found.push((path, file, bytes));
            }
            Err(error) => warnings.push(format!("configuration outside the data directory was not copied: {file}: {error}")),
        }
    }
    for directory in directories.clone() {
        let mut above = directory.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            directories.insert(parent.to_owned());
            above = parent;
        }
    }
    for directory in directories {
        feeder.entry(super::local::plain_meta(&directory, Kind::Directory, 0, 0o700))?;
    }
    for (path, file, bytes) in found {
        let mut meta = super::local::plain_meta(&path, Kind::File, bytes.len() as u64, 0o600);
        (meta.outside, meta.target) = (true, Some(file));
        feeder.bytes(CopyFile { meta, source: None, pages: None, may_vanish: false, in_backup_manifest: false }, bytes)?;
    }
    Ok(())
}

fn read_all(backup: &mut BaseBackup, limit: u64) -> Result<Vec<u8>, BackupError> {
    let mut bytes = Vec::new();
    backup.take(limit + 1).read_to_end(&mut bytes).map_err(BackupError::Receive)?;
    if bytes.len() as u64 > limit {
        return Err(BackupError::Incomplete("a file that fits into memory"));
    }
    Ok(bytes)
}

fn receive(
    feeder: &Feeder<'_, '_>,
    backup: &mut BaseBackup,
    entry: Entry,
    pages: &dyn Fn(&str) -> Option<PageCheck>,
    received: &mut Received,
) -> Result<(), BackupError> {
    let Some(path) = entry.path.to_str().map(|path| path.trim_end_matches('/').to_owned()) else {
        received.warnings.push(format!("not copied, because its name is not UTF-8: {}", entry.path.display()));
        return Ok(());
    };
    if path.is_empty() || path == "." {
        return Ok(());
    }
    let kind = match &entry.kind {
        EntryKind::File => Kind::File,
        EntryKind::Directory => Kind::Directory,
        EntryKind::Symlink(_) if path.strip_prefix("pg_tblspc/").is_some_and(|rest| !rest.contains('/')) => Kind::Tablespace,
        // pg_wal behind a link comes back as a directory, as a local copy has it.
        EntryKind::Symlink(_) if path == "pg_wal" => Kind::Directory,
        EntryKind::Symlink(_) => Kind::Symlink,
    };
    let target = match &entry.kind {
        EntryKind::Symlink(target) if kind != Kind::Directory => Some(target.display().to_string()),
        _ => None,
    };
    let meta = Meta {
        path: path.clone(),
        kind,
        size: if kind == Kind::File { entry.size_bytes } else { 0 },
        mode: if kind == Kind::Tablespace { 0o700 } else { entry.mode & 0o7777 },
        owner: None,
        group: None,
        uid: u32::try_from(entry.uid).unwrap_or(0),
        gid: u32::try_from(entry.gid).unwrap_or(0),
        modified: Timestamp::from_second(i64::try_from(entry.modified_seconds).unwrap_or(0)).ok(),
        target,
        outside: false,
    };
    if kind == Kind::Tablespace && !received.tablespaces.insert(path) {
        // Servers before 16 send the link again, after what it leads to.
        return Ok(());
    }
    if kind != Kind::File {
        return feeder.entry(meta).map_err(BackupError::from);
    }
    let path = meta.path.clone();
    if path == "global/pg_control" {
        // The server stops the backup when it has sent this file; WAL follows for as long as it takes. What is committed meanwhile is
        // not in the backup, and must not be promised.
        let arrived = Timestamp::now();
        let bytes = read_all(backup, 1 << 20)?;
        let control = ControlFile::decode(&bytes).map_err(|source| BackupError::ControlFile { path, source })?;
        received.control = Some((meta, bytes, control, arrived));
        return Ok(());
    }
    let is_wal = path.strip_prefix("pg_wal/").filter(|rest| !rest.contains('/'));
    if let Some(name) = is_wal {
        received.wal.push(name.to_owned());
    } else if path.starts_with("pg_wal/archive_status/") {
        // The server marks the segments that it sends as archived; the restored one decides anew.
        return Ok(());
    } else if path == "backup_label" {
        received.has_label = true;
    } else if path != "tablespace_map"
        && let Disposition::Skip(_) = data_directory::disposition(&path, false, path.split('/').nth(2).unwrap_or_default())
    {
        received.left_out.push(path);
        return Ok(());
    }
    let size = meta.size;
    let file = CopyFile { pages: pages(&path), meta, source: None, may_vanish: false, in_backup_manifest: false };
    let mut sequence = feeder.sequence(file);
    let mut left = size;
    loop {
        let wanted = left.min(JOB_BYTES) as usize;
        let mut bytes = vec![0; wanted];
        backup.read_exact(&mut bytes).map_err(BackupError::Receive)?;
        left -= wanted as u64;
        if left == 0 {
            return sequence.finish(bytes).map_err(BackupError::from);
        }
        debug_assert!((wanted as u64).is_multiple_of(EXTENT_BYTES));
        sequence.push(bytes)?;
    }
}
