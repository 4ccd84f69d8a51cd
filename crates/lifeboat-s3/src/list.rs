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

    /// Versions and delete markers of exactly this key, newest first, until `enough` says so of the last one that came: an attacker may
    /// have written thousands over the one that is looked for.
    pub fn versions_of(&self, key: &str, enough: impl Fn(&[Version]) -> bool) -> Result<Vec<Version>, S3Error> {
        let mut found = Vec::new();
        let mut marker: Marker = (None, None);
        loop {
            let Page { versions: page, next, .. } = self.wait(self.version_page(key, &marker, None, Some(VERSIONS_AT_ONCE)))?;
            // Longer keys that begin so stand behind it.
            let all = page.len();
            let mut page: Vec<Version> = page.into_iter().filter(|version| version.key == key).collect();
            let past = page.len() < all;
            sort(&mut page);
            found.extend(page);
            match next {
                Some(next) if !past && !enough(&found) => marker = next,
                _ => return Ok(found),
            }
        }
    }

    /// What stands directly below `prefix`, or ever did: versions, and prefixes that end in `/`.
    pub fn versions_below(&self, prefix: &str) -> Result<(Vec<Version>, Vec<String>), S3Error> {
        let (mut found, mut prefixes) = (Vec::new(), Vec::new());
        let mut marker: Marker = (None, None);
        loop {
            let page = self.wait(self.version_page(prefix, &marker, Some("/"), None))?;
            found.extend(page.versions);
            prefixes.extend(page.prefixes);
            match page.next {
                Some(next) => marker = next,
                None => break,
            }
        }
        sort(&mut found);
        Ok((found, prefixes))
    }

    /// Whether the versions of any key that begins with `prefix`, newest first, are such: the listing ends with the first that are.
    pub fn any_version(&self, prefix: &str, such: impl Fn(&[Version]) -> bool) -> Result<bool, S3Error> {
        let mut rest: Vec<Version> = Vec::new();
        let mut marker: Marker = (None, None);
        loop {
            let page = self.wait(self.version_page(prefix, &marker, None, None))?;
            rest.extend(page.versions);
            sort(&mut rest);
            // The last key may go on in the next page.
            let last = rest.last().map(|version| version.key.clone()).filter(|_| page.next.is_some());
            let whole = last.map_or(rest.len(), |last| rest.partition_point(|version| version.key < last));
            if rest[..whole].chunk_by(|a, b| a.key == b.key).any(&such) {
                return Ok(true);
            }
            rest.drain(..whole);
            match page.next {
                Some(next) => marker = next,
                None => return Ok(false),
            }
        }
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
        let mut marker: Marker = (None, None);
        loop {
            let Page { versions, next, .. } = self.version_page(prefix, &marker, None, None).await?;
            found.extend(versions);
            match next {
                Some(next) => marker = next,
                None => break,
            }
        }
        sort(&mut found);
        Ok(found)
    }

    /// One page of versions and delete markers, and where the next one begins.
    async fn version_page(&self, prefix: &str, marker: &Marker, delimiter: Option<&str>, most: Option<i32>) -> Result<Page, S3Error> {
        let request = self.client().list_object_versions().bucket(self.name()).prefix(prefix).set_max_keys(most);
        let request = request.set_delimiter(delimiter.map(str::to_owned));
        let request = request.set_key_marker(marker.0.clone()).set_version_id_marker(marker.1.clone());
        let page = self
            .again("list versions", prefix, |_| {
                let request = request.clone();
                async move { request.send().await.map_err(|error| S3Error::of("list versions", prefix, error)) }
            })
            .await?;
        let mut found = Vec::new();
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
        let prefixes = page.common_prefixes().iter().filter_map(|below| below.prefix().map(str::to_owned)).collect();
        if page.is_truncated() != Some(true) {
            return Ok(Page { versions: found, prefixes, next: None });
        }
        let next = (page.next_key_marker().map(str::to_owned), page.next_version_id_marker().map(str::to_owned));
        if next.0.is_none() || next == *marker {
            return Err(S3Error::new(Kind::Other, "list versions", prefix, "the server does not say where its listing goes on"));
        }
        Ok(Page { versions: found, prefixes, next: Some(next) })
    }
}

struct Page {
    versions: Vec<Version>,
    prefixes: Vec<String>,
    next: Option<Marker>,
}

/// Where a page of versions begins: behind this key and this version of it.
type Marker = (Option<String>, Option<String>);

/// Versions of one key that are asked for at once: as a rule there is one.
const VERSIONS_AT_ONCE: i32 = 100;

/// Versions and markers come in two lists: by key, the latest first, then by time. Of what was written and deleted within the clock's
/// step, the object stands first: who looks for what is lost wants it.
fn sort(versions: &mut [Version]) {
    versions.sort_by(|a, b| {
        let rank = |version: &Version| (!version.latest, std::cmp::Reverse(version.modified), version.is_delete_marker());
        a.key.cmp(&b.key).then_with(|| rank(a).cmp(&rank(b)))
    });
}
