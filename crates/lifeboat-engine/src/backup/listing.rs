//! Listing a data directory: what is there, without deciding what of it is copied.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_core::backup::Listed;
use lifeboat_core::postgres::data_directory::{self, Disposition};
use lifeboat_core::repository::file_table::{Kind, Meta};

use super::BackupError;
use crate::owners::Owners;

/// What a listing found.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) entries: Vec<Listed>,
    /// (OID, name in the listing, canonical location).
    pub(super) tablespaces: Vec<(String, String)>,
    /// Where `pg_wal` really is.
    pub(super) wal_directory: PathBuf,
    /// Where files really are that were reached through a link.
    pub(super) sources: HashMap<String, PathBuf>,
    /// Names that cannot be part of a backup.
    pub(super) unusable: Vec<String>,
}

pub(super) fn read_error(path: &Path, source: io::Error) -> BackupError {
    BackupError::Read { path: path.display().to_string(), source }
}

/// Lists a data directory and its tablespaces. Directories that are not copied are not entered.
pub(super) fn list(root: &Path, version_directory: &str) -> Result<Listing, BackupError> {
    let mut listing = Listing {
        wal_directory: fs::canonicalize(root.join("pg_wal")).map_err(|e| read_error(&root.join("pg_wal"), e))?,
        ..Listing::default()
    };
    let mut owners = Owners::default();
    walk(root, "", version_directory, &mut owners, &mut listing)?;
    Ok(listing)
}

pub(super) fn meta(path: &str, kind: Kind, found: &fs::Metadata, owners: &mut Owners) -> Meta {
    let modified = Timestamp::new(found.mtime(), i32::try_from(found.mtime_nsec()).unwrap_or(0)).ok();
    Meta {
        path: path.to_owned(),
        kind,
        size: if kind == Kind::File { found.len() } else { 0 },
        mode: found.mode() & 0o7777,
        owner: owners.user(found.uid()),
        group: owners.group(found.gid()),
        uid: found.uid(),
        gid: found.gid(),
        modified,
        target: None,
        outside: false,
    }
}

fn walk(directory: &Path, prefix: &str, version_directory: &str, owners: &mut Owners, listing: &mut Listing) -> Result<(), BackupError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // A database that was dropped while we walked (c009).
        Err(error) if error.kind() == io::ErrorKind::NotFound && !prefix.is_empty() => return Ok(()),
        Err(error) => return Err(read_error(directory, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| read_error(directory, e))?;
        let full = entry.path();
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            listing.unusable.push(full.display().to_string());
            continue;
        };
        let path = format!("{prefix}{name}");
        let found = match fs::symlink_metadata(&full) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(read_error(&full, error)),
        };
        let kind = found.file_type();
        if kind.is_symlink() {
            link(&full, path, &found, version_directory, owners, listing)?;
        } else if kind.is_dir() {
            enter(&full, &path, meta(&path, Kind::Directory, &found, owners), version_directory, owners, listing)?;
        } else {
            let special = kind.is_socket() || kind.is_fifo() || kind.is_char_device() || kind.is_block_device();
            listing.entries.push(Listed { meta: meta(&path, Kind::File, &found, owners), special });
        }
    }
    Ok(())
}

fn enter(
    full: &Path,
    path: &str,
    found: Meta,
    version_directory: &str,
    owners: &mut Owners,
    listing: &mut Listing,
) -> Result<(), BackupError> {
    let disposition = data_directory::disposition(path, true, version_directory);
    listing.entries.push(Listed { meta: found, special: false });
    match disposition {
        Disposition::Copy => walk(full, &format!("{path}/"), version_directory, owners, listing),
        // Its own directories are kept, and nothing else.
        Disposition::Empty if path == "pg_wal" => {
            for inner in ["archive_status", "summaries"] {
                let path = format!("pg_wal/{inner}");
                match fs::symlink_metadata(full.join(inner)) {
                    Ok(found) if found.is_dir() => {
                        listing.entries.push(Listed { meta: meta(&path, Kind::Directory, &found, owners), special: false })
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(read_error(&full.join(inner), error)),
                }
            }
            Ok(())
        }
        Disposition::Empty | Disposition::Skip(_) => Ok(()),
    }
}

/// A link: a tablespace, a directory that was moved elsewhere (`pg_wal`, `log`), or a file.
fn link(
    full: &Path,
    path: String,
    found: &fs::Metadata,
    version_directory: &str,
    owners: &mut Owners,
    listing: &mut Listing,
) -> Result<(), BackupError> {
    let target = fs::read_link(full).map_err(|e| read_error(full, e))?;
    let Some(target) = target.to_str().map(str::to_owned) else {
        listing.unusable.push(full.display().to_string());
        return Ok(());
    };
    let behind = match fs::metadata(full) {
        Ok(behind) => behind,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Leads nowhere: kept as what it is.
            let mut meta = meta(&path, Kind::Symlink, found, owners);
            meta.target = Some(target);
            listing.entries.push(Listed { meta, special: false });
            return Ok(());
        }
        // A loop of links, or a place we may not go.
        Err(error) => return Err(read_error(full, error)),
    };
    if let Some(oid) = path.strip_prefix("pg_tblspc/").filter(|rest| !rest.contains('/')) {
        let location = fs::canonicalize(full).map_err(|e| read_error(full, e))?;
        // A link to a link hides where the data is from the checks (c028).
        let direct = fs::symlink_metadata(&target).is_ok_and(|m| m.is_dir());
        if !direct {
            return Err(BackupError::Plan(lifeboat_core::backup::PlanError::Tablespace {
                oid: oid.to_owned(),
                problem: format!("it leads to {target}, which is a link itself"),
            }));
        }
        listing.tablespaces.push((oid.to_owned(), location.display().to_string()));
        let mut meta = meta(&path, Kind::Tablespace, &behind, owners);
        meta.target = Some(target);
        listing.entries.push(Listed { meta, special: false });
        return walk(full, &format!("{path}/"), version_directory, owners, listing);
    }
    if behind.is_dir() {
        // Comes back as a directory in its place: where the link led may not exist elsewhere, and
        // what was there must not be written into.
        return enter(full, &path, meta(&path, Kind::Directory, &behind, owners), version_directory, owners, listing);
    }
    let source = fs::canonicalize(full).map_err(|e| read_error(full, e))?;
    listing.entries.push(Listed { meta: meta(&path, Kind::File, &behind, owners), special: !behind.is_file() });
    listing.sources.insert(path, source);
    Ok(())
}
