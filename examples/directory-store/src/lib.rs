//! Elections between the processes of one machine, over a directory of files.
//!
//! An example of an adapter for [`tenure_cas`]: it reads, compares and replaces records, and has no rule of elections.

use std::{
    array,
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tenure_cas::{CasBackend, CasSettings, CasStore, Epoch, EpochState, Freshness, Record, Swap, Version};
use tenure_core::{
    Config, Error, StoreUrl,
    spi::{Backend, BackendError, BackendErrorKind},
};
use tokio::sync::Mutex;

/// The number of lock files for sessions, and for elections. A key belongs to one of them, so that requests of many elections do not wait
/// for each other, and a heartbeat for none of them.
const LOCKS: usize = 8;

/// A store in a directory, with one file for each record. Clones are the same one.
#[derive(Clone, Debug)]
pub struct DirectoryStore {
    root: PathBuf,
    /// Held by the request that waits for a lock or has it, so that a process needs one thread for each lock.
    turns: [Arc<Mutex<()>>; 2 * LOCKS],
}

impl DirectoryStore {
    /// The store in a directory that exists.
    ///
    /// # Errors
    /// When the directory does not exist or cannot be changed.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        // Of sessions, and of elections. The record of the store is beside them.
        for folder in ["s", "e"] {
            match fs::create_dir(root.join(folder)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => created?,
            }
        }
        sync_folder_of(&root.join("s"))?;
        Ok(Self { root, turns: array::from_fn(|_| Arc::default()) })
    }

    /// Carries out a request under the lock of a key, with the key's file and one that is not complete yet.
    async fn execute<T: Send + 'static>(
        &self,
        key: &str,
        request: impl FnOnce(&Path, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, BackendError> {
        let first = if key.starts_with("s/") { 0 } else { LOCKS };
        let number = first + usize::from(Sha256::digest(key)[0]) % LOCKS;
        let [lock, incomplete] = ["lock", "new"].map(|name| self.root.join(format!("{name}-{number}")));
        let file = self.root.join(key);
        let turn = Arc::clone(&self.turns[number]).lock_owned().await;
        // A thread that may block. It goes on when this future is dropped.
        let executed = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let lock = File::create(lock)?;
            lock.lock()?;
            // A process that was killed may have renamed a file and not synced: nobody reads what could still be lost.
            sync_folder_of(&file)?;
            request(&file, &incomplete)
        });
        executed.await.unwrap_or_else(|error| Err(error.into())).map_err(|error| {
            let kind = match error.kind() {
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => BackendErrorKind::Forbidden,
                _ => BackendErrorKind::Unavailable,
            };
            let text = format!("the directory {} cannot be used", self.root.display());
            BackendError::with_source(kind, text, error)
        })
    }
}

/// Makes it permanent that a file was renamed or removed.
fn sync_folder_of(file: &Path) -> io::Result<()> {
    File::open(file.parent().ok_or(ErrorKind::InvalidInput)?)?.sync_all()
}

/// The version of a record. No two bodies of a key are equal.
fn version(body: &[u8]) -> Version {
    let digits = Sha256::digest(body).into_iter().map(|byte| format!("{byte:02x}"));
    Version::new(digits.collect::<String>())
}

fn read(key: &str, file: &Path) -> io::Result<Option<Record>> {
    match fs::read(file) {
        Ok(body) => Ok(Some(Record { key: key.to_owned(), version: version(&body), body })),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[async_trait]
impl CasStore for DirectoryStore {
    async fn read(&self, key: &str, _freshness: Freshness) -> Result<Option<Record>, BackendError> {
        let name = key.to_owned();
        self.execute(key, move |file, _| read(&name, file)).await
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<&Version>,
        _epoch: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        let (name, expected, body) = (key.to_owned(), expected.cloned(), body.to_vec());
        let swap = move |file: &Path, incomplete: &Path| {
            if read(&name, file)?.map(|found| found.version) != expected {
                return Ok(Swap::Conflict);
            }
            let mut new = File::create(incomplete)?;
            new.write_all(&body)?;
            new.sync_all()?;
            fs::rename(incomplete, file)?;
            sync_folder_of(file)?;
            Ok(Swap::Done(version(&body)))
        };
        self.execute(key, swap).await
    }

    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        let (name, expected) = (key.to_owned(), expected.clone());
        let delete = move |file: &Path, _: &Path| {
            let is_expected = read(&name, file)?.is_some_and(|found| found.version == expected);
            if is_expected {
                fs::remove_file(file)?;
                sync_folder_of(file)?;
            }
            Ok(is_expected)
        };
        self.execute(key, delete).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError> {
        let (prefix, any) = (prefix.to_owned(), format!("{prefix}*"));
        let list = move |any: &Path, _: &Path| {
            let mut records = Vec::new();
            for entry in fs::read_dir(any.with_file_name(""))? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    let key = format!("{prefix}{}", entry.file_name().display());
                    records.extend(read(&key, &entry.path())?);
                }
            }
            Ok(records)
        };
        self.execute(&any, list).await
    }

    async fn epoch(&self) -> Result<EpochState, BackendError> {
        Ok(EpochState::Fixed)
    }
}

/// Opens the store that a URL names, such as `directory:/var/lib/acme?poll_interval=100ms`.
///
/// # Errors
/// When the URL has no path or the directory cannot be used.
pub fn open(url: &StoreUrl, _config: &Config) -> Result<Arc<dyn Backend>, Error> {
    if !url.hosts().is_empty() || url.path().is_empty() {
        return Err(url.invalid("it has a host or no path; give directory:/PATH").into());
    }
    let mut settings = CasSettings::new();
    if let Some(interval) = url.duration("poll_interval")? {
        settings = settings.with_poll_interval(interval);
    }
    let store = DirectoryStore::open(url.path()).map_err(|error| url.invalid(error.to_string()))?;
    Ok(Arc::new(CasBackend::with_settings(store, settings)))
}
