//! `lifeboat restore-point NAME`: a name for this moment, before something is deployed.

use std::time::Duration;

use lifeboat_core::policy::Operation;
use lifeboat_engine::postgres::{Connection, Dsn, Purpose};
use lifeboat_engine::wal::restore_point::{self, MAX_NAME_BYTES};
use lifeboat_engine::wal::{Cluster, arrival};

use crate::cli::RestorePoint;
use crate::config::{Settings, parse_span};
use crate::failure::{EXIT_FAILED, Failure};
use crate::gate::{self, Question};
use crate::output::Output;
use crate::session;

pub(super) fn run(command: &RestorePoint, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let name = &command.name;
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(Failure::usage(format!(
            "make restore point {name:?}: a name has 1 to {MAX_NAME_BYTES} bytes, none of them a control character"
        ))
        .hint("lifeboat restore-point before-deploy-17"));
    }
    let wait = command.wait.as_deref().map(parse_span).transpose()?;
    let dsn = settings.dsn.as_ref().ok_or_else(|| {
        Failure::usage("make a restore point: no server is configured").hint("set postgres.dsn or PGHOST: lifeboat config show")
    })?;
    // Nothing is made that could not be waited for.
    let repository = wait.map(|wait| session::open_repository(settings).map(|repository| (repository, wait))).transpose()?;
    gate::allow(settings, repository.as_ref().map(|(repository, _)| repository), Question::new(Operation::RestorePoint))?;
    let connection = Connection::open(&Dsn::parse(dsn.value.as_str())?, Purpose::Sql)?;
    let point = restore_point::create(&connection, name)?;
    let archived = match &repository {
        Some((repository, wait)) => {
            let cluster = Cluster { system_id: point.system_id, segment_size: point.segment_size };
            Some(arrival::wait(repository, cluster, point.timeline, point.lsn, *wait)?)
        }
        None => None,
    };
    if archived == Some(false) {
        let seconds = repository.map_or(Duration::ZERO, |(_, wait)| wait).as_secs_f64();
        return Err(Failure::new(
            EXIT_FAILED,
            format!("restore point {name:?} was made at {}, but within {seconds} s its WAL did not reach the repository", point.lsn),
        )
        .hint("lifeboat wal status tells why; until it is there, recovery to it is not possible"));
    }
    out.result(&serde_json::json!({"restore_point": point, "archived": archived}), || {
        let state = if archived.is_some() { "its WAL is in the repository" } else { "its WAL is on its way" };
        format!("restore point {name} at {} on timeline {}: {state}\n", point.lsn, point.timeline)
    });
    Ok(0)
}
