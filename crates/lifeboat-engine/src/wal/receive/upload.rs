//! Brings what is in the spool to the repository.
//!
//! Trouble of the store, and of a service that signs, is waited out; a file that the repository has with other bytes ends the receiver.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::repository::layout::Key;
use lifeboat_core::repository::{Descriptor, layout, to_json};
use lifeboat_core::wal::file::{GapRecord, WalFile, WalPredicate};
use lifeboat_core::wal::receive::ledger::Work;
use lifeboat_core::wal::receive::{Inventory, Position, missing};
use lifeboat_core::wal::record::{RecordError, Summarizer, Summary};
use lifeboat_core::wal::{LONG_HEADER_BYTES, Segment, check_segment_header};

use super::super::digests::{Digesting, Digests};
use super::checks::{Covering, PAGE_BYTES};
use super::{Course, Damage, Document, Event, EventKind, Receiver};
use crate::causes;
use crate::repository::MAX_DOCUMENT_BYTES;
use crate::signing::SignError;
use crate::store::StoreError;
use crate::wal::{WalError, WalWriter};

/// What is read of a segment at a time.
const READ_BYTES: u64 = 256 << 10;

/// Between attempts while the repository fails.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What is taken from the book to be stored.
enum Task {
    Document(Document),
    Work(Work),
}

/// Reads a segment from its beginning, as it was received.
struct Checked<'a> {
    receiver: &'a Receiver<'a>,
    segment: Segment,
    file: &'a File,
    heals: u64,
    at: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.receiver.size().bytes();
        if self.used == self.buffer.len() {
            let to = (self.at + READ_BYTES).min(end);
            self.buffer = self.receiver.read_checked(self.segment, self.file, self.heals, self.at, to)?;
            (self.at, self.used) = (to, 0);
        }
        let length = buffer.len().min(self.buffer.len() - self.used);
        buffer[..length].copy_from_slice(&self.buffer[self.used..self.used + length]);
        self.used += length;
        Ok(length)
    }
}

impl Receiver<'_> {
    /// Stores documents, pieces and segments in their order, until the receiver ends.
    pub(super) fn upload(&self, writer: &WalWriter<'_>, number: usize) {
        self.work(writer, |book, now| {
            if book.document_busy {
                return None;
            }
            // One of the uploaders does it; the WAL behind it waits.
            if let Some(document) = book.documents.front().cloned() {
                return (number == 0).then(|| {
                    book.document_busy = true;
                    Task::Document(document)
                });
            }
            book.ledger.next(now, book.flush).map(Task::Work)
        });
    }

    /// Makes whole segments of those that are there in pieces, until the receiver ends.
    pub(super) fn upload_whole(&self, writer: &WalWriter<'_>) {
        self.work(writer, |book, _| book.ledger.next_whole().map(Task::Work));
    }

    fn work(&self, writer: &WalWriter<'_>, next: impl Fn(&mut super::Book, Duration) -> Option<Task>) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let mut book = self.book();
            let task = loop {
                if book.ended {
                    return;
                }
                if let Some(task) = next(&mut book, self.began.elapsed()) {
                    break task;
                }
                // Long enough to cost nothing, short enough for the interval of pieces.
                let wait = self.request.flush_interval.min(Duration::from_millis(250)) / 2;
                book = self.changed.wait_timeout(book, wait.max(Duration::from_millis(5))).expect("no panic while held").0;
            };
            drop(book);
            let there = if pause > SHORTEST_PAUSE { self.is_still_there() } else { Ok(()) };
            let result = there.and_then(|()| match &task {
                Task::Document(document) => self.store_document(writer, document),
                Task::Work(work) => self.store_work(writer, *work),
            });
            match result {
                Ok(()) => {
                    pause = SHORTEST_PAUSE;
                    match task {
                        Task::Document(document) => {
                            let mut book = self.book();
                            book.document_busy = false;
                            book.documents.retain(|waiting| *waiting != document);
                            drop(book);
                            self.changed.notify_all();
                        }
                        Task::Work(work) => self.is_stored(work),
                    }
                }
                Err(error) => {
                    self.not_stored(task, error);
                    self.rest(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Waits before the next attempt.
    fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut book = self.book();
        while !book.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            book = self.changed.wait_timeout(book, left).expect("no panic while held").0;
        }
    }

    fn not_stored(&self, task: Task, error: WalError) {
        let mut book = self.book();
        match task {
            Task::Document(_) => book.document_busy = false,
            Task::Work(work) => book.ledger.failed(work),
        }
        let text = causes::joined(&error);
        let waits = match &error {
            // Another file of that name that cannot be compared yet (it is being written), or a store that is away, full, or closed to us.
            WalError::Store(_) => true,
            // Streamed anew at this moment.
            WalError::File { .. } | WalError::Changed { .. } => true,
            // A service that signs is away, or does not take the credentials, which are renewed: the spool is for that as well. Whoever runs
            // once is not there to wait.
            WalError::Sign(SignError::Signer(_) | SignError::Denied(_)) => self.request.course != Course::Once,
            _ => false,
        };
        let what = if matches!(error, WalError::Sign(_)) { "WAL cannot be signed, and waits" } else { "the repository does not take WAL" };
        let news = waits && book.store_trouble.replace(text.clone()).is_none();
        drop(book);
        self.changed.notify_all();
        if !waits {
            self.fail(error.into());
        } else if news {
            self.tell(Event::new(EventKind::StoreFailing, format!("{what}: {text}; trying again")));
        }
    }

    fn store_document(&self, writer: &WalWriter<'_>, document: &Document) -> Result<(), WalError> {
        let size = self.size();
        let local = |name: &str, source| WalError::File { action: "read", path: name.to_owned(), source };
        match document {
            Document::History(timeline) => {
                let name = WalFile::History(*timeline).file_name(size);
                let Some(bytes) = self.spool.history(*timeline).map_err(|source| local(&name, source))? else { return Ok(()) };
                writer.put_history(*timeline, &bytes).map(drop)
            }
            Document::Gap { name, key } => {
                if let Some(bytes) = self.spool.gap(name).map_err(|source| local(name, source))? {
                    match serde_json::from_slice(&bytes) {
                        Ok(gap) => self.store_gap(&gap)?,
                        // Of a later version: it is stored as it is.
                        Err(_) => self.create_gap(key, &bytes)?,
                    }
                }
                self.spool.remove_gap(name);
                Ok(())
            }
        }
    }

    /// Says in the repository what of a gap it does not have: what the server removed may have been archived by somebody else, and a gap is
    /// never taken back.
    fn store_gap(&self, gap: &GapRecord) -> Result<(), WalError> {
        let (store, size, system_id) = (self.repository.store(), self.size(), self.cluster.system_id);
        let mut there = Inventory::new(size);
        for listed in store.list(&layout::wal_timeline(system_id, gap.timeline))? {
            if let Some(file) = WalFile::from_key(&listed.key, system_id, size) {
                there.add(file);
            }
        }
        let lost = missing(gap.timeline, (gap.from, gap.to), size, |segment| {
            let start = there.start_until(segment, gap.to);
            if start == size.bytes() {
                return Ok(start);
            }
            // A listing may not show the newest segments yet (c102): each is asked for by its name.
            match store.length(&WalFile::Segment(segment).key(system_id, size)) {
                Ok(_) => Ok(size.bytes()),
                Err(StoreError::NotFound { .. }) => Ok(start),
                Err(error) => Err(error),
            }
        })?;
        let at = |lsn| Position { timeline: gap.timeline, lsn };
        if lost.is_empty() {
            let text = format!("no WAL is lost: the repository has {} to {} of timeline {}", gap.from, gap.to, gap.timeline);
            self.tell(Event::new(EventKind::Warning, text).at(at(gap.from)));
        }
        for (from, to) in lost {
            let record = GapRecord { from, to, ..gap.clone() };
            self.create_gap(&layout::wal_gap(system_id, gap.timeline, from, to), &to_json(&record))?;
            let text = format!("WAL IS LOST: {from} to {to} of timeline {}; take a new backup: {}", gap.timeline, gap.reason);
            self.tell(Event::new(EventKind::Gap, text).at(at(from)));
        }
        Ok(())
    }

    fn create_gap(&self, key: &Key, bytes: &[u8]) -> Result<(), WalError> {
        match self.repository.store().create(key, bytes) {
            // The same gap, found by another receiver.
            Ok(()) | Err(StoreError::Exists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn store_work(&self, writer: &WalWriter<'_>, work: Work) -> Result<(), WalError> {
        let size = self.size();
        let segment = work.segment();
        let name = segment.file_name(size);
        let failed = |source| WalError::File { action: "read", path: name.clone(), source };
        let (heals, unseen) = {
            let book = self.book();
            // Found in the spool, and not received by this receiver.
            (book.heals, !book.checks.contains_key(&segment))
        };
        let damaged = |reason: String| {
            let reason = format!("{name}: {reason}");
            self.spool_broke(segment, Damage::Unbelieved, &reason);
            failed(io::Error::new(io::ErrorKind::InvalidData, reason))
        };
        let file = self.file_of(segment).map_err(failed)?;
        let end = match work {
            Work::Piece { to, .. } => u64::from(to),
            Work::Whole(_) => size.bytes(),
        };
        let mut magic = 0;
        if end >= LONG_HEADER_BYTES as u64 {
            let bytes = self.read_checked(segment, &file, heals, 0, LONG_HEADER_BYTES as u64).map_err(failed)?;
            let header = bytes.first_chunk().expect("as many bytes as were asked for");
            match check_segment_header(header, segment, size, self.cluster.system_id) {
                Err(error) if unseen => return Err(damaged(error.to_string())),
                other => other?,
            };
            magic = u16::from_le_bytes([header[0], header[1]]);
            self.claim(writer, magic, segment)?;
        }
        match work {
            Work::Piece { from, to, .. } => {
                let bytes = self.read_checked(segment, &file, heals, u64::from(from), u64::from(to)).map_err(failed)?;
                let page_magic = (from == 0 && magic != 0).then_some(magic);
                let predicate = WalPredicate { page_magic, ..WalPredicate::new(bytes.len() as u64, size) };
                writer.put_bytes(WalFile::Piece { segment, from, to }, &predicate, &bytes).map(drop)
            }
            Work::Whole(_) => {
                let (digests, summary) = self.examine(&file, segment, heals).map_err(failed)?;
                let summary = match summary {
                    Ok(summary) if unseen && !summary.is_full(segment, size) => {
                        let end = summary.end.unwrap_or(segment.start(size));
                        return Err(damaged(format!("its records end at {end}, before the segment does")));
                    }
                    Ok(summary) => Some(summary),
                    // Records of a version that is not known: without a summary everything is only slower.
                    Err(RecordError::Version(_)) => None,
                    Err(error) if unseen => return Err(damaged(error.to_string())),
                    Err(_) => None,
                };
                let predicate = WalPredicate { page_magic: Some(magic), summary, ..WalPredicate::new(size.bytes(), size) };
                let mut content = self.checked(&file, segment, heals);
                writer.put(WalFile::Segment(segment), digests, &predicate, &mut content).map(drop)
            }
        }
    }

    fn checked<'s>(&'s self, file: &'s File, segment: Segment, heals: u64) -> Checked<'s> {
        Checked { receiver: self, segment, file, heals, at: 0, buffer: Vec::new(), used: 0 }
    }

    /// Bytes of a segment, compared with the checksums of what was received: a kernel that could not write a page may give back what was
    /// there before it, and that must not be signed.
    ///
    /// `heals` is how often the spool had failed when the file was looked up: if it has failed since, its file may have been put aside together
    /// with the checksums that tell, so nothing that is read of it counts. What was found in the spool at the start, and not been opened since,
    /// has no checksums; its records are checked.
    fn read_checked(&self, segment: Segment, file: &File, heals: u64, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let again = || invalid(format!("{}: it is received again", segment.file_name(self.size())));
        let (known, trusted) = {
            let book = self.book();
            (book.checks.get(&segment).map(|checks| checks.covering(from, to)), book.heals == heals)
        };
        // The same moment for both: from here on a failure finds its pages in what is compared.
        if !trusted {
            return Err(again());
        }
        let Some(Covering { start, end, pages }) = known else {
            let mut bytes = vec![0; usize::try_from(to - from).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, from)?;
            return Ok(bytes);
        };
        if end < to {
            return Err(again());
        }
        let mut bytes = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, start)?;
        if bytes.chunks(PAGE_BYTES).zip(&pages).any(|(page, crc)| crc32c::crc32c(page) != *crc) {
            let reason = format!("{}: it does not hold what was written", segment.file_name(self.size()));
            self.spool_broke(segment, Damage::Unbelieved, &reason);
            return Err(invalid(reason));
        }
        let skip = usize::try_from(from - start).map_err(io::Error::other)?;
        bytes.drain(..skip);
        bytes.truncate(usize::try_from(to - from).map_err(io::Error::other)?);
        Ok(bytes)
    }

    /// After a failure: whether this is still the repository that was opened. A file system that is not mounted any more leaves an empty
    /// directory, in which everything would succeed.
    fn is_still_there(&self) -> Result<(), WalError> {
        let key = layout::descriptor();
        let bytes = self.repository.store().get(&key, MAX_DOCUMENT_BYTES)?;
        match Descriptor::decode(&bytes) {
            Ok(descriptor) if descriptor.repository == self.repository.descriptor().repository => Ok(()),
            _ => Err(StoreError::NotFound { key: key.to_string() }.into()),
        }
    }

    /// Says in the repository what its WAL is of, once in the life of a receiver.
    fn claim(&self, writer: &WalWriter<'_>, magic: u16, segment: Segment) -> Result<(), WalError> {
        let (claimed, stored_until) = {
            let book = self.book();
            (book.claimed, book.ledger.stored_until())
        };
        if claimed == Some(magic) {
            return Ok(());
        }
        // Segments are stored side by side: this need not be the first.
        let here = Position::start_of(segment, self.size());
        let begins = stored_until.map_or(here, |position| position.min(here));
        writer.claim_cluster(magic, Some(begins), Timestamp::now(), &self.request.program)?;
        self.book().claimed = Some(magic);
        Ok(())
    }

    /// The digests of a finished segment, and what recovery targets are in it.
    fn examine(&self, file: &File, segment: Segment, heals: u64) -> io::Result<(Digests, Result<Summary, RecordError>)> {
        let size = self.size();
        let mut content = self.checked(file, segment, heals);
        let mut digesting = Digesting::new();
        let mut summarizer = Summarizer::new(segment, size);
        let mut buffer = vec![0; READ_BYTES as usize];
        loop {
            match content.read(&mut buffer)? {
                0 => break,
                length => {
                    digesting.update(&buffer[..length]);
                    summarizer.push(&buffer[..length]);
                }
            }
        }
        Ok((digesting.finish(), summarizer.finish()))
    }
}
