//! Tells people what holds, round after round.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::alert::{self, Alert};
use lifeboat_core::status::{Status, Verdict};

use super::turn::Turn;
use super::{Shared, Tellers, lock};

/// Time between two rounds.
pub const ROUND: Duration = Duration::from_secs(15);

/// What was seen is old after so many looks that did not come.
const LOOKS: u32 = 3;

/// Whether what was seen last is too old to be believed.
fn is_stale(shared: &Shared, status: Option<&Status>, now: Timestamp) -> bool {
    let last = status.map_or(shared.since, |status| status.observed.at);
    let allowed = shared.settings.interval * LOOKS + shared.settings.look_deadline;
    now.duration_since(last).unsigned_abs() > allowed
}

/// What holds now.
fn holds(shared: &Shared, status: Option<&Status>, now: Timestamp) -> Vec<Alert> {
    let mut alerts = status.map(|status| status.alerts.clone()).unwrap_or_default();
    if is_stale(shared, status, now) {
        alerts.insert(0, alert::stale(status.map(|status| status.observed.at), shared.trouble().as_deref(), now));
    }
    alerts
}

/// Tells until the agent ends.
pub(super) fn tell(shared: &Shared, mut tellers: Tellers) {
    let mut said: Vec<(String, String)> = Vec::new();
    let mut beat: Option<Timestamp> = None;
    while !shared.stop.wait(ROUND) {
        // The others would tell everything once more. Where nobody knows whose turn it is, twice is better than never.
        if matches!(shared.turn(), Turn::Others { .. }) {
            continue;
        }
        let now = Timestamp::now();
        let status = shared.status();
        if status.is_none() && !is_stale(shared, None, now) {
            continue;
        }
        let alerts = holds(shared, status.as_deref(), now);
        let deliveries = tellers.notifier.round(&alerts, now);
        for delivery in deliveries {
            let trouble = delivery.error.as_ref().map(ToString::to_string);
            if delivery.sent > 0 || trouble.is_some() {
                let mut counted = lock(&shared.deliveries);
                if let Some(one) = counted.iter_mut().find(|one| one.sink == delivery.sink) {
                    one.total += 1;
                    one.failed += u64::from(trouble.is_some());
                }
            }
            for what in trouble.into_iter().chain(delivery.warning) {
                let line = (delivery.sink.clone(), what);
                // Once for each reason, not every few seconds.
                if !said.contains(&line) {
                    shared.warn(&format!("alert sink {}: {}", line.0, line.1));
                    said.retain(|(sink, _)| *sink != line.0);
                    said.push(line);
                }
            }
            if delivery.error.is_none() && delivery.sent > 0 {
                said.retain(|(sink, _)| *sink != delivery.sink);
            }
        }
        let Some(heartbeat) = &tellers.heartbeat else { continue };
        // What comes with every look; the one who waits for it is told to wait for a few of them.
        let due = beat.is_none_or(|beat| now.duration_since(beat).unsigned_abs() >= shared.settings.interval);
        if due && status.as_deref().is_some_and(|status| is_well(shared, status, now)) {
            beat = Some(now);
            if let Err(error) = heartbeat.beat() {
                let line = ("heartbeat".to_owned(), error.to_string());
                if !said.contains(&line) {
                    shared.warn(&format!("alerts.heartbeat_url: {}", line.1));
                    said.retain(|(sink, _)| sink != "heartbeat");
                    said.push(line);
                }
            } else {
                said.retain(|(sink, _)| sink != "heartbeat");
            }
        }
    }
}

/// The system was just looked at, and could be recovered within its RPO.
fn is_well(shared: &Shared, status: &Status, now: Timestamp) -> bool {
    let recoverable = matches!(status.answer.verdict, Verdict::Recoverable | Verdict::AtRisk);
    recoverable && status.answer.rpo_met == Some(true) && !is_stale(shared, Some(status), now)
}
