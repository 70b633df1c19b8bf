//! One client's connection and the one to the server that belongs to it.

use std::io;

use tokio::{net::TcpStream, sync::watch};

use super::{
    gate::{Flow, Gate, reset_due},
    pump::pump,
};

/// Carries one connection until both sides have closed it, it fails, or the proxy resets it.
pub(super) async fn serve(
    mut client: TcpStream,
    upstream: &str,
    gate: watch::Receiver<Gate>,
    generation: u64,
) {
    let mut server = None;
    let carried = tokio::select! {
        biased;
        () = reset_due(gate.clone(), generation) => Err(reset()),
        carried = carry(&mut client, &mut server, upstream, gate) => carried,
    };
    if carried.is_err() {
        for socket in [Some(client), server].into_iter().flatten() {
            // With no lingering the kernel sends RST when the socket is closed. A
            // socket that refuses has been reset by its own side already.
            let _ = socket.set_zero_linger();
        }
    }
}

async fn carry(
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
    upstream: &str,
    mut gate: watch::Receiver<Gate>,
) -> io::Result<()> {
    gate.wait_for(|gate| gate.to_server == Flow::Pass).await.map_err(|_| reset())?;
    let server = server.insert(TcpStream::connect(upstream).await?);
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;

    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(
        pump(from_client, to_server, gate.clone(), |gate| gate.to_server, |gate| gate.to_client),
        pump(from_server, to_client, gate, |gate| gate.to_client, |gate| gate.to_server),
    )?;
    Ok(())
}

/// The error of a connection that ends by a reset.
pub(super) fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}
