//! Internal functions that the fuzz targets call. Compiled with `--cfg fuzzing` only.
#![allow(missing_docs, reason = "not part of the API")]

use axum::http::{HeaderMap, HeaderName, Uri};
use tenure_core::{Candidate, FencingToken};

use crate::{FencingRejection, fencing, forward};

pub fn token(headers: &HeaderMap) -> Result<FencingToken, FencingRejection> {
    fencing::token_from_headers(headers)
}

/// The URI to which a request for `uri` is forwarded while `leader` leads.
pub fn sent_to(leader: &Candidate, uri: &Uri) -> Result<Uri, String> {
    let address = forward::LeaderAddress::from_candidate(leader)?;
    address.target_uri(uri).ok_or_else(|| forward::UNSUPPORTED_URI.to_owned())
}

pub fn end_to_end(headers: &mut HeaderMap) {
    forward::remove_hop_by_hop_headers(headers);
}

pub fn hop_by_hop() -> [HeaderName; 8] {
    forward::HOP_BY_HOP_HEADERS
}
