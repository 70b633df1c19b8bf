//! The service for watches: what each stream carries.
//!
//! A watch that starts at a future revision gets events as its member learns of them. One that starts at the current revision or before
//! is served by a loop that runs every 100 ms. When its start was compacted, that loop cancels it with an empty reason and leaves the
//! stream open.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{
    EventType,
    proto::{PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService},
};
use futures::stream::BoxStream;
use tokio::{
    sync::mpsc,
    time::{Instant, interval_at},
};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    cluster::{Cluster, ELECTION_TIMEOUT},
    etcd_error,
    request::{MemberService, needs_leader},
    store::Keys,
};

const SYNC_EVERY: Duration = Duration::from_millis(100);
/// A stream with `hasleader` ends after this time without a leader.
const NO_LEADER_TIMEOUT: Duration = ELECTION_TIMEOUT.saturating_mul(3);

struct Watcher {
    keys: Keys,
    no_put: bool,
    no_delete: bool,
    /// The first revision that it has not received.
    next: i64,
    /// Whether it receives events as they come.
    synced: bool,
}

/// One stream of watches.
struct Stream {
    service: MemberService,
    watchers: BTreeMap<i64, Watcher>,
    answers: mpsc::UnboundedSender<Result<PbWatchResponse, Status>>,
    needs_leader: bool,
}

/// The stream has ended.
struct StreamEnded;

#[async_trait]
impl PbWatchService for MemberService {
    type WatchStream = BoxStream<'static, Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.cluster.read().note(self.member, "watch");
        let (answers, answered) = mpsc::unbounded_channel();
        let needs_leader = needs_leader(&request);
        let stream = Stream { service: self.clone(), watchers: BTreeMap::new(), answers, needs_leader };
        tokio::spawn(stream.serve(request.into_inner()));
        Ok(Response::new(Box::pin(futures::stream::unfold(answered, |mut answered| async {
            answered.recv().await.map(|answer| (answer, answered))
        }))))
    }
}

impl Stream {
    async fn serve(mut self, mut requests: Streaming<PbWatchRequest>) {
        let mut changes = self.service.cluster.changes();
        // All watches of a member are synced in one loop.
        let mut sync = interval_at(Instant::now() + SYNC_EVERY, SYNC_EVERY);
        loop {
            let outcome = tokio::select! {
                biased;
                () = self.answers.closed() => return,
                request = requests.message() => match request {
                    Ok(Some(PbWatchRequest { request_union: Some(request) })) => self.accept(request),
                    Ok(Some(_)) => Ok(()),
                    Ok(None) | Err(_) => return,
                },
                _ = sync.tick() => {
                    self.service.thawed().await;
                    self.sync().and_then(|()| self.notify()).and_then(|()| self.check_for_leader())
                }
                Ok(()) = changes.changed() => self.notify(),
            };
            if outcome.is_err() {
                return;
            }
        }
    }

    fn accept(&mut self, request: PbWatchRequestUnion) -> Result<(), StreamEnded> {
        let cluster = self.service.cluster.clone();
        cluster.read().note(self.service.member, "watch request");
        let now = cluster.read().revision_at(self.service.member);
        match request {
            PbWatchRequestUnion::CreateRequest(create) => {
                let id = match create.watch_id {
                    0 => (1_i64 << 40) + self.watchers.len() as i64,
                    id => id,
                };
                if self.watchers.contains_key(&id) {
                    let cancel_reason = "mvcc: watch ID already exists".to_owned();
                    return self.send(PbWatchResponse {
                        watch_id: -1,
                        created: true,
                        canceled: true,
                        cancel_reason,
                        ..PbWatchResponse::default()
                    });
                }
                let next = if create.start_revision == 0 { now + 1 } else { create.start_revision };
                let watcher = Watcher {
                    keys: Keys { first: create.key, end: create.range_end },
                    no_put: create.filters.contains(&0),
                    no_delete: create.filters.contains(&1),
                    next,
                    synced: next > now,
                };
                self.watchers.insert(id, watcher);
                cluster.read().open_watches += 1;
                self.send(PbWatchResponse { watch_id: id, created: true, ..PbWatchResponse::default() })
            }
            PbWatchRequestUnion::CancelRequest(cancel) => {
                if !self.forget(cancel.watch_id) {
                    return Ok(());
                }
                self.send(PbWatchResponse {
                    watch_id: cancel.watch_id,
                    canceled: true,
                    ..PbWatchResponse::default()
                })
            }
            PbWatchRequestUnion::ProgressRequest(_) => {
                self.send(PbWatchResponse { watch_id: -1, ..PbWatchResponse::default() })
            }
        }
    }

    fn send(&self, mut answer: PbWatchResponse) -> Result<(), StreamEnded> {
        {
            let state = self.service.cluster.read();
            answer.header = state.header(self.service.member, state.revision_at(self.service.member));
        }
        self.answers.send(Ok(answer)).map_err(|_| StreamEnded)
    }

    fn forget(&mut self, id: i64) -> bool {
        let known = self.watchers.remove(&id).is_some();
        if known {
            self.service.cluster.read().open_watches -= 1;
        }
        known
    }

    /// Brings late watches up to date, or ends them.
    fn sync(&mut self) -> Result<(), StreamEnded> {
        let compacted = self.service.cluster.read().store.compacted;
        let lost: Vec<i64> = self
            .watchers
            .iter()
            .filter(|(_, watcher)| !watcher.synced && watcher.next <= compacted)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.forget(id);
            self.send(PbWatchResponse {
                watch_id: id,
                canceled: true,
                compact_revision: compacted,
                ..PbWatchResponse::default()
            })?;
        }
        self.watchers.values_mut().for_each(|watcher| watcher.synced = true);
        Ok(())
    }

    /// Tells the watches that are up to date what is new.
    fn notify(&mut self) -> Result<(), StreamEnded> {
        let news = self.news();
        for (id, events) in news {
            self.send(PbWatchResponse { watch_id: id, events, ..PbWatchResponse::default() })?;
        }
        Ok(())
    }

    fn news(&mut self) -> Vec<(i64, Vec<PbEvent>)> {
        let (cluster, member): (&Cluster, usize) = (&self.service.cluster, self.service.member);
        let state = cluster.read();
        let now = state.revision_at(member);
        let mut news = Vec::new();
        for (id, watcher) in &mut self.watchers {
            if !watcher.synced || watcher.next > now {
                continue;
            }
            if watcher.next <= state.store.compacted {
                // Too late: the loop ends it.
                watcher.synced = false;
                continue;
            }
            let log = state.store.log(watcher.next - 1, state.seen_by(member));
            let events: Vec<PbEvent> = log
                .filter(|logged| watcher.wants(&logged.event))
                .map(|logged| logged.event.clone())
                .collect();
            watcher.next = now + 1;
            if !events.is_empty() {
                news.push((*id, events));
            }
        }
        news
    }

    fn check_for_leader(&self) -> Result<(), StreamEnded> {
        if self.needs_leader && self.service.knows_no_leader(NO_LEADER_TIMEOUT) {
            drop(self.answers.send(Err(etcd_error::no_leader())));
            return Err(StreamEnded);
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.service.cluster.read().open_watches -= self.watchers.len() as i64;
    }
}

impl Watcher {
    fn wants(&self, event: &PbEvent) -> bool {
        let connection_reset =
            if event.r#type == EventType::Put as i32 { self.no_put } else { self.no_delete };
        !connection_reset && event.kv.as_ref().is_some_and(|kv| self.keys.contain(&kv.key))
    }
}
