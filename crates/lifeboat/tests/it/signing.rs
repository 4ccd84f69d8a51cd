//! Every way to sign, through the program: keys that services hold, certificates, timestamps. What is signed counts, and what does not
//! count is refused with its exit code and without a secret in it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::bao::{Bao, ROOT_TOKEN};
use crate::cluster::{expect_success, temp_dir};
use crate::moto::{Moto, python};
use crate::program::{Output, Program};
use crate::sigstore::{Claim, ISSUER, SUBJECT, Sigstore};

/// A host with artifacts and a configuration.
struct Host {
    home: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Host {
    /// `signing` and `trust` are the lines of their tables.
    fn new(signing: &str, trust: &str) -> Self {
        let host = Self { home: temp_dir(), variables: Vec::new() };
        fs::create_dir(host.at("artifacts")).unwrap();
        for name in ["one", "two", "three"] {
            fs::write(host.at("artifacts").join(name), name).unwrap();
        }
        host.configure(signing, trust);
        host
    }

    fn configure(&self, signing: &str, trust: &str) {
        let text = format!(
            "[[repository]]\nurl = 'repository'\n[artifacts]\ndirectory = 'artifacts'\n[encryption]\nnone = 'I accept plain backups'\n\
             [signing]\n{signing}\n[trust]\n{trust}\n"
        );
        fs::write(self.at("lifeboat.toml"), text).unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut program = Program::new(&self.home);
        for (name, value) in &self.variables {
            program = program.env(name, value);
        }
        program.args(arguments).run()
    }

    /// Tries the signer, takes a backup, verifies it; returns the backup's id.
    #[track_caller]
    fn signs(&self) -> String {
        self.run(&["init"]).success();
        let doctor = self.run(&["doctor", "--json"]).json();
        let codes: Vec<&str> = doctor["findings"].as_array().unwrap().iter().map(|finding| finding["code"].as_str().unwrap()).collect();
        assert!(!codes.contains(&"signing-key") && !codes.contains(&"not-trusted"), "{doctor}");
        let taken = self.run(&["backup", "--json"]).success().json();
        self.run(&["verify", "--all"]).success();
        self.run(&["artifact", "verify"]).success();
        taken["backup"].as_str().unwrap_or_else(|| panic!("no id in {taken}")).to_owned()
    }

    /// The bundle over a backup's manifest.
    fn bundle(&self, id: &str) -> (PathBuf, PathBuf, Value) {
        let directory = self.at("repository").join(id);
        let (manifest, bundle) = (directory.join("manifest.json"), directory.join("manifest.sigstore.json"));
        let value = serde_json::from_str(&fs::read_to_string(&bundle).unwrap()).unwrap();
        (manifest, bundle, value)
    }
}

#[test]
fn certificates_sign_backups_that_count() {
    let mut instance = Sigstore::start();
    let (config, root, token) = (instance.path("signing_config.json"), instance.path("trusted_root.json"), instance.path("token"));
    let signing = format!("keyless = {{ signing_config = '{}', token = {{ file = '{}' }} }}", config.display(), token.display());
    let trust =
        |subject: &str| format!("trusted_root = '{}'\nidentities = [{{ issuer = '{ISSUER}', subject = '{subject}' }}]", root.display());
    let host = Host::new(&signing, &trust(SUBJECT));
    let id = host.signs();
    let (manifest, bundle, value) = host.bundle(&id);
    assert!(value["verificationMaterial"]["certificate"].is_object());
    // One certificate for the probe, one for the whole backup: not one for each artifact.
    assert_eq!(instance.requests("/api/v2/signingCert"), 2);
    let shown = host.run(&["backup"]).success();
    assert!(shown.stdout.contains(&format!("certificate of {SUBJECT}")), "{shown}");
    let none = host.run(&["key", "public"]).expect_code(1);
    assert!(none.stderr.contains("trust.identities"), "{none}");

    // Stock tools accept what the program wrote.
    let claim = Claim { file: &manifest, bundle: &bundle, predicate_type: "https://lifeboat.dev/backup/v1", identity: SUBJECT };
    crate::sigstore::javascript(&root, &claim).unwrap();
    crate::sigstore::python(&instance.path("trust_config.json"), &claim).unwrap();
    crate::sigstore::go(&instance.path("trusted_root.jsonl"), &claim).unwrap();

    // Somebody else is not who is trusted.
    host.configure(&signing, &trust("https://github.com/lifeboat/db/.github/workflows/other.yml@refs/heads/main"));
    host.run(&["verify", "--all"]).expect_code(21);
    host.configure(&signing, &trust(SUBJECT));

    // A token that is not taken, and one that is over.
    for (token, expected) in [("token.strange", "status 401"), ("token.expired", "has expired")] {
        let secret = instance.read(token);
        host.configure(
            &signing.replace(&format!("'{}'", instance.path("token").display()), &format!("'{}'", instance.path(token).display())),
            &trust(SUBJECT),
        );
        let refused = host.run(&["backup"]).expect_code(12);
        assert!(refused.stderr.contains(expected), "{refused}");
        let payload = secret.split('.').nth(1).unwrap();
        assert!(!refused.stderr.contains(payload) && !refused.stdout.contains(payload), "{refused}");
    }

    // As a job of GitHub Actions, which asks for its token.
    let mut host = Host::new(&format!("keyless = {{ signing_config = '{}', ambient = true }}", config.display()), &trust(SUBJECT));
    let nowhere = host.run(&["init"]).success();
    assert_eq!(nowhere.code, Some(0));
    let refused = host.run(&["backup"]).expect_code(12);
    assert!(refused.stderr.contains("no identity token here"), "{refused}");
    host.variables = vec![
        ("GITHUB_ACTIONS", "true".to_owned()),
        ("ACTIONS_ID_TOKEN_REQUEST_URL", format!("{}/token", instance.url)),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "of-the-job".to_owned()),
    ];
    let asked = instance.requests("/token");
    host.run(&["backup"]).success();
    assert_eq!(instance.requests("/token"), asked + 1);
    host.run(&["verify", "--all"]).success();

    // The instance is away.
    instance.fail("/api/v2/log/entries", 503, 1000);
    let away = host.run(&["backup"]).expect_code(1);
    assert!(away.stderr.contains("/api/v2") || away.stderr.contains("transparency log"), "{away}");
}

#[test]
fn a_key_in_the_transit_engine_signs_backups_that_count() {
    let bao = Bao::start();
    bao.make_key("backups", "ecdsa-p256");
    let token = bao.token_for("backups");
    let host = Host::new(
        &format!("transit = {{ address = '{}', key = 'backups', token = {{ file = 'token' }} }}", bao.address),
        "keys = ['backups.pub']",
    );
    fs::write(host.at("token"), &token).unwrap();
    let public = |version: &str| {
        let keys: Value = serde_json::from_str(&bao.bao(&["read", "-format=json", "transit/keys/backups"])).unwrap();
        keys["data"]["keys"][version]["public_key"].as_str().unwrap().to_owned()
    };
    fs::write(host.at("backups.pub"), public("1")).unwrap();
    host.signs();
    let shown = host.run(&["backup"]).success();
    assert!(shown.stdout.contains("transit key backups"), "{shown}");
    assert_eq!(host.run(&["key", "public"]).success().stdout.trim(), public("1").trim());
    assert!(!host.run(&["config", "show"]).success().stdout.contains(&token));

    // Rotated: what is signed now counts when the new half is trusted too.
    bao.bao(&["write", "-force", "transit/keys/backups/rotate"]);
    host.run(&["backup"]).success();
    host.run(&["verify", "--all"]).expect_code(21);
    fs::write(host.at("second.pub"), public("2")).unwrap();
    host.configure(
        &format!("transit = {{ address = '{}', key = 'backups', token = {{ file = 'token' }} }}", bao.address),
        "keys = ['backups.pub', 'second.pub']",
    );
    host.run(&["verify", "--all"]).success();

    bao.bao(&["token", "revoke", &token]);
    let refused = host.run(&["backup"]).expect_code(12);
    assert!(!refused.stderr.contains(&token) && refused.stderr.contains("docs/signing.md"), "{refused}");
    // As Vault's own programs have it.
    let mut host = Host::new("transit = { key = 'backups' }", "keys = ['backups.pub']");
    fs::write(host.at("backups.pub"), public("2")).unwrap();
    host.run(&["backup"]).expect_code(2);
    host.variables = vec![("VAULT_ADDR", bao.address.clone()), ("VAULT_TOKEN", ROOT_TOKEN.to_owned())];
    host.signs();
}

#[test]
fn a_key_in_aws_kms_signs_backups_that_count() {
    let moto = Moto::start(&[]);
    let script = "import boto3, sys\n\
        kms = boto3.client('kms', endpoint_url=sys.argv[1], region_name='eu-west-1', aws_access_key_id='AKIDTEST', aws_secret_access_key='s')\n\
        def key(spec, usage):\n    return kms.create_key(KeySpec=spec, KeyUsage=usage)['KeyMetadata']['KeyId']\n\
        good = key('ECC_NIST_P256', 'SIGN_VERIFY')\n\
        kms.create_alias(AliasName='alias/backups', TargetKeyId=good)\n\
        kms.create_alias(AliasName='alias/other', TargetKeyId=key('ECC_NIST_P384', 'SIGN_VERIFY'))\n\
        import base64\n\
        print(base64.encodebytes(kms.get_public_key(KeyId=good)['PublicKey']).decode().replace('\\n', ''))\n";
    let made = expect_success(python().args(["-c", script]).arg(moto.endpoint()));
    let spki = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let lines: Vec<&str> = spki.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let signing = |key: &str| format!("aws_kms = {{ key = '{key}', region = 'eu-west-1', endpoint = '{}' }}", moto.endpoint());
    let mut host = Host::new(&signing("alias/backups"), "keys = ['kms.pub']");
    fs::write(host.at("kms.pub"), format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))).unwrap();
    // Nobody's credentials, and no instance to ask.
    host.variables = vec![("AWS_EC2_METADATA_DISABLED", "true".to_owned())];
    host.run(&["init"]).success();
    let refused = host.run(&["backup"]).expect_code(12);
    assert!(refused.stderr.contains("no credentials"), "{refused}");
    host.variables.push(("AWS_ACCESS_KEY_ID", "AKIDTEST".to_owned()));
    host.variables.push(("AWS_SECRET_ACCESS_KEY", "hunter2hunter2".to_owned()));
    fs::remove_dir_all(host.at("repository")).unwrap();
    let id = host.signs();
    let (.., bundle) = host.bundle(&id);
    let output = expect_success(
        Command::new("sh")
            .arg("-c")
            .arg(format!("openssl pkey -pubin -in {} -outform DER | openssl dgst -sha256 -binary | base64", host.at("kms.pub").display())),
    );
    let hint = String::from_utf8(output.stdout).unwrap();
    assert_eq!(bundle["verificationMaterial"]["publicKey"]["hint"], hint.trim());
    let shown = host.run(&["backup"]).success();
    assert!(shown.stdout.contains("AWS KMS key "), "{shown}");
    assert_eq!(host.run(&["key", "public"]).success().stdout, fs::read_to_string(host.at("kms.pub")).unwrap());
    for (key, expected) in [("alias/other", "P-256"), ("alias/nowhere", "NotFoundException")] {
        host.configure(&signing(key), "keys = ['kms.pub']");
        let refused = host.run(&["backup"]).expect_code(1);
        assert!(refused.stderr.contains(expected) && !refused.stderr.contains("hunter2"), "{refused}");
    }
}

#[test]
fn signatures_get_a_timestamp_that_counts() {
    let mut instance = Sigstore::start();
    let host = Host::new("", "");
    host.run(&["key", "generate", "--out", "keys"]).success();
    let signing = |more: &str| {
        format!(
            "key_file = 'keys/signing.key'\npassword = {{ file = 'keys/signing.password' }}\ntimestamp_url = '{}/api/v1/timestamp'\n{more}",
            instance.url
        )
    };
    let (required, best_effort) = (signing(""), signing("timestamp = 'best-effort'"));
    let trust =
        format!("keys = ['keys/signing.pub']\ntrusted_root = '{}'\nrequire_timestamp = true", instance.path("trusted_root.json").display());
    host.configure(&required, &trust);
    let id = host.signs();
    let (manifest, bundle, value) = host.bundle(&id);
    assert_eq!(value["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"].as_array().unwrap().len(), 1);
    crate::sigstore::javascript_with_key(&instance.path("trusted_root.json"), &manifest, &bundle, &host.at("keys/signing.pub")).unwrap();

    instance.fail("/api/v1/timestamp", 503, 100_000);
    fs::write(host.at("artifacts/new"), "new").unwrap();
    let away = host.run(&["backup"]).expect_code(1);
    assert!(away.stderr.contains("timestamp"), "{away}");
    host.configure(&best_effort, &trust);
    let without = host.run(&["backup", "--json"]).success();
    assert_eq!(without.stderr.matches("without a timestamp").count(), 1, "{without}");
    // And it counts only for those who do not insist.
    host.run(&["verify", "--all"]).expect_code(21);
    host.configure(&best_effort, &trust.replace("require_timestamp = true", ""));
    host.run(&["verify", "--all"]).success();

    // Without a root nobody could verify them.
    host.configure(&required, "keys = ['keys/signing.pub']");
    let refused = host.run(&["backup"]).expect_code(2);
    assert!(refused.stderr.contains("trusted_root"), "{refused}");
}
