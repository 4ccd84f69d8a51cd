//! What a receiver of WAL decides: where it begins, whom it follows, what it stores next, and what it may acknowledge.
//!
//! Values in, values out. Facts from PostgreSQL: manual, "Streaming Replication Protocol"; `src/bin/pg_basebackup/receivelog.c`;
//! `src/backend/replication/walsender.c`.

pub mod ledger;
pub mod message;
pub mod standby_names;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::file::WalFile;
use super::history::History;
use super::record::{RecordError, Summary};
use super::{Lsn, Segment, SegmentSize, Timeline};

/// A place in a cluster's WAL. Greater is later, as long as the later timeline descends from the earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// On this timeline,
    pub timeline: Timeline,
    /// before this byte.
    pub lsn: Lsn,
}

impl Position {
    /// Where a segment begins.
    pub fn start_of(segment: Segment, size: SegmentSize) -> Self {
        Self { timeline: segment.timeline, lsn: segment.start(size) }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on timeline {}", self.lsn, self.timeline)
    }
}

/// Bytes that came in any order: how far they join from the first on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prefix {
    end: u64,
    ahead: BTreeMap<u64, u64>,
}

impl Prefix {
    /// Adds the bytes [from, to).
    pub fn add(&mut self, from: u64, to: u64) {
        if to <= self.end {
            return;
        }
        let longest = self.ahead.entry(from).or_insert(to);
        *longest = to.max(*longest);
        while let Some((&from, &to)) = self.ahead.first_key_value() {
            if from > self.end {
                break;
            }
            self.end = self.end.max(to);
            self.ahead.pop_first();
        }
    }

    /// How far the bytes from 0 on go.
    pub fn end(&self) -> u64 {
        self.end
    }
}

/// What is known to be safe of one segment.
#[derive(Debug, Clone, Default)]
struct Safe {
    whole: bool,
    pieces: Prefix,
}

/// What is safe in the repository and in the spool, by its segments.
#[derive(Debug, Clone)]
pub struct Inventory {
    size: SegmentSize,
    segments: BTreeMap<Segment, Safe>,
    /// The last segments of timelines, as promoted servers archive them.
    partials: BTreeSet<Segment>,
    /// What is recorded as lost, by timeline: from, and to before.
    gaps: BTreeMap<Timeline, Vec<(Lsn, Lsn)>>,
}

impl Inventory {
    /// Nothing yet.
    pub fn new(size: SegmentSize) -> Self {
        Self { size, segments: BTreeMap::new(), partials: BTreeSet::new(), gaps: BTreeMap::new() }
    }

    /// A file of the repository.
    pub fn add(&mut self, file: WalFile) {
        match file {
            WalFile::Segment(segment) => self.segments.entry(segment).or_default().whole = true,
            WalFile::Piece { segment, from, to } => {
                self.segments.entry(segment).or_default().pieces.add(u64::from(from), u64::from(to));
            }
            // How far it goes only its summary says.
            WalFile::Partial(segment) => {
                self.partials.insert(segment);
            }
            WalFile::BackupHistory { .. } | WalFile::History(_) => {}
        }
    }

    /// WAL that is recorded as lost: there is no use in asking for it again.
    pub fn add_gap(&mut self, timeline: Timeline, from: Lsn, to: Lsn) {
        self.gaps.entry(timeline).or_default().push((from, to));
    }

    /// The first `bytes` of a segment, in the spool.
    pub fn add_start(&mut self, segment: Segment, bytes: u64) {
        self.segments.entry(segment).or_default().pieces.add(0, bytes);
    }

    /// The pieces of a segment that join from its first byte on.
    pub fn start_of(&self, segment: Segment) -> u64 {
        self.segments.get(&segment).map_or(0, |safe| if safe.whole { self.size.bytes() } else { safe.pieces.end() })
    }

    /// The bytes of a segment that there are from its first on, for who asks about WAL before `to`: where that is within the segment, the
    /// timeline ended there, and the server that was promoted archives a `.partial` up to there (`CleanupAfterArchiveRecovery` in
    /// `src/backend/access/transam/xlog.c`).
    pub fn start_until(&self, segment: Segment, to: Lsn) -> u64 {
        let is_last = !to.0.is_multiple_of(self.size.bytes()) && segment == Segment::containing(segment.timeline, to, self.size);
        if is_last && self.partials.contains(&segment) { self.size.bytes() } else { self.start_of(segment) }
    }

    /// Where the stream has to begin at the latest so that the first of these segments comes again, of each of which the spool had more than it
    /// can believe. What it had was acknowledged maybe, so that the slot does not keep it any more and [`begin`](Self::begin) takes it for safe.
    /// `None`: all of them are there, or recorded as lost, as far as they are in this history.
    pub fn comes_again(&self, history: &History, put_aside: impl IntoIterator<Item = Segment>) -> Option<Position> {
        put_aside
            .into_iter()
            .filter(|segment| !self.is_settled(history, *segment))
            .map(|segment| Position::start_of(segment, self.size))
            .min()
    }

    /// Whether nothing is missing of a segment, as far as it is in this history, but what is recorded as lost.
    fn is_settled(&self, history: &History, segment: Segment) -> bool {
        let (start, end) = (segment.start(self.size), segment.next().start(self.size));
        let end = match history.switch_from(segment.timeline) {
            Some(switch) => switch.min(end),
            None if segment.timeline == history.timeline => end,
            None => return true,
        };
        let mut at = Lsn(start.0 + self.start_until(segment, end));
        let gaps = self.gaps.get(&segment.timeline).map_or(&[][..], Vec::as_slice);
        while let Some((_, to)) = gaps.iter().find(|(from, to)| (*from..*to).contains(&at)) {
            at = *to;
        }
        at >= end
    }

    /// Whether there is a whole object of a segment.
    pub fn is_whole(&self, segment: Segment) -> bool {
        self.segments.get(&segment).is_some_and(|safe| safe.whole)
    }

    /// The highest timeline of which there is something.
    pub fn timeline(&self) -> Option<Timeline> {
        self.segments.keys().next_back().map(|segment| segment.timeline)
    }

    fn is_complete(&self, segment: Segment) -> bool {
        self.start_of(segment) == self.size.bytes()
    }

    /// How far the WAL of a timeline is safe, as far as a receiver has to know. `kept` is the first byte that its slot keeps: what is before
    /// that was safe once, so a hole there is not ours to fill; a hole behind it is.
    pub fn safe_until(&self, timeline: Timeline, kept: Option<Lsn>) -> Option<Lsn> {
        let first = |number| Segment { timeline, number };
        let mut all =
            self.segments.range(first(0)..=first(u64::MAX)).map(|(segment, _)| *segment).filter(|segment| self.start_of(*segment) > 0);
        let kept = kept.map(|lsn| Segment::containing(timeline, lsn, self.size));
        let mut at = match kept {
            Some(kept) => all.take_while(|segment| *segment <= kept).last()?,
            None => all.next_back()?,
        };
        while self.is_complete(at) && self.start_of(at.next()) > 0 {
            at = at.next();
        }
        Some(Lsn(at.start(self.size).0 + self.start_of(at)))
    }

    /// The first byte at or behind `at` that is missing of a timeline that ends at `switch`, if one is.
    fn missing_before(&self, timeline: Timeline, mut at: Lsn, switch: Lsn) -> Option<Lsn> {
        let gaps = self.gaps.get(&timeline).map_or(&[][..], Vec::as_slice);
        while let Some((_, to)) = gaps.iter().find(|(from, to)| (*from..*to).contains(&at)) {
            at = self.safe_until(timeline, Some(*to)).map_or(*to, |until| until.max(*to));
        }
        let segment = Segment::containing(timeline, at, self.size);
        let there = Lsn(segment.start(self.size).0 + self.start_until(segment, switch));
        (at.max(there) < switch).then_some(at)
    }

    /// Where a receiver begins that knows of no place yet. `kept` is the first byte that its slot keeps on a server with this history: what
    /// is missing behind it comes first, on whatever timeline, and before what is there of later ones.
    ///
    /// Of the timeline before the latest one, its end comes as well where it is missing, whatever the slot keeps: what a server wrote last
    /// before it was lost only the server has that was promoted in its place, and that one does not archive it (`archive_mode = on`; manual,
    /// "Continuous Archiving in Standby"). A slot that was made after the promotion does not keep it, but it may still be there.
    pub fn begin(&self, history: &History, kept: Lsn) -> Position {
        let kept = Position { timeline: history.timeline_of(kept), lsn: kept };
        let Some(latest) = self.timeline() else { return kept };
        let at = |timeline, lsn| Position { timeline, lsn };
        let is_ours = latest == history.timeline || history.switch_from(latest).is_some();
        let before = history.ends().filter(|(timeline, _)| is_ours && *timeline < latest);
        if is_ours && kept.timeline < latest {
            let mut from = kept.lsn;
            for (timeline, end) in before.filter(|(timeline, _)| kept.timeline <= *timeline) {
                let until = self.safe_until(timeline, Some(from)).unwrap_or(from);
                if let Some(missing) = self.missing_before(timeline, until, end) {
                    return at(timeline, missing);
                }
                from = end;
            }
            return at(latest, self.safe_until(latest, Some(from)).unwrap_or(from));
        }
        if let Some((parent, end)) = before.last()
            && let Some(until) = self.safe_until(parent, None)
            && let Some(missing) = self.missing_before(parent, until, end)
        {
            return at(parent, missing);
        }
        let keeps = Some(kept.lsn).filter(|_| kept.timeline == latest);
        self.safe_until(latest, keeps).map_or(kept, |end| at(latest, end))
    }
}

/// Where a stream has to begin so that it comes to `lsn`: at the start of a segment, as `pg_receivewal` does.
pub fn stream_start(lsn: Lsn, size: SegmentSize) -> Lsn {
    Lsn(lsn.0 - lsn.0 % size.bytes())
}

/// What of the bytes [from, to) of a timeline is not there, in order; `start_of` tells how many of a segment's bytes are, from its first on.
pub fn missing<E>(
    timeline: Timeline,
    (from, to): (Lsn, Lsn),
    size: SegmentSize,
    mut start_of: impl FnMut(Segment) -> Result<u64, E>,
) -> Result<Vec<(Lsn, Lsn)>, E> {
    let mut all: Vec<(Lsn, Lsn)> = Vec::new();
    let mut at = from;
    while at < to {
        let segment = Segment::containing(timeline, at, size);
        let start = segment.start(size);
        let end = segment.next().start(size).min(to);
        let first = at.max(Lsn(start.0 + start_of(segment)?));
        match all.last_mut() {
            Some(last) if last.1 == first => last.1 = end,
            _ if first < end => all.push((first, end)),
            _ => {}
        }
        at = end;
    }
    Ok(all)
}

/// What a server is to a receiver that has WAL already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// It writes the timeline that we are on, or one that descends from it behind all that we have: go on on this timeline.
    Continue(Timeline),
    /// It left our timeline at `fork`, before the end of what we have: what is behind is not in its history.
    ForkedBefore {
        /// Where.
        fork: Lsn,
        /// The timeline that it went to from there.
        next: Timeline,
    },
    /// It is on an older timeline than one that we have: demoted, or never told (c061).
    Older,
    /// Our timeline is not in its history.
    Unrelated,
}

/// What a server with this history is to who has WAL up to `whole_until` on `timeline`, the end of the last whole record: of a record that
/// was only begun nothing was acknowledged to anybody, and a promotion cuts it off.
pub fn relation(server: &History, timeline: Timeline, whole_until: Lsn) -> Relation {
    if server.timeline < timeline {
        return Relation::Older;
    }
    if server.timeline == timeline {
        return Relation::Continue(timeline);
    }
    let Some(at) = server.entries.iter().position(|entry| entry.timeline == timeline) else { return Relation::Unrelated };
    let fork = server.switch_from(timeline).expect("it is one of them");
    if fork < whole_until {
        let next = server.entries.get(at + 1).map_or(server.timeline, |entry| entry.timeline);
        return Relation::ForkedBefore { fork, next };
    }
    Relation::Continue(timeline)
}

/// What the servers that are followed may be told is flushed: never less than before, but where a promotion takes something back.
#[derive(Debug, Clone, Default)]
pub struct Flushed {
    lsn: Lsn,
    /// Timelines that the server that is followed left, or never had, and where.
    left: BTreeMap<Timeline, Lsn>,
}

impl Flushed {
    /// Up to where.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// More is durable.
    pub fn raise(&mut self, durable: Option<Position>) {
        if let Some(durable) = durable {
            self.lsn = self.lsn.max(self.left.get(&durable.timeline).map_or(durable.lsn, |left| durable.lsn.min(*left)));
        }
    }

    /// The server that is followed left this timeline here: the bytes that it has behind are others, of which nothing is durable yet, whatever
    /// was told of those that were there before.
    pub fn leave(&mut self, timeline: Timeline, at: Lsn) {
        self.left.insert(timeline, at);
        self.lsn = self.lsn.min(at);
    }

    /// The server that is followed writes this timeline.
    pub fn stay(&mut self, timeline: Timeline) {
        self.left.remove(&timeline);
    }

    /// The stream goes on somewhere else.
    pub fn go_on_from(&mut self, lsn: Lsn) {
        self.lsn = lsn;
    }
}

/// Bytes of the page header at `offset` of a segment (`SizeOfXLogLongPHD`, `SizeOfXLogShortPHD`, pages of 8 KiB).
fn header_bytes(offset: u64) -> u64 {
    if offset == 0 { super::LONG_HEADER_BYTES as u64 } else { 24 }
}

/// Where the record ends that goes over into a segment whose first page begins with `header` (`xlp_rem_len`), as an offset in the segment.
pub fn continuation_end(header: &[u8; super::LONG_HEADER_BYTES], size: SegmentSize) -> u64 {
    const PAGE: u64 = 8192;
    let mut left = u64::from(u32::from_le_bytes([header[16], header[17], header[18], header[19]]));
    let mut page = 0;
    while left > 0 && page < size.bytes() {
        let room = PAGE - header_bytes(page);
        if left <= room {
            return page + header_bytes(page) + left;
        }
        left -= room;
        page += PAGE;
    }
    if left > 0 { size.bytes() } else { 0 }
}

/// How far the first bytes of a segment are whole records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WholeRecords {
    /// Up to here.
    Until(Lsn),
    /// No record ends in them: where the last one does, the segment before says.
    Before,
    /// Nobody knows.
    Unknown,
}

/// How far the first `length` bytes of a segment are whole records, by their [`Summary`] and the header that they begin with.
pub fn whole_records(
    segment: Segment,
    size: SegmentSize,
    length: u64,
    header: &[u8; super::LONG_HEADER_BYTES],
    summary: &Result<Summary, RecordError>,
) -> WholeRecords {
    let at = |offset: u64| WholeRecords::Until(Lsn(segment.start(size).0 + offset));
    let summary = match summary {
        _ if length < super::LONG_HEADER_BYTES as u64 => return WholeRecords::Before,
        Ok(summary) => summary,
        Err(_) => return WholeRecords::Unknown,
    };
    match (summary.end, continuation_end(header, size)) {
        (Some(end), _) => at(end.0.saturating_sub(segment.start(size).0).min(length)),
        // The first record of the segment is begun, or there is none.
        (None, 0) if summary.tail => WholeRecords::Before,
        (None, 0) => WholeRecords::Unknown,
        // The rest of a record that began before: its checksum is not to be had here. One that fills the segment may go on behind it.
        (None, end) if end < length || (end == length && !summary.tail) => at(end),
        (None, _) => WholeRecords::Before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::history::Entry;
    use proptest::prelude::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;
    const SEGMENT: u64 = 16 << 20;

    fn segment(timeline: u32, number: u64) -> Segment {
        Segment { timeline: Timeline(timeline), number }
    }

    fn piece(timeline: u32, number: u64, from: u32, to: u32) -> WalFile {
        WalFile::Piece { segment: segment(timeline, number), from, to }
    }

    fn inventory(files: &[WalFile]) -> Inventory {
        let mut inventory = Inventory::new(SIZE);
        files.iter().for_each(|file| inventory.add(*file));
        inventory
    }

    #[test]
    fn a_stream_goes_on_where_bytes_end_that_join() {
        let whole = |number| WalFile::Segment(segment(1, number));
        let until = |files: &[WalFile], kept: Option<u64>| inventory(files).safe_until(Timeline(1), kept.map(Lsn)).map(|lsn| lsn.0);
        assert_eq!(until(&[], Some(SEGMENT)), None);
        assert_eq!(until(&[whole(1), whole(2)], None), Some(3 * SEGMENT));
        assert_eq!(until(&[whole(1), whole(2)], Some(2 * SEGMENT + 5)), Some(3 * SEGMENT));
        assert_eq!(until(&[whole(1), piece(1, 2, 0, 100), piece(1, 2, 100, 300), piece(1, 2, 400, 500)], None), Some(2 * SEGMENT + 300));
        // All of a segment in pieces.
        assert_eq!(until(&[piece(1, 2, 0, 100), piece(1, 2, 100, 16 << 20), whole(3)], Some(2 * SEGMENT)), Some(4 * SEGMENT));
        // A hole behind what the slot keeps is filled, one before it is not.
        assert_eq!(until(&[whole(1), whole(3), whole(4)], Some(SEGMENT)), Some(2 * SEGMENT));
        assert_eq!(until(&[whole(1), whole(3), whole(4)], Some(3 * SEGMENT)), Some(5 * SEGMENT));
        // The slot is behind the only bytes that there are, or before them.
        assert_eq!(until(&[whole(1)], Some(9 * SEGMENT)), Some(2 * SEGMENT));
        assert_eq!(until(&[whole(7)], Some(3 * SEGMENT)), None);
        // Other timelines do not count.
        assert_eq!(inventory(&[whole(1), piece(2, 9, 0, 4)]).safe_until(Timeline(1), None), Some(Lsn(2 * SEGMENT)));
        assert_eq!(inventory(&[whole(1), piece(2, 9, 0, 4)]).timeline(), Some(Timeline(2)));
    }

    #[test]
    fn c060_a_receiver_begins_with_what_is_missing_of_the_timeline_before() {
        let whole = |timeline, number| WalFile::Segment(segment(timeline, number));
        let entry = |timeline, switch| Entry { timeline: Timeline(timeline), switch: Lsn(switch), reason: String::new() };
        // Timeline 1 ended in segment 4, timeline 2 in segment 6.
        let (first, second) = (4 * SEGMENT + 500, 6 * SEGMENT + 70);
        let server = History { timeline: Timeline(3), entries: vec![entry(1, first), entry(2, second)] };
        let begin = |files: &[WalFile], kept: u64| {
            let position = inventory(files).begin(&server, Lsn(kept));
            (position.timeline.0, position.lsn.0)
        };
        assert_eq!(begin(&[], 2 * SEGMENT), (1, 2 * SEGMENT));
        assert_eq!(begin(&[], 5 * SEGMENT), (2, 5 * SEGMENT));
        // The slot keeps WAL of timeline 1 of which there is nothing; somebody pushed the first segments of the later ones.
        assert_eq!(begin(&[whole(2, 4), whole(3, 6)], 2 * SEGMENT + 9), (1, 2 * SEGMENT + 9));
        let old = [whole(1, 2), whole(1, 3), piece(1, 4, 0, 300)];
        let with = |more: &[WalFile]| [&old[..], more].concat();
        assert_eq!(begin(&with(&[whole(2, 4), whole(3, 6)]), 2 * SEGMENT + 9), (1, 4 * SEGMENT + 300));
        // All of timeline 1: then the hole of timeline 2, which the slot keeps as well.
        let rest = piece(1, 4, 300, 500);
        assert_eq!(begin(&with(&[rest, whole(2, 4), whole(3, 6)]), 2 * SEGMENT + 9), (2, 5 * SEGMENT));
        assert_eq!(begin(&with(&[rest, whole(3, 6)]), 2 * SEGMENT + 9), (2, first));
        let second_all = [rest, whole(2, 4), whole(2, 5), piece(2, 6, 0, 70)];
        assert_eq!(begin(&[&with(&second_all)[..], &[whole(3, 6), whole(3, 8)]].concat(), 2 * SEGMENT + 9), (3, 7 * SEGMENT));
        assert_eq!(begin(&[&with(&second_all)[..], &[whole(3, 8)]].concat(), 2 * SEGMENT + 9), (3, second));
        // What a promoted server archived of the last segment is there, and so is what nobody has any more.
        let partial = WalFile::Partial(segment(1, 4));
        assert_eq!(begin(&[whole(1, 2), whole(1, 3), partial, whole(2, 4), piece(2, 5, 0, 9)], 2 * SEGMENT + 9), (2, 5 * SEGMENT + 9));
        assert_eq!(begin(&[whole(1, 2), partial, whole(2, 4)], 2 * SEGMENT + 9), (1, 3 * SEGMENT));
        let mut lost = inventory(&with(&[whole(2, 4)]));
        lost.add_gap(Timeline(1), Lsn(4 * SEGMENT + 300), Lsn(first));
        assert_eq!(lost.begin(&server, Lsn(2 * SEGMENT + 9)), Position { timeline: Timeline(2), lsn: Lsn(5 * SEGMENT) });
        let mut lost = inventory(&[whole(1, 2), whole(1, 4), whole(2, 4)]);
        lost.add_gap(Timeline(1), Lsn(3 * SEGMENT), Lsn(4 * SEGMENT));
        assert_eq!(lost.begin(&server, Lsn(2 * SEGMENT + 9)), Position { timeline: Timeline(2), lsn: Lsn(5 * SEGMENT) });
        // A slot that was made after the promotion keeps nothing of it. The end of the timeline before is asked for all the same, as long as
        // it is the end that is missing.
        assert_eq!(begin(&with(&[whole(2, 4)]), 5 * SEGMENT + 1), (1, 4 * SEGMENT + 300));
        assert_eq!(begin(&with(&[rest, whole(2, 4)]), 5 * SEGMENT + 1), (2, 5 * SEGMENT));
        assert_eq!(begin(&[whole(2, 4)], 5 * SEGMENT + 1), (2, 5 * SEGMENT));
        assert_eq!(begin(&[whole(1, 2), partial, whole(2, 4)], 5 * SEGMENT + 1), (1, 3 * SEGMENT));
        assert_eq!(begin(&[whole(1, 1), whole(1, 4), whole(2, 4)], 5 * SEGMENT + 1), (2, 5 * SEGMENT));
        // A timeline that this server never was on: whoever weighs that sees all that there is of it.
        let other = [whole(1, 2), whole(2, 4), whole(4, 7)];
        assert_eq!(begin(&other, 2 * SEGMENT), (4, 8 * SEGMENT));
        // And where the slot is ahead of all that there is, the stream begins with what is missing.
        assert_eq!(begin(&old, 5 * SEGMENT), (1, 4 * SEGMENT + 300));
    }

    #[test]
    fn c058_what_the_spool_cannot_believe_any_more_comes_again() {
        let whole = |timeline, number| WalFile::Segment(segment(timeline, number));
        let entry = Entry { timeline: Timeline(1), switch: Lsn(7 * SEGMENT + 500), reason: String::new() };
        let server = History { timeline: Timeline(2), entries: vec![entry] };
        let start = |timeline, number| Position::start_of(segment(timeline, number), SIZE);
        let mut have = inventory(&[whole(1, 4), whole(1, 6), piece(1, 7, 0, 500), whole(2, 9)]);
        // The slot does not keep segment 5 any more: it was acknowledged.
        assert_eq!(have.begin(&server, Lsn(9 * SEGMENT)), Position { timeline: Timeline(2), lsn: Lsn(10 * SEGMENT) });
        let again = |have: &Inventory, of: &[(u32, u64)]| {
            have.comes_again(&server, of.iter().map(|(timeline, number)| segment(*timeline, *number)))
        };
        assert_eq!(again(&have, &[]), None);
        assert_eq!(again(&have, &[(2, 8), (1, 5), (1, 4)]), Some(start(1, 5)));
        assert_eq!(again(&have, &[(2, 9), (2, 8)]), Some(start(2, 8)));
        // There, there up to the end of the timeline, and none of this history.
        assert_eq!(again(&have, &[(1, 6), (1, 7), (1, 8), (3, 8), (2, 9)]), None);
        // The first bytes are in the spool, and the rest is known to be lost.
        have.add_start(segment(1, 5), 300);
        assert_eq!(again(&have, &[(1, 5)]), Some(start(1, 5)));
        have.add_gap(Timeline(1), Lsn(5 * SEGMENT), Lsn(6 * SEGMENT - 1));
        assert_eq!(again(&have, &[(1, 5)]), Some(start(1, 5)));
        have.add_gap(Timeline(1), Lsn(6 * SEGMENT - 9), Lsn(6 * SEGMENT));
        assert_eq!(again(&have, &[(1, 5)]), None);
    }

    #[test]
    fn what_is_there_is_not_missing() {
        let of = |from: u64, to: u64, there: &[(u64, u64)]| {
            let start_of =
                |segment: Segment| Ok::<u64, ()>(there.iter().find(|(number, _)| *number == segment.number).map_or(0, |(_, bytes)| *bytes));
            missing(Timeline(1), (Lsn(from), Lsn(to)), SIZE, start_of)
                .unwrap()
                .into_iter()
                .map(|(from, to)| (from.0, to.0))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(5, 5, &[]), []);
        assert_eq!(of(SEGMENT + 5, 4 * SEGMENT, &[]), [(SEGMENT + 5, 4 * SEGMENT)]);
        assert_eq!(of(SEGMENT + 5, 4 * SEGMENT, &[(1, SEGMENT), (2, SEGMENT), (3, SEGMENT)]), []);
        assert_eq!(of(SEGMENT + 5, 4 * SEGMENT, &[(2, SEGMENT)]), [(SEGMENT + 5, 2 * SEGMENT), (3 * SEGMENT, 4 * SEGMENT)]);
        assert_eq!(of(SEGMENT, 4 * SEGMENT, &[(1, 10), (2, 7)]), [(SEGMENT + 10, 2 * SEGMENT), (2 * SEGMENT + 7, 4 * SEGMENT)]);
        assert_eq!(of(SEGMENT + 5, SEGMENT + 9, &[(1, 7)]), [(SEGMENT + 7, SEGMENT + 9)]);
        assert_eq!(of(SEGMENT + 5, SEGMENT + 9, &[(1, 9)]), []);
    }

    #[test]
    fn c061_a_server_is_followed_only_where_it_has_what_we_have() {
        let entry = |timeline, switch| Entry { timeline: Timeline(timeline), switch: Lsn(switch), reason: String::new() };
        let server = History { timeline: Timeline(4), entries: vec![entry(1, 100), entry(3, 200)] };
        let of = |timeline, lsn| relation(&server, Timeline(timeline), Lsn(lsn));
        assert_eq!(of(4, 900), Relation::Continue(Timeline(4)));
        assert_eq!(of(3, 200), Relation::Continue(Timeline(3)));
        assert_eq!(of(3, 201), Relation::ForkedBefore { fork: Lsn(200), next: Timeline(4) });
        assert_eq!(of(1, 60), Relation::Continue(Timeline(1)));
        assert_eq!(of(1, 101), Relation::ForkedBefore { fork: Lsn(100), next: Timeline(3) });
        assert_eq!(of(2, 60), Relation::Unrelated);
        assert_eq!(of(5, 60), Relation::Older);
        assert_eq!(relation(&History::root(Timeline(1)), Timeline(2), Lsn(1)), Relation::Older);
    }

    #[test]
    fn c058_what_a_promotion_cut_off_is_not_flushed_on_the_new_timeline() {
        let durable = |timeline, lsn| Some(Position { timeline: Timeline(timeline), lsn: Lsn(lsn) });
        let mut flushed = Flushed::default();
        flushed.raise(None);
        flushed.raise(durable(1, 900));
        flushed.raise(durable(1, 600));
        assert_eq!(flushed.lsn(), Lsn(900));
        // The last whole record ended at 700; the standby was promoted there.
        flushed.leave(Timeline(1), Lsn(700));
        assert_eq!(flushed.lsn(), Lsn(700));
        flushed.raise(durable(1, 900));
        assert_eq!(flushed.lsn(), Lsn(700));
        // The new timeline begins with the segment that it was cut off in.
        flushed.raise(durable(2, 512));
        assert_eq!(flushed.lsn(), Lsn(700));
        flushed.raise(durable(2, 710));
        assert_eq!(flushed.lsn(), Lsn(710));
        // Another promotion, while the old timeline still waits.
        flushed.leave(Timeline(2), Lsn(705));
        flushed.raise(durable(1, 900));
        assert_eq!(flushed.lsn(), Lsn(705));
        // A server that goes on with it.
        flushed.stay(Timeline(2));
        flushed.raise(durable(2, 800));
        assert_eq!(flushed.lsn(), Lsn(800));
        flushed.go_on_from(Lsn(300));
        assert_eq!(flushed.lsn(), Lsn(300));
    }

    #[test]
    fn c061_a_record_that_was_only_begun_ends_in_the_segment_before() {
        let of = |length: u64, left: u32, end: Option<u64>, tail: bool| {
            let mut header = [0; 40];
            header[16..20].copy_from_slice(&left.to_le_bytes());
            let end = end.map(|end| Lsn(3 * SEGMENT + end));
            whole_records(segment(1, 3), SIZE, length, &header, &Ok(Summary { end, tail, ..Summary::default() }))
        };
        let until = |offset| WholeRecords::Until(Lsn(3 * SEGMENT + offset));
        assert_eq!(of(0, 0, None, false), WholeRecords::Before);
        assert_eq!(of(30, 0, None, false), WholeRecords::Before);
        assert_eq!(of(5000, 0, Some(4000), true), until(4000));
        assert_eq!(of(5000, 100, Some(4000), true), until(4000));
        assert_eq!(of(5000, 0, Some(5004), false), until(5000), "padding that is not there");
        // The segment begins with a record that has no end.
        assert_eq!(of(5000, 0, None, true), WholeRecords::Before);
        // The record from before ends, ends with these bytes, goes on behind them.
        assert_eq!(of(5000, 100, None, true), until(140));
        assert_eq!(of(140, 100, None, false), until(140));
        assert_eq!(of(139, 100, None, true), WholeRecords::Before);
        assert_eq!(of(SEGMENT, u32::MAX, None, true), WholeRecords::Before);
        // Bytes that are no records.
        assert_eq!(of(5000, 0, None, false), WholeRecords::Unknown);
        assert_eq!(whole_records(segment(1, 3), SIZE, 5000, &[0; 40], &Err(RecordError::NoHeader)), WholeRecords::Unknown);
    }

    #[test]
    fn a_record_that_goes_over_is_measured_with_its_page_headers() {
        let mut header = [0; 40];
        let mut end = |bytes: u32| {
            header[16..20].copy_from_slice(&bytes.to_le_bytes());
            continuation_end(&header, SIZE)
        };
        assert_eq!(end(0), 0);
        assert_eq!(end(100), 140);
        assert_eq!(end(8152), 8192);
        assert_eq!(end(8153), 8192 + 24 + 1);
        assert_eq!(end(u32::MAX), SEGMENT);
    }

    proptest! {
        #[test]
        fn a_prefix_is_what_joins(parts in proptest::collection::vec((0u64..60, 1u64..20), 0..40)) {
            let (mut prefix, mut have) = (Prefix::default(), [false; 100]);
            for (from, length) in parts {
                prefix.add(from, from + length);
                have[from as usize..(from + length) as usize].fill(true);
                let expected = have.iter().position(|have| !have).unwrap_or(have.len());
                prop_assert_eq!(prefix.end(), expected as u64);
            }
        }
    }
}
