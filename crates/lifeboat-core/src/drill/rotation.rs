//! Which part of much is looked at this time, so that in time all of it is.

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// Indexes into what there was to choose from, ascending.
    pub chosen: Vec<usize>,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes of all.
    pub of_bytes: u64,
}

impl Rotation {
    /// Whether nothing was left out.
    pub fn is_all(&self, of: usize) -> bool {
        self.chosen.len() == of
    }
}

/// Chooses about `budget` bytes out of things with these sizes, which must come in the same order each time.
///
/// They stand on a circle, each as long as its size. Run number `seed` looks at everything that any part of the arc from
/// `seed × budget` to `(seed + 1) × budget` belongs to. So runs whose seeds count up look at everything in turn, after as many runs as the
/// budget fits into the whole; and seeds that are drawn by chance begin anywhere. At least one thing is chosen, whatever its size.
pub fn rotate(sizes: &[u64], budget: u64, seed: u64) -> Rotation {
    // A thing without bytes must have a place on the circle as well.
    let length = |size: u64| u128::from(size.max(1));
    let total: u128 = sizes.iter().map(|size| length(*size)).sum();
    let of_bytes = sizes.iter().fold(0, |sum: u64, size| sum.saturating_add(*size));
    let arc = u128::from(budget.max(1));
    let (mut chosen, mut bytes) = (Vec::new(), 0u64);
    let begin = if arc >= total { 0 } else { u128::from(seed) * arc % total };
    // The arc may go around the end of the list: then its end is also at the beginning.
    let end = begin + arc;
    let mut at = 0u128;
    for (index, size) in sizes.iter().enumerate() {
        let (from, to) = (at, at + length(*size));
        at = to;
        let hit = |begin: u128, end: u128| from < end && begin < to;
        if arc >= total || hit(begin, end) || (end > total && hit(0, end - total)) {
            chosen.push(index);
            bytes = bytes.saturating_add(*size);
        }
    }
    Rotation { chosen, bytes, of_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn enough_is_all_and_little_is_one() {
        assert_eq!(rotate(&[5, 0, 7], u64::MAX, 3), Rotation { chosen: vec![0, 1, 2], bytes: 12, of_bytes: 12 });
        assert_eq!(rotate(&[], 10, 3).chosen, Vec::<usize>::new());
        assert_eq!(rotate(&[u64::MAX, u64::MAX], 0, 0).chosen, [0]);
        assert_eq!(rotate(&[10, 10, 10], 10, 4).chosen, [1]);
    }

    proptest! {
        #[test]
        fn counting_up_covers_everything(
            sizes in prop::collection::vec(0u64..1000, 1..40), budget in 1u64..2000, first in any::<u32>(),
        ) {
            let total: u64 = sizes.iter().map(|size| (*size).max(1)).sum();
            let mut seen = vec![false; sizes.len()];
            // One more than fit: where the circle begins anew, the step is shorter.
            for run in 0..=total.div_ceil(budget) {
                let rotation = rotate(&sizes, budget, u64::from(first) + run);
                prop_assert!(!rotation.chosen.is_empty());
                rotation.chosen.iter().for_each(|index| seen[*index] = true);
            }
            prop_assert!(seen.iter().all(|seen| *seen));
        }
    }
}
