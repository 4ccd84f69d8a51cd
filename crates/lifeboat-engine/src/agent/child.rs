//! A process of the agent: begun, listened to, and ended when it must be.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crossbeam_channel::Receiver;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, set_parent_process_death_signal};

use super::Shared;

/// The most bytes of one line that are passed on.
const MAX_LINE: u64 = 16 << 10;

/// How a process ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its exit code; `None`: a signal ended it, or it never began.
    pub(super) exit_code: Option<u8>,
    /// Why it ended, where that was not its own doing.
    pub(super) how: How,
    /// What it printed, if that was to be kept and was not too much.
    pub(super) printed: Option<Vec<u8>>,
}

/// Whose doing it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum How {
    /// Its own.
    Itself,
    /// It took too long, or was told to.
    Ended,
    /// It could not be begun, or not be waited for.
    Trouble(String),
    /// A signal that was not ours.
    Signal(i32),
}

/// What is run.
pub(super) struct Work<'a> {
    /// What it is called in what is said.
    pub(super) name: &'a str,
    /// Behind the program and what every command gets.
    pub(super) arguments: Vec<OsString>,
    /// It is ended when this becomes ready, or is disconnected.
    pub(super) end: &'a Receiver<()>,
    /// It is ended after this.
    pub(super) deadline: Option<Duration>,
    /// So many bytes of what it prints are kept; 0: none.
    pub(super) keep: u64,
}

/// Runs it to its end. Called on a thread that does nothing else: the process ends when that does.
pub(super) fn run(shared: &Shared, work: &Work<'_>) -> Ended {
    let trouble =
        |what: &str, error: std::io::Error| Ended { exit_code: None, how: How::Trouble(format!("{what}: {error}")), printed: None };
    let mut child = match begin(shared, work) {
        Ok(child) => child,
        Err(error) => return trouble("begin it", error),
    };
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let printed = output.map(|output| scope.spawn(move || keep(output, work.keep)));
        if let Some(errors) = errors {
            scope.spawn(move || pass_on(shared, work.name, errors));
        }
        let (sender, over) = crossbeam_channel::bounded(1);
        let pid = child.id();
        scope.spawn(move || sender.send(child.wait()));
        let (waited, ended) = watch(shared, work, pid, &over);
        let printed = printed.and_then(|thread| thread.join().ok().flatten());
        match waited {
            Ok(status) => Ended { exit_code: status.code().and_then(|code| u8::try_from(code).ok()), how: how(status, ended), printed },
            Err(error) => trouble("wait for it", error),
        }
    })
}

fn how(status: ExitStatus, ended: bool) -> How {
    match status.signal() {
        _ if ended => How::Ended,
        Some(signal) => How::Signal(signal),
        None => How::Itself,
    }
}

fn begin(shared: &Shared, work: &Work<'_>) -> std::io::Result<Child> {
    let (program, common) = shared.settings.command.split_first().ok_or(std::io::ErrorKind::NotFound)?;
    let mut command = Command::new(program);
    command.args(common).args(&work.arguments).envs(shared.surroundings.environment());
    // A group of its own: what it has begun can be ended with it, and a Ctrl-C is for the agent, which ends all in order.
    command.process_group(0).stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(if work.keep > 0 { Stdio::piped() } else { Stdio::null() });
    // SAFETY: between fork and exec only prctl(2) is called, which is a system call and nothing else.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
    }
    command.spawn()
}

/// Waits for it, and ends it when it must be. Returns whether it was.
fn watch(shared: &Shared, work: &Work<'_>, pid: u32, over: &Receiver<std::io::Result<ExitStatus>>) -> (std::io::Result<ExitStatus>, bool) {
    let lost = || Err(std::io::ErrorKind::BrokenPipe.into());
    let late = work.deadline.map_or_else(crossbeam_channel::never, crossbeam_channel::after);
    crossbeam_channel::select! {
        recv(over) -> waited => return (waited.unwrap_or_else(|_| lost()), false),
        recv(work.end) -> _ => {}
        recv(shared.stop.channel()) -> _ => {}
        recv(late) -> _ => shared.warn(&format!("{} takes longer than its deadline and is ended", work.name)),
    }
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(process) = process {
        let _ = kill_process(process, Signal::TERM);
    }
    let waited = over.recv_timeout(shared.settings.grace);
    if waited.is_err() {
        shared.warn(&format!("{} did not end within {} s of being told to, and is killed", work.name, shared.settings.grace.as_secs()));
    }
    // With all that it has begun: nothing of it goes on.
    if let Some(process) = process {
        let _ = kill_process_group(process, Signal::KILL);
    }
    (waited.unwrap_or_else(|_| over.recv().unwrap_or_else(|_| lost())), true)
}

/// Reads to the end, and keeps it if it is not too much.
fn keep(mut output: impl Read, most: u64) -> Option<Vec<u8>> {
    let mut printed = Vec::new();
    output.by_ref().take(most + 1).read_to_end(&mut printed).ok()?;
    let whole = printed.len() as u64 <= most;
    std::io::copy(&mut output, &mut std::io::sink()).ok()?;
    whole.then_some(printed)
}

/// Passes on what it says, line by line.
fn pass_on(shared: &Shared, name: &str, errors: impl Read) {
    let mut errors = BufReader::new(errors);
    loop {
        let mut line = Vec::new();
        match errors.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => shared.surroundings.line(name, String::from_utf8_lossy(&line).trim_end()),
        }
    }
}
