//! A TCP proxy that stands between a client and its store and breaks their connection on purpose.
//!
//! It knows nothing of what it carries, so it serves every store that speaks TCP.
//! All faults act at once on open connections and on new ones, until
//! [`heal`](Proxy::heal).
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
//! proxy.blackhole(Direction::ToClient); // requests arrive, answers do not
//! proxy.heal();
//! # drop(client);
//! # Ok(())
//! # }
//! ```

mod connection;
mod gate;
mod pump;

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

use gate::{Flow, Gate};

/// Which way bytes travel, as seen from the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server: requests.
    ToServer,
    /// From the server to the client: answers.
    ToClient,
    /// Both ways.
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

/// A running proxy. It ends, with all its connections, when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    gate: watch::Sender<Gate>,
    counters: Arc<Counters>,
    acceptor: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    open: AtomicUsize,
}

impl Proxy {
    /// Listens on a free loopback port and carries every connection to `upstream` (`host:port`).
    ///
    /// # Behavior
    /// - `upstream` need not be there yet: it is connected to once per client
    ///   connection, which is reset when that fails.
    ///
    /// # Errors
    /// When no loopback port can be bound.
    pub async fn start(upstream: impl Into<String>) -> io::Result<Self> {
        // Bound for as long as the proxy lives and never listening: while the proxy
        // is cut, this keeps the port ours and lets the kernel refuse connections to it.
        let reservation = reusable_socket(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = reservation.local_addr()?;
        let listener = reusable_socket(address)?.listen(BACKLOG)?;

        let (gate, watcher) = watch::channel(Gate::default());
        let counters = Arc::new(Counters::default());
        let acceptor = Acceptor {
            reservation,
            address,
            upstream: upstream.into().into(),
            gate: watcher,
            counters: counters.clone(),
        };
        let acceptor = tokio::spawn(acceptor.run(listener));
        Ok(Self { address, gate, counters, acceptor })
    }

    /// Where clients connect: `127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Resets every connection, and refuses new ones as if nobody listened.
    pub fn cut(&self) {
        self.change(|gate| {
            gate.cut = true;
            gate.generation += 1;
        });
    }

    /// Swallows what is sent in `direction` while all connections stay open: a half-open connection.
    ///
    /// # Behavior
    /// - Closing is swallowed too: the other side never hears of it.
    /// - A new connection is accepted; with [`Direction::ToServer`] swallowed it does
    ///   not reach the server.
    /// - A connection that lost bytes is reset by [`heal`](Self::heal): a stream with a
    ///   gap does not exist in TCP.
    pub fn blackhole(&self, direction: Direction) {
        self.set_flow(direction, Flow::Swallow);
    }

    /// Keeps back what is sent in `direction`, and delivers it, complete and in
    /// order, after [`heal`](Self::heal): a network that comes back in time.
    pub fn hold(&self, direction: Direction) {
        self.set_flow(direction, Flow::Hold);
    }

    /// Delivers everything, both ways, this much later than it was sent.
    pub fn delay(&self, delay: Duration) {
        self.change(|gate| gate.delay = delay);
    }

    /// Resets every open connection (TCP `RST`); new ones are served as before.
    pub fn reset_connections(&self) {
        self.change(|gate| gate.generation += 1);
    }

    /// Ends all faults: accepts connections, and carries everything at once.
    pub fn heal(&self) {
        self.change(|gate| *gate = Gate { generation: gate.generation, ..Gate::default() });
    }

    /// How many connections clients have made so far.
    pub fn accepted(&self) -> u64 {
        self.counters.accepted.load(Ordering::Relaxed)
    }

    /// How many connections are open now.
    pub fn open(&self) -> usize {
        self.counters.open.load(Ordering::Relaxed)
    }

    fn set_flow(&self, direction: Direction, flow: Flow) {
        self.change(|gate| {
            if direction.to_server() {
                gate.to_server = flow;
            }
            if direction.to_client() {
                gate.to_client = flow;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Gate)) {
        self.gate.send_modify(change);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).field("gate", &*self.gate.borrow()).finish()
    }
}

/// The task that accepts connections while the proxy is not cut, and owns them all.
struct Acceptor {
    reservation: TcpSocket,
    address: SocketAddr,
    upstream: Arc<str>,
    gate: watch::Receiver<Gate>,
    counters: Arc<Counters>,
}

impl Acceptor {
    async fn run(mut self, listener: TcpListener) {
        let mut listener = Some(listener);
        let mut connections = JoinSet::new();
        loop {
            let Gate { cut, generation, .. } = *self.gate.borrow_and_update();
            if cut {
                listener = None;
            } else if listener.is_none() {
                let bound = reusable_socket(self.address).and_then(|socket| socket.listen(BACKLOG));
                listener = Some(bound.expect("the proxy's own port, still reserved, can be listened on"));
            }
            tokio::select! {
                changed = self.gate.changed() => if changed.is_err() {
                    break;
                },
                Some(client) = accept(listener.as_ref()) => {
                    self.counters.accepted.fetch_add(1, Ordering::Relaxed);
                    let open = OpenCount::new(self.counters.clone());
                    let (upstream, gate) = (self.upstream.clone(), self.gate.clone());
                    connections.spawn(async move {
                        connection::serve(client, &upstream, gate, generation).await;
                        drop(open);
                    });
                }
                Some(_) = connections.join_next() => {}
            }
        }
        drop(self.reservation);
    }
}

const BACKLOG: u32 = 1024;

fn reusable_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// The next connection; `None` when it failed before it was accepted; never while there is no listener.
async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.ok().map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

/// Counts a connection as open until it is dropped, also when its task is aborted.
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
