//! TCP over the simulated network, for the client's channels and the members' servers.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::stream::Stream;
use hyper_util::rt::TokioIo;
use tenure_etcd::test_support::{Endpoint as MemberEndpoint, Network};
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};
use tonic::transport::{Endpoint, Uri, server::Connected};
use turmoil::net::{TcpListener, TcpStream};

pub(super) const PORT: u16 = 2379;

/// The network for the client.
pub(super) fn network() -> Network {
    Network::new(|member| etcd_client::Channel::Tonic(channel(member)))
}

/// A channel with the options that etcd-client sets on its own channels.
fn channel(member: &MemberEndpoint<'_>) -> tonic::transport::Channel {
    let endpoint = Endpoint::from_shared(member.url.to_owned()).unwrap_or_else(|error| panic!("{error}"));
    endpoint
        .connect_timeout(member.connect_timeout)
        .http2_keep_alive_interval(member.ping_interval)
        .keep_alive_timeout(member.ping_timeout)
        .keep_alive_while_idle(false)
        .connect_with_connector_lazy(tower::service_fn(|member: Uri| async move {
            let name = member.host().unwrap_or_default().to_owned();
            let stream = TcpStream::connect((name, member.port_u16().unwrap_or(PORT))).await?;
            Ok::<_, io::Error>(TokioIo::new(Connection::new(stream)))
        }))
}

/// The connections that are made to this host.
pub(super) async fn incoming() -> io::Result<impl Stream<Item = io::Result<Connection>>> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    Ok(futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| Connection::new(stream));
        Some((accepted, listener))
    }))
}

/// A connection, as tonic's server takes it.
///
/// Everything written until a flush is one segment, as mostly in TCP. Otherwise the number of messages would depend on how h2 splits
/// its frames.
#[derive(Debug)]
pub(super) struct Connection(BufWriter<TcpStream>);

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self(BufWriter::with_capacity(1 << 16, stream))
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
