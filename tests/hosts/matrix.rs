//! The table of hosts in `docs::mounting`, cell by cell.

use crate::host::host;

const PAGE: &str = include_str!("../../src/docs/mounting.md");

/// The table's rows: a host's name, and its cells.
fn table() -> Vec<(String, Vec<String>)> {
    let lines = PAGE.lines().skip_while(|line| !line.starts_with("| Host |"));
    let rows = lines.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        (cells.next().unwrap(), cells.collect())
    })
    .collect()
}

/// Asks everything of a host: what comes of it is what its row says.
async fn check(name: &str) {
    let mut host = host(name).await;
    let seen = [
        host.socket_over_http1().await,
        host.socket_over_http2().await,
        host.live_body().await,
        host.append_by_body().await,
        host.stored_bytes().await,
        host.foreign().await,
        host.grpc().await,
    ]
    .map(|got| got.to_string());
    let told = table().into_iter().find(|(row, _)| row == name);
    assert_eq!(told, Some((name.to_owned(), seen.to_vec())), "left: the page, right: what came of it");
}

macro_rules! rows {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                check($name).await;
            }
        )*

        #[test]
        fn each_row_of_the_page_has_a_test() {
            let rows: Vec<String> = table().into_iter().map(|(name, _)| name).collect();
            assert_eq!(rows, [$($name),*]);
        }
    };
}

rows! {
    hyper_http1_with_upgrades: "hyper `http1`, `.with_upgrades()`",
    hyper_http1_without_upgrades: "hyper `http1` without it",
    hyper_http2_with_extended_connect: "hyper `http2`, `.enable_connect_protocol()`",
    hyper_http2_without_extended_connect: "hyper `http2` without it",
    hyper_util_auto: "hyper-util `auto`, with both",
    axum_layer: "axum `layer`",
    axum_nest_with_the_layer_outside: "axum `nest`, the layer outside",
    axum_nest_with_the_layer_inside: "axum `nest`, the layer inside",
    axum_nest_with_a_fallback_inside: "the same, with a fallback inside",
    axum_nest_service: "axum `nest_service`",
    axum_route_layer: "axum `route_layer`",
    axum_route_layer_on_a_route_that_matches: "the same, on a route that matches",
    axum_fallback_service: "axum `fallback_service`",
    axum_route_service: "axum `route_service`, with the prefix",
    axum_handler: "`Streams::serve` in an axum handler",
    tonic_into_axum_router: "tonic, `into_axum_router().layer`",
    tonic_transport: "tonic's transport, `.layer`",
    tonic_transport_with_http1: "tonic's transport, `.accept_http1(true)`",
}
