//! tonic: what its own transport does to a WebSocket, and both kinds of calls by its client.

use httpfstream::ErrorKind;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::ask::stored;
use crate::common::{Frame, log, soon};
use crate::host::host;

/// Its connections never change hands. The layer can't know that before it has answered.
#[tokio::test]
async fn a_websocket_in_tonics_transport_dies_after_its_101_and_leaves_nothing_behind() {
    let (log, _guard) = log::of_this_thread();
    let host = host("tonic's transport, `.accept_http1(true)`").await;
    let server = &host.server;
    let (answer, mut appender) = server.upgrade("/logs/a.txt?verb=APPEND", &[]).await;
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(appender.frame().await, Frame::Eof, "not even a close");
    log.until("an upgrade failed after it was granted: does the server complete upgrades").await;
    let text = log.text();
    assert!(text.contains("target=httpfstream"), "{text}");

    // The lease is given back with the connection; nothing was created.
    let mut out = soon("the lease", async {
        loop {
            match server.streams.open_append("a.txt").await {
                Ok(out) => return out,
                Err(error) if error.kind() == ErrorKind::Busy => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    assert_eq!(out.offset(), 0);
    out.append("by another").await.unwrap();

    // A follower fares no better, and disturbs nobody.
    let (answer, mut follower) = server.upgrade("/logs/a.txt?verb=FOLLOW", &[]).await;
    assert_eq!((answer.status, follower.frame().await), (101, Frame::Eof));
    out.finish().await.unwrap();
    assert_eq!(stored(&server.streams, "a.txt").await, b"by another");
}

#[tokio::test]
async fn tonics_client_makes_unary_and_streaming_calls_beside_streams() {
    for name in ["tonic, `into_axum_router().layer`", "tonic's transport, `.layer`"] {
        let mut host = host(name).await;
        host.health.set_service_status("lamp", ServingStatus::Serving).await;
        let channel = tonic::transport::Endpoint::new(format!("http://{}", host.server.addr)).unwrap();
        let mut client = HealthClient::new(soon("a connection", channel.connect()).await.unwrap());
        let lamp = || HealthCheckRequest { service: "lamp".to_owned() };

        let checked = soon("an answer", client.check(lamp())).await.unwrap().into_inner();
        assert_eq!(checked.status, ServingStatus::Serving as i32, "{name}");
        let absent = HealthCheckRequest { service: "absent".to_owned() };
        let refused = soon("an answer", client.check(absent)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound, "{name}");

        let mut watched = soon("an answer", client.watch(lamp())).await.unwrap().into_inner();
        let told = soon("a message", watched.message()).await.unwrap().unwrap();
        assert_eq!(told.status, ServingStatus::Serving as i32, "{name}");
        host.health.set_service_status("lamp", ServingStatus::NotServing).await;
        let told = soon("a message", watched.message()).await.unwrap().unwrap();
        assert_eq!(told.status, ServingStatus::NotServing as i32, "{name}: while it runs");
        host.health.clear_service_status("lamp").await;
        assert_eq!(soon("the end", watched.message()).await.unwrap(), None, "{name}");
        assert!(soon("trailers", watched.trailers()).await.unwrap().is_some(), "{name}");
    }
}
