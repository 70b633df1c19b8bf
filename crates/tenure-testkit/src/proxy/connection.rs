//! A connection of a client, and the connection to the server that belongs to it.

use std::io;

use tokio::{net::TcpStream, sync::watch};

use super::{
    faults::{Faults, FlowPolicy, connection_reset, reset_due},
    forward::forward,
};

/// Forwards one connection until both sides have closed it, it fails, or the proxy resets it.
pub(super) async fn serve(
    mut client: TcpStream,
    upstream: &str,
    faults: watch::Receiver<Faults>,
    generation: u64,
) {
    let mut server = None;
    let outcome = tokio::select! {
        biased;
        () = reset_due(faults.clone(), generation) => Err(connection_reset()),
        outcome = forward_both_ways(&mut client, &mut server, upstream, faults) => outcome,
    };
    if outcome.is_err() {
        for socket in [Some(client), server].into_iter().flatten() {
            // Without lingering the kernel sends RST when the socket is closed. This fails only if the peer has
            // already reset the connection.
            let _ = socket.set_zero_linger();
        }
    }
}

async fn forward_both_ways(
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
    upstream: &str,
    mut faults: watch::Receiver<Faults>,
) -> io::Result<()> {
    faults
        .wait_for(|faults| faults.to_server == FlowPolicy::Forward)
        .await
        .map_err(|_| connection_reset())?;
    let server = server.insert(TcpStream::connect(upstream).await?);
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;

    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(
        forward(from_client, to_server, faults.clone(), |faults| faults.to_server, |faults| faults.to_client),
        forward(from_server, to_client, faults, |faults| faults.to_client, |faults| faults.to_server),
    )?;
    Ok(())
}
