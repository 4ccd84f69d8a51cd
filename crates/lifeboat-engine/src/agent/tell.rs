//! Tells people what holds, round after round.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::alert::{self, Alert};
use lifeboat_core::status::{Status, Verdict};

use super::turn::Turn;
use super::{Shared, Tellers, lock};

/// A sink that was not reached for so long is told of, to the others and to whoever misses us.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

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

/// Sinks that are not reached: since when, by a clock that nobody sets, and why.
#[derive(Default)]
struct Unreached(BTreeMap<String, (Instant, String)>);

impl Unreached {
    fn note(&mut self, sink: &str, trouble: Option<&str>) {
        match trouble {
            None => drop(self.0.remove(sink)),
            Some(why) => self.0.entry(sink.to_owned()).or_insert_with(|| (Instant::now(), String::new())).1 = why.to_owned(),
        }
    }

    fn alerts(&self, patience: Duration) -> Vec<Alert> {
        let long = self.0.iter().map(|(sink, (since, why))| (sink, since.elapsed(), why)).filter(|(_, span, _)| *span >= patience);
        long.map(|(sink, span, why)| alert::unreached(sink, span.as_secs(), why)).collect()
    }
}

/// What the agent itself knows of: that nobody could look, and that somebody could not be told.
fn own(shared: &Shared, status: Option<&Status>, unreached: &Unreached, now: Timestamp) -> Vec<Alert> {
    let stale =
        is_stale(shared, status, now).then(|| alert::stale(status.map(|status| status.observed.at), shared.trouble().as_deref(), now));
    stale.into_iter().chain(unreached.alerts(PATIENCE)).collect()
}

/// Tells until the agent ends.
pub(super) fn tell(shared: &Shared, mut tellers: Tellers) {
    let mut said: Vec<(String, String)> = Vec::new();
    let mut beat: Option<Timestamp> = None;
    let mut unreached = Unreached::default();
    while !shared.stop.wait(ROUND) {
        let now = Timestamp::now();
        let status = shared.status();
        if status.is_none() && !is_stale(shared, None, now) {
            continue;
        }
        let own = own(shared, status.as_deref(), &unreached, now);
        lock(&shared.own).clone_from(&own);
        let seen = status.iter().flat_map(|status| status.alerts.iter().cloned());
        let alerts: Vec<Alert> = own.into_iter().chain(seen).collect();
        // The others would tell everything once more, but know nothing of this host. Where nobody knows whose turn it is, twice is better than never.
        let waits = matches!(shared.turn(), Turn::Others { .. });
        let scope = |alert: &Alert| !waits || alert::is_of_host(alert);
        // Before the first look nobody knows anything of what was told before.
        let unknown = |alert: &Alert| match &status {
            Some(status) => !alert::is_known(&status.observed, alert),
            None => !alert::is_of_agent(alert),
        };
        let deliveries = tellers.notifier.round_of(&alerts, now, scope, unknown);
        for delivery in deliveries {
            let trouble = delivery.error.as_ref().map(ToString::to_string);
            unreached.note(&delivery.sink, trouble.as_deref());
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
        let Some(heartbeat) = tellers.heartbeat.as_ref().filter(|_| !waits && unreached.alerts(PATIENCE).is_empty()) else { continue };
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
