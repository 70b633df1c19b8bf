//! The proxy injects faults into connections as documented, in both directions, and heals them.
//!
//! The tests use tokio's paused time. "Nothing arrives" means that nothing arrives within an hour of it.

use std::{io, time::Duration};

use tenure_testkit::proxy::{Direction, Proxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, timeout},
};

const HOUR: Duration = Duration::from_secs(3600);

/// What the server observed on a connection.
#[derive(Debug, PartialEq)]
enum ServerEvent {
    Opened,
    Bytes(Vec<u8>),
    Closed,
    Reset,
}

/// A server that echoes what it receives, and reports its events.
async fn echo_server() -> (String, mpsc::UnboundedReceiver<ServerEvent>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, events) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let sender = sender.clone();
            tokio::spawn(async move {
                let _ = sender.send(ServerEvent::Opened);
                let mut buffer = [0; 1024];
                loop {
                    let event = match socket.read(&mut buffer).await {
                        Ok(0) => ServerEvent::Closed,
                        Ok(count) => {
                            let _ = socket.write_all(&buffer[..count]).await;
                            ServerEvent::Bytes(buffer[..count].to_vec())
                        }
                        Err(_) => ServerEvent::Reset,
                    };
                    let last = !matches!(event, ServerEvent::Bytes(_));
                    let _ = sender.send(event);
                    if last {
                        break;
                    }
                }
            });
        }
    });
    (address, events)
}

/// A proxy in front of an echo server, and a client whose connection works.
async fn connected() -> (Proxy, TcpStream, mpsc::UnboundedReceiver<ServerEvent>) {
    let (server, mut events) = echo_server().await;
    let proxy = Proxy::start(server).await.unwrap();
    let mut client = TcpStream::connect(proxy.endpoint()).await.unwrap();
    assert_echo(&mut client, b"hello").await;
    assert_eq!(events.recv().await, Some(ServerEvent::Opened));
    assert_eq!(events.recv().await, Some(ServerEvent::Bytes(b"hello".to_vec())));
    (proxy, client, events)
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
    assert!(timeout(HOUR, client.read_u8()).await.is_err(), "the client received something");
}

#[tokio::test(start_paused = true)]
async fn forwards_bytes_and_closing_in_both_directions() {
    let (proxy, mut client, mut events) = connected().await;
    client.shutdown().await.unwrap();
    assert_eq!(events.recv().await, Some(ServerEvent::Closed));
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(proxy.accepted(), 1);
    while proxy.open() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_resets_connections_and_refuses_new_ones_until_healed() {
    let (proxy, mut client, mut events) = connected().await;

    proxy.cut();
    assert_reset(&mut client).await;
    assert_eq!(events.recv().await, Some(ServerEvent::Reset));
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
    let (proxy, mut client, _events) = connected().await;
    proxy.cut();
    proxy.heal();
    assert_reset(&mut client).await;
}

#[tokio::test(start_paused = true)]
async fn reset_connections_serves_new_ones_as_before() {
    let (proxy, mut client, mut events) = connected().await;
    proxy.reset_connections();
    assert_reset(&mut client).await;
    assert_eq!(events.recv().await, Some(ServerEvent::Reset));
    let mut client = TcpStream::connect(proxy.endpoint()).await.unwrap();
    assert_echo(&mut client, b"again").await;
}

#[tokio::test(start_paused = true)]
async fn discarded_requests_never_arrive() {
    let (proxy, mut client, mut events) = connected().await;
    proxy.blackhole(Direction::ToServer);
    client.write_all(b"lost").await.unwrap();
    assert_silent(&mut client).await;
    assert!(events.try_recv().is_err(), "the server received something");

    proxy.heal();
    assert_reset(&mut client).await;
}

#[tokio::test(start_paused = true)]
async fn discarded_responses_never_arrive_although_the_request_did() {
    let (proxy, mut client, mut events) = connected().await;
    proxy.blackhole(Direction::ToClient);
    client.write_all(b"done").await.unwrap();
    assert_eq!(events.recv().await, Some(ServerEvent::Bytes(b"done".to_vec())));
    assert_silent(&mut client).await;

    proxy.heal();
    assert_reset(&mut client).await;
}

#[tokio::test(start_paused = true)]
async fn closing_is_discarded_too() {
    let (proxy, client, mut events) = connected().await;
    proxy.blackhole(Direction::Both);
    drop(client);
    assert!(timeout(HOUR, events.recv()).await.is_err(), "the server noticed the closing");
    assert_eq!(proxy.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_blackhole_that_discarded_nothing_leaves_the_connection_intact() {
    let (proxy, mut client, _events) = connected().await;
    proxy.blackhole(Direction::Both);
    assert_silent(&mut client).await;
    proxy.heal();
    assert_echo(&mut client, b"still here").await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_made_into_a_blackhole_reaches_the_server_after_healing() {
    let (proxy, _client, mut events) = connected().await;
    proxy.blackhole(Direction::Both);
    let mut late = TcpStream::connect(proxy.endpoint()).await.unwrap();
    late.write_all(b"late").await.unwrap();
    assert!(timeout(HOUR, events.recv()).await.is_err());
    proxy.heal();
    assert_receives(&mut late, b"late").await;
}

#[tokio::test(start_paused = true)]
async fn held_bytes_arrive_complete_and_in_order_after_healing() {
    let (proxy, mut client, mut events) = connected().await;
    proxy.hold(Direction::ToServer);
    client.write_all(b"one ").await.unwrap();
    assert_silent(&mut client).await;
    client.write_all(b"two").await.unwrap();
    assert!(events.try_recv().is_err());

    proxy.heal();
    assert_receives(&mut client, b"one two").await;
}

#[tokio::test(start_paused = true)]
async fn a_delay_applies_in_each_direction() {
    let (proxy, mut client, _events) = connected().await;
    proxy.delay(Duration::from_secs(60));
    let sent = Instant::now();
    assert_echo(&mut client, b"slow").await;
    assert!(sent.elapsed() >= Duration::from_secs(120), "took {:?}", sent.elapsed());
}

#[tokio::test(start_paused = true)]
async fn healing_delivers_delayed_bytes_at_once() {
    let (proxy, mut client, _events) = connected().await;
    proxy.delay(HOUR);
    client.write_all(b"slow").await.unwrap();
    assert!(timeout(HOUR / 2, client.read_u8()).await.is_err());
    let healed = Instant::now();
    proxy.heal();
    assert_receives(&mut client, b"slow").await;
    assert!(healed.elapsed() < Duration::from_secs(60), "took {:?}", healed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_server_resets_the_client() {
    let (server, _events) = echo_server().await;
    let unused_address = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    assert_ne!(server, unused_address);
    let proxy = Proxy::start(unused_address).await.unwrap();
    let mut client = TcpStream::connect(proxy.endpoint()).await.unwrap();
    assert_reset(&mut client).await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_proxy_ends_its_connections() {
    let (proxy, mut client, mut events) = connected().await;
    drop(proxy);
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    assert!(matches!(events.recv().await, Some(ServerEvent::Closed | ServerEvent::Reset)));
}
