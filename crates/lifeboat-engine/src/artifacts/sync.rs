//! Making the artifact set what a directory is.
//!
//! The directory is walked and the set is read side by side; files that must be read are stored by
//! threads; lines go into the new run in order as they come back. Nothing of it is in the set before
//! the head is made, at the end, and no head is made if anything could not be read.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use jiff::Timestamp;
use lifeboat_core::artifacts::{Found, Moment, Step, plan};
use lifeboat_core::repository::{
    artifact::{Entry, Line, Origin},
    layout::ArtifactName,
};
use serde::Serialize;

use super::catalog::{ArtifactSet, RunsWriter, newest_head};
use super::lacking::{Lacking, lacking};
use super::walk::{Note, Walk, WalkNotes};
use super::write::{Known, Stored, Trouble, Writer};
use super::{ArtifactError, Capped, beneath};
use crate::causes;
use crate::progress::Progress;

/// Threads that a sync has at the least. They wait for the disk far longer than they work, and what several of them make durable
/// at once costs the file system one commit: 3000 small files took 9.5 s with 2 threads and 3.5 s with 16. Each takes about 2 MB.
pub const SYNC_THREADS: usize = 16;

/// How to sync.
#[derive(Debug, Clone, Copy)]
pub struct SyncOptions {
    /// Threads that read and store; at least one.
    pub threads: usize,
    /// Read every file, whatever its time of change says.
    pub read_all: bool,
    /// Let every artifact leave the set if the directory is empty or not there.
    pub allow_empty: bool,
}

/// What a sync did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SyncReport {
    /// Artifacts that are new in the set.
    pub new: u64,
    /// Artifacts with a new version.
    pub changed: u64,
    /// Artifacts that are as they were.
    pub unchanged: u64,
    /// Artifacts that left the set.
    pub gone: u64,
    /// Artifacts that are not in the directory, and came from elsewhere.
    pub kept: u64,
    /// Plain bytes of what is new or changed.
    pub plain_bytes: u64,
    /// Bytes of blobs that were written.
    pub stored_bytes: u64,
    /// Blobs relied on that stand unencrypted in the repository, from a time before encryption.
    pub plain_blobs: u64,
    /// The head that the sync made; `None`: nothing had changed.
    pub head: Option<u64>,
    /// Artifacts in the set now.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that changed whenever they were read: the set has them as it had them before.
    pub changing: Capped<Note>,
    /// What the walk came upon.
    pub walk: WalkNotes,
    /// Artifacts of the set that not all recipients of the writer can open.
    pub lacking: Lacking,
}

impl SyncReport {
    /// Whether something that should be in the set is not.
    pub fn has_findings(&self) -> bool {
        !self.changing.is_empty() || !self.walk.unnamable.is_empty() || !self.walk.hidden.is_empty() || self.lacking.count > 0
    }
}

/// Hands every step of a sync of `directory` with `set` to `visit`, in the order of names, and does
/// nothing else: what `--dry-run` shows. The first error of `visit` ends it.
///
/// # Errors
///
/// The directory cannot be opened, or a run of the set not be read. What cannot be read below the
/// directory is in the notes.
pub fn plan_sync(
    set: &ArtifactSet<'_>,
    directory: &Path,
    moment: Moment,
    visit: &mut dyn FnMut(Step, &WalkNotes) -> Result<(), ArtifactError>,
) -> Result<WalkNotes, ArtifactError> {
    let notes = RefCell::default();
    let failed = |source| ArtifactError::File { path: directory.to_owned(), source };
    let (walk, root) = (Walk::new(directory, &notes).map_err(failed)?, beneath::open_root(directory).map_err(failed)?);
    steps(walk, Some(&root), set, moment, &notes, visit)?;
    Ok(notes.into_inner())
}

fn steps(
    found: impl Iterator<Item = Found>,
    root: Option<&OwnedFd>,
    set: &ArtifactSet<'_>,
    moment: Moment,
    notes: &RefCell<WalkNotes>,
    visit: &mut dyn FnMut(Step, &WalkNotes) -> Result<(), ArtifactError>,
) -> Result<(), ArtifactError> {
    for step in plan(found.map(Ok), set.entries(""), moment) {
        let step = match (step?, root) {
            (Step::Gone(entry), Some(root)) => match beneath::link_on_the_way(root.as_fd(), &entry.name) {
                Some(link) => {
                    let why = format!("the symbolic link {link:?} is not followed");
                    notes.borrow_mut().hidden.push(Note { path: entry.name.to_string(), why });
                    Step::Kept(entry)
                }
                None => Step::Gone(entry),
            },
            (step, _) => step,
        };
        visit(step, &notes.borrow())?;
    }
    Ok(())
}

/// A file for a thread to read.
struct Job {
    number: u64,
    name: ArtifactName,
    previous: Option<Entry>,
}

/// One line of the change, in its place.
enum Slot {
    /// A thread is at it.
    Waiting { found: Found, previous: Option<Entry> },
    /// Known.
    Ready(Option<Line>),
}

impl Writer<'_> {
    /// Makes the artifact set what `directory` is: stores files that are new or changed, and takes out
    /// artifacts that came from a sync and are no longer there. Artifacts that were put stay. If
    /// nothing changed, nothing is written at all.
    pub fn sync(&self, directory: &Path, options: SyncOptions, progress: &dyn Progress) -> Result<SyncReport, ArtifactError> {
        // The newest set, not the one of an earlier change by this writer.
        self.restart();
        let mut report = self.again(|| self.sync_once(directory, options, progress))?;
        if let Some(marks) = self.marks() {
            let runs = newest_head(self.store())?.map_or_else(Vec::new, |head| head.runs);
            report.lacking = lacking(&ArtifactSet::new(self.store(), runs), marks)?;
        }
        Ok(report)
    }

    fn sync_once(&self, directory: &Path, options: SyncOptions, progress: &dyn Progress) -> Result<SyncReport, ArtifactError> {
        let head = self.begin()?;
        let set = ArtifactSet::new(self.store(), head.as_ref().map_or_else(Vec::new, |head| head.runs.clone()));
        let moment = Moment { now: Timestamp::now(), read_all: options.read_all };
        let notes = RefCell::default();
        let file_error = |source| ArtifactError::File { path: directory.to_owned(), source };
        let walk = match Walk::new(directory, &notes) {
            Ok(walk) => Some(walk),
            Err(error) if error.kind() == io::ErrorKind::NotFound && options.allow_empty => None,
            Err(error) => return Err(file_error(error)),
        };
        let inside = |root: &str| directory.canonicalize().is_ok_and(|directory| Path::new(root).starts_with(directory));
        if let Some(url) = self.store().urls().into_iter().find(|url| url.strip_prefix("file://").is_some_and(inside)) {
            return Err(ArtifactError::HoldsRepository { directory: directory.to_owned(), url });
        }
        let root = walk.is_some().then(|| beneath::open_root(directory)).transpose().map_err(file_error)?;
        let read = |job: &Job| match &root {
            Some(root) => self.store_file(&job.name, Origin::Sync, job.previous.as_ref(), &|| beneath::open_file(root.as_fd(), &job.name)),
            None => Err(Trouble::File(io::ErrorKind::NotFound.into())),
        };
        let threads = options.threads.max(1);
        let mut state = State {
            report: SyncReport::default(),
            failed: Capped::default(),
            lines: RunsWriter::new(self.store()),
            slots: VecDeque::new(),
            first: 0,
            removed: (0, 0),
            added: 0,
            compared: 0,
        };
        std::thread::scope(|scope| {
            let (jobs, todo) = crossbeam_channel::unbounded::<Job>();
            let (done, results) = crossbeam_channel::unbounded();
            for _ in 0..threads {
                let (todo, done, read) = (todo.clone(), done.clone(), &read);
                scope.spawn(move || {
                    for job in todo {
                        // A thread that ended without an answer would be waited for for ever.
                        let result = catch_unwind(AssertUnwindSafe(|| read(&job)));
                        if done.send((job.number, result)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop((todo, done));
            // Both channels are bounded by this: so many lines wait for one that comes before them.
            let most = threads * 64;
            let mut visit = |step: Step, walked: &WalkNotes| -> Result<(), ArtifactError> {
                if walked.files % 1024 == 1 {
                    progress.total(walked.files, walked.bytes);
                }
                if let Some(job) = state.begin(step, progress)? {
                    jobs.send(job).expect("threads end after the sender");
                }
                while state.slots.len() >= most {
                    let (number, result) = results.recv().expect("a thread is at what is waited for");
                    state.end(number, result.unwrap_or_else(|panic| resume_unwind(panic)), progress)?;
                }
                Ok(())
            };
            let planned = match walk {
                Some(walk) => steps(walk, root.as_ref(), &set, moment, &notes, &mut visit),
                None => steps(std::iter::empty(), None, &set, moment, &notes, &mut visit),
            };
            drop(jobs);
            planned?;
            let walked = notes.borrow();
            progress.total(walked.files, walked.bytes);
            for (number, result) in results {
                state.end(number, result.unwrap_or_else(|panic| resume_unwind(panic)), progress)?;
            }
            Ok::<_, ArtifactError>(())
        })?;
        let State { mut report, mut failed, lines, removed, added, compared, .. } = state;
        report.walk = notes.into_inner();
        for note in &report.walk.unreadable.first {
            failed.push(note.clone());
        }
        failed.count += report.walk.unreadable.count - report.walk.unreadable.first.len() as u64;
        if !failed.is_empty() {
            return Err(ArtifactError::Unreadable { directory: directory.to_owned(), unreadable: Box::new(failed) });
        }
        if report.walk.files == 0 && report.gone > 0 && !options.allow_empty {
            return Err(ArtifactError::WouldEmpty { directory: directory.to_owned(), problem: "it is empty", gone: report.gone });
        }
        let (number, count, bytes) = head.as_ref().map_or((0, 0, 0), |head| (head.head, head.count, head.bytes));
        let known = Known {
            head: number,
            count: count.saturating_sub(removed.0) + report.new + report.changed + compared,
            bytes: bytes.saturating_sub(removed.1) + added,
        };
        (report.count, report.bytes) = (count, bytes);
        let change = lines.finish()?;
        if change.entries() > 0
            && let Some(head) = self.commit(change, Some((&set, known)))?
        {
            (report.head, report.count, report.bytes) = (Some(head.head), head.count, head.bytes);
        }
        Ok(report)
    }
}

/// A sync on its way.
struct State<'a> {
    report: SyncReport,
    failed: Capped<Note>,
    lines: RunsWriter<'a>,
    /// Lines that are known but not written, or waited for; the first has number `first`.
    slots: VecDeque<Slot>,
    first: u64,
    /// Entries that the change replaces or takes out, and their bytes.
    removed: (u64, u64),
    /// Bytes of what it adds.
    added: u64,
    /// Entries that stay and get another line.
    compared: u64,
}

impl State<'_> {
    /// Takes up a step; a file that has to be read is returned.
    fn begin(&mut self, step: Step, progress: &dyn Progress) -> Result<Option<Job>, ArtifactError> {
        let (found, previous) = match step {
            Step::New(found) => (found, None),
            Step::Read { found, entry, .. } => (found, Some(entry)),
            Step::Unchanged(entry) => {
                self.report.unchanged += 1;
                progress.add(1, entry.bytes);
                return Ok(None);
            }
            Step::Kept(_) => {
                self.report.kept += 1;
                return Ok(None);
            }
            Step::Gone(entry) => {
                let line = self.gone(entry);
                self.slots.push_back(Slot::Ready(Some(line)));
                self.flush()?;
                return Ok(None);
            }
        };
        let job = Job { number: self.first + self.slots.len() as u64, name: found.name.clone(), previous: previous.clone() };
        self.slots.push_back(Slot::Waiting { found, previous });
        Ok(Some(job))
    }

    fn gone(&mut self, entry: Entry) -> Line {
        self.report.gone += 1;
        self.removed.0 += 1;
        self.removed.1 += entry.bytes;
        Line::Gone { name: entry.name, gone: true }
    }

    /// Takes in what became of a file.
    fn end(&mut self, number: u64, result: Result<Stored, Trouble>, progress: &dyn Progress) -> Result<(), ArtifactError> {
        let index = usize::try_from(number - self.first).expect("as many slots as fit into memory");
        let Slot::Waiting { found, previous } = std::mem::replace(&mut self.slots[index], Slot::Ready(None)) else {
            unreachable!("each number comes once");
        };
        progress.add(1, found.bytes);
        let path = found.name.to_string();
        let line = match result {
            Ok(Stored::Unchanged) => {
                self.report.unchanged += 1;
                None
            }
            Ok(Stored::Compared(at)) => {
                self.report.unchanged += 1;
                let entry = previous.expect("what is as before was there before");
                self.compared += 1;
                self.removed.0 += 1;
                self.removed.1 += entry.bytes;
                self.added += entry.bytes;
                Some(Line::Present(Entry { compared: Some(at), ..entry }))
            }
            Ok(Stored::Version(version)) => {
                match &previous {
                    None => self.report.new += 1,
                    Some(entry) => {
                        self.report.changed += 1;
                        self.removed.0 += 1;
                        self.removed.1 += entry.bytes;
                    }
                }
                self.added += version.entry.bytes;
                self.report.plain_bytes += version.entry.bytes;
                self.report.stored_bytes += version.blob.written;
                self.report.plain_blobs += u64::from(version.blob.plain);
                Some(Line::Present(version.entry))
            }
            // Removed since the directory was read.
            Err(Trouble::File(error)) if error.kind() == io::ErrorKind::NotFound => match previous {
                Some(entry) if entry.origin == Origin::Sync => Some(self.gone(entry)),
                Some(_) => {
                    self.report.kept += 1;
                    None
                }
                None => None,
            },
            Err(Trouble::File(error)) => {
                self.failed.push(Note { path, why: causes::joined(&error) });
                None
            }
            Err(Trouble::Blob(finding)) => {
                self.failed.push(Note { path, why: finding.to_string() });
                None
            }
            Err(Trouble::Changing) => {
                self.report.changing.push(Note { path, why: "it changes while it is read".into() });
                None
            }
            Err(Trouble::Fatal(error)) => return Err(error),
        };
        self.slots[index] = Slot::Ready(line);
        self.flush()
    }

    /// Writes the lines that nothing is waited for any more.
    fn flush(&mut self) -> Result<(), ArtifactError> {
        while let Some(Slot::Ready(_)) = self.slots.front() {
            if let Some(Slot::Ready(Some(line))) = self.slots.pop_front() {
                self.lines.push(&line)?;
            }
            self.first += 1;
        }
        Ok(())
    }
}
