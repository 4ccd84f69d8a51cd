//! Drills: what they leave, and how that is read again.

pub mod evidence;
pub mod page;
