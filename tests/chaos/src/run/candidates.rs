//! The candidates of a run: processes, each with a proxy to every server.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tenure_testkit::proxy::Proxy;

use crate::{cluster::Cluster, history::History, process::CandidateProcess};

/// The number of candidates. Each has a slot; a candidate that replaces a killed one takes the same slot.
pub(crate) const CANDIDATES: usize = 5;

/// The candidates, by slot.
#[derive(Debug)]
pub(crate) struct Candidates {
    slots: Vec<Slot>,
    history: History,
}

#[derive(Debug)]
struct Slot {
    number: usize,
    url: String,
    ttl: Duration,
    /// One to each server.
    proxies: Vec<Proxy>,
    /// How many processes were started in this slot.
    starts: AtomicU64,
    process: Mutex<Option<CandidateProcess>>,
}

impl Candidates {
    /// Starts a candidate in each slot.
    pub(crate) async fn start(cluster: &Cluster, ttl: Duration, history: &History) -> Result<Self> {
        let mut slots = Vec::new();
        for number in 0..CANDIDATES {
            let mut proxies = Vec::new();
            for endpoint in cluster.endpoints() {
                proxies.push(Proxy::start(endpoint).await.context("cannot start a proxy on loopback")?);
            }
            let mut endpoints: Vec<String> = proxies.iter().map(Proxy::endpoint).collect();
            // So that the candidates prefer different servers.
            endpoints.rotate_left(number % proxies.len());
            let url = cluster.url(&endpoints).await?;
            let (starts, process) = (AtomicU64::new(0), Mutex::new(None));
            slots.push(Slot { number, url, ttl, proxies, starts, process });
        }
        let candidates = Self { slots, history: history.clone() };
        for number in 0..CANDIDATES {
            candidates.start_process(number)?;
        }
        Ok(candidates)
    }

    /// Starts a candidate in an empty slot.
    pub(crate) fn start_process(&self, number: usize) -> Result<()> {
        let slot = &self.slots[number];
        let id = format!("c{}.{}", slot.number, slot.starts.fetch_add(1, Relaxed));
        let history = self.history.clone();
        let record = move |message| history.record(number, message);
        let process = CandidateProcess::start(&slot.url, &id, slot.ttl, &[], record)?;
        *slot.process() = Some(process);
        Ok(())
    }

    /// Sends a signal to the candidate in a slot.
    pub(crate) fn signal(&self, number: usize, signal: Signal) -> Result<()> {
        let process = self.slots[number].process();
        let process = process.as_ref().with_context(|| format!("slot {number} has no candidate"))?;
        process.signal(signal)
    }

    /// Kills the candidate in a slot, and waits until its messages have been read.
    pub(crate) async fn kill(&self, number: usize) -> Result<()> {
        self.signal(number, Signal::KILL)?;
        self.wait(number).await
    }

    /// Waits until the candidate in a slot has exited.
    pub(crate) async fn wait(&self, number: usize) -> Result<()> {
        let process = self.slots[number].process().take();
        match process {
            Some(process) => process.wait().await,
            None => Ok(()),
        }
    }

    /// The proxies of the candidate in a slot, one to each server.
    pub(crate) fn proxies(&self, number: usize) -> &[Proxy] {
        &self.slots[number].proxies
    }

    /// The proxies of all candidates to one server. There are none to a server that clients do not use.
    pub(crate) fn proxies_to(&self, member: usize) -> impl Iterator<Item = &Proxy> {
        self.slots.iter().filter_map(move |slot| slot.proxies.get(member))
    }

    /// The slot whose candidate was last observed to lead.
    pub(crate) fn last_leader(&self, election: &str) -> usize {
        (0..CANDIDATES).max_by_key(|&slot| self.history.last_led(slot, election)).unwrap_or(0)
    }
}

impl Slot {
    fn process(&self) -> MutexGuard<'_, Option<CandidateProcess>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
