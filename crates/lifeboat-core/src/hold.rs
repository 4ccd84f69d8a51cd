//! How long objects are kept from being destroyed, and which of them a new backup makes stay longer.
//!
//! A promise of `span` after a backup is taken holds only if everything that the backup needs is held so long, also what an earlier run
//! stored. What a backup stores itself is held from its creation on. Artifacts are stored once and needed for ever: they are held for
//! [`ARTIFACT_SPANS`] spans, and every one is visited once in a span, which makes it stay for as long again: so when a backup ends, each
//! is held for a span at least. The cost of a day is proportional to the artifacts divided by the days of a span, never to all artifacts
//! for every backup. What was not visited, because there was no backup or it failed, is visited by the next one.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::repository::Sha256;
use crate::repository::layout::{self, Key};

/// Who may end a hold before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HoldMode {
    /// Whoever has the permission to bypass it.
    Governance,
    /// Nobody.
    Compliance,
}

/// What is promised of every object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Retention {
    /// Who may end it.
    pub mode: HoldMode,
    /// How long after a backup nothing that it needs can be destroyed.
    pub span: SignedDuration,
}

/// For how many spans an artifact is held: one that is promised, and one until it is visited again.
pub const ARTIFACT_SPANS: i32 = 2;

/// Parts of the artifact set that are visited one after another.
pub const PARTS: u64 = 720;

/// How long a new object is held; `None`: not at all, because it is of no use later.
///
/// Leases are renewed every few seconds for as long as a backup runs and are never needed to restore; probes are to be cleaned up.
pub fn hold_of(key: &Key, span: SignedDuration) -> Option<SignedDuration> {
    let text = key.as_str();
    if text.starts_with(layout::LEASES) || text.starts_with(layout::PROBES) {
        None
    } else if text.starts_with("artifacts/blobs/") || text.starts_with("artifacts/records/") {
        Some(span.saturating_mul(ARTIFACT_SPANS))
    } else {
        Some(span)
    }
}

/// Until when an artifact is to be held that is visited now.
pub fn artifact_until(now: Timestamp, span: SignedDuration) -> Timestamp {
    later(now, span.saturating_mul(ARTIFACT_SPANS))
}

/// A moment so much later, or the last one that can be written.
pub fn later(now: Timestamp, span: SignedDuration) -> Timestamp {
    now.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// Which artifacts are visited now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit {
    first: u64,
    /// How many parts, from the first on; [`PARTS`]: all.
    count: u64,
    /// Entries that are newer than this may rely on a blob that nobody visited for long.
    since: Option<Timestamp>,
}

impl Visit {
    /// What has fallen due between the last visit that was finished and now. `None`: there was none, so everything is.
    pub fn due(last: Option<Timestamp>, now: Timestamp, span: SignedDuration) -> Self {
        // A span is one round over all parts.
        let part_seconds = (span.as_secs().max(1).unsigned_abs() / PARTS).max(1);
        let number = |at: Timestamp| at.as_second().max(0).unsigned_abs() / part_seconds;
        let Some(last) = last.filter(|last| *last <= now) else { return Self { first: 0, count: PARTS, since: None } };
        // The part that the last visit ended in was done by it.
        let (from, to) = (number(last) + 1, number(now));
        Self { first: from % PARTS, count: (to + 1).saturating_sub(from).min(PARTS), since: Some(last) }
    }

    /// Whether an artifact is visited, by the digest of its bytes and the time at which its version was made.
    pub fn has(&self, digest: Sha256, created: Option<Timestamp>) -> bool {
        let part = u64::from_be_bytes(digest.0[..8].try_into().expect("eight of 32 bytes")) % PARTS;
        let due = (part + PARTS - self.first) % PARTS < self.count;
        due || self.since.is_some_and(|since| created.is_none_or(|created| created >= since))
    }

    /// The share of the set that is visited by its turn, of 1.
    pub fn share(&self) -> f64 {
        self.count as f64 / PARTS as f64
    }
}

/// That a visit was finished: `retention/<nnnnnnnnnn>.json` (format 12).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visited {
    /// Format number.
    pub format: u32,
    /// When it began.
    pub at: Timestamp,
    /// How many seconds were promised: who promises more visits everything.
    pub span_seconds: u64,
    /// In which mode: who makes it stricter visits everything.
    pub mode: HoldMode,
}

impl Visited {
    /// When what it says holds for `retention` as well.
    pub fn counts_for(&self, retention: Retention) -> Option<Timestamp> {
        let stricter = retention.mode == HoldMode::Compliance && self.mode == HoldMode::Governance;
        (self.format == 1 && !stricter && self.span_seconds >= retention.span.as_secs().max(0).unsigned_abs()).then_some(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: i64 = 24 * 60 * 60;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn digest(seed: u64) -> Sha256 {
        Sha256::of(&seed.to_be_bytes())
    }

    proptest! {
        /// Backups at any times: at the end of each, an artifact that is in the set is held for the whole span.
        #[test]
        fn c104_what_a_backup_needs_is_held_for_the_whole_span(
            seed in any::<u64>(), span_days in 1i64..400, pauses in proptest::collection::vec(1u32..1000, 1..200),
        ) {
            let span = SignedDuration::from_secs(span_days * DAY);
            let (mut now, mut last) = (at(1_700_000_000), None);
            let created = now;
            let mut until = artifact_until(created, span);
            for pause in pauses {
                // Up to three spans between two backups.
                now += SignedDuration::from_secs(3 * span_days * DAY * i64::from(pause * pause) / 1_000_000);
                let visit = Visit::due(last, now, span);
                if visit.has(digest(seed), Some(created)) {
                    until = until.max(artifact_until(now, span));
                }
                last = Some(now);
                prop_assert!(until >= now + span, "{until} is less than {span} after {now}");
            }
        }

        /// A missed backup, or a visit that failed, is made up for by the next one: parts between are never skipped.
        #[test]
        fn visits_join_without_a_hole(seed in any::<u64>(), steps in proptest::collection::vec(1i64..100_000, 1..50)) {
            let span = SignedDuration::from_secs(30 * DAY);
            let begin = at(1_700_000_000);
            let end = begin + SignedDuration::from_secs(steps.iter().sum());
            let whole = Visit::due(Some(begin), end, span).has(digest(seed), Some(at(0)));
            let mut last = begin;
            let mut in_steps = false;
            for step in steps {
                let now = last + SignedDuration::from_secs(step);
                in_steps |= Visit::due(Some(last), now, span).has(digest(seed), Some(at(0)));
                last = now;
            }
            prop_assert_eq!(whole, in_steps);
        }
    }

    #[test]
    fn a_day_costs_its_share() {
        let span = SignedDuration::from_secs(30 * DAY);
        let now = at(1_700_000_000);
        let visit = Visit::due(Some(now - SignedDuration::from_secs(DAY)), now, span);
        let visited = (0..10_000).filter(|seed| visit.has(digest(*seed), Some(at(0)))).count();
        // One of thirty.
        assert!((250..420).contains(&visited), "{visited}");
        assert!((visit.share() - 1.0 / 30.0).abs() < 0.01);
        assert!((0..100).all(|seed| Visit::due(None, now, span).has(digest(seed), Some(at(0)))), "nothing is known: everything is visited");
        assert!((0..100).all(|seed| visit.has(digest(seed), Some(now))), "what is new may rely on an old blob");
        assert_eq!(Visit::due(Some(now), now, span).share(), 0.0);
        // A clock that went back knows nothing.
        assert_eq!(Visit::due(Some(now + span), now, span), Visit::due(None, now, span));
    }

    #[test]
    fn what_churns_is_not_held_and_artifacts_are_held_twice_as_long() {
        let span = SignedDuration::from_secs(DAY);
        let hold = |key: &str| hold_of(&Key::parse(key).unwrap(), span);
        assert_eq!(hold("leases/backup/0000000001.json"), None);
        assert_eq!(hold("probe/00/first"), None);
        assert_eq!(hold("packs/ab/x"), Some(span));
        assert_eq!(hold("lifeboat.json"), Some(span));
        assert_eq!(hold("artifacts/blobs/ab/x"), Some(span * 2));
        assert_eq!(hold("artifacts/records/x/y.json"), Some(span * 2));
        assert_eq!(hold("artifacts/catalog/x"), Some(span));
        assert_eq!(later(at(0), SignedDuration::MAX), Timestamp::MAX);
    }

    #[test]
    fn a_longer_or_stricter_promise_visits_everything() {
        let promise = |days: i64, mode| Retention { mode, span: SignedDuration::from_secs(days * DAY) };
        let visited = Visited { format: 1, at: at(5), span_seconds: 30 * DAY as u64, mode: HoldMode::Governance };
        assert_eq!(visited.counts_for(promise(30, HoldMode::Governance)), Some(at(5)));
        assert_eq!(visited.counts_for(promise(7, HoldMode::Governance)), Some(at(5)));
        assert_eq!(visited.counts_for(promise(31, HoldMode::Governance)), None);
        assert_eq!(visited.counts_for(promise(30, HoldMode::Compliance)), None);
    }
}
