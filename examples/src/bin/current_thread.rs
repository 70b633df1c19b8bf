//! Leads once, on tokio's current-thread runtime without timers and I/O: the engine has threads of its own.
//!
//! ```console
//! $ cargo run -p examples --bin current_thread
//! ```

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let store = std::env::args().nth(1).unwrap_or_else(|| "local:/tmp/tenure-start".to_owned());
        let elector = tenure::connect(&store).await?;
        let leadership = elector.campaign("greeter").await?;
        let greet = async { println!("hello from tokio, token {}", leadership.fencing_token()) };
        leadership.run(greet).await?;
        leadership.resign().await?;
        elector.close().await;
        Ok(())
    })
}
