//! Watches the entries of one session that lead: whether they are deleted, and whether a resign request is written to them.
//!
//! Every watch is for one event and for one connection: after a reconnect every entry is read again (hazards Z6, Z7,
//! Z11). What is reported of an entry comes from reading it, never from an event.

use std::sync::Arc;

use tenure_core::spi::{BackendError, Entry, EntryEvent, PerEntryWatcher, is_resign_requested};
use tokio::sync::Semaphore;
use zookeeper_client::{Error, Stat};

use super::{entry_stat::is_own_entry, wait::LEADER_RECHECK_INTERVAL};
use crate::transport::{
    connection::Connection,
    error::{backend_error, session_gone},
    resumable_session::ResumableSession,
    watch::Watch,
};

/// How many entries are read at once. After a reconnect all are read again, and the next heartbeat waits behind them.
const MAX_READS: usize = 256;

/// A watcher of the entries of `session`.
pub(crate) fn entry_watcher(session: Arc<ResumableSession>) -> PerEntryWatcher {
    let reads = Arc::new(Semaphore::new(MAX_READS));
    PerEntryWatcher::new(move |entry, for_resign_requests| {
        let (session, reads) = (Arc::clone(&session), Arc::clone(&reads));
        async move { next_event(&session, &reads, &entry, for_resign_requests).await }
    })
}

/// Waits until the entry is deleted or, with `for_resign_requests`, has a resign request.
async fn next_event(
    session: &ResumableSession,
    reads: &Semaphore,
    entry: &Entry,
    for_resign_requests: bool,
) -> Result<EntryEvent, BackendError> {
    loop {
        let connection = session.connection().await?;
        let permit = reads.acquire().await;
        let found = read_and_watch(&connection, &entry.key).await;
        drop(permit);
        let found = found.map_err(|error| backend_error("watching the own entry", &error))?;
        let Some((payload, stat, watch)) = found else { return Ok(EntryEvent::Deleted) };
        if !is_own_entry(session, &stat, entry) {
            return Err(session_gone("the entry belongs to another session, or may no longer be read"));
        }
        if for_resign_requests && is_resign_requested(&payload) {
            return Ok(EntryEvent::ResignRequested);
        }
        watch.fired_or_recheck_due(LEADER_RECHECK_INTERVAL).await;
    }
}

/// The data and stat of a znode, and a watch for its change or deletion. If the user may not read it, the data is empty and the
/// watch is for its deletion.
pub(super) async fn read_and_watch<'a>(
    connection: &'a Connection,
    path: &str,
) -> Result<Option<(Vec<u8>, Stat, Watch<'a>)>, Error> {
    match connection.watch_data(path).await {
        Err(Error::NoAuth) => {
            let found = connection.watch_deletion(path).await?;
            Ok(found.map(|(stat, watch)| (Vec::new(), stat, watch)))
        }
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        time::Duration,
    };

    use futures::{
        future::{join, join_all},
        poll,
    };
    use tokio::task::unconstrained;

    use super::*;
    use crate::transport::{
        connect_options::ConnectOptions,
        scripted_server::{Answer, GRANTED_TTL, Request, ScriptedServer},
        servers::Servers,
    };

    /// After a reconnect, a heartbeat waits behind a limited number of reads.
    #[tokio::test]
    async fn a_limited_number_of_entries_is_read_at_once() {
        let (reads, ahead) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, at_heartbeat) = (Arc::clone(&reads), Arc::clone(&ahead));
        let server = ScriptedServer::start(move |request| {
            let answer = match request {
                Request::Connect { .. } => Answer::Session(7),
                Request::Exists(_) => {
                    at_heartbeat.store(count.load(SeqCst), SeqCst);
                    Answer::no_node()
                }
                _ => {
                    count.fetch_add(1, SeqCst);
                    Answer::no_node()
                }
            };
            Box::pin(async { answer })
        })
        .await;
        let options = Arc::new(ConnectOptions::for_tests(Duration::from_secs(10)));
        let servers = Arc::new(Servers::new(vec![server.address().to_owned()], false));
        let session = ResumableSession::open(options, servers, GRANTED_TTL).await.unwrap();
        let limit = Semaphore::new(MAX_READS);
        let entry = Entry { election: "e".parse().unwrap(), key: "/root/e/c-1".into(), version: 1 };
        let events = (0..2 * MAX_READS).map(|_| next_event(&session, &limit, &entry, false));
        let mut events = Box::pin(unconstrained(join_all(events)));
        assert!(poll!(&mut events).is_pending(), "they were sent");
        let connection = session.connection().await.unwrap();
        let (events, heartbeat) = join(events, connection.stat("/heartbeat")).await;
        assert_eq!(heartbeat, Ok(None));
        assert!(events.iter().all(|event| matches!(event, Ok(EntryEvent::Deleted))));
        assert_eq!(ahead.load(SeqCst), MAX_READS);
        assert_eq!(reads.load(SeqCst), 2 * MAX_READS, "all have been read");
    }
}
