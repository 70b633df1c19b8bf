//! Replaces the members of an etcd cluster, as an operator would.

use serde_json::{Value, json};

use crate::{
    error::ContainerError,
    etcd::{
        admin::EtcdAdmin,
        cluster::{EtcdCluster, PEER_PORT},
    },
    health::eventually,
    spec::ContainerSpec,
};

impl EtcdCluster {
    /// Replaces the member with this number by a new one with another name and other addresses: adds it, waits until it is
    /// ready, removes the former one, and stops that.
    ///
    /// The addresses in its flags change with it.
    ///
    /// # Errors
    /// When Docker fails, or the new member is not ready within a minute.
    pub async fn replace(&mut self, index: usize) -> Result<(), ContainerError> {
        let former = self.member(index);
        let (former_id, survivor) =
            (former.admin().status().await?.member, (index + 1) % self.members().len());
        let admin = self.member(survivor).admin().clone();
        let (former_ip, ip) = (self.ip(index), self.peers().ip(self.next_address()));
        let peer_url = format!("http://{ip}:{PEER_PORT}");
        // A member that was just added or removed makes the next change wait.
        eventually("the added member", || admin.add_member(&peer_url)).await?;
        let name = format!("m{}", self.next_address());
        let cluster = admin.initial_cluster(&name).await?;
        let replaced = |flag: &String| match flag.split_once('=') {
            Some(("--name", _)) => format!("--name={name}"),
            Some(("--initial-cluster", _)) => format!("--initial-cluster={cluster}"),
            _ => flag.replace(&former_ip, &ip),
        };
        let former_spec = self.member(index).spec();
        let mut arguments: Vec<_> = former_spec.arguments.iter().map(replaced).collect();
        arguments.push("--initial-cluster-state=existing".to_owned());
        let spec = ContainerSpec { arguments, ..former_spec.clone() };
        let former = self.replace_server(index, spec).await?;
        eventually("the removal of the former member", || admin.remove_member(former_id)).await?;
        drop(former);
        Ok(())
    }
}

impl EtcdAdmin {
    async fn add_member(&self, peer_url: &str) -> Result<(), ContainerError> {
        let added = self.gateway.call("cluster/member/add", json!({ "peerURLs": [peer_url] })).await;
        match added {
            Err(ContainerError::Refused { message, .. }) if message.contains("already exists") => Ok(()),
            added => added.map(drop),
        }
    }

    async fn remove_member(&self, id: u64) -> Result<(), ContainerError> {
        let removed = self.gateway.call("cluster/member/remove", json!({ "ID": id.to_string() })).await;
        match removed {
            Err(ContainerError::Refused { message, .. }) if message.contains("member not found") => Ok(()),
            removed => removed.map(drop),
        }
    }

    /// The value of `--initial-cluster` for the member that was added and has not started: `name`.
    async fn initial_cluster(&self, name: &str) -> Result<String, ContainerError> {
        let list = self.gateway.call("cluster/member/list", json!({})).await?;
        let members = list["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        let member = |member: &Value| {
            let name = member["name"].as_str().unwrap_or(name);
            let urls = member["peerURLs"].as_array().map(Vec::as_slice).unwrap_or_default();
            Some(format!("{name}={}", urls.first()?.as_str()?))
        };
        Ok(members.iter().filter_map(member).collect::<Vec<_>>().join(","))
    }
}
