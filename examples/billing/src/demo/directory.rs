//! Where a run keeps its files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

/// Tells a directory of the demo's from any other, whose `billing.db` may be somebody's.
const MARKER: &str = ".billing-demo";

/// The data directory of a run.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Makes the directory, or clears one that an earlier run has left.
    ///
    /// # Errors
    /// A directory whose databases the demo has not made: nothing in it is touched.
    pub(crate) fn prepare(wanted: Option<&Path>) -> anyhow::Result<Self> {
        let root = match wanted {
            Some(root) => {
                fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
                root.canonicalize()?
            }
            // Kept: the report is for reading afterwards.
            None => tempfile::Builder::new().prefix("billing-demo-").tempdir()?.keep(),
        };
        let directory = Self { root };
        let ours = directory.root.join(MARKER);
        if !ours.exists() {
            for file in ["billing.db", "provider.db", "report.html", "logs", "store"] {
                if directory.root.join(file).exists() {
                    bail!(
                        "{} has a {file} that no demo has made; name another directory",
                        directory.root.display()
                    );
                }
            }
            fs::write(&ours, "`billing demo` made this directory, and clears it before its next run.\n")
                .with_context(|| format!("cannot write to {}", directory.root.display()))?;
        }
        for name in ["billing.db", "provider.db"] {
            for ending in ["", "-wal", "-shm"] {
                absent(fs::remove_file(directory.root.join(format!("{name}{ending}"))))?;
            }
        }
        absent(fs::remove_file(directory.page()))?;
        absent(fs::remove_dir_all(directory.logs()))?;
        fs::create_dir(directory.logs())?;
        Ok(directory)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub(crate) fn page(&self) -> PathBuf {
        self.root.join("report.html")
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.root.join("provider.db")
    }

    pub(crate) fn database_url(&self) -> String {
        format!("sqlite:{}", self.url_path("billing.db"))
    }

    /// Kept from run to run, so that tokens go on rising.
    pub(crate) fn store_url(&self) -> String {
        format!("local:{}", self.url_path("store"))
    }

    fn url_path(&self, file: &str) -> String {
        let path = self.root.join(file).to_string_lossy().into_owned();
        path.replace('%', "%25").replace('?', "%3F").replace('#', "%23").replace(' ', "%20")
    }
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_no_demo_made_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("billing.db");
        fs::write(&precious, "precious").unwrap();
        let error = Directory::prepare(Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains("no demo has made"), "{error}");
        assert_eq!(fs::read_to_string(precious).unwrap(), "precious");
    }

    #[test]
    fn an_earlier_run_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        Directory::prepare(Some(dir.path())).unwrap();
        fs::write(dir.path().join("billing.db-wal"), "old").unwrap();
        Directory::prepare(Some(dir.path())).unwrap();
        assert!(!dir.path().join("billing.db-wal").exists());
    }
}
