//! Listings: of objects, of what stands directly below a prefix, of versions.

use std::time::SystemTime;

use crate::object::time_of;
use crate::{Bucket, Kind, S3Error};

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A version of an object, or a mark that it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its key.
    pub key: String,
    /// Which one; `null` for what was there before the bucket had versions.
    pub version: String,
    /// Its length in bytes; `None` for a delete marker.
    pub bytes: Option<u64>,
    /// Whether a read without a version gets this one.
    pub latest: bool,
    /// When it was written, by the server's clock.
    pub modified: Option<SystemTime>,
}

impl Version {
    /// Whether it only says that the object was deleted.
    pub fn is_delete_marker(&self) -> bool {
        self.bytes.is_none()
    }
}

impl Bucket {
    /// Objects whose key begins with `prefix`, and comes after `after`, in the order of their bytes; `most` ends the listing early.
    pub fn list(&self, prefix: &str, after: Option<&str>, most: Option<usize>) -> Result<Vec<Listed>, S3Error> {
        Ok(self.wait(self.pages(prefix, after, None, most))?.0)
    }

    /// What stands directly below `prefix`: objects, and prefixes that end in `/`.
    pub fn list_below(&self, prefix: &str) -> Result<(Vec<Listed>, Vec<String>), S3Error> {
        self.wait(self.pages(prefix, None, Some("/"), None))
    }

    async fn pages(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: Option<&str>,
        most: Option<usize>,
    ) -> Result<(Vec<Listed>, Vec<String>), S3Error> {
        let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
        let mut token: Option<String> = None;
        loop {
            let request = self.client().list_objects_v2().bucket(self.name()).prefix(prefix);
            let request = request
                .set_start_after(after.map(str::to_owned))
                .set_delimiter(delimiter.map(str::to_owned))
                .set_max_keys(most.map(|most| most.clamp(1, 1000) as i32))
                .set_continuation_token(token.clone());
            let page = self
                .again("list", prefix, |_| {
                    let request = request.clone();
                    async move { request.send().await.map_err(|error| S3Error::of("list", prefix, error)) }
                })
                .await?;
            objects.extend(page.contents().iter().filter_map(|object| {
                let bytes = object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
                Some(Listed { key: object.key()?.to_owned(), bytes })
            }));
            prefixes.extend(page.common_prefixes().iter().filter_map(|below| below.prefix().map(str::to_owned)));
            let next = page.next_continuation_token().map(str::to_owned);
            if page.is_truncated() != Some(true) || most.is_some_and(|most| objects.len() >= most) {
                break;
            }
            // A listing that does not move would never end, and one that ends here would hide objects.
            if next.is_none() || next == token {
                return Err(S3Error::new(Kind::Other, "list", prefix, "the server does not say where its listing goes on"));
            }
            token = next;
        }
        objects.truncate(most.unwrap_or(usize::MAX));
        Ok((objects, prefixes))
    }

    /// Every version and delete marker whose key begins with `prefix`, newest first within a key, as the server has them.
    pub fn versions(&self, prefix: &str) -> Result<Vec<Version>, S3Error> {
        self.wait(self.version_pages(prefix))
    }

    /// Keys of uploads that were begun and neither finished nor given up: what a crash leaves. Nobody sees them, and they are paid for.
    pub fn unfinished_uploads(&self, prefix: &str) -> Result<Vec<String>, S3Error> {
        let mut found = Vec::new();
        let mut marker: (Option<String>, Option<String>) = (None, None);
        loop {
            let request = self.client().list_multipart_uploads().bucket(self.name()).prefix(prefix);
            let request = request.set_key_marker(marker.0.clone()).set_upload_id_marker(marker.1.clone());
            let page = self.wait(self.again("list uploads", prefix, |_| {
                let request = request.clone();
                async move { request.send().await.map_err(|error| S3Error::of("list uploads", prefix, error)) }
            }))?;
            found.extend(page.uploads().iter().filter_map(|upload| upload.key().map(str::to_owned)));
            let next = (page.next_key_marker().map(str::to_owned), page.next_upload_id_marker().map(str::to_owned));
            if page.is_truncated() != Some(true) {
                return Ok(found);
            }
            if next.0.is_none() || next == marker {
                return Err(S3Error::new(Kind::Other, "list uploads", prefix, "the server does not say where its listing goes on"));
            }
            marker = next;
        }
    }

    async fn version_pages(&self, prefix: &str) -> Result<Vec<Version>, S3Error> {
        let mut found = Vec::new();
        let mut marker: (Option<String>, Option<String>) = (None, None);
        loop {
            let request = self.client().list_object_versions().bucket(self.name()).prefix(prefix);
            let request = request.set_key_marker(marker.0.clone()).set_version_id_marker(marker.1.clone());
            let page = self
                .again("list versions", prefix, |_| {
                    let request = request.clone();
                    async move { request.send().await.map_err(|error| S3Error::of("list versions", prefix, error)) }
                })
                .await?;
            found.extend(page.versions().iter().filter_map(|version| {
                Some(Version {
                    key: version.key()?.to_owned(),
                    version: version.version_id().unwrap_or("null").to_owned(),
                    bytes: Some(version.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0)),
                    latest: version.is_latest() == Some(true),
                    modified: version.last_modified().and_then(time_of),
                })
            }));
            found.extend(page.delete_markers().iter().filter_map(|version| {
                Some(Version {
                    key: version.key()?.to_owned(),
                    version: version.version_id().unwrap_or("null").to_owned(),
                    bytes: None,
                    latest: version.is_latest() == Some(true),
                    modified: version.last_modified().and_then(time_of),
                })
            }));
            let next = (page.next_key_marker().map(str::to_owned), page.next_version_id_marker().map(str::to_owned));
            if page.is_truncated() != Some(true) {
                break;
            }
            if next.0.is_none() || next == marker {
                return Err(S3Error::new(Kind::Other, "list versions", prefix, "the server does not say where its listing goes on"));
            }
            marker = next;
        }
        // Versions and markers come in two lists: by key, the latest first, then by time.
        found.sort_by(|a, b| (&a.key, !a.latest, std::cmp::Reverse(a.modified)).cmp(&(&b.key, !b.latest, std::cmp::Reverse(b.modified))));
        Ok(found)
    }
}
