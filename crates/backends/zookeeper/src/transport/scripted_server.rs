//! A server for unit tests: it answers every request as the test says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use super::connect_options::ConnectOptions;

/// The timeout that sessions are granted unless the test says otherwise.
pub(crate) const GRANTED_TTL: Duration = Duration::from_secs(10);

impl ConnectOptions {
    /// Options without a login and without TLS, for the root `/root`.
    pub(crate) fn for_tests(attempt_timeout: Duration) -> Self {
        Self {
            login: None,
            attempt_timeout,
            tls: None,
            creator_only: false,
            root: "/root".to_owned(),
            barrier_path: "/root/~nowhere".to_owned(),
        }
    }
}

/// A request of a client. Pings are answered without asking the test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Opens a session, or resumes one that is not 0.
    Connect {
        session: i64,
    },
    Children(String),
    /// Creates a znode that is not a container.
    Create(String),
    Delete(String),
    Exists(String),
    Sync,
    CloseSession,
    Other,
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Grants the session with this id, for [`GRANTED_TTL`]; 0 means that it has expired.
    Session(i64),
    /// The same, with this timeout.
    SessionFor(i64, Duration),
    /// An error code, and the body of the answer.
    Reply(i32, Vec<u8>),
    /// Begins an answer and sends byte after byte of it, without an end.
    Endless,
    /// Closes the connection.
    Disconnect,
}

impl Answer {
    const NO_NODE: i32 = -101;
    const NO_AUTH: i32 = -102;

    pub(crate) fn ok(body: &[u8]) -> Self {
        Self::Reply(0, body.to_vec())
    }

    pub(crate) fn no_node() -> Self {
        Self::Reply(Self::NO_NODE, Vec::new())
    }

    pub(crate) fn no_auth() -> Self {
        Self::Reply(Self::NO_AUTH, Vec::new())
    }

    /// The stat of a znode that the transaction `czxid` has created, at the time 0; `owner` is 0 if it is persistent.
    pub(crate) fn stat(czxid: i64, owner: i64) -> Self {
        let mut stat = vec![0; 68];
        stat[..8].copy_from_slice(&czxid.to_be_bytes());
        stat[44..52].copy_from_slice(&owner.to_be_bytes());
        Self::Reply(0, stat)
    }

    pub(crate) fn children(names: &[&str]) -> Self {
        let length = |length: usize| i32::try_from(length).unwrap().to_be_bytes();
        let mut body = length(names.len()).to_vec();
        for name in names {
            body.extend(length(name.len()));
            body.extend(name.as_bytes());
        }
        Self::Reply(0, body)
    }
}

type Script = dyn Fn(Request) -> BoxFuture<'static, Answer> + Send + Sync;

/// A server that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct ScriptedServer {
    address: String,
    task: JoinHandle<()>,
}

impl ScriptedServer {
    pub(crate) async fn start(
        script: impl Fn(Request) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let script: Arc<Script> = Arc::new(script);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = Arc::clone(&script);
                tokio::spawn(async move { serve(stream, &*script).await });
            }
        });
        Self { address, task }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server that knows the session 7, has no znodes, and answers while its gate is open.
#[derive(Debug)]
pub(crate) struct GatedServer {
    server: ScriptedServer,
    /// Its receivers count the requests that wait for an answer.
    gate: watch::Sender<bool>,
    opened: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
}

impl GatedServer {
    /// Grants sessions of `ttl`. The gate is open.
    pub(crate) async fn start(ttl: Duration) -> Self {
        let gate = watch::Sender::new(true);
        let [opened, closed] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let (waiting, opens, closes) = (gate.clone(), Arc::clone(&opened), Arc::clone(&closed));
        let server = ScriptedServer::start(move |request| {
            let mut open = waiting.subscribe();
            let (opens, closes) = (Arc::clone(&opens), Arc::clone(&closes));
            Box::pin(async move {
                let _ = open.wait_for(|open| *open).await;
                match request {
                    Request::Connect { session } => {
                        opens.fetch_add(usize::from(session == 0), SeqCst);
                        Answer::SessionFor(7, ttl)
                    }
                    Request::CloseSession => {
                        closes.fetch_add(1, SeqCst);
                        Answer::ok(&[])
                    }
                    _ => Answer::no_node(),
                }
            })
        })
        .await;
        Self { server, gate, opened, closed }
    }

    pub(crate) fn address(&self) -> &str {
        self.server.address()
    }

    pub(crate) fn set_open(&self, open: bool) {
        self.gate.send_replace(open);
    }

    /// How many requests wait for an answer.
    pub(crate) fn waiting(&self) -> usize {
        self.gate.receiver_count()
    }

    /// How many sessions were opened, and closed.
    pub(crate) fn sessions(&self) -> (usize, usize) {
        (self.opened.load(SeqCst), self.closed.load(SeqCst))
    }
}

async fn serve(mut stream: TcpStream, script: &Script) -> std::io::Result<()> {
    let connect = read_frame(&mut stream).await?;
    let session = i64::from_be_bytes(connect[16..24].try_into().unwrap());
    let (session, ttl) = match script(Request::Connect { session }).await {
        Answer::Session(session) => (session, GRANTED_TTL),
        Answer::SessionFor(session, ttl) => (session, ttl),
        _ => return Ok(()),
    };
    let timeout = if session == 0 { 0 } else { i32::try_from(ttl.as_millis()).unwrap() };
    let mut granted = [0_i32.to_be_bytes(), timeout.to_be_bytes()].concat();
    granted.extend(session.to_be_bytes());
    granted.extend(16_i32.to_be_bytes());
    granted.extend([0; 17]);
    write_frame(&mut stream, &granted).await?;
    loop {
        const PING: i32 = 11;
        let frame = read_frame(&mut stream).await?;
        let [xid, kind] = [0, 4].map(|at| i32::from_be_bytes(frame[at..at + 4].try_into().unwrap()));
        let request = match kind {
            1 | 15 => Request::Create(path_of(&frame)),
            2 => Request::Delete(path_of(&frame)),
            3 => Request::Exists(path_of(&frame)),
            8 | 12 => Request::Children(path_of(&frame)),
            9 => Request::Sync,
            -11 => Request::CloseSession,
            _ => Request::Other,
        };
        let answer = if kind == PING { Answer::ok(&[]) } else { script(request).await };
        let (error, body) = match answer {
            Answer::Reply(error, body) => (error, body),
            Answer::Endless => return send_endlessly(stream).await,
            _ => return Ok(()),
        };
        let mut reply = xid.to_be_bytes().to_vec();
        reply.extend(1_i64.to_be_bytes());
        reply.extend(error.to_be_bytes());
        reply.extend(body);
        write_frame(&mut stream, &reply).await?;
    }
}

async fn send_endlessly(mut stream: TcpStream) -> std::io::Result<()> {
    const PACE: Duration = Duration::from_millis(10);
    stream.write_i32(1 << 20).await?;
    loop {
        stream.write_u8(0).await?;
        sleep(PACE).await;
    }
}

/// The path with which the request in `frame` begins.
fn path_of(frame: &[u8]) -> String {
    let length = usize::try_from(i32::from_be_bytes(frame[8..12].try_into().unwrap())).unwrap();
    String::from_utf8(frame[12..12 + length].to_vec()).unwrap()
}

async fn read_frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = usize::try_from(stream.read_i32().await?).unwrap();
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn write_frame(stream: &mut TcpStream, frame: &[u8]) -> std::io::Result<()> {
    stream.write_i32(i32::try_from(frame.len()).unwrap()).await?;
    stream.write_all(frame).await
}
