//! Facts by chance, from a printed seed: every operation, and members there and not there.

use jiff::Timestamp;
use lifeboat_core::policy::{
    ActionClass, Actor, ApprovalFacts, ApproverKind, BackupFacts, BreakGlass, DeletionFacts, FACTS_SCHEMA, Facts, Operation, PlanFacts,
    RepositoryFacts, TargetFacts,
};
use lifeboat_core::repository::Sha256;

/// Numbers by chance (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn number(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn one_in(&mut self, number: u64) -> bool {
        self.number(number) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.number(from.len() as u64)).unwrap()].clone()
    }

    fn text(&mut self, from: &[&str]) -> String {
        self.pick(from).to_owned()
    }
}

const PEOPLE: [&str; 5] = ["ada", "grace", "linus", "Zoë \"the\" admin\n", "root"];

/// Facts that the program could ask about, and some that it should not.
pub(crate) fn facts(dice: &mut Dice) -> Facts {
    // Two thirds of those that are not allowed at once.
    let weighty: Vec<Operation> = Operation::ALL
        .into_iter()
        .filter(|operation| matches!(operation.class(), ActionClass::Deploy | ActionClass::Delete | ActionClass::Key))
        .collect();
    let operation = if dice.one_in(3) { dice.pick(&Operation::ALL) } else { dice.pick(&weighty) };
    let seconds = 1_700_000_000 + i64::try_from(dice.number(40_000_000)).unwrap();
    let time = Timestamp::new(seconds, i32::try_from(dice.number(2) * dice.number(1_000_000_000)).unwrap()).unwrap();
    let maybe = |dice: &mut Dice| !dice.one_in(4);
    Facts {
        schema: FACTS_SCHEMA,
        time,
        time_seconds: seconds,
        operation,
        action: operation.class(),
        dry_run: dice.one_in(6),
        actor: Actor {
            user: dice.text(&PEOPLE),
            uid: u32::try_from(dice.number(70_000)).unwrap(),
            sudo_user: dice.one_in(3).then(|| dice.text(&PEOPLE)),
        },
        host: dice.text(&["db1", "restore-7", "restore-7.example.org", "janitor.example.org", ""]),
        environment: dice.text(&["production", "production", "production", "staging", "unspecified", ""]),
        repository: maybe(dice).then(|| RepositoryFacts {
            url: dice.text(&["s3://backups/conductor", "file:///srv/backup"]),
            id: dice.one_in(2).then(|| "7f0c".to_owned()),
        }),
        backup: maybe(dice).then(|| BackupFacts {
            id: dice.text(&["conductor-backup-20240315T120000Z", "other-backup-20240610T060000Z"]).parse().unwrap(),
            name: "conductor".into(),
            state: dice.text(&["healthy", "healthy", "degraded"]),
            started: time,
            age_seconds: i64::try_from(dice.number(1_000_000)).unwrap(),
            signed_by: "https://issuer.example deploy@example.org".into(),
        }),
        target: maybe(dice).then(|| TargetFacts {
            pgdata: dice.one_in(2).then(|| "/var/lib/postgresql/16/main".into()),
            artifacts: dice.one_in(2).then(|| "/srv/artifacts".into()),
            start: dice.one_in(3),
            recovery: dice.one_in(2).then(|| dice.text(&["latest", "immediate", "time", "lsn", "transaction-id", "name"])),
            production: dice.one_in(3),
            accept_degraded: dice.one_in(3),
        }),
        deletion: maybe(dice).then(|| DeletionFacts {
            backups: dice.number(5),
            objects: dice.number(100_000),
            forget: (0..dice.number(3)).map(|number| format!("conductor-backup-2024010{}T000000Z", number + 1)).collect(),
        }),
        plan: maybe(dice).then(|| plan(dice, time)),
        break_glass: dice.one_in(3).then(|| BreakGlass {
            reason: dice.text(&[
                "the data centre burns",
                "x",
                "äöü äöü",
                "äöüäöüäöü€",
                "           short     ",
                "\u{1f525}".repeat(10).as_str(),
            ]),
        }),
    }
}

fn plan(dice: &mut Dice, now: Timestamp) -> PlanFacts {
    let approvals = (0..dice.number(4))
        .map(|_| {
            let left = jiff::SignedDuration::from_secs(i64::try_from(dice.number(86_400)).unwrap() - 3600);
            ApprovalFacts {
                approver: dice.text(&PEOPLE),
                kind: dice.pick(&[ApproverKind::Key, ApproverKind::Identity, ApproverKind::Ssh]),
                granted: now,
                expires: if dice.one_in(8) { now } else { now + left },
            }
        })
        .collect();
    PlanFacts {
        digest: Sha256([u8::try_from(dice.number(256)).unwrap(); 32]),
        requester: (!dice.one_in(3)).then(|| dice.text(&PEOPLE)),
        approvals,
    }
}
