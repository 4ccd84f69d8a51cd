//! The file that the textfile collector of node_exporter reads: for runs that are over before anybody can ask them.

use std::io;
use std::path::Path;

use crate::replace::{Mode, replace};

/// Everybody may read it: node_exporter runs as a user of its own, and there is no secret in it.
const MODE: u32 = 0o644;

/// Replaces the file at once: whoever reads it sees the old text or the new one.
///
/// # Errors
///
/// The directory is not there, or cannot be written to; the old text is still there then.
pub fn write_textfile(path: &Path, text: &str) -> io::Result<()> {
    // The collector takes every file whose name ends in .prom, and an empty one as "there are no metrics" until the next run, which may be a day.
    replace(path, text.as_bytes(), Mode::Exactly(MODE))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn it_is_replaced_at_once_and_everybody_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lifeboat.prom");
        for text in ["a 1\n", "b 2\nc 3\n", ""] {
            let open = fs::File::open(&path).ok();
            write_textfile(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, MODE);
            assert_eq!(names(directory.path()), ["lifeboat.prom"]);
            // Whoever had it open reads the old text to its end.
            if let Some(old) = open {
                assert!(!io::read_to_string(old).unwrap().is_empty());
            }
        }
    }

    #[test]
    fn what_fails_leaves_the_old_text_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let taken = directory.path().join("taken.prom");
        fs::create_dir(&taken).unwrap();
        fs::write(taken.join("full"), "").unwrap();
        assert!(write_textfile(&taken, "a 1\n").is_err(), "a directory has this name");
        assert_eq!(names(directory.path()), ["taken.prom"]);
        assert_eq!(write_textfile(&directory.path().join("none/lifeboat.prom"), "").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(write_textfile(Path::new("/"), "").is_err());
    }
}
