//! Asks a policy: the embedded evaluator (`embedded.rs`), a running OPA (`opa.rs`), or both.
//!
//! Must not allow anything by itself. Whatever goes wrong, from a file that is not there to a service that answers nonsense, is an answer
//! too: no, with a code that says why (`lifeboat_core::policy::Code`).

mod embedded;
mod modules;
mod opa;
mod scan;
mod sources;
pub mod suite;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lifeboat_core::policy::{Answer, Code, Decision, Facts, MAX_FACTS_BYTES};
use serde::Serialize;

use embedded::Embedded;
pub use embedded::{ENGINE, RULE};
use opa::Opa;
pub use opa::OpaSettings;
pub(crate) use opa::is_this_host;
pub use scan::BUILTINS;
pub use sources::{SHIPPED, SHIPPED_TEST, SourceFile, Sources};

/// How long a policy may take where nobody says: a decision takes less than a millisecond, a service in the next room a few.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// Who evaluates the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engines {
    /// This program.
    Embedded,
    /// A running OPA.
    Opa,
    /// Both: it is allowed only if both allow it.
    Both,
}

/// Where a policy is, and who evaluates it.
#[derive(Debug, Clone)]
pub struct PolicySettings {
    /// Who evaluates it.
    pub engines: Engines,
    /// A file or a directory; `None` is the policy that is shipped. Not used by [`Engines::Opa`].
    pub path: Option<PathBuf>,
    /// The OPA to ask; has to be there unless it is [`Engines::Embedded`].
    pub opa: Option<OpaSettings>,
    /// How long one engine may take for one decision.
    pub timeout: Duration,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self { engines: Engines::Embedded, path: None, opa: None, timeout: DEFAULT_TIMEOUT }
    }
}

/// Why there is no policy to ask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// There is none where it should be.
    #[error("find policy {place}: {problem}")]
    Missing {
        /// The path, or the setting.
        place: String,
        /// What is there instead.
        problem: String,
    },
    /// It cannot be used.
    #[error("load policy: {0}")]
    Broken(String),
}

impl LoadError {
    /// The code of the refusals that follow from it.
    pub const fn code(&self) -> Code {
        match self {
            Self::Missing { .. } => Code::NoPolicy,
            Self::Broken(_) => Code::Broken,
        }
    }
}

/// What was decided, by which policy, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decided {
    /// How it came about: only [`Code::Allowed`] is yes.
    pub code: Code,
    /// What it is.
    #[serde(flatten)]
    pub decision: Decision,
    /// Which policy: `sha256:…` of its files, `opa:…` with the revisions of a service's bundles. Empty if there was none.
    pub policy: String,
    /// Which engine, with its version.
    pub engine: String,
    /// By which the policy service knows the decision, if it keeps a log of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<String>,
    /// How long it took.
    #[serde(rename = "took_microseconds", serialize_with = "microseconds")]
    pub took: Duration,
}

fn microseconds<S: serde::Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
}

/// What one engine said.
#[derive(Debug)]
struct Said {
    answer: Answer,
    policy: String,
    engine: String,
    decision_id: Option<String>,
}

/// A policy that can be asked: made once, asked often, by any thread.
pub struct Policy {
    embedded: Option<Embedded>,
    opa: Option<Opa>,
    sources: Sources,
    trouble: Option<LoadError>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("digest", &self.sources.digest())
            .field("opa", &self.opa.as_ref().map(Opa::address))
            .field("trouble", &self.trouble)
            .finish_non_exhaustive()
    }
}

impl Policy {
    /// Loads a policy. A policy that cannot be loaded is one that denies everything: [`Policy::trouble`] says why.
    pub fn open(settings: &PolicySettings) -> Self {
        let mut policy = Self { embedded: None, opa: None, sources: Sources::default(), trouble: None };
        if let Err(trouble) = policy.load(settings) {
            (policy.embedded, policy.opa, policy.trouble) = (None, None, Some(trouble));
        }
        policy
    }

    fn load(&mut self, settings: &PolicySettings) -> Result<(), LoadError> {
        if settings.engines != Engines::Opa {
            self.sources = match &settings.path {
                Some(path) => Sources::read(path)?,
                None => Sources::shipped(),
            };
            self.embedded = Some(Embedded::load(&self.sources, settings.timeout)?);
        }
        if settings.engines != Engines::Embedded {
            let opa = settings.opa.as_ref().ok_or_else(|| LoadError::Missing {
                place: "policy.opa_url".to_owned(),
                problem: "the configuration does not say where OPA is".to_owned(),
            })?;
            self.opa = Some(Opa::new(opa, settings.timeout)?);
        }
        Ok(())
    }

    /// Why it denies everything, if it does because it could not be loaded.
    pub const fn trouble(&self) -> Option<&LoadError> {
        self.trouble.as_ref()
    }

    /// What whoever looks after this host should hear: a policy that anybody can change, for example.
    pub fn warnings(&self) -> Vec<String> {
        let opa = self.opa.as_ref().and_then(Opa::warning);
        self.sources.warnings().iter().cloned().chain(opa).collect()
    }

    /// What the embedded evaluator works with; empty if there is none.
    pub const fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Where a policy service is asked, if one is.
    pub fn opa_address(&self) -> Option<&str> {
        self.opa.as_ref().map(Opa::address)
    }

    /// Asks. Every failure is a no.
    pub fn decide(&self, facts: &Facts) -> Decided {
        let start = Instant::now();
        let said = self.ask(facts);
        Decided {
            code: said.answer.code,
            decision: said.answer.decision,
            policy: said.policy,
            engine: said.engine,
            decision_id: said.decision_id,
            took: start.elapsed(),
        }
    }

    fn ask(&self, facts: &Facts) -> Said {
        let none = |code: Code, reason: String| Said {
            answer: Answer::refused(code, reason),
            policy: self.sources.digest().to_owned(),
            engine: String::new(),
            decision_id: None,
        };
        if let Some(trouble) = &self.trouble {
            return none(trouble.code(), trouble.to_string());
        }
        let text = match serde_json::to_string(facts) {
            Ok(text) if text.len() <= MAX_FACTS_BYTES => text,
            Ok(text) => {
                return none(Code::TooLarge, format!("ask the policy: the facts are {} bytes, more than {MAX_FACTS_BYTES}", text.len()));
            }
            Err(error) => return none(Code::Error, format!("ask the policy: write the facts: {error}")),
        };
        let embedded = self.embedded.as_ref().map(|embedded| embedded.ask(facts, &text));
        let opa = self.opa.as_ref().map(|opa| opa.ask(facts, &text));
        match (embedded, opa) {
            (Some(one), None) | (None, Some(one)) => one,
            (Some(one), Some(other)) => Said {
                answer: one.answer.both(other.answer),
                policy: format!("{} + {}", one.policy, other.policy),
                engine: format!("{} + {}", one.engine, other.engine),
                decision_id: other.decision_id,
            },
            (None, None) => none(Code::NoPolicy, "ask the policy: there is none".to_owned()),
        }
    }
}
