//! The client against servers, and against a network and servers that fail.
//!
//! Azure's is Microsoft's own emulator. Google's is one of ours, written from its documentation, and one of others.

#[path = "support/azurite.rs"]
mod azurite;
#[path = "support/fake_gcs.rs"]
mod fake_gcs;
#[path = "support/gcs.rs"]
mod gcs;
#[path = "../../lifeboat-s3/tests/support/proxy.rs"]
#[expect(dead_code, reason = "shared with the tests of S3's client, which use more of it")]
mod proxy;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use azurite::Azurite;
use fake_gcs::FakeGcs;
use gcs::{Gcs, READER_TOKEN, TOKEN};
use lifeboat_clouds::{Bucket, Cloud, CloudError, Config, Kind, PART_BYTES};
use proxy::{Fate, Proxy};

fn google(endpoint: &str, bucket: &str, token: &str) -> Config {
    let variables = Some(vec![("GOOGLE_BEARER_TOKEN".to_owned(), token.to_owned())]);
    Config { endpoint: Some(endpoint.to_owned()), variables, ..Config::of(Cloud::Google, bucket) }
}

fn azure(endpoint: &str, container: &str, key: &str) -> Config {
    let variables = Some(vec![("AZURE_STORAGE_KEY".to_owned(), key.to_owned())]);
    let account = Some(azurite::ACCOUNT.to_owned());
    Config { endpoint: Some(endpoint.to_owned()), account, variables, ..Config::of(Cloud::Azure, container) }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 256) as u8).collect()
}

fn kind<T: std::fmt::Debug>(result: Result<T, CloudError>) -> Kind {
    result.expect_err("this must fail").kind
}

fn upload(bucket: &Bucket, key: &str, bytes: &[u8]) -> Result<(), CloudError> {
    let mut upload = bucket.upload(key, bytes.len() as u64);
    for part in bytes.chunks(1_000_003) {
        upload.write(part)?;
    }
    upload.finish()
}

/// What both clouds must do.
fn objects(bucket: &Bucket) {
    // Created once.
    bucket.put_if_absent("a/one", b"first".to_vec()).unwrap();
    assert_eq!(kind(bucket.put_if_absent("a/one", b"second".to_vec())), Kind::Exists);
    assert_eq!(kind(bucket.put_if_absent("a/one", b"first".to_vec())), Kind::Exists, "equal bytes, but another write");
    assert_eq!(bucket.get("a/one", 5).unwrap(), b"first");
    assert_eq!(kind(bucket.get("a/one", 4)), Kind::Long { length: 5 });
    assert_eq!(kind(bucket.get("a/none", 4)), Kind::NotFound);
    assert_eq!(bucket.head("a/one").unwrap().bytes, 5);
    let mut range = Vec::new();
    bucket.get_range("a/one", 1..3, &mut range).unwrap();
    assert_eq!(range, b"ir");
    assert_eq!(kind(bucket.get_range("a/one", 3..9, &mut range)), Kind::Short { length: 5 });
    assert_eq!(kind(bucket.get_range("a/one", 30..31, &mut range)), Kind::Short { length: 5 });

    // Long ones.
    let bytes = pattern(2 * PART_BYTES + 12_345);
    upload(bucket, "long", &bytes).unwrap();
    assert!(bucket.get("long", u64::MAX).unwrap() == bytes);
    // Exactly one part is one request, exactly two are an upload; nothing at all is an object too.
    let creates = |bucket: &Bucket| bucket.requests().get("create").copied().unwrap_or(0);
    let before = creates(bucket);
    upload(bucket, "one part", &bytes[..PART_BYTES]).unwrap();
    assert_eq!(creates(bucket), before + 1);
    upload(bucket, "two parts", &bytes[..2 * PART_BYTES]).unwrap();
    assert_eq!(bucket.head("two parts").unwrap().bytes, 2 * PART_BYTES as u64);
    upload(bucket, "nothing", b"").unwrap();
    assert_eq!(bucket.get("nothing", 0).unwrap(), b"");

    bucket.delete("a/one").unwrap();
    assert_eq!(kind(bucket.get("a/one", 5)), Kind::NotFound);
    assert_eq!(kind(bucket.delete("a/one")), Kind::NotFound);
    assert!(bucket.clock_ahead().is_some_and(|ahead| ahead.abs() <= 5), "{:?}", bucket.clock_ahead());
}

/// What a long write does where somebody else has made an object of its name meanwhile.
fn a_long_write_never_overwrites(bucket: &Bucket) {
    let bytes = pattern(PART_BYTES + 1);
    upload(bucket, "taken", &bytes).unwrap();
    assert_eq!(kind(upload(bucket, "taken", &pattern(2 * PART_BYTES))), Kind::Exists);
    assert!(bucket.get("taken", u64::MAX).unwrap() == bytes);
    // Begun before the name was taken: by a short write, and by a long one.
    let (mut slow, mut slower) = (bucket.upload("race", 0), bucket.upload("race", 0));
    for _ in 0..3 {
        slow.write(&pattern(PART_BYTES)).unwrap();
        slower.write(&vec![7; PART_BYTES]).unwrap();
    }
    slow.finish().unwrap();
    assert_eq!(kind(slower.finish()), Kind::Exists);
    assert!(bucket.get("race", u64::MAX).unwrap() == pattern(PART_BYTES).repeat(3));
    let mut late = bucket.upload("late", 0);
    late.write(&pattern(2 * PART_BYTES)).unwrap();
    bucket.put_if_absent("late", b"sooner".to_vec()).unwrap();
    assert_eq!(kind(late.finish()), Kind::Exists);
    assert_eq!(bucket.get("late", 100).unwrap(), b"sooner");
}

/// Who may only read, who is nobody, and a bucket that is not there.
fn assert_clean(error: &CloudError, secret: &str) {
    let text = format!("{error} {error:?}");
    assert!(!text.contains(secret) && !text.contains("sig=") && !text.contains('\n'), "{text}");
}

#[test]
fn c096_google_by_a_server_of_ours() {
    let server = Gcs::start(&["there"]);
    let config = google(&server.endpoint(), "there", TOKEN);
    let bucket = Bucket::connect(&config).unwrap();
    objects(&bucket);
    a_long_write_never_overwrites(&bucket);
    assert_eq!(server.counts().1, 0, "no upload is left open");
    drop({
        let mut upload = bucket.upload("given up", 0);
        upload.write(&pattern(3 * PART_BYTES)).unwrap();
        upload
    });
    assert_eq!((server.counts().1, kind(bucket.head("given up"))), (0, Kind::NotFound));

    // Listings of more than one page.
    for number in 0..1040 {
        bucket.put_if_absent(&format!("many/{number:05}"), Vec::new()).unwrap();
    }
    let all = bucket.list("many/", None, None).unwrap();
    assert_eq!(all.len(), 1040);
    assert!(all.windows(2).all(|pair| pair[0].key < pair[1].key));
    let rest = bucket.list("many/", Some("many/01029"), None).unwrap();
    assert_eq!((rest.len(), rest[0].key.as_str()), (10, "many/01030"));
    assert_eq!(bucket.list("many/", None, Some(3)).unwrap().len(), 3);
    let (objects, below) = bucket.list_below("").unwrap();
    assert!(below.contains(&"many/".to_owned()) && objects.iter().any(|object| object.key == "long"), "{objects:?} {below:?}");

    assert_eq!(kind(Bucket::connect(&google(&server.endpoint(), "elsewhere", TOKEN))), Kind::NoBucket);
    let reader = Bucket::connect(&google(&server.endpoint(), "there", READER_TOKEN)).unwrap();
    let error = reader.put_if_absent("x", b"x".to_vec()).expect_err("it may only read");
    assert_eq!(error.kind, Kind::Denied);
    assert_clean(&error, READER_TOKEN);
    let error = Bucket::connect(&google(&server.endpoint(), "there", "hunter2")).expect_err("not let in");
    assert_eq!((error.kind, error.reason.as_str()), (Kind::Denied, "401 AuthenticationRequired"));
    assert_clean(&error, "hunter2");
}

#[test]
fn google_by_a_server_of_others() {
    let server = FakeGcs::start();
    let config = google(&server.endpoint(), "there", TOKEN);
    Bucket::create(&config).unwrap();
    let bucket = Bucket::connect(&config).unwrap();
    objects(&bucket);
    let (objects, below) = bucket.list_below("").unwrap();
    assert!(below.is_empty() && objects.len() == 4, "{objects:?} {below:?}");
}

#[test]
fn c096_azure_by_its_own_emulator() {
    let server = Azurite::start();
    let config = azure(&server.endpoint(), "there", azurite::KEY);
    assert_eq!(kind(Bucket::connect(&config)), Kind::NoBucket);
    Bucket::create(&config).unwrap();
    let bucket = Bucket::connect(&config).unwrap();
    objects(&bucket);
    a_long_write_never_overwrites(&bucket);
    drop({
        let mut upload = bucket.upload("given up", 0);
        upload.write(&pattern(3 * PART_BYTES)).unwrap();
        upload
    });
    assert_eq!(kind(bucket.head("given up")), Kind::NotFound);
    assert!(bucket.list("given", None, None).unwrap().is_empty());
    // What it left does not keep the name from others.
    bucket.put_if_absent("given up", b"short".to_vec()).unwrap();
    assert_eq!(bucket.get("given up", 5).unwrap(), b"short");
    assert_eq!(kind(bucket.put_if_absent("given up", b"short".to_vec())), Kind::Exists);
    let mut upload = bucket.upload("given up, and nothing", 0);
    upload.write(&pattern(3 * PART_BYTES)).unwrap();
    drop(upload);
    bucket.put_if_absent("given up, and nothing", Vec::new()).unwrap();
    assert_eq!(bucket.head("given up, and nothing").unwrap().bytes, 0);
    let error = Bucket::connect(&azure(&server.endpoint(), "there", "aHVudGVyMg==")).expect_err("not let in");
    assert_eq!(error.kind, Kind::Denied, "{error}");
    assert_clean(&error, "aHVudGVyMg==");
    // An address that is signed for a time is a secret as well.
    let variables = Some(vec![("AZURE_STORAGE_SAS_TOKEN".to_owned(), "sv=2023-11-03&sp=rl&sig=aHVudGVyMg%3D%3D".to_owned())]);
    let error = Bucket::connect(&Config { variables, ..config }).expect_err("not let in");
    assert_eq!(error.kind, Kind::Denied, "{error}");
    assert_clean(&error, "aHVudGVyMg");
}

#[test]
fn tokens_of_others_are_exchanged() {
    let (server, place) = (Gcs::start(&["there"]), tempfile::tempdir().unwrap());
    let file = |name: &str, text: &str| {
        std::fs::write(place.path().join(name), text).unwrap();
        place.path().join(name)
    };
    let credentials = |name: &str, token: &str| {
        let token = file(&format!("{name}.token"), &format!("{{\"id_token\":\"{token}\"}}"));
        let at = server.endpoint();
        let source = format!(r#"{{"file":"{}","format":{{"type":"json","subject_token_field_name":"id_token"}}}}"#, token.display());
        let text = format!(
            r#"{{"type":"external_account","audience":"//iam","subject_token_type":"urn:ietf:params:oauth:token-type:jwt","token_url":"{at}/exchange","service_account_impersonation_url":"{at}/impersonate","credential_source":{source}}}"#
        );
        file(name, &text)
    };
    let config = |path| Config {
        endpoint: Some(server.endpoint()),
        credentials_file: Some(path),
        variables: Some(Vec::new()),
        ..Config::of(Cloud::Google, "there")
    };
    let bucket = Bucket::connect(&config(credentials("good", gcs::SUBJECT_TOKEN))).unwrap();
    bucket.put_if_absent("a", b"a".to_vec()).unwrap();
    assert_eq!(bucket.get("a", 1).unwrap(), b"a");
    let error = Bucket::connect(&config(credentials("bad", "hunter2"))).expect_err("not let in");
    assert!(error.code.as_deref() == Some("invalid_grant") || error.kind == Kind::Denied, "{error:?}");
    assert_clean(&error, "hunter2");
    let gone = credentials("gone", "x");
    std::fs::remove_file(place.path().join("gone.token")).unwrap();
    let error = Bucket::connect(&config(gone)).expect_err("no token");
    assert!(error.reason.contains("gone.token"), "{error}");
}

/// Every kind of trouble in turn, for one request of four; the next try of it passes.
fn troubled(port: u16) -> Proxy {
    let turn = AtomicUsize::new(0);
    Proxy::start(port, move |_, number| {
        if number % 4 != 3 {
            return Fate::Pass;
        }
        match turn.fetch_add(1, Ordering::SeqCst) % 6 {
            0 => busy("503 Service Unavailable"),
            1 => Fate::LoseAnswer,
            2 => Fate::CutAnswer(300),
            3 => Fate::CutRequest(3 << 20),
            4 => busy("429 Too Many Requests"),
            _ => Fate::CutAnswer(2 << 20),
        }
    })
}

fn busy(status: &str) -> Fate {
    Fate::Answer(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
}

fn survives(bucket: &Bucket, proxy: &Proxy) {
    let long = pattern(3 * PART_BYTES + 777);
    for round in 0..6 {
        let (short, key) = (pattern(300_000 + round), format!("round/{round}"));
        bucket.put_if_absent(&format!("{key}/short"), short.clone()).unwrap();
        upload(bucket, &format!("{key}/long"), &long).unwrap();
        assert!(bucket.get(&format!("{key}/short"), 1 << 20).unwrap() == short);
        assert!(bucket.get(&format!("{key}/long"), u64::MAX).unwrap() == long, "{round}");
        let mut range = Vec::new();
        bucket.get_range(&format!("{key}/long"), 5..(20 << 20), &mut range).unwrap();
        assert!(range == long[5..20 << 20]);
        assert_eq!(bucket.list("round/", None, None).unwrap().len(), 2 * (round + 1));
        // What was written before is still refused, through trouble as well.
        assert_eq!(kind(upload(bucket, &format!("{key}/long"), &long)), Kind::Exists);
    }
    assert!(proxy.broken() > 15, "only {} requests broke", proxy.broken());
}

#[test]
fn c101_broken_connections_lose_nothing_at_google() {
    let server = Gcs::start(&["there"]);
    let proxy = troubled(server.port());
    let bucket = Bucket::connect(&google(&proxy.endpoint(), "there", TOKEN)).unwrap();
    survives(&bucket, &proxy);
    assert_eq!(server.objects("there").len(), 12);
    assert_eq!(server.counts().1, 0, "no upload is left open");
}

#[test]
fn c101_broken_connections_lose_nothing_at_azure() {
    let server = Azurite::start();
    Bucket::create(&azure(&server.endpoint(), "there", azurite::KEY)).unwrap();
    let proxy = troubled(server.port());
    let endpoint = format!("{}/{}", proxy.endpoint(), azurite::ACCOUNT);
    let bucket = Bucket::connect(&azure(&endpoint, "there", azurite::KEY)).unwrap();
    survives(&bucket, &proxy);
}

#[test]
fn a_server_that_is_away_is_told_after_few_tries() {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let away = format!("http://127.0.0.1:{port}");
    for config in [google(&away, "there", TOKEN), azure(&away, "there", azurite::KEY)] {
        let error = Bucket::connect(&Config { connect_timeout: Duration::from_secs(1), ..config }).expect_err("nobody is there");
        assert_eq!(error.kind, Kind::Transient, "{error}");
        assert!(error.reason.contains("refused") && error.reason.contains("3 tries"), "{error}");
    }
}
