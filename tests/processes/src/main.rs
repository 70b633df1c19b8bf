//! The process that the tests fork, replace, kill and restart. The first argument says what it does.

mod exec;
mod leader;
mod lock;

use std::env;

use anyhow::{Result, bail};
use exec::Inherits;
use tracing_subscriber::filter::LevelFilter;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(std::io::stderr).init();
    match words[..] {
        ["fork", store] => leader::fork_while_leading(store),
        ["lead", url] => leader::lead(url, false),
        ["lead-and-fork", url] => leader::lead(url, true),
        ["exec", url, ref next @ ..] => exec::exec_while_leading(url, Inherits::Nothing, next),
        ["exec-with-lock-file", url, ref next @ ..] => {
            exec::exec_while_leading(url, Inherits::LockFile, next)
        }
        ["wait"] => exec::wait(),
        ["lock", kind, path] => lock::hold(kind, path.as_ref()),
        _ => bail!(
            "usage: fork STORE | lead URL | lead-and-fork URL | exec URL NEXT… | exec-with-lock-file URL NEXT… | wait | \
             lock pinned|plain FILE"
        ),
    }
}
