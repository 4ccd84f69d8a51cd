//! Which repository stands in the configured places, remembered in the spool for a minute.
//!
//! PostgreSQL starts a process for every segment. What such a process needs may lie in the spool already, but the spool is of one
//! repository, not of one path, and to read its id from a bucket takes a connection, a handshake and a round trip: more than all else that
//! a segment costs. So who has read it leaves it here for those that come within the minute. Only the id is remembered, never what the
//! repository holds.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lifeboat_core::repository::{Id, Sha256};

/// How long it counts. Whoever puts another repository in the place of one has stopped those that write there, and for longer.
pub const LIFE: Duration = Duration::from_secs(60);

/// A file that is longer is none of ours.
const MAX_BYTES: u64 = 64;

fn file(spool: &Path, places: &str) -> PathBuf {
    spool.join("known").join(Sha256::of(places.as_bytes()).to_string())
}

/// The repository that stood in these places less than [`LIFE`] ago. `places` names all of them, and whatever else leads there.
pub fn recall(spool: &Path, places: &str) -> Option<Id> {
    let path = file(spool, places);
    let is_ours = |meta: &fs::Metadata| meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o022 == 0;
    let directory = fs::symlink_metadata(path.parent()?).ok()?;
    let meta = fs::symlink_metadata(&path).ok()?;
    // A clock that went back makes it unusable, not eternal.
    let age = SystemTime::now().duration_since(meta.modified().ok()?).ok()?;
    if !(directory.is_dir() && is_ours(&directory) && meta.is_file() && is_ours(&meta)) || meta.len() > MAX_BYTES || age >= LIFE {
        return None;
    }
    fs::read_to_string(path).ok()?.trim_end().parse().ok()
}

/// Leaves it for others.
///
/// # Errors
///
/// The spool cannot be written to. Then everything is only slower.
pub fn remember(spool: &Path, places: &str, repository: Id) -> io::Result<()> {
    let path = file(spool, places);
    let directory = path.parent().unwrap_or(spool);
    let aside = directory.join(format!("tmp-{}", crate::random::id()));
    let write = || {
        let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(format!("{repository}\n").as_bytes())
    };
    match write() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            write()?;
        }
        other => other?,
    }
    fs::rename(aside, path)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const PLACES: &str = "s3://bucket/one";

    #[test]
    fn what_was_remembered_is_recalled_for_a_minute() {
        let spool = tempfile::tempdir().unwrap();
        let id = Id([7; 16]);
        assert_eq!(recall(spool.path(), PLACES), None);
        remember(spool.path(), PLACES, id).unwrap();
        assert_eq!(recall(spool.path(), PLACES), Some(id));
        assert_eq!(recall(spool.path(), "s3://bucket/other"), None);
        let made = |ago: i64| {
            let now = SystemTime::now();
            let span = Duration::from_secs(ago.unsigned_abs());
            let time = if ago < 0 { now + span } else { now - span };
            File::options().write(true).open(file(spool.path(), PLACES)).unwrap().set_modified(time).unwrap();
        };
        made(50);
        assert_eq!(recall(spool.path(), PLACES), Some(id));
        for ago in [61, -3600] {
            made(ago);
            assert_eq!(recall(spool.path(), PLACES), None, "{ago}");
        }
        remember(spool.path(), PLACES, Id([8; 16])).unwrap();
        assert_eq!(recall(spool.path(), PLACES), Some(Id([8; 16])));
    }

    #[test]
    fn what_others_may_have_written_is_not_believed() {
        let spool = tempfile::tempdir().unwrap();
        remember(spool.path(), PLACES, Id([7; 16])).unwrap();
        let path = file(spool.path(), PLACES);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(recall(spool.path(), PLACES), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(recall(spool.path(), PLACES).is_some());
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(recall(spool.path(), PLACES), None);
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
        for garbage in ["", "no id", &"0".repeat(200)] {
            fs::write(&path, garbage).unwrap();
            assert_eq!(recall(spool.path(), PLACES), None, "{garbage:?}");
        }
    }
}
