//! Servers that speak nonsense.

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
pub(crate) enum Nonsense {
    /// Takes it, reads all, and never answers.
    Silence,
    /// Answers some random bytes, and no more.
    Garbage,
    /// Closes it at once.
    Hangup,
    /// Answers as a web server does that was asked for something else.
    Http,
    /// Sends the first bytes, waits for a question, and sends the others again and again, at that pace.
    Endless(&'static [u8], &'static [u8], Pace),
    /// The same as fast as they are taken, after the HTTP/2 headers of an answer to the first question.
    EndlessAnswer(&'static [u8]),
    /// Answers the first question with the first bytes, waits for another, and sends the others again and again, at
    /// that pace.
    EndlessOnceAnswered(Vec<u8>, &'static [u8], Pace),
    /// Refuses every question of gRPC's, with control characters in the reason, and kilobytes of them.
    Refusal,
    /// Sends these bytes after a question, and no more.
    Answer(Vec<u8>),
    /// Answers to all that ZooKeeper is asked, after these bytes, that a list of so many texts follows; but not to
    /// the wish to end the session.
    Listing(Vec<u8>, i32),
}

/// How fast something without an end is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As fast as it is taken.
    Unbounded,
    /// So many MiB a second, over all connections together.
    Mebibytes(u32),
}

/// When the next bytes may be sent that are paced.
#[derive(Debug, Default)]
struct Pacer(Mutex<Option<Instant>>);

impl Pacer {
    async fn pass(&self, bytes: usize, pace: Pace) {
        let Pace::Mebibytes(rate) = pace else { return };
        let at = {
            let mut next = self.0.lock().unwrap();
            let at = next.unwrap_or_else(Instant::now).max(Instant::now());
            let takes = bytes as f64 / f64::from(rate) / f64::from(1 << 20);
            *next = Some(at + Duration::from_secs_f64(takes));
            at
        };
        sleep_until(at).await;
    }
}

/// A server of a test's own, for as long as this is kept.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    taken: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(nonsense: Nonsense) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let taken = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&taken);
        let pacer = Arc::new(Pacer::default());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (nonsense, pacer) = (nonsense.clone(), Arc::clone(&pacer));
                counted.fetch_add(1, Relaxed);
                connections.spawn(async move { drop(nonsense.speak(stream, &pacer).await) });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { endpoint, taken, task }
    }

    /// How many connections it has taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Nonsense {
    async fn speak(self, mut stream: TcpStream, pacer: &Pacer) -> io::Result<()> {
        match self {
            Self::Silence => {}
            Self::Garbage => {
                let mut bytes = [0; 4096];
                fastrand::fill(&mut bytes);
                stream.write_all(&bytes).await?;
            }
            Self::Hangup => return Ok(()),
            Self::Http => {
                asked(&mut stream).await?;
                let text = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 12\r\n\r\n\u{1b}[31mBad\r\n";
                stream.write_all(text.as_bytes()).await?;
                return Ok(());
            }
            Self::Endless(first, again, pace) => {
                stream.write_all(first).await?;
                asked(&mut stream).await?;
                return again_and_again(stream, again, pacer, pace).await;
            }
            Self::EndlessOnceAnswered(first, again, pace) => {
                asked(&mut stream).await?;
                stream.write_all(&first).await?;
                asked(&mut stream).await?;
                return again_and_again(stream, again, pacer, pace).await;
            }
            Self::EndlessAnswer(again) => {
                stream.write_all(SETTINGS).await?;
                until_headers(&mut stream).await?;
                stream.write_all(HEADERS).await?;
                return again_and_again(stream, again, pacer, Pace::Unbounded).await;
            }
            Self::Refusal => {
                stream.write_all(SETTINGS).await?;
                until_headers(&mut stream).await?;
                stream.write_all(&refusal()).await?;
            }
            Self::Listing(session, count) => {
                asked(&mut stream).await?;
                stream.write_all(&session).await?;
                return list(stream, count).await;
            }
            Self::Answer(bytes) => {
                asked(&mut stream).await?;
                stream.write_all(&bytes).await?;
            }
        }
        // Whatever is asked from here on is read, and left at that.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
    }
}

/// Returns once something was asked.
async fn asked(stream: &mut TcpStream) -> io::Result<()> {
    stream.read(&mut [0; 1024]).await.map(drop)
}

/// HTTP/2: settings, none of them.
pub(crate) const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// HTTP/2: a ping.
pub(crate) const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
/// HTTP/2: the headers of a gRPC answer on the first stream.
const HEADERS: &[u8] = b"\0\0\x20\x01\x04\0\0\0\x01\x88\0\x0ccontent-type\x10application/grpc";
/// HTTP/2: headers that refuse a gRPC question (unavailable), on the first stream.
fn refusal() -> Vec<u8> {
    let text = format!("no%0D%0AERROR forged%1B%5B31m%E2%80%AE{}", "x".repeat(8000));
    let mut block =
        b"\x88\0\x0ccontent-type\x10application/grpc\0\x0bgrpc-status\x0214\0\x0cgrpc-message".to_vec();
    // As HPACK writes numbers that do not fit into seven bits.
    let rest = text.len() - 127;
    block.extend([127, 0x80 | (rest % 128) as u8, (rest / 128) as u8]);
    block.extend(text.into_bytes());
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    [&length[1..], &[1, 5, 0, 0, 0, 1], &block].concat()
}

/// ZooKeeper: answers every question with the length of a list, and nothing in it.
async fn list(mut stream: TcpStream, count: i32) -> io::Result<()> {
    loop {
        let length = stream.read_u32().await?;
        let mut question = vec![0; length as usize];
        stream.read_exact(&mut question).await?;
        const CLOSE_SESSION: [u8; 4] = (-11_i32).to_be_bytes();
        if question[4..8] == CLOSE_SESSION {
            continue;
        }
        let answer = [&question[..4], &[0; 8], &[0; 4], &count.to_be_bytes()].concat();
        stream.write_all(&20_i32.to_be_bytes()).await?;
        stream.write_all(&answer).await?;
    }
}

/// HTTP/2: the beginning of a gRPC message of nearly 1 GiB, on the first stream.
pub(crate) const CLAIM: &[u8] = b"\0\0\x05\0\0\0\0\0\x01\0\x3f\xff\xff\xff";
/// HTTP/2: data without a byte in it, on the first stream.
pub(crate) const NO_DATA: &[u8] = b"\0\0\0\0\0\0\0\0\x01";

/// Reads HTTP/2 frames until a question has come.
async fn until_headers(stream: &mut TcpStream) -> io::Result<()> {
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

/// Sends the same bytes without end, and reads whatever comes.
async fn again_and_again(stream: TcpStream, bytes: &[u8], pacer: &Pacer, pace: Pace) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let many = bytes.repeat((64 * 1024_usize).div_ceil(bytes.len()));
    let reading = async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await.map(drop) };
    let writing = async move {
        loop {
            pacer.pass(many.len(), pace).await;
            writer.write_all(&many).await?;
        }
    };
    tokio::select! {
        outcome = reading => outcome,
        outcome = writing => outcome,
    }
}
