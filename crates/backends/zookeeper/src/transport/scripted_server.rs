//! A server for unit tests: it answers every request as the test says.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// The timeout that sessions are granted unless the test says otherwise.
pub(crate) const GRANTED_TTL: Duration = Duration::from_secs(10);

/// A request of a client. Pings are answered without asking the test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Opens a session, or resumes one that is not 0.
    Connect {
        session: i64,
    },
    Children(String),
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
            2 => Request::Delete(path_of(&frame)),
            3 => Request::Exists(path_of(&frame)),
            8 | 12 => Request::Children(path_of(&frame)),
            9 => Request::Sync,
            -11 => Request::CloseSession,
            _ => Request::Other,
        };
        let answer = if kind == PING { Answer::ok(&[]) } else { script(request).await };
        let Answer::Reply(error, body) = answer else { return Ok(()) };
        let mut reply = xid.to_be_bytes().to_vec();
        reply.extend(1_i64.to_be_bytes());
        reply.extend(error.to_be_bytes());
        reply.extend(body);
        write_frame(&mut stream, &reply).await?;
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
