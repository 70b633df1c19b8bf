//! Two levels of election: every group elects a leader, and the groups' leaders elect one of themselves. The work
//! stops when either leadership is lost.
//!
//! ```console
//! $ for group in berlin berlin paris paris; do cargo run -p examples --bin hierarchy -- --group $group --store local:/tmp/tiers --election plant & done
//! ```

use std::time::Duration;

use clap::Parser;
use tenure::{Elector, ElectorExt, Hierarchy};
use tokio::signal::unix::{SignalKind, signal};

/// Two levels of election: groups elect leaders, and these elect one
#[derive(Parser)]
struct Arguments {
    /// The group of this process, for example a rack or a region
    #[arg(long)]
    group: String,
    /// The store for the elections within the group; by default the same store
    #[arg(long, value_name = "URL")]
    group_store: Option<String>,
    #[command(flatten)]
    election: tenure::Settings,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    let mut elector = Hierarchy::new(arguments.election.connect().await?, &arguments.group)?;
    if let Some(store) = &arguments.group_store {
        elector =
            elector.with_group_elector(tenure::connect_with(store, arguments.election.config()?).await?);
    }
    let group = &arguments.group;
    elector
        .run_while_leader(&arguments.election.election, shutdown, |leadership| async move {
            let (candidate, token) = (leadership.candidate_id(), leadership.fencing_token());
            println!("{candidate} of {group} leads all groups, token {token}");
            let stop = leadership.cancellation_token();
            while stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(200))).await.is_some() {
                leadership.ensure()?;
                // Do the work here. Send the token with every write.
            }
            println!("{candidate} of {group} has stopped");
            Ok(())
        })
        .await?;
    elector.close().await;
    Ok(())
}
