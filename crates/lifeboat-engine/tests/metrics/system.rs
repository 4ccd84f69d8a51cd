//! A system as it may be seen, with everything in it that can be told.

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::alert::Terms;
use lifeboat_core::drill::Verdict;
use lifeboat_core::status::{
    ArtifactsSeen, BackupSeen, BackupState, DiskSeen, DrillSeen, DrillsSeen, FindingSeen, KeySeen, MomentSeen, Objectives, Observed,
    Outcome, ReceiverSeen, RepositorySeen, RunSeen, ServerSeen, Severity, SignatureState, SlotSeen, Status, TaskSeen, TimelineSeen, Unseen,
    WalSeen, WindowSeen, assess,
};
use lifeboat_engine::metrics::{AgentFacts, Deliveries, TaskRuns};

pub(crate) const DAY: i64 = 86_400;

fn ago(at: Timestamp, seconds: i64) -> Timestamp {
    at - SignedDuration::from_secs(seconds)
}

/// What it comes to.
pub(crate) fn status(observed: Observed) -> Status {
    let rpo = std::time::Duration::from_secs(observed.objectives.rpo_seconds);
    assess(observed, &Terms::for_rpo(rpo))
}

/// Nothing is configured, and nothing could be looked at.
pub(crate) fn blind(at: Timestamp) -> Observed {
    Observed {
        name: "conductor".into(),
        environment: "production".into(),
        host: "db1".into(),
        program: "lifeboat 0.1.0".into(),
        at,
        took_seconds: 0.25,
        objectives: Objectives { rpo_seconds: 86_400, rto_seconds: 14_400, drill_seconds: 90 * 86_400 },
        server: None,
        repositories: Vec::new(),
        backups: None,
        wal: None,
        artifacts: None,
        drills: None,
        keys: Vec::new(),
        disks: Vec::new(),
        runs: Vec::new(),
        tasks: Vec::new(),
        unseen: Vec::new(),
    }
}

fn backup(at: Timestamp, age: i64, state: BackupState, signature: SignatureState) -> BackupSeen {
    let started = ago(at, age);
    BackupSeen {
        id: format!("conductor-backup-{}", started.strftime("%Y%m%dT%H%M%SZ")),
        started: Some(started),
        ended: Some(ago(at, age - 90)),
        consistent_at: Some(ago(at, age - 80)),
        state,
        signature,
        copy: Some("local".into()),
        postgres: Some(16),
        files: 1_703,
        plain_bytes: 5_000_000_000,
        stored_bytes: 1_250_000_000,
        artifacts: Some(412),
        missing_artifacts: 0,
        pins: Vec::new(),
        whole_until: None,
        problem: None,
    }
}

fn drill(at: Timestamp, age: i64, verdict: Option<Verdict>) -> DrillSeen {
    let at = ago(at, age);
    DrillSeen {
        id: format!("conductor-drill-{}", at.strftime("%Y%m%dT%H%M%SZ")),
        at,
        verdict,
        rto_seconds: Some(812.5),
        verified_seconds: Some(1_204.75),
        rpo_seconds: Some(3.5),
        backup: None,
        signature: SignatureState::Valid,
    }
}

fn wal(at: Timestamp) -> WalSeen {
    let moment = |lsn: &str, age: i64| MomentSeen { lsn: lsn.into(), time: Some(ago(at, age)) };
    let timeline = |timeline: u32, gaps: &[&str]| TimelineSeen {
        timeline,
        from: Some("0/1000000".into()),
        to: Some("1/7A000060".into()),
        segments: 378 * u64::from(timeline),
        stored_bytes: 2_000_000_000,
        gaps: gaps.iter().map(|gap| (*gap).to_owned()).collect(),
    };
    let window = |timeline: u32, from: MomentSeen, to: MomentSeen, stopped_by: Option<&str>| WindowSeen {
        timeline,
        from,
        to,
        except: Vec::new(),
        stopped_by: stopped_by.map(str::to_owned),
        backups: 1,
    };
    let slot = |name: &str, ours: bool, wal_status: &str, safe_bytes: Option<u64>| SlotSeen {
        name: name.into(),
        ours,
        active: ours,
        wal_status: Some(wal_status.into()),
        held_bytes: 16 << 20,
        safe_bytes,
    };
    WalSeen {
        mode: "stream".into(),
        system_id: "7300000000000000001".into(),
        timelines: vec![timeline(1, &["0/5000000 to 0/6000000"]), timeline(2, &[])],
        windows: vec![
            window(1, moment("0/2000000", 20 * DAY), moment("0/5000000", 15 * DAY), Some("0/5000000 to 0/6000000")),
            window(2, moment("0/8000000", 2 * DAY), moment("1/7A000060", 4), None),
        ],
        last_commit: Some(ago(at, 4)),
        kept_until: None,
        lag_bytes: Some(12_345),
        ready: Some(3),
        slots: vec![slot("lifeboat", true, "reserved", Some(1 << 30)), slot("forgotten", false, "lost", None)],
        receiver: Some(ReceiverSeen {
            state: "streaming".into(),
            mode: "stream".into(),
            age_seconds: 1,
            received: "1/7A003000".into(),
            spooled: "1/7A003000".into(),
            stored: "1/7A000060".into(),
            waiting_bytes: 12_192,
            degraded: false,
        }),
        findings: vec![FindingSeen {
            code: "slot-lost".into(),
            severity: Severity::Critical,
            message: "the slot forgotten has lost WAL".into(),
            hint: "drop it".into(),
        }],
    }
}

fn run(at: Timestamp, operation: &str, outcome: Outcome, failures: u64) -> RunSeen {
    RunSeen {
        operation: operation.into(),
        id: "01J0000000000000000000000A".into(),
        started: ago(at, 7_200),
        ended: (outcome != Outcome::Running).then(|| ago(at, 7_000)),
        outcome,
        exit_code: match outcome {
            Outcome::Succeeded => Some(0),
            Outcome::Findings => Some(3),
            Outcome::Failed => Some(1),
            Outcome::Running | Outcome::Interrupted => None,
        },
        message: None,
        hint: None,
        failures,
        last_success: Some(ago(at, if failures > 0 { DAY } else { 7_000 })),
        last_success_seconds: Some(200.5),
    }
}

/// Everything at once: what is well, what is not, and what could not be looked at.
pub(crate) fn full(at: Timestamp) -> Observed {
    let repository = |name: &str, part: &str| RepositorySeen {
        name: name.into(),
        url: format!("s3://{name}/conductor"),
        part: part.into(),
        trouble: None,
        missed: 0,
        missed_everything: false,
        lacks: Vec::new(),
        primary_lacks: Vec::new(),
        newest_backup: None,
    };
    let mut observed = blind(at);
    observed.server = Some(ServerSeen {
        endpoint: "db1:5432".into(),
        trouble: None,
        version_num: Some(160_004),
        system_id: Some("7300000000000000001".into()),
        timeline: Some(2),
        position: Some("1/7A003099".into()),
        in_recovery: false,
    });
    observed.repositories = vec![
        repository("here", "primary"),
        RepositorySeen { missed: 7, lacks: vec!["conductor-backup-20240101T000000Z".into()], ..repository("there", "required") },
        RepositorySeen { trouble: Some("connection refused".into()), missed_everything: true, ..repository("far", "best-effort") },
        repository("mirror", "kept-by-store"),
    ];
    let pinned = BackupSeen { pins: vec!["audit".into()], ..backup(at, 3 * DAY, BackupState::Degraded, SignatureState::Valid) };
    let expired = BackupSeen {
        whole_until: Some(at + SignedDuration::from_secs(DAY)),
        ..backup(at, 9 * DAY, BackupState::Healthy, SignatureState::Valid)
    };
    observed.backups = Some(vec![
        backup(at, 7_200, BackupState::Healthy, SignatureState::Valid),
        backup(at, 2 * DAY, BackupState::Healthy, SignatureState::NotValid),
        pinned,
        expired,
    ]);
    observed.wal = Some(wal(at));
    observed.artifacts = Some(ArtifactsSeen { changed: Some(ago(at, 7_200)), count: 412, bytes: 9_876_543_210 });
    observed.drills = Some(DrillsSeen {
        entries: vec![drill(at, 5 * DAY, Some(Verdict::ObjectiveMissed)), drill(at, 30 * DAY, Some(Verdict::Passed))],
        older: 11,
        findings: vec!["drill 3: its signature does not hold".into()],
    });
    let key = |what: &str, name: &str, signs_here: bool, end: Option<i64>| KeySeen {
        what: what.into(),
        name: name.into(),
        signs_here,
        state: "trusted".into(),
        not_after: end.map(|days| ago(at, -days * DAY)),
    };
    observed.keys = vec![
        key("signing key", "qXm4c8l2", true, Some(200)),
        key("trusted key", "qXm4c8l2", true, Some(200)),
        key("certificate", "ci@example.org", false, Some(3)),
        key("certificate", "ci@example.org", false, Some(90)),
        key("trusted key", "old", false, None),
    ];
    let disk =
        |what: &str, path: &str, free_bytes: u64| DiskSeen { what: what.into(), path: path.into(), free_bytes, total_bytes: 100 << 30 };
    observed.disks =
        vec![disk("spool", "/var/lib/lifeboat/spool", 60 << 30), disk("data directory", "/var/lib/postgresql/16/main", 4 << 30)];
    observed.runs = vec![
        run(at, "backup", Outcome::Succeeded, 0),
        run(at, "verify", Outcome::Findings, 0),
        run(at, "replicate", Outcome::Failed, 3),
        run(at, "drill", Outcome::Running, 0),
    ];
    let task = |name: &str, running: bool| TaskSeen {
        name: name.into(),
        schedule: "0 2 * * *".into(),
        time_zone: "UTC".into(),
        next: (!running).then(|| ago(at, -3_600)),
        running_since: running.then(|| ago(at, 60)),
        deadline_seconds: 21_600,
        attempt: u32::from(running),
        undone: None,
        at,
    };
    observed.tasks = vec![task("backup", false), task("drill", true)];
    observed.unseen = vec![Unseen { what: "repository far".into(), why: "connection refused".into() }];
    observed
}

/// What an agent may know of itself.
pub(crate) fn agent(at: Timestamp) -> AgentFacts {
    let deliveries = |sink: &str, total, failed| Deliveries { sink: sink.into(), total, failed };
    AgentFacts {
        started: ago(at, 3 * DAY),
        leads: true,
        deliveries: vec![deliveries("alertmanager", 812, 2), deliveries("pager", 3, 0)],
        runs: vec![
            TaskRuns { operation: "backup".into(), outcome: Outcome::Succeeded, total: 3 },
            TaskRuns { operation: "replicate".into(), outcome: Outcome::Failed, total: 5 },
        ],
    }
}

/// What a name can have in it that a format may trip over.
pub(crate) const HOSTILE: [&str; 8] = [
    "a \"quoted\" name",
    "two\nlines",
    "back\\slash",
    "ends with a backslash\\",
    "\\n is no newline",
    "Größe 容量 🛟",
    "} 1\nlifeboat_recoverable 1\n# EOF",
    " \t{},=#\r",
];

/// The same system, named by somebody who wants to be told of as something else.
pub(crate) fn hostile(at: Timestamp) -> Observed {
    let mut observed = full(at);
    observed.name = HOSTILE[6].into();
    let first = observed.repositories[1].clone();
    observed.repositories.extend(HOSTILE.iter().map(|name| RepositorySeen { name: (*name).into(), ..first.clone() }));
    let first = observed.disks[0].clone();
    observed.disks.extend(HOSTILE.iter().map(|path| DiskSeen { path: (*path).into(), ..first.clone() }));
    let wal = observed.wal.as_mut().unwrap();
    let first = wal.slots[0].clone();
    wal.slots.extend(HOSTILE.iter().map(|name| SlotSeen { name: (*name).into(), ..first.clone() }));
    let first = observed.keys[0].clone();
    observed.keys.extend(HOSTILE.iter().map(|name| KeySeen { name: (*name).into(), ..first.clone() }));
    observed.unseen.extend(HOSTILE.iter().map(|what| Unseen { what: (*what).into(), why: String::new() }));
    observed
}
