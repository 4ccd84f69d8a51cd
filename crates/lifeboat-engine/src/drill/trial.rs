//! Restores for scenarios: once more, in a place of its own, to a first answer, and away again.

use lifeboat_core::drill::Scenario;
use lifeboat_core::drill::plan::DrillPlan;
use lifeboat_core::restore::{self as planning, RestoreRequest};
use lifeboat_core::verify::Finding;

use super::controls::one_line;
use super::ground;
use super::place::{Goal, Place, PlaceSettings, Server, StopMode};
use super::restored::fed;
use super::run::{DrillSettings, around};
use super::scenarios::{Restores, Trial};
use crate::artifacts::{ArtifactSet, Reader, restore_set};
use crate::opened_backup;
use crate::repository::Repository;
use crate::restore;
use crate::verify::artifact_finding;
use lifeboat_core::drill::Outcome;

/// Whoever restores.
pub(super) struct Trials<'a> {
    pub(super) settings: &'a DrillSettings<'a>,
    pub(super) plan: &'a DrillPlan,
}

impl Restores for Trials<'_> {
    fn trial(&self, repository: &Repository, request: &RestoreRequest, scenario: Scenario) -> Result<Trial, String> {
        let settings = PlaceSettings { drill: format!("{}.{}", self.plan.id, scenario.name()), ..self.settings.place.clone() };
        let place = Place::make_known(&settings, self.settings.on_place).map_err(one_line)?;
        let tried = self.restore(repository, request, &place);
        let removed = place.remove();
        let mut trial = tried?;
        if removed.outcome != Outcome::Passed {
            return Err(format!("something was left behind: {}", removed.reason));
        }
        trial.read_around = around(repository).len();
        Ok(trial)
    }
}

impl Trials<'_> {
    fn restore(&self, repository: &Repository, request: &RestoreRequest, place: &Place) -> Result<Trial, String> {
        let ground = self.settings.ground;
        // As if nothing were known yet: the signature comes first here as well.
        let backup = opened_backup::open(repository, &ground.backup.id, ground.trust).map_err(one_line)?;
        let mut request = ground::into_place(request.clone(), &backup.manifest, place.directory());
        if self.plan.restore.database.is_none() {
            request.pgdata = None;
        }
        let way = ground::way(repository, ground.trust, ground.identities, &backup, &request, ground.temporary).map_err(one_line)?;
        request.recovery = way.as_ref().map(|way| way.recovery());
        request.accept_degraded = self.plan.restore.degraded;
        let plan = planning::plan(&backup.manifest, backup.digest, &request).map_err(one_line)?;
        let settings = self.settings.restore_settings(place);
        let mut trial = Trial::default();
        restore::run(repository, &backup, &plan, &settings, ground.progress).map_err(one_line)?;
        if let Some(database) = &plan.database {
            let major = database.version_num.unwrap_or(0) / 10_000;
            let started = fed(self.settings, way.as_ref(), place, repository, |command| {
                let start = self.settings.start(Goal::Writable, database.settings.clone(), command);
                Server::start(place, self.settings.bin_directory, major, &start).map_err(one_line)
            })?;
            let (server, fed) = started;
            let server = server.map_err(|error| fed.failed.first().map_or(error.clone(), |why| format!("{error}: {why}")))?;
            if database.copy.is_physical() {
                let recovered = server.recovered().map_err(one_line)?;
                trial.reached = Some(recovered.lsn);
                trial.planned = way.as_ref().map(|way| way.choice.end);
            }
            server.stop(StopMode::Immediate).map_err(one_line)?;
        }
        if let Some(entry) = backup.manifest.artifacts.as_ref().filter(|_| plan.artifacts.is_some()) {
            let reader = Reader::new(repository, ground.trust, ground.identities.clone());
            let set = ArtifactSet::new(repository.store(), entry.runs.clone());
            let report = restore_set(&reader, set, (entry.count, entry.bytes), &place.artifacts(), ground.workers, ground.progress);
            let report = report.map_err(one_line)?;
            trial.artifacts = (report.restored, entry.count);
            let found = report.findings.first.iter().map(|finding| artifact_finding(Some(&backup.id), finding));
            trial.findings = found.collect::<Vec<Finding>>();
        }
        Ok(trial)
    }
}
