//! Makes the spool durable, on a thread of its own: a disk that takes seconds must not keep keepalives from being answered.

use std::time::{Duration, Instant};

use super::{Event, EventKind, Mode, Receiver};

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
                Err(error) => self.spool_broke(job.segment, &format!("sync {}: {error}", job.segment.file_name(size))),
            }
        }
    }

    /// What was written of a segment since it was synced last cannot be believed: the stream has to begin anew with it.
    pub(super) fn spool_broke(&self, segment: lifeboat_core::wal::Segment, reason: &str) {
        let mut book = self.book();
        book.syncs.retain(|job| job.segment != segment);
        book.broken.get_or_insert((segment, reason.to_owned()));
        let news = book.spool_trouble.replace(reason.to_owned()).is_none();
        if news {
            book.spool_failed_at = book.received.lsn;
            book.spool_failing = Some(Instant::now());
        }
        drop(book);
        self.waker.wake();
        if news {
            self.tell(Event::new(EventKind::SpoolFailing, format!("THE SPOOL CANNOT BE WRITTEN, nothing is acknowledged: {reason}")));
        }
    }
}
