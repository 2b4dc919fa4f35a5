//! TLS as rustls speaks it, with the system's roots and those that were added.

use std::sync::{Arc, OnceLock};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, Error as TlsError};

use crate::error::{BoxError, Error, ErrorKind, Result};

/// Which certificates are trusted. The system's are read at the first use, so that nobody pays who needs no TLS.
#[derive(Default)]
pub(super) struct Tls {
    roots: Vec<CertificateDer<'static>>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    /// Adds the certificates of a PEM file, or one in DER.
    pub(super) fn add_roots(&mut self, certificate: &[u8]) -> Result<()> {
        let bad = || Error::new(ErrorKind::BadRequest).with_detail("the root certificate is neither PEM nor DER");
        // DER begins with the tag of a sequence.
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

    pub(super) async fn connect(&self, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>> {
        let config = self.config().map_err(|error| failed("the system's root certificates can't be used", error))?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| failed("the URL's host is no name that a certificate could have", error))?;
        TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|error| failed("no TLS connection could be made: is the server's certificate trusted?", error))
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
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        // An upgrade (RFC 6455) needs HTTP/1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}

fn failed(what: &'static str, source: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::Connection).with_detail(what).with_source(source)
}
