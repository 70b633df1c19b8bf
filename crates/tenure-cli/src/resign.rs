//! `tenure resign`.

use std::time::Duration;

use anyhow::Result;
use futures::StreamExt as _;
use tenure::{Candidate, Config};

use crate::{
    args::Query,
    exit,
    output::{candidate_line, print_line},
    query::with_timeout,
    store,
};

/// How long to wait for the leader to resign before the request is repeated.
const REPEAT_REQUEST_AFTER: Duration = Duration::from_secs(5);

/// Asks the leader to resign, and prints it once it has resigned.
pub(crate) async fn resign(options: &Query) -> Result<u8> {
    let elector = store::connect(options.store.url.as_deref(), Config::new()).await?;
    let election = &options.store.election;
    let request = async {
        let mut leaders = elector.observe(election);
        let Some(resigning) = elector.request_resign(election).await? else { return Ok(None) };
        loop {
            match tokio::time::timeout(REPEAT_REQUEST_AFTER, leaders.next()).await {
                Ok(leader) => match leader.transpose()? {
                    Some(leader) if is_same_term(leader.as_ref(), &resigning) => {}
                    _ => return Ok(Some(resigning)),
                },
                // The request may have been lost.
                Err(_) => match elector.request_resign(election).await? {
                    Some(leader) if is_same_term(Some(&leader), &resigning) => {}
                    Some(_) | None => return Ok(Some(resigning)),
                },
            }
        }
    };
    let limit = options.timeout;
    match with_timeout::<_, tenure::Error>(limit, request).await? {
        Some(resigned) => print_line(&candidate_line(options, &resigned)?),
        None => Ok(exit::NO_LEADER),
    }
}

fn is_same_term(leader: Option<&Candidate>, resigning: &Candidate) -> bool {
    leader.is_some_and(|leader| (&leader.session, leader.token) == (&resigning.session, resigning.token))
}
