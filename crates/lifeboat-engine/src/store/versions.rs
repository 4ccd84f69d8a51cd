//! A bucket's past: older versions of an object, and all objects as they were at a moment. Nothing is written here.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;
use std::time::SystemTime;

use jiff::Timestamp;
use lifeboat_core::repository::layout::Key;
use lifeboat_s3::{Kind, Version, Versioning};

use super::{Listed, ObjectWriter, S3Store, Store, StoreError, unsupported};

/// Older versions of one object that are offered. An attacker who wrote more over one has to be met with `as_of`.
const MAX_ALTERNATIVES: usize = 32;

/// Keys whose version is remembered, so that the ranges of one pack ask once.
const KEPT: usize = 100_000;

/// Views in which `key` is one of its older versions, newest first.
pub(super) fn older_versions<'a>(store: &'a S3Store, key: &Key) -> Result<Vec<Box<dyn Store + 'a>>, StoreError> {
    let full = store.full(key.as_str());
    let listed = store.bucket().versions_of(&full, |found| found.len() > MAX_ALTERNATIVES);
    let versions = match listed {
        Ok(versions) => versions,
        // A store without versions has no older ones.
        Err(error) if error.kind == Kind::Unsupported => return Ok(Vec::new()),
        Err(error) => return Err(store.error("list versions of", key.as_str(), 0, error)),
    };
    let older = versions.into_iter().filter(|version| !version.latest && !version.is_delete_marker()).take(MAX_ALTERNATIVES);
    Ok(older
        .map(|version| -> Box<dyn Store + 'a> {
            let url = format!("{} (version {} of {key})", store.url(), version.version);
            Box::new(OneVersion { store, url, key: key.clone(), found: Found::of(&version) })
        })
        .collect())
}

/// A version that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    version: String,
    bytes: u64,
}

impl Found {
    fn of(version: &Version) -> Self {
        Self { version: version.version.clone(), bytes: version.bytes.unwrap_or(0) }
    }
}

fn read_only(store: &str, key: &str) -> StoreError {
    unsupported("write", key, store, "it is shown as it was, and only read")
}

/// A store in which one key is an older version of it.
struct OneVersion<'a> {
    store: &'a S3Store,
    url: String,
    key: Key,
    found: Found,
}

impl OneVersion<'_> {
    fn version(&self, key: &Key) -> Option<&str> {
        (*key == self.key).then_some(self.found.version.as_str())
    }
}

impl Store for OneVersion<'_> {
    fn url(&self) -> &str {
        &self.url
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        Err(read_only(&self.url, "an object"))
    }

    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        let read = self.store.bucket().get(&self.store.full(key.as_str()), self.version(key), limit);
        read.map_err(|error| self.store.error("read", key.as_str(), limit, error))
    }

    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        let end = range.end;
        let read = self.store.bucket().get_range(&self.store.full(key.as_str()), self.version(key), range, buffer);
        read.map_err(|error| self.store.error("read", key.as_str(), end, error))
    }

    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        if *key == self.key { Ok(self.found.bytes) } else { self.store.length(key) }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.store.list(prefix)
    }

    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.store.list_segments(prefix)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        Err(read_only(&self.url, key.as_str()))
    }
}

/// A store as it was: each key is the newest of its versions that is not younger than the moment, by the server's clock.
pub(super) struct AsOf<'a> {
    store: &'a S3Store,
    url: String,
    moment: SystemTime,
    /// What keys were then; `None`: nothing.
    known: Mutex<HashMap<Key, Option<Found>>>,
}

impl<'a> AsOf<'a> {
    /// The store at a moment.
    ///
    /// # Errors
    ///
    /// Of kind [`std::io::ErrorKind::Unsupported`] where the bucket keeps no versions: what it has now would be taken for what it had.
    pub(super) fn open(store: &'a S3Store, moment: Timestamp) -> Result<Self, StoreError> {
        let subject = || format!("the state of {moment}");
        match store.bucket().keeps_versions() {
            Ok(Versioning::On | Versioning::Suspended) => {}
            Ok(Versioning::Off) => {
                return Err(unsupported("read", &subject(), store.url(), "its bucket keeps no versions (versioning is off)"));
            }
            // Who may not ask may still list versions, or is told so by that.
            Err(error) if error.kind == Kind::Denied => {}
            Err(error) => return Err(store.error("read", &subject(), 0, error)),
        }
        Ok(Self { store, url: format!("{} as of {moment}", store.url()), moment: moment.into(), known: Mutex::default() })
    }

    /// Of versions of one key, newest first, the one that was there.
    fn then<'v>(&self, versions: impl IntoIterator<Item = &'v Version>) -> Option<Found> {
        // A server that does not say when has not said that it was before.
        let then = versions.into_iter().find(|version| self.was(version))?;
        (!then.is_delete_marker()).then(|| Found::of(then))
    }

    fn was(&self, version: &Version) -> bool {
        version.modified.is_some_and(|modified| modified <= self.moment)
    }

    fn remember(&self, key: Key, found: Option<Found>) {
        let mut known = self.known.lock().expect("no panic while held");
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(key, found);
    }

    fn find(&self, key: &Key) -> Result<Found, StoreError> {
        let known = self.known.lock().expect("no panic while held").get(key).cloned();
        let found = match known {
            Some(found) => found,
            None => {
                let full = self.store.full(key.as_str());
                let listed = self.store.bucket().versions_of(&full, |found| found.last().is_some_and(|last| self.was(last)));
                let versions = listed.map_err(|error| self.store.error("list versions of", key.as_str(), 0, error))?;
                let found = self.then(&versions);
                self.remember(key.clone(), found.clone());
                found
            }
        };
        found.ok_or_else(|| StoreError::NotFound { key: key.to_string() })
    }

    /// All objects of a prefix as they were, in the order of keys.
    fn all(&self, prefix: &str) -> Result<Vec<(Key, Found)>, StoreError> {
        let full = self.store.full(prefix);
        let versions = self.store.bucket().versions(&full).map_err(|error| self.store.error("list versions of", prefix, 0, error))?;
        let mut found = Vec::new();
        for one in versions.chunk_by(|a, b| a.key == b.key) {
            let key = one[0].key.strip_prefix(self.store.prefix()).and_then(|key| Key::parse(key).ok());
            if let Some((key, then)) = key.zip(self.then(one)) {
                found.push((key, then));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }
}

impl Store for AsOf<'_> {
    fn url(&self) -> &str {
        &self.url
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        Err(read_only(&self.url, "an object"))
    }

    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        let found = self.find(key)?;
        let read = self.store.bucket().get(&self.store.full(key.as_str()), Some(&found.version), limit);
        read.map_err(|error| self.store.error("read", key.as_str(), limit, error))
    }

    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        let (found, end) = (self.find(key)?, range.end);
        let read = self.store.bucket().get_range(&self.store.full(key.as_str()), Some(&found.version), range, buffer);
        read.map_err(|error| self.store.error("read", key.as_str(), end, error))
    }

    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        self.find(key).map(|found| found.bytes)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let mut listed = Vec::new();
        for (key, found) in self.all(prefix)? {
            listed.push(Listed { key: key.clone(), bytes: found.bytes });
            self.remember(key, Some(found));
        }
        Ok(listed)
    }

    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        // What stands there now or ever did: directories first, without looking into them.
        let full = self.store.full(prefix);
        let below = self.store.bucket().versions_below(&full).map_err(|error| self.store.error("list versions of", prefix, 0, error))?;
        let mut names = Vec::new();
        for one in below.0.chunk_by(|a, b| a.key == b.key) {
            if self.then(one).is_some() {
                names.extend(one[0].key.strip_prefix(&full).map(str::to_owned));
            }
        }
        for directory in below.1 {
            // It was there if any object in it was.
            if self.any(&directory)? {
                names.extend(directory.strip_prefix(&full).map(str::to_owned));
            }
        }
        names.retain(|name| !name.is_empty() && name != "/");
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(!self.any(self.store.prefix())?)
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        Err(read_only(&self.url, key.as_str()))
    }

    fn retain(&self, key: &Key, _: Timestamp) -> Result<(), StoreError> {
        Err(read_only(&self.url, key.as_str()))
    }
}

impl AsOf<'_> {
    /// Whether any object of a full prefix was there then: as a rule the first page of the listing tells.
    fn any(&self, prefix: &str) -> Result<bool, StoreError> {
        let seen = self.store.bucket().any_version(prefix, |one| self.then(one).is_some());
        seen.map_err(|error| self.store.error("list versions of", prefix, 0, error))
    }
}
