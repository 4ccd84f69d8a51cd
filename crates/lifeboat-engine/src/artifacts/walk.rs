//! Walking a directory of artifacts: every regular file, sorted by the bytes of its whole name.
//!
//! The order of names is not the order of directories: `a-b` sorts before `a/b`, because `-` is less
//! than `/`. Sorting each directory with a `/` behind the names of directories gives the right one. So
//! memory is that of the directories that are open: about 10 bytes and the name for each entry.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use lifeboat_core::artifacts::Found;
use lifeboat_core::repository::layout::{ArtifactName, MAX_NAME_BYTES};
use rustix::fs::{AtFlags, Dir, FileType};
use serde::Serialize;

use super::Capped;
use super::beneath::{self, Meta};
use crate::causes;

/// Something about a path below the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The path, with what is not UTF-8 or not printable escaped.
    pub path: String,
    /// What there is to say.
    pub why: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.why)
    }
}

/// What a walk came upon besides files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WalkNotes {
    /// Regular files found.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Links, sockets, FIFOs, devices: passed over, as they are no artifacts.
    pub skipped: Capped<Note>,
    /// Those of the links that lead to something out of the directory: it is in no set.
    pub outside: Capped<Note>,
    /// Artifacts of the set where a link stands now, or that are behind one: nobody knows whether they are gone, so they stay in the set.
    pub hidden: Capped<Note>,
    /// Names that no artifact can have; what stands there is in no set.
    pub unnamable: Capped<Note>,
    /// What could not be read: the set would be wrong.
    pub unreadable: Capped<Note>,
}

/// The files below a directory. What else there is goes to the notes.
pub(super) struct Walk<'a> {
    root: PathBuf,
    levels: Vec<Level>,
    notes: &'a RefCell<WalkNotes>,
}

impl<'a> Walk<'a> {
    /// Opens the directory.
    pub(super) fn new(root: &Path, notes: &'a RefCell<WalkNotes>) -> io::Result<Self> {
        let mut walk = Self { root: root.canonicalize()?, levels: Vec::new(), notes };
        let fd = beneath::open_root(root)?;
        let level = walk.read(fd, String::new())?;
        walk.levels.push(level);
        Ok(walk)
    }

    fn read(&self, fd: OwnedFd, prefix: String) -> io::Result<Level> {
        let mut names = Names::default();
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                kind = match rustix::fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(rustix::io::Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                };
            }
            match kind {
                FileType::RegularFile => names.push(name, false),
                FileType::Directory => names.push(name, true),
                other => {
                    let note = Note { path: shown(&prefix, name), why: kind_name(other).into() };
                    if other == FileType::Symlink && self.leads_out(&prefix, name) {
                        self.notes.borrow_mut().outside.push(note.clone());
                    }
                    self.notes.borrow_mut().skipped.push(note);
                }
            }
        }
        names.sort();
        Ok(Level { fd, prefix, names, next: 0 })
    }

    /// Whether a link leads to something that is not below the directory.
    fn leads_out(&self, prefix: &str, name: &[u8]) -> bool {
        let link = self.root.join(prefix).join(OsStr::from_bytes(name));
        link.canonicalize().is_ok_and(|target| !target.starts_with(&self.root))
    }

    fn step(&mut self) -> Option<Option<Found>> {
        let level = self.levels.last_mut()?;
        let Some(name) = level.names.get(level.next).map(<[u8]>::to_vec) else {
            self.levels.pop();
            return Some(None);
        };
        level.next += 1;
        let (name, directory) = name.strip_suffix(b"/").map_or((&name[..], false), |name| (name, true));
        let mut notes = self.notes.borrow_mut();
        let path = shown(&level.prefix, name);
        let full = match std::str::from_utf8(name).map(|name| format!("{}{name}", level.prefix)) {
            Ok(full) => full,
            Err(_) => {
                notes.unnamable.push(Note { path, why: "the name is not UTF-8".into() });
                return Some(None);
            }
        };
        let Ok(artifact) = full.parse::<ArtifactName>() else {
            let why = if full.len() > MAX_NAME_BYTES { "the name has more than 1024 bytes" } else { "the name has a control character" };
            notes.unnamable.push(Note { path, why: why.into() });
            return Some(None);
        };
        if directory {
            drop(notes);
            self.descend(name, &full, path);
            return Some(None);
        }
        let meta = match rustix::fs::statat(&level.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Meta::of(&stat),
            // Gone since the directory was read.
            Err(rustix::io::Errno::NOENT) => return Some(None),
            Err(error) => {
                notes.unreadable.push(Note { path, why: io::Error::from(error).to_string() });
                return Some(None);
            }
        };
        if !meta.regular {
            notes.skipped.push(Note { path, why: "no regular file any more".into() });
            return Some(None);
        }
        notes.files += 1;
        notes.bytes += meta.bytes;
        let Meta { bytes, mode, modified, status_changed, .. } = meta;
        Some(Some(Found { name: artifact, bytes, mode, modified, status_changed }))
    }

    fn descend(&mut self, name: &[u8], full: &str, path: String) {
        let parent = self.levels.last().expect("the directory stands in one");
        let opened = beneath::open_directory(parent.fd.as_fd(), name).and_then(|fd| self.read(fd, format!("{full}/")));
        match opened {
            Ok(level) => self.levels.push(level),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.notes.borrow_mut().unreadable.push(Note { path, why: causes::joined(&error) }),
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            if let Some(found) = self.step()? {
                return Some(found);
            }
        }
    }
}

struct Level {
    fd: OwnedFd,
    prefix: String,
    names: Names,
    next: usize,
}

/// Names of one directory's entries, back to back in one allocation; those of directories with a `/`
/// behind them, which no name can contain.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    /// Start, shifted by 16, and length.
    places: Vec<u64>,
}

impl Names {
    fn push(&mut self, name: &[u8], directory: bool) {
        let start = self.bytes.len() as u64;
        self.bytes.extend_from_slice(name);
        if directory {
            self.bytes.push(b'/');
        }
        // File systems allow 255 bytes, and some 1023.
        let length = (self.bytes.len() as u64 - start).min(u64::from(u16::MAX));
        self.places.push(start << 16 | length);
    }

    fn slice(bytes: &[u8], place: u64) -> &[u8] {
        let (start, length) = ((place >> 16) as usize, (place & 0xFFFF) as usize);
        &bytes[start..start + length]
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.places.sort_unstable_by(|a, b| Self::slice(bytes, *a).cmp(Self::slice(bytes, *b)));
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        Some(Self::slice(&self.bytes, *self.places.get(index)?))
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Symlink => "a symbolic link",
        FileType::Socket => "a socket",
        FileType::Fifo => "a FIFO",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "no regular file",
    }
}

/// A path for people: printable, whatever it is.
fn shown(prefix: &str, name: &[u8]) -> String {
    let mut path = prefix.to_owned();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { path.extend(c.escape_default()) } else { path.push(c) }
        }
        for byte in chunk.invalid() {
            path.push_str(&format!("\\x{byte:02x}"));
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn files_come_sorted_by_their_whole_names() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["a-b", "a/b", "a/c/d", "a/c-", "a0", "-rf", "ü/x y", "a.d/e", "a/c.d/f", "z"];
        for name in names {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        std::os::unix::fs::symlink("/etc", directory.path().join("link")).unwrap();
        fs::write(directory.path().join("tab\there"), "").unwrap();
        fs::create_dir(directory.path().join("new\nline")).unwrap();
        fs::write(directory.path().join("new\nline/inside"), "").unwrap();
        fs::write(directory.path().join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
        let notes = RefCell::default();
        let found: Vec<String> = Walk::new(directory.path(), &notes).unwrap().map(|found| found.name.to_string()).collect();
        let mut sorted = names.to_vec();
        sorted.sort_unstable();
        assert_eq!(found, sorted);
        let notes = notes.into_inner();
        assert_eq!(notes.files, 10);
        assert_eq!(notes.skipped.first, [Note { path: "link".into(), why: "a symbolic link".into() }]);
        let unnamable: Vec<_> = notes.unnamable.first.iter().map(|note| note.path.as_str()).collect();
        assert_eq!(unnamable, ["new\\nline", "tab\\there", "\\xff"]);
        assert!(notes.unreadable.is_empty());
    }
}
