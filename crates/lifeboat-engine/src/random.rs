//! Random bytes from the operating system, through the same library that encrypts.

use aws_lc_rs::rand;
use lifeboat_core::repository::Id;

/// A fresh id.
pub fn id() -> Id {
    Id(bytes())
}

/// Fresh random bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the operating system's random generator answers");
    bytes
}
