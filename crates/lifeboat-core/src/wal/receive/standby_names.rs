//! `synchronous_standby_names`: read, and written again without one name, and with it.
//!
//! Several receivers of one server may take themselves out and come back in any order, and people change the value as well. Who wrote a value
//! is told by its form: a receiver writes the method, the count and every name in quotes, `ANY 1 ("a", "b")`, or nothing at all.
//!
//! Facts from PostgreSQL: `src/backend/replication/syncrep_gram.y`, `syncrep_scanner.l`; names are compared without regard to the case of
//! ASCII letters (`SyncRepGetStandbyPriority`).

/// A value that PostgreSQL would not take either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read synchronous_standby_names: {value:?} is not a list of names")]
pub struct NamesError {
    value: String,
}

/// How the standbys are chosen that a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The first of those that are connected, by their order.
    First,
    /// Any of them.
    Any,
}

/// The value of `synchronous_standby_names`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyNames {
    /// How they are chosen.
    pub method: Method,
    /// How many have to answer.
    pub count: u64,
    /// The names; `*` is all.
    pub names: Vec<String>,
}

#[derive(Debug, PartialEq)]
enum Token {
    Name(String),
    Number(String),
    Any,
    First,
    Sign(char),
}

fn tokens(value: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = value.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            // As `space` of the scanner.
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => {}
            ',' | '(' | ')' => tokens.push(Token::Sign(c)),
            '*' => tokens.push(Token::Name("*".to_owned())),
            '"' => {
                let mut name = String::new();
                loop {
                    match rest.next()? {
                        '"' if rest.next_if_eq(&'"').is_none() => break,
                        c => name.push(c),
                    }
                }
                tokens.push(Token::Name(name));
            }
            c if c.is_ascii_digit() => {
                let mut digits = String::from(c);
                while let Some(c) = rest.next_if(char::is_ascii_digit) {
                    digits.push(c);
                }
                tokens.push(Token::Number(digits));
            }
            c if c.is_ascii_alphabetic() || c == '_' || !c.is_ascii() => {
                let mut name = String::from(c);
                while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii()) {
                    name.push(c);
                }
                tokens.push(match name.to_ascii_lowercase().as_str() {
                    "any" => Token::Any,
                    "first" => Token::First,
                    _ => Token::Name(name),
                });
            }
            _ => return None,
        }
    }
    Some(tokens)
}

fn list(tokens: Vec<Token>) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for (at, token) in tokens.into_iter().enumerate() {
        match token {
            // A number is a name here.
            Token::Name(name) | Token::Number(name) if at % 2 == 0 => names.push(name),
            Token::Sign(',') if at % 2 == 1 => {}
            _ => return None,
        }
        if at > 20_000 {
            return None;
        }
    }
    Some(names)
}

impl StandbyNames {
    /// Reads a value; `None`: it is empty, nobody is waited for.
    pub fn parse(value: &str) -> Result<Option<Self>, NamesError> {
        let bad = || NamesError { value: value.chars().take(200).collect() };
        let mut tokens = tokens(value).ok_or_else(bad)?;
        if tokens.is_empty() {
            return Ok(None);
        }
        let grouped = tokens.last() == Some(&Token::Sign(')'));
        let (method, count) = if grouped {
            tokens.pop();
            let keyword = match tokens.first() {
                Some(Token::Any) => Some(Method::Any),
                Some(Token::First) => Some(Method::First),
                _ => None,
            };
            let mut head = tokens.drain(..if keyword.is_some() { 3 } else { 2 }.min(tokens.len()));
            if keyword.is_some() {
                head.next();
            }
            let count = match (head.next(), head.next()) {
                (Some(Token::Number(digits)), Some(Token::Sign('('))) => digits.parse().map_err(|_| bad())?,
                _ => return Err(bad()),
            };
            (keyword.unwrap_or(Method::First), count)
        } else {
            (Method::First, 1)
        };
        let ends_in_name = !matches!(tokens.last(), None | Some(Token::Sign(_)));
        let names = list(tokens).filter(|_| ends_in_name && count > 0).ok_or_else(bad)?;
        Ok(Some(Self { method, count, names }))
    }

    /// Whether the standby of this name is waited for.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|entry| entry == "*" || entry.eq_ignore_ascii_case(name))
    }

    fn place_of(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|entry| entry.eq_ignore_ascii_case(name))
    }

    /// The same without one standby. `others` are the names of the standbys that are connected beside it: what `*` then stands for. No more
    /// answers are asked for than there are names left, or commits would wait for ever.
    #[must_use]
    pub fn without(&self, name: &str, others: &[String]) -> Option<Self> {
        let mut names: Vec<String> = Vec::new();
        for entry in &self.names {
            let stands_for: &[String] = if entry == "*" { others } else { std::slice::from_ref(entry) };
            for entry in stands_for {
                if !entry.eq_ignore_ascii_case(name) && !names.iter().any(|known| known.eq_ignore_ascii_case(entry)) {
                    names.push(entry.clone());
                }
            }
        }
        let count = self.count.min(names.len() as u64);
        (!names.is_empty()).then_some(Self { method: self.method, count, names })
    }
}

/// How a standby comes back into the value that it took itself out of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Return {
    /// It is named already.
    Named,
    /// With it all is as it was before: that value is put back, as it stood.
    Before,
    /// With this value: others that were named before are still out.
    Value(String),
    /// A person chose a value without it.
    Chosen,
}

/// Whether a value is one that a receiver may have written.
fn is_written(value: &str, parsed: Option<&StandbyNames>) -> bool {
    parsed.map_or_else(|| value.trim().is_empty(), |names| names.to_string() == value)
}

/// Whether `now` is what receivers that took themselves out left of `before`. What `*` stands for cannot be told.
pub fn is_rest(before: &str, now: &str) -> bool {
    let (Ok(Some(before)), Ok(rest)) = (StandbyNames::parse(before), StandbyNames::parse(now)) else { return false };
    let fits = |rest: &StandbyNames| {
        rest.method == before.method && rest.count <= before.count && rest.names.iter().all(|name| before.place_of(name).is_some())
    };
    is_written(now, rest.as_ref()) && rest.as_ref().is_none_or(fits) && before.place_of("*").is_none()
}

/// Decides how a standby comes back. `before` is the value that named it, `set` the one that it set then, `now` that of the server. Only its own
/// name is added, in its place of then, and no more answers are asked for than then.
///
/// # Errors
///
/// One of the values is none.
pub fn put_back(name: &str, before: &str, set: &str, now: &str) -> Result<Return, NamesError> {
    let (before, set) = (StandbyNames::parse(before)?, StandbyNames::parse(set)?);
    let present = StandbyNames::parse(now)?;
    if present.as_ref().is_some_and(|present| present.has(name)) {
        return Ok(Return::Named);
    }
    let Some(before) = before.filter(|_| is_written(now, present.as_ref())) else { return Ok(Return::Chosen) };
    let place = before.place_of(name);
    let (method, count, mut names) =
        present.map_or((before.method, 0, Vec::new()), |present| (present.method, present.count, present.names));
    let is_behind = |other: &String| place.is_some_and(|place| before.place_of(other).is_some_and(|other| other > place));
    let at = names.iter().position(is_behind).unwrap_or(names.len());
    names.insert(at, place.map_or_else(|| name.to_owned(), |place| before.names[place].clone()));
    let count = count.max(before.count.min(names.len() as u64));
    let back = StandbyNames { method, count, names };
    // What stood in place of `*` is there again.
    let all = before.place_of("*").is_some() && set.is_none_or(|set| set.names.iter().all(|other| back.place_of(other).is_some()));
    Ok(if all || back == before { Return::Before } else { Return::Value(back.to_string()) })
}

impl std::fmt::Display for StandbyNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let method = if self.method == Method::Any { "ANY" } else { "FIRST" };
        write!(f, "{method} {} (", self.count)?;
        for (at, name) in self.names.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match name.as_str() {
                "*" => write!(f, "{comma}*")?,
                name => write!(f, "{comma}\"{}\"", name.replace('"', "\"\""))?,
            }
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn without(value: &str, name: &str, others: &[&str]) -> String {
        let others: Vec<String> = others.iter().map(|name| (*name).to_owned()).collect();
        let names = StandbyNames::parse(value).unwrap().expect("not empty");
        assert!(names.has(name), "{value}");
        names.without(name, &others).map_or_else(String::new, |names| names.to_string())
    }

    #[test]
    fn exactly_one_name_goes() {
        assert_eq!(without("lifeboat", "lifeboat", &[]), "");
        assert_eq!(without("FIRST 1 (LifeBoat)", "lifeboat", &[]), "");
        assert_eq!(without("a, \"lifeboat\", b", "lifeboat", &[]), "FIRST 1 (\"a\", \"b\")");
        assert_eq!(without("any 2 (lb1,lb2 , lb3)", "lb2", &[]), "ANY 2 (\"lb1\", \"lb3\")");
        assert_eq!(without("FIRST 2 (a, lifeboat)", "lifeboat", &[]), "FIRST 1 (\"a\")");
        assert_eq!(without("2 (a, lifeboat, 3)", "lifeboat", &[]), "FIRST 2 (\"a\", \"3\")");
        assert_eq!(without("\"a\"\"b\", lifeboat", "lifeboat", &[]), "FIRST 1 (\"a\"\"b\")");
        assert_eq!(without("*", "lifeboat", &[]), "");
        assert_eq!(without("ANY 1 (*)", "lifeboat", &["node2", "lifeboat", "node3"]), "ANY 1 (\"node2\", \"node3\")");
        assert_eq!(without("lifeboat, *", "lifeboat", &["x"]), "FIRST 1 (\"x\")");
    }

    #[test]
    fn other_values_are_refused() {
        assert_eq!(StandbyNames::parse("  "), Ok(None));
        for bad in ["a b", "a,", ",a", "FIRST (a)", "FIRST 0 (a)", "ANY x (a)", "1 (a", "a)", "\"a", "a;b", "ANY 1 ()", "(a)", ")"] {
            assert!(StandbyNames::parse(bad).is_err(), "{bad}");
        }
        assert!(!StandbyNames::parse("lifeboat2").unwrap().unwrap().has("lifeboat"));
    }

    #[test]
    fn c059_a_name_comes_back_whoever_is_still_out() {
        let back = |name: &str, before: &str, set: &str, now: &str| match put_back(name, before, set, now).unwrap() {
            Return::Value(value) => value,
            other => format!("{other:?}"),
        };
        assert_eq!(back("lifeboat", "LifeBoat", "", ""), "Before");
        assert_eq!(back("a", "ANY 1 (a, b)", "ANY 1 (\"b\")", "ANY 1 (\"b\")"), "Before");
        // The other one is out as well, and returns later, or never.
        assert_eq!(back("a", "ANY 1 (a, b)", "ANY 1 (\"b\")", ""), "ANY 1 (\"a\")");
        assert_eq!(back("b", "ANY 1 (a, b)", "", "ANY 1 (\"a\")"), "Before");
        assert_eq!(back("b", "FIRST 1 (b, a)", "", "FIRST 1 (\"a\")"), "Before");
        // One that knows only what another had left.
        assert_eq!(back("b", "ANY 1 (\"b\")", "", "ANY 1 (\"a\")"), "ANY 1 (\"a\", \"b\")");
        assert_eq!(back("b", "ANY 2 (\"b\", \"c\")", "ANY 1 (\"c\")", "ANY 2 (\"a\", \"c\")"), "ANY 2 (\"a\", \"b\", \"c\")");
        assert_eq!(back("a", "*", "FIRST 1 (\"b\")", "FIRST 1 (\"b\")"), "Before");
        assert_eq!(back("a", "*", "FIRST 1 (\"b\")", ""), "FIRST 1 (\"a\")");
        for named in ["a", "b, A", "*", "FIRST 1 (\"a\")"] {
            assert_eq!(back("a", "ANY 1 (a, b)", "ANY 1 (\"b\")", named), "Named");
        }
        // Nobody but a person writes like that.
        for chosen in ["b", "ANY 1 (b)", "first 1 (\"b\")", "ANY 1 (b, c)"] {
            assert_eq!(back("a", "ANY 1 (a, b)", "ANY 1 (\"b\")", chosen), "Chosen");
        }
        assert!(put_back("a", "a", "", "b,").is_err());
    }

    proptest! {
        #[test]
        fn c059_names_are_as_they_were_when_all_are_back(
            (any, count, who, steps) in (any::<bool>(), 1u64..4, 2usize..5, proptest::collection::vec(0usize..4, 0..40)),
        ) {
            let method = if any { "ANY" } else { "FIRST" };
            let receivers = ["a", "B", "c", "d"];
            let original = format!("{method} {count} (x, {})", receivers[..who].join(", "));
            let (mut value, mut notes, mut known) = (original.clone(), vec![None; who], vec![original.clone(); who]);
            // In the end all come back, in the order of their names.
            let last = 0..who;
            for (at, who) in steps.iter().map(|step| step % who).chain(last).enumerate() {
                let name = receivers[who];
                if !is_rest(&known[who], &value) {
                    known[who].clone_from(&value);
                }
                match notes[who].take() {
                    None if at < steps.len() => {
                        let names = StandbyNames::parse(&value).unwrap().expect("it is in");
                        prop_assert!(names.has(name));
                        let set = names.without(name, &[]).map_or_else(String::new, |names| names.to_string());
                        notes[who] = Some((known[who].clone(), set.clone()));
                        value = set;
                    }
                    None => {}
                    Some((before, set)) => value = match put_back(name, &before, &set, &value).unwrap() {
                        Return::Before => before,
                        Return::Value(value) => value,
                        other => panic!("{other:?}"),
                    },
                }
                let now = StandbyNames::parse(&value).unwrap();
                let has = |name: &str| now.as_ref().is_some_and(|now| now.has(name));
                for (receiver, note) in receivers.iter().zip(&notes) {
                    prop_assert_eq!(has(receiver), note.is_none(), "{} in {}", receiver, value);
                }
                // Nobody waits for more than there are.
                prop_assert!(now.is_none_or(|now| now.count <= now.names.len() as u64));
            }
            prop_assert_eq!(value, original);
        }

        #[test]
        fn what_is_written_is_read_the_same(names in proptest::collection::vec("[a-z\"* ,0-9]{1,8}", 1..5), count in 1u64..9, any in any::<bool>()) {
            let method = if any { Method::Any } else { Method::First };
            let value = StandbyNames { method, count, names };
            prop_assert_eq!(StandbyNames::parse(&value.to_string()), Ok(Some(value)));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[ -~]{0,30}") {
            if let Ok(Some(names)) = StandbyNames::parse(&text) {
                let _ = names.without("lifeboat", &[]);
            }
        }
    }
}
