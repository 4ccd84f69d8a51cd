//! What is between a drill's server and the network: a namespace with nothing in it but a loopback that is down.
//!
//! A Unix socket with a path is reached from outside of it all the same (network_namespaces(7): only abstract ones belong to a namespace).
//! util-linux's `unshare` and `setpriv` become the program that they run, so the process id stays the one that was started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::user::PlaceUser;

/// How the server is kept off the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wall {
    /// A network namespace, made by root, in which these directories are empty: a socket with a path leads out of any network, to a server
    /// of production as well, and what is production's is not there to be read either.
    Root(Vec<PathBuf>),
    /// One inside a user namespace, which an ordinary user may make where the system allows it.
    User,
    /// None, and why.
    None(String),
}

/// Where programs of a host have their sockets.
const SOCKETS: [&str; 2] = ["/run", "/tmp"];

/// Puts nothing in the place of directories, as many as its first argument says, and becomes the program behind them.
const HIDE: &str = "n=$1; shift; while [ \"$n\" -gt 0 ]; do mount -t tmpfs -o ro,mode=0,size=4k lifeboat \"$1\" || exit 1; shift; n=$((n - 1)); done; exec \"$@\"";

/// What is hidden from the server: what it must not touch, and where sockets are, without what it needs itself.
fn hidden(forbidden: &[PathBuf], needed: &[&Path]) -> Vec<PathBuf> {
    let real = |path: &Path| fs::canonicalize(path).ok().filter(|path| path.is_dir());
    let needed: Vec<PathBuf> = needed.iter().filter_map(|path| real(path)).collect();
    let mut all: Vec<PathBuf> = SOCKETS.iter().map(Path::new).chain(forbidden.iter().map(PathBuf::as_path)).filter_map(real).collect();
    all.retain(|path| !needed.iter().any(|needed| needed.starts_with(path)));
    all.sort();
    all.dedup();
    // What is in a hidden directory is not there to be hidden.
    let outer = all.clone();
    all.retain(|path| !outer.iter().any(|other| other != path && path.starts_with(other)));
    all
}

fn tool(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].iter().map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

impl Wall {
    /// The first one that can be had, tried with a program that does nothing.
    pub(super) fn find(user: &PlaceUser, directory: &Path, socket: &Path, forbidden: &[PathBuf]) -> Self {
        if tool("unshare").is_none() {
            return Self::None("not isolated: there is no unshare (util-linux) here".into());
        }
        let ours = network_of("self").unwrap_or_default();
        let mut problems = Vec::new();
        for wall in [Self::Root(hidden(forbidden, &[directory, socket])), Self::Root(Vec::new()), Self::User] {
            if matches!(wall, Self::Root(_)) && !rustix::process::geteuid().is_root() {
                continue;
            }
            match wall.run(user, socket, "exec readlink /proc/self/ns/net") {
                Ok(theirs) if !theirs.is_empty() && theirs != ours => return wall,
                Ok(_) => problems.push(format!("{}: it had ours", wall.words())),
                Err(problem) => problems.push(format!("{}: {problem}", wall.words())),
            }
        }
        Self::None(format!("not isolated: {}", problems.join("; ")))
    }

    /// In words.
    pub(crate) const fn words(&self) -> &'static str {
        match self {
            Self::Root(_) => "a network namespace of its own",
            Self::User => "a network namespace of its own, in a user namespace",
            Self::None(_) => "the network of this host",
        }
    }

    /// The programs that make it.
    pub(super) fn tools(&self) -> Vec<PathBuf> {
        let unshare = tool("unshare").filter(|_| !matches!(self, Self::None(_)));
        unshare.into_iter().chain(tool("setpriv")).collect()
    }

    /// The directories that are empty behind it.
    pub(crate) fn hidden(&self) -> &[PathBuf] {
        match self {
            Self::Root(hidden) => hidden,
            Self::User | Self::None(_) => &[],
        }
    }

    /// Whether the user gets into a directory.
    pub(super) fn enter(&self, user: &PlaceUser, directory: &Path) -> Result<(), String> {
        self.run(user, directory, "exec touch \"$1/.lifeboat\" && rm \"$1/.lifeboat\"")?;
        let _ = fs::remove_file(directory.join(".lifeboat"));
        Ok(())
    }

    fn run(&self, user: &PlaceUser, directory: &Path, script: &str) -> Result<String, String> {
        let output = self
            .command(user, Path::new("/bin/sh"))
            .args(["-c", script, "sh"])
            .arg(directory)
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        Err(text.lines().last().map_or_else(|| output.status.to_string(), |line| line.trim().to_owned()))
    }

    /// A program as `user` behind this wall, with an environment of its own and without input.
    pub(super) fn command(&self, user: &PlaceUser, program: &Path) -> Command {
        let (unshare, setpriv) = (tool("unshare"), tool("setpriv"));
        let mut line: Vec<String> = Vec::new();
        let mut direct = false;
        let put = |line: &mut Vec<String>, program: &Path, arguments: &[String]| {
            line.push(program.display().to_string());
            line.extend_from_slice(arguments);
            line.push("--".into());
        };
        // The System V memory of a server that is killed goes with the namespace.
        let root_net = ["--net", "--ipc", "--mount"].map(str::to_owned);
        let user_net = ["--user", "--map-current-user", "--net", "--ipc"].map(str::to_owned);
        if let (Self::Root(hidden), Some(unshare)) = (self, &unshare) {
            // Not what the program itself is in.
            let hidden: Vec<String> =
                hidden.iter().filter(|path| !program.starts_with(path)).map(|path| path.display().to_string()).collect();
            put(&mut line, unshare, if hidden.is_empty() { &root_net[..2] } else { &root_net });
            if !hidden.is_empty() {
                line.extend(["/bin/sh", "-c", HIDE, "sh"].map(str::to_owned));
                line.push(hidden.len().to_string());
                line.extend(hidden);
            }
        }
        match &setpriv {
            // Nothing that it runs becomes more than it is: no sudo, no setuid program.
            Some(setpriv) if user.switched => {
                let ids =
                    [format!("--reuid={}", user.uid), format!("--regid={}", user.gid), "--clear-groups".into(), "--no-new-privs".into()];
                put(&mut line, setpriv, &ids);
            }
            Some(setpriv) => put(&mut line, setpriv, &["--no-new-privs".into()]),
            None => direct = user.switched,
        }
        if let (Self::User, Some(unshare)) = (self, &unshare) {
            put(&mut line, unshare, &user_net);
        }
        line.push(program.display().to_string());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        if direct {
            // Root's namespace needs root, and this changes the user first: `find` sees that fail, and takes another.
            use std::os::unix::process::CommandExt as _;
            command.uid(user.uid).gid(user.gid);
        }
        command.env_clear().envs([("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LC_ALL", "C"), ("TZ", "UTC"), ("HOME", "/")]);
        command.current_dir("/").stdin(Stdio::null());
        command
    }
}

/// The network namespace of a process, as the kernel names it.
pub(super) fn network_of(process: &str) -> Option<String> {
    Some(fs::read_link(format!("/proc/{process}/ns/net")).ok()?.to_string_lossy().into_owned())
}

/// Looks whether a running process has a network of its own with no way out. `Err`: what it has, or what could not be seen.
pub(super) fn prove(pid: i32) -> Result<String, String> {
    let theirs = network_of(&pid.to_string()).ok_or("its namespace cannot be read")?;
    let ours = network_of("self").ok_or("our own namespace cannot be read")?;
    if theirs == ours {
        return Err(format!("process {pid} is in our network, {ours}"));
    }
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}"));
    // A header, and a line for each route (proc_pid_net(5)).
    let routes = read("route").map_err(|error| format!("its routes cannot be read: {error}"))?;
    if let Some(route) = routes.lines().nth(1) {
        return Err(format!("process {pid} has a route through {}", route.split_whitespace().next().unwrap_or("?")));
    }
    // Two lines of header, then `name: counters`.
    let devices = read("dev").map_err(|error| format!("its network devices cannot be read: {error}"))?;
    if let Some(device) = devices.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).find(|name| *name != "lo") {
        // Tunnels that the kernel makes in every namespace have no route and are down; IPv6 routes would show them in use.
        let six = read("ipv6_route").unwrap_or_default();
        if six.lines().any(|line| line.split_whitespace().last() == Some(device)) {
            return Err(format!("process {pid} has a route through {device}"));
        }
    }
    Ok(format!("process {pid} is in {theirs}, we are in {ours}; it has no route"))
}
