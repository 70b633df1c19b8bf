//! The controller: reconciles while this replica leads.

use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt as _,
    runtime::{
        Controller,
        controller::{Action, Error},
        watcher,
    },
};
use serde_json::json;
use tenure::{BoxError, LeadershipHandle};
use tracing::{info, warn};

use crate::{
    digest::{self, DIGEST},
    fence::{self, WriteError},
};

struct Term {
    config_maps: Api<ConfigMap>,
    leadership: LeadershipHandle,
}

/// Reconciles until the leadership ends. Its work is over when this returns.
pub(crate) async fn run(config_maps: Api<ConfigMap>, leadership: LeadershipHandle) -> Result<(), BoxError> {
    let wanted = watcher::Config::default().labels(&format!("{DIGEST}=wanted"));
    let stop = leadership.cancellation_token();
    let term = Arc::new(Term { config_maps: config_maps.clone(), leadership });
    Controller::new(config_maps, wanted)
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile, |_, error, _| Action::requeue(error.retry_after()), term)
        .for_each(async |result| report(result))
        .await;
    Ok(())
}

fn report<K>(result: Result<(K, Action), Error<WriteError, watcher::Error>>) {
    match result {
        // It is reconciled again with the version that has changed it, and is gone if it was deleted.
        Ok(_) | Err(Error::ReconcilerFailed(WriteError::Changed(_), _) | Error::ObjectNotFound(_)) => {}
        Err(error) => warn!(error = &error as &dyn std::error::Error, "not reconciled; trying again"),
    }
}

/// Reconciles one object.
async fn reconcile(object: Arc<ConfigMap>, term: Arc<Term>) -> Result<Action, WriteError> {
    // The controller spawns this. The leadership waits for what it runs, and drops that by the deadline.
    term.leadership.run(update(&object, &term)).await??;
    Ok(Action::await_change())
}

/// Writes the digest if it is missing or wrong, and the token if this leader has not written the object yet: from then on no earlier
/// leader does.
///
/// The object may come from an outdated cache. Then the API server refuses the write.
async fn update(object: &ConfigMap, term: &Term) -> Result<(), WriteError> {
    let digest = digest::of(object);
    let is_right = object.annotations().get(DIGEST) == Some(&digest);
    let token = term.leadership.fencing_token();
    if fence::has_marked(object, token)? && is_right {
        return Ok(());
    }
    let change = json!({ "metadata": { "annotations": { DIGEST: digest } } });
    fence::write(&term.config_maps, object, &term.leadership, change).await?;
    info!(name = object.name_any(), digest, %token, "reconciled");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use http::{Method, Request, Response};
    use http_body_util::BodyExt as _;
    use kube::{Client, client::Body};
    use serde_json::Value;
    use tenure::{Elector, Leadership};

    use super::*;
    use crate::fence::TOKEN;

    /// An API server with one ConfigMap, which it can read and patch.
    #[derive(Clone)]
    struct Server(Arc<Mutex<Value>>);

    impl Server {
        fn new() -> Self {
            Self(Arc::new(Mutex::new(json!({
                "metadata": { "name": "prices", "resourceVersion": "1" },
                "data": { "bread": "3" },
            }))))
        }

        fn api(&self) -> Api<ConfigMap> {
            let server = self.clone();
            let service = tower::service_fn(move |request| {
                let server = server.clone();
                async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
            });
            Api::default_namespaced(Client::new(service, "default"))
        }

        async fn answer(&self, request: Request<Body>) -> Response<Body> {
            let method = request.method().clone();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut object = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if method == Method::PATCH {
                let mut patch: Value = serde_json::from_slice(&body).unwrap();
                let version = patch["metadata"].as_object_mut().unwrap().remove("resourceVersion").unwrap();
                if version != object["metadata"]["resourceVersion"] {
                    let conflict = json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": "the object has been modified", "reason": "Conflict", "code": 409,
                    });
                    return Response::builder()
                        .status(409)
                        .body(Body::from(conflict.to_string().into_bytes()))
                        .unwrap();
                }
                merge(&mut object, &patch);
                let next: u64 = version.as_str().unwrap().parse().unwrap();
                object["metadata"]["resourceVersion"] = json!((next + 1).to_string());
            }
            Response::new(Body::from(object.to_string().into_bytes()))
        }

        fn annotation(&self, name: &str) -> Option<String> {
            self.0.lock().unwrap()["metadata"]["annotations"][name].as_str().map(str::to_owned)
        }
    }

    fn merge(object: &mut Value, patch: &Value) {
        let Value::Object(fields) = patch else {
            *object = patch.clone();
            return;
        };
        for (name, value) in fields {
            merge(&mut object[name], value);
        }
    }

    async fn lead(elector: &dyn Elector) -> Leadership {
        elector.campaign("digests").await.unwrap()
    }

    fn term(server: &Server, leadership: &Leadership) -> Term {
        Term { config_maps: server.api(), leadership: leadership.handle() }
    }

    #[tokio::test]
    async fn an_object_gets_its_digest_once() {
        let server = Server::new();
        let elector = tenure::connect("memory:once").await.unwrap();
        let leadership = lead(&*elector).await;
        let term = term(&server, &leadership);
        let object = term.config_maps.get("prices").await.unwrap();
        update(&object, &term).await.unwrap();
        assert_eq!(server.annotation(DIGEST), Some(digest::of(&object)));
        assert_eq!(server.annotation(TOKEN), Some(leadership.fencing_token().to_string()));
        let written = term.config_maps.get("prices").await.unwrap();
        update(&written, &term).await.unwrap();
        let unchanged = term.config_maps.get("prices").await.unwrap();
        assert_eq!(unchanged.resource_version(), written.resource_version());
    }

    /// A former leader whose process was paused does not know that it is one.
    #[tokio::test]
    async fn an_earlier_leader_writes_nothing_that_a_later_one_has_seen() {
        let server = Server::new();
        let elector = tenure::connect("memory:earlier").await.unwrap();
        let earlier = lead(&*elector).await.fencing_token();
        let leadership = lead(&*elector).await;
        assert!(leadership.fencing_token() > earlier);
        let term = term(&server, &leadership);
        let cached = term.config_maps.get("prices").await.unwrap();
        update(&cached, &term).await.unwrap();
        // What it reads now is marked, and what it has read before has another version.
        let read = term.config_maps.get("prices").await.unwrap();
        let refused = fence::has_marked(&read, earlier).unwrap_err();
        assert!(matches!(refused, WriteError::Stale { .. }), "{refused}");
        let refused = fence::write(&term.config_maps, &cached, &leadership, json!({})).await.unwrap_err();
        assert!(matches!(refused, WriteError::Changed(_)), "{refused}");
    }

    #[tokio::test]
    async fn nothing_is_written_after_the_leadership() {
        let server = Server::new();
        let elector = tenure::connect("memory:after").await.unwrap();
        let leadership = lead(&*elector).await;
        let term = term(&server, &leadership);
        let object = Arc::new(term.config_maps.get("prices").await.unwrap());
        leadership.resign().await.unwrap();
        let refused = reconcile(object, Arc::new(term)).await.unwrap_err();
        assert!(matches!(refused, WriteError::Lost(_)), "{refused}");
        assert_eq!(server.annotation(DIGEST), None);
    }
}
