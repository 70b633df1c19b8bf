//! The payloads of entries: tenure's own round-trip, and foreign ones are not taken for tenure's.
//!
//! The bytes are a foreign payload; split at the first newline, they are also an id and a value of a tenure candidate.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tenure::{
    Candidate, CandidateId, Config, ElectionName,
    spi::{EntryRequest, is_resign_requested, mark_resign_requested},
};

/// A name that no tenure candidate can have, so that an entry that shows it was read as a foreign one.
const FOREIGN_CANDIDATE: &str = "no id";

fuzz_target!(|data: &[u8]| {
    read(data);
    let cut = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (id, value) = (&data[..cut], data.get(cut + 1..).unwrap_or_default());
    if let Some(id) = str::from_utf8(id).ok().and_then(|id| CandidateId::new(id).ok()) {
        written(id, value);
    }
});

fn shown(payload: &[u8]) -> Candidate {
    Candidate::decode(FOREIGN_CANDIDATE, "session", payload, None)
}

fn read(payload: &[u8]) {
    let candidate = shown(payload);
    assert_eq!((candidate.session.as_str(), candidate.token, candidate.age), ("session", None, None));
    if let Ok(text) = str::from_utf8(&candidate.value) {
        assert_eq!(candidate.value_lossy(), text);
    }
    if candidate.id == FOREIGN_CANDIDATE {
        assert_eq!(candidate.value, payload);
        assert_eq!(
            (mark_resign_requested(payload), is_resign_requested(payload)),
            (None, false),
            "a stranger is asked to resign"
        );
        return;
    }
    CandidateId::new(&candidate.id).expect("a candidate of ours has a legal id");
    assert!(
        payload.windows(candidate.value.len().max(1)).any(|part| part == candidate.value)
            || candidate.value.is_empty()
    );
    let wish = mark_resign_requested(payload).expect("a candidate of ours can be asked");
    assert!(is_resign_requested(&wish));
    assert_eq!(mark_resign_requested(&wish).as_ref(), Some(&wish), "asked twice, it is not the same");
    assert_eq!(is_resign_requested(payload), wish == payload);
    assert_eq!(shown(&wish), candidate, "who is asked shows another value");
}

fn written(candidate: CandidateId, value: &[u8]) {
    if Config::new().with_value(value).validate().is_err() {
        return;
    }
    let election = ElectionName::new("e").expect("it is legal");
    let request = EntryRequest { election, candidate, value: value.into(), nonce: value.len() as u128 };
    let payload = request.payload();
    let back = shown(&payload);
    assert_eq!((back.id.as_str(), back.value.as_slice()), (request.candidate.as_str(), value));
    assert!(!is_resign_requested(&payload), "a candidate is asked to resign from the start");
    let other = EntryRequest { nonce: !request.nonce, ..request.clone() };
    assert_ne!(other.payload(), payload, "two entries have one payload");
    read(&payload);
}
