//! `lifeboat init`

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use lifeboat_core::policy::Operation;
use lifeboat_engine::init::{Files, Server, Socket, ask, sockets};
use lifeboat_engine::postgres::{Dsn, PgError};
use lifeboat_engine::replicate;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::store::{self, Part};

use crate::cli::{Cli, Init};
use crate::config::{Origin, PLAIN_WORDS, Setting, Settings, reference};
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
    keep_state(init, &mut settings);
    let permit = gate::ask(&settings, None, Question::new(Operation::Init).in_repository(&url))?;
    let keys = session::first_keys(&settings).and_then(|made| {
        if made {
            settings = Settings::resolve(cli)?;
            keep_state(init, &mut settings);
        }
        Ok(())
    });
    let made = keys.and_then(|()| make(init, &settings, &url, out));
    permit.end(&settings, made)
}

/// What this run itself notes down is where every later one looks for it.
fn keep_state(init: &Init, settings: &mut Settings) {
    if let Some(state) = &init.state_directory {
        let origin = || Origin::Flag("--state-directory");
        settings.audit.directory = Setting { value: state.join("audit"), origin: origin() };
        settings.wal_spool = Setting { value: state.join("spool"), origin: origin() };
        settings.agent.state = Setting { value: state.clone(), origin: origin() };
    }
}

fn make(init: &Init, settings: &Settings, url: &str, out: &Output) -> Result<u8, Failure> {
    refuse_beside_another(settings, url)?;
    let (repository, diagnosis) = session::make_repository(store::open(url, &settings.store_options(url), true)?, settings)?;
    let replicas = make_replicas(settings, &repository)?;
    let found = init.write_config.as_ref().map(|_| look(init, settings)).transpose()?;
    if let (Some(path), Some(found)) = (&init.write_config, &found) {
        found.say(path);
        write_config(path, init, settings, repository.store().url(), found)?;
    }
    let document = serde_json::json!({
        "repository": repository.store().url(),
        "id": repository.descriptor().repository,
        "replicas": replicas,
        "configuration": init.write_config,
        "server": found.as_ref().map(Found::document),
        "findings": diagnosis.findings,
    });
    // The repository is made; what could be better about its store is said, and is no reason to fail.
    super::doctor::say(&diagnosis);
    out.result(&document, || {
        let mut text = format!("made repository {} at {}\n", repository.descriptor().repository, repository.store().url());
        replicas.iter().for_each(|url| text.push_str(&format!("  replica at {url}\n")));
        text
    });
    if let (Some(path), Some(found)) = (&init.write_config, &found) {
        say_what_follows(path, found);
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

/// Where Debian's servers listen.
const SOCKETS: &str = "/var/run/postgresql";

/// How long a server may take to answer, where nothing else says it: somebody waits, and can name what was not found.
const ANSWER_SECONDS: &str = "5";

/// What was found out about a server.
struct Found {
    /// How to reach it, as it is to be written; without a password.
    dsn: Option<String>,
    /// What it says of itself; `None`: there is none, as far as one can see.
    server: Option<Result<Server, PgError>>,
    /// The socket that it was found by.
    socket: Option<Socket>,
    /// Ports of others on this host.
    others: Vec<u16>,
}

/// Looks for a server: the one that was typed, else the one of the environment or of the configuration in force, else on this host.
fn look(init: &Init, settings: &Settings) -> Result<Found, Failure> {
    let configured = settings.dsn.as_ref().map(|setting| setting.value.as_str());
    if let Some(text) = init.dsn.as_deref().or(configured) {
        let dsn = Dsn::parse(text)?;
        let server = answer(&dsn);
        let written = match (&init.dsn, &settings.dsn) {
            (Some(typed), _) => Some(typed.clone()),
            _ if dsn.has_secret() => {
                output::warn(
                    "the connection string of this server holds a password, which is not written: leave it out, and use ~/.pgpass",
                );
                None
            }
            // Of libpq's variables, which will not be set when a timer starts the backup.
            (None, Some(setting)) if matches!(setting.origin, Origin::Environment(_)) && text.is_empty() => {
                Some(match std::env::var("PGSERVICE") {
                    Ok(service) => Dsn::default().with("service", &service).to_string(),
                    Err(_) => named(server.as_ref().map_or_else(|_| dsn.endpoint(), |server| server.endpoint.clone())),
                })
            }
            _ => Some(text.to_owned()),
        };
        return Ok(Found { dsn: written, server: Some(server), socket: None, others: Vec::new() });
    }
    let mut sockets = sockets(Path::new(SOCKETS));
    let usual = sockets.iter().position(|socket| socket.port == 5432).unwrap_or(0);
    if sockets.is_empty() {
        return Ok(Found { dsn: None, server: None, socket: None, others: Vec::new() });
    }
    let socket = sockets.remove(usual);
    let dsn = Dsn::default().with("host", SOCKETS).with("port", &socket.port.to_string()).with("dbname", "postgres");
    let server = answer(&dsn);
    // As Debian's servers are made, only their own user is let in as the superuser: whoever runs backups will be that one.
    let written =
        server.as_ref().map_or_else(|_| dsn.clone().with("user", "postgres").to_string(), |server| named(server.endpoint.clone()));
    Ok(Found { dsn: Some(written), server: Some(server), socket: Some(socket), others: sockets.iter().map(|socket| socket.port).collect() })
}

fn answer(dsn: &Dsn) -> Result<Server, PgError> {
    let patient = dsn.get("connect_timeout").is_some() || std::env::var_os("PGCONNECT_TIMEOUT").is_some();
    if patient { ask(dsn) } else { ask(&dsn.clone().with("connect_timeout", ANSWER_SECONDS)) }
}

/// A connection string that says everything.
fn named(endpoint: lifeboat_engine::postgres::Endpoint) -> String {
    let words = [("host", endpoint.host), ("port", endpoint.port), ("user", endpoint.user), ("dbname", endpoint.database)];
    let said = words.iter().filter(|(_, value)| !value.is_empty());
    said.fold(Dsn::default(), |dsn, (keyword, value)| dsn.with(keyword, value)).to_string()
}

impl Found {
    /// The data directory, where this user can copy it.
    fn data_directory(&self) -> Option<&Path> {
        match &self.server {
            Some(Ok(Server { files: Files::Here(path), .. })) => Some(path),
            Some(Err(_)) => self.socket.as_ref()?.data_directory.as_deref(),
            _ => None,
        }
    }

    /// Where its programs are, if that has to be said.
    fn bin_directory(&self) -> Option<&Path> {
        match &self.server {
            Some(Ok(server)) => server.bin_directory.as_deref().filter(|_| !server.bin_directory_is_usual),
            Some(Err(_)) => self.socket.as_ref()?.bin_directory.as_deref(),
            None => None,
        }
    }

    fn document(&self) -> serde_json::Value {
        let server = self.server.as_ref().and_then(|server| server.as_ref().ok());
        serde_json::json!({
            "dsn": self.dsn,
            "version": server.map(|server| version(server.version)),
            "data_directory": self.data_directory(),
            "bin_directory": server.and_then(|server| server.bin_directory.as_deref()).or(self.bin_directory()),
            "problem": self.server.as_ref().and_then(|server| server.as_ref().err()).map(ToString::to_string),
            "other_ports": self.others,
        })
    }

    /// Tells what was found, and what was not.
    fn say(&self, path: &Path) {
        match &self.server {
            None => output::warn(&format!(
                "found no server: no PG* variable names one, and none listens in {SOCKETS}; set postgres.dsn in {}",
                path.display()
            )),
            Some(Err(error)) => {
                output::warn(&format!("{error}; what is written of it has to be looked at: {}", path.display()));
                if let Some(socket) = &self.socket {
                    output::say(&format!(
                        "hint: run this as the user that owns {}: sudo -u postgres lifeboat init",
                        socket.directory.display()
                    ));
                }
            }
            Some(Ok(server)) => {
                let standby = if server.in_recovery { ", a standby" } else { "" };
                output::say(&format!("found PostgreSQL {}{standby} at {}", version(server.version), server.endpoint));
                match &server.files {
                    Files::Here(path) => output::say(&format!("  data directory  {}", path.display())),
                    Files::Closed(path) => output::warn(&format!(
                        "the data directory {} is closed to this user: copies go through the replication protocol, which takes longer",
                        path.display()
                    )),
                    Files::Elsewhere(path) => output::say(&format!("  data directory  {}, which is not on this host", path.display())),
                    Files::Unknown => output::say("  data directory  this role may not see it (pg_read_all_settings)"),
                }
                match &server.bin_directory {
                    Some(path) => output::say(&format!("  programs        {}", path.display())),
                    None => output::say(&format!("  programs        none of version {} on this host", server.version / 10_000)),
                }
            }
        }
        if !self.others.is_empty() {
            let ports: Vec<String> = self.others.iter().map(u16::to_string).collect();
            output::say(&format!("  other servers   ports {}: name one of them with --dsn", ports.join(", ")));
        }
    }
}

/// As people write it: 15.18.
fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

/// What an operator does next, as it is typed.
fn say_what_follows(path: &Path, found: &Found) {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("lifeboat"));
    let word = |path: &Path| super::restore::shell(&path.display().to_string());
    let command = format!("{} --config {} wal push %p", word(&program), word(&absolute)).replace('\'', "''");
    let archives = matches!(&found.server, Some(Ok(server)) if server.archive_mode != "off");
    let restart = if archives { "archive_mode is on already; a reload is enough" } else { "with a restart" };
    let config = path.display();
    output::say(&format!(
        "wrote {config}; next:\n\
         \x20 in postgresql.conf, {restart}:\n\
         \x20   archive_mode = on\n\
         \x20   archive_command = '{command}'\n\
         \x20   archive_timeout = 60\n\
         \x20 lifeboat --config {config} doctor    what is wrong, and how to set it right\n\
         \x20 lifeboat --config {config} backup    the first one\n\
         \x20 lifeboat --config {config} agent     day and night"
    ));
}

/// The file: what is known stands in it, everything else as a comment.
fn write_config(path: &Path, init: &Init, settings: &Settings, url: &str, found: &Found) -> Result<(), Failure> {
    let absolute = |path: &Path| quoted(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string());
    let list = |texts: Vec<String>| format!("[{}]", texts.join(", "));
    let mut given: BTreeMap<(&str, &str), String> = BTreeMap::new();
    let mut give = |table: &'static str, key: &'static str, value: Option<String>| {
        if let Some(value) = value {
            given.insert((table, key), value);
        }
    };
    give("", "name", Some(quoted(init.name.as_deref().unwrap_or(&settings.name.value))));
    give("[postgres]", "dsn", found.dsn.as_deref().map(quoted));
    give("[postgres]", "data_directory", init.data_directory.as_deref().or(found.data_directory()).map(absolute));
    give("[postgres]", "bin_directory", found.bin_directory().map(absolute));
    // What was in force when the repository was made; credentials come from where the cloud's own programs find them, not from here.
    let options = settings.store_options(url);
    give("[[repository]]", "url", Some(quoted(url)));
    give("[[repository]]", "endpoint", options.endpoint.as_deref().map(quoted));
    give("[[repository]]", "region", options.region.as_deref().map(quoted));
    give("[[repository]]", "profile", options.profile.as_deref().map(quoted));
    give("[[repository]]", "ca_file", options.ca_file.as_deref().map(absolute));
    give("[[repository]]", "account", options.account.as_deref().map(quoted));
    give("[[repository]]", "credentials_file", options.credentials_file.as_deref().map(absolute));
    give("[artifacts]", "directory", init.artifacts.as_deref().map(absolute));
    let keys = &settings.user_keys;
    let there = |path: PathBuf| path.exists().then(|| absolute(&path));
    let recipients: Vec<String> = settings.recipients.value.iter().map(|recipient| quoted(recipient)).collect();
    match settings.plain.value {
        true => give("[encryption]", "none", Some(quoted(PLAIN_WORDS))),
        false => give("[encryption]", "recipients", Some(list(recipients))),
    }
    give("[encryption]", "host_identity", there(keys.host_identity()));
    give("[encryption]", "identity_file", there(keys.identity()));
    give("[signing]", "key_file", there(keys.signing_key()));
    give("[signing]", "password", there(keys.password()).map(|path| format!("{{ file = {path} }}")));
    give("[trust]", "keys", Some(list(settings.trust.keys.value.iter().map(crate::config::KeySource::toml).collect())));
    give("[audit]", "key_file", there(keys.audit_key()));
    if let Some(state) = &init.state_directory {
        give("[audit]", "directory", Some(absolute(&state.join("audit"))));
        give("[wal]", "spool", Some(absolute(&state.join("spool"))));
        // Whoever runs lifeboat by hand notes what was done where the agent looks.
        give("[agent]", "state", Some(absolute(state)));
        let drills = state.join("drills");
        // Open, as a drill's server is another user where there is root; a directory that was configured is not made by a drill.
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&drills).map_err(|error| {
            Failure::new(EXIT_FAILED, format!("make {}: {error}", drills.display()))
                .hint("name a directory of this user: lifeboat init --state-directory DIR")
        })?;
        give("[drill]", "directory", Some(absolute(&drills)));
    }
    std::fs::write(path, reference::commented(&given)).map_err(|error| {
        Failure::new(EXIT_FAILED, format!("write {}: {error}", path.display()))
            .hint("choose another place: lifeboat init --write-config FILE")
    })
}
