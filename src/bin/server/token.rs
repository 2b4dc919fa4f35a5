//! The token that `--token` requires.

use http::{HeaderMap, HeaderValue, header};
use httpfstream::{Error, ErrorKind};

/// The refusal of a request without the token. For the second challenge a browser asks its user, and sends the password with
/// everything that it loads from this server, including WebSockets and scripts: it can't send a bearer token with those.
pub(crate) fn required() -> Error {
    Error::new(ErrorKind::Unauthorized)
        .with_detail("this server requires a token: as a bearer token, or as the password of any user")
        .with_challenge(HeaderValue::from_static("Bearer"))
        .with_challenge(HeaderValue::from_static("Basic realm=\"httpfstream\""))
}

/// Whether a request is permitted: it carries the token, or none is required.
pub(crate) fn permits(token: Option<&str>, headers: &HeaderMap) -> bool {
    token.is_none_or(|token| carries(headers, token))
}

/// Whether a request carries the token: as a bearer token (RFC 6750), or as the password of any user (RFC 7617).
pub(crate) fn carries(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
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

/// Compares in constant time, so that the time doesn't tell how much of a guess is right.
fn constant_time_eq(given: &[u8], token: &[u8]) -> bool {
    given.len() == token.len() && given.iter().zip(token).fold(0, |d, (a, b)| d | (a ^ b)) == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn carried(authorization: &str) -> bool {
        let headers = [(header::AUTHORIZATION, authorization.parse().unwrap())];
        carries(&HeaderMap::from_iter(headers), "se:cret")
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
}
