//! The lock file of a leadership, for another process.

use std::os::fd::OwnedFd;

use tenure_core::{Error, LeadershipHandle, spi::Entry};

use crate::session::LocalSession;

/// A duplicate of the open file whose lock keeps this leadership. `None` if it is a leadership of another store.
///
/// Pass the duplicate to a child process that does the work: the kernel then keeps the leadership until the child has ended
/// too, even when this process is killed first. A resignation releases the lock regardless of duplicates.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tenure_core::Error> {
/// use std::sync::Arc;
/// use tenure_core::{Config, Elector, StoreElector};
/// use tenure_local::LocalBackend;
///
/// # let directory = tempfile::tempdir().unwrap();
/// let elector = StoreElector::new(Arc::new(LocalBackend::open(directory.path())?), Config::new())?;
/// let leadership = elector.campaign("billing").await?;
/// let file = tenure_local::lock_file(&leadership)?;
/// assert!(file.is_some());
/// leadership.resign().await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// When the entry no longer exists, or the file cannot be duplicated.
pub fn lock_file(leadership: &LeadershipHandle) -> Result<Option<OwnedFd>, Error> {
    let Some(session) = leadership.backend_session::<LocalSession>() else { return Ok(None) };
    let entry = Entry {
        election: leadership.election().clone(),
        key: leadership.entry().into(),
        // The number of an entry is its token.
        version: leadership.fencing_token().get(),
    };
    Ok(Some(session.lock_file(&entry)?))
}
