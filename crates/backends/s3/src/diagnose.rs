//! Diagnoses the server and the bucket, for an operator.

use std::time::Instant;

use object_store::{PutMode, UpdateVersion};
use tenure_cas::{CasStore as _, Freshness, Swap};
use tenure_core::{Diagnosis, spi::BackendError};

use crate::store::S3Store;

/// An ETag that no object has.
const WRONG_TAG: &str = "\"00000000000000000000000000000000\"";

/// Diagnoses the server, conditional writes and rights.
pub(crate) async fn diagnose(store: &S3Store) -> Vec<Diagnosis> {
    let begun = Instant::now();
    let read = store.read("store", Freshness::Fresh).await;
    let (time, subject) = (begun.elapsed(), format!("server {}", store.config.server()));
    if let Err(error) = read {
        let advice =
            "see that endpoint= and region= are those of the bucket, and what the key or the role may do";
        return vec![Diagnosis::problem(subject, error.to_string(), advice)];
    }
    let server = store.http.server().unwrap_or_else(|| "does not say what it is".to_owned());
    let mut diagnoses = vec![Diagnosis::good(
        subject,
        format!("{server}, has the bucket {:?}, answered in {time:.1?}", store.config.bucket),
    )];
    let key = format!("doctor/{:032x}", fastrand::u128(..));
    diagnoses.push(match probe(store, &key).await {
        Ok(None) => Diagnosis::good("conditional writes", "honoured (If-None-Match and If-Match)"),
        Ok(Some(fault)) => Diagnosis::problem(
            "conditional writes",
            fault,
            "use another store, or a version of its server and proxies that supports conditional writes",
        ),
        Err(error) => Diagnosis::problem(
            "conditional writes",
            error.to_string(),
            "allow s3:PutObject and s3:GetObject below the prefix",
        ),
    });
    diagnoses.push(match store.remove("deleting the object of the doctor", &key).await {
        Ok(()) => Diagnosis::good("deletion", "allowed"),
        Err(error) => Diagnosis::warning(
            "deletion",
            format!("{error}: records of dead sessions pile up"),
            "allow s3:DeleteObject below the prefix",
        ),
    });
    diagnoses.push(match store.list("s/").await {
        Ok(sessions) => {
            Diagnosis::good("list", format!("allowed; {} sessions, dead ones included", sessions.len()))
        }
        Err(error) => Diagnosis::warning(
            "list",
            format!("{error}: dead sessions are not removed, and the doctor cannot list elections"),
            "allow s3:ListBucket on the bucket",
        ),
    });
    diagnoses.push(Diagnosis::good(
        "lifecycle",
        format!(
            "not checked: see that no lifecycle rule of the bucket expires objects below {}/; one that removes noncurrent versions is \
             welcome if versioning is on",
            store.config.prefix
        ),
    ));
    diagnoses
}

/// What is wrong with the server's conditional writes, if anything.
async fn probe(store: &S3Store, key: &str) -> Result<Option<&'static str>, BackendError> {
    const IGNORES_IF_MATCH: &str = "the server ignores If-Match: two candidates could lead";
    let what = "writing the object of the doctor";
    let update = |tag: &str| PutMode::Update(UpdateVersion { e_tag: Some(tag.to_owned()), version: None });
    let Swap::Done(first) = store.put(what, key, PutMode::Create, b"1").await? else {
        return Ok(Some("the server refuses If-None-Match for a new object: no candidate can enter"));
    };
    if store.put(what, key, PutMode::Create, b"2").await? != Swap::Conflict {
        return Ok(Some("the server ignores If-None-Match: two candidates could lead"));
    }
    if store.put(what, key, update(WRONG_TAG), b"3").await? != Swap::Conflict {
        return Ok(Some(IGNORES_IF_MATCH));
    }
    let Swap::Done(_) = store.put(what, key, update(first.as_str()), b"4").await? else {
        return Ok(Some("the server refuses If-Match with the current ETag: no session is renewed"));
    };
    if store.put(what, key, update(first.as_str()), b"5").await? != Swap::Conflict {
        return Ok(Some(IGNORES_IF_MATCH));
    }
    let missing = format!("{key}-missing");
    if store.put(what, &missing, update(first.as_str()), b"6").await? != Swap::Conflict {
        let _ = store.remove("deleting the object of the doctor", &missing).await;
        return Ok(Some(
            "the server ignores If-Match for an object that does not exist: two candidates could lead",
        ));
    }
    Ok(None)
}
