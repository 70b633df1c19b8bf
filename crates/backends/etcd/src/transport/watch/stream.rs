//! The task that runs the watch stream of a backend.
//!
//! The stream stays on its member when calls prefer another one. The member is checked once for all watches: when it has not
//! returned an answer that needed a quorum for [some time](Members::tolerated_silence), or a request to it was late, it gets a linearizable read (hazards E5, E16). With
//! `require_leader` a member without a leader ends the stream itself. When the stream ends, or etcd cancels a watch, as a compaction does
//! (issue 7815), all subscriptions are lost, and the next ones go to the next member.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use etcd_client::{WatchFilterType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, info};

use crate::transport::{
    error::{Failure, is_login_error, malformed},
    members::{Member, Members},
    request::watch_client,
    watch::{
        Notifier,
        informer::{Informer, WatchedKeys},
    },
};

/// The watch id of the informer. etcd's own ids start at zero, and -1 means none.
const INFORMER_ID: i64 = 1;
/// The id of the first subscription, which is also the id of its watch.
pub(crate) const FIRST_ID: i64 = 4;
/// Each subscription to deletions has this many ids, for one watch per key where the prefix cannot be watched.
pub(crate) const IDS_PER_SUBSCRIPTION: i64 = 4;

/// How often the stream's member is checked.
const MEMBER_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long opening a stream may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a stream without watches stays open: a waiter that reads again often comes back soon.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream that ends sooner counts as another failure in a row.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// How long after a refusal the informer's watch is requested again.
const RETRY_AFTER_REFUSAL: Duration = Duration::from_secs(3600);

/// A request to the stream's task. See [`Watcher`](super::Watcher).
#[derive(Debug)]
pub(crate) enum Command {
    Deletions { id: i64, keys: WatchedKeys, after: i64, notifier: Notifier },
    Changes { id: i64, key: Arc<str>, is_prefix: bool, notifier: Notifier },
    Remove { id: i64 },
}

/// A request on the stream.
enum StreamRequest {
    Create(Arc<str>, WatchOptions),
    Cancel(i64),
}

/// Why a stream ended.
enum StreamEnd {
    /// It has no watches any more.
    Idle,
    /// It failed, or could not be opened.
    Broken,
    /// The backend was dropped.
    Closed,
}

/// Serves `commands` until their sender is dropped.
pub(crate) async fn run(members: Arc<Members>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut watches = Watches::new(members.key_prefix().into());
    let mut failures = 0_u32;
    while let Some(command) = commands.recv().await {
        let mut requests = Vec::new();
        watches.apply(command, &mut requests);
        while let Ok(command) = commands.try_recv() {
            watches.apply(command, &mut requests);
        }
        if watches.is_empty() {
            watches.reset();
            continue;
        }
        let opened_at = Instant::now();
        match Box::pin(serve(&members, &mut commands, &mut watches, requests)).await {
            StreamEnd::Closed => return,
            StreamEnd::Idle => {}
            StreamEnd::Broken => {
                failures = if opened_at.elapsed() < STABLE_AFTER { failures.saturating_add(1) } else { 1 };
                // The other members are tried without a delay.
                if failures as usize >= members.all().len() {
                    let backoff = Duration::from_millis(50 << failures.min(5));
                    sleep(backoff.mul_f64(0.5 + fastrand::f64())).await;
                }
            }
        }
        watches.reset();
    }
}

/// Serves watches on one stream until it ends. `initial` are the requests to begin with.
async fn serve(
    members: &Members,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    watches: &mut Watches,
    initial: Vec<StreamRequest>,
) -> StreamEnd {
    let Some(member) = members.preferred() else { return StreamEnd::Broken };
    let mut initial = initial.into_iter();
    // A cancellation follows the creation of its watch.
    let Some(StreamRequest::Create(key, options)) = initial.next() else { return StreamEnd::Idle };
    let (sender, mut responses) = match open(&member, &key, options).await {
        Ok(stream) => stream,
        Err(failure) => {
            debug!(member = member.endpoint, error = %failure.error, "opening an etcd watch stream failed");
            match failure.stale_login {
                true => member.connection.disconnect(None),
                false => member.record_error(&failure.error),
            }
            members.avoid(&member);
            return StreamEnd::Broken;
        }
    };
    member.record_answer();
    debug!(member = member.endpoint, "etcd watch stream opened");
    let (requests, outgoing) = mpsc::unbounded_channel();
    initial.for_each(|request| drop(requests.send(request)));
    let sending = send_requests(sender, outgoing);
    tokio::pin!(sending);
    let partitioned = until_partitioned(members, &member);
    tokio::pin!(partitioned);
    let idle = sleep(IDLE_TIMEOUT);
    tokio::pin!(idle);
    let mut new_requests = Vec::new();
    let reason = loop {
        if !watches.is_empty() {
            idle.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
        }
        tokio::select! {
            command = commands.recv() => match command {
                None => return StreamEnd::Closed,
                Some(command) => {
                    watches.apply(command, &mut new_requests);
                    new_requests.drain(..).for_each(|request| drop(requests.send(request)));
                }
            },
            response = responses.message() => match response {
                Ok(Some(response)) => {
                    let cluster = response.header().map(etcd_client::ResponseHeader::cluster_id);
                    if let Some(Err(foreign)) = cluster.map(|cluster| members.check_cluster(&member, cluster)) {
                        break foreign.error.to_string();
                    }
                    if let Err(reason) = watches.on_response(&response) {
                        if is_login_error(&reason) {
                            member.connection.disconnect(None);
                        }
                        break reason;
                    }
                }
                Ok(None) => break "the member ended it".to_owned(),
                Err(error) => break Failure::from(error).error.to_string(),
            },
            () = &mut sending => break "the connection is lost".to_owned(),
            error = &mut partitioned => break error.to_string(),
            () = &mut idle, if watches.is_empty() => return StreamEnd::Idle,
        }
    };
    debug!(member = member.endpoint, reason, "etcd watch stream ended");
    members.avoid(&member);
    StreamEnd::Broken
}

/// The watches of a stream.
struct Watches {
    prefix: Arc<str>,
    informer: Informer,
    /// Whether the informer's watch was requested on this stream.
    informer_requested: bool,
    /// When etcd refused to watch the whole prefix. Each key is watched by itself then.
    refused_at: Option<Instant>,
    watches_keys: bool,
    // Ordered, so that a simulated run is reproducible.
    changes: BTreeMap<i64, Notifier>,
}

impl Watches {
    fn new(prefix: Arc<str>) -> Self {
        Self {
            prefix,
            informer: Informer::default(),
            informer_requested: false,
            refused_at: None,
            watches_keys: false,
            changes: BTreeMap::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.informer.is_empty() && self.changes.is_empty()
    }

    /// Forgets the stream. All subscriptions are lost.
    fn reset(&mut self) {
        self.informer = Informer::default();
        self.informer_requested = false;
        self.watches_keys = self.refused_at.is_some_and(|at| at.elapsed() < RETRY_AFTER_REFUSAL);
        self.changes.clear();
    }

    /// Applies a command, and adds what has to be sent for it.
    fn apply(&mut self, command: Command, requests: &mut Vec<StreamRequest>) {
        match command {
            Command::Changes { id, key, is_prefix, notifier } => {
                let options = WatchOptions::new().with_watch_id(id);
                let options = if is_prefix { options.with_prefix() } else { options };
                requests.push(StreamRequest::Create(key, options));
                self.changes.insert(id, notifier);
            }
            Command::Deletions { id, keys, after, notifier } if self.watches_keys => {
                for (id, key) in (id..).zip(&keys) {
                    let options = deletions(id).with_start_revision(after.saturating_add(1));
                    requests.push(StreamRequest::Create(Arc::clone(key), options));
                }
                self.informer.subscribe(id, keys, after, notifier);
            }
            Command::Deletions { id, keys, after, notifier } => {
                if !std::mem::replace(&mut self.informer_requested, true) {
                    let options = deletions(INFORMER_ID).with_prefix();
                    requests.push(StreamRequest::Create(Arc::clone(&self.prefix), options));
                }
                self.informer.subscribe(id, keys, after, notifier);
            }
            Command::Remove { id } => {
                let keys = self.informer.unsubscribe(id).filter(|_| self.watches_keys).unwrap_or_default();
                let watches = keys.max(usize::from(self.changes.remove(&id).is_some()));
                requests.extend((id..).take(watches).map(StreamRequest::Cancel));
            }
        }
    }

    /// Applies a response. An error ends the stream.
    fn on_response(&mut self, response: &WatchResponse) -> Result<(), String> {
        let id = response.watch_id();
        // The subscription to which the watch of one key belongs.
        let owner = id - id.rem_euclid(IDS_PER_SUBSCRIPTION);
        let of_key = self.informer.get(owner).filter(|_| self.watches_keys);
        let of_changes = self.changes.get(&id);
        if response.canceled() {
            if id > INFORMER_ID && of_key.is_none() && of_changes.is_none() {
                // The answer to a cancellation.
                return Ok(());
            }
            let reason = response.cancel_reason();
            // Some etcd versions do not report which watch they refuse, nor anything more on that stream (issue 11708).
            if self.informer_requested && id <= INFORMER_ID && reason.contains("permission denied") {
                info!(
                    prefix = &*self.prefix,
                    "etcd refuses to watch the prefix: each key is watched by itself"
                );
                self.refused_at = Some(Instant::now());
            }
            return Err(format!("a watch was cancelled: {reason}"));
        }
        if let Some(notifier) = of_changes {
            notifier.changed();
        } else if let Some(notifier) = of_key.filter(|_| !response.events().is_empty()) {
            // Two watches are not ordered against each other: only a read decides.
            notifier.lost();
        } else if id == INFORMER_ID {
            if response.created() {
                let revision = response.header().ok_or_else(|| malformed("header").to_string())?.revision();
                self.informer.established(revision);
            }
            let deleted = response.events().iter().filter_map(etcd_client::Event::kv);
            self.informer.deliver(deleted.map(|kv| (kv.key(), kv.mod_revision())));
        }
        Ok(())
    }
}

/// The options of a watch of deletions.
fn deletions(id: i64) -> WatchOptions {
    WatchOptions::new().with_watch_id(id).with_filters([WatchFilterType::NoPut])
}

/// Returns the error of a probe when `member` no longer reaches a quorum.
async fn until_partitioned(members: &Members, member: &Arc<Member>) -> BackendError {
    let mut tick = interval(MEMBER_CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if members
            .since_quorum_answer(member)
            .is_none_or(|silence| silence >= members.tolerated_silence(member))
            && let Err(error) = members.probe(member, PROBE_TIMEOUT).await
            && error.is_retryable()
        {
            return error;
        }
    }
}

/// Opens a stream with its first watch.
async fn open(
    member: &Member,
    key: &str,
    options: WatchOptions,
) -> Result<(WatchRequestSender, WatchResponseStream), Failure> {
    let opening = async {
        let client = member.connection.get().await?.client();
        Ok(watch_client(&client).watch(key, Some(options)).await?.split())
    };
    match timeout(OPEN_TIMEOUT, opening).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let text = format!("no answer within {OPEN_TIMEOUT:?}");
            Err(BackendError::new(BackendErrorKind::Unavailable, text).into())
        }
    }
}

/// Sends requests on the stream. Returns when the stream has ended.
///
/// It runs beside the loop that reads responses, so that neither waits for the other: etcd stops reading requests
/// while its responses are not read.
async fn send_requests(mut sender: WatchRequestSender, mut requests: mpsc::UnboundedReceiver<StreamRequest>) {
    while let Some(request) = requests.recv().await {
        let sent = match request {
            StreamRequest::Create(key, options) => sender.watch(&*key, Some(options)).await,
            StreamRequest::Cancel(id) => sender.cancel(id).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::transport::watch::tests::subscription;

    /// The requests for a subscription to two keys.
    fn subscribe(watches: &mut Watches, id: i64) -> Vec<StreamRequest> {
        let mut requests = Vec::new();
        let keys = smallvec!["/t/e/5".into(), "/t/e/9".into()];
        watches.apply(Command::Deletions { id, keys, after: 7, notifier: subscription().1 }, &mut requests);
        requests
    }

    fn remove(watches: &mut Watches, id: i64) -> usize {
        let mut requests = Vec::new();
        watches.apply(Command::Remove { id }, &mut requests);
        assert!(requests.iter().all(|request| matches!(request, StreamRequest::Cancel(_))));
        requests.len()
    }

    #[test]
    fn one_watch_serves_all_subscriptions_to_deletions() {
        let mut watches = Watches::new("/t/".into());
        assert!(
            matches!(&subscribe(&mut watches, 4)[..], [StreamRequest::Create(key, _)] if &**key == "/t/")
        );
        assert_eq!(subscribe(&mut watches, 8).len(), 0);
        assert_eq!((remove(&mut watches, 4), remove(&mut watches, 8)), (0, 0));
        assert!(watches.is_empty());
        watches.reset();
        assert_eq!(subscribe(&mut watches, 12).len(), 1, "a new stream needs it again");
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_is_watched_while_the_prefix_is_refused() {
        let mut watches = Watches::new("/t/".into());
        watches.refused_at = Some(Instant::now());
        watches.reset();
        assert_eq!((subscribe(&mut watches, 4).len(), remove(&mut watches, 4)), (2, 2));
        tokio::time::advance(RETRY_AFTER_REFUSAL).await;
        watches.reset();
        assert_eq!((subscribe(&mut watches, 8).len(), remove(&mut watches, 8)), (1, 0));
    }
}
