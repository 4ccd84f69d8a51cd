//! `lifeboat drill`: run one, look at those that were run.

mod run;

use clap::Subcommand;

use crate::config::Settings;
use crate::failure::Failure;
use crate::output::Output;

/// What can be done with drills.
#[derive(Debug, Subcommand)]
pub(crate) enum Drill {
    /// Restore a backup into a place of its own, start it, check it, break things on purpose, take it down, and sign what came of it
    Run(run::Run),
}

pub(super) fn run(drill: &Drill, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    match drill {
        Drill::Run(run) => run::run(run, settings, out),
    }
}
