//! `tenure resign`.

use std::time::Duration;

use anyhow::Result;
use futures::StreamExt as _;
use tenure::{Candidate, Config, Leaders};
use tokio::time::Instant;

use crate::{
    args::Query,
    elections::is_same_term,
    exit, messages,
    output::{candidate_line, print_line},
    store::Store,
    text::escaped,
    waiting::{self, Limit},
};

/// How long to wait for the leader to resign before the request is repeated.
const REPEAT_REQUEST_AFTER: Duration = Duration::from_secs(5);

/// Asks the leader to resign, and prints it once it has resigned.
pub(crate) async fn resign(options: &Query) -> Result<u8> {
    let store = Store::new(options.store.url.as_deref())?;
    let elector = store.connect(Config::new()).await?;
    let election = &options.store.election;
    let mut leaders = elector.observe(election);
    let what = format!("asking the leader of {election} to resign");
    let request = elector.request_resign(election);
    let resigning = waiting::answer(&*elector, &store, &what, options.limit(), request).await?;
    let Some(resigning) = resigning else {
        messages::inform(&format!("nobody leads {election} in {}", store.name));
        return Ok(exit::NO_LEADER);
    };
    let ask_again = async || {
        waiting::answer(&*elector, &store, &what, Limit::NONE, elector.request_resign(election)).await
    };
    let id = escaped(&resigning.id);
    let still_leads = |waited| {
        let waited = humantime::format_duration(waited);
        messages::print(&format!("{id} was asked to resign {waited} ago and still leads {election}"));
    };
    let resigned = resigned(&mut leaders, &resigning, ask_again, still_leads);
    // The leader may take its time, unless a timeout was given.
    let limit = options.timeout.unwrap_or(Limit::NONE);
    let next = tokio::select! {
        next = resigned => next?,
        () = limit.elapsed() => {
            // It may have resigned, if the store does not answer any more.
            messages::print(&format!("{id} was asked to resign, and has not been seen to resign within {limit}"));
            return Ok(exit::STORE_UNAVAILABLE);
        }
    };
    messages::inform(&has_resigned(&resigning, next.as_ref(), election));
    print_line(&candidate_line(options, &resigning)?)
}

/// Waits until the leader that was asked to resign does not lead any more. Returns the next one. Asks again from time to time, and
/// calls `still_leads` with the time since.
pub(crate) async fn resigned(
    leaders: &mut Leaders,
    resigning: &Candidate,
    mut ask_again: impl AsyncFnMut() -> Result<Option<Candidate>>,
    still_leads: impl Fn(Duration),
) -> Result<Option<Candidate>> {
    let asked = Instant::now();
    loop {
        match tokio::time::timeout(REPEAT_REQUEST_AFTER, leaders.next()).await {
            Ok(leader) => match leader.transpose()? {
                Some(leader) if is_same_term(leader.as_ref(), Some(resigning)) => {}
                leader => return Ok(leader.flatten()),
            },
            Err(_) => {
                // The request may have been lost.
                match ask_again().await? {
                    Some(leader) if is_same_term(Some(&leader), Some(resigning)) => {}
                    leader => return Ok(leader),
                }
                still_leads(Duration::from_secs(asked.elapsed().as_secs()));
            }
        }
    }
}

/// Says who has resigned, and who leads now.
pub(crate) fn has_resigned(resigned: &Candidate, next: Option<&Candidate>, election: &str) -> String {
    let next = match next {
        Some(next) => format!("{} leads {election} now", escaped(&next.id)),
        None => format!("nobody leads {election} yet"),
    };
    format!("{} has resigned; {next}", escaped(&resigned.id))
}
