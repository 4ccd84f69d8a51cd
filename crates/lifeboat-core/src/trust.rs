//! Whom to trust, for what, and until when: the rules, as values.
//!
//! Who made a signature is cryptography, and is found out elsewhere (`engine/src/signing/trust.rs`); here is decided whether it
//! *counts*: a signer is trusted for kinds of statements ([`Kind`]), within a window of time, and not any more since the moment in
//! which its key was stolen ([`Terms::judge`]). Nothing here reads a clock: what matters is when a signature was made, not when it
//! is looked at, so a backup of last year counts for ever, or never.
//!
//! A time is *proven* if a timestamp authority or a transparency log said so, *claimed* if only the signer did. A claim is believed
//! of an honest signer (it catches a host that goes on with a retired key), and never of a stolen key: who has that writes any date.

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attestation::{
    APPROVAL_PREDICATE_TYPE, APPROVAL_REQUEST_PREDICATE_TYPE, ARTIFACT_PREDICATE_TYPE, BACKUP_PREDICATE_TYPE, DRILL_PREDICATE_TYPE,
    Statement, TEST_RESULT_PREDICATE_TYPE,
};
use crate::repository::artifact;
use crate::repository::retention::{EXPIRY_PREDICATE_TYPE, PIN_END_PREDICATE_TYPE, PIN_PREDICATE_TYPE};
use crate::wal::file::WAL_PREDICATE_TYPE;

/// What a statement is about, as far as trust tells statements apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A backup.
    Backup,
    /// A version of an artifact.
    Artifact,
    /// A WAL file.
    Wal,
    /// What releases a backup, or holds it: an expiry mark, a pin, its end.
    Mark,
    /// The report of a drill.
    Drill,
    /// An approval of a plan.
    Approval,
    /// The request for approvals.
    ApprovalRequest,
}

impl Kind {
    /// All, in the order of the documentation.
    pub const ALL: [Self; 7] = [Self::Backup, Self::Artifact, Self::Wal, Self::Mark, Self::Drill, Self::Approval, Self::ApprovalRequest];

    /// The kind of a predicate type. `None`: one that trust has no word for; only who is trusted for everything may sign it.
    pub fn of(predicate_type: &str) -> Option<Self> {
        Some(match predicate_type {
            BACKUP_PREDICATE_TYPE => Self::Backup,
            ARTIFACT_PREDICATE_TYPE => Self::Artifact,
            WAL_PREDICATE_TYPE => Self::Wal,
            EXPIRY_PREDICATE_TYPE | PIN_PREDICATE_TYPE | PIN_END_PREDICATE_TYPE => Self::Mark,
            // Of the many who may say how a test went, lifeboat reads what drills say.
            DRILL_PREDICATE_TYPE | TEST_RESULT_PREDICATE_TYPE => Self::Drill,
            APPROVAL_PREDICATE_TYPE => Self::Approval,
            APPROVAL_REQUEST_PREDICATE_TYPE => Self::ApprovalRequest,
            _ => return None,
        })
    }

    /// Its name, as the configuration has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Artifact => "artifact",
            Self::Wal => "wal",
            Self::Mark => "mark",
            Self::Drill => "drill",
            Self::Approval => "approval",
            Self::ApprovalRequest => "approval-request",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// When a key or an identity was stolen, or may have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// What was signed at this moment or later does not count.
    pub since: Timestamp,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// On which terms a signer is trusted. The default: for everything, for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// For these kinds of statements; `None`: for all, also those that [`Kind`] has no word for.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub kinds: Option<BTreeSet<Kind>>,
    /// Whose it is. One person may have several keys and identities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<String>,
    /// Signatures from this moment on count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Signatures up to this moment, and in it, count: the signer is retired then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// The signer is not trusted any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revocation>,
}

/// When a signature was made, and how sure that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by", content = "at")]
pub enum When {
    /// A timestamp authority or a transparency log said so.
    Proven(Timestamp),
    /// The signer said so, in the statement.
    Claimed(Timestamp),
    /// Nobody said, and the terms do not ask.
    Unknown,
    /// Nobody can say, but the operator vouched for this very statement when the key was revoked.
    Vouched,
}

impl When {
    /// The moment, as far as somebody said it.
    pub fn time(self) -> Option<Timestamp> {
        match self {
            Self::Proven(at) | Self::Claimed(at) => Some(at),
            Self::Unknown | Self::Vouched => None,
        }
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proven(at) => write!(f, "{at} (proven)"),
            Self::Claimed(at) => write!(f, "{at} (by the signer's own word)"),
            Self::Unknown => f.write_str("at an unknown time"),
            Self::Vouched => f.write_str("vouched for when the key was revoked"),
        }
    }
}

/// Why the good signature of a known signer does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Trusted, but not for this.
    #[error("it is trusted for other kinds of statements, not for {}", .kind.map_or("this one", Kind::name))]
    WrongKind {
        /// What it signed.
        kind: Option<Kind>,
    },
    /// Made before the signer was trusted.
    #[error("it was made at {at}{}, and the signer is trusted from {not_before} on", by(.proven))]
    TooEarly {
        /// When it was made.
        at: Timestamp,
        /// The beginning of the window.
        not_before: Timestamp,
        /// Whether that time is proven, or the signer's own word.
        proven: bool,
    },
    /// Made after the signer was retired.
    #[error("it was made at {at}{}, and the signer is trusted until {not_after}", by(.proven))]
    TooLate {
        /// When it was made.
        at: Timestamp,
        /// The end of the window.
        not_after: Timestamp,
        /// Whether that time is proven, or the signer's own word.
        proven: bool,
    },
    /// The key is revoked, and this was made after that or could have been.
    #[error(
        "the signer is revoked since {since}{}, {}",
        .reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})")),
        .at.map_or("nothing proves that it signed this before, and nobody vouched for it".to_owned(), |at| format!("and signed this at {at}")),
    )]
    Revoked {
        /// Since when.
        since: Timestamp,
        /// Why.
        reason: Option<String>,
        /// The proven time of the signature, where there is one.
        at: Option<Timestamp>,
    },
    /// A proven time is asked of every signature, and this one has none.
    #[error("it has no trusted timestamp, and trust.require_timestamp asks for one")]
    NoTrustedTime,
}

fn by(proven: &bool) -> &'static str {
    if *proven { "" } else { " by its own word" }
}

/// What is known of one signature beyond that it is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// What it signs.
    pub kind: Option<Kind>,
    /// When it was made, by the word of a third party that is trusted.
    pub proven: Option<Timestamp>,
    /// When it was made, by the signer's word.
    pub claimed: Option<Timestamp>,
}

impl Terms {
    /// Whether it counts, and how sure its time is. `vouched` answers whether the operator vouched for this very statement; it is
    /// asked only where the signer is revoked.
    ///
    /// # Errors
    ///
    /// The first reason why it does not count.
    pub fn judge(&self, evidence: Evidence, require_timestamp: bool, vouched: impl FnOnce() -> bool) -> Result<When, Refusal> {
        let Evidence { kind, proven, claimed } = evidence;
        if self.kinds.as_ref().is_some_and(|kinds| kind.is_none_or(|kind| !kinds.contains(&kind))) {
            return Err(Refusal::WrongKind { kind });
        }
        if require_timestamp && proven.is_none() {
            return Err(Refusal::NoTrustedTime);
        }
        if let Some(Revocation { since, reason }) = &self.revoked
            && proven.is_none_or(|at| at >= *since)
        {
            // The word of a thief is worth nothing: no claim is looked at.
            return match vouched() {
                true => Ok(When::Vouched),
                false => Err(Refusal::Revoked { since: *since, reason: reason.clone(), at: proven }),
            };
        }
        let (at, when) = match (proven, claimed) {
            (Some(at), _) => (at, When::Proven(at)),
            (None, Some(at)) => (at, When::Claimed(at)),
            // A retired key was not stolen: its holder could have written any time, and wrote none. WAL of early writers says none.
            (None, None) => return Ok(When::Unknown),
        };
        let proven = proven.is_some();
        match (self.not_before, self.not_after) {
            (Some(not_before), _) if at < not_before => Err(Refusal::TooEarly { at, not_before, proven }),
            (_, Some(not_after)) if at > not_after => Err(Refusal::TooLate { at, not_after, proven }),
            _ => Ok(when),
        }
    }

    /// How a signer on these terms stands at a moment, for lists.
    pub fn state(&self, now: Timestamp) -> State {
        match self {
            Self { revoked: Some(_), .. } => State::Revoked,
            Self { not_before: Some(from), .. } if now < *from => State::NotYet,
            Self { not_after: Some(until), .. } if now > *until => State::Retired,
            _ => State::Trusted,
        }
    }

    /// What is contradictory in them, if anything.
    pub fn contradiction(&self) -> Option<&'static str> {
        match (self.not_before, self.not_after) {
            (Some(from), Some(until)) if from > until => Some("not_before is later than not_after"),
            _ if self.kinds.as_ref().is_some_and(BTreeSet::is_empty) => Some("for is empty"),
            _ => None,
        }
    }
}

/// How a signer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// What it signs now counts.
    Trusted,
    /// What it will sign counts.
    NotYet,
    /// What it signed counts, what it signs does not.
    Retired,
    /// Only what it provably signed before, or what was vouched for, counts.
    Revoked,
}

impl State {
    /// A word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::NotYet => "not yet",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        }
    }
}

/// Which subjects of certificates are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectRule {
    /// This one.
    #[serde(rename = "subject")]
    Exactly(String),
    /// Those that a pattern matches from end to end: `*` stands for any characters but `/`, `**` for any at all, everything else
    /// for itself.
    #[serde(rename = "subject_pattern")]
    Pattern(String),
}

impl SubjectRule {
    /// Whether it means `subject`.
    pub fn matches(&self, subject: &str) -> bool {
        match self {
            Self::Exactly(one) => one == subject,
            Self::Pattern(pattern) => matches(pattern.as_bytes(), subject.as_bytes()),
        }
    }
}

impl fmt::Display for SubjectRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Exactly(text) | Self::Pattern(text)) = self;
        f.write_str(text)
    }
}

/// Glob, without recursion: a pattern is configuration, and a subject is input. Time is the product of both lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // `reached[i]`: the pattern up to here matches the first i bytes. Bytes, not characters: no byte of a character of several is
    // a `/` or a `*`.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        if pattern[at] == b'*' {
            let any = pattern.get(at + 1) == Some(&b'*');
            for end in 1..=text.len() {
                reached[end] |= reached[end - 1] && (any || text[end - 1] != b'/');
            }
            at += if any { 2 } else { 1 };
        } else {
            for end in (1..=text.len()).rev() {
                reached[end] = reached[end - 1] && text[end - 1] == pattern[at];
            }
            reached[0] = false;
            at += 1;
        }
    }
    reached[text.len()]
}

/// Somebody whom an identity provider knows, and on which terms they are trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Which provider: the issuer in the certificate, exactly.
    pub issuer: String,
    /// Whom.
    #[serde(flatten)]
    pub subject: SubjectRule,
    /// On which terms.
    #[serde(flatten)]
    pub terms: Terms,
}

impl Identity {
    /// Whether a certificate of `issuer` for `subject` is meant.
    pub fn matches(&self, issuer: &str, subject: &str) -> bool {
        self.issuer == issuer && self.subject.matches(subject)
    }
}

/// When a statement says that it was made, if it says so in a way that lifeboat writes. The word of whoever signed it.
pub fn claimed(statement: &Statement) -> Option<Timestamp> {
    let time = |member: &str| statement.predicate.get(member).and_then(Value::as_str).and_then(|text| text.parse().ok());
    match Kind::of(&statement.predicate_type) {
        Some(Kind::Backup) => time("finished"),
        Some(Kind::Drill) => time("finished").or_else(|| time("lifeboatFinished")),
        Some(Kind::Artifact) => statement.predicate.get("version").and_then(Value::as_str).and_then(artifact::created),
        // Early writers said only what is in the file: the latest commit in it is no later than the signature.
        Some(Kind::Wal) => time("signed").or_else(|| statement.predicate.get("summary")?.get("last_time")?.as_str()?.parse().ok()),
        Some(Kind::Mark) => time("at"),
        Some(Kind::Approval) => time("granted"),
        Some(Kind::ApprovalRequest) => time("requested"),
        None => None,
    }
}

/// What becomes of a signature that counts now, when its key is revoked since a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It goes on to count: that it was made before is proven.
    Proven,
    /// It says that it was made before, nobody proves it, and it stands in the repository: the operator has to vouch for it.
    Dated,
    /// It stops to count: it was made later, or nobody knows when.
    Lost,
}

impl Fate {
    /// That of a signature that was found to count. `claimed` is the word of its signer.
    pub fn of(when: When, claimed: Option<Timestamp>, since: Timestamp) -> Self {
        match when {
            When::Proven(at) if at < since => Self::Proven,
            When::Proven(_) => Self::Lost,
            When::Claimed(_) | When::Unknown | When::Vouched => match claimed {
                Some(at) if at < since => Self::Dated,
                _ => Self::Lost,
            },
        }
    }
}

#[cfg(test)]
mod tests;
