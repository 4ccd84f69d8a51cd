//! Object stores: where a repository's objects stand.
//!
//! One small trait. Nothing is ever overwritten: the only way to write is conditional create. The
//! trait blocks: those who copy are threads with bounded queues, and a store that waits on a network
//! runs its own waiting inside (see docs/decisions/0004).

mod awaited;
mod clouds;
mod copies;
mod fault;
mod journal;
mod local;
mod memory;
mod overlay;
pub mod probe;
mod replicated;
mod s3;
pub(crate) mod stream;
mod versions;

use std::ops::Range;

use lifeboat_core::repository::layout::Key;

pub use awaited::{OpenLater, await_repository};
pub use clouds::CloudStore;
pub use copies::{Alone, Note, NoteKind, first_good};
pub(crate) use copies::{View, other_copy};
pub use fault::{Fault, Faults, FaultyStore, INJECTED, Operation, Rule, Step};
pub use journal::{Entry, Journal, Missed};
pub use local::LocalStore;
pub(crate) use local::sync_directory;
pub use memory::MemoryStore;
pub use overlay::{Change, Overlay};
pub use replicated::{Access, Member, Opener, Part, ReplicaError, ReplicatedStore, Watch, journal_of, open_members};
pub use s3::S3Store;

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such object.
    #[error("read {key}: no such object")]
    NotFound {
        /// The object.
        key: String,
    },
    /// Somebody else created it first; it stays as it is.
    #[error("create {key}: it exists already")]
    Exists {
        /// The object.
        key: String,
    },
    /// The store is full.
    #[error("write {key}: no space left in {store}")]
    Full {
        /// The object.
        key: String,
        /// The store.
        store: String,
    },
    /// The credentials do not allow it.
    #[error("{action} {key}: not allowed in {store}")]
    Denied {
        /// What was tried.
        action: &'static str,
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// What the store says.
        #[source]
        source: std::io::Error,
    },
    /// The object is shorter than what was asked of it.
    #[error("read {key}: it ends at byte {length}, before {wanted}")]
    Short {
        /// The object.
        key: String,
        /// Its length.
        length: u64,
        /// Where the range should have ended.
        wanted: u64,
    },
    /// The primary has it, but a replica that must have it as well has not. Asked again, only the replica is written.
    #[error("write {key}: replica {replica}, which is required, did not take it")]
    Replica {
        /// The object.
        key: String,
        /// The replica's name.
        replica: String,
        /// Why not.
        #[source]
        source: Box<StoreError>,
    },
    /// Anything else.
    #[error("{action} {key} in {store}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl StoreError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        use std::io::ErrorKind::{ConnectionReset, Interrupted, ResourceBusy, TimedOut};
        match self {
            Self::Io { source, .. } => matches!(source.kind(), Interrupted | TimedOut | ConnectionReset | ResourceBusy),
            Self::Replica { source, .. } => source.is_transient(),
            _ => false,
        }
    }

    /// Whether the object is not there (or not whole): damage, if a manifest names it.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Short { .. })
    }
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: Key,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Writes one object piece by piece. Dropped without [`ObjectWriter::commit`], nothing is left.
pub trait ObjectWriter: Send {
    /// Appends.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Makes the object durable and visible, whole, under `key`, if nothing is there.
    ///
    /// # Errors
    ///
    /// [`StoreError::Exists`] if something is; that stays as it is.
    fn commit(self: Box<Self>, key: &Key) -> Result<(), StoreError>;
}

/// Whether an object is there. Only absence is absence: a store that does not answer says nothing.
///
/// # Errors
///
/// The store's.
pub fn is_there(store: &dyn Store, key: &Key) -> Result<bool, StoreError> {
    match store.length(key) {
        Ok(_) => Ok(true),
        Err(StoreError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A further place of a repository.
pub struct Further<'a> {
    /// Its name.
    pub name: String,
    /// The place, or why it cannot be asked.
    pub store: Result<&'a dyn Store, StoreError>,
    /// What it was to delete and missed.
    pub to_delete: std::collections::BTreeSet<Key>,
}

/// Where objects stand. Every operation is durable and visible to every reader when it returns.
pub trait Store: Send + Sync {
    /// The store's URL, without secrets.
    fn url(&self) -> &str;

    /// The URLs of all repositories that it writes to and reads from.
    fn urls(&self) -> Vec<String> {
        vec![self.url().to_owned()]
    }

    /// Creates the object, whole, if nothing is there.
    fn create(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        let mut writer = self.writer()?;
        writer.write(bytes)?;
        writer.commit(key)
    }

    /// Begins an object whose length, or whose name, is not known yet.
    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError>;

    /// The same of an object whose name is known, and that will have about `expected` bytes: a store that needs the name first need not
    /// keep the object in memory until the end. `commit` must be given the same name.
    fn writer_for(&self, key: &Key, expected: u64) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        let _ = (key, expected);
        self.writer()
    }

    /// How many copies of an object it writes, each of which may be in memory until it is whole: for whoever divides a budget of bytes.
    fn writes(&self) -> usize {
        1
    }

    /// The whole object. `limit` bounds what is read: a longer object is an error.
    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError>;

    /// Reads the range into `buffer`, which is replaced.
    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError>;

    /// The object's length in bytes.
    fn length(&self, key: &Key) -> Result<u64, StoreError>;

    /// Makes sure that an object which was found is durable, before whoever found it counts it as stored: its writer may have been told that it
    /// is not, or have been killed before it was. Where requests are answered only then, there is nothing to do.
    fn make_durable(&self, key: &Key) -> Result<(), StoreError> {
        let _ = key;
        Ok(())
    }

    /// All objects whose key begins with `prefix` (whole segments: empty, or ending in `/`),
    /// sorted by key.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError>;

    /// Those of [`Store::list`] whose keys are greater than `after`: the end of a long listing.
    fn list_after(&self, prefix: &str, after: &Key) -> Result<Vec<Listed>, StoreError> {
        let mut all = self.list(prefix)?;
        all.retain(|listed| listed.key > *after);
        Ok(all)
    }

    /// The next segments below `prefix`: directories with a `/` at the end, and objects.
    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError>;

    /// Whether there is anything at all, also things that are no objects of ours.
    fn is_empty(&self) -> Result<bool, StoreError>;

    /// Takes an object away, durably. One that is not there is success: whoever asks twice wants the same. Where the store keeps versions,
    /// the object is hidden and its bytes stay, for as long as the store's own rules say.
    ///
    /// # Errors
    ///
    /// [`StoreError::Denied`] if it may not be taken away.
    fn delete(&self, key: &Key) -> Result<(), StoreError>;

    /// Whether requests wait on a network, so that several at the same time bring more than one after the other.
    fn is_remote(&self) -> bool {
        false
    }

    /// Other copies of one object, those to try first in front: views of stores in which this key stands for an older version of it, or
    /// for its copy in another repository. For readers that found the object missing or damaged.
    fn alternatives<'a>(&'a self, key: &Key) -> Result<Vec<Box<dyn Store + 'a>>, StoreError> {
        let _ = key;
        Ok(Vec::new())
    }

    /// The further places that this one writes to, where it is several; for those who must not take what one place lost for what never was.
    fn further(&self) -> Vec<Further<'_>> {
        Vec::new()
    }

    /// Takes down what happened beside an answer. Stores of one copy have nothing to tell.
    fn note(&self, note: Note) {
        let _ = note;
    }

    /// What was taken down since the store was opened.
    fn notes(&self) -> Vec<Note> {
        Vec::new()
    }

    /// The store as it was at a moment, for reading only, in stores that keep versions.
    ///
    /// # Errors
    ///
    /// Of kind [`std::io::ErrorKind::Unsupported`] where nothing older is kept.
    fn as_of<'a>(&'a self, moment: jiff::Timestamp) -> Result<Box<dyn Store + 'a>, StoreError> {
        Err(unsupported("read", &format!("the state of {moment}"), self.url(), "it keeps no versions"))
    }

    /// Keeps an object from being destroyed before a moment, in stores that can. A hold is only ever made longer.
    ///
    /// # Errors
    ///
    /// Of kind [`std::io::ErrorKind::Unsupported`] where the store has no such hold.
    fn retain(&self, key: &Key, until: jiff::Timestamp) -> Result<(), StoreError> {
        Err(unsupported("keep", &format!("{key} until {until}"), self.url(), "it has no Object Lock"))
    }

    /// What the store is and does, tried out, where there is more to try than every store has: see [`probe::examine`].
    fn examine(&self, how: &probe::Examination<'_>) -> Option<lifeboat_core::doctor::store::StoreFacts> {
        let _ = how;
        None
    }
}

/// The store as it was at a moment, for the rest of the process: the store itself stays open until then.
///
/// # Errors
///
/// As [`Store::as_of`].
pub fn at_moment(store: Box<dyn Store>, moment: jiff::Timestamp) -> Result<Box<dyn Store>, OpenError> {
    // The view borrows the store, and both are used until the process ends; a program opens one or two.
    let store = Box::leak(store);
    let url = store.url().to_owned();
    store.as_of(moment).map_err(|source| OpenError::Past { url, moment, source })
}

/// Creates an object with bytes that nobody else writes. A conditional create that failed may have been done all the same, its answer lost
/// on the way: so whatever the error, what is there now is looked at. False: somebody else's is there.
pub(crate) fn create_or_mine(store: &dyn Store, key: &Key, bytes: &[u8]) -> Result<bool, StoreError> {
    let error = match store.create(key, bytes) {
        Ok(()) => return Ok(true),
        // Nothing can have been done, or not everywhere.
        Err(error @ (StoreError::Denied { .. } | StoreError::Full { .. } | StoreError::Replica { .. })) => return Err(error),
        Err(error) => error,
    };
    match store.get(key, bytes.len() as u64) {
        Ok(found) if found == bytes => store.make_durable(key).map(|()| true),
        Ok(_) => Ok(false),
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::FileTooLarge => Ok(false),
        // Whose it is has to be known; of an object that is not there, the first error tells more.
        Err(unread) if matches!(error, StoreError::Exists { .. }) => Err(unread),
        Err(_) => Err(error),
    }
}

/// Reads a range, and makes sure that all of it came: who takes bytes apart by their places must not find fewer.
pub(crate) fn read_range(store: &dyn Store, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
    let wanted = range.end.saturating_sub(range.start);
    store.get_range(key, range, buffer)?;
    if buffer.len() as u64 == wanted {
        return Ok(());
    }
    let source = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, format!("{} bytes came instead of {wanted}", buffer.len()));
    Err(StoreError::Io { action: "read", key: key.to_string(), store: store.url().to_owned(), source })
}

/// The longest prefix in a bucket. S3, Google and Azure end keys at 1024 bytes, and the keys of a repository take up to 794 of them.
const MAX_PREFIX_BYTES: usize = 230;

fn check_prefix(url: &str, prefix: &str) -> Result<(), OpenError> {
    if prefix.len() > MAX_PREFIX_BYTES || !(prefix.is_empty() || Key::parse(prefix).is_ok()) {
        let reason = "a prefix has at most 230 characters of ASCII, no blank, and no empty segment";
        return Err(OpenError::Address { url: url.to_owned(), reason });
    }
    Ok(())
}

fn unsupported(action: &'static str, key: &str, store: &str, why: &str) -> StoreError {
    let source = std::io::Error::new(std::io::ErrorKind::Unsupported, why.to_owned());
    StoreError::Io { action, key: key.to_owned(), store: store.to_owned(), source }
}

/// How to reach a store, beside its URL: region, path style and profile are of `s3://` alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreOptions {
    /// The server, where it is not the cloud's own: `https://host:port`.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// Whether the bucket stands in the path and not in the host name; where nobody says, if and only if there is an endpoint.
    pub path_style: Option<bool>,
    /// The profile whose credentials count.
    pub profile: Option<String>,
    /// PEM certificates to believe instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// How long objects are held; otherwise as the bucket says.
    pub retention: Option<lifeboat_core::hold::Retention>,
    /// The storage account of an `az://` store.
    pub account: Option<String>,
    /// The file with the credentials of a `gs://` store.
    pub credentials_file: Option<std::path::PathBuf>,
}

/// Opens the store at a URL: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `file:///absolute/path`, or a plain
/// path. `make` makes a directory that is missing;
/// a bucket is never made, because who makes it decides about versions and Object Lock.
///
/// # Errors
///
/// A one-line reason: another scheme, a path that is not absolute, a server that cannot be reached.
pub fn open(url: &str, options: &StoreOptions, make: bool) -> Result<Box<dyn Store>, OpenError> {
    let path = match url.split_once("://") {
        None => url,
        Some(("file", path)) => path,
        Some(("s3", _)) => return Ok(Box::new(S3Store::open(url, options)?)),
        Some(("gs" | "az" | "azure", _)) => return Ok(Box::new(CloudStore::open(url, options)?)),
        Some((scheme, _)) => return Err(OpenError::Scheme(scheme.to_owned())),
    };
    if path.is_empty() {
        return Err(OpenError::Missing(url.to_owned()));
    }
    Ok(Box::new(LocalStore::open(std::path::Path::new(path), make)?))
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a kind of store that this program knows.
    #[error("open a store with scheme {0:?}: this build knows file://, s3://, gs:// and az://")]
    Scheme(String),
    /// The URL is none of a bucket and a prefix.
    #[error("open {url}: {reason}")]
    Address {
        /// The URL.
        url: String,
        /// Why not.
        reason: &'static str,
    },
    /// There is no such bucket.
    #[error("open {0}: no such bucket")]
    NoBucket(String),
    /// It cannot be read as it was.
    #[error("open {url} as it was at {moment}")]
    Past {
        /// The URL.
        url: String,
        /// When.
        moment: jiff::Timestamp,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// The directory is not there.
    #[error("open {0}: no such directory")]
    Missing(String),
    /// The directory cannot be used.
    #[error("open {path}")]
    Io {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
