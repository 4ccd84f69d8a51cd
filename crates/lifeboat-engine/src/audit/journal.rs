//! A host's own account of the audit log: JSON lines, one file a month, written before anything else knows of a record.
//!
//! What the store did not take yet waits here, in order. Lines are only ever appended, each durable before whoever wrote it goes on; what was
//! settled is remembered beside them, so that nobody reads old lines again. Losing that only makes the next run slower.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::audit::{Event, Stored};
use lifeboat_core::repository::{Id, Sha256};
use serde::{Deserialize, Serialize};

use crate::store::sync_directory;

/// How long a process waits for another one of this host that brings records to the repository.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it looks.
const PAUSE: Duration = Duration::from_millis(20);

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    /// Something happened.
    Event(Box<Event>),
    /// It is in a repository.
    Stored(Stored),
    /// Somebody decided to go on with a log that had lost its end. Events that were lost with it stand in the journal once more, behind this line.
    Resumed(Resumed),
}

/// What is written down when a log is resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resumed {
    pub(super) time: Timestamp,
    pub(super) repository: Id,
    /// Records that the log still had.
    pub(super) size: u64,
    /// In the words of whoever decided.
    pub(super) reason: String,
}

impl Line {
    fn text(&self) -> String {
        match self {
            // As in the repository, so that people find the same text.
            Self::Event(event) => format!("{{\"event\":{}}}\n", event.to_json()),
            Self::Stored(_) | Self::Resumed(_) => serde_json::to_string(self).expect("a line has text keys only") + "\n",
        }
    }
}

/// A place in the journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Position {
    file: String,
    offset: u64,
}

/// The newest checkpoint that this host has seen, and from where on it may have stored records without having written that down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) repository: Id,
    /// The signed note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) checkpoint: Option<String>,
    /// It tried to store records from this index on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tried_from: Option<u64>,
}

/// What is remembered beside the lines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Everything before is settled.
    #[serde(default)]
    pub(super) settled: Position,
    /// Of each repository that stood at this address.
    #[serde(default)]
    seen: Vec<Seen>,
}

impl State {
    pub(super) fn seen(&self, repository: Id) -> Option<&Seen> {
        self.seen.iter().find(|seen| seen.repository == repository)
    }

    pub(super) fn seen_mut(&mut self, repository: Id) -> &mut Seen {
        let at = self.seen.iter().position(|seen| seen.repository == repository).unwrap_or_else(|| {
            self.seen.push(Seen { repository, checkpoint: None, tried_from: None });
            self.seen.len() - 1
        });
        &mut self.seen[at]
    }
}

/// Records that are in no repository yet.
pub(super) struct Waiting {
    /// In order.
    pub(super) events: Vec<(Position, Event)>,
    /// Behind the last line.
    pub(super) end: Position,
}

/// Lines, taken together: the last word about each event counts.
#[derive(Default)]
pub(super) struct Account {
    /// In the order in which they were written down, or once more.
    pub(super) events: Vec<(Position, Event)>,
    /// Where events are.
    pub(super) stored: HashMap<Id, Stored>,
}

impl Account {
    fn take(&mut self, at: Position, line: Line) {
        match line {
            Line::Event(event) => {
                // Once more: what was stored was lost.
                if self.stored.remove(&event.id).is_some() {
                    self.events.retain(|(_, known)| known.id != event.id);
                }
                self.events.push((at, *event));
            }
            Line::Stored(stored) => _ = self.stored.insert(stored.id, stored),
            Line::Resumed(resumed) => {
                self.stored.retain(|_, stored| stored.repository != resumed.repository || stored.index < resumed.size);
            }
        }
    }
}

/// The journal for one address.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    directory: PathBuf,
}

/// Held by whoever brings records to the repository.
pub(super) struct Turn(#[expect(dead_code, reason = "the lock is held as long as the file is open")] File);

impl Journal {
    /// The journal for the repository at `url`, below `directory`; made when there is something to write.
    pub(super) fn new(directory: &Path, url: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' };
        let digest = Sha256::of(url.as_bytes()).to_string();
        let tail: String = url.chars().rev().take(40).collect::<Vec<_>>().into_iter().rev().map(plain).collect();
        Self { directory: directory.join(format!("{tail}-{}", &digest[..8])) }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn lock_file(&self, name: &str) -> io::Result<File> {
        if !self.directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
            // What is promised to be in it must not be lost with its name.
            self.directory.ancestors().skip(1).take(2).try_for_each(sync_directory)?;
        }
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.directory.join(name))
    }

    /// Waits until no other process of this host brings records to the repository; `None`: one takes too long.
    pub(super) fn turn(&self) -> io::Result<Option<Turn>> {
        let file = self.lock_file("upload.lock")?;
        let give_up = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Turn(file))),
                Err(fs::TryLockError::WouldBlock) if Instant::now() < give_up => std::thread::sleep(PAUSE),
                Err(fs::TryLockError::WouldBlock) => return Ok(None),
                Err(fs::TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// The files, oldest first.
    fn files(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            Err(error) => return Err(error),
        };
        for entry in entries {
            if let Some(name) = entry?.file_name().to_str().filter(|name| name.ends_with(".jsonl")) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Appends lines, durably.
    pub(super) fn append(&self, lines: &[Line], now: Timestamp) -> io::Result<()> {
        let lock = self.lock_file("journal.lock")?;
        lock.lock()?;
        let date = now.to_string();
        let month = format!("{}.jsonl", date.get(..7).unwrap_or("0000-00"));
        // Where the clock went back, the newest file goes on: lines stand in the order in which they were written.
        let name = self.files()?.into_iter().next_back().filter(|newest| *newest > month).unwrap_or(month);
        let path = self.directory.join(name);
        let new = !path.exists();
        let mut file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        let mut text = String::new();
        if length > 0 {
            // What a crash cut off must not swallow this line.
            let mut last = [0];
            file.seek(SeekFrom::Start(length - 1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                text.push('\n');
            }
        }
        lines.iter().for_each(|line| text.push_str(&line.text()));
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if new { sync_directory(&self.directory) } else { Ok(()) }
    }

    /// Every whole line from a place on, with its place, and the place behind the last. Lines that say nothing are left out: a crash cut them off,
    /// and nobody was told that they were written; or a later version wrote them.
    fn read(&self, from: &Position) -> io::Result<(Vec<(Position, Line)>, Position)> {
        let (mut lines, mut end) = (Vec::new(), from.clone());
        for name in self.files()? {
            let start = match name.cmp(&from.file) {
                std::cmp::Ordering::Less => continue,
                std::cmp::Ordering::Equal => from.offset,
                std::cmp::Ordering::Greater => 0,
            };
            let mut file = File::open(self.directory.join(&name))?;
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let mut offset = start;
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                if line.last() == Some(&b'\n') {
                    if let Ok(parsed) = serde_json::from_slice(line) {
                        lines.push((Position { file: name.clone(), offset }, parsed));
                    }
                    offset += line.len() as u64;
                }
            }
            end = Position { file: name, offset };
        }
        Ok((lines, end))
    }

    /// Everything that it says, taken together.
    pub(super) fn account(&self) -> io::Result<Account> {
        let mut account = Account::default();
        for (at, line) in self.read(&Position::default())?.0 {
            account.take(at, line);
        }
        Ok(account)
    }

    /// What is in no repository yet.
    pub(super) fn waiting(&self, state: &State) -> io::Result<Waiting> {
        let (lines, end) = self.read(&state.settled)?;
        let mut account = Account::default();
        lines.into_iter().for_each(|(at, line)| account.take(at, line));
        Ok(Waiting { events: account.events.into_iter().filter(|(_, event)| !account.stored.contains_key(&event.id)).collect(), end })
    }

    /// What is remembered; what cannot be read is forgotten, and only costs time.
    pub(super) fn state(&self) -> io::Result<State> {
        match fs::read(self.directory.join("state.json")) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(error),
        }
    }

    /// Remembers, durably. Only whoever has the turn does.
    pub(super) fn remember(&self, state: &State) -> io::Result<()> {
        let next = self.directory.join("state.next");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
        file.write_all(&lifeboat_core::repository::to_json(state))?;
        file.sync_all()?;
        fs::rename(next, self.directory.join("state.json"))?;
        sync_directory(&self.directory)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use lifeboat_core::audit::{EVENT_SCHEMA, Phase};
    use lifeboat_core::policy::{Actor, Operation};

    use super::*;

    fn event(number: u8) -> Event {
        let operation = Operation::Pin;
        Event {
            schema: EVENT_SCHEMA,
            id: Id([number; 16]),
            time: at(0),
            phase: Phase::Start,
            start: None,
            operation,
            action: operation.class(),
            dry_run: false,
            actor: Actor { user: "u".into(), uid: 1, sudo_user: None },
            host: "h".into(),
            environment: String::new(),
            program: "p".into(),
            trace: None,
            url: None,
            backup: None,
            plan: None,
            approvers: vec![],
            target: None,
            deletion: None,
            decision: None,
            break_glass: None,
            outcome: None,
        }
    }

    fn at(days: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + days * 86_400).unwrap()
    }

    fn ids(journal: &Journal, state: &State) -> Vec<u8> {
        journal.waiting(state).unwrap().events.iter().map(|(_, event)| event.id.0[0]).collect()
    }

    fn write(journal: &Journal, number: u8, now: Timestamp) {
        journal.append(&[Line::Event(Box::new(event(number)))], now).unwrap();
    }

    fn stored(number: u8) -> Line {
        Line::Stored(Stored { id: Id([number; 16]), repository: Id([9; 16]), index: 0, leaf: Sha256([0; 32]) })
    }

    #[test]
    fn what_is_not_stored_waits_in_order_over_months_and_over_a_clock_that_goes_back() {
        let place = tempfile::tempdir().unwrap();
        let journal = Journal::new(place.path(), "s3://bucket/prefix");
        let mut state = journal.state().unwrap();
        assert_eq!(ids(&journal, &state), Vec::<u8>::new());
        for (number, days) in [(1, 0), (2, 40), (3, 1), (4, 80)] {
            write(&journal, number, at(days));
        }
        assert_eq!(journal.files().unwrap(), ["2023-11.jsonl", "2023-12.jsonl", "2024-02.jsonl"]);
        assert_eq!(ids(&journal, &state), [1, 2, 3, 4]);
        journal.append(&[stored(1), stored(3)], at(80)).unwrap();
        assert_eq!(ids(&journal, &state), [2, 4]);
        state.settled = journal.waiting(&state).unwrap().events[0].0.clone();
        assert_eq!(ids(&journal, &state), [2, 4], "a line that is behind what is settled counts for those before");
        journal.append(&[stored(2), stored(4)], at(80)).unwrap();
        state.settled = journal.waiting(&state).unwrap().end;
        state.seen_mut(Id([9; 16])).tried_from = Some(3);
        journal.remember(&state).unwrap();
        assert_eq!(journal.state().unwrap(), state);
        write(&journal, 5, at(0));
        assert_eq!(ids(&journal, &state), [5]);
        // What is remembered may get lost.
        assert_eq!(ids(&journal, &State::default()), [5]);
        let account = journal.account().unwrap();
        assert_eq!((account.events.len(), account.stored.len()), (5, 4));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(journal.directory()), 0o700);
        for entry in fs::read_dir(journal.directory()).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
        }
    }

    #[test]
    fn what_a_crash_cut_off_is_no_line_and_swallows_none() {
        let place = tempfile::tempdir().unwrap();
        let journal = Journal::new(place.path(), "x");
        write(&journal, 1, at(0));
        let path = journal.directory().join("2023-11.jsonl");
        let whole = fs::read(&path).unwrap();
        let next = Line::Event(Box::new(event(3))).text().into_bytes();
        for cut in 0..next.len() {
            fs::write(&path, [&whole[..], &next[..cut]].concat()).unwrap();
            let before = journal.waiting(&State::default()).unwrap();
            assert_eq!((before.events.len(), before.end.offset), (1, whole.len() as u64));
            write(&journal, 2, at(0));
            // Where only its end was cut off, it is whole again, and as good as if it had been.
            let behind = if cut == next.len() - 1 { vec![3, 2] } else { vec![2] };
            assert_eq!(ids(&journal, &State::default()), [&[1][..], &behind].concat());
            // Who settled what was there before the crash finds what came behind it.
            assert_eq!(ids(&journal, &State { settled: before.end, ..State::default() }), behind);
        }
    }

    #[test]
    fn one_after_the_other_has_its_turn() {
        let place = tempfile::tempdir().unwrap();
        let journal = Journal::new(place.path(), "x");
        let first = journal.turn().unwrap().unwrap();
        let waiting = std::thread::spawn({
            let journal = journal.clone();
            move || journal.turn().unwrap().is_some()
        });
        drop(first);
        assert!(waiting.join().unwrap());
    }
}
