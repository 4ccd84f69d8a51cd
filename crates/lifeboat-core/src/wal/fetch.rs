//! What a server in recovery asks of `wal fetch`, and what the listing of the archive allows to be answered.
//!
//! Whether the archive ends before a file is the business of [`super::catalog::Archive::absence`]; here are the names that a server asks by,
//! how an open segment is put together, and what is worth fetching ahead.

use std::fmt;
use std::str::FromStr;

use super::catalog::Promise;
use super::file::WalFile;
use serde::Serialize;

use super::{Lsn, ParseError, Segment, SegmentSize, Timeline};
use crate::repository::layout::Key;

/// What a name that a server asks for (`%f`) can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A file that an archive may have.
    File(WalFile),
    /// The history of the first timeline, which has none: no archive can ever have it.
    Never,
}

/// Reads a name that was asked for.
///
/// # Errors
///
/// Anything else than PostgreSQL's own names. This is an error and not an absence: a `restore_command` whose `%f` and `%p` are swapped, or
/// one with another segment size, would look like the end of the archive.
pub fn asked(name: &str, size: SegmentSize) -> Result<Asked, ParseError> {
    if matches!(name, "00000000.history" | "00000001.history") {
        return Ok(Asked::Never);
    }
    match WalFile::from_file_name(name, size)? {
        // Ours, not PostgreSQL's.
        WalFile::Piece { .. } => Err(ParseError::new("name of a file that PostgreSQL asks for", name)),
        file => Ok(Asked::File(file)),
    }
}

/// `TIMELINE:LSN`, as in `1:0/A0000F8`.
impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.timeline, self.lsn)
    }
}

impl FromStr for Promise {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("promise TIMELINE:LSN", text);
        let (timeline, lsn) = text.split_once(':').ok_or_else(bad)?;
        let timeline = timeline.parse().ok().filter(|number| *number > 0).ok_or_else(bad)?;
        Ok(Self { timeline: Timeline(timeline), lsn: lsn.parse().map_err(|_| bad())? })
    }
}

/// Where a history leaves a timeline: `TIMELINE:LSN`, as in `1:0/A0000F8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The timeline.
    pub timeline: Timeline,
    /// The first byte of it that is not of the history.
    pub at: Lsn,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.timeline, self.at)
    }
}

impl FromStr for Left {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let promise: Promise = text.parse().map_err(|_| ParseError::new("end of a timeline TIMELINE:LSN", text))?;
        Ok(Self { timeline: promise.timeline, at: promise.lsn })
    }
}

/// WAL that a backup brought itself: `TIMELINE:LSN-LSN`, as in `1:0/A000028-0/A0000F8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Own {
    /// The timeline.
    pub timeline: Timeline,
    /// The first byte.
    pub from: Lsn,
    /// Behind the last.
    pub to: Lsn,
}

impl Own {
    /// How far a segment of it is there, if it is of it.
    pub fn until(&self, segment: Segment, size: SegmentSize) -> Option<Lsn> {
        let (start, end) = (segment.start(size), segment.next().start(size));
        let within = segment.timeline == self.timeline && Segment::containing(self.timeline, self.from, size).start(size) <= start;
        (within && start < self.to).then_some(end.min(self.to))
    }
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}-{}", self.timeline, self.from, self.to)
    }
}

impl FromStr for Own {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("WAL of a backup TIMELINE:LSN-LSN", text);
        let (from, to) = text.rsplit_once('-').ok_or_else(bad)?;
        let from: Promise = from.parse().map_err(|_| bad())?;
        Ok(Self { timeline: from.timeline, from: from.lsn, to: to.parse().map_err(|_| bad())? })
    }
}

/// What the plan of a recovery says to whoever answers the server's questions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Bounds {
    /// What must be reached: nothing before it may pass for the end of the archive.
    pub promise: Option<Promise>,
    /// Where the history leaves its timelines. A server asks an older timeline for what a younger one does not have, and replays whatever it
    /// gets: it looks only whether a page's timeline is in the history, not where that was left (`XLogFileReadAnyTLI` in
    /// `src/backend/access/transam/xlogrecovery.c`, `XLogReaderValidatePageHeader` in `xlogreader.c`).
    pub left: Vec<Left>,
    /// What lies in the restored `pg_wal`. The server takes it where it is told that the archive has no such file, and only then.
    pub own: Option<Own>,
    /// Nothing of any timeline from here on is handed out. `None`: whatever there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Lsn>,
}

impl From<Option<Promise>> for Bounds {
    fn from(promise: Option<Promise>) -> Self {
        Self { promise, ..Self::default() }
    }
}

impl Bounds {
    /// How much of a segment is handed out, if not all of it is: up to where the history left its timeline, or to the end, which may be before it
    /// begins.
    pub fn belongs_until(&self, segment: Segment, size: SegmentSize) -> Option<Lsn> {
        let left = self.left.iter().find(|left| left.timeline == segment.timeline).map(|left| left.at);
        left.into_iter().chain(self.until).min().filter(|at| *at < segment.next().start(size))
    }

    /// Whether nothing of a segment is handed out.
    pub fn is_beside(&self, segment: Segment, size: SegmentSize) -> bool {
        self.belongs_until(segment, size).is_some_and(|until| until <= segment.start(size))
    }
}

/// WAL that a gap object says is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The timeline.
    pub timeline: Timeline,
    /// The first byte.
    pub from: Lsn,
    /// Behind the last.
    pub to: Lsn,
}

impl Lost {
    /// What the key of a gap object says; `None` for keys of anything else.
    pub fn from_key(key: &Key) -> Option<Self> {
        let name = key.as_str().rsplit('/').next()?.strip_suffix(".json")?;
        let (timeline, range) = name.split_once('.')?;
        let (from, to) = range.split_once('-')?;
        let hex = |text: &str, digits| {
            let plain = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        let timeline = Timeline(u32::try_from(hex(timeline, 8)?).ok()?);
        Some(Self { timeline, from: Lsn(hex(from, 16)?), to: Lsn(hex(to, 16)?) })
    }
}

/// A segment that the archive has only in pieces, or as its `.partial`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSegment {
    /// The segment.
    pub segment: Segment,
    /// Pieces that join without a hole from 0 on, in order; as few as reach as far as all of them.
    pub pieces: Vec<WalFile>,
    /// How far they reach.
    pub joined_to: u32,
    /// There are pieces behind a hole as well, which are of no use.
    pub left_out: bool,
    /// There is a `.partial`.
    pub partial: bool,
}

/// Plans how to put a segment together from what `listed` has of it.
pub fn join(segment: Segment, listed: &[WalFile]) -> OpenSegment {
    let mut ranges: Vec<(u32, u32)> = listed
        .iter()
        .filter_map(|file| match file {
            WalFile::Piece { segment: of, from, to } if *of == segment => Some((*from, *to)),
            _ => None,
        })
        .collect();
    ranges.sort_unstable();
    let (mut pieces, mut joined_to) = (Vec::new(), 0);
    // Of those that join, always the one that reaches furthest.
    while let Some((from, to)) = ranges.iter().filter(|(from, to)| *from <= joined_to && *to > joined_to).max_by_key(|(_, to)| *to) {
        pieces.push(WalFile::Piece { segment, from: *from, to: *to });
        joined_to = *to;
    }
    OpenSegment {
        segment,
        pieces,
        joined_to,
        left_out: ranges.iter().any(|(_, to)| *to > joined_to),
        partial: listed.contains(&WalFile::Partial(segment)),
    }
}

impl OpenSegment {
    /// Whether the `.partial`, whose last whole record ends at `end`, goes further than the pieces; and how far the segment reaches then,
    /// as an offset.
    pub fn with_partial(&self, end: Option<Lsn>, size: SegmentSize) -> Option<u32> {
        let start = self.segment.start(size).0;
        let reach = end.map_or(0, |end| end.0.saturating_sub(start).min(size.bytes()));
        u32::try_from(reach).ok().filter(|reach| self.partial && *reach > self.joined_to)
    }
}

/// Which of the segments at hand will not be needed when `asked` is: those before it, on other timelines, and too far ahead.
pub fn is_ahead(segment: Segment, asked: Segment, ahead: u64) -> bool {
    segment.timeline == asked.timeline && segment.number > asked.number && segment.number - asked.number <= ahead
}

/// Whether another batch is to be fetched: less than half of what may lie ready does.
pub fn wants_more(ready: impl IntoIterator<Item = Segment>, asked: Segment, ahead: u64) -> bool {
    let ready = ready.into_iter().filter(|segment| is_ahead(*segment, asked, ahead)).count() as u64;
    ready * 2 < ahead
}

/// Whether a segment may take its time: so many others lie ready before it that the server will not ask for it soon.
pub fn has_time(ready: impl IntoIterator<Item = Segment>, segment: Segment, enough: usize) -> bool {
    ready.into_iter().filter(|before| before.timeline == segment.timeline && before.number < segment.number).take(enough).count() == enough
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn segment(timeline: u32, number: u64) -> Segment {
        Segment { timeline: Timeline(timeline), number }
    }

    fn whole(timeline: u32, number: u64) -> WalFile {
        WalFile::Segment(segment(timeline, number))
    }

    fn piece(number: u64, from: u32, to: u32) -> WalFile {
        WalFile::Piece { segment: segment(1, number), from, to }
    }

    #[test]
    fn c081_names_that_cannot_be_are_told_from_names_that_are_wrong() {
        for never in ["00000000.history", "00000001.history"] {
            assert_eq!(asked(never, SIZE), Ok(Asked::Never));
        }
        assert_eq!(asked("000000010000000000000003", SIZE), Ok(Asked::File(whole(1, 3))));
        // %f and %p swapped; another segment size; a piece.
        for wrong in [
            "pg_wal/RECOVERYXLOG",
            "RECOVERYXLOG",
            "",
            "000000010000000000000123",
            "000000010000000000000003.00000000-00000010",
            "1.history",
        ] {
            assert!(asked(wrong, SIZE).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pieces_are_joined_as_far_as_they_go() {
        let open = |listed: &[WalFile]| join(segment(1, 4), listed);
        let listed = [piece(4, 0, 10), piece(4, 0, 30), piece(3, 0, 99), piece(4, 20, 40), piece(4, 25, 35), piece(4, 50, 60)];
        let joined = open(&listed);
        assert_eq!((joined.pieces.as_slice(), joined.joined_to), (&[piece(4, 0, 30), piece(4, 20, 40)][..], 40));
        assert!(joined.left_out && !joined.partial);
        assert!(!open(&[piece(4, 0, 1 << 24)]).left_out);
        assert_eq!(open(&[piece(4, 50, 60)]).joined_to, 0);

        let partial = open(&[WalFile::Partial(segment(1, 4)), piece(4, 0, 10)]);
        let start = segment(1, 4).start(SIZE);
        assert_eq!(partial.with_partial(Some(Lsn(start.0 + 11)), SIZE), Some(11));
        assert_eq!(partial.with_partial(Some(Lsn(start.0 + 10)), SIZE), None);
        assert_eq!(partial.with_partial(None, SIZE), None);
        assert_eq!(partial.with_partial(Some(Lsn(start.0 + (1 << 25))), SIZE), Some(1 << 24));
    }

    #[test]
    fn bounds_are_read_as_they_are_written() {
        let left: Left = "3:0/A0000F8".parse().unwrap();
        assert_eq!((left, left.to_string()), (Left { timeline: Timeline(3), at: Lsn(0xA0_000F8) }, "3:0/A0000F8".to_owned()));
        let own: Own = "1:0/A000028-1/B0".parse().unwrap();
        assert_eq!(own, Own { timeline: Timeline(1), from: Lsn(0xA00_0028), to: Lsn(0x1_0000_00B0) });
        assert_eq!(own.to_string(), "1:0/A000028-1/B0");
        for wrong in ["", "1", "0:0/1", "1:0/1", "1:0/1-", "1:-0/1", "0/1-0/2", "1:0/1-0/2-0/3"] {
            assert!(wrong.parse::<Own>().is_err(), "{wrong}");
        }
        assert!("x:0/1".parse::<Left>().is_err());
    }

    #[test]
    fn c076_a_timeline_is_of_the_history_up_to_where_it_was_left() {
        let at = |number: u64, offset: u64| Lsn(segment(1, number).start(SIZE).0 + offset);
        let bounds = Bounds { left: vec![Left { timeline: Timeline(1), at: at(4, 100) }], ..Bounds::default() };
        let until = |timeline, number| bounds.belongs_until(segment(timeline, number), SIZE);
        assert_eq!((until(1, 3), until(1, 4), until(1, 5), until(2, 9)), (None, Some(at(4, 100)), Some(at(4, 100)), None));
        let beside = |number| bounds.is_beside(segment(1, number), SIZE);
        assert_eq!((beside(3), beside(4), beside(5)), (false, false, true));
        // Left where a segment ends: all of it is of the history, and the next one is not.
        let bounds = Bounds { left: vec![Left { timeline: Timeline(1), at: at(5, 0) }], ..Bounds::default() };
        assert_eq!((bounds.belongs_until(segment(1, 4), SIZE), bounds.is_beside(segment(1, 5), SIZE)), (None, true));
        // The end is that of every timeline.
        let bounds = Bounds { until: Some(at(3, 7)), ..bounds };
        let until = |timeline, number| bounds.belongs_until(segment(timeline, number), SIZE);
        assert_eq!((until(1, 2), until(1, 3), until(2, 3), until(1, 5)), (None, Some(at(3, 7)), Some(at(3, 7)), Some(at(3, 7))));

        let own = Own { timeline: Timeline(1), from: at(2, 40), to: at(4, 100) };
        let until = |timeline, number| own.until(segment(timeline, number), SIZE);
        assert_eq!(
            [until(1, 1), until(1, 2), until(1, 3), until(1, 4), until(1, 5)],
            [None, Some(at(3, 0)), Some(at(4, 0)), Some(at(4, 100)), None]
        );
        assert_eq!(until(2, 3), None);
        assert_eq!(Own { to: at(4, 0), ..own }.until(segment(1, 4), SIZE), None);
    }

    #[test]
    fn promises_are_read_as_they_are_written() {
        let promise: Promise = "3:0/A0000F8".parse().unwrap();
        assert_eq!(promise, Promise { timeline: Timeline(3), lsn: Lsn(0xA0_000F8) });
        assert_eq!(promise.to_string(), "3:0/A0000F8");
        for bad in ["", "1", "1:", ":0/1", "0:0/1", "-1:0/1", "1:0-1"] {
            assert!(bad.parse::<Promise>().is_err(), "{bad}");
        }
    }

    #[test]
    fn gap_objects_say_their_range_in_their_key() {
        let key = crate::repository::layout::wal_gap(super::super::SystemId(7), Timeline(0x1A), Lsn(0x1_0300_0000), Lsn(0x1_0500_0000));
        let lost = Lost { timeline: Timeline(0x1A), from: Lsn(0x1_0300_0000), to: Lsn(0x1_0500_0000) };
        assert_eq!(Lost::from_key(&key), Some(lost));
        assert_eq!(Lost::from_key(&Key::parse("wal/7/gaps/1.2-3.json").unwrap()), None);
    }

    #[test]
    fn a_batch_is_begun_when_less_than_half_lies_ready() {
        let ready = |numbers: std::ops::Range<u64>| numbers.map(|number| segment(1, number));
        assert!(wants_more(ready(0..0), segment(1, 4), 1));
        assert!(!wants_more(ready(5..6), segment(1, 4), 1));
        assert!(!wants_more(ready(5..13), segment(1, 4), 16));
        assert!(wants_more(ready(5..12), segment(1, 4), 16));
        assert!(wants_more(ready(21..40), segment(1, 4), 16), "too far ahead to count");
        assert!(wants_more(ready(5..21), segment(2, 4), 16), "another timeline");
        assert!(has_time(ready(5..7), segment(1, 7), 2) && has_time(ready(5..9), segment(1, 7), 2));
        assert!(!has_time(ready(5..7), segment(1, 6), 2), "only one of them comes before it");
        assert!(!has_time(ready(5..7), segment(2, 7), 2), "another timeline");
        assert!(!is_ahead(segment(1, 4), segment(1, 4), 16) && is_ahead(segment(1, 20), segment(1, 4), 16));
    }
}
