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
use serde::Serialize;

use super::catalog::{Archive, BackupPoint, Gap, Held, Leg, Path, PathError, Promise, Reach};
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
    /// What no absence may cut short.
    pub promised: Option<Promise>,
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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reach {}: {reason}", crate::restore::describe(.target))]
pub struct Unreachable {
    /// The target.
    pub target: Target,
    /// Why.
    pub reason: Reason,
    /// What can be reached instead.
    pub nearest: Vec<Reachable>,
    /// Where replay ends. With an [`Edge`] of each, `nearest` says more.
    pub ends: Vec<Reach>,
}

/// Backups and the history that leads to the target, as far as that is settled without reading WAL.
struct Route<'b> {
    path: Path,
    /// On the path, newest first.
    backups: Vec<&'b BackupPoint>,
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
            if backups.is_empty() { Err(Reason::NotOnTimeline(timeline)) } else { Ok(Route { path, backups }) }
        }
        TimelineChoice::Current => {
            // Without its history a timeline is at least itself, from the backup on.
            let path = archive.path(newest).or_else(|error| match error {
                PathError::MissingHistory { timeline } => Ok(Path::alone(timeline)),
                other => Err(other),
            })?;
            let backups = on(&path);
            if backups.is_empty() { Err(Reason::NotOnTimeline(newest)) } else { Ok(Route { path, backups }) }
        }
        TimelineChoice::Latest => {
            let mut timelines = archive.timelines();
            timelines.extend(all.iter().map(|backup| backup.timeline));
            timelines.sort_unstable();
            timelines.dedup();
            for timeline in timelines.into_iter().rev() {
                match archive.path(timeline) {
                    Ok(path) => {
                        let backups = on(&path);
                        if !backups.is_empty() {
                            return Ok(Route { path, backups });
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

fn refuse(target: &Target, reason: Reason, nearest: Vec<Reachable>, ends: Vec<Reach>) -> Unreachable {
    Unreachable { target: target.clone(), reason, nearest, ends }
}

/// Along which history, and from where on, an engine must search for the target. Targets without a record ([`Target::Latest`],
/// [`Target::Immediate`]) have no spans.
pub fn search(backups: &[BackupPoint], archive: &Archive, request: &RecoveryRequest) -> Result<Search, Unreachable> {
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
            let (read_from, hit) = self.first_later_within(&later, time, begin, end)?;
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
        // Look back from there until it is certain that nothing before it is later. `next` is the first segment to read so far.
        let (mut first, mut number) = (hit, hit.unwrap_or(end + 1));
        while number > begin {
            number -= 1;
            let next = first.unwrap_or(end + 1);
            let Some(summary) = self.summary(number)? else {
                // Of what nothing is known, anything may be true.
                first = Some(number);
                continue;
            };
            let latest = summary.last_time;
            if latest.is_some_and(later) {
                (first, hit) = (Some(number), Some(number));
            } else if summary.tail && number + 1 == next {
                // The record that goes over into the next segment is in neither's summary.
                first = Some(number);
            }
            if latest.is_some_and(|latest| !later(latest) && time.duration_since(latest) > COMMIT_TIME_DISORDER) {
                break;
            }
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
pub fn choose(backups: &[BackupPoint], archive: &Archive, request: &RecoveryRequest, evidence: &Evidence) -> Result<Choice, Unreachable> {
    let route = route(backups, archive, request).map_err(|reason| {
        let nearest = backups.iter().filter(|b| request.backup.as_ref().is_none_or(|only| *only == b.id)).map(at_once).take(1).collect();
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
                return Ok(choice);
            }
            Err(reason) => reasons.push(reason),
        }
    }
    Err(explain(&route, archive, request, evidence, reasons))
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
    let path = along(path, archive, backup, to, request)?;
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
        promised: (!own).then_some(Promise { timeline, lsn: to }),
        end,
        located,
        notes,
        backup: backup.clone(),
    })
}

/// The history that leads from the backup to `to`: the one asked for, or, where a hole behind `to` would be in its way, the part of
/// it that does not go further. (At the segment in which a timeline branched off PostgreSQL asks for the younger one first.)
fn along(path: &Path, archive: &Archive, backup: &BackupPoint, to: Lsn, request: &RecoveryRequest) -> Result<Path, Reason> {
    let first = path.legs().iter().position(|leg| leg.to.is_none_or(|end| to <= end)).unwrap_or(0);
    let mut ways: Vec<Path> = path.legs()[first..].iter().rev().filter_map(|leg| path.until(leg.timeline)).collect();
    if request.target == Target::Immediate {
        // c077: its own timeline first.
        ways.reverse();
    }
    let mut reached = None;
    for way in ways {
        let reach = archive.reach_of(&way, backup);
        if reach.to >= to {
            return Ok(way);
        }
        reached = reached.or(Some(reach));
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
fn explain(route: &Route<'_>, archive: &Archive, request: &RecoveryRequest, evidence: &Evidence, reasons: Vec<Reason>) -> Unreachable {
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
