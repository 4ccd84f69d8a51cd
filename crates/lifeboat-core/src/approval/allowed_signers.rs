//! OpenSSH's `allowed_signers`: which SSH key is whose ("ALLOWED SIGNERS" in `ssh-keygen(1)`, `sshsig.c`).
//!
//! Lines as OpenSSH reads them, with less that counts: a line has to name a person, so one with a pattern for a principal does not count,
//! nor does an authority that makes up names (`cert-authority`). What cannot be read is a problem of its line, and its key does not count.

use jiff::{SignedDuration, Timestamp, civil};

/// Lines that are read of a file.
pub const MAX_LINES: usize = 10_000;

/// A line with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1.
    pub line: usize,
    /// Whose key it is: names of one person.
    pub principals: Vec<String>,
    /// Type and base64 of the key, as in `id_ed25519.pub`.
    pub key: String,
    /// Patterns of the namespaces that it may sign in; none: all.
    pub namespaces: Option<Vec<String>>,
    /// It counts from then on.
    pub valid_after: Option<Timestamp>,
    /// It counted until then.
    pub valid_before: Option<Timestamp>,
    /// Why it never counts.
    pub unusable: Option<String>,
}

/// A file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedSigners {
    /// Lines that name a key.
    pub entries: Vec<Entry>,
    /// Lines that cannot be read, each with its number.
    pub problems: Vec<String>,
}

impl AllowedSigners {
    /// Reads a file. Never fails: what is not understood allows nothing.
    pub fn parse(text: &str) -> Self {
        let mut signers = Self::default();
        for (index, line) in text.lines().enumerate() {
            if index == MAX_LINES {
                signers.problems.push(format!("line {}: nothing is read from here on, {MAX_LINES} lines are enough", index + 1));
                break;
            }
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match entry(index + 1, line) {
                Ok(entry) => signers.entries.push(entry),
                Err(problem) => signers.problems.push(format!("line {}: {problem}", index + 1)),
            }
        }
        signers
    }

    /// The names of whoever signs with a key in a namespace at a time, the best known first; or why nobody does. `is_key` compares keys, whose
    /// text may be written in more than one way.
    ///
    /// All lines of one key are one person's: who is named twice is not two.
    pub fn names(&self, is_key: impl Fn(&str) -> bool, namespace: &str, at: &[Timestamp]) -> Result<Vec<String>, String> {
        let lines: Vec<&Entry> = self.entries.iter().filter(|entry| is_key(&entry.key)).collect();
        let mut names: Vec<String> = Vec::new();
        let mut reasons = Vec::new();
        for line in &lines {
            match line.allows(namespace, at) {
                Ok(()) => names.extend(line.principals.iter().cloned()),
                Err(reason) => reasons.push(format!("line {}: {reason}", line.line)),
            }
        }
        if names.is_empty() {
            return Err(if lines.is_empty() { "no line names its key".to_owned() } else { reasons.join("; ") });
        }
        // Also what does not count today says who they are.
        names.extend(lines.iter().filter(|line| line.unusable.is_none()).flat_map(|line| line.principals.iter().cloned()));
        Ok(names)
    }
}

impl Entry {
    fn allows(&self, namespace: &str, at: &[Timestamp]) -> Result<(), String> {
        if let Some(reason) = &self.unusable {
            return Err(reason.clone());
        }
        if self.namespaces.as_ref().is_some_and(|patterns| !matches_list(namespace, patterns)) {
            return Err(format!("the key may not sign in namespace {namespace}"));
        }
        for at in at {
            if let Some(after) = self.valid_after.filter(|after| at < after) {
                return Err(format!("the key counts from {after} on"));
            }
            if let Some(before) = self.valid_before.filter(|before| at > before) {
                return Err(format!("the key counted until {before}"));
            }
        }
        Ok(())
    }
}

/// Types of keys begin so; options never do.
fn is_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-", "rsa-", "webauthn-"].iter().any(|prefix| word.starts_with(prefix))
}

fn entry(line: usize, text: &str) -> Result<Entry, String> {
    let (principals, rest) = field(text)?;
    let principals: Vec<String> = unquoted(principals).split(',').map(str::to_owned).collect();
    if principals.iter().any(String::is_empty) {
        return Err("a principal is empty".to_owned());
    }
    let (next, after) = field(rest)?;
    let (options, kind, rest) = if is_key_type(next) {
        ("", next, after)
    } else {
        let (kind, rest) = field(after)?;
        (next, kind, rest)
    };
    let (key, _) = field(rest)?;
    if !is_key_type(kind) || key.is_empty() {
        return Err("there is no key behind the principals and options".to_owned());
    }
    let mut entry =
        Entry { line, principals, key: format!("{kind} {key}"), namespaces: None, valid_after: None, valid_before: None, unusable: None };
    apply(options, &mut entry)?;
    if let Some(pattern) = entry.principals.iter().find(|name| name.contains(['*', '?', '!'])) {
        entry.unusable.get_or_insert_with(|| format!("{pattern:?} is a pattern, and names nobody"));
    }
    Ok(entry)
}

fn apply(options: &str, entry: &mut Entry) -> Result<(), String> {
    for option in split_options(options)? {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))),
            None => (option, None),
        };
        let repeated = || format!("option {name} stands twice");
        match (name.to_ascii_lowercase().as_str(), value) {
            ("cert-authority", None) => {
                entry.unusable.get_or_insert_with(|| "it is an authority (cert-authority): name the keys of persons instead".to_owned());
            }
            ("namespaces", Some(list)) => {
                if entry.namespaces.replace(list.split(',').map(str::to_owned).collect()).is_some() {
                    return Err(repeated());
                }
            }
            ("valid-after", Some(text)) => {
                // Where no zone is named it is the reader's: then it counts when it does everywhere, and 12 hours west of Greenwich is last.
                if entry.valid_after.replace(time(text, SignedDuration::from_hours(12))?).is_some() {
                    return Err(repeated());
                }
            }
            ("valid-before", Some(text)) => {
                // And first 14 hours east of it.
                if entry.valid_before.replace(time(text, SignedDuration::from_hours(-14))?).is_some() {
                    return Err(repeated());
                }
            }
            _ => return Err(format!("option {:?} is not known", option.chars().take(80).collect::<String>())),
        }
    }
    Ok(())
}

/// Up to a blank that is not in quotes, and what follows.
fn field(text: &str) -> Result<(&str, &str), String> {
    let text = text.trim_start();
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ' ' | '\t' if !quoted => return Ok((&text[..at], &text[at..])),
            _ => {}
        }
    }
    if quoted { Err("a quotation mark is not closed".to_owned()) } else { Ok((text, "")) }
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// Options, separated by commas that are not in quotes.
fn split_options(text: &str) -> Result<Vec<&str>, String> {
    let (mut options, mut quoted, mut from) = (Vec::new(), false, 0);
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                options.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    if !text.is_empty() {
        options.push(&text[from..]);
    }
    Ok(options)
}

/// `YYYYMMDD[HHMM[SS]][Z]`; without `Z`, so much later than in UTC.
fn time(text: &str, elsewhere: SignedDuration) -> Result<Timestamp, String> {
    let bad = || format!("{:?} is no time: write YYYYMMDDHHMMSSZ", text.chars().take(40).collect::<String>());
    let (digits, shift) = match text.strip_suffix(['Z', 'z']) {
        Some(digits) => (digits, SignedDuration::ZERO),
        None => (text, elsewhere),
    };
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let part = |at: usize, length: usize| digits.get(at..at + length).map_or(Ok(0), str::parse::<i16>).map_err(|_| bad());
    let small = |at: usize| part(at, 2).map(|number| number as i8);
    let date = civil::DateTime::new(part(0, 4)?, small(4)?, small(6)?, small(8)?, small(10)?, small(12)?, 0).map_err(|_| bad())?;
    let utc = jiff::tz::TimeZone::UTC.to_timestamp(date).map_err(|_| bad())?;
    utc.checked_add(shift).map_err(|_| bad())
}

/// OpenSSH's `match_pattern_list`: some pattern fits, and none that begins with `!` does.
fn matches_list(text: &str, patterns: &[String]) -> bool {
    let mut found = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(pattern) if matches(text.as_bytes(), pattern.as_bytes()) => return false,
            Some(_) => {}
            None => found |= matches(text.as_bytes(), pattern.as_bytes()),
        }
    }
    found
}

/// OpenSSH's `match_pattern`: `*` is any number of characters, `?` is one. In time proportional to both, whatever the pattern.
fn matches(text: &[u8], pattern: &[u8]) -> bool {
    let (mut t, mut p) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                t += 1;
                p += 1;
            }
            _ => match &mut star {
                Some((at, eaten)) => {
                    *eaten += 1;
                    (t, p) = (*eaten, *at + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NS: &str = super::super::SSH_NAMESPACE;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn names(file: &str, key: &str, now: &str) -> Result<Vec<String>, String> {
        AllowedSigners::parse(file).names(|found| found == key, NS, &[at(now)])
    }

    #[test]
    fn lines_are_read_as_openssh_reads_them() {
        let file = "# people\n\n  alice@example.com,alice ssh-ed25519 AAAA alice on her laptop\n\
                    bob@example.com namespaces=\"git,lifeboat-*\",valid-before=\"20300101Z\" sk-ssh-ed25519@openssh.com BBBB\n\
                    \"carol@example.com\" VALID-AFTER=20200101 ecdsa-sha2-nistp256 CCCC\n";
        let signers = AllowedSigners::parse(file);
        assert_eq!(signers.problems, Vec::<String>::new());
        assert_eq!(signers.entries.len(), 3);
        let now = "2026-01-01T00:00:00Z";
        assert_eq!(names(file, "ssh-ed25519 AAAA", now).unwrap()[..2], ["alice@example.com", "alice"]);
        assert_eq!(names(file, "sk-ssh-ed25519@openssh.com BBBB", now).unwrap()[0], "bob@example.com");
        assert!(names(file, "sk-ssh-ed25519@openssh.com BBBB", "2030-01-01T00:00:01Z").unwrap_err().contains("counted until"));
        assert_eq!(names(file, "ecdsa-sha2-nistp256 CCCC", now).unwrap()[0], "carol@example.com");
        assert!(names(file, "ssh-ed25519 DDDD", now).unwrap_err().contains("no line"));
    }

    #[test]
    fn what_names_nobody_does_not_count() {
        let now = "2026-01-01T00:00:00Z";
        for (line, says) in [
            ("*@example.com ssh-ed25519 K", "pattern"),
            ("alice,!bob ssh-ed25519 K", "pattern"),
            ("alice cert-authority ssh-ed25519 K", "cert-authority"),
            ("alice namespaces=\"git\" ssh-ed25519 K", "namespace"),
            ("alice namespaces=\"*,!lifeboat-*\" ssh-ed25519 K", "namespace"),
            ("alice valid-after=\"20270101\" ssh-ed25519 K", "from"),
        ] {
            let refused = names(line, "ssh-ed25519 K", now).unwrap_err();
            assert!(refused.contains(says) && refused.starts_with("line 1: "), "{refused}");
        }
        for line in [
            "alice",
            "alice ssh-ed25519",
            "alice namespaces=\"git ssh-ed25519 K",
            "alice no-touch ssh-ed25519 K",
            ",a ssh-ed25519 K",
            "alice valid-after=\"2027\" ssh-ed25519 K",
            "alice valid-after=20271301Z ssh-ed25519 K",
        ] {
            let signers = AllowedSigners::parse(line);
            assert!(signers.entries.is_empty() && signers.problems.len() == 1, "{line}: {signers:?}");
        }
    }

    #[test]
    fn a_time_without_a_zone_counts_when_it_does_everywhere() {
        let file = "a valid-after=\"202601010000\",valid-before=\"20260103\" ssh-ed25519 K";
        assert!(names(file, "ssh-ed25519 K", "2026-01-01T11:59:59Z").is_err());
        assert!(names(file, "ssh-ed25519 K", "2026-01-01T12:00:00Z").is_ok());
        assert!(names(file, "ssh-ed25519 K", "2026-01-02T10:00:00Z").is_ok());
        assert!(names(file, "ssh-ed25519 K", "2026-01-02T10:00:01Z").is_err());
        let file = "a valid-after=\"20260101000001Z\" ssh-ed25519 K";
        assert!(names(file, "ssh-ed25519 K", "2026-01-01T00:00:00Z").is_err());
        assert!(names(file, "ssh-ed25519 K", "2026-01-01T00:00:01Z").is_ok());
    }

    #[test]
    fn every_line_of_a_key_says_who_it_is() {
        let file = "alice ssh-ed25519 K\nmallory valid-before=\"20200101Z\" ssh-ed25519 K\n";
        assert_eq!(names(file, "ssh-ed25519 K", "2026-01-01T00:00:00Z").unwrap(), ["alice", "alice", "mallory"]);
    }

    #[test]
    fn patterns_are_those_of_openssh() {
        let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        for (text, patterns, fits) in [
            ("abc", "abc", true),
            ("abc", "a?c", true),
            ("abc", "a*", true),
            ("abc", "*b*", true),
            ("abc", "ab", false),
            ("abc", "*,!abc", false),
            ("abc", "!x", false),
            ("", "*", true),
        ] {
            assert_eq!(matches_list(text, &list(patterns)), fits, "{text} {patterns}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_none_allow_a_key_that_is_not_there(text in "[ -~\\n\"=,*!\t]{0,200}") {
            let signers = AllowedSigners::parse(&text);
            prop_assert!(signers.names(|key| key == "ssh-ed25519 not-there", NS, &[Timestamp::UNIX_EPOCH]).is_err());
        }

        #[test]
        fn a_pattern_is_matched_like_the_plain_way(text in "[ab]{0,8}", pattern in "[ab?*]{0,8}") {
            fn slow(text: &[u8], pattern: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|at| slow(&text[at..], rest)),
                    Some((c, rest)) => text.split_first().is_some_and(|(t, more)| (*c == b'?' || c == t) && slow(more, rest)),
                }
            }
            prop_assert_eq!(matches(text.as_bytes(), pattern.as_bytes()), slow(text.as_bytes(), pattern.as_bytes()));
        }
    }
}
