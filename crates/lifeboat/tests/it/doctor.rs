//! `lifeboat doctor` and `lifeboat init` against stores that keep their promises and stores that do not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::backup::Site;
use crate::cluster::Postgres;
use crate::moto::{Moto, python};
use crate::orchestrator;
use crate::program::{Output, Program};
use crate::seaweed::{ACCESS_KEY, BUCKET, READER_KEY, READER_SECRET, SECRET_KEY, Seaweed, make_bucket, with_server};

/// The findings: code to severity.
fn findings(output: &Output) -> BTreeMap<String, String> {
    let document = output.json();
    let findings = document["findings"].as_array().unwrap_or_else(|| panic!("no findings\n{output}"));
    let text = |finding: &Value, member: &str| finding[member].as_str().expect("text").to_owned();
    let ranks: Vec<String> = findings.iter().map(|finding| text(finding, "severity")).collect();
    let rank = |severity: &String| ["essential", "danger", "warning"].iter().position(|word| word == severity);
    assert!(ranks.is_sorted_by_key(rank), "not in the order of danger: {ranks:?}");
    for finding in findings {
        assert!(!text(finding, "fix").is_empty() && !text(finding, "meaning").is_empty(), "{finding}");
        assert!(output.stderr.contains(&text(finding, "fix")), "{output}");
    }
    findings.iter().map(|finding| (text(finding, "code"), text(finding, "severity"))).collect()
}

fn at(site: &Site, endpoint: &str, url: &str) -> Program {
    with_server(Program::new(&site.home), endpoint).args(["--repository", url])
}

#[test]
fn c098_a_good_store_is_told_from_one_that_ignores_conditions() {
    let site = Site::new();
    let url = format!("s3://{BUCKET}/x");

    // It heeds them.
    let seaweed = Seaweed::start();
    let bucket = make_bucket(&seaweed, site.home.path());
    let before = at(&site, &seaweed.endpoint(), &url).args(["doctor", "--json"]).run().expect_code(1);
    assert_eq!(findings(&before).get("no-repository").map(String::as_str), Some("essential"), "{before}");
    let made = at(&site, &seaweed.endpoint(), &url).args(["init", "--json"]).run().success();
    assert!(findings(&made).values().all(|severity| severity == "warning"), "{made}");
    let output = at(&site, &seaweed.endpoint(), &url).args(["doctor", "--json"]).run().expect_code(3);
    assert!(findings(&output).values().all(|severity| severity == "warning"), "{output}");
    let document = output.json();
    let behaviour = &document["repositories"][0]["behaviour"];
    for (what, expected) in [("second_create", "refused"), ("second_create_in_parts", "refused"), ("old_version", "kept"), ("held", "kept")]
    {
        assert_eq!(behaviour[what]["Ok"], expected, "{what}: {behaviour:#}");
    }
    assert!(!format!("{output}").contains(SECRET_KEY));
    // Nothing of it is left, though the bucket holds everything for a day.
    let versions = bucket.versions("").unwrap();
    let keys = versions.iter().map(|version| version.key.as_str()).filter(|key| !key.starts_with("x/audit/"));
    assert_eq!(keys.collect::<Vec<_>>(), ["x/lifeboat.json"]);
    // A host that only restores.
    let reader = at(&site, &seaweed.endpoint(), &url).env("AWS_ACCESS_KEY_ID", READER_KEY).env("AWS_SECRET_ACCESS_KEY", READER_SECRET);
    let output = reader.args(["doctor", "--json"]).run().expect_code(3);
    assert_eq!(findings(&output).get("not-writable").map(String::as_str), Some("danger"), "{output}");

    // It says 200 and overwrites.
    let hostile = Moto::start(&["if-none-match"]);
    let bucket = hostile.make_bucket(site.home.path());
    let output = at(&site, &hostile.endpoint(), &url).args(["init"]).run().expect_code(1);
    assert!(output.stderr.contains("replaced by a second create") && output.stderr.contains("If-None-Match"), "{output}");
    assert!(bucket.list("", None, None).unwrap().is_empty(), "no repository was made");
    let output = at(&site, &hostile.endpoint(), &url).args(["doctor", "--json"]).run().expect_code(1);
    let found = findings(&output);
    for code in ["create", "create-in-parts", "race", "no-repository"] {
        assert_eq!(found.get(code).map(String::as_str), Some("essential"), "{output}");
    }
    // Neither does a backup make one there.
    let artifacts = site.place("artifacts");
    fs::create_dir(&artifacts).unwrap();
    fs::write(artifacts.join("one"), "1").unwrap();
    let backup = with_server(Program::new(&site.home), &hostile.endpoint()).env("LIFEBOAT_ARTIFACTS", &artifacts);
    let output = backup.args(["backup", "--output", &url]).run().expect_code(1);
    assert!(output.stderr.contains("replaced by a second create"), "{output}");
}

#[test]
fn c104_a_lock_that_is_fake_is_found() {
    let site = Site::new();
    let url = format!("s3://{BUCKET}/x");
    // It refuses to delete what is held, and lets everybody make the time shorter.
    let moto = Moto::start(&[]);
    moto.make_bucket(site.home.path());
    at(&site, &moto.endpoint(), &url).args(["init"]).run().success();
    let output = at(&site, &moto.endpoint(), &url).args(["doctor", "--json"]).run().expect_code(3);
    let found = findings(&output);
    assert_eq!(found.get("lock-fake").map(String::as_str), Some("danger"), "{output}");
    assert!(!found.contains_key("create"), "{output}");
    assert_eq!(output.json()["repositories"][0]["behaviour"]["held"]["Ok"], "shortened", "{output}");

    // It never hears of holds, and says nothing.
    let hostile = Moto::start(&["x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date"]);
    hostile.make_bucket(site.home.path());
    at(&site, &hostile.endpoint(), &url).args(["init"]).run().success();
    let output = at(&site, &hostile.endpoint(), &url).args(["doctor", "--json"]).run().expect_code(3);
    assert_eq!(findings(&output).get("lock-ignored").map(String::as_str), Some("danger"), "{output}");
}

#[test]
fn what_is_wrong_with_this_host_and_its_server_is_told() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).config("full_page_writes", "off").start();
    let repository = site.repository();
    let keys = site.place(".config/lifeboat");
    let configuration = site.configuration(&format!(
        "[postgres]\ndsn = \"{}\"\ndata_directory = \"{}\"\n[[repository]]\nurl = \"{}\"\n[encryption]\nrecipients = [\"{}\"]\nidentity_file = \"{}\"\n[signing]\nkey_file = \"{}\"\npassword = {{ file = \"{}\" }}\n[trust]\nkeys = [\"{}\"]\n",
        cluster.dsn(),
        cluster.data_directory().display(),
        repository.display(),
        fs::read_to_string(keys.join("recipients.txt")).unwrap().trim(),
        keys.join("identity.txt").display(),
        keys.join("signing.key").display(),
        keys.join("signing.password").display(),
        keys.join("signing.pub").display(),
    ));
    let doctor = || Program::new(&site.home).arg("--config").arg(&configuration).args(["doctor", "--json"]).run();
    let found = |output: &Output, code: &str| findings(output).get(code).cloned();
    // Not there: nothing is made by looking.
    let output = doctor().expect_code(1);
    assert_eq!(found(&output, "unreachable").as_deref(), Some("essential"), "{output}");
    assert!(!repository.exists());
    Program::new(&site.home).arg("--config").arg(&configuration).arg("init").run().success();
    let output = doctor().expect_code(3);
    for (code, severity) in [("full-page-writes", "danger"), ("archive-off", "danger"), ("same-file-system", "warning")] {
        assert_eq!(found(&output, code).as_deref(), Some(severity), "{output}");
    }
    for code in ["not-trusted", "open-secret", "writable-by-all", "signing-key", "recipients", "other-identity", "create"] {
        assert_eq!(found(&output, code), None, "{output}");
    }
    assert_eq!(
        fs::read_dir(&repository).unwrap().flatten().filter(|entry| entry.file_name() == "probe").count(),
        0,
        "the probe is cleared"
    );

    let change = |path: &std::path::Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    change(&keys.join("identity.txt"), 0o644);
    change(&repository, 0o777);
    let output = doctor().expect_code(3);
    assert_eq!(found(&output, "open-secret").as_deref(), Some("danger"), "{output}");
    assert_eq!(found(&output, "writable-by-all").as_deref(), Some("danger"), "{output}");
    change(&keys.join("identity.txt"), 0o600);
    change(&repository, 0o755);

    // Another's keys: what is signed here is not trusted here, what is sealed here does not open here.
    let other = site.place("other");
    Program::new(&site.home).args(["key", "generate", "--out"]).arg(&other).run().success();
    let text = fs::read_to_string(&configuration).unwrap();
    let moved = |from: std::path::PathBuf, to: std::path::PathBuf| text.replace(&from.display().to_string(), &to.display().to_string());
    fs::write(&configuration, moved(keys.join("signing.pub"), other.join("signing.pub"))).unwrap();
    assert_eq!(found(&doctor().expect_code(3), "not-trusted").as_deref(), Some("danger"));
    fs::write(&configuration, moved(keys.join("identity.txt"), other.join("identity.txt"))).unwrap();
    assert_eq!(found(&doctor().expect_code(3), "other-identity").as_deref(), Some("danger"));
    fs::write(&configuration, moved(keys.join("signing.key"), other.join("signing.key"))).unwrap();
    assert_eq!(found(&doctor().expect_code(1), "signing-key").as_deref(), Some("essential"));
    fs::write(&configuration, &text).unwrap();
    drop(cluster);
    assert_eq!(found(&doctor().expect_code(3), "server-unreachable").as_deref(), Some("danger"));
}

#[test]
fn c104_what_a_backup_shares_with_earlier_ones_is_held_anew() {
    let (site, seaweed) = (Site::new(), Seaweed::start());
    let bucket = make_bucket(&seaweed, site.home.path());
    let artifacts = site.place("artifacts");
    orchestrator::write_artifacts(&artifacts, 20, 3);
    let configuration = |retention: &str| {
        let text = format!("[artifacts]\ndirectory = \"{}\"\n[[repository]]\nurl = \"s3://{BUCKET}/r\"\n{retention}", artifacts.display());
        let keys = site.place(".config/lifeboat");
        site.configuration(&format!(
            "{text}[encryption]\nrecipients = [\"{}\"]\n[signing]\nkey_file = \"{}\"\npassword = {{ file = \"{}\" }}\n[trust]\nkeys = [\"{}\"]\n",
            fs::read_to_string(keys.join("recipients.txt")).unwrap().trim(),
            keys.join("signing.key").display(),
            keys.join("signing.password").display(),
            keys.join("signing.pub").display(),
        ))
    };
    let lifeboat = |path: &std::path::Path| with_server(Program::new(&site.home), &seaweed.endpoint()).arg("--config").arg(path);
    let days = |key: &str| {
        let until = bucket.head(key, None).unwrap().retention.expect("held").until;
        (until.duration_since(std::time::SystemTime::now()).unwrap().as_secs() + 3600) / 86_400
    };
    let keys = |prefix: &str| bucket.list(prefix, None, None).unwrap().into_iter().map(|object| object.key).collect::<Vec<_>>();

    // By the bucket's own rule.
    let plain = configuration("");
    lifeboat(&plain).arg("init").run().success();
    let taken = lifeboat(&plain).args(["backup", "--json"]).run().success().json();
    assert_eq!(taken["retention"], Value::Null);
    let blobs = keys("r/artifacts/blobs/");
    let records = keys("r/artifacts/records/");
    assert!(blobs.len() >= 15 && blobs.iter().chain(&records).all(|key| days(key) == 1), "{blobs:?}");

    // Promised from now on: everything that the next backup needs is held so long.
    let promised = configuration("retention = \"10d\"\n");
    let shown = lifeboat(&promised).args(["config", "show"]).run().success();
    assert!(shown.stdout.contains("repository.retention") && shown.stdout.contains("governance"), "{shown}");
    let taken = lifeboat(&promised).args(["backup", "--json"]).run().success().json();
    let (held, id) = (&taken["retention"], taken["backup"].as_str().unwrap());
    assert_eq!((held["failed"].as_u64(), held["share"].as_f64(), held["artifacts"].as_u64()), (Some(0), Some(1.0), Some(20)), "{held:#}");
    for key in blobs.iter().chain(&records) {
        assert_eq!(days(key), 20, "{key}");
    }
    assert_eq!(days(&format!("r/{id}/manifest.json")), 10);
    assert_eq!(days("r/lifeboat.json"), 10);
    assert!(keys("r/artifacts/catalog/").iter().all(|key| days(key) == 10));
    assert!(keys("r/leases/").iter().all(|key| days(key) == 1), "leases are only held as the bucket says");

    // The next one visits what has fallen due since, and what is new.
    fs::write(artifacts.join("new"), "new").unwrap();
    let taken = lifeboat(&promised).args(["backup", "--json"]).run().success().json();
    let held = &taken["retention"];
    assert!(held["share"].as_f64().unwrap() < 0.01 && held["failed"] == 0, "{held:#}");
    assert!((1..5).contains(&held["artifacts"].as_u64().unwrap()), "{held:#}");

    // A bucket without Object Lock cannot keep such a promise.
    let unlocked = fs::read_to_string(&promised).unwrap().replace(BUCKET, "without-lock");
    fs::write(&promised, unlocked).unwrap();
    let config = lifeboat_s3::Config {
        bucket: "without-lock".into(),
        endpoint: Some(seaweed.endpoint()),
        region: Some("us-east-1".into()),
        profile: Some("test".into()),
        profile_file: Some(site.place("aws-credentials")),
        ..lifeboat_s3::Config::default()
    };
    lifeboat_s3::Bucket::create(&config, None).unwrap();
    let output = lifeboat(&promised).args(["doctor", "--json"]).run().expect_code(1);
    assert_eq!(findings(&output).get("retention-without-lock").map(String::as_str), Some("essential"), "{output}");
}

#[test]
fn c103_rules_and_switches_of_a_bucket_are_found() {
    let (site, seaweed) = (Site::new(), Seaweed::start());
    make_bucket(&seaweed, site.home.path());
    // An administrator's, with the store's own words: a rule that tidies up, and a bucket whose versions are switched off again.
    let script = format!(
        "import boto3\n\
         s3 = boto3.client('s3', endpoint_url='{}', region_name='us-east-1', aws_access_key_id='{ACCESS_KEY}', aws_secret_access_key='{SECRET_KEY}')\n\
         s3.create_bucket(Bucket='tidied')\n\
         s3.put_bucket_versioning(Bucket='tidied', VersioningConfiguration={{'Status': 'Enabled'}})\n\
         s3.put_bucket_versioning(Bucket='tidied', VersioningConfiguration={{'Status': 'Suspended'}})\n\
         rule = lambda name, prefix: {{'ID': name, 'Status': 'Enabled', 'Filter': {{'Prefix': prefix}}, 'Expiration': {{'Days': 30}}}}\n\
         s3.put_bucket_lifecycle_configuration(Bucket='tidied', LifecycleConfiguration={{'Rules': [rule('tidy', 'x/artifacts/'), rule('else', 'y/')]}})\n",
        seaweed.endpoint()
    );
    let output = python().args(["-c", &script]).output().expect("Python can be run");
    assert!(output.status.success(), "run scripts/setup test\n{}", String::from_utf8_lossy(&output.stderr));
    at(&site, &seaweed.endpoint(), "s3://tidied/x").arg("init").run().success();
    let output = at(&site, &seaweed.endpoint(), "s3://tidied/x").args(["doctor", "--json"]).run().expect_code(3);
    let found = findings(&output);
    assert_eq!(found.get("lifecycle-deletes").map(String::as_str), Some("danger"), "{output}");
    assert_eq!(found.get("versioning-suspended").map(String::as_str), Some("danger"), "{output}");
    assert_eq!(found.get("lock-off").map(String::as_str), Some("warning"), "{output}");
    let rules: Vec<_> =
        output.json()["findings"].as_array().unwrap().iter().filter(|finding| finding["code"] == "lifecycle-deletes").cloned().collect();
    assert!(rules.len() == 1 && rules[0]["problem"].as_str().unwrap().contains("\"tidy\""), "{rules:#?}");
}
