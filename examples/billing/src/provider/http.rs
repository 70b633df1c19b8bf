//! `POST /charges`, the provider's whole API.

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
    ledger::{Ledger, Order},
};
use crate::{
    clock::now_ms,
    payment::{ChargeRequest, IDEMPOTENCY_KEY, Outcome},
};

#[derive(Clone)]
struct Shop {
    ledger: Arc<Ledger>,
    latency: Arc<Latency>,
}

pub(crate) fn router(ledger: Arc<Ledger>, latency: Arc<Latency>) -> Router {
    Router::new()
        .route("/charges", post(charge))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(Shop { ledger, latency })
}

async fn charge(
    State(shop): State<Shop>,
    headers: HeaderMap,
    Json(request): Json<ChargeRequest>,
) -> Response {
    let order = match order(&shop, &headers, request) {
        Ok(order) => order,
        Err(reason) => return (StatusCode::BAD_REQUEST, reason).into_response(),
    };
    // A task of its own: what has been received is carried out, whether or not the caller lives to hear of it.
    let carried_out = tokio::spawn(async move {
        let time = shop.latency.draw();
        tokio::time::sleep(time / 2).await;
        let answer = shop.ledger.take(&order).await;
        // The way back takes time too. Callers who die now have paid and do not know it.
        tokio::time::sleep(time / 2).await;
        answer
    });
    match carried_out.await {
        Ok(Ok(answer)) => {
            let status = match answer.outcome {
                Outcome::Charged => StatusCode::CREATED,
                Outcome::RefusedStale => StatusCode::PRECONDITION_FAILED,
                Outcome::RefusedDuplicate => StatusCode::CONFLICT,
            };
            if answer.outcome == Outcome::RefusedStale {
                warn!(highest = answer.highest_token, "stale token refused");
            }
            (status, Json(answer)).into_response()
        }
        Ok(Err(error)) => {
            error!(%error, "the ledger cannot be written");
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        Err(error) => {
            error!(%error, "a charge did not end");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn order(shop: &Shop, headers: &HeaderMap, request: ChargeRequest) -> Result<Order, String> {
    let rules = shop.ledger.rules();
    let key = text(headers, IDEMPOTENCY_KEY)?;
    let token = text(headers, FencingToken::HEADER)?
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
    Ok(Order {
        key: key.unwrap_or_default().to_owned(),
        token: token.unwrap_or_default(),
        received_at: now_ms(),
        request,
    })
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, String> {
    headers
        .get(name)
        .map(|value| value.to_str().map_err(|_| format!("the header {name} is not text")))
        .transpose()
}
