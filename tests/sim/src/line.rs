//! The line between one host and the cluster: what is lost, late or sent twice on it.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;

/// How bad it is on a line just now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weather {
    /// Almost nothing goes wrong.
    Fair,
    /// Much does.
    Foul,
    /// Nothing gets through, either way.
    Cut,
    /// Requests get through, answers do not.
    Deaf,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fate {
    /// How long it takes to arrive; never when there is none.
    pub(crate) arrives: Option<Duration>,
    /// How long its answer takes; never when there is none.
    pub(crate) answered: Option<Duration>,
    /// A second one, sent as well because the first was late: how long that takes.
    pub(crate) again: Option<Duration>,
    /// Whether the sender is told that what never arrives has failed.
    pub(crate) told: bool,
}

/// One host's line.
#[derive(Debug)]
pub(crate) struct Line {
    random: Mutex<Rng>,
    weather: Mutex<Weather>,
    faults: AtomicU64,
}

impl Line {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Mutex::new(Rng::with_seed(seed)),
            weather: Mutex::new(Weather::Fair),
            faults: AtomicU64::new(0),
        }
    }

    pub(crate) fn random(&self) -> MutexGuard<'_, Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }

    fn weather(&self) -> Weather {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many messages something happened to.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Relaxed)
    }

    pub(crate) fn count(&self) {
        self.faults.fetch_add(1, Relaxed);
    }

    /// Whether a host hears of a change in the store now; later at the latest when it looks by itself.
    pub(crate) fn hears(&self) -> bool {
        let misses = match self.weather() {
            Weather::Fair => self.random().u8(..100) < 2,
            Weather::Foul => self.random().u8(..100) < 30,
            Weather::Cut | Weather::Deaf => true,
        };
        if misses {
            self.count();
        }
        !misses
    }

    /// What becomes of the next request.
    pub(crate) fn fate(&self) -> Fate {
        let weather = self.weather();
        let mut random = self.random();
        let (lost, late) = match weather {
            Weather::Fair => (1, 3),
            Weather::Foul => (18, 30),
            Weather::Cut => (100, 0),
            Weather::Deaf => (0, 20),
        };
        let mut faults = 0;
        let mut one_way = |random: &mut Rng, lost: u8| {
            if random.u8(..100) < lost {
                faults += 1;
                return None;
            }
            if random.u8(..100) < late {
                faults += 1;
                // Mostly a little late, at times by nearly as long as anybody waits, now and then by more than a TTL.
                let most = match random.u8(..12) {
                    0 => 15_000,
                    1 | 2 => 4_900,
                    _ => 900,
                };
                return Some(Duration::from_millis(random.u64(5..most)));
            }
            Some(Duration::from_micros(random.u64(100..2_000)))
        };
        let arrives = one_way(&mut random, lost);
        let answered = one_way(&mut random, if weather == Weather::Deaf { 100 } else { lost });
        let again = (random.u8(..100) < late / 2).then(|| Duration::from_millis(random.u64(1..3_000)));
        faults += u64::from(again.is_some());
        let told = random.bool();
        drop(random);
        self.faults.fetch_add(faults, Relaxed);
        Fate { arrives, answered, again, told }
    }
}
