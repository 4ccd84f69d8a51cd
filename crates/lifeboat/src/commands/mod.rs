//! One file per command: it resolves what was typed, asks core for the plan, lets the engine do it, and prints.

pub(crate) mod agent;
pub(crate) mod alert;
pub(crate) mod approval;
mod artifact;
pub(crate) mod audit;
mod backup;
mod config;
mod demo;
mod doctor;
pub(crate) mod drill;
mod expire;
mod init;
pub(crate) mod key;
mod list;
mod man;
mod pin;
pub(crate) mod policy;
mod prune;
mod replicate;
mod restore;
mod restore_point;
mod show;
pub(crate) mod status;
mod status_text;
mod verify;
pub(crate) mod wal;

use std::io::Write as _;

use clap::CommandFactory as _;

use crate::cli::{Artifact, Cli, Command, Config, Key, Wal};
use crate::config::Settings;
use crate::failure::Failure;
use crate::output::Output;
use crate::record;

/// Runs a command; the number is its exit code.
pub(crate) fn run(cli: &Cli, out: &Output) -> Result<u8, Failure> {
    match &cli.command {
        Command::Completions { shell } => {
            // Through memory: the generator panics when its reader goes away.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "lifeboat", &mut script);
            let _ = std::io::stdout().write_all(&script);
            return Ok(0);
        }
        Command::Man { out: directory } => return man::run(directory, out),
        Command::Demo(demo) => return demo::run(demo, out),
        // Needs no configuration, and has to help where there is a broken one.
        Command::Config(Config::Example) => return config::example(out),
        _ => {}
    }
    if cli.as_of.is_some() && !only_reads(&cli.command) {
        return Err(Failure::usage("read the repository as it was: this command does more than that").hint(
            "--as-of is of list, show, verify, restore, artifact get, list and verify, wal status and fetch, key revoke and export, drill list and show",
        ));
    }
    let settings = Settings::resolve(cli)?;
    crate::log::write_as(settings.log.format.value);
    crate::traces::begin(&settings, &cli.command);
    let recorded = record::begin(cli, &settings);
    let result = dispatch(cli, settings, out);
    if let Some(recorded) = recorded {
        // Read again: the first run makes keys.
        recorded.end(Settings::resolve(cli).ok().as_ref(), &result);
    }
    result
}

fn dispatch(cli: &Cli, settings: Settings, out: &Output) -> Result<u8, Failure> {
    match &cli.command {
        Command::Status(status) => status::run(status, &settings, out),
        Command::Agent(agent) => agent::run(cli, agent, settings, out),
        Command::Init(init) => init::run(cli, init, settings, out),
        Command::Doctor => doctor::run(&settings, out),
        Command::Backup(backup) => backup::run(cli, backup, settings, out),
        Command::List => list::run(&settings, out),
        Command::Show(show) => show::run(show, &settings, out),
        Command::Verify(verify) => verify::run(verify, &settings, out),
        Command::Restore(restore) => restore::run(restore, &settings, out),
        Command::Drill(drill) => drill::run(drill, &settings, out),
        Command::Replicate(replicate) => replicate::run(replicate, &settings, out),
        Command::Expire(expire) => expire::run(expire, &settings, out),
        Command::Prune(prune) => prune::run(prune, &settings, out),
        Command::Approval(approval) => approval::run(approval, &settings, out),
        Command::Pin(pin) => pin::pin(pin, &settings, out),
        Command::Unpin(unpin) => pin::unpin(unpin, &settings, out),
        Command::Artifact(artifact) => artifact::run(artifact, &settings, out),
        Command::RestorePoint(point) => restore_point::run(point, &settings, out),
        Command::Wal(wal) => wal::run(wal, &settings, out),
        Command::Key(key) => key::run(key, &settings, out),
        Command::Audit(audit) => audit::run(audit, &settings, out),
        Command::Policy(policy) => policy::run(policy, &settings, out),
        Command::Alert(alert) => alert::run(alert, &settings, out),
        Command::Config(_) => config::show(&settings, out),
        Command::Completions { .. } | Command::Man { .. } | Command::Demo(_) => Ok(0),
    }
}

/// Whether a command can do with a repository that is only read.
fn only_reads(command: &Command) -> bool {
    match command {
        Command::List | Command::Show(_) | Command::Verify(_) | Command::Restore(_) | Command::Config(_) | Command::Policy(_) => true,
        Command::Artifact(artifact) => matches!(artifact, Artifact::Get { .. } | Artifact::List { .. } | Artifact::Verify { .. }),
        // What is vouched for stood there then: nobody can have put it there since.
        Command::Key(key) => matches!(key, Key::Revoke(_) | Key::Export(_)),
        Command::Drill(drill) => drill.only_reads(),
        Command::Wal(wal) => matches!(wal, Wal::Fetch(_) | Wal::Prefetch(_) | Wal::Status(_)),
        _ => false,
    }
}
