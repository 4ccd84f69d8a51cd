//! The place of a drill, against real servers: it is made nowhere near production, nothing in it acts, nobody comes in or gets out, WAL
//! comes through files or the server stops, and nothing is left.

#[expect(dead_code, reason = "shared with the tests of the PostgreSQL client, which use more of it")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::backup::CopyChoice;
use lifeboat_core::drill::{Isolation, Outcome};
use lifeboat_core::restore::{RestoreRequest, plan};
use lifeboat_core::truth::Budget;
use lifeboat_core::wal::fetch::Bounds;
use lifeboat_core::wal::file::{WalFile, WalPredicate};
use lifeboat_core::wal::{SegmentSize, SystemId};
use lifeboat_engine::backup::{self, BackupRequest, PostgresSource, Protection};
use lifeboat_engine::drill::feeder::{Feeder, Source};
use lifeboat_engine::drill::place::{
    Goal, LeftoverState, Place, PlaceError, PlaceSettings, Server, ServerError, Start, StopMode, leftovers,
};
use lifeboat_engine::keys::{Identities, Recipient, generate_identity};
use lifeboat_engine::opened_backup;
use lifeboat_engine::postgres::{Connection, Dsn, Purpose};
use lifeboat_engine::progress::Unwatched;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::restore::{self, RestoreSettings};
use lifeboat_engine::signing::{KeyFileSigner, SigningKey, Trust};
use lifeboat_engine::store::{Fault, Faults, FaultyStore, MemoryStore, Rule};
use lifeboat_engine::wal::{Cluster as WalOf, WalReader, WalWriter};
use support::Cluster;

const HOST: &str = "host";

/// The versions that are here: the oldest one that Debian has, and the newest.
fn versions() -> Vec<(u32, PathBuf)> {
    let newest = std::env::var_os("LIFEBOAT_TEST_PG18_BIN").map(|bin| (18, PathBuf::from(bin)));
    std::iter::once((15, PathBuf::from("/usr/lib/postgresql/15/bin"))).chain(newest).collect()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory that places can be made in, within reach of everybody.
fn parent() -> tempfile::TempDir {
    let parent = tempfile::tempdir().unwrap();
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
    parent
}

fn settings(parent: &Path, drill: &str) -> PlaceSettings {
    PlaceSettings {
        drill: drill.into(),
        parent: parent.to_owned(),
        temporary: std::env::temp_dir(),
        forbidden: vec!["/nonexistent/production".into()],
        room: 1,
        user: None,
        require_network: false,
        host: HOST.into(),
    }
}

/// Keys, and a repository with faults in front of it.
struct World {
    signer: KeyFileSigner,
    trust: Trust,
    identities: Identities,
    recipient: Recipient,
    repository: Repository,
    faults: Faults,
    scratch: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
        let trust = Trust::new([signer.public_key().clone()]);
        let (text, recipient) = generate_identity(Timestamp::UNIX_EPOCH);
        let (store, faults) = FaultyStore::new(Box::new(MemoryStore::default()));
        Self {
            signer,
            trust,
            identities: Identities::parse(&text).unwrap(),
            recipient,
            repository: Repository::init(Box::new(store), Timestamp::UNIX_EPOCH, "test").unwrap(),
            faults,
            scratch: tempfile::tempdir().unwrap(),
        }
    }

    fn protection(&self) -> Protection {
        Protection::Recipients { recipients: vec![self.recipient.clone()], host: None }
    }

    fn back_up(&self, cluster: &Cluster, dsn: Dsn) {
        let source = PostgresSource {
            dsn,
            data_directory: Some(cluster.data()),
            copy: CopyChoice::Local,
            bin_directory: None,
            scratch: self.scratch.path().to_owned(),
            fast_checkpoint: true,
            record_only: false,
            check_pages: true,
            truth: Budget::default(),
        };
        let request = BackupRequest {
            name: "conductor".parse().unwrap(),
            host: HOST.into(),
            program: "test".into(),
            postgres: Some(source),
            artifacts: None,
            protection: self.protection(),
            signer: &self.signer,
            workers: 1,
            memory_bytes: 64 << 20,
            level: 1,
            bandwidth: None,
            audit: None,
        };
        backup::run(&self.repository, &request, &Unwatched).unwrap();
    }

    /// Restores into the place, and says what was planned.
    fn restore(&self, place: &Place) -> lifeboat_core::restore::DatabasePlan {
        let newest = self.repository.backups().unwrap().into_iter().next_back().unwrap();
        let backup = opened_backup::open(&self.repository, &newest, &self.trust).unwrap();
        let request = RestoreRequest { pgdata: Some(place.pgdata().display().to_string()), ..RestoreRequest::default() };
        let plan = plan(&backup.manifest, backup.digest, &request).unwrap();
        let settings = RestoreSettings {
            identities: self.identities.clone(),
            workers: 1,
            bin_directory: None,
            start_timeout: Duration::from_secs(60),
            probe: None,
            spool: None,
            temporary: std::env::temp_dir(),
            owner: place.owner(),
        };
        restore::run(&self.repository, &backup, &plan, &settings, &Unwatched).unwrap();
        plan.database.unwrap()
    }

    /// Puts every finished segment of a directory into the repository; gives how many.
    fn archive(&self, of: WalOf, directory: &Path) -> usize {
        let protection = self.protection();
        let writer = WalWriter::new(&self.repository, of, &self.signer, &self.trust, &protection, 1);
        let mut count = 0;
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let Ok(file @ WalFile::Segment(_)) = WalFile::from_file_name(&name, of.segment_size) else { continue };
            let bytes = fs::read(entry.path()).unwrap();
            let magic = u16::from_le_bytes([bytes[0], bytes[1]]);
            writer.claim_cluster(magic, None, Timestamp::UNIX_EPOCH, "test").unwrap();
            writer.put_bytes(file, &WalPredicate::new(bytes.len() as u64, of.segment_size), &bytes).unwrap();
            count += 1;
        }
        count
    }

    fn reader(&self, of: WalOf) -> WalReader<'_> {
        WalReader::new(&self.repository, of, &self.trust, self.identities.clone())
    }
}

fn sql(cluster: &Cluster, statements: &[&str]) {
    let connection = cluster.connect();
    for statement in statements {
        connection.execute(statement, &[]).unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

fn one(server: &Server, query: &str) -> String {
    server.connect("postgres").unwrap().query(query, &[]).unwrap().one().unwrap().text(0).unwrap().to_owned()
}

fn held(isolation: &[Isolation]) -> BTreeMap<String, (bool, String)> {
    isolation.iter().map(|found| (found.what.clone(), (found.holds, found.how.clone()))).collect()
}

#[test]
fn production_is_refused_in_every_disguise() {
    let home = parent();
    let at = |name: &str| home.path().join(name);
    for name in ["prod/pgdata/base", "prod/store", "elsewhere", "found/global", "repo/packs"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    symlink(at("prod/pgdata"), at("link")).unwrap();
    symlink(at("link"), at("link-of-link")).unwrap();
    fs::write(at("found/global/pg_control"), b"").unwrap();
    fs::write(at("repo/lifeboat.json"), b"{}").unwrap();
    fs::write(at("file"), b"").unwrap();
    let refused = |at: &Path, forbidden: &Path| {
        let settings = PlaceSettings { forbidden: vec![forbidden.to_owned()], ..settings(at, "d") };
        let error = Place::make(&settings).expect_err("it is production");
        assert!(!at.join("d").exists(), "{error}");
        error
    };
    let pgdata = at("prod/pgdata");
    for (parent, forbidden) in [
        (pgdata.clone(), pgdata.clone()),
        (at("link"), pgdata.clone()),
        (at("link-of-link"), pgdata.clone()),
        (pgdata.clone(), at("link-of-link")),
        (at("elsewhere/../prod/./pgdata"), pgdata.clone()),
        (at("prod/pgdata/base"), pgdata.clone()),
        (at("link/base"), pgdata.clone()),
        (at("prod"), pgdata.clone()),
        (at("prod"), at("link")),
        // What is not there yet.
        (at("prod"), at("prod/new/place")),
    ] {
        let error = refused(&parent, &forbidden);
        assert!(matches!(error, PlaceError::Forbidden { .. }), "{parent:?} {forbidden:?}: {error}");
    }
    // What nobody named.
    for parent in [at("found"), at("found/global"), at("repo"), at("repo/packs")] {
        let error = refused(&parent, &pgdata);
        assert!(matches!(error, PlaceError::Inside { .. }), "{error}");
    }
    assert!(matches!(refused(&at("file"), &pgdata), PlaceError::NotDirectory { .. }));
    assert!(matches!(refused(&at("missing"), &pgdata), PlaceError::NotDirectory { .. }));
    let error = Place::make(&PlaceSettings { room: u64::MAX, ..settings(&at("elsewhere"), "d") }).unwrap_err();
    assert!(matches!(error, PlaceError::NoRoom { .. }));
    for name in ["", "..", "a/b", ".hidden", "-x", "a b"] {
        assert!(matches!(Place::make(&settings(&at("elsewhere"), name)), Err(PlaceError::Name(_))));
    }
    if is_root() {
        for user in ["root", "nobody-of-that-name"] {
            let error = Place::make(&PlaceSettings { user: Some(user.into()), ..settings(&at("elsewhere"), "d") }).unwrap_err();
            assert!(matches!(error, PlaceError::User { .. }), "{error}");
        }
        // Bind mounts; where they are not allowed, there is nothing to disguise with.
        fs::create_dir(at("mounted")).unwrap();
        let bind = |what: &Path, to: &Path| {
            Command::new("mount").arg("--bind").arg(what).arg(to).stderr(Stdio::null()).status().unwrap().success()
        };
        for what in [pgdata.clone(), at("prod/pgdata/base"), at("prod")] {
            if bind(&what, &at("mounted")) {
                let tried = Place::make(&PlaceSettings { forbidden: vec![pgdata.clone()], ..settings(&at("mounted"), "d") });
                assert!(Command::new("umount").arg(at("mounted")).status().unwrap().success());
                assert!(matches!(tried, Err(PlaceError::Forbidden { .. })), "{what:?}: {tried:?}");
            } else {
                eprintln!("bind mounts are not allowed here");
            }
        }
    }
    assert_eq!(fs::read_dir(at("elsewhere")).unwrap().count(), 0, "nothing is left of a place that was refused");
    // And beside production it is made, once.
    let beside = PlaceSettings { forbidden: vec![pgdata], ..settings(&at("elsewhere"), "d") };
    let place = Place::make(&beside).unwrap();
    assert!(matches!(Place::make(&beside), Err(PlaceError::Make { .. })));
    assert!(place.directory().join("wal/want").is_dir() && !place.pgdata().exists());
    let result = place.remove();
    assert_eq!(result.outcome, Outcome::Passed, "{result:?}");
    assert_eq!(fs::read_dir(at("elsewhere")).unwrap().count(), 0);
}

#[test]
fn a_socket_whose_path_would_be_too_long_is_elsewhere_and_goes_with_the_place() {
    let home = parent();
    let long = home.path().join("l".repeat(90));
    fs::create_dir(&long).unwrap();
    let temporary = parent();
    let place = Place::make(&PlaceSettings { temporary: temporary.path().to_owned(), ..settings(&long, "d") }).unwrap();
    assert!(place.socket().starts_with(temporary.path()));
    assert_eq!(fs::metadata(place.socket()).unwrap().mode() & 0o777, 0o700);
    let socket = place.socket().to_owned();
    assert_eq!(place.remove().outcome, Outcome::Passed);
    assert!(!socket.exists());
}

#[test]
fn a_directory_that_the_servers_user_cannot_enter_is_said_and_left_as_it_was() {
    if !is_root() {
        return;
    }
    let home = parent();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let error = Place::make(&settings(home.path(), "d")).unwrap_err();
    assert!(matches!(error, PlaceError::OutOfReach { .. }), "{error}");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn nothing_of_a_restored_cluster_acts_and_nobody_comes_in() {
    for (major, bin) in versions() {
        let world = World::new();
        // Whoever connects to it from a clone has got out.
        let outside = TcpListener::bind("127.0.0.1:0").unwrap();
        outside.set_nonblocking(true).unwrap();
        let port = outside.local_addr().unwrap().port();
        let traces = parent();
        fs::set_permissions(traces.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let trace = |name: &str| format!("touch {}", traces.path().join(name).display());
        let mut cluster = Cluster::init_by(&bin);
        // In `postgresql.conf`, which does not count in a drill: the original itself shall not act either.
        cluster.configure("max_logical_replication_workers = 0\narchive_mode = on\narchive_command = 'true'\nmax_connections = 37\n");
        cluster.start();
        sql(&cluster, &["CREATE TABLE public.t AS SELECT n FROM generate_series(1, 1000) AS n"]);
        let connection = format!("host=127.0.0.1 port={port} user=x dbname=x connect_timeout=2");
        sql(
            &cluster,
            &[
                &format!("CREATE SUBSCRIPTION s CONNECTION '{connection}' PUBLICATION p WITH (connect = false, slot_name = 's')"),
                "ALTER SUBSCRIPTION s ENABLE",
                "ALTER SYSTEM SET archive_mode = 'on'",
                &format!("ALTER SYSTEM SET archive_command = '{}; false'", trace("archived")),
                &format!("ALTER SYSTEM SET archive_cleanup_command = '{}'", trace("cleaned")),
                &format!("ALTER SYSTEM SET recovery_end_command = '{}'", trace("ended")),
                &format!("ALTER SYSTEM SET restore_command = '{}; false'", trace("asked")),
                &format!("ALTER SYSTEM SET primary_conninfo = '{connection}'"),
                "ALTER SYSTEM SET primary_slot_name = 's'",
                "ALTER SYSTEM SET listen_addresses = '*'",
                "ALTER SYSTEM SET synchronous_standby_names = 'nobody'",
                "ALTER SYSTEM SET shared_preload_libraries = 'pg_cron, no_such_library'",
                "ALTER SYSTEM SET max_logical_replication_workers = 4",
                "ALTER SYSTEM SET autovacuum = on",
                "ALTER SYSTEM SET zero_damaged_pages = on",
                "ALTER ROLE postgres SET zero_damaged_pages = on",
                "ALTER ROLE postgres SET default_transaction_read_only = on",
                "ALTER DATABASE postgres SET ignore_checksum_failure = on",
            ],
        );
        // The archiver of the original has nothing to do with it any more.
        world.back_up(&cluster, cluster.dsn().with("options", "-c default_transaction_read_only=off"));
        cluster.stop();
        let before = fs::read_dir(traces.path()).unwrap().count();
        assert_eq!(before, 0, "the original is started with other settings");

        let home = parent();
        let place = Place::make(&PlaceSettings { forbidden: vec![cluster.data()], ..settings(home.path(), "acts") }).unwrap();
        let plan = world.restore(&place);
        if let Some((uid, _)) = place.owner() {
            assert_eq!(fs::metadata(place.pgdata()).unwrap().uid(), uid);
            assert_eq!(fs::metadata(place.pgdata().join("global/pg_control")).unwrap().uid(), uid);
        }
        let mut start = Start::of(&plan, Goal::Paused, Duration::from_secs(120));
        start.target.push(("recovery_target".into(), "immediate".into()));
        start.preload = "pg_cron, no_such_library".into();
        let error = Server::start(&place, Some(&bin), major, &start).unwrap_err();
        assert!(matches!(&error, ServerError::MissingLibrary { library } if library.contains("no_such_library")), "{error}");
        start.preload = "pg_cron".into();
        let server = Server::start(&place, Some(&bin), major, &start).unwrap_or_else(|error| panic!("{major}: {error}"));
        assert_eq!(one(&server, "SELECT pg_is_in_recovery()::text || (SELECT count(*) FROM public.t)"), "true1000");
        assert!(one(&server, "SHOW max_connections").parse::<u32>().unwrap() >= 37);
        let times = server.times();
        assert!(
            times.consistent.is_some() && times.paused.is_some() && times.first_read.is_some() && times.first_write.is_none(),
            "{times:?}"
        );

        let check = |server: &Server| {
            let isolation = server.isolation();
            let found = held(&isolation);
            for what in ["directory", "socket", "archive", "replication", "jobs"] {
                assert!(found[what].0, "{major}, {what}: {found:?}");
            }
            assert!(found["jobs"].1.contains("pg_cron"), "{found:?}");
            if is_root() {
                assert!(found["user"].0 && found["network"].0, "{found:?}");
                let theirs = fs::read_link(format!("/proc/{}/ns/net", server.pid())).unwrap();
                assert_ne!(theirs, fs::read_link("/proc/self/ns/net").unwrap());
                let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
                assert!(status.contains("NoNewPrivs:\t1") && status.contains("Groups:\t \n"), "{status}");
            }
            for (setting, value) in [
                ("zero_damaged_pages", "off"),
                ("ignore_checksum_failure", "off"),
                ("default_transaction_read_only", "off"),
                ("autovacuum", "off"),
            ] {
                assert_eq!(one(server, &format!("SHOW {setting}")), value, "{setting}");
            }
        };
        check(&server);
        // Somebody else on this host does not get to the socket, whoever they say they are.
        if is_root() {
            let psql = Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
                .arg(bin.join("psql"))
                .args(["-h", &place.socket().display().to_string(), "-U", server.superuser(), "-d", "postgres", "-c", "SELECT 1"])
                .current_dir("/")
                .output();
            let output = psql.unwrap();
            assert!(!output.status.success());
        }
        let replication = Connection::open(&server.dsn("postgres"), Purpose::Replication);
        assert!(replication.is_err(), "nobody replicates from it");

        // On to the end, and out of recovery.
        let start = Start { goal: Goal::Writable, target: plan.settings.clone(), ..start };
        let server = server.restart(Some(&bin), &start).unwrap_or_else(|error| panic!("{major}: {error}"));
        check(&server);
        let connection = server.connect("postgres").unwrap();
        connection.execute("INSERT INTO public.t SELECT 1", &[]).unwrap();
        connection.execute("SELECT pg_switch_wal()", &[]).unwrap();
        connection.execute("CHECKPOINT", &[]).unwrap();
        // What runs a program runs it behind the wall, and reaches nothing.
        let reach = format!("COPY (SELECT 1) TO PROGRAM 'exec 3<>/dev/tcp/127.0.0.1/{port}'");
        assert!(connection.execute(&reach, &[]).is_err());
        let finds = |path: &Path| {
            connection.execute(&format!("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; ls -d {}/* > /dev/null'", path.display()), &[])
        };
        finds(Path::new("/usr")).unwrap();
        if is_root() {
            // Sockets of other programs, and production's files, are not there to be found, whatever their permissions are.
            fs::set_permissions(cluster.data(), fs::Permissions::from_mode(0o755)).unwrap();
            assert!(cluster.data().join("base").is_dir() && finds(&cluster.data()).is_err());
            assert!(finds(Path::new("/run")).is_err());
        }
        drop(connection);
        let recovered = server.recovered().unwrap();
        assert!(
            !recovered.in_recovery && recovered.lsn >= plan.stop_lsn.unwrap() && recovered.timeline == plan.timeline.unwrap(),
            "{recovered:?}"
        );
        assert!(server.times().first_write.is_some() && server.times().recovered.is_some());
        // Once more, as after a restart: what was written is there.
        let server = server.restart(Some(&bin), &start).unwrap();
        assert_eq!(one(&server, "SELECT count(*) FROM public.t"), "1001");
        server.stop(StopMode::Fast).unwrap();
        assert_eq!(fs::read_dir(traces.path()).unwrap().count(), 0, "no command of production ran");
        assert!(outside.accept().is_err(), "nobody connected");

        let (directory, owner) = (place.directory().to_owned(), place.owner());
        let result = place.remove();
        assert_eq!(result.outcome, Outcome::Passed, "{result:?}");
        assert!(!directory.exists());
        if let Some((uid, _)) = owner {
            let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| Some(entry.metadata().ok()?.uid()));
            assert_eq!(processes.filter(|found| *found == uid).count(), 0);
        }
    }
}

/// A cluster with a backup, and WAL behind it in an archive; its superuser has another name.
struct Original {
    cluster: Cluster,
    of: WalOf,
    /// Where the first part of what came after the backup ends.
    middle: String,
}

const SUPERUSER: &str = "Röot of 'all'";

impl Original {
    fn new(world: &World, bin: &Path) -> Self {
        let mut cluster = Cluster::init_by(bin);
        let archive = cluster.make_directory("archive");
        cluster.configure(&format!(
            "archive_mode = on\narchive_command = 'cp %p {}/%f'\nmax_connections = 20\nmax_wal_size = 1GB\n",
            archive.display()
        ));
        cluster.start();
        sql(&cluster, &["CREATE ROLE other SUPERUSER LOGIN", "CREATE TABLE public.t (n int)"]);
        let dsn = cluster.dsn();
        let connect = |user: &str| Connection::open(&dsn.clone().with("user", user), Purpose::Sql).unwrap();
        let other = connect("other");
        other.execute(&format!("ALTER ROLE postgres RENAME TO \"{SUPERUSER}\""), &[]).unwrap();
        other.execute("CREATE ROLE postgres LOGIN", &[]).unwrap();
        drop(other);
        world.back_up(&cluster, dsn.clone().with("user", SUPERUSER));
        let fill = |connection: &Connection, rows: u32| {
            connection.execute("INSERT INTO public.t SELECT generate_series(1, $1::int)", &[Some(&rows.to_string())]).unwrap();
            connection.query("SELECT pg_current_wal_lsn()::text", &[]).unwrap().one().unwrap().text(0).unwrap().to_owned()
        };
        let connection = connect(SUPERUSER);
        fill(&connection, 1000);
        connection.execute("SELECT pg_switch_wal()", &[]).unwrap();
        drop(connection);
        // A setting that a standby needs is raised behind the backup.
        cluster.stop();
        cluster.configure("max_connections = 150\n");
        cluster.start();
        let connection = connect(SUPERUSER);
        let middle = fill(&connection, 200);
        for _ in 0..4 {
            fill(&connection, 30);
            connection.execute("SELECT pg_switch_wal()", &[]).unwrap();
        }
        let system_id = connection.query("SELECT system_identifier FROM pg_control_system()", &[]).unwrap();
        let system_id = SystemId(system_id.one().unwrap().parse::<i64>("system_identifier").unwrap().cast_unsigned());
        let of = WalOf { system_id, segment_size: SegmentSize::new(16 << 20).unwrap() };
        let waiting = "SELECT last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1) AS done FROM pg_stat_archiver";
        let give_up = Instant::now() + Duration::from_secs(60);
        while !connection.query(waiting, &[]).unwrap().one().unwrap().bool("done").unwrap_or(false) {
            assert!(Instant::now() < give_up);
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(connection);
        cluster.stop();
        assert!(world.archive(of, &archive) >= 5);
        Self { cluster, of, middle }
    }
}

fn timelines(place: &Place) -> usize {
    fs::read_dir(place.pgdata().join("pg_wal"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".history"))
        .count()
}

#[test]
fn wal_comes_through_files_first_to_a_target_and_then_to_the_end() {
    for (major, bin) in versions() {
        let world = World::new();
        let original = Original::new(&world, &bin);
        let home = parent();
        let forbidden = vec![original.cluster.data()];
        // A name that a shell and PostgreSQL would both take apart.
        let odd = home.path().join("it's 100% odd");
        fs::create_dir(&odd).unwrap();
        let place = Place::make(&PlaceSettings { forbidden, ..settings(&odd, "feeds") }).unwrap();
        let plan = world.restore(&place);
        let reader = world.reader(original.of);
        let bounds = Bounds::default();
        let source = Source { reader: &reader, bounds: &bounds, allow_empty: false };
        std::thread::scope(|scope| {
            let feeder = Feeder::start(scope, &place, source, 2, 64 << 20).unwrap();
            let mut start = Start::of(&plan, Goal::Paused, Duration::from_secs(120));
            start.restore_command = Some(feeder.command());
            start.target.push(("recovery_target_lsn".into(), original.middle.clone()));
            let server = Server::start(&place, Some(&bin), major, &start).unwrap_or_else(|error| panic!("{major}: {error}"));
            assert_eq!(server.superuser(), SUPERUSER);
            assert_eq!(one(&server, "SELECT count(*) FROM public.t"), "1200");
            assert_eq!(one(&server, "SHOW max_connections"), "150");
            let recovered = server.recovered().unwrap();
            assert!(recovered.in_recovery && recovered.last_commit.is_some(), "{recovered:?}");
            let halfway = feeder.fed();
            assert!(halfway.segments >= 1 && halfway.absent.iter().all(|file| file.ends_with(".history")), "{halfway:?}");

            start.goal = Goal::Writable;
            start.target = plan.settings.clone();
            let server = server.restart(Some(&bin), &start).unwrap_or_else(|error| panic!("{major}: {error}"));
            assert_eq!(one(&server, "SELECT count(*) FROM public.t"), "1320");
            assert_eq!(server.recovered().unwrap().timeline, recovered.timeline);
            let fed = feeder.stop();
            assert!(fed.segments > halfway.segments && fed.failed.is_empty(), "{fed:?}");
            assert_eq!(fed.bytes, fed.segments * (16 << 20));
            assert!(fed.ahead >= 1, "fetched ahead: {fed:?}");
            assert!(fed.absent.iter().any(|file| !file.ends_with(".history")), "the archive ends: {fed:?}");
            assert!(fed.fetching > Duration::ZERO && fed.waited > Duration::ZERO);
            server.stop(StopMode::Immediate).unwrap();
        });
        let result = place.remove();
        assert_eq!(result.outcome, Outcome::Passed, "{result:?}");
    }
}

#[test]
fn a_store_that_fails_in_the_middle_stops_the_server_and_does_not_promote_it() {
    for (major, bin) in versions() {
        let world = World::new();
        let original = Original::new(&world, &bin);
        let home = parent();
        let reader = world.reader(original.of);
        let bounds = Bounds::default();
        let source = Source { reader: &reader, bounds: &bounds, allow_empty: false };
        for (name, fault) in [("denied", Fault::Denied), ("corrupt", Fault::Corrupt), ("transient", Fault::Transient)] {
            world.faults.plan(&[]);
            let place = Place::make(&settings(home.path(), name)).unwrap();
            let plan = world.restore(&place);
            std::thread::scope(|scope| {
                let feeder = Feeder::start(scope, &place, source, 1, 1).unwrap();
                let mut start = Start::of(&plan, Goal::Writable, Duration::from_secs(120));
                start.restore_command = Some(feeder.command());
                // After a few objects were read.
                world.faults.plan(&[Rule { operation: None, from: 12, count: usize::MAX, fault }]);
                let error = Server::start(&place, Some(&bin), major, &start).expect_err("it must not come up");
                let fed = feeder.stop();
                assert!(matches!(error, ServerError::Died { .. }), "{major}, {name}: {error}");
                let text = error.to_string();
                assert!(text.contains("lifeboat drill: ") && text.contains("could not restore file"), "{text}");
                assert!(!fed.failed.is_empty(), "{fed:?}");
            });
            assert_eq!(timelines(&place), 0, "no timeline was begun");
            assert!(place.pgdata().join("recovery.signal").exists(), "it is still in recovery");
            world.faults.plan(&[]);
            let result = place.remove();
            assert_eq!(result.outcome, Outcome::Passed, "{result:?}");
        }
    }
}

#[test]
fn a_feeder_that_ends_stops_the_server_and_does_not_promote_it() {
    let (major, bin) = versions().remove(0);
    let world = World::new();
    let original = Original::new(&world, &bin);
    let home = parent();
    let place = Place::make(&settings(home.path(), "alone")).unwrap();
    let plan = world.restore(&place);
    let reader = world.reader(original.of);
    let bounds = Bounds::default();
    let source = Source { reader: &reader, bounds: &bounds, allow_empty: false };
    let command = std::thread::scope(|scope| Feeder::start(scope, &place, source, 1, 1).unwrap().command());
    let mut start = Start::of(&plan, Goal::Writable, Duration::from_secs(120));
    start.restore_command = Some(command);
    let error = Server::start(&place, Some(&bin), major, &start).expect_err("nobody brings WAL");
    assert!(error.to_string().contains("the drill has ended"), "{error}");
    assert_eq!(timelines(&place), 0);
    assert_eq!(place.remove().outcome, Outcome::Passed);
}

#[test]
fn the_command_notices_that_the_process_which_it_waits_for_died() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["want", "ready", "answer"] {
        fs::create_dir(directory.path().join(name)).unwrap();
    }
    let mut process = Command::new("sleep").arg("600").spawn().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    let born = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned();
    fs::write(directory.path().join("beat"), format!("{} {born} 0\n", process.id())).unwrap();
    let file = "000000010000000000000007";
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/drill/feed.sh");
    let ask = || {
        let mut command = Command::new("/bin/sh");
        command
            .arg(script)
            .arg(directory.path())
            .arg(file)
            .arg(directory.path().join("target"))
            .stderr(Stdio::piped())
            .stdin(Stdio::null());
        command.spawn().unwrap()
    };
    let wanted =
        || fs::read_dir(directory.path().join("want")).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap()).next();
    let waiting = ask();
    let give_up = Instant::now() + Duration::from_secs(30);
    while wanted().is_none() {
        assert!(Instant::now() < give_up);
        std::thread::sleep(Duration::from_millis(5));
    }
    // It has to see it alive once: a round takes ten milliseconds and a little.
    std::thread::sleep(Duration::from_millis(300));
    process.kill().unwrap();
    process.wait().unwrap();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(204), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(wanted(), None);
    // What lies ready is taken without asking anybody; an answer of another question is none.
    fs::write(directory.path().join("ready").join(file), b"wal").unwrap();
    fs::write(directory.path().join("answer").join(format!("{file}.1.absent")), b"").unwrap();
    assert_eq!(ask().wait_with_output().unwrap().status.code(), Some(0));
    assert_eq!(fs::read(directory.path().join("target")).unwrap(), b"wal");
    fs::remove_file(directory.path().join("beat")).unwrap();
    let output = ask().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(203), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A stopped cluster's files, put into a place as a restore would.
fn plant(place: &Place, cluster: &Cluster) {
    let copied = Command::new("cp").arg("-a").arg(cluster.data()).arg(place.pgdata()).status().unwrap();
    assert!(copied.success());
    if let Some((uid, gid)) = place.owner() {
        assert!(Command::new("chown").arg("-R").arg(format!("{uid}:{gid}")).arg(place.pgdata()).status().unwrap().success());
    }
}

fn plain_start() -> Start {
    Start {
        goal: Goal::Writable,
        target: Vec::new(),
        restore_command: None,
        hot_standby: false,
        preload: String::new(),
        settings: BTreeMap::new(),
        timeout: Duration::from_secs(120),
    }
}

/// Not a test by itself: the drill that is killed in the next one.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn a_drill_to_be_killed() {
    let Some(parent) = std::env::var_os("LIFEBOAT_TEST_DRILL_PARENT") else { return };
    let (major, bin) = versions().remove(0);
    let cluster = Cluster::init_by(&bin);
    let place = Place::make(&settings(Path::new(&parent), "killed")).unwrap();
    plant(&place, &cluster);
    let server = Server::start(&place, Some(&bin), major, &plain_start()).unwrap();
    println!("\nserver {}", server.pid());
    drop(cluster);
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn what_a_killed_drill_leaves_is_found_and_removed_once_its_process_is_gone() {
    let home = parent();
    let mut drill = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_drill_to_be_killed", "--ignored", "--nocapture"])
        .env("LIFEBOAT_TEST_DRILL_PARENT", home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(drill.stdout.take().unwrap()).lines();
    let server: u32 = lines.find_map(|line| line.unwrap().strip_prefix("server ").map(str::to_owned)).expect("it runs").parse().unwrap();
    let runs = || fs::read_to_string(format!("/proc/{server}/comm")).is_ok();

    // Its own are no leftovers, nor what somebody else put there.
    fs::create_dir(home.path().join("something")).unwrap();
    let only = || leftovers(home.path(), HOST).unwrap().into_iter().next().unwrap();
    assert_eq!((only().drill.as_str(), only().state), ("killed", LeftoverState::Running));
    assert_eq!(only().process, drill.id());
    assert_eq!(only().remove(HOST), Err(LeftoverState::Running));
    assert!(runs());
    drill.kill().unwrap();
    drill.wait().unwrap();
    assert!(runs(), "the server runs on: that is what is to be found");
    let elsewhere = leftovers(home.path(), "another host").unwrap();
    assert_eq!(elsewhere[0].state, LeftoverState::OtherHost);
    assert_eq!(elsewhere[0].clone().remove("another host"), Err(LeftoverState::OtherHost));
    assert_eq!(only().state, LeftoverState::Abandoned);
    assert_eq!(only().remove(HOST), Ok(Vec::new()));
    assert!(!home.path().join("killed").exists() && home.path().join("something").exists());
    let give_up = Instant::now() + Duration::from_secs(10);
    while runs() {
        assert!(Instant::now() < give_up, "the server still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(leftovers(home.path(), HOST).unwrap().is_empty());
}

#[test]
fn what_is_left_behind_is_named_and_ended() {
    if !is_root() {
        return;
    }
    let home = parent();
    let place = Place::make(&settings(home.path(), "dirty")).unwrap();
    let mut stray = place.command(Path::new("/bin/sleep")).arg("600").spawn().unwrap();
    let pid = stray.id();
    let result = std::thread::scope(|scope| {
        // Somebody has to take note of its end.
        scope.spawn(move || stray.wait().unwrap());
        place.remove()
    });
    assert_eq!(result.outcome, Outcome::Failed);
    assert!(result.findings.iter().any(|finding| finding.contains(&format!("process {pid}")) && finding.contains("sleep")), "{result:?}");
    assert!(!home.path().join("dirty").exists());
    // Somebody of this host who looks around there is named, and lives.
    let place = Place::make(&settings(home.path(), "visited")).unwrap();
    let mut visitor = Command::new("sleep").arg("600").current_dir(place.directory()).spawn().unwrap();
    let result = place.remove();
    assert!(visitor.try_wait().unwrap().is_none());
    visitor.kill().unwrap();
    visitor.wait().unwrap();
    assert!(
        result.outcome == Outcome::Failed && result.reason.contains(&format!("process {} (sleep) stands in", visitor.id())),
        "{result:?}"
    );
    // As when the process is told to end, from another thread, with a server that runs.
    let (major, bin) = versions().remove(0);
    let cluster = Cluster::init_by(&bin);
    let place = Place::make(&settings(home.path(), "interrupted")).unwrap();
    plant(&place, &cluster);
    let mut server = Server::start(&place, Some(&bin), major, &plain_start()).unwrap();
    let remover = place.remover();
    std::thread::spawn(move || remover.run()).join().unwrap();
    assert!(!server.is_running() && !home.path().join("interrupted").exists());
    // And by dropping it.
    let dropped = Place::make(&settings(home.path(), "dropped")).unwrap();
    drop(dropped);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

/// Not a test by itself: what the next one runs as somebody who is not root.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn a_drill_of_an_ordinary_user() {
    let Some(parent) = std::env::var_os("LIFEBOAT_TEST_DRILL_PARENT") else { return };
    let (major, bin) = versions().remove(0);
    let cluster = Cluster::init_by(&bin);
    let place = Place::make(&settings(Path::new(&parent), "ordinary")).unwrap();
    assert_eq!(place.owner(), None);
    plant(&place, &cluster);
    let server = Server::start(&place, Some(&bin), major, &plain_start()).unwrap();
    let found = held(&server.isolation());
    assert!(!found["user"].0 && found["user"].1.contains("root"), "{found:?}");
    let mut probe = Command::new("unshare");
    let possible = probe.args(["--user", "--map-current-user", "--net", "true"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    assert_eq!(found["network"].0, possible, "{found:?}");
    for what in ["socket", "archive", "replication", "jobs"] {
        assert!(found[what].0, "{found:?}");
    }
    let other = PlaceSettings { user: Some("somebody-else".into()), ..settings(Path::new(&parent), "other") };
    assert!(matches!(Place::make(&other), Err(PlaceError::User { .. })));
    if !possible {
        let strict = PlaceSettings { require_network: true, ..settings(Path::new(&parent), "strict") };
        assert!(matches!(Place::make(&strict), Err(PlaceError::Network(_))));
    }
    server.stop(StopMode::Fast).unwrap();
    let result = place.remove();
    assert_eq!(result.outcome, Outcome::Passed, "{result:?}");
    println!("\nit was one, network {possible}");
}

#[test]
fn somebody_who_is_not_root_drills_as_far_as_that_goes_and_it_is_said() {
    let home = parent();
    let program = std::env::current_exe().unwrap();
    let mut command = if is_root() {
        std::os::unix::fs::chown(home.path(), Some(65534), Some(65534)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&program);
        command
    } else {
        Command::new(&program)
    };
    command.args(["--exact", "a_drill_of_an_ordinary_user", "--ignored", "--nocapture"]);
    command.env("LIFEBOAT_TEST_DRILL_PARENT", home.path()).env("TMPDIR", home.path()).current_dir(home.path());
    let output = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if said.contains("Permission denied") && !said.contains("running 1 test") {
        eprintln!("the test program cannot be reached by other users here");
        return;
    }
    assert!(output.status.success() && said.contains("it was one"), "{said}");
}

#[test]
fn a_setting_that_undoes_the_isolation_is_refused_and_others_are_taken() {
    let (major, bin) = versions().remove(0);
    let home = parent();
    let cluster = Cluster::init_by(&bin);
    let place = Place::make(&settings(home.path(), "wanted")).unwrap();
    plant(&place, &cluster);
    let with = |name: &str, value: &str| {
        let start = Start { settings: BTreeMap::from([(name.to_owned(), value.to_owned())]), ..plain_start() };
        Server::start(&place, Some(&bin), major, &start)
    };
    assert!(matches!(with("listen_addresses", "*"), Err(ServerError::Setting(_))));
    let error = with("work_mem", "many").expect_err("that is no size").to_string();
    assert!(error.contains("work_mem"), "{error}");
    let server = with("work_mem", "7MB").unwrap();
    assert_eq!(one(&server, "SHOW work_mem"), "7MB");
    let environment = place.environment(server.isolation(), server.settings().to_vec(), &[bin.join("postgres"), "/nonexistent".into()]);
    assert!(environment.programs.iter().any(|program| program.contains("postgres (PostgreSQL) 15.")), "{environment:?}");
    assert!(environment.processors > 0 && environment.memory_bytes > 0 && environment.system.contains("Linux"), "{environment:?}");
    assert!(environment.settings.iter().any(|(name, value)| name == "archive_mode" && value == "off"));
    assert_eq!(place.remove().outcome, Outcome::Passed, "it stops the server itself");
    drop(server);
}
