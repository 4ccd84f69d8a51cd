//! `lifeboat init`

use std::path::Path;

use lifeboat_core::policy::Operation;
use lifeboat_engine::replicate;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::store::{self, Part};

use crate::cli::{Cli, Init};
use crate::config::Settings;
use crate::failure::{EXIT_FAILED, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session;

pub(super) fn run(cli: &Cli, init: &Init, mut settings: Settings, out: &Output) -> Result<u8, Failure> {
    init.dsn.as_deref().map_or(Ok(()), refuse_password)?;
    let url = session::repository_url(&settings)?.to_owned();
    if let Some(path) = init.write_config.as_deref().filter(|path| path.exists()) {
        return Err(Failure::new(EXIT_FAILED, format!("write {}: it exists already", path.display()))
            .hint("choose another name: lifeboat init --write-config FILE"));
    }
    let permit = gate::ask(&settings, None, Question::new(Operation::Init).in_repository(&url))?;
    let keys = session::first_keys(&settings).and_then(|made| {
        if made {
            settings = Settings::resolve(cli)?;
        }
        Ok(())
    });
    let made = keys.and_then(|()| make(init, &settings, &url, out));
    permit.end(&settings, made)
}

fn make(init: &Init, settings: &Settings, url: &str, out: &Output) -> Result<u8, Failure> {
    refuse_beside_another(settings, url)?;
    let (repository, diagnosis) = session::make_repository(store::open(url, &settings.store_options(url), true)?, settings)?;
    let replicas = make_replicas(settings, &repository)?;
    if let Some(path) = &init.write_config {
        write_config(path, init, settings, repository.store().url())?;
    }
    let document = serde_json::json!({
        "repository": repository.store().url(),
        "id": repository.descriptor().repository,
        "replicas": replicas,
        "configuration": init.write_config,
        "findings": diagnosis.findings,
    });
    // The repository is made; what could be better about its store is said, and is no reason to fail.
    super::doctor::say(&diagnosis);
    out.result(&document, || {
        let mut text = format!("made repository {} at {}\n", repository.descriptor().repository, repository.store().url());
        replicas.iter().for_each(|url| text.push_str(&format!("  replica at {url}\n")));
        text
    });
    if let Some(path) = &init.write_config {
        output::say(&format!("wrote {}; next: lifeboat --config {} backup --dry-run", path.display(), path.display()));
    }
    Ok(0)
}

/// A configured replica that is a repository already has what was in the place that is to be made now: another repository there would never be
/// its primary again, and every backup from now on would be without a replica.
fn refuse_beside_another(settings: &Settings, url: &str) -> Result<(), Failure> {
    for one in settings.repositories.used.iter().skip(1) {
        let found = store::open(&one.url.value, &one.options(), false).ok().and_then(|store| Repository::open(store).ok());
        if let Some(found) = found {
            let (name, id) = (&one.name.value, found.descriptor().repository);
            let primary = settings.repositories.used.first().map_or("PRIMARY", |primary| primary.name.value.as_str());
            return Err(Failure::new(EXIT_FAILED, format!("make repository {url}: its replica {name} is there already, repository {id}"))
                .hint(format!("if {primary} was lost, bring it back: lifeboat replicate --from {name} --to {primary}; if it is to be a new one, name an empty replica: lifeboat config show")));
        }
    }
    Ok(())
}

/// Makes the other places replicas. One that is required has to be there now; the others become replicas when `lifeboat replicate` reaches
/// them.
fn make_replicas(settings: &Settings, repository: &Repository) -> Result<Vec<String>, Failure> {
    let mut made = Vec::new();
    for one in settings.repositories.used.iter().skip(1).filter(|one| one.part.value != Part::KeptByStore) {
        let make = || -> Result<String, Failure> {
            let store = store::open(&one.url.value, &one.options(), true)?;
            replicate::adopt(repository.store(), &*store)?;
            Ok(store.url().to_owned())
        };
        match make() {
            Ok(url) => made.push(url),
            Err(failure) if one.part.value == Part::Required => {
                let message = format!("{}; the primary is made, this replica is required", failure.message);
                return Err(Failure { message, ..failure }.hint("when it can be reached: lifeboat replicate"));
            }
            Err(failure) => output::warn(&format!("{}: {}; lifeboat replicate makes it a replica", one.name.value, failure.message)),
        }
    }
    Ok(made)
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Arguments are seen by every user of the host, and stay in the history of a shell.
fn refuse_password(dsn: &str) -> Result<(), Failure> {
    match lifeboat_engine::postgres::Dsn::parse(dsn)?.has_secret() {
        false => Ok(()),
        true => Err(Failure::usage("read --dsn: a password is no argument, others would see it")
            .hint("leave it out, and put it into ~/.pgpass or a file that passfile= names; lifeboat init --help")),
    }
}

fn write_config(path: &Path, init: &Init, settings: &Settings, url: &str) -> Result<(), Failure> {
    let absolute = |path: &Path| quoted(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string());
    let line = |key: &str, value: Option<String>, example: &str| {
        value.map_or_else(|| format!("# {key} = {example}\n"), |value| format!("{key} = {value}\n"))
    };
    let keys = &settings.user_keys;
    let recipients: Vec<String> = settings.recipients.value.iter().map(|recipient| quoted(recipient)).collect();
    let trust: Vec<String> = settings.trust.keys.value.iter().map(crate::config::KeySource::toml).collect();
    let mut text = String::from("# lifeboat's configuration. `lifeboat config show` prints every setting and where it came from.\n\n");
    text.push_str("# Name of the protected system: backups are called NAME-backup-TIME.\n");
    text.push_str(&format!("name = {}\n\n", quoted(init.name.as_deref().unwrap_or(&settings.name.value))));
    text.push_str("# The server. The password comes from ~/.pgpass or PGPASSWORD, not from here.\n[postgres]\n");
    text.push_str(&line("dsn", init.dsn.as_deref().map(quoted), "\"host=/var/run/postgresql user=postgres dbname=postgres\""));
    text.push_str("# Where it is on this host: allows the fastest way to copy it.\n");
    text.push_str(&line("data_directory", init.data_directory.as_deref().map(absolute), "\"/var/lib/postgresql/15/main\""));
    text.push_str("# auto, local (from the directory), stream (replication protocol) or logical (pg_dump).\ncopy = \"auto\"\n\n");
    text.push_str(&format!("[[repository]]\nurl = {}\n", quoted(url)));
    if url.starts_with("s3://") {
        // What was in force when the repository was made; credentials come from where AWS's own programs find them, not from here.
        let options = settings.store_options(url);
        text.push_str(&line("endpoint", options.endpoint.as_deref().map(quoted), "\"https://s3.example.org\""));
        text.push_str(&line("region", options.region.as_deref().map(quoted), "\"eu-central-1\""));
        text.push_str(&line("profile", options.profile.as_deref().map(quoted), "\"backup\""));
        text.push_str(&line("ca_file", options.ca_file.as_deref().map(absolute), "\"/etc/ssl/own.pem\""));
    }
    if url.starts_with("gs://") {
        text.push_str(&line("credentials_file", None, "\"/etc/lifeboat/google.json\""));
    }
    if url.starts_with("az") && url.contains("://") {
        text.push_str(&line("account", settings.store_options(url).account.as_deref().map(quoted), "\"storageaccount\""));
    }
    text.push('\n');
    text.push_str("# Code archives, test results, build logs.\n[artifacts]\n");
    text.push_str(&line("directory", init.artifacts.as_deref().map(absolute), "\"/srv/artifacts\""));
    text.push_str(
        "# Name and SHA-256 of every artifact that the database refers to.\n# reference_query = \"SELECT name, sha256 FROM artifacts\"\n\n",
    );
    text.push_str("# Backups can be read only with a restore identity; this host need not have one.\n[encryption]\n");
    text.push_str(&format!("recipients = [{}]\n", recipients.join(", ")));
    text.push_str(&line(
        "host_identity",
        keys.host_identity().exists().then(|| absolute(&keys.host_identity())),
        "\"/etc/lifeboat/host-identity.txt\"",
    ));
    text.push_str("# Only where restores run:\n");
    text.push_str(&line("identity_file", keys.identity().exists().then(|| absolute(&keys.identity())), "\"/etc/lifeboat/identity.txt\""));
    text.push_str("\n[signing]\n");
    text.push_str(&line("key_file", keys.signing_key().exists().then(|| absolute(&keys.signing_key())), "\"/etc/lifeboat/signing.key\""));
    text.push_str(&line(
        "password",
        keys.password().exists().then(|| format!("{{ file = {} }}", absolute(&keys.password()))),
        "{ file = \"/etc/lifeboat/signing.password\" }  # or { env = \"NAME\" } or { command = [\"pass\", \"show\", \"lifeboat\"] }",
    ));
    text.push_str("\n# Public keys whose signatures count.\n[trust]\n");
    text.push_str(&format!("keys = [{}]\n\n", trust.join(", ")));
    text.push_str("# What is allowed here, and what takes the approval of others: in \"production\" every restore does. docs/policy.md, docs/approvals.md\n");
    text.push_str("[policy]\n# environment = \"production\"\n# path = \"policy.rego\"  # lifeboat policy show > policy.rego\n\n");
    text.push_str("# Who did what with the repository: every host signs its records with a key of its own. docs/audit.md\n[audit]\n");
    text.push_str(&line("key_file", keys.audit_key().exists().then(|| absolute(&keys.audit_key())), "\"/etc/lifeboat/audit.key\""));
    text.push_str("# Other hosts: lifeboat audit key prints each one's.\n# trust = [\"db2+1a2b3c4d+AbCd…\"]\n\n");
    text.push_str("[wal]\n# mode = \"archive\"  # archive, stream or sync: docs/wal.md\n# spool = \"/var/spool/lifeboat\"\n\n");
    text.push_str("[retention]\n# keep_daily = 14  # and keep_last, keep_weekly, keep_monthly, keep_yearly: docs/retention.md\n");
    text.push_str("# recovery_window = \"14d\"  # every moment of it can be gone back to\n# grace = \"7d\"  # between lifeboat expire and lifeboat prune\n\n");
    text.push_str("[limits]\nmemory = \"512MiB\"\n# workers = 4\n# bandwidth = \"100MiB\"  # bytes a second to read\n");
    std::fs::write(path, text).map_err(|error| {
        Failure::new(EXIT_FAILED, format!("write {}: {error}", path.display()))
            .hint("choose another place: lifeboat init --write-config FILE")
    })
}
