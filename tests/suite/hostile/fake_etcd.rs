//! A fake etcd server that speaks the protocol correctly and returns wrong answers.

use etcd_client::{
    EventType,
    proto::{
        PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbEvent, PbKeyValue,
        PbKvServer, PbKvService, PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest,
        PbLeaseKeepAliveResponse, PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest,
        PbLeaseRevokeResponse, PbLeaseServer, PbLeaseService, PbLeaseTimeToLiveRequest,
        PbLeaseTimeToLiveResponse, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse,
        PbRangeStreamResponse, PbResponseHeader, PbResponseOp, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest,
        PbTxnResponse, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchServer, PbWatchService,
    },
};
use futures::{StreamExt as _, stream, stream::BoxStream};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Request, Response, Status, Streaming, async_trait, transport::Server};

/// How the answers are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WrongAnswer {
    /// Every response has the same keys and claims that there are more.
    SamePageForever,
    /// Every response has another key and claims that there are more.
    NewPageForever,
    /// All revisions and Raft terms have this value.
    Revision(i64),
    /// Every lease was granted with this TTL and has it left.
    Ttl(i64),
    /// Every watch receives events without end.
    EndlessEvents,
    /// Every watch is cancelled at once.
    CancelledWatches,
}

/// A server that runs until it is dropped.
pub(crate) struct FakeEtcd {
    pub(crate) endpoint: String,
    task: JoinHandle<()>,
}

impl FakeEtcd {
    pub(crate) async fn start(wrong: WrongAnswer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let incoming = stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let serving = Server::builder()
            .add_service(PbKvServer::new(Service(wrong)))
            .add_service(PbLeaseServer::new(Service(wrong)))
            .add_service(PbWatchServer::new(Service(wrong)))
            .serve_with_incoming(incoming);
        Self { endpoint, task: tokio::spawn(async move { serving.await.unwrap() }) }
    }
}

impl Drop for FakeEtcd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The create revisions of the client's own entry and of another candidate's before it.
const OWN_REVISION: i64 = 70;
const OTHER_REVISION: i64 = 60;
/// The lease of the other candidate, which does not exist.
const OTHER_LEASE: i64 = 0xabc;

#[derive(Clone, Copy)]
struct Service(WrongAnswer);

impl Service {
    fn revision(self, correct: i64) -> i64 {
        if let WrongAnswer::Revision(wrong) = self.0 { wrong } else { correct }
    }

    fn ttl(self, correct: i64) -> i64 {
        if let WrongAnswer::Ttl(wrong) = self.0 { wrong } else { correct }
    }

    fn header(self) -> Option<PbResponseHeader> {
        let term = self.revision(7) as u64;
        Some(PbResponseHeader {
            revision: self.revision(OWN_REVISION),
            raft_term: term,
            ..Default::default()
        })
    }

    fn key(self, key: Vec<u8>, lease: i64, created: i64) -> PbKeyValue {
        let created = self.revision(created);
        PbKeyValue {
            key,
            create_revision: created,
            mod_revision: created,
            version: 1,
            lease,
            ..Default::default()
        }
    }

    /// The response to a range request. A single key is the client's own entry; a prefix has another candidate's entry before
    /// it.
    fn range_response(self, range: &PbRangeRequest) -> PbRangeResponse {
        let own = || {
            let name = String::from_utf8_lossy(&range.key);
            let name = name.rsplit('/').next().unwrap_or_default();
            i64::from_str_radix(name, 16).ok().map(|lease| self.key(range.key.clone(), lease, OWN_REVISION))
        };
        let other = || {
            let mut key = range.key.clone();
            if range.limit > 16 && self.0 == WrongAnswer::NewPageForever {
                // A key after any that was requested.
                key.push(b'0');
            } else if !key.ends_with(b"/") {
                key.truncate(key.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1));
                key.extend(format!("{OTHER_LEASE:x}").bytes());
            } else {
                key.extend(format!("{OTHER_LEASE:x}").bytes());
            }
            // With this lease the key does not count as an entry, so that the client keeps reading pages.
            let lease = if matches!(self.0, WrongAnswer::NewPageForever | WrongAnswer::SamePageForever) {
                1
            } else {
                OTHER_LEASE
            };
            self.key(key, lease, OTHER_REVISION)
        };
        let leads = matches!(self.0, WrongAnswer::Ttl(_));
        let kvs: Vec<_> = match range.range_end.is_empty() {
            true => own().into_iter().collect(),
            false if leads => Vec::new(),
            false => vec![other()],
        };
        let more = matches!(self.0, WrongAnswer::NewPageForever | WrongAnswer::SamePageForever);
        PbRangeResponse { header: self.header(), count: kvs.len() as i64, kvs, more }
    }
}

#[async_trait]
impl PbKvService for Service {
    type RangeStreamStream = BoxStream<'static, Result<PbRangeStreamResponse, Status>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        Ok(Response::new(self.range_response(request.get_ref())))
    }

    async fn put(&self, _: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        Ok(Response::new(PbPutResponse { header: self.header(), prev_kv: None }))
    }

    async fn delete_range(&self, _: Request<PbDeleteRequest>) -> Result<Response<PbDeleteResponse>, Status> {
        Ok(Response::new(PbDeleteResponse { header: self.header(), ..Default::default() }))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let request = request.into_inner();
        let mut puts = request.success.iter().filter_map(|op| match &op.request {
            Some(PbTxnOpRequest::RequestPut(put)) => Some(put.clone()),
            _ => None,
        });
        let put = puts.next_back();
        let responses = request.success.iter().map(|op| {
            let response = match &op.request {
                Some(PbTxnOpRequest::RequestRange(range)) => {
                    let mut found = self.range_response(range);
                    // A candidate that enters an empty election is the first.
                    if let (Some(put), true) = (&put, found.kvs.is_empty()) {
                        found.kvs.push(self.key(put.key.clone(), put.lease, OWN_REVISION));
                    }
                    PbTxnOpResponse::ResponseRange(found)
                }
                Some(PbTxnOpRequest::RequestPut(_)) => PbTxnOpResponse::ResponsePut(PbPutResponse::default()),
                _ => PbTxnOpResponse::ResponseDeleteRange(PbDeleteResponse::default()),
            };
            PbResponseOp { response: Some(response) }
        });
        let responses = responses.collect();
        Ok(Response::new(PbTxnResponse { header: self.header(), succeeded: true, responses }))
    }

    async fn compact(
        &self,
        _: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        Err(Status::unimplemented("the client does not use it"))
    }

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("the client does not use it"))
    }
}

#[async_trait]
impl PbLeaseService for Service {
    type LeaseKeepAliveStream = BoxStream<'static, Result<PbLeaseKeepAliveResponse, Status>>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let PbLeaseGrantRequest { id, ttl } = request.into_inner();
        let ttl = self.ttl(ttl);
        Ok(Response::new(PbLeaseGrantResponse { header: self.header(), id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        _: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        Ok(Response::new(PbLeaseRevokeResponse { header: self.header() }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let service = *self;
        let responses = request.into_inner().map(move |request| {
            let id = request?.id;
            Ok(PbLeaseKeepAliveResponse { header: service.header(), id, ttl: service.ttl(3) })
        });
        Ok(Response::new(responses.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let (id, ttl) = (request.into_inner().id, self.ttl(3));
        let header = self.header();
        Ok(Response::new(PbLeaseTimeToLiveResponse { header, id, ttl, granted_ttl: ttl, keys: Vec::new() }))
    }

    async fn lease_leases(
        &self,
        _: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        Err(Status::unimplemented("the client does not use it"))
    }
}

#[async_trait]
impl PbWatchService for Service {
    type WatchStream = BoxStream<'static, Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = *self;
        let responses = request.into_inner().flat_map(move |request| {
            let Ok(PbWatchRequest { request_union: Some(PbWatchRequestUnion::CreateRequest(create)) }) =
                request
            else {
                return stream::empty().boxed();
            };
            let watch_id = create.watch_id;
            let created = PbWatchResponse {
                header: service.header(),
                watch_id,
                created: true,
                canceled: service.0 == WrongAnswer::CancelledWatches,
                ..Default::default()
            };
            let kv = Some(service.key(create.key, OTHER_LEASE, OTHER_REVISION));
            let event = PbEvent { r#type: EventType::Delete as i32, kv, prev_kv: None };
            let events = PbWatchResponse {
                header: service.header(),
                watch_id,
                events: vec![event; 100],
                ..Default::default()
            };
            // Limited: an endless stream would keep the responses to other create requests from being sent.
            let count = if service.0 == WrongAnswer::EndlessEvents { 10_000 } else { 0 };
            stream::once(async { Ok(created) })
                .chain(stream::repeat_with(move || Ok(events.clone())).take(count))
                .boxed()
        });
        Ok(Response::new(responses.boxed()))
    }
}
