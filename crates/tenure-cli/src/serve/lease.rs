//! One client's lease: its candidate in the queue, the leadership it was given, and what it was granted of it.
//!
//! | phase | until |
//! |---|---|
//! | waiting | the candidate is elected; the client has stopped asking; it resigns |
//! | elected | the latest grant has ended, or nobody has asked for the first; the client resigns |
//! | over | forgotten some minutes later, so that a retry of the client is recognized |
//!
//! A leadership that is lost, or a sidecar that is being stopped, extends no grant, and keeps the entry in the store until the
//! latest one has ended.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::StatusCode;
use tenure::{
    BootInstant, CampaignOptions, Clock, ElectionName, Elector, Error, Leadership, LeadershipHandle,
    LossReason,
};
use tokio::sync::watch;

use super::{
    error::ApiError,
    grants::{Grants, Lapsed},
};
use crate::messages;

/// How long a candidate stays in the queue, or a leadership is kept for its client, after the client's last campaign request.
pub(super) const RETRY_WITHIN: Duration = Duration::from_secs(10);
/// How many requests at once may wait for the same candidate.
const MAX_PENDING_REQUESTS: usize = 4;
/// How long a resignation waits for the store. The engine continues it.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings that all leases share.
#[derive(Clone, Debug)]
pub(super) struct Timing {
    pub(super) clock: Arc<dyn Clock>,
    /// As configured; the store may grant another one, which the leadership knows.
    pub(super) ttl: Duration,
    pub(super) drift: f64,
}

/// Why a lease is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OverReason {
    /// The client has not renewed before the latest grant ended.
    NotRenewed,
    /// The client has stopped asking before it got a grant.
    Abandoned,
    /// The client has resigned.
    Resigned,
    /// Leadership was lost.
    Lost(LossReason),
    /// The store refuses the candidate, for this reason.
    Refused(String),
    /// The sidecar is being stopped.
    Stopping,
}

impl fmt::Display for OverReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRenewed => f.write_str("its client has not renewed in time"),
            Self::Abandoned => f.write_str("its client has stopped asking"),
            Self::Resigned => f.write_str("its client has resigned"),
            Self::Lost(reason) => reason.fmt(f),
            Self::Refused(error) => write!(f, "it cannot campaign: {error}"),
            Self::Stopping => f.write_str("the sidecar is being stopped"),
        }
    }
}

/// A grant, as it is announced to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) token: u64,
    /// Counted from before the client sent its request.
    pub(super) valid_for: Duration,
    /// Whether the sidecar is being stopped, and extends no grant.
    pub(super) stopping: bool,
}

/// What the holder of a lease has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LeaseStatus {
    Waiting,
    Elected(Grant),
    Over(OverReason),
}

/// A client's candidate and leadership.
pub(super) struct Lease {
    pub(super) election: ElectionName,
    /// The client's, by which a retry is recognized.
    pub(super) nonce: String,
    /// Known to the client alone.
    pub(super) id: String,
    pub(super) value: Option<String>,
    timing: Timing,
    state: Mutex<State>,
    /// Sent to when the state changes.
    changed: watch::Sender<()>,
    stopping: watch::Receiver<bool>,
}

impl fmt::Debug for Lease {
    /// Shows no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("election", &self.election).finish_non_exhaustive()
    }
}

struct State {
    phase: Phase,
    grants: Grants,
    /// The number of campaign requests in flight.
    pending_requests: usize,
    /// When a client without a campaign request in flight counts as gone, until it has a grant.
    abandoned_at: BootInstant,
}

enum Phase {
    Waiting,
    Elected { leadership: Leadership, over: Option<OverReason> },
    Over { reason: OverReason, since: BootInstant },
}

/// Counts a campaign request in flight, until it is dropped.
#[derive(Debug)]
pub(super) struct PendingRequest(Arc<Lease>);

impl Drop for PendingRequest {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.pending_requests -= 1;
        state.abandoned_at = self.0.timing.clock.now() + RETRY_WITHIN;
        drop(state);
        self.0.changed.send_replace(());
    }
}

/// What the task of a lease does next.
enum Step {
    /// Waits for a change, at most until this instant, and for the loss of this leadership.
    Wait { until: Option<BootInstant>, handle: Option<LeadershipHandle> },
    /// Gives the leadership back.
    Release(Leadership),
    /// Ends.
    End,
}

impl Lease {
    pub(super) fn new(
        election: ElectionName,
        nonce: String,
        id: String,
        value: Option<String>,
        lease_time: Duration,
        timing: Timing,
        stopping: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let state = State {
            phase: Phase::Waiting,
            grants: Grants::new(lease_time, timing.drift),
            pending_requests: 0,
            abandoned_at: timing.clock.now() + RETRY_WITHIN,
        };
        let changed = watch::Sender::new(());
        Arc::new(Self { election, nonce, id, value, timing, state: Mutex::new(state), changed, stopping })
    }

    /// Since when it is over; `None` if it is not.
    pub(super) fn over_since(&self) -> Option<BootInstant> {
        match self.lock().phase {
            Phase::Over { since, .. } => Some(since),
            _ => None,
        }
    }

    /// The end of the latest grant, while leadership is kept for it.
    pub(super) fn granted_until(&self) -> Option<BootInstant> {
        let state = self.lock();
        state.grants.until().filter(|_| matches!(state.phase, Phase::Elected { .. }))
    }

    /// Keeps the candidate in the queue while the result exists.
    ///
    /// # Errors
    /// When too many requests wait already.
    pub(super) fn begin_request(self: &Arc<Self>) -> Result<PendingRequest, ApiError> {
        let mut state = self.lock();
        if state.pending_requests >= MAX_PENDING_REQUESTS {
            let message = format!("{MAX_PENDING_REQUESTS} requests wait for this candidate already");
            let advice = "one campaign request at a time for each nonce";
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message, advice)
                .retry_after(1));
        }
        state.pending_requests += 1;
        drop(state);
        self.changed.send_replace(());
        Ok(PendingRequest(Arc::clone(self)))
    }

    /// Extends the grant for a request that was received at `received`.
    ///
    /// While the sidecar is being stopped, tells what is left.
    pub(super) fn grant(&self, received: BootInstant) -> LeaseStatus {
        let mut state = self.lock();
        let State { phase, grants, .. } = &mut *state;
        let (leadership, over) = match phase {
            Phase::Waiting => return LeaseStatus::Waiting,
            Phase::Over { reason, .. } => return LeaseStatus::Over(reason.clone()),
            Phase::Elected { over: Some(reason), .. } => return LeaseStatus::Over(reason.clone()),
            Phase::Elected { leadership, over } => (leadership, over),
        };
        let token = leadership.fencing_token().get();
        // Before the leadership is asked how long it is valid: a grant ends this much after `now`.
        let now = self.timing.clock.now();
        let valid_for = leadership.valid_for();
        let granted = if let Some(reason) = leadership.loss() {
            Err(OverReason::Lost(reason))
        } else if *self.stopping.borrow() {
            let valid_for = grants.left(received);
            let is_left = grants.until().is_some_and(|until| now < until);
            is_left.then_some(Grant { token, valid_for, stopping: true }).ok_or(OverReason::Stopping)
        } else {
            let extended = grants.extend(received, now, valid_for);
            extended
                .map(|valid_for| Grant { token, valid_for, stopping: false })
                .map_err(|Lapsed| OverReason::NotRenewed)
        };
        if let Err(reason) = &granted {
            *over = Some(reason.clone());
        }
        drop(state);
        self.changed.send_replace(());
        granted.map_or_else(LeaseStatus::Over, LeaseStatus::Elected)
    }

    /// Waits for the election, at most until `wait_until`, and then answers as [`grant`](Self::grant).
    pub(super) async fn grant_when_elected(
        &self,
        received: BootInstant,
        wait_until: BootInstant,
    ) -> LeaseStatus {
        let mut changes = self.changed.subscribe();
        loop {
            changes.mark_unchanged();
            match self.grant(received) {
                LeaseStatus::Waiting => {}
                status => return status,
            }
            tokio::select! {
                Ok(()) = changes.changed() => {}
                () = self.timing.clock.sleep_until(wait_until) => return LeaseStatus::Waiting,
            }
        }
    }

    /// What the holder has. Extends nothing.
    pub(super) fn status(&self, received: BootInstant) -> LeaseStatus {
        let state = self.lock();
        match &state.phase {
            Phase::Waiting => LeaseStatus::Waiting,
            Phase::Over { reason, .. } | Phase::Elected { over: Some(reason), .. } => {
                LeaseStatus::Over(reason.clone())
            }
            Phase::Elected { leadership, .. } => LeaseStatus::Elected(Grant {
                token: leadership.fencing_token().get(),
                valid_for: if leadership.is_leader() { state.grants.left(received) } else { Duration::ZERO },
                stopping: *self.stopping.borrow(),
            }),
        }
    }

    /// Ends the lease for its client, who has stopped. Returns whether the store has confirmed that the entry is gone; `None` if
    /// no leadership was kept for it.
    pub(super) async fn resign(&self) -> Option<bool> {
        let before = self.lock().end(OverReason::Resigned, self.timing.clock.now());
        self.changed.send_replace(());
        match before {
            Phase::Elected { leadership, .. } => {
                Some(leadership.resign_within(RESIGN_TIMEOUT).await.confirmed)
            }
            _ => None,
        }
    }

    /// Campaigns, and keeps the leadership until the grants have ended.
    pub(super) async fn run(self: Arc<Self>, elector: Arc<dyn Elector>) {
        let mut changes = self.changed.subscribe();
        let mut stopping = self.stopping.clone();
        let mut options = CampaignOptions::new();
        if let Some(value) = &self.value {
            options = options.with_value(value.as_bytes());
        }
        let elected = tokio::select! {
            biased;
            // Dropping the campaign withdraws the candidate.
            () = self.left_queue(&mut changes, &mut stopping) => return,
            elected = elector.campaign_with(self.election.as_str(), options) => elected,
        };
        match elected {
            Ok(Some(leadership)) => self.elected(leadership),
            // Cannot be: the campaign waits without a limit.
            Ok(None) => self.end_campaign(OverReason::Refused("the campaign has ended".to_owned())),
            Err(error) => {
                messages::try_print(&format!("cannot campaign in {}: {error}", self.election));
                let is_closed = matches!(error, Error::Closed);
                let reason =
                    if is_closed { OverReason::Stopping } else { OverReason::Refused(error.to_string()) };
                self.end_campaign(reason);
            }
        }
        self.changed.send_replace(());
        loop {
            match self.next_step(&mut stopping) {
                Step::Wait { until, handle } => {
                    let lost = async {
                        match handle {
                            Some(handle) => drop(handle.lost().await),
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = self.wait_until(until, &mut changes, &mut stopping) => {}
                        () = lost => {}
                    }
                }
                Step::Release(leadership) => {
                    // The engine continues if the store does not confirm in time.
                    let _ = leadership.resign_within(RESIGN_TIMEOUT).await;
                    return;
                }
                Step::End => return,
            }
        }
    }

    /// Waits until the candidate has to leave the queue.
    async fn left_queue(&self, changes: &mut watch::Receiver<()>, stopping: &mut watch::Receiver<bool>) {
        loop {
            let until = {
                let mut state = self.lock();
                let now = self.timing.clock.now();
                if matches!(state.phase, Phase::Over { .. }) {
                    return;
                }
                let reason = if *stopping.borrow_and_update() {
                    Some(OverReason::Stopping)
                } else {
                    (state.pending_requests == 0 && now >= state.abandoned_at)
                        .then_some(OverReason::Abandoned)
                };
                if let Some(reason) = reason {
                    drop(state.end(reason, now));
                    drop(state);
                    self.changed.send_replace(());
                    return;
                }
                (state.pending_requests == 0).then_some(state.abandoned_at)
            };
            self.wait_until(until, changes, stopping).await;
        }
    }

    /// Ends the lease of a campaign that has no leadership.
    fn end_campaign(&self, reason: OverReason) {
        drop(self.lock().end(reason, self.timing.clock.now()));
    }

    fn elected(&self, leadership: Leadership) {
        let mut state = self.lock();
        // Otherwise its client has resigned meanwhile, without a grant, and dropping the guard resigns.
        if matches!(state.phase, Phase::Waiting) {
            state.phase = Phase::Elected { leadership, over: None };
        }
    }

    /// Decides what to do now. Under one lock: no grant comes between the decision to release and the release.
    fn next_step(&self, stopping: &mut watch::Receiver<bool>) -> Step {
        let is_stopping = *stopping.borrow_and_update();
        let mut state = self.lock();
        let now = self.timing.clock.now();
        let State { phase, grants, pending_requests, abandoned_at } = &mut *state;
        let Phase::Elected { leadership, over, .. } = phase else { return Step::End };
        if over.is_none() {
            *over = leadership.loss().map(OverReason::Lost);
        }
        let until = match grants.until() {
            Some(until) => Some(until),
            None if over.is_some() || is_stopping => Some(now),
            None => (*pending_requests == 0).then_some(*abandoned_at),
        };
        if until.is_none_or(|until| now < until) {
            let handle = over.is_none().then(|| leadership.handle());
            return Step::Wait { until, handle };
        }
        let reason = match (over.take(), grants.until()) {
            (Some(reason), _) => reason,
            (None, _) if is_stopping => OverReason::Stopping,
            (None, Some(_)) => OverReason::NotRenewed,
            (None, None) => OverReason::Abandoned,
        };
        let text = format!("a lease of {} is over: {reason}", self.election);
        let ended = state.end(reason, now);
        drop(state);
        self.changed.send_replace(());
        // A full pipe must not block the renewals of others.
        messages::try_inform(&text);
        match ended {
            Phase::Elected { leadership, .. } => Step::Release(leadership),
            _ => Step::End,
        }
    }

    /// Waits for a change, at most until `until`.
    async fn wait_until(
        &self,
        until: Option<BootInstant>,
        changes: &mut watch::Receiver<()>,
        stopping: &mut watch::Receiver<bool>,
    ) {
        let elapsed = async {
            match until {
                Some(until) => self.timing.clock.sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = changes.changed() => {}
            Ok(()) = stopping.changed() => {}
            () = elapsed => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Ends the lease, unless it is over already. Returns the phase before.
    fn end(&mut self, reason: OverReason, now: BootInstant) -> Phase {
        if let Phase::Over { reason, since } = &self.phase {
            return Phase::Over { reason: reason.clone(), since: *since };
        }
        std::mem::replace(&mut self.phase, Phase::Over { reason, since: now })
    }
}
