//! A web service in which every node accepts requests: followers forward them, and the leader answers.
//!
//! It issues tickets. Each number is issued once and is higher than the one before, without a database: a ticket is the
//! leader's fencing token and a counter within its term.
//!
//! ```console
//! $ cargo run -p examples --bin web -- --listen 127.0.0.1:8080 --store local:/tmp/tickets --election tickets
//! $ cargo run -p examples --bin web -- --listen 127.0.0.1:8081 --store local:/tmp/tickets --election tickets
//! $ curl -X POST http://127.0.0.1:8081/tickets
//! 1-1
//! $ curl http://127.0.0.1:8081/leader
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use clap::Parser;
use metrics_exporter_prometheus::PrometheusBuilder;
use tenure::{
    ElectorExt, FencingToken, StatusHandle,
    axum::{ForwardToLeader, Leading},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// A service of several nodes that issues tickets
#[derive(Parser)]
struct Arguments {
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
    #[command(flatten)]
    election: tenure::Settings,
}

/// How many tickets each term has issued.
type TicketCounts = Arc<Mutex<BTreeMap<FencingToken, u64>>>;

/// Issues a ticket. This runs on the leader only.
async fn issue_ticket(
    Leading(leadership): Leading,
    State(counts): State<TicketCounts>,
) -> Result<String, (StatusCode, String)> {
    let token = leadership.fencing_token();
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    // Keeps later terms: this handler may belong to an earlier one, and have waited for the lock.
    counts.retain(|other, _| *other >= token);
    let count = counts.entry(token).or_default();
    *count += 1;
    // Checked after counting: a client gets only tickets that were issued while this process was the leader.
    leadership.ensure().map_err(|lost| (StatusCode::SERVICE_UNAVAILABLE, format!("{lost}\n")))?;
    Ok(format!("{token}-{count}\n"))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let recorder = PrometheusBuilder::new().install_recorder()?;
    tenure::metrics::describe();
    let listener = TcpListener::bind(&arguments.listen).await?;
    let address = format!("http://{}", listener.local_addr()?);

    // Other nodes read this node's address from its value. Behind a proxy, set another address with --candidate-value.
    let mut settings = arguments.election;
    if settings.value.is_none() && listener.local_addr()?.ip().is_unspecified() {
        anyhow::bail!(
            "--listen {} stands for all addresses: set the one that other nodes can reach with --candidate-value",
            arguments.listen
        );
    }
    settings.value.get_or_insert_with(|| address.clone());
    let elector = settings.connect().await?;
    let status = StatusHandle::new(elector.clone(), &settings.election)?;

    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        stop.send_replace(true);
    });
    let stopped = move || {
        let mut stopping = stopping.clone();
        async move { drop(stopping.wait_for(|stopping| *stopping).await) }
    };

    let app = Router::new()
        .route("/tickets", post(issue_ticket))
        .with_state(TicketCounts::default())
        .layer(ForwardToLeader::new(status.clone()))
        // Routes that are added after the layer are not forwarded: each node answers them itself.
        .merge(tenure::axum::router(status))
        .route("/metrics", get(move || async move { recorder.render() }));
    println!("listening on {address}");
    let serving = axum::serve(listener, app).with_graceful_shutdown(stopped());
    // The handlers do the leader's work. The layer runs them under the leadership, which waits for them.
    let leading = elector.run_while_leader(&settings.election, stopped(), |leadership| async move {
        leadership.lost().await;
        Ok(())
    });
    let (http_result, election_result) = tokio::join!(async { serving.await }, leading);
    elector.close().await;
    http_result?;
    Ok(election_result?)
}
