//! Drills: a backup restored where it can touch nothing, checked, measured, taken down.

pub mod feeder;
pub mod place;
