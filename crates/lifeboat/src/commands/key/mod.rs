//! `lifeboat key …`

pub(super) mod export;
mod generate;
mod list;
mod public;
mod revoke;
mod rotate;

use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;
use lifeboat_core::repository::Sha256;
use toml::Value;

use crate::cli::Key;
use crate::config::edit::Edit;
use crate::config::{self, KeyPlace, KeySource, Origin, Settings, UserKeys};
use crate::failure::Failure;
use crate::output::Output;
use crate::session;

pub(crate) use list::signers;

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// Directory for them; what is there is never overwritten
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Take the signing key's password from this file instead of making one up
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// Until when the old key's signatures count (RFC 3339) [default: in 24 hours]
    #[arg(long, value_name = "TIME")]
    old_until: Option<Timestamp>,
    /// Change the configuration file; without, print what to change
    #[arg(long)]
    write_config: bool,
    /// Print what would be done; changes nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Hint of the key, or its first characters: lifeboat key list
    hint: String,
    /// Since when it may have been in other hands (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since: Timestamp,
    /// What happened
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Do not vouch for this backup, whatever time it names
    #[arg(long, value_name = "BACKUP")]
    except: Vec<String>,
    /// Vouch for nothing: only what is proven to be older goes on to count
    #[arg(long)]
    vouch_for_nothing: bool,
    /// Write the list of statements that are vouched for here [default: beside the configuration]
    #[arg(long, value_name = "FILE")]
    known_good: Option<PathBuf>,
    /// Change the configuration file; without, print what to change
    #[arg(long)]
    write_config: bool,
    /// Print what would stop to count; changes nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    what: ExportWhat,
    /// Write the keys into this file, which must not be there
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Only if the plan is the one with this digest, which was approved
    #[arg(long, value_name = "DIGEST")]
    approved: Option<Sha256>,
    /// Restore identity
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY_FILE")]
    identity: Option<PathBuf>,
    /// Print what would be handed out; changes nothing
    #[arg(long)]
    dry_run: bool,
}

/// What is handed out, and to whom: its plan.
#[derive(Debug, Args)]
pub(crate) struct ExportWhat {
    /// Backup id, or latest
    backup: String,
    /// Who is to read it: an age recipient (age1…)
    #[arg(long, value_name = "RECIPIENT")]
    to: String,
    /// Leave out the keys of its artifacts
    #[arg(long)]
    without_artifacts: bool,
}

pub(super) fn run(key: &Key, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    match key {
        Key::Generate(generate) => generate::run(generate, settings, out),
        Key::List => list::run(settings, out),
        Key::Public => public::run(settings, out),
        Key::Rotate(rotate) => rotate::run(rotate, settings, out),
        Key::Revoke(revoke) => revoke::run(revoke, settings, out),
        Key::Export(export) => export::run(export, settings, out),
    }
}

/// Where a setting that is to be changed stands.
enum Place {
    /// In a file of the user's, which is changed only if asked.
    Configuration(PathBuf),
    /// In lifeboat's own `keys.toml`.
    Own(UserKeys),
    /// In the environment, or nowhere: nothing that could be changed.
    Elsewhere(String),
}

impl Place {
    fn of(origin: &Origin, settings: &Settings) -> Self {
        match origin {
            Origin::File(path) => Self::Configuration(path.clone()),
            Origin::User(_) => Self::Own(settings.user_keys.clone()),
            other => Self::Elsewhere(other.to_string()),
        }
    }

    /// The file, begun to be changed.
    fn edit(&self) -> Result<Edit, Failure> {
        match self {
            Self::Configuration(path) => Edit::open(path, None),
            Self::Own(keys) => Edit::open(&keys.state(), Some(UserKeys::initial_state())),
            Self::Elsewhere(origin) => Err(Failure::usage(format!("change the configuration: what is to be changed comes from {origin}"))
                .hint("run the command without --write-config: it prints what to change")),
        }
    }

    /// Puts a changed file in the place of the old one.
    fn commit(&self, edit: Edit) -> Result<PathBuf, Failure> {
        match self {
            Self::Configuration(path) => edit.commit(|text| config::parse(text, path).map(drop)),
            Self::Own(_) | Self::Elsewhere(_) => edit.commit(|text| {
                UserKeys::check(text).map_err(|problem| Failure::new(crate::failure::EXIT_BUG, format!("write keys.toml: {problem}")))
            }),
        }
    }

    /// A path as it is best written there: without its directory, where it is beside the file.
    fn relative(&self, path: &Path) -> String {
        let directory = match self {
            Self::Configuration(file) => file.parent(),
            Self::Own(keys) => Some(keys.directory.as_path()),
            Self::Elsewhere(_) => None,
        };
        let below = directory.filter(|directory| !directory.as_os_str().is_empty()).and_then(|directory| path.strip_prefix(directory).ok());
        match below {
            Some(below) => below.display().to_string(),
            None => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string(),
        }
    }
}

/// The number of the entry of `trust.keys` that holds the key of this hint.
fn entry_of(settings: &Settings, hint: &str) -> Result<Option<usize>, Failure> {
    for (index, source) in settings.trust.keys.value.iter().enumerate() {
        if session::trusted_key(source)?.key.hint() == hint {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// An entry of `trust.keys` with other members: a table, whatever it was before.
fn with_members(entry: &Value, members: &[(&str, Option<String>)]) -> Value {
    let mut table = match entry {
        Value::Table(table) => table.clone(),
        other => {
            let text = other.as_str().unwrap_or_default().to_owned();
            let member = if text.contains("-----BEGIN") { "pem" } else { "file" };
            toml::Table::from_iter([(member.to_owned(), Value::String(text))])
        }
    };
    for (name, value) in members {
        match value {
            Some(text) => table.insert((*name).to_owned(), Value::String(text.clone())),
            None => table.remove(*name),
        };
    }
    Value::Table(table)
}

/// The entry as another host would write it: with the key in it.
fn portable(source: &KeySource, key: &lifeboat_engine::signing::PublicKey) -> String {
    KeySource { place: KeyPlace::Pem(key.to_pem()), ..source.clone() }.toml()
}
