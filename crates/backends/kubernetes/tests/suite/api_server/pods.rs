//! Pods: their labels. A verb on them is named such as `patch pods`.

use std::collections::BTreeMap;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query},
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{ApiServer, Cluster, Context, Fault, NAMESPACE, admit, next_fault, refuse, status};

impl ApiServer {
    /// Starts a pod, or one with the same name in its place.
    pub(crate) fn start_pod(&self, name: &str) {
        self.shared.change(|cluster| {
            let pod = json!({ "metadata": { "name": name, "labels": { "app": "billing" } } });
            let pod = cluster.fresh(pod);
            cluster.store_pod(name, pod);
        });
    }

    /// Sets a label of a pod, or removes it.
    pub(crate) fn label_pod(&self, name: &str, label: &str, value: Option<&str>) {
        self.shared.change(|cluster| {
            let mut pod = cluster.pods[name].clone();
            merge(&mut pod, &json!({ "metadata": { "labels": { label: value } } }));
            cluster.store_pod(name, pod);
        });
    }

    pub(crate) fn pod_label(&self, name: &str, label: &str) -> Option<String> {
        Some(self.shared.lock().pods[name]["metadata"]["labels"][label].as_str()?.to_owned())
    }
}

impl Cluster {
    fn store_pod(&mut self, name: &str, mut pod: Value) -> Value {
        self.version += 1;
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.pods.insert(name.to_owned(), pod.clone());
        pod
    }
}

/// A JSON merge patch.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (name, value) in patch {
        match value {
            Value::Null => drop(target.remove(name)),
            value => merge(target.entry(name).or_insert(Value::Null), value),
        }
    }
}

fn check(shared: &Context, verb: &'static str, name: &str, headers: &HeaderMap) -> Option<Response> {
    if let Some(refused) = admit(shared, verb, name, headers) {
        return Some(refused);
    }
    match next_fault(shared, verb) {
        Some(Fault::Refuse(code, retry_after)) => Some(refuse(code, retry_after)),
        Some(fault) => unreachable!("{fault:?}"),
        None => None,
    }
}

pub(super) async fn read(shared: Context, path: Path<(String, String)>, headers: HeaderMap) -> Response {
    let Path((namespace, name)) = path;
    assert_eq!(namespace, NAMESPACE);
    if let Some(refused) = check(&shared, "get pods", &name, &headers) {
        return refused;
    }
    match shared.lock().pods.get(&name) {
        Some(pod) => Json(pod.clone()).into_response(),
        None => status(404, "NotFound", "not found", &name),
    }
}

pub(super) async fn list(
    shared: Context,
    query: Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = check(&shared, "list pods", "", &headers) {
        return refused;
    }
    let (label, value) = query["labelSelector"].split_once('=').unwrap();
    let cluster = shared.lock();
    let items: Vec<_> =
        cluster.pods.values().filter(|pod| pod["metadata"]["labels"][label] == *value).collect();
    Json(json!({ "apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items })).into_response()
}

pub(super) async fn patch(
    shared: Context,
    path: Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Path((_, name)) = path;
    if let Some(refused) = check(&shared, "patch pods", &name, &headers) {
        return refused;
    }
    assert_eq!(headers[CONTENT_TYPE], "application/merge-patch+json");
    let patch: Value = serde_json::from_slice(&body).unwrap();
    shared.change(|cluster| {
        let Some(mut pod) = cluster.pods.get(&name).cloned() else {
            return status(404, "NotFound", "not found", &name);
        };
        let names_other = |field: &str| {
            let given = &patch["metadata"][field];
            !given.is_null() && *given != pod["metadata"][field]
        };
        if names_other("resourceVersion") {
            return status(409, "Conflict", "the object has been modified", &name);
        }
        if names_other("uid") {
            return status(422, "Invalid", "metadata.uid: field is immutable", &name);
        }
        merge(&mut pod, &patch);
        for value in pod["metadata"]["labels"].as_object().unwrap().values() {
            assert!(value.as_str().unwrap().len() <= 63);
        }
        Json(cluster.store_pod(&name, pod)).into_response()
    })
}
