//! TLS by rustls, with the system's root certificates and the user's.

use std::sync::{Arc, OnceLock};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, Error as TlsError};

use super::builder::Version;
use crate::error::{BoxError, Error, ErrorKind, Result};

/// The ALPN protocol ID of HTTP/2 (RFC 9113 section 3.2).
const H2: &[u8] = b"h2";

/// The trusted root certificates. The system's are read at the first use, so that clients without TLS don't pay for it.
#[derive(Default)]
pub(super) struct Tls {
    roots: Vec<CertificateDer<'static>>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    /// Adds the certificates of a PEM file, or one in DER.
    pub(super) fn add_roots(&mut self, certificate: &[u8]) -> Result<()> {
        let bad = || Error::new(ErrorKind::BadRequest).with_detail("the root certificate is neither PEM nor DER");
        // A certificate in DER begins with the tag of a SEQUENCE.
        if certificate.first() == Some(&0x30) {
            self.roots.push(CertificateDer::from(certificate.to_vec()));
            return Ok(());
        }
        let before = self.roots.len();
        for root in CertificateDer::pem_slice_iter(certificate) {
            self.roots.push(root.map_err(|error| bad().with_source(error))?);
        }
        if self.roots.len() == before { Err(bad()) } else { Ok(()) }
    }

    /// Makes the TLS handshake, and offers the HTTP versions by ALPN (RFC 7301). True if the server picked HTTP/2.
    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
        version: Version,
    ) -> Result<(TlsStream<TcpStream>, bool)> {
        let config = self.config().map_err(|error| failed("the system's root certificates can't be used", error))?;
        let mut config = ClientConfig::clone(&config);
        config.alpn_protocols = match version {
            Version::Negotiated => vec![H2.to_vec(), b"http/1.1".to_vec()],
            Version::Http1 => vec![b"http/1.1".to_vec()],
            Version::Http2 => vec![H2.to_vec()],
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| failed("the URL's host is not a name that a certificate can have", error))?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| failed("no TLS connection could be made: is the server's certificate trusted?", error))?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(H2);
        Ok((stream, http2))
    }

    fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = rustls_platform_verifier::Verifier::new_with_extra_roots(
            self.roots.iter().cloned(),
            Arc::clone(&provider),
        )?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}

fn failed(what: &'static str, source: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::Connection).with_detail(what).with_source(source)
}
