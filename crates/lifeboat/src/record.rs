//! What is done on this host is written down, so that `status`, the agent and alerts know how it ended, whoever began it.

use jiff::Timestamp;
use lifeboat_core::status::{Outcome, assess};
use lifeboat_engine::metrics;
use lifeboat_engine::runs::{Ending, Run, Runs};

use crate::cli::{Cli, Command};
use crate::commands;
use crate::config::Settings;
use crate::failure::{EXIT_FINDINGS, Failure};
use crate::{operation as this_operation, output};

/// A run that is written down, where it can be.
pub(crate) struct Recorded {
    run: Option<Run>,
    partial: bool,
}

/// What a command counts as. `None`: it is only planned, only looks, or is not about the system as a whole.
fn operation(cli: &Cli) -> Option<&'static str> {
    if cli.as_of.is_some() {
        return None;
    }
    match &cli.command {
        Command::Backup(backup) if !backup.dry_run && backup.output.is_none() => Some("backup"),
        Command::Verify(verify) if verify.all => Some("verify"),
        Command::Expire(expire) if !expire.dry_run && expire.undo.is_none() => Some("expire"),
        Command::Prune(prune) if !prune.dry_run => Some("prune"),
        Command::Replicate(replicate) if !replicate.dry_run && !replicate.check => Some("replicate"),
        Command::Drill(drill) if drill.restores() => Some("drill"),
        _ => None,
    }
}

/// Says that it begins.
pub(crate) fn begin(cli: &Cli, settings: &Settings) -> Option<Recorded> {
    let operation = operation(cli)?;
    let id = this_operation::id().to_string();
    let run = match Runs::new(&settings.agent.state.value).begin(operation, &id, Timestamp::now()) {
        Ok(run) => Some(run),
        // The work must not fail for want of a note about it.
        Err(error) => {
            output::warn(&format!("that {operation} runs is not noted in {}: {error}", settings.agent.state.value.display()));
            None
        }
    };
    Some(Recorded { run, partial: is_partial(&cli.command) })
}

/// Whether it looks at a part only of what is there.
fn is_partial(command: &Command) -> bool {
    matches!(command, Command::Verify(verify) if verify.sample < 100.0 || verify.repository_name.is_some())
}

impl Recorded {
    /// Says how it ended.
    pub(crate) fn end(self, settings: Option<&Settings>, result: &Result<u8, Failure>) {
        let ended = self.run.map(|run| match result {
            // Somebody else does it: that is no result of it. A lease that was lost on the way took hours of work with it.
            Err(failure) if failure.of_another => run.withdraw(),
            result => run.end(Ending { partial: self.partial, ..ending(result) }, Timestamp::now()),
        });
        if let Some(Err(error)) = ended {
            output::warn(&format!("how it ended is not noted: {error}"));
        }
        let Some((settings, path)) = settings.and_then(|settings| Some((settings, settings.metrics.textfile.as_ref()?))) else { return };
        let status = assess(commands::status::observe(settings), &settings.alerting().0);
        let text = metrics::exposition(&status, None, metrics::Format::Prometheus);
        if let Err(error) = metrics::write_textfile(&path.value, &text) {
            output::warn(&format!("metrics are not written to {}: {error}", path.value.display()));
        }
    }
}

fn ending(result: &Result<u8, Failure>) -> Ending {
    match result {
        Ok(code) => {
            let outcome = match *code {
                0 => Outcome::Succeeded,
                EXIT_FINDINGS => Outcome::Findings,
                _ => Outcome::Failed,
            };
            let message = Some(output::warnings()).filter(|said| outcome != Outcome::Succeeded && !said.is_empty());
            Ending { outcome, exit_code: Some(*code), message, hint: None, partial: false }
        }
        Err(failure) => Ending {
            outcome: Outcome::Failed,
            exit_code: Some(failure.code),
            message: Some(failure.message.clone()),
            hint: failure.hint.clone(),
            partial: false,
        },
    }
}
