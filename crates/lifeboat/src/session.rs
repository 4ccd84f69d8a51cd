//! What commands share: the repository opened, whom to trust, who opens backups, who signs.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use jiff::Timestamp;
use lifeboat_core::doctor::{Diagnosis, store as diagnose};
use lifeboat_core::policy::Actor;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_engine::backup::Protection;
use lifeboat_engine::keys::{self, Identities, Recipient};
use lifeboat_engine::opened_backup;
use lifeboat_engine::policy::{OpaSettings, Policy, PolicySettings};
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::{KeyFileSigner, SignError, Signer, SigningKey, Trust};
use lifeboat_engine::store::probe::{self, Depth, Examination};
use lifeboat_engine::store::{self, Access, Member, Note, Store};
use zeroize::Zeroizing;

use crate::config::{RepositorySettings, Secret, Settings, UserKeys};
use crate::failure::{EXIT_KEY, EXIT_NO_REPOSITORY, Failure};
use crate::output;

/// This program, as repositories name it.
pub(crate) const PROGRAM: &str = concat!("lifeboat ", env!("CARGO_PKG_VERSION"));

/// This host's name.
pub(crate) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Who acts here: the user that the process runs as, and who called `sudo`. What `sudo` left in the environment is believed of root alone: only
/// there does it mean anything, and root could have written it anyway.
pub(crate) fn actor() -> Actor {
    let uid = rustix::process::getuid().as_raw();
    let name = std::fs::read_to_string("/etc/passwd").ok().and_then(|text| {
        let line = text.lines().find(|line| line.split(':').nth(2) == Some(uid.to_string().as_str()))?;
        line.split(':').next().map(str::to_owned)
    });
    let sudo_user = std::env::var("SUDO_USER").ok().filter(|name| uid == 0 && !name.is_empty());
    Actor { user: name.unwrap_or_else(|| uid.to_string()), uid, sudo_user }
}

/// The policy in force. One that cannot be loaded denies everything, and says why: that is no failure here.
pub(crate) fn policy(settings: &Settings) -> Result<Policy, Failure> {
    let terms = &settings.policy;
    let bytes = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| {
            Failure::new(EXIT_KEY, format!("read {}: {error}", path.display()))
                .hint("lifeboat config show prints policy.opa_ca_file and policy.opa_identity_file")
        })
    };
    let opa = match &terms.opa_url {
        None => None,
        Some(url) => Some(OpaSettings {
            url: url.value.clone(),
            path: terms.opa_path.value.clone(),
            token: match &terms.opa_token {
                None => None,
                Some(setting) => {
                    let text = Zeroizing::new(secret(&setting.value, "policy.opa_token")?);
                    let text = std::str::from_utf8(&text).map_err(|_| {
                        Failure::new(EXIT_KEY, "read policy.opa_token: it is not UTF-8")
                            .hint("lifeboat config show prints where it is looked for")
                    })?;
                    Some(Zeroizing::new(text.to_owned()))
                }
            },
            ca: terms.opa_ca_file.as_ref().map(|setting| bytes(&setting.value)).transpose()?,
            identity: terms.opa_identity_file.as_ref().map(|setting| bytes(&setting.value).map(Zeroizing::new)).transpose()?,
        }),
    };
    let path = terms.path.as_ref().map(|setting| setting.value.clone());
    Ok(Policy::open(&PolicySettings { engines: terms.engine.value, path, opa, timeout: terms.timeout.value }))
}

/// The primary of the repositories that the settings name.
pub(crate) fn primary(settings: &Settings) -> Result<&RepositorySettings, Failure> {
    settings.repositories.primary().ok_or_else(|| {
        Failure::usage("find the repository: none is named")
            .hint("give --repository DIR, or write a configuration: lifeboat init --repository DIR --write-config lifeboat.toml")
    })
}

/// Its URL.
pub(crate) fn repository_url(settings: &Settings) -> Result<&str, Failure> {
    Ok(primary(settings)?.url.value.as_str())
}

/// Opens the repository that the settings name, for writing: the primary decides, replicas get what is written.
pub(crate) fn open_repository(settings: &Settings) -> Result<Repository, Failure> {
    match settings.repositories.used.as_slice() {
        [] | [_] => alone(primary(settings)?),
        _ => open_everywhere(settings, Access::Write),
    }
}

/// The same for reading: what one place has lost is read from the next, and that is said.
pub(crate) fn read_repository(settings: &Settings) -> Result<Repository, Failure> {
    open_everywhere(settings, Access::Read)
}

/// The same where "there is none" has consequences: nothing is absent while the primary does not answer.
pub(crate) fn prove_repository(settings: &Settings) -> Result<Repository, Failure> {
    open_everywhere(settings, Access::Prove)
}

fn open_everywhere(settings: &Settings, access: Access) -> Result<Repository, Failure> {
    primary(settings)?;
    let member = |one: &RepositorySettings| {
        let place = one.clone();
        let open = Box::new(move || place.open());
        Member { name: one.name.value.clone(), url: one.url.value.clone(), part: one.part.value, open }
    };
    let members = settings.repositories.used.iter().map(member).collect();
    let watch = Box::new(|note: &Note| output::warn(&note.to_string()));
    Ok(store::open_members(members, access, &settings.wal_spool.value, watch)?)
}

/// Opens one place by itself: its damage shows, and nothing is read from elsewhere.
pub(crate) fn alone(one: &RepositorySettings) -> Result<Repository, Failure> {
    Ok(Repository::open(one.open()?)?)
}

/// The same, without the older versions that a store may keep.
pub(crate) fn without_copies(one: &RepositorySettings) -> Result<Repository, Failure> {
    Ok(Repository::open(Box::new(store::Alone::new(one.open()?)))?)
}

/// The configured repository of this name.
pub(crate) fn named<'a>(settings: &'a Settings, name: &str) -> Result<&'a RepositorySettings, Failure> {
    settings.repositories.used.iter().find(|one| one.name.value == name).ok_or_else(|| {
        Failure::usage(format!("find repository {name:?}: none has this name")).hint("lifeboat config show prints repository.name of each")
    })
}

/// Opens the repository, or makes it if its place is missing or empty.
pub(crate) fn open_or_make_repository(settings: &Settings, url: &str) -> Result<Repository, Failure> {
    let open = || store::open(url, &settings.store_options(url), true);
    let opened = Repository::open(open()?);
    match opened.map_err(Failure::from) {
        Err(failure) if failure.code == EXIT_NO_REPOSITORY => Ok(make_repository(open()?, settings)?.0),
        other => other,
    }
}

/// Makes a repository in an empty store that was tried out: where a second create replaces the first, nothing is safe.
pub(crate) fn make_repository(store: Box<dyn Store>, settings: &Settings) -> Result<(Repository, Diagnosis), Failure> {
    Repository::check_vacant(&*store)?;
    let facts = probe::examine(&*store, &examination(settings, Depth::Short, &sources(settings)));
    if let Some(finding) = diagnose::refuse(&facts) {
        return Err(Failure::new(crate::failure::EXIT_FAILED, format!("make repository {}: {}", finding.subject, finding.problem))
            .hint(finding.fix));
    }
    let diagnosis = diagnose::assess(&facts);
    Ok((Repository::init(store, Timestamp::now(), PROGRAM)?, diagnosis))
}

/// What is backed up on this host.
pub(crate) fn sources(settings: &Settings) -> Vec<&Path> {
    [&settings.data_directory, &settings.artifacts].into_iter().flatten().map(|setting| setting.value.as_path()).collect()
}

/// How a store is tried out.
pub(crate) fn examination<'a>(settings: &Settings, depth: Depth, sources: &'a [&'a Path]) -> Examination<'a> {
    let places = settings.repositories.used.len();
    Examination { depth, sources, other_copies: u32::try_from(places.saturating_sub(1)).unwrap_or(u32::MAX) }
}

/// The backup that a word names: an id, or `latest`.
pub(crate) fn find_backup(
    repository: &Repository,
    settings: &Settings,
    word: &str,
    wanted: impl Fn(&lifeboat_core::repository::manifest::Manifest) -> bool,
) -> Result<BackupId, Failure> {
    if word != "latest" {
        return word.parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat list shows the backups"));
    }
    let ids = repository.backups()?;
    let mut names: Vec<&str> = ids.iter().map(BackupId::name).collect();
    names.dedup();
    let chosen = settings.name.origin != crate::config::Origin::Default;
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    if !chosen && unique.len() > 1 {
        return Err(Failure::usage(format!("choose the latest backup: the repository has backups of {}", unique.join(", ")))
            .hint("name the system in the configuration, or give a backup id: lifeboat list"));
    }
    let trust = trust(settings).ok();
    for id in ids.iter().rev().filter(|id| !chosen || id.name() == settings.name.value) {
        // What is on its way out is nobody's latest. Only who is trusted can say that.
        let standing = lifeboat_engine::retention::standing(repository, id, None, trust.as_ref(), Timestamp::now());
        if standing.map_err(lifeboat_engine::repository::RepositoryError::from)?.expired.is_some() {
            continue;
        }
        // The newest that has what is asked for. One that cannot be read is not passed over: its
        // damage must be seen.
        match opened_backup::peek(repository, id) {
            Ok(manifest) if !wanted(&manifest) => {}
            _ => return Ok(id.clone()),
        }
    }
    Err(Failure::new(crate::failure::EXIT_FAILED, "choose the latest backup: there is none that has what is asked for")
        .hint("lifeboat list shows the backups"))
}

/// Whether a backup without a manifest is one whose prune has begun and not ended: no backup any more, and nothing wrong.
pub(crate) fn is_being_pruned(repository: &Repository, id: &BackupId, trust: &Trust) -> Result<bool, Failure> {
    let now = Timestamp::now();
    let standing = lifeboat_engine::retention::standing(repository, id, None, Some(trust), now)?;
    Ok(standing.pins.is_empty() && standing.expired.is_some_and(|expiry| expiry.prune_after <= now))
}

fn read(path: &Path, what: &str) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        Failure::new(EXIT_KEY, format!("read {what} {}: {error}", path.display()))
            .hint("lifeboat config show prints where keys are looked for; lifeboat key generate makes new ones")
    })
}

/// Whose signatures count.
pub(crate) fn trust(settings: &Settings) -> Result<Trust, Failure> {
    let mut pems = Vec::new();
    for key in &settings.trust_keys.value {
        pems.push(if key.contains("-----BEGIN") { key.clone() } else { read(Path::new(key), "trusted key")? });
    }
    if pems.is_empty() {
        return Err(Failure::new(EXIT_KEY, "verify signatures: no trusted key is configured")
            .hint("name public keys in trust.keys: lifeboat config show; lifeboat key generate prints one"));
    }
    Ok(Trust::from_pems(pems.iter().map(String::as_str))?)
}

/// Restore identities: the one on the command line or configured, if any, and the host's own. What cannot be opened
/// with them says so itself.
pub(crate) fn identities(settings: &Settings, flag: Option<&PathBuf>) -> Result<Identities, Failure> {
    let configured = settings.identity_file.as_ref().map(|setting| &setting.value);
    let mut all = Identities::default();
    if let Some(path) = flag.or(configured) {
        all = Identities::parse(&read(path, "identity")?)?;
    }
    if let Some(host) = &settings.host_identity
        && let Ok(text) = std::fs::read_to_string(&host.value)
    {
        all = all.join(Identities::parse(&text)?);
    }
    Ok(all)
}

/// A secret's bytes.
fn secret(secret: &Secret, what: &str) -> Result<Vec<u8>, Failure> {
    let trim = |mut bytes: Vec<u8>| {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        bytes
    };
    match secret {
        Secret::Env(name) => std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec).ok_or_else(|| {
            Failure::new(EXIT_KEY, format!("read {what}: the environment has no {name}"))
                .hint("lifeboat config show prints where it is looked for")
        }),
        Secret::File(path) => std::fs::read(path).map(trim).map_err(|error| {
            Failure::new(EXIT_KEY, format!("read {what} {}: {error}", path.display()))
                .hint("lifeboat config show prints where it is looked for")
        }),
        Secret::Command(words) => {
            let (program, arguments) = words
                .split_first()
                .ok_or_else(|| Failure::usage(format!("read {what}: the command is empty")).hint("lifeboat config show prints it"))?;
            let output = std::process::Command::new(program).args(arguments).stderr(std::process::Stdio::inherit()).output();
            match output {
                Ok(output) if output.status.success() => Ok(trim(output.stdout)),
                Ok(output) => Err(Failure::new(EXIT_KEY, format!("read {what}: {program} ended with {}", output.status))
                    .hint("run the command by hand; lifeboat config show prints it")),
                Err(error) => {
                    Err(Failure::new(EXIT_KEY, format!("read {what}: run {program}: {error}"))
                        .hint("lifeboat config show prints the command"))
                }
            }
        }
    }
}

/// Who signs.
pub(crate) fn signer(settings: &Settings) -> Result<KeyFileSigner, Failure> {
    let key = settings.key_file.as_ref().ok_or_else(|| {
        Failure::new(EXIT_KEY, "sign: no signing key is configured").hint("lifeboat key generate makes one; name it in signing.key_file")
    })?;
    let pem = read(&key.value, "signing key")?;
    let password = match &settings.password {
        Some(setting) => secret(&setting.value, "signing password")?,
        None => Vec::new(),
    };
    Ok(KeyFileSigner::open(&pem, &password)?)
}

/// Who signs, if something has to be signed: opening the key takes a quarter of a second (scrypt), and most calls of `wal push` need none.
pub(crate) struct LazySigner<'a> {
    settings: &'a Settings,
    opened: OnceLock<Result<KeyFileSigner, Failure>>,
}

impl<'a> LazySigner<'a> {
    pub(crate) fn new(settings: &'a Settings) -> Self {
        Self { settings, opened: OnceLock::new() }
    }

    fn opened(&self) -> Result<&KeyFileSigner, &Failure> {
        self.opened.get_or_init(|| signer(self.settings)).as_ref()
    }

    /// Why it did not open, if it was tried and did not.
    pub(crate) fn failure(self) -> Option<Failure> {
        self.opened.into_inner()?.err()
    }
}

impl Signer for LazySigner<'_> {
    fn sign_statement(&self, statement: &[u8]) -> Result<String, SignError> {
        match self.opened() {
            Ok(signer) => signer.sign_statement(statement),
            Err(failure) => Err(SignError::Signer(failure.message.clone())),
        }
    }

    fn hint(&self) -> &str {
        self.opened().map_or("", Signer::hint)
    }

    fn describe(&self) -> String {
        self.opened().map_or_else(|failure| failure.message.clone(), Signer::describe)
    }
}

/// The restore identities that everything is encrypted to.
pub(crate) fn recipients(settings: &Settings) -> Result<Vec<Recipient>, Failure> {
    let recipients: Vec<Recipient> = settings.recipients.value.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    if recipients.is_empty() {
        return Err(
            Failure::usage("encrypt: no recipient is configured").hint("lifeboat key generate makes one; name it in encryption.recipients")
        );
    }
    Ok(recipients)
}

/// Who can read what is written.
pub(crate) fn protection(settings: &Settings) -> Result<Protection, Failure> {
    if settings.plain.value {
        return Ok(Protection::Plain);
    }
    let recipients = recipients(settings)?;
    let host = match &settings.host_identity {
        Some(setting) => Identities::parse(&read(&setting.value, "host identity")?)?.recipients().into_iter().next(),
        None => None,
    };
    Ok(Protection::Recipients { recipients, host })
}

/// A file that must not be there yet, durable, with this mode.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let hint = "lifeboat key generate --out DIR writes to another directory; nothing is ever overwritten";
        Failure::new(crate::failure::EXIT_FAILED, format!("write {}: {error}", path.display())).hint(hint)
    };
    let mut file = std::fs::File::options().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

/// Keys that were made.
#[derive(Debug, serde::Serialize)]
pub(crate) struct MadeKeys {
    pub(crate) signing_key_file: PathBuf,
    pub(crate) public_key_file: PathBuf,
    /// `None`: the password is where the caller said.
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) identity_file: PathBuf,
    pub(crate) recipient: String,
    pub(crate) host_identity_file: PathBuf,
}

/// Makes a signing key, a restore identity and a host identity in a directory.
pub(crate) fn make_keys(keys: &UserKeys, password_file: Option<&Path>) -> Result<MadeKeys, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys.directory).map_err(|error| {
        Failure::new(crate::failure::EXIT_FAILED, format!("make {}: {error}", keys.directory.display()))
            .hint("lifeboat key generate --out DIR writes to another directory")
    })?;
    // All or nothing: an old key beside a new password would open nothing.
    for path in [keys.signing_key(), keys.public_key(), keys.password(), keys.identity(), keys.recipients(), keys.host_identity()] {
        if path.exists() {
            return Err(Failure::new(crate::failure::EXIT_FAILED, format!("make keys: {} exists already", path.display()))
                .hint("lifeboat key generate --out DIR writes to another directory; nothing is ever overwritten"));
        }
    }
    let password = match password_file {
        Some(path) => secret(&Secret::File(path.to_owned()), "signing password")?,
        None => hex::encode(lifeboat_engine::random::bytes::<16>()).into_bytes(),
    };
    let key = SigningKey::generate()?;
    let sealed = key.seal(&password)?;
    let (identity, recipient) = keys::generate_identity(Timestamp::now());
    let (host_identity, _) = keys::generate_identity(Timestamp::now());
    if password_file.is_none() {
        write_new(&keys.password(), &format!("{}\n", String::from_utf8_lossy(&password)), 0o600)?;
    }
    write_new(&keys.signing_key(), &sealed, 0o600)?;
    write_new(&keys.public_key(), &key.public_key().to_pem(), 0o644)?;
    write_new(&keys.identity(), &identity, 0o600)?;
    write_new(&keys.recipients(), &format!("{recipient}\n"), 0o644)?;
    write_new(&keys.host_identity(), &host_identity, 0o600)?;
    if let Ok(directory) = std::fs::File::open(&keys.directory) {
        let _ = directory.sync_all();
    }
    Ok(MadeKeys {
        signing_key_file: keys.signing_key(),
        public_key_file: keys.public_key(),
        password_file: password_file.is_none().then(|| keys.password()),
        identity_file: keys.identity(),
        recipient: recipient.to_string(),
        host_identity_file: keys.host_identity(),
    })
}

/// On the first real run without any configuration: makes keys in the user's directory, and says where.
/// Returns whether settings have to be read again.
pub(crate) fn first_keys(settings: &Settings) -> Result<bool, Failure> {
    let unconfigured = settings.key_file.is_none()
        && settings.recipients.value.is_empty()
        && !settings.plain.value
        && settings.trust_keys.value.is_empty();
    if !unconfigured || settings.file.is_some() {
        return Ok(false);
    }
    crate::config::user_directory()?;
    let made = make_keys(&settings.user_keys, None)?;
    output::say(&format!("made a signing key and a restore identity in {}", settings.user_keys.directory.display()));
    output::warn(&format!(
        "without {} nothing can be restored: keep a copy of that directory somewhere else",
        made.identity_file.display()
    ));
    Ok(true)
}
