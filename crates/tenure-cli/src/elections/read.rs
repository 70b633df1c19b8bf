//! One reading of all elections whose names begin with a prefix.

use std::{future, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tenure::{Candidate, ElectionName, Elector, Error};

use super::{Election, Limits};

/// How many elections are read at the same time.
const MAX_CONCURRENT_READS: usize = 8;

/// What was read.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// The elections that had a candidate, in the order of their names.
    pub(crate) elections: Vec<Election>,
    /// How many elections there are.
    pub(crate) total: usize,
    /// Whether there were more than the limit, so that only the first were read.
    pub(crate) is_truncated: bool,
}

/// Reads the first elections whose names begin with `prefix`, up to [`MAX_CONCURRENT_READS`] at a time: not a snapshot of
/// one instant. Calls `answered` at each answer of the store. Not limited in time.
///
/// # Errors
/// Those of [`Elector::elections`] and [`Elector::candidates`], which retry while the store cannot be reached.
pub(crate) async fn read(
    elector: &Arc<dyn Elector>,
    prefix: &str,
    limits: Limits,
    answered: impl Fn() + Send + Sync,
) -> Result<Reading, Error> {
    let mut names = elector.elections().await?;
    answered();
    names.retain(|name| name.as_str().starts_with(prefix));
    let listed = names.len();
    names.truncate(limits.elections);
    let read_one = |name: ElectionName| {
        let (elector, answered) = (Arc::clone(elector), &answered);
        async move {
            let candidates = elector.candidates(name.as_str()).await?;
            answered();
            Ok::<_, Error>(election(name, candidates, limits))
        }
    };
    let elections: Vec<_> = stream::iter(names)
        .map(read_one)
        .buffered(MAX_CONCURRENT_READS)
        // It was left meanwhile.
        .try_filter(|election| future::ready(election.candidate_count > 0))
        .try_collect()
        .await?;
    let is_truncated = listed > limits.elections;
    let total = if is_truncated { listed } else { elections.len() };
    Ok(Reading { elections, total, is_truncated })
}

fn election(name: ElectionName, mut candidates: Vec<Candidate>, limits: Limits) -> Election {
    let candidate_count = candidates.len();
    candidates.truncate(limits.candidates);
    for candidate in &mut candidates {
        candidate.value.truncate(limits.value_bytes);
        candidate.value.shrink_to_fit();
    }
    Election { name, candidates, candidate_count }
}
