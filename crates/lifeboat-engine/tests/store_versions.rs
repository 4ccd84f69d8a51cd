//! A bucket's past and its holds, against a real server: what an attacker deletes or writes over is found, and what is held stays.

#[path = "../../lifeboat-s3/tests/support/seaweed.rs"]
#[expect(dead_code, reason = "shared with the tests of other crates")]
mod seaweed;

use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::doctor::Severity;
use lifeboat_core::doctor::store::{Held, OldVersion, SecondCreate, assess};
use lifeboat_core::repository::layout::Key;
use lifeboat_core::retention::{HoldMode, Retention};
use lifeboat_engine::store::probe::{self, Depth, Examination};
use lifeboat_engine::store::{LocalStore, MemoryStore, S3Store, Store, StoreError};
use lifeboat_s3::{Bucket, Config, DefaultRetention, Kind, Mode, Period};

fn bucket(server: &seaweed::Seaweed, name: &str, lock: Option<DefaultRetention>) -> (Bucket, tempfile::TempDir) {
    let place = tempfile::tempdir().expect("can make a temporary directory");
    let profiles = place.path().join("credentials");
    let text = format!("[test]\naws_access_key_id = {}\naws_secret_access_key = {}\n", seaweed::ACCESS_KEY, seaweed::SECRET_KEY);
    std::fs::write(&profiles, text).expect("own directory");
    let config = Config {
        bucket: name.into(),
        endpoint: Some(server.endpoint()),
        region: Some("us-east-1".into()),
        profile: Some("test".into()),
        profile_file: Some(profiles),
        ..Config::default()
    };
    (Bucket::create(&config, lock).expect("a new server takes a bucket"), place)
}

fn key(text: &str) -> Key {
    Key::parse(text).expect("a key")
}

/// A moment after everything so far and before everything from now on: the server's times may have whole seconds.
fn between() -> Timestamp {
    let begun = Timestamp::now().as_second();
    let next = |second: i64| {
        while Timestamp::now().as_second() < second {
            std::thread::sleep(Duration::from_millis(20))
        }
    };
    next(begun + 2);
    let moment = Timestamp::from_second(begun + 1).expect("now");
    next(begun + 3);
    moment
}

fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.list(prefix).unwrap().into_iter().map(|listed| listed.key.to_string()).collect()
}

#[track_caller]
fn assert_unsupported<T>(result: Result<T, StoreError>) {
    match result {
        Err(StoreError::Io { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::Unsupported, "{source}"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was done"),
    }
}

#[test]
fn c104_c105_what_was_deleted_or_written_over_is_read_as_it_was() {
    let server = seaweed::Seaweed::start();
    let (bucket, _place) = bucket(&server, "past", None);
    let store = S3Store::new(bucket.clone(), "in/here").unwrap();
    for (name, bytes) in [("a/1", "one"), ("a/10", "ten"), ("a/2", "two"), ("b/x/deep", "deep"), ("top.json", "top"), ("gone/before", "x")]
    {
        store.create(&key(name), bytes.as_bytes()).unwrap();
    }
    store.delete(&key("gone/before")).unwrap();
    let then = between();
    // Deleted; written over, once and again; and something new.
    for name in ["a/1", "a/2", "b/x/deep", "top.json"] {
        store.delete(&key(name)).unwrap();
    }
    store.create(&key("a/2"), b"garbage").unwrap();
    store.delete(&key("a/2")).unwrap();
    store.create(&key("a/2"), b"more garbage").unwrap();
    store.create(&key("new/object"), b"new").unwrap();
    assert_eq!(keys(&store, ""), ["a/10", "a/2", "new/object"]);

    let past = store.as_of(then).unwrap();
    assert_eq!(keys(&*past, ""), ["a/1", "a/10", "a/2", "b/x/deep", "top.json"]);
    assert_eq!(keys(&*past, "a/"), ["a/1", "a/10", "a/2"]);
    assert_eq!(past.list_segments("").unwrap(), ["a/", "b/", "top.json"]);
    assert_eq!(past.list_segments("b/").unwrap(), ["x/"]);
    assert_eq!(past.list_after("a/", &key("a/1")).unwrap().len(), 2);
    assert_eq!(past.get(&key("a/2"), 100).unwrap(), b"two");
    assert_eq!((past.length(&key("a/2")).unwrap(), past.length(&key("a/1")).unwrap()), (3, 3));
    let mut range = Vec::new();
    past.get_range(&key("b/x/deep"), 1..3, &mut range).unwrap();
    assert_eq!(range, b"ee");
    for absent in ["gone/before", "new/object", "never"] {
        assert!(matches!(past.get(&key(absent), 100), Err(StoreError::NotFound { .. })), "{absent}");
        assert!(matches!(past.length(&key(absent)), Err(StoreError::NotFound { .. })), "{absent}");
    }
    assert!(!past.is_empty().unwrap());
    assert!(past.url().contains("as of"), "{}", past.url());
    // Nothing is written into the past.
    assert_unsupported(past.create(&key("x"), b"x"));
    assert_unsupported(past.delete(&key("a/1")));
    assert_unsupported(past.retain(&key("a/1"), Timestamp::now()));
    let before = store.as_of(then - SignedDuration::from_hours(1)).unwrap();
    assert!(before.is_empty().unwrap() && before.list("").unwrap().is_empty() && before.list_segments("").unwrap().is_empty());

    // Without a moment: other copies of what is damaged or gone, newest first, of this key and no other that begins like it.
    let copies = |name: &str| -> Vec<Vec<u8>> {
        store.alternatives(&key(name)).unwrap().iter().map(|copy| copy.get(&key(name), 100).unwrap()).collect()
    };
    assert_eq!(copies("a/2"), [b"garbage".to_vec(), b"two".to_vec()]);
    assert_eq!(copies("a/1"), [b"one".to_vec()]);
    assert!(copies("a/10").is_empty() && copies("never").is_empty());
    let older = store.alternatives(&key("a/2")).unwrap();
    assert_eq!(older[1].length(&key("a/2")).unwrap(), 3);
    assert_eq!(older[1].get(&key("a/10"), 100).unwrap(), b"ten", "every other key is as it is");
    assert_unsupported(older[0].create(&key("x"), b"x"));

    // More versions over one than are listed at once.
    for _ in 0..120 {
        store.delete(&key("a/1")).unwrap();
    }
    let past = store.as_of(then).unwrap();
    assert_eq!(past.get(&key("a/1"), 100).unwrap(), b"one");
}

#[test]
fn stores_without_a_past_say_so() {
    let place = tempfile::tempdir().unwrap();
    let local = LocalStore::open(&place.path().join("r"), true).unwrap();
    assert_unsupported(local.as_of(Timestamp::now()));
    assert_unsupported(MemoryStore::default().retain(&key("x"), Timestamp::now()));
    assert!(local.alternatives(&key("x")).unwrap().is_empty());
}

#[test]
fn c104_objects_are_held_as_promised_and_longer_when_asked() {
    let server = seaweed::Seaweed::start();
    let lock = DefaultRetention { mode: Mode::Governance, period: Period::Days(1) };
    let (bucket, _place) = bucket(&server, "held", Some(lock));
    let plain = S3Store::new(bucket.clone(), "r").unwrap();
    let days = |days: i64| SignedDuration::from_hours(24 * days);
    let promise = Retention { mode: HoldMode::Compliance, span: days(10) };
    let store = S3Store::new(bucket.clone(), "r").unwrap().with_retention(Some(promise));
    let held = |name: &str| {
        let head = bucket.head(&format!("r/{name}"), None).unwrap().retention.expect("held");
        let left = head.until.duration_since(SystemTime::now()).unwrap();
        (head.mode, (left.as_secs() + 3600) / 86_400)
    };
    let long = vec![7; 9 << 20];
    store.create(&key("packs/ab/x"), b"pack").unwrap();
    store.create(&key("packs/ab/long"), &long).unwrap();
    let mut writer = store.writer().unwrap();
    writer.write(b"named at the end").unwrap();
    writer.commit(&key("packs/ab/late")).unwrap();
    store.create(&key("artifacts/blobs/ab/x"), b"blob").unwrap();
    store.create(&key("leases/backup/0000000001.json"), b"lease").unwrap();
    plain.create(&key("packs/ab/plain"), b"by the bucket").unwrap();
    for name in ["packs/ab/x", "packs/ab/long", "packs/ab/late"] {
        assert_eq!(held(name), (Mode::Compliance, 10), "{name}");
    }
    assert_eq!(held("artifacts/blobs/ab/x"), (Mode::Compliance, 20));
    assert_eq!(held("leases/backup/0000000001.json"), (Mode::Governance, 1), "as the bucket says");
    assert_eq!(held("packs/ab/plain"), (Mode::Governance, 1));

    // Longer, never shorter, in the mode that it has: nobody has asked to bypass that.
    let until = |days: i64| Timestamp::now() + SignedDuration::from_hours(24 * days);
    store.retain(&key("packs/ab/plain"), until(5)).unwrap();
    assert_eq!(held("packs/ab/plain"), (Mode::Governance, 5));
    store.retain(&key("packs/ab/plain"), until(2)).unwrap();
    assert_eq!(held("packs/ab/plain"), (Mode::Governance, 5));
    plain.retain(&key("packs/ab/late"), until(12)).unwrap();
    assert_eq!(held("packs/ab/late"), (Mode::Compliance, 12));
    assert!(matches!(store.retain(&key("packs/none"), until(2)), Err(StoreError::NotFound { .. })));

    // A marker hides it; the version cannot be destroyed.
    store.delete(&key("packs/ab/x")).unwrap();
    assert!(matches!(store.get(&key("packs/ab/x"), 10), Err(StoreError::NotFound { .. })));
    let version = bucket.versions("r/packs/ab/x").unwrap().into_iter().find(|version| !version.is_delete_marker()).expect("kept");
    let error = bucket.delete("r/packs/ab/x", Some(&version.version)).expect_err("held");
    assert_eq!(error.kind, Kind::Denied);
    assert_eq!(store.alternatives(&key("packs/ab/x")).unwrap()[0].get(&key("packs/ab/x"), 10).unwrap(), b"pack");
}

#[test]
fn c098_probing_sees_what_a_good_store_does_and_leaves_nothing() {
    let server = seaweed::Seaweed::start();
    let lock = DefaultRetention { mode: Mode::Governance, period: Period::Days(1) };
    let (bucket, _place) = bucket(&server, "probed", Some(lock));
    let store = S3Store::new(bucket.clone(), "r").unwrap();
    let how = Examination { depth: Depth::Full, sources: &[], other_copies: 0 };
    let facts = probe::examine(&store, &how);
    let seen = &facts.behaviour;
    assert_eq!(seen.second_create, Ok(SecondCreate::Refused));
    assert_eq!(seen.second_create_in_parts, Some(Ok(SecondCreate::Refused)));
    assert!(seen.race.as_ref().is_ok_and(|race| race.winners == 1 && race.winners_bytes), "{seen:?}");
    assert_eq!((&seen.reads_what_was_written, &seen.lists_what_was_written, &seen.deletes), (&Ok(true), &Ok(true), &Ok(true)));
    assert_eq!(seen.refuses_wrong_checksum, Some(Ok(true)));
    assert_eq!(seen.old_version, Some(Ok(OldVersion::Kept)));
    assert_eq!(seen.held, Some(Ok(Held::Kept)));
    assert!(assess(&facts).findings.iter().all(|finding| finding.severity == Severity::Warning), "{:#?}", assess(&facts));
    // The bucket holds everything for a day; what the probe wrote is gone all the same.
    assert_eq!((seen.left_behind, bucket.versions("").unwrap()), (0, Vec::new()));

    // A directory.
    let place = tempfile::tempdir().unwrap();
    let local = LocalStore::open(&place.path().join("r"), true).unwrap();
    let facts = probe::examine(&local, &Examination { sources: &[place.path()], ..how });
    assert_eq!(facts.behaviour.second_create, Ok(SecondCreate::Refused));
    let directory = facts.directory.as_ref().expect("it is one");
    assert!(directory.with_source && directory.size_bytes > 0);
    assert!(local.is_empty().unwrap(), "nothing is left");
    let codes: Vec<&str> = assess(&facts).findings.iter().map(|finding| finding.code).collect();
    assert!(codes.contains(&"same-file-system"), "{codes:?}");
    // In memory, as it comes.
    let facts = probe::examine(&MemoryStore::default(), &how);
    assert_eq!(facts.behaviour.second_create, Ok(SecondCreate::Refused));
}
