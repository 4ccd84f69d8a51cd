//! `lifeboat policy eval`

use std::io::Read as _;
use std::path::Path;

use jiff::Timestamp;
use lifeboat_core::policy::{BreakGlass, Code, DeletionFacts, Facts, MAX_FACTS_BYTES, Operation};
use lifeboat_engine::opened_backup;
use lifeboat_engine::policy::{Decided, Engines, Policy, PolicySettings};

use super::{Eval, facts};
use crate::config::Settings;
use crate::failure::{EXIT_DENIED, EXIT_FAILED, Failure};
use crate::output::{self, Level, Output};
use crate::session;

pub(super) fn run(eval: &Eval, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let mut notes = Vec::new();
    let mut facts = match &eval.facts {
        Some(path) => read(path)?,
        None => gathered(eval, settings, &mut notes)?,
    };
    if let Some(environment) = &eval.environment {
        facts.environment.clone_from(environment);
    }
    if let Some(reason) = &eval.break_glass {
        facts.break_glass = Some(BreakGlass { reason: reason.clone() });
    }
    let policy = match &eval.policy {
        Some(path) => Policy::open(&PolicySettings {
            engines: Engines::Embedded,
            path: Some(path.clone()),
            opa: None,
            timeout: settings.policy.timeout.value,
        }),
        None => session::policy(settings)?,
    };
    for warning in policy.warnings() {
        output::warn(&warning);
    }
    let decided = policy.decide(&facts);
    for note in &notes {
        output::tell(Level::Info, "note", note, None);
    }
    out.result(&serde_json::json!({"facts": facts, "decision": decided, "notes": notes}), || text(&facts, &decided));
    if decided.decision.allow {
        return Ok(0);
    }
    // The result says why; what can be done about it is said as of any failure.
    output::tell(Level::Info, "hint", hint(decided.code), None);
    Ok(EXIT_DENIED)
}

const fn hint(code: Code) -> &'static str {
    match code {
        Code::Allowed | Code::Denied => "lifeboat policy show prints the policy; docs/policy.md says what each fact means",
        Code::Timeout | Code::Unreachable => {
            "without an answer nothing is done; look at the policy service: lifeboat config show prints policy.opa_url and policy.timeout"
        }
        _ => {
            "without a decision nothing is done; lifeboat policy test says what is wrong with the policy, lifeboat config show where it is"
        }
    }
}

/// Facts from a file: those of the documentation's examples, of an audit record, or made up.
fn read(path: &Path) -> Result<Facts, Failure> {
    let hint = "docs/policy-facts.schema.json says what facts are; lifeboat policy eval list --json prints some";
    let failed = |error: std::io::Error| Failure::new(EXIT_FAILED, format!("read facts {}: {error}", path.display())).hint(hint);
    let limit = MAX_FACTS_BYTES as u64 * 2;
    let mut text = Vec::new();
    match path.to_str() {
        Some("-") => std::io::stdin().take(limit).read_to_end(&mut text).map_err(failed)?,
        _ => std::fs::File::open(path).map_err(failed)?.take(limit).read_to_end(&mut text).map_err(failed)?,
    };
    let wrong = |error: serde_json::Error| Failure::usage(format!("read facts {}: {error}", path.display())).hint(hint);
    // As this command prints them, or alone.
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(wrong)?;
    let facts = value.get("facts").filter(|facts| facts.is_object()).cloned().unwrap_or(value);
    serde_json::from_value(facts).map_err(wrong)
}

/// The facts of an operation that is not done: what is known without reading data, and notes about the rest.
fn gathered(eval: &Eval, settings: &Settings, notes: &mut Vec<String>) -> Result<Facts, Failure> {
    let word = eval.operation.as_deref().unwrap_or_default();
    let operation: Operation = serde_json::from_value(word.into()).map_err(|_| {
        let names: Vec<String> = Operation::ALL.into_iter().map(Operation::name).collect();
        Failure::usage(format!("ask about {word:?}: there is no such operation"))
            .hint(format!("lifeboat policy eval {}", names.join(" | ")))
    })?;
    let now = Timestamp::now();
    let mut facts = facts::of(settings, operation, eval.dry_run, now);
    if let Some(word) = &eval.backup {
        let repository = session::read_repository(settings)?;
        let id = session::find_backup(&repository, settings, word, |_| true)?;
        let backup = opened_backup::open(&repository, &id, &session::trust(settings)?)?;
        facts.backup = Some(facts::backup(&backup.manifest, &backup.signed_by.to_string(), now));
        if let Some(known) = &mut facts.repository {
            known.id = Some(repository.descriptor().repository.to_string());
        }
    }
    let goes_somewhere = matches!(operation, Operation::Restore | Operation::DrillRun);
    if goes_somewhere || eval.pgdata.is_some() || eval.artifacts.is_some() || eval.start || eval.accept_degraded {
        let (pgdata, artifacts) = (eval.pgdata.as_deref(), eval.artifacts.as_deref());
        facts.target = Some(facts::target(settings, pgdata, artifacts, &[], None, eval.start, eval.accept_degraded));
    }
    if goes_somewhere && eval.backup.is_none() {
        notes.push("no backup is named (--backup), so the policy is told of none".to_owned());
    }
    if operation == Operation::Prune || operation == Operation::Expire || !eval.forget.is_empty() {
        facts.deletion = Some(DeletionFacts { backups: 0, objects: 0, forget: eval.forget.clone() });
        notes.push("nothing is planned here, so deletion.backups and deletion.objects are 0".to_owned());
    }
    if matches!(operation, Operation::Restore | Operation::Prune | Operation::KeyExport) {
        notes.push("nothing is planned here, so there is no digest of a plan, and no approval of it".to_owned());
    }
    Ok(facts)
}

fn text(facts: &Facts, decided: &Decided) -> String {
    let action = serde_json::to_value(facts.action).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
    let sudo = facts.actor.sudo_user.as_ref().map_or(String::new(), |user| format!(", called by {user}"));
    let mut lines = vec![
        ("operation", format!("{} ({action}){}", facts.operation.name(), if facts.dry_run { ", dry run" } else { "" })),
        ("actor", format!("{} ({}){sudo} on {}", facts.actor.user, facts.actor.uid, facts.host)),
        ("environment", facts.environment.clone()),
        ("time", facts.time.to_string()),
    ];
    if let Some(repository) = &facts.repository {
        lines.push(("repository", repository.url.clone()));
    }
    if let Some(backup) = &facts.backup {
        lines.push(("backup", format!("{}, {}, signed by {}", backup.id, backup.state, backup.signed_by)));
    }
    if let Some(target) = &facts.target {
        let mut words: Vec<String> = target.pgdata.iter().chain(&target.artifacts).cloned().collect();
        words.extend(target.production.then(|| "the running system's own".to_owned()));
        words.extend(target.start.then(|| "starts the server".to_owned()));
        words.extend(target.accept_degraded.then(|| "accepts damaged pages".to_owned()));
        lines.push(("target", if words.is_empty() { "nowhere".to_owned() } else { words.join(", ") }));
    }
    if let Some(deletion) = &facts.deletion {
        let forget = if deletion.forget.is_empty() { String::new() } else { format!(", giving up {}", deletion.forget.join(", ")) };
        lines.push(("deletion", format!("{} backups, {} objects{forget}", deletion.backups, deletion.objects)));
    }
    if let Some(plan) = &facts.plan {
        let approvers: Vec<&str> = plan.approvals.iter().map(|approval| approval.approver.as_str()).collect();
        lines.push((
            "plan",
            format!("{}, approved by {}", plan.digest, if approvers.is_empty() { "nobody".to_owned() } else { approvers.join(", ") }),
        ));
    }
    if let Some(glass) = &facts.break_glass {
        lines.push(("break glass", glass.reason.clone()));
    }
    lines.push(("decision", format!("{} ({})", if decided.decision.allow { "ALLOWED" } else { "DENIED" }, decided.code.name())));
    if decided.decision.break_glass {
        lines.push(("", "by broken glass".to_owned()));
    }
    lines.extend(decided.decision.reasons.iter().map(|reason| ("reason", reason.clone())));
    lines.push(("policy", decided.policy.clone()));
    lines.push(("evaluated by", format!("{} in {:.2} ms", decided.engine, decided.took.as_secs_f64() * 1000.0)));
    lines.into_iter().map(|(key, value)| format!("{key:14} {value}\n")).collect()
}
