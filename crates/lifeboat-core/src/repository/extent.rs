//! Extents and fragments: how a file's bytes map to places in packs (format 5).

use super::FormatError;

/// Bytes in an extent. 256 KiB stays in the cache while it is hashed, compressed and sealed; 1 MiB
/// was measured slower.
pub const EXTENT_BYTES: u64 = 256 * 1024;

/// Bytes in a page, PostgreSQL's default block.
pub const PAGE_BYTES: u64 = 8192;

/// The most fragments an extent may have; the next change rewrites it whole.
pub const MAX_FRAGMENTS: usize = 4;

/// Bytes of BLAKE3 kept of a fragment's plain bytes.
pub const CHECK_BYTES: usize = 16;

/// Some pages of one extent, at one place in one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Which of the extent's 32 pages it holds; bit 0 is the first.
    pub bitmap: u32,
    /// Index in the manifest's list of packs.
    pub pack: u32,
    /// Where the frame begins in the pack.
    pub offset: u32,
    /// Sealed bytes of the frame.
    pub length: u32,
    /// First bytes of the BLAKE3 of the plain bytes.
    pub check: [u8; CHECK_BYTES],
}

/// One extent: fragments, newest first. None at all: every byte is zero.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extent {
    /// At most [`MAX_FRAGMENTS`].
    pub fragments: Vec<Fragment>,
}

/// How many extents a file of `size` bytes has.
pub fn extent_count(size: u64) -> u64 {
    size.div_ceil(EXTENT_BYTES)
}

/// How many bytes extent `index` of a file of `size` bytes has.
pub fn extent_bytes(size: u64, index: u64) -> u64 {
    size.saturating_sub(index * EXTENT_BYTES).min(EXTENT_BYTES)
}

/// The bitmap of an extent of `bytes` that is stored whole.
pub fn full_bitmap(bytes: u64) -> u32 {
    match bytes.div_ceil(PAGE_BYTES) {
        0 => 0,
        pages @ 1..=31 => (1 << pages) - 1,
        _ => u32::MAX,
    }
}

/// A run of pages to copy from a fragment's plain bytes into the extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the fragment's plain bytes.
    pub from: usize,
    /// Offset in the extent.
    pub to: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Fragment {
    /// How many plain bytes it holds of an extent of `extent_bytes`.
    ///
    /// # Errors
    ///
    /// A bitmap that names pages beyond the extent, or none.
    pub fn plain_bytes(&self, extent_bytes: u64) -> Result<usize, FormatError> {
        let allowed = full_bitmap(extent_bytes);
        if self.bitmap == 0 || self.bitmap & !allowed != 0 {
            return Err(FormatError::malformed(
                "fragment",
                format!("bitmap {:08x} does not fit an extent of {extent_bytes} bytes", self.bitmap),
            ));
        }
        let last_page = (extent_bytes.div_ceil(PAGE_BYTES) - 1) as u32;
        let missing_of_last = if self.bitmap >> last_page & 1 == 1 { u64::from(last_page + 1) * PAGE_BYTES - extent_bytes } else { 0 };
        Ok((u64::from(self.bitmap.count_ones()) * PAGE_BYTES - missing_of_last) as usize)
    }
}

impl Extent {
    /// Which pages each fragment gives: the newest that has a page wins. Fragments that give
    /// nothing get an empty list.
    pub fn pieces(&self, extent_bytes: u64) -> Result<Vec<Vec<Piece>>, FormatError> {
        if self.fragments.len() > MAX_FRAGMENTS {
            return Err(FormatError::malformed(
                "extent",
                format!("{} fragments, at most {MAX_FRAGMENTS} are allowed", self.fragments.len()),
            ));
        }
        let mut taken = 0u32;
        let mut all = Vec::with_capacity(self.fragments.len());
        for fragment in &self.fragments {
            fragment.plain_bytes(extent_bytes)?;
            let mut pieces: Vec<Piece> = Vec::new();
            let mut from = 0;
            for page in 0..32u64 {
                if fragment.bitmap >> page & 1 == 0 {
                    continue;
                }
                let to = (page * PAGE_BYTES) as usize;
                let bytes = (extent_bytes - page * PAGE_BYTES).min(PAGE_BYTES) as usize;
                if taken >> page & 1 == 0 {
                    match pieces.last_mut() {
                        Some(last) if last.from + last.bytes == from && last.to + last.bytes == to => last.bytes += bytes,
                        _ => pieces.push(Piece { from, to, bytes }),
                    }
                }
                from += bytes;
            }
            taken |= fragment.bitmap;
            all.push(pieces);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fragment(bitmap: u32) -> Fragment {
        Fragment { bitmap, pack: 0, offset: 0, length: 1, check: [0; CHECK_BYTES] }
    }

    #[test]
    fn a_whole_extent_is_one_piece() {
        let extent = Extent { fragments: vec![fragment(u32::MAX)] };
        assert_eq!(extent.pieces(EXTENT_BYTES).unwrap(), [[Piece { from: 0, to: 0, bytes: EXTENT_BYTES as usize }]]);
        assert_eq!(full_bitmap(0), 0);
        assert_eq!(full_bitmap(1), 1);
        assert_eq!(full_bitmap(8193), 3);
        assert_eq!(full_bitmap(EXTENT_BYTES), u32::MAX);
    }

    #[test]
    fn a_bitmap_beyond_the_extent_is_refused() {
        assert!(fragment(0b100).plain_bytes(2 * PAGE_BYTES).is_err());
        assert!(fragment(0).plain_bytes(PAGE_BYTES).is_err());
        assert_eq!(fragment(0b11).plain_bytes(PAGE_BYTES + 5), Ok(8197));
        assert_eq!(fragment(0b01).plain_bytes(PAGE_BYTES + 5), Ok(8192));
    }

    proptest! {
        /// Rebuilding page by page from the definition gives what the pieces give.
        #[test]
        fn the_newest_fragment_that_has_a_page_wins(size in 1..=EXTENT_BYTES, bitmaps in prop::collection::vec(any::<u32>(), 0..=MAX_FRAGMENTS)) {
            let fragments: Vec<_> = bitmaps.iter().map(|b| b & full_bitmap(size)).filter(|b| *b != 0).map(fragment).collect();
            // Fragment number n holds pages of the byte n + 1.
            let extent = Extent { fragments: fragments.clone() };
            let mut built = vec![0u8; size as usize];
            for (number, pieces) in extent.pieces(size).unwrap().into_iter().enumerate() {
                let plain = vec![number as u8 + 1; fragments[number].plain_bytes(size).unwrap()];
                for piece in pieces {
                    built[piece.to..piece.to + piece.bytes].copy_from_slice(&plain[piece.from..piece.from + piece.bytes]);
                }
            }
            for (page, bytes) in built.chunks(PAGE_BYTES as usize).enumerate() {
                let expected = fragments.iter().position(|f| f.bitmap >> page & 1 == 1).map_or(0, |n| n as u8 + 1);
                prop_assert!(bytes.iter().all(|b| *b == expected));
            }
        }
    }
}
