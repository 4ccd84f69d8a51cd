//! What is wrong with what runs by itself: the policy that lets it, the agent, whoever is told, keys and disks that run out.

use serde::Serialize;

use super::{Diagnosis, Severity};
use crate::alert::Alert;
use crate::status::Severity as AlertSeverity;

/// What the policy says to something that this host does by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Allowed {
    /// The operation.
    pub operation: String,
    /// Why not; `None`: it may.
    pub denied: Option<String>,
}

/// Whether an agent runs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// None ever did.
    Never,
    /// One does.
    Runs,
    /// One did.
    Gone,
}

/// Where traces go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Traces {
    /// The collector's address.
    pub url: String,
    /// Why it takes none.
    pub trouble: Option<String>,
}

/// What runs by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WatchFacts {
    /// Why the policy cannot be asked.
    pub policy_trouble: Option<String>,
    /// What it says.
    pub allowed: Vec<Allowed>,
    /// The agent.
    pub agent: AgentState,
    /// Whoever is told of alerts.
    pub sinks: usize,
    /// Somebody misses the agent when it goes.
    pub heartbeat: bool,
    /// Alerts about keys and disks.
    pub alerts: Vec<Alert>,
    /// Where traces go, if anywhere.
    pub traces: Option<Traces>,
}

/// What is wrong.
pub fn watch(facts: &WatchFacts) -> Diagnosis {
    use Severity::{Danger, Essential, Warning};
    let mut out = Diagnosis::default();
    const POLICY: &str = "policy";
    match &facts.policy_trouble {
        Some(why) => out.say(
            Essential,
            "policy",
            POLICY,
            format!("it cannot be asked: {why}"),
            "everything is denied, backups and restores too",
            "lifeboat policy test; lifeboat config show prints policy.path and policy.opa_url",
        ),
        None => {
            for one in &facts.allowed {
                if let Some(why) = &one.denied {
                    let severity = if one.operation == "backup" { Essential } else { Danger };
                    out.say(
                        severity,
                        "policy-denies",
                        POLICY,
                        format!("it denies {} on this host: {why}", one.operation),
                        "what is planned does not happen",
                        format!("lifeboat policy eval {} says more; docs/policy.md", one.operation),
                    );
                }
            }
            let allowed = facts.allowed.iter().filter(|one| one.denied.is_none()).map(|one| one.operation.as_str()).collect::<Vec<_>>();
            if !allowed.is_empty() {
                out.note(POLICY, format!("allows {} on this host", allowed.join(", ")));
            }
        }
    }
    const AGENT: &str = "agent";
    match facts.agent {
        AgentState::Runs => out.note(AGENT, "runs on this host"),
        AgentState::Never => {
            out.note(AGENT, "none has run on this host: backups, verification and drills happen when somebody calls for them")
        }
        AgentState::Gone => out.say(
            Danger,
            "agent-gone",
            AGENT,
            "an agent ran on this host, and does not any more",
            "no backup, verification or drill begins by itself",
            "systemctl start lifeboat-agent; if that is meant, remove agent/tasks.json below agent.state (lifeboat config show)",
        ),
    }
    const ALERTS: &str = "alerts";
    match (facts.sinks, facts.agent) {
        (0, AgentState::Never) => out.note(ALERTS, "nobody is told of any: no alerts.sink is configured"),
        (0, _) => out.say(
            Warning,
            "no-sink",
            ALERTS,
            "nobody is told of any: no alerts.sink is configured",
            "what goes wrong is seen by whoever looks",
            "configure one (docs/alerts.md), then try it: lifeboat alert test",
        ),
        (count, _) => out.note(ALERTS, format!("{count} sinks are told; lifeboat alert test tries them")),
    }
    if facts.sinks > 0 && !facts.heartbeat {
        out.note(ALERTS, "nobody misses the agent when it goes: alerts.heartbeat_url is not set");
    }
    for alert in &facts.alerts {
        let severity = if alert.severity == AlertSeverity::Critical { Danger } else { Warning };
        let (code, meaning) = match alert.name.as_ref() {
            "key-ending" => ("key-ending", "what is signed with it afterwards does not count, or a service cannot be reached"),
            "disk-space" => ("disk-space", "the server stops, or WAL and backups have nowhere to go"),
            _ => ("alert", "somebody should look at it"),
        };
        let subject = if alert.subject.is_empty() { alert.name.to_string() } else { alert.subject.clone() };
        out.say(severity, code, &subject, alert.summary.clone(), meaning, alert.fix.clone());
    }
    match &facts.traces {
        None => {}
        Some(Traces { url, trouble: None }) => out.note(url, "takes traces"),
        Some(Traces { url, trouble: Some(why) }) => out.say(
            Warning,
            "no-traces",
            url,
            format!("traces are lost: {why}"),
            "what a command did, and how long each part of it took, is in the log only",
            "lifeboat config show prints traces.endpoint and where it comes from; docs/logs.md",
        ),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> WatchFacts {
        WatchFacts {
            policy_trouble: None,
            allowed: vec![Allowed { operation: "backup".into(), denied: None }],
            agent: AgentState::Runs,
            sinks: 1,
            heartbeat: true,
            alerts: Vec::new(),
            traces: None,
        }
    }

    fn codes(facts: &WatchFacts) -> Vec<(&'static str, Severity)> {
        watch(facts).findings.iter().map(|finding| (finding.code, finding.severity)).collect()
    }

    #[test]
    fn all_is_well_where_it_is() {
        assert_eq!(watch(&well()).findings, []);
        // Who runs backups from cron has no agent, and is told so without being blamed.
        assert_eq!(codes(&WatchFacts { agent: AgentState::Never, sinks: 0, heartbeat: false, ..well() }), []);
    }

    #[test]
    fn a_policy_that_denies_what_is_planned_is_found_before_the_night() {
        let denied = |operation: &str| Allowed { operation: operation.into(), denied: Some("no rule allows it".into()) };
        let facts = WatchFacts { allowed: vec![denied("backup"), denied("prune")], ..well() };
        assert_eq!(codes(&facts), [("policy-denies", Severity::Essential), ("policy-denies", Severity::Danger)]);
        assert_eq!(codes(&WatchFacts { policy_trouble: Some("it has an error".into()), ..well() }), [("policy", Severity::Essential)]);
    }

    #[test]
    fn an_agent_that_is_gone_and_one_that_tells_nobody_are_found() {
        assert_eq!(codes(&WatchFacts { agent: AgentState::Gone, ..well() }), [("agent-gone", Severity::Danger)]);
        assert_eq!(codes(&WatchFacts { sinks: 0, ..well() }), [("no-sink", Severity::Warning)]);
    }

    #[test]
    fn keys_and_disks_that_run_out_are_as_dangerous_as_their_alerts() {
        let alert = |name: &'static str, severity| Alert {
            name: name.into(),
            subject: "x".into(),
            severity,
            summary: "it runs out".into(),
            fix: "lifeboat key rotate".into(),
        };
        let alerts = vec![alert("key-ending", AlertSeverity::Critical), alert("disk-space", AlertSeverity::Warning)];
        assert_eq!(codes(&WatchFacts { alerts, ..well() }), [("key-ending", Severity::Danger), ("disk-space", Severity::Warning)]);
    }

    #[test]
    fn a_collector_that_takes_no_traces_is_found() {
        let traces = |trouble: Option<&str>| Some(Traces { url: "https://c.example".into(), trouble: trouble.map(str::to_owned) });
        assert_eq!(codes(&WatchFacts { traces: traces(None), ..well() }), []);
        assert_eq!(codes(&WatchFacts { traces: traces(Some("it answered 401")), ..well() }), [("no-traces", Severity::Warning)]);
    }
}
