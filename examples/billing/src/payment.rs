//! The provider's HTTP API, and the client that the servers use.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};
use tenure::FencingToken;
use thiserror::Error;

/// The header that names a charge: the same key is never charged twice.
pub(crate) const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The body of `POST /charges`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChargeRequest {
    pub(crate) subscription: i64,
    pub(crate) period: String,
    pub(crate) amount_cents: i64,
}

impl ChargeRequest {
    /// One key per subscription and period: whoever asks, and however often.
    pub(crate) fn idempotency_key(&self) -> String {
        format!("subscription-{}/{}", self.subscription, self.period)
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Money has moved.
    Charged,
    /// A higher fencing token has been seen: 412.
    RefusedStale,
    /// The key was charged before; the answer tells what then: 409.
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
    /// The charge's number, this one's or that of the one made before.
    pub(crate) charge: Option<i64>,
    /// What was charged, now or before.
    pub(crate) amount_cents: Option<i64>,
    /// The highest token seen, in the answer to a stale one.
    pub(crate) highest_token: Option<i64>,
}

/// A charge that stands at the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) charge: i64,
    pub(crate) amount_cents: i64,
    /// An earlier request made the charge: its answer was lost, or its sender.
    pub(crate) made_before: bool,
}

/// A request that brought no receipt.
#[derive(Debug, Error)]
pub(crate) enum ChargeError {
    /// Somebody leads after us.
    #[error("the provider refuses our fencing token {token}: it has seen {highest}")]
    Stale { token: FencingToken, highest: i64 },
    /// The provider does not take this request, now or later.
    #[error("the provider refuses the charge: {0}")]
    Rejected(String),
    /// Nobody knows whether money has moved: ask again with the same key.
    #[error("no answer from the provider")]
    Unclear(#[source] reqwest::Error),
    /// The provider is in trouble; the same holds.
    #[error("the provider answers {0}")]
    Trouble(StatusCode),
}

/// The provider's client.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    http: reqwest::Client,
    charges: Url,
}

impl Provider {
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let base: Url = url
            .parse()
            .with_context(|| format!("{url:?} is not the provider's URL, such as http://127.0.0.1:9000"))?;
        if base.scheme() != "http" {
            // TLS needs a feature of reqwest; see Cargo.toml.
            bail!("the provider's URL {url:?} must begin with http://: this example is built without TLS");
        }
        let http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build()?;
        Ok(Self { http, charges: base.join("charges")? })
    }

    /// Asks for one charge.
    ///
    /// # Errors
    /// See [`ChargeError`]: most of them leave open whether money has moved.
    pub(crate) async fn charge(
        &self,
        request: &ChargeRequest,
        token: FencingToken,
    ) -> Result<Receipt, ChargeError> {
        let answer = self
            .http
            .post(self.charges.clone())
            .header(IDEMPOTENCY_KEY, request.idempotency_key())
            .header(FencingToken::HEADER, token.to_string())
            .json(request)
            .send()
            .await
            .map_err(ChargeError::Unclear)?;
        let status = answer.status();
        match status {
            StatusCode::CREATED | StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => {
                let answer: ChargeAnswer = answer.json().await.map_err(ChargeError::Unclear)?;
                receipt(&answer, token, request)
            }
            _ if status.is_client_error() => {
                let reason = answer.text().await.map_err(ChargeError::Unclear)?;
                Err(ChargeError::Rejected(format!("{status}: {reason}")))
            }
            _ => Err(ChargeError::Trouble(status)),
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
            // What was charged before counts, even if the price has changed since.
            amount_cents: answer.amount_cents.unwrap_or(request.amount_cents),
            made_before: outcome == Outcome::RefusedDuplicate,
        }),
        (outcome, None) => {
            Err(ChargeError::Rejected(format!("it answers {} and names no charge", outcome.as_str())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_url_that_cannot_work_says_why() {
        for (url, reason) in
            [("127.0.0.1:9000", "not the provider's URL"), ("https://pay.example", "http://")]
        {
            let error = format!("{:#}", Provider::new(url).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }
}
