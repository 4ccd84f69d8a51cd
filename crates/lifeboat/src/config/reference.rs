//! Every setting in one line: what `lifeboat init` and `lifeboat config example` write, and the manual page lifeboat.toml(5).
//!
//! **This is the place where a new setting gets its line.** The tests below fail for one that `config show` has and this list has not, for
//! one that the configuration does not know, and for a default that is another.

use std::collections::BTreeMap;

/// A table of the file.
pub(crate) struct Table {
    /// As it stands in the file; empty for what stands before all tables.
    pub(crate) header: &'static str,
    /// What it is about.
    pub(crate) meaning: &'static str,
    /// Where there is more to read.
    pub(crate) page: &'static str,
    /// Whether the header itself is commented out until somebody wants the table, because it means something already.
    pub(crate) optional: bool,
    /// In the order of the file.
    pub(crate) entries: &'static [Entry],
}

/// A setting.
pub(crate) struct Entry {
    pub(crate) key: &'static str,
    /// In TOML.
    pub(crate) value: Value,
    pub(crate) meaning: &'static str,
}

/// What is shown of a setting that nobody has set.
#[derive(Clone, Copy)]
pub(crate) enum Value {
    /// What it is then.
    Default(&'static str),
    /// One that could be written; without it there is none, or what the meaning says.
    Example(&'static str),
}

impl Value {
    /// In TOML.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Default(text) | Self::Example(text) => text,
        }
    }
}

const fn default(key: &'static str, value: &'static str, meaning: &'static str) -> Entry {
    Entry { key, value: Value::Default(value), meaning }
}

const fn example(key: &'static str, value: &'static str, meaning: &'static str) -> Entry {
    Entry { key, value: Value::Example(value), meaning }
}

const fn table(header: &'static str, page: &'static str, meaning: &'static str, entries: &'static [Entry]) -> Table {
    Table { header, meaning, page, optional: false, entries }
}

const fn optional(header: &'static str, page: &'static str, meaning: &'static str, entries: &'static [Entry]) -> Table {
    Table { header, meaning, page, optional: true, entries }
}

/// Environment variables that win over the file, by the setting as `config show` calls it. Those of PostgreSQL, of the clouds and of OpenTelemetry
/// are not ours.
const VARIABLES: &[(&str, &str)] = &[
    ("name", "LIFEBOAT_NAME"),
    ("postgres.dsn", "LIFEBOAT_DSN"),
    ("postgres.bin_directory", "LIFEBOAT_PG_BIN"),
    ("postgres.scratch", "LIFEBOAT_SCRATCH"),
    ("repository.url", "LIFEBOAT_REPOSITORY"),
    ("artifacts.directory", "LIFEBOAT_ARTIFACTS"),
    ("encryption.host_identity", "LIFEBOAT_HOST_IDENTITY"),
    ("encryption.identity_file", "LIFEBOAT_IDENTITY_FILE"),
    ("signing.key_file", "LIFEBOAT_SIGNING_KEY"),
    ("trust.trusted_root", "LIFEBOAT_TRUSTED_ROOT"),
    ("audit.key_file", "LIFEBOAT_AUDIT_KEY"),
    ("audit.directory", "LIFEBOAT_AUDIT_DIRECTORY"),
    ("approvals.allowed_signers", "LIFEBOAT_ALLOWED_SIGNERS"),
    ("wal.spool", "LIFEBOAT_SPOOL"),
    ("drill.directory", "LIFEBOAT_DRILL_DIRECTORY"),
    ("agent.state", "LIFEBOAT_STATE"),
    ("log.format", "LIFEBOAT_LOG_FORMAT"),
];

/// A setting as `config show` calls it.
fn name(table: &Table, key: &str) -> String {
    let header = table.header.trim_matches(['[', ']']);
    if header.is_empty() { key.to_owned() } else { format!("{header}.{key}") }
}

/// The environment variable that wins over the file, if there is one.
pub(crate) fn variable(table: &Table, key: &str) -> Option<&'static str> {
    let name = name(table, key);
    // A further place of the repository has the first one's table.
    VARIABLES
        .iter()
        .find(|(setting, _)| *setting == name && !(table.optional && name.starts_with("repository.")))
        .map(|(_, variable)| *variable)
}

/// The file.
pub(crate) const TABLES: &[Table] = &[
    table("", "configuration.md", "", &[default("name", "\"conductor\"", "The protected system: backups are called NAME-backup-TIME.")]),
    table(
        "[postgres]",
        "postgres.md",
        "The server. Its password comes from ~/.pgpass or PGPASSWORD, not from here.",
        &[
            example("dsn", "\"host=/var/run/postgresql user=postgres dbname=postgres\"", "Connection string or URI, without a password."),
            example(
                "data_directory",
                "\"/var/lib/postgresql/15/main\"",
                "Where the cluster is on this host: allows the fastest way to copy it.",
            ),
            default("copy", "\"auto\"", "How: auto, local (from the directory), stream (replication protocol) or logical (pg_dump)."),
            example(
                "bin_directory",
                "\"/usr/lib/postgresql/15/bin\"",
                "PostgreSQL's programs; without it those of the server's version are looked for.",
            ),
            default("checkpoint", "\"fast\"", "spread: a backup waits for a gentle checkpoint."),
            example("scratch", "\"/var/tmp/lifeboat\"", "Where a dump is put down while it is taken; without it ~/.cache/lifeboat."),
            default("check_pages", "true", "false where the server encrypts its pages, so that their checksums mean nothing to others."),
        ],
    ),
    table(
        "[[repository]]",
        "stores.md",
        "Where backups are. Credentials of a bucket come from where its cloud's own programs find them, not from here.",
        &[
            example("url", "\"s3://bucket/prefix\"", "A directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix."),
            example("name", "\"primary\"", "What people call it; without it the URL."),
            default("required", "true", "Whether a write counts only when it is here too; of further places false."),
            default(
                "kept_by",
                "\"lifeboat\"",
                "store: of a further place to which the store itself copies; lifeboat reads and checks it only.",
            ),
            example("endpoint", "\"https://s3.example.org\"", "A server of its own instead of the cloud's."),
            example("region", "\"eu-central-1\"", "The bucket's region."),
            example("path_style", "true", "true: the bucket stands in the path; false: in the host name."),
            example("profile", "\"backup\"", "Whose credentials count, of ~/.aws."),
            example("ca_file", "\"/etc/ssl/own.pem\"", "PEM certificates to believe instead of the system's."),
            example("account", "\"storageaccount\"", "Storage account of an az:// repository."),
            example("credentials_file", "\"/etc/lifeboat/google.json\"", "JSON file with the credentials of a gs:// repository."),
            example("retention", "\"30d\"", "How long Object Lock holds every new object; without it as the bucket says."),
            default("retention_mode", "\"governance\"", "compliance: nobody can end a hold before its time."),
        ],
    ),
    optional(
        "[[repository]]",
        "replicas.md",
        "A further place of the same repository; what one has lost is read from the next.",
        &[
            example("url", "\"/mnt/offsite/backups\"", "Where it is."),
            example("name", "\"offsite\"", "What people call it."),
            default("required", "false", "true: a backup counts only when it is there too."),
        ],
    ),
    table(
        "[artifacts]",
        "configuration.md",
        "Code archives, test results, build logs.",
        &[
            example("directory", "\"/srv/artifacts\"", "What a backup brings into the set of artifacts."),
            example(
                "reference_query",
                "\"SELECT name, sha256 FROM artifacts\"",
                "Name and SHA-256 of every artifact that the database refers to.",
            ),
        ],
    ),
    table(
        "[encryption]",
        "least-privilege.md",
        "Backups can be read only with a restore identity; this host need not have one.",
        &[
            example("recipients", "[\"age1…\"]", "Public keys that backups can be opened with; without it the user's own."),
            example("host_identity", "\"/etc/lifeboat/host-identity.txt\"", "Opens lists of files on this host; not the data."),
            example("identity_file", "\"/etc/lifeboat/identity.txt\"", "Restore identity: only where restores run."),
            example("none", "\"I accept plain backups\"", "Instead of recipients: turns encryption off."),
        ],
    ),
    table(
        "[signing]",
        "signing.md",
        "Who signs here: a key file, or one of the services instead.",
        &[
            example("key_file", "\"/etc/lifeboat/signing.key\"", "Private key in cosign's encrypted format; without it the user's own."),
            example(
                "password",
                "{ file = \"/etc/lifeboat/signing.password\" }",
                "Its password: { file = … }, { env = … } or { command = […] }.",
            ),
            example(
                "transit",
                "{ address = \"https://vault.example:8200\", key = \"lifeboat\", token = { file = \"/etc/lifeboat/vault.token\" } }",
                "A key that Vault or OpenBao holds.",
            ),
            example("aws_kms", "{ key = \"alias/lifeboat\", region = \"eu-central-1\" }", "A key that AWS KMS holds."),
            example(
                "keyless",
                "{ signing_config = \"/etc/lifeboat/signing_config.json\", ambient = true }",
                "Certificates of a Sigstore instance.",
            ),
            example(
                "timestamp_url",
                "\"https://tsa.example/api/v1/timestamp\"",
                "RFC 3161 authority, or a list of them: every signature gets a timestamp.",
            ),
            default("timestamp", "\"required\"", "best-effort: a signature may be without a timestamp, and that is said."),
            example(
                "trusted_root",
                "\"/etc/lifeboat/trusted_root.json\"",
                "What own certificates and timestamps are verified with; without it trust.trusted_root.",
            ),
            example("ca_file", "\"/etc/ssl/own.pem\"", "PEM certificates to believe of those services."),
        ],
    ),
    table(
        "[trust]",
        "trust.md",
        "Whose signatures count, for what, and until when.",
        &[
            example(
                "keys",
                "[\"/etc/lifeboat/signing.pub\"]",
                "Public keys: paths, PEM text, or tables with terms; without it the user's own.",
            ),
            example(
                "identities",
                "[{ issuer = \"https://accounts.example\", subject = \"backup@example.org\" }]",
                "Identities whose certificates count.",
            ),
            example(
                "trusted_root",
                "\"/etc/lifeboat/trusted_root.json\"",
                "The Sigstore instance whose certificates and timestamps are believed.",
            ),
            default("require_timestamp", "false", "true: a signature without a trusted time does not count."),
        ],
    ),
    table(
        "[audit]",
        "audit.md",
        "Who did what with the repository: every host signs its records with a key of its own.",
        &[
            example("key_file", "\"/etc/lifeboat/audit.key\"", "This host's audit key; without it the user's own."),
            example("directory", "\"/var/lib/lifeboat/audit\"", "This host's journal; without it ~/.local/state/lifeboat/audit."),
            example(
                "trust",
                "[\"db2+1a2b3c4d+AbCd…\"]",
                "Audit keys of other hosts whose records count; lifeboat audit key prints each one's.",
            ),
            example("retired", "[{ key = \"db1+1a2b3c4d+AbCd…\", size = 1234 }]", "Keys that count for so many records from the first on."),
        ],
    ),
    table(
        "[policy]",
        "policy.md",
        "What is allowed here, and what takes the approval of others: in \"production\" every restore does.",
        &[
            default(
                "environment",
                "\"unspecified\"",
                "What this host belongs to, as policies see it; the shipped one protects production.",
            ),
            example("path", "\"policy.rego\"", "A policy instead of the shipped one: lifeboat policy show > policy.rego"),
            default("engine", "\"embedded\"", "Who evaluates it: embedded, opa, or both, which have to agree."),
            example("opa_url", "\"http://localhost:8181\"", "A running OPA."),
            default("opa_path", "\"lifeboat/decision\"", "Its rule."),
            example("opa_token", "{ file = \"/etc/lifeboat/opa.token\" }", "How it knows this host."),
            example("opa_ca_file", "\"/etc/ssl/own.pem\"", "PEM certificates to believe of it."),
            example("opa_identity_file", "\"/etc/lifeboat/opa.pem\"", "Certificate and key of this host for it."),
            default("timeout", "\"2s\"", "How long a policy may take for a decision."),
        ],
    ),
    table(
        "[approvals]",
        "approvals.md",
        "Who approves plans, for how long, and who is told.",
        &[
            example(
                "allowed_signers",
                "\"/etc/lifeboat/allowed_signers\"",
                "OpenSSH's file of keys and whose they are, for approvals by SSH key.",
            ),
            example("persons", "{ ada = [\"ada@example.org\"] }", "Which names (keys, addresses, users of hosts) are one person's."),
            default("lifetime", "\"24h\"", "The longest that a request is open."),
            example(
                "alert_command",
                "[\"/usr/local/bin/tell-us\"]",
                "Gets JSON on its standard input when somebody asks, or breaks the glass.",
            ),
        ],
    ),
    table(
        "[wal]",
        "wal.md",
        "How WAL gets into the repository.",
        &[
            default(
                "mode",
                "\"archive\"",
                "archive (archive_command), stream (also the open segment, by lifeboat wal receive), or sync (before a commit is acknowledged).",
            ),
            default("durability", "\"spool\"", "Mode sync: durable in the spool (this host's disk) or in the repository."),
            default(
                "on_fallout",
                "\"block\"",
                "Mode sync, when that promise cannot be kept: commits wait (block) or go on without it, loudly (degrade).",
            ),
            default("degrade_after", "\"10s\"", "With degrade: how long nothing could be made durable before that happens."),
            default("flush_interval", "\"5s\"", "How often pieces of the open segment go to the repository."),
            default("slot", "\"lifeboat\"", "The receiver's physical replication slot."),
            example("spool", "\"/var/lib/lifeboat/spool\"", "Where WAL rests on its way; without it ~/.local/state/lifeboat/spool."),
            default("spool_limit", "\"4GiB\"", "Bytes that may wait there."),
            default(
                "push_ahead",
                "128",
                "Files that one wal push stores at most: the one it was called for, and those that are ready behind it.",
            ),
            default("fetch_ahead", "16", "Segments that are fetched before PostgreSQL asks for them."),
        ],
    ),
    table(
        "[retention]",
        "retention.md",
        "Which backups lifeboat expire keeps. Without any of these it refuses.",
        &[
            example("keep_last", "7", "So many of the newest."),
            example("keep_daily", "14", "The newest of each of so many days."),
            example("keep_weekly", "8", "The same of weeks."),
            example("keep_monthly", "12", "The same of months."),
            example("keep_yearly", "3", "The same of years."),
            example("recovery_window", "\"14d\"", "Every moment of this span can be gone back to."),
            default("grace", "\"7d\"", "How long an expired backup stays whole before lifeboat prune takes it."),
        ],
    ),
    table(
        "[objectives]",
        "drill.md",
        "What was promised.",
        &[
            default("rpo", "\"24h\"", "How old the last commit in the repository may be, and how much a drill may show as lost."),
            default("rto", "\"4h\"", "How long a drill may take to the first query."),
            default("drill", "\"100d\"", "How long after a good drill the next one is due."),
        ],
    ),
    table(
        "[drill]",
        "drill.md",
        "How drills work here, and what they check.",
        &[
            example(
                "directory",
                "\"/srv/drills\"",
                "Where drills make their places: with room, and with nothing of production in it; without it /var/lib/lifeboat/drills or ~/.local/state/lifeboat/drills.",
            ),
            example("user", "\"drill\"", "As root: whom the drill's server runs as; without it a number that nobody has."),
            default("require_network", "false", "true: no drill without a network of its own."),
            default(
                "scenarios",
                "[\"host-lost\", \"wrong-identity\", \"artifact-tampered\", \"no-such-backup\"]",
                "What is played through; also primary-store-lost, yesterdays-accident, deleted-objects, last-wal-damaged, clock-skew.",
            ),
            default("budget", "\"8GiB\"", "Bytes that each expensive check may read; drills in a row see all in turn."),
            example("production_bytes", "\"500GiB\"", "Size of production's database, where drills restore something smaller."),
            default("start_timeout", "\"4h\"", "How long a start of the drill's server may take, recovery included."),
            example("settings", "{ shared_buffers = \"4GB\" }", "Settings of the drill's server."),
            example(
                "database",
                "\"app\"",
                "Which database assertions, heartbeat and the own command ask; without it that of postgres.dsn.",
            ),
            example("heartbeat_query", "\"SELECT max(at) FROM heartbeat\"", "SQL that gives the newest heartbeat, for the RPO."),
            default("assert_timeout", "\"60s\"", "How long one assertion may take."),
            example("smoke", "[\"/usr/local/bin/smoke\", \"--read-only\"]", "Own command; it passes if it ends with 0."),
            default("smoke_timeout", "\"10m\"", "How long it may take."),
            default("truth_bytes", "\"256MiB\"", "Bytes of tables that a backup reads so that drills can compare them."),
            default("truth_table_bytes", "\"32MiB\"", "The most that is read of one table."),
        ],
    ),
    optional(
        "[[drill.assert]]",
        "drill-assertions.md",
        "What has to hold in the restored database.",
        &[
            example("name", "\"orders are there\"", "As reports call it."),
            example("query", "\"SELECT count(*) FROM orders\"", "SQL that gives one value."),
            example(
                "at_least",
                "1000",
                "What the value has to be: also expect, at_most, rows. The page has database, role and timeout_seconds too.",
            ),
        ],
    ),
    table(
        "[agent]",
        "agent.md",
        "What runs day and night: lifeboat agent.",
        &[
            example(
                "state",
                "\"/var/lib/lifeboat\"",
                "Where this host keeps what was done on it and what is planned; without it ~/.local/state/lifeboat.",
            ),
            default("listen", "\"127.0.0.1:9847\"", "Where the status page, /metrics and /api/v1 are; \"off\": nowhere."),
            example("allow_hosts", "[\"backup.example.org\"]", "Names that the page may be asked for by, beside addresses and localhost."),
            default("interval", "\"1m\"", "Time between two looks at the system."),
            default("receive", "false", "Whether it runs lifeboat wal receive; true where wal.mode is stream or sync."),
            example(
                "group",
                "\"restorer\"",
                "Agents of one system and one group take turns; without it they are of one group that has no name.",
            ),
        ],
    ),
    table(
        "[schedule]",
        "agent.md",
        "When the agent does what: minute, hour, day of month, month, day of week; or \"off\".",
        &[
            default("time_zone", "\"UTC\"", "Whose wall clock that is read on, of the IANA database."),
            default("jitter", "\"5m\"", "Each begins up to so much later, on each host always the same."),
            default("attempts", "4", "Tries, until it is due anew."),
            default("retry_after", "\"5m\"", "Time until the second try; doubled for each one after it."),
            default("backup", "\"0 2 * * *\"", "lifeboat backup"),
            default("verify", "\"0 5 * * *\"", "lifeboat verify --all"),
            example("expire", "\"0 6 * * *\"", "lifeboat expire: as here where [retention] has a rule, otherwise off."),
            example("prune", "\"30 6 * * *\"", "lifeboat prune: as here where [retention] has a rule, otherwise off."),
            example(
                "replicate",
                "\"15 * * * *\"",
                "lifeboat replicate: as here where there are replicas that are written to, otherwise off.",
            ),
            example("drill", "\"0 4 1 1,4,7,10 *\"", "lifeboat drill run: as here where there is a restore identity, otherwise off."),
        ],
    ),
    table(
        "[schedule.deadline]",
        "agent.md",
        "A task that takes longer is ended.",
        &[
            default("backup", "\"20h\"", "lifeboat backup"),
            default("verify", "\"20h\"", "lifeboat verify"),
            default("expire", "\"1h\"", "lifeboat expire"),
            default("prune", "\"12h\"", "lifeboat prune"),
            default("replicate", "\"20h\"", "lifeboat replicate"),
            default("drill", "\"24h\"", "lifeboat drill run"),
        ],
    ),
    table(
        "[schedule.arguments]",
        "agent.md",
        "What stands behind the commands.",
        &[
            default("backup", "[]", "lifeboat backup"),
            default("verify", "[\"--sample\", \"5\"]", "lifeboat verify --all: another twentieth of what is stored each night."),
            default("expire", "[]", "lifeboat expire"),
            default("prune", "[]", "lifeboat prune"),
            default("replicate", "[]", "lifeboat replicate"),
            default("drill", "[]", "lifeboat drill run"),
        ],
    ),
    table(
        "[alerts]",
        "alerts.md",
        "Who is told of what, and how often. lifeboat alert list has all kinds; lifeboat alert test tries out the sinks.",
        &[
            default("backup_age", "\"30h\"", "The newest backup may be so old; without it objectives.rpo and a quarter."),
            default("key_days", "30", "So many days before its end a key or a certificate is told of."),
            default("disk_free_percent", "10", "So much of each file system must be free."),
            default("group_wait", "\"30s\"", "A new alert waits so long for others, so that one accident is one message."),
            default("repeat", "\"4h\"", "What still holds is told again after this."),
            default("resolve_after", "\"2m\"", "An alert has to be gone for so long before it is over."),
            example(
                "runbook_url",
                "\"https://wiki.example.org/lifeboat-alerts\"",
                "Where the runbook of alerts is; without it docs/alerts.md.",
            ),
            example(
                "heartbeat_url",
                "{ file = \"/etc/lifeboat/heartbeat.url\" }",
                "Dead man's switch: asked as long as all is well; somebody else tells when it is not any more.",
            ),
        ],
    ),
    optional(
        "[[alerts.sink]]",
        "alerts.md",
        "Somebody who is told: type alertmanager, webhook, slack, pagerduty or smtp.",
        &[
            example("name", "\"on-call\"", "As messages about it call it."),
            example(
                "type",
                "\"alertmanager\"",
                "By which way. The page says what each needs: url, token, headers, ca_file; routing_key; host, port, tls, user, password, from, to.",
            ),
            example("url", "\"http://127.0.0.1:9093\"", "Where; { file = … } where it is a secret, as Slack's is."),
            example("min_severity", "\"critical\"", "Told of what is so serious or worse; without it of everything."),
        ],
    ),
    table(
        "[metrics]",
        "metrics.md",
        "Metrics without an agent, for node_exporter.",
        &[example(
            "textfile",
            "\"/var/lib/prometheus/node-exporter/lifeboat.prom\"",
            "Written after each backup, verify, expire, prune, replicate and drill.",
        )],
    ),
    table(
        "[log]",
        "logs.md",
        "What is said on stderr.",
        &[default("format", "\"text\"", "json: one JSON object a line, with one id for each operation.")],
    ),
    table(
        "[traces]",
        "logs.md",
        "Traces by OTLP over HTTP.",
        &[
            example("endpoint", "\"https://collector.example.org:4318\"", "Where they go; without it nowhere."),
            example("headers", "{ Authorization = { file = \"/etc/lifeboat/otlp.header\" } }", "Sent along, each a secret."),
            example("ca_file", "\"/etc/ssl/own.pem\"", "PEM certificates to believe of it."),
        ],
    ),
    table(
        "[limits]",
        "configuration.md",
        "What lifeboat may take of this host.",
        &[
            default("memory", "\"512MiB\"", "Bytes for buffers."),
            example("workers", "4", "Threads that copy; without it as many as there are cores."),
            example("bandwidth", "\"100MiB\"", "Bytes a second that a backup may read."),
            default("compression_level", "1", "zstd's."),
        ],
    ),
];

/// A configuration file with a line for every setting: those that are given, and the others commented out. `given` is by header and key.
pub(crate) fn commented(given: &BTreeMap<(&str, &str), String>) -> String {
    let mut text = String::from(
        "# lifeboat's configuration. `lifeboat config show` prints every setting and where it came from.\n\
         # A line that begins with # and a name is a setting that is not made: with its default where it has one, else with an example.\n",
    );
    for table in TABLES {
        text.push('\n');
        if !table.meaning.is_empty() {
            text.push_str(&format!("# {} docs/{}\n", table.meaning, table.page));
        }
        // One of several of its kind would be one without anything in it.
        let is_there = |entry: &Entry| !table.optional && given.contains_key(&(table.header, entry.key));
        let live = !table.optional && (!table.header.starts_with("[[") || table.entries.iter().any(is_there));
        if !table.header.is_empty() {
            text.push_str(&format!("{}{}\n", if live { "" } else { "#" }, table.header));
        }
        for entry in table.entries {
            text.push_str(&format!("# {}\n", entry.meaning));
            match given.get(&(table.header, entry.key)).filter(|_| live) {
                Some(value) => text.push_str(&format!("{} = {value}\n", entry.key)),
                None => text.push_str(&format!("#{} = {}\n", entry.key, entry.value.text())),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;
    use crate::config::{Settings, parse};

    /// Whether a line is a setting, or a table, that is commented out.
    fn is_commented_out(line: &str) -> bool {
        line.strip_prefix('#').is_some_and(|rest| rest.starts_with('[') || rest.starts_with(|first: char| first.is_ascii_lowercase()))
    }

    fn resolve(directory: &Path, text: &str) -> Settings {
        let path = directory.join("lifeboat.toml");
        std::fs::write(&path, text).unwrap();
        let cli = Cli::try_parse_from(["lifeboat", "--config", path.to_str().unwrap(), "config", "show"]).unwrap();
        Settings::resolve(&cli).unwrap_or_else(|failure| panic!("{}\n{text}", failure.message))
    }

    /// Key and value of everything that `config show` prints.
    fn shown(settings: &Settings) -> BTreeMap<String, serde_json::Value> {
        settings.rows().into_iter().map(|(key, value, _)| (key, value)).collect()
    }

    #[test]
    fn a_file_with_every_line_is_one() {
        let text = commented(&BTreeMap::new());
        let lines: Vec<&str> = text.lines().map(|line| if is_commented_out(line) { &line[1..] } else { line }).collect();
        let settings = lines.iter().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()).count();
        assert_eq!(settings, TABLES.iter().map(|table| table.entries.len()).sum::<usize>());
        parse(&lines.join("\n"), Path::new("lifeboat.toml")).unwrap_or_else(|failure| panic!("{}", failure.message));
        // As it is written it sets nothing.
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(shown(&resolve(directory.path(), &text)), shown(&resolve(directory.path(), "")));
    }

    #[test]
    fn what_is_given_stands_in_its_place_once() {
        let given = BTreeMap::from([
            (("[[repository]]", "url"), "\"/srv/backups\"".to_owned()),
            (("[postgres]", "dsn"), "\"host=db1\"".to_owned()),
        ]);
        let text = commented(&given);
        assert_eq!(text.matches("\nurl = \"/srv/backups\"\n").count(), 1, "{text}");
        assert!(text.contains("[postgres]\n# Connection string or URI, without a password.\ndsn = \"host=db1\"\n"), "{text}");
        assert!(!text.contains("#dsn"), "{text}");
    }

    /// What has to stand beside a line, so that it means something.
    fn beside(name: &str) -> &'static str {
        match name {
            "repository.account" => "url = \"az://container/prefix\"\n",
            "repository.credentials_file" => "url = \"gs://bucket/prefix\"\n",
            "repository.url" => "",
            // What the first place is not asked, because it decides.
            "repository.kept_by" => "url = \"s3://bucket/first\"\n[[repository]]\nurl = \"s3://bucket/prefix\"\n",
            name if name.starts_with("repository.retention") => "url = \"s3://bucket/prefix\"\nretention = \"30d\"\n",
            name if name.starts_with("repository.") => "url = \"s3://bucket/prefix\"\n",
            "signing.password" => "key_file = \"/nowhere/signing.key\"\n",
            "signing.keyless" | "signing.timestamp_url" => "trusted_root = \"/nowhere/root.json\"\n",
            "signing.timestamp" => "trusted_root = \"/nowhere/root.json\"\ntimestamp_url = \"https://tsa.example\"\n",
            "traces.headers" | "traces.ca_file" => "endpoint = \"https://collector.example.org:4318\"\n",
            "trust.identities" => "trusted_root = \"/nowhere/root.json\"\n",
            _ => "",
        }
    }

    #[test]
    fn every_line_alone_is_understood_and_defaults_are_what_they_are_said_to_be() {
        let directory = tempfile::tempdir().unwrap();
        for table in TABLES.iter().filter(|table| !table.optional) {
            for entry in table.entries {
                let name = name(table, entry.key);
                let before: Vec<&str> = beside(&name).lines().filter(|line| !line.starts_with(&format!("{} = ", entry.key))).collect();
                let before = format!("{}\n{}\n", table.header, before.join("\n"));
                // Names and parts are shown where there are several.
                let after = if table.header == "[[repository]]" { "[[repository]]\nurl = \"/second\"\n" } else { "" };
                let without =
                    if name == "repository.url" { BTreeMap::new() } else { shown(&resolve(directory.path(), &(before.clone() + after))) };
                let with = shown(&resolve(directory.path(), &format!("{before}{} = {}\n{after}", entry.key, entry.value.text())));
                let changed: Vec<_> = with.iter().filter(|(key, value)| without.get(*key) != Some(*value)).collect();
                match entry.value {
                    Value::Default(_) => assert!(changed.is_empty(), "{name}: it changes {changed:?}"),
                    Value::Example(_) => assert!(!changed.is_empty(), "{name}: it changes nothing"),
                }
            }
        }
        for table in TABLES.iter().filter(|table| table.optional) {
            let lines: Vec<String> = table.entries.iter().map(|entry| format!("{} = {}", entry.key, entry.value.text())).collect();
            let first = if table.header == "[[repository]]" { "[[repository]]\nurl = \"/srv/backups\"\n" } else { "" };
            resolve(directory.path(), &format!("{first}{}\n{}\n", table.header, lines.join("\n")));
        }
    }

    /// That they do what is said of them: tests/it/pages.rs.
    #[test]
    fn every_variable_is_of_a_setting() {
        let found: Vec<&str> =
            TABLES.iter().flat_map(|table| table.entries.iter().filter_map(|entry| variable(table, entry.key))).collect();
        assert_eq!(found, VARIABLES.iter().map(|(_, variable)| *variable).collect::<Vec<_>>(), "in the order of the file, each once");
    }

    #[test]
    fn every_setting_has_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let two = "[[repository]]\nurl = \"/a\"\n[[repository]]\nurl = \"/b\"\n";
        let known: BTreeSet<String> =
            shown(&resolve(directory.path(), two)).into_keys().filter(|key| !key.starts_with("repository.2.")).collect();
        let of_table = |table: &Table| table.entries.iter().map(|entry| name(table, entry.key)).collect::<Vec<_>>();
        let mut listed: BTreeSet<String> =
            TABLES.iter().filter(|table| !matches!(table.header, "[[drill.assert]]" | "[[alerts.sink]]")).flat_map(of_table).collect();
        listed.extend(["drill.assert".to_owned(), "alerts.sink".to_owned()]);
        // `config show` has both of them in one word.
        for (written, shown) in [("repository.required", "repository.part"), ("repository.kept_by", "repository.part")] {
            assert!(listed.remove(written), "{written}");
            listed.insert(shown.to_owned());
        }
        let missing: Vec<_> = known.difference(&listed).collect();
        assert!(missing.is_empty(), "settings without a line in config/reference.rs: {missing:?}");
        let unknown: Vec<_> = listed.difference(&known).collect();
        assert!(unknown.is_empty(), "lines of settings that config show does not know: {unknown:?}");
    }
}
