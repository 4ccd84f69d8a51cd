//! The two digests of a WAL file's plain bytes, both signed. By SHA-256 everybody can verify the statement; BLAKE3 is made in less than half of the
//! time, and a digest is much of the work of bringing a segment back (docs/decisions/0009-wal-archive.md).

use aws_lc_rs::digest::{Context, SHA256};
use lifeboat_core::repository::{Blake3, Sha256};
use lifeboat_core::wal::file::WalPredicate;

use crate::sha256;

/// The digests of a file that is to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// The one of the statement's subject.
    pub sha256: Sha256,
    /// The one of its predicate.
    pub blake3: Blake3,
}

impl Digests {
    /// Of bytes that are at hand.
    pub fn of(bytes: &[u8]) -> Self {
        Self { sha256: sha256::of(bytes), blake3: Blake3(*blake3::hash(bytes).as_bytes()) }
    }
}

/// Digests of what is read bit by bit.
pub(super) struct Digesting {
    sha256: Context,
    blake3: blake3::Hasher,
}

impl Digesting {
    pub(super) fn new() -> Self {
        Self { sha256: Context::new(&SHA256), blake3: blake3::Hasher::new() }
    }

    pub(super) fn update(&mut self, part: &[u8]) {
        self.sha256.update(part);
        self.blake3.update(part);
    }

    pub(super) fn finish(self) -> Digests {
        Digests { sha256: sha256::finish(self.sha256), blake3: Blake3(*self.blake3.finalize().as_bytes()) }
    }
}

/// Which of the signed digests are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Care {
    /// One that is enough, whichever is made sooner.
    One,
    /// Each that is there: it was somebody's mistake if they are of different bytes, and others verify by the one that this program passes over.
    All,
}

/// What came out, compared with what was signed.
pub(super) struct Comparing {
    sha256: Option<(Context, Sha256)>,
    blake3: Option<(blake3::Hasher, Blake3)>,
}

impl Comparing {
    pub(super) fn new(sha256: Sha256, predicate: &WalPredicate, care: Care) -> Self {
        let blake3 = predicate.blake3.map(|signed| (blake3::Hasher::new(), signed));
        let sha256 = (care == Care::All || blake3.is_none()).then(|| (Context::new(&SHA256), sha256));
        Self { sha256, blake3 }
    }

    pub(super) fn update(&mut self, part: &[u8]) {
        if let Some((context, _)) = &mut self.sha256 {
            context.update(part);
        }
        if let Some((hasher, _)) = &mut self.blake3 {
            hasher.update(part);
        }
    }

    /// Whether all that was given has the signed digests.
    pub(super) fn matches(self) -> bool {
        let by_sha256 = self.sha256.is_none_or(|(context, signed)| sha256::finish(context) == signed);
        let by_blake3 = self.blake3.is_none_or(|(hasher, signed)| *hasher.finalize().as_bytes() == signed.0);
        by_sha256 && by_blake3
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_core::wal::SegmentSize;

    use super::*;

    fn is_same(bytes: &[u8], sha256: Sha256, blake3: Option<Blake3>, care: Care) -> bool {
        let predicate = WalPredicate { blake3, ..WalPredicate::new(bytes.len() as u64, SegmentSize::DEFAULT) };
        let mut comparing = Comparing::new(sha256, &predicate, care);
        bytes.chunks(1000).for_each(|part| comparing.update(part));
        comparing.matches()
    }

    #[test]
    fn one_digest_is_compared_or_each_that_is_signed() {
        let bytes: Vec<u8> = (0..10_000u32).map(|at| (at / 7) as u8).collect();
        let (good, other) = (Digests::of(&bytes), Digests::of(&bytes[1..]));
        for care in [Care::One, Care::All] {
            assert!(is_same(&bytes, good.sha256, Some(good.blake3), care));
            assert!(is_same(&bytes, good.sha256, None, care), "of an early writer");
            assert!(!is_same(&bytes, other.sha256, None, care));
            assert!(!is_same(&bytes, good.sha256, Some(other.blake3), care));
            assert!(!is_same(&bytes, other.sha256, Some(other.blake3), care));
        }
        assert!(is_same(&bytes, other.sha256, Some(good.blake3), Care::One));
        assert!(!is_same(&bytes, other.sha256, Some(good.blake3), Care::All));
        let mut digesting = Digesting::new();
        bytes.chunks(777).for_each(|part| digesting.update(part));
        assert_eq!(digesting.finish(), good);
    }
}
