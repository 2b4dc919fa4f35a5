//! The viewer, at `/foo.log?view`.

use http::Response;
use httpfstream::{Key, Streams};

use super::{Body, page, way_up};

/// The viewer of a resource. The page takes the resource's name from its own address, so nothing of the request gets
/// into the HTML.
pub(super) async fn answer(path: &str, streams: &Streams) -> Option<Response<Body>> {
    let key = Key::from_url_path(path).ok()?;
    // Errors and absent resources are left to the service, which answers as it does without `?view`.
    streams.stat(&key).await.ok()??;
    Some(page(include_str!("../../web/view.html").replace("{{base}}", &way_up(path))))
}
