//! `lifeboat drill`: run one, look at those that were run.

mod list;
mod run;
mod show;

use clap::Subcommand;
use lifeboat_core::drill::{DrillId, Verdict};
use lifeboat_engine::drill::evidence;
use lifeboat_engine::repository::Repository;

use crate::config::{Origin, Settings};
use crate::failure::{EXIT_FAILED, EXIT_FINDINGS, EXIT_OBJECTIVE, EXIT_UNVERIFIED, Failure};
use crate::output::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum Drill {
    /// Restore a backup into a place of its own, start it, check it, break things on purpose, take it down, and sign what came of it
    Run(run::Run),
    /// List the drills, how they ended, and whether somebody stands for that
    List(list::DrillList),
    /// Show the report of one drill, once its signature was verified
    Show(show::DrillShow),
}

impl Drill {
    /// Whether it is more than a look at drills that were run, or at the plan of one.
    pub(crate) fn restores(&self) -> bool {
        matches!(self, Self::Run(run) if !run.only_plans())
    }

    /// Whether it can do with a repository that is only read.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self, Self::List(_) | Self::Show(_))
    }
}

pub(super) fn run(drill: &Drill, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    match drill {
        Drill::Run(run) => run::run(run, settings, out),
        Drill::List(list) => list::run(list, settings, out),
        Drill::Show(show) => show::run(show, settings, out),
    }
}

/// The exit code of a drill that ended so.
pub(crate) const fn code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Passed => 0,
        Verdict::PassedWithGaps => EXIT_FINDINGS,
        Verdict::ObjectiveMissed => EXIT_OBJECTIVE,
        Verdict::Failed => EXIT_UNVERIFIED,
    }
}

/// The systems whose drills are meant: the configured one, or all that the repository has drills of.
fn systems(repository: &Repository, settings: &Settings) -> Result<Vec<String>, Failure> {
    if settings.name.origin != Origin::Default {
        return Ok(vec![settings.name.value.clone()]);
    }
    let mut names: Vec<String> = evidence::all_ids(repository)?.iter().map(|id| id.name().to_owned()).collect();
    names.dedup();
    Ok(names)
}

/// The drill that a word names: an id, or `latest`.
fn find(repository: &Repository, settings: &Settings, word: &str) -> Result<DrillId, Failure> {
    if word != "latest" {
        return word.parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat drill list shows the drills"));
    }
    let names = systems(repository, settings)?;
    if let [_, _, ..] = names.as_slice() {
        return Err(Failure::usage(format!("choose the latest drill: the repository has drills of {}", names.join(", ")))
            .hint("name the system in the configuration, or give a drill id: lifeboat drill list"));
    }
    let none = || Failure::new(EXIT_FAILED, "choose the latest drill: there is none").hint("lifeboat drill run makes one");
    // The newest that has a report, signed or not: that it is not must be seen.
    let found = names.first().map(|name| evidence::newest(repository, name)).transpose()?.flatten();
    found.ok_or_else(none)
}
