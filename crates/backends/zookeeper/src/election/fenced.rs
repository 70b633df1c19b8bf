//! Writes to ZooKeeper that are carried out only while a candidate leads.

use std::{fmt, sync::Arc};

use tenure_core::spi::BackendError;
use zookeeper_client::{CreateMode, Error, MultiWriteError};

use super::store::ElectionStore;
use crate::transport::{
    error::{backend_error, unavailable},
    reader_sessions::{reader_connection, reader_error},
};

/// A transaction on znodes that is carried out only while a leadership lasts.
///
/// It begins with a check that the leader's entry exists, whose name is never used twice.
///
/// If its answer is lost, the transaction may have been carried out. Pass the version that you have read to
/// [`set`](Self::set), so that repeating it has no effect.
///
/// ```no_run
/// # #![allow(dead_code)]
/// # async fn example(leadership: tenure_core::Leadership, backend: tenure_zookeeper::ZookeeperBackend)
/// # -> Result<(), tenure_zookeeper::FencedError> {
/// backend.fenced(&leadership).set("/acme/cursor", "42", Some(7)).commit().await?;
/// # Ok(()) }
/// ```
#[must_use = "nothing is written before `commit`"]
pub struct FencedWrite {
    store: Arc<ElectionStore>,
    entry: String,
    steps: Vec<Step>,
}

/// Why a fenced write was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FencedError {
    /// The leadership is over. Nothing was written.
    #[error("nothing was written: the leader's entry {entry} is gone from ZooKeeper")]
    NotLeader {
        /// The entry's path.
        entry: String,
    },
    /// ZooKeeper refused a step. Nothing was written.
    #[error("nothing was written: step {step} was refused: {reason}")]
    Refused {
        /// The number of the step, from 1; 0 is the check of the leader's entry.
        step: usize,
        /// ZooKeeper's error.
        reason: String,
    },
    /// The store failed. The transaction may have been carried out.
    #[error(transparent)]
    Store(#[from] BackendError),
}

impl FencedWrite {
    pub(crate) fn new(store: Arc<ElectionStore>, entry: &str) -> Self {
        Self { store, entry: entry.to_owned(), steps: Vec::new() }
    }

    /// Replaces the data at `path`. If `version` is given, the znode must have it.
    pub fn set(mut self, path: impl Into<String>, data: impl Into<Vec<u8>>, version: Option<i32>) -> Self {
        self.steps.push(Step::Set(path.into(), data.into(), version));
        self
    }

    /// Creates a persistent znode at `path`.
    pub fn create(mut self, path: impl Into<String>, data: impl Into<Vec<u8>>) -> Self {
        self.steps.push(Step::Create(path.into(), data.into()));
        self
    }

    /// Deletes the znode at `path`. If `version` is given, the znode must have it.
    pub fn delete(mut self, path: impl Into<String>, version: Option<i32>) -> Self {
        self.steps.push(Step::Delete(path.into(), version));
        self
    }

    /// Sends the transaction. ZooKeeper carries out all of its steps or none.
    ///
    /// Paths are absolute, from ZooKeeper's `/`: they are not relative to the elections' root.
    ///
    /// # Errors
    /// See [`FencedError`].
    ///
    /// # Cancellation safety
    /// If the future is dropped before it completes, the transaction may or may not be carried out.
    pub async fn commit(self) -> Result<(), FencedError> {
        let connecting = async {
            let session = self.store.reader_session().await?;
            Ok::<_, BackendError>((reader_connection(&session).await?, session))
        };
        let connect_timeout = self.store.options().attempt_timeout * 3;
        let connected = tokio::time::timeout(connect_timeout, connecting).await;
        let (connection, _session) =
            connected.unwrap_or_else(|_| Err(unavailable("no connection to ZooKeeper")))?;
        let (entry, acls) = (&self.entry, self.store.options().acls());
        let transaction = connection.request(|client| async move {
            let mut writer = client.new_multi_writer();
            writer.add_check_version(entry, -1)?;
            for step in &self.steps {
                match step {
                    Step::Create(path, data) => {
                        writer.add_create(path, data, &CreateMode::Persistent.with_acls(acls))?;
                    }
                    Step::Set(path, data, version) => writer.add_set_data(path, data, *version)?,
                    Step::Delete(path, version) => writer.add_delete(path, *version)?,
                }
            }
            match writer.commit().await {
                Ok(_) => Ok(None),
                Err(MultiWriteError::OperationFailed { index, source }) => Ok(Some((index, source))),
                Err(MultiWriteError::RequestFailed { source }) => Err(source),
            }
        });
        match transaction.await {
            Ok(None) => Ok(()),
            Ok(Some((0, Error::NoNode))) => Err(FencedError::NotLeader { entry: self.entry }),
            Ok(Some((step, reason))) => Err(FencedError::Refused { step, reason: reason.to_string() }),
            Err(error) => Err(reader_error(backend_error("fenced write", &error)).into()),
        }
    }
}

/// One step of a transaction. It follows the check that the entry exists.
#[derive(Debug)]
enum Step {
    Create(String, Vec<u8>),
    Set(String, Vec<u8>, Option<i32>),
    Delete(String, Option<i32>),
}

impl fmt::Debug for FencedWrite {
    /// Does not print data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FencedWrite").field("steps", &self.steps.len()).finish_non_exhaustive()
    }
}
