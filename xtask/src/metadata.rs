//! What `cargo metadata` says of the workspace and of what it depends on.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::shell::{cargo, output};

/// The workspace's packages and their graph of dependencies, with all features.
pub(crate) struct Metadata {
    packages: BTreeMap<String, Value>,
    nodes: BTreeMap<String, Value>,
}

impl Metadata {
    /// Asks cargo.
    ///
    /// # Errors
    /// When cargo fails.
    pub(crate) fn load() -> Result<Self> {
        let json = output(&mut cargo(["metadata", "--format-version=1", "--all-features"]))?;
        let metadata: Value = serde_json::from_str(&json).context("cargo metadata printed no JSON")?;
        Ok(Self::new(&metadata))
    }

    fn new(metadata: &Value) -> Self {
        let by_id = |list: &Value| {
            let items = list.as_array().into_iter().flatten();
            items.map(|item| (text(&item["id"]).to_owned(), item.clone())).collect()
        };
        Self { packages: by_id(&metadata["packages"]), nodes: by_id(&metadata["resolve"]["nodes"]) }
    }

    /// The features of a package of the workspace, but for `default`.
    ///
    /// # Errors
    /// When there is no such package.
    pub(crate) fn features(&self, package: &str) -> Result<Vec<String>> {
        let features = self.packages[self.id(package)?]["features"].as_object();
        let names = features.into_iter().flat_map(|features| features.keys());
        Ok(names.filter(|name| *name != "default").cloned().collect())
    }

    /// The oldest Rust that a package supports, by its own word.
    ///
    /// # Errors
    /// When there is no such package, or it does not say.
    pub(crate) fn rust_version(&self, package: &str) -> Result<&str> {
        let version = self.packages[self.id(package)?]["rust_version"].as_str();
        version.with_context(|| format!("{package} states no rust-version"))
    }

    /// The packages (name, version, rust-version) on which `package` depends, when it is
    /// built or used but not when it is tested, and that demand a newer Rust than `limit`.
    ///
    /// # Errors
    /// When there is no such package.
    pub(crate) fn too_new_for(&self, package: &str, limit: &str) -> Result<Vec<String>> {
        let limit = version(limit);
        let mut seen = BTreeSet::new();
        let mut pending = vec![self.id(package)?];
        while let Some(id) = pending.pop() {
            if !seen.insert(id) {
                continue;
            }
            let dependencies = self.nodes.get(id).and_then(|node| node["deps"].as_array());
            pending.extend(
                dependencies
                    .into_iter()
                    .flatten()
                    .filter(|dependency| !is_for_tests_only(dependency))
                    .map(|dependency| text(&dependency["pkg"])),
            );
        }
        let needed = seen.into_iter().filter_map(|id| {
            let package = self.packages.get(id)?;
            let rust = package["rust_version"].as_str()?;
            (version(rust) > limit).then(|| {
                format!("{} {} needs Rust {rust}", text(&package["name"]), text(&package["version"]))
            })
        });
        Ok(needed.collect())
    }

    /// The names of the workspace's packages that are not kept from being published.
    pub(crate) fn published(&self) -> BTreeSet<&str> {
        let own = self.packages.values().filter(|package| package["source"].is_null());
        own.filter(|package| package["publish"].is_null()).map(|package| text(&package["name"])).collect()
    }

    /// What a published package must have and this one lacks: fields of its manifest and files beside it.
    ///
    /// # Errors
    /// When there is no such package.
    pub(crate) fn missing_for_publishing(&self, package: &str) -> Result<Vec<&'static str>> {
        let package = &self.packages[self.id(package)?];
        let fields =
            ["description", "license", "readme", "rust_version"].map(|field| (field, &package[field]));
        let lists = ["keywords", "categories"].map(|list| (list, &package[list][0]));
        let docs = [("metadata.docs.rs", &package["metadata"]["docs"]["rs"])];
        let fields = fields.into_iter().chain(lists).chain(docs);
        let missing = fields.filter(|(_, value)| value.is_null()).map(|(name, _)| name);
        let folder = PathBuf::from(text(&package["manifest_path"])).with_file_name("");
        let files = ["README.md", "LICENSE-MIT", "LICENSE-APACHE"];
        Ok(missing.chain(files.into_iter().filter(|file| !folder.join(file).is_file())).collect())
    }

    /// The manifests of the workspace's packages.
    pub(crate) fn manifests(&self) -> Vec<PathBuf> {
        let own = self.packages.values().filter(|package| package["source"].is_null());
        own.map(|package| text(&package["manifest_path"]).into()).collect()
    }

    fn id(&self, package: &str) -> Result<&str> {
        let found =
            self.packages.iter().find(|(_, found)| found["name"] == package && found["source"].is_null());
        found.map(|(id, _)| id.as_str()).with_context(|| format!("there is no package {package}"))
    }
}

fn is_for_tests_only(dependency: &Value) -> bool {
    let kinds = dependency["dep_kinds"].as_array();
    kinds.is_some_and(|kinds| kinds.iter().all(|kind| kind["kind"] == "dev"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// `1.89` and `1.89.0` are one version.
fn version(text: &str) -> [u32; 3] {
    let mut numbers = text.split('.').map(|number| number.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Metadata;

    fn metadata() -> Metadata {
        let package = |name, rust: &str| json!({ "id": name, "name": name, "version": "1.0.0", "rust_version": rust, "features": { "default": [], "etcd": [] } });
        let edge = |to, kind: Option<&str>| json!({ "pkg": to, "dep_kinds": [{ "kind": kind }] });
        Metadata::new(&json!({
            "packages": [package("tenure", "1.89"), package("old", "1.9"), package("new", "1.90.0"), package("tester", "1.95")],
            "resolve": { "nodes": [
                { "id": "tenure", "deps": [edge("old", None), edge("tester", Some("dev"))] },
                { "id": "old", "deps": [edge("new", Some("build"))] },
            ]},
        }))
    }

    #[test]
    fn a_dependency_that_needs_a_newer_rust_is_found_at_any_depth() {
        assert_eq!(metadata().too_new_for("tenure", "1.89").unwrap(), ["new 1.0.0 needs Rust 1.90.0"]);
    }

    #[test]
    fn versions_are_compared_as_numbers_and_tests_do_not_count() {
        assert!(metadata().too_new_for("tenure", "1.90").unwrap().is_empty());
    }

    #[test]
    fn features_are_listed_without_default() {
        assert_eq!(metadata().features("tenure").unwrap(), ["etcd"]);
        assert!(metadata().features("unknown").is_err());
    }
}
