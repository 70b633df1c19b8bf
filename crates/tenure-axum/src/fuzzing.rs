//! What the fuzz targets call: parsers that no user can call. In no other build.

use axum::http::{HeaderMap, HeaderName, Uri};
use tenure_core::{Candidate, FencingToken};

use crate::{FencingRejection, fencing, forward};

/// The fencing token among a request's headers.
///
/// # Errors
/// When there is none, more than one, or one that is no token.
pub fn token(headers: &HeaderMap) -> Result<FencingToken, FencingRejection> {
    fencing::token(headers)
}

/// Where a request for `uri` is sent on to when `leader` leads.
///
/// # Errors
/// When the leader's value is no address, or the path cannot be sent on.
pub fn sent_to(leader: &Candidate, uri: &Uri) -> Result<Uri, String> {
    forward::Address::of(leader)?.uri(uri).ok_or_else(|| "this path cannot be sent on".to_owned())
}

/// Leaves the headers that are sent on.
pub fn end_to_end(headers: &mut HeaderMap) {
    forward::end_to_end(headers);
}

/// The headers that are never sent on.
pub fn hop_by_hop() -> [HeaderName; 8] {
    forward::HOP_BY_HOP
}
