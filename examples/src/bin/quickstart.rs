//! The smallest service with a leader: start it twice, and one of the two processes greets.
//!
//! ```console
//! $ cargo run -p examples --bin quickstart
//! $ cargo run -p examples --bin quickstart --features etcd -- etcd://10.0.0.1:2379/acme
//! ```

use std::time::Duration;

use tenure::ElectorExt;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let store = std::env::args().nth(1).unwrap_or_else(|| "local:/tmp/tenure-start".to_owned());
    let elector = tenure::connect(&store).await?;
    let shutdown = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    elector
        .run_while_leader("greeter", shutdown, |leadership| async move {
            let stop = leadership.cancellation_token();
            while stop.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await.is_some() {
                leadership.ensure()?;
                println!("hello from {}, token {}", leadership.candidate_id(), leadership.fencing_token());
            }
            Ok(())
        })
        .await?;
    elector.close().await;
    Ok(())
}
