//! The service for keys and values.

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnRequest, PbTxnResponse,
};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, async_trait};

use super::{cluster::State, request::MemberService};

/// Decides a request, and answers with the current revision in the header.
macro_rules! decide {
    ($service:expr, $what:literal, $request:expr, $with:expr) => {{
        let member = $service.member;
        let answer = $service.decide($what, $request, move |state: &mut State, question| {
            let mut answer = $with(state, question)?;
            answer.header = state.header(member, state.store.revision);
            Ok(answer)
        });
        Ok(Response::new(answer.await?))
    }};
}
pub(super) use decide;

#[async_trait]
impl PbKvService for MemberService {
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
