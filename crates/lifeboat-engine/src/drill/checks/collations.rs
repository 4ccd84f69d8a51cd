//! Do collations sort here as they did where the indexes were built? A library that sorts otherwise makes an index of text useless in silence.

use lifeboat_core::drill::{Check, CheckResult};
use lifeboat_core::repository::manifest::Manifest;

use super::{Gathered, Target, identifier, timed};
use crate::postgres::{Connection, PgError};

/// The OID of the database's default collation (`src/include/catalog/pg_collation.dat`).
const DEFAULT_COLLATION: &str = "100";

/// Compares the versions that the cluster recorded for its collations with those that the libraries of this host have (manual,
/// `ALTER COLLATION`, "Notes"): of each database (from PostgreSQL 15), and of each collation of each database that something depends on.
/// Where the cluster recorded nothing, the C library of the host that took the backup is compared.
pub fn collations(target: &Target<'_>, manifest: &Manifest) -> CheckResult {
    timed(|| {
        let mut gathered = Gathered::default();
        let mut seen = Seen::default();
        let recorded_libc = manifest.postgres.as_ref().and_then(|postgres| postgres.libc.as_deref());
        match super::session(target.dsn, None, target.budget.left()) {
            Ok(connection) => {
                if let Err(error) = databases(target, &connection, recorded_libc, &mut seen, &mut gathered) {
                    gathered.error("compare the collations of databases", &error);
                }
            }
            Err(error) => gathered.error("connect", &error),
        }
        match target.databases() {
            Ok(all) => {
                for (_, database) in all {
                    let compared = target.connect(&database).and_then(|connection| own(&connection, &database, &mut seen, &mut gathered));
                    if let Err(error) = compared {
                        gathered.error(&format!("compare the collations of database {database}"), &error);
                    }
                }
            }
            Err(error) => gathered.error("list the databases", &error),
        }
        let good = match (seen.versions, seen.unversioned) {
            (0, _) => "nothing here sorts by a library that has versions".to_owned(),
            (versions, 0) => format!("all {versions} collation versions are those of the indexes"),
            (versions, more) => format!("all {versions} collation versions are those of the indexes; {more} databases sort without one"),
        };
        gathered.result(Check::Collations, good).of(seen.versions, seen.versions, "collations", None)
    })
}

#[derive(Default)]
struct Seen {
    /// Versions that were compared.
    versions: u64,
    /// Databases whose collation has none: `C`, `POSIX`, builtin.
    unversioned: u64,
}

fn databases(
    target: &Target<'_>,
    connection: &Connection,
    recorded_libc: Option<&str>,
    seen: &mut Seen,
    gathered: &mut Gathered,
) -> Result<(), PgError> {
    let has_versions = connection.server_version() >= 150_000;
    let versions = if has_versions {
        "datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual, datlocprovider::text AS provider"
    } else {
        "NULL::text AS recorded, NULL::text AS actual, 'c' AS provider"
    };
    let rows = connection.query(&format!("SELECT datname, datcollate, datallowconn, {versions} FROM pg_database ORDER BY datname"), &[])?;
    let libc = libc_version(connection)?;
    for row in rows.iter() {
        let name = row.get("datname")?;
        // Before 15, and in clusters that came from there, only the library as a whole can be compared.
        let locale = row.get("datcollate")?;
        let (recorded, actual) = match (row.get_opt("recorded")?, row.get_opt("actual")?) {
            (Some(recorded), actual) => (recorded, actual),
            (None, _) if row.get("provider")? == "c" && !sorts_by_bytes(locale) => match (recorded_libc, libc.as_deref()) {
                (Some(recorded), Some(actual)) => (recorded, Some(actual)),
                // template0 has none: nothing in it sorts.
                _ if name == "template0" => continue,
                (recorded, _) => {
                    let why = match recorded {
                        None => "neither the cluster nor the backup recorded the version of",
                        Some(_) => "the server does not say which version is here of",
                    };
                    gathered.unable(format!("database {name}: {why} {locale}"));
                    continue;
                }
            },
            (None, _) => {
                seen.unversioned += 1;
                continue;
            }
        };
        seen.versions += 1;
        if actual == Some(recorded) {
            continue;
        }
        let indexes = match row.bool("datallowconn")? {
            true => target.connect(name).and_then(|connection| dependent(&connection, &[DEFAULT_COLLATION])).ok(),
            false => None,
        };
        let said = indexes.map_or_else(String::new, |count| format!(", which {count} indexes depend on"));
        let quoted = identifier(name);
        let refresh = if has_versions { format!("; ALTER DATABASE {quoted} REFRESH COLLATION VERSION") } else { String::new() };
        gathered.bad(format!(
            "database {name}: its collation {locale} had version {recorded} and has {} here{said}: REINDEX DATABASE {quoted}{refresh}",
            actual.unwrap_or("none")
        ));
    }
    Ok(())
}

/// Locales that compare bytes, and so never change (`src/backend/utils/adt/pg_locale.c`, `get_collation_actual_version`).
fn sorts_by_bytes(locale: &str) -> bool {
    let locale = locale.to_ascii_uppercase();
    locale == "C" || locale == "POSIX" || locale.starts_with("C.")
}

/// The version of the C library, as PostgreSQL tells it of any collation of it.
fn libc_version(connection: &Connection) -> Result<Option<String>, PgError> {
    let sql =
        "SELECT max(pg_collation_actual_version(oid)) AS version FROM pg_collation WHERE collprovider = 'c' AND collversion IS NOT NULL";
    match connection.query(sql, &[]) {
        Ok(rows) => Ok(rows.one()?.get_opt("version")?.map(str::to_owned)),
        Err(PgError::Sql { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How many indexes sort by one of these collations.
fn dependent(connection: &Connection, collations: &[&str]) -> Result<u64, PgError> {
    let list = format!("{{{}}}", collations.join(","));
    let sql = "SELECT count(DISTINCT i.indexrelid) AS indexes FROM pg_index i, unnest(i.indcollation::oid[]) AS c(oid) \
               WHERE c.oid = ANY ($1::oid[])";
    connection.query(sql, &[Some(&list)])?.one()?.parse("indexes")
}

/// Compares the collations that a database has for itself.
fn own(connection: &Connection, database: &str, seen: &mut Seen, gathered: &mut Gathered) -> Result<(), PgError> {
    // Of the many that initdb makes, those count that something depends on.
    let sql = "SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.collname) AS name, c.collversion AS recorded, \
               pg_collation_actual_version(c.oid) AS actual, \
               EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_collation'::regclass AND d.refobjid = c.oid) AS used \
               FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.collversion IS NOT NULL ORDER BY 2";
    let rows = connection.query(sql, &[])?;
    let mut unused = 0;
    for row in rows.iter() {
        let (recorded, actual) = (row.get("recorded")?, row.get_opt("actual")?);
        let oid = row.get("oid")?;
        let used = row.bool("used")? || dependent(connection, &[oid]).unwrap_or(1) > 0;
        if used {
            seen.versions += 1;
        }
        if actual == Some(recorded) {
            continue;
        }
        if !used {
            unused += 1;
            continue;
        }
        let name = row.get("name")?;
        let indexes = dependent(connection, &[oid])?;
        gathered.bad(format!(
            "collation {name} of database {database} had version {recorded} and has {} here, which {indexes} indexes depend on: \
             REINDEX them; ALTER COLLATION {name} REFRESH VERSION",
            actual.unwrap_or("none")
        ));
    }
    if unused > 0 {
        gathered.note(format!("database {database}: {unused} collations that nothing depends on have another version here"));
    }
    Ok(())
}
