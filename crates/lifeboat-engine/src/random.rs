//! Random bytes from the operating system.
//!
//! Not through the library that encrypts: its generator costs a process up to 50 ms before its first byte, and most calls of `wal push` and `wal
//! fetch` need a name for a file and nothing else (`docs/decisions/0030-random-numbers.md`).

use lifeboat_core::repository::Id;

/// A fresh id.
pub fn id() -> Id {
    Id(bytes())
}

/// Fresh random bytes, good for keys: getrandom(2), which does not answer before the kernel's generator was seeded (random(7)).
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system's random generator answers");
    bytes
}
