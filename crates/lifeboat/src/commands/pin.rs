//! `lifeboat pin` and `lifeboat unpin`

use jiff::Timestamp;
use lifeboat_core::policy::Operation;
use lifeboat_core::repository::backup_id::SystemName;
use lifeboat_engine::expire::Author;
use lifeboat_engine::pin as engine;

use super::expire::by;
use crate::cli::{Pin, Unpin};
use crate::config::Settings;
use crate::failure::Failure;
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session;

fn name(text: &str) -> Result<SystemName, Failure> {
    text.parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat pin BACKUP --name audit-2024 --reason TEXT"))
}

pub(super) fn pin(pin: &Pin, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let (name, now) = (name(&pin.name)?, Timestamp::now());
    let until = match &pin.until {
        Some(text) => Some(text.parse::<Timestamp>().map_err(|_| {
            Failure::usage(format!("parse time {text:?}: write it as 2024-03-15T12:00:00Z"))
                .hint("lifeboat pin BACKUP --until TIME; without, it holds until lifeboat unpin")
        })?),
        None => None,
    };
    if until.is_some_and(|until| until <= now) {
        return Err(
            Failure::usage("pin: the time at which it should end is over").hint("lifeboat pin BACKUP --until TIME, or leave --until out")
        );
    }
    let repository = session::open_repository(settings)?;
    let question = Question::new(Operation::Pin).dry_run(pin.dry_run);
    gate::guard(settings, Some(&repository), question, || {
        let id = session::find_backup(&repository, settings, &pin.backup, |_| true)?;
        let trust = session::trust(settings)?;
        if pin.dry_run {
            engine::check(&repository, &id, &name, &trust)?;
        } else {
            let (host, signer) = (session::host(), session::signer(settings)?);
            let author = Author { host: &host, by: by(&host), trust: &trust, signer: &*signer, say: &output::warn };
            engine::pin(&repository, &id, &name, &pin.reason, until, &author, now)?;
        }
        let document = serde_json::json!({
            "backup": id, "pin": pin.name, "reason": pin.reason, "until": until, "pinned": !pin.dry_run, "dry_run": pin.dry_run,
        });
        out.result(&document, || {
            let end = until.map_or_else(|| format!("lifeboat unpin {id} --name {name}"), |until| until.to_string());
            match pin.dry_run {
                true => format!("pin {name} would hold {id} until {end}; nothing was changed\n"),
                false => format!("pin {name} holds {id} until {end}\n"),
            }
        });
        Ok(0)
    })
}

pub(super) fn unpin(unpin: &Unpin, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let (name, now) = (name(&unpin.name)?, Timestamp::now());
    let repository = session::open_repository(settings)?;
    let question = Question::new(Operation::Unpin).dry_run(unpin.dry_run);
    gate::guard(settings, Some(&repository), question, || {
        let id = session::find_backup(&repository, settings, &unpin.backup, |_| true)?;
        let trust = session::trust(settings)?;
        if unpin.dry_run {
            engine::check_unpin(&repository, &id, &name, &trust, now)?;
        } else {
            let (host, signer) = (session::host(), session::signer(settings)?);
            let author = Author { host: &host, by: by(&host), trust: &trust, signer: &*signer, say: &output::warn };
            engine::unpin(&repository, &id, &name, &unpin.reason, &author, now)?;
        }
        let document =
            serde_json::json!({"backup": id, "pin": unpin.name, "reason": unpin.reason, "ended": !unpin.dry_run, "dry_run": unpin.dry_run});
        out.result(&document, || match unpin.dry_run {
            true => format!("pin {name} of {id} would end; nothing was changed\n"),
            false => format!("pin {name} of {id} has ended; whether it expires the next lifeboat expire says\n"),
        });
        Ok(0)
    })
}
