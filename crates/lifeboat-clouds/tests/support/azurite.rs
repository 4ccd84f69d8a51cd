//! Azurite on loopback: Microsoft's own emulator of Azure Storage, in a directory of its own, ended with the value.
//!
//! Used by the tests of several crates. It must not skip: where it is not installed, the test fails and says how to install it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The account of every Azurite.
pub(crate) const ACCOUNT: &str = "devstoreaccount1";
/// Its key, which everybody knows ("Use the Azurite emulator for local Azure Storage development").
pub(crate) const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// How long it may take to answer. Generous: it only ends tests that would hang for ever.
const DEADLINE: Duration = Duration::from_secs(180);

/// A running emulator.
pub(crate) struct Azurite {
    child: Child,
    port: u16,
    directory: PathBuf,
    _place: tempfile::TempDir,
}

impl Azurite {
    /// Starts one and waits until it answers.
    pub(crate) fn start() -> Self {
        let program = setting("LIFEBOAT_TEST_AZURITE").expect("LIFEBOAT_TEST_AZURITE is not set: run scripts/setup test");
        let node = setting("LIFEBOAT_TEST_NODE").expect("LIFEBOAT_TEST_NODE is not set: run scripts/setup test");
        assert!(Path::new(&program).is_file(), "Azurite is not at {program}: run scripts/setup test");
        // Between the choice of a port and its use, somebody else may take it.
        for _ in 0..5 {
            if let Some(server) = Self::try_start(&node, &program) {
                return server;
            }
        }
        panic!("Azurite did not start on any of five ports");
    }

    fn try_start(node: &str, program: &str) -> Option<Self> {
        let place = tempfile::Builder::new().prefix("lb-azurite-").tempdir().expect("can make a temporary directory");
        let directory = place.path().to_owned();
        let port = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports").local_addr().expect("bound").port();
        let log = File::create(directory.join("log")).expect("own directory");
        let mut command = Command::new(node);
        command.arg(program).args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--silent", "--disableTelemetry"]);
        command.args(["--skipApiVersionCheck", "--location"]).arg(&directory);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("own file")).stderr(log);
        command.env_clear().env("HOME", &directory).env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir(&directory);
        let child = command.spawn().expect("node can be run");
        let mut server = Self { child, port, directory, _place: place };
        let begun = Instant::now();
        while !server.answers() {
            if server.child.try_wait().expect("own child").is_some() {
                return None;
            }
            assert!(begun.elapsed() < DEADLINE, "Azurite did not answer:\n{}", server.log());
            thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    /// `http://127.0.0.1:PORT/ACCOUNT`
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What it printed.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
        let _ = stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).is_ok() && answer == *b"HTTP/"
    }
}

impl Drop for Azurite {
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
