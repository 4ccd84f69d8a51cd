//! Artifacts: records, catalog runs, heads (format 8).

use std::cmp::Ordering;

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

/// Whether this text can stand as a version in a key.
pub fn is_version(text: &str) -> bool {
    (1..=64).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
}

/// One line of a catalog run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
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
}

impl Head {
    /// Reads a head.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "artifact head";
        let head: Self = serde_json::from_slice(bytes).map_err(|e| FormatError::malformed(what, e.to_string()))?;
        if head.format != FORMAT_VERSION {
            return Err(FormatError::TooNew { what, found: head.format });
        }
        Ok(head)
    }
}

/// Which runs to merge when a new one of `new_entries` lines goes in front: so many of the newest,
/// that each run left is at least twice as large as all in front of it together. So a set of n
/// lines has at most log2 n runs, and each line is rewritten at most log2 n times.
pub fn runs_to_merge(new_entries: u64, runs: &[Run]) -> usize {
    let mut front = new_entries;
    let mut merge = 0;
    for (index, run) in runs.iter().enumerate() {
        if run.entries < front.saturating_mul(2) {
            merge = index + 1;
        }
        front = front.saturating_add(run.entries);
    }
    merge
}

/// Joins sorted sequences of lines, the newest sequence first; of lines with one name the first
/// sequence's wins. Errors are handed on in their place.
pub fn merge<I, E>(sources: Vec<I>) -> impl Iterator<Item = Result<Line, E>>
where
    I: Iterator<Item = Result<Line, E>>,
{
    let mut sources: Vec<_> = sources.into_iter().map(Iterator::peekable).collect();
    std::iter::from_fn(move || {
        let mut first: Option<(usize, ArtifactName)> = None;
        for (index, source) in sources.iter_mut().enumerate() {
            match source.peek() {
                None => {}
                Some(Err(_)) => return source.next(),
                Some(Ok(line)) => {
                    let better = first.as_ref().is_none_or(|(_, name)| line.name().cmp(name) == Ordering::Less);
                    if better {
                        first = Some((index, line.name().clone()));
                    }
                }
            }
        }
        let (index, name) = first?;
        let winner = sources[index].next();
        for source in &mut sources[index + 1..] {
            while source.peek().is_some_and(|line| matches!(line, Ok(line) if *line.name() == name)) {
                source.next();
            }
        }
        winner
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

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
        })
    }

    #[test]
    fn lines_round_trip_through_json() {
        for line in [present("a/b", 3), Line::Gone { name: "c".parse().unwrap(), gone: true }] {
            let json = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&json).unwrap(), line, "{json}");
        }
    }

    #[test]
    fn versions_sort_by_time() {
        let early = version("2024-03-15T12:00:00.1234Z".parse().unwrap(), Sha256([0xFF; 32]));
        let late = version("2024-03-15T12:00:00.124Z".parse().unwrap(), Sha256([0; 32]));
        assert_eq!(early, "20240315T120000.123Z-ffffffffffff");
        assert!(early < late && is_version(&early));
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
