//! The connection options of both client programs.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::uri::Uri;
use httpfstream::client::Client;
use httpfstream::{Error, ErrorKind, Result};

/// The connection options of a client program.
#[derive(clap::Args, Debug)]
pub(crate) struct ClientArgs {
    /// Log to stderr
    #[arg(short, long, env = "HTTPFSTREAM_VERBOSE", value_parser = FalseyValueParser::new())]
    pub(crate) verbose: bool,

    /// Send this header, "Name: value"; may be repeated
    #[arg(short = 'H', long, value_name = "HEADER", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,

    /// Send this bearer token; prefer the environment variable, which other users can't see
    #[arg(long, env = "HTTPFSTREAM_TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// Trust the PEM certificates in this file besides the system's
    #[arg(long, value_name = "FILE", env = "HTTPFSTREAM_CA_FILE")]
    ca_file: Option<PathBuf>,

    /// Time limit for connecting, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, env = "HTTPFSTREAM_CONNECT_TIMEOUT")]
    connect_timeout: u32,

    /// How long to retry after a broken connection while there is no progress, in seconds; 0 gives up at once
    #[arg(long, value_name = "SECONDS", default_value_t = 120, env = "HTTPFSTREAM_RETRY_FOR")]
    retry_for: u32,

    /// Use HTTP/2 without TLS too; over TLS it is used whenever the server offers it
    #[arg(long, conflicts_with = "http1")]
    http2_prior_knowledge: bool,

    /// Use only HTTP/1.1
    #[arg(long = "http1.1")]
    http1: bool,

    /// URL of the resource: http://, https://, ws:// or wss://
    #[arg(value_parser = url)]
    pub(crate) url: Uri,
}

impl ClientArgs {
    /// The client for these options.
    pub(crate) fn client(&self) -> Result<Client> {
        if self.verbose {
            // The library logs that a connection broke, or that it can't be resumed.
            let events = tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().with_target(false);
            let _ = events.with_ansi(false).with_max_level(tracing::Level::INFO).try_init();
        }
        let mut builder = Client::builder()
            .connect_timeout(Duration::from_secs(self.connect_timeout.into()))
            .retry_for(Duration::from_secs(self.retry_for.into()));
        if self.http2_prior_knowledge {
            builder = builder.http2_prior_knowledge();
        }
        if self.http1 {
            builder = builder.http1_only();
        }
        // An empty variable counts as unset.
        if let Some(token) = self.token.as_deref().filter(|token| !token.is_empty()) {
            builder = builder.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in &self.header {
            builder = builder.header(name.clone(), value.clone());
        }
        if let Some(file) = &self.ca_file {
            let certificates = std::fs::read(file).map_err(|error| {
                let detail = format!("{} can't be read", file.display());
                Error::new(ErrorKind::BadRequest).with_detail(detail).with_source(error)
            })?;
            builder = builder.root_certificate(certificates);
        }
        builder.build()
    }
}

fn url(given: &str) -> Result<Uri, String> {
    let uri: Uri = given.parse().map_err(|error| format!("{error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https" | "ws" | "wss"), Some(_)) => Ok(uri),
        _ => Err("a URL starts with http://, https://, ws:// or wss://, and has a host".to_owned()),
    }
}

fn header(given: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = given.split_once(':').ok_or("a header has the form \"Name: value\"")?;
    let name = name.trim().parse().map_err(|error| format!("{error}"))?;
    let value = value.trim().parse().map_err(|error| format!("{error}"))?;
    Ok((name, value))
}
