//! The settings of the local store.

use std::path::{Path, PathBuf};

use tenure_core::{InvalidUrl, StoreUrl};

/// The settings of a [`LocalBackend`](crate::LocalBackend).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocalConfig {
    dir: PathBuf,
}

impl LocalConfig {
    /// Settings for the directory `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Reads the settings from a URL: `local:/dir` or `local:///dir`.
    ///
    /// The local store has no settings of its own after a `?`. The caller reports unknown settings.
    ///
    /// # Errors
    /// If the URL names a host or a user, or its path is missing or relative.
    pub fn from_url(url: &StoreUrl) -> Result<Self, InvalidUrl> {
        const ADVICE: &str = "give the absolute path of a directory, such as local:/var/lib/tenure";
        if let Some(host) = url.hosts().first() {
            return Err(url.invalid(format!("it names the host {host:?}; {ADVICE}")));
        }
        if url.path().is_empty() {
            return Err(url.invalid(format!("it names no directory; {ADVICE}")));
        }
        if !url.path().starts_with('/') {
            return Err(url.invalid(format!("its path is relative; {ADVICE}")));
        }
        Ok(Self::new(url.path()))
    }

    /// The directory of the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<LocalConfig, InvalidUrl> {
        LocalConfig::from_url(&url.parse().unwrap())
    }

    #[test]
    fn a_url_names_an_absolute_directory() {
        for url in ["local:/var/lib/x", "local:///var/lib/x", "local:/var/lib/x?ttl=5s"] {
            assert_eq!(parse(url).unwrap().dir(), Path::new("/var/lib/x"));
        }
        assert_eq!(parse("local:/a%20b").unwrap().dir(), Path::new("/a b"));
    }

    #[test]
    fn an_invalid_url_is_refused_with_the_reason() {
        for (url, reason) in [
            ("local:", "no directory"),
            ("local://", "no directory"),
            ("local:x/y", "relative"),
            ("local://host/x", "the host \"host\""),
            ("local://me@host/x", "the host \"host\""),
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("local:/var/lib/tenure"), "{url}: {error}");
        }
    }
}
