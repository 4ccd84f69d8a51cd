//! Listings: of objects, and of what stands directly below a prefix.

use std::borrow::Cow;

use object_store::list::PaginatedListOptions;

use crate::{Bucket, CloudError, Kind};

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Bucket {
    /// Objects whose key begins with `prefix`, and comes after `after`; `most` ends the listing early.
    pub fn list(&self, prefix: &str, after: Option<&str>, most: Option<usize>) -> Result<Vec<Listed>, CloudError> {
        Ok(self.wait(self.list_pages(prefix, after, None, most))?.0)
    }

    /// What stands directly below `prefix`: objects, and prefixes that end in `/`.
    pub fn list_below(&self, prefix: &str) -> Result<(Vec<Listed>, Vec<String>), CloudError> {
        self.wait(self.list_pages(prefix, None, Some("/"), None))
    }

    /// Whether the bucket is there and may be listed.
    pub(crate) async fn look(&self) -> Result<(), CloudError> {
        let options = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
        match self.inner.service.pages().list_paginated(None, options).await {
            Ok(_) => Ok(()),
            // A name of somebody else's that cannot be read was listed, and that was the question.
            Err(object_store::Error::InvalidPath { .. }) => Ok(()),
            Err(error) => match CloudError::of("open", self.name(), &error) {
                error if error.kind == Kind::NotFound => Err(CloudError { kind: Kind::NoBucket, ..error }),
                error => Err(error),
            },
        }
    }

    async fn list_pages(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: Option<&'static str>,
        most: Option<usize>,
    ) -> Result<(Vec<Listed>, Vec<String>), CloudError> {
        let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
        let mut token: Option<String> = None;
        loop {
            let page = self
                .again("list", prefix, |_| {
                    let options = PaginatedListOptions {
                        offset: after.map(str::to_owned),
                        delimiter: delimiter.map(Cow::Borrowed),
                        max_keys: most.map(|most| most.clamp(1, 1000)),
                        page_token: token.clone(),
                        ..PaginatedListOptions::default()
                    };
                    async move {
                        let prefix_or_all = (!prefix.is_empty()).then_some(prefix);
                        let page = self.inner.service.pages().list_paginated(prefix_or_all, options).await;
                        page.map_err(|error| CloudError::of("list", prefix, &error))
                    }
                })
                .await?;
            let found = page.result.objects.into_iter().map(|object| Listed { key: object.location.into(), bytes: object.size });
            // A server that does not know where to begin begins at the start.
            objects.extend(found.filter(|listed| after.is_none_or(|after| listed.key.as_str() > after)));
            prefixes.extend(page.result.common_prefixes.into_iter().map(|below| format!("{below}/")));
            let next = page.page_token.filter(|token| !token.is_empty());
            if next.is_none() || most.is_some_and(|most| objects.len() >= most) {
                break;
            }
            // A listing that does not move would never end.
            if next == token {
                return Err(CloudError::new(Kind::Other, "list", prefix, "the server does not say where its listing goes on"));
            }
            token = next;
        }
        objects.truncate(most.unwrap_or(usize::MAX));
        Ok((objects, prefixes))
    }
}
