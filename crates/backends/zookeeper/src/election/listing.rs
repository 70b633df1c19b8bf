//! Lists the elections below the root.

use futures::{StreamExt as _, TryStreamExt as _, future::join, stream};
use tenure_core::{ElectionName, spi::BackendError};
use tracing::debug;
use zookeeper_client::Error;

use super::{
    observe::reading,
    queue::{MAX_CONCURRENT_READS, Queue, first_candidate},
    store::ElectionStore,
};
use crate::transport::{connection::Connection, reader_sessions::reader_connection};

/// The elections that have a candidate. An election that this user may not list is left out.
///
/// The znode of an election stays when its last candidate leaves, so that each has to be listed.
pub(crate) async fn elections(store: &ElectionStore) -> Result<Vec<ElectionName>, BackendError> {
    let session = store.reader_session().await?;
    let connection = reader_connection(&session).await?;
    let (synced, names) = join(connection.sync(), connection.children(&store.options().root)).await;
    synced.map_err(reading)?;
    let names = names.map_err(reading)?.unwrap_or_default();
    let elections = names.into_iter().filter_map(|name| ElectionName::new(&name).ok());
    stream::iter(elections)
        .map(async |election| {
            let has_candidate = has_candidate(store, &connection, &election).await.map_err(reading)?;
            Ok(has_candidate.then_some(election))
        })
        .buffer_unordered(MAX_CONCURRENT_READS)
        .try_filter_map(async |election| Ok(election))
        .try_collect()
        .await
}

async fn has_candidate(
    store: &ElectionStore,
    connection: &Connection,
    election: &ElectionName,
) -> Result<bool, Error> {
    let parent = store.election_path(election);
    let children = match connection.children(&parent).await {
        Err(Error::NoAuth) => {
            debug!(%election, "this user may not list the candidates of this election; it is left out");
            return Ok(false);
        }
        children => children?.unwrap_or_default(),
    };
    let queue = Queue::new(store, &parent, children);
    Ok(first_candidate(store, connection, queue.paths().collect()).await?.is_some())
}
