//! Leads without an executor: the calls block, and the work is a closure, which asks its handle before each step.
//!
//! ```console
//! $ cargo run -p examples --bin blocking
//! ```

use std::time::Duration;

fn main() -> anyhow::Result<()> {
    let store = std::env::args().nth(1).unwrap_or_else(|| "local:/tmp/tenure-start".to_owned());
    let elector = tenure::blocking::Elector::connect(&store)?;
    // Campaigns, calls the closure, and resigns.
    elector.run("greeter", |leadership| {
        for _ in 0..3 {
            leadership.ensure()?; // before each side effect
            println!("hello from a thread, token {}", leadership.fencing_token());
            // A pause that ends when the leadership is lost.
            leadership.lost_within(Duration::from_millis(100))?;
        }
        Ok::<_, tenure::Error>(())
    })??;
    elector.close()?;
    Ok(())
}
