//! Marks of what was pushed ahead: one small file each, in the spool of one repository and one cluster.
//!
//! A mark is a shortcut. Where it cannot be written, read or found, the file is read and compared again; so nothing here is synced, and
//! what cannot be understood counts as not there. Two pushers may use one spool: names appear and disappear whole.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lifeboat_core::repository::Id;
use lifeboat_core::wal::SystemId;
use lifeboat_core::wal::push::Mark;

/// A mark that is longer is none of ours.
const MAX_MARK_BYTES: u64 = 4096;

/// After so long a mark does not count: by then something else is wrong, and reading the file again is no loss.
const MARK_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// After so long a mark goes whose file PostgreSQL does not wait for any more. Not at once: another pusher may have seen a later state.
const IDLE_LIFE: Duration = Duration::from_secs(10 * 60);

/// Where the marks of one cluster in one repository are.
pub(super) struct Spool {
    directory: PathBuf,
}

impl Spool {
    pub(super) fn of(root: &Path, repository: Id, system_id: SystemId) -> Self {
        Self { directory: root.join(repository.to_string()).join(system_id.to_string()).join("pushed") }
    }

    /// The mark of a file, unless it is too old.
    pub(super) fn read(&self, name: &str) -> Option<Mark> {
        let path = self.directory.join(name);
        let meta = fs::metadata(&path).ok()?;
        if meta.len() > MAX_MARK_BYTES || age(&meta) > MARK_LIFE {
            return None;
        }
        serde_json::from_slice(&fs::read(&path).ok()?).ok()
    }

    pub(super) fn write(&self, name: &str, mark: &Mark) -> io::Result<()> {
        let bytes = serde_json::to_vec(mark).expect("a mark has text keys only");
        let aside = self.directory.join(format!("{name}.tmp-{}", crate::random::id()));
        let write = || fs::write(&aside, &bytes);
        match write() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
                write()?;
            }
            other => other?,
        }
        fs::rename(&aside, self.directory.join(name))
    }

    /// How old the mark of a file is.
    pub(super) fn age(&self, name: &str) -> Option<Duration> {
        fs::metadata(self.directory.join(name)).ok().map(|meta| age(&meta))
    }

    /// Notes that the repository has a file that PostgreSQL does not ask for.
    pub(super) fn note_there(&self, name: &str) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        fs::write(self.directory.join(format!("there-{name}")), b"")
    }

    /// Whether that was noted less than [`IDLE_LIFE`] ago.
    pub(super) fn is_there(&self, name: &str) -> bool {
        self.age(&format!("there-{name}")).is_some_and(|age| age < IDLE_LIFE)
    }

    pub(super) fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.directory.join(name));
    }

    /// Every name that is there, with its age.
    pub(super) fn names(&self) -> HashMap<String, Duration> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return HashMap::new() };
        entries.flatten().filter_map(|entry| Some((entry.file_name().into_string().ok()?, age(&entry.metadata().ok()?)))).collect()
    }

    /// Removes what nobody will use: marks of files that do not wait any more, what a crash left half-written, and all that is old.
    pub(super) fn clean(&self, waits: impl Fn(&str) -> bool) {
        for (name, age) in self.names() {
            if age > MARK_LIFE || (age > IDLE_LIFE && !waits(&name)) {
                self.remove(&name);
            }
        }
    }
}

/// How long ago it was written; a clock that went back makes it very old.
fn age(meta: &fs::Metadata) -> Duration {
    meta.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok()).unwrap_or(Duration::MAX)
}
