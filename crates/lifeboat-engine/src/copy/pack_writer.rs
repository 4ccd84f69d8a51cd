//! Packs: written by workers as they fill them, made durable and named by threads of their own.

use std::sync::Mutex;

use crossbeam_channel::Receiver;
use lifeboat_core::repository::{
    Id,
    extent::{EXTENT_BYTES, Fragment},
    layout,
    manifest::PackEntry,
    pack::{self, TAG_BYTES},
};

use super::{Alarm, CopyError, Shared};
use crate::seal::{Compressor, FrameKey, Sealing, seal_frame};
use crate::sha256;
use crate::store::{ObjectWriter, Store, StoreError};

/// Threads that make finished packs durable. Over a long way one connection carries some tens of MB/s, whatever is at its ends, so there are
/// more uploads at the same time; a disk was measured slower with more than two.
pub(super) fn store_threads(remote: bool, workers: usize) -> usize {
    if remote { workers.clamp(4, 8) } else { 2 }
}

/// Sealed bytes that are handed to the store at once: hashed and written while they are still in the
/// core's cache. A whole pack at once was measured 15 % slower: it goes through memory three times.
const WRITE_BYTES: usize = 512 << 10;

/// Gives out indexes for packs and keeps what became of them.
pub(super) struct PackWriter<'a> {
    store: &'a dyn Store,
    sealing: Sealing,
    /// Bytes at which a pack is full.
    limit: usize,
    packs: Mutex<Vec<Option<PackEntry>>>,
    boot: Mutex<Vec<u32>>,
}

/// A finished pack, written but not yet durable and without its name.
pub(super) struct FullPack<'a> {
    index: u32,
    entry: PackEntry,
    writer: Box<dyn ObjectWriter + 'a>,
}

/// A pack that one worker fills.
pub(super) struct OpenPack<'a> {
    index: u32,
    id: Id,
    key: FrameKey,
    digest: aws_lc_rs::digest::Context,
    writer: Box<dyn ObjectWriter + 'a>,
    /// Bytes that the store has.
    written: u64,
    /// Sealed bytes that it has not.
    pending: Vec<u8>,
}

impl<'a> PackWriter<'a> {
    pub(super) fn new(store: &'a dyn Store, sealing: Sealing, limit: usize) -> Self {
        Self { store, sealing, limit, packs: Mutex::default(), boot: Mutex::default() }
    }

    pub(super) fn begin(&self, boot: bool) -> Result<OpenPack<'a>, CopyError> {
        let writer = self.store.writer()?;
        let index = {
            let mut packs = self.packs.lock().expect("no panic while held");
            packs.push(None);
            (packs.len() - 1) as u32
        };
        if boot {
            self.boot.lock().expect("no panic while held").push(index);
        }
        let id = crate::random::id();
        let mut pending = Vec::with_capacity(WRITE_BYTES + EXTENT_BYTES as usize + TAG_BYTES + 1);
        pending.extend_from_slice(&pack::encode_header(id, self.sealing.suite()));
        let digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        Ok(OpenPack { index, id, key: self.sealing.pack(id), digest, writer, written: 0, pending })
    }

    /// Whether another extent might not fit.
    pub(super) fn is_full(&self, open: &OpenPack<'_>) -> bool {
        open.length() + 1 + EXTENT_BYTES + TAG_BYTES as u64 > self.limit as u64
    }

    pub(super) fn finish(self) -> (Vec<PackEntry>, Vec<u32>) {
        let packs = self.packs.into_inner().expect("no panic while held");
        let packs = packs.into_iter().map(|pack| pack.expect("every pack was stored before the copy ended")).collect();
        let mut boot = self.boot.into_inner().expect("no panic while held");
        boot.sort_unstable();
        (packs, boot)
    }
}

impl<'a> OpenPack<'a> {
    fn length(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    /// Seals one fragment into the pack.
    pub(super) fn add(&mut self, compressor: &mut Compressor, plain: &[u8], bitmap: u32) -> Result<Fragment, CopyError> {
        let check = *blake3::hash(plain).as_bytes().first_chunk().expect("BLAKE3 has 32 bytes");
        let offset = self.length();
        let length = seal_frame(self.id, &self.key, compressor, plain, offset, &mut self.pending);
        if self.pending.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(Fragment { bitmap, pack: self.index, offset: offset as u32, length, check })
    }

    fn flush(&mut self) -> Result<(), CopyError> {
        self.digest.update(&self.pending);
        self.writer.write(&self.pending)?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    pub(super) fn close(mut self) -> Result<FullPack<'a>, CopyError> {
        self.flush()?;
        let sha256 = sha256::finish(self.digest);
        Ok(FullPack { index: self.index, entry: PackEntry { sha256, id: self.id, bytes: self.written }, writer: self.writer })
    }
}

/// Makes packs durable and gives them their names, until no more come.
pub(super) fn store_packs<'a>(shared: &Shared<'a>, packs: Receiver<FullPack<'a>>) {
    let _alarm = Alarm(shared);
    for full in packs {
        if shared.check().is_err() {
            continue;
        }
        match full.writer.commit(&layout::pack(full.entry.sha256)) {
            // The name is the digest of the bytes: what is there is ours, from an answer that got lost.
            Ok(()) | Err(StoreError::Exists { .. }) => {
                shared.packs.packs.lock().expect("no panic while held")[full.index as usize] = Some(full.entry);
            }
            Err(error) => shared.fail(error.into()),
        }
    }
}
