//! A session, and the entries made under it.
//!
//! # Requests that arrive late
//!
//! A request whose future was dropped is still carried out, and one that was under way when the
//! connection broke may be. Yet none is carried out *after* a later request of the same session was
//! answered: on one connection they are in order; and once the session has moved to another
//! server, or to another connection of the same one, what still lies in the old one is refused
//! (`SessionMovedException`, ZOOKEEPER-417) or thrown away with it. So what a listing does not show after a
//! write that took a quorum, does not come into being any more.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::future::join;
use tenure_core::{
    FencingToken,
    failpoints::{SafetyRule, is_disabled},
    spi::{
        BackendError, BackendErrorKind, BackendSession, Entered, Entry, EntryEvent, EntryRequest,
        EntryWatcher, Heartbeat, HeartbeatProof, replacement_payload,
    },
};
use tokio::{sync::OnceCell, time::timeout};
use zookeeper_client::{CreateMode, Error, Stat};

use crate::{
    Shared,
    connection::{Connection, name_of},
    ensemble,
    entry_watcher::ZookeeperPartings,
    error::{failed, gone, unknown},
    link::Link,
    owners::Owners,
    parents::make_parent,
    queue::{Ahead, Queue, any_candidate},
    wait,
};

/// A session, and what was entered under it.
#[derive(Debug)]
pub(crate) struct ZookeeperSession {
    shared: Arc<Shared>,
    link: Arc<Link>,
    granted: Duration,
    /// The znode that heartbeats are written to. Nobody watches it, for a write fires data watches.
    pulse: String,
    /// Whether it is there: made with the first entry, or the first heartbeat.
    has_pulse: OnceCell<()>,
    owners: Arc<Owners>,
    /// Requests that were sent and not withdrawn yet, by nonce.
    asked: Mutex<HashSet<u128>>,
}

/// How often a znode is tried again whose parent vanished just then.
const TRIES: usize = 8;

impl ZookeeperSession {
    /// Opens a session of about `ttl`.
    pub(crate) async fn open(shared: Arc<Shared>, ttl: Duration) -> Result<Self, BackendError> {
        let link = Link::open(Arc::clone(&shared.terms), Arc::clone(&shared.servers), ttl).await?;
        let connection = link.connection().await?;
        let granted = connection.granted();
        let mut accepted = accept(&shared, ttl, granted, connection.server());
        if accepted.is_ok() {
            accepted = ensemble::check(&shared, &connection, true).await;
        }
        if let Err(refused) = accepted {
            // A server that grants what it should not may not answer either.
            link.stays_bare();
            let _ = timeout(shared.config.attempt_timeout, link.close()).await;
            return Err(refused);
        }
        let random = getrandom::u64().map_err(|error| unknown(format!("no random number: {error}")))?;
        let pulse = format!("{}/{}-{random:016x}", shared.sessions(), name_of(link.session()));
        let (link, has_pulse, owners) = (Arc::new(link), OnceCell::new(), Arc::default());
        let session = Self { shared, link, granted, pulse, has_pulse, owners, asked: Mutex::default() };
        session.shared.share(&session.link);
        Ok(session)
    }

    /// Refuses what belongs to another session than ours (hazards Z2, Z3).
    fn check_owner(&self, stat: &Stat) -> Result<(), BackendError> {
        let (owner, ours) = (stat.ephemeral_owner, self.link.session());
        if owner == ours {
            return Ok(());
        }
        let (owner, ours) = (name_of(owner), name_of(ours));
        Err(gone(format!("ZooKeeper has put session {owner} in the place of {ours}")))
    }

    /// Waits until `wanted` becomes of one entry.
    async fn until(
        &self,
        entry: &Entry,
        wanted: impl Fn(EntryEvent) -> bool,
    ) -> Result<EntryEvent, BackendError> {
        let mut entry_watcher = ZookeeperPartings::new(Arc::clone(&self.link));
        entry_watcher.add(0, entry);
        loop {
            let (_, parting) = entry_watcher.next().await?;
            if wanted(parting) {
                return Ok(parting);
            }
        }
    }

    fn asked(&self) -> MutexGuard<'_, HashSet<u128>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the heartbeats' znode, and what is above it when that is missing, unless it is there.
    async fn make_pulse(&self, connection: &Connection) -> Result<(), BackendError> {
        let making = async || {
            for _ in 0..TRIES {
                let mode = CreateMode::Ephemeral;
                match connection.create(&self.pulse, &[], mode, self.shared.terms.acls()).await {
                    Ok((_, stat)) => return self.check_owner(&stat),
                    // By an earlier attempt, for nobody else has its name. Every heartbeat looks at whose it is.
                    Err(Error::NodeExists) => return Ok(()),
                    Err(Error::NoNode) => make_parent(&self.shared, connection, &self.pulse).await?,
                    Err(error) => return Err(failed("opening", &error)),
                }
            }
            Err(unknown(format!("what is above {} vanishes again and again", self.pulse)))
        };
        self.has_pulse.get_or_try_init(making).await.copied()
    }

    /// Makes the entry; with it come the candidates, listed just after.
    async fn create_entry(
        &self,
        connection: &Connection,
        request: &EntryRequest,
    ) -> Result<((String, Stat), Queue), BackendError> {
        let parent = self.shared.election(&request.election);
        let path = format!("{parent}/{}", self.shared.config.layout.prefix(request.nonce));
        let payload = request.payload();
        for _ in 0..TRIES {
            // Both at once: the listing is carried out after the other, and shows the new entry.
            let creating =
                connection.create(&path, &payload, CreateMode::EphemeralSequential, self.shared.terms.acls());
            let (created, children) = join(creating, connection.children(&parent)).await;
            match (created, children) {
                (Ok(created), Ok(Some(children))) => {
                    return Ok((created, Queue::new(&self.shared, &parent, children)));
                }
                (Err(Error::NoNode), _) => make_parent(&self.shared, connection, &path).await?,
                (Ok(_), Ok(None)) => return Err(unknown("the election's znode vanished with the entry")),
                (Err(error), _) => return Err(failed("entering", &error)),
                (Ok((path, _)), Err(error)) => {
                    self.take_back(connection, &path).await?;
                    return Err(failed("entering", &error));
                }
            }
        }
        Err(unknown("the election's znode vanishes again and again"))
    }

    /// Makes the entry, or finds what an earlier attempt has made.
    async fn make_entry(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let connection = self.link.connection().await?;
        let found = if self.asked().insert(request.nonce) {
            None
        } else {
            self.find_entry(&connection, request).await?
        };
        let entering = async {
            match found {
                Some(found) => Ok(found),
                None => self.create_entry(&connection, request).await,
            }
        };
        // Both at once: under a session whose heartbeats are refused nobody leads.
        let (pulse, entered) = join(self.make_pulse(&connection), entering).await;
        let ((path, stat), queue) = entered?;
        if let Err(refused) = pulse {
            self.take_back(&connection, &path).await?;
            return Err(refused);
        }
        self.check_owner(&stat)?;
        let leads = self.leads(&connection, &queue, &path, &stat).await;
        self.owners.look(&self.shared, &connection, &self.pulse, self.shared.election(&request.election));
        match leads {
            Ok(leads) => {
                let (election, version) = (request.election.clone(), version(&stat)?);
                Ok(Entered { entry: Entry { election, key: path.into(), version }, leads })
            }
            Err(refused) if refused.is_permanent() => {
                self.take_back(&connection, &path).await?;
                Err(refused)
            }
            Err(error) => Err(error),
        }
    }

    async fn write(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        let connection = self.link.connection().await?;
        loop {
            let found = connection.get(&entry.key).await.map_err(|error| failed("updating", &error))?;
            let Some((found, stat)) = found else {
                return Err(BackendError::new(
                    BackendErrorKind::EntryGone,
                    "the entry is gone from ZooKeeper",
                ));
            };
            let payload = replacement_payload(&found, request);
            let written = connection.set_version(&entry.key, &payload, stat.version).await;
            if written.map_err(|error| failed("updating", &error))? {
                return Ok(());
            }
        }
    }

    async fn remove(&self, request: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError> {
        let connection = self.link.connection().await?;
        let path = match entry {
            Some(entry) => Some(entry.key.to_string()),
            None => self
                .queue(&connection, request)
                .await?
                .and_then(|queue| queue.find(&self.shared.config.layout.prefix(request.nonce))),
        };
        if let Some(path) = path {
            connection.delete(&path).await.map_err(|error| failed("leaving", &error))?;
        }
        self.asked().remove(&request.nonce);
        Ok(())
    }

    /// The token of the entry at `path` when nobody stands before it.
    async fn leads(
        &self,
        connection: &Connection,
        queue: &Queue,
        path: &str,
        stat: &Stat,
    ) -> Result<Option<FencingToken>, BackendError> {
        match queue.ahead_of(connection, path, stat.czxid).await? {
            Ahead::Nobody => {}
            Ahead::Others(ahead) => {
                if any_candidate(&self.shared, connection, ahead).await? {
                    return Ok(None);
                }
            }
            Ahead::Gone => return Err(unknown("the entry vanished while it was made")),
        }
        Ok(Some(token(version(stat)?)?))
    }

    /// Removes an entry that cannot be kept: whoever is refused leaves nothing.
    async fn take_back(&self, connection: &Connection, path: &str) -> Result<(), BackendError> {
        let deleted = connection.delete(path).await;
        deleted.map_err(|error| unknown(format!("{path} is not removed yet: {error}")))
    }

    /// Looks for the entry that an earlier attempt has made.
    async fn find_entry(
        &self,
        connection: &Connection,
        request: &EntryRequest,
    ) -> Result<Option<((String, Stat), Queue)>, BackendError> {
        let Some(queue) = self.queue(connection, request).await? else { return Ok(None) };
        let Some(path) = queue.find(&self.shared.config.layout.prefix(request.nonce)) else {
            return Ok(None);
        };
        let stat = connection.stat(&path).await.map_err(|error| failed("entering", &error))?;
        Ok(stat.map(|stat| ((path, stat), queue)))
    }

    /// The candidates, as they are now that everything asked for before has been carried out.
    async fn queue(
        &self,
        connection: &Connection,
        request: &EntryRequest,
    ) -> Result<Option<Queue>, BackendError> {
        let parent = self.shared.election(&request.election);
        let barrier = connection.barrier(&self.shared.terms.nowhere);
        let (passed, children) = join(barrier, connection.children(&parent)).await;
        passed.map_err(|error| failed("looking for an entry", &error))?;
        let children = children.map_err(|error| failed("looking for an entry", &error))?;
        Ok(children.map(|children| Queue::new(&self.shared, &parent, children)))
    }
}

/// Refuses a timeout that the server has set out of bounds.
fn accept(shared: &Shared, asked: Duration, granted: Duration, server: &str) -> Result<(), BackendError> {
    let (min, max) = shared.config.accepted(asked);
    if (min..=max).contains(&granted) {
        return Ok(());
    }
    let [asked, granted, min, max] = [asked, granted, min, max].map(humantime::format_duration);
    Err(BackendError::new(
        BackendErrorKind::Invalid,
        format!(
            "ZooKeeper {server} grants a session of {granted} when {asked} is asked for, by its minSessionTimeout and \
             maxSessionTimeout (2 and 20 ticks unless set); allowed are {min} to {max}: ask for a ttl that it grants, \
             or set min_ttl and max_ttl"
        ),
    ))
}

#[async_trait]
impl BackendSession for ZookeeperSession {
    fn id(&self) -> String {
        name_of(self.link.session())
    }

    fn granted_ttl(&self) -> Duration {
        self.granted
    }

    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::NextHeartbeat { gap: self.shared.config.gap(self.granted) }
    }

    /// Writes to the session's own znode, which takes a quorum; and waits until the leader has heard from our server
    /// after that.
    ///
    /// A follower tells the leader of whom it has heard when the leader asks, which it does every half tick, and
    /// the leader's question overtakes none of its decisions. So once half a tick lies between two
    /// writes, the follower has told of the first before it answers the second. But what it has told may be
    /// under way still, and be lost with its connection: whatever it forwards after that answer, and the leader
    /// answers, shows that it was not.
    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        let connection = self.link.connection_now()?;
        connection.let_go();
        // Dropped without an answer: the engine's patience is over, and another server may do better.
        let patience = GiveUp(Some(&connection), &self.link);
        if let Err(error) = self.make_pulse(&connection).await {
            patience.answered();
            return self.shared.permitted(Err(error));
        }
        let written = match is_disabled(SafetyRule::HeartbeatByWrite) {
            true => connection.stat(&self.pulse).await,
            false => connection.set(&self.pulse, &[]).await,
        };
        // From here on the server is known to be there: a sync that is late costs this heartbeat alone.
        patience.answered();
        let stat = self.shared.permitted(written.map_err(|error| failed("heartbeat", &error)))?;
        let Some(stat) = stat else { return Err(gone("the session's znode is gone from ZooKeeper")) };
        self.check_owner(&stat)?;
        if !is_disabled(SafetyRule::HeartbeatByWrite) {
            connection.sync().await.map_err(|error| failed("heartbeat", &error))?;
        }
        // After a reconnect of the client's own, the answer could be to another session.
        if !connection.is_unbroken() {
            return Err(unknown("the connection broke under a heartbeat"));
        }
        // Another server may have other bounds.
        Ok(Heartbeat { ttl: connection.granted().min(self.granted), epoch: 0 })
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let entered = self.shared.permitted(self.make_entry(request).await)?;
        self.shared.terms.served();
        Ok(entered)
    }

    async fn wait_turn(&self, entry: &Entry) -> Result<FencingToken, BackendError> {
        self.shared.permitted(wait::until_first(&self.shared, &self.link, entry).await)?;
        token(entry.version)
    }

    async fn wait_deleted(&self, entry: &Entry) -> Result<(), BackendError> {
        self.until(entry, |parting| parting == EntryEvent::Deleted).await.map(drop)
    }

    async fn wait_entry_event(&self, entry: &Entry) -> Result<EntryEvent, BackendError> {
        self.until(entry, |_| true).await
    }

    fn entry_watcher(&self) -> Option<Box<dyn EntryWatcher>> {
        Some(Box::new(ZookeeperPartings::new(Arc::clone(&self.link))))
    }

    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        self.shared.permitted(self.write(entry, request).await)
    }

    async fn leave(&self, request: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError> {
        self.shared.permitted(self.remove(request, entry).await)
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.link.close().await;
        Ok(())
    }
}

impl Drop for ZookeeperSession {
    /// An observer may hold the link still.
    fn drop(&mut self) {
        self.link.begin_close();
    }
}

/// Gives a connection up unless an answer came.
struct GiveUp<'a>(Option<&'a Connection>, &'a Link);

impl GiveUp<'_> {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        // Closing wants the connection.
        if let Some(connection) = self.0.filter(|_| !self.1.is_closing()) {
            connection.give_up();
        }
    }
}

fn version(stat: &Stat) -> Result<u64, BackendError> {
    u64::try_from(stat.czxid).map_err(|_| unknown("ZooKeeper's answer has no czxid"))
}

/// The token of an entry: the number of the transaction that made it, which rises across the whole ensemble.
pub(crate) fn token(version: u64) -> Result<FencingToken, BackendError> {
    FencingToken::new(version).ok_or_else(|| unknown("ZooKeeper's answer has a czxid of zero"))
}
