//! A candidate in a process of its own, which the tests kill: `contender lead|churn DIRECTORY`.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tenure_core::{
    BootClock, CandidateId, ElectionName,
    spi::{Backend, BackendSession, Entered, EntryRequest, QueuePosition, SessionOptions},
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
            let (request, entered) = enter(&*s).await;
            print_event("ENTERED", entered.entry().unwrap().version);
            print_event("LEADS", wait_turn(&*s, &request, &entered).await);
            std::future::pending::<()>().await;
        }
        "churn" => churn(&backend, &dir).await,
        other => panic!("no such role: {other}"),
    }
}

async fn session(backend: &LocalBackend) -> Box<dyn BackendSession> {
    let options = SessionOptions::new(Duration::from_secs(5), Arc::new(BootClock), 0.1);
    backend.open_session(&options).await.unwrap()
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

async fn wait_turn(s: &dyn BackendSession, request: &EntryRequest, entered: &Entered) -> u64 {
    match entered.token() {
        Some(token) => token.get(),
        None => {
            let position = QueuePosition::new(|_| {});
            s.wait_turn(request, entered.entry(), &position).await.unwrap().token.get()
        }
    }
}

/// Leads again and again, and reports a term in which another process leads too.
async fn churn(backend: &LocalBackend, dir: &Path) {
    let (leader_file, token_file) = (dir.join("leader"), dir.join("log"));
    let own_id = std::process::id().to_string();
    for round in 0.. {
        let s = session(backend).await;
        let (request, entered) = enter(&*s).await;
        let token = wait_turn(&*s, &request, &entered).await;
        // A leader that was killed could not remove its id. The test creates a file before it kills a process.
        if let Ok(other) = fs::read_to_string(&leader_file)
            && !dir.join(format!("killed-{other}")).exists()
        {
            print_event("OVERLAP", token);
        }
        write_file(&leader_file, &own_id);
        let last = fs::read_to_string(&token_file).unwrap_or_default().trim().parse().unwrap_or(0);
        if token <= last {
            print_event("BACKWARDS", token);
        }
        write_file(&token_file, &token.to_string());
        tokio::task::yield_now().await;
        if fs::read_to_string(&leader_file).ok().as_deref() != Some(&own_id) {
            print_event("OVERLAP", token);
        }
        fs::remove_file(&leader_file).unwrap();
        s.leave(&request, entered.entry()).await.unwrap();
        print_event("ROUND", round);
    }
}

/// Replaces a file atomically, so that a kill during the write does not look like a fault of the election.
fn write_file(path: &Path, text: &str) {
    let new = path.with_extension(std::process::id().to_string());
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

fn print_event(name: &str, number: u64) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{name} {number}").unwrap();
    out.flush().unwrap();
}
