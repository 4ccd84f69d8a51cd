//! Checksums of what was received of a segment, page by page, kept in memory as long as the segment is in the spool.

/// Bytes under one checksum; the last may have fewer.
pub(super) const PAGE_BYTES: usize = 8192;

/// The checksums of the first bytes of a segment.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pages: Vec<u32>,
    length: u64,
}

/// Those of some of its bytes.
#[derive(Debug)]
pub(super) struct Covering {
    /// Where the first of the pages begins,
    pub(super) start: u64,
    /// and where what is known of the last ends.
    pub(super) end: u64,
    pub(super) pages: Vec<u32>,
}

impl Checks {
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Adds the bytes that follow.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let within = (self.length % PAGE_BYTES as u64) as usize;
            let (part, rest) = bytes.split_at(bytes.len().min(PAGE_BYTES - within));
            if within == 0 {
                self.pages.push(0);
            }
            if let Some(page) = self.pages.last_mut() {
                *page = crc32c::crc32c_append(*page, part);
            }
            self.length += part.len() as u64;
            bytes = rest;
        }
    }

    /// The checksum of a page and the bytes of it that are known; `None`: none are.
    pub(super) fn page(&self, number: usize) -> Option<(u32, usize)> {
        let start = number as u64 * PAGE_BYTES as u64;
        let known = self.length.saturating_sub(start).min(PAGE_BYTES as u64);
        self.pages.get(number).map(|page| (*page, known as usize))
    }

    /// Forgets all but the first pages.
    pub(super) fn cut(&mut self, pages: usize) {
        self.pages.truncate(pages);
        self.length = self.length.min(pages as u64 * PAGE_BYTES as u64);
    }

    /// Those of the pages that hold the bytes [from, to), as far as they are known.
    pub(super) fn covering(&self, from: u64, to: u64) -> Covering {
        let page = PAGE_BYTES as u64;
        let first = (from.min(self.length) / page) as usize;
        let end = to.next_multiple_of(page).min(self.length);
        let last = (end.div_ceil(page) as usize).max(first);
        let start = first as u64 * page;
        Covering { start, end: end.max(start), pages: self.pages.get(first..last).unwrap_or_default().to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_checked_however_they_came() {
        let bytes: Vec<u8> = (0..50_000u32).map(|n| (n * 7 / 3) as u8).collect();
        let mut checks = Checks::default();
        for part in bytes.chunks(777) {
            checks.add(part);
        }
        assert_eq!(checks.length(), 50_000);
        for (from, to) in [(0, 50_000), (8192, 8193), (100, 20_000), (49_152, 50_000), (0, 1), (49_999, 50_000)] {
            let covering = checks.covering(from, to);
            assert!(covering.start <= from && covering.end >= to);
            let pages: Vec<u32> = bytes[covering.start as usize..covering.end as usize].chunks(PAGE_BYTES).map(crc32c::crc32c).collect();
            assert_eq!(covering.pages, pages);
        }
        assert!(checks.covering(60_000, 70_000).pages.len() <= 1);
        assert_eq!(checks.page(6).map(|(_, known)| known), Some(50_000 - 6 * PAGE_BYTES));
        assert_eq!(checks.page(7), None);
        checks.cut(7);
        assert_eq!(checks.length(), 50_000);
        checks.cut(2);
        assert_eq!((checks.length(), checks.page(1).map(|(_, known)| known)), (2 * PAGE_BYTES as u64, Some(PAGE_BYTES)));
        assert_eq!(checks.page(2), None);
    }
}
