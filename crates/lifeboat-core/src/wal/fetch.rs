//! What a server in recovery asks of `wal fetch`, and what the listing of the archive allows to be answered.
//!
//! Decides only. The one answer that must never be given wrongly is "behind the end of the archive": a server that hears it ends its
//! recovery there and takes up writing (`RestoreArchivedFile` in `src/backend/access/transam/xlogarchive.c`).

use std::fmt;
use std::str::FromStr;

use super::file::WalFile;
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

/// What the archive had when a restore was planned: all WAL of a timeline, and of those that led to it, up to a position. Written
/// `1:0/A0000F8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    /// The timeline.
    pub timeline: Timeline,
    /// Where what was there ended.
    pub lsn: Lsn,
}

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

/// The promise that a file was there, if one of them says so.
///
/// A timeline without a promise of its own is taken for one that led to the next higher that has one: a server asks for segments of other
/// timelines only where they are on its way, and for one behind the switch only if the newer timeline does not have it
/// (`XLogFileReadAnyTLI` in `src/backend/access/transam/xlogrecovery.c`), which is then a broken promise by itself.
pub fn promised(file: WalFile, promises: &[Promise], size: SegmentSize) -> Option<Promise> {
    let at_or_after = promises.iter().filter(|promise| promise.timeline >= file.timeline());
    // Of several for one timeline the one that reaches furthest counts.
    let promise = at_or_after.min_by_key(|promise| (promise.timeline, std::cmp::Reverse(promise.lsn)))?;
    let broken = match file {
        WalFile::Segment(segment) => segment.start(size) < promise.lsn,
        WalFile::History(timeline) => promise.timeline == timeline,
        WalFile::Partial(_) | WalFile::BackupHistory { .. } | WalFile::Piece { .. } => false,
    };
    broken.then_some(*promise)
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

/// What it means that the archive does not have a file whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// Nothing of its timeline is there at its place or behind it.
    AfterEnd,
    /// It is the last segment of its timeline, and not whole.
    Open(OpenSegment),
    /// There is this at its place or behind it: a hole.
    Gap(WalFile),
    /// What is lost is known.
    Known(Lost),
    /// It is there whole: the listing was made later than the question.
    Appeared,
}

/// What it means that the archive does not have `file` whole, where `listed` is all that it has of that timeline.
pub fn missing(file: WalFile, listed: &[WalFile], lost: &[Lost], size: SegmentSize) -> Missing {
    if listed.contains(&file) {
        return Missing::Appeared;
    }
    let timeline = file.timeline();
    let segment = match file {
        WalFile::Segment(segment) | WalFile::Partial(segment) | WalFile::Piece { segment, .. } => segment,
        // It says where a backup began. No recovery needs it to go on.
        WalFile::BackupHistory { .. } => return Missing::AfterEnd,
        // Its timeline has WAL, so there was one.
        WalFile::History(_) => {
            return listed.iter().find(|other| other.timeline() == timeline).map_or(Missing::AfterEnd, |f| Missing::Gap(*f));
        }
    };
    let place = |other: &WalFile| match other {
        WalFile::BackupHistory { segment, .. } => Some(*segment),
        other => other.segment(),
    };
    let same_timeline = || listed.iter().filter(|other| place(other).is_some_and(|place| place.timeline == timeline));
    if let Some(behind) = same_timeline().find(|other| place(other).is_some_and(|place| place.number > segment.number)) {
        return Missing::Gap(*behind);
    }
    if let Some(lost) = lost.iter().find(|lost| lost.timeline == timeline && lost.to > segment.start(size)) {
        return Missing::Known(*lost);
    }
    let here: Vec<WalFile> = same_timeline().filter(|other| place(other) == Some(segment)).copied().collect();
    if matches!(file, WalFile::Segment(_)) {
        let open = join(segment, &here);
        if open.partial || open.joined_to > 0 {
            return Missing::Open(open);
        }
    }
    here.first().map_or(Missing::AfterEnd, |something| Missing::Gap(*something))
}

fn join(segment: Segment, here: &[WalFile]) -> OpenSegment {
    let mut ranges: Vec<(u32, u32)> =
        here.iter().filter_map(|file| if let WalFile::Piece { from, to, .. } = file { Some((*from, *to)) } else { None }).collect();
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
        partial: here.contains(&WalFile::Partial(segment)),
    }
}

impl OpenSegment {
    /// Whether the `.partial`, whose last whole record ends at `end`, goes further than the pieces; and how far the segment reaches then,
    /// as an offset.
    pub fn with_partial(&self, end: Option<Lsn>, size: SegmentSize) -> Option<u32> {
        let start = self.segment.start(size).0;
        let reach = end.map_or(0, |end| end.0.saturating_sub(start).min(size.bytes()));
        let reach = u32::try_from(reach).unwrap_or(u32::MAX);
        (reach > self.joined_to || self.pieces.is_empty()).then_some(reach)
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
    fn c080_only_what_lies_behind_everything_is_after_the_end() {
        let listed = [whole(1, 2), whole(1, 3), whole(1, 5), WalFile::History(Timeline(2)), whole(2, 9)];
        assert_eq!(missing(whole(1, 6), &listed, &[], SIZE), Missing::AfterEnd);
        assert_eq!(missing(whole(1, 4), &listed, &[], SIZE), Missing::Gap(whole(1, 5)));
        assert_eq!(missing(whole(1, 1), &listed, &[], SIZE), Missing::Gap(whole(1, 2)));
        assert_eq!(missing(whole(1, 5), &listed, &[], SIZE), Missing::Appeared);
        assert_eq!(missing(whole(3, 1), &listed, &[], SIZE), Missing::AfterEnd);
        assert_eq!(missing(whole(1, 1), &[], &[], SIZE), Missing::AfterEnd);
        // Something of a later segment is as much proof as all of it.
        let behind = WalFile::Partial(segment(1, 8));
        assert_eq!(missing(whole(1, 7), &[behind], &[], SIZE), Missing::Gap(behind));
        assert_eq!(missing(whole(1, 7), &[piece(8, 0, 10)], &[], SIZE), Missing::Gap(piece(8, 0, 10)));
        let began = WalFile::BackupHistory { segment: segment(1, 7), offset: 0x28 };
        assert_eq!(missing(whole(1, 7), &[began], &[], SIZE), Missing::Gap(began));
        // What is known to be lost was there.
        let lost = Lost { timeline: Timeline(1), from: Lsn(0x600_0000), to: Lsn(0x700_0000) };
        assert_eq!(missing(whole(1, 6), &listed, &[lost], SIZE), Missing::Known(lost));
        assert_eq!(missing(whole(1, 7), &listed, &[lost], SIZE), Missing::AfterEnd);
    }

    #[test]
    fn a_history_file_is_missing_only_where_its_timeline_is() {
        let history = |number| WalFile::History(Timeline(number));
        assert_eq!(missing(history(2), &[whole(1, 2)], &[], SIZE), Missing::AfterEnd);
        assert_eq!(missing(history(2), &[whole(2, 2)], &[], SIZE), Missing::Gap(whole(2, 2)));
        assert_eq!(missing(history(2), &[history(2)], &[], SIZE), Missing::Appeared);
    }

    #[test]
    fn pieces_are_joined_as_far_as_they_go() {
        let open = |listed: &[WalFile]| match missing(whole(1, 4), listed, &[], SIZE) {
            Missing::Open(open) => open,
            other => panic!("{other:?}"),
        };
        let listed = [piece(4, 0, 10), piece(4, 0, 30), piece(4, 20, 40), piece(4, 25, 35), piece(4, 50, 60)];
        let joined = open(&listed);
        assert_eq!((joined.pieces.as_slice(), joined.joined_to), (&[piece(4, 0, 30), piece(4, 20, 40)][..], 40));
        assert!(joined.left_out && !joined.partial);
        assert!(!open(&[piece(4, 0, 1 << 24)]).left_out);

        // Nothing at 0 is nothing at all, but somebody had it.
        assert_eq!(missing(whole(1, 4), &[piece(4, 50, 60)], &[], SIZE), Missing::Gap(piece(4, 50, 60)));
        // In the middle of the archive it is a hole.
        assert_eq!(missing(whole(1, 4), &[piece(4, 0, 10), piece(5, 0, 10)], &[], SIZE), Missing::Gap(piece(5, 0, 10)));

        let partial = open(&[WalFile::Partial(segment(1, 4)), piece(4, 0, 10)]);
        let start = segment(1, 4).start(SIZE);
        assert_eq!(partial.with_partial(Some(Lsn(start.0 + 11)), SIZE), Some(11));
        assert_eq!(partial.with_partial(Some(Lsn(start.0 + 10)), SIZE), None);
        assert_eq!(partial.with_partial(None, SIZE), None);
        assert_eq!(partial.with_partial(Some(Lsn(start.0 + (1 << 25))), SIZE), Some(1 << 24));
        assert_eq!(open(&[WalFile::Partial(segment(1, 4))]).with_partial(None, SIZE), Some(0));
    }

    #[test]
    fn c080_what_was_there_when_the_restore_was_planned_is_not_after_the_end() {
        let promise = |text: &str| text.parse::<Promise>().unwrap();
        let path = [promise("1:0/5000100"), promise("3:0/A0000F8")];
        assert_eq!(path[1].to_string(), "3:0/A0000F8");
        for (file, expected) in [
            (whole(1, 5), Some(path[0])),
            (whole(1, 6), None),
            // Not named: on the way to 3, as far as anybody knows.
            (whole(2, 6), Some(path[1])),
            (whole(3, 10), Some(path[1])),
            (whole(3, 11), None),
            (whole(4, 1), None),
            (WalFile::History(Timeline(3)), Some(path[1])),
            (WalFile::History(Timeline(4)), None),
            (WalFile::Partial(segment(1, 5)), None),
        ] {
            assert_eq!(promised(file, &path, SIZE), expected, "{file:?}");
        }
        // An end on a boundary needs no further segment.
        assert_eq!(promised(whole(1, 5), &[promise("1:0/5000000")], SIZE), None);
        assert_eq!(promised(whole(1, 5), &[promise("1:0/4000000"), promise("1:0/6000000")], SIZE), Some(promise("1:0/6000000")));
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
        assert!(!is_ahead(segment(1, 4), segment(1, 4), 16) && is_ahead(segment(1, 20), segment(1, 4), 16));
    }
}
