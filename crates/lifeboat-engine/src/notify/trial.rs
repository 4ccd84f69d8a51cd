//! Trying out who is told: an alert that means nothing, and its end.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::alert::book::{Message, Notice};
use lifeboat_core::alert::{Severity, trial};

use super::{Arrived, NamedSink, NotifyError, System};

/// What became of the trial of one sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The sink.
    pub sink: String,
    /// The alert.
    pub alert: Result<Arrived, NotifyError>,
    /// Its end; `None`: it was not sent, because the alert did not arrive.
    pub resolution: Option<Result<Arrived, NotifyError>>,
}

/// Sends each sink an alert and, after `hold`, its end; all at the same time. Waits for each for `patience` beyond that.
pub fn try_out(sinks: Vec<NamedSink>, system: &System, hold: Duration, patience: Duration) -> Vec<Tried> {
    let begun = Instant::now();
    let system = Arc::new(system.clone());
    let waiting: Vec<_> = sinks
        .into_iter()
        .map(|to| {
            let (said, answer) = channel();
            let (system, name) = (Arc::clone(&system), to.name.clone());
            let _ = std::thread::Builder::new().name("alert".to_owned()).spawn(move || {
                let _ = said.send(try_one(&to, &system, hold));
            });
            (name, answer)
        })
        .collect();
    let end = begun + hold + patience;
    let tried = waiting.into_iter().map(|(sink, answer)| match answer.recv_timeout(end.saturating_duration_since(Instant::now())) {
        Ok((alert, resolution)) => Tried { sink, alert, resolution },
        Err(_) => {
            let error = NotifyError::Unreachable(format!("no answer within {} s", begun.elapsed().as_secs()));
            Tried { sink, alert: Err(error), resolution: None }
        }
    });
    tried.collect()
}

type Answer = Result<Arrived, NotifyError>;

fn try_one(to: &NamedSink, system: &System, hold: Duration) -> (Answer, Option<Answer>) {
    // A warning, where warnings are told: nobody has to be woken.
    let severity = if to.min_severity == Severity::Warning { Severity::Warning } else { Severity::Critical };
    let since = Timestamp::now();
    let notice = |seen: Timestamp, again: bool| Notice { alert: trial(severity), since, seen, again };
    let alert = to.sink.send(system, &Message { firing: vec![notice(since, false)], resolved: Vec::new() }, since);
    if alert.is_err() {
        return (alert, None);
    }
    std::thread::sleep(hold);
    let now = Timestamp::now();
    let resolution = to.sink.send(system, &Message { firing: Vec::new(), resolved: vec![notice(now, true)] }, now);
    (alert, Some(resolution))
}
