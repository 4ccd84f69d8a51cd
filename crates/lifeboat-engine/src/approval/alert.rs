//! Telling people: a command of the user's own, with a JSON document on its standard input.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lifeboat_core::trace_context::{self, TraceContext};

/// How often it is looked whether the command has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Why nobody may have been told.
#[derive(Debug, thiserror::Error)]
pub enum AlertError {
    /// It cannot be run.
    #[error("run alert command {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It failed.
    #[error("run alert command {program}: it ended with {status}{said}")]
    Failed {
        /// The program.
        program: String,
        /// How.
        status: String,
        /// The last thing that it said, behind a colon.
        said: String,
    },
    /// It did not end.
    #[error("run alert command {program}: it did not end within {} s, and was ended", .patience.as_secs())]
    Slow {
        /// The program.
        program: String,
        /// How long it was given.
        patience: Duration,
    },
}

/// Runs a command with a document on its standard input, and waits for it, but not for ever: what is to be told of must not wait for a
/// messenger that hangs. What it does belongs to the trace that is passed on to it.
pub fn alert(command: &[String], document: &[u8], trace: &TraceContext, patience: Duration) -> Result<(), AlertError> {
    let (program, arguments) = command.split_first().map_or(("", &[][..]), |(program, arguments)| (program.as_str(), arguments));
    let name = || program.to_owned();
    let mut child = Command::new(program)
        .args(arguments)
        .env(trace_context::VARIABLE, trace.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| AlertError::Start { program: name(), source })?;
    let (mut input, errors) = (child.stdin.take().expect("piped"), child.stderr.take().expect("piped"));
    let document = document.to_vec();
    // On threads that are left to themselves: a child of the command may hold the pipes open for ever.
    std::thread::spawn(move || drop(input.write_all(&document)));
    let (sender, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = errors.take(4096).read_to_end(&mut text);
        let _ = sender.send(text);
    });
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|source| AlertError::Start { program: name(), source })? {
            Some(status) => break status,
            None if begun.elapsed() >= patience => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(AlertError::Slow { program: name(), patience });
            }
            None => std::thread::sleep(LOOK),
        }
    };
    if status.success() {
        return Ok(());
    }
    let said = said.recv_timeout(Duration::from_millis(200)).unwrap_or_default();
    let said = String::from_utf8_lossy(&said)
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .map_or(String::new(), |line| format!(": {}", line.trim()));
    Err(AlertError::Failed { program: name(), status: status.to_string(), said })
}

#[cfg(test)]
mod tests {
    use lifeboat_core::repository::Id;
    use lifeboat_core::trace_context::SpanId;

    use super::*;

    const TRACE: TraceContext = TraceContext { trace: Id([0xab; 16]), span: SpanId([0xcd; 8]), sampled: true };

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[test]
    fn the_document_arrives_and_failures_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("told");
        alert(
            &shell(&format!("cat > {0}; echo $TRACEPARENT >> {0}", file.display())),
            b"{\"event\":\"x\"}",
            &TRACE,
            Duration::from_secs(60),
        )
        .unwrap();
        let trace = format!("00-{}-{}-01", "ab".repeat(16), "cd".repeat(8));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{{\"event\":\"x\"}}{trace}\n"));
        let failed = alert(&shell("echo first >&2; echo no pager >&2; exit 3"), b"{}", &TRACE, Duration::from_secs(60)).unwrap_err();
        assert!(failed.to_string().ends_with("exit status: 3: no pager"), "{failed}");
        assert!(matches!(alert(&["/no/such/program".into()], b"{}", &TRACE, Duration::from_secs(1)), Err(AlertError::Start { .. })));
        assert!(matches!(alert(&[], b"{}", &TRACE, Duration::from_secs(1)), Err(AlertError::Start { .. })));
        // One that does not read a long document is no trouble.
        alert(&shell("exit 0"), &vec![b' '; 1 << 20], &TRACE, Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn one_that_hangs_is_ended() {
        let begun = Instant::now();
        let slow = alert(&shell("exec sleep 600"), b"{}", &TRACE, Duration::from_millis(100)).unwrap_err();
        assert!(matches!(slow, AlertError::Slow { .. }) && begun.elapsed() < Duration::from_secs(300), "{slow}");
    }
}
