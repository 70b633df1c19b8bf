//! Reads a key prefix in parts.
//!
//! Other clients may have written hundreds of thousands of keys below it, or values as large as etcd accepts. So
//! every request has a limit on the number of keys, and one whose response is still too large is repeated with a
//! lower limit.

use std::sync::Arc;

use etcd_client::{GetOptions, KeyValue};
use tenure_core::spi::BackendError;

use crate::transport::{
    error::{TOO_LARGE, malformed, status_contains},
    members::{CallClass, Members},
    request::kv,
};

/// The limit of keys per request, without their values.
const MAX_KEYS_PER_PAGE: i64 = 2048;
/// The limit of keys per request with their values, which may have 64 KiB each.
const MAX_VALUES_PER_PAGE: i64 = 256;
/// What the limit is divided by when a response was too large.
const PAGE_SHRINK_FACTOR: i64 = 8;

/// The keys below a prefix, in order, all as of one revision.
pub(crate) struct Pages<'a> {
    members: &'a Arc<Members>,
    prefix: &'a str,
    with_values: bool,
    page_size: i64,
    /// The revision to read at; zero for the newest.
    revision: i64,
    /// The first key of the next page; `None` after the last page.
    next_key: Option<Vec<u8>>,
}

/// One response: its keys, whether more follow, and the revision that was read.
type Page = (Vec<KeyValue>, bool, i64);

impl<'a> Pages<'a> {
    /// All keys with their values, as of now. `prefix` ends with a slash.
    pub(crate) fn with_values(members: &'a Arc<Members>, prefix: &'a str) -> Self {
        Self {
            with_values: true,
            page_size: MAX_VALUES_PER_PAGE,
            ..Self::keys_at_revision(members, prefix, 0)
        }
    }

    /// All keys without their values, as of `revision`; zero for now. `prefix` ends with a slash.
    pub(crate) fn keys_at_revision(members: &'a Arc<Members>, prefix: &'a str, revision: i64) -> Self {
        let next_key = Some(prefix.as_bytes().to_vec());
        Self { members, prefix, with_values: false, page_size: MAX_KEYS_PER_PAGE, revision, next_key }
    }

    /// The revision that is read, after the first page was returned.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// The keys of the next page; `None` after the last.
    ///
    /// # Errors
    /// Also when etcd has compacted the revision in the meantime: start again.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<KeyValue>>, BackendError> {
        let Some(first) = &self.next_key else { return Ok(None) };
        let (found, more, revision) = loop {
            match self.read(first).await? {
                Some(page) => break page,
                None => self.page_size = (self.page_size / PAGE_SHRINK_FACTOR).max(1),
            }
        };
        // A store that repeats a page would otherwise be read for ever.
        if !is_in_order(first, &found) {
            return Err(malformed("keys in order"));
        }
        self.revision = revision;
        // The first possible key after the last one.
        let after = |last: &KeyValue| [last.key(), &[0]].concat();
        self.next_key = found.last().filter(|_| more).map(after);
        Ok(Some(found))
    }

    /// Reads the page that starts at the key `first`; `None` when the response was too large.
    async fn read(&self, first: &[u8]) -> Result<Option<Page>, BackendError> {
        let options = GetOptions::new().with_range(range_end(self.prefix)).with_limit(self.page_size);
        let options = if self.revision > 0 { options.with_revision(self.revision) } else { options };
        let options = &if self.with_values { options } else { options.with_keys_only() };
        let (revision, can_shrink) = (self.revision, self.page_size > 1);
        let read = self.members.call("read", CallClass::Bulk, |client| async move {
            let mut response = match kv(&client).get(first, Some(options.clone())).await {
                Err(error) if can_shrink && status_contains(&error, TOO_LARGE) => return Ok((None, None)),
                response => response?,
            };
            let header = response.take_header().ok_or_else(|| malformed("header"))?;
            let revision = if revision > 0 { revision } else { header.revision() };
            let more = response.more();
            Ok((Some(header), Some((response.take_kvs(), more, revision))))
        });
        read.await
    }
}

/// Whether these are keys from `first` on, each after the one before it.
fn is_in_order(first: &[u8], found: &[KeyValue]) -> bool {
    found.first().is_none_or(|kv| kv.key() >= first) && found.is_sorted_by(|one, next| one.key() < next.key())
}

/// The first key after all that begin with `prefix`, whose last byte is a slash.
fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_name() {
        assert_eq!(range_end("/acme/a/"), b"/acme/a0");
        assert!(b"/acme/a/\xff\xff".to_vec() < range_end("/acme/a/"));
    }
}
