//! The token that `--token` asks for.

use http::{HeaderMap, HeaderValue, Method, Request, header};

/// What is answered with 401. A browser asks its user for the second one, and sends what it is told with everything that
/// it loads from here, WebSockets and scripts included: it can't be made to send a bearer token with those.
pub(crate) const CHALLENGES: [HeaderValue; 2] =
    [HeaderValue::from_static("Bearer"), HeaderValue::from_static("Basic realm=\"httpfstream\"")];

/// Whether a request carries the token: as a bearer token (RFC 6750), or as the password of any user (RFC 7617).
pub(crate) fn carries<B>(request: &Request<B>, token: &str) -> bool {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, given)) = given.and_then(|value| value.split_once(' ')) else { return false };
    let given = given.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return same(given.as_bytes(), token.as_bytes());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return false;
    }
    let Ok(decoded) = data_encoding::BASE64.decode(given.as_bytes()) else { return false };
    // A user's name has no colon, a password may.
    let password = decoded.iter().position(|byte| *byte == b':').map(|colon| &decoded[colon + 1..]);
    password.is_some_and(|password| same(password, token.as_bytes()))
}

/// A preflight carries no credentials, whatever the request behind it will.
pub(crate) fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Lets a page of an allowed origin read a refusal, as the layer does with its own answers: the page can't tell it from
/// a server that isn't there otherwise.
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

/// Takes as long for a good beginning as for a bad one.
fn same(given: &[u8], token: &[u8]) -> bool {
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
    fn fault_19_the_token_is_a_bearer_token_or_anybodys_password() {
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
    fn a_refusal_can_be_read_by_pages_of_allowed_origins() {
        let told = |origin: Option<&str>, allowed: &[&str]| {
            let allowed: Vec<String> = allowed.iter().map(|origin| (*origin).into()).collect();
            let mut headers = HeaderMap::new();
            expose(&mut headers, origin.map(|origin| origin.parse().unwrap()).as_ref(), &allowed);
            ["access-control-allow-origin", "access-control-allow-credentials", "vary"]
                .map(|name| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned())
        };
        let (a, b) = ("https://a.example", "https://b.example");
        assert_eq!(told(Some(a), &[b, a]), [a, "true", "Origin"]);
        assert_eq!(told(Some("https://c.example"), &[b, a]), ["", "", "Origin"]);
        assert_eq!(told(Some("https://a.example.evil"), &[b, a]), ["", "", "Origin"]);
        assert_eq!(told(None, &[a]), ["", "", "Origin"]);
        assert_eq!(told(Some(a), &[a, "*"]), ["*", "", ""]);
        assert_eq!(told(Some(a), &[]), ["", "", ""]);
    }

    #[test]
    fn only_a_whole_preflight_is_one() {
        let asked = |method: &str, headers: &[(&str, &str)]| {
            let builder = Request::builder().method(method);
            is_preflight(&headers.iter().fold(builder, |b, (name, value)| b.header(*name, *value)).body(()).unwrap())
        };
        let whole = [("origin", "https://a.example"), ("access-control-request-method", "PUT")];
        assert!(asked("OPTIONS", &whole));
        assert!(!asked("PUT", &whole) && !asked("OPTIONS", &whole[..1]) && !asked("OPTIONS", &whole[1..]));
    }
}
