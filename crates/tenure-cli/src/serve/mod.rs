//! `tenure serve`: a sidecar that campaigns for programs in any language, over HTTP.
//!
//! The contract, and why at most one client considers itself leader, is in `docs/guide/sidecar.md`. The rules that it rests on:
//!
//! | rule | where |
//! |---|---|
//! | no grant outlasts the leadership; a slow answer extends nothing | [`grants`] |
//! | leadership is kept until the latest grant has ended, or its holder has resigned | [`lease`] |
//! | after a jump of the time of day nothing is granted, and the entry stays until the latest grant has ended | the engine: [`OnClockJump::StopByDeadline`] |
//! | a retry gets the same lease | [`leases`] |
//! | a panic releases nothing | [`abort_on_panic`] |

mod access;
mod address;
mod api;
mod connections;
mod error;
mod events;
mod grants;
mod lease;
mod leases;
mod overview;
mod page;
#[cfg(test)]
mod simulation_tests;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tenure::{BootClock, Config, Error, OnClockJump, Settings, spi::BackendErrorKind};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    args,
    exit::UsageError,
    messages,
    signals::{self, ReceivedSignal},
    store::Store,
    waiting,
};
use access::Access;
pub(crate) use address::ListenAddress;
use address::Listener;
use api::Sidecar;
use connections::Connections;
use events::Subscribers;
use lease::Timing;
use leases::Leases;
use overview::Overview;

/// The drift bound, if the URL sets none.
const DEFAULT_DRIFT: f64 = 0.1;
/// The election that is read at the start. Nobody else than `tenure doctor` has candidates in it.
const PROBED_ELECTION: &str = "tenure-doctor";

/// Serves until a termination signal, and then until all grants have ended.
pub(crate) async fn serve(options: &args::Serve) -> Result<u8> {
    let store = Store::new(options.url.as_deref())?;
    let timing = check_store(&store, options)?;
    if options.token_file.is_none() && !options.listen.is_local() {
        let message = format!(
            "--listen {} can be reached by other machines: give a --token-file, or listen on a loopback address or a Unix socket",
            options.listen
        );
        return Err(UsageError(message).into());
    }
    let access = Access::new(options.token_file.as_deref(), options.listen.loopback()).map_err(UsageError)?;
    // Before any other thread is started.
    let listener = Listener::bind(&options.listen)?;
    let mut signals = signals::subscribe().context("cannot handle signals")?;
    abort_on_panic();
    // The clients work on until their grants have ended.
    let config = Config::new().with_ttl(timing.ttl).with_on_clock_jump(OnClockJump::StopByDeadline);
    let elector = store.connect(config).await?;
    let leases = Leases::new(Arc::clone(&elector), timing);
    let overview = Arc::new(Overview::new(Arc::clone(&elector), store.name.clone()));
    let sidecar = Arc::new(Sidecar { leases, subscribers: Subscribers::new(), overview });
    let access = Arc::new(access);
    messages::try_inform(&format!("serves {} for {}", listener.address()?, store.name));
    let router = api::router(Arc::clone(&sidecar), Arc::clone(&access));
    tokio::spawn(access.follow_token_file());
    let connections = Connections::new();
    tokio::select! {
        never = connections::accept(&listener, router, &connections) => match never {},
        never = waiting::advise_in_outages(&*elector, &store) => match never {},
        error = refusal(&sidecar.leases) => return Err(error.into()),
        () = shut_down(&sidecar.leases, &mut signals) => {}
    }
    // The answer to the last resignation may be on its way.
    let (outcome, ()) = tokio::join!(elector.close_within(elector.shutdown_timeout()), connections.ended());
    if !outcome.confirmed {
        let expires_in = rounded_up(outcome.expires_in);
        messages::try_print(&format!(
            "the store has not confirmed that the entries were removed: other nodes lead within {expires_in}"
        ));
    }
    Ok(0)
}

/// Checks the store and its settings.
///
/// # Errors
/// When it elects within one machine only, or has a setting that the sidecar cannot have.
fn check_store(store: &Store, options: &args::Serve) -> Result<Timing> {
    let url = store.parsed()?;
    if matches!(url.scheme(), "local" | "memory") {
        let message = format!(
            "`tenure serve` needs a store of several machines, and {}: elects within one: use --store etcd://HOSTS/PREFIX, \
             zookeeper://HOSTS/ROOT, kubernetes:///NAMESPACE or nats://HOSTS/BUCKET, or `tenure run`, which needs no sidecar",
            url.scheme()
        );
        return Err(UsageError(message).into());
    }
    if let Some(policy) = url.text("on_clock_jump")
        && policy != "stop_by_deadline"
    {
        let reason = format!(
            "on_clock_jump={policy} is not allowed with `tenure serve`: its clients work until their grants have ended, so it must \
             be stop_by_deadline, which is the default here; remove the setting"
        );
        return Err(Error::from(url.invalid(reason)).into());
    }
    let in_url = url.duration("ttl").map_err(Error::from)?;
    let mut settings = Settings::new(store.url(), "");
    settings.ttl = options.ttl.or(in_url);
    let ttl = settings.config()?.ttl();
    let drift = url.parsed("drift", "a fraction such as 0.1").map_err(Error::from)?.unwrap_or(DEFAULT_DRIFT);
    Config::new().with_ttl(ttl).with_drift(drift).validate()?;
    Ok(Timing { clock: Arc::new(BootClock), ttl, drift })
}

/// Asks the store once, so that wrong credentials end the command at its start. Retries during an outage. Returns the error if the
/// store refuses and nothing was granted. A user may have permissions for the elections of its clients only: what it may not do
/// is said in the answers to them.
async fn refusal(leases: &Leases) -> Error {
    match leases.elector().leader(PROBED_ELECTION).await {
        Err(Error::Unauthorized(error)) if error.kind() == BackendErrorKind::Forbidden => {
            messages::try_print(&format!(
                "the store's user may not read the election {PROBED_ELECTION}; serving the elections that it may use: {error}"
            ));
            std::future::pending().await
        }
        Err(error) if leases.granted().0 == 0 => error,
        _ => std::future::pending().await,
    }
}

/// Waits for a termination signal, and then until no grant is left. Further signals shorten nothing: they say what is waited
/// for.
async fn shut_down(leases: &Leases, signals: &mut UnboundedReceiver<ReceivedSignal>) {
    signals::termination(signals).await;
    leases.stop();
    loop {
        match leases.granted() {
            (0, _) => {}
            (count, left) => {
                messages::try_inform(&format!(
                    "stops once its clients have resigned or their grants have ended: {count} left, at most {}",
                    rounded_up(left)
                ));
            }
        }
        tokio::select! {
            () = leases.all_over() => return,
            _ = signals::termination(signals) => {}
        }
    }
}

/// Makes a panic end the process at once. Unwinding would drop guards of leaderships, which resigns them, while clients work
/// under their grants. Without this process, the store keeps the entries for their TTL, which is longer.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn rounded_up(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs().saturating_add(1)))
}
