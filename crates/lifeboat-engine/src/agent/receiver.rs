//! Keeps the WAL receiver running.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Shared;
use super::child::{self, How, Work};
use super::turn::Turn;

/// Time until a receiver that ended is begun again; doubled each time, up to the longest.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// One that ran for so long did its work: what ended it then is another story.
const WELL: Duration = Duration::from_secs(300);

/// Time between two looks at whose turn it is.
const LOOK: Duration = Duration::from_secs(5);

/// Runs it until the agent ends.
pub(super) fn keep_receiving(shared: &Shared) {
    let mut pause = SHORTEST;
    while !shared.stop.is_stopped() {
        // A repository that does not answer is what the spool is for; but the slot is for one, and the others wait.
        let is_ours = match shared.turn() {
            Turn::Ours => true,
            Turn::NotAsked | Turn::Others { .. } => false,
            // Commits may be waiting for the receiver. Should another agent have taken over meanwhile, its receiver has the slot, and PostgreSQL
            // gives that to one at a time.
            Turn::Unknown { .. } => shared.was_ours.load(Ordering::Relaxed),
        };
        if !is_ours {
            shared.stop.wait(LOOK);
            continue;
        }
        if matches!(shared.turn(), Turn::Unknown { .. }) {
            shared.info("the WAL receiver is begun all the same: it was this agent's turn when that was last known");
        }
        let begun = Instant::now();
        let (taken, end) = crossbeam_channel::bounded::<()>(1);
        let ended = std::thread::scope(|scope| {
            let (over, is_over) = crossbeam_channel::bounded::<()>(0);
            scope.spawn(move || {
                while matches!(is_over.recv_timeout(LOOK), Err(crossbeam_channel::RecvTimeoutError::Timeout)) {
                    if matches!(shared.turn(), Turn::Others { .. }) {
                        let _ = taken.try_send(());
                    }
                }
            });
            let work = Work { name: "wal receive", arguments: vec!["wal".into(), "receive".into()], end: &end, deadline: None, keep: 0 };
            let ended = child::run(shared, &work);
            drop(over);
            ended
        });
        if shared.stop.is_stopped() {
            return;
        }
        let how = match (&ended.how, ended.exit_code) {
            (How::Ended, _) => {
                shared.info("the WAL receiver was ended: another agent has the turn");
                continue;
            }
            (How::Trouble(why), _) => why.clone(),
            (How::Signal(signal), _) => format!("signal {signal} ended it"),
            (How::Itself, Some(code)) => format!("it ended with exit code {code}"),
            (How::Itself, None) => "it ended".to_owned(),
        };
        pause = if begun.elapsed() >= WELL { SHORTEST } else { (pause * 2).min(LONGEST) };
        shared.warn(&format!("the WAL receiver does not run: {how}; it is begun again in {} s", pause.as_secs()));
        shared.stop.wait(pause);
    }
}
