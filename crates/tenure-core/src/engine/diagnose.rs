//! Examines for an operator whether the store, this machine and the settings suit elections.

use std::{fs, time::Duration};

use super::{
    elector_context::ElectorContext,
    rules::{heartbeat, token_marks::TokenRegression},
    runtime::retry::with_timeout,
    tasks::session_opening::session_options,
};
use crate::{
    Diagnosis, ElectionName,
    config::check_grace_period,
    random,
    spi::{BackendError, BackendErrorKind, BackendSession, Entered, EntryRequest, HeartbeatProof},
};

/// The timeout of [`Backend::diagnose`](crate::spi::Backend::diagnose), unless four requests may take longer.
const MIN_BACKEND_TIMEOUT: Duration = Duration::from_secs(30);
/// The election that is entered for a moment, to check that this is allowed.
const DIAGNOSE_ELECTION: &str = "tenure-doctor";

pub(super) async fn diagnose(shared: &ElectorContext) -> Vec<Diagnosis> {
    // Backends limit their own requests; this is for one that does not.
    let limit = MIN_BACKEND_TIMEOUT.max(shared.config.request_timeout * 4);
    let answer =
        with_timeout("examining the store", limit, async { Ok(shared.backend.diagnose().await) }).await;
    let mut diagnoses = answer.unwrap_or_else(|error| {
        vec![Diagnosis::problem(
            "store",
            error.to_string(),
            "check that the store is up and can be reached from here",
        )]
    });
    diagnose_session(shared, &mut diagnoses).await;
    diagnoses.push(diagnose_clock());
    diagnoses.extend(diagnose_tokens(shared));
    diagnoses
}

/// Opens a session, enters, leaves and closes.
async fn diagnose_session(shared: &ElectorContext, diagnoses: &mut Vec<Diagnosis>) {
    let config = &shared.config;
    let limit = config.request_timeout;
    let begun = shared.clock.now();
    let Ok(election) = ElectionName::new(DIAGNOSE_ELECTION) else { return };
    let options = session_options(shared, Some(election.clone()));
    let session = match with_timeout("opening a session", limit, shared.backend.open_session(&options)).await
    {
        Ok(session) => session,
        Err(error) => {
            diagnoses.push(request_failed("session", &error));
            return;
        }
    };
    let took = shared.clock.now().since(begun);
    let requested = config.ttl;
    let granted = session.granted_ttl();
    let ttl = humantime::format_duration;
    diagnoses.push(if session.proof() == HeartbeatProof::Process {
        Diagnosis::good("session", "it lives exactly as long as this process; the TTL has no effect here")
    } else if granted == requested {
        Diagnosis::good(
            "session",
            format!("opened in {took:.1?}; the store grants the requested TTL of {}", ttl(granted)),
        )
    } else {
        Diagnosis::warning(
            "session",
            format!(
                "opened in {took:.1?}; instead of the requested TTL of {} the store grants {}",
                ttl(requested),
                ttl(granted)
            ),
            format!(
                "ask for ttl={}, or change the store's bounds",
                ttl(granted).to_string().replace(' ', "%20")
            ),
        )
    });
    let max = heartbeat::largest_grace_period(session.proof(), granted, config.drift, config.grace_period());
    if let Err(error) = check_grace_period(config.grace_period(), granted, max) {
        diagnoses.push(Diagnosis::problem(
            "grace period",
            error.to_string(),
            format!("set grace_period to at most {}", ttl(max)),
        ));
    }
    diagnose_entry(shared, &*session, election, diagnoses).await;
    if let Err(error) = with_timeout("closing the session", limit, session.close()).await {
        diagnoses.push(Diagnosis::warning(
            "session",
            format!("it was not closed: {error}"),
            "it expires by itself; check that the store answers",
        ));
    }
}

/// Enters an election that exists for this purpose, and leaves it.
async fn diagnose_entry(
    shared: &ElectorContext,
    session: &dyn BackendSession,
    election: ElectionName,
    diagnoses: &mut Vec<Diagnosis>,
) {
    let limit = shared.config.request_timeout;
    let request = EntryRequest {
        election,
        candidate: shared.config.id.clone(),
        value: [].into(),
        nonce: random::number(),
    };
    let begun = shared.clock.now();
    let entered = with_timeout("entering an election", limit, session.enter(&request)).await;
    let took = shared.clock.now().since(begun);
    let entry = entered.as_ref().ok().and_then(Entered::entry).cloned();
    let left = with_timeout("leaving an election", limit, session.leave(&request, entry.as_ref())).await;
    diagnoses.push(match (entered, left) {
        (Ok(_), Ok(())) => slow_request(shared, took).unwrap_or_else(|| {
            Diagnosis::good(
                "entry",
                format!("entered the election {DIAGNOSE_ELECTION:?} in {took:.1?}, and left it"),
            )
        }),
        (Err(error), _) | (Ok(_), Err(error)) => request_failed("entry", &error),
    });
}

/// A warning if a request takes so long that a heartbeat may come too late.
fn slow_request(shared: &ElectorContext, took: Duration) -> Option<Diagnosis> {
    (took > shared.config.ttl / 12).then(|| {
        Diagnosis::warning(
            "entry",
            format!(
                "entering an election took {took:.1?}, which is long for a TTL of {:?}",
                shared.config.ttl
            ),
            "choose a TTL of at least 12 times that, or find out why the store is slow (disks, network)",
        )
    })
}

fn request_failed(subject: &str, error: &BackendError) -> Diagnosis {
    let advice = match error.kind() {
        BackendErrorKind::Unauthorized | BackendErrorKind::Forbidden => {
            "check the user, its password and its permissions: it has to read and write everything below the prefix or root, or in the schema"
        }
        BackendErrorKind::Invalid => "change the setting that the message names",
        _ => "check that the store is up, has a quorum, and can be reached from here",
    };
    Diagnosis::problem(subject, error.to_string(), advice)
}

/// A problem if fencing tokens have gone back since this elector was created.
fn diagnose_tokens(shared: &ElectorContext) -> Option<Diagnosis> {
    let marks = shared.token_marks();
    let (count, TokenRegression { election, token, highest }) = marks.regressions()?;
    let others = if count > 1 { format!("; {count} tokens have gone back in all") } else { String::new() };
    Some(Diagnosis::problem(
        "tokens",
        format!("the fencing token of the election {election} went back from {highest} to {token}{others}"),
        "the store was wiped, restored or exchanged: reset the marks of the resources that check tokens, as described under \
         \"When tokens go back\" in docs/guide/operating.md",
    ))
}

/// Examines the clock with which deadlines are measured.
fn diagnose_clock() -> Diagnosis {
    const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let Ok(source) = fs::read_to_string(SOURCE) else {
        return Diagnosis::warning(
            "clock",
            "the clock source of this machine is unknown",
            "on Linux, mount /sys; elsewhere, make sure that the clock's rate is accurate to within the drift bound",
        );
    };
    match source.trim() {
        "jiffies" => Diagnosis::warning(
            "clock",
            "CLOCK_BOOTTIME with clock source jiffies, which loses ticks under load",
            "see the kernel log for why it uses no better clock source (tsc, kvm-clock, hpet)",
        ),
        source => Diagnosis::good("clock", format!("CLOCK_BOOTTIME with clock source {source}")),
    }
}
