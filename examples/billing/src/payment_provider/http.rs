//! The provider's HTTP API: `POST /charges`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tenure::FencingToken;
use tracing::{error, warn};

use super::{
    latency::Latency,
    ledger::{ChargeOrder, Ledger},
};
use crate::{
    clock::now_ms,
    payment_api::{ChargeRequest, IDEMPOTENCY_KEY, Outcome},
};

#[derive(Clone)]
struct ProviderState {
    ledger: Arc<Ledger>,
    latency: Arc<Latency>,
}

pub(crate) fn router(ledger: Arc<Ledger>, latency: Arc<Latency>) -> Router {
    Router::new()
        .route("/charges", post(charge))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(ProviderState { ledger, latency })
}

async fn charge(
    State(provider): State<ProviderState>,
    headers: HeaderMap,
    Json(request): Json<ChargeRequest>,
) -> Response {
    let order = match parse_order(&provider, &headers, request) {
        Ok(order) => order,
        Err(reason) => return (StatusCode::BAD_REQUEST, reason).into_response(),
    };
    // As a task of its own: a request that was received is processed, even if the client closes the connection.
    let processing = tokio::spawn(async move {
        let duration = provider.latency.draw();
        tokio::time::sleep(duration / 2).await;
        let answer = provider.ledger.process(&order).await;
        // The answer takes time, too. A client that crashes now has been charged and does not know it.
        tokio::time::sleep(duration / 2).await;
        answer
    });
    match processing.await {
        Ok(Ok(answer)) => {
            let status = match answer.outcome {
                Outcome::Charged => StatusCode::CREATED,
                Outcome::RefusedStale => StatusCode::PRECONDITION_FAILED,
                Outcome::RefusedDuplicate => StatusCode::CONFLICT,
            };
            if answer.outcome == Outcome::RefusedStale {
                warn!(highest = answer.highest_token, "refused a stale token");
            }
            (status, Json(answer)).into_response()
        }
        Ok(Err(error)) => {
            error!(error = &error as &dyn std::error::Error, "cannot write to the ledger");
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        Err(error) => {
            error!(%error, "the processing of a request panicked");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn parse_order(
    provider: &ProviderState,
    headers: &HeaderMap,
    request: ChargeRequest,
) -> Result<ChargeOrder, String> {
    let rules = provider.ledger.rules();
    let key = header_text(headers, IDEMPOTENCY_KEY)?;
    let token = header_text(headers, FencingToken::HEADER)?
        .map(|text| text.parse::<FencingToken>().map_err(|e| e.to_string()))
        .transpose()?
        .map(|token| i64::try_from(token.get()).map_err(|_| format!("token {token} is too large")))
        .transpose()?;
    if rules.idempotency && key.is_none() {
        return Err(format!("the header {IDEMPOTENCY_KEY} is missing"));
    }
    if rules.tokens && token.is_none() {
        return Err(format!("the header {} is missing", FencingToken::HEADER));
    }
    if request.amount_cents <= 0 {
        return Err(format!("amount_cents {} is not allowed: it must be more than 0", request.amount_cents));
    }
    Ok(ChargeOrder {
        key: key.unwrap_or_default().to_owned(),
        token: token.unwrap_or_default(),
        received_at: now_ms(),
        request,
    })
}

fn header_text<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, String> {
    headers
        .get(name)
        .map(|value| value.to_str().map_err(|_| format!("the header {name} is not text")))
        .transpose()
}
