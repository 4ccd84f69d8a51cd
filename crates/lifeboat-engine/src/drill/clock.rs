//! A wrong clock: this program is run once more, with a clock that is wrong by hours and by years, to verify the backup.
//!
//! Recovery goes by positions in WAL and asks no clock. What asks one is trust: windows of keys, certificates, timestamps; and stores, some of
//! which refuse whoever comes from another time. Refusing is right. What must not happen is that sound data is called damaged, or that
//! nobody hears of it. The clock is `faketime`'s (Debian's package of that name).

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::drill::controls::one_line;

/// How far the clock is off in each run: a time zone taken for another, and a battery that was empty.
const OFFSETS: [&str; 3] = ["+14h", "-14h", "-3000d"];

/// The exit code of a verification that found something missing, corrupt or unsigned.
const UNVERIFIED: i32 = 21;

/// Exit codes that say in order that something cannot be done: failed, wrong key or credentials, denied.
const REFUSALS: [i32; 3] = [1, 12, 20];

/// Whether the clock of another program moves.
fn moves(faketime: &str) -> bool {
    let year = |offset: &str| Command::new(faketime).args(["-f", offset, "/bin/date", "+%Y"]).output().ok().map(|output| output.stdout);
    year("-3000d").zip(year("+0")).is_some_and(|(then, now)| then != now && !then.is_empty())
}

/// This program, and the command line that verifies the backup of the drill with it.
#[derive(Debug, Clone)]
pub struct Verification {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// What came of it.
pub(super) enum Skewed {
    /// It verified with every clock, or refused without calling anything damaged; in words.
    Holds(String),
    /// Sound data was called damaged, or the run did not end.
    Fails(String),
    /// It cannot be tried here.
    NotHere(String),
}

/// Runs it with each of the wrong clocks.
pub(super) fn skewed(verification: &Verification, directory: &Path, timeout: Duration) -> Skewed {
    let faketime = ["/usr/bin/faketime", "/usr/local/bin/faketime"].into_iter().find(|path| Path::new(path).is_file());
    let Some(faketime) = faketime else {
        return Skewed::NotHere("there is no faketime on this host: apt-get install faketime".into());
    };
    match run(faketime, "+0", verification, directory, timeout) {
        Ok((0, _)) => {}
        Ok((code, said)) => return Skewed::NotHere(format!("with the right clock it ended with {code}: {said}")),
        Err(problem) => return Skewed::NotHere(format!("with the right clock: {problem}")),
    }
    if !moves(faketime) {
        return Skewed::NotHere("faketime does not move the clock of programs here".into());
    }
    let (mut verified, mut refused) = (Vec::new(), Vec::new());
    for offset in OFFSETS {
        match run(faketime, offset, verification, directory, timeout) {
            Ok((0, _)) => verified.push(offset),
            Ok((UNVERIFIED, said)) => return Skewed::Fails(format!("with a clock {offset} off, sound data was called damaged: {said}")),
            Ok((code, said)) if REFUSALS.contains(&code) => refused.push(format!("{offset}: ended with {code}: {said}")),
            Ok((code, said)) => return Skewed::Fails(format!("with a clock {offset} off, it ended with {code}: {said}")),
            Err(problem) => return Skewed::Fails(format!("with a clock {offset} off: {problem}")),
        }
    }
    let mut said = match verified.is_empty() {
        false => format!("the backup verifies with a clock {} off", verified.join(", ")),
        true => "nothing was called damaged".to_owned(),
    };
    if !refused.is_empty() {
        said.push_str(&format!("; refused, with the reason, at {}", refused.join("; ")));
    }
    Skewed::Holds(said)
}

/// The exit code, and the last line that it said.
fn run(faketime: &str, offset: &str, verification: &Verification, directory: &Path, timeout: Duration) -> Result<(i32, String), String> {
    let log = directory.join(format!("lifeboat-clock-{}.log", std::process::id()));
    let file = std::fs::File::create(&log).map_err(|error| format!("write {}: {error}", log.display()))?;
    let mut command = Command::new(faketime);
    command.arg("-f").arg(offset).arg(&verification.program).args(&verification.arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    // A group of its own: faketime runs the program as a child.
    command.process_group(0);
    let mut child = command.spawn().map_err(|error| format!("run {faketime}: {}", one_line(error)))?;
    let begun = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if begun.elapsed() < timeout => std::thread::sleep(Duration::from_millis(20)),
            ended => {
                if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                }
                let _ = child.wait();
                return Err(match ended {
                    Err(error) => format!("wait for it: {error}"),
                    _ => format!("it did not end within {} s", timeout.as_secs()),
                });
            }
        }
    };
    let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    let _ = std::fs::remove_file(&log);
    let line = text.lines().find(|line| line.starts_with("error: ")).or(text.lines().last()).unwrap_or("no message");
    Ok((status.code().unwrap_or(-1), line.trim_start_matches("error: ").to_owned()))
}
