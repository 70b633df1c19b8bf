//! How many calls are under way at a time, of those that come in thousands.
//!
//! A store that has too much to do answers late; whoever asks then asks again, and it has even more to do. Many processes
//! that each ask as much as they like keep it there, with next to nothing that is answered in time. So each of them asks for
//! less while its answers are late, and for more again while they are not.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

/// At most so many: more would only wait in etcd's queue, where they would look late.
const MOST: usize = 256;
/// At least so many, however late the answers are: one may be stuck in a frozen member.
const LEAST: usize = 8;
/// How long the calls that are under way are given before they count once more as late.
const MOMENT: Duration = Duration::from_millis(500);

/// Places for calls, of which there are fewer while answers are late.
pub(crate) struct Bulk {
    /// One permit for each place.
    free: Semaphore,
    places: Mutex<Places>,
}

struct Places {
    /// How many there should be.
    wanted: usize,
    /// How many there are.
    made: usize,
    /// How many answers came in time since there was one more.
    prompt: usize,
    narrowed: Option<Instant>,
}

/// A call's place.
pub(crate) struct Place<'a> {
    bulk: &'a Bulk,
    permit: Option<SemaphorePermit<'a>>,
}

impl Bulk {
    pub(crate) fn new() -> Self {
        let places = Places { wanted: MOST, made: MOST, prompt: 0, narrowed: None };
        Self { free: Semaphore::new(MOST), places: Mutex::new(places) }
    }

    /// Waits for a place.
    pub(crate) async fn enter(&self) -> Place<'_> {
        Place { bulk: self, permit: self.free.acquire().await.ok() }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is one more place once as many answers as an eighth of the places were in time.
    fn widen(&self) {
        let mut places = self.places();
        places.prompt += 1;
        if places.wanted == MOST || places.prompt <= places.wanted / 8 {
            return;
        }
        places.prompt = 0;
        places.wanted += 1;
        if places.made < places.wanted {
            places.made += 1;
            self.free.add_permits(1);
        }
    }

    /// Half as many places, once for all that are late together.
    fn narrow(&self) {
        let mut places = self.places();
        let now = Instant::now();
        if places.narrowed.is_some_and(|before| now - before < MOMENT) {
            return;
        }
        places.narrowed = Some(now);
        places.prompt = 0;
        places.wanted = (places.wanted / 2).max(LEAST);
        // The rest goes as it is given back.
        let over = places.made.saturating_sub(places.wanted);
        places.made -= self.free.forget_permits(over);
    }
}

impl Place<'_> {
    /// Says how the call went that had this place; one that was dropped says nothing.
    pub(crate) fn answered(self, in_time: bool) {
        match in_time {
            true => self.bulk.widen(),
            false => self.bulk.narrow(),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut places = self.bulk.places();
        if places.made > places.wanted {
            places.made -= 1;
            permit.forget();
        } else {
            drop(permit);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::{task::unconstrained, time::advance};

    use super::*;

    fn enter(bulk: &Bulk) -> Option<Place<'_>> {
        unconstrained(bulk.enter()).now_or_never()
    }

    fn free(bulk: &Bulk) -> usize {
        bulk.free.available_permits()
    }

    #[tokio::test(start_paused = true)]
    async fn late_answers_leave_fewer_places_and_prompt_ones_bring_them_back() {
        let bulk = Bulk::new();
        let mut under_way: Vec<_> = (0..MOST).map(|_| enter(&bulk).unwrap()).collect();
        assert!(enter(&bulk).is_none());
        // However many are late together.
        under_way.drain(..3).for_each(|place| place.answered(false));
        assert_eq!(free(&bulk), 0);
        drop(under_way);
        assert_eq!(free(&bulk), MOST / 2);
        for _ in 0..20 {
            advance(MOMENT).await;
            enter(&bulk).unwrap().answered(false);
        }
        assert_eq!(free(&bulk), LEAST);
        let mut prompt = 0;
        while free(&bulk) < MOST {
            enter(&bulk).unwrap().answered(true);
            prompt += 1;
        }
        assert!((MOST..20 * MOST).contains(&prompt), "{prompt}");
        enter(&bulk).unwrap().answered(true);
        assert_eq!(free(&bulk), MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_call_gives_its_place_back() {
        let bulk = Bulk::new();
        let under_way: Vec<_> = (0..MOST).map(|_| enter(&bulk).unwrap()).collect();
        assert!(enter(&bulk).is_none());
        drop(under_way);
        assert_eq!(free(&bulk), MOST);
    }
}
