//! What can be said about a policy from its words alone: which functions it calls, and which tests it has.
//!
//! The evaluator looks a function up when it calls it, and that may be on the worst night. So a policy that calls what it cannot have is
//! refused when it is loaded. This reads words and no grammar: what it overlooks, the evaluator still refuses, later.

use std::collections::{BTreeMap, BTreeSet};

use super::sources::{SourceFile, Sources};

/// The builtins that policies get: functions of their arguments, and the same in the embedded evaluator and in OPA (the tests compare).
/// Left out are those that look at the world (`http.send`, `time.now_ns`, `rand.intn`), those whose work lifeboat has done before it
/// asks (`crypto.*`, `io.jwt.*`), those that make much of little (`numbers.range`, `net.cidr_expand`), and those on which the two differ.
pub const BUILTINS: &[&str] = &[
    "abs",
    "array.concat",
    "array.reverse",
    "array.slice",
    "base64.decode",
    "base64.encode",
    "base64.is_valid",
    "base64url.decode",
    "base64url.encode",
    "base64url.encode_no_pad",
    "bits.and",
    "bits.lsh",
    "bits.negate",
    "bits.or",
    "bits.rsh",
    "bits.xor",
    "ceil",
    "concat",
    "contains",
    "count",
    "endswith",
    "floor",
    "format_int",
    "glob.match",
    "glob.quote_meta",
    "hex.decode",
    "hex.encode",
    "indexof",
    "indexof_n",
    "intersection",
    "is_array",
    "is_boolean",
    "is_null",
    "is_number",
    "is_object",
    "is_set",
    "is_string",
    "json.filter",
    "json.is_valid",
    "json.remove",
    "json.unmarshal",
    "lower",
    "max",
    "min",
    "net.cidr_contains",
    "net.cidr_is_valid",
    "object.filter",
    "object.get",
    "object.keys",
    "object.remove",
    "object.subset",
    "object.union",
    "object.union_n",
    "print",
    "product",
    "regex.find_n",
    "regex.is_valid",
    "regex.match",
    "regex.replace",
    "regex.split",
    "replace",
    "round",
    "semver.compare",
    "semver.is_valid",
    "sort",
    "split",
    "sprintf",
    "startswith",
    "strings.any_prefix_match",
    "strings.any_suffix_match",
    "strings.count",
    "strings.replace_n",
    "strings.reverse",
    "substring",
    "sum",
    "time.add_date",
    "time.clock",
    "time.date",
    "time.diff",
    "time.format",
    "time.parse_duration_ns",
    "time.parse_ns",
    "time.parse_rfc3339_ns",
    "time.weekday",
    "to_number",
    "trim",
    "trim_left",
    "trim_prefix",
    "trim_right",
    "trim_space",
    "trim_suffix",
    "type_name",
    "union",
    "units.parse",
    "units.parse_bytes",
    "upper",
    "uuid.parse",
    "walk",
];

/// Builtins that the evaluator has and policies do not get: each is replaced by one that fails, with the number of its arguments.
pub(super) const WITHHELD: [(&str, u8); 9] = [
    ("time.now_ns", 0),
    ("opa.runtime", 0),
    ("rand.intn", 2),
    ("uuid.rfc4122", 1),
    ("http.send", 1),
    ("numbers.range", 2),
    ("numbers.range_step", 3),
    ("net.cidr_expand", 1),
    ("trace", 1),
];

/// What a policy does instead of calling a builtin that it does not get.
pub(super) fn instead(name: &str) -> &'static str {
    match name {
        "time.now_ns" => "the time is a fact: input.time, input.time_seconds",
        name if name.starts_with("crypto.") || name.starts_with("io.jwt.") => {
            "signatures are verified before the policy is asked: input.backup, input.plan.approvals"
        }
        _ => "a policy computes with input and data alone (docs/policy.md lists the builtins)",
    }
}

const KEYWORDS: [&str; 12] = ["as", "default", "else", "every", "false", "if", "in", "not", "null", "some", "true", "with"];

/// A word with dots, or a single character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// The text of a string, with its quotes.
    Text,
    Other(char),
}

#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    token: Token<'a>,
    line: usize,
    /// It is the first of its line.
    first: bool,
    /// Nothing stands between it and the one before.
    joined: bool,
}

/// Tokens, without comments and the insides of strings.
fn tokens(text: &str) -> Vec<Place<'_>> {
    let bytes = text.as_bytes();
    let (mut places, mut at, mut line, mut first, mut joined) = (Vec::new(), 0, 1, true, false);
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        at += 1;
        let token = match byte {
            b'\n' => {
                (line, first, joined) = (line + 1, true, false);
                continue;
            }
            b' ' | b'\t' | b'\r' => {
                joined = false;
                continue;
            }
            b'#' => {
                at += bytes[at..].iter().take_while(|byte| **byte != b'\n').count();
                joined = false;
                continue;
            }
            b'"' => {
                while let Some(&byte) = bytes.get(at) {
                    at += if byte == b'\\' { 2 } else { 1 };
                    if byte == b'"' || byte == b'\n' {
                        break;
                    }
                }
                Token::Text
            }
            b'`' => {
                at += bytes[at..].iter().take_while(|byte| **byte != b'`').count() + 1;
                Token::Text
            }
            byte if is_word(byte) => {
                // A dot joins words only if a word follows it.
                while bytes.get(at).is_some_and(|byte| is_word(*byte))
                    || (bytes.get(at) == Some(&b'.') && bytes.get(at + 1).is_some_and(|byte| is_word(*byte)))
                {
                    at += 1;
                }
                Token::Word(&text[start..at])
            }
            _ => Token::Other(char::from(byte)),
        };
        places.push(Place { token, line, first, joined });
        line += text.get(start..at.min(bytes.len())).map_or(0, |text| text.matches('\n').count());
        (first, joined) = (false, true);
    }
    places
}

/// A call of a function.
#[derive(Debug)]
struct Call<'a> {
    name: &'a str,
    line: usize,
}

/// What one file says.
#[derive(Debug, Default)]
pub(super) struct Words<'a> {
    /// `data.` and the name of its package.
    pub(super) package: String,
    /// Tests, by name, with the line of the first rule of each.
    pub(super) tests: BTreeMap<&'a str, usize>,
    /// Packages and functions of other files, by what they are called here.
    imports: BTreeSet<&'a str>,
    functions: BTreeSet<&'a str>,
    calls: Vec<Call<'a>>,
}

impl<'a> Words<'a> {
    pub(super) fn of(file: &'a SourceFile) -> Self {
        let places = tokens(&file.text);
        let mut words = Self::default();
        let mut depth = 0_usize;
        for (index, place) in places.iter().enumerate() {
            let before = index.checked_sub(1).and_then(|index| places.get(index));
            let after = places.get(index + 1);
            match place.token {
                Token::Other('{' | '[' | '(') => depth += 1,
                Token::Other('}' | ']' | ')') => depth = depth.saturating_sub(1),
                Token::Word("package") if place.first && depth == 0 && words.package.is_empty() => {
                    let line = file.text.lines().nth(place.line - 1).unwrap_or_default();
                    let name = line.split('#').next().unwrap_or_default().trim().trim_start_matches("package").trim();
                    words.package = format!("data.{name}");
                }
                Token::Word("import") if place.first && depth == 0 => words.import(&places[index + 1..]),
                Token::Word(name) => {
                    let begins = depth == 0 && begins_rule(place, before);
                    let called = after.is_some_and(|after| after.token == Token::Other('(') && (after.joined || !KEYWORDS.contains(&name)));
                    let called = called && after.is_some_and(|after| after.line == place.line);
                    let inside = before.is_some_and(|before| place.joined && matches!(before.token, Token::Other('.')));
                    if begins && called {
                        words.functions.insert(last(name));
                    } else if begins && name.starts_with("test_") {
                        words.tests.entry(name).or_insert(place.line);
                    } else if (called && !inside && !KEYWORDS.contains(&name))
                        || WITHHELD.iter().any(|(withheld, _)| *withheld == name && name.contains('.'))
                    {
                        words.calls.push(Call { name, line: place.line });
                    }
                }
                Token::Text | Token::Other(_) => {}
            }
        }
        words
    }

    fn import(&mut self, rest: &[Place<'a>]) {
        let [Place { token: Token::Word(path), .. }, rest @ ..] = rest else { return };
        if !path.starts_with("data.") {
            return;
        }
        let alias = match rest {
            [Place { token: Token::Word("as"), first: false, .. }, Place { token: Token::Word(alias), .. }, ..] => alias,
            _ => last(path),
        };
        self.imports.insert(alias);
    }
}

/// Whether a rule begins here: on a line of its own, behind something that ends another.
fn begins_rule(place: &Place<'_>, before: Option<&Place<'_>>) -> bool {
    match before.map(|before| before.token) {
        None => true,
        Some(Token::Word("default")) => true,
        _ if !place.first => false,
        Some(Token::Word(word)) => !matches!(word, "if" | "in" | "not" | "contains" | "some" | "every" | "with" | "as" | "else"),
        Some(Token::Text) => true,
        Some(Token::Other(other)) => matches!(other, '}' | ']' | ')'),
    }
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// The first call of something that policies do not get, in words.
pub(super) fn refused_call(sources: &Sources) -> Option<String> {
    let all: Vec<(&SourceFile, Words<'_>)> = sources.files().iter().map(|file| (file, Words::of(file))).collect();
    let functions: BTreeSet<&str> = all.iter().flat_map(|(_, words)| words.functions.iter().copied()).collect();
    for (file, words) in &all {
        for Call { name, line } in &words.calls {
            let root = name.split('.').next().unwrap_or_default();
            let ours = root == "data" || words.imports.contains(root) || !name.contains('.');
            if is_builtin(name) || (ours && functions.contains(last(name))) {
                continue;
            }
            let path = &file.path;
            return Some(match ours && !WITHHELD.iter().any(|(withheld, _)| withheld == name) {
                true => format!("{path}:{line}: there is no function {name}"),
                false => format!("{path}:{line}: {name} is not given to policies: {}", instead(name)),
            });
        }
    }
    None
}

/// Whether policies get this builtin.
fn is_builtin(name: &str) -> bool {
    BUILTINS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> SourceFile {
        SourceFile { path: "p.rego".into(), text: text.into() }
    }

    #[test]
    fn words_are_told_from_strings_and_comments() {
        let text = "package lifeboat # not http.send(x)\n\nimport data.team.people as staff\nimport data.hours\n\nallow if { # crypto.x(1)\n\tx := \"http.send(\\\"\"; y := `opa.runtime(\n)`\n\tstaff.is(x)\n\thours.open(y)\n}\n\nf(a) := count(a)\n\ndefault g(_) := 1\n\ntest_one if f([1]) == 1\n\ntest_two if {\n\tg(2)\n}\n";
        let file = file(text);
        let words = Words::of(&file);
        assert_eq!(words.package, "data.lifeboat");
        assert_eq!(words.imports.iter().copied().collect::<Vec<_>>(), ["hours", "staff"]);
        assert_eq!(words.functions.iter().copied().collect::<Vec<_>>(), ["f", "g"]);
        assert_eq!(words.tests.into_iter().collect::<Vec<_>>(), [("test_one", 16), ("test_two", 18)]);
        let calls: Vec<_> = words.calls.iter().map(|call| (call.name, call.line)).collect();
        assert_eq!(calls, [("staff.is", 9), ("hours.open", 10), ("count", 13), ("f", 16), ("g", 19)]);
    }

    #[test]
    fn a_call_on_the_next_line_is_no_rule() {
        let file = file("package lifeboat\nallow if\n\thttp.send({})\nb := 1 +\nf(2)\nc if not\nh(1)\n");
        let words = Words::of(&file);
        assert!(words.functions.is_empty());
        assert_eq!(words.calls.iter().map(|call| call.name).collect::<Vec<_>>(), ["http.send", "f", "h"]);
    }

    #[test]
    fn any_text_is_read() {
        for text in ["", "\"", "`", "\"\\", "#", ".", "a.", "é(", "package", "import", "import data", "(((", ")))", "\u{feff}x"] {
            Words::of(&file(text));
        }
    }

    #[test]
    fn the_lists_are_sorted_and_apart() {
        assert!(BUILTINS.is_sorted_by(|a, b| a < b));
        assert!(WITHHELD.iter().all(|(name, _)| !is_builtin(name)));
    }
}
