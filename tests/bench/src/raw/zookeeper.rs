//! ZooKeeper, through zookeeper-client.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use asyncs::task::{Spawn, Task};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use zookeeper_client::{Acls, Client, Connector, CreateMode};

use super::RawStore;

const UNDER_WAY: usize = 1024;

pub(crate) struct Zookeeper {
    endpoint: String,
    client: Client,
    other: Client,
    next: u64,
}

const ROOT: &str = "/raw";

impl Zookeeper {
    pub(crate) async fn connect(endpoint: &str) -> Result<Self> {
        let client = connect(endpoint).await?;
        let _ = client.create(ROOT, &[], &CreateMode::Persistent.with_acls(Acls::anyone_all())).await;
        Ok(Self {
            endpoint: endpoint.to_owned(),
            client,
            other: connect(endpoint).await?,
            next: fastrand::u64(..) >> 16,
        })
    }

    /// The znode of an election, made beforehand, as one that is in use is.
    async fn election(&mut self) -> Result<String> {
        self.next += 1;
        let election = format!("{ROOT}/{:x}", self.next);
        self.client.create(&election, &[], &CreateMode::Persistent.with_acls(Acls::anyone_all())).await?;
        Ok(election)
    }
}

/// Where the client's tasks are spawned.
struct Tokio;

impl Spawn for Tokio {
    fn spawn(&self, task: Task) {
        tokio::spawn(Box::into_pin(task.future));
    }
}

async fn connect(endpoint: &str) -> Result<Client> {
    connect_with(Client::connector().with_session_timeout(Duration::from_secs(30)), endpoint).await
}

async fn connect_with(connector: Connector, endpoint: &str) -> Result<Client> {
    let mut connecting = pin!(connector.connect(endpoint));
    let connected = poll_fn(|context| {
        let _scope = asyncs::task::enter(&Tokio);
        connecting.as_mut().poll(context)
    });
    Ok(connected.await?)
}

/// Creates an ephemeral znode with a number, and lists all of them.
async fn enter(client: &Client, election: &str) -> Result<String> {
    let options = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    let (_, number) = client.create(&format!("{election}/c-"), b"value", &options).await?;
    client.list_children(election).await?;
    Ok(format!("{election}/c-{number}"))
}

#[async_trait]
impl RawStore for Zookeeper {
    fn entering(&self) -> (&'static str, &'static str) {
        ("create ephemeral sequential, list", "connect with a new session, create, list")
    }

    async fn enter(&mut self) -> Result<Duration> {
        let election = self.election().await?;
        let begun = Instant::now();
        let entry = enter(&self.client, &election).await?;
        let took = begun.elapsed();
        self.client.delete(&entry, None).await?;
        self.client.delete(&election, None).await?;
        Ok(took)
    }

    async fn enter_from_nothing(&mut self) -> Result<Duration> {
        let election = self.election().await?;
        let begun = Instant::now();
        let client = connect(&self.endpoint).await?;
        let entry = enter(&client, &election).await?;
        let took = begun.elapsed();
        client.delete(&entry, None).await?;
        self.client.delete(&election, None).await?;
        // Its session has ended before anything else is measured, as the others' have.
        let mut states = client.state_watcher();
        drop(client);
        while !states.state().is_terminated() {
            states.changed().await;
        }
        Ok(took)
    }

    async fn handover(&mut self, quiet: Duration) -> Result<Duration> {
        let election = self.election().await?;
        let entry = enter(&self.client, &election).await?;
        let (_, watcher) = self.other.check_and_watch_stat(&entry).await?;
        tokio::time::sleep(quiet).await;
        let begun = Instant::now();
        let (deleted, took) = tokio::join!(self.client.delete(&entry, None), async {
            watcher.changed().await;
            begun.elapsed()
        });
        deleted?;
        self.client.delete(&election, None).await?;
        Ok(took)
    }

    async fn enter_many(&mut self, count: usize) -> Result<Duration> {
        let client = &connect(&self.endpoint).await?;
        let elections: Vec<_> = (0..count)
            .map(|_| {
                self.next += 1;
                format!("{ROOT}/{:x}", self.next)
            })
            .collect();
        let begun = Instant::now();
        let entering = elections.into_iter().map(|election| {
            async move {
                client.create(&election, &[], &CreateMode::Container.with_acls(Acls::anyone_all())).await?;
                enter(client, &election).await.map(drop)
            }
            .boxed()
        });
        stream::iter(entering.collect::<Vec<_>>()).buffer_unordered(UNDER_WAY).try_collect::<()>().await?;
        Ok(begun.elapsed())
    }

    async fn expire(&mut self, ttl: Duration, spread: Duration, times: usize) -> Result<Vec<Duration>> {
        let mut elections = Vec::with_capacity(times);
        for _ in 0..times {
            elections.push(self.election().await?);
        }
        let (endpoint, other) = (&self.endpoint, &self.other);
        let all = elections.into_iter().map(|election| async move {
            tokio::time::sleep(spread.mul_f64(fastrand::f64())).await;
            let begun = Instant::now();
            // Detached: it goes without ending its session.
            let connector = Client::connector().with_session_timeout(ttl).with_detached();
            let client = connect_with(connector, endpoint).await?;
            let entry = enter(&client, &election).await?;
            drop(client);
            let (_, watcher) = other.check_and_watch_stat(&entry).await?;
            watcher.changed().await;
            anyhow::Ok(begun.elapsed())
        });
        try_join_all(all).await
    }

    async fn requests(&mut self) -> Result<u64> {
        let mut sum = 0;
        for server in self.endpoint.split(',') {
            let mut stream = TcpStream::connect(server).await?;
            stream.write_all(b"srvr").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            let line = text.lines().find_map(|line| line.strip_prefix("Received: "));
            sum += line.context("no count of packets")?.trim().parse::<u64>()?;
        }
        Ok(sum)
    }
}
