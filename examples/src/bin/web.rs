//! A web service of which every node can be asked: followers send requests on, and the leader answers.
//!
//! It gives out tickets, each number once and each higher than the last, though nothing is stored anywhere: a ticket is the
//! leader's fencing token, and a count within its term.
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

/// A ticket machine of several nodes.
#[derive(Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
    #[command(flatten)]
    election: tenure::Settings,
}

/// How many tickets each term has given out.
type Counts = Arc<Mutex<BTreeMap<FencingToken, u64>>>;

/// Runs on the leader only.
async fn ticket(
    Leading(leadership): Leading,
    State(counts): State<Counts>,
) -> Result<String, (StatusCode, String)> {
    let token = leadership.fencing_token();
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    // Never a later term's: a handler of an earlier one may have waited for the lock.
    counts.retain(|other, _| *other >= token);
    let count = counts.entry(token).or_default();
    *count += 1;
    // After the count: whoever is told of a ticket was told by the leader.
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

    // The value is where the others find this node: behind a proxy it is another address (--candidate-value).
    let mut settings = arguments.election;
    if settings.value.is_none() && listener.local_addr()?.ip().is_unspecified() {
        anyhow::bail!(
            "--listen {} is every address: give the one that others reach as --candidate-value",
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
        .route("/tickets", post(ticket))
        .with_state(Counts::default())
        .layer(ForwardToLeader::new(status.clone()))
        // What is added after the layer is answered by each node for itself.
        .merge(tenure::axum::router(status))
        .route("/metrics", get(move || async move { recorder.render() }));
    println!("listening on {address}");
    let serving = axum::serve(listener, app).with_graceful_shutdown(stopped());
    // While this node leads, its handlers do the work; the layer has leadership wait for them.
    let leading = elector.run_while_leader(&settings.election, stopped(), |leadership| async move {
        leadership.lost().await;
        Ok(())
    });
    let (served, led) = tokio::join!(async { serving.await }, leading);
    elector.close().await;
    served?;
    Ok(led?)
}
