//! `lifeboat wal status`

use crate::cli::WalStatus;
use crate::config::Settings;
use crate::failure::Failure;
use crate::output::Output;

pub(super) fn run(_status: &WalStatus, _settings: &Settings, _out: &Output) -> Result<u8, Failure> {
    Err(Failure::usage("wal status: not built yet").hint("lifeboat --help"))
}
