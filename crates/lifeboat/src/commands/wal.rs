//! `lifeboat wal`: one file per command.

pub(crate) mod fetch;
mod push;
mod receive;
pub(crate) mod status;

use crate::cli::Wal;
use crate::config::Settings;
use crate::failure::Failure;
use crate::output::Output;

pub(super) fn run(wal: &Wal, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    match wal {
        Wal::Push(push) => push::run(push, settings, out),
        Wal::Fetch(fetch) => fetch::run(fetch, settings, out),
        Wal::Prefetch(prefetch) => fetch::run_ahead(prefetch, settings),
        Wal::Receive(receive) => receive::run(receive, settings, out),
        Wal::Status(status) => status::run(status, settings, out),
    }
}
