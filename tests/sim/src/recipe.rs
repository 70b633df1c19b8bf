//! The parts that both simulated recipes have in common.

use async_trait::async_trait;
use tenure_core::{
    Candidate, FencingToken,
    spi::{
        BackendError, Entered, Entry, EntryEvent, EntryRequest, EntryWatcher, PerEntryWatcher, QueuePosition,
        Won,
    },
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
pub(crate) fn entered(
    request: &EntryRequest,
    key: &str,
    revision: u64,
    first: bool,
) -> Result<Entered, BackendError> {
    let entry = Entry {
        election: request.election.clone(),
        key: format!("{key}/{revision}").into(),
        version: revision,
    };
    Ok(if first { Entered::Leads(won(entry)?) } else { Entered::Queued { entry: Some(entry) } })
}

/// A session that reads the positions of its entries.
#[async_trait]
pub(crate) trait PositionReader: Sync {
    fn access(&self) -> &Access;

    /// How many entries are ahead of this one; `None` when it does not exist.
    async fn entries_ahead(&self, entry: &Entry) -> Result<Option<usize>, BackendError>;
}

/// The entry leads; its revision is the token.
fn won(entry: Entry) -> Result<Won, BackendError> {
    let token = FencingToken::new(entry.version).ok_or_else(entry_gone)?;
    Ok(Won::new(entry, token))
}

/// Waits until the entry is the first, and tells `position` whether it is next in line.
pub(crate) async fn wait_turn(
    session: &impl PositionReader,
    entry: Option<&Entry>,
    position: &QueuePosition,
) -> Result<Won, BackendError> {
    let entry = entry.ok_or_else(entry_gone)?;
    loop {
        match session.entries_ahead(entry).await? {
            None => return Err(entry_gone()),
            Some(0) => return won(entry.clone()),
            Some(ahead) => {
                position.set_next(ahead == 1);
            }
        }
        session.access().wait_for_change(&entry.election).await;
        if is_disabled(RecipeRule::ReadOnWinning) {
            return won(entry.clone());
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
            while session.entries_ahead(&entry).await?.is_some() {
                session.access().wait_for_change(&entry.election).await;
            }
            Ok(EntryEvent::Deleted)
        }
    }))
}
