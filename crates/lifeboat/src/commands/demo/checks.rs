//! What must hold after the restore, each with a name, an answer and the figures behind it.
//!
//! Judges by the restored server's own answers and by other programs (sha256sum, pg_amcheck, pg_checksums), not by what
//! lifeboat said about itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use lifeboat_engine::postgres::Connection;
use serde::Serialize;

use super::orchestrator::Commit;
use super::place::Place;
use super::server::{self, Programs};
use crate::failure::{EXIT_FAILED, Failure};

/// One thing that must hold.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) holds: bool,
    pub(super) detail: String,
}

impl Check {
    pub(super) fn new(name: &'static str, holds: bool, detail: impl Into<String>) -> Self {
        Self { name, holds, detail: detail.into() }
    }
}

/// Count and digest of rows that nothing changes any more, per table.
pub(super) type Fingerprint = BTreeMap<&'static str, (u64, String)>;

/// Reads the fingerprint of everything that was committed up to build `last`.
pub(super) fn fingerprint(connection: &Connection, last: u64) -> Result<Fingerprint, Failure> {
    let mut all = Fingerprint::new();
    for (table, key, build) in [("builds", "id", "id"), ("runs", "id", "build_id"), ("artifacts", "name COLLATE \"C\"", "build_id")] {
        let sql = format!(
            "SELECT count(*) AS n, encode(sha256(convert_to(coalesce(string_agg(t::text, E'\\n' ORDER BY {key}), ''), 'UTF8')), 'hex') AS digest
             FROM public.{table} t WHERE {build} <= {last}"
        );
        let rows = connection.query(&sql, &[])?;
        let row = rows.one()?;
        all.insert(table, (row.parse("n")?, row.get("digest")?.to_owned()));
    }
    Ok(all)
}

/// One number.
pub(super) fn number(connection: &Connection, sql: &str) -> Result<u64, Failure> {
    Ok(connection.query(&format!("SELECT ({sql})::bigint AS n"), &[])?.one()?.parse("n")?)
}

/// Every row that was there before the backup began.
pub(super) fn rows_before(before: &Fingerprint, after: &Fingerprint) -> Check {
    let detail = before.iter().map(|(table, (count, digest))| {
        let (count_after, digest_after) = after.get(table).cloned().unwrap_or_default();
        if count_after == *count && digest_after == *digest {
            format!("{count} {table}")
        } else {
            format!("{table}: {count_after} of {count} rows, digest {digest_after} instead of {digest}")
        }
    });
    let detail: Vec<String> = detail.collect();
    Check::new("rows-before-backup", before == after, detail.join(", ") + ": equal count and digest")
}

/// pgbench changes four tables in each transaction by the same amount: a torn copy would show here.
pub(super) fn pgbench(connection: &Connection, scale: u32, history_before: u64) -> Result<Check, Failure> {
    let rows = connection.query(
        "SELECT (SELECT coalesce(sum(abalance), 0) FROM public.pgbench_accounts) AS accounts,
                (SELECT coalesce(sum(tbalance), 0) FROM public.pgbench_tellers) AS tellers,
                (SELECT coalesce(sum(bbalance), 0) FROM public.pgbench_branches) AS branches,
                (SELECT coalesce(sum(delta), 0) FROM public.pgbench_history) AS history,
                (SELECT count(*) FROM public.pgbench_accounts) AS rows,
                (SELECT count(*) FROM public.pgbench_history) AS transactions",
        &[],
    )?;
    let row = rows.one()?;
    let sums: Vec<i64> = ["accounts", "tellers", "branches", "history"].iter().map(|name| row.parse(name)).collect::<Result<_, _>>()?;
    let (accounts, transactions): (u64, u64) = (row.parse("rows")?, row.parse("transactions")?);
    let expected = u64::from(scale) * 100_000;
    let holds = sums.windows(2).all(|pair| pair[0] == pair[1]) && accounts == expected && transactions >= history_before;
    let detail = format!(
        "sums of accounts, tellers, branches, history {sums:?}; {accounts} of {expected} accounts; {transactions} transactions, {history_before} before the backup"
    );
    Ok(Check::new("pgbench-balances", holds, detail))
}

/// Builds that were committed while the backup ran: those up to the recovery point are there, without a gap.
pub(super) struct Recovered {
    pub(super) check: Check,
    pub(super) restored: u64,
    /// When the last build that came back was committed.
    pub(super) last_at: Option<Timestamp>,
}

pub(super) fn commits(connection: &Connection, first: u64, commits: &[Commit], point: Timestamp) -> Result<Recovered, Failure> {
    let restored = number(connection, &format!("SELECT count(*) FROM public.builds WHERE id > {first}"))?;
    let last = number(connection, "SELECT max(id) FROM public.builds")?;
    let promised = commits.iter().take_while(|commit| commit.at <= point).last();
    let holds = last == first + restored && promised.is_none_or(|promised| promised.build <= last);
    let detail = format!(
        "{restored} of {} builds that were committed until the failure came back, without a gap; the recovery point promises {}",
        commits.len(),
        promised.map_or(0, |promised| promised.build - first)
    );
    let last_at = commits.iter().find(|commit| commit.build == last).map(|commit| commit.at);
    Ok(Recovered { check: Check::new("commits-until-recovery-point", holds, detail), restored, last_at })
}

/// Every artifact that the restored database refers to, read with sha256sum.
pub(super) fn files(connection: &Connection, place: &Place, artifacts: &Path) -> Result<Check, Failure> {
    let rows = connection.query("SELECT name, sha256, size FROM public.artifacts ORDER BY name", &[])?;
    let mut list = String::new();
    for row in rows.iter() {
        list.push_str(&format!("{}  {}\n", row.get("sha256")?, row.get("name")?));
    }
    let path = place.join("expected.sha256");
    let failed = |error: std::io::Error| Failure::new(EXIT_FAILED, format!("check artifacts with sha256sum: {error}"));
    std::fs::write(&path, list).map_err(failed)?;
    let mut command = Command::new("sha256sum");
    command.args(["--check", "--quiet", "--strict"]).arg(&path).current_dir(artifacts).stdin(Stdio::null());
    server::say_command(&format!("cd {} && sha256sum --check --quiet --strict ../../expected.sha256", relative(place, artifacts)));
    let output = command.output().map_err(failed)?;
    let complaint = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).lines().next().unwrap_or_default().to_owned();
    let holds = output.status.success() && !rows.is_empty();
    let detail =
        format!("{} rows, each with its file and digest{}", rows.len(), if holds { String::new() } else { format!(": {complaint}") });
    Ok(Check::new("artifacts-in-database", holds, detail))
}

/// A path as it is printed: seen from the demo's directory.
pub(super) fn relative(place: &Place, path: &Path) -> String {
    path.strip_prefix(&place.directory).unwrap_or(path).display().to_string()
}

/// PostgreSQL's own check of tables and indexes, where it is installed.
pub(super) fn amcheck(
    connection: &Connection,
    place: &Place,
    programs: &Programs,
    host: &str,
    port: &str,
) -> Result<Option<Check>, Failure> {
    let available = number(connection, "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'")? > 0;
    if !available || programs.path("pg_amcheck").is_none() {
        return Ok(None);
    }
    let arguments = ["--all", "--install-missing", "--heapallindexed", "--host", host, "--port", port, "--username", "postgres"];
    server::say_command(&format!("pg_amcheck {}", arguments.join(" ")));
    let output = programs.command(place, "pg_amcheck").args(arguments).output();
    Ok(Some(judge("pg_amcheck", "tables and B-tree indexes of all databases, every heap row in its indexes", output)))
}

/// PostgreSQL's own check of every page of a stopped cluster, where it is installed.
pub(super) fn checksums(place: &Place, programs: &Programs, data: &Path) -> Option<Check> {
    programs.path("pg_checksums")?;
    server::say_command(&format!("pg_checksums --check --pgdata {}", relative(place, data)));
    let output = programs.command(place, "pg_checksums").arg("--check").arg("--pgdata").arg(data).output();
    Some(judge("pg_checksums", "the checksum of every page", output))
}

fn judge(name: &'static str, good: &str, output: std::io::Result<std::process::Output>) -> Check {
    match output {
        Ok(output) if output.status.success() => Check::new(name, true, good),
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            Check::new(name, false, format!("{}: {}", output.status, text.lines().take(3).collect::<Vec<_>>().join("; ")))
        }
        Err(error) => Check::new(name, false, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_less_or_another_row_does_not_hold() {
        let of = |count, digest: &str| Fingerprint::from([("builds", (count, digest.to_owned()))]);
        assert!(rows_before(&of(3, "aa"), &of(3, "aa")).holds);
        let less = rows_before(&of(3, "aa"), &of(2, "bb"));
        assert!(!less.holds && less.detail.contains("2 of 3 rows"), "{less:?}");
        assert!(!rows_before(&of(3, "aa"), &of(3, "ab")).holds);
        assert!(!rows_before(&of(3, "aa"), &Fingerprint::new()).holds);
    }
}
