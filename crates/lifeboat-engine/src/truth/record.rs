//! Reads the tables at a moment, as far as the budget goes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lifeboat_core::truth::{Budget, Database, Portion, Size, TRUTH_SCHEMA, Table, Truth, portion, rank};

use super::moment::{Moment, Session};
use super::rows::{Listed, excuse, hash, list, release, types};
use crate::postgres::{Connection, PgError};

/// How long all of it may take: its snapshots hold back vacuum as long.
const DEADLINE: Duration = Duration::from_secs(900);

/// What the manifest is to say.
pub(crate) enum Recorded {
    /// This was true.
    Truth(Box<Truth>),
    /// It is not known, for this reason.
    Missing(String),
}

const CHANGED: &str = "it was changed or dropped while tables were read";

/// A database while it is read.
struct Reading {
    name: String,
    connection: Result<Connection, String>,
    listed: Vec<Listed>,
    types: String,
    tables: Vec<Table>,
}

/// Reads what the budget allows of the tables at a moment. The second value is what an operator should know.
pub(crate) fn read_moment(moment: Moment, budget: Budget) -> (Truth, Vec<String>) {
    let begun = Instant::now();
    let Moment { backup, point, seed, sessions } = moment;
    let mut warnings = Vec::new();
    let mut databases: Vec<Reading> = sessions.into_iter().map(begin).collect();
    let mut order: Vec<(u64, usize, usize)> = Vec::new();
    for (database, reading) in databases.iter().enumerate() {
        let ranks = reading.listed.iter().enumerate();
        order.extend(ranks.map(|(table, listed)| (rank(seed, &reading.name, &listed.schema, &listed.name), database, table)));
    }
    order.sort_unstable();
    let mut left = budget.bytes;
    for (dice, database, table) in order {
        let reading = &mut databases[database];
        let Ok(connection) = &reading.connection else { continue };
        let listed = &reading.listed[table];
        if listed.closed.is_some() {
            continue;
        }
        let unread = |why: String| Table { unread: Some(why), ..entry(listed) };
        if begun.elapsed() > DEADLINE {
            reading.tables[table] = unread("other tables took too long".into());
            continue;
        }
        let read = read_table(connection, listed, budget, &mut left, dice, seed);
        let read = read.and_then(|read| release(connection).map(|()| read)).or_else(|error| match &error {
            PgError::Sql { sqlstate, .. } => {
                release(connection)?;
                if sqlstate.starts_with("XX") || sqlstate.starts_with("58") {
                    warnings.push(format!("table {} of database {} cannot be read: {error}", listed.name, reading.name));
                }
                // What is not there is what was dropped or renamed meanwhile.
                let gone = ["42P01", "42703", "3F000", "42809"].contains(&sqlstate.as_str());
                let why = if gone { CHANGED.to_owned() } else { excuse(&error).unwrap_or_else(|| error.to_string()) };
                Ok(unread(why))
            }
            _ => Err(error),
        });
        match read {
            Ok(read) => reading.tables[table] = read,
            Err(error) => reading.connection = Err(error.to_string()),
        }
    }
    let databases: Vec<Database> = databases.into_iter().map(end).collect();
    warnings.extend(unread(&databases));
    (Truth { schema: TRUTH_SCHEMA, backup, point, seed, databases }, warnings)
}

/// Says of which databases nothing is known, once for each reason: of many that had no turn it is the same one.
fn unread(databases: &[Database]) -> Vec<String> {
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for database in databases {
        if let Some(why) = &database.unknown {
            names.entry(why).or_default().push(&database.name);
        }
    }
    let say = |(why, names): (&str, Vec<&str>)| {
        let what = if names.len() == 1 { "database" } else { "databases" };
        format!("no tables of {what} {} were recorded, and no drill can compare them: {why}", names.join(", "))
    };
    names.into_iter().map(say).collect()
}

fn entry(listed: &Listed) -> Table {
    Table { schema: listed.schema.clone(), name: listed.name.clone(), found: None, ranges: Vec::new(), unread: None }
}

fn begin(Session { database, connection }: Session) -> Reading {
    let listed = connection.and_then(|connection| match list(&connection).and_then(|tables| Ok((tables, types(&connection)?))) {
        Ok((tables, types)) => Ok((connection, tables, types)),
        Err(error) => Err(error.to_string()),
    });
    let (connection, listed, types) = match listed {
        Ok((connection, listed, types)) => (Ok(connection), listed, types),
        Err(why) => (Err(why), Vec::new(), String::new()),
    };
    let not_yet = |listed: &Listed| Table { unread: Some(listed.closed.unwrap_or("it was not its turn").to_owned()), ..entry(listed) };
    let tables = listed.iter().map(not_yet).collect();
    Reading { name: database, connection, listed, types, tables }
}

fn read_table(connection: &Connection, listed: &Listed, budget: Budget, left: &mut u64, dice: u64, seed: u64) -> Result<Table, PgError> {
    let sql = "SELECT pg_relation_size($1::oid) AS main, pg_table_size($1::oid) AS total, current_setting('block_size') AS block";
    let rows = connection.query(sql, &[Some(&listed.oid.to_string())])?;
    let row = rows.one()?;
    let (Some(main), Some(bytes)) = (row.parse_opt::<u64>("main")?, row.parse_opt::<u64>("total")?) else {
        return Ok(Table { unread: Some(CHANGED.to_owned()), ..entry(listed) });
    };
    let blocks = u32::try_from(main / row.parse::<u64>("block")?.max(1)).unwrap_or(u32::MAX - 1);
    let (ranges, cost) = match portion(Size { blocks, bytes, ranges: listed.has_blocks }, budget, *left, dice) {
        Portion::Nothing { why } => return Ok(Table { unread: Some(why.to_owned()), ..entry(listed) }),
        Portion::Whole { cost } => (Vec::new(), cost),
        Portion::Ranges { ranges, cost } => (ranges, cost),
    };
    *left -= cost.min(*left);
    let found = hash(connection, listed, &ranges, seed)?;
    Ok(Table { found: Some(found), ranges, ..entry(listed) })
}

/// Looks at the catalogs once more, as they are now. What was rewritten, emptied by `TRUNCATE` or altered meanwhile was not seen as it had been at
/// the moment: such statements do not keep to snapshots (manual, "Caveats" of concurrency control), and the text of rows follows the newest catalogs.
fn end(reading: Reading) -> Database {
    let Reading { name, connection, listed, types: types_then, mut tables } = reading;
    let now = connection.and_then(|connection| {
        let look = || -> Result<_, PgError> {
            connection.execute("ROLLBACK", &[])?;
            Ok((list(&connection)?, types(&connection)?))
        };
        look().map_err(|error| error.to_string())
    });
    let (now, types_now) = match now {
        Ok(now) => now,
        Err(why) => return Database { name, unknown: Some(why), tables: Vec::new() },
    };
    let now: BTreeMap<u32, &str> = now.iter().map(|listed| (listed.oid, listed.signature.as_str())).collect();
    for (listed, table) in listed.iter().zip(&mut tables) {
        let why = if now.get(&listed.oid) != Some(&listed.signature.as_str()) {
            CHANGED
        } else if types_then != types_now {
            "types of its database were changed while tables were read"
        } else {
            continue;
        };
        if table.found.is_some() {
            *table = Table { unread: Some(why.to_owned()), ..entry(listed) };
        }
    }
    Database { name, unknown: None, tables }
}
