//! Is in the catalogs what was there when the backup was taken, and does this host have the files that it needs?

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_core::drill::{Check, CheckResult, Outcome};
use lifeboat_core::repository::manifest::{Manifest, PostgresEntry};

use super::{Gathered, Target, timed};
use crate::postgres::{Connection, PgError};

/// Compares databases, tablespaces and extensions with the backup's record; tries whether every library that a function or a setting names
/// can be loaded by this host's server; looks for objects without an owner; and says what an operator should know: invalid indexes,
/// prepared transactions that still hold their locks, unlogged tables, which are empty after a recovery.
///
/// `later`: recovery went on behind the end of the backup, so that what differs may have been changed on purpose: then it is said, and no
/// failure.
pub fn catalog(target: &Target<'_>, manifest: &Manifest, later: bool) -> CheckResult {
    timed(|| {
        let mut gathered = Gathered::default();
        let mut counts = Counts::default();
        let Some(postgres) = &manifest.postgres else {
            return CheckResult::new(Check::Catalog, Outcome::NotApplicable, "the backup has no database");
        };
        match super::session(target.dsn, None, target.budget.left()) {
            Ok(connection) => {
                if let Err(error) = cluster(&connection, postgres, later, &mut gathered) {
                    gathered.error("read the catalogs of the cluster", &error);
                }
            }
            Err(error) => gathered.error("connect", &error),
        }
        match target.databases() {
            Ok(all) => {
                counts.databases = all.len() as u64;
                for (_, name) in &all {
                    let looked = target
                        .connect(name)
                        .and_then(|connection| database(&connection, name, postgres, later, &mut counts, &mut gathered));
                    if let Err(error) = looked {
                        // A database that takes connections and gives none is not back.
                        gathered.bad(format!("database {name}: {error}"));
                    }
                }
            }
            Err(error) => gathered.error("list the databases", &error),
        }
        if postgres.databases.is_empty() {
            gathered.unable("the backup did not record databases and extensions: its role may only replicate".into());
        }
        let good = format!(
            "{} databases and {} extensions are there, and {} libraries can be loaded",
            counts.databases, counts.extensions, counts.libraries
        );
        let databases = counts.databases;
        gathered.result(Check::Catalog, good).of(databases, databases, "databases", None)
    })
}

#[derive(Default)]
struct Counts {
    databases: u64,
    extensions: u64,
    libraries: u64,
}

/// A difference from the record.
fn differs(gathered: &mut Gathered, later: bool, what: String) {
    if later {
        gathered.note(format!("since the backup: {what}"));
    } else {
        gathered.bad(what);
    }
}

/// What belongs to all databases.
fn cluster(connection: &Connection, postgres: &PostgresEntry, later: bool, gathered: &mut Gathered) -> Result<(), PgError> {
    let rows = connection.query("SELECT oid, datname, datconnlimit FROM pg_database ORDER BY oid", &[])?;
    let mut here: BTreeMap<u32, String> = BTreeMap::new();
    for row in rows.iter() {
        here.insert(row.parse("oid")?, row.get("datname")?.to_owned());
        // DATCONNLIMIT_INVALID_DB (`src/include/catalog/pg_database.h`).
        if row.get("datconnlimit")? == "-2" {
            gathered.note(format!("database {} is invalid: its DROP DATABASE was interrupted", row.get("datname")?));
        }
    }
    // pg_restore gives databases other numbers: then names have to do.
    let physical = postgres.copy.is_physical();
    for database in &postgres.databases {
        let found = match physical {
            true => here.get(&database.oid).cloned(),
            false => here.values().find(|name| **name == database.name).cloned(),
        };
        match found {
            None => differs(gathered, later, format!("database {} (oid {}) is not there", database.name, database.oid)),
            Some(name) if name != database.name => {
                differs(gathered, later, format!("database {} (oid {}) is called {name}", database.name, database.oid));
            }
            Some(_) => {}
        }
    }
    let recorded: BTreeSet<&str> = postgres.databases.iter().map(|database| database.name.as_str()).collect();
    for name in here.values().filter(|name| physical && !recorded.is_empty() && !recorded.contains(name.as_str())) {
        // Made while the backup was taken, or since. Nothing is lost.
        gathered.note(format!("database {name} was not there when the backup began"));
    }
    if let Some(physical) = &postgres.physical {
        let rows = connection.query("SELECT oid, spcname FROM pg_tablespace", &[])?;
        let mut here: BTreeMap<u32, &str> = BTreeMap::new();
        for row in rows.iter() {
            here.insert(row.parse("oid")?, row.get("spcname")?);
        }
        for tablespace in &physical.tablespaces {
            let name = tablespace.name.as_deref().unwrap_or("without a recorded name");
            match here.get(&tablespace.oid) {
                None => differs(gathered, later, format!("tablespace {name} (oid {}) is not there", tablespace.oid)),
                Some(found) if tablespace.name.is_some() && *found != name => {
                    differs(gathered, later, format!("tablespace {name} (oid {}) is called {found}", tablespace.oid));
                }
                Some(_) => {}
            }
        }
    }
    let owners = [("database", "pg_database", "datname", "datdba"), ("tablespace", "pg_tablespace", "spcname", "spcowner")];
    for (what, table, name, owner) in owners {
        let sql = format!(
            "SELECT {name} AS name, {owner} AS owner FROM {table} WHERE NOT EXISTS (SELECT FROM pg_authid a WHERE a.oid = {owner}) ORDER BY 1"
        );
        for row in connection.query(&sql, &[])?.iter() {
            gathered.bad(format!("the owner of {what} {} is no role (oid {})", row.get("name")?, row.get("owner")?));
        }
    }
    let prepared = connection.query("SELECT gid, owner, database, prepared::text FROM pg_prepared_xacts ORDER BY prepared", &[])?;
    for row in prepared.iter() {
        gathered.note(format!(
            "prepared transaction {:?} of {} in database {} since {} holds its locks: COMMIT PREPARED or ROLLBACK PREPARED",
            row.get("gid")?,
            row.get("owner")?,
            row.get("database")?,
            row.get("prepared")?
        ));
    }
    Ok(())
}

/// What belongs to one database.
fn database(
    connection: &Connection,
    name: &str,
    postgres: &PostgresEntry,
    later: bool,
    counts: &mut Counts,
    gathered: &mut Gathered,
) -> Result<(), PgError> {
    let sql = "SELECT e.extname, e.extversion, a.name IS NOT NULL AS available FROM pg_extension e \
               LEFT JOIN pg_available_extensions a ON a.name = e.extname ORDER BY 1";
    let rows = connection.query(sql, &[])?;
    let mut here: BTreeMap<String, String> = BTreeMap::new();
    for row in rows.iter() {
        let extension = row.get("extname")?;
        here.insert(extension.to_owned(), row.get("extversion")?.to_owned());
        counts.extensions += 1;
        if !row.bool("available")? {
            gathered.bad(format!("database {name}: extension {extension} is not installed on this host"));
        }
    }
    for extension in postgres.extensions.iter().filter(|extension| extension.database == name) {
        match here.get(&extension.name) {
            None => differs(gathered, later, format!("database {name}: extension {} is not there", extension.name)),
            Some(version) if *version != extension.version => {
                let what = format!("database {name}: extension {} has version {version}, it was {}", extension.name, extension.version);
                differs(gathered, later, what);
            }
            Some(_) => {}
        }
    }
    libraries(connection, name, postgres, counts, gathered)?;
    let sql = "SELECT c.oid::regclass::text AS name, c.relowner AS owner FROM pg_class c \
               WHERE NOT EXISTS (SELECT FROM pg_authid a WHERE a.oid = c.relowner) \
               UNION ALL SELECT 'schema ' || quote_ident(n.nspname), n.nspowner FROM pg_namespace n \
               WHERE NOT EXISTS (SELECT FROM pg_authid a WHERE a.oid = n.nspowner) ORDER BY 1 LIMIT 20";
    for row in connection.query(sql, &[])?.iter() {
        gathered.bad(format!("database {name}: the owner of {} is no role (oid {})", row.get("name")?, row.get("owner")?));
    }
    let sql = "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE NOT indisvalid OR NOT indisready ORDER BY 1 LIMIT 20";
    let invalid = connection.query(sql, &[])?;
    if let Some(first) = invalid.iter().next() {
        let count = invalid.len();
        gathered.note(format!("database {name}: {count} indexes are invalid, first {}: no query uses them", first.get("name")?));
    }
    let sql = "SELECT c.oid::regclass::text AS name FROM pg_class c WHERE c.relpersistence = 'u' AND c.relkind IN ('r', 'm') ORDER BY 1";
    let unlogged = connection.query(sql, &[])?;
    if let Some(first) = unlogged.iter().next() {
        let count = unlogged.len();
        gathered.note(format!("database {name}: {count} unlogged tables are empty after a recovery, first {}", first.get("name")?));
    }
    Ok(())
}

/// Loads every library that functions in C name, and those that the original server preloaded. One that is not here makes every statement
/// fail that needs it; one that can be loaded only at the start of a server says so, and is here.
fn libraries(
    connection: &Connection,
    name: &str,
    postgres: &PostgresEntry,
    counts: &mut Counts,
    gathered: &mut Gathered,
) -> Result<(), PgError> {
    // Failures are for the report, not for the server's log.
    connection.execute("SET log_min_messages = panic", &[])?;
    let sql = "SELECT DISTINCT p.probin AS library FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
               WHERE l.lanname = 'c' AND p.probin IS NOT NULL AND p.probin <> '' ORDER BY 1";
    let rows = connection.query(sql, &[])?;
    let mut libraries: BTreeSet<String> = rows.iter().map(|row| Ok(row.get("library")?.to_owned())).collect::<Result<_, PgError>>()?;
    let preloaded = postgres.settings.get("shared_preload_libraries").map(String::as_str).unwrap_or_default();
    libraries.extend(preloaded.split(',').map(|library| library.trim().trim_matches('"').to_owned()).filter(|library| !library.is_empty()));
    for library in libraries {
        // LOAD takes no parameters; a name of our own statement is quoted by doubling (standard_conforming_strings is on).
        match connection.execute(&format!("LOAD '{}'", library.replace('\'', "''")), &[]) {
            Ok(()) => counts.libraries += 1,
            Err(error @ PgError::Lost { .. }) => return Err(error),
            // undefined_file, or what the dynamic linker says of a file that is there, with internal or other codes
            // (`src/backend/utils/fmgr/dfmgr.c`).
            Err(error) => {
                let text = error.to_string();
                let here = !matches!(error.sqlstate(), Some("58P01" | "58030")) && !text.contains("could not load library");
                let what = format!("database {name}: library {library}: {text}");
                if here && !text.contains("incompatible library") && !text.contains("could not access file") {
                    gathered.note(what);
                } else {
                    gathered.bad(what);
                }
            }
        }
    }
    Ok(())
}
