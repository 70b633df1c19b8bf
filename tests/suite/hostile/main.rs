//! Hostile data: strangers in an election, and stores that answer nonsense. Whatever they write, memory and time stay bounded, failures
//! are typed and fit to be printed, and nothing of theirs is deleted.
//!
//! Each test counts the memory of its process: cargo-nextest runs each in one of its own.

mod etcd;
mod flood;
mod liar;
mod lies;
mod local;
mod names;
mod nonsense;
mod server;
mod zookeeper;

use std::{future::Future, sync::Arc, time::Duration};

use futures::StreamExt as _;
use peak_alloc::PeakAlloc;
use tenure::{Candidate, Config, Elector};
use tenure_core::{StoreElector, spi::Backend};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// No more than this was ever allocated at once, in MiB.
#[track_caller]
fn never_held_more_than(mebibytes: usize) {
    let peak = MEMORY.peak_usage() >> 20;
    assert!(peak <= mebibytes, "{peak} MiB were held at once");
}

/// The outcome of what must take seconds, and not minutes.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    const SECONDS: Duration = Duration::from_secs(15);
    match tokio::time::timeout(SECONDS, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("{what}: no outcome within {SECONDS:?}"),
    }
}

/// An elector over `backend` whose candidate is called `id`.
fn elector(backend: Arc<impl Backend>, id: &str) -> Arc<dyn Elector> {
    let config = Config::new().with_id(id.parse().unwrap()).with_ttl(Duration::from_secs(5)).with_value(id);
    Arc::new(StoreElector::new(backend, config).unwrap())
}

/// The ids of all candidates of the election `e`.
async fn ids(elector: &dyn Elector) -> Vec<String> {
    let candidates = soon("listing the candidates", elector.candidates("e")).await.unwrap();
    candidates.into_iter().map(|candidate| candidate.id).collect()
}

/// Who leads the election `e`, asked for and observed, which has to be the same.
async fn leader(elector: &dyn Elector) -> Option<Candidate> {
    let asked = soon("asking for the leader", elector.leader("e")).await.unwrap();
    let observed = soon("observing", elector.observe("e").next()).await.unwrap().unwrap();
    assert_eq!(asked.as_ref().map(|c| (&c.id, &c.value)), observed.as_ref().map(|c| (&c.id, &c.value)));
    asked
}

/// Whether a text can be printed on a line of a log or of a terminal.
fn is_fit_to_be_printed(text: &str) -> bool {
    let turns = |c: char| matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.len() <= 2048 && !text.chars().any(|c| c.is_control() || turns(c))
}

/// What strangers may write where a candidate writes its id and value.
fn payloads(largest: usize) -> Vec<Vec<u8>> {
    let mut random = vec![0; largest];
    fastrand::fill(&mut random);
    let nonce = "0123456789abcdef0123456789abcdef";
    vec![
        random,
        Vec::new(),
        b"tenure/1 ".to_vec(),
        b"tenure/1 me 0123456789".to_vec(),
        format!("tenure/1 me {nonce}").into_bytes(),
        format!("tenure/1  {nonce}\nno id").into_bytes(),
        format!("tenure/1 {} {nonce}\nlong id", "x".repeat(100_000)).into_bytes(),
        format!("tenure/1 a\u{1b}[31m {nonce}\nred id").into_bytes(),
        format!("tenure/2 me {nonce}\nfuture").into_bytes(),
        format!("tenure/18446744073709551616 me {nonce}\n").into_bytes(),
        [b"tenure/1 me \xff\xfe\n".as_slice(), &[0; 100]].concat(),
        b"\n\0tenure/1 resign\0".to_vec(),
        "\u{202e}\u{1b}]0;title\u{7}\r\nERROR forged".into(),
    ]
}
