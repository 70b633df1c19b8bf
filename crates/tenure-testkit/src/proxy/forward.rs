//! One direction of one connection: reads, applies the faults, and writes.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{ReadHalf, WriteHalf},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::faults::{Faults, FlowPolicy, connection_reset};

const CHUNK_BYTES: usize = 16 * 1024;
/// How many chunks are buffered per direction of a connection. The sender gets backpressure after that.
const MAX_BUFFERED_CHUNKS: usize = 256;

/// Selects the policy of one direction.
type SelectPolicy = fn(&Faults) -> FlowPolicy;

struct Chunk {
    read_at: Instant,
    content: Content,
}

enum Content {
    Bytes(Vec<u8>),
    Closed,
    Reset,
}

/// Forwards one direction until its stream ends. `policy` is of this direction, `reverse_policy` of the other one.
///
/// # Errors
/// If the connection has to be reset, because a peer reset it, or because bytes were discarded and the direction
/// forwards again.
pub(super) async fn forward(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    faults: watch::Receiver<Faults>,
    policy: SelectPolicy,
    reverse_policy: SelectPolicy,
) -> io::Result<()> {
    let (sender, chunks) = mpsc::channel(MAX_BUFFERED_CHUNKS);
    let reading = async {
        read(from, sender).await;
        Ok(())
    };
    tokio::try_join!(reading, write(chunks, to, faults, policy, reverse_policy)).map(|_| ())
}

async fn read(mut from: ReadHalf<'_>, sender: mpsc::Sender<Chunk>) {
    loop {
        let mut bytes = vec![0; CHUNK_BYTES];
        let content = match from.read(&mut bytes).await {
            Ok(0) => Content::Closed,
            Ok(count) => {
                bytes.truncate(count);
                Content::Bytes(bytes)
            }
            Err(_) => Content::Reset,
        };
        let last = !matches!(content, Content::Bytes(_));
        if sender.send(Chunk { read_at: Instant::now(), content }).await.is_err() || last {
            return;
        }
    }
}

async fn write(
    mut chunks: mpsc::Receiver<Chunk>,
    mut to: WriteHalf<'_>,
    mut faults: watch::Receiver<Faults>,
    policy: SelectPolicy,
    reverse_policy: SelectPolicy,
) -> io::Result<()> {
    while let Some(chunk) = chunks.recv().await {
        if wait_until_due(chunk.read_at, &mut faults, policy).await? == FlowPolicy::Discard {
            return discard(chunks, faults, policy).await;
        }
        let written = match chunk.content {
            Content::Bytes(bytes) => to.write_all(&bytes).await,
            Content::Closed => to.shutdown().await,
            Content::Reset => return Err(connection_reset()),
        };
        if let Err(error) = written {
            // The receiver has reset the connection. The RST travels in the other direction.
            wait_until_forwarding(&mut faults, reverse_policy).await?;
            return Err(error);
        }
    }
    Ok(())
}

/// Waits until a chunk that was read at `read_at` has to be delivered or discarded. Returns the policy that applies.
async fn wait_until_due(
    read_at: Instant,
    faults: &mut watch::Receiver<Faults>,
    policy: SelectPolicy,
) -> io::Result<FlowPolicy> {
    loop {
        let (policy, due) = {
            let faults = faults.borrow_and_update();
            (policy(&faults), read_at + faults.delay)
        };
        let due = match policy {
            FlowPolicy::Discard => return Ok(policy),
            FlowPolicy::Forward if due <= Instant::now() => return Ok(policy),
            FlowPolicy::Forward => Some(due),
            FlowPolicy::Hold => None,
        };
        tokio::select! {
            changed = faults.changed() => changed.map_err(|_| connection_reset())?,
            () = sleep_until_some(due) => {}
        }
    }
}

/// Waits until `due`; forever if it is `None`.
async fn sleep_until_some(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Discards all chunks until the direction forwards again. The stream then has a gap.
async fn discard(
    mut chunks: mpsc::Receiver<Chunk>,
    mut faults: watch::Receiver<Faults>,
    policy: SelectPolicy,
) -> io::Result<()> {
    loop {
        tokio::select! {
            forwarding = wait_until_forwarding(&mut faults, policy) => return forwarding.and(Err(connection_reset())),
            Some(_) = chunks.recv() => {}
        }
    }
}

async fn wait_until_forwarding(faults: &mut watch::Receiver<Faults>, policy: SelectPolicy) -> io::Result<()> {
    faults
        .wait_for(|faults| policy(faults) == FlowPolicy::Forward)
        .await
        .map(|_| ())
        .map_err(|_| connection_reset())
}
