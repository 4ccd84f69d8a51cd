//! How far something has come: told to whoever watches, never printed here.

/// Watches a copy, a restore, a check. Called from many threads.
pub trait Progress: Sync {
    /// A new phase begins, with its name; what was counted before belongs to the last one.
    fn phase(&self, _name: &'static str) {}
    /// How much there is to do in this phase, once known.
    fn total(&self, _files: u64, _bytes: u64) {}
    /// So much more is done.
    fn add(&self, _files: u64, _bytes: u64) {}
    /// Something an operator should know while it runs.
    fn warn(&self, _message: &str) {}
}

/// Nobody watches.
pub struct Unwatched;

impl Progress for Unwatched {}
