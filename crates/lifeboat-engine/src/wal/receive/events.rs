//! What happens to a receiver, told to who watches and kept in the spool.
//!
//! `events.jsonl` in the spool has one JSON object in a line: `number` (from 1, without a hole: a missing one shows that lines were lost),
//! `time`, `event`, `loud`, `text`, and where they apply `timeline`, `lsn`, `host`. A line is on disk before what it tells is acted on.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, Write as _};
use std::path::Path;

use jiff::Timestamp;
use lifeboat_core::wal::receive::Position;
use lifeboat_core::wal::{Lsn, Timeline};
use serde::Serialize;

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The receiver runs.
    Started,
    /// A server answered and is followed.
    Connected,
    /// The connection ended.
    Disconnected,
    /// A server answered and is not followed (c061).
    Refused,
    /// The slot was made.
    SlotCreated,
    /// The slot was gone, or of no use any more (c056).
    SlotLost,
    /// WAL is lost before it came here.
    Gap,
    /// The stream went to another timeline (c060).
    TimelineSwitched,
    /// The server left our timeline before the end of what we have.
    Forked,
    /// The repository does not take what we have.
    StoreFailing,
    /// It does again.
    StoreBack,
    /// The spool cannot be written.
    SpoolFailing,
    /// It can again.
    SpoolBack,
    /// Too much waits for the repository; the stream is not read.
    Paused,
    /// It is read again.
    Resumed,
    /// Commits go on without us.
    Degraded,
    /// Commits wait for us again.
    Restored,
    /// Something that an operator should know.
    Warning,
    /// The receiver ended.
    Stopped,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Counted in this spool.
    pub number: u64,
    /// When.
    pub time: Timestamp,
    /// What.
    pub event: EventKind,
    /// It should wake somebody.
    pub loud: bool,
    /// In one line.
    pub text: String,
    /// Where in the WAL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// Where in the WAL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    /// The server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

impl Event {
    /// Something that happened just now; it gets its number when it is kept.
    pub(super) fn new(event: EventKind, text: impl Into<String>) -> Self {
        let loud = matches!(
            event,
            EventKind::Refused
                | EventKind::SlotLost
                | EventKind::Gap
                | EventKind::Forked
                | EventKind::StoreFailing
                | EventKind::SpoolFailing
                | EventKind::Paused
                | EventKind::Degraded
                | EventKind::Warning
        );
        Self { number: 0, time: Timestamp::now(), event, loud, text: text.into(), timeline: None, lsn: None, host: None }
    }

    pub(super) fn at(mut self, position: Position) -> Self {
        (self.timeline, self.lsn) = (Some(position.timeline), Some(position.lsn));
        self
    }

    pub(super) fn on(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }
}

/// The lines that are kept.
pub(super) struct EventLog {
    file: File,
    next: u64,
    /// The last line is not whole.
    torn: bool,
}

impl EventLog {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).create(true).append(true).open(root.join("events.jsonl"))?;
        #[derive(serde::Deserialize)]
        struct Numbered {
            number: u64,
        }
        let mut last = 0;
        let mut ends_in_newline = true;
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            ends_in_newline = line.ends_with(b"\n");
            if let Ok(event) = serde_json::from_slice::<Numbered>(&line) {
                last = event.number;
            }
            line.clear();
        }
        file.seek(io::SeekFrom::End(0))?;
        // Killed in the middle of a line, or the disk was full.
        Ok(Self { file, next: last + 1, torn: !ends_in_newline })
    }

    /// Numbers an event and keeps it. It has its number also where it could not be kept.
    pub(super) fn keep(&mut self, event: &mut Event) -> io::Result<()> {
        event.number = self.next;
        self.next += 1;
        let mut line = if self.torn { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut line, event).map_err(io::Error::other)?;
        line.push(b'\n');
        self.torn = true;
        self.file.write_all(&line)?;
        self.torn = false;
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_over_restarts_and_broken_lines() {
        let place = tempfile::tempdir().unwrap();
        let keep = |text: &str| {
            let mut event = Event::new(EventKind::Started, text);
            EventLog::open(place.path()).unwrap().keep(&mut event).unwrap();
            event.number
        };
        assert_eq!((keep("a"), keep("b")), (1, 2));
        let path = place.path().join("events.jsonl");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}{{\"number\":3,\"ti")).unwrap();
        assert_eq!(keep("c"), 3);
        let lines = std::fs::read_to_string(&path).unwrap();
        assert_eq!(lines.lines().count(), 4);
        assert!(lines.lines().last().unwrap().contains("\"event\":\"started\""));
    }

    #[test]
    fn a_line_that_could_not_be_written_does_not_spoil_the_next() {
        let place = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(place.path()).unwrap();
        let path = place.path().join("events.jsonl");
        let keep = |log: &mut EventLog| log.keep(&mut Event::new(EventKind::Started, "a"));
        // As on a full disk: nothing can be written for a while, and a part of it was.
        let good = std::mem::replace(&mut log.file, File::open(&path).unwrap());
        assert!(keep(&mut log).is_err());
        std::fs::write(&path, "{\"number\":1,\"ti").unwrap();
        log.file = good;
        keep(&mut log).unwrap();
        keep(&mut log).unwrap();
        let numbers: Vec<_> =
            std::fs::read_to_string(&path).unwrap().lines().skip(1).map(|line| line.get(..11).map(str::to_owned)).collect();
        assert_eq!(numbers, [Some("{\"number\":2".to_owned()), Some("{\"number\":3".to_owned())]);
    }
}
