//! A repository on a store: opened, its backups listed, its signed documents read.

use lifeboat_core::repository::{
    Descriptor, FormatError,
    backup_id::BackupId,
    layout::{self, Key},
    to_json,
};

use crate::store::{Store, StoreError, create_or_mine};

/// The longest descriptor, record, head, lease or bundle that is read.
pub const MAX_DOCUMENT_BYTES: u64 = 16 << 20;

/// The longest manifest that is read: 10 TB in packs of 32 MiB take about 60 MB.
pub const MAX_MANIFEST_BYTES: u64 = 512 << 20;

/// Why a repository could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// There is no descriptor.
    #[error("open repository {url}: there is none")]
    Absent {
        /// Where.
        url: String,
    },
    /// There is something where a repository should be made.
    #[error("make repository {url}: {problem}")]
    Occupied {
        /// Where.
        url: String,
        /// What is there.
        problem: &'static str,
    },
    /// Its bytes are not in the format, or of a newer one.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An open repository.
pub struct Repository {
    store: Box<dyn Store>,
    descriptor: Descriptor,
}

impl Repository {
    /// Makes a repository in an empty store.
    pub fn init(store: Box<dyn Store>, now: jiff::Timestamp, program: &str) -> Result<Self, RepositoryError> {
        Self::check_vacant(&*store)?;
        let descriptor = Descriptor::new(crate::random::id(), now, program.to_owned());
        match create_or_mine(&*store, &layout::descriptor(), &to_json(&descriptor))? {
            true => Ok(Self { store, descriptor }),
            // Somebody else was faster; theirs is as good.
            false => Self::open(store),
        }
    }

    /// Whether a repository can be made in a store: nothing is there.
    pub fn check_vacant(store: &dyn Store) -> Result<(), RepositoryError> {
        let url = store.url().to_owned();
        if store.length(&layout::descriptor()).is_ok() {
            return Err(RepositoryError::Occupied { url, problem: "there is one already" });
        }
        if !store.is_empty()? {
            return Err(RepositoryError::Occupied { url, problem: "the place is not empty" });
        }
        Ok(())
    }

    /// Opens the repository in a store.
    pub fn open(store: Box<dyn Store>) -> Result<Self, RepositoryError> {
        match store.get(&layout::descriptor(), MAX_DOCUMENT_BYTES) {
            Ok(bytes) => Ok(Self { descriptor: Descriptor::decode(&bytes)?, store }),
            Err(StoreError::NotFound { .. }) => Err(RepositoryError::Absent { url: store.url().to_owned() }),
            Err(error) => Err(error.into()),
        }
    }

    /// A repository whose descriptor was read already.
    pub(crate) fn with_descriptor(store: Box<dyn Store>, descriptor: Descriptor) -> Self {
        Self { store, descriptor }
    }

    /// The same repository seen through another store: as it would be, if something were missing or damaged.
    #[must_use]
    pub fn seen(self, through: impl FnOnce(Box<dyn Store>) -> Box<dyn Store>) -> Self {
        Self { store: through(self.store), descriptor: self.descriptor }
    }

    /// What the repository says of itself.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Where its objects are.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Every prefix that is named like a backup, oldest first per name, whether or not it has a
    /// manifest.
    pub fn backup_prefixes(&self) -> Result<Vec<BackupId>, RepositoryError> {
        let names = self.store.list_segments("")?;
        let mut ids: Vec<BackupId> = names.iter().filter_map(|name| name.strip_suffix('/')?.parse().ok()).collect();
        ids.sort_by(|a, b| (a.at(), a).cmp(&(b.at(), b)));
        Ok(ids)
    }

    /// Backups, oldest first: those that have a manifest.
    pub fn backups(&self) -> Result<Vec<BackupId>, RepositoryError> {
        let mut ids = self.backup_prefixes()?;
        let mut failed = None;
        ids.retain(|id| match self.store.length(&layout::manifest(id)) {
            Ok(_) => true,
            Err(error) if error.is_absence() => false,
            Err(error) => {
                failed.get_or_insert(error);
                true
            }
        });
        failed.map_or(Ok(ids), |error| Err(error.into()))
    }

    /// A small document, if it is there.
    pub fn document(&self, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
        match self.store.get(key, MAX_DOCUMENT_BYTES) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
