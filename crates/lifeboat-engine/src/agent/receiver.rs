//! Keeps the WAL receiver running.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::child::{self, Ended, How, Work};
use super::turn::Turn;
use super::{ReceiverPlan, Shared};
use crate::wal::receive;

/// Time until a receiver that ended is begun again; doubled each time, up to the longest.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// One that ran for so long did its work: what ended it then is another story.
const WELL: Duration = Duration::from_secs(300);

/// Time between two looks at whose turn it is.
const LOOK: Duration = Duration::from_secs(5);

/// So long the first question whose turn it is may take, before it counts as one that is not answered.
const ASKING: Duration = Duration::from_secs(15);

/// Time between two attempts to bring away what waits in the spool of an agent that lost the turn; and where something is left that another attempt
/// does not bring away either.
const DRAIN: Duration = Duration::from_secs(60);
const LEFT: Duration = Duration::from_secs(3600);

/// How long somebody else's slot is left alone before it is asked for again.
const YIELD: Duration = Duration::from_secs(600);

/// Something is left, and another receiver has the slot or the spool: exit codes 3 and 11 of every command (docs/configuration.md).
const FINDINGS: u8 = 3;
const LEASED: u8 = 11;

/// Runs it until the agent ends.
pub(super) fn keep_receiving(shared: &Shared, plan: &ReceiverPlan) {
    let mut pause = SHORTEST;
    // Somebody else was found at work while nobody could say whose turn it is: that one stays at it.
    let mut yields: Option<Instant> = None;
    let mut drain: Option<Instant> = None;
    while !shared.stop.is_stopped() {
        let turn = shared.turn();
        if matches!(turn, Turn::Ours | Turn::Others { .. }) {
            yields = None;
        }
        let blind = match &turn {
            Turn::Ours => false,
            // What was acknowledged here, the other agent's receiver does not have, and the server may not keep.
            Turn::Others { .. } => {
                if drain.is_none_or(|at| Instant::now() >= at) && receive::waits(&plan.spool, &plan.slot) {
                    shared.info("what waits in the spool is brought to the repository: another agent receives by now");
                    let ended = run(shared, &["wal", "receive", "--drain"], |turn| matches!(turn, Turn::Ours));
                    let pause = match ended.exit_code {
                        Some(FINDINGS | LEASED) => LEFT,
                        _ => DRAIN,
                    };
                    if !matches!((&ended.how, ended.exit_code), (How::Ended, _) | (_, Some(0))) {
                        shared.warn(&format!("it is not all there: it is tried again in {} s", pause.as_secs()));
                    }
                    drain = Some(Instant::now() + pause);
                }
                shared.stop.wait(LOOK);
                continue;
            }
            // Commits may be waiting for the receiver, and there is a spool for a repository that is away. Another agent that took over
            // meanwhile has the slot: PostgreSQL gives that to one at a time.
            Turn::NotAsked if shared.begun.elapsed() < ASKING => {
                shared.stop.wait(Duration::from_secs(1));
                continue;
            }
            Turn::NotAsked | Turn::Unknown { .. } => {
                if yields.is_some_and(|at| at.elapsed() < YIELD) || !plan.is_promise || !shared.was_ours.load(Ordering::Relaxed) {
                    shared.stop.wait(LOOK);
                    continue;
                }
                true
            }
        };
        if blind {
            shared.info("the WAL receiver is begun all the same: it was this agent's turn when that was last known");
        }
        let begun = Instant::now();
        let arguments: &[&str] = if blind { &["wal", "receive", "--unless-received"] } else { &["wal", "receive"] };
        let ended = run(shared, arguments, |turn| matches!(turn, Turn::Others { .. }));
        if shared.stop.is_stopped() {
            return;
        }
        let how = match (&ended.how, ended.exit_code) {
            (How::Ended, _) => {
                shared.info("the WAL receiver was ended: another agent has the turn");
                continue;
            }
            (How::Itself, Some(LEASED)) if blind => {
                shared.info("another receiver has the slot: this one waits until it is known whose turn it is");
                yields = Some(Instant::now());
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

/// Runs a command until it ends, or until it is told to, because of whose turn it is by then.
fn run(shared: &Shared, arguments: &[&str], is_over: impl Fn(&Turn) -> bool + Sync) -> Ended {
    let (taken, end) = crossbeam_channel::bounded::<()>(1);
    std::thread::scope(|scope| {
        let (over, done) = crossbeam_channel::bounded::<()>(0);
        let is_over = &is_over;
        scope.spawn(move || {
            while matches!(done.recv_timeout(LOOK), Err(crossbeam_channel::RecvTimeoutError::Timeout)) {
                if is_over(&shared.turn()) {
                    let _ = taken.try_send(());
                }
            }
        });
        let arguments = arguments.iter().map(|word| word.into()).collect();
        let ended = child::run(shared, &Work { name: "wal receive", arguments, end: &end, deadline: None, keep: 0 });
        drop(over);
        ended
    })
}
