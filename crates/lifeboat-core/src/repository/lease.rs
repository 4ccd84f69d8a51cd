//! Leases: one writer at a time (format 9).

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// How long a lease holds without renewal.
pub const LEASE_TIME: SignedDuration = SignedDuration::from_secs(120);

/// One epoch of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Counts from 1; the highest decides.
    pub epoch: u64,
    /// Who holds it: host, process and a random part.
    pub holder: String,
    /// The holder's host.
    pub host: String,
    /// The holder's process.
    pub pid: u32,
    /// The boot that `pid` belongs to; a process of an earlier boot is gone.
    pub boot: String,
    /// When this holder first took it.
    pub taken: Timestamp,
    /// Free after this.
    pub expires: Timestamp,
    /// Given back.
    pub released: bool,
}

/// Whether a lease can be had, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nobody holds it. The next epoch to create.
    Free(u64),
    /// Somebody does.
    Held(Lease),
}

/// Where a lease stands `now`, given its latest epoch. `holder_is_gone` is the caller's knowledge
/// that the holding process of this very host and boot no longer runs.
pub fn standing(latest: Option<Lease>, now: Timestamp, holder_is_gone: impl FnOnce(&Lease) -> bool) -> Standing {
    match latest {
        None => Standing::Free(1),
        Some(lease) if lease.released || lease.expires <= now || holder_is_gone(&lease) => {
            // An epoch of u64::MAX can only be damage; creating it again fails, and that is the answer then.
            Standing::Free(lease.epoch.saturating_add(1))
        }
        Some(lease) => Standing::Held(lease),
    }
}

/// What the clocks of two hosts may differ, without either being wrong.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_secs(60);

/// Whether a lease is said to hold for longer than one can that is renewed every `time`: its holder's clock is ahead of this host's. If that one dies,
/// nobody may wait until its clock's time comes; whoever wants the lease watches it instead, for `time`, by a clock that nobody sets.
pub fn is_ahead(lease: &Lease, time: SignedDuration, now: Timestamp) -> bool {
    lease.expires.duration_since(now) > time + CLOCKS_DIFFER
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(taken: Timestamp, expires: Timestamp) -> Lease {
        Lease { epoch: 4, holder: "a:1:x".into(), host: "a".into(), pid: 1, boot: "b".into(), taken, expires, released: false }
    }

    #[test]
    fn c117_a_lease_that_holds_for_longer_than_one_can_is_of_a_clock_that_is_ahead() {
        let now: Timestamp = "2024-03-15T12:00:00Z".parse().unwrap();
        let until = |seconds: i64| held(now, now + SignedDuration::from_secs(seconds));
        assert!(
            !is_ahead(&until(120), LEASE_TIME, now) && !is_ahead(&until(180), LEASE_TIME, now) && !is_ahead(&until(-1), LEASE_TIME, now)
        );
        assert!(is_ahead(&until(181), LEASE_TIME, now));
        assert!(!is_ahead(&until(600), SignedDuration::from_mins(10), now), "an agent's");
    }

    #[test]
    fn c117_a_lease_of_a_dead_holder_ends() {
        let now: Timestamp = "2024-03-15T12:00:00Z".parse().unwrap();
        let lease = held(now, now + LEASE_TIME);
        let last = Lease { epoch: u64::MAX, released: true, ..lease.clone() };
        assert_eq!(standing(Some(last), now, |_| false), Standing::Free(u64::MAX), "a damaged epoch does not end the program");
        assert_eq!(standing(None, now, |_| false), Standing::Free(1));
        assert_eq!(standing(Some(lease.clone()), now, |_| false), Standing::Held(lease.clone()));
        assert_eq!(standing(Some(lease.clone()), now, |_| true), Standing::Free(5));
        assert_eq!(standing(Some(lease.clone()), now + LEASE_TIME, |_| false), Standing::Free(5));
        assert_eq!(standing(Some(Lease { released: true, ..lease }), now, |_| false), Standing::Free(5));
    }
}
