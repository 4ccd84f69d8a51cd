//! `lifeboat agent` and `lifeboat status`, as they run for weeks: real processes, killed on purpose.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, Postgres, temp_dir};
use crate::program::{Program, reachable_binary};

/// Ends tests that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(240);

/// Waits until something is so.
#[track_caller]
fn wait_for<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = is_so() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A host with artifacts, a repository and keys.
struct Desk {
    home: TempDir,
    state: PathBuf,
}

/// An agent that runs; it ends with the test.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Desk {
    /// `more` is the end of its configuration.
    fn new(more: &str) -> Self {
        let home = temp_dir();
        let at = |name: &str| home.path().join(name);
        fs::create_dir(at("artifacts")).unwrap();
        fs::write(at("artifacts/one"), "1").unwrap();
        let state = at("state");
        let desk = Self { home, state };
        desk.program().args(["--repository"]).arg(desk.at("repository")).arg("init").run().success();
        desk.configure(more);
        desk
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn program(&self) -> Program {
        Program::new(&self.home)
    }

    fn configure(&self, more: &str) {
        let text = format!(
            "name = \"builds\"\n[[repository]]\nurl = \"{}\"\n[artifacts]\ndirectory = \"{}\"\n{more}\n",
            self.at("repository").display(),
            self.at("artifacts").display()
        );
        fs::write(self.at("lifeboat.toml"), text).unwrap();
    }

    fn lifeboat(&self, words: &[&str]) -> Program {
        self.program().arg("--config").arg(self.at("lifeboat.toml")).args(words)
    }

    /// Makes a task due, as if an agent had planned it and had not been there.
    fn overdue(&self, state: &Path, tasks: &[&str]) {
        let directory = state.join("agent");
        fs::create_dir_all(&directory).unwrap();
        let tasks: serde_json::Map<String, Value> = tasks
            .iter()
            .map(|task| {
                let written =
                    serde_json::json!({"due": "2026-01-01T00:00:00Z", "attempt": 0, "schedule": "0 0 1 1 *", "deadline_seconds": 1});
                ((*task).to_owned(), written)
            })
            .collect();
        let book = serde_json::json!({"agent": null, "at": null, "time_zone": "UTC", "tasks": tasks});
        fs::write(directory.join("tasks.json"), book.to_string()).unwrap();
    }

    fn agent_in(&self, state: &Path, environment: &[(&str, &Path)]) -> Running {
        let log = self.at(&format!("agent-{}.log", lifeboat_engine::random::id()));
        let mut command = Command::new(reachable_binary());
        command.arg("--config").arg(self.at("lifeboat.toml")).arg("agent").env_clear().envs(environment.iter().copied());
        command.env("HOME", self.home.path()).env("PATH", std::env::var_os("PATH").unwrap()).env("LIFEBOAT_STATE", state);
        let file = fs::File::create(&log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Running { child, log }
    }

    fn agent(&self) -> Running {
        self.agent_in(&self.state, &[])
    }

    fn status(&self) -> Value {
        let output = self.lifeboat(&["status", "--json"]).env("LIFEBOAT_STATE", &self.state).run();
        output.json()
    }

    fn run_of(&self, operation: &str) -> Option<Value> {
        self.status()["runs"].as_array()?.iter().find(|run| run["operation"] == operation).cloned()
    }

    fn backups(&self) -> usize {
        self.lifeboat(&["list", "--json"]).run().json()["backups"].as_array().map_or(0, Vec::len)
    }
}

impl Running {
    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    #[track_caller]
    fn says(&self, text: &str) {
        let begun = Instant::now();
        while !self.said().contains(text) {
            let runs = !std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default().contains(") Z");
            assert!(runs && begun.elapsed() < DEADLINE, "it did not say {text:?}:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn address(&self) -> SocketAddr {
        self.says("status page on http://");
        let said = self.said();
        let rest = said.split("status page on http://").nth(1).unwrap();
        rest.split('/').next().unwrap().parse().unwrap()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits for it.
    fn end(mut self) -> (ExitStatus, String) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = wait_for("its end", || self.child.try_wait().unwrap());
        (status, self.said())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of an answer, and its status line.
fn get(address: SocketAddr, path: &str, accept: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// Nothing is due for a long time, but for what a test makes due.
const QUIET: &str = "[agent]\nlisten = \"127.0.0.1:0\"\ninterval = \"1s\"\n[schedule]\njitter = \"1ms\"\nretry_after = \"1s\"\nbackup = \"0 0 1 1 *\"\nverify = \"0 0 1 1 *\"\ndrill = \"off\"\n";

#[test]
fn what_was_due_while_nobody_was_there_is_done_and_shown() {
    let desk = Desk::new(QUIET);
    desk.overdue(&desk.state, &["backup"]);
    let agent = desk.agent();
    agent.says("backup begins");
    agent.says("backup is done");
    assert_eq!(desk.backups(), 1);
    let address = agent.address();
    // What the page, the document and the metrics tell is what was seen.
    let status = wait_for("a look that sees it", || {
        let (head, body) = get(address, "/api/v1/status", "application/json");
        let status: Value = serde_json::from_str(&body).ok().filter(|_| head.contains("200"))?;
        status["backups"].as_array().is_some_and(|backups| backups.len() == 1).then_some(status)
    });
    assert_eq!(status["name"], "builds");
    assert_eq!(status["answer"]["verdict"], "at-risk", "no drill has proven it: {}", status["answer"]);
    assert!(get(address, "/", "text/html").1.contains("builds"));
    let metrics = wait_for("metrics", || Some(get(address, "/metrics", "text/plain")).filter(|(head, _)| head.contains("200"))).1;
    assert!(metrics.contains("lifeboat_build_info") && metrics.contains("lifeboat_agent"), "{metrics}");
    assert!(get(address, "/healthz", "*/*").0.contains("200") && get(address, "/readyz", "*/*").0.contains("200"));
    // The terminal says the same.
    let text = desk.lifeboat(&["status"]).env("LIFEBOAT_STATE", &desk.state).run().expect_code(3);
    assert!(text.stdout.contains("builds"), "{text}");
    let run = desk.run_of("backup").unwrap();
    assert_eq!((&run["outcome"], &run["failures"], &run["exit_code"]), (&"succeeded".into(), &0.into(), &0.into()));
    let (status, said) = agent.end();
    assert!(status.success() && said.contains("the agent ends"), "{said}");
}

#[test]
fn two_agents_of_one_system_take_turns() {
    let desk = Desk::new(QUIET);
    let (one, two) = (desk.at("state-one"), desk.at("state-two"));
    let first = desk.agent_in(&one, &[]);
    first.says("it is this agent's turn");
    desk.overdue(&two, &["backup"]);
    let second = desk.agent_in(&two, &[]);
    second.says("this agent waits");
    // One of this host with the same state does not even begin.
    let mut third = desk.agent_in(&two, &[]);
    let status = wait_for("its refusal", || third.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(11), "{}", third.said());
    assert!(third.said().contains("another agent of this host"), "{}", third.said());
    assert_eq!(desk.backups(), 0, "what is due waits with it");
    first.kill();
    second.says("it is this agent's turn");
    second.says("backup is done");
    assert_eq!(desk.backups(), 1);
}

/// One that takes backups and one that drills need not be on one host, nor wait for each other.
#[test]
fn agents_of_two_groups_do_not_wait_for_each_other() {
    let desk = Desk::new(QUIET);
    let (one, two) = (desk.at("state-one"), desk.at("state-two"));
    let first = desk.agent_in(&one, &[]);
    first.says("it is this agent's turn");
    desk.configure(&QUIET.replace("[agent]\n", "[agent]\ngroup = \"restorer\"\n"));
    let (second, third) = (desk.agent_in(&two, &[]), desk.agent_in(&desk.at("state-three"), &[]));
    let both =
        || [&second, &third].map(|agent| (agent.said().contains("it is this agent's turn"), agent.said().contains("this agent waits")));
    wait_for("one of them to work and the other to wait", || {
        let mut both = both();
        both.sort_unstable();
        (both == [(false, true), (true, false)]).then_some(())
    });
    assert!(!first.said().contains("this agent waits"), "{}", first.said());
    desk.configure(&QUIET.replace("[agent]\n", "[agent]\ngroup = \"A b\"\n"));
    let refused = desk.lifeboat(&["agent", "--dry-run"]).run().expect_code(2);
    assert!(refused.stderr.contains("agent.group"), "{refused}");
}

/// Makes every backup wait for ever: for the password of the signing key.
fn hangs(desk: &Desk) -> String {
    let key = desk.at(".config/lifeboat/signing.key");
    assert!(key.is_file());
    format!("[signing]\nkey_file = \"{}\"\npassword = {{ command = [\"sleep\", \"3600\"] }}\n", key.display())
}

#[test]
fn c117_a_crash_in_the_middle_is_found_and_the_task_is_tried_again() {
    let desk = Desk::new(QUIET);
    desk.configure(&format!("{QUIET}{}", hangs(&desk)));
    desk.overdue(&desk.state, &["backup"]);
    let agent = desk.agent();
    agent.says("backup begins");
    let running = || desk.run_of("backup").filter(|run| run["outcome"] == "running");
    wait_for("the backup to run", running);
    agent.kill();
    // Its process goes with it, and that it left no result shows, whoever asks.
    let run = wait_for("the backup to be gone", || desk.run_of("backup").filter(|run| run["outcome"] == "interrupted"));
    assert_eq!(run["failures"], 1);
    let alerts = desk.status()["alerts"].clone();
    let failed = alerts.as_array().unwrap().iter().find(|alert| alert["name"] == "backup-failed");
    assert!(failed.unwrap()["summary"].as_str().unwrap().contains("was interrupted"), "{alerts}");
    // The next agent goes on.
    desk.configure(QUIET);
    let agent = desk.agent();
    agent.says("backup was cut short in try 1, when the agent ended; it is tried again");
    agent.says("backup begins, try 2 of 4");
    agent.says("backup is done");
    assert_eq!(desk.run_of("backup").unwrap()["outcome"], "succeeded");
    assert_eq!(desk.backups(), 1);
}

#[test]
fn one_that_hangs_is_ended_at_its_deadline_and_keeps_no_other_from_its_work() {
    let desk = Desk::new(QUIET);
    desk.lifeboat(&["backup"]).env("LIFEBOAT_STATE", &desk.state).run().success();
    desk.configure(&format!("{QUIET}deadline = {{ backup = \"5s\" }}\nattempts = 2\n{}", hangs(&desk)));
    desk.overdue(&desk.state, &["backup", "verify"]);
    let agent = desk.agent();
    agent.says("verify is done");
    agent.says("backup takes longer than its deadline and is ended");
    agent.says("backup was ended; it is tried again at");
    agent.says("backup begins, try 2 of 2");
    wait_for("the end of its tries", || (agent.said().matches("backup was ended").count() == 2).then_some(()));
    let run = wait_for("its record", || desk.run_of("backup").filter(|run| run["failures"] == 2));
    assert_eq!(run["outcome"], "interrupted");
    assert_eq!(desk.backups(), 1);
    // The lease was given back: nothing stands in the way of a backup by hand.
    desk.configure(QUIET);
    desk.lifeboat(&["backup"]).env("LIFEBOAT_STATE", &desk.state).run().success();
}

/// A task that never gets as far as to leave a record of itself is not forgotten.
#[test]
fn one_that_cannot_begin_is_told_of() {
    let desk = Desk::new(QUIET);
    desk.lifeboat(&["backup"]).env("LIFEBOAT_STATE", &desk.state).run().success();
    desk.configure(&format!("{QUIET}arguments = {{ verify = [\"--no-such-option\"] }}\n"));
    desk.overdue(&desk.state, &["verify"]);
    let agent = desk.agent();
    agent.says("verify ended with exit code 2");
    let failed = |status: &Value| status["alerts"].as_array()?.iter().find(|alert| alert["name"] == "task-failed").cloned();
    let alert = wait_for("the alert", || failed(&desk.status()));
    assert_eq!(alert["subject"], "verify");
    assert!(alert["summary"].as_str().unwrap().contains("ended with exit code 2"), "{alert}");
    // It is over when somebody has done it.
    desk.lifeboat(&["verify", "--all"]).env("LIFEBOAT_STATE", &desk.state).run().success();
    assert_eq!(failed(&desk.status()), None);
}

/// The process that another one began, of which this word is an argument.
fn process_of(parent: u32, word: &str) -> Option<i32> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).ok()?;
    let children = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok()).collect::<Vec<_>>().join(" ");
    let is_it =
        |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.split(|b| *b == 0).any(|arg| arg == word.as_bytes()));
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_it)
}

/// Whoever kills it: what is committed gets into the repository, and is seen there.
#[test]
fn the_receiver_of_a_real_server_is_kept_running() {
    let cluster = Cluster::builder(Postgres::V16).start();
    let wal = "mode = \"stream\"\nflush_interval = \"200ms\"";
    let server = format!("[postgres]\ndsn = \"{}\"\n[wal]\nspool = \"SPOOL\"\n{wal}\n", cluster.dsn());
    let desk = Desk::new("");
    desk.configure(&format!("{}{QUIET}", server.replace("SPOOL", &desk.at("spool").display().to_string())));
    desk.lifeboat(&["backup"]).env("LIFEBOAT_STATE", &desk.state).run().success();
    let agent = desk.agent();
    let receiver = |not: i32| {
        let found = wait_for("a receiver", || process_of(agent.child.id(), "receive").filter(|pid| *pid != not));
        let active = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'lifeboat' AND active";
        wait_for("its connection", || (cluster.psql(active).trim() == "1").then_some(()));
        found
    };
    let first = receiver(0);
    cluster.psql("CREATE TABLE told (n int)");
    rustix::process::kill_process(rustix::process::Pid::from_raw(first).unwrap(), rustix::process::Signal::KILL).unwrap();
    agent.says("the WAL receiver does not run: signal 9 ended it; it is begun again in 2 s");
    let second = receiver(first);
    cluster.psql("INSERT INTO told SELECT generate_series(1, 1000)");
    let committed: lifeboat_core::wal::Lsn = cluster.psql("SELECT pg_current_wal_flush_lsn()").trim().parse().unwrap();
    let address = agent.address();
    let status = wait_for("the commit in the recovery window", || {
        let status: Value = serde_json::from_str(&get(address, "/api/v1/status", "application/json").1).ok()?;
        let to = status["wal"]["windows"].as_array()?.last()?["to"]["lsn"].as_str()?.parse().ok()?;
        (committed <= to).then_some(status)
    });
    let version: u64 = cluster.psql("SHOW server_version_num").trim().parse().unwrap();
    assert_eq!((&status["server"]["trouble"], &status["server"]["version_num"]), (&Value::Null, &version.into()));
    let slots = status["wal"]["slots"].as_array().unwrap();
    assert!(slots.iter().any(|slot| slot["name"] == "lifeboat" && slot["ours"] == true && slot["active"] == true), "{slots:?}");
    assert_eq!(status["wal"]["receiver"]["mode"], "stream", "{}", status["wal"]);
    let (status, said) = agent.end();
    assert!(status.success(), "{said}");
    assert!(!Path::new(&format!("/proc/{second}")).exists(), "it ends with the agent");
}

/// With commits that wait for the receiver, a host that starts while the repository is away must not wait for that.
#[test]
fn c059_an_agent_that_had_the_turn_receives_while_the_repository_is_away() {
    let cluster = Cluster::builder(Postgres::V16).start();
    let desk = Desk::new("");
    let spool = desk.at("spool").display().to_string();
    let wal = format!("[wal]\nspool = \"{spool}\"\nmode = \"sync\"\nflush_interval = \"200ms\"\n");
    desk.configure(&format!("[postgres]\ndsn = \"{}\"\n{wal}{QUIET}", cluster.dsn()));
    desk.lifeboat(&["backup"]).env("LIFEBOAT_STATE", &desk.state).run().success();
    let streams = || {
        let active = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'lifeboat' AND active";
        wait_for("a receiver", || (cluster.psql(active).trim() == "1").then_some(()));
    };
    let agent = desk.agent();
    streams();
    let (status, said) = agent.end();
    assert!(status.success(), "{said}");

    fs::rename(desk.at("repository"), desk.at("elsewhere")).unwrap();
    cluster.psql("ALTER SYSTEM SET synchronous_standby_names = 'lifeboat'");
    cluster.psql("SELECT pg_reload_conf()");
    let agent = desk.agent();
    agent.says("the WAL receiver is begun all the same: it was this agent's turn when that was last known");
    streams();
    // It returns only when the receiver has acknowledged it.
    cluster.psql("CREATE TABLE told AS SELECT generate_series(1, 1000) AS n");
    let committed: lifeboat_core::wal::Lsn = cluster.psql("SELECT pg_current_wal_flush_lsn()").trim().parse().unwrap();
    fs::rename(desk.at("elsewhere"), desk.at("repository")).unwrap();
    let address = agent.address();
    wait_for("the commit in the recovery window", || {
        let status: Value = serde_json::from_str(&get(address, "/api/v1/status", "application/json").1).ok()?;
        let to: lifeboat_core::wal::Lsn = status["wal"]["windows"].as_array()?.last()?["to"]["lsn"].as_str()?.parse().ok()?;
        (committed <= to).then_some(())
    });
    let (status, said) = agent.end();
    assert!(status.success(), "{said}");
}

#[test]
fn a_repository_out_of_reach_is_told_of_by_an_agent_that_cannot_take_its_turn() {
    let (url, told) = webhook();
    let desk = Desk::new("");
    let alerts = format!(
        "[alerts]\ngroup_wait = \"1s\"\nresolve_after = \"1s\"\n[[alerts.sink]]\nname = \"here\"\ntype = \"webhook\"\nurl = \"{url}\"\n"
    );
    desk.configure(&format!("{QUIET}{alerts}"));
    fs::rename(desk.at("repository"), desk.at("elsewhere")).unwrap();
    let agent = desk.agent();
    agent.says("whose turn it is cannot be found out");
    let names = |message: &Value, which: &str| -> Vec<String> {
        let notices = message[which].as_array().cloned().unwrap_or_default();
        notices
            .iter()
            .filter_map(|notice| notice["name"].as_str().or_else(|| notice["alert"]["name"].as_str()).map(str::to_owned))
            .collect()
    };
    let told_of = |which: &str| {
        let begun = Instant::now();
        loop {
            let message: Value = told.recv_timeout(DEADLINE).expect("a message");
            if names(&message, which).iter().any(|name| name == "repository-unreachable") {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "{message}");
        }
    };
    told_of("firing");
    fs::rename(desk.at("elsewhere"), desk.at("repository")).unwrap();
    told_of("resolved");
    agent.says("it is this agent's turn");
}

/// Takes what is posted.
fn webhook() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut bytes = Vec::new();
            let mut buffer = [0; 4096];
            let body = loop {
                let Ok(count) = stream.read(&mut buffer) else { break None };
                bytes.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head
                        .lines()
                        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok());
                    if body.len() >= length.unwrap_or(0) {
                        break Some(body.to_owned());
                    }
                }
                if count == 0 {
                    break None;
                }
            };
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            if let Some(message) = body.and_then(|body| serde_json::from_str(&body).ok()) {
                let _ = sender.send(message);
            }
        }
    });
    (url, receiver)
}

#[test]
fn systemd_is_told_that_it_is_ready_alive_and_ending() {
    let desk = Desk::new(QUIET);
    let path = desk.at("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let agent = desk.agent_in(&desk.state, &[("NOTIFY_SOCKET", &path)]);
    let next = || {
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    let wait = |wanted: &str| while !next().lines().any(|line| line == wanted) {};
    wait("READY=1");
    wait("WATCHDOG=1");
    let (status, said) = agent.end();
    wait("STOPPING=1");
    assert!(status.success(), "{said}");
}

#[test]
fn the_plan_is_shown_without_being_begun_and_a_bad_one_is_refused() {
    let desk = Desk::new("[schedule]\nbackup = \"30 1 * * *\"\ntime_zone = \"Europe/Berlin\"\n");
    let output = desk.lifeboat(&["agent", "--dry-run", "--json"]).run().success();
    let tasks = output.json()["tasks"].clone();
    let backup = tasks.as_array().unwrap().iter().find(|task| task["task"] == "backup").unwrap().clone();
    assert_eq!((&backup["schedule"], &backup["command"]), (&"30 1 * * *".into(), &serde_json::json!(["backup"])));
    // Without rules there is nothing to expire, without replicas nothing to bring.
    for task in ["expire", "prune", "replicate"] {
        let off = tasks.as_array().unwrap().iter().find(|one| one["task"] == task).unwrap();
        assert_eq!(off["schedule"], Value::Null, "{task}");
    }
    assert!(desk.lifeboat(&["agent", "--dry-run"]).run().success().stdout.contains("Europe/Berlin"));
    for (bad, why) in [
        ("[schedule]\nbackup = \"25 o'clock\"", "schedule.backup"),
        ("[schedule]\ntime_zone = \"Mars/Olympus\"", "time zone"),
        ("[schedule]\nattempts = 0", "schedule.attempts"),
        ("[schedule]\nrestore = \"* * * * *\"", "unknown field"),
        ("[schedule]\ndeadline = { restore = \"1h\" }", "unknown variant"),
        ("[agent]\nlisten = \"everywhere\"", "agent.listen"),
    ] {
        desk.configure(bad);
        let output = desk.lifeboat(&["agent", "--dry-run"]).run().expect_code(2);
        assert!(output.stderr.contains(why) && output.stderr.contains("hint: "), "{output}");
    }
}

#[test]
fn status_tells_what_is_known_and_never_takes_unknown_for_good() {
    let desk = Desk::new("");
    // Nothing was ever backed up.
    let output = desk.lifeboat(&["status", "--json"]).run().expect_code(1);
    let status = output.json();
    assert_eq!(status["answer"]["verdict"], "not-recoverable");
    assert!(status["alerts"].as_array().unwrap().iter().any(|alert| alert["name"] == "no-backup"));
    desk.lifeboat(&["backup"]).run().success();
    let status = desk.lifeboat(&["status", "--json"]).run().expect_code(3).json();
    assert_eq!((&status["answer"]["verdict"], &status["answer"]["rpo_met"]), (&"at-risk".into(), &true.into()));
    assert_eq!(status["answer"]["backup"], status["backups"][0]["id"]);
    assert!(desk.lifeboat(&["status", "--metrics"]).run().expect_code(3).stdout.contains("lifeboat_recoverable"));
    // A manifest that was changed counts for nothing, and is told.
    let id = status["backups"][0]["id"].as_str().unwrap().to_owned();
    let manifest = desk.at("repository").join(&id).join("manifest.json");
    let mut permissions = fs::metadata(&manifest).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    fs::set_permissions(&manifest, permissions).unwrap();
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replacen("\"files\": ", "\"files\": 1", 1)).unwrap();
    let status = desk.lifeboat(&["status", "--json"]).run().expect_code(1).json();
    assert_eq!((&status["answer"]["verdict"], &status["backups"][0]["signature"]), (&"not-recoverable".into(), &"not-valid".into()));
    assert!(status["alerts"].as_array().unwrap().iter().any(|alert| alert["name"] == "signature-invalid"));
    // Nobody can look: that is unknown, and never "no backup", and never well.
    fs::rename(desk.at("repository"), desk.at("elsewhere")).unwrap();
    let status = desk.lifeboat(&["status", "--json"]).run().expect_code(1).json();
    assert_eq!(status["answer"]["verdict"], "unknown");
    let names: Vec<&str> = status["alerts"].as_array().unwrap().iter().filter_map(|alert| alert["name"].as_str()).collect();
    assert!(names.contains(&"repository-unreachable") && !names.contains(&"no-backup"), "{names:?}");
}

#[test]
fn what_is_done_by_hand_or_by_cron_is_remembered_as_well() {
    let desk = Desk::new("");
    desk.lifeboat(&["backup"]).env("LIFEBOAT_STATE", &desk.state).run().success();
    assert_eq!(desk.run_of("backup").unwrap()["outcome"], "succeeded");
    // Plans and looks are nothing that was done.
    desk.lifeboat(&["backup", "--dry-run"]).env("LIFEBOAT_STATE", &desk.state).run().success();
    desk.lifeboat(&["verify", "latest"]).env("LIFEBOAT_STATE", &desk.state).run().success();
    assert!(desk.run_of("verify").is_none());
    desk.lifeboat(&["verify", "--all"]).env("LIFEBOAT_STATE", &desk.state).run().success();
    assert_eq!(desk.run_of("verify").unwrap()["outcome"], "succeeded");
    // A failure is remembered with its words.
    fs::rename(desk.at("artifacts"), desk.at("gone")).unwrap();
    desk.lifeboat(&["backup"]).env("LIFEBOAT_STATE", &desk.state).run();
    let run = desk.run_of("backup").unwrap();
    assert_eq!((&run["outcome"], &run["failures"]), (&"failed".into(), &1.into()));
    assert!(run["message"].as_str().unwrap().contains("artifacts") && run["last_success"].is_string(), "{run}");
    // A place where nothing can be noted keeps nothing from being done.
    fs::rename(desk.at("gone"), desk.at("artifacts")).unwrap();
    fs::write(desk.at("file"), "").unwrap();
    let output = desk.lifeboat(&["backup"]).env("LIFEBOAT_STATE", desk.at("file").join("state")).run().success();
    assert!(output.stderr.contains("is not noted in"), "{output}");
}
