//! What the server adds to the service: the viewer, the follow module and the listing for browsers, the token, and the
//! limits of connections.

mod assets;
pub(crate) mod connections;
mod listing;
pub(crate) mod token;
mod viewer;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use httpfstream::{BoxError, Streams};

pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Answers a request for one of the pages. `None` for any other request, which is for the service.
///
/// No resource is shadowed: the assets are below the storage's own folder, a path that ends with a slash can't name a
/// resource, and the viewer is requested explicitly.
pub(crate) async fn answer<B>(request: &Request<B>, streams: &Streams, listing: bool) -> Option<Response<Body>> {
    let method = request.method();
    if !matches!(*method, Method::GET | Method::HEAD) || has_verb(request) || is_websocket(request) {
        return None;
    }
    let path = request.uri().path();
    let answer = if let Some(name) = path.strip_prefix("/.httpfstream/") {
        assets::answer(name, request.headers())?
    } else if path.ends_with('/') && listing {
        listing::answer(path, streams).await?
    } else if parameters(request).any(|name| name == "view") {
        viewer::answer(path, streams).await?
    } else {
        return None;
    };
    Some(answer)
}

fn parameters<B>(request: &Request<B>) -> impl Iterator<Item = &str> {
    let pairs = request.uri().query().unwrap_or("").split('&');
    pairs.map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name))
}

/// Whether the request has a verb, so that it is for the service in any case.
fn has_verb<B>(request: &Request<B>) -> bool {
    // Decoded like in the service.
    let is_verb = |name: &str| percent_encoding::percent_decode_str(name).eq(*b"verb");
    request.headers().contains_key("x-verb") || parameters(request).any(is_verb)
}

fn is_websocket<B>(request: &Request<B>) -> bool {
    let upgrades = request.headers().get_all(header::UPGRADE).into_iter();
    upgrades.filter_map(|value| value.to_str().ok()).any(|value| value.to_ascii_lowercase().contains("websocket"))
}

/// A page of our own, which may run only our scripts and connect only to this server.
fn page(html: String) -> Response<Body> {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; \
                          img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let mut response = with_type(html, "text/html; charset=utf-8");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn with_type(body: impl Into<Bytes>, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(full(body));
    let mut set = |name: HeaderName, value| response.headers_mut().insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, content_type);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::CACHE_CONTROL, "no-cache");
    response
}

pub(crate) fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The relative path from a page to the server's root. It works behind a proxy that strips a prefix, too.
fn way_up(path: &str) -> String {
    "../".repeat(path.matches('/').count().saturating_sub(1))
}

/// Escapes text for HTML, including attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
