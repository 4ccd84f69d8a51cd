//! `[[repository]]`: where the repository is. The first table is the primary, the others are replicas (docs/replicas.md).

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_core::hold::{HoldMode, Retention};
use lifeboat_engine::store::{self, OpenError, Part, Store, StoreOptions};
use serde::Deserialize;

use super::{Origin, Setting, Source, aws, bucket_of, parse_span};
use crate::failure::Failure;

/// One table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RepositoryTable {
    pub(crate) url: String,
    pub(crate) name: Option<String>,
    pub(crate) required: Option<bool>,
    pub(crate) kept_by: Option<Keeper>,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) path_style: Option<bool>,
    pub(crate) profile: Option<String>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) account: Option<String>,
    pub(crate) credentials_file: Option<PathBuf>,
    pub(crate) retention: Option<String>,
    pub(crate) retention_mode: Option<HoldMode>,
}

impl RepositoryTable {
    /// The first option that a repository at its URL has not.
    pub(super) fn misplaced(&self) -> Option<(&'static str, &'static str)> {
        let scheme = self.url.split_once("://").map_or("", |(scheme, _)| scheme);
        let (s3, google, azure) = (scheme == "s3", scheme == "gs", matches!(scheme, "az" | "azure"));
        let any = s3 || google || azure;
        let options = [
            (self.endpoint.is_some(), any, ("endpoint", "an s3://, gs:// or az:// repository")),
            (self.ca_file.is_some(), any, ("ca_file", "an s3://, gs:// or az:// repository")),
            (self.region.is_some(), s3, ("region", "an s3:// repository")),
            (self.path_style.is_some(), s3, ("path_style", "an s3:// repository")),
            (self.profile.is_some(), s3, ("profile", "an s3:// repository")),
            (self.retention.is_some(), s3, ("retention", "an s3:// repository")),
            (self.retention_mode.is_some(), s3, ("retention_mode", "an s3:// repository")),
            (self.account.is_some(), azure, ("account", "an az:// repository")),
            (self.credentials_file.is_some(), google, ("credentials_file", "a gs:// repository")),
        ];
        options.into_iter().find(|(given, fits, _)| *given && !fits).map(|(_, _, option)| option)
    }
}

/// Who brings objects to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Keeper {
    /// This program.
    Lifeboat,
    /// The store itself: bucket replication, `filer.sync`.
    Store,
}

/// One place of the repository, resolved.
#[derive(Debug, Clone)]
pub(crate) struct RepositorySettings {
    pub(crate) name: Setting<String>,
    pub(crate) url: Setting<String>,
    pub(crate) part: Setting<Part>,
    pub(crate) endpoint: Option<Setting<String>>,
    pub(crate) region: Option<Setting<String>>,
    pub(crate) path_style: Option<Setting<bool>>,
    pub(crate) profile: Option<Setting<String>>,
    pub(crate) ca_file: Option<Setting<PathBuf>>,
    pub(crate) account: Option<Setting<String>>,
    pub(crate) credentials_file: Option<Setting<PathBuf>>,
    pub(crate) retention: Option<Setting<Retention>>,
    /// When it is looked at, if not now.
    pub(crate) as_of: Option<Timestamp>,
}

impl RepositorySettings {
    fn resolve(source: &Source<'_>, url: Setting<String>, table: Option<&RepositoryTable>, first: bool) -> Self {
        let in_s3 = url.value.starts_with("s3://");
        let part = match table {
            Some(RepositoryTable { kept_by: Some(Keeper::Store), .. }) => Some(Part::KeptByStore),
            Some(RepositoryTable { required: Some(true), .. }) => Some(Part::Required),
            Some(RepositoryTable { required: Some(false), .. }) => Some(Part::BestEffort),
            _ => None,
        };
        let part = source.pick(None, None, part).filter(|part| !first || part.value == Part::Required);
        let default = if first { Part::Required } else { Part::BestEffort };
        Self {
            name: source
                .pick(None, None, table.and_then(|table| table.name.clone()))
                .unwrap_or_else(|| Setting { value: url.value.clone(), origin: Origin::Default }),
            part: part.unwrap_or(Setting { value: default, origin: Origin::Default }),
            endpoint: source
                .pick(None, None, table.and_then(|table| table.endpoint.clone()))
                .or_else(|| aws(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]).filter(|_| in_s3)),
            region: source
                .pick(None, None, table.and_then(|table| table.region.clone()))
                .or_else(|| aws(&["AWS_REGION", "AWS_DEFAULT_REGION"]).filter(|_| in_s3)),
            path_style: source.pick(None, None, table.and_then(|table| table.path_style)),
            profile: source
                .pick(None, None, table.and_then(|table| table.profile.clone()))
                .or_else(|| aws(&["AWS_PROFILE"]).filter(|_| in_s3)),
            ca_file: source.pick(None, None, table.and_then(|table| table.ca_file.clone()).map(|path| source.anchor(path))).or_else(|| {
                let setting = aws(&["AWS_CA_BUNDLE"]).filter(|_| in_s3)?;
                Some(Setting { value: setting.value.into(), origin: setting.origin })
            }),
            account: source.pick(None, None, table.and_then(|table| table.account.clone())),
            credentials_file: source.pick(
                None,
                None,
                table.and_then(|table| table.credentials_file.clone()).map(|path| source.anchor(path)),
            ),
            // What it says was checked before.
            retention: source.pick(None, None, table.and_then(|table| parse_retention(table).ok().flatten())),
            as_of: None,
            url,
        }
    }

    /// Opens it, as it is or as it was.
    pub(crate) fn open(&self) -> Result<Box<dyn Store>, OpenError> {
        let store = store::open(&self.url.value, &self.options(), false)?;
        match self.as_of {
            Some(moment) => store::at_moment(store, moment),
            None => Ok(store),
        }
    }

    /// How to reach it.
    pub(crate) fn options(&self) -> StoreOptions {
        StoreOptions {
            endpoint: self.endpoint.as_ref().map(|setting| setting.value.clone()),
            region: self.region.as_ref().map(|setting| setting.value.clone()),
            path_style: self.path_style.as_ref().map(|setting| setting.value),
            // A profile of the environment comes after credentials there; one of the configuration before.
            profile: self.profile.as_ref().filter(|setting| matches!(setting.origin, Origin::File(_))).map(|s| s.value.clone()),
            ca_file: self.ca_file.as_ref().map(|setting| setting.value.clone()),
            account: self.account.as_ref().map(|setting| setting.value.clone()),
            credentials_file: self.credentials_file.as_ref().map(|setting| setting.value.clone()),
            retention: self.retention.as_ref().map(|setting| setting.value),
        }
    }
}

/// The repositories of the configuration, and those that this run uses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Repositories {
    /// As the file names them.
    pub(crate) known: Vec<RepositorySettings>,
    /// The one that was asked for, or all of the file but those that were left out. The first is the primary.
    pub(crate) used: Vec<RepositorySettings>,
}

impl Repositories {
    /// Resolves the tables. With `flag` exactly that repository is used, with the options of the table of the same URL, or at least of the
    /// same bucket. `without` are names of those that this run leaves out, `as_of` is when all of them are looked at, if not now.
    pub(super) fn resolve(
        source: &Source<'_>,
        tables: &[RepositoryTable],
        flag: Option<(String, &'static str)>,
        without: &[String],
        as_of: Option<Timestamp>,
    ) -> Result<Self, Failure> {
        let mut resolved = Self::chosen(source, tables, flag, without)?;
        for one in resolved.known.iter_mut().chain(&mut resolved.used) {
            one.as_of = as_of;
        }
        Ok(resolved)
    }

    fn chosen(
        source: &Source<'_>,
        tables: &[RepositoryTable],
        flag: Option<(String, &'static str)>,
        without: &[String],
    ) -> Result<Self, Failure> {
        for (index, table) in tables.iter().enumerate() {
            check(table, index == 0)?;
        }
        let of_file = |table: &RepositoryTable| source.pick(None, None, Some(source.anchor_url(table.url.clone())));
        let settings =
            |(index, table): (usize, &RepositoryTable)| Some(RepositorySettings::resolve(source, of_file(table)?, Some(table), index == 0));
        let known: Vec<RepositorySettings> = tables.iter().enumerate().filter_map(settings).collect();
        for (index, one) in known.iter().enumerate() {
            let twice = |other: &RepositorySettings| other.name.value == one.name.value || other.url.value == one.url.value;
            if known[..index].iter().any(twice) {
                let message = format!("read configuration: two [[repository]] have the name or URL {:?}", one.name.value);
                return Err(Failure::usage(message).hint("give each a name of its own; lifeboat config show prints them"));
            }
        }
        if let Some((url, name)) = flag {
            let same_url = known.iter().position(|one| one.url.value == url);
            let same_bucket = || known.iter().position(|one| bucket_of(&one.url.value) == bucket_of(&url) && bucket_of(&url).is_some());
            let table = same_url.or_else(same_bucket).and_then(|index| tables.get(index));
            let mut one = RepositorySettings::resolve(source, Setting { value: url, origin: Origin::Flag(name) }, table, true);
            if same_url.is_none() {
                one.name = Setting { value: one.url.value.clone(), origin: Origin::Default };
            }
            return Ok(Self { known, used: vec![one] });
        }
        let mut used = known.clone();
        for name in without {
            let Some(index) = used.iter().position(|one| one.name.value == *name) else {
                return Err(Failure::usage(format!("leave out repository {name:?}: none has this name"))
                    .hint("lifeboat config show prints repository.name of each"));
            };
            used.remove(index);
        }
        if used.is_empty() && !known.is_empty() {
            return Err(Failure::usage("leave out repositories: none is left").hint("lifeboat config show prints them"));
        }
        if let Some(first) = used.first_mut().filter(|first| first.part.value == Part::BestEffort) {
            first.part.value = Part::Required;
        }
        Ok(Self { known, used })
    }

    /// The one that decides.
    pub(crate) fn primary(&self) -> Option<&RepositorySettings> {
        self.used.first()
    }

    /// How to reach a URL: as configured, if the configuration knows it, or at least its bucket; otherwise as the environment says.
    pub(crate) fn options(&self, url: &str) -> StoreOptions {
        let all = || self.used.iter().chain(&self.known);
        let same_bucket = || all().find(|one| bucket_of(&one.url.value).is_some() && bucket_of(&one.url.value) == bucket_of(url));
        match all().find(|one| one.url.value == url).or_else(same_bucket) {
            Some(one) => one.options(),
            None => {
                let nothing = Source { path: None };
                let url = Setting { value: url.to_owned(), origin: Origin::Default };
                RepositorySettings::resolve(&nothing, url, None, true).options()
            }
        }
    }
}

fn check(table: &RepositoryTable, first: bool) -> Result<(), Failure> {
    parse_retention(table)?;
    if let Some((option, of)) = table.misplaced() {
        return Err(Failure::usage(format!("read configuration: {option} is of {of} only"))
            .hint("docs/configuration.md lists the options; leave it out, or change url: lifeboat config show prints the settings"));
    }
    let hint = "put the repository that decides first; lifeboat config show prints them in order";
    if first && table.required == Some(false) {
        return Err(Failure::usage("read configuration: the first [[repository]] is the primary, which is required").hint(hint));
    }
    if first && table.kept_by == Some(Keeper::Store) {
        return Err(Failure::usage("read configuration: the first [[repository]] is the primary, which lifeboat itself writes").hint(hint));
    }
    if table.kept_by == Some(Keeper::Store) && table.required == Some(true) {
        return Err(Failure::usage("read configuration: what its store keeps cannot be required: lifeboat does not write it")
            .hint("leave required out; lifeboat replicate --check tells what it lacks"));
    }
    if table.name.as_deref().is_some_and(|name| name.is_empty() || name.len() > 200 || name.chars().any(char::is_control)) {
        return Err(Failure::usage("read configuration: repository.name must have 1 to 200 characters").hint(hint));
    }
    Ok(())
}

/// How long objects are held: as [`parse_span`], and in days.
fn parse_retention(table: &RepositoryTable) -> Result<Option<Retention>, Failure> {
    let Some(text) = &table.retention else {
        return match table.retention_mode {
            None => Ok(None),
            Some(_) => {
                Err(Failure::usage("read configuration: retention_mode says how objects are held, but retention does not say how long")
                    .hint("write retention = \"30d\" beside it; lifeboat config show prints the settings"))
            }
        };
    };
    let days = text.trim().strip_suffix('d').map(|days| days.trim().parse::<u32>());
    let seconds = match days {
        Some(Ok(days @ 1..)) => i64::from(days) * 24 * 60 * 60,
        Some(_) => {
            return Err(Failure::usage(format!("parse retention {text:?}: write a number of days, 30d"))
                .hint("lifeboat config show prints the settings"));
        }
        None => i64::try_from(parse_span(text)?.as_secs()).unwrap_or(i64::MAX),
    };
    if seconds == 0 {
        return Err(
            Failure::usage(format!("parse retention {text:?}: it is less than a second")).hint("lifeboat config show prints the settings")
        );
    }
    let mode = table.retention_mode.unwrap_or(HoldMode::Governance);
    Ok(Some(Retention { mode, span: jiff::SignedDuration::from_secs(seconds) }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tables(text: &str) -> Vec<RepositoryTable> {
        toml::from_str::<super::super::File>(text).unwrap().repository
    }

    fn resolve(text: &str, flag: Option<&str>, without: &[&str]) -> Result<Repositories, Failure> {
        let source = Source { path: Some(Path::new("/etc/lifeboat.toml")) };
        let without: Vec<String> = without.iter().map(|name| (*name).to_owned()).collect();
        Repositories::resolve(&source, &tables(text), flag.map(|url| (url.to_owned(), "--repository")), &without, None)
    }

    const THREE: &str = "[[repository]]\nurl = 'here'\nname = 'near'\n[[repository]]\nurl = 's3://b/p'\nendpoint = 'https://far'\n\
                         [[repository]]\nurl = 's3://c/p'\nname = 'mirror'\nkept_by = 'store'\nendpoint = 'https://mirror'\n";

    #[test]
    fn the_first_repository_is_the_primary_and_the_others_are_replicas() {
        let used = resolve(THREE, None, &[]).unwrap().used;
        let parts: Vec<(&str, Part)> = used.iter().map(|one| (one.name.value.as_str(), one.part.value)).collect();
        assert_eq!(parts, [("near", Part::Required), ("s3://b/p", Part::BestEffort), ("mirror", Part::KeptByStore)]);
        assert_eq!(used[0].url.value, "/etc/here");
        assert_eq!(used[2].options().endpoint.as_deref(), Some("https://mirror"));
    }

    #[test]
    fn a_repository_that_is_asked_for_is_the_only_one_and_keeps_its_options() {
        let one = resolve(THREE, Some("s3://b/p"), &[]).unwrap();
        assert_eq!(one.used.len(), 1);
        assert_eq!((one.used[0].part.value, one.used[0].options().endpoint.as_deref()), (Part::Required, Some("https://far")));
        let other = resolve(THREE, Some("s3://c/other"), &[]).unwrap();
        assert_eq!(other.used[0].options().endpoint.as_deref(), Some("https://mirror"), "of the same bucket");
        assert_eq!(other.options("s3://b/p").endpoint.as_deref(), Some("https://far"));
    }

    #[test]
    fn a_hold_is_so_many_days_or_a_span() {
        let table = |line: &str| tables(&format!("[[repository]]\nurl = 's3://b/p'\n{line}")).remove(0);
        for (text, expected) in [("30d", Some(30 * 86_400)), ("12h", Some(43_200)), ("0d", None), ("d", None), ("1.5d", None), ("30", None)]
        {
            let seconds =
                parse_retention(&table(&format!("retention = '{text}'"))).ok().flatten().map(|retention| retention.span.as_secs());
            assert_eq!(seconds, expected, "{text}");
        }
        assert!(parse_retention(&table("retention_mode = 'compliance'")).is_err(), "for how long?");
        let held = resolve("[[repository]]\nurl = 's3://b/p'\nretention = '1d'", None, &[]).unwrap();
        assert_eq!(held.used[0].options().retention.map(|retention| retention.mode), Some(HoldMode::Governance));
    }

    #[test]
    fn what_is_lost_can_be_left_out() {
        let used = resolve(THREE, None, &["near"]).unwrap().used;
        assert_eq!((used.len(), used[0].part.value), (2, Part::Required));
        assert!(resolve(THREE, None, &["nobody"]).is_err());
        assert!(resolve(THREE, None, &["near", "s3://b/p", "mirror"]).is_err());
    }

    #[test]
    fn c121_repositories_that_cannot_be_meant_are_refused() {
        for bad in [
            "[[repository]]\nurl = '/a'\nrequired = false",
            "[[repository]]\nurl = '/a'\nkept_by = 'store'",
            "[[repository]]\nurl = '/a'\n[[repository]]\nurl = '/a'",
            "[[repository]]\nurl = '/a'\nname = 'x'\n[[repository]]\nurl = '/b'\nname = 'x'",
            "[[repository]]\nurl = '/a'\n[[repository]]\nurl = '/b'\nkept_by = 'store'\nrequired = true",
            "[[repository]]\nurl = '/a'\n[[repository]]\nurl = '/b'\nregion = 'x'",
            "[[repository]]\nurl = '/a'\nname = ''",
        ] {
            assert_eq!(resolve(bad, None, &[]).unwrap_err().code, crate::failure::EXIT_USAGE, "{bad}");
        }
        assert!(toml::from_str::<super::super::File>("[[repository]]\nurl = '/a'\nkept_by = 'nobody'").is_err());
    }
}
