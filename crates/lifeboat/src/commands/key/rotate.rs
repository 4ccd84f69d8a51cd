//! `lifeboat key rotate`
//!
//! The new key is durable beside the old one before anything names it, and one write of the configuration makes it the one that signs: a crash leaves
//! the old state, with a key that nobody uses, or the new one.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::policy::Operation;
use lifeboat_core::trust::Terms;
use lifeboat_engine::signing::SigningKey;

use super::{Place, Rotate, entry_of, portable, with_members};
use crate::config::{KeyPlace, KeySource, Settings};
use crate::failure::{EXIT_FAILED, EXIT_KEY, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session;

/// How long the old key counts where nobody says: processes that run for long hold it in memory, and its signatures of after that do not count.
const OVERLAP: SignedDuration = SignedDuration::from_hours(24);

pub(super) fn run(rotate: &Rotate, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let question = Question::new(Operation::KeyRotate).dry_run(rotate.dry_run);
    gate::guard(settings, None, question, || rotated(rotate, settings, out))
}

fn rotated(rotate: &Rotate, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let now = Timestamp::from_second(Timestamp::now().as_second()).expect("now, without a fraction");
    let until = rotate.old_until.unwrap_or(now + OVERLAP);
    let setting = settings.key_file.as_ref().ok_or_else(|| {
        Failure::new(EXIT_KEY, "rotate the signing key: none is configured")
            .hint("lifeboat key generate makes one; a key in a key service is rotated there, and its new public key added to trust.keys: docs/trust.md")
    })?;
    let (old, password) = session::signing_key(settings)?;
    let (key_file, public_file) = beside(&setting.value)?;
    let signs = Place::of(&setting.origin, settings);
    let trusts = Place::of(&settings.trust.keys.origin, settings);
    let entry = entry_of(settings, old.public_key().hint())?;
    let write = rotate.write_config || matches!((&signs, &trusts), (Place::Own(_), Place::Own(_)));
    if write && !rotate.dry_run {
        // Before a key is made that nobody would use.
        signs.edit()?;
        if !settings.trust.is_empty() {
            trusts.edit()?;
        }
    }
    let new = SigningKey::generate()?;
    let mut changed = Vec::new();
    if !rotate.dry_run {
        session::write_new(&key_file, &[new.seal(password.expose())?.as_bytes()], 0o600)?;
        session::write_new(&public_file, &[new.public_key().to_pem().as_bytes()], 0o644)?;
        sync_directory(&key_file)?;
        if write {
            changed = carry_out(settings, &signs, &trusts, entry, until, (&key_file, &public_file))?;
        }
    }

    let (terms, known_good) = entry.map_or_else(Default::default, |entry| {
        (settings.trust.keys.value[entry].terms.clone(), settings.trust.keys.value[entry].known_good.clone())
    });
    let old_source = KeySource {
        place: KeyPlace::File(setting.value.with_extension("pub")),
        terms: Terms { not_after: Some(terms.not_after.map_or(until, |before| before.min(until))), ..terms.clone() },
        known_good,
    };
    let fresh = Terms { not_before: None, not_after: None, revoked: None, ..terms };
    let new_source = KeySource { place: KeyPlace::File(public_file.clone()), terms: fresh, known_good: None };
    let elsewhere =
        format!("keys = [\n    {},\n    {},\n]", portable(&old_source, old.public_key()), portable(&new_source, new.public_key()));
    let document = serde_json::json!({
        "old": {"hint": old.public_key().hint(), "key_file": setting.value, "not_after": until},
        "new": {"hint": new.public_key().hint(), "key_file": key_file, "public_key_file": public_file, "public_key": new.public_key().to_pem()},
        "configuration": {"changed": changed, "trust_elsewhere": elsewhere},
        "dry_run": rotate.dry_run,
    });
    out.result(&document, || {
        if rotate.dry_run {
            return format!("a new signing key would be made in {}, and the old one be trusted until {until}\n", key_file.display());
        }
        let mut text = format!(
            "new signing key  {}, hint {}\npublic key       {}\nold signing key  {}, hint {}, trusted until {until}\n",
            key_file.display(),
            new.public_key().hint(),
            public_file.display(),
            setting.value.display(),
            old.public_key().hint(),
        );
        match changed.is_empty() {
            false => changed.iter().for_each(|path| text.push_str(&format!("changed          {}\n", path.display()))),
            true => text.push_str(&format!(
                "\nNothing signs with it yet. Change the configuration of this host (or run with --write-config):\n\n[signing]\nkey_file = {}\n\n[trust]\nkeys = [{}, {}]   # and the others that stand there\n",
                toml::Value::String(absolute(&key_file)),
                old_source.toml(),
                new_source.toml(),
            )),
        }
        text.push_str(&format!("\nOn every other host that verifies what this one signs, before {until}:\n\n[trust]\n{elsewhere}\n"));
        text
    });
    if !rotate.dry_run {
        output::warn(&format!(
            "restart whatever signs for long (lifeboat wal receive, an agent) before {until}: it holds the old key, and what that signs later does not count"
        ));
    }
    Ok(0)
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// Changes the configuration. In one file at once; in two, so that at every moment what is signed counts: first the new key is trusted, then it signs, then the
/// old one is retired.
fn carry_out(
    settings: &Settings,
    signs: &Place,
    trusts: &Place,
    entry: Option<usize>,
    until: Timestamp,
    (key_file, public_file): (&Path, &Path),
) -> Result<Vec<PathBuf>, Failure> {
    let trusting = !settings.trust.keys.value.is_empty();
    let new_entry = |edit: &crate::config::edit::Edit| -> Result<toml::Value, Failure> {
        let file = toml::Value::String(trusts.relative(public_file));
        let Some(old) = entry else { return Ok(file) };
        let keys = edit.trust_keys()?;
        // Who may sign the same things, for the same person; a window and a revocation were the old key's own.
        let own = ["pem", "not_before", "not_after", "revoked_since", "reason", "known_good"].map(|member| (member, None));
        let old = with_members(&with_members(&keys[old], &own), &[("file", file.as_str().map(str::to_owned))]);
        Ok(if old.as_table().is_some_and(|table| table.len() == 1) { file } else { old })
    };
    let retire = |edit: &mut crate::config::edit::Edit| -> Result<(), Failure> {
        let Some(index) = entry else { return Ok(()) };
        let before = settings.trust.keys.value[index].terms.not_after;
        let not_after = before.map_or(until, |before| before.min(until));
        let old = with_members(&edit.trust_keys()?[index], &[("not_after", Some(not_after.to_string()))]);
        edit.set_trust_key(index, &old)
    };
    if !trusting {
        let mut edit = signs.edit()?;
        edit.set_key_file(&signs.relative(key_file))?;
        output::warn("no key is trusted on this host, so only signing.key_file was changed");
        return Ok(vec![signs.commit(edit)?]);
    }
    let same = match (signs, trusts) {
        (Place::Configuration(a), Place::Configuration(b)) => a == b,
        (Place::Own(_), Place::Own(_)) => true,
        _ => false,
    };
    if same {
        let mut edit = trusts.edit()?;
        let new = new_entry(&edit)?;
        retire(&mut edit)?;
        edit.add_trust_key(&new)?;
        edit.set_key_file(&signs.relative(key_file))?;
        return Ok(vec![trusts.commit(edit)?]);
    }
    let mut edit = trusts.edit()?;
    let new = new_entry(&edit)?;
    edit.add_trust_key(&new)?;
    let trust_file = trusts.commit(edit)?;
    let mut edit = signs.edit()?;
    edit.set_key_file(&signs.relative(key_file))?;
    let sign_file = signs.commit(edit)?;
    let mut edit = trusts.edit()?;
    retire(&mut edit)?;
    trusts.commit(edit)?;
    Ok(vec![trust_file, sign_file])
}

/// Names for the next key beside this one, neither of which is taken: `signing.key` is followed by `signing-2.key`.
fn beside(key_file: &Path) -> Result<(PathBuf, PathBuf), Failure> {
    let stem = key_file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let extension = key_file.extension().map_or_else(|| "key".to_owned(), |extension| extension.to_string_lossy().into_owned());
    let (base, number) = match stem.rsplit_once('-').map(|(base, number)| (base.to_owned(), number.parse::<u32>())) {
        Some((base, Ok(number))) => (base, number),
        _ => (stem, 1),
    };
    for next in number.saturating_add(1)..=number.saturating_add(10_000) {
        let name = |extension: &str| key_file.with_file_name(format!("{base}-{next}.{extension}"));
        let (key, public) = (name(&extension), name("pub"));
        if key.symlink_metadata().is_err() && public.symlink_metadata().is_err() {
            return Ok((key, public));
        }
    }
    Err(Failure::new(EXIT_FAILED, format!("name a new key beside {}: all names are taken", key_file.display()))
        .hint("move old keys away: lifeboat key list shows which are trusted"))
}

fn sync_directory(file: &Path) -> Result<(), Failure> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(|error| {
        Failure::new(EXIT_FAILED, format!("write {}: {error}", directory.display()))
            .hint("run lifeboat key rotate again: the key that was made is not used yet")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_has_the_next_free_name() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        assert_eq!(beside(&at("signing.key")).unwrap(), (at("signing-2.key"), at("signing-2.pub")));
        std::fs::write(at("signing-2.pub"), "").unwrap();
        assert_eq!(beside(&at("signing.key")).unwrap(), (at("signing-3.key"), at("signing-3.pub")));
        assert_eq!(beside(&at("prod-db-7.pem")).unwrap(), (at("prod-db-8.pem"), at("prod-db-8.pub")));
        assert_eq!(beside(&at("prod-db")).unwrap(), (at("prod-db-2.key"), at("prod-db-2.pub")));
    }
}
