//! A logical copy with pg_dump, for servers that allow nothing else and for moving across major
//! versions: roles and tablespaces as SQL, each database in pg_dump's directory format.
//!
//! A password reaches those programs neither as an argument nor in their environment, which their user can read in `/proc` for as long as
//! they run, but in a file without a name that exists in memory only.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, Mode};
use zeroize::Zeroizing;

use lifeboat_core::repository::file_table::Kind;

use super::local::plain_meta;
use super::{BackupError, CopiedDatabase, PostgresSource};
use crate::copy::{self, Copied, CopyFile, CopySettings, Feeder};
use crate::postgres::{ClusterFacts, Connection, Dsn, Purpose};
use crate::progress::Progress;
use crate::store::Store;
use crate::truth::Recorded;

/// libpq's environment variables for what a DSN may say, passwords apart.
const ENVIRONMENT: [(&str, &str); 20] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("passfile", "PGPASSFILE"),
    ("service", "PGSERVICE"),
    ("options", "PGOPTIONS"),
    ("sslmode", "PGSSLMODE"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslsni", "PGSSLSNI"),
    ("gssencmode", "PGGSSENCMODE"),
    ("krbsrvname", "PGKRBSRVNAME"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("dbname", "PGDATABASE"),
];

/// Secrets of other things that our environment may hold, and that pg_dump has no use for.
const NOT_THEIRS: [&str; 11] = [
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_SECRET",
    "BAO_TOKEN",
    "COSIGN_PASSWORD",
    "LIFEBOAT_DSN",
    "SIGSTORE_ID_TOKEN",
    "VAULT_TOKEN",
];

/// A directory that is removed when it goes out of use.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Scratch {
    fn make(parent: &Path) -> Result<Self, BackupError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = parent.join(format!("lifeboat-dump-{}", crate::random::id()));
        let fail = |source| BackupError::Scratch { path: path.display().to_string(), source };
        fs::create_dir_all(parent).map_err(fail)?;
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(fail)?;
        Ok(Self(path))
    }
}

/// Where a program of PostgreSQL is: in the configured directory, in Debian's for that version or a
/// later one, or wherever the path leads.
pub(crate) fn program(bin_directory: Option<&Path>, server_version: u32, name: &str) -> PathBuf {
    let major = server_version / 10_000;
    let debian = (major..major + 10).map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")));
    bin_directory
        .map(Path::to_owned)
        .into_iter()
        .chain(debian)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| name.into())
}

/// The password of a DSN as libpq's password file (manual, "The Password File"), which is open as long as this value is.
struct Passfile(OwnedFd);

impl Passfile {
    /// `None`: the DSN has no password. libpq then looks where the user told it to.
    fn of(dsn: &Dsn) -> Result<Option<Self>, BackupError> {
        let Some(password) = dsn.get("password") else { return Ok(None) };
        let fail =
            |problem: &str| BackupError::Program { program: "pg_dump".into(), problem: format!("hand over the password: {problem}") };
        if password.contains(['\n', '\r']) {
            return Err(fail("it has more than one line, which a password file cannot hold"));
        }
        let mut line = Zeroizing::new(String::with_capacity(password.len() * 2 + 10));
        line.push_str("*:*:*:*:");
        for character in password.chars() {
            if matches!(character, '\\' | ':') {
                line.push('\\');
            }
            line.push(character);
        }
        line.push('\n');
        // Not closed when a program is run: the programs that we run meanwhile are those that it is for.
        let write = || -> std::io::Result<OwnedFd> {
            let file = rustix::fs::memfd_create("lifeboat-passfile", MemfdFlags::empty())?;
            // libpq ignores one that others could read.
            rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR)?;
            let mut file = fs::File::from(file);
            file.write_all(line.as_bytes())?;
            Ok(file.into())
        };
        write().map(|file| Some(Self(file))).map_err(|error| fail(&error.to_string()))
    }

    /// Its path for a program that we run, which opens it anew and so reads it from the beginning.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

/// A client program that connects where `dsn` leads.
fn client(program: &Path, dsn: &Dsn, passfile: Option<&Passfile>, database: &str) -> Command {
    let mut command = Command::new(program);
    for (keyword, variable) in ENVIRONMENT {
        if let Some(value) = dsn.get(keyword) {
            command.env(variable, value);
        }
    }
    for variable in NOT_THEIRS {
        command.env_remove(variable);
    }
    if let Some(passfile) = passfile {
        // A password in the environment would count before it.
        command.env_remove("PGPASSWORD").env("PGPASSFILE", passfile.path());
    }
    command.env("PGDATABASE", database).env("PGAPPNAME", "lifeboat").arg("--no-password").stdin(Stdio::null());
    command
}

/// Runs a program to its end; its last line of complaint comes back.
pub(crate) fn run_program(command: &mut Command) -> Result<Vec<u8>, BackupError> {
    let program = Path::new(command.get_program()).display().to_string();
    let fail = |problem: String| BackupError::Program { program: program.clone(), problem };
    let output = command.output().map_err(|error| fail(error.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let line = complaint.lines().find(|line| line.contains("error") || line.contains("FATAL")).or(complaint.lines().last());
    Err(fail(format!("{} ({})", line.unwrap_or("no message").trim(), output.status)))
}

pub(super) fn copy(
    store: &dyn Store,
    source: &PostgresSource,
    settings: &CopySettings,
    progress: &dyn Progress,
) -> Result<(CopiedDatabase, Copied), BackupError> {
    let connection = Connection::open(&source.dsn, Purpose::Sql)?;
    let facts = ClusterFacts::read(&connection)?;
    let mut warnings = Vec::new();
    let version = facts.server_version;
    let find = |name: &str| program(source.bin_directory.as_deref(), version, name);
    let maintenance = source.dsn.endpoint().database;
    progress.phase("dump");
    let passfile = Passfile::of(&source.dsn)?;
    let globals = |extra: &[&str]| {
        run_program(
            client(&find("pg_dumpall"), &source.dsn, passfile.as_ref(), &maintenance)
                .args(["--globals-only", "--database", &maintenance])
                .args(extra),
        )
    };
    let globals = match globals(&[]) {
        Ok(globals) => globals,
        // Only a superuser may read the passwords.
        Err(first) => {
            let globals = globals(&["--no-role-passwords"]).map_err(|_| first)?;
            warnings.push("the role may not read passwords: roles come back without them".into());
            globals
        }
    };
    let left_out: Vec<String> =
        facts.databases.iter().filter(|database| is_left_out(database)).map(|database| database.name.clone()).collect();
    if !left_out.is_empty() {
        warnings.push(format!("databases that allow no connections cannot be dumped and are not in this backup: {}", left_out.join(", ")));
    }
    let scratch = Scratch::make(&source.scratch)?;
    let cluster = serde_json::json!({
        "superuser": connection.query("SELECT rolname FROM pg_roles WHERE oid = 10", &[])?.one()?.get("rolname")?,
        "data_checksums": facts.data_checksums == crate::postgres::ChecksumState::On,
        "databases": facts.databases.iter().map(|database| serde_json::json!({
            "oid": database.oid, "name": database.name, "encoding": database.encoding, "collate": database.collate, "ctype": database.ctype,
            "provider": database.locale_provider, "template": database.is_template, "dumped": is_dumped(database),
        })).collect::<Vec<_>>(),
    });
    let ((), copied) = copy::run(store, settings, progress, |feeder| -> Result<(), BackupError> {
        super::local::feed_bytes(feeder, "globals.sql", globals, false)?;
        super::local::feed_bytes(feeder, "databases.json", serde_json::to_vec_pretty(&cluster).unwrap_or_default(), false)?;
        for database in facts.databases.iter().filter(|database| is_dumped(database)) {
            let directory = scratch.0.join(database.oid.to_string());
            let mut dump = client(&find("pg_dump"), &source.dsn, passfile.as_ref(), &database.name);
            dump.args(["--format=directory", "--compress=0", "--no-tablespaces", "--jobs"])
                .arg(settings.workers.to_string())
                .arg("--file")
                .arg(&directory);
            run_program(&mut dump)?;
            feed_dump(feeder, &directory, &database.oid.to_string())?;
            // The workers read what was submitted; only then may the dump go.
            feeder.drain()?;
            let _ = fs::remove_dir_all(&directory);
        }
        Ok(())
    })?;
    let truth = Recorded::Missing("a logical copy has no LSN that a server could be brought to".into());
    let database = CopiedDatabase {
        physical: None,
        backup_manifest: None,
        identity: None,
        facts: Some(facts),
        warnings,
        left_out,
        judge_pages: false,
        truth,
    };
    Ok((database, copied))
}

/// Templates are initdb's, unless somebody put something into template1.
fn is_dumped(database: &crate::postgres::DatabaseFacts) -> bool {
    database.allows_connections && database.name != "template0"
}

/// Whether what is in a database does not come back. template0 is made anew, as it always is.
fn is_left_out(database: &crate::postgres::DatabaseFacts) -> bool {
    !is_dumped(database) && database.name != "template0"
}

fn feed_dump(feeder: &Feeder<'_, '_>, directory: &Path, name: &str) -> Result<(), BackupError> {
    let fail = |source| BackupError::Read { path: directory.display().to_string(), source };
    feeder.entry(plain_meta(name, Kind::Directory, 0, 0o700))?;
    let mut entries: Vec<_> = fs::read_dir(directory).map_err(fail)?.collect::<Result<_, _>>().map_err(fail)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let size = entry.metadata().map_err(fail)?.len();
        let path = format!("{name}/{}", entry.file_name().to_string_lossy());
        let meta = plain_meta(&path, Kind::File, size, 0o600);
        feeder.file(CopyFile { meta, source: Some(entry.path()), pages: None, may_vanish: false, in_backup_manifest: false })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_password_is_handed_over_in_a_file_and_not_in_the_environment() {
        let dsn = Dsn::default().with("host", "db1").with("password", "hunter2:\\ 'x'");
        let passfile = Passfile::of(&dsn).unwrap().unwrap();
        // Each reader begins at the beginning.
        for _ in 0..2 {
            assert_eq!(fs::read_to_string(passfile.path()).unwrap(), "*:*:*:*:hunter2\\:\\\\ 'x'\n");
        }
        assert_eq!(fs::metadata(passfile.path()).unwrap().mode() & 0o7777, 0o600, "libpq ignores any other");
        let command = client(Path::new("pg_dump"), &dsn, Some(&passfile), "app");
        let shown = format!("{command:?} {:?}", command.get_envs().collect::<Vec<_>>());
        assert!(!shown.contains("hunter2") && shown.contains("/proc/self/fd/") && shown.contains("db1"), "{shown}");
        assert!(command.get_envs().any(|(name, value)| name == "PGPASSWORD" && value.is_none()));

        assert!(Passfile::of(&Dsn::default().with("host", "db1")).unwrap().is_none());
        let failed = Passfile::of(&Dsn::default().with("password", "hunter2\nand more")).err().unwrap().to_string();
        assert!(!failed.contains("hunter2") && failed.contains("line"), "{failed}");
    }
}
