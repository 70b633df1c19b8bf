//! The store against servers with canned answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tenure_cas::{CasStore as _, Epoch, Freshness, Swap, Version};
use tenure_core::{
    Secret,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{S3Config, S3Store};

/// A server that gives each request this answer. Counts them.
async fn server(answer: String) -> (S3Config, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, counted) = (answer.clone(), Arc::clone(&counted));
            tokio::spawn(async move {
                let mut request = vec![0; 64 * 1024];
                while stream.read(&mut request).await.is_ok_and(|bytes| bytes > 0) {
                    counted.fetch_add(1, Relaxed);
                    drop(stream.write_all(answer.as_bytes()).await);
                }
            });
        }
    });
    let config = S3Config::new("bucket")
        .endpoint(format!("http://{endpoint}"))
        .login("key", Secret::new("correct-horse"))
        .attempt_timeout(Duration::from_secs(1));
    (config, requests)
}

fn http(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn refusal(status: &str, code: &str) -> String {
    http(
        status,
        "",
        &format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>of {code}</Message></Error>"),
    )
}

async fn swap(store: &S3Store, expected: Option<&Version>) -> Result<Swap, BackendError> {
    store.swap("e/a", expected, Epoch(0), b"{}").await
}

#[tokio::test]
async fn each_refusal_has_its_kind_and_says_what_to_do() {
    use BackendErrorKind::{Forbidden, Invalid, Unauthorized, Unavailable};
    let redirect =
        http("301 Moved Permanently", "x-amz-bucket-region: eu-west-1\r\n", "<Code>PermanentRedirect</Code>");
    let malformed = http(
        "400 Bad Request",
        "",
        "<Error><Code>AuthorizationHeaderMalformed</Code><Message>wrong</Message><Region>eu-west-1</Region></Error>",
    );
    for (answer, kind, expected) in [
        (refusal("503 Slow Down", "SlowDown"), Unavailable, "503 SlowDown: of SlowDown"),
        (refusal("500 Internal Server Error", "InternalError"), Unavailable, "500 InternalError"),
        (
            refusal("403 Forbidden", "RequestTimeTooSkewed"),
            Unavailable,
            "the clock of this machine differs from the server's",
        ),
        (refusal("403 Forbidden", "AccessDenied"), Forbidden, "and s3:ListBucket on the bucket"),
        (
            refusal("403 Forbidden", "SignatureDoesNotMatch"),
            Unauthorized,
            "check the access key and its secret",
        ),
        (refusal("403 Forbidden", "InvalidAccessKeyId"), Unauthorized, "check the access key and its secret"),
        (refusal("400 Bad Request", "ExpiredToken"), Unauthorized, "renew AWS_SESSION_TOKEN"),
        (refusal("404 Not Found", "NoSuchBucket"), Invalid, "create the bucket"),
        (refusal("501 Not Implemented", "NotImplemented"), Invalid, "supports conditional writes"),
        (redirect, Invalid, "the bucket is in another region: set region=eu-west-1"),
        (malformed, Invalid, "the bucket is in another region: set region=eu-west-1"),
        (http("404 Not Found", "", "<html>nothing here</html>"), Invalid, "see that endpoint= and region="),
        (http("200 OK", "", ""), Unavailable, "ETag"),
        (http("502 Bad Gateway", "", "\u{1b}[31m"), Unavailable, "502 Bad Gateway"),
        ("garbage\r\n\r\n".to_owned(), Unavailable, "no usable answer of the server"),
    ] {
        let (config, requests) = server(answer.clone()).await;
        let store = S3Store::new(config).unwrap();
        let refused = [
            store.read("e/a", Freshness::Fresh).await.unwrap_err(),
            swap(&store, None).await.unwrap_err(),
            swap(&store, Some(&Version::new("\"1\""))).await.unwrap_err(),
        ];
        assert!(!format!("{store:?}").contains("horse"));
        assert_eq!(requests.load(Relaxed), 3, "{answer}: each request is sent once");
        for error in refused {
            assert_eq!(error.kind(), kind, "{answer}: {error}");
            assert!(error.to_string().contains(expected), "{answer}: {error}");
            assert!(!error.to_string().contains("horse"), "{error}");
        }
        if kind != Unavailable {
            assert_eq!(store.list("e/").await.unwrap_err().kind(), kind, "{answer}");
        }
    }
}

/// Hazard C4: the outcome of a condition, whichever status a server has for it.
#[tokio::test]
async fn the_outcome_of_a_condition_is_no_error() {
    for answer in [
        refusal("412 Precondition Failed", "PreconditionFailed"),
        refusal("409 Conflict", "ConditionalRequestConflict"),
        refusal("404 Not Found", "NoSuchKey"),
        http("412 Precondition Failed", "", ""),
    ] {
        let (config, _) = server(answer.clone()).await;
        let store = S3Store::new(config).unwrap();
        assert_eq!(swap(&store, Some(&Version::new("\"1\""))).await.unwrap(), Swap::Conflict, "{answer}");
    }
    let (config, _) = server(http("200 OK", "ETag: \"7\"\r\n", "")).await;
    let store = S3Store::new(config).unwrap();
    assert_eq!(swap(&store, None).await.unwrap(), Swap::Done(Version::new("\"7\"")));
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_not_read() {
    let body = "x".repeat(5 << 20);
    let (config, _) =
        server(http("200 OK", "ETag: \"7\"\r\nLast-Modified: Mon, 30 Nov 2026 12:00:00 GMT\r\n", &body))
            .await;
    let store = S3Store::new(config).unwrap();
    let error = store.read("e/a", Freshness::Fresh).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
    assert!(error.to_string().contains("length limit exceeded"), "{error}");
}

/// A record that is not the expected one is not deleted.
#[tokio::test]
async fn a_deletion_compares_first() {
    let found = http("200 OK", "ETag: \"7\"\r\nLast-Modified: Mon, 30 Nov 2026 12:00:00 GMT\r\n", "{}");
    let (config, requests) = server(found).await;
    let store = S3Store::new(config).unwrap();
    assert!(!store.delete("s/1", &Version::new("\"6\"")).await.unwrap());
    assert_eq!(requests.load(Relaxed), 1);
    assert!(store.delete("s/1", &Version::new("\"7\"")).await.unwrap());
    assert_eq!(requests.load(Relaxed), 3);
}
