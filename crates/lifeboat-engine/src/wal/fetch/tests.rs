//! What is answered, and what is brought, for every state that an archive can be in.

use std::time::SystemTime;

use jiff::Timestamp;
use lifeboat_core::wal::fetch::Bounds;
use lifeboat_core::wal::file::WalPredicate;
use lifeboat_core::wal::record::Summary;
use lifeboat_core::wal::{SegmentSize, Timeline};
use tempfile::TempDir;

use super::*;
use crate::backup::Protection;
use crate::keys::{self, Identities};
use crate::repository::Repository;
use crate::signing::{KeyFileSigner, SigningKey, Trust};
use crate::store::LocalStore;
use crate::wal::WalWriter;
use crate::wal::spool::{Filled, Spool, SpoolError, check_place};

const SIZE: u32 = 1 << 20;

struct Place {
    home: TempDir,
    cluster: Cluster,
    repository: Repository,
    signer: KeyFileSigner,
    trust: Trust,
    protection: Protection,
    identity: String,
}

impl Place {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
        let trust = Trust::new([signer.public_key().clone()]);
        let (identity, recipient) = keys::generate_identity(Timestamp::UNIX_EPOCH);
        let store = LocalStore::open(&home.path().join("repository"), true).unwrap();
        let repository = Repository::init(Box::new(store), Timestamp::UNIX_EPOCH, "test").unwrap();
        let protection = Protection::Recipients { recipients: vec![recipient], host: None };
        let cluster = Cluster { system_id: SystemId(7), segment_size: SegmentSize::new(SIZE).unwrap() };
        Self { home, cluster, repository, signer, trust, protection, identity: identity.to_string() }
    }

    fn put(&self, file: WalFile, end: Option<u64>, bytes: &[u8]) {
        let writer = WalWriter::new(&self.repository, self.cluster, &self.signer, &self.trust, &self.protection, 1);
        let summary = end.map(|end| Summary { end: Some(Lsn(end)), ..Summary::default() });
        let segment_size = self.cluster.segment_size;
        let predicate = WalPredicate { summary, ..WalPredicate::new(bytes.len() as u64, segment_size) };
        writer.put_bytes(file, &predicate, bytes).unwrap();
    }

    fn put_whole(&self, timeline: u32, number: u64) {
        self.put(whole(timeline, number), None, &self.bytes(number));
    }

    /// Bytes of a segment, with a header that is right.
    fn bytes(&self, number: u64) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..SIZE).map(|at| (at / 7 + number as u32) as u8 | 1).collect();
        let start = segment(1, number).start(self.cluster.segment_size).0;
        bytes[..LONG_HEADER_BYTES].fill(0);
        bytes[..2].copy_from_slice(&0xD110u16.to_le_bytes());
        bytes[2] = 2;
        bytes[8..16].copy_from_slice(&start.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.cluster.system_id.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&SIZE.to_le_bytes());
        bytes
    }

    fn target(&self) -> PathBuf {
        self.home.path().join("RECOVERYXLOG")
    }

    fn with_reader<T>(&self, work: impl FnOnce(&WalReader<'_>) -> T) -> T {
        work(&WalReader::new(&self.repository, self.cluster, &self.trust, Identities::parse(&self.identity).unwrap()))
    }

    fn ask(&self, file: WalFile, promise: Option<&str>, allow_empty: bool) -> Result<Fetched, FetchError> {
        let promise = promise.map(|promise| promise.parse().unwrap());
        self.with_reader(|reader| Fetcher::new(reader, &Bounds::from(promise), allow_empty).fetch(file, &self.target()))
    }

    fn ask_within(&self, file: WalFile, bounds: &Bounds) -> Result<Fetched, FetchError> {
        self.with_reader(|reader| Fetcher::new(reader, bounds, false).fetch(file, &self.target()))
    }

    fn path(&self, file: WalFile) -> PathBuf {
        self.home.path().join("repository").join(file.key(self.cluster.system_id, self.cluster.segment_size).as_str())
    }

    /// What the server would read, once.
    fn got(&self) -> Vec<u8> {
        let bytes = fs::read(self.target()).unwrap();
        fs::remove_file(self.target()).unwrap();
        bytes
    }

    #[track_caller]
    fn expect_error(&self, file: WalFile, promise: Option<&str>, says: &str) {
        let error = self.ask(file, promise, false).expect_err("an error");
        let text = format!("{error:?} {error}");
        assert!(text.contains(says), "{text}");
        let left = fs::read_dir(self.home.path()).unwrap().flatten().filter(|entry| entry.path() != self.home.path().join("repository"));
        assert_eq!(left.map(|entry| entry.path()).collect::<Vec<_>>(), Vec::<PathBuf>::new());
    }
}

fn segment(timeline: u32, number: u64) -> Segment {
    Segment { timeline: Timeline(timeline), number }
}

fn whole(timeline: u32, number: u64) -> WalFile {
    WalFile::Segment(segment(timeline, number))
}

fn piece(number: u64, from: u32, to: u32) -> WalFile {
    WalFile::Piece { segment: segment(1, number), from, to }
}

#[test]
fn c081_the_same_file_can_be_asked_for_again_and_in_any_order() {
    let place = Place::new();
    for number in 3..7 {
        place.put_whole(1, number);
    }
    for number in [4, 3, 3, 6, 5, 3] {
        assert_eq!(place.ask(whole(1, number), None, false).unwrap(), Fetched::Whole);
        assert!(place.got() == place.bytes(number));
        assert_eq!(place.ask(whole(1, 7), None, false).unwrap(), Fetched::AfterEnd);
        assert_eq!(place.ask(WalFile::History(Timeline(2)), None, false).unwrap(), Fetched::AfterEnd);
    }
    assert!(!place.target().exists());
}

#[test]
fn c076_what_is_behind_the_place_where_a_timeline_was_left_is_not_handed_out() {
    let place = Place::new();
    for number in 3..7 {
        place.put_whole(1, number);
    }
    place.put(WalFile::History(Timeline(2)), None, b"1\t0/480000\tno recovery target specified\n");
    let bounds = Bounds { promise: Some("2:0/480000".parse().unwrap()), left: vec!["1:0/480000".parse().unwrap()], ..Bounds::default() };
    assert_eq!(place.ask_within(whole(1, 3), &bounds).unwrap(), Fetched::Whole);
    assert!(place.got() == place.bytes(3));
    assert_eq!(place.ask_within(whole(1, 4), &bounds).unwrap(), Fetched::Whole);
    let mut cut = place.bytes(4);
    cut[0x8_0000..].fill(0);
    assert!(place.got() == cut);
    for number in [5, 6, 7] {
        assert_eq!(place.ask_within(whole(1, number), &bounds).unwrap(), Fetched::AfterEnd, "{number}");
        assert!(!place.target().exists());
    }
    // The other timeline has nothing yet, and what it will have is its own.
    assert_eq!(place.ask_within(whole(2, 4), &bounds).unwrap(), Fetched::AfterEnd);
    // An open segment is cut as well.
    let place = Place::new();
    place.put_whole(1, 3);
    place.put(piece(4, 0, 0xA_0000), None, &place.bytes(4)[..0xA_0000]);
    let fetched = place.ask_within(whole(1, 4), &Bounds { promise: None, ..bounds }).unwrap();
    assert!(matches!(fetched, Fetched::Open { .. }), "{fetched:?}");
    assert!(place.got() == cut);
}

#[test]
fn c078_what_the_backup_brought_itself_is_taken_where_the_archive_has_less() {
    let place = Place::new();
    for number in [2, 5, 6, 9] {
        place.put_whole(1, number);
    }
    // The backup has all from within 2 to within 7.
    let bounds =
        Bounds { promise: Some("1:0/A00000".parse().unwrap()), own: Some("1:0/200028-0/780000".parse().unwrap()), ..Bounds::default() };
    for (number, fetched) in [(2, Fetched::Whole), (3, Fetched::Own), (4, Fetched::Own), (6, Fetched::Whole)] {
        assert_eq!(place.ask_within(whole(1, number), &bounds).unwrap(), fetched, "{number}");
        assert_eq!(place.target().exists(), fetched == Fetched::Whole);
        let _ = fs::remove_file(place.target());
    }
    // Behind it a hole is a hole, also in the segment in which it ends, and so it is without it.
    for number in [7, 8] {
        let error = place.ask_within(whole(1, number), &bounds).unwrap_err();
        assert!(matches!(error, FetchError::Gap { .. }), "{error}");
    }
    let enough = Bounds { promise: Some("1:0/780000".parse().unwrap()), ..bounds.clone() };
    assert_eq!(place.ask_within(whole(1, 7), &enough).unwrap(), Fetched::Own);
    place.expect_error(whole(1, 3), Some("1:0/A00000"), "Gap");
    // Damaged in the archive.
    let path = place.path(whole(1, 5));
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(place.ask_within(whole(1, 5), &bounds).unwrap(), Fetched::Own);
    assert!(!place.target().exists());
    // The last segment in pieces: what goes less far does not take its place.
    let place = Place::new();
    place.put_whole(1, 6);
    place.put(piece(7, 0, 0x7_0000), None, &place.bytes(7)[..0x7_0000]);
    let bounds = Bounds { promise: None, ..bounds };
    assert_eq!(place.ask_within(whole(1, 7), &bounds).unwrap(), Fetched::Own);
    assert!(!place.target().exists());
    place.put(piece(7, 0x7_0000, 0x8_0000), None, &place.bytes(7)[0x7_0000..0x8_0000]);
    let fetched = place.ask_within(whole(1, 7), &bounds).unwrap();
    assert!(matches!(fetched, Fetched::Open { bytes: 0x8_0000, .. }), "{fetched:?}");
}

#[test]
fn c080_only_what_is_proven_to_be_behind_the_end_is_said_to_be() {
    let place = Place::new();
    // Nothing of the cluster: another repository than the one that was meant.
    place.expect_error(whole(1, 3), None, "UnknownCluster");
    assert_eq!(place.ask(whole(1, 3), None, true).unwrap(), Fetched::AfterEnd);
    for number in [3, 4, 6] {
        place.put_whole(1, number);
    }
    place.expect_error(whole(1, 5), None, "Gap");
    place.expect_error(whole(1, 2), None, "Gap");
    assert_eq!(place.ask(whole(1, 7), None, false).unwrap(), Fetched::AfterEnd);
    assert_eq!(place.ask(whole(2, 7), None, false).unwrap(), Fetched::AfterEnd);
    // Promised.
    place.expect_error(whole(1, 7), Some("1:0/700001"), "Gap");
    assert_eq!(place.ask(whole(1, 7), Some("1:0/700000"), false).unwrap(), Fetched::AfterEnd);
    place.expect_error(WalFile::History(Timeline(2)), Some("2:0/700001"), "Gap");
    // A timeline with WAL has a history.
    place.put_whole(2, 6);
    place.expect_error(WalFile::History(Timeline(2)), None, "Gap");
    // The history says how far its parent went.
    place.put(WalFile::History(Timeline(2)), None, b"1\t0/7000F8\tno recovery target specified\n");
    assert_eq!(place.ask(WalFile::History(Timeline(2)), None, false).unwrap(), Fetched::Whole);
    assert_eq!(place.got(), b"1\t0/7000F8\tno recovery target specified\n");
    place.expect_error(whole(1, 7), None, "Gap");
    assert_eq!(place.ask(whole(1, 8), None, false).unwrap(), Fetched::AfterEnd);
    // Known to be lost.
    let gap = layout::wal_gap(SystemId(7), Timeline(1), Lsn(0x80_0000), Lsn(0x90_0000));
    let record = GapRecord {
        format: 1,
        timeline: Timeline(1),
        from: Lsn(0x80_0000),
        to: Lsn(0x90_0000),
        found: Timestamp::UNIX_EPOCH,
        by: "test".into(),
        reason: "test".into(),
    };
    place.repository.store().create(&gap, &serde_json::to_vec(&record).unwrap()).unwrap();
    place.expect_error(whole(1, 8), None, "Gap");
}

#[test]
fn c080_what_a_server_is_just_archiving_is_waited_for() {
    let place = Place::new();
    for number in [3, 5] {
        place.put_whole(1, number);
    }
    place.expect_error(whole(1, 4), None, "Gap");
    let bounds = Bounds::from(Some("1:0/400000".parse().unwrap()));
    let fetched = place.with_reader(|reader| {
        let fetcher = Fetcher::new(reader, &bounds, false).patient(Duration::from_secs(600));
        let target = place.target();
        thread::scope(|scope| {
            let fetching = scope.spawn(move || fetcher.fetch(whole(1, 4), &target).unwrap());
            thread::sleep(Duration::from_millis(100));
            place.put_whole(1, 4);
            fetching.join().unwrap()
        })
    });
    assert_eq!(fetched, Fetched::Whole);
    assert!(place.got() == place.bytes(4));
    // What was promised was there once.
    let promised = Bounds::from(Some("1:0/700000".parse().unwrap()));
    let fetched = place
        .with_reader(|reader| Fetcher::new(reader, &promised, false).patient(Duration::from_secs(600)).fetch(whole(1, 6), &place.target()));
    assert!(matches!(fetched, Err(FetchError::Gap { .. })), "{fetched:?}");
}

#[test]
fn c080_a_repository_that_goes_away_is_not_an_empty_one() {
    let place = Place::new();
    place.put_whole(1, 3);
    let (here, away) = (place.home.path().join("repository"), place.home.path().join("away"));
    fs::rename(&here, &away).unwrap();
    assert!(place.ask(whole(1, 4), None, true).unwrap_err().to_string().contains("went away"));
    fs::create_dir(&here).unwrap();
    assert!(matches!(place.ask(whole(1, 4), None, true), Err(FetchError::Vanished { .. })));
    fs::remove_dir(&here).unwrap();
    fs::rename(&away, &here).unwrap();
    assert_eq!(place.ask(whole(1, 4), None, false).unwrap(), Fetched::AfterEnd);
    // Of another segment size every name means another place.
    let key = layout::wal_cluster(SystemId(7));
    let text = r#"{"format": 1, "system_id": "7", "segment_size": 16777216, "page_magic": 53520, "created": "2026-01-01T00:00:00Z", "created_by": "x"}"#;
    place.repository.store().create(&key, text.as_bytes()).unwrap();
    place.expect_error(whole(1, 4), None, "OtherSize");
}

#[test]
fn c082_what_is_not_right_gets_no_name() {
    let place = Place::new();
    place.put_whole(1, 3);
    let path = place.path(whole(1, 3));
    let good = fs::read(&path).unwrap();
    let mut at = 0;
    while at < good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let error = place.ask(whole(1, 3), None, false).unwrap_err();
        assert!(!place.target().exists() && !matches!(error, FetchError::Gap { .. }), "byte {at}: {error}");
        at += 1 + at / 20;
    }
    for length in [0, 3, 12, 2000, good.len() / 2, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        assert!(place.ask(whole(1, 3), None, false).is_err(), "{length} bytes");
        assert!(!place.target().exists());
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(place.ask(whole(1, 3), None, false).unwrap(), Fetched::Whole);

    // Signed, and not a segment: too short, of another place, no WAL at all.
    place.put(whole(1, 4), None, &place.bytes(4)[..1000]);
    place.expect_error_with_target(whole(1, 4));
    place.put(whole(1, 5), None, &place.bytes(6));
    place.expect_error_with_target(whole(1, 5));
    place.put(whole(1, 6), None, &vec![0; SIZE as usize]);
    place.expect_error_with_target(whole(1, 6));
}

impl Place {
    #[track_caller]
    fn expect_error_with_target(&self, file: WalFile) {
        let _ = fs::remove_file(self.target());
        let error = self.ask(file, None, false).unwrap_err();
        assert!(matches!(error, FetchError::Wal(WalError::Damaged { .. } | WalError::Segment(_))), "{error:?}");
        assert!(!self.target().exists());
    }
}

#[test]
fn c082_what_killed_fetches_left_is_removed_and_what_others_write_is_not() {
    let place = Place::new();
    place.put_whole(1, 3);
    let left = place.home.path().join("RECOVERYXLOG.lifeboat-0123");
    fs::write(&left, "half").unwrap();
    let other = Landing::new(&place.target()).unwrap();
    assert!(!left.exists());
    assert_eq!(place.ask(whole(1, 3), None, false).unwrap(), Fetched::Whole);
    assert!(other.path.exists());
}

#[test]
fn c063_an_open_segment_is_put_together_from_its_pieces() {
    let place = Place::new();
    place.put_whole(1, 3);
    let bytes = place.bytes(4);
    let put = |from: u32, to: u32| place.put(piece(4, from, to), None, &bytes[from as usize..to as usize]);
    put(0, 5000);
    put(4000, 9000);
    put(4000, 300_000);
    put(300_001, 300_010);
    assert_eq!(place.ask(whole(1, 4), None, false).unwrap(), Fetched::Open { bytes: 300_000, left_out: true });
    let mut expected = bytes.clone();
    expected[300_000..].fill(0);
    assert!(place.got() == expected);
    // A promise that reaches further than the pieces.
    assert!(matches!(place.ask(whole(1, 4), Some("1:0/4493E0"), false), Ok(Fetched::Open { .. })));
    place.got();
    place.expect_error(whole(1, 4), Some("1:0/4493E1"), "Gap");

    // The `.partial` goes further; what is behind its last record is not used.
    let start = segment(1, 4).start(place.cluster.segment_size).0;
    place.put(WalFile::Partial(segment(1, 4)), Some(start + 400_000), &bytes);
    assert_eq!(place.ask(whole(1, 4), None, false).unwrap(), Fetched::Open { bytes: 400_000, left_out: false });
    let mut expected = bytes.clone();
    expected[400_000..].fill(0);
    assert!(place.got() == expected);
    // Pieces that go further win again.
    put(300_000, 500_000);
    assert_eq!(place.ask(whole(1, 4), None, false).unwrap(), Fetched::Open { bytes: 500_000, left_out: false });
    place.got();
    // A damaged piece is no shorter prefix.
    let path = place.path(piece(4, 300_000, 500_000));
    let good = fs::read(&path).unwrap();
    let mut damaged = good.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fs::write(&path, damaged).unwrap();
    place.expect_error(whole(1, 4), None, "Damaged");
    fs::write(&path, good).unwrap();

    // Something of the next segment: then bytes are missing in the middle.
    place.put(piece(5, 0, 100), None, &place.bytes(5)[..100]);
    place.expect_error(whole(1, 4), None, "Gap");
    // The whole object always wins.
    place.put_whole(1, 4);
    assert_eq!(place.ask(whole(1, 4), None, false).unwrap(), Fetched::Whole);
    assert!(place.got() == bytes);
}

#[test]
fn pieces_that_differ_where_they_overlap_are_not_joined() {
    let place = Place::new();
    let mut bytes = place.bytes(4);
    place.put(piece(4, 0, 5000), None, &bytes[..5000]);
    bytes[4500] ^= 1;
    place.put(piece(4, 4000, 9000), None, &bytes[4000..9000]);
    place.expect_error(whole(1, 4), None, "Differs");
    // Pieces behind a hole alone are nothing to begin with, and proof that there was more.
    let place = Place::new();
    place.put(piece(4, 4000, 9000), None, &bytes[4000..9000]);
    place.expect_error(whole(1, 4), None, "Gap");
    // Signed for another length.
    let place = Place::new();
    place.put(piece(4, 0, 9000), None, &bytes[..100]);
    place.expect_error(whole(1, 4), None, "Damaged");
}

fn spool_of(place: &Place, ahead: u64) -> Spool {
    Spool::open(&place.home.path().join("spool"), place.repository.descriptor().repository, place.cluster, ahead).unwrap()
}

fn ready(spool: &Spool) -> Vec<String> {
    let names = fs::read_dir(spool.directory()).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != "lock").map(|name| name[22..name.len().min(30)].to_owned()).collect();
    names.sort();
    names
        .iter()
        .map(|name| {
            name.split_once('.')
                .map_or(name.clone(), |(number, rest)| format!("{number}{}", if rest.starts_with("part") { " part" } else { "" }))
        })
        .collect()
}

#[test]
fn c081_the_spool_gives_what_follows_once_and_only_that() {
    let place = Place::new();
    for number in 3..12 {
        place.put_whole(1, number);
    }
    let spool = spool_of(&place, 4);
    let fill = |asked| place.with_reader(|reader| spool.fill(reader, asked, 2).unwrap());
    assert!(spool.wants_more(segment(1, 3)).unwrap());
    assert!(!spool.take(segment(1, 3), &place.target()).unwrap());
    assert!(matches!(fill(segment(1, 3)), Filled::Segments(4)));
    assert_eq!(ready(&spool), ["04", "05", "06", "07"]);
    assert!(!spool.wants_more(segment(1, 3)).unwrap());
    assert!(!spool.wants_more(segment(1, 5)).unwrap() && spool.wants_more(segment(1, 6)).unwrap());
    for number in [5, 4] {
        assert!(spool.take(segment(1, number), &place.target()).unwrap());
        assert!(place.got() == place.bytes(number));
        assert!(!spool.take(segment(1, number), &place.target()).unwrap(), "given away");
    }
    // What was passed over goes, what is there stays, and the archive's end is not remembered.
    assert!(matches!(fill(segment(1, 6)), Filled::Segments(3)));
    assert_eq!(ready(&spool), ["07", "08", "09", "0A"]);
    assert!(matches!(fill(segment(1, 9)), Filled::Segments(1)));
    assert_eq!(ready(&spool), ["0A", "0B"]);
    place.put_whole(1, 12);
    assert!(matches!(fill(segment(1, 9)), Filled::Segments(1)));
    assert!(matches!(fill(segment(2, 9)), Filled::Segments(0)));
    assert_eq!(ready(&spool), Vec::<String>::new());
}

#[test]
fn c082_nothing_half_or_changed_comes_out_of_the_spool() {
    let place = Place::new();
    for number in 3..6 {
        place.put_whole(1, number);
    }
    let spool = spool_of(&place, 2);
    let fill = || place.with_reader(|reader| spool.fill(reader, segment(1, 3), 1).unwrap());
    let path = |number: &str| {
        let entries = fs::read_dir(spool.directory()).unwrap().flatten().map(|entry| entry.path());
        entries
            .into_iter()
            .find(|path| path.file_name().unwrap().to_str().unwrap().get(..24).is_some_and(|name| name.ends_with(number)))
            .unwrap()
    };
    let take = |number| spool.take(segment(1, number), &place.target()).unwrap();
    fill();
    // As after a crash of the host: the length is right, the bytes are not. The machine was started anew, or nobody knows.
    for boot in ["-00000000", ""] {
        fs::write(path("04"), vec![0; SIZE as usize]).unwrap();
        let name = path("04").to_str().unwrap().to_owned();
        fs::rename(&name, format!("{}{boot}", name.split_once('-').expect("a name with a boot").0)).unwrap();
        assert!(!take(4) && !place.target().exists(), "{boot}");
        fill();
    }
    // A disk gave back other bytes later on, or the clock was set back.
    for written in [SystemTime::now() - Duration::from_secs(61), SystemTime::now() + Duration::from_secs(61)] {
        fs::write(path("04"), vec![0; SIZE as usize]).unwrap();
        File::options().write(true).open(path("04")).unwrap().set_modified(written).unwrap();
        assert!(!take(4) && !place.target().exists());
        fill();
    }
    // The same without damage.
    File::options().write(true).open(path("04")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert!(take(4) && place.got() == place.bytes(4));
    fill();
    fs::write(path("04"), "half").unwrap();
    assert!(!take(4));
    // Others may write into it; it is a link to elsewhere.
    fs::set_permissions(path("05"), fs::Permissions::from_mode(0o666)).unwrap();
    assert!(!take(5));
    fill();
    let (real, aside) = (path("05"), place.home.path().join("aside"));
    fs::rename(&real, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &real).unwrap();
    assert!(!take(5));
    fs::remove_file(&real).unwrap();
    // What a killed prefetcher left is not waited for, and goes; so does what another version of this program left.
    let part = spool.directory().join("000000010000000000000005.part-x");
    let other = spool.directory().join(format!("000000010000000000000005.{}", "ab".repeat(32)));
    fs::write(&part, "half").unwrap();
    fs::write(&other, place.bytes(5)).unwrap();
    assert!(!take(5));
    fill();
    assert!(!part.exists() && !other.exists() && take(5));
    assert!(place.got() == place.bytes(5));

    // One that hangs is not waited for long, and no second one is started.
    let lock = File::options().write(true).open(spool.directory().join("lock")).unwrap();
    lock.lock().unwrap();
    fs::write(&part, "half").unwrap();
    assert!(!take(5));
    assert!(!spool.wants_more(segment(1, 4)).unwrap());
    assert!(matches!(fill(), Filled::Busy));
    drop(lock);
    assert!(spool.wants_more(segment(1, 4)).unwrap());
    // Damage is found before anything gets a name.
    let object = place.path(whole(1, 5));
    let mut bytes = fs::read(&object).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&object, bytes).unwrap();
    let error = place.with_reader(|reader| spool.fill(reader, segment(1, 3), 1)).unwrap_err();
    assert!(matches!(error, SpoolError::Target(FetchError::Wal(WalError::Damaged { .. }))), "{error:?}");
    assert!(!ready(&spool).iter().any(|name| name.starts_with("05")), "{:?}", ready(&spool));
}

#[test]
fn files_are_for_those_who_may_read_the_directory() {
    let place = Place::new();
    place.put_whole(1, 3);
    place.put_whole(1, 4);
    let spool = spool_of(&place, 2);
    for (directory, expected) in [(0o700, 0o600), (0o750, 0o640)] {
        fs::set_permissions(place.home.path(), Permissions::from_mode(directory)).unwrap();
        place.ask(whole(1, 3), None, false).unwrap();
        assert_eq!(fs::metadata(place.target()).unwrap().mode() & 0o777, expected);
        place.with_reader(|reader| spool.fill(reader, segment(1, 3), 1).unwrap());
        assert!(spool.take(segment(1, 4), &place.target()).unwrap());
        assert_eq!(fs::metadata(place.target()).unwrap().mode() & 0o777, expected);
    }
}

#[test]
fn c083_a_spool_in_a_data_directory_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (data, wal) = (home.path().join("data"), home.path().join("wal"));
    fs::create_dir_all(data.join("global")).unwrap();
    fs::create_dir_all(&wal).unwrap();
    fs::write(data.join("global/pg_control"), "").unwrap();
    std::os::unix::fs::symlink(&wal, data.join("pg_wal")).unwrap();
    std::os::unix::fs::symlink(&data, home.path().join("link")).unwrap();
    for inside in [data.clone(), data.join("spool"), data.join("no/such"), wal.join("spool"), home.path().join("link/spool")] {
        assert!(matches!(check_place(&inside, &data), Err(SpoolError::InDataDirectory { .. })), "{}", inside.display());
    }
    // Somebody else's as well.
    assert!(check_place(&data.join("spool"), home.path()).is_err());
    check_place(&home.path().join("spool"), &data).unwrap();
}

#[test]
fn a_spool_that_others_may_write_into_is_not_used() {
    let place = Place::new();
    let directory = spool_of(&place, 2).directory().to_owned();
    for (part, mode) in
        [(directory.clone(), 0o710), (directory.parent().unwrap().to_owned(), 0o770), (place.home.path().join("spool"), 0o777)]
    {
        let old = fs::metadata(&part).unwrap().permissions();
        fs::set_permissions(&part, fs::Permissions::from_mode(mode)).unwrap();
        let root = place.home.path().join("spool");
        let opened = Spool::open(&root, place.repository.descriptor().repository, place.cluster, 2);
        assert!(matches!(opened, Err(SpoolError::NotOurs(_))), "{}", part.display());
        fs::set_permissions(&part, old).unwrap();
    }
}
