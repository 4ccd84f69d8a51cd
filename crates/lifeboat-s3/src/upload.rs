//! An object written piece by piece, with at most two parts in memory: one fills, one is on its way.

use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use aws_smithy_types::DateTime;
use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::object::{WRITE_ID, lock_mode, refuses_checksums, sha256, write_id};
use crate::{Bucket, Kind, Retention, S3Error, Written};

/// The smallest part. S3 takes 5 MiB; at 8 a part is worth its request.
pub const PART_BYTES: usize = 8 << 20;

/// The most parts of one object ("Amazon S3 multipart upload limits").
pub const MAX_PARTS: u64 = 10_000;

/// Time for giving an upload up: what stays of it is not seen by anybody, and the bucket's lifecycle ends it.
const ABORT_TIME: Duration = Duration::from_secs(10);

/// Writes one object. Dropped without [`Upload::finish`], nothing is left.
pub struct Upload {
    bucket: Bucket,
    key: String,
    id: String,
    retention: Option<Retention>,
    part_bytes: usize,
    filling: Vec<u8>,
    written: u64,
    parts: Option<Parts>,
}

/// An upload that did not fit one part.
struct Parts {
    upload: String,
    checksums: bool,
    done: Vec<CompletedPart>,
    on_its_way: Option<JoinHandle<Result<CompletedPart, S3Error>>>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upload({}, {} bytes)", self.key, self.written)
    }
}

impl Bucket {
    /// Begins an object of about `expected` bytes. All parts but the last have one size, as some servers demand; an object that is much
    /// longer than expected may need more than [`MAX_PARTS`] of them, and fails.
    pub fn upload(&self, key: &str, expected: u64, retention: Option<Retention>) -> Upload {
        // A tenth more than was expected, in four fifths of the parts.
        let needed = (expected + expected / 10).div_ceil(MAX_PARTS * 4 / 5).next_multiple_of(1 << 20);
        Upload {
            bucket: self.clone(),
            key: key.to_owned(),
            id: write_id(),
            retention,
            part_bytes: PART_BYTES.max(usize::try_from(needed).unwrap_or(usize::MAX)),
            filling: Vec::new(),
            written: 0,
            parts: None,
        }
    }
}

impl Bucket {
    /// Creates the object if nothing is there, in parts also where one request would do: whether a server heeds the condition there as
    /// well is seen by doing it.
    pub fn put_in_parts_if_absent(&self, key: &str, bytes: &[u8], retention: Option<Retention>) -> Result<Written, S3Error> {
        let mut upload = self.upload(key, 0, retention);
        upload.filling.extend_from_slice(bytes);
        upload.written = bytes.len() as u64;
        upload.send()?;
        let written = self.wait(upload.complete())?;
        upload.parts = None;
        Ok(written)
    }
}

impl Upload {
    /// Appends.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), S3Error> {
        while !bytes.is_empty() {
            // A full part is sent when more follows: what fits one part is one request.
            if self.filling.len() == self.part_bytes {
                self.send()?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.part_bytes - self.filling.len()));
            self.filling.extend_from_slice(now);
            self.written += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Makes the object durable and visible, whole, if nothing is there.
    ///
    /// # Errors
    ///
    /// [`Kind::Exists`] if somebody else's object is there, which stays as it is.
    pub fn finish(mut self) -> Result<Written, S3Error> {
        if self.parts.is_none() {
            let bytes = Bytes::from(std::mem::take(&mut self.filling));
            return self.bucket.wait(self.bucket.put(&self.key, bytes, None, self.retention, &self.id));
        }
        self.send()?;
        let bucket = self.bucket.clone();
        let written = bucket.wait(self.complete())?;
        // Nothing to give up any more.
        self.parts = None;
        Ok(written)
    }

    /// Sends the part that is full, once the one before it has arrived.
    fn send(&mut self) -> Result<(), S3Error> {
        let bucket = self.bucket.clone();
        let bytes = Bytes::from(std::mem::take(&mut self.filling));
        bucket.wait(async {
            let parts = match &mut self.parts {
                Some(parts) => parts,
                None => self.parts.insert(begin(&self.bucket, &self.key, &self.id, self.retention).await?),
            };
            parts.arrive(&self.key).await?;
            let number = parts.done.len() as u64 + 1;
            if number > MAX_PARTS {
                let reason = format!("it is longer than {MAX_PARTS} parts of {} bytes", self.part_bytes);
                return Err(S3Error::new(Kind::Other, "create", &self.key, reason));
            }
            let part = send_part(self.bucket.clone(), self.key.clone(), parts.upload.clone(), number as i32, bytes, parts.checksums);
            parts.on_its_way = Some(self.bucket.spawn(part));
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<Written, S3Error> {
        let (bucket, key) = (&self.bucket, self.key.as_str());
        let parts = self.parts.as_mut().expect("begun by send");
        parts.arrive(key).await?;
        let request = bucket.client().complete_multipart_upload().bucket(bucket.name()).key(key).upload_id(&parts.upload);
        let list = CompletedMultipartUpload::builder().set_parts(Some(parts.done.clone())).build();
        let request = request.if_none_match("*").multipart_upload(list);
        let done = bucket
            .again("create", key, |_| {
                let request = request.clone();
                async move {
                    let answer = request.send().await.map_err(|error| S3Error::of("create", key, error))?;
                    // The answer begins with status 200 before the work is done; without a tag it is no success.
                    match answer.e_tag() {
                        Some(_) => Ok(Written { version: answer.version_id().map(str::to_owned) }),
                        None => Err(S3Error::new(Kind::Transient, "create", key, "status 200 without a result")),
                    }
                }
            })
            .await;
        match done {
            // Also an upload that is not known any more may be one that was completed, in a request whose answer was lost.
            Err(error) if error.kind == Kind::Exists || error.code.as_deref() == Some("NoSuchUpload") => {
                bucket.whose(key, &self.id, self.written, None, error).await
            }
            other => other,
        }
    }
}

impl Parts {
    /// Waits for the part that is on its way.
    async fn arrive(&mut self, key: &str) -> Result<(), S3Error> {
        if let Some(task) = self.on_its_way.take() {
            let lost = |_| S3Error::new(Kind::Other, "create", key, "the thread that sent a part ended");
            self.done.push(task.await.map_err(lost)??);
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut parts) = self.parts.take() else { return };
        let bucket = self.bucket.clone();
        let request = bucket.client().abort_multipart_upload().bucket(bucket.name()).key(&self.key).upload_id(&parts.upload);
        bucket.wait(async {
            // A part that arrives after the end would stay.
            if let Some(task) = parts.on_its_way.take() {
                task.abort();
                let _ = task.await;
            }
            bucket.count("abort");
            let _ = tokio::time::timeout(ABORT_TIME, request.send()).await;
        });
    }
}

async fn begin(bucket: &Bucket, key: &str, id: &str, retention: Option<Retention>) -> Result<Parts, S3Error> {
    let request = bucket.client().create_multipart_upload().bucket(bucket.name()).key(key).metadata(WRITE_ID, id);
    let request = request
        .set_object_lock_mode(retention.map(|retention| lock_mode(retention.mode)))
        .set_object_lock_retain_until_date(retention.map(|retention| DateTime::from(retention.until)));
    let (upload, checksums) = bucket
        .again("create", key, |_| {
            let request = request.clone();
            async move {
                let checksums = bucket.inner.checksums.load(Ordering::Relaxed);
                let first = request.clone().set_checksum_algorithm(checksums.then_some(ChecksumAlgorithm::Sha256)).send().await;
                let (answer, checksums) = match first.map_err(|error| S3Error::of("create", key, error)) {
                    Err(error) if checksums && refuses_checksums(&error) => {
                        bucket.count("create");
                        (request.send().await.map_err(|error| S3Error::of("create", key, error))?, false)
                    }
                    other => (other?, checksums),
                };
                match answer.upload_id() {
                    Some(upload) => Ok((upload.to_owned(), checksums)),
                    None => Err(S3Error::new(Kind::Other, "create", key, "the server gave no upload id")),
                }
            }
        })
        .await?;
    Ok(Parts { upload, checksums, done: Vec::new(), on_its_way: None })
}

async fn send_part(
    bucket: Bucket,
    key: String,
    upload: String,
    number: i32,
    bytes: Bytes,
    checksums: bool,
) -> Result<CompletedPart, S3Error> {
    let digest = checksums.then(|| sha256(&bytes));
    let key = key.as_str();
    let answer = bucket
        .again("create", key, |_| {
            let request = bucket.client().upload_part().bucket(bucket.name()).key(key).upload_id(&upload).part_number(number);
            let request = request.set_checksum_sha256(digest.clone()).body(ByteStream::from(bytes.clone()));
            let unsigned = bucket.leaves_body_unsigned(digest.is_some());
            async move {
                let answer = match unsigned {
                    true => request.customize().disable_payload_signing().send().await,
                    false => request.send().await,
                };
                answer.map_err(|error| S3Error::of("create", key, error))
            }
        })
        .await?;
    let tag = answer.e_tag().ok_or_else(|| S3Error::new(Kind::Other, "create", key, "the server gave no tag of a part"))?;
    Ok(CompletedPart::builder().part_number(number).e_tag(tag).set_checksum_sha256(digest).build())
}
