use proptest::prelude::*;

use super::*;
use crate::wal::file::WalFile;
use crate::wal::{Lsn, Segment, SegmentSize, Timeline};

const NOW: &str = "2024-03-31T12:00:00Z";
const SYSTEM: SystemId = SystemId(7);
const MIB: u64 = 1 << 20;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    time(NOW)
}

fn hours_ago(hours: i64) -> Timestamp {
    now() - SignedDuration::from_hours(hours)
}

fn id_at(name: &str, at: Timestamp) -> BackupId {
    BackupId::next(&name.parse().unwrap(), at, [])
}

fn facts(at: Timestamp, healthy: bool) -> Facts {
    let content = Content { database: Database::Logical, artifacts: true };
    Facts { at, healthy, content, manifest: Sha256([1; 32]), point: None }
}

fn backup(at: Timestamp, healthy: bool) -> Candidate {
    Candidate { id: id_at("a", at), facts: Ok(facts(at, healthy)), pins: vec![], prune_after: None }
}

/// A copy of a data directory whose recovery begins in segment `segment`, and ends two segments later.
fn physical(at: Timestamp, segment: u64) -> Candidate {
    let mut backup = backup(at, true);
    let facts = backup.facts.as_mut().unwrap();
    facts.content.database = Database::Physical(SYSTEM);
    facts.point = Some(BackupPoint {
        id: backup.id.to_string(),
        timeline: Timeline(1),
        start_lsn: Lsn(segment * MIB + 40),
        stop_lsn: Lsn((segment + 1) * MIB + 40),
        consistent_at: at,
        degraded: false,
        wal_included: true,
    });
    backup
}

fn archive(segments: impl IntoIterator<Item = u64>) -> BTreeMap<SystemId, Archive> {
    let mut archive = Archive::new(SYSTEM, SegmentSize::new(1 << 20).unwrap());
    for number in segments {
        archive.add(WalFile::Segment(Segment { timeline: Timeline(1), number }), 1);
    }
    BTreeMap::from([(SYSTEM, archive)])
}

fn planned(policy: Policy, candidates: &[Candidate]) -> Plan {
    plan(policy, candidates, &BTreeMap::new(), now()).unwrap()
}

fn kept(plan: &Plan) -> Vec<String> {
    let kept = plan.decisions.iter().filter(|decision| decision.fate == Fate::Keep);
    kept.map(|decision| decision.backup.to_string()[9..].to_owned()).collect()
}

#[test]
fn no_rule_is_no_policy() {
    let only_grace = Policy { grace: SignedDuration::from_hours(1), ..Policy::default() };
    assert_eq!(plan(only_grace, &[backup(now(), true)], &BTreeMap::new(), now()), Err(ExpirePlanError::NoPolicy));
}

#[test]
fn every_rule_keeps_the_newest_of_its_periods() {
    // Four a day, for 100 days: the last one at 12:00 today.
    let all: Vec<Candidate> = (0..400).map(|n| backup(hours_ago(6 * n), true)).collect();
    let only = |policy: Policy| kept(&planned(policy, &all));
    assert_eq!(only(Policy { keep_last: 2, ..Policy::default() }), ["20240331T060000Z", "20240331T120000Z"]);
    assert_eq!(only(Policy { keep_daily: 3, ..Policy::default() }), ["20240329T180000Z", "20240330T180000Z", "20240331T120000Z"]);
    assert_eq!(only(Policy { keep_weekly: 3, ..Policy::default() }), ["20240317T180000Z", "20240324T180000Z", "20240331T120000Z"]);
    assert_eq!(only(Policy { keep_monthly: 2, ..Policy::default() }), ["20240229T180000Z", "20240331T120000Z"]);
    assert_eq!(only(Policy { keep_yearly: 5, ..Policy::default() }), ["20231231T180000Z", "20240331T120000Z"]);
    let plan = planned(Policy { keep_daily: 1, keep_yearly: 1, ..Policy::default() }, &all);
    let newest = plan.decisions.last().unwrap();
    assert_eq!(newest.reasons, ["the newest healthy one", "the newest of day 2024-03-31", "the newest of year 2024"]);
    assert_eq!(plan.decisions[0].reasons, ["no rule keeps it"]);
}

#[test]
fn days_without_a_backup_do_not_count() {
    // A server that was down for a month does not lose what it has.
    let all = [backup(hours_ago(24 * 40), true), backup(hours_ago(24 * 41), true), backup(hours_ago(24 * 42), true)];
    assert_eq!(kept(&planned(Policy { keep_daily: 3, ..Policy::default() }, &all)).len(), 3);
}

#[test]
fn c106_expire_never_takes_the_last_healthy_backup() {
    let all = [backup(hours_ago(9000), true), backup(hours_ago(30), false), backup(hours_ago(1), false)];
    let plan = planned(Policy { keep_last: 1, ..Policy::default() }, &all);
    assert!(plan.expiring().next().is_none(), "{plan:?}");
    // What is newer than the last healthy one is all there is of that time.
    assert_eq!(plan.decisions[2].reasons, ["degraded, but no healthy one is newer"]);
    let mut all = all.to_vec();
    all.push(backup(now(), true));
    let plan = planned(Policy { keep_last: 1, ..Policy::default() }, &all);
    assert_eq!(plan.expiring().count(), 3);
}

#[test]
fn degraded_backups_do_not_stand_for_healthy_ones() {
    let all = [backup(time("2024-03-29T01:00:00Z"), true), backup(time("2024-03-30T02:00:00Z"), false), backup(now(), true)];
    let plan = planned(Policy { keep_daily: 2, ..Policy::default() }, &all);
    assert_eq!(kept(&plan), ["20240329T010000Z", "20240330T020000Z", "20240331T120000Z"]);
    assert_eq!(plan.decisions[1].reasons, ["degraded, but day 2024-03-30 has no healthy one"]);
    let plan = planned(Policy { keep_last: 1, ..Policy::default() }, &all);
    assert_eq!(kept(&plan), ["20240331T120000Z"]);
}

#[test]
fn backups_that_have_other_things_do_not_stand_for_each_other() {
    let mut all: Vec<Candidate> = (0..10).map(|n| backup(hours_ago(n), true)).collect();
    for artifacts in &mut all[..9] {
        artifacts.facts.as_mut().unwrap().content.database = Database::None;
    }
    let mut other = backup(hours_ago(500), true);
    other.id = id_at("b", hours_ago(500));
    all.push(other);
    let plan = planned(Policy { keep_last: 1, ..Policy::default() }, &all);
    let kept: Vec<String> = plan.decisions.iter().filter(|d| d.fate == Fate::Keep).map(|d| d.backup.to_string()).collect();
    assert_eq!(kept, ["b-backup-20240310T160000Z", "a-backup-20240331T030000Z", "a-backup-20240331T120000Z"]);
}

#[test]
fn what_cannot_be_verified_neither_counts_nor_expires() {
    let mut bad = backup(hours_ago(1), true);
    bad.facts = Err("its signature does not hold".into());
    let all = [backup(hours_ago(30), true), backup(hours_ago(20), true), bad];
    let plan = planned(Policy { keep_last: 1, ..Policy::default() }, &all);
    assert_eq!(plan.decisions.iter().map(|d| d.fate).collect::<Vec<_>>(), [Fate::Expire, Fate::Keep, Fate::Keep]);
    assert_eq!(plan.warnings.len(), 1);
    assert!(plan.warnings[0].contains("its signature does not hold"), "{plan:?}");
}

#[test]
fn c107_a_backup_from_the_future_is_kept_and_counts_for_nothing() {
    let late = now() + SignedDuration::from_hours(1);
    let all = [backup(hours_ago(30), true), backup(hours_ago(20), true), backup(late, true)];
    let plan = planned(Policy { keep_last: 1, ..Policy::default() }, &all);
    assert_eq!(plan.decisions.iter().map(|d| d.fate).collect::<Vec<_>>(), [Fate::Expire, Fate::Keep, Fate::Keep]);
    assert!(plan.warnings[0].contains("in the future"), "{plan:?}");
    // A clock that is a little ahead is none to speak of.
    let all = [backup(hours_ago(20), true), backup(now() + SignedDuration::from_mins(4), true)];
    assert_eq!(planned(Policy { keep_last: 1, ..Policy::default() }, &all).warnings, Vec::<String>::new());
}

#[test]
fn c107_the_time_of_the_manifest_decides_not_that_of_the_id() {
    let mut late = backup(hours_ago(100), true);
    late.facts.as_mut().unwrap().at = hours_ago(1);
    let all = [late.clone(), backup(hours_ago(50), true)];
    let plan = planned(Policy { keep_last: 1, ..Policy::default() }, &all);
    assert_eq!(plan.expiring().map(|d| &d.backup).collect::<Vec<_>>(), [&all[1].id]);
}

#[test]
fn pins_hold_and_expired_backups_stand_for_nothing() {
    let mut all: Vec<Candidate> = (0..4).map(|n| backup(hours_ago(n), true)).collect();
    all[3].pins.push("audit".into());
    all[0].prune_after = Some(now());
    let plan = planned(Policy { keep_last: 1, ..Policy::default() }, &all);
    assert_eq!(plan.decisions.iter().map(|d| d.fate).collect::<Vec<_>>(), [Fate::Keep, Fate::Expire, Fate::Keep, Fate::Expired]);
    assert_eq!(plan.decisions[0].reasons, ["pin audit holds it"]);
    let alone = [all[0].clone()];
    assert!(planned(Policy { keep_last: 1, ..Policy::default() }, &alone).warnings[0].contains("the last healthy backup"));
}

#[test]
fn c106_the_recovery_window_keeps_the_backup_before_it_and_every_one_that_wal_does_not_reach() {
    let policy = Policy { recovery_window: Some(SignedDuration::from_hours(24)), ..Policy::default() };
    // Every 6 hours, segments 0, 10, 20, …; the last one now.
    let all: Vec<Candidate> = (0..10).map(|n| physical(hours_ago(6 * (9 - n)), 10 * n as u64)).collect();
    let of = |archives: &BTreeMap<SystemId, Archive>| kept(&plan(policy, &all, archives, now()).unwrap());
    // From 12:00 yesterday on: that backup is consistent just then, and WAL does the rest; and the newest.
    assert_eq!(of(&archive(0..100)), ["20240330T120000Z", "20240331T120000Z"]);
    // Segment 65 is lost: the backup behind it begins a new chain.
    assert_eq!(of(&archive((0..65).chain(66..100))), ["20240330T120000Z", "20240331T000000Z", "20240331T120000Z"]);
    // No WAL at all.
    assert_eq!(of(&BTreeMap::new()).len(), 5);
    // None is old enough: the oldest is as far as it goes.
    let wide = Policy { recovery_window: Some(SignedDuration::from_hours(1000)), ..policy };
    assert_eq!(kept(&plan(wide, &all, &archive(0..100), now()).unwrap()), ["20240329T060000Z", "20240331T120000Z"]);
}

fn policies() -> impl Strategy<Value = Policy> {
    (0u32..4, 0u32..5, 0u32..4, 0u32..3, 0u32..3, prop::option::of(1i64..400)).prop_map(|(last, daily, weekly, monthly, yearly, window)| {
        Policy {
            keep_last: last.max(1),
            keep_daily: daily,
            keep_weekly: weekly,
            keep_monthly: monthly,
            keep_yearly: yearly,
            recovery_window: window.map(SignedDuration::from_hours),
            grace: SignedDuration::from_hours(168),
        }
    })
}

fn backups() -> impl Strategy<Value = Vec<Candidate>> {
    // Hours ago; what it is; pinned; expired; unreadable.
    let one = (0i64..2000, 0u8..4, prop::bool::weighted(0.1), prop::bool::weighted(0.2), prop::bool::weighted(0.1));
    prop::collection::vec(one, 0..40).prop_map(|all| {
        let mut backups: Vec<Candidate> = Vec::new();
        for (hours, kind, pinned, expired, unreadable) in all {
            let mut one = match kind {
                0 => backup(hours_ago(hours), false),
                1 => backup(hours_ago(hours), true),
                _ => physical(hours_ago(hours), (2000 - hours) as u64),
            };
            if backups.iter().any(|other| other.id == one.id) {
                continue;
            }
            one.pins.extend(pinned.then(|| "p".to_owned()));
            one.prune_after = expired.then(now);
            if unreadable {
                one.facts = Err("damaged".into());
            }
            backups.push(one);
        }
        backups
    })
}

fn archives() -> impl Strategy<Value = BTreeMap<SystemId, Archive>> {
    prop::collection::btree_set(0u64..2010, 0..6).prop_map(|lost| archive((0..2010).filter(move |number| !lost.contains(number))))
}

fn expiring(plan: &Plan) -> BTreeSet<BackupId> {
    plan.expiring().map(|decision| decision.backup.clone()).collect()
}

proptest! {
    #[test]
    fn c106_what_must_stay_is_never_in_the_set_that_expires(policy in policies(), all in backups(), archives in archives()) {
        let plan = plan(policy, &all, &archives, now()).unwrap();
        let gone = expiring(&plan);
        prop_assert_eq!(plan.decisions.len(), all.len());
        prop_assert!(plan.decisions.iter().all(|decision| !decision.reasons.is_empty()));
        let mut newest: BTreeMap<Content, &Candidate> = BTreeMap::new();
        for candidate in &all {
            if gone.contains(&candidate.id) {
                prop_assert!(candidate.pins.is_empty() && candidate.prune_after.is_none() && candidate.facts.is_ok());
            }
            if let Ok(facts) = &candidate.facts
                && facts.healthy && candidate.prune_after.is_none()
                && newest.get(&facts.content).is_none_or(|other| time_of(other) < facts.at)
            {
                newest.insert(facts.content, candidate);
            }
        }
        for last in newest.values() {
            prop_assert!(!gone.contains(&last.id), "the last healthy one");
        }
    }

    #[test]
    fn expiring_twice_expires_no_more(policy in policies(), all in backups(), archives in archives()) {
        let first = plan(policy, &all, &archives, now()).unwrap();
        let gone = expiring(&first);
        let mut later = all.clone();
        for candidate in later.iter_mut().filter(|candidate| gone.contains(&candidate.id)) {
            candidate.prune_after = Some(now());
        }
        let again = expiring(&plan(policy, &later, &archives, now()).unwrap());
        prop_assert!(again.is_empty(), "{again:?}");
        // Also when they are gone.
        later.retain(|candidate| candidate.prune_after.is_none());
        let again = expiring(&plan(policy, &later, &archives, now()).unwrap());
        prop_assert!(again.is_empty(), "{again:?}");
    }

    #[test]
    fn who_keeps_more_expires_no_more(policy in policies(), more in (0u32..3, 0u32..3, 0u32..3, 0u32..3, 0u32..3), all in backups(), archives in archives()) {
        let wider = Policy {
            keep_last: policy.keep_last + more.0,
            keep_daily: policy.keep_daily + more.1,
            keep_weekly: policy.keep_weekly + more.2,
            keep_monthly: policy.keep_monthly + more.3,
            keep_yearly: policy.keep_yearly + more.4,
            ..policy
        };
        let (less, more) = (plan(policy, &all, &archives, now()).unwrap(), plan(wider, &all, &archives, now()).unwrap());
        prop_assert!(expiring(&more).is_subset(&expiring(&less)));
        prop_assert_eq!(less.digest(), plan(policy, &all, &archives, now()).unwrap().digest());
    }

    /// Before and after the expiry, the moments that can be gone back to within the window are the same.
    #[test]
    fn c106_no_moment_of_the_recovery_window_is_lost(policy in policies(), all in backups(), archives in archives(), moment in 0i64..400) {
        let Some(window) = policy.recovery_window else { return Ok(()) };
        let moment = hours_ago(moment);
        if moment < now() - window {
            return Ok(());
        }
        // Segments follow the clock: one an hour.
        let lsn = |at: Timestamp| Lsn(((2000 - (now().as_second() - at.as_second()) / 3600) as u64 + 1) * MIB + 40);
        let archive = &archives[&SYSTEM];
        let path = archive.path(Timeline(1)).unwrap();
        let reaches = |candidate: &&Candidate| {
            let Some(point) = candidate.facts.as_ref().ok().filter(|facts| facts.healthy).and_then(|facts| facts.point.as_ref()) else { return false };
            point.consistent_at <= moment && archive.reach_of(&path, point).to >= lsn(moment)
        };
        let gone = expiring(&plan(policy, &all, &archives, now()).unwrap());
        let counts = |candidate: &&Candidate| candidate.prune_after.is_none();
        let before = all.iter().filter(counts).filter(reaches).count();
        let after = all.iter().filter(counts).filter(reaches).filter(|candidate| !gone.contains(&candidate.id)).count();
        prop_assert!(before == 0 || after > 0, "{moment} was in reach");
    }
}
