//! Observes both members, fails over, and brings a replica back.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tenure_containers::{PostgresAdmin, Replication};
use tokio::time::{sleep, timeout};

use super::roles::{PROBE_TIMEOUT, Roles};

const PROBE_INTERVAL: Duration = Duration::from_millis(200);
/// How many probes in a row have to fail before something is done.
const FAILED_PROBES: u32 = 2;
/// How long a replica may take to catch up before commits no longer wait for it.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a primary may take to read a setting.
const SETTING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a member may take to start, with a copy of the other's data.
const RESTART_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether the server is a primary, and a replica has reported to it within the last two seconds.
const ROLE: &str = "SELECT NOT pg_is_in_recovery() AS primary, EXISTS (SELECT 1 FROM pg_stat_replication \
                    WHERE state = 'streaming' AND reply_time > now() - interval '2 s') AS follows";
/// Has to be written, and replicated if replication is synchronous.
const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'supervisor', '')";

/// What probes of the primary have found.
#[derive(Clone, Copy, Debug, Default)]
struct Observation {
    answers: bool,
    commits: bool,
    is_followed: bool,
}

/// The supervisor of a cluster.
pub(super) struct Supervisor {
    roles: Arc<Roles>,
    unanswered: u32,
    uncommitted: u32,
}

impl Supervisor {
    pub(super) fn new(roles: Arc<Roles>) -> Self {
        Self { roles, unanswered: 0, uncommitted: 0 }
    }

    /// Runs until a failover fails half-way.
    pub(super) async fn run(mut self) {
        loop {
            if let Err(error) = self.supervise().await {
                println!("the supervisor gives up: {error:#}");
                return self.roles.set_failure(&error);
            }
            sleep(PROBE_INTERVAL).await;
        }
    }

    async fn supervise(&mut self) -> Result<()> {
        let (primary, replica) = (self.roles.primary(), self.roles.replica());
        let observed = observe(self.roles.admin(primary)).await;
        self.unanswered = if observed.answers { 0 } else { self.unanswered + 1 };
        self.uncommitted = if observed.commits { 0 } else { self.uncommitted + 1 };
        self.roles.set_replica_follows(observed.is_followed);
        let is_synchronous = self.roles.replication == Replication::Synchronous;
        if self.unanswered >= FAILED_PROBES {
            self.roles.fail_over().await?;
            self.resume_primary(primary).await;
        } else if observed.answers && self.uncommitted >= FAILED_PROBES {
            if is_synchronous && !observed.is_followed {
                self.stop_waiting_for_replica(primary).await;
            } else {
                self.roles.fail_over().await?;
            }
        } else if observed.commits
            && observed.is_followed
            && is_synchronous
            && !self.roles.is_replica_complete()
        {
            self.wait_for_replica(primary).await;
        }
        if self.roles.primary() != primary {
            (self.unanswered, self.uncommitted) = (0, 0);
        }
        for member in [self.roles.primary(), replica] {
            self.restart_if_ended(member).await?;
        }
        Ok(())
    }

    /// Lets a primary start that has ended, and does not know whether its former replica was promoted.
    async fn resume_primary(&self, member: usize) {
        let _unchanged = self.roles.unchanged().await;
        if self.roles.primary() == member {
            // Nothing is to be told to one that is frozen or does not run.
            let _ = self.roles.cluster.resume_primary(member).await;
        }
    }

    /// From now on the replica may lack commits that the primary has acknowledged.
    async fn stop_waiting_for_replica(&self, primary: usize) {
        self.roles.set_replica_complete(false);
        // If the primary does not answer, it is told again.
        let _ = timeout(SETTING_TIMEOUT, self.roles.cluster.replicate_asynchronously(primary)).await;
    }

    async fn wait_for_replica(&self, primary: usize) {
        let waits = self.roles.cluster.replicate_synchronously(primary);
        match timeout(CATCH_UP_TIMEOUT, waits).await {
            Ok(Ok(())) => self.roles.set_replica_complete(true),
            _ => self.stop_waiting_for_replica(primary).await,
        }
    }

    /// Starts a member that has ended, unless a fault has ended it, which starts it when it is healed.
    async fn restart_if_ended(&self, member: usize) -> Result<()> {
        let running = self.roles.cluster.is_running(member).await.context("cannot inspect a container")?;
        if !running && !self.roles.is_disrupted(member) {
            let _unchanged = self.roles.unchanged().await;
            // If it takes longer, it goes on by itself.
            let _ = timeout(RESTART_TIMEOUT, self.roles.cluster.restart(member)).await;
        }
        Ok(())
    }
}

async fn observe(primary: &PostgresAdmin) -> Observation {
    let (role, committed) = tokio::join!(
        timeout(PROBE_TIMEOUT, primary.query(ROLE)),
        timeout(PROBE_TIMEOUT, primary.execute(COMMIT))
    );
    let Ok(Ok(rows)) = role else { return Observation::default() };
    let holds = |column: usize| {
        let value = rows.first().and_then(|row| row.get(column)).and_then(Option::as_deref);
        value == Some("t")
    };
    Observation { answers: holds(0), commits: matches!(committed, Ok(Ok(()))), is_followed: holds(1) }
}
