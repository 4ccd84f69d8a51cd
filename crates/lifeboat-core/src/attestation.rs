//! The in-toto statements that lifeboat signs: what is said of a backup, of an artifact.
//!
//! A statement is a value: built, printed, parsed and compared here. This module must not sign or
//! verify anything: a parsed [`Statement`] says only what its bytes say, whoever wrote them. Call
//! [`Statement::check`] on statements that came out of a verified signature, and only on those.
//!
//! Facts: in-toto Attestation Framework, "Statement layer specification v1"
//! (<https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>); `docs/format.md`,
//! section 7.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// `_type` of an in-toto Statement v1, the only one read or written.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// The DSSE payload type of an in-toto statement (in-toto "Envelope layer specification v1").
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// The predicate type that speaks of one backup.
pub const BACKUP_PREDICATE_TYPE: &str = "https://lifeboat.dev/backup/v1";

/// The predicate type that speaks of one version of an artifact.
pub const ARTIFACT_PREDICATE_TYPE: &str = "https://lifeboat.dev/artifact/v1";

/// The predicate type of the report of a drill.
pub const DRILL_PREDICATE_TYPE: &str = "https://lifeboat.dev/drill/v1";

/// The predicate type in which a drill tells tools of others how it went: in-toto's "Test Result".
pub const TEST_RESULT_PREDICATE_TYPE: &str = "https://in-toto.io/attestation/test-result/v0.1";

/// The predicate type of an approval of a plan.
pub const APPROVAL_PREDICATE_TYPE: &str = "https://lifeboat.dev/approval/v1";

/// The predicate type of a request for approvals.
pub const APPROVAL_REQUEST_PREDICATE_TYPE: &str = "https://lifeboat.dev/approval-request/v1";

/// Bytes that a statement may have. Ours have a few hundred; a list that needs more belongs into
/// the signed object, not into the signature.
pub const MAX_STATEMENT_BYTES: usize = 512 << 10;

/// Subjects that a statement may have: what sigstore-go, and with it cosign, accepts.
pub const MAX_SUBJECTS: usize = 1024;

/// Digests that one subject may have: what sigstore-go accepts.
pub const MAX_DIGESTS: usize = 32;

/// An in-toto Statement v1: a claim (the predicate) about things named by digest (the subjects).
///
/// Members that a statement has beyond these are ignored, as in-toto asks of every consumer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// Always [`STATEMENT_TYPE`]; [`Statement::parse`] lets nothing else through.
    #[serde(rename = "_type")]
    pub type_: String,
    /// What it speaks of: one thing, and several in the statements of drills.
    #[serde(deserialize_with = "subjects")]
    pub subject: Vec<Subject>,
    /// What kind of claim it is; says how to read the predicate.
    pub predicate_type: String,
    /// The claim itself; null where the statement has none.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub predicate: Value,
}

/// One thing that a statement speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// What it is called. Empty where the writer gave no name (cosign writes such statements).
    #[serde(default)]
    pub name: String,
    /// Digests of its bytes, in lower-case hex, by algorithm.
    #[serde(deserialize_with = "digests")]
    pub digest: BTreeMap<String, String>,
}

impl Subject {
    /// Bytes with this SHA-256, called so.
    pub fn new(name: &str, sha256: [u8; 32]) -> Self {
        Self { name: name.to_owned(), digest: BTreeMap::from([("sha256".to_owned(), hex::encode(sha256))]) }
    }

    /// Its SHA-256, if it names one.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        parse_sha256(self.digest.get("sha256")?)
    }
}

/// Bytes that are not an in-toto Statement v1 within lifeboat's limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse in-toto statement: {reason}")]
pub struct StatementError {
    reason: String,
}

impl StatementError {
    fn new(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string() }
    }
}

/// What a statement has to say to be of use: compared by [`Statement::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected<'a> {
    /// The kind of claim.
    pub predicate_type: &'a str,
    /// SHA-256 of the bytes at hand.
    pub subject_sha256: [u8; 32],
    /// The name under which they were asked for. `None` accepts any name: for bytes that are known
    /// by digest only.
    pub subject_name: Option<&'a str>,
    /// The `version` that the predicate has to name. `None` where the claim has no versions.
    pub version: Option<&'a str>,
}

impl<'a> Expected<'a> {
    /// The statement of the backup `backup_id` whose `manifest.json` has this SHA-256.
    pub fn backup(backup_id: &'a str, manifest_sha256: [u8; 32]) -> Self {
        Self { predicate_type: BACKUP_PREDICATE_TYPE, subject_sha256: manifest_sha256, subject_name: Some(backup_id), version: None }
    }

    /// The statement of one version of an artifact whose plain bytes have this SHA-256.
    ///
    /// The version is part of it, lest a genuine old record be passed off as a newer version.
    pub fn artifact(name: &'a str, version: &'a str, sha256: [u8; 32]) -> Self {
        Self { predicate_type: ARTIFACT_PREDICATE_TYPE, subject_sha256: sha256, subject_name: Some(name), version: Some(version) }
    }
}

/// Where a statement differs from what was expected of it. The texts are as the statement has
/// them: shown quoted and cut, never trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// It is another kind of claim.
    #[error("match predicate type: expected {expected}, the statement has {}", quoted(.found))]
    PredicateType {
        /// What was asked for.
        expected: String,
        /// What it has.
        found: String,
    },
    /// It speaks of other bytes.
    #[error("match subject digest: expected sha256 {expected}, the statement has {}", found_digest(.found.as_ref()))]
    Digest {
        /// SHA-256 of the bytes at hand, hex.
        expected: String,
        /// The SHA-256 of the subject with the expected name, else of the first subject, if that
        /// has one.
        found: Option<String>,
    },
    /// It speaks of the same bytes under another name.
    #[error("match subject name: expected {expected:?}, the statement has {}", quoted(.found))]
    Name {
        /// What was asked for.
        expected: String,
        /// What it has.
        found: String,
    },
    /// It speaks of another version.
    #[error("match version: expected {expected:?}, the statement has {}", found_version(.found.as_ref()))]
    Version {
        /// What was asked for.
        expected: String,
        /// What it has, if it has a version in words.
        found: Option<String>,
    },
}

impl Statement {
    /// A statement about one subject.
    pub fn new(name: &str, sha256: [u8; 32], predicate_type: &str, predicate: Value) -> Self {
        Self {
            type_: STATEMENT_TYPE.to_owned(),
            subject: vec![Subject::new(name, sha256)],
            predicate_type: predicate_type.to_owned(),
            predicate,
        }
    }

    /// The statement in `bytes`. Never panics, whatever they are; nothing beyond
    /// [`MAX_STATEMENT_BYTES`], [`MAX_SUBJECTS`] and [`MAX_DIGESTS`] is read.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        if bytes.len() > MAX_STATEMENT_BYTES {
            return Err(StatementError::new(format_args!("{} bytes, the limit is {MAX_STATEMENT_BYTES}", bytes.len())));
        }
        let statement: Self = serde_json::from_slice(bytes).map_err(StatementError::new)?;
        if statement.type_ != STATEMENT_TYPE {
            return Err(StatementError::new(format_args!("_type is {}", quoted(&statement.type_))));
        }
        if statement.subject.is_empty() {
            return Err(StatementError::new("no subject"));
        }
        for subject in &statement.subject {
            if subject.digest.get("sha256").is_some_and(|text| parse_sha256(text).is_none()) {
                return Err(StatementError::new("a sha256 digest is not 64 lower-case hex digits"));
            }
        }
        Ok(statement)
    }

    /// Its bytes: compact JSON, the same for equal statements in every build (members in a fixed
    /// order, those of objects in the predicate sorted by name).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut sorted = Cow::Borrowed(self);
        // Objects are sorted already, unless some crate of the build turns on serde_json's
        // `preserve_order` for everybody.
        if !is_sorted(&self.predicate) {
            sorted.to_mut().predicate.sort_all_objects();
        }
        serde_json::to_vec(sorted.as_ref()).expect("a statement has text keys only, and a Vec takes every byte")
    }

    /// Whether it says what was expected: the predicate type, a subject with the expected digest
    /// *and* name, and the version where one is expected. The error names the first difference.
    pub fn check(&self, expected: &Expected<'_>) -> Result<(), Mismatch> {
        if self.predicate_type != expected.predicate_type {
            return Err(Mismatch::PredicateType { expected: expected.predicate_type.to_owned(), found: self.predicate_type.clone() });
        }
        self.check_subject(expected)?;
        let Some(version) = expected.version else { return Ok(()) };
        let found = self.predicate.get("version").and_then(Value::as_str);
        if found != Some(version) {
            return Err(Mismatch::Version { expected: version.to_owned(), found: found.map(str::to_owned) });
        }
        Ok(())
    }

    fn check_subject(&self, expected: &Expected<'_>) -> Result<(), Mismatch> {
        let named = |subject: &&Subject| expected.subject_name.is_none_or(|name| subject.name == name);
        let same_bytes = |subject: &&Subject| subject.sha256() == Some(expected.subject_sha256);
        if self.subject.iter().any(|subject| named(&subject) && same_bytes(&subject)) {
            return Ok(());
        }
        // Of the subjects, show the one that the reader most likely meant.
        match (self.subject.iter().find(same_bytes), expected.subject_name) {
            (Some(subject), Some(name)) => Err(Mismatch::Name { expected: name.to_owned(), found: subject.name.clone() }),
            _ => {
                let shown = self.subject.iter().find(named).or(self.subject.first());
                Err(Mismatch::Digest {
                    expected: hex::encode(expected.subject_sha256),
                    found: shown.and_then(Subject::sha256).map(hex::encode),
                })
            }
        }
    }
}

/// What is said of a backup: that `manifest.json` with this SHA-256 is the manifest of `backup_id`,
/// with what `predicate` adds for readers who have only the bundle.
pub fn backup_statement(backup_id: &str, manifest_sha256: [u8; 32], predicate: Value) -> Statement {
    Statement::new(backup_id, manifest_sha256, BACKUP_PREDICATE_TYPE, predicate)
}

/// What is said of one version of an artifact: that its plain bytes have this SHA-256 and length.
/// `details` go into the predicate as well; `version` and `bytes` there are always these.
pub fn artifact_statement(name: &str, version: &str, sha256: [u8; 32], bytes: u64, details: Map<String, Value>) -> Statement {
    let mut predicate = details;
    predicate.insert("version".to_owned(), version.into());
    predicate.insert("bytes".to_owned(), bytes.into());
    Statement::new(name, sha256, ARTIFACT_PREDICATE_TYPE, Value::Object(predicate))
}

fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let plain = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut digest = [0; 32];
    (plain && hex::decode_to_slice(text, &mut digest).is_ok()).then_some(digest)
}

fn is_sorted(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.keys().is_sorted() && map.values().all(is_sorted),
        Value::Array(list) => list.iter().all(is_sorted),
        _ => true,
    }
}

/// Text from outside, for an error message: escaped, and no longer than a line.
fn quoted(text: &str) -> String {
    const MAX_CHARS: usize = 100;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn found_digest(found: Option<&String>) -> String {
    found.cloned().unwrap_or_else(|| "none".to_owned())
}

fn found_version(found: Option<&String>) -> String {
    found.map_or_else(|| "none".to_owned(), |version| quoted(version))
}

/// A list of subjects, given up on at the limit instead of read into memory first.
fn subjects<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Subject>, D::Error> {
    struct List;
    impl<'de> Visitor<'de> for List {
        type Value = Vec<Subject>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of subjects")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut subjects = Vec::new();
            while subjects.len() < MAX_SUBJECTS {
                match list.next_element()? {
                    Some(subject) => subjects.push(subject),
                    None => return Ok(subjects),
                }
            }
            match list.next_element::<IgnoredAny>()? {
                Some(_) => Err(A::Error::custom(format_args!("more than {MAX_SUBJECTS} subjects"))),
                None => Ok(subjects),
            }
        }
    }
    deserializer.deserialize_seq(List)
}

/// A set of digests. A name given twice is refused: readers disagree on which one counts.
fn digests<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Set;
    impl<'de> Visitor<'de> for Set {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("digests by algorithm")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut digests = BTreeMap::new();
            while let Some((algorithm, digest)) = map.next_entry::<String, String>()? {
                if digests.len() == MAX_DIGESTS {
                    return Err(A::Error::custom(format_args!("more than {MAX_DIGESTS} digests of one subject")));
                }
                if digests.insert(algorithm, digest).is_some() {
                    return Err(A::Error::custom("a digest algorithm stands twice"));
                }
            }
            Ok(digests)
        }
    }
    deserializer.deserialize_map(Set)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const ID: &str = "conductor-backup-20240315T120000Z";

    fn backup() -> Statement {
        backup_statement(ID, [0xAB; 32], json!({"state": "healthy", "finished": "2024-03-15T12:00:09Z"}))
    }

    fn artifact() -> Statement {
        let details = json!({"bytes": "lies", "origin": "sync"}).as_object().cloned().unwrap();
        artifact_statement("builds/17/log.txt", "v2", [7; 32], 17, details)
    }

    #[test]
    fn bytes_of_a_statement_are_fixed() {
        let ab = "ab".repeat(32);
        assert_eq!(
            String::from_utf8(backup().to_bytes()).unwrap(),
            format!(r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"name":"{ID}","digest":{{"sha256":"{ab}"}}}}],"#)
                + r#""predicateType":"https://lifeboat.dev/backup/v1","predicate":{"finished":"2024-03-15T12:00:09Z","state":"healthy"}}"#
        );
        assert_eq!(artifact().predicate, json!({"bytes": 17, "origin": "sync", "version": "v2"}));
        for statement in [backup(), artifact()] {
            assert_eq!(Statement::parse(&statement.to_bytes()).unwrap(), statement);
        }
    }

    #[test]
    fn check_names_the_first_difference() {
        let good = Expected::backup(ID, [0xAB; 32]);
        assert_eq!(backup().check(&good), Ok(()));
        assert_eq!(backup().check(&Expected { subject_name: None, ..good }), Ok(()));

        let problem = |statement: &Statement, expected| statement.check(&expected).unwrap_err().to_string();
        assert_eq!(
            problem(&backup(), Expected { predicate_type: ARTIFACT_PREDICATE_TYPE, ..good }),
            "match predicate type: expected https://lifeboat.dev/artifact/v1, the statement has \"https://lifeboat.dev/backup/v1\""
        );
        assert_eq!(
            problem(&backup(), Expected { subject_name: Some("other"), ..good }),
            format!("match subject name: expected \"other\", the statement has {ID:?}")
        );
        let digest = problem(&backup(), Expected { subject_sha256: [1; 32], ..good });
        assert_eq!(digest, format!("match subject digest: expected sha256 {}, the statement has {}", "01".repeat(32), "ab".repeat(32)));
        assert_eq!(artifact().check(&Expected::artifact("builds/17/log.txt", "v2", [7; 32])), Ok(()));
        assert_eq!(
            problem(&artifact(), Expected::artifact("builds/17/log.txt", "v3", [7; 32])),
            "match version: expected \"v3\", the statement has \"v2\""
        );
    }

    #[test]
    fn name_and_digest_have_to_be_of_one_subject() {
        let mut statement = backup();
        statement.subject.push(Statement::new("second", [2; 32], "", Value::Null).subject.remove(0));
        let crossed = Expected { subject_name: Some("second"), ..Expected::backup(ID, [0xAB; 32]) };
        assert!(matches!(statement.check(&crossed), Err(Mismatch::Name { .. })));
        assert_eq!(statement.check(&Expected::backup("second", [2; 32])), Ok(()));
    }

    #[test]
    fn a_subject_without_sha256_matches_nothing() {
        let mut statement = backup();
        statement.subject[0].digest = BTreeMap::from([("sha512".to_owned(), "00".to_owned())]);
        let reread = Statement::parse(&statement.to_bytes()).unwrap();
        assert!(matches!(reread.check(&Expected::backup(ID, [0; 32])), Err(Mismatch::Digest { found: None, .. })));
    }

    #[test]
    fn foreign_text_in_errors_is_escaped_and_cut() {
        let mut statement = backup();
        statement.predicate_type = format!("\u{1b}[2J{}", "ü".repeat(500));
        let text = statement.check(&Expected::backup(ID, [0xAB; 32])).unwrap_err().to_string();
        assert!(!text.contains('\u{1b}') && text.chars().count() < 250, "{text}");
    }

    #[test]
    fn limits_are_exact() {
        let with = |subjects: usize, digests: usize| {
            let mut statement = backup();
            let digest = (0..digests).map(|n| (format!("digest{n:02}"), "00".to_owned())).collect();
            statement.subject = vec![Subject { name: "x".to_owned(), digest }; subjects];
            Statement::parse(&statement.to_bytes())
        };
        assert_eq!(with(MAX_SUBJECTS, 1).unwrap().subject.len(), MAX_SUBJECTS);
        assert_eq!(with(1, MAX_DIGESTS).unwrap().subject[0].digest.len(), MAX_DIGESTS);
        assert!(with(MAX_SUBJECTS + 1, 1).unwrap_err().to_string().contains("more than 1024 subjects"));
        assert!(with(1, MAX_DIGESTS + 1).unwrap_err().to_string().contains("more than 32 digests"));
        assert!(with(0, 0).unwrap_err().to_string().contains("no subject"));

        let mut padded = backup().to_bytes();
        padded.resize(MAX_STATEMENT_BYTES, b' ');
        assert!(Statement::parse(&padded).is_ok());
        padded.push(b' ');
        assert!(Statement::parse(&padded).is_err());
    }

    #[test]
    fn what_is_not_a_statement_is_refused() {
        let good = String::from_utf8(backup().to_bytes()).unwrap();
        let hex = "ab".repeat(32);
        for (from, to) in [
            ("Statement/v1", "Statement/v0.1"),
            ("\"_type\"", "\"type\""),
            ("\"predicateType\"", "\"predicate_type\""),
            (hex.as_str(), "AB"),
            (hex.as_str(), &hex.to_uppercase()),
            ("\"digest\":{", "\"digest\":{\"sha256\":\"00\","),
            ("\"subject\":[", "\"subject\":[],\"subject\":["),
            ("\"subject\":[", "\"subject\":[3,"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert!(Statement::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        // Deeper than the parser's recursion limit: an error, not a stack overflow.
        let deep = good.replacen("\"healthy\"", &"[".repeat(100_000), 1);
        assert!(Statement::parse(deep.as_bytes()).is_err());
        // In-toto asks consumers to ignore members they do not know.
        assert!(Statement::parse(good.replacen('{', r#"{"comment":[1],"#, 1).as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Statement::parse(&bytes);
        }

        #[test]
        fn damaged_statements_do_not_panic(at in 0usize..300, byte: u8) {
            let mut bytes = backup().to_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(statement) = Statement::parse(&bytes) {
                prop_assert_eq!(Statement::parse(&statement.to_bytes()), Ok(statement));
            }
        }
    }
}
