//! The manifests of `deploy/kubernetes`, held against the schemas of Kubernetes, the real kustomize and the real program: no cluster is on the
//! machines that run the tests (docs/install.md says so).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cluster::{expect_success, temp_dir};
use crate::document::has_command;
use crate::program::Program;

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn text(output: std::process::Output) -> String {
    String::from_utf8(output.stdout).expect("text")
}

/// The oldest version of Kubernetes that the manifests are held against: the first whose CronJobs have time zones for good.
const OLDEST: &str = "1.27.0";
/// And the newest whose schemas there are.
pub(crate) const NEWEST: &str = "1.37.0";

fn validate(files: &[&Path], input: Option<&str>) -> std::process::Output {
    let mut command = crate::moto::python();
    let versions = if input.is_some() { NEWEST.to_owned() } else { format!("{OLDEST},{NEWEST}") };
    command.arg(crate::moto::script("manifests.py")).arg(versions).args(files);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("Python can be run");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.unwrap_or_default().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Every manifest of deploy/kubernetes, valid.
pub(crate) fn manifests() -> Vec<serde_json::Value> {
    let directories = fs::read_dir(source("deploy/kubernetes")).unwrap().map(|entry| entry.unwrap().path());
    let files = directories.flat_map(|directory| fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()));
    let mut files: Vec<PathBuf> = files.filter(|path| !path.ends_with("kustomization.yaml")).collect();
    files.sort();
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let output = validate(&files, None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let documents: Vec<serde_json::Value> = text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(documents.len() >= files.len() && files.len() > 8, "{files:?}");
    documents
}

/// What kustomize makes of one of its directories, valid.
fn kustomized(directory: &str) -> Vec<serde_json::Value> {
    let made = text(expect_success(Command::new("kubectl").arg("kustomize").arg(source("deploy/kubernetes").join(directory))));
    let output = validate(&[Path::new("-")], Some(&made));
    assert!(output.status.success() && !output.stdout.is_empty(), "{directory}: {}", String::from_utf8_lossy(&output.stderr));
    text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The templates of pods in the manifests: whose, and what.
fn pods(documents: &[serde_json::Value]) -> Vec<(String, serde_json::Value)> {
    let of = |document: &serde_json::Value| {
        let template = document.pointer("/spec/jobTemplate/spec/template").or(document.pointer("/spec/template"))?;
        Some((document["metadata"]["name"].as_str().unwrap().to_owned(), template.clone()))
    };
    documents.iter().filter_map(of).collect()
}

fn texts(list: &serde_json::Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|word| word.as_str().unwrap().to_owned()).collect()
}

#[test]
fn manifests_fit_the_schemas_and_so_do_what_kustomize_makes_of_them() {
    let documents = manifests();
    for kind in ["StatefulSet", "Service", "CronJob", "Job", "ConfigMap", "NetworkPolicy", "ServiceAccount", "PersistentVolumeClaim"] {
        assert!(documents.iter().any(|document| document["kind"] == kind), "{kind}");
    }
    assert!(!documents.iter().any(|document| document["kind"] == "Secret"), "values of secrets are nowhere here");
    assert!(
        !documents.iter().any(|document| document["metadata"]["namespace"].is_string()),
        "the namespace is whoever applies them to choose"
    );
    for directory in ["agent", "one-shot", "verify", "janitor", "drill", "restore", "restore-request"] {
        assert!(!kustomized(directory).is_empty(), "{directory}");
    }
    // The schemas are ones: what does not fit is refused.
    for (wrong, why) in [("replicas: 1", "replicas: one"), ("serviceName:", "servicename:"), ("containerPort: 9847", "containerPort: http")]
    {
        let agent = fs::read_to_string(source("deploy/kubernetes/agent/agent.yaml")).unwrap();
        assert!(agent.contains(wrong), "{wrong}");
        let output = validate(&[Path::new("-")], Some(&agent.replace(wrong, why)));
        assert!(!output.status.success(), "{why} was taken");
    }
}

#[test]
fn pods_have_no_right_that_they_do_not_need() {
    let documents = manifests();
    let pods = pods(&documents);
    assert!(pods.len() >= 4, "{pods:?}");
    for (name, pod) in &pods {
        let spec = &pod["spec"];
        assert_eq!(spec["automountServiceAccountToken"], false, "{name}");
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        for container in spec["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!((&context["allowPrivilegeEscalation"], &context["readOnlyRootFilesystem"]), (&false.into(), &true.into()), "{name}");
            assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"], "{name}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
        }
        // A policy of the network is about it, and says both directions.
        let component = pod.pointer("/metadata/labels/app.kubernetes.io~1component").unwrap();
        // What a role may do at the store hangs on its account.
        let role = match component.as_str().unwrap() {
            "agent" | "backup" => "lifeboat",
            "janitor" => "lifeboat-janitor",
            _ => "lifeboat-restorer",
        };
        assert_eq!(spec["serviceAccountName"], role, "{name}");
        assert!(documents.iter().any(|one| one["kind"] == "ServiceAccount" && one["metadata"]["name"] == role), "{role}");
        let policies = documents.iter().filter(|document| document["kind"] == "NetworkPolicy").filter(|policy| {
            texts(policy.pointer("/spec/podSelector/matchExpressions/0/values").unwrap()).iter().any(|value| component == value.as_str())
        });
        let directions: Vec<Vec<String>> = policies.map(|policy| texts(&policy["spec"]["policyTypes"])).collect();
        assert_eq!(directions, [["Ingress", "Egress"]], "{name}");
    }
    let agent = &pods.iter().find(|(name, _)| name == "lifeboat-agent").expect("the agent").1["spec"]["containers"][0];
    for (probe, path) in [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!((&agent[probe]["httpGet"]["path"], &agent[probe]["httpGet"]["port"]), (&path.into(), &"http".into()), "{probe}");
    }
    // Whoever applies everything starts no restore.
    let restore = documents.iter().find(|document| document["metadata"]["name"] == "lifeboat-restore").expect("the restore");
    assert_eq!(restore["spec"]["suspend"], true);
}

/// A plan runs on the host that asked for its approvals, by the host's name: a pod that has none of its own is another one each time.
#[test]
fn a_restore_is_asked_for_with_what_it_is_run_with() {
    let [restore, request] = ["restore", "restore-request"]
        .map(|directory| kustomized(directory).into_iter().find(|document| document["kind"] == "Job").expect("a job"));
    let names = [&restore, &request].map(|job| job["metadata"]["name"].as_str().unwrap());
    assert_eq!(names, ["lifeboat-restore", "lifeboat-restore-request"]);
    let args = |job: &serde_json::Value| texts(job.pointer("/spec/template/spec/containers/0/args").unwrap());
    let mut expected = args(&restore);
    expected.retain(|word| word != "--approved" && word != "EDIT-ME-DIGEST");
    expected.splice(2..2, ["approval", "request"].map(String::from));
    expected.extend(["--reason", "EDIT-ME-REASON"].map(String::from));
    assert_eq!(args(&request), expected);
    let pods = [restore, request].map(|mut job| {
        *job.pointer_mut("/spec/template/spec/containers/0/args").unwrap() = serde_json::Value::Null;
        job["spec"]["template"].clone()
    });
    assert_eq!(pods[0], pods[1]);
    assert_eq!(pods[0]["spec"]["hostname"], "lifeboat-restore");
}

#[test]
fn a_backup_is_tried_until_the_lease_of_one_that_was_killed_has_run_out() {
    let documents = manifests();
    let backup = documents.iter().find(|document| document["metadata"]["name"] == "lifeboat-backup").expect("the backup");
    let limit = backup.pointer("/spec/jobTemplate/spec/backoffLimit").and_then(serde_json::Value::as_u64).unwrap();
    // Kubernetes waits for 10 s before the second try, and doubles that. A lease holds for 120 s (lifeboat_core's LEASE_TIME).
    let last: u64 = (0..limit).map(|one| 10_u64 << one).sum();
    let grace = backup.pointer("/spec/jobTemplate/spec/template/spec/terminationGracePeriodSeconds").and_then(serde_json::Value::as_u64);
    assert!(last > 120 + grace.unwrap(), "{last} s after the first, {grace:?}");
}

/// The shell of the drill's pod, run with a stand-in for lifeboat: it gives SIGTERM on, waits for the teardown, and takes gaps for a pass.
#[test]
fn a_drill_that_is_ended_takes_itself_down() {
    let documents = manifests();
    let (_, pod) = pods(&documents).into_iter().find(|(name, _)| name == "lifeboat-drill").expect("the drill");
    // lifeboat waits for its server for up to 80 s, and then removes what it restored.
    assert!(pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap() >= 180);
    let command = texts(&pod["spec"]["containers"][0]["command"]);
    let home = temp_dir();
    let stand_in = home.path().join("lifeboat");
    let run = |script: &str| {
        fs::write(&stand_in, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&stand_in, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Command::new(&command[0])
            .args(&command[1..])
            .args(["drill", "run"])
            .current_dir(home.path())
            .env("PATH", format!("{}:/usr/bin:/bin", home.path().display()))
            .spawn()
            .expect("a shell")
    };
    for (code, expected) in [(0, 0), (3, 0), (21, 21), (23, 23)] {
        let mut shell = run(&format!("[ \"$*\" = 'drill run' ] || exit 99; exit {code}"));
        assert_eq!(shell.wait().unwrap().code(), Some(expected), "{code}");
    }
    let mut shell = run("trap 'sleep 1; echo down >down; exit 130' TERM\n: >up\nwhile :; do sleep 0.1; done");
    crate::failure::wait_until(|| home.path().join("up").exists());
    rustix::process::kill_process(rustix::process::Pid::from_child(&shell), rustix::process::Signal::TERM).unwrap();
    assert_eq!(shell.wait().unwrap().code(), Some(130));
    assert!(home.path().join("down").exists(), "it did not wait for the teardown");
}

#[test]
fn what_pods_run_and_are_configured_with_is_understood() {
    let documents = manifests();
    let home = temp_dir();
    let map = documents.iter().find(|document| document["kind"] == "ConfigMap").expect("a configuration");
    for (name, pod) in pods(&documents).into_iter().chain(pods(&kustomized("restore-request"))) {
        let container = &pod["spec"]["containers"][0];
        let words = texts(&container["args"]);
        let file = words.iter().skip_while(|word| *word != "--config").nth(1).expect("--config").clone();
        let command = words.iter().filter(|word| *word != "--config" && **word != file);
        let command: Vec<String> = command.map(|word| word.replace("EDIT-ME-DIGEST", &"0".repeat(64))).collect();
        if has_command(&command[0]) {
            // With all of its options; help is what it does then.
            Program::new(&home).args(&command).arg("--help").run().success();
        } else {
            assert_eq!(command[0], "agent", "no such command");
        }
        let mounts: Vec<&serde_json::Value> = container["volumeMounts"].as_array().unwrap().iter().collect();
        let mount =
            mounts.iter().find(|mount| mount["mountPath"] == file.as_str()).unwrap_or_else(|| panic!("{name}: {file} is not mounted"));
        let mut text = map["data"][mount["subPath"].as_str().unwrap()].as_str().unwrap().to_owned();
        if !has_command("agent") {
            // The table comes with its command.
            let (before, after) = text.split_once("\n[agent]\n").unwrap_or((&text, ""));
            text = format!("{before}{}", after.split_once("\n[").map_or(String::new(), |(_, rest)| format!("\n[{rest}")));
        }
        fs::write(home.path().join("mounted.toml"), &text).unwrap();
        let shown = Program::new(&home).args(["--config", "mounted.toml", "config", "show", "--json"]).run().success().json();
        let setting = |key: &str| {
            let rows = shown["settings"].as_array().unwrap();
            rows.iter().find(|row| row["setting"] == key).unwrap_or_else(|| panic!("no setting {key}"))["value"].clone()
        };
        let believes = |file: &str, kind: &str| {
            let keys = setting("trust.keys");
            let mut keys = keys.as_array().unwrap().iter();
            keys.any(|key| key["key"] == format!("/etc/lifeboat/secrets/{file}") && texts(&key["for"]).iter().any(|one| one == kind))
        };
        match command[0].as_str() {
            "agent" => {
                assert_eq!(setting("wal.mode"), "stream");
                // What the policy of the writer (deploy/s3/writer.json) does not let it do.
                for task in ["verify", "drill", "expire", "prune"] {
                    assert_eq!(setting(&format!("schedule.{task}")), "off", "{task}");
                }
                assert!(believes("restorer.pub", "drill"), "every drill would be a forged one: {}", setting("trust.keys"));
                assert!(believes("janitor.pub", "mark"), "nothing would ever have expired: {}", setting("trust.keys"));
            }
            "expire" | "prune" => assert!(believes("signing.pub", "mark"), "{}", setting("trust.keys")),
            // In another mode it makes a slot, which nobody reads.
            "backup" => assert_eq!(setting("wal.mode"), "archive"),
            "approval" => assert!(believes("signing.pub", "approval-request"), "{}", setting("trust.keys")),
            _ => {}
        }
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        for row in shown["settings"].as_array().unwrap().iter().filter(|row| row["origin"].as_str().unwrap().starts_with("file ")) {
            // Every file that it names is somewhere where the pod has something.
            let named = row["value"].to_string();
            for path in named.split(['"', ' ', '=']).filter(|word| word.starts_with('/')) {
                let below = mounts.iter().find(|mount| Path::new(path).starts_with(mount["mountPath"].as_str().unwrap()));
                let below = below.unwrap_or_else(|| panic!("{name}: {} names {path}, which is in no volume", row["setting"]));
                let templates = documents.iter().filter_map(|document| document.pointer("/spec/volumeClaimTemplates/0/metadata/name"));
                let known = volumes.iter().map(|volume| &volume["name"]).chain(templates).any(|volume| *volume == below["name"]);
                assert!(known, "{name}: no volume {}", below["name"]);
            }
        }
        // As it is shipped it backs nothing up: to a key that nobody has.
        assert!(text.contains("recipients = [\"EDIT-ME\"]"), "{text}");
    }
    let repository = || Program::new(&home).args(["--repository", "repository"]);
    repository().arg("init").run().success();
    let refused = repository().args(["restore", "EDIT-ME-BACKUP-ID", "--pgdata", "restored"]).run();
    assert!(refused.code == Some(2) && refused.stderr.contains("EDIT-ME-BACKUP-ID"), "{refused}");
    let refused = repository().args(["restore", "--approved", "EDIT-ME-DIGEST", "latest", "--pgdata", "restored"]).run();
    assert!(refused.code == Some(2) && refused.stderr.contains("EDIT-ME-DIGEST"), "{refused}");
    fs::create_dir(home.path().join("artifacts")).unwrap();
    fs::write(home.path().join("artifacts/one"), "one").unwrap();
    fs::write(home.path().join("unedited.toml"), "[encryption]\nrecipients = [\"EDIT-ME\"]\n[artifacts]\ndirectory = \"artifacts\"\n")
        .unwrap();
    let refused = repository().args(["--config", "unedited.toml", "backup"]).run();
    assert!(refused.code != Some(0) && refused.stderr.contains("EDIT-ME"), "{refused}");
    assert_eq!(repository().args(["list", "--json"]).run().success().json()["backups"], serde_json::json!([]));
}
