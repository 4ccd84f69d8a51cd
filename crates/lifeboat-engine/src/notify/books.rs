//! What each sink was told, between one run of the agent and the next: a JSON file for each, written whole.
//!
//! Only who was told what is lost with one: what still holds is told again, once.

use std::fs;
use std::path::{Path, PathBuf};

use lifeboat_core::alert::book::Book;
use serde::{Deserialize, Serialize};

use crate::replace::{Mode, replace};

/// Version of the files: another one is not read, and the book begun anew.
const VERSION: u32 = 1;

/// Bytes of a file that are read. An alert has some three hundred, and there are as many alerts as kinds, repositories, disks and damaged backups.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    #[serde(flatten)]
    book: Book,
}

/// Where the book of a sink is kept.
pub(super) struct Place {
    path: PathBuf,
    /// As it was last written.
    written: Option<Vec<u8>>,
}

impl Place {
    /// The place, and what stands there. A book that cannot be read is begun anew, and the text says so.
    pub(super) fn open(directory: &Path, sink: &str) -> (Self, Book, Option<String>) {
        let path = directory.join(format!("{sink}.json"));
        let (written, book, problem) = match read(&path) {
            Ok(Some((bytes, book))) => (Some(bytes), book, None),
            Ok(None) => (None, Book::default(), None),
            Err(problem) => {
                let text = format!("{} cannot be read, and what holds is told anew: {problem}", path.display());
                (None, Book::default(), Some(text))
            }
        };
        (Self { path, written }, book, problem)
    }

    /// Writes the book, if it is another than the one that stands there. The error is the reason, in a line.
    pub(super) fn keep(&mut self, book: &Book) -> Result<(), String> {
        let mut bytes = serde_json::to_vec(&Kept { version: VERSION, book: book.clone() }).expect("a book has names for keys");
        bytes.push(b'\n');
        if self.written.as_ref() == Some(&bytes) || (self.written.is_none() && book.entries.is_empty()) {
            return Ok(());
        }
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let kept = fs::create_dir_all(directory).and_then(|()| replace(&self.path, &bytes, Mode::AtMost(0o644)));
        kept.map_err(|error| format!("{} cannot be written: {error}", self.path.display()))?;
        self.written = Some(bytes);
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<(Vec<u8>, Book)>, String> {
    let length = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
        Ok(metadata) => metadata.len(),
    };
    if length > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if kept.version != VERSION {
        return Err(format!("it is of version {}, and not {VERSION}", kept.version));
    }
    Ok(Some((bytes, kept.book)))
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use lifeboat_core::alert::book::Rhythm;
    use lifeboat_core::alert::{Severity, trial};

    use super::*;

    const RHYTHM: Rhythm =
        Rhythm { group_wait: SignedDuration::ZERO, repeat: SignedDuration::from_hours(1), resolve_after: SignedDuration::ZERO };

    #[test]
    fn a_book_is_the_same_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (mut place, mut book, problem) = Place::open(&directory.path().join("deep/er"), "ops");
        assert_eq!((&book, problem), (&Book::default(), None));
        place.keep(&book).unwrap();
        assert!(!directory.path().join("deep").exists(), "nothing to be kept");
        book.note(&[trial(Severity::Warning)], Timestamp::UNIX_EPOCH, &RHYTHM);
        let message = book.message(Timestamp::UNIX_EPOCH, &RHYTHM).unwrap();
        book.arrived(&message, Timestamp::UNIX_EPOCH);
        place.keep(&book).unwrap();
        let (_, again, problem) = Place::open(&directory.path().join("deep/er"), "ops");
        assert_eq!((again, problem), (book, None));
    }

    #[test]
    fn one_that_cannot_be_read_is_begun_anew_and_that_is_said() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["", "{", "{\"version\":2,\"entries\":{}}", "{\"entries\":{}}", "null"] {
            fs::write(directory.path().join("ops.json"), text).unwrap();
            let (mut place, mut book, problem) = Place::open(directory.path(), "ops");
            assert!(book == Book::default() && problem.is_some_and(|text| text.contains("ops.json")), "{text:?}");
            book.note(&[trial(Severity::Warning)], Timestamp::UNIX_EPOCH, &RHYTHM);
            place.keep(&book).unwrap();
            assert_eq!(Place::open(directory.path(), "ops").1, book);
        }
        // A directory where the file should be: neither read nor written.
        fs::create_dir_all(directory.path().join("other.json/x")).unwrap();
        let (mut place, mut book, problem) = Place::open(directory.path(), "other");
        assert!(problem.is_some());
        book.note(&[trial(Severity::Warning)], Timestamp::UNIX_EPOCH, &RHYTHM);
        assert!(place.keep(&book).unwrap_err().contains("other.json"));
    }
}
