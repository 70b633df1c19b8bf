//! The store that a command uses: the one in the given URL, or by default a local store in a well-known directory.

use std::{env, path::PathBuf, sync::Arc};

use anyhow::Result;
use rustix::process::geteuid;
use tenure::{Config, Elector, Error, StoreUrl};

use crate::exit::UsageError;

/// A store.
#[derive(Debug)]
pub(crate) struct Store {
    url: String,
    /// Its kind and hosts, or its directory, for messages. No login and no settings.
    pub(crate) name: String,
    /// Whether no URL was given.
    pub(crate) is_default: bool,
}

impl Store {
    /// Checks the URL. Without one, the store is a local one.
    pub(crate) fn new(url: Option<&str>) -> Result<Self> {
        let is_default = url.is_none();
        let url = match url {
            Some(url) => url.to_owned(),
            None => local_url(&default_directory()?),
        };
        let parsed: StoreUrl = url.parse().map_err(Error::from)?;
        refuse_resume_file(&parsed)?;
        let name = match parsed.hosts() {
            [] => format!("{}:{}", parsed.scheme(), parsed.path()),
            hosts => format!("{} {}", parsed.scheme(), hosts.join(", ")),
        };
        Ok(Self { url, name, is_default })
    }

    /// Its URL, which can contain a password.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Its URL.
    pub(crate) fn parsed(&self) -> Result<StoreUrl, Error> {
        self.url.parse().map_err(Error::from)
    }

    /// Creates an elector. It does not contact the store yet.
    pub(crate) async fn connect(&self, config: Config) -> Result<Arc<dyn Elector>, Error> {
        tenure::connect_with(&self.url, config).await
    }
}

/// Programs that the command runs, and its clients, can outlive it: its end proves nothing about their work.
fn refuse_resume_file(url: &StoreUrl) -> Result<(), Error> {
    if url.text("resume").is_none() {
        return Ok(());
    }
    Err(url
        .invalid(
            "resume= is not allowed here: it is for services that do all their work in their own process, and a program that \
             `tenure run` has started, or a client of `tenure serve`, can work on after it; remove the setting",
        )
        .into())
}

/// The environment variables that contain a password of the store. The program must not get them; its guard has them, for the
/// end of the session.
pub(crate) fn secret_variables(url: Option<&str>) -> Vec<String> {
    let env_url = env::var("TENURE_STORE").ok();
    let parsed = |url: &str| url.parse::<StoreUrl>().ok();
    let urls = || url.into_iter().chain(env_url.as_deref()).filter_map(parsed);
    let mut variables: Vec<_> = urls()
        .filter_map(|url| Some(url.text("password_env")?.to_owned()))
        // Such names are not variables, and `Command::env_remove` panics on them.
        .filter(|name| !name.is_empty() && !name.contains(['=', '\0']))
        .collect();
    if env_url.as_deref().and_then(parsed).is_some_and(|url| url.password().is_some()) {
        variables.push("TENURE_STORE".to_owned());
    }
    variables.extend(urls().filter_map(|url| variable_of_store(&url)).map(str::to_owned));
    variables
}

/// The variable from which this store's own programs take the password, if this store does.
fn variable_of_store(url: &StoreUrl) -> Option<&'static str> {
    let variable = match url.scheme() {
        "postgres" | "postgresql" => "PGPASSWORD",
        "consul" => "CONSUL_HTTP_TOKEN",
        _ => return None,
    };
    let is_given = url.password().is_some()
        || ["password_file", "password_env", "passfile"].iter().any(|setting| url.text(setting).is_some());
    (!is_given).then_some(variable)
}

/// `/var/lib/tenure` for root, whatever its environment: a shell and cron must find the same store. For others
/// `.local/state/tenure` in their home, without `XDG_STATE_HOME`, which a login shell sets and cron does not.
fn default_directory() -> Result<PathBuf, UsageError> {
    if geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/tenure"));
    }
    let home = env::var_os("HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    Ok(home
        .ok_or_else(|| {
            UsageError(
                "no store is given, and HOME names no directory: use --store, for example --store local:/var/tmp/tenure"
                    .to_owned(),
            )
        })?
        .join(".local/state/tenure"))
}

/// The URL of a store in `directory`.
pub(crate) fn local_url(directory: &std::path::Path) -> String {
    use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _};

    let path = directory.as_os_str().as_bytes();
    // A path that begins with two slashes needs an empty host: without it, the slashes would begin a host.
    let mut url = if path.starts_with(b"//") { "local://" } else { "local:" }.to_owned();
    for byte in path {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                url.push(char::from(*byte))
            }
            // Writing to a string cannot fail.
            _ => drop(write!(url, "%{byte:02X}")),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_directory_of_any_name_makes_a_url() {
        assert_eq!(local_url(Path::new("/home/a b/ü?")), "local:/home/a%20b/%C3%BC%3F");
        let url: tenure::StoreUrl = local_url(Path::new("//h/x")).parse().unwrap();
        assert_eq!((url.hosts().len(), url.path()), (0, "//h/x"));
    }
}
