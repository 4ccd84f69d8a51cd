//! Reading artifacts: records that are believed only signed, bytes that are given out only whole and
//! with the digest that was signed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek as _, SeekFrom, Write};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Mutex;

use aws_lc_rs::digest;
use lifeboat_core::repository::sealed::{Header, MAX_FRAME_BYTES, MAX_HEADER_BYTES, TRAILER_BYTES};
use lifeboat_core::repository::{
    FormatError, Id, Sha256, Suite,
    artifact::{Entry, Record, is_version},
    layout::{self, ArtifactName, Key},
};

use super::beneath::{self, Temporary};
use super::catalog::ArtifactSet;
use super::{ArtifactError, Finding, Problem, problem_of};
use crate::keys::{Identities, KeyError};
use crate::repository::Repository;
use crate::seal::{DataKey, ObjectOpener, OpenError, Sealing};
use crate::signing::{Expected, Trust, VerifyError};
use crate::store::stream::StoreReader;
use crate::store::{Store, StoreError, first_good};
use crate::{causes, sha256};

/// The longest record that is read: its bundle may have 1 MiB.
pub const MAX_RECORD_BYTES: u64 = 2 << 20;

/// Artifacts up to this length are read in one piece, and written out of memory.
pub(super) const SMALL_BYTES: u64 = 1 << 20;

/// Unwrapped data keys that are kept: every run of a writer has its own, so a set that was built by
/// single puts has as many as artifacts.
const MAX_KEYS: usize = 4096;

/// Whether a file that is there already may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// It may not.
    Never,
    /// It may.
    Allowed,
}

/// Reads artifacts of one repository. Shared by threads.
pub struct Reader<'a> {
    store: &'a dyn Store,
    trust: &'a Trust,
    identities: Identities,
    keys: Mutex<HashMap<Id, (String, DataKey)>>,
}

/// Why bytes did not arrive.
pub(super) enum Trouble {
    /// They are not what they should be.
    Problem(Problem),
    /// Who takes them failed.
    Sink(io::Error),
}

impl<'a> Reader<'a> {
    /// A reader that believes what `trust` believes. Without identities only artifacts that were not
    /// encrypted can be opened.
    pub fn new(repository: &'a Repository, trust: &'a Trust, identities: Identities) -> Self {
        Self { store: repository.store(), trust, identities, keys: Mutex::default() }
    }

    pub(super) fn store(&self) -> &'a dyn Store {
        self.store
    }

    /// The versions of an artifact that are stored, oldest first, also those that no set names any
    /// more. What they are, only their [record](Self::record) tells.
    pub fn versions(&self, name: &ArtifactName) -> Result<Vec<String>, StoreError> {
        let segments = self.store.list_segments(&layout::artifact_records(name))?;
        let mut versions: Vec<String> =
            segments.iter().filter_map(|s| s.strip_suffix(".json")).filter(|v| is_version(v)).map(str::to_owned).collect();
        versions.sort();
        Ok(versions)
    }

    /// The record of one version, verified by its signature.
    pub fn record(&self, name: &ArtifactName, version: &str) -> Result<Record, Finding> {
        self.read_record(name, version, None)
    }

    /// The record that a set names, verified by its digest there and by its signature.
    pub fn record_of(&self, entry: &Entry) -> Result<Record, Finding> {
        self.read_record(&entry.name, &entry.version, Some(entry))
    }

    fn read_record(&self, name: &ArtifactName, version: &str, entry: Option<&Entry>) -> Result<Record, Finding> {
        let found = |object: String, problem| Finding { name: Some(name.clone()), object, problem };
        if !is_version(version) {
            return Err(found(layout::artifact_records(name), Problem::Missing));
        }
        let key = layout::artifact_record(name, version);
        let read = |store: &dyn Store| {
            let bytes = store.get(&key, MAX_RECORD_BYTES).map_err(|e| found(key.to_string(), problem_of(&e)))?;
            self.check_record(&bytes, name, version, entry).map_err(|problem| found(key.to_string(), problem))
        };
        first_good(self.store, &key, read, |finding| damage(&finding.problem))
    }

    fn check_record(&self, bytes: &[u8], name: &ArtifactName, version: &str, entry: Option<&Entry>) -> Result<Record, Problem> {
        if entry.is_some_and(|entry| sha256::of(bytes) != entry.record) {
            return Err(Problem::Corrupt("its digest is not the one in the catalog".into()));
        }
        let record = Record::decode(bytes).map_err(|error| match error {
            FormatError::TooNew { .. } => Problem::NotChecked(error.to_string()),
            FormatError::Malformed { .. } => Problem::Corrupt(error.to_string()),
        })?;
        if record.name != *name || record.version != version {
            return Err(Problem::Corrupt(format!("it is the record of {} {}", record.name, record.version)));
        }
        if let Some(entry) = entry {
            let listed = (entry.sha256, entry.bytes, entry.mode, entry.modified, entry.origin);
            if (record.sha256, record.bytes, record.mode, record.modified, record.origin) != listed {
                return Err(Problem::Corrupt("it says other things than the catalog".into()));
            }
        }
        self.check_signature(&record)?;
        Ok(record)
    }

    fn check_signature(&self, record: &Record) -> Result<(), Problem> {
        if record.bundle.is_null() {
            return Err(Problem::Unsigned("it has no bundle".into()));
        }
        let bundle = serde_json::to_vec(&record.bundle).expect("what was read as JSON is written as JSON");
        let expected = Expected::artifact(record.name.as_str(), &record.version, record.sha256.0);
        let verified = self.trust.verify(&bundle, &expected).map_err(|error| match error {
            VerifyError::KnownGood { .. } => Problem::NotChecked(causes::joined(&error)),
            _ if error.is_of_trust() => Problem::Unsigned(causes::joined(&error)),
            _ => Problem::BadSignature(causes::joined(&error)),
        })?;
        let predicate = &verified.statement.predicate;
        if predicate.get("bytes").and_then(serde_json::Value::as_u64) != Some(record.bytes) {
            return Err(Problem::BadSignature("it was signed with another length".into()));
        }
        // What other writers may leave out must be right where it is there.
        for (member, value) in super::write::details(record.mode, record.modified) {
            if predicate.get(&member).is_some_and(|signed| *signed != value) {
                return Err(Problem::BadSignature(format!("it was signed with another {member}")));
            }
        }
        Ok(())
    }

    /// Reads the bytes of an artifact from the first copy that is good. `read` begins anew with every copy.
    pub(super) fn in_any_copy<T>(&self, sha256: Sha256, read: impl FnMut(&dyn Store) -> Result<T, Trouble>) -> Result<T, Trouble> {
        first_good(self.store, &layout::artifact_blob(sha256), read, |trouble| match trouble {
            Trouble::Problem(problem) => damage(problem),
            Trouble::Sink(_) => None,
        })
    }

    /// Opens one copy of the bytes of an artifact and hands them to `sink` as they come. Only when this returns
    /// success were they all there, with the right digest.
    pub(super) fn open(
        &self,
        store: &dyn Store,
        sha256: Sha256,
        bytes: u64,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), Trouble> {
        match self.read_blob(store, sha256, bytes, sink) {
            // A damaged wrapped key looks like that of somebody else; the trailer tells.
            Err(Trouble::Problem(Problem::Locked(why))) => {
                let problem = check_blob(store, sha256, bytes).err();
                Err(Trouble::Problem(problem.unwrap_or(Problem::Locked(why))))
            }
            other => other,
        }
    }

    fn read_blob(
        &self,
        store: &dyn Store,
        sha256: Sha256,
        bytes: u64,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), Trouble> {
        let key = layout::artifact_blob(sha256);
        if bytes <= SMALL_BYTES {
            let sealed = small_blob(store, &key, bytes).map_err(Trouble::Problem)?;
            return self.unseal(Cursor::new(sealed), &key, sha256, bytes, sink);
        }
        let mut reader = StoreReader::open(store, &key).map_err(|e| Trouble::Problem(problem_of(&e)))?;
        let result = self.unseal(&mut reader, &key, sha256, bytes, sink);
        // A store that failed is no damage, though it looks like a cut to who reads.
        match (result, reader.failed) {
            (Err(Trouble::Problem(_)), Some(error)) => Err(Trouble::Problem(problem_of(&error))),
            (result, _) => result,
        }
    }

    fn unseal(
        &self,
        input: impl Read,
        key: &Key,
        sha256: Sha256,
        bytes: u64,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), Trouble> {
        let bad = |error: OpenError| Trouble::Problem(Problem::Corrupt(error.to_string()));
        let mut opener = ObjectOpener::new(input, key.as_str()).map_err(bad)?;
        let sealing = self.sealing(opener.header()).map_err(Trouble::Problem)?;
        opener.unlock(&sealing).map_err(bad)?;
        let mut context = digest::Context::new(&digest::SHA256);
        let mut length = 0;
        while let Some(part) = opener.next().map_err(bad)? {
            length += part.len() as u64;
            if length > bytes {
                return Err(Trouble::Problem(Problem::Corrupt(format!("more than {bytes} bytes came out"))));
            }
            context.update(part);
            sink(part).map_err(Trouble::Sink)?;
        }
        if length != bytes || context.finish().as_ref() != sha256.0 {
            return Err(Trouble::Problem(Problem::Corrupt("what came out is not what was signed".into())));
        }
        Ok(())
    }

    /// What opens a blob with this header. That a blob is not encrypted is no danger to who reads it:
    /// its digest is signed.
    pub(super) fn sealing(&self, header: &Header) -> Result<Sealing, Problem> {
        let (id, wrapped) = match (header.suite, header.key, &header.wrapped) {
            (Suite::None, ..) => return Ok(Sealing::Plain),
            (Suite::Aes256Gcm, Some(id), Some(wrapped)) => (id, wrapped),
            _ => return Err(Problem::Corrupt("its header has no wrapped key".into())),
        };
        if let Some((known, key)) = self.keys.lock().expect("no panic while held").get(&id)
            && known == wrapped
        {
            return Ok(Sealing::Encrypted(key.clone()));
        }
        let key = self.identities.unwrap(id, wrapped).map_err(|error| match error {
            KeyError::WrongIdentity(_) | KeyError::NoneGiven(_) => Problem::Locked(error.to_string()),
            other => Problem::Corrupt(other.to_string()),
        })?;
        let mut keys = self.keys.lock().expect("no panic while held");
        if keys.len() >= MAX_KEYS {
            keys.clear();
        }
        keys.insert(id, (wrapped.clone(), key.clone()));
        Ok(Sealing::Encrypted(key))
    }

    /// The record of the version that was asked for, or of the one that the present set has.
    fn wanted(&self, set: &ArtifactSet<'_>, name: &ArtifactName, version: Option<&str>) -> Result<Record, ArtifactError> {
        let record = match version {
            Some(version) => self.record(name, version),
            None => match set.find(name)? {
                Some(entry) => self.record_of(&entry),
                None => return Err(ArtifactError::NotFound(name.clone())),
            },
        };
        record.map_err(ArtifactError::Finding)
    }

    /// Writes an artifact to a file. Without a version, the one in `set`. The file appears under its
    /// name whole, synced, and verified, or not at all.
    pub fn get_to_file(
        &self,
        set: &ArtifactSet<'_>,
        name: &ArtifactName,
        version: Option<&str>,
        path: &Path,
        replace: Replace,
    ) -> Result<Record, ArtifactError> {
        let fail = |source| ArtifactError::Target { path: path.to_owned(), source };
        let leaf = path.file_name().ok_or_else(|| fail(io::ErrorKind::InvalidFilename.into()))?;
        let occupied = || ArtifactError::Occupied { path: path.to_owned(), problem: "there is something already" };
        if replace == Replace::Never && path.symlink_metadata().is_ok() {
            return Err(occupied());
        }
        let record = self.wanted(set, name, version)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = beneath::open_root(parent).map_err(fail)?;
        let temporary = Temporary::new(directory.as_fd()).map_err(fail)?;
        self.fill(&record, &temporary).map_err(|trouble| self.error(&record, trouble, fail))?;
        temporary.file.sync_all().map_err(fail)?;
        temporary.place(leaf.as_bytes(), replace == Replace::Allowed).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => occupied(),
            _ => fail(error),
        })?;
        rustix::fs::fsync(&directory).map_err(|e| fail(e.into()))?;
        Ok(record)
    }

    /// Writes an artifact to a pipe or the like. Without a version, the one in `set`. Nothing is written
    /// before all of it was verified: what does not fit into memory is read twice.
    pub fn get_to_writer(
        &self,
        set: &ArtifactSet<'_>,
        name: &ArtifactName,
        version: Option<&str>,
        out: &mut dyn Write,
    ) -> Result<Record, ArtifactError> {
        let fail = |source| ArtifactError::Target { path: name.as_str().into(), source };
        let record = self.wanted(set, name, version)?;
        let mut memory = Vec::new();
        let small = record.bytes <= SMALL_BYTES;
        let opened = self.in_any_copy(record.sha256, |store| {
            memory.clear();
            let mut keep = |part: &[u8]| {
                if small {
                    memory.extend_from_slice(part);
                }
                Ok(())
            };
            self.open(store, record.sha256, record.bytes, &mut keep)?;
            if small {
                return Ok(());
            }
            // What was written cannot be taken back: from here on trouble is that of the pipe.
            let again = self.open(store, record.sha256, record.bytes, &mut |part| out.write_all(part));
            again.map_err(|trouble| match trouble {
                Trouble::Problem(problem) => Trouble::Sink(io::Error::other(format!("it changed while it was read: {problem}"))),
                sink => sink,
            })
        });
        opened.map_err(|trouble| self.error(&record, trouble, fail))?;
        if small {
            out.write_all(&memory).map_err(fail)?;
        }
        out.flush().map_err(fail)?;
        Ok(record)
    }

    /// Bytes, permissions and time of change into a temporary file.
    pub(super) fn fill(&self, record: &Record, temporary: &Temporary<'_>) -> Result<(), Trouble> {
        let mut file: &File = &temporary.file;
        self.in_any_copy(record.sha256, |store| {
            file.seek(SeekFrom::Start(0)).and_then(|_| file.set_len(0)).map_err(Trouble::Sink)?;
            self.open(store, record.sha256, record.bytes, &mut |part| file.write_all(part))
        })?;
        temporary.set_meta(record.mode, record.modified).map_err(Trouble::Sink)
    }

    fn error(&self, record: &Record, trouble: Trouble, sink: impl FnOnce(io::Error) -> ArtifactError) -> ArtifactError {
        match trouble {
            Trouble::Problem(problem) => ArtifactError::Finding(blob_finding(&record.name, record.sha256, problem)),
            Trouble::Sink(error) => sink(error),
        }
    }
}

/// What is wrong with a copy, if another one may be better.
pub(super) fn damage(problem: &Problem) -> Option<String> {
    match problem {
        Problem::Missing | Problem::Corrupt(_) | Problem::Unsigned(_) | Problem::BadSignature(_) => Some(problem.to_string()),
        Problem::Locked(_) | Problem::NotChecked(_) | Problem::NotRestored(_) => None,
    }
}

/// A problem with the bytes of an artifact.
pub(super) fn blob_finding(name: &ArtifactName, sha256: Sha256, problem: Problem) -> Finding {
    Finding { name: Some(name.clone()), object: layout::artifact_blob(sha256).to_string(), problem }
}

/// A sealed object with at most `plain` bytes in it, in one read.
fn small_blob(store: &dyn Store, key: &Key, plain: u64) -> Result<Vec<u8>, Problem> {
    let frames = plain / lifeboat_core::repository::sealed::CONTENT_BYTES as u64 + 2;
    let limit = 12 + MAX_HEADER_BYTES as u64 + frames * (4 + MAX_FRAME_BYTES as u64) + TRAILER_BYTES as u64;
    store.get(key, limit).map_err(|e| problem_of(&e))
}

/// Checks header and trailer of a blob without its key: finds damage, not malice. `plain` is how many
/// bytes are in it. Returns the header.
pub(super) fn check_blob(store: &dyn Store, sha256: Sha256, plain: u64) -> Result<Header, Problem> {
    let key = layout::artifact_blob(sha256);
    let corrupt = |error: &dyn std::error::Error| Problem::Corrupt(error.to_string());
    if plain <= SMALL_BYTES {
        let bytes = small_blob(store, &key, plain)?;
        return crate::seal::check_object(&bytes, key.as_str()).map_err(|e| corrupt(&e));
    }
    let mut reader = StoreReader::open(store, &key).map_err(|e| problem_of(&e))?;
    let Some(end) = reader.length.checked_sub(TRAILER_BYTES as u64) else {
        return Err(Problem::Corrupt("shorter than its trailer".into()));
    };
    let mut hasher = blake3::Hasher::new();
    let mut header = None;
    let mut trailer = Vec::with_capacity(TRAILER_BYTES);
    let mut at = 0;
    loop {
        let part = match reader.next_range() {
            Ok(Some(part)) => part,
            Ok(None) => break,
            Err(error) => return Err(problem_of(&error)),
        };
        if header.is_none() {
            let parts = lifeboat_core::repository::sealed::decode_start(part, key.as_str()).map_err(|e| corrupt(&e))?;
            header = Some(parts.header);
        }
        let content = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(part.len());
        hasher.update(&part[..content]);
        trailer.extend_from_slice(&part[content..]);
        at += part.len() as u64;
    }
    match header {
        Some(header) if trailer == hasher.finalize().as_bytes() => Ok(header),
        _ => Err(Problem::Corrupt("the trailer is another".into())),
    }
}
