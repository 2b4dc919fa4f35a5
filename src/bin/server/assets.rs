//! The scripts and the style sheet, below `/.httpfstream/`.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use sha2::{Digest, Sha256};

use super::{Body, full, with_type};

struct Asset {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";
const ASSETS: [Asset; 4] = [
    Asset { name: "follow.js", content_type: SCRIPT, text: httpfstream::FOLLOW_JS },
    Asset { name: "lines.js", content_type: SCRIPT, text: include_str!("../../web/lines.js") },
    Asset { name: "view.js", content_type: SCRIPT, text: include_str!("../../web/view.js") },
    Asset { name: "view.css", content_type: "text/css; charset=utf-8", text: include_str!("../../web/view.css") },
];

/// One entity tag for all assets, which belong together.
static TAG: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = ASSETS.iter().fold(Sha256::new(), |hash, asset| hash.chain_update(asset.text)).finalize();
    let tag = format!("\"{}\"", data_encoding::HEXLOWER.encode(&hash[..16]));
    HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("\"\""))
});

pub(super) fn answer(name: &str, request: &HeaderMap) -> Option<Response<Body>> {
    let asset = ASSETS.iter().find(|asset| asset.name == name)?;
    let mut response = with_type(asset.text, asset.content_type);
    if request.get_all(header::IF_NONE_MATCH).into_iter().any(names_tag) {
        *response.body_mut() = full("");
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::ETAG, TAG.clone());
    if name == "follow.js" {
        // Pages of any origin may import it. The follow request itself is subject to `--allow-origin`.
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    Some(response)
}

fn names_tag(listed: &HeaderValue) -> bool {
    let tags = listed.to_str().unwrap_or("").split(',').map(str::trim);
    tags.map(|tag| tag.strip_prefix("W/").unwrap_or(tag)).any(|tag| tag == "*" || tag.as_bytes() == TAG.as_bytes())
}
