//! What others see of a candidate, and how it is written into an entry.

use std::{str, time::Duration};

use crate::{CandidateId, Error, FencingToken, InvalidConfig, name::MAX_BYTES as MAX_ID_BYTES};

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
    /// A payload of another library is taken as the value, and `entry`, the name of the entry, stands
    /// in for the id: as much of both as a candidate of ours could have.
    pub fn decode(
        entry: &str,
        session: impl Into<String>,
        payload: &[u8],
        token: Option<FencingToken>,
    ) -> Self {
        let session = session.into();
        if let Some((id, value)) = decode(payload) {
            let value = value.strip_suffix(ASKED).unwrap_or(value);
            return Self { id: id.to_owned(), value: bounded(value), token, session, age: None };
        }
        let most = entry.len().min(MAX_ID_BYTES);
        let end = (0..=most).rev().find(|end| entry.is_char_boundary(*end)).unwrap_or(0);
        let id = entry[..end].to_owned();
        Self { id, value: bounded(payload), token, session, age: None }
    }

    /// The value as text, with anything that is not UTF-8 replaced.
    pub fn value_lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.value)
    }
}

/// As much of what a stranger wrote as a value can have.
fn bounded(value: &[u8]) -> Vec<u8> {
    value[..value.len().min(MAX_VALUE_BYTES)].to_vec()
}

/// An entry's payload for a candidate's id and value; the nonce makes it unlike any other's.
pub(crate) fn encode(id: &CandidateId, nonce: u128, value: &[u8]) -> Vec<u8> {
    [MAGIC, id.as_str().as_bytes(), format!(" {nonce:032x}\n").as_bytes(), value].concat()
}

/// The payload of an entry whose candidate is asked to resign; `None` when it is another library's, which would not
/// know what that means.
pub(crate) fn mark_resign_requested(payload: &[u8]) -> Option<Vec<u8>> {
    let (_, value) = decode(payload)?;
    Some(if value.ends_with(ASKED) { payload.to_vec() } else { [payload, ASKED].concat() })
}

/// Whether the candidate with this payload has been asked to resign: in its value, for the line before could end as the
/// mark begins.
pub(crate) fn is_resign_requested(payload: &[u8]) -> bool {
    decode(payload).is_some_and(|(_, value)| value.ends_with(ASKED))
}

/// Checks what a candidate wants others to know.
///
/// # Errors
/// When it is too large, or would be taken for a wish that the candidate may resign.
pub(crate) fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Error::ValueTooLarge { bytes: value.len() });
    }
    if value.ends_with(ASKED) {
        return Err(InvalidConfig::Value.into());
    }
    Ok(())
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
            assert_eq!(mark_resign_requested(payload), None);
        }
    }

    /// The mark of a wish begins with a newline, and so does the value that comes after the first line.
    #[test]
    fn a_value_that_looks_like_a_part_of_the_mark_asks_nobody_to_resign() {
        let payload = encode(&CandidateId::new("me").unwrap(), 1, &ASKED[1..]);
        assert!(!is_resign_requested(&payload));
        let wish = mark_resign_requested(&payload).unwrap();
        assert!(is_resign_requested(&wish));
        assert_eq!(Candidate::decode("entry", "s", &wish, None).value, &ASKED[1..]);
    }

    #[test]
    fn a_stranger_is_asked_for_nothing() {
        assert!(!is_resign_requested(ASKED));
        assert!(!is_resign_requested(&[b"10.0.0.1", ASKED].concat()));
    }

    #[test]
    fn no_candidate_can_be_asked_by_its_own_value() {
        let refused = check_value(&[b"10.0.0.1", ASKED].concat()).unwrap_err().to_string();
        assert!(refused.contains("wish that the candidate may resign"), "{refused}");
        check_value(&[ASKED, b"10.0.0.1"].concat()).unwrap();
    }

    #[test]
    fn a_stranger_is_shown_no_larger_than_a_candidate_of_ours_can_be() {
        let name = "é".repeat(1000);
        let ours = encode(&CandidateId::new("me").unwrap(), 7, &vec![7; 1 << 20]);
        for (payload, id) in [(ours, "me"), (vec![7; 1 << 20], &name[..254])] {
            let shown = Candidate::decode(&name, "s", &payload, None);
            assert_eq!((shown.id.as_str(), shown.value), (id, vec![7; MAX_VALUE_BYTES]));
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
            let asked = mark_resign_requested(&payload).unwrap();
            prop_assert!(is_resign_requested(&asked) && !is_resign_requested(&payload));
            prop_assert_eq!(mark_resign_requested(&asked), Some(asked.clone()));
            let shown = |payload| Candidate::decode("entry", "s", payload, None);
            prop_assert_eq!(shown(&asked), shown(&payload));
        }

        #[test]
        fn no_payload_panics(payload: Vec<u8>) {
            Candidate::decode("entry", "s", &payload, None);
        }
    }
}
