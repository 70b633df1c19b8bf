//! What others see of a candidate, and how it is written into an entry.

use std::{str, time::Duration};

use crate::{CandidateId, FencingToken};

/// The largest value a candidate can have: 64 KiB.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// What a payload looks like: `tenure/1 ID NONCE\nVALUE`, with the nonce in hexadecimal.
const MAGIC: &[u8] = b"tenure/1 ";
/// What stands behind the value when somebody has asked the candidate to resign. Behind, because an entry is known by
/// what stands before its value.
const ASKED: &[u8] = b"\n\0tenure/1 resign\0";

/// A candidate as the store shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// Who: the candidate's id, or the name of its entry when another library wrote it.
    pub id: String,
    /// What it wants others to know, an address say; at most 64 KiB.
    pub value: Vec<u8>,
    /// The token that this candidate has, or will have, as leader; `None` where
    /// the store gives the token only on winning.
    pub token: Option<FencingToken>,
    /// The session the entry belongs to, in the store's own words.
    pub session: String,
    /// How long ago the entry was made, where the store knows.
    pub age: Option<Duration>,
}

impl Candidate {
    /// A candidate read back from an entry's payload, ours or a stranger's.
    ///
    /// A payload of another library is taken whole as the value, and `entry`, the
    /// name of the entry, stands in for the id.
    pub fn decode(
        entry: &str,
        session: impl Into<String>,
        payload: &[u8],
        token: Option<FencingToken>,
    ) -> Self {
        let session = session.into();
        if let Some((id, value)) = decode(payload) {
            let value = value.strip_suffix(ASKED).unwrap_or(value);
            return Self { id: id.to_owned(), value: value.to_vec(), token, session, age: None };
        }
        Self { id: entry.to_owned(), value: payload.to_vec(), token, session, age: None }
    }

    /// The value as text, with anything that is not UTF-8 replaced.
    pub fn value_lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.value)
    }
}

/// An entry's payload for a candidate's id and value; the nonce makes it unlike any other's.
pub(crate) fn encode(id: &CandidateId, nonce: u128, value: &[u8]) -> Vec<u8> {
    [MAGIC, id.as_str().as_bytes(), format!(" {nonce:032x}\n").as_bytes(), value].concat()
}

/// The payload of an entry whose candidate is asked to resign; `None` when it is another library's, which would not
/// know what that means.
pub(crate) fn ask(payload: &[u8]) -> Option<Vec<u8>> {
    decode(payload)?;
    Some(if is_asked(payload) { payload.to_vec() } else { [payload, ASKED].concat() })
}

/// Whether the candidate with this payload has been asked to resign.
pub(crate) fn is_asked(payload: &[u8]) -> bool {
    payload.ends_with(ASKED)
}

fn decode(payload: &[u8]) -> Option<(&str, &[u8])> {
    let rest = payload.strip_prefix(MAGIC)?;
    let end = rest.iter().position(|b| *b == b'\n')?;
    let (id, nonce) = str::from_utf8(&rest[..end]).ok()?.split_once(' ')?;
    CandidateId::new(id).ok()?;
    u128::from_str_radix(nonce, 16).ok()?;
    Some((id, &rest[end + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_strangers_payload_is_its_value() {
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
            assert_eq!(ask(payload), None);
        }
    }

    proptest! {
        #[test]
        fn a_payload_gives_back_what_was_put_in(id in "[!-~]{1,255}", nonce: u128, value: Vec<u8>) {
            let payload = encode(&CandidateId::new(&id).unwrap(), nonce, &value);
            let candidate = Candidate::decode("entry", "s", &payload, None);
            prop_assert_eq!(candidate.id, id);
            prop_assert_eq!(candidate.value, value);
        }

        #[test]
        fn a_candidate_that_was_asked_to_resign_has_the_same_value(value: Vec<u8>, nonce: u128) {
            let payload = encode(&CandidateId::new("me").unwrap(), nonce, &value);
            let asked = ask(&payload).unwrap();
            prop_assert!(is_asked(&asked) && !is_asked(&payload));
            prop_assert_eq!(ask(&asked), Some(asked.clone()));
            let shown = |payload| Candidate::decode("entry", "s", payload, None);
            prop_assert_eq!(shown(&asked), shown(&payload));
        }

        #[test]
        fn no_payload_panics(payload: Vec<u8>) {
            Candidate::decode("entry", "s", &payload, None);
        }
    }
}
