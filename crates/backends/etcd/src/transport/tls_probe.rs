//! Finds out whether a server speaks TLS.
//!
//! An etcd with TLS closes a connection in plain text without an answer, which looks like an outage. So a member that has
//! never answered is asked.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// The time limit for connecting and for the answer.
const TIMEOUT: Duration = Duration::from_millis(300);

// The content types of the TLS records with which a server answers a ClientHello, and the major version of TLS.
const ALERT: u8 = 0x15;
const HANDSHAKE: u8 = 0x16;
const MAJOR_VERSION: u8 = 3;

/// Whether the server at `endpoint`, `host:port`, speaks TLS. Not if it does not answer in time.
pub(crate) async fn speaks_tls(endpoint: &str) -> bool {
    timeout(TIMEOUT, answer(endpoint)).await.is_ok_and(|answer| {
        answer.is_ok_and(|[kind, major]| matches!(kind, ALERT | HANDSHAKE) && major == MAJOR_VERSION)
    })
}

/// The first two bytes of the answer to a ClientHello.
async fn answer(endpoint: &str) -> io::Result<[u8; 2]> {
    let mut stream = TcpStream::connect(endpoint).await?;
    stream.write_all(CLIENT_HELLO).await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// A ClientHello of TLS 1.2 (RFC 5246, section 7.4.1.2) with four cipher suites, no session and no compression. Its random
/// bytes are constant, because no handshake follows. A server that does not accept it answers with an alert.
const CLIENT_HELLO: &[u8; 56] =
    b"\x16\x03\x01\x00\x33\x01\x00\x00\x2f\x03\x03does this member of etcd use TLS\
    \x00\x00\x08\xc0\x2b\xc0\x2f\xc0\x30\x00\x9c\x01\x00";

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Starts a server that reads a ClientHello and answers with `bytes`.
    async fn server(bytes: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut header = [0; 5];
            stream.read_exact(&mut header).await.unwrap();
            assert_eq!(header[..3], [HANDSHAKE, 3, 1]);
            let mut body = vec![0; usize::from(header[4])];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!((header.len() + body.len(), body[3]), (CLIENT_HELLO.len(), header[4] - 4));
            let _ = stream.write_all(bytes).await;
        });
        endpoint
    }

    #[tokio::test]
    async fn a_server_with_tls_is_recognized() {
        assert!(speaks_tls(&server(&[HANDSHAKE, 3, 3, 0, 1]).await).await);
        assert!(speaks_tls(&server(&[ALERT, 3, 1, 0, 2, 2, 40]).await).await);
        for other in [&b"HTTP/1.1 400 Bad Request"[..], &[0, 0, 6, 4, 0, 0], &[HANDSHAKE], &[]] {
            assert!(!speaks_tls(&server(other).await).await, "{other:?}");
        }
        assert!(!speaks_tls("127.0.0.1:1").await);
    }
}
