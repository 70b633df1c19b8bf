//! A TCP proxy in front of a ZooKeeper server that changes what it forwards, to imitate faults that a real server rarely has.

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

/// Forwards connections to a server until it is dropped.
#[derive(Debug)]
pub struct ZookeeperProxy {
    endpoint: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: Mutex<String>,
    replaces_sessions: AtomicBool,
    /// The session timeout that replaces what clients request, in milliseconds; zero replaces nothing.
    timeout_millis: AtomicU32,
    connections: AtomicUsize,
    /// Bytes to send to all clients; `None` closes their connections.
    injected: broadcast::Sender<Option<Vec<u8>>>,
}

/// The positions of fields in a connect request. It has a length, a protocol version, a transaction id, the session timeout,
/// the session id, and the session's password after its length.
const TIMEOUT: std::ops::Range<usize> = 16..20;
const SESSION: std::ops::Range<usize> = 20..28;
const PASSWORD: std::ops::Range<usize> = 32..48;

impl ZookeeperProxy {
    /// Starts a proxy on a free loopback port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(server: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            server: Mutex::new(server.into()),
            replaces_sessions: AtomicBool::new(false),
            timeout_millis: AtomicU32::new(0),
            connections: AtomicUsize::new(0),
            injected: broadcast::Sender::new(16),
        });
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(forward(client, Arc::clone(&shared)));
                }
            }
        });
        Ok(Self { endpoint, shared, task })
    }

    /// The address at which the proxy listens: `127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// From now on a client that resumes its session is given a new one instead, without notice.
    pub fn replace_sessions(&self) {
        self.shared.replaces_sessions.store(true, SeqCst);
    }

    /// From now on replaces the session timeout that clients request.
    pub fn override_session_timeout(&self, millis: u32) {
        self.shared.timeout_millis.store(millis, SeqCst);
    }

    /// Forwards new connections to another server.
    pub fn redirect_to(&self, server: impl Into<String>) {
        *self.shared.server.lock().unwrap_or_else(PoisonError::into_inner) = server.into();
    }

    /// Sends bytes to all clients.
    pub fn inject(&self, bytes: impl Into<Vec<u8>>) {
        let _ = self.shared.injected.send(Some(bytes.into()));
    }

    /// Closes all connections.
    pub fn cut(&self) {
        let _ = self.shared.injected.send(None);
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }
}

impl Drop for ZookeeperProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn forward(mut client: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let mut injected = shared.injected.subscribe();
    shared.connections.fetch_add(1, SeqCst);
    let target = shared.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut server = TcpStream::connect(target).await?;
    let mut first = vec![0; PASSWORD.end];
    client.read_exact(&mut first).await?;
    if shared.replaces_sessions.load(SeqCst) {
        first[SESSION].fill(0);
        first[PASSWORD].fill(0);
    }
    let timeout = shared.timeout_millis.load(SeqCst);
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
