//! The token of `--token`.

use http::{HeaderMap, HeaderValue, Method, Request, header};

/// The challenges in a 401. For the second one a browser asks its user for a password, and sends that with everything
/// that it loads from here, including WebSockets and scripts, for which it can't send a bearer token.
pub(crate) const CHALLENGES: [HeaderValue; 2] =
    [HeaderValue::from_static("Bearer"), HeaderValue::from_static("Basic realm=\"httpfstream\"")];

/// Whether a request carries the token, as a bearer token (RFC 6750) or as the password of any user (RFC 7617).
pub(crate) fn carries<B>(request: &Request<B>, token: &str) -> bool {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, given)) = given.and_then(|value| value.split_once(' ')) else { return false };
    let given = given.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return constant_time_eq(given.as_bytes(), token.as_bytes());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return false;
    }
    let Ok(decoded) = data_encoding::BASE64.decode(given.as_bytes()) else { return false };
    // The user name has no colon, but the password may.
    let password = decoded.iter().position(|byte| *byte == b':').map(|colon| &decoded[colon + 1..]);
    password.is_some_and(|password| constant_time_eq(password, token.as_bytes()))
}

/// Whether a request is a CORS preflight, which never carries credentials.
pub(crate) fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Lets pages of allowed origins read a refusal, as the layer does for its own responses. Otherwise a page can't
/// distinguish it from an unreachable server.
pub(crate) fn expose(headers: &mut HeaderMap, origin: Option<&HeaderValue>, allowed: &[String]) {
    if allowed.iter().any(|allowed| allowed == "*") {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        return;
    }
    if allowed.is_empty() {
        return;
    }
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = origin else { return };
    if allowed.iter().any(|allowed| origin.as_bytes().eq_ignore_ascii_case(allowed.as_bytes())) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}

/// Compares in constant time.
fn constant_time_eq(given: &[u8], token: &[u8]) -> bool {
    given.len() == token.len() && given.iter().zip(token).fold(0, |d, (a, b)| d | (a ^ b)) == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn carried(authorization: &str) -> bool {
        carries(&Request::builder().header("authorization", authorization).body(()).unwrap(), "se:cret")
    }

    #[test]
    fn fault_19_the_token_is_a_bearer_token_or_any_users_password() {
        let basic = |text: &str| format!("Basic {}", data_encoding::BASE64.encode(text.as_bytes()));
        for good in ["Bearer se:cret", "bearer  se:cret ", &basic(":se:cret"), &basic("me:se:cret")] {
            assert!(carried(good), "{good}");
        }
        for bad in
            ["", "Bearer", "Bearer ", "Bearer se:cre", "Bearer se:crets", "se:cret", "Basic se:cret", "Digest se:cret"]
        {
            assert!(!carried(bad), "{bad}");
        }
        for bad in ["se:cret", "", ":", ":secret", "se:cret:"] {
            assert!(!carried(&basic(bad)), "{bad}");
        }
    }

    #[test]
    fn pages_of_allowed_origins_can_read_a_refusal() {
        let exposed = |origin: Option<&str>, allowed: &[&str]| {
            let allowed: Vec<String> = allowed.iter().map(|origin| (*origin).into()).collect();
            let mut headers = HeaderMap::new();
            expose(&mut headers, origin.map(|origin| origin.parse().unwrap()).as_ref(), &allowed);
            ["access-control-allow-origin", "access-control-allow-credentials", "vary"]
                .map(|name| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned())
        };
        let (a, b) = ("https://a.example", "https://b.example");
        assert_eq!(exposed(Some(a), &[b, a]), [a, "true", "Origin"]);
        assert_eq!(exposed(Some("https://c.example"), &[b, a]), ["", "", "Origin"]);
        assert_eq!(exposed(Some("https://a.example.evil"), &[b, a]), ["", "", "Origin"]);
        assert_eq!(exposed(None, &[a]), ["", "", "Origin"]);
        assert_eq!(exposed(Some(a), &[a, "*"]), ["*", "", ""]);
        assert_eq!(exposed(Some(a), &[]), ["", "", ""]);
    }

    #[test]
    fn a_preflight_needs_its_method_and_both_headers() {
        let preflight = |method: &str, headers: &[(&str, &str)]| {
            let builder = Request::builder().method(method);
            is_preflight(&headers.iter().fold(builder, |b, (name, value)| b.header(*name, *value)).body(()).unwrap())
        };
        let whole = [("origin", "https://a.example"), ("access-control-request-method", "PUT")];
        assert!(preflight("OPTIONS", &whole));
        assert!(!preflight("PUT", &whole) && !preflight("OPTIONS", &whole[..1]) && !preflight("OPTIONS", &whole[1..]));
    }
}
