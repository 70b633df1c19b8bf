//! A private network between servers, without a way out.

use testcontainers::bollard::models::{
    EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, NetworkCreateRequest,
};

use super::{
    ContainerError,
    engine::{engine, engine_failure, in_drop, labels, unique_name},
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
        let engine = engine().await?;
        let mut attempt = 1;
        loop {
            let prefix = format!("10.{}.{}", fastrand::u8(200..250), fastrand::u8(..));
            let network = Self { name: unique_name("peers"), prefix };
            let created = engine.create_network(network.request()).await;
            match created.map_err(|error| engine_failure("network create", error)) {
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

    fn request(&self) -> NetworkCreateRequest {
        let range = IpamConfig { subnet: Some(self.subnet()), ..Default::default() };
        NetworkCreateRequest {
            name: self.name.clone(),
            internal: Some(true),
            labels: Some(labels()),
            ipam: Some(Ipam { config: Some(vec![range]), ..Default::default() }),
            ..Default::default()
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn subnet(&self) -> String {
        format!("{}.0/24", self.prefix)
    }

    /// The address of the member with this number; the network's own is the first.
    pub(super) fn ip(&self, member: usize) -> String {
        format!("{}.{}", self.prefix, member + 2)
    }

    /// How a member joins at a fixed address.
    pub(super) fn endpoint(ip: &str) -> EndpointSettings {
        let address = EndpointIpamConfig { ipv4_address: Some(ip.to_owned()), ..Default::default() };
        EndpointSettings { ipam_config: Some(address), ..Default::default() }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        in_drop(async {
            if let Ok(engine) = engine().await {
                let _ = engine.remove_network(&self.name).await;
            }
        });
    }
}
