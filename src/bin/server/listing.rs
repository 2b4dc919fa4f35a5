//! The listing at each path that ends with a slash, with `--listing`.

use std::fmt::Write;
use std::future::poll_fn;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{Response, StatusCode};
use httpfstream::Stat;
use httpfstream::{Key, Streams};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Body, escape, page, way_up};

/// The maximum number of listed resources: each takes a lookup in the storage, and a row of the page.
const MAX_ENTRIES: usize = 10_000;

/// The characters to escape in a path (RFC 3986 section 3.3).
const PATH: AsciiSet = NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The page of all resources below a path. `None` if there are none, except at the root.
pub(super) async fn answer(path: &str, streams: &Streams) -> Option<Response<Body>> {
    let folder = path.trim_start_matches('/');
    let prefix = match folder.strip_suffix('/') {
        Some(name) => format!("{}/", Key::from_url_path(name).ok()?),
        None if path == "/" => String::new(),
        None => return None,
    };
    let (entries, more) = match collect(&prefix, streams).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "listing the resources failed");
            let mut response = page("<!doctype html><title>httpfstream</title><p>The storage can't be listed.".into());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return Some(response);
        }
    };
    (!entries.is_empty() || prefix.is_empty()).then(|| page(html(path, &prefix, &entries, more)))
}

/// The resources, open ones first and then by age, the newest first; and whether there are more.
async fn collect(prefix: &str, streams: &Streams) -> httpfstream::Result<(Vec<(Key, Stat)>, bool)> {
    let mut list = streams.list(prefix);
    let mut entries = Vec::new();
    let mut more = false;
    while let Some(entry) = poll_fn(|cx| list.as_mut().poll_next(cx)).await {
        let (key, mut stat) = entry?;
        if entries.len() == MAX_ENTRIES {
            more = true;
            break;
        }
        // The storage can't distinguish live from lost. A resource that was deleted meanwhile is skipped.
        if stat.state.is_open() {
            let Some(now) = streams.stat(&key).await? else { continue };
            stat = now.with_modified(stat.modified);
        }
        entries.push((key, stat));
    }
    entries.sort_by(|(a_key, a), (b_key, b)| {
        (b.state.is_open(), b.modified).cmp(&(a.state.is_open(), a.modified)).then_with(|| a_key.cmp(b_key))
    });
    Ok((entries, more))
}

fn html(path: &str, prefix: &str, entries: &[(Key, Stat)], more: bool) -> String {
    let title = escape(if prefix.is_empty() { "/" } else { prefix });
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<link rel=\"stylesheet\" href=\"{}.httpfstream/view.css\">\n\
         <body class=\"listing\">\n<main>\n<h1><bdi>{title}</bdi></h1>\n",
        way_up(path)
    );
    if more {
        let _ = writeln!(out, "<p>There are more than {MAX_ENTRIES} resources; this is a part of them.</p>");
    }
    if entries.is_empty() {
        out.push_str("<p>There are no resources yet.</p>\n");
    } else {
        out.push_str(
            "<table>\n<tr><th>Name<th>State<th class=\"number\">Bytes<th class=\"changed\">Changed (UTC)<th></tr>\n",
        );
    }
    for (key, stat) in entries {
        let name = key.as_str().strip_prefix(prefix).unwrap_or(key.as_str());
        // With `./`, since a name with a colon would be taken for a scheme.
        let href = format!("./{}", utf8_percent_encode(name, &PATH));
        let changed = stat.modified.and_then(utc).unwrap_or_default();
        let _ = writeln!(
            out,
            "<tr><td><a href=\"{href}?view\"><bdi>{}</bdi></a><td><span class=\"badge\" data-state=\"{state}\">{state}</span>\
             <td class=\"number\">{}<td class=\"changed\"><time>{changed}</time><td><a href=\"{href}\">raw</a></tr>",
            escape(name),
            stat.len,
            state = stat.state,
        );
    }
    if !entries.is_empty() {
        out.push_str("</table>\n");
    }
    out.push_str("</main>\n");
    out
}

/// `2026-02-28 23:59:59`.
fn utc(at: SystemTime) -> Option<String> {
    let seconds = at.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
        if year > 9999 {
            return None;
        }
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    Some(format!("{year}-{month:02}-{:02} {hour:02}:{minute:02}:{second:02}", days + 1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_match_those_of_date() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_772_323_199, "2026-02-28 23:59:59"),
            (1_772_323_200, "2026-03-01 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap(), expected);
        }
    }

    #[test]
    fn fault_18_names_are_escaped() {
        let stat = Stat::new(httpfstream::Life::from_bits(1), 3, httpfstream::State::Live);
        let key = Key::new("a/<img src=x onerror=\"alert(1)\">:&'?#%").unwrap();
        let html = html("/a/", "a/", &[(key, stat)], false);
        assert!(html.contains("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;:&amp;&#39;?#%</bdi></a>"), "{html}");
        assert!(html.contains("href=\"./%3Cimg%20src%3Dx%20onerror%3D%22alert%281%29%22%3E%3A%26%27%3F%23%25?view\""));
        assert!(!html.contains("<img") && html.contains("href=\"../.httpfstream/view.css\""));
    }
}
