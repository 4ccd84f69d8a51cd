//! SHA-256 with the fast library, as core's digest.

use aws_lc_rs::digest::{self, Context, SHA256};
use lifeboat_core::repository::Sha256;

/// The digest of bytes that are at hand.
pub(crate) fn of(bytes: &[u8]) -> Sha256 {
    from(&digest::digest(&SHA256, bytes))
}

/// The digest of all that `context`, of SHA-256, was given.
pub(crate) fn finish(context: Context) -> Sha256 {
    from(&context.finish())
}

fn from(digest: &digest::Digest) -> Sha256 {
    Sha256(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}
