//! The catalog: heads and runs, read and written line by line.
//!
//! A line is never handed out before the digest of its whole run was compared. Runs of our own have
//! about 4 MiB and are read whole; a longer one is read twice, first to compare its digest, and
//! compared again as it is read.

use std::io::{self, BufRead, BufReader, Cursor, Read, Write as _};
use std::iter::Peekable;

use aws_lc_rs::digest;
use lifeboat_core::repository::{
    Sha256,
    artifact::{self, Entry, Head, Line, RUN_LINES, Run},
    layout::{self, ArtifactName, Key},
};

use super::{ArtifactError, Finding, Problem, problem_of};
use crate::repository::Repository;
use crate::sha256;
use crate::store::stream::StoreReader;
use crate::store::{Store, StoreError, first_good};

/// The longest head that is read: it names a run in about 300 bytes, and ten million artifacts have
/// some 600 runs.
pub const MAX_HEAD_BYTES: u64 = 16 << 20;

/// Runs up to this length are read whole. The longest of our own have some 6 MiB; a reader has at most
/// log2 n of them in memory at a time.
const WHOLE_RUN_BYTES: u64 = 12 << 20;

/// The longest line: a name of 1024 bytes, every one escaped, and the rest.
const MAX_LINE_BYTES: u64 = 16 << 10;

/// Plain bytes that are read of a run that nothing describes; ours have about 10 MB.
const MAX_ORPHAN_BYTES: u64 = 64 << 20;

/// Compression of runs.
const LEVEL: i32 = 3;

fn damaged(key: &Key, problem: Problem) -> ArtifactError {
    ArtifactError::Finding(Finding { name: None, object: key.to_string(), problem })
}

fn corrupt(key: &Key, why: impl Into<String>) -> ArtifactError {
    damaged(key, Problem::Corrupt(why.into()))
}

/// A failed read of an object that must be there.
fn unreadable(key: &Key, error: StoreError) -> ArtifactError {
    match problem_of(&error) {
        Problem::NotChecked(_) => error.into(),
        problem => damaged(key, problem),
    }
}

/// The newest head; `None` before the first artifact.
///
/// # Errors
///
/// A newest head that cannot be read is an error: going back to the one before would silently lose
/// what changed since.
pub fn newest_head(store: &dyn Store) -> Result<Option<Head>, ArtifactError> {
    let names = store.list_segments(layout::ARTIFACT_HEADS)?;
    let number = |name: &String| name.strip_suffix(".json")?.parse::<u64>().ok();
    let mut newest = names.iter().filter_map(number).max().unwrap_or(0);
    // Heads are numbered without a hole, so one that a listing does not show yet is the next one (c102): a set that is taken for the
    // present one although it is not would go into a backup.
    while newest < u64::MAX {
        match store.length(&layout::artifact_head(newest + 1)) {
            Ok(_) => newest += 1,
            Err(StoreError::NotFound { .. }) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if newest == 0 { Ok(None) } else { head(store, newest).map(Some) }
}

/// Head `number`, which must be there.
pub(super) fn head(store: &dyn Store, number: u64) -> Result<Head, ArtifactError> {
    let key = layout::artifact_head(number);
    first_good(store, &key, |store| head_from(store, &key, number), damage)
}

/// What is wrong with a copy, if another one may be better.
fn damage(error: &ArtifactError) -> Option<String> {
    if let ArtifactError::Finding(finding) = error { super::read::damage(&finding.problem) } else { None }
}

fn head_from(store: &dyn Store, key: &Key, number: u64) -> Result<Head, ArtifactError> {
    let bytes = store.get(key, MAX_HEAD_BYTES).map_err(|e| unreadable(key, e))?;
    let head = Head::decode(&bytes).map_err(|e| match e {
        newer @ lifeboat_core::repository::FormatError::TooNew { .. } => newer.into(),
        other => corrupt(key, other.to_string()),
    })?;
    if head.head != number {
        return Err(corrupt(key, format!("it says that it is head {}", head.head)));
    }
    Ok(head)
}

/// The artifacts of one moment: some runs, newest first.
#[derive(Clone)]
pub struct ArtifactSet<'a> {
    store: &'a dyn Store,
    runs: Vec<Run>,
    holes: Vec<Hole>,
}

/// What a damaged run would have decided. In the runs behind it, these names may be out of date.
#[derive(Clone)]
struct Hole {
    /// Hides these names in runs from this index on.
    before: usize,
    first: ArtifactName,
    last: ArtifactName,
}

/// Lines, each proven.
pub(super) type Lines<'a> = Box<dyn Iterator<Item = Result<Line, ArtifactError>> + 'a>;

impl<'a> ArtifactSet<'a> {
    /// The set that a manifest's or a head's runs make up.
    pub fn new(store: &'a dyn Store, runs: Vec<Run>) -> Self {
        Self { store, runs, holes: Vec::new() }
    }

    /// The present set and its head.
    pub fn newest(repository: &'a Repository) -> Result<(Option<Head>, Self), ArtifactError> {
        let head = newest_head(repository.store())?;
        let runs = head.as_ref().map_or_else(Vec::new, |head| head.runs.clone());
        Ok((head, Self::new(repository.store(), runs)))
    }

    /// The runs.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The artifacts whose name begins with `prefix`, sorted by the bytes of the name. Reads only runs
    /// that can have one.
    pub fn entries(&self, prefix: &str) -> impl Iterator<Item = Result<Entry, ArtifactError>> + use<'a> {
        let run_may = |run: &Run| {
            let (first, last) = (run.first.as_str(), run.last.as_str());
            last >= prefix && (first < prefix || first.starts_with(prefix))
        };
        let prefix = prefix.to_owned();
        self.lines(run_may).filter_map(move |line| match line {
            Ok(Line::Present(entry)) => entry.name.as_str().starts_with(&prefix).then_some(Ok(entry)),
            Ok(Line::Gone { .. }) => None,
            Err(error) => Some(Err(error)),
        })
    }

    /// What the set has under a name.
    pub fn find(&self, name: &ArtifactName) -> Result<Option<Entry>, ArtifactError> {
        for (index, run) in self.runs.iter().enumerate() {
            if run.first > *name || run.last < *name || self.hidden(index, name) {
                continue;
            }
            for line in RunLines::open(self.store, run)? {
                match line? {
                    line if line.name() < name => {}
                    Line::Present(entry) if entry.name == *name => return Ok(Some(entry)),
                    Line::Gone { name: gone, .. } if gone == *name => return Ok(None),
                    _ => break,
                }
            }
        }
        Ok(None)
    }

    /// Reads every run. Those that are damaged are taken out, and with them every name they may have
    /// spoken of: an older run must not answer for it. What is left can be relied on.
    pub fn check(self) -> Result<(Self, Vec<Finding>), ArtifactError> {
        let mut sound = Self { store: self.store, runs: Vec::new(), holes: self.holes };
        let mut findings = Vec::new();
        for run in self.runs {
            match prove(self.store, &run) {
                Ok(()) => sound.runs.push(run),
                Err(ArtifactError::Finding(mut finding)) => {
                    let names = format!("it spoke of artifacts from {:?} to {:?}", run.first.as_str(), run.last.as_str());
                    finding.problem = match finding.problem {
                        Problem::Corrupt(why) => Problem::Corrupt(format!("{why}; {names}")),
                        other => other,
                    };
                    findings.push(finding);
                    sound.holes.push(Hole { before: sound.runs.len(), first: run.first, last: run.last });
                }
                Err(other) => return Err(other),
            }
        }
        Ok((sound, findings))
    }

    fn hidden(&self, index: usize, name: &ArtifactName) -> bool {
        self.holes.iter().any(|hole| hole.before <= index && hole.first <= *name && *name <= hole.last)
    }

    /// The lines of those runs that `wanted` picks, joined.
    pub(super) fn lines(&self, wanted: impl Fn(&Run) -> bool) -> Lines<'a> {
        let picked: Vec<(usize, &Run)> = self.runs.iter().enumerate().filter(|(_, run)| wanted(run)).collect();
        let runs: Vec<Run> = picked.iter().map(|(_, run)| (*run).clone()).collect();
        let mut index = picked.iter().map(|(index, _)| *index);
        let store = self.store;
        let sources: Vec<Lines<'a>> = artifact::groups(&runs)
            .map(|group| -> Lines<'a> {
                let numbered: Vec<(usize, Run)> = index.by_ref().zip(group.iter().cloned()).take(group.len()).collect();
                let set = (!self.holes.is_empty()).then(|| Self { store, runs: Vec::new(), holes: self.holes.clone() });
                Box::new(numbered.into_iter().flat_map(move |(index, run)| -> Lines<'a> {
                    let lines = match RunLines::open(store, &run) {
                        Ok(lines) => lines,
                        Err(error) => return Box::new(std::iter::once(Err(error))),
                    };
                    let Some(set) = set.clone() else { return Box::new(lines) };
                    Box::new(lines.filter(move |line| line.as_ref().map_or(true, |line| !set.hidden(index, line.name()))))
                }))
            })
            .collect();
        Box::new(artifact::merge(sources))
    }

    /// The lines from `first` to `last`, joined.
    pub(super) fn between(&self, first: &ArtifactName, last: &ArtifactName) -> Lines<'a> {
        self.lines(|run| run.first <= *last && run.last >= *first)
    }
}

/// Looks up ascending names in a set, in one pass.
pub(super) struct Lookup<'a>(Peekable<Lines<'a>>);

impl<'a> Lookup<'a> {
    pub(super) fn new(lines: Lines<'a>) -> Self {
        Self(lines.peekable())
    }

    /// What the set has under this name, which must not be less than the one before.
    pub(super) fn get(&mut self, name: &ArtifactName) -> Result<Option<Entry>, ArtifactError> {
        while let Some(line) = self.0.next_if(|line| line.as_ref().is_ok_and(|line| line.name() < name)) {
            line?;
        }
        match self.0.next_if(|line| line.as_ref().map_or(true, |line| line.name() == name)).transpose()? {
            Some(Line::Present(entry)) => Ok(Some(entry)),
            _ => Ok(None),
        }
    }
}

/// Reads a run's every byte and compares its digest.
fn prove(store: &dyn Store, run: &Run) -> Result<(), ArtifactError> {
    let key = layout::artifact_run(run.sha256);
    if run.bytes <= WHOLE_RUN_BYTES {
        return whole(store, run, &key).map(drop);
    }
    let mut reader = StoreReader::open(store, &key).map_err(|e| unreadable(&key, e))?;
    if reader.length != run.bytes {
        return Err(corrupt(&key, format!("{} bytes, not {}", reader.length, run.bytes)));
    }
    let mut context = digest::Context::new(&digest::SHA256);
    while let Some(part) = reader.next_range().map_err(|e| unreadable(&key, e))? {
        context.update(part);
    }
    if context.finish().as_ref() != run.sha256.0 {
        return Err(corrupt(&key, "the digest is another"));
    }
    Ok(())
}

/// A run's bytes, from the first copy that has them. (Of a longer run, which is none of ours, only one copy is looked at.)
fn whole(store: &dyn Store, run: &Run, key: &Key) -> Result<Vec<u8>, ArtifactError> {
    let read = |store: &dyn Store| {
        let bytes = store.get(key, run.bytes).map_err(|e| unreadable(key, e))?;
        if sha256::of(&bytes) == run.sha256 { Ok(bytes) } else { Err(corrupt(key, "the digest is another")) }
    };
    first_good(store, key, read, damage)
}

/// The lines of a run that no head describes any more: all that is known of it is its digest. Longer ones than our own are not read.
pub(super) fn orphan(store: &dyn Store, sha256: Sha256, bytes: u64) -> Result<Vec<Line>, ArtifactError> {
    let key = layout::artifact_run(sha256);
    if bytes > WHOLE_RUN_BYTES {
        return Err(corrupt(&key, "it is longer than any that this program writes"));
    }
    let found = store.get(&key, bytes).map_err(|e| unreadable(&key, e))?;
    if sha256::of(&found) != sha256 {
        return Err(corrupt(&key, "the digest is another"));
    }
    let decoder = zstd::stream::read::Decoder::with_buffer(Cursor::new(found)).map_err(|e| corrupt(&key, e.to_string()))?;
    let mut reader = BufReader::with_capacity(64 << 10, decoder).take(MAX_ORPHAN_BYTES);
    let (mut lines, mut line) = (Vec::new(), Vec::new());
    while lines.len() as u64 <= RUN_LINES {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) => return Ok(lines),
            Ok(_) if line.last() == Some(&b'\n') => lines.push(serde_json::from_slice(&line).map_err(|e| corrupt(&key, e.to_string()))?),
            Ok(_) => return Err(corrupt(&key, "a line has no end")),
            Err(error) => return Err(corrupt(&key, error.to_string())),
        }
    }
    Err(corrupt(&key, "it has more lines than any that this program writes"))
}

/// The lines of one run.
pub(super) struct RunLines<'a> {
    reader: Box<dyn BufRead + 'a>,
    key: Key,
    run: Run,
    line: Vec<u8>,
    previous: Option<ArtifactName>,
    seen: u64,
    ended: bool,
}

impl<'a> RunLines<'a> {
    pub(super) fn open(store: &'a dyn Store, run: &Run) -> Result<Self, ArtifactError> {
        let key = layout::artifact_run(run.sha256);
        if run.bytes <= WHOLE_RUN_BYTES {
            let bytes = whole(store, run, &key)?;
            return Self::new(Cursor::new(bytes), run, key);
        }
        prove(store, run)?;
        let reader = StoreReader::open(store, &key).map_err(|e| unreadable(&key, e))?;
        let again = Again { reader, context: Some(digest::Context::new(&digest::SHA256)), expected: run.sha256 };
        Self::new(BufReader::with_capacity(64 << 10, again), run, key)
    }

    fn new(bytes: impl BufRead + 'a, run: &Run, key: Key) -> Result<Self, ArtifactError> {
        let decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(|e| corrupt(&key, e.to_string()))?;
        let reader = Box::new(BufReader::with_capacity(64 << 10, decoder));
        Ok(Self { reader, key, run: run.clone(), line: Vec::new(), previous: None, seen: 0, ended: false })
    }

    fn read(&mut self) -> Result<Option<Line>, ArtifactError> {
        self.line.clear();
        let read = self.reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut self.line);
        match read {
            Err(error) => {
                return Err(match error.downcast::<StoreError>() {
                    Ok(error) => unreadable(&self.key, error),
                    Err(other) => corrupt(&self.key, other.to_string()),
                });
            }
            Ok(0) => {
                if self.seen != self.run.entries || self.previous.as_ref() != Some(&self.run.last) {
                    return Err(corrupt(&self.key, "its lines are not those that the head counts"));
                }
                return Ok(None);
            }
            Ok(_) if self.line.last() != Some(&b'\n') => return Err(corrupt(&self.key, "a line has no end")),
            Ok(_) => {}
        }
        let line: Line = serde_json::from_slice(&self.line).map_err(|e| corrupt(&self.key, format!("line {}: {e}", self.seen + 1)))?;
        let sorted = match &self.previous {
            None => *line.name() == self.run.first,
            Some(previous) => previous < line.name(),
        };
        if !sorted {
            return Err(corrupt(&self.key, "its lines are not in order"));
        }
        self.previous = Some(line.name().clone());
        self.seen += 1;
        Ok(Some(line))
    }
}

impl Iterator for RunLines<'_> {
    type Item = Result<Line, ArtifactError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let line = self.read().transpose();
        self.ended = !matches!(line, Some(Ok(_)));
        line
    }
}

/// A long run on its second reading: it has to be the same once more.
struct Again<'a> {
    reader: StoreReader<'a>,
    context: Option<digest::Context>,
    expected: Sha256,
}

impl Read for Again<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = match self.reader.read(out) {
            Err(error) => return Err(self.reader.failed.take().map_or(error, io::Error::other)),
            Ok(length) => length,
        };
        if length > 0 {
            if let Some(context) = &mut self.context {
                context.update(&out[..length]);
            }
        } else if !out.is_empty()
            && let Some(context) = self.context.take()
            && context.finish().as_ref() != self.expected.0
        {
            return Err(io::Error::other("it changed while it was read"));
        }
        Ok(length)
    }
}

/// A run that was written; in the store, or still in memory.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) run: Run,
    /// Lines of it that say "gone".
    gone: u64,
    bytes: Option<Vec<u8>>,
}

/// Runs that were written, ascending: one sorted sequence of lines.
#[derive(Debug, Clone, Default)]
pub(super) struct Sequence(pub(super) Vec<Written>);

impl Sequence {
    pub(super) fn entries(&self) -> u64 {
        self.0.iter().map(|written| written.run.entries).sum()
    }

    /// Whether a line says "gone".
    pub(super) fn has_gone(&self) -> bool {
        self.0.iter().any(|written| written.gone > 0)
    }

    /// First and last name.
    pub(super) fn ends(&self) -> Option<(&ArtifactName, &ArtifactName)> {
        Some((&self.0.first()?.run.first, &self.0.last()?.run.last))
    }

    /// The lines of it.
    pub(super) fn lines<'s>(&'s self, store: &'s dyn Store) -> Lines<'s> {
        Box::new(self.0.iter().flat_map(move |written| -> Lines<'s> {
            let lines = match &written.bytes {
                Some(bytes) => RunLines::new(Cursor::new(&bytes[..]), &written.run, layout::artifact_run(written.run.sha256)),
                None => RunLines::open(store, &written.run),
            };
            match lines {
                Ok(lines) => Box::new(lines),
                Err(error) => Box::new(std::iter::once(Err(error))),
            }
        }))
    }

    /// Stores what is still in memory; how heads name it.
    pub(super) fn store(&mut self, store: &dyn Store) -> Result<Vec<Run>, ArtifactError> {
        for written in &mut self.0 {
            written.store(store)?;
        }
        Ok(self.0.iter().map(|written| written.run.clone()).collect())
    }
}

impl Written {
    fn store(&mut self, store: &dyn Store) -> Result<(), ArtifactError> {
        let Some(bytes) = &self.bytes else { return Ok(()) };
        let key = layout::artifact_run(self.run.sha256);
        match store.create(&key, bytes) {
            Ok(()) => {}
            // The same lines were written before; the head must not name what does not read.
            Err(StoreError::Exists { .. }) => drop(whole(store, &self.run, &key)?),
            Err(error) => return Err(error.into()),
        }
        self.bytes = None;
        Ok(())
    }
}

/// Writes ascending lines into runs of [`RUN_LINES`]. A sequence of one run stays in memory: it may be
/// merged before anybody needs it.
pub(super) struct RunsWriter<'a> {
    store: &'a dyn Store,
    done: Sequence,
    open: Option<OpenRun>,
}

struct OpenRun {
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    first: ArtifactName,
    last: ArtifactName,
    entries: u64,
    gone: u64,
}

impl<'a> RunsWriter<'a> {
    pub(super) fn new(store: &'a dyn Store) -> Self {
        Self { store, done: Sequence::default(), open: None }
    }

    /// Appends a line; its name must be greater than the one before.
    pub(super) fn push(&mut self, line: &Line) -> Result<(), ArtifactError> {
        if self.open.as_ref().is_some_and(|open| open.entries == RUN_LINES) {
            self.close();
            self.done.store(self.store)?;
        }
        let name = line.name();
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).expect("zstd has this level");
                self.open.insert(OpenRun { encoder, first: name.clone(), last: name.clone(), entries: 0, gone: 0 })
            }
        };
        debug_assert!(open.entries == 0 || open.last < *name, "lines come in order");
        let mut json = serde_json::to_vec(line).expect("lines have text keys only");
        json.push(b'\n');
        open.encoder.write_all(&json).expect("writing to memory does not fail");
        open.last = name.clone();
        open.entries += 1;
        open.gone += u64::from(matches!(line, Line::Gone { .. }));
        Ok(())
    }

    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let bytes = open.encoder.finish().expect("writing to memory does not fail");
        let run = Run { sha256: sha256::of(&bytes), bytes: bytes.len() as u64, entries: open.entries, first: open.first, last: open.last };
        self.done.0.push(Written { run, gone: open.gone, bytes: Some(bytes) });
    }

    /// Ends the last run.
    pub(super) fn finish(mut self) -> Result<Sequence, ArtifactError> {
        self.close();
        if self.done.0.len() > 1 {
            self.done.store(self.store)?;
        }
        Ok(self.done)
    }
}
