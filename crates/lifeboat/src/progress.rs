//! Progress: bars on a terminal, a line for each phase otherwise.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lifeboat_engine::progress::Progress;

use crate::log::PhaseLine;
use crate::{output, traces};

/// Time between two lines about one phase where no bar can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Shows how far a command has come.
pub(crate) struct Shown {
    bar: Option<ProgressBar>,
    state: Mutex<State>,
    files: AtomicU64,
    bytes: AtomicU64,
}

struct State {
    phase: &'static str,
    begun: Instant,
    said: Instant,
    total: (u64, u64),
}

impl State {
    fn line(&self, files: u64, bytes: u64) -> PhaseLine {
        let seconds = self.begun.elapsed().as_millis() as f64 / 1000.0;
        PhaseLine { phase: self.phase, seconds, files, bytes, total_files: None, total_bytes: None }
    }
}

impl Shown {
    pub(crate) fn new() -> Self {
        let bar = output::can_draw().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            state: Mutex::new(State { phase: "", begun: now, said: now, total: (0, 0) }),
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn end_phase(&self, state: &State) {
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        let files = self.files.swap(0, Ordering::Relaxed);
        if state.phase.is_empty() {
            return;
        }
        traces::phase_ends(files, bytes);
        if self.bar.is_some() {
            return;
        }
        let took = state.begun.elapsed();
        let mut line = format!("{}: done in {}", state.phase, output::seconds(took));
        if bytes > 0 {
            let rate = bytes as f64 / took.as_secs_f64().max(0.001);
            line.push_str(&format!(", {files} files, {}, {}/s", output::bytes(bytes), output::bytes(rate as u64)));
        }
        output::tell_phase(state.line(files, bytes), &line);
    }

    /// Ends the last phase and takes the bar away.
    pub(crate) fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.end_phase(&state);
        state.phase = "";
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Shown {
    fn phase(&self, name: &'static str) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.end_phase(&state);
        let now = Instant::now();
        *state = State { phase: name, begun: now, said: now, total: (0, 0) };
        traces::phase_begins(name);
        if let Some(bar) = &self.bar {
            bar.unset_length();
            bar.reset();
            bar.set_message(name);
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            bar.set_style(style);
        }
    }

    fn total(&self, files: u64, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.total = (files, bytes);
        if let Some(bar) = &self.bar {
            bar.set_length(bytes);
            let template =
                "{spinner} {msg} [{bar:32}] {binary_bytes} of {binary_total_bytes} ({percent} %), {binary_bytes_per_sec}, {eta} left";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
    }

    fn add(&self, files: u64, bytes: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
        let done = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if let Ok(mut state) = self.state.try_lock()
            && state.said.elapsed() >= LINE_EVERY
        {
            state.said = Instant::now();
            let (total_files, total_bytes) = (Some(state.total.0), Some(state.total.1));
            let line = PhaseLine { total_files, total_bytes, ..state.line(self.files.load(Ordering::Relaxed), done) };
            output::tell_phase(line, &format!("{}: {} of {}", state.phase, output::bytes(done), output::bytes(state.total.1)));
        }
    }

    fn warn(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::warn(message)),
            None => output::warn(message),
        }
    }
}
