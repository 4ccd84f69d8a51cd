//! What a comparison with the truth means.

use super::{Database, Found, Table, Truth};
use crate::drill::{Check, CheckResult, Outcome};

/// What there is now of a table that the truth knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// This was read, as the truth's was.
    Found(Found),
    /// There is no such table.
    Absent,
    /// Reading it fails, and that is the table's fault.
    Unreadable(String),
    /// It was not compared, and that is nobody's fault.
    NotCompared(String),
}

/// Collects what is seen, and says what it means.
#[derive(Debug, Clone)]
pub struct Comparison {
    seed: u64,
    /// Tables that there are, read or not.
    tables: u64,
    compared: u64,
    in_part: u64,
    rows: u64,
    bad: u64,
    findings: Vec<String>,
    /// Tables that were read then and not now, and why the first was not.
    gaps: u64,
    first_gap: Option<String>,
    /// Databases that nothing was read of then, and why: what they had cannot be compared.
    unknown: Vec<String>,
}

impl Comparison {
    /// Nothing was seen yet.
    pub fn new(truth: &Truth) -> Self {
        let (tables, _) = truth.counts();
        let name = |database: &Database| Some(format!("database {:?}: {}", database.name, database.unknown.as_ref()?));
        let unknown = truth.databases.iter().filter_map(name).collect();
        Self { seed: truth.seed, tables, compared: 0, in_part: 0, rows: 0, bad: 0, findings: Vec::new(), gaps: 0, first_gap: None, unknown }
    }

    fn find(&mut self, finding: String) {
        self.bad += 1;
        if self.findings.len() < CheckResult::MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    /// A database that the truth knows is not there, or cannot be used for a reason that is its own.
    pub fn lost_database(&mut self, database: &str, problem: &str) {
        self.find(format!("database {database:?}: {problem}"));
    }

    /// A table is there that was not.
    pub fn unexpected(&mut self, database: &str, schema: &str, table: &str) {
        self.find(format!("{database}.{schema}.{table}: it is there, and was not"));
    }

    /// What there is of a table. One that was not read then has to be there, and no more can be said of it.
    pub fn table(&mut self, database: &str, table: &Table, seen: Seen) {
        let name = format!("{database}.{}.{}", table.schema, table.name);
        match (table.found, seen) {
            (_, Seen::Absent) => self.find(format!("{name}: it is not there")),
            (None, _) => {}
            (Some(_), Seen::NotCompared(why)) => {
                self.gaps += 1;
                self.first_gap.get_or_insert(format!("{name}: {why}"));
            }
            (Some(_), Seen::Unreadable(problem)) => {
                self.compared += 1;
                self.find(format!("{name}: it cannot be read: {problem}"));
            }
            (Some(then), Seen::Found(now)) => {
                self.compared += 1;
                self.rows += now.rows;
                self.in_part += u64::from(!table.ranges.is_empty());
                let part = if table.ranges.is_empty() { "" } else { " in the blocks that were looked at" };
                if then.rows != now.rows {
                    self.find(format!("{name}: {} rows{part}, and there were {}", now.rows, then.rows));
                } else if then.hash != now.hash {
                    self.find(format!("{name}: as many rows{part} as there were, {}, but not the same ones", now.rows));
                }
            }
        }
    }

    /// What it comes to.
    pub fn result(self) -> CheckResult {
        let part = match self.in_part {
            0 => String::new(),
            some => format!(", {some} of them in part"),
        };
        let mut gaps = match &self.first_gap {
            Some(first) => format!("; {} could not be compared, the first for this reason: {first}", self.gaps),
            None => String::new(),
        };
        if let Some(first) = self.unknown.first() {
            let what = if self.unknown.len() == 1 { "database was" } else { "databases were" };
            gaps = format!("{gaps}; {} {what} not read when the backup was taken, the first for this reason: {first}", self.unknown.len());
        }
        let (outcome, reason) = if self.bad > 0 {
            let things = if self.bad == 1 { "1 thing is" } else { &format!("{} things are", self.bad) };
            (Outcome::Failed, format!("{things} not as when the backup was taken, of {} tables compared{part}{gaps}", self.compared))
        } else if self.tables == 0 && self.unknown.is_empty() {
            (Outcome::NotApplicable, "there are no tables but the system's own".to_owned())
        } else if !gaps.is_empty() && self.compared > 0 {
            let reason = format!("{} tables of {}{part} have the {} rows that they had{gaps}", self.compared, self.tables, self.rows);
            (Outcome::NotChecked, reason)
        } else if self.compared == 0 {
            let why = if gaps.is_empty() { "; the truth has the rows of none" } else { "" };
            (Outcome::NotChecked, format!("no table of {} was compared{why}{gaps}", self.tables))
        } else {
            let reason = format!("{} tables of {}{part} have the {} rows that they had{gaps}", self.compared, self.tables, self.rows);
            (Outcome::Passed, reason)
        };
        let seed = (self.compared < self.tables || self.in_part > 0).then_some(self.seed);
        CheckResult::new(Check::Truth, outcome, reason)
            .of(self.compared, self.tables, "tables", seed)
            .with(self.findings.into_iter().chain(self.unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::super::RowsHash;
    use super::super::tests::example;
    use super::*;

    fn compare(seen: [Seen; 3]) -> CheckResult {
        let truth = example();
        let mut comparison = Comparison::new(&truth);
        for (table, seen) in truth.databases[0].tables.iter().zip(seen) {
            comparison.table("app", table, seen);
        }
        comparison.result()
    }

    fn found(rows: u64, hash: u64) -> Seen {
        Seen::Found(Found { rows, hash: RowsHash(hash) })
    }

    #[test]
    fn what_is_as_it_was_passes_and_nothing_else() {
        let unread = || Seen::NotCompared("x".into());
        let passed = compare([found(3, u64::MAX), found(5, 9), unread()]);
        assert_eq!(
            (passed.outcome, passed.reason.as_str()),
            (Outcome::Passed, "2 tables of 3, 1 of them in part have the 8 rows that they had")
        );
        assert_eq!(passed.scope.unwrap().seed, Some(7));
        for (bad, says) in [
            (found(2, u64::MAX), "app.public.orders: 2 rows, and there were 3"),
            (found(3, 1), "app.public.orders: as many rows as there were, 3, but not the same ones"),
            (Seen::Absent, "app.public.orders: it is not there"),
            (Seen::Unreadable("invalid page".into()), "app.public.orders: it cannot be read: invalid page"),
        ] {
            let failed = compare([bad, found(5, 9), unread()]);
            assert_eq!((failed.outcome, failed.findings), (Outcome::Failed, vec![says.to_owned()]), "{}", failed.reason);
        }
        // A table that nothing more is known of is missed all the same.
        assert_eq!(compare([found(3, u64::MAX), found(5, 9), Seen::Absent]).outcome, Outcome::Failed);
        let mut comparison = Comparison::new(&example());
        comparison.unexpected("app", "public", "new");
        comparison.lost_database("app", "it is not there");
        assert_eq!((comparison.clone().result().outcome, comparison.result().findings.len()), (Outcome::Failed, 2));
    }

    #[test]
    fn what_was_not_compared_is_no_pass() {
        let gap = || Seen::NotCompared("it is locked".into());
        let nothing = compare([gap(), gap(), gap()]);
        assert_eq!(nothing.outcome, Outcome::NotChecked);
        assert!(nothing.reason.contains("app.public.orders: it is locked"), "{}", nothing.reason);
        let some = compare([gap(), found(5, 9), gap()]);
        assert_eq!((some.outcome, some.scope.as_ref().map(|scope| (scope.checked, scope.of))), (Outcome::NotChecked, Some((1, 3))));
        assert!(some.reason.contains("1 could not be compared"), "{}", some.reason);
    }

    #[test]
    fn a_database_that_was_not_read_is_no_pass_whatever_the_others_have() {
        let unread = Database { name: "payroll".into(), unknown: Some("permission denied".into()), tables: Vec::new() };
        let with = |first: Database| Truth { databases: vec![first, unread.clone()], ..example() };
        let app = example().databases.remove(0);
        let empty = Comparison::new(&with(Database { tables: Vec::new(), ..app.clone() })).result();
        assert_eq!(empty.outcome, Outcome::NotChecked, "{}", empty.reason);
        let mut comparison = Comparison::new(&with(app.clone()));
        for (table, seen) in app.tables.iter().zip([found(3, u64::MAX), found(5, 9), Seen::NotCompared(String::new())]) {
            comparison.table("app", table, seen);
        }
        let mut broken = comparison.clone();
        let matching = comparison.result();
        assert_eq!(matching.outcome, Outcome::NotChecked, "{}", matching.reason);
        for result in [&empty, &matching] {
            assert!(result.reason.contains("database \"payroll\": permission denied"), "{}", result.reason);
            assert_eq!(result.findings, ["database \"payroll\": permission denied"]);
        }
        broken.unexpected("app", "public", "new");
        assert_eq!(broken.result().outcome, Outcome::Failed);
    }
}
