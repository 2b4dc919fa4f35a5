//! TLS, with a certificate of our own.

use std::sync::Arc;

use httpfstream::ErrorKind;
use httpfstream::client::Client;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::peer::{Peer, TEXT, close, frame, within};

/// A server's side with a fresh certificate for `localhost`, which comes with it in PEM and DER.
pub(crate) fn config(protocols: &[&str]) -> (Arc<ServerConfig>, String, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (pem, der) = (made.cert.pem(), made.cert.der().clone());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    (Arc::new(config), pem, der.to_vec())
}

/// A server for HTTP/1.1: confirms one append, or is followed. Returns its port, the
/// certificate in PEM and DER, and what it got.
async fn serve() -> (u16, String, Vec<u8>, JoinHandle<Option<Vec<u8>>>) {
    let (config, pem, der) = config(&["http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let (io, _) = within(listener.accept()).await.unwrap();
        let io = within(TlsAcceptor::from(config).accept(io)).await.ok()?;
        let mut peer = Peer::new(io).await;
        peer.upgrade("").await;
        let got = if peer.header("x-verb") == Some("APPEND") {
            peer.data_until_close(TEXT).await.0
        } else {
            peer.send(frame(0x80 | TEXT, b"over TLS")).await;
            Vec::new()
        };
        peer.send(close(1000, "")).await;
        peer.drain().await;
        Some(got)
    });
    (port, pem, der, task)
}

#[tokio::test]
async fn https_and_wss_are_tls() {
    for scheme in ["https", "wss"] {
        let (port, pem, _, task) = serve().await;
        let client = Client::builder().root_certificate(pem).build().unwrap();
        // Large enough to fill the buffers of TLS.
        let data: Vec<u8> = (0..3_000_000u32).map(|i| (i * 3) as u8).collect();
        let sent = within(client.append(format!("{scheme}://localhost:{port}/x"), &data[..])).await.unwrap();
        assert_eq!(sent, 3_000_000);
        assert!(within(task).await.unwrap().unwrap() == data);
    }
    let (port, _, der, _task) = serve().await;
    let client = Client::builder().root_certificate(der).build().unwrap();
    let mut follower = within(client.follow(format!("wss://localhost:{port}/x"))).await.unwrap();
    assert_eq!(within(follower.next_chunk()).await.unwrap().unwrap().bytes, "over TLS");
    assert!(within(follower.next_chunk()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_or_for_another_host_is_refused() {
    let (port, _, _, task) = serve().await;
    let (_, other, _, _other_task) = serve().await;
    let client = Client::builder().root_certificate(other).header("authorization", "secret").build().unwrap();
    let error = within(client.follow(format!("https://localhost:{port}/x"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
    assert!(error.detail().contains("TLS") && std::error::Error::source(&error).is_some(), "{error}");
    assert_eq!(within(task).await.unwrap(), None, "no request was sent");

    let (port, pem, _, task) = serve().await;
    let client = Client::builder().root_certificate(pem).build().unwrap();
    let error = within(client.follow(format!("https://127.0.0.1:{port}/x"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
    assert_eq!(within(task).await.unwrap(), None);
}

#[tokio::test]
async fn a_bad_root_certificate_is_told() {
    for bad in ["", "nothing", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
        assert_eq!(Client::builder().root_certificate(bad).build().unwrap_err().kind(), ErrorKind::BadRequest, "{bad}");
    }
}
