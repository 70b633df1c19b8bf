//! Requests that were withdrawn without an answer, and may yet be carried out by the store.

use std::{collections::VecDeque, time::Duration};

use crate::{BootInstant, spi::EntryRequest};

/// At most so many are remembered; the oldest is the likeliest to have been carried out or lost.
const MOST: usize = 4096;
/// The longest wait before a withdrawal is repeated for the first time, and the shortest to which the waits grow.
const LONG_WAIT: Duration = Duration::from_secs(10);
/// How long after the first withdrawal that the store has confirmed it is repeated.
///
/// Longer than any server is seen to hold back a request and carry it out after all: by then its connection has been closed,
/// and with it what was sent over it. etcd and ZooKeeper refuse such requests besides.
pub(crate) const REPEATED_FOR: Duration = Duration::from_secs(100);

/// How long to wait before a withdrawal is repeated for the first time, under a session of this TTL.
pub(crate) fn first_wait(ttl: Duration) -> Duration {
    (ttl / 3).min(LONG_WAIT)
}

#[derive(Debug, Default)]
pub(crate) struct Graves(VecDeque<Grave>);

#[derive(Debug)]
struct Grave {
    request: EntryRequest,
    due: BootInstant,
    wait: Duration,
    longest: Duration,
    until: BootInstant,
}

impl Graves {
    /// Remembers `request`, whose withdrawal was confirmed at `now`; it is due first after `wait`, and then ever more rarely.
    pub(crate) fn dig(&mut self, request: EntryRequest, now: BootInstant, wait: Duration) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        let longest = (wait * 3).max(LONG_WAIT);
        self.0.push_back(Grave { request, due: now + wait, wait, longest, until: now + REPEATED_FOR });
    }

    /// The requests whose entries have to be looked for now.
    pub(crate) fn due(&self, now: BootInstant) -> Vec<EntryRequest> {
        self.0.iter().filter(|grave| grave.due <= now).map(|grave| grave.request.clone()).collect()
    }

    /// The store was asked just now to remove what `request` has made.
    pub(crate) fn tried(&mut self, request: &EntryRequest, now: BootInstant) {
        self.0.retain_mut(|grave| {
            if grave.request.nonce != request.nonce {
                return true;
            }
            grave.wait = (grave.wait * 2).min(grave.longest);
            grave.due = now + grave.wait;
            now < grave.until
        });
    }

    /// The store will never remove what `request` has made.
    pub(crate) fn forget(&mut self, request: &EntryRequest) {
        self.0.retain(|grave| grave.request.nonce != request.nonce);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CandidateId, ElectionName};

    /// Hazard G31: withdrawals are repeated a few times, and not for as long as the session lives.
    #[test]
    fn a_withdrawal_is_repeated_a_few_times() {
        for ttl in [1, 10, 3_600].map(Duration::from_secs) {
            let mut graves = Graves::default();
            let request = EntryRequest {
                election: ElectionName::new("e").unwrap(),
                candidate: CandidateId::new("a").unwrap(),
                value: [].into(),
                nonce: 1,
            };
            let begun = BootInstant::from_nanos(1);
            graves.dig(request, begun, first_wait(ttl));
            let (mut now, mut repeated) = (begun, 0);
            while graves.len() > 0 {
                for request in graves.due(now) {
                    repeated += 1;
                    graves.tried(&request, now);
                }
                now = now + first_wait(ttl);
            }
            let took = now.since(begun);
            assert!((4..=16).contains(&repeated), "{repeated} times at a TTL of {ttl:?}");
            assert!(took >= REPEATED_FOR && took <= REPEATED_FOR * 3 / 2, "for {took:?} at a TTL of {ttl:?}");
        }
    }
}
