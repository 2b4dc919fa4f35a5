//! Errors as responses of axum handlers.

use axum_core::body::Body;
use axum_core::response::{IntoResponse, Response};

use crate::error::Error;

/// The problem document of [`Error::to_response`], so that a handler can return `Result<_, httpfstream::Error>` and use `?`.
///
/// ```
/// use axum::extract::{Path, State};
/// use httpfstream::Streams;
///
/// /// The length of a log; 404 if there is none.
/// async fn length(State(streams): State<Streams>, Path(id): Path<String>) -> httpfstream::Result<String> {
///     let stat = streams.stat(format!("logs/{id}")).await?.ok_or(httpfstream::ErrorKind::NotFound)?;
///     Ok(stat.len.to_string())
/// }
/// # let _: axum::Router = axum::Router::new().route("/{id}", axum::routing::get(length))
/// #     .with_state(Streams::new(httpfstream::storage::MemoryStorage::new(1)));
/// ```
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.to_response().map(Body::new)
    }
}
