//! The audit log of a repository: who did what, or was not allowed to (format 13, docs/audit.md).
//!
//! A record goes to this host's journal first, and then to the repository, so that losing the store while something is done does not lose
//! the record of it. What did not get there goes with the next one, in order, once. What is decided about records is in
//! `lifeboat_core::audit`.

mod append;
mod journal;
mod key;
mod read;
mod tree;
mod verify;

use std::collections::HashSet;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use lifeboat_core::audit::{Event, Stored};
use lifeboat_core::repository::{Id, Sha256};
use lifeboat_core::verify::{Finding, FindingKind};

pub use key::{AuditKey, AuditKeyError, Checkpoint, MAX_CHECKPOINT_BYTES, TrustedKey, VerifierKey, origin};
pub use verify::{Pin, Report, verify};

pub(crate) use read::misshapen;

use append::Appender;
use journal::{Journal, Line, Resumed, State};
use key::Verifiers;

use crate::repository::Repository;
use crate::store::StoreError;

/// Why there is no record, or none could be read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// This host's journal cannot be written: without a record nothing is done.
    #[error("write the audit journal in {directory}")]
    Write {
        /// Where it is.
        directory: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It cannot be read.
    #[error("read the audit journal in {directory}")]
    Read {
        /// Where it is.
        directory: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store failed while the log was read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the repository does not have everything yet. The record is in the journal, and nothing is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It could not be reached, or did not take it. The next record brings it along.
    Waiting(String),
    /// The log in the repository is not what it should be: somebody shortened or rewrote it, wrote into it without a key that counts, or a key is
    /// missing in the configuration. Nothing is added to it until somebody has looked: `lifeboat audit verify`.
    Distrusted(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Waiting(problem) | Self::Distrusted(problem)) = self;
        f.write_str(problem)
    }
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The event.
    pub id: Id,
    /// Its index in the log, once it is there.
    pub index: Option<u64>,
    /// The newest checkpoint that this host knows, as a signed note: what a manifest carries.
    pub checkpoint: Option<String>,
    /// Records of this host that are in no repository yet, this one among them.
    pub waiting: u64,
    /// Why something is left to do.
    pub trouble: Option<Trouble>,
}

/// Writes and reads the log of the repository at one address.
pub struct Log {
    journal: Journal,
    key: Option<AuditKey>,
    trusted: Vec<TrustedKey>,
}

impl Log {
    /// `directory` is where this host keeps its journals, `url` the repository's address: each has a journal of its own. Without a key, records stay in the
    /// journal. The own key counts, unless `trusted` says up to where.
    pub fn new(directory: &Path, url: &str, key: Option<AuditKey>, mut trusted: Vec<TrustedKey>) -> Self {
        if let Some(key) = &key
            && !trusted.iter().any(|one| one.key == *key.verifier())
        {
            trusted.push(TrustedKey { key: key.verifier().clone(), until: None });
        }
        Self { journal: Journal::new(directory, url), key, trusted }
    }

    /// Where the journal is.
    pub fn directory(&self) -> &Path {
        self.journal.directory()
    }

    /// Whose records count.
    pub fn trusted(&self) -> &[TrustedKey] {
        &self.trusted
    }

    /// Makes a record. It is in the journal, durably, when this returns; whether it is in the repository as well, the answer says. Where the
    /// repository could not be opened, `None`: the record goes there with the next one.
    ///
    /// # Errors
    ///
    /// The journal could not be written. A repository that does not answer is no error.
    pub fn record(&self, repository: Option<&Repository>, event: &Event) -> Result<Recorded, AuditError> {
        let event = event.clone().clipped();
        let now = event.time;
        let id = event.id;
        self.journal.append(&[Line::Event(Box::new(event))], now).map_err(|source| self.unwritten(source))?;
        let mut recorded = Recorded { id, index: None, checkpoint: None, waiting: 0, trouble: None };
        let brought = match (repository, &self.key) {
            (None, _) => Err(Trouble::Waiting("the repository was not opened".into())),
            (_, None) => Err(Trouble::Waiting("no audit key is configured".into())),
            (Some(repository), Some(key)) => self.bring(repository, key, now, &mut recorded),
        };
        if let Err(trouble) = brought {
            recorded.trouble = Some(trouble);
        }
        // What was remembered may be all there is to tell.
        if let (Some(repository), None, Ok(state)) = (repository, &recorded.checkpoint, self.journal.state()) {
            recorded.checkpoint = self.seen(&self.verifiers(repository), &state).map(|seen| seen.note);
        }
        recorded.waiting = self.waiting().map_or(1, |waiting| waiting as u64);
        Ok(recorded)
    }

    /// Makes records in the journal only, all or none of them, durably. [`Self::carry`] brings them to the repository, or the next [`Self::record`] does.
    ///
    /// # Errors
    ///
    /// The journal could not be written.
    pub fn note(&self, events: &[Event]) -> Result<(), AuditError> {
        let Some(now) = events.last().map(|event| event.time) else { return Ok(()) };
        let lines: Vec<Line> = events.iter().map(|event| Line::Event(Box::new(event.clone().clipped()))).collect();
        self.journal.append(&lines, now).map_err(|source| self.unwritten(source))
    }

    /// Brings what waits in the journal to the repository, without a record of its own.
    ///
    /// # Errors
    ///
    /// Why something still waits.
    pub fn carry(&self, repository: &Repository, now: Timestamp) -> Result<(), Trouble> {
        let key = self.key.as_ref().ok_or_else(|| Trouble::Waiting("no audit key is configured".into()))?;
        let mut recorded = Recorded { id: Id([0; 16]), index: None, checkpoint: None, waiting: 0, trouble: None };
        self.bring(repository, key, now, &mut recorded)
    }

    /// Brings what waits to the repository.
    fn bring(&self, repository: &Repository, key: &AuditKey, now: Timestamp, recorded: &mut Recorded) -> Result<(), Trouble> {
        let local = |error: io::Error| Trouble::Waiting(format!("the journal in {}: {error}", self.directory().display()));
        let busy = || Trouble::Waiting("another process of this host is busy with the repository".into());
        let _turn = self.journal.turn().map_err(local)?.ok_or_else(busy)?;
        let mut state = self.journal.state().map_err(local)?;
        // Read once it is our turn: others may have brought this record along.
        let waiting = self.journal.waiting(&state).map_err(local)?;
        let verifiers = self.verifiers(repository);
        let seen = self.seen(&verifiers, &state);
        let tried_from = state.seen(verifiers.repository).and_then(|seen| seen.tried_from);
        let ids = waiting.events.iter().map(|(_, event)| event.id);
        let mut appender = Appender::open(repository.store(), &verifiers, seen, tried_from, ids)?;
        if tried_from.is_none() && !waiting.events.is_empty() {
            // From here on a record may be stored without this host being told.
            state.seen_mut(verifiers.repository).tried_from = Some(appender.end());
            self.journal.remember(&state).map_err(local)?;
        }
        let mut stopped = None;
        let mut stored = Vec::new();
        for (_, event) in &waiting.events {
            match appender.append(key, event) {
                Ok(one) => stored.push(one),
                Err(stop) => {
                    stopped = Some(Trouble::from(stop));
                    break;
                }
            }
        }
        let lines: Vec<Line> = stored.iter().copied().map(Line::Stored).collect();
        if !lines.is_empty() {
            self.journal.append(&lines, now).map_err(local)?;
        }
        recorded.index = stored.iter().find(|one| one.id == recorded.id).map(|one| one.index);
        let sealed = if stopped.is_none() { appender.seal(key).map_err(Trouble::from) } else { Ok(None) };
        let seen = state.seen_mut(verifiers.repository);
        match &sealed {
            Ok(Some(checkpoint)) => {
                seen.checkpoint = Some(checkpoint.note.clone());
                recorded.checkpoint.clone_from(&seen.checkpoint);
            }
            Ok(None) => {}
            Err(trouble) => stopped = Some(trouble.clone()),
        }
        if stored.len() == waiting.events.len() {
            // All that was tried is known to be there.
            seen.tried_from = None;
        }
        // What came while this was done stands behind `end`, and so does what is left where it stopped.
        state.settled = waiting.events.get(stored.len()).map_or(waiting.end, |(at, _)| at.clone());
        self.journal.remember(&state).map_err(local)?;
        stopped.map_or(Ok(()), Err)
    }

    /// The newest checkpoint of a log, whoever signed it, if there is one: from the repository or, where it does not answer, what this host remembers.
    pub fn latest_checkpoint(&self, repository: &Repository) -> Result<Option<Checkpoint>, AuditError> {
        let verifiers = self.verifiers(repository);
        let state = self.journal.state().map_err(|source| self.unread(source))?;
        let seen = self.seen(&verifiers, &state);
        let known = seen.as_ref().map_or(0, |seen| seen.size);
        match read::newest(repository.store(), &verifiers, known) {
            Ok(newer) => Ok(newer.or(seen)),
            Err(_) if seen.is_some() => Ok(seen),
            Err(error) => Err(error.into()),
        }
    }

    fn verifiers(&self, repository: &Repository) -> Verifiers {
        Verifiers::new(repository.descriptor().repository, &self.trusted)
    }

    /// What this host remembers of a log, if it still counts.
    fn seen(&self, verifiers: &Verifiers, state: &State) -> Option<Checkpoint> {
        let note = state.seen(verifiers.repository)?.checkpoint.as_ref()?;
        verifiers.checkpoint(note.as_bytes()).ok()
    }

    /// How many records are in no repository yet.
    pub fn waiting(&self) -> Result<usize, AuditError> {
        let read = || self.journal.waiting(&self.journal.state()?);
        read().map(|waiting| waiting.events.len()).map_err(|source| self.unread(source))
    }

    /// Every event of this host's journal, in order, with its place in the repository where it has one.
    pub fn local(&self) -> Result<Vec<(Option<u64>, Event)>, AuditError> {
        let account = self.journal.account().map_err(|source| self.unread(source))?;
        let place = |event: &Event| account.stored.get(&event.id).map(|stored| stored.index);
        Ok(account.events.iter().map(|(_, event)| (place(event), event.clone())).collect())
    }

    /// What this host's journal says that it stored in a repository.
    fn stored(&self, repository: Id) -> Result<Vec<Stored>, AuditError> {
        let account = self.journal.account().map_err(|source| self.unread(source))?;
        Ok(account.stored.into_values().filter(|stored| stored.repository == repository).collect())
    }

    /// Goes on with a log that lost its end, or is another than the one that this host has seen: what this host remembered of it is forgotten, and those of its
    /// records that are not there any more wait to be added again. Whoever decides that knows why, and says so; nobody else can tell a replica that was
    /// left behind from a log that somebody shortened.
    pub fn resume(&self, repository: &Repository, reason: &str, now: Timestamp) -> Result<Resumption, AuditError> {
        let (store, verifiers) = (repository.store(), self.verifiers(repository));
        let _turn = self.journal.turn().map_err(|source| self.unwritten(source))?.ok_or_else(|| {
            self.unwritten(io::Error::new(io::ErrorKind::ResourceBusy, "another process of this host is busy with the repository"))
        })?;
        let mut state = self.journal.state().map_err(|source| self.unread(source))?;
        let forgotten = self.seen(&verifiers, &state);
        // From the beginning: what is there is what is there.
        let mut there = HashSet::new();
        let mut size = read::newest(store, &verifiers, 0)?.map_or(0, |head| head.size);
        read::records(store, &verifiers, 0, size, |found| there.extend(found.record.map(|(record, _)| record.place.id)))?;
        while let Ok((record, _)) = read::leaf(store, &verifiers, size)?.record {
            there.insert(record.place.id);
            size += 1;
        }
        let account = self.journal.account().map_err(|source| self.unread(source))?;
        let lost = |event: &Event| {
            let stored = account.stored.get(&event.id);
            stored.is_some_and(|stored| stored.repository == verifiers.repository) && !there.contains(&event.id)
        };
        let mut lines = vec![Line::Resumed(Resumed { time: now, repository: verifiers.repository, size, reason: reason.to_owned() })];
        let waiting = self.journal.waiting(&state).map_err(|source| self.unread(source))?;
        let again: Vec<Event> = account.events.iter().filter(|(_, event)| lost(event)).map(|(_, event)| event.clone()).collect();
        lines.extend(again.iter().cloned().map(|event| Line::Event(Box::new(event))));
        self.journal.append(&lines, now).map_err(|source| self.unwritten(source))?;
        let seen = state.seen_mut(verifiers.repository);
        // Whatever of this host is in it is looked for, so that nothing is added twice.
        (seen.checkpoint, seen.tried_from) = (None, Some(0));
        self.journal.remember(&state).map_err(|source| self.unwritten(source))?;
        Ok(Resumption { size, forgotten: forgotten.map(|seen| seen.note), again: again.len() as u64, waiting: waiting.events.len() as u64 })
    }

    /// Every record of a repository's log that counts, in order; what does not count is a finding, never an event.
    pub fn list(&self, repository: &Repository) -> Result<Listing, AuditError> {
        let (store, verifiers) = (repository.store(), self.verifiers(repository));
        let mut listing = Listing::default();
        let mut take = |found: read::Found| match found.record {
            Ok((record, signed_by)) => match record.event {
                Some(event) => listing.records.push(Listed { index: found.index, signed_by, event }),
                None => listing.newer += 1,
            },
            Err(flaw) => listing.findings.push(finding(flaw, lifeboat_core::repository::layout::audit_leaf(found.index).to_string())),
        };
        let mut at = self.latest_checkpoint(repository)?.map_or(0, |head| head.size);
        read::records(store, &verifiers, 0, at, &mut take)?;
        loop {
            let found = read::leaf(store, &verifiers, at)?;
            if matches!(&found.record, Err(flaw) if flaw.kind == FindingKind::Missing) {
                return Ok(listing);
            }
            take(found);
            at += 1;
        }
    }
}

impl Log {
    fn unwritten(&self, source: io::Error) -> AuditError {
        AuditError::Write { directory: self.directory().display().to_string(), source }
    }

    fn unread(&self, source: io::Error) -> AuditError {
        AuditError::Read { directory: self.directory().display().to_string(), source }
    }
}

fn finding(flaw: key::Flaw, object: String) -> Finding {
    Finding { kind: flaw.kind, backup: None, object, file: None, problem: flaw.problem }
}

/// How a log is gone on with.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Resumption {
    /// Records that it has.
    pub size: u64,
    /// The newest checkpoint that this host had seen: worth keeping, as it tells what was lost.
    pub forgotten: Option<String>,
    /// Records of this host that were lost, and follow with the next one.
    pub again: u64,
    /// Records that wait besides.
    pub waiting: u64,
}

/// A record that counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its place.
    pub index: u64,
    /// Whose key signed it, by the name in the configuration.
    pub signed_by: String,
    /// What it says.
    pub event: Event,
}

/// The records of a log.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those that count.
    pub records: Vec<Listed>,
    /// Those that a later version of lifeboat wrote, in words that this one does not know.
    pub newer: u64,
    /// Those that do not count, or are missing.
    pub findings: Vec<Finding>,
}

fn hash_to_sha256(hash: tlog_tiles::Hash) -> Sha256 {
    Sha256(hash.0)
}
