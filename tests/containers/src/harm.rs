//! What can be done to a member of a cluster, and the remedy.

use std::sync::Arc;

use testcontainers::bollard::models::{HostConfig, Mount, MountType};

use super::{
    ContainerError,
    container::{Container, Recipe},
    fault::Remedy,
    network::Network,
};

/// What is done to one member of a cluster whose members were started as
/// [breakable](super::EtcdCluster::breakable).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Harm {
    /// Killed (SIGKILL): its connections end, and nobody listens. Its data stays.
    Kill,
    /// Frozen: its connections stay open, new ones are accepted, and nothing is answered.
    Freeze,
    /// Whatever it writes to its disk waits; all else goes on.
    StallDisk,
    /// Its disk takes no more. The server may end by that.
    FillDisk,
    /// Packets between it and its peers are dropped; its clients still reach it.
    CutPeers(Way),
    /// Packets between it and everybody are dropped, its clients too.
    Cut(Way),
    /// So many packets of a hundred are dropped at random, those of its clients too.
    LosePackets(u8),
}

/// Which way packets are dropped, as seen from the member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Those that it would receive.
    In,
    /// Those that it sends.
    Out,
    /// Both.
    Both,
}

/// A list of rules in the kernel, and how a rule in it names an interface and a peer.
struct Chain {
    name: &'static str,
    interface: &'static str,
    peer: &'static str,
}

const INPUT: Chain = Chain { name: "INPUT", interface: "-i", peer: "-s" };
const OUTPUT: Chain = Chain { name: "OUTPUT", interface: "-o", peer: "-d" };

impl Way {
    fn chains(self) -> &'static [Chain] {
        match self {
            Self::In => &[INPUT],
            Self::Out => &[OUTPUT],
            Self::Both => &[INPUT, OUTPUT],
        }
    }
}

/// Where the volume is that holds the image of the disk.
pub(super) const DISK: &str = "/disk";

/// Makes a ZooKeeper server begin without data when it is started again.
pub(super) const BEGIN_ANEW: &str = "touch /disk/anew";

/// A file system of the server's own, so that it can be stalled and filled; loop devices are taken in turn,
/// and another container may be faster.
const OWN_DISK: &str = "\
mkdir -p /data
test -e /disk/image || { truncate -s 400M /disk/new; mkfs.ext4 -q -m 0 /disk/new; mv /disk/new /disk/image; }
for attempt in 1 2 3 4 5 6 7 8 9; do
    mount -o loop /disk/image /data && break
    sleep 0.3
done
mountpoint -q /data
rm -f /data/ballast*
test ! -e /disk/anew || rm -r /data/zookeeper/version-2 /disk/anew
exec \"$@\"
";

/// Some blocks for the file system itself; what is left of them is filled byte by byte.
const FILL: &str = "\
fallocate -l $(( ($(stat -f -c %a /data) - 64) * $(stat -f -c %S /data) )) /data/ballast
dd if=/dev/zero of=/data/ballast2 bs=4096 2>/dev/null || true
";

/// The same server with a disk of its own, and the rights to break it.
pub(super) fn breakable(recipe: Recipe) -> Recipe {
    let script = ["-ec".to_owned(), OWN_DISK.to_owned(), "sh".to_owned(), recipe.program.to_owned()];
    let arguments = script.into_iter().chain(recipe.arguments).collect();
    Recipe { program: "sh", arguments, breakable: true, ..recipe }
}

/// What mounting, freezing and the dropping of packets need. Not `--privileged`: an engine that was not given
/// every right itself cannot pass every right on.
pub(super) fn permit(config: &mut HostConfig) {
    let owned = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
    config.cap_add = owned(&["SYS_ADMIN", "NET_ADMIN"]);
    config.security_opt = owned(&["seccomp=unconfined", "apparmor=unconfined"]);
    // Loop devices, and what makes more of them.
    config.device_cgroup_rules = owned(&["b 7:* rmw", "c 10:237 rmw"]);
    let devices = Mount {
        target: Some("/dev".to_owned()),
        source: Some("/dev".to_owned()),
        typ: Some(MountType::BIND),
        ..Default::default()
    };
    config.mounts.get_or_insert_default().push(devices);
}

/// Does `harm` to the member, and tells how it is undone.
pub(super) async fn inflict(
    container: &Arc<Container>,
    peers: &Network,
    harm: Harm,
) -> Result<Remedy, ContainerError> {
    if !container.is_running().await? {
        // A server that could not live with what was done to it before.
        return Ok(Remedy::Start);
    }
    let (script, remedy) = match harm {
        Harm::Kill => {
            container.kill().await?;
            return Ok(Remedy::Start);
        }
        Harm::Freeze => {
            container.pause().await?;
            return Ok(Remedy::Unpause);
        }
        Harm::StallDisk => ("fsfreeze -f /data".to_owned(), "fsfreeze -u /data"),
        Harm::FillDisk => (FILL.to_owned(), "rm -f /data/ballast*"),
        Harm::CutPeers(way) => (dropping(way, |chain| format!("{} {}", chain.peer, peers.subnet())), FLUSH),
        Harm::Cut(way) => (dropping(way, |_| String::new()), FLUSH),
        Harm::LosePackets(percent) => {
            let lots = format!("-m statistic --mode random --probability 0.{percent:02}");
            (dropping(Way::Both, |_| lots.clone()), FLUSH)
        }
    };
    Ok(match container.shell_while_running(&script).await? {
        true => Remedy::Script(remedy),
        false => Remedy::Start,
    })
}

const FLUSH: &str = "iptables --flush";

/// Drops what matches, but for what the member tells itself.
fn dropping(way: Way, matching: impl Fn(&Chain) -> String) -> String {
    let rule = |chain: &Chain| {
        format!("iptables -w -A {} ! {} lo {} -j DROP\n", chain.name, chain.interface, matching(chain))
    };
    way.chains().iter().map(rule).collect()
}
