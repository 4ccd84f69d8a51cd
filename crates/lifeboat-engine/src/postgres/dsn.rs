//! Where a server is and how to log in: a libpq connection string or URI, checked, and shown without its secrets.
//!
//! Must not interpret what libpq interprets itself: `PG*` variables, service files, `.pgpass`, host lists.

use std::ffi::CString;
use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

use super::PgError;
use super::libpq;

/// A connection string (`host=db1 dbname=app`) or URI (`postgresql://db1/app`), as for psql.
///
/// The empty one means "as the `PG*` variables and libpq's defaults say". `Display` and `Debug` hide passwords.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Dsn {
    options: Vec<Setting>,
}

#[derive(Clone, PartialEq, Eq)]
struct Setting {
    keyword: String,
    /// Wiped when dropped: any of them may be a password.
    value: Zeroizing<String>,
    secret: bool,
}

impl Dsn {
    /// Parses with libpq's own parser, so that a mistake is found before anything connects.
    ///
    /// # Errors
    /// [`PgError::BadDsn`], with libpq's reason but without the text that may be a password.
    pub fn parse(text: &str) -> Result<Self, PgError> {
        let text = libpq::SecretText::new(text).ok_or_else(|| PgError::BadDsn { reason: "it holds a NUL byte".to_owned() })?;
        let options = libpq::parse_conninfo(&text).map_err(|reason| PgError::BadDsn { reason: without_values(&reason) })?;
        let options =
            options.into_iter().map(|option| Setting { secret: option.secret, keyword: option.keyword, value: option.value }).collect();
        Ok(Self { options })
    }

    /// The same with one parameter set or replaced, for example `("dbname", "postgres")`.
    #[must_use]
    pub fn with(mut self, keyword: &str, value: &str) -> Self {
        // Whoever overrides by hand does not get libpq's mark; its password keywords all say so by name.
        let secret = keyword.contains("password") || keyword.contains("secret");
        self.options.retain(|option| option.keyword != keyword);
        self.options.push(Setting { keyword: keyword.to_owned(), value: Zeroizing::new(value.to_owned()), secret });
        self
    }

    /// What a parameter is set to here; `None` leaves it to libpq.
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.options.iter().find(|option| option.keyword == keyword).map(|option| option.value.as_str())
    }

    /// Whether a password, or another secret, is written in it: something that must not be passed on as it is.
    pub fn has_secret(&self) -> bool {
        self.options.iter().any(|option| option.secret)
    }

    /// Host, port, database and user for a person to read, as far as they are known without connecting:
    /// from here, else from libpq's defaults.
    pub fn endpoint(&self) -> Endpoint {
        let defaults = libpq::default_options();
        let find = |keyword: &str| {
            let default = || defaults.iter().find(|option| option.keyword == keyword).map(|option| option.value.as_str());
            self.get(keyword).or_else(default).unwrap_or_default().to_owned()
        };
        let user = find("user");
        let mut database = find("dbname");
        if database.is_empty() {
            database.clone_from(&user);
        }
        let host = [find("host"), find("hostaddr")].into_iter().find(|host| !host.is_empty()).unwrap_or_default();
        Endpoint { host, port: find("port"), database, user }
    }

    /// A connection string for each of several hosts, in their order: for who must go on to the next host for reasons that libpq does not
    /// know. `prefer-standby` is two rounds, as in libpq. One host, or a service file, is one string.
    pub fn each_host(&self) -> Vec<Self> {
        let defaults = libpq::default_options();
        let find = |keyword: &str| {
            let default = || defaults.iter().find(|option| option.keyword == keyword).map(|option| option.value.as_str());
            self.get(keyword).or_else(default).filter(|value| !value.is_empty()).map(str::to_owned)
        };
        let (hosts, addresses, ports) = (find("host"), find("hostaddr"), find("port"));
        let split = |list: &Option<String>| list.as_ref().map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>());
        let (hosts, addresses, ports) = (split(&hosts), split(&addresses), split(&ports));
        let count = hosts.as_ref().or(addresses.as_ref()).map_or(1, Vec::len);
        let fits = |list: &Option<Vec<String>>| list.as_ref().is_none_or(|list| list.len() == count);
        // Lists that do not fit are libpq's to complain about.
        let one_port = ports.as_ref().is_none_or(|ports| ports.len() == 1);
        if count == 1 || !fits(&hosts) || !fits(&addresses) || !(one_port || fits(&ports)) {
            return vec![self.clone()];
        }
        let single = |index: usize| {
            let mut dsn = self.clone();
            for (keyword, list) in [("host", &hosts), ("hostaddr", &addresses), ("port", &ports)] {
                if let Some(list) = list {
                    dsn = dsn.with(keyword, list.get(index).unwrap_or(&list[0]));
                }
            }
            dsn
        };
        let all: Vec<Self> = (0..count).map(single).collect();
        if find("target_session_attrs").as_deref() == Some("prefer-standby") {
            let standbys = all.iter().map(|dsn| dsn.clone().with("target_session_attrs", "standby"));
            return standbys.chain(all.iter().map(|dsn| dsn.clone().with("target_session_attrs", "any"))).collect();
        }
        all
    }

    /// Keywords and values for libpq; those of `fallbacks` where neither this nor libpq's defaults say something.
    pub(super) fn params(&self, fallbacks: &[(&str, &str)]) -> Result<Vec<(CString, libpq::SecretText)>, PgError> {
        let mut params = Vec::with_capacity(self.options.len() + fallbacks.len());
        let mut push = |keyword: &str, value: &str| {
            let bad = || PgError::BadDsn { reason: format!("{keyword} holds a NUL byte") };
            params.push((CString::new(keyword).map_err(|_| bad())?, libpq::SecretText::new(value).ok_or_else(bad)?));
            Ok::<_, PgError>(())
        };
        for option in &self.options {
            push(&option.keyword, &option.value)?;
        }
        // A service file may set any of them, and what we pass would win over it.
        if self.get("service").is_none() {
            let defaults = libpq::default_options();
            for (keyword, value) in fallbacks {
                if self.get(keyword).is_none() && !defaults.iter().any(|option| option.keyword == *keyword) {
                    push(keyword, value)?;
                }
            }
        }
        Ok(params)
    }
}

impl FromStr for Dsn {
    type Err = PgError;

    fn from_str(text: &str) -> Result<Self, PgError> {
        Self::parse(text)
    }
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, option) in self.options.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            let plain = !option.value.is_empty() && !option.value.contains(|c: char| c.is_whitespace() || c == '\'' || c == '\\');
            if option.secret {
                write!(f, "{space}{}=***", option.keyword)?;
            } else if plain {
                write!(f, "{space}{}={}", option.keyword, option.value.as_str())?;
            } else {
                let value = option.value.as_str().replace('\\', "\\\\").replace('\'', "\\'");
                write!(f, "{space}{}='{value}'", option.keyword)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dsn({self})")
    }
}

/// Which server, database and user: for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name, address or socket directory; a list where several are configured; empty for libpq's own socket directory.
    pub host: String,
    /// Port; a list where several are configured.
    pub port: String,
    /// Database.
    pub database: String,
    /// User.
    pub user: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.is_empty() { "local socket" } else { &self.host };
        write!(f, "{host}:{} database {} user {}", self.port, self.database, self.user)
    }
}

/// libpq quotes the part that it did not understand, which is where a password with a stray character ends up.
/// Only what can be nothing but the name of an option stays.
fn without_values(reason: &str) -> String {
    let mut shown = String::new();
    for (index, part) in libpq::one_line(reason).split('"').enumerate() {
        if index % 2 == 0 {
            shown.push_str(part);
        } else {
            let is_name = part.len() <= 20 && part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            let syntax = matches!(part, "=" | ":" | "/" | "]" | "%00");
            let named = reason.starts_with("invalid connection option") || reason.starts_with("invalid URI query parameter");
            shown.push('"');
            shown.push_str(if syntax || (named && is_name) { part } else { "…" });
            shown.push('"');
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for text in [
            "host=db1 user=app password='hunter 2' sslpassword=hunter3 dbname='my db'",
            "postgresql://app:hunter2@db1:5433/my%20db?sslpassword=hunter3",
        ] {
            let dsn = Dsn::parse(text).unwrap().with("replication", "true");
            let shown = format!("{dsn} {dsn:?}");
            assert!(!shown.contains("hunter"), "{shown}");
            assert!(shown.contains("password=***") && shown.contains("dbname='my db'"), "{shown}");
            assert_eq!(dsn.get("replication"), Some("true"));
        }
        let shown = Dsn::default().with("password", "hunter2").to_string();
        assert_eq!(shown, "password=***");
        assert!(Dsn::default().with("password", "hunter2").has_secret() && !Dsn::parse("host=db1 user=app").unwrap().has_secret());
    }

    #[test]
    fn what_is_shown_parses_back() {
        let dsn = Dsn::parse(r"host=/tmp/a\ b options='-c x=\'y\\z\'' user=''").unwrap();
        assert_eq!(Dsn::parse(&dsn.to_string()).unwrap(), dsn);
    }

    #[test]
    fn a_bad_dsn_says_why_without_the_value() {
        let reason = |text| match Dsn::parse(text) {
            Err(PgError::BadDsn { reason }) => reason,
            other => panic!("{other:?}"),
        };
        assert!(reason("hots=db1").contains("\"hots\""), "{}", reason("hots=db1"));
        for text in ["password=my hunter2", "postgresql://u:p@[hunter2/x", "postgresql://u:hunter2%ZZ@db1/", "password='hunter2"] {
            assert!(!reason(text).contains("hunter"), "{}", reason(text));
        }
        assert!(Dsn::parse("host=a\0b").is_err());
    }

    #[test]
    fn endpoint_names_what_is_set() {
        let endpoint = Dsn::parse("postgresql://app@db1,db2:5433/state").unwrap().endpoint();
        assert_eq!((endpoint.host.as_str(), endpoint.user.as_str(), endpoint.database.as_str()), ("db1,db2", "app", "state"));
        let endpoint = Dsn::parse("host=db1 port=6000 user=app").unwrap().endpoint();
        assert_eq!(endpoint.to_string().split(' ').next(), Some("db1:6000"));
    }

    #[test]
    fn with_replaces() {
        let dsn = Dsn::parse("dbname=a").unwrap().with("dbname", "b");
        assert_eq!(dsn.to_string(), "dbname=b");
    }
}
