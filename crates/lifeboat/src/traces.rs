//! The trace of a command: a span for all of it and one for each of its phases, sent by OTLP when it ends (docs/logs.md).
//!
//! It must not change what a command does, how it ends, or, by more than a few seconds, when.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::trace_context::SpanId;
use lifeboat_engine::secret::Secret;
use lifeboat_engine::traces::{self, Collector, Span, Value};

use crate::cli::{Command, Wal};
use crate::config::{Headers, Secret as Reference, Settings, TracesSettings};
use crate::failure::EXIT_FINDINGS;
use crate::operation::{self, Moment};
use crate::{output, session};

/// How long a collector may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// The same where somebody ends the command and waits for that.
pub(crate) const HURRY: Duration = Duration::from_secs(1);

/// For what comes before the request: a program that prints a secret, a name that is looked up.
const GRACE: Duration = Duration::from_secs(1);

/// Phases that a trace has at most: `verify --all` has some for every backup, and no collector shows so many.
const MOST_PHASES: usize = 1000;

/// The trace of the command that runs, if it is sent anywhere.
static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

struct Running {
    settings: TracesSettings,
    system: String,
    backup: Option<String>,
    phases: Vec<Span>,
    left_out: u64,
    open: Option<(&'static str, Moment)>,
}

fn running() -> MutexGuard<'static, Option<Running>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a command is worth a trace. A server waits for `wal push` and `wal fetch` by the thousand, the receiver never ends, and what only
/// shows the configuration has to work while it is wrong.
fn is_traced(command: &Command) -> bool {
    let unending = matches!(command, Command::Wal(Wal::Push(_) | Wal::Fetch(_) | Wal::Prefetch(_) | Wal::Receive(_)));
    // The agent runs for weeks, and what it does is traced each by itself; it looks every minute.
    !unending && !matches!(command, Command::Config(_) | Command::Agent(_) | Command::Status(_))
}

/// Begins the trace of a command, where traces are sent and whoever started it did not say that this one is not wanted.
pub(crate) fn begin(settings: &Settings, command: &Command) {
    if !is_traced(command) || !operation::this().context.sampled {
        return;
    }
    if let Some(trouble) = &settings.traces.trouble {
        output::warn(&format!("no trace of this is sent: {trouble}"));
    }
    if settings.traces.endpoint.is_some() {
        *running() = Some(Running {
            settings: settings.traces.clone(),
            system: settings.name.value.clone(),
            backup: None,
            phases: Vec::new(),
            left_out: 0,
            open: None,
        });
    }
}

/// Whether what happens now will be in a trace.
pub(crate) fn is_sent() -> bool {
    running().is_some()
}

/// The command is about this backup.
pub(crate) fn about(backup: &BackupId) {
    if let Some(running) = &mut *running() {
        running.backup = Some(backup.to_string());
    }
}

/// A phase begins.
pub(crate) fn phase_begins(name: &'static str) {
    if let Some(running) = &mut *running() {
        running.open = Some((name, Moment::now()));
    }
}

/// It ended, with so much done.
pub(crate) fn phase_ends(files: u64, bytes: u64) {
    if let Some(running) = &mut *running() {
        running.close(vec![("lifeboat.files", Value::Number(files)), ("lifeboat.bytes", Value::Number(bytes))], None);
    }
}

impl Running {
    fn close(&mut self, attributes: Vec<(&'static str, Value)>, error: Option<&str>) {
        let Some((name, begun)) = self.open.take() else { return };
        if self.phases.len() == MOST_PHASES {
            self.left_out += 1;
            return;
        }
        self.phases.push(Span {
            id: SpanId(lifeboat_engine::random::bytes()),
            parent: Some(operation::this().context.span),
            parent_is_remote: false,
            name: name.to_owned(),
            start: begun.time(),
            end: begun.until_now(),
            attributes,
            error: error.map(str::to_owned),
        });
    }

    /// The span of the command, and those of its phases.
    fn spans(mut self, exit_code: u8, problem: Option<&str>) -> Vec<Span> {
        let failed = exit_code != 0 && exit_code != EXIT_FINDINGS;
        let error = problem.map(str::to_owned).or_else(|| failed.then(|| format!("it ended with exit code {exit_code}")));
        // Nobody said that it ended.
        self.close(Vec::new(), error.as_deref());
        let this = operation::this();
        let command = operation::command().unwrap_or("lifeboat");
        let mut attributes = vec![
            ("lifeboat.command", Value::Text(command.to_owned())),
            ("lifeboat.system", Value::Text(self.system)),
            ("process.exit.code", Value::Number(exit_code.into())),
        ];
        attributes.extend(self.backup.map(|backup| ("lifeboat.backup", Value::Text(backup))));
        attributes.extend((self.left_out > 0).then_some(("lifeboat.phases_left_out", Value::Number(self.left_out))));
        let whole = Span {
            id: this.context.span,
            parent: this.parent,
            parent_is_remote: this.parent.is_some(),
            name: command.to_owned(),
            start: this.begun.time(),
            end: this.begun.until_now(),
            attributes,
            error,
        };
        std::iter::once(whole).chain(self.phases).collect()
    }
}

/// Ends the trace with the command, and sends it. That it could not be sent is a warning.
pub(crate) fn end(exit_code: u8, problem: Option<&str>, patience: Duration) {
    let Some(running) = running().take() else { return };
    let settings = running.settings.clone();
    if let Err(trouble) = deliver(settings, running.spans(exit_code, problem), patience) {
        output::warn(&format!("the trace of this is lost: {trouble}"));
    }
}

/// Sends a collector nothing, to see whether it would take something: its address, and why it does not. `None`: nothing is sent anywhere.
pub(crate) fn try_out(settings: &TracesSettings) -> Option<(String, Option<String>)> {
    match (&settings.trouble, &settings.endpoint) {
        (Some(trouble), _) => Some(("traces".to_owned(), Some(trouble.clone()))),
        (None, Some(endpoint)) => Some((endpoint.value.to_string(), deliver(settings.clone(), Vec::new(), PATIENCE).err())),
        (None, None) => None,
    }
}

/// Sends spans on a thread that is left to itself if it takes too long: the process ends, and it with it.
fn deliver(settings: TracesSettings, spans: Vec<Span>, patience: Duration) -> Result<(), String> {
    let (sender, sent) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(send(&settings, spans, patience));
    });
    match sent.recv_timeout(patience + GRACE) {
        Ok(sent) => sent,
        Err(RecvTimeoutError::Timeout) => Err(format!("it was not sent within {:?}", patience + GRACE)),
        Err(RecvTimeoutError::Disconnected) => Err("the client failed".to_owned()),
    }
}

fn send(settings: &TracesSettings, spans: Vec<Span>, patience: Duration) -> Result<(), String> {
    let Some(endpoint) = &settings.endpoint else { return Ok(()) };
    let read = |reference: &Reference, what: &str| session::secret(reference, what).map_err(|failure| failure.message);
    let headers: Vec<(String, Secret)> = match &settings.headers.value {
        Headers::Named(all) => {
            let named = all.iter().map(|(name, reference)| Ok((name.clone(), read(reference, &format!("header {name}"))?)));
            named.collect::<Result<_, String>>()?
        }
        Headers::Listed(variable) => {
            let list = read(&Reference::Env((*variable).to_owned()), "headers")?;
            let text = list.expose_text().map_err(|error| format!("read {variable}: {error}"))?;
            traces::header_list(text).map_err(|problem| format!("read {variable}: {problem}"))?
        }
    };
    let collector =
        Collector { url: endpoint.value.clone(), headers, ca_file: settings.ca_file.as_ref().map(|setting| setting.value.clone()) };
    let resource = [
        ("service.name", "lifeboat".to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("host.name", session::host()),
    ];
    traces::send(&collector, &resource, operation::id(), spans, patience).map_err(|error| error.to_string())
}
