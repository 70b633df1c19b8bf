//! A Kubernetes controller with several replicas: one of them reconciles, and each of its writes is fenced.
//!
//! It keeps the annotation `example.com/digest` of every ConfigMap with the label `example.com/digest=wanted` equal to the SHA-256 of the
//! data. See `README.md` for how to run it.

mod digest;
mod fence;
mod reconcile;

use anyhow::Context as _;
use clap::Parser;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use tenure::{ElectorExt as _, StatusHandle};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

/// Annotates ConfigMaps with the digest of their data, on one replica
#[derive(Parser)]
struct Arguments {
    /// The address of the health endpoints
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
    #[command(flatten)]
    election: tenure::Settings,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // kube reports each failed request. tenure and the controller report an outage by themselves.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_client::client=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let election = &arguments.election.election;
    let client = Client::try_default().await.context("no API server is configured")?;
    let elector = arguments.election.connect().await?;
    let status = StatusHandle::new(elector.clone(), election)?;

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

    let listener = TcpListener::bind(&arguments.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let serving = axum::serve(listener, tenure::axum::router(status)).with_graceful_shutdown(stopped());
    let leading = elector.run_while_leader(election, stopped(), |leadership| {
        // The namespace of the service account, or of the kubeconfig's context.
        let config_maps = Api::<ConfigMap>::default_namespaced(client.clone());
        reconcile::run(config_maps, leadership)
    });
    let (http_result, election_result) = tokio::join!(async { serving.await }, leading);
    elector.close().await;
    http_result?;
    Ok(election_result?)
}
