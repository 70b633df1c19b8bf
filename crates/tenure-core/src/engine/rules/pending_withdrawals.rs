//! Withdrawn requests that the store may still execute, and when to withdraw them again.

use std::{collections::VecDeque, time::Duration};

use crate::{BootInstant, spi::EntryRequest};

/// The number of requests to remember. Beyond it the oldest is forgotten: it is the likeliest to have been
/// executed or lost.
const MAX_PENDING: usize = 4096;
/// The longest delay before a withdrawal is repeated for the first time.
const MAX_FIRST_DELAY: Duration = Duration::from_secs(10);
/// Lower bound of the maximum delay between repetitions.
const MIN_DELAY_LIMIT: Duration = MAX_FIRST_DELAY;
/// A withdrawal is repeated for this long after the store first confirmed it.
///
/// No server has been observed to hold back a request longer and still execute it: by then its connection has
/// been closed, and what was sent over it is discarded. etcd and ZooKeeper also refuse such requests.
const RETRY_PERIOD: Duration = Duration::from_secs(100);

/// The delay before a withdrawal is repeated for the first time, under a session with this TTL.
pub(crate) fn first_retry_delay(ttl: Duration) -> Duration {
    (ttl / 3).min(MAX_FIRST_DELAY)
}

/// Withdrawals to repeat, because a request to enter went unanswered and may be executed after its withdrawal.
#[derive(Debug, Default)]
pub(crate) struct PendingWithdrawals(VecDeque<PendingWithdrawal>);

#[derive(Debug)]
struct PendingWithdrawal {
    request: EntryRequest,
    next_retry: BootInstant,
    delay: Duration,
    max_delay: Duration,
    retry_until: BootInstant,
}

impl PendingWithdrawals {
    /// Adds `request`, whose withdrawal was confirmed at `now`. It is due after `delay`, and then after growing
    /// delays.
    pub(crate) fn add(&mut self, request: EntryRequest, now: BootInstant, delay: Duration) {
        if self.0.len() == MAX_PENDING {
            self.0.pop_front();
        }
        let max_delay = (delay * 3).max(MIN_DELAY_LIMIT);
        self.0.push_back(PendingWithdrawal {
            request,
            next_retry: now + delay,
            delay,
            max_delay,
            retry_until: now + RETRY_PERIOD,
        });
    }

    /// The requests to withdraw again at `now`.
    pub(crate) fn due(&self, now: BootInstant) -> Vec<EntryRequest> {
        self.0
            .iter()
            .filter(|pending| pending.next_retry <= now)
            .map(|pending| pending.request.clone())
            .collect()
    }

    /// Records that the withdrawal of `request` was repeated at `now`.
    pub(crate) fn mark_retried(&mut self, request: &EntryRequest, now: BootInstant) {
        self.0.retain_mut(|pending| {
            if pending.request.nonce != request.nonce {
                return true;
            }
            pending.delay = (pending.delay * 2).min(pending.max_delay);
            pending.next_retry = now + pending.delay;
            now < pending.retry_until
        });
    }

    /// Removes `request`, whose withdrawal the store refuses for good.
    pub(crate) fn remove(&mut self, request: &EntryRequest) {
        self.0.retain(|pending| pending.request.nonce != request.nonce);
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
            let mut pending = PendingWithdrawals::default();
            let request = EntryRequest {
                election: ElectionName::new("e").unwrap(),
                candidate: CandidateId::new("a").unwrap(),
                value: [].into(),
                nonce: 1,
            };
            let start = BootInstant::from_nanos(1);
            pending.add(request, start, first_retry_delay(ttl));
            let (mut now, mut retries) = (start, 0);
            while pending.len() > 0 {
                for request in pending.due(now) {
                    retries += 1;
                    pending.mark_retried(&request, now);
                }
                now = now + first_retry_delay(ttl);
            }
            let elapsed = now.since(start);
            assert!((4..=16).contains(&retries), "{retries} retries at a TTL of {ttl:?}");
            assert!(
                elapsed >= RETRY_PERIOD && elapsed <= RETRY_PERIOD * 3 / 2,
                "retried for {elapsed:?} at a TTL of {ttl:?}"
            );
        }
    }
}
