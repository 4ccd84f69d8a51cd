//! Are heap and indexes sound? `pg_amcheck` where it is there, its functions where it is not.

use lifeboat_core::drill::{Check, CheckResult, tool_output};

use super::process::How;
use super::relations::{Chosen, Counted, choose, extension};
use super::{Gathered, LONGEST, Program, SESSION_OPTIONS, Target, conninfo_value, no_answer, timed};
use crate::postgres::{Connection, PgError};

/// How closely it is looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The order within pages, and every heap tuple.
    Quick,
    /// Also that every row is in every index, that every level of an index agrees with the one above, and that every entry is found from the
    /// root; unique indexes for duplicates from PostgreSQL 17. Costs about six times as much.
    Full,
}

/// Tables that one run of the program is told: its command line has an end.
const TABLES_PER_RUN: usize = 400;

/// Checks heaps and btree indexes of all databases: all, or as much as the budget allows, chosen by its seed. `jobs` connections work at
/// once. Installs the extension `amcheck` in databases that do not have it: the server is a drill's.
///
/// Not found: a page of zeros or an older one in a heap (a heap may have such pages), and rows of a heap that no index lacks because
/// both are gone.
pub fn amcheck(target: &Target<'_>, depth: Depth, jobs: u32) -> CheckResult {
    timed(|| {
        let mut gathered = Gathered::default();
        let chosen = choose(target, Counted::Whole, &mut gathered);
        // Not before 14 (manual, release notes).
        let program = if target.programs.major >= 14 { target.programs.find("pg_amcheck") } else { Err(String::new()) };
        let mut absent = Vec::new();
        for (number, database) in chosen.databases.iter().enumerate() {
            if target.budget.is_over() {
                gathered.unable(format!("database {database} and those after it: the time was over"));
                break;
            }
            if chosen.of_database(number).next().is_none() {
                continue;
            }
            let installed = target.connect(database).and_then(|connection| extension(&connection, "amcheck"));
            let schema = match installed {
                Ok(Some(schema)) => schema,
                Ok(None) => {
                    absent.push(database.clone());
                    continue;
                }
                Err(error) => {
                    gathered.error(&format!("install amcheck in database {database}"), &error);
                    continue;
                }
            };
            match &program {
                Ok(program) => by_program(target, program, depth, jobs, &chosen, number, &mut gathered),
                Err(_) => by_functions(target, depth, &schema, &chosen, number, &mut gathered),
            }
        }
        if let Some(first) = absent.first() {
            let of = chosen.databases.len();
            gathered
                .unable(format!("the extension amcheck is not installed on this host ({} of {of} databases, first {first})", absent.len()));
        }
        let how = if depth == Depth::Full { "with every row looked for in every index" } else { "each page for itself" };
        let good = format!("{} of {} tables with their indexes are sound ({how})", chosen.relations.len(), chosen.of);
        let tool = program.map_or_else(|_| "amcheck, by its functions".to_owned(), |program| program.words);
        let bytes = gathered.bytes;
        gathered.result(Check::Amcheck, good).by(tool).of(bytes, chosen.of_bytes, "bytes", chosen.seed(target))
    })
}

fn by_program(target: &Target<'_>, program: &Program, depth: Depth, jobs: u32, chosen: &Chosen, number: usize, gathered: &mut Gathered) {
    let database = &chosen.databases[number];
    let at = target.dsn.endpoint();
    let mut common: Vec<String> = vec!["--no-password".into(), format!("--jobs={}", jobs.max(1))];
    for (option, value) in [("host", &at.host), ("port", &at.port), ("username", &at.user)] {
        if !value.is_empty() {
            common.push(format!("--{option}={value}"));
        }
    }
    if depth == Depth::Full {
        common.extend(["--heapallindexed", "--parent-check", "--rootdescend"].map(String::from));
        if target.programs.major >= 17 {
            common.push("--checkunique".into());
        }
    }
    // In quotes, everything in a pattern is itself (manual, psql, "Patterns").
    let relations: Vec<_> = chosen.of_database(number).collect();
    let runs: Vec<_> = if chosen.is_all() { vec![&relations[..]] } else { relations.chunks(TABLES_PER_RUN).collect() };
    for relations in runs {
        let mut arguments = common.clone();
        if !chosen.is_all() {
            arguments.extend(relations.iter().map(|relation| format!("--table={}", relation.quoted())));
        }
        // A name alone would be taken for a connection string if it looks like one.
        arguments.push(format!("dbname={}", conninfo_value(database)));
        let environment = vec![("PGOPTIONS".into(), SESSION_OPTIONS.into()), ("PGAPPNAME".into(), "lifeboat drill".into())];
        let timeout = target.budget.left().unwrap_or(LONGEST);
        let ended = match target.programs.run(&program.path, arguments, environment, timeout) {
            Ok(ended) => ended,
            Err(why) => return gathered.unable(why),
        };
        let text = ended.output.head();
        let (complaints, findings): (Vec<String>, Vec<String>) =
            tool_output::amcheck(&text).into_iter().partition(|line| line.starts_with("pg_amcheck: "));
        // 2: it found something; 1: it could not go on (`src/bin/pg_amcheck/pg_amcheck.c`). A server that goes away over it was ended by
        // what it read.
        let gone = ["server closed the connection", "terminating connection", "connection to server was lost", "could not receive data"];
        let lost = complaints.iter().any(|line| gone.iter().any(|words| line.contains(words)));
        if matches!(ended.how, How::Code(0 | 2)) {
            gathered.bytes += relations.iter().map(|relation| relation.bytes).sum::<u64>();
        }
        match ended.how {
            // It passes over databases that it cannot check, with a warning and a 0.
            How::Code(0) => {
                if let Some(line) = complaints.iter().find(|line| line.contains("skipping")) {
                    gathered.unable(format!("database {database}: {line}"));
                }
            }
            How::Code(2) => {
                // Indexes that came from before 12 by pg_upgrade: sound, and made in a way in which not all can be looked for
                // (`bt_index_parent_check` in `contrib/amcheck/verify_nbtree.c`).
                let (old, findings): (Vec<_>, Vec<_>) =
                    findings.into_iter().partition(|line| line.contains("support rootdescend verification"));
                let only_old = findings.is_empty() && !old.is_empty();
                if let Some(first) = old.first() {
                    gathered.unable(format!("{} indexes are of an old version: REINDEX them; the first: {first}", old.len()));
                }
                if only_old {
                    continue;
                }
                findings.into_iter().for_each(|finding| gathered.bad(finding));
                if gathered.bad_count == 0 {
                    gathered.bad(format!("pg_amcheck found damage in database {database} and did not say which"));
                }
            }
            How::Code(_) if lost => gathered.bad(format!("database {database}: the server went away: {}", complaints.join("; "))),
            how => {
                // What it said before it stopped is damage all the same.
                findings
                    .into_iter()
                    .filter(|finding| finding.starts_with("heap table ") || finding.starts_with("btree index "))
                    .for_each(|finding| gathered.bad(finding));
                let last = complaints.last().cloned().unwrap_or_default();
                gathered.unable(format!("database {database}: {}: {last}", no_answer("pg_amcheck", &how)));
            }
        }
    }
}

fn by_functions(target: &Target<'_>, depth: Depth, schema: &str, chosen: &Chosen, number: usize, gathered: &mut Gathered) {
    let database = &chosen.databases[number];
    let mut connection: Option<Connection> = None;
    for relation in chosen.of_database(number) {
        let what = format!("table {database}.{}", relation.quoted());
        if target.budget.is_over() {
            return gathered.unable(format!("{what} and those after it: the time was over"));
        }
        // After an error of the server the connection goes on; after its loss another one is needed.
        let open = connection.take().map_or_else(|| target.connect(database), Ok);
        let connection_now = match open {
            Ok(open) => open,
            Err(error) => {
                gathered.error(&what, &error);
                continue;
            }
        };
        let found = table_by_functions(&connection_now, target.programs.major, depth, schema, relation.oid, &what, gathered);
        match found {
            Err(error @ PgError::Lost { .. }) => gathered.error(&what, &error),
            Err(error) => {
                gathered.error(&what, &error);
                connection = Some(connection_now);
            }
            Ok(()) => {
                gathered.bytes += relation.bytes;
                connection = Some(connection_now);
            }
        }
    }
}

fn table_by_functions(
    connection: &Connection,
    major: u32,
    depth: Depth,
    schema: &str,
    oid: u32,
    what: &str,
    gathered: &mut Gathered,
) -> Result<(), PgError> {
    let schema = super::identifier(schema);
    let oid = oid.to_string();
    if major >= 14 {
        let sql = format!("SELECT blkno, offnum, msg FROM {schema}.verify_heapam($1::oid::regclass, check_toast => true) LIMIT 20");
        match connection.query(&sql, &[Some(&oid)]) {
            Ok(rows) => {
                for row in rows.iter() {
                    let place = |name| row.get_opt(name).ok().flatten().unwrap_or("?").to_owned();
                    gathered.bad(format!("{what}, block {}, offset {}: {}", place("blkno"), place("offnum"), place("msg")));
                }
            }
            Err(error @ PgError::Lost { .. }) => return Err(error),
            Err(error) => gathered.error(what, &error),
        }
    }
    let indexes = connection.query(
        "SELECT i.indexrelid AS oid, c.relname AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam \
         WHERE a.amname = 'btree' AND i.indisvalid AND i.indisready \
         AND (i.indrelid = $1::oid OR i.indrelid = (SELECT reltoastrelid FROM pg_class WHERE oid = $1::oid)) ORDER BY 1",
        &[Some(&oid)],
    )?;
    let call = match depth {
        Depth::Quick => format!("SELECT {schema}.bt_index_check($1::oid::regclass, false)"),
        Depth::Full => format!("SELECT {schema}.bt_index_parent_check($1::oid::regclass, true, true)"),
    };
    for index in indexes.iter() {
        match connection.execute(&call, &[Some(index.get("oid")?)]) {
            Ok(()) => {}
            Err(error @ PgError::Lost { .. }) => return Err(error),
            Err(error) => gathered.error(&format!("{what}, index {}", super::identifier(index.get("name")?)), &error),
        }
    }
    Ok(())
}
