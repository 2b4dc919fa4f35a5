//! Scripts for web pages.

/// The follow module for web pages: an ES module without dependencies. Its header comment says how to use it.
///
/// It follows a resource over the subprotocol `httpfstream.v1`, reconnects by itself and resumes at the exact byte. The
/// application serves it at any path:
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
