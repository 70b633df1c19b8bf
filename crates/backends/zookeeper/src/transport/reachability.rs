//! Why a server could not be reached: the client library reports only that it was not.

use std::{io, time::Duration};

use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// For how long an open connection is watched for being closed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);

/// Connects once more, to say in words what is wrong with `address` (hazard Z22).
pub(crate) async fn describe_unreachable(address: &str) -> String {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let mut stream = match connected {
        Err(_) => {
            return "it does not accept a connection in time; check the address and the firewall".to_owned();
        }
        Ok(Err(error)) if is_unknown_name(address, &error) => {
            return format!(
                "the host name cannot be resolved ({error}); check its spelling and the name service"
            );
        }
        Ok(Err(error)) => return format!("{error}"),
        Ok(Ok(stream)) => stream,
    };
    match timeout(CLOSE_TIMEOUT, stream.read_u8()).await {
        Ok(Err(_)) => "it closes connections without an answer: it is not ready, or this machine has as many connections \
                       as it allows (maxClientCnxns, 60 by default)"
            .to_owned(),
        _ => "it accepts connections, and gives no valid answer".to_owned(),
    }
}

/// An error of the name service has no code of the operating system.
fn is_unknown_name(address: &str, error: &io::Error) -> bool {
    address.parse::<std::net::SocketAddr>().is_err() && error.raw_os_error().is_none()
}
