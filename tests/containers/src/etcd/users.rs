//! Users, roles and logins of an etcd server.

use serde_json::json;

use crate::{
    error::ContainerError,
    etcd::admin::{EtcdAdmin, prefix_range},
};

/// What a role may do with the keys under a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Read them.
    Read,
    /// Write them.
    Write,
    /// Read and write them.
    ReadWrite,
}

impl EtcdAdmin {
    /// A client of the same server that is logged in as `user`. Needed once [`enable_auth`](Self::enable_auth) was called.
    ///
    /// # Errors
    /// When the server refuses the password or does not answer.
    pub async fn login(&self, user: &str, password: &str) -> Result<Self, ContainerError> {
        let request = json!({ "name": user, "password": password });
        let answer = self.gateway.call("auth/authenticate", request).await?;
        let token = answer["token"].as_str().unwrap_or_default();
        Ok(Self { gateway: self.gateway.with_token(token) })
    }

    /// Creates a user, and a role of the same name with `permission` for the keys under `prefix`.
    ///
    /// # Errors
    /// When the user exists already, or the server does not answer.
    pub async fn add_user(
        &self,
        user: &str,
        password: &str,
        permission: Permission,
        prefix: &str,
    ) -> Result<(), ContainerError> {
        self.gateway.call("auth/role/add", json!({ "name": user })).await?;
        self.grant_permission(user, permission, prefix).await?;
        self.add_user_with_role(user, password, user).await
    }

    /// Grants `permission` for the keys under `prefix` to the role that [`add_user`](Self::add_user) created.
    ///
    /// # Errors
    /// When the role does not exist, or the server does not answer.
    pub async fn grant_permission(
        &self,
        user: &str,
        permission: Permission,
        prefix: &str,
    ) -> Result<(), ContainerError> {
        let permission = match permission {
            Permission::Read => "READ",
            Permission::Write => "WRITE",
            Permission::ReadWrite => "READWRITE",
        };
        let (key, range_end) = prefix_range(prefix);
        let permission = json!({ "permType": permission, "key": key, "range_end": range_end });
        self.gateway.call("auth/role/grant", json!({ "name": user, "perm": permission })).await?;
        Ok(())
    }

    /// Revokes what [`grant_permission`](Self::grant_permission) granted for `prefix`.
    ///
    /// # Errors
    /// When the role has no such permission, or the server does not answer.
    pub async fn revoke_permission(&self, user: &str, prefix: &str) -> Result<(), ContainerError> {
        let (key, range_end) = prefix_range(prefix);
        let permission = json!({ "role": user, "key": key, "range_end": range_end });
        self.gateway.call("auth/role/revoke", permission).await.map(|_| ())
    }

    /// Revokes from a user the role of the same name.
    ///
    /// # Errors
    /// When the user does not have the role, or the server does not answer.
    pub async fn revoke_role(&self, user: &str) -> Result<(), ContainerError> {
        self.gateway.call("auth/user/revoke", json!({ "name": user, "role": user })).await.map(|_| ())
    }

    /// Deletes a user. The server rejects the user's tokens from then on.
    ///
    /// # Errors
    /// When the user does not exist, or the server does not answer.
    pub async fn delete_user(&self, user: &str) -> Result<(), ContainerError> {
        self.gateway.call("auth/user/delete", json!({ "name": user })).await.map(|_| ())
    }

    /// Changes a user's password. Clients that logged in with the old one have to log in again.
    ///
    /// # Errors
    /// When the user does not exist, or the server does not answer.
    pub async fn change_password(&self, user: &str, password: &str) -> Result<(), ContainerError> {
        let change = json!({ "name": user, "password": password });
        self.gateway.call("auth/user/changepw", change).await.map(|_| ())
    }

    /// Creates the user `root` and enables authentication; returns a client that is logged in as root.
    ///
    /// # Errors
    /// When authentication is enabled already, or the server does not answer.
    pub async fn enable_auth(&self, root_password: &str) -> Result<Self, ContainerError> {
        self.gateway.call("auth/role/add", json!({ "name": "root" })).await?;
        self.add_user_with_role("root", root_password, "root").await?;
        self.gateway.call("auth/enable", json!({})).await?;
        self.login("root", root_password).await
    }

    async fn add_user_with_role(&self, user: &str, password: &str, role: &str) -> Result<(), ContainerError> {
        self.gateway.call("auth/user/add", json!({ "name": user, "password": password })).await?;
        self.gateway.call("auth/user/grant", json!({ "user": user, "role": role })).await.map(|_| ())
    }

    /// The number of successful logins with a name and a password since this member started.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn login_count(&self) -> Result<u64, ContainerError> {
        let metrics = self.gateway.metrics().await?;
        let counted = metrics.lines().filter(|line| {
            line.starts_with("grpc_server_handled_total{")
                && line.contains("grpc_code=\"OK\",grpc_method=\"Authenticate\"")
        });
        Ok(counted.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
    }
}
