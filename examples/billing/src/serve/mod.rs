//! `billing serve`: a billing server. The leader charges. All servers answer who the leader is.

mod http;
mod leader_view;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use tenure::{Elector, ElectorExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub(crate) use leader_view::Leader;

use crate::{charging::Biller, db::Database, election, parent_exit, payment_api::PaymentClient, signals};

/// How long the shutdown waits for running HTTP requests.
const HTTP_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The options of `billing serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The election's store: local:/directory, etcd://host:2379/prefix?ttl=5s, zookeeper://host:2181/root?ttl=5s,
    /// postgres://user@host/database?ttl=5s, or kubernetes:///namespace?ttl=5s
    #[arg(long)]
    store: String,
    /// The billing database: sqlite:FILE, or postgres://user@host/database
    #[arg(long, default_value = "sqlite:billing.db")]
    database: String,
    /// The payment provider: http://host:port
    #[arg(long)]
    provider: String,
    /// This server's name, unique among the servers
    #[arg(long)]
    id: String,
    /// The address to listen on; with port 0 a free port is used and printed
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The election's name
    #[arg(long, default_value = election::DEFAULT_ELECTION)]
    election: String,
    /// How long before the beginning of its period a renewal is charged
    #[arg(long, default_value = "1day", value_parser = humantime::parse_duration)]
    ahead: Duration,
    /// Exit when the standard input is closed
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = signals::stop_on_signal()?;
    if args.die_with_parent {
        parent_exit::exit_with_parent();
    }
    let provider = PaymentClient::new(&args.provider)?;
    // Before the election, because the other servers read this address from the candidate's value.
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = format!("http://{}", listener.local_addr()?);
    let elector = election::connect(&args.store, &args.id, &address).await?;
    let mut database = Database::open(&args.database).await?;
    if election::is_in_database(&args.store, &args.database) {
        database = database.with_election();
    }
    let biller = Biller { name: args.id.clone(), database: database.clone(), provider, ahead: args.ahead };

    let stop_http = CancellationToken::new();
    let leader = leader_view::watch_leader(elector.as_ref(), &args.election);
    let router = http::router(http::ServerState {
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
    // Requests that take longer are abandoned.
    let _ = tokio::time::timeout(HTTP_SHUTDOWN_TIMEOUT, http).await;
    if outcome.is_ok() {
        info!("resigned and stopped");
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
