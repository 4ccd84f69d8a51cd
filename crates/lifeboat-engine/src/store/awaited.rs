//! A repository that does not answer yet: each request tries to open it, until it is there. For who has to begin without it.

use std::io;
use std::ops::Range;
use std::sync::OnceLock;

use lifeboat_core::repository::layout::Key;
use lifeboat_core::repository::{Descriptor, Id};

use super::{Further, Listed, Note, ObjectWriter, Store, StoreError};
use crate::repository::Repository;

/// Opens a repository, or says in one text why it does not open.
pub type OpenLater = Box<dyn Fn() -> Result<Repository, String> + Send + Sync>;

/// A repository of which only the id and the place are known. Until it opens, every request fails as in a store that is away; one with
/// another id does not count as it.
pub fn await_repository(id: Id, url: String, open: OpenLater) -> Repository {
    // Only the id of this descriptor is ever looked at: the true one stands in the repository.
    let descriptor = Descriptor::new(id, jiff::Timestamp::now(), String::new());
    Repository::with_descriptor(Box::new(Awaited { id, url, open, opened: OnceLock::new() }), descriptor)
}

struct Awaited {
    id: Id,
    url: String,
    open: OpenLater,
    opened: OnceLock<Repository>,
}

impl Awaited {
    fn there(&self) -> Option<&dyn Store> {
        self.opened.get().map(Repository::store)
    }

    fn store(&self) -> Result<&dyn Store, StoreError> {
        if let Some(store) = self.there() {
            return Ok(store);
        }
        let opened = (self.open)().and_then(|repository| match repository.descriptor().repository {
            found if found == self.id => Ok(repository),
            found => Err(format!("it is repository {found}, not {}", self.id)),
        });
        match opened {
            // Another thread that was faster opened the same.
            Ok(repository) => Ok(self.opened.get_or_init(|| repository).store()),
            Err(problem) => Err(StoreError::Io {
                action: "open",
                key: "the repository".to_owned(),
                store: self.url.clone(),
                source: io::Error::other(problem),
            }),
        }
    }
}

impl Store for Awaited {
    fn url(&self) -> &str {
        self.there().map_or(&self.url, Store::url)
    }

    fn urls(&self) -> Vec<String> {
        self.there().map_or_else(|| vec![self.url.clone()], Store::urls)
    }

    fn create(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        self.store()?.create(key, bytes)
    }

    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        self.store()?.writer()
    }

    fn writer_for(&self, key: &Key, expected: u64) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        self.store()?.writer_for(key, expected)
    }

    fn writes(&self) -> usize {
        self.there().map_or(1, Store::writes)
    }

    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.store()?.get(key, limit)
    }

    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        self.store()?.get_range(key, range, buffer)
    }

    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        self.store()?.length(key)
    }

    fn make_durable(&self, key: &Key) -> Result<(), StoreError> {
        self.store()?.make_durable(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.store()?.list(prefix)
    }

    fn list_after(&self, prefix: &str, after: &Key) -> Result<Vec<Listed>, StoreError> {
        self.store()?.list_after(prefix, after)
    }

    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.store()?.list_segments(prefix)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        self.store()?.is_empty()
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.store()?.delete(key)
    }

    fn is_remote(&self) -> bool {
        self.there().is_some_and(Store::is_remote)
    }

    fn alternatives<'a>(&'a self, key: &Key) -> Result<Vec<Box<dyn Store + 'a>>, StoreError> {
        self.store()?.alternatives(key)
    }

    fn further(&self) -> Vec<Further<'_>> {
        self.there().map_or_else(Vec::new, Store::further)
    }

    fn note(&self, note: Note) {
        if let Some(store) = self.there() {
            store.note(note);
        }
    }

    fn notes(&self) -> Vec<Note> {
        self.there().map_or_else(Vec::new, Store::notes)
    }

    fn retain(&self, key: &Key, until: jiff::Timestamp) -> Result<(), StoreError> {
        self.store()?.retain(key, until)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use lifeboat_core::repository::layout;

    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn it_is_away_until_it_is_there_and_another_does_not_count() {
        let make = || {
            let store = MemoryStore::default();
            let id = Repository::init(Box::new(store.clone()), jiff::Timestamp::now(), "test").unwrap().descriptor().repository;
            (store, id)
        };
        let ((ours, id), (other, _)) = (make(), make());
        let place: Arc<Mutex<Option<MemoryStore>>> = Arc::default();
        let seen = Arc::clone(&place);
        let open = move || {
            let store = seen.lock().unwrap().clone().ok_or("nobody answers")?;
            Repository::open(Box::new(store)).map_err(|error| error.to_string())
        };
        let awaited = await_repository(id, "memory:".to_owned(), Box::new(open));
        let key = layout::descriptor();
        let says = |text: &str| {
            let error = crate::causes::joined(&awaited.store().get(&key, 1 << 20).unwrap_err());
            assert!(error.contains(text) && awaited.store().list("").is_err(), "{error}");
        };
        assert_eq!(awaited.descriptor().repository, id);
        says("nobody answers");
        *place.lock().unwrap() = Some(other);
        says("it is repository");
        *place.lock().unwrap() = Some(ours.clone());
        assert_eq!(awaited.store().get(&key, 1 << 20).unwrap(), ours.get(&key, 1 << 20).unwrap());
        // It is opened once.
        *place.lock().unwrap() = None;
        awaited.store().length(&key).unwrap();
    }
}
