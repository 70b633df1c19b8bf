//! One direction of one connection: reads, waits as the gate says, writes.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{ReadHalf, WriteHalf},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    connection::reset,
    gate::{Flow, Gate},
};

const CHUNK: usize = 16 * 1024;
/// Bounds what one connection can make the proxy keep; past it the sender feels backpressure.
const CHUNKS_KEPT: usize = 256;

/// Picks one direction's flow out of the gate.
type FlowOf = fn(&Gate) -> Flow;

struct Chunk {
    read_at: Instant,
    content: Content,
}

enum Content {
    Bytes(Vec<u8>),
    Closed,
    Reset,
}

/// Carries one direction until its stream ends.
///
/// # Errors
/// When the connection is to be reset: a side did so, or the stream lost bytes and
/// the direction is open again.
pub(super) async fn pump(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    gate: watch::Receiver<Gate>,
    flow: FlowOf,
    reverse: FlowOf,
) -> io::Result<()> {
    let (sender, chunks) = mpsc::channel(CHUNKS_KEPT);
    let reading = async {
        read(from, sender).await;
        Ok(())
    };
    tokio::try_join!(reading, write(chunks, to, gate, flow, reverse)).map(|_| ())
}

async fn read(mut from: ReadHalf<'_>, sender: mpsc::Sender<Chunk>) {
    loop {
        let mut bytes = vec![0; CHUNK];
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
    mut gate: watch::Receiver<Gate>,
    flow: FlowOf,
    reverse: FlowOf,
) -> io::Result<()> {
    while let Some(chunk) = chunks.recv().await {
        if wait_to_deliver(chunk.read_at, &mut gate, flow).await? == Flow::Swallow {
            return swallow(chunks, gate, flow).await;
        }
        let written = match chunk.content {
            Content::Bytes(bytes) => to.write_all(&bytes).await,
            Content::Closed => to.shutdown().await,
            Content::Reset => return Err(reset()),
        };
        if let Err(error) = written {
            // The receiver has reset the connection. That news travels the other way.
            passing(&mut gate, reverse).await?;
            return Err(error);
        }
    }
    Ok(())
}

/// Waits until something read at `read_at` is to be delivered or swallowed.
async fn wait_to_deliver(
    read_at: Instant,
    gate: &mut watch::Receiver<Gate>,
    flow: FlowOf,
) -> io::Result<Flow> {
    loop {
        let (flow, due) = {
            let gate = gate.borrow_and_update();
            (flow(&gate), read_at + gate.delay)
        };
        let due = match flow {
            Flow::Swallow => return Ok(flow),
            Flow::Pass if due <= Instant::now() => return Ok(flow),
            Flow::Pass => Some(due),
            Flow::Hold => None,
        };
        tokio::select! {
            changed = gate.changed() => changed.map_err(|_| reset())?,
            () = arrival(due) => {}
        }
    }
}

/// Waits until `due`; for ever when that is not known yet.
async fn arrival(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Discards everything until the direction is open again; then the stream has a gap.
async fn swallow(
    mut chunks: mpsc::Receiver<Chunk>,
    mut gate: watch::Receiver<Gate>,
    flow: FlowOf,
) -> io::Result<()> {
    loop {
        tokio::select! {
            passing = passing(&mut gate, flow) => return passing.and(Err(reset())),
            Some(_) = chunks.recv() => {}
        }
    }
}

async fn passing(gate: &mut watch::Receiver<Gate>, flow: FlowOf) -> io::Result<()> {
    gate.wait_for(|gate| flow(gate) == Flow::Pass).await.map(|_| ()).map_err(|_| reset())
}
