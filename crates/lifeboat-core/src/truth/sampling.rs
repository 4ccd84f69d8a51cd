//! Which tables are read, and which blocks of large ones.
//!
//! Every backup has a budget of bytes. Its seed puts the tables in an order, in which they are read until the budget is used up: over many
//! backups each has its turn. Of a table that is larger than one table may cost, ranges of blocks are read: one of each of its parts,
//! and its last block, because a tail that was cut off is what nothing else finds.

use crate::repository::Sha256;

/// How many ranges are read of a table at most, beside its last block.
const PIECES: u64 = 16;

/// How much is read of the tables of one backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of all tables, TOAST included. 0: the truth is not recorded.
    pub bytes: u64,
    /// Bytes of one table.
    pub table_bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: 256 << 20, table_bytes: 32 << 20 }
    }
}

/// How large a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Blocks of its main fork.
    pub blocks: u32,
    /// Bytes with TOAST.
    pub bytes: u64,
    /// Whether ranges of blocks can be read: a heap, on a server that scans ranges of TIDs (from 14).
    pub ranges: bool,
}

/// What is read of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Portion {
    /// All of it.
    Whole {
        /// Bytes of the budget that it takes.
        cost: u64,
    },
    /// These blocks, `[from, to)`, ascending.
    Ranges {
        /// Which.
        ranges: Vec<(u32, u32)>,
        /// Bytes of the budget that they take, about.
        cost: u64,
    },
    /// Nothing.
    Nothing {
        /// Why.
        why: &'static str,
    },
}

/// Where a table stands in the order of one seed.
pub fn rank(seed: u64, database: &str, schema: &str, table: &str) -> u64 {
    let digest = Sha256::of(format!("{seed}\0{database}\0{schema}\0{table}").as_bytes());
    digest.0[..8].iter().fold(0, |rank, byte| rank << 8 | u64::from(*byte))
}

/// What is read of a table, with so many bytes of the budget `left`. `dice` is the table's [`rank`].
pub fn portion(size: Size, budget: Budget, left: u64, dice: u64) -> Portion {
    let allowed = budget.table_bytes.min(left);
    if size.bytes <= allowed {
        return Portion::Whole { cost: size.bytes };
    }
    if left == 0 {
        return Portion::Nothing { why: "the backup's budget was used up by other tables (drill.truth_bytes)" };
    }
    if !size.ranges {
        return Portion::Nothing { why: "it is larger than the budget, and parts of it cannot be read (a heap, and PostgreSQL 14, can)" };
    }
    let blocks = u64::from(size.blocks);
    let share = u64::try_from(u128::from(blocks) * u128::from(allowed) / u128::from(size.bytes.max(1))).unwrap_or(0).min(blocks);
    if share == 0 {
        return Portion::Nothing { why: "what was left of the backup's budget is less than a block of it (drill.truth_bytes)" };
    }
    let mut state = dice;
    // The last block is always read, and every other has its turn.
    let (body, share) = if share > 1 { (blocks - 1, share - 1) } else { (blocks, 1) };
    let pieces = share.min(PIECES);
    let length = share / pieces;
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    let mut read = |from: u64, to: u64| {
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        match ranges.last_mut() {
            Some((_, end)) if *end == number(from) => *end = number(to),
            _ => ranges.push((number(from), number(to))),
        }
    };
    for piece in 0..pieces {
        let (from, to) = (body * piece / pieces, body * (piece + 1) / pieces);
        let start = from + next(&mut state) % ((to - from).saturating_sub(length) + 1);
        read(start, start + length);
    }
    if body < blocks {
        read(body, blocks);
    }
    Portion::Ranges { ranges, cost: allowed }
}

/// SplitMix64 (Steele, Lea, Flood, 2014): small, and nothing depends on it being hard to guess.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn small_tables_are_read_whole_and_nothing_beyond_the_budget() {
        let budget = Budget { bytes: 100, table_bytes: 10 };
        let size = |bytes, ranges| Size { blocks: 1000, bytes, ranges };
        assert_eq!(portion(size(10, true), budget, 10, 1), Portion::Whole { cost: 10 });
        assert_eq!(portion(size(0, false), budget, 0, 1), Portion::Whole { cost: 0 });
        assert!(matches!(portion(size(11, true), budget, 0, 1), Portion::Nothing { .. }));
        assert!(matches!(portion(size(11, false), budget, 10, 1), Portion::Nothing { .. }));
        assert!(matches!(portion(size(11, true), budget, 9, 1), Portion::Ranges { cost: 9, .. }));
    }

    #[test]
    fn over_many_backups_every_table_and_every_block_has_its_turn() {
        // 40 tables of 4 MiB, of which a budget of 16 MiB takes four at a time.
        let budget = Budget { bytes: 16 * MIB, table_bytes: 4 * MIB };
        let mut seen = BTreeSet::new();
        for seed in 0..100 {
            let mut order: Vec<usize> = (0..40).collect();
            order.sort_by_key(|table| rank(seed, "app", "public", &format!("t{table}")));
            seen.extend(order.into_iter().take(4));
        }
        assert_eq!(seen.len(), 40);
        let size = Size { blocks: 5120, bytes: 40 * MIB, ranges: true };
        let mut blocks = BTreeSet::new();
        for seed in 0..400 {
            let Portion::Ranges { ranges, .. } = portion(size, budget, budget.bytes, rank(seed, "app", "public", "big")) else {
                panic!("a part of it")
            };
            assert_eq!(ranges.last().unwrap().1, 5120, "the tail always");
            blocks.extend(ranges.into_iter().flat_map(|(from, to)| from..to));
        }
        assert!(blocks.len() > 5000, "{} of 5120", blocks.len());
    }

    proptest! {
        #[test]
        fn portions_are_within_table_and_budget(blocks: u32, bytes: u64, ranges: bool, table_bytes: u64, left: u64, dice: u64) {
            let budget = Budget { bytes: u64::MAX, table_bytes };
            match portion(Size { blocks, bytes, ranges }, budget, left, dice) {
                Portion::Whole { cost } => prop_assert!(cost <= left && cost <= table_bytes),
                Portion::Nothing { .. } => {}
                Portion::Ranges { ranges, cost } => {
                    prop_assert!(cost <= left && cost <= table_bytes && !ranges.is_empty() && ranges.len() <= 17);
                    prop_assert!(ranges.iter().all(|(from, to)| from < to && *to <= blocks));
                    prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
                    let read: u128 = ranges.iter().map(|(from, to)| u128::from(to - from)).sum();
                    prop_assert!(read == 1 || ranges.last().unwrap().1 == blocks);
                    prop_assert!(read * u128::from(bytes) <= u128::from(cost) * u128::from(blocks));
                }
            }
        }
    }
}
