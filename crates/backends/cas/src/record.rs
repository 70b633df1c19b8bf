//! The records, and how they are written: one line of JSON, for people to read.
//!
//! Every body has a nonce of its own, so that no two bodies of a key are equal (hazard C2: an ETag is a hash of the body).

use std::{fmt, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use tenure_core::{
    CandidateId, Config, ElectionName, MAX_VALUE_BYTES,
    spi::{BackendError, BackendErrorKind},
};
use thiserror::Error;

use crate::{
    rules::{CasRule, is_disabled},
    store::Epoch,
};

/// The largest record that is read, in bytes.
const MAX_RECORD_BYTES: usize = 512 * 1024;
/// The largest record of an election that a candidate may make, in bytes. The stores with the lowest limits allow 400 000 to 512 KiB;
/// a resign request adds a few bytes.
pub(crate) const MAX_ELECTION_BYTES: usize = 384 * 1024;
/// The largest number of slots of an election.
pub(crate) const MAX_SLOTS: usize = 500;

/// The largest beat and the largest fencing token. No store reaches them; records beyond it are refused, so that no number overflows.
pub(crate) const MAX_NUMBER: u64 = 1 << 62;

const SESSION_FORMAT: &str = "tenure-session/1";
const ELECTION_FORMAT: &str = "tenure-election/1";
const STORE_FORMAT: &str = "tenure-store/1";

/// The key of the record that identifies the store.
pub(crate) const STORE_KEY: &str = "store";
pub(crate) const SESSIONS: &str = "s/";
pub(crate) const ELECTIONS: &str = "e/";

/// A record that cannot be used.
#[derive(Debug, Error)]
#[error("cannot use the record {key:?}: {reason}")]
pub(crate) struct RecordError {
    key: String,
    reason: String,
}

impl From<RecordError> for BackendError {
    fn from(error: RecordError) -> Self {
        Self::with_source(BackendErrorKind::Invalid, error.to_string(), error)
    }
}

/// Makes the error of a record that cannot be used one that is retried. For the record of another candidate's session, which somebody may
/// repair or remove: those who wait behind it are not refused for that.
pub(crate) fn retry_undecodable(error: BackendError) -> BackendError {
    match error.cause().is_some_and(|cause| cause.is::<RecordError>()) {
        true => BackendError::new(BackendErrorKind::Unavailable, error.to_string()),
        false => error,
    }
}

fn refuse(key: &str, reason: impl fmt::Display) -> RecordError {
    RecordError { key: key.to_owned(), reason: reason.to_string() }
}

/// 128 random bits, written in hexadecimal. Identifies a body, or the request that a slot is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Nonce(pub(crate) u128);

impl Nonce {
    pub(crate) fn random() -> Self {
        let mut bytes = [0; 16];
        match getrandom::fill(&mut bytes) {
            Ok(()) => Self(u128::from_ne_bytes(bytes)),
            // The operating system has none, perhaps early at boot in a sandbox.
            Err(_) => Self(fastrand::u128(..)),
        }
    }

    /// The nonce of a new body (hazard C2).
    pub(crate) fn of_body() -> Self {
        if is_disabled(CasRule::NonceInBody) { Self(0) } else { Self::random() }
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

fn hexadecimal(text: &str) -> Option<u128> {
    let is_canonical = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if is_canonical { u128::from_str_radix(text, 16).ok() } else { None }
}

/// The id of a session: 128 random bits in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SessionId(Arc<str>);

impl SessionId {
    pub(crate) fn random() -> Self {
        Self(Nonce::random().to_string().into())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        hexadecimal(text).map(|_| Self(text.into()))
    }

    pub(crate) fn key(&self) -> String {
        format!("{SESSIONS}{}", self.0)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// A number from 0 to 255, to spread sessions.
    pub(crate) fn shard(&self) -> usize {
        self.0.get(..2).and_then(|digits| usize::from_str_radix(digits, 16).ok()).unwrap_or_default()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key of an election's record.
pub(crate) fn election_key(election: &ElectionName) -> String {
    format!("{ELECTIONS}{election}")
}

/// The record of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) state: State,
    pub(crate) nonce: Nonce,
}

/// Whether a session lives. Once it has ended, it never lives again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It has sent so many heartbeats, and has this TTL.
    Active {
        beat: u64,
        ttl: Duration,
    },
    Ended,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSession<'a> {
    format: &'a str,
    state: WireState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beat: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    nonce: &'a str,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum WireState {
    #[serde(rename = "live")]
    Active,
    Ended,
}

impl Session {
    pub(crate) fn live(beat: u64, ttl: Duration) -> Self {
        Self { state: State::Active { beat, ttl }, nonce: Nonce::of_body() }
    }

    pub(crate) fn ended() -> Self {
        Self { state: State::Ended, nonce: Nonce::of_body() }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let (state, beat, ttl_ms) = match self.state {
            State::Active { beat, ttl } => (WireState::Active, Some(beat), Some(milliseconds(ttl))),
            State::Ended => (WireState::Ended, None, None),
        };
        let nonce = self.nonce.to_string();
        json(&WireSession { format: SESSION_FORMAT, state, beat, ttl_ms, nonce: &nonce })
    }

    /// # Errors
    /// When `body` is no record of a session in this format.
    pub(crate) fn decode(key: &str, body: &[u8]) -> Result<Self, RecordError> {
        let wire: WireSession<'_> = parse(key, body, SESSION_FORMAT)?;
        let nonce = nonce(key, wire.nonce)?;
        let state = match (wire.state, wire.beat, wire.ttl_ms) {
            (WireState::Active, Some(beat), Some(ttl)) => {
                let ttl = Duration::from_millis(ttl);
                if ttl.is_zero() || ttl > Config::MAX_TTL {
                    return Err(refuse(key, "its TTL is zero or longer than a day"));
                }
                if beat > MAX_NUMBER {
                    return Err(refuse(key, "its beat is too large"));
                }
                State::Active { beat, ttl }
            }
            (WireState::Ended, None, None) => State::Ended,
            _ => return Err(refuse(key, "its state does not agree with its other fields")),
        };
        Ok(Self { state, nonce })
    }
}

fn milliseconds(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}

/// The record of an election. The first slot leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Election {
    /// The fencing token of the head; of the last one, if there is none.
    pub(crate) token: u64,
    pub(crate) queue: Vec<Slot>,
}

/// A candidate's place in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) session: SessionId,
    /// The nonce of the request to enter.
    pub(crate) nonce: Nonce,
    pub(crate) candidate: CandidateId,
    pub(crate) value: Arc<[u8]>,
    pub(crate) resign_requested: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireElection {
    format: String,
    token: u64,
    nonce: String,
    queue: Vec<WireSlot>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSlot {
    candidate: String,
    session: String,
    nonce: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    resign_requested: bool,
}

impl Election {
    /// Encodes the record, with a nonce of its own.
    pub(crate) fn encode(&self) -> Vec<u8> {
        json(&WireElection {
            format: ELECTION_FORMAT.to_owned(),
            token: self.token,
            nonce: Nonce::of_body().to_string(),
            queue: self.queue.iter().map(WireSlot::from).collect(),
        })
    }

    /// # Errors
    /// When `body` is no record of an election in this format.
    pub(crate) fn decode(key: &str, body: &[u8]) -> Result<Self, RecordError> {
        let wire: WireElection = parse(key, body, ELECTION_FORMAT)?;
        nonce(key, &wire.nonce)?;
        let queue: Vec<_> = wire.queue.into_iter().map(|slot| slot.read(key)).collect::<Result<_, _>>()?;
        if wire.token == 0 && !queue.is_empty() {
            return Err(refuse(key, "it has a leader without a token"));
        }
        if wire.token > MAX_NUMBER {
            return Err(refuse(key, "its token is too large"));
        }
        Ok(Self { token: wire.token, queue })
    }
}

impl From<&Slot> for WireSlot {
    fn from(slot: &Slot) -> Self {
        let text = std::str::from_utf8(&slot.value).ok().filter(|text| !text.contains(char::is_control));
        let (value, value_base64) = match text {
            Some("") => (None, None),
            Some(text) => (Some(text.to_owned()), None),
            None => (None, Some(STANDARD.encode(&slot.value))),
        };
        Self {
            candidate: slot.candidate.to_string(),
            session: slot.session.to_string(),
            nonce: slot.nonce.to_string(),
            value,
            value_base64,
            resign_requested: slot.resign_requested,
        }
    }
}

impl WireSlot {
    fn read(self, key: &str) -> Result<Slot, RecordError> {
        let value = match (self.value, self.value_base64) {
            (None, None) => Vec::new(),
            (Some(text), None) => text.into_bytes(),
            (None, Some(text)) => STANDARD.decode(text).map_err(|error| refuse(key, error))?,
            (Some(_), Some(_)) => return Err(refuse(key, "a candidate has two values")),
        };
        if value.len() > MAX_VALUE_BYTES {
            return Err(refuse(key, "a candidate's value is too large"));
        }
        Ok(Slot {
            session: SessionId::parse(&self.session)
                .ok_or_else(|| refuse(key, "the id of a session is not 32 hexadecimal digits"))?,
            nonce: nonce(key, &self.nonce)?,
            candidate: CandidateId::new(&self.candidate).map_err(|error| refuse(key, error))?,
            value: value.into(),
            resign_requested: self.resign_requested,
        })
    }
}

/// The record of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreRecord {
    /// Which store it is.
    pub(crate) id: Nonce,
    /// The last epoch in which candidates may lead: no leader of an earlier one is left (rule 7).
    pub(crate) settled: Epoch,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireStore<'a> {
    format: &'a str,
    id: &'a str,
    #[serde(default, skip_serializing_if = "is_zero")]
    settled: u64,
    nonce: &'a str,
}

impl StoreRecord {
    /// The record of a store that has none, with a new identity.
    pub(crate) fn new() -> Self {
        Self { id: Nonce::random(), settled: Epoch::default() }
    }

    /// Encodes the record, with a nonce of its own.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (id, nonce) = (self.id.to_string(), Nonce::of_body().to_string());
        json(&WireStore { format: STORE_FORMAT, id: &id, settled: self.settled.0, nonce: &nonce })
    }

    /// # Errors
    /// When `body` is no record of a store in this format.
    pub(crate) fn decode(body: &[u8]) -> Result<Self, RecordError> {
        let wire: WireStore<'_> = parse(STORE_KEY, body, STORE_FORMAT)?;
        nonce(STORE_KEY, wire.nonce)?;
        Ok(Self { id: nonce(STORE_KEY, wire.id)?, settled: Epoch(wire.settled) })
    }
}

fn nonce(key: &str, text: &str) -> Result<Nonce, RecordError> {
    hexadecimal(text).map(Nonce).ok_or_else(|| refuse(key, "a nonce is not 32 hexadecimal digits"))
}

fn json(record: &impl Serialize) -> Vec<u8> {
    // Structures of text and numbers always serialize.
    serde_json::to_vec(record).unwrap_or_default()
}

fn parse<'a, T: Deserialize<'a>>(key: &str, body: &'a [u8], format: &str) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Format<'a> {
        format: &'a str,
    }
    if body.len() > MAX_RECORD_BYTES {
        return Err(refuse(key, format!("it has more than {MAX_RECORD_BYTES} bytes")));
    }
    let found = serde_json::from_slice::<Format<'_>>(body)
        .map_err(|error| refuse(key, format!("tenure did not write it ({error})")))?;
    if found.format != format {
        let (family, _) = format.split_once('/').unwrap_or((format, ""));
        let reason = match found.format.split_once('/') {
            Some((name, _)) if name == family => "a newer version of tenure wrote it; update this program",
            _ => "it is of another kind",
        };
        return Err(refuse(key, reason));
    }
    serde_json::from_slice(body).map_err(|error| refuse(key, error))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(value: &[u8]) -> Slot {
        Slot {
            session: SessionId::random(),
            nonce: Nonce::random(),
            candidate: CandidateId::new("host-1").unwrap(),
            value: value.into(),
            resign_requested: false,
        }
    }

    #[test]
    fn records_are_text_that_people_read() {
        let session =
            Session { state: State::Active { beat: 7, ttl: Duration::from_secs(10) }, nonce: Nonce(0xab) };
        assert_eq!(
            String::from_utf8(session.encode()).unwrap(),
            r#"{"format":"tenure-session/1","state":"live","beat":7,"ttl_ms":10000,"nonce":"000000000000000000000000000000ab"}"#
        );
        let text =
            String::from_utf8(Election { token: 3, queue: vec![slot(b"10.0.0.1:80")] }.encode()).unwrap();
        assert!(
            text.contains(r#""candidate":"host-1""#) && text.contains(r#""value":"10.0.0.1:80""#),
            "{text}"
        );
    }

    /// Hazard C2: the same content is never the same bytes.
    #[test]
    fn equal_records_have_different_bodies() {
        let election = Election { token: 3, queue: vec![slot(b"")] };
        assert_ne!(election.encode(), election.encode());
        assert_ne!(Session::ended().encode(), Session::ended().encode());
        let ttl = Duration::from_secs(1);
        assert_ne!(Session::live(1, ttl).encode(), Session::live(1, ttl).encode());
    }

    #[test]
    fn what_tenure_did_not_write_is_refused_in_words() {
        let id = "0".repeat(32);
        for (body, said) in [
            (String::new(), "tenure did not write it"),
            ("10.0.0.1".to_owned(), "tenure did not write it"),
            ("{}".to_owned(), "tenure did not write it"),
            (r#"{"format":"tenure-session/2"}"#.to_owned(), "a newer version of tenure wrote it"),
            (r#"{"format":"tenure-election/1"}"#.to_owned(), "it is of another kind"),
            (format!(r#"{{"format":"tenure-session/1","state":"live","nonce":"{id}"}}"#), "does not agree"),
            (
                format!(
                    r#"{{"format":"tenure-session/1","state":"live","beat":1,"ttl_ms":0,"nonce":"{id}"}}"#
                ),
                "TTL",
            ),
            (
                format!(
                    r#"{{"format":"tenure-session/1","state":"live","beat":{},"ttl_ms":1,"nonce":"{id}"}}"#,
                    MAX_NUMBER + 1
                ),
                "beat is too large",
            ),
            (format!(r#"{{"format":"tenure-session/1","state":"gone","nonce":"{id}"}}"#), "unknown variant"),
            (r#"{"format":"tenure-session/1","state":"ended","nonce":"7"}"#.to_owned(), "32 hexadecimal"),
            (" ".repeat(MAX_RECORD_BYTES + 1), "more than 524288 bytes"),
        ] {
            let error = BackendError::from(Session::decode("s/x", body.as_bytes()).unwrap_err());
            assert_eq!(error.kind(), BackendErrorKind::Invalid);
            let text = error.to_string();
            assert!(text.starts_with("cannot use the record \"s/x\": ") && text.contains(said), "{text}");
        }
        let election = |slot: &str, token| {
            let body = format!(
                r#"{{"format":"tenure-election/1","token":{token},"nonce":"{id}","queue":[{slot}]}}"#
            );
            Election::decode("e/x", body.as_bytes()).unwrap_err().to_string()
        };
        let slot = |candidate: &str, session: &str, value: &str| {
            format!(r#"{{"candidate":"{candidate}","session":"{session}","nonce":"{id}"{value}}}"#)
        };
        for (slot, token, said) in [
            (slot("a", "../e/x", ""), 1, "32 hexadecimal"),
            (slot("", &id, ""), 1, "illegal candidate id"),
            (slot("a", &id, r#","value_base64":"?""#), 1, "Invalid symbol"),
            (slot("a", &id, r#","value":"a","value_base64":"YQ==""#), 1, "two values"),
            (slot("a", &id, r#","admin":true"#), 1, "unknown field"),
            (slot("a", &id, ""), 0, "without a token"),
            (slot("a", &id, ""), MAX_NUMBER + 1, "token is too large"),
        ] {
            assert!(election(&slot, token).contains(said), "{}", election(&slot, token));
        }
    }

    #[test]
    fn a_store_has_an_identity_and_a_settled_epoch() {
        let store = StoreRecord { settled: Epoch(7), ..StoreRecord::new() };
        assert_eq!(StoreRecord::decode(&store.encode()).unwrap(), store);
        assert_ne!(store.encode(), store.encode());
        assert_ne!(StoreRecord::new().id, StoreRecord::new().id);
        StoreRecord::decode(b"{}").unwrap_err();
    }

    proptest! {
        #[test]
        fn elections_are_read_as_they_were_written(
            token in 1..=MAX_NUMBER,
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5),
            resign: bool,
        ) {
            let queue = values.iter().map(|value| Slot { resign_requested: resign, ..slot(value) }).collect();
            let election = Election { token, queue };
            prop_assert_eq!(Election::decode("e/x", &election.encode()).unwrap(), election);
        }

        #[test]
        fn sessions_are_read_as_they_were_written(beat in 0..=MAX_NUMBER, ttl in 1_u64..86_400_000, lives: bool) {
            let session = if lives { Session::live(beat, Duration::from_millis(ttl)) } else { Session::ended() };
            prop_assert_eq!(Session::decode("s/x", &session.encode()).unwrap(), session);
        }

        /// Whatever follows the format is read or refused.
        #[test]
        fn no_body_panics(body: Vec<u8>, text: String, number: u64, format in 0_usize..3) {
            let format = [SESSION_FORMAT, ELECTION_FORMAT, STORE_FORMAT][format];
            let fields = format!(r#"{{"format":"{format}","beat":{number},"token":{number},{text}}}"#);
            for body in [&body[..], text.as_bytes(), fields.as_bytes()] {
                for error in [
                    Session::decode("s/x", body).err(),
                    Election::decode("e/x", body).err(),
                    StoreRecord::decode(body).err(),
                ] {
                    // None of these is a record.
                    prop_assert!(error.is_some_and(|error| !error.reason.is_empty()));
                }
            }
        }

        /// Any change of one byte is read as something else or refused, and never panics.
        #[test]
        fn a_damaged_body_does_not_panic(at: prop::sample::Index, byte: u8) {
            let mut body = Election { token: 1, queue: vec![slot(b"v"), slot(&[0, 255])] }.encode();
            let at = at.index(body.len());
            body[at] = byte;
            let _ = Election::decode("e/x", &body);
        }
    }
}
