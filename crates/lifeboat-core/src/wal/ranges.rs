//! Sets of numbers as the ranges that they form: an archive of millions of segments is a few of them.
//!
//! Numbers only; whether they count segments or bytes is the caller's business.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

/// A set of numbers, kept as half-open ranges that neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ranges {
    /// Beginning to end (excluded).
    runs: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds [from, to); joins what overlaps or touches.
    pub(super) fn insert(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (mut from, mut to) = (from, to);
        if let Some((&start, &end)) = self.runs.range(..=from).next_back()
            && end >= from
        {
            if end >= to {
                return;
            }
            from = start;
        }
        while let Some((&start, &end)) = self.runs.range(from..=to).next() {
            self.runs.remove(&start);
            to = to.max(end);
        }
        self.runs.insert(from, to);
    }

    /// Takes out [from, to).
    pub(super) fn remove(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        if let Some((&start, &end)) = self.runs.range(..from).next_back()
            && end > from
        {
            self.runs.insert(start, from);
            if end > to {
                self.runs.insert(to, end);
            }
        }
        while let Some((&start, &end)) = self.runs.range(from..to).next() {
            self.runs.remove(&start);
            if end > to {
                self.runs.insert(to, end);
            }
        }
    }

    /// The range that holds `number`.
    pub(super) fn at(&self, number: u64) -> Option<(u64, u64)> {
        self.runs.range(..=number).next_back().map(|(&start, &end)| (start, end)).filter(|(_, end)| *end > number)
    }

    /// Whether `number` is in the set.
    pub(super) fn contains(&self, number: u64) -> bool {
        self.at(number).is_some()
    }

    /// The smallest member from `number` on.
    pub(super) fn next_from(&self, number: u64) -> Option<u64> {
        if self.contains(number) {
            return Some(number);
        }
        self.runs.range((Excluded(number), Unbounded)).next().map(|(&start, _)| start)
    }

    /// The largest member.
    pub(super) fn last(&self) -> Option<u64> {
        self.runs.last_key_value().map(|(_, &end)| end - 1)
    }

    /// The ranges, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.runs.iter().map(|(&start, &end)| (start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_are_the_set_that_they_stand_for(steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..40)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (add, from, length) in steps {
                if add {
                    ranges.insert(from, from + length);
                    set.extend(from..from + length);
                } else {
                    ranges.remove(from, from + length);
                    set.retain(|number| !(from..from + length).contains(number));
                }
            }
            for number in 0..90 {
                prop_assert_eq!(ranges.contains(number), set.contains(&number));
                prop_assert_eq!(ranges.next_from(number), set.range(number..).next().copied());
            }
            prop_assert_eq!(ranges.last(), set.last().copied());
            let runs: Vec<_> = ranges.iter().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0), "joined: {runs:?}");
        }
    }
}
