//! Every decoder that takes bytes from outside, as a function that a fuzzer calls.
//!
//! None of them may panic, hang, or take memory that the input does not pay for, whatever the bytes are; where something was read, what is
//! written from it must be read as the same again. `fuzz_targets/` gives each to libFuzzer; `crates/lifeboat-engine/tests/corpus.rs` runs
//! them over `corpus/` in the ordinary tests. No I/O here, and nothing random: a finding must come again.

use lifeboat_core::artifacts::Found;
use lifeboat_core::attestation::{Expected, Statement};
use lifeboat_core::hold::{Retention, Visit, Visited};
use lifeboat_core::postgres::control_file::{ControlFile, invalidate_checkpoint};
use lifeboat_core::postgres::data_directory::{RelationFile, disposition, must_exist, unlogged};
use lifeboat_core::postgres::{backup_manifest, page};
use lifeboat_core::repository::artifact::{Head, Line, Record, created};
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout::{self, ArtifactName, Key};
use lifeboat_core::repository::lease::{Lease, standing};
use lifeboat_core::repository::manifest::Manifest;
use lifeboat_core::repository::retention::{Condemned, Mark, Pin, PinEnd, Word, standing as decide_retention};
use lifeboat_core::repository::{Descriptor, Id, Sha256, extent, file_table, pack, sealed, to_json};
use lifeboat_core::restore::{auto_conf, tablespace_map};
use lifeboat_core::trust::{Identity, SubjectRule, Terms};
use lifeboat_core::truth::Truth;
use lifeboat_core::wal::file::{GapRecord, WalCluster, WalFile, WalPredicate};
use lifeboat_core::wal::history::History;
use lifeboat_core::wal::record::{Search, Summarizer, Summary, Wanted};
use lifeboat_core::wal::{LONG_HEADER_BYTES, Lsn, Segment, SegmentSize, SystemId, Timeline, check_segment_header};
use lifeboat_engine::keys::Identities;
use lifeboat_engine::seal::{Decompressor, ObjectOpener, Sealing, check_object, open_frame, open_object};
use lifeboat_engine::signing::{PublicKey, Roots, SigningKey, Trust};

/// A target and its name, which is that of its corpus.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: [Target; 34] = [
    ("descriptor", descriptor),
    ("manifest", manifest),
    ("file_table", file_table_rows),
    ("sealed_start", sealed_start),
    ("sealed_object", sealed_object),
    ("sealed_frames", sealed_frames),
    ("pack_header", pack_header),
    ("pack_frame", pack_frame),
    ("artifact_record", artifact_record),
    ("artifact_line", artifact_line),
    ("artifact_head", artifact_head),
    ("artifact_name", artifact_name),
    ("artifact_version", artifact_version),
    ("lease", lease),
    ("retention", retention),
    ("backup_id", backup_id),
    ("object_key", object_key),
    ("control_file", control_file),
    ("page", page_check),
    ("wal_header", wal_header),
    ("wal_document", wal_document),
    ("wal_history", wal_history),
    ("wal_name", wal_name),
    ("wal_segment", wal_segment),
    ("wal_records", wal_records),
    ("statement", statement),
    ("bundle", bundle),
    ("identity", identity),
    ("public_key", public_key),
    ("signing_key", signing_key),
    ("backup_manifest", postgres_manifest),
    ("data_directory", data_directory),
    ("auto_conf", recovery_settings),
    ("truth", truth),
];

/// Runs the target of that name.
pub(crate) fn run(name: &str, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target has its name in the list");
    target(bytes);
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn descriptor(bytes: &[u8]) {
    if let Ok(found) = Descriptor::decode(bytes) {
        assert_eq!(Descriptor::decode(&to_json(&found)), Ok(found));
    }
}

fn manifest(bytes: &[u8]) {
    if let Ok(found) = Manifest::decode(bytes) {
        assert_eq!(Manifest::decode(&to_json(&found)), Ok(found));
    }
}

fn truth(bytes: &[u8]) {
    if let Ok(found) = Truth::decode(bytes) {
        assert_eq!(Truth::decode(&found.encode()), Ok(found));
    }
}

fn file_table_rows(bytes: &[u8]) {
    let Ok(rows) = file_table::decode(bytes, 3) else { return };
    let mut again = Vec::new();
    for row in &rows {
        for (index, found) in row.extents.iter().enumerate() {
            let bytes = extent::extent_bytes(row.meta.size, index as u64);
            for piece in found.pieces(bytes).expect("decoded rows have extents that fit").into_iter().flatten() {
                assert!(piece.to as u64 + piece.bytes as u64 <= bytes);
            }
        }
        // Meta written anew may be longer than what was read; a writer has its own limit.
        if bytes.len() < 20_000 {
            file_table::encode_row(row, &mut again);
        }
    }
    if bytes.len() < 20_000 {
        assert_eq!(file_table::decode(&again, 3), Ok(rows));
    }
}

/// The key that objects of the corpus stand under.
const OBJECT: &str = "a-backup-20240315T120000Z/files/0";

fn sealed_start(bytes: &[u8]) {
    if let Ok(parts) = sealed::decode_start(bytes, OBJECT) {
        let start = sealed::encode_start(&parts.header);
        assert_eq!(sealed::decode_start(&start, OBJECT).map(|parts| parts.header), Ok(parts.header));
    }
}

fn sealed_object(bytes: &[u8]) {
    let opened = open_object(bytes, OBJECT, &Sealing::Plain, 1 << 20);
    if opened.is_ok() {
        assert!(check_object(bytes, OBJECT).is_ok(), "what opens has a trailer that fits");
    }
    let _ = ObjectOpener::new(bytes, OBJECT).map(|opener| opener.header().clone());
}

/// The first 16 bytes of BLAKE3, which stand where a tag would.
fn plain_tag(associated: &[u8], plain: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(associated).update(plain);
    *hasher.finalize().as_bytes().first_chunk().expect("BLAKE3 has 32 bytes")
}

/// As [`sealed_object`] behind checks that no fuzzer gets through: the input is frames, each with two bytes of length before it.
fn sealed_frames(bytes: &[u8]) {
    let header = br#"{"object":"a-backup-20240315T120000Z/files/0","id":"00000000000000000000000000000000","suite":"none"}"#;
    let mut object = sealed::MAGIC.to_vec();
    object.extend_from_slice(&(header.len() as u32).to_le_bytes());
    object.extend_from_slice(header);
    let hash = *blake3::hash(header).as_bytes();
    let mut rest = bytes;
    let mut index = 0;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (plain, tail) = tail.split_at(usize::from(u16::from_le_bytes(*length)).min(tail.len()));
        object.extend_from_slice(&(plain.len() as u32 + 16).to_le_bytes());
        object.extend_from_slice(plain);
        object.extend_from_slice(&plain_tag(&sealed::associated_data(&hash, index), plain));
        (rest, index) = (tail, index + 1);
    }
    let trailer = *blake3::hash(&object).as_bytes();
    object.extend_from_slice(&trailer);
    if let Ok(plain) = open_object(&object, OBJECT, &Sealing::Plain, 1 << 20) {
        assert!(plain.len() <= 1 << 20 && index > 0);
    }
}

fn pack_header(bytes: &[u8]) {
    if let Ok((id, suite)) = pack::decode_header(bytes) {
        assert_eq!(pack::encode_header(id, suite), bytes[..pack::HEADER_BYTES]);
    }
}

/// Two bytes of what the table expects, in pages of 8, then the plain form.
fn pack_frame(bytes: &[u8]) {
    let Some((expected, plain)) = bytes.split_first_chunk::<2>() else { return };
    let expected = usize::from(u16::from_le_bytes(*expected)) * 8;
    let (id, mut out) = (Id([7; 16]), Vec::new());
    let mut frame = plain.to_vec();
    frame.extend_from_slice(&plain_tag(&pack::associated_data(id, 32), plain));
    let mut decompressor = Decompressor::new().expect("there is memory");
    if open_frame(id, &Sealing::Plain.pack(id), &mut decompressor, 32, &mut frame, expected, &mut out).is_ok() {
        assert_eq!(out.len(), expected);
    }
    // And as it is: the tag does not fit, however long it is.
    let mut raw = bytes.to_vec();
    let _ = open_frame(id, &Sealing::Plain.pack(id), &mut decompressor, 32, &mut raw, expected, &mut out);
}

fn artifact_record(bytes: &[u8]) {
    if let Ok(found) = Record::decode(bytes) {
        let again = Record::decode(&to_json(&found)).expect("what was read is written as what can be read");
        assert_eq!((again.name, again.version, again.sha256), (found.name, found.version, found.sha256));
    }
}

fn artifact_line(bytes: &[u8]) {
    if let Ok(found) = serde_json::from_slice::<Line>(bytes) {
        let again = serde_json::to_vec(&found).expect("a line has text keys only");
        assert_eq!(serde_json::from_slice::<Line>(&again).expect("written as it is read"), found);
    }
}

fn artifact_head(bytes: &[u8]) {
    if let Ok(found) = Head::decode(bytes) {
        assert_eq!(Head::decode(&to_json(&found)), Ok(found.clone()));
        let _ = lifeboat_core::repository::artifact::runs_to_merge(1, &found.runs);
    }
}

fn artifact_name(bytes: &[u8]) {
    let Some(name) = text(bytes).and_then(|text| text.parse::<ArtifactName>().ok()) else { return };
    let key = layout::artifact_record(&name, "v");
    assert!(key.as_str().len() <= 800, "{key}");
    assert_eq!(Key::parse(key.as_str()), Ok(key));
    let modified = jiff::Timestamp::UNIX_EPOCH;
    let found = Found { name, bytes: 0, mode: 0, modified, status_changed: modified };
    assert!(!found.name.as_str().is_empty());
}

fn artifact_version(bytes: &[u8]) {
    let _ = text(bytes).and_then(created);
}

fn lease(bytes: &[u8]) {
    if let Ok(found) = serde_json::from_slice::<Lease>(bytes) {
        let _ = standing(Some(found.clone()), jiff::Timestamp::UNIX_EPOCH, |_| false);
        let _ = standing(Some(found), jiff::Timestamp::MAX, |_| true);
    }
    if let Ok(found) = serde_json::from_slice::<Visited>(bytes) {
        let promised = Retention { mode: found.mode, span: jiff::SignedDuration::from_secs(1) };
        let _ = Visit::due(found.counts_for(promised), jiff::Timestamp::MAX, promised.span);
    }
}

/// Marks, pins, their ends, and lists of what is condemned: each is read as all of them.
fn retention(bytes: &[u8]) {
    if let Ok(found) = Mark::decode(bytes) {
        assert_eq!(Mark::decode(&to_json(&found)), Ok(found.clone()));
        let (number, id) = (found.number, found.backup.clone());
        let decided = decide_retention(&id, None, Some((number, Word::Signed(found))), Vec::new(), jiff::Timestamp::UNIX_EPOCH);
        assert!(decided.next_mark > 0);
    }
    if let Ok(found) = Pin::decode(bytes) {
        assert_eq!(Pin::decode(&to_json(&found)), Ok(found.clone()));
        assert!(found.predicate().get("bundle").is_none());
    }
    if let Ok(found) = PinEnd::decode(bytes) {
        assert_eq!(PinEnd::decode(&to_json(&found)), Ok(found));
    }
    if let Ok(found) = Condemned::decode(bytes) {
        assert!(found.blobs.iter().all(|digest| found.has_blob(*digest)) && found.runs.iter().all(|digest| found.has_run(*digest)));
        assert_eq!(Condemned::decode(&to_json(&found)), Ok(found));
    }
}

fn backup_id(bytes: &[u8]) {
    let Some(id) = text(bytes).and_then(|text| text.parse::<BackupId>().ok()) else { return };
    assert_eq!(Some(id.to_string().as_str()), text(bytes), "one spelling");
    let name = id.name().parse().expect("an id has a name");
    let next = BackupId::next(&name, jiff::Timestamp::UNIX_EPOCH, [&id]);
    let _ = next.to_string().parse::<BackupId>();
    assert_eq!(layout::backup_of_manifest(&layout::manifest(&id)), Some(id));
}

fn object_key(bytes: &[u8]) {
    if let Some(key) = text(bytes).and_then(|text| Key::parse(text).ok()) {
        assert!(!key.as_str().starts_with('/') && key.as_str().split('/').all(|segment| segment != ".."));
        let _ = (layout::number_of(&key), layout::backup_of_manifest(&key));
    }
}

fn control_file(bytes: &[u8]) {
    let decoded = ControlFile::decode(bytes);
    let changed = invalidate_checkpoint(bytes);
    assert_eq!(decoded.is_ok(), changed.is_ok());
    if let (Ok(before), Ok(changed)) = (decoded, changed) {
        let after = ControlFile::decode(&changed).expect("its CRC is written anew");
        assert_eq!((after.checkpoint, after.redo, after.system_id), (Lsn(0xDEAD), before.redo, before.system_id));
    }
}

fn page_check(bytes: &[u8]) {
    let mut page = [0; page::PAGE_BYTES];
    let length = bytes.len().min(page.len());
    page[..length].copy_from_slice(&bytes[..length]);
    let _ = (page::check(&page, 0), page::check(&page, u32::MAX), page::lsn(&page), page::check_tail(length));
}

fn wal_header(bytes: &[u8]) {
    let mut header = [0; LONG_HEADER_BYTES];
    let length = bytes.len().min(header.len());
    header[..length].copy_from_slice(&bytes[..length]);
    let segment = Segment::containing(Timeline(1), Lsn(0x200_0000), SegmentSize::DEFAULT);
    let _ = check_segment_header(&header, segment, SegmentSize::DEFAULT, SystemId(7));
}

fn wal_name(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    for size in [1 << 20, 16 << 20, 1 << 30].map(|bytes| SegmentSize::new(bytes).expect("powers of two")) {
        if let Ok(segment) = Segment::from_file_name(text, size) {
            assert_eq!(segment.file_name(size), text);
            let _ = segment.start(size);
        }
    }
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
        let _ = Segment::ending_at(Timeline(1), lsn, SegmentSize::DEFAULT).file_name(SegmentSize::DEFAULT);
    }
    let _ = text.parse::<SystemId>();
    if let Ok(file) = WalFile::from_file_name(text, SegmentSize::DEFAULT) {
        assert_eq!(file.file_name(SegmentSize::DEFAULT), text);
    }
}

fn wal_history(bytes: &[u8]) {
    if let Ok(history) = History::parse(Timeline(3), bytes) {
        assert!(history.entries.windows(2).all(|pair| pair[0].timeline < pair[1].timeline), "timelines only grow");
    }
}

/// What is signed about a file, what describes a cluster, and what says that WAL is lost.
fn wal_document(bytes: &[u8]) {
    if let Ok(predicate) = serde_json::from_slice::<WalPredicate>(bytes) {
        let again = serde_json::to_vec(&predicate).expect("text keys");
        assert_eq!(serde_json::from_slice::<WalPredicate>(&again).expect("as written"), predicate);
    }
    let _ = serde_json::from_slice::<WalCluster>(bytes);
    let _ = serde_json::from_slice::<GapRecord>(bytes);
}

/// The same summary whatever the cut, and a search that sees what the summary does.
fn summarized(bytes: &[u8], segment: Segment, size: SegmentSize) -> Option<Summary> {
    let mut whole = Summarizer::new(segment, size);
    whole.push(bytes);
    let found = whole.finish();
    for cut in [1, 7, 8191] {
        let mut pieces = Summarizer::new(segment, size);
        bytes.chunks(cut).for_each(|piece| pieces.push(piece));
        assert_eq!(pieces.finish(), found, "cut into pieces of {cut}");
    }
    let found = found.ok()?;
    let json = serde_json::to_string(&found).expect("a summary is plain data");
    assert_eq!(serde_json::from_str::<Summary>(&json).expect("read as it is written"), found);
    for point in &found.restore_points {
        let mut search = Search::new(Wanted::RestorePoint(point.name.clone()), size);
        search.begin(segment);
        // Not what was found first where names occur twice, nor anything where the name is not text.
        let first = search.push(bytes).expect("its summary was made").map(|first| first.end);
        assert!(first.is_some_and(|first| first <= point.lsn) || point.name.contains('\u{fffd}'));
    }
    Some(found)
}

/// A segment, which says by itself which one it is; a search goes on behind it.
fn wal_segment(bytes: &[u8]) {
    let number = |at: usize, length: usize| {
        let field = bytes.get(at..at + length).unwrap_or_default();
        field.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let size = u32::try_from(number(32, 4)).ok().and_then(|bytes| SegmentSize::new(bytes).ok());
    let size = size.unwrap_or_else(|| SegmentSize::new(1 << 20).expect("a power of two"));
    let segment = Segment::containing(Timeline(1), Lsn(number(8, 8)), size);
    let found = summarized(bytes, segment, size);
    for wanted in [Wanted::TransactionId(800), Wanted::FirstCommitAfter(jiff::Timestamp::MIN)] {
        let mut search = Search::new(wanted, size);
        search.begin(segment);
        assert_eq!(search.push(bytes).is_ok(), found.is_some() || bytes.len() < LONG_HEADER_BYTES);
        // Whatever the first one ended in, the second is not what comes next.
        search.begin(segment.next());
        let _ = search.push(bytes).map_err(|error| error.to_string());
    }
}

/// As [`wal_segment`] behind checks that no fuzzer gets through: the input is records, each a transaction id, `xl_info`, a resource manager,
/// and two bytes of length before what follows a record's header. The first byte chooses the version.
fn wal_records(bytes: &[u8]) {
    const START: u64 = 5 << 20;
    let Some((version, mut rest)) = bytes.split_first() else { return };
    let magic = [0xD106_u16, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118][usize::from(*version) % 6];
    let mut wal: Vec<u8> = Vec::new();
    let page = |wal: &mut Vec<u8>, left: usize| {
        let info = u16::from(left > 0) | u16::from(wal.is_empty()) << 1;
        let address = START + wal.len() as u64;
        let is_first = wal.is_empty();
        for field in
            [&magic.to_le_bytes()[..], &info.to_le_bytes(), &[1, 0, 0, 0], &address.to_le_bytes(), &(left as u32).to_le_bytes(), &[0; 4]]
        {
            wal.extend_from_slice(field);
        }
        if is_first {
            wal.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 32, 0, 0]);
        }
    };
    let mut before = 0_u64;
    let mut end = None;
    page(&mut wal, 0);
    while let Some((header, tail)) = rest.split_first_chunk::<8>() {
        let (body, tail) = tail.split_at(usize::from(u16::from_le_bytes([header[6], header[7]])).min(tail.len()));
        rest = tail;
        if wal.len() + body.len() > 900_000 {
            break;
        }
        let mut record = (24 + body.len() as u32).to_le_bytes().to_vec();
        record.extend_from_slice(&header[..4]);
        record.extend_from_slice(&before.to_le_bytes());
        record.extend_from_slice(&[header[4], header[5], 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend_from_slice(&crc.to_le_bytes());
        record.extend_from_slice(body);
        if wal.len().is_multiple_of(8192) {
            page(&mut wal, 0);
        }
        before = START + wal.len() as u64;
        let mut written = 0;
        while written < record.len() {
            if wal.len().is_multiple_of(8192) {
                page(&mut wal, record.len() - written);
            }
            let room = (8192 - wal.len() % 8192).min(record.len() - written);
            wal.extend_from_slice(&record[written..written + room]);
            written += room;
        }
        wal.resize(wal.len().next_multiple_of(8), 0);
        end = Some(Lsn(START + wal.len() as u64));
        // A switch: nothing is read behind it.
        if header[5] == 0 && header[4] & 0xF0 == 0x40 {
            end = Some(Lsn(START + (1 << 20)));
            break;
        }
    }
    let segment = Segment { timeline: Timeline(1), number: 5 };
    let found = summarized(&wal, segment, SegmentSize::new(1 << 20).expect("a power of two")).expect("it begins as it should");
    assert_eq!((found.end, found.tail), (end, false), "every record was whole");
}

fn statement(bytes: &[u8]) {
    if let Ok(found) = Statement::parse(bytes) {
        let _ = found.check(&Expected::backup("a", [0; 32]));
        let _ = found.check(&Expected::artifact("a", "v", [0; 32])).map_err(|mismatch| mismatch.to_string());
        assert_eq!(Statement::parse(&found.to_bytes()), Ok(found));
    }
}

const TRUSTED: &str = include_str!("../testdata/repository-v1/keys/signing.pub");

/// Whom the target `bundle` trusts: a key, and everybody in an instance of Sigstore, so that timestamps and certificates are taken apart as well.
pub(crate) fn trust_of_bundles() -> Trust {
    let roots = Roots::from_json(include_str!("trusted_root.json")).expect("a trusted root");
    let everybody = Identity {
        issuer: "https://accounts.example.org".to_owned(),
        subject: SubjectRule::Pattern("**".to_owned()),
        terms: Terms::default(),
    };
    Trust::from_pems([TRUSTED]).expect("a public key").with_roots(roots).with_identity(everybody)
}

/// Nobody signed this, so a fuzzer that gets through has found a forgery.
fn bundle(bytes: &[u8]) {
    let never_signed = Expected::backup("golden-backup-20000101T000000Z", [0; 32]);
    let verified = trust_of_bundles().verify(bytes, &never_signed);
    assert!(verified.map_err(|error| error.to_string()).is_err());
}

fn identity(bytes: &[u8]) {
    if let Some(found) = text(bytes).and_then(|text| Identities::parse(text).ok()) {
        assert!(!found.is_empty() && found.recipients().iter().all(|recipient| recipient.to_string().starts_with("age1")));
        let _ = found.unwrap(Id([0; 16]), text(bytes).unwrap_or_default());
    }
    let known = Identities::parse(include_str!("../testdata/repository-v1/keys/identity.txt")).expect("an identity");
    let _ = text(bytes).map(|wrapped| known.unwrap(Id([0; 16]), wrapped).map(|key| key.id));
}

fn public_key(bytes: &[u8]) {
    if let Some(key) = text(bytes).and_then(|text| PublicKey::from_pem(text).ok()) {
        let again = PublicKey::from_pem(&key.to_pem()).expect("written as it is read");
        assert_eq!(again.hint(), key.hint());
    }
}

/// Opening takes as much work as the file asks for, up to a limit: the longest that an input may take.
fn signing_key(bytes: &[u8]) {
    if let Some(text) = text(bytes) {
        let _ = SigningKey::open(text, b"wrong").map_err(|error| error.to_string());
        let _ = SigningKey::import(text).map_err(|error| error.to_string());
    }
}

fn postgres_manifest(bytes: &[u8]) {
    let _ = backup_manifest::checksum_holds(bytes);
    if let Ok(changed) = backup_manifest::with_file(bytes, "global/pg_control", b"other") {
        assert!(backup_manifest::checksum_holds(&changed));
        // Of what is no JSON, no line is promised to be found again: a manifest is signed, and PostgreSQL writes it.
        if serde_json::from_slice::<serde_json::Value>(bytes).is_err() {
            return;
        }
        assert_eq!(backup_manifest::with_file(&changed, "global/pg_control", b"other"), Ok(changed));
    }
}

fn data_directory(bytes: &[u8]) {
    let Some(path) = text(bytes) else { return };
    let _ = (disposition(path, true, "PG_15_1"), disposition(path, false, "PG_15_1"), must_exist(path), unlogged(path.split('\n')));
    if let Some(file) = RelationFile::parse(path) {
        let _ = file.first_block(131_072);
    }
    assert!(!file_table::is_safe_path(&format!("../{path}")));
}

fn recovery_settings(bytes: &[u8]) {
    let Some(existing) = text(bytes) else { return };
    let changed = auto_conf(existing, &[("archive_mode".to_owned(), "off".to_owned())], "restored");
    assert!(changed.ends_with("archive_mode = 'off'\n"));
    let place = lifeboat_core::restore::PlannedTablespace { oid: 1, name: None, from: String::new(), to: existing.to_owned() };
    // A relative place is one in the data directory, which needs no link.
    let map = tablespace_map(&[place]);
    assert!(if existing.starts_with('/') { map.starts_with(b"1 /") } else { map.is_empty() });
    let _ = existing.parse::<Sha256>();
}
