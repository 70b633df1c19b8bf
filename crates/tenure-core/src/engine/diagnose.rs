//! What an operator is told: how the store, this machine and the settings serve elections.

use std::{fs, time::Duration};

use super::{Shared, keeper, retry::timed};
use crate::{
    Diagnosis, ElectionName,
    config::check_grace_period,
    random,
    spi::{BackendError, BackendErrorKind, BackendSession, EntryRequest, HeartbeatProof},
};

/// How long a backend may take in all.
const LIMIT: Duration = Duration::from_secs(30);
/// The election that is entered for a moment, to see whether that is allowed.
const ELECTION: &str = "tenure-doctor";

pub(super) async fn diagnose(shared: &Shared) -> Vec<Diagnosis> {
    // Backends bound their questions; this is for one that does not.
    let limit = LIMIT.max(shared.config.request_timeout * 4);
    let asked = timed("examining the store", limit, async { Ok(shared.backend.diagnose().await) }).await;
    let mut diagnoses = asked.unwrap_or_else(|error| {
        vec![Diagnosis::problem(
            "store",
            error.to_string(),
            "see whether the store is up and can be reached from here",
        )]
    });
    session(shared, &mut diagnoses).await;
    diagnoses.push(clock());
    diagnoses
}

/// Opens a session, enters, leaves and closes.
async fn session(shared: &Shared, diagnoses: &mut Vec<Diagnosis>) {
    let config = &shared.config;
    let limit = config.request_timeout;
    let begun = shared.clock.now();
    let session = match timed("opening a session", limit, shared.backend.open_session(config.ttl)).await {
        Ok(session) => session,
        Err(error) => {
            diagnoses.push(refused("session", &error));
            return;
        }
    };
    let took = shared.clock.now().since(begun);
    let asked = config.ttl;
    let granted = session.granted_ttl();
    let ttl = humantime::format_duration;
    diagnoses.push(if session.proof() == HeartbeatProof::Process {
        Diagnosis::good(
            "session",
            "the kernel keeps it exactly as long as the process lives; the TTL has no meaning here",
        )
    } else if granted == asked {
        Diagnosis::good(
            "session",
            format!("opened in {took:.1?}; the TTL granted is the {} asked for", ttl(granted)),
        )
    } else {
        Diagnosis::warning(
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
    let most = keeper::largest_grace_period(session.proof(), granted, config.drift, config.grace_period());
    if let Err(error) = check_grace_period(config.grace_period(), granted, most) {
        diagnoses.push(Diagnosis::problem(
            "grace period",
            error.to_string(),
            format!("set grace_period to at most {}", ttl(most)),
        ));
    }
    rights(shared, &*session, diagnoses).await;
    if let Err(error) = timed("closing the session", limit, session.close()).await {
        diagnoses.push(Diagnosis::warning(
            "session",
            format!("it was not closed: {error}"),
            "it expires by itself; see whether the store answers",
        ));
    }
}

/// Enters an election that is made for this, and leaves it.
async fn rights(shared: &Shared, session: &dyn BackendSession, diagnoses: &mut Vec<Diagnosis>) {
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
    diagnoses.push(match (entered, left) {
        (Ok(_), Ok(())) => slow(shared, took).unwrap_or_else(|| {
            Diagnosis::good("entry", format!("entered the election {ELECTION:?} in {took:.1?}, and left it"))
        }),
        (Err(error), _) | (Ok(_), Err(error)) => refused("entry", &error),
    });
}

/// Whether a request takes so long that a heartbeat may come too late.
fn slow(shared: &Shared, took: Duration) -> Option<Diagnosis> {
    (took > shared.config.ttl / 12).then(|| {
        Diagnosis::warning(
            "entry",
            format!(
                "entering an election took {took:.1?}, which is much beside a TTL of {:?}",
                shared.config.ttl
            ),
            "choose a TTL of at least 12 times that, or see why the store is slow (its disks, the way to it)",
        )
    })
}

fn refused(subject: &str, error: &BackendError) -> Diagnosis {
    let advice = match error.kind() {
        BackendErrorKind::Unauthorized => {
            "see the user, its password and its rights: it has to read and write everything below the prefix or root"
        }
        BackendErrorKind::Invalid => "change the setting that the text names",
        _ => "see whether the store is up, has a quorum, and can be reached from here",
    };
    Diagnosis::problem(subject, error.to_string(), advice)
}

/// What keeps the time on which deadlines rest.
fn clock() -> Diagnosis {
    const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let Ok(source) = fs::read_to_string(SOURCE) else {
        return Diagnosis::warning(
            "clock",
            "what drives this machine's clock is not known",
            "on Linux, mount /sys; elsewhere, see that the clock's rate is right to within the drift",
        );
    };
    match source.trim() {
        "jiffies" => Diagnosis::warning(
            "clock",
            "CLOCK_BOOTTIME, driven by jiffies, which lose ticks under load",
            "see the kernel's log for why it trusts no better clock source (tsc, kvm-clock, hpet)",
        ),
        source => Diagnosis::good("clock", format!("CLOCK_BOOTTIME, driven by {source}")),
    }
}
