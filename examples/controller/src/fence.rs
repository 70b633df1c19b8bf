//! Fenced writes of Kubernetes objects.
//!
//! Each object has the highest token that has written it in the annotation `tenure/token`. A leader compares it before it writes, and
//! writes its own. The write names the `resourceVersion` of the object that was compared: the API server compares no token, but refuses the
//! write if the object has changed since, so that no other leader's write comes in between.
//!
//! This covers merge patches of the main resource of an object that exists, not creations, deletions or subresources such as `status`. All
//! writers of one object have to use it, with one election.

use std::{fmt::Debug, time::Duration};

use kube::{
    Api, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tenure::{FencingToken, LeadershipHandle, Lost};
use thiserror::Error;
use tokio::time::timeout;

/// The annotation with the highest token that has written the object.
pub(crate) const TOKEN: &str = "tenure/token";

/// How long a write may take; the client itself waits without a bound.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// An object was not written, or may not have been.
#[derive(Debug, Error)]
pub(crate) enum WriteError {
    #[error("a later leader has written {name}: its token is {seen}, and that of this leader {token}")]
    Stale { name: String, seen: FencingToken, token: FencingToken },
    /// It is not overwritten: the mark may be that of a later leader.
    #[error("the annotation {TOKEN} of {name} is {found:?}, which is no token; correct or remove it")]
    UnreadableMark { name: String, found: String },
    #[error("{0} has no resourceVersion: it was not read from an API server")]
    NotRead(String),
    #[error("{0} was changed since it was read")]
    Changed(String),
    #[error("the API server did not answer the write of {0} within {WRITE_TIMEOUT:?}")]
    Unanswered(String),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error(transparent)]
    Request(#[from] kube::Error),
}

impl WriteError {
    /// How long to wait before the object is reconciled again.
    pub(crate) fn retry_after(&self) -> Duration {
        match self {
            // The change is on its way to here.
            Self::Changed(_) => Duration::from_millis(100),
            _ => Duration::from_secs(5),
        }
    }
}

/// Whether the leader with this token has written the object, and no later one has.
///
/// # Errors
/// When a later leader has, or when the mark cannot be read.
pub(crate) fn has_marked<K: Resource>(read: &K, token: FencingToken) -> Result<bool, WriteError> {
    let Some(found) = read.annotations().get(TOKEN) else {
        return Ok(false);
    };
    let name = read.name_any();
    match found.parse::<FencingToken>() {
        Ok(seen) if seen > token => Err(WriteError::Stale { name, seen, token }),
        Ok(seen) => Ok(seen == token),
        Err(_) => Err(WriteError::UnreadableMark { name, found: found.clone() }),
    }
}

/// A merge patch of `read` with `change`, the token and the precondition.
///
/// # Errors
/// When a later leader has written the object, or when the mark cannot be read.
fn fenced_patch<K: Resource>(read: &K, token: FencingToken, mut change: Value) -> Result<Value, WriteError> {
    has_marked(read, token)?;
    let version = read.resource_version().ok_or_else(|| WriteError::NotRead(read.name_any()))?;
    change["metadata"]["resourceVersion"] = json!(version);
    change["metadata"]["annotations"][TOKEN] = json!(token.to_string());
    Ok(change)
}

/// Applies the merge patch `change` to the object, in the version that was read, as the leader.
///
/// # Errors
/// When the leadership is over, when a later leader has written the object, when it was changed since it was read, or when the API server
/// refuses.
pub(crate) async fn write<K>(
    api: &Api<K>,
    read: &K,
    leadership: &LeadershipHandle,
    change: Value,
) -> Result<K, WriteError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let name = read.name_any();
    let patch = fenced_patch(read, leadership.fencing_token(), change)?;
    leadership.ensure()?;
    let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
    let patched = timeout(WRITE_TIMEOUT, api.patch(&name, &parameters, &patch)).await;
    match patched.map_err(|_| WriteError::Unanswered(name.clone()))? {
        Err(kube::Error::Api(refusal)) if refusal.code == 409 => Err(WriteError::Changed(name)),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn token(number: u64) -> FencingToken {
        FencingToken::new(number).unwrap()
    }

    fn object(annotations: Value) -> ConfigMap {
        serde_json::from_value(json!({
            "metadata": { "name": "prices", "resourceVersion": "41", "annotations": annotations },
        }))
        .unwrap()
    }

    #[test]
    fn a_patch_has_the_token_and_the_version_that_was_read() {
        let change = json!({ "metadata": { "annotations": { "a": "b" } }, "data": { "c": "d" } });
        for annotations in [json!({}), json!({ TOKEN: "6" }), json!({ TOKEN: "7" })] {
            assert_eq!(
                fenced_patch(&object(annotations), token(7), change.clone()).unwrap(),
                json!({
                    "metadata": { "resourceVersion": "41", "annotations": { "a": "b", TOKEN: "7" } },
                    "data": { "c": "d" },
                })
            );
        }
    }

    #[test]
    fn an_object_of_a_later_leader_is_not_written() {
        // Not compared as text.
        for seen in ["8", "10"] {
            let refused = fenced_patch(&object(json!({ TOKEN: seen })), token(7), json!({})).unwrap_err();
            let said = format!("its token is {seen}, and that of this leader 7");
            assert!(refused.to_string().contains(&said), "{refused}");
        }
    }

    #[test]
    fn an_unreadable_mark_admits_no_write() {
        for mark in ["", "0", "seven", "-1", "7 "] {
            let refused = fenced_patch(&object(json!({ TOKEN: mark })), token(7), json!({})).unwrap_err();
            assert!(matches!(refused, WriteError::UnreadableMark { .. }), "{mark:?}: {refused}");
        }
    }

    #[test]
    fn an_object_that_was_not_read_is_not_written() {
        let mut object = object(json!({}));
        object.metadata.resource_version = None;
        let refused = fenced_patch(&object, token(7), json!({})).unwrap_err();
        assert!(matches!(refused, WriteError::NotRead(_)), "{refused}");
    }

    #[test]
    fn an_object_is_marked_by_one_leader() {
        assert!(!has_marked(&object(json!({})), token(7)).unwrap());
        assert!(!has_marked(&object(json!({ TOKEN: "6" })), token(7)).unwrap());
        assert!(has_marked(&object(json!({ TOKEN: "7" })), token(7)).unwrap());
    }
}
