//! The Merkle tree over the records: what its tiles hold, continued from a checkpoint or made anew from the records.

use std::cell::RefCell;
use std::collections::HashMap;

use lifeboat_core::repository::layout::{self, AUDIT_WIDTH, Key};
use tlog_tiles::{HASH_SIZE, Hash, HashReader, Tile, TileHashReader, TileReader};

use super::key::Checkpoint;
use crate::store::{Store, StoreError};

/// Height of a tile: 256 hashes.
pub(super) const HEIGHT: u8 = 8;

/// Why hashes could not be had.
#[derive(Debug)]
pub(super) enum TreeError {
    /// The store failed.
    Store(StoreError),
    /// A tile is missing, or is not what the checkpoint says.
    Tiles(String),
}

impl TreeError {
    fn of(error: &tlog_tiles::Error) -> Self {
        Self::Tiles(format!("the tiles do not have what the checkpoint says: {error}"))
    }
}

/// The key of a tile.
pub(super) fn tile_key(tile: &Tile) -> Key {
    layout::audit_tile(tile.level(), tile.level_index(), u64::from(tile.width()))
}

/// The tiles that a log of `size` records has, besides those that it had with `from`.
pub(super) fn tiles(from: u64, size: u64) -> Vec<Tile> {
    Tile::new_tiles(HEIGHT, from, size)
}

/// The last, partial tiles of a log of `size` records: one for each level that has any.
pub(super) fn partial_tiles(size: u64) -> impl Iterator<Item = Tile> {
    (0..HEIGHT).filter_map(move |level| {
        let hashes = size.checked_shr(u32::from(HEIGHT) * u32::from(level))?;
        let width = u32::try_from(hashes % AUDIT_WIDTH).ok().filter(|width| *width > 0)?;
        Some(Tile::new(HEIGHT, level, hashes / AUDIT_WIDTH, width, false))
    })
}

/// Tiles of a store, each read once.
struct StoreTiles<'a> {
    store: &'a dyn Store,
    read: RefCell<HashMap<Tile, Vec<u8>>>,
    failed: RefCell<Option<StoreError>>,
}

impl TileReader for StoreTiles<'_> {
    fn height(&self) -> u8 {
        HEIGHT
    }

    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
        let mut all = Vec::new();
        for tile in tiles {
            if let Some(bytes) = self.read.borrow().get(tile) {
                all.push(bytes.clone());
                continue;
            }
            let length = tile.width() as usize * HASH_SIZE;
            match self.store.get(&tile_key(tile), length as u64) {
                Ok(bytes) if bytes.len() == length => all.push(bytes),
                Ok(_) => return Err(tlog_tiles::Error::InvalidTile),
                Err(error) => {
                    *self.failed.borrow_mut() = Some(error);
                    return Err(tlog_tiles::Error::InvalidTile);
                }
            }
        }
        Ok(all)
    }

    fn save_tiles(&self, tiles: &[Tile], data: &[Vec<u8>]) {
        // Only what was found to be right comes here.
        self.read.borrow_mut().extend(tiles.iter().copied().zip(data.iter().cloned()));
    }
}

enum Base<'a> {
    /// From the tiles of a checkpoint, everything compared with its root.
    Tiles { size: u64, root: Hash, tiles: StoreTiles<'a> },
    /// From the records themselves.
    Records(Vec<Hash>),
}

/// A tree that grows.
pub(super) struct Tree<'a> {
    size: u64,
    base: Base<'a>,
    /// What grew since.
    fresh: HashMap<u64, Hash>,
}

impl<'a> Tree<'a> {
    pub(super) fn empty() -> Self {
        Self { size: 0, base: Base::Records(Vec::new()), fresh: HashMap::new() }
    }

    /// The tree of a checkpoint, read from its tiles as far as it is needed.
    pub(super) fn of_tiles(store: &'a dyn Store, head: &Checkpoint) -> Self {
        let tiles = StoreTiles { store, read: RefCell::default(), failed: RefCell::default() };
        Self { size: head.size, base: Base::Tiles { size: head.size, root: head.root, tiles }, fresh: HashMap::new() }
    }

    /// The tree over leaves whose hashes are known.
    pub(super) fn of_leaves(leaves: impl IntoIterator<Item = Hash>) -> Self {
        let mut tree = Self::empty();
        for leaf in leaves {
            tree.push(leaf).expect("a tree in memory has every hash");
        }
        tree
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf.
    pub(super) fn push(&mut self, leaf: Hash) -> Result<(), TreeError> {
        let hashes = self.ask(|tree| tlog_tiles::stored_hashes_for_record_hash(tree.size, leaf, tree))?;
        let first = tlog_tiles::stored_hash_index(0, self.size);
        match &mut self.base {
            Base::Records(all) => all.extend(hashes),
            Base::Tiles { .. } => self.fresh.extend((first..).zip(hashes)),
        }
        self.size += 1;
        Ok(())
    }

    /// The root of the first `size` records.
    pub(super) fn root(&self, size: u64) -> Result<Hash, TreeError> {
        if size > self.size {
            return Err(TreeError::Tiles(format!("{size} records are more than {}", self.size)));
        }
        self.ask(|tree| tlog_tiles::tree_hash(size, tree))
    }

    /// The hash of a leaf.
    pub(super) fn leaf(&self, index: u64) -> Result<Hash, TreeError> {
        let hashes = self.ask(|tree| tree.read_hashes(&[tlog_tiles::stored_hash_index(0, index)]))?;
        Ok(hashes[0])
    }

    /// The bytes of a tile; `None`: the tree is too small for it.
    pub(super) fn tile(&self, tile: &Tile) -> Result<Option<Vec<u8>>, TreeError> {
        let hashes = (tile.level_index() << HEIGHT) + u64::from(tile.width());
        let needed = hashes.checked_mul(1u64.checked_shl(u32::from(HEIGHT) * u32::from(tile.level())).unwrap_or(u64::MAX));
        if needed.is_none_or(|needed| needed > self.size) {
            return Ok(None);
        }
        self.ask(|tree| tile.read_data(tree)).map(Some)
    }

    fn ask<T>(&self, question: impl FnOnce(&Self) -> Result<T, tlog_tiles::Error>) -> Result<T, TreeError> {
        question(self).map_err(|error| {
            let failed = if let Base::Tiles { tiles, .. } = &self.base { tiles.failed.take() } else { None };
            match failed {
                Some(error) if !error.is_absence() => TreeError::Store(error),
                Some(absent) => TreeError::Tiles(absent.to_string()),
                None => TreeError::of(&error),
            }
        })
    }
}

impl HashReader for Tree<'_> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        if indexes.is_empty() {
            return Ok(Vec::new());
        }
        match &self.base {
            Base::Records(all) => {
                let at = |index: &u64| usize::try_from(*index).ok().and_then(|index| all.get(index)).copied();
                indexes.iter().map(|index| at(index).ok_or(tlog_tiles::Error::IndexesNotInTree)).collect()
            }
            Base::Tiles { size, root, tiles } => {
                let wanted: Vec<u64> = indexes.iter().copied().filter(|index| !self.fresh.contains_key(index)).collect();
                let found = if wanted.is_empty() { vec![] } else { TileHashReader::new(*size, *root, tiles).read_hashes(&wanted)? };
                let mut found = found.into_iter();
                indexes
                    .iter()
                    .map(|index| self.fresh.get(index).copied().or_else(|| found.next()).ok_or(tlog_tiles::Error::IndexesNotInTree))
                    .collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn leaf(number: u64) -> Hash {
        tlog_tiles::record_hash(&number.to_be_bytes())
    }

    fn head(tree: &Tree<'_>, size: u64) -> Checkpoint {
        Checkpoint { size, root: tree.root(size).unwrap(), note: String::new(), signed_by: String::new() }
    }

    fn store_tiles(store: &MemoryStore, tree: &Tree<'_>, from: u64, size: u64) {
        for tile in tiles(from, size) {
            match store.create(&tile_key(&tile), &tree.tile(&tile).unwrap().unwrap()) {
                Ok(()) | Err(StoreError::Exists { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Sizes around every border: what is continued from tiles is what is made from all leaves.
    #[test]
    fn a_tree_continued_from_any_checkpoint_is_the_tree_of_all_leaves() {
        let whole = Tree::of_leaves((0..66_000).map(leaf));
        let stops = [1, 2, 5, 255, 256, 257, 511, 513, 1000, 65_535, 65_536, 65_537, 65_800, 66_000];
        let store = MemoryStore::default();
        let mut before = 0;
        for stop in stops {
            let mut tree = match before {
                0 => Tree::empty(),
                size => Tree::of_tiles(&store, &head(&whole, size)),
            };
            for number in before..stop {
                tree.push(leaf(number)).map_err(|e| format!("{e:?}")).unwrap();
            }
            for size in stops.into_iter().filter(|size| *size <= stop) {
                assert_eq!(tree.root(size).unwrap(), whole.root(size).unwrap(), "{size} of {stop}");
            }
            assert_eq!(tree.leaf(stop - 1).unwrap(), leaf(stop - 1));
            for tile in tiles(before, stop) {
                assert_eq!(tree.tile(&tile).unwrap(), whole.tile(&tile).unwrap());
            }
            store_tiles(&store, &tree, before, stop);
            for tile in partial_tiles(stop) {
                assert!(store.length(&tile_key(&tile)).is_ok(), "{tile:?} of {stop}");
            }
            before = stop;
        }
        assert!(whole.root(66_001).is_err());
        assert!(whole.tile(&Tile::new(HEIGHT, 0, 300, 1, false)).unwrap().is_none());
        assert!(whole.tile(&Tile::new(HEIGHT, 7, 1 << 50, 1, false)).unwrap().is_none());
    }

    #[test]
    fn a_tile_that_is_not_what_the_checkpoint_says_is_no_base() {
        let whole = Tree::of_leaves((0..300).map(leaf));
        let store = MemoryStore::default();
        store_tiles(&store, &whole, 0, 300);
        let tree = Tree::of_tiles(&store, &head(&Tree::of_leaves((1..301).map(leaf)), 300));
        assert!(matches!(tree.root(300), Err(TreeError::Tiles(_))));
        let gone = layout::audit_tile(0, 1, 44);
        store.delete(&gone).unwrap();
        let tree = Tree::of_tiles(&store, &head(&whole, 300));
        assert!(matches!(tree.root(300), Err(TreeError::Tiles(text)) if text.contains("001.p/44")));
    }
}
