//! Bringing records into the repository: each takes the next free number, then tiles and checkpoint are brought up to date.
//!
//! Nobody signs over what nobody who is trusted wrote: from the checkpoint on that is relied upon, the signature of every record is
//! verified first, and a log that is not the continuation of the one that this host has seen is not continued.

use std::collections::BTreeMap;

use lifeboat_core::audit::{Event, Stored, record_text};
use lifeboat_core::repository::layout::{self, AUDIT_WIDTH, Key};
use lifeboat_core::repository::{Id, Sha256};
use lifeboat_core::verify::FindingKind;
use tlog_tiles::Hash;

use super::Trouble;
use super::key::{AuditKey, Checkpoint, Flaw, MAX_CHECKPOINT_BYTES, Verifiers, sign_checkpoint};
use super::read::{self, Found};
use super::tree::{self, Tree, TreeError};
use crate::causes;
use crate::store::{Store, StoreError, create_or_mine};

/// Why it went no further.
pub(super) enum Stop {
    Store(StoreError),
    Trouble(Trouble),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Stop> for Trouble {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Store(error) => Self::Waiting(causes::joined(&error)),
            Stop::Trouble(trouble) => trouble,
        }
    }
}

fn distrust(problem: impl Into<String>) -> Stop {
    Stop::Trouble(Trouble::Distrusted(problem.into()))
}

/// A log that is continued.
pub(super) struct Appender<'a> {
    store: &'a dyn Store,
    verifiers: &'a Verifiers,
    /// Records of this host that may be in the log already: their events' ids.
    mine: BTreeMap<Id, Option<Stored>>,
    tree: Tree<'a>,
    /// The checkpoint that is continued.
    base: Option<Checkpoint>,
    /// The tree was made from the records, because tiles of the checkpoint are missing or wrong: they are made anew, as far as that goes.
    rebuilt: bool,
    /// Bytes of records behind the base, for bundles.
    entries: BTreeMap<u64, Vec<u8>>,
}

impl<'a> Appender<'a> {
    /// Finds the end of the log. `seen` is the newest checkpoint that this host knows; `tried_from` says from where on records of `waiting` may be in the
    /// log.
    pub(super) fn open(
        store: &'a dyn Store,
        verifiers: &'a Verifiers,
        seen: Option<Checkpoint>,
        tried_from: Option<u64>,
        waiting: impl IntoIterator<Item = Id>,
    ) -> Result<Self, Stop> {
        let known = seen.as_ref().map_or(0, |seen| seen.size);
        let newer = read::newest(store, verifiers, known)?;
        let head = newer.or_else(|| seen.clone());
        let mut appender = Self {
            store,
            verifiers,
            mine: waiting.into_iter().map(|id| (id, None)).collect(),
            tree: head.as_ref().map_or_else(Tree::empty, |head| Tree::of_tiles(store, head)),
            base: head,
            rebuilt: false,
            entries: BTreeMap::new(),
        };
        appender.compare(seen.as_ref())?;
        if let (Some(from), Some(base)) = (tried_from, appender.base.as_ref().map(|base| base.size))
            && from < base
        {
            let mut all = Vec::new();
            read::records(store, verifiers, from, base, |found| all.push(found))?;
            // A record of ours that was changed is found by who verifies; here it is only looked for.
            all.iter().for_each(|found| appender.recognise(found));
        }
        appender.follow()?;
        Ok(appender)
    }

    /// Whether the checkpoint continues the log that this host has seen. The answer comes from the tiles, or, where those are damaged, from the records.
    fn compare(&mut self, seen: Option<&Checkpoint>) -> Result<(), Stop> {
        let Some(base) = self.base.clone() else { return Ok(()) };
        // A checkpoint needs its own edge to be continued; one that is only compared needs that of what was seen before.
        let asked = seen.map_or(base.size, |seen| seen.size);
        let root = match self.tree.root(asked) {
            Ok(root) => root,
            Err(TreeError::Store(error)) => return Err(error.into()),
            Err(TreeError::Tiles(problem)) => {
                self.rebuild(&base, &problem)?;
                self.tree.root(asked).map_err(|_| distrust(problem))?
            }
        };
        match seen {
            Some(seen) if seen.root != root => Err(distrust(format!(
                "the log that is there, with {} records, is not a continuation of the one that this host has seen, with {}",
                base.size, seen.size
            ))),
            _ => Ok(()),
        }
    }

    /// Makes the tree of a checkpoint from the records, because its tiles cannot be used.
    fn rebuild(&mut self, base: &Checkpoint, problem: &str) -> Result<(), Stop> {
        let mut leaves = Vec::new();
        let mut lost = None;
        read::records(self.store, self.verifiers, 0, base.size, |found| {
            if let Err(flaw) = &found.record {
                lost.get_or_insert_with(|| format!("{}: {}", layout::audit_leaf(found.index), flaw.problem));
            }
            leaves.push(tlog_tiles::record_hash(&found.bytes));
        })?;
        if let Some(lost) = lost {
            return Err(distrust(format!("the log was of {} records, and is not whole: {problem}; {lost}", base.size)));
        }
        let tree = Tree::of_leaves(leaves);
        match tree.root(base.size) {
            Ok(root) if root == base.root => {
                self.tree = tree;
                self.rebuilt = true;
                Ok(())
            }
            _ => Err(distrust(format!("the records are not those that the checkpoint of {} records was signed over", base.size))),
        }
    }

    /// Takes records in that nobody signed over yet.
    fn follow(&mut self) -> Result<(), Stop> {
        loop {
            let found = read::leaf(self.store, self.verifiers, self.tree.size())?;
            match &found.record {
                Err(Flaw { kind: FindingKind::Missing, .. }) => return Ok(()),
                Err(flaw) => {
                    let key = layout::audit_leaf(found.index);
                    return Err(distrust(format!("nobody goes on behind {key}, which does not count: {}", flaw.problem)));
                }
                Ok(_) => {
                    self.recognise(&found);
                    if self.mine.values().flatten().any(|stored| stored.index == found.index) {
                        // The primary has it; a replica that must have it as well may not.
                        self.create_again(&layout::audit_leaf(found.index), &found.bytes)?;
                    }
                    self.take(found.bytes)?;
                }
            }
        }
    }

    /// Remembers where a record of ours stands.
    fn recognise(&mut self, found: &Found) {
        let Ok((record, _)) = &found.record else { return };
        if let Some(slot) = self.mine.get_mut(&record.place.id) {
            let leaf = Sha256(tlog_tiles::record_hash(&found.bytes).0);
            slot.get_or_insert(Stored { id: record.place.id, repository: self.verifiers.repository, index: found.index, leaf });
        }
    }

    fn take(&mut self, bytes: Vec<u8>) -> Result<(), Stop> {
        let index = self.tree.size();
        let leaf = tlog_tiles::record_hash(&bytes);
        match self.tree.push(leaf) {
            Ok(()) => {}
            Err(TreeError::Store(error)) => return Err(error.into()),
            Err(TreeError::Tiles(problem)) => {
                let base = self.base.clone().ok_or_else(|| distrust(problem.clone()))?;
                self.rebuild(&base, &problem)?;
                for bytes in self.entries.values() {
                    let again = self.tree.push(tlog_tiles::record_hash(bytes));
                    again.map_err(|_| distrust(problem.clone()))?;
                }
                self.tree.push(leaf).map_err(|_| distrust(problem))?;
            }
        }
        self.entries.insert(index, bytes);
        Ok(())
    }

    fn create_again(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        match self.store.create(key, bytes) {
            Ok(()) | Err(StoreError::Exists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where the next record would stand.
    pub(super) fn end(&self) -> u64 {
        self.tree.size()
    }

    /// Where a record of ours stands, if it is in the log already.
    pub(super) fn place(&self, id: Id) -> Option<Stored> {
        self.mine.get(&id).copied().flatten()
    }

    /// Appends a record behind whatever others append meanwhile.
    pub(super) fn append(&mut self, key: &AuditKey, event: &Event) -> Result<Stored, Stop> {
        loop {
            if let Some(stored) = self.place(event.id) {
                return Ok(stored);
            }
            let index = self.tree.size();
            let bytes = key.sign(&self.verifiers.origin, &record_text(event, index, self.verifiers.repository));
            // What we do not believe ourselves would keep everybody from going on.
            if let Err(flaw) = self.verifiers.record(&bytes, index) {
                return Err(distrust(format!("this host's own audit key does not count: {}", flaw.problem)));
            }
            if create_or_mine(self.store, &layout::audit_leaf(index), &bytes)? {
                let leaf = Sha256(tlog_tiles::record_hash(&bytes).0);
                let stored = Stored { id: event.id, repository: self.verifiers.repository, index, leaf };
                self.mine.insert(event.id, Some(stored));
                self.take(bytes)?;
                return Ok(stored);
            }
            // Somebody else's.
            let before = self.tree.size();
            self.follow()?;
            if self.tree.size() == before {
                return Err(distrust(format!("{} is there and cannot be read", layout::audit_leaf(index))));
            }
        }
    }

    /// Brings tiles, bundles and checkpoint up to date; returns the newest checkpoint.
    pub(super) fn seal(&mut self, key: &AuditKey) -> Result<Option<Checkpoint>, Stop> {
        let size = self.tree.size();
        let from = self.base.as_ref().map_or(0, |base| base.size);
        if size == from && !self.rebuilt {
            return Ok(self.base.clone());
        }
        for tile in tree::tiles(if self.rebuilt { 0 } else { from }, size) {
            let bytes = match self.tree.tile(&tile) {
                Ok(bytes) => bytes.expect("the tree has the tiles of its size"),
                Err(TreeError::Store(error)) => return Err(error.into()),
                Err(TreeError::Tiles(problem)) => return Err(distrust(problem)),
            };
            self.derived(&tree::tile_key(&tile), &bytes)?;
        }
        if self.rebuilt {
            // Those that the checkpoint before needs, and that follow from the same records.
            for tile in tree::partial_tiles(from) {
                if let Ok(Some(bytes)) = self.tree.tile(&tile) {
                    self.derived(&tree::tile_key(&tile), &bytes)?;
                }
            }
        }
        for number in from / AUDIT_WIDTH..size / AUDIT_WIDTH {
            if let Some(bundle) = self.bundle(number)? {
                self.derived(&layout::audit_entries(number), &bundle)?;
            }
        }
        if size == from {
            return Ok(self.base.clone());
        }
        let root = match self.tree.root(size) {
            Ok(root) => root,
            Err(TreeError::Store(error)) => return Err(error.into()),
            Err(TreeError::Tiles(problem)) => return Err(distrust(problem)),
        };
        self.checkpoint(key, size, root).map(Some)
    }

    /// An object that follows from the records. Another one in its place is damage, which cannot be written over: whoever verifies finds it.
    fn derived(&self, key: &Key, bytes: &[u8]) -> Result<(), Stop> {
        if create_or_mine(self.store, key, bytes)? || self.rebuilt {
            return Ok(());
        }
        // Asked again: it may have arrived damaged.
        match read::get(self.store, key, bytes.len() as u64)? {
            Ok(found) if found == bytes => Ok(()),
            _ => Err(distrust(format!("{key} is there, and is not what follows from the records"))),
        }
    }

    /// The records of a bundle; `None`: one of them is lost, and with it the bundle.
    fn bundle(&self, number: u64) -> Result<Option<Vec<u8>>, Stop> {
        let first = number * AUDIT_WIDTH;
        let missing: Vec<u64> = (first..first + AUDIT_WIDTH).filter(|index| !self.entries.contains_key(index)).collect();
        let mut entries =
            self.entries.range(first..first + AUDIT_WIDTH).map(|(index, bytes)| (*index, bytes.clone())).collect::<BTreeMap<_, _>>();
        for found in read::in_parallel(self.store, &missing, |index| read::leaf(self.store, self.verifiers, *index)) {
            let found = found?;
            let hash = match self.tree.leaf(found.index) {
                Ok(hash) => hash,
                Err(TreeError::Store(error)) => return Err(error.into()),
                Err(TreeError::Tiles(_)) => return Ok(None),
            };
            if tlog_tiles::record_hash(&found.bytes) != hash {
                return Ok(None);
            }
            entries.insert(found.index, found.bytes);
        }
        let entries: Vec<Vec<u8>> = entries.into_values().collect();
        Ok(read::encode_bundle(&entries))
    }

    fn checkpoint(&self, key: &AuditKey, size: u64, root: Hash) -> Result<Checkpoint, Stop> {
        let bytes = sign_checkpoint(key, &self.verifiers.origin, size, root);
        let ours = self
            .verifiers
            .checkpoint(&bytes)
            .map_err(|flaw| distrust(format!("this host's own audit key does not count: {}", flaw.problem)))?;
        let place = layout::audit_checkpoint(size);
        if create_or_mine(self.store, &place, &bytes)? {
            return Ok(ours);
        }
        // Another host was faster, or it arrives damaged: asked for twice.
        for _ in 0..2 {
            if let Ok(bytes) = read::get(self.store, &place, MAX_CHECKPOINT_BYTES)?
                && let Ok(theirs) = self.verifiers.checkpoint(&bytes)
            {
                return match theirs.size == size && theirs.root == root {
                    true => Ok(theirs),
                    false => Err(distrust(format!("{place}, signed by {}, is of another log", theirs.signed_by))),
                };
            }
        }
        Err(distrust(format!("{place} is there and does not count")))
    }
}
