//! Facts in, findings out: each fault one finding, of the right danger, with its fix.

use jiff::SignedDuration;

use super::*;
use crate::doctor::Finding;

fn behaviour() -> Behaviour {
    Behaviour {
        second_create: Ok(SecondCreate::Refused),
        second_create_in_parts: Some(Ok(SecondCreate::Refused)),
        race: Ok(Race { writers: 8, winners: 1, winners_bytes: true }),
        reads_what_was_written: Ok(true),
        lists_what_was_written: Ok(true),
        deletes: Ok(true),
        refuses_wrong_checksum: Some(Ok(true)),
        old_version: Some(Ok(OldVersion::Kept)),
        held: Some(Ok(Held::Kept)),
        left_behind: 0,
    }
}

fn bucket() -> BucketFacts {
    BucketFacts {
        bucket: "backups".into(),
        endpoint: None,
        versions: Ok(Versions::On),
        lock: Ok(Some(Some(DefaultHold { mode: HoldMode::Governance, days: 30 }))),
        inherits: Some(Ok(true)),
        copies: Ok(vec![Copying { enabled: true, ours: true, destination: "arn:aws:s3:::copy".into(), deletions: false }]),
        encryption: Ok(Some("AES256".into())),
        public_access_blocked: Ok(true),
        deleting: Ok(vec![Deleting {
            id: "uploads".into(),
            ours: true,
            objects_after_days: None,
            old_versions_after_days: None,
            aborts_uploads: true,
        }]),
        clock_ahead_seconds: Some(1),
    }
}

fn facts() -> StoreFacts {
    StoreFacts {
        url: "s3://backups/conductor".into(),
        behaviour: behaviour(),
        bucket: Some(bucket()),
        directory: None,
        retention: None,
        other_copies: 0,
        reach: None,
    }
}

fn with(change: impl FnOnce(&mut StoreFacts)) -> Vec<Finding> {
    let mut facts = facts();
    change(&mut facts);
    assess(&facts).findings
}

/// One finding, of this code and danger, with a fix that has these words.
#[track_caller]
fn one(findings: &[Finding], code: &str, severity: Severity, fix: &str) {
    assert_eq!(findings.len(), 1, "{findings:#?}");
    let finding = &findings[0];
    assert_eq!((finding.code, finding.severity), (code, severity), "{finding:#?}");
    assert!(finding.fix.contains(fix), "{finding:#?}");
    assert!(!finding.problem.is_empty() && !finding.meaning.is_empty());
}

#[test]
fn a_good_bucket_has_no_findings() {
    assert_eq!(with(|_| {}), []);
    assert_eq!(refuse(&facts()), None);
}

#[test]
fn c098_a_store_that_lets_two_win_is_refused() {
    use Severity::Essential;
    for bad in [SecondCreate::Overwrote, SecondCreate::BothWon, SecondCreate::RefusedAndLost] {
        one(&with(|facts| facts.behaviour.second_create = Ok(bad)), "create", Essential, "If-None-Match");
        one(&with(|facts| facts.behaviour.second_create_in_parts = Some(Ok(bad))), "create-in-parts", Essential, "If-None-Match");
        let mut facts = facts();
        facts.behaviour.second_create = Ok(bad);
        assert_eq!(refuse(&facts).map(|finding| finding.code), Some("create"));
    }
    for race in [Race { writers: 8, winners: 2, winners_bytes: true }, Race { writers: 8, winners: 1, winners_bytes: false }] {
        one(&with(|facts| facts.behaviour.race = Ok(race)), "race", Essential, "If-None-Match");
    }
    // What was not seen is no pass.
    let failed = || Err(Unseen::Failed("no answer in time".into()));
    one(&with(|facts| facts.behaviour.second_create = failed()), "create", Essential, "doctor");
    // Who may only read is no danger to the store.
    let denied = || Err(Unseen::Denied("403 AccessDenied".into()));
    one(&with(|facts| facts.behaviour.second_create = denied()), "not-writable", Severity::Danger, "s3:PutObject");
}

#[test]
fn versions_and_holds_that_are_not_kept_are_dangers() {
    use Severity::{Danger, Essential, Warning};
    let off = |versions| with(|facts| (facts.bucket.as_mut().unwrap().versions, facts.behaviour.old_version) = (Ok(versions), None));
    one(
        &off(Versions::Off),
        "versioning-off",
        Danger,
        "aws s3api put-bucket-versioning --bucket backups --versioning-configuration Status=Enabled",
    );
    one(&off(Versions::Suspended), "versioning-suspended", Danger, "Status=Enabled");
    for fake in [OldVersion::OtherBytes, OldVersion::Gone] {
        one(&with(|facts| facts.behaviour.old_version = Some(Ok(fake))), "versions-fake", Danger, "docs/stores.md");
    }
    for fake in [Held::Shortened, Held::Deleted] {
        one(&with(|facts| facts.behaviour.held = Some(Ok(fake))), "lock-fake", Danger, "docs/stores.md");
    }
    one(&with(|facts| facts.behaviour.held = Some(Ok(Held::Ignored))), "lock-ignored", Danger, "proxy");
    one(&with(|facts| facts.bucket.as_mut().unwrap().inherits = Some(Ok(false))), "lock-not-inherited", Danger, "retention = \"30d\"");
    one(
        &with(|facts| facts.bucket.as_mut().unwrap().lock = Ok(None)),
        "lock-off",
        Warning,
        "put-object-lock-configuration --bucket backups",
    );
    one(&with(|facts| facts.bucket.as_mut().unwrap().lock = Ok(Some(None))), "lock-unused", Warning, "retention = \"30d\"");
    let promise = Retention { mode: HoldMode::Governance, span: SignedDuration::from_secs(86_400) };
    let broken = with(|facts| {
        facts.retention = Some(promise);
        facts.bucket.as_mut().unwrap().lock = Ok(None);
    });
    one(&broken, "retention-without-lock", Essential, "take repository.retention out");
    let mut facts = facts();
    facts.retention = Some(promise);
    assert_eq!(refuse(&facts), None);
    facts.bucket.as_mut().unwrap().lock = Ok(None);
    assert_eq!(refuse(&facts).map(|finding| finding.code), Some("retention-without-lock"));
}

#[test]
fn c103_rules_that_delete_what_is_needed_are_dangers() {
    let rule = |ours, days| Deleting {
        id: "tidy".into(),
        ours,
        objects_after_days: days,
        old_versions_after_days: Some(90),
        aborts_uploads: true,
    };
    let found = with(|facts| facts.bucket.as_mut().unwrap().deleting = Ok(vec![rule(true, Some(30))]));
    one(&found, "lifecycle-deletes", Severity::Danger, "get-bucket-lifecycle-configuration --bucket backups");
    assert!(found[0].problem.contains("\"tidy\"") && found[0].problem.contains("30 days"), "{found:?}");
    assert_eq!(with(|facts| facts.bucket.as_mut().unwrap().deleting = Ok(vec![rule(false, Some(30)), rule(true, None)])), []);
}

#[test]
fn c100_clocks_that_disagree_are_said() {
    let off = |seconds| with(|facts| facts.bucket.as_mut().unwrap().clock_ahead_seconds = Some(seconds));
    assert_eq!(off(60), []);
    one(&off(-61), "clock", Severity::Warning, "timedatectl");
    let found = off(301);
    one(&found, "clock", Severity::Danger, "timedatectl");
    assert_eq!(found[0].problem, "this host's clock is 301 s behind the server's");
}

#[test]
fn the_rest_is_said_with_its_fix() {
    use Severity::{Danger, Warning};
    let endpoint = |facts: &mut StoreFacts| facts.bucket.as_mut().unwrap().endpoint = Some("https://s3.example.org".into());
    let open = with(|facts| {
        endpoint(facts);
        facts.bucket.as_mut().unwrap().public_access_blocked = Ok(false);
    });
    one(&open, "public-access", Danger, "aws --endpoint-url https://s3.example.org s3api put-public-access-block --bucket backups");
    one(&with(|facts| facts.bucket.as_mut().unwrap().encryption = Ok(None)), "encryption", Warning, "put-bucket-encryption");
    one(&with(|facts| facts.bucket.as_mut().unwrap().copies = Ok(Vec::new())), "one-copy", Warning, "[[repository]]");
    let second = with(|facts| (facts.bucket.as_mut().unwrap().copies, facts.other_copies) = (Ok(Vec::new()), 1));
    assert_eq!(second, []);
    one(&with(|facts| facts.behaviour.refuses_wrong_checksum = Some(Ok(false))), "checksum", Warning, "verify");
    one(&with(|facts| facts.behaviour.lists_what_was_written = Ok(false)), "list-after-write", Danger, "docs/stores.md");
    one(&with(|facts| facts.behaviour.reads_what_was_written = Ok(false)), "read-after-write", Severity::Essential, "docs/stores.md");
    // What may not be asked is a finding; what the store does not know is none that could ever be set right.
    let denied = with(|facts| facts.bucket.as_mut().unwrap().public_access_blocked = Err(Unseen::Denied("403".into())));
    one(&denied, "not-checked", Warning, "s3:GetBucket*");
    assert_eq!(with(|facts| facts.bucket.as_mut().unwrap().public_access_blocked = Err(Unseen::Unknown("501".into()))), []);
}

#[test]
fn findings_stand_in_the_order_of_danger() {
    let found = with(|facts| {
        facts.bucket.as_mut().unwrap().encryption = Ok(None);
        facts.bucket.as_mut().unwrap().versions = Ok(Versions::Off);
        facts.behaviour.race = Ok(Race { writers: 8, winners: 8, winners_bytes: true });
    });
    let severities: Vec<Severity> = found.iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Essential, Severity::Danger, Severity::Warning]);
}

#[test]
fn directories_are_judged_by_where_they_stand() {
    let directory = |change: &dyn Fn(&mut DirectoryFacts)| {
        let mut place = DirectoryFacts {
            path: "/srv/backups".into(),
            file_system: Some("ext4".into()),
            in_memory: false,
            free_bytes: 50 << 30,
            size_bytes: 100 << 30,
            mode: 0o755,
            with_source: false,
        };
        change(&mut place);
        let none = Behaviour { second_create_in_parts: None, refuses_wrong_checksum: None, old_version: None, held: None, ..behaviour() };
        assess(&StoreFacts { behaviour: none, bucket: None, directory: Some(place), ..facts() }).findings
    };
    assert_eq!(directory(&|_| {}), []);
    one(&directory(&|place| place.in_memory = true), "in-memory", Severity::Danger, "lifeboat init");
    one(&directory(&|place| place.mode = 0o777), "writable-by-all", Severity::Danger, "chmod o-w /srv/backups");
    one(&directory(&|place| place.with_source = true), "same-file-system", Severity::Warning, "another disk");
    one(&directory(&|place| place.free_bytes = 1 << 30), "nearly-full", Severity::Warning, "lifeboat prune");
}
