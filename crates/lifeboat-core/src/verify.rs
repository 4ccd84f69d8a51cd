//! What a check found, as values: corrupt, unsigned, missing and "could not check" are four
//! different answers, and none of them is a pass (c114). WAL that never arrived is a fifth, which says nothing of what was stored.

use std::collections::BTreeMap;

use serde::Serialize;

/// What is wrong with a part of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// It is not there.
    Missing,
    /// Its bytes are not those that were written.
    Corrupt,
    /// No valid signature of a trusted key.
    Unsigned,
    /// It could not be looked at.
    NotChecked,
    /// WAL of which it stands in the repository why it is not there: it was missed when later WAL arrived, or is older than the archive. What cannot
    /// be gone back to for want of it, `wal status` and the alert `wal-gap` tell.
    Lost,
}

impl FindingKind {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Corrupt => "corrupt",
            Self::Unsigned => "unsigned",
            Self::NotChecked => "not checked",
            Self::Lost => "not in the archive",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// The backup it hits.
    pub backup: Option<String>,
    /// The object.
    pub object: String,
    /// The file or artifact in it, where known.
    pub file: Option<String>,
    /// In words.
    pub problem: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind.word(), self.object)?;
        if let Some(backup) = &self.backup {
            write!(f, " of backup {backup}")?;
        }
        if let Some(file) = &self.file {
            write!(f, " hits {file}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// How deeply a check looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depth {
    /// Digests and trailers of the stored bytes: no key is needed.
    Stored,
    /// Every frame opened and every plain byte compared with its digest.
    Opened,
}

/// What a check of one backup came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The backup.
    pub backup: String,
    /// How deeply.
    pub depth: Depth,
    /// Objects that were looked at.
    pub objects: u64,
    /// Objects that the backup has.
    pub objects_total: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Artifacts looked at.
    pub artifacts: u64,
    /// Seed of the sample, if only a part was to be looked at.
    pub sample_seed: Option<u64>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// What all reports together mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything that was to be checked was, and is good.
    Verified,
    /// Something could not be checked; nothing that was is bad.
    Incomplete,
    /// Something is missing, corrupt or unsigned.
    Failed,
}

/// The verdict on findings.
pub fn verdict<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> Verdict {
    let of = |finding: &Finding| match finding.kind {
        FindingKind::Lost => Verdict::Verified,
        FindingKind::NotChecked => Verdict::Incomplete,
        FindingKind::Missing | FindingKind::Corrupt | FindingKind::Unsigned => Verdict::Failed,
    };
    findings.into_iter().map(of).max().unwrap_or(Verdict::Verified)
}

/// Which bytes of an object were looked at: ranges, joined where they touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// Adds the bytes from `start` to before `end`.
    pub fn add(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        // All that begin at its end or before, and end at its beginning or behind it, become one with it.
        while let Some((&from, &to)) = self.0.range(..=end).next_back()
            && to >= start
        {
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
    }

    /// Adds what another one has.
    pub fn join(&mut self, other: &Self) {
        for (start, end) in &other.0 {
            self.add(*start, *end);
        }
    }

    /// Whether every byte from `start` to before `end` is among them.
    pub fn has(&self, start: u64, end: u64) -> bool {
        start >= end || self.0.range(..=start).next_back().is_some_and(|(_, to)| *to >= end)
    }
}

/// Slices that a sample consists of.
const SLICES: u64 = 1_000_000;

/// Whether pack `index` is in a sample of `percent`, which `seed` chooses: the sample of the next seed goes on where this one ends, so as many in a row
/// as there are samples in a whole cover everything (c115).
pub fn in_sample(seed: u64, index: u64, percent: f64) -> bool {
    // SplitMix64: spreads consecutive indexes over the whole range.
    let mut z = index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let width = (percent / 100.0 * SLICES as f64).ceil().clamp(0.0, SLICES as f64) as u64;
    let begin = (seed % SLICES) * width % SLICES;
    (z % SLICES + SLICES - begin) % SLICES < width
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(kind: FindingKind) -> Finding {
        Finding { kind, backup: None, object: "packs/aa/x".into(), file: None, problem: "p".into() }
    }

    #[test]
    fn what_is_covered_is_every_byte_of_it() {
        let mut covered = Covered::default();
        for (start, end) in [(10, 20), (30, 40), (5, 5), (20, 25), (50, 60)] {
            covered.add(start, end);
        }
        assert!(covered.has(10, 25) && covered.has(12, 13) && covered.has(7, 7));
        assert!(!covered.has(9, 10) && !covered.has(24, 26) && !covered.has(10, 40) && !covered.has(60, 61));
        let mut other = Covered::default();
        other.add(24, 30);
        other.join(&covered);
        assert!(other.has(10, 40) && !other.has(10, 41) && !other.has(40, 51));
        other.add(0, 100);
        assert_eq!(other.0, BTreeMap::from([(0, 100)]));
    }

    #[test]
    fn what_is_covered_is_what_a_set_of_bytes_says() {
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..200 {
            let (mut covered, mut bytes) = (Covered::default(), [false; 64]);
            for _ in 0..next(12) {
                let start = next(60);
                let end = (start + next(12)).min(64);
                covered.add(start, end);
                bytes[start as usize..end as usize].fill(true);
            }
            for (start, end) in (0..64).flat_map(|start| (start..=64).map(move |end| (start, end))) {
                assert_eq!(
                    covered.has(start, end),
                    bytes[start as usize..end as usize].iter().all(|byte| *byte),
                    "{start}..{end} of {covered:?}"
                );
            }
        }
    }

    #[test]
    fn c114_not_checked_is_no_pass() {
        assert_eq!(verdict(&[]), Verdict::Verified);
        assert_eq!(verdict(&[finding(FindingKind::NotChecked)]), Verdict::Incomplete);
        assert_eq!(verdict(&[finding(FindingKind::Lost)]), Verdict::Verified, "all that was stored is there");
        for bad in [FindingKind::Missing, FindingKind::Corrupt, FindingKind::Unsigned] {
            assert_eq!(verdict(&[finding(FindingKind::NotChecked), finding(bad)]), Verdict::Failed);
        }
    }

    #[test]
    fn c115_samples_in_a_row_cover_everything() {
        for (percent, runs) in [(5.0, 20), (10.0, 10), (30.0, 4), (0.5, 200)] {
            for first in [0, 20_000, u64::MAX / 2] {
                let left = (0..10_000).filter(|index| !(first..first + runs).any(|seed| in_sample(seed, *index, percent))).count();
                assert_eq!(left, 0, "{percent} % from {first}");
            }
        }
    }

    #[test]
    fn c115_a_sample_has_about_its_share_and_seeds_differ() {
        let count = |seed| (0..10_000).filter(|index| in_sample(seed, *index, 10.0)).count();
        assert!((800..1200).contains(&count(1)) && (800..1200).contains(&count(2)));
        assert_eq!((0..1000).filter(|index| in_sample(9, *index, 100.0)).count(), 1000);
        assert_ne!(
            (0..1000).filter(|i| in_sample(1, *i, 10.0)).collect::<Vec<_>>(),
            (0..1000).filter(|i| in_sample(2, *i, 10.0)).collect::<Vec<_>>()
        );
    }
}
