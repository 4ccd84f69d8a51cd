//! Systems as they may be seen, from `testdata/status/`, and an agent that shows them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::alert::Terms;
use lifeboat_core::drill::DrillId;
use lifeboat_core::status::{BackupSeen, BackupState, Observed, SignatureState, Status, assess};
use lifeboat_engine::web::{AgentView, DrillPageError, Part, Running, Server, Source};
use serde_json::Value;

/// What was seen, as it was written down.
pub(crate) fn observed(name: &str) -> Observed {
    let path = format!("{}/../../testdata/status/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The same, as if it had been seen then: every moment moves with it, but one that would fall out of time.
pub(crate) fn observed_at(name: &str, at: Timestamp) -> Observed {
    fn shift(value: &mut Value, by: SignedDuration) {
        match value {
            Value::String(text) => {
                if let Some(time) = text.parse::<Timestamp>().ok().and_then(|time| time.checked_add(by).ok()) {
                    *text = time.to_string();
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| shift(value, by)),
            Value::Object(members) => members.values_mut().for_each(|value| shift(value, by)),
            _ => {}
        }
    }
    let as_written = observed(name);
    let by = at.duration_since(as_written.at);
    let mut value = serde_json::to_value(as_written).unwrap();
    shift(&mut value, by);
    serde_json::from_value(value).unwrap()
}

pub(crate) fn judged(observed: Observed) -> Status {
    let terms = Terms::for_rpo(Duration::from_secs(observed.objectives.rpo_seconds));
    assess(observed, &terms)
}

/// A system with so many backups, one an hour; every hundredth is degraded, every thousandth unreadable.
pub(crate) fn with_backups(count: usize, at: Timestamp) -> Observed {
    let mut observed = observed_at("well", at);
    let one = observed.backups.as_ref().unwrap()[0].clone();
    let of = |number: usize| -> BackupSeen {
        let taken = at - SignedDuration::from_hours(number as i64) - SignedDuration::from_mins(20);
        let state = match number {
            0 => BackupState::Healthy,
            _ if number.is_multiple_of(1000) => BackupState::Unreadable,
            _ if number.is_multiple_of(100) => BackupState::Degraded,
            _ => BackupState::Healthy,
        };
        let problem = (state != BackupState::Healthy).then(|| "pages do not have the checksum that they name".to_owned());
        let id = format!("conductor-backup-{}", taken.strftime("%Y%m%dT%H%M%SZ"));
        BackupSeen {
            id,
            started: Some(taken),
            ended: Some(taken),
            consistent_at: Some(taken),
            state,
            signature: SignatureState::Valid,
            problem,
            ..one.clone()
        }
    };
    observed.backups = Some((0..count).map(of).collect());
    observed
}

pub(crate) fn agent(since: Timestamp) -> AgentView {
    AgentView {
        name: "conductor".into(),
        host: "db1".into(),
        program: "lifeboat 0.1.0".into(),
        since,
        part: Part::Leader,
        interval_seconds: 60,
        trouble: None,
        runbook_url: None,
    }
}

/// Shows what it is given.
pub(crate) struct Shown {
    pub(crate) status: Mutex<Option<Arc<Status>>>,
    pub(crate) agent: Mutex<AgentView>,
    pub(crate) ready: Mutex<Result<(), String>>,
    pub(crate) alive: Mutex<bool>,
    /// Held by whoever wants readers of drills to wait.
    pub(crate) drills: Mutex<()>,
}

impl Shown {
    pub(crate) fn new(status: Option<Status>) -> Arc<Self> {
        Arc::new(Self {
            status: Mutex::new(status.map(Arc::new)),
            // Nothing gets old while a test runs.
            agent: Mutex::new(AgentView { interval_seconds: 3600, ..agent(Timestamp::now() - SignedDuration::from_hours(99)) }),
            ready: Mutex::new(Ok(())),
            alive: Mutex::new(true),
            drills: Mutex::new(()),
        })
    }

    /// A system of `testdata/status/` that was looked at some seconds ago.
    pub(crate) fn sample(name: &str) -> Arc<Self> {
        Self::new(Some(judged(observed_at(name, Timestamp::now() - SignedDuration::from_secs(3)))))
    }

    pub(crate) fn serve(self: &Arc<Self>) -> Running {
        Server::start("127.0.0.1:0".parse().unwrap(), &["status.conductor.example".to_owned()], self.clone()).unwrap()
    }
}

/// The page of the one drill that there is.
pub(crate) const DRILL: &str = "conductor-drill-20240303T040000Z";

impl Source for Shown {
    fn status(&self) -> Option<Arc<Status>> {
        self.status.lock().unwrap().clone()
    }

    fn agent(&self) -> AgentView {
        self.agent.lock().unwrap().clone()
    }

    fn metrics(&self, open_metrics: bool) -> Option<String> {
        Some(if open_metrics { "lifeboat_up 1\n# EOF\n".to_owned() } else { "lifeboat_up 1\n".to_owned() })
    }

    fn drill_page(&self, id: &DrillId) -> Result<Vec<u8>, DrillPageError> {
        let _waits = self.drills.lock().unwrap();
        match id.to_string().as_str() {
            DRILL => {
                let report = std::fs::read(format!("{}/../../testdata/drills/passed.json", env!("CARGO_MANIFEST_DIR"))).unwrap();
                let report = serde_json::from_slice(&report).unwrap();
                let nothing = lifeboat_engine::drill::evidence::History { entries: Vec::new(), older: 0, findings: Vec::new() };
                Ok(lifeboat_engine::drill::page::render(&report, lifeboat_core::repository::Sha256([0; 32]), &nothing).into_bytes())
            }
            "conductor-drill-20240101T040000Z" => Err(DrillPageError::NotProven("the key is not configured as trusted".into())),
            "conductor-drill-20240102T040000Z" => Err(DrillPageError::Trouble("the store did not answer <b>".into())),
            _ => Err(DrillPageError::Missing),
        }
    }

    fn live(&self) -> bool {
        *self.alive.lock().unwrap()
    }

    fn ready(&self) -> Result<(), String> {
        self.ready.lock().unwrap().clone()
    }
}
