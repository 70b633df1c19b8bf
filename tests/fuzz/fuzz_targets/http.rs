//! Forwarding by a follower: a request goes to the leader unchanged, or is refused.
//!
//! The first line is the leader's value, the second the request's URI, and the rest its headers, `name: value`.

#![no_main]

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use libfuzzer_sys::fuzz_target;
use tenure::Candidate;
use tenure_axum::test_support::{end_to_end, hop_by_hop, sent_to};

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let (value, uri) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if let Ok(uri) = Uri::try_from(uri) {
        address(&Candidate::decode("entry", "session", value, None), &uri);
    }
    headers(lines);
});

fn address(leader: &Candidate, uri: &Uri) {
    let sent = match sent_to(leader, uri) {
        Ok(sent) => sent,
        Err(why) => {
            assert!(why.len() < 2_000 && !why.chars().any(char::is_control), "{why:?}");
            return;
        }
    };
    let scheme = sent.scheme_str().expect("it has a scheme");
    assert!(["http", "https"].contains(&scheme), "{sent}");
    let authority = sent.authority().expect("it has an authority").as_str();
    assert!(!sent.host().unwrap_or_default().is_empty() && !authority.contains('@'), "{sent}");
    // What the leader has said, and nothing else.
    let value = leader.value_lossy();
    let bare = value.split_once("://").map_or(&*value, |(_, rest)| rest);
    assert_eq!(bare.strip_suffix('/').unwrap_or(bare), authority, "{value}");
    let asked = uri.path_and_query().map_or("/", |path| path.as_str());
    assert_eq!(sent.path_and_query().map(|path| path.as_str()), Some(asked));
    // As a redirect's Location, it leads to the same place.
    let location = sent.to_string();
    HeaderValue::from_str(&location).expect("it can stand in a header");
    assert_eq!(location.parse::<Uri>().ok().as_ref(), Some(&sent), "{location}");
}

fn headers<'a>(lines: impl Iterator<Item = &'a [u8]>) {
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    let concerns_us = |name: &HeaderName| named.contains(name) || hop_by_hop().contains(name);
    let mut left = headers.clone();
    end_to_end(&mut left);
    for name in headers.keys() {
        let before: Vec<_> = headers.get_all(name).iter().collect();
        let after: Vec<_> = left.get_all(name).iter().collect();
        assert_eq!(after, if concerns_us(name) { Vec::new() } else { before }, "{name}");
    }
}
