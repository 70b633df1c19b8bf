//! `tenure doctor`: checks whether a store, this machine and the settings are fit for elections.

use std::{io::Write as _, time::Duration};

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use serde::Serialize;
use tenure::{Diagnosis, Elector, Error, FencingToken, Level, Settings};
use tokio::time::timeout;

use crate::{
    args::Doctor,
    exit,
    output::exit_on_broken_pipe,
    store::Store,
    text::escaped,
    waiting::{self, Limit},
};

/// How long the check of a fence may take: twice as long as a request.
const FENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// The election in which nobody has candidates except this command.
const DOCTORS_ELECTION: &str = "tenure-doctor";

/// The output of `--json`, on one line.
#[derive(Serialize)]
struct Report<'a> {
    worst: Level,
    diagnoses: &'a [Diagnosis],
}

/// Prints each diagnosis with its advice. Returns the exit code.
pub(crate) async fn doctor(options: &Doctor) -> Result<u8> {
    let store = Store::new(options.url.as_deref())?;
    let mut settings = Settings::new(store.url(), "");
    settings.ttl = options.ttl;
    let config = settings.config()?;
    let diagnoses = match store.connect(config).await {
        Ok(elector) => {
            let what = "examining the store";
            let diagnosing = async {
                let mut diagnoses = elector.diagnose().await;
                if let (Some(election), Some(mark)) = (&options.election, options.fence) {
                    diagnoses.push(diagnose_fence(&*elector, &store, election, mark).await);
                }
                diagnoses
            };
            let diagnoses = tokio::select! {
                diagnoses = diagnosing => diagnoses,
                // Without the usual advice, which is this command.
                never = waiting::report_silence(&*elector, &store, what, Limit::NONE, "") => match never {},
            };
            elector.close().await;
            diagnoses
        }
        Err(error @ (Error::Refused(_) | Error::Unavailable(_) | Error::Unauthorized(_))) => {
            let text = format!("{:#}", anyhow::Error::from(error));
            vec![Diagnosis::problem("store", text, "change what the text names, or use another store")]
        }
        Err(error) => return Err(error.into()),
    };
    let worst = diagnoses.iter().map(|diagnosis| diagnosis.level).max().unwrap_or(Level::Good);
    if options.json {
        let report = serde_json::to_string(&Report { worst, diagnoses: &diagnoses })?;
        exit_on_broken_pipe(writeln!(anstream::stdout(), "{report}"))?;
    } else {
        for diagnosis in &diagnoses {
            exit_on_broken_pipe(print(diagnosis))?;
        }
    }
    Ok(if worst == Level::Problem { exit::STORE_UNAVAILABLE } else { 0 })
}

/// Whether a resource that has stored the token `mark` accepts the writes of the leader of `election`.
async fn diagnose_fence(
    elector: &dyn Elector,
    store: &Store,
    election: &str,
    mark: FencingToken,
) -> Diagnosis {
    let read = async {
        if let Some(leader) = elector.leader(election).await? {
            return Ok((leader.token, format!("the leader of {election}, {}, has", escaped(&leader.id))));
        }
        let token = token_of_store(elector, store).await?;
        Ok::<_, Error>((token, format!("nobody leads {election}, and the store has just assigned")))
    };
    let (token, who_has) = match timeout(FENCE_TIMEOUT, read).await {
        Ok(Ok((Some(token), who_has))) => (token, who_has),
        Ok(Ok((None, _))) => {
            let text = format!("nobody leads {election}, so that its tokens are not known");
            return Diagnosis::warning("fence", text, "start a candidate, and check again");
        }
        Ok(Err(error)) => return fence_unknown(election, &error.to_string()),
        Err(_) => return fence_unknown(election, "the store does not answer"),
    };
    if token >= mark {
        return Diagnosis::good(
            "fence",
            format!("{who_has} token {token}: a resource that has seen {mark} accepts it"),
        );
    }
    Diagnosis::problem(
        "fence",
        format!("{who_has} token {token}: a resource that has seen {mark} refuses it"),
        format!(
            "the store was wiped, restored or exchanged: restore it so that its tokens continue, or stop all candidates of {election}, \
             reset the mark of the resource to 0, and start them again; see \"When tokens go back\" in docs/guide/operating.md"
        ),
    )
}

fn fence_unknown(election: &str, error: &str) -> Diagnosis {
    let text = format!("the tokens of {election} are not known: {error}");
    Diagnosis::problem("fence", text, "fix the other problems first, and check again")
}

/// A token that the store has just assigned. etcd, ZooKeeper and Kubernetes number all elections together, so that the next leader
/// of any election gets a higher one. `None` for other stores.
async fn token_of_store(elector: &dyn Elector, store: &Store) -> Result<Option<FencingToken>, Error> {
    if !matches!(store.parsed()?.scheme(), "etcd" | "etcd+srv" | "zookeeper" | "kubernetes") {
        return Ok(None);
    }
    match elector.try_campaign(DOCTORS_ELECTION).await? {
        Some(leadership) => {
            let token = leadership.fencing_token();
            leadership.resign().await?;
            Ok(Some(token))
        }
        // Another doctor.
        None => Ok(elector.leader(DOCTORS_ELECTION).await?.and_then(|leader| leader.token)),
    }
}

fn print(diagnosis: &Diagnosis) -> std::io::Result<()> {
    let Diagnosis { subject, text, .. } = diagnosis;
    let (mark, color) = match diagnosis.level {
        Level::Good => ("ok", AnsiColor::Green),
        Level::Warning => ("warning", AnsiColor::Yellow),
        _ => ("problem", AnsiColor::Red),
    };
    let (bold, style) = (Style::new().bold(), color.on_default().bold());
    let mut out = anstream::stdout();
    // The text may come from the store, so it may contain control characters.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    writeln!(out, "{style}{mark:<8}{style:#} {bold}{subject}{bold:#}: {text}")?;
    if let Some(advice) = &diagnosis.advice {
        writeln!(out, "{:<8} to do: {advice}", "")?;
    }
    Ok(())
}
