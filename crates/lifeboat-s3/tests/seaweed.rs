//! The client against a real server, and against a network and a server that fail.
//!
//! Few tests with much in each: every one starts a server.

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/seaweed.rs"]
mod seaweed;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use lifeboat_s3::{Bucket, Config, DefaultRetention, Kind, Mode, PART_BYTES, Period, Retention, Versioning};
use proxy::{Fate, Proxy, denial, refusal};
use seaweed::{ACCESS_KEY, READER_KEY, READER_SECRET, SECRET_KEY, Seaweed};

/// A configuration whose credentials are those of a profile: tests must not change their process's environment.
struct Place {
    _directory: tempfile::TempDir,
    profiles: PathBuf,
}

/// Says where the profiles are, once: the SDK reads it from the environment, before any thread is started.
fn profiles(directory: &std::path::Path) -> PathBuf {
    let file = directory.join("credentials");
    let profile = |name: &str, key: &str, secret: &str| format!("[{name}]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    let text = [
        profile("admin", ACCESS_KEY, SECRET_KEY),
        profile("reader", READER_KEY, READER_SECRET),
        profile("wrong", ACCESS_KEY, "not-the-secret"),
        profile("unknown", "AKNOBODY", "hunter2"),
        "[empty]\n".to_owned(),
    ];
    std::fs::write(&file, text.concat()).expect("own directory");
    file
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("can make a temporary directory");
        let profiles = profiles(directory.path());
        Self { _directory: directory, profiles }
    }

    fn config(&self, endpoint: &str, bucket: &str, profile: &str) -> Config {
        Config {
            bucket: bucket.to_owned(),
            endpoint: Some(endpoint.to_owned()),
            region: Some("us-east-1".into()),
            profile: Some(profile.to_owned()),
            profile_file: Some(self.profiles.clone()),
            ..Config::default()
        }
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 256) as u8).collect()
}

fn kind<T: std::fmt::Debug>(result: Result<T, lifeboat_s3::S3Error>) -> Kind {
    result.expect_err("this must fail").kind
}

#[test]
fn c099_c104_objects_versions_and_facts() {
    let (server, place) = (Seaweed::start(), Place::new());
    let config = place.config(&server.endpoint(), "locked", "admin");
    assert_eq!(kind(Bucket::connect(&config)), Kind::NoBucket);
    let lock = DefaultRetention { mode: Mode::Governance, period: Period::Days(1) };
    Bucket::create(&config, Some(lock)).unwrap();
    assert_eq!(kind(Bucket::create(&config, Some(lock))), Kind::Exists);
    let bucket = Bucket::connect(&config).unwrap();

    // Created once.
    let first = bucket.put_if_absent("a/one", b"first".to_vec(), None).unwrap();
    assert_eq!(kind(bucket.put_if_absent("a/one", b"second".to_vec(), None)), Kind::Exists);
    assert_eq!(kind(bucket.put_if_absent("a/one", b"first".to_vec(), None)), Kind::Exists, "equal bytes, but another write");
    assert_eq!(bucket.get("a/one", None, 5).unwrap(), b"first");
    assert_eq!(kind(bucket.get("a/one", None, 4)), Kind::Long { length: 5 });
    assert_eq!(kind(bucket.get("a/none", None, 4)), Kind::NotFound);

    // The bucket's default holds for what says nothing; a longer one can be said.
    let head = bucket.head("a/one", None).unwrap();
    let retention = head.retention.expect("the bucket's default");
    assert_eq!((head.bytes, retention.mode), (5, Mode::Governance));
    assert_eq!(head.version, first.version);
    assert!(head.sha256.is_some() && head.modified.is_some() && !head.legal_hold);
    let until = SystemTime::now() + Duration::from_secs(10 * 24 * 60 * 60);
    let kept = bucket.put_if_absent("a/two", b"kept".to_vec(), Some(Retention { mode: Mode::Compliance, until })).unwrap();
    let kept = kept.version.expect("the bucket has versions");
    assert_eq!(bucket.head("a/two", None).unwrap().retention.map(|retention| retention.mode), Some(Mode::Compliance));
    assert_eq!(kind(bucket.delete("a/two", Some(&kept))), Kind::Denied);
    let later = Retention { mode: Mode::Compliance, until: until + Duration::from_secs(24 * 60 * 60) };
    bucket.retain("a/two", Some(&kept), later).unwrap();
    let sooner = Retention { mode: Mode::Compliance, until: until - Duration::from_secs(24 * 60 * 60) };
    assert_eq!(kind(bucket.retain("a/two", Some(&kept), sooner)), Kind::Denied);

    // What is deleted without a version is there as a version.
    let marker = bucket.delete("a/two", None).unwrap().expect("a delete marker");
    assert_eq!(kind(bucket.get("a/two", None, 10)), Kind::NotFound);
    assert_eq!(kind(bucket.get("a/two", Some(&marker), 10)), Kind::NotFound);
    assert_eq!(bucket.get("a/two", Some(&kept), 10).unwrap(), b"kept");
    let mut range = Vec::new();
    bucket.get_range("a/two", Some(&kept), 1..3, &mut range).unwrap();
    assert_eq!(range, b"ep");
    let versions = bucket.versions("a/two").unwrap();
    assert_eq!(versions.len(), 2);
    assert!(versions[0].is_delete_marker() && versions[0].latest && versions[0].version == marker, "{versions:?}");
    assert!(versions[1].bytes == Some(4) && !versions[1].latest && versions[1].version == kept, "{versions:?}");
    // The name is free again, and the old version stays.
    let again = bucket.put_if_absent("a/two", b"again".to_vec(), None).unwrap();
    assert_ne!(again.version.as_deref(), Some(kept.as_str()));
    assert_eq!(bucket.get("a/two", Some(&kept), 10).unwrap(), b"kept");
    assert_eq!(bucket.versions("a/").unwrap().len(), 4);

    // Listings of more than one page.
    thread::scope(|scope| {
        for part in 0..8 {
            let bucket = &bucket;
            scope.spawn(move || {
                for number in (0..1040).filter(|number| number % 8 == part) {
                    bucket.put_if_absent(&format!("many/{number:05}"), Vec::new(), None).unwrap();
                }
            });
        }
    });
    let all = bucket.list("many/", None, None).unwrap();
    assert_eq!(all.len(), 1040);
    assert!(all.windows(2).all(|pair| pair[0].key < pair[1].key));
    let rest = bucket.list("many/", Some("many/01029"), None).unwrap();
    assert_eq!((rest.len(), rest[0].key.as_str()), (10, "many/01030"));
    assert_eq!(bucket.list("many/", None, Some(3)).unwrap().len(), 3);
    assert_eq!(bucket.versions("many/").unwrap().len(), 1040);
    let (objects, below) = bucket.list_below("").unwrap();
    assert_eq!((objects.len(), below), (0, vec!["a/".to_owned(), "many/".to_owned()]));

    // What the server says of itself. It has no replication and no public access block of its own.
    let facts = bucket.facts();
    assert_eq!(facts.versioning.unwrap(), Versioning::On);
    assert_eq!(facts.object_lock.unwrap(), Some(Some(lock)));
    assert!(facts.clock_ahead.is_some_and(|ahead| ahead.abs() <= 2), "{:?}", facts.clock_ahead);
    assert!(facts.replication.is_ok_and(|rules| rules.is_empty()) || facts.public_access.is_err());
    assert!(facts.encryption.is_ok() || facts.encryption.is_err_and(|error| !error.is_transient()));

    let plain = place.config(&server.endpoint(), "plain", "admin");
    let plain = Bucket::create(&plain, None).unwrap();
    assert_eq!(plain.facts().versioning.unwrap(), Versioning::On);
    assert_eq!(plain.facts().object_lock.unwrap(), None);

    // Who may only read is told so; who is nobody as well, and nothing that was sent is repeated.
    let reader = Bucket::connect(&place.config(&server.endpoint(), "locked", "reader")).unwrap();
    assert_eq!(reader.get("a/one", None, 5).unwrap(), b"first");
    assert_eq!(kind(reader.put_if_absent("a/three", b"x".to_vec(), None)), Kind::Denied);
    for profile in ["wrong", "unknown", "empty", "missing"] {
        let error = Bucket::connect(&place.config(&server.endpoint(), "locked", profile)).expect_err("not let in");
        assert_eq!(error.kind, Kind::Denied, "{profile}: {error}");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter2") && !text.contains("not-the-secret") && !text.contains("AKNOBODY"), "{text}");
    }
    // A name that nobody made: it is not made by looking, nor by writing.
    assert_eq!(kind(Bucket::connect(&place.config(&server.endpoint(), "lokced", "admin"))), Kind::NoBucket);
    assert_eq!(kind(Bucket::connect(&place.config(&server.endpoint(), "lokced", "admin"))), Kind::NoBucket);
}

#[test]
fn c096_long_objects_go_in_parts() {
    let (server, place) = (Seaweed::start(), Place::new());
    let config = place.config(&server.endpoint(), "parts", "admin");
    let bucket = Bucket::create(&config, None).unwrap();
    let bytes = pattern(2 * PART_BYTES + 12_345);
    let write = |key: &str, bytes: &[u8]| {
        let mut upload = bucket.upload(key, bytes.len() as u64, None);
        for part in bytes.chunks(1_000_003) {
            upload.write(part)?;
        }
        upload.finish()
    };
    write("long", &bytes).unwrap();
    assert_eq!(bucket.get("long", None, u64::MAX).unwrap(), bytes);
    let mut range = Vec::new();
    let across = PART_BYTES as u64 - 5..PART_BYTES as u64 + 7;
    bucket.get_range("long", None, across.clone(), &mut range).unwrap();
    assert_eq!(range, bytes[across.start as usize..across.end as usize]);

    // The name is taken, and stays with its owner.
    let before = bucket.requests();
    assert_eq!(kind(write("long", &pattern(PART_BYTES + 1))), Kind::Exists);
    assert_eq!(bucket.requests().get("abort").copied().unwrap_or(0), before.get("abort").copied().unwrap_or(0) + 1);
    assert_eq!(bucket.head("long", None).unwrap().bytes, bytes.len() as u64);

    // Exactly one part is one request; nothing at all is an object too.
    let creates = |bucket: &Bucket| bucket.requests().get("create").copied().unwrap_or(0);
    let before = creates(&bucket);
    write("one part", &bytes[..PART_BYTES]).unwrap();
    assert_eq!(creates(&bucket), before + 1);
    write("nothing", b"").unwrap();
    assert_eq!(bucket.get("nothing", None, 0).unwrap(), b"");

    // Given up: nothing is there, and nothing stays of its parts.
    let mut upload = bucket.upload("given up", 0, None);
    upload.write(&bytes).unwrap();
    drop(upload);
    assert_eq!(kind(bucket.head("given up", None)), Kind::NotFound);
    assert!(bucket.unfinished_uploads("").unwrap().is_empty());
}

/// A proxy that lets the `count` first requests whose line holds `text` meet `fate`.
fn breaking(server: &Seaweed, text: &'static str, count: usize, fate: Fate) -> Proxy {
    let left = AtomicUsize::new(count);
    Proxy::start(server.port(), move |line, _| {
        let hit = line.contains(text) && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if hit { fate.clone() } else { Fate::Pass }
    })
}

#[test]
fn c095_c101_what_breaks_is_done_again() {
    let (server, place) = (Seaweed::start(), Place::new());
    let direct = Bucket::create(&place.config(&server.endpoint(), "faults", "admin"), None).unwrap();
    let through = |proxy: &Proxy| Bucket::connect(&place.config(&proxy.endpoint(), "faults", "admin")).unwrap();
    let bytes = pattern(3_000_000);
    direct.put_if_absent("object", bytes.clone(), None).unwrap();

    // Bodies that break are read on from where they broke.
    for count in [1, 3] {
        let proxy = breaking(&server, "/object", count, Fate::CutAnswer(700_000));
        let bucket = through(&proxy);
        assert_eq!(bucket.get("object", None, u64::MAX).unwrap(), bytes);
        assert_eq!(proxy.broken(), count);
        let gets = proxy.requests().iter().filter(|line| line.starts_with("GET /faults/object")).count();
        assert_eq!(gets, count + 1);
        let mut range = Vec::new();
        let proxy = breaking(&server, "/object", count, Fate::CutAnswer(100_000));
        through(&proxy).get_range("object", None, 1_000_000..2_000_000, &mut range).unwrap();
        assert!(range == bytes[1_000_000..2_000_000]);
        assert_eq!(proxy.broken(), count);
    }

    // Also where the connection is reset, and what comes slowly only takes longer.
    let proxy = breaking(&server, "/object", 2, Fate::ResetAnswer(700_000));
    assert!(through(&proxy).get("object", None, u64::MAX).unwrap() == bytes);
    assert_eq!(proxy.broken(), 2);
    let proxy = breaking(&server, "/object", 1, Fate::Trickle(30));
    assert!(through(&proxy).get("object", None, u64::MAX).unwrap() == bytes);
    assert_eq!(proxy.requests().iter().filter(|line| line.starts_with("GET /faults/object")).count(), 1);

    // Writes that break on the way are written again.
    for (key, fate) in [("cut", Fate::CutRequest(100_000)), ("slow", refusal("503 Slow Down", "SlowDown"))] {
        let proxy = breaking(&server, "PUT /", 2, fate);
        let bucket = through(&proxy);
        bucket.put_if_absent(key, bytes.clone(), None).unwrap();
        assert_eq!(proxy.broken(), 2);
        assert!(direct.get(key, None, u64::MAX).unwrap() == bytes);
    }

    // One that arrived, and whose answer did not: the second try is refused, because of the first.
    let proxy = breaking(&server, "PUT /", 1, Fate::LoseAnswer);
    let written = through(&proxy).put_if_absent("lost", b"ours".to_vec(), None).unwrap();
    assert_eq!(proxy.broken(), 1);
    assert_eq!(direct.versions("lost").unwrap().len(), 1);
    assert_eq!(written.version, direct.head("lost", None).unwrap().version);
    // The same where the answer is an error, and where the connection is reset.
    for (key, fate) in [("denied", denial("500 Internal Server Error", "InternalError")), ("reset", Fate::ResetAnswer(10))] {
        let proxy = breaking(&server, "PUT /", 1, fate);
        through(&proxy).put_if_absent(key, b"ours".to_vec(), None).unwrap();
        assert_eq!((proxy.broken(), direct.versions(key).unwrap().len()), (1, 1), "{key}");
    }
    // The same where it is not ours.
    let proxy = breaking(&server, "PUT /", 1, Fate::CutRequest(10));
    let bucket = through(&proxy);
    assert_eq!(kind(bucket.put_if_absent("lost", b"ours".to_vec(), None)), Kind::Exists);

    // Listings and looks.
    let proxy = breaking(&server, "/faults", 2, refusal("503 Slow Down", "SlowDown"));
    let bucket = through(&proxy);
    assert_eq!(bucket.list("", None, None).unwrap().len(), 6);
    assert_eq!(bucket.head("object", None).unwrap().bytes, bytes.len() as u64);

    // The end of a long object: an answer that is lost, and one that says 200 and is an error.
    let long = pattern(PART_BYTES + 100);
    let error = refusal("200 OK", "InternalError");
    for (key, text, fate) in [
        ("long lost", "POST /faults/long%20lost?uploadId", Fate::LoseAnswer),
        ("long error", "POST /faults/long%20error?uploadId", error),
        ("long denied", "POST /faults/long%20denied?uploadId", denial("200 OK", "InternalError")),
        ("long part", "PUT /faults/long%20part?", Fate::CutRequest(500_000)),
        ("long begin", "POST /faults/long%20begin?uploads", refusal("500 Internal Server Error", "InternalError")),
    ] {
        let proxy = breaking(&server, text, 1, fate);
        let bucket = through(&proxy);
        let mut upload = bucket.upload(key, 0, None);
        upload.write(&long).unwrap();
        upload.finish().unwrap_or_else(|error| panic!("{key}: {error}\n{:#?}", proxy.requests()));
        assert_eq!(proxy.broken(), 1, "{key}: {:#?}", proxy.requests());
        assert!(direct.get(key, None, u64::MAX).unwrap() == long);
        assert_eq!(direct.versions(key).unwrap().len(), 1, "{key}");
    }

    // Nothing is tried for ever.
    let proxy = breaking(&server, "/object", usize::MAX, refusal("503 Slow Down", "SlowDown"));
    let config = Config { max_attempts: 2, ..place.config(&proxy.endpoint(), "faults", "admin") };
    let error = Bucket::connect(&config).unwrap().get("object", None, u64::MAX).expect_err("refused");
    assert_eq!((error.kind, error.code.as_deref(), proxy.broken()), (Kind::Throttled, Some("SlowDown"), 2));
}

#[test]
fn calls_of_many_threads_run_at_the_same_time() {
    const THREADS: usize = 12;
    let (server, place) = (Seaweed::start(), Place::new());
    let direct = Bucket::create(&place.config(&server.endpoint(), "parallel", "admin"), None).unwrap();
    let bytes = Arc::new(pattern(1 << 20));
    direct.put_if_absent("object", bytes.to_vec(), None).unwrap();
    let proxy = Proxy::start(server.port(), |line, _| match line.starts_with("GET /parallel/object") {
        true => Fate::Gather(THREADS),
        false => Fate::Pass,
    });
    let bucket = Bucket::connect(&place.config(&proxy.endpoint(), "parallel", "admin")).unwrap();
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (bucket, bytes) = (&bucket, &bytes);
            scope.spawn(move || {
                let (start, mut range) = (number * 1000, Vec::new());
                bucket.get_range("object", None, start as u64..start as u64 + 500, &mut range).unwrap();
                assert!(range == bytes[start..start + 500]);
            });
        }
    });
}

#[test]
fn c100_certificates_of_ones_own_are_believed_where_they_are_named() {
    let (server, place) = (Seaweed::start_tls(), Place::new());
    let with = |ca_file| Config { ca_file, ..place.config(&server.tls_endpoint(), "secure", "admin") };
    let bucket = Bucket::create(&with(Some(server.ca_file())), None).unwrap();
    let mut upload = bucket.upload("over TLS", 0, None);
    let bytes = pattern(PART_BYTES + 1);
    upload.write(&bytes).unwrap();
    upload.finish().unwrap();
    assert!(bucket.get("over TLS", None, u64::MAX).unwrap() == bytes);
    // Not by the system: told at once, as trying again does not help.
    let error = Bucket::connect(&with(None)).expect_err("nobody signed it");
    assert!(error.kind == Kind::Other && error.reason.contains("certificate"), "{error}");
}

#[test]
fn c100_a_server_that_is_not_there_is_told_soon() {
    let place = Place::new();
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let error = Bucket::connect(&place.config(&format!("http://127.0.0.1:{port}"), "bucket", "admin")).expect_err("nobody listens");
    assert!(error.kind == Kind::Transient && error.reason.contains("refused") && error.reason.contains("3 tries"), "{error}");
    assert!(!error.to_string().contains('\n'));
}
