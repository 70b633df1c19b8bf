//! Writes to ZooKeeper itself that a leader can make only while it leads.

use std::{fmt, sync::Arc};

use tenure_core::spi::BackendError;
use thiserror::Error;
use zookeeper_client::{Acls, CreateMode, MultiWriteError};

use crate::{
    Shared,
    connection::Connection,
    error::{failed, unknown},
    observe::{connection_of, not_ours},
};

/// A transaction on znodes that is carried out only while a leadership stands: it begins with a
/// check that the leader's entry exists, whose name is never given twice.
///
/// Where the outcome is unknown (the answer was lost), it may have been carried out: give
/// [`set`](Self::set) the version that you have read, and it is not carried out twice.
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
    shared: Arc<Shared>,
    steps: Vec<Step>,
}

/// Why a fenced write was not carried out.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum FencedError {
    /// The leadership is over. Nothing was written.
    #[error("nothing was written: the leader's entry {entry} is gone from ZooKeeper")]
    NotLeader {
        /// The entry's path.
        entry: String,
    },
    /// A step is not possible as things are. Nothing was written.
    #[error("nothing was written: step {step} was refused: {reason}")]
    Refused {
        /// Which one, counted from 1.
        step: usize,
        /// What ZooKeeper said.
        reason: String,
    },
    /// It is not known whether it was carried out.
    #[error(transparent)]
    Store(#[from] BackendError),
}

impl FencedWrite {
    pub(crate) fn new(shared: Arc<Shared>, entry: &str) -> Self {
        Self { shared, steps: vec![Step::Exists(entry.to_owned())] }
    }

    /// Replaces the data at `path`, if its version is the one given.
    pub fn set(mut self, path: impl Into<String>, data: impl Into<Vec<u8>>, version: Option<i32>) -> Self {
        self.steps.push(Step::Set(path.into(), data.into(), version));
        self
    }

    /// Creates a persistent znode at `path`.
    pub fn create(mut self, path: impl Into<String>, data: impl Into<Vec<u8>>) -> Self {
        self.steps.push(Step::Create(path.into(), data.into()));
        self
    }

    /// Deletes the znode at `path`, if its version is the one given.
    pub fn delete(mut self, path: impl Into<String>, version: Option<i32>) -> Self {
        self.steps.push(Step::Delete(path.into(), version));
        self
    }

    /// Asks ZooKeeper to carry it all out, or nothing.
    ///
    /// # Errors
    /// See [`FencedError`]. Paths are ZooKeeper's own, from `/`: not below the elections' root.
    ///
    /// # Cancellation safety
    /// Dropped before its answer, it may be carried out or not.
    pub async fn commit(self) -> Result<(), FencedError> {
        let connecting = async {
            let link = self.shared.reader().await?;
            Ok::<_, BackendError>((connection_of(&link).await?, link))
        };
        let patience = self.shared.config.attempt_timeout * 3;
        let connected = tokio::time::timeout(patience, connecting).await;
        let (connection, link) = connected.unwrap_or_else(|_| Err(unknown("no connection to ZooKeeper")))?;
        match connection.transact(&self.steps, link.terms().acls()).await {
            Ok(()) => Ok(()),
            Err(Refusal::Step(0, zookeeper_client::Error::NoNode)) => {
                let Some(Step::Exists(entry)) = self.steps.into_iter().next() else {
                    unreachable!("a fenced write begins with its check")
                };
                Err(FencedError::NotLeader { entry })
            }
            Err(Refusal::Step(step, reason)) => {
                Err(FencedError::Refused { step, reason: reason.to_string() })
            }
            Err(Refusal::Whole(error)) => Err(not_ours(failed("fenced write", &error)).into()),
        }
    }
}

/// A part of a transaction.
#[derive(Debug)]
enum Step {
    Exists(String),
    Create(String, Vec<u8>),
    Set(String, Vec<u8>, Option<i32>),
    Delete(String, Option<i32>),
}

/// Why a transaction was not carried out, or may not have been.
#[derive(Debug)]
enum Refusal {
    /// For this step, counted from zero. Nothing was changed.
    Step(usize, zookeeper_client::Error),
    Whole(zookeeper_client::Error),
}

impl Connection {
    /// All of `steps` in one transaction, or none of them.
    async fn transact(&self, steps: &[Step], acls: Acls<'static>) -> Result<(), Refusal> {
        let outcome = self
            .ask(|client| async move {
                let mut writer = client.new_multi_writer();
                for step in steps {
                    match step {
                        Step::Exists(path) => writer.add_check_version(path, -1)?,
                        Step::Create(path, data) => {
                            writer.add_create(path, data, &CreateMode::Persistent.with_acls(acls))?;
                        }
                        Step::Set(path, data, version) => writer.add_set_data(path, data, *version)?,
                        Step::Delete(path, version) => writer.add_delete(path, *version)?,
                    }
                }
                Ok(match writer.commit().await {
                    Ok(_) => Ok(()),
                    Err(MultiWriteError::OperationFailed { index, source }) => {
                        Err(Refusal::Step(index, source))
                    }
                    Err(MultiWriteError::RequestFailed { source }) => Err(Refusal::Whole(source)),
                })
            })
            .await;
        outcome.unwrap_or_else(|error| Err(Refusal::Whole(error)))
    }
}

impl fmt::Debug for FencedWrite {
    /// Shows no data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FencedWrite").field("steps", &(self.steps.len() - 1)).finish_non_exhaustive()
    }
}
