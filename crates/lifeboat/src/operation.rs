//! Which operation this process is: one id for all that it says, sends and writes down, which what it starts shares (docs/logs.md).

use std::process::Command;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

use clap::ArgMatches;
use lifeboat_core::repository::Id;
use lifeboat_core::trace_context::{SpanId, TraceContext, VARIABLE};

use crate::log;

static THIS: OnceLock<Operation> = OnceLock::new();
static COMMAND: OnceLock<String> = OnceLock::new();

/// One run of the program.
pub(crate) struct Operation {
    /// Its id is the trace's; the span is that of this process, and the parent of what it starts.
    pub(crate) context: TraceContext,
    /// The span of whoever started this process and said so.
    pub(crate) parent: Option<SpanId>,
    /// When it began.
    pub(crate) begun: Moment,
}

/// A moment, by the clock of people and by one that only goes forward.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    time: SystemTime,
    clock: Instant,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { time: SystemTime::now(), clock: Instant::now() }
    }

    /// When it was.
    pub(crate) fn time(&self) -> SystemTime {
        self.time
    }

    /// What time it is, if nobody has set the clock since.
    pub(crate) fn until_now(&self) -> SystemTime {
        self.time + self.clock.elapsed()
    }
}

/// The operation of this process: a part of what `TRACEPARENT` says, else one of its own. What is no context there does not count, as the
/// standard has it.
pub(crate) fn this() -> &'static Operation {
    THIS.get_or_init(|| Operation::begin(std::env::var(VARIABLE).ok().as_deref()))
}

impl Operation {
    fn begin(said: Option<&str>) -> Self {
        let around: Option<TraceContext> = said.and_then(|text| text.parse().ok());
        let context = TraceContext {
            trace: around.map_or_else(lifeboat_engine::random::id, |around| around.trace),
            span: SpanId(lifeboat_engine::random::bytes()),
            sampled: around.is_none_or(|around| around.sampled),
        };
        Self { context, parent: around.map(|around| around.span), begun: Moment::now() }
    }
}

/// The id.
pub(crate) fn id() -> Id {
    this().context.trace
}

/// Remembers the words of the command.
pub(crate) fn is_called(matches: &ArgMatches) {
    let mut words = Vec::new();
    let mut next = matches.subcommand();
    while let Some((word, inner)) = next {
        words.push(word);
        next = inner.subcommand();
    }
    if !words.is_empty() {
        let _ = COMMAND.set(words.join(" "));
    }
}

/// The words of the command, once they are known: `wal push`.
pub(crate) fn command() -> Option<&'static str> {
    COMMAND.get().map(String::as_str)
}

/// Lets a lifeboat that is about to be started be a part of this operation, and write its lines as this one does.
pub(crate) fn pass_on(command: &mut Command) {
    command.env(VARIABLE, this().context.to_string()).env(log::VARIABLE, log::format().name());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_a_part_of_what_started_it() {
        let around = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let inside = Operation::begin(Some(around));
        assert_eq!(inside.context.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((inside.parent.unwrap().to_string().as_str(), inside.context.sampled), ("00f067aa0ba902b7", false));
        assert_ne!(Some(inside.context.span), inside.parent);
        for nothing in [None, Some(""), Some("4bf92f3577b34da6a3ce929d0e0e4736")] {
            let (one, two) = (Operation::begin(nothing), Operation::begin(nothing));
            assert_ne!(one.context.trace, two.context.trace, "{nothing:?}");
            assert!(one.parent.is_none() && one.context.sampled, "{nothing:?}");
        }
    }
}
