//! Pages of relations: is one as PostgreSQL wrote it?
//!
//! The checksum is that of `src/include/storage/checksum_impl.h`; the header that of
//! `src/include/storage/bufpage.h`.

use crate::wal::Lsn;

/// Bytes of a page; builds with another block size are not checked page by page.
pub const PAGE_BYTES: usize = 8192;

const SUMS: usize = 32;
const FNV_PRIME: u32 = 16_777_619;
const BASE_OFFSETS: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What is wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageProblem {
    /// The stored checksum is not that of the bytes.
    Checksum {
        /// In the header.
        stored: u16,
        /// Of the bytes.
        computed: u16,
    },
    /// The header says "new page", and yet there are bytes in it (c015).
    NewButNotZero,
    /// The file ends within a page, not on a 512-byte sector: no partial write leaves that (c016).
    Misaligned {
        /// Bytes of the part.
        bytes: usize,
    },
}

impl std::fmt::Display for PageProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Checksum { stored, computed } => write!(f, "checksum {stored:04x} in the header, {computed:04x} of the bytes"),
            Self::NewButNotZero => f.write_str("marked as new, but not all zero"),
            Self::Misaligned { bytes } => write!(f, "the file ends {bytes} bytes into a page"),
        }
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn block_checksum(page: &[u8; PAGE_BYTES]) -> u32 {
    let mut sums = BASE_OFFSETS;
    for (row_number, row) in page.chunks_exact(SUMS * 4).enumerate() {
        for lane in 0..SUMS {
            let mut value = u32::from_le_bytes([row[lane * 4], row[lane * 4 + 1], row[lane * 4 + 2], row[lane * 4 + 3]]);
            // pd_checksum, in the low half of the third word, counts as zero.
            if row_number == 0 && lane == 2 {
                value &= 0xFFFF_0000;
            }
            let mixed = sums[lane] ^ value;
            sums[lane] = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
        }
    }
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = sum.wrapping_mul(FNV_PRIME) ^ (*sum >> 17);
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

/// The checksum of a page that is block `block` of its relation (counted over all its files).
pub fn checksum(page: &[u8; PAGE_BYTES], block: u32) -> u16 {
    ((block_checksum(page) ^ block) % 65535 + 1) as u16
}

/// Checks one page. `block` counts from the beginning of the relation, over its files (c017).
pub fn check(page: &[u8; PAGE_BYTES], block: u32) -> Result<(), PageProblem> {
    let upper = u16::from_le_bytes([page[14], page[15]]);
    if upper == 0 {
        // A new page has no checksum; it is all zero or it is damaged.
        return if page.iter().all(|b| *b == 0) { Ok(()) } else { Err(PageProblem::NewButNotZero) };
    }
    let stored = u16::from_le_bytes([page[8], page[9]]);
    let computed = checksum(page, block);
    if stored == computed { Ok(()) } else { Err(PageProblem::Checksum { stored, computed }) }
}

/// Checks what stands after the last whole page of a file: a write in progress ends on a sector.
pub fn check_tail(bytes: usize) -> Result<(), PageProblem> {
    if bytes.is_multiple_of(512) { Ok(()) } else { Err(PageProblem::Misaligned { bytes }) }
}

/// The LSN of the last change of a page.
pub fn lsn(page: &[u8; PAGE_BYTES]) -> Lsn {
    let half = |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    Lsn(half(0) << 32 | half(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        for (at, byte) in page.iter_mut().enumerate() {
            *byte = (at * 31 % 251) as u8;
        }
        let checksum = checksum(&page, 7);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    #[test]
    fn every_flip_is_noticed_and_the_checksum_field_is_left_out() {
        let good = page();
        assert_eq!(check(&good, 7), Ok(()));
        for at in (0..PAGE_BYTES).step_by(97) {
            let mut bad = good;
            bad[at] ^= 1;
            assert!(check(&bad, 7).is_err(), "byte {at}");
        }
    }

    #[test]
    fn c015_a_new_page_must_be_all_zero() {
        let mut page = [0; PAGE_BYTES];
        assert_eq!(check(&page, 0), Ok(()));
        page[8191] = 1;
        assert_eq!(check(&page, 0), Err(PageProblem::NewButNotZero));
    }

    #[test]
    fn c016_a_partial_last_page_ends_on_a_sector() {
        assert_eq!(check_tail(0), Ok(()));
        assert_eq!(check_tail(512), Ok(()));
        assert_eq!(check_tail(513), Err(PageProblem::Misaligned { bytes: 513 }));
    }

    #[test]
    fn c017_the_block_number_is_part_of_the_checksum() {
        assert_eq!(check(&page(), 7), Ok(()));
        assert!(check(&page(), 7 + 131_072).is_err());
    }
}
