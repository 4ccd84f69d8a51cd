//! A store that fails on purpose, for tests of what happens then.
//!
//! What goes wrong is a plan, a value; what was asked is a trace, so that a sweep knows how many steps there are and a failure can name
//! one. It never says that something was done that was not: nothing can be built on such a store. Other copies, states of old and holds
//! are passed on without faults.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use lifeboat_core::repository::layout::Key;

use super::memory::segments;
use super::{Listed, ObjectWriter, Store, StoreError};

/// What every error that a plan makes says of itself.
pub const INJECTED: &str = "injected by a test";

/// What a store is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// [`Store::create`]
    Create,
    /// [`Store::writer`] and [`Store::writer_for`]
    Begin,
    /// [`ObjectWriter::write`]
    Write,
    /// [`ObjectWriter::commit`]
    Commit,
    /// [`Store::get`]
    Get,
    /// [`Store::get_range`]
    Range,
    /// [`Store::length`]
    Length,
    /// [`Store::list`] and [`Store::list_after`]
    List,
    /// [`Store::list_segments`]
    Segments,
    /// [`Store::is_empty`]
    Empty,
    /// [`Store::delete`]
    Delete,
}

/// How one operation goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not get there; again may help.
    Transient,
    /// It is refused, and nobody knows why.
    Refused,
    /// The credentials do not allow it.
    Denied,
    /// There is no room.
    Full,
    /// It is done, and the answer does not come.
    AnswerLost,
    /// The object ends in the middle of what was asked for, and the store says so.
    Short,
    /// Half of the bytes come, and nobody says so.
    Truncated,
    /// One bit of what comes is another.
    Corrupt,
    /// A listing does not show the newest objects yet, so many of them, and still shows as many of those that were deleted last.
    Stale(usize),
    /// It takes so long.
    Delay(Duration),
    /// Nothing comes for so long, and then no answer.
    Hang(Duration),
}

impl Fault {
    /// Whether an operation can go wrong like this.
    pub fn fits(self, operation: Operation) -> bool {
        use Operation::{Begin, Commit, Create, Delete, Get, List, Range, Segments, Write};
        match self {
            Self::Transient | Self::Refused | Self::Denied | Self::Delay(_) | Self::Hang(_) => true,
            Self::Full => matches!(operation, Create | Begin | Write | Commit),
            Self::AnswerLost => matches!(operation, Create | Commit | Delete),
            Self::Short | Self::Truncated | Self::Corrupt => matches!(operation, Get | Range),
            Self::Stale(_) => matches!(operation, List | Segments),
        }
    }

    /// Whether the store says that it failed; otherwise it answers as if nothing were wrong.
    pub fn is_error(self) -> bool {
        !matches!(self, Self::Truncated | Self::Corrupt | Self::Stale(_) | Self::Delay(_))
    }
}

/// One line of a plan: so many operations from one on go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Which; `None`: all that the fault fits.
    pub operation: Option<Operation>,
    /// The first, counted from 0 among its kind; among all where no kind is given.
    pub from: usize,
    /// How many.
    pub count: usize,
    /// What happens to it.
    pub fault: Fault,
}

impl Rule {
    /// One operation of its kind, by its number from 0.
    pub fn once(operation: Operation, number: usize, fault: Fault) -> Self {
        Self { operation: Some(operation), from: number, count: 1, fault }
    }

    /// Everything that the fault fits, from one operation on, for ever.
    pub fn from(step: usize, fault: Fault) -> Self {
        Self { operation: None, from: step, count: usize::MAX, fault }
    }
}

/// One operation that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub operation: Operation,
    /// Of which object, or below which prefix; empty where it has no name yet.
    pub key: String,
    /// What went wrong.
    pub fault: Option<Fault>,
}

#[derive(Default)]
struct State {
    plan: Vec<Rule>,
    trace: Vec<Step>,
    counts: BTreeMap<Operation, usize>,
    /// As they came.
    created: Vec<Key>,
    deleted: Vec<Listed>,
}

/// What a [`FaultyStore`] is told, and what it tells, while somebody else has it.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

impl Faults {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }

    /// From now on this goes wrong, and nothing else. Counting begins anew.
    pub fn plan(&self, plan: &[Rule]) {
        let mut state = self.lock();
        state.plan = plan.to_vec();
        state.trace.clear();
        state.counts.clear();
    }

    /// What was asked since the plan was made.
    pub fn trace(&self) -> Vec<Step> {
        self.lock().trace.clone()
    }

    /// What went wrong since the plan was made.
    pub fn injected(&self) -> Vec<Step> {
        self.lock().trace.iter().filter(|step| step.fault.is_some()).cloned().collect()
    }

    /// The objects that were created, oldest first: those that a stale listing does not show are the last ones.
    pub fn created(&self) -> Vec<Key> {
        self.lock().created.clone()
    }

    /// Has the store remember these as created before all others.
    pub fn remember(&self, created: Vec<Key>) {
        self.lock().created.splice(..0, created);
    }

    /// Takes an operation down, and says what becomes of it. Waits where it has to wait.
    fn meet(&self, operation: Operation, key: &str) -> Option<Fault> {
        let fault = {
            let mut state = self.lock();
            let step = state.trace.len();
            let count = state.counts.entry(operation).or_default();
            let number = *count;
            *count += 1;
            let hit = |rule: &&Rule| {
                let at = if rule.operation.is_some() { number } else { step };
                rule.operation.is_none_or(|only| only == operation)
                    && rule.fault.fits(operation)
                    && at >= rule.from
                    && at - rule.from < rule.count
            };
            let fault = state.plan.iter().find(hit).map(|rule| rule.fault);
            state.trace.push(Step { operation, key: key.to_owned(), fault });
            fault
        };
        if let Some(Fault::Delay(time) | Fault::Hang(time)) = fault {
            thread::sleep(time);
        }
        fault
    }

    /// The keys that a stale listing leaves out, and the objects that it shows though they are gone.
    fn stale(&self, objects: usize, prefix: &str) -> (BTreeSet<Key>, Vec<Listed>) {
        let state = self.lock();
        let hidden = state.created.iter().rev().take(objects).cloned().collect();
        let gone = state.deleted.iter().rev().take(objects);
        (hidden, gone.filter(|listed| listed.key.as_str().starts_with(prefix)).cloned().collect())
    }
}

/// A store between whose operations and their callers things go wrong as planned.
pub struct FaultyStore {
    inner: Box<dyn Store>,
    faults: Faults,
}

impl FaultyStore {
    /// Stands in front of `inner`; nothing goes wrong until there is a plan.
    pub fn new(inner: Box<dyn Store>) -> (Self, Faults) {
        let faults = Faults::default();
        (Self { inner, faults: faults.clone() }, faults)
    }

    /// What becomes of an operation that has not begun.
    fn before(&self, operation: Operation, action: &'static str, key: &str) -> Result<Option<Fault>, StoreError> {
        match self.faults.meet(operation, key) {
            Some(fault @ (Fault::Transient | Fault::Refused | Fault::Denied | Fault::Full | Fault::Hang(_))) => {
                Err(error(fault, action, key, self.url()))
            }
            fault => Ok(fault),
        }
    }

    fn written(&self, key: &Key, fault: Option<Fault>) -> Result<(), StoreError> {
        self.faults.lock().created.push(key.clone());
        match fault {
            Some(Fault::AnswerLost) => Err(error(Fault::AnswerLost, "write", key.as_str(), self.url())),
            _ => Ok(()),
        }
    }

    fn listing(&self, mut listed: Vec<Listed>, prefix: &str, fault: Option<Fault>) -> Vec<Listed> {
        if let Some(Fault::Stale(objects)) = fault {
            let (hidden, gone) = self.faults.stale(objects, prefix);
            listed.retain(|listed| !hidden.contains(&listed.key));
            for ghost in gone {
                if listed.iter().all(|listed| listed.key != ghost.key) {
                    listed.push(ghost);
                }
            }
            listed.sort_by(|a, b| a.key.cmp(&b.key));
        }
        listed
    }
}

fn error(fault: Fault, action: &'static str, key: &str, store: &str) -> StoreError {
    let (key, store) = (key.to_owned(), store.to_owned());
    let source = |kind, what: &str| io::Error::new(kind, format!("{what} ({INJECTED})"));
    match fault {
        Fault::Full => StoreError::Full { key, store },
        Fault::Denied => StoreError::Denied { action, key, store, source: source(io::ErrorKind::PermissionDenied, "403") },
        Fault::Refused => StoreError::Io { action, key, store, source: source(io::ErrorKind::Other, "a refusal") },
        Fault::Hang(_) => StoreError::Io { action, key, store, source: source(io::ErrorKind::TimedOut, "no answer") },
        Fault::AnswerLost => StoreError::Io { action, key, store, source: source(io::ErrorKind::ConnectionReset, "the answer was lost") },
        _ => StoreError::Io { action, key, store, source: source(io::ErrorKind::ConnectionReset, "the connection broke") },
    }
}

/// Makes bytes that were read those that arrive.
fn spoil(bytes: &mut Vec<u8>, fault: Option<Fault>) {
    match fault {
        Some(Fault::Truncated) => bytes.truncate(bytes.len() / 2),
        Some(Fault::Corrupt) => {
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 1;
            }
        }
        _ => {}
    }
}

struct FaultyWriter<'a> {
    store: &'a FaultyStore,
    inner: Box<dyn ObjectWriter + 'a>,
    key: String,
}

impl ObjectWriter for FaultyWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.store.before(Operation::Write, "write", &self.key)?;
        self.inner.write(bytes)
    }

    fn commit(self: Box<Self>, key: &Key) -> Result<(), StoreError> {
        let fault = self.store.before(Operation::Commit, "write", key.as_str())?;
        self.inner.commit(key)?;
        self.store.written(key, fault)
    }
}

impl Store for FaultyStore {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn create(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        let fault = self.before(Operation::Create, "write", key.as_str())?;
        self.inner.create(key, bytes)?;
        self.written(key, fault)
    }

    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        self.before(Operation::Begin, "write", "")?;
        Ok(Box::new(FaultyWriter { store: self, inner: self.inner.writer()?, key: String::new() }))
    }

    fn writer_for(&self, key: &Key, expected: u64) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        self.before(Operation::Begin, "write", key.as_str())?;
        Ok(Box::new(FaultyWriter { store: self, inner: self.inner.writer_for(key, expected)?, key: key.to_string() }))
    }

    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        let fault = self.before(Operation::Get, "read", key.as_str())?;
        let mut bytes = self.inner.get(key, limit)?;
        if fault == Some(Fault::Short) {
            let wanted = bytes.len() as u64;
            return Err(StoreError::Short { key: key.to_string(), length: wanted / 2, wanted });
        }
        spoil(&mut bytes, fault);
        Ok(bytes)
    }

    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        let fault = self.before(Operation::Range, "read", key.as_str())?;
        self.inner.get_range(key, range.clone(), buffer)?;
        if fault == Some(Fault::Short) {
            let length = range.start + (range.end - range.start) / 2;
            return Err(StoreError::Short { key: key.to_string(), length, wanted: range.end });
        }
        spoil(buffer, fault);
        Ok(())
    }

    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        self.before(Operation::Length, "read", key.as_str())?;
        self.inner.length(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let fault = self.before(Operation::List, "list", prefix)?;
        Ok(self.listing(self.inner.list(prefix)?, prefix, fault))
    }

    fn list_after(&self, prefix: &str, after: &Key) -> Result<Vec<Listed>, StoreError> {
        let fault = self.before(Operation::List, "list", prefix)?;
        let mut listed = self.listing(self.inner.list_after(prefix, after)?, prefix, fault);
        listed.retain(|listed| listed.key > *after);
        Ok(listed)
    }

    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let fault = self.before(Operation::Segments, "list", prefix)?;
        if !matches!(fault, Some(Fault::Stale(_))) {
            return self.inner.list_segments(prefix);
        }
        let listed = self.listing(self.inner.list(prefix)?, prefix, fault);
        Ok(segments(listed.iter().map(|listed| &listed.key), prefix))
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        self.before(Operation::Empty, "list", "")?;
        self.inner.is_empty()
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let fault = self.before(Operation::Delete, "delete", key.as_str())?;
        let was = self.inner.length(key).ok();
        self.inner.delete(key)?;
        if let Some(bytes) = was {
            self.faults.lock().deleted.push(Listed { key: key.clone(), bytes });
        }
        match fault {
            Some(Fault::AnswerLost) => Err(error(Fault::AnswerLost, "delete", key.as_str(), self.url())),
            _ => Ok(()),
        }
    }

    fn alternatives<'a>(&'a self, key: &Key) -> Result<Vec<Box<dyn Store + 'a>>, StoreError> {
        self.inner.alternatives(key)
    }

    fn as_of<'a>(&'a self, moment: jiff::Timestamp) -> Result<Box<dyn Store + 'a>, StoreError> {
        self.inner.as_of(moment)
    }

    fn make_durable(&self, key: &Key) -> Result<(), StoreError> {
        self.inner.make_durable(key)
    }

    fn retain(&self, key: &Key, until: jiff::Timestamp) -> Result<(), StoreError> {
        self.inner.retain(key, until)
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
    fn what_is_planned_happens_once_and_is_written_down() {
        let (store, faults) = FaultyStore::new(Box::new(MemoryStore::default()));
        faults.plan(&[Rule::once(Operation::Create, 1, Fault::Transient), Rule::once(Operation::Create, 2, Fault::AnswerLost)]);
        store.create(&key("a/1"), b"one").unwrap();
        let lost = store.create(&key("a/2"), b"two").unwrap_err();
        assert!(lost.is_transient() && matches!(store.length(&key("a/2")), Err(StoreError::NotFound { .. })));
        store.create(&key("a/2"), b"two").unwrap_err();
        assert!(matches!(store.create(&key("a/2"), b"two"), Err(StoreError::Exists { .. })), "it was written, and nobody said so");
        assert_eq!(store.get(&key("a/2"), 9).unwrap(), b"two");
        let injected: Vec<_> = faults.injected().into_iter().map(|step| (step.key, step.fault.unwrap())).collect();
        assert_eq!(injected, [("a/2".to_owned(), Fault::Transient), ("a/2".to_owned(), Fault::AnswerLost)]);
        assert_eq!(faults.trace().len(), 6);
    }

    #[test]
    fn what_is_read_is_spoilt_and_listings_lag_behind() {
        let (store, faults) = FaultyStore::new(Box::new(MemoryStore::default()));
        for name in ["a/b/1", "a/c/2", "a/b/3"] {
            store.create(&key(name), &[0xAA; 100]).unwrap();
        }
        store.delete(&key("a/b/1")).unwrap();
        faults.plan(&[
            Rule::once(Operation::Get, 0, Fault::Truncated),
            Rule::once(Operation::Range, 0, Fault::Corrupt),
            Rule::once(Operation::Range, 1, Fault::Short),
            Rule::once(Operation::List, 0, Fault::Stale(1)),
            Rule::once(Operation::Segments, 0, Fault::Stale(2)),
        ]);
        assert_eq!(store.get(&key("a/c/2"), 100).unwrap().len(), 50);
        let mut buffer = Vec::new();
        store.get_range(&key("a/c/2"), 10..20, &mut buffer).unwrap();
        assert_eq!(buffer.iter().filter(|byte| **byte != 0xAA).count(), 1);
        let short = store.get_range(&key("a/c/2"), 10..20, &mut buffer);
        assert!(matches!(short, Err(StoreError::Short { length: 15, wanted: 20, .. })), "{short:?}");
        let keys = |listed: Vec<Listed>| listed.into_iter().map(|listed| listed.key.to_string()).collect::<Vec<_>>();
        assert_eq!(keys(store.list("a/").unwrap()), ["a/b/1", "a/c/2"], "one that is new is not there, and one that is gone is");
        assert_eq!(keys(store.list("a/").unwrap()), ["a/b/3", "a/c/2"]);
        assert_eq!(store.list_segments("a/").unwrap(), ["b/"]);
        assert_eq!(store.list_segments("a/").unwrap(), ["b/", "c/"]);
        // Everything, for ever.
        faults.plan(&[Rule::from(1, Fault::Denied)]);
        store.is_empty().unwrap();
        assert!(matches!(store.is_empty(), Err(StoreError::Denied { .. })));
        assert!(matches!(store.writer().map(drop), Err(StoreError::Denied { .. })));
    }
}
