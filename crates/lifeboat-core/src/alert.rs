//! What somebody has to be told: which alerts there are, when each is raised, and who was told what when.
//!
//! [`CATALOGUE`] is the list that the documentation, the rules for Prometheus and the tests are held against; [`raise`] decides which of them hold;
//! [`book`] remembers whom they were told to, so that nobody is told the same twice a minute, and everybody is told when it is over.

pub mod book;
mod known;
mod raise;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use crate::status::Severity;
pub use known::{is_kind_known, is_known, is_of_agent};
pub use raise::{Terms, is_of_each_host, is_of_host, raise, running_out, stale, unreached};

/// Where the runbook is that has a section for every kind; with the name as the anchor.
pub const RUNBOOK: &str = "docs/alerts.md";

/// An alert that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Which of the [`CATALOGUE`].
    pub name: Cow<'static, str>,
    /// What it is of: a repository, a backup, a slot, a disk; with the name it tells alerts apart. May be empty.
    pub subject: String,
    /// How serious.
    pub severity: Severity,
    /// What is the matter, with the numbers.
    pub summary: String,
    /// What to do: begins with a command where there is one.
    pub fix: String,
}

impl Alert {
    /// Tells it apart from others, for those who are told of it.
    pub fn key(&self) -> String {
        if self.subject.is_empty() { self.name.to_string() } else { format!("{}/{}", self.name, self.subject) }
    }

    /// Where the runbook has its section.
    pub fn runbook(&self) -> String {
        self.runbook_at(RUNBOOK)
    }

    /// The same where the runbook is somewhere else (`alerts.runbook_url`).
    pub fn runbook_at(&self, runbook: &str) -> String {
        format!("{runbook}#{}", self.name)
    }
}

/// The name of a kind in Prometheus and Alertmanager: `backup-overdue` is `LifeboatBackupOverdue` there, so that a rule over metrics and the agent's own
/// alert are one alert.
pub fn alertname(name: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map_or(String::new(), |first| first.to_ascii_uppercase().to_string() + letters.as_str())
    };
    format!("Lifeboat{}", name.split('-').map(word).collect::<String>())
}

/// An alert that is none, for trying out who is told: of no kind that there is.
pub fn trial(severity: Severity) -> Alert {
    Alert {
        name: "test".into(),
        subject: String::new(),
        severity,
        summary: "somebody tries out whether alerts arrive; nothing is wrong".into(),
        fix: "nothing: it is over in a moment".into(),
    }
}

/// A kind of alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Its name: a word for programs, and the anchor of its section in the runbook.
    pub name: &'static str,
    /// The worst that it can be.
    pub severity: Severity,
    /// When it is raised.
    pub when: &'static str,
}

const fn kind(name: &'static str, severity: Severity, when: &'static str) -> Kind {
    Kind { name, severity, when }
}

use Severity::{Critical, Warning};

/// Every kind of alert that there is.
pub const CATALOGUE: &[Kind] = &[
    kind("no-backup", Critical, "no backup of the system counts: there is none, or none is whole and signed by somebody who is trusted"),
    kind("backup-failed", Critical, "the last backup on this host failed or was interrupted"),
    kind("backup-overdue", Critical, "the newest backup that counts is older than alerts.backup_age, or dated in the future"),
    kind("backup-degraded", Critical, "pages were damaged already where the newest backup took them from"),
    kind("artifacts-missing", Critical, "the database of the newest backup refers to artifacts that are not in it"),
    kind(
        "backup-unreadable",
        Critical,
        "the manifest of a backup is missing or cannot be read, or the primary lost a backup that a replica has",
    ),
    kind("signature-invalid", Critical, "the signature of a backup does not hold"),
    kind("rpo-missed", Critical, "more would be lost now than objectives.rpo allows"),
    kind("wal-gap", Critical, "WAL is missing in the middle of what could be gone back to"),
    kind("wal-lag", Warning, "WAL reaches the repository late"),
    kind("wal-stopped", Critical, "WAL does not reach the repository at all, or cannot be replayed there"),
    kind("wal-ready", Warning, "finished WAL files pile up behind archive_command"),
    kind("receiver-down", Critical, "the WAL receiver does not run, or is not connected"),
    kind(
        "sync-degraded",
        Critical,
        "wal.mode is sync, and commits are not held until they are durable, or wait for a receiver that is not there",
    ),
    kind("slot-at-risk", Critical, "the replication slot has lost WAL, will soon, or holds WAL without a limit"),
    kind("clock-skew", Warning, "the server's clock and this host's differ"),
    kind("server-unreachable", Critical, "the server does not answer"),
    kind("repository-unreachable", Critical, "a repository cannot be read"),
    kind("replica-behind", Warning, "a replica does not have what the primary has"),
    kind("verify-findings", Critical, "the last verification found something, or did not end"),
    kind("drill-failed", Critical, "the last drill failed or was interrupted"),
    kind("drill-objective", Critical, "the last drill missed an objective"),
    kind("drill-overdue", Warning, "no drill has succeeded for longer than objectives.drill, or the last one is dated in the future"),
    kind("drill-evidence", Critical, "the row of drill reports has a hole, or a report whose signature does not hold"),
    kind("policy-denied", Warning, "the policy denied, or could not decide, something that was to be done on this host"),
    kind(
        "task-failed",
        Warning,
        "expire, prune or replicate failed or was interrupted, a task was given up, or was done with something to read",
    ),
    kind("task-late", Warning, "a task of the agent did not begin or end when it should have"),
    kind("key-ending", Critical, "a key or a certificate ends within alerts.key_days, or has ended"),
    kind("disk-space", Critical, "a file system that must not fill has less free than alerts.disk_free_percent"),
    kind("sink-failing", Critical, "somebody who is to be told of alerts has not been reached for a quarter of an hour"),
    kind("status-unknown", Critical, "something could not be looked at"),
    kind("status-stale", Critical, "the agent has not been able to look for a long time"),
];

/// The kind of this name.
pub fn find(name: &str) -> Option<&'static Kind> {
    CATALOGUE.iter().find(|kind| kind.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own_that_is_one_for_programs() {
        let names: BTreeSet<&str> = CATALOGUE.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), CATALOGUE.len());
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')), "{names:?}");
        assert_eq!(find("wal-gap").map(|kind| kind.severity), Some(Severity::Critical));
        assert_eq!((find("test"), find("")), (None, None));
    }

    #[test]
    fn names_are_those_that_prometheus_has() {
        assert_eq!(alertname("backup-overdue"), "LifeboatBackupOverdue");
        assert_eq!(alertname("rpo-missed"), "LifeboatRpoMissed");
        let names: BTreeSet<String> = CATALOGUE.iter().map(|kind| alertname(kind.name)).collect();
        assert_eq!(names.len(), CATALOGUE.len());
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_alphabetic())), "{names:?}");
    }

    #[test]
    fn a_runbook_may_be_somewhere_else() {
        let alert = trial(Severity::Warning);
        assert_eq!((alert.key(), alert.runbook()), ("test".to_owned(), "docs/alerts.md#test".to_owned()));
        assert_eq!(alert.runbook_at("https://wiki/lifeboat"), "https://wiki/lifeboat#test");
    }
}
