//! The stream that carries all watches of one backend.
//!
//! One stream carries thousands of watches at the price of a map entry each, and its
//! member is checked once for all of them: when no quorum's answer came through it
//! for two seconds, or a request to it was late, it is asked for one (hazards E5,
//! E16); `require_leader` makes a member without a leader end the stream itself. When
//! the stream ends, everybody is told to look again, and what is asked for anew goes to
//! the next member.

use std::{sync::Arc, time::Duration};

use etcd_client::{WatchRequestSender, WatchResponse, WatchResponseStream};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, Sleep, interval, sleep, timeout},
};
use tracing::debug;

use crate::{
    transport::error::{Failure, is_login_trouble, malformed},
    transport::members::{Members, watches},
    transport::watch::prefix_watch::{self as common, Common, Taken},
    transport::watch::subscriber::Signal,
    transport::watch::table::{Open, Watch},
    transport::watch::target::Target,
    transport::watch::watcher::{Command, FIRST_ID, NOW},
};

/// How often the stream's member is looked at.
const TICK: Duration = Duration::from_millis(500);
/// How long a member may go without a quorum's answer before it is asked for one.
const QUIET: Duration = Duration::from_secs(2);
/// How long it then has.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long opening a stream may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long after its end a watch is taken back.
const MOMENT: Duration = Duration::from_millis(20);
/// How long a stream without watches is kept: a waiter that looks again comes back soon.
const LINGER: Duration = Duration::from_secs(5);
/// Of more watches that are over than so many the stream is ended at once: they end with it.
const FEW: usize = 64;

/// Why a stream ended.
enum End {
    /// Nobody watches any more.
    Idle,
    /// It broke, or could not be opened.
    Broken,
    /// The backend is gone.
    Closed,
}

/// Serves `commands` until their sender is gone.
pub(crate) async fn run(members: Arc<Members>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut open = Open::default();
    let mut common = Common::new(members.prefix_watch_threshold());
    let mut failures = 0_u32;
    loop {
        if open.is_empty() {
            match commands.recv().await {
                Some(command) => {
                    accept(command, &mut open);
                    continue;
                }
                None => return,
            }
        }
        while let Ok(command) = commands.try_recv() {
            accept(command, &mut open);
        }
        match Box::pin(serve(&members, &mut commands, &mut open, &mut common, &mut failures)).await {
            End::Closed => return,
            End::Idle => {}
            End::Broken => {
                failures = failures.saturating_add(1);
                // The other members are tried without delay.
                if failures as usize >= members.count() {
                    let pause = Duration::from_millis(50 << failures.min(5));
                    sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                }
                for watch in open.take() {
                    watch.hearer.over();
                }
            }
        }
    }
}

fn accept(command: Command, open: &mut Open) {
    match command {
        Command::Add { id, target, from, hearer } => {
            open.insert(id, Watch::of(target, from, hearer));
        }
        Command::Remove { id } => {
            open.remove(id);
        }
    }
}

/// Serves watches on one stream for as long as it lasts.
async fn serve(
    members: &Members,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    open: &mut Open,
    common: &mut Common,
    failures: &mut u32,
) -> End {
    let Some(first) = open.first() else { return End::Idle };
    common.renew();
    let member = members.preferred();
    let (sender, mut responses) = match connect(members, member, first, open).await {
        Ok(stream) => stream,
        Err(failure) => {
            debug!(member = members.endpoint(member), error = %failure.error, "etcd watch stream not opened");
            if failure.stale_login {
                members.reset(member);
            }
            members.avoid(member);
            return End::Broken;
        }
    };
    debug!(member = members.endpoint(member), watches = open.len(), "etcd watch stream opened");
    let (requests, outgoing) = mpsc::unbounded_channel();
    for (id, watch) in open.iter().filter(|(id, _)| **id != first) {
        let _ = requests.send(Request::create(*id, watch));
    }
    let sending = send(sender, members.prefix(), outgoing);
    tokio::pin!(sending);
    let cut_off = until_cut_off(members, member);
    tokio::pin!(cut_off);
    let idle = sleep(LINGER);
    tokio::pin!(idle);
    // Watches that are over. Taken back a moment later: what is asked for next, a departure often, goes first.
    let mut over = Vec::new();
    let take_back = sleep(LINGER);
    tokio::pin!(take_back);
    let broken = loop {
        if !open.is_empty() {
            idle.as_mut().reset(Instant::now() + LINGER);
        }
        tokio::select! {
            command = commands.recv() => match command {
                None => return End::Closed,
                Some(Command::Add { id, target, from, hearer }) => {
                    let mut watch = Watch::of(target, from, hearer);
                    match common.take_in(&mut watch) {
                        Taken::In => open.insert(id, watch),
                        Taken::Late => watch.hearer.tell(Signal::over_late),
                        Taken::Not => {
                            let _ = requests.send(Request::create(id, &watch));
                            open.insert(id, watch);
                            if let Some(id) = common.wanted(open) {
                                let _ = requests.send(Request::Common(id));
                            }
                        }
                    }
                }
                Some(Command::Remove { id }) => {
                    if open.remove(id).is_some_and(|watch| !watch.in_common) {
                        push(id, &mut over, take_back.as_mut());
                    }
                    if open.is_empty() && over.len() > FEW && commands.is_empty() {
                        return End::Idle;
                    }
                }
            },
            response = responses.message() => match response {
                Ok(Some(response)) => {
                    if let Some(header) = response.header()
                        && let Err(foreign) = members.admit(member, header.cluster_id())
                    {
                        break foreign.error.to_string();
                    }
                    if !response.canceled() {
                        *failures = 0;
                    }
                    match dispatch(&response, open, common) {
                        Dispatched::Nothing => {}
                        Dispatched::Done(id) => push(id, &mut over, take_back.as_mut()),
                        Dispatched::Refused => {
                            if is_login_trouble(response.cancel_reason()) {
                                members.reset(member);
                            }
                            break response.cancel_reason().to_owned();
                        }
                    }
                }
                Ok(None) => break "the member ended it".to_owned(),
                Err(error) => break Failure::from(error).error.to_string(),
            },
            () = &mut take_back, if !over.is_empty() => {
                over.drain(..).for_each(|id| drop(requests.send(Request::Cancel(id))));
            }
            () = &mut sending => break "the connection is lost".to_owned(),
            error = &mut cut_off => break error.to_string(),
            () = &mut idle, if open.is_empty() => return End::Idle,
        }
        if let Some(id) = common.unneeded(open) {
            push(id, &mut over, take_back.as_mut());
        }
    };
    debug!(member = members.endpoint(member), reason = broken, "etcd watch stream ended");
    members.avoid(member);
    End::Broken
}

/// Has the watch `id`, which is over, taken back a moment after the first of those that are to be.
fn push(id: i64, over: &mut Vec<i64>, take_back: std::pin::Pin<&mut Sleep>) {
    if over.is_empty() {
        take_back.reset(Instant::now() + MOMENT);
    }
    over.push(id);
}

/// Returns when `member` no longer hears a quorum, with how that showed.
async fn until_cut_off(members: &Members, member: usize) -> BackendError {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if members.quiet(member).is_none_or(|quiet| quiet >= QUIET)
            && let Err(error) = members.probe(member, PROBE_TIMEOUT).await
            && error.is_retryable()
        {
            return error;
        }
    }
}

/// What a response meant.
enum Dispatched {
    Nothing,
    /// The watch has said its word.
    Done(i64),
    /// The member refuses to watch for us.
    Refused,
}

fn dispatch(response: &WatchResponse, open: &mut Open, common: &mut Common) -> Dispatched {
    let id = response.watch_id();
    if common.is(id) {
        let is_over = common.hear(response, open);
        // Some etcds hear nothing more on a stream on which they have refused a watch (issue 11708).
        return match is_over && is_login_trouble(response.cancel_reason()) {
            true => Dispatched::Refused,
            false => Dispatched::Nothing,
        };
    }
    if response.canceled() {
        // Also the end that a compaction puts to a watch, with an empty reason and
        // the stream left open (issue 7815).
        return match open.remove(id) {
            Some(watch) => {
                watch.hearer.over();
                if is_login_trouble(response.cancel_reason()) {
                    Dispatched::Refused
                } else {
                    Dispatched::Nothing
                }
            }
            None if id < FIRST_ID => {
                // It may be the common watch that is refused: some etcds do not say which.
                common.refuse_unheard(response.cancel_reason());
                Dispatched::Refused
            }
            None => Dispatched::Nothing,
        };
    }
    if response.created() {
        return dispatch_created(response, open);
    }
    if response.events().is_empty() {
        return Dispatched::Nothing;
    }
    let Some(watch) = open.get(id) else { return Dispatched::Nothing };
    let ended = response.events().iter().filter_map(|event| {
        let kv = event.kv()?;
        Some((kv.key(), kv.mod_revision()))
    });
    if !watch.hears(ended) {
        return Dispatched::Nothing;
    }
    open.remove(id);
    Dispatched::Done(id)
}

fn dispatch_created(response: &WatchResponse, open: &mut Open) -> Dispatched {
    let id = response.watch_id();
    let Some(watch) = open.get(id) else { return Dispatched::Nothing };
    match standing(watch.from, response.header().map(|header| header.revision())) {
        Standing::InTime => Dispatched::Nothing,
        Standing::Now => {
            watch.hearer.stands();
            Dispatched::Nothing
        }
        Standing::Late => {
            watch.hearer.tell(Signal::over_late);
            open.remove(id);
            Dispatched::Done(id)
        }
    }
}

/// How a watch came to stand.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Before the revision it starts from: it is told of every change as it happens.
    InTime,
    /// At or after that revision: etcd serves it from a loop that runs every 100 ms.
    Late,
    /// It was to start whenever it stands; what happened before has to be read.
    Now,
}

/// How a watch stands that was asked to start `from`, in a store at `revision`.
fn standing(from: i64, revision: Option<i64>) -> Standing {
    match revision {
        _ if from == NOW => Standing::Now,
        Some(revision) if revision >= from => Standing::Late,
        _ => Standing::InTime,
    }
}

async fn connect(
    members: &Members,
    member: usize,
    first: i64,
    open: &Open,
) -> Result<(WatchRequestSender, WatchResponseStream), Failure> {
    let watch = open.get(first).ok_or_else(|| malformed("watch"))?;
    let opening = async {
        let client = members.client(member).await?;
        let (key, options) = watch.target.options(first, watch.from);
        Ok(watches(&client).watch(key, Some(options)).await?.split())
    };
    match timeout(OPEN_TIMEOUT, opening).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let text = format!("no answer within {OPEN_TIMEOUT:?}");
            Err(BackendError::new(BackendErrorKind::Unavailable, text).into())
        }
    }
}

enum Request {
    Create {
        target: Target,
        id: i64,
        from: i64,
    },
    /// All ends below the prefix.
    Common(i64),
    Cancel(i64),
}

impl Request {
    fn create(id: i64, watch: &Watch) -> Self {
        Self::Create { target: watch.target.clone(), id, from: watch.from }
    }
}

/// Hands requests to the stream; ends when it is gone.
///
/// Beside the loop that reads answers, so that neither waits for the other: etcd
/// stops reading requests while its answers are not read.
async fn send(
    mut sender: WatchRequestSender,
    prefix: String,
    mut requests: mpsc::UnboundedReceiver<Request>,
) {
    while let Some(request) = requests.recv().await {
        let sent = match request {
            Request::Create { target, id, from } => {
                let (key, options) = target.options(id, from);
                sender.watch(key, Some(options)).await
            }
            Request::Common(id) => sender.watch(prefix.as_str(), Some(common::options(id))).await,
            Request::Cancel(id) => sender.cancel(id).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hazard E15: a watch is in time only while its first revision lies in the store's future.
    #[test]
    fn a_watch_that_starts_in_the_past_is_known_to_be_late() {
        assert_eq!(standing(8, Some(7)), Standing::InTime);
        assert_eq!(standing(8, Some(8)), Standing::Late);
        assert_eq!(standing(8, Some(9)), Standing::Late);
        assert_eq!(standing(NOW, Some(9)), Standing::Now);
    }
}
