//! `lifeboat key revoke`
//!
//! The list of what is vouched for is durable before the configuration names it: a crash leaves a key that still counts and a list that nobody uses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_core::policy::Operation;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::trust::{Fate, Revocation};
use lifeboat_engine::revoke::{self as engine, Revoking};
use lifeboat_engine::signing::{KnownGood, TrustedKey};

use super::{Place, Revoke, portable, with_members};
use crate::config::{KeySource, Settings};
use crate::failure::{EXIT_FAILED, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session;

pub(super) fn run(revoke: &Revoke, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    if revoke.since > Timestamp::now() {
        return Err(
            Failure::usage("revoke a key: --since lies in the future").hint("to retire a key that was not stolen: lifeboat key rotate")
        );
    }
    if revoke.reason.trim().is_empty() {
        return Err(Failure::usage("revoke a key: --reason is empty").hint("lifeboat key revoke HINT --since TIME --reason TEXT"));
    }
    let question = Question::new(Operation::KeyRevoke).dry_run(revoke.dry_run);
    gate::guard(settings, None, question, || revoked(revoke, settings, out))
}

fn revoked(revoke: &Revoke, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let (index, trusted) = find(settings, &revoke.hint)?;
    let source = &settings.trust.keys.value[index];
    if let Some(before) = &source.terms.revoked
        && before.since < revoke.since
    {
        return Err(Failure::usage(format!("revoke key {}: it is revoked since {} already", trusted.key.hint(), before.since))
            .hint("give an earlier --since; to take a revocation back, edit trust.keys by hand: docs/trust.md"));
    }
    let trusts = Place::of(&settings.trust.keys.origin, settings);
    let write = !revoke.dry_run && (revoke.write_config || matches!(trusts, Place::Own(_)));
    if write {
        trusts.edit()?;
    }
    let except: BTreeSet<BackupId> = revoke
        .except
        .iter()
        .map(|word| word.parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat list shows the backups")))
        .collect::<Result<_, _>>()?;

    let repository = session::read_repository(settings)?;
    let trust = session::trust(settings)?;
    let revoking = Revoking {
        repository: &repository,
        trust: &trust,
        hint: trusted.key.hint(),
        since: revoke.since,
        except: &except,
        threads: settings.workers.value.max(4),
    };
    let mut survey = engine::survey(&revoking)?;
    if let Some(stranger) = except.iter().find(|id| !survey.backups.iter().any(|signed| signed.backup == **id)) {
        return Err(Failure::usage(format!("leave {stranger} out: the key did not sign it"))
            .hint("lifeboat key revoke --dry-run lists what it signed"));
    }
    if revoke.vouch_for_nothing {
        survey.dated.clear();
        survey.backups.iter_mut().filter(|signed| signed.fate == Fate::Dated).for_each(|signed| signed.fate = Fate::Lost);
        survey.tally.values_mut().for_each(|tally| tally.lost += std::mem::take(&mut tally.dated));
    }

    let vouched = survey.dated.len();
    let list = match (vouched, &revoke.known_good) {
        (0, _) => None,
        (_, Some(path)) => Some(path.clone()),
        (_, None) => Some(list_path(&trusts, trusted.key.hint(), Timestamp::now())),
    };
    let revocation = Revocation { since: revoke.since, reason: Some(revoke.reason.clone()) };
    let revoked = KeySource {
        terms: lifeboat_core::trust::Terms { revoked: Some(revocation), ..source.terms.clone() },
        known_good: list.clone(),
        place: source.place.clone(),
    };
    let mut changed = None;
    if !revoke.dry_run {
        if let Some(path) = &list {
            write_list(path, std::mem::take(&mut survey.dated))?;
        }
        if write {
            let mut edit = trusts.edit()?;
            let members = [
                ("revoked_since", Some(revoke.since.to_string())),
                ("reason", Some(revoke.reason.clone())),
                ("known_good", list.as_deref().map(|path| trusts.relative(path))),
            ];
            let entry = with_members(&edit.trust_keys()?[index], &members);
            edit.set_trust_key(index, &entry)?;
            changed = Some(trusts.commit(edit)?);
        }
    }

    let count = |fate: Fate| survey.backups.iter().filter(|signed| signed.fate == fate).count();
    let lost: Vec<&BackupId> = survey.backups.iter().filter(|signed| signed.fate == Fate::Lost).map(|signed| &signed.backup).collect();
    let tally: serde_json::Map<String, serde_json::Value> =
        survey.tally.iter().map(|(kind, tally)| (kind.name().to_owned(), serde_json::json!(tally))).collect();
    let document = serde_json::json!({
        "hint": trusted.key.hint(), "since": revoke.since, "reason": revoke.reason,
        "backups": survey.backups, "statements": tally, "vouched_for": vouched, "known_good": list,
        "configuration": {"changed": changed, "entry": revoked.toml()}, "dry_run": revoke.dry_run,
    });
    out.result(&document, || {
        let rows: Vec<Vec<String>> = survey
            .backups
            .iter()
            .map(|signed| vec![signed.backup.to_string(), signed.signed.to_string(), fate_word(signed.fate).to_owned()])
            .collect();
        let mut text = String::new();
        if !rows.is_empty() {
            text.push_str(&output::table(&["BACKUP", "SIGNED", "FROM NOW ON"], &rows));
        }
        text.push_str(&format!(
            "backups: {} stop to count, {} are vouched for, {} are proven to be older\n",
            lost.len(),
            count(Fate::Dated),
            count(Fate::Proven)
        ));
        for (kind, tally) in &survey.tally {
            text.push_str(&format!(
                "signatures of kind {kind}: {} stop to count, {} are vouched for, {} are proven\n",
                tally.lost, tally.dated, tally.proven
            ));
        }
        if revoke.dry_run {
            text.push_str("nothing was changed\n");
            return text;
        }
        if let Some(path) = &list {
            text.push_str(&format!("vouched for      {vouched} statements, in {}\n", path.display()));
        }
        match &changed {
            Some(path) => text.push_str(&format!("changed          {}\n", path.display())),
            None => text.push_str(&format!(
                "\nNot revoked yet. Put this in place of the key's entry in trust.keys (or run with --write-config):\n\n    {},\n",
                revoked.toml()
            )),
        }
        text.push_str(&format!(
            "\nOn every other host, with a copy of the list, the entry of this key in trust.keys becomes:\n\n    {},\n",
            portable(&revoked, &trusted.key)
        ));
        text
    });
    if vouched > 0 && settings.as_of.is_none() {
        output::warn(
            "who stole the key could have written earlier times: look at the backups above, and leave out with --except what you do not know; in a bucket with versions, --as-of TIME vouches only for what stood there then",
        );
    }
    if !revoke.dry_run && signs_here(settings, &trusted) {
        output::warn("this host still signs with the revoked key: lifeboat key rotate --old-until NOW makes another");
    }
    Ok(0)
}

fn fate_word(fate: Fate) -> &'static str {
    match fate {
        Fate::Proven => "counts (proven)",
        Fate::Dated => "counts (vouched for)",
        Fate::Lost => "does not count",
    }
}

/// The trusted key whose hint is, or begins with, `word`.
fn find(settings: &Settings, word: &str) -> Result<(usize, TrustedKey), Failure> {
    let list = "lifeboat key list shows the trusted keys";
    let mut found = Vec::new();
    for (index, source) in settings.trust.keys.value.iter().enumerate() {
        let key = session::trusted_key(source)?;
        if key.key.hint() == word {
            return Ok((index, key));
        }
        if word.len() >= 6 && key.key.hint().starts_with(word) {
            found.push((index, key));
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => Err(Failure::usage(format!("find key {word:?}: several trusted keys begin so")).hint(list)),
        (None, _) => {
            Err(Failure::usage(format!("find key {word:?}: no trusted key has this hint, or begins with these six or more characters"))
                .hint(list))
        }
    }
}

/// Beside the configuration, with a name that is used once.
fn list_path(trusts: &Place, hint: &str, now: Timestamp) -> PathBuf {
    let directory = match trusts {
        Place::Configuration(file) => file.parent().unwrap_or(Path::new("")).to_owned(),
        Place::Own(keys) => keys.directory.clone(),
        Place::Elsewhere(_) => PathBuf::new(),
    };
    // Base64 has characters that a file name has not.
    let short: String = hint.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    directory.join(format!("known-good-{short}-{}.txt", now.strftime("%Y%m%dT%H%M%SZ")))
}

fn write_list(path: &Path, statements: Vec<lifeboat_core::repository::Sha256>) -> Result<(), Failure> {
    KnownGood::write(path, statements).map(drop).map_err(|error| {
        Failure::new(EXIT_FAILED, format!("write list of known good statements {}: {error}", path.display()))
            .hint("lifeboat key revoke --known-good FILE writes it elsewhere; nothing is ever overwritten")
    })
}

fn signs_here(settings: &Settings, key: &TrustedKey) -> bool {
    let public = settings.key_file.as_ref().map(|setting| setting.value.with_extension("pub"));
    let pem = public.and_then(|path| std::fs::read_to_string(path).ok());
    pem.and_then(|pem| lifeboat_engine::signing::PublicKey::from_pem(&pem).ok()).is_some_and(|public| public == key.key)
}
