//! `lifeboat key list`

use jiff::Timestamp;
use lifeboat_core::policy::Operation;
use lifeboat_core::trust::{State, Terms};
use serde::Serialize;

use crate::config::{KeyPlace, Settings};
use crate::failure::Failure;
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session;

/// One that is trusted.
#[derive(Serialize)]
pub(crate) struct Row {
    /// Hint of the key, or issuer and subject.
    pub(crate) signer: String,
    pub(crate) state: State,
    /// This host signs with it.
    pub(crate) signs_here: bool,
    #[serde(flatten)]
    pub(crate) terms: Terms,
    /// Where the key is.
    key: Option<String>,
    /// How many statements were vouched for when it was revoked.
    known_good: Option<u64>,
}

/// The key that signs here, if its public half is there.
fn own_key(settings: &Settings) -> Option<lifeboat_engine::signing::PublicKey> {
    // The public half stands beside the private one, so that a list needs no password.
    let public = settings.key_file.as_ref().map(|setting| setting.value.with_extension("pub"));
    let signs = public.and_then(|path| std::fs::read_to_string(path).ok());
    signs.and_then(|pem| lifeboat_engine::signing::PublicKey::from_pem(&pem).ok())
}

/// Whose signatures count.
pub(crate) fn signers(settings: &Settings, now: Timestamp) -> Result<Vec<Row>, Failure> {
    let signs = own_key(settings);
    let mut rows = Vec::new();
    for source in &settings.trust.keys.value {
        let trusted = session::trusted_key(source)?;
        rows.push(Row {
            signer: trusted.key.hint().to_owned(),
            state: source.terms.state(now),
            signs_here: signs.as_ref() == Some(&trusted.key),
            terms: source.terms.clone(),
            key: match &source.place {
                KeyPlace::File(path) => Some(path.display().to_string()),
                KeyPlace::Pem(_) => None,
            },
            known_good: trusted.known_good.map(|list| list.len()),
        });
    }
    rows.extend(settings.trust.identities.value.iter().map(|identity| Row {
        signer: format!("{} {}", identity.issuer, identity.subject),
        state: identity.terms.state(now),
        signs_here: false,
        terms: identity.terms.clone(),
        key: None,
        known_good: None,
    }));
    Ok(rows)
}

pub(super) fn run(settings: &Settings, out: &Output) -> Result<u8, Failure> {
    gate::allow(settings, None, Question::new(Operation::KeyList))?;
    let signs = own_key(settings);
    let rows = signers(settings, Timestamp::now())?;
    if let Some(key) = &signs
        && !rows.iter().any(|row| row.signs_here)
    {
        output::warn(&format!("this host signs with key {}, which it does not trust itself: add it to trust.keys", key.hint()));
    }
    for row in rows.iter().filter(|row| row.signs_here && row.state != State::Trusted) {
        output::warn(&format!("this host signs with key {}, whose signatures do not count now ({})", row.signer, row.state.word()));
    }
    let document = serde_json::json!({
        "signers": rows, "require_timestamp": settings.trust.require_timestamp.value,
        "trusted_root": settings.trust.trusted_root.as_ref().map(|root| &root.value),
    });
    out.result(&document, || {
        let time = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), |time| time.to_string());
        let lines: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                let kinds = row.terms.kinds.as_ref();
                let mut state = row.state.word().to_owned();
                if let Some(revoked) = &row.terms.revoked {
                    state.push_str(&format!(" since {}", revoked.since));
                }
                vec![
                    row.signer.clone(),
                    if row.signs_here { "signs here".into() } else { String::new() },
                    state,
                    time(row.terms.not_before),
                    time(row.terms.not_after),
                    kinds.map_or_else(|| "all".into(), |kinds| kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(",")),
                    row.terms.person.clone().unwrap_or_else(|| "-".into()),
                    row.known_good.map_or_else(|| "-".into(), |count| count.to_string()),
                ]
            })
            .collect();
        match lines.is_empty() {
            true => "nobody is trusted\n".to_owned(),
            false => output::table(&["SIGNER", "", "STATE", "NOT BEFORE", "NOT AFTER", "FOR", "PERSON", "KNOWN GOOD"], &lines),
        }
    });
    Ok(0)
}
