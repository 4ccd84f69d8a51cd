//! What a signal does: it ends the process, unless a command runs that ends itself in order.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static ON_STOP: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();
static STOPPED: AtomicBool = AtomicBool::new(false);

/// The first signal calls this; the second ends the process as it would have without.
pub(crate) fn on_stop(stop: impl Fn() + Send + Sync + 'static) {
    let _ = ON_STOP.set(Box::new(stop));
}

/// Asks the command that runs to end; false: there is none that does so, or it was asked before.
fn stop() -> bool {
    match ON_STOP.get() {
        Some(on_stop) if !STOPPED.swap(true, Ordering::SeqCst) => {
            on_stop();
            true
        }
        _ => false,
    }
}

/// Ends the process when it is told to. What is half-written has no name yet: objects get theirs when
/// they are whole, a backup with its manifest, a restored cluster with its `pg_control`.
pub(crate) fn watch() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if !stop() {
                end();
            }
        }
    });
}

/// Ends the process as interrupted.
pub(crate) fn end() -> ! {
    crate::output::interrupted();
    crate::traces::end(crate::failure::EXIT_INTERRUPTED, Some("interrupted"), crate::traces::HURRY);
    std::process::exit(i32::from(crate::failure::EXIT_INTERRUPTED));
}
