//! Who cannot open what the set has.
//!
//! A blob is written once, and its key is wrapped to those who were recipients then; nothing is ever overwritten. So what was stored before
//! somebody became a recipient is not encrypted to them, however often it is backed up afterwards. Age does not tell to whom a key is wrapped:
//! writers note it beside the key, and in the catalog, where it costs no request to look.

use lifeboat_core::repository::layout::ArtifactName;
use serde::Serialize;

use super::ArtifactError;
use super::catalog::ArtifactSet;

/// Artifacts that somebody cannot open who should.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Lacking {
    /// How many.
    pub count: u64,
    /// The first by name.
    pub first: Option<ArtifactName>,
}

/// Counts the artifacts of a set that one of these recipients, named by their [marks](crate::keys::Recipient::mark), cannot open. What early
/// writers stored, who noted nothing, is not among them. Reads the whole catalog.
///
/// # Errors
///
/// A run of the set could not be read, or is damaged.
pub fn lacking(set: &ArtifactSet<'_>, marks: &[String]) -> Result<Lacking, ArtifactError> {
    let mut lacking = Lacking::default();
    for entry in set.entries("") {
        let entry = entry?;
        if entry.lacks(marks) {
            lacking.count += 1;
            lacking.first.get_or_insert(entry.name);
        }
    }
    Ok(lacking)
}

impl std::fmt::Display for Lacking {
    /// What it means, and what to do.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first = self.first.as_ref().map_or("unknown", ArtifactName::as_str);
        write!(
            f,
            "{} artifacts, first {first}, were stored before encryption.recipients named all that it names now, and not all of them can open \
             these: keep the identities from then, or begin a new repository (docs/trust.md, Replacing a key)",
            self.count
        )
    }
}
