//! Leases: one writer at a time, fenced by conditional create (format 9).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::repository::lease::{LEASE_TIME, Lease, Standing, is_ahead, standing};
use lifeboat_core::repository::{layout, to_json};

use crate::process::boot_id;
use crate::repository::MAX_DOCUMENT_BYTES;
use crate::store::{Store, StoreError, create_or_mine};

/// Time between renewals: two may fail before the lease runs out.
fn renewal(time: SignedDuration) -> Duration {
    Duration::try_from(time / 3).unwrap_or_default()
}

/// Why a lease was not had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody else has it.
    #[error("take the lease for {purpose}: {holder} holds it until {until}")]
    Held {
        /// What for.
        purpose: String,
        /// Who.
        holder: String,
        /// Until when, unless renewed.
        until: Timestamp,
    },
    /// It was taken from us: we were silent for too long, or somebody broke it.
    #[error("keep the lease for {purpose}: {holder} has taken it")]
    Lost {
        /// What for.
        purpose: String,
        /// Who.
        holder: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The newest epoch, as far as a listing shows.
fn latest(store: &dyn Store, purpose: &str) -> Result<Option<Lease>, StoreError> {
    let listed = store.list(&layout::leases(purpose))?;
    let newest = listed.iter().filter_map(|object| layout::number_of(&object.key)).max();
    newest.map(|newest| read(store, purpose, newest)).transpose()
}

/// An epoch that is there.
fn read(store: &dyn Store, purpose: &str, epoch: u64) -> Result<Lease, StoreError> {
    // Twice, if need be: bytes that arrived damaged would give away the lease of somebody who is at work.
    for _ in 0..2 {
        let bytes = store.get(&layout::lease(purpose, epoch), MAX_DOCUMENT_BYTES)?;
        if let Some(lease) = serde_json::from_slice(&bytes).ok().filter(|lease: &Lease| lease.epoch == epoch) {
            return Ok(lease);
        }
    }
    // One that cannot be read, or says that it is another, still counts as an epoch, and as held by nobody we know: its time
    // is unknown, so it is given none.
    Ok(Lease {
        epoch,
        holder: "an unreadable lease".into(),
        host: String::new(),
        pid: 0,
        boot: String::new(),
        taken: Timestamp::UNIX_EPOCH,
        expires: Timestamp::UNIX_EPOCH,
        released: false,
    })
}

/// Whether no epoch is above this one.
fn is_highest(store: &dyn Store, purpose: &str, epoch: u64) -> Result<bool, StoreError> {
    let above = store.list_after(&layout::leases(purpose), &layout::lease(purpose, epoch))?;
    Ok(above.iter().all(|listed| layout::number_of(&listed.key).is_none()))
}

/// Whether somebody holds the lease for `purpose`, as far as the repository tells.
pub fn is_held(store: &dyn Store, purpose: &str) -> Result<bool, StoreError> {
    Ok(matches!(standing(latest(store, purpose)?, Timestamp::now(), |_| false), Standing::Held(_)))
}

/// Whether the holder was a process of this host and boot that is gone (c117).
fn is_gone(lease: &Lease, host: &str, boot: &str) -> bool {
    lease.host == host && !boot.is_empty() && lease.boot == boot && !std::path::Path::new(&format!("/proc/{}", lease.pid)).exists()
}

/// A lease that is held, and renewed in the background until dropped.
pub struct HeldLease<'a> {
    store: &'a dyn Store,
    shared: Arc<Shared>,
}

struct Shared {
    purpose: String,
    time: SignedDuration,
    current: Mutex<Lease>,
    lost: Mutex<Option<String>>,
    stop: AtomicBool,
    wake: Condvar,
}

impl std::fmt::Debug for HeldLease<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeldLease({})", self.shared.purpose)
    }
}

/// Takes the lease for `purpose`, runs `work` while it is renewed in the background, gives it back. `say` hears why it takes long to take it.
pub fn with_lease<T, E: From<LeaseError>>(
    store: &dyn Store,
    purpose: &str,
    host: &str,
    say: &dyn Fn(&str),
    work: impl FnOnce(&HeldLease<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let sleep = |span| {
        std::thread::sleep(span);
        false
    };
    with_lease_for(store, purpose, host, LEASE_TIME, sleep, say, work)
}

/// The same with a time of its own: one that is held for weeks need not be renewed every minute. Who wants it after its holder has gone waits as long,
/// unless that was on the same host. `wait` waits for a span, and says whether nobody wants the lease any more.
pub fn with_lease_for<T, E: From<LeaseError>>(
    store: &dyn Store,
    purpose: &str,
    host: &str,
    time: SignedDuration,
    wait: impl Fn(Duration) -> bool,
    say: &dyn Fn(&str),
    work: impl FnOnce(&HeldLease<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let held = take(store, purpose, host, time, Patience { wait: &wait, say })?;
    std::thread::scope(|scope| {
        scope.spawn(|| held.renew_until_dropped());
        // Also when the work panics: the renewal would go on for ever, and the lease with it.
        let _release = Release(&held);
        work(&held)
    })
}

/// How somebody waits for a lease.
#[derive(Clone, Copy)]
struct Patience<'p> {
    /// Waits for a span, and says whether nobody wants it any more.
    wait: &'p dyn Fn(Duration) -> bool,
    /// Hears what it waits for.
    say: &'p dyn Fn(&str),
}

struct Release<'h, 'a>(&'h HeldLease<'a>);

impl Drop for Release<'_, '_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Waits for the holder of a lease to renew it, for as long as a lease holds, by a clock that nobody sets. Gives the lease as it stands then; the same
/// epoch: its holder is silent, and has lost it by its own clock too.
fn watch(
    store: &dyn Store,
    purpose: &str,
    lease: Lease,
    time: SignedDuration,
    wait: &dyn Fn(Duration) -> bool,
) -> Result<Lease, LeaseError> {
    let (begun, time) = (Instant::now(), Duration::try_from(time).unwrap_or_default());
    loop {
        if wait((time / 20).min(time.saturating_sub(begun.elapsed()))) {
            return Err(held(purpose, lease));
        }
        match latest(store, purpose)? {
            Some(newer) if newer.epoch > lease.epoch => return Ok(newer),
            _ if begun.elapsed() >= time => return Ok(lease),
            _ => {}
        }
    }
}

fn held(purpose: &str, lease: Lease) -> LeaseError {
    LeaseError::Held { purpose: purpose.to_owned(), holder: lease.holder, until: lease.expires }
}

fn take<'a>(
    store: &'a dyn Store,
    purpose: &str,
    host: &str,
    time: SignedDuration,
    Patience { wait, say }: Patience<'_>,
) -> Result<HeldLease<'a>, LeaseError> {
    let boot = boot_id();
    let mut newest = latest(store, purpose)?;
    // Several may try at once; who loses the create finds the winner's in its place, and goes on from there.
    loop {
        let now = Timestamp::now();
        let epoch = match standing(newest, now, |lease| is_gone(lease, host, &boot)) {
            Standing::Held(lease) if is_ahead(&lease, time, now) => {
                say(&format!(
                    "{} holds the lease for {purpose} until {:.0}, longer than one can be held: its clock is ahead, or this one's is behind; \
                     watching for {} s whether it is renewed",
                    lease.holder,
                    lease.expires,
                    time.as_secs()
                ));
                let (epoch, holder) = (lease.epoch, lease.holder.clone());
                match watch(store, purpose, lease, time, wait)? {
                    lease if lease.epoch == epoch => {
                        say(&format!("{holder} did not renew the lease for {purpose}, and has lost it"));
                        epoch.saturating_add(1)
                    }
                    lease if lease.released => {
                        newest = Some(lease);
                        continue;
                    }
                    lease => return Err(held(purpose, lease)),
                }
            }
            Standing::Held(lease) => return Err(held(purpose, lease)),
            Standing::Free(epoch) => epoch,
        };
        // Not the time at which the watching began.
        let now = Timestamp::now();
        let pid = std::process::id();
        let lease = Lease {
            epoch,
            holder: format!("{host}:{pid}:{}", crate::random::id()),
            host: host.to_owned(),
            pid,
            boot: boot.clone(),
            taken: now,
            expires: now + time,
            released: false,
        };
        if !create_or_mine(store, &layout::lease(purpose, epoch), &to_json(&lease))? {
            newest = Some(read(store, purpose, epoch)?);
            continue;
        }
        let shared = Shared {
            purpose: purpose.to_owned(),
            time,
            current: Mutex::new(lease),
            lost: Mutex::default(),
            stop: AtomicBool::new(false),
            wake: Condvar::new(),
        };
        let held = HeldLease { store, shared: Arc::new(shared) };
        match is_highest(store, purpose, epoch) {
            Ok(true) => return Ok(held),
            // Old epochs are pruned: what was free may lie behind the present.
            Ok(false) => newest = latest(store, purpose)?,
            Err(error) => {
                // Nobody will come back for it.
                held.release();
                return Err(error.into());
            }
        }
    }
}

impl HeldLease<'_> {
    /// Writes the next epoch.
    fn advance(&self, released: bool) -> Result<(), LeaseError> {
        let (store, purpose) = (self.store, &self.shared.purpose);
        let mut current = self.shared.current.lock().expect("no panic while held");
        loop {
            let now = Timestamp::now();
            let next = Lease { epoch: current.epoch + 1, expires: now + self.shared.time, released, ..current.clone() };
            match store.create(&layout::lease(purpose, next.epoch), &to_json(&next)) {
                Ok(()) => {
                    let epoch = next.epoch;
                    *current = next;
                    if is_highest(store, purpose, epoch)? {
                        return Ok(());
                    }
                    // Others went on long ago, and the epoch was free only because it was pruned.
                    let holder = latest(store, purpose)?.map_or_else(String::new, |lease| lease.holder);
                    *self.shared.lost.lock().expect("no panic while held") = Some(holder.clone());
                    return Err(LeaseError::Lost { purpose: purpose.clone(), holder });
                }
                // What stands in the place decides, not a listing, which may not show it yet.
                Err(StoreError::Exists { .. }) => {
                    let there = read(store, purpose, next.epoch)?;
                    if there.holder != current.holder {
                        *self.shared.lost.lock().expect("no panic while held") = Some(there.holder.clone());
                        return Err(LeaseError::Lost { purpose: purpose.clone(), holder: there.holder });
                    }
                    // A renewal of our own, whose answer was lost. It says nothing of this moment, nor that the lease was given back.
                    *current = there;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn renew_until_dropped(&self) {
        let guard = Mutex::new(());
        let mut waiting = guard.lock().expect("it is ours alone");
        loop {
            if self.shared.stop.load(Ordering::SeqCst) {
                return;
            }
            let (again, timeout) = self.shared.wake.wait_timeout(waiting, renewal(self.shared.time)).expect("it is ours alone");
            waiting = again;
            if self.shared.stop.load(Ordering::SeqCst) {
                return;
            }
            // A failure shows at the commit, which renews once more and must succeed.
            if timeout.timed_out() && matches!(self.advance(false), Err(LeaseError::Lost { .. })) {
                return;
            }
        }
    }

    /// Proves that the lease is still ours, by renewing it: to be called right before a commit.
    pub fn fence(&self) -> Result<(), LeaseError> {
        if let Some(holder) = &*self.shared.lost.lock().expect("no panic while held") {
            return Err(LeaseError::Lost { purpose: self.shared.purpose.clone(), holder: holder.clone() });
        }
        self.advance(false)
    }

    /// Proves that the lease is still ours without writing, as long as there is time; renews it when there is little. To be called before every
    /// step that others must not run into.
    pub fn check(&self) -> Result<(), LeaseError> {
        let lost = self.shared.lost.lock().expect("no panic while held").is_some();
        let expires = self.shared.current.lock().expect("no panic while held").expires;
        if !lost && Timestamp::now() < expires - self.shared.time / 2 { Ok(()) } else { self.fence() }
    }

    fn release(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake.notify_all();
        if self.shared.lost.lock().expect("no panic while held").is_none() {
            // If this fails the lease runs out by itself.
            let _ = self.advance(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Fault, FaultyStore, MemoryStore, Operation, Rule};

    fn quiet(_: &str) {}

    #[test]
    fn c044_one_writer_at_a_time_and_the_next_after_it() {
        let store = MemoryStore::default();
        let run = |inside: &dyn Fn() -> Result<(), LeaseError>| with_lease(&store, "backup", "host", &quiet, |_| inside());
        run(&|| match run(&|| Ok(())) {
            Err(LeaseError::Held { holder, .. }) => {
                assert!(holder.starts_with("host:"));
                Ok(())
            }
            other => panic!("{other:?}"),
        })
        .unwrap();
        run(&|| Ok(())).unwrap();
    }

    #[test]
    fn c044_a_holder_that_lost_its_lease_cannot_commit() {
        let store = MemoryStore::default();
        let result: Result<(), LeaseError> = with_lease(&store, "backup", "host", &quiet, |held| {
            held.fence()?;
            let other = Lease { holder: "other:1:x".into(), host: "other".into(), ..latest(&store, "backup")?.unwrap() };
            let stolen = Lease { epoch: other.epoch + 1, ..other };
            store.create(&layout::lease("backup", stolen.epoch), &to_json(&stolen))?;
            held.fence()
        });
        assert!(matches!(result, Err(LeaseError::Lost { holder, .. }) if holder == "other:1:x"));
    }

    #[test]
    fn c044_an_epoch_that_is_free_because_it_was_pruned_is_nobodys() {
        let store = MemoryStore::default();
        let result: Result<(), LeaseError> = with_lease(&store, "backup", "host", &quiet, |held| {
            held.check()?;
            // We slept for hours: others took it, went on, and what they left behind was pruned.
            let other = Lease { holder: "other:1:x".into(), host: "other".into(), ..latest(&store, "backup")?.unwrap() };
            store.create(&layout::lease("backup", 9), &to_json(&Lease { epoch: 9, ..other }))?;
            held.fence()
        });
        assert!(matches!(result, Err(LeaseError::Lost { holder, .. }) if holder == "other:1:x"));
        assert!(is_held(&store, "backup").unwrap());
        assert!(!is_held(&store, "other").unwrap());
    }

    #[test]
    fn c117_the_lease_of_a_process_that_died_is_free_at_once() {
        let store = MemoryStore::default();
        let now = Timestamp::now();
        // No process has the highest possible number.
        let dead = Lease {
            epoch: 1,
            holder: "host:x".into(),
            host: "host".into(),
            pid: u32::MAX,
            boot: boot_id(),
            taken: now,
            expires: now + LEASE_TIME,
            released: false,
        };
        store.create(&layout::lease("backup", 1), &to_json(&dead)).unwrap();
        assert!(matches!(with_lease::<(), LeaseError>(&store, "backup", "elsewhere", &quiet, |_| Ok(())), Err(LeaseError::Held { .. })));
        with_lease::<(), LeaseError>(&store, "backup", "host", &quiet, |_| Ok(())).unwrap();
    }

    /// A host whose clock was a year ahead, and died, must not keep all others from their work for a year.
    #[test]
    fn c117_the_lease_of_a_clock_that_is_ahead_is_watched_and_not_believed() {
        let time = SignedDuration::from_millis(400);
        let sleep = |span| {
            std::thread::sleep(span);
            false
        };
        let ahead = |epoch: u64| Lease {
            epoch,
            holder: "ahead:1:x".into(),
            host: "ahead".into(),
            pid: 1,
            boot: "b".into(),
            taken: Timestamp::now(),
            expires: Timestamp::now() + SignedDuration::from_hours(365 * 24),
            released: false,
        };
        let put = |store: &MemoryStore, epoch| store.create(&layout::lease("backup", epoch), &to_json(&ahead(epoch))).unwrap();
        let store = MemoryStore::default();
        put(&store, 1);
        let heard = Mutex::new(Vec::<String>::new());
        let say = |line: &str| heard.lock().unwrap().push(line.to_owned());
        let (begun, watched) = (Instant::now(), Timestamp::now());
        with_lease_for::<(), LeaseError>(&store, "backup", "host", time, sleep, &say, |_| {
            let taken = latest(&store, "backup").unwrap().unwrap();
            assert_eq!(taken.expires.duration_since(taken.taken), time);
            assert!(taken.taken.duration_since(watched) >= time, "held from when the watching ended, not from when it began");
            Ok(())
        })
        .unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(400), "it was watched");
        let told = std::mem::take(&mut *heard.lock().unwrap());
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("ahead:1:x holds the lease for backup until "), "{told:?}");
        assert!(told[1].contains("did not renew"), "{told:?}");
        with_lease_for::<(), LeaseError>(&store, "backup", "host", time, sleep, &say, |_| Ok(())).unwrap();
        assert!(heard.lock().unwrap().is_empty(), "a free one is taken without a word");
        // Who does not want it any more does not wait for that long.
        let store = MemoryStore::default();
        put(&store, 1);
        let given_up =
            with_lease_for::<(), LeaseError>(&store, "backup", "host", SignedDuration::from_hours(1), |_| true, &say, |_| Ok(()));
        assert!(matches!(given_up, Err(LeaseError::Held { .. })));
        // One that is alive keeps it, whatever its clock says.
        let store = MemoryStore::default();
        put(&store, 1);
        let taken = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                put(&store, 2);
            });
            with_lease_for::<(), LeaseError>(&store, "backup", "host", time, sleep, &say, |_| Ok(()))
        });
        assert!(matches!(taken, Err(LeaseError::Held { holder, .. }) if holder == "ahead:1:x"));
        assert_eq!(heard.lock().unwrap().len(), 2, "one line for each, and none that it was lost");
    }

    /// What the next host would be told.
    fn is_free(store: &dyn Store) -> bool {
        matches!(standing(latest(store, "backup").unwrap(), Timestamp::now(), |_| false), Standing::Free(_))
    }

    #[test]
    fn c117_a_lease_whose_answer_was_lost_is_ours() {
        let (store, faults) = FaultyStore::new(Box::new(MemoryStore::default()));
        faults.plan(&[Rule::once(Operation::Create, 0, Fault::AnswerLost)]);
        with_lease::<(), LeaseError>(&store, "backup", "host", &quiet, |_| Ok(())).unwrap();
        assert!(is_free(&store));
    }

    #[test]
    fn c117_a_renewal_whose_answer_was_lost_does_not_keep_the_lease_from_being_given_back() {
        let (store, faults) = FaultyStore::new(Box::new(MemoryStore::default()));
        faults.plan(&[Rule::once(Operation::Create, 1, Fault::AnswerLost)]);
        let result = with_lease::<(), LeaseError>(&store, "backup", "host", &quiet, |held| held.fence());
        assert!(matches!(result, Err(LeaseError::Store(_))), "{result:?}");
        assert!(is_free(&store), "nobody else could write for two minutes");
    }

    #[test]
    fn c044_c102_a_listing_that_lags_behind_hides_no_other_holder() {
        let (store, faults) = FaultyStore::new(Box::new(MemoryStore::default()));
        let result: Result<(), LeaseError> = with_lease(&store, "backup", "host", &quiet, |held| {
            let ours = latest(&store, "backup")?.unwrap();
            let theirs = Lease { epoch: ours.epoch + 1, holder: "other:1:x".into(), ..ours };
            store.create(&layout::lease("backup", theirs.epoch), &to_json(&theirs))?;
            faults.plan(&[Rule::from(0, Fault::Stale(1))]);
            held.fence()
        });
        assert!(matches!(&result, Err(LeaseError::Lost { holder, .. }) if holder == "other:1:x"), "{result:?}");
    }

    #[test]
    fn c044_c102_who_comes_later_finds_the_holder_that_a_listing_does_not_show() {
        let (store, faults) = FaultyStore::new(Box::new(MemoryStore::default()));
        with_lease::<(), LeaseError>(&store, "backup", "host", &quiet, |_| Ok(())).unwrap();
        let before = latest(&store, "backup").unwrap().unwrap();
        let theirs = Lease { epoch: before.epoch + 1, holder: "other:1:x".into(), pid: std::process::id(), released: false, ..before };
        store.create(&layout::lease("backup", theirs.epoch), &to_json(&theirs)).unwrap();
        faults.plan(&[Rule::from(0, Fault::Stale(1))]);
        let result = with_lease::<(), LeaseError>(&store, "backup", "elsewhere", &quiet, |_| Ok(()));
        assert!(matches!(&result, Err(LeaseError::Held { holder, .. }) if holder == "other:1:x"), "{result:?}");
    }

    #[test]
    fn c044_bytes_that_arrive_damaged_give_no_lease_away() {
        let (store, faults) = FaultyStore::new(Box::new(MemoryStore::default()));
        let result: Result<(), LeaseError> = with_lease(&store, "backup", "host", &quiet, |held| {
            faults.plan(&[Rule::once(Operation::Get, 0, Fault::Truncated)]);
            let other = with_lease::<(), LeaseError>(&store, "backup", "elsewhere", &quiet, |_| Ok(()));
            assert!(matches!(other, Err(LeaseError::Held { .. })), "{other:?}");
            held.fence()
        });
        result.unwrap();
    }
}
