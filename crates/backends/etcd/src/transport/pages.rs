//! Reading all that lies below an election, a part at a time.
//!
//! Anybody may have written there: hundreds of thousands of keys, or values as large as etcd takes them. So no answer
//! has more than so many keys, and one that is too large all the same is asked for again with fewer.

use etcd_client::{GetOptions, KeyValue};
use tenure_core::spi::BackendError;

use crate::{
    Shared,
    election::keys::is_candidate,
    transport::error::{is_too_large, malformed},
    transport::members::Call,
    transport::request::kv,
};

/// How many keys an answer has at most, and how many with their values, each of which may have 64 KiB.
const KEYS: i64 = 2048;
const VALUES: i64 = 256;
/// Fewer by this when an answer was too large.
const FEWER: i64 = 8;

/// What lies below an election, by key, all as of one revision.
pub(crate) struct Pages<'a> {
    shared: &'a Shared,
    election: &'a str,
    values: bool,
    /// How many keys to ask for.
    size: i64,
    /// The revision to read at; zero is the newest.
    at: i64,
    /// Where the next page begins; `None` after the last.
    next: Option<Vec<u8>>,
    strangers: Strangers,
}

/// The keys that were met and no candidate made.
#[derive(Debug, Default)]
struct Strangers {
    count: u64,
    first: Vec<u8>,
}

impl<'a> Pages<'a> {
    /// All keys with their values, as of now.
    pub(crate) fn with_values(shared: &'a Shared, election: &'a str) -> Self {
        Self { values: true, size: VALUES, ..Self::of_keys(shared, election, 0) }
    }

    /// All keys, as of the revision `at`; zero is now.
    pub(crate) fn of_keys(shared: &'a Shared, election: &'a str, at: i64) -> Self {
        let next = Some(election.as_bytes().to_vec());
        Self { shared, election, values: false, size: KEYS, at, next, strangers: Strangers::default() }
    }

    /// The revision that is read, once anything was.
    pub(crate) fn read_at(&self) -> i64 {
        self.at
    }

    /// The candidates of the next page; `None` after the last, once the strangers were counted and told of.
    ///
    /// # Errors
    /// Also when the store has forgotten the revision meanwhile: begin anew.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<KeyValue>>, BackendError> {
        let Some(first) = &self.next else {
            let Strangers { count, first } = std::mem::take(&mut self.strangers);
            self.shared.note_strangers(self.election, count, &first);
            return Ok(None);
        };
        let (found, more, read_at) = loop {
            match self.read(first).await? {
                Some(page) => break page,
                None => self.size = (self.size / FEWER).max(1),
            }
        };
        // Or a page that comes again would be read for ever.
        if !in_order(first, &found) {
            return Err(malformed("keys in order"));
        }
        self.at = read_at;
        // The first key after the last.
        let after = |last: &KeyValue| [last.key(), &[0]].concat();
        self.next = found.last().filter(|_| more).map(after);
        let (candidates, strangers): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|kv| is_candidate(self.election, kv));
        if let Some(first) = strangers.first()
            && self.strangers.count == 0
        {
            self.strangers.first = first.key().to_vec();
        }
        self.strangers.count += strangers.len() as u64;
        Ok(Some(candidates))
    }

    /// Reads from the key `first` on, and tells whether there is more, and at which revision; `None` when the answer was
    /// too large.
    async fn read(&self, first: &[u8]) -> Result<Option<(Vec<KeyValue>, bool, i64)>, BackendError> {
        let options = GetOptions::new().with_range(end_of(self.election)).with_limit(self.size);
        let options = if self.at > 0 { options.with_revision(self.at) } else { options };
        let options = &if self.values { options } else { options.with_keys_only() };
        let (at, fewer) = (self.at, self.size > 1);
        let read = self.shared.members.call("read", Call::Bulk, |client| async move {
            let mut answer = match kv(&client).get(first, Some(options.clone())).await {
                Err(error) if fewer && is_too_large(&error) => return Ok(None),
                answer => answer?,
            };
            let newest = answer.header().ok_or_else(|| malformed("header"))?.revision();
            let more = answer.more();
            Ok(Some((answer.take_kvs(), more, if at > 0 { at } else { newest })))
        });
        Ok(read.await?.value)
    }
}

/// Whether these are keys from `first` on, each after the one before it.
fn in_order(first: &[u8], found: &[KeyValue]) -> bool {
    found.first().is_none_or(|kv| kv.key() >= first) && found.is_sorted_by(|one, next| one.key() < next.key())
}

/// The first key after all that begin with `election`, whose last byte is a slash.
fn end_of(election: &str) -> Vec<u8> {
    let mut end = election.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_election_ends_before_the_next_name() {
        assert_eq!(end_of("/acme/a/"), b"/acme/a0");
        assert!(b"/acme/a/\xff\xff".to_vec() < end_of("/acme/a/"));
    }
}
