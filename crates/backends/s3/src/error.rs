//! What a failed request means.

use std::{error::Error, iter::successors};

use http::StatusCode;
use tenure_core::spi::{
    BackendError,
    BackendErrorKind::{self, Forbidden, Invalid, Unauthorized, Unavailable},
};

use crate::http::Refusal;

/// The error of a request, by its kind, and what to do about it.
pub(crate) fn classify(what: &str, error: &object_store::Error) -> BackendError {
    if let Some(refusal) = refusal(error) {
        let kind = kind(refusal);
        let text = format!("{what}: {refusal}");
        return BackendError::new(kind, format!("{text}{}", advice(refusal, kind)));
    }
    let cause = causes(error).last().map_or_else(|| error.to_string(), ToString::to_string);
    let advice = match cause.contains("UnknownIssuer") {
        true => "; give ca=/path/to/authorities.pem",
        false => "",
    };
    BackendError::new(Unavailable, format!("{what}: no usable answer of the server: {cause}{advice}"))
}

fn refusal(error: &object_store::Error) -> Option<&Refusal> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn causes(error: &object_store::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    successors(error.source(), |&cause| cause.source())
}

fn kind(refusal: &Refusal) -> BackendErrorKind {
    match refusal.code.as_str() {
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" => Unauthorized,
        // The clock may be set right, and requests may be tried again.
        "RequestTimeTooSkewed" | "RequestTimeout" | "SlowDown" => Unavailable,
        _ => match refusal.status {
            StatusCode::UNAUTHORIZED => Unauthorized,
            StatusCode::FORBIDDEN => Forbidden,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Unavailable,
            // Of conditions, mostly.
            StatusCode::NOT_IMPLEMENTED => Invalid,
            status if status.is_server_error() => Unavailable,
            _ => Invalid,
        },
    }
}

fn advice(refusal: &Refusal, kind: BackendErrorKind) -> String {
    if let Some(region) = refusal.region.as_ref().filter(|_| kind == Invalid) {
        return format!("; the bucket is in another region: set region={region}");
    }
    let advice = match refusal.code.as_str() {
        "RequestTimeTooSkewed" => {
            "the clock of this machine differs from the server's by more than requests may: correct it"
        }
        "NoSuchBucket" => "create the bucket, or name another one in the URL",
        "ExpiredToken" => "renew AWS_SESSION_TOKEN and its keys",
        _ => match kind {
            Unauthorized => {
                "check the access key and its secret: s3://KEY@bucket with password_file=/path, or AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY"
            }
            Forbidden => {
                "allow s3:GetObject, s3:PutObject and s3:DeleteObject on the objects below the prefix, and s3:ListBucket on the bucket"
            }
            Invalid if refusal.status.is_redirection() => "set region= to the region of the bucket",
            Invalid if refusal.status == StatusCode::NOT_IMPLEMENTED => {
                "use a store that supports conditional writes (If-Match, If-None-Match)"
            }
            Invalid => "see that endpoint= and region= are those of an S3 server",
            _ => return String::new(),
        },
    };
    format!("; {advice}")
}
