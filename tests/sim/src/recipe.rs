//! The parts that both simulated recipes have in common.

use async_trait::async_trait;
use tenure_core::{
    Candidate, FencingToken,
    spi::{BackendError, Entered, Entry, EntryEvent, EntryRequest, EntryWatcher, PerEntryWatcher},
};

use crate::{
    cluster::{State, entry_gone},
    host::Access,
    mutant::{RecipeRule, is_disabled},
};

/// The candidates as others see them.
pub(crate) fn visible_candidates(state: &State, election: &str) -> Vec<Candidate> {
    let entries = state.entries(election).iter();
    entries
        .map(|entry| {
            let token = FencingToken::new(entry.revision);
            Candidate::decode(&entry.revision.to_string(), entry.session.to_string(), b"", token)
        })
        .collect()
}

/// The outcome of a request that has created this entry.
pub(crate) fn entered(request: &EntryRequest, key: &str, revision: u64, first: bool) -> Entered {
    let entry = Entry {
        election: request.election.clone(),
        key: format!("{key}/{revision}").into(),
        version: revision,
    };
    Entered { entry, leads: first.then(|| FencingToken::new(revision)).flatten() }
}

/// A session that reads the positions of its entries.
#[async_trait]
pub(crate) trait PositionReader: Sync {
    fn access(&self) -> &Access;

    /// Whether the entry is the first; `None` when it does not exist.
    async fn is_first(&self, entry: &Entry) -> Result<Option<bool>, BackendError>;
}

/// Waits until the entry is the first.
pub(crate) async fn wait_turn(
    session: &impl PositionReader,
    entry: &Entry,
) -> Result<FencingToken, BackendError> {
    loop {
        match session.is_first(entry).await? {
            None => return Err(entry_gone()),
            Some(true) => return FencingToken::new(entry.version).ok_or_else(entry_gone),
            Some(false) => session.access().wait_for_change(&entry.election).await,
        }
        if is_disabled(RecipeRule::ReadOnWinning) {
            return FencingToken::new(entry.version).ok_or_else(entry_gone);
        }
    }
}

/// Watches the entries of a session. There are no resign requests.
pub(crate) fn entry_watcher(
    session: &(impl PositionReader + Clone + Send + 'static),
) -> Box<dyn EntryWatcher> {
    let session = session.clone();
    Box::new(PerEntryWatcher::new(move |entry, _| {
        let session = session.clone();
        async move {
            while session.is_first(&entry).await?.is_some() {
                session.access().wait_for_change(&entry.election).await;
            }
            Ok(EntryEvent::Deleted)
        }
    }))
}
