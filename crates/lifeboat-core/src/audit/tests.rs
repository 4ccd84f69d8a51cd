use proptest::prelude::*;

use super::*;
use crate::policy::FACTS_SCHEMA;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn id(number: u8) -> Id {
    Id([number; 16])
}

fn facts(operation: Operation) -> Facts {
    let actor = Actor { user: "postgres".into(), uid: 26, sudo_user: Some("ada".into()) };
    Facts {
        schema: FACTS_SCHEMA,
        time: at(1_700_000_000),
        time_seconds: 1_700_000_000,
        operation,
        action: operation.class(),
        dry_run: false,
        actor,
        host: "db1".into(),
        environment: "production".into(),
        repository: None,
        backup: None,
        target: None,
        deletion: None,
        plan: None,
        break_glass: None,
    }
}

fn decided(allow: bool) -> Decided {
    Decided { allow, reasons: vec!["because".into()], policy: None, engine: "embedded".into(), code: None }
}

fn started(number: u8, allow: bool) -> Event {
    Event::start(id(number), "lifeboat 0", &facts(Operation::Restore), decided(allow))
}

fn ended(number: u8, start: &Event, exit_code: u8) -> Event {
    start.end(id(number), start.time + SignedDuration::from_secs(5), None, Outcome { exit_code, message: None, findings: 0 })
}

#[test]
fn a_record_is_one_sorted_line_that_says_where_it_belongs() {
    let event = started(7, true);
    let text = record_text(&event, 12, id(9));
    assert!(
        text.starts_with(r#"{"action":"DEPLOY","actor":{"sudo_user":"ada","uid":26,"user":"postgres"},"decision":{"allow":true,"#),
        "{text}"
    );
    assert_eq!(text.matches('\n').count(), 1);
    let record = Record::decode(text.as_bytes()).unwrap();
    assert_eq!(record.place, Place { index: 12, repository: id(9), id: id(7) });
    assert_eq!(record.event, Some(event.clone()));
    // The journal has the event alone.
    assert_eq!(serde_json::from_str::<Event>(&event.to_json()).unwrap(), event);
    assert!(Record::decode(event.to_json().as_bytes()).is_err());
}

#[test]
fn what_a_later_version_writes_is_a_record_all_the_same() {
    let text = record_text(&started(7, true), 0, id(9)).replace("\"restore\"", "\"teleport\"");
    let record = Record::decode(text.as_bytes()).unwrap();
    assert_eq!((record.place.id, record.event), (id(7), None));
}

#[test]
fn operations_stand_as_their_records_say() {
    let now = at(1_700_000_000) + UNFINISHED_AFTER;
    let later = now + SignedDuration::from_secs(1);
    let (allowed, denied) = (started(1, true), started(2, false));
    let state =
        |records: Vec<Event>, now| entries(records.into_iter().map(|event| (None, event)), now).iter().map(|e| e.state).collect::<Vec<_>>();
    assert_eq!(state(vec![allowed.clone()], now), [State::Running]);
    assert_eq!(state(vec![allowed.clone()], later), [State::Unfinished]);
    assert_eq!(state(vec![denied.clone()], later), [State::Denied]);
    assert_eq!(state(vec![ended(3, &allowed, 0)], later), [State::Headless]);
    for (code, expected) in [(0, State::Done), (3, State::Findings), (21, State::Failed)] {
        assert_eq!(state(vec![allowed.clone(), denied.clone(), ended(3, &allowed, code)], later), [expected, State::Denied]);
    }
    // A clock that went back makes nothing unfinished.
    assert_eq!(state(vec![allowed], at(0)), [State::Running]);
}

#[test]
fn filters_look_at_both_records() {
    let start = started(1, true);
    let backup: BackupId = "c-backup-20240315T120000Z".parse().unwrap();
    let end = start.end(id(2), start.time, Some(backup.clone()), Outcome { exit_code: 0, message: None, findings: 0 });
    let entry = &entries([(Some(4), start), (Some(5), end)], at(1_700_000_100))[0];
    assert_eq!(entry.index, Some(4));
    for (filter, wanted) in [
        (Filter::default(), true),
        (Filter { since: Some(at(1_700_000_000)), until: Some(at(1_700_000_000)), ..Filter::default() }, true),
        (Filter { since: Some(at(1_700_000_001)), ..Filter::default() }, false),
        (Filter { until: Some(at(1_699_999_999)), ..Filter::default() }, false),
        (Filter { operations: vec![Operation::Backup, Operation::Restore], ..Filter::default() }, true),
        (Filter { operations: vec![Operation::Backup], ..Filter::default() }, false),
        (Filter { actor: Some("ada".into()), ..Filter::default() }, true),
        (Filter { actor: Some("root".into()), ..Filter::default() }, false),
        (Filter { states: vec![State::Done], ..Filter::default() }, true),
        (Filter { states: vec![State::Denied], ..Filter::default() }, false),
        (Filter { backup: Some(backup), ..Filter::default() }, true),
        (Filter { backup: Some("c-backup-20240315T120001Z".parse().unwrap()), ..Filter::default() }, false),
        (Filter { host: Some("db2".into()), ..Filter::default() }, false),
    ] {
        assert_eq!(filter.wants(entry), wanted, "{filter:?}");
    }
}

#[test]
fn a_shorter_log_and_another_log_are_two_findings_and_a_damaged_one_is_none_of_them() {
    let root = |size: u64| (size != 3).then(|| Sha256::of(&size.to_be_bytes()));
    let anchor = |size, root| Anchor { size, root, object: "pin".into(), backup: None };
    let kind = |anchor: Anchor| judge(&anchor, 5, root).map(|finding| finding.kind);
    assert_eq!(kind(anchor(5, root(5).unwrap())), None);
    assert_eq!(kind(anchor(2, root(2).unwrap())), None);
    assert_eq!(kind(anchor(6, root(6).unwrap())), Some(FindingKind::Missing));
    assert_eq!(kind(anchor(2, root(5).unwrap())), Some(FindingKind::Corrupt));
    assert_eq!(kind(anchor(3, root(5).unwrap())), Some(FindingKind::NotChecked));
    let stored = |index, leaf| Stored { id: id(1), repository: id(9), index, leaf };
    let kind = |stored: Stored| judge_journal(&stored, 5, root).map(|finding| finding.kind);
    assert_eq!(kind(stored(4, root(4).unwrap())), None);
    assert_eq!(kind(stored(4, root(2).unwrap())), Some(FindingKind::Corrupt));
    assert_eq!(kind(stored(3, root(2).unwrap())), None, "that it is missing is said elsewhere");
    let none = |_| None;
    assert_eq!(judge_journal(&stored(5, root(2).unwrap()), 5, none).map(|finding| finding.kind), Some(FindingKind::Missing));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever texts there are, a record fits into an entry bundle, keeps what it is about, and stays one line of a signed note.
    #[test]
    fn every_event_fits_into_a_record(text in "\\PC{0,40}|[\u{0}-\u{1f}\"\\\\]{1,20}", times in 0usize..3000, lists in 0usize..300, allow in any::<bool>()) {
        let long = text.repeat(times);
        let mut event = started(1, allow);
        event.host = long.clone();
        event.break_glass = Some(BreakGlass { reason: long.clone() });
        event.decision = Some(Decided { reasons: vec![text.clone(); lists], ..decided(allow) });
        event.approvers = vec![text.clone(); lists];
        event.deletion = Some(DeletionFacts { forget: vec![text; lists], ..DeletionFacts::default() });
        event.outcome = Some(Outcome { exit_code: 1, message: Some(long), findings: 0 });
        let clipped = event.clone().clipped();
        let record = record_text(&clipped, u64::MAX, id(255));
        prop_assert!(record.len() <= MAX_RECORD_BYTES + 200, "{} bytes", record.len());
        prop_assert!(record.bytes().all(|byte| byte >= b' ' || byte == b'\n') && record.trim_end().lines().count() == 1);
        prop_assert_eq!(clipped.is_denied(), !allow);
        prop_assert_eq!(Record::decode(record.as_bytes()).unwrap().event, Some(clipped.clone()));
        if event.to_json().len() <= MAX_RECORD_BYTES {
            prop_assert_eq!(clipped, event);
        }
    }

    /// In whichever order records come, and however often: the same operations, each standing the same.
    #[test]
    fn joining_does_not_depend_on_the_order(order in Just((0usize..12).collect::<Vec<_>>()).prop_shuffle(), twice in proptest::collection::vec(0usize..12, 0..6)) {
        let mut records = Vec::new();
        for number in 0..6u8 {
            let start = started(number, number % 3 != 0);
            records.push(start.clone());
            records.push(ended(100 + number, &start, number));
        }
        let now = at(1_700_000_100);
        let plain: BTreeMap<Id, State> = entries(records.iter().cloned().map(|e| (None, e)), now).iter().map(|e| (e.event().id, e.state)).collect();
        let mixed = order.into_iter().chain(twice).map(|at| (None, records[at].clone()));
        let mixed: BTreeMap<Id, State> = entries(mixed, now).iter().map(|e| (e.event().id, e.state)).collect();
        prop_assert_eq!(plain.len(), 6);
        prop_assert_eq!(plain, mixed);
    }

    #[test]
    fn damaged_records_are_errors(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..600) {
        let _ = Record::decode(&bytes);
        let text = record_text(&started(7, true), 1, id(9));
        let cut = cut.min(text.len() - 3);
        prop_assert!(Record::decode(&text.as_bytes()[..cut]).is_err());
    }
}
