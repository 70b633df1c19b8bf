//! Errors of the HTTP interface: `{"error": {"code", "message", "advice"}}`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tenure::Error;

/// After how many seconds a sidecar that is being stopped may have restarted.
const RESTART_SECONDS: u16 = 5;

/// An error that a client gets.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    /// A stable name.
    code: &'static str,
    message: String,
    /// What to do, or which values are allowed.
    advice: String,
    /// After how many seconds the request can succeed.
    retry_after: Option<u16>,
}

impl ApiError {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { status, code, message: message.into(), advice: advice.into(), retry_after: None }
    }

    pub(super) fn retry_after(mut self, seconds: u16) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The sidecar is being stopped.
    pub(super) fn stopping() -> Self {
        let advice = "renew and resign what you hold; campaign at another sidecar, or at this one once it has restarted";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "this sidecar is being stopped", advice)
            .retry_after(RESTART_SECONDS)
    }

    /// The sidecar is being stopped, and nothing is left of the lease.
    pub(super) fn lease_over_by_stopping() -> Self {
        let message = "this sidecar is being stopped, and this lease is over";
        let advice = "stop the work; then campaign at another sidecar, or at this one once it has restarted";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message, advice).retry_after(RESTART_SECONDS)
    }

    /// An error of the elector.
    pub(super) fn of_elector(error: &Error) -> Self {
        let message = error.to_string();
        match error {
            Error::InvalidElection(_) => Self::new(
                StatusCode::BAD_REQUEST,
                "invalid_election",
                message,
                "1 to 255 bytes of [A-Za-z0-9._-], except . and ..",
            ),
            Error::InvalidConfig(_) | Error::ValueTooLarge { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_value", message, "a value of at most 64 KiB")
            }
            Error::Unauthorized(_) | Error::Refused(_) => Self::new(
                StatusCode::BAD_GATEWAY,
                "store_refuses",
                message,
                "change the store or its settings; `tenure doctor` examines it",
            ),
            Error::Closed => Self::stopping(),
            _ => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "store_unavailable",
                message,
                "try again; `tenure doctor` examines the store",
            )
            .retry_after(1),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, code, message, advice, retry_after } = self;
        let body = json!({ "error": { "code": code, "message": message, "advice": advice } });
        let mut response = (status, Json(body)).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
