//! The file that the textfile collector of node_exporter reads: for runs that are over before anybody can ask them.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Everybody may read it: node_exporter runs as a user of its own, and there is no secret in it.
const MODE: u32 = 0o644;

/// Replaces the file at once: whoever reads it sees the old text or the new one.
///
/// # Errors
///
/// The directory is not there, or cannot be written to; the old text is still there then.
pub fn write_textfile(path: &Path, text: &str) -> io::Result<()> {
    let named = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
    let name = path.file_name().ok_or_else(named)?;
    // The collector takes every file whose name ends in .prom: this one's does not.
    let mut aside = std::ffi::OsString::from(".");
    aside.push(name);
    aside.push(format!(".{}", crate::random::id()));
    let aside = path.with_file_name(aside);
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(MODE).open(&aside)?;
        // Whatever the umask is.
        file.set_permissions(Permissions::from_mode(MODE))?;
        file.write_all(text.as_bytes())?;
        // An empty file after a crash would be read as "there are no metrics" until the next run, which may be a day.
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&aside)))
}

#[cfg(test)]
mod tests {
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
