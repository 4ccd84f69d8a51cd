//! What is wrong with a setup: facts in, findings out, the most dangerous first, each with what it means and the exact fix.
//!
//! Facts are what was seen happen ([`store::Behaviour`]) before what somebody says of himself: a store that answers 200 to
//! `If-None-Match` and overwrites is found, whatever it claims (c098). What could not be looked at is said, never counted as good.

pub mod host;
pub mod privilege;
pub mod store;
pub mod watch;

use serde::Serialize;

/// How dangerous a finding is. The order is that of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Backups cannot be taken, or what is taken is not safe.
    Essential,
    /// Backups can be lost, or a restore can fail.
    Danger,
    /// Worth setting right.
    Warning,
}

impl Severity {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Essential => "essential",
            Self::Danger => "danger",
            Self::Warning => "warning",
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A word for programs: does not change.
    pub code: &'static str,
    /// How dangerous.
    pub severity: Severity,
    /// What it is of: a repository, a file, the server.
    pub subject: String,
    /// What was seen.
    pub problem: String,
    /// What may come of it.
    pub meaning: String,
    /// What to do: a command or a setting.
    pub fix: String,
}

/// What was found of a setup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What was seen and is right, or could not be looked at and need not be.
    pub notes: Vec<String>,
}

impl Diagnosis {
    /// Adds another one's.
    pub fn join(&mut self, other: Self) {
        self.findings.extend(other.findings);
        self.notes.extend(other.notes);
    }

    /// The most dangerous first; those that are as dangerous as they came.
    pub fn sorted(mut self) -> Self {
        self.findings.sort_by_key(|finding| finding.severity);
        self
    }

    /// The most dangerous finding's.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).min()
    }

    fn say(
        &mut self,
        severity: Severity,
        code: &'static str,
        subject: &str,
        problem: impl Into<String>,
        meaning: &str,
        fix: impl Into<String>,
    ) {
        self.findings.push(Finding {
            code,
            severity,
            subject: subject.to_owned(),
            problem: problem.into(),
            meaning: meaning.to_owned(),
            fix: fix.into(),
        });
    }

    fn note(&mut self, subject: &str, note: impl std::fmt::Display) {
        self.notes.push(format!("{subject}: {note}"));
    }
}
