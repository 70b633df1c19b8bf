//! Private networks between servers, without a route to other networks.

use testcontainers::bollard::models::{
    EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, NetworkCreateRequest,
};

use crate::{
    docker::{block_on_in_drop, engine, engine_failure, labels, unique_name},
    error::ContainerError,
};

/// How many address ranges are tried until one is free.
const MAX_RANGE_ATTEMPTS: usize = 20;

/// A Docker network. Dropping it removes it; its containers have to be removed before.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
    /// The first three numbers of its addresses.
    prefix: String,
}

impl Network {
    /// Creates a network on a range of private addresses that no other network has.
    pub(crate) async fn create() -> Result<Self, ContainerError> {
        let engine = engine().await?;
        let mut attempt = 1;
        loop {
            let prefix = format!("10.{}.{}", fastrand::u8(200..250), fastrand::u8(..));
            let network = Self { name: unique_name("peers"), prefix };
            let created = engine.create_network(network.request()).await;
            match created.map_err(|error| engine_failure("network create", error)) {
                Ok(_) => return Ok(network),
                Err(ContainerError::Docker { message, .. })
                    if attempt < MAX_RANGE_ATTEMPTS && message.contains("overlaps") =>
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

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn subnet(&self) -> String {
        format!("{}.0/24", self.prefix)
    }

    /// The address of the member with this number. Docker takes the first address of the range for the network itself.
    pub(crate) fn ip(&self, member: usize) -> String {
        format!("{}.{}", self.prefix, member + 2)
    }

    /// The settings with which a container joins at a fixed address.
    pub(crate) fn endpoint(ip: &str) -> EndpointSettings {
        let address = EndpointIpamConfig { ipv4_address: Some(ip.to_owned()), ..Default::default() };
        EndpointSettings { ipam_config: Some(address), ..Default::default() }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        block_on_in_drop(async {
            if let Ok(engine) = engine().await {
                let _ = engine.remove_network(&self.name).await;
            }
        });
    }
}
