//! The repository's layout and bytes, as `docs/format.md` states them.
//!
//! Everything here is encoding, decoding and naming; sealing and storing is the engine's.

pub mod artifact;
pub mod backup_id;
pub mod extent;
pub mod file_table;
pub mod layout;
pub mod lease;
pub mod manifest;
pub mod pack;
pub mod retention;
pub mod sealed;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// The format version that this program writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes from a repository that are not what the format asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Damaged or foreign bytes.
    #[error("decode {what}: {problem}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Written by a newer lifeboat.
    #[error("read {what} of format version {found}: this program reads up to version {FORMAT_VERSION}")]
    TooNew {
        /// What was being read.
        what: &'static str,
        /// The version found.
        found: u32,
    },
}

impl FormatError {
    /// Shorthand for [`FormatError::Malformed`].
    pub fn malformed(what: &'static str, problem: impl Into<String>) -> Self {
        Self::Malformed { what, problem: problem.into() }
    }
}

/// A SHA-256 digest; printed as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// The digest of `bytes`. For bulk data the engine uses a faster implementation.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }
}

/// A BLAKE3 digest of 32 bytes; printed as 64 lower-case hexadecimal digits. Made in less than half of
/// the time that SHA-256 takes, also where the processor has instructions for that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blake3(pub [u8; 32]);

macro_rules! digest {
    ($($type:ident, $name:literal;)*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $type {
            type Err = FormatError;

            fn from_str(text: &str) -> Result<Self, FormatError> {
                let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                let mut digest = [0; 32];
                if !lower || hex::decode_to_slice(text, &mut digest).is_err() {
                    return Err(FormatError::malformed($name, format!("{:?} is not 64 lower-case hexadecimal digits", clip(text))));
                }
                Ok(Self(digest))
            }
        }
    )*};
}

digest! {
    Sha256, "SHA-256";
    Blake3, "BLAKE3";
}

/// 16 random bytes that name something: a pack, a data key, a repository.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 16]);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id)
            .map_err(|_| FormatError::malformed("id", format!("{:?} is not 32 hexadecimal digits", clip(text))))?;
        Ok(Self(id))
    }
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

/// `serde` through the printed form.
macro_rules! serde_through_text {
    ($($type:ty),*) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use serde_through_text;

serde_through_text!(Sha256, Blake3, Id);

/// How the bytes of a repository are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Not encrypted: the user said so in words. A BLAKE3 of 16 bytes stands where the tag would.
    None,
    /// AES-256-GCM.
    Aes256Gcm,
}

impl Suite {
    /// The number of the suite in a pack's header.
    pub fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Aes256Gcm => 1,
        }
    }

    /// The suite with that number.
    pub fn from_code(code: u8) -> Result<Self, FormatError> {
        match code {
            0 => Ok(Self::None),
            1 => Ok(Self::Aes256Gcm),
            other => Err(FormatError::malformed("suite", format!("{other} is not known"))),
        }
    }
}

/// `lifeboat.json`: says that a prefix is a repository, and of which format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// The format's name and version.
    pub format: Format,
    /// The repository's id.
    pub repository: Id,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// The program that made it.
    pub created_by: String,
}

/// The `format` member of the descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// Always `lifeboat`.
    pub name: String,
    /// The version.
    pub version: u32,
}

impl Descriptor {
    /// A new descriptor of the present format.
    pub fn new(repository: Id, created: jiff::Timestamp, created_by: String) -> Self {
        Self { format: Format { name: "lifeboat".into(), version: FORMAT_VERSION }, repository, created, created_by }
    }

    /// Reads a descriptor.
    ///
    /// # Errors
    ///
    /// [`FormatError::TooNew`] for a version that this program does not know, whatever else the
    /// descriptor then holds.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        #[derive(Deserialize)]
        struct Probe {
            format: Format,
        }
        let what = "repository descriptor";
        let probe: Probe = serde_json::from_slice(bytes).map_err(|e| FormatError::malformed(what, e.to_string()))?;
        if probe.format.name != "lifeboat" {
            return Err(FormatError::malformed(what, format!("the format is {:?}, not lifeboat", clip(&probe.format.name))));
        }
        if probe.format.version != FORMAT_VERSION {
            return Err(FormatError::TooNew { what, found: probe.format.version });
        }
        serde_json::from_slice(bytes).map_err(|e| FormatError::malformed(what, e.to_string()))
    }
}

/// JSON as the repository writes it: indented, one newline at the end, readable by a person.
pub fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("repository documents have text keys only");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_told_from_a_damaged_descriptor() {
        let newer = br#"{"format":{"name":"lifeboat","version":7},"surprise":true}"#;
        assert_eq!(Descriptor::decode(newer), Err(FormatError::TooNew { what: "repository descriptor", found: 7 }));
        assert!(matches!(Descriptor::decode(b"{"), Err(FormatError::Malformed { .. })));
        assert!(matches!(Descriptor::decode(br#"{"format":{"name":"restic","version":1}}"#), Err(FormatError::Malformed { .. })));
        let mine = Descriptor::new(Id([7; 16]), "2024-03-15T12:00:00Z".parse().unwrap(), "lifeboat 0".into());
        assert_eq!(Descriptor::decode(&to_json(&mine)), Ok(mine));
    }

    #[test]
    fn digests_are_lower_case_only_so_that_a_name_has_one_spelling() {
        let digest = Sha256::of(b"");
        assert_eq!(digest.to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest.to_string().parse::<Sha256>(), Ok(digest));
        assert!(digest.to_string().to_uppercase().parse::<Sha256>().is_err());
    }
}
