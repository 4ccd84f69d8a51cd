//! Every metric that there is. Help texts, `docs/metrics.md`, and the tests of the rules and of the dashboard are made from this table.

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// What kind of number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One that goes up and down.
    Gauge,
    /// One that only goes up, until the program starts again.
    Counter,
    /// Always 1: what it says is in its labels.
    Info,
}

impl Kind {
    /// In a word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Info => "info",
        }
    }

    pub(super) const fn encoded(self) -> MetricType {
        match self {
            Self::Gauge => MetricType::Gauge,
            Self::Counter => MetricType::Counter,
            Self::Info => MetricType::Info,
        }
    }

    /// What the encoder appends to the name by itself.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Gauge => "",
            Self::Counter => "_total",
            Self::Info => "_info",
        }
    }
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// As it is asked for, unit and suffix included.
    pub name: &'static str,
    /// What kind of number.
    pub kind: Kind,
    /// Its labels, beside `system`, which all have.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

impl Metric {
    /// What it is counted in: the end of its name says so.
    pub fn unit(&self) -> Option<Unit> {
        [Unit::Seconds, Unit::Bytes].into_iter().find(|unit| self.stem().ends_with(&format!("_{}", unit.as_str())))
    }

    fn stem(&self) -> &'static str {
        self.name.strip_suffix(self.kind.suffix()).unwrap_or(self.name)
    }

    /// The name without what the encoder appends.
    pub(super) fn base(&self) -> &'static str {
        let unit = self.unit().map_or(0, |unit| unit.as_str().len() + 1);
        &self.stem()[..self.stem().len() - unit]
    }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn info(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Info, labels, help }
}

/// A name for each, and the list of them: what can be written down is in the list.
macro_rules! catalogue {
    ($($constant:ident = $metric:expr;)*) => {
        $(pub(super) const $constant: Metric = $metric;)*
        /// Every metric, in the order in which they are written.
        pub const CATALOGUE: &[Metric] = &[$($constant),*];
    };
}

catalogue! {
    BUILD = info("lifeboat_build_info", &["version"], "The program that looked, always 1");
    LOOKED = gauge("lifeboat_status_timestamp_seconds", &[], "When the system was looked at: everything else is as of then");
    LOOK_TOOK = gauge("lifeboat_status_duration_seconds", &[], "How long looking took");
    UNSEEN = gauge("lifeboat_status_unseen", &[], "How many things could not be looked at");
    UNSEEN_THING = gauge("lifeboat_status_unseen_thing", &["thing"], "1 for each thing that could not be looked at: what hangs on it has no series");

    RECOVERABLE = gauge("lifeboat_recoverable", &[], "1 if a disaster now would be survived, 0 if not; no series if nobody could look");
    ANSWER = gauge("lifeboat_answer", &["verdict"], "1 for the verdict that holds: recoverable, at-risk, not-recoverable or unknown");
    REASONS = gauge("lifeboat_answer_reasons", &[], "How many reasons speak against it");
    RPO = gauge("lifeboat_rpo_seconds", &[], "How much would have been lost if the host had gone when it was looked at");
    RPO_OBJECTIVE = gauge("lifeboat_rpo_objective_seconds", &[], "How much may be lost at most");
    RTO_OBJECTIVE = gauge("lifeboat_rto_objective_seconds", &[], "How long it may take until everything is back");
    DRILL_OBJECTIVE = gauge("lifeboat_drill_age_objective_seconds", &[], "How old the last drill that succeeded may be");
    OBJECTIVE_MET = gauge("lifeboat_objective_met", &["objective"], "1 if the objective is met, 0 if not: rpo, rto or drill");
    WINDOW_START = gauge("lifeboat_recovery_window_start_timestamp_seconds", &[], "The first moment that the system can be brought back to");
    WINDOW_END = gauge("lifeboat_recovery_window_end_timestamp_seconds", &[], "The last moment that the system can be brought back to");

    SERVER_UP = gauge("lifeboat_server_up", &[], "1 if the server answered, 0 if not");
    SERVER_IN_RECOVERY = gauge("lifeboat_server_in_recovery", &[], "1 if the server is a standby or recovers");
    SERVER_TIMELINE = gauge("lifeboat_server_timeline", &[], "The timeline of the server");

    REPOSITORY_UP = gauge("lifeboat_repository_up", &["repository", "part"], "1 if the repository could be read, 0 if not");
    REPOSITORY_MISSED = gauge("lifeboat_repository_missed_objects", &["repository"], "Objects that this host knows a replica missed; no series if it lost count");
    REPOSITORY_MISSED_EVERYTHING = gauge("lifeboat_repository_missed_everything", &["repository"], "1 if this host lost count of what a replica missed");
    REPOSITORY_LACKS = gauge("lifeboat_repository_lacking_backups", &["repository"], "Backups that the primary has and this replica does not");

    BACKUPS = gauge("lifeboat_backups", &["state", "signature"], "Backups that have not expired, by the state of their pages and by their signature");
    BACKUPS_NEWEST = gauge("lifeboat_backups_newest_timestamp_seconds", &["state", "signature"], "The moment that the newest of them keeps");
    BACKUPS_STORED = gauge("lifeboat_backups_stored_bytes", &[], "Bytes that all backups added to the repository when they were taken");
    BACKUPS_EXPIRED = gauge("lifeboat_backups_expired", &[], "Backups that have expired and are whole for the time of grace");
    BACKUPS_PINNED = gauge("lifeboat_backups_pinned", &[], "Backups that a pin holds");
    BACKUP_MOMENT = gauge("lifeboat_backup_timestamp_seconds", &[], "The moment that the backup keeps which a restore would begin with now");
    BACKUP_TOOK = gauge("lifeboat_backup_duration_seconds", &[], "How long that backup took");
    BACKUP_DEGRADED = gauge("lifeboat_backup_degraded", &[], "1 if pages were damaged already where that backup took them from");
    BACKUP_PLAIN = gauge("lifeboat_backup_plain_bytes", &[], "Bytes that restoring that backup writes");
    BACKUP_STORED = gauge("lifeboat_backup_stored_bytes", &[], "Bytes that that backup added to the repository");
    BACKUP_FILES = gauge("lifeboat_backup_files", &[], "Files in that backup");
    BACKUP_ARTIFACTS = gauge("lifeboat_backup_artifacts", &[], "Artifacts in the set of that backup");

    WAL_LAG = gauge("lifeboat_wal_lag_bytes", &[], "WAL that the server has and the repository does not");
    WAL_READY = gauge("lifeboat_wal_ready_files", &[], "Finished files that wait for archive_command");
    WAL_LAST_COMMIT = gauge("lifeboat_wal_last_commit_timestamp_seconds", &[], "Time of the last commit in the repository");
    WAL_WINDOWS = gauge("lifeboat_wal_windows", &[], "Spans of WAL that can be gone back to, any moment of them");
    WAL_SEGMENTS = gauge("lifeboat_wal_segments", &["timeline"], "Segments in the repository");
    WAL_STORED = gauge("lifeboat_wal_stored_bytes", &["timeline"], "Bytes of them in the repository");
    WAL_GAPS = gauge("lifeboat_wal_gaps", &["timeline"], "Holes between them");
    WAL_FINDINGS = gauge("lifeboat_wal_findings", &["severity"], "What is wrong with the way of WAL");
    RECEIVER_STREAMING = gauge("lifeboat_receiver_streaming", &[], "1 if the WAL receiver said of itself that it streams");
    RECEIVER_DEGRADED = gauge("lifeboat_receiver_degraded", &[], "1 if commits go on without the receiver, against what was promised");
    RECEIVER_SPOKE = gauge("lifeboat_receiver_status_timestamp_seconds", &[], "When the receiver last said something of itself");
    RECEIVER_WAITING = gauge("lifeboat_receiver_waiting_bytes", &[], "WAL that the receiver has and the repository does not");
    SLOT_ACTIVE = gauge("lifeboat_slot_active", &["slot"], "1 if somebody is connected to the replication slot");
    SLOT_LOST = gauge("lifeboat_slot_lost", &["slot"], "1 if the slot has lost WAL");
    SLOT_HELD = gauge("lifeboat_slot_held_bytes", &["slot"], "WAL that the server keeps for the slot");
    SLOT_SAFE = gauge("lifeboat_slot_safe_bytes", &["slot"], "WAL that may be written before the slot loses some; no series without a limit");

    ARTIFACTS = gauge("lifeboat_artifacts", &[], "Artifacts in the present set");
    ARTIFACTS_BYTES = gauge("lifeboat_artifacts_bytes", &[], "Bytes of them");
    ARTIFACTS_CHANGED = gauge("lifeboat_artifacts_changed_timestamp_seconds", &[], "When the set last changed");

    DRILLS = gauge("lifeboat_drills", &[], "Drills that have a report in the repository");
    DRILL_AT = gauge("lifeboat_drill_timestamp_seconds", &[], "When the last drill was");
    DRILL_VERDICT = gauge("lifeboat_drill_verdict", &["verdict"], "1 for the verdict of the last drill; no series if nobody who is trusted signed it");
    DRILL_RTO = gauge("lifeboat_drill_rto_seconds", &[], "How long it took in the last drill until everything was back");
    DRILL_VERIFIED = gauge("lifeboat_drill_verified_seconds", &[], "How long it took in the last drill until everything was checked");
    DRILL_RPO = gauge("lifeboat_drill_rpo_seconds", &[], "How much was lost in the last drill");
    DRILL_FAILURES = gauge("lifeboat_drill_failures", &[], "Drills in a row that did not succeed, the last one included");
    DRILL_SUCCESS_AT = gauge("lifeboat_drill_success_timestamp_seconds", &[], "When the last drill was that succeeded");
    DRILL_SUCCESS_RTO = gauge("lifeboat_drill_success_rto_seconds", &[], "How long it took in that one until everything was back");
    DRILL_SUCCESS_RPO = gauge("lifeboat_drill_success_rpo_seconds", &[], "How much was lost in that one");
    DRILL_EVIDENCE = gauge("lifeboat_drill_evidence_findings", &[], "What is wrong with the row of drill reports");

    KEY_END = gauge("lifeboat_key_end_timestamp_seconds", &["key", "what", "state", "signs_here"], "When a key or a certificate ends");
    DISK_FREE = gauge("lifeboat_disk_free_bytes", &["disk", "path"], "Free bytes of a file system that must not fill, for those who are not root");
    DISK_SIZE = gauge("lifeboat_disk_size_bytes", &["disk", "path"], "All bytes of it");

    RUN_START = gauge("lifeboat_run_start_timestamp_seconds", &["operation"], "When the last run of the operation on this host began");
    RUN_END = gauge("lifeboat_run_end_timestamp_seconds", &["operation"], "When it ended; no series while it runs");
    RUN_TOOK = gauge("lifeboat_run_duration_seconds", &["operation"], "How long it took");
    RUN_OUTCOME = gauge("lifeboat_run_outcome", &["operation", "outcome"], "1 for how it ended: running, succeeded, findings, failed or interrupted");
    RUN_EXIT_CODE = gauge("lifeboat_run_exit_code", &["operation"], "Its exit code");
    RUN_FAILURES = gauge("lifeboat_run_failures", &["operation"], "Runs in a row that did not succeed, the last one included");
    RUN_SUCCESS_AT = gauge("lifeboat_run_success_timestamp_seconds", &["operation"], "When one last ended with success");
    RUN_SUCCESS_TOOK = gauge("lifeboat_run_success_duration_seconds", &["operation"], "How long that one took");

    TASK_NEXT = gauge("lifeboat_task_next_timestamp_seconds", &["operation"], "When the agent of this host begins the task next");
    TASK_RUNNING = gauge("lifeboat_task_running", &["operation"], "1 while it runs");
    TASK_SINCE = gauge("lifeboat_task_start_timestamp_seconds", &["operation"], "Since when it runs; no series while it does not");
    TASK_DEADLINE = gauge("lifeboat_task_deadline_seconds", &["operation"], "After this it is ended");
    TASK_ATTEMPT = gauge("lifeboat_task_attempt", &["operation"], "The present try, from 1; 0 if none is due");

    ALERT_FIRING = gauge("lifeboat_alert_firing", &["alertname", "severity"], "Alerts of this kind that hold, as lifeboat judges; 0 if none does");

    AGENT_START = gauge("lifeboat_agent_start_timestamp_seconds", &[], "When the agent began; no series where none writes this");
    AGENT_LEADER = gauge("lifeboat_agent_leader", &[], "1 if this agent acts, 0 if it waits for another one of the system");
    AGENT_DELIVERIES = counter("lifeboat_agent_deliveries_total", &["sink"], "Messages about alerts that were to be sent, since the agent began");
    AGENT_DELIVERY_FAILURES = counter("lifeboat_agent_delivery_failures_total", &["sink"], "Those of them that did not arrive");
    AGENT_TASK_RUNS = counter("lifeboat_agent_task_runs_total", &["operation", "outcome"], "Tasks that ended, since the agent began");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names = BTreeSet::new();
        for metric in CATALOGUE {
            let name = metric.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("lifeboat_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            assert_eq!(name.ends_with("_info"), metric.kind == Kind::Info, "{name}");
            assert!(!name.contains("_timestamp") || name.ends_with("_timestamp_seconds"), "{name}");
            let unit = metric.unit().map(|unit| format!("_{}", unit.as_str())).unwrap_or_default();
            assert_eq!(format!("{}{unit}{}", metric.base(), metric.kind.suffix()), name);
            // OpenMetrics escapes help texts in another way than Prometheus: there is nothing to escape.
            assert!(!metric.help.contains(['\\', '\n', '"', '|']) && !metric.help.ends_with('.'), "{name}");
            let labels: BTreeSet<_> = metric.labels.iter().collect();
            assert_eq!(labels.len(), metric.labels.len(), "{name}");
            assert!(!metric.labels.contains(&"system"), "{name}: all have it");
        }
    }

    #[test]
    fn what_has_no_bound_is_no_label() {
        let bounded = [
            "version",
            "thing",
            "verdict",
            "objective",
            "repository",
            "part",
            "state",
            "signature",
            "timeline",
            "severity",
            "slot",
            "key",
            "what",
            "signs_here",
            "disk",
            "path",
            "operation",
            "outcome",
            "alertname",
            "sink",
        ];
        for label in CATALOGUE.iter().flat_map(|metric| metric.labels) {
            assert!(bounded.contains(label), "{label}: can there be any number of them? backups, runs and messages are no labels");
        }
    }
}
