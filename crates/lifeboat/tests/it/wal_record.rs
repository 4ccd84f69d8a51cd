//! What is read out of WAL, held against what `pg_waldump` of the server's own version prints of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use jiff::Timestamp;
use lifeboat_core::wal::record::{Found, RestorePoint, Search, Summarizer, Summary, Wanted};
use lifeboat_core::wal::{Lsn, Segment, SegmentSize, Timeline};

use crate::cluster::{Cluster, Postgres, Stop};

const PAGE: u64 = 8192;

/// A record as `pg_waldump` tells it.
#[derive(Debug)]
struct Record {
    lsn: u64,
    end: u64,
    tx: u32,
    kind: String,
    /// Of the end of a transaction: which one, and when.
    ends: Option<(u32, Timestamp)>,
    /// Of a restore point.
    name: Option<String>,
}

impl Record {
    fn is_switch(&self) -> bool {
        self.kind == "XLOG SWITCH"
    }

    fn committed(&self) -> bool {
        self.kind.starts_with("Transaction COMMIT")
    }
}

/// Where a record ends that begins at `lsn`: past the headers of the pages that it goes over, and its padding.
fn end_of(lsn: u64, bytes: u64, segment_bytes: u64) -> u64 {
    let (mut at, mut left) = (lsn, bytes.next_multiple_of(8));
    loop {
        let room = PAGE - at % PAGE;
        if left <= room {
            return at + left;
        }
        (at, left) = (at + room, left - room);
        at += if at.is_multiple_of(segment_bytes) { 40 } else { 24 };
    }
}

fn lsn(text: &str) -> u64 {
    text.parse::<Lsn>().unwrap_or_else(|error| panic!("{error}")).0
}

/// `rmgr: Transaction len (rec/tot): 34/ 34, tx: 740, lsn: 0/015A9B58, prev 0/015A9B20, desc: COMMIT 2026-11-21 23:55:00.123456 UTC`
fn parse(line: &str, segment_bytes: u64) -> Record {
    let between = |from: &str, to: &str| {
        let (_, rest) = line.split_once(from).unwrap_or_else(|| panic!("{from:?} is not in {line}"));
        rest.split(to).next().unwrap_or_default().trim().to_owned()
    };
    let manager = between("rmgr: ", " ");
    let (_, description) = line.split_once("desc: ").unwrap();
    let (what, rest) = description.split_once(' ').unwrap_or((description.trim(), ""));
    let kind = format!("{manager} {what}");
    let start = lsn(&between("lsn: ", ","));
    let bytes: u64 = between("(rec/tot): ", ",").split('/').nth(1).unwrap().trim().parse().unwrap();
    let tx = between("tx: ", ",").parse().unwrap();
    let mut end = end_of(start, bytes, segment_bytes);
    if kind == "XLOG SWITCH" {
        end = end.next_multiple_of(segment_bytes);
    }
    let ends =
        ["COMMIT", "ABORT", "COMMIT_PREPARED", "ABORT_PREPARED"].map(|what| format!("Transaction {what}")).contains(&kind).then(|| {
            let own = rest.split_once(": ").and_then(|(xid, rest)| Some((xid.parse().ok()?, rest)));
            let (xid, rest) = own.unwrap_or((tx, rest));
            let time = rest.split(" UTC").next().unwrap();
            (xid, format!("{}Z", time.replace(' ', "T")).parse().unwrap_or_else(|error| panic!("{line}: {error}")))
        });
    let name = (kind == "XLOG RESTORE_POINT").then(|| rest.trim().to_owned());
    Record { lsn: start, end, tx, kind, ends, name }
}

/// Everything that `pg_waldump` finds from the first segment that is there on, and the segments in their order.
fn dump(cluster: &Cluster, size: SegmentSize) -> (Vec<Record>, Vec<(Segment, Vec<u8>)>) {
    let directory = cluster.data_directory().join("pg_wal");
    let mut names: Vec<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Segment::from_file_name(name, size).is_ok())
        .collect();
    names.sort();
    let mut waldump = Command::new(cluster.bin("pg_waldump"));
    let start = Segment::from_file_name(&names[0], size).unwrap().start(size).to_string();
    // It ends with an error, where no more was written.
    let output = cluster.run_as_owner(waldump.env("TZ", "UTC").arg("-p").arg(&directory).args(["-s", &start]));
    let text = String::from_utf8(output.stdout).unwrap();
    let records: Vec<Record> = text.lines().filter(|line| line.starts_with("rmgr: ")).map(|line| parse(line, size.bytes())).collect();
    assert!(records.len() > 1000, "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &String| (Segment::from_file_name(name, size).unwrap(), fs::read(Path::new(&directory).join(name)).unwrap());
    let last = records.last().unwrap().lsn;
    let segments: Vec<_> = names.iter().map(read).filter(|(segment, _)| segment.start(size).0 <= last).collect();
    (records, segments)
}

fn search(wanted: Wanted, segments: &[(Segment, Vec<u8>)], size: SegmentSize) -> Option<Found> {
    let mut search = Search::new(wanted, size);
    for (segment, bytes) in segments {
        search.begin(*segment);
        for piece in bytes.chunks(100_003) {
            if let Some(found) = search.push(piece).unwrap() {
                return Some(found.clone());
            }
        }
    }
    None
}

/// What the summary of a segment must be, by what `pg_waldump` says of it.
fn expected(segment: Segment, size: SegmentSize, records: &[Record], named: &BTreeMap<String, Found>) -> Summary {
    let (start, end) = (segment.start(size).0, segment.start(size).0 + size.bytes());
    let begun: Vec<&Record> = records.iter().filter(|record| (start..end).contains(&record.lsn)).collect();
    let ended: Vec<&Record> = begun.iter().copied().filter(|record| record.end <= end).collect();
    let point = |record: &&Record| {
        let name = record.name.clone()?;
        Some(RestorePoint { lsn: Lsn(record.end), time: named[&name].time.expect("restore points have a time"), name })
    };
    let restore_points: Vec<RestorePoint> = ended.iter().filter_map(point).collect();
    let ends = ended.iter().filter_map(|record| record.ends);
    let times = || ends.clone().map(|(_, time)| time).chain(restore_points.iter().map(|point| point.time));
    let xids = || begun.iter().map(|record| record.tx).chain(ends.clone().map(|(xid, _)| xid)).filter(|xid| *xid >= 3);
    Summary {
        end: ended.last().map(|record| Lsn(record.end)),
        first_time: times().min(),
        last_time: times().max(),
        xids: xids().min().zip(xids().max()),
        more_restore_points: false,
        tail: begun.last().is_some_and(|record| record.end > end),
        switched: ended.last().is_some_and(|record| record.is_switch()),
        restore_points,
    }
}

/// Transactions of every kind, and what they leave behind: files, statistics, invalidations.
const TRANSACTIONS: &str = "
    CREATE TABLE many (n int);
    CREATE TABLE kept (n int PRIMARY KEY, t text);
    CREATE TABLE dropped (n int PRIMARY KEY, t text);
    CREATE TABLE dropped_later (n int PRIMARY KEY, t text);
    INSERT INTO kept SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n;
    BEGIN; INSERT INTO kept VALUES (-1, 'aborted'); CREATE TABLE never (n int); ROLLBACK;
    BEGIN; SAVEPOINT a; INSERT INTO kept VALUES (-2); SAVEPOINT b; INSERT INTO kept VALUES (-3); ROLLBACK TO b; SAVEPOINT c;
        INSERT INTO kept VALUES (-4); COMMIT;
    DROP TABLE dropped;
    BEGIN; INSERT INTO kept VALUES (-5); PREPARE TRANSACTION 'plain';
    BEGIN; CREATE TABLE made (n int PRIMARY KEY); DROP TABLE dropped_later; SAVEPOINT a; INSERT INTO kept VALUES (-6); SAVEPOINT b;
        INSERT INTO kept VALUES (-7); PREPARE TRANSACTION 'with everything';
    BEGIN; CREATE TABLE unmade (n int PRIMARY KEY, t text); SAVEPOINT a; INSERT INTO unmade VALUES (1, 'x'); PREPARE TRANSACTION 'in vain';
    COMMIT PREPARED 'plain';
    INSERT INTO kept VALUES (-8);
    COMMIT PREPARED 'with everything';
    ROLLBACK PREPARED 'in vain';
";

/// A transaction whose COMMIT, of 4 kB, begins in the last 2 kB of a segment.
fn over_the_end(size: SegmentSize) -> String {
    let bytes = size.bytes();
    format!(
        "DO $$ DECLARE room bigint; BEGIN
            FOR i IN 1..1000 LOOP
                BEGIN INSERT INTO many VALUES (i); EXCEPTION WHEN others THEN RAISE; END;
            END LOOP;
            LOOP
                room := {bytes} - (pg_current_wal_insert_lsn() - '0/0'::pg_lsn) % {bytes};
                EXIT WHEN room BETWEEN 1000 AND 2000;
                PERFORM pg_logical_emit_message(false, 'fill', repeat('x', CASE WHEN room < 1000 THEN 2000 ELSE least(room - 1990, 100000) END::int));
            END LOOP;
        END $$;"
    )
}

#[track_caller]
fn is_read_as_pg_waldump_does(version: Postgres, segment_mib: u32) {
    let size = SegmentSize::new(segment_mib << 20).unwrap();
    let settings = [("max_prepared_transactions", "10"), ("wal_keep_size", "2GB"), ("max_wal_size", "4GB"), ("checkpoint_timeout", "1h")];
    let builder =
        settings.iter().fold(Cluster::builder(version).wal_segment_size(segment_mib), |builder, (name, value)| builder.config(name, value));
    let mut cluster = builder.start();
    let mut made = Vec::new();
    let mut restore_point = |cluster: &Cluster, name: &str| {
        let quoted = name.replace('\'', "''");
        let answer = cluster.psql(&format!(
            "SELECT to_char(clock_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'); SELECT pg_create_restore_point('{quoted}');
             SELECT to_char(clock_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        ));
        let lines: Vec<&str> = answer.lines().collect();
        let (after, before) = (lines[2].parse::<Timestamp>().unwrap(), lines[0].parse::<Timestamp>().unwrap());
        made.push((name.to_owned(), lsn(lines[1]), before, after));
    };
    cluster.psql(TRANSACTIONS);
    restore_point(&cluster, "before the switch");
    cluster.psql("SELECT pg_switch_wal()");
    let known: u32 = cluster.psql("INSERT INTO kept VALUES (-9) RETURNING pg_current_xact_id()").parse().unwrap();
    restore_point(&cluster, "état, it's 63 bytes or less");
    for _ in 0..3 {
        cluster.psql(&over_the_end(size));
    }
    cluster.psql("CHECKPOINT; UPDATE kept SET t = 'page images' WHERE n % 10 = 0");
    restore_point(&cluster, &"x".repeat(63));
    cluster.psql("INSERT INTO kept VALUES (-10)");
    cluster.stop(Stop::Fast);

    let (records, segments) = dump(&cluster, size);
    let kinds = |kind: &str| records.iter().filter(|record| record.kind == kind).count();
    assert!(kinds("Transaction COMMIT") > 10 && kinds("Transaction ABORT") >= 1, "{version}");
    assert_eq!((kinds("Transaction COMMIT_PREPARED"), kinds("Transaction ABORT_PREPARED"), kinds("XLOG SWITCH")), (2, 1, 1), "{version}");

    let mut named = BTreeMap::new();
    for (name, end, before, after) in &made {
        let found = search(Wanted::RestorePoint(name.clone()), &segments, size).unwrap_or_else(|| panic!("{version}: {name} is not found"));
        assert_eq!(found.end, Lsn(*end), "{version}: {name}");
        assert!(
            (*before..=*after).contains(&found.time.expect("restore points have a time")) && !found.committed,
            "{version}: {name} {found:?}"
        );
        assert!(records.iter().any(|record| record.name.as_ref() == Some(name) && record.lsn == found.lsn.0), "{version}: {name}");
        named.insert(name.clone(), found);
    }
    assert_eq!(kinds("XLOG RESTORE_POINT"), made.len());

    let mut over = 0;
    for (segment, bytes) in &segments {
        let mut summarizer = Summarizer::new(*segment, size);
        bytes.chunks(65_536).for_each(|piece| summarizer.push(piece));
        let summary = summarizer.finish().unwrap();
        let expected = expected(*segment, size, &records, &named);
        assert_eq!(summary, expected, "{version}, {}", segment.file_name(size));
        over += usize::from(summary.tail);
    }
    assert!(segments.len() >= 4 && over > 0, "{version}: {over} records go over the end of one of {} segments", segments.len());
    let straddles =
        |record: &&Record| record.ends.is_some() && record.lsn / size.bytes() != (record.end - 1) / size.bytes() && !record.is_switch();
    assert!(records.iter().any(|record| straddles(&record)), "{version}: no commit goes over the end of a segment");

    let ends: Vec<(&Record, u32, Timestamp)> =
        records.iter().filter_map(|record| record.ends.map(|(xid, time)| (record, xid, time))).collect();
    let of = |record: &Record, time: Timestamp| {
        Some(Found { lsn: Lsn(record.lsn), end: Lsn(record.end), time: Some(time), committed: record.committed(), timeline: Timeline(1) })
    };
    assert!(ends.iter().any(|(_, xid, _)| *xid == known));
    // Each search reads everything up to what it finds; those that are plain alike are sampled.
    let odd = |record: &Record| straddles(&record) || record.kind != "Transaction COMMIT";
    for (_, (record, xid, time)) in ends.iter().enumerate().filter(|(index, (record, ..))| index % 4 == 0 || odd(record)) {
        assert_eq!(search(Wanted::TransactionId(*xid), &segments, size), of(record, *time), "{version}: {xid}");
    }
    assert_eq!(search(Wanted::TransactionId(ends.iter().map(|(_, xid, _)| xid).max().unwrap() + 1), &segments, size), None);
    for (_, _, after) in ends.iter().step_by(5) {
        let first = ends.iter().find(|(_, _, time)| time > after).and_then(|(record, _, time)| of(record, *time));
        assert_eq!(search(Wanted::FirstCommitAfter(*after), &segments, size), first, "{version}: {after}");
    }
}

#[test]
fn wal_of_15_in_small_segments() {
    is_read_as_pg_waldump_does(Postgres::V15, 1);
}

#[test]
fn wal_of_16_in_segments_of_the_usual_size() {
    is_read_as_pg_waldump_does(Postgres::V16, 16);
}

#[test]
fn wal_of_18_in_small_segments() {
    is_read_as_pg_waldump_does(Postgres::V18, 1);
}
