//! Notes the fencing tokens that an elector sees, and reports one that has gone back.
//!
//! Nothing follows from a token that has gone back but the report. At most one candidate leads, whatever its token is; only
//! the resources that check tokens are affected, and those refuse the leader until an operator resets their marks.

use std::{future::Future, sync::Arc, time::Duration};

use tracing::error;

use crate::{
    Candidate, ElectionName, FencingToken,
    engine::{
        elector_context::ElectorContext,
        rules::token_marks::{SeenToken, TokenRegression},
    },
    spi::BackendError,
    sync::sleep,
    telemetry,
};

/// The minimum time between two lines of one elector in the log. After a store was wiped, thousands of tokens may go back.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
/// How long tokens wait for others until they are written to the resume file.
const SAVE_DELAY: Duration = Duration::from_millis(300);

/// A candidate of this elector has won.
pub(super) fn won(shared: &Arc<ElectorContext>, election: &ElectionName, token: FencingToken) {
    let seen = shared.token_marks().won(election, token);
    note(shared, seen);
}

/// The leader has this token. `before` as in [`TokenMarks::seen`](crate::engine::rules::token_marks::TokenMarks::seen).
pub(super) fn seen(
    shared: &Arc<ElectorContext>,
    election: &ElectionName,
    token: FencingToken,
    before: Option<FencingToken>,
) {
    let seen = shared.token_marks().seen(election, token, before);
    note(shared, seen);
}

/// Sends a request, in whose answer `leader` is the leader.
pub(crate) async fn noting_leader<T>(
    shared: &Arc<ElectorContext>,
    election: &ElectionName,
    request: impl Future<Output = Result<T, BackendError>>,
    leader: impl FnOnce(&T) -> Option<&Candidate>,
) -> Result<T, BackendError> {
    // The request is sent when it is polled.
    let before = shared.token_marks().mark(election);
    let answer = request.await?;
    if let Some(token) = leader(&answer).and_then(|leader| leader.token) {
        seen(shared, election, token, before);
    }
    Ok(answer)
}

fn note(shared: &Arc<ElectorContext>, seen: SeenToken) {
    if seen == SeenToken::Unchanged {
        return;
    }
    if let Some(resume) = &shared.resume
        && resume.are_tokens_to_be_saved()
    {
        shared.runtime.spawn(save_later(Arc::clone(shared)));
    }
    if let SeenToken::Regressed(regression) = seen {
        telemetry::token_regressed(&regression.election);
        if shared.token_marks().is_log_due() {
            // First: a log subscriber may panic.
            shared.runtime.spawn(log_summaries(Arc::clone(shared)));
            log(&regression);
        }
    }
}

fn log(TokenRegression { election, token, highest }: &TokenRegression) {
    error!(
        %election,
        token = token.get(),
        highest = highest.get(),
        cause = "token_regression",
        "the fencing token has gone back: the store was wiped, restored or exchanged; resources that check tokens refuse this \
         leader until their marks are reset"
    );
}

/// Logs how many more tokens have gone back, every few seconds, until there is no further one.
async fn log_summaries(shared: Arc<ElectorContext>) {
    loop {
        let goes_on = tokio::select! {
            biased;
            () = shared.closing.cancelled() => false,
            () = shared.elector_dropped.cancelled() => false,
            () = sleep(LOG_INTERVAL) => true,
        };
        let Some((count, latest)) = shared.token_marks().take_unlogged() else { return };
        let TokenRegression { election, .. } = latest;
        error!(count, %election, cause = "token_regression", "more fencing tokens have gone back, this election's last");
        if !goes_on {
            return;
        }
    }
}

/// Writes the tokens to the resume file. Not when the elector is closed: then its session is closed, which writes the file.
async fn save_later(shared: Arc<ElectorContext>) {
    tokio::select! {
        biased;
        () = shared.closing.cancelled() => return,
        () = sleep(SAVE_DELAY) => {}
    }
    if let Some(resume) = &shared.resume {
        resume.save_tokens(shared.config.request_timeout).await;
    }
}
