//! `tenure doctor`: checks whether a store, this machine and the settings are fit for elections.

use std::io::Write as _;

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use serde::Serialize;
use tenure::{Diagnosis, Error, Level, Settings};

use crate::{
    args::Doctor,
    exit,
    output::exit_on_broken_pipe,
    store::Store,
    waiting::{self, Limit},
};

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
            let diagnoses = tokio::select! {
                diagnoses = elector.diagnose() => diagnoses,
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
