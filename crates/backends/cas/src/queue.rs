//! The transitions of an election's record: from the record that is read to the one that is swapped in.
//!
//! The first slot leads. A new head, and nothing else, gets a new token (rule 4).

use tenure_core::{
    ElectionName, FencingToken,
    spi::{BackendError, BackendErrorKind, EntryRequest},
};

use crate::{
    record::{Election, MAX_ELECTION_BYTES, MAX_NUMBER, MAX_SLOTS, Nonce, SessionId, Slot},
    rules::{CasRule, is_disabled},
    store::Epoch,
};

/// The bits of a fencing token that count the terms of an epoch.
const TERM_BITS: u32 = 40;

impl Slot {
    pub(crate) fn new(session: &SessionId, request: &EntryRequest) -> Self {
        Self {
            session: session.clone(),
            nonce: Nonce(request.nonce),
            candidate: request.candidate.clone(),
            value: request.value.clone(),
            resign_requested: false,
        }
    }

    /// The key of the slot's entry: unique, because the nonce is.
    pub(crate) fn entry_key(election: &ElectionName, nonce: Nonce) -> String {
        format!("{election}#{nonce}")
    }

    /// Whether this is the slot that a session has entered with this nonce.
    pub(crate) fn is(&self, session: &SessionId, nonce: Nonce) -> bool {
        self.session == *session && self.nonce == nonce
    }
}

impl Election {
    /// The number of slots ahead of this one.
    pub(crate) fn place(&self, session: &SessionId, nonce: Nonce) -> Option<usize> {
        self.queue.iter().position(|slot| slot.is(session, nonce))
    }

    /// The token of the head.
    pub(crate) fn head_token(&self) -> Option<FencingToken> {
        self.queue.first().and_then(|_| FencingToken::new(self.token))
    }

    /// Appends a slot.
    ///
    /// # Errors
    /// [`Invalid`](BackendErrorKind::Invalid) when the queue is full.
    pub(crate) fn with_slot(
        &self,
        election: &ElectionName,
        slot: Slot,
        epoch: Epoch,
    ) -> Result<Self, BackendError> {
        if self.queue.len() >= MAX_SLOTS {
            return Err(full(election, format!("{MAX_SLOTS} candidates are in its queue")));
        }
        let next = self.with_queue(epoch, |queue| queue.push(slot))?;
        next.checked(election)
    }

    /// Removes the slots that `is_gone`.
    ///
    /// # Errors
    /// [`Invalid`](BackendErrorKind::Invalid) when no fencing token is left for a new head.
    pub(crate) fn without(
        &self,
        epoch: Epoch,
        is_gone: impl Fn(&Slot) -> bool,
    ) -> Result<Self, BackendError> {
        self.with_queue(epoch, |queue| queue.retain(|slot| !is_gone(slot)))
    }

    /// Replaces the value of a slot. A resign request is kept. `None` if there is no such slot.
    ///
    /// # Errors
    /// [`Invalid`](BackendErrorKind::Invalid) when the record would be too large.
    pub(crate) fn with_value(
        &self,
        session: &SessionId,
        request: &EntryRequest,
    ) -> Result<Option<Self>, BackendError> {
        let Some(place) = self.place(session, Nonce(request.nonce)) else { return Ok(None) };
        let mut next = self.clone();
        next.queue[place].value = request.value.clone();
        next.checked(&request.election).map(Some)
    }

    /// Asks the head to resign.
    pub(crate) fn with_resign_request(&self) -> Self {
        let mut next = self.clone();
        if let Some(head) = next.queue.first_mut() {
            head.resign_requested = true;
        }
        next
    }

    /// Changes the queue. The token is computed from this record, which is the one that the swap replaces.
    fn with_queue(&self, epoch: Epoch, change: impl FnOnce(&mut Vec<Slot>)) -> Result<Self, BackendError> {
        let mut next = self.clone();
        change(&mut next.queue);
        let head = |election: &Self| election.queue.first().map(|slot| slot.nonce);
        if head(&next).is_some() && head(&next) != head(self) && !is_disabled(CasRule::NewTokenForHead) {
            let terms = match is_disabled(CasRule::OneTokenPerHead) {
                true => self.queue.len().abs_diff(next.queue.len()) as u64,
                false => 1,
            };
            // At most 2^62 + 500: a record has no greater token.
            next.token = (self.token + terms).max(epoch.0 << TERM_BITS);
            if next.token > MAX_NUMBER {
                let text = "no fencing token is left for another leader; somebody has written a token that is too large";
                return Err(BackendError::new(BackendErrorKind::Invalid, text));
            }
        }
        next.token = next.token.max(u64::from(!next.queue.is_empty()));
        Ok(next)
    }

    /// Refuses to make a record that some stores would refuse.
    fn checked(self, election: &ElectionName) -> Result<Self, BackendError> {
        match self.encode().len() <= MAX_ELECTION_BYTES {
            true => Ok(self),
            false => Err(full(election, "the values of its candidates are too large together".to_owned())),
        }
    }
}

fn full(election: &ElectionName, why: String) -> BackendError {
    let text = format!(
        "cannot change the election {election}: {why}; an election has at most {MAX_SLOTS} candidates and \
         {MAX_ELECTION_BYTES} bytes: use fewer candidates, or shorter values"
    );
    BackendError::new(BackendErrorKind::Invalid, text)
}

#[cfg(test)]
mod tests {
    use tenure_core::CandidateId;

    use super::*;
    use crate::store::EpochState;

    fn name() -> ElectionName {
        ElectionName::new("e").unwrap()
    }

    fn request(nonce: u128, value: &[u8]) -> EntryRequest {
        let candidate = CandidateId::new("a").unwrap();
        EntryRequest { election: name(), candidate, value: value.into(), nonce }
    }

    fn queue(epoch: u64, slots: u128) -> (SessionId, Election) {
        let session = SessionId::random();
        let mut election = Election::default();
        for nonce in 1..=slots {
            election = enter(&election, &session, nonce, epoch);
        }
        (session, election)
    }

    fn enter(election: &Election, session: &SessionId, nonce: u128, epoch: u64) -> Election {
        election.with_slot(&name(), Slot::new(session, &request(nonce, b"")), Epoch(epoch)).unwrap()
    }

    fn without(election: &Election, nonces: &[u128], epoch: u64) -> Election {
        election.without(Epoch(epoch), |slot| nonces.contains(&slot.nonce.0)).unwrap()
    }

    /// Rule 4: a new head gets a token, once however many slots go; nothing else changes it.
    #[test]
    fn a_new_head_gets_one_new_token() {
        let (session, election) = queue(0, 4);
        assert_eq!(election.token, 1);
        assert_eq!(without(&election, &[2], 0).token, 1, "the head is the same");
        assert_eq!(without(&election, &[1, 2, 3], 0).token, 2, "once");
        assert_eq!(election.with_resign_request().token, 1);
        let empty = without(&election, &[1, 2, 3, 4], 0);
        assert_eq!((empty.token, empty.head_token()), (1, None));
        assert_eq!(enter(&empty, &session, 5, 0).token, 2, "the first after an empty queue");
        // The same session with another nonce is another term.
        let again = enter(&without(&election, &[1, 2, 3, 4], 0), &session, 1, 0);
        assert_eq!(again.token, 2);
    }

    /// Hazard C5: a token of a later epoch is greater than all of an earlier one.
    #[test]
    fn a_later_epoch_has_greater_tokens() {
        let (_, election) = queue(3, 2);
        assert_eq!(election.token, 3 << TERM_BITS);
        assert_eq!(without(&election, &[1], 3).token, (3 << TERM_BITS) + 1);
        assert_eq!(without(&election, &[1], 4).token, 4 << TERM_BITS);
        assert_eq!(without(&election, &[2], 4).token, 3 << TERM_BITS, "the head is the same");
    }

    #[test]
    fn tokens_do_not_overflow() {
        let (_, mut election) = queue(EpochState::MAX_EPOCH.0, 3);
        assert!(election.token < MAX_NUMBER);
        election.token = MAX_NUMBER - 1;
        assert_eq!(without(&election, &[1], 0).token, MAX_NUMBER);
        election.token = MAX_NUMBER;
        assert_eq!(without(&election, &[2], 0).token, MAX_NUMBER, "the head is the same");
        let error = election.without(Epoch(0), |slot| slot.nonce == Nonce(1)).unwrap_err();
        assert!(error.to_string().contains("no fencing token is left"), "{error}");
    }

    /// Rule 8.
    #[test]
    fn a_full_queue_is_refused_in_words() {
        let (session, election) = queue(0, MAX_SLOTS as u128);
        let slot = Slot::new(&session, &request(501, b""));
        let error = election.with_slot(&name(), slot, Epoch(0)).unwrap_err();
        assert!(error.is_permanent());
        let said = "cannot change the election e: 500 candidates are in its queue; an election has at most 500 \
                    candidates and 393216 bytes: use fewer candidates, or shorter values";
        assert_eq!(error.to_string(), said);
    }

    #[test]
    fn a_full_queue_of_long_ids_and_a_large_value_fit() {
        let session = SessionId::random();
        let mut election = Election::default();
        let candidate = CandidateId::new(&"i".repeat(255)).unwrap();
        for nonce in 0..MAX_SLOTS as u128 {
            let value = if nonce == 0 { vec![0xff; 64 * 1024] } else { Vec::new() };
            let request = EntryRequest { candidate: candidate.clone(), ..request(nonce, &value) };
            election.queue.push(Slot::new(&session, &request));
        }
        assert!(election.encode().len() <= MAX_ELECTION_BYTES, "{}", election.encode().len());
    }

    #[test]
    fn values_that_are_too_large_together_are_refused() {
        let (session, mut election) = (SessionId::random(), Election::default());
        let large = vec![0; 64 * 1024];
        let refused = (1..10).find_map(|nonce| {
            match election.with_slot(&name(), Slot::new(&session, &request(nonce, &large)), Epoch(0)) {
                Ok(next) => {
                    election = next;
                    None
                }
                Err(error) => Some((nonce, error)),
            }
        });
        let (nonce, error) = refused.unwrap();
        assert!(nonce == 5 && error.to_string().contains("the values of its candidates"), "{nonce}: {error}");
        let small = election.with_slot(&name(), Slot::new(&session, &request(7, b"")), Epoch(0)).unwrap();
        assert!(small.with_value(&session, &request(7, &large)).is_err());
        assert!(small.with_value(&session, &request(8, b"")).unwrap().is_none(), "no such slot");
    }

    #[test]
    fn a_value_changes_neither_place_nor_token_nor_resign_request() {
        let (session, election) = queue(0, 3);
        let asked = election.with_resign_request();
        let changed = asked.with_value(&session, &request(1, b"new")).unwrap().unwrap();
        assert!(changed.queue[0].resign_requested && &*changed.queue[0].value == b"new");
        assert_eq!((changed.place(&session, Nonce(1)), changed.token), (Some(0), election.token));
        assert!(!without(&asked, &[1], 0).queue[0].resign_requested);
    }
}
