//! Documents whose commands are run: a page with `console` blocks, and the machine that its reader sits at.
//!
//! In a block, a line that begins with `$ ` is a command (one that ends with a backslash goes on in the next, behind `> `), and the lines
//! below it are what it prints, standard output and standard error as a terminal mixes them. `…` stands for anything within a line, a line
//! that is only `…` for any number of lines. Behind the word `console`, `scene=NAME` begins anew on a machine of that name, and `exit=CODE`
//! is how the block's last command ends; all others end with 0.
//!
//! The commands run as they are printed, with the very paths of the page: the machine is a mount namespace in which directories of the test
//! stand where the page says, and a process namespace that ends all that was started in it. It must not rewrite a command.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::cluster::{Owner, Postgres, temp_dir};
use crate::program::reachable_binary;

/// How long a command may take. Generous: it only ends tests that would hang for ever.
const DEADLINE: Duration = Duration::from_secs(300);

/// A command of a page, and what the page says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The line of the page that the command stands in, from 1.
    pub(crate) line: usize,
    /// As typed, with its further lines.
    pub(crate) command: String,
    /// What it prints.
    pub(crate) expected: Vec<String>,
    /// How it ends.
    pub(crate) code: i32,
}

/// What is run from one fresh machine on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scene {
    /// Which machine.
    pub(crate) name: String,
    /// In the order of the page.
    pub(crate) steps: Vec<Step>,
}

/// The scenes of a page, in its order. Refuses what would not be run: commands without a scene, in blocks of another kind, or in none.
pub(crate) fn scenes(page: &str) -> Result<Vec<Scene>, String> {
    let mut scenes: Vec<Scene> = Vec::new();
    let mut lines = page.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((opened, line)) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else {
            if line.trim_start().starts_with("$ ") {
                return Err(format!("line {opened}: a command outside of a block"));
            }
            continue;
        };
        let mut words = info.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let mut block = Vec::new();
        loop {
            let Some((number, line)) = lines.next() else { return Err(format!("line {opened}: the block does not end")) };
            if line.trim_end() == "```" {
                break;
            }
            block.push((number, line.trim_end()));
        }
        if kind != "console" {
            // A page shows files as well, but nothing to be typed.
            if matches!(kind, "" | "sh" | "bash" | "shell") || block.iter().any(|(_, line)| line.starts_with("$ ")) {
                return Err(format!("line {opened}: commands stand in blocks of the kind console, which are run"));
            }
            continue;
        }
        let mut code = 0;
        for word in words {
            match word.split_once('=') {
                Some(("scene", name)) => scenes.push(Scene { name: name.to_owned(), steps: Vec::new() }),
                Some(("exit", number)) => code = number.parse().map_err(|_| format!("line {opened}: {word} is no exit code"))?,
                _ => return Err(format!("line {opened}: {word} says nothing of a block")),
            }
        }
        let scene = scenes.last_mut().ok_or_else(|| format!("line {opened}: no scene has begun"))?;
        let mut steps = steps(&block).map_err(|line| format!("line {line}: output without a command"))?;
        match steps.last_mut() {
            Some(last) => last.code = code,
            None => return Err(format!("line {opened}: a block without a command")),
        }
        scene.steps.append(&mut steps);
    }
    Ok(scenes)
}

fn steps(block: &[(usize, &str)]) -> Result<Vec<Step>, usize> {
    let mut steps: Vec<Step> = Vec::new();
    for &(line, text) in block {
        if let Some(command) = text.strip_prefix("$ ") {
            steps.push(Step { line, command: command.to_owned(), expected: Vec::new(), code: 0 });
            continue;
        }
        let step = steps.last_mut().ok_or(line)?;
        match text.strip_prefix("> ") {
            Some(more) if step.expected.is_empty() && step.command.ends_with('\\') => {
                step.command.push('\n');
                step.command.push_str(more);
            }
            _ => step.expected.push(text.to_owned()),
        }
    }
    Ok(steps)
}

/// Whether a line is what a page says.
fn fits(expected: &str, line: &str) -> bool {
    let mut parts = expected.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// How many lines of the page fit, from the first on, in the best way to read its `…`; all of them if the output is what the page says.
fn fitting(expected: &[String], output: &[&str]) -> Result<(), usize> {
    // One row of the usual table: which of the first lines of the output the lines of the page so far can stand for.
    let mut ends = vec![false; output.len() + 1];
    ends[0] = true;
    for (index, line) in expected.iter().enumerate() {
        let mut next = vec![false; output.len() + 1];
        if line == "…" {
            let mut any = false;
            for (end, here) in ends.iter().enumerate() {
                any |= here;
                next[end] = any;
            }
        } else {
            for end in 0..output.len() {
                next[end + 1] = ends[end] && fits(line, output[end]);
            }
        }
        if !next.contains(&true) {
            return Err(index);
        }
        ends = next;
    }
    if ends[output.len()] { Ok(()) } else { Err(expected.len()) }
}

/// Compares what a step did with what the page says; the difference, for a person to read.
pub(crate) fn compare(page: &str, step: &Step, code: i32, output: &str) -> Result<(), String> {
    let lines: Vec<&str> = output.lines().map(str::trim_end).collect();
    let fitting = fitting(&step.expected, &lines);
    if fitting.is_ok() && code == step.code {
        return Ok(());
    }
    let mut text = format!("{page}:{}: $ {}\n", step.line, step.command);
    if code != step.code {
        writeln!(text, "ended with {code}, the page says {}", step.code).expect("a string takes all");
    }
    text.push_str("--- the page says\n");
    for (index, line) in step.expected.iter().enumerate() {
        let mark = if fitting == Err(index) { "  <-- not found there" } else { "" };
        writeln!(text, "{line}{mark}").expect("a string takes all");
    }
    if fitting == Err(step.expected.len()) {
        text.push_str("  <-- it ends here, the output does not\n");
    }
    writeln!(text, "--- what was printed\n{}\n---", lines.join("\n")).expect("a string takes all");
    Err(text)
}

/// Who sits at a machine, and what it begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seat {
    /// The servers' user, on a machine that has the program.
    Owner,
    /// Root, on a machine without it: what is written to `/usr` and `/var` is there for this machine only. For tests that run as root.
    Root,
}

/// A machine of its own, with a shell at which one types. Dropping it ends everything that runs on it.
pub(crate) struct Machine {
    namespace: Child,
    shell: Option<ChildStdin>,
    codes: Receiver<String>,
    directory: TempDir,
}

/// What is another directory on the machine than on the one that the test runs on; each is empty, and the user's.
const PLACES: [(&str, &str); 5] =
    [("home", "/var/lib/postgresql"), ("sockets", "/run/postgresql"), ("logs", "/var/log/postgresql"), ("srv", "/srv"), ("mnt", "/mnt")];

/// Run as root of the namespace: puts the places where they belong and becomes the user.
const ENTER: &str = r#"
set -e
directory=$1 seat=$2
shift 2
if [ "$seat" = Root ]; then
    # In memory: what is below the directory may be such a layer itself.
    mount -t tmpfs layers "$directory/layers"
    for place in usr var; do
        mkdir "$directory/layers/$place" "$directory/layers/$place.work"
        mount -t overlay -o "lowerdir=/$place,upperdir=$directory/layers/$place,workdir=$directory/layers/$place.work" overlay "/$place"
    done
    mount --bind "$directory/run" /run
fi
while [ "$1" != -- ]; do
    mount --bind "$directory/$1" "$2"
    shift 2
done
shift
mount --bind "$directory/etc" /etc
mount --bind "$directory/bin" /usr/local/bin
cd /var/lib/postgresql
exec "$@"
"#;

impl Machine {
    /// A machine on which nothing runs yet, with `environment` beside what a login gives.
    pub(crate) fn start(environment: &[(String, String)]) -> Machine {
        Machine::start_at(Seat::Owner, environment)
    }

    /// The same with somebody at it.
    pub(crate) fn start_at(seat: Seat, environment: &[(String, String)]) -> Machine {
        let owner = Owner::current();
        let directory = temp_dir();
        let path = directory.path();
        for (name, _) in PLACES {
            fs::create_dir(path.join(name)).expect("own directory");
            owner.own(&path.join(name));
        }
        for name in ["bin", "etc", "layers", "run/postgresql", "run/lock"] {
            fs::create_dir_all(path.join(name)).expect("own directory");
        }
        for name in ["mnt/safe", "mnt/offsite", "control"] {
            fs::create_dir(path.join(name)).expect("own directory");
            owner.own(&path.join(name));
        }
        fs::set_permissions(path.join("mnt/safe"), fs::Permissions::from_mode(0o700)).expect("own directory");
        // A copy, because there is no /etc/lifeboat to put anything over; what this user may not read the machine does without.
        let _ = Command::new("cp").args(["-a", "/etc/.", "-t"]).arg(path.join("etc")).stderr(Stdio::null()).status();
        if seat == Seat::Owner {
            fs::create_dir_all(path.join("etc/lifeboat")).expect("own directory");
            owner.own(&path.join("etc/lifeboat"));
            std::os::unix::fs::symlink(reachable_binary(), path.join("bin/lifeboat")).expect("own directory");
        }

        let mut command = Command::new("unshare");
        let (uid, gid) = owner.ids();
        let user: Vec<String> = if seat == Seat::Root {
            Vec::new()
        } else if rustix::process::geteuid().is_root() {
            vec!["setpriv".into(), format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]
        } else {
            // Root of a namespace of its own, which may mount; and then itself again, because PostgreSQL does not run as root.
            command.args(["--user", "--map-root-user"]);
            ["unshare", "--user"].map(String::from).into_iter().chain([format!("--map-user={uid}"), format!("--map-group={gid}")]).collect()
        };
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", ENTER, "enter"]).arg(path);
        command.arg(format!("{seat:?}"));
        for (name, place) in PLACES {
            command.args([name, place]);
        }
        let programs = Postgres::V15.bin_directory();
        command.arg("--").args(user).args(["env", "-i"]);
        let system = if seat == Seat::Root { "/usr/sbin:/usr/bin:/sbin:/bin" } else { "/usr/bin:/bin" };
        command.arg(format!("PATH=/usr/local/bin:{}:{system}", programs.display()));
        command.arg(format!("PG_BIN={}", programs.display()));
        command.args(match seat {
            Seat::Owner => ["HOME=/var/lib/postgresql", "USER=postgres", "PGUSER=postgres"].as_slice(),
            // No home of the machine that the test runs on.
            Seat::Root => &["HOME=/srv", "USER=root", "DEBIAN_FRONTEND=noninteractive"],
        });
        command.args(["TZ=UTC", "LC_ALL=C.UTF-8"]);
        command.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.args(["bash", "--noprofile", "--norc"]);
        let said = File::create(path.join("shell.log")).expect("own directory");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(said);
        let mut namespace = command.spawn().expect("util-linux is installed");
        let shell = namespace.stdin.take().expect("piped");
        let printed = namespace.stdout.take().expect("piped");
        let (sender, codes) = channel();
        // On a thread, so that a command that hangs can be given up. It ends when the shell does.
        thread::spawn(move || {
            for line in BufReader::new(printed).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Machine { namespace, shell: Some(shell), codes, directory }
    }

    /// A directory of the machine, as the test sees it.
    pub(crate) fn control(&self) -> PathBuf {
        self.place("control")
    }

    /// One of its places, likewise: `srv`, `bin`, `run`.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Types a command, and returns its exit code and what it printed. What it sets in the shell stays, as for who sits there.
    pub(crate) fn run(&mut self, command: &str) -> (i32, String) {
        let (typed, printed) = (self.control().join("typed"), self.control().join("printed"));
        fs::write(&typed, command).expect("own directory");
        let (typed, shown) = (typed.display(), printed.display());
        // Into a file and not a pipe: a server that is started by it keeps that open.
        let line = format!("eval \"$(cat '{typed}')\" >'{shown}' 2>&1 </dev/null; echo \"$?\"\n");
        let _ = self.shell.as_mut().expect("open until it is dropped").write_all(line.as_bytes());
        let code = match self.codes.recv_timeout(DEADLINE) {
            Ok(code) => code.parse().expect("an exit code"),
            Err(error) => {
                let why = if error == RecvTimeoutError::Timeout { "does not end" } else { "ended the shell" };
                panic!("{command}\n{why}:\n{}\n{}", read(&printed), read(&self.directory.path().join("shell.log")));
            }
        };
        (code, read(&printed))
    }

    /// Runs a script that makes the machine what a scene begins with; it fails with the first command that does.
    pub(crate) fn prepare(&mut self, script: &str) {
        let path = self.control().join("scene.sh");
        fs::write(&path, script).expect("own directory");
        let (code, printed) = self.run(&format!("bash -eu -o pipefail '{}'", path.display()));
        assert_eq!(code, 0, "the scene cannot be made:\n{printed}\n{script}");
    }

    /// Types the commands of a page one by one, and compares what they do. Stops at the first that does otherwise.
    pub(crate) fn follow(&mut self, page: &str, steps: &[Step]) -> Result<(), String> {
        steps.iter().try_for_each(|step| {
            let (code, printed) = self.run(&step.command);
            compare(page, step, code, &printed)
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The shell is the first process of its namespace: when it ends, the kernel ends all others.
        drop(self.shell.take());
        let _ = self.namespace.kill();
        let _ = self.namespace.wait();
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Every mention of lifeboat in the running text, `lifeboat …` between backticks, with its line: for pages that name commands beside those
/// that they show.
pub(crate) fn mentions(page: &str) -> Vec<(usize, String)> {
    let mut in_block = false;
    let mut found = Vec::new();
    for (index, line) in page.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            let spans = line.split('`').skip(1).step_by(2);
            found.extend(spans.filter(|span| span.starts_with("lifeboat ")).map(|span| (index + 1, span.to_owned())));
        }
    }
    found
}

/// Whether the program has a command of this name.
pub(crate) fn has_command(name: &str) -> bool {
    let output = Command::new(env!("CARGO_BIN_EXE_lifeboat")).arg("--help").env_clear().output().expect("it is built");
    String::from_utf8_lossy(&output.stdout).lines().any(|line| line.split_whitespace().next() == Some(name))
}

/// Why a mentioned command is none: its words are no command, or an option of it is not there.
pub(crate) fn is_command(mention: &str) -> Result<(), String> {
    let is_word = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
    let words: Vec<&str> = mention.split_whitespace().skip(1).collect();
    let help = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_lifeboat")).args(words).arg("--help").env_clear().output().expect("it is built");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // Options that all commands have may come before the command, with their values.
    let start = (0..words.len()).find(|&at| is_word(&words[at]) && help(&words[at..=at]).is_some());
    let start = start.ok_or_else(|| format!("{mention}: no such command"))?;
    let command: Vec<&str> = words[start..].iter().copied().take_while(is_word).collect();
    // `restore latest`: the last word may be an argument.
    let text = (1..=command.len()).rev().find_map(|count| help(&command[..count]));
    let text = text.ok_or_else(|| format!("{mention}: no such command"))?;
    let options = words.iter().filter_map(|word| word.strip_prefix("--"));
    let missing = options.map(|name| name.split('=').next().unwrap_or(name)).find(|name| !text.contains(&format!("--{name}")));
    missing.map_or(Ok(()), |name| Err(format!("{mention}: it has no option --{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str =
        "text\n\n```console scene=one exit=3\n$ true\n$ echo a \\\n> b\na…\n…\n```\n\n```toml\nname = 1\n```\n```console\n$ false\n```\n";

    #[test]
    fn commands_and_what_they_print_are_read_with_their_lines_and_codes() {
        let scenes = scenes(PAGE).unwrap();
        let step = |line, command: &str, expected: &[&str], code| Step {
            line,
            command: command.into(),
            expected: expected.iter().map(|line| (*line).to_owned()).collect(),
            code,
        };
        let steps = vec![step(4, "true", &[], 0), step(5, "echo a \\\nb", &["a…", "…"], 3), step(15, "false", &[], 0)];
        assert_eq!(scenes, [Scene { name: "one".into(), steps }]);
    }

    #[test]
    fn what_would_not_be_run_is_refused() {
        for (page, why) in [
            ("```console\n$ true\n```", "no scene"),
            ("```sh\ntrue\n```", "are run"),
            ("```\n$ true\n```", "are run"),
            ("```text\n$ true\n```", "are run"),
            ("$ true", "outside"),
            ("```console scene=a\noutput\n```", "without a command"),
            ("```console scene=a\n```", "without a command"),
            ("```console scene=a exit=x\n$ true\n```", "no exit code"),
            ("```console scene=a code=1\n$ true\n```", "says nothing"),
            ("```console scene=a\n$ true", "does not end"),
        ] {
            let error = scenes(page).unwrap_err();
            assert!(error.contains(why), "{page:?}: {error}");
        }
    }

    #[test]
    fn dots_stand_for_anything_and_nothing_else_does() {
        let step = |expected: &str, code| Step { line: 7, command: "x".into(), expected: expected.lines().map(Into::into).collect(), code };
        for (expected, output) in [
            ("", ""),
            ("a", "a\n"),
            ("a…c", "abc"),
            ("…", ""),
            ("…", "a\nb"),
            ("a\n…\nb\n…\nc", "a\nb\nb\nx\nc"),
            ("…\nlast", "first\nlast"),
            ("…x…x", "axbxx"),
        ] {
            compare("page", &step(expected, 0), 0, output).unwrap_or_else(|text| panic!("{expected:?} {output:?}: {text}"));
        }
        for (expected, output) in
            [("", "a"), ("a", ""), ("a", "ab"), ("a…c", "abd"), ("…b", "a"), ("…\nlast", "last\nmore"), ("a\nb", "a\nc"), ("a…a", "a")]
        {
            let text = compare("page", &step(expected, 0), 0, output).unwrap_err();
            assert!(text.starts_with("page:7: $ x\n") && text.contains("<--"), "{expected:?} {output:?}: {text}");
        }
        let text = compare("page", &step("a", 3), 0, "a").unwrap_err();
        assert!(text.contains("ended with 0, the page says 3"), "{text}");
    }

    #[test]
    fn a_machine_has_places_of_its_own_and_ends_what_runs_on_it() {
        let mut machine = Machine::start(&[("GREETING".into(), "hello".into())]);
        let (code, printed) = machine.run("word=$GREETING; id -u >/srv/who; cat /srv/who; ls -A /etc/lifeboat");
        assert_eq!((code, printed.trim()), (0, Owner::current().ids().0.to_string().as_str()));
        // The shell is one shell; what it is told is on the machine only.
        assert_eq!(machine.run("echo $word; (exit 7)"), (7, "hello\n".into()));
        assert!(!Path::new("/srv/who").exists());
        let (code, printed) = machine.run("setsid sleep 86399 >/dev/null & echo $!; readlink /proc/$!/ns/pid");
        assert_eq!(code, 0);
        let namespace = printed.lines().nth(1).expect("a namespace").to_owned();
        let lives = || {
            let processes = fs::read_dir("/proc").expect("Linux").flatten();
            processes.filter_map(|one| fs::read_link(one.path().join("ns/pid")).ok()).any(|one| one.display().to_string() == namespace)
        };
        assert!(lives());
        drop(machine);
        while lives() {
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_mentioned_command_is_one() {
        let page = "`lifeboat list` and `psql`\n```console\n`lifeboat no`\n```\n`lifeboat verify --all`";
        assert_eq!(mentions(page), [(1, "lifeboat list".into()), (5, "lifeboat verify --all".into())]);
        for good in [
            "lifeboat list",
            "lifeboat restore latest --pgdata DIR",
            "lifeboat wal status",
            "lifeboat --as-of TIME list",
            "lifeboat verify --all",
        ] {
            is_command(good).unwrap();
        }
        for bad in ["lifeboat lost", "lifeboat verify --everything", "lifeboat --sideways list"] {
            is_command(bad).unwrap_err();
        }
    }
}
