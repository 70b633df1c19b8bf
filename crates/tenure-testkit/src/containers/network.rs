//! A private network between servers, without a way out.

use super::{
    ContainerError,
    docker::{docker, docker_in_drop, label, unique_name},
};

const ATTEMPTS: usize = 20;

/// A Docker network. Dropping it removes it, once its containers are gone.
#[derive(Debug)]
pub(super) struct Network {
    name: String,
    /// The first three numbers of its addresses.
    prefix: String,
}

impl Network {
    /// Creates a network on a range of private addresses that no other network has.
    pub(super) async fn create() -> Result<Self, ContainerError> {
        let mut attempt = 1;
        loop {
            let prefix = format!("10.{}.{}", fastrand::u8(200..250), fastrand::u8(..));
            let network = Self { name: unique_name("peers"), prefix };
            let subnet = format!("--subnet={}.0/24", network.prefix);
            let label = format!("--label={}", label());
            match docker(["network", "create", "--internal", &subnet, &label, &network.name]).await {
                Ok(_) => return Ok(network),
                Err(ContainerError::Docker { message, .. })
                    if attempt < ATTEMPTS && message.contains("overlaps") =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The address of the member with this number; the network's own is the first.
    pub(super) fn ip(&self, member: usize) -> String {
        format!("{}.{}", self.prefix, member + 2)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        docker_in_drop(&["network", "rm", &self.name]);
    }
}
