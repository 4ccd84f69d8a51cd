//! Packs: filled by workers, named and stored by threads of their own.

use std::sync::Mutex;

use crossbeam_channel::Receiver;
use lifeboat_core::repository::{
    Id, Sha256,
    extent::Fragment,
    layout,
    manifest::PackEntry,
    pack::{self, TAG_BYTES},
};

use super::{CopyError, Shared};
use crate::seal::{Compressor, FrameKey, Sealing, seal_frame};
use crate::store::{Store, StoreError};

/// Threads that hash and store finished packs.
pub(super) const STORE_THREADS: usize = 2;

/// Gives out indexes for packs and keeps what became of them.
pub(super) struct PackWriter<'a> {
    store: &'a dyn Store,
    sealing: Sealing,
    /// Bytes at which a pack is full.
    limit: usize,
    packs: Mutex<Vec<Option<PackEntry>>>,
    boot: Mutex<Vec<u32>>,
    /// Buffers to use again: fresh ones cost a page fault for every 4 KiB.
    spare: Mutex<Vec<Vec<u8>>>,
}

/// A finished pack on its way to the store.
pub(super) struct FullPack {
    index: u32,
    id: Id,
    bytes: Vec<u8>,
}

/// A pack that one worker fills.
pub(super) struct OpenPack {
    index: u32,
    id: Id,
    key: FrameKey,
    bytes: Vec<u8>,
}

impl<'a> PackWriter<'a> {
    pub(super) fn new(store: &'a dyn Store, sealing: Sealing, limit: usize) -> Self {
        Self { store, sealing, limit, packs: Mutex::default(), boot: Mutex::default(), spare: Mutex::default() }
    }

    pub(super) fn begin(&self, boot: bool) -> OpenPack {
        let index = {
            let mut packs = self.packs.lock().expect("no panic while held");
            packs.push(None);
            (packs.len() - 1) as u32
        };
        if boot {
            self.boot.lock().expect("no panic while held").push(index);
        }
        let id = crate::random::id();
        let mut bytes = self.spare.lock().expect("no panic while held").pop().unwrap_or_default();
        bytes.clear();
        bytes.reserve(self.limit);
        bytes.extend_from_slice(&pack::encode_header(id, self.sealing.suite()));
        OpenPack { index, id, key: self.sealing.pack(id), bytes }
    }

    /// Whether another extent might not fit.
    pub(super) fn is_full(&self, open: &OpenPack) -> bool {
        open.bytes.len() + 1 + lifeboat_core::repository::extent::EXTENT_BYTES as usize + TAG_BYTES > self.limit
    }

    pub(super) fn finish(self) -> (Vec<PackEntry>, Vec<u32>) {
        let packs = self.packs.into_inner().expect("no panic while held");
        let packs = packs.into_iter().map(|pack| pack.expect("every pack was stored before the copy ended")).collect();
        let mut boot = self.boot.into_inner().expect("no panic while held");
        boot.sort_unstable();
        (packs, boot)
    }
}

impl OpenPack {
    /// Seals one fragment into the pack.
    pub(super) fn add(&mut self, compressor: &mut Compressor, plain: &[u8], bitmap: u32) -> Fragment {
        let check = *blake3::hash(plain).as_bytes().first_chunk().expect("BLAKE3 has 32 bytes");
        let offset = self.bytes.len() as u32;
        let length = seal_frame(self.id, &self.key, compressor, plain, &mut self.bytes);
        Fragment { bitmap, pack: self.index, offset, length, check }
    }

    pub(super) fn close(self) -> FullPack {
        FullPack { index: self.index, id: self.id, bytes: self.bytes }
    }
}

/// Stores packs until no more come.
pub(super) fn store_packs(shared: &Shared<'_>, packs: Receiver<FullPack>) {
    for full in packs {
        if shared.check().is_err() {
            continue;
        }
        match store_pack(&shared.packs, &full) {
            Ok(entry) => {
                shared.packs.packs.lock().expect("no panic while held")[full.index as usize] = Some(entry);
                shared.packs.spare.lock().expect("no panic while held").push(full.bytes);
            }
            Err(error) => shared.fail(error),
        }
    }
}

fn store_pack(writer: &PackWriter<'_>, full: &FullPack) -> Result<PackEntry, CopyError> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &full.bytes);
    let sha256 = Sha256(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"));
    match writer.store.create(&layout::pack(sha256), &full.bytes) {
        // The name is the digest of the bytes: what is there is ours, from an answer that got lost.
        Ok(()) | Err(StoreError::Exists { .. }) => Ok(PackEntry { sha256, id: full.id, bytes: full.bytes.len() as u64 }),
        Err(error) => Err(error.into()),
    }
}
