//! Writing artifacts: blob, then record, then a new head.
//!
//! What a head names stands before the head does, so whatever ends a writer leaves garbage, never
//! damage. Heads are taken by conditional create: who was slower looks again and adds to what is
//! there then.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use jiff::{SignedDuration, Timestamp};
use lifeboat_core::artifacts::{Found, changed, compared};
use lifeboat_core::attestation::artifact_statement;
use lifeboat_core::repository::{
    FORMAT_VERSION, Sha256, Suite,
    artifact::{Entry, Head, Line, Origin, Record, merge, runs_to_merge, version},
    layout::{self, ArtifactName, Key},
    retention::Condemned,
    to_json,
};
use serde_json::{Map, Value};

use super::beneath::Meta;
use super::catalog::{ArtifactSet, Lines, Lookup, RunsWriter, Sequence, newest_head};
use super::read::{SMALL_BYTES, blob_finding, check_blob};
use super::{ArtifactError, Finding, Problem, prune};
use crate::keys::{self, Recipient};
use crate::repository::Repository;
use crate::seal::{DataKey, ObjectSealer, Sealing};
use crate::sha256;
use crate::signing::Signer;
use crate::store::stream::StoreWrite;
use crate::store::{Store, StoreError, create_or_mine, is_there};

/// How often a file is read again that changed while it was read.
const READS: u32 = 3;

/// How often the next head is tried for. Every time somebody else was faster, so the set did change;
/// with a pause of up to a second this is some minutes.
const HEADS: u32 = 200;

/// How often another version is tried for: each is a millisecond later.
const VERSIONS: u32 = 100;

/// How often a change is begun anew because a prune came in between. Prunes exclude each other, and each is long.
const TURNS: u32 = 4;

/// How long a prune is waited for that takes away what is to be written.
const PRUNE_WAIT: Duration = Duration::from_secs(180);

/// How often is looked.
const PRUNE_POLL: Duration = Duration::from_millis(250);

/// Compression of blobs.
const LEVEL: i32 = 3;

/// Blobs known to be sound that are remembered: 32 bytes each.
const MAX_PROVEN: usize = 1 << 16;

/// Where an artifact's bytes come from.
pub enum Source<'s> {
    /// A regular file; its permissions and time of change are recorded. Links are followed.
    File(&'s Path),
    /// A pipe or the like. What does not fit into memory is kept in a file without a name in `spool`
    /// while its digest is computed.
    Stream {
        /// The bytes.
        input: &'s mut dyn Read,
        /// A directory on a disk.
        spool: &'s Path,
    },
}

/// An artifact that was put.
#[derive(Debug, Clone)]
pub struct Put {
    /// Its record.
    pub record: Record,
    /// The head that made it part of the set.
    pub head: u64,
    /// Whether its bytes were new to the repository.
    pub new_bytes: bool,
    /// The bytes stand unencrypted in the repository, from a time before encryption.
    pub plain: bool,
    /// The bytes were there, and not every recipient of this writer can open them: see [`Lacking`](super::Lacking).
    pub lacks: bool,
}

/// Writes artifacts to one repository. Shared by threads.
pub struct Writer<'a> {
    store: &'a dyn Store,
    signer: &'a dyn Signer,
    sealing: Sealing,
    /// The data key, wrapped, and the marks of those whom it was wrapped to.
    wrapped: Option<(String, Vec<String>)>,
    /// The newest head that this writer knows. Locked while it makes the next, so that its own threads
    /// do not race each other.
    head: Mutex<Option<Head>>,
    /// What this writer knows of prunes since it began.
    begun: Mutex<Option<Arc<Begun>>>,
    /// Blobs that were there and found sound, or were written.
    proven: Mutex<HashMap<Sha256, Blob>>,
}

/// What a writer relies on is there as of some head: nothing may be pruned between that one and the one it makes.
struct Begun {
    /// The head it began with, as newest.
    head: Option<Head>,
    /// What a prune takes away at the moment.
    condemned: Option<Condemned>,
}

impl Begun {
    fn pruned(&self) -> Option<u64> {
        self.head.as_ref().and_then(|head| head.pruned)
    }
}

/// Why one file was not stored.
pub(super) enum Trouble {
    /// It could not be read.
    File(io::Error),
    /// It changed every time it was read.
    Changing,
    /// Its bytes are in the repository already, and damaged there.
    Blob(Finding),
    /// Nothing else will be stored either.
    Fatal(ArtifactError),
}

impl<E: Into<ArtifactError>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Fatal(error.into())
    }
}

/// A file that was read.
pub(super) enum Stored {
    /// The set has it just so.
    Unchanged,
    /// The same, and it need not be read again while its status is of this time.
    Compared(Timestamp),
    /// A new version.
    Version(Box<Version>),
}

/// A version that was stored and is in no set yet.
pub(super) struct Version {
    pub(super) record: Record,
    pub(super) entry: Entry,
    pub(super) blob: Blob,
}

/// How the bytes came to be there.
#[derive(Debug, Clone, Default)]
pub(super) struct Blob {
    /// Sealed bytes that were written; 0: they were there.
    pub(super) written: u64,
    /// They stand unencrypted, though this writer encrypts.
    pub(super) plain: bool,
    /// Marks of those whom its key was wrapped to, where that is known.
    pub(super) wrapped_to: Option<Vec<String>>,
}

/// What is known of a set after a change to one head of it.
pub(super) struct Known {
    pub(super) head: u64,
    pub(super) count: u64,
    pub(super) bytes: u64,
}

impl<'a> Writer<'a> {
    /// A writer whose blobs are encrypted for these recipients; `None`: not encrypted, because the user
    /// said so in words.
    pub fn new(repository: &'a Repository, signer: &'a dyn Signer, recipients: Option<&[Recipient]>) -> Result<Self, ArtifactError> {
        let (sealing, wrapped) = match recipients {
            Some(recipients) => {
                let key = DataKey::generate();
                let wrapped = keys::wrap(&key, recipients)?;
                (Sealing::Encrypted(key), Some((wrapped, recipients.iter().map(Recipient::mark).collect())))
            }
            None => (Sealing::Plain, None),
        };
        Ok(Self {
            store: repository.store(),
            signer,
            sealing,
            wrapped,
            head: Mutex::default(),
            begun: Mutex::default(),
            proven: Mutex::default(),
        })
    }

    pub(super) fn store(&self) -> &'a dyn Store {
        self.store
    }

    /// Begins anew: forgets what was relied on so far.
    pub(super) fn restart(&self) {
        *self.head.lock().expect("no panic while held") = None;
        *self.begun.lock().expect("no panic while held") = None;
        *self.proven.lock().expect("no panic while held") = Default::default();
    }

    fn begun(&self) -> Result<Arc<Begun>, ArtifactError> {
        let mut begun = self.begun.lock().expect("no panic while held");
        if let Some(begun) = &*begun {
            return Ok(begun.clone());
        }
        // Before anything is looked for or stored: what is found then, and gone at the commit, a prune between took away.
        let head = newest_head(self.store)?;
        let condemned = match head.as_ref().and_then(|head| head.pruned) {
            Some(number) => prune::condemned(self.store, number)?,
            None => None,
        };
        *self.head.lock().expect("no panic while held") = head.clone();
        Ok(begun.insert(Arc::new(Begun { head, condemned })).clone())
    }

    /// Believes that an old head is the newest, as after a long sleep.
    #[cfg(test)]
    pub(crate) fn pretend(&self, number: u64) -> Result<(), ArtifactError> {
        self.begun()?;
        *self.head.lock().expect("no panic while held") = Some(super::catalog::head(self.store, number)?);
        Ok(())
    }

    /// The head that this writer begins with.
    pub(super) fn begin(&self) -> Result<Option<Head>, ArtifactError> {
        Ok(self.begun()?.head.clone())
    }

    /// Waits until a prune that takes away what we want to write has ended: before that it can neither be relied on nor be written anew.
    fn wait_for_prune(&self, begun: &Begun, what: &Key) -> Result<(), ArtifactError> {
        let number = begun.pruned().unwrap_or_default();
        let give_up = Instant::now() + PRUNE_WAIT;
        while prune::condemned(self.store, number)?.is_some() {
            if Instant::now() > give_up {
                return Err(ArtifactError::Condemned(what.to_string()));
            }
            std::thread::sleep(PRUNE_POLL);
        }
        let mut now = self.begun.lock().expect("no panic while held");
        // Unless somebody began anew meanwhile.
        if let Some(current) = now.as_mut().filter(|current| current.pruned() == begun.pruned()) {
            *current = Arc::new(Begun { head: begun.head.clone(), condemned: None });
        }
        Ok(())
    }

    /// Stores an artifact as a new version and makes it part of the set.
    pub fn put(&self, name: &ArtifactName, source: Source<'_>) -> Result<Put, ArtifactError> {
        let (path, mut spooled) = match source {
            Source::File(path) => (path.to_owned(), None),
            Source::Stream { input, spool } => {
                let spooled = Spooled::read(input, spool).map_err(|source| ArtifactError::File { path: spool.to_owned(), source })?;
                (spool.to_owned(), Some(spooled))
            }
        };
        self.again(|| {
            let stored = match &mut spooled {
                None => {
                    let open = || File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(&path);
                    self.store_file(name, Origin::Put, None, &open)
                }
                Some(spooled) => self.store_spooled(name, spooled),
            };
            let path = path.clone();
            let version = match stored {
                Ok(Stored::Version(version)) => *version,
                Ok(Stored::Unchanged | Stored::Compared(_)) => unreachable!("there was no version to compare with"),
                Err(Trouble::File(source)) => return Err(ArtifactError::File { path, source }),
                Err(Trouble::Changing) => return Err(ArtifactError::Changing { path }),
                Err(Trouble::Blob(finding)) => return Err(ArtifactError::Finding(finding)),
                Err(Trouble::Fatal(error)) => return Err(error),
            };
            let mut lines = RunsWriter::new(self.store);
            let lacks = self.marks().is_some_and(|marks| version.entry.lacks(marks));
            lines.push(&Line::Present(version.entry))?;
            let head = self.commit(lines.finish()?, None)?;
            let Blob { written, plain, .. } = version.blob;
            Ok(Put { record: version.record, head: head.map_or(0, |head| head.head), new_bytes: written > 0, plain, lacks })
        })
    }

    /// Does it again from the beginning where a prune came in between.
    pub(super) fn again<T>(&self, mut work: impl FnMut() -> Result<T, ArtifactError>) -> Result<T, ArtifactError> {
        for _ in 1..TURNS {
            match work() {
                Err(ArtifactError::Pruned) => self.restart(),
                other => return other,
            }
        }
        work()
    }

    /// Reads a file, and stores it if it is other than `previous`. `open` opens it anew.
    pub(super) fn store_file(
        &self,
        name: &ArtifactName,
        origin: Origin,
        previous: Option<&Entry>,
        open: &dyn Fn() -> io::Result<File>,
    ) -> Result<Stored, Trouble> {
        for _ in 0..READS {
            // Before the content is read: a change after this moment shows a later time of change.
            let created = Timestamp::now();
            let mut file = open().map_err(Trouble::File)?;
            let before = Meta::of_file(&file).map_err(Trouble::File)?;
            if !before.regular {
                return Err(Trouble::File(io::Error::new(io::ErrorKind::InvalidInput, "no regular file")));
            }
            let mut memory = Vec::new();
            let small = before.bytes <= SMALL_BYTES;
            let (digest, bytes) = if small {
                (&mut file).take(SMALL_BYTES + 1).read_to_end(&mut memory).map_err(Trouble::File)?;
                (sha256::of(&memory), memory.len() as u64)
            } else {
                hash(&mut file).map_err(Trouble::File)?
            };
            if bytes != before.bytes || Meta::of_file(&file).map_err(Trouble::File)? != before {
                continue;
            }
            let Meta { mode, modified, status_changed, .. } = before;
            let found = Found { name: name.clone(), bytes, mode, modified, status_changed };
            // What was lost is stored anew while it is still here.
            let is_stored = previous.is_some_and(|entry| entry.sha256 == digest) && is_there(self.store, &layout::artifact_blob(digest))?;
            if let Some(entry) = previous.filter(|entry| is_stored && !changed(&found, digest, entry)) {
                return Ok(compared(&found, entry, created).map_or(Stored::Unchanged, Stored::Compared));
            }
            let blob = if is_stored {
                Some(Blob { wrapped_to: previous.and_then(|entry| entry.wrapped_to.clone()), ..Blob::default() })
            } else if small {
                self.blob(name, digest, bytes, &mut Cursor::new(&memory))?
            } else {
                file.seek(SeekFrom::Start(0)).map_err(Trouble::File)?;
                self.blob(name, digest, bytes, &mut file)?
            };
            let Some(blob) = blob else { continue };
            return self.record(&found, digest, created, origin, blob).map(Stored::Version);
        }
        Err(Trouble::Changing)
    }

    fn store_spooled(&self, name: &ArtifactName, spooled: &mut Spooled) -> Result<Stored, Trouble> {
        let blob = match &mut spooled.content {
            Content::Memory(memory) => self.blob(name, spooled.digest, spooled.bytes, &mut Cursor::new(memory))?,
            Content::File(file) => {
                file.seek(SeekFrom::Start(0)).map_err(Trouble::File)?;
                self.blob(name, spooled.digest, spooled.bytes, file)?
            }
        };
        let blob = blob.ok_or(Trouble::Changing)?;
        let found =
            Found { name: name.clone(), bytes: spooled.bytes, mode: 0o644, modified: spooled.created, status_changed: spooled.created };
        self.record(&found, spooled.digest, spooled.created, Origin::Put, blob).map(Stored::Version)
    }

    /// Stores the bytes, unless they are there. `None`: they were not those of the digest.
    pub(super) fn blob(&self, name: &ArtifactName, digest: Sha256, bytes: u64, content: &mut dyn Read) -> Result<Option<Blob>, Trouble> {
        let key = layout::artifact_blob(digest);
        let begun = self.begun()?;
        if begun.condemned.as_ref().is_some_and(|condemned| condemned.has_blob(digest)) {
            self.wait_for_prune(&begun, &key)?;
        }
        {
            let proven = self.proven.lock().expect("no panic while held");
            if let Some(known) = proven.get(&digest) {
                return Ok(Some(Blob { written: 0, ..known.clone() }));
            }
        }
        let written = match self.store.length(&key) {
            Ok(_) => 0,
            Err(StoreError::NotFound { .. }) => match self.seal(&key, digest, bytes, content)? {
                Some(written) => written,
                None => return Ok(None),
            },
            Err(error) => return Err(error.into()),
        };
        let blob = match written {
            0 => self.adopt(name, digest, bytes)?,
            written => Blob { written, plain: false, wrapped_to: self.marks().map(<[String]>::to_vec) },
        };
        let mut proven = self.proven.lock().expect("no panic while held");
        if proven.len() >= MAX_PROVEN {
            proven.clear();
        }
        proven.insert(digest, blob.clone());
        Ok(Some(blob))
    }

    /// Marks of those for whom this writer encrypts; `None`: it does not.
    pub(super) fn marks(&self) -> Option<&[String]> {
        self.wrapped.as_ref().map(|(_, marks)| marks.as_slice())
    }

    /// Looks at a blob that is there already before relying on it: it cannot be written again.
    fn adopt(&self, name: &ArtifactName, digest: Sha256, bytes: u64) -> Result<Blob, Trouble> {
        let finding = |problem| Trouble::Blob(blob_finding(name, digest, problem));
        let header = check_blob(self.store, digest, bytes).map_err(finding)?;
        match (header.suite, self.sealing.suite()) {
            // Who gave up encryption may have no identity any more that opens it.
            (Suite::Aes256Gcm, Suite::None) => {
                Err(finding(Problem::Locked("it was encrypted before, and this writer does not encrypt".into())))
            }
            (found, mine) => Ok(Blob { written: 0, plain: found != mine, wrapped_to: header.wrapped_to }),
        }
    }

    /// Writes the blob. `None`: the content was not that of the digest. 0: somebody else wrote it first.
    fn seal(&self, key: &Key, digest: Sha256, bytes: u64, content: &mut dyn Read) -> Result<Option<u64>, Trouble> {
        let mut out = StoreWrite { writer: self.store.writer_for(key, bytes)?, failed: None };
        let mut context = digest::Context::new(&digest::SHA256);
        let mut copied = 0u64;
        let mut seal = || -> Result<u64, Trouble> {
            let mut sealer = ObjectSealer::marked(&mut out, key.as_str(), &self.sealing, self.wrapped.clone(), LEVEL).map_err(Sealer)?;
            let mut buffer = vec![0; 64 << 10];
            loop {
                let length = match content.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(Trouble::File(error)),
                };
                copied += length as u64;
                if copied > bytes {
                    return Ok(0);
                }
                context.update(&buffer[..length]);
                sealer.write_all(&buffer[..length]).map_err(Sealer)?;
            }
            Ok(sealer.finish().map_err(Sealer)?.1)
        };
        let sealed = seal();
        if let Some(error) = out.failed {
            return Err(error.into());
        }
        let written = sealed?;
        if copied != bytes || context.finish().as_ref() != digest.0 {
            return Ok(None);
        }
        match out.writer.commit(key) {
            Ok(()) => Ok(Some(written)),
            Err(StoreError::Exists { .. }) => Ok(Some(0)),
            Err(error) => Err(error.into()),
        }
    }

    /// Signs and stores the record of a new version.
    fn record(&self, found: &Found, digest: Sha256, created: Timestamp, origin: Origin, blob: Blob) -> Result<Box<Version>, Trouble> {
        let mut created = created;
        for _ in 0..VERSIONS {
            let version = version(created, digest);
            let details = details(found.mode, found.modified);
            let statement = artifact_statement(found.name.as_str(), &version, digest.0, found.bytes, details);
            let bundle = self.signer.sign_statement(&statement.to_bytes())?;
            let bundle =
                serde_json::from_str(&bundle).map_err(|e| crate::signing::SignError::Signer(format!("its bundle is not JSON: {e}")))?;
            let record = Record {
                format: FORMAT_VERSION,
                name: found.name.clone(),
                version,
                sha256: digest,
                bytes: found.bytes,
                mode: found.mode,
                modified: found.modified,
                created,
                origin,
                bundle,
            };
            let json = to_json(&record);
            let key = layout::artifact_record(&record.name, &record.version);
            if create_or_mine(self.store, &key, &json)? {
                let entry = Entry {
                    name: record.name.clone(),
                    version: record.version.clone(),
                    sha256: digest,
                    bytes: record.bytes,
                    mode: record.mode,
                    modified: record.modified,
                    record: sha256::of(&json),
                    origin,
                    wrapped_to: blob.wrapped_to.clone(),
                    compared: None,
                };
                return Ok(Box::new(Version { record, entry, blob }));
            }
            // The same content under the same name in the same millisecond.
            created += SignedDuration::from_millis(1);
        }
        Err(Trouble::Fatal(ArtifactError::Contended(VERSIONS)))
    }

    /// Makes `change` part of the set: returns the new head, or `None` if nothing was left to change.
    ///
    /// `basis` is the set that the change was computed against and what becomes of it. If the set is
    /// another by now, only what is still as it was there leaves the set.
    pub(super) fn commit(&self, change: Sequence, basis: Option<(&ArtifactSet<'_>, Known)>) -> Result<Option<Head>, ArtifactError> {
        let begun = self.begun()?;
        let mut mine = self.head.lock().expect("no panic while held");
        for attempt in 0..HEADS {
            let head = self.newest(mine.take())?;
            // What was found to be there may be gone.
            if head.as_ref().and_then(|head| head.pruned) != begun.pruned() {
                return Err(ArtifactError::Pruned);
            }
            let number = head.as_ref().map_or(0, |head| head.head);
            let set = ArtifactSet::new(self.store, head.as_ref().map_or_else(Vec::new, |head| head.runs.clone()));
            let totals = head.as_ref().map_or((0, 0), |head| (head.count, head.bytes));
            let (change, (count, bytes)) = match &basis {
                Some((_, known)) if known.head == number => (change.clone(), (known.count, known.bytes)),
                basis => self.rebase(&change, &set, basis.as_ref().map(|(base, _)| *base), totals)?,
            };
            if change.0.is_empty() {
                *mine = head;
                return Ok(None);
            }
            let runs = self.merge(change, set.runs())?;
            if let Some(condemned) = &begun.condemned
                && let Some(run) = runs.iter().find(|run| condemned.has_run(run.sha256))
            {
                let key = layout::artifact_run(run.sha256);
                drop(mine);
                self.wait_for_prune(&begun, &key)?;
                return Err(ArtifactError::Pruned);
            }
            let next =
                Head { format: FORMAT_VERSION, head: number + 1, created: Timestamp::now(), runs, count, bytes, pruned: begun.pruned() };
            if create_or_mine(self.store, &layout::artifact_head(next.head), &next.encode())? {
                if !self.stands(number)? {
                    return Err(ArtifactError::Pruned);
                }
                *mine = Some(next.clone());
                return Ok(Some(next));
            }
            pause(attempt);
        }
        Err(ArtifactError::Contended(HEADS))
    }

    /// The newest head; `known` was it a while ago.
    fn newest(&self, known: Option<Head>) -> Result<Option<Head>, ArtifactError> {
        let Some(known) = known else { return newest_head(self.store) };
        match self.store.length(&layout::artifact_head(known.head + 1)) {
            // Nobody can have made a later one without that.
            Err(StoreError::NotFound { .. }) => Ok(Some(known)),
            Ok(_) => newest_head(self.store),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the head made after head `number` is the present one or one before it, and no number that was free only because all up to it
    /// were pruned: they go from the lowest on, so then the one that we began with is gone as well.
    fn stands(&self, number: u64) -> Result<bool, ArtifactError> {
        let before = match number {
            0 => {
                let newest = newest_head(self.store)?.map_or(0, |head| head.head);
                return Ok(newest <= 1 || self.store.length(&layout::artifact_head(2)).is_ok());
            }
            number => layout::artifact_head(number),
        };
        Ok(is_there(self.store, &before)?)
    }

    /// The change as it applies to `set`, and the totals after it.
    fn rebase(
        &self,
        change: &Sequence,
        set: &ArtifactSet<'_>,
        base: Option<&ArtifactSet<'_>>,
        totals: (u64, u64),
    ) -> Result<(Sequence, (u64, u64)), ArtifactError> {
        let Some((first, last)) = change.ends() else { return Ok((Sequence::default(), totals)) };
        let (mut count, mut bytes) = totals;
        let mut now = Lookup::new(set.between(first, last));
        let mut then = base.map(|base| Lookup::new(base.between(first, last)));
        let mut lines = RunsWriter::new(self.store);
        for line in change.lines(self.store) {
            let line = line?;
            let old = now.get(line.name())?;
            // What was found gone, or the same as before, says nothing of what somebody else stored meanwhile.
            let is_of_what_was = match &line {
                Line::Gone { .. } => true,
                Line::Present(entry) => entry.compared.is_some(),
            };
            if let Some(then) = then.as_mut().filter(|_| is_of_what_was)
                && (old.is_none() || then.get(line.name())? != old)
            {
                continue;
            }
            count -= u64::from(old.is_some()).min(count);
            bytes -= old.map_or(0, |old| old.bytes).min(bytes);
            if let Line::Present(entry) = &line {
                count += 1;
                bytes += entry.bytes;
            }
            lines.push(&line)?;
        }
        Ok((lines.finish()?, (count, bytes)))
    }

    /// Puts the change in front of the runs, merged with as many of them as its size asks for.
    fn merge(
        &self,
        mut change: Sequence,
        runs: &[lifeboat_core::repository::artifact::Run],
    ) -> Result<Vec<lifeboat_core::repository::artifact::Run>, ArtifactError> {
        let (merged, left) = runs.split_at(runs_to_merge(change.entries(), runs));
        // With nothing behind it, a line that says "gone" says nothing.
        if !merged.is_empty() || (left.is_empty() && change.has_gone()) {
            let older = ArtifactSet::new(self.store, merged.to_vec());
            let sources: Vec<Lines<'_>> = vec![change.lines(self.store), older.lines(|_| true)];
            let mut lines = RunsWriter::new(self.store);
            for line in merge(sources) {
                let line = line?;
                if !left.is_empty() || matches!(line, Line::Present(_)) {
                    lines.push(&line)?;
                }
            }
            change = lines.finish()?;
        }
        let mut all = change.store(self.store)?;
        all.extend_from_slice(left);
        Ok(all)
    }
}

/// The bytes of a stream, kept until they are part of the set.
struct Spooled {
    content: Content,
    digest: Sha256,
    bytes: u64,
    created: Timestamp,
}

enum Content {
    Memory(Vec<u8>),
    File(File),
}

impl Spooled {
    fn read(input: &mut dyn Read, spool: &Path) -> io::Result<Self> {
        let created = Timestamp::now();
        let mut memory = Vec::new();
        input.take(SMALL_BYTES + 1).read_to_end(&mut memory)?;
        if memory.len() as u64 <= SMALL_BYTES {
            let (digest, bytes) = (sha256::of(&memory), memory.len() as u64);
            return Ok(Self { content: Content::Memory(memory), digest, bytes, created });
        }
        let mut file = nameless(spool)?;
        file.write_all(&memory).and_then(|()| io::copy(input, &mut file))?;
        drop(memory);
        file.seek(SeekFrom::Start(0))?;
        let (digest, bytes) = hash(&mut file)?;
        Ok(Self { content: Content::File(file), digest, bytes, created })
    }
}

/// What the predicate says besides version and length, so that a signature speaks for it.
pub(super) fn details(mode: u32, modified: Timestamp) -> Map<String, Value> {
    Map::from_iter([("mode".to_owned(), mode.into()), ("modified".to_owned(), modified.to_string().into())])
}

/// Waits, longer each time, and never as long as somebody else.
fn pause(attempt: u32) {
    let most = (5u64 << attempt.min(8)).min(1000);
    let random = u64::from_le_bytes(crate::random::bytes());
    std::thread::sleep(Duration::from_millis(random % most + 1));
}

fn hash(file: &mut File) -> io::Result<(Sha256, u64)> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                context.update(&buffer[..length]);
                bytes += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((sha256::finish(context), bytes))
}

/// A file that only this process sees, and that is gone with it.
fn nameless(directory: &Path) -> io::Result<File> {
    let path = directory.join(format!(".lifeboat-{}", crate::random::id()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// A sealer that failed, which is not the file's fault.
#[expect(non_snake_case, reason = "reads like the variant that it stands for")]
fn Sealer(error: io::Error) -> Trouble {
    Trouble::Fatal(ArtifactError::Target { path: "a blob".into(), source: error })
}
