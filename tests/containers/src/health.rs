//! Waiting, within bounds, until a server is as a test needs it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{ContainerError, EtcdAdmin, ZookeeperAdmin, container::Container};

/// How long a server may take to start, to elect a leader, or to come back.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(25);

/// How a server is asked whether it serves.
#[derive(Clone, Debug)]
pub(super) enum Health {
    Etcd(EtcdAdmin),
    Zookeeper(ZookeeperAdmin),
}

/// Waits until a server serves; when it does not, tells what it printed last.
pub(super) async fn await_health(container: &Container, health: &Health) -> Result<(), ContainerError> {
    let outcome = match health {
        Health::Etcd(admin) => eventually("etcd to serve", || admin.health()).await,
        Health::Zookeeper(admin) => eventually("ZooKeeper to serve", || admin.health()).await,
    };
    match outcome {
        Err(ContainerError::TimedOut { what, waited, last }) => {
            let last = format!("{last}\n{}", container.last_words().await);
            Err(ContainerError::TimedOut { what, waited, last })
        }
        outcome => outcome,
    }
}

/// Asks `probe` again and again until it has an answer. Its errors are what was last
/// seen when time is up.
pub(super) async fn eventually<T, P, F>(what: &str, mut probe: P) -> Result<T, ContainerError>
where
    P: FnMut() -> F,
    F: Future<Output = Result<T, ContainerError>>,
{
    let start = Instant::now();
    loop {
        match probe().await {
            Ok(answer) => return Ok(answer),
            Err(last) if start.elapsed() > PATIENCE => {
                let (what, last) = (what.to_owned(), described(&last));
                return Err(ContainerError::TimedOut { what, waited: PATIENCE, last });
            }
            Err(_) => sleep(INTERVAL).await,
        }
    }
}

/// An error with everything that caused it.
pub(super) fn described(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
