//! File tables: rows that say what a file is and where its bytes are (format 5).

use serde::{Deserialize, Serialize};

use super::{
    FormatError,
    extent::{CHECK_BYTES, Extent, Fragment, MAX_FRAGMENTS, extent_count},
    pack,
};

/// Plain bytes after which a writer begins the next table: small enough to read one on demand.
pub const TABLE_BYTES: usize = 4 << 20;

/// The most bytes a row's meta may take.
const MAX_META_BYTES: usize = 65536;

/// Bytes of one encoded fragment.
const FRAGMENT_BYTES: usize = 16 + CHECK_BYTES;

const WHAT: &str = "file table";

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to `target`.
    Symlink,
    /// A tablespace's directory, `pg_tblspc/<oid>`; the link led to `target`.
    Tablespace,
}

/// Everything about a file but its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Relative to the data directory.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Group's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Owner's number.
    #[serde(default)]
    pub uid: u32,
    /// Group's number.
    #[serde(default)]
    pub gid: u32,
    /// Time of last change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<jiff::Timestamp>,
    /// Where a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// A side file from outside the data directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outside: bool,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What it is.
    pub meta: Meta,
    /// Where its bytes are.
    pub extents: Vec<Extent>,
}

/// Whether a path of a table stays below where it is restored to.
pub fn is_safe_path(path: &str) -> bool {
    !path.is_empty() && path.len() <= 4096 && !path.contains('\0') && path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}

/// Appends a row.
///
/// # Panics
///
/// If the row breaks the format: that is a bug of the writer, and a backup must not commit it.
pub fn encode_row(row: &Row, out: &mut Vec<u8>) {
    let meta = serde_json::to_vec(&row.meta).expect("meta has text keys only");
    assert!(meta.len() <= MAX_META_BYTES && is_safe_path(&row.meta.path), "row for {:?} breaks the format", row.meta.path);
    assert_eq!(row.extents.len() as u64, expected_extents(&row.meta), "extents of {:?}", row.meta.path);
    out.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    out.extend_from_slice(&meta);
    out.extend_from_slice(&(row.extents.len() as u32).to_le_bytes());
    for extent in &row.extents {
        assert!(extent.fragments.len() <= MAX_FRAGMENTS, "fragments of {:?}", row.meta.path);
        out.push(extent.fragments.len() as u8);
        for fragment in &extent.fragments {
            for number in [fragment.bitmap, fragment.pack, fragment.offset, fragment.length] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&fragment.check);
        }
    }
}

fn expected_extents(meta: &Meta) -> u64 {
    if meta.kind == Kind::File { extent_count(meta.size) } else { 0 }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], FormatError> {
        let (head, tail) = self.0.split_at_checked(bytes).ok_or_else(|| FormatError::malformed(WHAT, "cut off in a row"))?;
        self.0 = tail;
        Ok(head)
    }

    fn number(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("took 4")))
    }
}

/// Reads the rows of a table's plain content. `packs` is how many the manifest names.
pub fn decode(bytes: &[u8], packs: usize) -> Result<Vec<Row>, FormatError> {
    let mut rows: Vec<Row> = Vec::new();
    let mut reader = Reader(bytes);
    while !reader.0.is_empty() {
        let row = decode_row(&mut reader, packs)?;
        if rows.last().is_some_and(|last| last.meta.path >= row.meta.path) {
            return Err(FormatError::malformed(WHAT, format!("{:?} is out of order", row.meta.path)));
        }
        rows.push(row);
    }
    Ok(rows)
}

fn decode_row(reader: &mut Reader<'_>, packs: usize) -> Result<Row, FormatError> {
    let length = reader.number()? as usize;
    if length > MAX_META_BYTES {
        return Err(FormatError::malformed(WHAT, format!("meta of {length} bytes")));
    }
    let meta: Meta = serde_json::from_slice(reader.take(length)?).map_err(|e| FormatError::malformed(WHAT, format!("meta: {e}")))?;
    let bad = |problem: String| FormatError::malformed(WHAT, format!("{:?}: {problem}", meta.path));
    if !is_safe_path(&meta.path) {
        return Err(bad("the path could leave its directory".into()));
    }
    if matches!(meta.kind, Kind::Symlink | Kind::Tablespace) && meta.target.as_ref().is_none_or(|t| t.is_empty() || t.contains('\0')) {
        return Err(bad("a link without a target".into()));
    }
    let count = reader.number()?;
    if u64::from(count) != expected_extents(&meta) {
        return Err(bad(format!("{count} extents do not make {} bytes", meta.size)));
    }
    // Every extent takes a byte at least: do not reserve more than the input can hold.
    let mut extents = Vec::with_capacity((count as usize).min(reader.0.len()));
    for index in 0..u64::from(count) {
        let number = usize::from(reader.take(1)?[0]);
        let extent_bytes = super::extent::extent_bytes(meta.size, index);
        let mut fragments = Vec::with_capacity(number.min(MAX_FRAGMENTS));
        for chunk in reader.take(number * FRAGMENT_BYTES)?.chunks_exact(FRAGMENT_BYTES) {
            let number = |at: usize| u32::from_le_bytes(chunk[at..at + 4].try_into().expect("4 bytes of a chunk"));
            let fragment = Fragment {
                bitmap: number(0),
                pack: number(4),
                offset: number(8),
                length: number(12),
                check: chunk[16..].try_into().expect("the rest of a chunk"),
            };
            fragment.plain_bytes(extent_bytes)?;
            if fragment.pack as usize >= packs {
                return Err(bad(format!("pack {} of {packs}", fragment.pack)));
            }
            // Before anybody takes memory for it, or reads the header of a pack for a frame.
            let (offset, length) = (u64::from(fragment.offset), u64::from(fragment.length));
            let shortest = 1 + pack::TAG_BYTES as u64;
            if offset < pack::HEADER_BYTES as u64
                || !(shortest..=pack::MAX_FRAME_BYTES).contains(&length)
                || offset + length > pack::MAX_BYTES
            {
                return Err(bad(format!("a frame of {length} bytes at {offset} cannot be in a pack")));
            }
            fragments.push(fragment);
        }
        if fragments.len() > MAX_FRAGMENTS {
            return Err(bad(format!("{} fragments in one extent", fragments.len())));
        }
        extents.push(Extent { fragments });
    }
    Ok(Row { meta, extents })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(path: &str, size: u64) -> Row {
        let extents = (0..extent_count(size))
            .map(|index| Extent {
                fragments: vec![Fragment {
                    bitmap: super::super::extent::full_bitmap(super::super::extent::extent_bytes(size, index)),
                    pack: 0,
                    offset: 32,
                    length: 77,
                    check: [index as u8; CHECK_BYTES],
                }],
            })
            .collect();
        Row {
            meta: Meta {
                path: path.into(),
                kind: Kind::File,
                size,
                mode: 0o600,
                owner: Some("postgres".into()),
                group: None,
                uid: 1,
                gid: 2,
                modified: None,
                target: None,
                outside: false,
            },
            extents,
        }
    }

    fn table() -> Vec<u8> {
        let mut bytes = Vec::new();
        for row in [row("PG_VERSION", 3), row("base/1/1259", 700_000), row("empty", 0)] {
            encode_row(&row, &mut bytes);
        }
        bytes
    }

    #[test]
    fn rows_round_trip() {
        assert_eq!(decode(&table(), 1).unwrap(), [row("PG_VERSION", 3), row("base/1/1259", 700_000), row("empty", 0)]);
        assert_eq!(decode(&[], 0), Ok(vec![]));
    }

    #[test]
    fn paths_that_leave_and_rows_out_of_order_are_refused() {
        for path in ["../x", "/etc/passwd", "a//b", "a/./b", ""] {
            assert!(!is_safe_path(path), "{path}");
        }
        let mut bytes = Vec::new();
        encode_row(&row("b", 1), &mut bytes);
        encode_row(&row("a", 1), &mut bytes);
        assert!(decode(&bytes, 1).unwrap_err().to_string().contains("out of order"));
        assert!(decode(&table(), 0).unwrap_err().to_string().contains("pack 0 of 0"));
    }

    #[test]
    fn frames_that_no_pack_can_hold_are_refused() {
        let with = |offset: u32, length: u32| {
            let mut one = row("a", 10);
            (one.extents[0].fragments[0].offset, one.extents[0].fragments[0].length) = (offset, length);
            let mut bytes = Vec::new();
            encode_row(&one, &mut bytes);
            decode(&bytes, 1)
        };
        let longest = pack::MAX_FRAME_BYTES as u32;
        for (offset, length) in [(32, 17), (32, longest), (pack::MAX_BYTES as u32 - longest, longest)] {
            assert!(with(offset, length).is_ok(), "{offset} {length}");
        }
        for (offset, length) in
            [(31, 17), (32, 16), (32, longest + 1), (pack::MAX_BYTES as u32 - longest + 1, longest), (u32::MAX, u32::MAX)]
        {
            assert!(with(offset, length).is_err(), "{offset} {length}");
        }
    }

    #[test]
    fn every_cut_is_noticed_or_falls_between_rows() {
        let bytes = table();
        let whole = decode(&bytes, 1).unwrap();
        for length in 0..bytes.len() {
            if let Ok(rows) = decode(&bytes[..length], 1) {
                assert!(whole.starts_with(&rows), "{length} bytes");
            }
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(&bytes, 3);
        }

        #[test]
        fn no_damage_panics(at in 0usize..400, value in any::<u8>()) {
            let mut bytes = table();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = decode(&bytes, 1);
        }
    }
}
