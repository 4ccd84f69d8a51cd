//! A repository in memory, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use lifeboat_core::repository::layout::Key;

use super::{Listed, ObjectWriter, Store, StoreError};

/// Objects in a map. A clone is another way to the same ones.
#[derive(Default, Clone)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<Key, Arc<Vec<u8>>>>>,
}

impl MemoryStore {
    fn object(&self, key: &Key) -> Result<Arc<Vec<u8>>, StoreError> {
        let objects = self.objects.lock().expect("no panic while held");
        objects.get(key).cloned().ok_or_else(|| StoreError::NotFound { key: key.to_string() })
    }

    /// A store of its own that has the same objects now. Costs no bytes.
    pub fn snapshot(&self) -> Self {
        let objects = self.objects.lock().expect("no panic while held").clone();
        Self { objects: Arc::new(Mutex::new(objects)) }
    }

    /// Replaces or removes an object, as damage would.
    pub fn damage(&self, key: &Key, bytes: Option<Vec<u8>>) {
        let mut objects = self.objects.lock().expect("no panic while held");
        match bytes {
            Some(bytes) => objects.insert(key.clone(), Arc::new(bytes)),
            None => objects.remove(key),
        };
    }
}

/// The next segments of keys below a prefix.
pub(super) fn segments<'k>(keys: impl Iterator<Item = &'k Key>, prefix: &str) -> Vec<String> {
    let rest = keys.filter_map(|key| key.as_str().strip_prefix(prefix));
    let segment = |rest: &str| rest.split_once('/').map_or_else(|| rest.to_owned(), |(first, _)| format!("{first}/"));
    let names: BTreeSet<String> = rest.map(segment).collect();
    names.into_iter().collect()
}

struct MemoryWriter<'a> {
    store: &'a MemoryStore,
    bytes: Vec<u8>,
}

impl ObjectWriter for MemoryWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn commit(self: Box<Self>, key: &Key) -> Result<(), StoreError> {
        let mut objects = self.store.objects.lock().expect("no panic while held");
        if objects.contains_key(key) {
            return Err(StoreError::Exists { key: key.to_string() });
        }
        objects.insert(key.clone(), Arc::new(self.bytes));
        Ok(())
    }
}

impl Store for MemoryStore {
    fn url(&self) -> &str {
        "memory:"
    }

    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        Ok(Box::new(MemoryWriter { store: self, bytes: Vec::new() }))
    }

    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        let object = self.object(key)?;
        if object.len() as u64 > limit {
            let source = io::Error::from(io::ErrorKind::FileTooLarge);
            return Err(StoreError::Io { action: "read", key: key.to_string(), store: self.url().into(), source });
        }
        Ok(object.as_ref().clone())
    }

    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        let object = self.object(key)?;
        let part = object.get(range.start as usize..range.end as usize);
        let part = part.ok_or_else(|| StoreError::Short { key: key.to_string(), length: object.len() as u64, wanted: range.end })?;
        buffer.clear();
        buffer.extend_from_slice(part);
        Ok(())
    }

    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        Ok(self.object(key)?.len() as u64)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let objects = self.objects.lock().expect("no panic while held");
        let mine = objects.iter().filter(|(key, _)| key.as_str().starts_with(prefix));
        Ok(mine.map(|(key, bytes)| Listed { key: key.clone(), bytes: bytes.len() as u64 }).collect())
    }

    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let objects = self.objects.lock().expect("no panic while held");
        Ok(segments(objects.keys(), prefix))
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.objects.lock().expect("no panic while held").is_empty())
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.objects.lock().expect("no panic while held").remove(key);
        Ok(())
    }
}
