//! An etcd that speaks etcd's protocol well, and lies.

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

/// What is told instead of the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Every answer has the same keys, and says that there are more.
    MoreOfTheSame,
    /// Every answer has another key, and says that there are more.
    More,
    /// All revisions and terms are this one.
    Revision(i64),
    /// This is what is left of every lease, and what was granted.
    Ttl(i64),
    /// Something happens to everything that is watched, all the time.
    Events,
    /// Every watch is refused as soon as it is asked for.
    NoWatch,
}

/// For as long as this is kept.
pub(crate) struct Liar {
    pub(crate) endpoint: String,
    task: JoinHandle<()>,
}

impl Liar {
    pub(crate) async fn start(lie: Lie) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let incoming = stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let serving = Server::builder()
            .add_service(PbKvServer::new(Told(lie)))
            .add_service(PbLeaseServer::new(Told(lie)))
            .add_service(PbWatchServer::new(Told(lie)))
            .serve_with_incoming(incoming);
        Self { endpoint, task: tokio::spawn(async move { serving.await.unwrap() }) }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The revision that everybody's entry was made in, and the one before it.
const OWN: i64 = 70;
const OTHER: i64 = 60;
/// The lease of a candidate that is not there.
const LEASE: i64 = 0xabc;

#[derive(Clone, Copy)]
struct Told(Lie);

impl Told {
    fn revision(self, honest: i64) -> i64 {
        if let Lie::Revision(lie) = self.0 { lie } else { honest }
    }

    fn ttl(self, honest: i64) -> i64 {
        if let Lie::Ttl(lie) = self.0 { lie } else { honest }
    }

    fn header(self) -> Option<PbResponseHeader> {
        let term = self.revision(7) as u64;
        Some(PbResponseHeader { revision: self.revision(OWN), raft_term: term, ..Default::default() })
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

    /// One key is that of whoever asks; below a prefix there is another's, ahead of it.
    fn found(self, range: &PbRangeRequest) -> PbRangeResponse {
        let own = || {
            let name = String::from_utf8_lossy(&range.key);
            let name = name.rsplit('/').next().unwrap_or_default();
            i64::from_str_radix(name, 16).ok().map(|lease| self.key(range.key.clone(), lease, OWN))
        };
        let other = || {
            let mut key = range.key.clone();
            if range.limit > 16 && self.0 == Lie::More {
                // After any that it was asked for.
                key.push(b'0');
            } else if !key.ends_with(b"/") {
                key.truncate(key.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1));
                key.extend(format!("{LEASE:x}").bytes());
            } else {
                key.extend(format!("{LEASE:x}").bytes());
            }
            // A leader's token is its key's revision, and a liar's may be led by.
            let lease = if matches!(self.0, Lie::More | Lie::MoreOfTheSame) { 1 } else { LEASE };
            self.key(key, lease, OTHER)
        };
        let leads = matches!(self.0, Lie::Ttl(_));
        let kvs: Vec<_> = match range.range_end.is_empty() {
            true => own().into_iter().collect(),
            false if leads => Vec::new(),
            false => vec![other()],
        };
        let more = matches!(self.0, Lie::More | Lie::MoreOfTheSame);
        PbRangeResponse { header: self.header(), count: kvs.len() as i64, kvs, more }
    }
}

#[async_trait]
impl PbKvService for Told {
    type RangeStreamStream = BoxStream<'static, Result<PbRangeStreamResponse, Status>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        Ok(Response::new(self.found(request.get_ref())))
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
                    let mut found = self.found(range);
                    // Whoever enters where nobody is comes first.
                    if let (Some(put), true) = (&put, found.kvs.is_empty()) {
                        found.kvs.push(self.key(put.key.clone(), put.lease, OWN));
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
        Err(Status::unimplemented("nobody asks for it"))
    }

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }
}

#[async_trait]
impl PbLeaseService for Told {
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
        let told = *self;
        let answers = request.into_inner().map(move |question| {
            let id = question?.id;
            Ok(PbLeaseKeepAliveResponse { header: told.header(), id, ttl: told.ttl(3) })
        });
        Ok(Response::new(answers.boxed()))
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
        Err(Status::unimplemented("nobody asks for it"))
    }
}

#[async_trait]
impl PbWatchService for Told {
    type WatchStream = BoxStream<'static, Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let told = *self;
        let answers = request.into_inner().flat_map(move |request| {
            let Ok(PbWatchRequest { request_union: Some(PbWatchRequestUnion::CreateRequest(create)) }) =
                request
            else {
                return stream::empty().boxed();
            };
            let watch_id = create.watch_id;
            let stands = PbWatchResponse {
                header: told.header(),
                watch_id,
                created: true,
                canceled: told.0 == Lie::NoWatch,
                ..Default::default()
            };
            let kv = Some(told.key(create.key, LEASE, OTHER));
            let event = PbEvent { r#type: EventType::Delete as i32, kv, prev_kv: None };
            let happens = PbWatchResponse {
                header: told.header(),
                watch_id,
                events: vec![event; 100],
                ..Default::default()
            };
            // A stream that never ends keeps all others that were asked for from coming.
            let often = if told.0 == Lie::Events { 10_000 } else { 0 };
            stream::once(async { Ok(stands) })
                .chain(stream::repeat_with(move || Ok(happens.clone())).take(often))
                .boxed()
        });
        Ok(Response::new(answers.boxed()))
    }
}
