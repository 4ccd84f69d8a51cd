//! moto's S3 and KMS server for whole runs of the program: a store whose Object Lock is partly fake, and, with headers left out on the way, one that
//! ignores what it is asked. A server of its own per test, ended with the value.
//!
//! It must not use lifeboat.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use lifeboat_s3::{Bucket, Config, DefaultRetention, Mode, Period};

use crate::cluster::setting;
use crate::seaweed::{ACCESS_KEY, BUCKET, SECRET_KEY};

/// A running server.
pub(crate) struct Moto {
    child: Child,
    port: u16,
}

/// The interpreter that the tests' packages are installed for.
pub(crate) fn python() -> Command {
    let python = setting("LIFEBOAT_TEST_PYTHON").expect("LIFEBOAT_TEST_PYTHON is not set: run scripts/setup test");
    let mut command = Command::new(python);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// A file beside this one.
pub(crate) fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(name)
}

impl Moto {
    /// Starts it; these headers never reach it.
    pub(crate) fn start(strip: &[&str]) -> Self {
        let mut command = python();
        command.arg(script("moto_server.py")).args(strip).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("Python can be run");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it prints its port");
        let port = line.trim().parse().unwrap_or_else(|_| panic!("moto did not start: run scripts/setup test ({line:?})"));
        Self { child, port }
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A bucket with versions and Object Lock; objects stay for a day, it says.
    pub(crate) fn make_bucket(&self, place: &Path) -> Bucket {
        let profiles = place.join("aws-credentials-of-moto");
        std::fs::write(&profiles, format!("[test]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"))
            .expect("own directory");
        let config = Config {
            bucket: BUCKET.into(),
            endpoint: Some(self.endpoint()),
            region: Some("us-east-1".into()),
            profile: Some("test".into()),
            profile_file: Some(profiles),
            ..Config::default()
        };
        let lock = DefaultRetention { mode: Mode::Governance, period: Period::Days(1) };
        Bucket::create(&config, Some(lock)).expect("a new server takes a bucket")
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
