//! What services without an election library use on PostgreSQL: a session's advisory lock, and a row with an expiry as ShedLock has it.
//!
//! Both are written as their users write them, over the client and the server that tenure uses. Neither has a deadline or a fencing
//! token: the holder of a lock does not learn that it is lost.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use futures::future::try_join_all;
use tokio_postgres::{Client, Statement};

use crate::{
    Options,
    raw::postgres::{connect, statements},
    row::{Row, Samples},
    single::{POLLING, SETTLE_TIME, SHORT_PAUSE, random_quiet},
};

/// How often a lock that is held by another is tried again: as often as in the examples of ShedLock's documentation. Many of its users
/// do it once a minute.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// For how long ShedLock's row is locked, in seconds, unless it is extended: the least that its `KeepAliveLockProvider` supports, which
/// extends it in the middle of that.
const LOCK_AT_MOST: f64 = 30.0;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS shedlock (name varchar(64) PRIMARY KEY, lock_until timestamp NOT NULL, \
                     locked_at timestamp NOT NULL, locked_by varchar(255) NOT NULL)";
const ROW_LOCK: &str = "INSERT INTO shedlock (name, lock_until, locked_at, locked_by) VALUES ($1, \
                        timezone('utc', CURRENT_TIMESTAMP) + make_interval(secs => $2), timezone('utc', CURRENT_TIMESTAMP), $3) \
                        ON CONFLICT (name) DO UPDATE SET lock_until = excluded.lock_until, locked_at = excluded.locked_at, \
                        locked_by = excluded.locked_by WHERE shedlock.lock_until <= timezone('utc', CURRENT_TIMESTAMP)";
const ROW_EXTEND: &str = "UPDATE shedlock SET lock_until = timezone('utc', CURRENT_TIMESTAMP) + make_interval(secs => $2) \
                          WHERE name = $1 AND locked_by = $3 AND lock_until > timezone('utc', CURRENT_TIMESTAMP)";
const ROW_UNLOCK: &str =
    "UPDATE shedlock SET lock_until = timezone('utc', CURRENT_TIMESTAMP) WHERE name = $1 AND locked_by = $2";

/// A candidate: a connection of its own, and a way to lock.
#[async_trait]
trait Candidate: Sized + Send + Sync + 'static {
    const NAME: &'static str;
    /// Whether a lock that is held by another is tried again and again.
    const POLLS: bool;

    async fn connect(url: &str) -> Result<Self>;

    /// Locks. False if another holds the lock, unless it waits for it.
    async fn lock(&self, election: u32) -> Result<bool>;

    async fn unlock(&self, election: u32) -> Result<()>;

    /// What the holder does now and then.
    async fn extend(&self, election: u32) -> Result<()>;

    /// Locks as soon as the lock is free.
    async fn campaign(&self, election: u32) -> Result<()> {
        while !self.lock(election).await? {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

/// A session's advisory lock, for which the server makes the session wait.
struct Waiting(Client, Statement);

/// The same, tried again and again: who waits can do other things on the connection meanwhile.
struct Trying(Client, Statement);

/// A row that is locked until some time of the server's.
struct Shed {
    client: Client,
    lock: Statement,
    name: String,
}

async fn unlock_advisory(client: &Client, election: u32) -> Result<()> {
    let unlocked = client.query_one("SELECT pg_advisory_unlock($1)", &[&i64::from(election)]).await?;
    ensure!(unlocked.try_get::<_, bool>(0)?, "the lock was not held");
    Ok(())
}

#[async_trait]
impl Candidate for Waiting {
    const NAME: &'static str = "session advisory lock, waiting";
    const POLLS: bool = false;

    async fn connect(url: &str) -> Result<Self> {
        let client = connect(url).await?;
        let lock = client.prepare("SELECT pg_advisory_lock($1)").await?;
        Ok(Self(client, lock))
    }

    async fn lock(&self, election: u32) -> Result<bool> {
        self.0.query_one(&self.1, &[&i64::from(election)]).await?;
        Ok(true)
    }

    async fn unlock(&self, election: u32) -> Result<()> {
        unlock_advisory(&self.0, election).await
    }

    async fn extend(&self, _: u32) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Candidate for Trying {
    const NAME: &'static str = "session advisory lock, tried every second";
    const POLLS: bool = true;

    async fn connect(url: &str) -> Result<Self> {
        let client = connect(url).await?;
        let lock = client.prepare("SELECT pg_try_advisory_lock($1)").await?;
        Ok(Self(client, lock))
    }

    async fn lock(&self, election: u32) -> Result<bool> {
        Ok(self.0.query_one(&self.1, &[&i64::from(election)]).await?.try_get(0)?)
    }

    async fn unlock(&self, election: u32) -> Result<()> {
        unlock_advisory(&self.0, election).await
    }

    async fn extend(&self, _: u32) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Candidate for Shed {
    const NAME: &'static str = "ShedLock's row, tried every second";
    const POLLS: bool = true;

    async fn connect(url: &str) -> Result<Self> {
        let client = connect(url).await?;
        let lock = client.prepare(ROW_LOCK).await?;
        Ok(Self { client, lock, name: format!("{:x}", fastrand::u64(..)) })
    }

    async fn lock(&self, election: u32) -> Result<bool> {
        let election = election.to_string();
        Ok(self.client.execute(&self.lock, &[&election, &LOCK_AT_MOST, &self.name]).await? == 1)
    }

    async fn unlock(&self, election: u32) -> Result<()> {
        let unlocked = self.client.execute(ROW_UNLOCK, &[&election.to_string(), &self.name]).await?;
        ensure!(unlocked == 1, "the row was not locked");
        Ok(())
    }

    async fn extend(&self, election: u32) -> Result<()> {
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&election.to_string(), &LOCK_AT_MOST, &self.name];
        ensure!(self.client.execute(ROW_EXTEND, &parameters).await? == 1, "the row was not locked");
        Ok(())
    }
}

pub(crate) async fn measure(
    options: &Options,
    url: &str,
    report: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    connect(url).await?.batch_execute(TABLE).await?;
    measure_one::<Waiting>(options, url, report).await?;
    measure_one::<Trying>(options, url, report).await?;
    measure_one::<Shed>(options, url, report).await
}

async fn measure_one<C: Candidate>(
    options: &Options,
    url: &str,
    report: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    let mut report = |row: Row| report(Row { peer: Some(C::NAME), ..row });
    for (quiet, rounds, name) in [
        (Duration::ZERO, options.rounds(300), "campaign, session held"),
        (SETTLE_TIME, options.rounds(100), "campaign, session held, after quiet"),
    ] {
        if options.is_selected(name) {
            report(Row::alone(("postgres", name), &with_connection::<C>(url, quiet, rounds).await?))?;
        }
    }
    let name = "campaign from nothing";
    if options.is_selected(name) {
        report(Row::alone(("postgres", name), &from_nothing::<C>(url, options.rounds(300)).await?))?;
    }
    let handovers: &[_] = if C::POLLS {
        &[(2, None, options.rounds(30), POLLING)]
    } else {
        &[
            (2, Some(SETTLE_TIME), options.rounds(100), "handover, 2 candidates"),
            (2, Some(SHORT_PAUSE), options.rounds(100), "handover, 2 candidates, soon"),
            (50, Some(SETTLE_TIME), options.rounds(100), "handover, 50 candidates"),
        ]
    };
    for (candidates, quiet, rounds, name) in handovers {
        if options.is_selected(name) {
            report(Row::alone(("postgres", name), &handover::<C>(url, *candidates, *quiet, *rounds).await?))?;
        }
    }
    let name = crate::idle::NAME;
    if options.is_selected(name) {
        let asked = idle::<C>(url, crate::idle::span(options)).await?;
        report(Row::value(("postgres", name), asked, ("none", None), ("none".to_owned(), true)))?;
    }
    Ok(())
}

async fn with_connection<C: Candidate>(url: &str, quiet: Duration, rounds: usize) -> Result<Samples> {
    let (candidate, election) = (C::connect(url).await?, fastrand::u32(..));
    let mut samples = Samples::default();
    candidate.campaign(election).await?;
    candidate.unlock(election).await?;
    for _ in 0..rounds {
        tokio::time::sleep(quiet).await;
        let begun = Instant::now();
        candidate.campaign(election).await?;
        samples.add(begun.elapsed());
        candidate.unlock(election).await?;
    }
    Ok(samples)
}

async fn from_nothing<C: Candidate>(url: &str, rounds: usize) -> Result<Samples> {
    let election = fastrand::u32(..);
    let mut samples = Samples::default();
    for _ in 0..rounds {
        let begun = Instant::now();
        let candidate = C::connect(url).await?;
        candidate.campaign(election).await?;
        samples.add(begun.elapsed());
        candidate.unlock(election).await?;
    }
    Ok(samples)
}

/// From the call that unlocks to the end of the next candidate's campaign.
async fn handover<C: Candidate>(
    url: &str,
    candidates: usize,
    quiet: Option<Duration>,
    rounds: usize,
) -> Result<Samples> {
    let election = fastrand::u32(..);
    let mut samples = Samples::default();
    let mut leader = C::connect(url).await?;
    leader.campaign(election).await?;
    let (leads, mut led) = tokio::sync::mpsc::unbounded_channel();
    let campaign = |candidate: C| {
        let leads = leads.clone();
        tokio::spawn(async move {
            let outcome = candidate.campaign(election).await;
            // The receiver is there until the last round has ended.
            let _ = leads.send((outcome, Instant::now(), candidate));
        })
    };
    let mut campaigns = Vec::new();
    for candidate in try_join_all((1..candidates).map(|_| C::connect(url))).await? {
        campaigns.push(campaign(candidate));
    }
    for _ in 0..rounds {
        // After that, the candidate that led last waits, too.
        tokio::time::sleep(quiet.unwrap_or_else(random_quiet)).await;
        let begun = Instant::now();
        leader.unlock(election).await?;
        let (outcome, at, next) = led.recv().await.context("no candidate is left")?;
        outcome?;
        samples.add(at - begun);
        campaigns.push(campaign(std::mem::replace(&mut leader, next)));
    }
    campaigns.iter().for_each(|campaign| campaign.abort());
    Ok(samples)
}

/// The requests a second of a holder and ten others.
async fn idle<C: Candidate>(url: &str, span: Duration) -> Result<f64> {
    let election = fastrand::u32(..);
    let leader = C::connect(url).await?;
    leader.campaign(election).await?;
    let others = try_join_all((0..10).map(|_| C::connect(url))).await?;
    let waiting: Vec<_> = others
        .into_iter()
        .map(|candidate| tokio::spawn(async move { candidate.campaign(election).await }))
        .collect();
    tokio::time::sleep(POLL_INTERVAL).await;
    let counting = connect(url).await?;
    let before = statements(&counting, "%").await?;
    let begun = Instant::now();
    let mut extended = tokio::time::interval(Duration::from_secs_f64(LOCK_AT_MOST / 2.0));
    while tokio::time::timeout(span.saturating_sub(begun.elapsed()), extended.tick()).await.is_ok() {
        leader.extend(election).await?;
    }
    let asked = statements(&counting, "%").await?.saturating_sub(before);
    waiting.iter().for_each(|campaign| campaign.abort());
    leader.unlock(election).await?;
    Ok(asked as f64 / span.as_secs_f64())
}
