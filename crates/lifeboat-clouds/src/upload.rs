//! An object written piece by piece, with at most two parts in memory: one fills, one is on its way.
//!
//! Google's uploads are one row of chunks, and the condition counts when the last of them arrives. Azure's blocks are taken in any order
//! and seen by nobody until a conditional list of them makes the object.

use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::azure::block_name;
use crate::bucket::{Service, wait_before};
use crate::google::{Chunk, Progress};
use crate::object::{Owner, write_id};
use crate::{Bucket, CloudError, Kind};

/// The smallest part. Google wants multiples of 256 KiB; at 8 MiB a part is worth its request.
pub const PART_BYTES: usize = 8 << 20;

/// The most blocks of one object ("Scalability and performance targets for Blob storage").
const MAX_BLOCKS: usize = 50_000;

/// Time for giving an upload up: what stays of it is not seen by anybody, and the service forgets it after a week.
const CANCEL_TIME: Duration = Duration::from_secs(10);

/// Writes one object. Dropped without [`Upload::finish`], nothing is left that anybody sees.
pub struct Upload {
    bucket: Bucket,
    key: String,
    id: String,
    part_bytes: usize,
    filling: Vec<u8>,
    written: u64,
    crc: u32,
    parts: Option<Parts>,
}

/// An upload that did not fit one part.
struct Parts {
    /// Where Google's chunks go; nothing for Azure.
    session: String,
    /// Blocks of Azure, in their order.
    blocks: Vec<String>,
    /// Bytes in parts that are sent, the one on its way included.
    sent: u64,
    on_its_way: Option<JoinHandle<Result<(), CloudError>>>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upload({}, {} bytes)", self.key, self.written)
    }
}

impl Bucket {
    /// Begins an object of about `expected` bytes. One for Azure that is much longer than expected may need more blocks than there can
    /// be, and fails.
    pub fn upload(&self, key: &str, expected: u64) -> Upload {
        // A tenth more than was expected, in four fifths of the blocks.
        let needed = (expected + expected / 10).div_ceil(MAX_BLOCKS as u64 * 4 / 5).next_multiple_of(1 << 20);
        Upload {
            bucket: self.clone(),
            key: key.to_owned(),
            id: write_id(),
            part_bytes: PART_BYTES.max(usize::try_from(needed).unwrap_or(usize::MAX)),
            filling: Vec::new(),
            written: 0,
            crc: 0,
            parts: None,
        }
    }
}

impl Upload {
    /// Appends.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), CloudError> {
        while !bytes.is_empty() {
            // A full part is sent when more follows: what fits one part is one request.
            if self.filling.len() == self.part_bytes {
                self.send()?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.part_bytes - self.filling.len()));
            self.filling.extend_from_slice(now);
            self.written += now.len() as u64;
            self.crc = crc32c::crc32c_append(self.crc, now);
            bytes = later;
        }
        Ok(())
    }

    /// Makes the object durable and visible, whole, if nothing is there.
    ///
    /// # Errors
    ///
    /// [`Kind::Exists`] if somebody else's object is there, which stays as it is.
    pub fn finish(mut self) -> Result<(), CloudError> {
        let bucket = self.bucket.clone();
        if self.parts.is_none() {
            let bytes = Bytes::from(std::mem::take(&mut self.filling));
            return bucket.wait(bucket.put(&self.key, bytes, &self.id));
        }
        bucket.wait(self.complete())?;
        // Nothing to give up any more.
        self.parts = None;
        Ok(())
    }

    /// Sends the part that is full, once the one before it has arrived.
    fn send(&mut self) -> Result<(), CloudError> {
        let bytes = Bytes::from(std::mem::take(&mut self.filling));
        let bucket = self.bucket.clone();
        bucket.wait(async {
            let parts = match &mut self.parts {
                Some(parts) => parts,
                None => self.parts.insert(begin(&self.bucket, &self.key, &self.id).await?),
            };
            parts.arrive(&self.key).await?;
            let from = parts.sent;
            parts.sent += bytes.len() as u64;
            let (bucket, key) = (self.bucket.clone(), self.key.clone());
            parts.on_its_way = Some(match &self.bucket.inner.service {
                Service::Google(_) => {
                    let session = parts.session.clone();
                    self.bucket.spawn(async move {
                        let chunk = Chunk { session: &session, from, bytes, total: None, crc: 0 };
                        send_chunk(&bucket, &key, chunk).await
                    })
                }
                Service::Azure(_) => {
                    let block = parts.next_block(&self.key, &self.id)?;
                    self.bucket.spawn(async move { send_block(&bucket, &key, &block, bytes).await })
                }
            });
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<(), CloudError> {
        let (bucket, key) = (&self.bucket, self.key.as_str());
        let bytes = Bytes::from(std::mem::take(&mut self.filling));
        let parts = self.parts.as_mut().expect("begun by send");
        parts.arrive(key).await?;
        let done = match &bucket.inner.service {
            Service::Google(_) => {
                let total = Some(self.written);
                let chunk = Chunk { session: &parts.session, from: parts.sent, bytes, total, crc: self.crc };
                send_chunk(bucket, key, chunk).await
            }
            Service::Azure(azure) => {
                let block = parts.next_block(key, &self.id)?;
                send_block(bucket, key, &block, bytes).await?;
                let blocks = &parts.blocks;
                bucket.again("create", key, |_| azure.commit(&bucket.inner.transport, key, blocks, &self.id)).await
            }
        };
        bucket.settle(key, &self.id, self.written, done).await
    }
}

impl Bucket {
    /// A short object, written as a long one.
    pub(crate) async fn put_as_block(&self, key: &str, bytes: Bytes, id: &str) -> Result<(), CloudError> {
        let Service::Azure(azure) = &self.inner.service else { unreachable!("blocks are Azure's") };
        let (length, mut blocks) = (bytes.len() as u64, Vec::new());
        // A block is never empty, a list may be.
        if length > 0 {
            blocks.push(block_name(id, 0));
            send_block(self, key, &blocks[0], bytes).await?;
        }
        let done = self.again("create", key, |_| azure.commit(&self.inner.transport, key, &blocks, id)).await;
        self.settle(key, id, length, done).await
    }

    /// What became of the last request of an upload. What is not known any more may have been completed, in a request whose answer was
    /// lost; blocks are gone also when somebody else made an object of this name.
    async fn settle(&self, key: &str, id: &str, length: u64, done: Result<(), CloudError>) -> Result<(), CloudError> {
        let refused = match done {
            Err(error)
                if error.kind == Kind::Exists
                    || matches!(error.status, Some(404 | 410))
                    || error.code.as_deref() == Some("InvalidBlockList") =>
            {
                error
            }
            other => return other,
        };
        match self.owner(key, id, length, None).await? {
            Owner::We => Ok(()),
            Owner::Another => Err(CloudError { kind: Kind::Exists, ..refused }),
            // Deleted since: it existed when it was refused.
            Owner::Nobody if refused.kind == Kind::Exists => Err(refused),
            // An upload that is gone and left nothing can be done again from the start.
            Owner::Nobody => Err(CloudError { kind: Kind::Transient, ..refused }),
        }
    }
}

impl Parts {
    /// Waits for the part that is on its way.
    async fn arrive(&mut self, key: &str) -> Result<(), CloudError> {
        if let Some(task) = self.on_its_way.take() {
            let lost = |_| CloudError::new(Kind::Other, "create", key, "the thread that sent a part ended");
            task.await.map_err(lost)??;
        }
        Ok(())
    }

    fn next_block(&mut self, key: &str, id: &str) -> Result<String, CloudError> {
        if self.blocks.len() == MAX_BLOCKS {
            return Err(CloudError::new(Kind::Other, "create", key, format!("it is longer than {MAX_BLOCKS} blocks of its size")));
        }
        let block = block_name(id, self.blocks.len());
        self.blocks.push(block.clone());
        Ok(block)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut parts) = self.parts.take() else { return };
        let bucket = self.bucket.clone();
        bucket.wait(async {
            if let Some(task) = parts.on_its_way.take() {
                task.abort();
                let _ = task.await;
            }
            if let Service::Google(google) = &bucket.inner.service {
                bucket.count("abort");
                let cancel = google.cancel(&bucket.inner.transport, &self.key, &parts.session);
                let _ = tokio::time::timeout(CANCEL_TIME, cancel).await;
            }
        });
    }
}

async fn begin(bucket: &Bucket, key: &str, id: &str) -> Result<Parts, CloudError> {
    let session = match &bucket.inner.service {
        Service::Google(google) => bucket.again("create", key, |_| google.begin(&bucket.inner.transport, key, id)).await?,
        Service::Azure(_) => String::new(),
    };
    Ok(Parts { session, blocks: Vec::new(), sent: 0, on_its_way: None })
}

async fn send_block(bucket: &Bucket, key: &str, block: &str, bytes: Bytes) -> Result<(), CloudError> {
    let Service::Azure(azure) = &bucket.inner.service else { unreachable!("blocks are Azure's") };
    bucket.again("create", key, |_| azure.block(&bucket.inner.transport, key, block, bytes.clone())).await
}

/// Sends a chunk until the service has all of it: after trouble it is asked how far it is. Tries count from the last byte that it kept.
async fn send_chunk(bucket: &Bucket, key: &str, mut chunk: Chunk<'_>) -> Result<(), CloudError> {
    let Service::Google(google) = &bucket.inner.service else { unreachable!("chunks are Google's") };
    let transport = &bucket.inner.transport;
    let end = chunk.from + chunk.bytes.len() as u64;
    let (mut failures, mut ask) = (0, false);
    loop {
        bucket.count("create");
        let answer = if ask {
            let question = Chunk { bytes: Bytes::new(), ..chunk };
            google.chunk(transport, key, &question).await
        } else {
            google.chunk(transport, key, &chunk).await
        };
        let failed = match answer {
            Ok(Progress::Done) if chunk.total.is_some() => return Ok(()),
            Ok(Progress::Done) => return Err(CloudError::new(Kind::Other, "create", key, "the upload ended before its last part")),
            Ok(Progress::Kept(kept)) if kept == end && chunk.total.is_none() => return Ok(()),
            Ok(Progress::Kept(kept)) if kept >= chunk.from && kept < end => {
                let progress = kept > chunk.from;
                chunk.bytes = chunk.bytes.slice(usize::try_from(kept - chunk.from).expect("within the chunk")..);
                chunk.from = kept;
                if progress {
                    failures = 0;
                } else if ask {
                    // It has none of it, and is there.
                    ask = false;
                    continue;
                }
                ask = false;
                CloudError::new(Kind::Transient, "create", key, "the server kept a part of what was sent")
            }
            // All is kept, and the object is not made yet: the last part, which is then empty, is sent once more.
            Ok(Progress::Kept(kept)) if kept == end => {
                ask = true;
                CloudError::new(Kind::Transient, "create", key, "the server has not finished the upload")
            }
            Ok(Progress::Kept(_)) => return Err(CloudError::new(Kind::Other, "create", key, "the server lost a part of the upload")),
            Err(error) if error.is_transient() => {
                ask = true;
                error
            }
            Err(error) => return Err(error),
        };
        failures += 1;
        if failures >= bucket.max_attempts() {
            return Err(failed);
        }
        tokio::time::sleep(wait_before(failures)).await;
    }
}
