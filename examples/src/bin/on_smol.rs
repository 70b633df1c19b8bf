//! Leads once, under smol: an elector works under any executor.
//!
//! ```console
//! $ cargo run -p examples --bin on_smol
//! ```

fn main() -> anyhow::Result<()> {
    smol::block_on(async {
        let store = std::env::args().nth(1).unwrap_or_else(|| "local:/tmp/tenure-start".to_owned());
        let elector = tenure::connect(&store).await?;
        let leadership = elector.campaign("greeter").await?;
        let handle = leadership.handle();
        let greet = smol::spawn(async move {
            let token = handle.fencing_token();
            handle.run(async { println!("hello from smol, token {token}") }).await
        });
        greet.await?;
        leadership.resign().await?;
        elector.close().await;
        Ok(())
    })
}
