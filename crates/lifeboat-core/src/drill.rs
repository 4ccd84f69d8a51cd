//! A drill as a value: what is restored where, what is checked, what must happen when something is broken on purpose, what was measured,
//! and what all of that means.
//!
//! `engine/src/drill/` runs one; [`Report`] is what it leaves (`docs/drill.md`).

pub mod assertion;
pub mod history;
pub mod id;
pub mod judge;
pub mod measure;
pub mod place;
pub mod plain;
pub mod plan;
pub mod report;
pub mod rotation;
#[cfg(test)]
#[path = "drill/tests.rs"]
pub(crate) mod samples;
pub mod scenario;
pub mod server;
pub mod server_log;
pub mod span;
pub mod statement;
pub mod tool_output;

pub use assertion::{Answer, Assertion, AssertionError, Expectation};
pub use id::DrillId;
pub use judge::judge;
pub use plain::plain;
pub use report::{
    BackupSummary, CheckResult, ControlResult, Environment, Isolation, Objectives, Phase, Projection, Recovery, Report, Rpo, Rto,
    ScenarioResult, Scope, Verdict, WalSummary,
};
pub use scenario::{Control, Expected, Scenario};
pub use span::span;

use serde::{Deserialize, Serialize};

/// One thing that a drill checks, in the order in which it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The backup's signature is of somebody who is trusted for backups.
    Signature,
    /// Every extent of the backup opens and has its digest; all or a sample.
    Extents,
    /// Every artifact is signed and has the digest that its record names.
    Artifacts,
    /// PostgreSQL's own `pg_verifybackup` agrees with what was written.
    BackupManifest,
    /// The server starts and answers.
    Start,
    /// Recovery reached what the backup and the archive promise, and nothing less.
    Recovery,
    /// The server's log has no error that nobody provoked.
    Log,
    /// The tables have the rows that they had when the backup was taken.
    Truth,
    /// Catalog: databases, tablespaces and extensions are those that were recorded, and the server here has the libraries they need.
    Catalog,
    /// Collations have the versions that the indexes were built with.
    Collations,
    /// `pg_amcheck`: heap and indexes.
    Amcheck,
    /// The visibility map tells no index-only scan a lie.
    VisibilityMap,
    /// Page checksums.
    Checksums,
    /// What the user asserts by SQL.
    Assertions,
    /// Every artifact that the restored database refers to is there.
    References,
    /// The user's own command.
    Smoke,
    /// The server takes writes and still has them after a restart.
    WriteProbe,
    /// Everything that the drill made is gone.
    Teardown,
}

impl Check {
    /// All, in order.
    pub const ALL: [Self; 18] = [
        Self::Signature,
        Self::Extents,
        Self::Artifacts,
        Self::BackupManifest,
        Self::Start,
        Self::Recovery,
        Self::Log,
        Self::Truth,
        Self::Catalog,
        Self::Collations,
        Self::Amcheck,
        Self::VisibilityMap,
        Self::Checksums,
        Self::Assertions,
        Self::References,
        Self::Smoke,
        Self::WriteProbe,
        Self::Teardown,
    ];

    /// Its name, as reports have it.
    pub fn name(self) -> String {
        word(&self)
    }

    /// What it asks, for people.
    pub const fn question(self) -> &'static str {
        match self {
            Self::Signature => "Is the backup signed by somebody who is trusted?",
            Self::Extents => "Is every stored byte the one that was written?",
            Self::Artifacts => "Is every artifact signed and whole?",
            Self::BackupManifest => "Does pg_verifybackup agree?",
            Self::Start => "Does PostgreSQL start?",
            Self::Recovery => "Did recovery reach what was promised?",
            Self::Log => "Is the server's log free of errors?",
            Self::Truth => "Do the tables have the rows they had?",
            Self::Catalog => "Are databases and extensions the recorded ones?",
            Self::Collations => "Do collations sort as they did?",
            Self::Amcheck => "Are heap and indexes sound?",
            Self::VisibilityMap => "Does the visibility map tell the truth?",
            Self::Checksums => "Do page checksums hold?",
            Self::Assertions => "Does the data keep the user's promises?",
            Self::References => "Is every artifact there that the database refers to?",
            Self::Smoke => "Does the user's own command succeed?",
            Self::WriteProbe => "Does it take writes, and keep them?",
            Self::Teardown => "Is everything gone that the drill made?",
        }
    }
}

/// What a check came to. None of the last two is a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was checked, and is good.
    Passed,
    /// There is nothing to check here: no assertions are configured, the cluster has no checksums. The reason says which.
    NotApplicable,
    /// It should have been checked and could not be. The reason says why.
    NotChecked,
    /// It was checked, and is bad.
    Failed,
}

impl Outcome {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::NotApplicable => "nothing to check",
            Self::NotChecked => "not checked",
            Self::Failed => "failed",
        }
    }
}

/// The serde name of a value that is one word.
fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => unreachable!("it is a word"),
    }
}
