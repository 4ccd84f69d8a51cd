//! Keys through the command: rotated, stolen and revoked, handed out; what counts afterwards, and what does not.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::temp_dir;
use crate::program::{Output, Program};
use crate::rescue::rescue;

/// A host with artifacts, and keys that lifeboat made for it.
struct Host {
    home: TempDir,
}

impl Host {
    fn new() -> Host {
        let host = Host { home: temp_dir() };
        host.program().args(["key", "generate"]).run().success();
        fs::create_dir(host.at("artifacts")).unwrap();
        fs::write(host.at("artifacts/log"), "built").unwrap();
        host
    }

    /// Another one with copies of the same keys, as they are now: a second server, or a thief.
    fn twin(&self) -> Host {
        let home = temp_dir();
        fs::create_dir_all(home.path().join(".config/lifeboat")).unwrap();
        for entry in fs::read_dir(self.keys()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, home.path().join(".config/lifeboat").join(path.file_name().unwrap())).unwrap();
        }
        fs::create_dir(home.path().join("artifacts")).unwrap();
        Host { home }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn keys(&self) -> PathBuf {
        self.at(".config/lifeboat")
    }

    fn program(&self) -> Program {
        Program::new(&self.home)
    }

    fn on(&self, repository: &Path) -> Program {
        self.program().arg("--repository").arg(repository)
    }

    /// Takes a backup of the artifacts, of which `content` is new; returns its id and when it ended.
    fn backup(&self, repository: &Path, content: &str) -> (String, String) {
        fs::write(self.at("artifacts/new"), content).unwrap();
        let taken = self.program().env("LIFEBOAT_ARTIFACTS", self.at("artifacts")).args(["backup", "--json", "--output"]).arg(repository);
        let taken = taken.run().success().json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&taken["backup"]), text(&taken["manifest"]["finished"]))
    }

    fn verify(&self, repository: &Path, backup: &str) -> Output {
        self.on(repository).args(["verify", backup]).run()
    }

    fn hint(&self) -> String {
        let listed = self.program().args(["key", "list", "--json"]).run().success().json();
        let here = listed["signers"].as_array().unwrap().iter().find(|row| row["signs_here"] == true).expect("one signs");
        here["signer"].as_str().unwrap().to_owned()
    }

    /// The state of every trusted signer, in their order.
    fn states(&self) -> Vec<String> {
        let listed = self.program().args(["key", "list", "--json"]).run().success().json();
        listed["signers"].as_array().unwrap().iter().map(|row| row["state"].as_str().unwrap().to_owned()).collect()
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_rotated_key_leaves_what_it_signed_and_signs_no_more() {
    let host = Host::new();
    let repository = host.at("repository");
    let (old, finished) = host.backup(&repository, "by the old key");
    let left_behind = host.twin();
    let first = host.hint();
    let before = names(&host.keys());

    let planned = host.program().args(["key", "rotate", "--dry-run"]).run().success();
    assert!(planned.stdout.contains("signing-2.key"), "{planned}");
    assert_eq!(names(&host.keys()), before);
    // Without a configuration the keys are lifeboat's own, and so is what says which of them signs.
    let rotated = host.program().args(["key", "rotate", "--json", "--old-until", &finished]).run().success();
    assert!(rotated.stderr.contains("restart whatever signs for long"), "{rotated}");
    let rotated = rotated.json();
    assert_eq!(rotated["old"]["hint"], first.as_str());
    let second = rotated["new"]["hint"].as_str().unwrap().to_owned();
    assert_eq!(host.hint(), second);
    assert_eq!(host.states(), ["retired", "trusted"]);
    for kept in ["signing.key", "signing.pub", "signing.password"] {
        assert_eq!(fs::read(host.keys().join(kept)).unwrap(), fs::read(left_behind.keys().join(kept)).unwrap(), "{kept}");
    }

    let (new, _) = host.backup(&repository, "by the new key");
    host.verify(&repository, &old).success();
    host.verify(&repository, &new).success();
    let shown = host.on(&repository).args(["show", &new]).run().success();
    assert!(shown.stdout.contains(&second), "{shown}");
    host.on(&repository).args(["artifact", "verify"]).run().success();

    // A host that was not told goes on with the old key: it is told when somebody reads what it wrote.
    let (late, _) = left_behind.backup(&repository, "too late");
    let refused = host.verify(&repository, &late).expect_code(21);
    assert!(refused.stderr.contains("trusted until"), "{refused}");
    let refused = host.on(&repository).args(["restore", &late, "--artifacts", "restored"]).run().expect_code(21);
    assert!(refused.stderr.contains("trusted until") && refused.stderr.contains("key list"), "{refused}");
    host.verify(&repository, &new).success();

    // And again: nothing is overwritten, also not what a rotation that was cut off left behind.
    fs::write(host.keys().join("signing-3.pub"), "left behind").unwrap();
    host.program().args(["key", "rotate"]).run().success();
    assert!(host.keys().join("signing-4.key").is_file());
    assert_eq!(host.states(), ["retired", "trusted", "trusted"]);
    host.verify(&repository, &new).success();
    let (newest, _) = host.backup(&repository, "by the newest");
    host.verify(&repository, &newest).success();
}

#[test]
fn a_configuration_file_changes_where_it_has_to_and_nowhere_else() {
    let host = Host::new();
    let repository = host.at("repository");
    let path = host.at("lifeboat.toml");
    let text = format!(
        "# Ours. Ask before you change it.\nname = \"conductor\"\n\n[[repository]]\nurl = \"{}\"\n\n[signing]\nkey_file = \"{}\" # the first\n\n[trust]\nkeys = [\n    # the host itself\n    {{ file = \"{}\", person = \"db1\" }}, # since March\n]\n",
        repository.display(),
        host.keys().join("signing.key").display(),
        host.keys().join("signing.pub").display(),
    );
    fs::write(&path, &text).unwrap();
    host.program().arg("init").run().success();
    let printed = host.program().args(["key", "rotate"]).run().success();
    assert!(printed.stdout.contains("Nothing signs with it yet") && printed.stdout.contains("not_after"), "{printed}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    host.program().args(["key", "rotate", "--write-config", "--old-until", "2020-01-01T00:00:00Z"]).run().success();
    let changed = fs::read_to_string(&path).unwrap();
    let line =
        |needle: &str| changed.lines().find(|line| line.contains(needle)).unwrap_or_else(|| panic!("{needle}: {changed}")).to_owned();
    assert!(line("key_file").ends_with("signing-3.key\" # the first"), "{changed}");
    assert!(line("signing.pub").contains("person = \"db1\"") && line("signing.pub").ends_with(" # since March"), "{changed}");
    assert!(line("signing.pub").contains("not_after = \"2020-01-01T00:00:00Z\""), "{changed}");
    assert!(line("signing-3.pub").contains("person = \"db1\"") && !line("signing-3.pub").contains("not_after"), "{changed}");
    for kept in ["# Ours. Ask before you change it.", "    # the host itself", "name = \"conductor\""] {
        assert!(changed.lines().any(|line| line == kept), "{changed}");
    }
    assert_eq!(host.states(), ["retired", "trusted"]);
    let (id, _) = host.backup(&repository, "by the new key");
    host.verify(&repository, &id).success();
    // What is in the environment cannot be changed from here.
    let fixed = host.program().env("LIFEBOAT_SIGNING_KEY", host.keys().join("signing.key"));
    fixed.args(["key", "rotate", "--write-config"]).run().expect_code(2);
    assert!(!host.keys().join("signing-4.key").exists(), "a key was made that nobody uses");
}

#[test]
fn a_stolen_key_takes_nothing_with_it_and_adds_nothing() {
    let host = Host::new();
    let repository = host.at("repository");
    let (old, _) = host.backup(&repository, "before the theft");
    let thief = host.twin();
    let stolen = host.hint();
    let (loot, _) = thief.backup(&repository, "the thief's");
    let theft = manifest(&repository, &loot)["started"].as_str().unwrap().to_owned();
    let revoke = |more: &[&str]| {
        let revoke = host.on(&repository).args(["key", "revoke", &stolen[..12], "--since", &theft, "--reason", "laptop lost"]);
        revoke.args(more).run()
    };
    revoke(&["--reason", " "]).expect_code(2);
    host.on(&repository).args(["key", "revoke", "nobody", "--since", &theft, "--reason", "x"]).run().expect_code(2);
    host.on(&repository).args(["key", "revoke", &stolen, "--since", "2999-01-01T00:00:00Z", "--reason", "x"]).run().expect_code(2);
    let told = revoke(&["--dry-run", "--json"]).success().json();
    let fates: Vec<(&str, &str)> =
        told["backups"].as_array().unwrap().iter().map(|row| (row["backup"].as_str().unwrap(), row["fate"].as_str().unwrap())).collect();
    assert_eq!(fates, [(old.as_str(), "dated"), (loot.as_str(), "lost")]);
    assert_eq!(told["statements"]["artifact"]["lost"], 1, "{told}");
    assert_eq!(told["statements"]["artifact"]["dated"], 2, "{told}");
    assert_eq!(host.states(), ["trusted"]);

    let revoked = revoke(&[]).success();
    assert!(revoked.stdout.contains("1 stop to count, 1 are vouched for"), "{revoked}");
    assert!(revoked.stderr.contains("earlier times") && revoked.stderr.contains("still signs with the revoked key"), "{revoked}");
    assert_eq!(host.states(), ["revoked"]);
    host.verify(&repository, &old).success();
    let refused = host.verify(&repository, &loot).expect_code(21);
    assert!(refused.stderr.contains("laptop lost") && refused.stderr.contains("nobody vouched"), "{refused}");
    let restored = host.at("restored");
    host.on(&repository).args(["restore", &old, "--artifacts"]).arg(&restored).run().success();
    assert_eq!(fs::read_to_string(restored.join("new")).unwrap(), "before the theft");

    // Whatever time the thief writes from now on: it is not on the list. A statement on it cannot be made to say something else.
    let forged = forge(&repository, &old, &thief);
    host.verify(&repository, &forged).expect_code(21);
    // A new key goes on.
    host.on(&repository).args(["key", "rotate"]).run().success();
    let (new, _) = host.backup(&repository, "after");
    host.verify(&repository, &new).success();
    assert_eq!(host.states(), ["revoked", "trusted"]);
    host.verify(&repository, &old).success();

    // The list is part of the trust: without it nobody knows, and that is said.
    let list = names(&host.keys()).into_iter().find(|name| name.starts_with("known-good-")).unwrap();
    fs::remove_file(host.keys().join(list)).unwrap();
    let failed = host.verify(&repository, &old).expect_code(12);
    assert!(failed.stderr.contains("known good"), "{failed}");
}

#[test]
fn a_revocation_that_vouches_for_less() {
    let host = Host::new();
    let repository = host.at("repository");
    let (first, _) = host.backup(&repository, "first");
    let (second, finished) = host.backup(&repository, "second");
    let later: jiff::Timestamp = finished.parse().unwrap();
    let since = (later + jiff::SignedDuration::from_nanos(1)).to_string();
    let stolen = host.hint();
    let revoke = |more: &[&str]| {
        host.on(&repository).args(["key", "revoke", &stolen, "--since", &since, "--reason", "stolen", "--json"]).args(more).run()
    };
    revoke(&["--except", "conductor-backup-20000101T000000Z"]).expect_code(2);
    let told = revoke(&["--except", &second]).success().json();
    assert_eq!(told["backups"][1]["fate"], "lost");
    host.verify(&repository, &first).success();
    host.verify(&repository, &second).expect_code(21);
    // An earlier moment takes more; a later one takes nothing back.
    let never = host.on(&repository).args(["key", "revoke", &stolen, "--since", "2020-01-01T00:00:00Z", "--reason", "older"]);
    let told = never.args(["--vouch-for-nothing", "--json"]).run().success().json();
    assert_eq!((told["vouched_for"].as_u64(), told["known_good"].is_null()), (Some(0), true));
    host.verify(&repository, &first).expect_code(21);
    revoke(&[]).expect_code(2);
}

#[test]
fn an_artifact_key_signs_no_backup() {
    let host = Host::new();
    let repository = host.at("repository");
    let (id, _) = host.backup(&repository, "x");
    let reader = |kinds: &str| {
        let path = host.at("reader.toml");
        let key = host.keys().join("signing.pub");
        let text = format!(
            "[[repository]]\nurl = \"{}\"\n[trust]\nkeys = [{{ file = \"{}\", for = {kinds} }}]\n",
            repository.display(),
            key.display()
        );
        fs::write(&path, text).unwrap();
        host.program().arg("--config").arg(path).args(["verify", &id]).run()
    };
    let refused = reader("[\"artifact\", \"wal\"]").expect_code(21);
    assert!(refused.stderr.contains("not for backup"), "{refused}");
    let refused = reader("[\"backup\"]").expect_code(21);
    assert!(refused.stderr.contains("not for artifact"), "{refused}");
    reader("[\"backup\", \"artifact\"]").success();
}

#[test]
fn keys_of_one_backup_open_that_one() {
    let host = Host::new();
    let repository = host.at("repository");
    let (one, _) = host.backup(&repository, "one");
    let (two, _) = host.backup(&repository, "two");
    let reader = Host::new();
    let recipient = fs::read_to_string(reader.keys().join("recipients.txt")).unwrap().trim().to_owned();
    let out = host.at("keys.json");
    let export = |backup: &str, to: &str| host.on(&repository).args(["key", "export", backup, "--to", to, "--output"]).arg(&out);
    export(&one, "age1nonsense").run().expect_code(2);
    let planned = export(&one, &recipient).args(["--dry-run", "--json"]).run().success().json();
    assert_eq!(planned["plan_digest"].as_str().unwrap().len(), 64);
    assert!(!out.exists());
    // Who cannot read it cannot hand it out.
    export(&one, &recipient)
        .arg("--identity")
        .arg(reader.keys().join("identity.txt"))
        .env("XDG_CONFIG_HOME", reader.at("nowhere"))
        .run()
        .expect_code(12);
    export(&one, &recipient).run().success();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&out).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    export(&two, &recipient).run().expect_code(1);

    let rescued = |backup: &str, to: &Path| {
        let program = rescue(&reader.home, &repository).args(["artifacts", backup, "--key"]).arg(host.keys().join("signing.pub"));
        program.arg("--identity").arg(reader.keys().join("identity.txt")).arg("--to").arg(to)
    };
    rescued(&one, &reader.at("without")).run().expect_code(12);
    rescued(&one, &reader.at("with")).arg("--export").arg(&out).run().success();
    assert_eq!(fs::read_to_string(reader.at("with/new")).unwrap(), "one");
    rescued(&two, &reader.at("other")).arg("--export").arg(&out).run().expect_code(2);
}

/// Who may write to the repository must not choose which keys are handed out.
#[test]
fn a_key_that_somebody_slipped_into_a_header_is_not_handed_out() {
    let host = Host::new();
    let repository = host.at("repository");
    let (one, _) = host.backup(&repository, "one");
    let (two, _) = host.backup(&repository, "two");
    let secret = manifest(&repository, &two)["encryption"]["keys"][0].clone();
    // The blob of an artifact of the first backup, with the second backup's data key in its header.
    let digest = lifeboat_core::repository::Sha256::of(b"one").to_string();
    let blob = repository.join("artifacts/blobs").join(&digest[..2]).join(&digest);
    let bytes = fs::read(&blob).unwrap();
    let length = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[12..12 + length]).unwrap();
    header["key"] = secret["id"].clone();
    header["wrapped"] = secret["wrapped"].clone();
    let header = serde_json::to_vec(&header).unwrap();
    let forged = [&bytes[..8], &(header.len() as u32).to_le_bytes(), &header, &bytes[12 + length..]].concat();
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, forged).unwrap();
    let recipient = fs::read_to_string(host.keys().join("recipients.txt")).unwrap().trim().to_owned();
    let out = host.at("keys.json");
    host.on(&repository).args(["key", "export", &one, "--to", &recipient, "--output"]).arg(&out).run().expect_code(21);
    assert!(!out.exists());
}

fn manifest(repository: &Path, backup: &str) -> Value {
    serde_json::from_slice(&fs::read(repository.join(backup).join("manifest.json")).unwrap()).unwrap()
}

/// A backup of the thief's own that claims to be a day older than `old`: manifest and statement say so, and the stolen key signed that.
fn forge(repository: &Path, old: &str, thief: &Host) -> String {
    use lifeboat_core::attestation::backup_statement;
    use lifeboat_engine::signing::{KeyFileSigner, Signer as _};
    let id = "conductor-backup-20000101T000000Z";
    let mut forged = manifest(repository, old);
    forged["id"] = id.into();
    for time in ["started", "finished"] {
        forged[time] = "2000-01-01T00:00:00Z".into();
    }
    let bytes = serde_json::to_vec(&forged).unwrap();
    let password = fs::read_to_string(thief.keys().join("signing.password")).unwrap();
    let key = fs::read_to_string(thief.keys().join("signing.key")).unwrap();
    let signer = KeyFileSigner::open(&key, password.trim_end().as_bytes()).unwrap();
    let digest = lifeboat_core::repository::Sha256::of(&bytes);
    let statement = backup_statement(id, digest.0, serde_json::json!({"finished": "2000-01-01T00:00:00Z"}));
    let directory = repository.join(id);
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("manifest.sigstore.json"), signer.sign_statement(&statement.to_bytes()).unwrap()).unwrap();
    fs::write(directory.join("manifest.json"), bytes).unwrap();
    id.to_owned()
}
