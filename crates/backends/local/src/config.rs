//! Where the elections of a machine are kept.

use std::path::{Path, PathBuf};

use tenure_core::{InvalidUrl, StoreUrl};

/// The settings of a [`LocalBackend`](crate::LocalBackend): its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocalConfig {
    dir: PathBuf,
}

impl LocalConfig {
    /// The settings for the directory `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Reads the settings from a URL: `local:/dir` or `local:///dir`.
    ///
    /// There are no settings after a `?` of its own; the caller refuses what nobody took.
    ///
    /// # Errors
    /// When the URL names a host or a user, or its path is missing or relative.
    pub fn from_url(url: &StoreUrl) -> Result<Self, InvalidUrl> {
        const ALLOWED: &str = "allowed is the absolute path of a directory, as in local:/var/lib/tenure";
        if let Some(host) = url.hosts().first() {
            return Err(url.invalid(format!("it names the host {host:?}; {ALLOWED}")));
        }
        if url.path().is_empty() {
            return Err(url.invalid(format!("it names no directory; {ALLOWED}")));
        }
        if !url.path().starts_with('/') {
            return Err(url.invalid(format!("its path is relative; {ALLOWED}")));
        }
        Ok(Self::new(url.path()))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<LocalConfig, InvalidUrl> {
        LocalConfig::from_url(&url.parse().unwrap())
    }

    #[test]
    fn a_url_names_an_absolute_directory() {
        for url in ["local:/var/lib/x", "local:///var/lib/x", "local:/var/lib/x?ttl=5s"] {
            assert_eq!(read(url).unwrap().dir(), Path::new("/var/lib/x"));
        }
        assert_eq!(read("local:/a%20b").unwrap().dir(), Path::new("/a b"));
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        for (url, reason) in [
            ("local:", "no directory"),
            ("local://", "no directory"),
            ("local:x/y", "relative"),
            ("local://host/x", "the host \"host\""),
            ("local://me@host/x", "the host \"host\""),
        ] {
            let error = read(url).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("local:/var/lib/tenure"), "{url}: {error}");
        }
    }
}
