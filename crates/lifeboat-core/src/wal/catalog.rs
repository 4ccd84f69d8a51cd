//! The archive of a cluster's WAL as a value: what is there, what is missing, how far replay can go (format 10).
//!
//! Built from a listing, histories and gap objects; reads nothing itself, and believes that what is listed is whole.
//! Kept as ranges: the size follows the holes, not the segments.
//!
//! Which file PostgreSQL takes a segment from is a fact of `XLogFileReadAnyTLI` (`src/backend/access/transam/xlogrecovery.c`):
//! it asks for the segment on the newest timeline of the history that had begun by then, and goes to an older one only when it
//! is told that there is none. So a segment in which timelines branch off is the youngest one's that the archive has.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::fetch::Left;
use super::file::{GapRecord, WalFile};
use super::history::History;
use super::ranges::Ranges;
use super::receive::Position;
use super::{Lsn, Segment, SegmentSize, SystemId, Timeline};
use crate::repository::manifest::{Manifest, State};

/// WAL that is missing in the middle, or known to be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// On which timeline.
    pub timeline: Timeline,
    /// The first byte that is missing.
    pub from: Lsn,
    /// Behind the last; `None`: nobody knows where it ends.
    pub to: Option<Lsn>,
    /// What was recorded of it, if anything: who found it, and why it is lost.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recorded: Vec<String>,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WAL of timeline {} from {}", self.timeline, self.from)?;
        match self.to {
            Some(to) => write!(f, " to {to} is missing")?,
            None => write!(f, " on is missing")?,
        }
        self.recorded.iter().try_for_each(|reason| write!(f, " ({reason})"))
    }
}

/// Why an archive does not have a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "absence")]
pub enum Absence {
    /// It has it: whole, or so far as an open segment goes.
    None,
    /// The archive ends before it: recovery may end as well.
    AfterEnd,
    /// It should be there: recovery must not end here.
    Gap {
        /// What says so.
        evidence: String,
        /// The gap.
        #[serde(skip_serializing_if = "Option::is_none")]
        gap: Option<Gap>,
    },
}

/// What must be reached: nothing before it may pass for the end of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// On whose history.
    pub timeline: Timeline,
    /// Behind the last byte that is needed.
    pub lsn: Lsn,
}

/// How much of a segment there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Held {
    /// All of it.
    Whole,
    /// The last one of its timeline, up to this LSN.
    Open(Lsn),
    /// Not all of it, though the timeline goes on: a gap.
    Broken,
    /// Nothing of it, nor of anything behind it on its timeline.
    Nothing,
}

/// The last segment of a timeline, if it is not there as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenSegment {
    /// Its file name.
    pub name: String,
    /// Where it begins.
    pub from: Lsn,
    /// How far its pieces go without a hole.
    pub to: Lsn,
    /// Pieces, as ranges: more than one, or one that does not begin with the segment, is a hole.
    pub pieces: Vec<(Lsn, Lsn)>,
    /// Whether there is a `.partial`.
    pub partial: bool,
    /// Where the last whole record of the `.partial` ends, if somebody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial_end: Option<Lsn>,
}

/// What there is of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TimelineState {
    /// Which.
    pub timeline: Timeline,
    /// Where it branched off from which, if it did and the history is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<(Timeline, Lsn)>,
    /// Whether its history file is missing though it needs one.
    pub history_missing: bool,
    /// Ranges of whole segments.
    pub ranges: Vec<(Lsn, Lsn)>,
    /// The segment behind the last whole one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<OpenSegment>,
    /// The first byte that is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Lsn>,
    /// Behind the last byte that is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Lsn>,
    /// Name of the first segment of which something is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_segment: Option<String>,
    /// Name of the last segment of which something is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_segment: Option<String>,
    /// Whole segments.
    pub segments: u64,
    /// Objects of every kind.
    pub objects: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// What is missing between first and last, or known to be lost.
    pub gaps: Vec<Gap>,
}

/// One part of a history: replay reads [from, to) on this timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// The timeline.
    pub timeline: Timeline,
    /// Where it begins; 0/0 for the oldest.
    pub from: Lsn,
    /// Where the next one branches off; `None` for the last. Before `from`, where nothing of it is of the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Lsn>,
}

impl Leg {
    fn ends_at(&self) -> Lsn {
        self.to.unwrap_or(Lsn(u64::MAX))
    }
}

/// The way of a history from the beginning of the cluster to a timeline, oldest leg first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Path {
    legs: Vec<Leg>,
}

impl Path {
    /// A timeline of which nobody knows where it came from.
    pub fn alone(timeline: Timeline) -> Self {
        Self { legs: vec![Leg { timeline, from: Lsn(0), to: None }] }
    }

    /// Its legs, oldest first; never empty.
    pub fn legs(&self) -> &[Leg] {
        &self.legs
    }

    /// The timeline that it leads to.
    pub fn timeline(&self) -> Timeline {
        self.legs.last().map_or(Timeline(0), |leg| leg.timeline)
    }

    /// The leg that has the byte at `lsn`.
    pub fn leg_at(&self, lsn: Lsn) -> Leg {
        let found = self.legs.iter().find(|leg| lsn < leg.ends_at()).or(self.legs.last());
        *found.expect("a path has a leg")
    }

    /// The leg of a timeline.
    pub fn leg_of(&self, timeline: Timeline) -> Option<Leg> {
        self.legs.iter().find(|leg| leg.timeline == timeline).copied()
    }

    /// Where it leaves its timelines.
    pub fn left(&self) -> Vec<Left> {
        self.legs.iter().filter_map(|leg| Some(Left { timeline: leg.timeline, at: leg.to? })).collect()
    }

    /// Whether the bytes [from, to) of `timeline` are all of this history.
    pub fn has(&self, timeline: Timeline, from: Lsn, to: Lsn) -> bool {
        self.leg_of(timeline).is_some_and(|leg| leg.from <= from && to <= leg.ends_at())
    }

    /// The same history, ended before it leaves `timeline`.
    pub fn until(&self, timeline: Timeline) -> Option<Self> {
        let at = self.legs.iter().position(|leg| leg.timeline == timeline)?;
        let mut legs = self.legs[..=at].to_vec();
        legs[at].to = None;
        Some(Self { legs })
    }

    /// How much of a file of the segment belongs to this history, if not all of it does: up to where its timeline was left, which may
    /// be before it begins. A server that reads on behind that, because the next timeline's own copy of the segment was never
    /// archived, replays another history: whoever hands out the file fills up with zeros from there on ([`super::fetch::Bounds`]).
    pub fn belongs_until(&self, segment: Segment, size: SegmentSize) -> Option<Lsn> {
        let end = segment.start(size).0.saturating_add(size.bytes());
        self.leg_of(segment.timeline)?.to.filter(|to| to.0 < end)
    }
}

/// Why there is no way to a timeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The archive lacks what says where it branched off.
    #[error("follow timeline {0}: the archive has no history file {0:08X}.history", .timeline.0)]
    MissingHistory {
        /// Of which timeline.
        timeline: Timeline,
    },
    /// Two history files say different things of the same timelines: two servers, or a restore, took the same number.
    #[error("follow timeline {timeline}: its history and that of timeline {parent} contradict each other")]
    Contradiction {
        /// The timeline.
        timeline: Timeline,
        /// Its parent.
        parent: Timeline,
    },
    /// Timelines count from 1.
    #[error("follow timeline {0}: there is no such timeline")]
    Unknown(Timeline),
}

/// How far replay can go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// Behind the last byte that it can read.
    pub to: Lsn,
    /// Whose byte the last one is.
    pub timeline: Timeline,
    /// What stops it; `None`: the history ends here as far as anybody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_by: Option<Gap>,
}

/// A base backup, as far as recovery is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupPoint {
    /// Its id.
    pub id: String,
    /// The timeline it was taken on.
    pub timeline: Timeline,
    /// Where recovery begins.
    pub start_lsn: Lsn,
    /// From where on it is consistent.
    pub stop_lsn: Lsn,
    /// When that was.
    pub consistent_at: Timestamp,
    /// Damaged pages were copied.
    pub degraded: bool,
    /// Its own WAL, from start to stop, is in it.
    pub wal_included: bool,
}

impl BackupPoint {
    /// What a manifest says; `None` if it has no physical copy of the cluster.
    pub fn of(manifest: &Manifest, system_id: SystemId) -> Option<Self> {
        let postgres = manifest.postgres.as_ref().filter(|postgres| postgres.system_id == Some(system_id))?;
        let physical = postgres.physical.as_ref()?;
        Some(Self {
            id: manifest.id.to_string(),
            timeline: physical.timeline,
            start_lsn: physical.start_lsn,
            stop_lsn: physical.stop_lsn,
            consistent_at: physical.consistent_at,
            degraded: manifest.state == State::Degraded,
            wal_included: physical.wal.included,
        })
    }
}

/// One end of a recovery window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// Where.
    pub lsn: Lsn,
    /// On which timeline.
    pub timeline: Timeline,
    /// When, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
}

/// A part of a window that cannot be gone back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Except {
    /// The last moment before it.
    pub from: Moment,
    /// The first one behind it.
    pub to: Moment,
    /// The hole that makes it so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// No backup behind it is whole: all have damaged pages.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub only_degraded: bool,
}

/// "You can go back to any moment from A to B, except …", along one history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The history that it is on.
    pub path: Path,
    /// The first moment.
    pub from: Moment,
    /// The last.
    pub to: Moment,
    /// What ends it, if that is a hole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_by: Option<Gap>,
    /// What is not in it.
    pub except: Vec<Except>,
    /// The backups that it rests on, oldest first.
    pub backups: Vec<String>,
}

/// What an archive tells of why it has a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapStory {
    /// It was written down that it was not there, when that was noticed.
    Recorded,
    /// The archive was begun behind it, and says so.
    NotBegun,
    /// The archive of the timeline begins behind it: it was set up later, or lost its beginning.
    BeforeAll,
    /// It was stored, and is not there any more.
    Gone,
}

/// A gap that cuts into what could be gone back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// What is missing.
    pub gap: Gap,
    /// In every window that it is in there is a backup behind it, and a whole one: the newest moment can be gone back to.
    pub is_passed: bool,
}

/// Gaps that cut into what could be gone back to, each once. What is missing before every backup cuts nothing off.
pub fn cuts(windows: &[Window]) -> Vec<Cut> {
    let of = |window: &Window| -> Vec<Cut> {
        let cut = |except: &Except| Some(Cut { gap: except.gap.clone()?, is_passed: !except.only_degraded });
        window.except.iter().filter_map(cut).chain(window.stopped_by.clone().map(|gap| Cut { gap, is_passed: false })).collect()
    };
    let mut cuts: Vec<Cut> = windows.iter().flat_map(of).collect();
    // Of one gap the worst comes first, and stays.
    cuts.sort_by_key(|cut| (cut.gap.timeline, cut.gap.from, cut.gap.to, cut.is_passed));
    cuts.dedup_by(|later, first| later.gap == first.gap);
    cuts
}

#[derive(Debug, Clone, Default)]
struct Holdings {
    /// Numbers of whole segments.
    whole: Ranges,
    /// Offsets that pieces have, of segments that are not whole.
    pieces: BTreeMap<u64, Ranges>,
    /// `.partial` files, and where their last whole record ends, once somebody looked.
    partials: BTreeMap<u64, Option<Lsn>>,
    objects: u64,
    stored_bytes: u64,
    /// LSNs recorded as lost.
    lost: Ranges,
    recorded: Vec<GapRecord>,
}

impl Holdings {
    /// Number of the last segment of which something is there.
    fn last(&self) -> Option<u64> {
        let pieces = self.pieces.last_key_value().map(|(number, _)| *number);
        let partial = self.partials.last_key_value().map(|(number, _)| *number);
        self.whole.last().max(pieces).max(partial)
    }

    /// Number of the first segment from `number` on of which something is there.
    fn next_from(&self, number: u64) -> Option<u64> {
        let pieces = self.pieces.range(number..).next().map(|(number, _)| *number);
        let partial = self.partials.range(number..).next().map(|(number, _)| *number);
        [self.whole.next_from(number), pieces, partial].into_iter().flatten().min()
    }
}

/// The WAL archive of one cluster.
#[derive(Debug, Clone)]
pub struct Archive {
    system_id: SystemId,
    size: SegmentSize,
    timelines: BTreeMap<Timeline, Holdings>,
    histories: BTreeMap<Timeline, History>,
    /// History files that were listed, read or not.
    listed_histories: std::collections::BTreeSet<Timeline>,
    /// Where it was begun, if it says so.
    begins: Option<Position>,
    /// Files that are there and count as if they were not, and why.
    doubts: Vec<String>,
}

impl Archive {
    /// An archive with nothing in it.
    pub fn new(system_id: SystemId, size: SegmentSize) -> Self {
        let (timelines, histories) = (BTreeMap::new(), BTreeMap::new());
        Self {
            system_id,
            size,
            timelines,
            histories,
            listed_histories: std::collections::BTreeSet::new(),
            begins: None,
            doubts: Vec::new(),
        }
    }

    /// The cluster.
    pub fn system_id(&self) -> SystemId {
        self.system_id
    }

    /// Bytes in its segments.
    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// Adds a file of a listing; in any order. Each object must be added once: they are counted.
    pub fn add(&mut self, file: WalFile, stored_bytes: u64) {
        if let WalFile::History(timeline) = file {
            self.listed_histories.insert(timeline);
            return;
        }
        let size = self.size.bytes();
        // The last one that a name can say: no server gets there, and no LSN is behind it.
        if file.segment().is_some_and(|segment| segment.number >= u64::MAX / size) {
            return;
        }
        let held = self.timelines.entry(file.timeline()).or_default();
        held.objects += 1;
        held.stored_bytes = held.stored_bytes.saturating_add(stored_bytes);
        let whole = match file {
            WalFile::Segment(segment) => Some(segment.number),
            WalFile::Partial(segment) => {
                if !held.whole.contains(segment.number) {
                    held.partials.entry(segment.number).or_default();
                }
                None
            }
            WalFile::Piece { segment, from, to } => {
                if held.whole.contains(segment.number) {
                    None
                } else {
                    let pieces = held.pieces.entry(segment.number).or_default();
                    pieces.insert(u64::from(from), u64::from(to).min(size));
                    (pieces.at(0) == Some((0, size))).then_some(segment.number)
                }
            }
            WalFile::BackupHistory { .. } | WalFile::History(_) => None,
        };
        if let Some(number) = whole {
            held.whole.insert(number, number.saturating_add(1));
            held.pieces.remove(&number);
            held.partials.remove(&number);
        }
    }

    /// Adds the history of a timeline.
    pub fn add_history(&mut self, history: History) {
        self.listed_histories.insert(history.timeline);
        self.histories.insert(history.timeline, history);
    }

    /// Says where it was begun, as its `cluster.json` does.
    pub fn set_beginning(&mut self, begins: Option<Position>) {
        self.begins = begins;
    }

    /// Says of a file that was added why it does not count.
    pub fn add_doubt(&mut self, doubt: String) {
        self.doubts.push(doubt);
    }

    /// Files that are there and do not count, and why: for whoever is to be told.
    pub fn doubts(&self) -> &[String] {
        &self.doubts
    }

    /// Adds what is known to be lost.
    pub fn add_gap(&mut self, gap: GapRecord) {
        let held = self.timelines.entry(gap.timeline).or_default();
        held.lost.insert(gap.from.0, gap.to.0);
        held.recorded.push(gap);
    }

    /// The same without a segment that is there and cannot be used, as `gap` says.
    #[must_use]
    pub fn without(&self, segment: Segment, gap: GapRecord) -> Self {
        let mut other = self.clone();
        if let Some(held) = other.timelines.get_mut(&segment.timeline) {
            held.whole.remove(segment.number, segment.number.saturating_add(1));
            held.pieces.remove(&segment.number);
            held.partials.remove(&segment.number);
        }
        other.add_gap(gap);
        other
    }

    /// Says where the last whole record of a `.partial` ends (its `summary.end`). Until somebody does, it counts as far as
    /// the places where timelines are known to have branched off in it: a server that is promoted archives it because of them.
    pub fn set_partial_end(&mut self, segment: Segment, end: Option<Lsn>) {
        if let Some(known) = self.timelines.get_mut(&segment.timeline).and_then(|held| held.partials.get_mut(&segment.number)) {
            *known = Some(end.unwrap_or(segment.start(self.size)));
        }
    }

    /// The histories that were added.
    pub fn histories(&self) -> impl Iterator<Item = &History> {
        self.histories.values()
    }

    /// Every timeline that something is known of, oldest first.
    pub fn timelines(&self) -> Vec<Timeline> {
        let mut all: Vec<_> = self.timelines.keys().chain(&self.listed_histories).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether there is any WAL of a timeline.
    pub fn has_wal(&self, timeline: Timeline) -> bool {
        self.timelines.get(&timeline).is_some_and(|held| held.last().is_some())
    }

    /// Along which timeline the present lies: the server's; where none was asked, the newest that there is WAL of. What is committed on
    /// another one is another server's, whatever its number.
    pub fn present(&self, server: Option<Timeline>) -> Option<Timeline> {
        server.or_else(|| self.timelines().into_iter().rev().find(|timeline| self.has_wal(*timeline)))
    }

    /// Whether there is WAL of a timeline in segments behind the one that ends at `lsn`.
    pub fn goes_on_behind(&self, timeline: Timeline, lsn: Lsn) -> bool {
        let last = Segment::ending_at(timeline, lsn, self.size).number;
        self.timelines.get(&timeline).and_then(Holdings::last).is_some_and(|found| found > last)
    }

    fn start(&self, number: u64) -> u64 {
        number.saturating_mul(self.size.bytes())
    }

    fn end(&self, number: u64) -> u64 {
        self.start(number.saturating_add(1))
    }

    fn number(&self, lsn: Lsn) -> u64 {
        lsn.0 / self.size.bytes()
    }

    /// The files whose summaries tell when something before `lsn` was committed on the history of a timeline, of so many segments, the newest
    /// first: whole segments that end there, and each `.partial` whose records do. What goes on behind it may tell of what is behind it, or of the
    /// branch that was left.
    pub fn files_before(&self, timeline: Timeline, lsn: Lsn, segments: u64) -> Vec<WalFile> {
        let path = self.path(timeline).unwrap_or_else(|_| Path::alone(timeline));
        let newest = Segment::ending_at(timeline, lsn, self.size).number;
        let mut files = Vec::new();
        for number in (newest.saturating_sub(segments.saturating_sub(1))..=newest).rev() {
            for leg in path.legs.iter().rev().filter(|leg| self.number(leg.from) <= number) {
                let (segment, until) = (Segment { timeline: leg.timeline, number }, leg.ends_at().min(lsn));
                let Some(held) = self.timelines.get(&leg.timeline) else { continue };
                if held.whole.contains(number) && self.end(number) <= until.0 {
                    files.push(WalFile::Segment(segment));
                } else if held.partials.get(&number).is_some_and(|end| end.is_some_and(|end| end <= until)) {
                    files.push(WalFile::Partial(segment));
                }
            }
        }
        files
    }

    /// How far pieces and `.partial` of a segment go from its beginning on.
    fn joined(&self, held: &Holdings, segment: Segment) -> u64 {
        let start = self.start(segment.number);
        let pieces = held.pieces.get(&segment.number).and_then(|pieces| pieces.at(0)).map_or(start, |(_, to)| start + to);
        let partial = match held.partials.get(&segment.number) {
            None => start,
            Some(Some(end)) => end.0,
            Some(None) => self
                .histories
                .values()
                .filter_map(|history| history.switch_from(segment.timeline))
                .filter(|switch| Segment::ending_at(segment.timeline, *switch, self.size).number == segment.number)
                .max()
                .map_or(start, |switch| switch.0),
        };
        pieces.max(partial).clamp(start, self.end(segment.number))
    }

    /// How much there is of a segment, on its own timeline.
    pub fn held(&self, segment: Segment) -> Held {
        let Some(held) = self.timelines.get(&segment.timeline) else { return Held::Nothing };
        if held.whole.contains(segment.number) {
            return Held::Whole;
        }
        match held.last() {
            Some(last) if last > segment.number => Held::Broken,
            Some(last) if last == segment.number => {
                let to = self.joined(held, segment);
                if to > self.start(segment.number) { Held::Open(Lsn(to)) } else { Held::Broken }
            }
            _ => Held::Nothing,
        }
    }

    /// Why the archive does not have a file, so that `restore_command` may say "there is none", or must not. PostgreSQL takes exit
    /// code 1 for the end of the archive, and promotes (`shell_restore.c`): only [`Absence::AfterEnd`] may say that. With a promise it
    /// says so as well of files that are there, but of another history: of a timeline behind the place where the promised one left it.
    pub fn absence(&self, file: WalFile, promise: Option<Promise>) -> Absence {
        match file {
            WalFile::Segment(segment) | WalFile::Partial(segment) | WalFile::Piece { segment, .. } => {
                self.segment_absence(segment, promise)
            }
            WalFile::History(timeline) => self.history_absence(timeline, promise),
            // Recovery does without them.
            WalFile::BackupHistory { .. } => Absence::AfterEnd,
        }
    }

    fn history_absence(&self, timeline: Timeline, promise: Option<Promise>) -> Absence {
        let gap = |evidence: String| Absence::Gap { evidence, gap: None };
        if self.listed_histories.contains(&timeline) {
            return Absence::None;
        }
        if timeline.0 <= 1 {
            return Absence::AfterEnd;
        }
        match promise {
            Some(promise) if promise.timeline == timeline => gap(format!("recovery is to follow timeline {timeline}")),
            // A server that ends recovery looks for a number that is free, wherever it was told to go (`findNewestTimeLine` in `timeline.c`). Who
            // planned it knows that this one is not, and said so: no answer would keep it from its last step.
            Some(promise) if !self.path(promise.timeline).is_ok_and(|path| path.leg_of(timeline).is_some()) => Absence::AfterEnd,
            _ if self.has_wal(timeline) => gap(format!("there is WAL of timeline {timeline}")),
            _ => Absence::AfterEnd,
        }
    }

    fn segment_absence(&self, segment: Segment, promise: Option<Promise>) -> Absence {
        let found = |evidence: String| {
            let from = Lsn(self.start(segment.number));
            Absence::Gap { evidence, gap: Some(self.gap_at(segment.timeline, from, self.next_there(segment.timeline, from))) }
        };
        let path = promise.and_then(|promise| self.path(promise.timeline).ok());
        if path.and_then(|path| path.belongs_until(segment, self.size)).is_some_and(|until| until.0 <= self.start(segment.number)) {
            return Absence::AfterEnd;
        }
        match self.held(segment) {
            Held::Whole => return Absence::None,
            // All of it: a server reads on behind it, and asks for the next one.
            Held::Open(to) if to.0 >= self.end(segment.number) => return Absence::None,
            Held::Open(to) => {
                let lost = self.timelines.get(&segment.timeline).is_some_and(|held| held.lost.next_from(to.0).is_some());
                let short = promise.filter(|promise| self.needs(segment, *promise).is_some_and(|until| until > to));
                let evidence = match short {
                    // A server that gets the segment takes the zeros behind its bytes for the end, and begins to write.
                    _ if lost => format!("WAL of timeline {} behind {to} is recorded as lost", segment.timeline),
                    Some(promise) => format!("recovery is to reach {} on timeline {}", promise.lsn, promise.timeline),
                    None => return Absence::None,
                };
                return Absence::Gap { evidence, gap: Some(self.gap_at(segment.timeline, to, self.next_there(segment.timeline, to))) };
            }
            Held::Broken => return found(format!("there is later WAL of timeline {}", segment.timeline)),
            Held::Nothing => {}
        }
        let start = self.start(segment.number);
        if let Some(held) = self.timelines.get(&segment.timeline)
            && held.lost.next_from(start).is_some()
        {
            return found(format!("WAL of timeline {} is recorded as lost", segment.timeline));
        }
        // A history is proof as well: its timeline was written at least to where the next one left it. Not against who was promised less of it,
        // and no other timeline: that it ends before is known to whoever planned it.
        let is_planned = promise.is_some_and(|promise| promise.timeline == segment.timeline && promise.lsn.0 <= start);
        let left = self.histories.values().filter_map(|history| Some((history.timeline, history.switch_from(segment.timeline)?)));
        if let Some((child, switch)) = left.max_by_key(|(_, switch)| *switch).filter(|(_, switch)| !is_planned && switch.0 > start) {
            return found(format!("timeline {child} left timeline {} at {switch}", segment.timeline));
        }
        if let Some(promise) = promise.filter(|promise| self.needs(segment, *promise).is_some()) {
            return found(format!("recovery is to reach {} on timeline {}", promise.lsn, promise.timeline));
        }
        Absence::AfterEnd
    }

    /// How far a promise needs the bytes of a segment that only its own timeline has, if it does.
    fn needs(&self, segment: Segment, promise: Promise) -> Option<Lsn> {
        let (start, end) = (self.start(segment.number), self.end(segment.number));
        // Without the history there is no telling which timelines lead there; the promise stands for all.
        let all = Leg { timeline: segment.timeline, from: Lsn(0), to: None };
        let leg = self.path(promise.timeline).map_or(Some(all), |path| path.leg_of(segment.timeline))?;
        let until = leg.ends_at().0.min(promise.lsn.0).min(end);
        (leg.from.0.max(start) < until).then_some(Lsn(until))
    }

    /// Where bytes of a timeline begin again, from `from` on; `from` itself must not be there.
    fn next_there(&self, timeline: Timeline, from: Lsn) -> Option<Lsn> {
        let held = self.timelines.get(&timeline)?;
        let first = self.number(from);
        let pieces = held.pieces.get(&first).and_then(|pieces| pieces.next_from(from.0 - self.start(first)));
        if let Some(offset) = pieces {
            return Some(Lsn(self.start(first) + offset));
        }
        let next = held.next_from(first.saturating_add(1))?;
        // Of a segment in pieces the first one counts, unless there is a `.partial` as well.
        let offset = match held.pieces.get(&next) {
            Some(pieces) if !held.partials.contains_key(&next) => pieces.next_from(0).unwrap_or(0),
            _ => 0,
        };
        Some(Lsn(self.start(next) + offset))
    }

    fn gap_at(&self, timeline: Timeline, from: Lsn, to: Option<Lsn>) -> Gap {
        // Pieces that go on where a `.partial` ends are no more use than if there were a hole between them.
        let to = to.filter(|to| *to > from);
        let mut gap = Gap { timeline, from, to, recorded: Vec::new() };
        if let Some(held) = self.timelines.get(&timeline) {
            let until = to.map_or(u64::MAX, |to| to.0);
            if to.is_none() {
                gap.to = held.lost.iter().map(|(_, end)| end).filter(|end| *end > from.0).max().map(Lsn);
            }
            let within = held.recorded.iter().filter(|record| record.from.0 < until && record.to.0 > from.0);
            gap.recorded = within.map(|record| format!("{}; {} noticed it at {}", record.reason, record.by, record.found)).collect();
        }
        gap
    }

    /// The history of a timeline as another one tells it that descends from it, where its own file is not there. A server that did not find it
    /// would take its number for free, and write another history under that name.
    pub fn told_history(&self, timeline: Timeline) -> Option<History> {
        if timeline.0 <= 1 || self.listed_histories.contains(&timeline) {
            return None;
        }
        let of = |history: &History| {
            let at = history.entries.iter().position(|entry| entry.timeline == timeline)?;
            Some(History { timeline, entries: history.entries[..at].to_vec() })
        };
        self.histories.values().find_map(of)
    }

    /// Timelines of which there is WAL, and nothing that says where they come from: a server that ends recovery may take the number of one.
    pub fn without_origin(&self) -> Vec<Timeline> {
        let known =
            |timeline: &Timeline| timeline.0 <= 1 || self.listed_histories.contains(timeline) || self.told_history(*timeline).is_some();
        self.timelines.keys().copied().filter(|timeline| self.has_wal(*timeline) && !known(timeline)).collect()
    }

    /// The way to a timeline. Its own history file is enough: it names every ancestor.
    pub fn path(&self, timeline: Timeline) -> Result<Path, PathError> {
        let root;
        let history = match self.histories.get(&timeline) {
            _ if timeline.0 == 0 => return Err(PathError::Unknown(timeline)),
            Some(history) => history,
            None if timeline.0 == 1 => {
                root = History::root(timeline);
                &root
            }
            None => return Err(PathError::MissingHistory { timeline }),
        };
        if let Some(parent) = history.parent().and_then(|entry| self.histories.get(&entry.timeline))
            && !history.continues(parent)
        {
            return Err(PathError::Contradiction { timeline, parent: parent.timeline });
        }
        let mut legs = Vec::with_capacity(history.entries.len() + 1);
        let mut from = Lsn(0);
        for (entry, (timeline, end)) in history.entries.iter().zip(history.ends()) {
            // It may end before it begins: then nothing of it is of the history, and a server asks for its segments from its beginning on.
            legs.push(Leg { timeline, from, to: Some(end) });
            from = entry.switch;
        }
        legs.push(Leg { timeline, from, to: None });
        Ok(Path { legs })
    }

    /// The files that recovery along `path` is offered for a segment, as PostgreSQL asks for them: youngest first, down to the
    /// leg that has the byte at `at`.
    fn offered<'p>(&self, path: &'p Path, at: Lsn) -> impl Iterator<Item = &'p Leg> {
        let number = self.number(at);
        let owner = path.legs.iter().position(|leg| at < leg.ends_at()).unwrap_or(path.legs.len() - 1);
        let (size, legs) = (self.size.bytes(), &path.legs[owner..]);
        legs.iter().rev().filter(move |leg| leg.from.0 / size <= number)
    }

    /// The file that recovery along `path` reads the byte at `at` from, if it can.
    pub fn source(&self, path: &Path, at: Lsn) -> Option<Segment> {
        for leg in self.offered(path, at) {
            let segment = Segment { timeline: leg.timeline, number: self.number(at) };
            match self.held(segment) {
                Held::Whole => return Some(segment),
                Held::Open(to) => return (at < to).then_some(segment),
                Held::Broken => return None,
                Held::Nothing => {}
            }
        }
        None
    }

    /// How far recovery along `path` can replay from `from` on without a hole.
    pub fn reach(&self, path: &Path, from: Lsn) -> Reach {
        let mut at = from;
        let mut whose = path.leg_at(from).timeline;
        while let Some(segment) = self.source(path, at) {
            let leg = path.leg_of(segment.timeline).expect("sources are legs of the path");
            let held = &self.timelines[&segment.timeline];
            let mut to = match held.whole.at(segment.number) {
                Some((_, end)) => self.start(end),
                None => self.joined(held, segment),
            };
            to = to.min(leg.ends_at().0);
            // Where a later leg begins, its own copy of the segment comes first.
            for later in path.legs.iter().filter(|later| later.from >= leg.ends_at() && later.timeline != leg.timeline) {
                let copy = self.start(self.number(later.from));
                if copy > at.0 {
                    to = to.min(copy);
                }
            }
            if to <= at.0 {
                break;
            }
            whose = path.leg_at(Lsn(to - 1)).timeline;
            at = Lsn(to);
        }
        Reach { to: at, timeline: whose, stopped_by: self.hole(path, at) }
    }

    /// What is known of the history behind `at`, where replay ends: nothing, or a hole.
    fn hole(&self, path: &Path, at: Lsn) -> Option<Gap> {
        // A file that is there in part, though its timeline goes on, ends recovery even if an older leg has the bytes.
        let number = self.number(at);
        for leg in self.offered(path, at) {
            match self.held(Segment { timeline: leg.timeline, number }) {
                Held::Nothing => {}
                Held::Broken => return Some(self.gap_at(leg.timeline, at, self.next_there(leg.timeline, at))),
                Held::Whole | Held::Open(_) => break,
            }
        }
        let owner = path.legs.iter().position(|leg| at < leg.ends_at()).unwrap_or(path.legs.len() - 1);
        for leg in &path.legs[owner..] {
            let from = at.max(leg.from);
            // That a leg was left behind `from` proves that it went on to there.
            let proven = leg.to.is_some_and(|to| to > from);
            let next = self.next_there(leg.timeline, from).filter(|next| *next < leg.ends_at());
            let lost = self
                .timelines
                .get(&leg.timeline)
                .is_some_and(|held| held.lost.next_from(from.0).is_some_and(|lost| lost < leg.ends_at().0));
            if next.is_some() || lost || proven {
                return Some(self.gap_at(leg.timeline, at, next.or(leg.to.filter(|_| proven))));
            }
        }
        None
    }

    /// How far recovery from a backup can go; it has its own WAL if that is included.
    pub fn reach_of(&self, path: &Path, backup: &BackupPoint) -> Reach {
        let reach = self.reach(path, backup.start_lsn);
        if backup.wal_included && reach.to < backup.stop_lsn { self.reach(path, backup.stop_lsn) } else { reach }
    }

    /// What there is of each timeline.
    pub fn state(&self) -> Vec<TimelineState> {
        self.timelines().into_iter().map(|timeline| self.timeline_state(timeline)).collect()
    }

    fn timeline_state(&self, timeline: Timeline) -> TimelineState {
        let nothing = Holdings::default();
        let held = self.timelines.get(&timeline).unwrap_or(&nothing);
        let name = |number| Segment { timeline, number }.file_name(self.size);
        let (first, last) = (held.next_from(0), held.last());
        let open = last.filter(|number| !held.whole.contains(*number)).map(|number| {
            let start = self.start(number);
            let pieces =
                held.pieces.get(&number).map(|pieces| pieces.iter().map(|(from, to)| (Lsn(start + from), Lsn(start + to))).collect());
            OpenSegment {
                name: name(number),
                from: Lsn(start),
                to: Lsn(self.joined(held, Segment { timeline, number })),
                pieces: pieces.unwrap_or_default(),
                partial: held.partials.contains_key(&number),
                partial_end: held.partials.get(&number).copied().flatten(),
            }
        });
        let history = self.histories.get(&timeline);
        TimelineState {
            timeline,
            parent: history.and_then(History::parent).map(|entry| (entry.timeline, entry.switch)),
            history_missing: timeline.0 > 1 && !self.listed_histories.contains(&timeline),
            ranges: held.whole.iter().map(|(from, to)| (Lsn(self.start(from)), Lsn(self.start(to)))).collect(),
            first: first.map(|number| self.first_byte(held, number)),
            last: last.map(|number| match (&open, held.pieces.get(&number)) {
                (Some(open), Some(pieces)) => open.to.max(Lsn(self.start(number) + pieces.last().map_or(0, |last| last + 1))),
                (Some(open), None) => open.to,
                (None, _) => Lsn(self.end(number)),
            }),
            first_segment: first.map(name),
            last_segment: last.map(name),
            segments: held.whole.iter().map(|(from, to)| to - from).sum(),
            objects: held.objects,
            stored_bytes: held.stored_bytes,
            gaps: self.gaps(timeline),
            open,
        }
    }

    fn first_byte(&self, held: &Holdings, number: u64) -> Lsn {
        let offset = match held.pieces.get(&number) {
            Some(pieces) if !held.partials.contains_key(&number) => pieces.next_from(0).unwrap_or(0),
            _ => 0,
        };
        Lsn(self.start(number) + offset)
    }

    /// What is missing of a timeline: between the first byte and the last that are there, and what is recorded as lost and not there
    /// after all. Touching ones are one.
    pub fn gaps(&self, timeline: Timeline) -> Vec<Gap> {
        let Some(held) = self.timelines.get(&timeline) else { return Vec::new() };
        let mut missing = Ranges::default();
        if let (Some(first), Some(last)) = (held.next_from(0), held.last()) {
            let end = match held.pieces.get(&last) {
                _ if held.whole.contains(last) => self.end(last),
                Some(pieces) => self.start(last) + pieces.last().map_or(0, |offset| offset + 1),
                None => self.start(last),
            };
            missing.insert(self.first_byte(held, first).0, end);
        }
        for (from, to) in held.lost.iter() {
            missing.insert(from, to);
        }
        for (from, to) in held.whole.iter() {
            missing.remove(self.start(from), self.start(to));
        }
        for (number, pieces) in &held.pieces {
            let start = self.start(*number);
            for (from, to) in pieces.iter() {
                missing.remove(start + from, start + to);
            }
        }
        for number in held.partials.keys() {
            missing.remove(self.start(*number), self.joined(held, Segment { timeline, number: *number }));
        }
        missing.iter().map(|(from, to)| self.gap_at(timeline, Lsn(from), Some(Lsn(to)))).collect()
    }

    /// Every moment that can be gone back to: for each history that no other one continues. `time` knows when an LSN of a timeline was
    /// written, or does not.
    pub fn windows(&self, backups: &[BackupPoint], time: &mut dyn FnMut(Timeline, Lsn) -> Option<Timestamp>) -> Vec<Window> {
        let mut timelines = self.timelines();
        timelines.extend(backups.iter().map(|backup| backup.timeline));
        timelines.sort_unstable();
        timelines.dedup();
        let mut windows: Vec<Window> = Vec::new();
        // Youngest first: what an older one has in common with them is told already.
        for timeline in timelines.into_iter().rev() {
            let path = match self.path(timeline) {
                Ok(path) => path,
                // A backup is one moment of its timeline even if nobody knows where that came from.
                Err(_) => Path::alone(timeline),
            };
            let Some(window) = self.window(path, backups, time) else { continue };
            let told = |known: &Window| {
                // On the longer way a file of the younger timeline may stop replay where the shorter one goes on.
                let cut = known.path.leg_of(timeline).and_then(|leg| leg.to).map(|cut| cut.min(known.to.lsn));
                let ends = |window: &Window| window.except.iter().map(|except| (except.from.lsn, except.to.lsn)).collect::<Vec<_>>();
                let same = ends(known).into_iter().filter(|(from, _)| *from < window.to.lsn).eq(ends(&window));
                cut.is_some_and(|cut| window.to.lsn <= cut) && same && window.backups.iter().all(|id| known.backups.contains(id))
            };
            if !windows.iter().any(told) {
                windows.push(window);
            }
        }
        windows.reverse();
        windows
    }

    /// The moments that can be gone back to along one timeline, also where a younger one has told of them already. `None`: no backup leads
    /// there, or nobody knows where it came from.
    pub fn window_along(
        &self,
        timeline: Timeline,
        backups: &[BackupPoint],
        time: &mut dyn FnMut(Timeline, Lsn) -> Option<Timestamp>,
    ) -> Option<Window> {
        self.window(self.path(timeline).ok()?, backups, time)
    }

    /// What the archive itself tells of why it has a gap.
    pub fn story(&self, gap: &Gap) -> GapStory {
        let Some(to) = gap.to else { return GapStory::Gone };
        let held = self.timelines.get(&gap.timeline);
        let first = held.and_then(|held| held.next_from(0).map(|first| self.first_byte(held, first)));
        // Earlier WAL is there all the same: somebody else brought it, and may have brought this.
        let is_older = |begins: Position| match gap.timeline.cmp(&begins.timeline) {
            Ordering::Less => self.number(to) <= self.number(begins.lsn),
            Ordering::Equal => to <= begins.lsn,
            Ordering::Greater => false,
        };
        let is_first =
            |begins: &Position| self.timelines.values().all(|held| held.next_from(0).is_none_or(|first| self.start(first) >= begins.lsn.0));
        if first.is_none_or(|first| first >= to) && self.begins.filter(is_first).is_some_and(is_older) {
            return GapStory::NotBegun;
        }
        let Some(held) = held else { return GapStory::Gone };
        let recorded = |from: u64| held.lost.at(from).is_some_and(|(_, end)| end >= to.0);
        // What is written down begins with a segment. Of the one before it there is a part, or there was, in the backup.
        let number = self.number(gap.from);
        let in_part = gap.from.0 > self.start(number) || held.pieces.contains_key(&number) || held.partials.contains_key(&number);
        if recorded(gap.from.0) || in_part && self.end(number) < to.0 && recorded(self.end(number)) {
            return GapStory::Recorded;
        }
        if first.is_some_and(|first| first >= to) { GapStory::BeforeAll } else { GapStory::Gone }
    }

    fn window(&self, path: Path, backups: &[BackupPoint], time: &mut dyn FnMut(Timeline, Lsn) -> Option<Timestamp>) -> Option<Window> {
        let mut reached: Vec<(&BackupPoint, Reach)> = backups
            .iter()
            .filter(|backup| path.has(backup.timeline, backup.start_lsn, backup.stop_lsn))
            .map(|backup| (backup, self.reach_of(&path, backup)))
            .filter(|(backup, reach)| reach.to >= backup.stop_lsn)
            .collect();
        reached.sort_by(|(a, _), (b, _)| (a.stop_lsn, &a.id).cmp(&(b.stop_lsn, &b.id)));
        let (first, _) = reached.first()?;
        let begin = |backup: &BackupPoint| Moment { lsn: backup.stop_lsn, timeline: backup.timeline, time: Some(backup.consistent_at) };
        let mut moment = |reach: &Reach| Moment { lsn: reach.to, timeline: reach.timeline, time: time(reach.timeline, reach.to) };
        let from = begin(first);
        let (mut end, mut except): (Option<Reach>, Vec<Except>) = (None, Vec::new());
        for (backup, reach) in &reached {
            match &end {
                Some(known) if known.to >= reach.to => continue,
                Some(known) if known.to < backup.stop_lsn => {
                    let behind = |other: &BackupPoint| other.stop_lsn >= backup.stop_lsn;
                    let only_degraded = reached.iter().all(|(other, _)| other.degraded || !behind(other));
                    except.push(Except { from: moment(known), to: begin(backup), gap: known.stopped_by.clone(), only_degraded });
                }
                _ => {}
            }
            end = Some(reach.clone());
        }
        let end = end?;
        let backups = reached.iter().map(|(backup, _)| backup.id.clone()).collect();
        Some(Window { from, to: moment(&end), stopped_by: end.stopped_by, except, backups, path })
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{self, Given, SEGMENTS, UNITS, World, lsn, world};
    use super::*;
    use proptest::prelude::*;

    fn segment(timeline: u32, number: u64) -> Segment {
        Segment { timeline: Timeline(timeline), number }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn c060_c063_replay_goes_as_far_as_postgresql_would_go(world in world(), timeline in 1u32..5, from in 0..SEGMENTS * UNITS) {
            let timeline = timeline % world.timelines() + 1;
            let archive = world.archive();
            let reach = archive.reach(&archive.path(Timeline(timeline)).unwrap(), lsn(from));
            let (to, error) = world.replay(timeline, from);
            prop_assert_eq!(reach.to, lsn(to));
            prop_assert_eq!(reach.stopped_by.is_some(), error || world.goes_on(timeline, to), "{:?}", reach);
            if let Some(gap) = reach.stopped_by {
                prop_assert_eq!(gap.from, reach.to);
                prop_assert!(gap.to.is_none_or(|to| to > gap.from));
            }
            if to > from {
                prop_assert_eq!(reach.timeline, Timeline(world.owner(timeline, to - 1)));
            }
        }

        #[test]
        fn c080_absence_is_the_end_only_where_nothing_speaks_against_it(
            world in world(), timeline in 1u32..5, number in 0..SEGMENTS, promise in proptest::option::of((1u32..5, 0..SEGMENTS * UNITS))
        ) {
            let promise = promise.filter(|(of, _)| *of <= world.timelines());
            let archive = world.archive();
            let asked = WalFile::Segment(segment(timeline, number));
            let absence = archive.absence(asked, promise.map(|(of, to)| Promise { timeline: Timeline(of), lsn: lsn(to) }));
            let units = number * UNITS..(number + 1) * UNITS;
            let needed = |unit: &u64| promise.is_some_and(|(of, to)| *unit < to && world.owner(of, *unit) == timeline);
            if let Some((of, _)) = promise
                && world.ancestors(of).iter().any(|(left, switch)| *left == timeline && *switch <= units.start)
            {
                prop_assert_eq!(absence, Absence::AfterEnd);
                return Ok(());
            }
            let given = world.give(timeline, number);
            // Whoever was promised less, and of this very timeline, knows.
            let known = promise.is_some_and(|(of, to)| of == timeline && to <= units.start);
            let proven = || {
                world.lost.iter().any(|(of, _, to)| *of == timeline && *to > units.start)
                    || !known && (2..=world.timelines()).any(|child| world.ancestors(child).iter().any(|(of, switch)| *of == timeline && *switch > units.start))
            };
            match given {
                Given::Units(there) => {
                    // A server that gets an open segment begins to write behind its bytes: not where it is known that there was more.
                    let lost = there < UNITS && world.lost.iter().any(|(of, _, to)| *of == timeline && *to > units.start + there);
                    let short = units.clone().skip(there as usize).any(|unit| needed(&unit));
                    prop_assert_eq!(absence != Absence::None, short || lost, "{:?}", absence);
                }
                Given::Error => prop_assert!(matches!(absence, Absence::Gap { .. }), "{absence:?}"),
                Given::None => {
                    let gap = proven() || units.clone().any(|unit| needed(&unit));
                    prop_assert_eq!(matches!(absence, Absence::Gap { .. }), gap, "{:?}", absence);
                    prop_assert_eq!(absence == Absence::AfterEnd, !gap);
                }
            }
        }

        #[test]
        fn c063_gaps_are_what_is_not_there_between_first_and_last(world in world(), timeline in 1u32..5) {
            let archive = world.archive();
            let state = archive.timeline_state(Timeline(timeline));
            let gaps = archive.gaps(Timeline(timeline));
            prop_assert_eq!(&state.gaps, &gaps);
            for unit in 0..(SEGMENTS + 4) * UNITS {
                let between = state.first.is_some_and(|first| first <= lsn(unit)) && state.last.is_some_and(|last| lsn(unit) < last);
                let lost = world.lost.iter().any(|(of, from, to)| *of == timeline && (*from..*to).contains(&unit));
                let missing = (between || lost) && !world.there(timeline, unit);
                let told = gaps.iter().any(|gap| gap.from <= lsn(unit) && gap.to.is_none_or(|to| lsn(unit) < to));
                prop_assert_eq!(told, missing, "unit {} of {:?}", unit, gaps);
            }
        }

        #[test]
        fn windows_are_the_moments_that_a_backup_and_replay_reach(
            world in world(), backups in proptest::collection::vec((1u32..5, 0..SEGMENTS * UNITS - 4, 1..4u64), 0..4)
        ) {
            let archive = world.archive();
            let backups: Vec<(u32, u64, u64)> = backups.into_iter().filter(|(of, ..)| *of <= world.timelines()).map(|(of, start, length)| (of, start, start + length)).collect();
            let points: Vec<_> = backups.iter().enumerate().map(|(at, (of, start, stop))| model::backup(&at.to_string(), *of, *start, *stop)).collect();
            let windows = archive.windows(&points, &mut |_, _| None);
            for timeline in 1..=world.timelines() {
                for unit in 0..SEGMENTS * UNITS {
                    // The byte before a position decides whose it is.
                    let of = |unit: u64| world.owner(timeline, unit);
                    if of(unit) != timeline {
                        continue;
                    }
                    let end = unit + 1;
                    let reached = (1..=world.timelines()).filter(|tip| world.owner(*tip, unit) == timeline).any(|tip| {
                        backups.iter().any(|(on, start, stop)| {
                            (*start..*stop).all(|unit| world.owner(tip, unit) == *on) && *stop <= end && world.replay(tip, *start).0 >= end
                        })
                    });
                    let told = windows.iter().any(|window| {
                        window.path.leg_at(lsn(unit)).timeline == Timeline(timeline)
                            && window.from.lsn <= lsn(end) && lsn(end) <= window.to.lsn
                            && !window.except.iter().any(|except| except.from.lsn < lsn(end) && lsn(end) < except.to.lsn)
                    });
                    prop_assert_eq!(told, reached, "unit {} of timeline {}: {:?}", unit, timeline, windows);
                }
            }
        }
    }

    fn three() -> World {
        // Timeline 1 has segments 0 to 3, timeline 2 left it in the middle of segment 2 and has 2 to 4.
        let files = (0..4).map(|number| (1, number, model::Kind::Whole)).chain((2..5).map(|number| (2, number, model::Kind::Whole)));
        World { branches: vec![(1, 10)], files: files.collect(), lost: Vec::new() }
    }

    #[test]
    fn c051_a_missing_history_is_named_and_never_the_end() {
        let mut archive = Archive::new(SystemId(7), SegmentSize::DEFAULT);
        archive.add(WalFile::Segment(segment(3, 9)), 10);
        assert_eq!(archive.path(Timeline(3)), Err(PathError::MissingHistory { timeline: Timeline(3) }));
        assert_eq!(
            archive.path(Timeline(3)).unwrap_err().to_string(),
            "follow timeline 3: the archive has no history file 00000003.history"
        );
        assert!(archive.path(Timeline(1)).is_ok());
        assert!(archive.path(Timeline(0)).is_err());
        assert!(matches!(archive.absence(WalFile::History(Timeline(3)), None), Absence::Gap { .. }));
        assert_eq!(archive.absence(WalFile::History(Timeline(4)), None), Absence::AfterEnd);
        let promise = Promise { timeline: Timeline(4), lsn: Lsn(1) };
        assert!(matches!(archive.absence(WalFile::History(Timeline(4)), Some(promise)), Absence::Gap { .. }));
        assert!(archive.timeline_state(Timeline(3)).history_missing);
    }

    #[test]
    fn c049_histories_that_contradict_each_other_lead_nowhere() {
        let mut archive = Archive::new(SystemId(7), SegmentSize::DEFAULT);
        archive.add_history(History::parse(Timeline(2), b"1\t0/3000000\tx").unwrap());
        archive.add_history(History::parse(Timeline(3), b"1\t0/4000000\tx\n2\t0/5000000\tx").unwrap());
        assert!(matches!(archive.path(Timeline(3)), Err(PathError::Contradiction { .. })));
    }

    #[test]
    fn c063_a_promoted_servers_partial_counts_up_to_the_switch() {
        let mut archive = three().archive();
        let path = archive.path(Timeline(2)).unwrap();
        assert_eq!(archive.reach(&path, lsn(0)), Reach { to: lsn(20), timeline: Timeline(2), stopped_by: None });
        assert_eq!(path.belongs_until(segment(1, 2), model::size()), Some(lsn(10)));
        assert_eq!(path.belongs_until(segment(1, 1), model::size()), None);
        assert_eq!(path.belongs_until(segment(1, 3), model::size()), Some(lsn(10)));
        let promise = Promise { timeline: Timeline(2), lsn: lsn(20) };
        assert_eq!(archive.absence(WalFile::Segment(segment(1, 3)), None), Absence::None);
        assert_eq!(archive.absence(WalFile::Segment(segment(1, 3)), Some(promise)), Absence::AfterEnd);
        assert_eq!(path.belongs_until(segment(2, 2), model::size()), None);
        archive = World { files: vec![(1, 0, model::Kind::Whole), (1, 1, model::Kind::Whole)], ..three() }.archive();
        assert!(archive.reach(&path, lsn(0)).stopped_by.is_some(), "the history says that timeline 1 went on");
        archive.add(WalFile::Partial(segment(1, 2)), 5);
        assert_eq!(archive.reach(&path, lsn(0)), Reach { to: lsn(10), timeline: Timeline(1), stopped_by: None });
        archive.set_partial_end(segment(1, 2), Some(lsn(9)));
        assert_eq!(archive.reach(&path, lsn(0)).to, lsn(9));
    }

    #[test]
    fn c054_a_recorded_gap_keeps_its_reason_until_the_bytes_are_there() {
        let world = World { branches: vec![], files: vec![(1, 0, model::Kind::Whole), (1, 2, model::Kind::Whole)], lost: vec![(1, 4, 6)] };
        let mut archive = world.archive();
        let gaps = archive.gaps(Timeline(1));
        assert_eq!(gaps.len(), 1);
        assert_eq!((gaps[0].from, gaps[0].to), (lsn(4), Some(lsn(8))));
        assert!(gaps[0].to_string().contains("lost; test noticed it"), "{}", gaps[0]);
        archive.add(WalFile::Segment(segment(1, 1)), 1);
        assert_eq!(archive.gaps(Timeline(1)), []);
        assert_eq!(archive.reach(&archive.path(Timeline(1)).unwrap(), lsn(0)).to, lsn(12));
    }

    #[test]
    fn the_present_is_the_servers_whatever_a_clone_commits() {
        let archive = three().archive();
        assert_eq!((archive.present(Some(Timeline(1))), archive.present(None)), (Some(Timeline(1)), Some(Timeline(2))));
        assert_eq!(Archive::new(SystemId(7), model::size()).present(None), None);
        // A clone goes on where the server's WAL ends, so that its window tells of all the server's moments.
        let files = (0..3).map(|number| (1, number, model::Kind::Whole)).chain((3..5).map(|number| (2, number, model::Kind::Whole)));
        let clone = World { branches: vec![(1, 12)], files: files.collect(), lost: Vec::new() }.archive();
        let backups = [model::backup("a", 1, 0, 1)];
        let windows = clone.windows(&backups, &mut |_, _| None);
        assert_eq!(windows.iter().map(|window| window.path.timeline()).collect::<Vec<_>>(), [Timeline(2)]);
        let own = clone.window_along(Timeline(1), &backups, &mut |_, _| None).unwrap();
        assert_eq!((own.to.lsn, own.stopped_by), (lsn(12), None));
        // The switch is before the backup was consistent: it is of the branch that was left.
        assert_eq!(archive.window_along(Timeline(2), &[model::backup("a", 1, 9, 12)], &mut |_, _| None), None);
        assert_eq!(archive.window_along(Timeline(3), &backups, &mut |_, _| None), None, "of unknown origin");
    }

    #[test]
    fn the_last_commit_is_looked_for_along_the_history_and_nowhere_else() {
        // Timeline 2 left 1 at 10, in the middle of segment 2; the old primary went on.
        let files = |archive: &Archive, timeline, unit, segments| {
            let files = archive.files_before(Timeline(timeline), lsn(unit), segments);
            files.iter().map(|file| file.file_name(model::size())[7..].replacen("000000000000", "/", 1)).collect::<Vec<_>>()
        };
        let archive = three().archive();
        assert_eq!(files(&archive, 2, 20, 9), ["2/0004", "2/0003", "2/0002", "1/0001", "1/0000"]);
        assert_eq!(files(&archive, 2, 20, 2), ["2/0004", "2/0003"]);
        assert_eq!(files(&archive, 2, 18, 9), ["2/0003", "2/0002", "1/0001", "1/0000"], "what goes on behind it");
        assert_eq!(files(&archive, 1, 10, 9), ["1/0001", "1/0000"]);
        // Right behind a promotion nothing of the new timeline is whole.
        let open = [(2, 2, model::Kind::Piece(0, 3)), (1, 2, model::Kind::Partial(2)), (1, 1, model::Kind::Whole)];
        let archive = World { files: open.to_vec(), ..three() }.archive();
        assert_eq!(files(&archive, 2, 11, 9), ["1/0002.partial", "1/0001"]);
        assert_eq!(files(&archive, 2, 9, 9), ["1/0001"], "its records go on behind it");
        assert_eq!(archive.files_before(Timeline(9), lsn(11), 9), [], "of unknown origin");
    }

    #[test]
    fn c063_what_cuts_a_window_is_told_and_whether_it_was_written_down() {
        let files = vec![(1, 0, model::Kind::Whole), (1, 2, model::Kind::Whole)];
        let cut = |lost: Vec<(u32, u64, u64)>, backup: (u64, u64)| {
            let archive = World { branches: vec![], files: files.clone(), lost }.archive();
            let backups = [model::backup("a", 1, backup.0, backup.1)];
            let gaps = cuts(&archive.windows(&backups, &mut |_, _| None));
            gaps.iter().map(|Cut { gap, .. }| (gap.from, gap.to, archive.story(gap))).collect::<Vec<_>>()
        };
        assert_eq!(cut(vec![], (0, 1)), [(lsn(4), Some(lsn(8)), GapStory::Gone)]);
        assert_eq!(cut(vec![(1, 4, 8)], (0, 1)), [(lsn(4), Some(lsn(8)), GapStory::Recorded)]);
        assert_eq!(cut(vec![(1, 4, 6)], (0, 1)), [(lsn(4), Some(lsn(8)), GapStory::Gone)], "a part is not all of it");
        assert_eq!(cut(vec![], (8, 9)), [], "behind the hole");
        let of = |files: Vec<(u32, u64, model::Kind)>, lost: Vec<(u32, u64, u64)>, at: u64| {
            let archive = World { branches: vec![], files, lost }.archive();
            let backup = BackupPoint { wal_included: true, ..model::backup("a", 1, at, at + 1) };
            let gaps = cuts(&archive.windows(&[backup], &mut |_, _| None));
            gaps.iter().map(|Cut { gap, .. }| (gap.from, gap.to, archive.story(gap))).collect::<Vec<_>>()
        };
        // Archiving was set up after the backup, which has its own WAL; or a rule of the bucket deleted what is old.
        assert_eq!(of(vec![(1, 2, model::Kind::Whole)], vec![], 0), [(lsn(1), Some(lsn(8)), GapStory::BeforeAll)]);
        // A receiver died in the open segment; what is written down begins with the next one.
        let pieces = vec![(1, 0, model::Kind::Whole), (1, 1, model::Kind::Piece(0, 2)), (1, 3, model::Kind::Whole)];
        assert_eq!(of(pieces.clone(), vec![(1, 8, 12)], 0), [(lsn(4), Some(lsn(12)), GapStory::Recorded)]);
        assert_eq!(of(pieces, vec![], 0), [(lsn(4), None, GapStory::Gone)]);
    }

    #[test]
    fn c063_what_is_older_than_the_archive_was_never_in_it() {
        let story = |files: Vec<(u32, u64, model::Kind)>, begins: Option<(u32, u64)>, on: u32| {
            let mut archive = World { branches: vec![(1, 10)], files, lost: vec![] }.archive();
            archive.set_beginning(begins.map(|(timeline, at)| Position { timeline: Timeline(timeline), lsn: lsn(at) }));
            let backup =
                BackupPoint { wal_included: true, ..model::backup("a", on, if on == 1 { 0 } else { 10 }, if on == 1 { 1 } else { 11 }) };
            let gaps = cuts(&archive.windows(&[backup], &mut |_, _| None));
            gaps.iter().map(|Cut { gap, .. }| archive.story(gap)).collect::<Vec<_>>()
        };
        let whole = |timeline, number| (timeline, number, model::Kind::Whole);
        assert_eq!(story(vec![whole(1, 2)], Some((1, 8)), 1), [GapStory::NotBegun]);
        // Its beginning went as well.
        assert_eq!(story(vec![whole(1, 3)], Some((1, 8)), 1)[0], GapStory::BeforeAll);
        assert_eq!(story(vec![whole(1, 2)], None, 1), [GapStory::BeforeAll]);
        // Begun after the switch, with nothing of the timeline that the backup is of.
        assert_eq!(story(vec![whole(2, 2), whole(2, 3)], Some((2, 8)), 1), [GapStory::NotBegun]);
        assert_eq!(story(vec![whole(2, 3)], Some((2, 12)), 2), [GapStory::NotBegun]);
        assert_eq!(story(vec![whole(2, 3)], Some((1, 12)), 2), [GapStory::BeforeAll]);
        // Somebody brought what is older, and it may have been more.
        assert_eq!(story(vec![whole(1, 0), whole(1, 2)], Some((1, 8)), 1), [GapStory::Gone]);
        assert_eq!(story(vec![whole(1, 2)], Some((1, 12)), 1), [GapStory::BeforeAll]);
    }

    #[test]
    fn c063_a_backup_behind_a_gap_passes_it() {
        let passed = |backups: &[(&str, u32, u64)], branches: Vec<(u32, u64)>| {
            let files = (0..4).filter(|number| *number != 1).map(|number| (1, number, model::Kind::Whole));
            let files = files.chain(branches.iter().map(|_| (2, 2, model::Kind::Whole)));
            let archive = World { branches: branches.clone(), files: files.collect(), lost: vec![] }.archive();
            let backups: Vec<_> = backups
                .iter()
                .map(|(id, timeline, at)| BackupPoint { degraded: *id == "damaged", ..model::backup(id, *timeline, *at, at + 1) })
                .collect();
            cuts(&archive.windows(&backups, &mut |_, _| None)).iter().map(|cut| cut.is_passed).collect::<Vec<_>>()
        };
        assert_eq!(passed(&[("a", 1, 0)], vec![]), [false]);
        assert_eq!(passed(&[("a", 1, 0), ("b", 1, 9)], vec![]), [true]);
        assert_eq!(passed(&[("b", 1, 9)], vec![]), [] as [bool; 0]);
        // One with damaged pages is no answer, and one that is whole is, before or behind it.
        assert_eq!(passed(&[("a", 1, 0), ("damaged", 1, 9)], vec![]), [false]);
        assert_eq!(passed(&[("a", 1, 0), ("damaged", 1, 9), ("c", 1, 10)], vec![]), [true]);
        // A backup that is not on the newest history is no help to it.
        assert_eq!(passed(&[("a", 1, 0), ("b", 1, 9)], vec![(1, 9)]), [false]);
        assert_eq!(passed(&[("a", 1, 0), ("b", 1, 8)], vec![(1, 10)]), [true]);
        assert_eq!(passed(&[("a", 1, 0), ("b", 2, 10)], vec![(1, 9)]), [true]);
    }

    #[test]
    fn c054_a_segment_whose_rest_is_recorded_as_lost_is_not_the_end() {
        let files = vec![(1, 0, model::Kind::Whole), (1, 1, model::Kind::Piece(0, 2))];
        for (lost, ends) in [((1, 6, 7), false), ((1, 5, 7), false), ((1, 9, 11), false), ((1, 4, 6), true), ((2, 6, 7), true)] {
            let archive = World { branches: vec![], files: files.clone(), lost: vec![lost] }.archive();
            let absence = archive.absence(WalFile::Segment(segment(1, 1)), None);
            assert_eq!(absence == Absence::None, ends, "{lost:?}: {absence:?}");
        }
    }

    #[test]
    fn c054_a_partial_that_is_full_is_given_though_what_follows_is_recorded_as_lost() {
        let files = vec![(1, 0, model::Kind::Whole), (1, 1, model::Kind::Partial(UNITS))];
        let archive = World { branches: vec![], files, lost: vec![(1, 8, 9)] }.archive();
        assert_eq!(archive.reach(&archive.path(Timeline(1)).unwrap(), lsn(0)).to, lsn(8));
        assert_eq!(archive.absence(WalFile::Segment(segment(1, 1)), None), Absence::None);
        assert!(matches!(archive.absence(WalFile::Segment(segment(1, 2)), None), Absence::Gap { .. }));
    }

    #[test]
    fn pieces_behind_a_partial_do_not_continue_it() {
        let files = vec![(1, 0, model::Kind::Partial(1)), (1, 0, model::Kind::Piece(1, 3))];
        let archive = World { branches: vec![], files, lost: vec![] }.archive();
        let reach = archive.reach(&archive.path(Timeline(1)).unwrap(), lsn(0));
        assert_eq!((reach.to, reach.stopped_by.unwrap().to), (lsn(1), None));
    }

    #[test]
    fn a_million_segments_are_one_range() {
        let mut archive = Archive::new(SystemId(7), SegmentSize::DEFAULT);
        for number in (0..1_000_000).rev() {
            archive.add(WalFile::Segment(segment(1, number)), 1 << 20);
        }
        let state = archive.state();
        assert_eq!((state.len(), state[0].ranges.len(), state[0].segments, state[0].objects), (1, 1, 1_000_000, 1_000_000));
        assert_eq!(state[0].stored_bytes, 1_000_000 << 20);
        assert_eq!(state[0].first_segment.as_deref(), Some("000000010000000000000000"));
        assert_eq!(archive.reach(&archive.path(Timeline(1)).unwrap(), Lsn(1)).to, Lsn(1_000_000 << 24));
        assert!(serde_json::to_string(&state).unwrap().contains("\"gaps\":[]"));
    }

    #[test]
    fn names_at_the_end_of_all_numbers_do_no_harm() {
        let mut archive = Archive::new(SystemId(7), SegmentSize::new(1 << 20).unwrap());
        let last = Segment::from_file_name("0000000100000000FFFFFFFF", SegmentSize::new(1 << 20).unwrap());
        assert!(last.is_err());
        for name in ["00000001FFFFFFFF00000FFE", "00000001FFFFFFFF00000FFF"] {
            let segment = Segment::from_file_name(name, SegmentSize::new(1 << 20).unwrap()).unwrap();
            for file in [WalFile::Piece { segment, from: 5, to: 1 << 20 }, WalFile::Partial(segment), WalFile::Segment(segment)] {
                archive.add(file, 1);
                let path = archive.path(Timeline(1)).unwrap();
                assert!(archive.reach(&path, Lsn(u64::MAX - (2 << 20))).to.0 >= u64::MAX - (2 << 20));
                assert_eq!(archive.state().len(), 1);
                archive.absence(WalFile::Segment(segment), None);
            }
        }
    }
}
