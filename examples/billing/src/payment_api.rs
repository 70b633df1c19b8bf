//! The payment provider's HTTP API, and the client that the servers use.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};
use tenure::FencingToken;
use thiserror::Error;

/// The header of the idempotency key: the provider charges the same key only once.
pub(crate) const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// How long to wait for an answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// The body of `POST /charges`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChargeRequest {
    pub(crate) subscription: i64,
    pub(crate) period: String,
    pub(crate) amount_cents: i64,
}

impl ChargeRequest {
    /// One key per subscription and period, independent of the sender.
    pub(crate) fn idempotency_key(&self) -> String {
        format!("subscription-{}/{}", self.subscription, self.period)
    }
}

/// The provider's decision about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The charge was made (status 201).
    Charged,
    /// Refused: the provider has seen a higher fencing token (status 412).
    RefusedStale,
    /// Refused: the key was charged before. The answer contains that charge (status 409).
    RefusedDuplicate,
}

impl Outcome {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Charged => "charged",
            Self::RefusedStale => "refused_stale",
            Self::RefusedDuplicate => "refused_duplicate",
        }
    }

    pub(crate) fn from_str(text: &str) -> Option<Self> {
        [Self::Charged, Self::RefusedStale, Self::RefusedDuplicate].into_iter().find(|o| o.as_str() == text)
    }
}

/// The answer to `POST /charges`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChargeAnswer {
    pub(crate) outcome: Outcome,
    /// The number of the charge that was made, now or before.
    pub(crate) charge: Option<i64>,
    /// The amount of that charge.
    pub(crate) amount_cents: Option<i64>,
    /// The highest token that the provider has seen, if the request's was stale.
    pub(crate) highest_token: Option<i64>,
}

/// A charge that the provider has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) charge: i64,
    pub(crate) amount_cents: i64,
    /// Whether an earlier request made the charge: its answer was lost, or its sender crashed.
    pub(crate) was_duplicate: bool,
}

/// Why a request has returned no receipt.
#[derive(Debug, Error)]
pub(crate) enum ChargeError {
    /// There is a newer leader.
    #[error("the provider refuses fencing token {token}: it has seen {highest}")]
    Stale { token: FencingToken, highest: i64 },
    /// The provider will never accept this request.
    #[error("the provider refuses the charge: {0}")]
    Rejected(String),
    /// It is unknown whether the charge was made. Retry with the same key.
    #[error("no answer from the provider")]
    NoAnswer(#[source] reqwest::Error),
    /// The provider has an internal error, and it is unknown whether the charge was made. Retry with the same key.
    #[error("the provider answered {0}")]
    ServerError(StatusCode),
}

/// The HTTP client for the payment provider.
#[derive(Clone, Debug)]
pub(crate) struct PaymentClient {
    http: reqwest::Client,
    charges_url: Url,
}

impl PaymentClient {
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let base: Url = url.parse().with_context(|| {
            format!("{url:?} is not a URL of the provider, such as http://127.0.0.1:9000")
        })?;
        if base.scheme() != "http" {
            // TLS needs a feature of reqwest; see Cargo.toml.
            bail!("the provider's URL {url:?} must begin with http://: this example is built without TLS");
        }
        let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).no_proxy().build()?;
        Ok(Self { http, charges_url: base.join("charges")? })
    }

    /// Requests one charge.
    ///
    /// # Errors
    /// See [`ChargeError`]. After some of them it is unknown whether the charge was made.
    pub(crate) async fn charge(
        &self,
        request: &ChargeRequest,
        token: FencingToken,
    ) -> Result<Receipt, ChargeError> {
        let answer = self
            .http
            .post(self.charges_url.clone())
            .header(IDEMPOTENCY_KEY, request.idempotency_key())
            .header(FencingToken::HEADER, token.to_string())
            .json(request)
            .send()
            .await
            .map_err(ChargeError::NoAnswer)?;
        let status = answer.status();
        match status {
            StatusCode::CREATED | StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => {
                let answer: ChargeAnswer = answer.json().await.map_err(ChargeError::NoAnswer)?;
                receipt(&answer, token, request)
            }
            _ if status.is_client_error() => {
                let reason = answer.text().await.map_err(ChargeError::NoAnswer)?;
                Err(ChargeError::Rejected(format!("{status}: {reason}")))
            }
            _ => Err(ChargeError::ServerError(status)),
        }
    }
}

fn receipt(
    answer: &ChargeAnswer,
    token: FencingToken,
    request: &ChargeRequest,
) -> Result<Receipt, ChargeError> {
    match (answer.outcome, answer.charge) {
        (Outcome::RefusedStale, _) => {
            Err(ChargeError::Stale { token, highest: answer.highest_token.unwrap_or_default() })
        }
        (outcome, Some(charge)) => Ok(Receipt {
            charge,
            // The amount that was charged, which may differ from today's price.
            amount_cents: answer.amount_cents.unwrap_or(request.amount_cents),
            was_duplicate: outcome == Outcome::RefusedDuplicate,
        }),
        (outcome, None) => {
            Err(ChargeError::Rejected(format!("its answer is {} without a charge", outcome.as_str())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_about_an_invalid_provider_url_says_why() {
        for (url, reason) in
            [("127.0.0.1:9000", "not a URL of the provider"), ("https://pay.example", "http://")]
        {
            let error = format!("{:#}", PaymentClient::new(url).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }
}
