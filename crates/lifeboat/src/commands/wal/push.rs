//! `lifeboat wal push`

use crate::cli::WalPush;
use crate::config::Settings;
use crate::failure::Failure;
use crate::output::Output;

pub(super) fn run(_push: &WalPush, _settings: &Settings, _out: &Output) -> Result<u8, Failure> {
    Err(Failure::usage("wal push: not built yet").hint("lifeboat --help"))
}
