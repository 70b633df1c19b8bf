//! The store: the one that is named, or a directory of the user's.

use std::{env, path::PathBuf, sync::Arc};

use tenure::{Config, Elector, Error, StoreUrl};

/// An elector on the store; nothing is asked of it yet.
pub(crate) async fn connect(url: Option<&str>, config: Config) -> Result<Arc<dyn Elector>, Error> {
    let url = url.map_or_else(|| local(&own_directory()), str::to_owned);
    tenure::connect_with(&url, config).await
}

/// The variables of the environment that hold a password to the store: what is run is not to have them.
pub(crate) fn secret_variables(url: Option<&str>) -> Vec<String> {
    let named = env::var("TENURE_STORE").ok();
    let parsed = |url: &str| url.parse::<StoreUrl>().ok();
    let mut variables: Vec<_> = url
        .into_iter()
        .chain(named.as_deref())
        .filter_map(|url| Some(parsed(url)?.text("password_env")?.to_owned()))
        // No variable's name has one, and to remove such a one panics.
        .filter(|name| !name.is_empty() && !name.contains(['=', '\0']))
        .collect();
    if named.as_deref().and_then(parsed).is_some_and(|url| url.password().is_some()) {
        variables.push("TENURE_STORE".to_owned());
    }
    variables
}

/// Where programs of this user keep what outlives them.
fn own_directory() -> PathBuf {
    let named = |variable| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    named("XDG_STATE_HOME")
        .or_else(|| Some(named("HOME")?.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("tenure")
}

pub(crate) fn local(directory: &std::path::Path) -> String {
    use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _};

    let path = directory.as_os_str().as_bytes();
    // After two slashes comes a host.
    let mut url = if path.starts_with(b"//") { "local://" } else { "local:" }.to_owned();
    for byte in path {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                url.push(char::from(*byte))
            }
            // Writing to a string does not fail.
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
        assert_eq!(local(Path::new("/home/a b/ü?")), "local:/home/a%20b/%C3%BC%3F");
        let url: tenure::StoreUrl = local(Path::new("//h/x")).parse().unwrap();
        assert_eq!((url.hosts().len(), url.path()), (0, "//h/x"));
    }
}
