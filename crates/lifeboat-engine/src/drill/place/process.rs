//! Processes of a place, found by where they stand and ended by handles that cannot come to mean another one (pidfd_open(2)).

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::process::is_zombie;

/// How long a server may take to stop, with all that it has to write.
const STOP: Duration = Duration::from_secs(60);

/// How long something that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(10);

struct Found {
    pid: i32,
    name: String,
    handle: OwnedFd,
}

impl Found {
    /// A process, if `is` says so after we hold it.
    fn of(pid: i32, is: impl Fn(i32) -> bool) -> Option<Self> {
        let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        is(pid).then_some(())?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
        Some(Self { pid, name, handle })
    }

    fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    fn is_gone(&self) -> bool {
        // A zombie that its parent has not taken note of runs no more.
        pidfd_send_signal(&self.handle, Signal::CONT).is_err() || is_zombie(self.pid.unsigned_abs())
    }

    fn wait(&self, patience: Duration) -> bool {
        let begun = Instant::now();
        while !self.is_gone() {
            if begun.elapsed() > patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

/// Stops the server of a data directory, if one runs there. `Some`: what it took.
pub(super) fn stop_server(pgdata: &Path) -> Option<String> {
    let lines = crate::restore::server::server_lines(pgdata)?;
    let pid: i32 = lines.first()?.trim().parse().ok().filter(|pid| *pid > 1)?;
    let here = fs::canonicalize(pgdata).ok()?;
    // The number stands in a file that a server wrote that we do not trust: it has to be PostgreSQL, and stand in that directory.
    let is_server = |pid: i32| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok();
        let exe = fs::read_link(format!("/proc/{pid}/exe")).ok();
        let is_postgres = exe.and_then(|exe| exe.file_name().map(|name| name.to_string_lossy().starts_with("postgres")));
        cwd.as_deref() == Some(&here) && is_postgres == Some(true)
    };
    let server = Found::of(pid, is_server)?;
    for (signal, patience) in [(Signal::INT, STOP), (Signal::QUIT, GONE)] {
        server.signal(signal);
        if server.wait(patience) {
            return None;
        }
    }
    server.signal(Signal::KILL);
    server.wait(GONE);
    Some(format!("the server, process {pid}, did not stop and was killed"))
}

/// Ends whatever else runs in a place, or as a user who is only this drill's, and gives what it found. Somebody who merely stands there,
/// to look at something, is named and lives.
pub(super) fn sweep(directory: &Path, user: Option<u32>) -> Vec<String> {
    let pgdata = directory.join("pgdata");
    let uid = |pid: i32| fs::metadata(format!("/proc/{pid}")).ok().map(|found| found.uid());
    let is_ours = |process: &Found| match uid(process.pid) {
        None | Some(0) => false,
        found if user.is_some() && found == user => true,
        Some(_) => fs::read_link(format!("/proc/{}/cwd", process.pid)).is_ok_and(|cwd| cwd.starts_with(&pgdata)),
    };
    // What the server started goes with it, a moment later.
    let begun = Instant::now();
    let mut left = find(directory, user);
    while !left.is_empty() && begun.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(20));
        left = find(directory, user);
    }
    let mut findings = Vec::new();
    for process in left {
        if !is_ours(&process) {
            findings.push(format!("process {} ({}) stands in {}", process.pid, process.name, directory.display()));
            continue;
        }
        process.signal(Signal::KILL);
        let gone = if process.wait(GONE) { "it was killed" } else { "it cannot be killed" };
        findings.push(format!("process {} ({}) was still running; {gone}", process.pid, process.name));
    }
    findings
}

fn find(directory: &Path, user: Option<u32>) -> Vec<Found> {
    let ours = i32::try_from(std::process::id()).unwrap_or(0);
    let stands_in = |pid: i32| {
        ["cwd", "root"].iter().any(|link| fs::read_link(format!("/proc/{pid}/{link}")).is_ok_and(|target| target.starts_with(directory)))
    };
    let is = |pid: i32| {
        let as_user = || user.is_some() && fs::metadata(format!("/proc/{pid}")).ok().map(|found| found.uid()) == user;
        pid != ours && (stands_in(pid) || as_user()) && !is_zombie(pid.unsigned_abs())
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|pid| is(*pid))
        .filter_map(|pid| Found::of(pid, is))
        .collect()
}
