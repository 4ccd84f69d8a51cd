//! fake-gcs-server on loopback: an emulator of Google Cloud Storage that others wrote, ended with the value. It knows the same protocol
//! from elsewhere, but it overwrites with a resumable upload whatever condition that was begun with.
//!
//! It must not skip: where it is not installed, the test fails and says how to install it.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long it may take to answer. Generous: it only ends tests that would hang for ever.
const DEADLINE: Duration = Duration::from_secs(90);

/// A running emulator.
pub(crate) struct FakeGcs {
    child: Child,
    port: u16,
    _place: tempfile::TempDir,
}

impl FakeGcs {
    /// Starts one and waits until it listens.
    pub(crate) fn start() -> Self {
        let program = setting("LIFEBOAT_TEST_FAKE_GCS").expect("LIFEBOAT_TEST_FAKE_GCS is not set: run scripts/setup test");
        assert!(Path::new(&program).is_file(), "fake-gcs-server is not at {program}: run scripts/setup test");
        // Between the choice of a port and its use, somebody else may take it.
        for _ in 0..5 {
            if let Some(server) = Self::try_start(&program) {
                return server;
            }
        }
        panic!("fake-gcs-server did not start on any of five ports");
    }

    fn try_start(program: &str) -> Option<Self> {
        let place = tempfile::Builder::new().prefix("lb-gcs-").tempdir().expect("can make a temporary directory");
        let port = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports").local_addr().expect("bound").port();
        let log = File::create(place.path().join("log")).expect("own directory");
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(program);
        command.args(["-scheme", "http", "-host", "127.0.0.1", "-port", &port.to_string(), "-backend", "memory", "-log-level", "error"]);
        command.args(["-public-host", &address, "-external-url", &format!("http://{address}"), "-data", "none"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("own file")).stderr(log);
        command.env_clear().env("HOME", place.path()).current_dir(place.path());
        let child = command.spawn().expect("fake-gcs-server can be run");
        let mut server = Self { child, port, _place: place };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if server.child.try_wait().expect("own child").is_some() {
                return None;
            }
            assert!(begun.elapsed() < DEADLINE, "fake-gcs-server does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for FakeGcs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A setting of the machine's test tools: from the environment, else from the file that `scripts/setup` wrote.
fn setting(variable: &str) -> Option<String> {
    if let Ok(value) = std::env::var(variable) {
        return Some(value);
    }
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/env")).ok()?;
    let prefix = format!("export {variable}=");
    let quoted = text.lines().find_map(|line| line.strip_prefix(&prefix))?;
    // As bash's printf %q writes it: a backslash before what is special, two quotes for nothing.
    (quoted != "''").then(|| quoted.replace('\\', ""))
}
