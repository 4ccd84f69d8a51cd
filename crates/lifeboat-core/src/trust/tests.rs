//! The rules, against a second telling of them, and at their edges.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::attestation::{artifact_statement, backup_statement};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn revoked(since: i64) -> Option<Revocation> {
    Some(Revocation { since: at(since), reason: Some("stolen".into()) })
}

const NOTHING: Evidence = Evidence { kind: Some(Kind::Backup), proven: None, claimed: None };

#[test]
fn without_terms_everything_counts() {
    let terms = Terms::default();
    assert_eq!(terms.judge(NOTHING, false, || false), Ok(When::Unknown));
    assert_eq!(terms.judge(Evidence { kind: None, ..NOTHING }, false, || false), Ok(When::Unknown));
    assert_eq!(terms.judge(Evidence { claimed: Some(at(5)), ..NOTHING }, false, || false), Ok(When::Claimed(at(5))));
    assert_eq!(terms.judge(Evidence { proven: Some(at(7)), claimed: Some(at(5)), ..NOTHING }, false, || false), Ok(When::Proven(at(7))));
}

#[test]
fn both_ends_of_a_window_are_in_it_and_the_moment_of_a_revocation_is_not() {
    let terms = Terms { not_before: Some(at(10)), not_after: Some(at(20)), ..Terms::default() };
    for proven in [true, false] {
        let judged = |second| {
            let time = Some(at(second));
            let evidence = if proven { Evidence { proven: time, ..NOTHING } } else { Evidence { claimed: time, ..NOTHING } };
            terms.judge(evidence, false, || panic!("nobody is asked to vouch"))
        };
        assert!(matches!(judged(9), Err(Refusal::TooEarly { proven: p, .. }) if p == proven));
        assert!(judged(10).is_ok() && judged(20).is_ok());
        assert!(matches!(judged(21), Err(Refusal::TooLate { proven: p, .. }) if p == proven));
    }
    let terms = Terms { revoked: revoked(15), ..Terms::default() };
    let judged = |second| terms.judge(Evidence { proven: Some(at(second)), ..NOTHING }, false, || false);
    assert_eq!(judged(14), Ok(When::Proven(at(14))));
    assert!(matches!(judged(15), Err(Refusal::Revoked { at: Some(_), .. })));
}

#[test]
fn a_stolen_key_dates_nothing() {
    let terms = Terms { revoked: revoked(100), ..Terms::default() };
    let backdated = Evidence { claimed: Some(at(1)), ..NOTHING };
    assert!(matches!(terms.judge(backdated, false, || false), Err(Refusal::Revoked { at: None, .. })));
    assert_eq!(terms.judge(backdated, false, || true), Ok(When::Vouched));
    // The word of an authority that it was signed later does not undo what the operator vouched for: the statement is the same.
    assert_eq!(terms.judge(Evidence { proven: Some(at(200)), ..NOTHING }, false, || true), Ok(When::Vouched));
}

#[test]
fn refusals_say_what_they_are_about() {
    let terms = Terms { revoked: revoked(100), ..Terms::default() };
    let text = terms.judge(NOTHING, false, || false).unwrap_err().to_string();
    assert!(text.contains("1970-01-01T00:01:40Z (stolen)") && text.contains("vouched"), "{text}");
    let terms = Terms { not_after: Some(at(20)), ..Terms::default() };
    let text = terms.judge(Evidence { claimed: Some(at(21)), ..NOTHING }, false, || false).unwrap_err().to_string();
    assert!(text.contains("by its own word") && text.contains("until 1970-01-01T00:00:20Z"), "{text}");
    let terms = Terms { kinds: Some([Kind::Artifact].into()), ..Terms::default() };
    assert!(terms.judge(NOTHING, false, || false).unwrap_err().to_string().ends_with("not for backup"));
}

fn maybe_time() -> impl Strategy<Value = Option<Timestamp>> {
    proptest::option::of((0i64..12).prop_map(at))
}

fn any_kind() -> impl Strategy<Value = Option<Kind>> {
    proptest::option::of(proptest::sample::select(&Kind::ALL[..]))
}

prop_compose! {
    fn any_terms()(
        kinds in proptest::option::of(proptest::collection::btree_set(proptest::sample::select(&Kind::ALL[..]), 0..4)),
        not_before in maybe_time(),
        not_after in maybe_time(),
        since in maybe_time(),
    ) -> Terms {
        Terms { kinds, person: None, not_before, not_after, revoked: since.map(|since| Revocation { since, reason: None }) }
    }
}

prop_compose! {
    fn any_evidence()(kind in any_kind(), proven in maybe_time(), claimed in maybe_time()) -> Evidence {
        Evidence { kind, proven, claimed }
    }
}

proptest! {
    /// The rule as docs/trust.md tells it, one sentence a line.
    #[test]
    fn what_counts_is_what_the_page_says(terms in any_terms(), evidence in any_evidence(), require in any::<bool>(), vouched in any::<bool>()) {
        let judged = terms.judge(evidence, require, || vouched);
        let right_kind = terms.kinds.as_ref().is_none_or(|kinds| evidence.kind.is_some_and(|kind| kinds.contains(&kind)));
        let inside = |time: Timestamp| terms.not_before.is_none_or(|from| time >= from) && terms.not_after.is_none_or(|until| time <= until);
        let proven_before_revocation = |since: Timestamp| evidence.proven.is_some_and(|time| time < since);
        let timely = match &terms.revoked {
            Some(revocation) if !proven_before_revocation(revocation.since) => vouched,
            _ => evidence.proven.or(evidence.claimed).is_none_or(inside),
        };
        let counts = right_kind && timely && (!require || evidence.proven.is_some());
        prop_assert_eq!(judged.is_ok(), counts, "{:?}", judged);
        match judged {
            Ok(When::Proven(time)) => prop_assert_eq!(Some(time), evidence.proven),
            Ok(When::Claimed(time)) => prop_assert!(Some(time) == evidence.claimed && terms.revoked.is_none() && !require),
            Ok(When::Vouched) => prop_assert!(vouched && terms.revoked.is_some()),
            Ok(When::Unknown) => prop_assert!(evidence.proven.is_none() && evidence.claimed.is_none()),
            Err(_) => {}
        }
    }

    /// Nothing that the holder of a stolen key can write makes a signature count: claims change nothing.
    #[test]
    fn no_claim_helps_a_revoked_key(terms in any_terms(), evidence in any_evidence(), since in 0i64..12, other in maybe_time(), vouched in any::<bool>()) {
        let terms = Terms { revoked: revoked(since), ..terms };
        let counts = |evidence: Evidence| terms.judge(evidence, false, || vouched).is_ok();
        prop_assert_eq!(counts(evidence), counts(Evidence { claimed: other, ..evidence }));
    }

    /// Narrower terms never let more through.
    #[test]
    fn terms_only_take_away(terms in any_terms(), evidence in any_evidence(), require in any::<bool>()) {
        let strict = terms.judge(evidence, require, || false).is_ok();
        prop_assert!(!strict || Terms::default().judge(evidence, false, || false).is_ok());
        prop_assert!(terms.judge(evidence, true, || false).is_err() || terms.judge(evidence, false, || false).is_ok());
        // A revocation takes away, and the earlier it is, the more.
        let with = |since| Terms { revoked: revoked(since), ..terms.clone() }.judge(evidence, require, || false).is_ok();
        prop_assert!(!with(3) || with(8));
        let free = Terms { revoked: None, ..terms.clone() };
        prop_assert!(!with(8) || free.judge(evidence, require, || false).is_ok());
    }

    #[test]
    fn a_pattern_without_stars_means_itself(text in "[a-z/.@:]{0,12}", other in "[a-z/.@:]{0,12}") {
        let rule = SubjectRule::Pattern(text.clone());
        prop_assert!(rule.matches(&text));
        prop_assert_eq!(rule.matches(&other), text == other);
    }

    /// Against the recursive telling of it.
    #[test]
    fn patterns_match_as_told(pattern in "[ab/*]{0,8}", text in "[ab/]{0,10}") {
        fn told(pattern: &[u8], text: &[u8]) -> bool {
            match pattern {
                [] => text.is_empty(),
                [b'*', b'*', rest @ ..] => (0..=text.len()).any(|end| told(rest, &text[end..])),
                [b'*', rest @ ..] => (0..=text.len()).take_while(|end| !text[..*end].contains(&b'/')).any(|end| told(rest, &text[end..])),
                [first, rest @ ..] => text.first() == Some(first) && told(rest, &text[1..]),
            }
        }
        prop_assert_eq!(SubjectRule::Pattern(pattern.clone()).matches(&text), told(pattern.as_bytes(), text.as_bytes()));
    }
}

#[test]
fn patterns_are_anchored_at_both_ends() {
    let rule = SubjectRule::Pattern("https://github.com/acme/*/.github/workflows/backup.yml@refs/heads/main".into());
    assert!(rule.matches("https://github.com/acme/conductor/.github/workflows/backup.yml@refs/heads/main"));
    for other in [
        "https://github.com/acme/conductor/.github/workflows/backup.yml@refs/heads/main2",
        "xhttps://github.com/acme/conductor/.github/workflows/backup.yml@refs/heads/main",
        "https://github.com/acme/a/b/.github/workflows/backup.yml@refs/heads/main",
        "https://github.com/evil/conductor/.github/workflows/backup.yml@refs/heads/main",
    ] {
        assert!(!rule.matches(other), "{other}");
    }
    assert!(SubjectRule::Pattern("**@example.org".into()).matches("a/b@example.org"));
    assert!(!SubjectRule::Pattern("*@example.org".into()).matches("a@example.org.evil"));
    assert!(!SubjectRule::Exactly("*".into()).matches("a"));
}

#[test]
fn every_kind_of_statement_has_its_kind_and_its_claim() {
    let time = at(1_710_504_009);
    let with = |predicate_type: &str, predicate: Value| Statement::new("x", [1; 32], predicate_type, predicate);
    let statements = [
        (Kind::Backup, backup_statement("x", [1; 32], json!({"finished": time.to_string()}))),
        (Kind::Artifact, artifact_statement("x", "20240315T120009.000Z-1f2e3d4c5b6a", [1; 32], 3, serde_json::Map::new())),
        (Kind::Wal, with(WAL_PREDICATE_TYPE, json!({"signed": time.to_string()}))),
        (Kind::Mark, with(EXPIRY_PREDICATE_TYPE, json!({"at": time.to_string()}))),
        (Kind::Mark, with(PIN_PREDICATE_TYPE, json!({"at": time.to_string()}))),
        (Kind::Mark, with(PIN_END_PREDICATE_TYPE, json!({"at": time.to_string()}))),
        (Kind::Drill, with(DRILL_PREDICATE_TYPE, json!({"finished": time.to_string()}))),
        (Kind::Approval, with(APPROVAL_PREDICATE_TYPE, json!({"granted": time.to_string()}))),
        (Kind::ApprovalRequest, with(APPROVAL_REQUEST_PREDICATE_TYPE, json!({"requested": time.to_string()}))),
    ];
    for (kind, statement) in &statements {
        assert_eq!(Kind::of(&statement.predicate_type), Some(*kind));
        assert_eq!(claimed(statement), Some(time), "{kind}");
    }
    for kind in Kind::ALL {
        assert!(statements.iter().any(|(known, _)| *known == kind), "{kind}");
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
    assert_eq!(Kind::of("https://example.org/v1"), None);
    assert_eq!(claimed(&with("https://example.org/v1", json!({"at": time.to_string()}))), None);
    assert_eq!(claimed(&backup_statement("x", [1; 32], json!({"finished": 17}))), None);
}

#[test]
fn a_signer_stands_where_its_terms_say() {
    let terms = Terms { not_before: Some(at(10)), not_after: Some(at(20)), ..Terms::default() };
    assert_eq!([9, 10, 20, 21].map(|now| terms.state(at(now))), [State::NotYet, State::Trusted, State::Trusted, State::Retired]);
    assert_eq!(Terms { revoked: revoked(50), ..terms.clone() }.state(at(15)), State::Revoked);
    assert_eq!(terms.contradiction(), None);
    assert!(Terms { not_after: Some(at(5)), ..terms }.contradiction().is_some());
    assert!(Terms { kinds: Some([].into()), ..Terms::default() }.contradiction().is_some());
}

#[test]
fn what_a_revocation_takes_is_told_before() {
    let since = at(100);
    for (when, claimed, fate) in [
        (When::Proven(at(99)), Some(at(200)), Fate::Proven),
        (When::Proven(at(100)), Some(at(1)), Fate::Lost),
        (When::Claimed(at(99)), Some(at(99)), Fate::Dated),
        (When::Claimed(at(100)), Some(at(100)), Fate::Lost),
        (When::Unknown, None, Fate::Lost),
        (When::Vouched, Some(at(50)), Fate::Dated),
        (When::Vouched, None, Fate::Lost),
    ] {
        assert_eq!(Fate::of(when, claimed, since), fate, "{when:?}");
    }
}

proptest! {
    /// What is told before is what happens after, where the dated ones are vouched for.
    #[test]
    fn the_fate_is_what_is_judged_later(proven in maybe_time(), claimed in maybe_time(), since in 0i64..12) {
        let evidence = Evidence { kind: Some(Kind::Backup), proven, claimed };
        let when = Terms::default().judge(evidence, false, || false).unwrap();
        let fate = Fate::of(when, claimed, at(since));
        let after = Terms { revoked: revoked(since), ..Terms::default() }.judge(evidence, false, || fate == Fate::Dated);
        prop_assert_eq!(after.is_ok(), fate != Fate::Lost);
    }
}
