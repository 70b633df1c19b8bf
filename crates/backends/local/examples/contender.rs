//! A candidate in a process of its own, for the tests to kill: `contender lead|churn DIRECTORY`.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use tenure_core::{
    CandidateId, ElectionName,
    spi::{Backend, BackendSession, Entered, EntryRequest},
};
use tenure_local::LocalBackend;

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(role), Some(dir)) = (arguments.next(), arguments.next().map(PathBuf::from)) else {
        panic!("usage: contender lead|churn DIRECTORY");
    };
    let backend = LocalBackend::open(&dir).unwrap();
    match role.as_str() {
        "lead" => {
            let s = session(&backend).await;
            let (_, entered) = enter(&*s).await;
            say("ENTERED", entered.entry.version);
            say("LEADS", turn(&*s, &entered).await);
            std::future::pending::<()>().await;
        }
        "churn" => churn(&backend, &dir).await,
        other => panic!("no such role: {other}"),
    }
}

async fn session(backend: &LocalBackend) -> Box<dyn BackendSession> {
    backend.open_session(std::time::Duration::from_secs(5)).await.unwrap()
}

async fn enter(s: &dyn BackendSession) -> (EntryRequest, Entered) {
    let request = EntryRequest {
        election: ElectionName::new("e").unwrap(),
        candidate: CandidateId::unique(),
        value: [].into(),
        nonce: fastrand::u128(..),
    };
    let entered = s.enter(&request).await.unwrap();
    (request, entered)
}

async fn turn(s: &dyn BackendSession, entered: &Entered) -> u64 {
    match entered.leads {
        Some(token) => token.get(),
        None => s.wait_turn(&entered.entry).await.unwrap().get(),
    }
}

/// Leads again and again; each time alone, or else it says so.
async fn churn(backend: &LocalBackend, dir: &Path) {
    let (witness, log) = (dir.join("witness"), dir.join("log"));
    let me = std::process::id().to_string();
    for round in 0.. {
        let s = session(backend).await;
        let (request, entered) = enter(&*s).await;
        let token = turn(&*s, &entered).await;
        // A leader that was killed could not take its mark away; the killer has told us first.
        if let Ok(other) = fs::read_to_string(&witness)
            && !dir.join(format!("killed-{other}")).exists()
        {
            say("OVERLAP", token);
        }
        put(&witness, &me);
        let last = fs::read_to_string(&log).unwrap_or_default().trim().parse().unwrap_or(0);
        if token <= last {
            say("BACKWARDS", token);
        }
        put(&log, &token.to_string());
        tokio::task::yield_now().await;
        if fs::read_to_string(&witness).ok().as_deref() != Some(&me) {
            say("OVERLAP", token);
        }
        fs::remove_file(&witness).unwrap();
        s.leave(&request, Some(&entered.entry)).await.unwrap();
        say("ROUND", round);
    }
}

/// Replaces a file whole: a kill in the middle of writing it is no fault of the election.
fn put(path: &Path, text: &str) {
    let new = path.with_extension(std::process::id().to_string());
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

fn say(word: &str, number: u64) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word} {number}").unwrap();
    out.flush().unwrap();
}
