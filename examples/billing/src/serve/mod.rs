//! `billing serve`: the service. The leader charges; the others stand ready, and answer who leads.

mod http;
pub(crate) mod signals;
mod view;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use tenure::{Elector, ElectorExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub(crate) use view::Leader;

use crate::{charging::Biller, db::Database, election, parent, payment::Provider};

/// How long requests under way are waited for at the end.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the servers elect: local:/directory, etcd://host:2379/prefix?ttl=5s, or zookeeper://host:2181/root?ttl=5s
    #[arg(long)]
    store: String,
    /// The billing database: sqlite:FILE, or postgres://user@host/database
    #[arg(long, default_value = "sqlite:billing.db")]
    database: String,
    /// The payment provider: http://host:port
    #[arg(long)]
    provider: String,
    /// This server's name; two servers must not share one
    #[arg(long)]
    id: String,
    /// Where to listen; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The election to stand in
    #[arg(long, default_value = election::DEFAULT_ELECTION)]
    election: String,
    /// How long before its period begins a renewal is charged
    #[arg(long, default_value = "1day", value_parser = humantime::parse_duration)]
    ahead: Duration,
    /// End when standard input is closed
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = signals::stop_on_signal()?;
    if args.die_with_parent {
        parent::die_with_parent();
    }
    let provider = Provider::new(&args.provider)?;
    // Bound before the election: the address is what the others read of this candidate.
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = format!("http://{}", listener.local_addr()?);
    let elector = election::connect(&args.store, &args.id, &address).await?;
    let database = Database::open(&args.database).await?;
    let biller = Biller { name: args.id.clone(), database: database.clone(), provider, ahead: args.ahead };

    let stop_http = CancellationToken::new();
    let leader = view::watch_leader(elector.as_ref(), &args.election);
    let router = http::router(http::Server {
        id: args.id.clone(),
        election: args.election.clone(),
        elector: Arc::clone(&elector),
        database,
        leader,
    });
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop_http.clone().cancelled_owned());
    let http = tokio::spawn(serving.into_future());
    println!("listening on {address}");
    info!(id = args.id, %address, election = args.election, "server ready");

    let outcome = charge_while_leader(elector.as_ref(), &args.election, stop, &biller).await;
    elector.close().await;
    stop_http.cancel();
    // Requests that do not end are left behind.
    let _ = tokio::time::timeout(LAST_REQUESTS, http).await;
    match &outcome {
        Ok(()) => info!("resigned and stopped"),
        Err(error) => error!(%error, "the election is over for this server"),
    }
    outcome
}

async fn charge_while_leader(
    elector: &dyn Elector,
    election: &str,
    stop: CancellationToken,
    biller: &Biller,
) -> anyhow::Result<()> {
    elector.run_while_leader(election, stop.cancelled_owned(), |leadership| biller.run(leadership)).await?;
    Ok(())
}
