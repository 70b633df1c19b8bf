//! For how long sessions have stood still, by this process's clock.
//!
//! The timers belong to the elector and not to a campaign (rule 2, hazard C16). Nothing that another host wrote is compared with a clock
//! (hazard C1): only the TTL in the record counts, which is immutable.

use std::{collections::HashMap, time::Duration};

use tenure_core::BootInstant;

use crate::{
    record::SessionId,
    rules::{CasRule, is_disabled},
    store::{Epoch, Freshness},
};

/// The number of sessions to remember. Beyond it the half that was not looked at for longest is forgotten: their timers start again.
const MAX_TIMERS: usize = 8192;

/// The timers of the sessions that this elector has looked at.
#[derive(Debug)]
pub(crate) struct Timers {
    drift: f64,
    epoch: Epoch,
    /// When the epoch was first seen.
    epoch_since: Option<BootInstant>,
    timers: HashMap<SessionId, Timer>,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    /// The highest beat seen.
    beat: u64,
    /// When an answer first showed it.
    since: BootInstant,
    /// A lower beat that a fresh read has shown since, and when it did so first: the store has lost writes.
    lower: Option<(u64, BootInstant)>,
    ttl: Duration,
    looked_at: BootInstant,
    /// What the last fresh read has shown.
    sighting: Option<Sighting>,
    /// Whether a higher beat than the first was seen.
    has_beaten: bool,
}

/// How a session stands by its timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    /// Whether it has stood still until its timer ran out.
    pub(crate) has_expired: bool,
    /// Whether the timer has run out, or would have if a replica that lags had not answered.
    pub(crate) is_due: bool,
    /// Whether it has stood still for half of its TTL.
    pub(crate) is_silent: bool,
    /// Whether it was not seen to beat, or has been silent since.
    pub(crate) may_be_dead: bool,
    /// How soon to look at it again.
    pub(crate) look_again: BootInstant,
}

impl Sighting {
    /// Of a session that has just beaten.
    pub(crate) const LIVE: Self = Self {
        has_expired: false,
        is_due: false,
        is_silent: false,
        may_be_dead: false,
        look_again: BootInstant::NEVER,
    };
}

impl Timers {
    /// Timers for a drift bound: both hosts may drift by it, in opposite directions.
    pub(crate) fn new(drift: f64) -> Self {
        let epoch = Epoch::default();
        Self { drift, epoch, epoch_since: None, timers: HashMap::new() }
    }

    /// Raises the drift bound, never lowers it.
    pub(crate) fn raise_drift(&mut self, drift: f64) {
        self.drift = self.drift.max(drift);
    }

    /// An epoch was seen. If it is a new one, writes may be lost, and all timers start again (rule 7, hazard C5). False if it is over.
    /// `now` was read after the answer that showed it.
    pub(crate) fn start_epoch(&mut self, epoch: Epoch, now: BootInstant) -> bool {
        self.epoch_since.get_or_insert(now);
        if epoch > self.epoch {
            (self.epoch, self.epoch_since) = (epoch, Some(now));
            if !is_disabled(CasRule::EpochRestartsTimers) {
                self.timers.clear();
            }
        }
        epoch == self.epoch
    }

    /// When all windows of earlier epochs have closed, of sessions whose TTL is at most `ttl`: their heartbeats are refused since before
    /// this epoch was seen (rule 7).
    pub(crate) fn epoch_settles(&self, ttl: Duration) -> BootInstant {
        self.epoch_since.map_or(BootInstant::NEVER, |since| since + ttl.mul_f64(1.0 + self.drift))
    }

    /// Records that an answer, received at `now`, shows that a live session has this beat. `now` was read after the answer.
    ///
    /// A lower beat than the highest seen is ignored, because replicas alternate. If a fresh read shows it, the store has lost writes,
    /// and it is timed on its own: otherwise nobody would ever take over from its owner.
    pub(crate) fn observe(
        &mut self,
        session: &SessionId,
        (beat, freshness): (u64, Freshness),
        ttl: Duration,
        now: BootInstant,
    ) -> Sighting {
        self.forget_some();
        let first =
            Timer { beat, since: now, lower: None, ttl, looked_at: now, sighting: None, has_beaten: false };
        let timer = self.timers.entry(session.clone()).or_insert(first);
        timer.looked_at = now;
        let is_other = match beat.cmp(&timer.beat) {
            std::cmp::Ordering::Greater => !is_disabled(CasRule::HigherBeatRestarts),
            // A replica that lags.
            std::cmp::Ordering::Less => is_disabled(CasRule::IgnoreLowerBeats),
            std::cmp::Ordering::Equal => false,
        };
        if is_other {
            timer.has_beaten |= beat > timer.beat;
            (timer.beat, timer.since, timer.lower, timer.ttl) = (beat, now, None, ttl);
        }
        let (mut is_ignored, mut since) = (beat < timer.beat, timer.since);
        if is_ignored && freshness == Freshness::Fresh {
            let lower = timer.lower.filter(|(lower, _)| *lower == beat).unwrap_or((beat, now));
            timer.lower = Some(lower);
            (is_ignored, since) = (false, lower.1);
        }
        let has_beaten = timer.has_beaten;
        let drift = if is_disabled(CasRule::WaitWithDrift) { 0.0 } else { self.drift };
        let ttl = timer.ttl;
        let expires = since + ttl.mul_f64(1.0 + drift);
        let is_due = now >= expires;
        let has_expired = !is_ignored && is_due;
        let silent_at = since + ttl / 2;
        let is_silent = now >= silent_at;
        // The next beat is noticed soon after it, so that its timer does not start late.
        let mut look_again = now + ttl / 4;
        for due in [expires, silent_at] {
            if due > now {
                look_again = look_again.min(due);
            }
        }
        let may_be_dead = is_silent || !has_beaten;
        let sighting = Sighting { has_expired, is_due, is_silent, may_be_dead, look_again };
        timer.sighting = Some(sighting).filter(|_| freshness == Freshness::Fresh);
        sighting
    }

    /// What a fresh read has shown that was made after `hint` and need not be repeated yet.
    pub(crate) fn recent(
        &self,
        session: &SessionId,
        hint: BootInstant,
        now: BootInstant,
    ) -> Option<Sighting> {
        let timer = self.timers.get(session)?;
        timer.sighting.filter(|seen| timer.looked_at > hint && now < seen.look_again && !seen.has_expired)
    }

    /// The session has ended.
    pub(crate) fn forget(&mut self, session: &SessionId) {
        self.timers.remove(session);
    }

    /// A campaign has ended. Its timers stay (hazard C16).
    pub(crate) fn campaign_ended(&mut self) {
        if is_disabled(CasRule::KeepTimers) {
            self.timers.clear();
        }
    }

    fn forget_some(&mut self) {
        if self.timers.len() > MAX_TIMERS {
            let mut looked_at: Vec<_> = self.timers.values().map(|timer| timer.looked_at).collect();
            looked_at.sort_unstable();
            let median = looked_at[looked_at.len() / 2];
            self.timers.retain(|_, timer| timer.looked_at >= median);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rules::disable,
        store::Freshness::{Fresh, MayBeStale},
    };

    const TTL: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(1_000_000_000_000) + Duration::from_millis(millis)
    }

    /// Whether a session counts as expired after these answers: the beat, and when it was received.
    fn expires(answers: &[(u64, u64)]) -> bool {
        let (mut timers, session) = (Timers::new(0.1), SessionId::random());
        answers
            .iter()
            .map(|(beat, millis)| timers.observe(&session, (*beat, MayBeStale), TTL, at(*millis)))
            .last()
            .unwrap()
            .has_expired
    }

    /// Hazard C14: the TTL and the drift bound.
    #[test]
    fn a_session_expires_after_its_ttl_and_the_drift_bound() {
        assert!(!expires(&[(1, 0), (1, 10_999)]));
        assert!(expires(&[(1, 0), (1, 11_000)]));
        disable(Some(CasRule::WaitWithDrift));
        assert!(expires(&[(1, 0), (1, 10_000)]), "the disabled rule was not detected");
    }

    /// Hazard C1: a timer is of one beat.
    #[test]
    fn a_higher_beat_restarts_the_timer() {
        assert!(!expires(&[(1, 0), (2, 10_000), (2, 20_999)]));
        assert!(expires(&[(1, 0), (2, 10_000), (2, 21_000)]));
        assert!(!expires(&[(1, 0), (2, 30_000)]), "the timer of an earlier beat counts for nothing");
        disable(Some(CasRule::HigherBeatRestarts));
        assert!(expires(&[(1, 0), (2, 11_000)]), "the disabled rule was not detected");
    }

    /// Rule 2: replicas alternate.
    #[test]
    fn a_lower_beat_is_ignored() {
        let alternating = [(2, 0), (1, 4_000), (2, 8_000), (1, 10_000), (2, 11_000)];
        assert!(expires(&alternating));
        assert!(!expires(&[(2, 0), (1, 11_000)]), "it shows nothing of the newest beat");
        disable(Some(CasRule::IgnoreLowerBeats));
        assert!(!expires(&alternating), "the disabled rule was not detected");
    }

    /// A store that does not know its epoch has lost a heartbeat, and its owner has died.
    #[test]
    fn a_lower_beat_of_a_fresh_read_is_timed() {
        let (mut timers, session) = (Timers::new(0.1), SessionId::random());
        let mut observe =
            |beat, freshness, millis| timers.observe(&session, (beat, freshness), TTL, at(millis));
        observe(5, Fresh, 0);
        assert!(!observe(3, Fresh, 11_000).has_expired, "its timer has just begun");
        assert!(!observe(3, MayBeStale, 30_000).has_expired, "a replica may lag");
        assert!(!observe(4, Fresh, 21_000).has_expired, "another beat");
        assert!(observe(4, Fresh, 32_000).has_expired);
        assert!(!observe(6, Fresh, 32_000).has_expired);
    }

    /// Hazard C5.
    #[test]
    fn a_new_epoch_restarts_all_timers() {
        let (mut timers, session) = (Timers::new(0.1), SessionId::random());
        timers.start_epoch(Epoch(3), at(0));
        timers.observe(&session, (1, MayBeStale), TTL, at(0));
        for epoch in [1, 3] {
            timers.start_epoch(Epoch(epoch), at(11_000));
            assert!(timers.observe(&session, (1, MayBeStale), TTL, at(11_000)).has_expired, "no later epoch");
        }
        assert_eq!(timers.epoch_settles(TTL), at(11_000));
        timers.start_epoch(Epoch(4), at(11_000));
        assert_eq!(timers.epoch_settles(TTL), at(22_000));
        assert!(!timers.observe(&session, (1, MayBeStale), TTL, at(11_000)).has_expired);
        assert!(timers.observe(&session, (1, MayBeStale), TTL, at(22_000)).has_expired);
    }

    #[test]
    fn a_session_that_is_looked_at_is_not_forgotten() {
        let (mut timers, session) = (Timers::new(0.1), SessionId::random());
        timers.observe(&session, (1, MayBeStale), TTL, at(0));
        for n in 0..20_000 {
            timers.observe(&SessionId::random(), (1, MayBeStale), TTL, at(n));
            timers.observe(&session, (1, MayBeStale), TTL, at(n));
        }
        assert!(timers.timers.len() <= MAX_TIMERS + 1);
        assert!(timers.observe(&session, (1, MayBeStale), TTL, at(20_000)).has_expired);
    }

    #[test]
    fn silence_is_noticed_after_half_a_ttl() {
        let (mut timers, session) = (Timers::new(0.1), SessionId::random());
        assert!(!timers.observe(&session, (1, MayBeStale), TTL, at(0)).is_silent);
        assert!(!timers.observe(&session, (1, MayBeStale), TTL, at(4_999)).is_silent);
        assert!(timers.observe(&session, (1, MayBeStale), TTL, at(5_000)).is_silent);
        assert!(!timers.observe(&session, (2, MayBeStale), TTL, at(5_000)).is_silent);
    }
}
