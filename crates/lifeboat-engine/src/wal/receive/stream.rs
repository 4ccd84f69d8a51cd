//! The receiver itself: finds a server to follow, begins the stream where it has to begin, writes the spool, and acknowledges.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::repository::layout;
use lifeboat_core::wal::fetch::Lost;
use lifeboat_core::wal::file::{GapRecord, WalFile};
use lifeboat_core::wal::history::History;
use lifeboat_core::wal::receive::ledger::Work;
use lifeboat_core::wal::receive::message::{Acknowledged, Message, decode, status_update};
use lifeboat_core::wal::receive::{Inventory, Position, Relation, WholeRecords, missing, relation, stream_start};
use lifeboat_core::wal::{LONG_HEADER_BYTES, Lsn, Segment, Timeline, check_segment_header};

use super::checks::Checks;
use super::spool::FoundSegment;
use super::{Activity, Course, Damage, Document, Event, EventKind, LAST_UPLOAD, Mode, ReceiveError, Receiver, SyncJob, Wakeup};
use crate::causes;
use crate::keys::Identities;
use crate::postgres::{Connection, CopyBoth, CopyStart, Dsn, PgError, Purpose, Received, ReplicationFacts, Rows, Slot, SlotState};
use crate::wal::{WalError, WalReader};

/// Between attempts to connect.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Bytes that are taken from the stream before anything else is looked at.
const BATCH_BYTES: u64 = 1 << 20;

/// How often a status update is sent at least, as `pg_receivewal` does; a quarter of `wal_sender_timeout` where that is less.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// Why a session ended that was not meant to.
enum Broken {
    Postgres(PgError),
    /// The spool; the syncer or we have told.
    Spool,
    /// No server is there that we follow.
    Nobody,
    /// This one is not followed, and why.
    Refused(String),
    Fatal(ReceiveError),
}

impl From<PgError> for Broken {
    fn from(error: PgError) -> Self {
        Self::Postgres(error)
    }
}

impl From<ReceiveError> for Broken {
    fn from(error: ReceiveError) -> Self {
        Self::Fatal(error)
    }
}

/// How a session ended in order.
enum End {
    /// There is nothing left to do.
    Finished,
    /// The server closed it.
    Closed,
    /// We left a server that shuts down.
    Left,
}

enum StreamEnd {
    Stopped,
    /// The server ended its side.
    Over,
    /// The server shuts down, and would wait for what cannot be stored now.
    Left,
}

/// A segment that is being written.
struct OpenSegment {
    segment: Segment,
    file: Arc<File>,
    /// Bytes from the first on that are there: what comes again is compared.
    there: u64,
    /// How far it is written.
    written: u64,
}

/// Where the receiver is, over all sessions.
struct Place {
    found: Vec<FoundSegment>,
    /// Before the first session: unknown.
    cursor: Option<Position>,
    /// Where the next stream begins: the start of the first segment that is not finished.
    next: Position,
    /// What has to be streamed again of a timeline that had ended.
    again: Option<Position>,
    open: Option<OpenSegment>,
    /// Histories that are in the spool or the repository.
    histories: HashSet<Timeline>,
    /// Those of the repository that were looked at.
    stored_histories: HashMap<Timeline, History>,
    /// The server no longer has what begins here.
    removed: Option<Position>,
    /// What no server that was followed had any more.
    lost: Vec<Lost>,
    /// The slot is of no use.
    recreate: bool,
    /// There was a session, or something was there from an earlier run.
    had_slot: bool,
    /// What was told of this outage.
    told: Option<String>,
    /// Where a receiver that runs once may end.
    target: Option<Lsn>,
    /// The repository was asked what it has, in vain, and that was told.
    listed: bool,
    /// The end of the server's WAL, as it told last.
    server_end: Option<Lsn>,
}

/// Which clusters answer, host by host, and why others do not.
pub(super) fn ask_all(dsn: &Dsn) -> Vec<Result<ReplicationFacts, PgError>> {
    let ask = |candidate: Dsn| Connection::open(&candidate, Purpose::Replication)?.identify_system();
    dsn.each_host().into_iter().map(ask).collect()
}

/// The connection string for SQL on the very server that a replication connection has.
pub(super) fn sql_dsn(dsn: &Dsn, connection: &Connection) -> Dsn {
    let endpoint = connection.endpoint();
    let mut dsn = dsn.clone().with("host", &endpoint.host).with("port", &endpoint.port);
    let address = connection.host_address();
    if !address.is_empty() {
        dsn = dsn.with("hostaddr", &address);
    }
    dsn
}

/// Opens SQL where there may be no database of the user's name.
pub(super) fn open_sql(dsn: &Dsn) -> Result<Connection, PgError> {
    match Connection::open(dsn, Purpose::Sql) {
        // invalid_catalog_name
        Err(error) if error.sqlstate() == Some("3D000") => Connection::open(&dsn.clone().with("dbname", "postgres"), Purpose::Sql),
        other => other,
    }
}

/// A server that is followed.
struct Followed {
    connection: Connection,
    facts: ReplicationFacts,
}

impl Receiver<'_> {
    /// Where it begins: nobody is followed yet.
    fn place(&self, found: Vec<FoundSegment>) -> Place {
        for segment in &found {
            // Finished files were synced before they got their name.
            if segment.bytes == self.size().bytes() {
                self.book().ledger.synced(segment.segment, segment.bytes);
            }
        }
        Place {
            had_slot: !found.is_empty(),
            found,
            cursor: None,
            next: Position { timeline: Timeline(1), lsn: Lsn::INVALID },
            again: None,
            open: None,
            histories: HashSet::new(),
            stored_histories: HashMap::new(),
            removed: None,
            lost: Vec::new(),
            recreate: false,
            told: None,
            target: None,
            listed: false,
            server_end: None,
        }
    }

    /// Waits until the repository has what is in the spool, without a server: another receiver may have the slot by now, or there is no server
    /// any more.
    pub(super) fn drain(&self, found: Vec<FoundSegment>, wakeup: &Wakeup) -> Result<(), ReceiveError> {
        let mut place = self.place(found);
        loop {
            {
                let mut book = self.book();
                book.flush = true;
                if self.stop.is_asked() || book.ended || book.ledger.is_settled() && book.documents.is_empty() {
                    return Ok(());
                }
            }
            self.changed.notify_all();
            self.heal(&mut place);
            // No server sends again what had to be put aside: what is behind it is stored without it.
            for pair in place.found.windows(2) {
                if pair[0].put_aside {
                    self.book().ledger.go_on_at(pair[1].segment);
                }
            }
            for found in &mut place.found {
                found.put_aside = false;
            }
            wakeup.wait(SHORTEST_PAUSE);
        }
    }

    /// Follows servers until there is nothing left to do.
    pub(super) fn sessions(&self, found: Vec<FoundSegment>, wakeup: &Wakeup) -> Result<(), ReceiveError> {
        let mut place = self.place(found);
        let (mut pause, mut reached) = (SHORTEST_PAUSE, Lsn::INVALID);
        loop {
            if self.stop.is_asked() || self.book().ended {
                return Ok(());
            }
            let outcome = self.session(&mut place, wakeup);
            {
                let mut book = self.book();
                book.activity = Activity::Connecting;
                book.host = None;
                // Without a server nobody waits for us.
                (book.stalled, book.paused) = (None, None);
            }
            place.open = None;
            let acknowledged = self.book().acknowledged.lsn;
            if acknowledged != reached {
                (reached, pause) = (acknowledged, SHORTEST_PAUSE);
            }
            match outcome {
                Ok(End::Finished) => return Ok(()),
                Ok(End::Closed) => self.tell_once(&mut place, Event::new(EventKind::Disconnected, "the server closed the stream")),
                Ok(End::Left) => {
                    let text = "the server shuts down: it does not wait for what the repository does not take, and keeps that for the slot";
                    self.tell_once(&mut place, Event::new(EventKind::Disconnected, text));
                }
                Err(Broken::Fatal(error)) => return Err(error),
                Err(Broken::Postgres(error)) => {
                    if self.request.course == Course::Once && !error.is_transient() {
                        return Err(error.into());
                    }
                    self.tell_once(&mut place, Event::new(EventKind::Disconnected, error.to_string()));
                }
                // Whoever looks for the next server tells.
                Err(Broken::Spool | Broken::Nobody | Broken::Refused(_)) => {}
            }
            self.heal(&mut place);
            wakeup.wait(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Tells what is not the same as what was told last: a server may be away for days.
    fn tell_once(&self, place: &mut Place, event: Event) {
        if place.told.as_ref() != Some(&event.text) {
            place.told = Some(event.text.clone());
            self.tell(event);
        }
    }

    /// After a failure of the spool: what cannot be believed is put aside and will be streamed again.
    fn heal(&self, place: &mut Place) {
        let broken = std::mem::take(&mut self.book().broken);
        for (segment, damage) in broken {
            let start = Position::start_of(segment, self.size());
            place.next = place.next.min(start);
            if self.book().ledger.holds(segment) {
                place.again = Some(place.again.map_or(start, |again| again.min(start)));
            }
            if damage == Damage::Unbelieved {
                let kept = self.put_aside(segment);
                // Before the first server is followed, what is there is told by these.
                for found in place.found.iter_mut().filter(|found| found.segment == segment) {
                    (found.bytes, found.put_aside) = (kept, true);
                }
            }
        }
    }

    /// Puts a segment aside, and keeps of it what can be shown to be what was received: bytes of it may be acknowledged, and the server that
    /// would send them again may be lost in this moment. Returns how many bytes from its first on that is.
    fn put_aside(&self, segment: Segment) -> u64 {
        let size = self.size();
        let mut book = self.book();
        book.heals += 1;
        book.ledger.distrust(segment);
        let file = book.files.remove(&segment);
        let checks = book.checks.remove(&segment);
        book.syncs.retain(|job| job.segment != segment);
        drop(book);
        let kept = match (file, checks) {
            // A copy, for its sync tells anew whether the disk has it. Where there can be none, all is streamed again.
            (Some(file), Some(checks)) => self.spool.keep(segment, size, &file, checks, self.request.disk).ok(),
            _ => None,
        };
        if let Some(checks) = kept
            && self.spool.take_kept(segment, size).is_ok()
        {
            let length = checks.length();
            let mut book = self.book();
            book.ledger.wrote(segment, length);
            book.ledger.synced(segment, length);
            book.checks.insert(segment, checks);
            return length;
        }
        // Where even that fails, the file is opened and synced again, and fails again.
        let _ = self.spool.suspect(segment, size);
        0
    }

    fn session(&self, place: &mut Place, wakeup: &Wakeup) -> Result<End, Broken> {
        let mut followed = self.find_server(place)?;
        let (mut connected, walsender) = (false, followed.connection.backend_pid());
        let host = followed.connection.endpoint().host;
        {
            let mut book = self.book();
            book.host = Some(host.clone());
            book.server.set(followed.facts.flushed);
        }
        let text = format!(
            "connected to {}, PostgreSQL {}, timeline {}, its WAL ends at {}",
            followed.connection.endpoint(),
            followed.facts.server_version / 10_000,
            followed.facts.timeline,
            followed.facts.flushed
        );
        if self.request.course == Course::Once {
            place.target.get_or_insert(followed.facts.flushed);
        }
        let interval = status_interval(&followed.connection)?;
        loop {
            let from = place.next;
            let size = self.size();
            let started = match followed.connection.start_physical(&self.request.slot, from.lsn, from.timeline) {
                Ok(started) => started,
                // object_in_use; not of a connection of ours that broke, or of a receiver before this one, which the server has not noticed yet.
                Err(error)
                    if self.request.course == Course::UnlessReceived
                        && error.sqlstate() == Some("55006")
                        && self.book().walsenders.is_empty()
                        && self.began.elapsed() > self.request.busy_slot =>
                {
                    return Err(ReceiveError::SlotInUse { slot: self.request.slot.clone() }.into());
                }
                Err(error) => {
                    self.note_refused_start(place, from, &error);
                    return Err(error.into());
                }
            };
            if !std::mem::replace(&mut connected, true) {
                // Not before: where another receiver has the slot this is tried again and again.
                place.told = None;
                self.tell(Event::new(EventKind::Connected, text.clone()).at(place.next).on(&host));
            }
            self.book().walsenders.insert(walsender);
            let ended = match started {
                CopyStart::Ended(rows) => Some(rows),
                CopyStart::Streaming(mut copy) => match self.stream(&mut copy, place, interval, wakeup)? {
                    StreamEnd::Stopped => return Ok(End::Finished),
                    StreamEnd::Left => return Ok(End::Left),
                    StreamEnd::Over => match copy.finish() {
                        Ok(rows) => rows,
                        Err(error) => {
                            self.note_refused_start(place, from, &error);
                            return Err(error.into());
                        }
                    },
                },
            };
            let Some(rows) = ended else { return Ok(End::Closed) };
            let switched = next_timeline(&rows)?;
            drop(rows);
            self.switch(place, &followed.connection, switched)?;
            debug_assert!(place.next.lsn == stream_start(place.next.lsn, size));
        }
    }

    /// What an error at the start of a stream says about the next attempt.
    fn note_refused_start(&self, place: &mut Place, from: Position, error: &PgError) {
        match error.sqlstate() {
            // undefined_file: "requested WAL segment … has already been removed" (`src/backend/access/transam/xlogreader.c`, `walsender.c`)
            Some("58P01") => place.removed = Some(from),
            // object_not_in_prerequisite_state: the slot was invalidated.
            Some("55000") => place.recreate = true,
            _ => {}
        }
    }

    /// The first of the configured servers that is ours to follow, with the stream's beginning settled.
    fn find_server(&self, place: &mut Place) -> Result<Followed, Broken> {
        let candidates = self.request.dsn.each_host();
        let alone = candidates.len() == 1;
        let mut failure: Option<PgError> = None;
        let mut refused = false;
        for candidate in candidates {
            if self.stop.is_asked() {
                break;
            }
            let opened = Connection::open(&candidate, Purpose::Replication);
            let (connection, facts) = match opened.and_then(|connection| connection.identify_system().map(|facts| (connection, facts))) {
                Ok(opened) => opened,
                Err(error) => {
                    failure.get_or_insert(error);
                    continue;
                }
            };
            let host = connection.endpoint().host;
            if facts.system_id != self.cluster.system_id || facts.segment_size != self.cluster.segment_size {
                let error = ReceiveError::OtherCluster { expected: self.cluster.system_id, found: facts.system_id };
                if alone {
                    return Err(error.into());
                }
                refused = true;
                self.tell_once(place, Event::new(EventKind::Refused, error.to_string()).on(&host));
                continue;
            }
            match self.settle(place, &candidate, &connection, &facts) {
                Ok(None) => return Ok(Followed { connection, facts }),
                Ok(Some(reason)) | Err(Broken::Refused(reason)) => {
                    refused = true;
                    let text = format!("NOT FOLLOWING {}: {reason}", connection.endpoint());
                    self.tell_once(place, Event::new(EventKind::Refused, text).on(&host));
                }
                Err(Broken::Postgres(error)) => {
                    failure.get_or_insert(error);
                }
                Err(other) => return Err(other),
            }
        }
        match failure {
            Some(error) if !refused => Err(error.into()),
            _ => Err(Broken::Nobody),
        }
    }

    /// Decides where the stream of this server begins. `Some`: it is not followed, and why.
    fn settle(
        &self,
        place: &mut Place,
        candidate: &Dsn,
        connection: &Connection,
        facts: &ReplicationFacts,
    ) -> Result<Option<String>, Broken> {
        let history = self.fetch_history(place, connection, facts.timeline)?;
        let mut inventory = None;
        let ours = match place.cursor {
            Some(cursor) => Some(cursor),
            None => {
                let known = self.take_inventory(place);
                let timeline = known.timeline();
                inventory = Some(known);
                timeline.map(|timeline| Position { timeline, lsn: Lsn::INVALID })
            }
        };
        // An older server is not even asked about its slot.
        if let Some(ours) = ours
            && facts.timeline < ours.timeline
            && !self.request.accept_fork
        {
            return Ok(Some(format!("it is on timeline {}, and there is WAL of timeline {}", facts.timeline, ours.timeline)));
        }
        let dsn = sql_dsn(candidate, connection);
        let slot = self.prepare_slot(place, &dsn, connection)?;
        let kept = slot.restart_lsn.ok_or_else(|| PgError::Unsupported {
            reason: format!("slot {} keeps nothing: it was made without RESERVE_WAL, drop it", self.request.slot),
        })?;
        let kept = Position { timeline: history.timeline_of(kept), lsn: kept };
        let mut position = match (place.cursor, &inventory) {
            (Some(cursor), _) => cursor,
            (None, Some(inventory)) => inventory.begin(&history, kept.lsn),
            (None, None) => kept,
        };
        let first = place.cursor.is_none();
        if let Some(inventory) = &inventory {
            place.again = self.comes_again(place, inventory, &history);
        }
        // Segments are read for it: only where it makes a difference.
        let whole_until = match history.switch_from(position.timeline) {
            Some(fork) if fork < position.lsn => self.whole_until(position),
            _ => position.lsn,
        };
        match relation(&history, position.timeline, whole_until) {
            Relation::Continue(_) => {
                let mut book = self.book();
                match history.switch_from(position.timeline) {
                    Some(fork) => {
                        book.flushed.leave(position.timeline, fork);
                        // The rest of a record that was only begun: a promotion cut it off.
                        if fork < position.lsn {
                            position.lsn = fork;
                            book.received.set(fork);
                        }
                    }
                    None => book.flushed.stay(position.timeline),
                }
            }
            Relation::ForkedBefore { fork, next } => {
                let text = format!("its history left timeline {} at {fork}, and there is WAL up to {whole_until}", position.timeline);
                if self.request.mode.is_sync() && !self.request.accept_fork {
                    return Ok(Some(format!("{text}; if that WAL is given up: --accept-fork")));
                }
                self.tell(
                    Event::new(EventKind::Forked, format!("{text}: what is behind is kept, but no longer of its history")).at(position),
                );
                self.book().flushed.leave(position.timeline, fork);
                self.abandon(place, fork);
                position = Position { timeline: next, lsn: fork };
            }
            Relation::Older | Relation::Unrelated => {
                let text = format!("it is on timeline {}, which does not descend from timeline {}", facts.timeline, position.timeline);
                if !self.request.accept_fork {
                    return Ok(Some(text));
                }
                self.tell(Event::new(EventKind::Forked, format!("{text}; followed as asked")).at(position));
                self.book().flushed.leave(position.timeline, kept.lsn);
                self.abandon(place, kept.lsn);
                position = kept;
            }
        }
        let reached = Position { timeline: position.timeline, lsn: stream_start(position.lsn, self.size()) };
        let mut start = reached;
        // After a failure of the spool the stream begins before what was reached,
        let before = if first { place.again } else { Some(place.next) };
        if let Some(before) = before.filter(|before| before.timeline == start.timeline) {
            start = start.min(before);
        }
        // maybe on the timeline before.
        if let Some(again) = place.again.filter(|again| again.timeline < start.timeline) {
            if history.switch_from(again.timeline).is_some_and(|switch| again.lsn < switch) {
                start = again;
                self.book().ledger.reopen(Segment::containing(again.timeline, again.lsn, self.size()));
            } else {
                place.again = None;
                self.warn(format!("what was to be streamed again from {again} on is not in the history of this server"));
                self.book().ledger.close_all(again.timeline);
            }
        }
        if facts.flushed < start.lsn {
            return Ok(Some(format!("its WAL ends at {}, and there is WAL up to {position}", facts.flushed)));
        }
        if place.removed.take() == Some(start) {
            // After a failure of the spool what was to be streamed again is lost as well, as far as it is not there.
            let from = if start < reached { start } else { position };
            (position, start) = match history.switch_from(start.timeline).filter(|_| start.timeline < kept.timeline) {
                // That says nothing of the timeline that follows.
                Some(switch) => {
                    let next = Position { timeline: history.timeline_of(switch), lsn: switch };
                    self.record_gap(&history, from, next, &slot)?;
                    place.lost.push(Lost { timeline: from.timeline, from: from.lsn, to: switch });
                    let known = self.take_inventory(place);
                    let is_known = known.timeline().is_some_and(|timeline| timeline >= next.timeline);
                    let position = if is_known { known.begin(&history, kept.lsn).max(next) } else { next };
                    (position, Position { timeline: position.timeline, lsn: stream_start(position.lsn, self.size()) })
                }
                None => {
                    let oldest = Position { timeline: kept.timeline, lsn: stream_start(kept.lsn, self.size()) };
                    if oldest.lsn <= start.lsn {
                        // It says to keep what is not there: of no use.
                        place.recreate = true;
                        let reason = format!("slot {} does not keep what it says", self.request.slot);
                        return Err(PgError::TimedOut { reason }.into());
                    }
                    self.record_gap(&history, from, oldest, &slot)?;
                    (oldest, oldest)
                }
            };
            place.again = None;
            self.book().ledger.go_on_at(Segment::containing(start.timeline, start.lsn, self.size()));
            self.go_on_from(place, start.lsn);
        }
        let mut book = self.book();
        if first || book.ledger.written_until().is_none() {
            book.ledger.begin_at(start);
        }
        book.ledger.cut(&history);
        book.ledger.follow(start.timeline);
        book.timeline = Some(start.timeline);
        book.sql_dsn = Some(dsn);
        drop(book);
        place.cursor = Some(position);
        place.next = start;
        place.had_slot = true;
        Ok(None)
    }

    /// What has to be streamed again of what was found in the spool, or was put aside since.
    fn comes_again(&self, place: &Place, inventory: &Inventory, history: &History) -> Option<Position> {
        let put_aside = || place.found.iter().filter(|found| found.put_aside).map(|found| found.segment);
        for segment in put_aside().filter(|segment| inventory.start_of(*segment) == self.size().bytes()) {
            self.spool.forget(segment, self.size());
        }
        inventory.comes_again(history, put_aside())
    }

    /// What is received of the timeline so far is all that will be of it; the stream goes on elsewhere, at `lsn`.
    fn abandon(&self, place: &mut Place, lsn: Lsn) {
        let open = self.book().ledger.open();
        if let Some((segment, _)) = open {
            self.book().ledger.close(segment);
        }
        self.go_on_from(place, lsn);
    }

    /// The stream goes on somewhere else.
    fn go_on_from(&self, place: &mut Place, lsn: Lsn) {
        let mut book = self.book();
        let durable = book.durable_until(self.request.mode);
        // What still waits is not acknowledged before it is durable, wherever the stream goes on.
        let waits = durable < book.ledger.written_until();
        book.flushed.go_on_from(durable.filter(|_| waits).map_or(lsn, |durable| durable.lsn.min(lsn)));
        book.received.set(lsn);
        place.open = None;
    }

    /// Up to where whole records are there: a record that was only begun is not waited for by anybody, and a promotion cuts it off. It may have
    /// begun some segments before.
    fn whole_until(&self, position: Position) -> Lsn {
        let size = self.size();
        let mut to = position.lsn;
        // A record has at most 1 GiB (`XLogRecordMaxSize`, `src/include/access/xlogrecord.h`; before 16 what `palloc` gives).
        for _ in 0..(1 << 30) / size.bytes() + 2 {
            let segment = Segment::ending_at(position.timeline, to, size);
            match self.whole_records(segment, to) {
                WholeRecords::Until(end) => return end,
                WholeRecords::Before if segment.number > 0 => to = segment.start(size),
                WholeRecords::Before | WholeRecords::Unknown => break,
            }
        }
        // Nothing that tells: then all counts.
        position.lsn
    }

    /// How far a segment is whole records before `to`: by its file, or, where that is gone, by what was signed about it.
    fn whole_records(&self, segment: Segment, to: Lsn) -> WholeRecords {
        let size = self.size();
        match self.spool.whole_records(segment, size, to.0 - segment.start(size).0) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound && to == segment.next().start(size) => {
                let reader = WalReader::new(self.repository, self.cluster, self.request.trust, Identities::default());
                let head = reader.head(WalFile::Segment(segment)).ok();
                // One that ends no record of its own may still end one that began before: it does not say.
                let end = head.and_then(|head| head.predicate.summary).and_then(|summary| summary.end);
                end.map_or(WholeRecords::Unknown, WholeRecords::Until)
            }
            Err(_) => WholeRecords::Unknown,
        }
    }

    /// What the repository and the spool have. A repository that does not answer is no reason to let the slot grow: then the spool alone
    /// tells, and bytes that are stored again are the same.
    fn take_inventory(&self, place: &mut Place) -> Inventory {
        let mut inventory = Inventory::new(self.size());
        let mut book = self.book();
        let spooled: HashSet<Segment> = place.found.iter().map(|found| found.segment).collect();
        for found in &place.found {
            inventory.add_start(found.segment, found.bytes);
        }
        for lost in &place.lost {
            inventory.add_gap(lost.timeline, lost.from, lost.to);
        }
        drop(book);
        let gaps = || self.repository.store().list(&layout::wal_gaps(self.cluster.system_id));
        let (listed, gaps) = match crate::wal::list(self.repository, self.cluster).and_then(|listed| Ok((listed, gaps()?))) {
            Ok(both) => both,
            Err(error) => {
                if !std::mem::replace(&mut place.listed, true) {
                    self.warn(format!("the repository cannot be listed: {}; going by the spool and the slot", causes::joined(&error)));
                }
                return inventory;
            }
        };
        for (file, _) in &listed {
            inventory.add(*file);
        }
        for gap in gaps.iter().filter_map(|gap| Lost::from_key(&gap.key)) {
            inventory.add_gap(gap.timeline, gap.from, gap.to);
        }
        book = self.book();
        for (file, _) in listed {
            if let WalFile::History(timeline) = file {
                place.histories.insert(timeline);
                book.documents.retain(|document| *document != Document::History(timeline));
            }
            let work = match file {
                WalFile::Segment(segment) => Work::Whole(segment),
                WalFile::Piece { segment, from, to } => Work::Piece { segment, from, to },
                _ => continue,
            };
            if spooled.contains(&work.segment()) {
                book.ledger.found(work);
            }
        }
        self.clean(&mut book);
        inventory
    }

    /// The history of a server's timeline, which goes to the repository before its WAL (c051).
    fn fetch_history(&self, place: &mut Place, connection: &Connection, timeline: Timeline) -> Result<History, Broken> {
        if timeline <= Timeline(1) {
            return Ok(History::root(timeline));
        }
        let bytes = connection.timeline_history(timeline)?;
        let history = History::parse(timeline, &bytes).map_err(|error| PgError::Protocol { reason: error.to_string() })?;
        self.check_history(place, &history)?;
        if place.histories.insert(timeline) {
            if let Err(error) = self.spool.write_history(timeline, &bytes) {
                place.histories.remove(&timeline);
                self.spool_failed(&format!("write the history of timeline {timeline}: {error}"));
                return Err(Broken::Spool);
            }
            let mut book = self.book();
            let document = Document::History(timeline);
            if !book.documents.contains(&document) {
                book.documents.push_back(document);
            }
            drop(book);
            self.changed.notify_all();
        }
        Ok(history)
    }

    /// Compares a server's history with what the spool and the repository have of it and of the timelines that it tells of: of two standbys
    /// that were promoted the same number may have come, and WAL of both in one timeline would be of use to nobody (c061).
    fn check_history(&self, place: &mut Place, history: &History) -> Result<(), Broken> {
        for timeline in history.ancestors().chain([history.timeline]).filter(|timeline| *timeline > Timeline(1)) {
            let spooled = self.spool.history(timeline).map_err(|error| {
                self.spool_failed(&format!("read the history of timeline {timeline}: {error}"));
                Broken::Spool
            })?;
            let known = match spooled.and_then(|bytes| History::parse(timeline, &bytes).ok()) {
                Some(spooled) => spooled,
                None => match place.stored_histories.get(&timeline) {
                    Some(stored) => stored.clone(),
                    None => {
                        let reader = WalReader::new(self.repository, self.cluster, self.request.trust, Identities::default());
                        // None, or nobody can tell: whoever stores this one compares them.
                        let Ok(stored) = crate::wal::archive::history(&reader, timeline) else { continue };
                        place.stored_histories.entry(timeline).or_insert(stored).clone()
                    }
                },
            };
            if !history.agrees_with(&known) {
                let left = |history: &History| {
                    history.parent().map_or_else(|| "none".to_owned(), |parent| format!("{} at {}", parent.timeline, parent.switch))
                };
                return Err(Broken::Refused(format!(
                    "its history has another timeline {timeline} than that of which there is WAL, which left timeline {}; two servers were promoted: \
                     find out which of them is yours, and give what is of the other a repository of its own",
                    left(&known)
                )));
            }
        }
        Ok(())
    }

    /// Looks at the slot, and makes it where it is not there or of no use (c056).
    fn prepare_slot(&self, place: &mut Place, dsn: &Dsn, connection: &Connection) -> Result<Slot, Broken> {
        let name = &self.request.slot;
        let sql = open_sql(dsn);
        let look = || match &sql {
            Ok(sql) => sql.slot(name),
            Err(_) => connection.read_slot(name),
        };
        if let Ok(sql) = &sql {
            self.check_settings(place, sql)?;
        }
        let mut slot = look()?;
        let lost = slot.as_ref().is_some_and(|slot| slot.state == SlotState::Lost || slot.restart_lsn.is_none());
        if lost || (place.recreate && slot.is_some()) {
            self.tell(Event::new(
                EventKind::SlotLost,
                format!("SLOT {name} IS LOST: the server gave up WAL that it should keep; making it anew"),
            ));
            connection.drop_slot(name)?;
            slot = None;
        } else if slot.is_none() && place.had_slot {
            self.tell(Event::new(EventKind::SlotLost, format!("slot {name} is not there: dropped, or this is another server; making it")));
        }
        place.recreate = false;
        if slot.as_ref().is_some_and(|slot| slot.state == SlotState::Unreserved) {
            self.warn(format!("slot {name} is about to be lost: it keeps more than max_slot_wal_keep_size"));
        }
        match slot {
            Some(slot) => Ok(slot),
            None => {
                match connection.create_physical_slot(name) {
                    Ok(()) => self.tell(Event::new(EventKind::SlotCreated, format!("made slot {name}"))),
                    // Somebody was faster.
                    Err(error) if error.sqlstate() == Some("42710") => {}
                    Err(error) => return Err(error.into()),
                }
                Ok(look()?.ok_or_else(|| PgError::protocol(format!("slot {name} is gone as soon as it was made")))?)
            }
        }
    }

    /// Settings of the server without which the chosen mode does not do what its name says.
    fn check_settings(&self, place: &mut Place, sql: &Connection) -> Result<(), Broken> {
        let rows = sql.query(
            "SELECT current_setting('synchronous_standby_names') AS names, current_setting('application_name') AS name, \
             pg_is_in_recovery() AS in_recovery",
            &[],
        )?;
        let row = rows.one()?;
        let name = row.get("name")?.to_owned();
        let names = lifeboat_core::wal::receive::standby_names::StandbyNames::parse(row.get("names")?).ok().flatten();
        let named = names.is_some_and(|names| names.has(&name));
        let standby = row.bool("in_recovery")?;
        let degraded = {
            let mut book = self.book();
            book.name = Some(name.clone());
            book.degraded
        };
        if self.request.mode.is_sync() && self.request.degrade_after.is_some() && !degraded {
            self.see_names(sql)?;
        }
        if place.cursor.is_some() || degraded {
            return Ok(());
        }
        match (self.request.mode.is_sync(), named) {
            (true, _) if standby => self.warn("the server is a standby: no commit waits for its receivers"),
            (true, false) => self.warn(format!("no commit waits for this receiver: synchronous_standby_names does not have {name}")),
            (false, true) => self.warn(format!(
                "synchronous_standby_names has {name}, and in mode stream it answers only every {:?}: set wal.mode = \"sync\", or change one of the names",
                self.request.flush_interval
            )),
            _ => {}
        }
        Ok(())
    }

    /// Notes that WAL is lost, unless the repository has it from somebody else: that is looked at before it is said there.
    fn record_gap(&self, history: &History, from: Position, to: Position, slot: &Slot) -> Result<(), Broken> {
        let mut at = from;
        while at.timeline <= to.timeline && at.lsn < to.lsn {
            let switch = history.switch_from(at.timeline).filter(|_| at.timeline < to.timeline).unwrap_or(to.lsn);
            let end = switch.min(to.lsn);
            // What waits in the spool is not lost, whatever is missing before it.
            let waits = |segment| Ok::<u64, Infallible>(self.book().ledger.written(segment));
            let Ok(lost) = missing(at.timeline, (at.lsn, end), self.size(), waits);
            for (from, to) in lost {
                let record = GapRecord {
                    format: 1,
                    timeline: at.timeline,
                    from,
                    to,
                    found: Timestamp::now(),
                    by: format!("receive on host {}", self.request.host),
                    reason: format!(
                        "the server had removed it when slot {} asked for it; the slot keeps from {}",
                        self.request.slot,
                        slot.restart_lsn.unwrap_or(Lsn::INVALID)
                    ),
                };
                let key = layout::wal_gap(self.cluster.system_id, at.timeline, from, to);
                let name = key.as_str().rsplit('/').next().unwrap_or_default().to_owned();
                let bytes = serde_json::to_vec(&record).expect("a gap has text keys only");
                if let Err(error) = self.spool.write_gap(&name, &bytes) {
                    self.spool_failed(&format!("write the gap {name}: {error}"));
                    return Err(Broken::Spool);
                }
                let document = Document::Gap { name, key };
                let mut book = self.book();
                // One before it may have been written the last time.
                if !book.documents.contains(&document) {
                    book.documents.push_back(document);
                }
                drop(book);
                let text =
                    format!("the server no longer has {from} to {to} of timeline {}; looking whether the repository does", at.timeline);
                self.tell(Event::new(EventKind::Warning, text).at(Position { timeline: at.timeline, lsn: from }));
            }
            let Some(next) = history.entries.iter().map(|entry| entry.timeline).chain([history.timeline]).find(|next| *next > at.timeline)
            else {
                break;
            };
            at = Position { timeline: next, lsn: end };
        }
        self.changed.notify_all();
        Ok(())
    }

    /// The stream's timeline is over, and the next begins in the middle of a segment (c060).
    fn switch(&self, place: &mut Place, connection: &Connection, next: Position) -> Result<(), Broken> {
        let size = self.size();
        let cursor = place.cursor.unwrap_or(next);
        if next.timeline <= cursor.timeline {
            return Err(PgError::protocol(format!("timeline {} after timeline {}", next.timeline, cursor.timeline)).into());
        }
        if next.lsn < cursor.lsn {
            let whole_until = self.whole_until(cursor);
            if next.lsn < whole_until {
                // A session anew, in which this is weighed as with any other server.
                return Err(PgError::ClusterChanged { reason: format!("the server went to timeline {next} before {whole_until}") }.into());
            }
        }
        let history = self.fetch_history(place, connection, next.timeline)?;
        {
            let mut book = self.book();
            // Not only the segment that the stream ends in: of a record that was cut off there may be more behind it.
            book.ledger.close_all(cursor.timeline);
            book.ledger.cut(&history);
            book.ledger.follow(next.timeline);
            book.flushed.leave(cursor.timeline, next.lsn);
            book.timeline = Some(next.timeline);
        }
        place.open = None;
        place.again = None;
        place.cursor = Some(next);
        place.next = Position { timeline: next.timeline, lsn: stream_start(next.lsn, size) };
        self.changed.notify_all();
        self.tell(Event::new(EventKind::TimelineSwitched, format!("timeline {} ended; going on at {next}", cursor.timeline)).at(next));
        Ok(())
    }

    /// Reads one stream until it ends or we are to end.
    fn stream(&self, copy: &mut CopyBoth<'_>, place: &mut Place, interval: Duration, wakeup: &Wakeup) -> Result<StreamEnd, Broken> {
        let timeline = place.next.timeline;
        let mut at = place.next.lsn;
        let mut sent = Acknowledged::default();
        let mut sent_at = Instant::now();
        let mut any = false;
        let mut paused = false;
        let mut stopping: Option<Instant> = None;
        // An idle server never speaks by itself to who answers in time: it has to be asked, as PostgreSQL's own receiver does
        // (`src/backend/replication/walreceiver.c`).
        let (mut heard, mut asked) = (Instant::now(), false);
        let timeout = self.request.server_timeout;
        {
            let mut book = self.book();
            book.activity = Activity::Streaming;
            (book.pressed, book.shuts_down) = (None, false);
        }
        loop {
            let mut reply = false;
            let mut over = false;
            let wait = interval.saturating_sub(sent_at.elapsed()).min(Duration::from_millis(500));
            if paused || stopping.is_some() {
                wakeup.wait(wait.min(Duration::from_millis(100)));
                // What it may have said is not read.
                (heard, asked) = (Instant::now(), false);
            } else {
                let begin = at;
                let mut received = copy.receive_or(wakeup.as_fd(), wait)?;
                let mut spoke = false;
                loop {
                    match received {
                        Received::Idle => break,
                        Received::End => {
                            over = true;
                            break;
                        }
                        Received::Data(message) => match decode(&message).map_err(|e| PgError::protocol(e.to_string()))? {
                            Message::Data { start, server_end, bytes } => {
                                if start != at {
                                    return Err(PgError::protocol(format!("WAL from {start}, expected from {at}")).into());
                                }
                                self.write(place, timeline, at, bytes)?;
                                at = Lsn(at.0 + bytes.len() as u64);
                                any = true;
                                place.server_end = Some(server_end);
                            }
                            Message::Keepalive { server_end, reply: wanted } => {
                                place.server_end = Some(server_end);
                                reply |= wanted;
                            }
                        },
                    }
                    spoke = true;
                    if at.0 - begin.0 >= BATCH_BYTES {
                        break;
                    }
                    received = copy.receive(Duration::ZERO)?;
                }
                // Only now: to write what came may have taken long.
                if spoke {
                    (heard, asked) = (Instant::now(), false);
                }
            }
            let silent = heard.elapsed();
            if silent >= timeout {
                return Err(PgError::TimedOut { reason: format!("it has said nothing for {timeout:?}") }.into());
            }
            wakeup.drain();

            let mut book = self.book();
            if let Some(open) = &place.open {
                book.ledger.wrote(open.segment, open.written);
                if self.request.mode == Mode::SyncSpool && open.written > open.there {
                    let job = SyncJob { segment: open.segment, file: Arc::clone(&open.file), to: open.written, finish: false };
                    // One that waits covers less than this one.
                    book.syncs.retain(|waiting| waiting.segment != job.segment || waiting.finish);
                    book.syncs.push_back(job);
                }
            }
            let cursor = place.cursor.map_or(at, |cursor| if cursor.timeline == timeline { cursor.lsn.max(at) } else { at });
            place.cursor = Some(Position { timeline, lsn: cursor });
            book.received.set(cursor);
            if let Some(end) = place.server_end.take() {
                book.server.set(end);
            }
            // Who asks for an answer may wait for the last bytes: a server that shuts down does, until they are flushed here.
            book.flush = stopping.is_some() || reply || place.target.is_some_and(|target| at >= target);
            let flushed = book.account(self.request.mode);
            let waiting = book.ledger.waiting_bytes();
            let was_paused = std::mem::replace(&mut paused, waiting >= self.request.spool_limit);
            book.activity = if paused { Activity::Paused } else { Activity::Streaming };
            book.paused = if paused { book.paused.or_else(|| Some(Instant::now())) } else { None };
            if flushed >= cursor {
                book.pressed = None;
            } else if reply {
                book.pressed = Some(Instant::now());
            }
            let shuts_down = book.shuts_down;
            let (ended, broken) = (book.ended, !book.broken.is_empty());
            // All that was received when it failed is safe, one way or the other.
            let mended = !broken && any && book.spool_trouble.is_some() && flushed >= book.spool_failed_at;
            if mended {
                (book.spool_trouble, book.spool_failing) = (None, None);
            }
            let stored = book.ledger.stored_until().map_or(Lsn::INVALID, |position| position.lsn);
            let settled = book.ledger.is_settled() && book.documents.is_empty();
            let trouble = book.store_trouble.is_some();
            drop(book);
            self.changed.notify_all();
            if mended {
                self.tell(Event::new(EventKind::SpoolBack, "the spool is written again"));
            }
            if paused != was_paused {
                let event = if paused {
                    Event::new(
                        EventKind::Paused,
                        format!("{waiting} bytes wait for the repository: the stream is not read until they are fewer"),
                    )
                } else {
                    Event::new(EventKind::Resumed, "the stream is read again")
                };
                self.tell(event);
            }
            if broken {
                return Err(Broken::Spool);
            }

            // Nothing is told before the first bytes came: a slot would go back to a place whose WAL may not be there.
            let now = Acknowledged { written: cursor, flushed };
            let ask = silent >= timeout / 2 && !asked;
            if reply || ask || (any && now.flushed != sent.flushed) || sent_at.elapsed() >= interval {
                let told = if any { now } else { Acknowledged::default() };
                copy.send(&status_update(told, Timestamp::now(), ask))?;
                asked |= ask;
                (sent, sent_at) = (now, Instant::now());
            }
            if over {
                return Ok(StreamEnd::Over);
            }
            if ended {
                return Ok(StreamEnd::Stopped);
            }
            if shuts_down {
                return Ok(StreamEnd::Left);
            }
            if place.target.is_some_and(|target| at >= target && stored >= target) && settled {
                return Ok(StreamEnd::Stopped);
            }
            if self.stop.is_asked() {
                let since = *stopping.get_or_insert_with(|| {
                    // Before the reading ends: commits need not wait for our last upload.
                    self.leave();
                    Instant::now()
                });
                if settled || trouble || since.elapsed() > LAST_UPLOAD {
                    return Ok(StreamEnd::Stopped);
                }
            }
        }
    }

    /// Writes WAL to its place in the spool.
    fn write(&self, place: &mut Place, timeline: Timeline, at: Lsn, bytes: &[u8]) -> Result<(), Broken> {
        let size = self.size();
        let (mut at, mut bytes) = (at, bytes);
        while !bytes.is_empty() {
            let segment = Segment::containing(timeline, at, size);
            let offset = at.0 - segment.start(size).0;
            let room = usize::try_from(size.bytes() - offset).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            if self.book().ledger.is_past(segment) {
                // It comes once more because one before it had to, and was stored meanwhile.
                place.open = None;
                if offset + part.len() as u64 == size.bytes() {
                    place.next = Position::start_of(segment.next(), size);
                }
                (at, bytes) = (Lsn(at.0 + part.len() as u64), rest);
                continue;
            }
            if place.open.as_ref().is_none_or(|open| open.segment != segment) {
                place.open = Some(self.open_segment(segment)?);
            }
            let open = place.open.as_mut().expect("opened above");
            if offset == 0
                && let Some(header) = part.first_chunk::<LONG_HEADER_BYTES>()
            {
                check_segment_header(header, segment, size, self.cluster.system_id).map_err(WalError::from).map_err(ReceiveError::from)?;
            }
            let failed = |action: &str, damage, error: io::Error| {
                self.spool_broke(segment, damage, &format!("{action} {}: {error}", segment.file_name(size)));
                Broken::Spool
            };
            let again = usize::try_from(open.there.saturating_sub(offset)).unwrap_or(usize::MAX).min(part.len());
            if again > 0 {
                let mut there = vec![0; again];
                open.file.read_exact_at(&mut there, offset).map_err(|error| failed("read", Damage::Unbelieved, error))?;
                if let Some(differs) = there.iter().zip(part).position(|(a, b)| a != b) {
                    let at = Position { timeline, lsn: Lsn(at.0 + differs as u64) };
                    return Err(ReceiveError::Diverged { at }.into());
                }
            }
            if again < part.len() {
                let written = self.request.disk.write_at(&open.file, &part[again..], offset + again as u64);
                written.map_err(|error| failed("write", Damage::Unwritten, error))?;
                // Behind the bytes: who reads them looks only at what is in here.
                if let Some(checks) = self.book().checks.get_mut(&segment) {
                    checks.add(&part[again..]);
                }
            }
            open.written = open.written.max(offset + part.len() as u64);
            if offset + part.len() as u64 == size.bytes() {
                let mut book = self.book();
                book.ledger.wrote(segment, size.bytes());
                book.syncs.retain(|waiting| waiting.segment != segment);
                book.syncs.push_back(SyncJob { segment, file: Arc::clone(&open.file), to: size.bytes(), finish: true });
                drop(book);
                self.changed.notify_all();
                place.open = None;
                place.next = Position::start_of(segment.next(), size);
            }
            at = Lsn(at.0 + part.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    fn open_segment(&self, segment: Segment) -> Result<OpenSegment, Broken> {
        let size = self.size();
        let believed = self.book().ledger.written(segment);
        let opened = self.spool.open_segment(segment, size, believed, self.request.disk);
        let (file, there) = opened.map_err(|error| {
            self.spool_broke(segment, Damage::Unbelieved, &format!("open {}: {error}", segment.file_name(size)));
            Broken::Spool
        })?;
        let file = Arc::new(file);
        let known = self.book().checks.get(&segment).map(Checks::length);
        if known != Some(there) {
            let mut checks = Checks::default();
            let mut buffer = vec![0; 256 << 10];
            while checks.length() < there {
                let part = buffer.len().min(usize::try_from(there - checks.length()).unwrap_or(usize::MAX));
                if let Err(error) = file.read_exact_at(&mut buffer[..part], checks.length()) {
                    self.spool_broke(segment, Damage::Unbelieved, &format!("read {}: {error}", segment.file_name(size)));
                    return Err(Broken::Spool);
                }
                checks.add(&buffer[..part]);
            }
            self.book().checks.insert(segment, checks);
        }
        let mut book = self.book();
        book.files.insert(segment, Arc::clone(&file));
        book.ledger.wrote(segment, there);
        book.ledger.synced(segment, there);
        Ok(OpenSegment { segment, file, there, written: there })
    }
}

/// How often the server has to hear from us.
fn status_interval(connection: &Connection) -> Result<Duration, PgError> {
    let shown = connection.query("SHOW wal_sender_timeout", &[])?;
    let timeout = parse_time(shown.one()?.text(0)?).filter(|timeout| !timeout.is_zero());
    Ok(timeout.map_or(STATUS_INTERVAL, |timeout| (timeout / 4).clamp(Duration::from_millis(20), STATUS_INTERVAL)))
}

/// A time as `SHOW` prints it: `1min`, `60s`, `500ms`, `0`.
fn parse_time(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.saturating_mul(unit)))
}

/// Which timeline follows, and from where on.
fn next_timeline(rows: &Rows) -> Result<Position, PgError> {
    let row = rows.one()?;
    Ok(Position { timeline: Timeline(row.parse("next_tli")?), lsn: row.parse("next_tli_startpos")? })
}
