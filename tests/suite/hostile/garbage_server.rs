//! Servers that send garbage.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// What a server does with a connection.
#[derive(Clone, Debug)]
pub(crate) enum Garbage {
    /// Accepts it, reads everything, and never answers.
    Silence,
    /// Sends 4 KiB of random bytes.
    RandomBytes,
    /// Closes it at once.
    Close,
    /// Answers the first request with an HTTP/1.1 error.
    HttpError,
    /// Sends the bytes without end, without waiting for a request.
    StreamAtOnce(&'static [u8]),
    /// Sends the first bytes, waits for a request, and sends the second bytes without end at this rate.
    Stream(&'static [u8], &'static [u8], Rate),
    /// Sends the bytes without end, after the HTTP/2 headers of a response to the first request.
    StreamResponse(&'static [u8]),
    /// Answers the first request with the first bytes, waits for another, and sends the second bytes without end at this rate.
    StreamAfterResponse(Vec<u8>, &'static [u8], Rate),
    /// Answers the first request with a gRPC error whose message has kilobytes and control characters.
    UnprintableError,
    /// Sends these bytes after the first request.
    Response(Vec<u8>),
    /// Sends these bytes after the first request. Then answers every ZooKeeper request, except one to close the session, with
    /// the announcement of a list of so many texts that does not follow.
    TruncatedLists(Vec<u8>, i32),
}

/// How fast bytes are sent without end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rate {
    /// As fast as the client reads.
    Unbounded,
    /// So many MiB a second on all connections together.
    MebibytesPerSecond(u32),
}

/// Limits the rate: the time at which the next bytes may be sent.
#[derive(Debug, Default)]
struct RateLimiter(Mutex<Option<Instant>>);

impl RateLimiter {
    async fn wait(&self, bytes: usize, rate: Rate) {
        let Rate::MebibytesPerSecond(mebibytes) = rate else { return };
        let at = {
            let mut next = self.0.lock().unwrap();
            let at = next.unwrap_or_else(Instant::now).max(Instant::now());
            let duration = bytes as f64 / f64::from(mebibytes) / f64::from(1 << 20);
            *next = Some(at + Duration::from_secs_f64(duration));
            at
        };
        sleep_until(at).await;
    }
}

/// A server that runs until it is dropped.
pub(crate) struct GarbageServer {
    pub(crate) endpoint: String,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl GarbageServer {
    pub(crate) async fn start(garbage: Garbage) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&accepted);
        let limiter = Arc::new(RateLimiter::default());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (garbage, limiter) = (garbage.clone(), Arc::clone(&limiter));
                counted.fetch_add(1, Relaxed);
                connections.spawn(async move { drop(garbage.serve(stream, &limiter).await) });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { endpoint, connections: accepted, task }
    }

    /// How many connections were accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

impl Drop for GarbageServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Garbage {
    async fn serve(self, mut stream: TcpStream, limiter: &RateLimiter) -> io::Result<()> {
        match self {
            Self::Silence => {}
            Self::RandomBytes => {
                let mut bytes = [0; 4096];
                fastrand::fill(&mut bytes);
                stream.write_all(&bytes).await?;
            }
            Self::Close => return Ok(()),
            Self::HttpError => {
                read_request(&mut stream).await?;
                let text = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 12\r\n\r\n\u{1b}[31mBad\r\n";
                stream.write_all(text.as_bytes()).await?;
                return Ok(());
            }
            Self::StreamAtOnce(repeated) => {
                return send_forever(stream, repeated, limiter, Rate::Unbounded).await;
            }
            Self::Stream(first, repeated, rate) => {
                stream.write_all(first).await?;
                read_request(&mut stream).await?;
                return send_forever(stream, repeated, limiter, rate).await;
            }
            Self::StreamAfterResponse(first, repeated, rate) => {
                read_request(&mut stream).await?;
                stream.write_all(&first).await?;
                read_request(&mut stream).await?;
                return send_forever(stream, repeated, limiter, rate).await;
            }
            Self::StreamResponse(repeated) => {
                stream.write_all(SETTINGS).await?;
                read_headers(&mut stream).await?;
                stream.write_all(RESPONSE_HEADERS).await?;
                return send_forever(stream, repeated, limiter, Rate::Unbounded).await;
            }
            Self::UnprintableError => {
                stream.write_all(SETTINGS).await?;
                read_headers(&mut stream).await?;
                stream.write_all(&grpc_error()).await?;
            }
            Self::TruncatedLists(session, count) => {
                read_request(&mut stream).await?;
                stream.write_all(&session).await?;
                return send_truncated_lists(stream, count).await;
            }
            Self::Response(bytes) => {
                read_request(&mut stream).await?;
                stream.write_all(&bytes).await?;
            }
        }
        // Later requests are read and not answered.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
    }
}

/// Waits until the client has sent something.
async fn read_request(stream: &mut TcpStream) -> io::Result<()> {
    stream.read(&mut [0; 1024]).await.map(drop)
}

/// HTTP/2: an empty SETTINGS frame.
pub(crate) const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// HTTP/2: a PING frame.
pub(crate) const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
/// HTTP/2: the headers of a gRPC response on the first stream.
const RESPONSE_HEADERS: &[u8] = b"\0\0\x20\x01\x04\0\0\0\x01\x88\0\x0ccontent-type\x10application/grpc";
/// HTTP/2: the headers of a gRPC error (UNAVAILABLE) on the first stream.
fn grpc_error() -> Vec<u8> {
    let text = format!("no%0D%0AERROR forged%1B%5B31m%E2%80%AE{}", "x".repeat(8000));
    let mut block =
        b"\x88\0\x0ccontent-type\x10application/grpc\0\x0bgrpc-status\x0214\0\x0cgrpc-message".to_vec();
    // HPACK's encoding of a number that does not fit into seven bits.
    let rest = text.len() - 127;
    block.extend([127, 0x80 | (rest % 128) as u8, (rest / 128) as u8]);
    block.extend(text.into_bytes());
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    [&length[1..], &[1, 5, 0, 0, 0, 1], &block].concat()
}

/// ZooKeeper: answers every request with the length of a list that does not follow.
async fn send_truncated_lists(mut stream: TcpStream, count: i32) -> io::Result<()> {
    loop {
        let length = stream.read_u32().await?;
        let mut request = vec![0; length as usize];
        stream.read_exact(&mut request).await?;
        const CLOSE_SESSION: [u8; 4] = (-11_i32).to_be_bytes();
        if request[4..8] == CLOSE_SESSION {
            continue;
        }
        let response = [&request[..4], &[0; 8], &[0; 4], &count.to_be_bytes()].concat();
        stream.write_all(&20_i32.to_be_bytes()).await?;
        stream.write_all(&response).await?;
    }
}

/// HTTP/2: the beginning of a gRPC message of nearly 1 GiB, on the first stream.
pub(crate) const HUGE_MESSAGE_PREFIX: &[u8] = b"\0\0\x05\0\0\0\0\0\x01\0\x3f\xff\xff\xff";
/// HTTP/2: an empty DATA frame on the first stream.
pub(crate) const NO_DATA: &[u8] = b"\0\0\0\0\0\0\0\0\x01";

/// Reads HTTP/2 frames until the headers of a request have arrived.
async fn read_headers(stream: &mut TcpStream) -> io::Result<()> {
    const PREFACE: usize = 24;
    stream.read_exact(&mut [0; PREFACE]).await?;
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut frame = vec![0; length as usize];
        stream.read_exact(&mut frame).await?;
        if header[3] == 1 {
            return Ok(());
        }
    }
}

/// Sends the same bytes without end, and discards what it receives.
async fn send_forever(stream: TcpStream, bytes: &[u8], limiter: &RateLimiter, rate: Rate) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let chunk = bytes.repeat((64 * 1024_usize).div_ceil(bytes.len()));
    let reading = async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await.map(drop) };
    let writing = async move {
        loop {
            limiter.wait(chunk.len(), rate).await;
            writer.write_all(&chunk).await?;
        }
    };
    tokio::select! {
        outcome = reading => outcome,
        outcome = writing => outcome,
    }
}
