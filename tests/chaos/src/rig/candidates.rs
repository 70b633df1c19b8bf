//! The candidates: processes, each with a line of its own to every server.

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

use super::{cluster::Cluster, record::Record};
use crate::process::Process;

pub(crate) const PLACES: usize = 5;

/// The candidates; each has a place, and whoever comes after one that was killed has the same.
#[derive(Debug)]
pub(crate) struct Candidates {
    places: Vec<Place>,
    record: Record,
}

#[derive(Debug)]
pub(crate) struct Place {
    number: usize,
    url: String,
    ttl: Duration,
    lines: Vec<Proxy>,
    comers: AtomicU64,
    running: Mutex<Option<Process>>,
}

impl Candidates {
    /// Starts one for each place.
    pub(crate) async fn start(cluster: &Cluster, ttl: Duration, record: &Record) -> Result<Self> {
        let mut places = Vec::new();
        for number in 0..PLACES {
            let mut lines = Vec::new();
            for endpoint in cluster.endpoints() {
                lines.push(Proxy::start(endpoint).await.context("a proxy on loopback")?);
            }
            let mut endpoints: Vec<String> = lines.iter().map(Proxy::endpoint).collect();
            // So that not all speak to the same server first.
            endpoints.rotate_left(number % lines.len());
            let url = cluster.url(&endpoints);
            let (comers, running) = (AtomicU64::new(0), Mutex::new(None));
            places.push(Place { number, url, ttl, lines, comers, running });
        }
        let candidates = Self { places, record: record.clone() };
        for number in 0..PLACES {
            candidates.come(number)?;
        }
        Ok(candidates)
    }

    /// Starts a candidate at a place where there is none.
    pub(crate) fn come(&self, number: usize) -> Result<()> {
        let place = &self.places[number];
        let id = format!("c{}.{}", place.number, place.comers.fetch_add(1, Relaxed));
        let record = self.record.clone();
        let process = Process::start(&place.url, &id, place.ttl, &[], move |line| record.take(number, line))?;
        *place.running() = Some(process);
        Ok(())
    }

    /// Sends a signal to the candidate at a place.
    pub(crate) fn signal(&self, number: usize, signal: Signal) -> Result<()> {
        let running = self.places[number].running();
        let process = running.as_ref().with_context(|| format!("there is no candidate at place {number}"))?;
        process.signal(signal)
    }

    /// Kills the candidate at a place, and waits until everything that it told has been read.
    pub(crate) async fn kill(&self, number: usize) -> Result<()> {
        self.signal(number, Signal::KILL)?;
        self.ended(number).await
    }

    /// Waits until the candidate at a place has ended.
    pub(crate) async fn ended(&self, number: usize) -> Result<()> {
        let running = self.places[number].running().take();
        match running {
            Some(process) => process.ended().await,
            None => Ok(()),
        }
    }

    /// The lines of the candidate at a place, one to each server.
    pub(crate) fn lines(&self, number: usize) -> &[Proxy] {
        &self.places[number].lines
    }

    /// Everybody's line to one server.
    pub(crate) fn lines_to(&self, member: usize) -> impl Iterator<Item = &Proxy> {
        self.places.iter().map(move |place| &place.lines[member])
    }

    /// The place whose candidate was last seen to lead.
    pub(crate) fn leading(&self, election: &str) -> usize {
        (0..PLACES).max_by_key(|&place| self.record.last_led(place, election)).unwrap_or(0)
    }
}

impl Place {
    fn running(&self) -> MutexGuard<'_, Option<Process>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
