//! A system of which nothing can be said but good, for tests to spoil.

use jiff::{SignedDuration, Timestamp};

use super::{
    ArtifactsSeen, BackupSeen, BackupState, DiskSeen, DrillSeen, DrillsSeen, KeySeen, MomentSeen, Objectives, Observed, Outcome,
    ReceiverSeen, RepositorySeen, RunSeen, ServerSeen, SignatureState, SlotSeen, TaskSeen, TimelineSeen, WalSeen, WindowSeen,
};
use crate::drill::Verdict;

/// When it was looked at.
pub(crate) fn at() -> Timestamp {
    "2024-06-10T12:00:00Z".parse().expect("a time")
}

/// So long before that.
pub(crate) fn ago(hours: i64) -> Timestamp {
    at() - SignedDuration::from_hours(hours)
}

/// So long after.
pub(crate) fn ahead(hours: i64) -> Timestamp {
    at() + SignedDuration::from_hours(hours)
}

/// Seen to be well in everything that can be seen.
pub(crate) fn well() -> Observed {
    let repository = |name: &str, part: &str| RepositorySeen {
        name: name.into(),
        url: format!("file:///srv/{name}"),
        part: part.into(),
        trouble: None,
        missed: 0,
        missed_everything: false,
        lacks: Vec::new(),
        primary_lacks: Vec::new(),
        newest_backup: Some(backup(2).id),
    };
    let disk = |what: &str, path: &str| DiskSeen { what: what.into(), path: path.into(), free_bytes: 60 << 30, total_bytes: 100 << 30 };
    Observed {
        name: "conductor".into(),
        environment: "production".into(),
        host: "db1".into(),
        program: "lifeboat 0.1.0".into(),
        at: at(),
        took_seconds: 0.5,
        objectives: Objectives { rpo_seconds: 86_400, rto_seconds: 4 * 3600, drill_seconds: 90 * 86_400 },
        server: Some(ServerSeen {
            endpoint: "db1:5432".into(),
            trouble: None,
            version_num: Some(160_003),
            system_id: Some("7".into()),
            timeline: Some(1),
            position: Some("0/5000000".into()),
            in_recovery: false,
        }),
        repositories: vec![repository("primary", "primary"), repository("offsite", "best-effort")],
        backups: Some(vec![backup(2), backup(26)]),
        wal: Some(wal()),
        artifacts: Some(ArtifactsSeen { changed: Some(ago(2)), count: 3, bytes: 300 }),
        drills: Some(DrillsSeen { entries: vec![drill(10), drill(80)], older: 0, findings: Vec::new() }),
        keys: vec![KeySeen {
            what: "signing key".into(),
            name: "3x3oYvE0".into(),
            signs_here: true,
            state: "trusted".into(),
            not_after: Some(ahead(365 * 24)),
        }],
        disks: vec![disk("WAL", "/var/lib/postgresql"), disk("spool", "/var/spool/lifeboat")],
        runs: ["backup", "verify", "expire", "prune", "replicate", "drill"].map(run).to_vec(),
        tasks: vec![TaskSeen {
            name: "backup".into(),
            schedule: "0 2 * * *".into(),
            time_zone: "UTC".into(),
            next: Some(ahead(14)),
            running_since: None,
            deadline_seconds: 6 * 3600,
            attempt: 0,
            undone: None,
            at: at(),
        }],
        unseen: Vec::new(),
    }
}

/// A backup that began so many hours ago.
pub(crate) fn backup(hours: i64) -> BackupSeen {
    BackupSeen {
        id: format!("conductor-backup-{}", ago(hours).strftime("%Y%m%dT%H%M%SZ")),
        started: Some(ago(hours)),
        ended: Some(ago(hours) + SignedDuration::from_mins(10)),
        consistent_at: Some(ago(hours) + SignedDuration::from_mins(9)),
        state: BackupState::Healthy,
        signature: SignatureState::Valid,
        copy: Some("local".into()),
        postgres: Some(16),
        files: 1000,
        plain_bytes: 1 << 30,
        stored_bytes: 1 << 28,
        artifacts: Some(3),
        missing_artifacts: 0,
        pins: Vec::new(),
        whole_until: None,
        problem: None,
    }
}

/// A drill of so many days ago that passed.
pub(crate) fn drill(days: i64) -> DrillSeen {
    DrillSeen {
        id: format!("conductor-drill-{}", ago(days * 24).strftime("%Y%m%dT%H%M%SZ")),
        at: ago(days * 24),
        verdict: Some(Verdict::Passed),
        rto_seconds: Some(300.0),
        verified_seconds: Some(600.0),
        rpo_seconds: Some(30.0),
        backup: Some(backup(days * 24 + 1).id),
        signature: SignatureState::Valid,
    }
}

/// The last run of an operation, an hour ago, as it should be.
pub(crate) fn run(operation: &str) -> RunSeen {
    RunSeen {
        operation: operation.into(),
        id: format!("{operation}-1"),
        started: ago(1),
        ended: Some(ago(1) + SignedDuration::from_mins(10)),
        outcome: Outcome::Succeeded,
        exit_code: Some(0),
        message: None,
        hint: None,
        failures: 0,
        last_success: Some(ago(1) + SignedDuration::from_mins(10)),
        last_success_seconds: Some(600.0),
    }
}

fn wal() -> WalSeen {
    let moment = |lsn: &str, time| MomentSeen { lsn: lsn.into(), time: Some(time) };
    WalSeen {
        mode: "stream".into(),
        system_id: "7".into(),
        timelines: vec![TimelineSeen {
            timeline: 1,
            from: Some("0/1000000".into()),
            to: Some("0/5000000".into()),
            segments: 4,
            stored_bytes: 1 << 24,
            gaps: Vec::new(),
        }],
        windows: vec![WindowSeen {
            timeline: 1,
            from: moment("0/2000000", ago(26)),
            to: moment("0/5000000", at()),
            except: Vec::new(),
            stopped_by: None,
            backups: 2,
        }],
        last_commit: Some(at()),
        kept_until: None,
        lag_bytes: Some(0),
        ready: Some(0),
        slots: vec![SlotSeen {
            name: "lifeboat".into(),
            ours: true,
            active: true,
            wal_status: Some("reserved".into()),
            held_bytes: 0,
            safe_bytes: Some(1 << 30),
        }],
        receiver: Some(ReceiverSeen {
            state: "streaming".into(),
            mode: "stream".into(),
            age_seconds: 1,
            received: "0/5000000".into(),
            spooled: "0/5000000".into(),
            stored: "0/5000000".into(),
            waiting_bytes: 0,
            degraded: false,
        }),
        findings: Vec::new(),
    }
}
