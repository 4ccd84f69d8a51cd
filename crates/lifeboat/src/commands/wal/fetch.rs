//! `lifeboat wal fetch`

use crate::cli::WalFetch;
use crate::config::Settings;
use crate::failure::Failure;
use crate::output::Output;

pub(super) fn run(_fetch: &WalFetch, _settings: &Settings, _out: &Output) -> Result<u8, Failure> {
    Err(Failure::usage("wal fetch: not built yet").hint("lifeboat --help"))
}
