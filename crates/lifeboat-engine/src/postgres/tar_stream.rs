//! The tar headers inside a base backup.
//!
//! Why not a tar library: they read from an owned `Read`, while here the entries of one COPY must be pulled from
//! the same connection that also carries the archive boundaries; and a header is one block. PostgreSQL writes
//! plain ustar (`src/port/tar.c`, `tarCreateHeader`): names up to 99 bytes, sizes octal or in base 256, no
//! extensions. Anything else is an error here, never a guess.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::PgError;

/// Header blocks and padding go by 512 bytes.
pub(super) const BLOCK: usize = 512;

/// One file, directory or link of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the data directory; what lies in a tablespace begins with `pg_tblspc/<oid>`.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes that follow.
    pub size_bytes: u64,
    /// Last modification, in seconds since 1970.
    pub modified_seconds: u64,
    /// Owner on the server.
    pub uid: u64,
    /// Group on the server.
    pub gid: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, in practice a tablespace.
    Symlink(PathBuf),
}

/// The bytes up to the first NUL.
fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number as `print_tar_number` writes it: octal digits with spaces or NUL around, or, with the first bit set, base 256.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let mut value = u64::from(first & 0x7F);
        for byte in rest {
            value = value.checked_mul(256)? | u64::from(*byte);
        }
        return Some(value);
    }
    let digits = until_nul(field).trim_ascii();
    if digits.is_empty() {
        return Some(0);
    }
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'7' => Some(value.checked_mul(8)? | u64::from(digit - b'0')),
        _ => None,
    })
}

/// The path, without leading `./` and trailing `/`; `None` for one that leads out of the directory.
fn safe_path(bytes: &[u8]) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(bytes)).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// What a header block says; `None` for the zero block that ends an archive.
pub(super) fn parse_header(block: &[u8; BLOCK]) -> Result<Option<Entry>, PgError> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let bad = |what: &str| {
        let name = String::from_utf8_lossy(until_nul(&block[..100])).into_owned();
        PgError::protocol(format!("the tar header of {name:?} has {what}"))
    };
    // The checksum is the sum of all bytes, its own field taken as spaces.
    let sum: u64 = block.iter().enumerate().map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte })).sum();
    if number(&block[148..156]) != Some(sum) {
        return Err(bad("a wrong checksum"));
    }
    if &block[257..262] != b"ustar" {
        return Err(bad("no ustar mark"));
    }
    let prefix = until_nul(&block[345..500]);
    let mut name = Vec::with_capacity(256);
    if !prefix.is_empty() {
        name.extend_from_slice(prefix);
        name.push(b'/');
    }
    name.extend_from_slice(until_nul(&block[..100]));
    let path = safe_path(&name).ok_or_else(|| bad("a path that leads out of the data directory"))?;
    let field = |range: std::ops::Range<usize>, what| number(&block[range]).ok_or_else(|| bad(what));
    let size_bytes = field(124..136, "a wrong size")?;
    let kind = match block[156] {
        b'0' | 0 => EntryKind::File,
        b'5' => EntryKind::Directory,
        b'2' => EntryKind::Symlink(PathBuf::from(OsStr::from_bytes(until_nul(&block[157..257])))),
        other => return Err(bad(&format!("the unknown type {:?}", char::from(other)))),
    };
    if kind != EntryKind::File && size_bytes != 0 {
        return Err(bad("a size without a file"));
    }
    let mode = u32::try_from(field(100..108, "a wrong mode")? & 0o7777).unwrap_or_default();
    Ok(Some(Entry {
        path,
        kind,
        mode,
        size_bytes,
        modified_seconds: field(136..148, "a wrong time")?,
        uid: field(108..116, "a wrong owner")?,
        gid: field(116..124, "a wrong group")?,
    }))
}

/// Bytes between the end of an entry's data and the next header.
pub(super) fn padding(size_bytes: u64) -> u64 {
    size_bytes.wrapping_neg() % BLOCK as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(change: impl FnOnce(&mut tar::Header)) -> [u8; BLOCK] {
        let mut header = tar::Header::new_ustar();
        header.set_path("base/1/1259").unwrap();
        header.set_size(8192);
        header.set_mode(0o100_600);
        header.set_mtime(1_700_000_000);
        header.set_uid(70);
        header.set_gid(71);
        change(&mut header);
        header.set_cksum();
        *header.as_bytes()
    }

    #[test]
    fn reads_what_another_writer_wrote() {
        let entry = parse_header(&header(|_| ())).unwrap().unwrap();
        assert_eq!(
            entry,
            Entry {
                path: "base/1/1259".into(),
                kind: EntryKind::File,
                mode: 0o600,
                size_bytes: 8192,
                modified_seconds: 1_700_000_000,
                uid: 70,
                gid: 71
            }
        );
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        let entry = parse_header(&header(|header| header.set_path(&long).unwrap())).unwrap().unwrap();
        assert_eq!(entry.path, Path::new(&long));
        // Beyond 8 GiB the size is in base 256.
        let entry = parse_header(&header(|header| header.set_size(9 << 30))).unwrap().unwrap();
        assert_eq!(entry.size_bytes, 9 << 30);
        let link = parse_header(&header(|header| {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            header.set_path("pg_tblspc/16384/").unwrap();
            header.set_link_name("/srv/fast").unwrap();
        }));
        let link = link.unwrap().unwrap();
        assert_eq!((link.path, link.kind), ("pg_tblspc/16384".into(), EntryKind::Symlink("/srv/fast".into())));
        assert_eq!(parse_header(&[0; BLOCK]), Ok(None));
        assert_eq!([0, 1, 511, 512, 513].map(padding), [0, 511, 1, 0, 511]);
    }

    #[test]
    fn refuses_what_is_not_postgresqls() {
        let refused = |block: &[u8; BLOCK]| matches!(parse_header(block), Err(PgError::Protocol { .. }));
        for name in [&b"../etc/passwd"[..], b"/etc/passwd", b"base/../../x"] {
            assert!(refused(&header(|header| header.as_old_mut().name[..name.len()].copy_from_slice(name))), "{name:?}");
        }
        assert!(refused(&header(|header| header.set_entry_type(tar::EntryType::GNULongName))));
        assert!(refused(&header(|header| header.set_entry_type(tar::EntryType::Directory))));
        assert!(refused(&header(|header| header.as_old_mut().size = *b"00000000009\0")));
        assert!(refused(&header(|header| header.as_old_mut().size = [0xFF; 12])));
    }

    #[test]
    fn no_block_panics() {
        let good = header(|_| ());
        for at in 0..BLOCK {
            for byte in [0, 1, 0x7F, 0x80, 0xFF, b'9'] {
                let mut block = good;
                block[at] = byte;
                let sum: u64 = block.iter().enumerate().map(|(at, b)| u64::from(if (148..156).contains(&at) { b' ' } else { *b })).sum();
                let _ = parse_header(&block);
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                let _ = parse_header(&block);
            }
        }
    }
}
