//! The lifeboat command: arguments and configuration in, plans and results out.
//!
//! Talks; decides nothing (`lifeboat-core`) and does nothing (`lifeboat-engine`) by itself. Data goes to stdout,
//! everything else to stderr. Exit codes are API: see `failure.rs`.

mod cli;
mod commands;
mod config;
mod failure;
mod gate;
mod hardening;
mod log;
mod operation;
mod output;
mod progress;
mod record;
#[cfg(test)]
mod reference;
mod session;
mod signals;
mod traces;

use clap::{CommandFactory as _, FromArgMatches as _};

use cli::Cli;
use commands::wal::fetch;
use failure::{EXIT_BUG, EXIT_USAGE};
use log::Format;

fn main() -> std::process::ExitCode {
    hardening::hide_memory();
    log::write_as(Format::of_arguments(std::env::args_os()));
    log::catch_panics();
    // It begins now.
    operation::this();
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors; with no command at all help is the best error.
            let meant = fetch::was_meant(std::env::args_os());
            let code = if !error.use_stderr() {
                0
            } else if meant {
                fetch::EXIT_TROUBLE
            } else {
                EXIT_USAGE
            };
            let nothing_asked = error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
            if code == 0 || nothing_asked && log::format() == Format::Text {
                let _ = error.print();
            } else {
                let mut failure = failure::Failure { code, ..error.into() };
                if nothing_asked {
                    failure.message = "no command was given".into();
                }
                output::Output::new(std::env::args_os().any(|argument| argument == "--json")).failure(&failure);
            }
            return code.into();
        }
    };
    // PostgreSQL makes of every exit code of a restore_command what that means to a server.
    let fetch = if let cli::Command::Wal(cli::Wal::Fetch(fetch)) = &cli.command { Some(fetch) } else { None };
    if fetch.is_none() {
        signals::watch();
    }
    let out = output::Output::new(cli.json);
    // A panic is a bug of ours: said as such, with an exit code of its own.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&cli, &out))).unwrap_or_else(|_| {
        Err(failure::Failure::new(EXIT_BUG, "a bug in lifeboat, described above")
            .hint("report it with that text and the output of lifeboat --version"))
    });
    let (code, problem) = match result {
        Ok(code) => (code, None),
        Err(mut failure) => {
            match fetch {
                Some(fetch) => fetch::trouble(fetch, &mut failure, &out),
                None => out.failure(&failure),
            }
            (failure.code, Some(failure.message))
        }
    };
    traces::end(code, problem.as_deref(), traces::PATIENCE);
    // Who started the prefetcher is gone. Where PostgreSQL's first process is the first of its container, it is the parent now, and takes every
    // exit but 0 and 1 for that of a server process that may have left shared memory in disorder (`HandleChildCrash`, postmaster.c).
    if matches!(cli.command, cli::Command::Wal(cli::Wal::Prefetch(_))) { code.min(1).into() } else { code.into() }
}

/// What was typed.
fn parse() -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches()?;
    operation::is_called(&matches);
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut Cli::command()))
}

fn run(cli: &Cli, out: &output::Output) -> Result<u8, failure::Failure> {
    // The configuration may choose another form, where neither of these does.
    if let Some(format) = cli.log_format.map_or_else(Format::of_environment, |format| Ok(Some(format)))? {
        log::write_as(format);
    }
    commands::run(cli, out)
}
