//! `lifeboat expire`

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::expire::{Fate, Plan, Policy};
use lifeboat_core::policy::Operation;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_engine::expire::{self, Author};
use lifeboat_engine::repository::Repository;

use crate::cli::Expire;
use crate::config::{Origin, Settings, parse_days};
use crate::failure::{EXIT_FINDINGS, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Output, table};
use crate::session::{self, LazySigner};

/// What is typed comes before what is configured.
fn policy(expire: &Expire, settings: &Settings) -> Result<Policy, Failure> {
    let count = |flag: Option<u32>, setting: &Option<crate::config::Setting<u32>>| {
        flag.or(setting.as_ref().map(|setting| setting.value)).unwrap_or_default()
    };
    let window = match &expire.recovery_window {
        Some(text) => Some(parse_days(text)?),
        None => settings.recovery_window.as_ref().map(|setting| setting.value),
    };
    let grace = expire.grace.as_deref().map(parse_days).transpose()?.unwrap_or(settings.grace.value);
    Ok(Policy {
        keep_last: count(expire.keep_last, &settings.keep_last),
        keep_daily: count(expire.keep_daily, &settings.keep_daily),
        keep_weekly: count(expire.keep_weekly, &settings.keep_weekly),
        keep_monthly: count(expire.keep_monthly, &settings.keep_monthly),
        keep_yearly: count(expire.keep_yearly, &settings.keep_yearly),
        recovery_window: window.map(span).transpose()?,
        grace: span(grace)?,
    })
}

/// As core counts.
pub(super) fn span(span: std::time::Duration) -> Result<SignedDuration, Failure> {
    SignedDuration::try_from(span)
        .map_err(|_| Failure::usage("plan expiry: a span is too long").hint("lifeboat config show prints the settings"))
}

/// Who does it, for the record.
pub(super) fn by(host: &str) -> String {
    format!("{} on {host}", session::PROGRAM)
}

/// Whose backups: rules are those of one protected system.
fn name<'a>(repository: &Repository, settings: &'a Settings) -> Result<Option<&'a str>, Failure> {
    if settings.name.origin != Origin::Default {
        return Ok(Some(&settings.name.value));
    }
    let ids = repository.backups()?;
    let mut names: Vec<&str> = ids.iter().map(BackupId::name).collect();
    names.sort_unstable();
    names.dedup();
    match names.len() {
        0 | 1 => Ok(None),
        _ => Err(Failure::usage(format!("plan expiry: the repository has backups of {}", names.join(", ")))
            .hint("name the system whose rules these are, in the configuration or as LIFEBOAT_NAME; lifeboat list shows the backups")),
    }
}

pub(super) fn run(expire: &Expire, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let repository = session::open_repository(settings)?;
    if let Some(word) = &expire.undo {
        return undo(word, expire.dry_run, &repository, settings, out);
    }
    let policy = policy(expire, settings)?;
    if !policy.keeps_something() {
        return Err(Failure::usage("plan expiry: no rule says what to keep, so nothing expires")
            .hint("set retention.keep_daily or the like (docs/retention.md), or try one: lifeboat expire --keep-daily 14 --dry-run"));
    }
    let question = Question::new(Operation::Expire).dry_run(expire.dry_run);
    gate::guard(settings, Some(&repository), question, || expired(expire, &repository, policy, settings, out))
}

fn expired(expire: &Expire, repository: &Repository, policy: Policy, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let name = name(repository, settings)?;
    let trust = session::trust(settings)?;
    let now = Timestamp::now();
    let plan = if expire.dry_run {
        expire::plan(repository, policy, name, &trust, now)?
    } else {
        let (host, signer) = (session::host(), LazySigner::new(settings));
        let author = Author { host: &host, by: by(&host), trust: &trust, signer: &signer, say: &output::warn };
        let done = expire::run(repository, policy, name, &author, now);
        // Why the key did not open says more than that nothing could be signed.
        match (done, signer.failure()) {
            (Ok(plan), _) => plan,
            (Err(_), Some(failure)) => return Err(failure),
            (Err(error), None) => return Err(error.into()),
        }
    };
    let prune_after = now.saturating_add(policy.grace).unwrap_or(Timestamp::MAX);
    let document = serde_json::json!({
        "plan": plan, "digest": plan.digest(), "dry_run": expire.dry_run, "prune_after": prune_after, "expired": plan.expiring().count(),
    });
    out.result(&document, || text(&plan, prune_after, expire.dry_run));
    for warning in &plan.warnings {
        output::warn(warning);
    }
    Ok(if plan.warnings.is_empty() { 0 } else { EXIT_FINDINGS })
}

fn text(plan: &Plan, prune_after: Timestamp, dry_run: bool) -> String {
    let rows: Vec<Vec<String>> = plan
        .decisions
        .iter()
        .map(|decision| {
            let fate = match decision.fate {
                Fate::Keep => "keep",
                Fate::Expire => "EXPIRE",
                Fate::Expired => "expired",
            };
            vec![decision.backup.to_string(), fate.to_owned(), decision.reasons.join("; ")]
        })
        .collect();
    let mut text = table(&["BACKUP", "FATE", "REASONS"], &rows);
    let count = plan.expiring().count();
    text.push_str(&match (count, dry_run) {
        (0, _) => "nothing expires\n".to_owned(),
        (count, true) => format!("{count} would expire, and could be pruned from {prune_after:.0} on; nothing was changed\n"),
        (count, false) => {
            format!("{count} expired; from {prune_after:.0} on lifeboat prune deletes them, until then: lifeboat expire --undo BACKUP\n")
        }
    });
    text
}

fn undo(word: &str, dry_run: bool, repository: &Repository, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    // "latest" passes over those that have expired, and it is such a one that is meant.
    let id: BackupId = word.parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat list shows the backups"))?;
    let question = Question::new(Operation::ExpireUndo).dry_run(dry_run);
    gate::guard(settings, Some(repository), question, || undone(&id, dry_run, repository, settings, out))
}

fn undone(id: &BackupId, dry_run: bool, repository: &Repository, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let trust = session::trust(settings)?;
    let now = Timestamp::now();
    if dry_run {
        expire::check_undo(repository, id, &trust, now)?;
    } else {
        let (host, signer) = (session::host(), session::signer(settings)?);
        let author = Author { host: &host, by: by(&host), trust: &trust, signer: &*signer, say: &output::warn };
        expire::undo(repository, id, &author, now)?;
    }
    out.result(&serde_json::json!({"backup": id, "undone": !dry_run, "dry_run": dry_run}), || match dry_run {
        true => format!("the expiry of {id} would be undone; nothing was changed\n"),
        false => format!(
            "{id} is kept again; the next expire judges it anew, unless a pin holds it: lifeboat pin {id} --name NAME --reason TEXT\n"
        ),
    });
    Ok(0)
}
