//! Requests that were withdrawn without an answer, and may yet be carried out by the store.

use std::{collections::VecDeque, time::Duration};

use crate::{Moment, spi::EntryRequest};

/// At most so many are remembered; the oldest is the likeliest to have been carried out or lost.
const MOST: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Graves(VecDeque<Grave>);

#[derive(Debug)]
struct Grave {
    request: EntryRequest,
    due: Moment,
    wait: Duration,
    longest: Duration,
}

impl Graves {
    /// Remembers `request`; it is due first after `wait`, and then ever more rarely.
    pub(crate) fn dig(&mut self, request: EntryRequest, now: Moment, wait: Duration) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Grave { request, due: now + wait, wait, longest: wait * 3 });
    }

    /// The requests whose entries have to be looked for now.
    pub(crate) fn due(&self, now: Moment) -> Vec<EntryRequest> {
        self.0.iter().filter(|grave| grave.due <= now).map(|grave| grave.request.clone()).collect()
    }

    /// There was no entry of `request` left just now.
    pub(crate) fn left(&mut self, request: &EntryRequest, now: Moment) {
        for grave in self.0.iter_mut().filter(|grave| grave.request.nonce == request.nonce) {
            grave.wait = (grave.wait * 2).min(grave.longest);
            grave.due = now + grave.wait;
        }
    }
}
