//! Audit keys: who writes into a log, and whose records count.
//!
//! Ed25519, in the text forms of C2SP's signed notes (<https://c2sp.org/signed-note>), because checkpoints of transparency logs are
//! signed so. Not encrypted: a record is made at every operation, also of a timer, so that the password would stand beside the key;
//! what a thief can do with it ends at the size at which the key is retired (docs/decisions/0017).

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lifeboat_core::audit::{MAX_RECORD_BYTES, Place, Record};
use lifeboat_core::repository::Id;
use lifeboat_core::verify::FindingKind;
use signed_note::{Note, Signature, StandardSigner, StandardVerifier, VerificationError};
use tlog_tiles::Hash;
use zeroize::Zeroizing;

/// The number of Ed25519 in signed notes.
const ED25519: u8 = 1;

/// The most bytes of a record with its signature: 16 bits count them in an entry bundle.
pub(super) const MAX_LEAF_BYTES: u64 = 65_535;

/// The most bytes of a checkpoint that are read: ours have some 250; others' witnesses may add signatures.
pub const MAX_CHECKPOINT_BYTES: u64 = 64 << 10;

/// The name of a repository's log: its origin, and the name in every signature.
pub fn origin(repository: Id) -> String {
    format!("lifeboat.dev/audit/{repository}")
}

/// Text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditKeyError {
    /// Not a private key.
    #[error("read audit key: it is not PRIVATE+KEY+name+hash+base64 with an Ed25519 key")]
    Private,
    /// Not a public key.
    #[error("read audit key {0:?}: it is not name+hash+base64 with an Ed25519 key")]
    Public(String),
}

/// The public half of an audit key: `name+hash+base64`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VerifierKey {
    name: String,
    public: [u8; 32],
}

impl VerifierKey {
    /// What people call whoever has the key: a host, mostly.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn encoded(&self) -> [u8; 33] {
        let mut encoded = [ED25519; 33];
        encoded[1..].copy_from_slice(&self.public);
        encoded
    }

    /// The same key under the name of a log.
    fn named(&self, name: &str) -> String {
        let encoded = self.encoded();
        format!("{name}+{:08x}+{}", signed_note::key_id(name, &encoded), STANDARD.encode(encoded))
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.named(&self.name))
    }
}

impl FromStr for VerifierKey {
    type Err = AuditKeyError;

    fn from_str(text: &str) -> Result<Self, AuditKeyError> {
        let bad = || AuditKeyError::Public(text.chars().take(100).collect());
        StandardVerifier::new(text).map_err(|_| bad())?;
        let (name, rest) = text.split_once('+').ok_or_else(bad)?;
        let (_, key) = rest.split_once('+').ok_or_else(bad)?;
        let key = STANDARD.decode(key).map_err(|_| bad())?;
        Ok(Self { name: name.to_owned(), public: key.get(1..).and_then(|key| key.try_into().ok()).ok_or_else(bad)? })
    }
}

/// A host's own audit key.
pub struct AuditKey {
    seed: Zeroizing<[u8; 32]>,
    verifier: VerifierKey,
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditKey({})", self.verifier)
    }
}

impl AuditKey {
    /// A fresh key for whoever is called so; what a name of a key cannot have is replaced.
    pub fn generate(name: &str) -> Self {
        let name: String = name.chars().map(|c| if c.is_whitespace() || c.is_control() || c == '+' { '-' } else { c }).take(200).collect();
        let name = if name.is_empty() { "host".to_owned() } else { name };
        Self::of(name, Zeroizing::new(crate::random::bytes()))
    }

    fn of(name: String, seed: Zeroizing<[u8; 32]>) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).expect("32 bytes are a seed");
        let public = pair.public_key().as_ref().try_into().expect("a public key has 32 bytes");
        Self { seed, verifier: VerifierKey { name, public } }
    }

    /// A key from the text of its file.
    pub fn parse(text: &str) -> Result<Self, AuditKeyError> {
        let text = text.trim();
        StandardSigner::new(text).map_err(|_| AuditKeyError::Private)?;
        let mut parts = text.splitn(5, '+').skip(2);
        let (Some(name), Some(_), Some(key)) = (parts.next(), parts.next(), parts.next()) else { return Err(AuditKeyError::Private) };
        let key = Zeroizing::new(STANDARD.decode(key).map_err(|_| AuditKeyError::Private)?);
        let seed: [u8; 32] = key.get(1..).and_then(|seed| seed.try_into().ok()).ok_or(AuditKeyError::Private)?;
        Ok(Self::of(name.to_owned(), Zeroizing::new(seed)))
    }

    /// The text of its file: a secret.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut private = Zeroizing::new([ED25519; 33]);
        private[1..].copy_from_slice(&*self.seed);
        let name = &self.verifier.name;
        let hash = signed_note::key_id(name, &self.verifier.encoded());
        let encoded = Zeroizing::new(STANDARD.encode(&*private));
        Zeroizing::new(format!("PRIVATE+KEY+{name}+{hash:08x}+{}\n", &*encoded))
    }

    /// Its public half.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// A signed note of the log `origin`. The same text gives the same bytes: who asks twice finds what they wrote.
    pub(super) fn sign(&self, origin: &str, text: &str) -> Vec<u8> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&*self.seed).expect("32 bytes are a seed");
        let id = signed_note::key_id(origin, &self.verifier.encoded());
        let signature = Signature::new(origin.to_owned(), id, pair.sign(text.as_bytes()).as_ref().to_vec());
        let signature = signature.expect("an origin is a name");
        Note::new(text.as_bytes(), &[signature]).expect("our texts are lines without control characters").to_bytes()
    }
}

/// A key that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    /// The key.
    pub key: VerifierKey,
    /// It was retired when the log had so many records: what it signs behind them does not count. A size and not a time, because a thief writes
    /// whatever time he likes, but cannot put a record before those that others have signed over.
    pub until: Option<u64>,
}

/// What is wrong with a signed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) kind: FindingKind,
    pub(super) problem: String,
}

impl Flaw {
    pub(super) fn new(kind: FindingKind, problem: impl Into<String>) -> Self {
        Self { kind, problem: problem.into() }
    }
}

/// A checkpoint whose signature was verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Records that it is of.
    pub size: u64,
    pub(super) root: Hash,
    /// The signed note, as it is stored.
    pub note: String,
    /// Who signed it.
    pub signed_by: String,
}

/// Whose signatures count in one log.
pub(super) struct Verifiers {
    pub(super) origin: String,
    pub(super) repository: Id,
    /// By the hashes that signatures have.
    keys: HashMap<u32, (TrustedKey, StandardVerifier)>,
}

impl signed_note::Verifiers for Verifiers {
    fn verifier(&self, name: &str, id: u32) -> Result<&dyn signed_note::Verifier, VerificationError> {
        match self.keys.get(&id) {
            Some((_, verifier)) if name == self.origin => Ok(verifier),
            _ => Err(VerificationError::UnknownKey { name: name.to_owned(), id }),
        }
    }
}

impl Verifiers {
    pub(super) fn new(repository: Id, trusted: &[TrustedKey]) -> Self {
        let origin = origin(repository);
        let mut keys: HashMap<u32, (TrustedKey, StandardVerifier)> = HashMap::new();
        for one in trusted {
            match keys.get_mut(&signed_note::key_id(&origin, &one.key.encoded())) {
                // Named twice, it counts for as little as one of both says. (Another key with the same 32 bits does not count at all.)
                Some((known, _)) => known.until = [known.until, one.until].into_iter().flatten().min(),
                None => {
                    let verifier = StandardVerifier::new(&one.key.named(&origin)).expect("it was read as a key");
                    keys.insert(signed_note::Verifier::key_id(&verifier), (one.clone(), verifier));
                }
            }
        }
        Self { origin, repository, keys }
    }

    /// The text of a note, and the keys that signed it. `alone`: it may have no other signature.
    fn open(&self, bytes: &[u8], alone: bool) -> Result<(Note, Vec<&TrustedKey>), Flaw> {
        let note = Note::from_bytes(bytes).map_err(|_| Flaw::new(FindingKind::Corrupt, "it is not a signed note"))?;
        if note.to_bytes() != bytes {
            return Err(Flaw::new(FindingKind::Corrupt, "it is not written as signed notes are"));
        }
        match note.verify(self) {
            // Also not the same one twice: another leaf would be the same record.
            Ok((signatures, _)) if !alone || [note.text(), b"\n", &signatures[0].to_bytes()].concat() == bytes => {
                let keys = signatures.iter().filter_map(|signature| Some(&self.keys.get(&signature.id())?.0)).collect();
                Ok((note, keys))
            }
            Ok(_) => Err(Flaw::new(FindingKind::Corrupt, "it has more than one signature")),
            Err(signed_note::NoteError::InvalidSignature { .. }) => {
                Err(Flaw::new(FindingKind::Unsigned, "its signature is not of these bytes"))
            }
            Err(_) => Err(Flaw::new(FindingKind::Unsigned, "nobody who is trusted here has signed it")),
        }
    }

    /// Verifies the record with this index; who wrote it comes along.
    pub(super) fn record(&self, bytes: &[u8], index: u64) -> Result<(Record, &TrustedKey), Flaw> {
        let (note, keys) = self.open(bytes, true)?;
        let key = keys[0];
        let record = Record::decode(note.text()).map_err(|error| Flaw::new(FindingKind::Corrupt, error.to_string()))?;
        let Place { index: claimed, repository, .. } = record.place;
        if repository != self.repository {
            return Err(Flaw::new(FindingKind::Corrupt, format!("it is a record of repository {repository}")));
        }
        if claimed != index {
            return Err(Flaw::new(FindingKind::Corrupt, format!("it is record {claimed}, in another place")));
        }
        if key.until.is_some_and(|until| index >= until) {
            let problem = format!("it is signed by {}, a key that was retired before", key.key.name);
            return Err(Flaw::new(FindingKind::Unsigned, problem));
        }
        if note.text().len() > MAX_RECORD_BYTES + 1024 {
            return Err(Flaw::new(FindingKind::Corrupt, "it is longer than a record"));
        }
        Ok((record, key))
    }

    /// Verifies a checkpoint of this log.
    pub(super) fn checkpoint(&self, bytes: &[u8]) -> Result<Checkpoint, Flaw> {
        let (note, keys) = self.open(bytes, false)?;
        let malformed = |_| Flaw::new(FindingKind::Corrupt, "it is not a checkpoint");
        let head = tlog_tiles::Checkpoint::from_bytes(note.text()).map_err(malformed)?;
        if head.origin() != self.origin {
            return Err(Flaw::new(FindingKind::Corrupt, format!("it is a checkpoint of {:?}", head.origin())));
        }
        let size = head.size();
        let Some(key) = keys.iter().find(|key| key.until.is_none_or(|until| size <= until)) else {
            let problem = format!("it is signed by {}, a key that was retired before", keys[0].key.name);
            return Err(Flaw::new(FindingKind::Unsigned, problem));
        };
        let note = String::from_utf8(bytes.to_vec()).map_err(|_| Flaw::new(FindingKind::Corrupt, "it is not text"))?;
        Ok(Checkpoint { size, root: *head.hash(), note, signed_by: key.key.name.clone() })
    }
}

/// Signs the head of a log.
pub(super) fn sign_checkpoint(key: &AuditKey, origin: &str, size: u64, root: Hash) -> Vec<u8> {
    let head = tlog_tiles::Checkpoint::new(origin, size, root, "").expect("an origin is not empty");
    let text = String::from_utf8(head.to_bytes()).expect("a checkpoint is text");
    key.sign(origin, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: Id = Id([7; 16]);

    fn verifiers(keys: &[(&AuditKey, Option<u64>)]) -> Verifiers {
        let trusted: Vec<TrustedKey> = keys.iter().map(|(key, until)| TrustedKey { key: key.verifier.clone(), until: *until }).collect();
        Verifiers::new(REPOSITORY, &trusted)
    }

    fn record(index: u64, repository: Id) -> String {
        format!("{{\"id\":\"{}\",\"index\":{index},\"repository\":\"{repository}\"}}\n", "ab".repeat(16))
    }

    #[test]
    fn keys_are_those_of_signed_notes_and_do_not_print_themselves() {
        // The example of the specification's own implementation.
        let skey = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
        let vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let key = AuditKey::parse(&format!("{skey}\n")).unwrap();
        assert_eq!(key.verifier().to_string(), vkey);
        assert_eq!(key.to_text().trim(), skey);
        assert_eq!(vkey.parse::<VerifierKey>().unwrap(), *key.verifier());
        assert!(!format!("{key:?}").contains("AYEKFALV"));
        for bad in ["", "x", vkey, &skey.replace("c74f20a3", "c74f20a4"), &skey[..skey.len() - 4]] {
            assert_eq!(AuditKey::parse(bad).map(|_| ()), Err(AuditKeyError::Private), "{bad}");
        }
        for bad in ["", skey, &vkey.replace("ARpc", "ARpd"), "a+b+c"] {
            assert!(bad.parse::<VerifierKey>().is_err(), "{bad}");
        }
        let odd = AuditKey::generate("db 1+x\n");
        assert_eq!(odd.verifier().name(), "db-1-x-");
        assert_eq!(AuditKey::parse(&odd.to_text()).unwrap().verifier(), odd.verifier());
    }

    #[test]
    fn a_record_counts_at_its_place_in_its_repository_by_a_key_that_counts() {
        let (ours, old, stranger) = (AuditKey::generate("a"), AuditKey::generate("old"), AuditKey::generate("x"));
        let trust = verifiers(&[(&ours, None), (&old, Some(5))]);
        let origin = origin(REPOSITORY);
        let kind = |bytes: &[u8], index| trust.record(bytes, index).map(|(_, key)| key.key.name.clone()).map_err(|flaw| flaw.kind);
        let good = ours.sign(&origin, &record(5, REPOSITORY));
        assert_eq!(kind(&good, 5), Ok("a".into()));
        assert_eq!(kind(&good, 6), Err(FindingKind::Corrupt), "another place");
        assert_eq!(kind(&ours.sign(&origin, &record(5, Id([8; 16]))), 5), Err(FindingKind::Corrupt), "another repository");
        assert_eq!(kind(&stranger.sign(&origin, &record(5, REPOSITORY)), 5), Err(FindingKind::Unsigned));
        assert_eq!(kind(&old.sign(&origin, &record(4, REPOSITORY)), 4), Ok("old".into()));
        assert_eq!(kind(&old.sign(&origin, &record(5, REPOSITORY)), 5), Err(FindingKind::Unsigned), "retired");
        let altered = String::from_utf8(good.clone()).unwrap().replace("\"index\":5", "\"index\":6");
        assert_eq!(kind(altered.as_bytes(), 6), Err(FindingKind::Unsigned));
        let mut twice = good.clone();
        twice.extend_from_slice(&good[good.windows(3).position(|w| w == "—".as_bytes()).unwrap()..]);
        assert!(kind(&twice, 5).is_err(), "a second signature makes another leaf of the same record");
        assert_eq!(kind(&good[..good.len() - 1], 5), Err(FindingKind::Corrupt));
        assert_eq!(kind(b"", 5), Err(FindingKind::Corrupt));
        // A checkpoint is no record, and a record no checkpoint.
        let head = sign_checkpoint(&ours, &origin, 5, Hash([1; 32]));
        assert!(kind(&head, 5).is_err() && trust.checkpoint(&good).is_err());
    }

    #[test]
    fn a_checkpoint_counts_for_its_log_and_up_to_the_size_at_which_its_key_was_retired() {
        let (ours, old) = (AuditKey::generate("a"), AuditKey::generate("old"));
        let trust = verifiers(&[(&ours, None), (&old, Some(5)), (&old, None)]);
        let origin = origin(REPOSITORY);
        let head = trust.checkpoint(&sign_checkpoint(&ours, &origin, 6, Hash([1; 32]))).unwrap();
        assert_eq!((head.size, head.root, head.signed_by.as_str()), (6, Hash([1; 32]), "a"));
        assert!(head.note.starts_with(&format!("{origin}\n6\n")));
        assert_eq!(trust.checkpoint(&sign_checkpoint(&old, &origin, 5, Hash([1; 32]))).unwrap().signed_by, "old");
        assert!(trust.checkpoint(&sign_checkpoint(&old, &origin, 6, Hash([1; 32]))).is_err());
        let elsewhere = super::origin(Id([8; 16]));
        assert!(trust.checkpoint(&sign_checkpoint(&ours, &elsewhere, 5, Hash([1; 32]))).is_err());
    }
}
