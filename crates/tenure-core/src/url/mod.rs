//! Store URLs: `scheme://user:password@host1,host2/path?setting=value&…`.
//!
//! The facade and the backends each read the settings that they know. Settings that none of them has read are an error.

mod host;
mod login;
mod parse;
mod password;
mod redacted;
mod secret;

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use thiserror::Error;

pub(crate) use self::host::check_host;
use self::redacted::may_be_login;
pub use self::{password::Password, secret::Secret};

/// A parsed store URL.
///
/// Its `Debug` and `Display` show no password. They show the value of a setting only after the setting was read by its name: an
/// unknown setting may be a password with a misspelled name.
#[derive(Clone)]
pub struct StoreUrl {
    scheme: String,
    user: Option<String>,
    password: Option<Secret>,
    hosts: Vec<String>,
    path: String,
    settings: BTreeMap<String, String>,
    /// The settings that were read, from this URL or a clone of it, and whether they were given.
    known: Arc<Mutex<BTreeMap<String, bool>>>,
}

/// A store URL is illegal. The text of the error shows no password.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("illegal store URL {url:?}: {reason}")]
pub struct InvalidUrl {
    url: String,
    reason: String,
}

impl StoreUrl {
    /// The scheme, the part before the first colon: `etcd`, `local`, `memory`, …
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The name of the user, percent-decoded.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password, percent-decoded.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// The hosts, each with its port if one was given. Empty for `local:/dir` and `memory:`.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The path, percent-decoded, with its leading slash if it has one. May be empty.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The setting `name` as text.
    pub fn text(&self, name: &str) -> Option<&str> {
        let value = self.settings.get(name).map(String::as_str);
        self.known().insert(name.to_owned(), value.is_some());
        value
    }

    /// The setting `name`, parsed.
    ///
    /// # Errors
    /// When it cannot be parsed. `expected` describes a valid value.
    pub fn parsed<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, InvalidUrl> {
        self.text(name)
            .map(|text| text.parse().map_err(|_| self.invalid(format!("{name}={text} is not {expected}"))))
            .transpose()
    }

    /// The setting `name` as a duration, such as `10s`, `1m 30s` or `500ms`.
    ///
    /// # Errors
    /// When it is not a duration.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, InvalidUrl> {
        self.text(name)
            .map(|text| {
                Self::parse_duration(text).map_err(|error| self.invalid(format!("{name}={text} {error}")))
            })
            .transpose()
    }

    /// A time as settings and options have it: `10s`, `1m 30s`, or a plain number of seconds.
    ///
    /// # Errors
    /// When it is not a time. The text says what is.
    pub fn parse_duration(text: &str) -> Result<Duration, String> {
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if is_plain && let Ok(seconds) = text.parse() {
            return Duration::try_from_secs_f64(seconds).map_err(|error| format!("is not a time: {error}"));
        }
        humantime::parse_duration(text)
            .map_err(|error| format!("is not a time such as 10s, 500ms, 1m 30s, or seconds: {error}"))
    }

    /// Checks that every setting was read.
    ///
    /// # Errors
    /// When there are unknown settings. The text names them, and the known ones.
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

    /// The same without the URL's user, for stores whose clients have none: what stands in its place may be a secret.
    pub fn invalid_user(&self, reason: impl Into<String>) -> InvalidUrl {
        Self { user: None, password: None, ..self.clone() }.invalid(reason)
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
        // A login without the two slashes before it, whose `@` was percent-encoded.
        let before = self.path.rsplit_once('@').map(|(before, _)| before);
        let hidden = self.hosts.is_empty() && before.is_some_and(may_be_login);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_plain_number_is_seconds() {
        for (text, millis) in [("1", 1_000), ("0.5", 500), ("250ms", 250), ("1m 30s", 90_000)] {
            assert_eq!(StoreUrl::parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", ".", "1.2.3", "-1", "1e3", "inf", "10 parsecs", "99999999999999999999"] {
            assert!(StoreUrl::parse_duration(text).is_err(), "{text}");
        }
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

    /// The URL contains a password in the place of the variable's name.
    #[test]
    fn a_password_in_the_place_of_a_variable_is_not_printed() {
        let url: StoreUrl = "etcd://me@h?password_env=hunter2".parse().unwrap();
        let error = url.login().unwrap_err().to_string();
        assert!(error.contains("the variable named by password_env is not set"), "{error}");
        assert!(!error.contains("hunter2") && !url.to_string().contains("hunter2"), "{error} {url}");
    }

    proptest! {
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
