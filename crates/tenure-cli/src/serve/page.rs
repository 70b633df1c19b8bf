//! The web page with all elections: static files without any data, which need no token. Its script reads `/v1/events`, and asks
//! for the token if there is one.

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};

use super::api::Route;

const HTML: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const ICON: &str = include_str!("page/icon.svg");

/// The routes that need no token.
pub(super) fn routes() -> Vec<Route<()>> {
    vec![
        ("get", "/", get(async || file("text/html; charset=utf-8", HTML))),
        ("get", "/page.css", get(async || file("text/css; charset=utf-8", STYLE))),
        ("get", "/page.js", get(async || file("text/javascript; charset=utf-8", SCRIPT))),
        ("get", "/icon.svg", get(async || file("image/svg+xml", ICON))),
    ]
}

fn file(content_type: &'static str, text: &'static str) -> Response {
    ([(CONTENT_TYPE, content_type)], text).into_response()
}
