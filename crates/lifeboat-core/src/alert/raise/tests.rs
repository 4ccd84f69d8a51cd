//! Each kind of alert is raised by what it is named for, and by nothing else.

use std::collections::BTreeSet;

use super::*;
use crate::alert::{CATALOGUE, Kind};
use crate::status::samples::{ago, ahead, at, backup, drill, run, well};
use crate::status::{self, FindingSeen, Unseen};
use crate::task::Undone;

fn terms() -> Terms {
    Terms::for_rpo(Duration::from_secs(86_400))
}

fn raised(observed: &Observed) -> Vec<Alert> {
    raise(observed, &status::answer(observed), &terms())
}

/// Names and subjects of what is raised.
fn named(observed: &Observed) -> Vec<(String, String, Severity)> {
    raised(observed).into_iter().map(|alert| (alert.name.into_owned(), alert.subject, alert.severity)).collect()
}

fn finding(code: &str, severity: Severity) -> FindingSeen {
    FindingSeen { code: code.into(), severity, message: format!("{code} was found"), hint: "lifeboat wal status".into() }
}

/// A change to a system that is well, and the one alert that it comes to: name, subject, how serious.
type Case = (&'static str, &'static str, Severity, fn(&mut Observed));

fn newest(observed: &mut Observed) -> &mut crate::status::BackupSeen {
    &mut observed.backups.as_mut().unwrap()[0]
}

fn ran(observed: &mut Observed, operation: &str, outcome: Outcome, exit_code: Option<u8>) {
    let run = observed.runs.iter_mut().find(|run| run.operation == operation).unwrap();
    (run.outcome, run.exit_code, run.failures) = (outcome, exit_code, 1);
}

/// The agent gave it up a moment ago, and nobody has done it since.
fn undone(observed: &mut Observed, task: &str) {
    observed.tasks[0].name = task.into();
    observed.tasks[0].undone = Some(Undone { at: at(), why: "found the lease taken".into() });
}

/// The last one was done with something to read, and another one runs.
fn unread(observed: &mut Observed, operation: &str) {
    ran(observed, operation, Outcome::Running, Some(3));
    observed.runs.iter_mut().for_each(|run| run.failures = 0);
}

fn found(observed: &mut Observed, code: &str, severity: Severity) {
    observed.wal.as_mut().unwrap().findings.push(finding(code, severity));
}

const CASES: &[Case] = &[
    // While another try runs, what the last one came to still holds.
    ("backup-failed", "", Critical, |seen| ran(seen, "backup", Outcome::Running, None)),
    ("no-backup", "", Critical, |seen| seen.backups = Some(Vec::new())),
    ("no-backup", "", Critical, |seen| {
        seen.backups.as_mut().unwrap().iter_mut().for_each(|one| one.signature = SignatureState::NotChecked)
    }),
    ("no-backup", "", Critical, |seen| seen.backups.as_mut().unwrap().iter_mut().for_each(|one| one.copy = None)),
    ("no-backup", "", Critical, |seen| seen.backups.as_mut().unwrap().iter_mut().for_each(|one| one.whole_until = Some(ahead(24)))),
    ("backup-failed", "", Critical, |seen| ran(seen, "backup", Outcome::Failed, Some(1))),
    ("backup-failed", "", Critical, |seen| ran(seen, "backup", Outcome::Interrupted, None)),
    ("backup-overdue", "", Critical, |seen| seen.backups = Some(vec![backup(31)])),
    // Nobody knows how old it is, and it would look new for years.
    ("backup-overdue", "", Critical, |seen| newest(seen).consistent_at = Some(ahead(24 * 365))),
    ("backup-degraded", "", Critical, |seen| newest(seen).state = BackupState::Degraded),
    ("artifacts-missing", "", Critical, |seen| newest(seen).missing_artifacts = 2),
    ("backup-unreadable", "conductor-backup-20240608T000000Z", Critical, |seen| {
        let lost = crate::status::BackupSeen { state: BackupState::Unreadable, signature: SignatureState::NotChecked, ..backup(60) };
        seen.backups.as_mut().unwrap().push(lost);
    }),
    ("signature-invalid", "conductor-backup-20240608T000000Z", Critical, |seen| {
        let forged = crate::status::BackupSeen { signature: SignatureState::NotValid, ..backup(60) };
        seen.backups.as_mut().unwrap().push(forged);
    }),
    ("rpo-missed", "", Critical, |seen| {
        let wal = seen.wal.as_mut().unwrap();
        (wal.lag_bytes, wal.last_commit, wal.windows[0].to.time) = (Some(1), Some(ago(2)), Some(ago(2)));
        seen.objectives.rpo_seconds = 3600;
    }),
    ("rpo-missed", "", Critical, |seen| found(seen, "rpo", Critical)),
    ("wal-gap", "", Critical, |seen| found(seen, "gap", Critical)),
    ("wal-lag", "", Warning, |seen| found(seen, "lag", Warning)),
    ("wal-lag", "", Warning, |seen| found(seen, "archive-timeout", Warning)),
    ("wal-stopped", "", Critical, |seen| found(seen, "archive-failing", Critical)),
    ("wal-stopped", "", Critical, |seen| found(seen, "no-backup-on-timeline", Critical)),
    ("wal-stopped", "", Critical, |seen| found(seen, "something-new", Critical)),
    ("wal-ready", "", Warning, |seen| found(seen, "archive-backlog", Warning)),
    ("receiver-down", "", Critical, |seen| found(seen, "receiver-down", Critical)),
    ("sync-degraded", "", Critical, |seen| found(seen, "degraded", Critical)),
    ("slot-at-risk", "", Critical, |seen| found(seen, "slot-lost", Critical)),
    ("slot-at-risk", "", Warning, |seen| found(seen, "slot-unbounded", Warning)),
    ("clock-skew", "", Warning, |seen| found(seen, "clock-skew", Warning)),
    ("server-unreachable", "", Critical, |seen| seen.server.as_mut().unwrap().trouble = Some("connection refused".into())),
    ("server-unreachable", "", Critical, |seen| {
        // Both ways of seeing it are one alert.
        seen.server.as_mut().unwrap().trouble = Some("connection refused".into());
        found(seen, "server-unreachable", Critical);
        seen.unseen.push(Unseen { what: "server".into(), why: "connection refused".into() });
    }),
    ("repository-unreachable", "primary", Critical, |seen| {
        seen.repositories[0].trouble = Some("no such bucket".into());
        seen.unseen.push(Unseen { what: "repository primary".into(), why: "no such bucket".into() });
    }),
    ("repository-unreachable", "offsite", Warning, |seen| seen.repositories[1].trouble = Some("no route to host".into())),
    ("repository-unreachable", "offsite", Critical, |seen| {
        (seen.repositories[1].trouble, seen.repositories[1].part) = (Some("no route to host".into()), "required".into());
    }),
    ("replica-behind", "offsite", Warning, |seen| seen.repositories[1].missed = 3),
    ("replica-behind", "offsite", Warning, |seen| seen.repositories[1].missed_everything = true),
    ("replica-behind", "offsite", Warning, |seen| seen.repositories[1].lacks = vec![backup(2).id]),
    ("backup-unreadable", "primary", Critical, |seen| seen.repositories[1].primary_lacks = vec![backup(26).id]),
    ("verify-findings", "", Critical, |seen| ran(seen, "verify", Outcome::Findings, Some(3))),
    ("verify-findings", "", Critical, |seen| unread(seen, "verify")),
    ("verify-findings", "", Critical, |seen| ran(seen, "verify", Outcome::Failed, Some(21))),
    ("verify-findings", "", Warning, |seen| ran(seen, "verify", Outcome::Failed, Some(1))),
    ("drill-failed", "", Critical, |seen| seen.drills.as_mut().unwrap().entries[0].verdict = Some(Verdict::Failed)),
    ("drill-failed", "", Critical, |seen| ran(seen, "drill", Outcome::Failed, Some(1))),
    ("drill-objective", "", Critical, |seen| seen.drills.as_mut().unwrap().entries[0].verdict = Some(Verdict::ObjectiveMissed)),
    ("drill-objective", "", Critical, |seen| ran(seen, "drill", Outcome::Failed, Some(23))),
    // It was in time by the objective of its day.
    ("drill-objective", "", Critical, |seen| seen.objectives.rto_seconds = 1),
    ("drill-overdue", "", Warning, |seen| seen.drills.as_mut().unwrap().entries = vec![drill(91)]),
    ("drill-overdue", "", Warning, |seen| seen.drills.as_mut().unwrap().entries = Vec::new()),
    ("drill-overdue", "", Warning, |seen| seen.drills.as_mut().unwrap().entries.iter_mut().for_each(|drill| drill.at = ahead(24 * 365))),
    ("drill-evidence", "", Critical, |seen| seen.drills.as_mut().unwrap().findings.push("1 of the drills is not here".into())),
    // Done, and yet somebody has to read what it said: not everybody can open it, say.
    ("task-failed", "backup", Warning, |seen| ran(seen, "backup", Outcome::Findings, Some(3))),
    ("task-failed", "expire", Warning, |seen| ran(seen, "expire", Outcome::Findings, Some(3))),
    ("task-failed", "backup", Warning, |seen| unread(seen, "backup")),
    ("task-failed", "expire", Warning, |seen| unread(seen, "expire")),
    ("policy-denied", "expire", Warning, |seen| ran(seen, "expire", Outcome::Failed, Some(20))),
    ("task-failed", "prune", Warning, |seen| ran(seen, "prune", Outcome::Failed, Some(1))),
    ("task-failed", "replicate", Warning, |seen| ran(seen, "replicate", Outcome::Interrupted, None)),
    ("task-failed", "prune", Warning, |seen| undone(seen, "prune")),
    ("task-failed", "verify", Warning, |seen| undone(seen, "verify")),
    ("backup-failed", "", Critical, |seen| undone(seen, "backup")),
    // Its own record tells of it.
    ("verify-findings", "", Warning, |seen| {
        undone(seen, "verify");
        ran(seen, "verify", Outcome::Failed, Some(1));
    }),
    ("task-late", "backup", Warning, |seen| seen.tasks[0].next = Some(ago(1))),
    // Its deadline is six hours.
    ("task-late", "backup", Warning, |seen| seen.tasks[0].running_since = Some(ago(7))),
    ("key-ending", "3x3oYvE0", Warning, |seen| seen.keys[0].not_after = Some(ahead(29 * 24))),
    ("key-ending", "3x3oYvE0", Critical, |seen| seen.keys[0].not_after = Some(ahead(6 * 24))),
    ("key-ending", "3x3oYvE0", Critical, |seen| seen.keys[0].not_after = Some(ago(1))),
    ("disk-space", "/var/spool/lifeboat", Warning, |seen| seen.disks[1].free_bytes = 9 << 30),
    ("disk-space", "/var/spool/lifeboat", Critical, |seen| seen.disks[1].free_bytes = 4 << 30),
    ("status-unknown", "backups", Critical, |seen| {
        seen.backups = None;
        seen.unseen.push(Unseen { what: "backups".into(), why: "permission denied".into() });
    }),
    ("status-unknown", "artifacts", Warning, |seen| seen.unseen.push(Unseen { what: "artifacts".into(), why: "permission denied".into() })),
];

#[test]
fn nothing_is_raised_where_all_is_well() {
    assert_eq!(named(&well()), []);
    assert_eq!(status::answer(&well()).verdict, status::Verdict::Recoverable);
}

#[test]
fn each_kind_is_raised_by_what_it_is_named_for_and_alone() {
    for (number, (name, subject, severity, change)) in CASES.iter().enumerate() {
        let mut observed = well();
        change(&mut observed);
        assert_ne!(observed, well(), "case {number} changes nothing");
        assert_eq!(named(&observed), [((*name).to_owned(), (*subject).to_owned(), *severity)], "case {number}");
        let alert = &raised(&observed)[0];
        assert!(!alert.summary.is_empty() && !alert.fix.is_empty(), "{alert:?}");
    }
}

#[test]
fn every_kind_of_the_catalogue_can_be_raised_as_serious_as_it_says() {
    let mut raised: Vec<(&str, Severity)> = CASES.iter().map(|(name, _, severity, _)| (*name, *severity)).collect();
    let stale = stale(Some(ago(1)), Some("the store hangs"), at());
    raised.push((&stale.name, stale.severity));
    let unreached = unreached("pager", 1000, "it answered 403");
    raised.push((&unreached.name, unreached.severity));
    let worst = |kind: &Kind| raised.iter().filter(|(name, _)| *name == kind.name).map(|(_, severity)| *severity).min();
    let expected: Vec<(&str, Option<Severity>)> = CATALOGUE.iter().map(|kind| (kind.name, Some(kind.severity))).collect();
    assert_eq!(CATALOGUE.iter().map(|kind| (kind.name, worst(kind))).collect::<Vec<_>>(), expected);
    let names: BTreeSet<&str> = raised.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), CATALOGUE.len(), "and nothing beside it");
}

/// Nobody wakes up for a policy; but whatever kept it from being taken, there is no backup.
#[test]
fn a_backup_that_was_denied_is_one_that_failed() {
    let mut observed = well();
    ran(&mut observed, "backup", Outcome::Failed, Some(20));
    let expected = [("backup-failed".to_owned(), String::new(), Critical), ("policy-denied".to_owned(), "backup".to_owned(), Warning)];
    assert_eq!(named(&observed), expected);
}

/// What is healthy enough, or nobody's business.
#[test]
fn what_only_looks_alike_is_not_raised() {
    let quiet: &[fn(&mut Observed)] = &[
        // Within what is allowed.
        |seen| seen.backups = Some(vec![backup(29)]),
        |seen| seen.disks[1].free_bytes = 10 << 30,
        |seen| seen.keys[0].not_after = Some(ahead(31 * 24)),
        |seen| seen.keys[0].not_after = None,
        |seen| seen.tasks[0].next = Some(at() - jiff::SignedDuration::from_secs(900)),
        |seen| (seen.tasks[0].next, seen.tasks[0].running_since) = (Some(ago(3)), Some(ago(3))),
        |seen| seen.tasks[0].running_since = Some(ago(6)),
        |seen| seen.tasks[0].next = None,
        // Somebody has done it by hand since.
        |seen| {
            undone(seen, "prune");
            seen.tasks[0].undone.as_mut().unwrap().at = ago(2);
        },
        // An expired backup goes, whatever it is.
        |seen| {
            let gone = crate::status::BackupSeen { state: BackupState::Unreadable, whole_until: Some(ahead(24)), ..backup(60) };
            seen.backups.as_mut().unwrap().push(gone);
        },
        // Retired on purpose, and it signs nothing here.
        |seen| {
            (seen.keys[0].signs_here, seen.keys[0].state, seen.keys[0].not_after) = (false, "retired".into(), Some(ago(1)));
        },
        |seen| {
            ran(seen, "backup", Outcome::Running, None);
            seen.runs.iter_mut().for_each(|run| run.failures = 0);
        },
        // Nobody could look: that is said by what could not be looked at, and nothing is made up.
        |seen| seen.backups = None,
        |seen| seen.drills = None,
        |seen| seen.wal = None,
        |seen| (seen.server, seen.wal) = (None, None),
        |seen| seen.runs = vec![run("backup")],
    ];
    for (number, change) in quiet.iter().enumerate() {
        let mut observed = well();
        change(&mut observed);
        assert_eq!(named(&observed), [], "case {number}");
    }
}

#[test]
fn the_worst_stands_first_and_then_the_order_of_the_catalogue() {
    let mut observed = well();
    found(&mut observed, "lag", Warning);
    observed.disks[1].free_bytes = 0;
    found(&mut observed, "gap", Critical);
    observed.repositories[1].missed = 1;
    let names: Vec<String> = named(&observed).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["wal-gap", "disk-space", "wal-lag", "replica-behind"]);
}

#[test]
fn of_two_findings_that_are_one_alert_the_worse_is_told() {
    for codes in [["slot-unbounded", "slot-lost"], ["slot-lost", "slot-unbounded"]] {
        let mut observed = well();
        for code in codes {
            found(&mut observed, code, if code == "slot-lost" { Critical } else { Warning });
        }
        let alerts = raised(&observed);
        assert_eq!((alerts.len(), alerts[0].severity, alerts[0].summary.as_str()), (1, Critical, "slot-lost was found"));
    }
}

/// Every word that `wal status` has for what is wrong is known here: a new one must not become an alert by accident.
#[test]
fn every_finding_of_wal_has_its_alert() {
    let source = include_str!("../../wal/status.rs");
    let source = source.split("#[cfg(test)]").next().unwrap();
    let word = |part: &str| part.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()).map(str::to_owned);
    let codes: BTreeSet<String> = source.split("say(").filter_map(word).collect();
    let known = [
        ("archive-ahead", "wal-stopped"),
        ("archive-backlog", "wal-ready"),
        ("archive-command", "wal-stopped"),
        ("archive-empty", "wal-stopped"),
        ("archive-failing", "wal-stopped"),
        ("archive-off", "wal-stopped"),
        ("archive-timeout", "wal-lag"),
        ("clock-skew", "clock-skew"),
        ("degraded", "sync-degraded"),
        ("gap", "wal-gap"),
        ("history-missing", "wal-stopped"),
        ("lag", "wal-lag"),
        ("no-backup-on-timeline", "wal-stopped"),
        ("no-synchronous-standby", "sync-degraded"),
        ("not-synchronous", "sync-degraded"),
        ("receiver-down", "receiver-down"),
        ("rpo", "rpo-missed"),
        ("server-unreachable", "server-unreachable"),
        ("slot-at-risk", "slot-at-risk"),
        ("slot-lost", "slot-at-risk"),
        ("slot-missing", "slot-at-risk"),
        ("slot-unbounded", "slot-at-risk"),
        ("standby-behind", "wal-stopped"),
        ("wal-level", "wal-stopped"),
    ];
    assert_eq!(codes, known.iter().map(|(code, _)| (*code).to_owned()).collect());
    for (code, alert) in known {
        assert_eq!(of_finding(code).0, alert, "{code}");
    }
}

#[test]
fn an_agent_that_cannot_look_says_since_when() {
    assert_eq!(stale(None, None, at()).summary, "the agent has never seen how the system stands");
    let text = stale(Some(ago(2)), Some("the store hangs"), at()).summary;
    assert!(text.contains("2 h") && text.ends_with(" ago: the store hangs"), "{text}");
}
