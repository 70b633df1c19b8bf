//! Leads once, under the executor of the `futures` crate, which has no timers and no I/O.
//!
//! ```console
//! $ cargo run -p examples --bin futures_executor
//! ```

fn main() -> anyhow::Result<()> {
    futures::executor::block_on(async {
        let store = std::env::args().nth(1).unwrap_or_else(|| "local:/tmp/tenure-start".to_owned());
        let elector = tenure::connect(&store).await?;
        let leadership = elector.campaign("greeter").await?;
        let greet = async { println!("hello from futures, token {}", leadership.fencing_token()) };
        leadership.run(greet).await?;
        leadership.resign().await?;
        elector.close().await;
        Ok(())
    })
}
