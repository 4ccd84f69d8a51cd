//! A store as it would be if something were missing or damaged: for drills, which break things on purpose and must not touch the store.
//!
//! Nothing can be written through it. What it changes is changed in every copy, unless it was told otherwise.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use lifeboat_core::repository::layout::Key;

use super::memory::segments;
use super::{Listed, Note, ObjectWriter, Store, StoreError};

/// What an object would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Not there.
    Missing,
    /// The same with the lowest bit of one byte turned over; behind its end, of its last byte.
    Flipped(u64),
    /// Other bytes.
    Bytes(Vec<u8>),
}

/// A view of a store in which some objects are others. It is for reading only.
pub struct Overlay<'s> {
    inner: Box<dyn Store + 's>,
    changes: BTreeMap<Key, Change>,
    other_copies: bool,
}

impl<'s> Overlay<'s> {
    /// A view in which nothing is changed yet: the store, for reading only.
    pub fn new(inner: Box<dyn Store + 's>) -> Self {
        Self { inner, changes: BTreeMap::new(), other_copies: false }
    }

    /// With one object changed.
    #[must_use]
    pub fn with(mut self, key: Key, change: Change) -> Self {
        self.changes.insert(key, change);
        self
    }

    /// Only the newest version is changed, as somebody would who has the credentials of a writer: what the store keeps of an object beside
    /// that is still there.
    #[must_use]
    pub fn keeping_other_copies(mut self) -> Self {
        self.other_copies = true;
        self
    }

    fn refused(&self, action: &'static str, key: &str) -> StoreError {
        let source = io::Error::new(io::ErrorKind::PermissionDenied, "a drill only reads");
        StoreError::Denied { action, key: key.to_owned(), store: self.url().to_owned(), source }
    }

    fn missing(&self, key: &Key) -> Result<Option<&Change>, StoreError> {
        match self.changes.get(key) {
            Some(Change::Missing) => Err(StoreError::NotFound { key: key.to_string() }),
            change => Ok(change),
        }
    }

    fn listing(&self, mut listed: Vec<Listed>) -> Vec<Listed> {
        listed.retain(|listed| self.changes.get(&listed.key) != Some(&Change::Missing));
        for listed in &mut listed {
            if let Some(Change::Bytes(bytes)) = self.changes.get(&listed.key) {
                listed.bytes = bytes.len() as u64;
            }
        }
        listed
    }
}

impl Store for Overlay<'_> {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn urls(&self) -> Vec<String> {
        self.inner.urls()
    }

    fn create(&self, key: &Key, _bytes: &[u8]) -> Result<(), StoreError> {
        Err(self.refused("write", key.as_str()))
    }

    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        Err(self.refused("write", "an object"))
    }

    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        match self.missing(key)? {
            Some(Change::Bytes(bytes)) if bytes.len() as u64 <= limit => Ok(bytes.clone()),
            Some(Change::Bytes(_)) => {
                let source = io::Error::from(io::ErrorKind::FileTooLarge);
                Err(StoreError::Io { action: "read", key: key.to_string(), store: self.url().to_owned(), source })
            }
            change => {
                let mut bytes = self.inner.get(key, limit)?;
                if let Some(Change::Flipped(at)) = change {
                    let last = bytes.len().saturating_sub(1);
                    let at = usize::try_from(*at).map_or(last, |at| at.min(last));
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1;
                    }
                }
                Ok(bytes)
            }
        }
    }

    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        match self.missing(key)? {
            Some(Change::Bytes(bytes)) => {
                let length = bytes.len() as u64;
                let part = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
                let part = part.and_then(|(start, end)| bytes.get(start..end));
                let part = part.ok_or(StoreError::Short { key: key.to_string(), length, wanted: range.end })?;
                buffer.clear();
                buffer.extend_from_slice(part);
                Ok(())
            }
            change => {
                self.inner.get_range(key, range.clone(), buffer)?;
                if let Some(Change::Flipped(at)) = change {
                    let at = (*at).min(self.inner.length(key)?.saturating_sub(1));
                    if let Some(byte) = at.checked_sub(range.start).and_then(|at| buffer.get_mut(usize::try_from(at).ok()?)) {
                        *byte ^= 1;
                    }
                }
                Ok(())
            }
        }
    }

    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        match self.missing(key)? {
            Some(Change::Bytes(bytes)) => Ok(bytes.len() as u64),
            _ => self.inner.length(key),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        Ok(self.listing(self.inner.list(prefix)?))
    }

    fn list_after(&self, prefix: &str, after: &Key) -> Result<Vec<Listed>, StoreError> {
        Ok(self.listing(self.inner.list_after(prefix, after)?))
    }

    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let gone = self.changes.iter().any(|(key, change)| *change == Change::Missing && key.as_str().starts_with(prefix));
        if !gone {
            return self.inner.list_segments(prefix);
        }
        let listed = self.list(prefix)?;
        Ok(segments(listed.iter().map(|listed| &listed.key), prefix))
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        self.inner.is_empty()
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        Err(self.refused("delete", key.as_str()))
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    fn alternatives<'a>(&'a self, key: &Key) -> Result<Vec<Box<dyn Store + 'a>>, StoreError> {
        let copies = self.inner.alternatives(key)?;
        if self.other_copies {
            return Ok(copies);
        }
        // Another place, or an older version: there the changed objects are as changed as here.
        let changed = |copy: Box<dyn Store + 'a>| -> Box<dyn Store + 'a> {
            Box::new(Overlay { inner: copy, changes: self.changes.clone(), other_copies: false })
        };
        Ok(copies.into_iter().map(changed).collect())
    }

    fn note(&self, note: Note) {
        self.inner.note(note);
    }

    fn notes(&self) -> Vec<Note> {
        self.inner.notes()
    }

    fn as_of<'a>(&'a self, moment: jiff::Timestamp) -> Result<Box<dyn Store + 'a>, StoreError> {
        self.inner.as_of(moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[test]
    fn what_is_changed_is_changed_for_every_way_of_reading_and_nothing_else_is() {
        let store = MemoryStore::default();
        for name in ["a/1", "a/2", "a/3", "b/1"] {
            store.create(&key(name), b"0123456789").unwrap();
        }
        let view = Overlay::new(Box::new(store))
            .with(key("a/1"), Change::Missing)
            .with(key("a/2"), Change::Flipped(4))
            .with(key("a/3"), Change::Bytes(b"other".to_vec()))
            .with(key("b/1"), Change::Flipped(u64::MAX));
        assert!(matches!(view.get(&key("a/1"), 100), Err(StoreError::NotFound { .. })));
        assert!(matches!(view.length(&key("a/1")), Err(StoreError::NotFound { .. })));
        let mut buffer = Vec::new();
        assert!(matches!(view.get_range(&key("a/1"), 0..1, &mut buffer), Err(StoreError::NotFound { .. })));
        assert_eq!(view.get(&key("a/2"), 100).unwrap(), b"0123556789");
        for range in [0..10, 4..5, 3..6] {
            view.get_range(&key("a/2"), range.clone(), &mut buffer).unwrap();
            assert_eq!(buffer, b"0123556789"[range.start as usize..range.end as usize]);
        }
        view.get_range(&key("a/2"), 5..9, &mut buffer).unwrap();
        assert_eq!(buffer, b"5678");
        assert_eq!(view.get(&key("b/1"), 100).unwrap(), b"0123456788");
        view.get_range(&key("b/1"), 8..10, &mut buffer).unwrap();
        assert_eq!(buffer, b"88");
        assert_eq!((view.get(&key("a/3"), 100).unwrap(), view.length(&key("a/3")).unwrap()), (b"other".to_vec(), 5));
        assert!(view.get(&key("a/3"), 4).is_err() && view.get_range(&key("a/3"), 3..6, &mut buffer).is_err());
        let listed: Vec<_> = view.list("a/").unwrap().into_iter().map(|listed| (listed.key.to_string(), listed.bytes)).collect();
        assert_eq!(listed, [("a/2".to_owned(), 10), ("a/3".to_owned(), 5)]);
        assert_eq!(view.list_segments("").unwrap(), ["a/", "b/"]);
        assert_eq!(view.list_segments("a/").unwrap(), ["2", "3"]);
    }

    #[test]
    fn nothing_is_written_through_it() {
        let view = Overlay::new(Box::new(MemoryStore::default()));
        assert!(matches!(view.create(&key("a"), b""), Err(StoreError::Denied { .. })));
        assert!(matches!(view.writer().map(|_| ()), Err(StoreError::Denied { .. })));
        assert!(matches!(view.delete(&key("a")), Err(StoreError::Denied { .. })));
    }
}
