//! Store URLs: `scheme://user:password@host1,host2/path?setting=value&…`.
//!
//! Not every store URL is a URL in the sense of RFC 3986 (it may name several hosts
//! with ports), so that this is a parser of its own. The facade and the backends each
//! take the settings they know; what nobody took is an error.

mod login;
mod password;
mod redacted;

use std::{
    collections::BTreeMap,
    fmt,
    net::Ipv6Addr,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use percent_encoding::percent_decode_str;
use thiserror::Error;

pub use self::password::Password;
use self::redacted::{is_like_a_login, redacted};

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for handing it to a store's client.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A store URL in its parts.
///
/// Its `Debug` and `Display` show no password. Of its settings they show the values that somebody has asked for by
/// their names: a setting that nobody knows may be a password with a typing error in front of it.
#[derive(Clone)]
pub struct StoreUrl {
    scheme: String,
    user: Option<String>,
    password: Option<Secret>,
    hosts: Vec<String>,
    path: String,
    settings: BTreeMap<String, String>,
    /// The settings that somebody has asked for, of this URL or a clone of it, and whether they were given.
    known: Arc<Mutex<BTreeMap<String, bool>>>,
}

/// A store URL that cannot be used. Its text shows no password.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("illegal store URL {url:?}: {reason}")]
pub struct InvalidUrl {
    url: String,
    reason: String,
}

impl StoreUrl {
    /// The part before the first colon: `etcd`, `local`, `memory`, …
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The user's name, percent-decoded.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password, percent-decoded.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// The hosts, each with its port if one was given; empty for `local:/dir` and `memory:`.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The path, percent-decoded, with its leading slash if it has one; may be empty.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the setting `name` as text.
    pub fn text(&self, name: &str) -> Option<&str> {
        let value = self.settings.get(name).map(String::as_str);
        self.known().insert(name.to_owned(), value.is_some());
        value
    }

    /// Takes the setting `name` in its own type.
    ///
    /// # Errors
    /// When its text does not parse; `expected` says what does.
    pub fn parsed<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, InvalidUrl> {
        self.text(name)
            .map(|text| text.parse().map_err(|_| self.invalid(format!("{name}={text} is not {expected}"))))
            .transpose()
    }

    /// Takes the setting `name` as a time, such as `10s`, `1m 30s` or `500ms`.
    ///
    /// # Errors
    /// When its text is not a time.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, InvalidUrl> {
        self.text(name)
            .map(|text| {
                humantime::parse_duration(text).map_err(|error| {
                    self.invalid(format!("{name}={text} is not a time such as 10s or 500ms: {error}"))
                })
            })
            .transpose()
    }

    /// Checks that every setting was taken by somebody.
    ///
    /// # Errors
    /// Names the settings that nobody knows, and those that could have been given.
    pub fn deny_unknown(&self) -> Result<(), InvalidUrl> {
        let known = self.known().clone();
        let unknown: Vec<_> =
            self.settings.keys().filter(|k| !known.contains_key(*k)).map(String::as_str).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let allowed: Vec<_> = known.keys().map(String::as_str).collect();
        Err(self.invalid(format!(
            "unknown setting {}; allowed are {}",
            unknown.join(", "),
            allowed.join(", ")
        )))
    }

    /// An error about this URL.
    pub fn invalid(&self, reason: impl Into<String>) -> InvalidUrl {
        InvalidUrl { url: self.to_string(), reason: reason.into() }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreUrl({self})")
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if !self.hosts.is_empty() {
            f.write_str("//")?;
            if let Some(user) = &self.user {
                write!(f, "{user}{}@", if self.password.is_some() { ":***" } else { "" })?;
            }
            f.write_str(&self.hosts.join(","))?;
        }
        // A login without the slashes before it, whose `@` was percent-encoded.
        let before = self.path.rsplit_once('@').map(|(before, _)| before);
        let hidden = self.hosts.is_empty() && before.is_some_and(is_like_a_login);
        f.write_str(if hidden { "***" } else { &self.path })?;
        let known = self.known();
        for (n, (name, value)) in self.settings.iter().enumerate() {
            let secret = name.contains("password") && !name.ends_with("_file");
            let value = if known.contains_key(name) && !secret { value } else { "***" };
            write!(f, "{}{name}={value}", if n == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let text =
        percent_decode_str(text).decode_utf8().map_err(|_| "it is not UTF-8 once decoded".to_owned())?;
    if text.chars().any(char::is_control) {
        return Err("it has a control character".to_owned());
    }
    Ok(text.into_owned())
}

/// Checks a host, or a host and a port. The messages do not repeat it: where a password was not percent-encoded, it is in here.
pub(crate) fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(None) => return Err("a host has no closing bracket".to_owned()),
        Some(Some((name, ""))) => (name, None),
        Some(Some((name, rest))) => match rest.strip_prefix(':') {
            Some(port) => (name, Some(port)),
            None => return Err("a host has text after its bracket".to_owned()),
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if host.starts_with('[') && name.parse::<Ipv6Addr>().is_err() {
        return Err("a host in brackets is no IPv6 address".to_owned());
    }
    if name.is_empty() {
        return Err("a host is empty".to_owned());
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':')) {
        return Err("a host has a character that is not allowed".to_owned());
    }
    match port.map(str::parse::<u16>) {
        None => Ok(()),
        Some(Ok(port)) if port > 0 => Ok(()),
        Some(_) => Err("a host's port is not a number from 1 to 65535 (the characters @ / ? of a \
                        password are written %40 %2F %3F)"
            .to_owned()),
    }
}

impl FromStr for StoreUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason: String| InvalidUrl { url: redacted(text), reason };
        let (scheme, rest) = text.split_once(':').ok_or_else(|| {
            fail("it has no scheme; a store URL looks like etcd://host:2379/prefix".to_owned())
        })?;
        if scheme.is_empty()
            || !scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(fail("its scheme is not of [a-z0-9-]".to_owned()));
        }
        let hosts_end =
            rest.strip_prefix("//").map_or(0, |rest| 2 + rest.find(['/', '?']).unwrap_or(rest.len()));
        if rest.rfind('@').is_some_and(|at| at > hosts_end && is_like_a_login(&rest[..at])) {
            return Err(fail(
                "it has an @ behind its hosts, which is written %40 (and @ / ? of a password %40 %2F %3F)"
                    .to_owned(),
            ));
        }
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => match rest.find('/') {
                Some(at) => (Some(&rest[..at]), &rest[at..]),
                None => (Some(rest), ""),
            },
            None => (None, rest),
        };
        let mut url = Self {
            scheme: scheme.to_owned(),
            user: None,
            password: None,
            hosts: Vec::new(),
            path: decoded(path).map_err(|e| fail(format!("its path is not allowed: {e}")))?,
            settings: BTreeMap::new(),
            known: Arc::default(),
        };
        if let Some(authority) = authority {
            let hosts = match authority.rsplit_once('@') {
                Some((login, hosts)) => {
                    let (user, password) = match login.split_once(':') {
                        Some((user, password)) => (user, Some(password)),
                        None => (login, None),
                    };
                    if user.is_empty() {
                        return Err(fail("it has a password but no user".to_owned()));
                    }
                    url.user =
                        Some(decoded(user).map_err(|e| fail(format!("its user is not allowed: {e}")))?);
                    url.password = password
                        .map(decoded)
                        .transpose()
                        .map_err(|e| fail(format!("its password is not allowed: {e}")))?
                        .map(Secret::new);
                    hosts
                }
                None => authority,
            };
            if !hosts.is_empty() {
                for host in hosts.split(',') {
                    check_host(host).map_err(fail)?;
                    url.hosts.push(host.to_owned());
                }
            } else if url.user.is_some() {
                return Err(fail("it has a user but no host".to_owned()));
            }
        }
        for pair in query.into_iter().flat_map(|q| q.split('&')).filter(|p| !p.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| fail("a setting is not of the form name=value".to_owned()))?;
            if !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
                return Err(fail("a setting's name is not of [a-z_]".to_owned()));
            }
            let value = decoded(value).map_err(|e| fail(format!("setting {name} is not allowed: {e}")))?;
            if url.settings.insert(name.to_owned(), value).is_some() {
                return Err(fail(format!("setting {name} is given twice")));
            }
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let url: StoreUrl =
            "etcd://me:p%40ss@10.0.0.1:2379,[::1]:2379,h/acme?ttl=10s&drift=0.2".parse().unwrap();
        assert_eq!((url.scheme(), url.user(), url.path()), ("etcd", Some("me"), "/acme"));
        assert_eq!(url.password().unwrap().expose(), "p@ss");
        assert_eq!(url.hosts(), ["10.0.0.1:2379", "[::1]:2379", "h"]);
        assert_eq!(url.duration("ttl").unwrap(), Some(Duration::from_secs(10)));
        assert_eq!(url.parsed::<f64>("drift", "a fraction").unwrap(), Some(0.2));
        url.deny_unknown().unwrap();
        let local: StoreUrl = "local:/var/lib/x?ttl=1s".parse().unwrap();
        assert_eq!((local.path(), local.hosts().len()), ("/var/lib/x", 0));
        let local: StoreUrl = "local:///var/lib/x".parse().unwrap();
        assert_eq!(local.path(), "/var/lib/x");
        let local: StoreUrl = "local:/home/me@work".parse().unwrap();
        assert_eq!(local.path(), "/home/me@work");
        let memory: StoreUrl = "memory:".parse().unwrap();
        assert_eq!((memory.scheme(), memory.path()), ("memory", ""));
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        for (text, reason) in [
            ("etcd", "no scheme"),
            ("ETCD://h", "[a-z0-9-]"),
            ("etcd://h:99999", "from 1 to 65535"),
            ("etcd://h:0", "from 1 to 65535"),
            ("etcd://h,,i", "a host is empty"),
            ("etcd://h o", "not allowed"),
            ("etcd://[fe80]", "no IPv6 address"),
            ("etcd://u:2024/secret@h", "an @ behind its hosts"),
            ("etcd://h?secret0=1", "[a-z_]"),
            ("etcd://[::1", "closing bracket"),
            ("etcd://:secret@h", "no user"),
            ("etcd://u:secret@", "no host"),
            ("etcd://h?ttl", "name=value"),
            ("etcd://h?password=secret&ttl", "name=value"),
            ("etcd://u:secret?x@h", "an @ behind its hosts"),
            ("etcd://u:secret/x@h", "an @ behind its hosts"),
            ("etcd://u:p@ss/secret@h", "an @ behind its hosts"),
            ("etcd://u:1?value=secret@h", "an @ behind its hosts"),
            ("etcd:/u:secret@h", "an @ behind its hosts"),
            ("u:secret@h", "an @ behind its hosts"),
            ("etcd:2379://u:secret@h", "an @ behind its hosts"),
            ("etcd://h?ttl=1s&ttl=2s", "given twice"),
            ("etcd://h/%00", "control character"),
            ("etcd://h/%ff", "UTF-8"),
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let url: StoreUrl = "etcd://h?tll=10s&ttl=soon".parse().unwrap();
        assert!(url.duration("ttl").unwrap_err().to_string().contains("ttl=soon is not a time such as 10s"));
        assert!(url.deny_unknown().unwrap_err().to_string().contains("unknown setting tll; allowed are ttl"));
    }

    #[test]
    fn no_password_is_printed() {
        for typed in ["password", "passwd", "pass", "pasword", "pw", "passwordfile"] {
            let url: StoreUrl =
                format!("etcd://me:hunter2@h/p?{typed}=hunter2&password_file=/run/pw").parse().unwrap();
            assert_eq!(url.text("password_file"), Some("/run/pw"));
            for text in [
                format!("{url}"),
                format!("{url:?}"),
                format!("{:?}", url.password()),
                url.invalid("x").to_string(),
                url.deny_unknown().unwrap_err().to_string(),
            ] {
                assert!(!text.contains("hunter2"), "{text}");
            }
            let shown = url.to_string();
            assert!(
                shown.contains("password_file=/run/pw") && shown.contains(&format!("{typed}=***")),
                "{shown}"
            );
        }
    }

    /// Where a password stands in the place of its variable's name.
    #[test]
    fn no_password_is_taken_for_a_variable() {
        let url: StoreUrl = "etcd://me@h?password_env=hunter2".parse().unwrap();
        let error = url.login().unwrap_err().to_string();
        assert!(error.contains("the variable that password_env names is not set"), "{error}");
        assert!(!error.contains("hunter2") && !url.to_string().contains("hunter2"), "{error} {url}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = text.parse::<StoreUrl>();
        }

        #[test]
        fn no_text_shows_its_password(prefix in "[a-z]{0,5}(:|://)", user in "[a-z]{0,4}", rest in ".{0,20}") {
            let text = format!("{prefix}{user}:hunter2pw@{rest}");
            match text.parse::<StoreUrl>() {
                Ok(url) => prop_assert!(!url.to_string().contains("hunter2pw"), "{}", url),
                Err(error) => prop_assert!(!error.to_string().contains("hunter2pw"), "{}", error),
            }
        }
    }
}
