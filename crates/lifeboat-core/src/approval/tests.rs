//! The rules, by example and for any number of people.

use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn plan() -> Sha256 {
    Sha256::of(b"plan")
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn signed(list: &[&str]) -> Signed {
    Signed::new(ApproverKind::Ssh, list.first().copied(), &names(list), &Persons::default())
}

fn request() -> Request {
    Request {
        format: 1,
        operation: Operation::Restore,
        plan: plan(),
        repository: Id([1; 16]),
        nonce: Id([2; 16]),
        requester: "mallory".into(),
        actor: Actor { user: "root".into(), uid: 0, sudo_user: Some("mallory".into()) },
        host: "db1".into(),
        environment: "production".into(),
        reason: "disk died".into(),
        requested: at(-600),
        expires: at(3600),
    }
}

fn asked(given: Vec<Given>) -> Asked {
    let request = request();
    Asked { id: request_id(&request.statement()), request, by: signed(&["host-key"]), spent: false, given }
}

fn given(who: &[&str]) -> Given {
    let id = request_id(&request().statement());
    let approval = Approval {
        format: 1,
        operation: Operation::Restore,
        plan: plan(),
        request: id,
        approver: who[0].into(),
        comment: None,
        granted: at(-300),
        expires: at(1800),
    };
    Given { approval, by: signed(who) }
}

fn here() -> Circumstances<'static> {
    Circumstances {
        now: at(0),
        plan: plan(),
        operation: Some(Operation::Restore),
        repository: Id([1; 16]),
        host: Some("db1"),
        environment: Some("production"),
        lifetime: DEFAULT_LIFETIME,
    }
}

fn counting(asked: &Asked) -> Vec<String> {
    judge(asked, &Persons::default(), &here()).counting.into_iter().map(|facts| facts.approver).collect()
}

fn refusal(asked: &Asked) -> Refusal {
    let judged = judge(asked, &Persons::default(), &here());
    assert_eq!(judged.counting, []);
    judged.not_counting[0].1.clone()
}

#[test]
fn two_others_count() {
    let asked = asked(vec![given(&["alice@example.com"]), given(&["bob@example.com"])]);
    let judged = judge(&asked, &Persons::default(), &here());
    assert_eq!(judged.standing, Ok(()));
    assert_eq!(counting(&asked), ["alice@example.com", "bob@example.com"]);
    assert_eq!(judged.counting[0].expires, at(1800));
}

#[test]
fn statements_come_back_as_they_were_said_and_not_as_something_else() {
    let request = request();
    assert_eq!(Request::of(&request.statement()), Ok(request.clone()));
    let approval = given(&["alice"]).approval;
    assert_eq!(Approval::of(&approval.statement()), Ok(approval.clone()));
    assert!(Approval::of(&request.statement()).is_err() && Request::of(&approval.statement()).is_err());
    // The predicate under the subject of another plan, or of another operation.
    let mut other = approval.statement();
    other.subject[0].digest.insert("sha256".into(), Sha256::of(b"other").to_string());
    assert!(Approval::of(&other).is_err());
    let mut other = approval.statement();
    other.subject[0].name = "prune".into();
    assert!(Approval::of(&other).is_err());
    let newer = Approval { format: FORMAT_VERSION + 1, ..approval };
    assert!(matches!(Approval::of(&newer.statement()), Err(FormatError::TooNew { .. })));
}

#[test]
fn replayed_for_another_request_or_plan() {
    let with = |change: &dyn Fn(&mut Approval)| {
        let mut one = given(&["alice"]);
        change(&mut one.approval);
        refusal(&asked(vec![one]))
    };
    let other = Request { nonce: Id([3; 16]), ..request() };
    let other = request_id(&other.statement());
    assert_eq!(with(&|approval| approval.request = other), Refusal::OtherRequest(other));
    assert_eq!(with(&|approval| approval.plan = Sha256::of(b"plam")), Refusal::OtherPlan(Sha256::of(b"plam")));
    assert_eq!(with(&|approval| approval.operation = Operation::Prune), Refusal::OtherOperation("prune".into()));
}

#[test]
fn too_late_and_too_early() {
    let with = |granted: i64, expires: i64| {
        let mut one = given(&["alice"]);
        (one.approval.granted, one.approval.expires) = (at(granted), at(expires));
        judge(&asked(vec![one]), &Persons::default(), &here()).not_counting.into_iter().map(|(_, why)| why).next()
    };
    assert_eq!(with(-300, 0), Some(Refusal::Expired(at(0))));
    assert_eq!(with(-300, 1), None);
    assert_eq!(with(300, 1000), None);
    assert_eq!(with(301, 1000), Some(Refusal::Future(at(301))));
    assert_eq!(with(-900, 1000), None);
    assert_eq!(with(-901, 1000), Some(Refusal::TooEarly(at(-901))));
    // It is over with its request.
    let mut one = given(&["alice"]);
    one.approval.expires = at(1_000_000);
    assert_eq!(judge(&asked(vec![one]), &Persons::default(), &here()).counting[0].expires, at(3600));
}

#[test]
fn a_request_is_for_one_plan_place_and_time() {
    let standing = |change: &dyn Fn(&mut Asked)| {
        let mut one = asked(vec![given(&["alice"])]);
        change(&mut one);
        let judged = judge(&one, &Persons::default(), &here());
        assert!(judged.counting.is_empty());
        judged.standing.unwrap_err()
    };
    assert_eq!(standing(&|one| one.spent = true), Refusal::Spent);
    assert_eq!(standing(&|one| one.request.host = "db2".into()), Refusal::OtherHost("db2".into()));
    assert_eq!(standing(&|one| one.request.environment = "staging".into()), Refusal::OtherEnvironment("staging".into()));
    assert_eq!(standing(&|one| one.request.repository = Id([9; 16])), Refusal::OtherRepository(Id([9; 16])));
    assert_eq!(standing(&|one| one.request.operation = Operation::Prune), Refusal::OtherOperation("prune".into()));
    assert_eq!(standing(&|one| one.request.expires = at(0)), Refusal::Expired(at(0)));
    assert!(matches!(standing(&|one| one.request.expires = at(100_000)), Refusal::TooLong { .. }));
    assert_eq!(standing(&|one| one.request.requested = at(301)), Refusal::Future(at(301)));
    // Whoever only looks is on another host.
    let anywhere = Circumstances { host: None, environment: None, operation: None, ..here() };
    let mut one = asked(vec![given(&["alice"])]);
    one.request.host = "db2".into();
    assert_eq!(judge(&one, &Persons::default(), &anywhere).standing, Ok(()));
}

#[test]
fn who_asks_does_not_answer() {
    // By the key that signed the request, under another name.
    assert_eq!(refusal(&asked(vec![given(&["alice", "host-key"])])), Refusal::Requester);
    // By the name that they have on the host, in whatever case.
    for name in ["mallory", "Mallory@example.com", "root@db1"] {
        assert_eq!(refusal(&asked(vec![given(&[name])])), Refusal::Requester, "{name}");
    }
    // By way of a third signature that shares a name with both.
    let chain = asked(vec![given(&["mallory", "shared"]), given(&["eve", "shared"])]);
    assert_eq!(counting(&chain), Vec::<String>::new());
    // By what the configuration says of whose names are whose.
    let persons = Persons::new([("mallory", names(&["m@example.org", "SHA256:abc"]).as_slice())]).unwrap();
    for name in ["m@example.org", "sha256:ABC"] {
        let by = Signed::new(ApproverKind::Ssh, Some(name), &names(&[name]), &persons);
        let one = asked(vec![Given { by, ..given(&[name]) }]);
        assert_eq!(judge(&one, &persons, &here()).not_counting[0].1, Refusal::Requester);
    }
}

#[test]
fn one_person_counts_once_and_a_host_never() {
    let persons = Persons::new([("Alice", names(&["hint-of-alice", "alice@example.com"]).as_slice())]).unwrap();
    let by = |kind, list: &[&str]| Signed::new(kind, None, &names(list), &persons);
    let key = by(ApproverKind::Key, &["hint-of-alice"]);
    let host = by(ApproverKind::Key, &["hint-of-host"]);
    assert_eq!((key.person.as_deref(), host.person), (Some("alice"), None));
    let give = |by| Given { by, ..given(&["x"]) };
    let ssh = Signed::new(ApproverKind::Ssh, Some("ALICE@example.com"), &names(&["alice@example.com", "SHA256:1"]), &persons);
    let other = by(ApproverKind::Key, &["hint-of-host"]);
    let judged = judge(&asked(vec![give(key), give(ssh), give(other)]), &persons, &here());
    assert_eq!(judged.counting.iter().map(|facts| facts.approver.as_str()).collect::<Vec<_>>(), ["alice"]);
    let why: Vec<&Refusal> = judged.not_counting.iter().map(|(_, why)| why).collect();
    assert!(why.contains(&&Refusal::NoPerson) && why.contains(&&Refusal::Counted("alice".into())), "{why:?}");
    let twice = Persons::new([("a", names(&["x"]).as_slice()), ("b", names(&["X "]).as_slice())]);
    assert_eq!(twice.unwrap_err(), PersonsError { name: "x".into(), first: "a".into(), second: "b".into() });
}

#[test]
fn of_several_requests_the_one_that_was_agreed_to() {
    let older = asked(vec![given(&["alice"])]);
    let mut newer = asked(Vec::new());
    newer.request.requested = at(-10);
    let mut spent = asked(vec![given(&["alice"]), given(&["bob"])]);
    spent.spent = true;
    let judged: Vec<(Asked, Judged)> =
        [newer, older, spent].into_iter().map(|one| (one.clone(), judge(&one, &Persons::default(), &here()))).collect();
    assert_eq!(choose(&judged).unwrap().0.given.len(), 1);
    assert_eq!(choose(&judged[..1]).unwrap().0.request.requested, at(-10));
    assert!(choose(&judged[2..]).is_none());
}

/// Approvals by people who have some of few names, so that they are often the same.
fn some_given() -> impl Strategy<Value = Given> {
    let who = proptest::collection::vec(0..6u8, 1..3);
    (who, -2000..600i64, -500..4000i64, 0..8u8).prop_map(|(who, granted, expires, twist)| {
        let list: Vec<String> = who.iter().map(|number| format!("n{number}")).collect();
        let list: Vec<&str> = list.iter().map(String::as_str).collect();
        let mut one = given(&list);
        (one.approval.granted, one.approval.expires) = (at(granted), at(expires));
        match twist {
            0 => one.approval.request = Sha256::of(b"other"),
            1 => one.approval.plan = Sha256::of(b"other"),
            2 => one.by.person = None,
            _ => {}
        }
        one
    })
}

proptest! {
    #[test]
    fn what_counts_is_verified_timely_and_of_different_people(list in proptest::collection::vec(some_given(), 0..8), requester in 0..8u8) {
        let mut asked = asked(list.clone());
        asked.by = signed(&[&format!("n{requester}")]);
        let judged = judge(&asked, &Persons::default(), &here());
        prop_assert_eq!(judged.counting.len() + judged.not_counting.len(), list.len());
        let persons: BTreeSet<&String> = judged.counting.iter().map(|facts| &facts.approver).collect();
        prop_assert_eq!(persons.len(), judged.counting.len());
        let requester = format!("n{requester}");
        prop_assert!(!persons.contains(&requester));
        for facts in &judged.counting {
            prop_assert!(facts.expires > at(0) && facts.granted <= at(300) && facts.expires <= asked.request.expires);
            let source = |one: &&Given| one.by.person.as_ref() == Some(&facts.approver) && one.approval.granted == facts.granted;
            prop_assert!(list.iter().filter(source).any(|one| one.approval.request == asked.id && one.approval.plan == plan()));
        }
        // No two that count share a name.
        let of = |facts: &ApprovalFacts| list.iter().find(|one| one.by.person.as_ref() == Some(&facts.approver)).unwrap().by.clone();
        for (index, a) in judged.counting.iter().enumerate() {
            for b in &judged.counting[index + 1..] {
                prop_assert!(!of(a).is_same_as(&of(b)) || of(a).names.len() > 1);
            }
        }
    }

    #[test]
    fn the_order_does_not_matter_and_less_never_counts_more(list in proptest::collection::vec(some_given(), 0..7), turn in 0..7usize, drop in 0..7usize) {
        let count = |list: &[Given]| judge(&asked(list.to_vec()), &Persons::default(), &here()).counting.len();
        let all = count(&list);
        let mut turned = list.clone();
        if !turned.is_empty() {
            let by = turn % turned.len();
            turned.rotate_left(by);
        }
        prop_assert_eq!(count(&turned), all);
        // To say that two names are one person's never makes more of them.
        let merged: Vec<Given> = list.iter().cloned().map(|mut one| { if one.by.names.contains("n1") { one.by.names.insert("n2".into()); } one }).collect();
        prop_assert!(count(&merged) <= all);
        // Nor does time.
        let later = Circumstances { now: at(1000), ..here() };
        let timely: Vec<Given> = list.iter().filter(|one| one.approval.granted <= at(300)).cloned().collect();
        prop_assert!(judge(&asked(timely.clone()), &Persons::default(), &later).counting.len() <= count(&timely));
        let _ = drop;
    }

    #[test]
    fn any_other_byte_is_another_plan(byte in 0..5usize, flip in 1..=255u8) {
        let mut bytes = b"plan!".to_vec();
        let digest = Sha256::of(&bytes);
        bytes[byte] ^= flip;
        prop_assert_ne!(Sha256::of(&bytes), digest);
    }
}
