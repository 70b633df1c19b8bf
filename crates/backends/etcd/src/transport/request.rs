//! One attempt on one member, and which cluster answered it.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use etcd_client::{
    Client, Error, GetOptions, GetResponse, KvClient, PutOptions, PutResponse, ResponseHeader, Txn,
    TxnResponse,
};

/// Answers larger than tonic's 4 MiB are usual: a few dozen candidates with large values. Whatever could be larger than
/// this is read in parts ([`crate::transport::pages`]): room is made for as much as an answer says that it has.
pub(crate) const MAX_ANSWER_BYTES: usize = 32 << 20;

/// A member's client for one attempt.
#[derive(Clone)]
pub(crate) struct Asked {
    client: Arc<Client>,
    /// The cluster of the last answer; zero before.
    cluster: Arc<AtomicU64>,
}

impl Asked {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Self { client, cluster: Arc::default() }
    }

    /// The member's client itself.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Notes whose answer it was. For requests that [`kv`] does not make.
    pub(crate) fn answered(&self, header: Option<&ResponseHeader>) {
        if let Some(header) = header {
            self.cluster.store(header.cluster_id(), Relaxed);
        }
    }

    /// The cluster that has answered, if any has.
    pub(crate) fn cluster(&self) -> Option<u64> {
        Some(self.cluster.load(Relaxed)).filter(|cluster| *cluster != 0)
    }
}

impl Deref for Asked {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A client for keys and values whose answers may be large, and whose cluster is noted.
pub(crate) fn kv(asked: &Asked) -> Kv<'_> {
    Kv { client: asked.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES), asked }
}

pub(crate) struct Kv<'a> {
    client: KvClient,
    asked: &'a Asked,
}

impl Kv<'_> {
    pub(crate) async fn get(
        mut self,
        key: impl Into<Vec<u8>>,
        options: Option<GetOptions>,
    ) -> Result<GetResponse, Error> {
        let answer = self.client.get(key, options).await?;
        self.asked.answered(answer.header());
        Ok(answer)
    }

    pub(crate) async fn put(
        mut self,
        key: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
        options: Option<PutOptions>,
    ) -> Result<PutResponse, Error> {
        let answer = self.client.put(key, value, options).await?;
        self.asked.answered(answer.header());
        Ok(answer)
    }

    pub(crate) async fn txn(mut self, txn: Txn) -> Result<TxnResponse, Error> {
        let answer = self.client.txn(txn).await?;
        self.asked.answered(answer.header());
        Ok(answer)
    }
}
