//! Commits that a primary has acknowledged, compared with those that are left after failovers.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tenure_containers::ContainerError;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_postgres::{Client, NoTls};

use super::roles::Roles;

const COMMIT_INTERVAL: Duration = Duration::from_millis(10);
const INSERT: &str = "INSERT INTO audit VALUES ($1)";
const COMMIT_TIMEOUT: Duration = Duration::from_secs(1);

/// A client that commits a new number again and again, at the primary.
#[derive(Debug)]
pub(super) struct Audit {
    roles: Arc<Roles>,
    acknowledged: Arc<Mutex<BTreeSet<i64>>>,
    writer: JoinHandle<()>,
}

/// What the audit has found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuditCounts {
    pub(crate) acknowledged: u64,
    /// Acknowledged commits that the primary does not have.
    pub(crate) lost: u64,
}

impl Audit {
    pub(super) async fn start(roles: Arc<Roles>) -> Result<Self, ContainerError> {
        let primary = roles.admin(roles.primary());
        primary.execute("CREATE TABLE audit (number bigint PRIMARY KEY)").await?;
        let acknowledged = Arc::default();
        let writer = tokio::spawn(commit_forever(Arc::clone(&roles), Arc::clone(&acknowledged)));
        Ok(Self { roles, acknowledged, writer })
    }

    pub(super) async fn check(&self) -> Result<AuditCounts> {
        let primary = self.roles.admin(self.roles.primary());
        // Those that are acknowledged meanwhile are not asked for.
        let acknowledged = lock(&self.acknowledged).clone();
        let rows = primary.query("SELECT number FROM audit").await.context("cannot read the audit")?;
        let found: BTreeSet<i64> =
            rows.iter().filter_map(|row| row.first()?.as_deref()?.parse().ok()).collect();
        let lost = acknowledged.difference(&found).count() as u64;
        Ok(AuditCounts { acknowledged: acknowledged.len() as u64, lost })
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

async fn commit_forever(roles: Arc<Roles>, acknowledged: Arc<Mutex<BTreeSet<i64>>>) {
    let mut number = 0;
    loop {
        let primary = roles.primary();
        if let Ok(Ok(client)) = timeout(COMMIT_TIMEOUT, connect(&roles.admin(primary).url())).await {
            while roles.primary() == primary {
                number += 1;
                let insert = timeout(COMMIT_TIMEOUT, client.execute(INSERT, &[&number])).await;
                let Ok(Ok(_)) = insert else { break };
                lock(&acknowledged).insert(number);
                sleep(COMMIT_INTERVAL).await;
            }
        }
        sleep(COMMIT_INTERVAL).await;
    }
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // Ends with the client.
    tokio::spawn(connection);
    Ok(client)
}

fn lock(acknowledged: &Mutex<BTreeSet<i64>>) -> MutexGuard<'_, BTreeSet<i64>> {
    acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
}
