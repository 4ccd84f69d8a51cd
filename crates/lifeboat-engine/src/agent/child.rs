//! A process of the agent: begun, listened to, and ended when it must be.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, ErrorKind, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, set_parent_process_death_signal};

use super::Shared;

/// The most bytes of one line that are passed on.
const MAX_LINE: u64 = 16 << 10;

/// What a process has said by its end is waited for so long. Whatever it has left behind may keep its output open for ever.
const LINGER: Duration = Duration::from_secs(3);

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
    // Whoever reads is left to itself: it comes to an end when everybody has closed the output, and somebody who was left behind may never do that.
    let chunks = child.stdout.take().map(|output| {
        let (sender, chunks) = crossbeam_channel::unbounded();
        let most = work.keep;
        std::thread::spawn(move || read_chunks(output, most, &sender));
        chunks
    });
    let lines = child.stderr.take().map(|errors| {
        let (sender, lines) = crossbeam_channel::bounded(64);
        std::thread::spawn(move || read_lines(errors, &sender));
        lines
    });
    std::thread::scope(|scope| {
        let (gone, is_gone) = crossbeam_channel::bounded::<()>(0);
        if let Some(lines) = lines {
            scope.spawn(move || pass_on(shared, work.name, &lines, &is_gone));
        }
        let (sender, over) = crossbeam_channel::bounded(1);
        let pid = child.id();
        scope.spawn(move || sender.send(child.wait()));
        let (waited, ended) = watch(shared, work, pid, &over);
        drop(gone);
        let printed = chunks.and_then(|chunks| collect(&chunks, work.keep));
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

/// Waits for it, and ends it when it must be; all that it has begun ends with it. Returns whether it was ended.
fn watch(shared: &Shared, work: &Work<'_>, pid: u32, over: &Receiver<std::io::Result<ExitStatus>>) -> (std::io::Result<ExitStatus>, bool) {
    let lost = || Err(std::io::ErrorKind::BrokenPipe.into());
    let late = work.deadline.map_or_else(crossbeam_channel::never, crossbeam_channel::after);
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let kill_all = || {
        if let Some(process) = process {
            let _ = kill_process_group(process, Signal::KILL);
        }
    };
    crossbeam_channel::select! {
        recv(over) -> waited => {
            kill_all();
            return (waited.unwrap_or_else(|_| lost()), false);
        }
        recv(work.end) -> _ => {}
        recv(shared.stop.channel()) -> _ => {}
        recv(late) -> _ => shared.warn(&format!("{} takes longer than its deadline and is ended", work.name)),
    }
    if let Some(process) = process {
        let _ = kill_process(process, Signal::TERM);
    }
    let waited = over.recv_timeout(shared.settings.grace);
    if waited.is_err() {
        shared.warn(&format!("{} did not end within {} s of being told to, and is killed", work.name, shared.settings.grace.as_secs()));
    }
    // With all that it has begun: nothing of it goes on.
    kill_all();
    (waited.unwrap_or_else(|_| over.recv().unwrap_or_else(|_| lost())), true)
}

/// Reads to the end, and hands on what is not too much, and a little more than that if it is.
fn read_chunks(mut output: impl Read, most: u64, chunks: &Sender<Vec<u8>>) {
    let mut total: u64 = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match output.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if total <= most && chunks.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
                total = total.saturating_add(count as u64);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// What was printed, if it is not too much.
fn collect(chunks: &Receiver<Vec<u8>>, most: u64) -> Option<Vec<u8>> {
    let end = Instant::now() + LINGER;
    let mut printed = Vec::new();
    while let Ok(chunk) = chunks.recv_deadline(end) {
        printed.extend_from_slice(&chunk);
    }
    (printed.len() as u64 <= most).then_some(printed)
}

/// Reads line by line, until nobody wants to hear any more.
fn read_lines(errors: impl Read, lines: &Sender<Vec<u8>>) {
    let mut errors = BufReader::new(errors);
    loop {
        let mut line = Vec::new();
        match errors.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if lines.send(line).is_err() => return,
            Ok(_) => {}
        }
    }
}

/// Passes on what it says, line by line.
fn pass_on(shared: &Shared, name: &str, lines: &Receiver<Vec<u8>>, is_gone: &Receiver<()>) {
    let say = |line: &[u8]| shared.surroundings.line(name, String::from_utf8_lossy(line).trim_end());
    loop {
        crossbeam_channel::select! {
            recv(lines) -> line => match line {
                Ok(line) => say(&line),
                Err(_) => return,
            },
            recv(is_gone) -> _ => break,
        }
    }
    let end = Instant::now() + LINGER;
    while let Ok(line) = lines.recv_deadline(end) {
        say(&line);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::sync::{Arc, Mutex, RwLock};

    use jiff::Timestamp;
    use lifeboat_core::drill::DrillId;

    use super::super::{AgentSettings, Level, Stop, Surroundings, Turn};
    use super::*;
    use crate::repository::Repository;
    use crate::web::DrillPageError;

    /// Remembers what it is told.
    #[derive(Default)]
    struct Heard(Arc<Mutex<Vec<String>>>);

    impl Surroundings for Heard {
        fn say(&self, _: Level, _: &str) {}
        fn line(&self, _: &str, line: &str) {
            self.0.lock().unwrap().push(line.to_owned());
        }
        fn repository(&self) -> Result<Repository, String> {
            Err("there is none".to_owned())
        }
        fn drill_page(&self, _: &DrillId) -> Result<Vec<u8>, DrillPageError> {
            unreachable!("nobody asks for it")
        }
        fn environment(&self) -> Vec<(String, OsString)> {
            Vec::new()
        }
        fn ready(&self, _: &str) {}
        fn alive(&self) {}
    }

    /// Runs a script as the agent runs a task: how it ended, what it said, and how long that took.
    fn ran(script: &str, keep: u64) -> (Ended, Vec<String>, Duration) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let settings = AgentSettings {
            system: "shop".into(),
            host: "db1".into(),
            program: "lifeboat".into(),
            command: vec!["/bin/sh".into(), "-c".into()],
            state: PathBuf::from("/nowhere"),
            interval: Duration::from_secs(60),
            look_deadline: Duration::from_secs(60),
            tasks: Vec::new(),
            time_zone: "UTC".into(),
            jitter: Duration::ZERO,
            repository: String::new(),
            receive: None,
            group: None,
            grace: Duration::from_secs(10),
            listen: None,
            allow_hosts: Vec::new(),
            runbook_url: None,
        };
        let shared = Shared {
            settings,
            surroundings: Box::new(Heard(Arc::clone(&heard))),
            stop: Stop::default(),
            since: Timestamp::UNIX_EPOCH,
            status: RwLock::new(None),
            trouble: Mutex::new(None),
            turn: Mutex::new(Turn::Ours),
            was_ours: AtomicBool::new(true),
            directory: PathBuf::new(),
            wake: crossbeam_channel::bounded(1).0,
            beat: AtomicU64::new(0),
            begun: Instant::now(),
            runs: Mutex::new(Vec::new()),
            deliveries: Mutex::new(Vec::new()),
            own: Mutex::new(Vec::new()),
        };
        let begun = Instant::now();
        let end = crossbeam_channel::never();
        let ended = run(&shared, &Work { name: "task", arguments: vec![script.into()], end: &end, deadline: None, keep });
        let lines = heard.lock().unwrap().clone();
        (ended, lines, begun.elapsed())
    }

    fn process(line: &str) -> Pid {
        Pid::from_raw(line.parse().unwrap()).unwrap()
    }

    /// So long that it was waited for.
    const FOR_EVER: Duration = Duration::from_secs(60);

    #[test]
    fn whoever_is_left_behind_with_the_output_open_keeps_nobody_waiting() {
        for keep in [0, 1000] {
            let (ended, lines, took) = ran("setsid sleep 600 & echo $! >&2; echo said >&2; printf '{}'; exit 3", keep);
            let _ = kill_process(process(&lines[0]), Signal::KILL);
            assert_eq!((ended.exit_code, ended.how, lines[1].as_str()), (Some(3), How::Itself, "said"));
            assert_eq!(ended.printed, (keep > 0).then(|| b"{}".to_vec()));
            assert!(took < FOR_EVER, "{took:?}");
        }
    }

    #[test]
    fn what_a_process_has_begun_ends_with_it() {
        let (ended, lines, took) = ran("sleep 600 & echo $! >&2; exit 0", 0);
        assert_eq!((ended.exit_code, ended.how), (Some(0), How::Itself));
        assert!(took < FOR_EVER, "{took:?}");
        let pid = lines[0].clone();
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let begun = Instant::now();
        while !(state().is_empty() || state().contains(") Z ")) {
            assert!(begun.elapsed() < FOR_EVER, "{}", state());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_is_printed_is_kept_if_it_is_not_too_much() {
        let (ended, ..) = ran("head -c 100000 /dev/zero", 100_000);
        assert_eq!(ended.printed.map(|printed| printed.len()), Some(100_000));
        assert_eq!(ran("head -c 1000000 /dev/zero", 99_999).0.printed, None);
        assert_eq!(ran("echo one >&2; printf two >&2", 0).1, ["one", "two"]);
    }
}
