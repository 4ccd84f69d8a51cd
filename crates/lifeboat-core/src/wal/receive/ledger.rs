//! The book of a receiver: of every segment that is not wholly in the repository yet, what was written, what is durable where, and what has
//! to be stored next.
//!
//! Nothing of a segment is stored before all of the segment before it is: should everything else be lost at that moment, the archive ends
//! where its last bytes join, and has no hole in the middle that recovery could not go over.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Position, Prefix};
use crate::wal::history::History;
use crate::wal::{Lsn, Segment, SegmentSize, Timeline};

/// When bytes of a segment that is still open are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pieces {
    /// So long after the piece before them.
    Every(Duration),
    /// As soon as they are written, so many pieces at a time: a commit waits for one of them, not for the one before it too.
    AtOnce {
        /// Pieces in flight.
        most: usize,
    },
}

/// Something to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A piece.
    Piece {
        /// Of this segment,
        segment: Segment,
        /// from this offset
        from: u32,
        /// to before this one.
        to: u32,
    },
    /// A finished segment, whole.
    Whole(Segment),
}

impl Work {
    /// The segment that it is of.
    pub fn segment(self) -> Segment {
        match self {
            Self::Piece { segment, .. } | Self::Whole(segment) => segment,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whole {
    No,
    Busy,
    Stored,
}

#[derive(Debug)]
struct Held {
    segment: Segment,
    written: u64,
    /// Bytes from the first on that are durable in the spool.
    synced: u64,
    /// Nothing more will come: the timeline ends in it, or what follows is lost.
    closed: bool,
    /// What is missing before it will not come.
    apart: bool,
    /// It lies behind the end of its timeline in the history that is followed: nothing waits for it to be safe.
    cut: bool,
    /// Pieces in the repository.
    stored: Prefix,
    /// Bytes from the first on that are stored or on their way.
    assigned: u64,
    in_flight: usize,
    whole: Whole,
    /// When the last piece was begun.
    pieced: Option<Duration>,
}

impl Held {
    fn new(segment: Segment) -> Self {
        Self {
            segment,
            written: 0,
            synced: 0,
            closed: false,
            apart: false,
            cut: false,
            stored: Prefix::default(),
            assigned: 0,
            in_flight: 0,
            whole: Whole::No,
            pieced: None,
        }
    }

    fn is_complete(&self, size: SegmentSize) -> bool {
        self.written == size.bytes()
    }

    /// How many bytes from the first on are in the repository.
    fn stored(&self, size: SegmentSize) -> u64 {
        if self.whole == Whole::Stored { size.bytes() } else { self.stored.end() }
    }

    /// Whether all that it will ever have is in the repository, one way or the other.
    fn is_safe(&self, size: SegmentSize) -> bool {
        (self.is_complete(size) || self.closed) && self.stored(size) >= self.written
    }

    /// Whether there is nothing left to do with it.
    fn is_done(&self, size: SegmentSize) -> bool {
        self.whole == Whole::Stored || (self.closed && !self.is_complete(size) && self.in_flight == 0 && self.is_safe(size))
    }
}

/// The book. Times are since any fixed moment.
#[derive(Debug)]
pub struct Ledger {
    size: SegmentSize,
    pieces: Pieces,
    /// A piece has at most so many bytes.
    piece_bytes: u64,
    held: VecDeque<Held>,
    /// What was before all of `held`.
    before: Option<Position>,
    /// The timeline that the stream is on. What is here of later ones comes behind all that is still to come of this one.
    following: Option<Timeline>,
}

impl Ledger {
    /// An empty one.
    pub fn new(size: SegmentSize, pieces: Pieces, piece_bytes: u64) -> Self {
        Self { size, pieces, piece_bytes: piece_bytes.clamp(1, size.bytes()), held: VecDeque::new(), before: None, following: None }
    }

    fn entry(&mut self, segment: Segment) -> &mut Held {
        if let Some(at) = self.held.iter().position(|held| held.segment == segment) {
            return &mut self.held[at];
        }
        // Kept in order: what was found in a spool comes in any.
        let at = self.held.partition_point(|held| held.segment < segment);
        self.held.insert(at, Held::new(segment));
        &mut self.held[at]
    }

    fn find(&mut self, segment: Segment) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.segment == segment)
    }

    /// The stream begins here: all before this is in the repository, or in the book, or was never ours to bring there. What the book has
    /// behind it comes again, with all that is missing between.
    pub fn begin_at(&mut self, position: Position) {
        let segment = Segment::containing(position.timeline, position.lsn, self.size);
        // What waits in the spool is not stored because the stream begins behind it.
        let front = self.held.front().map(|held| self.end_of(held, 0));
        self.before = Some(front.map_or(position, |front| position.min(front)));
        self.go_on_at(segment);
        for held in self.held.iter_mut().filter(|held| held.segment.timeline == segment.timeline && held.segment >= segment) {
            held.apart &= held.segment == segment;
        }
    }

    /// What is missing before this segment will not come: it is lost, or not ours to bring. It and what is behind it may still grow.
    pub fn go_on_at(&mut self, segment: Segment) {
        let size = self.size;
        self.entry(segment).apart = true;
        for held in &mut self.held {
            if held.segment < segment {
                held.apart = true;
                held.closed |= !held.is_complete(size);
            } else if held.segment.timeline == segment.timeline {
                held.closed = false;
            }
        }
    }

    /// The stream is on this timeline. Before this is said, and once more after a stream that began on an older one, nothing that is here of
    /// later ones is stored or counts, for the end of this one is still to come.
    pub fn follow(&mut self, timeline: Timeline) {
        self.following = Some(timeline);
    }

    /// The stream begins once more with this segment, of a timeline that had ended: what is missing of it comes again.
    pub fn reopen(&mut self, segment: Segment) {
        for held in self.held.iter_mut().filter(|held| held.segment.timeline == segment.timeline && held.segment >= segment) {
            held.closed = false;
        }
    }

    /// No server that is followed has more of this timeline.
    pub fn close_all(&mut self, timeline: Timeline) {
        let size = self.size;
        for held in self.held.iter_mut().filter(|held| held.segment.timeline == timeline) {
            held.closed |= !held.is_complete(size);
            held.apart = true;
        }
    }

    /// The server that is followed has this history. Of what is here of a timeline behind the end that it has in it, the rest of a record that a
    /// promotion cut off, nothing has to be durable before what the next timeline brings is.
    pub fn cut(&mut self, history: &History) {
        for held in &mut self.held {
            let start = held.segment.start(self.size);
            held.cut = history.switch_from(held.segment.timeline).is_some_and(|switch| switch <= start);
        }
    }

    fn is_later(&self, held: &Held) -> bool {
        self.following.is_some_and(|timeline| held.segment.timeline > timeline)
    }

    /// The first bytes of a segment are written, up to this offset. Less than before changes nothing: a stream begins again at the start of
    /// a segment.
    pub fn wrote(&mut self, segment: Segment, to: u64) {
        if self.is_past(segment) {
            return;
        }
        let held = self.entry(segment);
        held.written = held.written.max(to);
    }

    /// They are durable in the spool.
    pub fn synced(&mut self, segment: Segment, to: u64) {
        if let Some(held) = self.find(segment) {
            held.synced = held.synced.max(to);
        }
    }

    /// A piece, or all, of a segment was found in the repository.
    pub fn found(&mut self, work: Work) {
        let held = self.entry(work.segment());
        match work {
            Work::Piece { from, to, .. } => {
                held.stored.add(u64::from(from), u64::from(to));
                held.assigned = held.assigned.max(held.stored.end());
            }
            Work::Whole(_) => held.whole = Whole::Stored,
        }
    }

    /// The timeline ends in this segment: what is written of it is all that there will be.
    pub fn close(&mut self, segment: Segment) {
        if let Some(held) = self.find(segment) {
            held.closed = true;
        }
    }

    /// What was written of a segment cannot be believed any more: it will be streamed again. What is in the repository stays.
    pub fn distrust(&mut self, segment: Segment) {
        if let Some(held) = self.find(segment) {
            held.written = 0;
            held.synced = 0;
            held.assigned = held.stored.end();
            held.closed = false;
        }
    }

    /// What is to be stored next, of pieces and segments that the archive waits for. `flush`: do not wait for the time of the next piece.
    pub fn next(&mut self, now: Duration, flush: bool) -> Option<Work> {
        let (size, most) = (
            self.size,
            match self.pieces {
                Pieces::Every(_) => 1,
                Pieces::AtOnce { most } => most,
            },
        );
        let in_flight: usize = self.held.iter().map(|held| held.in_flight).sum();
        let mut end = self.before;
        let mut first = None;
        for (at, held) in self.held.iter().enumerate() {
            if self.is_hole(end, held) {
                return None;
            }
            if !held.is_safe(size) {
                first = Some(at);
                break;
            }
            end = end.max(Some(self.end_of(held, held.written)));
        }
        let held = self.held.get_mut(first?)?;
        if held.whole == Whole::Busy {
            return None;
        }
        let whole_first = match self.pieces {
            Pieces::Every(_) => true,
            // Nothing of it was sent before it was full: that is catching up, where a segment is cheaper than its pieces.
            Pieces::AtOnce { .. } => held.assigned == 0,
        };
        if held.is_complete(size) && whole_first {
            held.whole = Whole::Busy;
            return Some(Work::Whole(held.segment));
        }
        if held.assigned >= held.written || in_flight >= most {
            return None;
        }
        if let Pieces::Every(interval) = self.pieces
            && !flush
            && !held.closed
            && held.pieced.is_some_and(|pieced| now < pieced + interval)
        {
            return None;
        }
        let (from, to) = (held.assigned, held.written.min(held.assigned + self.piece_bytes));
        // The rest of a long run must not wait for the next interval.
        if to == held.written {
            held.pieced = Some(now);
        }
        held.assigned = to;
        held.in_flight += 1;
        let offset = |offset| u32::try_from(offset).expect("a segment has at most 1 GiB");
        Some(Work::Piece { segment: held.segment, from: offset(from), to: offset(to) })
    }

    /// A segment that is in the repository in pieces, and should be whole. Nobody waits for it.
    pub fn next_whole(&mut self) -> Option<Work> {
        let size = self.size;
        if self.held.iter().any(|held| held.whole == Whole::Busy) {
            return None;
        }
        let held = self.held.iter_mut().find(|held| held.is_complete(size) && held.is_safe(size) && held.whole == Whole::No)?;
        held.whole = Whole::Busy;
        Some(Work::Whole(held.segment))
    }

    /// It is in the repository.
    pub fn stored(&mut self, work: Work) {
        let Some(held) = self.find(work.segment()) else { return };
        match work {
            Work::Piece { from, to, .. } => {
                held.stored.add(u64::from(from), u64::from(to));
                // One that flew when its segment was done and was begun anew is not counted.
                held.in_flight = held.in_flight.saturating_sub(1);
            }
            Work::Whole(_) => held.whole = Whole::Stored,
        }
    }

    /// It could not be stored; it will be asked for again.
    pub fn failed(&mut self, work: Work) {
        let Some(held) = self.find(work.segment()) else { return };
        match work {
            Work::Piece { from, .. } => {
                held.in_flight = held.in_flight.saturating_sub(1);
                // What others have on their way behind it is stored twice at worst, and is the same.
                held.assigned = held.assigned.min(u64::from(from)).max(held.stored.end());
                held.pieced = None;
            }
            Work::Whole(_) => held.whole = Whole::No,
        }
    }

    /// Takes out the segments with which nothing is left to do: their files can go.
    pub fn take_done(&mut self) -> Vec<Segment> {
        let mut done = Vec::new();
        while self.held.front().is_some_and(|held| held.is_done(self.size) && !self.is_hole(self.before, held)) {
            let held = self.held.pop_front().expect("just looked at");
            self.before = Some(self.end_of(&held, held.written));
            done.push(held.segment);
        }
        done
    }

    fn end_of(&self, held: &Held, bytes: u64) -> Position {
        Position { timeline: held.segment.timeline, lsn: Lsn(held.segment.start(self.size).0 + bytes) }
    }

    /// Whether bytes are still to come between `end`, where all joins, and a segment.
    fn is_hole(&self, end: Option<Position>, held: &Held) -> bool {
        let start = self.end_of(held, 0);
        self.is_later(held) || (!held.apart && end.is_some_and(|end| end.timeline == start.timeline && end < start))
    }

    fn prefix(&self, bytes: impl Fn(&Held) -> u64) -> Option<Position> {
        let mut at = self.before;
        for held in self.held.iter().filter(|held| !held.cut) {
            if self.is_hole(at, held) {
                break;
            }
            let bytes = bytes(held).min(held.written);
            // The first segment of a timeline has the bytes of its parent up to the switch: they do not take anything back.
            at = at.max(Some(self.end_of(held, bytes)));
            if bytes < held.written || !(held.closed || held.is_complete(self.size)) {
                break;
            }
        }
        at
    }

    /// Up to where all is in the repository.
    pub fn stored_until(&self) -> Option<Position> {
        self.prefix(|held| held.stored(self.size))
    }

    /// Up to where all is durable in the spool or in the repository.
    pub fn synced_until(&self) -> Option<Position> {
        self.prefix(|held| held.synced.max(held.stored(self.size)))
    }

    /// Up to where all is written.
    pub fn written_until(&self) -> Option<Position> {
        self.prefix(|held| held.written)
    }

    /// How many of a segment's bytes are written.
    pub fn written(&self, segment: Segment) -> u64 {
        self.held.iter().find(|held| held.segment == segment).map_or(0, |held| held.written)
    }

    /// Whether all of a segment is in the repository, and nothing is left to do with it: one that comes once more, because one before it has to.
    pub fn is_past(&self, segment: Segment) -> bool {
        let end = segment.next().start(self.size);
        !self.holds(segment) && self.before.is_some_and(|before| before.timeline == segment.timeline && end <= before.lsn)
    }

    /// Whether there is still something to do with a segment.
    pub fn holds(&self, segment: Segment) -> bool {
        self.held.iter().any(|held| held.segment == segment)
    }

    /// The segment that is being written, and how far; `None` between segments.
    pub fn open(&self) -> Option<(Segment, u64)> {
        let held = self.held.iter().rev().find(|held| !self.is_later(held))?;
        (!held.closed && !held.is_complete(self.size)).then_some((held.segment, held.written))
    }

    /// Bytes that wait for the repository, or in whole segments for their end.
    pub fn waiting_bytes(&self) -> u64 {
        self.held.iter().map(|held| held.written.saturating_sub(held.stored(self.size))).sum()
    }

    /// Bytes of the files that are held.
    pub fn held_bytes(&self) -> u64 {
        self.held.iter().map(|held| held.written).sum()
    }

    /// Whether everything that is written is in the repository as it should be, whole segments whole.
    pub fn is_settled(&self) -> bool {
        self.held.iter().all(|held| held.is_done(self.size) || (!held.is_complete(self.size) && held.stored(self.size) >= held.written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::history::Entry;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 20).unwrap()
    }

    fn segment(number: u64) -> Segment {
        Segment { timeline: Timeline(1), number }
    }

    fn piece(number: u64, from: u32, to: u32) -> Option<Work> {
        Some(Work::Piece { segment: segment(number), from, to })
    }

    fn lsn(position: Option<Position>) -> u64 {
        position.expect("it began").lsn.0
    }

    fn position(number: u64) -> Position {
        Position { timeline: Timeline(1), lsn: segment(number).start(size()) }
    }

    const NOW: Duration = Duration::from_secs(100);

    #[test]
    fn c058_what_comes_once_more_and_is_stored_is_not_begun_anew() {
        let mut ledger = Ledger::new(size(), Pieces::Every(Duration::ZERO), MIB);
        ledger.begin_at(position(3));
        for number in 3..6 {
            ledger.wrote(segment(number), MIB);
        }
        // The first one is found damaged, and streamed again; so is all behind it.
        ledger.distrust(segment(3));
        assert_eq!(ledger.next(NOW, false), None);
        ledger.wrote(segment(3), MIB);
        for number in 3..5 {
            assert_eq!(ledger.next(NOW, false), Some(Work::Whole(segment(number))));
            ledger.stored(Work::Whole(segment(number)));
        }
        assert_eq!(ledger.take_done(), [segment(3), segment(4)]);
        assert!(ledger.is_past(segment(4)) && !ledger.is_past(segment(5)) && !ledger.is_past(segment(6)));
        ledger.wrote(segment(4), MIB);
        assert!(!ledger.holds(segment(4)), "its file is gone");
        assert_eq!(ledger.next(NOW, false), Some(Work::Whole(segment(5))));
    }

    #[test]
    fn pieces_of_the_open_segment_go_out_in_intervals_and_the_finished_one_whole() {
        let mut ledger = Ledger::new(size(), Pieces::Every(Duration::from_secs(5)), MIB);
        ledger.wrote(segment(3), 100);
        assert_eq!(ledger.next(NOW, false), piece(3, 0, 100));
        assert_eq!(ledger.next(NOW, true), None, "one at a time");
        ledger.wrote(segment(3), 300);
        ledger.stored(piece(3, 0, 100).unwrap());
        assert_eq!(lsn(ledger.stored_until()), 3 * MIB + 100);
        assert_eq!(ledger.next(NOW + Duration::from_secs(4), false), None);
        assert_eq!(ledger.next(NOW + Duration::from_secs(4), true), piece(3, 100, 300));
        ledger.failed(piece(3, 100, 300).unwrap());
        ledger.wrote(segment(3), MIB);
        ledger.wrote(segment(4), 7);
        assert_eq!(ledger.next(NOW, false), Some(Work::Whole(segment(3))));
        assert_eq!(ledger.next(NOW, true), None, "nothing of the next before it");
        assert_eq!(ledger.waiting_bytes(), MIB - 100 + 7);
        ledger.stored(Work::Whole(segment(3)));
        assert_eq!(ledger.take_done(), [segment(3)]);
        assert_eq!(lsn(ledger.stored_until()), 4 * MIB);
        assert_eq!(ledger.next(NOW, false), piece(4, 0, 7));
        assert_eq!(ledger.open(), Some((segment(4), 7)));
    }

    #[test]
    fn c059_several_pieces_fly_and_only_the_prefix_counts() {
        let mut ledger = Ledger::new(size(), Pieces::AtOnce { most: 2 }, MIB);
        ledger.wrote(segment(3), 100);
        let first = ledger.next(NOW, false).unwrap();
        ledger.wrote(segment(3), 200);
        let second = ledger.next(NOW, false).unwrap();
        ledger.wrote(segment(3), MIB);
        assert_eq!(ledger.next(NOW, false), None, "two are flying");
        ledger.stored(second);
        assert_eq!(lsn(ledger.stored_until()), 3 * MIB);
        ledger.stored(first);
        assert_eq!(lsn(ledger.stored_until()), 3 * MIB + 200);
        ledger.wrote(segment(4), 50);
        let third = ledger.next(NOW, false).unwrap();
        assert_eq!(Some(third), piece(3, 200, 1 << 20));
        assert_eq!(ledger.next(NOW, false), None, "nothing of a segment before all of the one before it");
        ledger.stored(third);
        // The first bytes of the next go out before the whole object of this one.
        assert_eq!(ledger.next(NOW, false), piece(4, 0, 50));
        assert!(ledger.take_done().is_empty());
        assert_eq!(ledger.next_whole(), Some(Work::Whole(segment(3))));
        assert_eq!(ledger.next_whole(), None);
        ledger.stored(piece(4, 0, 50).unwrap());
        assert_eq!(lsn(ledger.stored_until()), 4 * MIB + 50);
        ledger.stored(Work::Whole(segment(3)));
        assert_eq!(ledger.take_done(), [segment(3)]);
        assert!(ledger.is_settled());
    }

    #[test]
    fn c060_a_timeline_that_ends_is_stored_to_its_end_before_the_next() {
        let next = Segment { timeline: Timeline(2), number: 3 };
        let mut ledger = Ledger::new(size(), Pieces::Every(Duration::from_secs(5)), MIB);
        ledger.wrote(segment(3), 100);
        let work = ledger.next(NOW, false).unwrap();
        ledger.stored(work);
        ledger.wrote(segment(3), 160);
        ledger.close(segment(3));
        ledger.wrote(next, 40);
        assert_eq!(ledger.next(NOW, false), piece(3, 100, 160));
        assert_eq!(ledger.next(NOW, false), None);
        ledger.stored(piece(3, 100, 160).unwrap());
        assert_eq!(ledger.take_done(), [segment(3)]);
        // The new timeline's copy of the beginning does not take the position back.
        assert_eq!(lsn(ledger.stored_until()), 3 * MIB);
        assert_eq!(ledger.stored_until().unwrap().timeline, Timeline(2));
        assert_eq!(ledger.next(NOW, false), Some(Work::Piece { segment: next, from: 0, to: 40 }));
    }

    #[test]
    fn c060_what_a_promotion_cut_off_does_not_keep_the_new_timeline_from_being_acknowledged() {
        let history = |switch| {
            let entry = Entry { timeline: Timeline(1), switch: Lsn(switch), reason: String::new() };
            History { timeline: Timeline(2), entries: vec![entry] }
        };
        let next = Segment { timeline: Timeline(2), number: 3 };
        let mut ledger = Ledger::new(size(), Pieces::Every(Duration::ZERO), MIB);
        // A record that begins in segment 3 and was received up to the middle of segment 4, of which nobody knows whether it is durable.
        ledger.begin_at(position(3));
        ledger.follow(Timeline(1));
        ledger.wrote(segment(3), MIB);
        ledger.synced(segment(3), MIB);
        ledger.wrote(segment(4), 500);
        // The promotion.
        ledger.cut(&history(3 * MIB + 90));
        ledger.close_all(Timeline(1));
        ledger.follow(Timeline(2));
        ledger.wrote(next, 200);
        ledger.synced(next, 150);
        assert_eq!(ledger.synced_until(), Some(Position { timeline: Timeline(2), lsn: Lsn(3 * MIB + 150) }));
        // A server of which it is no end.
        ledger.cut(&History::root(Timeline(1)));
        assert_eq!(ledger.synced_until(), Some(position(4)));
        // It is stored all the same, in its order.
        assert_eq!(ledger.next(NOW, true), Some(Work::Whole(segment(3))));
        ledger.stored(Work::Whole(segment(3)));
        assert_eq!(ledger.next(NOW, true), piece(4, 0, 500));
    }

    #[test]
    fn c060_what_is_there_of_a_later_timeline_waits_for_the_end_of_the_one_before() {
        let next = Segment { timeline: Timeline(2), number: 5 };
        let mut ledger = Ledger::new(size(), Pieces::Every(Duration::ZERO), MIB);
        // A spool that lost segments 4 and 5 of timeline 1, which ended in segment 5.
        for (held, bytes) in [(segment(3), MIB), (next, MIB)] {
            ledger.wrote(held, bytes);
            ledger.synced(held, bytes);
        }
        ledger.go_on_at(next);
        ledger.begin_at(position(4));
        ledger.follow(Timeline(1));
        let stored = |ledger: &mut Ledger, work: Option<Work>| {
            assert_eq!(ledger.next(NOW, true), work);
            ledger.stored(work.unwrap());
            ledger.take_done()
        };
        assert_eq!(stored(&mut ledger, Some(Work::Whole(segment(3)))), [segment(3)]);
        for at in 4..6 {
            assert_eq!(ledger.next(NOW, true), None, "segment {at} of timeline 1 is still to come");
            assert_eq!(ledger.synced_until(), Some(position(at)), "nothing of timeline 2 counts before");
            let bytes = if at == 4 { MIB } else { 200 };
            ledger.wrote(segment(at), bytes);
            assert_eq!(ledger.open(), (at == 5).then_some((segment(5), 200)));
            ledger.synced(segment(at), bytes);
            stored(&mut ledger, if at == 4 { Some(Work::Whole(segment(4))) } else { piece(5, 0, 200) });
        }
        assert!(!ledger.is_settled());
        // As the receiver does at the end of a timeline.
        ledger.close(segment(5));
        ledger.follow(Timeline(2));
        assert_eq!(ledger.take_done(), [segment(5)]);
        assert_eq!(stored(&mut ledger, Some(Work::Whole(next))), [next]);
        assert!(ledger.is_settled());
        assert_eq!(ledger.stored_until(), Some(Position { timeline: Timeline(2), lsn: Lsn(6 * MIB) }));
    }

    #[test]
    fn c060_an_end_of_a_timeline_that_turns_out_damaged_is_not_done_with() {
        for streamed in [true, false] {
            let next = Segment { timeline: Timeline(2), number: 3 };
            let mut ledger = Ledger::new(size(), Pieces::Every(Duration::ZERO), MIB);
            ledger.begin_at(position(3));
            ledger.follow(Timeline(1));
            ledger.wrote(segment(3), 300);
            ledger.close(segment(3));
            ledger.follow(Timeline(2));
            ledger.wrote(next, 400);
            // Its sync failed; a copy could be made of its beginning.
            ledger.distrust(segment(3));
            ledger.wrote(segment(3), 100);
            assert_eq!(ledger.next(NOW, true), piece(3, 0, 100));
            ledger.stored(piece(3, 0, 100).unwrap());
            assert!(ledger.take_done().is_empty());
            assert_eq!(ledger.next(NOW, true), None, "nothing of timeline 2 before what is missing of timeline 1");
            assert_eq!(ledger.stored_until(), Some(Position { timeline: Timeline(1), lsn: Lsn(3 * MIB + 100) }));
            let beginning = Some(Work::Piece { segment: next, from: 0, to: 400 });
            if streamed {
                ledger.reopen(segment(3));
                ledger.follow(Timeline(1));
                ledger.wrote(segment(3), 300);
                assert_eq!(ledger.next(NOW, true), piece(3, 100, 300));
                ledger.stored(piece(3, 100, 300).unwrap());
                assert_eq!(ledger.next(NOW, true), None);
                ledger.close(segment(3));
                ledger.follow(Timeline(2));
            } else {
                ledger.close_all(Timeline(1));
            }
            assert_eq!(ledger.take_done(), [segment(3)]);
            assert_eq!(ledger.next(NOW, true), beginning);
        }
    }

    #[test]
    fn bytes_that_could_not_be_synced_count_no_more() {
        let mut ledger = Ledger::new(size(), Pieces::Every(Duration::from_secs(5)), MIB);
        ledger.wrote(segment(3), 100);
        ledger.synced(segment(3), 100);
        assert_eq!(lsn(ledger.synced_until()), 3 * MIB + 100);
        let work = ledger.next(NOW, false).unwrap();
        ledger.stored(work);
        ledger.wrote(segment(3), 200);
        ledger.synced(segment(3), 150);
        ledger.distrust(segment(3));
        assert_eq!(ledger.open(), Some((segment(3), 0)));
        assert_eq!(ledger.waiting_bytes(), 0);
        ledger.wrote(segment(3), 300);
        assert_eq!(lsn(ledger.synced_until()), 3 * MIB + 100, "the repository still has these");
    }

    #[test]
    fn c058_c059_a_restart_acknowledges_nothing_that_is_only_in_the_spool() {
        let mut ledger = Ledger::new(size(), Pieces::AtOnce { most: 2 }, MIB);
        for (number, bytes) in [(5, MIB), (6, MIB), (7, 100)] {
            ledger.wrote(segment(number), bytes);
        }
        ledger.begin_at(position(7));
        assert_eq!(lsn(ledger.stored_until()), 5 * MIB);
        assert_eq!(ledger.next(NOW, false), Some(Work::Whole(segment(5))));
        ledger.stored(Work::Whole(segment(5)));
        assert_eq!(lsn(ledger.stored_until()), 6 * MIB);
    }

    #[test]
    fn c058_c059_a_hole_in_a_spool_is_not_gone_over() {
        let mut ledger = Ledger::new(size(), Pieces::AtOnce { most: 2 }, MIB);
        // Of the first the machine lost the end, of the second and third everything.
        for (number, bytes) in [(5, 700), (8, MIB)] {
            ledger.wrote(segment(number), bytes);
            ledger.synced(segment(number), bytes);
        }
        ledger.close(segment(5));
        ledger.begin_at(position(5));
        assert_eq!(lsn(ledger.synced_until()), 5 * MIB + 700);
        assert_eq!(ledger.next(NOW, false), piece(5, 0, 700));
        ledger.stored(piece(5, 0, 700).unwrap());
        assert_eq!(ledger.next(NOW, false), None, "the stream comes to it");
        ledger.wrote(segment(5), MIB);
        assert_eq!(ledger.next(NOW, false), piece(5, 700, 1 << 20));
        ledger.stored(piece(5, 700, 1 << 20).unwrap());
        ledger.synced(segment(5), MIB);
        assert_eq!(lsn(ledger.synced_until()), 6 * MIB);
        assert_eq!(ledger.next(NOW, false), None);
        assert_eq!(ledger.next_whole(), Some(Work::Whole(segment(5))));
        ledger.stored(Work::Whole(segment(5)));
        assert_eq!(ledger.take_done(), [segment(5)]);
        assert_eq!(lsn(ledger.stored_until()), 6 * MIB, "where the next begins that is there");
        assert_eq!(ledger.next(NOW, false), None);
        for number in [6, 7] {
            ledger.wrote(segment(number), MIB);
            assert_eq!(ledger.next(NOW, false), Some(Work::Whole(segment(number))));
            ledger.stored(Work::Whole(segment(number)));
            assert_eq!(lsn(ledger.stored_until()), (number + 1) * MIB);
            ledger.take_done();
        }
        assert_eq!(ledger.next(NOW, false), Some(Work::Whole(segment(8))));
    }

    #[test]
    fn c056_what_the_server_no_longer_has_of_a_damaged_segment_is_not_waited_for() {
        let mut ledger = Ledger::new(size(), Pieces::Every(Duration::from_secs(5)), MIB);
        ledger.begin_at(position(5));
        for (number, bytes) in [(5, MIB), (6, MIB), (7, 100)] {
            ledger.wrote(segment(number), bytes);
        }
        ledger.distrust(segment(5));
        assert_eq!(ledger.next(NOW, true), None, "it is streamed again");
        ledger.go_on_at(segment(7));
        assert_eq!(ledger.next(NOW, true), Some(Work::Whole(segment(6))));
        ledger.stored(Work::Whole(segment(6)));
        assert_eq!(ledger.take_done(), [segment(5), segment(6)]);
        ledger.wrote(segment(7), 200);
        assert_eq!(ledger.next(NOW, true), piece(7, 0, 200));
        ledger.stored(piece(7, 0, 200).unwrap());
        assert!(ledger.take_done().is_empty(), "more of it comes");
        assert_eq!(lsn(ledger.stored_until()), 7 * MIB + 200);
    }

    proptest! {
        /// Whatever order writing and storing take: what is reported as stored is stored, and in the end all is.
        #[test]
        fn what_counts_as_stored_is_stored(steps in proptest::collection::vec((0u8..6, 1u64..900_000), 1..80), at_once in any::<bool>()) {
            let pieces = if at_once { Pieces::AtOnce { most: 3 } } else { Pieces::Every(Duration::ZERO) };
            let mut ledger = Ledger::new(size(), pieces, 300_000);
            let (mut at, mut flying, mut have): (u64, Vec<Work>, Vec<(u64, u64)>) = (MIB, Vec::new(), Vec::new());
            // A stream that begins again comes to it again.
            let mut most = MIB;
            let write = |ledger: &mut Ledger, at: u64, amount: u64| {
                let to = (at + amount).min((at / MIB + 1) * MIB);
                ledger.wrote(segment(at / MIB), to - at / MIB * MIB);
                to
            };
            let land = |ledger: &mut Ledger, have: &mut Vec<(u64, u64)>, work: Work| {
                have.push(match work {
                    Work::Piece { segment, from, to } => (segment.start(size()).0 + u64::from(from), segment.start(size()).0 + u64::from(to)),
                    Work::Whole(segment) => (segment.start(size()).0, segment.start(size()).0 + MIB),
                });
                ledger.stored(work);
            };
            let check = |ledger: &Ledger, have: &[(u64, u64)]| {
                let until = ledger.stored_until().map_or(MIB, |position| position.lsn.0);
                let mut joined = Prefix::default();
                have.iter().for_each(|(from, to)| joined.add(from - MIB, to - MIB));
                until <= MIB + joined.end()
            };
            for (step, amount) in steps {
                match step {
                    0 | 1 => {
                        at = write(&mut ledger, at, amount);
                        most = most.max(at);
                    }
                    2 => flying.extend(ledger.next(NOW, true).or_else(|| ledger.next_whole())),
                    3 if !flying.is_empty() => {
                        let work = flying.swap_remove(amount as usize % flying.len());
                        land(&mut ledger, &mut have, work);
                    }
                    4 if !flying.is_empty() => {
                        let work = flying.swap_remove(amount as usize % flying.len());
                        ledger.failed(work);
                    }
                    // A receiver begins at the start of any segment, and writes it again from there.
                    5 => {
                        at = (1 + amount % (at / MIB)) * MIB;
                        ledger.begin_at(position(at / MIB));
                    }
                    _ => {}
                }
                ledger.take_done();
                prop_assert!(check(&ledger, &have));
            }
            for work in flying {
                land(&mut ledger, &mut have, work);
            }
            while at < most {
                at = write(&mut ledger, at, MIB.min(most - at));
                prop_assert!(check(&ledger, &have));
            }
            while let Some(work) = ledger.next(NOW, true).or_else(|| ledger.next_whole()) {
                land(&mut ledger, &mut have, work);
                ledger.take_done();
                prop_assert!(check(&ledger, &have));
            }
            prop_assert!(ledger.is_settled());
            prop_assert!(at == MIB || ledger.stored_until().unwrap().lsn.0 == at);
        }
    }
}
