//! Restoring a dump: a new cluster, then roles, then every database with pg_restore.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use lifeboat_core::repository::file_table::{Kind, Row};
use lifeboat_core::restore::DatabasePlan;
use lifeboat_core::verify::FindingKind;
use serde::Deserialize;

use super::hydrate::Sink;
use super::tree::{self, write_error};
use super::{RestoreError, RestoreSettings, RestoredDatabase, Unlocked, server};
use crate::opened_backup::VerifiedBackup;
use crate::owners::number_of;
use crate::progress::Progress;
use crate::repository::Repository;

/// `databases.json` of a dump.
#[derive(Debug, Deserialize)]
struct DumpedCluster {
    superuser: String,
    data_checksums: bool,
    databases: Vec<DumpedDatabase>,
}

#[derive(Debug, Deserialize)]
struct DumpedDatabase {
    oid: u32,
    name: String,
    encoding: String,
    collate: String,
    ctype: String,
    provider: Option<String>,
    dumped: bool,
}

/// Where the dump is put down inside the new cluster's directory, until it is restored.
const DUMP: &str = "lifeboat-dump";

pub(super) fn restore(
    repository: &Repository,
    backup: &VerifiedBackup,
    plan: &DatabasePlan,
    settings: &RestoreSettings,
    progress: &dyn Progress,
) -> Result<RestoredDatabase, RestoreError> {
    let begun = Instant::now();
    let unlocked = Unlocked::new(repository, backup, settings, progress)?;
    let root = PathBuf::from(&plan.pgdata);
    let major = plan.version_num.unwrap_or(0) / 10_000;
    let bin = find_programs(settings.bin_directory.as_deref(), major)?;
    tree::prepare(&root)?;
    let root = fs::canonicalize(&root).map_err(write_error(&root))?;
    own(&root, settings.owner)?;
    // Beside the cluster while it is made: initdb wants an empty directory.
    let dump = root.join(DUMP);
    let cluster_directory = root.join("cluster");
    let hydration = unlocked.hydration();
    fs::create_dir(&dump).map_err(write_error(&dump))?;
    for rows in unlocked.tables() {
        let rows = rows?;
        for row in rows.iter().filter(|row| row.meta.kind == Kind::Directory) {
            let path = dump.join(&row.meta.path);
            tree::make_directory(&dump, &path).map_err(write_error(&path))?;
        }
        hydration.table(rows, &Sink::Tree(&|row: &Row| Some((dump.as_path(), dump.join(&row.meta.path)))))?;
    }
    own_tree(&dump)?;
    let bad = |file: &str, problem: String| RestoreError::Damaged(backup.finding(FindingKind::Corrupt, "file table", Some(file), problem));
    let description = fs::read(dump.join("databases.json")).map_err(|error| bad("databases.json", error.to_string()))?;
    let cluster: DumpedCluster = serde_json::from_slice(&description).map_err(|error| bad("databases.json", error.to_string()))?;

    progress.phase("initdb");
    init_cluster(&bin, &root, &cluster_directory, &cluster)?;
    // PostgreSQL's files move up to where the plan wants them.
    for entry in fs::read_dir(&cluster_directory).map_err(write_error(&cluster_directory))? {
        let entry = entry.map_err(write_error(&cluster_directory))?;
        fs::rename(entry.path(), root.join(entry.file_name())).map_err(write_error(&entry.path()))?;
    }
    fs::remove_dir(&cluster_directory).map_err(write_error(&cluster_directory))?;

    progress.phase("pg_restore");
    let sockets = SocketDirectory::make(&settings.temporary, &root)?;
    let options = vec![
        "listen_addresses=".to_owned(),
        format!("unix_socket_directories={}", sockets.0.display()),
        "archive_mode=off".to_owned(),
        "fsync=off".to_owned(),
        "full_page_writes=off".to_owned(),
    ];
    server::run(&bin.join("postgres"), &root, &options, settings.start_timeout)?;
    let loaded = load(&bin, &root, &dump, &cluster, &sockets.0, settings.workers);
    server::stop(&root)?;
    let warnings = loaded?;
    fs::remove_dir_all(&dump).map_err(write_error(&dump))?;
    let _ = fs::remove_file(root.join(tree::MARKER));
    // It ran without fsync: everything is made durable now, once.
    let directory = fs::File::open(&root).map_err(write_error(&root))?;
    rustix::fs::syncfs(&directory).map_err(|error| write_error(&root)(error.into()))?;
    let mut restored = RestoredDatabase { files: begun.elapsed(), warnings, ..RestoredDatabase::default() };
    if plan.start {
        progress.phase("start");
        let port = Some(server::free_port());
        let started = server::run_beside_others(&bin.join("postgres"), &root, &[], port, settings.start_timeout)?;
        restored.first_query = Some(begun.elapsed());
        restored.reached = Some(started.reached);
        restored.dsn = Some(started.dsn);
    }
    Ok(restored)
}

/// A short directory for the socket: its path may have 107 bytes at most.
struct SocketDirectory(PathBuf);

impl SocketDirectory {
    fn make(temporary: &Path, root: &Path) -> Result<Self, RestoreError> {
        let path = temporary.join(format!("lifeboat-{}", &crate::random::id().to_string()[..12]));
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(write_error(&path))?;
        if let Ok(found) = fs::metadata(root) {
            use std::os::unix::fs::MetadataExt as _;
            tree::give(&path, rustix::process::geteuid().is_root().then(|| (found.uid(), found.gid())))?;
        }
        Ok(Self(path))
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Programs of this or any later major version: a dump can be restored into those.
fn find_programs(bin_directory: Option<&Path>, major: u32) -> Result<PathBuf, RestoreError> {
    let mut last = None;
    for candidate in major..major + 10 {
        match server::program(bin_directory, candidate, "initdb") {
            Ok(program) => return Ok(program.parent().map(Path::to_owned).unwrap_or_default()),
            Err(error) => {
                last.get_or_insert(error);
            }
        }
    }
    Err(last.map_or_else(|| RestoreError::Program { program: "initdb".into(), problem: "not found".into() }, RestoreError::from))
}

/// As root, the new cluster belongs to whom the caller wants, or to the directory's owner, or else to the user postgres.
fn own(root: &Path, wanted: Option<(u32, u32)>) -> Result<(), RestoreError> {
    use std::os::unix::fs::MetadataExt as _;
    if !rustix::process::geteuid().is_root() || fs::metadata(root).is_ok_and(|found| found.uid() != 0) {
        return Ok(());
    }
    let parent = root.parent().and_then(|parent| fs::metadata(parent).ok()).filter(|found| found.uid() != 0);
    let owner = wanted.or_else(|| parent.map(|found| (found.uid(), found.gid()))).or_else(|| {
        let user = number_of("/etc/passwd", "postgres")?;
        Some((user, number_of("/etc/group", "postgres").unwrap_or(user)))
    });
    let owner = owner.ok_or_else(|| RestoreError::Program {
        program: "initdb".into(),
        problem: "it refuses to run as root, and there is no user postgres; give the target's directory to an unprivileged user".into(),
    })?;
    own_all(root, owner)
}

fn own_tree(directory: &Path) -> Result<(), RestoreError> {
    use std::os::unix::fs::MetadataExt as _;
    let root = directory.parent().unwrap_or(directory);
    let found = fs::metadata(root).map_err(write_error(root))?;
    if rustix::process::geteuid().is_root() { own_all(directory, (found.uid(), found.gid())) } else { Ok(()) }
}

fn own_all(path: &Path, owner: (u32, u32)) -> Result<(), RestoreError> {
    tree::give(path, Some(owner))?;
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        for entry in fs::read_dir(path).map_err(write_error(path))?.flatten() {
            own_all(&entry.path(), owner)?;
        }
    }
    Ok(())
}

fn run_program(command: &mut Command) -> Result<(), RestoreError> {
    crate::backup::run_program(command).map(drop).map_err(|error| match error {
        crate::backup::BackupError::Program { program, problem } => RestoreError::Program { program, problem },
        other => RestoreError::Program { program: Path::new(command.get_program()).display().to_string(), problem: other.to_string() },
    })
}

fn init_cluster(bin: &Path, root: &Path, directory: &Path, cluster: &DumpedCluster) -> Result<(), RestoreError> {
    let mut command = server::as_owner(&bin.join("initdb"), root);
    command.args(["--no-sync", "--auth-local=peer", "--auth-host=scram-sha-256", "--username"]).arg(&cluster.superuser);
    command.arg("--pgdata").arg(directory);
    if cluster.data_checksums {
        command.arg("--data-checksums");
    }
    // As template0 was: what databases are made from.
    if let Some(template) = cluster.databases.iter().find(|database| database.name == "template0" || database.name == "template1") {
        command.arg(format!("--encoding={}", template.encoding));
        if template.provider.as_deref().is_none_or(|provider| provider == "c") {
            command.arg(format!("--lc-collate={}", template.collate)).arg(format!("--lc-ctype={}", template.ctype));
        }
    }
    run_program(&mut command)?;
    // The superuser of the dump may not be the system's user: until everything is loaded, whoever
    // owns the directory may connect as anybody; the socket stands in a directory of theirs.
    let hba = directory.join("pg_hba.conf");
    let text = fs::read_to_string(&hba).map_err(write_error(&hba))?;
    fs::write(directory.join("pg_hba.conf.lifeboat"), &text).map_err(write_error(&hba))?;
    fs::write(&hba, "local all all trust\n").map_err(write_error(&hba))
}

fn load(
    bin: &Path,
    root: &Path,
    dump: &Path,
    cluster: &DumpedCluster,
    sockets: &Path,
    workers: usize,
) -> Result<Vec<String>, RestoreError> {
    let client = |name: &str| {
        let mut command = server::as_owner(&bin.join(name), root);
        command.env("PGHOST", sockets).env("PGUSER", &cluster.superuser).env("PGPORT", port(root)).env("PGAPPNAME", "lifeboat");
        for variable in ["PGPASSWORD", "PGSERVICE", "PGDATABASE", "PGOPTIONS"] {
            command.env_remove(variable);
        }
        command.arg("--no-password");
        command
    };
    // The superuser exists: initdb made it.
    let globals_path = dump.join("globals.sql");
    let globals = fs::read_to_string(&globals_path).map_err(write_error(&globals_path))?;
    let (plain, quoted) = (format!("CREATE ROLE {};", cluster.superuser), format!("CREATE ROLE \"{}\";", cluster.superuser));
    // Where the original's tablespaces were there may be nothing, or the original itself: all goes into the new cluster's own directory.
    let tablespaces = globals.lines().filter(|line| line.starts_with("CREATE TABLESPACE ")).count();
    let kept = |line: &&str| *line != plain && *line != quoted && !is_about_a_tablespace(line);
    let rest: String = globals.lines().filter(kept).flat_map(|line| [line, "\n"]).collect();
    fs::write(&globals_path, rest).map_err(write_error(&globals_path))?;
    run_program(
        client("psql").args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname=template1", "--file"]).arg(&globals_path),
    )?;
    for database in cluster.databases.iter().filter(|database| database.dumped) {
        let mut command = client("pg_restore");
        command.args(["--format=directory", "--exit-on-error", "--no-tablespaces", "--jobs"]).arg(workers.to_string());
        // initdb made two of them: made anew, because only so their settings, privileges and comments come along.
        match database.name.as_str() {
            "postgres" => command.args(["--clean", "--if-exists", "--create", "--dbname", "template1"]),
            "template1" => command.args(["--clean", "--if-exists", "--create", "--dbname", "postgres"]),
            _ => command.args(["--create", "--dbname", "template1"]),
        };
        run_program(command.arg(dump.join(database.oid.to_string())))?;
    }
    let hba = root.join("pg_hba.conf");
    fs::rename(root.join("pg_hba.conf.lifeboat"), &hba).map_err(write_error(&hba))?;
    own_tree(&hba)?;
    run_program(client("vacuumdb").args(["--all", "--analyze-only", "--quiet"]))?;
    let mut warnings = vec!["the cluster is new: settings of the old one (postgresql.conf, pg_hba.conf) are not part of a dump".to_owned()];
    if tablespaces > 0 {
        warnings.push(format!(
            "what stood in {tablespaces} tablespaces is in the default tablespace now: a dump does not hold their directories"
        ));
    }
    let left_out: Vec<&str> = cluster
        .databases
        .iter()
        .filter(|database| !database.dumped && database.name != "template0")
        .map(|database| &*database.name)
        .collect();
    if !left_out.is_empty() {
        warnings
            .push(format!("databases that allowed no connections are not in this backup and did not come back: {}", left_out.join(", ")));
    }
    Ok(warnings)
}

/// Whether a line of `pg_dumpall --globals-only` makes or changes a tablespace.
fn is_about_a_tablespace(line: &str) -> bool {
    let mut words = line.split(' ');
    match words.next() {
        Some("CREATE" | "ALTER") => words.next() == Some("TABLESPACE"),
        Some("COMMENT") => line.starts_with("COMMENT ON TABLESPACE "),
        Some("GRANT" | "REVOKE") => line.contains(" ON TABLESPACE "),
        _ => false,
    }
}

fn port(root: &Path) -> String {
    let dsn = server::server_dsn(root, "x").unwrap_or_default();
    dsn.split_whitespace().find_map(|part| part.strip_prefix("port=")).unwrap_or("5432").to_owned()
}
