//! WAL that is written here, page by page, as PostgreSQL does, and then damaged.

use proptest::prelude::*;

use super::*;

const SIZE: u32 = 1 << 20;
const PAGE: usize = 8192;
const FIRST: u64 = 5;
const MAGIC_16: u16 = 0xD113;

fn size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

fn segment(number: u64) -> Segment {
    Segment { timeline: Timeline(1), number: FIRST + number }
}

/// 2024-03-15T12:00:00Z and so many microseconds, since the year 2000.
fn pg_time(microseconds: i64) -> i64 {
    763_819_200_000_000 + microseconds
}

fn time(microseconds: i64) -> Timestamp {
    let noon: Timestamp = "2024-03-15T12:00:00Z".parse().unwrap();
    noon + jiff::SignedDuration::from_micros(microseconds)
}

/// Writes records as a server does. The first segment is number [`FIRST`].
struct Wal {
    magic: u16,
    timeline: u32,
    bytes: Vec<u8>,
    before: u64,
}

impl Wal {
    fn new(magic: u16) -> Self {
        Self { magic, timeline: 1, bytes: Vec::new(), before: FIRST * u64::from(SIZE) - 40 }
    }

    fn lsn(&self) -> u64 {
        FIRST * u64::from(SIZE) + self.bytes.len() as u64
    }

    fn page(&mut self, info: u16, left: usize) {
        let long = self.bytes.len().is_multiple_of(SIZE as usize);
        let lsn = self.lsn();
        self.bytes.extend(self.magic.to_le_bytes());
        self.bytes.extend((info | if long { LONG_HEADER } else { 0 }).to_le_bytes());
        self.bytes.extend(self.timeline.to_le_bytes());
        self.bytes.extend(lsn.to_le_bytes());
        self.bytes.extend((left as u32).to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(7_u64.to_le_bytes());
            self.bytes.extend(SIZE.to_le_bytes());
            self.bytes.extend((PAGE as u32).to_le_bytes());
        }
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    fn encode(&self, xid: u32, manager: u8, info: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = (24 + rest.len() as u32).to_le_bytes().to_vec();
        header.extend(xid.to_le_bytes());
        header.extend(self.before.to_le_bytes());
        header.extend([info, manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(rest), &header);
        header.extend(crc.to_le_bytes());
        header.extend(rest);
        header
    }

    /// The first `limit` bytes of a record.
    fn put(&mut self, record: &[u8], limit: usize) -> Lsn {
        if self.bytes.len().is_multiple_of(PAGE) {
            self.page(0, 0);
        }
        let lsn = self.lsn();
        let mut written = 0;
        while written < limit {
            if self.bytes.len().is_multiple_of(PAGE) {
                self.page(CONTINUES, record.len() - written);
            }
            let room = (PAGE - self.bytes.len() % PAGE).min(limit - written);
            self.bytes.extend(&record[written..written + room]);
            written += room;
        }
        Lsn(lsn)
    }

    fn record(&mut self, xid: u32, manager: u8, info: u8, rest: &[u8]) -> (Lsn, Lsn) {
        let record = self.encode(xid, manager, info, rest);
        let lsn = self.put(&record, record.len());
        self.align();
        self.before = lsn.0;
        (lsn, Lsn(self.lsn()))
    }

    /// A record of no interest with this many bytes in all.
    fn heap(&mut self, xid: u32, bytes: usize) -> (Lsn, Lsn) {
        self.record(xid, 10, 0, &vec![0xAB; bytes - 24])
    }

    fn commit(&mut self, xid: u32, at: i64) -> (Lsn, Lsn) {
        self.record(xid, RM_XACT_ID, 0x00, &main_data(&pg_time(at).to_le_bytes()))
    }

    fn restore_point(&mut self, name: &[u8], at: i64) -> (Lsn, Lsn) {
        let mut data = pg_time(at).to_le_bytes().to_vec();
        data.extend(name);
        data.resize(72, 0);
        self.record(0, RM_XLOG_ID, 0x70, &main_data(&data))
    }

    /// Fills the present page, or segment, until so many bytes are left.
    fn fill(&mut self, unit: usize, left: usize) {
        loop {
            if self.bytes.len().is_multiple_of(PAGE) {
                self.page(0, 0);
            }
            let room = unit - self.bytes.len() % unit;
            if room == left {
                return;
            }
            let in_page = PAGE - self.bytes.len() % PAGE;
            let most = if room == in_page { room - left } else { in_page };
            // Nothing shorter than a header may be left over before the end.
            self.heap(900, if most >= 2048 { 1024 } else { most });
        }
    }

    /// What is in segment `number`, as long as it is.
    fn segment(&self, number: usize) -> &[u8] {
        let rest = &self.bytes[number * SIZE as usize..];
        &rest[..rest.len().min(SIZE as usize)]
    }

    fn summary(&self, number: u64) -> Summary {
        summary(self.segment(number as usize), segment(number))
    }
}

fn main_data(data: &[u8]) -> Vec<u8> {
    let mut bytes = match u8::try_from(data.len()) {
        Ok(length) => vec![255, length],
        Err(_) => [&[254][..], &(data.len() as u32).to_le_bytes()].concat(),
    };
    bytes.extend(data);
    bytes
}

fn try_summary(bytes: &[u8], segment: Segment) -> Result<Summary, RecordError> {
    let mut summarizer = Summarizer::new(segment, size());
    summarizer.push(bytes);
    summarizer.finish()
}

#[track_caller]
fn summary(bytes: &[u8], segment: Segment) -> Summary {
    try_summary(bytes, segment).unwrap()
}

/// Searches all segments of `wal`, in pieces.
fn search(wal: &Wal, wanted: Wanted) -> Option<Found> {
    let mut search = Search::new(wanted, size());
    for number in 0..wal.bytes.len().div_ceil(SIZE as usize) {
        search.begin(segment(number as u64));
        for piece in wal.segment(number).chunks(777) {
            if let Some(found) = search.push(piece).unwrap() {
                return Some(found.clone());
            }
        }
    }
    None
}

#[test]
fn a_segment_is_summarized() {
    let mut wal = Wal::new(MAGIC_16);
    wal.heap(740, 100);
    wal.commit(740, 2_000_001);
    let (_, named) = wal.restore_point(b"before migration", 1);
    wal.record(742, RM_XACT_ID, 0x20, &main_data(&pg_time(5_000_000).to_le_bytes()));
    // Neither has a time that counts: PREPARE, and a checkpoint.
    wal.record(743, RM_XACT_ID, 0x10, &main_data(&[0xFF; 80]));
    let (_, end) = wal.record(0, RM_XLOG_ID, 0x10, &main_data(&[0xFF; 88]));
    assert_eq!(
        wal.summary(0),
        Summary {
            end: Some(end),
            first_time: Some(time(1)),
            last_time: Some(time(5_000_000)),
            xids: Some((740, 743)),
            restore_points: vec![RestorePoint { name: "before migration".into(), lsn: named, time: time(1) }],
            ..Summary::default()
        }
    );
    assert_eq!(
        serde_json::to_string(&wal.summary(0)).unwrap(),
        format!(
            r#"{{"end":"{end}","first_time":"2024-03-15T12:00:00.000001Z","last_time":"2024-03-15T12:00:05Z","xids":[740,743],"restore_points":[{{"name":"before migration","lsn":"{named}","time":"2024-03-15T12:00:00.000001Z"}}]}}"#
        )
    );
    wal.bytes.resize(SIZE as usize, 0);
    assert_eq!(wal.summary(0).end, Some(end), "zeros follow");
}

#[test]
fn what_is_absent_is_not_written() {
    assert_eq!(serde_json::to_string(&Summary::default()).unwrap(), "{}");
    assert_eq!(serde_json::from_str::<Summary>("{}").unwrap(), Summary::default());
    let all = Summary { tail: true, switched: true, more_restore_points: true, ..Summary::default() };
    let json = serde_json::to_string(&all).unwrap();
    assert_eq!(json, r#"{"more_restore_points":true,"tail":true,"switched":true}"#);
    assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), all);
}

#[test]
fn records_go_over_pages() {
    // A commit that begins so many bytes before the end of a page: its header is split, or its body is, or both are whole.
    for left in (8..=64).step_by(8) {
        let mut wal = Wal::new(MAGIC_16);
        wal.fill(PAGE, left);
        let (lsn, end) = wal.commit(77, 5);
        assert_eq!(lsn.0 % PAGE as u64, (PAGE - left) as u64);
        let summary = wal.summary(0);
        assert_eq!((summary.end, summary.last_time, summary.tail), (Some(end), Some(time(5)), false), "{left} bytes");
        let found = search(&wal, Wanted::TransactionId(77)).unwrap();
        assert_eq!(found, Found { lsn, end, time: Some(time(5)), committed: true, timeline: Timeline(1) });
    }
    let mut wal = Wal::new(MAGIC_16);
    wal.heap(3, 10 * PAGE);
    let (_, end) = wal.commit(4, 9);
    assert_eq!((wal.summary(0).end, wal.summary(0).last_time), (Some(end), Some(time(9))));
}

#[test]
fn records_go_over_segments() {
    for left in (8..=64).step_by(8) {
        let mut wal = Wal::new(MAGIC_16);
        wal.fill(SIZE as usize, left);
        let last = Lsn(wal.before);
        let (lsn, end) = wal.commit(1077, 5);
        let straddles = left < 40;
        let (first, second) = (wal.summary(0), straddles.then(|| wal.summary(1)));
        assert_eq!(first.tail, straddles, "{left} bytes");
        assert_eq!(first.xids, Some((900, 1077)));
        assert_eq!(first.last_time.is_some(), !straddles);
        if straddles {
            assert!(first.end.is_some_and(|end| end > last && end == lsn));
            assert_eq!(second, Some(Summary::default()), "only the end of it is there");
        }
        let (_, end_of_all) = wal.restore_point(b"next", 6);
        if straddles {
            assert_eq!(wal.summary(1).restore_points, [RestorePoint { name: "next".into(), lsn: end_of_all, time: time(6) }]);
            assert_eq!(wal.summary(1).last_time, Some(time(6)));
        }
        let found = search(&wal, Wanted::TransactionId(1077)).unwrap();
        assert_eq!(found, Found { lsn, end, time: Some(time(5)), committed: true, timeline: Timeline(1) }, "{left} bytes");
    }
}

#[test]
fn a_record_longer_than_a_segment_is_passed_over() {
    let mut wal = Wal::new(MAGIC_16);
    wal.commit(50, 1);
    wal.heap(51, 2 * SIZE as usize + 100_000);
    let (_, end) = wal.commit(52, 2);
    let summaries = [wal.summary(0), wal.summary(1), wal.summary(2)];
    assert_eq!(summaries.each_ref().map(|summary| summary.tail), [true, true, false]);
    assert_eq!(summaries.each_ref().map(|summary| summary.xids), [Some((50, 51)), None, Some((52, 52))]);
    assert_eq!((summaries[1].end, summaries[2].end), (None, Some(end)));
    assert!(search(&wal, Wanted::TransactionId(52)).is_some());
}

#[test]
fn nothing_follows_a_switch() {
    let mut wal = Wal::new(MAGIC_16);
    wal.commit(50, 1);
    wal.record(0, RM_XLOG_ID, 0x40, &[]);
    // What was there before, in the same place, is no longer meant.
    wal.commit(51, 2);
    wal.bytes.resize(SIZE as usize, 0);
    let (lsn, _) = wal.commit(52, 3);
    let first = wal.summary(0);
    assert!(first.switched && !first.tail);
    assert_eq!((first.end, first.xids), (Some(segment(1).start(size())), Some((50, 50))));
    assert_eq!(search(&wal, Wanted::TransactionId(51)), None);
    // Its link is to the record at 51, not to the switch: a segment that does not go on is not read on.
    assert_eq!(search(&wal, Wanted::TransactionId(52)), None);
    assert_eq!(wal.summary(1).xids, Some((52, 52)), "by itself it can be anything");

    let mut wal = Wal::new(MAGIC_16);
    wal.record(0, RM_XLOG_ID, 0x40, &[]);
    wal.bytes.resize(SIZE as usize, 0);
    let (again, _) = wal.commit(52, 3);
    assert_eq!(search(&wal, Wanted::TransactionId(52)).map(|found| found.lsn), Some(again));
    assert_eq!(lsn, again);
}

#[test]
fn decoding_ends_where_bytes_are_stale() {
    let mut wal = Wal::new(MAGIC_16);
    wal.commit(50, 1);
    let (_, end) = wal.commit(51, 2);
    let whole = wal.bytes.len();
    let before = wal.before;
    let expected = wal.summary(0);
    assert_eq!((expected.end, expected.xids), (Some(end), Some((50, 51))));

    // A record that is well formed but follows another one: left over from the use of the file before.
    wal.before = 17;
    wal.commit(60, 3);
    assert_eq!(wal.summary(0), expected);
    // One whose CRC is wrong, whatever the byte that makes it so; one byte less is a record whose end is missing.
    wal.bytes.truncate(whole);
    wal.before = before;
    wal.commit(60, 3);
    let record = wal.bytes.len() - whole;
    assert_eq!(wal.summary(0).xids, Some((50, 60)));
    for at in whole..whole + 24 + 10 {
        wal.bytes[at] ^= 0x04;
        let damaged = wal.summary(0);
        // Longer than it was: it does not end in what there is.
        if damaged.tail {
            assert!(at < whole + 4);
        } else {
            assert_eq!(damaged, expected, "byte {}", at - whole);
        }
        wal.bytes[at] ^= 0x04;
    }
    assert_eq!(record, 40);
    for missing in 7..32 {
        let torn = summary(&wal.bytes[..wal.bytes.len() - missing], segment(0));
        assert!(torn.tail && torn.xids == Some((50, 60)) && torn.end == Some(end), "{missing} bytes missing");
    }
    // Noise.
    let mut noise = wal.bytes[..whole].to_vec();
    noise.extend((0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8));
    assert_eq!(summary(&noise, segment(0)), expected);
    // A record that goes on on a page of another time.
    wal.bytes.truncate(whole);
    wal.before = before;
    wal.heap(61, 3 * PAGE);
    assert_eq!(wal.summary(0).xids, Some((50, 61)));
    wal.bytes[PAGE + 8] ^= 1;
    assert_eq!(wal.summary(0), expected);
    wal.bytes[PAGE + 8] ^= 1;
    for (at, what) in [(0, "magic"), (2, "flags"), (3, "unknown flag"), (16, "length left"), (4, "timeline")] {
        wal.bytes[PAGE + at] ^= 1 | u8::from(at == 3);
        assert_eq!(wal.summary(0), expected, "{what}");
        wal.bytes[PAGE + at] ^= 1 | u8::from(at == 3);
    }
}

#[test]
fn a_segment_that_is_another_is_refused() {
    let mut wal = Wal::new(MAGIC_16);
    wal.commit(50, 1);
    let bytes = &wal.bytes;
    let damaged = |at: usize, new: &[u8]| {
        let mut damaged = bytes.clone();
        damaged[at..at + new.len()].copy_from_slice(new);
        try_summary(&damaged, segment(0)).unwrap_err()
    };
    assert_eq!(
        try_summary(bytes, segment(1)),
        Err(RecordError::OtherPlace { found: segment(0).start(size()), expected: segment(1).start(size()) })
    );
    assert_eq!(damaged(0, &[0, 0]), RecordError::NoHeader);
    assert_eq!(damaged(0, &0xD119_u16.to_le_bytes()), RecordError::Version(0xD119));
    assert_eq!(RecordError::Version(0xD119).to_string(), "read WAL: magic number 0xD119 is of no known PostgreSQL version");
    assert_eq!(damaged(2, &[0, 0]), RecordError::NoHeader, "no long header");
    assert_eq!(damaged(32, &(2 * SIZE).to_le_bytes()), RecordError::OtherSize(2 * SIZE));
    assert_eq!(damaged(36, &0_u32.to_le_bytes()), RecordError::NoHeader);
    for length in 0..40 {
        assert_eq!(try_summary(&bytes[..length], segment(0)), Err(RecordError::NoHeader));
    }
    assert_eq!(try_summary(&bytes[..40], segment(0)), Ok(Summary::default()));
    let mut search = Search::new(Wanted::TransactionId(50), size());
    search.begin(segment(1));
    assert!(matches!(search.push(bytes), Err(RecordError::OtherPlace { .. })));
}

/// `CreateOverwriteContrecordRecord`: after a crash in the middle of a record, the page that should go on with it is given another one.
#[test]
fn a_record_that_was_given_up_is_passed_over() {
    for (unit, what) in [(PAGE, "page"), (SIZE as usize, "segment")] {
        let mut wal = Wal::new(MAGIC_16);
        let (_, first_end) = wal.commit(50, 1);
        wal.fill(unit, 1024);
        // Begins on this page, goes over the next one, and is given up on the one after that.
        let torn = wal.encode(60, RM_XACT_ID, 0, &main_data(&[1; 20_000]));
        wal.put(&torn, 1024 + (PAGE - if unit == PAGE { 24 } else { 40 }));
        assert!(wal.bytes.len().is_multiple_of(PAGE));
        wal.page(OVERWRITES, 0);
        wal.record(0, RM_XLOG_ID, 0xD0, &main_data(&[0; 16]));
        let (lsn, end) = wal.commit(61, 4);
        assert!(first_end < lsn);
        let found = search(&wal, Wanted::TransactionId(61)).unwrap();
        assert_eq!((found.lsn, found.end), (lsn, end), "{what}");
        assert_eq!(search(&wal, Wanted::TransactionId(60)), None);
        let last = wal.summary(wal.bytes.len() as u64 / u64::from(SIZE));
        assert_eq!((last.end, last.last_time), (Some(end), Some(time(4))), "{what}");
        assert_eq!(last.xids, Some(if unit == PAGE { (50, 900) } else { (61, 61) }));
    }
    // The segment before ended in the middle of the record, the next begins anew.
    let mut wal = Wal::new(MAGIC_16);
    wal.fill(SIZE as usize, 1024);
    let torn = wal.encode(60, 10, 0, &[1; 4000]);
    wal.put(&torn, 1024);
    wal.page(OVERWRITES, 0);
    let (lsn, end) = wal.commit(61, 4);
    assert!(wal.summary(0).tail);
    assert_eq!((wal.summary(1).end, wal.summary(1).xids), (Some(end), Some((61, 61))));
    assert_eq!(search(&wal, Wanted::TransactionId(61)).map(|found| found.lsn), Some(lsn));
}

/// A prepared transaction's end, with everything that can stand before its id.
fn prepared(magic: u16, committed: bool, xid: u32, entries: u32) -> Vec<u8> {
    let with_stats = magic >= 0xD110;
    let mut data = pg_time(3).to_le_bytes().to_vec();
    let flags: u32 = 0b1001_0111 | u32::from(committed) << 3 | u32::from(with_stats) << 8 | 1 << 30;
    data.extend(flags.to_le_bytes());
    data.extend([0xDD; 8]);
    let stats_item = if magic == MAGIC_18 { 16 } else { 12 };
    for (there, entry) in [(true, 4), (true, 12), (with_stats, stats_item), (committed, 16)] {
        if there {
            data.extend(entries.to_le_bytes());
            data.resize(data.len() + entries as usize * entry, 0xEE);
        }
    }
    data.extend(xid.to_le_bytes());
    data.extend(b"a gid\0");
    data
}

#[test]
fn the_end_of_a_prepared_transaction_names_it() {
    for magic in MAGICS {
        for (committed, info) in [(true, 0x30), (false, 0x40)] {
            for entries in [0, 1, 3, 5000] {
                let mut wal = Wal::new(magic);
                let data = main_data(&prepared(magic, committed, 800, entries));
                // An origin and a top-level transaction's id may stand before the main data.
                let rest = [&[253, 1, 0, 252, 9, 9, 9, 9][..], &data].concat();
                let (lsn, end) = wal.record(0, RM_XACT_ID, 0x80 | info, &rest);
                let found = search(&wal, Wanted::TransactionId(800));
                assert_eq!(
                    found,
                    Some(Found { lsn, end, time: Some(time(3)), committed, timeline: Timeline(1) }),
                    "{magic:X} {committed} {entries}"
                );
                assert_eq!(wal.summary(0).xids, Some((800, 800)));
            }
        }
    }
    // Lists that say more than the record holds, or less than nothing: the record is whole, but ends no transaction.
    for entries in [u32::MAX, 1 << 31, i32::MAX.cast_unsigned()] {
        let mut wal = Wal::new(MAGIC_16);
        let mut data = prepared(MAGIC_16, true, 800, 0);
        data[20..24].copy_from_slice(&entries.to_le_bytes());
        let (_, end) = wal.record(0, RM_XACT_ID, 0xB0, &main_data(&data));
        assert_eq!(wal.summary(0), Summary { end: Some(end), ..Summary::default() });
    }
}

#[test]
fn transaction_ids_wrap_around() {
    let mut wal = Wal::new(MAGIC_16);
    for xid in [u32::MAX - 1, 0, 1, 2, 4, u32::MAX, 3] {
        wal.heap(xid, 40);
    }
    assert_eq!(wal.summary(0).xids, Some((u32::MAX - 1, 4)));
    assert!(precedes(u32::MAX, 3) && !precedes(3, u32::MAX) && !precedes(7, 7) && precedes(7, 8));
}

#[test]
fn restore_points_are_limited() {
    let mut wal = Wal::new(MAGIC_16);
    for number in 0..MAX_RESTORE_POINTS {
        wal.restore_point(format!("p{number}").as_bytes(), number as i64);
    }
    assert!(!wal.summary(0).more_restore_points);
    wal.restore_point(b"one more", 99);
    let summary = wal.summary(0);
    assert!(summary.more_restore_points);
    assert_eq!((summary.restore_points.len(), summary.restore_points[31].name.as_str()), (MAX_RESTORE_POINTS, "p31"));
    assert_eq!(summary.last_time, Some(time(99)));
}

#[test]
fn restore_points_are_found_by_all_of_their_name() {
    let mut wal = Wal::new(MAGIC_16);
    wal.restore_point(b"nightly-2", 1);
    wal.restore_point(&[b'x'; 64], 2);
    wal.restore_point(b"caf\xe9", 3);
    let (lsn, end) = wal.restore_point(b"nightly", 4);
    wal.restore_point(b"nightly", 5);
    let found = search(&wal, Wanted::RestorePoint("nightly".into())).unwrap();
    assert_eq!(found, Found { lsn, end, time: Some(time(4)), committed: false, timeline: Timeline(1) });
    assert_eq!(search(&wal, Wanted::RestorePoint("night".into())), None);
    assert_eq!(search(&wal, Wanted::RestorePoint("x".repeat(64))).and_then(|found| found.time), Some(time(2)));
    assert_eq!(search(&wal, Wanted::RestorePoint("caf\u{fffd}".into())), None);
    assert_eq!(wal.summary(0).restore_points[2].name, "caf\u{fffd}");
}

#[test]
fn a_search_counts_from_a_place_on_and_up_to_a_number() {
    let mut wal = Wal::new(MAGIC_16);
    let lsns: Vec<Lsn> = (1..=4).map(|at| wal.restore_point(b"again", at).0).collect();
    let (commit, _) = wal.commit(10, 5);
    let found = |wanted: Wanted, from: Lsn, most| {
        let mut search = Search::new(wanted, size()).from(from).up_to(most);
        search.begin(segment(0));
        wal.segment(0).chunks(7).for_each(|piece| assert!(search.push(piece).is_ok()));
        search.found().iter().map(|found| found.lsn).collect::<Vec<_>>()
    };
    let again = || Wanted::RestorePoint("again".into());
    assert_eq!(found(again(), Lsn(0), 9), lsns);
    assert_eq!(found(again(), Lsn(0), 2), lsns[..2]);
    assert_eq!(found(again(), lsns[1], 9), lsns[1..]);
    assert_eq!(found(again(), Lsn(lsns[1].0 + 1), 1), [lsns[2]]);
    assert_eq!(found(Wanted::Record, Lsn(lsns[3].0 + 1), 1), [commit]);
    assert_eq!(found(Wanted::Record, commit, 9), [commit]);
    let last = |wanted: Wanted, to: Lsn| {
        let mut search = Search::new(wanted, size()).last_before(to);
        search.begin(segment(0));
        wal.segment(0).chunks(7).for_each(|piece| assert!(search.push(piece).is_ok()));
        search.found().iter().map(|found| found.lsn).collect::<Vec<_>>()
    };
    assert_eq!(last(Wanted::Record, Lsn(u64::MAX)), [commit]);
    assert_eq!(last(again(), Lsn(u64::MAX)), lsns[3..]);
    assert_eq!(last(Wanted::Record, lsns[3]), lsns[2..3]);
}

#[test]
fn recovery_to_a_time_stops_at_the_first_later_end() {
    let mut wal = Wal::new(MAGIC_16);
    wal.commit(10, 5);
    // Times need not be in order, and a restore point does not count.
    wal.commit(11, 3);
    wal.restore_point(b"p", 50);
    wal.record(12, RM_XACT_ID, 0x20, &main_data(&pg_time(9).to_le_bytes()));
    wal.commit(13, 8);
    let first_after = |at| search(&wal, Wanted::FirstCommitAfter(time(at))).map(|found| (found.time.unwrap(), found.committed));
    assert_eq!(first_after(2), Some((time(5), true)));
    assert_eq!(first_after(4), Some((time(5), true)));
    assert_eq!(first_after(5), Some((time(9), false)), "an abort stops it too");
    assert_eq!(first_after(9), None);
    let finer = Wanted::FirstCommitAfter(time(5) + jiff::SignedDuration::from_nanos(1));
    assert_eq!(search(&wal, finer).and_then(|found| found.time), Some(time(9)));
}

#[test]
fn a_search_begins_anew_after_a_gap() {
    let mut wal = Wal::new(MAGIC_16);
    wal.fill(SIZE as usize, 64);
    wal.heap(70, 2 * SIZE as usize - 30_000);
    wal.commit(71, 1);
    let mut search = Search::new(Wanted::TransactionId(71), size());
    assert_eq!(search.push(b"before all"), Ok(None));
    search.begin(segment(0));
    assert_eq!(search.push(wal.segment(0)), Ok(None));
    assert!(search.is_complete());
    let end = search.end().unwrap();
    // Half of the next one, then the one after it.
    search.begin(segment(1));
    assert_eq!(search.push(&wal.segment(1)[..PAGE]), Ok(None));
    assert!(!search.is_complete());
    search.begin(segment(2));
    assert_eq!(search.end(), Some(end));
    let found = search.push(wal.segment(2)).unwrap().cloned().unwrap();
    assert_eq!(found.time, Some(time(1)));
    assert_eq!(search.push(b"whatever comes"), Ok(Some(&found)));
    search.begin(segment(9));
    assert_eq!(search.push(b"whatever comes"), Ok(Some(&found)));
}

#[test]
fn a_search_goes_on_on_the_child_timeline() {
    let mut wal = Wal::new(MAGIC_16);
    wal.fill(SIZE as usize, 16);
    let (lsn, _) = wal.commit(71, 1);
    wal.timeline = 2;
    wal.fill(PAGE, 8);
    wal.commit(72, 2);
    let mut search = Search::new(Wanted::TransactionId(71), size());
    search.begin(segment(0));
    assert_eq!(search.push(wal.segment(0)), Ok(None));
    search.begin(Segment { timeline: Timeline(2), ..segment(1) });
    let found = search.push(wal.segment(1)).unwrap().cloned().unwrap();
    assert_eq!((found.lsn, found.timeline), (lsn, Timeline(2)));
}

#[test]
fn times_that_no_calendar_has_are_the_nearest() {
    assert_eq!(timestamp(0), "2000-01-01T00:00:00Z".parse().unwrap());
    assert_eq!((timestamp(i64::MAX), timestamp(i64::MIN)), (Timestamp::MAX, Timestamp::MIN));
}

/// All that a summary takes is its own size and its restore points, whatever a segment claims.
#[test]
fn memory_is_bounded() {
    assert!(size_of::<Summarizer>() < 1024 && size_of::<Search>() < 1024);
}

/// A bit of everything over three segments.
fn mixture() -> Wal {
    let mut wal = Wal::new(MAGIC_16);
    wal.commit(100, 1);
    wal.fill(PAGE, 16);
    wal.restore_point(b"early", 2);
    wal.record(0, RM_XACT_ID, 0xB0, &main_data(&prepared(MAGIC_16, true, 101, 2000)));
    wal.heap(102, 3 * PAGE + 1);
    wal.fill(PAGE, 1024);
    let torn = wal.encode(103, RM_XACT_ID, 0, &main_data(&[1; 2000]));
    wal.put(&torn, 1024);
    wal.page(OVERWRITES, 0);
    wal.commit(104, 3);
    wal.fill(SIZE as usize, 8);
    wal.commit(105, 4);
    wal.heap(106, 30_001);
    wal.record(0, RM_XLOG_ID, 0x40, &[]);
    wal.bytes.resize(2 * SIZE as usize, 0);
    wal.commit(107, 5);
    wal.heap(108, 61);
    wal
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_cut_gives_the_same(cuts in proptest::collection::vec(1_usize..20_000, 1..40), number in 0_u64..3, length in 0_usize..1 << 20) {
        let wal = mixture();
        let bytes = wal.segment(number as usize);
        let bytes = &bytes[..length.min(bytes.len())];
        let expected = try_summary(bytes, segment(number));
        let mut summarizer = Summarizer::new(segment(number), size());
        let mut rest = bytes;
        for cut in cuts.iter().cycle() {
            // Some cuts byte by byte: at headers.
            let cut = if cut % 3 == 0 { cut % 7 } else { *cut };
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            summarizer.push(piece);
            rest = after;
            if rest.is_empty() {
                break;
            }
            if cuts.iter().all(|cut| cut % 21 == 0) {
                summarizer.push(std::mem::take(&mut rest));
                break;
            }
        }
        prop_assert_eq!(summarizer.finish(), expected);
    }

    #[test]
    fn damage_ends_decoding_and_nothing_else(number in 0_u64..3, at in 0_usize..1 << 20, new: u8, length in 1_usize..64) {
        let wal = mixture();
        let mut bytes = wal.segment(number as usize).to_vec();
        let at = at % bytes.len();
        let whole = summary(&bytes, segment(number));
        for byte in bytes.iter_mut().skip(at).take(length) {
            *byte ^= new;
        }
        if let Ok(found) = try_summary(&bytes, segment(number)) {
            prop_assert!(found.end <= whole.end);
            prop_assert!(found.restore_points.iter().all(|point| whole.restore_points.contains(point)));
            prop_assert!(found.last_time.is_none() || found.last_time <= whole.last_time);
        }
        let mut search = Search::new(Wanted::TransactionId(1), size());
        search.begin(segment(number));
        let _ = search.push(&bytes);
        prop_assert!(search.end() <= whole.end);
    }

    #[test]
    fn noise_does_no_harm(noise in proptest::collection::vec(any::<u8>(), 0..30_000), keep in 0_usize..200) {
        let _ = try_summary(&noise, segment(0));
        let wal = mixture();
        let mut bytes = wal.bytes[..keep.max(40)].to_vec();
        bytes.extend(&noise);
        let found = summary(&bytes, segment(0));
        prop_assert!(found.end <= wal.summary(0).end);
    }
}
