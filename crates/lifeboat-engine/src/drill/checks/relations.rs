//! The relations of a restored cluster that a check goes through, and which of them this time.

use lifeboat_core::drill::rotation::rotate;

use super::{Gathered, Target};
use crate::postgres::{Connection, PgError};

/// A table, a materialised view or the TOAST table of one.
#[derive(Debug, Clone)]
pub(super) struct Relation {
    /// Index of its database in [`Chosen::databases`].
    pub(super) database: usize,
    pub(super) oid: u32,
    /// Schema.
    pub(super) schema: String,
    pub(super) name: String,
    /// Bytes on disk of what is counted.
    pub(super) bytes: u64,
    /// Made by a user, not by initdb.
    pub(super) is_user: bool,
}

impl Relation {
    /// Schema and name in a statement.
    pub(super) fn quoted(&self) -> String {
        format!("{}.{}", super::identifier(&self.schema), super::identifier(&self.name))
    }
}

/// What is looked at this time.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// Names of the databases.
    pub(super) databases: Vec<String>,
    /// Relations to look at, database by database.
    pub(super) relations: Vec<Relation>,
    /// How many there are.
    pub(super) of: usize,
    /// Bytes of all.
    pub(super) of_bytes: u64,
}

impl Chosen {
    pub(super) fn is_all(&self) -> bool {
        self.relations.len() == self.of
    }

    /// The chosen ones of one database.
    pub(super) fn of_database(&self, database: usize) -> impl Iterator<Item = &Relation> {
        self.relations.iter().filter(move |relation| relation.database == database)
    }

    /// The seed, where one decided.
    pub(super) fn seed(&self, target: &Target<'_>) -> Option<u64> {
        (!self.is_all()).then_some(target.budget.seed)
    }
}

/// What belongs to a relation that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// Tables, with their indexes and TOAST tables.
    Whole,
    /// Every table for itself, TOAST tables too, without indexes.
    Heaps,
}

/// Lists the relations of all databases and chooses. A database that cannot be read is in `gathered`.
pub(super) fn choose(target: &Target<'_>, counted: Counted, gathered: &mut Gathered) -> Chosen {
    let databases = match target.databases() {
        Ok(databases) => databases,
        Err(error) => {
            gathered.error("list the databases", &error);
            return Chosen::default();
        }
    };
    let mut all = Vec::new();
    for (index, (_, name)) in databases.iter().enumerate() {
        let listed = target.connect(name).and_then(|connection| list(&connection, index, counted));
        match listed {
            Ok(relations) => all.extend(relations),
            Err(error) => gathered.error(&format!("list the tables of database {name}"), &error),
        }
    }
    // In the order of their numbers, which is the same in each restore of one cluster.
    let sizes: Vec<u64> = all.iter().map(|relation| relation.bytes).collect();
    let rotation = rotate(&sizes, target.budget.bytes, target.budget.seed);
    let of = all.len();
    let relations = rotation.chosen.iter().map(|index| all[*index].clone()).collect();
    Chosen { databases: databases.into_iter().map(|(_, name)| name).collect(), relations, of, of_bytes: rotation.of_bytes }
}

fn list(connection: &Connection, database: usize, counted: Counted) -> Result<Vec<Relation>, PgError> {
    let (kinds, size) = match counted {
        Counted::Whole => ("'r', 'm'", "pg_total_relation_size(c.oid)"),
        Counted::Heaps => ("'r', 'm', 't'", "pg_relation_size(c.oid)"),
    };
    // A file that is missing has size 0 here. Numbers of users' objects begin at 16384 (`src/include/access/transam.h`).
    let sql = format!(
        "SELECT c.oid, n.nspname, c.relname, coalesce({size}, 0) AS bytes, c.oid >= 16384 AS is_user \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ({kinds}) AND c.relpersistence <> 't' AND (NOT c.relisshared OR {}) ORDER BY c.oid",
        // Those of the whole cluster are looked at once.
        database == 0
    );
    let rows = connection.query(&sql, &[])?;
    rows.iter()
        .map(|row| {
            Ok(Relation {
                database,
                oid: row.parse("oid")?,
                schema: row.get("nspname")?.to_owned(),
                name: row.get("relname")?.to_owned(),
                bytes: row.parse("bytes")?,
                is_user: row.bool("is_user")?,
            })
        })
        .collect()
}

/// Makes sure that an extension is in a database, and returns the schema that it is in; `None`: its files are not here.
pub(super) fn extension(connection: &Connection, name: &str) -> Result<Option<String>, PgError> {
    let find = "SELECT n.nspname AS schema, coalesce(a.default_version <> e.extversion, false) AS old FROM pg_extension e \
                JOIN pg_namespace n ON n.oid = e.extnamespace LEFT JOIN pg_available_extensions a ON a.name = e.extname WHERE e.extname = $1";
    let found = connection.query(find, &[Some(name)])?;
    if let Some(row) = found.iter().next() {
        // After pg_upgrade an extension stays what it was, and may lack what is asked of it here.
        if row.bool("old")? {
            connection.execute(&format!("ALTER EXTENSION {} UPDATE", super::identifier(name)), &[])?;
        }
        return Ok(Some(row.get("schema")?.to_owned()));
    }
    if connection.query("SELECT 1 FROM pg_available_extensions WHERE name = $1", &[Some(name)])?.is_empty() {
        return Ok(None);
    }
    // Where `pg_amcheck --install-missing` puts it as well.
    connection.execute(&format!("CREATE EXTENSION {} WITH SCHEMA pg_catalog", super::identifier(name)), &[])?;
    Ok(Some("pg_catalog".to_owned()))
}
