//! `lifeboat demo`

use crate::cli::Demo;
use crate::failure::Failure;
use crate::output::Output;

pub(super) fn run(_demo: &Demo, _out: &Output) -> Result<u8, Failure> {
    Err(Failure::usage("demo"))
}
