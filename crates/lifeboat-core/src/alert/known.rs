//! Whether an alert that does not hold is over, or nobody could look.

use super::Alert;
use crate::status::answer::answer;
use crate::status::{Observed, RepositorySeen};

/// Whether the agent says it of itself, whatever it sees of the system.
pub fn is_of_agent(alert: &Alert) -> bool {
    matches!(alert.name.as_ref(), "status-stale" | "sink-failing")
}

/// Whether what an alert comes from was looked at: if it was and the alert does not hold, it is over.
pub fn is_known(observed: &Observed, alert: &Alert) -> bool {
    known(observed, &alert.name, Some(&alert.subject))
}

/// The same of a kind, whatever its subject is.
pub fn is_kind_known(observed: &Observed, name: &str) -> bool {
    known(observed, name, None)
}

fn known(observed: &Observed, name: &str, subject: Option<&str>) -> bool {
    let unseen = |what: &str| observed.unseen.iter().any(|unseen| unseen.what == what);
    let unseen_any = |what: &str| observed.unseen.iter().any(|unseen| unseen.what.starts_with(what));
    // Where no server is configured nothing is to be seen of one.
    let server = observed.server.as_ref().is_none_or(|server| server.trouble.is_none());
    // Where there is no WAL, and nobody failed to look for it, there is none.
    let wal = observed.wal.is_some() || server && !["wal", "backups", "keys"].into_iter().any(unseen);
    match name {
        "no-backup" | "backup-overdue" | "backup-degraded" | "artifacts-missing" | "signature-invalid" => observed.backups.is_some(),
        "backup-unreadable" => {
            // What the primary lost shows by comparing it with all others.
            let compared = || observed.repositories.iter().all(|one| one.trouble.is_none()) && !unseen_any("backups that only ");
            let primary = |subject: &str| observed.repositories.first().is_some_and(|primary| primary.name == subject);
            let of_primary = subject.is_none_or(primary);
            observed.backups.is_some() && (!of_primary || compared())
        }
        "rpo-missed" => answer(observed).rpo_met.is_some(),
        "wal-gap" | "receiver-down" => wal,
        "wal-lag" | "wal-stopped" | "wal-ready" | "sync-degraded" | "slot-at-risk" | "clock-skew" => wal && server,
        "replica-behind" => {
            // One that is not configured any more is behind nobody.
            let is_meant = |one: &RepositorySeen| one.part == "primary" || subject.is_none_or(|subject| one.name == subject);
            observed.repositories.iter().filter(|one| is_meant(one)).all(|one| one.trouble.is_none())
        }
        "backup-failed" | "task-failed" => !unseen("runs") && !unseen("tasks"),
        "verify-findings" | "policy-denied" => !unseen("runs"),
        "drill-failed" | "drill-objective" => observed.drills.is_some() && !unseen("runs"),
        "drill-overdue" | "drill-evidence" => observed.drills.is_some(),
        "task-late" => !unseen("tasks"),
        "key-ending" => !unseen("keys"),
        "disk-space" => subject.map_or_else(|| !unseen_any("disk "), |path| !unseen(&format!("disk {path}"))),
        // Whether somebody can be reached, or something could be looked at, is always seen.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::{CATALOGUE, Severity};
    use crate::status::Unseen;
    use crate::status::samples::well;

    fn alert(name: &'static str, subject: &str) -> Alert {
        Alert { name: name.into(), subject: subject.into(), severity: Severity::Critical, summary: "s".into(), fix: "f".into() }
    }

    fn unseen(observed: &mut Observed, what: &str) {
        observed.unseen.push(Unseen { what: what.into(), why: "permission denied".into() });
    }

    /// What could not be looked at, and what nobody knows then.
    type Case = (fn(&mut Observed), &'static [&'static str]);

    #[test]
    fn what_comes_from_a_part_that_nobody_saw_is_not_known() {
        let cases: &[Case] = &[
            (|_| {}, &[]),
            // There is none, and there was nothing in the way of seeing it.
            (|seen| seen.wal = None, &[]),
            (
                |seen| {
                    seen.wal = None;
                    unseen(seen, "wal");
                },
                &["wal-gap", "wal-lag", "wal-stopped", "wal-ready", "receiver-down", "sync-degraded", "slot-at-risk", "clock-skew"],
            ),
            (
                |seen| seen.server.as_mut().unwrap().trouble = Some("connection refused".into()),
                &["wal-lag", "wal-stopped", "wal-ready", "sync-degraded", "slot-at-risk", "clock-skew"],
            ),
            (
                |seen| {
                    seen.backups = None;
                    unseen(seen, "backups");
                },
                &[
                    "no-backup",
                    "backup-overdue",
                    "backup-degraded",
                    "artifacts-missing",
                    "backup-unreadable",
                    "signature-invalid",
                    "rpo-missed",
                ],
            ),
            (|seen| seen.drills = None, &["drill-failed", "drill-objective", "drill-overdue", "drill-evidence"]),
            (
                |seen| unseen(seen, "runs"),
                &["backup-failed", "verify-findings", "drill-failed", "drill-objective", "policy-denied", "task-failed"],
            ),
            (|seen| unseen(seen, "tasks"), &["backup-failed", "task-failed", "task-late"]),
            (|seen| unseen(seen, "keys"), &["key-ending"]),
            (|seen| unseen(seen, "disk /srv"), &["disk-space"]),
            (|seen| seen.repositories[1].trouble = Some("no route to host".into()), &["backup-unreadable", "replica-behind"]),
            (|seen| unseen(seen, "backups that only offsite has"), &["backup-unreadable"]),
        ];
        for (number, (change, expected)) in cases.iter().enumerate() {
            let mut observed = well();
            change(&mut observed);
            let unknown: Vec<&str> = CATALOGUE.iter().map(|kind| kind.name).filter(|name| !is_kind_known(&observed, name)).collect();
            assert_eq!(unknown, *expected, "case {number}");
        }
    }

    #[test]
    fn what_nobody_saw_of_one_says_nothing_against_another() {
        let mut observed = well();
        observed.repositories[1].trouble = Some("no route to host".into());
        unseen(&mut observed, "disk /srv");
        for (name, subject, expected) in [
            ("replica-behind", "offsite", false),
            ("replica-behind", "gone", true),
            ("backup-unreadable", "primary", false),
            ("backup-unreadable", "conductor-backup-20240608T000000Z", true),
            ("disk-space", "/srv", false),
            ("disk-space", "/var", true),
            ("repository-unreachable", "offsite", true),
            ("status-unknown", "wal", true),
        ] {
            assert_eq!(is_known(&observed, &alert(name, subject)), expected, "{name}/{subject}");
        }
        observed.repositories[0].trouble = Some("no such bucket".into());
        assert!(!is_known(&observed, &alert("replica-behind", "mirror")), "nobody knows what there is to lack");
        assert!(is_of_agent(&alert("status-stale", "")) && !is_of_agent(&alert("wal-gap", "")));
    }

    /// Whatever is raised comes from something that was seen.
    #[test]
    fn where_all_is_seen_all_is_known() {
        let observed = well();
        assert!(CATALOGUE.iter().all(|kind| is_kind_known(&observed, kind.name)));
    }
}
