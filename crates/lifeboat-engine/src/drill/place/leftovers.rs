//! What a drill leaves that was killed: a directory with a marker in it, and perhaps a server that runs on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::user::PlaceUser;
use super::{PlaceError, PlaceSettings, make_error, process};

/// Stands in every place: whose it is, and locked (flock(2)) as long as that process lives.
pub(super) const MARKER: &str = "lifeboat-drill.json";

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    drill: String,
    host: String,
    process: u32,
    /// When the process began, in ticks since the machine was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    began: Option<u64>,
    /// Which start of the machine: `/proc/sys/kernel/random/boot_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
    /// The socket's directory, where it is elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,
    /// The user, where it is nobody else's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<u32>,
}

fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|text| text.trim().to_owned())
}

impl Marker {
    pub(super) fn new(settings: &PlaceSettings, user: &PlaceUser, socket: Option<PathBuf>) -> Self {
        let process = std::process::id();
        Self {
            drill: settings.drill.clone(),
            host: settings.host.clone(),
            process,
            began: crate::process::start_ticks(process),
            boot: boot(),
            socket,
            user: user.only_ours(),
        }
    }

    /// Writes it and holds its lock.
    pub(super) fn write(&self, directory: &Path) -> Result<File, PlaceError> {
        let path = directory.join(MARKER);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(make_error(&path))?;
        let text = serde_json::to_vec(self).expect("a marker is JSON");
        file.write_all(&text).map_err(make_error(&path))?;
        file.try_lock().map_err(|error| make_error(&path)(error.into()))?;
        Ok(file)
    }
}

/// Whether a place is still somebody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftoverState {
    /// Its process is gone.
    Abandoned,
    /// Its process runs.
    Running,
    /// It is another host's: whether its process runs cannot be seen from here.
    OtherHost,
}

/// A place that another process made.
#[derive(Debug, Clone)]
pub struct Leftover {
    /// Its directory.
    pub directory: PathBuf,
    /// The drill.
    pub drill: String,
    /// The host that ran it.
    pub host: String,
    /// The process that did.
    pub process: u32,
    /// Whether it is still somebody's.
    pub state: LeftoverState,
    marker: Marker,
}

/// The places in `parent` that other processes made, seen from `host`, ours.
///
/// # Errors
/// Where `parent` cannot be read. What is in it and cannot be read, or is not ours, is no place of a drill.
pub fn leftovers(parent: &Path, host: &str) -> io::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(fs::canonicalize(parent)?)? {
        let directory = entry?.path();
        let is_ours = |path: &Path| fs::symlink_metadata(path).ok().filter(|meta| meta.uid() == rustix::process::geteuid().as_raw());
        let path = directory.join(MARKER);
        if !is_ours(&directory).is_some_and(|meta| meta.is_dir()) || !is_ours(&path).is_some_and(|meta| meta.is_file()) {
            continue;
        }
        let text = fs::read(&path).unwrap_or_default();
        let Ok(marker) = serde_json::from_slice::<Marker>(&text) else { continue };
        let state = state(&directory, &marker, host);
        found.push(Leftover { directory, drill: marker.drill.clone(), host: marker.host.clone(), process: marker.process, state, marker });
    }
    found.sort_by(|a, b| a.directory.cmp(&b.directory));
    Ok(found)
}

fn state(directory: &Path, marker: &Marker, host: &str) -> LeftoverState {
    if marker.host != host {
        return LeftoverState::OtherHost;
    }
    // Ours as well: a lock belongs to the file that was opened, not to the process.
    let free = File::open(directory.join(MARKER)).is_ok_and(|file| file.try_lock().is_ok());
    let same_start = marker.boot.is_none() || marker.boot == boot();
    let runs = same_start && marker.began.is_some() && crate::process::start_ticks(marker.process) == marker.began;
    // Two ways to see a living process. A drill in another container of this host has another number there, and the lock all the same.
    if free && (!runs || marker.process == std::process::id()) { LeftoverState::Abandoned } else { LeftoverState::Running }
}

impl Leftover {
    /// Stops what still runs there and removes it, if its process is gone. Gives what could not be removed.
    ///
    /// # Errors
    /// Where it is still somebody's.
    pub fn remove(self, host: &str) -> Result<Vec<String>, LeftoverState> {
        match state(&self.directory, &self.marker, host) {
            LeftoverState::Abandoned => {}
            other => return Err(other),
        }
        // Nobody's any more: whatever runs in it may, and has to, be ended; that it ran is no finding.
        process::stop_server(&self.directory.join("pgdata"));
        process::sweep(&self.directory, self.marker.user);
        let socket = self.marker.socket.clone().filter(|socket| is_socket_directory(socket, self.marker.user));
        let socket = socket.unwrap_or_else(|| self.directory.join("socket"));
        Ok(remove_files(&self.directory, &socket, self.marker.user))
    }
}

/// Whether a directory is one that a drill makes for a socket: what the marker names is not removed for that alone.
fn is_socket_directory(path: &Path, user: Option<u32>) -> bool {
    let named = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lifeboat-"));
    let ours = rustix::process::geteuid().as_raw();
    let owned =
        fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() && (Some(meta.uid()) == user || (user.is_none() && meta.uid() == ours)));
    let only_sockets = || {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.into_iter().all(|entry| entry.file_name().to_string_lossy().starts_with(".s.PGSQL."))
    };
    named && owned && only_sockets()
}

/// Removes the files of a place, and gives what is left. `user`: whose files in shared memory go as well.
pub(super) fn remove_files(directory: &Path, socket: &Path, user: Option<u32>) -> Vec<String> {
    let mut findings = Vec::new();
    for path in [socket, directory] {
        let removed = fs::remove_dir_all(path);
        if fs::symlink_metadata(path).is_ok() {
            let why = removed.err().map_or_else(|| "it is still there".to_owned(), |error| error.to_string());
            findings.push(format!("{} could not be removed: {why}", path.display()));
        }
    }
    // PostgreSQL's dynamic shared memory; a server that was killed leaves it.
    for entry in user.map(|_| fs::read_dir("/dev/shm")).into_iter().flatten().flatten().flatten() {
        if fs::symlink_metadata(entry.path()).ok().map(|meta| meta.uid()) == user && fs::remove_file(entry.path()).is_err() {
            findings.push(format!("{} could not be removed", entry.path().display()));
        }
    }
    findings
}
