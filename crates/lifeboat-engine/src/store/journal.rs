//! What a replica missed: a file on this host, one line for each object, so that it is healed without comparing everything.
//!
//! It makes healing fast and is trusted for nothing else: a host that lost it, or another host's, is found out by comparing listings.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lifeboat_core::repository::layout::Key;

/// A journal longer than this says "compare everything" instead: a million objects.
const MAX_BYTES: u64 = 64 << 20;

/// The line that says so: this word, and another id whenever something more was missed.
const EVERYTHING: &str = "everything";

/// More than that line has.
const TAIL_BYTES: u64 = 64;

/// The last line of a journal that says "compare everything", with its end.
fn everything() -> String {
    format!("{EVERYTHING} {}\n", crate::random::id())
}

/// One thing that a replica missed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// An object that was created.
    Put(Key),
    /// An object that was deleted.
    Delete(Key),
}

impl Entry {
    fn line(&self) -> String {
        match self {
            Self::Put(key) => format!("put {key}\n"),
            Self::Delete(key) => format!("delete {key}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ')? {
            ("put", key) => Key::parse(key).ok().map(Self::Put),
            ("delete", key) => Key::parse(key).ok().map(Self::Delete),
            _ => None,
        }
    }
}

/// What a journal says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missed {
    /// Each of them once.
    pub entries: BTreeSet<Entry>,
    /// It does not say all: too much was missed, or a line of it is damaged.
    pub everything: bool,
    /// The last line that says so: it is another when something was missed since.
    pub last: Option<String>,
}

impl Missed {
    /// Whether nothing was missed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.everything
    }
}

/// The journal of one replica.
#[derive(Debug, Clone)]
pub struct Journal {
    directory: PathBuf,
    name: String,
    most: u64,
}

impl Journal {
    /// The journal of the replica `name` in a directory, which is made when there is something to write.
    pub fn new(directory: &Path, name: &str) -> Self {
        // A name is whatever somebody wrote down; a file's is not.
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' };
        let digest = lifeboat_core::repository::Sha256::of(name.as_bytes()).to_string();
        let name = format!("{}-{}", name.chars().take(40).map(plain).collect::<String>(), &digest[..8]);
        Self { directory: directory.to_owned(), name, most: MAX_BYTES }
    }

    /// Where it stands.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.missed", self.name))
    }

    /// Only who holds it touches the file: it is replaced when some of it is forgotten.
    fn lock(&self) -> io::Result<File> {
        if !self.directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        }
        let path = self.directory.join(format!("{}.lock", self.name));
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        file.lock()?;
        Ok(file)
    }

    /// Writes an entry down, durably.
    pub fn append(&self, entry: &Entry) -> io::Result<()> {
        let _lock = self.lock()?;
        let new = !self.path().exists();
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(self.path())?;
        let length = file.metadata()?.len();
        let mut tail = vec![0; length.min(TAIL_BYTES) as usize];
        let begin = length - tail.len() as u64;
        file.read_exact_at(&mut tail, begin)?;
        let (mut at, mut text) = (length, String::new());
        match tail.split_last() {
            // It grows no more. That something was missed since it was read has to be seen all the same, or it would be forgotten with the rest.
            Some((b'\n', before)) => {
                let line = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
                let whole = line.len() < before.len() || begin == 0;
                if whole && line.starts_with(EVERYTHING.as_bytes()) {
                    at = length - line.len() as u64 - 1;
                    text = everything();
                }
            }
            // What a crash cut off must not swallow this line.
            Some(_) => text.push('\n'),
            None => {}
        }
        if at == length {
            text.push_str(&if length < self.most { entry.line() } else { everything() });
        }
        file.write_all_at(text.as_bytes(), at)?;
        file.sync_all()?;
        if new {
            super::local::sync_directory(&self.directory)?;
        }
        Ok(())
    }

    /// What it says.
    pub fn read(&self) -> io::Result<Missed> {
        let mut missed = Missed::default();
        let text = match fs::read(self.path()) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(missed),
            Err(error) => return Err(error),
        };
        missed.everything = !text.is_empty() && !text.ends_with('\n');
        for line in text.lines().filter(|line| !line.is_empty()) {
            match Entry::parse(line) {
                Some(entry) => _ = missed.entries.insert(entry),
                None => {
                    missed.everything = true;
                    missed.last = Some(line.to_owned());
                }
            }
        }
        Ok(missed)
    }

    /// Forgets what was healed; what was written down since `healed` was read stays.
    pub fn forget(&self, healed: &Missed) -> io::Result<()> {
        if healed.is_empty() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let now = self.read()?;
        let left: Vec<String> = now.entries.difference(&healed.entries).map(Entry::line).collect();
        let more = now.everything && (!healed.everything || now.last != healed.last);
        let everything = if more { everything() } else { String::new() };
        if left.is_empty() && everything.is_empty() {
            fs::remove_file(self.path())?;
        } else {
            let next = self.directory.join(format!("{}.next", self.name));
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
            file.write_all(left.concat().as_bytes())?;
            file.write_all(everything.as_bytes())?;
            file.sync_all()?;
            fs::rename(next, self.path())?;
        }
        super::local::sync_directory(&self.directory)
    }

    /// The replica answers again: whoever brought it what it missed tells the next process so.
    pub fn mark_up(&self) {
        let _ = fs::remove_file(self.directory.join(format!("{}.down", self.name)));
    }

    /// Whether the replica did not answer a moment ago, when another process asked.
    pub(super) fn was_down(&self, within: Duration) -> bool {
        let modified = fs::metadata(self.directory.join(format!("{}.down", self.name))).and_then(|meta| meta.modified());
        modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|ago| ago < within))
    }

    /// Tells the next process that the replica does not answer; a hint, which may get lost.
    pub(super) fn mark_down(&self) {
        let write = || -> io::Result<()> {
            let _lock = self.lock()?;
            fs::write(self.directory.join(format!("{}.down", self.name)), "")
        };
        let _ = write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(name: &str) -> Entry {
        Entry::Put(Key::parse(name).unwrap())
    }

    #[test]
    fn what_was_missed_is_remembered_until_it_is_healed() {
        let place = tempfile::tempdir().unwrap();
        let journal = Journal::new(&place.path().join("state"), "s3://b/p");
        assert!(journal.read().unwrap().is_empty());
        let gone = Entry::Delete(Key::parse("packs/aa/x").unwrap());
        for entry in [put("packs/aa/x"), put("packs/aa/x"), gone.clone()] {
            journal.append(&entry).unwrap();
        }
        let healed = journal.read().unwrap();
        assert_eq!(healed.entries, [put("packs/aa/x"), gone].into());
        journal.append(&put("wal/1/2")).unwrap();
        journal.forget(&healed).unwrap();
        assert_eq!(journal.read().unwrap().entries, [put("wal/1/2")].into());
        journal.forget(&journal.read().unwrap()).unwrap();
        assert!(journal.read().unwrap().is_empty());
        assert!(Journal::new(&place.path().join("state"), "s3://b/q").read().unwrap().is_empty());
    }

    #[test]
    fn a_line_that_a_crash_cut_off_means_that_everything_is_compared() {
        let place = tempfile::tempdir().unwrap();
        let journal = Journal::new(place.path(), "r");
        journal.append(&put("a")).unwrap();
        fs::write(journal.path(), "put a\nput packs/aa").unwrap();
        assert!(journal.read().unwrap().everything);
        journal.append(&put("b")).unwrap();
        assert!(journal.read().unwrap().entries.contains(&put("b")));
        fs::write(journal.path(), "put a\n\0\0\0\0\n").unwrap();
        assert!(journal.read().unwrap().everything);
    }

    #[test]
    fn a_journal_that_grows_too_long_says_everything() {
        let place = tempfile::tempdir().unwrap();
        let journal = Journal { most: 100, ..Journal::new(place.path(), "r") };
        for number in 0..40 {
            journal.append(&put(&format!("packs/{number}"))).unwrap();
        }
        let healed = journal.read().unwrap();
        assert!(healed.everything);
        assert!(fs::metadata(journal.path()).unwrap().len() < 200);
        // What is missed while everything is compared is not forgotten with the rest.
        journal.append(&put("packs/during")).unwrap();
        journal.forget(&healed).unwrap();
        let left = journal.read().unwrap();
        assert!(left.everything && left.entries.is_empty());
        journal.append(&put("packs/later")).unwrap();
        journal.forget(&left).unwrap();
        let left = journal.read().unwrap();
        assert!(left.everything);
        journal.forget(&left).unwrap();
        assert!(journal.read().unwrap().is_empty());
        // As an earlier program wrote it.
        fs::write(journal.path(), "put a\neverything\n").unwrap();
        let healed = journal.read().unwrap();
        journal.append(&put("b")).unwrap();
        journal.forget(&healed).unwrap();
        assert!(journal.read().unwrap().everything);
    }
}
