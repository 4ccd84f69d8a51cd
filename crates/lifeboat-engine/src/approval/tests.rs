//! Approvals in a repository, and everything that somebody may do to them.

use std::collections::BTreeSet;
use std::sync::Barrier;

use jiff::SignedDuration;
use lifeboat_core::approval::DEFAULT_LIFETIME;
use lifeboat_core::policy::{Actor, Operation};

use super::*;
use crate::signing::{KeyFileSigner, SigningKey};
use crate::store::{self, Fault, Faults, FaultyStore, MemoryStore, Rule};

const NOW: &str = "2026-03-15T12:00:00Z";

const PLAN: &[u8] = br#"{"restore":"everything"}"#;

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn after(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

/// A repository, a host that asks, and people with keys.
struct World {
    repository: Repository,
    trust: Trust,
    allowed: AllowedSigners,
    persons: Persons,
    host: KeyFileSigner,
    alice: KeyFileSigner,
    alice_too: KeyFileSigner,
    bob: KeyFileSigner,
    stranger: KeyFileSigner,
    faults: Faults,
}

impl World {
    fn new() -> Self {
        let key = || KeyFileSigner::new(SigningKey::generate().unwrap());
        let (host, alice, alice_too, bob, stranger) = (key(), key(), key(), key(), key());
        let trusted = [&host, &alice, &alice_too, &bob].map(|key| key.public_key().clone());
        let hints = |keys: &[&KeyFileSigner]| keys.iter().map(|key| key.public_key().hint().to_owned()).collect::<Vec<_>>();
        let persons = Persons::new([("alice", hints(&[&alice, &alice_too]).as_slice()), ("bob", hints(&[&bob]).as_slice())]).unwrap();
        let (store, faults) = FaultyStore::new(Box::new(MemoryStore::default()));
        let repository = Repository::init(Box::new(store), now(), "test").unwrap();
        Self {
            faults,
            repository,
            trust: Trust::new(trusted),
            allowed: AllowedSigners::default(),
            persons,
            host,
            alice,
            alice_too,
            bob,
            stranger,
        }
    }

    fn approvers(&self) -> Approvers<'_> {
        Approvers { trust: &self.trust, allowed: &self.allowed, persons: &self.persons }
    }

    fn here(&self, plan: &[u8], now: Timestamp) -> Circumstances<'static> {
        Circumstances {
            now,
            plan: Sha256::of(plan),
            operation: Some(Operation::Restore),
            repository: self.repository.descriptor().repository,
            host: Some("db1"),
            environment: Some("production"),
            lifetime: DEFAULT_LIFETIME,
        }
    }

    fn request(&self, plan: &[u8]) -> Request {
        Request {
            format: 1,
            operation: Operation::Restore,
            plan: Sha256::of(plan),
            repository: self.repository.descriptor().repository,
            nonce: crate::random::id(),
            requester: "mallory".into(),
            actor: Actor { user: "root".into(), uid: 0, sudo_user: Some("mallory".into()) },
            host: "db1".into(),
            environment: "production".into(),
            reason: "disk died".into(),
            requested: now(),
            expires: after(3600),
        }
    }

    fn ask_as(&self, plan: &[u8], signer: &KeyFileSigner) -> Result<Asked, ApprovalError> {
        let request = self.request(plan);
        let object = Object::signed(&request.statement(), signer).unwrap();
        let id = ask(&self.repository, plan, &request, &object, self.approvers(), &self.here(plan, now()))?;
        let gathered = self.gather(plan, now());
        Ok(gathered.requests.into_iter().find(|(asked, _)| asked.id == id).expect("just stored").0)
    }

    fn ask(&self) -> Asked {
        self.ask_as(PLAN, &self.host).unwrap()
    }

    fn approval(asked: &Asked) -> Approval {
        Approval {
            format: 1,
            operation: asked.request.operation,
            plan: asked.request.plan,
            request: asked.id,
            approver: "somebody".into(),
            comment: None,
            granted: now(),
            expires: after(1800),
        }
    }

    fn grant(&self, asked: &Asked, signer: &KeyFileSigner) -> Result<ApprovalFacts, ApprovalError> {
        let gathered = self.gather(PLAN, now());
        let asked = &gathered.requests.iter().find(|(other, _)| other.id == asked.id).expect("it was asked").0;
        let object = Object::signed(&Self::approval(asked).statement(), signer).unwrap();
        grant(&self.repository, asked, &object, self.approvers(), &self.here(PLAN, now()))
    }

    /// Puts an object where an approval of this request would stand, whatever it is.
    fn plant(&self, asked: &Asked, object: &Object) {
        let key = layout::approval(asked.request.plan, asked.id, "planted", &object.bytes, object.ssh);
        self.repository.store().create(&key, &object.bytes).unwrap();
    }

    fn gather(&self, plan: &[u8], now: Timestamp) -> Gathered {
        gather(&self.repository, Sha256::of(plan), self.approvers(), &self.here(plan, now)).unwrap()
    }

    fn counting(&self) -> BTreeSet<String> {
        self.gather(PLAN, now()).counting.into_iter().map(|facts| facts.approver).collect()
    }

    /// Why the one thing that does not count does not.
    fn why(&self) -> String {
        let gathered = self.gather(PLAN, now());
        assert!(gathered.counting.is_empty());
        let [one] = gathered.not_counting.as_slice() else { panic!("{:?}", gathered.not_counting) };
        one.why.clone()
    }
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_was_asked_and_given_is_gathered() {
    let world = World::new();
    let asked = world.ask();
    assert_eq!(plan(&world.repository, Sha256::of(PLAN)).unwrap(), PLAN);
    assert_eq!(plans(&world.repository).unwrap(), [Sha256::of(PLAN)]);
    assert_eq!(world.counting(), names(&[]));
    world.grant(&asked, &world.alice).unwrap();
    world.grant(&asked, &world.bob).unwrap();
    let gathered = world.gather(PLAN, now());
    assert_eq!(world.counting(), names(&["alice", "bob"]));
    assert_eq!(gathered.not_counting, []);
    assert_eq!(gathered.requester.as_deref(), Some("mallory as root on db1"));
    let facts = gathered.facts(Sha256::of(PLAN));
    assert_eq!((facts.approvals.len(), facts.approvals[0].kind), (2, ApproverKind::Key));
    // Nothing of it is a backup, or in the way of one.
    assert_eq!(world.repository.backup_prefixes().unwrap(), []);
}

#[test]
fn forged_approvals_do_not_count() {
    let world = World::new();
    let asked = world.ask();
    assert!(matches!(world.grant(&asked, &world.stranger), Err(ApprovalError::WouldNotCount { .. })));
    let object = Object::signed(&World::approval(&asked).statement(), &world.stranger).unwrap();
    world.plant(&asked, &object);
    assert!(world.why().contains("not configured as trusted"), "{}", world.why());

    // A statement of alice, with one byte of it changed.
    let world = World::new();
    let asked = world.ask();
    let mut object = Object::signed(&World::approval(&asked).statement(), &world.alice).unwrap();
    let at = object.bytes.windows(10).position(|part| part == b"\"payload\":").unwrap() + 60;
    object.bytes[at] = if object.bytes[at] == b'A' { b'B' } else { b'A' };
    world.plant(&asked, &object);
    assert!(!world.why().is_empty());

    // The request itself, passed off as an approval; and whatever else is signed by who is trusted.
    let world = World::new();
    let asked = world.ask();
    world.plant(&asked, &Object::signed(&asked.request.statement(), &world.alice).unwrap());
    assert!(world.why().contains("another kind"), "{}", world.why());
}

#[test]
fn objects_that_are_no_statements_do_not_count_and_do_no_harm() {
    let world = World::new();
    let asked = world.ask();
    world.grant(&asked, &world.alice).unwrap();
    for bytes in [&b""[..], b"{", b"null", b"\xff\xfe", br#"{"format":1,"statement":"x","signature":"y"}"#] {
        for ssh in [false, true] {
            world.plant(&asked, &Object { bytes: bytes.to_vec(), ssh });
        }
    }
    let gathered = world.gather(PLAN, now());
    assert_eq!((gathered.counting.len(), gathered.not_counting.len()), (1, 10));
}

#[test]
fn an_approval_of_another_request_does_not_count() {
    let world = World::new();
    let first = world.ask();
    world.grant(&first, &world.alice).unwrap();
    // The same plan, asked for again: nobody has agreed to that.
    let second = world.ask();
    assert_ne!(first.id, second.id);
    let object = Object::signed(&World::approval(&first).statement(), &world.alice).unwrap();
    world.plant(&second, &object);
    let gathered = world.gather(PLAN, now());
    assert_eq!(gathered.request.unwrap().id, first.id, "the one that was agreed to");
    let (_, judged) = gathered.requests.iter().find(|(asked, _)| asked.id == second.id).unwrap();
    assert_eq!(judged.counting, []);
    assert!(matches!(judged.not_counting[0].1, Refusal::OtherRequest(id) if id == first.id));

    // And of another plan: the signature is good, its subject is not.
    let other = world.ask_as(b"other plan", &world.host).unwrap();
    let object = Object::signed(&World::approval(&other).statement(), &world.bob).unwrap();
    world.plant(&first, &object);
    assert_eq!(world.counting(), names(&["alice"]));
}

#[test]
fn a_request_is_what_its_name_says_or_none() {
    let world = World::new();
    let asked = world.ask();
    world.grant(&asked, &world.alice).unwrap();
    // Somebody with the right to delete puts a request of their own where the approved one was, to be no longer its requester.
    let key = layout::approval_request_statement(asked.request.plan, asked.id, false);
    let other = Request { actor: Actor { user: "nobody".into(), uid: 65_534, sudo_user: None }, ..asked.request.clone() };
    let object = Object::signed(&other.statement(), &world.bob).unwrap();
    world.repository.store().delete(&key).unwrap();
    world.repository.store().create(&key, &object.bytes).unwrap();
    assert!(world.why().contains("another one should"), "{}", world.why());
}

#[test]
fn a_request_that_nobody_would_believe_is_not_stored() {
    let world = World::new();
    assert!(matches!(world.ask_as(PLAN, &world.stranger), Err(ApprovalError::WouldNotStand { .. })));
    let longer = Request { expires: after(25 * 3600), ..world.request(PLAN) };
    let object = Object::signed(&longer.statement(), &world.host).unwrap();
    let refused = ask(&world.repository, PLAN, &longer, &object, world.approvers(), &world.here(PLAN, now())).unwrap_err();
    assert!(refused.to_string().contains("24 hours at most"), "{refused}");
    assert_eq!(plans(&world.repository).unwrap(), []);
}

#[test]
fn time_ends_it() {
    let world = World::new();
    let asked = world.ask();
    world.grant(&asked, &world.alice).unwrap();
    assert_eq!(world.gather(PLAN, after(1799)).counting.len(), 1);
    let late = world.gather(PLAN, after(1800));
    assert_eq!((late.counting.len(), late.request.is_some()), (0, true));
    assert!(world.gather(PLAN, after(3600)).request.is_none());
    // A clock that is far behind is no way around that.
    assert!(world.gather(PLAN, after(-301)).request.is_none());
}

#[test]
fn one_person_is_one_whatever_they_sign_with() {
    let world = World::new();
    let asked = world.ask();
    world.grant(&asked, &world.alice).unwrap();
    let twice = world.grant(&asked, &world.alice_too).unwrap_err();
    assert!(twice.to_string().contains("alice is counted already"), "{twice}");
    world.plant(&asked, &Object::signed(&World::approval(&asked).statement(), &world.alice_too).unwrap());
    assert_eq!(world.counting(), names(&["alice"]));
    // The key of a host is nobody's.
    let nobody = world.grant(&world.ask_as(PLAN, &world.bob).unwrap(), &world.host).unwrap_err();
    assert!(nobody.to_string().contains("no person"), "{nobody}");
}

#[test]
fn who_asked_does_not_approve() {
    let world = World::new();
    let asked = world.ask_as(PLAN, &world.alice).unwrap();
    for signer in [&world.alice, &world.alice_too] {
        let refused = world.grant(&asked, signer).unwrap_err();
        assert!(refused.to_string().contains("asked for it themselves"), "{refused}");
    }
    world.grant(&asked, &world.bob).unwrap();
    // By the name that sudo has of them.
    let mut world = World::new();
    world.persons = Persons::new([("mallory", [world.bob.public_key().hint().to_owned()].as_slice())]).unwrap();
    let refused = world.grant(&world.ask(), &world.bob).unwrap_err();
    assert!(refused.to_string().contains("asked for it themselves"), "{refused}");
}

#[test]
fn a_plan_with_another_byte_is_not_the_plan() {
    let world = World::new();
    world.ask();
    let key = layout::approval_plan(Sha256::of(PLAN));
    world.repository.store().delete(&key).unwrap();
    world.repository.store().create(&key, br#"{"restore":"everythinG"}"#).unwrap();
    assert!(matches!(plan(&world.repository, Sha256::of(PLAN)), Err(ApprovalError::OtherPlan { .. })));
    world.repository.store().delete(&key).unwrap();
    assert!(matches!(plan(&world.repository, Sha256::of(PLAN)), Err(ApprovalError::NoPlan(_))));
}

#[test]
fn an_approval_that_is_gone_does_not_count() {
    let world = World::new();
    let asked = world.ask();
    world.grant(&asked, &world.alice).unwrap();
    world.grant(&asked, &world.bob).unwrap();
    let listed = world.repository.store().list(&layout::approval_request(asked.request.plan, asked.id)).unwrap();
    let of_bob = listed.iter().find(|one| one.key.as_str().contains("/bob-")).unwrap();
    world.repository.store().delete(&of_bob.key).unwrap();
    assert_eq!(world.counting(), names(&["alice"]));
}

#[test]
fn a_plan_runs_once_however_many_begin_at_once() {
    let world = World::new();
    let asked = world.ask();
    let facts = [world.grant(&asked, &world.alice).unwrap()];
    const RUNS: usize = 8;
    let barrier = Barrier::new(RUNS);
    let run = |number: usize| {
        barrier.wait();
        spend(&world.repository, &asked, &facts, &format!("run {number}"), now())
    };
    let outcomes: Vec<Result<(), ApprovalError>> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..RUNS).map(|number| scope.spawn(move || run(number))).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(()) | Err(ApprovalError::Spent(_)))));
    let gathered = world.gather(PLAN, now());
    assert!(gathered.request.is_none() && gathered.counting.is_empty());
    assert!(gathered.not_counting[0].why.contains("was used"), "{:?}", gathered.not_counting);
    // Asked for again, it may be approved again.
    let again = world.ask();
    world.grant(&again, &world.alice).unwrap();
    assert_eq!(world.gather(PLAN, now()).request.unwrap().id, again.id);
}

#[test]
fn what_trust_says_of_keys_counts() {
    use lifeboat_core::trust::{Kind, Revocation, Terms};

    use crate::signing::TrustedKey;
    let with = |kinds: &[Kind], person: Option<&str>, revoked: Option<Timestamp>| {
        let mut world = World::new();
        let terms = Terms {
            kinds: Some(kinds.iter().copied().collect()),
            person: person.map(str::to_owned),
            revoked: revoked.map(|since| Revocation { since, reason: None }),
            ..Terms::default()
        };
        let key = world.stranger.public_key().clone();
        world.trust = world.trust.with_key(TrustedKey { key, terms, known_good: None });
        let asked = world.ask();
        world.grant(&asked, &world.stranger).map_err(|error| error.to_string())
    };
    assert_eq!(with(&[Kind::Approval], Some("carol"), None).unwrap().approver, "carol");
    assert!(with(&[Kind::Approval], None, None).unwrap_err().contains("no person"));
    assert!(with(&[Kind::Backup, Kind::ApprovalRequest], Some("carol"), None).unwrap_err().contains("other kinds of statements"));
    assert!(with(&[Kind::Approval], Some("carol"), Some(now())).unwrap_err().contains("revoked"));
    // The person of a trusted key is one of those who have other names.
    assert!(with(&[Kind::Approval], Some("Mallory"), None).unwrap_err().contains("asked for it themselves"));
}

#[test]
fn an_address_is_a_name_and_a_workflow_is_not() {
    let by = |subject: &str, person: Option<&str>| {
        let signer = SignedBy::Identity { issuer: "https://id".into(), subject: subject.into(), person: person.map(str::to_owned) };
        signer_of(&signer, &Persons::default()).person
    };
    assert_eq!(by("Alice@example.com", None).as_deref(), Some("alice@example.com"));
    assert_eq!(by("https://github.com/o/r/.github/workflows/w.yml@refs/heads/main", None), None);
    assert_eq!(by("https://github.com/o/r/.github/workflows/w.yml@refs/heads/main", Some("release")).as_deref(), Some("release"));
}

#[test]
fn a_run_whose_begin_was_lost_on_the_way_is_still_one() {
    let create = |fault| [Rule::once(store::Operation::Create, 0, fault)];
    let world = World::new();
    let asked = world.ask();
    world.faults.plan(&create(Fault::AnswerLost));
    spend(&world.repository, &asked, &[], "run", now()).unwrap();
    assert_eq!(world.faults.injected().len(), 1);
    world.faults.plan(&[]);
    assert!(matches!(spend(&world.repository, &asked, &[], "run", now()), Err(ApprovalError::Spent(_))));
    // What certainly was not written down was not used up either; and nothing ran.
    for fault in [Fault::Transient, Fault::Refused, Fault::Denied, Fault::Full] {
        let world = World::new();
        let asked = world.ask();
        world.faults.plan(&create(fault));
        assert!(matches!(spend(&world.repository, &asked, &[], "run", now()), Err(ApprovalError::Store(_))), "{fault:?}");
        world.faults.plan(&[]);
        spend(&world.repository, &asked, &[], "run", now()).unwrap();
    }
}

#[test]
fn a_store_that_fails_is_no_answer() {
    let world = World::new();
    let asked = world.ask();
    world.grant(&asked, &world.alice).unwrap();
    let look = || gather(&world.repository, Sha256::of(PLAN), world.approvers(), &world.here(PLAN, now()));
    world.faults.plan(&[]);
    look().unwrap();
    let steps = world.faults.trace().len();
    assert!(steps >= 4, "a listing, the request, whether it was used, the approval");
    for step in 0..steps {
        for fault in [Fault::Transient, Fault::Refused, Fault::Denied] {
            world.faults.plan(&[Rule { operation: None, from: step, count: 1, fault }]);
            assert!(matches!(look(), Err(ApprovalError::Store(_))), "step {step}, {fault:?}");
        }
        // Bytes that are wrong make less of it, and never more.
        for fault in [Fault::Truncated, Fault::Corrupt] {
            world.faults.plan(&[Rule { operation: None, from: step, count: 1, fault }]);
            assert!(look().unwrap().counting.len() <= 1);
        }
    }
    // A listing that is older than the end of a request does not open it again.
    spend(&world.repository, &asked, &[], "run", now()).unwrap();
    world.faults.plan(&[Rule::from(0, Fault::Stale(1))]);
    let stale = look().unwrap();
    assert!(stale.request.is_none() && stale.counting.is_empty());
    assert_eq!(stale.requests[0].1.standing, Err(Refusal::Spent));
}
