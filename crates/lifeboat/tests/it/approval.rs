//! `lifeboat approval` as people use it: one host asks, two others on machines of their own agree, and what runs is what they agreed to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Owner, Postgres, expect_success, temp_dir};
use crate::program::{Output, Program};
use crate::wal_recovery::Place;

/// Ends tests that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(120);

const SSH_NAMESPACE: &str = "lifeboat-approval@lifeboat.dev";

/// Somebody with a machine of their own: a home, a configuration, keys.
struct Person {
    home: TempDir,
}

impl Person {
    fn new() -> Self {
        let person = Self { home: temp_dir() };
        Program::as_owner(&person.home).args(["key", "generate"]).run().success();
        person
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        Owner::current().own(&self.path(name));
    }

    fn public_key(&self) -> PathBuf {
        self.path(".config/lifeboat/signing.pub")
    }

    /// The hint of the signing key: base64 of the SHA-256 of its DER.
    fn hint(&self) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", "openssl pkey -pubin -in \"$0\" -outform DER | openssl dgst -sha256 -binary | openssl base64 -A"]);
        String::from_utf8(expect_success(command.arg(self.public_key())).stdout).unwrap()
    }

    /// An SSH key, and the line of its public half.
    fn ssh_key(&self, name: &str) -> (PathBuf, String) {
        let path = self.path(name);
        let mut command = Command::new("ssh-keygen");
        expect_success(Owner::current().run(command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path)).current_dir("/"));
        (path.clone(), fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned())
    }

    fn lifeboat(&self, words: &[&str]) -> Program {
        Program::as_owner(&self.home).arg("--config").arg(self.path("lifeboat.toml")).args(words)
    }
}

/// The tables that all of them share: whom to trust, and who is who.
fn shared(host: &Person, alice: &Person, signers: &Path) -> String {
    format!(
        "[trust]\nkeys = [\"{}\", \"{}\"]\n[approvals]\nallowed_signers = \"{}\"\n[approvals.persons]\nalice = [\"{}\", \"alice@example.com\"]\n",
        host.public_key().display(),
        alice.public_key().display(),
        signers.display(),
        alice.hint(),
    )
}

/// A host with artifacts, and two people: alice has a key of lifeboat's kind and one of SSH, bob one of SSH.
struct Office {
    host: Person,
    alice: Person,
    bob: Person,
    alice_ssh: PathBuf,
    bob_ssh: PathBuf,
}

impl Office {
    fn new() -> Self {
        let (host, alice, bob) = (Person::new(), Person::new(), Person::new());
        let (alice_ssh, alice_line) = alice.ssh_key("id_alice");
        let (bob_ssh, bob_line) = bob.ssh_key("id_bob");
        let signers = host.path("allowed_signers");
        host.write("allowed_signers", &format!("alice@example.com {alice_line}\nbob@example.com namespaces=\"lifeboat-*\" {bob_line}\n"));
        let shared = shared(&host, &alice, &signers);
        let repository = host.path("repository");
        for person in [&host, &alice, &bob] {
            let recipient = fs::read_to_string(person.path(".config/lifeboat/recipients.txt")).unwrap();
            let text = format!(
                "name = \"plant\"\n[[repository]]\nurl = \"{}\"\n[artifacts]\ndirectory = \"files\"\n[encryption]\nrecipients = [\"{}\"]\n{shared}",
                repository.display(),
                recipient.trim(),
            );
            person.write("lifeboat.toml", &text);
        }
        fs::create_dir(host.path("files")).unwrap();
        host.write("files/log.txt", "built");
        Owner::current().own_tree(&host.path("files"));
        Program::as_owner(&host.home).args(["init", "--repository"]).arg(&repository).run().success();
        Self { host, alice, bob, alice_ssh, bob_ssh }
    }

    fn backup(&self) -> String {
        self.host.lifeboat(&["backup", "--json"]).run().success().json()["backup"].as_str().unwrap().to_owned()
    }

    /// Asks for a restore of the artifacts into a place; the digest.
    fn ask(&self, to: &str) -> String {
        let to = self.host.path(to).display().to_string();
        let ask = ["approval", "request", "restore", "latest", "--artifacts", &to, "--reason", "the disk died", "--json"];
        digest(&self.host.lifeboat(&ask).run().success())
    }

    fn restore(&self, digest: &str) -> Output {
        self.host.lifeboat(&["restore", "--approved", digest, "--json"]).run()
    }

    /// Objects of approvals whose names hold this.
    fn objects(&self, name: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut waiting = vec![self.host.path("repository/approvals")];
        while let Some(path) = waiting.pop() {
            if path.is_dir() {
                waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.to_string_lossy().contains(name) {
                found.push(path);
            }
        }
        found
    }
}

/// The plan that somebody asked for.
fn digest(output: &Output) -> String {
    output.json()["plan"].as_str().unwrap_or_else(|| panic!("no digest\n{output}")).to_owned()
}

#[test]
fn a_restore_runs_as_two_others_approved_it() {
    let place = Place::new();
    let cluster = place.server(Postgres::V16);
    place.backup();
    Place::beat(&cluster, 1);
    place.archive(&cluster);
    let (alice, bob) = (Person::new(), Person::new());
    let (key, line) = bob.ssh_key("id_ed25519");
    let host = Person { home: temp_dir() };
    host.write("allowed_signers", &format!("bob@example.com {line}\n"));
    let signing = place.path(".config/lifeboat/signing.pub");
    let approvals = format!(
        "[approvals]\nallowed_signers = \"{}\"\n[approvals.persons]\nalice = [\"{}\"]\n",
        host.path("allowed_signers").display(),
        alice.hint()
    );
    let own = fs::read_to_string(place.path("lifeboat.toml")).unwrap();
    let trusted = format!("keys = [\"{}\", \"{}\"]", signing.display(), alice.public_key().display());
    place.write("lifeboat.toml", &format!("{}{approvals}", own.replace("keys = [\".config/lifeboat/signing.pub\"]", &trusted)));
    let elsewhere = format!("[[repository]]\nurl = \"{}\"\n[trust]\n{trusted}\n{approvals}", place.path("repository").display());
    for person in [&alice, &bob] {
        person.write("lifeboat.toml", &elsewhere);
    }

    let data = place.path("restored").display().to_string();
    let wanted = ["restore", "latest", "--start", "--pgdata", &data];
    let ask: Vec<&str> = ["approval", "request"].into_iter().chain(wanted).chain(["--reason", "the primary burnt down"]).collect();
    let asked = place.lifeboat(&ask).run().success();
    let plan =
        asked.stdout.lines().find_map(|line| line.trim().strip_prefix("lifeboat approval grant ")).expect("what others type").to_owned();
    assert!(asked.stdout.contains(&format!("lifeboat restore --approved {plan}")), "{asked}");
    let run = |words: &[&str]| place.lifeboat(&[&["restore", "--approved", &plan, "--json"], words].concat()).run();
    let alone = run(&[]).expect_code(20);
    assert!(alone.stderr.contains("nobody approved it") && alone.stderr.contains("hint: "), "{alone}");
    let own = place.lifeboat(&["approval", "grant", &plan, "--yes"]).run().expect_code(20);
    assert!(own.stderr.contains("they asked for it themselves"), "{own}");

    // alice, with a key; she is shown what will be done.
    let asks = alice.lifeboat(&["approval", "grant", &plan]).run().expect_code(2);
    assert!(asks.stderr.contains("nobody is there to be asked"), "{asks}");
    for part in
        [format!("database    into {data}"), "the primary burnt down".into(), "server      is started".into(), "restore_command = ".into()]
    {
        assert!(asks.stderr.contains(&part), "{part}\n{asks}");
    }
    let granted = alice.lifeboat(&["approval", "grant", &plan, "--yes", "--comment", "seen", "--json"]).run().success().json();
    assert_eq!((&granted["approval"]["approver"], &granted["approval"]["kind"]), (&Value::from("alice"), &Value::from("key")));

    // bob, with a key of SSH, on a machine where lifeboat need not be.
    let text = bob.lifeboat(&["approval", "text", &plan]).run().success().stdout;
    bob.write("approval.txt", &text);
    let mut sign = Command::new("ssh-keygen");
    sign.args(["-q", "-Y", "sign", "-n", SSH_NAMESPACE, "-f"]).arg(&key).arg(bob.path("approval.txt"));
    expect_success(Owner::current().run(&mut sign).current_dir("/"));
    let signature = bob.path("approval.txt.sig").display().to_string();
    let granted = bob.lifeboat(&["approval", "grant", &plan, "--ssh-signature", &signature, "--yes", "--json"]).run().success().json();
    assert_eq!((&granted["approval"]["approver"], &granted["approval"]["kind"]), (&Value::from("bob@example.com"), &Value::from("ssh")));
    let listed = alice.lifeboat(&["approval", "list", "--json"]).run().success().json();
    assert_eq!((&listed["requests"][0]["state"], listed["requests"][0]["approvals"].as_array().unwrap().len()), (&Value::from("open"), 2));

    // Meanwhile there is more WAL: whoever plans now plans something else. What was approved runs.
    Place::beat(&cluster, 2);
    place.archive(&cluster);
    let anew = place.lifeboat(&[&wanted[..], &["--dry-run", "--json"]].concat()).run().success().json();
    assert_ne!(anew["digest"], plan.as_str());
    for other in [
        &["--pgdata", "/somewhere/else"][..],
        &["--standalone"],
        &["--target-immediate"],
        &["--archive-mode", "preserve"],
        &["--tablespace", "a=/b"],
    ] {
        let moved = run(other).expect_code(2);
        assert!(moved.stderr.contains("says something else than the plan"), "{moved}");
    }
    place.lifeboat(&["restore", "plant-backup-20200101T000000Z", "--approved", &plan]).run().expect_code(2);
    // The same command line again, with the digest behind it.
    let again = [&wanted[..], &["--approved", &plan, "--json"]].concat();
    let (moments, document) = place.started(Path::new(&data), place.lifeboat(&again).run().success());
    assert!(moments.starts_with('1'), "{moments}");
    assert_eq!(document["digest"], plan.as_str());

    // Once.
    let again = run(&[]).expect_code(20);
    assert!(again.stderr.contains("was used"), "{again}");
    let listed = bob.lifeboat(&["approval", "list"]).run().success();
    assert!(listed.stdout.contains("used") && listed.stdout.contains(&plan), "{listed}");
    place.lifeboat(&["verify", "--all"]).run().success();
}

#[test]
fn nobody_approves_alone_or_twice() {
    let office = Office::new();
    office.backup();
    let plan = office.ask("out");
    // alice twice, with two keys.
    office.alice.lifeboat(&["approval", "grant", &plan, "--yes"]).run().success();
    let ssh = office.alice_ssh.display().to_string();
    let twice = office.alice.lifeboat(&["approval", "grant", &plan, "--yes", "--ssh-key", &ssh]).run().expect_code(20);
    assert!(twice.stderr.contains("alice is counted already") && twice.stderr.contains("nothing was stored"), "{twice}");
    // bob asks himself, and answers.
    let bob = office.bob_ssh.display().to_string();
    let to = office.bob.path("mine").display().to_string();
    let ask = ["approval", "request", "restore", "latest", "--artifacts", &to, "--reason", "I want it", "--ssh-key", &bob, "--json"];
    let own = digest(&office.bob.lifeboat(&ask).run().success());
    let refused = office.bob.lifeboat(&["approval", "grant", &own, "--yes", "--ssh-key", &bob]).run().expect_code(20);
    assert!(refused.stderr.contains("they asked for it themselves"), "{refused}");
    let none = office.bob.lifeboat(&["restore", "--approved", &own]).run().expect_code(20);
    assert!(none.stderr.contains("nobody approved it"), "{none}");
    // A key that nobody is known by.
    let (stranger, _) = office.bob.ssh_key("id_stranger");
    let stranger = stranger.display().to_string();
    let refused = office.bob.lifeboat(&["approval", "grant", &plan, "--yes", "--ssh-key", &stranger]).run().expect_code(20);
    assert!(refused.stderr.contains("no line names its key"), "{refused}");
    assert_eq!(office.objects("bob@example.com-").len(), 0);
    office.restore(&plan).success();
    assert_eq!(fs::read_to_string(office.host.path("out/log.txt")).unwrap(), "built");
}

#[test]
fn what_was_changed_or_taken_away_does_not_run() {
    let office = Office::new();
    office.backup();
    let plan = office.ask("out");
    office.alice.lifeboat(&["approval", "grant", &plan, "--yes"]).run().success();
    let [object] = office.objects("plan.json").try_into().unwrap();
    let bytes = fs::read(&object).unwrap();
    let put = |bytes: &[u8]| {
        fs::remove_file(&object).unwrap();
        fs::write(&object, bytes).unwrap();
        Owner::current().own(&object);
    };
    // One byte of the plan.
    let mut other = bytes.clone();
    let at = other.windows(3).position(|part| part == b"out").unwrap();
    other[at] = b'O';
    put(&other);
    let refused = office.restore(&plan).expect_code(21);
    assert!(refused.stderr.contains("has digest"), "{refused}");
    office.bob.lifeboat(&["approval", "show", &plan]).run().expect_code(21);
    put(&bytes);
    // The approval.
    let [approval] = office.objects("/alice-").try_into().unwrap();
    let kept = fs::read(&approval).unwrap();
    fs::remove_file(&approval).unwrap();
    office.restore(&plan).expect_code(20);
    // Under the request of another plan.
    let second = office.ask("out2");
    let [request] =
        office.objects(&second).into_iter().filter(|path| path.ends_with("request.sigstore.json")).collect::<Vec<_>>().try_into().unwrap();
    let replayed = request.with_file_name(approval.file_name().unwrap());
    fs::write(&replayed, &kept).unwrap();
    Owner::current().own(&replayed);
    let refused = office.restore(&second).expect_code(20);
    assert!(refused.stderr.contains("nobody approved it") && refused.stderr.contains("about something else"), "{refused}");
    fs::write(&approval, &kept).unwrap();
    Owner::current().own(&approval);
    // A directory that is no longer empty: said before the approvals are used up.
    fs::create_dir(office.host.path("out")).unwrap();
    office.host.write("out/precious", "x");
    office.restore(&plan).expect_code(1);
    fs::remove_dir_all(office.host.path("out")).unwrap();
    office.restore(&plan).success();
    assert_eq!(office.objects("used.json").len(), 1);
}

#[test]
fn a_plan_that_runs_twice_at_once_runs_once() {
    let office = Office::new();
    office.backup();
    let plan = office.ask("out");
    office.alice.lifeboat(&["approval", "grant", &plan, "--yes"]).run().success();
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..4).map(|_| scope.spawn(|| office.restore(&plan))).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let ran = outputs.iter().filter(|output| output.code == Some(0)).count();
    assert_eq!(ran, 1, "{}", outputs.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    // Some came when it was over or found the directory in use; none ran.
    assert!(outputs.iter().all(|output| matches!(output.code, Some(0 | 1 | 20))));
    assert_eq!(office.objects("used.json").len(), 1);
}

#[test]
fn a_prune_runs_only_while_its_plan_is_the_one_that_was_approved() {
    let office = Office::new();
    let first = office.backup();
    let second = office.backup();
    let expire = ["expire", "--keep-last", "1", "--grace", "0s"];
    office.host.lifeboat(&expire).run().success();
    let ask = ["approval", "request", "prune", "--reason", "room is short", "--json"];
    let asked = || digest(&office.host.lifeboat(&ask).run().success());
    let plan = asked();
    let shown = office.alice.lifeboat(&["approval", "show", &plan]).run().success();
    assert!(shown.stdout.contains(&format!("deletes     backup {first}")) && shown.stdout.contains("room is short"), "{shown}");
    office.alice.lifeboat(&["approval", "grant", &plan, "--yes"]).run().success();
    // Work goes on: new artifacts and their heads are no reason to ask again.
    office.host.lifeboat(&["artifact", "put", "more.txt", "files/log.txt"]).run().success();
    // Another backup that goes is.
    office.backup();
    office.host.lifeboat(&expire).run().success();
    let prune = |plan: &str| office.host.lifeboat(&["prune", "--approved", plan, "--json"]).run();
    let refused = prune(&plan).expect_code(20);
    assert!(refused.stderr.contains("the plan is another one now") && refused.stderr.contains(&format!("backup {second}")), "{refused}");
    assert!(office.host.path("repository").join(&first).join("manifest.json").exists());
    assert_eq!(office.objects("used.json").len(), 0);
    // Asked again, with what it is now; the approval of a restore is none of a prune.
    let anew = asked();
    assert_ne!(anew, plan);
    prune(&anew).expect_code(20);
    office.bob.lifeboat(&["approval", "grant", &anew, "--yes", "--ssh-key", &office.bob_ssh.display().to_string()]).run().success();
    office.host.lifeboat(&["restore", "--approved", &anew]).run().expect_code(21);
    let pruned = prune(&anew).success().json();
    assert!(pruned["deleted"].as_u64().unwrap() > 0, "{pruned:#}");
    assert!(!office.host.path("repository").join(&first).join("manifest.json").exists());
    prune(&anew).expect_code(20);
    // What was approved and used is still there to be looked at: a prune does not touch it.
    assert_eq!(office.objects("plan.json").len(), 2);
    office.host.lifeboat(&["verify", "--all"]).run().success();
}

#[test]
fn keys_are_handed_out_to_whom_it_was_approved() {
    let office = Office::new();
    let backup = office.backup();
    let recipient = fs::read_to_string(office.bob.path(".config/lifeboat/recipients.txt")).unwrap().trim().to_owned();
    let what = ["key-export", backup.as_str(), "--to", &recipient, "--reason", "an audit"];
    let plan = digest(&office.host.lifeboat(&[&["approval", "request", "--json"][..], &what].concat()).run().success());
    let shown = office.alice.lifeboat(&["approval", "show", &plan]).run().success();
    assert!(shown.stdout.contains(&format!("hands out   the data keys of {backup}")) && shown.stdout.contains(&recipient), "{shown}");
    let file = office.host.path("keys.json").display().to_string();
    let export = |to: &str| office.host.lifeboat(&["key", "export", &backup, "--to", to, "--output", &file, "--approved", &plan]).run();
    export(&recipient).expect_code(20);
    office.alice.lifeboat(&["approval", "grant", &plan, "--yes"]).run().success();
    // To somebody else it was not approved.
    let other = fs::read_to_string(office.alice.path(".config/lifeboat/recipients.txt")).unwrap();
    let refused = export(other.trim()).expect_code(20);
    assert!(refused.stderr.contains("another one") && !Path::new(&file).exists(), "{refused}");
    export(&recipient).success();
    assert!(Path::new(&file).exists());
    fs::remove_file(&file).unwrap();
    export(&recipient).expect_code(20);
    assert!(!Path::new(&file).exists());
}

#[test]
fn an_agent_signs_for_whom_it_has_the_key() {
    let office = Office::new();
    office.backup();
    let plan = office.ask("out");
    let socket = office.bob.path("agent.sock");
    let mut command = Command::new("ssh-agent");
    command.args(["-D", "-a"]).arg(&socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut agent = Owner::current().run(&mut command).current_dir("/").spawn().unwrap();
    let begun = Instant::now();
    while !socket.exists() {
        assert!(begun.elapsed() < DEADLINE, "the agent has no socket");
        std::thread::sleep(Duration::from_millis(10));
    }
    let grant = || {
        let words = ["approval", "grant", &plan, "--yes", "--ssh-key", "agent", "--json"];
        office.bob.lifeboat(&words).env("SSH_AUTH_SOCK", &socket).run()
    };
    let add = |key: &Path| {
        let mut add = Command::new("ssh-add");
        expect_success(Owner::current().run(add.arg("-q").arg(key).env("SSH_AUTH_SOCK", &socket)).current_dir("/"));
    };
    let empty = grant().expect_code(12);
    assert!(empty.stderr.contains("choose a key of the SSH agent"), "{empty}");
    // One that nobody is known by is not offered.
    add(&office.bob.ssh_key("id_other").0);
    grant().expect_code(12);
    add(&office.bob_ssh);
    let granted = grant().success().json();
    assert_eq!(granted["approval"]["approver"], "bob@example.com");
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[test]
fn people_are_told_and_a_messenger_that_fails_is_no_obstacle() {
    let office = Office::new();
    office.backup();
    let configuration = fs::read_to_string(office.host.path("lifeboat.toml")).unwrap();
    let with = |command: &str| {
        office.host.write("lifeboat.toml", &configuration.replace("[approvals]\n", &format!("[approvals]\nalert_command = {command}\n")));
    };
    let told = office.host.path("told.json");
    with(&format!("[\"sh\", \"-c\", \"cat > {}\"]", told.display()));
    let plan = office.ask("out");
    let document: Value = serde_json::from_slice(&fs::read(&told).unwrap()).unwrap();
    assert_eq!((&document["event"], &document["plan"]), (&Value::from("approval-requested"), &Value::from(plan.as_str())));
    assert_eq!(
        (&document["reason"], document["approve"].as_str()),
        (&Value::from("the disk died"), Some(format!("lifeboat approval grant {plan}").as_str()))
    );
    with("[\"/no/such/messenger\"]");
    let ask = ["approval", "request", "restore", "latest", "--artifacts", "/srv/x", "--reason", "again"];
    let asked = office.host.lifeboat(&ask).run().success();
    assert!(asked.stderr.contains("nobody may have been told"), "{asked}");
}

#[test]
fn what_is_missing_or_wrong_is_said_in_a_line() {
    let office = Office::new();
    office.backup();
    let to = office.host.path("out").display().to_string();
    let ask =
        |words: &[&str]| office.host.lifeboat(&[&["approval", "request", "restore", "latest", "--artifacts", &to], words].concat()).run();
    let refused = ask(&[]).expect_code(2);
    assert!(refused.stderr.contains("say why"), "{refused}");
    ask(&["--reason", "a\u{1b}[2Jb"]).expect_code(2);
    ask(&["--reason", " "]).expect_code(2);
    ask(&["--reason", "x", "--dry-run"]).expect_code(2);
    office.host.lifeboat(&["list", "--break-glass", ""]).run().expect_code(2);
    let refused = ask(&["--reason", "x", "--open-for", "25h"]).expect_code(20);
    assert!(refused.stderr.contains("24 hours at most"), "{refused}");
    assert!(!office.host.path("repository/approvals").exists());
    let nothing = "ab".repeat(32);
    for words in [&["approval", "show", &nothing][..], &["approval", "grant", &nothing, "--yes"], &["restore", "--approved", &nothing]] {
        let refused = office.host.lifeboat(words).run().expect_code(1);
        assert!(refused.stderr.contains("nobody asked for it") && refused.stderr.contains("hint: lifeboat approval list"), "{refused}");
    }
    office.host.lifeboat(&["approval", "show", "ABCD"]).run().expect_code(2);
    office.host.lifeboat(&["approval", "list"]).run().success();
    // It would be over before it is signed.
    let short = ask(&["--reason", "x", "--open-for", "1ms"]).expect_code(20);
    assert!(short.stderr.contains("it expired at"), "{short}");
}

#[test]
fn a_protected_environment_takes_as_many_people_as_its_policy_says_or_broken_glass() {
    let office = Office::new();
    office.backup();
    for person in [&office.host, &office.alice, &office.bob] {
        let text = fs::read_to_string(person.path("lifeboat.toml")).unwrap();
        person.write("lifeboat.toml", &format!("{text}[policy]\nenvironment = \"production\"\n"));
    }
    // Into the running system's own directory: that takes two. Nobody is asked to look up how.
    let inside = |name: &str| office.host.path("files").join(name).display().to_string();
    let alone = ["restore", "latest", "--artifacts", &inside("back"), "--json"];
    let refused = office.host.lifeboat(&alone).run().expect_code(20);
    assert!(refused.stderr.contains("has 0 of 2 approvals") && refused.stderr.contains("lifeboat approval request restore"), "{refused}");
    let glass = [&alone[..], &["--break-glass", "the site is down and nobody answers"]].concat();
    let refused = office.host.lifeboat(&glass).run().expect_code(20);
    assert!(
        refused.stderr.contains("has 0 of 2 approvals") && refused.stderr.contains("does not let the glass be broken here"),
        "{refused}"
    );
    assert!(refused.stderr.contains("denies it all the same"), "{refused}");
    assert!(!Path::new(&inside("back")).exists());

    let digest = office.ask("files/back");
    office.alice.lifeboat(&["approval", "grant", &digest, "--yes"]).run().success();
    let refused = office.restore(&digest).expect_code(20);
    assert!(refused.stderr.contains("has 1 of 2 approvals (alice)"), "{refused}");
    assert!(!Path::new(&inside("back")).exists());
    let key = office.bob_ssh.display().to_string();
    office.bob.lifeboat(&["approval", "grant", &digest, "--yes", "--ssh-key", &key]).run().success();
    office.restore(&digest).success();
    assert!(Path::new(&inside("back/log.txt")).is_file());
    let again = office.restore(&digest);
    assert!(again.code != Some(0), "{again}");

    // What the policy allows alone is told to everybody, and stands out.
    let shown = office.host.lifeboat(&["policy", "show"]).run().success();
    let open = shown.stdout.replace("\"break_glass\": {\"allowed\": false", "\"break_glass\": {\"allowed\": true");
    assert!(open != shown.stdout, "{shown}");
    office.host.write("policy.rego", &open);
    let text = fs::read_to_string(office.host.path("lifeboat.toml")).unwrap();
    let told = office.host.path("told.json");
    let alert = format!("[approvals]\nalert_command = [\"sh\", \"-c\", \"cat >> {}\"]\n", told.display());
    let text = text.replace("[approvals]\n", &alert).replace("[policy]\n", "[policy]\npath = \"policy.rego\"\n");
    office.host.write("lifeboat.toml", &text);
    let glass = |reason: &'static str, to: &'static str| {
        let to = inside(to);
        office.host.lifeboat(&["restore", "latest", "--artifacts", &to, "--break-glass", reason]).run()
    };
    let short = glass("because", "other").expect_code(20);
    assert!(short.stderr.contains("at least 10 characters"), "{short}");
    let broken = glass("the site is down and nobody answers", "other").success();
    assert!(broken.stderr.contains("THE GLASS IS BROKEN"), "{broken}");
    let document: Value = serde_json::from_str(&fs::read_to_string(&told).unwrap()).unwrap();
    assert_eq!(document["event"], "break-glass");
    assert_eq!(document["facts"]["break_glass"]["reason"], "the site is down and nobody answers");

    let listed = office.host.lifeboat(&["audit", "list", "--operation", "restore", "--json"]).run();
    let entries = listed.json()["entries"].as_array().unwrap().clone();
    let states: Vec<&str> = entries.iter().map(|entry| entry["state"].as_str().unwrap()).collect();
    assert_eq!(states.iter().filter(|state| **state == "done").count(), 2, "{states:?}");
    let approved = entries.iter().find(|entry| entry["state"] == "done").unwrap();
    assert_eq!(approved["start"]["approvers"].as_array().unwrap().len(), 2, "{approved:#}");
    assert_eq!(approved["start"]["plan"], digest.as_str());
    let alone = entries.iter().rfind(|entry| entry["state"] == "done").unwrap();
    assert_eq!(alone["start"]["break_glass"]["reason"], "the site is down and nobody answers", "{alone:#}");
}
