//! `lifeboat wal fetch` as the `restore_command` of real servers: they go on to the end, or they stop; they never take trouble for the end.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::cluster::{Cluster, Owner, Postgres, StartFailure, Stop, expect_success, restored_cluster, temp_dir};
use crate::orchestrator::Random;
use crate::program::{Program, reachable_binary};

/// Ends tests that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(120);

/// An archive, and all that is needed to fill it and to read it, owned by the servers' user.
struct Archive {
    home: TempDir,
}

impl Archive {
    fn new() -> Archive {
        let archive = Archive { home: temp_dir() };
        archive.program().args(["key", "generate"]).run().success();
        archive.program().args(["init", "--repository"]).arg(archive.repository()).run().success();
        let keys = archive.home.path().join(".config/lifeboat");
        let recipient = fs::read_to_string(keys.join("recipients.txt")).unwrap();
        let text = format!(
            "[[repository]]\nurl = \"{}\"\n[signing]\nkey_file = \"{keys}/signing.key\"\npassword = {{ file = \"{keys}/signing.password\" }}\n\
             [trust]\nkeys = [\"{keys}/signing.pub\"]\n[encryption]\nrecipients = [\"{}\"]\nidentity_file = \"{keys}/identity.txt\"\n\
             [wal]\nspool = \"{}\"\nfetch_ahead = 2\n",
            archive.repository().display(),
            recipient.trim(),
            archive.place("spool").display(),
            keys = keys.display(),
        );
        archive.write("lifeboat.toml", &text);
        archive.make("copies");
        archive
    }

    fn program(&self) -> Program {
        Program::as_owner(&self.home)
    }

    fn place(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn make(&self, name: &str) -> PathBuf {
        fs::create_dir(self.place(name)).unwrap();
        Owner::current().own(&self.place(name));
        self.place(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.place(name), text).unwrap();
        Owner::current().own(&self.place(name));
        self.place(name)
    }

    fn repository(&self) -> PathBuf {
        self.place("repository")
    }

    fn command(&self, what: &str) -> String {
        format!("{} --config {} wal {what}", reachable_binary().display(), self.place("lifeboat.toml").display())
    }

    /// A server that archives here, with segments of 1 MiB; a plain copy of each is kept in `copies`.
    fn server(&self, version: Postgres) -> Cluster {
        let archive_command = format!("cp %p {}/%f && {}", self.place("copies").display(), self.command("push %p"));
        let builder =
            Cluster::builder(version).wal_segment_size(1).config("archive_mode", "on").config("archive_command", &archive_command);
        let cluster = builder.config("max_wal_senders", "4").start();
        cluster.psql("CREATE TABLE beat (n serial)");
        cluster
    }

    /// Writes so many segments, and waits until they are in the archive. Returns their names.
    fn fill(&self, cluster: &Cluster, segments: usize) -> Vec<String> {
        let mut names = Vec::new();
        for _ in 0..segments {
            names.push(cluster.psql("INSERT INTO beat DEFAULT VALUES; SELECT pg_walfile_name(pg_current_wal_insert_lsn())"));
            cluster.psql("SELECT pg_switch_wal()");
        }
        let begun = Instant::now();
        let last = names.last().expect("more than none");
        while cluster.psql(&format!("SELECT coalesce(last_archived_wal, '') >= '{last}' FROM pg_stat_archiver")) != "t" {
            assert!(begun.elapsed() < DEADLINE, "{last} is not archived\n{}", cluster.log());
            thread::sleep(Duration::from_millis(20));
        }
        names
    }

    /// A base backup that recovers with this `restore_command`.
    fn base(&self, cluster: &Cluster, name: &str, restore_command: &str) -> PathBuf {
        let data = self.place(name);
        let output = cluster.run_as_owner(cluster.program("pg_basebackup").args(["-c", "fast", "-X", "none", "-N", "-D"]).arg(&data));
        assert!(output.status.success(), "{output:?}");
        self.write(&format!("{name}/recovery.signal"), "");
        let settings = format!("restore_command = '{}'\narchive_mode = off\n", restore_command.replace('\'', "''"));
        self.write(&format!("{name}/postgresql.auto.conf"), &settings);
        data
    }

    /// A `restore_command` that first does something when a segment is asked for.
    fn with_accident(&self, name: &str, segment: &str, accident: &str) -> String {
        let path =
            self.write(name, &format!("if [ \"$1\" = {segment} ]; then {accident}; fi\nexec {}\n", self.command("fetch \"$1\" \"$2\"")));
        format!("sh {} %f %p", path.display())
    }

    fn object(&self, cluster: &Cluster, segment: &str) -> PathBuf {
        let system_id = cluster.psql("SELECT system_identifier FROM pg_control_system()");
        self.repository().join("wal").join(system_id).join(&segment[..8]).join(segment)
    }

    /// Ends what fetches ahead for this archive, and returns how many there were.
    fn kill_prefetchers(&self) -> usize {
        let config = self.place("lifeboat.toml").display().to_string();
        let mut killed = 0;
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            if words.contains(&b"prefetch".as_slice()) && words.contains(&config.as_bytes()) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                killed += 1;
            }
        }
        killed
    }
}

fn beats(cluster: &Cluster) -> String {
    cluster.psql("SELECT count(*) FROM beat")
}

/// The server ended in the middle of its recovery and is as it was: on its first timeline.
#[track_caller]
fn expect_stopped(result: Result<Cluster, StartFailure>, data: &Path, says: &str) {
    let failure = result.expect_err("the server took trouble for the end of the archive");
    assert!(failure.log.contains("FATAL") && failure.log.contains("could not restore file"), "{failure}");
    assert!(failure.log.contains(says), "no {says:?} in\n{failure}");
    assert!(!failure.log.contains("archive recovery complete"), "{failure}");
    assert!(!data.join("pg_wal/00000002.history").exists() && data.join("recovery.signal").exists(), "{failure}");
}

#[test]
fn a_server_recovers_to_the_end_of_the_archive() {
    for version in Postgres::ALL {
        let archive = Archive::new();
        let mut source = archive.server(version);
        archive.fill(&source, 2);
        let data = archive.base(&source, "copy", &archive.command("fetch %f %p"));
        archive.fill(&source, 12);
        let expected = beats(&source);
        source.stop(Stop::Immediate);
        let copy = restored_cluster(&data, version).unwrap();
        assert_eq!(beats(&copy), expected, "{}", copy.log());
        assert_eq!(copy.psql("SELECT timeline_id FROM pg_control_checkpoint()"), "2");
        let left = fs::read_dir(data.join("pg_wal")).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().contains("lifeboat"));
        assert_eq!(left.count(), 0);
    }
}

#[test]
fn c080_a_hole_or_damage_in_the_middle_stops_the_server_and_it_goes_on_when_mended() {
    let archive = Archive::new();
    let mut source = archive.server(Postgres::V16);
    archive.fill(&source, 1);
    let copies: Vec<PathBuf> = (0..3).map(|n| archive.base(&source, &format!("copy-{n}"), &archive.command("fetch %f %p"))).collect();
    let names = archive.fill(&source, 6);
    let expected = beats(&source);
    let object = archive.object(&source, &names[3]);
    source.stop(Stop::Immediate);
    let (good, aside) = (fs::read(&object).unwrap(), archive.place("aside"));
    let mend = || {
        let _ = fs::remove_file(&object);
        fs::write(&object, &good).unwrap();
    };

    fs::rename(&object, &aside).unwrap();
    expect_stopped(restored_cluster(&copies[0], Postgres::V16), &copies[0], "does not end before it");
    // Of another key, and with one bit changed.
    let mut bytes = good.clone();
    let middle = bytes.len() - 100;
    bytes[middle] ^= 1;
    fs::write(&object, &bytes).unwrap();
    expect_stopped(restored_cluster(&copies[1], Postgres::V16), &copies[1], &names[3]);
    fs::write(&object, "").unwrap();
    expect_stopped(restored_cluster(&copies[2], Postgres::V16), &copies[2], &names[3]);
    mend();
    // The first two go on where they were; all come to the same.
    for data in &copies {
        let copy = restored_cluster(data, Postgres::V16).unwrap();
        assert_eq!(beats(&copy), expected, "{}", copy.log());
    }
}

#[test]
fn c080_a_repository_or_identity_that_goes_away_stops_the_server_and_it_goes_on_when_it_is_back() {
    for (version, what) in
        [(Postgres::V15, "repository"), (Postgres::V18, ".config/lifeboat/identity.txt"), (Postgres::V16, "lifeboat.toml")]
    {
        let archive = Archive::new();
        let mut source = archive.server(version);
        archive.fill(&source, 1);
        let there = archive.place(what);
        let away = archive.place("away");
        let accident = format!("mv {} {}", there.display(), away.display());
        let data = archive.base(&source, "copy", "to be replaced");
        let names = archive.fill(&source, 8);
        let command = archive.with_accident("restore.sh", &names[1], &accident);
        archive.write("copy/postgresql.auto.conf", &format!("restore_command = '{command}'\narchive_mode = off\n"));
        let expected = beats(&source);
        source.stop(Stop::Immediate);
        expect_stopped(restored_cluster(&data, version), &data, "error: ");
        fs::rename(&away, &there).unwrap();
        let command = archive.command("fetch %f %p");
        archive.write("copy/postgresql.auto.conf", &format!("restore_command = '{command}'\narchive_mode = off\n"));
        let copy = restored_cluster(&data, version).unwrap();
        assert_eq!(beats(&copy), expected, "{what}\n{}", copy.log());
    }
}

#[test]
fn c080_a_promised_tail_that_is_gone_stops_the_server() {
    let archive = Archive::new();
    let mut source = archive.server(Postgres::V18);
    archive.fill(&source, 1);
    let data = archive.base(&source, "copy", "to be replaced");
    let names = archive.fill(&source, 4);
    let end = source.psql("SELECT pg_current_wal_lsn()");
    let system_id = source.psql("SELECT system_identifier FROM pg_control_system()");
    let expected = beats(&source);
    let object = archive.object(&source, &names[3]);
    source.stop(Stop::Immediate);
    let flags = format!("fetch --system-id {system_id} --promised 1:{end} %f %p");
    archive.write("copy/postgresql.auto.conf", &format!("restore_command = '{}'\narchive_mode = off\n", archive.command(&flags)));
    let aside = archive.place("aside");
    fs::rename(&object, &aside).unwrap();
    expect_stopped(restored_cluster(&data, Postgres::V18), &data, "recovery is to reach");
    fs::rename(&aside, &object).unwrap();
    assert_eq!(beats(&restored_cluster(&data, Postgres::V18).unwrap()), expected);
}

#[test]
fn c081_files_are_given_again_in_any_order_and_names_that_cannot_be_are_told_apart() {
    let archive = Archive::new();
    let mut source = archive.server(Postgres::V15);
    let names = archive.fill(&source, 7);
    let system_id = source.psql("SELECT system_identifier FROM pg_control_system()");
    source.stop(Stop::Immediate);
    let target = archive.place("RECOVERYXLOG");
    let fetch = |arguments: &[&str]| {
        let program =
            archive.program().arg("--config").arg(archive.place("lifeboat.toml")).args(["wal", "fetch", "--segment-size", "1MiB"]);
        program.args(["--system-id", &system_id]).args(arguments).run()
    };
    let bring = |name: &str| {
        let _ = fs::remove_file(&target);
        fetch(&[name, target.to_str().unwrap()]).success();
        assert!(fs::read(&target).unwrap() == fs::read(archive.place("copies").join(name)).unwrap(), "{name}");
        // The directory's group may read it, as in a data directory that lets its group in.
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o640);
    };
    for at in [0, 1, 1, 2, 3, 0, 6, 5, 4, 6, 2] {
        bring(&names[at]);
    }
    fs::remove_file(&target).unwrap();
    let to = target.to_str().unwrap();
    let later = format!("{}{:08X}", &names[0][..16], 0xF0);
    for absent in ["00000001.history", "00000002.history", "000000020000000000000001", &later] {
        let output = fetch(&[absent, to]).expect_code(1);
        assert!(output.stderr.is_empty(), "{output}");
    }
    assert_eq!(fetch(&["00000002.history", to, "--json"]).expect_code(1).json()["found"], false);
    // %f and %p swapped, another cluster, another segment size, nowhere to write, a typing error: none is the end of an archive.
    fetch(&["pg_wal/RECOVERYXLOG", &names[0]]).expect_code(200);
    fetch(&[&names[0], archive.place("no/such/RECOVERYXLOG").to_str().unwrap()]).expect_code(200);
    fetch(&[&names[0], to, "--no-such-flag"]).expect_code(200);
    fetch(&[&names[0]]).expect_code(200);
    fetch(&["00000002.history", to, "--promised", "2:0/1"]).expect_code(200);
    let other = |arguments: &[&str]| archive.program().arg("--config").arg(archive.place("lifeboat.toml")).args(arguments).run();
    other(&["wal", "fetch", "--system-id", "7", "--segment-size", "1MiB", "00000002.history", to]).expect_code(200);
    other(&["wal", "fetch", "--system-id", "7", "--segment-size", "1MiB", "--allow-empty", "00000002.history", to]).expect_code(1);
    other(&["wal", "fetch", "--system-id", &system_id, "--segment-size", "16MiB", "00000002.history", to]).expect_code(200);
    other(&["wal", "fetch", &names[0], to]).expect_code(200);
    other(&["wal", "fecth", &names[0], to]).expect_code(200);
    archive.program().args(["wal", "fetch", &names[0], to, "--config", "no-such.toml"]).run().expect_code(200);
    assert!(!target.exists());
}

#[test]
fn c082_killed_fetches_leave_no_half_file() {
    let seed = std::env::var("LIFEBOAT_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(82);
    println!("LIFEBOAT_TEST_SEED={seed}");
    let mut random = Random(seed);
    let archive = Archive::new();
    let mut source = archive.server(Postgres::V16);
    let names = archive.fill(&source, 8);
    let system_id = source.psql("SELECT system_identifier FROM pg_control_system()");
    source.stop(Stop::Immediate);
    let target = archive.place("RECOVERYXLOG");
    let fetch = |name: &str| {
        let program = archive.program().arg("--config").arg(archive.place("lifeboat.toml")).args(["wal", "fetch"]);
        program.args(["--system-id", &system_id]).arg(name).arg(&target)
    };
    let expect_whole = |name: &str| {
        assert!(fs::read(&target).unwrap() == fs::read(archive.place("copies").join(name)).unwrap(), "{name}, seed {seed}");
        fs::remove_file(&target).unwrap();
    };
    let begun = Instant::now();
    fetch(&names[0]).run().success();
    let takes = begun.elapsed().as_micros() as usize * 2;
    expect_whole(&names[0]);
    let mut killed = 0;
    for _ in 0..60 {
        let name = &names[random.below(names.len())];
        let mut child = fetch(name).spawn();
        thread::sleep(Duration::from_micros(random.below(takes) as u64));
        let _ = child.kill();
        killed += usize::from(!child.wait().unwrap().success());
        if random.below(2) == 0 {
            archive.kill_prefetchers();
        }
        if target.exists() {
            expect_whole(name);
        }
        if random.below(4) == 0 {
            let name = &names[random.below(names.len())];
            fetch(name).run().success();
            expect_whole(name);
        }
    }
    assert!(killed > 5, "only {killed} were killed in time");
    fetch(&names[0]).run().success();
    expect_whole(&names[0]);
    while archive.kill_prefetchers() > 0 {}
}

#[test]
fn c083_a_spool_in_the_data_directory_stops_the_server() {
    let archive = Archive::new();
    let mut source = archive.server(Postgres::V15);
    archive.fill(&source, 1);
    let data = archive.base(&source, "copy", &archive.command("fetch %f %p"));
    archive.fill(&source, 2);
    source.stop(Stop::Immediate);
    let text = fs::read_to_string(archive.place("lifeboat.toml")).unwrap();
    archive.write("lifeboat.toml", &text.replace(archive.place("spool").to_str().unwrap(), data.join("spool").to_str().unwrap()));
    expect_stopped(restored_cluster(&data, Postgres::V15), &data, "inside the data directory");
    assert!(!data.join("spool").exists());
}

#[test]
fn c084_a_standby_survives_trouble_and_catches_up() {
    for version in Postgres::ALL {
        let archive = Archive::new();
        let source = archive.server(version);
        archive.fill(&source, 1);
        let data = archive.base(&source, "standby", "to be replaced");
        fs::rename(data.join("recovery.signal"), data.join("standby.signal")).unwrap();
        // The standby sees the repository through a link: it can lose it while the primary goes on.
        let link = archive.place("link");
        let come = || std::os::unix::fs::symlink(archive.repository(), &link).unwrap();
        let text = fs::read_to_string(archive.place("lifeboat.toml")).unwrap();
        let config = archive.write("standby.toml", &text.replace(archive.repository().to_str().unwrap(), link.to_str().unwrap()));
        come();
        let command = format!("{} --config {} wal fetch %f %p", reachable_binary().display(), config.display());
        let settings = "wal_retrieve_retry_interval = 100\nhot_standby = on\narchive_mode = off\n";
        archive.write("standby/postgresql.auto.conf", &format!("restore_command = '{command}'\n{settings}"));
        archive.fill(&source, 1);
        let standby = Cluster::start_existing(&data, version).unwrap();
        let wait = |what: &str, done: &dyn Fn() -> bool| {
            let begun = Instant::now();
            while !done() {
                assert!(begun.elapsed() < DEADLINE, "{what}\n{}", standby.log());
                thread::sleep(Duration::from_millis(20));
            }
        };
        let warned = || standby.log().matches("warning: ").count();
        let catches_up = || {
            let count = beats(&source);
            wait("the standby does not catch up", &|| standby.try_psql("SELECT count(*) FROM beat").as_deref() == Ok(&count));
        };
        catches_up();

        fs::remove_file(&link).unwrap();
        let before = warned();
        wait("no warning", &|| warned() >= before + 5);
        come();
        archive.fill(&source, 2);
        catches_up();

        // Damage does not end it either, and none of it is replayed.
        fs::remove_file(&link).unwrap();
        let (before, names) = (beats(&standby), archive.fill(&source, 2));
        let object = archive.object(&source, &names[0]);
        let good = fs::read(&object).unwrap();
        let mut bytes = good.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&object, bytes).unwrap();
        come();
        let damaged = || standby.log().matches(&format!("{}: ", names[0])).count();
        wait("no warning of damage", &|| damaged() >= 3);
        assert_eq!(beats(&standby), before);
        fs::write(&object, good).unwrap();
        catches_up();
        assert_eq!(standby.psql("SELECT pg_is_in_recovery()"), "t");
        assert!(!standby.log().contains("FATAL:  could not restore"), "{}", standby.log());
    }
}

#[test]
fn trouble_is_strict_or_lenient_as_it_is_said() {
    let archive = Archive::new();
    let run = |arguments: &[&str]| {
        let program = archive.program().args(["wal", "fetch", "--system-id", "7", "00000002.history", "x"]);
        program.args(["--repository", "no-such-place"]).args(arguments).run()
    };
    assert!(run(&[]).expect_code(200).stderr.starts_with("error: "));
    assert!(run(&["--lenient"]).expect_code(1).stderr.starts_with("warning: "));
    archive.write("standby.signal", "");
    run(&[]).expect_code(1);
    run(&["--strict"]).expect_code(200);
}

#[test]
fn a_fetch_that_is_told_to_end_dies_of_the_signal() {
    let archive = Archive::new();
    // It waits for its configuration.
    let pipe = archive.place("pipe");
    expect_success(Command::new("mkfifo").arg("-m").arg("666").arg(&pipe));
    let mut child = archive.program().arg("--config").arg(&pipe).args(["wal", "fetch", "00000002.history", "x"]).spawn();
    // Opening it for writing waits for the reader.
    let writer = fs::File::options().write(true).open(&pipe).unwrap();
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    drop(writer);
}
