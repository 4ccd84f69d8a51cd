//! Reports for tests: `testdata/drills/`.

use super::Report;

fn read(text: &str) -> Report {
    serde_json::from_str(text).unwrap()
}

/// Everything is well.
pub(crate) fn passed() -> Report {
    read(include_str!("../../../../testdata/drills/passed.json"))
}

/// Rows are missing, a control stayed green, a scenario ended otherwise, and it took too long.
pub(crate) fn failed() -> Report {
    read(include_str!("../../../../testdata/drills/failed.json"))
}

/// Some of it could not be checked.
pub(crate) fn gaps() -> Report {
    read(include_str!("../../../../testdata/drills/gaps.json"))
}

/// Every text of it is an attack, and so are some numbers.
pub(crate) fn hostile() -> Report {
    read(include_str!("../../../../testdata/drills/hostile.json"))
}

/// All four, with their names.
pub(crate) fn all() -> [(&'static str, Report); 4] {
    [("passed", passed()), ("failed", failed()), ("gaps", gaps()), ("hostile", hostile())]
}
