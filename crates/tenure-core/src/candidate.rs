//! A candidate as others see it, and the encoding of its entry's payload.

use std::{str, time::Duration};

use crate::{CandidateId, FencingToken, name::MAX_NAME_BYTES};

/// The largest size of a candidate's value: 64 KiB.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// The start of a payload: `tenure/1 ID NONCE\nVALUE`, with the nonce in hexadecimal.
const MAGIC: &[u8] = b"tenure/1 ";
/// Follows the value when the candidate was asked to resign. It is at the end because an entry is recognized by the
/// bytes before its value.
pub(crate) const RESIGN_MARKER: &[u8] = b"\n\0tenure/1 resign\0";

/// A candidate, as read from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// The candidate's id, or the name of its entry if another library wrote it.
    pub id: String,
    /// The value that the candidate publishes, for example an address. At most 64 KiB.
    pub value: Vec<u8>,
    /// The fencing token that this candidate has, or will have, as leader. `None` if the store assigns the token only when
    /// a candidate wins.
    pub token: Option<FencingToken>,
    /// The identifier of the session that the entry belongs to, as the store's own tools show it.
    pub session: String,
    /// The time since the entry was made, if the store knows it.
    pub age: Option<Duration>,
}

impl Candidate {
    /// Decodes the payload of an entry, written by this library or another.
    ///
    /// The payload of a foreign entry becomes the value, and `entry`, the name of the entry, becomes the id. Both are
    /// truncated to the largest size that this library allows.
    pub fn decode(
        entry: &str,
        session: impl Into<String>,
        payload: &[u8],
        token: Option<FencingToken>,
    ) -> Self {
        let session = session.into();
        if let Some((id, value)) = decode(payload) {
            let value = value.strip_suffix(RESIGN_MARKER).unwrap_or(value);
            return Self { id: id.to_owned(), value: truncated(value), token, session, age: None };
        }
        let max = entry.len().min(MAX_NAME_BYTES);
        let end = (0..=max).rev().find(|end| entry.is_char_boundary(*end)).unwrap_or(0);
        let id = entry[..end].to_owned();
        Self { id, value: truncated(payload), token, session, age: None }
    }

    /// The value as text, with invalid UTF-8 replaced.
    pub fn value_lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.value)
    }
}

/// The value, truncated to the largest size allowed: another library may have written a larger one.
fn truncated(value: &[u8]) -> Vec<u8> {
    value[..value.len().min(MAX_VALUE_BYTES)].to_vec()
}

/// Encodes a candidate's id and value as the payload of an entry. The nonce makes it unique.
pub(crate) fn encode(id: &CandidateId, nonce: u128, value: &[u8]) -> Vec<u8> {
    [MAGIC, id.as_str().as_bytes(), format!(" {nonce:032x}\n").as_bytes(), value].concat()
}

/// Marks the payload of an entry whose candidate is asked to resign. `None` for a foreign payload: another library would not
/// understand the marker.
pub(crate) fn mark_resign_requested(payload: &[u8]) -> Option<Vec<u8>> {
    let (_, value) = decode(payload)?;
    Some(if value.ends_with(RESIGN_MARKER) { payload.to_vec() } else { [payload, RESIGN_MARKER].concat() })
}

/// Whether the candidate with this payload was asked to resign. Only the part after the first line is checked, because the
/// newline that ends that line could complete the marker.
pub(crate) fn is_resign_requested(payload: &[u8]) -> bool {
    decode(payload).is_some_and(|(_, value)| value.ends_with(RESIGN_MARKER))
}

fn decode(payload: &[u8]) -> Option<(&str, &[u8])> {
    decode_all(payload).map(|(id, _, value)| (id, value))
}

/// The nonce of the request that created the entry with this payload; `None` for a foreign payload.
pub(crate) fn nonce_of(payload: &[u8]) -> Option<u128> {
    decode_all(payload).map(|(_, nonce, _)| nonce)
}

fn decode_all(payload: &[u8]) -> Option<(&str, u128, &[u8])> {
    let rest = payload.strip_prefix(MAGIC)?;
    let end = rest.iter().position(|b| *b == b'\n')?;
    let (id, nonce) = str::from_utf8(&rest[..end]).ok()?.split_once(' ')?;
    CandidateId::new(id).ok()?;
    let nonce = u128::from_str_radix(nonce, 16).ok()?;
    Some((id, nonce, &rest[end + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_foreign_payload_becomes_the_value() {
        for payload in [
            &b"10.0.0.1"[..],
            b"",
            b"tenure/1 no newline",
            b"tenure/1 \n",
            b"tenure/1 a\n",
            b"tenure/1 a b c\n",
            b"tenure/1 \xff\n",
            b"\xff\xfe",
        ] {
            let candidate = Candidate::decode("7f2a", "7f2a", payload, None);
            assert_eq!((candidate.id.as_str(), candidate.value.as_slice()), ("7f2a", payload));
            assert_eq!(mark_resign_requested(payload), None);
        }
    }

    /// The marker begins with a newline, and a newline also precedes the value.
    #[test]
    fn a_value_that_is_a_part_of_the_marker_is_no_resign_request() {
        let payload = encode(&CandidateId::new("me").unwrap(), 1, &RESIGN_MARKER[1..]);
        assert!(!is_resign_requested(&payload));
        let marked = mark_resign_requested(&payload).unwrap();
        assert!(is_resign_requested(&marked));
        assert_eq!(Candidate::decode("entry", "s", &marked, None).value, &RESIGN_MARKER[1..]);
    }

    #[test]
    fn a_foreign_entry_has_no_resign_request() {
        assert!(!is_resign_requested(RESIGN_MARKER));
        assert!(!is_resign_requested(&[b"10.0.0.1", RESIGN_MARKER].concat()));
    }

    #[test]
    fn a_foreign_candidate_is_truncated_to_what_this_library_allows() {
        let name = "é".repeat(1000);
        let too_large = encode(&CandidateId::new("me").unwrap(), 7, &vec![7; 1 << 20]);
        for (payload, id) in [(too_large, "me"), (vec![7; 1 << 20], &name[..254])] {
            let shown = Candidate::decode(&name, "s", &payload, None);
            assert_eq!((shown.id.as_str(), shown.value), (id, vec![7; MAX_VALUE_BYTES]));
        }
    }

    proptest! {
        #[test]
        fn encode_and_decode_are_inverse(id in "[!-~]{1,255}", nonce: u128, value: Vec<u8>) {
            let payload = encode(&CandidateId::new(&id).unwrap(), nonce, &value);
            let candidate = Candidate::decode("entry", "s", &payload, None);
            prop_assert_eq!(candidate.id, id);
            prop_assert_eq!(candidate.value, value);
        }

        #[test]
        fn a_candidate_that_was_asked_to_resign_has_the_same_value(value: Vec<u8>, nonce: u128) {
            let payload = encode(&CandidateId::new("me").unwrap(), nonce, &value);
            let marked = mark_resign_requested(&payload).unwrap();
            prop_assert!(is_resign_requested(&marked) && !is_resign_requested(&payload));
            prop_assert_eq!(mark_resign_requested(&marked), Some(marked.clone()));
            let decoded = |payload| Candidate::decode("entry", "s", payload, None);
            prop_assert_eq!(decoded(&marked), decoded(&payload));
        }

        #[test]
        fn no_payload_panics(payload: Vec<u8>) {
            Candidate::decode("entry", "s", &payload, None);
        }
    }
}
