//! The proxy breaks connections as its documentation says, in both directions, and heals them.
//!
//! Time is tokio's, paused: "nothing arrives" is awaited for an hour of it.

use std::{io, time::Duration};

use tenure_testkit::proxy::{Direction, Proxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, timeout},
};

const HOUR: Duration = Duration::from_secs(3600);

/// What the server saw on a connection.
#[derive(Debug, PartialEq)]
enum Seen {
    Opened,
    Bytes(Vec<u8>),
    Closed,
    Reset,
}

/// A server that returns what it is sent, and tells what it saw.
async fn echo_server() -> (String, mpsc::UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let sender = sender.clone();
            tokio::spawn(async move {
                let _ = sender.send(Seen::Opened);
                let mut buffer = [0; 1024];
                loop {
                    let event = match socket.read(&mut buffer).await {
                        Ok(0) => Seen::Closed,
                        Ok(count) => {
                            let _ = socket.write_all(&buffer[..count]).await;
                            Seen::Bytes(buffer[..count].to_vec())
                        }
                        Err(_) => Seen::Reset,
                    };
                    let last = !matches!(event, Seen::Bytes(_));
                    let _ = sender.send(event);
                    if last {
                        break;
                    }
                }
            });
        }
    });
    (address, seen)
}

/// A proxy before an echo server, and one client whose connection is known to work.
async fn connected() -> (Proxy, TcpStream, mpsc::UnboundedReceiver<Seen>) {
    let (server, mut seen) = echo_server().await;
    let proxy = Proxy::start(server).await.unwrap();
    let mut client = TcpStream::connect(proxy.endpoint()).await.unwrap();
    assert_echo(&mut client, b"hello").await;
    assert_eq!(seen.recv().await, Some(Seen::Opened));
    assert_eq!(seen.recv().await, Some(Seen::Bytes(b"hello".to_vec())));
    (proxy, client, seen)
}

async fn assert_echo(client: &mut TcpStream, message: &[u8]) {
    client.write_all(message).await.unwrap();
    assert_receives(client, message).await;
}

async fn assert_receives(client: &mut TcpStream, message: &[u8]) {
    let mut answer = vec![0; message.len()];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, message);
}

async fn assert_reset(client: &mut TcpStream) {
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

async fn assert_silent(client: &mut TcpStream) {
    assert!(timeout(HOUR, client.read_u8()).await.is_err(), "nothing may arrive");
}

#[tokio::test(start_paused = true)]
async fn carries_bytes_and_closing_both_ways() {
    let (proxy, mut client, mut seen) = connected().await;
    client.shutdown().await.unwrap();
    assert_eq!(seen.recv().await, Some(Seen::Closed));
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(proxy.accepted(), 1);
    while proxy.open() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_resets_connections_and_refuses_new_ones_until_healed() {
    let (proxy, mut client, mut seen) = connected().await;

    proxy.cut();
    assert_reset(&mut client).await;
    assert_eq!(seen.recv().await, Some(Seen::Reset));
    let refused = TcpStream::connect(proxy.endpoint()).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

    proxy.heal();
    let mut client = loop {
        match TcpStream::connect(proxy.endpoint()).await {
            Ok(client) => break client,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_echo(&mut client, b"again").await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_is_healed_at_once_still_resets_what_was_open() {
    let (proxy, mut client, _seen) = connected().await;
    proxy.cut();
    proxy.heal();
    assert_reset(&mut client).await;
}

#[tokio::test(start_paused = true)]
async fn reset_connections_serves_new_ones_as_before() {
    let (proxy, mut client, mut seen) = connected().await;
    proxy.reset_connections();
    assert_reset(&mut client).await;
    assert_eq!(seen.recv().await, Some(Seen::Reset));
    let mut client = TcpStream::connect(proxy.endpoint()).await.unwrap();
    assert_echo(&mut client, b"again").await;
}

#[tokio::test(start_paused = true)]
async fn requests_in_a_black_hole_never_arrive() {
    let (proxy, mut client, mut seen) = connected().await;
    proxy.blackhole(Direction::ToServer);
    client.write_all(b"lost").await.unwrap();
    assert_silent(&mut client).await;
    assert!(seen.try_recv().is_err(), "the server must see nothing");

    proxy.heal();
    assert_reset(&mut client).await;
}

#[tokio::test(start_paused = true)]
async fn answers_in_a_black_hole_never_arrive_though_the_request_did() {
    let (proxy, mut client, mut seen) = connected().await;
    proxy.blackhole(Direction::ToClient);
    client.write_all(b"done").await.unwrap();
    assert_eq!(seen.recv().await, Some(Seen::Bytes(b"done".to_vec())));
    assert_silent(&mut client).await;

    proxy.heal();
    assert_reset(&mut client).await;
}

#[tokio::test(start_paused = true)]
async fn closing_is_swallowed_by_a_black_hole() {
    let (proxy, client, mut seen) = connected().await;
    proxy.blackhole(Direction::Both);
    drop(client);
    assert!(timeout(HOUR, seen.recv()).await.is_err(), "the server must not hear of the close");
    assert_eq!(proxy.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_that_swallowed_nothing_leaves_the_connection_whole() {
    let (proxy, mut client, _seen) = connected().await;
    proxy.blackhole(Direction::Both);
    assert_silent(&mut client).await;
    proxy.heal();
    assert_echo(&mut client, b"still here").await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_made_into_a_black_hole_reaches_the_server_after_healing() {
    let (proxy, _client, mut seen) = connected().await;
    proxy.blackhole(Direction::Both);
    let mut late = TcpStream::connect(proxy.endpoint()).await.unwrap();
    late.write_all(b"late").await.unwrap();
    assert!(timeout(HOUR, seen.recv()).await.is_err());
    proxy.heal();
    assert_receives(&mut late, b"late").await;
}

#[tokio::test(start_paused = true)]
async fn held_bytes_arrive_complete_and_in_order_after_healing() {
    let (proxy, mut client, mut seen) = connected().await;
    proxy.hold(Direction::ToServer);
    client.write_all(b"one ").await.unwrap();
    assert_silent(&mut client).await;
    client.write_all(b"two").await.unwrap();
    assert!(seen.try_recv().is_err());

    proxy.heal();
    assert_receives(&mut client, b"one two").await;
}

#[tokio::test(start_paused = true)]
async fn a_delay_applies_each_way() {
    let (proxy, mut client, _seen) = connected().await;
    proxy.delay(Duration::from_secs(60));
    let sent = Instant::now();
    assert_echo(&mut client, b"slow").await;
    assert!(sent.elapsed() >= Duration::from_secs(120), "took {:?}", sent.elapsed());
}

#[tokio::test(start_paused = true)]
async fn healing_delivers_delayed_bytes_at_once() {
    let (proxy, mut client, _seen) = connected().await;
    proxy.delay(HOUR);
    client.write_all(b"slow").await.unwrap();
    assert!(timeout(HOUR / 2, client.read_u8()).await.is_err());
    let healed = Instant::now();
    proxy.heal();
    assert_receives(&mut client, b"slow").await;
    assert!(healed.elapsed() < Duration::from_secs(60), "took {:?}", healed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_there_resets_the_client_which_can_try_again() {
    let (server, _seen) = echo_server().await;
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    assert_ne!(server, nobody);
    let proxy = Proxy::start(nobody).await.unwrap();
    let mut client = TcpStream::connect(proxy.endpoint()).await.unwrap();
    assert_reset(&mut client).await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_proxy_takes_its_connections_along() {
    let (proxy, mut client, mut seen) = connected().await;
    drop(proxy);
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    assert!(matches!(seen.recv().await, Some(Seen::Closed | Seen::Reset)));
}
