//! The local store in the conformance suite.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use tempfile::TempDir;
use tenure::local::LocalBackend;
use tenure_testkit::harness::{Client, Harness, HarnessCapabilities};

/// A local store in a temporary directory.
#[derive(Debug)]
pub struct Local(TempDir);

impl Local {
    /// A new store in a new directory.
    ///
    /// # Panics
    /// When the directory cannot be created.
    #[expect(clippy::new_without_default, reason = "it creates a directory")]
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory can be created"))
    }

    fn election(&self, election: &str) -> PathBuf {
        self.0.path().join("elections").join(election)
    }
}

#[async_trait]
impl Harness for Local {
    fn capabilities(&self) -> HarnessCapabilities {
        HarnessCapabilities::NONE.entry_deletion(true).foreign_entries(true)
    }

    async fn client(&self) -> Client {
        let backend = LocalBackend::open(self.0.path()).expect("the directory can be used");
        Client { backend: Arc::new(backend), faults: None }
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn delete_entry(&self, election: &str, _session: &str, token: u64) {
        fs::remove_file(self.election(election).join(format!("entry-{token:020}")))
            .expect("the entry exists");
    }

    async fn expire_session(&self, _session: &str) {
        unreachable!("this ability is not declared");
    }

    async fn add_foreign_entries(&self, election: &str) {
        let directory = self.election(election);
        fs::create_dir_all(directory.join("entry-00000000000000000001x"))
            .expect("a directory can be created");
        fs::write(directory.join("notes.txt"), "foreign").expect("a file can be written");
        fs::write(directory.join("entry-1"), "foreign too").expect("a file can be written");
    }

    async fn foreign_entries_untouched(&self, election: &str) -> bool {
        let directory = self.election(election);
        directory.join("entry-00000000000000000001x").is_dir()
            && fs::read(directory.join("notes.txt")).is_ok_and(|text| text == b"foreign")
            && fs::read(directory.join("entry-1")).is_ok_and(|text| text == b"foreign too")
    }

    async fn remaining_state(&self) -> Vec<String> {
        let mut left = Vec::new();
        for election in fs::read_dir(self.0.path().join("elections")).into_iter().flatten().flatten() {
            for file in fs::read_dir(election.path()).into_iter().flatten().flatten() {
                let name = file.file_name().to_string_lossy().into_owned();
                if name.starts_with("entry-") && name.len() == "entry-".len() + 20
                    || name.starts_with(".new-")
                {
                    left.push(format!("{}/{name}", election.file_name().to_string_lossy()));
                }
            }
        }
        left
    }
}
