//! A physical copy from the data directory on this host, while the server runs: between start and
//! stop of an online backup, in parallel over ranges of files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::backup::{check_tablespaces, plan_local_copy};
use lifeboat_core::postgres::backup_manifest::{self, ManifestFacts};
use lifeboat_core::postgres::control_file::{ControlFile, ControlFileError};
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::file_table::{Kind, Meta};
use lifeboat_core::repository::manifest::{ChecksumsEntry, Physical, TablespaceEntry, WalEntry};
use lifeboat_core::wal::{self, Lsn, Segment, SegmentSize, SystemId};

use super::listing::{self, meta, read_error};
use super::{BackupError, CopiedDatabase, PostgresSource};
use crate::copy::{self, CopyFile, CopySettings, Feeder, PageCheck};
use crate::owners::Owners;
use crate::postgres::{BackupSession, ChecksumState, ClusterFacts, Connection, Purpose, SessionOptions, StoppedBackup, WalHold};
use crate::progress::Progress;
use crate::store::Store;

/// Where files from outside the data directory stand in a backup (c031).
pub(crate) const OUTSIDE: &str = "lifeboat-outside";

pub(super) fn control_file_path(root: &Path) -> PathBuf {
    root.join("global/pg_control")
}

/// Reads `pg_control` until its CRC holds: the server may be writing it (c008).
pub(super) fn read_control_file(path: &Path) -> Result<(Vec<u8>, ControlFile), BackupError> {
    let mut last = None;
    for attempt in 0..20 {
        let bytes = fs::read(path).map_err(|e| read_error(path, e))?;
        match ControlFile::decode(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            // The same wrong bytes twice are not a torn read.
            Err(ControlFileError::Crc) if attempt < 1 || last.as_ref() != Some(&bytes) => last = Some(bytes),
            Err(error) => return Err(BackupError::ControlFile { path: path.display().to_string(), source: error }),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(BackupError::ControlFile { path: path.display().to_string(), source: ControlFileError::Crc })
}

/// Checks that the server we talk to is the one whose directory we read (c040).
fn check_same_cluster(root: &Path, control: &ControlFile, facts: &ClusterFacts) -> Result<(), BackupError> {
    if control.system_id != facts.system_id {
        return Err(BackupError::OtherCluster { directory: root.display().to_string(), there: control.system_id, server: facts.system_id });
    }
    if let Some(directory) = &facts.data_directory
        && let (Ok(theirs), Ok(ours)) = (fs::canonicalize(directory), fs::canonicalize(root))
        && theirs != ours
    {
        return Err(BackupError::OtherDirectory { directory: root.display().to_string(), server: directory.clone() });
    }
    if !root.join("postmaster.pid").exists() {
        return Err(BackupError::OtherDirectory {
            directory: root.display().to_string(),
            server: "another one: no server runs in it".into(),
        });
    }
    Ok(())
}

pub(super) struct LocalOutcome {
    pub(super) database: CopiedDatabase,
    pub(super) copied: copy::Copied,
}

/// Copies a running cluster from its directory.
pub(super) fn copy(
    store: &dyn Store,
    source: &PostgresSource,
    root: &Path,
    settings: &CopySettings,
    label: &str,
    id: &BackupId,
    progress: &dyn Progress,
) -> Result<LocalOutcome, BackupError> {
    let mut warnings = Vec::new();
    let connection = Connection::open(&source.dsn, Purpose::Sql)?;
    let facts = ClusterFacts::read(&connection)?;
    let (_, control) = read_control_file(&control_file_path(root))?;
    check_same_cluster(root, &control, &facts)?;
    progress.phase("checkpoint");
    let options = SessionOptions { label: label.to_owned(), fast: source.fast_checkpoint, hold_wal: true };
    let session = BackupSession::start(connection, &options)?;
    let started = session.started().clone();
    if let WalHold::NotHeld { reason } = &started.wal_hold {
        warnings.push(format!("the server did not hold the WAL of this backup in a slot: {reason}"));
    }
    if started.in_recovery {
        session.connection().wait_replay(started.start_lsn, Some(started.timeline), Duration::from_secs(600))?;
    }

    let version_directory = format!("PG_{}_{}", facts.server_version / 10_000, facts.catalog_version);
    let mut listing = listing::list(root, &version_directory)?;
    let canonical = fs::canonicalize(root).map_err(|e| read_error(root, e))?;
    check_tablespaces(&canonical.display().to_string(), &listing.tablespaces)?;
    for name in &listing.unusable {
        warnings.push(format!("not copied, because its name is not UTF-8: {name}"));
    }
    let mut sources = std::mem::take(&mut listing.sources);
    let outside = outside_files(root, &canonical, &facts, &mut warnings);
    // What an earlier restore left under these names is not what the server uses now.
    listing.entries.retain(|entry| {
        let path = entry.meta.path.as_str();
        !outside.iter().any(|(name, _)| name == path || name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
    });
    for (path, file) in outside {
        let found = fs::metadata(&file).map_err(|e| read_error(&file, e))?;
        let mut meta = meta(&path, Kind::File, &found, &mut Owners::default());
        meta.outside = true;
        meta.target = Some(file.display().to_string());
        sources.insert(path, file);
        listing.entries.push(lifeboat_core::backup::Listed { meta, special: false });
    }
    let plan = plan_local_copy(listing.entries, &version_directory, control.relation_segment_blocks, copy::BOOT_BYTES);
    let special: Vec<&str> = plan.skipped.iter().filter(|(_, why)| why.contains("socket")).map(|(path, _)| path.as_str()).collect();
    if !special.is_empty() {
        warnings.push(format!("not copied, because they are sockets, fifos or devices: {}", special.join(", ")));
    }
    let can_check = facts.data_checksums == ChecksumState::On && control.checksums_on() && control.block_size == 8192;
    let check_pages = source.check_pages && can_check;
    if source.check_pages && facts.data_checksums == ChecksumState::On && !can_check {
        warnings
            .push(format!("page checksums were not checked: blocks have {} bytes, or checksums are being switched", control.block_size));
    }

    progress.phase("copy");
    progress.total(plan.files.len() as u64, plan.bytes);
    let segment_size = control.segment_size;
    let wal_directory = listing.wal_directory;
    let known_tablespaces: Vec<String> = listing.tablespaces.iter().map(|(oid, _)| oid.clone()).collect();
    let ((stopped, stop_control, wal, consistent_at, truth), copied) =
        copy::run(store, settings, progress, |feeder| -> Result<_, BackupError> {
            for entry in outside_directories(&plan.files, facts.config_file.as_deref()) {
                feeder.entry(owned_by_cluster(entry, root))?;
            }
            for entry in plan.entries {
                feeder.entry(entry)?;
            }
            for file in plan.files {
                let source = sources.remove(&file.meta.path).unwrap_or_else(|| root.join(&file.meta.path));
                feeder.file(CopyFile {
                    source: Some(source),
                    pages: file.first_block.filter(|_| check_pages).map(|first_block| PageCheck { first_block, suspect_from: None }),
                    may_vanish: file.may_vanish,
                    in_backup_manifest: true,
                    meta: file.meta,
                })?;
            }
            feeder.drain()?;
            // Last of all, when every other file has been read (c007).
            let (control_bytes, stop_control) = read_control_file(&control_file_path(root))?;
            // Before the stop: what is committed between it and our next line is not in the backup, and must not be promised.
            let mut consistent_at = Timestamp::now();
            let (stopped, connection) = session.stop(false)?;
            let mut wal_end = stopped.stop_lsn;
            if started.in_recovery {
                // A standby's copy is consistent from where its files are on disk, long before what it has replayed and shown to
                // everybody: without the WAL between them, commits that were seen would be gone (c037).
                let replayed = connection.query("SELECT pg_last_wal_replay_lsn() AS lsn", &[])?.one()?.parse_opt("lsn")?;
                wal_end = replayed.map_or(wal_end, |replayed| wal_end.max(replayed));
                consistent_at = super::of_standby(&connection, consistent_at)?;
            }
            let mut moment = super::moment_of(source, id, &mut warnings);
            for (name, bytes) in [("backup_label", &stopped.backup_label), ("tablespace_map", &stopped.tablespace_map)] {
                if !bytes.is_empty() {
                    let meta = owned_by_cluster(plain_meta(name, Kind::File, bytes.len() as u64, 0o600), root);
                    feeder
                        .bytes(CopyFile { meta, source: None, pages: None, may_vanish: false, in_backup_manifest: true }, bytes.clone())?;
                }
            }
            progress.phase("wal");
            let wal = WalRange {
                timeline: started.timeline,
                start: started.start_lsn,
                stop: wal_end,
                size: segment_size,
                system_id: facts.system_id,
            };
            let mut entry = feed_wal(feeder, &wal_directory, &wal)?;
            if let Ok(moment) = &mut moment {
                moment.point.own_wal =
                    moment.point.timeline == wal.timeline && feed_wal_on(feeder, &wal_directory, &wal, moment.point.lsn, &mut entry)?;
            }
            feeder.drain()?;
            // Replay will make it, and needs its directory to be there (c029).
            for tablespace in tablespaces_now(&connection)? {
                if !known_tablespaces.contains(&tablespace.0) {
                    warnings.push(format!(
                        "tablespace {} was made while the backup ran: {} must exist where it is restored",
                        tablespace.1, tablespace.2
                    ));
                }
            }
            drop(connection);
            let mut meta = listing::meta(
                "global/pg_control",
                Kind::File,
                &fs::metadata(control_file_path(root)).map_err(|e| read_error(&control_file_path(root), e))?,
                &mut Owners::default(),
            );
            meta.size = control_bytes.len() as u64;
            feeder.bytes(CopyFile { meta, source: None, pages: None, may_vanish: false, in_backup_manifest: true }, control_bytes)?;
            let truth = super::truth_at(source, moment, &mut warnings, progress);
            Ok((stopped, stop_control, entry, consistent_at, truth))
        })?;

    // Checksums that were switched while we read prove nothing (c019).
    let checked = check_pages && stop_control.checksums_on();
    if check_pages && !checked {
        warnings.push("page checksums were switched while the backup ran: they were not judged".into());
    }
    let manifest_facts = ManifestFacts {
        version_num: facts.server_version,
        system_id: facts.system_id,
        timeline: started.timeline,
        start: started.start_lsn,
        stop: stopped.stop_lsn,
    };
    let backup_manifest = backup_manifest::encode(&manifest_facts, &copied.manifest_files);
    warnings.extend(notices(&stopped));
    let physical = Physical {
        catalog_version: facts.catalog_version,
        timeline: started.timeline,
        start_lsn: started.start_lsn,
        stop_lsn: stopped.stop_lsn,
        consistent_at,
        wal,
        checksums: ChecksumsEntry {
            enabled: facts.data_checksums == ChecksumState::On,
            pages: if checked { copied.pages } else { 0 },
            bad: if checked { copied.bad_pages } else { 0 },
        },
        block_size: control.block_size,
        relation_segment_bytes: u64::from(control.relation_segment_blocks) * u64::from(control.block_size),
        tablespaces: tablespaces(&listing.tablespaces, &facts),
        backup_manifest: None,
    };
    let database = CopiedDatabase {
        physical: Some(physical),
        backup_manifest: Some(backup_manifest),
        identity: Some((manifest_facts.system_id, manifest_facts.version_num)),
        facts: Some(facts),
        warnings,
        left_out: Vec::new(),
        judge_pages: checked,
        truth,
    };
    Ok(LocalOutcome { database, copied })
}

fn notices(stopped: &StoppedBackup) -> Vec<String> {
    // That WAL archiving is off is no news to a backup that brings its own.
    stopped
        .notices
        .iter()
        .map(|notice| notice.message.clone())
        .filter(|message| !message.contains("WAL archiving is not enabled"))
        .collect()
}

/// OID, name and location of every tablespace with a directory of its own.
fn tablespaces_now(connection: &Connection) -> Result<Vec<(String, String, String)>, BackupError> {
    let sql =
        "SELECT oid::text, spcname, pg_tablespace_location(oid) AS location FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE '/%'";
    let rows = connection.query(sql, &[])?;
    rows.iter().map(|row| Ok((row.get("oid")?.to_owned(), row.get("spcname")?.to_owned(), row.get("location")?.to_owned()))).collect()
}

fn tablespaces(links: &[(String, String)], facts: &ClusterFacts) -> Vec<TablespaceEntry> {
    let mut entries: Vec<TablespaceEntry> = links
        .iter()
        .filter_map(|(oid, location)| {
            let oid = oid.parse().ok()?;
            let known = facts.tablespaces.iter().find(|tablespace| tablespace.oid == oid);
            // The place the user gave, where known: it is what a person recognises.
            let given = known.map(|tablespace| tablespace.location.clone()).filter(|location| !location.is_empty());
            Some(TablespaceEntry {
                oid,
                name: known.map(|tablespace| tablespace.name.clone()),
                location: given.unwrap_or_else(|| location.clone()),
            })
        })
        .collect();
    entries.sort_by_key(|entry| entry.oid);
    entries
}

/// Configuration that stands outside the data directory, as Debian and Patroni have it (c031).
fn outside_files(root: &Path, canonical: &Path, facts: &ClusterFacts, warnings: &mut Vec<String>) -> Vec<(String, PathBuf)> {
    let mut files: Vec<PathBuf> = Vec::new();
    for file in [&facts.config_file, &facts.hba_file, &facts.ident_file].into_iter().flatten() {
        files.push(PathBuf::from(file));
    }
    if let Some(config) = &facts.config_file
        && let Some(directory) = Path::new(config).parent()
        && let Ok(entries) = fs::read_dir(directory.join("conf.d"))
    {
        files.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "conf")));
    }
    let mut found = Vec::new();
    for file in files {
        let Ok(real) = fs::canonicalize(&file) else { continue };
        if real.starts_with(canonical) || file.starts_with(root) && real.starts_with(canonical) {
            continue;
        }
        // A file that is linked into the data directory comes with it.
        if file.starts_with(root) || file.starts_with(canonical) {
            continue;
        }
        match (fs::File::open(&real), file.to_str()) {
            (Ok(_), Some(text)) => found.push((format!("{OUTSIDE}{text}"), real)),
            (Err(error), _) => {
                warnings.push(format!("configuration outside the data directory was not copied: {}: {error}", file.display()))
            }
            (Ok(_), None) => {}
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The directories of the files that stand outside. `conf.d` comes along even when it is empty, as Debian installs it: its
/// `include_dir` keeps a server from starting that does not find it.
fn outside_directories(files: &[lifeboat_core::backup::PlannedFile], config_file: Option<&str>) -> Vec<Meta> {
    let mut directories = std::collections::BTreeSet::new();
    for file in files.iter().filter(|file| file.meta.outside) {
        let mut path = file.meta.path.as_str();
        while let Some((parent, _)) = path.rsplit_once('/') {
            directories.insert(parent.to_owned());
            path = parent;
        }
    }
    if let Some((directory, _)) = config_file.and_then(|file| file.rsplit_once('/'))
        && directories.contains(&format!("{OUTSIDE}{directory}"))
        && Path::new(directory).join("conf.d").is_dir()
    {
        directories.insert(format!("{OUTSIDE}{directory}/conf.d"));
    }
    directories.into_iter().map(|path| plain_meta(&path, Kind::Directory, 0, 0o700)).collect()
}

/// The same file, owned as the data directory is: what we write for the server belongs to the server.
fn owned_by_cluster(mut meta: Meta, root: &Path) -> Meta {
    if let Ok(found) = fs::metadata(root) {
        let like = listing::meta("", Kind::Directory, &found, &mut Owners::default());
        (meta.owner, meta.group, meta.uid, meta.gid) = (like.owner, like.group, like.uid, like.gid);
    }
    meta
}

pub(super) fn plain_meta(path: &str, kind: Kind, size: u64, mode: u32) -> Meta {
    Meta {
        path: path.to_owned(),
        kind,
        size,
        mode,
        owner: None,
        group: None,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        modified: Some(Timestamp::now()),
        target: None,
        outside: false,
    }
}

pub(super) fn feed_bytes(feeder: &Feeder<'_, '_>, path: &str, bytes: Vec<u8>, in_backup_manifest: bool) -> Result<(), BackupError> {
    let meta = plain_meta(path, Kind::File, bytes.len() as u64, 0o600);
    feeder.bytes(CopyFile { meta, source: None, pages: None, may_vanish: false, in_backup_manifest }, bytes)?;
    Ok(())
}

/// A segment up to this size is read into memory, and cut where the truth ends.
const CUT_BYTES: u64 = 64 << 20;

/// Takes the WAL beyond the stop along up to `to`, the moment whose truth is recorded; false: it cannot be, and is in the archive only. The last segment
/// is cut there: what follows is of no use, and often an older segment's bytes, which the server keeps to write over.
fn feed_wal_on(feeder: &Feeder<'_, '_>, directory: &Path, range: &WalRange, to: Lsn, entry: &mut WalEntry) -> Result<bool, BackupError> {
    let last = Segment::ending_at(range.timeline, range.stop, range.size).number;
    let more: Vec<Segment> =
        wal::segments_between(range.timeline, range.start, to, range.size).filter(|segment| segment.number > last).collect();
    let mut found = Vec::new();
    for segment in &more {
        let path = directory.join(segment.file_name(range.size));
        let mut header = [0; wal::LONG_HEADER_BYTES];
        let mut look = || -> io::Result<fs::Metadata> {
            let file = fs::File::open(&path)?;
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut header, 0)?;
            file.metadata()
        };
        let Ok(metadata) = look() else { return Ok(false) };
        if metadata.len() != range.size.bytes() || wal::check_segment_header(&header, *segment, range.size, range.system_id).is_err() {
            return Ok(false);
        }
        found.push((*segment, path, metadata));
    }
    for (segment, path, metadata) in found {
        let name = segment.file_name(range.size);
        let file = CopyFile {
            meta: meta(&format!("pg_wal/{name}"), Kind::File, &metadata, &mut Owners::default()),
            source: None,
            pages: None,
            may_vanish: false,
            in_backup_manifest: false,
        };
        let is_last = Segment::ending_at(range.timeline, to, range.size).number == segment.number;
        if is_last && range.size.bytes() <= CUT_BYTES {
            // To the end of a page: 64 KiB is the largest that PostgreSQL can be built with.
            let kept = (to.0 - segment.number * range.size.bytes()).next_multiple_of(64 << 10).min(range.size.bytes());
            let mut bytes = vec![0; range.size.bytes() as usize];
            let source = fs::File::open(&path).map_err(|e| read_error(&path, e))?;
            std::os::unix::fs::FileExt::read_exact_at(&source, &mut bytes[..kept as usize], 0).map_err(|e| read_error(&path, e))?;
            feeder.bytes(file, bytes)?;
        } else {
            feeder.file(CopyFile { source: Some(path), ..file })?;
        }
        entry.last = name;
    }
    Ok(true)
}

struct WalRange {
    timeline: lifeboat_core::wal::Timeline,
    start: lifeboat_core::wal::Lsn,
    stop: lifeboat_core::wal::Lsn,
    size: SegmentSize,
    system_id: SystemId,
}

/// Takes the WAL from start to stop out of `pg_wal` into the backup, each segment checked to be the
/// one that its name says, of this cluster (c040, c041, c053).
fn feed_wal(feeder: &Feeder<'_, '_>, directory: &Path, range: &WalRange) -> Result<WalEntry, BackupError> {
    let segments: Vec<Segment> = wal::segments_between(range.timeline, range.start, range.stop, range.size).collect();
    for segment in &segments {
        let name = segment.file_name(range.size);
        let path = directory.join(&name);
        let problem = |problem: String| BackupError::Wal { segment: name.clone(), problem };
        let found = match fs::metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(problem(
                    "it is no longer in pg_wal; set wal_keep_size or max_replication_slots so that the server keeps it".into(),
                ));
            }
            Err(error) => return Err(read_error(&path, error)),
        };
        if found.len() != range.size.bytes() {
            return Err(problem(format!("it has {} bytes, not {}", found.len(), range.size.bytes())));
        }
        let mut header = [0; wal::LONG_HEADER_BYTES];
        let file = fs::File::open(&path).map_err(|e| read_error(&path, e))?;
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut header, 0).map_err(|e| read_error(&path, e))?;
        wal::check_segment_header(&header, *segment, range.size, range.system_id).map_err(|e| problem(e.to_string()))?;
        let meta = meta(&format!("pg_wal/{name}"), Kind::File, &found, &mut Owners::default());
        feeder.file(CopyFile { meta, source: Some(path), pages: None, may_vanish: false, in_backup_manifest: false })?;
    }
    // Histories of the timelines that led here: recovery asks for them (c051).
    let entries = fs::read_dir(directory).map_err(|e| read_error(directory, e))?;
    for entry in entries.flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let history = name.strip_suffix(".history").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        if history.is_some_and(|timeline| timeline <= range.timeline.0) {
            let bytes = fs::read(entry.path()).map_err(|e| read_error(&entry.path(), e))?;
            let meta = owned_by_cluster(plain_meta(&format!("pg_wal/{name}"), Kind::File, bytes.len() as u64, 0o600), directory);
            feeder.bytes(CopyFile { meta, source: None, pages: None, may_vanish: false, in_backup_manifest: false }, bytes)?;
        }
    }
    let name = |segment: Option<&Segment>| segment.map_or_else(String::new, |segment| segment.file_name(range.size));
    Ok(WalEntry { segment_size: range.size, first: name(segments.first()), last: name(segments.last()), included: true })
}
