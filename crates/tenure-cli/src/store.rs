//! Connects to the store in the given URL, or by default to a local store in a directory of this user.

use std::{env, path::PathBuf, sync::Arc};

use tenure::{Config, Elector, Error, StoreUrl};

/// Creates an elector. It does not contact the store yet.
pub(crate) async fn connect(url: Option<&str>, config: Config) -> Result<Arc<dyn Elector>, Error> {
    let url = url.map_or_else(|| local_url(&default_directory()), str::to_owned);
    refuse_resume_file(&url)?;
    tenure::connect_with(&url, config).await
}

/// Programs that the command runs can outlive it: its end proves nothing about their work.
fn refuse_resume_file(url: &str) -> Result<(), Error> {
    let url: StoreUrl = url.parse()?;
    if url.text("resume").is_none() {
        return Ok(());
    }
    Err(url
        .invalid(
            "resume= is not allowed here: it is for services that do all their work in their own process, and a program that \
             `tenure run` has started can work on after it; remove the setting",
        )
        .into())
}

/// The environment variables that contain a password of the store. The program must not get them.
pub(crate) fn secret_variables(url: Option<&str>) -> Vec<String> {
    let env_url = env::var("TENURE_STORE").ok();
    let parsed = |url: &str| url.parse::<StoreUrl>().ok();
    let mut variables: Vec<_> = url
        .into_iter()
        .chain(env_url.as_deref())
        .filter_map(|url| Some(parsed(url)?.text("password_env")?.to_owned()))
        // Such names are not variables, and `Command::env_remove` panics on them.
        .filter(|name| !name.is_empty() && !name.contains(['=', '\0']))
        .collect();
    if env_url.as_deref().and_then(parsed).is_some_and(|url| url.password().is_some()) {
        variables.push("TENURE_STORE".to_owned());
    }
    variables
}

/// `tenure` in this user's state directory, which the XDG base directory specification defines.
fn default_directory() -> PathBuf {
    let absolute = |variable| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("tenure")
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
