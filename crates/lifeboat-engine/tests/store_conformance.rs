//! What every store must do, held against all of them: in memory, in a directory, in buckets of servers that speak S3's, Google's and
//! Azure's protocols.
//!
//! One list of checks; a check gets a way to make empty stores, and knows nothing else of them.

#[path = "../../lifeboat-clouds/tests/support/azurite.rs"]
#[expect(dead_code, reason = "shared with the tests of other crates")]
mod azurite;
#[path = "../../lifeboat-clouds/tests/support/gcs.rs"]
#[expect(dead_code, reason = "shared with the tests of other crates")]
mod gcs;
#[path = "../../lifeboat-s3/tests/support/seaweed.rs"]
#[expect(dead_code, reason = "shared with the tests of other crates")]
mod seaweed;

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use lifeboat_clouds::{Cloud, Config};
use lifeboat_core::repository::layout::Key;
use lifeboat_engine::store::{LocalStore, MemoryStore, Store, StoreError};

type Make<'a> = &'a dyn Fn() -> Box<dyn Store>;
type Check = fn(Make<'_>);

const CHECKS: [(&str, Check); 15] = [
    ("one of many writers wins", one_of_many_writers_wins),
    ("what is written is read", what_is_written_is_read),
    ("what exists stays", what_exists_stays),
    ("what is absent is absent", what_is_absent_is_absent),
    ("ranges", ranges),
    ("a limit bounds what is read", a_limit_bounds_what_is_read),
    ("nothing is an object", nothing_is_an_object),
    ("large objects", large_objects),
    ("objects without a name yet", objects_without_a_name_yet),
    ("odd names", odd_names),
    ("a dropped writer leaves nothing", a_dropped_writer_leaves_nothing),
    ("listings", listings),
    ("listings see every write", listings_see_every_write),
    ("many readers", many_readers),
    ("what is deleted is gone", what_is_deleted_is_gone),
];

fn run(make: Make<'_>) {
    for (name, check) in CHECKS {
        let begun = std::time::Instant::now();
        check(make);
        eprintln!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
    }
}

#[test]
fn in_memory() {
    run(&|| Box::new(MemoryStore::default()));
}

#[test]
fn in_a_directory() {
    let place = tempfile::tempdir().expect("can make a temporary directory");
    let number = AtomicUsize::new(0);
    run(&|| {
        let path = place.path().join(number.fetch_add(1, Ordering::Relaxed).to_string());
        Box::new(LocalStore::open(&path, true).expect("own directory"))
    });
}

#[test]
fn in_a_bucket() {
    let server = seaweed::Seaweed::start();
    let place = tempfile::tempdir().expect("can make a temporary directory");
    let bucket = bucket(&server, place.path());
    let number = AtomicUsize::new(0);
    run(&|| {
        // Each prefix is a prefix of a later one: 1, 10, 11, ….
        let number = number.fetch_add(1, Ordering::Relaxed);
        Box::new(lifeboat_engine::store::S3Store::new(bucket.clone(), &format!("a/{number}")).expect("a prefix"))
    });
    // A bucket without a prefix is a repository as well; what stands in it makes it one that is not empty.
    let whole = lifeboat_engine::store::S3Store::new(bucket, "").expect("no prefix");
    assert!(!whole.is_empty().unwrap());
    assert_eq!(whole.list_segments("").unwrap(), ["a/"]);
    assert_eq!(whole.url(), "s3://conformance");
}

#[test]
fn in_a_bucket_of_googles() {
    let server = gcs::Gcs::start(&["conformance"]);
    let variables = Some(vec![("GOOGLE_BEARER_TOKEN".to_owned(), gcs::TOKEN.to_owned())]);
    let config = Config { endpoint: Some(server.endpoint()), variables, ..Config::of(Cloud::Google, "conformance") };
    in_a_cloud(&lifeboat_clouds::Bucket::connect(&config).expect("it is there"), "gs://conformance");
    assert_eq!(server.counts().1, 0, "no upload is left open");
}

#[test]
fn in_a_container_of_azures() {
    let server = azurite::Azurite::start();
    let variables = Some(vec![("AZURE_STORAGE_KEY".to_owned(), azurite::KEY.to_owned())]);
    let account = Some(azurite::ACCOUNT.to_owned());
    let config = Config { endpoint: Some(server.endpoint()), account, variables, ..Config::of(Cloud::Azure, "conformance") };
    in_a_cloud(&lifeboat_clouds::Bucket::create(&config).expect("a new server takes a container"), "az://conformance");
}

fn in_a_cloud(bucket: &lifeboat_clouds::Bucket, url: &str) {
    let store = |prefix: &str| lifeboat_engine::store::CloudStore::new(bucket.clone(), prefix).expect("a prefix");
    let number = AtomicUsize::new(0);
    // Each prefix is a prefix of a later one: 1, 10, 11, ….
    run(&|| Box::new(store(&format!("a/{}", number.fetch_add(1, Ordering::Relaxed)))));
    // A bucket without a prefix is a repository as well; what stands in it makes it one that is not empty.
    let whole = store("");
    assert!(!whole.is_empty().unwrap());
    assert_eq!(whole.list_segments("").unwrap(), ["a/"]);
    assert_eq!(whole.url(), url);
}

/// A bucket with versions and Object Lock, as a repository should have.
fn bucket(server: &seaweed::Seaweed, place: &std::path::Path) -> lifeboat_s3::Bucket {
    use lifeboat_s3::{DefaultRetention, Mode, Period};
    let profiles = place.join("credentials");
    let keys = (seaweed::ACCESS_KEY, seaweed::SECRET_KEY);
    std::fs::write(&profiles, format!("[test]\naws_access_key_id = {}\naws_secret_access_key = {}\n", keys.0, keys.1)).unwrap();
    let config = lifeboat_s3::Config {
        bucket: "conformance".into(),
        endpoint: Some(server.endpoint()),
        profile: Some("test".into()),
        profile_file: Some(profiles),
        ..lifeboat_s3::Config::default()
    };
    let lock = DefaultRetention { mode: Mode::Governance, period: Period::Days(1) };
    lifeboat_s3::Bucket::create(&config, Some(lock)).expect("a new server takes a bucket")
}

fn key(text: &str) -> Key {
    Key::parse(text).expect("a key")
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 256) as u8).collect()
}

#[track_caller]
fn assert_absent(result: Result<impl std::fmt::Debug, StoreError>) {
    assert!(matches!(result, Err(StoreError::NotFound { .. })), "{result:?}");
}

#[track_caller]
fn assert_exists(result: Result<(), StoreError>) {
    assert!(matches!(result, Err(StoreError::Exists { .. })), "{result:?}");
}

fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.list(prefix).unwrap().into_iter().map(|listed| listed.key.to_string()).collect()
}

fn one_of_many_writers_wins(make: Make<'_>) {
    const WRITERS: usize = 16;
    let store = make();
    for round in 0..4 {
        let key = key(&format!("leases/backup/{round:010}.json"));
        let begin = Barrier::new(WRITERS);
        let winners: Vec<usize> = thread::scope(|scope| {
            let threads: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (store, key, begin) = (&*store, &key, &begin);
                    scope.spawn(move || {
                        begin.wait();
                        match store.create(key, format!("writer {writer}").as_bytes()) {
                            Ok(()) => Some(writer),
                            Err(StoreError::Exists { .. }) => {
                                // Who lost can read the winner's at once.
                                assert!(store.get(key, 100).unwrap().starts_with(b"writer "));
                                None
                            }
                            Err(error) => panic!("{error:?}"),
                        }
                    })
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().expect("a writer")).collect()
        });
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(store.get(&key, 100).unwrap(), format!("writer {}", winners[0]).as_bytes());
    }
}

fn what_is_written_is_read(make: Make<'_>) {
    let store = make();
    assert!(store.is_empty().unwrap());
    for length in [1, 31, 8192, 262_144, 1_000_003] {
        let (key, bytes) = (key(&format!("packs/{length}")), pattern(length));
        store.create(&key, &bytes).unwrap();
        assert!(store.get(&key, length as u64).unwrap() == bytes);
        assert_eq!(store.length(&key).unwrap(), length as u64);
        assert!(keys(&*store, "").contains(&key.to_string()));
    }
    assert!(!store.is_empty().unwrap());
}

fn what_exists_stays(make: Make<'_>) {
    let store = make();
    let key = key("x/manifest.json");
    store.create(&key, b"first").unwrap();
    assert_exists(store.create(&key, b"second, and longer"));
    assert_exists(store.create(&key, b"first"));
    let mut writer = store.writer().unwrap();
    writer.write(b"third").unwrap();
    assert_exists(writer.commit(&key));
    let mut writer = store.writer_for(&key, 20 << 20).unwrap();
    for _ in 0..20 {
        writer.write(&pattern(1 << 20)).unwrap();
    }
    assert_exists(writer.commit(&key));
    assert_eq!(store.get(&key, 100).unwrap(), b"first");
    assert_eq!(keys(&*store, ""), ["x/manifest.json"]);
}

fn what_is_absent_is_absent(make: Make<'_>) {
    let store = make();
    store.create(&key("there/object"), b"x").unwrap();
    for absent in ["nothing", "there/nothing", "there", "there/object.json", "there/object/below", "ther"] {
        let key = key(absent);
        assert_absent(store.get(&key, 100));
        assert_absent(store.length(&key));
        assert_absent(store.get_range(&key, 0..1, &mut Vec::new()));
    }
    assert!(store.list("nothing/").unwrap().is_empty());
    assert!(store.list_segments("nothing/").unwrap().is_empty());
    assert!(store.list_after("nothing/", &key("nothing/x")).unwrap().is_empty());
    assert!(store.get(&key("nothing"), 100).unwrap_err().is_absence());
}

fn ranges(make: Make<'_>) {
    let store = make();
    let (key, bytes) = (key("packs/ab/range"), pattern(1_000_000));
    store.create(&key, &bytes).unwrap();
    let mut buffer = b"what was here before".to_vec();
    for range in [0..1, 0..1_000_000, 999_999..1_000_000, 500_000..500_000, 262_144..524_288, 1_000_000..1_000_000] {
        store.get_range(&key, range.clone(), &mut buffer).unwrap();
        assert!(buffer == bytes[range.start as usize..range.end as usize], "{range:?}");
    }
    for range in [0..1_000_001, 999_999..1_000_002, 1_000_000..1_000_001, 2_000_000..2_000_001, 1_000_001..1_000_001] {
        let read = store.get_range(&key, range.clone(), &mut buffer);
        let wanted_end = range.end;
        match read {
            Err(StoreError::Short { length: 1_000_000, wanted, .. }) if wanted == wanted_end => {}
            // An empty range behind the end asks for nothing.
            Ok(()) if range.is_empty() => {}
            other => panic!("{range:?}: {other:?}"),
        }
    }
}

fn a_limit_bounds_what_is_read(make: Make<'_>) {
    let store = make();
    let key = key("lifeboat.json");
    store.create(&key, &[7; 1000]).unwrap();
    assert_eq!(store.get(&key, 1000).unwrap(), [7; 1000]);
    match store.get(&key, 999) {
        Err(StoreError::Io { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::FileTooLarge),
        other => panic!("{other:?}"),
    }
}

fn nothing_is_an_object(make: Make<'_>) {
    let store = make();
    let empty = key("x/empty");
    store.create(&empty, b"").unwrap();
    assert_eq!(store.get(&empty, 0).unwrap(), b"");
    assert_eq!(store.length(&empty).unwrap(), 0);
    assert_exists(store.create(&empty, b"more"));
    assert!(matches!(store.get_range(&empty, 0..1, &mut Vec::new()), Err(StoreError::Short { length: 0, wanted: 1, .. })));
    assert_eq!(store.list("").unwrap()[0].bytes, 0);
    store.writer_for(&key("x/also-empty"), 0).unwrap().commit(&key("x/also-empty")).unwrap();
    assert_eq!(store.length(&key("x/also-empty")).unwrap(), 0);
}

fn large_objects(make: Make<'_>) {
    let store = make();
    let (key, length) = (key("artifacts/blobs/ab/large"), 70 << 20);
    let bytes = pattern(length);
    let mut writer = store.writer_for(&key, length as u64).unwrap();
    for part in bytes.chunks(300_007) {
        writer.write(part).unwrap();
    }
    assert_absent(store.length(&key));
    writer.commit(&key).unwrap();
    assert_eq!(store.length(&key).unwrap(), length as u64);
    let mut buffer = Vec::new();
    for start in [0, (8 << 20) - 3, (64 << 20) - 1, length as u64 - 1000] {
        store.get_range(&key, start..start + 1000, &mut buffer).unwrap();
        assert!(buffer == bytes[start as usize..start as usize + 1000], "{start}");
    }
    assert!(store.get(&key, length as u64).unwrap() == bytes);
}

fn objects_without_a_name_yet(make: Make<'_>) {
    let store = make();
    let bytes = pattern(33 << 20);
    let mut writer = store.writer().unwrap();
    for part in bytes.chunks(512 << 10) {
        writer.write(part).unwrap();
    }
    let key = key("packs/cd/named-at-the-end");
    writer.commit(&key).unwrap();
    assert!(store.get(&key, u64::MAX).unwrap() == bytes);
}

fn odd_names(make: Make<'_>) {
    let store = make();
    let mut names = BTreeSet::new();
    // Every character that a key may have, in the middle, at the start and at the end of a segment.
    for byte in (b'!'..=b'~').filter(|byte| !matches!(byte, b'/' | b'\\')) {
        let odd = byte as char;
        names.insert(format!("odd/{byte}/a{odd}b"));
        if odd != '.' {
            names.insert(format!("odd/{odd}{odd}/{odd}"));
        }
    }
    for name in [
        "odd/%41",
        "odd/%2F",
        "odd/a+b=c&d?e#f",
        "odd/%~0123",
        "odd/...",
        "odd/.hidden",
        "odd/a..b",
        "odd/x.json.",
        "odd/-",
        "odd/~",
        "odd/@:",
    ] {
        names.insert(name.to_owned());
    }
    // The longest there are: a long segment, and a long key.
    names.insert(format!("odd/{}", "s".repeat(200)));
    names.insert(format!("odd/{}x", format!("{}/", "k".repeat(99)).repeat(7)));
    for name in &names {
        store.create(&key(name), name.as_bytes()).unwrap();
    }
    for name in &names {
        assert_eq!(store.get(&key(name), 2000).unwrap(), name.as_bytes(), "{name}");
        assert_exists(store.create(&key(name), b""));
    }
    assert_eq!(keys(&*store, "odd/"), names.iter().cloned().collect::<Vec<_>>());
    for segment in store.list_segments("odd/").unwrap() {
        assert!(names.iter().any(|name| name["odd/".len()..].starts_with(&segment)), "{segment}");
    }
}

fn a_dropped_writer_leaves_nothing(make: Make<'_>) {
    let store = make();
    let key = key("x/y");
    let mut writer = store.writer().unwrap();
    writer.write(b"half").unwrap();
    drop(writer);
    let mut writer = store.writer_for(&key, 30 << 20).unwrap();
    for _ in 0..30 {
        writer.write(&pattern(1 << 20)).unwrap();
    }
    drop(writer);
    assert_absent(store.length(&key));
    assert!(store.list("").unwrap().is_empty());
    assert!(store.is_empty().unwrap());
    store.create(&key, b"whole").unwrap();
    assert_eq!(store.get(&key, 10).unwrap(), b"whole");
}

fn listings(make: Make<'_>) {
    let store = make();
    let names = ["a/b/1", "a/b/2", "a/b-c/1", "a/bc/1", "a/b.json", "ab/1", "a-b/1", "top", "wal/7/00000001/x", "wal/7/00000001.history"];
    for name in names {
        store.create(&key(name), name.as_bytes()).unwrap();
    }
    let sorted = |mut names: Vec<&str>| {
        names.sort_unstable();
        names.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(keys(&*store, ""), sorted(names.to_vec()));
    // A prefix of whole segments has nothing of one that only begins like it.
    assert_eq!(keys(&*store, "a/"), sorted(vec!["a/b/1", "a/b/2", "a/b-c/1", "a/bc/1", "a/b.json"]));
    assert_eq!(keys(&*store, "a/b/"), ["a/b/1", "a/b/2"]);
    assert!(store.list("").unwrap().iter().all(|listed| listed.bytes == listed.key.as_str().len() as u64));

    let segments = |prefix| store.list_segments(prefix).unwrap();
    assert_eq!(segments(""), ["a-b/", "a/", "ab/", "top", "wal/"]);
    assert_eq!(segments("a/"), ["b-c/", "b.json", "b/", "bc/"]);
    assert_eq!(segments("a/b/"), ["1", "2"]);
    assert_eq!(segments("wal/7/"), ["00000001.history", "00000001/"]);

    let after = |prefix, last| store.list_after(prefix, &key(last)).unwrap().into_iter().map(|l| l.key.to_string()).collect::<Vec<_>>();
    assert_eq!(after("a/b/", "a/b/1"), ["a/b/2"]);
    assert_eq!(after("a/b/", "a/b/0"), ["a/b/1", "a/b/2"]);
    assert_eq!(after("a/b/", "a/b/2"), Vec::<String>::new());
    assert_eq!(after("a/b/", "zzz"), Vec::<String>::new());
    assert_eq!(after("a/b/", "a"), ["a/b/1", "a/b/2"]);
}

fn listings_see_every_write(make: Make<'_>) {
    let store = make();
    for number in 0..50 {
        let name = format!("heads/{number:010}.json");
        store.create(&key(&name), b"x").unwrap();
        assert_eq!(keys(&*store, "heads/").last(), Some(&name));
    }
}

fn many_readers(make: Make<'_>) {
    let store = make();
    let (key, bytes) = (key("packs/ef/shared"), pattern(4 << 20));
    store.create(&key, &bytes).unwrap();
    thread::scope(|scope| {
        for reader in 0..8_usize {
            let (store, key, bytes) = (&*store, &key, &bytes);
            scope.spawn(move || {
                let mut buffer = Vec::new();
                for step in 0..16 {
                    let start = (reader * 500_009 + step * 131_071) % ((4 << 20) - 70_000);
                    store.get_range(key, start as u64..start as u64 + 70_000, &mut buffer).unwrap();
                    assert!(buffer == bytes[start..start + 70_000]);
                }
            });
        }
    });
}

fn what_is_deleted_is_gone(make: Make<'_>) {
    let store = make();
    let (one, other) = (key("x/packs/one"), key("x/packs/other"));
    store.create(&one, &pattern(100_000)).unwrap();
    store.create(&other, b"other").unwrap();
    // Also for a reader that has just read it.
    store.get_range(&one, 0..10, &mut Vec::new()).unwrap();
    store.delete(&one).unwrap();
    assert_absent(store.get(&one, 1 << 20));
    assert_absent(store.length(&one));
    assert_absent(store.get_range(&one, 0..10, &mut Vec::new()));
    assert_eq!(keys(&*store, "x/"), ["x/packs/other"]);
    // Twice is as good as once, and so is what never was there.
    store.delete(&one).unwrap();
    store.delete(&key("x/packs/other/below")).unwrap();
    store.delete(&key("never/was")).unwrap();
    // Its name is free again.
    store.create(&one, b"again").unwrap();
    assert_eq!(store.get(&one, 10).unwrap(), b"again");
    assert_eq!(store.get(&other, 10).unwrap(), b"other");
}
