//! A repository at Google's and at Azure's, as a user has it: whole runs against servers that speak their protocols, and what people
//! get wrong.

#[path = "../../../lifeboat-clouds/tests/support/azurite.rs"]
#[expect(dead_code, reason = "shared with the tests of the client, which use more of it")]
mod azurite;
#[path = "../../../lifeboat-clouds/tests/support/gcs.rs"]
mod gcs;

use std::fs;

use azurite::Azurite;
use gcs::{Gcs, READER_TOKEN, TOKEN};

use crate::backup::{Running, Site};
use crate::cluster::{Postgres, Stop};
use crate::orchestrator;
use crate::program::{Output, Program};
use crate::proxy::{Fate, Proxy};

/// Nothing of a secret, and one line of a failure.
#[track_caller]
fn assert_one_clean_line(output: &Output, secret: &str) {
    assert!(!output.stderr.contains(secret) && !output.stdout.contains(secret), "{output}");
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert!(lines.len() <= 2 && lines[0].starts_with("error: "), "{output}");
    assert!(lines.get(1).is_some_and(|hint| hint.starts_with("hint: ")), "{output}");
}

/// A container that is there, made as an administrator would.
fn make_container(server: &Azurite, name: &str) {
    let variables = Some(vec![("AZURE_STORAGE_KEY".to_owned(), azurite::KEY.to_owned())]);
    let config = lifeboat_clouds::Config {
        endpoint: Some(server.endpoint()),
        account: Some(azurite::ACCOUNT.into()),
        variables,
        ..lifeboat_clouds::Config::of(lifeboat_clouds::Cloud::Azure, name)
    };
    lifeboat_clouds::Bucket::create(&config).expect("a new server takes a container");
}

/// A small backup with artifacts, and WAL, there and back. `options` are those of `[[repository]]`; `secret` is a variable.
fn a_whole_cycle(url: &str, options: &str, secret: (&str, &str)) {
    let site = Site::new();
    let mut cluster = site.cluster(Postgres::V15).start();
    orchestrator::install(&cluster, 100);
    let directory = cluster.scratch("artifacts");
    let artifacts = orchestrator::write_artifacts(&directory, 20, 11);
    orchestrator::record(&cluster, &artifacts);
    let configuration = site.configuration(&format!(
        "[postgres]\ndsn = \"{}\"\ndata_directory = \"{}\"\ncopy = \"local\"\nbin_directory = \"{}\"\n[artifacts]\ndirectory = \"{}\"\nreference_query = \"{}\"\n[[repository]]\nurl = \"{url}/\"\n{options}",
        cluster.dsn(),
        cluster.data_directory().display(),
        Postgres::V15.bin_directory().display(),
        directory.display(),
        orchestrator::REFERENCE_QUERY,
    ));
    let lifeboat = || Program::new(&site.home).env(secret.0, secret.1).arg("--config").arg(&configuration);

    let shown = lifeboat().args(["config", "show"]).run().success();
    assert!(shown.stdout.contains("repository.endpoint") && !shown.stdout.contains(secret.1), "{shown}");
    let before = lifeboat().args(["list"]).run().expect_code(10);
    assert!(before.stderr.contains("lifeboat init"), "{before}");
    let made = lifeboat().args(["init", "--json"]).run().success().json();
    assert_eq!(made["repository"], url);
    lifeboat().args(["init"]).run().expect_code(1);

    let taken = lifeboat().args(["backup", "--json"]).run().success().json();
    let listed = lifeboat().args(["list", "--json"]).run().success().json();
    assert_eq!((&listed["backups"][0]["backup"], &listed["backups"][0]["state"]), (&taken["backup"], &"healthy".into()));
    let verified = lifeboat().args(["verify", "--all", "--json"]).run().success().json();
    assert_eq!(verified["verdict"], "verified");

    // A segment of 16 MiB goes in parts.
    let segment = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
    let system_id = cluster.psql("SELECT system_identifier FROM pg_control_system()");
    let path = cluster.data_directory().join("pg_wal").join(&segment);
    lifeboat().args(["wal", "push"]).arg(&path).run().success();
    let fetched = site.place("fetched");
    let fetch = lifeboat().args(["wal", "fetch", "--system-id", &system_id, "--segment-size", "16MiB", &segment]);
    fetch.arg(&fetched).run().success();
    assert!(fs::read(&fetched).unwrap() == fs::read(&path).unwrap(), "another segment came back");

    cluster.stop(Stop::Immediate);
    let to = site.place("restored");
    // The archive holds one segment, and not those before it.
    let restore = lifeboat().args(["restore", "latest", "--target-immediate", "--json", "--start", "--pgdata"]).arg(&to);
    let output = restore.arg("--artifacts").arg(site.place("restored-artifacts")).run().success();
    let running = Running::new(&to, Postgres::V15, &output);
    assert_eq!(running.report["verdict"], "verified");
    assert_eq!(running.psql("SELECT count(*) FROM builds"), "100");
    assert_eq!(running.psql("SELECT count(*) FROM artifacts"), "20");
}

#[test]
fn a_whole_cycle_at_google() {
    let server = Gcs::start(&["lifeboat-tests"]);
    // Some requests break; each is made good by a later one.
    let proxy = Proxy::start(server.port(), |_, number| match number % 23 {
        7 => Fate::LoseAnswer,
        15 => Fate::CutAnswer(300),
        _ => Fate::Pass,
    });
    let url = "gs://lifeboat-tests/company/conductor";
    a_whole_cycle(url, &format!("endpoint = \"{}\"\n", proxy.endpoint()), ("GOOGLE_BEARER_TOKEN", TOKEN));
    assert!(proxy.broken() > 3, "only {} requests broke", proxy.broken());
    // Written once, and no upload is left open.
    let objects = server.objects("lifeboat-tests");
    assert!(objects.iter().all(|(key, _)| key.starts_with("company/conductor/")), "{objects:?}");
    assert_eq!(server.counts().1, 0);
}

#[test]
fn a_whole_cycle_at_azure() {
    let server = Azurite::start();
    make_container(&server, "lifeboat-tests");
    let options = format!("account = \"{}\"\nendpoint = \"{}\"\n", azurite::ACCOUNT, server.endpoint());
    a_whole_cycle("az://lifeboat-tests/company/conductor", &options, ("AZURE_STORAGE_KEY", azurite::KEY));
}

#[test]
fn what_people_get_wrong_in_the_clouds_is_told() {
    let (site, google, azure) = (Site::new(), Gcs::start(&["lifeboat-tests"]), Azurite::start());
    make_container(&azure, "lifeboat-tests");
    let at_google = |url: &str| Program::new(&site.home).env("GOOGLE_BASE_URL", google.endpoint()).args(["--repository", url]);
    let at_azure = |url: &str| {
        let program = Program::new(&site.home).env("AZURE_STORAGE_ACCOUNT", azurite::ACCOUNT);
        program.env("AZURE_STORAGE_ENDPOINT", azure.endpoint()).args(["--repository", url])
    };
    let (gs, az) = ("gs://lifeboat-tests/x", "az://lifeboat-tests/x");
    at_google(gs).env("GOOGLE_BEARER_TOKEN", TOKEN).args(["init"]).run().success();
    // The other name of the scheme is the same place.
    at_azure("azure://lifeboat-tests/x").env("AZURE_STORAGE_KEY", azurite::KEY).args(["init"]).run().success();
    at_azure(az).env("AZURE_STORAGE_KEY", azurite::KEY).args(["list"]).run().success();

    // Credentials: wrong ones, some that may only read, a file that is none.
    let output = at_google(gs).env("GOOGLE_BEARER_TOKEN", "hunter2").args(["list"]).run().expect_code(12);
    assert_one_clean_line(&output, "hunter2");
    let output = at_google("gs://lifeboat-tests/y").env("GOOGLE_BEARER_TOKEN", READER_TOKEN).args(["init"]).run().expect_code(12);
    assert_one_clean_line(&output, READER_TOKEN);
    fs::write(site.place("key.json"), r#"{"type":"service_account","private_key":"hunter2"}"#).unwrap();
    let output = at_google(gs).env("GOOGLE_APPLICATION_CREDENTIALS", site.place("key.json")).args(["list"]).run().expect_code(12);
    assert_one_clean_line(&output, "hunter2");
    let output = at_azure(az).env("AZURE_STORAGE_KEY", "aHVudGVyMg==").args(["list"]).run().expect_code(12);
    assert_one_clean_line(&output, "aHVudGVyMg==");
    let sas = "sv=2023-11-03&sp=rl&sig=aHVudGVyMg%3D%3D";
    let output = at_azure(az).env("AZURE_STORAGE_SAS_TOKEN", sas).args(["list"]).run().expect_code(12);
    assert_one_clean_line(&output, "aHVudGVyMg");
    let output = Program::new(&site.home).args(["--repository", az, "list"]).run();
    assert_one_clean_line(&output, "hunter2");
    assert!(output.stderr.contains("AZURE_STORAGE_ACCOUNT"), "{output}");

    // A bucket that is not there is not made.
    for command in ["init", "list"] {
        let output = at_google("gs://lifeboat-typo/x").env("GOOGLE_BEARER_TOKEN", TOKEN).arg(command).run().expect_code(10);
        assert!(output.stderr.contains("no such bucket"), "{output}");
        let output = at_azure("az://lifeboat-typo/x").env("AZURE_STORAGE_KEY", azurite::KEY).arg(command).run().expect_code(10);
        assert!(output.stderr.contains("no such bucket"), "{output}");
    }

    // What is no address, and options of another store.
    for bad in ["gs://", "gs://B", "gs://bucket/a//b", "az://a.b", "az://container/../x"] {
        let output = Program::new(&site.home).args(["--repository", bad, "list"]).run().expect_code(2);
        assert_one_clean_line(&output, "hunter2");
    }
    let configuration = site.configuration("[[repository]]\nurl = \"gs://bucket/x\"\naccount = \"mine\"\n");
    let output = Program::new(&site.home).arg("--config").arg(&configuration).args(["list"]).run().expect_code(2);
    assert_one_clean_line(&output, "hunter2");
}
