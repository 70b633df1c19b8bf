//! The directory with the files of a run.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

/// A file that marks a directory as the demo's. In any other one, `billing.db` may be a user's file.
const MARKER_FILE: &str = ".billing-demo";

/// The data directory of a run.
#[derive(Clone, Debug)]
pub(crate) struct DataDirectory {
    root: PathBuf,
}

impl DataDirectory {
    /// Creates the directory, or clears that of an earlier run.
    ///
    /// # Errors
    /// If the directory has files that the demo has not made. Then nothing in it is changed.
    pub(crate) fn prepare(requested: Option<&Path>) -> anyhow::Result<Self> {
        let root = match requested {
            Some(root) => {
                fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
                root.canonicalize()?
            }
            // Not deleted at the end, because it has the report.
            None => tempfile::Builder::new().prefix("billing-demo-").tempdir()?.keep(),
        };
        let directory = Self { root };
        let marker = directory.root.join(MARKER_FILE);
        if !marker.exists() {
            for file in ["billing.db", "provider.db", "report.html", "logs", "store"] {
                if directory.root.join(file).exists() {
                    bail!(
                        "{} contains {file}, which is not from the demo: use another directory",
                        directory.root.display()
                    );
                }
            }
            fs::write(&marker, "`billing demo` created this directory, and clears it before its next run.\n")
                .with_context(|| format!("cannot write to {}", directory.root.display()))?;
        }
        for name in ["billing.db", "provider.db"] {
            for ending in ["", "-wal", "-shm"] {
                ignore_not_found(fs::remove_file(directory.root.join(format!("{name}{ending}"))))?;
            }
        }
        ignore_not_found(fs::remove_file(directory.report()))?;
        ignore_not_found(fs::remove_dir_all(directory.logs()))?;
        fs::create_dir(directory.logs())?;
        Ok(directory)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub(crate) fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.root.join("provider.db")
    }

    pub(crate) fn database_url(&self) -> String {
        format!("sqlite:{}", self.url_path("billing.db"))
    }

    /// The store is kept from run to run, so that tokens keep increasing.
    pub(crate) fn store_url(&self) -> String {
        format!("local:{}", self.url_path("store"))
    }

    fn url_path(&self, file: &str) -> String {
        let path = self.root.join(file).to_string_lossy().into_owned();
        path.replace('%', "%25").replace('?', "%3F").replace('#', "%23").replace(' ', "%20")
    }
}

fn ignore_not_found(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_from_the_demo_is_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("billing.db");
        fs::write(&precious, "precious").unwrap();
        let error = DataDirectory::prepare(Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains("not from the demo"), "{error}");
        assert_eq!(fs::read_to_string(precious).unwrap(), "precious");
    }

    #[test]
    fn the_files_of_an_earlier_run_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        DataDirectory::prepare(Some(dir.path())).unwrap();
        fs::write(dir.path().join("billing.db-wal"), "old").unwrap();
        DataDirectory::prepare(Some(dir.path())).unwrap();
        assert!(!dir.path().join("billing.db-wal").exists());
    }
}
