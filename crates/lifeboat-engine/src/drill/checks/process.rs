//! A program that is run for what it says: with a time limit, its output kept in bounds, and nothing of it left behind.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// Bytes that are kept of the beginning of an output.
const HEAD_BYTES: usize = 1 << 20;

/// Bytes that are kept of its end.
const TAIL_BYTES: usize = 64 << 10;

/// How long the end of an output is waited for after the program ended: somebody else may hold it open.
const DRAIN: Duration = Duration::from_secs(2);

/// What to run.
pub(super) struct Run<'a> {
    pub(super) program: &'a Path,
    pub(super) arguments: &'a [String],
    /// All of its environment.
    pub(super) environment: &'a [(String, String)],
    pub(super) directory: &'a Path,
    /// User and group, where we are root; it has no other groups then.
    pub(super) run_as: Option<(u32, u32)>,
    pub(super) timeout: Duration,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Code(i32),
    Signal(i32),
    TimedOut,
}

/// What came of it.
pub(super) struct Ended {
    pub(super) how: How,
    /// What it wrote to its output and its errors, in the order in which it came.
    pub(super) output: Output,
}

/// The beginning and the end of what a program wrote.
#[derive(Debug, Clone, Default)]
pub(super) struct Output {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    bytes: u64,
}

impl Output {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        let room = HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.tail.extend(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
        let excess = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
    }

    /// The beginning.
    pub(super) fn head(&self) -> String {
        String::from_utf8_lossy(&self.head).into_owned()
    }

    /// The last lines.
    pub(super) fn last_lines(&self, count: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
    }
}

impl Run<'_> {
    /// Runs it to its end. Whatever it started in its process group ends with it.
    pub(super) fn run(&self) -> io::Result<Ended> {
        let (mut reader, writer) = io::pipe()?;
        let mut command = Command::new(self.program);
        command.args(self.arguments.iter().map(OsStr::new)).env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.directory).process_group(0);
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        if let Some((uid, gid)) = self.run_as.filter(|_| rustix::process::geteuid().is_root()) {
            command.uid(uid).gid(gid);
        }
        let mut child = command.spawn()?;
        // Closes our ends of the pipe: the reader is to see its end.
        drop(command);
        let output = Arc::new(Mutex::new(Output::default()));
        let (done, drained) = mpsc::channel();
        let kept = Arc::clone(&output);
        // Not joined: a process that left the group may keep the pipe open for as long as it likes.
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(bytes) = reader.read(&mut buffer)
                && bytes > 0
            {
                kept.lock().expect("no panic while held").take(&buffer[..bytes]);
            }
            let _ = done.send(());
        });
        let pid = Pid::from_child(&child);
        let in_time = wait(pid, self.timeout)?;
        // While the child is not reaped its number, and so that of the group, is nobody else's.
        let _ = kill_process_group(pid, Signal::KILL);
        let status = child.wait()?;
        let _ = drained.recv_timeout(DRAIN);
        let how = match (in_time, status.code(), status.signal()) {
            (false, ..) => How::TimedOut,
            (true, Some(code), _) => How::Code(code),
            (true, None, signal) => How::Signal(signal.unwrap_or_default()),
        };
        let output = output.lock().expect("no panic while held").clone();
        Ok(Ended { how, output })
    }
}

/// Waits until a child has ended, without reaping it. False: it has not.
fn wait(pid: Pid, timeout: Duration) -> io::Result<bool> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        match waitid(WaitId::Pid(pid), options) {
            Ok(Some(_)) => return Ok(true),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let left = timeout.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> Ended {
        let arguments = ["-c".to_owned(), script.to_owned()];
        let environment = [("PATH".to_owned(), "/usr/bin:/bin".to_owned()), ("ONLY".to_owned(), "this".to_owned())];
        let run = Run {
            program: Path::new("/bin/sh"),
            arguments: &arguments,
            environment: &environment,
            directory: Path::new("/"),
            run_as: None,
            timeout,
        };
        run.run().unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn output_errors_and_codes_come_back() {
        let ended = shell("echo one; echo two >&2; echo $ONLY $HOME; exit 3", LONG);
        assert_eq!((ended.how, ended.output.head().as_str()), (How::Code(3), "one\ntwo\nthis\n"));
        assert_eq!(shell("kill -9 $$", LONG).how, How::Signal(9));
    }

    #[test]
    fn an_endless_output_is_kept_in_bounds() {
        let ended = shell("yes x | head -c 30000000; echo; echo last", LONG);
        assert_eq!(ended.how, How::Code(0));
        assert_eq!((ended.output.head.len(), ended.output.tail.len(), ended.output.bytes), (HEAD_BYTES, TAIL_BYTES, 30_000_006));
        assert_eq!(ended.output.last_lines(2), ["x", "last"]);
    }

    #[test]
    fn the_time_limit_ends_all_of_the_group() {
        let ended = shell("sleep 600 & echo $!; sleep 600", Duration::from_millis(300));
        assert_eq!(ended.how, How::TimedOut);
        let background: i32 = ended.output.head().trim().parse().unwrap();
        let gone = |pid| rustix::process::test_kill_process(Pid::from_raw(pid).unwrap()).is_err();
        let begun = Instant::now();
        // Whoever inherits it reaps it in its own time; a zombie does nothing any more.
        let zombie = || std::fs::read_to_string(format!("/proc/{background}/stat")).is_ok_and(|stat| stat.contains(") Z "));
        while !gone(background) && !zombie() {
            assert!(begun.elapsed() < LONG, "process {background} goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
        // What is left running in the background ends as well when the program itself ends well.
        let ended = shell("sleep 600 & echo $!", LONG);
        assert_eq!(ended.how, How::Code(0));
    }
}
