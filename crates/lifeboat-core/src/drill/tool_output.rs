//! What PostgreSQL's own checking programs print, as findings. They run with `LC_ALL=C`.

/// The findings of `pg_amcheck` (`src/bin/pg_amcheck/pg_amcheck.c`, `verify_heap_slot_handler`, `verify_btree_slot_handler`): a line that names
/// a relation and ends with a colon, then lines with a tab or spaces before them that say what is wrong with it.
pub fn amcheck(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut open = false;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let indented = line.starts_with([' ', '\t']);
        match out.last_mut() {
            Some(last) if indented && open => {
                last.push(' ');
                last.push_str(line.trim());
            }
            _ => {
                out.push(line.trim().to_owned());
                open = !indented;
            }
        }
    }
    out
}

/// What a program of PostgreSQL complains about, without its own name and the word that says that it complains: lines like
/// `pg_verifybackup: error: "base/5/1" has size 0 …` (`src/common/logging.c`).
pub fn complaints(program: &str, text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(program).and_then(|rest| rest.strip_prefix(": ")) else { continue };
        for severity in ["fatal: ", "error: ", "warning: "] {
            if let Some(message) = rest.strip_prefix(severity) {
                out.push(message.trim().to_owned());
            }
        }
    }
    out
}

/// The number that `pg_checksums` prints behind such a label: `Bad checksums:  1`.
pub fn checksums_number(text: &str, label: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(':')?.trim().parse().ok())
}

/// The major version in what `--version` prints: `pg_amcheck (PostgreSQL) 15.18 (Debian …)`, `… 19devel`.
pub fn major_version(text: &str) -> Option<u32> {
    let version = text.split("(PostgreSQL) ").nth(1)?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_and_their_troubles_are_joined() {
        let text = "heap table \"app.public.t\", block 3, offset 7:\n    xmin 0 precedes relation freeze threshold\n\
            btree index \"app.public.t_pkey\":\n    ERROR:  item order invariant violated\n    DETAIL:  Lower index tid=(1,2)\n\n";
        assert_eq!(
            amcheck(text),
            [
                "heap table \"app.public.t\", block 3, offset 7: xmin 0 precedes relation freeze threshold",
                "btree index \"app.public.t_pkey\": ERROR:  item order invariant violated DETAIL:  Lower index tid=(1,2)"
            ]
        );
        assert_eq!(amcheck("  only this\n"), ["only this"]);
        assert!(amcheck("\n\n").is_empty());
    }

    #[test]
    fn complaints_and_numbers() {
        let text =
            "pg_verifybackup: error: \"base/5/1\" is present on disk but not in the manifest\nother: error: x\npg_verifybackup: hint: y\n";
        assert_eq!(complaints("pg_verifybackup", text), ["\"base/5/1\" is present on disk but not in the manifest"]);
        let text = "Checksum operation completed\nFiles scanned:   940\nBlocks scanned:  2850\nBad checksums:  1\n";
        assert_eq!((checksums_number(text, "Bad checksums"), checksums_number(text, "Blocks scanned")), (Some(1), Some(2850)));
        assert_eq!(checksums_number(text, "Bad"), None);
        for (text, major) in [
            ("pg_amcheck (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("pg_amcheck (PostgreSQL) 19devel\n", Some(19)),
            ("sh: not found", None),
            ("(PostgreSQL) x", None),
        ] {
            assert_eq!(major_version(text), major);
        }
    }
}
