//! A bounded number of threads that do the same to every item of a sequence.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Items that wait per thread: enough that none starves, few enough to cost nothing.
pub(super) const WAITING: usize = 16;

/// Does `work` to every item, on `threads` threads (at least one), in no order. The sequence is drawn on
/// this thread. The first error, of the sequence or of the work, stops everything.
pub(crate) fn each<T, E, I>(items: I, threads: usize, work: impl Fn(T) -> Result<(), E> + Sync) -> Result<(), E>
where
    T: Send,
    E: Send,
    I: Iterator<Item = Result<T, E>>,
{
    let threads = threads.max(1);
    let failed = AtomicBool::new(false);
    let error = Mutex::new(None);
    let fail = |e: E| {
        error.lock().expect("no panic while held").get_or_insert(e);
        failed.store(true, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        let (sender, receiver) = crossbeam_channel::bounded::<T>(threads * WAITING);
        for _ in 0..threads {
            let (receiver, work, failed, fail) = (receiver.clone(), &work, &failed, &fail);
            scope.spawn(move || {
                for item in receiver {
                    // Drains what is left after a failure, so that the sender never blocks for ever.
                    if !failed.load(Ordering::Relaxed)
                        && let Err(e) = work(item)
                    {
                        fail(e);
                    }
                }
            });
        }
        drop(receiver);
        for item in items {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            match item {
                Ok(item) => {
                    if sender.send(item).is_err() {
                        break;
                    }
                }
                Err(e) => {
                    fail(e);
                    break;
                }
            }
        }
    });
    error.into_inner().expect("no panic while held").map_or(Ok(()), Err)
}
