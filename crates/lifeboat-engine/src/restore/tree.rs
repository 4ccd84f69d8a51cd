//! The tree that a restore writes: targets checked, directories, links, owners, and everything made
//! durable before `pg_control` gets its name.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use lifeboat_core::repository::file_table::Meta;

use super::RestoreError;
use crate::owners::number_of;

/// Stands in a directory while a restore writes there: proof that what is in it is ours to remove
/// (c067), and that it is not complete (c068).
pub(super) const MARKER: &str = "lifeboat.restoring";

pub(super) fn write_error(path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.display().to_string();
    move |source| RestoreError::Write { path, source }
}

/// Checks that a directory can be restored into: it is missing, empty, or left by a restore that was
/// interrupted, whose rest is then removed; never one that a server uses.
pub(super) fn prepare(directory: &Path) -> Result<(), RestoreError> {
    let name = directory.display().to_string();
    if fs::symlink_metadata(directory.join("postmaster.pid")).is_ok() {
        return Err(RestoreError::ServerRunning { directory: name });
    }
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let missing = || RestoreError::NoParent { directory: name.clone() };
            let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if !parent.is_dir() {
                return Err(missing());
            }
            fs::DirBuilder::new().mode(0o700).create(directory).map_err(write_error(directory))?;
            return mark(directory);
        }
        Err(error) => return Err(write_error(directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(write_error(directory))?.file_name());
    }
    if names.iter().any(|name| name == MARKER) {
        for name in names.iter().filter(|name| *name != MARKER) {
            let path = directory.join(name);
            let is_directory = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
            let removed = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(write_error(&path))?;
        }
        return Ok(());
    }
    // A file system of its own begins with lost+found.
    if names.iter().any(|name| name != "lost+found") {
        return Err(RestoreError::NotEmpty { directory: name });
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(write_error(directory))?;
    mark(directory)
}

fn mark(directory: &Path) -> Result<(), RestoreError> {
    let path = directory.join(MARKER);
    let text = "A restore by lifeboat writes here and has not finished. Restoring again into this directory removes what is in it.\n";
    fs::write(&path, text).map_err(write_error(&path))
}

/// Makes a directory and those above it that are missing, below the restore's own directory `root`. That one is never made here: who took
/// it away, as a drill does that is told to end, has to be sure that nothing comes back.
pub(crate) fn make_directory(root: &Path, path: &Path) -> io::Result<()> {
    let make = || match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(_) if path.is_dir() => Ok(()),
        other => other,
    };
    if path == root {
        return fs::metadata(root).map(|_| ());
    }
    match (make(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound && parent != root && parent.starts_with(root) => {
            make_directory(root, parent)?;
            make()
        }
        (made, _) => made,
    }
}

/// Sets permission bits whatever the umask is.
pub(crate) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(mode & 0o777))
}

/// Who owns what is restored: as root the owner that the backup names, where this host knows it, or
/// else the owner of the directory above the target (c070); otherwise ourselves.
#[derive(Debug)]
pub(super) struct Ownership {
    root: bool,
    all: Option<(u32, u32)>,
    fallback: (u32, u32),
    pub(super) unknown: Option<String>,
}

impl Ownership {
    /// `all`: who owns everything instead.
    pub(super) fn new(directory: &Path, all: Option<(u32, u32)>) -> Result<Self, RestoreError> {
        let found = fs::metadata(directory).map_err(write_error(directory))?;
        let mut fallback = (found.uid(), found.gid());
        if fallback.0 == 0
            && let Some(Ok(parent)) = directory.parent().map(fs::metadata)
        {
            fallback = (parent.uid(), parent.gid());
        }
        Ok(Self { root: rustix::process::geteuid().is_root(), all, fallback, unknown: None })
    }

    /// The numbers for a file, if they have to be set.
    pub(super) fn of(&mut self, meta: &Meta) -> Option<(u32, u32)> {
        if !self.root {
            return None;
        }
        if self.all.is_some() {
            return self.all;
        }
        // A cluster whose files root owns cannot start; no server wrote it so.
        let user = meta.owner.as_deref().filter(|name| *name != "root").and_then(|name| number_of("/etc/passwd", name));
        let Some(user) = user else {
            self.unknown.get_or_insert_with(|| meta.owner.clone().unwrap_or_else(|| meta.uid.to_string()));
            return Some(self.fallback);
        };
        let group = meta.group.as_deref().and_then(|name| number_of("/etc/group", name)).unwrap_or(self.fallback.1);
        Some((user, group))
    }
}

/// Gives a path to its owner, without following a link.
pub(super) fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<(), RestoreError> {
    let Some((user, group)) = owner else { return Ok(()) };
    std::os::unix::fs::lchown(path, Some(user), Some(group)).map_err(write_error(path))
}

/// Time between two syncs while files are written.
const SYNC_EVERY: Duration = Duration::from_millis(300);

/// Opened before anything is written, so that a write that fails in the background is reported when
/// the file system is synced (`syncfs` tells errors since the descriptor was opened, Linux 5.8).
pub(super) struct Syncer(Vec<(PathBuf, File)>);

impl Syncer {
    pub(super) fn new<'p>(directories: impl Iterator<Item = &'p Path>) -> Result<Self, RestoreError> {
        let mut opened = Vec::new();
        for directory in directories {
            opened.push((directory.to_owned(), File::open(directory).map_err(write_error(directory))?));
        }
        Ok(Self(opened))
    }

    /// Runs `work` and meanwhile, again and again, makes durable what it has written: the disk works while
    /// the cores open frames, not after them.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> Result<T, RestoreError>) -> Result<T, RestoreError> {
        let (stop, wait) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let flusher = scope.spawn(move || -> Result<(), RestoreError> {
                while let Err(mpsc::RecvTimeoutError::Timeout) = wait.recv_timeout(SYNC_EVERY) {
                    // An error is told once: it must not get lost here.
                    self.sync()?;
                }
                Ok(())
            });
            let result = {
                // Goes away also when the work panics, and the flusher ends.
                let _stop = stop;
                work()
            };
            let flushed = flusher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result.and_then(|value| flushed.map(|()| value))
        })
    }

    /// Makes everything written below the directories durable (c069).
    pub(super) fn sync(&self) -> Result<(), RestoreError> {
        for (path, directory) in &self.0 {
            rustix::fs::syncfs(directory).map_err(|error| write_error(path)(error.into()))?;
        }
        Ok(())
    }
}
