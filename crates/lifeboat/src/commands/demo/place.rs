//! Where the demo lives, as whom its servers run, and the process that cleans up after it.
//!
//! Everything stands below one directory; nothing outside of it is written.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::failure::{EXIT_FAILED, Failure};

/// A Unix socket's path may have 107 bytes on Linux and 103 elsewhere (`sun_path`); `/s/.s.PGSQL.5432` comes after ours.
const LONGEST: usize = 103 - "/s/.s.PGSQL.65535".len();

/// PostgreSQL refuses to run as root; then its programs run as this user.
#[derive(Debug, Clone)]
pub(super) struct ServerUser {
    pub(super) name: String,
    uid: u32,
    gid: u32,
}

impl ServerUser {
    /// `None` unless we are root.
    fn find() -> Result<Option<Self>, Failure> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let find = |name: &str| {
            let fields: Vec<&str> =
                text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields.first() == Some(&name))?;
            Some(Self { name: name.to_owned(), uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
        };
        let user = find("postgres").or_else(|| find("nobody")).filter(|user| user.uid != 0);
        user.map(Some).ok_or_else(|| {
            Failure::usage("run a server: PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")
                .hint("run lifeboat demo as an ordinary user")
        })
    }
}

/// The demo's directory.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    pub(super) user: Option<ServerUser>,
    existed: bool,
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(EXIT_FAILED, format!("{what} {}: {error}", path.display())).hint("choose another place: lifeboat demo --directory DIR")
}

impl Place {
    /// Makes the directory, or takes the empty one that was named.
    pub(super) fn make(named: Option<&Path>) -> Result<Self, Failure> {
        let user = ServerUser::find()?;
        let directory = match named {
            Some(path) => std::path::absolute(path).map_err(|error| failed("find", path, &error))?,
            None => temporary(user.is_some()).join(format!("lifeboat-demo-{}", hex::encode(lifeboat_engine::random::bytes::<5>()))),
        };
        // What would have to be quoted in a socket directory, a connection string, a configuration or a shell.
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
        if directory.as_os_str().len() > LONGEST || !directory.to_str().is_some_and(|text| text.chars().all(plain)) {
            return Err(Failure::usage(format!(
                "use {}: the server's socket needs a path of at most {LONGEST} bytes, letters, digits and ._-+@",
                directory.display()
            ))
            .hint("choose another place: lifeboat demo --directory /tmp/demo"));
        }
        let existed = directory.exists();
        if existed {
            let mut entries = fs::read_dir(&directory).map_err(|error| failed("read", &directory, &error))?;
            if entries.next().is_some() {
                return Err(Failure::usage(format!("use {}: it is not empty", directory.display()))
                    .hint("choose another place: lifeboat demo --directory DIR"));
            }
        } else {
            fs::DirBuilder::new().mode(0o700).create(&directory).map_err(|error| failed("make", &directory, &error))?;
        }
        let directory = fs::canonicalize(&directory).map_err(|error| failed("find", &directory, &error))?;
        let place = Self { directory, user, existed };
        if let Some(user) = &place.user {
            if !existed {
                let open = fs::Permissions::from_mode(0o755);
                fs::set_permissions(&place.directory, open).map_err(|error| failed("open", &place.directory, &error))?;
            }
            if let Some(closed) = place.directory.ancestors().find(|path| !fs::metadata(path).is_ok_and(|found| found.mode() & 0o001 != 0))
            {
                if !existed {
                    let _ = fs::remove_dir(&place.directory);
                }
                return Err(Failure::usage(format!(
                    "use {}: user {} cannot pass {}",
                    place.directory.display(),
                    user.name,
                    closed.display()
                ))
                .hint("choose another place: lifeboat demo --directory /tmp/demo"));
            }
        }
        Ok(place)
    }

    /// A path below the directory.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes a directory that belongs to the server's user.
    pub(super) fn make_directory(&self, name: &str, mode: u32) -> Result<PathBuf, Failure> {
        let path = self.join(name);
        fs::DirBuilder::new().mode(mode).create(&path).map_err(|error| failed("make", &path, &error))?;
        self.give(&path)?;
        Ok(path)
    }

    /// Gives a file or directory to the server's user.
    pub(super) fn give(&self, path: &Path) -> Result<(), Failure> {
        match &self.user {
            Some(user) => std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).map_err(|error| failed("give away", path, &error)),
            None => Ok(()),
        }
    }

    /// Makes a command run as the server's user.
    pub(super) fn as_server_user(&self, command: &mut Command) {
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
    }

    /// Starts the process that cleans up.
    pub(super) fn guard(&self, keep: bool) -> Result<Guard, Failure> {
        let what = match (keep, self.existed) {
            (true, _) => "keep",
            (false, true) => "empty",
            (false, false) => "remove",
        };
        let mut command = Command::new("sh");
        command.args(["-c", include_str!("guard.sh"), "lifeboat-demo-guard"]).arg(&self.directory).arg(what);
        // Of its own group: a Ctrl-C ends the demo, not this.
        command.process_group(0).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = command.spawn().map_err(|error| {
            Failure::new(EXIT_FAILED, format!("run sh: {error}")).hint("lifeboat demo needs a POSIX shell to clean up after itself")
        })?;
        let pipe = process.stdin.take();
        Ok(Guard { process, pipe })
    }
}

/// The system's directory for temporary files, or `/tmp` where that is too long, or closed to the server's user.
fn temporary(other_user: bool) -> PathBuf {
    let configured = std::env::temp_dir();
    let open = configured.ancestors().all(|path| fs::metadata(path).is_ok_and(|found| found.mode() & 0o001 != 0));
    let short = configured.as_os_str().len() + "/lifeboat-demo-0123456789".len() <= LONGEST;
    if configured.is_absolute() && short && (open || !other_user) { configured } else { PathBuf::from("/tmp") }
}

/// The process that cleans up. Dropping it waits until that is done.
#[derive(Debug)]
pub(super) struct Guard {
    process: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    fn tell(&mut self, line: &str) {
        if let Some(pipe) = &mut self.pipe {
            let _ = pipe.write_all(line.as_bytes());
        }
    }

    /// Waits for a command; should the demo end before, the command is ended.
    pub(super) fn wait(&mut self, child: Child) -> std::io::Result<std::process::Output> {
        self.tell(&format!("run {}\n", child.id()));
        let output = child.wait_with_output();
        self.tell("ran\n");
        output
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.process.wait();
    }
}
