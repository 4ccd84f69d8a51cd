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
