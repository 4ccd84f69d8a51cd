//! Whatever a run writes, prints and starts is searched for the secrets that it used: each must be where the user put it and nowhere else.
//!
//! The search is grep's, over files: repositories, spool, journal, logs, restored servers, everything that was printed, and what `/proc`
//! said of the processes meanwhile. A first test sees to it that the search finds what it should.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use lifeboat_engine::signing::SigningKey;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::backup::Running;
use crate::cluster::{Builder, Cluster, Owner, Postgres, expect_success, temp_dir};
use crate::orchestrator;
use crate::program::{Output, Program};
use crate::seaweed::{BUCKET, SECRET_KEY, Seaweed, make_bucket, with_server};

/// A secret, and where it may be.
struct Hidden {
    name: &'static str,
    bytes: Vec<u8>,
    /// Ends of paths.
    places: Vec<&'static str>,
}

/// As which bytes a secret may turn up: as it is, in hexadecimal, in base64 wherever it stands in what was encoded, and with the escapes of
/// URLs, JSON, TOML and connection strings.
fn disguises(secret: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::from([secret.to_vec()]);
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    all.insert(hex.to_uppercase().into_bytes());
    all.insert(hex.into_bytes());
    for engine in [&STANDARD, &URL_SAFE] {
        for before in 0..3 {
            let padded: Vec<u8> = std::iter::repeat_n(0, before).chain(secret.iter().copied()).collect();
            let text = engine.encode(&padded);
            // What is not of the secret alone: the first characters, and those of an unfinished group at the end.
            let whole = padded.len() / 3 * 4;
            all.insert(text.as_bytes()[if before == 0 { 0 } else { 4 }..whole].to_vec());
        }
    }
    if let Ok(text) = std::str::from_utf8(secret) {
        let percent = |upper: bool| -> String {
            let escape = |byte: u8| if upper { format!("%{byte:02X}") } else { format!("%{byte:02x}") };
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
            secret.iter().map(|byte| if plain(byte) { char::from(*byte).to_string() } else { escape(*byte) }).collect()
        };
        all.extend([percent(true), percent(false)].map(String::into_bytes));
        all.insert(serde_json::to_string(text).unwrap().trim_matches('"').as_bytes().to_vec());
        let in_connection_string = text.replace('\\', "\\\\").replace('\'', "\\'");
        all.insert(serde_json::to_string(&in_connection_string).unwrap().trim_matches('"').as_bytes().to_vec());
        all.insert(in_connection_string.into_bytes());
        all.insert(text.replace('\'', "''").into_bytes());
        all.insert(text.to_lowercase().into_bytes());
    }
    all
}

/// The files below `roots` in which a secret turns up.
fn found(secret: &[u8], roots: &[&Path]) -> Vec<PathBuf> {
    let mut patterns = tempfile::NamedTempFile::new().unwrap();
    for disguise in disguises(secret) {
        assert!(disguise.len() >= 8 && !disguise.contains(&b'\n'), "not to be searched for: {disguise:?}");
        patterns.write_all(&disguise).unwrap();
        patterns.write_all(b"\n").unwrap();
    }
    let output = Command::new("grep").env("LC_ALL", "C").args(["-rlaF", "-f"]).arg(patterns.path()).args(roots).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect()
}

#[test]
fn the_search_finds_what_is_disguised() {
    let secret = b"it's \\ 100% secret?/\"";
    let place = temp_dir();
    let all = disguises(secret);
    assert!(all.len() > 10);
    for (number, disguise) in all.into_iter().enumerate() {
        let mut bytes = vec![0, 255, 10];
        bytes.extend(disguise);
        bytes.extend([0, 10, 7]);
        fs::write(place.path().join(number.to_string()), bytes).unwrap();
    }
    // Encoded with what stands around it, as a header or a document would be.
    for (number, before) in ["", "u", "us", "use", "user:"].into_iter().enumerate() {
        let text = STANDARD.encode([before.as_bytes(), secret, b" and more"].concat());
        fs::write(place.path().join(format!("around-{number}")), text).unwrap();
    }
    let written = fs::read_dir(place.path()).unwrap().count();
    fs::write(place.path().join("innocent"), "it's 100% public").unwrap();
    assert_eq!(found(secret, &[place.path()]).len(), written);
}

/// Looks at all processes of one home for as long as it lives, and writes down their arguments and what of their environment is not
/// meant for them.
struct Watch {
    stop: AtomicBool,
    looks: AtomicUsize,
}

/// Programs that lifeboat starts and that need what it was given: a restored server asks for its WAL with the same credentials, and what
/// gives a password (here a shell that sleeps and prints) may have to ask the same cloud for it.
const NEED_THE_STORE: [&str; 6] = ["lifeboat", "postgres", "setpriv", "sh", "sleep", "cat"];

impl Watch {
    fn look(&self, home: &Path, into: &Path) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut file = fs::File::create(into).unwrap();
        let mark = format!("HOME={}\0", home.display()).into_bytes();
        while !self.stop.load(Ordering::Relaxed) {
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
                    continue;
                }
                let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
                let before = read("comm");
                let environment = read("environ");
                if !environment.windows(mark.len()).any(|window| window == mark) {
                    continue;
                }
                // A child that became another program in between had the environment of the one that started it.
                if read("comm") != before {
                    continue;
                }
                let name = String::from_utf8_lossy(&before).trim().to_owned();
                let needs = NEED_THE_STORE.contains(&name.as_str());
                let kept = environment.split(|byte| *byte == 0).filter(|line| !(needs && line.starts_with(b"AWS_SECRET_ACCESS_KEY=")));
                let (arguments, environment) = (read("cmdline"), kept.collect::<Vec<_>>().join(&b'\n'));
                file.write_all(&[name.as_bytes(), b"\n", &arguments, b"\n", &environment, b"\n"].concat()).unwrap();
                seen.insert(name);
            }
            self.looks.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(5));
        }
        seen
    }
}

/// A home with keys whose secrets the test knows.
struct Place {
    home: TempDir,
    sockets: TempDir,
    secrets: Vec<Hidden>,
    outputs: AtomicUsize,
}

const SCRAM: &str = "scram 'pass\\word' of the tests: 17%";
const SIGNING: &str = "signing pass/word+of the tests? 23&";

impl Place {
    fn new() -> Place {
        let home = temp_dir();
        let keys = home.path().join(".config/lifeboat");
        let made = Program::new(&home).args(["key", "generate"]).run().success();
        let mut secrets = Vec::new();
        for (name, file) in [("restore identity", "identity.txt"), ("host identity", "host-identity.txt")] {
            let text = fs::read_to_string(keys.join(file)).unwrap();
            let line = text.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap();
            assert!(!made.stdout.contains(line) && !made.stderr.contains(line), "{made}");
            let place = if name == "restore identity" { "config/lifeboat/identity.txt" } else { "config/lifeboat/host-identity.txt" };
            secrets.push(Hidden { name, bytes: line.as_bytes().to_vec(), places: vec![place] });
        }
        let text = fs::read_to_string(keys.join("audit.key")).unwrap();
        let line = text.lines().find(|line| line.starts_with("PRIVATE+KEY+")).unwrap();
        secrets.push(Hidden { name: "audit key", bytes: line.as_bytes().to_vec(), places: vec!["config/lifeboat/audit.key"] });
        // A signing key whose private number is known, sealed with a password that is known.
        let (pem, scalar) = private_key();
        let key = SigningKey::import(&pem).unwrap();
        fs::write(keys.join("signing.key"), key.seal(SIGNING.as_bytes()).unwrap()).unwrap();
        fs::write(keys.join("signing.pub"), key.public_key().to_pem()).unwrap();
        fs::write(keys.join("signing.password"), format!("{SIGNING}\n")).unwrap();
        secrets.push(Hidden { name: "signing key", bytes: scalar, places: vec![] });
        secrets.push(Hidden { name: "signing password", bytes: SIGNING.into(), places: vec!["config/lifeboat/signing.password"] });
        secrets.push(Hidden { name: "password of the server", bytes: SCRAM.into(), places: vec!["lifeboat.toml", "wrong.toml"] });
        secrets.push(Hidden { name: "secret of the store", bytes: SECRET_KEY.into(), places: vec!["/aws-credentials"] });
        fs::create_dir(home.path().join("outputs")).unwrap();
        fs::create_dir(home.path().join("tmp")).unwrap();
        Place { home, sockets: temp_dir(), secrets, outputs: AtomicUsize::new(0) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn cluster(&self, version: Postgres) -> Builder {
        let directory = self.sockets.path().to_str().unwrap();
        Cluster::builder(version).config("unix_socket_directories", directory).config("listen_addresses", "127.0.0.1")
    }

    /// lifeboat with a configuration; what it prints is kept to be searched.
    fn run(&self, endpoint: &str, configuration: &str, arguments: &[&str]) -> Output {
        let program = with_server(Program::new(&self.home), endpoint).env("TMPDIR", self.path("tmp"));
        let output = program.arg("--config").arg(self.path(configuration)).args(arguments).run();
        let number = self.outputs.fetch_add(1, Ordering::Relaxed);
        fs::write(self.path(&format!("outputs/{number}")), format!("{}\n{}", output.stdout, output.stderr)).unwrap();
        output
    }
}

/// A private key of P-256 in PEM, and its number, without bytes that grep's patterns cannot have.
fn private_key() -> (String, Vec<u8>) {
    loop {
        let output = expect_success(Command::new("openssl").args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]));
        let pem = String::from_utf8(output.stdout).unwrap();
        let der = STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap();
        // ECPrivateKey: version 1, then the number as a string of 32 bytes (RFC 5915).
        let at = der.windows(5).position(|window| window == [0x02, 0x01, 0x01, 0x04, 0x20]).unwrap() + 5;
        let scalar = der[at..at + 32].to_vec();
        if !scalar.iter().any(|byte| matches!(byte, 0 | b'\n' | b'\r')) {
            return (pem, scalar);
        }
    }
}

/// The data keys of every manifest, opened as anybody with the identity could; none with bytes that grep cannot search for.
fn data_keys(manifests: &[PathBuf], identity: &str) -> Vec<Vec<u8>> {
    use std::io::Read as _;
    let identity: age::x25519::Identity = identity.parse().unwrap();
    let mut keys = Vec::new();
    for path in manifests {
        let manifest: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        for key in manifest["encryption"]["keys"].as_array().unwrap() {
            let wrapped = STANDARD.decode(key["wrapped"].as_str().unwrap()).unwrap();
            let decryptor = age::Decryptor::new(&wrapped[..]).unwrap();
            let mut secret = Vec::new();
            decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)).unwrap().read_to_end(&mut secret).unwrap();
            assert_eq!(secret.len(), 32);
            keys.push(secret);
        }
    }
    assert!(keys.len() >= 4, "the manifests hold {} keys", keys.len());
    keys.retain(|key| !key.iter().any(|byte| matches!(byte, 0 | b'\n' | b'\r')));
    keys
}

#[test]
fn secrets_are_where_they_belong_and_nowhere_else() {
    let mut place = Place::new();
    let server = Seaweed::start();
    let bucket = make_bucket(&server, place.home.path());
    let cluster = place.cluster(Postgres::V15).tcp_scram(SCRAM).config("wal_keep_size", "1GB").start();
    orchestrator::install(&cluster, 50);
    let artifacts = cluster.scratch("artifacts");
    orchestrator::record(&cluster, &orchestrator::write_artifacts(&artifacts, 10, 3));
    // What gives the password takes its time, so that it is seen at work.
    let giver = place.path("give-password");
    fs::write(&giver, format!("#!/bin/sh\nsleep 0.2\nexec cat {}\n", place.path(".config/lifeboat/signing.password").display())).unwrap();
    let dsn = cluster.tcp_dsn();
    let configure = |name: &str, dsn: &str, copy: &str, more: &str| {
        let keys = place.path(".config/lifeboat");
        let quoted = |text: &str| serde_json::to_string(text).unwrap();
        let text = format!(
            "[postgres]\ndsn = {}\ndata_directory = \"{}\"\ncopy = \"{copy}\"\nbin_directory = \"{}\"\nscratch = \"{scratch}\"\n\
             [artifacts]\ndirectory = \"{}\"\nreference_query = \"{}\"\n\
             [[repository]]\nurl = \"s3://{BUCKET}/r\"\npath_style = true\n[[repository]]\nurl = \"{replica}\"\nname = \"aside\"\n\
             [encryption]\nrecipients = [\"{}\"]\nhost_identity = \"{keys}/host-identity.txt\"\nidentity_file = \"{keys}/identity.txt\"\n\
             [signing]\nkey_file = \"{keys}/signing.key\"\npassword = {{ command = [\"/bin/sh\", \"{}\"] }}\n\
             [trust]\nkeys = [\"{keys}/signing.pub\"]\n[retention]\nkeep_last = 1\ngrace = \"0\"\n[wal]\nspool = \"{spool}\"\n{more}",
            quoted(dsn),
            cluster.data_directory().display(),
            Postgres::V15.bin_directory().display(),
            artifacts.display(),
            orchestrator::REFERENCE_QUERY,
            fs::read_to_string(keys.join("recipients.txt")).unwrap().trim(),
            giver.display(),
            keys = keys.display(),
            scratch = place.path("scratch").display(),
            replica = place.path("replica").display(),
            spool = place.path("spool").display(),
        );
        fs::write(place.path(name), text).unwrap();
    };
    configure("lifeboat.toml", &dsn, "local", "");
    let here = server.endpoint();
    let run = |arguments: &[&str]| place.run(&here, "lifeboat.toml", arguments);
    let watch = Watch { stop: AtomicBool::new(false), looks: AtomicUsize::new(0) };
    let seen = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch.look(place.home.path(), &place.path("processes")));
        // The watcher ends also when something fails.
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            run(&["init"]).success();
            run(&["config", "show"]).success();
            run(&["config", "show", "--json"]).success();
            run(&["backup"]).success();
            run(&["backup", "--json", "--copy", "stream"]).success();
            // The two programs of PostgreSQL log in with the password.
            run(&["backup", "--copy", "logical"]).success();
            run(&["verify", "--all"]).success();
            run(&["list"]).success();
            run(&["show", "latest", "--json"]).success();
            let one = artifacts.join("one");
            fs::write(&one, "one").unwrap();
            run(&["artifact", "put", "by/hand", &one.display().to_string()]).success();
            run(&["artifact", "get", "by/hand", "--output", &place.path("got").display().to_string()]).success();
            run(&["artifact", "verify", "--json"]).success();
            run(&["restore-point", "before"]).success();
            run(&["wal", "status"]);
            run(&["replicate"]).success();
            run(&["doctor", "--json"]);
            // Physical: the newest is a dump.
            let listed = run(&["list", "--json"]).success().json();
            let physical =
                listed["backups"].as_array().unwrap().iter().map(|backup| backup["backup"].as_str().unwrap().to_owned()).min().unwrap();
            let to = place.path("restored");
            let output = run(&[
                "restore",
                &physical,
                "--json",
                "--start",
                "--pgdata",
                &to.display().to_string(),
                "--artifacts",
                &place.path("restored-artifacts").display().to_string(),
            ]);
            let running = Running::new(&to, Postgres::V15, &output.success());
            assert_eq!(running.psql("SELECT count(*) FROM builds"), "50");
            running.stop();
            // Behind the restore: a server that fetches WAL runs lifeboat as its own user, who may not read the keys here.
            let segment = cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
            let names = format!("SELECT name FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{{24}}$' AND name < '{segment}' ORDER BY name");
            let names = cluster.psql(&names);
            for name in names.lines() {
                run(&["wal", "push", &cluster.data_directory().join("pg_wal").join(name).display().to_string()]).success();
            }
            let last = names.lines().last().unwrap();
            let system = cluster.psql("SELECT system_identifier FROM pg_control_system()");
            run(&["wal", "fetch", "--system-id", &system, last, &place.path("fetched").display().to_string()]).success();
            run(&["expire"]).success();
            run(&["prune"]).success();

            // What goes wrong is told without them as well.
            configure("wrong.toml", &dsn.replace("17%", "17% and wrong"), "stream", "");
            let refused = place.run(&here, "wrong.toml", &["backup"]).expect_code(12);
            assert!(refused.stderr.contains("password"), "{refused}");
            configure("wrong.toml", &dsn.replace("host=127.0.0.1", "hots=127.0.0.1"), "stream", "");
            place.run(&here, "wrong.toml", &["backup"]).expect_code(2);
            for more in ["[postgres]\n", "[limits]\nworkers = ", "no equals sign ", "[trust\n"] {
                let uri = format!("\"postgresql://me:{SCRAM}@db1/app\"\n");
                fs::write(place.path("wrong.toml"), format!("{more}{uri}")).unwrap();
                place.run(&here, "wrong.toml", &["config", "show"]).expect_code(2);
            }
            fs::write(place.path("wrong.toml"), format!("postgres = {}\n", serde_json::to_string(SCRAM).unwrap())).unwrap();
            place.run(&here, "wrong.toml", &["list"]).expect_code(2);
            // Nobody is there, and somebody who does not know us.
            let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
            place.run(&format!("http://127.0.0.1:{port}"), "lifeboat.toml", &["list", "--without-repository", "aside"]).expect_code(1);
            let program = with_server(Program::new(&place.home), &here).env("AWS_SECRET_ACCESS_KEY", format!("{SECRET_KEY}, but wrong"));
            let output = program.args(["--repository", &format!("s3://{BUCKET}/r"), "list"]).run().expect_code(12);
            fs::write(place.path("outputs/denied"), format!("{}\n{}", output.stdout, output.stderr)).unwrap();
            // A password that does not open the key, from a command that prints and fails.
            let password = place.path(".config/lifeboat/signing.password");
            fs::write(&giver, format!("cat {}; echo wrong\n", password.display())).unwrap();
            run(&["artifact", "put", "by/hand", &one.display().to_string()]).expect_code(12);
            fs::write(&giver, format!("cat {}; exit 3\n", password.display())).unwrap();
            let output = run(&["artifact", "put", "by/hand", &one.display().to_string()]).expect_code(12);
            assert!(output.stderr.contains("ended with"), "{output}");
        }));
        watch.stop.store(true, Ordering::Relaxed);
        let seen = watcher.join().unwrap();
        work.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        seen
    });
    for name in ["lifeboat", "pg_dump", "sh"] {
        assert!(seen.contains(name), "{name} was not seen at work: {seen:?}");
    }
    assert!(watch.looks.load(Ordering::Relaxed) > 100);

    // What is in the bucket comes to the files: every version of it.
    for version in bucket.versions("").unwrap().iter().filter(|version| !version.is_delete_marker()) {
        let path = place.path("bucket").join(&version.key).join(&version.version);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bucket.get(&version.key, Some(&version.version), 256 << 20).unwrap()).unwrap();
    }
    let manifests: Vec<PathBuf> = String::from_utf8(
        expect_success(Command::new("find").arg(place.path("bucket")).args(["-path", "*/manifest.json/*", "-type", "f"])).stdout,
    )
    .unwrap()
    .lines()
    .map(PathBuf::from)
    .collect();
    let identity = String::from_utf8(place.secrets[0].bytes.clone()).unwrap();
    let keys = data_keys(&manifests, &identity);
    place.secrets.extend(keys.into_iter().map(|bytes| Hidden { name: "data key", bytes, places: vec![] }));

    let roots = [place.home.path(), cluster.data_directory().parent().unwrap()];
    let mut wrong = Vec::new();
    for secret in &place.secrets {
        let files = found(&secret.bytes, &roots);
        for expected in &secret.places {
            // It would be found if it were there: the search works for this one.
            assert!(files.iter().any(|file| file.to_string_lossy().ends_with(expected)), "{} is not in {expected}: {files:?}", secret.name);
        }
        let strays = files.iter().filter(|file| !secret.places.iter().any(|place| file.to_string_lossy().ends_with(place)));
        wrong.extend(strays.map(|file| format!("{} in {}", secret.name, file.display())));
    }
    assert!(wrong.is_empty(), "secrets where they do not belong:\n{}", wrong.join("\n"));
    // The search went through what was printed, stored and restored.
    for part in ["outputs/0", "processes", "replica/lifeboat.json", "spool", "restored/PG_VERSION", "bucket/r/lifeboat.json"] {
        assert!(place.path(part).exists(), "{part}");
    }
    let leftovers: Vec<_> =
        ["tmp", "scratch"].iter().flat_map(|name| fs::read_dir(place.path(name)).into_iter().flatten().flatten()).collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[test]
fn a_password_is_no_argument() {
    let home = temp_dir();
    let output = Program::new(&home)
        .args(["init", "--repository", "repository", "--write-config", "lifeboat.toml", "--dsn", "postgresql://me:hunter2@db1/app"])
        .run()
        .expect_code(2);
    assert!(output.stderr.contains("pgpass") && !output.stderr.contains("hunter2"), "{output}");
    assert!(!home.path().join("lifeboat.toml").exists() && !home.path().join("repository").exists());
}

/// Runs `work` with a process that waits for a password, as the servers' user, who is not root.
fn while_waiting(home: &TempDir, work: impl FnOnce(Pid)) -> std::process::ExitStatus {
    Program::as_owner(home).args(["key", "generate"]).run().success();
    Program::as_owner(home).args(["init", "--repository", "repository"]).run().success();
    let keys = home.path().join(".config/lifeboat");
    let text = format!(
        "[[repository]]\nurl = \"{}\"\n[signing]\nkey_file = \"{keys}/signing.key\"\npassword = {{ command = [\"sleep\", \"600\"] }}\n\
         [encryption]\nrecipients = [\"{}\"]\n[trust]\nkeys = [\"{keys}/signing.pub\"]\n",
        home.path().join("repository").display(),
        fs::read_to_string(keys.join("recipients.txt")).unwrap().trim(),
        keys = keys.display(),
    );
    fs::write(home.path().join("waiting.toml"), text).unwrap();
    fs::write(home.path().join("one"), "one").unwrap();
    Owner::current().own_tree(home.path());
    let program = Program::as_owner(home).env("LIFEBOAT_TEST_MARK", "a secret in the environment");
    let mut child = program.args(["--config", "waiting.toml", "artifact", "put", "one", "one"]).spawn();
    let pid = Pid::from_child(&child);
    let children = format!("/proc/{0}/task/{0}/children", pid.as_raw_nonzero());
    let begun = Instant::now();
    let sleeping = || fs::read_to_string(&children).unwrap_or_default().split_whitespace().next().and_then(|text| text.parse().ok());
    let sleeper = loop {
        if let Some(pid) = sleeping().and_then(Pid::from_raw) {
            break pid;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not wait for its password");
        thread::sleep(Duration::from_millis(10));
    };
    work(pid);
    let status = child.wait().unwrap();
    let _ = rustix::process::kill_process(sleeper, Signal::KILL);
    status
}

#[test]
fn memory_and_environment_are_roots_alone() {
    let home = temp_dir();
    let read = |pid: Pid, file: &str| {
        let mut cat = Command::new("cat");
        cat.arg(format!("/proc/{}/{file}", pid.as_raw_nonzero())).current_dir("/").stdin(Stdio::null());
        Owner::current().run(&mut cat).output().unwrap()
    };
    // Without what the program does about it, its user reads its environment, and a crash leaves a core where the system lets it.
    let mut control = Command::new("sleep");
    let control =
        Owner::current().run(control.arg("600").env("LIFEBOAT_TEST_MARK", "a secret in the environment")).current_dir(home.path());
    let mut control = control.spawn().unwrap();
    let pid = Pid::from_child(&control);
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    let allow = |pid: Pid| rustix::process::prlimit(Some(pid), rustix::process::Resource::Core, unlimited);
    let _ = allow(pid);
    let begun = Instant::now();
    while !String::from_utf8_lossy(&read(pid, "environ").stdout).contains("a secret in the environment") {
        assert!(begun.elapsed() < Duration::from_secs(20), "the control does not show its environment");
        thread::sleep(Duration::from_millis(10));
    }
    rustix::process::kill_process(pid, Signal::QUIT).unwrap();
    let control_dumped = control.wait().unwrap().core_dumped();

    let status = while_waiting(&home, |pid| {
        let _ = allow(pid);
        for file in ["environ", "mem", "maps"] {
            let output = read(pid, file);
            let refused = String::from_utf8_lossy(&output.stderr).contains("ermission denied");
            assert!(!output.status.success() && refused && output.stdout.is_empty(), "{file}: {output:?}");
        }
        // Not SIGSEGV, which the runtime of Rust takes for itself once.
        rustix::process::kill_process(pid, Signal::QUIT).unwrap();
    });
    assert_eq!(status.signal(), Some(Signal::QUIT.as_raw()));
    assert!(!status.core_dumped(), "a core was dumped");
    eprintln!("this system dumps a core of a program that does nothing about it: {control_dumped}");
    for entry in fs::read_dir(home.path()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(!name.starts_with("core") || control_dumped && fs::metadata(entry.path()).unwrap().len() < 1 << 20, "{name}");
    }
}

#[test]
fn what_holds_a_secret_is_made_for_its_owner_alone() {
    use std::os::unix::fs::MetadataExt as _;
    let home = temp_dir();
    // As open as a user's umask can be.
    let mut shell = Command::new("sh");
    let script = "umask 000; exec \"$0\" key generate";
    expect_success(
        shell.args(["-c", script]).arg(env!("CARGO_BIN_EXE_lifeboat")).env_clear().env("HOME", home.path()).current_dir(home.path()),
    );
    let keys = home.path().join(".config/lifeboat");
    let modes = ["signing.key", "signing.password", "identity.txt", "host-identity.txt", "audit.key"]
        .map(|name| fs::metadata(keys.join(name)).unwrap().mode() & 0o777);
    assert_eq!(modes, [0o600; 5]);
    assert_eq!(fs::metadata(&keys).unwrap().mode() & 0o777, 0o700);
}
