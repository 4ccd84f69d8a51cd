//! Planning a drill: a restore into a place of its own, and what is done around it.

use serde::Serialize;

use super::{Control, Objectives, Scenario};
use crate::repository::Sha256;
use crate::repository::manifest::Manifest;
use crate::restore::{self, RestorePlan, RestorePlanError, RestoreRequest};

/// What somebody wants drilled.
#[derive(Debug, Clone)]
pub struct DrillRequest {
    /// The drill's id.
    pub id: String,
    /// What is restored, into the drill's place. It is never started by the restore itself, and its archive is off.
    pub restore: RestoreRequest,
    /// What is played through beside the restore.
    pub scenarios: Vec<Scenario>,
    /// What has to be reached.
    pub objectives: Objectives,
    /// Bytes that expensive checks may read.
    pub budget_bytes: u64,
    /// Chooses samples, and what is broken.
    pub seed: u64,
}

/// A drill, as it will be executed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DrillPlan {
    /// The drill's id.
    pub id: String,
    /// The restore.
    pub restore: RestorePlan,
    /// Scenarios, in order.
    pub scenarios: Vec<Scenario>,
    /// Negative controls, in order: always all.
    pub controls: Vec<Control>,
    /// What has to be reached.
    pub objectives: Objectives,
    /// Bytes that expensive checks may read.
    pub budget_bytes: u64,
    /// Chooses samples, and what is broken.
    pub seed: u64,
    /// What happens, in order, in words.
    pub steps: Vec<String>,
}

impl DrillPlan {
    /// The plan's digest: SHA-256 of its JSON.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(&serde_json::to_vec(self).expect("a plan has text keys only"))
    }
}

/// Plans a drill with a backup whose signature was verified.
///
/// # Errors
///
/// As [`restore::plan`]: then the drill fails before anything is written, as the restore would.
pub fn plan(manifest: &Manifest, digest: Sha256, request: DrillRequest) -> Result<DrillPlan, RestorePlanError> {
    let mut wanted = request.restore;
    wanted.start = false;
    wanted.archive_mode = restore::ArchiveMode::Off;
    let restore = restore::plan(manifest, digest, &wanted)?;
    let mut steps =
        vec!["make a directory, a user and a network of its own; nothing outside is written, and the repository is only read".to_owned()];
    steps.extend(restore.steps.iter().cloned());
    if restore.database.is_some() {
        steps.push("compare what was written with PostgreSQL's own manifest of it".into());
        if manifest.truth().is_some() {
            steps.push("recover to the moment at which the rows of the tables were counted, and count again".into());
        }
        steps.push(format!("recover to {}, and take the time of the first query", restore::describe(&wanted.target)));
        steps.push(format!(
            "check catalogs, collations, heap, indexes, visibility maps and pages, expensive ones for {} bytes",
            request.budget_bytes
        ));
        steps.push("ask the user's assertions, run the user's command, write something and restart".into());
    }
    for scenario in &request.scenarios {
        steps.push(format!("play through {}: {}", scenario.name(), scenario.story()));
    }
    steps.push("break things in a view of the repository: every check has to turn red".into());
    steps.push("take everything down, and store the signed report".into());
    Ok(DrillPlan {
        id: request.id,
        restore,
        scenarios: request.scenarios,
        controls: Control::ALL.to_vec(),
        objectives: request.objectives,
        budget_bytes: request.budget_bytes,
        seed: request.seed,
        steps,
    })
}
