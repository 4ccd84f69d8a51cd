//! Drills: a restore into a place of its own, checked, measured, taken down, and what it proved.

pub mod checks;
pub mod clock;
pub mod controls;
pub mod evidence;
pub mod feeder;
pub mod ground;
pub mod page;
pub mod place;
mod restored;
mod run;
mod scenarios;
mod trial;

pub use run::{DrillError, DrillSettings, Drilled, run};
