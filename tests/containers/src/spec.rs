//! What a container runs: its image, program, ports, and the rights that fault injection needs.

use testcontainers::bollard::models::{HostConfig, Mount, MountType, MountVolumeOptions};

use crate::{docker::labels, version::Version};

/// What a container runs.
#[derive(Debug, Clone)]
#[doc(hidden)]
pub struct ContainerSpec {
    pub(crate) version: Version,
    /// The port inside the container that is published on loopback.
    pub(crate) port: u16,
    /// A second published port, for TLS or for a proxy that runs beside the server.
    pub(crate) second_port: Option<u16>,
    /// What an operator sends to stop the server.
    pub(crate) stop_signal: &'static str,
    pub(crate) program: &'static str,
    pub(crate) arguments: Vec<String>,
    /// Whether the container has a file system of its own and may change its packet filter.
    pub(crate) fault_injection: bool,
}

/// Where the volume with the disk image is mounted.
const DISK_DIR: &str = "/disk";

/// Makes a ZooKeeper server delete its data when it starts the next time.
pub(crate) const WIPE_ON_NEXT_START: &str = "touch /disk/wipe";

/// Mounts a file system of the server's own on a loop device, so that it can be frozen and filled, and runs the server.
/// Containers compete for loop devices, so that mounting is tried several times.
const MOUNT_DISK_IMAGE: &str = "\
mkdir -p /data
test -e /disk/image || { truncate -s 400M /disk/new; mkfs.ext4 -q -m 0 /disk/new; mv /disk/new /disk/image; }
for attempt in 1 2 3 4 5 6 7 8 9; do
    mount -o loop /disk/image /data && break
    sleep 0.3
done
mountpoint -q /data
rm -f /data/ballast*
test ! -e /disk/wipe || rm -r /data/zookeeper/version-2 /disk/wipe
exec \"$@\"
";

impl ContainerSpec {
    /// A server that listens at `port` and keeps its data below `/data`.
    pub(crate) fn new(version: Version, port: u16, program: &'static str, arguments: Vec<String>) -> Self {
        Self {
            version,
            port,
            second_port: None,
            stop_signal: "SIGTERM",
            program,
            arguments,
            fault_injection: false,
        }
    }

    /// The same server with a file system of its own, and the rights that fault injection needs.
    pub(crate) fn with_fault_injection(self) -> Self {
        let script =
            ["-ec".to_owned(), MOUNT_DISK_IMAGE.to_owned(), "sh".to_owned(), self.program.to_owned()];
        let arguments = script.into_iter().chain(self.arguments).collect();
        Self { program: "sh", arguments, fault_injection: true, ..self }
    }

    /// Publishes ports on loopback only and labels the volume; testcontainers does neither.
    pub(crate) fn host_config(&self) -> impl Fn(&mut HostConfig) + Send + Sync + use<> {
        let fault_injection = self.fault_injection;
        move |config| {
            let bindings = config.port_bindings.iter_mut().flat_map(|ports| ports.values_mut());
            for binding in bindings.flatten().flatten() {
                binding.host_ip = Some("127.0.0.1".to_owned());
            }
            // An unnamed volume is removed with its container.
            let volume = Mount {
                target: Some(if fault_injection { DISK_DIR } else { "/data" }.to_owned()),
                typ: Some(MountType::VOLUME),
                volume_options: Some(MountVolumeOptions { labels: Some(labels()), ..Default::default() }),
                ..Default::default()
            };
            config.mounts = Some(vec![volume]);
            if fault_injection {
                grant_fault_injection(config);
            }
        }
    }
}

/// Grants what mounting, freezing a file system and dropping packets need. Not `--privileged`: an engine that runs
/// without all capabilities itself cannot grant all of them.
fn grant_fault_injection(config: &mut HostConfig) {
    let strings = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
    config.cap_add = strings(&["SYS_ADMIN", "NET_ADMIN"]);
    config.security_opt = strings(&["seccomp=unconfined", "apparmor=unconfined"]);
    // Loop devices, and the device that creates them.
    config.device_cgroup_rules = strings(&["b 7:* rmw", "c 10:237 rmw"]);
    let devices = Mount {
        target: Some("/dev".to_owned()),
        source: Some("/dev".to_owned()),
        typ: Some(MountType::BIND),
        ..Default::default()
    };
    config.mounts.get_or_insert_default().push(devices);
}
