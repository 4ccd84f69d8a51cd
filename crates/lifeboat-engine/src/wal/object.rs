//! One WAL file as an object: sealed, signed, created once (format 10).
//!
//! Writers never overwrite: what is there already is compared by its signed digest. Readers give out bytes before the last of them is
//! checked, because a segment may be larger than memory: callers write them under a name that nobody reads, and rename only after
//! [`WalReader::read`] came back without an error.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::attestation::{Statement, StatementError};
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::sealed::{self, Header};
use lifeboat_core::repository::{FormatError, Id, Sha256, Suite};
use lifeboat_core::wal::file::{WAL_PREDICATE_TYPE, WalCluster, WalFile, WalPredicate};
use lifeboat_core::wal::history::HistoryError;
use lifeboat_core::wal::receive::Position;
use lifeboat_core::wal::{SegmentError, SystemId, Timeline};

use super::Cluster;
use super::digests::{Care, Comparing, Digests};
use crate::backup::Protection;
use crate::keys::{self, Identities, KeyError};
use crate::repository::Repository;
use crate::seal::{DataKey, ObjectOpener, ObjectSealer, OpenError, Sealing};
use crate::signing::{SignError, SignedBy, Signer, Trust, VerifyError};
use crate::store::stream::{StoreReader, StoreWrite};
use crate::store::{Store, StoreError, first_good, read_range};

/// How long one data key is used (format 4: a new one every day).
const KEY_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// What is read of an object to see its header; ours have about 3 KiB.
const HEAD_BYTES: u64 = 8 << 10;

/// Up to what a file is read in one request where requests cost a round trip: a segment of the usual size. It is in memory then, once for
/// each segment that is on its way.
const AT_ONCE_BYTES: u64 = 17 << 20;

/// Unwrapped data keys that are kept: pushes have one each.
const MAX_KEYS: usize = 1024;

/// Why a WAL file was not stored or did not come back.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The store failed, or does not have it ([`StoreError::NotFound`]).
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The name is taken by other bytes (c049).
    #[error("store {file}: the repository has another file of that name: {how}")]
    Conflict {
        /// The file.
        file: String,
        /// Which digest differs.
        how: String,
    },
    /// The WAL in the repository is of another kind.
    #[error("store WAL of cluster {system_id}: {problem}")]
    OtherCluster {
        /// The cluster.
        system_id: SystemId,
        /// How they differ.
        problem: String,
    },
    /// Its signature proves nothing.
    #[error("verify {key}")]
    Unverified {
        /// The object.
        key: String,
        /// Why.
        #[source]
        source: VerifyError,
    },
    /// It is not what was written.
    #[error("open {key}: {problem}")]
    Damaged {
        /// The object.
        key: String,
        /// How.
        problem: String,
    },
    /// No identity at hand opens it.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It could not be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The statement about it would not be readable.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// It is not the segment that its name says.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// It is not the history file that its name says.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The file changed between reading it to sign it and reading it to store it.
    #[error("store {file}: it changed while it was read")]
    Changed {
        /// The file.
        file: String,
    },
    /// A file here could not be read or written.
    #[error("{action} {path}")]
    File {
        /// What was done.
        action: &'static str,
        /// To what.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl WalError {
    /// Whether the object is simply not there.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Store(StoreError::NotFound { .. }))
    }

    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }

    /// What is wrong with a copy, if that is why it cannot be used: then another may be good.
    pub(super) fn damage(&self) -> Option<String> {
        match self {
            Self::Damaged { problem, .. } => Some(problem.clone()),
            Self::Unverified { source, .. } => Some(crate::causes::joined(source)),
            Self::Store(error @ StoreError::Short { .. }) => Some(error.to_string()),
            _ => None,
        }
    }

    fn damaged(key: &Key, problem: impl std::fmt::Display) -> Self {
        Self::Damaged { key: key.to_string(), problem: problem.to_string() }
    }
}

/// What became of a file that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was created, with so many bytes as an object.
    Created(u64),
    /// It was there, with the same bytes.
    Same,
}

/// The key that objects are sealed with now, and how it travels.
struct Current {
    sealing: Sealing,
    wrapped: Option<String>,
    since: Instant,
}

/// Stores WAL files. Shared by threads.
pub struct WalWriter<'a> {
    repository: &'a Repository,
    cluster: Cluster,
    signer: &'a dyn Signer,
    trust: &'a Trust,
    protection: &'a Protection,
    level: i32,
    current: Mutex<Option<Current>>,
}

impl<'a> WalWriter<'a> {
    /// A writer of one cluster's WAL. `trust` is whose files of the same name count as the same; it should know `signer`'s key.
    /// `level` is zstd's.
    pub fn new(
        repository: &'a Repository,
        cluster: Cluster,
        signer: &'a dyn Signer,
        trust: &'a Trust,
        protection: &'a Protection,
        level: i32,
    ) -> Self {
        Self { repository, cluster, signer, trust, protection, level, current: Mutex::default() }
    }

    /// Says in the repository what its WAL is of, or compares with what it says: another segment size or major version under the same
    /// system identifier is refused. `begins`: nothing before it is about to be stored.
    pub fn claim_cluster(&self, page_magic: u16, begins: Option<Position>, now: jiff::Timestamp, program: &str) -> Result<(), WalError> {
        let Cluster { system_id, segment_size } = self.cluster;
        let ours = WalCluster { format: 1, system_id, segment_size, page_magic, created: now, created_by: program.to_owned(), begins };
        let theirs = match super::cluster(self.repository, system_id)? {
            Some(theirs) => theirs,
            None => {
                // What is there already was written before somebody lost the description: then nobody knows where it began.
                let there = self.repository.store().list_segments(&layout::wal_of(system_id))?;
                let is_new = !there.iter().any(|name| name.ends_with('/'));
                let ours = WalCluster { begins: begins.filter(|_| is_new), ..ours.clone() };
                let bytes = serde_json::to_vec(&ours).expect("a descriptor has text keys only");
                match self.repository.store().create(&layout::wal_cluster(system_id), &bytes) {
                    Ok(()) => return Ok(()),
                    // Somebody was faster.
                    Err(StoreError::Exists { .. }) => super::cluster(self.repository, system_id)?.unwrap_or(ours),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let differs = |problem| Err(WalError::OtherCluster { system_id, problem });
        if theirs.segment_size != segment_size {
            return differs(format!("segments have {} bytes, those of the archive {}", segment_size.bytes(), theirs.segment_size.bytes()));
        }
        if theirs.page_magic != page_magic {
            return differs(format!(
                "pages have magic {page_magic:#06X}, those of the archive {:#06X}: another major version",
                theirs.page_magic
            ));
        }
        Ok(())
    }

    fn sealing(&self) -> Result<(Sealing, Option<String>), WalError> {
        let recipients = match self.protection {
            Protection::Plain => return Ok((Sealing::Plain, None)),
            Protection::Recipients { recipients, .. } => recipients,
        };
        let mut current = self.current.lock().expect("no panic while held");
        if current.as_ref().is_none_or(|current| current.since.elapsed() > KEY_LIFE) {
            let key = DataKey::generate();
            let wrapped = keys::wrap(&key, recipients)?;
            *current = Some(Current { sealing: Sealing::Encrypted(key), wrapped: Some(wrapped), since: Instant::now() });
        }
        let current = current.as_ref().expect("set above");
        Ok((current.sealing.clone(), current.wrapped.clone()))
    }

    /// What is there under a file's name already, compared with `digests`: with each that is signed there, as it may be read by either.
    pub(super) fn compare(&self, file: WalFile, digests: Digests) -> Result<Option<Put>, WalError> {
        match head(self.repository.store(), self.cluster, self.trust, file) {
            Ok(head) if head.sha256 == digests.sha256 && head.predicate.blake3.is_none_or(|theirs| theirs == digests.blake3) => {
                // Whoever hears this lets go of the file.
                self.repository.store().make_durable(&file.key(self.cluster.system_id, self.cluster.segment_size))?;
                Ok(Some(Put::Same))
            }
            Ok(head) => {
                let how = match head.predicate.blake3 {
                    Some(theirs) if head.sha256 == digests.sha256 => {
                        format!("BLAKE3 {theirs}, this one has {}, and the same SHA-256", digests.blake3)
                    }
                    _ => format!("SHA-256 {}, this one has {}", head.sha256, digests.sha256),
                };
                Err(WalError::Conflict { file: file.file_name(self.cluster.segment_size), how })
            }
            Err(error) if error.is_absence() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores a file whose digests are known and whose bytes `content` gives. When it returns, the object is durable.
    ///
    /// # Errors
    ///
    /// [`WalError::Conflict`] where other bytes have the name; [`WalError::Changed`] where `content` does not have the digests: then
    /// nothing was stored.
    pub fn put(&self, file: WalFile, digests: Digests, predicate: &WalPredicate, content: &mut dyn Read) -> Result<Put, WalError> {
        // Archiver and receiver both bring every segment: ask first, a whole segment is dear.
        if let Some(put) = self.compare(file, digests)? {
            return Ok(put);
        }
        self.create(file, digests, predicate, |sealer| {
            // It is enough that they are the same bytes as before.
            let mut hasher = blake3::Hasher::new();
            let mut copied = 0u64;
            let mut buffer = vec![0; sealed::CONTENT_BYTES];
            loop {
                let length = match content.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                copied += length as u64;
                if copied > predicate.bytes {
                    return Ok(false);
                }
                hasher.update(&buffer[..length]);
                sealer.write_all(&buffer[..length])?;
            }
            Ok(copied == predicate.bytes && *hasher.finalize().as_bytes() == digests.blake3.0)
        })
    }

    /// Stores a file that [`Self::compare`] did not find, out of memory. `digests` are what the caller made of these very `bytes`: they are not
    /// hashed again. `go_on` is asked before every part; where it says no, nothing is stored and the error is of kind `TimedOut`.
    pub(super) fn put_compared(
        &self,
        file: WalFile,
        digests: Digests,
        predicate: &WalPredicate,
        bytes: &[u8],
        go_on: &dyn Fn() -> bool,
    ) -> Result<Put, WalError> {
        self.create(file, digests, predicate, |sealer| {
            for part in bytes.chunks(sealed::CONTENT_BYTES) {
                if !go_on() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                sealer.write_all(part)?;
            }
            Ok(bytes.len() as u64 == predicate.bytes)
        })
    }

    /// Creates the object; `feed` gives its bytes, and says whether they were those that are signed.
    fn create(
        &self,
        file: WalFile,
        digests: Digests,
        predicate: &WalPredicate,
        feed: impl FnOnce(&mut dyn Write) -> io::Result<bool>,
    ) -> Result<Put, WalError> {
        let Cluster { system_id, segment_size } = self.cluster;
        let name = || file.file_name(segment_size);
        let key = file.key(system_id, segment_size);
        let signed = Timestamp::from_second(Timestamp::now().as_second()).ok();
        let said = WalPredicate { signed, blake3: Some(digests.blake3), ..predicate.clone() };
        let predicate_value = serde_json::to_value(said).expect("a predicate has text keys only");
        let statement = Statement::new(&file.subject(system_id, segment_size), digests.sha256.0, WAL_PREDICATE_TYPE, predicate_value);
        let bundle = self.signer.sign_statement(&statement.to_bytes())?;
        let bundle = serde_json::from_str(&bundle).map_err(|e| SignError::Signer(format!("its bundle is no JSON: {e}")))?;
        let (sealing, wrapped) = self.sealing()?;

        let mut out = StoreWrite { writer: self.repository.store().writer_for(&key, predicate.bytes)?, failed: None };
        let seal = || -> io::Result<Option<u64>> {
            let mut sealer = ObjectSealer::signed(&mut out, key.as_str(), &sealing, wrapped, Some(bundle), self.level)?;
            if !feed(&mut sealer)? {
                return Ok(None);
            }
            Ok(Some(sealer.finish()?.1))
        };
        let sealed = seal();
        if let Some(error) = out.failed {
            return Err(error.into());
        }
        let stored = sealed.map_err(|source| WalError::File { action: "read", path: name(), source })?;
        let Some(stored) = stored else {
            return Err(WalError::Changed { file: name() });
        };
        match out.writer.commit(&key) {
            Ok(()) => Ok(Put::Created(stored)),
            Err(StoreError::Exists { .. }) => match self.compare(file, digests)? {
                Some(put) => Ok(put),
                None => Err(StoreError::Exists { key: key.to_string() }.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Stores a timeline history file.
    pub fn put_history(&self, timeline: Timeline, bytes: &[u8]) -> Result<Put, WalError> {
        let predicate = WalPredicate::of_history(timeline, bytes, self.cluster.segment_size)?;
        self.put_bytes(WalFile::History(timeline), &predicate, bytes)
    }

    /// Stores a small file out of memory: pieces, backup history files.
    pub fn put_bytes(&self, file: WalFile, predicate: &WalPredicate, bytes: &[u8]) -> Result<Put, WalError> {
        self.put(file, Digests::of(bytes), predicate, &mut &*bytes)
    }
}

/// What is signed about a WAL file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalHead {
    /// Digest of its plain bytes.
    pub sha256: Sha256,
    /// The rest.
    pub predicate: WalPredicate,
    /// Who signed.
    pub signed_by: SignedBy,
}

/// Reads WAL files of one cluster. Shared by threads.
pub struct WalReader<'a> {
    repository: &'a Repository,
    cluster: Cluster,
    trust: &'a Trust,
    identities: Identities,
    keys: Mutex<HashMap<Id, (String, DataKey)>>,
}

impl<'a> WalReader<'a> {
    /// A reader that believes what `trust` believes. Without identities only what was not encrypted can be opened.
    pub fn new(repository: &'a Repository, cluster: Cluster, trust: &'a Trust, identities: Identities) -> Self {
        Self { repository, cluster, trust, identities, keys: Mutex::default() }
    }

    /// Whose WAL it reads.
    pub fn cluster(&self) -> Cluster {
        self.cluster
    }

    /// Where it reads.
    pub fn repository(&self) -> &'a Repository {
        self.repository
    }

    /// What is signed about a file, without its bytes.
    pub fn head(&self, file: WalFile) -> Result<WalHead, WalError> {
        head(self.repository.store(), self.cluster, self.trust, file)
    }

    /// Whether the identities at hand open a file: signature and key, without its bytes.
    pub fn check_opens(&self, file: WalFile) -> Result<(), WalError> {
        let key = file.key(self.cluster.system_id, self.cluster.segment_size);
        self.in_any_copy(
            file,
            |store| {
                let input = StoreReader::open(store, &key)?;
                let opener = ObjectOpener::new(input, key.as_str()).map_err(|e| WalError::damaged(&key, e))?;
                check_header(opener.header(), self.cluster, self.trust, file, &key)?;
                self.sealing(opener.header(), &key).map(drop)
            },
            WalError::damage,
        )
    }

    /// Reads a file from the first copy that is good. `read` begins anew with every copy: what a damaged one gave is good for nothing.
    pub(super) fn in_any_copy<T, E>(
        &self,
        file: WalFile,
        read: impl FnMut(&dyn Store) -> Result<T, E>,
        damage: impl Fn(&E) -> Option<String>,
    ) -> Result<T, E> {
        first_good(self.repository.store(), &file.key(self.cluster.system_id, self.cluster.segment_size), read, damage)
    }

    /// Gives the plain bytes of a file to `out`, in order. They are good only if this returns `Ok`: then signature, every frame, length and
    /// a signed digest were right. Only one copy is looked at: what `out` took of a damaged one cannot be taken back here.
    pub fn read(&self, file: WalFile, out: &mut dyn Write) -> Result<WalHead, WalError> {
        self.read_copy(self.repository.store(), file, out)
    }

    /// The same of the copy in one store.
    pub(super) fn read_copy(&self, store: &dyn Store, file: WalFile, out: &mut dyn Write) -> Result<WalHead, WalError> {
        self.pass(store, file, out, Care::One)
    }

    /// Reads a file for what may be wrong with it: all that [`Self::read`] looks at, and each digest that is signed.
    pub(super) fn check(&self, file: WalFile) -> Result<(), WalError> {
        self.pass(self.repository.store(), file, &mut io::sink(), Care::All).map(drop)
    }

    fn pass(&self, store: &dyn Store, file: WalFile, out: &mut dyn Write, care: Care) -> Result<WalHead, WalError> {
        let key = file.key(self.cluster.system_id, self.cluster.segment_size);
        // Longer than its plain bytes only where they cannot be compressed, and by its header.
        let whole = self.cluster.segment_size.bytes().saturating_add(HEAD_BYTES);
        let mut input = match file {
            // To ask for it, and to hear that it is too long, would cost the connection.
            WalFile::Segment(_) | WalFile::Partial(_) if whole > AT_ONCE_BYTES => StoreReader::open(store, &key)?,
            _ => StoreReader::open_at_once(store, &key, whole.min(AT_ONCE_BYTES))?,
        };
        let result = self.copy(file, &key, &mut input, out, care);
        // What the store said is better than what became of it on the way.
        match input.failed {
            Some(error) => Err(error.into()),
            None => result,
        }
    }

    fn copy(&self, file: WalFile, key: &Key, input: &mut StoreReader<'_>, out: &mut dyn Write, care: Care) -> Result<WalHead, WalError> {
        let mut opener = ObjectOpener::new(input, key.as_str()).map_err(|e| WalError::damaged(key, e))?;
        let head = check_header(opener.header(), self.cluster, self.trust, file, key)?;
        let sealing = self.sealing(opener.header(), key)?;
        opener.unlock(&sealing).map_err(|e| WalError::damaged(key, e))?;
        let mut comparing = Comparing::new(head.sha256, &head.predicate, care);
        let mut length = 0u64;
        while let Some(part) = opener.next().map_err(|e: OpenError| WalError::damaged(key, e))? {
            length += part.len() as u64;
            if length > head.predicate.bytes {
                break;
            }
            comparing.update(part);
            out.write_all(part).map_err(|source| WalError::File {
                action: "write",
                path: file.file_name(self.cluster.segment_size),
                source,
            })?;
        }
        if length != head.predicate.bytes || !comparing.matches() {
            return Err(WalError::damaged(key, "what came out is not what was signed"));
        }
        Ok(head)
    }

    /// The bytes of a small file.
    pub fn read_bytes(&self, file: WalFile, limit: u64) -> Result<Vec<u8>, WalError> {
        let head = self.head(file)?;
        if head.predicate.bytes > limit {
            let key = file.key(self.cluster.system_id, self.cluster.segment_size);
            return Err(WalError::damaged(&key, format!("{} bytes, more than {limit}", head.predicate.bytes)));
        }
        self.in_any_copy(
            file,
            |store| {
                let mut bytes = Vec::new();
                self.read_copy(store, file, &mut bytes)?;
                Ok(bytes)
            },
            WalError::damage,
        )
    }

    fn sealing(&self, header: &Header, key: &Key) -> Result<Sealing, WalError> {
        let (id, wrapped) = match (header.suite, header.key, &header.wrapped) {
            // Not encrypted is no danger to who reads it: its digest is signed.
            (Suite::None, ..) => return Ok(Sealing::Plain),
            (Suite::Aes256Gcm, Some(id), Some(wrapped)) => (id, wrapped),
            _ => return Err(WalError::damaged(key, "its header has no wrapped key")),
        };
        if let Some((known, data_key)) = self.keys.lock().expect("no panic while held").get(&id)
            && known == wrapped
        {
            return Ok(Sealing::Encrypted(data_key.clone()));
        }
        let data_key = self.identities.unwrap(id, wrapped)?;
        let mut keys = self.keys.lock().expect("no panic while held");
        if keys.len() >= MAX_KEYS {
            keys.clear();
        }
        keys.insert(id, (wrapped.clone(), data_key.clone()));
        Ok(Sealing::Encrypted(data_key))
    }
}

/// Reads and verifies the header of a file.
fn head(store: &dyn Store, cluster: Cluster, trust: &Trust, file: WalFile) -> Result<WalHead, WalError> {
    let key = file.key(cluster.system_id, cluster.segment_size);
    first_good(store, &key, |store| head_from(store, cluster, trust, file), WalError::damage)
}

fn head_from(store: &dyn Store, cluster: Cluster, trust: &Trust, file: WalFile) -> Result<WalHead, WalError> {
    let key = file.key(cluster.system_id, cluster.segment_size);
    let malformed = |e: FormatError| WalError::damaged(&key, e);
    let length = store.length(&key)?;
    let mut bytes = Vec::new();
    read_range(store, &key, 0..length.min(HEAD_BYTES), &mut bytes)?;
    let start = bytes.first_chunk().ok_or_else(|| WalError::damaged(&key, format!("{length} bytes, shorter than its start")))?;
    let needed = 12 + sealed::decode_header_length(start).map_err(malformed)? as u64;
    if needed > HEAD_BYTES && needed <= length {
        read_range(store, &key, 0..needed, &mut bytes)?;
    }
    let parts = sealed::decode_start(&bytes, key.as_str()).map_err(malformed)?;
    check_header(&parts.header, cluster, trust, file, &key)
}

fn check_header(header: &Header, cluster: Cluster, trust: &Trust, file: WalFile, key: &Key) -> Result<WalHead, WalError> {
    let bundle = header.bundle.as_ref().ok_or_else(|| WalError::damaged(key, "it has no signature"))?;
    let bundle = serde_json::to_vec(bundle).expect("what was read as JSON is written as JSON");
    let subject = file.subject(cluster.system_id, cluster.segment_size);
    let (verified, digest) =
        trust.claim(&bundle, WAL_PREDICATE_TYPE, &subject).map_err(|source| WalError::Unverified { key: key.to_string(), source })?;
    let predicate: WalPredicate = serde_json::from_value(verified.statement.predicate)
        .map_err(|e| WalError::damaged(key, format!("its statement cannot be read: {e}")))?;
    if predicate.segment_size != cluster.segment_size {
        return Err(WalError::damaged(key, format!("it is of segments of {} bytes", predicate.segment_size.bytes())));
    }
    Ok(WalHead { sha256: Sha256(digest), predicate, signed_by: verified.signer })
}

#[cfg(test)]
mod tests {
    use lifeboat_core::wal::{Lsn, Segment, SegmentSize};

    use super::*;
    use crate::signing::{KeyFileSigner, SigningKey};
    use crate::store::MemoryStore;

    struct Place {
        repository: Repository,
        signer: KeyFileSigner,
        trust: Trust,
        protection: Protection,
        identity: String,
    }

    const CLUSTER: Cluster = Cluster { system_id: SystemId(7), segment_size: SegmentSize::DEFAULT };

    impl Place {
        fn new() -> Self {
            let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
            let trust = Trust::new([signer.public_key().clone()]);
            let (identity, recipient) = keys::generate_identity(Timestamp::UNIX_EPOCH);
            let repository = Repository::init(Box::new(MemoryStore::default()), Timestamp::UNIX_EPOCH, "test").unwrap();
            let protection = Protection::Recipients { recipients: vec![recipient], host: None };
            Self { repository, signer, trust, protection, identity: identity.to_string() }
        }

        fn writer(&self) -> WalWriter<'_> {
            WalWriter::new(&self.repository, CLUSTER, &self.signer, &self.trust, &self.protection, 1)
        }

        fn reader(&self) -> WalReader<'_> {
            WalReader::new(&self.repository, CLUSTER, &self.trust, Identities::parse(&self.identity).unwrap())
        }
    }

    fn file(number: u64) -> WalFile {
        WalFile::Segment(Segment { timeline: Timeline(1), number })
    }

    fn predicate(bytes: u64) -> WalPredicate {
        WalPredicate { page_magic: Some(0xD110), ..WalPredicate::new(bytes, SegmentSize::DEFAULT) }
    }

    #[test]
    fn what_is_put_comes_back_with_what_was_signed() {
        let place = Place::new();
        let plain: Vec<u8> = (0..700_000).map(|at| (at / 3) as u8).collect();
        assert!(matches!(place.writer().put_bytes(file(3), &predicate(700_000), &plain).unwrap(), Put::Created(_)));
        let mut out = Vec::new();
        let head = place.reader().read(file(3), &mut out).unwrap();
        assert_eq!(out, plain);
        assert_eq!(head, place.reader().head(file(3)).unwrap());
        assert!(head.predicate.signed.is_some());
        let digests = Digests::of(&plain);
        assert_eq!((head.sha256, head.predicate.blake3), (digests.sha256, Some(digests.blake3)));
        assert_eq!(WalPredicate { signed: None, blake3: None, ..head.predicate }, predicate(700_000));
        assert!(place.reader().head(file(4)).unwrap_err().is_absence());
    }

    #[test]
    fn c049_the_same_bytes_are_success_and_others_never_overwrite() {
        let place = Place::new();
        let plain = vec![1; 1000];
        place.writer().put_bytes(file(3), &predicate(1000), &plain).unwrap();
        // By another run, under another data key.
        assert_eq!(place.writer().put_bytes(file(3), &predicate(1000), &plain).unwrap(), Put::Same);
        let other = place.writer().put_bytes(file(3), &predicate(1000), &[2; 1000]);
        assert!(matches!(other, Err(WalError::Conflict { .. })), "{other:?}");
        assert_eq!(place.reader().read_bytes(file(3), 1000).unwrap(), plain);
    }

    #[test]
    fn c049_a_file_is_the_same_by_each_digest_that_is_signed() {
        let place = Place::new();
        let (plain, other) = (vec![1; 1000], vec![2; 1000]);
        let (ours, theirs) = (Digests::of(&plain), Digests::of(&other));
        let put = |number, digests| place.writer().put_compared(file(number), digests, &predicate(1000), &plain, &|| true);
        // By a writer that signed digests of two files.
        put(3, Digests { blake3: theirs.blake3, ..ours }).unwrap();
        put(4, Digests { sha256: theirs.sha256, ..ours }).unwrap();
        for number in [3, 4] {
            let error = place.writer().put_bytes(file(number), &predicate(1000), &plain).unwrap_err();
            assert!(matches!(error, WalError::Conflict { .. }), "{error}");
            assert!(
                error.to_string().contains(if number == 3 { "and the same SHA-256" } else { "another file of that name: SHA-256" }),
                "{error}"
            );
            assert!(matches!(place.reader().check(file(number)), Err(WalError::Damaged { .. })));
        }
        assert!(place.reader().read_bytes(file(3), 1000).is_err(), "it is read by BLAKE3");
        assert_eq!(place.reader().read_bytes(file(4), 1000).unwrap(), plain);
        put(5, ours).unwrap();
        place.reader().check(file(5)).unwrap();
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_not_stored() {
        let place = Place::new();
        for content in [&[2u8; 1000][..], &[1; 999], &[1; 1001]] {
            let put = place.writer().put(file(3), Digests::of(&[1; 1000]), &predicate(1000), &mut &*content);
            assert!(matches!(put, Err(WalError::Changed { .. })), "{put:?}");
            assert!(place.reader().head(file(3)).unwrap_err().is_absence());
        }
    }

    #[test]
    fn what_was_compared_is_stored_out_of_memory_or_not_at_all() {
        let place = Place::new();
        let plain: Vec<u8> = (0..700_000).map(|at| (at / 3) as u8).collect();
        let put = |bytes: &[u8], parts| {
            let left = std::cell::Cell::new(parts);
            place.writer().put_compared(file(3), Digests::of(&plain), &predicate(700_000), bytes, &|| left.replace(left.get() - 1) > 0)
        };
        let given_up = put(&plain, 2);
        assert!(matches!(&given_up, Err(WalError::File { source, .. }) if source.kind() == io::ErrorKind::TimedOut), "{given_up:?}");
        assert!(matches!(put(&plain[1..], 9), Err(WalError::Changed { .. })));
        assert!(place.reader().head(file(3)).unwrap_err().is_absence());
        assert!(matches!(put(&plain, 9).unwrap(), Put::Created(_)));
        assert_eq!(place.reader().read_bytes(file(3), 700_000).unwrap(), plain);
        // Somebody was faster.
        assert_eq!(put(&plain, 9).unwrap(), Put::Same);
    }

    #[test]
    fn damage_and_other_signers_are_told_apart() {
        let place = Place::new();
        place.writer().put_bytes(file(3), &predicate(50), &[7; 50]).unwrap();
        let key = file(3).key(CLUSTER.system_id, CLUSTER.segment_size);
        let good = place.repository.store().get(&key, 1 << 20).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            let damaged = Place { repository: Place::new().repository, ..place_like(&place) };
            damaged.repository.store().create(&key, &bytes).unwrap();
            assert!(damaged.reader().read_bytes(file(3), 100).is_err(), "byte {at}");
        }
        for length in 0..good.len() {
            let damaged = Place { repository: Place::new().repository, ..place_like(&place) };
            damaged.repository.store().create(&key, &good[..length]).unwrap();
            assert!(damaged.reader().read_bytes(file(3), 100).is_err(), "{length} bytes");
        }
        // The object of one name under another.
        let swapped = Place { repository: Place::new().repository, ..place_like(&place) };
        swapped.repository.store().create(&file(4).key(CLUSTER.system_id, CLUSTER.segment_size), &good).unwrap();
        assert!(matches!(swapped.reader().head(file(4)), Err(WalError::Damaged { .. })));
        let stranger = Place { repository: Place::new().repository, ..Place::new() };
        stranger.repository.store().create(&key, &good).unwrap();
        assert!(matches!(stranger.reader().head(file(3)), Err(WalError::Unverified { .. })));
    }

    fn place_like(place: &Place) -> Place {
        let other = Place::new();
        Place { trust: place.trust.clone(), identity: place.identity.clone(), ..other }
    }

    #[test]
    fn c052_another_segment_size_or_version_under_one_system_identifier_is_refused() {
        let place = Place::new();
        let claim = |size, magic| {
            let cluster = Cluster { segment_size: SegmentSize::new(size).unwrap(), ..CLUSTER };
            WalWriter::new(&place.repository, cluster, &place.signer, &place.trust, &place.protection, 1).claim_cluster(
                magic,
                Some(BEGINS),
                Timestamp::UNIX_EPOCH,
                "test",
            )
        };
        claim(16 << 20, 0xD110).unwrap();
        let described = || super::super::cluster(&place.repository, SystemId(7)).unwrap().unwrap();
        assert_eq!(described().begins, Some(BEGINS));
        claim(16 << 20, 0xD110).unwrap();
        assert!(matches!(claim(1 << 20, 0xD110), Err(WalError::OtherCluster { .. })));
        assert!(matches!(claim(16 << 20, 0xD113), Err(WalError::OtherCluster { .. })));
        assert_eq!(super::super::clusters(&place.repository).unwrap(), [SystemId(7)]);
        // A rule of the bucket took it with the oldest segments: where the archive began nobody knows any more.
        place.writer().put_bytes(file(4), &predicate(50), &[7; 50]).unwrap();
        place.repository.store().delete(&layout::wal_cluster(SystemId(7))).unwrap();
        claim(16 << 20, 0xD110).unwrap();
        assert_eq!(described().begins, None);
    }

    const BEGINS: Position = Position { timeline: Timeline(1), lsn: Lsn(3 << 24) };
}
