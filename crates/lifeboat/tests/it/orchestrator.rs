//! A build orchestrator to protect: its schema with rows that are the same for the same seed, and artifacts on disk that the rows name.
//!
//! It must not use lifeboat: digests come from `sha256sum`, so that an error in ours is not on both sides of a comparison.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cluster::{Cluster, Owner};

/// What an artifact is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A code archive: bytes that do not compress.
    Code,
    /// JUnit XML.
    Result,
    /// A build log: text that compresses well.
    Log,
}

impl Kind {
    /// As the database spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Code => "code",
            Kind::Result => "result",
            Kind::Log => "log",
        }
    }
}

/// One artifact, as the orchestrator knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// Path relative to the artifact directory, with `/`.
    pub(crate) name: String,
    /// SHA-256 of its bytes, in hex.
    pub(crate) sha256: String,
    /// Size in bytes.
    pub(crate) size: u64,
    /// What it is.
    pub(crate) kind: Kind,
    /// The build that made it.
    pub(crate) build_id: u64,
}

/// The query that a configuration names: every artifact that the database refers to, with the digest that it expects.
pub(crate) const REFERENCE_QUERY: &str = "SELECT name, sha256 FROM artifacts ORDER BY name";

const SCHEMA: &str = "
CREATE TABLE builds (
    id bigint PRIMARY KEY,
    project text NOT NULL,
    revision text NOT NULL,
    state text NOT NULL CHECK (state IN ('queued', 'running', 'passed', 'failed')),
    created timestamptz NOT NULL
);
CREATE TABLE runs (
    id bigint PRIMARY KEY,
    build_id bigint NOT NULL REFERENCES builds,
    step text NOT NULL,
    exit_code integer,
    duration interval,
    detail jsonb NOT NULL
);
CREATE INDEX runs_by_build ON runs (build_id);
CREATE TABLE artifacts (
    name text PRIMARY KEY,
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    size bigint NOT NULL,
    build_id bigint NOT NULL REFERENCES builds,
    kind text NOT NULL CHECK (kind IN ('code', 'result', 'log'))
);
CREATE SEQUENCE heartbeats;
CREATE TABLE heartbeat (
    n bigint PRIMARY KEY DEFAULT nextval('heartbeats'),
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
";

/// Makes the orchestrator's schema and fills it with `builds` builds (numbered from 1) of three runs each.
pub(crate) fn install(cluster: &Cluster, builds: u64) {
    cluster.psql(SCHEMA);
    // In SQL, because the server makes a million rows faster than a pipe brings them; every value follows from its number.
    cluster.psql(&format!(
        "INSERT INTO builds SELECT i, 'project-' || i % 7, md5('revision' || i), (ARRAY['passed','failed','passed','running'])[1 + i % 4],
             '2024-01-01T00:00:00Z'::timestamptz + i * interval '37 seconds' FROM generate_series(1, {builds}) i;
         INSERT INTO runs SELECT i, 1 + (i - 1) / 3, (ARRAY['fetch','build','test'])[1 + (i - 1) % 3], i % 5, i % 600 * interval '1 second',
             jsonb_build_object('host', 'worker-' || i % 11, 'log', repeat(md5('detail' || i), (i % 40)::integer))
             FROM generate_series(1, 3 * {builds}) i;"
    ));
}

/// Records artifacts as the orchestrator does when a build has made them. Builds that are not there yet are added.
pub(crate) fn record(cluster: &Cluster, artifacts: &[Artifact]) {
    let mut sql = String::from("BEGIN;\n");
    for artifact in artifacts {
        let Artifact { name, sha256, size, kind, build_id } = artifact;
        let name = name.replace('\'', "''");
        writeln!(
            sql,
            "INSERT INTO builds VALUES ({build_id}, 'project-0', '{sha256}', 'passed', '2024-06-01T00:00:00Z') ON CONFLICT DO NOTHING;
             INSERT INTO artifacts VALUES ('{name}', '{sha256}', {size}, {build_id}, '{}');",
            kind.as_str()
        )
        .expect("a string takes text");
    }
    sql.push_str("COMMIT;\n");
    cluster.psql(&sql);
}

/// Writes one heartbeat, a transaction of its own, and returns its number: what a recovery target is tested with.
pub(crate) fn beat(cluster: &Cluster) -> u64 {
    cluster.psql("INSERT INTO heartbeat DEFAULT VALUES RETURNING n").parse().expect("a number")
}

/// The number of the last heartbeat that the cluster has, 0 if none.
pub(crate) fn last_beat(cluster: &Cluster) -> u64 {
    cluster.psql("SELECT coalesce(max(n), 0) FROM heartbeat").parse().expect("a number")
}

/// Pairs of name and digest that the database refers to, by name.
pub(crate) fn referenced(cluster: &Cluster) -> Vec<(String, String)> {
    let rows = cluster.psql(REFERENCE_QUERY);
    // A digest holds no separator, a name may.
    rows.lines().map(|row| row.rsplit_once('|').expect("two columns")).map(|(name, sha256)| (name.to_owned(), sha256.to_owned())).collect()
}

/// Makes `count` artifacts below `directory`, the same for the same seed: archives, test results and logs of usual sizes and names, and
/// among the first ones everything that is unusual and allowed (empty, megabytes, and the names in `odd_names`). The files belong to the
/// servers' user.
pub(crate) fn write_artifacts(directory: &Path, count: usize, seed: u64) -> Vec<Artifact> {
    let mut random = Random(seed);
    let mut names = Vec::with_capacity(count);
    let odd = odd_names();
    for index in 0..count {
        let build_id = 1 + index as u64 / 3;
        let (kind, plain_name) = match index % 3 {
            0 => (Kind::Code, format!("code/{build_id}/source.tar.zst")),
            1 => (Kind::Result, format!("results/{build_id}/junit.xml")),
            _ => (Kind::Log, format!("logs/{build_id}/build.log")),
        };
        let name = odd.get(index).cloned().unwrap_or(plain_name);
        let bytes = match (index, kind) {
            (3, _) => Vec::new(),
            (6, _) => random.bytes(5 << 20),
            // One more than an extent and than a pack's usual alignment would be: off by one shows.
            (9, _) => random.bytes((256 << 10) + 1),
            (_, Kind::Code) => {
                let length = 1 + random.below(64 << 10);
                random.bytes(length)
            }
            (_, Kind::Result) => junit(&mut random, build_id),
            (_, Kind::Log) => log(&mut random),
        };
        let path = directory.join(&name);
        fs::create_dir_all(path.parent().expect("below the directory")).expect("can make directories");
        fs::write(&path, &bytes).expect("can write artifacts");
        names.push((name, bytes.len() as u64, kind, build_id));
    }
    Owner::current().own_tree(directory);
    let digests = sha256sum(directory, names.iter().map(|(name, ..)| name.as_str()));
    let with_digest = |((name, size, kind, build_id), sha256)| Artifact { name, sha256, size, kind, build_id };
    names.into_iter().zip(digests).map(with_digest).collect()
}

/// Names that are allowed and that a careless program breaks on.
fn odd_names() -> Vec<String> {
    let longest_segment = format!("{}.log", "n".repeat(251));
    let deep = (0..40).map(|level| format!("level-{level}/")).collect::<String>();
    // 1024 bytes, the most that a name may have: five segments and what separates them.
    let longest_name = vec!["m".repeat(204); 5].join("/");
    let mut names: Vec<String> = [
        "-rf",
        "with space/and  two/ leading and trailing ",
        "unicode/čeština/日本語/🚣.tar",
        // Two spellings of one letter: composed and decomposed are two files.
        "unicode/\u{e9}",
        "unicode/e\u{301}",
        "percent/100%/%2F/%00",
        "shell/$(id)/`id`/;|&<>*?[a]{b}!#~",
        "quotes/'single'/\"double\"/back\\slash",
        ".hidden/.file",
        "...",
        "case/Readme",
        "case/README",
        "tilde/%~abc",
        "pipe|and,comma",
    ]
    .map(str::to_owned)
    .into();
    names.push(longest_segment);
    names.push(format!("{deep}leaf"));
    names.push(longest_name);
    names
}

fn junit(random: &mut Random, build_id: u64) -> Vec<u8> {
    let cases = 1 + random.below(40);
    let mut text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"build-{build_id}\" tests=\"{cases}\">\n");
    for case in 0..cases {
        let millis = random.below(5000);
        writeln!(text, "  <testcase classname=\"suite\" name=\"case_{case}\" time=\"{}.{:03}\"/>", millis / 1000, millis % 1000)
            .expect("a string takes text");
    }
    text.push_str("</testsuite>\n");
    text.into_bytes()
}

fn log(random: &mut Random) -> Vec<u8> {
    let mut text = String::new();
    for line in 0..random.below(400) {
        writeln!(text, "[{line:05}] compiling module {} ... ok", random.below(90)).expect("a string takes text");
    }
    text.into_bytes()
}

/// Digests of files below a directory, in the order of their names.
pub(crate) fn sha256sum<'a>(directory: &Path, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let paths: Vec<PathBuf> = names.map(|name| directory.join(name)).collect();
    let mut digests = Vec::with_capacity(paths.len());
    // In groups, because a command line has a limit; with -z names come out as they are.
    for group in paths.chunks(500) {
        let output = Command::new("sha256sum").args(["-b", "-z", "--"]).args(group).stdin(Stdio::null()).output().expect("coreutils");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = output.stdout.split(|&byte| byte == 0).filter(|line| !line.is_empty());
        digests.extend(lines.map(|line| String::from_utf8(line[..64].to_owned()).expect("hex")));
    }
    assert_eq!(digests.len(), paths.len());
    digests
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators): a few lines, and the same everywhere for ever.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; close enough to even for test data.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Bytes that do not compress.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.write_all(&self.next().to_le_bytes()).expect("a vector takes bytes");
        }
        bytes.truncate(length);
        bytes
    }
}
