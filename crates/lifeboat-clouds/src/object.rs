//! One object: created once, read in ranges, looked at, taken away.

use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt as _;
use object_store::path::Path;
use object_store::{Attribute, GetOptions, GetRange, GetResult};

use crate::bucket::{Service, wait_before};
use crate::http::{Noted, note, taken};
use crate::{Bucket, CloudError, Kind};

/// Metadata that tells one write from another: a repeated conditional write that is refused may be refused because of itself. Azure
/// takes no hyphen.
pub(crate) const WRITE_ID: &str = "lifeboatwrite";

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was written, by the server's clock.
    pub modified: SystemTime,
    /// Its version or generation, where the bucket has some.
    pub version: Option<String>,
    /// Which write it is of.
    pub(crate) write_id: Option<String>,
}

/// Whose object is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This write's.
    We,
    /// That of another write.
    Another,
    /// None is there.
    Nobody,
}

/// A name for one write.
pub(crate) fn write_id() -> String {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
    hex::encode(bytes)
}

fn path(action: &'static str, key: &str) -> Result<Path, CloudError> {
    Path::parse(key).map_err(|_| CloudError::new(Kind::Other, action, key, "no object can have this name"))
}

impl Bucket {
    /// Creates the object if nothing is there. When it returns, the object is durable and everybody sees it.
    ///
    /// # Errors
    ///
    /// [`Kind::Exists`] if somebody else's object is there, which stays as it is.
    pub fn put_if_absent(&self, key: &str, bytes: impl Into<Bytes>) -> Result<(), CloudError> {
        self.wait(self.put(key, bytes.into(), &write_id()))
    }

    pub(crate) async fn put(&self, key: &str, bytes: Bytes, id: &str) -> Result<(), CloudError> {
        let length = bytes.len() as u64;
        let done = self
            .again("create", key, |_| {
                let bytes = bytes.clone();
                async move {
                    match &self.inner.service {
                        Service::Google(google) => google.put(&self.inner.transport, key, bytes, id).await,
                        Service::Azure(azure) => azure.put(&self.inner.transport, key, bytes, id).await,
                    }
                }
            })
            .await;
        let refused = match done {
            Err(error) if error.kind == Kind::Exists => error,
            other => return other,
        };
        match (self.owner(key, id, length, Some(&bytes)).await?, &self.inner.service) {
            (Owner::We, _) => Ok(()),
            // Azure refuses also where nothing is but blocks of a writer that went away, for a week. A list of blocks is taken there.
            (Owner::Nobody, Service::Azure(_)) => self.put_as_block(key, bytes, id).await,
            // Deleted since: it existed when it was refused.
            (Owner::Nobody | Owner::Another, _) => Err(refused),
        }
    }

    /// After a refused write: whose object is there. It may be what we wrote, in a request whose answer was lost. A proxy may repeat
    /// requests as well, so the first refusal is looked at like any other.
    pub(crate) async fn owner(&self, key: &str, id: &str, length: u64, bytes: Option<&Bytes>) -> Result<Owner, CloudError> {
        let head = match self.head_of(key).await {
            Ok(head) => head,
            Err(error) if error.kind == Kind::NotFound => return Ok(Owner::Nobody),
            Err(error) => return Err(error),
        };
        let ours = match (&head.write_id, bytes) {
            (Some(found), _) => found == id,
            // A server that keeps no metadata: equal bytes are as good.
            (None, Some(bytes)) if head.bytes == length => {
                let mut found = Vec::new();
                self.read(key, None, length, &mut found).await?;
                found == *bytes
            }
            _ => false,
        };
        Ok(if ours && head.bytes == length { Owner::We } else { Owner::Another })
    }

    /// The whole object, if it has at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`Kind::Long`] if it has more; then nothing was read.
    pub fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, CloudError> {
        let mut bytes = Vec::new();
        self.wait(self.read(key, None, limit, &mut bytes))?;
        Ok(bytes)
    }

    /// Reads the range into `buffer`, which is replaced.
    ///
    /// # Errors
    ///
    /// [`Kind::Short`] if the object ends before the range does.
    pub fn get_range(&self, key: &str, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), CloudError> {
        buffer.clear();
        if range.start >= range.end {
            let length = self.head(key)?.bytes;
            return if length < range.end { Err(short(key, length, range.end)) } else { Ok(()) };
        }
        let wanted = range.end - range.start;
        self.wait(self.read(key, Some(range), wanted, buffer))
    }

    /// Reads until everything is there: what a broken connection cut off is asked for again from where it broke. Tries count from the
    /// last byte that came, so a long object over a bad line ends.
    async fn read(&self, key: &str, range: Option<Range<u64>>, limit: u64, buffer: &mut Vec<u8>) -> Result<(), CloudError> {
        buffer.clear();
        let start = range.as_ref().map_or(0, |range| range.start);
        // The length to read, once it is known, and the object that it is of.
        let mut wanted = range.as_ref().map(|range| range.end - range.start);
        let mut tag: Option<String> = None;
        let mut failures = 0;
        loop {
            let had = buffer.len();
            let from = start + had as u64;
            let options = GetOptions {
                range: match &range {
                    Some(range) => Some(GetRange::Bounded(from..range.end)),
                    None => (had > 0).then_some(GetRange::Offset(from)),
                },
                if_match: tag.clone().filter(|_| had > 0),
                ..GetOptions::default()
            };
            self.count("read");
            let failed = match self.open(key, options, range.as_ref(), limit).await {
                Ok(answer) => {
                    tag = answer.meta.e_tag.clone().or(tag);
                    let whole = *wanted.get_or_insert(answer.meta.size);
                    match self.pour(key, answer, whole, buffer).await {
                        Ok(()) => return Ok(()),
                        Err(error) => error,
                    }
                }
                // It was replaced while it was read, which nobody does to ours: once more from the start.
                Err(error) if error.kind == Kind::Exists => {
                    buffer.clear();
                    wanted = range.as_ref().map(|range| range.end - range.start);
                    CloudError { kind: Kind::Transient, ..error }
                }
                Err(error) => error,
            };
            failures = if buffer.len() > had { 1 } else { failures + 1 };
            if !failed.is_transient() || failures >= self.max_attempts() {
                return Err(failed);
            }
            tokio::time::sleep(wait_before(failures)).await;
        }
    }

    /// The head of an answer, checked: it is of the bytes that were asked for.
    async fn open(&self, key: &str, options: GetOptions, range: Option<&Range<u64>>, limit: u64) -> Result<GetResult, CloudError> {
        let answer = self.inner.service.objects().get_opts(&path("read", key)?, options).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let length = refused_length();
                let error = CloudError::of("read", key, &error);
                // Some servers answer with nothing, where they should refuse.
                let beyond = error.status == Some(416) || (error.status.is_none() && error.kind == Kind::Other);
                let Some(range) = range.filter(|_| beyond) else { return Err(error) };
                let length = match length {
                    Some(length) => length,
                    None => self.head_of(key).await.map_err(|error| CloudError { action: "read", ..error })?.bytes,
                };
                return Err(if length < range.end { short(key, length, range.end) } else { error });
            }
        };
        let length = answer.meta.size;
        match range {
            Some(range) if length < range.end => Err(short(key, length, range.end)),
            None if length > limit => Err(long(key, length, limit)),
            _ => Ok(answer),
        }
    }

    /// Appends what comes to `buffer`, until it has `whole` bytes.
    async fn pour(&self, key: &str, answer: GetResult, whole: u64, buffer: &mut Vec<u8>) -> Result<(), CloudError> {
        let lost = |reason: String| CloudError::new(Kind::Transient, "read", key, reason);
        buffer.reserve_exact(usize::try_from(whole).unwrap_or(usize::MAX).saturating_sub(buffer.len()));
        let mut stream = answer.into_stream();
        loop {
            match tokio::time::timeout(self.inner.read_timeout, stream.next()).await {
                Err(_) => return Err(lost(format!("nothing came any more after {} of {whole} bytes", buffer.len()))),
                Ok(Some(Ok(part))) => {
                    if buffer.len() as u64 + part.len() as u64 > whole {
                        return Err(CloudError::new(Kind::Other, "read", key, "more bytes came than the server said"));
                    }
                    buffer.extend_from_slice(&part);
                }
                Ok(None) if buffer.len() as u64 == whole => return Ok(()),
                Ok(None) => return Err(lost(format!("the connection ended after {} of {whole} bytes", buffer.len()))),
                Ok(Some(Err(error))) => {
                    let reason = CloudError::of("read", key, &error).reason;
                    return Err(lost(format!("the connection broke after {} of {whole} bytes: {reason}", buffer.len())));
                }
            }
        }
    }

    /// What is known of an object.
    pub fn head(&self, key: &str) -> Result<Head, CloudError> {
        self.wait(self.head_of(key))
    }

    pub(crate) async fn head_of(&self, key: &str) -> Result<Head, CloudError> {
        let path = path("look at", key)?;
        let answer = self
            .again("look at", key, |_| async {
                let options = GetOptions { head: true, ..GetOptions::default() };
                self.inner.service.objects().get_opts(&path, options).await.map_err(|error| CloudError::of("look at", key, &error))
            })
            .await?;
        Ok(Head {
            bytes: answer.meta.size,
            modified: answer.meta.last_modified.into(),
            version: answer.meta.version.clone(),
            write_id: answer.attributes.get(&Attribute::Metadata(WRITE_ID.into())).map(|id| id.as_ref().to_owned()),
        })
    }

    /// Deletes. Where the bucket keeps versions, or deleted objects for a while, the bytes stay for as long as its rules say.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] if nothing is there, [`Kind::Denied`] if a policy of the bucket keeps it.
    pub fn delete(&self, key: &str) -> Result<(), CloudError> {
        self.wait(self.again("delete", key, |_| async {
            match &self.inner.service {
                Service::Google(google) => google.delete(&self.inner.transport, key).await,
                Service::Azure(azure) => azure.delete(&self.inner.transport, key).await,
            }
        }))
    }
}

fn refused_length() -> Option<u64> {
    let noted = taken()?;
    let length = if let Noted::Refused { length, .. } = &noted { *length } else { None };
    // For whoever asks next.
    note(noted);
    length
}

fn short(key: &str, length: u64, wanted: u64) -> CloudError {
    CloudError::new(Kind::Short { length }, "read", key, format!("it ends at byte {length}, before {wanted}"))
}

fn long(key: &str, length: u64, limit: u64) -> CloudError {
    CloudError::new(Kind::Long { length }, "read", key, format!("{length} bytes, more than {limit}"))
}
