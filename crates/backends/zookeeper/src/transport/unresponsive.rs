//! Decides when a connection is given up: its server does not answer, and the ensemble does.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::{
    connect_options::ConnectOptions,
    connection::{Connection, max_server_silence},
    servers::{Servers, Target},
    session_state::SessionState,
    single_flight::Success,
};

/// Waits until a connection should be given up, because its server does not answer and another one does.
///
/// A late answer alone is no reason (hazard Z21): if the whole ensemble is slow, every session would reconnect, and make it
/// slower. So once requests have been unanswered for a while, a small one is sent. If that is late as well, the other servers are
/// asked for a session, which takes a quorum. If one opens it, and this connection has still not answered a moment later, its
/// server is frozen or cut off. Without that moment, sessions would move away from a server that recovers together with the
/// others.
///
/// Without any answer for as long as [`max_server_silence`], the connection is given up in any case: the client library counts the
/// bytes of an incomplete answer as a reason to wait.
pub(crate) async fn until_unresponsive(state: &SessionState, connection: &Connection) {
    loop {
        let limit = state.silence_limit.current();
        connection.unanswered_for(limit / 2).await;
        let asked_at = Instant::now();
        let others_answer = async {
            sleep(limit / 4).await;
            until_quorum_reachable(state, &connection.target, asked_at).await;
            sleep(limit / 4).await;
        };
        tokio::select! {
            biased;
            () = connection.answered(&state.options.barrier_path) => {}
            () = connection.unanswered_for(max_server_silence(state.granted_ttl)) => return,
            () = others_answer => {
                state.silence_limit.record_move();
                return;
            }
        }
    }
}

/// Waits until a session could be opened at a server at `since` or later, which takes a quorum. The address `own` is tried last.
///
/// All sessions share one probe, at most every quarter of a TTL: it costs each server three quorum writes.
async fn until_quorum_reachable(state: &SessionState, own: &Target, since: Instant) {
    let probe = |success| {
        let probe = Probe {
            options: Arc::clone(&state.options),
            servers: Arc::clone(&state.servers),
            ttl: state.requested_ttl,
            hedge_delay: state.hedge_delay(),
        };
        probe.run(own.clone(), success)
    };
    state.servers.quorum_probe.until_success(since, state.granted_ttl / 4, probe).await;
    debug!(session = %state.session.id(), server = %own, "the ensemble answers, this server does not");
}

struct Probe {
    options: Arc<ConnectOptions>,
    servers: Arc<Servers>,
    ttl: Duration,
    hedge_delay: Duration,
}

impl Probe {
    /// Tries servers until one succeeds, the next one beside those that are silent. Then waits for the others, since a session
    /// whose opening is cancelled would be kept by the servers for its TTL.
    async fn run(self, last: Target, success: Success) {
        let mut targets = self.servers.in_order().await;
        targets.sort_by_key(|target| *target == last);
        let mut next = targets.into_iter();
        let mut attempts = FuturesUnordered::new();
        loop {
            if !success.is_reported()
                && let Some(target) = next.next()
            {
                attempts.push(self.attempt(target));
            }
            tokio::select! {
                biased;
                attempt = attempts.next() => match attempt {
                    Some(true) => success.report(),
                    Some(false) => {}
                    None => return,
                },
                () = sleep(self.hedge_delay) => {}
            }
        }
    }

    /// Whether a session can be opened at `target`. It is closed at once.
    async fn attempt(&self, target: Target) -> bool {
        let opened = match Connection::open(&self.options, &target, self.ttl, None).await {
            Ok(opened) => opened,
            Err(error) => {
                debug!(server = %target, %error, "cannot open a session to probe the ensemble");
                self.servers.record_failure(&target);
                return false;
            }
        };
        // A local session (`localSessionsEnabled`) is opened without a quorum.
        let barrier = timeout(self.ttl / 5, opened.barrier(&self.options.barrier_path)).await;
        tokio::spawn(async move { opened.close_session().await });
        let is_reachable = matches!(barrier, Ok(Ok(())));
        if !is_reachable {
            self.servers.record_failure(&target);
        }
        is_reachable
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use futures::future::{join, join_all};
    use tokio::task::yield_now;
    use zookeeper_client::Error;

    use super::*;
    use crate::transport::{
        resumable_session::ResumableSession,
        scripted_server::{Answer, GatedServer, Request, ScriptedServer},
    };

    const TTL: Duration = Duration::from_secs(2);

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let holds = async {
            while !condition() {
                yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), holds).await.expect(what);
    }

    /// Sessions at the first of two servers.
    async fn sessions_at_first_of_two(count: usize) -> (Vec<ResumableSession>, [GatedServer; 2]) {
        let servers = [GatedServer::start(TTL).await, GatedServer::start(TTL).await];
        let addresses = servers.each_ref().map(|server| server.address().to_owned());
        let options = Arc::new(ConnectOptions::for_tests(Duration::from_secs(10)));
        let all = Arc::new(Servers::new(addresses.to_vec(), false));
        let second = all.in_order().await.into_iter().find(|target| target.server == addresses[1]);
        all.record_failure(&second.unwrap());
        let open = || ResumableSession::open(Arc::clone(&options), Arc::clone(&all), TTL);
        let sessions = join_all((0..count).map(|_| open())).await;
        (sessions.into_iter().map(Result::unwrap).collect(), servers)
    }

    /// Hazard Z21: a server that is silent alone is left for one that answers. The sessions share the probe for that.
    #[tokio::test]
    async fn a_server_that_is_silent_alone_is_left() {
        const SESSIONS: usize = 20;
        let (sessions, [first, second]) = sessions_at_first_of_two(SESSIONS).await;
        first.set_open(false);
        join_all(sessions.iter().map(|session| async {
            let connection = session.connection().await.unwrap();
            assert_eq!(connection.target.server, first.address());
            assert!(connection.stat("/").await.is_err(), "it is given up");
            let resumed = session.connection().await.unwrap();
            assert_eq!(resumed.target.server, second.address());
        }))
        .await;
        let (probes, _) = second.sessions();
        assert!((1..SESSIONS / 4).contains(&probes), "{probes} probes for {SESSIONS} sessions");
        until("they were closed", || second.sessions() == (probes, probes)).await;
    }

    /// Hazards G36, Z21: of the addresses of one name, the silent server's own is the last one that is asked for a session.
    #[tokio::test]
    async fn the_own_address_is_probed_last() {
        for _ in 0..8 {
            let all = [GatedServer::start(TTL).await, GatedServer::start(TTL).await];
            let addresses = all.each_ref().map(|server| server.address().parse().unwrap());
            let options = Arc::new(ConnectOptions::for_tests(Duration::from_secs(10)));
            let servers = Arc::new(Servers::with_addresses("zoo:2181", addresses.to_vec()));
            let [own, other] = servers.in_order().await.try_into().unwrap();
            let probe = |success| {
                let (options, servers) = (Arc::clone(&options), Arc::clone(&servers));
                let hedge_delay = Duration::from_secs(10);
                Probe { options, servers, ttl: Duration::from_secs(10), hedge_delay }
                    .run(own.clone(), success)
            };
            servers.quorum_probe.until_success(Instant::now(), TTL, probe).await;
            let opened = |target: &Target| {
                let server = all.iter().find(|server| server.address() == target.address);
                server.unwrap().sessions().0
            };
            assert_eq!([&own, &other].map(opened), [0, 1]);
        }
    }

    /// Hazard Z21: no connection is given up while no server answers, nor when the own server is the first to answer again. The
    /// session that was being opened meanwhile is closed.
    #[tokio::test]
    async fn a_late_answer_breaks_no_connection() {
        let (sessions, [first, second]) = sessions_at_first_of_two(1).await;
        let connection = sessions[0].connection().await.unwrap();
        for server in [&first, &second] {
            server.set_open(false);
        }
        let late = connection.stat("/");
        let answered = async {
            until("another server was tried", || second.waiting() > 0).await;
            first.set_open(true);
        };
        let (stat, ()) = join(late, answered).await;
        assert_eq!(stat, Ok(None));
        second.set_open(true);
        until("the other server has answered", || second.sessions() == (1, 1)).await;
        assert_eq!(connection.stat("/").await, Ok(None));
        assert!(Arc::ptr_eq(&connection, &sessions[0].connection().await.unwrap()));
    }

    /// Hazard Z21: a request that takes longer than its time limit fails, and the connection stays, as no other server answers.
    #[tokio::test]
    async fn a_request_that_times_out_breaks_no_connection() {
        let server = GatedServer::start(TTL).await;
        let options = Arc::new(ConnectOptions::for_tests(TTL / 4));
        let servers = Arc::new(Servers::new(vec![server.address().to_owned()], false));
        let session = ResumableSession::open(options, servers, TTL).await.unwrap();
        let connection = session.connection().await.unwrap();
        server.set_open(false);
        assert_eq!(connection.stat("/").await, Err(Error::Timeout));
        server.set_open(true);
        assert_eq!(connection.stat("/").await, Ok(None));
        assert!(Arc::ptr_eq(&connection, &session.connection().await.unwrap()));
    }

    /// A server that sends an endless answer is not read for ever, even if no other server answers.
    #[tokio::test]
    async fn an_endless_answer_is_given_up() {
        let is_first = AtomicBool::new(true);
        let server = ScriptedServer::start(move |request| {
            let answer = match request {
                Request::Connect { session: 0 } if !is_first.swap(false, SeqCst) => Answer::Disconnect,
                Request::Connect { .. } => Answer::SessionFor(7, TTL),
                _ => Answer::Endless,
            };
            Box::pin(async { answer })
        })
        .await;
        let options = Arc::new(ConnectOptions::for_tests(Duration::from_secs(60)));
        let servers = Arc::new(Servers::new(vec![server.address().to_owned()], false));
        let session = ResumableSession::open(options, servers, TTL).await.unwrap();
        let connection = session.connection().await.unwrap();
        let answer = timeout(TTL, connection.stat("/")).await;
        assert!(answer.expect("it is given up before the session ends").is_err());
    }
}
