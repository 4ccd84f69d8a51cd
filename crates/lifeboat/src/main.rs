//! The lifeboat command: arguments and configuration in, plans and results out.
//!
//! Talks; decides nothing (`lifeboat-core`) and does nothing (`lifeboat-engine`) by itself. Data goes to stdout,
//! everything else to stderr. Exit codes are API: see `failure.rs`.

mod cli;
mod commands;
mod config;
mod failure;
mod output;
mod progress;
mod session;
mod signals;

use clap::Parser as _;

use cli::Cli;
use failure::{EXIT_BUG, EXIT_USAGE};

fn main() -> std::process::ExitCode {
    signals::watch();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors; with no command at all help is the best error.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            if code == 0 || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                let _ = error.print();
            } else {
                output::Output::new(std::env::args_os().any(|argument| argument == "--json")).failure(&error.into());
            }
            return code.into();
        }
    };
    let out = output::Output::new(cli.json);
    // A panic is a bug of ours: said as such, with an exit code of its own.
    let Ok(result) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| commands::run(&cli, &out))) else {
        out.failure(
            &failure::Failure::new(EXIT_BUG, "a bug in lifeboat, described above")
                .hint("report it with that text and the output of lifeboat --version"),
        );
        return EXIT_BUG.into();
    };
    match result {
        Ok(code) => code.into(),
        Err(failure) => {
            out.failure(&failure);
            failure.code.into()
        }
    }
}
