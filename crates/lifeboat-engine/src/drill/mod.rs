//! Drills.

pub mod checks;
