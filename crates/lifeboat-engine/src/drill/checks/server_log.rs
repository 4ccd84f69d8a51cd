//! Is the server's log free of errors?

use lifeboat_core::drill::server_log::judge;
use lifeboat_core::drill::{Check, CheckResult, Outcome};

pub use lifeboat_core::drill::server_log::LogPart;

use super::timed;

/// Judges what the server logged, from its first line. The place runs it with `lc_messages = C`. What was logged while the user's own
/// command ran is a part of its own, with `provoked`; everything that the other checks provoke is kept out of the log by them.
pub fn server_log(parts: &[LogPart<'_>]) -> CheckResult {
    timed(|| {
        let read = judge(parts);
        if read.messages == 0 {
            // A server that starts says so: without a line the log is not this server's, or in another language.
            return CheckResult::new(Check::Log, Outcome::NotChecked, "the log has no message that could be read");
        }
        let (outcome, reason) = match (read.bad, read.findings.first()) {
            (0, _) | (_, None) => (Outcome::Passed, format!("{} messages, none of them an error that nobody provoked", read.messages)),
            (1, Some(first)) => (Outcome::Failed, first.clone()),
            (bad, Some(first)) => (Outcome::Failed, format!("{first}, and {} more", bad - 1)),
        };
        CheckResult::new(Check::Log, outcome, reason)
            .of(read.messages, read.messages, "messages", None)
            .with(read.findings.into_iter().chain(read.notes))
    })
}
