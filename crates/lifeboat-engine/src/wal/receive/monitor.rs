//! Tells how the receiver is: `status.json`, a line now and then, and whether its promise is kept.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::wal::{Lsn, SystemId, Timeline};
use serde::Serialize;

use super::{Activity, Receiver, Stamped, is_due, stream};

/// Between two files.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// A server that shuts down asks its receivers again and again; one that did not ask for so long does not.
const PRESSED: Duration = Duration::from_secs(5);

/// After how long nothing could be stored, though the store says nothing, or the stream was not read, it is looked whether the server waits for us.
const STUCK: Duration = Duration::from_secs(30);
const UNREAD: Duration = Duration::from_secs(5);

/// Between two looks.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// Between two lines for people.
const PROGRESS_EVERY: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct StatusFile {
    format: u32,
    pid: u32,
    updated: Timestamp,
    state: &'static str,
    slot: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    system_id: SystemId,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Timeline>,
    received: Lsn,
    received_at: Timestamp,
    spooled: Lsn,
    spooled_at: Timestamp,
    stored: Lsn,
    stored_at: Timestamp,
    acknowledged: Lsn,
    acknowledged_at: Timestamp,
    server: Lsn,
    server_at: Timestamp,
    waiting_bytes: u64,
    degraded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    store_trouble: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spool_trouble: Option<String>,
    last_event: String,
}

impl Receiver<'_> {
    /// Works until the receiver ends.
    pub(super) fn monitor(&self) {
        let mut told: Option<Instant> = None;
        let mut written: Option<Instant> = None;
        let mut last_event = String::new();
        loop {
            let book = self.book();
            if book.ended {
                return;
            }
            let news = book.last_event != last_event;
            last_event.clone_from(&book.last_event);
            let status = book.status();
            drop(book);
            if is_due(&mut written, if news { Duration::ZERO } else { STATUS_EVERY }) {
                self.write_status();
                self.note_again();
            }
            if status.host.is_some() && is_due(&mut told, PROGRESS_EVERY) {
                self.watcher.progress(&status);
            }
            self.watch_promise();
            self.watch_shutdown();
            // Not the condition that everything else is told by: this would run for every batch.
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Looks whether the server shuts down. A server that does waits until its receivers have flushed all, for as long as they answer
    /// (`WalSndDone` in `src/backend/replication/walsender.c`): with the repository away that is for ever, and nothing in the stream tells. But
    /// it takes no new connections.
    fn watch_shutdown(&self) {
        let mut book = self.book();
        let long = |since: Option<Instant>, time| since.is_some_and(|since| since.elapsed() >= time);
        let pressed = book.pressed.is_some_and(|at| at.elapsed() < PRESSED);
        let waits = pressed && (book.store_trouble.is_some() || long(book.stalled, STUCK)) || long(book.paused, UNREAD);
        let Some(dsn) = book.sql_dsn.clone().filter(|_| waits) else { return };
        if !is_due(&mut book.probed, PROBE_EVERY) {
            return;
        }
        drop(book);
        // cannot_connect_now
        if stream::open_sql(&dsn).is_err_and(|error| error.sqlstate() == Some("57P03")) {
            self.book().shuts_down = true;
            self.waker.wake();
        }
    }

    /// Replaces `status.json`.
    pub(super) fn write_status(&self) {
        let mut book = self.book();
        book.look();
        let Stamped { lsn: received, at: received_at } = book.received;
        let Stamped { lsn: spooled, at: spooled_at } = book.spooled;
        let Stamped { lsn: stored, at: stored_at } = book.stored;
        let Stamped { lsn: acknowledged, at: acknowledged_at } = book.acknowledged;
        let Stamped { lsn: server, at: server_at } = book.server;
        let file = StatusFile {
            format: 1,
            pid: std::process::id(),
            updated: Timestamp::now(),
            state: match book.activity {
                Activity::Connecting => "connecting",
                Activity::Streaming => "streaming",
                Activity::Paused => "paused",
                Activity::Stopped => "stopped",
            },
            slot: self.request.slot.clone(),
            name: book.name.clone(),
            mode: self.request.mode.name(),
            host: book.host.clone(),
            system_id: self.cluster.system_id,
            timeline: book.timeline,
            received,
            received_at,
            spooled,
            spooled_at,
            stored,
            stored_at,
            acknowledged,
            acknowledged_at,
            server,
            server_at,
            waiting_bytes: book.ledger.waiting_bytes(),
            degraded: book.degraded,
            store_trouble: book.store_trouble.clone(),
            spool_trouble: book.spool_trouble.clone(),
            last_event: book.last_event.clone(),
        };
        drop(book);
        if let Ok(mut bytes) = serde_json::to_vec_pretty(&file) {
            bytes.push(b'\n');
            // A spool that is full is told of elsewhere.
            let _ = self.spool.replace("status.json", &bytes);
        }
    }
}
