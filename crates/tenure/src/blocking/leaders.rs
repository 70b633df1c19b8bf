//! The leaders of an election, one after the other.

use std::fmt;

use futures::StreamExt as _;
use tenure_core::{Candidate, Error, block_on::block_on};

/// The current leader of an election, and then every change of leader; `None` while there is no leader.
///
/// [`next`](Iterator::next) blocks until there is a change. The iterator continues across outages of the store. It ends only
/// after an error, or when the elector is closed, also by another thread.
pub struct Leaders(Option<tenure_core::Leaders>);

impl Leaders {
    pub(super) fn new(leaders: tenure_core::Leaders) -> Self {
        Self(Some(leaders))
    }
}

impl fmt::Debug for Leaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaders").finish_non_exhaustive()
    }
}

impl Iterator for Leaders {
    type Item = Result<Option<Candidate>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = block_on(self.0.as_mut()?.next());
        if !matches!(next, Ok(Some(Ok(_)))) {
            self.0 = None;
        }
        next.unwrap_or_else(|error| Some(Err(error)))
    }
}
