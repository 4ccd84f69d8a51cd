//! One object: created once, read in ranges, looked at.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ObjectLockLegalHoldStatus, ObjectLockMode};
use aws_smithy_types::{DateTime, base64};
use bytes::Bytes;

use crate::bucket::wait_before;
use crate::{Bucket, Kind, S3Error};

/// Metadata that tells one write from another: a repeated conditional write that is refused may be refused because of itself.
pub(crate) const WRITE_ID: &str = "lifeboat-write";

/// How an object is kept from being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By nobody, not even the account's owner.
    Compliance,
    /// But by who may bypass it.
    Governance,
}

/// Until when an object version cannot be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How.
    pub mode: Mode,
    /// Until when.
    pub until: SystemTime,
}

/// What the server says of an object that was created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its version, where the bucket has versions.
    pub version: Option<String>,
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its version, where the bucket has versions.
    pub version: Option<String>,
    /// When it was written, by the server's clock.
    pub modified: Option<SystemTime>,
    /// SHA-256 of it, where it was written in one request by us and the server keeps it.
    pub sha256: Option<[u8; 32]>,
    /// Until when it cannot be deleted.
    pub retention: Option<Retention>,
    /// Whether it cannot be deleted until somebody allows it.
    pub legal_hold: bool,
    /// What became of its copy in another bucket, in S3's words (`COMPLETED`, `PENDING`, `FAILED`, `REPLICA`).
    pub replication: Option<String>,
    /// How it is encrypted where it stands, in S3's words (`AES256`, `aws:kms`).
    pub encryption: Option<String>,
    /// Which write it is of.
    pub(crate) write_id: Option<String>,
}

pub(crate) fn time_of(time: &DateTime) -> Option<SystemTime> {
    SystemTime::try_from(*time).ok()
}

pub(crate) fn lock_mode(mode: Mode) -> ObjectLockMode {
    match mode {
        Mode::Compliance => ObjectLockMode::Compliance,
        Mode::Governance => ObjectLockMode::Governance,
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    base64::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// A name for one write.
pub(crate) fn write_id() -> String {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
    base64::encode(bytes)
}

impl Bucket {
    /// Creates the object if nothing is there. When it returns, the object is durable and everybody sees it.
    ///
    /// # Errors
    ///
    /// [`Kind::Exists`] if somebody else's object is there, which stays as it is.
    pub fn put_if_absent(&self, key: &str, bytes: impl Into<Bytes>, retention: Option<Retention>) -> Result<Written, S3Error> {
        self.wait(self.put(key, bytes.into(), None, retention, &write_id()))
    }

    /// The same of bytes whose SHA-256 is known already. The server compares it with what arrives, so a wrong one writes nothing.
    pub fn put_digested_if_absent(
        &self,
        key: &str,
        bytes: impl Into<Bytes>,
        digest: [u8; 32],
        retention: Option<Retention>,
    ) -> Result<Written, S3Error> {
        self.wait(self.put(key, bytes.into(), Some(base64::encode(digest)), retention, &write_id()))
    }

    /// Creates the object with a SHA-256 that is not that of its bytes, which a server that checks them refuses. True: it did.
    pub fn refuses_wrong_checksum(&self, key: &str, bytes: &[u8]) -> Result<bool, S3Error> {
        let wrong = sha256(&[bytes, b"."].concat());
        let bytes = Bytes::copy_from_slice(bytes);
        let done = self.wait(self.again("create", key, |_| self.put_once(key, bytes.clone(), None, "probe", Some(&wrong))));
        match done {
            Ok(_) => Ok(false),
            Err(error) if matches!(error.status, Some(400)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        digest: Option<String>,
        retention: Option<Retention>,
        id: &str,
    ) -> Result<Written, S3Error> {
        let length = bytes.len() as u64;
        let digest = &digest.unwrap_or_else(|| sha256(&bytes));
        let done = self
            .again("create", key, |_| {
                let bytes = bytes.clone();
                async move {
                    let checksums = self.inner.checksums.load(Ordering::Relaxed);
                    match self.put_once(key, bytes.clone(), retention, id, checksums.then_some(digest)).await {
                        // A server that does not know the header: from now on without it, if that is what it minded.
                        Err(error) if checksums && refuses_checksums(&error) => {
                            self.count("create");
                            let written = self.put_once(key, bytes, retention, id, None).await;
                            if written.is_ok() {
                                self.inner.checksums.store(false, Ordering::Relaxed);
                            }
                            written
                        }
                        other => other,
                    }
                }
            })
            .await;
        match done {
            Err(error) if error.kind == Kind::Exists => self.whose(key, id, length, Some(&bytes), error).await,
            other => other,
        }
    }

    async fn put_once(
        &self,
        key: &str,
        bytes: Bytes,
        retention: Option<Retention>,
        id: &str,
        digest: Option<&String>,
    ) -> Result<Written, S3Error> {
        let request = self.client().put_object().bucket(self.name()).key(key).if_none_match("*").metadata(WRITE_ID, id);
        let request = request
            .set_checksum_sha256(digest.cloned())
            // "Required for any request to upload an object with a retention period configured using Object Lock" (PutObject), also by the
            // bucket's default.
            .set_checksum_algorithm(digest.map(|_| ChecksumAlgorithm::Sha256))
            .set_object_lock_mode(retention.map(|retention| lock_mode(retention.mode)))
            .set_object_lock_retain_until_date(retention.map(|retention| DateTime::from(retention.until)))
            .body(ByteStream::from(bytes));
        let answer = match self.leaves_body_unsigned(digest.is_some()) {
            true => request.customize().disable_payload_signing().send().await,
            false => request.send().await,
        };
        let answer = answer.map_err(|error| S3Error::of("create", key, error))?;
        Ok(Written { version: answer.version_id().map(str::to_owned) })
    }

    /// After a refused conditional write: whether what is there is what we wrote, in a request whose answer was lost. A proxy may repeat
    /// requests as well, so the first refusal is looked at like any other.
    pub(crate) async fn whose(
        &self,
        key: &str,
        id: &str,
        length: u64,
        bytes: Option<&Bytes>,
        refused: S3Error,
    ) -> Result<Written, S3Error> {
        let head = match self.head_of(key, None).await {
            Ok(head) => head,
            // Deleted since: it existed when it was refused. An upload that is gone and left nothing can be done again from the start.
            Err(error) if error.kind == Kind::NotFound && refused.kind == Kind::Exists => return Err(refused),
            Err(error) if error.kind == Kind::NotFound => return Err(S3Error { kind: Kind::Transient, ..refused }),
            Err(error) => return Err(error),
        };
        let ours = match (&head.write_id, bytes) {
            (Some(found), _) => found == id,
            // A server that keeps no metadata: equal bytes are as good.
            (None, Some(bytes)) if head.bytes == length => {
                let mut found = Vec::new();
                self.read(key, head.version.as_deref(), None, length, &mut found).await?;
                found == *bytes
            }
            _ => false,
        };
        if ours && head.bytes == length { Ok(Written { version: head.version }) } else { Err(S3Error { kind: Kind::Exists, ..refused }) }
    }

    /// The whole object, or one version of it, if it has at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`Kind::Long`] if it has more; then nothing was read.
    pub fn get(&self, key: &str, version: Option<&str>, limit: u64) -> Result<Vec<u8>, S3Error> {
        let mut bytes = Vec::new();
        self.wait(self.read(key, version, None, limit, &mut bytes))?;
        Ok(bytes)
    }

    /// Reads the range into `buffer`, which is replaced.
    ///
    /// # Errors
    ///
    /// [`Kind::Short`] if the object ends before the range does.
    pub fn get_range(&self, key: &str, version: Option<&str>, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), S3Error> {
        buffer.clear();
        if range.start >= range.end {
            let length = self.head(key, version)?.bytes;
            return if length < range.end { Err(short(key, length, range.end)) } else { Ok(()) };
        }
        let wanted = range.end - range.start;
        self.wait(self.read(key, version, Some(range), wanted, buffer))
    }

    /// Reads until everything is there: what a broken connection cut off is asked for again from where it broke. Tries count from the
    /// last byte that came, so a long object over a bad line ends.
    async fn read(
        &self,
        key: &str,
        version: Option<&str>,
        range: Option<Range<u64>>,
        limit: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<(), S3Error> {
        buffer.clear();
        let start = range.as_ref().map_or(0, |range| range.start);
        // The length to read, once it is known, and the object that it is of.
        let mut wanted = range.as_ref().map(|range| range.end - range.start);
        let mut tag: Option<String> = None;
        let mut failures = 0;
        loop {
            let had = buffer.len();
            let place = Place { key, version, from: start + had as u64, range: range.clone(), tag: tag.as_deref().filter(|_| had > 0) };
            self.count("read");
            let failed = match self.open(&place, limit).await {
                Ok(answer) => {
                    tag = answer.e_tag().map(str::to_owned).or(tag);
                    let whole = *wanted.get_or_insert_with(|| length_of(&answer));
                    match self.pour(key, answer, whole, buffer).await {
                        Ok(()) => return Ok(()),
                        Err(error) => error,
                    }
                }
                // It was replaced while it was read, which nobody does to ours: once more from the start.
                Err(error) if error.kind == Kind::Exists => {
                    buffer.clear();
                    wanted = range.as_ref().map(|range| range.end - range.start);
                    S3Error { kind: Kind::Transient, ..error }
                }
                Err(error) => error,
            };
            failures = if buffer.len() > had { 1 } else { failures + 1 };
            if !failed.is_transient() || failures >= self.max_attempts() {
                let reason = match failures {
                    2.. if failed.is_transient() && !failed.reason.ends_with("tries)") => format!("{} ({failures} tries)", failed.reason),
                    _ => failed.reason,
                };
                return Err(S3Error { reason, ..failed });
            }
            tokio::time::sleep(wait_before(failures)).await;
        }
    }

    /// The head of an answer, checked: it is of the bytes that were asked for.
    async fn open(&self, place: &Place<'_>, limit: u64) -> Result<GetObjectOutput, S3Error> {
        let Place { key, from, .. } = *place;
        let header = match &place.range {
            Some(range) => Some(format!("bytes={from}-{}", range.end - 1)),
            None => (from > 0).then(|| format!("bytes={from}-")),
        };
        let request = self.client().get_object().bucket(self.name()).key(key);
        let request =
            request.set_version_id(place.version.map(str::to_owned)).set_range(header.clone()).set_if_match(place.tag.map(str::to_owned));
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                let error = S3Error::of("read", key, error);
                // The range begins behind the end.
                if error.status == Some(416) {
                    let length = self.head_of(key, place.version).await?.bytes;
                    let end = place.range.as_ref().map_or(from, |range| range.end);
                    return Err(if length < end { short(key, length, end) } else { error });
                }
                return Err(error);
            }
        };
        let other = |what: &str| S3Error::new(Kind::Other, "read", key, format!("the server answered {what}"));
        let Some(header) = header else {
            let length = length_of(&answer);
            return if length > limit { Err(long(key, length, limit)) } else { Ok(answer) };
        };
        // `bytes first-last/length`, RFC 9110, section 14.4.
        let given = answer.content_range().and_then(|text| text.strip_prefix("bytes ")).and_then(|text| {
            let (span, length) = text.split_once('/')?;
            let (first, last) = span.split_once('-')?;
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, length.parse::<u64>().ok()))
        });
        let Some((first, last, length)) = given else { return Err(other(&format!("without a range to {header}"))) };
        if let (Some(range), Some(length)) = (&place.range, length)
            && length < range.end
        {
            return Err(short(key, length, range.end));
        }
        if first != from || place.range.as_ref().is_some_and(|range| last + 1 != range.end) {
            return Err(other(&format!("bytes {first} to {last} to {header}")));
        }
        Ok(answer)
    }

    /// The body of an answer, up to `whole` bytes in the buffer.
    async fn pour(&self, key: &str, answer: GetObjectOutput, whole: u64, buffer: &mut Vec<u8>) -> Result<(), S3Error> {
        let lost = |reason: String| S3Error::new(Kind::Transient, "read", key, reason);
        let mut body = answer.body;
        buffer.reserve((whole.saturating_sub(buffer.len() as u64)).min(64 << 20) as usize);
        loop {
            let next = tokio::time::timeout(self.inner.read_timeout, body.try_next()).await;
            match next.map_err(|_| lost(format!("no byte came for {} s", self.inner.read_timeout.as_secs())))? {
                Ok(Some(part)) => {
                    if (buffer.len() + part.len()) as u64 > whole {
                        return Err(S3Error::new(Kind::Other, "read", key, "more bytes came than the server said"));
                    }
                    buffer.extend_from_slice(&part);
                }
                Ok(None) if buffer.len() as u64 == whole => return Ok(()),
                Ok(None) => return Err(lost(format!("the connection ended after {} of {whole} bytes", buffer.len()))),
                Err(error) => {
                    return Err(lost(format!(
                        "the connection broke after {} of {whole} bytes: {}",
                        buffer.len(),
                        lifeboat_aws::clean(&error.to_string())
                    )));
                }
            }
        }
    }

    /// What is known of an object, or of one version of it.
    pub fn head(&self, key: &str, version: Option<&str>) -> Result<Head, S3Error> {
        self.wait(self.head_of(key, version))
    }

    pub(crate) async fn head_of(&self, key: &str, version: Option<&str>) -> Result<Head, S3Error> {
        let answer = self
            .again("look at", key, |_| async move {
                let request = self.client().head_object().bucket(self.name()).key(key).checksum_mode(ChecksumMode::Enabled);
                request.set_version_id(version.map(str::to_owned)).send().await.map_err(|error| S3Error::of("look at", key, error))
            })
            .await?;
        let mode = match answer.object_lock_mode() {
            Some(ObjectLockMode::Compliance) => Some(Mode::Compliance),
            Some(ObjectLockMode::Governance) => Some(Mode::Governance),
            _ => None,
        };
        let until = answer.object_lock_retain_until_date().and_then(time_of);
        Ok(Head {
            bytes: answer.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0),
            version: answer.version_id().map(str::to_owned),
            modified: answer.last_modified().and_then(time_of),
            sha256: answer.checksum_sha256().and_then(|text| base64::decode(text).ok()).and_then(|bytes| bytes.try_into().ok()),
            retention: mode.zip(until).map(|(mode, until)| Retention { mode, until }),
            legal_hold: answer.object_lock_legal_hold_status() == Some(&ObjectLockLegalHoldStatus::On),
            replication: answer.replication_status().map(|status| status.as_str().to_owned()),
            encryption: answer.server_side_encryption().map(|how| how.as_str().to_owned()),
            write_id: answer.metadata().and_then(|metadata| metadata.get(WRITE_ID).cloned()),
        })
    }

    /// Deletes: without a version, by a delete marker where the bucket has versions. Returns the marker's version.
    ///
    /// # Errors
    ///
    /// [`Kind::Denied`] if the version is under retention.
    pub fn delete(&self, key: &str, version: Option<&str>) -> Result<Option<String>, S3Error> {
        let answer = self.wait(self.again("delete", key, |_| async move {
            let request = self.client().delete_object().bucket(self.name()).key(key).set_version_id(version.map(str::to_owned));
            request.send().await.map_err(|error| S3Error::of("delete", key, error))
        }))?;
        Ok(answer.version_id().filter(|_| answer.delete_marker() == Some(true)).map(str::to_owned))
    }

    /// Makes a version stay until a later time. It can only be extended.
    pub fn retain(&self, key: &str, version: Option<&str>, retention: Retention) -> Result<(), S3Error> {
        use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode};
        let mode = match retention.mode {
            Mode::Compliance => ObjectLockRetentionMode::Compliance,
            Mode::Governance => ObjectLockRetentionMode::Governance,
        };
        let retention = ObjectLockRetention::builder().mode(mode).retain_until_date(DateTime::from(retention.until)).build();
        self.wait(self.again("retain", key, |_| {
            let request = self.client().put_object_retention().bucket(self.name()).key(key).set_version_id(version.map(str::to_owned));
            let request = request.retention(retention.clone()).send();
            async move { request.await.map_err(|error| S3Error::of("retain", key, error)) }
        }))?;
        Ok(())
    }
}

/// What is asked for.
struct Place<'a> {
    key: &'a str,
    version: Option<&'a str>,
    from: u64,
    range: Option<Range<u64>>,
    tag: Option<&'a str>,
}

fn length_of(answer: &GetObjectOutput) -> u64 {
    answer.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0)
}

fn short(key: &str, length: u64, wanted: u64) -> S3Error {
    S3Error::new(Kind::Short { length }, "read", key, format!("it ends at byte {length}, before {wanted}"))
}

fn long(key: &str, length: u64, limit: u64) -> S3Error {
    S3Error::new(Kind::Long { length }, "read", key, format!("{length} bytes, more than {limit}"))
}

/// Whether this may be the answer of a server that does not know `x-amz-checksum-sha256`.
pub(crate) fn refuses_checksums(error: &S3Error) -> bool {
    error.kind == Kind::Unsupported
        || matches!(error.code.as_deref(), Some("InvalidRequest" | "InvalidArgument" | "XNotImplemented" | "UnsupportedHeader"))
}
