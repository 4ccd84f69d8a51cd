//! One repository in several places: a primary, which decides, and replicas.
//!
//! Every write goes to all of them. Who creates first is decided by the primary alone: what its name proves (packs, runs) is written
//! everywhere at once, everything else to the primary first. A replica that must have everything and does not get it fails the write; one
//! that need not is written down in a journal and left alone for a while. What names other objects reaches a replica only behind them (c109).
//! Reads go on with the next copy where one is missing or cannot be read, and say so (docs/replicas.md, docs/decisions/0010).

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use lifeboat_core::replicate::{Proof, Stage, proof};
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::manifest::Manifest;
use lifeboat_core::repository::{Descriptor, Id};

use super::{Entry, Further, Journal, Listed, Note, NoteKind, ObjectWriter, OpenError, Store, StoreError, View};
use crate::causes;
use crate::replicate::copy_object;
use crate::repository::{MAX_DOCUMENT_BYTES, Repository, RepositoryError};

/// How long a replica is left alone that did not answer: one timeout in so long, not one for every object.
const PAUSE: Duration = Duration::from_secs(300);

/// The same between processes, of which an archiver starts one for every segment.
const PAUSE_BETWEEN: Duration = Duration::from_secs(60);

/// Why a replica is left alone that another process found silent.
const NOT_ASKED: &str = "it did not answer a moment ago";

/// Notes that are kept: nobody reads more, and memory is bounded.
const MAX_NOTES: usize = 10_000;

/// Notes of one kind about one repository that are said while it runs.
const SAID: u32 = 20;

/// What a repository's place is among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What is written counts only when it is there as well. The primary is one of these.
    Required,
    /// What it misses is caught up on later.
    BestEffort,
    /// Its store copies by itself: it is read and checked, never written.
    KeptByStore,
}

/// Opens a store, now or when it is needed.
pub type Opener = Box<dyn Fn() -> Result<Box<dyn Store>, OpenError> + Send + Sync>;

/// One of the places.
pub struct Member {
    /// What people call it.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// What it is among the others.
    pub part: Part,
    /// How it is opened.
    pub open: Opener,
}

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Writing: the primary has to be there, and what it says is so.
    Write,
    /// Reading whatever is there: a place that cannot be opened is left out, the primary too, and that is a note.
    Read,
    /// Reading where "there is none" has consequences: while the primary does not answer, nothing is absent.
    Prove,
}

/// Who is told at once what happens.
pub type Watch = Box<dyn Fn(&Note) + Send + Sync>;

/// Why a repository in several places could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Its store could not.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is not there, or not readable.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The place has another repository.
    #[error("use {url} as a replica: it is repository {theirs}, not {ours}")]
    OtherRepository {
        /// The place.
        url: String,
        /// What it is.
        theirs: Id,
        /// What it should be.
        ours: Id,
    },
    /// A place that has to be written is not part of the repository yet, or cannot be reached.
    #[error("write to replica {name} ({url}), which is required: {problem}")]
    Unusable {
        /// Its name.
        name: String,
        /// The place.
        url: String,
        /// Why not.
        problem: String,
    },
}

/// What was found where a repository should be.
enum Opened {
    Same(Box<dyn Store>, Descriptor),
    Other(Id),
    Empty,
    Failed(ReplicaError),
}

fn open_one(member: &Member, expected: Option<Id>) -> Opened {
    let store = match (member.open)() {
        Ok(store) => store,
        Err(error) => return Opened::Failed(error.into()),
    };
    let read = store.get(&layout::descriptor(), MAX_DOCUMENT_BYTES).map_err(RepositoryError::from);
    match read.and_then(|bytes| Ok(Descriptor::decode(&bytes)?)) {
        Ok(descriptor) if expected.is_none_or(|expected| expected == descriptor.repository) => Opened::Same(store, descriptor),
        Ok(descriptor) => Opened::Other(descriptor.repository),
        Err(RepositoryError::Store(StoreError::NotFound { .. })) => Opened::Empty,
        Err(error) => Opened::Failed(error.into()),
    }
}

/// Opens one repository in all its places, the first of which is the primary. `spool` is where this host keeps what replicas missed.
pub fn open_members(members: Vec<Member>, access: Access, spool: &Path, watch: Watch) -> Result<Repository, ReplicaError> {
    let writing = access == Access::Write;
    let mut found = Vec::new();
    let mut id = None;
    let mut descriptor = None;
    for (index, member) in members.iter().enumerate() {
        if writing && member.part == Part::KeptByStore {
            continue;
        }
        if writing && index > 0 && member.part == Part::BestEffort {
            let journal = id.map(|id| journal_of(spool, id, &member.name));
            if journal.is_some_and(|journal| journal.was_down(PAUSE_BETWEEN)) {
                found.push((index, Err(NOT_ASKED.to_owned())));
                continue;
            }
        }
        let outcome = match open_one(member, id) {
            Opened::Same(store, this) => {
                id.get_or_insert(this.repository);
                descriptor.get_or_insert(this);
                Ok(store)
            }
            Opened::Other(theirs) => {
                let ours = id.unwrap_or(theirs);
                return Err(ReplicaError::OtherRepository { url: member.url.clone(), theirs, ours });
            }
            Opened::Empty if members.len() == 1 || writing && index == 0 => {
                return Err(RepositoryError::Absent { url: member.url.clone() }.into());
            }
            Opened::Failed(error) if members.len() == 1 || writing && index == 0 => return Err(error),
            Opened::Empty => Err("there is no repository; lifeboat replicate makes it one".to_owned()),
            Opened::Failed(error) => Err(causes::joined(&error)),
        };
        if let (Err(problem), true, Part::Required) = (&outcome, writing, member.part) {
            let problem = problem.clone();
            return Err(ReplicaError::Unusable { name: member.name.clone(), url: member.url.clone(), problem });
        }
        found.push((index, outcome));
    }
    let (Some(id), Some(descriptor)) = (id, descriptor) else {
        // None of them: what is wrong with the first is what people should hear of.
        return Err(match open_one(&members[0], None) {
            Opened::Failed(error) => error,
            _ => RepositoryError::Absent { url: members[0].url.clone() }.into(),
        });
    };
    let mut outcomes: HashMap<usize, Result<Box<dyn Store>, String>> = found.into_iter().collect();
    let mut slots = Vec::new();
    let mut notes = Vec::new();
    for (index, member) in members.into_iter().enumerate() {
        let Some(outcome) = outcomes.remove(&index) else { continue };
        let journal = journal_of(spool, id, &member.name);
        let mut slot = Slot {
            // What cannot be read is no reason to believe that nothing was missed.
            behind: AtomicBool::new(writing && index > 0 && is_behind(&journal)),
            journal,
            store: OnceLock::new(),
            paused: Mutex::default(),
            member,
        };
        match outcome {
            Ok(store) => _ = slot.store.set(store),
            Err(problem) => {
                *slot.paused.get_mut().expect("it is ours alone") = Some((Instant::now() + PAUSE, problem.clone()));
                if writing && problem != NOT_ASKED {
                    slot.journal.mark_down();
                } else if !writing {
                    let repository = slot.member.name.clone();
                    notes.push(Note { kind: NoteKind::LeftOut, repository, object: None, problem });
                }
            }
        }
        slots.push(slot);
    }
    let url = slots[0].member.url.clone();
    let url = slots[0].store.get().map_or(url, |store| store.url().to_owned());
    let store = ReplicatedStore { url, id, access, slots, bundles: Mutex::default(), notes: Mutex::default(), watch };
    for note in notes {
        store.note(note);
    }
    Ok(Repository::with_descriptor(Box::new(store), descriptor))
}

/// What this host knows that a replica missed. `spool` is where a host keeps what belongs to repositories.
pub fn journal_of(spool: &Path, repository: Id, name: &str) -> Journal {
    Journal::new(&spool.join(repository.to_string()).join("replicas"), name)
}

fn is_behind(journal: &Journal) -> bool {
    journal.read().map_or(true, |missed| {
        missed.everything || missed.entries.iter().any(|entry| matches!(entry, Entry::Put(key) if Stage::is_named(key)))
    })
}

/// A place and how it does.
struct Slot {
    member: Member,
    store: OnceLock<Box<dyn Store>>,
    /// Until when it is left alone, and why.
    paused: Mutex<Option<(Instant, String)>>,
    journal: Journal,
    /// It misses something that heads or manifests may name.
    behind: AtomicBool,
}

impl Slot {
    /// Leaves it alone for a while. One that is left alone already is not left alone for longer: it has to be tried again some time.
    fn pause(&self, problem: &str) -> bool {
        let mut paused = self.paused.lock().expect("no panic while held");
        let new = paused.as_ref().is_none_or(|(until, _)| Instant::now() >= *until);
        if new {
            *paused = Some((Instant::now() + PAUSE, problem.to_owned()));
        }
        new
    }

    /// The same of a replica that failed a write. One that is required is asked every time: everything waits for it.
    fn pause_writing(&self, problem: &str) {
        if self.member.part == Part::BestEffort && self.pause(problem) {
            self.journal.mark_down();
        }
    }

    /// The store, if it is to be tried now. `id` is what it has to be.
    fn usable(&self, id: Id) -> Result<&dyn Store, StoreError> {
        let mut paused = self.paused.lock().expect("no panic while held");
        if let Some((until, problem)) = &*paused {
            if Instant::now() < *until {
                return Err(self.unreachable(problem));
            }
            *paused = None;
        }
        if let Some(store) = self.store.get() {
            return Ok(&**store);
        }
        let problem = match open_one(&self.member, Some(id)) {
            Opened::Same(store, _) => return Ok(&**self.store.get_or_init(|| store)),
            Opened::Other(theirs) => format!("it is repository {theirs}"),
            Opened::Empty => "there is no repository; lifeboat replicate makes it one".to_owned(),
            Opened::Failed(error) => causes::joined(&error),
        };
        let error = self.unreachable(&problem);
        *paused = Some((Instant::now() + PAUSE, problem));
        Err(error)
    }

    /// That it did not take what it must have.
    fn refused(&self, key: &Key, source: StoreError) -> StoreError {
        StoreError::Replica { key: key.to_string(), replica: self.member.name.clone(), source: Box::new(source) }
    }

    fn unreachable(&self, problem: &str) -> StoreError {
        let source = io::Error::other(problem.to_owned());
        StoreError::Io { action: "use", key: "replica".into(), store: self.member.url.clone(), source }
    }
}

/// One repository in several places.
pub struct ReplicatedStore {
    url: String,
    id: Id,
    access: Access,
    slots: Vec<Slot>,
    /// Signatures of manifests on their way: they reach replicas together with the manifest, so that none seems to have lost one.
    bundles: Mutex<HashMap<String, Vec<u8>>>,
    notes: Mutex<Notes>,
    watch: Watch,
}

#[derive(Default)]
struct Notes {
    kept: Vec<Note>,
    said: HashMap<(NoteKind, String), u32>,
}

/// What writers ask for before they write it: what the primary has, they do not write again.
fn is_asked_for(key: &Key) -> bool {
    key.as_str().starts_with("wal/") || key.as_str().starts_with("artifacts/blobs/")
}

/// An object on its way to one replica.
struct Copy<'a> {
    index: usize,
    writer: Result<Box<dyn ObjectWriter + 'a>, StoreError>,
}

impl ReplicatedStore {
    fn primary(&self) -> Result<&dyn Store, StoreError> {
        self.slots[0].usable(self.id)
    }

    fn replicas(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots.iter().enumerate().skip(1).filter(|(_, slot)| slot.member.part != Part::KeptByStore)
    }

    fn required(&self, index: usize) -> bool {
        self.slots[index].member.part == Part::Required
    }

    /// Writes down that a replica missed something.
    fn miss(&self, index: usize, entry: &Entry, problem: &str) {
        let slot = &self.slots[index];
        let (Entry::Put(key) | Entry::Delete(key)) = entry;
        if matches!(entry, Entry::Put(key) if Stage::is_named(key)) {
            slot.behind.store(true, Ordering::SeqCst);
        }
        let mut note = Note {
            kind: NoteKind::Missed,
            repository: slot.member.name.clone(),
            object: Some(key.to_string()),
            problem: problem.to_owned(),
        };
        if let Err(error) = slot.journal.append(entry) {
            note.problem = format!("{problem}; and the journal could not be written ({error}): lifeboat replicate compares everything");
        }
        self.note(note);
    }

    /// What it means that a replica did, or did not, take an object that the primary has.
    fn settle(&self, index: usize, key: &Key, result: Result<(), StoreError>) -> Result<(), StoreError> {
        let slot = &self.slots[index];
        let error = match result {
            Ok(()) => return Ok(()),
            Err(StoreError::Exists { .. }) => match self.same(index, key) {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    let problem = "it had it already; lifeboat replicate --check looks at both".to_owned();
                    let (repository, object) = (slot.member.name.clone(), Some(key.to_string()));
                    self.note(Note { kind: NoteKind::Differs, repository, object, problem: problem.clone() });
                    slot.unreachable(&format!("it has other bytes as {key}"))
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        let problem = causes::joined(&error);
        if !matches!(error, StoreError::Exists { .. } | StoreError::NotFound { .. } | StoreError::Short { .. }) {
            slot.pause_writing(&problem);
        }
        self.miss(index, &Entry::Put(key.clone()), &problem);
        if self.required(index) { Err(slot.refused(key, error)) } else { Ok(()) }
    }

    /// Whether a replica has what the primary has. What is named by its digest is; a blob may be sealed in another way, and is the same
    /// if it is sound.
    fn same(&self, index: usize, key: &Key) -> Result<bool, StoreError> {
        if matches!(proof(key), Proof::Named(_)) || key.as_str().starts_with("artifacts/blobs/") {
            return Ok(true);
        }
        let (ours, theirs) = (self.primary()?, self.slots[index].usable(self.id)?);
        let length = ours.length(key)?;
        if theirs.length(key)? != length {
            return Ok(false);
        }
        let (mut a, mut b, mut at) = (Vec::new(), Vec::new(), 0);
        while at < length {
            let end = length.min(at + super::stream::RANGE_BYTES);
            ours.get_range(key, at..end, &mut a)?;
            theirs.get_range(key, at..end, &mut b)?;
            if a != b {
                return Ok(false);
            }
            at = end;
        }
        Ok(true)
    }

    /// Does something for every replica at once, and settles what came of it.
    fn each(&self, key: &Key, copies: Vec<Copy<'_>>) -> Result<(), StoreError> {
        let results: Vec<(usize, Result<(), StoreError>)> = std::thread::scope(|scope| {
            let commit = |copy: Copy<'_>| (copy.index, copy.writer.and_then(|writer| writer.commit(key)));
            match copies.len() {
                0 | 1 => copies.into_iter().map(commit).collect(),
                _ => {
                    let threads: Vec<_> = copies.into_iter().map(|copy| scope.spawn(move || commit(copy))).collect();
                    threads.into_iter().map(|thread| thread.join().expect("stores do not panic")).collect()
                }
            }
        });
        self.settle_all(key, results)
    }

    /// All are settled, also behind one that fails.
    fn settle_all(&self, key: &Key, results: Vec<(usize, Result<(), StoreError>)>) -> Result<(), StoreError> {
        let mut failed = Ok(());
        for (index, result) in results {
            let settled = self.settle(index, key, result);
            failed = failed.and(settled);
        }
        failed
    }

    /// The primary has the object; replicas that do not get its bytes.
    fn fill(&self, key: &Key) -> Result<(), StoreError> {
        let mut failed = Ok(());
        for (index, slot) in self.replicas() {
            let filled = slot.usable(self.id).and_then(|replica| match replica.length(key) {
                Ok(length) if length == self.primary()?.length(key)? => Ok(()),
                // Whether it is the same all the same is for whoever settles it.
                Ok(_) => Err(StoreError::Exists { key: key.to_string() }),
                Err(StoreError::NotFound { .. }) => copy_object(self.primary()?, replica, key),
                Err(error) => Err(error),
            });
            failed = failed.and(self.settle(index, key, filled));
        }
        failed
    }

    fn withhold(&self, index: usize, key: &Key, problem: &str) -> Result<(), StoreError> {
        let slot = &self.slots[index];
        slot.behind.store(true, Ordering::SeqCst);
        let mut problem = problem.to_owned();
        if let Err(error) = slot.journal.append(&Entry::Put(key.clone())) {
            problem = format!("{problem}; and the journal could not be written ({error})");
        }
        let (repository, object) = (slot.member.name.clone(), Some(key.to_string()));
        self.note(Note { kind: NoteKind::Withheld, repository, object, problem: format!("{problem}; lifeboat replicate brings both") });
        if self.required(index) { Err(slot.refused(key, slot.unreachable(&problem))) } else { Ok(()) }
    }

    /// Whether a replica has what a head or manifest names: nothing was missed, and head `before` is there, which reached it in the same way.
    fn lacks(&self, index: usize, before: u64) -> Result<Option<&'static str>, StoreError> {
        let slot = &self.slots[index];
        if slot.behind.load(Ordering::SeqCst) {
            return Ok(Some("it misses objects that came before"));
        }
        if before == 0 {
            return Ok(None);
        }
        match slot.usable(self.id)?.length(&layout::artifact_head(before)) {
            Ok(_) => Ok(None),
            Err(StoreError::NotFound { .. }) => Ok(Some("it does not have the artifacts of before")),
            Err(error) => Err(error),
        }
    }

    fn spread_head(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        let before = layout::number_of(key).unwrap_or(u64::MAX).saturating_sub(1);
        let mut failed = Ok(());
        for (index, slot) in self.replicas() {
            let outcome = match self.lacks(index, before) {
                Ok(Some(problem)) => self.withhold(index, key, problem),
                Ok(None) => self.settle(index, key, slot.usable(self.id).and_then(|replica| replica.create(key, bytes))),
                Err(error) => self.settle(index, key, Err(error)),
            };
            failed = failed.and(outcome);
        }
        failed
    }

    /// Brings a manifest and its signature to the replicas that have all of the backup.
    fn spread_manifest(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        let Some(id) = layout::backup_of_manifest(key) else { return Ok(()) };
        let bundle_key = layout::manifest_bundle(&id);
        let bundle = self.bundles.lock().expect("no panic while held").remove(bundle_key.as_str());
        let bundle = bundle.map_or_else(|| self.primary()?.get(&bundle_key, MAX_DOCUMENT_BYTES), Ok)?;
        // A full backup names packs of its own only: those were written in this run, or missed.
        let manifest = Manifest::decode(bytes).ok();
        let head = manifest.as_ref().and_then(|manifest| manifest.artifacts.as_ref()).map_or(0, |artifacts| artifacts.head);
        let mut failed = Ok(());
        for (index, slot) in self.replicas() {
            let create = || {
                let replica = slot.usable(self.id)?;
                match replica.create(&bundle_key, &bundle) {
                    Ok(()) | Err(StoreError::Exists { .. }) => replica.create(key, bytes),
                    Err(error) => Err(error),
                }
            };
            let outcome = match self.lacks(index, head) {
                _ if manifest.is_none() => self.withhold(index, key, "it cannot be read"),
                Ok(Some(problem)) => self.withhold(index, key, problem),
                Ok(None) => self.settle(index, key, create()),
                Err(error) => self.settle(index, key, Err(error)),
            };
            failed = failed.and(outcome);
        }
        failed
    }

    /// Everything but leases, heads, bundles and manifests.
    fn commit<'a>(&'a self, key: &Key, primary: Box<dyn ObjectWriter + 'a>, copies: Vec<Copy<'a>>) -> Result<(), StoreError> {
        if Stage::is_of_one_place(key.as_str()) {
            return primary.commit(key);
        }
        if matches!(Stage::of(key), Some(Stage::Head | Stage::Bundle | Stage::Manifest)) {
            drop(copies);
            primary.commit(key)?;
            let bytes = self.primary()?.get(key, crate::repository::MAX_MANIFEST_BYTES)?;
            return self.spread_document(key, &bytes);
        }
        if matches!(proof(key), Proof::Named(_)) {
            // Nobody else can bring other bytes under this name.
            let results = std::thread::scope(|scope| {
                let commit = |copy: Copy<'a>| (copy.index, copy.writer.and_then(|writer| writer.commit(key)));
                let threads: Vec<_> = copies.into_iter().map(|copy| scope.spawn(move || commit(copy))).collect();
                let decided = primary.commit(key);
                let results: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("stores do not panic")).collect();
                decided.map(|()| results)
            });
            return match results {
                Ok(results) => self.settle_all(key, results),
                Err(error @ StoreError::Exists { .. }) => self.fill(key).and(Err(error)),
                Err(error) => Err(error),
            };
        }
        match primary.commit(key) {
            Ok(()) => self.each(key, copies),
            Err(error @ StoreError::Exists { .. }) => {
                drop(copies);
                self.fill(key).and(Err(error))
            }
            Err(error) => Err(error),
        }
    }

    fn spread_document(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        match Stage::of(key) {
            Some(Stage::Head) => self.spread_head(key, bytes),
            Some(Stage::Bundle) => {
                self.bundles.lock().expect("no panic while held").insert(key.to_string(), bytes.to_vec());
                Ok(())
            }
            _ => self.spread_manifest(key, bytes),
        }
    }

    fn begin<'a>(
        &'a self,
        writer: &dyn Fn(&'a dyn Store) -> Result<Box<dyn ObjectWriter + 'a>, StoreError>,
    ) -> Result<Box<dyn ObjectWriter + 'a>, StoreError> {
        if self.access != Access::Write {
            return Err(self.read_only("write", "an object"));
        }
        let primary = writer(self.primary()?)?;
        let copies = self.replicas().map(|(index, slot)| Copy { index, writer: slot.usable(self.id).and_then(writer) }).collect();
        Ok(Box::new(ReplicatedWriter { all: self, primary, copies }))
    }

    fn read_only(&self, action: &'static str, key: &str) -> StoreError {
        super::unsupported(action, key, &self.url, "it was opened for reading")
    }

    /// Places that are read, with whether they can be now; places that were left out when it was opened are none.
    fn readable(&self) -> impl Iterator<Item = (usize, Result<&dyn Store, StoreError>)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let opened = slot.store.get().is_some();
            let answers = || slot.usable(self.id);
            (opened || index == 0 && self.access != Access::Read).then(|| (index, answers()))
        })
    }

    /// Asks one place after the other. It is not there only if nobody has it and everybody answered.
    fn read<T>(&self, key: &Key, mut read: impl FnMut(&dyn Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if self.access == Access::Write {
            return read(self.primary()?);
        }
        let (mut absent, mut fault): (Option<StoreError>, Option<StoreError>) = (None, None);
        for (index, store) in self.readable() {
            let error = match store.and_then(&mut read) {
                Ok(value) => {
                    if let Some(error) = fault.as_ref().or(absent.as_ref()) {
                        let (repository, problem) = (self.slots[index].member.name.clone(), causes::joined(error));
                        self.note(Note { kind: NoteKind::ReadAround, repository, object: Some(key.to_string()), problem });
                    }
                    return Ok(value);
                }
                Err(error) => error,
            };
            if error.is_transient() {
                self.slots[index].pause(&causes::joined(&error));
            }
            // A copy that is cut says more than one that is missing.
            let kept = if matches!(error, StoreError::NotFound { .. }) { &mut absent } else { &mut fault };
            kept.get_or_insert(error);
            if Stage::is_of_one_place(key.as_str()) {
                break;
            }
        }
        Err(fault.or(absent).unwrap_or_else(|| StoreError::NotFound { key: key.to_string() }))
    }

    /// What all places have together: what one of them lost is there all the same.
    fn union<T: Ord>(
        &self,
        prefix: &str,
        list: impl Fn(&dyn Store) -> Result<Vec<T>, StoreError>,
        same: impl Fn(&T, &T) -> bool,
    ) -> Result<Vec<T>, StoreError> {
        if self.access == Access::Write || Stage::is_of_one_place(prefix) {
            return list(self.primary()?);
        }
        let (mut all, mut failed, mut answered) = (Vec::new(), None, false);
        for (index, store) in self.readable() {
            match store.and_then(&list) {
                Ok(mut listed) if !answered => {
                    answered = true;
                    all.append(&mut listed);
                }
                Ok(listed) => {
                    all.extend(listed);
                    // Stable: of two that are the same the one of the earlier place stays.
                    all.sort();
                    all.dedup_by(|later, earlier| same(later, earlier));
                }
                Err(error) if self.access == Access::Prove => return Err(error),
                Err(error) => {
                    let (repository, problem) = (self.slots[index].member.name.clone(), causes::joined(&error));
                    self.note(Note { kind: NoteKind::LeftOut, repository, object: None, problem });
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            Some(error) if !answered => Err(error),
            _ => Ok(all),
        }
    }
}

struct ReplicatedWriter<'a> {
    all: &'a ReplicatedStore,
    primary: Box<dyn ObjectWriter + 'a>,
    copies: Vec<Copy<'a>>,
}

impl ObjectWriter for ReplicatedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.primary.write(bytes)?;
        for copy in &mut self.copies {
            if let Ok(writer) = &mut copy.writer
                && let Err(error) = writer.write(bytes)
            {
                self.all.slots[copy.index].pause_writing(&causes::joined(&error));
                copy.writer = Err(error);
            }
        }
        Ok(())
    }

    fn commit(self: Box<Self>, key: &Key) -> Result<(), StoreError> {
        self.all.commit(key, self.primary, self.copies)
    }
}

/// Sorted and told apart by key: two places may have one key with two lengths, if one is damaged.
#[derive(PartialEq, Eq)]
struct ByKey(Listed);

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

fn by_key(listed: Vec<Listed>) -> Vec<ByKey> {
    listed.into_iter().map(ByKey).collect()
}

impl Store for ReplicatedStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn is_remote(&self) -> bool {
        self.slots.iter().any(|slot| slot.store.get().is_some_and(|store| store.is_remote()))
    }

    fn urls(&self) -> Vec<String> {
        self.slots.iter().map(|slot| slot.store.get().map_or_else(|| slot.member.url.clone(), |store| store.url().to_owned())).collect()
    }

    fn create(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        if self.access != Access::Write {
            return Err(self.read_only("create", key.as_str()));
        }
        let primary = self.primary()?;
        // Who holds a lease is decided in one place. A replica that is to become the primary has none, and needs none: that is an act of
        // people (docs/replicas.md).
        if Stage::is_of_one_place(key.as_str()) {
            return primary.create(key, bytes);
        }
        if matches!(Stage::of(key), Some(Stage::Head | Stage::Bundle | Stage::Manifest)) {
            primary.create(key, bytes)?;
            return self.spread_document(key, bytes);
        }
        let mut writer = self.writer_for(key, bytes.len() as u64)?;
        writer.write(bytes)?;
        writer.commit(key)
    }

    fn writer(&self) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        self.begin(&|store| store.writer())
    }

    fn writer_for(&self, key: &Key, expected: u64) -> Result<Box<dyn ObjectWriter + '_>, StoreError> {
        self.begin(&|store| store.writer_for(key, expected))
    }

    fn writes(&self) -> usize {
        self.slots.iter().filter(|slot| slot.member.part != Part::KeptByStore).count()
    }

    fn get(&self, key: &Key, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.read(key, |store| store.get(key, limit))
    }

    fn get_range(&self, key: &Key, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        self.read(key, |store| store.get_range(key, range.clone(), buffer))
    }

    fn length(&self, key: &Key) -> Result<u64, StoreError> {
        let length = self.read(key, |store| store.length(key))?;
        // Whoever finds that it is stored already will not store it: a replica must not be left without it.
        if self.access == Access::Write && is_asked_for(key) {
            self.fill(key)?;
        }
        Ok(length)
    }

    fn make_durable(&self, key: &Key) -> Result<(), StoreError> {
        self.primary()?.make_durable(key)?;
        if self.access != Access::Write || Stage::is_of_one_place(key.as_str()) {
            return Ok(());
        }
        let durable = |slot: &Slot| match slot.usable(self.id).and_then(|replica| replica.make_durable(key)) {
            // Whether it is to be there is for whoever brings it.
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => other,
        };
        self.settle_all(key, self.replicas().map(|(index, slot)| (index, durable(slot))).collect())
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let all = self.union(prefix, |store| store.list(prefix).map(by_key), |a, b| a.0.key == b.0.key)?;
        Ok(all.into_iter().map(|listed| listed.0).collect())
    }

    fn list_after(&self, prefix: &str, after: &Key) -> Result<Vec<Listed>, StoreError> {
        let all = self.union(prefix, |store| store.list_after(prefix, after).map(by_key), |a, b| a.0.key == b.0.key)?;
        Ok(all.into_iter().map(|listed| listed.0).collect())
    }

    fn list_segments(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.union(prefix, |store| store.list_segments(prefix), |a, b| a == b)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        self.primary()?.is_empty()
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        if self.access != Access::Write {
            return Err(self.read_only("delete", key.as_str()));
        }
        self.primary()?.delete(key)?;
        if Stage::is_of_one_place(key.as_str()) {
            return Ok(());
        }
        let mut failed = Ok(());
        for (index, slot) in self.replicas() {
            if let Err(error) = slot.usable(self.id).and_then(|replica| replica.delete(key)) {
                let problem = causes::joined(&error);
                slot.pause_writing(&problem);
                self.miss(index, &Entry::Delete(key.clone()), &problem);
                if self.required(index) {
                    failed = failed.and(Err(error));
                }
            }
        }
        failed
    }

    fn further(&self) -> Vec<Further<'_>> {
        let place = |(_, slot): (usize, &'_ Slot)| {
            let missed = slot.journal.read().unwrap_or_default();
            let deletes = missed.entries.into_iter().filter_map(|entry| match entry {
                Entry::Delete(key) => Some(key),
                Entry::Put(_) => None,
            });
            (slot.member.name.clone(), deletes.collect())
        };
        let known: Vec<_> = self.replicas().map(place).collect();
        let stores = self.replicas().map(|(_, slot)| slot.usable(self.id));
        known.into_iter().zip(stores).map(|((name, to_delete), store)| Further { name, store, to_delete }).collect()
    }

    fn alternatives<'a>(&'a self, key: &Key) -> Result<Vec<Box<dyn Store + 'a>>, StoreError> {
        let mut copies: Vec<Box<dyn Store + 'a>> = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(store) = slot.store.get() else { continue };
            let Ok(_) = slot.usable(self.id) else { continue };
            if index > 0 {
                copies.push(Box::new(View(&**store)));
            }
            copies.extend(store.alternatives(key).unwrap_or_default());
        }
        Ok(copies)
    }

    fn note(&self, mut note: Note) {
        // A copy knows its URL only.
        if let Some(slot) = self.slots.iter().find(|slot| slot.store.get().is_some_and(|store| store.url() == note.repository)) {
            note.repository = slot.member.name.clone();
        }
        let mut notes = self.notes.lock().expect("no panic while held");
        let said = notes.said.entry((note.kind, note.repository.clone())).or_default();
        *said += 1;
        let most = if matches!(note.kind, NoteKind::Missed | NoteKind::LeftOut) { 1 } else { SAID };
        let (say, last) = (*said <= most, *said == most && most > 1);
        if notes.kept.len() < MAX_NOTES {
            notes.kept.push(note.clone());
        }
        drop(notes);
        if say {
            if last {
                note.problem = format!("{}; more of this kind is not said", note.problem);
            }
            (self.watch)(&note);
        }
    }

    fn notes(&self) -> Vec<Note> {
        self.notes.lock().expect("no panic while held").kept.clone()
    }

    fn as_of<'a>(&'a self, moment: jiff::Timestamp) -> Result<Box<dyn Store + 'a>, StoreError> {
        let mut failed = None;
        for (_, store) in self.readable() {
            match store.and_then(|store| store.as_of(moment)) {
                Ok(store) => return Ok(store),
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        Err(failed.unwrap_or_else(|| super::unsupported("read", &format!("the state of {moment}"), &self.url, "no place can be read")))
    }

    fn retain(&self, key: &Key, until: jiff::Timestamp) -> Result<(), StoreError> {
        if self.access != Access::Write {
            return Err(self.read_only("keep", key.as_str()));
        }
        self.primary()?.retain(key, until)?;
        for (index, slot) in self.replicas() {
            match slot.usable(self.id).and_then(|replica| replica.retain(key, until)) {
                // Not every place has Object Lock; doctor tells.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::Unsupported => {}
                Err(error) if self.required(index) => return Err(error),
                Err(error) => {
                    let (repository, problem) = (slot.member.name.clone(), format!("hold until {until}: {}", causes::joined(&error)));
                    self.note(Note { kind: NoteKind::Missed, repository, object: Some(key.to_string()), problem });
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }
}
