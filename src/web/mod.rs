//! What is given to web pages.

/// The follow module for web pages: an ES module without dependencies, whose header says how it is used.
///
/// It reads a resource over the subprotocol `httpfstream.v1`, connects again by itself and goes on exactly where it was.
/// The application serves it wherever it likes:
///
/// ```
/// use axum::{Router, http::header, routing::get};
///
/// let app: Router = Router::new().route(
///     "/follow.js",
///     get(|| async { ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], httpfstream::FOLLOW_JS) }),
/// );
/// ```
///
/// See the page [web pages](crate::docs::web_pages).
pub const FOLLOW_JS: &str = include_str!("follow.js");
