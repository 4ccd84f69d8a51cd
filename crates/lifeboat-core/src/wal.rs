//! Positions in PostgreSQL's write-ahead log and the names of its files.
//!
//! Facts from PostgreSQL: `src/include/access/xlog_internal.h` (file names, segment numbering)
//! and manual section 30.6 "WAL Internals".

pub mod catalog;
pub mod fetch;
pub mod file;
pub mod history;
#[cfg(test)]
mod model;
pub mod push;
mod ranges;
pub mod receive;
pub mod record;
pub mod status;
pub mod target;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value that is not what its notation asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse {what}: {text:?} is not one")]
pub struct ParseError {
    what: &'static str,
    text: String,
}

impl ParseError {
    fn new(what: &'static str, text: &str) -> Self {
        Self { what, text: text.chars().take(80).collect() }
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A byte position in the write-ahead log ("log sequence number"), written `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The LSN that PostgreSQL calls invalid (`InvalidXLogRecPtr`).
    pub const INVALID: Self = Self(0);

    /// Whether this is [`Lsn::INVALID`].
    pub fn is_invalid(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("LSN", text);
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let part = |part: &str| {
            let plain = !part.is_empty() && part.len() <= 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(part, 16).ok()).flatten().ok_or_else(bad)
        };
        Ok(Self(part(high)? << 32 | part(low)?))
    }
}

serde_as_text!(Lsn);

/// A timeline: the number of a line of history; recovery to a point starts a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number that initdb gives a cluster for life (`pg_control_system().system_identifier`).
/// Two servers with the same number share their history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        // SQL shows it as a signed bigint.
        if let Ok(value) = text.parse::<u64>() {
            return Ok(Self(value));
        }
        text.parse::<i64>().map(|value| Self(value.cast_unsigned())).map_err(|_| ParseError::new("system identifier", text))
    }
}

// As text: 64-bit numbers do not survive JSON readers that use doubles.
serde_as_text!(SystemId);

/// Bytes in one WAL segment: a power of two from 1 MiB to 1 GiB (`initdb --wal-segsize`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// PostgreSQL's default, 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// The size, if PostgreSQL allows it (`IsValidWalSegSize`).
    pub fn new(bytes: u32) -> Result<Self, ParseError> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(ParseError::new("WAL segment size", &bytes.to_string()))
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments share one value of the middle part of the file name
    /// (`XLogSegmentsPerXLogId`).
    fn per_log_id(self) -> u64 {
        0x1_0000_0000 / self.bytes()
    }
}

impl TryFrom<u32> for SegmentSize {
    type Error = ParseError;

    fn try_from(bytes: u32) -> Result<Self, ParseError> {
        Self::new(bytes)
    }
}

impl From<SegmentSize> for u32 {
    fn from(size: SegmentSize) -> u32 {
        size.0
    }
}

/// One WAL segment: timeline and number. Its file name depends on the segment size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// The timeline that wrote it.
    pub timeline: Timeline,
    /// Counted from 0 at LSN 0/0.
    pub number: u64,
}

impl Segment {
    /// The segment that holds the byte at `lsn`.
    pub fn containing(timeline: Timeline, lsn: Lsn, size: SegmentSize) -> Self {
        Self { timeline, number: lsn.0 / size.bytes() }
    }

    /// The segment that holds the last byte before `lsn` (`XLByteToPrevSeg`): an end position
    /// on a boundary belongs to the segment that it ends.
    pub fn ending_at(timeline: Timeline, lsn: Lsn, size: SegmentSize) -> Self {
        Self { timeline, number: lsn.0.saturating_sub(1) / size.bytes() }
    }

    /// The first LSN in it.
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.number * size.bytes())
    }

    /// The segment after it on the same timeline.
    pub fn next(self) -> Self {
        Self { number: self.number + 1, ..self }
    }

    /// Its file name, 24 hexadecimal digits (`XLogFileName`).
    pub fn file_name(self, size: SegmentSize) -> String {
        let per_id = size.per_log_id();
        format!("{:08X}{:08X}{:08X}", self.timeline.0, self.number / per_id, self.number % per_id)
    }

    /// The segment that a file name of 24 hexadecimal digits names.
    pub fn from_file_name(name: &str, size: SegmentSize) -> Result<Self, ParseError> {
        let bad = || ParseError::new("WAL segment name", name);
        if name.len() != 24 || !name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)) {
            return Err(bad());
        }
        let part = |range| u32::from_str_radix(&name[range], 16).map_err(|_| bad());
        let (timeline, log, segment) = (part(0..8)?, part(8..16)?, part(16..24)?);
        if u64::from(segment) >= size.per_log_id() {
            return Err(bad());
        }
        Ok(Self { timeline: Timeline(timeline), number: u64::from(log) * size.per_log_id() + u64::from(segment) })
    }
}

/// The file names of every segment from the one that holds `start` to the one that ends at `stop`.
pub fn segments_between(timeline: Timeline, start: Lsn, stop: Lsn, size: SegmentSize) -> impl Iterator<Item = Segment> {
    let first = Segment::containing(timeline, start, size).number;
    let last = Segment::ending_at(timeline, stop, size).number.max(first);
    (first..=last).map(move |number| Segment { timeline, number })
}

/// Bytes of the header of a segment's first page (`SizeOfXLogLongPHD`).
pub const LONG_HEADER_BYTES: usize = 40;

/// Why a file is not the WAL segment that its name says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// No page header of any version from 13 on.
    #[error("check WAL segment: its first page has no WAL header")]
    NoHeader,
    /// Of another cluster.
    #[error("check WAL segment: it belongs to cluster {found}, not {expected}")]
    OtherCluster {
        /// In the header.
        found: SystemId,
        /// Ours.
        expected: SystemId,
    },
    /// Of another place: recycled, not yet written anew.
    #[error("check WAL segment: it begins at {found}, not {expected}")]
    OtherPlace {
        /// In the header.
        found: Lsn,
        /// By its name.
        expected: Lsn,
    },
    /// Of another segment size.
    #[error("check WAL segment: the cluster that wrote it has segments of {0} bytes")]
    OtherSize(u32),
}

/// What the header of a segment's first page says (`XLogLongPageHeaderData` in `src/include/access/xlog_internal.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// One for each major version; 0xD106 in PostgreSQL 13, and it has grown since.
    pub page_magic: u16,
    /// Where the segment begins.
    pub start: Lsn,
    /// Whose it is.
    pub system_id: SystemId,
    /// Bytes in a segment, as they stand there.
    pub segment_size: u32,
}

impl SegmentHeader {
    /// Reads it. Neither place nor cluster are checked.
    pub fn decode(header: &[u8; LONG_HEADER_BYTES]) -> Result<Self, SegmentError> {
        const LONG_HEADER: u16 = 0x0002;
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if !(0xD106..0xD200).contains(&u16_at(0)) || u16_at(2) & LONG_HEADER == 0 {
            return Err(SegmentError::NoHeader);
        }
        Ok(Self { page_magic: u16_at(0), start: Lsn(u64_at(8)), system_id: SystemId(u64_at(24)), segment_size: u32_at(32) })
    }
}

/// Checks the first bytes of a segment: magic, cluster, place, segment size.
/// The timeline in the header may be an older one: a segment copied at a switch keeps it.
pub fn check_segment_header(
    header: &[u8; LONG_HEADER_BYTES],
    segment: Segment,
    size: SegmentSize,
    system_id: SystemId,
) -> Result<(), SegmentError> {
    let header = SegmentHeader::decode(header)?;
    if header.system_id != system_id {
        return Err(SegmentError::OtherCluster { found: header.system_id, expected: system_id });
    }
    if u64::from(header.segment_size) != size.bytes() {
        return Err(SegmentError::OtherSize(header.segment_size));
    }
    let expected = segment.start(size);
    if header.start != expected {
        return Err(SegmentError::OtherPlace { found: header.start, expected });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_prints_and_parses_as_postgresql_does() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn, Lsn(0x16_B374_D848));
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!(serde_json::to_string(&lsn).unwrap(), "\"16/B374D848\"");
        for bad in ["", "/", "0/", "g/1", "1/123456789", "+1/2", "1/2/3"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn c052_segment_names_for_every_segment_size() {
        for shift in 20..=30 {
            let size = SegmentSize::new(1 << shift).unwrap();
            // Around the wrap of the last part of the name, and far out.
            for number in [0, 1, size.per_log_id() - 1, size.per_log_id(), size.per_log_id() * 300 + 7] {
                let segment = Segment { timeline: Timeline(0x1A), number };
                let name = segment.file_name(size);
                assert_eq!(Segment::from_file_name(&name, size), Ok(segment), "{name}");
                assert_eq!(Segment::containing(Timeline(0x1A), segment.start(size), size), segment);
            }
        }
        assert_eq!(Segment { timeline: Timeline(1), number: 255 }.file_name(SegmentSize::DEFAULT), "0000000100000000000000FF");
        assert_eq!(Segment { timeline: Timeline(1), number: 256 }.file_name(SegmentSize::DEFAULT), "000000010000000100000000");
        assert!(Segment::from_file_name("000000010000000100000100", SegmentSize::DEFAULT).is_err());
        assert!(SegmentSize::new(3 << 20).is_err());
    }

    #[test]
    fn an_end_on_a_boundary_needs_no_further_segment() {
        let size = SegmentSize::DEFAULT;
        let names = |start, stop| segments_between(Timeline(1), Lsn(start), Lsn(stop), size).map(|s| s.number).collect::<Vec<_>>();
        assert_eq!(names(16 << 20, 32 << 20), [1]);
        assert_eq!(names(16 << 20, (32 << 20) + 1), [1, 2]);
        assert_eq!(names((16 << 20) + 40, 64 << 20), [1, 2, 3]);
    }

    #[test]
    fn system_id_reads_the_signed_form_of_sql() {
        assert_eq!("-1".parse::<SystemId>().unwrap(), SystemId(u64::MAX));
        assert_eq!(serde_json::to_string(&SystemId(7_123)).unwrap(), "\"7123\"");
    }

    #[test]
    fn c053_a_segment_that_is_not_what_its_name_says_is_noticed() {
        let size = SegmentSize::DEFAULT;
        let segment = Segment { timeline: Timeline(1), number: 3 };
        let mut header = [0; LONG_HEADER_BYTES];
        header[..2].copy_from_slice(&0xD110u16.to_le_bytes());
        header[2] = 2;
        header[8..16].copy_from_slice(&segment.start(size).0.to_le_bytes());
        header[24..32].copy_from_slice(&7u64.to_le_bytes());
        header[32..36].copy_from_slice(&(16u32 << 20).to_le_bytes());
        assert_eq!(check_segment_header(&header, segment, size, SystemId(7)), Ok(()));
        assert!(matches!(check_segment_header(&header, segment, size, SystemId(8)), Err(SegmentError::OtherCluster { .. })));
        assert!(matches!(check_segment_header(&header, segment.next(), size, SystemId(7)), Err(SegmentError::OtherPlace { .. })));
        assert_eq!(
            check_segment_header(&header, segment, SegmentSize::new(1 << 20).unwrap(), SystemId(7)),
            Err(SegmentError::OtherSize(16 << 20))
        );
        assert_eq!(check_segment_header(&[0; LONG_HEADER_BYTES], segment, size, SystemId(7)), Err(SegmentError::NoHeader));
    }
}
