//! From a recovery target to the backup, the history and the segments that lead there; or why none does.
//!
//! Three steps, so that only what is needed is read: [`search`] says along which history and from where on to look,
//! [`places`] which segments to read, and [`choose`] decides once the engine has found the record. No step reads anything
//! but through what it is given.
//!
//! How PostgreSQL stops is a fact of `recoveryStopsBefore` and `recoveryStopsAfter` (`src/backend/access/transam/xlogrecovery.c`),
//! and it stops at the first record that fits, counted from the backup's start; if that is before the backup is consistent, or if
//! there is none, it ends with an error (from version 13 on).

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::catalog::{Archive, BackupPoint, Gap, Held, Leg, Path, PathError, Promise, Reach};
use super::fetch::{Bounds, Own};
use super::record::Summary;
use super::{Lsn, Segment, Timeline};
use crate::restore::Target;

/// By how much the time of a commit may be behind that of one before it for [`places`] to be certain. PostgreSQL takes
/// the time before it writes the record (`RecordTransactionCommit`), so commits that run at once are out of order by what a process may be
/// kept waiting in between. What goes further back is a clock that was set back; that happens where servers change, and each
/// leg of a history is searched by itself.
pub const COMMIT_TIME_DISORDER: SignedDuration = SignedDuration::from_secs(60);

/// Which history to recover along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimelineChoice {
    /// The newest timeline that descends from a backup's.
    #[default]
    Latest,
    /// The backup's own.
    Current,
    /// This one.
    Number(Timeline),
}

/// Where to recover to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecoveryRequest {
    /// The target.
    pub target: Target,
    /// Whether the record that the target names is replayed as well (`recovery_target_inclusive`).
    pub inclusive: bool,
    /// Along which history.
    pub timeline: TimelineChoice,
    /// Only this backup will do.
    pub backup: Option<String>,
}

impl RecoveryRequest {
    /// Recovery to a target, as PostgreSQL does it if nothing else is said.
    pub fn new(target: Target) -> Self {
        Self { target, inclusive: true, timeline: TimelineChoice::Latest, backup: None }
    }

    /// Whether recovery stops behind the record that fits, or before it. A time is what fits no more, or no less.
    fn stops_after(&self) -> bool {
        match self.target {
            Target::Name(_) => true,
            Target::Lsn(_) | Target::TransactionId(_) => self.inclusive,
            Target::Time(_) | Target::Latest | Target::Immediate => false,
        }
    }
}

/// The record at which recovery stops, as the engine found it. Which record that is:
///
/// | target | the first record that |
/// |---|---|
/// | LSN | begins there, or behind |
/// | time | commits or aborts a transaction later; not inclusive: later or then |
/// | transaction | commits or aborts it, as a prepared one too |
/// | name | is a restore point of that name; here every one counts |
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// Whose record it is: that of the leg it is on ([`Path::leg_at`]), also where it was read from a younger timeline's copy.
    pub timeline: Timeline,
    /// Where it begins.
    pub lsn: Lsn,
    /// Behind its last byte.
    pub end: Lsn,
    /// When it was written, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// The segment in which it ends is known to end early, with a WAL switch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub switched: bool,
}

/// What is known of the records before the place where replay must end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// [`Reach::to`] of which this is said.
    pub to: Lsn,
    /// Where the last whole record before it begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_record: Option<Lsn>,
    /// Time of the last commit or abort before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_commit: Option<Timestamp>,
}

/// What the engine found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Evidence {
    /// Records that fit the target, in the order of their LSNs.
    pub located: Vec<Located>,
    /// Ends of what can be replayed. Only words depend on them; [`Unreachable::ends`] says of which one they would help.
    pub edges: Vec<Edge>,
}

/// Along which history to search for a target, and from where on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Search {
    /// The history.
    pub path: Path,
    /// Where recovery from one of the backups begins, and how far it goes; in order.
    pub spans: Vec<(Lsn, Lsn)>,
}

/// WAL to read for a target, along the path of the [`Search`]. All that are not doubtful must be read: an engine reports the first record
/// of each that fits (of a name: every one), and goes on to the doubtful ones, in their order, only if there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// From the first record on that begins here or behind; this may be within one.
    pub from: Lsn,
    /// Up to here.
    pub to: Lsn,
    /// Nobody says that the target is here; it may be in a record that goes from one segment into the next, or in a
    /// segment without a summary.
    pub doubtful: bool,
}

/// How a target is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// From which backup.
    pub backup: BackupPoint,
    /// Along which timeline: a number for `recovery_target_timeline`.
    pub timeline: Timeline,
    /// The parts of its history that recovery reads.
    pub legs: Vec<Leg>,
    /// The first byte of WAL that is needed.
    pub from: Lsn,
    /// Behind the last.
    pub to: Lsn,
    /// What no absence may cut short, what is not of the history, and what the backup brings itself.
    pub bounds: Bounds,
    /// Where recovery will end, as far as that is known: the first byte that is not replayed.
    pub end: Lsn,
    /// The record that ends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub located: Option<Located>,
    /// What to know about it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Something that can be reached instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reachable {
    /// From which backup; `None`: whichever fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// What to ask for, in the words of the command; nothing: everything there is.
    pub flags: String,
    /// Where that is.
    pub lsn: Lsn,
    /// When that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
}

impl fmt::Display for Reachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.backup.as_deref().unwrap_or("latest"))?;
        if !self.flags.is_empty() {
            write!(f, " {}", self.flags)?;
        }
        write!(f, " (LSN {}", self.lsn)?;
        if let Some(time) = self.time {
            write!(f, " of {time}")?;
        }
        f.write_str(")")
    }
}

/// Why a target cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No backup at all, or not the one that was named.
    #[error("there is no backup to recover from")]
    NoBackup,
    /// The history is not known.
    #[error(transparent)]
    Path(#[from] PathError),
    /// No backup is on this history.
    #[error("no backup is on the history of timeline {0}")]
    NotOnTimeline(Timeline),
    /// The target is before the oldest backup, or the one that was named, is consistent.
    #[error("backup {id} is consistent only from LSN {lsn} of {time} on")]
    Before {
        /// The oldest backup.
        id: String,
        /// From where on it is consistent.
        lsn: Lsn,
        /// When that was.
        time: Timestamp,
    },
    /// WAL is missing on the way.
    #[error("{0}")]
    Gap(Gap),
    /// The archive ends before it. PostgreSQL would end with "recovery ended before configured recovery target was reached".
    #[error("the WAL in the archive ends at LSN {0}, before the target")]
    Behind(Lsn),
    /// No such transaction or restore point.
    #[error("it is not in the WAL from LSN {from} to {to}")]
    NotFound {
        /// Where the search began.
        from: Lsn,
        /// Where it ended.
        to: Lsn,
    },
    /// What was committed on a newer timeline would be left out without a word.
    #[error("no backup leads along timeline {newer}, which has WAL: recovery along timeline {older} leaves out what was committed there")]
    PassedOver {
        /// The newer one.
        newer: Timeline,
        /// The one that recovery would go along.
        older: Timeline,
    },
    /// A timeline was begun, and the archive has none of its WAL, while the one that it left goes on: a promotion of which nothing else arrived, or
    /// one for a test. Which of them is the cluster cannot be told, and each leaves out what was committed on the other.
    #[error("timeline {begun} left timeline {goes_on} at {at} and has no WAL in the archive, and timeline {goes_on} goes on behind that")]
    Undecided {
        /// The one that was begun.
        begun: Timeline,
        /// The one that goes on.
        goes_on: Timeline,
        /// Where they part.
        at: Lsn,
    },
    /// More than one restore point has this name.
    #[error("there are {} restore points of that name ({}); PostgreSQL would stop at the first", .0.len(), places_of(.0))]
    Ambiguous(Vec<Located>),
}

fn places_of(all: &[Located]) -> String {
    let one = |located: &Located| match located.time {
        Some(time) => format!("LSN {} of {time}", located.lsn),
        None => format!("LSN {}", located.lsn),
    };
    all.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// A target that cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("reach {}: {reason}", crate::restore::describe(.target))]
pub struct Unreachable {
    /// The target.
    pub target: Target,
    /// Why; in JSON as a sentence.
    #[serde(serialize_with = "in_words")]
    pub reason: Reason,
    /// What can be reached instead.
    pub nearest: Vec<Reachable>,
    /// Where replay ends. With an [`Edge`] of each, `nearest` says more.
    pub ends: Vec<Reach>,
}

fn in_words<S: serde::Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(reason)
}

/// Backups and the history that leads to the target, as far as that is settled without reading WAL.
struct Route<'b> {
    path: Path,
    /// On the path, newest first.
    backups: Vec<&'b BackupPoint>,
    /// The newest timeline that has WAL and along which none of the backups leads. Each of them is consistent only behind the place where it
    /// branched off, so whatever is recovered to leaves out what was committed there.
    passed: Option<Timeline>,
}

fn route<'b>(backups: &'b [BackupPoint], archive: &Archive, request: &RecoveryRequest) -> Result<Route<'b>, Reason> {
    let mut all: Vec<&BackupPoint> =
        backups.iter().filter(|backup| request.backup.as_ref().is_none_or(|only| *only == backup.id)).collect();
    // Newest first; the id decides between equals, so that a plan is the same every time.
    all.sort_by(|a, b| (b.stop_lsn, b.consistent_at, &b.id).cmp(&(a.stop_lsn, a.consistent_at, &a.id)));
    let on = |path: &Path| -> Vec<&'b BackupPoint> {
        all.iter().copied().filter(|backup| path.has(backup.timeline, backup.start_lsn, backup.stop_lsn)).collect()
    };
    let newest = all.iter().map(|backup| backup.timeline).max().ok_or(Reason::NoBackup)?;
    let choice = match request.timeline {
        // c077: the newest timeline may have branched off before.
        TimelineChoice::Latest if request.target == Target::Immediate => TimelineChoice::Current,
        choice => choice,
    };
    match choice {
        TimelineChoice::Number(timeline) => {
            let path = archive.path(timeline)?;
            let backups = on(&path);
            if backups.is_empty() { Err(Reason::NotOnTimeline(timeline)) } else { Ok(Route { path, backups, passed: None }) }
        }
        TimelineChoice::Current => {
            // Without its history a timeline is at least itself, from the backup on.
            let path = archive.path(newest).or_else(|error| match error {
                PathError::MissingHistory { timeline } => Ok(Path::alone(timeline)),
                other => Err(other),
            })?;
            let backups = on(&path);
            if backups.is_empty() { Err(Reason::NotOnTimeline(newest)) } else { Ok(Route { path, backups, passed: None }) }
        }
        TimelineChoice::Latest => {
            let mut timelines = archive.timelines();
            timelines.extend(all.iter().map(|backup| backup.timeline));
            timelines.sort_unstable();
            timelines.dedup();
            let mut passed = None;
            for timeline in timelines.into_iter().rev() {
                match archive.path(timeline) {
                    Ok(path) => {
                        let backups = on(&path);
                        // All that can be reached along it is on the one that goes on as well, but for its end.
                        if let Some((goes_on, at)) =
                            goes_on_instead(archive, &path).filter(|_| all.iter().all(|one| one.timeline != timeline))
                        {
                            if request.target == Target::Latest && request.backup.is_none() && !backups.is_empty() {
                                return Err(Reason::Undecided { begun: timeline, goes_on, at });
                            }
                            continue;
                        }
                        if !backups.is_empty() {
                            return Ok(Route { path, backups, passed });
                        }
                        if archive.has_wal(timeline) {
                            passed = passed.or(Some(timeline));
                        }
                    }
                    // c076: whether it descends from a backup's timeline cannot be told, so which is the latest cannot either.
                    Err(error) => return Err(error.into()),
                }
            }
            Err(Reason::NotOnTimeline(newest))
        }
    }
}

/// The timeline that this history left last, and where, if it goes on behind that and the history does not: there is no WAL of its own.
fn goes_on_instead(archive: &Archive, path: &Path) -> Option<(Timeline, Lsn)> {
    let [.., left, last] = path.legs() else { return None };
    let at = left.to?;
    (!archive.has_wal(last.timeline) && archive.goes_on_behind(left.timeline, at)).then_some((left.timeline, at))
}

fn refuse(target: &Target, reason: Reason, nearest: Vec<Reachable>, ends: Vec<Reach>) -> Box<Unreachable> {
    Box::new(Unreachable { target: target.clone(), reason, nearest, ends })
}

/// Along which history, and from where on, an engine must search for the target. Targets without a record ([`Target::Latest`],
/// [`Target::Immediate`]) have no spans.
pub fn search(backups: &[BackupPoint], archive: &Archive, request: &RecoveryRequest) -> Result<Search, Box<Unreachable>> {
    let route = route(backups, archive, request).map_err(|reason| refuse(&request.target, reason, Vec::new(), Vec::new()))?;
    let useful = |backup: &&&BackupPoint| match request.target {
        Target::Time(time) => backup.consistent_at < time,
        Target::Lsn(lsn) => backup.stop_lsn <= lsn,
        Target::TransactionId(_) | Target::Name(_) => true,
        Target::Latest | Target::Immediate => false,
    };
    let mut spans: Vec<(Lsn, Lsn)> = Vec::new();
    for backup in route.backups.iter().filter(useful) {
        let reach = archive.reach_of(&route.path, backup);
        // Its own WAL is not in the archive to be read; nothing in it can be a target.
        let from = if archive.reach(&route.path, backup.start_lsn).to < backup.stop_lsn { backup.stop_lsn } else { backup.start_lsn };
        if reach.to > from {
            spans.push((from, reach.to));
        }
    }
    spans.sort_unstable();
    spans.dedup();
    Ok(Search { path: route.path, spans })
}

/// Which parts of the spans of a [`Search`] to read. `summaries` is asked for as few segments as will do: for a time the segments of each leg
/// are halved again and again, and around the place that this leads to read one after another until a segment is older by
/// [`COMMIT_TIME_DISORDER`]; for transactions and names all are asked. The first places are the likeliest.
pub fn places<E>(
    archive: &Archive,
    search: &Search,
    request: &RecoveryRequest,
    summaries: &mut dyn FnMut(Segment) -> Result<Option<Summary>, E>,
) -> Result<Vec<Place>, E> {
    let mut reader = Reader { archive, path: &search.path, summaries, known: std::collections::BTreeMap::new() };
    let mut places = Vec::new();
    match &request.target {
        Target::Latest | Target::Immediate => {}
        Target::Lsn(lsn) => {
            let spans = search.spans.iter().filter(|(from, to)| from <= lsn && lsn < to);
            places.extend(spans.map(|(_, to)| *to).max().map(|to| Place { from: *lsn, to, doubtful: false }));
        }
        Target::Time(time) => {
            for (from, to) in &search.spans {
                reader.first_later(*time, request.inclusive, *from, *to, &mut places)?;
            }
        }
        Target::TransactionId(xid) => {
            // PostgreSQL compares 32 bits (`recovery_target_xid`).
            let xid = *xid as u32;
            let within = |summary: &Summary| summary.xids.is_some_and(|(low, high)| xid.wrapping_sub(low) <= high.wrapping_sub(low));
            reader.scan(&search.spans, &within, &mut places)?;
        }
        Target::Name(name) => {
            let within = |summary: &Summary| summary.more_restore_points || summary.restore_points.iter().any(|point| point.name == *name);
            reader.scan(&search.spans, &within, &mut places)?;
        }
    }
    places.sort_by_key(|place| (place.doubtful, place.from, place.to));
    places.dedup();
    Ok(places)
}

/// Asks for summaries, each one once.
struct Reader<'a, E> {
    archive: &'a Archive,
    path: &'a Path,
    summaries: &'a mut dyn FnMut(Segment) -> Result<Option<Summary>, E>,
    known: std::collections::BTreeMap<u64, Option<Summary>>,
}

impl<E> Reader<'_, E> {
    fn size(&self) -> u64 {
        self.archive.segment_size().bytes()
    }

    fn summary(&mut self, number: u64) -> Result<Option<&Summary>, E> {
        if !self.known.contains_key(&number) {
            let summary = self.ask(number)?;
            self.known.insert(number, summary);
        }
        Ok(self.known[&number].as_ref())
    }

    fn ask(&mut self, number: u64) -> Result<Option<Summary>, E> {
        let source = self.archive.source(self.path, Lsn(number * self.size()));
        // What is open has no summary: what its `.partial` says is not all that its pieces may hold.
        match source.filter(|segment| self.archive.held(*segment) == Held::Whole) {
            Some(segment) => (self.summaries)(segment),
            None => Ok(None),
        }
    }

    /// The parts of [from, to) to read for the first record later than `time`.
    fn first_later(&mut self, time: Timestamp, inclusive: bool, from: Lsn, to: Lsn, places: &mut Vec<Place>) -> Result<(), E> {
        let later = |latest: Timestamp| if inclusive { latest > time } else { latest >= time };
        let (first, last) = (from.0 / self.size(), to.0.saturating_sub(1) / self.size());
        let mut begin = first;
        while begin <= last {
            // Servers change, and clocks with them, where legs do.
            let leg = self.path.leg_at(Lsn((begin + 1).saturating_mul(self.size()) - 1));
            let end = leg.to.map_or(last, |to| (to.0.saturating_sub(1) / self.size()).clamp(begin, last));
            let (read_from, hit) = self.first_later_within(&later, time, begin, end, end < last)?;
            let end_of = |number: u64, size: u64| Lsn((number + 1).saturating_mul(size)).min(to);
            if let Some(number) = read_from {
                let until = end_of(hit.unwrap_or(end + 1), self.size());
                places.push(Place { from: from.max(Lsn(number * self.size())), to: until, doubtful: false });
            }
            if let Some(hit) = hit {
                // Its latest time may be that of a restore point, at which recovery to a time does not stop.
                places.push(Place { from: from.max(Lsn(hit * self.size())), to, doubtful: true });
                break;
            }
            begin = end + 1;
        }
        Ok(())
    }

    /// Of the segments [begin, end]: the first that may hold the first record later than `time`, and one that says it has a later one.
    fn first_later_within(
        &mut self,
        later: &dyn Fn(Timestamp) -> bool,
        time: Timestamp,
        begin: u64,
        end: u64,
        goes_on: bool,
    ) -> Result<(Option<u64>, Option<u64>), E> {
        // Halve: what is before `low` was not later, what is at `high` or behind it was, or has no time.
        let (mut low, mut high, mut hit) = (begin, end + 1, None);
        while low < high {
            let middle = low + (high - low) / 2;
            // Segments without a time tell nothing: go on to the next one that has one.
            let (mut probe, mut found) = (middle, None);
            while probe < high && found.is_none() {
                found = self.summary(probe)?.and_then(|summary| summary.last_time);
                probe += 1;
            }
            match found {
                Some(latest) if !later(latest) => low = probe,
                Some(_) => (high, hit) = (middle, Some(probe - 1)),
                None => high = middle,
            }
        }
        // Look back from there until it is certain that nothing before it is later.
        let (mut first, mut number) = (hit, hit.unwrap_or(end + 1));
        while number > begin {
            number -= 1;
            let Some(summary) = self.summary(number)? else {
                // Of what nothing is known, anything may be true.
                first = Some(number);
                continue;
            };
            match summary.last_time {
                Some(latest) if later(latest) => (first, hit) = (Some(number), Some(number)),
                Some(latest) if time.duration_since(latest) > COMMIT_TIME_DISORDER => break,
                _ => {}
            }
        }
        // A record that goes over from one segment into the next is in neither's summary.
        let before = first.unwrap_or(end + 1);
        if (first.is_some() || goes_on) && before > begin && self.summary(before - 1)?.is_some_and(|summary| summary.tail) {
            first = Some(before - 1);
        }
        Ok((first, hit))
    }

    /// Every segment whose summary fits, and, as doubtful, the others that may hold more than their summaries say.
    fn scan(&mut self, spans: &[(Lsn, Lsn)], within: &dyn Fn(&Summary) -> bool, places: &mut Vec<Place>) -> Result<(), E> {
        let mut covered = super::ranges::Ranges::default();
        for (from, to) in spans {
            covered.insert(from.0, to.0);
        }
        for (from, to) in covered.iter() {
            let (first, last) = (from / self.size(), (to - 1) / self.size());
            for number in first..=last {
                let (begin, end) = ((number * self.size()).max(from), (number + 1).saturating_mul(self.size()).min(to));
                // Not kept: there may be millions.
                let (fits, tail, known) = match self.ask(number)? {
                    Some(summary) => (within(&summary), summary.tail, true),
                    None => (false, false, false),
                };
                let on = (number + 2).saturating_mul(self.size()).min(to);
                if fits {
                    places.push(Place { from: Lsn(begin), to: Lsn(if tail { on } else { end }), doubtful: false });
                } else if tail || !known {
                    places.push(Place { from: Lsn(begin), to: Lsn(if tail || !known { on } else { end }), doubtful: true });
                }
            }
        }
        Ok(())
    }
}

/// The backup, the history and the WAL that lead to the target (c078): the newest backup that is consistent strictly before recovery ends, with
/// all WAL from its start to there. Backups without findings come before degraded ones. An older backup does where a newer one has a hole
/// behind it.
pub fn choose(
    backups: &[BackupPoint],
    archive: &Archive,
    request: &RecoveryRequest,
    evidence: &Evidence,
) -> Result<Choice, Box<Unreachable>> {
    let route = route(backups, archive, request).map_err(|reason| {
        let mut nearest = Vec::new();
        if let Reason::Undecided { begun, goes_on, at } = reason {
            let end = archive.path(goes_on).map_or(at, |path| archive.reach(&path, at).to);
            for (timeline, lsn) in [(goes_on, end), (begun, at)] {
                nearest.push(Reachable { backup: None, flags: format!("--target-timeline {timeline}"), lsn, time: None });
            }
            return refuse(&request.target, reason, nearest, Vec::new());
        }
        let newest = backups.iter().filter(|b| request.backup.as_ref().is_none_or(|only| *only == b.id)).max_by_key(|b| b.stop_lsn);
        if let Some(newest) = newest.filter(|_| !matches!(reason, Reason::NoBackup)) {
            let own = Reachable { flags: format!("--target-timeline {}", newest.timeline), ..at_once(newest) };
            nearest.extend((request.timeline == TimelineChoice::Latest).then_some(own));
            nearest.push(at_once(newest));
        }
        refuse(&request.target, reason, nearest, Vec::new())
    })?;
    let (healthy, degraded): (Vec<_>, Vec<_>) = route.backups.iter().copied().partition(|backup| !backup.degraded);
    let mut reasons = Vec::new();
    for backup in healthy.into_iter().chain(degraded) {
        match from_backup(backup, &route.path, archive, request, evidence) {
            Ok(mut choice) => {
                if backup.degraded {
                    choice.notes.push(format!("only degraded backup {} reaches it", backup.id));
                }
                match (route.passed, &request.backup) {
                    (None, _) => {}
                    (Some(newer), None) => return Err(passed_over(&choice, newer, request)),
                    (Some(newer), Some(_)) => choice.notes.push(format!(
                        "timeline {newer} has WAL, and backup {} does not lead there: what was committed on it does not come back",
                        backup.id
                    )),
                }
                return Ok(choice);
            }
            Err(reason) => reasons.push(reason),
        }
    }
    let mut refused = explain(&route, archive, request, evidence, reasons);
    for nearest in refused.nearest.iter_mut().filter(|nearest| route.passed.is_some() && nearest.backup.is_none()) {
        // Asked for without it, it would be refused as well.
        nearest.flags = format!("--target-timeline {} {}", route.path.timeline(), nearest.flags).trim_end().to_owned();
    }
    Err(refused)
}

/// c076: "the latest" would be what was before a newer timeline, and nobody would be told. Whoever means the older one says so.
fn passed_over(choice: &Choice, newer: Timeline, request: &RecoveryRequest) -> Box<Unreachable> {
    let older = choice.timeline;
    let mut flags = format!("--target-timeline {older}");
    match &request.target {
        Target::Latest | Target::Immediate => {}
        Target::Time(time) => flags.push_str(&format!(" --target-time {time}")),
        Target::Lsn(lsn) => flags.push_str(&format!(" --target-lsn {lsn}")),
        Target::TransactionId(xid) => flags.push_str(&format!(" --target-xid {xid}")),
        Target::Name(name) => flags.push_str(&format!(" --target-name {name:?}")),
    }
    if !request.inclusive {
        flags.push_str(" --exclusive");
    }
    let time = choice.located.as_ref().and_then(|located| located.time);
    let along = Reachable { backup: None, flags, lsn: choice.end, time };
    refuse(&request.target, Reason::PassedOver { newer, older }, vec![along, at_once(&choice.backup)], Vec::new())
}

/// Whether this backup leads to the target along this history, and how.
fn from_backup(
    backup: &BackupPoint,
    path: &Path,
    archive: &Archive,
    request: &RecoveryRequest,
    evidence: &Evidence,
) -> Result<Choice, Reason> {
    let before = || Reason::Before { id: backup.id.clone(), lsn: backup.stop_lsn, time: backup.consistent_at };
    let (mut located, mut notes) = (None, Vec::new());
    let (to, end) = match &request.target {
        Target::Latest => {
            let reach = archive.reach_of(path, backup);
            if let Some(gap) = reach.stopped_by {
                return Err(Reason::Gap(gap));
            }
            (reach.to.max(backup.stop_lsn), reach.to)
        }
        Target::Immediate => (backup.stop_lsn, backup.stop_lsn),
        target => {
            if matches!(target, Target::Time(time) if backup.consistent_at >= *time) {
                return Err(before());
            }
            // Of the same history only: a record of another branch is none.
            let on_path = |found: &&Located| path.has(found.timeline, found.lsn, found.end);
            let mut all: Vec<&Located> = evidence.located.iter().filter(on_path).collect();
            all.sort_by_key(|found| found.lsn);
            all.dedup_by_key(|found| found.lsn);
            let mut after = all.iter().copied().filter(|found| found.lsn >= backup.start_lsn);
            let first = match (after.next(), target) {
                (Some(first), _) => first,
                (None, Target::TransactionId(_) | Target::Name(_)) if !all.is_empty() => return Err(before()),
                (None, Target::Lsn(lsn)) if *lsn < backup.stop_lsn => return Err(before()),
                (None, _) => {
                    let reach = archive.reach_of(path, backup);
                    return Err(match (reach.stopped_by, target) {
                        (Some(gap), _) => Reason::Gap(gap),
                        (None, Target::TransactionId(_) | Target::Name(_)) => Reason::NotFound { from: backup.start_lsn, to: reach.to },
                        (None, _) => Reason::Behind(reach.to),
                    });
                }
            };
            let end = if request.stops_after() { first.end } else { first.lsn };
            if end <= backup.stop_lsn {
                return Err(before());
            }
            if matches!(target, Target::Name(_)) {
                if after.next().is_some() {
                    return Err(Reason::Ambiguous(all.into_iter().filter(|found| found.lsn >= backup.start_lsn).cloned().collect()));
                }
                if all.len() > 1 {
                    let one = std::slice::from_ref(first);
                    notes.push(format!("{} restore points have this name; this is the one at {}", all.len(), places_of(one)));
                }
            }
            located = Some(first.clone());
            (first.end, end)
        }
    };
    let path = along(path, archive, backup, to, &request.target)?;
    for timeline in archive.without_origin().into_iter().filter(|timeline| *timeline > path.timeline()) {
        notes.push(format!(
            "the archive has WAL of timeline {timeline} and not its history file: the restored server may take that number once more; let it archive into another repository"
        ));
    }
    for leg in path.legs() {
        // c076: whoever restores should know that there is another branch.
        let Some(left) = leg.to.filter(|left| archive.goes_on_behind(leg.timeline, *left)) else { continue };
        notes.push(format!(
            "timeline {} goes on behind {left}, where this history leaves it; --target-timeline {} recovers along it",
            leg.timeline, leg.timeline
        ));
    }
    // WAL of its own that the archive does not have is no promise of the archive.
    let own = backup.wal_included && to <= backup.stop_lsn && archive.reach(&path, backup.start_lsn).to < to;
    let legs = path.legs().iter().filter(|leg| leg.to.is_none_or(|end| end > backup.start_lsn) && leg.from < to).copied();
    let timeline = path.timeline();
    Ok(Choice {
        legs: legs.map(|leg| Leg { from: leg.from.max(backup.start_lsn), to: Some(leg.to.map_or(to, |end| end.min(to))), ..leg }).collect(),
        timeline,
        from: backup.start_lsn,
        to,
        bounds: Bounds {
            promise: (!own).then_some(Promise { timeline, lsn: to }),
            left: path.left(),
            own: backup.wal_included.then_some(Own { timeline: backup.timeline, from: backup.start_lsn, to: backup.stop_lsn }),
            until: None,
        },
        end,
        located,
        notes,
        backup: backup.clone(),
    })
}

/// The history that leads from the backup to `to`: the part of the one asked for that does not go further, or, where that is not all there,
/// more of it. (At the segment in which a timeline branched off PostgreSQL asks for the younger one first.) A server that is to follow a
/// timeline and stops before that begins writes a history of its own that goes back; [`super::history::History::parse`] knows of those.
fn along(path: &Path, archive: &Archive, backup: &BackupPoint, to: Lsn, target: &Target) -> Result<Path, Reason> {
    let first = path.legs().iter().position(|leg| leg.to.is_none_or(|end| to <= end)).unwrap_or(0);
    let mut ways: Vec<Path> = path.legs()[first..].iter().filter_map(|leg| path.until(leg.timeline)).collect();
    if *target == Target::Latest {
        // As far as it goes is meant.
        ways.reverse();
    }
    let mut reached: Option<Reach> = None;
    for way in ways {
        let reach = archive.reach_of(&way, backup);
        if reach.to >= to {
            return Ok(way);
        }
        // Of those that do not do, the one that goes furthest says why.
        reached = reached.into_iter().chain([reach]).max_by_key(|reach| reach.to);
    }
    Err(reached.map_or(Reason::NoBackup, |reach| reach.stopped_by.map_or(Reason::Behind(reach.to), Reason::Gap)))
}

fn at_once(backup: &BackupPoint) -> Reachable {
    Reachable {
        backup: Some(backup.id.clone()),
        flags: "--target-immediate".into(),
        lsn: backup.stop_lsn,
        time: Some(backup.consistent_at),
    }
}

/// Why none of the backups does, in one sentence, and what can be reached.
fn explain(route: &Route<'_>, archive: &Archive, request: &RecoveryRequest, evidence: &Evidence, reasons: Vec<Reason>) -> Box<Unreachable> {
    // "Too early" of a backup says nothing if there is an older one that fails for another reason.
    let other = reasons.iter().find(|reason| !matches!(reason, Reason::Before { .. })).cloned();
    let oldest = route.backups.iter().copied().min_by_key(|backup| backup.stop_lsn);
    let reason = other.or_else(|| reasons.into_iter().last()).unwrap_or(Reason::NoBackup);
    let reachable = |backup: &&&BackupPoint| archive.reach_of(&route.path, backup).to >= backup.stop_lsn;
    let mut nearest = Vec::new();
    let mut ends: Vec<Reach> = Vec::new();
    if let Reason::Ambiguous(all) = &reason {
        let one =
            |found: &Located| Reachable { backup: None, flags: format!("--target-lsn {}", found.lsn), lsn: found.lsn, time: found.time };
        nearest.extend(all.iter().map(one));
        return refuse(&request.target, reason, nearest, ends);
    }
    if let (Reason::Before { .. }, Some(oldest)) = (&reason, oldest.as_ref().filter(reachable)) {
        nearest.push(at_once(oldest));
        return refuse(&request.target, reason, nearest, ends);
    }
    for backup in &route.backups {
        let reach = archive.reach_of(&route.path, backup);
        if reach.to < backup.stop_lsn || ends.iter().any(|known| known.to == reach.to) {
            continue;
        }
        // The words of what the command takes: see `last_reachable`.
        nearest.extend(last_reachable(backup, &reach, evidence));
        nearest.push(at_once(backup));
        if reach.stopped_by.is_none() && request.target != Target::Latest {
            let only = request.backup.clone();
            nearest.push(Reachable { backup: only, flags: String::new(), lsn: reach.to, time: None });
        }
        ends.push(reach);
        // Newest first: what is far behind the target helps nobody.
        if ends.len() == 3 {
            break;
        }
    }
    refuse(&request.target, reason, nearest, ends)
}

/// The last LSN and the last time that PostgreSQL accepts before an end. It needs a record to stop at: the last one for an LSN; for a
/// time the last commit, which then is not replayed, so the time is one microsecond before it.
fn last_reachable(backup: &BackupPoint, reach: &Reach, evidence: &Evidence) -> Vec<Reachable> {
    let Some(edge) = evidence.edges.iter().find(|edge| edge.to == reach.to) else { return Vec::new() };
    let mut found = Vec::new();
    let lsn = edge.last_record.filter(|lsn| *lsn >= backup.stop_lsn);
    if let Some(lsn) = lsn {
        found.push(Reachable { backup: None, flags: format!("--target-lsn {lsn}"), lsn, time: edge.last_commit });
    }
    let before = edge.last_commit.and_then(|time| time.checked_sub(SignedDuration::from_micros(1)).ok());
    if let Some(time) = before.filter(|time| *time > backup.consistent_at) {
        found.push(Reachable { backup: None, flags: format!("--target-time {time}"), lsn: lsn.unwrap_or(reach.to), time: Some(time) });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::model::{self, Kind, SEGMENTS, UNITS, World, backup, lsn, time, world};
    use super::super::record::RestorePoint;
    use super::*;
    use proptest::prelude::*;

    /// The record that fills a unit.
    fn record(timeline: u32, unit: u64) -> Located {
        Located { timeline: Timeline(timeline), lsn: lsn(unit), end: lsn(unit + 1), time: Some(time(unit)), switched: false }
    }

    fn evidence(located: Vec<Located>) -> Evidence {
        Evidence { located, edges: Vec::new() }
    }

    fn to(target: Target) -> RecoveryRequest {
        RecoveryRequest::new(target)
    }

    /// Timeline 1 with all its segments.
    fn plain() -> World {
        World { branches: vec![], files: (0..SEGMENTS).map(|number| (1, number, Kind::Whole)).collect(), lost: vec![] }
    }

    /// Timeline 1 with segments 0 to 5; 2 left it in the middle of segment 2 and has 2 to 4; 3 left 1 later.
    fn branched() -> World {
        let one = (0..6).map(|number| (1, number, Kind::Whole));
        let two = (2..5).map(|number| (2, number, Kind::Whole));
        let three = (5..7).map(|number| (3, number, Kind::Whole));
        World { branches: vec![(1, 10), (1, 20)], files: one.chain(two).chain(three).collect(), lost: vec![] }
    }

    type Taken = (u32, u64, u64);

    fn points(taken: &[Taken]) -> Vec<BackupPoint> {
        taken.iter().enumerate().map(|(at, (on, start, stop))| backup(&format!("b{at}"), *on, *start, *stop)).collect()
    }

    fn backups() -> impl Strategy<Value = Vec<Taken>> {
        let one = (1u32..5, 0..SEGMENTS * UNITS - 4, 1..4u64).prop_map(|(on, start, length)| (on, start, start + length));
        proptest::collection::vec(one, 0..4)
    }

    /// Whether recovery from a backup along some part of a timeline's history gets behind a unit.
    fn gets_there(world: &World, timeline: u32, taken: &Taken, end: u64) -> bool {
        let (on, start, stop) = *taken;
        let mine = (start..stop).all(|unit| world.owner(timeline, unit) == on);
        let mut tips: Vec<u32> = world.ancestors(timeline).into_iter().map(|(of, _)| of).collect();
        tips.push(timeline);
        mine && tips
            .into_iter()
            .filter(|tip| (0..end).all(|unit| world.owner(*tip, unit) == world.owner(timeline, unit)))
            .any(|tip| world.replay(tip, start).0 >= end)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn c078_the_newest_backup_that_reaches_the_target_is_chosen_and_no_other(
            world in world(), taken in backups(), timeline in 1u32..5, unit in 0..SEGMENTS * UNITS, inclusive: bool, by_time: bool
        ) {
            let timeline = timeline % world.timelines() + 1;
            let archive = world.archive();
            let points = points(&taken);
            let target = if by_time { Target::Time(time(unit)) } else { Target::Lsn(lsn(unit)) };
            let request = RecoveryRequest { inclusive, timeline: TimelineChoice::Number(Timeline(timeline)), ..to(target) };
            // The first record later than a time is the next one, unless the time itself is excluded.
            let hit = if by_time && inclusive { unit + 1 } else { unit };
            let found = evidence(vec![record(world.owner(timeline, hit), hit)]);
            let stops = if by_time || !inclusive { hit } else { hit + 1 };
            let fits = |taken: &&Taken| {
                taken.2 < stops && (!by_time || time(taken.2) < time(unit)) && gets_there(&world, timeline, taken, hit + 1)
            };
            match choose(&points, &archive, &request, &found) {
                Ok(choice) => {
                    let best = taken.iter().filter(fits).map(|taken| taken.2).max();
                    prop_assert_eq!(Some(choice.backup.stop_lsn), best.map(lsn));
                    prop_assert_eq!(choice.end, lsn(stops));
                    prop_assert_eq!(choice.to, lsn(hit + 1));
                    prop_assert_eq!(choice.bounds.promise, Some(Promise { timeline: choice.timeline, lsn: choice.to }));
                    let (reached, _) = world.replay(choice.timeline.0, choice.from.0 / model::UNIT);
                    prop_assert!(reached > hit);
                    prop_assert!((choice.from.0 / model::UNIT..=hit).all(|unit| world.owner(choice.timeline.0, unit) == world.owner(timeline, unit)));
                    // The legs are the whole way, and nothing else.
                    prop_assert_eq!(choice.legs.first().map(|leg| leg.from), Some(choice.from));
                    prop_assert_eq!(choice.legs.last().and_then(|leg| leg.to), Some(choice.to));
                    prop_assert!(choice.legs.windows(2).all(|pair| pair[0].to == Some(pair[1].from)));
                    // No file on the way passes for the end.
                    for unit in choice.from.0 / model::UNIT..=hit {
                        let path = archive.path(choice.timeline).unwrap();
                        prop_assert!(archive.source(&path, lsn(unit)).is_some());
                    }
                }
                Err(unreachable) => {
                    prop_assert_eq!(taken.iter().find(fits), None, "{}", unreachable);
                    for nearest in unreachable.nearest {
                        prop_assert!(nearest.backup.is_some() || nearest.flags.is_empty());
                    }
                }
            }
        }

        #[test]
        fn c060_the_latest_is_refused_only_where_something_is_missing(world in world(), taken in backups(), timeline in 1u32..5) {
            let timeline = timeline % world.timelines() + 1;
            let (archive, points) = (world.archive(), points(&taken));
            let request = RecoveryRequest { timeline: TimelineChoice::Number(Timeline(timeline)), ..to(Target::Latest) };
            let whole = |taken: &&Taken| {
                let (end, error) = world.replay(timeline, taken.1);
                let mine = (taken.1..taken.2).all(|unit| world.owner(timeline, unit) == taken.0);
                mine && !error && !world.goes_on(timeline, end) && end >= taken.2
            };
            match choose(&points, &archive, &request, &Evidence::default()) {
                Ok(choice) => {
                    prop_assert_eq!(Some(choice.backup.stop_lsn), taken.iter().filter(whole).map(|taken| lsn(taken.2)).max());
                    prop_assert_eq!(choice.to, lsn(world.replay(timeline, choice.from.0 / model::UNIT).0));
                }
                Err(unreachable) => prop_assert_eq!(taken.iter().find(whole), None, "{}", unreachable),
            }
        }

        #[test]
        fn places_for_a_time_hold_the_first_later_commit_whatever_the_order(
            commits in proptest::collection::vec((0..SEGMENTS * UNITS, -40i64..40), 0..40), asked in 0..SEGMENTS * UNITS, inclusive: bool, silent in 0..SEGMENTS
        ) {
            // Commits at units, their times out of order by up to 40 units either way, of 0.7 s each: within what is allowed for.
            let (world, archive) = (plain(), plain().archive());
            let at = |unit: u64, disorder: i64| time(0) + SignedDuration::from_millis((unit as i64 * 30_000) + disorder * 700);
            let commits: std::collections::BTreeMap<u64, Timestamp> =
                commits.into_iter().filter(|(unit, _)| unit / UNITS != silent).map(|(unit, disorder)| (unit, at(unit, disorder))).collect();
            let asked = at(asked, 3);
            let request = RecoveryRequest { inclusive, ..to(Target::Time(asked)) };
            let search = Search { path: archive.path(Timeline(1)).unwrap(), spans: vec![(lsn(2), lsn(SEGMENTS * UNITS))] };
            let mut summary = |segment: Segment| -> Result<_, ()> {
                let times = commits.range(segment.number * UNITS..(segment.number + 1) * UNITS).map(|(_, time)| *time);
                Ok(Some(Summary { first_time: times.clone().min(), last_time: times.max(), ..Summary::default() }))
            };
            let places = places(&archive, &search, &request, &mut summary).unwrap();
            let later = |time: &Timestamp| if inclusive { *time > asked } else { *time >= asked };
            let within = |place: &Place| commits.iter().find(|(unit, time)| lsn(**unit) >= place.from && lsn(**unit) < place.to && later(time)).map(|(unit, _)| *unit);
            // As an engine reads them.
            let sure = places.iter().filter(|place| !place.doubtful).filter_map(within).min();
            let found = sure.or_else(|| places.iter().filter(|place| place.doubtful).find_map(within));
            prop_assert_eq!(found, commits.iter().find(|(unit, time)| **unit >= 2 && later(time)).map(|(unit, _)| *unit), "{:?} in {:?}", places, world);
        }
    }

    #[test]
    fn a_time_among_many_segments_takes_few_headers() {
        let mut archive = Archive::new(super::super::SystemId(7), super::super::SegmentSize::DEFAULT);
        for number in 0..100_000 {
            archive.add(super::super::file::WalFile::Segment(Segment { timeline: Timeline(1), number }), 1);
        }
        let at = |number: u64| time(0) + SignedDuration::from_secs(number as i64 * 10);
        let path = archive.path(Timeline(1)).unwrap();
        let search = Search { path, spans: vec![(Lsn(40), Lsn(50_000 << 24)), (Lsn(1 << 30), Lsn(100_000 << 24))] };
        let mut asked = 0;
        let mut summary = |segment: Segment| -> Result<_, ()> {
            asked += 1;
            Ok(Some(Summary {
                first_time: Some(at(segment.number)),
                last_time: Some(at(segment.number + 1)),
                tail: true,
                ..Summary::default()
            }))
        };
        let request = to(Target::Time(at(65_432) + SignedDuration::from_secs(3)));
        let places = places(&archive, &search, &request, &mut summary).unwrap();
        let sure: Vec<_> = places.iter().filter(|place| !place.doubtful).collect();
        // The record that goes over into it may be the one.
        assert!(sure.contains(&&Place { from: Lsn(65_431 << 24), to: Lsn(65_433 << 24), doubtful: false }), "{places:?}");
        assert!(asked < 80, "{asked}");
    }

    #[test]
    fn transactions_are_looked_for_where_their_number_is_across_the_wrap() {
        let archive = plain().archive();
        let search = Search { path: archive.path(Timeline(1)).unwrap(), spans: vec![(lsn(0), lsn(SEGMENTS * UNITS))] };
        let summary = |segment: Segment| match segment.number {
            1 => Summary { xids: Some((u32::MAX - 5, 10)), tail: true, ..Summary::default() },
            2 => Summary { xids: Some((5, 20)), ..Summary::default() },
            3 => Summary { xids: Some((300, 400)), tail: true, ..Summary::default() },
            _ => Summary::default(),
        };
        let find = |xid: u64| {
            let request = to(Target::TransactionId(xid));
            let places = places(&archive, &search, &request, &mut |segment| Ok::<_, ()>(Some(summary(segment)))).unwrap();
            places.into_iter().map(|place| (place.from.0 / model::UNIT, place.to.0 / model::UNIT, place.doubtful)).collect::<Vec<_>>()
        };
        assert_eq!(find(7), [(4, 12, false), (8, 12, false), (12, 20, true)]);
        assert_eq!(find(u64::from(u32::MAX)), [(4, 12, false), (12, 20, true)]);
        assert_eq!(find((1 << 32) + 15), [(8, 12, false), (4, 12, true), (12, 20, true)]);
        assert_eq!(find(350), [(12, 20, false), (4, 12, true)]);
    }

    #[test]
    fn names_are_looked_for_where_they_may_be() {
        let mut world = plain();
        world.files.pop();
        world.files.push((1, SEGMENTS - 1, Kind::Piece(0, 2)));
        let archive = world.archive();
        let request = to(Target::Name("x".into()));
        let search = search(&points(&[(1, 0, 1), (1, 5, 6)]), &archive, &request).unwrap();
        let point = |name: &str| RestorePoint { name: name.into(), lsn: lsn(1), time: time(1) };
        let mut asked = Vec::new();
        let mut summary = |segment: Segment| {
            asked.push(segment.number);
            Ok::<_, ()>(Some(match segment.number {
                2 => Summary { restore_points: vec![point("y"), point("x")], ..Summary::default() },
                3 => Summary { restore_points: vec![point("y")], ..Summary::default() },
                4 => Summary { more_restore_points: true, ..Summary::default() },
                _ => Summary::default(),
            }))
        };
        let places = places(&archive, &search, &request, &mut summary).unwrap();
        let sure: Vec<_> = places.iter().filter(|place| !place.doubtful).map(|place| place.from).collect();
        assert_eq!(sure, [lsn(8), lsn(16)]);
        // The open segment has no summary.
        assert_eq!(
            places.iter().filter(|place| place.doubtful).map(|place| (place.from, place.to)).collect::<Vec<_>>(),
            [(lsn(28), lsn(30))]
        );
        assert_eq!(asked, (0..SEGMENTS - 1).collect::<Vec<_>>());
    }

    #[test]
    fn c076_latest_is_the_newest_timeline_that_descends_from_a_backup() {
        let archive = branched().archive();
        // Timeline 3 left 1 at 20: a backup from before is on all three; one of timeline 2 is on 2 alone.
        let choice = choose(&points(&[(1, 1, 3)]), &archive, &to(Target::Latest), &Evidence::default()).unwrap();
        assert_eq!((choice.timeline, choice.end), (Timeline(3), lsn(28)));
        let request = RecoveryRequest { timeline: TimelineChoice::Number(Timeline(2)), ..to(Target::Latest) };
        let choice = choose(&points(&[(2, 11, 12)]), &archive, &request, &Evidence::default()).unwrap();
        assert_eq!((choice.timeline, choice.end), (Timeline(2), lsn(20)));
        let request = RecoveryRequest { backup: Some("b1".into()), ..to(Target::Latest) };
        let choice = choose(&points(&[(1, 1, 3), (2, 11, 12)]), &archive, &request, &Evidence::default()).unwrap();
        assert_eq!(choice.timeline, Timeline(2));
        assert!(choice.notes.iter().any(|note| note.contains("timeline 3 has WAL, and backup b1 does not lead there")), "{choice:?}");
        let request = RecoveryRequest { timeline: TimelineChoice::Number(Timeline(2)), ..to(Target::Latest) };
        let choice = choose(&points(&[(1, 1, 3)]), &archive, &request, &Evidence::default()).unwrap();
        assert_eq!(choice.legs.iter().map(|leg| leg.timeline.0).collect::<Vec<_>>(), [1, 2]);
        assert!(choice.notes.iter().any(|note| note.contains("--target-timeline 1")), "{:?}", choice.notes);
        let request = RecoveryRequest { timeline: TimelineChoice::Number(Timeline(3)), ..to(Target::Latest) };
        let refused = choose(&points(&[(2, 11, 12)]), &archive, &request, &Evidence::default()).unwrap_err();
        assert_eq!(refused.reason, Reason::NotOnTimeline(Timeline(3)));
    }

    #[test]
    fn c076_a_newer_timeline_along_which_no_backup_leads_is_not_left_out_without_a_word() {
        // A standby was promoted at 10, before the only backup was consistent.
        let files = (0..6).map(|number| (1, number, Kind::Whole)).chain((2..5).map(|number| (2, number, Kind::Whole)));
        let archive = World { branches: vec![(1, 10)], files: files.collect(), lost: vec![] }.archive();
        let points = points(&[(1, 9, 12)]);
        let of = |request: &RecoveryRequest, unit| choose(&points, &archive, request, &evidence(vec![record(1, unit)]));
        let refused = of(&to(Target::Latest), 20).unwrap_err();
        assert_eq!(refused.reason, Reason::PassedOver { newer: Timeline(2), older: Timeline(1) });
        assert_eq!(
            refused.nearest.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["latest --target-timeline 1 (LSN 0/600000)", "b0 --target-immediate (LSN 0/300000 of 2023-11-14T22:13:32Z)"]
        );
        let request = RecoveryRequest { inclusive: false, ..to(Target::Lsn(lsn(20))) };
        let refused = of(&request, 20).unwrap_err();
        assert_eq!(refused.nearest[0].flags, format!("--target-timeline 1 --target-lsn {} --exclusive", lsn(20)));
        let chosen = of(&RecoveryRequest { timeline: TimelineChoice::Number(Timeline(1)), ..request }, 20).unwrap();
        assert_eq!((chosen.timeline, chosen.end), (Timeline(1), lsn(20)));
        assert_eq!(of(&to(Target::Immediate), 20).unwrap().timeline, Timeline(1));
        // What can be reached instead is named so that it can.
        let refused = choose(&points, &archive, &to(Target::Lsn(lsn(99))), &evidence(vec![])).unwrap_err();
        assert_eq!(refused.nearest.last().unwrap().flags, "--target-timeline 1");
    }

    #[test]
    fn c076_a_timeline_of_which_only_the_history_arrived_is_not_taken_for_the_latest() {
        // A standby was promoted at 10, and nothing of it came; timeline 1 went on.
        let files = (0..6).map(|number| (1, number, Kind::Whole)).collect();
        let archive = World { branches: vec![(1, 10)], files, lost: vec![] }.archive();
        let points = points(&[(1, 1, 3), (1, 14, 15)]);
        let of = |request: &RecoveryRequest, unit| choose(&points, &archive, request, &evidence(vec![record(1, unit)]));
        let refused = of(&to(Target::Latest), 20).unwrap_err();
        assert_eq!(refused.reason, Reason::Undecided { begun: Timeline(2), goes_on: Timeline(1), at: lsn(10) });
        let nearest: Vec<_> = refused.nearest.iter().map(ToString::to_string).collect();
        assert_eq!(
            nearest,
            [format!("latest --target-timeline 1 (LSN {})", lsn(24)), format!("latest --target-timeline 2 (LSN {})", lsn(10))]
        );
        for (timeline, end) in [(1, 24), (2, 10)] {
            let request = RecoveryRequest { timeline: TimelineChoice::Number(Timeline(timeline)), ..to(Target::Latest) };
            assert_eq!(of(&request, 20).unwrap().end, lsn(end));
        }
        // Whatever has a place of its own is on the timeline that goes on, before the fork and behind it.
        for unit in [5, 20] {
            let choice = of(&to(Target::Lsn(lsn(unit))), unit).unwrap();
            assert_eq!((choice.timeline, choice.end), (Timeline(1), lsn(unit + 1)));
        }
        // A backup that was named.
        let request = RecoveryRequest { backup: Some("b0".into()), ..to(Target::Latest) };
        let choice = of(&request, 20).unwrap();
        assert_eq!((choice.timeline, choice.end), (Timeline(1), lsn(24)));
    }

    #[test]
    fn c076_a_newer_timeline_of_unknown_origin_is_named_before_anything_is_written() {
        let mut archive = branched().archive();
        archive.add(super::super::file::WalFile::Segment(Segment { timeline: Timeline(9), number: 7 }), 1);
        let refused = choose(&points(&[(1, 1, 3)]), &archive, &to(Target::Latest), &Evidence::default()).unwrap_err();
        assert!(refused.to_string().contains("00000009.history"), "{refused}");
        let json = serde_json::to_value(&refused).unwrap();
        assert_eq!(json["nearest"][0]["flags"], "--target-timeline 1");
        assert!(json["reason"].as_str().unwrap().contains("00000009.history"));
        let request = RecoveryRequest { timeline: TimelineChoice::Current, ..to(Target::Latest) };
        let choice = choose(&points(&[(1, 1, 3)]), &archive, &request, &Evidence::default()).unwrap();
        assert_eq!(choice.timeline, Timeline(1));
    }

    #[test]
    fn c077_immediate_stays_on_the_backups_timeline() {
        let archive = branched().archive();
        let choice = choose(&points(&[(1, 1, 3)]), &archive, &to(Target::Immediate), &Evidence::default()).unwrap();
        assert_eq!((choice.timeline, choice.end, choice.to), (Timeline(1), lsn(3), lsn(3)));
        // Also where nobody knows where that timeline came from.
        let choice = choose(
            &points(&[(7, 1, 3)]),
            &Archive::new(super::super::SystemId(7), model::size()),
            &to(Target::Immediate),
            &Evidence::default(),
        );
        assert!(matches!(choice.unwrap_err().reason, Reason::Behind(_)));
        let mut own = points(&[(7, 1, 3)]);
        own[0].wal_included = true;
        let choice =
            choose(&own, &Archive::new(super::super::SystemId(7), model::size()), &to(Target::Immediate), &Evidence::default()).unwrap();
        assert_eq!((choice.timeline, choice.bounds.promise), (Timeline(7), None));
    }

    #[test]
    fn c078_a_target_before_the_end_of_a_backup_takes_an_older_one() {
        let (archive, points) = (plain().archive(), points(&[(1, 1, 3), (1, 8, 12)]));
        let chosen = |target, hit| choose(&points, &archive, &to(target), &evidence(vec![record(1, hit)])).map(|choice| choice.backup.id);
        assert_eq!(chosen(Target::Lsn(lsn(11)), 11).unwrap(), "b0");
        assert_eq!(chosen(Target::Lsn(lsn(12)), 12).unwrap(), "b1");
        // Consistent at the very time is not strictly before it.
        assert_eq!(chosen(Target::Time(time(12)), 13).unwrap(), "b0");
        assert_eq!(chosen(Target::Time(time(13)), 14).unwrap(), "b1");
        assert_eq!(chosen(Target::TransactionId(5), 10).unwrap(), "b0");
        let refused = chosen(Target::Lsn(lsn(2)), 2).unwrap_err();
        assert!(matches!(refused.reason, Reason::Before { .. }));
        assert_eq!(
            refused.nearest.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["b0 --target-immediate (LSN 0/C0000 of 2023-11-14T22:13:23Z)"]
        );
        let only = RecoveryRequest { backup: Some("b1".into()), ..to(Target::Lsn(lsn(11))) };
        let refused = choose(&points, &archive, &only, &evidence(vec![record(1, 11)])).unwrap_err();
        assert!(refused.to_string().contains("backup b1 is consistent only from LSN 0/300000"), "{refused}");
    }

    #[test]
    fn c063_a_hole_behind_the_newer_backup_takes_the_older_one_or_is_told() {
        let mut world = plain();
        world.files.remove(3);
        let archive = world.archive();
        let points = points(&[(1, 1, 3), (1, 17, 19)]);
        let at = |unit| choose(&points, &archive, &to(Target::Lsn(lsn(unit))), &evidence(vec![record(1, unit)]));
        assert_eq!(at(11).unwrap().backup.id, "b0");
        assert_eq!(at(25).unwrap().backup.id, "b1");
        let refused = at(13).unwrap_err();
        assert!(matches!(&refused.reason, Reason::Gap(gap) if gap.from == lsn(12) && gap.to == Some(lsn(16))), "{refused}");
        assert!(refused.nearest.iter().any(|nearest| nearest.backup.as_deref() == Some("b1")));
        assert!(refused.ends.iter().any(|reach| reach.to == lsn(12)));
        // Recorded as lost behind the end: the latest there is is not the latest there was.
        let lost = World { lost: vec![(1, 40, 41)], ..plain() };
        let refused = choose(&points, &lost.archive(), &to(Target::Latest), &Evidence::default()).unwrap_err();
        assert!(refused.to_string().contains("lost"), "{refused}");
    }

    #[test]
    fn c079_what_is_behind_the_end_is_refused_with_what_postgresql_would_reach() {
        let archive = plain().archive();
        let points = points(&[(1, 1, 3)]);
        let end = lsn(SEGMENTS * UNITS);
        let edge = Edge { to: end, last_record: Some(lsn(30)), last_commit: Some(time(29)) };
        for target in [Target::Time(time(29)), Target::Lsn(lsn(31)), Target::Lsn(lsn(99))] {
            let refused = choose(&points, &archive, &to(target), &Evidence { located: vec![], edges: vec![edge.clone()] }).unwrap_err();
            assert_eq!(refused.reason, Reason::Behind(end));
            let words: Vec<_> = refused.nearest.iter().map(ToString::to_string).collect();
            assert_eq!(words[0], "latest --target-lsn 0/780000 (LSN 0/780000 of 2023-11-14T22:13:49Z)");
            assert!(words[1].starts_with("latest --target-time 2023-11-14T22:13:48.999999Z"), "{words:?}");
            assert_eq!(words[2], "b0 --target-immediate (LSN 0/C0000 of 2023-11-14T22:13:23Z)");
            assert_eq!(words[3], "latest (LSN 0/800000)");
        }
    }

    #[test]
    fn c078_a_name_that_occurs_twice_is_ambiguous_unless_a_backup_tells_them_apart() {
        let archive = plain().archive();
        let request = to(Target::Name("x".into()));
        let twice = evidence(vec![record(1, 6), record(1, 20), record(1, 20)]);
        let refused = choose(&points(&[(1, 1, 3)]), &archive, &request, &twice).unwrap_err();
        assert!(refused.to_string().contains("there are 2 restore points of that name"), "{refused}");
        assert_eq!(
            refused.nearest.iter().map(|nearest| nearest.flags.as_str()).collect::<Vec<_>>(),
            ["--target-lsn 0/180000", "--target-lsn 0/500000"]
        );
        let choice = choose(&points(&[(1, 1, 3), (1, 8, 12)]), &archive, &request, &twice).unwrap();
        assert_eq!((choice.backup.id.as_str(), choice.end), ("b1", lsn(21)));
        assert!(choice.notes.iter().any(|note| note.contains("this is the one at LSN 0/500000")), "{:?}", choice.notes);
        // PostgreSQL stops at the first after the start, also before the backup is consistent.
        let refused = choose(&points(&[(1, 5, 8)]), &archive, &request, &twice).unwrap_err();
        assert!(matches!(refused.reason, Reason::Before { .. }));
        assert!(choose(&points(&[(1, 1, 3)]), &archive, &request, &evidence(vec![])).unwrap_err().to_string().contains("not in the WAL"));
    }

    #[test]
    fn c020_a_degraded_backup_is_chosen_last() {
        let archive = plain().archive();
        let mut points = points(&[(1, 1, 3), (1, 8, 12)]);
        points[1].degraded = true;
        let choice = choose(&points, &archive, &to(Target::Latest), &Evidence::default()).unwrap();
        assert_eq!(choice.backup.id, "b0");
        points[0].degraded = true;
        let choice = choose(&points, &archive, &to(Target::Latest), &Evidence::default()).unwrap();
        assert_eq!(choice.backup.id, "b1");
        assert!(choice.notes[0].contains("degraded"));
    }
}
