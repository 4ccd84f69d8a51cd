//! A repository in a bucket, below a prefix. What S3 is like is the business of `lifeboat-s3`; here its words become the store's.

use std::io;
use std::ops::Range;
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::doctor::store::StoreFacts;
use lifeboat_core::hold::{HoldMode, Retention, hold_of, later};
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::pack::MAX_BYTES as MAX_PACK_BYTES;
use lifeboat_s3::{Bucket, Config, Kind, Mode, S3Error, Upload};

use super::probe::Examination;
use super::versions::{AsOf, older_versions};
use super::{Listed, ObjectWriter, OpenError, Store, StoreError, StoreOptions, check_prefix, unsupported};

/// Objects in a bucket.
#[derive(Clone)]
pub struct S3Store {
    url: String,
    /// Empty, or ending in `/`.
    prefix: String,
    bucket: Bucket,
    endpoint: Option<String>,
    holds: Holds,
}

/// How new objects are held.
#[derive(Debug, Clone, Copy)]
enum Holds {
    /// As the bucket says.
    Bucket,
    /// As the configuration promises, by the object.
    Promised(Retention),
    /// Every object for so many seconds of a server whose clock is so many ahead: a probe's, so that it can be taken away soon.
    Seconds { count: i64, ahead: i64 },
}

impl S3Store {
    /// Connects to the bucket of `s3://bucket/prefix`, and makes sure that it is there.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self, OpenError> {
        let address = |reason| OpenError::Address { url: url.to_owned(), reason };
        let rest = url.strip_prefix("s3://").ok_or_else(|| address("it does not begin with s3://"))?;
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        // "Bucket naming rules"; clones take a little more than AWS does.
        let name_ok = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if name.len() < 3 || name.len() > 255 || !name.bytes().all(name_ok) {
            return Err(address("a bucket's name has 3 to 63 of a-z, 0-9, . and -"));
        }
        // Before anybody is asked.
        check_prefix(url, prefix)?;
        let config = Config {
            bucket: name.to_owned(),
            endpoint: options.endpoint.clone(),
            region: options.region.clone(),
            path_style: options.path_style,
            profile: options.profile.clone(),
            ca_file: options.ca_file.clone(),
            ..Config::default()
        };
        match Bucket::connect(&config) {
            Ok(bucket) => {
                let store = Self::new(bucket, prefix)?.with_retention(options.retention);
                Ok(Self { endpoint: options.endpoint.clone(), ..store })
            }
            Err(error) if error.kind == Kind::NoBucket => Err(OpenError::NoBucket(url.to_owned())),
            Err(error) => Err(OpenError::Io { path: url.to_owned(), source: io_error(&error) }),
        }
    }

    /// The store below a prefix of a bucket.
    pub fn new(bucket: Bucket, prefix: &str) -> Result<Self, OpenError> {
        let prefix = prefix.trim_end_matches('/');
        let url = format!("s3://{}{}{prefix}", bucket.name(), if prefix.is_empty() { "" } else { "/" });
        check_prefix(&url, prefix)?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { url, prefix, bucket, endpoint: None, holds: Holds::Bucket })
    }

    /// The same store, whose new objects are held as promised, or as the bucket says.
    pub fn with_retention(self, retention: Option<Retention>) -> Self {
        Self { holds: retention.map_or(Holds::Bucket, Holds::Promised), ..self }
    }

    /// The same store, whose new objects are all held for a few seconds, whatever the bucket says.
    pub(super) fn holding(&self, count: i64) -> Self {
        Self { holds: Holds::Seconds { count, ahead: self.bucket.clock_ahead().unwrap_or(0) }, ..self.clone() }
    }

    /// What is promised of objects.
    pub(super) fn promised(&self) -> Option<Retention> {
        if let Holds::Promised(retention) = self.holds { Some(retention) } else { None }
    }

    /// The server, where it is not AWS.
    pub(super) fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// The prefix in front of every key.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// How a new object is held.
    fn hold(&self, key: &Key) -> Option<lifeboat_s3::Retention> {
        match self.holds {
            Holds::Bucket => None,
            Holds::Seconds { count, ahead } => {
                let until = later(Timestamp::now(), SignedDuration::from_secs(count.saturating_add(ahead)));
                Some(lifeboat_s3::Retention { mode: Mode::Governance, until: until.into() })
            }
            Holds::Promised(retention) => {
                let until = later(Timestamp::now(), hold_of(key, retention.span)?);
                Some(lifeboat_s3::Retention { mode: s3_mode(retention.mode), until: until.into() })
            }
        }
    }

    /// The bucket: its versions, its facts.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Creates an object in parts, also where one request would do.
    pub(super) fn create_in_parts(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.bucket.put_in_parts_if_absent(&self.full(key.as_str()), bytes, self.hold(key));
        written.map(drop).map_err(|error| self.error("write", key.as_str(), 0, error))
    }

    pub(super) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(super) fn error(&self, action: &'static str, key: &str, wanted: u64, error: S3Error) -> StoreError {
        let (key, store) = (key.to_owned(), self.url.clone());
        match error.kind {
            Kind::NotFound => StoreError::NotFound { key },
            Kind::Exists => StoreError::Exists { key },
            Kind::Full => StoreError::Full { key, store },
            Kind::Denied => StoreError::Denied { action, key, store, source: io_error(&error) },
            Kind::Short { length } => StoreError::Short { key, length, wanted },
            _ => StoreError::Io { action, key, store, source: io_error(&error) },
        }
    }

    fn begin(&self, key: &Key, expected: u64) -> Upload {
        self.bucket.upload(&self.full(key.as_str()), expected, self.hold(key))
    }

    fn listed(&self, found: Vec<lifeboat_s3::Listed>) -> Vec<Listed> {
        let mine = found.into_iter().filter_map(|object| {
            // Whatever else stands there has no key of ours: a console's placeholder for a directory, for one.
            let key = Key::parse(object.key.strip_prefix(&self.prefix)?).ok()?;
            Some(Listed { key, bytes: object.bytes })
        });
        let mut listed: Vec<Listed> = mine.collect();
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        listed
    }
}

/// A mode in the client's words.
pub(super) fn s3_mode(mode: HoldMode) -> Mode {
    match mode {
        HoldMode::Governance => Mode::Governance,
        HoldMode::Compliance => Mode::Compliance,
    }
}

/// The reason, under the kind that says what to do about it.
pub(super) fn io_error(error: &S3Error) -> io::Error {
    let kind = match error.kind {
        Kind::Denied => io::ErrorKind::PermissionDenied,
        Kind::Throttled => io::ErrorKind::ResourceBusy,
        Kind::Transient => io::ErrorKind::ConnectionReset,
        Kind::Long { .. } => io::ErrorKind::FileTooLarge,
        Kind::Unsupported => io::ErrorKind::Unsupported,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error.reason.clone())
}

/// Writes an object whose key is known: in parts, if it is long.
struct S3Writer<'a> {
    store: &'a S3Store,
    key: Key,
    upload: Upload,
}

impl ObjectWriter for S3Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.upload.write(bytes).map_err(|error| self.store.error("write", self.key.as_str(), 0, error))
    }

    fn commit(self: Box<Self>, key: &Key) -> Result<(), StoreError> {
        if *key != self.key {
            let source = io::Error::new(io::ErrorKind::InvalidInput, format!("it was begun as {}", self.key));
            return Err(StoreError::Io { action: "write", key: key.to_string(), store: self.store.url.clone(), source });
        }
        self.upload.finish().map(drop).map_err(|error| self.store.error("write", key.as_str(), 0, error))
    }
}

/// Collects an object whose key is known at its end: a pack, which is named by its digest.
struct S3Collector<'a> {
    store: &'a S3Store,
    bytes: Vec<u8>,
}

impl ObjectWriter for S3Collector<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if (self.bytes.len() + bytes.len()) as u64 > MAX_PACK_BYTES {
            let source = io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_PACK_BYTES} bytes before it has a name"));
            return Err(StoreError::Io { action: "write", key: "an object".into(), store: self.store.url.clone(), source });
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn commit(self: Box<Self>, key: &Key) -> Result<(), StoreError> {
        let store = self.store;
        let full = store.full(key.as_str());
        // A pack has its digest in its name: who named it has hashed these bytes, and the server compares.
        let written = match layout::digest_of(key).filter(|digest| layout::pack(*digest) == *key) {
            Some(digest) => store.bucket.put_digested_if_absent(&full, self.bytes, digest.0, store.hold(key)),
            None => store.bucket.put_if_absent(&full, self.bytes, store.hold(key)),
        };
        written.map(drop).map_err(|error| store.error("write", key.as_str(), 0, error))
    }
}

impl Store for S3Store {
    fn url(&self) -> &str {
        &self.url
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn create(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        let mut writer = self.writer_for(key, bytes.len() as u64)?;
        writer.write(bytes)?;
        writer.commit(key)
    }

    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        Ok(Box::new(S3Collector { store: self, bytes: Vec::new() }))
    }

    fn writer_for(&self, key: &Key, expected: u64) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        Ok(Box::new(S3Writer { store: self, key: key.clone(), upload: self.begin(key, expected) }))
    }

    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.bucket.get(&self.full(key.as_str()), None, limit).map_err(|error| self.error("read", key.as_str(), limit, error))
    }

    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        let end = range.end;
        let read = self.bucket.get_range(&self.full(key.as_str()), None, range, buffer);
        read.map_err(|error| self.error("read", key.as_str(), end, error))
    }

    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        let head = self.bucket.head(&self.full(key.as_str()), None);
        head.map(|head| head.bytes).map_err(|error| self.error("read", key.as_str(), 0, error))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let found = self.bucket.list(&self.full(prefix), None, None).map_err(|error| self.error("list", prefix, 0, error))?;
        Ok(self.listed(found))
    }

    fn list_after(&self, prefix: &str, after: &Key) -> Result<Vec<Listed>, StoreError> {
        let from = self.full(after.as_str());
        let found = self.bucket.list(&self.full(prefix), Some(&from), None).map_err(|error| self.error("list", prefix, 0, error))?;
        let mut listed = self.listed(found);
        // A server that does not know where to begin begins at the start.
        listed.retain(|listed| listed.key > *after);
        Ok(listed)
    }

    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let full = self.full(prefix);
        let (objects, below) = self.bucket.list_below(&full).map_err(|error| self.error("list", prefix, 0, error))?;
        let names = objects.into_iter().map(|object| object.key).chain(below);
        let mut names: Vec<String> = names.filter_map(|name| name.strip_prefix(&full).map(str::to_owned)).collect();
        names.retain(|name| !name.is_empty() && name != "/");
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        let found = self.bucket.list(&self.prefix, None, Some(2)).map_err(|error| self.error("list", "", 0, error))?;
        // A console makes an object of the prefix's own name when one "makes a folder".
        Ok(found.iter().all(|object| object.key == self.prefix))
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        match self.bucket.delete(&self.full(key.as_str()), None) {
            Ok(_) => Ok(()),
            Err(error) if error.kind == Kind::NotFound => Ok(()),
            Err(error) => Err(self.error("delete", key.as_str(), 0, error)),
        }
    }

    fn alternatives<'a>(&'a self, key: &Key) -> Result<Vec<Box<dyn Store + 'a>>, StoreError> {
        older_versions(self, key)
    }

    fn as_of<'a>(&'a self, moment: Timestamp) -> Result<Box<dyn Store + 'a>, StoreError> {
        Ok(Box::new(AsOf::open(self, moment)?))
    }

    fn retain(&self, key: &Key, until: Timestamp) -> Result<(), StoreError> {
        let full = self.full(key.as_str());
        let head = self.bucket.head(&full, None).map_err(|error| self.error("keep", key.as_str(), 0, error))?;
        let until = SystemTime::from(until);
        if head.retention.is_some_and(|retention| retention.until >= until) {
            return Ok(());
        }
        // A hold may be made longer by whoever may write; another mode, also a stricter one, takes the permission to bypass it.
        let promised = self.promised().map_or(Mode::Governance, |retention| s3_mode(retention.mode));
        let mode = head.retention.map_or(promised, |retention| retention.mode);
        // By its version: a newer one that an attacker put over it is not meant.
        let retained = self.bucket.retain(&full, head.version.as_deref(), lifeboat_s3::Retention { mode, until });
        retained.map_err(|error| match error.code.as_deref() {
            // "Bucket is missing Object Lock Configuration"
            Some("InvalidRequest" | "ObjectLockConfigurationNotFoundError" | "NoSuchObjectLockConfiguration") => {
                unsupported("keep", key.as_str(), &self.url, &error.reason)
            }
            _ => self.error("keep", key.as_str(), 0, error),
        })
    }

    fn examine(&self, how: &Examination<'_>) -> Option<StoreFacts> {
        Some(super::probe::bucket(self, how))
    }
}
