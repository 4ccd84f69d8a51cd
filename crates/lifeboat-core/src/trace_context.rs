//! Which trace a program is a part of, as the one that started it says in `TRACEPARENT`: the text of the header `traceparent` of W3C Trace
//! Context (<https://www.w3.org/TR/trace-context/>, 3.2), in the environment as OpenTelemetry has it ("Environment Variables as Context
//! Propagation Carriers").

use std::fmt;
use std::str::FromStr;

use crate::repository::Id;

/// The environment variable.
pub const VARIABLE: &str = "TRACEPARENT";

/// Its companion, in which other tracing systems keep what is theirs. It is passed on, and never read here.
pub const STATE_VARIABLE: &str = "TRACESTATE";

/// 8 bytes that name one span of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// A span of a trace: the parent of what is started by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: Id,
    /// The span.
    pub span: SpanId,
    /// Whether the spans of the trace are recorded anywhere.
    pub sampled: bool,
}

/// It is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("read {VARIABLE}: it is not 00-<32 hex digits>-<16 hex digits>-<2 hex digits>")]
pub struct NotAContext;

impl FromStr for TraceContext {
    type Err = NotAContext;

    fn from_str(text: &str) -> Result<Self, NotAContext> {
        let mut fields = text.split('-');
        let [version] = field(fields.next())?;
        let trace = field(fields.next())?;
        let span = field(fields.next())?;
        let [flags] = field(fields.next())?;
        // A later version may have more behind these fields, and means the same by them; 255 is forbidden.
        let ends = fields.next().is_none();
        if version == 255 || (version == 0 && !ends) || trace == [0; 16] || span == [0; 8] {
            return Err(NotAContext);
        }
        Ok(Self { trace: Id(trace), span: SpanId(span), sampled: flags & 1 == 1 })
    }
}

/// Exactly so many bytes, as small hexadecimal digits.
fn field<const N: usize>(text: Option<&str>) -> Result<[u8; N], NotAContext> {
    let text = text.filter(|text| !text.bytes().any(|byte| byte.is_ascii_uppercase())).ok_or(NotAContext)?;
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| NotAContext)?;
    Ok(bytes)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Version 0 leaves the other flags to nobody: they are sent as zero.
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn it_reads_as_it_prints() {
        let context: TraceContext = TEXT.parse().unwrap();
        assert_eq!(context.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((context.span.to_string().as_str(), context.sampled), ("00f067aa0ba902b7", true));
        assert_eq!(context.to_string(), TEXT);
        let unsampled: TraceContext = TEXT.replace("-01", "-00").parse().unwrap();
        assert_eq!((unsampled.sampled, unsampled.to_string().ends_with("-00")), (false, true));
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        for (text, sampled) in [
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes", true),
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-08", false),
            // A flag that is not known here, set beside the one that is.
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", true),
        ] {
            let context: TraceContext = text.parse().unwrap();
            assert_eq!((context.sampled, context.to_string().starts_with(&TEXT[..52])), (sampled, true), "{text}");
        }
    }

    #[test]
    fn what_is_no_context_is_refused() {
        for text in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47xy-00f067aa0ba902b7-01",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0é",
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(NotAContext), "{text}");
        }
    }
}
