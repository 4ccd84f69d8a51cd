//! What this host can say about an operation, for the policy.

use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use lifeboat_core::policy::{BackupFacts, FACTS_SCHEMA, Facts, Operation, RepositoryFacts, TargetFacts};
use lifeboat_core::repository::manifest::{Manifest, State};
use lifeboat_core::restore::Target;

use crate::config::Settings;
use crate::session;

/// The facts that every operation has. The others are added by whoever knows them.
pub(crate) fn of(settings: &Settings, operation: Operation, dry_run: bool, now: Timestamp) -> Facts {
    Facts {
        schema: FACTS_SCHEMA,
        time: now,
        time_seconds: now.as_second(),
        operation,
        action: operation.class(),
        dry_run,
        actor: session::actor(),
        host: session::host(),
        environment: settings.policy.environment.value.clone(),
        repository: settings.repositories.primary().map(|one| RepositoryFacts { url: without_user(&one.url.value), id: None }),
        backup: None,
        target: None,
        deletion: None,
        plan: None,
        break_glass: None,
    }
}

/// A URL without what may stand before an `@` in its host.
pub(crate) fn without_user(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
            let host = host.rsplit('@').next().unwrap_or(host);
            path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
        }
        None => url.to_owned(),
    }
}

/// Facts about a backup whose signature was verified, and of no other.
pub(crate) fn backup(manifest: &Manifest, signed_by: &str, now: Timestamp) -> BackupFacts {
    BackupFacts {
        id: manifest.id.clone(),
        name: manifest.id.name().to_owned(),
        state: match manifest.state {
            State::Healthy => "healthy",
            State::Degraded => "degraded",
        }
        .to_owned(),
        started: manifest.started,
        age_seconds: now.duration_since(manifest.started).as_secs(),
        signed_by: signed_by.to_owned(),
    }
}

/// Where a restore would go. `others` are places that are written beside the two: tablespaces.
pub(crate) fn target(
    settings: &Settings,
    pgdata: Option<&Path>,
    artifacts: Option<&Path>,
    others: &[&Path],
    recovery: Option<&Target>,
    start: bool,
    accept_degraded: bool,
) -> TargetFacts {
    let own: Vec<PathBuf> =
        [&settings.data_directory, &settings.artifacts].into_iter().flatten().map(|setting| resolved(&setting.value)).collect();
    let written = pgdata.into_iter().chain(artifacts).chain(others.iter().copied());
    let text = |path: &Path| path.display().to_string();
    TargetFacts {
        pgdata: pgdata.map(text),
        artifacts: artifacts.map(text),
        start,
        recovery: recovery.map(word).map(str::to_owned),
        production: written.map(resolved).any(|path| own.iter().any(|own| path.starts_with(own))),
        accept_degraded,
    }
}

/// As facts name a recovery target.
const fn word(target: &Target) -> &'static str {
    match target {
        Target::Latest => "latest",
        Target::Immediate => "immediate",
        Target::Time(_) => "time",
        Target::Lsn(_) => "lsn",
        Target::TransactionId(_) => "transaction-id",
        Target::Name(_) => "name",
    }
}

/// Where a path leads, whether or not it is there yet: links followed as far as there is something, then `.` and `..` by their letters.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for ancestor in absolute.ancestors() {
        let Ok(found) = std::fs::canonicalize(ancestor) else { continue };
        let mut place = found;
        for part in absolute.strip_prefix(ancestor).into_iter().flat_map(Path::components) {
            match part {
                Component::ParentDir => drop(place.pop()),
                Component::Normal(name) => place.push(name),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        return place;
    }
    absolute
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_recognised_however_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(directory.path()).unwrap();
        std::fs::create_dir_all(root.join("srv/data")).unwrap();
        std::os::unix::fs::symlink(root.join("srv"), root.join("link")).unwrap();
        for written in ["srv/data", "srv/./data/", "link/data", "srv/x/../data", "nothing/../srv/data", "link/new/../data"] {
            assert_eq!(resolved(&root.join(written)), root.join("srv/data"), "{written}");
        }
        assert_eq!(resolved(&root.join("link/data/new/base")), root.join("srv/data/new/base"));
        assert!(!resolved(&root.join("srv/database")).starts_with(root.join("srv/data")));
    }

    #[test]
    fn an_address_has_no_user_in_it() {
        assert_eq!(without_user("s3://b/p@q"), "s3://b/p@q");
        assert_eq!(without_user("https://me:hunter2@h/p"), "https://h/p");
        assert_eq!(without_user("https://me:hunter2@h"), "https://h");
        assert_eq!(without_user("/srv/a@b"), "/srv/a@b");
    }
}
