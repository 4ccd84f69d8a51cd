//! Whose turn it is: of all agents of a system one does the work, and the others wait for it to go.

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::SignedDuration;

use super::{AgentSettings, Shared, lock};
use crate::causes;
use crate::lease::{LeaseError, with_lease_for};
use crate::replace::{Mode, replace};

/// A lease is good for so long after its holder was last heard of. Renewed at a third of it: a few hundred small objects a day.
const TIME: SignedDuration = SignedDuration::from_mins(10);

/// Time between two looks at a lease that is somebody else's, or at a repository that does not answer.
const AGAIN: Duration = Duration::from_secs(30);

/// Time between two looks at our own: a lease that was lost must show soon.
const CHECK: Duration = Duration::from_secs(60);

/// Whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nobody has asked the repository yet.
    NotAsked,
    /// Ours.
    Ours,
    /// Somebody else's.
    Others {
        /// Who says so.
        holder: String,
    },
    /// The repository does not say.
    Unknown {
        /// Why not.
        why: String,
    },
}

/// Takes turns until the agent ends.
pub(super) fn take_turns(shared: &Shared) {
    // A dot is in no system's name, so no group of one is another system.
    let group = shared.settings.group.as_ref().map_or(String::new(), |group| format!(".{group}"));
    let purpose = format!("agent-{}{group}", shared.settings.system);
    let said = RefCell::new(String::new());
    while !shared.stop.is_stopped() {
        let repository = match shared.surroundings.repository() {
            Ok(repository) => repository,
            Err(why) => {
                turns(shared, Turn::Unknown { why });
                shared.stop.wait(AGAIN);
                continue;
            }
        };
        let held = with_lease_for(
            repository.store(),
            &purpose,
            &shared.settings.host,
            TIME,
            |span| shared.stop.wait(span),
            // It comes back every half minute: each thing once, whatever the time in it.
            &|line: &str| {
                let what = line.split(" until ").next().unwrap_or_default();
                if said.replace(what.to_owned()) != what {
                    shared.warn(line);
                }
            },
            |lease| {
                turns(shared, Turn::Ours);
                loop {
                    if shared.stop.wait(CHECK) {
                        return Ok(());
                    }
                    lease.check()?;
                }
            },
        );
        turns(
            shared,
            match held {
                Ok(()) => return,
                Err(LeaseError::Held { holder, .. } | LeaseError::Lost { holder, .. }) => Turn::Others { holder },
                Err(error @ LeaseError::Store(_)) => Turn::Unknown { why: causes::joined(&error) },
            },
        );
        shared.stop.wait(AGAIN);
    }
}

/// Notes whose turn it is, and says it when that is news.
fn turns(shared: &Shared, turn: Turn) {
    let before = std::mem::replace(&mut *lock(&shared.turn), turn.clone());
    if before == turn {
        return;
    }
    remember(shared, &turn);
    match &turn {
        Turn::NotAsked => {}
        Turn::Ours => shared.info("it is this agent's turn: it does what is due"),
        Turn::Others { holder } => shared.info(&format!("it is the turn of {holder}: this agent waits, and does nothing but look")),
        Turn::Unknown { why } => {
            shared.warn(&format!("whose turn it is cannot be found out, so nothing that is due begins: {why}"));
        }
    }
    let _ = shared.wake.try_send(());
}

/// The file in the agent's directory that says that it was ours when that was last known.
const FILE: &str = "turn";

/// What stands in it where it was ours: whose turn at what. A directory that came here with another host's disk, and one of an agent that
/// was given another name, group or repository, say nothing.
fn ours(settings: &AgentSettings) -> String {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let group = settings.group.as_deref().unwrap_or_default();
    let AgentSettings { system, host, repository, .. } = settings;
    format!("ours\nsystem {system}\ngroup {group}\nhost {host}\nmachine {}\nrepository {repository}\n", machine.trim())
}

/// Whether it was this agent's turn when that was last known, by the agent before this one.
pub(super) fn was_ours(directory: &Path, settings: &AgentSettings) -> bool {
    std::fs::read_to_string(directory.join(FILE)).is_ok_and(|text| text == ours(settings))
}

fn remember(shared: &Shared, turn: &Turn) {
    let is_ours = match turn {
        Turn::Ours => true,
        Turn::Others { .. } => false,
        Turn::NotAsked | Turn::Unknown { .. } => return,
    };
    shared.was_ours.store(is_ours, Ordering::Relaxed);
    let path = shared.directory.join(FILE);
    let written = match is_ours {
        true => replace(&path, ours(&shared.settings).as_bytes(), Mode::AtMost(0o644)),
        // A full disk does not keep it.
        false => match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    };
    if let Err(error) = written {
        shared.warn(&format!("the agent could not write down whose turn it is: {error}"));
    }
}
