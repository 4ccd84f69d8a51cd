//! Documents held against a JSON schema, by Python's jsonschema.

use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file of this crate, or of the repository.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// What does not fit. `schema.py` closes the schema: a member that it does not describe does not pass.
pub(crate) fn check(schema: &Path, documents: &[impl Display]) -> Result<(), String> {
    let python =
        std::env::var("LIFEBOAT_TEST_PYTHON").expect("LIFEBOAT_TEST_PYTHON is not set: run scripts/setup test, and load .tools/env");
    let mut command = Command::new(python);
    command.arg("-B").arg(path("tests/policy/schema.py")).arg(schema).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = documents.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let wanted = format!("checked {} and ", documents.len());
    if output.status.success() && text.starts_with(&wanted) && text.lines().count() == 1 { Ok(()) } else { Err(text) }
}
