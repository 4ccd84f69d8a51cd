//! Timeline history files: which timelines a timeline descends from, and where it left each of them.
//!
//! Facts from PostgreSQL: `src/backend/access/transam/timeline.c`, `readTimeLineHistory` and `writeTimeLineHistory`.
//! Bytes and values only; which files there are is the business of `catalog`.

use serde::Serialize;

use super::{Lsn, Timeline};

/// Bytes of a history file that we read at most. PostgreSQL sets no limit; a line is about 60 bytes, and
/// 16 000 promotions are more than any cluster has seen.
pub const MAX_HISTORY_BYTES: usize = 1 << 20;

/// Why bytes are not a history file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// Longer than [`MAX_HISTORY_BYTES`].
    #[error("read history of timeline {timeline}: {bytes} bytes are too many")]
    TooLong {
        /// Of which timeline.
        timeline: Timeline,
        /// Its length.
        bytes: usize,
    },
    /// A line is not "timeline, tab, LSN, tab, reason".
    #[error("read history of timeline {timeline}: line {line} is not a timeline and an LSN: {text:?}")]
    Syntax {
        /// Of which timeline.
        timeline: Timeline,
        /// Number of the line, from 1.
        line: usize,
        /// The beginning of the line.
        text: String,
    },
    /// Timelines do not grow from line to line, or reach the timeline itself.
    #[error("read history of timeline {timeline}: timeline {found} in line {line} is out of order")]
    TimelineOrder {
        /// Of which timeline.
        timeline: Timeline,
        /// Number of the line, from 1.
        line: usize,
        /// The timeline in it.
        found: Timeline,
    },
}

/// One ancestor of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The ancestor.
    pub timeline: Timeline,
    /// Where its descendant left it, and began: the first byte that is not the ancestor's any more.
    pub switch: Lsn,
    /// Why, as PostgreSQL put it.
    pub reason: String,
}

/// The history of one timeline: its ancestors, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct History {
    /// The timeline whose history it is.
    pub timeline: Timeline,
    /// Its ancestors. Empty where a cluster began with this timeline.
    pub entries: Vec<Entry>,
}

impl History {
    /// The history of a timeline that began with the cluster; timeline 1 has no history file.
    pub fn root(timeline: Timeline) -> Self {
        Self { timeline, entries: Vec::new() }
    }

    /// Reads the history file of `timeline`. As `readTimeLineHistory` does.
    ///
    /// The switches in a file may go back: a server that is to follow timeline 2 and stops on timeline 1 before 2 left it writes "1, 2's
    /// beginning; 2, where it stopped" (seen of 15). See [`Self::switch_from`].
    pub fn parse(timeline: Timeline, bytes: &[u8]) -> Result<Self, HistoryError> {
        if bytes.len() > MAX_HISTORY_BYTES {
            return Err(HistoryError::TooLong { timeline, bytes: bytes.len() });
        }
        // The reason may be in any encoding (the name of a restore point is in it).
        let text = String::from_utf8_lossy(bytes);
        let mut entries: Vec<Entry> = Vec::new();
        for (index, raw) in text.lines().enumerate() {
            let (line, trimmed) = (index + 1, raw.trim());
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let syntax = || HistoryError::Syntax { timeline, line, text: trimmed.chars().take(80).collect() };
            let (number, rest) = trimmed.split_once(char::is_whitespace).ok_or_else(syntax)?;
            let rest = rest.trim_start();
            let (switch, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            if !number.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(syntax());
            }
            let found = Timeline(number.parse().map_err(|_| syntax())?);
            let switch: Lsn = switch.parse().map_err(|_| syntax())?;
            if found.0 == 0 || found >= timeline || entries.last().is_some_and(|last| last.timeline >= found) {
                return Err(HistoryError::TimelineOrder { timeline, line, found });
            }
            entries.push(Entry { timeline: found, switch, reason: reason.trim().to_owned() });
        }
        Ok(Self { timeline, entries })
    }

    /// The bytes of its file. What PostgreSQL gave as reasons is kept as far as it is known.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.entries.iter().flat_map(|entry| format!("{}\t{}\t{}\n", entry.timeline, entry.switch, entry.reason).into_bytes()).collect()
    }

    /// The timeline that it left last.
    pub fn parent(&self) -> Option<&Entry> {
        self.entries.last()
    }

    /// The timelines it descends from, oldest first.
    pub fn ancestors(&self) -> impl Iterator<Item = Timeline> {
        self.entries.iter().map(|entry| entry.timeline)
    }

    /// The timeline whose WAL has the byte at `lsn` (`tliOfPointInHistory`).
    pub fn timeline_of(&self, lsn: Lsn) -> Timeline {
        self.ends().find(|(_, end)| lsn < *end).map_or(self.timeline, |(timeline, _)| timeline)
    }

    /// Its ancestors, oldest first, and where each of them ends in it. A line of the file says where a timeline was left; but the byte at an LSN
    /// is the youngest timeline's that begins before it (`tliOfPointInHistory` looks at the youngest first), so one that is left behind the
    /// place where a younger one is left ends there.
    pub fn ends(&self) -> impl Iterator<Item = (Timeline, Lsn)> {
        let end = |at: usize| self.entries[at..].iter().map(|entry| entry.switch).min().expect("of one at least");
        self.entries.iter().enumerate().map(move |(at, entry)| (entry.timeline, end(at)))
    }

    /// Where `timeline` ends in this history ([`Self::ends`]); `None` if it was not left, or never was on it.
    pub fn switch_from(&self, timeline: Timeline) -> Option<Lsn> {
        self.ends().find(|(of, _)| *of == timeline).map(|(_, end)| end)
    }

    /// Whether the history of the parent says the same of what both tell.
    pub fn continues(&self, parent: &Self) -> bool {
        let same = |(ours, theirs): (&Entry, &Entry)| ours.timeline == theirs.timeline && ours.switch == theirs.switch;
        self.parent().is_some_and(|entry| entry.timeline == parent.timeline)
            && self.entries.len() == parent.entries.len() + 1
            && self.entries.iter().zip(&parent.entries).all(same)
    }

    /// Whether both can be true: what they say of timelines that both know is the same. Two standbys that are promoted and know nothing of each
    /// other give their timelines the same number.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let (longer, shorter) = if self.timeline < other.timeline { (other, self) } else { (self, other) };
        let until = match longer.entries.iter().position(|entry| entry.timeline == shorter.timeline) {
            Some(at) => at,
            None if longer.timeline == shorter.timeline => longer.entries.len(),
            // Neither descends from the other: nothing to compare.
            None => return true,
        };
        let said = |entry: &Entry| (entry.timeline, entry.switch);
        longer.entries[..until].iter().map(said).eq(shorter.entries.iter().map(said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const THREE: &[u8] = b"1\t0/3000110\tno recovery target specified\n\n2\t0/5000000\tbefore 2024-03-15 12:00:00+00\n\n";

    #[test]
    fn c061_timelines_of_one_number_are_told_apart() {
        let history = |timeline, entries: &[(u32, u64)]| {
            let entry =
                |(timeline, switch): &(u32, u64)| Entry { timeline: Timeline(*timeline), switch: Lsn(*switch), reason: String::new() };
            History { timeline: Timeline(timeline), entries: entries.iter().map(entry).collect() }
        };
        let agree = |a: &History, b: &History| {
            assert_eq!(a.agrees_with(b), b.agrees_with(a));
            a.agrees_with(b)
        };
        let (ours, other) = (history(2, &[(1, 700)]), history(2, &[(1, 600)]));
        assert!(agree(&ours, &ours) && !agree(&ours, &other));
        // Later timelines that descend from the one or the other, and one that left timeline 1 by itself.
        assert!(agree(&ours, &history(3, &[(1, 700), (2, 900)])) && !agree(&other, &history(3, &[(1, 700), (2, 900)])));
        assert!(agree(&ours, &history(3, &[(1, 600)])));
        assert!(agree(&ours, &history(3, &[(1, 700), (2, 500)])), "it stopped before timeline 2 began");
        assert!(agree(&ours, &History::root(Timeline(1))));
        assert!(!agree(&ours, &history(2, &[])), "a cluster that began with timeline 2");
    }

    #[test]
    fn c060_a_history_says_whose_byte_it_is() {
        let history = History::parse(Timeline(4), THREE).unwrap();
        assert_eq!(history.entries.len(), 2);
        assert_eq!(history.entries[0].reason, "no recovery target specified");
        assert_eq!(history.ancestors().collect::<Vec<_>>(), [Timeline(1), Timeline(2)]);
        for (lsn, timeline) in [(0, 1), (0x300_010F, 1), (0x300_0110, 2), (0x4FF_FFFF, 2), (0x500_0000, 4), (u64::MAX, 4)] {
            assert_eq!(history.timeline_of(Lsn(lsn)), Timeline(timeline), "{lsn:X}");
        }
        assert_eq!(history.switch_from(Timeline(2)), Some(Lsn(0x500_0000)));
        assert_eq!(history.switch_from(Timeline(3)), None);
        let parent = History::parse(Timeline(2), b"1\t0/3000110\tx\n").unwrap();
        assert!(history.continues(&parent));
        let other = History::parse(Timeline(2), b"1\t0/3000118\tx\n").unwrap();
        assert!(!history.continues(&other));
    }

    #[test]
    fn c060_a_history_that_goes_back_is_followed_as_postgresql_follows_it() {
        let history = History::parse(Timeline(3), b"1\t0/900090\tno recovery target specified\n2\t0/800090\tbefore 2024-03-15\n").unwrap();
        for (lsn, timeline) in [(0x80_008F, 1), (0x80_0090, 3), (0x85_0000, 3), (0x90_0090, 3)] {
            assert_eq!(history.timeline_of(Lsn(lsn)), Timeline(timeline), "{lsn:X}");
        }
        assert_eq!(history.switch_from(Timeline(1)), Some(Lsn(0x80_0090)));
        let parent = History::parse(Timeline(2), b"1\t0/900090\tno recovery target specified\n").unwrap();
        assert!(history.continues(&parent));
        let other = History::parse(Timeline(2), b"1\t0/700090\tno recovery target specified\n").unwrap();
        assert!(!history.continues(&other));
    }

    #[test]
    fn comments_blanks_and_bytes_of_any_encoding_are_read_as_postgresql_reads_them() {
        let history = History::parse(Timeline(2), b"# c\n   \n 1\t16/B374D848\tat restore point \"\xFF\xE4\"").unwrap();
        assert_eq!(history.entries[0].switch, Lsn(0x16_B374_D848));
        assert_eq!(History::parse(Timeline(2), b"").unwrap(), History::root(Timeline(2)));
        assert_eq!(History::parse(Timeline(2), b"1\t0/10").unwrap().entries[0].reason, "");
    }

    #[test]
    fn malformed_histories_are_errors() {
        let error = |bytes: &[u8]| History::parse(Timeline(5), bytes).unwrap_err();
        assert!(matches!(error(b"one\t0/1\tx\n"), HistoryError::Syntax { line: 1, .. }));
        assert!(matches!(error(b"1\n"), HistoryError::Syntax { .. }));
        assert!(matches!(error(b"1\tx\ty\n"), HistoryError::Syntax { .. }));
        assert!(matches!(error(b"+1\t0/1\ty\n"), HistoryError::Syntax { .. }));
        assert!(matches!(error(b"99999999999\t0/1\ty\n"), HistoryError::Syntax { .. }));
        assert!(matches!(error(b"0\t0/1\ty\n"), HistoryError::TimelineOrder { .. }));
        assert!(matches!(error(b"5\t0/1\ty\n"), HistoryError::TimelineOrder { .. }));
        assert!(matches!(error(b"2\t0/1\ty\n1\t0/2\ty\n"), HistoryError::TimelineOrder { line: 2, .. }));
        assert!(matches!(error(&vec![b'#'; MAX_HISTORY_BYTES + 1]), HistoryError::TooLong { .. }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_history_or_an_error(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\t'), Just(b'\n'), Just(b'1'), Just(b'/')], 0..200)) {
            if let Ok(history) = History::parse(Timeline(9), &bytes) {
                prop_assert!(history.entries.windows(2).all(|pair| pair[0].timeline < pair[1].timeline && pair[0].switch <= pair[1].switch));
            }
        }
    }
}
