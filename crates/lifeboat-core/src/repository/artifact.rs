//! Artifacts: records, catalog runs, heads (format 8).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FORMAT_VERSION, FormatError, Sha256, layout::ArtifactName};

/// How an artifact came into the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Named by a person or a build.
    Put,
    /// Found in a directory; gone from the set when it is gone from there.
    Sync,
}

/// One version of one artifact, with its signature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The format version.
    pub format: u32,
    /// What the orchestrator calls it.
    pub name: ArtifactName,
    /// Sorts by time.
    pub version: String,
    /// Digest of its bytes.
    pub sha256: Sha256,
    /// How many bytes.
    pub bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Time of last change of the file.
    pub modified: Timestamp,
    /// When it was stored.
    pub created: Timestamp,
    /// How it came.
    pub origin: Origin,
    /// The Sigstore bundle over name and digest.
    pub bundle: serde_json::Value,
}

impl Record {
    /// Reads a record. It is to be believed only after its bundle was verified.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "artifact record";
        let record: Self = serde_json::from_slice(bytes).map_err(|e| FormatError::malformed(what, e.to_string()))?;
        if record.format != FORMAT_VERSION {
            return Err(FormatError::TooNew { what, found: record.format });
        }
        if !is_version(&record.version) {
            return Err(FormatError::malformed(what, "the version cannot be part of a key"));
        }
        Ok(record)
    }
}

/// The version of an artifact stored at `now`: sorts by time, differs with the content.
pub fn version(now: Timestamp, digest: Sha256) -> String {
    let at = now.to_zoned(jiff::tz::TimeZone::UTC);
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}.{:03}Z-{}",
        at.year(),
        at.month(),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond(),
        &digest.to_string()[..12]
    )
}

/// When the version was stored, to the millisecond (cut, not rounded), if it is one that
/// [`version`] made.
pub fn created(version: &str) -> Option<Timestamp> {
    let (at, _) = version.split_once('-')?;
    let (date, time) = at.strip_suffix('Z')?.split_once('T')?;
    if date.len() != 8 || !at.is_ascii() {
        return None;
    }
    let (hms, fraction) = time.split_once('.')?;
    if hms.len() != 6 || fraction.len() != 3 {
        return None;
    }
    let text = format!("{}-{}-{}T{}:{}:{}.{fraction}Z", &date[..4], &date[4..6], &date[6..], &hms[..2], &hms[2..4], &hms[4..]);
    text.parse().ok()
}

/// Whether this text can stand as a version in a key.
pub fn is_version(text: &str) -> bool {
    (1..=64).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
}

/// One line of a catalog run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, try_from = "WireLine")]
pub enum Line {
    /// It is there.
    Present(Entry),
    /// It is gone.
    Gone {
        /// Name.
        #[serde(rename = "n")]
        name: ArtifactName,
        /// Always true.
        #[serde(rename = "x")]
        gone: bool,
    },
}

/// A line as it stands in the run. An untagged enum would say the same and take thrice the time,
/// which counts at ten million lines.
#[derive(Deserialize)]
struct WireLine {
    n: ArtifactName,
    x: Option<bool>,
    v: Option<String>,
    d: Option<Sha256>,
    b: Option<u64>,
    m: Option<u32>,
    t: Option<Timestamp>,
    r: Option<Sha256>,
    o: Option<Origin>,
    w: Option<Vec<String>>,
    c: Option<Timestamp>,
}

impl TryFrom<WireLine> for Line {
    type Error = FormatError;

    fn try_from(wire: WireLine) -> Result<Self, FormatError> {
        let what = "catalog line";
        match wire {
            WireLine { n: name, x: Some(true), .. } => Ok(Self::Gone { name, gone: true }),
            WireLine {
                n: name,
                x: None,
                v: Some(version),
                d: Some(sha256),
                b: Some(bytes),
                m: Some(mode),
                t: Some(modified),
                r: Some(record),
                o: Some(origin),
                w: wrapped_to,
                c: compared,
            } => {
                if !is_version(&version) {
                    return Err(FormatError::malformed(what, "the version cannot be part of a key"));
                }
                Ok(Self::Present(Entry { name, version, sha256, bytes, mode, modified, record, origin, wrapped_to, compared }))
            }
            _ => Err(FormatError::malformed(what, "neither whole nor gone")),
        }
    }
}

impl Line {
    /// The name it is about.
    pub fn name(&self) -> &ArtifactName {
        match self {
            Self::Present(entry) => &entry.name,
            Self::Gone { name, .. } => name,
        }
    }
}

/// An artifact in the set, in brief.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Name.
    #[serde(rename = "n")]
    pub name: ArtifactName,
    /// Version.
    #[serde(rename = "v")]
    pub version: String,
    /// Digest of the bytes.
    #[serde(rename = "d")]
    pub sha256: Sha256,
    /// How many.
    #[serde(rename = "b")]
    pub bytes: u64,
    /// Permission bits.
    #[serde(rename = "m")]
    pub mode: u32,
    /// Time of last change of the file.
    #[serde(rename = "t")]
    pub modified: Timestamp,
    /// Digest of the record object.
    #[serde(rename = "r")]
    pub record: Sha256,
    /// How it came.
    #[serde(rename = "o")]
    pub origin: Origin,
    /// Marks of the recipients that the data key of its blob was wrapped to. `None`: it is not encrypted, or an early writer stored it.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub wrapped_to: Option<Vec<String>>,
    /// Time of last change of the file's status (`st_ctime`, stat(2)) when its content was read and found to be this. `None`: it was not read since
    /// the version was stored.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<Timestamp>,
}

impl Entry {
    /// Whether it is known that somebody of these, who are named by their marks, cannot open it.
    pub fn lacks(&self, marks: &[String]) -> bool {
        self.wrapped_to.as_ref().is_some_and(|to| marks.iter().any(|mark| !to.contains(mark)))
    }
}

/// A catalog run, as heads and manifests name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Digest of the object, its name.
    pub sha256: Sha256,
    /// Bytes of the object.
    pub bytes: u64,
    /// Lines in it.
    pub entries: u64,
    /// First name in it.
    pub first: ArtifactName,
    /// Last name in it.
    pub last: ArtifactName,
}

/// The artifact set after one change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The format version.
    pub format: u32,
    /// Counts from 1.
    pub head: u64,
    /// When.
    pub created: Timestamp,
    /// Runs, newest first.
    pub runs: Vec<Run>,
    /// Artifacts in the set.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The newest head, up to this one, with which a prune began: who began before it must look again at what it relies on (format 8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<u64>,
}

/// Where the check of a head stands while it is computed.
const NO_CHECK: &str = "0000000000000000000000000000000000000000000000000000000000000000";

impl Head {
    /// Reads a head. One of an earlier program has no check of its own.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        #[derive(Deserialize)]
        struct Checked {
            #[serde(default)]
            check: Option<Sha256>,
        }
        let what = "artifact head";
        let malformed = |e: serde_json::Error| FormatError::malformed(what, e.to_string());
        let head: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        if head.format != FORMAT_VERSION {
            return Err(FormatError::TooNew { what, found: head.format });
        }
        let checked: Checked = serde_json::from_slice(bytes).map_err(malformed)?;
        if let Some(check) = checked.check {
            let digits = check.to_string();
            let unchecked = bytes.windows(digits.len()).rposition(|part| part == digits.as_bytes()).map(|at| {
                let mut bytes = bytes.to_vec();
                bytes[at..at + digits.len()].copy_from_slice(NO_CHECK.as_bytes());
                bytes
            });
            if unchecked.is_none_or(|bytes| Sha256::of(&bytes) != check) {
                return Err(FormatError::malformed(what, "its check is another"));
            }
        }
        Ok(head)
    }

    /// The head as it is stored, with a check over itself: nothing else would notice a digit that became another, and whatever the head
    /// does not name any more is lost to the set.
    pub fn encode(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Checked<'a> {
            #[serde(flatten)]
            head: &'a Head,
            check: &'a str,
        }
        let encode = |check| super::to_json(&Checked { head: self, check });
        let check = Sha256::of(&encode(NO_CHECK)).to_string();
        encode(&check)
    }
}

/// Lines that a writer puts into one run before it begins the next: about 4 MiB. So a name is found,
/// and a run proven, by reading a few runs of that size, however large the set is.
pub const RUN_LINES: u64 = 32_768;

/// Cuts runs, newest first, into groups that are each sorted as a whole: a run with [`RUN_LINES`] lines
/// or more goes on in the next run, if that begins behind it. Short runs never go on, so that a
/// thousand runs of one line that happen to be in order still count as a thousand.
pub fn groups(runs: &[Run]) -> impl Iterator<Item = &[Run]> {
    runs.chunk_by(|run, next| run.entries >= RUN_LINES && run.last < next.first)
}

/// How many of the newest runs to merge when new ones with `new_entries` lines go in front: so many
/// [groups], that each group left is at least twice as large as all in front of it together.
/// So a set of n lines has at most log2 n groups, and each line is rewritten at most log2 n times.
pub fn runs_to_merge(new_entries: u64, runs: &[Run]) -> usize {
    let mut front = new_entries;
    let mut merge = 0;
    let mut seen = 0;
    for group in groups(runs) {
        seen += group.len();
        let entries = group.iter().fold(0u64, |sum, run| sum.saturating_add(run.entries));
        if entries < front.saturating_mul(2) {
            merge = seen;
        }
        front = front.saturating_add(entries);
    }
    merge
}

/// Joins sorted sequences of lines, the newest sequence first; of lines with one name the first
/// sequence's wins. Errors are handed on in their place.
pub fn merge<I, E>(sources: Vec<I>) -> impl Iterator<Item = Result<Line, E>>
where
    I: Iterator<Item = Result<Line, E>>,
{
    let mut sources = sources;
    // The next line of every source; `None` when it has ended.
    let mut next: Vec<Option<Result<Line, E>>> = sources.iter_mut().map(Iterator::next).collect();
    std::iter::from_fn(move || {
        let mut first: Option<usize> = None;
        for index in 0..next.len() {
            match (&next[index], first.map(|at| &next[at])) {
                (None, _) => {}
                (Some(Err(_)), _) => return std::mem::replace(&mut next[index], sources[index].next()),
                (Some(Ok(line)), Some(Some(Ok(best)))) if line.name() >= best.name() => {}
                (Some(Ok(_)), _) => first = Some(index),
            }
        }
        let index = first?;
        let winner = std::mem::replace(&mut next[index], sources[index].next())?;
        if let Ok(line) = &winner {
            for (next, source) in next.iter_mut().zip(&mut sources).skip(index + 1) {
                while next.as_ref().is_some_and(|other| matches!(other, Ok(other) if other.name() == line.name())) {
                    *next = source.next();
                }
            }
        }
        Some(winner)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_head_in_which_a_bit_is_another_is_no_head() {
        let run = |name: &str| Run {
            sha256: Sha256::of(name.as_bytes()),
            bytes: 812,
            entries: 30,
            first: name.parse().unwrap(),
            last: "z".parse().unwrap(),
        };
        let runs = vec![run("a"), run("b")];
        let head =
            Head { format: FORMAT_VERSION, head: 12, created: Timestamp::UNIX_EPOCH, runs, count: 30, bytes: 18231, pruned: Some(3) };
        let good = head.encode();
        assert_eq!(Head::decode(&good).unwrap(), head);
        // As programs before it wrote it.
        assert_eq!(Head::decode(&super::super::to_json(&head)).unwrap(), head);
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                // Where only the name of the check is hit, the head is as it was.
                let read = Head::decode(&bytes);
                assert!(read.is_err() || read.as_ref() == Ok(&head), "byte {at}, bit {bit}: {read:?}");
            }
        }
    }

    fn present(name: &str, bytes: u64) -> Line {
        Line::Present(Entry {
            name: name.parse().unwrap(),
            version: "v".into(),
            sha256: Sha256([1; 32]),
            bytes,
            mode: 0o644,
            modified: Timestamp::UNIX_EPOCH,
            record: Sha256([2; 32]),
            origin: Origin::Sync,
            wrapped_to: (bytes % 2 == 1).then(|| vec!["0123456789abcdef".into()]),
            compared: (bytes % 3 == 1).then_some(Timestamp::UNIX_EPOCH),
        })
    }

    #[test]
    fn who_is_lacking_is_told_by_marks() {
        let Line::Present(mut entry) = present("a", 1) else { unreachable!("made so") };
        let marks = |marks: &[&str]| marks.iter().map(ToString::to_string).collect::<Vec<_>>();
        entry.wrapped_to = Some(marks(&["one", "two"]));
        for (present, lacks) in
            [(&["one"][..], false), (&["two", "one"], false), (&["one", "three"], true), (&["three"], true), (&[], false)]
        {
            assert_eq!(entry.lacks(&marks(present)), lacks, "{present:?}");
        }
        entry.wrapped_to = None;
        assert!(!entry.lacks(&marks(&["one"])), "nobody knows");
    }

    #[test]
    fn lines_round_trip_through_json() {
        for line in [present("a/b", 3), Line::Gone { name: "c".parse().unwrap(), gone: true }] {
            let json = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&json).unwrap(), line, "{json}");
        }
        let whole = serde_json::to_string(&present("a", 3)).unwrap();
        for bad in [r#"{"n":"a"}"#, r#"{"n":"a","x":false}"#, r#"{"n":"../a","x":true}"#, &whole.replace("\"v\":\"v\"", "\"v\":\"../v\"")] {
            assert!(serde_json::from_str::<Line>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn full_runs_in_order_count_as_one_and_short_ones_do_not() {
        let run = |first: &str, last: &str, entries| Run {
            sha256: Sha256([0; 32]),
            bytes: 0,
            entries,
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
        };
        let runs = [
            run("a", "a", 1),
            run("b", "b", 1),
            run("a", "c", RUN_LINES),
            run("d", "e", RUN_LINES),
            run("f", "f", 5),
            run("g", "g", RUN_LINES),
        ];
        let lengths: Vec<usize> = groups(&runs).map(<[Run]>::len).collect();
        assert_eq!(lengths, [1, 1, 3, 1]);
        assert_eq!(runs_to_merge(1, &runs[..5]), 2);
        assert_eq!(runs_to_merge(3 * RUN_LINES, &runs), 6);
        assert_eq!(runs_to_merge(1, &runs[2..]), 3 + 1, "the large one behind is smaller than the one before");
        assert_eq!(runs_to_merge(1, &runs[2..5]), 0);
    }

    #[test]
    fn versions_sort_by_time() {
        let early = version("2024-03-15T12:00:00.1234Z".parse().unwrap(), Sha256([0xFF; 32]));
        let late = version("2024-03-15T12:00:00.124Z".parse().unwrap(), Sha256([0; 32]));
        assert_eq!(early, "20240315T120000.123Z-ffffffffffff");
        assert!(early < late && is_version(&early));
        assert_eq!(created(&early), Some("2024-03-15T12:00:00.123Z".parse().unwrap()));
        for other in ["v", "20240315T120000Z-ff", "2024031ü120000.123Z-ff", "20241315T120000.123Z-ff"] {
            assert_eq!(created(other), None, "{other}");
        }
        assert!(!is_version("../x") && !is_version("") && !is_version(".x"));
    }

    proptest! {
        /// Merging is the same as applying the sequences from the oldest to the newest.
        #[test]
        fn merge_gives_the_newest_of_every_name(sources in prop::collection::vec(prop::collection::btree_map("[a-e]{1,2}", prop::option::of(0u64..9), 0..8), 0..5)) {
            let mut expected: BTreeMap<String, Option<u64>> = BTreeMap::new();
            for source in sources.iter().rev() {
                expected.extend(source.clone());
            }
            let lines = |source: &BTreeMap<String, Option<u64>>| -> Vec<Result<Line, ()>> {
                source.iter().map(|(name, bytes)| Ok(match bytes {
                    Some(bytes) => present(name, *bytes),
                    None => Line::Gone { name: name.parse().unwrap(), gone: true },
                })).collect()
            };
            let merged: Vec<Line> = merge(sources.iter().map(|s| lines(s).into_iter()).collect()).map(Result::unwrap).collect();
            let expected: Vec<Line> = lines(&expected).into_iter().map(Result::unwrap).collect();
            prop_assert_eq!(merged, expected);
        }

        #[test]
        fn the_number_of_runs_stays_logarithmic(sizes in prop::collection::vec(1u64..1000, 1..200)) {
            let run = |entries| Run { sha256: Sha256([0; 32]), bytes: 0, entries, first: "a".parse().unwrap(), last: "z".parse().unwrap() };
            let mut runs: Vec<Run> = Vec::new();
            for new in sizes {
                let merge = runs_to_merge(new, &runs);
                let total = new + runs.drain(..merge).map(|r| r.entries).sum::<u64>();
                runs.insert(0, run(total));
            }
            prop_assert!(runs.len() <= 20, "{} runs", runs.len());
        }
    }
}
