//! The network link between one host and the cluster, on which messages are lost, delayed or duplicated.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;

/// The condition of a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LinkState {
    /// 1 % of the messages are lost.
    Healthy,
    /// 18 % of the messages are lost and 30 % are delayed.
    Lossy,
    /// Nothing arrives in either direction.
    Cut,
    /// Requests arrive, answers do not.
    AnswersLost,
}

/// How one request is delivered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    /// The delay of the request; `None` when it is lost.
    pub(crate) request_delay: Option<Duration>,
    /// The delay of the answer; `None` when it is lost.
    pub(crate) answered: Option<Duration>,
    /// The delay of a duplicate, which is sent because the first is late.
    pub(crate) duplicate_delay: Option<Duration>,
    /// Whether the sender gets an error for a lost message; otherwise it waits.
    pub(crate) is_reported: bool,
}

/// The link of one host.
#[derive(Debug)]
pub(crate) struct Link {
    random: Mutex<Rng>,
    state: Mutex<LinkState>,
    faults: AtomicU64,
}

impl Link {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Mutex::new(Rng::with_seed(seed)),
            state: Mutex::new(LinkState::Healthy),
            faults: AtomicU64::new(0),
        }
    }

    pub(crate) fn random(&self) -> MutexGuard<'_, Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_state(&self, state: LinkState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn state(&self) -> LinkState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of messages that were lost, delayed or duplicated.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Relaxed)
    }

    pub(crate) fn count(&self) {
        self.faults.fetch_add(1, Relaxed);
    }

    /// Whether a change notification reaches the host.
    pub(crate) fn notices_change(&self) -> bool {
        let misses = match self.state() {
            LinkState::Healthy => self.random().u8(..100) < 2,
            LinkState::Lossy => self.random().u8(..100) < 30,
            LinkState::Cut | LinkState::AnswersLost => true,
        };
        if misses {
            self.count();
        }
        !misses
    }

    /// Draws the delivery of the next request.
    pub(crate) fn delivery(&self) -> Delivery {
        let state = self.state();
        let mut random = self.random();
        let (lost, late) = match state {
            LinkState::Healthy => (1, 3),
            LinkState::Lossy => (18, 30),
            LinkState::Cut => (100, 0),
            LinkState::AnswersLost => (0, 20),
        };
        let mut faults = 0;
        let mut one_way = |random: &mut Rng, lost: u8| {
            if random.u8(..100) < lost {
                faults += 1;
                return None;
            }
            if random.u8(..100) < late {
                faults += 1;
                // Mostly less than a second, sometimes nearly as long as the request timeout, rarely longer than a TTL.
                let most = match random.u8(..12) {
                    0 => 15_000,
                    1 | 2 => 4_900,
                    _ => 900,
                };
                return Some(Duration::from_millis(random.u64(5..most)));
            }
            Some(Duration::from_micros(random.u64(100..2_000)))
        };
        let request_delay = one_way(&mut random, lost);
        let answered = one_way(&mut random, if state == LinkState::AnswersLost { 100 } else { lost });
        let duplicate_delay =
            (random.u8(..100) < late / 2).then(|| Duration::from_millis(random.u64(1..3_000)));
        faults += u64::from(duplicate_delay.is_some());
        let is_reported = random.bool();
        drop(random);
        self.faults.fetch_add(faults, Relaxed);
        Delivery { request_delay, answered, duplicate_delay, is_reported }
    }
}
