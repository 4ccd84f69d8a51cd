//! Looks at the system again and again, by `lifeboat status --json`.

use std::sync::{Arc, PoisonError};

use lifeboat_core::status::Status;

use super::child::{self, How, Work};
use super::{Shared, lock};

/// Bytes that a look may come to: some hundred thousand backups.
const MAX_BYTES: u64 = 256 << 20;

/// Looks until the agent ends.
pub(super) fn look_again_and_again(shared: &Shared) {
    loop {
        let seen = look(shared);
        if shared.stop.is_stopped() {
            return;
        }
        match seen {
            Ok(status) => {
                *shared.status.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(status));
                if lock(&shared.trouble).take().is_some() {
                    shared.info("the system can be looked at again");
                }
            }
            Err(why) => {
                let before = lock(&shared.trouble).replace(why.clone());
                if before.as_ref() != Some(&why) {
                    shared.warn(&format!("the system cannot be looked at: {why}"));
                }
            }
        }
        if shared.stop.wait(shared.settings.interval) {
            return;
        }
    }
}

fn look(shared: &Shared) -> Result<Status, String> {
    let arguments = vec!["status".into(), "--json".into()];
    let deadline = Some(shared.settings.look_deadline);
    let work = Work { name: "status", arguments, end: shared.stop.channel(), deadline, keep: MAX_BYTES };
    let ended = child::run(shared, &work);
    match (ended.how, ended.printed) {
        (How::Trouble(why), _) => Err(why),
        (How::Ended, _) => Err(format!("lifeboat status did not end within {} s", shared.settings.look_deadline.as_secs())),
        (How::Signal(signal), _) => Err(format!("lifeboat status was ended by signal {signal}")),
        (How::Itself, None) => Err("lifeboat status printed more than it should".to_owned()),
        (How::Itself, Some(printed)) => read(&printed).map_err(|why| match ended.exit_code {
            Some(code) => format!("lifeboat status ended with exit code {code}: {why}"),
            None => why,
        }),
    }
}

fn read(printed: &[u8]) -> Result<Status, String> {
    #[derive(serde::Deserialize)]
    struct Failed {
        error: Message,
    }
    #[derive(serde::Deserialize)]
    struct Message {
        message: String,
    }
    if let Ok(failed) = serde_json::from_slice::<Failed>(printed) {
        return Err(failed.error.message);
    }
    serde_json::from_slice(printed).map_err(|error| format!("what it printed is not understood: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_its_own_words() {
        assert_eq!(read(br#"{"error": {"message": "no repository", "hint": null, "exit_code": 2}}"#), Err("no repository".to_owned()));
        assert!(read(b"").unwrap_err().contains("not understood"));
    }
}
