//! What an operator is told: how the store, this machine and the settings serve elections.

use std::{fs, time::Duration};

use super::{Shared, keeper, retry::timed};
use crate::{
    ElectionName, Finding,
    config::check_stop_budget,
    random,
    spi::{BackendError, BackendErrorKind, BackendSession, EntryRequest, Proof},
};

/// How long a backend may take in all.
const LIMIT: Duration = Duration::from_secs(30);
/// The election that is entered for a moment, to see whether that is allowed.
const ELECTION: &str = "tenure-doctor";

pub(super) async fn examine(shared: &Shared) -> Vec<Finding> {
    // Backends bound their questions; this is for one that does not.
    let limit = LIMIT.max(shared.config.request_timeout * 4);
    let asked = timed("examining the store", limit, async { Ok(shared.backend.examine().await) }).await;
    let mut findings = asked.unwrap_or_else(|error| {
        vec![Finding::problem(
            "store",
            error.to_string(),
            "see whether the store is up and can be reached from here",
        )]
    });
    session(shared, &mut findings).await;
    findings.push(clock());
    findings
}

/// Opens a session, enters, leaves and closes.
async fn session(shared: &Shared, findings: &mut Vec<Finding>) {
    let config = &shared.config;
    let limit = config.request_timeout;
    let begun = shared.clock.now();
    let session = match timed("opening a session", limit, shared.backend.open_session(config.ttl)).await {
        Ok(session) => session,
        Err(error) => {
            findings.push(refused("session", &error));
            return;
        }
    };
    let took = shared.clock.now().since(begun);
    let asked = config.ttl;
    let granted = session.granted_ttl();
    let ttl = humantime::format_duration;
    findings.push(if session.proof() == Proof::Process {
        Finding::good(
            "session",
            "the kernel keeps it exactly as long as the process lives; the TTL has no meaning here",
        )
    } else if granted == asked {
        Finding::good(
            "session",
            format!("opened in {took:.1?}; the TTL granted is the {} asked for", ttl(granted)),
        )
    } else {
        Finding::warning(
            "session",
            format!(
                "opened in {took:.1?}; of the TTL asked for, {}, the store made {}",
                ttl(asked),
                ttl(granted)
            ),
            format!(
                "ask for ttl={}, or change the store's bounds",
                ttl(granted).to_string().replace(' ', "%20")
            ),
        )
    });
    let most = keeper::largest_stop_budget(session.proof(), granted, config.drift, config.stop_budget());
    if let Err(error) = check_stop_budget(config.stop_budget(), granted, most) {
        findings.push(Finding::problem(
            "stop budget",
            error.to_string(),
            format!("set stop_budget to at most {}", ttl(most)),
        ));
    }
    rights(shared, &*session, findings).await;
    if let Err(error) = timed("closing the session", limit, session.close()).await {
        findings.push(Finding::warning(
            "session",
            format!("it was not closed: {error}"),
            "it expires by itself; see whether the store answers",
        ));
    }
}

/// Enters an election that is made for this, and leaves it.
async fn rights(shared: &Shared, session: &dyn BackendSession, findings: &mut Vec<Finding>) {
    let limit = shared.config.request_timeout;
    let Ok(election) = ElectionName::new(ELECTION) else { return };
    let request = EntryRequest {
        election,
        candidate: shared.config.id.clone(),
        value: [].into(),
        nonce: random::number(),
    };
    let begun = shared.clock.now();
    let entered = timed("entering an election", limit, session.enter(&request)).await;
    let took = shared.clock.now().since(begun);
    let entry = entered.as_ref().ok().map(|entered| entered.entry.clone());
    let left = timed("leaving an election", limit, session.leave(&request, entry.as_ref())).await;
    findings.push(match (entered, left) {
        (Ok(_), Ok(())) => slow(shared, took).unwrap_or_else(|| {
            Finding::good("entry", format!("entered the election {ELECTION:?} in {took:.1?}, and left it"))
        }),
        (Err(error), _) | (Ok(_), Err(error)) => refused("entry", &error),
    });
}

/// Whether a request takes so long that a heartbeat may come too late.
fn slow(shared: &Shared, took: Duration) -> Option<Finding> {
    (took > shared.config.ttl / 12).then(|| {
        Finding::warning(
            "entry",
            format!(
                "entering an election took {took:.1?}, which is much beside a TTL of {:?}",
                shared.config.ttl
            ),
            "choose a TTL of at least 12 times that, or see why the store is slow (its disks, the way to it)",
        )
    })
}

fn refused(subject: &str, error: &BackendError) -> Finding {
    let advice = match error.kind() {
        BackendErrorKind::Unauthorized => {
            "see the user, its password and its rights: it has to read and write everything below the prefix or root"
        }
        BackendErrorKind::Invalid => "change the setting that the text names",
        _ => "see whether the store is up, has a quorum, and can be reached from here",
    };
    Finding::problem(subject, error.to_string(), advice)
}

/// What keeps the time on which deadlines rest.
fn clock() -> Finding {
    const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let Ok(source) = fs::read_to_string(SOURCE) else {
        return Finding::warning(
            "clock",
            "what drives this machine's clock is not known",
            "on Linux, mount /sys; elsewhere, see that the clock's rate is right to within the drift",
        );
    };
    match source.trim() {
        "jiffies" => Finding::warning(
            "clock",
            "CLOCK_BOOTTIME, driven by jiffies, which lose ticks under load",
            "see the kernel's log for why it trusts no better clock source (tsc, kvm-clock, hpet)",
        ),
        source => Finding::good("clock", format!("CLOCK_BOOTTIME, driven by {source}")),
    }
}
