//! The client of one attempt on one member. It records which cluster answered.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use etcd_client::{
    Client, Error, GetOptions, GetResponse, KeyValue, KvClient, PutOptions, PutResponse, ResponseHeader, Txn,
    TxnOpResponse, TxnResponse, WatchClient,
};

/// The largest response that is accepted, in bytes.
///
/// Responses above tonic's default of 4 MiB are common: a few dozen candidates with large values. Reads that could
/// exceed this limit are paged ([`crate::transport::pages`]), because tonic allocates as much as a response claims.
pub(crate) const MAX_RESPONSE_BYTES: usize = 32 << 20;

/// A member's client for one attempt.
#[derive(Clone)]
pub(crate) struct AttemptClient {
    client: Arc<Client>,
    /// The cluster id of the last response; zero before the first.
    cluster: Arc<AtomicU64>,
}

impl AttemptClient {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Self { client, cluster: Arc::default() }
    }

    /// The member's shared client.
    pub(crate) fn shared(&self) -> &Arc<Client> {
        &self.client
    }

    /// Records which cluster sent a response. [`kv`] does this for its own requests.
    pub(crate) fn record_header(&self, header: Option<&ResponseHeader>) {
        if let Some(header) = header {
            self.cluster.store(header.cluster_id(), Relaxed);
        }
    }

    /// The id of the cluster that answered, once one has.
    pub(crate) fn cluster(&self) -> Option<u64> {
        Some(self.cluster.load(Relaxed)).filter(|cluster| *cluster != 0)
    }
}

impl Deref for AttemptClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A key-value client that accepts large responses and records the responding cluster.
pub(crate) fn kv(attempt: &AttemptClient) -> Kv<'_> {
    Kv { client: attempt.kv_client().max_decoding_message_size(MAX_RESPONSE_BYTES), attempt }
}

pub(crate) struct Kv<'a> {
    client: KvClient,
    attempt: &'a AttemptClient,
}

impl Kv<'_> {
    pub(crate) async fn get(
        mut self,
        key: impl Into<Vec<u8>>,
        options: Option<GetOptions>,
    ) -> Result<GetResponse, Error> {
        let response = self.client.get(key, options).await?;
        self.attempt.record_header(response.header());
        Ok(response)
    }

    pub(crate) async fn put(
        mut self,
        key: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
        options: Option<PutOptions>,
    ) -> Result<PutResponse, Error> {
        let response = self.client.put(key, value, options).await?;
        self.attempt.record_header(response.header());
        Ok(response)
    }

    pub(crate) async fn txn(mut self, txn: Txn) -> Result<TxnResponse, Error> {
        let response = self.client.txn(txn).await?;
        self.attempt.record_header(response.header());
        Ok(response)
    }
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
