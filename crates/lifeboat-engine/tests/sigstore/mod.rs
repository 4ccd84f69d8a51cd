//! A Sigstore instance on loopback (`server.cjs`), and the verifiers of others that judge what is signed with it. One per test, ended with
//! the value. It must not use lifeboat.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// Whom the tokens of the instance name, and who says so.
pub(crate) const SUBJECT: &str = "https://github.com/lifeboat/db/.github/workflows/backup.yml@refs/heads/main";
pub(crate) const ISSUER: &str = "https://issuer.lifeboat.test";

/// A running instance.
pub(crate) struct Sigstore {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    directory: tempfile::TempDir,
    pub(crate) url: String,
}

/// What the tests need, from the environment that `.tools/env` sets.
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/setup test, and load .tools/env"))
}

fn engine_tests() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("a crate stands beside others").join("lifeboat-engine/tests")
}

fn stock_verifier(script: &str) -> PathBuf {
    engine_tests().join("../../../tools/stock-verifier").join(script)
}

impl Sigstore {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(setting("LIFEBOAT_TEST_NODE"));
        // Node.js 20 can wait for itself for ever when it collects a generated key while it exports another one (the destructor of KeyGenJob takes a
        // lock that is held). With room for all that it makes, it does not collect.
        command.args(["--min-semi-space-size=64", "--max-semi-space-size=64"]);
        command.arg(engine_tests().join("sigstore/server.cjs")).arg(setting("LIFEBOAT_TEST_SIGSTORE_MOCK")).arg(directory.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Node.js can be run");
        let (input, mut output) = (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")));
        let mut line = String::new();
        output.read_line(&mut line).expect("it prints its URL");
        assert!(line.starts_with("http://127.0.0.1:"), "it did not start: {line:?}");
        Self { child, input, output, directory, url: line.trim().to_owned() }
    }

    /// A file that it wrote: `trusted_root.json`, `other_root.json`, `signing_config.json`, `token` and others.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn tell(&mut self, command: &Value) -> Value {
        writeln!(self.input, "{command}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The next requests of this path are answered with this status.
    pub(crate) fn fail(&mut self, path: &str, status: u16, times: u32) {
        self.tell(&serde_json::json!({"fail": path, "status": status, "times": times}));
    }

    /// From now on this clock (`ca`, `tsa`, `log`) is ahead.
    pub(crate) fn set_ahead(&mut self, whose: &str, seconds: i64) {
        self.tell(&serde_json::json!({"ahead": whose, "seconds": seconds}));
    }

    /// Requests of this path so far.
    pub(crate) fn requests(&mut self, path: &str) -> u64 {
        self.tell(&serde_json::json!({"count": path})).as_u64().unwrap()
    }
}

impl Drop for Sigstore {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a verifier says: what it prints, if it verifies, or else why not.
pub(crate) type Verdict = Result<String, String>;

fn judge(command: &mut Command) -> Verdict {
    let output = command.output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        Some(0) => Ok(text),
        Some(1) => Err(text),
        other => panic!("{command:?} ended with {other:?}: {text}"),
    }
}

/// A bundle with a certificate, over a file.
#[derive(Clone, Copy)]
pub(crate) struct Claim<'a> {
    pub(crate) file: &'a Path,
    pub(crate) bundle: &'a Path,
    pub(crate) predicate_type: &'a str,
    pub(crate) identity: &'a str,
}

/// `@sigstore/verify`, JavaScript.
pub(crate) fn javascript(root: &Path, claim: &Claim<'_>) -> Verdict {
    let mut command = Command::new(setting("LIFEBOAT_TEST_NODE"));
    command.env("NODE_PATH", setting("LIFEBOAT_TEST_NODE_MODULES")).arg(stock_verifier("verify-certificate.cjs"));
    judge(command.args([claim.file, claim.bundle, root]).args([claim.identity, ISSUER]))
}

/// `@sigstore/verify` for a bundle with a key and a timestamp.
pub(crate) fn javascript_with_key(root: &Path, file: &Path, bundle: &Path, key: &Path) -> Verdict {
    let mut command = Command::new(setting("LIFEBOAT_TEST_NODE"));
    command.env("NODE_PATH", setting("LIFEBOAT_TEST_NODE_MODULES")).arg(stock_verifier("verify.cjs"));
    judge(command.args([file, bundle, key, root]))
}

/// sigstore-python. It takes a trusted root as part of a trust config.
pub(crate) fn python(trust_config: &Path, claim: &Claim<'_>) -> Verdict {
    let mut command = Command::new(setting("LIFEBOAT_TEST_PYTHON"));
    command.args(["-m", "sigstore", "--trust-config"]).arg(trust_config).args(["verify", "identity", "--offline"]);
    command.args(["--cert-identity", claim.identity, "--cert-oidc-issuer", ISSUER, "--bundle"]).arg(claim.bundle).arg(claim.file);
    judge(&mut command)
}

/// sigstore-go, inside `gh`.
pub(crate) fn go(root_jsonl: &Path, claim: &Claim<'_>) -> Verdict {
    let mut command = Command::new(setting("LIFEBOAT_TEST_GH"));
    // It wants to be signed in, and then asks nobody.
    command.env("GH_TOKEN", "none").env("GH_NO_UPDATE_NOTIFIER", "1").args(["attestation", "verify"]).arg(claim.file);
    command.arg("--bundle").arg(claim.bundle).arg("--custom-trusted-root").arg(root_jsonl).args(["--owner", "lifeboat"]);
    command.args(["--cert-identity", claim.identity, "--cert-oidc-issuer", ISSUER, "--predicate-type", claim.predicate_type]);
    judge(&mut command)
}
