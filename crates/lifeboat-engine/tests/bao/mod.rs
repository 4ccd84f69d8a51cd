//! A real OpenBao on loopback, with the transit engine. One per test, ended with the value. It must not use lifeboat.

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The token that may do everything.
pub(crate) const ROOT_TOKEN: &str = "root-token-of-the-test";

/// A running server.
pub(crate) struct Bao {
    child: Child,
    program: String,
    pub(crate) address: String,
}

impl Bao {
    pub(crate) fn start() -> Self {
        let program = std::env::var("LIFEBOAT_TEST_BAO").expect("LIFEBOAT_TEST_BAO is not set: run scripts/setup test");
        // It takes no port 0: one that was free a moment ago, and another if somebody was faster.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut command = Command::new(&program);
            command.args(["server", "-dev", "-dev-no-store-token"]).arg(format!("-dev-root-token-id={ROOT_TOKEN}"));
            command.arg(format!("-dev-listen-address=127.0.0.1:{port}"));
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("bao can be run");
            let mut bao = Self { child, program: program.clone(), address: format!("http://127.0.0.1:{port}") };
            let deadline = Instant::now() + Duration::from_secs(60);
            while bao.child.try_wait().unwrap().is_none() && Instant::now() < deadline {
                if bao.run(&["status"]).status.success() {
                    bao.bao(&["secrets", "enable", "transit"]);
                    return bao;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        panic!("bao does not start");
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.env("BAO_ADDR", &self.address).env("BAO_TOKEN", ROOT_TOKEN);
        command.args(arguments).output().expect("bao can be run")
    }

    /// Runs `bao` with these arguments, as root; returns what it prints.
    pub(crate) fn bao(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "bao {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A key of this type.
    pub(crate) fn make_key(&self, name: &str, kind: &str) {
        self.bao(&["write", "-force", &format!("transit/keys/{name}"), &format!("type={kind}")]);
    }

    /// A token that may sign with this key and see its public halves.
    pub(crate) fn token_for(&self, key: &str) -> String {
        let policy = std::env::temp_dir().join(format!("lifeboat-{}-{key}.hcl", std::process::id()));
        let text = format!(
            "path \"transit/keys/{key}\" {{ capabilities = [\"read\"] }}\npath \"transit/sign/{key}/sha2-256\" {{ capabilities = [\"update\"] }}\n"
        );
        std::fs::write(&policy, text).unwrap();
        self.bao(&["policy", "write", key, &policy.display().to_string()]);
        std::fs::remove_file(&policy).unwrap();
        self.bao(&["token", "create", "-field=token", &format!("-policy={key}"), "-no-default-policy"])
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
