//! Deciding what a directory of artifacts means for the artifact set: what is new, changed, gone.
//!
//! Both sides come as sorted sequences and are joined in one pass, so that ten million names need
//! no memory. What a file's content is, only reading it tells; here is decided which files must be
//! read. A file taken for unchanged that is not would be lost silently, so every doubt is read.

use std::cmp::Ordering;
use std::fmt;

use jiff::{SignedDuration, Timestamp};

use crate::repository::{
    Sha256,
    artifact::{self, Entry, Origin},
    layout::ArtifactName,
};

/// How much older than the moment it was last stored a file's time of change must be to tell
/// anything. File systems count time in steps of up to two seconds (FAT), or one (ext3, NFSv2,
/// archives): a file changed twice within a step shows one time.
pub const SETTLED: SignedDuration = SignedDuration::from_secs(2);

/// A regular file in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its path below the directory.
    pub name: ArtifactName,
    /// Its length.
    pub bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Time of last change of its content, or what somebody set it to.
    pub modified: Timestamp,
    /// Time of last change of its content, its name or anything else about it: nobody can set it (`st_ctime`).
    pub status_changed: Timestamp,
}

/// Why a file whose name is in the set has to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Another length: the content is another.
    Length,
    /// Another time of change.
    Modified,
    /// Other permission bits.
    Mode,
    /// It was changed so shortly before it was stored that it may have changed again since.
    Recent,
    /// It was written, replaced or touched since it was stored, though its time of change is an old one: `tar x`, `cp -p`, `rsync -t` and builds that are
    /// the same every time set it.
    Status,
    /// Its time of change has not come yet, so a clock is wrong.
    Future,
    /// The caller wants every file read.
    Asked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "its length changed",
            Self::Modified => "its time of change changed",
            Self::Mode => "its permissions changed",
            Self::Recent => "it was changed within two seconds of being stored",
            Self::Status => "something about it changed since it was stored",
            Self::Future => "its time of change is in the future",
            Self::Asked => "every file is read",
        })
    }
}

/// What to do about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Not in the set: store it.
    New(Found),
    /// In the set, and perhaps other than there: read it, and store it if [`changed`] says so.
    Read {
        /// The file.
        found: Found,
        /// What the set has.
        entry: Entry,
        /// Why.
        reason: Reason,
    },
    /// As the set has it.
    Unchanged(Entry),
    /// Came from a directory and is no longer in it: leaves the set (its versions stay).
    Gone(Entry),
    /// Did not come from a directory, so that its absence there means nothing.
    Kept(Entry),
}

impl Step {
    /// The name it is about.
    pub fn name(&self) -> &ArtifactName {
        match self {
            Self::New(found) | Self::Read { found, .. } => &found.name,
            Self::Unchanged(entry) | Self::Gone(entry) | Self::Kept(entry) => &entry.name,
        }
    }
}

/// What one sync knows from the start.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// When it began.
    pub now: Timestamp,
    /// Read every file, whatever its time of change says.
    pub read_all: bool,
}

/// Joins what stands in the directory with what the set has. Both are sorted by the bytes of the
/// name, each name once. The first error ends the plan.
pub fn plan<F, P, E>(found: F, present: P, moment: Moment) -> impl Iterator<Item = Result<Step, E>>
where
    F: IntoIterator<Item = Result<Found, E>>,
    P: IntoIterator<Item = Result<Entry, E>>,
{
    let mut found = found.into_iter().peekable();
    let mut present = present.into_iter().peekable();
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let order = match (found.peek(), present.peek()) {
            (None, None) => return None,
            (Some(Err(_)), _) => Ordering::Less,
            (_, Some(Err(_))) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(Ok(file)), Some(Ok(entry))) => file.name.cmp(&entry.name),
        };
        let mut step = || {
            Ok(match order {
                Ordering::Less => found.next().transpose()?.map(Step::New),
                Ordering::Greater => present.next().transpose()?.map(|entry| match entry.origin {
                    Origin::Sync => Step::Gone(entry),
                    Origin::Put => Step::Kept(entry),
                }),
                Ordering::Equal => {
                    found.next().transpose()?.zip(present.next().transpose()?).map(|(file, entry)| compare(file, entry, moment))
                }
            })
        };
        let step = step().transpose();
        failed = matches!(step, Some(Err(_)));
        step
    })
}

fn compare(found: Found, entry: Entry, moment: Moment) -> Step {
    match reason(&found, &entry, moment) {
        Some(reason) => Step::Read { found, entry, reason },
        None => Step::Unchanged(entry),
    }
}

fn reason(found: &Found, entry: &Entry, moment: Moment) -> Option<Reason> {
    if found.bytes != entry.bytes {
        return Some(Reason::Length);
    }
    if found.modified != entry.modified {
        return Some(Reason::Modified);
    }
    if found.mode != entry.mode {
        return Some(Reason::Mode);
    }
    if moment.read_all {
        return Some(Reason::Asked);
    }
    if found.modified > moment.now {
        return Some(Reason::Future);
    }
    // It was read when its status was this one, and had been for a while.
    if entry.compared == Some(found.status_changed) {
        return None;
    }
    match settled(entry) {
        Some(settled) if found.modified <= settled => (found.status_changed > settled).then_some(Reason::Status),
        _ => Some(Reason::Recent),
    }
}

/// What is changed up to here was changed before the version was stored. `created` is the moment before the content was read; a version of
/// another writer says nothing.
fn settled(entry: &Entry) -> Option<Timestamp> {
    artifact::created(&entry.version).and_then(|created| created.checked_sub(SETTLED).ok())
}

/// What to note of a file that was read at `read` and is as the set has it, so that it need not be read again ([`Entry::compared`]).
pub fn compared(found: &Found, entry: &Entry, read: Timestamp) -> Option<Timestamp> {
    let is_needed = settled(entry).is_none_or(|settled| found.modified.max(found.status_changed) > settled);
    let is_settled = read.checked_sub(SETTLED).is_ok_and(|settled| found.status_changed <= settled);
    (is_needed && is_settled && entry.compared != Some(found.status_changed)).then_some(found.status_changed)
}

/// Whether a file that was read, with this digest, is other than the set has it. Time and permissions
/// count: a restore brings them back, and a time that is not recorded would be read about again and
/// again.
pub fn changed(found: &Found, sha256: Sha256, entry: &Entry) -> bool {
    (found.bytes, found.mode, found.modified, sha256) != (entry.bytes, entry.mode, entry.modified, entry.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::convert::Infallible;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_700_000_000_000 + millis).unwrap()
    }

    fn entry(name: &str, origin: Origin, modified: i64, created: i64) -> Entry {
        let sha256 = Sha256([7; 32]);
        Entry {
            name: name.parse().unwrap(),
            version: artifact::version(at(created), sha256),
            sha256,
            bytes: 10,
            mode: 0o644,
            modified: at(modified),
            record: Sha256([8; 32]),
            origin,
            wrapped_to: None,
            compared: None,
        }
    }

    fn found(name: &str, modified: i64) -> Found {
        Found { name: name.parse().unwrap(), bytes: 10, mode: 0o644, modified: at(modified), status_changed: at(modified) }
    }

    fn one(found: Found, entry: Entry, moment: Moment) -> Option<Reason> {
        match plan([Ok::<_, Infallible>(found)], [Ok(entry)], moment).next() {
            Some(Ok(Step::Read { reason, .. })) => Some(reason),
            Some(Ok(Step::Unchanged(_))) => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn c032_a_time_of_change_proves_nothing_before_it_has_settled() {
        let moment = Moment { now: at(1_000_000), read_all: false };
        let (put, sync) = (Origin::Put, Origin::Sync);
        for (found, entry, expected) in [
            (found("a", 0), entry("a", sync, 0, 2000), None),
            (found("a", 0), entry("a", put, 0, 2000), None),
            (found("a", 0), entry("a", sync, 0, 1999), Some(Reason::Recent)),
            (found("a", 0), entry("a", sync, 0, -5), Some(Reason::Recent)),
            (found("a", 1), entry("a", sync, 0, 9000), Some(Reason::Modified)),
            (found("a", -1), entry("a", sync, 0, 9000), Some(Reason::Modified)),
            (Found { bytes: 11, ..found("a", 0) }, entry("a", sync, 0, 9000), Some(Reason::Length)),
            (Found { mode: 0o755, ..found("a", 0) }, entry("a", sync, 0, 9000), Some(Reason::Mode)),
            // A clock that was ahead when it was stored.
            (found("a", 1_000_001), entry("a", sync, 1_000_001, 2_000_000), Some(Reason::Future)),
            (found("a", 0), Entry { version: "by-another".into(), ..entry("a", sync, 0, 9000) }, Some(Reason::Recent)),
            // Written over, and its time of change set to what it was.
            (Found { status_changed: at(7001), ..found("a", 0) }, entry("a", sync, 0, 9000), Some(Reason::Status)),
            (Found { status_changed: at(7000), ..found("a", 0) }, entry("a", sync, 0, 9000), None),
            // Read since then.
            (Found { status_changed: at(9500), ..found("a", 0) }, Entry { compared: Some(at(9500)), ..entry("a", sync, 0, 9000) }, None),
            (found("a", 0), Entry { compared: Some(at(0)), ..entry("a", sync, 0, 1999) }, None),
            (
                Found { status_changed: at(9501), ..found("a", 0) },
                Entry { compared: Some(at(9500)), ..entry("a", sync, 0, 9000) },
                Some(Reason::Status),
            ),
        ] {
            assert_eq!(one(found.clone(), entry.clone(), moment), expected, "{found:?} {entry:?}");
        }
        assert_eq!(one(found("a", 0), entry("a", sync, 0, 9000), Moment { read_all: true, ..moment }), Some(Reason::Asked));
    }

    #[test]
    fn c032_what_was_read_is_noted_once_it_has_settled() {
        let entry = entry("a", Origin::Sync, 0, 9000);
        let at_status = |millis: i64| Found { status_changed: at(millis), ..found("a", 0) };
        assert_eq!(compared(&at_status(7000), &entry, at(50_000)), None, "the version says it already");
        assert_eq!(compared(&at_status(9500), &entry, at(11_500)), Some(at(9500)));
        assert_eq!(compared(&at_status(9500), &entry, at(11_499)), None, "it may change again without another time");
        assert_eq!(compared(&at_status(9500), &Entry { compared: Some(at(9500)), ..entry }, at(50_000)), None);
    }

    #[test]
    fn the_first_error_ends_the_plan() {
        let moment = Moment { now: at(0), read_all: false };
        let steps: Vec<_> =
            plan([Ok(found("a", 0)), Err("walk"), Ok(found("c", 0))], [Ok(entry("b", Origin::Sync, 0, 0))], moment).collect();
        assert_eq!(steps.len(), 2);
        assert!(matches!(&steps[0], Ok(Step::New(_))) && steps[1] == Err("walk"));
        // Nothing is called gone because the directory could not be read.
        let steps: Vec<_> = plan([Err("walk")], [Ok(entry("b", Origin::Sync, 0, 0))], moment).collect();
        assert_eq!(steps, [Err("walk")]);
    }

    proptest! {
        /// Every name of either side is in exactly one step, in order, and the step is the right one.
        #[test]
        fn the_plan_is_that_of_looking_up_every_name(
            files in prop::collection::btree_map("[a-c/]{1,3}", (0u64..3, -3i64..3), 0..12),
            set in prop::collection::btree_map("[a-c/]{1,3}", (0u64..3, -3i64..3, any::<bool>()), 0..12),
        ) {
            let valid = |name: &str| name.parse::<ArtifactName>().is_ok();
            let files: BTreeMap<_, _> = files.into_iter().filter(|(name, _)| valid(name)).collect();
            let set: BTreeMap<_, _> = set.into_iter().filter(|(name, _)| valid(name)).collect();
            let moment = Moment { now: at(100_000), read_all: false };
            let found = |name: &str, (bytes, modified): (u64, i64)| Found { bytes, ..found(name, modified) };
            let entry = |name: &str, (bytes, modified, put): (u64, i64, bool)| Entry { bytes, ..entry(name, if put { Origin::Put } else { Origin::Sync }, modified, 2000) };
            let steps: Vec<Step> = plan(
                files.iter().map(|(n, f)| Ok::<_, Infallible>(found(n, *f))),
                set.iter().map(|(n, e)| Ok(entry(n, *e))),
                moment,
            ).map(Result::unwrap).collect();
            let names: BTreeSet<&String> = files.keys().chain(set.keys()).collect();
            prop_assert_eq!(steps.iter().map(|s| s.name().as_str()).collect::<Vec<_>>(), names.iter().map(|n| n.as_str()).collect::<Vec<_>>());
            for step in steps {
                let name = step.name().as_str().to_owned();
                match (files.get(&name), set.get(&name)) {
                    (Some(f), None) => prop_assert_eq!(step, Step::New(found(&name, *f))),
                    (None, Some(e)) if e.2 => prop_assert_eq!(step, Step::Kept(entry(&name, *e))),
                    (None, Some(e)) => prop_assert_eq!(step, Step::Gone(entry(&name, *e))),
                    (Some(f), Some(e)) => {
                        let same = f.0 == e.0 && f.1 == e.1 && f.1 <= 0;
                        prop_assert_eq!(matches!(step, Step::Unchanged(_)), same, "{:?}", step);
                    }
                    (None, None) => prop_assert!(false),
                }
            }
        }
    }
}
