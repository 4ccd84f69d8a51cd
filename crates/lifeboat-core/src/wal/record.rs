//! What WAL segments hold as far as recovery targets are concerned: commits, aborts and restore points, read from the bytes as they go by.
//!
//! [`Summarizer`] says in a few lines what one segment holds, while it is archived; [`Search`] finds the record that a recovery target means.
//! Both stand on one reader of pages and records, which takes any cut of the bytes and keeps a hundred bytes of them, whatever a record
//! claims to be long. The bytes are damaged, stale or hostile until a CRC says otherwise: a record counts when all of it is there, its link to
//! the record before it and its CRC are right, and decoding ends, without an error, at the first one of which that is not true.
//!
//! What it must not do: apply records, follow timelines, or refuse a segment because its end was never written.
//!
//! Facts from PostgreSQL's source, versions 13 to 18: pages in `src/include/access/xlog_internal.h`, records in `xlogrecord.h`, what makes
//! them valid in `src/backend/access/transam/xlogreader.c`, ends of transactions in `src/include/access/xact.h` with `ParseCommitRecord` and
//! `ParseAbortRecord` of `src/backend/access/rmgrdesc/xactdesc.c`, and what a recovery target means in `recoveryStopsBefore` and
//! `recoveryStopsAfter` of `src/backend/access/transam/xlogrecovery.c` (`xlog.c` before 15).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{LONG_HEADER_BYTES, Lsn, Segment, SegmentSize, Timeline};

/// Most restore points that a [`Summary`] names: they are made by people and by nightly jobs, and a summary is signed and kept for every
/// segment.
pub const MAX_RESTORE_POINTS: usize = 32;

/// What one segment holds, as far as recovery targets are concerned. Signed with the segment.
///
/// A record that began in the segment before is not read here: that it began is what `tail` of the segment before says. So a target that no
/// summary holds may still be in a record that goes over the end of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// End of the last whole record that begins and ends in it, with its padding; the end of the segment after a switch (absent: none does).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Lsn>,
    /// Earliest time of a commit, an abort, their prepared forms, or a restore point, to the microsecond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_time: Option<Timestamp>,
    /// Latest of those times. Times are taken before records get their place, so the last record need not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Timestamp>,
    /// Lowest and highest transaction id of the records that begin in it, and of the prepared transactions that they end, in the order of
    /// `TransactionIdPrecedes`: the numbers wrap around, so the first may be the larger one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xids: Option<(u32, u32)>,
    /// The first restore points, at most [`MAX_RESTORE_POINTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore_points: Vec<RestorePoint>,
    /// There are more of them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more_restore_points: bool,
    /// Its bytes end before the record does that they are in the middle of, which begins in it or, if it is very long, before it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tail: bool,
    /// It ends with a WAL switch: nothing follows in it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub switched: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A named point that recovery can go to (`pg_create_restore_point`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Its name; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// The end of its record, which is what `pg_create_restore_point` returns.
    pub lsn: Lsn,
    /// When it was made.
    pub time: Timestamp,
}

/// Why a segment could not be read at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too short, or its first page does not begin as one of WAL does.
    #[error("read WAL: its first page has no WAL header")]
    NoHeader,
    /// Written by a version whose records are not known.
    #[error("read WAL: magic number {0:#06X} is of no known PostgreSQL version")]
    Version(u16),
    /// Of another segment size.
    #[error("read WAL: it is of a cluster that has segments of {0} bytes")]
    OtherSize(u32),
    /// Of another place: recycled, not yet written anew.
    #[error("read WAL: it begins at {found}, not {expected}")]
    OtherPlace {
        /// In the header.
        found: Lsn,
        /// By its name.
        expected: Lsn,
    },
}

impl Summary {
    /// Whether it is that of a finished segment: one that is full of records, or ends with a switch.
    pub fn is_full(&self, segment: Segment, size: SegmentSize) -> bool {
        self.switched || self.tail || self.end == Some(segment.next().start(size))
    }
}

/// Makes the [`Summary`] of a segment from its bytes, given in order and in any cut. Bytes beyond the segment's size are not looked at.
#[derive(Debug, Clone)]
pub struct Summarizer {
    reader: Reader,
    summary: Summary,
}

impl Summarizer {
    /// Before the first byte of `segment`.
    pub fn new(segment: Segment, size: SegmentSize) -> Self {
        Self { reader: Reader::new(segment, size), summary: Summary::default() }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let summary = &mut self.summary;
        self.reader.push(bytes, &mut |ended| {
            add(summary, ended);
            Flow::On
        });
    }

    /// The summary of what was pushed: all of the segment, or what there is of it.
    pub fn finish(self) -> Result<Summary, RecordError> {
        let mut summary = self.summary;
        self.reader.check()?;
        if let Some(xid) = self.reader.open_xid() {
            widen(&mut summary.xids, xid);
        }
        summary.tail = self.reader.is_inside_record();
        Ok(summary)
    }
}

fn add(summary: &mut Summary, ended: Ended) {
    summary.end = Some(ended.end);
    widen(&mut summary.xids, ended.xid);
    let time = match ended.what {
        What::Other => return,
        What::Switch => {
            summary.switched = true;
            return;
        }
        What::Transaction { time, xid, .. } => {
            widen(&mut summary.xids, xid);
            time
        }
        What::RestorePoint { time, name } => {
            if summary.restore_points.len() < MAX_RESTORE_POINTS {
                let name = String::from_utf8_lossy(&name).into_owned();
                summary.restore_points.push(RestorePoint { name, lsn: ended.end, time });
            } else {
                summary.more_restore_points = true;
            }
            time
        }
    };
    summary.first_time = Some(summary.first_time.map_or(time, |first| first.min(time)));
    summary.last_time = Some(summary.last_time.map_or(time, |last| last.max(time)));
}

/// The smallest id that counts; those below stand for none, for initdb and for frozen rows (`FirstNormalTransactionId`).
const FIRST_NORMAL_XID: u32 = 3;

fn widen(xids: &mut Option<(u32, u32)>, xid: u32) {
    if xid < FIRST_NORMAL_XID {
        return;
    }
    let (low, high) = xids.unwrap_or((xid, xid));
    *xids = Some((if precedes(xid, low) { xid } else { low }, if precedes(high, xid) { xid } else { high }));
}

/// Whether normal transaction id `a` is older than `b` (`TransactionIdPrecedes`): within two thousand million of each other.
pub fn precedes(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

/// What a [`Search`] looks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The end of this transaction, a commit or an abort, prepared or not (`recovery_target_xid`). Subtransactions have none of their own.
    TransactionId(u32),
    /// The first restore point of this name, byte for byte (`recovery_target_name`).
    RestorePoint(String),
    /// The first transaction that ended after this time: where recovery with `recovery_target_time` stops, before it. As there, an abort
    /// counts as a commit does, and a restore point does not.
    FirstCommitAfter(Timestamp),
    /// Any record: the first one that counts (`recovery_target_lsn`).
    Record,
}

/// The record that was searched for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Start of the record.
    pub lsn: Lsn,
    /// End of the record, with its padding: where the next one begins, or the page does that the next one is on.
    pub end: Lsn,
    /// The time in it, if it is a record with one.
    pub time: Option<Timestamp>,
    /// It is a commit: not an abort, not a restore point.
    pub committed: bool,
    /// The timeline of the segment that it ends in.
    pub timeline: Timeline,
}

/// Looks for a recovery target in segments that are given one after the other.
///
/// A record that goes from one segment into the next is read when the next one is the one with the next number, on the same timeline or, at
/// a switch, on its child. After a gap, or a segment that broke off, reading begins anew.
#[derive(Debug, Clone)]
pub struct Search {
    wanted: Wanted,
    size: SegmentSize,
    reader: Option<Reader>,
    /// Records that begin before this do not count.
    from: Lsn,
    /// How many of them are wanted.
    most: usize,
    /// Records that end behind this do not count, and only the last one that does is kept.
    last_before: Option<Lsn>,
    end: Option<Lsn>,
    found: Vec<Found>,
}

impl Search {
    /// Before the first segment.
    pub fn new(wanted: Wanted, size: SegmentSize) -> Self {
        Self { wanted, size, reader: None, from: Lsn(0), most: 1, last_before: None, end: None, found: Vec::new() }
    }

    /// Counts only records that begin at `from` or behind.
    #[must_use]
    pub fn from(self, from: Lsn) -> Self {
        Self { from, ..self }
    }

    /// Goes on after the first one that is found, until there are `most`.
    #[must_use]
    pub fn up_to(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// Looks for the last one that ends at `to` or before.
    #[must_use]
    pub fn last_before(self, to: Lsn) -> Self {
        Self { last_before: Some(to), most: usize::MAX, ..self }
    }

    /// What was found so far, in the order of its LSNs.
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// Says that the bytes of `segment` come next, from its start.
    pub fn begin(&mut self, segment: Segment) {
        self.reader = Some(match self.reader.take() {
            Some(reader) if reader.is_followed_by(segment) => reader.go_on(segment),
            _ => Reader::new(segment, self.size),
        });
    }

    /// Takes the next bytes of the segment, and says what was found, once it is. Bytes after that, or before the first
    /// [`begin`](Self::begin), are not looked at.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<&Found>, RecordError> {
        let Self { wanted, reader, from, most, last_before, end, found, .. } = self;
        let Some(reader) = reader.as_mut().filter(|_| found.len() < *most) else { return Ok(found.first()) };
        let timeline = reader.segment.timeline;
        reader.push(bytes, &mut |ended| {
            *end = Some(ended.end);
            if let Some(to) = *last_before {
                if ended.end > to {
                    return Flow::Stop;
                }
                if is_wanted(wanted, &ended.what).is_some() {
                    found.clear();
                }
            }
            match is_wanted(wanted, &ended.what).filter(|_| ended.lsn >= *from) {
                Some((time, committed)) => found.push(Found { lsn: ended.lsn, end: ended.end, time, committed, timeline }),
                None => return Flow::On,
            }
            if found.len() < *most { Flow::On } else { Flow::Stop }
        });
        reader.error.map_or(Ok(found.first()), Err)
    }

    /// End of the last whole record read so far, in whatever segment: how far the search has looked.
    pub fn end(&self) -> Option<Lsn> {
        self.end
    }

    /// Whether what the present segment holds has been read up to its end: its last byte, or a switch. Where not, either bytes are missing or
    /// what comes next was never written.
    pub fn is_complete(&self) -> bool {
        self.reader.as_ref().is_some_and(Reader::is_complete)
    }
}

/// Time, and whether it is a commit, of what is wanted.
fn is_wanted(wanted: &Wanted, what: &What) -> Option<(Option<Timestamp>, bool)> {
    match (wanted, what) {
        (Wanted::TransactionId(wanted), What::Transaction { time, xid, committed }) => (wanted == xid).then_some((Some(*time), *committed)),
        (Wanted::FirstCommitAfter(after), What::Transaction { time, committed, .. }) => (time > after).then_some((Some(*time), *committed)),
        (Wanted::RestorePoint(wanted), What::RestorePoint { time, name }) => (wanted.as_bytes() == name).then_some((Some(*time), false)),
        (Wanted::Record, What::Transaction { time, committed, .. }) => Some((Some(*time), *committed)),
        (Wanted::Record, What::RestorePoint { time, .. }) => Some((Some(*time), false)),
        (Wanted::Record, What::Other | What::Switch) => Some((None, false)),
        _ => None,
    }
}

/// A record that ended, whole.
struct Ended {
    lsn: Lsn,
    end: Lsn,
    xid: u32,
    what: What,
}

/// What a record is to us.
enum What {
    Other,
    Switch,
    Transaction { time: Timestamp, xid: u32, committed: bool },
    RestorePoint { time: Timestamp, name: Vec<u8> },
}

/// Whether whoever takes the records wants more of them.
enum Flow {
    On,
    Stop,
}

/// `SizeOfXLogShortPHD`.
const SHORT_HEADER_BYTES: usize = 24;
/// `SizeOfXLogRecord`.
const RECORD_HEADER_BYTES: usize = 24;
/// Where `xl_crc` stands in it: the CRC is that of the rest of the record, then of what is before itself.
const CRC_AT: usize = 20;
/// `MAXALIGN`, 8 on every platform that PostgreSQL has packages for: records begin at multiples of it.
const ALIGNMENT: u64 = 8;

/// `XLP_FIRST_IS_CONTRECORD`: the page begins in the middle of a record.
const CONTINUES: u16 = 0x0001;
/// `XLP_LONG_HEADER`.
const LONG_HEADER: u16 = 0x0002;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD` (from 14.1 and 13.5 on): the record in whose middle the page before ends was given up.
const OVERWRITES: u16 = 0x0008;
/// `XLP_ALL_FLAGS`.
const ALL_FLAGS: u16 = 0x000F;

/// `XLOG_PAGE_MAGIC` of versions 13 to 18.
const MAGICS: [u16; 6] = [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, MAGIC_18];
const MAGIC_18: u16 = 0xD118;

/// Reads pages and records as their bytes go by. Never keeps more than a page's header and a record's, and what [`Body`] holds.
#[derive(Debug, Clone)]
struct Reader {
    segment: Segment,
    size: SegmentSize,
    start: u64,
    /// Bytes of the segment seen so far.
    at: u64,
    /// Bytes of a page (`XLOG_BLCKSZ`, 8 KiB if nothing else was configured), known from the first header on.
    page_bytes: u64,
    magic: u16,
    /// The timeline of the page before: it never goes back.
    timeline: u32,
    /// The header of the page that is being read.
    header: [u8; LONG_HEADER_BYTES],
    open: Open,
    /// Start of the last whole record, which the next one must name, unless reading began only after it.
    before: Option<u64>,
    /// Nothing more is read of this segment.
    over: Option<Over>,
    error: Option<RecordError>,
}

/// What the next byte on a page belongs to.
#[derive(Debug, Clone)]
enum Open {
    /// Not known before the first page's header is.
    Unknown,
    /// Whatever is left of a record that began before reading did.
    Skipped { rest: u64 },
    /// The bytes up to the next record.
    Padding { rest: u64 },
    /// A record's header, of which there are this many bytes.
    Header { lsn: u64, bytes: [u8; RECORD_HEADER_BYTES], length: usize },
    /// What follows a record's header.
    Rest { header: RecordHeader, rest: u64, crc: u32, body: Option<Body> },
}

/// Why nothing more is read of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// A switch: what follows is in the next one.
    Switched,
    /// What follows was never written, or is damaged.
    Invalid,
    /// Nobody wants more.
    Enough,
}

#[derive(Debug, Clone, Copy)]
struct RecordHeader {
    lsn: u64,
    bytes: [u8; RECORD_HEADER_BYTES],
}

fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl RecordHeader {
    fn total_bytes(&self) -> u64 {
        u64::from(u32_at(&self.bytes, 0))
    }

    fn xid(&self) -> u32 {
        u32_at(&self.bytes, 4)
    }

    fn before(&self) -> u64 {
        u64_at(&self.bytes, 8)
    }

    fn crc(&self) -> u32 {
        u32_at(&self.bytes, CRC_AT)
    }

    fn is_switch(&self) -> bool {
        const XLOG_SWITCH: u8 = 0x40;
        self.bytes[17] == RM_XLOG_ID && self.bytes[16] & OWN_INFO == XLOG_SWITCH
    }
}

impl Reader {
    fn new(segment: Segment, size: SegmentSize) -> Self {
        Self {
            segment,
            size,
            start: first_byte(segment, size),
            at: 0,
            page_bytes: size.bytes(),
            magic: 0,
            timeline: 0,
            header: [0; LONG_HEADER_BYTES],
            open: Open::Unknown,
            before: None,
            over: None,
            error: None,
        }
    }

    /// Whether all of the segment was read that was ever written into it.
    fn is_complete(&self) -> bool {
        self.over == Some(Over::Switched) || self.over.is_none() && self.at == self.size.bytes()
    }

    fn is_followed_by(&self, segment: Segment) -> bool {
        self.is_complete() && self.segment.number.checked_add(1) == Some(segment.number) && segment.timeline >= self.segment.timeline
    }

    /// The reader of the segment after this one, in the middle of what this one ended in.
    fn go_on(self, segment: Segment) -> Self {
        Self { segment, start: first_byte(segment, self.size), at: 0, over: None, ..self }
    }

    fn check(&self) -> Result<(), RecordError> {
        match self.error {
            Some(error) => Err(error),
            None if self.at < LONG_HEADER_BYTES as u64 => Err(RecordError::NoHeader),
            None => Ok(()),
        }
    }

    /// Whether the bytes so far end within a record.
    fn is_inside_record(&self) -> bool {
        self.over.is_none()
            && match &self.open {
                Open::Skipped { rest } | Open::Rest { rest, .. } => *rest > 0,
                Open::Header { .. } => self.header_total_bytes().is_some(),
                Open::Unknown | Open::Padding { .. } => false,
            }
    }

    /// The transaction id of the record that the bytes so far end in, if it began in this segment. Records begin at multiples of 8, so that
    /// its first eight bytes, length and id, are never apart.
    fn open_xid(&self) -> Option<u32> {
        match &self.open {
            Open::Header { bytes, length, .. } if self.over.is_none() && *length >= 8 => {
                self.header_total_bytes().map(|_| u32_at(bytes, 4))
            }
            Open::Rest { header, .. } if self.over.is_none() => Some(header.xid()),
            _ => None,
        }
    }

    /// The length that the begun record header tells, if there is one that can be.
    fn header_total_bytes(&self) -> Option<u64> {
        match &self.open {
            Open::Header { bytes, length, .. } if *length >= 4 => {
                Some(u64::from(u32_at(bytes, 0))).filter(|total| *total >= RECORD_HEADER_BYTES as u64)
            }
            _ => None,
        }
    }

    fn push(&mut self, mut bytes: &[u8], take: &mut impl FnMut(Ended) -> Flow) {
        while self.over.is_none() && !bytes.is_empty() && self.at < self.size.bytes() {
            let in_page = self.at % self.page_bytes;
            let header_bytes = if self.at < LONG_HEADER_BYTES as u64 { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES };
            let used = match usize::try_from(in_page) {
                Ok(in_page) if in_page < header_bytes => {
                    let used = bytes.len().min(header_bytes - in_page);
                    self.header[in_page..in_page + used].copy_from_slice(&bytes[..used]);
                    if in_page + used == header_bytes {
                        self.begin_page(self.start.wrapping_add(self.at - in_page as u64), header_bytes == LONG_HEADER_BYTES);
                    }
                    used
                }
                _ => {
                    let room = usize::try_from(self.page_bytes - in_page).unwrap_or(usize::MAX);
                    self.content(&bytes[..bytes.len().min(room)], take)
                }
            };
            self.at += used as u64;
            bytes = &bytes[used..];
        }
    }

    fn stop(&mut self, over: Over) {
        self.over = Some(over);
    }

    fn fail(&mut self, error: RecordError) {
        self.error = Some(error);
        self.over = Some(Over::Invalid);
    }

    /// Takes the header of the page at `lsn` (`XLogReaderValidatePageHeader`, and what `XLogDecodeNextRecord` checks of a continuation).
    fn begin_page(&mut self, lsn: u64, is_first: bool) {
        let (magic, info) = (u16_at(&self.header, 0), u16_at(&self.header, 2));
        let (timeline, address) = (u32_at(&self.header, 4), u64_at(&self.header, 8));
        if is_first {
            if let Err(error) = self.check_first_page() {
                return self.fail(error);
            }
        } else if info & LONG_HEADER != 0 || address != lsn {
            return self.stop(Over::Invalid);
        }
        if magic != self.magic || info & !ALL_FLAGS != 0 || timeline < self.timeline {
            return self.stop(Over::Invalid);
        }
        self.timeline = timeline;
        self.join(info, u64::from(u32_at(&self.header, 16)));
    }

    fn check_first_page(&mut self) -> Result<(), RecordError> {
        let (magic, info) = (u16_at(&self.header, 0), u16_at(&self.header, 2));
        if !(0xD106..0xD200).contains(&magic) || info & LONG_HEADER == 0 || info & !ALL_FLAGS != 0 {
            return Err(RecordError::NoHeader);
        }
        if !MAGICS.contains(&magic) {
            return Err(RecordError::Version(magic));
        }
        let (found, expected) = (Lsn(u64_at(&self.header, 8)), Lsn(self.start));
        if found != expected {
            return Err(RecordError::OtherPlace { found, expected });
        }
        let (segment_bytes, page_bytes) = (u32_at(&self.header, 32), u32_at(&self.header, 36));
        if u64::from(segment_bytes) != self.size.bytes() {
            return Err(RecordError::OtherSize(segment_bytes));
        }
        // `configure --with-wal-blocksize`.
        if !page_bytes.is_power_of_two() || !(1 << 10..=64 << 10).contains(&page_bytes) {
            return Err(RecordError::NoHeader);
        }
        if matches!(self.open, Open::Unknown) {
            (self.magic, self.page_bytes) = (magic, u64::from(page_bytes));
        } else if self.page_bytes != u64::from(page_bytes) {
            return Err(RecordError::NoHeader);
        }
        Ok(())
    }

    /// Fits the page, by its flags and its count of bytes left of a record, to what the page before ended in.
    fn join(&mut self, info: u16, left: u64) {
        let (continues, overwrites) = (info & CONTINUES != 0, info & OVERWRITES != 0);
        let expected = match &self.open {
            Open::Unknown if continues => {
                self.open = Open::Skipped { rest: left };
                return;
            }
            Open::Unknown | Open::Padding { .. } => None,
            Open::Skipped { rest } | Open::Rest { rest, .. } => Some(*rest).filter(|rest| *rest > 0),
            Open::Header { length: 0, .. } => None,
            Open::Header { length, .. } => match self.header_total_bytes() {
                Some(total) => Some(total - *length as u64),
                None => return self.stop(Over::Invalid),
            },
        };
        match expected {
            Some(_) if overwrites && !continues => self.open = Open::Padding { rest: 0 },
            Some(rest) if continues && rest == left => {}
            None if !continues => self.open = Open::Padding { rest: 0 },
            Some(_) | None => self.stop(Over::Invalid),
        }
    }

    /// Takes bytes that follow a page's header and are on one page, at least one, and says how many it took.
    fn content(&mut self, bytes: &[u8], take: &mut impl FnMut(Ended) -> Flow) -> usize {
        match &mut self.open {
            // Only the first page's header ends it.
            Open::Unknown => bytes.len(),
            Open::Skipped { rest } => {
                let used = at_most(*rest, bytes);
                *rest -= used as u64;
                if *rest == 0 {
                    self.open = Open::Padding { rest: padding(self.at + used as u64) };
                }
                used
            }
            Open::Padding { rest: 0 } => {
                self.open = Open::Header { lsn: self.start.wrapping_add(self.at), bytes: [0; RECORD_HEADER_BYTES], length: 0 };
                0
            }
            Open::Padding { rest } => {
                let used = at_most(*rest, bytes);
                *rest -= used as u64;
                used
            }
            Open::Header { lsn, bytes: header, length } => {
                let used = bytes.len().min(RECORD_HEADER_BYTES - *length);
                header[*length..*length + used].copy_from_slice(&bytes[..used]);
                *length += used;
                if *length == RECORD_HEADER_BYTES {
                    let header = RecordHeader { lsn: *lsn, bytes: *header };
                    self.begin_record(header, self.at + used as u64, take);
                }
                used
            }
            Open::Rest { rest, crc, body, .. } => {
                let used = at_most(*rest, bytes);
                *rest -= used as u64;
                *crc = crc32c::crc32c_append(*crc, &bytes[..used]);
                if let Some(body) = body {
                    body.push(&bytes[..used]);
                }
                if *rest == 0 {
                    self.end_record(self.at + used as u64, take);
                }
                used
            }
        }
    }

    /// Looks at a record's header (`ValidXLogRecordHeader`), which ends at byte `at` of the segment.
    fn begin_record(&mut self, header: RecordHeader, at: u64, take: &mut impl FnMut(Ended) -> Flow) {
        let Some(rest) = header.total_bytes().checked_sub(RECORD_HEADER_BYTES as u64) else { return self.stop(Over::Invalid) };
        let follows = self.before.map_or_else(|| header.before() < header.lsn, |before| header.before() == before);
        if !follows {
            return self.stop(Over::Invalid);
        }
        let body = Body::of(&header, self.magic);
        self.open = Open::Rest { header, rest, crc: 0, body };
        if rest == 0 {
            self.end_record(at, take);
        }
    }

    /// Checks and gives away the record that ends before byte `at` of the segment.
    fn end_record(&mut self, at: u64, take: &mut impl FnMut(Ended) -> Flow) {
        let padding = padding(at);
        let ended = std::mem::replace(&mut self.open, Open::Padding { rest: padding });
        let Open::Rest { header, crc, body, .. } = ended else { return self.stop(Over::Invalid) };
        if crc32c::crc32c_append(crc, &header.bytes[..CRC_AT]) != header.crc() {
            return self.stop(Over::Invalid);
        }
        self.before = Some(header.lsn);
        let (what, end) = if header.is_switch() {
            self.stop(Over::Switched);
            (What::Switch, self.size.bytes())
        } else {
            (body.and_then(|body| body.finish(header.xid())).unwrap_or(What::Other), at + padding)
        };
        let end = Lsn(self.start.wrapping_add(end));
        if let Flow::Stop = take(Ended { lsn: Lsn(header.lsn), end, xid: header.xid(), what }) {
            self.stop(Over::Enough);
        }
    }
}

/// As [`Segment::start`], for any number: there may be none such.
fn first_byte(segment: Segment, size: SegmentSize) -> u64 {
    segment.number.wrapping_mul(size.bytes())
}

/// How many of `bytes` are among the next `rest`.
fn at_most(rest: u64, bytes: &[u8]) -> usize {
    usize::try_from(rest).map_or(bytes.len(), |rest| rest.min(bytes.len()))
}

/// Bytes from a place in a segment to where the next record can begin.
fn padding(at: u64) -> u64 {
    at.wrapping_neg() % ALIGNMENT
}

/// The bits of `xl_info` that are the resource manager's own.
const OWN_INFO: u8 = 0xF0;
/// Positions in `src/include/access/rmgrlist.h`.
const RM_XLOG_ID: u8 = 0;
const RM_XACT_ID: u8 = 1;

/// Bytes of `rp_time` and `rp_name` (`xl_restore_point`, `MAXFNAMELEN`).
const RESTORE_POINT_BYTES: usize = 8 + 64;

/// Reads what follows the header of a record that matters, passing over lists, which may be long, without keeping them.
#[derive(Debug, Clone)]
struct Body {
    kind: Kind,
    /// Bytes to pass over before the next field.
    passed_over: u64,
    /// The field that is being read.
    field: Field,
    bytes: [u8; RESTORE_POINT_BYTES],
    length: usize,
    time: i64,
    xinfo: u32,
    xid: u32,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    RestorePoint,
    Transaction { committed: bool, prepared: bool, has_info: bool, dropped_item_bytes: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    /// `XLR_BLOCK_ID_*`: what comes next before the main data.
    Id,
    ShortLength,
    LongLength,
    RestorePoint,
    Time,
    Xinfo,
    /// The number of entries of the list of this number.
    Count(usize),
    Xid,
    /// All is known.
    Done,
    /// It is not laid out as PostgreSQL does.
    Unknown,
}

impl Field {
    fn bytes(self) -> usize {
        match self {
            Field::Id | Field::ShortLength => 1,
            Field::LongLength | Field::Xinfo | Field::Count(_) | Field::Xid => 4,
            Field::Time => 8,
            Field::RestorePoint => RESTORE_POINT_BYTES,
            Field::Done | Field::Unknown => 0,
        }
    }
}

impl Body {
    /// Of a record that matters to recovery targets.
    fn of(header: &RecordHeader, magic: u16) -> Option<Self> {
        const XLOG_RESTORE_POINT: u8 = 0x70;
        const XLOG_XACT_OPMASK: u8 = 0x70;
        const XLOG_XACT_HAS_INFO: u8 = 0x80;
        let (info, manager) = (header.bytes[16], header.bytes[17]);
        let kind = match manager {
            RM_XLOG_ID if info & OWN_INFO == XLOG_RESTORE_POINT => Kind::RestorePoint,
            RM_XACT_ID => {
                let (committed, prepared) = match info & XLOG_XACT_OPMASK {
                    0x00 => (true, false),
                    0x20 => (false, false),
                    0x30 => (true, true),
                    0x40 => (false, true),
                    _ => return None,
                };
                // `xl_xact_stats_item`: 18 gave its object id 64 bits.
                let dropped_item_bytes = if magic >= MAGIC_18 { 16 } else { 12 };
                Kind::Transaction { committed, prepared, has_info: info & XLOG_XACT_HAS_INFO != 0, dropped_item_bytes }
            }
            _ => return None,
        };
        let bytes = [0; RESTORE_POINT_BYTES];
        Some(Self { kind, passed_over: 0, field: Field::Id, bytes, length: 0, time: 0, xinfo: 0, xid: 0 })
    }

    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.field.bytes() > 0 {
            let used = if self.passed_over > 0 {
                let used = at_most(self.passed_over, bytes);
                self.passed_over -= used as u64;
                used
            } else {
                let used = bytes.len().min(self.field.bytes() - self.length);
                self.bytes[self.length..self.length + used].copy_from_slice(&bytes[..used]);
                self.length += used;
                if self.length == self.field.bytes() {
                    self.length = 0;
                    self.field = self.next_field();
                }
                used
            };
            bytes = &bytes[used..];
        }
    }

    /// Takes the field that is there, and says which one comes next.
    fn next_field(&mut self) -> Field {
        match (self.field, self.kind) {
            (Field::Id, _) => match self.bytes[0] {
                // `XLR_BLOCK_ID_DATA_SHORT`, `_LONG`, `_ORIGIN`, and from 14 on `_TOPLEVEL_XID`.
                255 => Field::ShortLength,
                254 => Field::LongLength,
                253 => self.pass_over(2, Field::Id),
                252 => self.pass_over(4, Field::Id),
                // A reference to a block: records of these kinds have none.
                _ => Field::Unknown,
            },
            (Field::ShortLength | Field::LongLength, Kind::RestorePoint) => Field::RestorePoint,
            (Field::ShortLength | Field::LongLength, Kind::Transaction { .. }) => Field::Time,
            (Field::Time, Kind::Transaction { prepared, has_info, .. }) => {
                self.time = u64_at(&self.bytes, 0).cast_signed();
                // What follows matters only where the record's own transaction is not the one that it ends.
                if prepared && has_info { Field::Xinfo } else { Field::Done }
            }
            (Field::Xinfo, _) => {
                self.xinfo = u32_at(&self.bytes, 0);
                const HAS_DBINFO: u32 = 1;
                if self.xinfo & HAS_DBINFO != 0 {
                    self.passed_over = 8;
                }
                self.list_from(0)
            }
            (Field::Count(list), Kind::Transaction { .. }) => {
                let Ok(count) = u64::try_from(u32_at(&self.bytes, 0).cast_signed()) else { return Field::Unknown };
                let (_, entry_bytes) = self.list(list);
                self.passed_over = count * entry_bytes;
                self.list_from(list + 1)
            }
            (Field::Xid, _) => {
                self.xid = u32_at(&self.bytes, 0);
                Field::Done
            }
            (Field::RestorePoint, _) => {
                self.time = u64_at(&self.bytes, 0).cast_signed();
                Field::Done
            }
            (Field::Time | Field::Count(_) | Field::Done | Field::Unknown, _) => Field::Unknown,
        }
    }

    fn pass_over(&mut self, bytes: u64, then: Field) -> Field {
        self.passed_over = bytes;
        then
    }

    /// The lists before the transaction's id, in their order: the bit of `xinfo` that says that there is one, and the bytes of an entry.
    fn list(&self, number: usize) -> (u32, u64) {
        let (is_commit, dropped_item_bytes) = match self.kind {
            Kind::Transaction { committed, dropped_item_bytes, .. } => (committed, dropped_item_bytes),
            Kind::RestorePoint => (false, 0),
        };
        match number {
            // Subtransactions, relations to delete (`RelFileLocator`), statistics to drop (from 15 on).
            0 => (1 << 1, 4),
            1 => (1 << 2, 12),
            2 => (1 << 8, dropped_item_bytes),
            // Invalidation messages, which `ParseAbortRecord` does not know (`SharedInvalidationMessage`).
            3 if is_commit => (1 << 3, 16),
            _ => (0, 0),
        }
    }

    fn list_from(&self, first: usize) -> Field {
        const LISTS: usize = 4;
        const HAS_TWOPHASE: u32 = 1 << 4;
        match (first..LISTS).find(|number| self.xinfo & self.list(*number).0 != 0) {
            Some(number) => Field::Count(number),
            None if self.xinfo & HAS_TWOPHASE != 0 => Field::Xid,
            None => Field::Done,
        }
    }

    /// What the record says, when all of it has been pushed; `own_xid` is the one in its header.
    fn finish(self, own_xid: u32) -> Option<What> {
        if self.field != Field::Done {
            return None;
        }
        let time = timestamp(self.time);
        Some(match self.kind {
            Kind::Transaction { committed, prepared, .. } => {
                What::Transaction { time, xid: if prepared { self.xid } else { own_xid }, committed }
            }
            Kind::RestorePoint => {
                let name = &self.bytes[8..];
                let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                What::RestorePoint { time, name: name[..length].to_vec() }
            }
        })
    }
}

/// A `TimestampTz`, microseconds since the year 2000. What no calendar has becomes the nearest that it has.
fn timestamp(microseconds: i64) -> Timestamp {
    const YEAR_2000: i64 = 946_684_800_000_000;
    let nearest = if microseconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_microsecond(microseconds.saturating_add(YEAR_2000)).unwrap_or(nearest)
}

#[cfg(test)]
mod tests;
