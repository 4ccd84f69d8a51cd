//! A repository in a local directory.
//!
//! An object is written to `.lifeboat-tmp/`, synced, and linked to its name: `link(2)` fails if the
//! name is taken, so of several writers exactly one wins and nothing half-written is ever visible.
//! File and directory are synced before success is reported.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_core::repository::layout::Key;

use super::{Listed, ObjectWriter, OpenError, Store, StoreError};

const TEMPORARY: &str = ".lifeboat-tmp";

/// Objects as files below one directory.
pub struct LocalStore {
    url: String,
    root: PathBuf,
    /// Directories known to exist and to be durable.
    made: Mutex<HashSet<PathBuf>>,
    /// The last pack that a range was read of, kept open: restores read many ranges of one object.
    open: Mutex<Vec<(String, std::sync::Arc<File>)>>,
    serial: AtomicU64,
    /// How many directories can be synced before that fails.
    #[cfg(test)]
    syncs: AtomicU64,
}

/// How many made directories are remembered.
const MADE_KEPT: usize = 10_000;

/// How often a directory is made again that somebody takes away: each time means that an object was deleted just then.
const LINKS: u32 = 100;

/// How many objects are kept open for reading.
const KEPT_OPEN: usize = 16;

/// A directory that did not change for so long is durable, whoever made its names: no system keeps writes back for longer.
const SETTLED: std::time::Duration = std::time::Duration::from_secs(3600);

impl LocalStore {
    /// Opens the directory; with `make`, makes its last part if only that is missing.
    pub fn open(path: &Path, make: bool) -> Result<Self, OpenError> {
        let failed = |source: io::Error| OpenError::Io { path: path.display().to_string(), source };
        let root = match fs::canonicalize(path) {
            Ok(root) => root,
            Err(error) if error.kind() == io::ErrorKind::NotFound && make => {
                match fs::create_dir(path) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        let parent = path.parent().unwrap_or(path);
                        return Err(OpenError::Missing(parent.display().to_string()));
                    }
                    Err(error) => return Err(failed(error)),
                }
                let root = fs::canonicalize(path).map_err(failed)?;
                if let Some(parent) = root.parent() {
                    sync_directory(parent).map_err(failed)?;
                }
                root
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OpenError::Missing(path.display().to_string())),
            Err(error) => return Err(failed(error)),
        };
        if !root.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self {
            url: format!("file://{}", root.display()),
            root,
            made: Mutex::default(),
            open: Mutex::default(),
            serial: AtomicU64::new(0),
            #[cfg(test)]
            syncs: AtomicU64::new(u64::MAX),
        })
    }

    fn error(&self, action: &'static str, key: &str, source: io::Error) -> StoreError {
        let (key, store) = (key.to_owned(), self.url.clone());
        match source.kind() {
            // Where a key goes on below a name, or the name is that of a file, there is no object of that key.
            io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory if action != "write" => {
                StoreError::NotFound { key }
            }
            io::ErrorKind::AlreadyExists => StoreError::Exists { key },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { key, store },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StoreError::Denied { action, key, store, source },
            _ => StoreError::Io { action, key, store, source },
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn sync(&self, directory: &Path) -> io::Result<()> {
        #[cfg(test)]
        if self.syncs.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(io::Error::other("the disk is broken"));
        }
        sync_directory(directory)
    }

    /// Makes an object durable that somebody else made, or a writer whose sync failed or who was killed before it: the file, and its name in
    /// each directory up to the root.
    fn sync_object(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()?;
        for directory in path.ancestors().skip(1) {
            self.sync(directory)?;
            if directory == self.root {
                break;
            }
        }
        Ok(())
    }

    /// Makes the directories down to `directory`, each durable in its parent.
    fn make_directories(&self, directory: &Path) -> io::Result<()> {
        if directory == self.root || self.made.lock().expect("no panic while held").contains(directory) {
            return Ok(());
        }
        let parent = directory.parent().unwrap_or(&self.root);
        self.make_directories(parent)?;
        match fs::create_dir(directory) {
            Ok(()) => self.sync(parent)?,
            // Whoever made it may have been killed before its sync.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match changed_lately(parent).then(|| self.sync(parent)) {
                Some(Err(error)) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
                _ => {}
            },
            Err(error) => return Err(error),
        }
        let mut made = self.made.lock().expect("no panic while held");
        // Every artifact has a directory of its own: forgetting costs one mkdir(2), remembering
        // ten million costs gigabytes.
        if made.len() >= MADE_KEPT {
            made.clear();
        }
        made.insert(directory.to_owned());
        Ok(())
    }

    fn file(&self, key: &Key) -> Result<std::sync::Arc<File>, StoreError> {
        let mut open = self.open.lock().expect("no panic while held");
        if let Some((_, file)) = open.iter().find(|(name, _)| name == key.as_str()) {
            return Ok(file.clone());
        }
        let file = File::open(self.path(key.as_str())).map_err(|e| self.error("read", key.as_str(), e))?;
        let file = std::sync::Arc::new(file);
        if open.len() >= KEPT_OPEN {
            open.remove(0);
        }
        open.push((key.as_str().to_owned(), file.clone()));
        Ok(file)
    }

    fn walk(&self, directory: &Path, key: &str, found: &mut Vec<Listed>) -> io::Result<()> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if key.is_empty() && name.starts_with('.') {
                continue;
            }
            let child = format!("{key}{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.walk(&entry.path(), &format!("{child}/"), found)?;
            } else if kind.is_file()
                && let Ok(key) = Key::parse(&child)
            {
                match entry.metadata() {
                    Ok(meta) => found.push(Listed { key, bytes: meta.len() }),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

fn changed_lately(directory: &Path) -> bool {
    let changed = fs::metadata(directory).and_then(|meta| meta.modified()).ok();
    // One that changes in the future changed just now, by another clock.
    changed.and_then(|changed| changed.elapsed().ok()).is_none_or(|ago| ago < SETTLED)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

struct LocalWriter<'a> {
    store: &'a LocalStore,
    path: PathBuf,
    file: File,
}

impl Drop for LocalWriter<'_> {
    fn drop(&mut self) {
        // Linked or given up: the temporary name goes. What a crash leaves is no object.
        let _ = fs::remove_file(&self.path);
    }
}

impl LocalWriter<'_> {
    /// That an object is there. Who hears it may take it for stored, so it has to be durable by then.
    fn exists(&self, target: &Path, key: &Key) -> StoreError {
        match self.store.sync_object(target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.store.error("write", key.as_str(), error),
            _ => StoreError::Exists { key: key.to_string() },
        }
    }
}

impl ObjectWriter for LocalWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(|e| self.store.error("write", "an object", e))
    }

    fn commit(self: Box<Self>, key: &Key) -> Result<(), StoreError> {
        let fail = |e| self.store.error("write", key.as_str(), e);
        self.file.sync_all().map_err(fail)?;
        let target = self.store.path(key.as_str());
        let parent = target.parent().unwrap_or(&self.store.root);
        for attempt in 0.. {
            match self.store.make_directories(parent).and_then(|()| fs::hard_link(&self.path, &target)) {
                Ok(()) => break,
                // Somebody took the directory away because it was empty: it is made again, and not for ever.
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < LINKS && self.path.exists() => {
                    self.store.made.lock().expect("no panic while held").clear();
                }
                // File systems without hard links: a rename that refuses to replace.
                Err(error) if matches!(error.raw_os_error(), Some(libc_eperm) if libc_eperm == rustix::io::Errno::PERM.raw_os_error() || libc_eperm == rustix::io::Errno::OPNOTSUPP.raw_os_error()) =>
                {
                    let here = rustix::fs::CWD;
                    match rustix::fs::renameat_with(here, &self.path, here, &target, rustix::fs::RenameFlags::NOREPLACE) {
                        Ok(()) => break,
                        Err(rustix::io::Errno::EXIST) => return Err(self.exists(&target, key)),
                        Err(error) => return Err(fail(error.into())),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(self.exists(&target, key)),
                Err(error) => return Err(fail(error)),
            }
        }
        match self.store.sync(parent) {
            // It was there, and somebody deleted it and its directory at once.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.store.root.exists() => Ok(()),
            other => other.map_err(fail),
        }
    }
}

impl Store for LocalStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        let fail = |e| self.error("write", "an object", e);
        let directory = self.root.join(TEMPORARY);
        self.make_directories(&directory).map_err(fail)?;
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let random = crate::random::id();
        let path = directory.join(format!("{random}-{serial}"));
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
        let file = match open() {
            // Somebody cleaned up behind us.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Never the root: where that is gone, a file system is not mounted, and what is written below its place is in no repository.
                match fs::create_dir(&directory) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(error)),
                    _ => open(),
                }
            }
            other => other,
        }
        .map_err(fail)?;
        Ok(Box::new(LocalWriter { store: self, path, file }))
    }

    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        let file = File::open(self.path(key.as_str())).map_err(|e| self.error("read", key.as_str(), e))?;
        let meta = file.metadata().map_err(|e| self.error("read", key.as_str(), e))?;
        if !meta.is_file() {
            return Err(StoreError::NotFound { key: key.as_str().to_owned() });
        }
        if meta.size() > limit {
            let source = io::Error::new(io::ErrorKind::FileTooLarge, format!("{} bytes, more than {limit}", meta.size()));
            return Err(self.error("read", key.as_str(), source));
        }
        let mut bytes = vec![0; meta.size() as usize];
        file.read_exact_at(&mut bytes, 0).map_err(|e| self.error("read", key.as_str(), e))?;
        Ok(bytes)
    }

    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        let file = self.file(key)?;
        buffer.resize((range.end - range.start) as usize, 0);
        file.read_exact_at(buffer, range.start).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                let length = file.metadata().map_or(0, |meta| meta.len());
                StoreError::Short { key: key.as_str().to_owned(), length, wanted: range.end }
            } else {
                self.error("read", key.as_str(), error)
            }
        })
    }

    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        let meta = fs::metadata(self.path(key.as_str())).map_err(|e| self.error("read", key.as_str(), e))?;
        if meta.is_file() { Ok(meta.len()) } else { Err(StoreError::NotFound { key: key.as_str().to_owned() }) }
    }

    fn make_durable(&self, key: &Key) -> Result<(), StoreError> {
        self.sync_object(&self.path(key.as_str())).map_err(|e| self.error("sync", key.as_str(), e))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let mut found = Vec::new();
        self.walk(&self.path(prefix), prefix, &mut found).map_err(|e| self.error("list", prefix, e))?;
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let entries = match fs::read_dir(self.path(prefix)) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
            Err(error) => return Err(self.error("list", prefix, error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| self.error("list", prefix, e))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if !(prefix.is_empty() && name.starts_with('.')) {
                let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                names.push(if directory { format!("{name}/") } else { name });
            }
        }
        names.sort();
        Ok(names)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        let mut entries = fs::read_dir(&self.root).map_err(|e| self.error("list", "", e))?;
        // A file system of its own begins with lost+found.
        Ok(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found" || entry.file_name() == TEMPORARY)))
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let fail = |e| self.error("delete", key.as_str(), e);
        let path = self.path(key.as_str());
        self.open.lock().expect("no panic while held").retain(|(name, _)| name != key.as_str());
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory) => {
                return Ok(());
            }
            Err(error) => return Err(fail(error)),
        }
        let mut directory = path.parent().unwrap_or(&self.root);
        // Where somebody took the directory away meanwhile, the one above it says so.
        while let Err(error) = sync_directory(directory) {
            if error.kind() != io::ErrorKind::NotFound || directory == self.root {
                return Err(fail(error));
            }
            directory = directory.parent().unwrap_or(&self.root);
        }
        // Directories that are empty now go as well, or a backup that is gone would still be listed. A writer that is about to link into one
        // makes it again. Durable is only that the object is gone; an empty directory is none.
        while directory != self.root && fs::remove_dir(directory).is_ok() {
            self.made.lock().expect("no panic while held").remove(directory);
            directory = directory.parent().unwrap_or(&self.root);
        }
        Ok(())
    }

    fn examine(&self, how: &super::probe::Examination<'_>) -> Option<lifeboat_core::doctor::store::StoreFacts> {
        Some(super::probe::directory(self, &self.root, how))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_directories_go_with_their_last_object_and_come_back() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("repository");
        let store = LocalStore::open(&root, true).unwrap();
        let other = LocalStore::open(&root, false).unwrap();
        let key = |name: &str| Key::parse(name).unwrap();
        store.create(&key("a/b/c"), b"1").unwrap();
        store.create(&key("a/d"), b"1").unwrap();
        other.delete(&key("a/b/c")).unwrap();
        assert!(!root.join("a/b").exists() && root.join("a/d").exists());
        // The first one remembers the directory that is gone.
        store.create(&key("a/b/c"), b"2").unwrap();
        assert_eq!(other.get(&key("a/b/c"), 10).unwrap(), b"2");
        for name in ["a/b/c", "a/d", "a/d", "x/y"] {
            other.delete(&key(name)).unwrap();
        }
        assert!(!root.join("a").exists() && root.exists());
        assert_eq!(store.list_segments("").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_there_counts_only_when_it_is_durable() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("repository");
        let key = Key::parse("wal/1/a").unwrap();
        // Whichever sync fails, the object is not stored until all of them were made, and then it is, once.
        for failing in 0.. {
            let store = LocalStore::open(&root, true).unwrap();
            store.syncs.store(failing, Ordering::SeqCst);
            let begun = store.create(&key, b"1");
            if begun.is_ok() {
                assert!(failing > 2, "only {failing} were made");
                break;
            }
            // The disk stays broken: neither another process nor the same one hears that it is there.
            let other = LocalStore::open(&root, false).unwrap();
            other.syncs.store(0, Ordering::SeqCst);
            for store in [&store, &other] {
                assert!(matches!(store.create(&key, b"1"), Err(StoreError::Io { .. })), "{failing}");
                assert!(super::super::create_or_mine(store, &key, b"1").is_err(), "{failing}");
                assert!(store.length(&key).is_err() || store.make_durable(&key).is_err(), "{failing}");
            }
            // It works again.
            other.syncs.store(u64::MAX, Ordering::SeqCst);
            assert!(super::super::create_or_mine(&other, &key, b"1").unwrap(), "{failing}");
            assert!(matches!(other.create(&key, b"1"), Err(StoreError::Exists { .. })));
            fs::remove_dir_all(&root).unwrap();
        }
    }

    #[test]
    fn writers_and_those_who_delete_do_not_hinder_each_other() {
        let place = tempfile::tempdir().unwrap();
        let store = LocalStore::open(&place.path().join("repository"), true).unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..100 {
                        let key = Key::parse(&format!("a/b/{writer}-{round}")).unwrap();
                        store.create(&key, b"1").unwrap();
                        assert_eq!(store.length(&key).unwrap(), 1);
                        store.delete(&key).unwrap();
                    }
                });
            }
        });
        assert!(!place.path().join("repository/a").exists());
    }

    #[test]
    fn a_repository_that_is_gone_is_not_begun_anew() {
        let place = tempfile::tempdir().unwrap();
        let store = LocalStore::open(&place.path().join("repository"), true).unwrap();
        let key = |name: &str| Key::parse(name).unwrap();
        store.create(&key("wal/a"), b"1").unwrap();
        fs::rename(place.path().join("repository"), place.path().join("away")).unwrap();
        assert!(store.create(&key("wal/b"), b"2").is_err());
        assert!(store.create(&key("other/b"), b"2").is_err());
        assert!(!place.path().join("repository").exists());
        fs::rename(place.path().join("away"), place.path().join("repository")).unwrap();
        store.create(&key("wal/b"), b"2").unwrap();
    }
}
