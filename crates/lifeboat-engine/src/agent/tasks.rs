//! Does what is due. When tasks are due and what became of them is in one file, written before and after everything that is begun.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use jiff::Timestamp;
use lifeboat_core::status::{Outcome, TaskSeen};
use lifeboat_core::task::{Memory, Step, Task, Tried};
use serde::{Deserialize, Serialize};

use super::child::{self, Ended, How, Work};
use super::schedule::spread;
use super::turn::Turn;
use super::{AgentError, BEAT, Shared, TaskPlan};
use crate::process::ProcessId;
use crate::runs::{read, write_whole};

/// The file.
const FILE: &str = "tasks.json";

/// One task in the file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Written {
    #[serde(flatten)]
    memory: Memory,
    schedule: String,
    deadline_seconds: u64,
}

/// The file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Book {
    /// The agent that wrote it.
    agent: Option<ProcessId>,
    at: Option<Timestamp>,
    /// It was another agent's turn then.
    #[serde(default)]
    waiting: bool,
    time_zone: String,
    tasks: BTreeMap<Task, Written>,
}

/// What the agent of this host has planned; empty: none ever ran here.
///
/// # Errors
///
/// The file system.
pub fn seen(state: &Path) -> io::Result<Vec<TaskSeen>> {
    let Some(book) = read::<Book>(&state.join("agent").join(FILE))? else { return Ok(Vec::new()) };
    let alive = book.agent.as_ref().is_some_and(ProcessId::is_alive);
    let task = |(task, written): (&Task, &Written)| {
        let memory = &written.memory;
        let next = match (memory.again, memory.due) {
            (Some(again), Some(due)) => Some(again.min(due)),
            (again, due) => again.or(due),
        };
        // What another agent does is late nowhere here.
        let next = next.filter(|_| !book.waiting);
        TaskSeen {
            name: task.name().to_owned(),
            schedule: written.schedule.clone(),
            time_zone: book.time_zone.clone(),
            next,
            running_since: memory.running_since.filter(|_| alive),
            deadline_seconds: written.deadline_seconds,
            attempt: memory.attempt,
            // Nor is it undone here: the other one's agent tells of it.
            undone: memory.undone.clone().filter(|_| !book.waiting),
            at: book.at.unwrap_or(Timestamp::UNIX_EPOCH),
        }
    };
    Ok(book.tasks.iter().map(task).collect())
}

/// Whether an agent of this host runs. `None`: none ever did.
///
/// # Errors
///
/// The file system.
pub fn agent(state: &Path) -> io::Result<Option<bool>> {
    let book = read::<Book>(&state.join("agent").join(FILE))?;
    Ok(book.map(|book| book.agent.as_ref().is_some_and(ProcessId::is_alive)))
}

/// The exit code of whoever finds that somebody else has the lease (`docs/reference/exit-codes.md`).
const LEASED: u8 = 11;

/// A try whose own deadline did not end it so long after that is ended here.
const SLACK: Duration = Duration::from_secs(60);

/// A try that runs.
struct Trial {
    /// Ends it.
    end: Sender<()>,
    ending: bool,
    /// When it began.
    begun: Duration,
}

/// Time since the machine began, also while it slept: whoever sets the clock does not change it (clock_gettime(2), CLOCK_BOOTTIME).
fn uptime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// All tasks.
pub(super) struct Tasks {
    path: PathBuf,
    book: Book,
    running: BTreeMap<Task, Trial>,
}

fn plan(shared: &Shared, task: Task) -> Option<&TaskPlan> {
    shared.settings.tasks.iter().find(|plan| plan.task == task)
}

/// When a task is due next, with its spread.
fn next_due(shared: &Shared, plan: &TaskPlan, now: Timestamp) -> Option<Timestamp> {
    let settings = &shared.settings;
    let later = spread(&settings.system, &settings.host, plan.task.name(), settings.jitter);
    // Behind `now` with its spread, so that what was due a moment ago is not passed over.
    let from = now.checked_sub(later).unwrap_or(now);
    plan.schedule.as_ref()?.next(from)?.checked_add(later).ok()
}

impl Tasks {
    /// What an agent of this host left, brought up to the present settings.
    pub(super) fn load(directory: &Path, shared: &Shared) -> Result<Self, AgentError> {
        let path = directory.join(FILE);
        let failed = |source| AgentError::State { path: path.clone(), source };
        let before = read::<Book>(&path).map_err(failed)?.unwrap_or_default();
        let now = Timestamp::now();
        let mut tasks = BTreeMap::new();
        for plan in &shared.settings.tasks {
            let mut memory = before.tasks.get(&plan.task).map(|written| written.memory.clone()).unwrap_or_default();
            let attempt = memory.attempt;
            let due = next_due(shared, plan, now);
            if memory.resume(due, &plan.terms, now) {
                let name = plan.task.name();
                let next = if memory.again.is_some() { "it is tried again" } else { "it has been tried often enough" };
                shared.warn(&format!("{name} was cut short in try {attempt}, when the agent ended; {next}"));
                shared.count(plan.task, Outcome::Interrupted);
            }
            // What is switched off is not planned.
            if let Some(schedule) = &plan.schedule {
                let written = Written { memory, schedule: schedule.text().to_owned(), deadline_seconds: plan.terms.deadline.as_secs() };
                tasks.insert(plan.task, written);
            }
        }
        let book =
            Book { agent: Some(ProcessId::own()), at: Some(now), waiting: false, time_zone: shared.settings.time_zone.clone(), tasks };
        write_whole(&path, &book).map_err(failed)?;
        Ok(Self { path, book, running: BTreeMap::new() })
    }

    fn save(&mut self, shared: &Shared, now: Timestamp) {
        self.book.at = Some(now);
        if let Err(error) = write_whole(&self.path, &self.book) {
            shared.warn(&format!("what is planned is not written down in {}: {error}", self.path.display()));
        }
    }

    /// Works until the agent ends and all that was begun has.
    pub(super) fn work(&mut self, shared: &Arc<Shared>, woken: &Receiver<()>) {
        let (sender, ended) = crossbeam_channel::unbounded::<(Task, Ended)>();
        while !shared.stop.is_stopped() {
            shared.beats();
            let until = self.step(shared, &sender);
            let now = Timestamp::now();
            let span = until.map_or(BEAT, |until| Duration::try_from(until.duration_since(now)).unwrap_or_default());
            // The clock may be set meanwhile, so nobody sleeps for long.
            let tick = crossbeam_channel::after(span.clamp(Duration::from_millis(200), BEAT));
            crossbeam_channel::select! {
                recv(ended) -> message => if let Ok((task, ended)) = message { self.ended(shared, task, &ended) },
                recv(woken) -> _ => {}
                recv(shared.stop.channel()) -> _ => {}
                recv(tick) -> _ => {}
            }
        }
        // Everything that runs has noticed by itself; each has its grace, and is killed behind it.
        while !self.running.is_empty() {
            match ended.recv() {
                Ok((task, ended)) => self.ended(shared, task, &ended),
                Err(_) => return,
            }
        }
    }

    /// Begins and ends what is to be, and says until when there is nothing to do.
    fn step(&mut self, shared: &Arc<Shared>, sender: &Sender<(Task, Ended)>) -> Option<Timestamp> {
        let turn = shared.turn();
        let leading = matches!(turn, Turn::Ours);
        // Where nobody knows whose turn it is, what does not begin is late.
        let waiting = matches!(turn, Turn::Others { .. });
        if waiting != self.book.waiting {
            self.book.waiting = waiting;
            self.save(shared, Timestamp::now());
        }
        let mut until: Option<Timestamp> = None;
        let tasks: Vec<Task> = self.book.tasks.keys().copied().collect();
        for task in tasks {
            let Some(plan) = plan(shared, task) else { continue };
            let now = Timestamp::now();
            let next = next_due(shared, plan, now);
            let Some(memory) = self.book.tasks.get_mut(&task).map(|written| &mut written.memory) else { continue };
            let before = memory.due;
            if memory.replan(next, &plan.terms, now) {
                if let (Some(before), Some(due)) = (before, memory.due.filter(|due| Some(*due) != before)) {
                    shared.warn(&format!("the clock was set back: {} is due at {due:.0}, not at {before:.0}", task.name()));
                }
                self.save(shared, now);
            }
            let memory = &self.book.tasks[&task].memory;
            // Its own deadline ends it, by a clock that stands still while the machine sleeps: this is for then.
            let runs_for = self.running.get(&task).map(|trial| uptime().saturating_sub(trial.begun).saturating_sub(SLACK));
            match memory.step(&plan.terms, leading, now, runs_for) {
                Step::Begin(attempt) => self.begin(shared, plan, (attempt, next), sender, now),
                Step::End => {
                    if let Some(trial) = self.running.get_mut(&task).filter(|trial| !trial.ending) {
                        trial.ending = true;
                        shared.warn(&format!("{} takes longer than its deadline and is ended", task.name()));
                        let _ = trial.end.try_send(());
                    }
                }
                Step::Wait(next) if leading || memory.running_since.is_some() => {
                    until = match (until, next) {
                        (Some(until), Some(next)) => Some(until.min(next)),
                        (until, next) => until.or(next),
                    };
                }
                Step::Wait(_) => {}
            }
        }
        until
    }

    /// Begins a try; `next` is when the task is due behind it.
    fn begin(
        &mut self,
        shared: &Arc<Shared>,
        plan: &TaskPlan,
        (attempt, next): (u32, Option<Timestamp>),
        sender: &Sender<(Task, Ended)>,
        now: Timestamp,
    ) {
        let task = plan.task;
        if let Some(written) = self.book.tasks.get_mut(&task) {
            written.memory.begins(attempt, next, now);
        }
        self.save(shared, now);
        let tries = if attempt > 1 { format!(", try {attempt} of {}", plan.terms.attempts) } else { String::new() };
        shared.info(&format!("{} begins{tries}", task.name()));
        let (end, ends) = crossbeam_channel::bounded(1);
        self.running.insert(task, Trial { end, ending: false, begun: uptime() });
        let mut arguments: Vec<OsString> = task.command().iter().map(Into::into).collect();
        arguments.extend(plan.arguments.iter().map(Into::into));
        let (shared, sender) = (Arc::clone(shared), sender.clone());
        // Its deadline by the clock that nobody sets.
        let deadline = Some(plan.terms.deadline);
        std::thread::spawn(move || {
            let work = Work { name: task.name(), arguments, end: &ends, deadline, keep: 0 };
            let ended = child::run(&shared, &work);
            let _ = sender.send((task, ended));
        });
    }

    fn ended(&mut self, shared: &Shared, task: Task, ended: &Ended) {
        self.running.remove(&task);
        let Some(plan) = plan(shared, task) else { return };
        let now = Timestamp::now();
        let tried = match ended.how {
            How::Itself => Tried::of(ended.exit_code),
            How::Ended | How::Signal(_) | How::Trouble(_) => Tried::Again,
        };
        let outcome = match (&ended.how, ended.exit_code) {
            (How::Itself, Some(0)) => Outcome::Succeeded,
            (How::Itself, Some(3)) => Outcome::Findings,
            (How::Itself, _) => Outcome::Failed,
            _ => Outcome::Interrupted,
        };
        let Some(written) = self.book.tasks.get_mut(&task) else { return };
        if shared.stop.is_stopped() && tried == Tried::Again {
            // It is the agent that ended: the next one finds it as it is, and goes on.
            self.save(shared, now);
            return;
        }
        let how = match (&ended.how, ended.exit_code) {
            (How::Itself, Some(0)) => "is done".to_owned(),
            (How::Itself, Some(LEASED)) => format!("ended with exit code {LEASED}: somebody else holds the lease"),
            (How::Itself, Some(code)) => format!("ended with exit code {code}"),
            (How::Itself, None) | (How::Ended, _) => "was ended".to_owned(),
            (How::Signal(signal), _) => format!("was ended by signal {signal}"),
            (How::Trouble(why), _) => format!("did not run: {why}"),
        };
        written.memory.ended(tried, &how, &plan.terms, now);
        let again = written.memory.again;
        self.save(shared, now);
        shared.count(task, outcome);
        let next = again.map(|again| format!("; it is tried again at {again:.0}")).unwrap_or_default();
        let line = format!("{} {how}{next}", task.name());
        match outcome {
            Outcome::Succeeded => shared.info(&line),
            _ => shared.warn(&line),
        }
    }
}
