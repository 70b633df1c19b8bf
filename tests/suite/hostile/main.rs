//! Hostile data: foreign entries in an election, and stores that send garbage or wrong answers. Memory and time stay bounded,
//! errors are typed and printable, and nothing foreign is deleted.
//!
//! Each test measures the memory of its process: cargo-nextest runs every test in a process of its own.

mod etcd;
mod fake_etcd;
mod flood;
mod garbage;
mod garbage_server;
mod local;
mod names;
mod postgres;
mod wrong_answers;
mod zookeeper;

use std::{future::Future, sync::Arc, time::Duration};

use futures::StreamExt as _;
use peak_alloc::PeakAlloc;
use tenure::{Candidate, Config, Elector};
use tenure_core::{StoreElector, spi::Backend};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Asserts that the peak of allocated memory is at most so many MiB.
#[track_caller]
fn assert_peak_memory_mib(mebibytes: usize) {
    let peak = MEMORY.peak_usage() >> 20;
    assert!(peak <= mebibytes, "{peak} MiB were allocated at once");
}

/// The output of a future that must complete within 15 s.
async fn promptly<T>(what: &str, future: impl Future<Output = T>) -> T {
    const LIMIT: Duration = Duration::from_secs(15);
    match tokio::time::timeout(LIMIT, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("{what}: no outcome within {LIMIT:?}"),
    }
}

/// An elector with `backend` whose candidate has this id.
fn elector(backend: Arc<impl Backend>, id: &str) -> Arc<dyn Elector> {
    let config = Config::new().with_id(id.parse().unwrap()).with_ttl(Duration::from_secs(5)).with_value(id);
    Arc::new(StoreElector::new(backend, config).unwrap())
}

/// The ids of all candidates of the election `e`.
async fn ids(elector: &dyn Elector) -> Vec<String> {
    let candidates = promptly("listing the candidates", elector.candidates("e")).await.unwrap();
    candidates.into_iter().map(|candidate| candidate.id).collect()
}

/// The leader of the election `e`. Asserts that `leader` and `observe` agree.
async fn leader(elector: &dyn Elector) -> Option<Candidate> {
    let requested = promptly("asking for the leader", elector.leader("e")).await.unwrap();
    let observed = promptly("observing", elector.observe("e").next()).await.unwrap().unwrap();
    assert_eq!(requested.as_ref().map(|c| (&c.id, &c.value)), observed.as_ref().map(|c| (&c.id, &c.value)));
    requested
}

/// Whether a text is safe to print on one line of a log or a terminal.
fn is_printable(text: &str) -> bool {
    let is_separator_or_bidi = |c: char| matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.len() <= 2048 && !text.chars().any(|c| c.is_control() || is_separator_or_bidi(c))
}

/// Values that other programs may write where a candidate writes its id and value.
fn foreign_payloads(max_bytes: usize) -> Vec<Vec<u8>> {
    let mut random = vec![0; max_bytes];
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
