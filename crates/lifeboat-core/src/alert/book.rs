//! Who was told what when: alerts in, messages out.
//!
//! A pure value: whoever sends a [`Message`] says afterwards whether it arrived, and what did not arrive comes again. So an alert that came and went while
//! a sink was down is told of as over, and one that comes back within a moment is told of once.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Alert, Severity};

/// How alerts are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    /// A new alert waits so long for others, so that one accident is one message (`alerts.group_wait`).
    pub group_wait: SignedDuration,
    /// What still holds is told again after this (`alerts.repeat`).
    pub repeat: SignedDuration,
    /// An alert has to be gone for so long before it is over: what comes and goes is told once (`alerts.resolve_after`).
    pub resolve_after: SignedDuration,
}

/// What ended so long ago is no news any more: a sink that was down for longer is not told of it, and its book does not grow for ever.
const OLD_NEWS: SignedDuration = SignedDuration::from_hours(7 * 24);

/// One alert, since when, and who knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// As it was last seen.
    pub alert: Alert,
    /// Since when it holds.
    pub since: Timestamp,
    /// When it was last seen to hold.
    pub seen: Timestamp,
    /// When it was last told, and how serious it was then.
    #[serde(default)]
    pub told: Option<(Timestamp, Severity)>,
}

impl Entry {
    fn is_gone(&self, now: Timestamp, rhythm: &Rhythm) -> bool {
        now.duration_since(self.seen) >= rhythm.resolve_after && self.seen < now
    }

    fn notice(&self) -> Notice {
        Notice { alert: self.alert.clone(), since: self.since, seen: self.seen, again: self.told.is_some() }
    }
}

/// What one sink is told at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// What holds and was not told, or is told again; the worst first.
    pub firing: Vec<Notice>,
    /// What is over: it was told, or had to be and could not.
    pub resolved: Vec<Notice>,
}

/// One alert in a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The alert.
    pub alert: Alert,
    /// Since when it holds.
    pub since: Timestamp,
    /// When it was last seen to hold: when it ended, of one that is over.
    pub seen: Timestamp,
    /// It was told before.
    pub again: bool,
}

/// What one sink has been told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// By [`Alert::key`].
    pub entries: BTreeMap<String, Entry>,
}

impl Book {
    /// Notes what holds now.
    pub fn note(&mut self, firing: &[Alert], now: Timestamp, rhythm: &Rhythm) {
        // A clock that was ahead, and was set back, keeps nobody from being told, nor from hearing that it is over.
        for entry in self.entries.values_mut() {
            entry.since = entry.since.min(now);
            entry.seen = entry.seen.min(now);
            entry.told = entry.told.map(|(at, severity)| (at.min(now), severity));
        }
        for alert in firing {
            let entry = self.entries.entry(alert.key());
            let entry = entry.or_insert_with(|| Entry { alert: alert.clone(), since: now, seen: now, told: None });
            entry.alert = alert.clone();
            entry.seen = now;
        }
        // What was gone before it had to be told need not be told. What had to be, and was not, could not be: its sink was down.
        let matters = |entry: &Entry| entry.told.is_some() || entry.seen.duration_since(entry.since) >= rhythm.group_wait;
        self.entries.retain(|_, entry| {
            let gone = now.duration_since(entry.seen);
            entry.seen == now || gone < rhythm.resolve_after || (matters(entry) && gone < OLD_NEWS)
        });
    }

    /// Takes out what is known of some alerts, for whoever puts it back.
    pub fn set_aside(&mut self, which: impl Fn(&Alert) -> bool) -> BTreeMap<String, Entry> {
        let (aside, entries) = std::mem::take(&mut self.entries).into_iter().partition(|(_, entry)| which(&entry.alert));
        self.entries = entries;
        aside
    }

    /// Of some alerts nothing is known now. Those that held a moment ago go on as they were; those that were gone by then are taken out, for whoever puts
    /// them back: nobody knows whether they are over.
    pub fn hold(&mut self, which: impl Fn(&Alert) -> bool, now: Timestamp, rhythm: &Rhythm) -> BTreeMap<String, Entry> {
        let mut aside = self.set_aside(which);
        for (key, mut entry) in std::mem::take(&mut aside) {
            if entry.is_gone(now, rhythm) {
                aside.insert(key, entry);
            } else {
                entry.seen = now;
                self.entries.insert(key, entry);
            }
        }
        aside
    }

    /// What is to be told now. `None`: nothing.
    pub fn message(&self, now: Timestamp, rhythm: &Rhythm) -> Option<Message> {
        let holds = |entry: &&Entry| !entry.is_gone(now, rhythm);
        let due = |entry: &Entry| match entry.told {
            None => now.duration_since(entry.since) >= rhythm.group_wait,
            // One that got worse is news.
            Some((at, severity)) => entry.alert.severity < severity || now.duration_since(at) >= rhythm.repeat,
        };
        let resolved: Vec<Notice> = self.entries.values().filter(|entry| entry.is_gone(now, rhythm)).map(Entry::notice).collect();
        let mut firing = Vec::new();
        if self.entries.values().filter(holds).any(due) {
            // Whoever is told at all is told of everything that is new, so that one accident is one message.
            firing.extend(self.entries.values().filter(holds).filter(|entry| entry.told.is_none() || due(entry)).map(Entry::notice));
            firing.sort_by_key(|notice: &Notice| notice.alert.severity);
        }
        (!firing.is_empty() || !resolved.is_empty()).then_some(Message { firing, resolved })
    }

    /// All that holds, and what is over and was not told yet: for those who want to hear all the time what holds, and do the rest by themselves. `None`: nothing.
    pub fn everything(&self, now: Timestamp, rhythm: &Rhythm) -> Option<Message> {
        let (gone, held): (Vec<&Entry>, Vec<&Entry>) = self.entries.values().partition(|entry| entry.is_gone(now, rhythm));
        let mut firing: Vec<Notice> = held.iter().map(|entry| entry.notice()).collect();
        firing.sort_by_key(|notice| notice.alert.severity);
        // To those who tell alerts apart by how serious they are, one that got worse is another one: the milder one is over, since it was told.
        let milder = held.iter().filter_map(|entry| {
            let (at, severity) = entry.told.filter(|(_, severity)| *severity != entry.alert.severity)?;
            Some(Notice { alert: Alert { severity, ..entry.alert.clone() }, since: entry.since, seen: at, again: true })
        });
        let resolved: Vec<Notice> = gone.into_iter().map(Entry::notice).chain(milder).collect();
        (!firing.is_empty() || !resolved.is_empty()).then_some(Message { firing, resolved })
    }

    /// A message has arrived.
    pub fn arrived(&mut self, message: &Message, now: Timestamp) {
        for notice in &message.firing {
            if let Some(entry) = self.entries.get_mut(&notice.alert.key()) {
                entry.told = Some((now, notice.alert.severity));
            }
        }
        for notice in &message.resolved {
            // It may hold again by now: then it is a new one.
            if self.entries.get(&notice.alert.key()).is_some_and(|entry| entry.seen == notice.seen) {
                self.entries.remove(&notice.alert.key());
            }
        }
    }

    /// What holds, the worst first.
    pub fn firing(&self, now: Timestamp, rhythm: &Rhythm) -> Vec<&Entry> {
        let mut firing: Vec<&Entry> = self.entries.values().filter(|entry| !entry.is_gone(now, rhythm)).collect();
        firing.sort_by_key(|entry| entry.alert.severity);
        firing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RHYTHM: Rhythm = Rhythm {
        group_wait: SignedDuration::from_secs(30),
        repeat: SignedDuration::from_hours(4),
        resolve_after: SignedDuration::from_secs(60),
    };

    fn alert(name: &'static str, severity: Severity) -> Alert {
        Alert { name: name.into(), subject: String::new(), severity, summary: "s".into(), fix: "f".into() }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn names(notices: &[Notice]) -> Vec<&str> {
        notices.iter().map(|notice| notice.alert.name.as_ref()).collect()
    }

    #[test]
    fn one_accident_is_one_message_and_is_told_again_only_after_a_while() {
        let mut book = Book::default();
        book.note(&[alert("wal-lag", Severity::Warning)], at(0), &RHYTHM);
        assert_eq!(book.message(at(10), &RHYTHM), None);
        let both = [alert("wal-lag", Severity::Warning), alert("server-unreachable", Severity::Critical)];
        book.note(&both, at(29), &RHYTHM);
        let message = book.message(at(30), &RHYTHM).unwrap();
        assert_eq!(names(&message.firing), ["server-unreachable", "wal-lag"], "the worst first, the new one with it");
        // It did not arrive: it comes again.
        assert_eq!(book.message(at(31), &RHYTHM).as_ref(), Some(&message));
        book.arrived(&message, at(31));
        book.note(&both, at(60), &RHYTHM);
        assert_eq!(book.message(at(61), &RHYTHM), None);
        let later = 31 + 4 * 3600;
        book.note(&both, at(later), &RHYTHM);
        let again = book.message(at(later), &RHYTHM).unwrap();
        assert_eq!(names(&again.firing), ["server-unreachable", "wal-lag"]);
        assert!(again.firing.iter().all(|notice| notice.again && notice.since <= at(29)));
    }

    #[test]
    fn a_clock_that_was_ahead_silences_nobody() {
        let year = 365 * 86_400;
        let alerts = [alert("backup-failed", Severity::Critical)];
        let mut book = Book::default();
        book.note(&alerts, at(year), &RHYTHM);
        book.note(&alerts, at(0), &RHYTHM);
        book.note(&alerts, at(30), &RHYTHM);
        let message = book.message(at(30), &RHYTHM).expect("it is told");
        book.arrived(&message, at(year));
        book.note(&alerts, at(60), &RHYTHM);
        book.note(&alerts, at(60 + 4 * 3600), &RHYTHM);
        assert!(book.message(at(60 + 4 * 3600), &RHYTHM).is_some(), "and again");
        book.note(&alerts, at(year), &RHYTHM);
        for seconds in [20_000, 20_060] {
            book.note(&[], at(seconds), &RHYTHM);
        }
        assert_eq!(names(&book.message(at(20_060), &RHYTHM).expect("it is over").resolved), ["backup-failed"]);
    }

    #[test]
    fn what_gets_worse_is_told_at_once() {
        let mut book = Book::default();
        book.note(&[alert("disk-space", Severity::Warning)], at(0), &RHYTHM);
        let message = book.message(at(30), &RHYTHM).unwrap();
        book.arrived(&message, at(30));
        book.note(&[alert("disk-space", Severity::Critical)], at(90), &RHYTHM);
        assert_eq!(names(&book.message(at(90), &RHYTHM).unwrap().firing), ["disk-space"]);
    }

    #[test]
    fn what_is_over_is_told_once_to_those_who_were_told_that_it_began() {
        let mut book = Book::default();
        book.note(&[alert("wal-lag", Severity::Warning)], at(0), &RHYTHM);
        // Gone before anybody was told: nobody is.
        book.note(&[], at(61), &RHYTHM);
        assert_eq!((book.message(at(61), &RHYTHM), book.entries.len()), (None, 0));
        book.note(&[alert("wal-lag", Severity::Warning)], at(100), &RHYTHM);
        book.note(&[alert("wal-lag", Severity::Warning)], at(130), &RHYTHM);
        let message = book.message(at(130), &RHYTHM).unwrap();
        book.arrived(&message, at(130));
        // Gone for a moment only.
        book.note(&[], at(160), &RHYTHM);
        assert_eq!(book.message(at(160), &RHYTHM), None);
        book.note(&[], at(190), &RHYTHM);
        let over = book.message(at(190), &RHYTHM).unwrap();
        assert_eq!((names(&over.firing), names(&over.resolved)), (vec![], vec!["wal-lag"]));
        assert_eq!(over.resolved[0].seen, at(130));
        // The message is lost, and the alert comes back meanwhile: it is not over.
        let mut back = book.clone();
        back.note(&[alert("wal-lag", Severity::Warning)], at(200), &RHYTHM);
        back.arrived(&over, at(201));
        assert_eq!(back.entries.len(), 1);
        book.arrived(&over, at(201));
        assert_eq!(book.entries.len(), 0);
    }

    #[test]
    fn what_nobody_could_look_at_is_not_over() {
        let mut book = Book::default();
        let gap = [alert("wal-gap", Severity::Critical)];
        book.note(&gap, at(0), &RHYTHM);
        book.note(&gap, at(30), &RHYTHM);
        let message = book.message(at(30), &RHYTHM).unwrap();
        book.arrived(&message, at(30));
        // Ten minutes in which nobody sees the archive.
        for second in (45..645).step_by(15) {
            let aside = book.hold(|alert| alert.name == "wal-gap", at(second), &RHYTHM);
            book.note(&[], at(second), &RHYTHM);
            assert_eq!((book.message(at(second), &RHYTHM), aside.len()), (None, 0));
            // Those who want to hear all the time what holds do.
            assert_eq!(names(&book.everything(at(second), &RHYTHM).unwrap().firing), ["wal-gap"]);
        }
        // An agent that was not there for a while, and nobody sees it yet.
        let mut later = book.clone();
        let aside = later.hold(|_| true, at(1000), &RHYTHM);
        later.note(&[], at(1000), &RHYTHM);
        assert_eq!((later.message(at(1000), &RHYTHM), aside.len()), (None, 1));
        later.entries.extend(aside);
        later.note(&gap, at(1015), &RHYTHM);
        assert_eq!(later.message(at(1015), &RHYTHM), None, "it was told");
        // Somebody looked, and it is not there.
        book.note(&[], at(720), &RHYTHM);
        assert_eq!(names(&book.message(at(720), &RHYTHM).unwrap().resolved), ["wal-gap"]);
    }

    #[test]
    fn what_came_and_went_while_nobody_could_be_told_is_told_as_over() {
        let mut book = Book::default();
        let alerts = [alert("wal-lag", Severity::Warning)];
        book.note(&alerts, at(0), &RHYTHM);
        book.note(&alerts, at(30), &RHYTHM);
        assert!(book.message(at(30), &RHYTHM).is_some(), "and it does not arrive");
        book.note(&[], at(600), &RHYTHM);
        let over = book.message(at(600), &RHYTHM).unwrap();
        assert_eq!((names(&over.firing), names(&over.resolved)), (vec![], vec!["wal-lag"]));
        assert_eq!((over.resolved[0].since, over.resolved[0].seen, over.resolved[0].again), (at(0), at(30), false));
        // A week later nobody wants to hear of it.
        let week = 8 * 86_400;
        let mut late = book.clone();
        late.note(&[], at(week), &RHYTHM);
        assert_eq!((late.message(at(week), &RHYTHM), late.entries.len()), (None, 0));
        book.arrived(&over, at(601));
        assert_eq!(book.entries.len(), 0);
    }

    #[test]
    fn who_wants_everything_hears_all_that_holds_every_time() {
        let mut book = Book::default();
        let both = [alert("wal-lag", Severity::Warning), alert("server-unreachable", Severity::Critical)];
        for second in [0, 10, 20] {
            book.note(&both, at(second), &RHYTHM);
            let message = book.everything(at(second), &RHYTHM).unwrap();
            assert_eq!((names(&message.firing), names(&message.resolved)), (vec!["server-unreachable", "wal-lag"], vec![]));
            book.arrived(&message, at(second));
        }
        // Gone for a moment only: it holds.
        book.note(&both[..1], at(50), &RHYTHM);
        let message = book.everything(at(50), &RHYTHM).unwrap();
        assert_eq!(names(&message.firing), ["server-unreachable", "wal-lag"]);
        book.arrived(&message, at(50));
        book.note(&both[..1], at(90), &RHYTHM);
        let message = book.everything(at(90), &RHYTHM).unwrap();
        assert_eq!((names(&message.firing), names(&message.resolved)), (vec!["wal-lag"], vec!["server-unreachable"]));
        assert_eq!(message.resolved[0].seen, at(20));
        book.arrived(&message, at(90));
        book.note(&[], at(200), &RHYTHM);
        let message = book.everything(at(200), &RHYTHM).unwrap();
        assert_eq!((names(&message.firing), names(&message.resolved)), (vec![], vec!["wal-lag"]));
        book.arrived(&message, at(200));
        assert_eq!(book.everything(at(201), &RHYTHM), None);
    }

    #[test]
    fn one_that_gets_worse_ends_the_milder_one_of_those_who_tell_them_apart() {
        let mut book = Book::default();
        book.note(&[alert("disk-space", Severity::Warning)], at(0), &RHYTHM);
        let message = book.everything(at(0), &RHYTHM).unwrap();
        book.arrived(&message, at(1));
        book.note(&[alert("disk-space", Severity::Critical)], at(30), &RHYTHM);
        let message = book.everything(at(30), &RHYTHM).unwrap();
        let seen = |notices: &[Notice]| notices.iter().map(|notice| (notice.alert.severity, notice.seen)).collect::<Vec<_>>();
        assert_eq!(seen(&message.firing), [(Severity::Critical, at(30))]);
        assert_eq!(seen(&message.resolved), [(Severity::Warning, at(1))]);
        book.arrived(&message, at(31));
        assert_eq!(book.entries.len(), 1, "it still holds");
        assert_eq!(book.everything(at(32), &RHYTHM).unwrap().resolved, []);
    }

    #[test]
    fn nothing_waits_where_nothing_is_to_wait_for() {
        let rhythm = Rhythm { group_wait: SignedDuration::ZERO, resolve_after: SignedDuration::ZERO, ..RHYTHM };
        let mut book = Book::default();
        book.note(&[alert("wal-gap", Severity::Critical)], at(0), &rhythm);
        let message = book.message(at(0), &rhythm).unwrap();
        book.arrived(&message, at(0));
        book.note(&[], at(1), &rhythm);
        assert_eq!(names(&book.message(at(1), &rhythm).unwrap().resolved), ["wal-gap"]);
    }
}
