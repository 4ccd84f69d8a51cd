//! What commands share: the repository opened, whom to trust, who opens backups, who signs.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use lifeboat_core::doctor::{Diagnosis, store as diagnose};
use lifeboat_core::policy::Actor;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_engine::backup::Protection;
use lifeboat_engine::keys::{self, Identities, Recipient};
use lifeboat_engine::opened_backup;
use lifeboat_engine::owners;
use lifeboat_engine::policy::{OpaSettings, Policy, PolicySettings};
use lifeboat_engine::repository::Repository;
use lifeboat_engine::retention;
use lifeboat_engine::secret::{Secret, SecretSource};
use lifeboat_engine::signing::{
    KeyFileSigner, KeylessConfig, KeylessSigner, KmsConfig, KmsSigner, KnownGood, PublicKey, Reach, Roots, SignError, Signer, SigningKey,
    StampConfig, StampedSigner, TransitConfig, TransitSigner, Trust, TrustedKey, ambient_token,
};
use lifeboat_engine::store::probe::{self, Depth, Examination};
use lifeboat_engine::store::{self, Access, Member, Note, OpenLater, Store};
use zeroize::Zeroizing;

use crate::config::{KeyPlace, KeySource, RepositorySettings, Secret as Reference, Settings, TimestampPart, Token, UserKeys};
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
    let sudo_user = std::env::var("SUDO_USER").ok().filter(|name| uid == 0 && !name.is_empty());
    Actor { user: owners::user(uid).unwrap_or_else(|| uid.to_string()), uid, sudo_user }
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
    let token = |setting: &crate::config::Setting<Reference>| {
        let token = secret(&setting.value, "policy.opa_token")?;
        let text = token.expose_text().map_err(|_| {
            Failure::new(EXIT_KEY, "read policy.opa_token: it is not text").hint("lifeboat config show prints where it is looked for")
        })?;
        Ok::<_, Failure>(Zeroizing::new(text.to_owned()))
    };
    let opa = match &terms.opa_url {
        None => None,
        Some(url) => Some(OpaSettings {
            url: url.value.clone(),
            path: terms.opa_path.value.clone(),
            token: terms.opa_token.as_ref().map(token).transpose()?,
            ca: terms.opa_ca_file.as_ref().map(|setting| bytes(&setting.value)).transpose()?,
            identity: terms.opa_identity_file.as_ref().map(|setting| bytes(&setting.value).map(Zeroizing::new)).transpose()?,
        }),
    };
    let path = terms.path.as_ref().map(|setting| setting.value.clone());
    Ok(Policy::open(&PolicySettings { engines: terms.engine.value, path, opa, timeout: terms.timeout.value }))
}

/// What this host belongs to, as policies and approvals have it.
pub(crate) fn environment(settings: &Settings) -> String {
    settings.policy.environment.value.clone()
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
    primary(settings)?;
    open_places(&settings.repositories.used, &settings.wal_spool.value)
}

/// How that is done, for who has to do it again while the repository does not answer.
pub(crate) fn open_later(settings: &Settings) -> OpenLater {
    let (used, spool) = (settings.repositories.used.clone(), settings.wal_spool.value.clone());
    Box::new(move || open_places(&used, &spool).map_err(|failure| failure.message))
}

fn open_places(used: &[RepositorySettings], spool: &Path) -> Result<Repository, Failure> {
    match used {
        [one] => alone(one),
        _ => Ok(store::open_members(members(used), Access::Write, spool, Box::new(|note: &Note| output::warn(&note.to_string())))?),
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

/// The same as for writing, for records of what is done: what a replica misses of them stands in its journal, and the operation itself says
/// what it finds of its places.
pub(crate) fn open_for_records(settings: &Settings) -> Result<Repository, Failure> {
    match settings.repositories.used.as_slice() {
        [] | [_] => alone(primary(settings)?),
        _ => open_watched(settings, Access::Write, Box::new(|_| {})),
    }
}

fn open_everywhere(settings: &Settings, access: Access) -> Result<Repository, Failure> {
    open_watched(settings, access, Box::new(|note: &Note| output::warn(&note.to_string())))
}

fn open_watched(settings: &Settings, access: Access, watch: Box<dyn Fn(&Note) + Send + Sync>) -> Result<Repository, Failure> {
    primary(settings)?;
    Ok(store::open_members(members(&settings.repositories.used), access, &settings.wal_spool.value, watch)?)
}

fn members(used: &[RepositorySettings]) -> Vec<Member> {
    let member = |one: &RepositorySettings| {
        let place = one.clone();
        let open = Box::new(move || place.open());
        Member { name: one.name.value.clone(), url: one.url.value.clone(), part: one.part.value, open }
    };
    used.iter().map(member).collect()
}

/// Changes what a place is seen as, by its number: 0 is the primary. An error is that of a place that cannot be opened.
pub(crate) type Through = Arc<dyn Fn(usize, Box<dyn Store>) -> Result<Box<dyn Store>, store::OpenError> + Send + Sync>;

/// The repository for reading, seen through something; what happens to its places is not said here, but stands in its notes.
pub(crate) fn read_through(settings: &Settings, through: Through) -> Result<Repository, Failure> {
    primary(settings)?;
    let member = |(index, one): (usize, &RepositorySettings)| {
        let (place, through) = (one.clone(), Arc::clone(&through));
        let open = Box::new(move || through(index, place.open()?));
        Member { name: one.name.value.clone(), url: one.url.value.clone(), part: one.part.value, open }
    };
    let members = settings.repositories.used.iter().enumerate().map(member).collect();
    Ok(store::open_members(members, Access::Read, &settings.wal_spool.value, Box::new(|_| {}))?)
}

/// Opens one place by itself: its damage shows, and nothing is read from elsewhere.
pub(crate) fn alone(one: &RepositorySettings) -> Result<Repository, Failure> {
    Ok(Repository::open(one.open()?)?)
}

/// The same, without the older versions that a store may keep.
pub(crate) fn without_copies(one: &RepositorySettings) -> Result<Repository, Failure> {
    Ok(Repository::open(Box::new(store::Alone::new(one.open()?)))?)
}

/// The places of the repository, where all of them are far away: what leads there, in one text. `None`: to ask one on this host costs nothing.
pub(crate) fn far_places(settings: &Settings) -> Option<String> {
    let far = |one: &RepositorySettings| one.url.value.contains("://") && !one.url.value.starts_with("file://");
    let used = &settings.repositories.used;
    let place = |one: &RepositorySettings| {
        let options = one.options();
        format!("{} {:?} {:?} {:?}", one.url.value, one.part.value, options.endpoint, options.account)
    };
    // A look into the past is of a moment; what was remembered is of the present.
    (settings.as_of.is_none() && !used.is_empty() && used.iter().all(far)).then(|| used.iter().map(place).collect::<Vec<_>>().join("\n"))
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
        let standing = retention::standing(repository.store(), id, None, trust.as_ref(), Timestamp::now());
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

/// The same as [`retention::is_being_pruned`], now.
pub(crate) fn is_being_pruned(repository: &Repository, id: &BackupId, trust: &Trust) -> Result<bool, Failure> {
    Ok(retention::is_being_pruned(repository.store(), id, trust, Timestamp::now())?)
}

fn read(path: &Path, what: &str) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| unreadable(path, what, &error.to_string()))
}

/// The same of a secret, which is wiped when it goes out of use.
fn read_secret(path: &Path, what: &str) -> Result<Secret, Failure> {
    Secret::read(path).map_err(|error| unreadable(path, what, &error.to_string()))
}

fn text<'a>(secret: &'a Secret, path: &Path, what: &str) -> Result<&'a str, Failure> {
    secret.expose_text().map_err(|error| unreadable(path, what, &error.to_string()))
}

fn unreadable(path: &Path, what: &str, problem: &str) -> Failure {
    // A new identity opens nothing that is stored, and a new key's signatures are not those of what is: whoever restores needs the old ones.
    let hint = match what {
        "identity" => {
            "bring the restore identity here, or say where it is: lifeboat restore BACKUP --identity FILE; a new one does not open what is stored"
        }
        "trusted key" => "bring a copy of the public key here; lifeboat config show prints where it is looked for",
        _ => "lifeboat config show prints where keys are looked for; lifeboat key generate makes new ones",
    };
    Failure::new(EXIT_KEY, format!("read {what} {}: {problem}", path.display())).hint(hint)
}

/// Whose signatures count.
pub(crate) fn trust(settings: &Settings) -> Result<Trust, Failure> {
    if settings.trust.is_empty() {
        return Err(Failure::new(EXIT_KEY, "verify signatures: no trusted key is configured")
            .hint("name public keys in trust.keys: lifeboat config show; lifeboat key generate prints one"));
    }
    let mut trust = Trust::default().requiring_timestamps(settings.trust.require_timestamp.value);
    for source in &settings.trust.keys.value {
        let key = trusted_key(source)?;
        if trust.key(key.key.hint()).is_some_and(|before| before.terms != key.terms) {
            return Err(Failure::usage(format!("trust key {}: it stands twice, on different terms", key.key.hint()))
                .hint("leave one entry of it in trust.keys: lifeboat config show"));
        }
        trust = trust.with_key(key);
    }
    if let Some(path) = &settings.trust.trusted_root {
        let roots = Roots::from_json(&read(&path.value, "trusted root")?).map_err(|error| {
            Failure::new(EXIT_KEY, format!("{}: {error}", path.value.display()))
                .hint("trust.trusted_root names the trusted_root.json of a Sigstore instance: lifeboat config show")
        })?;
        trust = trust.with_roots(roots);
    }
    Ok(settings.trust.identities.value.iter().cloned().fold(trust, Trust::with_identity))
}

/// A trusted key, read, with what was vouched for when it was revoked.
pub(crate) fn trusted_key(source: &KeySource) -> Result<TrustedKey, Failure> {
    let key = match &source.place {
        KeyPlace::Pem(pem) => PublicKey::from_pem(pem)?,
        KeyPlace::File(path) => PublicKey::from_pem(&read(path, "trusted key")?)?,
    };
    let open = |path: &PathBuf| {
        KnownGood::open(path).map(Arc::new).map_err(|error| {
            Failure::new(EXIT_KEY, format!("read list of known good statements {}: {error}", path.display()))
                .hint("lifeboat key revoke wrote it, and it belongs on every host that trusts the key; lifeboat key list names it")
        })
    };
    Ok(TrustedKey { key, terms: source.terms.clone(), known_good: source.known_good.as_ref().map(open).transpose()? })
}

/// Restore identities: the one on the command line or configured, if any, and the host's own. What cannot be opened
/// with them says so itself.
pub(crate) fn identities(settings: &Settings, flag: Option<&PathBuf>) -> Result<Identities, Failure> {
    let configured = settings.identity_file.as_ref().map(|setting| &setting.value);
    let mut all = Identities::default();
    if let Some(path) = flag.or(configured) {
        all = Identities::parse(text(&read_secret(path, "identity")?, path, "identity")?)?;
    }
    if let Some(host) = &settings.host_identity
        && let Ok(secret) = Secret::read(&host.value)
    {
        all = all.join(Identities::parse(text(&secret, &host.value, "host identity")?)?);
    }
    Ok(all)
}

/// The secret that a reference of the configuration leads to. `what` names it in errors: `signing password`.
pub(crate) fn secret(reference: &Reference, what: &str) -> Result<Secret, Failure> {
    let failed = |problem: String| {
        Failure::new(EXIT_KEY, format!("read {what}{problem}")).hint("lifeboat config show prints where it is looked for")
    };
    match reference {
        Reference::Env(name) => std::env::var_os(name)
            .map(|value| Secret::new(std::os::unix::ffi::OsStringExt::into_vec(value)))
            .ok_or_else(|| failed(format!(": the environment has no {name}"))),
        Reference::File(path) => {
            Secret::read(path).map(Secret::without_newline).map_err(|error| failed(format!(" {}: {error}", path.display())))
        }
        Reference::Command(words) => {
            let (program, arguments) = words
                .split_first()
                .ok_or_else(|| Failure::usage(format!("read {what}: the command is empty")).hint("lifeboat config show prints it"))?;
            let failed = |problem: String| failed(problem).hint("run the command by hand; lifeboat config show prints it");
            let mut command = std::process::Command::new(program);
            command.args(arguments).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
            command.stderr(output::words_of_programs());
            let mut child = command.spawn().map_err(|error| failed(format!(": run {program}: {error}")))?;
            if let Some(words) = child.stderr.take() {
                output::pass_on(program, words);
            }
            let printed = child.stdout.take().map_or_else(|| Ok(Secret::default()), Secret::read_from);
            if printed.is_err() {
                // It would wait for ever for somebody to read on.
                let _ = child.kill();
            }
            let status = child.wait().map_err(|error| failed(format!(": wait for {program}: {error}")))?;
            let printed = printed.map_err(|error| failed(format!(": read what {program} prints: {error}")))?;
            match status.success() {
                true => Ok(printed.without_newline()),
                false => Err(failed(format!(": {program} ended with {status}"))),
            }
        }
    }
}

/// The key that signs here, and the password that it is sealed with: to make another one like it.
pub(crate) fn signing_key(settings: &Settings) -> Result<(SigningKey, Secret), Failure> {
    let key = settings.key_file.as_ref().ok_or_else(|| {
        Failure::new(EXIT_KEY, "sign: no signing key is configured").hint("lifeboat key generate makes one; name it in signing.key_file")
    })?;
    let password = settings.password.as_ref().map_or(Ok(Secret::default()), |setting| secret(&setting.value, "signing password"))?;
    Ok((SigningKey::open(&read(&key.value, "signing key")?, password.expose())?, password))
}

/// A secret that whoever uses it asks for whenever it is needed: a signer, a sink of alerts.
pub(crate) fn secret_source(place: &Reference, what: impl Into<String>) -> SecretSource {
    let (place, what) = (place.clone(), what.into());
    Box::new(move || {
        let secret = secret(&place, &what).map_err(|failure| failure.message)?;
        // The bytes are not repeated: they may be the secret after all.
        secret.expose_text().map(|text| Zeroizing::new(text.to_owned())).map_err(|_| format!("read {what}: it is not text"))
    })
}

/// The trusted root that certificates and timestamps are verified with.
fn roots(settings: &Settings) -> Result<Roots, Failure> {
    let path = settings.signing.trusted_root.as_ref().ok_or_else(|| {
        Failure::usage("verify own signatures: no trusted root is configured").hint("name it in trust.trusted_root: lifeboat config show")
    })?;
    Ok(Roots::from_json(&read(&path.value, "trusted root")?)?)
}

/// Who signs.
pub(crate) fn signer(settings: &Settings) -> Result<Box<dyn Signer>, Failure> {
    let signing = &settings.signing;
    let reach = Reach { ca_file: signing.ca_file.as_ref().map(|setting| setting.value.clone()), ..Reach::default() };
    let signer: Box<dyn Signer> = if let Some(transit) = &signing.transit {
        let transit = &transit.value;
        Box::new(TransitSigner::open(TransitConfig {
            address: transit.address.clone(),
            key: transit.key.clone(),
            mount: transit.mount.clone(),
            namespace: transit.namespace.clone(),
            token: secret_source(&transit.token, "token of the transit engine"),
            reach: Reach { ca_file: transit.ca_file.clone(), ..Reach::default() },
        })?)
    } else if let Some(kms) = &signing.aws_kms {
        let kms = kms.value.clone();
        let config = KmsConfig { key: kms.key, region: kms.region, endpoint: kms.endpoint, profile: kms.profile, ..KmsConfig::default() };
        Box::new(KmsSigner::open(&config)?)
    } else if let Some(keyless) = &signing.keyless {
        Box::new(KeylessSigner::new(KeylessConfig {
            signing_config: read(&keyless.value.signing_config, "signing config")?,
            roots: roots(settings)?,
            token: match &keyless.value.token {
                Token::Secret(place) => secret_source(place, "identity token"),
                Token::Ambient => ambient_token(&reach)?,
            },
            reach: reach.clone(),
        })?)
    } else {
        Box::new(key_file_signer(settings)?)
    };
    let Some(urls) = &signing.timestamp_urls else { return Ok(signer) };
    let stamps = StampConfig {
        urls: urls.value.clone(),
        roots: roots(settings)?,
        required: signing.timestamp.value == TimestampPart::Required,
        reach,
        missed: Box::new(|why| output::warn(&format!("signatures go without a timestamp, as signing.timestamp allows: {why}"))),
    };
    Ok(Box::new(StampedSigner::new(signer, stamps)?))
}

/// The key file, opened.
fn key_file_signer(settings: &Settings) -> Result<KeyFileSigner, Failure> {
    Ok(KeyFileSigner::new(signing_key(settings)?.0))
}

/// Who signs, if something has to be signed: opening the key takes a quarter of a second (scrypt), and most calls of `wal push` need none.
pub(crate) struct LazySigner<'a> {
    settings: &'a Settings,
    opened: OnceLock<Result<Box<dyn Signer>, Failure>>,
}

impl<'a> LazySigner<'a> {
    pub(crate) fn new(settings: &'a Settings) -> Self {
        Self { settings, opened: OnceLock::new() }
    }

    fn opened(&self) -> Result<&dyn Signer, &Failure> {
        self.opened.get_or_init(|| signer(self.settings)).as_deref()
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

    fn public_key(&self) -> Option<PublicKey> {
        self.opened().ok()?.public_key()
    }

    fn describe(&self) -> String {
        self.opened().map_or_else(|failure| failure.message.clone(), |signer| signer.describe())
    }
}

/// Who signs for a process that outlives trouble of the service that does: it is opened when it is there, and tried again as often as it is asked.
pub(crate) struct PatientSigner<'a> {
    settings: &'a Settings,
    opened: OnceLock<Box<dyn Signer>>,
}

impl<'a> PatientSigner<'a> {
    pub(crate) fn new(settings: &'a Settings) -> Self {
        Self { settings, opened: OnceLock::new() }
    }

    pub(crate) fn open(&self) -> Result<&dyn Signer, Failure> {
        if self.opened.get().is_none() {
            // Another thread that was faster opened the same.
            let _ = self.opened.set(signer(self.settings)?);
        }
        Ok(&**self.opened.get().expect("set above"))
    }
}

impl Signer for PatientSigner<'_> {
    fn sign_statement(&self, statement: &[u8]) -> Result<String, SignError> {
        self.open().map_err(|failure| SignError::Signer(failure.message))?.sign_statement(statement)
    }

    fn public_key(&self) -> Option<PublicKey> {
        self.open().ok()?.public_key()
    }

    fn describe(&self) -> String {
        self.open().map_or_else(|failure| failure.message, |signer| signer.describe())
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
        Some(setting) => {
            let secret = read_secret(&setting.value, "host identity")?;
            Identities::parse(text(&secret, &setting.value, "host identity")?)?.recipients().into_iter().next()
        }
        None => None,
    };
    Ok(Protection::Recipients { recipients, host })
}

/// The result of a command, in a file that must not be there yet and that nobody else reads.
pub(crate) fn write_new_text(path: &Path, text: &str) -> Result<(), Failure> {
    write_new(path, &[text.as_bytes()], 0o600)
        .map_err(|failure| failure.hint("name a file that is not there yet; nothing is ever overwritten: lifeboat --help"))
}

/// A file that must not be there yet, durable, with this mode.
pub(crate) fn write_new(path: &Path, parts: &[&[u8]], mode: u32) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let hint = "lifeboat key generate --out DIR writes to another directory; nothing is ever overwritten";
        Failure::new(crate::failure::EXIT_FAILED, format!("write {}: {error}", path.display())).hint(hint)
    };
    let mut file = std::fs::File::options().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    parts.iter().try_for_each(|part| file.write_all(part)).and_then(|()| file.sync_all()).map_err(failed)
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
    pub(crate) audit_key_file: PathBuf,
    pub(crate) audit_key: String,
}

/// Makes a signing key, a restore identity and a host identity in a directory.
pub(crate) fn make_keys(keys: &UserKeys, password_file: Option<&Path>) -> Result<MadeKeys, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys.directory).map_err(|error| {
        Failure::new(crate::failure::EXIT_FAILED, format!("make {}: {error}", keys.directory.display()))
            .hint("lifeboat key generate --out DIR writes to another directory")
    })?;
    // All or nothing: an old key beside a new password would open nothing.
    let own = [keys.signing_key(), keys.public_key(), keys.password(), keys.identity(), keys.recipients(), keys.host_identity()];
    for path in own.into_iter().chain([keys.audit_key(), keys.audit_public_key()]) {
        if path.exists() {
            return Err(Failure::new(crate::failure::EXIT_FAILED, format!("make keys: {} exists already", path.display()))
                .hint("lifeboat key generate --out DIR writes to another directory; nothing is ever overwritten"));
        }
    }
    let password = match password_file {
        Some(path) => secret(&Reference::File(path.to_owned()), "signing password")?,
        None => Secret::from(hex::encode(lifeboat_engine::random::bytes::<16>())),
    };
    let key = SigningKey::generate()?;
    let sealed = key.seal(password.expose())?;
    let (identity, recipient) = keys::generate_identity(Timestamp::now());
    let (host_identity, _) = keys::generate_identity(Timestamp::now());
    if password_file.is_none() {
        write_new(&keys.password(), &[password.expose(), b"\n"], 0o600)?;
    }
    write_new(&keys.signing_key(), &[sealed.as_bytes()], 0o600)?;
    write_new(&keys.public_key(), &[key.public_key().to_pem().as_bytes()], 0o644)?;
    write_new(&keys.identity(), &[identity.as_bytes()], 0o600)?;
    write_new(&keys.recipients(), &[recipient.to_string().as_bytes(), b"\n"], 0o644)?;
    write_new(&keys.host_identity(), &[host_identity.as_bytes()], 0o600)?;
    let audit_key = crate::commands::audit::make_key(&keys.audit_key())?.to_string();
    write_new(&keys.audit_public_key(), &[audit_key.as_bytes(), b"\n"], 0o644)?;
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
        audit_key_file: keys.audit_key(),
        audit_key,
    })
}

/// On the first real run without any configuration: makes keys in the user's directory, and says where.
/// Returns whether settings have to be read again.
pub(crate) fn first_keys(settings: &Settings) -> Result<bool, Failure> {
    let unconfigured = settings.key_file.is_none()
        && !settings.signing.names_service()
        && settings.recipients.value.is_empty()
        && !settings.plain.value
        && settings.trust.is_empty();
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
