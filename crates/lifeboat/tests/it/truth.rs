//! What the tables held when the backup was taken, against servers that were brought back to that very moment.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use lifeboat_core::drill::{CheckResult, Outcome};
use lifeboat_core::truth::{Table, Truth};
use lifeboat_engine::keys::Identities;
use lifeboat_engine::opened_backup;
use lifeboat_engine::postgres::{Connection, Dsn, Purpose};
use lifeboat_engine::progress::Unwatched;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::Trust;
use lifeboat_engine::store;
use lifeboat_engine::truth;
use serde_json::Value;

use crate::backup::Site;
use crate::cluster::{Cluster, Owner, Postgres, Stop, expect_success, restored_cluster};

/// Tables of which nothing but their rows tells whether they are right.
const TABLES: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'so so', 'it''s fine');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);
CREATE TABLE kinds (id int PRIMARY KEY, t text, n numeric, p positive, f4 real, f8 float8, b bytea, d date, ts timestamp, tz timestamptz,
    tt timetz, i interval, m money, u uuid, j json, jb jsonb, x xml, ir int4range, mr int8multirange, a int[], ta text[], tsv tsvector, ip inet, bits varbit(9),
    mood mood, pair pair, whole pair[], pt point, reg regclass, acl aclitem, c "char", lsn pg_lsn);
INSERT INTO kinds (id) VALUES (0);
INSERT INTO kinds SELECT n, E'it''s "quoted"\n\\ üñí 💧 ' || n, n / 7.0, n, n / 3.0, n / 3.0::float8, decode('00ff0a', 'hex'), '0044-03-15 BC', '2024-02-29 23:59:59.999999',
    '2024-03-31 02:30:00+01', '12:00:00+05:30', '1 year -2 months 3 days 04:05:06.7', 1234.56, '00000000-0000-0000-0000-000000000001', '{"a": [1, 2]}', '{"b": null}',
    '<a x="1">ü</a>', '[1,5)', '{[1,2),[5,9)}', '{1,NULL,3}', '{"a,b","c\"d",NULL}', 'a:1 b:2', '10.0.0.1/8', B'10101', 'so so', ROW(n, 'x,y')::pair,
    ARRAY[(1, 'a')::pair], '(1,2)', 'kinds', NULL, 'x', '1/ABC' FROM generate_series(1, 50) n;
INSERT INTO kinds (id, f4, f8, n, d, ts, tz) VALUES (1000, 'NaN', '-Infinity', 'NaN', 'infinity', '-infinity', 'infinity');
CREATE SCHEMA "Odd "" Schema";
CREATE TABLE "Odd "" Schema"."it's; a \ table" ("a b" int, "c""d" text, "select" int, "ünï" int);
INSERT INTO "Odd "" Schema"."it's; a \ table" VALUES (1, 'x', 2, 3);
CREATE TABLE nothing ();
INSERT INTO nothing DEFAULT VALUES;
INSERT INTO nothing DEFAULT VALUES;
CREATE TABLE parted (id int, at date) PARTITION BY RANGE (at);
CREATE TABLE parted_2023 PARTITION OF parted FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE parted_2024 PARTITION OF parted FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
INSERT INTO parted SELECT n, '2023-07-01'::date + n FROM generate_series(1, 400) n;
CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM kinds;
CREATE MATERIALIZED VIEW not_filled AS SELECT 1 AS n WITH NO DATA;
CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS n;
CREATE TABLE dropped_column (a int, gone int, b int DEFAULT 7, twice int GENERATED ALWAYS AS (a * 2) STORED);
INSERT INTO dropped_column (a, gone) VALUES (1, 1), (2, 2);
ALTER TABLE dropped_column DROP COLUMN gone, ADD COLUMN later text DEFAULT 'filled in';
CREATE TABLE still AS SELECT n, repeat('x', 100) AS filler FROM generate_series(1, 3000) n;
CREATE TABLE toasted AS SELECT n, (SELECT string_agg(md5(n::text || m), '') FROM generate_series(1, 400) m) AS long FROM generate_series(1, 20) n;
"#;

impl Site {
    /// The truth of a backup, as a drill reads it.
    fn truth(&self, taken: &Value) -> Option<Truth> {
        let text = |name: &str| fs::read_to_string(self.place(".config/lifeboat").join(name)).unwrap();
        let opened = store::open(self.repository().to_str().unwrap(), &store::StoreOptions::default(), false).unwrap();
        let repository = Repository::open(opened).unwrap();
        let trust = Trust::from_pems([text("signing.pub").as_str()]).unwrap();
        let id = taken["backup"].as_str().unwrap().parse().unwrap();
        let backup = opened_backup::open(&repository, &id, &trust).unwrap();
        truth::read(&repository, &backup, &Identities::parse(&text("identity.txt")).unwrap()).unwrap()
    }

    /// A backup with a configuration, which must succeed whatever becomes of the truth.
    fn backup_with(&self, cluster: &Cluster, copy: &str, configuration: &str) -> Value {
        let path = self.configuration(configuration);
        self.backup_of(cluster, copy).arg("--config").arg(path).run().success().json()
    }

    /// Restores the latest backup to the moment of its truth and stays there.
    fn restored_at(&self, name: &str, version: Postgres, truth: &Truth) -> Cluster {
        let to = self.place(name);
        self.restore_of("latest", &to, version).args(["--target-name", &truth.point.name]).run().success();
        let auto = to.join("postgresql.auto.conf");
        let settings = fs::read_to_string(&auto).unwrap() + "recovery_target_action = 'pause'\nhot_standby = on\n";
        fs::write(&auto, settings).unwrap();
        Owner::current().own_tree(&to);
        fs::set_permissions(&to, fs::Permissions::from_mode(0o700)).unwrap();
        paused(Cluster::start_existing(&to, version).unwrap_or_else(|failure| panic!("{failure}")))
    }
}

fn paused(cluster: Cluster) -> Cluster {
    let begun = Instant::now();
    while cluster.try_psql("SELECT pg_get_wal_replay_pause_state()").as_deref() != Ok("paused") {
        assert!(begun.elapsed() < Duration::from_secs(120), "recovery does not pause\n{}", cluster.log());
        thread::sleep(Duration::from_millis(20));
    }
    cluster
}

fn compare(cluster: &Cluster, truth: &Truth) -> CheckResult {
    truth::compare(&Dsn::parse(&cluster.dsn()).unwrap(), truth, &Unwatched)
}

fn table<'t>(truth: &'t Truth, database: &str, name: &str) -> &'t Table {
    let database = truth.databases.iter().find(|found| found.name == database).unwrap();
    database.tables.iter().find(|table| table.name == name).unwrap_or_else(|| panic!("no {name} in {database:?}"))
}

/// Stops a paused server, changes a file of it, and brings it back to the same place.
fn with_changed_file(mut cluster: Cluster, path: &str, change: impl FnOnce(&fs::File)) -> Cluster {
    cluster.stop(Stop::Fast);
    let file = fs::OpenOptions::new().read(true).write(true).open(cluster.data_directory().join(path)).unwrap();
    change(&file);
    drop(file);
    cluster.start_again().unwrap_or_else(|failure| panic!("{failure}"));
    paused(cluster)
}

#[test]
fn tables_of_a_busy_server_are_found_as_they_were_and_every_change_is_noticed() {
    for version in Postgres::ALL {
        let site = Site::new();
        let cluster = site.cluster(version).start();
        cluster.pgbench_init(1);
        // Only one of those installed for tests knows XML.
        let has_xml = cluster.try_psql("SELECT xml_is_well_formed('<a/>')").is_ok();
        cluster.psql(&TABLES.replace("x xml", if has_xml { "x xml" } else { "x text" }));
        cluster.psql("CREATE DATABASE \"host=other; drop\"; CREATE DATABASE closed; ALTER DATABASE closed ALLOW_CONNECTIONS false");
        cluster.psql_in("dbname='host=other; drop'", "CREATE TABLE elsewhere AS SELECT generate_series(1, 10) n");
        cluster.psql("CHECKPOINT");
        // A page as it was: what a lost write leaves behind.
        let stale_path = cluster.psql(
            "CREATE TABLE stale AS SELECT n, 0 AS version FROM generate_series(1, 50) n; CHECKPOINT; SELECT pg_relation_filepath('stale')",
        );
        let old_page = fs::read(cluster.data_directory().join(&stale_path)).unwrap()[..8192].to_vec();
        cluster.psql("UPDATE stale SET version = 1; CHECKPOINT");

        let load = cluster.pgbench_background();
        let taken = site.backup(&cluster, "local");
        load.stop();
        let truth = site.truth(&taken).unwrap_or_else(|| panic!("{}", taken["manifest"]["postgres"]["truth"]));
        assert_eq!(taken["manifest"]["warnings"], Value::Null, "{taken}");
        assert!(truth.point.own_wal);
        let stored = &taken["manifest"]["postgres"]["truth"]["stored"];
        assert_eq!((stored["point"].as_str(), stored["own_wal"].as_bool()), (Some(truth.point.name.as_str()), Some(true)));
        assert_eq!(table(&truth, "postgres", "kinds").found.unwrap().rows, 52);
        assert_eq!(table(&truth, "postgres", "nothing").found.unwrap().rows, 2);
        assert_eq!(table(&truth, "postgres", "pgbench_accounts").found.unwrap().rows, 100_000);
        assert_eq!(table(&truth, "host=other; drop", "elsewhere").found.unwrap().rows, 10);
        assert!(table(&truth, "postgres", "not_filled").unread.as_ref().unwrap().contains("not filled"));
        assert!(truth.databases.iter().all(|database| database.unknown.is_none() && database.name != "closed"));
        let tables = &truth.databases.iter().find(|database| database.name == "postgres").unwrap().tables;
        assert!(tables.iter().all(|table| table.name != "unlogged" && table.name != "parted" && table.ranges.is_empty()));
        let (all, read) = truth.counts();
        assert_eq!(all, read + 1, "{truth:?}");
        site.program().args(["verify", "latest"]).run().success();

        let restored = site.restored_at("restored", version, &truth);
        let result = compare(&restored, &truth);
        assert_eq!(result.outcome, Outcome::Passed, "{version}: {result:?}");
        let scope = result.scope.as_ref().unwrap();
        assert_eq!((scope.checked, scope.of), (read, all));

        // Zeroed, stale, and cut off: what no other check sees.
        let path = restored.psql("SELECT pg_relation_filepath('still')");
        let mut original = vec![0; 8192];
        let restored = with_changed_file(restored, &path, |file| {
            file.read_exact_at(&mut original, 8192).unwrap();
            file.write_all_at(&[0; 8192], 8192).unwrap();
        });
        let result = compare(&restored, &truth);
        assert_eq!((result.outcome, result.findings.len()), (Outcome::Failed, 1), "{result:?}");
        assert!(result.findings[0].starts_with("postgres.public.still: ") && result.findings[0].ends_with("there were 3000"), "{result:?}");
        let restored = with_changed_file(restored, &path, |file| file.write_all_at(&original, 8192).unwrap());
        assert_eq!(compare(&restored, &truth).outcome, Outcome::Passed);

        let mut original = vec![0; 8192];
        let restored = with_changed_file(restored, &stale_path, |file| {
            file.read_exact_at(&mut original, 0).unwrap();
            assert_ne!(original, old_page);
            file.write_all_at(&old_page, 0).unwrap();
        });
        let result = compare(&restored, &truth);
        assert_eq!((result.outcome, result.findings.len()), (Outcome::Failed, 1), "{result:?}");
        assert!(result.findings[0].starts_with("postgres.public.stale: "), "{result:?}");
        let restored = with_changed_file(restored, &stale_path, |file| file.write_all_at(&original, 0).unwrap());

        // From 16 on tables grow by several pages at once: the very last may be empty.
        let length = fs::metadata(restored.data_directory().join(&path)).unwrap().len();
        let restored = with_changed_file(restored, &path, |file| file.set_len(length / 16384 * 8192).unwrap());
        let result = compare(&restored, &truth);
        assert_eq!((result.outcome, result.findings.len()), (Outcome::Failed, 1), "{result:?}");
    }
}

/// A transaction that was being committed at that moment, a server elsewhere, and rows that were changed after recovery.
#[test]
fn what_is_not_of_the_same_moment_is_not_compared() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V18).start();
    let committed = cluster
        .psql("CREATE TABLE t AS SELECT generate_series(1, 100) n; BEGIN; INSERT INTO t VALUES (0); SELECT pg_current_xact_id(); COMMIT");
    // One that runs is in nobody's sight, then or later.
    let mut waiting = cluster.program("psql");
    let waiting = waiting.args(["-X", "-q", "-c", "BEGIN", "-c", "INSERT INTO t VALUES (-1)", "-c", "SELECT pg_sleep(3600)"]);
    let mut waiting = waiting.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let running = "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND wait_event = 'PgSleep'";
    let begun = Instant::now();
    while cluster.psql(running) != "1" {
        assert!(begun.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
    // One that ended later than it began makes it one of those between.
    cluster.psql("INSERT INTO t VALUES (-2)");
    let taken = site.backup(&cluster, "local");
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    let truth = site.truth(&taken).unwrap();
    assert_eq!(truth.point.snapshot.xip.len(), 1, "{truth:?}");
    let restored = site.restored_at("restored", Postgres::V18, &truth);
    assert_eq!(compare(&restored, &truth).outcome, Outcome::Passed);

    let committed: u64 = committed.parse().unwrap();
    let mut doubtful = truth.clone();
    doubtful.point.snapshot = format!("{committed}:{}:{committed}", truth.point.snapshot.xmax).parse().unwrap();
    let result = compare(&restored, &doubtful);
    assert_eq!(result.outcome, Outcome::NotChecked);
    assert!(result.reason.contains(&format!("transaction {committed} was being committed")), "{result:?}");
    doubtful.point.snapshot = format!("{committed}:{committed}:").parse().unwrap();
    let result = compare(&restored, &doubtful);
    assert!(result.outcome == Outcome::NotChecked && result.reason.contains("was being committed"), "{result:?}");
    let mut elsewhere = truth.clone();
    elsewhere.point.lsn.0 += 8;
    let result = compare(&restored, &elsewhere);
    assert!(result.outcome == Outcome::NotChecked && result.reason.contains("the truth is of"), "{result:?}");
    let mut absent = truth.clone();
    absent.databases[0].name = "absent".into();
    assert_eq!(compare(&restored, &absent).outcome, Outcome::Failed);

    // The control of a drill: recovery ends, a row is changed, and the comparison must notice.
    let dsn = Dsn::parse(&restored.dsn()).unwrap();
    restored.psql("SELECT pg_wal_replay_resume()");
    let begun = Instant::now();
    while restored.psql("SELECT pg_is_in_recovery()") != "f" {
        assert!(begun.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(20));
    }
    let result = compare(&restored, &truth);
    assert!(result.outcome == Outcome::NotChecked && result.reason.contains("not in recovery"), "{result:?}");
    let result = truth::compare_tables(&dsn, &truth, &Unwatched);
    assert_eq!(result.outcome, Outcome::Passed, "{result:?}");
    restored.psql("UPDATE t SET n = 1000 WHERE n = 50");
    let result = truth::compare_tables(&dsn, &truth, &Unwatched);
    assert_eq!(result.outcome, Outcome::Failed);
    assert_eq!(result.findings, ["postgres.public.t: as many rows as there were, 102, but not the same ones"]);
    restored.psql("DELETE FROM t WHERE n = 1000; INSERT INTO t VALUES (50); CREATE TABLE more ()");
    let result = truth::compare_tables(&dsn, &truth, &Unwatched);
    assert_eq!(result.findings, ["postgres.public.more: it is there, and was not"]);
    restored.psql("DROP TABLE more, t");
    let result = truth::compare_tables(&dsn, &truth, &Unwatched);
    assert_eq!(result.findings, ["postgres.public.t: it is not there"]);
}

#[test]
fn a_large_table_is_read_in_part_and_its_end_always() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V15).start();
    cluster.psql("CREATE TABLE big AS SELECT n, repeat('x', 200) AS filler FROM generate_series(1, 40000) n; CREATE TABLE small AS SELECT 1 n; CHECKPOINT");
    let taken = site.backup_with(&cluster, "local", "[drill]\ntruth_bytes = \"2MiB\"\ntruth_table_bytes = \"512KiB\"\n");
    let truth = site.truth(&taken).unwrap();
    let big = table(&truth, "postgres", "big");
    let blocks: u32 = big.ranges.iter().map(|(from, to)| to - from).sum();
    assert!((17..=64).contains(&blocks) && big.ranges.len() > 10, "{big:?}");
    let rows = big.found.unwrap().rows;
    assert!(rows > 100 && rows < 4000, "{big:?}");
    assert!(table(&truth, "postgres", "small").ranges.is_empty());
    let restored = site.restored_at("restored", Postgres::V15, &truth);
    let result = compare(&restored, &truth);
    assert_eq!(result.outcome, Outcome::Passed, "{result:?}");
    assert_eq!(result.scope.as_ref().unwrap().seed, Some(truth.seed));
    // The ranges are read as ranges, not by looking at everything.
    let connection = Connection::open(&Dsn::parse(&restored.dsn()).unwrap(), Purpose::Sql).unwrap();
    let plan = connection.query("EXPLAIN SELECT * FROM public.big WHERE ctid >= '(3,0)' AND ctid < '(5,0)'", &[]).unwrap();
    assert!(plan.iter().any(|row| row.text(0).unwrap().contains("Tid Range Scan")));
    drop(connection);
    let path = restored.psql("SELECT pg_relation_filepath('big')");
    let length = fs::metadata(restored.data_directory().join(&path)).unwrap().len();
    let restored = with_changed_file(restored, &path, |file| file.set_len(length - 8192).unwrap());
    let result = compare(&restored, &truth);
    assert_eq!((result.outcome, result.findings.len()), (Outcome::Failed, 1), "{result:?}");

    // A budget that one table uses up leaves the other for another time; none at all is said.
    let taken = site.backup_with(&cluster, "local", "[drill]\ntruth_bytes = \"8KiB\"\n");
    let truth = site.truth(&taken).unwrap();
    assert!(truth.counts().1 < 2, "{truth:?}");
    let taken = site.backup_with(&cluster, "local", "[drill]\ntruth_bytes = \"0\"\n");
    assert!(site.truth(&taken).is_none());
    assert!(taken["manifest"]["postgres"]["truth"]["missing"].as_str().unwrap().contains("drill.truth_bytes"));
}

/// Whoever locks a table, or may not be read by the role, does not keep a backup from being taken; and the backup keeps nobody waiting.
#[test]
fn locks_and_permissions_are_said_and_fail_nothing() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V16).start();
    cluster.psql("CREATE TABLE locked AS SELECT 1 n; CREATE TABLE open AS SELECT 1 n; CREATE TABLE secret AS SELECT 1 n; CREATE TABLE hidden AS SELECT 1 n");
    cluster.psql("ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; CREATE POLICY none ON hidden USING (false)");
    let role = "CREATE ROLE backup LOGIN REPLICATION; GRANT pg_read_all_settings TO backup; GRANT SELECT ON locked, open, hidden TO backup; \
                GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO backup";
    cluster.psql(role);
    let backup = |configuration: &str| {
        let path = site.configuration(configuration);
        let program = site.backup_of(&cluster, "local").env("LIFEBOAT_DSN", cluster.dsn().replace("user=postgres", "user=backup"));
        program.arg("--config").arg(path).run().success().json()
    };
    let taken = backup("");
    let missing = taken["manifest"]["postgres"]["truth"]["missing"].as_str().unwrap().to_owned();
    assert!(missing.contains("pg_create_restore_point"), "{missing}");
    assert!(taken["manifest"]["warnings"][0].as_str().unwrap().contains("pg_create_restore_point"), "{taken}");

    cluster.psql("GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO backup");
    let mut holder = cluster.program("psql");
    let holder = holder.args(["-X", "-q", "-c", "BEGIN", "-c", "LOCK TABLE locked", "-c", "SELECT pg_sleep(3600)"]);
    let mut holder = holder.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while cluster.psql("SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'locked'::regclass") != "1" {
        assert!(begun.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
    let taken = backup("");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(taken["manifest"]["warnings"], Value::Null);
    let truth = site.truth(&taken).unwrap_or_else(|| panic!("{}", taken["manifest"]["postgres"]["truth"]));
    let unread = |name: &str| table(&truth, "postgres", name).unread.clone().unwrap_or_default();
    assert!(unread("locked").contains("locked by somebody else"), "{truth:?}");
    assert!(unread("secret").contains("no permission") && unread("hidden").contains("row security"), "{truth:?}");
    assert_eq!(table(&truth, "postgres", "open").found.unwrap().rows, 1);
    let restored = site.restored_at("restored", Postgres::V16, &truth);
    let result = compare(&restored, &truth);
    assert_eq!(result.outcome, Outcome::Passed, "{result:?}");
    assert_eq!(result.scope.map(|scope| (scope.checked, scope.of)), Some((1, 4)));
}

/// Statements that do not keep to snapshots, while tables are read.
#[test]
fn what_is_changed_while_it_is_read_is_not_taken_for_the_truth() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V18).start();
    for n in 0..40 {
        cluster.psql(&format!("CREATE TABLE t{n} AS SELECT n, repeat('x', 500) AS filler FROM generate_series(1, 500) n"));
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    let done = std::sync::atomic::Ordering::SeqCst;
    let taken = thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let mut round = 0;
            while !stop.load(done) {
                let n = round % 10;
                cluster.psql(&format!(
                    "TRUNCATE t{n}; INSERT INTO t{n} SELECT {round}, 'y' FROM generate_series(1, 50); VACUUM FULL t1{n}; \
                     ALTER TABLE t2{n} ADD COLUMN c{round} int; DROP TABLE IF EXISTS u{n}; CREATE TABLE u{n} AS SELECT 1 n"
                ));
                round += 1;
            }
            round
        });
        let taken = site.backup(&cluster, "local");
        stop.store(true, done);
        assert!(changes.join().unwrap() > 2);
        taken
    });
    let Some(truth) = site.truth(&taken) else {
        panic!("{}", taken["manifest"]["postgres"]["truth"]);
    };
    assert!(truth.counts().1 >= 10, "{truth:?}");
    let restored = site.restored_at("restored", Postgres::V18, &truth);
    let result = compare(&restored, &truth);
    assert!(result.outcome == Outcome::Passed || result.reason.contains("being committed"), "{result:?}");
}

/// A stream ends where the backup does; the archive goes on. And a standalone copy comes back as before.
#[test]
fn a_stream_reaches_the_moment_through_the_archive_only() {
    let site = Site::new();
    let cluster = site.cluster(Postgres::V16).start();
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 10) n");
    let taken = site.backup(&cluster, "stream");
    let truth = site.truth(&taken).unwrap();
    assert!(!truth.point.own_wal && taken["manifest"]["postgres"]["truth"]["stored"]["own_wal"] == false);
    let to: PathBuf = site.place("refused");
    site.restore_of("latest", &to, Postgres::V16).args(["--target-name", &truth.point.name]).run().expect_code(22);
    assert!(!Path::new(&to).exists());
    // With the segment that an archive would have.
    let segment = cluster.psql(&format!("SELECT pg_walfile_name('{}'); SELECT pg_switch_wal()", truth.point.lsn));
    let segment = segment.lines().next().unwrap();
    let data = site.restore("restored", Postgres::V16);
    expect_success(
        std::process::Command::new("cp").arg("-a").arg(cluster.data_directory().join("pg_wal").join(segment)).arg(data.join("pg_wal")),
    );
    let auto = data.join("postgresql.auto.conf");
    let target = format!("recovery_target_name = '{}'\nrecovery_target_action = 'pause'\n", truth.point.name);
    fs::write(&auto, fs::read_to_string(&auto).unwrap() + &target).unwrap();
    let restored = paused(Cluster::start_existing(&data, Postgres::V16).unwrap_or_else(|failure| panic!("{failure}")));
    assert_eq!(compare(&restored, &truth).outcome, Outcome::Passed);
    drop(restored);

    let logical = site.backup(&cluster, "logical");
    assert!(logical["manifest"]["postgres"]["truth"]["missing"].as_str().unwrap().contains("logical"), "{logical}");
    let local = site.backup(&cluster, "local");
    let data = site.restore("latest", Postgres::V16);
    let restored = restored_cluster(&data, Postgres::V16).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(restored.psql("SELECT count(*) FROM t"), "10", "{local}");
}
