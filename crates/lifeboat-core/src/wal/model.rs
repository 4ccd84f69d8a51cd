//! A small world in which replay is acted out, unit by unit, as PostgreSQL does it: what `catalog` and `target` conclude from ranges is
//! compared with it.
//!
//! A unit is a quarter of a segment. Nothing here may use what it judges.

use proptest::prelude::*;

use super::catalog::{Archive, BackupPoint};
use super::file::{GapRecord, WalFile};
use super::history::{Entry, History};
use super::{Lsn, Segment, SegmentSize, SystemId, Timeline};

pub(super) const UNITS: u64 = 4;
pub(super) const SEGMENTS: u64 = 8;
pub(super) const UNIT: u64 = (1 << 20) / UNITS;

pub(super) fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("a size that PostgreSQL has")
}

pub(super) fn lsn(unit: u64) -> Lsn {
    Lsn(unit * UNIT)
}

/// One file of the archive.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Whole,
    Piece(u64, u64),
    /// With the unit behind its last record, counted in the segment.
    Partial(u64),
}

/// What is on the shelves.
#[derive(Debug, Clone)]
pub(super) struct World {
    /// Parent and unit of the switch, of timelines from 2 on.
    pub(super) branches: Vec<(u32, u64)>,
    pub(super) files: Vec<(u32, u64, Kind)>,
    /// Timeline, from, to.
    pub(super) lost: Vec<(u32, u64, u64)>,
}

/// What recovery gets when it asks for a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// Units of it, from its beginning on.
    Units(u64),
    /// "There is none."
    None,
    /// An error that ends recovery.
    Error,
}

impl World {
    pub(super) fn timelines(&self) -> u32 {
        self.branches.len() as u32 + 1
    }

    /// Ancestors of a timeline with the units where they were left, oldest first.
    pub(super) fn ancestors(&self, timeline: u32) -> Vec<(u32, u64)> {
        let mut all = Vec::new();
        let mut at = timeline;
        while at > 1 {
            let (parent, switch) = self.branches[at as usize - 2];
            all.push((parent, switch));
            at = parent;
        }
        all.reverse();
        all
    }

    pub(super) fn owner(&self, timeline: u32, unit: u64) -> u32 {
        self.ancestors(timeline).into_iter().find(|(_, switch)| unit < *switch).map_or(timeline, |(owner, _)| owner)
    }

    /// Whether a unit of a timeline is in the archive, wherever it is of use.
    pub(super) fn there(&self, timeline: u32, unit: u64) -> bool {
        let (number, offset) = (unit / UNITS, unit % UNITS);
        self.files.iter().any(|(of, segment, kind)| {
            (*of, *segment) == (timeline, number)
                && match kind {
                    Kind::Whole => true,
                    Kind::Piece(from, to) => (*from..*to).contains(&offset),
                    Kind::Partial(end) => offset < *end,
                }
        })
    }

    fn any_file_from(&self, timeline: u32, number: u64) -> bool {
        self.files.iter().any(|(of, segment, _)| *of == timeline && *segment >= number)
    }

    fn piece_or_whole(&self, timeline: u32, unit: u64) -> bool {
        self.files.iter().any(|(of, segment, kind)| {
            (*of, *segment) == (timeline, unit / UNITS)
                && match kind {
                    Kind::Whole => true,
                    Kind::Piece(from, to) => (*from..*to).contains(&(unit % UNITS)),
                    Kind::Partial(_) => false,
                }
        })
    }

    /// What is handed out for a segment.
    pub(super) fn give(&self, timeline: u32, number: u64) -> Given {
        let first = number * UNITS;
        if (first..first + UNITS).all(|unit| self.piece_or_whole(timeline, unit)) {
            return Given::Units(UNITS);
        }
        if self.any_file_from(timeline, number + 1) {
            return Given::Error;
        }
        if !self.any_file_from(timeline, number) {
            return Given::None;
        }
        let pieces = (first..first + UNITS).take_while(|unit| self.piece_or_whole(timeline, *unit)).count() as u64;
        let partial = self.files.iter().filter_map(|(of, segment, kind)| match kind {
            Kind::Partial(end) if (*of, *segment) == (timeline, number) => Some(*end),
            _ => None,
        });
        match pieces.max(partial.max().unwrap_or(0)) {
            0 => Given::Error,
            units => Given::Units(units),
        }
    }

    /// Replays from a unit on along the history of a timeline: behind which unit it ends, and whether by an error.
    pub(super) fn replay(&self, timeline: u32, from: u64) -> (u64, bool) {
        let mut legs: Vec<(u32, u64, u64)> = Vec::new();
        let mut begin = 0;
        for (of, switch) in self.ancestors(timeline) {
            legs.push((of, begin, switch));
            begin = switch;
        }
        legs.push((timeline, begin, u64::MAX));
        let (mut at, mut current) = (from, 0);
        loop {
            let number = at / UNITS;
            let mut given = Given::None;
            let mut of = (0, 0, 0);
            // Nobody hands out what is of another history altogether.
            let offered = legs.iter().rev().filter(|leg| leg.1 / UNITS <= number && at < leg.2);
            for leg in offered.take_while(|leg| leg.0 >= current) {
                given = self.give(leg.0, number);
                of = *leg;
                if given != Given::None {
                    break;
                }
            }
            let Given::Units(units) = given else { return (at, given == Given::Error) };
            current = of.0;
            let end = (number * UNITS + units).min(of.2);
            if end <= at {
                return (at, false);
            }
            at = end;
            if at < (number + 1) * UNITS {
                return (at, false);
            }
        }
    }

    /// Whether anything says that the history went on behind a unit.
    pub(super) fn goes_on(&self, timeline: u32, unit: u64) -> bool {
        let end = (SEGMENTS + 2) * UNITS;
        self.ancestors(timeline).iter().any(|(_, switch)| *switch > unit)
            || (unit..end).any(|later| {
                let owner = self.owner(timeline, later);
                self.there(owner, later) || self.lost.iter().any(|(of, from, to)| *of == owner && (*from..*to).contains(&later))
            })
    }

    pub(super) fn history(&self, timeline: u32) -> History {
        let entry = |(of, switch): (u32, u64)| Entry { timeline: Timeline(of), switch: lsn(switch), reason: String::new() };
        History { timeline: Timeline(timeline), entries: self.ancestors(timeline).into_iter().map(entry).collect() }
    }

    pub(super) fn archive(&self) -> Archive {
        let mut archive = Archive::new(SystemId(7), size());
        for timeline in 2..=self.timelines() {
            archive.add_history(self.history(timeline));
        }
        for (of, number, kind) in &self.files {
            let segment = Segment { timeline: Timeline(*of), number: *number };
            let file = match kind {
                Kind::Whole => WalFile::Segment(segment),
                Kind::Piece(from, to) => WalFile::Piece { segment, from: (from * UNIT) as u32, to: (to * UNIT) as u32 },
                Kind::Partial(_) => WalFile::Partial(segment),
            };
            archive.add(file, 1);
        }
        for (of, number, kind) in &self.files {
            if let Kind::Partial(end) = kind {
                archive.set_partial_end(Segment { timeline: Timeline(*of), number: *number }, Some(lsn(number * UNITS + end)));
            }
        }
        for (of, from, to) in &self.lost {
            archive.add_gap(GapRecord {
                format: 1,
                timeline: Timeline(*of),
                from: lsn(*from),
                to: lsn(*to),
                found: jiff::Timestamp::UNIX_EPOCH,
                by: "test".into(),
                reason: "lost".into(),
            });
        }
        archive
    }
}

pub(super) fn backup(id: &str, timeline: u32, start: u64, stop: u64) -> BackupPoint {
    BackupPoint {
        id: id.into(),
        timeline: Timeline(timeline),
        start_lsn: lsn(start),
        stop_lsn: lsn(stop),
        consistent_at: time(stop),
        degraded: false,
        wal_included: false,
    }
}

/// One unit is written each second.
pub(super) fn time(unit: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_700_000_000 + unit as i64).expect("within the range of times")
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        12 => Just(Kind::Whole),
        3 => (0..UNITS, 1..=UNITS).prop_map(|(from, length)| Kind::Piece(from, (from + length).min(UNITS))),
        1 => (0..=UNITS).prop_map(Kind::Partial),
    ]
}

/// Worlds: mostly timelines that were archived from where they began, with a few files missing, in pieces, or too many.
pub(super) fn world() -> impl Strategy<Value = World> {
    let last = SEGMENTS * UNITS;
    let branches = proptest::collection::vec((any::<prop::sample::Index>(), 0..last), 0..4);
    let ends = proptest::collection::vec(0..=SEGMENTS, 4..5);
    let drops = proptest::collection::vec(any::<prop::sample::Index>(), 0..4);
    let extra = proptest::collection::vec((1u32..6, 0..SEGMENTS, kind()), 0..6);
    let lost = proptest::collection::vec((1u32..5, 0..last, 1..9u64), 0..2);
    (branches, ends, drops, extra, lost, any::<bool>()).prop_map(|(picks, ends, drops, extra, lost, reverse)| {
        let mut branches: Vec<(u32, u64)> = Vec::new();
        for (pick, switch) in picks {
            let parent = pick.index(branches.len() + 1) as u32 + 1;
            let begin = if parent > 1 { branches[parent as usize - 2].1 } else { 0 };
            branches.push((parent, begin.max(switch)));
        }
        let mut files = Vec::new();
        for timeline in 1..=branches.len() as u32 + 1 {
            let begin = if timeline > 1 { branches[timeline as usize - 2].1 / UNITS } else { 0 };
            let end = ends.get(timeline as usize - 1).copied().unwrap_or(0);
            files.extend((begin..end).map(|number| (timeline, number, Kind::Whole)));
        }
        for drop in drops {
            if !files.is_empty() {
                files.remove(drop.index(files.len()));
            }
        }
        files.extend(extra.into_iter().filter(|(of, _, _)| *of as usize <= branches.len() + 1));
        // One partial of a segment, as there is one name for it.
        let mut seen = std::collections::BTreeSet::new();
        files.retain(|(of, number, kind)| !matches!(kind, Kind::Partial(_)) || seen.insert((*of, *number)));
        if reverse {
            files.reverse();
        }
        let lost = lost.into_iter().map(|(of, from, length)| (of, from, from + length)).collect();
        World { branches, files, lost }
    })
}
