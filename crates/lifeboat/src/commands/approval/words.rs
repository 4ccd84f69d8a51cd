//! A plan in words, for the person who approves it. From what will be done, never from what the plan says about itself; and nothing in it
//! can move the cursor or turn the direction of writing around: a plan may come from anybody who can write to the repository.

use lifeboat_core::approval::Asked;
use lifeboat_core::export::ExportPlan;
use lifeboat_core::restore::{RestorePlan, describe};
use serde_json::Value;

use crate::output::{bytes, plain};

/// Objects of JSON that are shown whole, in lines.
const MAX_LINES: usize = 200;

/// A request and its plan.
pub(super) fn plan(document: &[u8], asked: &Asked) -> String {
    let request = &asked.request;
    let mut lines = vec![
        format!("plan        {}", request.plan),
        format!("operation   {} on host {} ({})", request.operation.name(), plain(&request.host), plain(&request.environment)),
        format!("asked by    {} at {:.0}", plain(&lifeboat_engine::approval::requester(asked)), request.requested),
        format!("reason      {}", plain(&request.reason)),
        format!("open until  {:.0}", request.expires),
    ];
    match RestorePlan::parse(document) {
        Ok(plan) => restore(&plan, &mut lines),
        Err(_) => match ExportPlan::parse(document) {
            Some(plan) => export(&plan, &mut lines),
            None => unknown(document, &mut lines),
        },
    }
    lines.push(String::new());
    lines.join("\n")
}

fn export(plan: &ExportPlan, lines: &mut Vec<String>) {
    let artifacts = if plan.artifacts { ", and those of its artifacts, which open more than this backup" } else { "" };
    lines.push(format!("hands out   the data keys of {}{artifacts}", plan.backup));
    lines.push(format!("to          {}", plain(&plan.recipient)));
}

/// A prune, or a plan that this version has no words for.
fn unknown(document: &[u8], lines: &mut Vec<String>) {
    match serde_json::from_slice::<Value>(document) {
        Ok(plan) if plan.pointer("/backups/leaving").is_some() && plan.get("steps").is_some() => prune(&plan, lines),
        Ok(plan) => other(&plan, lines),
        Err(_) => lines.push("the plan is not JSON, and cannot be shown: do not approve it".into()),
    }
}

fn restore(plan: &RestorePlan, lines: &mut Vec<String>) {
    lines.push(format!(
        "restores    {}{}",
        plain(&plan.backup),
        if plan.degraded { ", which is DEGRADED: damaged pages come back" } else { "" }
    ));
    if let Some(database) = &plan.database {
        lines.push(format!("database    into {}", plain(&database.pgdata)));
        for tablespace in &database.tablespaces {
            let name = tablespace.name.clone().unwrap_or_else(|| tablespace.oid.to_string());
            lines.push(format!("tablespace  {} into {}", plain(&name), plain(&tablespace.to)));
        }
        lines.push(format!("recovers    to {}", plain(&describe(&database.target))));
        if let Some(recovery) = &database.recovery {
            let stop = if recovery.inclusive { "" } else { ", and stops before it" };
            lines.push(format!("            along timeline {}, WAL from {} to {}{stop}", recovery.timeline, recovery.from, recovery.to));
        }
        for (name, value) in &database.settings {
            lines.push(format!("sets        {} = {}", plain(name), plain(value)));
        }
        lines.push(format!("server      {}", if database.start { "is started" } else { "is not started" }));
    }
    if let Some(artifacts) = &plan.artifacts {
        lines.push(format!("artifacts   {} into {}", artifacts.count, plain(&artifacts.directory)));
    }
    lines.push(format!("writes      {} files, {}", plan.files, bytes(plan.bytes)));
    lines.extend(plan.warnings.iter().map(|warning| format!("warning     {}", plain(warning))));
}

fn prune(plan: &Value, lines: &mut Vec<String>) {
    let list = |at: &str| plan.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value, member: &str| plain(value[member].as_str().unwrap_or("?"));
    let number = |value: &Value, member: &str| value[member].as_u64().unwrap_or(0);
    for one in list("/backups/leaving") {
        lines.push(format!("deletes     backup {}: {}", text(&one, "backup"), text(&one, "reason")));
    }
    for one in list("/backups/held") {
        lines.push(format!("keeps       backup {}: {}", text(&one, "backup"), text(&one, "reason")));
    }
    for step in list("/steps") {
        let size = bytes(number(&step, "bytes"));
        lines.push(format!("deletes     {} {}, {size}: {}", number(&step, "objects"), text(&step, "what"), text(&step, "why")));
    }
    lines.extend(list("/warnings").iter().map(|warning| format!("warning     {}", plain(warning.as_str().unwrap_or("?")))));
    lines.push("it runs only if the same comes out of planning it anew".into());
}

fn other(plan: &Value, lines: &mut Vec<String>) {
    let text = serde_json::to_string_pretty(plan).unwrap_or_default();
    lines.extend(text.lines().take(MAX_LINES).map(|line| format!("            {}", plain(line))));
    if text.lines().count() > MAX_LINES {
        lines.push("            … there is more: lifeboat approval show --json".into());
    }
}
