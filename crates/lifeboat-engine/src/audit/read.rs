//! Reading the log: records in order, from bundles where there are any, and its newest checkpoint.

use std::io;

use lifeboat_core::audit::Record;
use lifeboat_core::repository::layout::{self, AUDIT_WIDTH, AuditObject, Key};
use lifeboat_core::verify::FindingKind;

use super::key::{Checkpoint, Flaw, MAX_CHECKPOINT_BYTES, MAX_LEAF_BYTES, Verifiers};
use crate::store::{Store, StoreError, is_there};

/// Threads that read from a store that waits on a network.
const THREADS: usize = 8;

/// The most bytes of an entry bundle.
pub(super) const MAX_BUNDLE_BYTES: u64 = AUDIT_WIDTH * (MAX_LEAF_BYTES + 2);

/// Checkpoints that are tried, from the newest on, until one counts: whoever can write can make others.
const TRIED: usize = 1000;

/// An object that may be missing or too long, both of which are no failures of the store.
pub(super) fn get(store: &dyn Store, key: &Key, limit: u64) -> Result<Result<Vec<u8>, Flaw>, StoreError> {
    match store.get(key, limit) {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(StoreError::NotFound { .. }) => Ok(Err(Flaw::new(FindingKind::Missing, "it is not there"))),
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::FileTooLarge => {
            Ok(Err(Flaw::new(FindingKind::Corrupt, format!("it is longer than {limit} bytes"))))
        }
        Err(error) => Err(error),
    }
}

/// What is wrong with an object of the log as far as its bytes and its key alone tell, without knowing whose signatures count.
pub(crate) fn misshapen(key: &Key, bytes: &[u8]) -> Option<String> {
    let note = || signed_note::Note::from_bytes(bytes).ok().filter(|note| note.to_bytes() == bytes);
    let (fits, what) = match layout::audit_object(key)? {
        AuditObject::Leaf(index) => {
            let place = note().and_then(|note| Record::decode(note.text()).ok()).map(|record| record.place.index);
            (place == Some(index), "a record of this place")
        }
        AuditObject::Checkpoint(size) => {
            let head = note().and_then(|note| tlog_tiles::Checkpoint::from_bytes(note.text()).ok());
            (head.is_some_and(|head| head.size() == size), "a checkpoint of so many records")
        }
        AuditObject::Tile { width, .. } => (bytes.len() as u64 == width * tlog_tiles::HASH_SIZE as u64, "a tile of so many hashes"),
        AuditObject::Entries(_) => (decode_bundle(bytes).is_some(), "a bundle of 256 records"),
    };
    (!fits).then(|| format!("it is not {what}"))
}

/// The entries of a bundle; `None`: it is none.
pub(super) fn decode_bundle(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (entry, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        entries.push(entry);
        bytes = rest;
    }
    (entries.len() as u64 == AUDIT_WIDTH).then_some(entries)
}

/// The bundle of entries.
pub(super) fn encode_bundle(entries: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for entry in entries {
        bytes.extend_from_slice(&u16::try_from(entry.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(entry);
    }
    Some(bytes)
}

/// Does something for every item, by several threads where that is faster. Results stand in the order of the items.
pub(super) fn in_parallel<I: Sync, T: Send>(store: &dyn Store, items: &[I], each: impl Fn(&I) -> T + Sync) -> Vec<T> {
    if !store.is_remote() || items.len() < 2 {
        return items.iter().map(each).collect();
    }
    let share = items.len().div_ceil(THREADS);
    std::thread::scope(|scope| {
        let each = &each;
        let threads: Vec<_> = items.chunks(share).map(|part| scope.spawn(move || part.iter().map(each).collect::<Vec<T>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("stores do not panic")).collect()
    })
}

/// A record as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) index: u64,
    /// The bytes of the leaf, whatever they are.
    pub(super) bytes: Vec<u8>,
    pub(super) record: Result<(Record, String), Flaw>,
}

fn found(verifiers: &Verifiers, index: u64, bytes: Result<Vec<u8>, Flaw>) -> Found {
    match bytes {
        Ok(bytes) => {
            let record = verifiers.record(&bytes, index).map(|(record, key)| (record, key.key.name().to_owned()));
            Found { index, bytes, record }
        }
        Err(flaw) => Found { index, bytes: Vec::new(), record: Err(flaw) },
    }
}

/// One record. One that arrives damaged is asked for again: what came over a network is not what is stored.
pub(super) fn leaf(store: &dyn Store, verifiers: &Verifiers, index: u64) -> Result<Found, StoreError> {
    let key = layout::audit_leaf(index);
    let first = found(verifiers, index, get(store, &key, MAX_LEAF_BYTES)?);
    match &first.record {
        Err(flaw) if flaw.kind != FindingKind::Missing => Ok(found(verifiers, index, get(store, &key, MAX_LEAF_BYTES)?)),
        _ => Ok(first),
    }
}

/// The records from `from` up to `to`, in order. A bundle is used where it is whole and all in it counts; otherwise the leaves.
pub(super) fn records(store: &dyn Store, verifiers: &Verifiers, from: u64, to: u64, mut each: impl FnMut(Found)) -> Result<(), StoreError> {
    let mut at = from;
    while at < to {
        let number = at / AUDIT_WIDTH;
        let (first, end) = (number * AUDIT_WIDTH, (number + 1) * AUDIT_WIDTH);
        if end <= to
            && let Ok(bundle) = get(store, &layout::audit_entries(number), MAX_BUNDLE_BYTES)?
            && let Some(entries) = decode_bundle(&bundle)
        {
            let all: Vec<Found> = (at..end).map(|n| found(verifiers, n, Ok(entries[(n - first) as usize].to_vec()))).collect();
            if all.iter().all(|found| found.record.is_ok()) {
                all.into_iter().for_each(&mut each);
                at = end;
                continue;
            }
        }
        let wanted: Vec<u64> = (at..end.min(to)).collect();
        for found in in_parallel(store, &wanted, |index| leaf(store, verifiers, *index)) {
            each(found?);
        }
        at = end.min(to);
    }
    Ok(())
}

/// How many records there are in a row from the first on, by asking for single ones: twice the logarithm of it. In a log with holes, fewer.
fn reach(store: &dyn Store) -> Result<u64, StoreError> {
    let there = |index: u64| is_there(store, &layout::audit_leaf(index));
    let (mut low, mut high) = (0, 1);
    while there(high - 1)? {
        low = high;
        high *= 2;
    }
    // The record low - 1 is there, and high - 1 is not.
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if there(middle - 1)? { low = middle } else { high = middle }
    }
    Ok(low)
}

/// The newest checkpoint that counts and is of more than `known` records, without listing the whole log; `None`: there is none that can be seen.
pub(super) fn newest(store: &dyn Store, verifiers: &Verifiers, known: u64) -> Result<Option<Checkpoint>, StoreError> {
    let floor = if known > 0 { known } else { reach(store)?.saturating_sub(AUDIT_WIDTH) };
    let mut listed = store.list_after(layout::AUDIT_CHECKPOINTS, &layout::audit_checkpoint(floor))?;
    if listed.is_empty() && known == 0 && floor > 0 {
        listed = store.list(layout::AUDIT_CHECKPOINTS)?;
    }
    let mut sizes: Vec<u64> = listed
        .iter()
        .filter_map(|listed| match layout::audit_object(&listed.key) {
            Some(AuditObject::Checkpoint(size)) if size > known => Some(size),
            _ => None,
        })
        .collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    for size in sizes.into_iter().take(TRIED) {
        // Twice, as with records.
        for _ in 0..2 {
            if let Ok(bytes) = get(store, &layout::audit_checkpoint(size), MAX_CHECKPOINT_BYTES)?
                && let Ok(checkpoint) = verifiers.checkpoint(&bytes)
                && checkpoint.size == size
            {
                return Ok(Some(checkpoint));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn bundles_come_back_and_damaged_ones_are_none() {
        let entries: Vec<Vec<u8>> = (0..256usize).map(|n| vec![7; n * 200]).collect();
        let bytes = encode_bundle(&entries).unwrap();
        assert_eq!(decode_bundle(&bytes).unwrap(), entries);
        assert!(decode_bundle(&bytes[..bytes.len() - 1]).is_none());
        assert!(decode_bundle(&[&bytes[..], &[0, 0]].concat()).is_none());
        assert!(decode_bundle(&[]).is_none());
        assert!(encode_bundle(&[vec![0; 65_536]]).is_none());
    }

    #[test]
    fn the_end_is_found_by_asking_for_few() {
        for size in [0u64, 1, 2, 3, 7, 8, 9, 255, 256, 257, 1000] {
            let store = MemoryStore::default();
            (0..size).for_each(|index| store.create(&layout::audit_leaf(index), b"x").unwrap());
            let (store, faults) = crate::store::FaultyStore::new(Box::new(store));
            assert_eq!(reach(&store).unwrap(), size);
            assert!(faults.trace().len() <= 2 + 2 * size.max(1).ilog2() as usize + 1, "{size}: {}", faults.trace().len());
        }
    }
}
