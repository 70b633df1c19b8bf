//! Challenging the sessions ahead: timing them, ending those that have stood still, and removing the slots of ended ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tenure_core::{
    BootInstant, Clock, ElectionName,
    spi::{BackendError, BackendErrorKind},
};

use crate::{
    client::epoch_refused,
    record::{Election, Session, SessionId, Slot, State, retry_undecodable},
    rules::{CasRule, is_disabled},
    shared::Shared,
    store::{CasStore, Epoch, Freshness, Swap, Version},
    timers::Sighting,
};

/// How many sessions are read concurrently.
const CONCURRENT_READS: usize = 16;
/// How often a swap that ends a session is repeated after a conflict before the next look.
const MAX_ATTEMPTS: usize = 3;

/// The pause before a session is looked at again whose record has changed between each read and the swap.
const CONTENDED_PAUSE: Duration = Duration::from_millis(50);

/// No hint has come.
pub(crate) const NO_HINT: BootInstant = BootInstant::from_nanos(0);

/// What a look at a session has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionStatus {
    /// It lives, as far as one may assume. Its timer.
    Active(Sighting),
    /// It has ended, and never lives again.
    Ended,
}

/// What a look at the slots ahead has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advance {
    /// The record has changed, or should be read again.
    Changed,
    /// Look again at this instant.
    Wait(BootInstant),
}

impl<S: CasStore> Shared<S> {
    /// Looks at a session, and ends it if it has stood still (rules 2 and 3). The caller knows the epoch as the current one: the
    /// timers started in it, and the swap is refused in another (rule 7).
    ///
    /// All candidates of the elector share a look, until it is time for the next one or a hint has come after it.
    pub(crate) async fn challenge(
        &self,
        session: &SessionId,
        hint: BootInstant,
        clock: &dyn Clock,
        epoch: Epoch,
    ) -> Result<SessionStatus, BackendError> {
        let _one_at_a_time = self.looks[session.shard() % self.looks.len()].lock().await;
        let now = clock.now();
        if let Some(seen) = self.with_timers(epoch, |timers| timers.recent(session, hint, now)).flatten() {
            return Ok(SessionStatus::Active(seen));
        }
        for _ in 0..MAX_ATTEMPTS {
            let found = self.client.read_session(session, Freshness::Fresh).await;
            let found = found.map_err(retry_undecodable)?;
            let expected = match &found {
                Some((_, Session { state: State::Ended, .. })) => None,
                // Absence alone proves nothing: a replica may lag (hazard C11).
                None if is_disabled(CasRule::AbsentIsNotEnded) => None,
                None => Some(None),
                Some((version, Session { state: State::Active { beat, ttl }, .. })) => {
                    // Read after the answer was received.
                    let now = clock.now();
                    let seen = self.with_timers(epoch, |timers| {
                        timers.observe(session, (*beat, Freshness::Fresh), *ttl, now)
                    });
                    let seen = seen.ok_or_else(|| epoch_refused(epoch))?;
                    if !seen.has_expired {
                        return Ok(SessionStatus::Active(seen));
                    }
                    if is_disabled(CasRule::EndBeforePurge) { None } else { Some(Some(version)) }
                }
            };
            let is_ended = match expected {
                None => true,
                Some(expected) => self.end(session, expected, epoch).await?,
            };
            if is_ended {
                self.with_timers(epoch, |timers| timers.forget(session));
                return Ok(SessionStatus::Ended);
            }
        }
        // It changes all the time, so it is not dead.
        let soon = clock.now() + CONTENDED_PAUSE;
        Ok(SessionStatus::Active(Sighting { look_again: soon, ..Sighting::LIVE }))
    }

    /// Ends a session of this version, or an absent one. False after a conflict, which says nothing.
    async fn end(
        &self,
        session: &SessionId,
        expected: Option<&Version>,
        epoch: Epoch,
    ) -> Result<bool, BackendError> {
        match self.client.swap_session(session, expected, epoch, &Session::ended()).await? {
            Swap::Done(_) => Ok(true),
            Swap::Conflict => Ok(false),
            Swap::EpochChanged => Err(self.epoch_changed(epoch).await),
        }
    }

    /// Learns of the epoch in which the store is. All timers start again (rule 7). Returns an error, after which everything is read
    /// again.
    pub(crate) async fn epoch_changed(&self, refused: Epoch) -> BackendError {
        match self.client.refresh_epoch().await {
            Err(error) => error,
            Ok(current) => {
                self.with_timers(current, |_| ());
                epoch_refused(refused)
            }
        }
    }

    /// Looks at the slots ahead of `place`, and removes those whose sessions have ended (rule 4).
    ///
    /// Watches the immediate predecessor. Once that has stood still for half of its TTL, all sessions ahead are timed: otherwise a
    /// head and k dead candidates behind it would cost k + 1 TTLs (rule 2). `hint` is when the store last gave a hint that the predecessor's
    /// session has changed.
    pub(crate) async fn advance(
        &self,
        election: &ElectionName,
        found: (&Version, &Election),
        (place, hint): (usize, BootInstant),
        clock: &dyn Clock,
        epoch: Epoch,
    ) -> Result<Advance, BackendError> {
        let ahead = &found.1.queue[..place];
        let Some(predecessor) = ahead.last().map(|slot| &slot.session) else { return Ok(Advance::Changed) };
        let first = self.challenge(predecessor, hint, clock, epoch).await?;
        let mut standings = Standings::from([(predecessor.clone(), first)]);
        if !matches!(first, SessionStatus::Active(Sighting { is_silent: false, .. })) {
            let others: BTreeSet<_> = ahead.iter().map(|slot| &slot.session).collect();
            let others = others.into_iter().filter(|session| *session != predecessor);
            standings.extend(self.challenge_all(others.collect(), clock, epoch).await?);
        }
        if self.purge(election, found, &standings, epoch).await? {
            return Ok(Advance::Changed);
        }
        let looks = standings.values().filter_map(|standing| match standing {
            SessionStatus::Active(seen) => Some(seen.look_again),
            SessionStatus::Ended => None,
        });
        Ok(Advance::Wait(looks.min().unwrap_or_else(|| clock.now())))
    }

    async fn challenge_all(
        &self,
        sessions: Vec<&SessionId>,
        clock: &dyn Clock,
        epoch: Epoch,
    ) -> Result<Standings, BackendError> {
        let looks: Vec<_> = sessions
            .into_iter()
            .map(|session| async move {
                Ok::<_, BackendError>((
                    session.clone(),
                    self.challenge(session, NO_HINT, clock, epoch).await?,
                ))
            })
            .collect();
        stream::iter(looks).buffer_unordered(CONCURRENT_READS).try_collect().await
    }

    /// Removes the slots of these sessions that have ended. Returns whether there were any, and the record has to be read again.
    async fn purge(
        &self,
        election: &ElectionName,
        (version, found): (&Version, &Election),
        standings: &Standings,
        epoch: Epoch,
    ) -> Result<bool, BackendError> {
        let has_ended = |slot: &Slot| match standings.get(&slot.session) {
            Some(SessionStatus::Ended) => true,
            Some(SessionStatus::Active(seen)) => seen.is_silent && is_disabled(CasRule::PurgeOnlyEnded),
            None => false,
        };
        if !found.queue.iter().any(has_ended) {
            return Ok(false);
        }
        // A slot of an ended session may be removed at any place in the queue.
        let next = found.without(epoch, has_ended)?;
        match self.client.swap_election(election, Some(version), epoch, &next).await? {
            Swap::Done(_) | Swap::Conflict => Ok(true),
            Swap::EpochChanged => Err(self.epoch_changed(epoch).await),
        }
    }

    /// Removes the slots of ended sessions from a queue that is full: a candidate that cannot enter has no slot to wait in.
    ///
    /// # Errors
    /// `full` if every other session is known to live. [`Unavailable`](BackendErrorKind::Unavailable) while one may be dead.
    pub(crate) async fn make_room(
        &self,
        request: (&ElectionName, &SessionId),
        found: (&Version, &Election),
        clock: &dyn Clock,
        epoch: Epoch,
        full: BackendError,
    ) -> Result<(), BackendError> {
        let (election, own) = request;
        let others: BTreeSet<_> = found.1.queue.iter().map(|slot| &slot.session).collect();
        let others = others.into_iter().filter(|session| *session != own);
        let standings = self.challenge_all(others.collect(), clock, epoch).await?;
        if self.purge(election, found, &standings, epoch).await? {
            return Ok(());
        }
        let may_be_dead =
            |standing: &SessionStatus| matches!(standing, SessionStatus::Active(seen) if seen.may_be_dead);
        match standings.values().any(may_be_dead) {
            true => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("{full}; some of its candidates may be dead, and are removed after their TTL"),
            )),
            false => Err(full),
        }
    }
}

type Standings = BTreeMap<SessionId, SessionStatus>;

/// The error of a session of an epoch that is over (rule 7).
pub(crate) fn epoch_is_over(session: &SessionId, epoch: Epoch, current: Epoch) -> BackendError {
    BackendError::new(
        BackendErrorKind::SessionGone,
        format!(
            "the session {session} has ended: the store has failed over and may have lost writes (epoch {}, now {})",
            epoch.0, current.0
        ),
    )
}
