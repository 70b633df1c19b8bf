//! A balancer of TCP connections: a service before several API servers, which does not check whether they are well.

use std::io;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

/// Starts a balancer that connects each client to one of these addresses, at random. Returns its own. It runs until the
/// runtime ends.
pub(super) async fn start(endpoints: &[String]) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let endpoints = endpoints.to_vec();
    tokio::spawn(async move {
        loop {
            // It fails while too many files are open.
            let Ok((client, _)) = listener.accept().await else { continue };
            if let Some(endpoint) = fastrand::choice(&endpoints) {
                tokio::spawn(relay(client, endpoint.clone()));
            }
        }
    });
    Ok(address)
}

/// The client sees only that its connection ends.
async fn relay(mut client: TcpStream, endpoint: String) -> io::Result<()> {
    let mut server = TcpStream::connect(endpoint).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
