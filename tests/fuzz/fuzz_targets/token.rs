//! Fencing tokens: the same number as text, in JSON and in a header; and a fence never decreases.
//!
//! Each line is a token. All lines are also the header values of one request, and are offered to one fence in turn.

#![no_main]

use axum::http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tenure::{Fence, FencingToken};
use tenure_axum::{FENCING_TOKEN, FencingRejection, test_support::token};

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    let (fence, mut highest) = (Fence::new(), None);
    for line in data.split(|byte| *byte == b'\n') {
        let read = str::from_utf8(line).ok().and_then(as_text);
        if let Ok(value) = HeaderValue::from_bytes(line) {
            as_header(&value);
            headers.append(FENCING_TOKEN, value);
        }
        let Some(given) = read else { continue };
        match fence.admit(given) {
            Ok(()) => {
                assert!(highest.is_none_or(|highest| highest <= given), "the fence went back");
                highest = Some(given);
            }
            Err(stale) => {
                assert!(stale.given == given && Some(stale.highest) == highest && given < stale.highest)
            }
        }
        assert_eq!(fence.highest(), highest);
    }
    match (headers.len(), token(&headers)) {
        (0, outcome) => assert_eq!(outcome, Err(FencingRejection::Missing)),
        (1, _) => {}
        (_, outcome) => assert_eq!(outcome, Err(FencingRejection::Several)),
    }
});

/// The token that this is, if it is one: the same by every way.
fn as_text(text: &str) -> Option<FencingToken> {
    let json = serde_json::from_str::<FencingToken>(text);
    let token = match text.parse::<FencingToken>() {
        Ok(token) => token,
        Err(error) => {
            assert!(
                json.is_err() || text.trim_matches([' ', '\t', '\r']) != text,
                "only JSON takes {text:?}"
            );
            let said = error.to_string();
            assert!(said.len() < 600 && !said.chars().any(char::is_control), "{said:?}");
            return None;
        }
    };
    let printed = token.to_string();
    assert_eq!(text.trim_start_matches('0'), printed);
    assert_eq!((printed.parse().as_ref(), FencingToken::new(token.get())), (Ok(&token), Some(token)));
    let written = serde_json::to_string(&token).expect("a number can be written");
    assert_eq!((written.as_str(), serde_json::from_str(&written).ok()), (printed.as_str(), Some(token)));
    assert_eq!(json.ok(), (text == printed).then_some(token));
    Some(token)
}

/// A header is read as its text is, but for the white space around it that HTTP allows.
fn as_header(value: &HeaderValue) {
    let headers = HeaderMap::from_iter([(FENCING_TOKEN, value.clone())]);
    let text = str::from_utf8(value.as_bytes()).ok();
    let expected = text.and_then(|text| text.trim_matches([' ', '\t']).parse::<FencingToken>().ok());
    match token(&headers) {
        Ok(token) => {
            assert_eq!(Some(token), expected, "{value:?}");
            let back = HeaderMap::from_iter([(FENCING_TOKEN, HeaderValue::from(token.get()))]);
            assert_eq!(tenure_axum::test_support::token(&back), Ok(token));
        }
        Err(rejection) => {
            assert_eq!(expected, None, "{value:?}");
            assert!(
                matches!(rejection, FencingRejection::Malformed(_)) && !rejection.to_string().contains('\n')
            );
        }
    }
}
