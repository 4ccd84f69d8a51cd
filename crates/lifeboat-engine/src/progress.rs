//! Progress: how far a long piece of work has come, told to whoever shows it.
//!
//! Only numbers pass here. How often they are shown, and where, is the binary's.

/// Told by threads that do the work, as they do it.
pub trait Progress: Sync {
    /// How much there is to do. May be told more than once, as more becomes known.
    fn total(&self, files: u64, bytes: u64);

    /// So much more is done.
    fn add(&self, files: u64, bytes: u64);
}

/// Progress that nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn total(&self, _files: u64, _bytes: u64) {}

    fn add(&self, _files: u64, _bytes: u64) {}
}
