//! Objects as streams: [`Read`] over ranges, [`Write`] into a writer. Nothing is interpreted here.

use std::io::{self, Read, Write};

use lifeboat_core::repository::layout::Key;

use super::{ObjectWriter, Store, StoreError, read_range};

/// How much of a long object is read at once.
pub(crate) const RANGE_BYTES: u64 = 1 << 20;

/// An object read range by range.
pub(crate) struct StoreReader<'a> {
    store: &'a dyn Store,
    key: Key,
    pub(crate) length: u64,
    at: u64,
    buffer: Vec<u8>,
    used: usize,
    /// The error that a caller saw only as a failed read.
    pub(crate) failed: Option<StoreError>,
}

impl<'a> StoreReader<'a> {
    pub(crate) fn open(store: &'a dyn Store, key: &Key) -> Result<Self, StoreError> {
        let length = store.length(key)?;
        Ok(Self { store, key: key.clone(), length, at: 0, buffer: Vec::new(), used: 0, failed: None })
    }

    /// The same for an object that has at most `limit` bytes, as far as is known: all of it is asked for at once where every question costs
    /// a round trip, and is in memory then.
    pub(crate) fn open_at_once(store: &'a dyn Store, key: &Key, limit: u64) -> Result<Self, StoreError> {
        if !store.is_remote() {
            return Self::open(store, key);
        }
        match store.get(key, limit) {
            Ok(buffer) => {
                let length = buffer.len() as u64;
                Ok(Self { store, key: key.clone(), length, at: length, buffer, used: 0, failed: None })
            }
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::FileTooLarge => Self::open(store, key),
            Err(error) => Err(error),
        }
    }

    /// The next bytes, up to [`RANGE_BYTES`].
    pub(crate) fn next_range(&mut self) -> Result<Option<&[u8]>, StoreError> {
        let end = self.length.min(self.at + RANGE_BYTES);
        if self.at == end {
            return Ok(None);
        }
        read_range(self.store, &self.key, self.at..end, &mut self.buffer)?;
        self.at = end;
        self.used = self.buffer.len();
        Ok(Some(&self.buffer))
    }
}

impl Read for StoreReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.used == self.buffer.len() {
            match self.next_range() {
                Ok(None) => return Ok(0),
                Ok(Some(_)) => self.used = 0,
                Err(error) => {
                    let text = error.to_string();
                    self.failed = Some(error);
                    return Err(io::Error::other(text));
                }
            }
        }
        let part = &self.buffer[self.used..];
        let length = part.len().min(out.len());
        out[..length].copy_from_slice(&part[..length]);
        self.used += length;
        Ok(length)
    }
}

/// An object writer as an [`io::Write`]; keeps the store's error, which [`io::Error`] would blur.
pub(crate) struct StoreWrite<'s> {
    pub(crate) writer: Box<dyn ObjectWriter + 's>,
    pub(crate) failed: Option<StoreError>,
}

impl Write for StoreWrite<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.writer.write(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                let text = error.to_string();
                self.failed = Some(error);
                Err(io::Error::other(text))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
