//! What the service manager, such as systemd, is sent (sd_notify(3)), and the variables of its that concern this process.

use std::{
    convert::Infallible,
    env,
    ffi::{OsStr, OsString},
    future::pending,
    io::{self, ErrorKind},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use futures::StreamExt as _;
use tenure::{Connection, Elector, FencingToken};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{exit::UsageError, messages, store::Store};

/// The variables with which a service manager asks this process for messages. They are not for the program: the manager accepts
/// messages from its main process only, which is this one.
pub(super) const VARIABLES: [&str; 3] = [SOCKET, WATCHDOG_PID, WATCHDOG_USEC];
const SOCKET: &str = "NOTIFY_SOCKET";
const WATCHDOG_PID: &str = "WATCHDOG_PID";
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";

/// How often the connection to the store is looked at, and how soon a message is sent again that was not accepted.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// The first and the longest delay before the queue is read again, until this candidate is in it.
const MIN_QUEUE_DELAY: Duration = Duration::from_millis(50);
const MAX_QUEUE_DELAY: Duration = Duration::from_secs(1);
/// How much longer than the shutdown timeout the manager is asked to wait, for the end of this process.
const STOP_MARGIN: Duration = Duration::from_secs(2);

/// What this process is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It waits for leadership.
    Campaigning,
    /// It leads.
    Leader { since: SystemTime, token: FencingToken },
    /// It waits before it campaigns again.
    Pausing { delay: Duration },
    /// It ends.
    Stopping,
}

/// The service manager that has started this process, if there is one.
#[derive(Debug)]
pub(super) struct ServiceManager {
    /// The manager's socket, and one to send from.
    socket: Option<(SocketAddr, UnixDatagram)>,
    /// Within which time the manager expects the next sign of life.
    watchdog: Option<Duration>,
    phase: watch::Sender<Phase>,
    failure_reported: AtomicBool,
}

impl ServiceManager {
    /// Reads the variables. Without `NOTIFY_SOCKET`, nothing is ever sent.
    ///
    /// # Errors
    /// If `WATCHDOG_USEC` or `WATCHDOG_PID` is not a number. A `NOTIFY_SOCKET` of an unknown kind is only printed.
    pub(super) fn from_environment() -> Result<Self, UsageError> {
        let socket = match env::var_os(SOCKET).filter(|name| !name.is_empty()) {
            None => None,
            Some(name) => match address(&name).and_then(|address| Ok((address, socket()?))) {
                Ok(socket) => Some(socket),
                Err(error) => {
                    messages::try_print(&format!(
                        "{SOCKET} is {}, to which nothing can be sent: {error}; the service manager gets no messages",
                        name.display()
                    ));
                    None
                }
            },
        };
        let watchdog = watchdog(env::var_os(WATCHDOG_USEC), env::var_os(WATCHDOG_PID), process::id())?;
        let phase = watch::Sender::new(Phase::Campaigning);
        Ok(Self { socket, watchdog, phase, failure_reported: AtomicBool::new(false) })
    }

    /// Changes what the manager shows as this service's status. Has no effect after [`stopping`](Self::stopping).
    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let may_change = *current != Phase::Stopping;
            if may_change {
                *current = phase;
            }
            may_change
        });
    }

    /// Tells the manager that this process ends, and that this can take `timeout`. Only the first call has an effect.
    pub(super) fn stopping(&self, timeout: Duration) {
        if self.phase.send_replace(Phase::Stopping) != Phase::Stopping {
            let micros = timeout.saturating_add(STOP_MARGIN).as_micros();
            self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}"));
        }
    }

    /// Sends signs of life, that this service is ready once it is a candidate, and its status at each change.
    ///
    /// A standby is a ready service. With `--try` there is no standby: the service is ready when it leads.
    pub(super) async fn report(
        &self,
        elector: &dyn Elector,
        store: &Store,
        election: &str,
        has_standby: bool,
    ) -> Infallible {
        if self.socket.is_none() {
            return pending().await;
        }
        tokio::select! {
            never = self.send_signs_of_life() => never,
            never = self.report_ready(elector, election, has_standby) => never,
            never = self.report_status(elector, store, election) => never,
        }
    }

    /// Runs on the thread that supervises the program: if that hangs, the manager gets no more signs of life.
    async fn send_signs_of_life(&self) -> Infallible {
        let Some(watchdog) = self.watchdog else { return pending().await };
        let mut ticks = interval((watchdog / 2).max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.send("WATCHDOG=1");
        }
    }

    async fn report_ready(&self, elector: &dyn Elector, election: &str, has_standby: bool) -> Infallible {
        let mut phase = self.phase.subscribe();
        let leads = phase.wait_for(|phase| matches!(phase, Phase::Leader { .. }));
        tokio::select! {
            _ = leads => {}
            () = entered(elector, election), if has_standby => {}
        }
        while !self.send("READY=1") {
            sleep(STATUS_INTERVAL).await;
        }
        pending().await
    }

    async fn report_status(&self, elector: &dyn Elector, store: &Store, election: &str) -> Infallible {
        let mut phase = self.phase.subscribe();
        // After a permanent error there are no more leaders. The campaign returns the same error.
        let leaders = elector
            .observe(election)
            .filter_map(async |leader| leader.ok())
            .chain(futures::stream::pending());
        let mut leaders = std::pin::pin!(leaders);
        let mut ticks = interval(STATUS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let own_id = elector.candidate_id().to_string();
        let (mut leader, mut sent) = (None, String::new());
        loop {
            let status = elector.status();
            let outage = (status.connection == Connection::Retrying)
                .then(|| format!("{} does not answer", store.name));
            let text = text(&phase.borrow_and_update(), leader.as_deref(), outage.as_deref());
            if text != sent && self.send(&format!("STATUS={text}")) {
                sent = text;
            }
            tokio::select! {
                Some(next) = leaders.next() => {
                    leader = next.map(|leader| leader.id).filter(|id| *id != own_id);
                }
                _ = phase.changed() => {}
                _ = ticks.tick() => {}
            }
        }
    }

    /// Sends a message, without blocking. Returns whether it was accepted. Prints the first failure.
    fn send(&self, message: &str) -> bool {
        let Some((address, socket)) = &self.socket else { return true };
        match socket.send_to_addr(message.as_bytes(), address) {
            Ok(_) => true,
            Err(error) => {
                // A manager that is busy is no failure.
                if error.kind() != ErrorKind::WouldBlock
                    && !self.failure_reported.swap(true, Ordering::SeqCst)
                {
                    messages::try_print(&format!("cannot send to the service manager ({SOCKET}): {error}"));
                }
                false
            }
        }
    }
}

/// Whether the service manager has passed open sockets to this process (sd_listen_fds(3)), which are for the program.
pub(super) fn has_sockets() -> bool {
    let addressee = env::var("LISTEN_PID").ok().and_then(|pid| pid.parse().ok());
    addressee == Some(process::id())
}

/// Returns once this elector's candidate is in the queue.
async fn entered(elector: &dyn Elector, election: &str) {
    let id = elector.candidate_id().to_string();
    let mut delay = MIN_QUEUE_DELAY;
    loop {
        // Waits while the store does not answer. If it refuses, the campaign returns the same error.
        let candidates = elector.candidates(election).await.unwrap_or_default();
        if candidates.iter().any(|candidate| candidate.id == id) {
            return;
        }
        sleep(delay).await;
        delay = (delay * 2).min(MAX_QUEUE_DELAY);
    }
}

/// The status, on one line whatever the leader's id and the store's name contain: each line of a message is an assignment.
fn text(phase: &Phase, other_leader: Option<&str>, outage: Option<&str>) -> String {
    let text = match (phase, other_leader, outage) {
        (Phase::Stopping, _, _) => "stopping".to_owned(),
        (Phase::Pausing { delay }, _, _) => {
            format!("no candidate until a pause of {} is over", humantime::format_duration(*delay))
        }
        (Phase::Leader { since, token }, _, outage) => {
            let outage = outage.map(|outage| format!("; {outage}")).unwrap_or_default();
            format!("leader since {}, token {token}{outage}", humantime::format_rfc3339_seconds(*since))
        }
        (Phase::Campaigning, _, Some(outage)) => format!("waiting for leadership; {outage}"),
        (Phase::Campaigning, Some(leader), None) => format!("standby; leader is {leader}"),
        (Phase::Campaigning, None, None) => "waiting for leadership".to_owned(),
    };
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// The address of the manager's socket: a path, or a name in the abstract namespace after an `@`.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::other("it must begin with / or @")),
    }
}

fn socket() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The time within which this process has to send signs of life, as sd_watchdog_enabled(3) reads it.
fn watchdog(usec: Option<OsString>, pid: Option<OsString>, own: u32) -> Result<Option<Duration>, UsageError> {
    let number = |name: &str, value: Option<OsString>| {
        let Some(value) = value else { return Ok(None) };
        let parsed = value.to_str().and_then(|text| text.parse().ok()).filter(|number: &u64| *number > 0);
        let wrong = || UsageError(format!("{name} is {}: it must be a positive number", value.display()));
        parsed.map(Some).ok_or_else(wrong)
    };
    let (usec, pid) = (number(WATCHDOG_USEC, usec)?, number(WATCHDOG_PID, pid)?);
    // Another process's watchdog is none of this process's business.
    Ok(usec.filter(|_| pid.is_none_or(|pid| pid == u64::from(own))).map(Duration::from_micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_one_line_in_the_words_of_the_phase() {
        let token = FencingToken::new(7).unwrap();
        let leading = Phase::Leader { since: SystemTime::UNIX_EPOCH, token };
        let outage = Some("etcd a:2379 does not answer");
        assert_eq!(text(&leading, None, None), "leader since 1970-01-01T00:00:00Z, token 7");
        assert_eq!(
            text(&leading, Some("b"), outage),
            "leader since 1970-01-01T00:00:00Z, token 7; etcd a:2379 does not answer"
        );
        assert_eq!(
            text(&Phase::Campaigning, Some("b"), outage),
            "waiting for leadership; etcd a:2379 does not answer"
        );
        assert_eq!(text(&Phase::Campaigning, None, None), "waiting for leadership");
        // Another process chooses the leader's id.
        assert_eq!(
            text(&Phase::Campaigning, Some("b\nMAINPID=1\nREADY=1"), None),
            "standby; leader is b MAINPID=1 READY=1"
        );
    }

    #[test]
    fn the_watchdog_is_that_of_this_process() {
        let watchdog = |usec: &str, pid: Option<&str>| {
            watchdog(Some(usec.into()), pid.map(OsString::from), 42).map_err(|error| error.to_string())
        };
        assert_eq!(watchdog("3000000", None), Ok(Some(Duration::from_secs(3))));
        assert_eq!(watchdog("3000000", Some("42")), Ok(Some(Duration::from_secs(3))));
        assert_eq!(watchdog("3000000", Some("43")), Ok(None));
        assert_eq!(super::watchdog(None, Some("42".into()), 42).unwrap(), None);
        for (usec, pid) in [("0", None), ("3s", None), ("", None), ("3000000", Some("me"))] {
            let refused = watchdog(usec, pid).unwrap_err();
            assert!(refused.contains("must be a positive number"), "{usec} {pid:?}: {refused}");
        }
    }

    #[test]
    fn a_socket_is_a_path_or_an_abstract_name() {
        let of = |name: &str| address(OsStr::new(name));
        assert_eq!(
            of("/run/systemd/notify").unwrap().as_pathname().unwrap().to_str(),
            Some("/run/systemd/notify")
        );
        assert_eq!(of("@/org/x").unwrap().as_abstract_name(), Some(&b"/org/x"[..]));
        assert!(of("vsock:2:1234").is_err() && of("relative").is_err());
    }
}
