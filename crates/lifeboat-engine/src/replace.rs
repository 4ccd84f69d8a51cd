//! Small files that others read at any moment: replaced as a whole, durably, or left as they are.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::store::sync_directory;

/// Who may read a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mode {
    /// These, as far as the process lets (umask(2)).
    AtMost(u32),
    /// These.
    Exactly(u32),
}

/// Puts `bytes` in the place of a file, whether or not there is one. The other name that they have until then begins with a dot and ends with random
/// letters, so that nobody who looks for files of a kind takes it for one; a failure leaves nothing under it.
///
/// # Errors
///
/// The file system: then the old file is as it was.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: Mode) -> io::Result<()> {
    let named = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
    let mut aside = OsString::from(".");
    aside.push(path.file_name().ok_or_else(named)?);
    aside.push(format!(".{}", crate::random::id()));
    let aside = path.with_file_name(aside);
    let write = || {
        let (Mode::AtMost(bits) | Mode::Exactly(bits)) = mode;
        let mut file = File::options().write(true).create_new(true).mode(bits).open(&aside)?;
        if let Mode::Exactly(bits) = mode {
            file.set_permissions(Permissions::from_mode(bits))?;
        }
        file.write_all(bytes)?;
        // Without this a power failure may leave the new name with nothing in it.
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&aside)))?;
    sync_directory(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}
