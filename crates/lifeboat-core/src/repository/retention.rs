//! What stands beside a backup and says whether it is kept: expiry marks and pins (format 11), and what a prune is about to take away.
//!
//! Values only. Whether a document was signed by somebody who is trusted is the caller's to find out; here is decided what follows from it:
//! what keeps a backup counts whoever wrote it, what releases one counts only with a signature.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::backup_id::{BackupId, SystemName};
use super::{FORMAT_VERSION, FormatError, Sha256};

/// Predicate type of the statement in an expiry mark.
pub const EXPIRY_PREDICATE_TYPE: &str = "https://lifeboat.dev/expiry/v1";

/// Predicate type of the statement in a pin.
pub const PIN_PREDICATE_TYPE: &str = "https://lifeboat.dev/pin/v1";

/// Predicate type of the statement that ends a pin.
pub const PIN_END_PREDICATE_TYPE: &str = "https://lifeboat.dev/pin-end/v1";

/// The most keys that one prune condemns: the document then has some 14 MB, and every document is read up to 16 MiB.
pub const MAX_CONDEMNED: usize = 200_000;

/// What a mark does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkAction {
    /// The backup may be pruned after a while.
    Expire,
    /// It may not, after all.
    Undo,
}

/// `<backup-id>/expired/<n>.json`: the n-th word about a backup's expiry; the highest number decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// The format version.
    pub format: u32,
    /// Which backup.
    pub backup: BackupId,
    /// Counts from 1.
    pub number: u64,
    /// What it does.
    pub action: MarkAction,
    /// SHA-256 of the backup's manifest.
    pub manifest: Sha256,
    /// When it was made.
    pub at: Timestamp,
    /// Host and program that made it.
    pub by: String,
    /// Why.
    pub reasons: Vec<String>,
    /// Of an expiry: the backup stays whole until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune_after: Option<Timestamp>,
    /// Sigstore bundle whose predicate is this document without it.
    pub bundle: Value,
}

/// `<backup-id>/pins/<name>.json`: a hold on a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    /// The format version.
    pub format: u32,
    /// Which backup.
    pub backup: BackupId,
    /// Its name, which is never used again for this backup.
    pub name: SystemName,
    /// SHA-256 of the backup's manifest.
    pub manifest: Sha256,
    /// When it was made.
    pub at: Timestamp,
    /// Host and program that made it.
    pub by: String,
    /// What for.
    pub reason: String,
    /// When it ends by itself; `None`: when somebody ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Sigstore bundle whose predicate is this document without it.
    pub bundle: Value,
}

/// `<backup-id>/pins/<name>.ended.json`: the end of a pin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PinEnd {
    /// The format version.
    pub format: u32,
    /// Which backup.
    pub backup: BackupId,
    /// Which pin.
    pub name: SystemName,
    /// SHA-256 of the backup's manifest.
    pub manifest: Sha256,
    /// When it was ended.
    pub at: Timestamp,
    /// Host and program that ended it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Sigstore bundle whose predicate is this document without it.
    pub bundle: Value,
}

/// `artifacts/condemned/<n>.json`: what the prune that made head `n` takes away. While it is there, nobody creates or relies on any of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// The format version.
    pub format: u32,
    /// The head that begins it.
    pub head: u64,
    /// When.
    pub created: Timestamp,
    /// Blobs, ascending.
    pub blobs: Vec<Sha256>,
    /// Catalog runs, ascending.
    pub runs: Vec<Sha256>,
}

fn decode<T: for<'de> Deserialize<'de>>(what: &'static str, bytes: &[u8]) -> Result<T, FormatError> {
    #[derive(Deserialize)]
    struct Probe {
        format: u32,
    }
    let json = |e: serde_json::Error| FormatError::malformed(what, e.to_string());
    let probe: Probe = serde_json::from_slice(bytes).map_err(json)?;
    if probe.format != FORMAT_VERSION {
        return Err(FormatError::TooNew { what, found: probe.format });
    }
    serde_json::from_slice(bytes).map_err(json)
}

fn without_bundle(document: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(document).expect("repository documents have text keys only");
    if let Value::Object(members) = &mut value {
        members.remove("bundle");
    }
    value
}

impl Mark {
    /// Reads a mark. Whether it may be believed its bundle says.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "expiry mark";
        let mark: Self = decode(what, bytes)?;
        if (mark.action == MarkAction::Expire) != mark.prune_after.is_some() {
            return Err(FormatError::malformed(what, "an expiry, and nothing else, says until when the backup stays"));
        }
        Ok(mark)
    }

    /// What is signed.
    pub fn predicate(&self) -> Value {
        without_bundle(self)
    }
}

impl Pin {
    /// Reads a pin.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        decode("pin", bytes)
    }

    /// What is signed.
    pub fn predicate(&self) -> Value {
        without_bundle(self)
    }
}

impl PinEnd {
    /// Reads the end of a pin.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        decode("end of a pin", bytes)
    }

    /// What is signed.
    pub fn predicate(&self) -> Value {
        without_bundle(self)
    }
}

impl Condemned {
    /// Reads the list. Both parts are ascending, so that a name is found by halving.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "list of condemned artifacts";
        let found: Self = decode(what, bytes)?;
        if !found.blobs.is_sorted() || !found.runs.is_sorted() {
            return Err(FormatError::malformed(what, "it is not in order"));
        }
        Ok(found)
    }

    /// Whether a blob is in it.
    pub fn has_blob(&self, digest: Sha256) -> bool {
        self.blobs.binary_search(&digest).is_ok()
    }

    /// Whether a run is in it.
    pub fn has_run(&self, digest: Sha256) -> bool {
        self.runs.binary_search(&digest).is_ok()
    }
}

/// A document, and whether somebody who is trusted signed it.
#[derive(Debug, Clone)]
pub enum Word<T> {
    /// It can be read, and its signature holds.
    Signed(T),
    /// It can be read; the text says what is wrong with its signature.
    Unsigned(T, String),
    /// It cannot be read; the text says why.
    Unreadable(String),
}

/// That a backup has expired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Expiry {
    /// When it was marked.
    pub at: Timestamp,
    /// It stays whole until then.
    pub prune_after: Timestamp,
    /// Why.
    pub reasons: Vec<String>,
}

/// A pin that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// Its name.
    pub name: String,
    /// What for.
    pub reason: String,
    /// Until when, if it ends by itself.
    pub until: Option<Timestamp>,
}

/// Where a backup stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// It has expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expired: Option<Expiry>,
    /// It is held.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Hold>,
    /// Documents that say something which is not believed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<String>,
    /// The number that the next mark gets.
    #[serde(skip)]
    pub next_mark: u64,
}

/// One pin as it stands in the repository.
#[derive(Debug, Clone)]
pub struct PinWords {
    /// The name in its key.
    pub name: String,
    /// The pin; `None`: only its end is there.
    pub pin: Option<Word<Pin>>,
    /// Its end, if it was ended.
    pub end: Option<Word<PinEnd>>,
}

/// What all documents beside a backup come to. `mark` is the one with the highest number; `manifest` the digest of the manifest, where there
/// still is one: a mark that is about another manifest is about another backup.
pub fn standing(
    backup: &BackupId,
    manifest: Option<Sha256>,
    mark: Option<(u64, Word<Mark>)>,
    pins: Vec<PinWords>,
    now: Timestamp,
) -> Standing {
    let mut standing = Standing { next_mark: 1, ..Standing::default() };
    let same = |of: &BackupId, digest: Sha256| *of == *backup && manifest.is_none_or(|manifest| manifest == digest);
    if let Some((number, word)) = mark {
        standing.next_mark = number.saturating_add(1);
        let doubt = |why: &str| format!("expiry mark {number} does not count: {why}");
        match word {
            Word::Unreadable(why) => standing.doubts.push(doubt(&why)),
            // Whoever wrote it: it only keeps.
            Word::Signed(mark) | Word::Unsigned(mark, _) if mark.action == MarkAction::Undo => {}
            Word::Unsigned(_, why) => standing.doubts.push(doubt(&why)),
            Word::Signed(mark) if !same(&mark.backup, mark.manifest) || mark.number != number => {
                standing.doubts.push(doubt("it is about something else"));
            }
            Word::Signed(mark) => {
                let prune_after = mark.prune_after.unwrap_or(Timestamp::MAX);
                standing.expired = Some(Expiry { at: mark.at, prune_after, reasons: mark.reasons });
            }
        }
    }
    for words in pins {
        let ended = match words.end {
            None => false,
            Some(Word::Signed(end)) if same(&end.backup, end.manifest) && end.name.to_string() == words.name => true,
            Some(Word::Signed(_)) => {
                standing.doubts.push(format!("the end of pin {} does not count: it is about something else", words.name));
                false
            }
            Some(Word::Unsigned(_, why) | Word::Unreadable(why)) => {
                standing.doubts.push(format!("the end of pin {} does not count: {why}", words.name));
                false
            }
        };
        let (reason, until) = match words.pin {
            None => continue,
            // A hold that nobody can read holds.
            Some(Word::Unreadable(why)) => {
                standing.doubts.push(format!("pin {} cannot be read: {why}", words.name));
                ("it cannot be read".to_owned(), None)
            }
            // Until when is believed only of who is trusted.
            Some(Word::Unsigned(pin, why)) => {
                standing.doubts.push(format!("pin {} is not signed, and holds until it is ended: {why}", words.name));
                (pin.reason, None)
            }
            Some(Word::Signed(pin)) => (pin.reason, pin.until),
        };
        if !ended && until.is_none_or(|until| until > now) {
            standing.pins.push(Hold { name: words.name, reason, until });
        }
    }
    standing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::to_json;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn id() -> BackupId {
        "a-backup-20240315T120000Z".parse().unwrap()
    }

    fn mark(number: u64, action: MarkAction) -> Mark {
        Mark {
            format: 1,
            backup: id(),
            number,
            action,
            manifest: Sha256([1; 32]),
            at: time("2024-03-20T00:00:00Z"),
            by: "lifeboat on a".into(),
            reasons: vec!["no rule keeps it".into()],
            prune_after: (action == MarkAction::Expire).then(|| time("2024-03-27T00:00:00Z")),
            bundle: serde_json::json!({"signed": true}),
        }
    }

    fn pin(until: Option<&str>) -> Pin {
        Pin {
            format: 1,
            backup: id(),
            name: "audit".parse().unwrap(),
            manifest: Sha256([1; 32]),
            at: time("2024-03-20T00:00:00Z"),
            by: "lifeboat on a".into(),
            reason: "auditors ask".into(),
            until: until.map(time),
            bundle: Value::Null,
        }
    }

    fn end() -> PinEnd {
        let Pin { format, backup, name, manifest, at, by, reason, bundle, .. } = pin(None);
        PinEnd { format, backup, name, manifest, at, by, reason, bundle }
    }

    #[test]
    fn documents_read_as_they_are_written_and_the_bundle_is_no_part_of_what_is_signed() {
        for mark in [mark(1, MarkAction::Expire), mark(2, MarkAction::Undo)] {
            assert_eq!(Mark::decode(&to_json(&mark)), Ok(mark.clone()));
            assert_eq!(mark.predicate(), Mark { bundle: Value::Null, ..mark.clone() }.predicate());
            assert!(mark.predicate().get("bundle").is_none());
        }
        assert!(Mark::decode(&to_json(&Mark { prune_after: None, ..mark(1, MarkAction::Expire) })).is_err());
        assert_eq!(Pin::decode(&to_json(&pin(None))), Ok(pin(None)));
        assert!(matches!(Pin::decode(br#"{"format": 2}"#), Err(FormatError::TooNew { found: 2, .. })));
        assert!(Pin::decode(b"{}").is_err());
        let list = |blobs| Condemned { format: 1, head: 3, created: time("2024-03-20T00:00:00Z"), blobs, runs: vec![] };
        let sorted = list(vec![Sha256([1; 32]), Sha256([2; 32])]);
        assert_eq!(Condemned::decode(&to_json(&sorted)), Ok(sorted.clone()));
        assert!(sorted.has_blob(Sha256([2; 32])) && !sorted.has_blob(Sha256([3; 32])) && !sorted.has_run(Sha256([1; 32])));
        assert!(Condemned::decode(&to_json(&list(vec![Sha256([2; 32]), Sha256([1; 32])]))).is_err());
    }

    #[test]
    fn c106_what_releases_a_backup_counts_only_with_a_signature() {
        let now = time("2024-03-28T00:00:00Z");
        let of = |mark: Option<(u64, Word<Mark>)>| standing(&id(), Some(Sha256([1; 32])), mark, vec![], now);
        let expire = mark(1, MarkAction::Expire);
        assert_eq!(of(Some((1, Word::Signed(expire.clone())))).expired.unwrap().prune_after, time("2024-03-27T00:00:00Z"));
        for (number, word) in [
            (1, Word::Unsigned(expire.clone(), "nobody signed it".into())),
            (1, Word::Unreadable("it is damaged".into())),
            (2, Word::Signed(expire.clone())),
            (1, Word::Signed(Mark { backup: "b-backup-20240315T120000Z".parse().unwrap(), ..expire.clone() })),
            (1, Word::Signed(Mark { manifest: Sha256([2; 32]), ..expire.clone() })),
        ] {
            let standing = of(Some((number, word)));
            assert!(standing.expired.is_none() && standing.doubts.len() == 1, "{standing:?}");
            assert_eq!(standing.next_mark, number + 1);
        }
        // An undo keeps, whoever wrote it.
        for word in [Word::Signed(mark(2, MarkAction::Undo)), Word::Unsigned(mark(2, MarkAction::Undo), "no".into())] {
            assert_eq!(of(Some((2, word))).expired, None);
        }
    }

    #[test]
    fn c106_a_pin_holds_until_its_end_is_signed() {
        let now = time("2024-03-28T00:00:00Z");
        let of = |pin: Word<Pin>, end: Option<Word<PinEnd>>| {
            let words = PinWords { name: "audit".into(), pin: Some(pin), end };
            standing(&id(), Some(Sha256([1; 32])), None, vec![words], now).pins.len()
        };
        assert_eq!(of(Word::Signed(pin(None)), None), 1);
        assert_eq!(of(Word::Signed(pin(Some("2024-03-28T00:00:01Z"))), None), 1);
        assert_eq!(of(Word::Signed(pin(Some("2024-03-28T00:00:00Z"))), None), 0);
        assert_eq!(of(Word::Unsigned(pin(Some("2024-03-01T00:00:00Z")), "no".into()), None), 1);
        assert_eq!(of(Word::Unreadable("no".into()), None), 1);
        assert_eq!(of(Word::Signed(pin(None)), Some(Word::Signed(end()))), 0);
        assert_eq!(of(Word::Signed(pin(None)), Some(Word::Unsigned(end(), "no".into()))), 1);
        assert_eq!(of(Word::Signed(pin(None)), Some(Word::Unreadable("no".into()))), 1);
        let other = PinEnd { name: "other".parse().unwrap(), ..end() };
        assert_eq!(of(Word::Signed(pin(None)), Some(Word::Signed(other))), 1);
    }
}
