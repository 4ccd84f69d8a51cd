//! The checks of a drill against real servers whose files were damaged: which check turns red, and which stays green because it cannot see it.

#![allow(dead_code, reason = "the support of other tests has more than is needed here")]

mod support;

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::backup::CopyChoice;
use lifeboat_core::drill::{Assertion, Check, CheckResult, Outcome};
use lifeboat_core::postgres::page;
use lifeboat_core::repository::Id;
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::manifest::Manifest;
use lifeboat_core::restore::{RestoreRequest, plan};
use lifeboat_core::trace_context::{SpanId, TraceContext};
use lifeboat_engine::artifacts::ArtifactSet;
use lifeboat_engine::backup::{self, ArtifactsSource, BackupRequest, PostgresSource, Protection};
use lifeboat_engine::drill::checks::{self, Budget, ChecksumsOf, Depth, LogPart, Programs, Smoke, Target};
use lifeboat_engine::keys::Identities;
use lifeboat_engine::opened_backup;
use lifeboat_engine::postgres::{Connection, Dsn, Purpose};
use lifeboat_engine::progress::Unwatched;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::restore::{self, RestoreSettings};
use lifeboat_engine::signing::{KeyFileSigner, SigningKey, Trust};
use lifeboat_engine::store::LocalStore;
use lifeboat_engine::verify::VerifySettings;
use support::{Cluster, bin_directory, program, run};

/// A name that is a trap for whoever builds statements, patterns or connection strings out of it.
const DATABASE: &str = "o'dd \"db\" \\ a=b";

const TRACE: TraceContext = TraceContext { trace: Id([1; 16]), span: SpanId([2; 8]), sampled: true };

const TABLE: &str = "we\"ird. 't*ble";

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn major() -> u32 {
    let output = program("postgres").arg("--version").output().unwrap();
    lifeboat_core::drill::tool_output::major_version(&String::from_utf8_lossy(&output.stdout)).unwrap()
}

/// What the manifest of a backup of `cluster` says.
fn manifest(cluster: &Cluster) -> Manifest {
    let connection = cluster.connect();
    let version = connection.server_version();
    let rows = connection.query("SELECT oid, datname FROM pg_database ORDER BY oid", &[]).unwrap();
    let databases: Vec<_> =
        rows.iter().map(|row| serde_json::json!({"oid": row.parse::<u32>("oid").unwrap(), "name": row.get("datname").unwrap()})).collect();
    let rows = connection.query("SELECT extname, extversion FROM pg_extension", &[]).unwrap();
    let extensions: Vec<_> = rows
        .iter()
        .map(|row| serde_json::json!({"database": "postgres", "name": row.get("extname").unwrap(), "version": row.get("extversion").unwrap()}))
        .collect();
    serde_json::from_value(serde_json::json!({
        "format": 1, "id": "c-backup-20240315T120000Z", "repository": "00".repeat(16), "name": "c", "host": "h", "lifeboat": "0",
        "started": "2024-03-15T12:00:00Z", "finished": "2024-03-15T12:10:00Z", "kind": "full", "state": "healthy",
        "encryption": {"suite": "none"}, "packs": [], "tables": [], "files": 3, "plain_bytes": 10, "stored_bytes": 5,
        "postgres": {
            "copy": "local", "server": "s", "version_num": version, "system_id": "7",
            "catalog_version": 1, "timeline": 1, "start_lsn": "0/2000028", "stop_lsn": "0/2000100", "consistent_at": "2024-03-15T12:09:00Z",
            "wal": {"segment_size": 16_777_216, "first": "000000010000000000000002", "last": "000000010000000000000002", "included": true},
            "checksums": {"enabled": true, "pages": 1, "bad": 0}, "block_size": 8192, "relation_segment_bytes": 1 << 30,
            "backup_manifest": {"object": "c-backup-20240315T120000Z/backup_manifest", "sha256": "00".repeat(32), "bytes": 1},
            "databases": databases, "extensions": extensions
        }
    }))
    .unwrap()
}

fn owner(path: &Path) -> Option<(u32, u32)> {
    fs::metadata(path).ok().map(|found| (found.uid(), found.gid())).filter(|(uid, _)| *uid != 0)
}

/// Stops a server as an operator does: everything is written.
fn stop_properly(cluster: &mut Cluster) {
    let path = cluster.data().join("postmaster.pid");
    let pid = fs::read_to_string(&path).unwrap().lines().next().unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::INT).unwrap();
    let give_up = Instant::now() + Duration::from_secs(60);
    while path.exists() {
        assert!(Instant::now() < give_up, "{}", cluster.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster.stop();
}

/// A backup with pg_basebackup, of which each case gets a copy.
struct Backup {
    cluster: Cluster,
    path: PathBuf,
    manifest: Manifest,
    /// File of a table that is all visible, of its primary key, and of a table with deleted rows.
    heap: String,
    index: String,
    deleted: String,
    /// The visibility map of that table as it was before the rows were deleted.
    older_map: Vec<u8>,
    contrib: bool,
}

impl Backup {
    fn take() -> Backup {
        let mut cluster = Cluster::init();
        cluster.configure("max_prepared_transactions = 2\n");
        cluster.start();
        cluster.connect().execute(&format!("CREATE DATABASE {}", quoted(DATABASE)), &[]).unwrap();
        let dsn = cluster.dsn().with("dbname", DATABASE);
        let connection = Connection::open(&dsn, Purpose::Sql).unwrap();
        let table = quoted(TABLE);
        for sql in [
            &format!("CREATE TABLE public.{table} (id int PRIMARY KEY, word text)"),
            &format!("INSERT INTO public.{table} SELECT n, md5(n::text) FROM generate_series(1, 20000) n"),
            &format!("CREATE INDEX {} ON public.{table} (word)", quoted("in\"dex")),
            "CREATE TABLE public.v (id int PRIMARY KEY, word text)",
            "INSERT INTO public.v SELECT n, md5(n::text) FROM generate_series(1, 20000) n",
            "VACUUM FREEZE",
            "CHECKPOINT",
        ] {
            connection.execute(sql, &[]).unwrap();
        }
        let file = |relation: &str| -> String {
            let sql = "SELECT pg_relation_filepath($1::regclass) AS path";
            connection.query(sql, &[Some(relation)]).unwrap().one().unwrap().get("path").unwrap().to_owned()
        };
        let key = quoted(&format!("{TABLE}_pkey"));
        let (heap, index, deleted) = (file(&format!("public.{table}")), file(&format!("public.{key}")), file("public.v"));
        let older_map = fs::read(cluster.data().join(format!("{deleted}_vm"))).unwrap();
        connection.execute("DELETE FROM public.v WHERE id % 7 = 0", &[]).unwrap();
        // Hint bits are set by who reads first.
        connection.query("SELECT count(*) FROM public.v", &[]).unwrap();
        connection.execute("CHECKPOINT", &[]).unwrap();
        let contrib = "SELECT count(*) = 2 AS all FROM pg_available_extensions WHERE name IN ('amcheck', 'pg_visibility')";
        let contrib = connection.query(contrib, &[]).unwrap().one().unwrap().bool("all").unwrap();
        let manifest = manifest(&cluster);
        let path = cluster.directory().join("base");
        run(program("pg_basebackup").arg("-D").arg(&path).arg("-h").arg(cluster.directory()).args([
            "-p",
            &cluster.port.to_string(),
            "-U",
            "postgres",
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
        ]));
        stop_properly(&mut cluster);
        Backup { cluster, path, manifest, heap, index, deleted, older_map, contrib }
    }

    fn restore(&self) -> Cluster {
        let cluster = Cluster::empty();
        let from = format!("{}/.", self.path.display());
        assert!(Command::new("cp").args(["-a", &from]).arg(cluster.data()).status().unwrap().success());
        cluster
    }
}

fn programs<'a>(bin: &'a Path, directory: &'a Path) -> Programs<'a> {
    Programs { bin_directory: Some(bin), major: major(), run_as: owner(directory), directory }
}

fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

fn flip(path: &Path, at: u64) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 0x10]).unwrap();
}

fn truncate(path: &Path, pages: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - pages * 8192).unwrap();
}

/// Changes the text of a row and makes the page's checksum right again.
fn tamper(path: &Path, block: u32) {
    let mut bytes = fs::read(path).unwrap();
    let page: &mut [u8; 8192] = (&mut bytes[block as usize * 8192..][..8192]).try_into().unwrap();
    // The last tuple that was written stands first; its text ends with an MD5 of 32 characters.
    let upper = usize::from(u16::from_le_bytes([page[14], page[15]]));
    let at = upper + 24 + 4 + 1;
    assert!(page[at].is_ascii_hexdigit(), "{:?}", &page[upper..upper + 70]);
    page[at] = if page[at] == b'a' { b'b' } else { b'a' };
    let sum = page::checksum(page, block);
    page[8..10].copy_from_slice(&sum.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

const fn letter(outcome: Outcome) -> char {
    match outcome {
        Outcome::Passed => 'P',
        Outcome::Failed => 'F',
        Outcome::NotChecked => 'N',
        Outcome::NotApplicable => '-',
    }
}

type Damage = fn(&Backup, &Path);

/// What was damaged; what `pg_verifybackup`, amcheck in full, visibility map, page checksums, and the log say: passed, failed, or `.` for what
/// depends on which rows of the catalogs it hits.
const MATRIX: [(&str, Damage, &str); 13] = [
    ("nothing", |_, _| {}, "PPPPP"),
    (
        "what a restore writes",
        |_, data| {
            fs::write(data.join("postgresql.auto.conf"), "# restored\n").unwrap();
            fs::write(data.join("recovery.signal"), "").unwrap();
        },
        "PPPPP",
    ),
    ("a bit of a heap page", |backup, data| flip(&data.join(&backup.heap), 5 * 8192 + 4000), "FFFFF"),
    // Passes start, scan, dump, checksums and full amcheck; the index counts more rows than the heap has.
    ("a heap page of zeros", |backup, data| write_at(&data.join(&backup.heap), 5 * 8192, &[0; 8192]), "FPFPP"),
    ("a row, and the checksum made right", |backup, data| tamper(&data.join(&backup.deleted), 5), "FPPPP"),
    ("the same, in an indexed column", |backup, data| tamper(&data.join(&backup.heap), 5), "FFPPF"),
    ("the tail of a heap", |backup, data| truncate(&data.join(&backup.heap), 2), "FPFPP"),
    ("a relation's file is missing", |backup, data| fs::remove_file(data.join(&backup.heap)).unwrap(), "FFFPF"),
    ("a bit of an index page", |backup, data| flip(&data.join(&backup.index), 2 * 8192 + 4000), "FFFFF"),
    ("an index page of zeros", |backup, data| write_at(&data.join(&backup.index), 2 * 8192, &[0; 8192]), "FFFPF"),
    (
        "a visibility map from before rows were deleted",
        |backup, data| fs::write(data.join(format!("{}_vm", backup.deleted)), &backup.older_map).unwrap(),
        "FPFPP",
    ),
    ("600 bytes of the commit log", |_, data| write_at(&data.join("pg_xact/0000"), 0, &[0; 600]), "F...."),
    ("a file of the configuration", |_, data| flip(&data.join("pg_ident.conf"), 3), "FPPPP"),
];

#[test]
fn the_detection_matrix_first_half() {
    matrix(0);
}

#[test]
fn the_detection_matrix_second_half() {
    matrix(1);
}

/// Every second case: a server is started for each, and two tests run beside each other.
fn matrix(half: usize) {
    let backup = Backup::take();
    let bin = bin_directory();
    let mut wrong = Vec::new();
    for (name, damage, expected) in MATRIX.into_iter().skip(half).step_by(2) {
        let mut cluster = backup.restore();
        damage(&backup, &cluster.data());
        let directory = cluster.directory().to_owned();
        let programs = programs(&bin, &directory);
        let mut results = vec![checks::backup_manifest(&backup.manifest, &cluster.data(), &[], &programs, &Budget::ALL)];
        let _ = fs::remove_file(cluster.data().join("recovery.signal"));
        if cluster.try_start() {
            let dsn = cluster.dsn();
            let target = Target { dsn: &dsn, programs, budget: Budget::ALL };
            results.push(checks::amcheck(&target, Depth::Full, 1));
            results.push(checks::visibility_map(&target));
            stop_properly(&mut cluster);
            let of = ChecksumsOf { pgdata: &cluster.data(), manifest: &backup.manifest, programs, budget: Budget::ALL, workers: 2 };
            results.push(checks::checksums(&of));
        } else {
            assert!(expected.ends_with('.'), "{name}: {}", cluster.log());
        }
        results.push(checks::server_log(&[LogPart { text: &cluster.log(), provoked: false }]));
        let found: String = results.iter().map(|result| letter(result.outcome)).collect();
        let fits = |(at, (found, expected)): (usize, (char, char))| match expected {
            '.' => true,
            // Without the extensions nothing is known, unless counting through the indexes told it.
            _ if at == 1 && !backup.contrib => found == 'N',
            'P' if at == 2 && !backup.contrib => found == 'N',
            // Nobody read what only amcheck reads.
            'F' if at == 4 && !backup.contrib => true,
            expected => found == expected,
        };
        if !found.chars().zip(expected.chars()).enumerate().all(fits) {
            let said: Vec<_> = results.iter().map(|r| format!("{:?} {:?}: {} {:?}", r.check, r.outcome, r.reason, r.findings)).collect();
            wrong.push(format!("{name}: {found} in place of {expected}\n  {}", said.join("\n  ")));
        }
        for result in &results {
            assert!(result.seconds >= 0.0 && !result.reason.is_empty(), "{result:?}");
        }
        if name == "nothing" && backup.contrib {
            let amcheck = &results[1];
            assert!(amcheck.tool.as_deref().unwrap().starts_with("pg_amcheck "), "{amcheck:?}");
            let scope = amcheck.scope.as_ref().unwrap();
            assert!(scope.checked == scope.of && scope.of > 1 << 20 && scope.seed.is_none(), "{scope:?}");
            assert!(results[2].reason.contains("3 indexes count"), "{}", results[2].reason);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A server for checks that look at what is in it, and the manifest of its backup.
struct Served {
    cluster: Cluster,
    manifest: Manifest,
    bin: PathBuf,
    dsn: Dsn,
}

impl Served {
    fn new(configuration: &str) -> Served {
        let mut cluster = Cluster::init();
        cluster.configure(configuration);
        cluster.start();
        let (manifest, dsn) = (manifest(&cluster), cluster.dsn());
        Served { cluster, manifest, bin: bin_directory(), dsn }
    }

    fn target(&self) -> Target<'_> {
        Target { dsn: &self.dsn, programs: programs(&self.bin, self.cluster.directory()), budget: Budget::ALL }
    }

    fn execute(&self, sql: &str) {
        self.cluster.connect().execute(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

fn assert_is(result: &CheckResult, outcome: Outcome, words: &str) {
    let all = format!("{} {}", result.reason, result.findings.join(" | "));
    assert!(result.outcome == outcome && all.contains(words), "{outcome:?} with {words:?} is expected: {result:?}");
}

#[test]
fn the_catalog_is_compared_and_libraries_are_tried() {
    let mut served = Served::new("max_prepared_transactions = 2\n");
    let catalog = |served: &Served, manifest: &Manifest, later| checks::catalog(&served.target(), manifest, later);
    assert_is(&catalog(&served, &served.manifest, false), Outcome::Passed, "libraries can be loaded");

    // What production changed since the backup is no failure where recovery went on to then.
    let mut other = served.manifest.clone();
    let postgres = other.postgres.as_mut().unwrap();
    postgres.databases.push(serde_json::from_value(serde_json::json!({"oid": 77_777, "name": "gone\u{1b}[31m"})).unwrap());
    postgres.extensions[0].version = "0.1".into();
    let physical = postgres.physical.as_mut().unwrap();
    physical.tablespaces.push(serde_json::from_value(serde_json::json!({"oid": 88_888, "name": "fast", "location": "/x"})).unwrap());
    let result = catalog(&served, &other, false);
    assert_is(&result, Outcome::Failed, "database gone\\u{1b}[31m (oid 77777) is not there");
    assert_is(&result, Outcome::Failed, "tablespace fast (oid 88888) is not there");
    assert_is(&result, Outcome::Failed, "it was 0.1");
    assert_is(&catalog(&served, &other, true), Outcome::Passed, "since the backup: database gone");
    let mut unknown = served.manifest.clone();
    unknown.postgres.as_mut().unwrap().databases.clear();
    assert_is(&catalog(&served, &unknown, false), Outcome::NotChecked, "did not record databases");

    // What an operator should know, and is not the backup's fault.
    for sql in [
        "CREATE TABLE public.\"a\u{1b}[2J\" (id int PRIMARY KEY)",
        "CREATE UNLOGGED TABLE public.fleeting (id int)",
        "UPDATE pg_index SET indisvalid = false WHERE indrelid = 'public.\"a\u{1b}[2J\"'::regclass",
        "CREATE TABLE public.held (id int)",
        "BEGIN",
    ] {
        if sql != "BEGIN" {
            served.execute(sql);
        }
    }
    let connection = served.cluster.connect();
    for sql in ["BEGIN", "INSERT INTO public.held VALUES (1)", "PREPARE TRANSACTION 'left over'"] {
        connection.execute(sql, &[]).unwrap();
    }
    let result = catalog(&served, &served.manifest, false);
    for words in ["1 indexes are invalid", "public.fleeting", "\"left over\"", "a\\u{1b}[2J"] {
        assert_is(&result, Outcome::Passed, words);
    }
    assert!(!result.findings.iter().any(|finding| finding.contains('\u{1b}')), "{result:?}");
    connection.execute("ROLLBACK PREPARED 'left over'", &[]).unwrap();

    // Damage of the kind that shows only when somebody needs it.
    for (sql, words, undo) in [
        (
            "CREATE FUNCTION public.f() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler'",
            "",
            "UPDATE pg_proc SET probin = '$libdir/not''here' WHERE proname = 'f'",
        ),
        ("SELECT 1", "not'here", "DROP FUNCTION public.f()"),
        (
            "UPDATE pg_extension SET extname = 'strange' WHERE extname = 'plpgsql'",
            "extension strange is not installed on this host",
            "UPDATE pg_extension SET extname = 'plpgsql' WHERE extname = 'strange'",
        ),
        (
            "UPDATE pg_class SET relowner = 99999 WHERE relname = 'held'",
            "the owner of public.held is no role (oid 99999)",
            "UPDATE pg_class SET relowner = 10 WHERE relname = 'held'",
        ),
        (
            "UPDATE pg_database SET datdba = 99999 WHERE datname = 'template1'",
            "the owner of database template1 is no role",
            "UPDATE pg_database SET datdba = 10 WHERE datname = 'template1'",
        ),
    ] {
        served.execute(sql);
        if !words.is_empty() {
            let result = catalog(&served, &served.manifest, false);
            assert!(result.outcome == Outcome::Failed && format!("{result:?}").contains(words), "{words}: {result:?}");
        }
        served.execute(undo);
    }
    served.manifest.postgres.as_mut().unwrap().settings.insert("shared_preload_libraries".into(), "plpgsql, \"no_such_library\"".into());
    assert_is(&catalog(&served, &served.manifest, false), Outcome::Failed, "no_such_library");
    // None of this was an error that the log check would count.
    assert_is(&checks::server_log(&[LogPart { text: &served.cluster.log(), provoked: false }]), Outcome::Passed, "none of them an error");
}

#[test]
fn collations_of_another_version_are_named_with_their_cure() {
    let served = Served::new("");
    let collations = |manifest: &Manifest| checks::collations(&served.target(), manifest);
    assert_is(&collations(&served.manifest), Outcome::Passed, "");
    if served.cluster.connect().server_version() >= 150_000 {
        served.execute("CREATE TABLE public.t (word text PRIMARY KEY, id int)");
        served.execute("UPDATE pg_database SET datcollversion = '1.2' WHERE datname = 'postgres'");
        let result = collations(&served.manifest);
        assert_is(&result, Outcome::Failed, "had version 1.2");
        assert_is(&result, Outcome::Failed, "REINDEX DATABASE \"postgres\"; ALTER DATABASE \"postgres\" REFRESH COLLATION VERSION");
        // The key of t, and no index of a catalog: those sort by C.
        assert_is(&result, Outcome::Failed, "which 1 indexes depend on");
        served.execute("UPDATE pg_database SET datcollversion = NULL WHERE datname = 'postgres'");
        assert_is(&collations(&served.manifest), Outcome::Passed, "");
    }
    let icu = "SELECT quote_ident(collname) AS name FROM pg_collation WHERE collprovider = 'i' AND collversion IS NOT NULL LIMIT 1";
    let rows = served.cluster.connect().query(icu, &[]).unwrap();
    let Some(name) = rows.iter().next().map(|row| row.get("name").unwrap().to_owned()) else { return };
    served.execute("UPDATE pg_collation SET collversion = '0.0' WHERE collprovider = 'i'");
    assert_is(&collations(&served.manifest), Outcome::Passed, "collations that nothing depends on");
    served.execute(&format!("CREATE TABLE public.i (word text COLLATE {name})"));
    served.execute("CREATE INDEX ON public.i (word)");
    assert_is(&collations(&served.manifest), Outcome::Failed, "which 1 indexes depend on: REINDEX them; ALTER COLLATION");
}

fn assertion(json: &serde_json::Value) -> Assertion {
    serde_json::from_value(json.clone()).unwrap()
}

#[test]
fn assertions_read_and_nothing_else() {
    let served = Served::new("");
    served.execute("CREATE TABLE public.builds (id int, state text)");
    served.execute("INSERT INTO public.builds SELECT n, 'ok' FROM generate_series(1, 2500) n");
    served.execute("CREATE SEQUENCE public.numbers");
    served.execute("CREATE ROLE \"re'a\"\"der\"");
    served.execute("ALTER ROLE postgres SET search_path = public");
    served.execute("ALTER ROLE postgres SET statement_timeout = '700ms'");
    let ask = |json: serde_json::Value| {
        let mut json = json;
        json["name"] = "n".into();
        let begun = Instant::now();
        let result = checks::assertions(&served.target(), &[assertion(&json)], "postgres", Duration::from_secs(30));
        (result, begun.elapsed())
    };
    for json in [
        serde_json::json!({"query": "SELECT count(*) FROM builds", "expect": 2500}),
        serde_json::json!({"query": "SELECT count(*) > 5 FROM builds; -- a comment"}),
        serde_json::json!({"query": "SELECT id FROM builds WHERE state <> 'ok'", "rows": 0}),
        serde_json::json!({"query": "TABLE builds", "rows": 2500}),
        serde_json::json!({"query": "SELECT avg(id) FROM builds", "at_least": 1250, "at_most": 1251.5}),
        serde_json::json!({"query": "SELECT current_user", "expect": "re'a\"der", "role": "re'a\"der"}),
        serde_json::json!({"query": "SELECT current_database()", "expect": "template1", "database": "template1"}),
    ] {
        assert_is(&ask(json).0, Outcome::Passed, "all 1 hold");
    }
    for (json, words) in [
        (serde_json::json!({"query": "SELECT count(*) FROM builds", "expect": 2499}), "it gave \"2500\", 2499 is expected"),
        (serde_json::json!({"query": "SELECT count(*) FROM builds"}), "true is expected"),
        (serde_json::json!({"query": "TABLE builds", "rows": 2499}), "it gave more rows than the 2499"),
        (serde_json::json!({"query": "TABLE builds", "rows": 2501}), "it gave 2500 rows, 2501"),
        (serde_json::json!({"query": "SELECT * FROM absent"}), "absent"),
        (serde_json::json!({"query": "SELECT * FROM builds", "role": "re'a\"der", "rows": 1}), "permission denied"),
        // Nothing that could change what is checked after it, or keep a connection busy in another way.
        (serde_json::json!({"query": "DELETE FROM builds"}), "syntax error"),
        (serde_json::json!({"query": "COPY builds TO STDOUT"}), "syntax error"),
        (serde_json::json!({"query": "SELECT 1; DELETE FROM builds"}), "multiple commands"),
        (serde_json::json!({"query": "SELECT nextval('numbers') > 0"}), "read-only"),
        (serde_json::json!({"query": "SELECT true", "database": "ab'sent"}), "ab'sent"),
        (serde_json::json!({"query": "SELECT true", "role": "ab\"sent"}), "ab\"sent"),
    ] {
        assert_is(&ask(json).0, Outcome::Failed, words);
    }
    // One that sleeps, and one that also does not let itself be cancelled.
    let catching = "DO $$ BEGIN CREATE FUNCTION public.stubborn() RETURNS bool LANGUAGE plpgsql AS $f$ BEGIN LOOP BEGIN \
                    PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $f$; END $$";
    served.execute(catching);
    for query in ["SELECT pg_sleep(600) IS NULL", "SELECT stubborn()"] {
        let (result, took) = ask(serde_json::json!({"query": query, "timeout_seconds": 1}));
        assert_eq!(result.outcome, Outcome::Failed, "{result:?}");
        assert!(took < Duration::from_secs(30), "{took:?}");
    }
    let builds = served.cluster.connect().query("SELECT count(*) AS n FROM public.builds", &[]).unwrap();
    assert_eq!(builds.one().unwrap().get("n").unwrap(), "2500");
    assert_is(&checks::assertions(&served.target(), &[], "postgres", Duration::from_secs(1)), Outcome::NotApplicable, "");
    let over = Target { budget: Budget { deadline: Some(Instant::now()), ..Budget::ALL }, ..served.target() };
    let held = assertion(&serde_json::json!({"name": "n", "query": "SELECT true"}));
    assert_is(&checks::assertions(&over, &[held], "postgres", Duration::from_secs(1)), Outcome::NotChecked, "the time was over");
    // What users' queries did wrong is in the report, not in the server's log.
    assert_is(&checks::server_log(&[LogPart { text: &served.cluster.log(), provoked: false }]), Outcome::Passed, "none of them an error");
}

#[test]
fn the_smoke_command_sees_the_drill_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let dsn = Dsn::parse("host=/run/d port=5 user='o''dd' dbname='a b'")
        .unwrap_or_else(|_| Dsn::parse("host=/run/d port=5 user='o\\'dd' dbname='a b'").unwrap());
    let smoke = |words: &[&str], timeout: u64| {
        let command: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        checks::smoke(&Smoke {
            command: &command,
            dsn: &dsn,
            artifacts: Some(Path::new("/some/artifacts")),
            backup: "c-backup-1",
            directory: directory.path(),
            path: "/usr/bin:/bin",
            run_as: None,
            behind: None,
            timeout: Duration::from_secs(timeout),
            trace: &TRACE,
        })
    };
    let result = smoke(&["env"], 30);
    assert_is(&result, Outcome::Passed, "env ended with 0");
    let mut names: Vec<&str> = result.findings.iter().map(|line| line.split('=').next().unwrap()).collect();
    names.sort_unstable();
    let expected = [
        "HOME",
        "LANG",
        "LIFEBOAT_DRILL_ARTIFACTS",
        "LIFEBOAT_DRILL_BACKUP",
        "LIFEBOAT_DRILL_DIRECTORY",
        "LIFEBOAT_DRILL_DSN",
        "PATH",
        "PGDATABASE",
        "PGHOST",
        "PGPORT",
        "PGUSER",
        "TMPDIR",
        "TRACEPARENT",
        "TZ",
    ];
    assert_eq!(names, expected);
    assert!(result.findings.contains(&format!("TRACEPARENT={TRACE}")), "{result:?}");
    let told = result.findings.iter().find_map(|line| line.strip_prefix("LIFEBOAT_DRILL_DSN=")).unwrap();
    assert_eq!(Dsn::parse(told).unwrap().endpoint(), dsn.endpoint());

    assert_is(&smoke(&["sh", "-c", "echo bad; echo '\u{1b}[31mworse' >&2; exit 3"], 30), Outcome::Failed, "\\u{1b}[31mworse");
    assert_is(&smoke(&["sh", "-c", "kill -11 $$"], 30), Outcome::Failed, "signal 11");
    let begun = Instant::now();
    assert_is(&smoke(&["sh", "-c", "yes endless"], 1), Outcome::Failed, "stopped after 1 s");
    assert_is(&smoke(&["sh", "-c", "sleep 600 & echo left; exit 0"], 30), Outcome::Passed, "left");
    // Out of the group and out of reach, with our pipe in its hands: waited for in bounds.
    assert_is(&smoke(&["sh", "-c", "setsid sleep 20 & echo away"], 30), Outcome::Passed, "away");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_is(&smoke(&["no-such-program"], 30), Outcome::NotChecked, "no-such-program");
    assert_is(&smoke(&["/etc/passwd"], 30), Outcome::NotChecked, "cannot be run");
    assert_is(&smoke(&[], 30), Outcome::NotApplicable, "");

    // As the drill's user, in the network of another process.
    if rustix::process::geteuid().is_root() && Path::new("/usr/bin/nsenter").is_file() {
        let command = ["sh".to_owned(), "-c".to_owned(), "id -u; id -g; id -G; readlink /proc/self/ns/net".to_owned()];
        std::os::unix::fs::chown(directory.path(), Some(54_321), Some(54_322)).unwrap();
        for behind in [
            None,
            Some(
                (&|program: &Path| {
                    vec![
                        "/usr/bin/setpriv".to_owned(),
                        "--reuid=54321".into(),
                        "--regid=54322".into(),
                        "--clear-groups".into(),
                        program.display().to_string(),
                    ]
                }) as &dyn Fn(&Path) -> Vec<String>,
            ),
        ] {
            let result = checks::smoke(&Smoke {
                command: &command,
                dsn: &dsn,
                artifacts: None,
                backup: "b",
                directory: directory.path(),
                path: "/usr/bin:/bin",
                run_as: Some((54_321, 54_322)),
                behind,
                timeout: Duration::from_secs(30),
                trace: &TRACE,
            });
            assert_eq!(result.outcome, Outcome::Passed, "{result:?}");
            assert_eq!(result.findings[..3], ["54321", "54322", "54322"], "{result:?}");
            assert_eq!(result.findings[3], fs::read_link("/proc/self/ns/net").unwrap().display().to_string());
        }
    }
}

#[test]
fn writes_are_there_after_a_restart_or_it_is_red() {
    let mut served = Served::new("default_transaction_read_only = on\n");
    let dsn = served.dsn.clone();
    let (bin, directory) = (served.bin.clone(), served.cluster.directory().to_owned());
    let target = Target { dsn: &dsn, programs: programs(&bin, &directory), budget: Budget::ALL };
    let databases = |served: &Served| {
        let rows = served.cluster.connect().query("SELECT count(*) AS n FROM pg_database", &[]).unwrap();
        rows.one().unwrap().get("n").unwrap().to_owned()
    };
    let before = databases(&served);
    let result = checks::write_probe(&target, &mut || {
        // Not properly, even: what was committed counts.
        served.cluster.stop();
        served.cluster.start();
        Ok(())
    });
    assert_is(&result, Outcome::Passed, "10000 rows");
    assert_eq!(databases(&served), before);
    let result = checks::write_probe(&target, &mut || {
        let probe = dsn.clone().with("dbname", "lifeboat_drill_probe");
        let connection = Connection::open(&probe, Purpose::Sql).unwrap();
        connection.execute("SET default_transaction_read_only = off", &[]).unwrap();
        connection.execute("UPDATE public.probe SET word = 'x' WHERE id = 77", &[]).unwrap();
        Ok(())
    });
    assert_is(&result, Outcome::Failed, "in place of");
    assert_is(&checks::write_probe(&target, &mut || Err("it did not come back".into())), Outcome::Failed, "it did not come back");
    served.cluster.stop();
    assert_is(&checks::write_probe(&target, &mut || Ok(())), Outcome::Failed, "connect");
}

#[test]
fn a_heartbeat_is_one_timestamp_with_a_time_zone() {
    let served = Served::new("");
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let (backup, commit, failure) = (at("2026-08-01T10:00:00Z"), at("2026-08-01T11:00:00Z"), at("2026-08-01T12:00:00Z"));
    let ask = |query: &str| checks::recovered_moment(Some(&served.dsn), Some(query), Some(commit), backup, failure);
    let found = ask("SELECT timestamptz '2026-08-01 13:30:00.5+02' -- the last one");
    assert_eq!((found.moment, found.source), (at("2026-08-01T11:30:00.5Z"), "heartbeat"));
    for bad in [
        "SELECT timestamptz '2999-01-01'",
        "SELECT NULL::timestamptz",
        "SELECT now() FROM generate_series(1, 2)",
        "SELECT now() WHERE false",
        "SELECT timestamp '2026-08-01 11:30'",
        "SELECT 'infinity'::timestamptz",
        "SELECT * FROM absent",
        "DROP TABLE absent",
    ] {
        let found = ask(bad);
        assert_eq!((found.moment, found.source, found.notes.len()), (commit, "commit", 1), "{bad}: {found:?}");
    }
}

#[test]
fn a_budget_rotates_and_other_ways_are_as_good() {
    let backup = Backup::take();
    let mut cluster = backup.restore();
    flip(&cluster.data().join(&backup.heap), 5 * 8192 + 4000);
    cluster.start();
    let (bin, dsn, directory) = (bin_directory(), cluster.dsn(), cluster.directory().to_owned());
    // Programs of no version at all: functions and our own reading take over.
    let elsewhere = tempfile::tempdir().unwrap();
    let bare = Programs { bin_directory: Some(elsewhere.path()), ..programs(&bin, &directory) };
    let target = Target { dsn: &dsn, programs: programs(&bin, &directory), budget: Budget::ALL };
    if backup.contrib {
        if major() < 18 {
            // As after pg_upgrade: what is there does not know verify_heapam.
            let connection = Connection::open(&dsn.clone().with("dbname", DATABASE), Purpose::Sql).unwrap();
            connection.execute("CREATE EXTENSION amcheck VERSION '1.2'", &[]).unwrap();
        }
        let all = checks::amcheck(&Target { programs: bare, ..target }, Depth::Full, 1);
        assert_is(&all, Outcome::Failed, "invalid page");
        assert_eq!(all.tool.as_deref(), Some("amcheck, by its functions"));
        // A third each time: the damage is found by one of them at least, and not by all.
        let total = all.scope.unwrap().of;
        let runs: Vec<CheckResult> = (0..4)
            .map(|seed| {
                let budget = Budget { bytes: total / 3, seed, deadline: None };
                checks::amcheck(&Target { budget, ..target }, Depth::Quick, 1)
            })
            .collect();
        let red = runs.iter().filter(|run| run.outcome == Outcome::Failed).count();
        assert!((1..4).contains(&red) && runs.iter().all(|run| run.outcome != Outcome::NotChecked), "{runs:?}");
        for (seed, run) in (0..4).zip(&runs) {
            let scope = run.scope.as_ref().unwrap();
            assert!(scope.seed == Some(seed) && scope.checked < scope.of, "{scope:?}");
        }
        let late = Target { budget: Budget { deadline: Some(Instant::now()), ..Budget::ALL }, ..target };
        for result in [checks::amcheck(&late, Depth::Quick, 1), checks::visibility_map(&late)] {
            assert_eq!(result.outcome, Outcome::NotChecked, "{result:?}");
        }
    }
    let running = cluster.data();
    let of = |programs, budget| ChecksumsOf { pgdata: &running, manifest: &backup.manifest, programs, budget, workers: 3 };
    assert_is(&checks::checksums(&of(bare, Budget::ALL)), Outcome::NotChecked, "not stopped properly");
    stop_properly(&mut cluster);
    let own = checks::checksums(&of(bare, Budget::ALL));
    assert_is(&own, Outcome::Failed, &format!("{}, page 5: checksum", backup.heap));
    let theirs = checks::checksums(&of(programs(&bin, &directory), Budget::ALL));
    assert_is(&theirs, Outcome::Failed, "1 pages do not have their checksum");
    assert!(theirs.tool.unwrap().starts_with("pg_checksums "));
    let total = own.scope.unwrap().of;
    let found = (0..5).filter(|seed| {
        let budget = Budget { bytes: total / 4, seed: *seed, deadline: None };
        checks::checksums(&of(programs(&bin, &directory), budget)).outcome == Outcome::Failed
    });
    assert!((1..5).contains(&found.count()));
    // A file that ends within a page.
    flip(&running.join(&backup.heap), 5 * 8192 + 4000);
    assert_is(&checks::checksums(&of(bare, Budget::ALL)), Outcome::Passed, "have their checksum");
    let file = fs::OpenOptions::new().write(true).open(running.join(&backup.heap)).unwrap();
    file.set_len(file.metadata().unwrap().len() - 100).unwrap();
    assert_is(&checks::checksums(&of(bare, Budget::ALL)), Outcome::Failed, "into a page");
    assert_is(&checks::checksums(&of(programs(&bin, &directory), Budget::ALL)), Outcome::Failed, "");
    // Programs that are not there, or of another version, are no pass.
    let result = checks::backup_manifest(&backup.manifest, &backup.path, &[], &bare, &Budget::ALL);
    assert_is(&result, Outcome::NotChecked, "no PostgreSQL");
    let other = Programs { major: 12, ..programs(&bin, &directory) };
    assert_is(
        &checks::backup_manifest(&backup.manifest, &backup.path, &[], &other, &Budget::ALL),
        Outcome::NotChecked,
        "is not of PostgreSQL 12",
    );
}

#[test]
fn what_is_stored_is_judged_part_by_part() {
    let cluster = Cluster::running();
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir(at("artifacts")).unwrap();
    fs::create_dir(at("repository")).unwrap();
    let connection = cluster.connect();
    connection.execute("CREATE TABLE public.files (name text, sha256 text)", &[]).unwrap();
    for name in ["a.txt", "b.txt"] {
        fs::write(at("artifacts").join(name), name).unwrap();
        let digest = lifeboat_core::repository::Sha256::of(name.as_bytes()).to_string();
        connection.execute("INSERT INTO public.files VALUES ($1, $2)", &[Some(name), Some(&digest)]).unwrap();
    }
    let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
    let trust = Trust::new([signer.public_key().clone()]);
    let open_store = || Box::new(LocalStore::open(&at("repository"), false).unwrap());
    let repository = Repository::init(open_store(), Timestamp::now(), "test").unwrap();
    let request = BackupRequest {
        name: "conductor".parse().unwrap(),
        host: "host".into(),
        program: "test".into(),
        postgres: Some(PostgresSource {
            dsn: cluster.dsn(),
            data_directory: Some(cluster.data()),
            copy: CopyChoice::Local,
            bin_directory: None,
            scratch: place.path().to_owned(),
            fast_checkpoint: true,
            record_only: false,
            check_pages: true,
            truth: lifeboat_core::truth::Budget::default(),
        }),
        artifacts: Some(ArtifactsSource {
            directory: Some(at("artifacts")),
            allow_empty: false,
            reference_query: Some("SELECT name, sha256 FROM files".into()),
        }),
        protection: Protection::Plain,
        signer: &signer,
        workers: 2,
        memory_bytes: 64 << 20,
        level: 1,
        bandwidth: None,
        audit: None,
    };
    let taken = backup::run(&repository, &request, &Unwatched).unwrap().manifest;
    let stored = |trust: &Trust, percent: f64| {
        let settings = VerifySettings { trust, identities: Identities::default(), sample_percent: percent, sample_seed: 7, workers: 2 };
        let results = checks::stored(&repository, &taken.id, &settings, &Unwatched);
        assert_eq!(results.each_ref().map(|result| result.check), [Check::Signature, Check::Extents, Check::Artifacts]);
        let letters: String = results.iter().map(|result| letter(result.outcome)).collect();
        (letters, results)
    };
    let (letters, results) = stored(&trust, 100.0);
    assert_eq!(letters, "PPP", "{results:?}");
    assert!(results.iter().all(|result| result.scope.as_ref().is_none_or(|scope| scope.seed.is_none())));
    let (letters, results) = stored(&trust, 20.0);
    assert_eq!((letters.as_str(), results[1].scope.as_ref().unwrap().seed), ("PPP", Some(7)), "{results:?}");
    let stranger = Trust::new([KeyFileSigner::new(SigningKey::generate().unwrap()).public_key().clone()]);
    assert_eq!(stored(&stranger, 100.0).0, "FNN");

    // Each part of it damaged, and each of it alone turns red.
    let path = |key: &Key| at("repository").join(key.as_str());
    let objects = |prefix: &str| {
        let listed: Vec<_> = repository.store().list(prefix).unwrap().into_iter().map(|found| found.key).collect();
        assert!(!listed.is_empty(), "{prefix}");
        listed
    };
    let damaged = |key: &Key, expected: &str| {
        let before = fs::read(path(key)).unwrap();
        let mut bytes = before.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(path(key)).unwrap();
        let (letters, results) = stored(&trust, 100.0);
        assert_eq!(letters, expected, "{key} missing: {results:?}");
        fs::write(path(key), bytes).unwrap();
        let (letters, results) = stored(&trust, 100.0);
        assert_eq!(letters, expected, "{key} changed: {results:?}");
        fs::write(path(key), before).unwrap();
    };
    {
        let key = layout::pack(taken.packs[0].sha256);
        let before = fs::read(path(&key)).unwrap();
        // Wherever the bit stands: some are of frames that no file has.
        for n in 0..24 {
            let mut bytes = before.clone();
            let at = bytes.len() * n / 24;
            bytes[at] ^= 1;
            fs::write(path(&key), bytes).unwrap();
            let (letters, results) = stored(&trust, 100.0);
            assert_eq!(letters, "PFP", "bit of byte {at} of {}: {results:?}", before.len());
        }
        fs::write(path(&key), before).unwrap();
    }
    damaged(&layout::pack(taken.packs[0].sha256), "PFP");
    damaged(&Key::parse(&taken.tables[0].object).unwrap(), "PFP");
    damaged(&layout::manifest_bundle(&taken.id), "FNN");
    damaged(&layout::manifest(&taken.id), "FNN");
    damaged(&objects("artifacts/catalog/")[0], "PPF");
    damaged(&objects("artifacts/blobs/")[0], "PPF");
    damaged(&objects("artifacts/records/")[0], "PPF");
    assert_eq!(stored(&trust, 100.0).0, "PPP");

    // What the database refers to.
    let set = || ArtifactSet::new(repository.store(), taken.artifacts.as_ref().unwrap().runs.clone());
    let references = |manifest: &Manifest| checks::references(&cluster.dsn(), manifest, &set());
    assert_is(&references(&taken), Outcome::Passed, "all 2 artifacts");
    connection.execute("UPDATE public.files SET sha256 = repeat('0', 64) WHERE name = 'a.txt'", &[]).unwrap();
    assert_is(&references(&taken), Outcome::Failed, "1 of 2 artifacts");
    connection.execute("DELETE FROM public.files", &[]).unwrap();
    assert_is(&references(&taken), Outcome::Failed, "refers to no artifact; it was 2");
    connection.execute("DROP TABLE public.files", &[]).unwrap();
    assert_is(&references(&taken), Outcome::Failed, "the reference query failed");
    let mut none = taken.clone();
    none.artifacts.as_mut().unwrap().references = None;
    assert_is(&references(&none), Outcome::NotApplicable, "reference_query");
    none.artifacts = None;
    assert_is(&references(&none), Outcome::NotApplicable, "no artifacts");

    // What a restore wrote is what pg_verifybackup wants to see, with the backup's own WAL; and not when a bit of it turned over.
    let backup = opened_backup::open(&repository, &taken.id, &trust).unwrap();
    let pgdata = at("pgdata");
    let request = RestoreRequest { pgdata: Some(pgdata.display().to_string()), ..RestoreRequest::default() };
    let settings = RestoreSettings {
        identities: Identities::default(),
        workers: 1,
        bin_directory: None,
        start_timeout: Duration::from_secs(60),
        probe: None,
        spool: None,
        temporary: place.path().to_owned(),
        owner: None,
    };
    let restore_plan = plan(&backup.manifest, backup.digest, &request).unwrap();
    restore::run(&repository, &backup, &restore_plan, &settings, &Unwatched).unwrap();
    let bin = bin_directory();
    // As whoever we are: the directory of the test is closed to the server's user.
    let programs = Programs { bin_directory: Some(&bin), major: major(), run_as: None, directory: place.path() };
    let verified = || checks::backup_manifest(&taken, &pgdata, &[], &programs, &Budget::ALL);
    assert_is(&verified(), Outcome::Passed, "with its WAL");
    fs::write(pgdata.join("pg_hba.conf"), "local all all trust\n").unwrap();
    assert_is(&verified(), Outcome::Failed, "pg_hba.conf");
    assert_is(&checks::backup_manifest(&taken, &pgdata, &["pg_hba.conf"], &programs, &Budget::ALL), Outcome::Passed, "");
    flip(&pgdata.join("global/pg_filenode.map"), 100);
    assert_is(&checks::backup_manifest(&taken, &pgdata, &["pg_hba.conf"], &programs, &Budget::ALL), Outcome::Failed, "pg_filenode.map");
    fs::remove_file(pgdata.join("backup_manifest")).unwrap();
    assert_is(&verified(), Outcome::Failed, "was not restored");
    let mut logical = taken.clone();
    logical.postgres.as_mut().unwrap().physical = None;
    assert_is(&checks::backup_manifest(&logical, &pgdata, &[], &programs, &Budget::ALL), Outcome::NotApplicable, "logical");
}
