//! Reads one member of a problem (RFC 9457) without a JSON parser: errors must be explained even if they are odd.

use std::iter::Peekable;
use std::str::Chars;

/// The string that the outermost object has under `name`; `None` if there is none or the text is no JSON up to it.
pub(super) fn string_member(json: &str, name: &str) -> Option<String> {
    let mut chars = json.chars().peekable();
    let mut depth = 0u32;
    while let Some(c) = chars.next() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.checked_sub(1)?,
            '"' => {
                let found = string(&mut chars)?;
                if depth == 1 && next_is(&mut chars, ':') && found == name && next_is(&mut chars, '"') {
                    return string(&mut chars);
                }
            }
            _ => {}
        }
    }
    None
}

/// Skips white space, and `wanted` if it is next.
fn next_is(chars: &mut Peekable<Chars<'_>>, wanted: char) -> bool {
    while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
    chars.next_if_eq(&wanted).is_some()
}

/// The rest of a string whose opening quote was read.
fn string(chars: &mut Peekable<Chars<'_>>) -> Option<String> {
    let mut read = String::new();
    loop {
        read.push(match chars.next()? {
            '"' => return Some(read),
            '\\' => match chars.next()? {
                'n' | 'r' | 't' | 'b' | 'f' => ' ',
                'u' => {
                    let mut code = 0;
                    for _ in 0..4 {
                        code = code * 16 + chars.next()?.to_digit(16)?;
                    }
                    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
                }
                other => other,
            },
            other => other,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_member_and_nothing_that_looks_like_it() {
        let json = r#"{ "x": {"detail": "inner"}, "title":"detail", "y":["detail","z"], "n": 1.5,
            "detail" : "a \"b\" \u00e9 \ud83d\n", "type":"https://example.org/problems/sealed"}"#;
        assert_eq!(string_member(json, "detail").as_deref(), Some("a \"b\" é \u{fffd} "));
        assert_eq!(string_member(json, "type").as_deref(), Some("https://example.org/problems/sealed"));
        assert_eq!(string_member(json, "n"), None);
        assert_eq!(string_member(json, "z"), None);
    }

    #[test]
    fn odd_texts_are_no_problem() {
        for json in
            ["", "}", "{\"detail", "{\"detail\":", "{\"detail\":\"a", "{\"detail\":\"\\u12", "\"detail\":\"a\"", "[[["]
        {
            assert_eq!(string_member(json, "detail"), None, "{json}");
        }
    }
}
