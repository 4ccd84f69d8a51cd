//! The roles of `deploy/`: each does its work, and is refused what is another's; by the policies and the SQL exactly as they are shipped.
//!
//! SeaweedFS enforces the policies of a bucket by principal, action and key. It knows nothing of `s3:if-none-match` in a policy, so
//! that a write which could replace something is refused is tried out nowhere here (`docs/least-privilege.md` says so).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_s3::{Bucket, Kind};
use serde_json::{Value, json};

use crate::backup::{Running, Site};
use crate::cluster::{Cluster, Owner, Postgres, expect_success};
use crate::moto::python;
use crate::orchestrator;
use crate::program::{Output, Program};
use crate::proxy::{Fate, Proxy};
use crate::seaweed::{ACCESS_KEY, BUCKET, ROLES, SECRET_KEY, Seaweed, make_bucket, with_server};

const PREFIX: &str = "company/conductor";

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(name)
}

/// The shipped policy of a role, filled in as `docs/least-privilege.md` says.
fn policy(role: &str) -> Vec<Value> {
    let text = fs::read_to_string(deploy(&format!("s3/{role}.json"))).unwrap();
    let principal = format!("arn:aws:iam::000000000000:user/{role}");
    let text = text.replace("${BUCKET}", BUCKET).replace("${PREFIX}", PREFIX).replace("${PRINCIPAL}", &principal);
    assert!(!text.contains("${"), "a place that is not filled in");
    let document: Value = serde_json::from_str(&text).unwrap();
    document["Statement"].as_array().unwrap().clone()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// Whether a key fits a resource of a policy, in which `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, rest)) => text
            .strip_prefix(before)
            .is_some_and(|text| (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| fits(rest, &text[at..]))),
    }
}

#[test]
fn patterns_of_policies_fit_as_they_do_in_s3() {
    for (pattern, text, expected) in [
        ("a/*-backup-*/manifest.json", "a/x-backup-1/manifest.json", true),
        ("a/*-backup-*/manifest.json", "a/x-backup-1/files/0", false),
        ("a/*", "a/b/c", true),
        ("a/*", "b/a/c", false),
        ("a", "ab", false),
    ] {
        assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
    }
}

/// One role at work: its credentials, and a line on which its requests are seen.
struct Role<'a> {
    site: &'a Site,
    name: &'static str,
    access: &'static str,
    secret: &'static str,
    proxy: Proxy,
}

impl<'a> Role<'a> {
    fn of(site: &'a Site, server: &Seaweed, name: &str) -> Role<'a> {
        let (name, access, secret) = ROLES.into_iter().find(|role| role.0 == name).unwrap();
        Role { site, name, access, secret, proxy: Proxy::start(server.port(), |_, _| Fate::Pass) }
    }

    /// lifeboat with these credentials and a configuration, not yet run.
    fn program(&self, configuration: &Path, arguments: &[&str]) -> Program {
        let program = with_server(Program::new(&self.site.home), &self.proxy.endpoint());
        let program = program.env("AWS_ACCESS_KEY_ID", self.access).env("AWS_SECRET_ACCESS_KEY", self.secret);
        program.arg("--config").arg(configuration).args(arguments)
    }

    /// The same, run to its end.
    fn run(&self, configuration: &Path, arguments: &[&str]) -> Output {
        self.program(configuration, arguments).run()
    }

    /// An agent with these credentials gets its turn, and ends in order when it is told to.
    #[track_caller]
    fn takes_its_turn(&self, configuration: &Path) {
        let mut agent = self.program(configuration, &["agent"]).spawn();
        let said = || fs::read_to_string(self.site.place("stderr")).unwrap_or_default();
        let begun = Instant::now();
        while !said().contains("it is this agent's turn") {
            if agent.try_wait().unwrap().is_some() || begun.elapsed() > Duration::from_secs(120) {
                let _ = agent.kill();
                panic!("{}: it did not get its turn:\n{}", self.name, said());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let pid = rustix::process::Pid::from_raw(i32::try_from(agent.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = agent.wait().unwrap();
        assert!(status.success() && !said().contains(self.secret), "{}: {status}\n{}", self.name, said());
    }

    /// The store refuses it, and lifeboat says so: exit code 12.
    #[track_caller]
    fn is_refused(&self, configuration: &Path, arguments: &[&str]) {
        let output = self.run(configuration, arguments).expect_code(12);
        assert!(output.stderr.contains("not allowed") && output.stderr.contains("403"), "{}: {output}", self.name);
        assert!(!output.stderr.contains(self.secret), "{output}");
    }

    /// A client of its own, for what lifeboat itself does not try.
    fn bucket(&self, server: &Seaweed) -> Bucket {
        let profiles = self.site.place(&format!("aws-{}", self.name));
        fs::write(&profiles, format!("[role]\naws_access_key_id = {}\naws_secret_access_key = {}\n", self.access, self.secret)).unwrap();
        let config = lifeboat_s3::Config {
            bucket: BUCKET.into(),
            endpoint: Some(server.endpoint()),
            region: Some("us-east-1".into()),
            profile: Some("role".into()),
            profile_file: Some(profiles),
            ..lifeboat_s3::Config::default()
        };
        Bucket::connect(&config).unwrap()
    }

    /// What the policy allows and no request of this run needed: (statement, resource).
    fn unused(&self) -> Vec<(String, String)> {
        let requests: Vec<(String, String)> = self.proxy.requests().iter().filter_map(|line| request(line)).collect();
        assert!(requests.len() > 10, "{}: the line carried nothing", self.name);
        let mut unused = Vec::new();
        for statement in policy(self.name).iter().filter(|statement| statement["Effect"] == "Allow") {
            let actions = texts(&statement["Action"]);
            for resource in texts(&statement["Resource"]).into_iter().filter(|resource| resource.contains('/')) {
                let pattern = resource.strip_prefix(&format!("arn:aws:s3:::{BUCKET}/")).unwrap().to_owned();
                let used = requests.iter().any(|(action, key)| actions.contains(action) && fits(&pattern, key));
                if !used {
                    let sid = statement["Sid"].as_str().unwrap().to_owned();
                    unused.push((sid, pattern.strip_prefix(&format!("{PREFIX}/")).unwrap().to_owned()));
                }
            }
        }
        unused
    }
}

/// The action that a request on an object needs, and the object's key.
fn request(line: &str) -> Option<(String, String)> {
    let mut words = line.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.strip_prefix(&format!("/{BUCKET}/"))?.to_owned();
    let has = |name: &str| query.split('&').any(|part| part.split('=').next() == Some(name));
    let action = match method {
        _ if key.is_empty() => return None,
        "GET" | "HEAD" if has("versionId") => "s3:GetObjectVersion",
        "GET" | "HEAD" => "s3:GetObject",
        "PUT" if has("retention") => "s3:PutObjectRetention",
        "PUT" | "POST" => "s3:PutObject",
        "DELETE" if has("uploadId") => "s3:AbortMultipartUpload",
        "DELETE" if has("versionId") => "s3:DeleteObjectVersion",
        "DELETE" => "s3:DeleteObject",
        _ => return None,
    };
    Some((action.to_owned(), key))
}

/// What no run here needs, and why it is allowed all the same.
const NOT_SEEN_HERE: [(&str, &str, &str); 12] = [
    ("WriterReadsWhatItComparesWith", "audit/*", "the audit log"),
    ("WriterReadsWhatItComparesWith", "approvals/*", "approvals"),
    ("WriterReadsWhatItComparesWith", "retention/*", "repository.retention"),
    ("WriterCreates", "audit/*", "the audit log"),
    ("WriterCreates", "approvals/*", "approvals"),
    ("WriterCreates", "retention/*", "repository.retention"),
    ("RestorerRecordsAndApproves", "approvals/*", "approvals"),
    ("RestorerRecordsAndApproves", "audit/*", "the audit log"),
    ("JanitorReadsWhatItDecidesBy", "*", "audit, approvals, retention, and marks of a prune that was interrupted"),
    ("JanitorMarks", "*", "audit and approvals"),
    ("JanitorDeletes", "retention/*", "repository.retention"),
    ("JanitorDeletes", "leases/*", "old epochs of leases, of which there are not enough here"),
];

/// Ends the present segment and returns its name.
fn next_segment(cluster: &Cluster) -> String {
    let segment = cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    cluster.psql("SELECT txid_current(); SELECT pg_switch_wal()");
    segment
}

fn keys_of(site: &Site, name: &str) -> String {
    site.place(".config/lifeboat").join(name).display().to_string()
}

#[test]
fn c124_each_role_of_a_bucket_does_its_work_and_no_more() {
    let (site, server) = (Site::new(), Seaweed::start());
    let admin_bucket = make_bucket(&server, site.home.path());
    let cluster = site.cluster(Postgres::V15).config("wal_keep_size", "1GB").start();
    orchestrator::install(&cluster, 100);
    let directory = cluster.scratch("artifacts");
    let artifacts = orchestrator::write_artifacts(&directory, 20, 7);
    orchestrator::record(&cluster, &artifacts);
    // Long enough to be uploaded in parts.
    fs::write(directory.join("long"), orchestrator::Random(3).bytes(24 << 20)).unwrap();

    // The restore identity is not where a database host's keys are.
    let identity = site.place("identity-of-the-restorer").display().to_string();
    fs::rename(keys_of(&site, "identity.txt"), &identity).unwrap();
    let recipient = fs::read_to_string(keys_of(&site, "recipients.txt")).unwrap();
    let write = |name: &str, text: &str| {
        let path = site.place(&format!("{name}.toml"));
        let repository = format!("[[repository]]\nurl = \"s3://{BUCKET}/{PREFIX}\"\npath_style = true\n");
        let keys = format!(
            "[signing]\nkey_file = \"{}\"\npassword = {{ file = \"{}\" }}\n[trust]\nkeys = [\"{}\"]\n",
            keys_of(&site, "signing.key"),
            keys_of(&site, "signing.password"),
            keys_of(&site, "signing.pub")
        );
        fs::write(&path, format!("{repository}{keys}{text}")).unwrap();
        path
    };
    let for_writer = write(
        "writer",
        &format!(
            "[postgres]\ndsn = \"{}\"\ndata_directory = \"{}\"\ncopy = \"local\"\nbin_directory = \"{}\"\n[artifacts]\ndirectory = \"{}\"\n\
             reference_query = \"{}\"\n[encryption]\nrecipients = [\"{}\"]\nhost_identity = \"{}\"\n[wal]\nspool = \"{}\"\n",
            cluster.dsn(),
            cluster.data_directory().display(),
            Postgres::V15.bin_directory().display(),
            directory.display(),
            orchestrator::REFERENCE_QUERY,
            recipient.trim(),
            keys_of(&site, "host-identity.txt"),
            site.place("spool").display(),
        ),
    );
    // The agent, with what the writer may not do off, as docs/least-privilege.md says; and nothing due while it runs here.
    let for_agent = site.place("agent.toml");
    let schedule = "[agent]\nlisten = \"off\"\n[schedule]\nbackup = \"0 0 1 1 *\"\nverify = \"off\"\ndrill = \"off\"\nexpire = \"off\"\nprune = \"off\"\n";
    fs::write(&for_agent, fs::read_to_string(&for_writer).unwrap() + schedule).unwrap();
    let for_restorer =
        write("restorer", &format!("[encryption]\nrecipients = [\"{}\"]\nidentity_file = \"{identity}\"\n", recipient.trim()));
    let for_janitor = write("janitor", "[retention]\nkeep_last = 1\ngrace = \"0\"\n");

    // The administrator makes the repository and gives the roles.
    with_server(Program::new(&site.home), &server.endpoint()).arg("--config").arg(&for_janitor).arg("init").run().success();
    let statements: Vec<Value> = ROLES.iter().flat_map(|(name, ..)| policy(name)).collect();
    let document = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
    let script = format!(
        "import boto3, sys\n\
         s3 = boto3.client('s3', endpoint_url='{}', region_name='us-east-1', aws_access_key_id='{ACCESS_KEY}', aws_secret_access_key='{SECRET_KEY}')\n\
         s3.put_bucket_policy(Bucket='{BUCKET}', Policy=sys.argv[1])\n",
        server.endpoint()
    );
    expect_success(python().args(["-c", &script]).arg(document));

    let writer = Role::of(&site, &server, "writer");
    let restorer = Role::of(&site, &server, "restorer");
    let janitor = Role::of(&site, &server, "janitor");

    // The writer writes.
    let pushed = |segment: &str| {
        let path = cluster.data_directory().join("pg_wal").join(segment).display().to_string();
        writer.run(&for_writer, &["wal", "push", &path]).success();
        path
    };
    next_segment(&cluster);
    let first = writer.run(&for_writer, &["backup", "--json"]).success().json();
    cluster.psql("CREATE TABLE later AS SELECT generate_series(1, 50000) AS n");
    writer.run(&for_writer, &["backup", "--json", "--copy", "stream"]).success();
    fs::write(directory.join("new"), "new").unwrap();
    let synced = directory.display().to_string();
    writer.run(&for_writer, &["artifact", "sync", &synced]).success();
    let new = directory.join("new").display().to_string();
    for _ in 0..2 {
        // The same bytes again: what is there is looked at before it is relied on.
        writer.run(&for_writer, &["artifact", "put", "by/hand", &new]).success();
    }
    // All WAL at once and at the end: a backup waits for what is archived while it runs. That of before the first is what a prune takes.
    let segment = next_segment(&cluster);
    let finished = format!("SELECT name FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{{24}}$' AND name <= '{segment}' ORDER BY name");
    let segments = cluster.psql(&finished);
    assert!(segments.lines().count() >= 3, "{segments}");
    let mut path = String::new();
    for segment in segments.lines() {
        path = pushed(segment);
    }
    // PostgreSQL pushes a segment twice after a crash; without a mark in the spool the store is compared with.
    let _ = fs::remove_dir_all(site.place("spool"));
    pushed(&segment);
    writer.run(&for_writer, &["list"]).success();
    writer.run(&for_writer, &["show", "latest"]).success();
    writer.run(&for_writer, &["artifact", "list"]).success();
    writer.run(&for_writer, &["wal", "status"]).expect_code(3);
    let codes = |output: &Output| -> Vec<String> {
        output.json()["findings"].as_array().unwrap().iter().map(|finding| finding["code"].as_str().unwrap().to_owned()).collect()
    };
    let looked = writer.run(&for_writer, &["doctor", "--json"]).expect_code(3);
    let reach = &looked.json()["repositories"][0]["reach"];
    assert_eq!((&reach["reads_data"]["Ok"], &reach["deletes"]["Ok"]), (&json!(false), &json!(false)), "{looked}");
    for code in ["reads-data", "may-delete", "not-writable", "not-checked"] {
        assert!(!codes(&looked).iter().any(|found| found == code), "{code}: {looked}");
    }
    // With an administrator's credentials the same host could do more than it needs, and doctor says so.
    let admin = with_server(Program::new(&site.home), &server.endpoint()).arg("--config").arg(&for_writer).args(["doctor", "--json"]).run();
    for code in ["reads-data", "may-delete", "superuser"] {
        assert!(codes(&admin).iter().any(|found| found == code), "{code}: {admin}");
    }
    assert!(
        admin_bucket.versions(&format!("{PREFIX}/packs/")).unwrap().iter().all(|version| !version.is_delete_marker()),
        "doctor left a mark"
    );
    // With everything that a restore needs beside it, even the identity, it does not restore, and it neither marks nor deletes.
    let to = site.place("never").display().to_string();
    writer.is_refused(&for_restorer, &["restore", "latest", "--pgdata", &to]);
    writer.is_refused(&for_restorer, &["verify", "latest"]);
    writer.is_refused(&for_janitor, &["expire"]);
    writer.is_refused(&for_janitor, &["prune"]);
    writer.is_refused(&for_janitor, &["pin", "latest", "--name", "mine", "--reason", "test"]);

    // The restorer reads.
    restorer.run(&for_restorer, &["verify", "--all"]).success();
    let (to, artifacts_to) = (site.place("restored").display().to_string(), site.place("restored-artifacts").display().to_string());
    // What the database will refer to behind the backup, nobody can know before it runs.
    let cold = restorer.run(&for_restorer, &["restore", "latest", "--pgdata", &to, "--artifacts", &artifacts_to]).expect_code(3);
    assert!(cold.stderr.contains("finding: not checked: "), "{cold}");
    assert_eq!(fs::read(Path::new(&artifacts_to).join("long")).unwrap(), fs::read(directory.join("long")).unwrap());
    let got = site.place("got").display().to_string();
    restorer.run(&for_restorer, &["artifact", "get", "by/hand", "--output", &got]).success();
    let system = cluster.psql("SELECT system_identifier FROM pg_control_system()");
    let fetched = site.place("fetched").display().to_string();
    restorer.run(&for_restorer, &["wal", "fetch", "--system-id", &system, &segment, &fetched]).success();
    assert!(fs::read(&fetched).unwrap() == fs::read(&path).unwrap(), "the segment is the server's");
    // And drills: the reports are all that it adds to the repository. Where these tests are root's, the server's user has to get there.
    let drills = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(drills.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (below, programs) = (drills.path().display().to_string(), Postgres::V15.bin_directory().display().to_string());
    let drill = ["drill", "run", "--json", "--directory", &below, "--bin-directory", &programs];
    let drilled = restorer.run(&for_restorer, &drill);
    let report = &drilled.json()["report"];
    assert!(matches!(report["verdict"].as_str(), Some("passed" | "passed-with-gaps")), "{drilled}");
    restorer.run(&for_restorer, &["drill", "show"]).success();
    // The writer's agent gets its turn, and sees when the last drill was.
    writer.takes_its_turn(&for_agent);
    writer.run(&for_writer, &["drill", "list"]).success();
    // The restorer's has a group, and cannot keep the writer's from its work.
    let for_drills = site.place("drills.toml");
    let alone = schedule.replace("[agent]\n", "[agent]\ngroup = \"restorer\"\n");
    fs::write(&for_drills, fs::read_to_string(&for_restorer).unwrap() + &alone).unwrap();
    restorer.takes_its_turn(&for_drills);
    writer.is_refused(&for_restorer, &drill);
    restorer.is_refused(&for_writer, &["backup"]);
    restorer.is_refused(&for_writer, &["artifact", "put", "by/another", &new]);
    restorer.is_refused(&for_janitor, &["expire"]);
    restorer.is_refused(&for_janitor, &["prune"]);

    // Nobody but the janitor takes anything away, nobody destroys, and nobody touches what others rely on.
    let (writers, restorers, janitors) = (writer.bucket(&server), restorer.bucket(&server), janitor.bucket(&server));
    let full = |key: &str| format!("{PREFIX}/{key}");
    let manifest = full(&format!("{}/manifest.json", first["backup"].as_str().unwrap()));
    let pack = admin_bucket.list(&full("packs/"), None, None).unwrap().remove(0).key;
    let table = full(&format!("{}/files/0", first["backup"].as_str().unwrap()));
    admin_bucket.put_if_absent(&full("audit/leaf/1"), b"a record".to_vec(), None).unwrap();
    let version = admin_bucket.head(&pack, None).unwrap().version.unwrap();
    for (name, bucket) in [("writer", &writers), ("restorer", &restorers), ("janitor", &janitors)] {
        let denied = |what: &str, result: Result<(), lifeboat_s3::S3Error>| {
            assert_eq!(result.map_err(|error| error.kind), Err(Kind::Denied), "{name}: {what}");
        };
        denied("destroys a version", bucket.delete(&pack, Some(&version)).map(drop));
        denied("deletes the descriptor", bucket.delete(&full("lifeboat.json"), None).map(drop));
        denied("deletes a record", bucket.delete(&full("audit/leaf/1"), None).map(drop));
        denied("writes beside the repository", bucket.put_if_absent("elsewhere/x", b"x".to_vec(), None).map(drop));
        denied("reads beside the repository", bucket.get("elsewhere/x", None, 10).map(drop));
        bucket.put_if_absent(&full(&format!("audit/leaf/{name}")), b"a record".to_vec(), None).unwrap();
        bucket.get(&full("audit/leaf/1"), None, 100).unwrap();
        if name != "janitor" {
            denied("deletes a backup", bucket.delete(&manifest, None).map(drop));
            denied("deletes a pack", bucket.delete(&pack, None).map(drop));
        }
        if name == "restorer" {
            let lease = full("leases/agent-plant/0000009999.json");
            denied("takes the lease of the writer's agent", bucket.put_if_absent(&lease, b"{}".to_vec(), None).map(drop));
        }
        if name != "restorer" {
            denied("reads a pack", bucket.get(&pack, None, 64 << 20).map(drop));
            denied("reads a version of a pack", bucket.get(&pack, Some(&version), 64 << 20).map(drop));
            denied("reads a file table", bucket.get(&table, None, 64 << 20).map(drop));
        }
    }
    // A listing shows names, to all three.
    assert!(writers.list(&full(""), None, None).unwrap().len() > 20);

    // The janitor tidies up.
    janitor.run(&for_janitor, &["pin", "latest", "--name", "kept", "--reason", "test"]).success();
    writer.run(&for_writer, &["show", "latest"]).success();
    janitor.run(&for_janitor, &["unpin", "latest", "--name", "kept", "--reason", "test"]).success();
    janitor.run(&for_janitor, &["expire"]).success();
    writer.run(&for_writer, &["list"]).success();
    janitor.run(&for_janitor, &["prune"]).success();
    let left = janitor.run(&for_janitor, &["list", "--json"]).success().json();
    assert_eq!(left["backups"].as_array().unwrap().len(), 1, "{left:#}");
    janitor.is_refused(&for_restorer, &["restore", "latest", "--pgdata", &site.place("never-again").display().to_string()]);
    janitor.is_refused(&for_restorer, &["verify", "latest"]);
    janitor.is_refused(&for_writer, &["backup"]);
    // What is left is whole.
    restorer.run(&for_restorer, &["verify", "--all"]).success();

    // No policy gives what nothing needs.
    for role in [&writer, &restorer, &janitor] {
        let mut unused = role.unused();
        unused.retain(|(sid, resource)| {
            !NOT_SEEN_HERE.iter().any(|(statement, key, _)| statement == sid && (key == resource || *key == "*"))
        });
        assert!(unused.is_empty(), "{}: allowed and not needed: {unused:#?}", role.name);
    }
}

/// Runs one of the shipped files as the superuser.
fn apply(cluster: &Cluster, file: &str, variables: &[&str]) {
    let mut psql = cluster.program("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]);
    for variable in variables {
        psql.args(["-v", variable]);
    }
    expect_success(psql.arg("-f").arg(deploy(&format!("postgres/{file}"))));
}

/// A connection string of a role that logs in with SCRAM.
fn dsn_of(cluster: &Cluster, role: &str, database: &str) -> String {
    cluster.psql(&format!("ALTER ROLE {role} PASSWORD 'password of {role}'"));
    let dsn = cluster.tcp_dsn().replace("user=postgres", &format!("user={role}")).replace("'superuser'", &format!("'password of {role}'"));
    dsn.replace("dbname=postgres", &format!("dbname={database}"))
}

fn as_role(cluster: &Cluster, dsn: &str, sql: &str) -> Result<String, String> {
    let output = cluster.program("psql").args(["-X", "-q", "-A", "-t", "-w", "-c", sql]).arg(dsn).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What no role of ours may do.
const REFUSED: [&str; 13] = [
    "ALTER SYSTEM SET work_mem = '1MB'",
    "CREATE ROLE another",
    "CREATE DATABASE another",
    "ALTER ROLE postgres PASSWORD 'mine'",
    "DROP TABLE builds",
    "DELETE FROM artifacts",
    "TRUNCATE runs",
    "COPY builds TO PROGRAM 'true'",
    "COPY builds TO '/tmp/lifeboat-test-copy'",
    "SELECT pg_read_file('/etc/hostname')",
    "SELECT lo_import('/etc/hostname')",
    "SELECT rolpassword FROM pg_authid",
    "SELECT pg_rotate_logfile()",
];

#[test]
fn a_backup_needs_no_superuser() {
    for version in [Postgres::V15, Postgres::V18] {
        let site = Site::new();
        let cluster = site.cluster(version).config("listen_addresses", "127.0.0.1").tcp_scram("superuser").start();
        orchestrator::install(&cluster, 50);
        let directory = cluster.scratch("artifacts");
        let artifacts = orchestrator::write_artifacts(&directory, 5, 7);
        orchestrator::record(&cluster, &artifacts);
        for _ in 0..2 {
            // Also where it was run before.
            apply(&cluster, "writer.sql", &[]);
            apply(&cluster, "receiver.sql", &["degrade=1"]);
            apply(&cluster, "dump.sql", &[]);
            apply(&cluster, "references.sql", &["table=public.artifacts"]);
            apply(&cluster, "references.sql", &["table=public.artifacts", "role=lifeboat_dump"]);
            apply(&cluster, "restorer-check.sql", &["table=public.artifacts"]);
        }
        let role = |name: &str| dsn_of(&cluster, name, "postgres");
        let (writer, dump, receiver, check) =
            (role("lifeboat_backup"), role("lifeboat_dump"), role("lifeboat_receiver"), role("lifeboat_check"));
        let lifeboat = |dsn: &str, arguments: &[&str]| {
            let text = format!(
                "[postgres]\ndsn = \"{}\"\ndata_directory = \"{}\"\nbin_directory = \"{}\"\n[artifacts]\ndirectory = \"{}\"\nreference_query = \"{}\"\n\
                 [[repository]]\nurl = \"{}\"\n[encryption]\nrecipients = [\"{}\"]\nidentity_file = \"{}\"\n[signing]\nkey_file = \"{}\"\n\
                 password = {{ file = \"{}\" }}\n[trust]\nkeys = [\"{}\"]\n[wal]\nspool = \"{}\"\n",
                dsn.replace('\\', "\\\\"),
                cluster.data_directory().display(),
                version.bin_directory().display(),
                directory.display(),
                orchestrator::REFERENCE_QUERY,
                site.repository().display(),
                fs::read_to_string(keys_of(&site, "recipients.txt")).unwrap().trim(),
                keys_of(&site, "identity.txt"),
                keys_of(&site, "signing.key"),
                keys_of(&site, "signing.password"),
                keys_of(&site, "signing.pub"),
                site.place("spool").display(),
            );
            Program::new(&site.home).arg("--config").arg(site.configuration(&text)).args(arguments).run()
        };
        lifeboat(&writer, &["init"]).success();

        // Everything that it is for, without a warning of what it may not.
        let mut physical = String::new();
        for copy in ["local", "stream"] {
            let taken = lifeboat(&writer, &["backup", "--json", "--copy", copy]).success();
            assert!(!taken.stderr.contains("permission") && !taken.stderr.contains("may not"), "{taken}");
            assert_eq!(taken.json()["manifest"]["warnings"].as_array().map_or(0, Vec::len), 0, "{taken}");
            physical = taken.json()["backup"].as_str().unwrap().to_owned();
        }
        let dumped = lifeboat(&dump, &["backup", "--json", "--copy", "logical"]).success();
        assert_eq!(dumped.json()["manifest"]["warnings"].as_array().map_or(0, Vec::len), 0, "{dumped}");
        lifeboat(&writer, &["restore-point", "before-the-deployment"]).success();
        let status = lifeboat(&writer, &["wal", "status", "--json"]);
        assert!(!status.stdout.contains("permission denied") && !status.stderr.contains("permission denied"), "{status}");
        let has = |output: &Output, code: &str| output.json()["findings"].as_array().unwrap().iter().any(|finding| finding["code"] == code);
        assert!(has(&lifeboat(&cluster.dsn(), &["doctor", "--json"]), "superuser"));
        let looked = lifeboat(&writer, &["doctor", "--json"]);
        assert!(!has(&looked, "superuser") && !has(&looked, "server-unreachable"), "{looked}");

        // The role that checks is in the copy. (Before there is WAL: the server would have to read the keys of who restores.)
        let to = site.place("restored");
        let output = site.program().args(["restore", &physical, "--json", "--start", "--pgdata"]).arg(&to);
        let output = output.arg("--bin-directory").arg(version.bin_directory()).run().success();
        let running = Running::new(&to, version, &output);
        let as_check = |sql: &str| {
            let dsn = running.dsn.split(' ').filter(|part| !part.starts_with("user=")).collect::<Vec<_>>().join(" ");
            let mut psql = std::process::Command::new(version.bin("psql"));
            psql.args(["-X", "-q", "-A", "-t", "-c", sql]).arg(format!("{dsn} user=lifeboat_check")).current_dir("/");
            Owner::current().run(&mut psql).output().unwrap()
        };
        let seen = as_check(orchestrator::REFERENCE_QUERY);
        assert!(seen.status.success() && String::from_utf8_lossy(&seen.stdout).lines().count() == artifacts.len(), "{version}: {seen:?}");
        assert!(!as_check("SELECT * FROM builds").status.success(), "{version}");
        drop(running);

        // The receiver: slot, stream, and the one setting that it may change.
        lifeboat(&receiver, &["wal", "receive", "--create-slot-only"]).success();
        cluster.pgbench_init(1);
        lifeboat(&receiver, &["wal", "receive", "--once", "--json"]).success();
        let received = fs::read_dir(site.repository().join("wal")).unwrap().count();
        assert_eq!(received, 1, "nothing came");
        for sql in [
            "SET synchronous_commit = local",
            "ALTER SYSTEM SET synchronous_standby_names = 'somebody'",
            "ALTER SYSTEM RESET synchronous_standby_names",
            "SELECT pg_reload_conf()",
        ] {
            as_role(&cluster, &receiver, sql).unwrap_or_else(|error| panic!("{version}: {sql}: {error}"));
        }
        lifeboat(&receiver, &["wal", "receive", "--drop-slot"]).success();

        // And nothing else.
        for (name, dsn) in [("writer", &writer), ("dump", &dump), ("receiver", &receiver), ("check", &check)] {
            // What pg_read_all_data reads is said in dump.sql: the verifiers of passwords as well.
            let reads_all = |sql: &&str| name == "dump" && sql.contains("pg_authid");
            for sql in REFUSED.into_iter().filter(|sql| !reads_all(sql)) {
                let error = as_role(&cluster, dsn, sql).expect_err(&format!("{version}, {name}: {sql}"));
                let refusals = ["permission denied", "must be", "must have", "read-only transaction"];
                assert!(refusals.iter().any(|refusal| error.contains(refusal)), "{version}, {name}: {sql}: {error}");
            }
            let reads = as_role(&cluster, dsn, "SELECT count(*) FROM builds");
            assert_eq!(reads.is_ok(), name == "dump", "{version}, {name}: {reads:?}");
        }
        for (name, dsn) in [("dump", &dump), ("check", &check)] {
            for sql in ["SELECT pg_switch_wal()", "SELECT pg_create_restore_point('x')", "SELECT pg_reload_conf()"] {
                assert!(as_role(&cluster, dsn, sql).is_err(), "{version}, {name}: {sql}");
            }
        }
        for dsn in [&writer, &dump, &check] {
            assert!(as_role(&cluster, dsn, "ALTER SYSTEM SET synchronous_standby_names = ''").is_err(), "{version}");
            assert_eq!(as_role(&cluster, dsn, orchestrator::REFERENCE_QUERY).unwrap().lines().count(), artifacts.len(), "{version}");
        }
    }
}

/// What a unit loads is what its header and its environment name, and its state is where it may write.
#[test]
fn units_name_the_credentials_that_they_load() {
    let unit_of = |unit: &str| fs::read_to_string(deploy(&format!("systemd/{unit}"))).unwrap();
    for unit in ["lifeboat-backup.service", "lifeboat-wal-receive.service"] {
        let text = unit_of(unit);
        let loaded: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("LoadCredential=")?.split(':').next()).collect();
        let below = format!("/run/credentials/{unit}/");
        let named = text.split(below.as_str()).skip(1).chain(text.split("=%d/").skip(1));
        let named: BTreeSet<&str> = named.filter_map(|rest| rest.split(['"', '\n']).next()).collect();
        assert_eq!(named, loaded, "{unit}");
    }
    for unit in ["lifeboat-agent.service", "lifeboat-backup.service"] {
        let text = unit_of(unit);
        let mut variables = text.lines().filter_map(|line| line.strip_prefix("Environment=")).flat_map(str::split_whitespace);
        assert!(text.contains("\nStateDirectory=lifeboat\n") && variables.any(|word| word == "XDG_STATE_HOME=/var/lib"), "{unit}");
    }
}

/// The files of roles and of services hold no password, and no name of a machine.
#[test]
fn what_is_deployed_holds_no_secret() {
    let mut seen = BTreeMap::new();
    for directory in ["s3", "postgres", "systemd"] {
        crate::failure::walk(&deploy(directory), &mut |path, meta| {
            if !meta.is_file() {
                return;
            }
            let text = fs::read_to_string(path).unwrap();
            let bare = |line: &&str| line.to_ascii_lowercase().contains("password") && !line.trim_start().starts_with(['-', '#', '\\']);
            let lines: Vec<&str> = text.lines().filter(bare).filter(|line| !line.contains("LoadCredential")).collect();
            assert!(lines.is_empty(), "{}: {lines:?}", path.display());
            *seen.entry(directory).or_insert(0) += 1;
        });
    }
    assert!(seen.values().all(|count| *count >= 2) && seen.len() == 3, "{seen:?}");
}
