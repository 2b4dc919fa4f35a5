//! The client's side of the Autobahn test suite: see [`crate::websocket::autobahn`].

use super::Client;
use super::request::{Accepted, Parameters, Verb, WebSocket, send};
use super::url::Target;
use crate::websocket::autobahn::{MAX_MESSAGE, echo};

async fn connect(url: &str) -> WebSocket {
    let client = Client::builder().max_message_size(MAX_MESSAGE).build().unwrap();
    let target = Target::new(url).unwrap();
    match send(&client.settings, &target, Verb::Follow, &Parameters::default()).await.unwrap() {
        Accepted::WebSocket { conn, .. } => conn,
        Accepted::Body { .. } => panic!("no WebSocket at {url}"),
    }
}

#[tokio::test]
#[ignore = "run by tests/external/autobahn.sh, with a server to talk to in AUTOBAHN_SERVER"]
async fn run_all_cases() {
    let server = std::env::var("AUTOBAHN_SERVER").unwrap();
    let count = echo(connect(&format!("{server}/getCaseCount")).await, false).await;
    let count: u32 = std::str::from_utf8(&count).unwrap().parse().unwrap();
    assert!(count > 0);
    for case in 1..=count {
        echo(connect(&format!("{server}/runCase?case={case}&agent=client")).await, true).await;
    }
    echo(connect(&format!("{server}/updateReports?agent=client")).await, false).await;
    println!("ran {count} cases");
}
