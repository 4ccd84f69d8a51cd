//! Drills one after the other, and whether one was left out.

use jiff::Timestamp;
use serde::Serialize;

use super::{Report, Verdict, judge};
use crate::repository::Sha256;

/// One drill among others, as far as it is known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Its id.
    pub id: String,
    /// When it was, by its id.
    pub at: Timestamp,
    /// SHA-256 of its report as it is stored; `None`: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// What its report says, where it can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Whether somebody signed that who is trusted to.
    pub signature: Signature,
}

/// Who says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Signature {
    /// Somebody who is trusted for drills.
    Valid {
        /// Who.
        by: String,
    },
    /// Nobody who is trusted: what it says may be anybody's.
    NotValid {
        /// Why not.
        why: String,
    },
    /// Nobody was there to be trusted.
    NotChecked,
}

impl Signature {
    /// In words.
    pub const fn words(&self) -> &'static str {
        match self {
            Self::Valid { .. } => "valid",
            Self::NotValid { .. } => "not valid",
            Self::NotChecked => "not checked",
        }
    }
}

/// What is shown of a report in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Its number.
    pub number: u64,
    /// Digest of the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Sha256>,
    /// When it began.
    pub started: Timestamp,
    /// What it means: what the report says, or what its parts come to if that is worse.
    pub verdict: Verdict,
    /// Seconds until everything was back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<f64>,
    /// Seconds until everything was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_seconds: Option<f64>,
    /// Seconds of commits that would have been lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<f64>,
    /// The backup.
    pub backup: String,
}

impl Summary {
    /// Of a report.
    pub fn of(report: &Report) -> Self {
        Self {
            number: report.number,
            previous: report.previous,
            started: report.started,
            verdict: report.verdict.max(judge(report).0),
            rto_seconds: report.rto_seconds(),
            verified_seconds: report.rto.verified_seconds,
            rpo_seconds: report.rpo.seconds,
            backup: report.backup.id.clone(),
        }
    }
}

impl Entry {
    /// The verdict, if somebody stands for it.
    pub fn verdict(&self) -> Option<Verdict> {
        match (&self.signature, &self.summary) {
            (Signature::Valid { .. }, Some(summary)) => Some(summary.verdict),
            _ => None,
        }
    }
}

/// What is wrong with a row of drills, oldest first: reports that are missing, that stand in another order, or that nobody signed.
/// `whole`: there are none before the first of them.
///
/// Only what is signed is a link of the chain. Whoever can write to the repository can put other things beside it, and they must not break it.
pub fn gaps(entries: &[Entry], whole: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut before: Option<(&Entry, &Summary, Sha256)> = None;
    for entry in entries {
        if let Signature::NotValid { why } = &entry.signature {
            found.push(format!("drill {}: its signature does not hold: {why}", entry.id));
        }
        let (Signature::Valid { .. }, Some(summary), Some(sha256)) = (&entry.signature, &entry.summary, entry.sha256) else { continue };
        match before {
            Some((last, earlier, _)) if summary.number <= earlier.number => {
                found.push(format!("drill {}: it is number {}, as {} or one before it was", entry.id, summary.number, last.id));
            }
            Some((last, earlier, _)) if summary.number - earlier.number > 1 => {
                let missing = summary.number - earlier.number - 1;
                found.push(format!("{missing} of the drills between {} and {} are not here", last.id, entry.id));
            }
            Some((last, _, digest)) if summary.previous != Some(digest) => {
                found.push(format!("drill {}: the report before it is another one than that of {}", entry.id, last.id));
            }
            None if whole && summary.number > 1 => {
                found.push(format!("{} of the drills before {} are not here", summary.number - 1, entry.id));
            }
            Some(_) | None => {}
        }
        before = Some((entry, summary, sha256));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::samples;

    /// A row of drills as it ought to be.
    fn row(count: u64) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for number in 1..=count {
            let previous = entries.last().and_then(|entry| entry.sha256);
            let summary = Summary { number, previous, ..Summary::of(&samples::passed()) };
            entries.push(Entry {
                id: format!("conductor-drill-2026010{number}T000000Z"),
                at: Timestamp::UNIX_EPOCH,
                sha256: Some(Sha256([number as u8; 32])),
                summary: Some(summary),
                signature: Signature::Valid { by: "key".into() },
            });
        }
        entries
    }

    #[test]
    fn a_report_that_is_left_out_shows() {
        assert_eq!(gaps(&row(5), true), Vec::<String>::new());
        for at in 0..4 {
            let mut entries = row(5);
            entries.remove(at);
            let found = gaps(&entries, true);
            assert!(found.len() == 1 && found[0].starts_with("1 of the drills"), "{at}: {found:?}");
        }
        assert_eq!(gaps(&row(5)[2..], false), Vec::<String>::new(), "there are others before");
        assert_eq!(gaps(&row(5)[2..], true).len(), 1);
    }

    #[test]
    fn a_report_that_was_exchanged_shows() {
        let mut entries = row(3);
        entries[1].sha256 = Some(Sha256([9; 32]));
        let found = gaps(&entries, true);
        assert!(found.len() == 1 && found[0].contains("is another one"), "{found:?}");
        let mut entries = row(3);
        entries[2].summary.as_mut().unwrap().number = 2;
        assert!(gaps(&entries, true)[0].contains("it is number 2"));
    }

    #[test]
    fn what_nobody_signed_breaks_no_chain_and_is_told() {
        let mut entries = row(3);
        let mut planted = entries[1].clone();
        planted.signature = Signature::NotValid { why: "it is not signed".into() };
        planted.summary.as_mut().unwrap().number = 77;
        assert_eq!(planted.verdict(), None);
        entries.insert(1, planted);
        let found = gaps(&entries, true);
        assert!(found.len() == 1 && found[0].contains("does not hold"), "{found:?}");
    }

    #[test]
    fn a_verdict_that_is_better_than_its_parts_is_not_repeated() {
        let lied = Report { verdict: Verdict::Passed, ..samples::failed() };
        assert_eq!(Summary::of(&lied).verdict, Verdict::Failed);
        let modest = Report { verdict: Verdict::Failed, ..samples::passed() };
        assert_eq!(Summary::of(&modest).verdict, Verdict::Failed);
    }
}
