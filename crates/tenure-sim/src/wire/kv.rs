//! The service for keys and values.

use std::time::Duration;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnOpRequest, PbTxnRequest,
    PbTxnResponse,
};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, async_trait};

use super::{cluster::State, request::Served};

/// Answers at the head of which stands the present revision.
macro_rules! decide {
    ($served:expr, $what:literal, $request:expr, $with:expr) => {{
        let member = $served.member;
        let answer = $served.decide($what, $request, move |state: &mut State, question| {
            let mut answer = $with(state, question)?;
            answer.header = state.header(member, state.store.revision);
            Ok(answer)
        });
        Ok(Response::new(answer.await?))
    }};
}
pub(super) use decide;

#[async_trait]
impl PbKvService for Served {
    type RangeStreamStream = BoxStream<'static, Result<PbRangeStreamResponse, Status>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        decide!(self, "range", request, |state: &mut State, range| state.store.range(range))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        decide!(self, "put", request, |state: &mut State, put| state.store.put(state.now, put))
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        decide!(self, "delete", request, |state: &mut State, delete| {
            Ok::<_, Status>(state.store.delete(state.now, delete))
        })
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        if is_local(request.get_ref()) {
            return self.read_here(request).await;
        }
        decide!(self, "txn", request, |state: &mut State, txn| state.store.txn(state.now, txn))
    }

    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        decide!(self, "compact", request, |state: &mut State, compaction: PbCompactionRequest| {
            state.store.compact(compaction.revision).map(|()| PbCompactionResponse::default())
        })
    }

    async fn range_stream(
        &self,
        _request: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("unknown method RangeStream"))
    }
}

/// Whether a transaction only reads, and is content with what its member knows.
fn is_local(txn: &PbTxnRequest) -> bool {
    let ops = || txn.success.iter().chain(&txn.failure);
    ops().next().is_some()
        && ops()
            .all(|op| matches!(&op.request, Some(PbTxnOpRequest::RequestRange(range)) if range.serializable))
}

impl Served {
    /// Answers by what this member knows, old as it may be, and without a word of the others.
    async fn read_here(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        self.cluster.read().note(self.member, "local read");
        self.thawed().await;
        let travels = Duration::from_micros(self.cluster.read().random.u64(100..1_000));
        tokio::time::sleep(travels).await;
        let answer = {
            let state = self.cluster.read();
            let mut seen = state.store.as_seen(state.seen_by(self.member));
            let mut answer = seen.txn(state.now, request.into_inner())?;
            answer.header = state.header(self.member, seen.revision);
            answer
        };
        self.thawed().await;
        Ok(Response::new(answer))
    }
}
