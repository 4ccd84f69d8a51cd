//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lifeboat_core::repository::Sha256;
use lifeboat_core::wal::SystemId;
use lifeboat_core::wal::catalog::Promise;
use lifeboat_core::wal::fetch::{Left, Own};

use crate::commands::key;

/// Disaster recovery you have already rehearsed: PostgreSQL and artifacts, signed, restored, proven
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version, propagate_version = true, disable_help_subcommand = true, max_term_width = 110)]
pub(crate) struct Cli {
    /// Configuration file [default: ./lifeboat.toml, then /etc/lifeboat/lifeboat.toml]
    #[arg(long, global = true, value_name = "FILE", env = "LIFEBOAT_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Repository: a directory, file://, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix
    #[arg(long, global = true, value_name = "URL", env = "LIFEBOAT_REPOSITORY")]
    pub(crate) repository: Option<String>,
    /// Leave a configured repository out, as if it were not configured: because it is lost
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "repository")]
    pub(crate) without_repository: Vec<String>,
    /// Read the repository as it was at this time (RFC 3339), where its bucket keeps versions: what was deleted or overwritten since is there
    #[arg(long, global = true, value_name = "TIME")]
    pub(crate) as_of: Option<jiff::Timestamp>,
    /// Print one JSON document on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Form of the lines on stderr: text for people, or json, one object a line [default: text]
    #[arg(long, global = true, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) log_format: Option<crate::log::Format>,
    /// Go around the approvals, and say why: only where the policy allows that; everybody is told
    #[arg(long, global = true, value_name = "REASON", value_parser = crate::commands::approval::said)]
    pub(crate) break_glass: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a repository, keys where there are none, and a configuration file if asked
    Init(Init),
    /// Try out repository, keys, server and clock, and say what is wrong and how to set it right
    Doctor,
    /// Say how the system stands: whether it can be recovered, to when, how fast, and when that was proven
    Status(crate::commands::status::StatusCommand),
    /// Run day and night: backups, verification, expiry, replication, drills, WAL, alerts, a status page
    Agent(crate::commands::agent::Agent),
    /// Take a backup of the database and the artifacts
    Backup(Backup),
    /// List backups
    List,
    /// Show everything about one backup
    Show(Show),
    /// Check signatures and every stored byte
    Verify(Verify),
    /// Restore a backup
    Restore(Restore),
    /// Prove that backups restore: restore into a place of its own, check, measure, leave signed evidence
    #[command(subcommand)]
    Drill(crate::commands::drill::Drill),
    /// Bring replicas to what the primary has: compare, copy, heal
    Replicate(Replicate),
    /// Mark the backups that no rule keeps, to be pruned after a grace period; or undo that
    Expire(Expire),
    /// Delete what only expired backups needed, and what nothing names
    Prune(Prune),
    /// Ask others to approve a restore or a prune, approve one, see who did
    #[command(subcommand)]
    Approval(crate::commands::approval::Approval),
    /// Hold a backup, whatever the rules say
    Pin(Pin),
    /// End a pin
    Unpin(Unpin),
    /// Store, fetch and check artifacts
    #[command(subcommand)]
    Artifact(Artifact),
    /// Give this moment a name that recovery can go back to, before a deployment for example
    RestorePoint(RestorePoint),
    /// Archive, fetch and receive WAL, and show how far back and forth recovery can go
    #[command(subcommand)]
    Wal(Wal),
    /// Make, list, replace, revoke and hand out keys
    #[command(subcommand)]
    Key(Key),
    /// Show and check who did what with the repository
    #[command(subcommand)]
    Audit(crate::commands::audit::Audit),
    /// Ask the policy, test it, print it
    #[command(subcommand)]
    Policy(crate::commands::policy::Policy),
    /// Try out whether alerts arrive, list which there are
    #[command(subcommand)]
    Alert(crate::commands::alert::Alert),
    /// Look at the configuration
    #[command(subcommand)]
    Config(Config),
    /// Run the main job on data of its own: back up, lose everything, restore, verify
    Demo(Demo),
    /// Print a shell completion script
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each command and one for the configuration file
    #[command(hide = true)]
    Man {
        /// Write them into this directory, which is made if it is missing
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Write a commented configuration to this file, with what is found of a server on this host
    #[arg(long, value_name = "FILE")]
    pub(crate) write_config: Option<PathBuf>,
    /// Name of the protected system, for the configuration
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// How to reach the server, for the configuration [default: the PG* variables, then /var/run/postgresql]
    #[arg(long, value_name = "DSN")]
    pub(crate) dsn: Option<String>,
    /// Data directory of the server, for the configuration [default: as the server says]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_directory: Option<PathBuf>,
    /// Directory of the artifacts, for the configuration
    #[arg(long, value_name = "DIR")]
    pub(crate) artifacts: Option<PathBuf>,
    /// Directory for spool, journal and drills, for the configuration: /var/lib/lifeboat where the Debian package is
    #[arg(long, value_name = "DIR")]
    pub(crate) state_directory: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackupType {
    /// Whatever fits
    Auto,
    /// Everything
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Copy {
    /// Whatever fits
    Auto,
    /// From the data directory on this host
    Local,
    /// Through the replication protocol
    Stream,
    /// With pg_dump
    Logical,
}

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// How much to copy
    #[arg(long = "type", value_enum, default_value = "auto", value_name = "TYPE")]
    pub(crate) kind: BackupType,
    /// Back up into this repository and make it if it is not there
    #[arg(long, value_name = "DIR|URL")]
    pub(crate) output: Option<String>,
    /// Include the database; the default where the configuration names one
    #[arg(long)]
    pub(crate) include_postgres: bool,
    /// Leave the database out, also where the configuration names one
    #[arg(long, conflicts_with_all = ["include_postgres", "copy"])]
    pub(crate) exclude_postgres: bool,
    /// Name the database in the manifest and copy nothing of it
    #[arg(long, requires = "include_postgres")]
    pub(crate) record_only: bool,
    /// How to copy the database
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) copy: Option<Copy>,
    /// Take the WAL that the backup needs into the backup, so that it restores on its own; always so in this version
    #[arg(long)]
    pub(crate) standalone: bool,
    /// Spread the checkpoint out instead of doing it at once
    #[arg(long)]
    pub(crate) spread_checkpoint: bool,
    /// Name of the protected system
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The artifact directory is meant to be empty
    #[arg(long)]
    pub(crate) allow_empty: bool,
    /// Print what would be done; needs no secret and no server, and changes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Backup id, or latest
    pub(crate) backup: String,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Backup id, or latest
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub(crate) backup: Option<String>,
    /// Every backup
    #[arg(long)]
    pub(crate) all: bool,
    /// Only this one of the configured repositories; otherwise each of them, by itself
    #[arg(long, value_name = "NAME")]
    pub(crate) repository_name: Option<String>,
    /// Read only so many percent of the data, another part each day: 5 percent a day are everything in 20 days
    #[arg(long, value_name = "PERCENT", default_value_t = 100.0)]
    pub(crate) sample: f64,
    /// Choose the sample, which begins where that of the number before ends; printed by every sampled run
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,
    /// Restore identity: opens and compares every byte
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY_FILE")]
    pub(crate) identity: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Replicate {
    /// Copy from this repository instead of the primary
    #[arg(long, value_name = "NAME")]
    pub(crate) from: Option<String>,
    /// Only to this one, and not to every other
    #[arg(long, value_name = "NAME")]
    pub(crate) to: Option<String>,
    /// Bring only what this host knows that they missed, without comparing listings
    #[arg(long, conflicts_with_all = ["full", "check", "dry_run"])]
    pub(crate) missed: bool,
    /// Read every object on both sides and heal what is damaged
    #[arg(long)]
    pub(crate) full: bool,
    /// Read every object on both sides and change nothing
    #[arg(long, conflicts_with_all = ["full", "dry_run"])]
    pub(crate) check: bool,
    /// Print what would be done, from the listings alone; changes nothing
    #[arg(long, conflicts_with = "full")]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Archiving {
    /// Archive nothing, so that a copy cannot write into the archive of the original
    Off,
    /// As the restored configuration says
    Preserve,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Backup id, or latest
    #[arg(required_unless_present = "approved")]
    pub(crate) backup: Option<String>,
    /// Run the plan with this digest, as it was approved; what it restores, and where to, stands in it
    #[arg(long, value_name = "DIGEST")]
    pub(crate) approved: Option<Sha256>,
    /// Put the cluster here; must be empty or missing
    #[arg(long, value_name = "DIR")]
    pub(crate) pgdata: Option<PathBuf>,
    /// Put the artifacts here; must be empty or missing
    #[arg(long, value_name = "DIR")]
    pub(crate) artifacts: Option<PathBuf>,
    /// Put a tablespace elsewhere
    #[arg(long, value_name = "NAME=DIR")]
    pub(crate) tablespace: Vec<String>,
    /// Recover to this time (RFC 3339)
    #[arg(long, value_name = "TIME", group = "target")]
    pub(crate) target_time: Option<String>,
    /// Recover to this LSN
    #[arg(long, value_name = "LSN", group = "target")]
    pub(crate) target_lsn: Option<String>,
    /// Recover to this restore point
    #[arg(long, value_name = "NAME", group = "target")]
    pub(crate) target_name: Option<String>,
    /// Recover to this transaction
    #[arg(long, value_name = "XID", group = "target")]
    pub(crate) target_xid: Option<u64>,
    /// Recover only until the copy is consistent
    #[arg(long, group = "target")]
    pub(crate) target_immediate: bool,
    /// Stop before what the target names, not behind it
    #[arg(long, requires = "target", conflicts_with_all = ["target_immediate", "target_name"])]
    pub(crate) exclusive: bool,
    /// Along which timeline: latest, current (the backup's own) or a number
    #[arg(long, value_name = "TIMELINE", default_value = "latest")]
    pub(crate) target_timeline: String,
    /// Use the WAL in the backup only, whatever the archive has
    #[arg(long)]
    pub(crate) standalone: bool,
    /// Start the server and wait for its first query
    #[arg(long)]
    pub(crate) start: bool,
    /// How long starting may take, recovery included, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 14_400)]
    pub(crate) start_timeout: u64,
    /// Restore a backup in which pages were damaged
    #[arg(long)]
    pub(crate) accept_degraded: bool,
    /// What the restored server does with its archive
    #[arg(long, value_enum, default_value = "off", value_name = "MODE")]
    pub(crate) archive_mode: Archiving,
    /// Where the programs of the server's version are
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_directory: Option<PathBuf>,
    /// Restore identity
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY_FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Print the plan; needs no secret and no server, and changes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Artifact {
    /// Store a file as a new version of an artifact
    Put {
        /// Name of the artifact
        name: String,
        /// File, or - for standard input
        file: PathBuf,
    },
    /// Fetch an artifact, its signature and digest verified
    // --version is the artifact's here, not the program's.
    #[command(disable_version_flag = true)]
    Get {
        /// Name of the artifact
        name: String,
        /// Where to, or - for standard output
        #[arg(long, short, value_name = "FILE", default_value = "-")]
        output: PathBuf,
        /// This version instead of the present one
        #[arg(long)]
        version: Option<String>,
        /// Replace the file
        #[arg(long)]
        force: bool,
        /// Restore identity
        #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY_FILE")]
        identity: Option<PathBuf>,
    },
    /// List artifacts
    List {
        /// Only names that begin so
        prefix: Option<String>,
        /// All stored versions of the artifact with exactly this name
        #[arg(long, conflicts_with = "backup")]
        versions: bool,
        /// The set of this backup instead of the present one
        #[arg(long)]
        backup: Option<String>,
    },
    /// Check the signature and the bytes of every artifact
    Verify {
        /// The set of this backup instead of the present one
        #[arg(long)]
        backup: Option<String>,
        /// Restore identity: opens and compares every byte
        #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY_FILE")]
        identity: Option<PathBuf>,
    },
    /// Make the set what a directory is: store what is new, drop what is gone
    Sync {
        /// The directory
        directory: PathBuf,
        /// The directory is meant to be empty
        #[arg(long)]
        allow_empty: bool,
        /// Read every file, whatever its time of change says
        #[arg(long)]
        read_all: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a signing key, a restore identity and a host identity
    Generate(key::Generate),
    /// List whose signatures count, for what, and until when
    List,
    /// Print the public half of the key that signs here
    Public,
    /// Make a new signing key beside the old one, and retire the old one
    Rotate(key::Rotate),
    /// Declare that a key was stolen: what it signed since then does not count
    Revoke(key::Revoke),
    /// Hand out the data keys of one backup, so that somebody can read that one
    Export(key::Export),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Print each setting and where it came from
    Show,
    /// Print a configuration file with a line for every setting, each commented out
    Example,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Directory for everything; must be empty or missing [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Where the server's programs are
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_directory: Option<PathBuf>,
    /// pgbench scale: 16 MB each
    #[arg(long, default_value_t = 10)]
    pub(crate) scale: u32,
    /// Artifacts
    #[arg(long, default_value_t = 3000)]
    pub(crate) artifacts: u32,
    /// Leave everything behind to look at
    #[arg(long)]
    pub(crate) keep: bool,
    /// Damage the repository after the backup: the demo must fail
    #[arg(long, hide = true)]
    pub(crate) damage: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Expire {
    /// Keep so many of the newest
    #[arg(long, value_name = "NUMBER")]
    pub(crate) keep_last: Option<u32>,
    /// Keep the newest of each of the last so many days that have one
    #[arg(long, value_name = "NUMBER")]
    pub(crate) keep_daily: Option<u32>,
    /// The same of weeks
    #[arg(long, value_name = "NUMBER")]
    pub(crate) keep_weekly: Option<u32>,
    /// The same of months
    #[arg(long, value_name = "NUMBER")]
    pub(crate) keep_monthly: Option<u32>,
    /// The same of years
    #[arg(long, value_name = "NUMBER")]
    pub(crate) keep_yearly: Option<u32>,
    /// Keep what it takes to go back to any moment of this span
    #[arg(long, value_name = "SPAN")]
    pub(crate) recovery_window: Option<String>,
    /// Leave expired backups whole for so long
    #[arg(long, value_name = "SPAN")]
    pub(crate) grace: Option<String>,
    /// Undo the expiry of this backup, which was not pruned yet
    #[arg(long, value_name = "BACKUP", conflicts_with_all = ["keep_last", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "recovery_window", "grace"])]
    pub(crate) undo: Option<String>,
    /// Print what would be done; needs no secret, and changes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Give up this backup, whose manifest is lost or cannot be verified, so that others can be pruned
    #[arg(long, value_name = "BACKUP")]
    pub(crate) forget: Vec<String>,
    /// Only if the plan is still the one with this digest, which was approved
    #[arg(long, value_name = "DIGEST")]
    pub(crate) approved: Option<Sha256>,
    /// Print what would be done; needs no secret, and changes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Pin {
    /// Backup id, or latest
    pub(crate) backup: String,
    /// Name of the pin: a-z, 0-9 and -; used once for a backup
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// What for
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// When it ends by itself (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Print what would be done; needs no secret, and changes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Unpin {
    /// Backup id, or latest
    pub(crate) backup: String,
    /// Name of the pin
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// Why it is no longer needed
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// Print what would be done; needs no secret, and changes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    /// clap looks at a subcommand only when somebody types it.
    #[test]
    fn every_command_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Wal {
    /// Store a finished WAL file: archive_command = 'lifeboat wal push %p'
    Push(WalPush),
    /// Bring a WAL file back: restore_command = 'lifeboat wal fetch %f %p'
    Fetch(WalFetch),
    /// Fetch what follows a segment into the spool; started by fetch
    #[command(hide = true)]
    Prefetch(WalPrefetch),
    /// Receive WAL from the server as it is written
    Receive(WalReceive),
    /// Show ranges, gaps, lag and the recovery window
    Status(WalStatus),
}

#[derive(Debug, Args)]
pub(crate) struct WalPush {
    /// The file, as PostgreSQL gives it (%p)
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct WalFetch {
    /// Name of the file (%f)
    #[arg(value_name = "FILE")]
    pub(crate) file: String,
    /// Where it goes (%p)
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// The cluster, where this is not run in its data directory
    #[arg(long, value_name = "NUMBER")]
    pub(crate) system_id: Option<SystemId>,
    /// Bytes in one of its segments, where neither data directory nor repository says it
    #[arg(long, value_name = "SIZE")]
    pub(crate) segment_size: Option<String>,
    /// Restore identity
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY_FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// The archive had all WAL up to here: what is missing before, on the way to there, is trouble and not the end
    #[arg(long, value_name = "TIMELINE:LSN")]
    pub(crate) promised: Option<Promise>,
    /// The history that is restored leaves a timeline here: WAL of it from there on is not of the history
    #[arg(long, value_name = "TIMELINE:LSN")]
    pub(crate) left: Vec<Left>,
    /// The backup brought this WAL itself: where the archive has less of it, the server is to take that
    #[arg(long, value_name = "TIMELINE:LSN-LSN")]
    pub(crate) own: Option<Own>,
    /// The repository has no WAL of this cluster, and that is right
    #[arg(long)]
    pub(crate) allow_empty: bool,
    /// On trouble, exit with 1: PostgreSQL takes it for the end of the archive; the default where standby.signal is
    #[arg(long)]
    pub(crate) lenient: bool,
    /// On trouble, exit with 200: PostgreSQL stops; the default, but for standbys
    #[arg(long, conflicts_with = "lenient")]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WalPrefetch {
    /// Restore identity
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY_FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// The segment that was asked for last
    pub(crate) file: String,
    /// The cluster
    #[arg(long)]
    pub(crate) system_id: SystemId,
    /// Bytes in one of its segments
    #[arg(long)]
    pub(crate) segment_size: u32,
}

#[derive(Debug, Args)]
pub(crate) struct WalReceive {
    /// Make the replication slot and end: before the first base backup
    #[arg(long, conflicts_with_all = ["drop_slot", "once", "drain"])]
    pub(crate) create_slot_only: bool,
    /// Drop the replication slot and end; the server then keeps no WAL for this receiver any more
    #[arg(long, conflicts_with_all = ["once", "drain"])]
    pub(crate) drop_slot: bool,
    /// End when everything is stored that the server has now
    #[arg(long)]
    pub(crate) once: bool,
    /// Store what waits in the spool, without a server, and end: where another receiver follows the server by now, or it is lost
    #[arg(long, conflicts_with_all = ["once", "unless_received", "accept_fork"])]
    pub(crate) drain: bool,
    /// End where another receiver has the slot
    #[arg(long, hide = true, conflicts_with = "once")]
    pub(crate) unless_received: bool,
    /// Follow a server also where its history left ours before the end of the WAL that is here
    #[arg(long)]
    pub(crate) accept_fork: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WalStatus {
    /// Read back what was not read back before: signatures and bytes
    #[arg(long)]
    pub(crate) verify: bool,
    /// Restore identity: with it, plain bytes are compared, not only stored ones
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY_FILE")]
    pub(crate) identity: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RestorePoint {
    /// The name; best one that is never used again
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Wait so long (60s if no time is given) until its WAL is in the repository, and fail if it does not get there
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "60s")]
    pub(crate) wait: Option<String>,
}
