//! Opening files below a directory without ever following a symbolic link out of it.
//!
//! Every directory on the way is opened by itself, relative to the one before, with `O_NOFOLLOW`. So
//! neither a link that was there nor one put there meanwhile leads elsewhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use jiff::Timestamp;
use lifeboat_core::repository::layout::ArtifactName;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode, RenameFlags, Timespec, Timestamps};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens the directory that everything is to stay below. Links on the way to it are the caller's.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, DIRECTORY, Mode::empty())?)
}

/// Opens a directory in `parent`, which must not be a link.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)
}

/// Opens the directory that `name` is in, or nothing if that is `root` itself; with `make`, makes what
/// is missing of it. Returns it with the last part of the name.
pub(super) fn open_parent<'n>(root: BorrowedFd<'_>, name: &'n ArtifactName, make: bool) -> io::Result<(Option<OwnedFd>, &'n str)> {
    let Some((directories, leaf)) = name.as_str().rsplit_once('/') else { return Ok((None, name.as_str())) };
    let mut at: Option<OwnedFd> = None;
    for part in directories.split('/') {
        let parent = at.as_ref().map_or(root, AsFd::as_fd);
        let next = match open_directory(parent, part.as_bytes()) {
            Err(error) if make && error.kind() == io::ErrorKind::NotFound => {
                match rustix::fs::mkdirat(parent, part, Mode::from_raw_mode(0o755)) {
                    // Another thread was faster.
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open_directory(parent, part.as_bytes())?
            }
            other => other?,
        };
        at = Some(next);
    }
    Ok((at, leaf))
}

/// Opens a regular file below `root` for reading. Does not wait on a FIFO.
pub(super) fn open_file(root: BorrowedFd<'_>, name: &ArtifactName) -> io::Result<File> {
    let (parent, leaf) = open_parent(root, name, false)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent.as_ref().map_or(root, AsFd::as_fd), leaf, flags, Mode::empty())?;
    Ok(File::from(file))
}

/// The first symbolic link on the way to a name below `root`, itself included; `None`: there is none as far as the way goes.
pub(super) fn link_on_the_way<'n>(root: BorrowedFd<'_>, name: &'n ArtifactName) -> Option<&'n str> {
    let name = name.as_str();
    let ends = name.match_indices('/').map(|(at, _)| at).chain([name.len()]);
    for part in ends.map(|end| &name[..end]) {
        match rustix::fs::statat(root, part, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => return Some(part),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
    None
}

/// What a sync looks at in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) regular: bool,
    pub(super) bytes: u64,
    pub(super) mode: u32,
    pub(super) modified: Timestamp,
    pub(super) status_changed: Timestamp,
}

impl Meta {
    pub(super) fn of(stat: &rustix::fs::Stat) -> Self {
        // A time beyond the year 9999 is cut to that.
        let time = |seconds: i64, nanos: u64| {
            let nanos = i32::try_from(nanos).unwrap_or(0);
            Timestamp::new(seconds, nanos).unwrap_or(if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX })
        };
        let (modified, status_changed) = (time(stat.st_mtime, stat.st_mtime_nsec), time(stat.st_ctime, stat.st_ctime_nsec));
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Self { regular, bytes: u64::try_from(stat.st_size).unwrap_or(0), mode: stat.st_mode & 0o7777, modified, status_changed }
    }

    pub(super) fn of_file(file: &File) -> io::Result<Self> {
        Ok(Self::of(&rustix::fs::fstat(file)?))
    }
}

/// A file under a temporary name, which is gone unless it is [put in place](Self::place).
pub(super) struct Temporary<'d> {
    directory: BorrowedFd<'d>,
    name: String,
    pub(super) file: File,
    placed: bool,
}

impl<'d> Temporary<'d> {
    /// Makes one in `directory`, readable by nobody else.
    pub(super) fn new(directory: BorrowedFd<'d>) -> io::Result<Self> {
        let name = format!(".lifeboat-{}", crate::random::id());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Self { directory, name, file: File::from(file), placed: false })
    }

    /// Sets permission bits and time of change. Not set-user-ID, set-group-ID and sticky: the owner is
    /// whoever restores.
    pub(super) fn set_meta(&self, mode: u32, modified: Timestamp) -> io::Result<()> {
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode((mode & 0o777) as RawMode))?;
        let nanos = modified.as_nanosecond();
        let time = Timespec { tv_sec: nanos.div_euclid(1_000_000_000) as i64, tv_nsec: nanos.rem_euclid(1_000_000_000) as _ };
        Ok(rustix::fs::futimens(&self.file, &Timestamps { last_access: time, last_modification: time })?)
    }

    /// Gives it its name.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if the name is taken, unless `replace`.
    pub(super) fn place(mut self, leaf: &[u8], replace: bool) -> io::Result<()> {
        let from = self.name.as_str();
        if replace {
            rustix::fs::renameat(self.directory, from, self.directory, leaf)?;
        } else {
            match rustix::fs::renameat_with(self.directory, from, self.directory, leaf, RenameFlags::NOREPLACE) {
                // A file system that cannot: link(2) refuses to replace everywhere. Dropping unlinks.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
                    rustix::fs::linkat(self.directory, from, self.directory, leaf, AtFlags::empty())?;
                    return Ok(());
                }
                other => other?,
            }
        }
        self.placed = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.placed {
            // There is nobody to tell; a leftover has a name that says whose it is.
            let _ = rustix::fs::unlinkat(self.directory, self.name.as_str(), AtFlags::empty());
        }
    }
}
