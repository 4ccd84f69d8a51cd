//! `lifeboat wal receive`

use crate::cli::WalReceive;
use crate::config::Settings;
use crate::failure::Failure;
use crate::output::Output;

pub(super) fn run(_receive: &WalReceive, _settings: &Settings, _out: &Output) -> Result<u8, Failure> {
    Err(Failure::usage("wal receive: not built yet").hint("lifeboat --help"))
}
