//! What dead sessions have left: timed, ended, and later deleted (rule 10).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tenure_core::{Clock, ElectionName, internal::lock, spi::BackendError};
use tracing::{debug, warn};

use crate::{
    challenger::{NO_HINT, SessionStatus},
    client::Change,
    record::{ELECTIONS, Election, SESSIONS, Session, SessionId, State},
    rules::{CasRule, is_disabled},
    shared::Shared,
    store::{CasStore, Freshness},
};

/// Collects garbage now and then, until it is dropped.
pub(crate) async fn collect_repeatedly<S: CasStore>(shared: Arc<Shared<S>>, clock: Arc<dyn Clock>) {
    let mut reported = None;
    loop {
        // Jittered: all electors of the store do it.
        tokio::time::sleep(shared.settings.garbage_interval.mul_f64(0.5 + fastrand::f64())).await;
        match collect(&shared, &*clock).await {
            Ok(()) => reported = None,
            // Once per kind, until it succeeds.
            Err(error) if reported != Some(error.kind()) => {
                reported = Some(error.kind());
                warn!(%error, "cannot remove the records of dead sessions; trying again later");
            }
            Err(error) => debug!(%error, "cannot remove the records of dead sessions; trying again later"),
        }
    }
}

/// Looks at all sessions once. Ends those that have stood still since earlier looks, removes the slots of ended ones, and deletes the
/// ended ones that the look before has found, too.
pub(crate) async fn collect<S: CasStore>(shared: &Shared<S>, clock: &dyn Clock) -> Result<(), BackendError> {
    let client = &shared.client;
    let epoch = client.epoch().await?;
    let listed = client.bounded("listing sessions", client.store().list(SESSIONS)).await?;
    let (mut dead, mut ended) = (BTreeSet::new(), BTreeMap::new());
    for record in listed {
        let Some(id) = record.key.strip_prefix(SESSIONS).and_then(SessionId::parse) else { continue };
        // What another version wrote is not ours to judge.
        let Ok(body) = Session::decode(&record.key, &record.body) else { continue };
        match body.state {
            State::Ended => {
                dead.insert(id.clone());
                ended.insert(id, record.version);
            }
            State::Active { .. } if is_disabled(CasRule::TimeGarbage) => {
                client.swap_session(&id, Some(&record.version), epoch, &Session::ended()).await?;
            }
            // Its record is deleted by a later collection.
            State::Active { .. } => {
                if shared.challenge(&id, NO_HINT, clock, epoch).await? == SessionStatus::Ended {
                    dead.insert(id);
                }
            }
        }
    }
    let listed = client.bounded("listing elections", client.store().list(ELECTIONS)).await?;
    for record in listed {
        let name = record.key.strip_prefix(ELECTIONS).and_then(|name| ElectionName::new(name).ok());
        let (Some(name), Ok(election)) = (name, Election::decode(&record.key, &record.body)) else {
            continue;
        };
        if !election.queue.iter().any(|slot| dead.contains(&slot.session)) {
            continue;
        }
        let change = client.change_election(&name, Freshness::Fresh, |found, epoch| {
            let Some(found) = found else { return Ok(Change::Keep(())) };
            // Ended for good, in whichever version of the election.
            let next = found.without(epoch, |slot| dead.contains(&slot.session))?;
            Ok(if next.queue.len() == found.queue.len() { Change::Keep(()) } else { Change::Swap(next, ()) })
        });
        change.await?;
    }
    let before = std::mem::take(&mut *lock(&shared.ended_before));
    for (session, version) in &ended {
        if before.get(session) == Some(version) {
            client.delete_session(session, version).await?;
        }
    }
    *lock(&shared.ended_before) = ended;
    Ok(())
}
