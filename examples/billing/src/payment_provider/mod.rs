//! `billing provider`: the simulated payment provider, a third party with a ledger of its own.

mod http;
mod latency;
mod ledger;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::net::TcpListener;
use tracing::info;

use ledger::{Ledger, Rules};

use crate::{parent_exit, signals};

/// The options of `billing provider`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The address to listen on; with port 0 a free port is used and printed
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The SQLite file that records every request, including refused ones
    #[arg(long)]
    ledger: PathBuf,
    /// The median time that a charge takes
    #[arg(long, default_value = "12ms", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// The random seed of the times that charges take
    #[arg(long)]
    seed: Option<u64>,
    /// Ignore fencing tokens, as most providers do
    #[arg(long)]
    no_tokens: bool,
    /// Ignore idempotency keys: every request is charged
    #[arg(long)]
    no_idempotency: bool,
    /// Exit when the standard input is closed
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = signals::stop_on_signal()?;
    if args.die_with_parent {
        parent_exit::exit_with_parent();
    }
    let rules = Rules { tokens: !args.no_tokens, idempotency: !args.no_idempotency };
    let ledger = Ledger::open(&args.ledger, rules)
        .await
        .with_context(|| format!("cannot open the ledger {}", args.ledger.display()))?;
    let latency = latency::Latency::new(args.latency, args.seed.unwrap_or_else(|| fastrand::u64(..)));
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}");
    info!(%address, ledger = %args.ledger.display(), tokens = rules.tokens, idempotency = rules.idempotency,
        "provider ready");

    axum::serve(listener, http::router(Arc::new(ledger), Arc::new(latency)))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await?;
    info!("provider stopped");
    Ok(())
}

#[cfg(test)]
pub(crate) mod testing {
    use std::path::Path;

    use super::*;
    use crate::payment_api::Outcome;

    /// A provider in the test's process, without latency.
    pub(crate) struct TestProvider {
        ledger: Arc<Ledger>,
        server: tokio::task::JoinHandle<()>,
    }

    impl TestProvider {
        pub(crate) async fn serve(listener: TcpListener, file: &Path) -> Self {
            let rules = Rules { tokens: true, idempotency: true };
            let ledger = Arc::new(Ledger::open(file, rules).await.unwrap());
            let router =
                http::router(Arc::clone(&ledger), Arc::new(latency::Latency::new(Duration::ZERO, 1)));
            let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
            Self { ledger, server }
        }

        /// The subscription, period and outcome of every request, in order.
        pub(crate) async fn outcomes(&self) -> Vec<(i64, String, Outcome)> {
            self.ledger.outcomes().await
        }
    }

    impl Drop for TestProvider {
        fn drop(&mut self) {
            self.server.abort();
        }
    }
}
