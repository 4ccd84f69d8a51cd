//! A repository in a bucket of Google's or a container of Azure's, below a prefix. What those are like is the business of
//! `lifeboat-clouds`; here its words become the store's.

use std::io;
use std::ops::Range;

use lifeboat_clouds::{Bucket, Cloud, CloudError, Config, Kind, Upload};
use lifeboat_core::repository::layout::Key;
use lifeboat_core::repository::pack::MAX_BYTES as MAX_PACK_BYTES;

use super::{Listed, ObjectWriter, OpenError, Store, StoreError, StoreOptions, check_prefix};

/// Objects in a bucket.
pub struct CloudStore {
    url: String,
    /// Empty, or ending in `/`.
    prefix: String,
    bucket: Bucket,
}

impl CloudStore {
    /// Connects to the bucket of `gs://bucket/prefix`, or the container of `az://container/prefix`, and makes sure that it is there.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self, OpenError> {
        let address = |reason| OpenError::Address { url: url.to_owned(), reason };
        let (cloud, rest) = match url.split_once("://") {
            Some(("gs", rest)) => (Cloud::Google, rest),
            Some(("az" | "azure", rest)) => (Cloud::Azure, rest),
            _ => return Err(address("it begins neither with gs:// nor with az://")),
        };
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        check_name(url, cloud, name)?;
        // Before anybody is asked.
        check_prefix(url, prefix)?;
        let config = Config {
            account: options.account.clone(),
            endpoint: options.endpoint.clone(),
            credentials_file: options.credentials_file.clone(),
            ca_file: options.ca_file.clone(),
            ..Config::of(cloud, name)
        };
        match Bucket::connect(&config) {
            Ok(bucket) => Ok(Self::new(bucket, prefix)?),
            Err(error) if error.kind == Kind::NoBucket => Err(OpenError::NoBucket(url.to_owned())),
            Err(error) => Err(OpenError::Io { path: url.to_owned(), source: io_error(&error) }),
        }
    }

    /// The store below a prefix of a bucket.
    pub fn new(bucket: Bucket, prefix: &str) -> Result<Self, OpenError> {
        let prefix = prefix.trim_end_matches('/');
        let scheme = match bucket.cloud() {
            Cloud::Google => "gs",
            Cloud::Azure => "az",
        };
        let url = format!("{scheme}://{}{}{prefix}", bucket.name(), if prefix.is_empty() { "" } else { "/" });
        check_prefix(&url, prefix)?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { url, prefix, bucket })
    }

    /// The bucket.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn error(&self, action: &'static str, key: &str, wanted: u64, error: CloudError) -> StoreError {
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

    fn listed(&self, found: Vec<lifeboat_clouds::Listed>) -> Vec<Listed> {
        let mine = found.into_iter().filter_map(|object| {
            // Whatever else stands there has no key of ours.
            let key = Key::parse(object.key.strip_prefix(&self.prefix)?).ok()?;
            Some(Listed { key, bytes: object.bytes })
        });
        let mut listed: Vec<Listed> = mine.collect();
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        listed
    }
}

/// "Bucket names" of Google, "Naming and referencing containers" of Azure.
fn check_name(url: &str, cloud: Cloud, name: &str) -> Result<(), OpenError> {
    let (most, extra, reason) = match cloud {
        Cloud::Google => (222, &b"-_."[..], "a bucket's name has 3 to 63 of a-z, 0-9, -, _ and ."),
        Cloud::Azure => (63, &b"-"[..], "a container's name has 3 to 63 of a-z, 0-9 and -"),
    };
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || extra.contains(&byte);
    if name.len() < 3 || name.len() > most || !name.bytes().all(letter) {
        return Err(OpenError::Address { url: url.to_owned(), reason });
    }
    Ok(())
}

/// The reason, under the kind that says what to do about it.
fn io_error(error: &CloudError) -> io::Error {
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
struct CloudWriter<'a> {
    store: &'a CloudStore,
    key: Key,
    upload: Upload,
}

impl ObjectWriter for CloudWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.upload.write(bytes).map_err(|error| self.store.error("write", self.key.as_str(), 0, error))
    }

    fn commit(self: Box<Self>, key: &Key) -> Result<(), StoreError> {
        if *key != self.key {
            let source = io::Error::new(io::ErrorKind::InvalidInput, format!("it was begun as {}", self.key));
            return Err(StoreError::Io { action: "write", key: key.to_string(), store: self.store.url.clone(), source });
        }
        self.upload.finish().map_err(|error| self.store.error("write", key.as_str(), 0, error))
    }
}

/// Collects an object whose key is known at its end: a pack, which is named by its digest.
struct CloudCollector<'a> {
    store: &'a CloudStore,
    bytes: Vec<u8>,
}

impl ObjectWriter for CloudCollector<'_> {
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
        store.bucket.put_if_absent(&store.full(key.as_str()), self.bytes).map_err(|error| store.error("write", key.as_str(), 0, error))
    }
}

impl Store for CloudStore {
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
        Ok(Box::new(CloudCollector { store: self, bytes: Vec::new() }))
    }

    fn writer_for(&self, key: &Key, expected: u64) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        let upload = self.bucket.upload(&self.full(key.as_str()), expected);
        Ok(Box::new(CloudWriter { store: self, key: key.clone(), upload }))
    }

    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.bucket.get(&self.full(key.as_str()), limit).map_err(|error| self.error("read", key.as_str(), limit, error))
    }

    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        let end = range.end;
        let read = self.bucket.get_range(&self.full(key.as_str()), range, buffer);
        read.map_err(|error| self.error("read", key.as_str(), end, error))
    }

    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        let head = self.bucket.head(&self.full(key.as_str()));
        head.map(|head| head.bytes).map_err(|error| self.error("read", key.as_str(), 0, error))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let found = self.bucket.list(&self.full(prefix), None, None).map_err(|error| self.error("list", prefix, 0, error))?;
        Ok(self.listed(found))
    }

    fn list_after(&self, prefix: &str, after: &Key) -> Result<Vec<Listed>, StoreError> {
        let from = self.full(after.as_str());
        let found = self.bucket.list(&self.full(prefix), Some(&from), None).map_err(|error| self.error("list", prefix, 0, error))?;
        Ok(self.listed(found))
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
        Ok(found.iter().all(|object| object.key == self.prefix.trim_end_matches('/')))
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        match self.bucket.delete(&self.full(key.as_str())) {
            Ok(()) => Ok(()),
            Err(error) if error.kind == Kind::NotFound => Ok(()),
            Err(error) => Err(self.error("delete", key.as_str(), 0, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_is_told_before_anybody_is_asked() {
        for bad in [
            "gs://",
            "gs://b",
            "gs://a bucket/x",
            "gs://BUCKET",
            "gs://bucket/a//b",
            "gs://bucket/../x",
            "az://",
            "az://a",
            "az://with.dot",
            "azure://UPPER/x",
            "az://container/a b",
        ] {
            let opened = CloudStore::open(bad, &StoreOptions::default());
            assert!(matches!(opened, Err(OpenError::Address { .. })), "{bad}");
        }
    }
}
