//! Which objects go: backups, what stands under their ids, WAL by timeline; and what never does.

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::expire::{Database, Facts};
use crate::wal::history::{Entry, History};
use crate::wal::{SegmentSize, SystemId};

const MIB: u64 = 1 << 20;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    time("2024-03-31T12:00:00Z")
}

fn hours_ago(hours: i64) -> Timestamp {
    now() - SignedDuration::from_hours(hours)
}

/// A whole backup so many hours ago; its grace period ended, or ends, so many hours from now.
fn stored(hours: i64, healthy: bool, prune_in: Option<i64>) -> Stored {
    let at = hours_ago(hours);
    let content = Content { database: Database::Logical, artifacts: false };
    let candidate = Candidate {
        id: BackupId::next(&"a".parse().unwrap(), at, []),
        facts: Ok(Facts { at, healthy, content, manifest: Sha256([1; 32]), point: None }),
        pins: vec![],
        prune_after: prune_in.map(|hours| now() + SignedDuration::from_hours(hours)),
    };
    Stored { candidate, manifest: true, bundle: true }
}

fn broken(hours: i64, manifest: bool, bundle: bool, prune_in: Option<i64>) -> Stored {
    let mut one = stored(hours, true, prune_in);
    one.candidate.facts = Err("it is damaged".into());
    Stored { manifest, bundle, ..one }
}

fn leaving(all: &[Stored]) -> Vec<String> {
    backups(all, &BTreeSet::new(), now()).leaving.into_iter().map(|because| because.reason).collect()
}

#[test]
fn a_backup_goes_when_it_has_expired_and_its_grace_period_is_over() {
    let all = [stored(1, true, None), stored(2, true, Some(0)), stored(3, true, Some(1)), stored(4, true, Some(-1))];
    let decided = backups(&all, &BTreeSet::new(), now());
    let ids: Vec<&BackupId> = decided.leaving.iter().map(|because| &because.backup).collect();
    assert_eq!(ids, [&all[1].candidate.id, &all[3].candidate.id]);
    assert_eq!(decided.held.len(), 1);
    assert!(decided.blocked.is_empty());
    let mut pinned = all.clone();
    pinned[1].candidate.pins.push("audit".into());
    assert_eq!(backups(&pinned, &BTreeSet::new(), now()).leaving.len(), 1);
}

#[test]
fn c106_prune_never_takes_the_last_healthy_backup_whatever_the_marks_say() {
    let all = [stored(1, false, None), stored(2, true, Some(-1)), stored(3, true, Some(-1))];
    let decided = backups(&all, &BTreeSet::new(), now());
    assert_eq!(decided.leaving.iter().map(|because| &because.backup).collect::<Vec<_>>(), [&all[2].candidate.id]);
    assert_eq!(decided.held[0].reason, "it is the last healthy backup of its kind");
    // None healthy: the newest is what there is.
    let all = [stored(1, false, Some(-1)), stored(2, false, Some(-1))];
    assert_eq!(backups(&all, &BTreeSet::new(), now()).held[0].backup, all[0].candidate.id);
}

#[test]
fn c106_a_manifest_that_cannot_be_verified_keeps_everything() {
    let good = [stored(1, true, None), stored(2, true, Some(-1))];
    for (bad, blocked) in [
        (broken(5, true, true, None), true),
        (broken(5, true, true, Some(-1)), true),
        // A signature without a manifest: it is lost, or did not finish.
        (broken(5, false, true, None), true),
        // It was lost before its time.
        (broken(5, false, true, Some(1)), true),
        // Its prune began.
        (broken(5, false, true, Some(-1)), false),
        (broken(5, false, false, Some(-1)), false),
        // It did not finish.
        (broken(5, false, false, None), false),
    ] {
        let id = bad.candidate.id.clone();
        let mut all = good.to_vec();
        all.push(bad);
        let decided = backups(&all, &BTreeSet::new(), now());
        assert_eq!(!decided.blocked.is_empty(), blocked, "{all:?}");
        assert_eq!(decided.leaves(&id), !blocked);
        let given_up = backups(&all, &BTreeSet::from([id.clone()]), now());
        assert!(given_up.blocked.is_empty() && given_up.leaves(&id));
    }
    // Only what is broken can be given up.
    let id = good[0].candidate.id.clone();
    assert!(!backups(&good, &BTreeSet::from([id.clone()]), now()).leaves(&id));
}

#[test]
fn a_pin_holds_also_what_is_broken() {
    for mut bad in [broken(5, false, false, None), broken(5, false, true, Some(-1)), broken(5, true, true, None)] {
        bad.candidate.pins.push("audit".into());
        let id = bad.candidate.id.clone();
        let decided = backups(&[stored(1, true, None), bad], &BTreeSet::from([id.clone()]), now());
        assert!(!decided.leaves(&id) && !decided.blocked.is_empty(), "{decided:?}");
    }
}

#[test]
fn what_stands_under_a_backup_goes_in_an_order_that_can_be_interrupted() {
    let id: BackupId = "a-backup-20240315T120000Z".parse().unwrap();
    let key = |text: &str| Key::parse(&format!("{id}/{text}")).unwrap();
    let names = [
        "backup_manifest",
        "expired/0000000002.json",
        "expired/0000000001.json",
        "expired/x.json",
        "files/0",
        "files/01",
        "files/7",
        "manifest.json",
        "manifest.sigstore.json",
        "notes.txt",
        "pins/audit.ended.json",
        "pins/audit.json",
        "pins/Audit.json",
        "truth",
    ];
    let named = BTreeSet::from([key("files/7").to_string()]);
    let own = own_objects(&id, names.iter().map(|name| (key(name), 1)), &named);
    let keys = |listed: &[(Key, u64)]| listed.iter().map(|(key, _)| key.as_str()[26..].to_owned()).collect::<Vec<_>>();
    assert_eq!(keys(&own.manifest), ["manifest.json"]);
    assert_eq!(keys(&own.parts), ["backup_manifest", "files/0", "manifest.sigstore.json", "truth"]);
    assert_eq!(keys(&own.words), ["pins/audit.json", "pins/audit.ended.json", "expired/0000000001.json", "expired/0000000002.json"]);
    assert_eq!(own.unknown, [key("expired/x.json"), key("files/01"), key("notes.txt"), key("pins/Audit.json")]);
}

#[test]
fn of_numbered_objects_the_newest_stay() {
    assert!(numbered_garbage((1..=16).collect(), None).is_empty());
    assert_eq!(numbered_garbage((1..=20).rev().collect(), None), [1, 2, 3, 4]);
    assert_eq!(numbered_garbage((1..=20).collect(), Some(3)), [1, 2]);
}

#[test]
fn keys_that_digests_do_not_name_are_not_known() {
    let digest = Sha256([0xAB; 32]);
    assert_eq!(named_by_digest(&layout::pack(digest), layout::pack), Ok(digest));
    for other in [format!("packs/aa/{digest}"), "packs/ab/x".into(), format!("packs/ab/{digest}/x")] {
        assert!(named_by_digest(&Key::parse(&other).unwrap(), layout::pack).is_err(), "{other}");
    }
}

#[test]
fn a_plan_says_when_there_is_more_and_its_digest_speaks_of_every_key() {
    let listed = |from: usize, to: usize| (from..to).map(|n| (Key::parse(&format!("packs/{n}")).unwrap(), 2)).collect::<Vec<_>>();
    let mut plan = Plan::default();
    plan.push(Step::new("packs", "nothing names them", listed(0, MAX_OBJECTS - 1)));
    assert!(!plan.more);
    plan.push(Step::new("packs", "nothing names them", listed(0, 3)));
    assert!(plan.more && plan.objects() as usize == MAX_OBJECTS && plan.bytes() as usize == 2 * MAX_OBJECTS);
    let with = |to| {
        let mut plan = Plan::default();
        plan.push(Step::new("packs", "nothing names them", listed(to - 50, to)));
        plan.digest()
    };
    assert_ne!(with(100), with(101));
    assert_eq!(with(100), with(100));
}

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn point(id: &str, timeline: u32, segment: u64) -> BackupPoint {
    BackupPoint {
        id: id.into(),
        timeline: Timeline(timeline),
        start_lsn: Lsn(segment * MIB + 40),
        stop_lsn: Lsn((segment + 1) * MIB),
        consistent_at: now(),
        degraded: false,
        wal_included: false,
    }
}

fn history(timeline: u32, entries: &[(u32, u64)]) -> History {
    let entry =
        |(timeline, segment): &(u32, u64)| Entry { timeline: Timeline(*timeline), switch: Lsn(segment * MIB + 80), reason: String::new() };
    History { timeline: Timeline(timeline), entries: entries.iter().map(entry).collect() }
}

/// Timeline 1 has segments 0 to 99; 2 left it in 50 and has 50 to 99; 3 left 2 in 70; 4 left 1 in 20.
fn archive() -> Archive {
    let mut archive = Archive::new(SystemId(7), size());
    for (timeline, from) in [(1, 0), (2, 50), (3, 70), (4, 20)] {
        for number in from..100 {
            archive.add(WalFile::Segment(Segment { timeline: Timeline(timeline), number }), 1);
        }
    }
    for history in [history(2, &[(1, 50)]), history(3, &[(1, 50), (2, 70)]), history(4, &[(1, 20)])] {
        archive.add_history(history);
    }
    archive
}

fn rules(points: &[BackupPoint], last_commit: &[(u32, i64)]) -> Vec<(u32, Option<u64>)> {
    let last = last_commit.iter().map(|(timeline, hours)| (Timeline(*timeline), hours_ago(*hours))).collect();
    wal(&archive(), points, &last, hours_ago(100)).into_iter().map(|rule| (rule.timeline.0, rule.keep_from)).collect()
}

#[test]
fn c106_wal_that_a_backup_needs_stays_on_every_timeline_that_it_leads_to() {
    // From segment 30 of timeline 1 on replay leads to 2 and to 3, and never to 4.
    assert_eq!(rules(&[point("a", 1, 30)], &[(4, 101)]), [(1, Some(30)), (2, Some(0)), (3, Some(0)), (4, None)]);
    // A backup on 3 needs what is behind it only; of its trunk as well, where a segment may not be on 3 yet.
    assert_eq!(rules(&[point("a", 3, 80)], &[(4, 101)]), [(1, Some(80)), (2, Some(80)), (3, Some(80)), (4, None)]);
    assert_eq!(rules(&[point("a", 1, 60), point("b", 1, 10)], &[]), [(1, Some(10)), (2, Some(0)), (3, Some(0)), (4, Some(0))]);
    // Behind the place where they left.
    assert_eq!(rules(&[point("a", 1, 60)], &[(2, 99), (3, 101)]), [(1, Some(60)), (2, Some(0)), (3, None), (4, Some(0))]);
}

#[test]
fn doubt_keeps_wal() {
    assert!(rules(&[], &[(1, 900), (2, 900), (3, 900), (4, 900)]).iter().all(|(_, keep)| *keep == Some(0)));
    let mut archive = archive();
    archive.add(WalFile::Segment(Segment { timeline: Timeline(9), number: 3 }), 1);
    let last = BTreeMap::from([(Timeline(9), hours_ago(900))]);
    let rules = wal(&archive, &[point("a", 1, 30), point("b", 9, 3)], &last, hours_ago(100));
    assert_eq!(rules.last().map(|rule| rule.keep_from), Some(Some(0)), "it has no history");
    // And where the backup on it came from nobody knows either.
    assert_eq!(rules[0].keep_from, Some(3));
}

#[test]
fn c051_histories_stay_and_files_go_with_their_segment() {
    let rule = WalRule { timeline: Timeline(1), keep_from: Some(5), reason: String::new() };
    let segment = |number| Segment { timeline: Timeline(1), number };
    for (number, goes) in [(4, true), (5, false)] {
        let segment = segment(number);
        for file in [
            WalFile::Segment(segment),
            WalFile::Partial(segment),
            WalFile::Piece { segment, from: 0, to: 1 },
            WalFile::BackupHistory { segment, offset: 0 },
        ] {
            assert_eq!(rule.lets_go(file), goes, "{file:?}");
        }
    }
    let none = WalRule { keep_from: None, ..rule };
    assert!(!none.lets_go(WalFile::History(Timeline(1))));
    assert!(!none.lets_go(WalFile::Segment(Segment { timeline: Timeline(2), number: 1 })), "another timeline");
}

fn any_stored() -> impl Strategy<Value = Vec<Stored>> {
    let one = (0i64..50, 0u8..6, prop::option::of(-5i64..5), prop::bool::weighted(0.2));
    prop::collection::vec(one, 0..12).prop_map(|all| {
        let mut found: Vec<Stored> = Vec::new();
        for (hours, kind, prune_in, pinned) in all {
            let mut one = match kind {
                0 => broken(hours, true, true, prune_in),
                1 => broken(hours, false, false, prune_in),
                2 => stored(hours, false, prune_in),
                _ => stored(hours, true, prune_in),
            };
            one.candidate.pins.extend(pinned.then(|| "p".to_owned()));
            if found.iter().all(|other| other.candidate.id != one.candidate.id) {
                found.push(one);
            }
        }
        found
    })
}

proptest! {
    #[test]
    fn c106_only_what_expired_or_never_was_goes(all in any_stored()) {
        let decided = backups(&all, &BTreeSet::new(), now());
        let mut healthy = (0, 0);
        for one in &all {
            let leaves = decided.leaves(&one.candidate.id);
            if leaves {
                prop_assert!(one.candidate.pins.is_empty());
                prop_assert!(one.candidate.prune_after.is_some_and(|at| at <= now()) || !one.manifest && !one.bundle);
                prop_assert!(one.candidate.facts.is_ok() || !one.manifest);
            }
            if one.candidate.facts.as_ref().is_ok_and(|facts| facts.healthy) {
                healthy = (healthy.0 + 1, healthy.1 + usize::from(!leaves));
            }
        }
        prop_assert!(healthy.0 == 0 || healthy.1 > 0, "no healthy one stays");
        // What is left asks for nothing more.
        let rest: Vec<Stored> = all.iter().filter(|one| !decided.leaves(&one.candidate.id)).cloned().collect();
        let again = backups(&rest, &BTreeSet::new(), now());
        prop_assert_eq!(again.leaving, vec![]);
        prop_assert_eq!(leaving(&all).len(), decided.leaving.len());
    }

    /// However recovery may go from any backup that stays: every file that it reads stays.
    #[test]
    fn c106_no_file_that_a_backup_reads_goes(points in prop::collection::vec((1u32..5, 0u64..98), 1..4), old in prop::bool::ANY) {
        let begins = [0, 0, 50, 70, 20];
        let points: Vec<BackupPoint> =
            points.into_iter().map(|(timeline, segment)| point("a", timeline, segment.max(begins[timeline as usize] + 1))).collect();
        let archive = archive();
        let last = (1..5).filter(|_| old).map(|timeline| (Timeline(timeline), hours_ago(900))).collect();
        let rules = wal(&archive, &points, &last, hours_ago(100));
        let mut after = Archive::new(SystemId(7), size());
        archive.histories().for_each(|history| after.add_history(history.clone()));
        for (timeline, from) in [(1, 0), (2, 50), (3, 70), (4, 20)] {
            for number in from..100 {
                let file = WalFile::Segment(Segment { timeline: Timeline(timeline), number });
                if !rules.iter().any(|rule| rule.lets_go(file)) {
                    after.add(file, 1);
                }
            }
        }
        for point in &points {
            for timeline in 1..5 {
                let path = archive.path(Timeline(timeline)).unwrap();
                if path.leg_of(point.timeline).is_some_and(|leg| leg.to.is_none_or(|end| end > point.start_lsn)) {
                    prop_assert_eq!(archive.reach(&path, point.start_lsn).to, after.reach(&path, point.start_lsn).to, "{:?} to {}", point, timeline);
                }
            }
        }
    }

    #[test]
    fn a_set_has_what_was_put_into_it(digests in prop::collection::vec(any::<[u8; 32]>(), 0..200), others in prop::collection::vec(any::<[u8; 32]>(), 0..50)) {
        let mut set = KeptSet::default();
        digests.iter().for_each(|digest| set.insert(Sha256(*digest)));
        set.seal();
        prop_assert!(digests.iter().all(|digest| set.contains(Sha256(*digest))));
        let prefixes: BTreeSet<&[u8]> = digests.iter().map(|digest| &digest[..8]).collect();
        prop_assert!(others.iter().all(|other| set.contains(Sha256(*other)) == prefixes.contains(&other[..8])));
    }
}
