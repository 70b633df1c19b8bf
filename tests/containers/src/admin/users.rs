//! Users, roles and logins.

use serde_json::json;

use super::{ContainerError, EtcdAdmin, prefix_range};

/// What a role may do with the keys under a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Read them.
    Read,
    /// Write them.
    Write,
    /// Both.
    ReadWrite,
}

impl EtcdAdmin {
    /// The same, speaking as `user`: needed once [`enable_auth`](Self::enable_auth) was called.
    ///
    /// # Errors
    /// When the server refuses the password or does not answer.
    pub async fn login(&self, user: &str, password: &str) -> Result<Self, ContainerError> {
        let request = json!({ "name": user, "password": password });
        let answer = self.gateway.call("auth/authenticate", request).await?;
        let token = answer["token"].as_str().unwrap_or_default();
        Ok(Self { gateway: self.gateway.with_token(token) })
    }

    /// Makes a user who may do `permission` with the keys under `prefix`, by a role of the same name.
    ///
    /// # Errors
    /// Also when there is such a user already.
    pub async fn add_user(
        &self,
        user: &str,
        password: &str,
        permission: Permission,
        prefix: &str,
    ) -> Result<(), ContainerError> {
        self.gateway.call("auth/role/add", json!({ "name": user })).await?;
        self.permit(user, permission, prefix).await?;
        self.add_user_with_role(user, password, user).await
    }

    /// Permits the role of a user's own what lies below `prefix` as well.
    ///
    /// # Errors
    /// When there is no such role.
    pub async fn permit(
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

    /// Forbids the role of a user's own what lies below `prefix`, of which [`permit`](Self::permit) was told.
    ///
    /// # Errors
    /// When nothing of the kind was permitted.
    pub async fn forbid(&self, user: &str, prefix: &str) -> Result<(), ContainerError> {
        let (key, range_end) = prefix_range(prefix);
        let permission = json!({ "role": user, "key": key, "range_end": range_end });
        self.gateway.call("auth/role/revoke", permission).await.map(|_| ())
    }

    /// Takes the role of its own from a user.
    ///
    /// # Errors
    /// When the user has no such role.
    pub async fn revoke_role(&self, user: &str) -> Result<(), ContainerError> {
        self.gateway.call("auth/user/revoke", json!({ "name": user, "role": user })).await.map(|_| ())
    }

    /// Deletes a user; whoever has logged in as it is not let in any more.
    ///
    /// # Errors
    /// When there is no such user.
    pub async fn delete_user(&self, user: &str) -> Result<(), ContainerError> {
        self.gateway.call("auth/user/delete", json!({ "name": user })).await.map(|_| ())
    }

    /// Gives a user another password; whoever has logged in with the old one is to log in anew.
    ///
    /// # Errors
    /// When there is no such user.
    pub async fn change_password(&self, user: &str, password: &str) -> Result<(), ContainerError> {
        let change = json!({ "name": user, "password": password });
        self.gateway.call("auth/user/changepw", change).await.map(|_| ())
    }

    /// Makes the user `root` and demands a name and password from everybody from now on;
    /// returns this, speaking as root.
    ///
    /// # Errors
    /// Also when that was done already.
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

    /// How many times anybody has logged in with a name and a password since this member started.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn logins(&self) -> Result<u64, ContainerError> {
        let metrics = self.gateway.metrics().await?;
        let counted = metrics.lines().filter(|line| {
            line.starts_with("grpc_server_handled_total{")
                && line.contains("grpc_code=\"OK\",grpc_method=\"Authenticate\"")
        });
        Ok(counted.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
    }
}
