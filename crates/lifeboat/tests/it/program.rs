//! The lifeboat binary as a user runs it: arguments in, exit code and output out, nothing of the caller's environment.
//!
//! It must not reach into the program: what a test cannot see here, a user cannot see either.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

use crate::cluster::{Owner, expect_success};

/// One run of lifeboat, to be given arguments.
#[derive(Debug)]
pub(crate) struct Program {
    command: Command,
    input: Vec<u8>,
}

impl Program {
    /// lifeboat with `home` as the user's home and current directory.
    pub(crate) fn new(home: &TempDir) -> Program {
        Program::at(Path::new(env!("CARGO_BIN_EXE_lifeboat")), home.path())
    }

    /// As [`Program::new`], run by the user that servers run as: for what must work without root, and where root would hide an error.
    /// `home` must be that user's, as [`crate::cluster::temp_dir`] makes it.
    pub(crate) fn as_owner(home: &TempDir) -> Program {
        let mut program = Program::at(&reachable_binary(), home.path());
        Owner::current().run(&mut program.command);
        program
    }

    /// As [`Program::new`], another program: for this fixture's own tests.
    pub(crate) fn at(binary: &Path, home: &Path) -> Program {
        let mut command = Command::new(binary);
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).env("HOME", home).env("XDG_CONFIG_HOME", home.join(".config"));
        command.env("RUST_BACKTRACE", "1").current_dir(home);
        Program { command, input: Vec::new() }
    }

    /// One more argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Program {
        self.command.arg(argument);
        self
    }

    /// More arguments.
    pub(crate) fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Program {
        self.command.args(arguments);
        self
    }

    /// An environment variable, the only kind the program sees beside `PATH` and the home's.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Program {
        self.command.env(name, value);
        self
    }

    /// What the program reads from its standard input; nothing, unless given.
    pub(crate) fn input(mut self, bytes: &[u8]) -> Program {
        self.input = bytes.to_owned();
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self) -> Output {
        let line = format!("{:?} {:?}", self.command.get_program(), self.command.get_args().collect::<Vec<_>>());
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        let mut pipe = child.stdin.take().expect("piped");
        // On a thread, because the program may fill its output before it has read all; it need not read at all.
        let input = self.input;
        let writer = thread::spawn(move || pipe.write_all(&input));
        let output = child.wait_with_output().expect("own child");
        let _ = writer.join().expect("writing does not panic");
        let text =
            |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_else(|error| panic!("{line} printed bytes that are not UTF-8: {error}"));
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Output { line, code: output.status.code(), stdout, stderr }
    }

    /// Starts it and leaves it to the test, which must end it. What it prints goes to files in its current directory: `stdout`, `stderr`.
    pub(crate) fn spawn(mut self) -> Child {
        let home = self.command.get_current_dir().expect("set above").to_owned();
        let file = |name| fs::File::create(home.join(name)).expect("own directory");
        self.command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        self.command.spawn().expect("the program can be run")
    }
}

/// The path of a lifeboat binary that the servers' user can run, for `archive_command` and `restore_command`: the one that cargo built,
/// or a copy of it where that stands in a closed directory.
pub(crate) fn reachable_binary() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_lifeboat"));
    let is_open = built.ancestors().skip(1).all(|directory| fs::metadata(directory).is_ok_and(|meta| meta.mode() & 0o001 != 0));
    if is_open || !rustix::process::geteuid().is_root() {
        return built.to_owned();
    }
    let meta = fs::metadata(built).expect("cargo built it");
    // Whose copy it is stands first (reversed: what is cut off is what all paths share), then which build: cargo makes a new file each time.
    let store = PathBuf::from("/var/cache/lifeboat-test/built");
    let whose = format!("{}-", built.to_string_lossy().replace('/', "_").chars().rev().take(150).collect::<String>());
    let copy = store.join(format!("{whose}{}-{}", meta.ino(), meta.mtime()));
    if !copy.is_file() {
        fs::create_dir_all(&store).expect("root may write there");
        for old in fs::read_dir(&store).expect("own directory").flatten() {
            if old.file_name().to_string_lossy().starts_with(&whose) {
                let _ = fs::remove_file(old.path());
            }
        }
        let aside = tempfile::tempdir_in(&store).expect("own directory");
        let made = aside.path().join("lifeboat");
        // By another process: a program that this one has open for writing at the moment when another thread forks cannot be run.
        expect_success(Command::new("install").args(["-m", "755"]).arg(built).arg(&made));
        fs::rename(&made, &copy).expect("own directory");
    }
    copy
}

/// What a run did.
#[derive(Debug)]
pub(crate) struct Output {
    line: String,
    /// The exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Data.
    pub(crate) stdout: String,
    /// Everything else.
    pub(crate) stderr: String,
}

impl Output {
    /// Panics unless the exit code is 0.
    #[track_caller]
    pub(crate) fn success(self) -> Output {
        self.expect_code(0)
    }

    /// Panics unless the exit code is this one.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Output {
        assert!(self.code == Some(code), "expected exit code {code}\n{self}");
        self
    }

    /// The one JSON document that stdout must be.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("stdout is not one JSON document: {error}\n{self}"))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nexit code {:?}\n--- stdout ---\n{}\n--- stderr ---\n{}", self.line, self.code, self.stdout, self.stderr)
    }
}
