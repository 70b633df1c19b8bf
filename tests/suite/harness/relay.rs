//! A relay before a ZooKeeper that meddles with what it carries, as no server of today does.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::broadcast,
    task::JoinHandle,
};

/// Carries connections to a server until it is dropped.
#[derive(Debug)]
pub struct Relay {
    endpoint: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: Mutex<String>,
    forgets: AtomicBool,
    /// The timeout to ask for in the clients' stead, in milliseconds; none when zero.
    timeout: AtomicU32,
    carried: AtomicUsize,
    injected: broadcast::Sender<Option<Vec<u8>>>,
}

/// Where the session's id stands in the first frame of a connection: behind its length, a version,
/// a transaction and a timeout. Its password comes just after, with its length.
const TIMEOUT: std::ops::Range<usize> = 16..20;
const SESSION: std::ops::Range<usize> = 20..28;
const PASSWORD: std::ops::Range<usize> = 32..48;

impl Relay {
    /// Listens on a loopback port of its own.
    ///
    /// # Errors
    /// When none can be bound.
    pub async fn start(server: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            server: Mutex::new(server.into()),
            forgets: AtomicBool::new(false),
            timeout: AtomicU32::new(0),
            carried: AtomicUsize::new(0),
            injected: broadcast::Sender::new(16),
        });
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(carry(client, Arc::clone(&shared)));
                }
            }
        });
        Ok(Self { endpoint, shared, task })
    }

    /// Where it listens: `127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// From now on a client that asks for its session back is given a new one, and is not told.
    pub fn replace_sessions(&self) {
        self.shared.forgets.store(true, SeqCst);
    }

    /// From now on asks for a session timeout of so many milliseconds, whatever clients ask for.
    pub fn ask_for(&self, millis: u32) {
        self.shared.timeout.store(millis, SeqCst);
    }

    /// Carries connections to another server from now on.
    pub fn lead_to(&self, server: impl Into<String>) {
        *self.shared.server.lock().unwrap_or_else(PoisonError::into_inner) = server.into();
    }

    /// Sends bytes to all clients that the server has not sent.
    pub fn inject(&self, bytes: impl Into<Vec<u8>>) {
        let _ = self.shared.injected.send(Some(bytes.into()));
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        let _ = self.shared.injected.send(None);
    }

    /// How many connections it has carried so far.
    pub fn connections(&self) -> usize {
        self.shared.carried.load(SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn carry(mut client: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let mut injected = shared.injected.subscribe();
    shared.carried.fetch_add(1, SeqCst);
    let target = shared.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut server = TcpStream::connect(target).await?;
    let mut first = vec![0; PASSWORD.end];
    client.read_exact(&mut first).await?;
    if shared.forgets.load(SeqCst) {
        first[SESSION].fill(0);
        first[PASSWORD].fill(0);
    }
    let timeout = shared.timeout.load(SeqCst);
    if timeout > 0 {
        first[TIMEOUT].copy_from_slice(&timeout.to_be_bytes());
    }
    server.write_all(&first).await?;
    loop {
        let copied = tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut client, &mut server) => Some(copied),
            bytes = injected.recv() => match bytes {
                Ok(Some(bytes)) => {
                    client.write_all(&bytes).await?;
                    None
                }
                _ => return Ok(()),
            },
        };
        if let Some(copied) = copied {
            return copied.map(drop);
        }
    }
}
