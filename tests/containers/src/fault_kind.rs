//! The faults that can be injected into a member of a cluster.

use std::sync::Arc;

use crate::{container::Container, error::ContainerError, fault::Undo, network::Network};

/// A fault of one member of a cluster that was started
/// [with fault injection](crate::EtcdCluster::start_with_fault_injection).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// SIGKILL: connections end, and nothing listens. The data stays.
    Kill,
    /// The processes are frozen: connections stay open, new ones are accepted, and nothing is answered.
    Freeze,
    /// Writes to the disk block; everything else works.
    StallDisk,
    /// The disk is full. The server may end.
    FillDisk,
    /// Packets between the member and its peers are dropped; clients still reach it.
    PartitionFromPeers(Direction),
    /// Packets between the member and its clients are dropped; its peers still reach it.
    PartitionFromClients(Direction),
    /// All packets of the member are dropped, those of its clients too.
    PartitionFromAll(Direction),
    /// Packets are dropped at random, those of clients too.
    LosePackets {
        /// How many of a hundred packets are dropped, from 1 to 99.
        percent: u8,
    },
}

/// The direction in which packets are dropped, as seen from the member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Packets that the member would receive.
    Inbound,
    /// Packets that the member sends.
    Outbound,
    /// Both.
    Both,
}

/// A chain of the kernel's packet filter, and the options by which its rules match an interface and a peer.
struct Chain {
    name: &'static str,
    interface_option: &'static str,
    peer_option: &'static str,
}

const INPUT: Chain = Chain { name: "INPUT", interface_option: "-i", peer_option: "-s" };
const OUTPUT: Chain = Chain { name: "OUTPUT", interface_option: "-o", peer_option: "-d" };

impl Direction {
    fn chains(self) -> &'static [Chain] {
        match self {
            Self::Inbound => &[INPUT],
            Self::Outbound => &[OUTPUT],
            Self::Both => &[INPUT, OUTPUT],
        }
    }
}

/// Leaves 64 blocks to the file system itself, and fills the rest of them byte by byte.
const FILL_DISK: &str = "\
fallocate -l $(( ($(stat -f -c %a /data) - 64) * $(stat -f -c %S /data) )) /data/ballast
dd if=/dev/zero of=/data/ballast2 bs=4096 2>/dev/null || true
";

const FLUSH_PACKET_FILTER: &str = "iptables --flush";

/// Injects a fault into a member, and returns how it is undone.
pub(crate) async fn inject(
    container: &Arc<Container>,
    peers: &Network,
    kind: FaultKind,
) -> Result<Undo, ContainerError> {
    if !container.is_running().await? {
        // An earlier fault has ended the server.
        return Ok(Undo::StartContainer);
    }
    let (script, undo) = match kind {
        FaultKind::Kill => {
            container.kill().await?;
            return Ok(Undo::StartContainer);
        }
        FaultKind::Freeze => {
            container.pause().await?;
            return Ok(Undo::Unpause);
        }
        FaultKind::StallDisk => ("fsfreeze -f /data".to_owned(), "fsfreeze -u /data"),
        FaultKind::FillDisk => (FILL_DISK.to_owned(), "rm -f /data/ballast*"),
        FaultKind::PartitionFromPeers(direction) => {
            let from_peers = |chain: &Chain| format!("{} {}", chain.peer_option, peers.subnet());
            (drop_packets(direction, from_peers), FLUSH_PACKET_FILTER)
        }
        FaultKind::PartitionFromClients(direction) => {
            let from_others = |chain: &Chain| format!("! {} {}", chain.peer_option, peers.subnet());
            (drop_packets(direction, from_others), FLUSH_PACKET_FILTER)
        }
        FaultKind::PartitionFromAll(direction) => {
            (drop_packets(direction, |_| String::new()), FLUSH_PACKET_FILTER)
        }
        FaultKind::LosePackets { percent } => {
            let random = format!("-m statistic --mode random --probability 0.{percent:02}");
            (drop_packets(Direction::Both, |_| random.clone()), FLUSH_PACKET_FILTER)
        }
    };
    Ok(match container.run_script_if_running(&script).await? {
        true => Undo::RunScript(undo),
        false => Undo::StartContainer,
    })
}

/// A script that drops the packets that match, except those on the loopback interface.
fn drop_packets(direction: Direction, matching: impl Fn(&Chain) -> String) -> String {
    let rule = |chain: &Chain| {
        let Chain { name, interface_option, .. } = chain;
        format!("iptables -w -A {name} ! {interface_option} lo {} -j DROP\n", matching(chain))
    };
    direction.chains().iter().map(rule).collect()
}
