//! Leaders that fork, or that are killed.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::{FutureExt as _, task::noop_waker_ref};
use tenure::{Config, Elector, Error, Leadership, LossReason, StoreElector, memory::MemoryStore};
use tenure_processes::fork;

pub(crate) const ELECTION: &str = "e";

/// Leads on `store`, forks, checks what the child and the parent may assume, and prints `checked`.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn fork_while_leading(store: &str) -> Result<()> {
    let config = Config::new().with_ttl(Duration::from_secs(2));
    let elector = tenure::connect_with(store, config.clone()).await?;
    let leadership = elector.campaign(ELECTION).await?;
    let handle = leadership.handle();
    let mut work = Box::pin(async move { handle.run(std::future::pending::<()>()).await });
    ensure!(work.as_mut().now_or_never().is_none(), "the work has begun");
    let (is_leader, deadline) = (leadership.is_leader(), leadership.deadline());
    ensure!(is_leader, "the parent leads");

    let (elector, leadership, work) = {
        // The child gets copies of all three, and must be able to use and to drop them.
        let mut owned = Some((elector, leadership, work));
        let child = fork(|| match owned.take() {
            Some((elector, leadership, mut work)) => {
                let ended = work.poll_unpin(&mut Context::from_waker(noop_waker_ref()));
                assert!(
                    matches!(ended, Poll::Ready(Err(lost)) if lost.reason == LossReason::Forked),
                    "work in flight is dropped"
                );
                check_child(&*elector, leadership, &config);
                drop((elector, work));
                0
            }
            None => 1,
        })?;
        let code = child.wait()?;
        ensure!(code == 0, "the child has failed: exit code {code}");
        owned.context("the parent has them")?
    };

    leadership.ensure()?;
    let other = tenure::connect_with(store, Config::new()).await?;
    ensure!(other.try_campaign(ELECTION).await?.is_none(), "the parent's entry is still there");
    if leadership.remaining() < Duration::MAX {
        // Heartbeats go on.
        while leadership.deadline() <= deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    drop(work);
    leadership.ensure()?;
    leadership.resign().await?;
    ensure!(other.try_campaign(ELECTION).await?.is_some(), "the parent can resign");
    elector.close().await;
    println!("checked");
    Ok(())
}

/// Everything in a forked child says no, at once.
fn check_child(elector: &dyn Elector, leadership: Leadership, config: &Config) {
    let is_lost = |error: Error| matches!(error, Error::Lost(lost) if lost.reason == LossReason::Forked);
    assert!(!leadership.is_leader());
    assert_eq!(leadership.ensure().unwrap_err().reason, LossReason::Forked);
    assert_eq!(leadership.loss(), Some(LossReason::Forked));
    assert_eq!(leadership.lost().now_or_never(), Some(LossReason::Forked));
    assert_eq!(leadership.remaining(), Duration::ZERO);
    assert!(leadership.cancellation_token().is_cancelled());
    let run = leadership.run(async { "done" }).now_or_never().unwrap();
    assert_eq!(run.unwrap_err().reason, LossReason::Forked);
    let short = Duration::from_millis(1);
    let run = leadership.run_with_grace_period(short, async { "done" }).now_or_never().unwrap();
    assert!(is_lost(run.unwrap_err()));
    let value = leadership.set_value("value").now_or_never().unwrap();
    assert!(matches!(value.unwrap_err(), Error::Forked));
    assert!(elector.leadership(ELECTION).is_none());
    for election in [ELECTION, "another"] {
        let campaign = elector.campaign(election).now_or_never().unwrap();
        assert!(matches!(campaign.unwrap_err(), Error::Forked));
    }
    let read = elector.candidates(ELECTION).now_or_never().unwrap();
    assert!(matches!(read.unwrap_err(), Error::Forked));
    let backend = Arc::new(MemoryStore::new().backend());
    let made = StoreElector::new(backend, config.clone());
    assert!(made.unwrap_err().to_string().contains("forked from one that has an elector"));
    leadership.request_resign();
    assert!(is_lost(leadership.resign().now_or_never().unwrap().unwrap_err()));
    elector.close().now_or_never().unwrap();
}

/// Leads until it is killed. Prints `leads TOKEN`, and before that, if it forks, `child PID`: a child that lives on.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn lead(url: &str, forks: bool) -> Result<()> {
    let elector = tenure::connect(url).await?;
    let leadership = elector.campaign(ELECTION).await?;
    if forks {
        let child = fork(|| {
            loop {
                std::thread::park();
            }
        })?;
        println!("child {}", child.id());
    }
    println!("leads {}", leadership.fencing_token());
    Ok(leadership.run(std::future::pending::<()>()).await?)
}
