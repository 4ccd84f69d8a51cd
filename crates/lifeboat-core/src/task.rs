//! What the agent does by itself, and when: facts in, one step out.
//!
//! A task is due at the moments of its schedule (the engine reads cron expressions). What was due while nobody was there is done once, at once. One
//! that fails is tried again, later each time, until its tries are used up or it is due anew. One that takes longer than its deadline is ended.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Something that the agent does by itself: a command with this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Take a backup.
    Backup,
    /// Read back what is stored.
    Verify,
    /// Mark what no rule keeps.
    Expire,
    /// Delete what expired.
    Prune,
    /// Bring replicas to what the primary has.
    Replicate,
    /// Prove that it restores.
    Drill,
}

impl Task {
    /// All.
    pub const ALL: [Self; 6] = [Self::Backup, Self::Verify, Self::Expire, Self::Prune, Self::Replicate, Self::Drill];

    /// Its name, and that of the operation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Verify => "verify",
            Self::Expire => "expire",
            Self::Prune => "prune",
            Self::Replicate => "replicate",
            Self::Drill => "drill",
        }
    }

    /// Its command, without the program.
    pub const fn command(self) -> &'static [&'static str] {
        match self {
            Self::Backup => &["backup"],
            Self::Verify => &["verify", "--all"],
            Self::Expire => &["expire"],
            Self::Prune => &["prune"],
            Self::Replicate => &["replicate"],
            Self::Drill => &["drill", "run"],
        }
    }
}

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tried {
    /// The work is done.
    Done,
    /// It is not, and another try may do it.
    Again,
    /// It is not, and another try would do the same: bad settings.
    Never,
}

impl Tried {
    /// What an exit code says (`docs/reference/exit-codes.md`); `None`: the process was ended by a signal.
    pub const fn of(exit_code: Option<u8>) -> Self {
        match exit_code {
            // Findings: the work is done, and what it found would be found again. So is a missed objective, and damage that a verification found.
            Some(0 | 3 | 21 | 23) => Self::Done,
            // Bad settings, format too new.
            Some(2 | 13) => Self::Never,
            // Also what looks like a decision: no repository is a disk that is not mounted yet, a wrong key a command that did not get at it, a denial
            // an OPA that did not answer. Where it is one, another try costs little.
            Some(_) | None => Self::Again,
        }
    }
}

/// A task that was not done when it was due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// When its last try ended.
    pub at: Timestamp,
    /// How that one did.
    pub why: String,
}

/// What the agent remembers of a task: written down before and after everything that it does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// When it is due: the next moment of its schedule, with its spread.
    #[serde(default)]
    pub due: Option<Timestamp>,
    /// The try that runs, or ran last, since it was due; 0: none.
    #[serde(default)]
    pub attempt: u32,
    /// When the next try may begin.
    #[serde(default)]
    pub again: Option<Timestamp>,
    /// Since when one runs, as far as was written down.
    #[serde(default)]
    pub running_since: Option<Timestamp>,
    /// Its tries were used up, or were of no use, and it was not done since.
    #[serde(default)]
    pub undone: Option<Undone>,
}

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// It is ended when it takes longer.
    pub deadline: Duration,
    /// So many tries.
    pub attempts: u32,
    /// Time until the second; doubled for each one after it.
    pub retry_after: Duration,
}

/// What is to be done with a task now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Begin this try.
    Begin(u32),
    /// It takes too long: end it.
    End,
    /// Nothing before this moment; `None`: nothing at all.
    Wait(Option<Timestamp>),
}

/// Later by a span; at the end of time if that is too far.
fn after(moment: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| moment.checked_add(span).ok()).unwrap_or(Timestamp::MAX)
}

impl Memory {
    /// What is to be done now. Only who has the lease (`leading`) begins anything. `runs_for` is how long the try that runs has, by a clock that nobody
    /// sets.
    pub fn step(&self, terms: &Terms, leading: bool, now: Timestamp, runs_for: Option<Duration>) -> Step {
        if let Some(runs_for) = runs_for {
            return match terms.deadline.checked_sub(runs_for) {
                Some(left) if !left.is_zero() => Step::Wait(Some(after(now, left))),
                _ => Step::End,
            };
        }
        let next = match (self.again, self.due) {
            (Some(again), Some(due)) => again.min(due),
            (again, due) => match again.or(due) {
                Some(next) => next,
                None => return Step::Wait(None),
            },
        };
        if now < next || !leading {
            return Step::Wait(Some(next));
        }
        // What is due anew begins anew, whatever became of the tries before.
        let anew = self.due.is_some_and(|due| now >= due);
        Step::Begin(if anew { 1 } else { self.attempt + 1 })
    }

    /// A try begins. `next` is the moment of the schedule behind `now`.
    pub fn begins(&mut self, attempt: u32, next: Option<Timestamp>, now: Timestamp) {
        self.attempt = attempt;
        self.again = None;
        self.running_since = Some(now);
        if attempt == 1 || self.due.is_none() {
            self.due = next;
        }
    }

    /// It ended, or nobody knows how it did; `how` says that in words.
    pub fn ended(&mut self, tried: Tried, how: &str, terms: &Terms, now: Timestamp) {
        self.running_since = None;
        let left = self.attempt < terms.attempts;
        if tried == Tried::Again && left {
            self.again = Some(after(now, self.pause(terms)));
        } else {
            self.again = None;
            self.attempt = 0;
            // Until it is done, whatever the next tries do.
            self.undone = (tried != Tried::Done).then(|| Undone { at: now, why: how.to_owned() });
        }
    }

    /// Time until the try behind this one.
    fn pause(&self, terms: &Terms) -> Duration {
        let doublings = self.attempt.saturating_sub(1).min(16);
        terms.retry_after.saturating_mul(1 << doublings)
    }

    /// What was planned by a clock that was ahead is not put off until that clock's time: nothing is later than it would be if it were planned now.
    /// `next` is the schedule's next moment. Returns whether a clock was set back.
    pub fn replan(&mut self, next: Option<Timestamp>, terms: &Terms, now: Timestamp) -> bool {
        let before = self.clone();
        if let (Some(due), Some(next)) = (self.due, next) {
            self.due = Some(due.min(next.max(now)));
        }
        self.again = self.again.map(|again| again.min(after(now, self.pause(terms))));
        self.running_since = self.running_since.map(|since| since.min(now));
        *self != before
    }

    /// The agent begins: what it left running is not running any more, and what the schedule says may have changed.
    /// `next` is the schedule's next moment; `None`: it is off. Returns whether a try was cut short.
    pub fn resume(&mut self, next: Option<Timestamp>, terms: &Terms, now: Timestamp) -> bool {
        let cut = self.running_since.is_some();
        if cut {
            self.ended(Tried::Again, "was cut short when the agent ended", terms, now);
            // Whoever starts the agent again waits for nothing.
            self.again = self.again.map(|_| now);
        }
        match next {
            None => *self = Self::default(),
            // What was due while nobody was there is still due. A schedule that changed counts from now.
            Some(next) => self.due = Some(self.due.filter(|due| *due <= now).map_or(next, |due| due.min(next))),
        }
        cut && next.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { deadline: Duration::from_secs(3600), attempts: 3, retry_after: Duration::from_secs(60) };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_task_begins_when_it_is_due_and_only_where_the_lease_is() {
        let memory = Memory { due: Some(at(100)), ..Memory::default() };
        assert_eq!(memory.step(&TERMS, true, at(99), None), Step::Wait(Some(at(100))));
        assert_eq!(memory.step(&TERMS, false, at(100), None), Step::Wait(Some(at(100))));
        assert_eq!(memory.step(&TERMS, true, at(100), None), Step::Begin(1));
        assert_eq!(Memory::default().step(&TERMS, true, at(0), None), Step::Wait(None));
    }

    #[test]
    fn one_that_takes_too_long_is_ended() {
        let mut memory = Memory { due: Some(at(0)), ..Memory::default() };
        memory.begins(1, Some(at(86_400)), at(0));
        let after = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(memory.step(&TERMS, true, at(3599), after(3599)), Step::Wait(Some(at(3600))));
        assert_eq!(memory.step(&TERMS, true, at(3600), after(3600)), Step::End);
        // Also when another agent has the lease meanwhile.
        assert_eq!(memory.step(&TERMS, false, at(3600), after(3601)), Step::End);
        // Whatever the clock says that people set.
        assert_eq!(memory.step(&TERMS, true, at(86_400), after(60)), Step::Wait(Some(at(86_400 + 3540))));
    }

    #[test]
    fn one_that_fails_is_tried_again_later_each_time_until_its_tries_are_used_up() {
        let mut memory = Memory { due: Some(at(0)), ..Memory::default() };
        memory.begins(1, Some(at(86_400)), at(0));
        memory.ended(Tried::Again, "failed", &TERMS, at(10));
        assert_eq!(memory.step(&TERMS, true, at(69), None), Step::Wait(Some(at(70))));
        assert_eq!(memory.step(&TERMS, true, at(70), None), Step::Begin(2));
        memory.begins(2, Some(at(86_400)), at(70));
        memory.ended(Tried::Again, "failed", &TERMS, at(80));
        assert_eq!(memory.step(&TERMS, true, at(200), None), Step::Begin(3));
        memory.begins(3, Some(at(86_400)), at(200));
        memory.ended(Tried::Again, "failed", &TERMS, at(210));
        assert_eq!(memory.step(&TERMS, true, at(1000), None), Step::Wait(Some(at(86_400))));
        assert_eq!(memory.step(&TERMS, true, at(86_400), None), Step::Begin(1));
    }

    #[test]
    fn what_another_try_would_not_change_is_not_tried_again() {
        for code in [0, 2, 3, 13, 21, 23] {
            let mut memory = Memory { due: Some(at(0)), ..Memory::default() };
            memory.begins(1, Some(at(86_400)), at(0));
            memory.ended(Tried::of(Some(code)), "failed", &TERMS, at(10));
            assert_eq!(memory.step(&TERMS, true, at(5000), None), Step::Wait(Some(at(86_400))), "{code}");
        }
        for code in [Some(1), Some(10), Some(11), Some(12), Some(20), Some(70), Some(130), None] {
            assert_eq!(Tried::of(code), Tried::Again, "{code:?}");
        }
    }

    /// One that finds the lease taken each time leaves no record of a run, and one whose arguments are bad never gets as far.
    #[test]
    fn what_was_not_done_is_remembered_until_it_is() {
        let mut memory = Memory { due: Some(at(0)), ..Memory::default() };
        for attempt in 1..=3 {
            assert_eq!(memory.undone, None, "there is another try");
            memory.begins(attempt, Some(at(86_400)), at(0));
            memory.ended(Tried::Again, "ended with exit code 11", &TERMS, at(10));
        }
        let undone = Some(Undone { at: at(10), why: "ended with exit code 11".into() });
        assert_eq!(memory.undone, undone);
        // It is due again, and nobody knows yet how that ends.
        memory.begins(1, Some(at(2 * 86_400)), at(86_400));
        memory.ended(Tried::Again, "ended with exit code 1", &TERMS, at(86_410));
        assert_eq!(memory.undone, undone);
        memory.begins(2, Some(at(2 * 86_400)), at(86_500));
        memory.ended(Tried::Done, "is done", &TERMS, at(86_510));
        assert_eq!(memory.undone, None);
        memory.begins(1, Some(at(3 * 86_400)), at(2 * 86_400));
        memory.ended(Tried::Never, "ended with exit code 2", &TERMS, at(2 * 86_400 + 1));
        assert_eq!(memory.undone.as_ref().map(|undone| undone.why.as_str()), Some("ended with exit code 2"));
        // What an agent wrote that did not know of this.
        let old: Memory = serde_json::from_str(r#"{"due": null, "attempt": 2}"#).unwrap();
        assert_eq!((old.attempt, old.undone), (2, None));
    }

    #[test]
    fn tries_do_not_run_into_the_next_time_that_it_is_due() {
        let mut memory = Memory { due: Some(at(0)), ..Memory::default() };
        memory.begins(1, Some(at(100)), at(0));
        memory.ended(Tried::Again, "failed", &TERMS, at(90));
        assert_eq!(memory.again, Some(at(150)));
        assert_eq!(memory.step(&TERMS, true, at(100), None), Step::Begin(1), "due anew");
        memory.begins(1, Some(at(200)), at(100));
        assert_eq!((memory.due, memory.again), (Some(at(200)), None));
    }

    #[test]
    fn a_crash_in_the_middle_is_found_and_the_task_is_tried_again() {
        let mut memory = Memory { due: Some(at(0)), ..Memory::default() };
        memory.begins(1, Some(at(86_400)), at(0));
        assert!(memory.resume(Some(at(86_400)), &TERMS, at(500)));
        assert_eq!(memory.step(&TERMS, true, at(500), None), Step::Begin(2));
        // Not for ever: a task that takes the machine down with it must not do so each time.
        memory.begins(2, Some(at(86_400)), at(500));
        assert!(memory.resume(Some(at(86_400)), &TERMS, at(600)));
        memory.begins(3, Some(at(86_400)), at(600));
        assert!(memory.resume(Some(at(86_400)), &TERMS, at(700)));
        assert_eq!(memory.step(&TERMS, true, at(700), None), Step::Wait(Some(at(86_400))));
    }

    #[test]
    fn what_was_due_while_nobody_was_there_is_done_once() {
        let mut memory = Memory { due: Some(at(0)), ..Memory::default() };
        assert!(!memory.resume(Some(at(10 * 86_400)), &TERMS, at(9 * 86_400)));
        assert_eq!(memory.step(&TERMS, true, at(9 * 86_400), None), Step::Begin(1));
        memory.begins(1, Some(at(10 * 86_400)), at(9 * 86_400));
        memory.ended(Tried::Done, "failed", &TERMS, at(9 * 86_400 + 60));
        assert_eq!(memory.step(&TERMS, true, at(9 * 86_400 + 61), None), Step::Wait(Some(at(10 * 86_400))));
        // A schedule that was changed to an earlier time counts, and one that was switched off ends everything.
        assert!(!memory.resume(Some(at(9 * 86_400 + 600)), &TERMS, at(9 * 86_400 + 70)));
        assert_eq!(memory.due, Some(at(9 * 86_400 + 600)));
        memory.resume(None, &TERMS, at(9 * 86_400 + 80));
        assert_eq!(memory, Memory::default());
    }

    /// A machine whose clock is years ahead until somebody sets it must not wait for those years.
    #[test]
    fn a_clock_that_was_ahead_puts_nothing_off() {
        let year = 365 * 86_400;
        let mut memory = Memory { due: Some(at(0)), ..Memory::default() };
        memory.begins(1, Some(at(year + 86_400)), at(year));
        assert!(memory.replan(Some(at(86_400)), &TERMS, at(10)));
        assert_eq!((memory.due, memory.running_since), (Some(at(86_400)), Some(at(10))));
        memory.ended(Tried::Again, "failed", &TERMS, at(year + 20));
        assert!(memory.replan(Some(at(86_400)), &TERMS, at(30)));
        assert_eq!(memory.step(&TERMS, true, at(90), None), Step::Begin(2));
    }

    #[test]
    fn while_nobody_sets_the_clock_nothing_is_planned_anew() {
        let mut memory = Memory { due: Some(at(100)), ..Memory::default() };
        assert!(!memory.replan(Some(at(100)), &TERMS, at(50)));
        // It is due, and waits for its turn.
        assert!(!memory.replan(Some(at(200)), &TERMS, at(150)));
        assert_eq!(memory.due, Some(at(100)));
        memory.begins(1, Some(at(200)), at(150));
        assert!(!memory.replan(Some(at(200)), &TERMS, at(160)));
        memory.ended(Tried::Again, "failed", &TERMS, at(160));
        assert!(!memory.replan(Some(at(200)), &TERMS, at(160)));
        // A schedule that has no moment any more leaves what it had.
        assert!(!memory.replan(None, &TERMS, at(170)));
    }
}
