//! The task that runs the watch stream of a backend.
//!
//! One stream carries thousands of watches at the cost of a map entry each, and its member is checked once for all of
//! them: when it has not returned an answer that needed a quorum for two seconds, or a request to it was late, it
//! gets a linearizable read (hazards E5, E16). With `require_leader` a member without a leader ends the stream
//! itself. When the stream ends, all subscribers read again, and new watches go to the next member.

use std::{pin::Pin, sync::Arc, time::Duration};

use etcd_client::{WatchRequestSender, WatchResponseStream};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, Sleep, interval, sleep, timeout},
};
use tracing::debug;

use crate::transport::{
    error::{Failure, is_login_error, malformed},
    members::Members,
    request::watch_client,
    watch::{
        dispatch::{Dispatched, dispatch},
        prefix_watch::{self, Admission, PrefixWatch},
        subscriber::{Subscriber, WatchSignal},
        table::{Watch, WatchTable},
        target::WatchTarget,
    },
};

/// How often the stream's member is checked.
const MEMBER_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a member may go without an answer that needed a quorum until it is probed.
const PROBE_AFTER_SILENCE: Duration = Duration::from_secs(2);
/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long opening a stream may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long after its end a watch is cancelled in etcd.
const CANCEL_DELAY: Duration = Duration::from_millis(20);
/// How long a stream without watches stays open: a waiter that reads again often comes back soon.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// With more ended watches than this and no open one, the stream is closed at once, which cancels all of them.
const MAX_PENDING_CANCELS: usize = 64;

/// A request to the stream's task.
#[derive(Debug)]
pub(crate) enum Command {
    Add { id: i64, target: WatchTarget, start_revision: i64, subscriber: Subscriber },
    Remove { id: i64 },
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
    let mut table = WatchTable::default();
    let mut prefix_watch = PrefixWatch::new(members.prefix_watch_threshold());
    let mut failures = 0_u32;
    loop {
        if table.is_empty() {
            match commands.recv().await {
                Some(command) => {
                    apply(command, &mut table);
                    continue;
                }
                None => return,
            }
        }
        while let Ok(command) = commands.try_recv() {
            apply(command, &mut table);
        }
        match Box::pin(serve(&members, &mut commands, &mut table, &mut prefix_watch, &mut failures)).await {
            StreamEnd::Closed => return,
            StreamEnd::Idle => {}
            StreamEnd::Broken => {
                failures = failures.saturating_add(1);
                // The other members are tried without a delay.
                if failures as usize >= members.count() {
                    let backoff = Duration::from_millis(50 << failures.min(5));
                    sleep(backoff.mul_f64(0.5 + fastrand::f64())).await;
                }
                for watch in table.drain() {
                    watch.subscriber.close();
                }
            }
        }
    }
}

/// Applies a command while no stream is open.
fn apply(command: Command, table: &mut WatchTable) {
    match command {
        Command::Add { id, target, start_revision, subscriber } => {
            table.insert(id, Watch::new(target, start_revision, subscriber));
        }
        Command::Remove { id } => {
            table.remove(id);
        }
    }
}

/// Serves watches on one stream until it ends.
async fn serve(
    members: &Members,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    table: &mut WatchTable,
    prefix_watch: &mut PrefixWatch,
    failures: &mut u32,
) -> StreamEnd {
    let Some(first) = table.first_id() else { return StreamEnd::Idle };
    prefix_watch.reset_for_new_stream();
    let member = members.preferred();
    let (sender, mut responses) = match open(members, member, first, table).await {
        Ok(stream) => stream,
        Err(failure) => {
            debug!(member = members.endpoint(member), error = %failure.error, "opening an etcd watch stream failed");
            if failure.stale_login {
                members.disconnect(member);
            }
            members.avoid(member);
            return StreamEnd::Broken;
        }
    };
    debug!(member = members.endpoint(member), watches = table.len(), "etcd watch stream opened");
    let (requests, outgoing) = mpsc::unbounded_channel();
    for (id, watch) in table.iter().filter(|(id, _)| **id != first) {
        let _ = requests.send(StreamRequest::create(*id, watch));
    }
    let sending = send_requests(sender, members.key_prefix(), outgoing);
    tokio::pin!(sending);
    let partitioned = until_partitioned(members, member);
    tokio::pin!(partitioned);
    let idle = sleep(IDLE_TIMEOUT);
    tokio::pin!(idle);
    // Ended watches, cancelled with a delay: the requests that follow an event, often a withdrawal, are sent first.
    let mut ended = Vec::new();
    let cancel = sleep(IDLE_TIMEOUT);
    tokio::pin!(cancel);
    let reason = loop {
        if !table.is_empty() {
            idle.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
        }
        tokio::select! {
            command = commands.recv() => match command {
                None => return StreamEnd::Closed,
                Some(Command::Add { id, target, start_revision, subscriber }) => {
                    let mut watch = Watch::new(target, start_revision, subscriber);
                    match prefix_watch.admit(&mut watch) {
                        Admission::Accepted => table.insert(id, watch),
                        Admission::TooLate => watch.subscriber.signal(WatchSignal::close_late),
                        Admission::Rejected => {
                            let _ = requests.send(StreamRequest::create(id, &watch));
                            table.insert(id, watch);
                            if let Some(id) = prefix_watch.request_if_needed(table) {
                                let _ = requests.send(StreamRequest::CreatePrefixWatch(id));
                            }
                        }
                    }
                }
                Some(Command::Remove { id }) => {
                    if table.remove(id).is_some_and(|watch| !watch.in_prefix_watch) {
                        cancel_later(id, &mut ended, cancel.as_mut());
                    }
                    if table.is_empty() && ended.len() > MAX_PENDING_CANCELS && commands.is_empty() {
                        return StreamEnd::Idle;
                    }
                }
            },
            response = responses.message() => match response {
                Ok(Some(response)) => {
                    if let Some(header) = response.header()
                        && let Err(foreign) = members.check_cluster(member, header.cluster_id())
                    {
                        break foreign.error.to_string();
                    }
                    if !response.canceled() {
                        *failures = 0;
                    }
                    match dispatch(&response, table, prefix_watch) {
                        Dispatched::Open => {}
                        Dispatched::Ended(id) => cancel_later(id, &mut ended, cancel.as_mut()),
                        Dispatched::Refused => {
                            if is_login_error(response.cancel_reason()) {
                                members.disconnect(member);
                            }
                            break response.cancel_reason().to_owned();
                        }
                    }
                }
                Ok(None) => break "the member ended it".to_owned(),
                Err(error) => break Failure::from(error).error.to_string(),
            },
            () = &mut cancel, if !ended.is_empty() => {
                ended.drain(..).for_each(|id| drop(requests.send(StreamRequest::Cancel(id))));
            }
            () = &mut sending => break "the connection is lost".to_owned(),
            error = &mut partitioned => break error.to_string(),
            () = &mut idle, if table.is_empty() => return StreamEnd::Idle,
        }
        if let Some(id) = prefix_watch.release_if_unused(table) {
            cancel_later(id, &mut ended, cancel.as_mut());
        }
    };
    debug!(member = members.endpoint(member), reason, "etcd watch stream ended");
    members.avoid(member);
    StreamEnd::Broken
}

/// Cancels the ended watch `id` together with others, [`CANCEL_DELAY`] after the first of them ended.
fn cancel_later(id: i64, ended: &mut Vec<i64>, cancel: Pin<&mut Sleep>) {
    if ended.is_empty() {
        cancel.reset(Instant::now() + CANCEL_DELAY);
    }
    ended.push(id);
}

/// Returns the error of a probe when `member` no longer reaches a quorum.
async fn until_partitioned(members: &Members, member: usize) -> BackendError {
    let mut tick = interval(MEMBER_CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if members.since_quorum_answer(member).is_none_or(|silence| silence >= PROBE_AFTER_SILENCE)
            && let Err(error) = members.probe(member, PROBE_TIMEOUT).await
            && error.is_retryable()
        {
            return error;
        }
    }
}

/// Opens a stream with the watch `first`.
async fn open(
    members: &Members,
    member: usize,
    first: i64,
    table: &WatchTable,
) -> Result<(WatchRequestSender, WatchResponseStream), Failure> {
    let watch = table.get(first).ok_or_else(|| malformed("watch"))?;
    let opening = async {
        let client = members.client(member).await?;
        let (key, options) = watch.target.options(first, watch.start_revision);
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

/// A request on the stream.
enum StreamRequest {
    Create {
        target: WatchTarget,
        id: i64,
        start_revision: i64,
    },
    /// Watches all deletions below the prefix.
    CreatePrefixWatch(i64),
    Cancel(i64),
}

impl StreamRequest {
    fn create(id: i64, watch: &Watch) -> Self {
        Self::Create { target: watch.target.clone(), id, start_revision: watch.start_revision }
    }
}

/// Sends requests on the stream. Returns when the stream has ended.
///
/// It runs beside the loop that reads responses, so that neither waits for the other: etcd stops reading requests
/// while its responses are not read.
async fn send_requests(
    mut sender: WatchRequestSender,
    prefix: String,
    mut requests: mpsc::UnboundedReceiver<StreamRequest>,
) {
    while let Some(request) = requests.recv().await {
        let sent = match request {
            StreamRequest::Create { target, id, start_revision } => {
                let (key, options) = target.options(id, start_revision);
                sender.watch(key, Some(options)).await
            }
            StreamRequest::CreatePrefixWatch(id) => {
                sender.watch(prefix.as_str(), Some(prefix_watch::options(id))).await
            }
            StreamRequest::Cancel(id) => sender.cancel(id).await,
        };
        if sent.is_err() {
            return;
        }
    }
}
