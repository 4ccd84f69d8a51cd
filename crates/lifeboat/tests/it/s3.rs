//! A repository in a bucket, as a user has it: against a real server, over connections that break, and with what people get wrong.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::backup::{Running, Site, pg_verifybackup};
use crate::cluster::{Postgres, setting};
use crate::orchestrator::{self, Random};
use crate::program::{Output, Program};
use crate::proxy::{Fate, Proxy, denial, refusal};
use crate::seaweed::{BUCKET, READER_KEY, READER_SECRET, SECRET_KEY, Seaweed, make_bucket, with_server};

/// Nothing of a secret, and one line of a failure.
#[track_caller]
fn assert_one_clean_line(output: &Output) {
    assert!(!output.stderr.contains(SECRET_KEY) && !output.stdout.contains(SECRET_KEY), "{output}");
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert!(lines.len() <= 2 && lines[0].starts_with("error: "), "{output}");
    assert!(lines.get(1).is_some_and(|hint| hint.starts_with("hint: ")), "{output}");
}

#[test]
fn c099_c102_a_whole_cycle_in_a_bucket() {
    let (site, server) = (Site::new(), Seaweed::start());
    let bucket = make_bucket(&server, site.home.path());
    let proxy = Proxy::start(server.port(), |_, _| Fate::Pass);
    let url = format!("s3://{BUCKET}/company/conductor/");
    let mut cluster = site.cluster(Postgres::V15).start();
    orchestrator::install(&cluster, 100);
    let directory = cluster.scratch("artifacts");
    let artifacts = orchestrator::write_artifacts(&directory, 20, 11);
    orchestrator::record(&cluster, &artifacts);
    let configuration = site.configuration(&format!(
        "[postgres]\ndsn = \"{}\"\ndata_directory = \"{}\"\ncopy = \"local\"\nbin_directory = \"{}\"\n[artifacts]\ndirectory = \"{}\"\nreference_query = \"{}\"\n[[repository]]\nurl = \"{url}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\n",
        cluster.dsn(),
        cluster.data_directory().display(),
        Postgres::V15.bin_directory().display(),
        directory.display(),
        orchestrator::REFERENCE_QUERY,
        // The file's comes before the environment's: those variables are other programs' as well.
        proxy.endpoint(),
    ));
    let keys = site.home.path().join(".config/lifeboat");
    let text = fs::read_to_string(&configuration).unwrap();
    let trust = format!(
        "{text}[encryption]\nrecipients = [\"{}\"]\nidentity_file = \"{}\"\n[signing]\nkey_file = \"{}\"\npassword = {{ file = \"{}\" }}\n[trust]\nkeys = [\"{}\"]\n",
        fs::read_to_string(keys.join("recipients.txt")).unwrap().trim(),
        keys.join("identity.txt").display(),
        keys.join("signing.key").display(),
        keys.join("signing.password").display(),
        keys.join("signing.pub").display(),
    );
    fs::write(&configuration, trust).unwrap();
    let lifeboat = || {
        let program = with_server(Program::new(&site.home), "http://127.0.0.1:1");
        program.arg("--config").arg(&configuration)
    };

    let shown = lifeboat().args(["config", "show"]).run().success();
    assert!(shown.stdout.contains("repository.endpoint") && shown.stdout.contains(&proxy.endpoint()), "{shown}");
    assert!(!shown.stdout.contains(SECRET_KEY), "{shown}");

    let before = lifeboat().args(["list"]).run().expect_code(10);
    assert!(before.stderr.contains("lifeboat init"), "{before}");
    let made = lifeboat().args(["init", "--json"]).run().success().json();
    assert_eq!(made["repository"], format!("s3://{BUCKET}/company/conductor"));
    lifeboat().args(["init"]).run().expect_code(1);

    let taken = lifeboat().args(["backup", "--json"]).run().success().json();
    let listed = lifeboat().args(["list", "--json"]).run().success().json();
    assert_eq!((&listed["backups"][0]["backup"], &listed["backups"][0]["state"]), (&taken["backup"], &"healthy".into()));
    let verified = lifeboat().args(["verify", "--all", "--json"]).run().success().json();
    assert_eq!(verified["verdict"], "verified");

    // Written once: every key has one version, and the bucket keeps it.
    let versions = bucket.versions("").unwrap();
    assert!(versions.iter().all(|version| version.key.starts_with("company/conductor/") && !version.is_delete_marker()), "{versions:#?}");
    let keys: BTreeMap<&str, &str> = versions.iter().map(|version| (version.key.as_str(), version.version.as_str())).collect();
    assert_eq!(keys.len(), versions.len(), "an object was written twice: {versions:#?}");
    let manifest = format!("company/conductor/{}/manifest.json", taken["backup"].as_str().unwrap());
    assert!(bucket.head(&manifest, None).unwrap().retention.is_some());
    assert!(bucket.unfinished_uploads("").unwrap().is_empty());

    cluster.stop(crate::cluster::Stop::Immediate);
    let to = site.place("restored");
    let asked_before = proxy.requests().len();
    let restore = lifeboat().args(["restore", "latest", "--json", "--start", "--pgdata"]).arg(&to);
    let output = restore.arg("--artifacts").arg(site.place("restored-artifacts")).run().success();
    let running = Running::new(&to, Postgres::V15, &output);
    assert_eq!(running.report["verdict"], "verified");
    assert_eq!(running.psql("SELECT count(*) FROM builds"), "100");
    assert_eq!(running.psql("SELECT count(*) FROM artifacts"), "20");
    // That there is no archive is one answer: every request more is a way to the store and back.
    let requests = proxy.requests().split_off(asked_before);
    let listings: Vec<&String> = requests.iter().filter(|line| line.contains("list-type=2") && line.contains("wal%2F")).collect();
    assert_eq!(listings.len(), 1, "{listings:#?}");
}

#[test]
fn c100_what_people_get_wrong_is_told() {
    let (site, server) = (Site::new(), Seaweed::start());
    let bucket = make_bucket(&server, site.home.path());
    let lifeboat = |url: &str| with_server(Program::new(&site.home), &server.endpoint()).args(["--repository", url]);
    let url = format!("s3://{BUCKET}/x");
    lifeboat(&url).args(["init"]).run().success();

    // Credentials: a wrong secret, none, and some that may only read.
    let output = lifeboat(&url).env("AWS_SECRET_ACCESS_KEY", "not-it").args(["list"]).run().expect_code(12);
    assert_one_clean_line(&output);
    assert!(output.stderr.contains("SignatureDoesNotMatch") && output.stderr.contains("AWS_PROFILE"), "{output}");
    let nobody = Program::new(&site.home).env("AWS_ENDPOINT_URL_S3", server.endpoint()).env("AWS_EC2_METADATA_DISABLED", "true");
    let output = nobody.args(["--repository", &url, "list"]).run().expect_code(12);
    assert_one_clean_line(&output);
    assert!(output.stderr.contains("no credentials found"), "{output}");
    let reader = |url: &str| lifeboat(url).env("AWS_ACCESS_KEY_ID", READER_KEY).env("AWS_SECRET_ACCESS_KEY", READER_SECRET);
    reader(&url).args(["list"]).run().success();
    let output = reader(&format!("s3://{BUCKET}/y")).args(["init"]).run().expect_code(12);
    assert_one_clean_line(&output);
    // A profile that is named comes before what is in the environment.
    fs::create_dir(site.place(".aws")).unwrap();
    let profile = format!("[reader]\naws_access_key_id = {READER_KEY}\naws_secret_access_key = {READER_SECRET}\n");
    fs::write(site.place(".aws/credentials"), profile).unwrap();
    let named = |profile: &str| {
        let configuration = site.configuration(&format!("[[repository]]\nurl = \"s3://{BUCKET}/z\"\nprofile = \"{profile}\"\n"));
        with_server(Program::new(&site.home), &server.endpoint()).arg("--config").arg(configuration)
    };
    named("reader").args(["init"]).run().expect_code(12);
    assert_one_clean_line(&named("no-such-profile").args(["init"]).run().expect_code(12));

    // A bucket that is not there is not made.
    for command in ["init", "list"] {
        let output = lifeboat("s3://lifeboat-typo/x").arg(command).run().expect_code(10);
        assert_one_clean_line(&output);
        assert!(output.stderr.contains("no such bucket"), "{output}");
    }
    lifeboat(&format!("s3://{BUCKET}/nothing-here")).args(["list"]).run().expect_code(10);
    let listed = bucket.list("", None, None).unwrap();
    let made = listed.iter().filter(|object| !object.key.contains("/audit/"));
    assert_eq!(made.count(), 1, "only the descriptor of the one that was made: {listed:#?}");

    // A server that is not there.
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let begun = Instant::now();
    let output = lifeboat(&url).env("AWS_ENDPOINT_URL_S3", format!("http://127.0.0.1:{port}")).args(["list"]).run().expect_code(1);
    assert_one_clean_line(&output);
    assert!(output.stderr.contains("refused") && begun.elapsed() < Duration::from_secs(30), "{output}");

    // What is no address.
    for bad in ["s3://", "s3://b", "s3://a bucket/x", "s3://bucket/a//b", "s3://bucket/../x", "ftp://bucket/x"] {
        let output = lifeboat(bad).args(["list"]).run().expect_code(2);
        assert_one_clean_line(&output);
    }
    let configuration = site.configuration("[[repository]]\nurl = \"s3://bucket/x\"\nendpoint = \"https://me:hunter2@host\"\n");
    for command in [["config", "show"].as_slice(), &["list"]] {
        let output = Program::new(&site.home).arg("--config").arg(&configuration).args(command).run();
        assert!(!format!("{output}").contains("hunter2"), "{output}");
    }
    let configuration = site.configuration("[[repository]]\nurl = \"/repository\"\nregion = \"here\"\n");
    Program::new(&site.home).arg("--config").arg(&configuration).args(["list"]).run().expect_code(2);
}

/// A proxy that opens tunnels (CONNECT) for whoever signs in. It keeps what it was asked.
fn tunnels(asked: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move |near: TcpStream, asked: &Mutex<Vec<String>>| -> std::io::Result<()> {
        let mut reader = BufReader::new(near.try_clone()?);
        let head: Vec<String> = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let Some(to) = head.first().and_then(|line| line.strip_prefix("CONNECT ")?.strip_suffix(" HTTP/1.1")) else { return Ok(()) };
        asked.lock().unwrap().push(to.to_owned());
        // user:hunter2
        if !head.iter().any(|line| line.to_lowercase() == "proxy-authorization: basic dxnlcjpodw50zxiy") {
            return (&near).write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
        }
        let far = TcpStream::connect(to)?;
        (&near).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        let (mut back, mut forth) = (far.try_clone()?, near.try_clone()?);
        thread::spawn(move || std::io::copy(&mut back, &mut forth).and_then(|_| forth.shutdown(Shutdown::Write)));
        std::io::copy(&mut reader, &mut &far).and_then(|_| far.shutdown(Shutdown::Write))
    };
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (asked, stream) = (asked.clone(), stream.unwrap());
            thread::spawn(move || serve(stream, &asked));
        }
    });
    address
}

#[test]
fn c100_the_proxy_and_the_certificates_that_the_environment_names_are_used() {
    let (site, server) = (Site::new(), Seaweed::start_tls());
    make_bucket(&server, site.home.path());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let proxy = tunnels(asked.clone());
    let url = format!("s3://{BUCKET}/x");
    let lifeboat = |proxy: &str| {
        let program = with_server(Program::new(&site.home), &server.tls_endpoint()).env("SSL_CERT_FILE", server.ca_file());
        program.env("HTTPS_PROXY", proxy).args(["--repository", &url])
    };
    let host = server.tls_endpoint().strip_prefix("https://").unwrap().to_owned();
    let with = |who: &str| format!("http://{who}@{proxy}");
    lifeboat(&with("user:hunter2")).args(["init"]).run().success();
    let listed = lifeboat(&with("user:hunter2")).args(["list", "--json"]).run().success().json();
    assert_eq!(listed["backups"], serde_json::json!([]));
    let tunnels = std::mem::take(&mut *asked.lock().unwrap());
    assert!(!tunnels.is_empty() && tunnels.iter().all(|to| *to == host), "{tunnels:?}");

    let output = lifeboat(&with("user:wrong-password")).args(["list"]).run().expect_code(1);
    assert!(output.stderr.contains(&format!("the proxy http://{proxy}: ")) && output.stderr.contains("authorization required"), "{output}");
    assert!(!output.stderr.contains("wrong-password"), "{output}");
    asked.lock().unwrap().clear();

    let past = lifeboat(&with("user:hunter2")).env("NO_PROXY", "127.0.0.1");
    past.args(["list"]).run().success();
    assert_eq!(*asked.lock().unwrap(), Vec::<String>::new());
}

/// A line on which one request in three breaks, each in another way, as a seed has it; none more than twice in a row, because nobody asks
/// for a bucket more than three times.
fn bad_line(seed: u64) -> impl Fn(&str, usize) -> Fate + Send + Sync + 'static {
    let in_a_row: Mutex<BTreeMap<String, usize>> = Mutex::default();
    move |line, number| {
        let mut random = Random(seed ^ (number as u64) << 32);
        let mut in_a_row = in_a_row.lock().unwrap();
        let broken = in_a_row.entry(line.to_owned()).or_default();
        if random.below(3) > 0 || *broken == 2 {
            *broken = 0;
            return Fate::Pass;
        }
        *broken += 1;
        match random.below(10) {
            0 => refusal("503 Slow Down", "SlowDown"),
            1 => refusal("500 Internal Server Error", "InternalError"),
            2 => denial("500 Internal Server Error", "InternalError"),
            // Where the server says so as soon as it has begun: the end of an object in parts.
            3 if line.starts_with("POST ") => denial("200 OK", "InternalError"),
            3 => denial("503 Slow Down", "SlowDown"),
            4 => Fate::LoseAnswer,
            5 => Fate::CutAnswer(random.below(2000)),
            6 => Fate::CutAnswer(random.below(1_000_000)),
            7 => Fate::ResetAnswer(random.below(100_000)),
            8 => Fate::CutRequest(random.below(10_000)),
            _ => Fate::Trickle(20),
        }
    }
}

#[test]
fn c101_connections_that_break_lose_nothing() {
    let (site, server) = (Site::new(), Seaweed::start());
    let bucket = make_bucket(&server, site.home.path());
    let url = format!("s3://{BUCKET}/faults");
    let cluster = site.cluster(Postgres::V15).start();
    orchestrator::install(&cluster, 100);
    let directory = cluster.scratch("artifacts");
    let artifacts = orchestrator::write_artifacts(&directory, 10, 5);

    let seed = setting("LIFEBOAT_TEST_SEED").map_or_else(|| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    eprintln!("LIFEBOAT_TEST_SEED={seed}");
    let proxy = Proxy::start(server.port(), bad_line(seed));
    let lifeboat = || with_server(Program::new(&site.home), &proxy.endpoint());
    let here = || lifeboat().args(["--repository", &url]);
    let backup = lifeboat().env("LIFEBOAT_DSN", cluster.dsn()).env("PGDATA", cluster.data_directory());
    let backup = backup.env("LIFEBOAT_PG_BIN", Postgres::V15.bin_directory()).env("LIFEBOAT_ARTIFACTS", &directory);
    let backup = backup.args(["backup", "--json", "--include-postgres", "--copy", "local", "--output", &url]);
    backup.run().success();
    here().args(["verify", "--all"]).run().success();
    let to = site.place("restored");
    let restore = here().args(["restore", "latest", "--json", "--pgdata"]).arg(&to).arg("--bin-directory");
    restore.arg(Postgres::V15.bin_directory()).arg("--artifacts").arg(site.place("restored-artifacts")).run().success();
    pg_verifybackup(Postgres::V15, &to);
    let digests = orchestrator::sha256sum(&site.place("restored-artifacts"), artifacts.iter().map(|artifact| artifact.name.as_str()));
    assert!(artifacts.iter().map(|artifact| &artifact.sha256).eq(&digests));
    assert!(proxy.broken() > 20, "only {} requests broke", proxy.broken());
    // Whatever was sent twice was written once.
    let versions = bucket.versions("").unwrap();
    let mut keys: Vec<&str> = versions.iter().map(|version| version.key.as_str()).collect();
    keys.dedup();
    assert_eq!(keys.len(), versions.len(), "{versions:#?}");

    // How many requests a small backup makes, when nothing breaks.
    let quiet = Proxy::start(server.port(), |_, _| Fate::Pass);
    let backup = with_server(Program::new(&site.home), &quiet.endpoint()).env("LIFEBOAT_DSN", cluster.dsn());
    let backup = backup.env("PGDATA", cluster.data_directory()).env("LIFEBOAT_PG_BIN", Postgres::V15.bin_directory());
    backup.args(["--repository", &url, "backup", "--json", "--include-postgres", "--copy", "local"]).run().success();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in quiet.requests() {
        *counts.entry(line.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    eprintln!("requests of a small backup: {counts:?}\n{}", quiet.requests().join("\n"));
    assert!(quiet.requests().len() < 60, "{counts:?}\n{:#?}", quiet.requests());
}

#[test]
fn c101_a_line_that_is_too_bad_is_told_and_done_no_harm() {
    let (site, server) = (Site::new(), Seaweed::start());
    make_bucket(&server, site.home.path());
    let url = format!("s3://{BUCKET}/faults");
    let cluster = site.cluster(Postgres::V15).start();
    orchestrator::install(&cluster, 100);
    let backup = |endpoint: &str| {
        let backup = with_server(Program::new(&site.home), endpoint).env("LIFEBOAT_DSN", cluster.dsn());
        let backup = backup.env("PGDATA", cluster.data_directory()).env("LIFEBOAT_PG_BIN", Postgres::V15.bin_directory());
        backup.args(["backup", "--json", "--include-postgres", "--copy", "local", "--output", &url])
    };
    let here = || with_server(Program::new(&site.home), &server.endpoint()).args(["--repository", &url]);
    let first = backup(&server.endpoint()).run().success().json();

    // Packs do not get through in either direction; all the rest does.
    let proxy = Proxy::start(server.port(), |line, _| match line.contains("/packs/") {
        true => refusal("503 Slow Down", "SlowDown"),
        false => Fate::Pass,
    });
    let to = site.place("restored");
    let restore = |endpoint: &str| {
        let restore =
            with_server(Program::new(&site.home), endpoint).args(["--repository", &url, "restore", "latest", "--json", "--pgdata"]);
        restore.arg(&to).arg("--bin-directory").arg(Postgres::V15.bin_directory())
    };
    thread::scope(|scope| {
        let taken = scope.spawn(|| backup(&proxy.endpoint()).run().expect_code(1));
        let verified =
            scope.spawn(|| with_server(Program::new(&site.home), &proxy.endpoint()).args(["--repository", &url, "verify", "latest"]).run());
        let restored = restore(&proxy.endpoint()).run().expect_code(1);
        let verified = verified.join().unwrap();
        for output in [&taken.join().unwrap(), &restored, &verified] {
            // Behind what it says of its progress.
            let mut lines = output.stderr.lines().rev();
            assert!(lines.next().is_some_and(|hint| hint.starts_with("hint: ")), "{output}");
            assert!(lines.next().is_some_and(|error| error.starts_with("error: ")), "{output}");
            assert!(output.stderr.contains("packs/") && output.stderr.contains("503"), "{output}");
            assert!(output.stderr.contains("9 tries") && !output.stderr.contains("corrupt"), "{output}");
        }
        assert_eq!(verified.code, Some(1), "nobody knows, and nothing is said to be damaged: {verified}");
    });
    assert!(!to.join("global/pg_control").exists(), "a server would start from half of it");

    // Nothing of it is a backup, the lease was given back, and everything works as before.
    let listed = here().args(["list", "--json"]).run().success().json();
    assert_eq!((listed["backups"].as_array().map(Vec::len), &listed["backups"][0]["backup"]), (Some(1), &first["backup"]));
    restore(&server.endpoint()).run().success();
    pg_verifybackup(Postgres::V15, &to);
    backup(&server.endpoint()).run().success();
    here().args(["verify", "--all"]).run().success();
}
