//! A TCP proxy that injects faults into the connections between a client and its store.
//!
//! It does not interpret the bytes, so that it works for every store with a TCP protocol. A fault takes effect
//! immediately, on open and on new connections, and lasts until [`heal`](Proxy::heal).
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! use tenure_testkit::proxy::{Direction, Proxy};
//!
//! let store = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let proxy = Proxy::start(store.local_addr()?.to_string()).await?;
//!
//! let client = tokio::net::TcpStream::connect(proxy.endpoint()).await?;
//! proxy.blackhole(Direction::ToClient); // requests arrive, responses do not
//! proxy.heal();
//! # drop(client);
//! # Ok(())
//! # }
//! ```

mod connection;
mod faults;
mod forward;

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use faults::{Faults, FlowPolicy};

/// The direction of a stream of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server: requests.
    ToServer,
    /// From the server to the client: responses.
    ToClient,
    /// Both directions.
    Both,
}

impl Direction {
    fn to_server(self) -> bool {
        self != Self::ToClient
    }

    fn to_client(self) -> bool {
        self != Self::ToServer
    }
}

/// A running proxy. Dropping it ends the proxy and all its connections.
pub struct Proxy {
    address: SocketAddr,
    faults: watch::Sender<Faults>,
    counters: Arc<Counters>,
    acceptor: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    open: AtomicUsize,
}

impl Proxy {
    /// Listens on a free loopback port, and forwards every connection to `upstream` (`host:port`).
    ///
    /// # Behavior
    /// - `upstream` does not have to accept connections yet. The proxy connects to it once per client connection, and
    ///   resets the client connection if that fails.
    ///
    /// # Errors
    /// If no loopback port can be bound.
    pub async fn start(upstream: impl Into<String>) -> io::Result<Self> {
        // This socket is bound for as long as the proxy exists, and never listens. It reserves the port while the proxy
        // is cut, and lets the kernel refuse connections to it.
        let reservation = reusable_socket(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = reservation.local_addr()?;
        let listener = reusable_socket(address)?.listen(LISTEN_BACKLOG)?;

        let (faults, faults_receiver) = watch::channel(Faults::default());
        let counters = Arc::new(Counters::default());
        let acceptor = Acceptor {
            reservation,
            address,
            upstream: upstream.into().into(),
            faults: faults_receiver,
            counters: counters.clone(),
        };
        let acceptor = tokio::spawn(acceptor.run(listener));
        Ok(Self { address, faults, counters, acceptor })
    }

    /// The address to which clients connect: `127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Resets every connection, and refuses new ones as if no process listened on the port.
    pub fn cut(&self) {
        self.change(|faults| {
            faults.cut = true;
            faults.generation += 1;
        });
    }

    /// Discards what is sent in `direction` while all connections stay open: half-open connections.
    ///
    /// # Behavior
    /// - The closing of a connection is discarded too, so that the other side does not notice it.
    /// - A new connection is accepted. With [`Direction::ToServer`] discarded it does not reach the server.
    /// - A connection that lost bytes is reset by [`heal`](Self::heal), because a TCP stream cannot have a gap.
    pub fn blackhole(&self, direction: Direction) {
        self.set_policy(direction, FlowPolicy::Discard);
    }

    /// Holds what is sent in `direction`, and delivers it completely and in order after [`heal`](Self::heal): a network
    /// outage shorter than every timeout.
    pub fn hold(&self, direction: Direction) {
        self.set_policy(direction, FlowPolicy::Hold);
    }

    /// Delays everything in both directions by `delay`.
    pub fn delay(&self, delay: Duration) {
        self.change(|faults| faults.delay = delay);
    }

    /// Resets every open connection (TCP `RST`). New connections are forwarded as before.
    pub fn reset_connections(&self) {
        self.change(|faults| faults.generation += 1);
    }

    /// Ends all faults: accepts connections, and forwards everything without delay.
    pub fn heal(&self) {
        self.change(|faults| *faults = Faults { generation: faults.generation, ..Faults::default() });
    }

    /// How many connections the proxy has accepted so far.
    pub fn accepted(&self) -> u64 {
        self.counters.accepted.load(Ordering::Relaxed)
    }

    /// How many connections are open now.
    pub fn open(&self) -> usize {
        self.counters.open.load(Ordering::Relaxed)
    }

    fn set_policy(&self, direction: Direction, policy: FlowPolicy) {
        self.change(|faults| {
            if direction.to_server() {
                faults.to_server = policy;
            }
            if direction.to_client() {
                faults.to_client = policy;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Faults)) {
        self.faults.send_modify(change);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("address", &self.address)
            .field("faults", &*self.faults.borrow())
            .finish()
    }
}

/// The task that accepts connections while the proxy is not cut, and owns all of them.
struct Acceptor {
    reservation: TcpSocket,
    address: SocketAddr,
    upstream: Arc<str>,
    faults: watch::Receiver<Faults>,
    counters: Arc<Counters>,
}

impl Acceptor {
    async fn run(mut self, listener: TcpListener) {
        let mut listener = Some(listener);
        let mut connections = JoinSet::new();
        loop {
            let Faults { cut, generation, .. } = *self.faults.borrow_and_update();
            if cut {
                listener = None;
            } else if listener.is_none() {
                let bound = reusable_socket(self.address).and_then(|socket| socket.listen(LISTEN_BACKLOG));
                listener = Some(bound.expect("the proxy can listen on its own reserved port"));
            }
            tokio::select! {
                changed = self.faults.changed() => if changed.is_err() {
                    break;
                },
                Some(client) = accept(listener.as_ref()) => {
                    self.counters.accepted.fetch_add(1, Ordering::Relaxed);
                    let open = OpenCount::new(self.counters.clone());
                    let (upstream, faults) = (self.upstream.clone(), self.faults.clone());
                    connections.spawn(async move {
                        connection::serve(client, &upstream, faults, generation).await;
                        drop(open);
                    });
                }
                Some(_) = connections.join_next() => {}
            }
        }
        drop(self.reservation);
    }
}

const LISTEN_BACKLOG: u32 = 1024;

fn reusable_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// The next connection; `None` if it failed before it was accepted. Waits forever if there is no listener.
async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.ok().map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

/// Counts a connection as open until this is dropped, also if the connection's task is aborted.
struct OpenCount(Arc<Counters>);

impl OpenCount {
    fn new(counters: Arc<Counters>) -> Self {
        counters.open.fetch_add(1, Ordering::Relaxed);
        Self(counters)
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
