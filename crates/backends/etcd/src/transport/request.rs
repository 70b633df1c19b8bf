//! Clients for requests to one member, and what an attempt of a call returns.

use etcd_client::{Client, KeyValue, KvClient, ResponseHeader, TxnOpResponse, WatchClient};

/// The largest response that is accepted, in bytes.
///
/// Responses above tonic's default of 4 MiB are common: a few dozen candidates with large values. Reads that could
/// exceed this limit are paged ([`crate::transport::pages`]), because tonic allocates as much as a response claims.
pub(crate) const MAX_RESPONSE_BYTES: usize = 32 << 20;

/// What an attempt returns: the header of the response, whose cluster is checked, and a value.
///
/// `None` for a response that has no header: an error that is taken for an answer.
pub(crate) type Answer<T> = (Option<ResponseHeader>, T);

/// A key-value client that accepts large responses.
pub(crate) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MAX_RESPONSE_BYTES)
}

/// A watch client that accepts large messages.
pub(crate) fn watch_client(client: &Client) -> WatchClient {
    client.watch_client().max_decoding_message_size(MAX_RESPONSE_BYTES)
}

/// The key-values of each range read in a transaction, in order.
pub(crate) fn ranges(responses: Vec<TxnOpResponse>) -> impl Iterator<Item = Vec<KeyValue>> {
    responses.into_iter().filter_map(|response| match response {
        TxnOpResponse::Get(mut range) => Some(range.take_kvs()),
        _ => None,
    })
}
