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

/// Operators and names in one expression. The evaluator goes down one level of its stack for each of them, and has no limit of its own for that.
const MAX_CHAIN: usize = 200;

/// The first line on which an expression is a longer chain than any that somebody has written by hand.
pub(super) fn endless_expression(file: &SourceFile) -> Option<usize> {
    let links = |token: Token<'_>| match token {
        Token::Word(word) => word.matches('.').count(),
        Token::Other('.' | '[' | '+' | '-' | '*' | '/' | '%' | '|' | '&') => 1,
        Token::Text | Token::Other(_) => 0,
    };
    let (mut chain, mut goes_on) = (0, false);
    for place in tokens(&file.text) {
        let link = links(place.token);
        let ends = matches!(place.token, Token::Other(',' | ';' | ':' | '=' | '{' | '}' | '(' | ')'));
        // A line of its own, unless this or the line before is in the middle of something.
        let begins = place.first && !goes_on && !matches!(place.token, Token::Other(_));
        chain = if ends || begins { 0 } else { chain } + link;
        goes_on = matches!(place.token, Token::Other(other) if other != ']' && link > 0);
        if chain > MAX_CHAIN {
            return Some(place.line);
        }
    }
    None
}

/// A call of a function.
#[derive(Debug)]
struct Call<'a> {
    name: &'a str,
    line: usize,
    /// The function in whose body it stands, if it is one.
    within: Option<&'a str>,
}

/// What one file says.
#[derive(Debug, Default)]
pub(super) struct Words<'a> {
    /// `data.` and the name of its package.
    pub(super) package: String,
    pub(super) package_line: usize,
    /// Lines with an import.
    pub(super) import_lines: Vec<usize>,
    /// Names of rules: the first word of each.
    pub(super) heads: BTreeSet<&'a str>,
    /// The first use of `with`, or of `data` without a name behind it, with its line.
    pub(super) misuse: Option<(usize, &'static str)>,
    /// Tests, by name, with the line of the first rule of each.
    pub(super) tests: BTreeMap<&'a str, usize>,
    /// Packages and functions of other files, by what they are called here.
    pub(super) imports: BTreeMap<&'a str, &'a str>,
    functions: BTreeSet<&'a str>,
    calls: Vec<Call<'a>>,
}

impl<'a> Words<'a> {
    pub(super) fn of(file: &'a SourceFile) -> Self {
        let places = tokens(&file.text);
        let (mut words, mut depth, mut within) = (Self::default(), 0_usize, None);
        for (index, place) in places.iter().enumerate() {
            let before = index.checked_sub(1).and_then(|index| places.get(index));
            let name = match place.token {
                Token::Other('{' | '[' | '(') => {
                    depth += 1;
                    continue;
                }
                Token::Other('}' | ']' | ')') => {
                    depth = depth.saturating_sub(1);
                    continue;
                }
                Token::Text | Token::Other(_) => continue,
                Token::Word("package") if depth == 0 && place.first && words.package.is_empty() => {
                    let line = file.text.lines().nth(place.line - 1).unwrap_or_default();
                    let name = line.split('#').next().unwrap_or_default().trim().trim_start_matches("package").trim();
                    words.package = format!("data.{name}");
                    words.package_line = place.line;
                    continue;
                }
                Token::Word("import") if depth == 0 && place.first => {
                    words.import_lines.push(place.line);
                    words.import(&places[index + 1..]);
                    continue;
                }
                Token::Word(name) => name,
            };
            let after_with = before.is_some_and(|before| before.token == Token::Word("with"));
            let misused = match name {
                "with" => Some("with"),
                "data" if !after_with => Some("data"),
                _ => None,
            };
            // A test uses both words; that it uses `data` alone must not hide behind an earlier `with`.
            if let Some(what) = misused
                && words.misuse.is_none_or(|(_, before)| before == "with" && what == "data")
            {
                words.misuse = Some((place.line, what));
            }
            let called = !KEYWORDS.contains(&name) && is_called(place, places.get(index + 1));
            let follows = before.is_some_and(|before| place.joined && before.token == Token::Other('.'));
            if depth == 0 && begins_rule(place, before) {
                within = called.then_some(name);
                words.heads.insert(name.split('.').next().unwrap_or(name));
                if called {
                    words.functions.insert(name);
                } else if name.starts_with("test_") {
                    words.tests.entry(name).or_insert(place.line);
                }
            } else if (called && !follows) || WITHHELD.iter().any(|(withheld, _)| *withheld == name && name.contains('.')) {
                words.calls.push(Call { name, line: place.line, within });
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
            _ => path.rsplit('.').next().unwrap_or(path),
        };
        self.imports.insert(alias, path);
    }

    /// Where the function stands that is called so here, if it is one of a policy.
    fn resolve(&self, name: &str) -> String {
        let (root, rest) = name.split_once('.').map_or((name, ""), |(root, rest)| (root, rest));
        match self.imports.get(root) {
            _ if root == "data" => name.to_owned(),
            Some(path) if rest.is_empty() => (*path).to_owned(),
            Some(path) => format!("{path}.{rest}"),
            None => format!("{}.{name}", self.package),
        }
    }
}

/// Whether arguments follow: on the same line, as others would begin a rule or an expression.
fn is_called(place: &Place<'_>, after: Option<&Place<'_>>) -> bool {
    after.is_some_and(|after| after.token == Token::Other('(') && after.line == place.line)
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

/// The first thing that a policy cannot have, in words: a function that is none, or one that needs itself.
pub(super) fn refused(sources: &Sources, with_tests: bool) -> Option<String> {
    let all: Vec<(&SourceFile, Words<'_>)> =
        sources.files().iter().filter(|file| with_tests || !file.is_test()).map(|file| (file, Words::of(file))).collect();
    let functions: BTreeSet<String> =
        all.iter().flat_map(|(_, words)| words.functions.iter().map(|name| format!("{}.{name}", words.package))).collect();
    let mut calls = BTreeMap::<String, BTreeSet<String>>::new();
    for (file, words) in &all {
        for Call { name, line, within } in &words.calls {
            let target = words.resolve(name);
            if functions.contains(&target) {
                if let Some(within) = within {
                    calls.entry(format!("{}.{within}", words.package)).or_default().insert(target);
                }
                continue;
            }
            if is_builtin(name) {
                continue;
            }
            let path = &file.path;
            let root = name.split('.').next().unwrap_or_default();
            let builtin = name.contains('.') && root != "data" && !words.imports.contains_key(root);
            return Some(match builtin || WITHHELD.iter().any(|(withheld, _)| withheld == name) {
                true => format!("{path}:{line}: {name} is not given to policies: {}", instead(name)),
                false => format!("{path}:{line}: there is no function {name}"),
            });
        }
    }
    // Nothing in Rego may need itself. The evaluator sees that of rules; of functions it would see it when its stack is full.
    let itself = calls.keys().find(|name| reaches_itself(name, &calls))?;
    Some(format!("function {itself} needs itself"))
}

fn reaches_itself(name: &String, calls: &BTreeMap<String, BTreeSet<String>>) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![name]);
    while let Some(one) = next.pop() {
        for called in calls.get(one).into_iter().flatten() {
            if called == name {
                return true;
            }
            if seen.insert(called) {
                next.push(called);
            }
        }
    }
    false
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
        assert_eq!(
            words.imports.iter().map(|(alias, path)| (*alias, *path)).collect::<Vec<_>>(),
            [("hours", "data.hours"), ("staff", "data.team.people")]
        );
        assert_eq!(words.functions.iter().copied().collect::<Vec<_>>(), ["f", "g"]);
        assert_eq!(words.tests.into_iter().collect::<Vec<_>>(), [("test_one", 17), ("test_two", 19)]);
        let calls: Vec<_> = words.calls.iter().map(|call| (call.name, call.line)).collect();
        assert_eq!(calls, [("staff.is", 9), ("hours.open", 10), ("count", 13), ("f", 17), ("g", 20)]);
    }

    #[test]
    fn a_call_on_the_next_line_is_no_rule() {
        let file = file("package lifeboat\nallow if\n\thttp.send({})\nb := 1 +\nf(2)\nc if not\nh(1)\n");
        let words = Words::of(&file);
        assert!(words.functions.is_empty());
        assert_eq!(words.calls.iter().map(|call| call.name).collect::<Vec<_>>(), ["http.send", "f", "h"]);
    }

    #[test]
    fn functions_that_need_themselves_are_seen() {
        let refused = |texts: &[&str]| {
            let directory = tempfile::tempdir().unwrap();
            for (number, text) in texts.iter().enumerate() {
                std::fs::write(directory.path().join(format!("{number}.rego")), text).unwrap();
            }
            refused(&Sources::read(directory.path()).unwrap(), true)
        };
        assert_eq!(refused(&["package a\nf(x) := g(x)\ng(x) := x + 1\nh := f(g(1))\n"]), None);
        for texts in [
            ["package a\nf(x) := f(x)\n", "package b\n"],
            ["package a\nf(x) := y if {\n\ty := g(x)\n}\ng(x) := [f(y) | some y in x]\n", "package b\n"],
            ["package a\nimport data.b\nf(x) := b.g(x)\n", "package b\nimport data.a.f as back\ng(x) := back(x)\n"],
        ] {
            assert!(refused(&texts).unwrap().contains("needs itself"), "{texts:?}");
        }
        // The same name in another package is another function.
        assert_eq!(refused(&["package a\nimport data.b\nf(x) := b.f(x)\n", "package b\nf(x) := x\n"]), None);
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
