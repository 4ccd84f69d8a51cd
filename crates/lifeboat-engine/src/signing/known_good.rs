//! The list of statements that an operator vouched for when a key was revoked.
//!
//! A key that was stolen, and whose signatures no timestamp authority dated, proves nothing any more: its thief writes any date. But what stood
//! in the repository before, and was looked at then, is still good; otherwise revoking a key would be losing every backup. So revoking
//! writes down the SHA-256 of every such statement. A statement on the list counts whoever brings it, because it is the very same one; a
//! later one of the thief's is not on it.
//!
//! The file: 64 lower-case hexadecimal digits and a newline for each statement, ascending, none twice. Fixed lines, so that one of ten million artifacts
//! is found with a few reads and nothing is held in memory. It is as trustworthy as the configuration that names it, and belongs beside it.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use lifeboat_core::repository::Sha256;

/// Bytes of a line: digits and a newline.
const LINE_BYTES: u64 = 65;

/// A list that can be looked into.
#[derive(Debug)]
pub struct KnownGood {
    path: PathBuf,
    file: File,
    lines: u64,
}

impl KnownGood {
    /// Opens a list.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no list. That it is in order is not looked at: out of order, it vouches for less.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        if bytes % LINE_BYTES != 0 {
            return Err(damaged("its lines do not have 64 digits each"));
        }
        let list = Self { path: path.to_owned(), file, lines: bytes / LINE_BYTES };
        if list.lines > 0 {
            list.line(0)?;
            list.line(list.lines - 1)?;
        }
        Ok(list)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many statements are on it.
    pub fn len(&self) -> u64 {
        self.lines
    }

    /// Whether nothing is on it.
    pub fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// Whether a statement is on it.
    ///
    /// # Errors
    ///
    /// Nobody knows.
    pub fn contains(&self, statement: Sha256) -> io::Result<bool> {
        let (mut low, mut high) = (0, self.lines);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.line(middle)?.0.cmp(&statement.0) {
                std::cmp::Ordering::Equal => return Ok(true),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(false)
    }

    fn line(&self, number: u64) -> io::Result<Sha256> {
        let mut line = [0; LINE_BYTES as usize];
        self.file.read_exact_at(&mut line, number * LINE_BYTES)?;
        let (digits, newline) = line.split_at(line.len() - 1);
        let digits = std::str::from_utf8(digits).ok().filter(|_| newline == b"\n");
        digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| damaged("a line is no SHA-256"))
    }

    /// Writes a list into a new file, durable when this returns. Order and repetitions of `statements` do not matter.
    ///
    /// # Errors
    ///
    /// It exists, or cannot be written; what was begun is taken away.
    pub fn write(path: &Path, mut statements: Vec<Sha256>) -> io::Result<u64> {
        statements.sort_unstable();
        statements.dedup();
        let file = File::options().write(true).create_new(true).mode(0o644).open(path)?;
        let write = || {
            let mut out = BufWriter::new(&file);
            for statement in &statements {
                writeln!(out, "{statement}")?;
            }
            out.flush()?;
            file.sync_all()
        };
        write().inspect_err(|_| drop(std::fs::remove_file(path)))?;
        Ok(statements.len() as u64)
    }
}

fn damaged(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it is no list of statements: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(count: u32) -> Vec<Sha256> {
        (0..count).map(|number| crate::sha256::of(&number.to_le_bytes())).collect()
    }

    #[test]
    fn what_is_on_the_list_is_found_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        for count in [0, 1, 2, 3, 100, 1001] {
            let path = directory.path().join(count.to_string());
            let on_it = digests(count);
            let twice = [on_it.clone(), on_it.clone()].concat();
            assert_eq!(KnownGood::write(&path, twice).unwrap(), u64::from(count));
            let list = KnownGood::open(&path).unwrap();
            assert_eq!((list.len(), list.is_empty()), (u64::from(count), count == 0));
            assert!(on_it.iter().all(|statement| list.contains(*statement).unwrap()));
            let others = digests(2002).split_off(count as usize);
            assert!(!others.iter().any(|statement| list.contains(*statement).unwrap()));
            assert!(KnownGood::write(&path, on_it).is_err(), "a list is never overwritten");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_and_vouches_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        let good = digests(1)[0].to_string();
        for bad in ["hello\n".to_owned(), good.clone(), format!("{good}\r"), format!("{}\n", good.to_uppercase()), format!("{good}\n\n")] {
            std::fs::write(&path, &bad).unwrap();
            assert!(KnownGood::open(&path).is_err(), "{bad:?}");
        }
        // Damage in the middle is found when it is come across, and is not "no".
        std::fs::write(&path, format!("{good}\n{}\n{good}\n", "x".repeat(64))).unwrap();
        assert!(KnownGood::open(&path).unwrap().contains(digests(1)[0]).is_err());
    }
}
