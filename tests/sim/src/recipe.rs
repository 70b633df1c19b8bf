//! The parts that both simulated recipes have in common.

use tenure_core::{
    Candidate, FencingToken,
    spi::{BackendError, Entered, Entry, EntryRequest},
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

/// Waits until the entry is the first. `is_first` reads its position; `None` means that it does not exist.
pub(crate) async fn wait_turn(
    access: &Access,
    entry: &Entry,
    is_first: impl AsyncFn() -> Result<Option<bool>, BackendError>,
) -> Result<FencingToken, BackendError> {
    loop {
        match is_first().await? {
            None => return Err(entry_gone()),
            Some(true) => return FencingToken::new(entry.version).ok_or_else(entry_gone),
            Some(false) => access.wait_for_change(&entry.election).await,
        }
        if is_disabled(RecipeRule::ReadOnWinning) {
            return FencingToken::new(entry.version).ok_or_else(entry_gone);
        }
    }
}

/// Waits until the entry does not exist.
pub(crate) async fn wait_deleted(
    access: &Access,
    entry: &Entry,
    is_first: impl AsyncFn() -> Result<Option<bool>, BackendError>,
) -> Result<(), BackendError> {
    while is_first().await?.is_some() {
        access.wait_for_change(&entry.election).await;
    }
    Ok(())
}
