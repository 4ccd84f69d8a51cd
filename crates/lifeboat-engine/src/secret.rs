//! Bytes that nobody must see: passwords, tokens, the text of keys.
//!
//! A [`Secret`] is wiped when it is dropped, and there is no way to print or to serialise one by accident: no `Display`, no `Serialize`, a
//! `Debug` that says nothing. Whoever needs the bytes writes [`Secret::expose`], which can be searched for. Copies are made on purpose
//! only: there is no `Clone`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

/// The longest secret that is read from a file, in bytes. Key files and identities have less than 4 KiB; without a limit a wrong path
/// (`/dev/zero`) would fill the memory.
pub const MAX_SECRET_BYTES: u64 = 64 << 10;

/// Where a secret comes from that is asked for whenever it is needed, so that a new one counts without a restart; the error is the reason, in one line.
pub type SecretSource = Box<dyn Fn() -> Result<Zeroizing<String>, String> + Send + Sync>;

/// Bytes that nobody must see.
#[derive(Default)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over; they are not copied.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads a file, or a pipe, of at most [`MAX_SECRET_BYTES`].
    ///
    /// # Errors
    ///
    /// As [`std::fs::read`], and of kind [`io::ErrorKind::FileTooLarge`].
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::read_from(File::open(path)?)
    }

    /// Reads to the end, at most [`MAX_SECRET_BYTES`].
    ///
    /// # Errors
    ///
    /// Those of the reader, and of kind [`io::ErrorKind::FileTooLarge`].
    pub fn read_from(mut reader: impl io::Read) -> io::Result<Self> {
        // All at once: a vector that grows leaves its earlier places behind, with the secret in them.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES as usize + 1));
        reader.by_ref().take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_SECRET_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_SECRET_BYTES} bytes")));
        }
        Ok(Self(bytes))
    }

    /// Without one newline at its end: what an editor, `echo` and most programs put there.
    #[must_use]
    pub fn without_newline(mut self) -> Self {
        if self.0.last() == Some(&b'\n') {
            self.0.pop();
        }
        self
    }

    /// The bytes. Whoever asks sees to it that they go nowhere.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text.
    ///
    /// # Errors
    ///
    /// [`NotText`], which does not say what they are instead.
    pub fn expose_text(&self) -> Result<&str, NotText> {
        std::str::from_utf8(&self.0).map_err(|_| NotText)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text.into_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not even its length, which tells how long a search would take.
        f.write_str("Secret(***)")
    }
}

/// A secret that is not text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not text")]
pub struct NotText;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_it_is_printed() {
        let secret = Secret::from("hunter2".to_owned());
        let shown = format!("{secret:?} {secret:#?} {:?}", Some(&secret));
        assert!(!shown.contains("hunter2") && !shown.contains('7'), "{shown}");
        assert_eq!(secret.expose(), b"hunter2");
        assert_eq!(format!("{:?} {}", Secret::new(vec![0xff]).expose_text(), NotText), "Err(NotText) it is not text");
    }

    #[test]
    fn one_newline_is_not_part_of_it() {
        for (written, read) in [("a\n", "a"), ("a", "a"), ("a\n\n", "a\n"), ("\n", ""), ("", ""), (" a \r\n", " a \r")] {
            assert_eq!(Secret::from(written.to_owned()).without_newline().expose(), read.as_bytes(), "{written:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_no_secret() {
        let most = vec![b'a'; MAX_SECRET_BYTES as usize];
        assert_eq!(Secret::read_from(&most[..]).unwrap().expose().len(), most.len());
        assert_eq!(Secret::read_from(io::repeat(b'a')).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(Secret::read(Path::new("/nowhere/at/all")).is_err());
    }
}
