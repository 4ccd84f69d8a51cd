//! Several copies of one object: reading around damage, saying so, and leaving that out where damage is what is looked for.

use std::ops::Range;

use lifeboat_core::repository::layout::Key;
use serde::Serialize;

use super::{Listed, ObjectWriter, Store, StoreError};

/// What a store has to say beside its answers: nothing of it is an error, and none of it may pass in silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// What happened.
    pub kind: NoteKind,
    /// To which repository.
    pub repository: String,
    /// The object, where it is about one.
    pub object: Option<String>,
    /// Why.
    pub problem: String,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteKind {
    /// The object was read from this repository, because the copy before it is missing or damaged.
    ReadAround,
    /// The repository could not be read: what only it has was not seen.
    LeftOut,
    /// The repository did not get what was written.
    Missed,
    /// The repository did not get a manifest or a head, because it misses something that they name.
    Withheld,
    /// The repository has other bytes under this key.
    Differs,
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let object = self.object.as_deref().unwrap_or("an object");
        match self.kind {
            NoteKind::ReadAround => write!(f, "read {object} from {}: {}", self.repository, self.problem),
            NoteKind::LeftOut => write!(f, "repository {} is left out, and with it what only it has: {}", self.repository, self.problem),
            NoteKind::Missed => write!(f, "repository {} missed {object}: {}", self.repository, self.problem),
            NoteKind::Withheld => write!(f, "repository {} did not get {object}: {}", self.repository, self.problem),
            NoteKind::Differs => write!(f, "repository {} has other bytes as {object}: {}", self.repository, self.problem),
        }
    }
}

/// Reads with `read` from a store and, where that finds damage, from the other copies of the object, one after another. `damage` says
/// what is wrong with a copy, if that is why reading failed; the first failure is what remains if no copy is good. That a copy was read
/// around is a note of the store.
pub fn first_good<T, E>(
    store: &dyn Store,
    key: &Key,
    mut read: impl FnMut(&dyn Store) -> Result<T, E>,
    damage: impl Fn(&E) -> Option<String>,
) -> Result<T, E> {
    let error = match read(store) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let Some(problem) = damage(&error) else { return Err(error) };
    other_copy(store, key, problem, read).ok_or(error)
}

/// Reads from the copies of an object besides the store's own, of which `problem` says what is wrong. The one that is good is a note of the
/// store.
pub(crate) fn other_copy<T, E>(
    store: &dyn Store,
    key: &Key,
    problem: String,
    mut read: impl FnMut(&dyn Store) -> Result<T, E>,
) -> Option<T> {
    // That other copies cannot be looked for is no better news than the damage.
    for copy in store.alternatives(key).unwrap_or_default() {
        if let Ok(value) = read(&*copy) {
            let repository = copy.url().to_owned();
            store.note(Note { kind: NoteKind::ReadAround, repository, object: Some(key.to_string()), problem });
            return Some(value);
        }
    }
    None
}

macro_rules! delegate {
    () => {
        fn url(&self) -> &str {
            self.inner().url()
        }
        fn urls(&self) -> Vec<String> {
            self.inner().urls()
        }
        fn create(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
            self.inner().create(key, bytes)
        }
        fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
            self.inner().writer()
        }
        fn writer_for(&self, key: &Key, expected: u64) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
            self.inner().writer_for(key, expected)
        }
        fn writes(&self) -> usize {
            self.inner().writes()
        }
        fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
            self.inner().get(key, limit)
        }
        fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
            self.inner().get_range(key, range, buffer)
        }
        fn length(&self, key: &Key) -> Result<u64, StoreError> {
            self.inner().length(key)
        }
        fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
            self.inner().list(prefix)
        }
        fn list_after(&self, prefix: &str, after: &Key) -> Result<Vec<Listed>, StoreError> {
            self.inner().list_after(prefix, after)
        }
        fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
            self.inner().list_segments(prefix)
        }
        fn is_empty(&self) -> Result<bool, StoreError> {
            self.inner().is_empty()
        }
        fn delete(&self, key: &Key) -> Result<(), StoreError> {
            self.inner().delete(key)
        }
        fn as_of<'a>(&'a self, moment: jiff::Timestamp) -> Result<Box<dyn Store + 'a>, StoreError> {
            self.inner().as_of(moment)
        }
        fn make_durable(&self, key: &Key) -> Result<(), StoreError> {
            self.inner().make_durable(key)
        }
        fn retain(&self, key: &Key, until: jiff::Timestamp) -> Result<(), StoreError> {
            self.inner().retain(key, until)
        }
        fn is_remote(&self) -> bool {
            self.inner().is_remote()
        }
    };
}

/// A look at a store that somebody else owns.
pub(crate) struct View<'a>(pub(crate) &'a dyn Store);

impl View<'_> {
    fn inner(&self) -> &dyn Store {
        self.0
    }
}

impl Store for View<'_> {
    delegate!();

    fn alternatives<'a>(&'a self, key: &Key) -> Result<Vec<Box<dyn Store + 'a>>, StoreError> {
        self.0.alternatives(key)
    }
    fn note(&self, note: Note) {
        self.0.note(note);
    }
    fn notes(&self) -> Vec<Note> {
        self.0.notes()
    }
}

/// A store by itself: no other copies, so that damage shows. For whoever verifies a repository.
pub struct Alone(Box<dyn Store>);

impl Alone {
    /// The store without its other copies.
    pub fn new(store: Box<dyn Store>) -> Self {
        Self(store)
    }

    fn inner(&self) -> &dyn Store {
        &*self.0
    }
}

impl Store for Alone {
    delegate!();
}
