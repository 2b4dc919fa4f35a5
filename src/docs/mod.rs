//! Pages: what doesn't belong to one type.
//!
//! | Page | |
//! |---|---|
//! | [`quick_start`] | a server, an appender and a follower, with `curl`, in axum, in the process and from other programs |
//! | [`mounting`] | where the layer goes: axum, hyper, tonic, any tower service; the order of layers |
//! | [`authorization`] | who may do what, and for how long |
//! | [`web_pages`] | the follow module, `EventSource` and `fetch`; the server's viewer and listing |
//! | [`clients`] | the client library and the command-line programs |
//! | [`operating`] | the server program, limits, proxies, shutting down |
//! | [`surviving`] | what survives a crash or a power loss, what appenders and followers learn, the files on disk |
//! | [`protocol`] | the wire: which requests are ours, states, WebSockets as the original speaks them |
//! | [`protocol_v1`] | the wire: the resumable subprotocol `httpfstream.v1` |
//! | [`protocol_http`] | the wire: plain HTTP, server-sent events, request bodies, resumable uploads |
//! | [`protocol_errors`] | the wire: problem types, statuses and close codes |
//! | [`own_storage`] | how to keep resources elsewhere |
//! | [`migrating`] | from the original, sourcegraph/httpfstream, and how the two compare |
//! | [`cost`] | what it costs, how that grows, and why the hot path is as it is |
//! | [`architecture`] | how the crate is made, for those who change it |

/// A page. It is read in two places: here, and as a file in a repository browser. So its links name references, which each
/// page defines at its end as files. `links.txt` defines the same names as items and stands before the page: the first
/// definition of a name is the one that counts. `.ci/pages` checks both.
macro_rules! page {
    ($name:ident: $($text:literal)+) => {
        #[doc = include_str!("links.txt")]
        $(#[doc = include_str!($text)])+
        pub mod $name {}
    };
}

page!(quick_start: "quick_start.md");
page!(mounting: "mounting.md");
page!(authorization: "authorization.md");
page!(web_pages: "web_pages.md");
page!(clients: "clients.md");
page!(operating: "operating.md");
page!(surviving: "surviving.md");
page!(protocol: "protocol.md");
page!(protocol_v1: "protocol_v1.md");
page!(protocol_http: "protocol_http.md");
page!(protocol_errors: "protocol_errors.md");
page!(own_storage: "own_storage.md");
page!(migrating: "migrating.md");
page!(cost: "cost.md" "cost_table.md" "cost.svg");
page!(architecture: "architecture.md");
