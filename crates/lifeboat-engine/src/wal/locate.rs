//! Finding the record at which recovery to a target stops.
//!
//! Summaries, signed with every segment, say where to look; only those segments are read. What is decided from it is decided in
//! `lifeboat_core::wal::target`.

use std::io::{self, Write};

use jiff::SignedDuration;
use lifeboat_core::repository::layout::Key;
use lifeboat_core::restore::Target;
use lifeboat_core::wal::catalog::{Archive, BackupPoint, Held, Path, Reach};
use lifeboat_core::wal::fetch::Bounds;
use lifeboat_core::wal::file::{GapRecord, WalFile};
use lifeboat_core::wal::record::{Found, RecordError, Search, Summary, Wanted};
use lifeboat_core::wal::target::{self, Choice, Edge, Evidence, Located, Place, RecoveryRequest, Unreachable};
use lifeboat_core::wal::{Lsn, Segment};

use super::fetch::{FetchError, Fetched, Fetcher};
use super::object::{WalError, WalReader};
use crate::store::Store;

/// Restore points of one name that are told apart; more are as ambiguous as two.
const MOST: usize = 16;

/// Why a target was not found.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// WAL could not be read.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// An open segment could not be put together.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It is not there, or cannot be reached.
    #[error(transparent)]
    Unreachable(#[from] Box<Unreachable>),
    /// A segment is not WAL.
    #[error("read {file}: {source}")]
    Record {
        /// The file.
        file: String,
        /// Why.
        source: RecordError,
    },
    /// No room for an open segment.
    #[error("put an open segment together in {directory}")]
    Temporary {
        /// Where.
        directory: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Finds out how a target is reached: from which backup, along which WAL. `temporary` takes one open segment for a moment.
///
/// # Errors
///
/// [`LocateError::Unreachable`] with what can be reached instead, also where a segment on the way is damaged: then with its damage as the
/// reason. Whoever is told only that a segment is damaged does not know what to ask for.
pub fn choose(
    reader: &WalReader<'_>,
    archive: &Archive,
    backups: &[BackupPoint],
    request: &RecoveryRequest,
    temporary: &std::path::Path,
) -> Result<Choice, LocateError> {
    let first = choose_in(reader, archive, backups, request, temporary);
    let Err(LocateError::Wal(error)) = &first else { return first };
    let Some((segment, gap)) = damaged(reader, archive, error) else { return first };
    match choose_in(reader, &archive.without(segment, gap), backups, request, temporary) {
        // More than one that cannot be used is no damaged segment: a key that nobody trusts, for example.
        Err(LocateError::Wal(_) | LocateError::Fetch(_)) => first,
        other => other,
    }
}

/// The segment that an error is about, and what becomes of the archive by it.
fn damaged(reader: &WalReader<'_>, archive: &Archive, error: &WalError) -> Option<(Segment, GapRecord)> {
    let key = match error {
        WalError::Unverified { key, .. } | WalError::Damaged { key, .. } => Key::parse(key).ok()?,
        _ => return None,
    };
    let size = archive.segment_size();
    let segment = WalFile::from_key(&key, reader.cluster().system_id, size)?.segment()?;
    let gap = GapRecord {
        format: 1,
        timeline: segment.timeline,
        from: segment.start(size),
        to: segment.next().start(size),
        found: jiff::Timestamp::now(),
        by: "this restore".into(),
        reason: crate::causes::joined(error),
    };
    Some((segment, gap))
}

fn choose_in(
    reader: &WalReader<'_>,
    archive: &Archive,
    backups: &[BackupPoint],
    request: &RecoveryRequest,
    temporary: &std::path::Path,
) -> Result<Choice, LocateError> {
    let locator = Locator { reader, archive, temporary };
    let mut evidence = Evidence { located: locator.located(backups, request)?, edges: Vec::new() };
    let refused = match target::choose(backups, archive, request, &evidence) {
        Ok(choice) => return locator.with_end(choice),
        Err(refused) => refused,
    };
    // What can be reached instead is said in better words if it is known what stands at the ends.
    if let Ok(search) = target::search(backups, archive, request) {
        for reach in &refused.ends {
            evidence.edges.extend(locator.edge(&search.path, reach)?);
        }
    }
    match target::choose(backups, archive, request, &evidence) {
        Ok(choice) => locator.with_end(choice),
        Err(refused) => Err(refused.into()),
    }
}

struct Locator<'a> {
    reader: &'a WalReader<'a>,
    archive: &'a Archive,
    temporary: &'a std::path::Path,
}

impl Locator<'_> {
    /// Where there is no record that ends recovery, what is whole does: the end of the last record that is there (an archive may end in the
    /// middle of one).
    fn with_end(&self, mut choice: Choice) -> Result<Choice, LocateError> {
        if choice.located.is_some() || choice.to <= choice.backup.stop_lsn {
            return Ok(choice);
        }
        let size = self.archive.segment_size();
        let Ok(path) = self.archive.path(choice.timeline) else { return Ok(choice) };
        let mut number = Segment::ending_at(choice.timeline, choice.to, size).number;
        let stop = Segment::ending_at(choice.timeline, choice.backup.stop_lsn, size).number;
        loop {
            let Some(segment) = self.archive.source(&path, Lsn(number * size.bytes())) else { return Ok(choice) };
            let end = match self.archive.held(segment) {
                // It is signed with the segment; the bytes are read all the same: whoever asks for everything is told now, and not when the
                // server comes there.
                Held::Whole => {
                    self.is_sound(segment)?;
                    self.summary(segment)?.and_then(|summary| summary.end)
                }
                _ => {
                    let mut search = Search::new(Wanted::Record, size).last_before(choice.to);
                    search.begin(segment);
                    self.read(segment, &mut search)?;
                    search.found().last().map(|found| found.end)
                }
            };
            match end.filter(|end| *end <= choice.to) {
                Some(end) => {
                    choice.end = end.max(choice.backup.stop_lsn);
                    return Ok(choice);
                }
                None if number <= stop => {
                    choice.end = choice.backup.stop_lsn;
                    return Ok(choice);
                }
                None => number -= 1,
            }
        }
    }

    /// Reads a segment to see whether it is damaged. Whoever cannot open it (a plan can be made without the restore identity) does not know.
    fn is_sound(&self, segment: Segment) -> Result<(), LocateError> {
        match self.read(segment, &mut Search::new(Wanted::Record, self.archive.segment_size())) {
            Err(LocateError::Wal(error)) if error.damage().is_some() => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn located(&self, backups: &[BackupPoint], request: &RecoveryRequest) -> Result<Vec<Located>, LocateError> {
        let (wanted, most) = match &request.target {
            Target::Latest | Target::Immediate => return Ok(Vec::new()),
            Target::Lsn(_) => (Wanted::Record, 1),
            Target::TransactionId(xid) => (Wanted::TransactionId(*xid as u32), 1),
            Target::Name(name) => (Wanted::RestorePoint(name.clone()), MOST),
            Target::Time(time) if request.inclusive => (Wanted::FirstCommitAfter(*time), 1),
            // Before, or at: WAL counts microseconds.
            Target::Time(time) => (Wanted::FirstCommitAfter(time.saturating_sub(SignedDuration::from_micros(1)).unwrap_or(*time)), 1),
        };
        let search = target::search(backups, self.archive, request)?;
        let mut summaries = |segment| self.summary(segment);
        let places = target::places(self.archive, &search, request, &mut summaries)?;
        let (certain, doubtful): (Vec<Place>, Vec<Place>) = places.into_iter().partition(|place| !place.doubtful);
        let mut located: Vec<Located> = Vec::new();
        for place in certain {
            located.extend(self.look(&search.path, &place, &wanted, most)?);
        }
        for place in doubtful {
            // A name counts as often as it is there.
            if !located.is_empty() && !matches!(request.target, Target::Name(_)) {
                break;
            }
            located.extend(self.look(&search.path, &place, &wanted, most)?);
        }
        located.sort_by_key(|found| found.lsn);
        located.dedup_by_key(|found| found.lsn);
        Ok(located)
    }

    fn summary(&self, segment: Segment) -> Result<Option<Summary>, WalError> {
        Ok(self.reader.head(WalFile::Segment(segment))?.predicate.summary)
    }

    /// Records in one place.
    fn look(&self, path: &Path, place: &Place, wanted: &Wanted, most: usize) -> Result<Vec<Located>, LocateError> {
        let size = self.archive.segment_size();
        let mut search = Search::new(wanted.clone(), size).from(place.from).up_to(most);
        let mut at = place.from;
        while at < place.to && search.found().len() < most {
            let Some(segment) = self.archive.source(path, at) else { break };
            search.begin(segment);
            self.read(segment, &mut search)?;
            at = segment.next().start(size);
        }
        let within = |found: &&Found| found.lsn < place.to;
        let located = |found: &Found| {
            let last =
                self.archive.source(path, Lsn(found.end.0.saturating_sub(1))).filter(|segment| self.archive.held(*segment) == Held::Whole);
            let summary = last.map(|last| self.summary(last)).transpose()?.flatten();
            let timeline = path.leg_at(found.lsn).timeline;
            let switched = summary.is_some_and(|summary| summary.switched);
            Ok(Located { timeline, lsn: found.lsn, end: found.end, time: found.time, switched })
        };
        search.found().iter().filter(within).map(located).collect()
    }

    /// What stands before the place where replay must end.
    fn edge(&self, path: &Path, reach: &Reach) -> Result<Option<Edge>, LocateError> {
        let size = self.archive.segment_size();
        let mut edge = Edge { to: reach.to, last_record: None, last_commit: None };
        let mut number = Segment::ending_at(reach.timeline, reach.to, size).number;
        // A quiet server fills segments without a commit; but not for ever.
        for _ in 0..16 {
            let begin = Lsn(number * size.bytes());
            let Some(segment) = self.archive.source(path, begin) else { break };
            for (wanted, is_commit) in [(Wanted::Record, false), (Wanted::FirstCommitAfter(jiff::Timestamp::MIN), true)] {
                let mut search = Search::new(wanted, size).last_before(reach.to);
                search.begin(segment);
                self.read(segment, &mut search)?;
                match search.found().last() {
                    Some(found) if is_commit => edge.last_commit = edge.last_commit.or(found.time),
                    Some(found) => edge.last_record = edge.last_record.or(Some(found.lsn)),
                    None => {}
                }
            }
            if (edge.last_commit.is_some() && edge.last_record.is_some()) || number == 0 {
                break;
            }
            number -= 1;
        }
        Ok(Some(edge))
    }

    fn read(&self, segment: Segment, search: &mut Search) -> Result<(), LocateError> {
        // What a search saw in a damaged copy must not count: every copy is searched anew.
        let searched = |read: &dyn Fn(&mut Sink<'_>) -> Result<(), LocateError>| {
            let mut attempt = search.clone();
            let mut sink = Sink { search: &mut attempt, failed: None };
            read(&mut sink)?;
            match sink.failed {
                Some(source) => Err(LocateError::Record { file: segment.file_name(self.archive.segment_size()), source }),
                None => Ok(attempt),
            }
        };
        let found = if self.archive.held(segment) == Held::Whole {
            let file = WalFile::Segment(segment);
            let read = |store: &dyn Store| searched(&|sink| Ok(self.reader.read_copy(store, file, sink).map(drop)?));
            self.reader.in_any_copy(file, read, |error| if let LocateError::Wal(error) = error { error.damage() } else { None })?
        } else {
            searched(&|sink| self.read_open(segment, sink))?
        };
        *search = found;
        Ok(())
    }

    fn read_open(&self, segment: Segment, out: &mut dyn Write) -> Result<(), LocateError> {
        // Pieces join to a file.
        let failed = |source| LocateError::Temporary { directory: self.temporary.display().to_string(), source };
        let directory = self.temporary.join(format!("lifeboat-open-{}", crate::random::id()));
        std::fs::create_dir_all(&directory).map_err(failed)?;
        let file = directory.join("segment");
        let fetched = Fetcher::new(self.reader, &Bounds::default(), false).fetch(WalFile::Segment(segment), &file);
        let copied = match fetched {
            Ok(Fetched::AfterEnd) => Ok(()),
            Ok(_) => std::fs::File::open(&file).and_then(|mut file| io::copy(&mut file, out)).map(drop).map_err(failed),
            Err(error) => Err(error.into()),
        };
        let _ = std::fs::remove_dir_all(&directory);
        copied
    }
}

/// Bytes on their way into a search.
struct Sink<'s> {
    search: &'s mut Search,
    failed: Option<RecordError>,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.search.push(bytes) {
            self.failed.get_or_insert(error);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
