//! Makes the spool durable, on a thread of its own: a disk that takes seconds must not keep keepalives from being answered.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_core::wal::Segment;

use super::{Damage, Event, EventKind, Mode, Receiver};

impl Receiver<'_> {
    /// Works until the receiver ends.
    pub(super) fn sync_spool(&self) {
        loop {
            let mut book = self.book();
            let job = loop {
                if let Some(job) = book.syncs.pop_front() {
                    break job;
                }
                if book.ended {
                    return;
                }
                book = self.changed.wait_timeout(book, Duration::from_secs(1)).expect("no panic while held").0;
            };
            drop(book);
            let size = self.size();
            let mut result = self.request.disk.sync(&job.file);
            // Put aside in the meantime: that says nothing of the file that has its name now.
            let is_stale = || {
                let book = self.book();
                let current = book.files.get(&job.segment).is_some_and(|file| Arc::ptr_eq(file, &job.file));
                !current && book.ledger.holds(job.segment)
            };
            if result.is_ok() && is_stale() {
                continue;
            }
            if result.is_ok() && job.finish {
                result = self.spool.finish(job.segment, size);
            }
            match result {
                Ok(()) => {
                    let mut book = self.book();
                    book.ledger.synced(job.segment, job.to);
                    // Removed in the meantime because it was stored: its name must not come back.
                    if job.finish && !book.ledger.holds(job.segment) {
                        self.spool.remove(job.segment, size);
                    }
                    drop(book);
                    if self.request.mode == Mode::SyncSpool {
                        self.waker.wake();
                    }
                }
                // Stored, and removed from the spool, in the meantime.
                Err(_) if !self.book().ledger.holds(job.segment) => {}
                Err(error) => self.spool_broke(job.segment, Damage::Unbelieved, &format!("sync {}: {error}", job.segment.file_name(size))),
            }
        }
    }

    /// The stream has to begin anew with a segment.
    pub(super) fn spool_broke(&self, segment: Segment, damage: Damage, reason: &str) {
        let mut book = self.book();
        if damage == Damage::Unbelieved {
            book.syncs.retain(|job| job.segment != segment);
        }
        let known = book.broken.entry(segment).or_insert(damage);
        *known = damage.max(*known);
        let news = book.spool_fails(reason);
        drop(book);
        self.waker.wake();
        self.tell_spool_fails(news, reason);
    }

    /// Something small could not be written to the spool; whoever needs it tries again.
    pub(super) fn spool_failed(&self, reason: &str) {
        let news = self.book().spool_fails(reason);
        self.tell_spool_fails(news, reason);
    }

    fn tell_spool_fails(&self, news: bool, reason: &str) {
        if news {
            self.tell(Event::new(EventKind::SpoolFailing, format!("THE SPOOL CANNOT BE WRITTEN, nothing is acknowledged: {reason}")));
        }
    }
}
