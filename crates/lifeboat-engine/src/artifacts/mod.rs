//! Artifacts: stored by content, versioned, each signed, and listed in a catalog that needs no
//! listing of the store (format 8).
//!
//! To follow an artifact into the repository read `write`, then `catalog`; out of it, `read`, then
//! `restore`. A directory as a whole goes through `walk` and `sync`. Nothing here holds the whole set
//! in memory, save [`references`](cross_check), which says what it takes. Damage to what is stored is
//! a [`Finding`], a value; an [`ArtifactError`] is what ends the work.

mod beneath;
mod catalog;
mod keys;
mod lacking;
pub(crate) mod prune;
mod read;
mod references;
mod restore;
mod sync;
mod verify;
mod walk;
pub(crate) mod workers;
mod write;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use lifeboat_core::repository::{FormatError, layout::ArtifactName};
use serde::Serialize;

use crate::causes;
use crate::keys::KeyError;
use crate::signing::SignError;
use crate::store::StoreError;

pub(crate) use keys::keys_of_set;

pub use catalog::{ArtifactSet, MAX_HEAD_BYTES, newest_head};
pub use lacking::{Lacking, lacking};
pub use read::{MAX_RECORD_BYTES, Reader, Replace};
pub use references::{MAX_LISTED, References, cross_check};
pub use restore::{RestoreReport, restore_set};
pub use sync::{SYNC_THREADS, SyncOptions, SyncReport, plan_sync};
pub use verify::{Sample, VerifyReport, verify_set};
pub use walk::{Note, WalkNotes};
pub use write::{Put, Source, Writer};

/// Why work on artifacts ended.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The store failed, is full, or does not allow it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The repository's bytes are of a newer format, or not in the format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A data key could not be wrapped.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The record could not be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// What was asked for is damaged, missing, or cannot be trusted.
    #[error("{0}")]
    Finding(Finding),
    /// There is no such artifact in the set.
    #[error("find artifact {0}: it is not in the set")]
    NotFound(ArtifactName),
    /// A file of the caller's could not be read.
    #[error("read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of the caller's changed as often as it was read.
    #[error("read {}: it changes while it is read", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// Some of a directory could not be read or stored, so that its set would be wrong.
    #[error("sync {}: {} could not be stored, first {}", directory.display(), unreadable.count, unreadable.first.first().map_or_else(String::new, ToString::to_string))]
    Unreadable {
        /// The directory.
        directory: PathBuf,
        /// What could not be read, and why.
        unreadable: Box<Capped<Note>>,
    },
    /// The directory is empty, or not there, and every artifact would leave the set.
    #[error("sync {}: {problem}, and {gone} artifacts would leave the set", directory.display())]
    WouldEmpty {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
        /// How many.
        gone: u64,
    },
    /// The directory holds the repository, which would store itself.
    #[error("sync {}: the repository {url} is inside it", directory.display())]
    HoldsRepository {
        /// The directory.
        directory: PathBuf,
        /// The repository.
        url: String,
    },
    /// Something is where an artifact should be written.
    #[error("write {}: {problem}", path.display())]
    Occupied {
        /// The place.
        path: PathBuf,
        /// What is there.
        problem: &'static str,
    },
    /// A file or directory could not be written.
    #[error("write {}", path.display())]
    Target {
        /// The place.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What was relied on may have been pruned: to be done again from the beginning.
    #[error("change the artifact set: unneeded artifacts were pruned again and again meanwhile")]
    Pruned,
    /// A prune takes away what is to be written, and does not end.
    #[error("write {0}: it is being pruned")]
    Condemned(String),
    /// Others changed the set again and again.
    #[error("change the artifact set: others were faster {0} times")]
    Contended(u32),
}

/// Something wrong with one stored artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The artifact; `None` for a catalog run, which speaks of many.
    pub name: Option<ArtifactName>,
    /// The key of the object that is at fault.
    pub object: String,
    /// What is wrong with it.
    #[serde(flatten)]
    pub problem: Problem,
}

/// What is wrong. These are different answers, and none of them is a pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "problem", content = "why")]
pub enum Problem {
    /// The object is not there.
    Missing,
    /// The object's bytes are not those that were stored.
    Corrupt(String),
    /// No key that is trusted signed it.
    Unsigned(String),
    /// Its signature does not hold, or is about something else.
    BadSignature(String),
    /// The identity at hand does not open it, or there is none.
    Locked(String),
    /// It could not be looked at.
    NotChecked(String),
    /// It is sound, and could not be written to where it should go.
    NotRestored(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Corrupt(why) => write!(f, "corrupt: {why}"),
            Self::Unsigned(why) => write!(f, "unsigned: {why}"),
            Self::BadSignature(why) => write!(f, "bad signature: {why}"),
            Self::Locked(why) => write!(f, "locked: {why}"),
            Self::NotChecked(why) => write!(f, "not checked: {why}"),
            Self::NotRestored(why) => write!(f, "not restored: {why}"),
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "artifact {name}: {} ({})", self.problem, self.object),
            None => write!(f, "{}: {}", self.object, self.problem),
        }
    }
}

/// The most that one list of a report keeps: ten million complaints would not fit into memory, nor
/// would anyone read them. The count is always whole.
pub const MAX_KEPT: usize = 10_000;

/// The first of many, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capped<T> {
    /// How many there are.
    pub count: u64,
    /// The first [`MAX_KEPT`] of them.
    pub first: Vec<T>,
}

impl<T> Default for Capped<T> {
    fn default() -> Self {
        Self { count: 0, first: Vec::new() }
    }
}

impl<T> Capped<T> {
    /// One more.
    pub fn push(&mut self, item: T) {
        self.count += 1;
        if self.first.len() < MAX_KEPT {
            self.first.push(item);
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What a failed read of an object that must be there means.
fn problem_of(error: &StoreError) -> Problem {
    match error {
        StoreError::NotFound { .. } => Problem::Missing,
        StoreError::Short { .. } => Problem::Corrupt(error.to_string()),
        // The limit was what the catalog allows it to have.
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::FileTooLarge => {
            Problem::Corrupt("longer than it can be".into())
        }
        _ => Problem::NotChecked(causes::joined(error)),
    }
}
